//! Sums over ranks, and what they have put together, through the launchers.

use granule_device::{Buffer, Bytes, DeviceSliceMut};
use granule_ops::{Error, ranks};

use super::Cuda;
use crate::machine::Placed;
use crate::ranks::{Case, Collects};

impl Cuda {
    /// The parts and the target in the device's memory.
    fn rank_memory(&self, case: &Case, target: &Placed) -> (Vec<Buffer>, Buffer) {
        (case.parts.iter().map(|part| self.upload(part)).collect(), self.upload(target))
    }

    fn bring(&self, from: &Buffer, target: &mut Placed) {
        self.stream.synchronize().unwrap();
        self.device().copy(from.slice(..).unwrap(), DeviceSliceMut::from(target.all_mut())).unwrap();
    }
}

impl Collects for Cuda {
    fn sum(&self, case: &Case) -> Placed {
        let mut target = case.sum_target();
        let (buffers, out) = self.rank_memory(case, &target);
        let at = |buffer: &Buffer, placed: &Placed| buffer.slice(placed.range()).unwrap().ptr();
        let to = at(&out, &target);
        let mut parts: Vec<_> = buffers.iter().zip(&case.parts).map(|(b, part)| at(b, part)).collect();
        if let Some(over) = case.over {
            parts[over] = to;
        }
        // SAFETY: all of it stays until the stream was waited for, and nothing else touches it.
        unsafe { ranks::sum(&self.kernels, &self.stream, &parts, to, target.len() / 4) }.unwrap();
        self.bring(&out, &mut target);
        target
    }

    fn gather(&self, case: &Case) -> Placed {
        let mut target = case.gather_target();
        let begins = case.begins();
        let (buffers, out) = self.rank_memory(case, &target);
        let at = |buffer: &Buffer, placed: &Placed| buffer.slice(placed.range()).unwrap().ptr();
        let to = at(&out, &target);
        let mut parts: Vec<_> = buffers.iter().zip(&case.parts).map(|(b, part)| at(b, part)).collect();
        if let Some(over) = case.over {
            parts[over] = to.add(Bytes::from_usize(4 * begins[over]));
        }
        // SAFETY: as above.
        unsafe { ranks::gather(&self.kernels, &self.stream, &parts, &begins, to) }.unwrap();
        self.bring(&out, &mut target);
        target
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let cuda = Cuda::new();
    let memory = cuda.buffer(&[0; 64]);
    let at = memory.slice(..).unwrap().ptr();
    let sum = |parts: &[_], to, elements| {
        // SAFETY: all is refused, or has nothing to do.
        unsafe { ranks::sum(&cuda.kernels, &cuda.stream, parts, to, elements) }
    };
    assert!(matches!(sum(&[], at, 4), Err(Error::Dimension { got: 0, .. })));
    assert!(matches!(sum(&[at; 17], at, 4), Err(Error::Dimension { got: 17, .. })));
    assert!(matches!(sum(&[at; 2], at.add(Bytes::new(2)), 4), Err(Error::Alignment { must: 4, .. })));
    sum(&[at; 2], at, 0).unwrap();
    let gather = |parts: &[_], begins: &[usize]| {
        // SAFETY: as above.
        unsafe { ranks::gather(&cuda.kernels, &cuda.stream, parts, begins, at) }
    };
    assert!(matches!(gather(&[at; 2], &[0, 4]), Err(Error::Dimension { got: 2, .. })));
    assert!(matches!(gather(&[at; 2], &[0, 4, 3]), Err(Error::Dimension { .. })));
    gather(&[at; 2], &[3, 3, 3]).unwrap();
    assert_eq!(cuda.device().live().modules, 0);
}
