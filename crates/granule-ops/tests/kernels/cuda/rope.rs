//! Rotary positions through their launcher.

use granule_device::DeviceSliceMut;
use granule_ops::{Error, rope};

use super::Cuda;
use crate::rope::{Case, Rotates};

impl Rotates for Cuda {
    fn rotate(&self, case: &Case) -> Vec<f32> {
        let mut x = self.buffer(bytemuck::cast_slice(&case.x));
        let angles = self.buffer(bytemuck::cast_slice(&case.angles));
        let (heads, angles) = (x.slice_mut(..).unwrap(), angles.slice(..).unwrap());
        // SAFETY: both stay until the stream was waited for, and nothing else touches them.
        let done = unsafe {
            rope::cuda(&self.kernels, &self.stream, heads, case.n_heads, case.head_dim, case.dims, angles)
        };
        done.unwrap();
        self.stream.synchronize().unwrap();
        let mut turned = vec![0f32; case.x.len()];
        let to = DeviceSliceMut::from(bytemuck::cast_slice_mut(&mut turned));
        self.device().copy(x.slice(..).unwrap(), to).unwrap();
        turned
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let cuda = Cuda::new();
    let (mut x, angles) = (cuda.buffer(&[0; 4 * 2 * 3 * 8]), cuda.buffer(&[0; 4 * 2 * 8]));
    let angles = angles.slice(..).unwrap();
    let mut turn = |n_heads, head_dim, dims, from: usize, angles| {
        let x = x.slice_mut(from..).unwrap();
        // SAFETY: all is refused, or has nothing to do.
        unsafe { rope::cuda(&cuda.kernels, &cuda.stream, x, n_heads, head_dim, dims, angles) }
    };
    assert!(matches!(turn(3, 8, 10, 0, angles), Err(Error::Dimension { got: 10, .. })));
    assert!(matches!(turn(3, 8, 5, 0, angles), Err(Error::Dimension { got: 5, .. })));
    assert!(matches!(turn(3, 8, 6, 0, angles), Err(Error::Shape { .. })));
    assert!(matches!(turn(4, 8, 8, 0, angles), Err(Error::Shape { .. })));
    assert!(matches!(turn(1 << 31, 8, 8, 0, angles), Err(Error::Dimension { .. })));
    assert!(matches!(turn(1, 8, 8, 0, angles.subslice(8..40).unwrap()), Err(Error::Shape { .. })));
    assert!(matches!(
        turn(5, 8, 8, 32, angles.subslice(8..40).unwrap()),
        Err(Error::Alignment { must: 16, .. })
    ));
    turn(3, 8, 0, 0, angles).unwrap();
    turn(3, 8, 8, 192, angles.subslice(..0).unwrap()).unwrap();
    assert_eq!(cuda.device().live().modules, 0);
}
