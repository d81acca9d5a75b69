//! Drawing tokens through the launcher, and from a captured graph.

use granule_device::{Buffer, DeviceSlice, DeviceSliceMut};
use granule_ops::Error;
use granule_ops::sample::{self, Draw, Drawn, scratch_bytes};

use super::Cuda;
use crate::sample::{Case, Samples};

/// A case's memory on the device.
struct There {
    logits: Buffer,
    draws: Buffer,
    scratch: Buffer,
    to: Buffer,
}

fn bytes_of(draws: &[Draw]) -> Vec<u8> {
    draws.iter().flat_map(Draw::to_bytes).collect()
}

impl There {
    fn of(cuda: &Cuda, case: &Case) -> There {
        let logits = cuda.buffer(bytemuck::cast_slice(&case.logits));
        let draws = cuda.buffer(&bytes_of(&case.draws));
        let scratch = cuda.buffer(&vec![0xff; scratch_bytes(case.rows())]);
        There { logits, draws, scratch, to: cuda.buffer(&vec![0; case.rows() * Drawn::BYTES]) }
    }

    fn launch(&mut self, cuda: &Cuda, case: &Case, draws: bool) {
        let draws = draws.then(|| self.draws.slice(..).unwrap());
        let (logits, rows) = (self.logits.slice(..).unwrap(), case.rows());
        let (scratch, to) = (self.scratch.slice_mut(..).unwrap(), self.to.slice_mut(..).unwrap());
        // SAFETY: all memory stays until the stream was waited for, and nothing else touches it until then.
        unsafe { sample::cuda(&cuda.kernels, &cuda.stream, logits, rows, case.n_vocab, draws, scratch, to) }
            .unwrap();
    }

    fn drawn(&self, cuda: &Cuda, rows: usize) -> Vec<Drawn> {
        cuda.stream.synchronize().unwrap();
        let mut bytes = vec![0; rows * Drawn::BYTES];
        cuda.device().copy(self.to.slice(..).unwrap(), DeviceSliceMut::from(&mut bytes[..])).unwrap();
        assert_eq!(Drawn::of(&bytes, rows), None);
        (0..rows).map(|row| Drawn::of(&bytes, row).unwrap()).collect()
    }
}

impl Samples for Cuda {
    fn sample(&self, case: &Case, draws: bool) -> Vec<Drawn> {
        let mut there = There::of(self, case);
        there.launch(self, case, draws);
        there.drawn(self, case.rows())
    }

    fn penalize(&self, case: &Case, ids: &[u32]) -> Vec<f32> {
        let mut there = There::of(self, case);
        let on_device = self.buffer(bytemuck::cast_slice(ids));
        let (draws, ids) = (there.draws.slice(..).unwrap(), on_device.slice(..4 * ids.len()).unwrap());
        let logits = there.logits.slice_mut(..).unwrap();
        // SAFETY: as above, and the listed ids are those of a case: no two alike.
        let done = unsafe {
            sample::penalize(&self.kernels, &self.stream, logits, case.rows(), case.n_vocab, draws, ids)
        };
        done.unwrap();
        self.stream.synchronize().unwrap();
        let mut got = vec![0f32; case.logits.len()];
        let to = DeviceSliceMut::from(bytemuck::cast_slice_mut(&mut got));
        self.device().copy(there.logits.slice(..).unwrap(), to).unwrap();
        got
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_captured_graph_draws_anew() {
    let cuda = Cuda::new();
    let mut case = Case::draw(0, 5000, 3);
    let mut there = There::of(&cuda, &case);
    // Modules cannot be loaded in a capture.
    there.launch(&cuda, &case, true);
    cuda.stream.synchronize().unwrap();
    cuda.stream.begin_capture().unwrap();
    there.launch(&cuda, &case, true);
    let graph = cuda.stream.end_capture().unwrap().instantiate().unwrap();
    for seed in 1..4 {
        case = Case::draw(seed, 5000, 3);
        for (from, to) in [
            (bytemuck::cast_slice(&case.logits), &mut there.logits),
            (&bytes_of(&case.draws), &mut there.draws),
        ] {
            cuda.device().copy(DeviceSlice::from(from), to.slice_mut(..).unwrap()).unwrap();
        }
        // SAFETY: what the graph's kernels touch is there, and nothing else touches it until they were waited for.
        unsafe { graph.launch(&cuda.stream) }.unwrap();
        let drawn = there.drawn(&cuda, 3);
        case.check(&Known(drawn));
    }
}

/// What was drawn already.
struct Known(Vec<Drawn>);

impl Samples for Known {
    fn sample(&self, _: &Case, draws: bool) -> Vec<Drawn> {
        if draws { self.0.clone() } else { Vec::new() }
    }

    fn penalize(&self, case: &Case, _: &[u32]) -> Vec<f32> {
        case.logits.clone()
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let cuda = Cuda::new();
    let mut memory = [4 * 2 * 64, 2 * Draw::BYTES, scratch_bytes(2), 2 * Drawn::BYTES + 8]
        .map(|bytes| cuda.buffer(&vec![0; bytes]));
    let mut launch = |rows, n_vocab, cut: [usize; 4], shift: [usize; 4]| {
        let [logits, draws, scratch, to] = &mut memory;
        let place = |i: usize, len: usize| shift[i]..len - cut[i];
        let (logits, draws) =
            (logits.slice(place(0, 512)).unwrap(), draws.slice(place(1, 2 * Draw::BYTES)).unwrap());
        let scratch = scratch.slice_mut(place(2, scratch_bytes(2))).unwrap();
        let to = to.slice_mut(place(3, 2 * Drawn::BYTES)).unwrap();
        // SAFETY: all is refused.
        unsafe { sample::cuda(&cuda.kernels, &cuda.stream, logits, rows, n_vocab, Some(draws), scratch, to) }
    };
    let none = [0; 4];
    assert!(matches!(launch(2, 0, none, none), Err(Error::Dimension { got: 0, .. })));
    assert!(matches!(launch(2, 1 << 20, none, none), Err(Error::Dimension { .. })));
    assert!(matches!(launch(2, 63, none, none), Err(Error::Shape { .. })));
    for i in 0..4 {
        let one = std::array::from_fn(|k| usize::from(k == i));
        assert!(matches!(launch(2, 64, one, none), Err(Error::Shape { .. })), "{i}");
    }
    assert!(matches!(launch(1, 126, none, [8, 0, 0, 0]), Err(Error::Alignment { must: 16, .. })));
    assert!(matches!(launch(1, 128, [0, 36, 0, 0], [0, 4, 0, 0]), Err(Error::Alignment { must: 8, .. })));
    assert_eq!(cuda.device().live().modules, 0);
}
