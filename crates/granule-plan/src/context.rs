//! `DryContext`: a context without memory: it is told what a context evaluates, and knows what that comes to hold.

use granule_device::Bytes;

#[cfg(feature = "cuda")]
use crate::cuda::{CudaRun, Ends};
use crate::heaps::{Heaps, Leased, Which};
use crate::host::HostRun;
use crate::{Compute, Error, ModelShape, Stage, StageMemory};

/// What of a context's options its memory depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextShape {
    /// The most tokens of each of its sequences.
    pub n_ctx: usize,
    /// The most tokens that are computed in one go, of all sequences together.
    pub n_batch: usize,
    /// Rows behind the last token that have memory before they are needed.
    pub ahead: usize,
    /// Of how many logits a GPU draws the next token where one sequence [goes on](DryContext::go_on), as generation does; 0: all logits
    /// come to the host.
    pub draws_of: usize,
}

/// A context without memory. Told of the same calls, each of its stages is known to hold what the engine's would, to the byte: as
/// long as nobody else has memory of the same pools, the banks have what is asked for, and no token is removed.
///
/// Keys and values include what is mapped ahead by another thread, some moments later; parked memory of sequences that are gone, and
/// remembered prompts, are none of it.
#[derive(Debug)]
pub struct DryContext {
    shape: ModelShape,
    options: ContextShape,
    stages: Vec<Run>,
    /// Tokens of each sequence.
    lens: Vec<usize>,
    /// Logits that a call computes: how many rows there is room for, and that room.
    rows: (usize, Leased),
    has_stepped: bool,
}

/// A stage and its engine.
#[derive(Debug)]
struct Run {
    stage: Stage,
    heaps: Heaps,
    engine: Engine,
}

#[derive(Debug)]
enum Engine {
    Host(HostRun),
    #[cfg(feature = "cuda")]
    Cuda(CudaRun),
}

impl Run {
    fn new(stage: &Stage, index: usize, stages: usize) -> Result<Run, Error> {
        // The host's steps are the same wherever the stage stands.
        let _ = (index, stages);
        let heaps = Heaps::new(stage.granule);
        let (engine, heaps) = match stage.compute {
            Compute::Host { threads, threads_batch } => {
                let (_, row) = stage.kv.layer(0)?;
                (Engine::Host(HostRun::new(row, [threads, threads_batch])), heaps)
            }
            #[cfg(feature = "cuda")]
            Compute::Cuda(facts) => {
                let mut heaps = heaps;
                let ends = Ends { is_first: index == 0, is_last: index + 1 == stages };
                let scratch = stage.engine_scratch.to_usize().unwrap_or(usize::MAX);
                let run = CudaRun::new(facts, ends, &stage.kv, &stage.products, scratch, &mut heaps)?;
                (Engine::Cuda(run), heaps)
            }
        };
        Ok(Run { stage: stage.clone(), heaps, engine })
    }

    fn room_for_logits(&mut self, elements: usize) -> Result<Leased, Error> {
        let which = match self.engine {
            Engine::Host(_) => Which::Activations,
            #[cfg(feature = "cuda")]
            Engine::Cuda(_) => Which::Pinned,
        };
        self.heaps.take(which, elements * size_of::<f32>())
    }

    /// A step of sequences with so many tokens and, with those, rows.
    fn step(&mut self, shape: &ModelShape, parts: &[(usize, usize)], draws_of: usize) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Host(host) => host.step(shape, &mut self.heaps, parts, draws_of),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.step(shape, &mut self.heaps, parts, draws_of),
        }
    }

    fn logits(&mut self, shape: &ModelShape, n: usize) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Host(host) => host.logits(shape, &mut self.heaps, n),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.logits(shape, &mut self.heaps, n),
        }
    }

    fn rest(&mut self) {
        match &mut self.engine {
            Engine::Host(host) => host.rest(&mut self.heaps),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.rest(&mut self.heaps),
        }
    }

    /// What it holds for sequences of so many tokens.
    fn memory(
        &self,
        lens: &[usize],
        options: &ContextShape,
        has_stepped: bool,
    ) -> Result<StageMemory, Error> {
        let Run { stage, heaps, .. } = self;
        let held = |sum: Bytes, &len: &usize| {
            let ahead = options.ahead.min(options.n_ctx.saturating_sub(len));
            let rows = if len == 0 { 0 } else { len + ahead };
            sum.checked_add(stage.kv.held_bytes(rows, stage.granule)?)
        };
        let kv = lens.iter().try_fold(Bytes::ZERO, held);
        let (kept, own) = stage.kv_transform;
        Ok(StageMemory {
            device: stage.device.clone(),
            layers: stage.kv.shape().n_layers,
            weights: stage.weights,
            loading: stage.loading,
            kv: kv.ok_or(Error::TooLarge { what: "keys and values" })?,
            kv_transform: if has_stepped { kept.saturating_add(own) } else { kept },
            activations: heaps.reserved(Which::Activations),
            scratch: heaps.reserved(Which::Scratch),
            pinned: heaps.reserved(Which::Pinned),
            context: stage.context,
        })
    }
}

impl DryContext {
    /// A new context over these stages, in the order of the model's layers, with one sequence, which is empty.
    ///
    /// # Errors
    /// [`Error::Nothing`] without a stage or with sizes of zero; [`Error::TooLarge`], [`Error::Ops`], [`Error::Kv`].
    pub fn new(shape: &ModelShape, stages: &[Stage], options: ContextShape) -> Result<DryContext, Error> {
        for (what, size) in [("the context size", options.n_ctx), ("the batch size", options.n_batch)] {
            if size == 0 {
                return Err(Error::Nothing { what });
            }
        }
        let runs = stages.iter().enumerate().map(|(index, stage)| Run::new(stage, index, stages.len()));
        let mut stages: Vec<Run> = runs.collect::<Result<_, _>>()?;
        let last = stages.last_mut().ok_or(Error::Nothing { what: "stages" })?;
        let rows = last.room_for_logits(shape.n_vocab)?;
        // Those that the last call left are kept apart, for good.
        let _ = last.room_for_logits(shape.n_vocab)?;
        Ok(DryContext { shape: *shape, options, stages, lens: vec![0], rows: (1, rows), has_stepped: false })
    }

    /// One more sequence, which is empty; answers its number, from 1.
    pub fn add_sequence(&mut self) -> usize {
        self.lens.push(0);
        self.lens.len() - 1
    }

    /// Appends so many tokens to each of these sequences, in one call: the logits behind the last of each are asked for. What goes
    /// beyond the context is left out.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Ops`].
    pub fn eval_batch(&mut self, items: &[(usize, usize)]) -> Result<(), Error> {
        self.append(items, 0)
    }

    fn append(&mut self, items: &[(usize, usize)], draws_of: usize) -> Result<(), Error> {
        let room = |&(of, n): &(usize, usize)| {
            let len = self.lens.get(of)?;
            Some((of, n.min(self.options.n_ctx.saturating_sub(*len)))).filter(|&(_, n)| n > 0)
        };
        let mut left: Vec<(usize, usize)> = items.iter().filter_map(room).collect();
        if left.is_empty() {
            return Ok(());
        }
        self.room_for_logits(left.len())?;
        while !left.is_empty() {
            let ended = self.step(&mut left, draws_of)?;
            // Of steps that are replayed there are logits already.
            if let Some(last) = self.stages.last_mut() {
                last.logits(&self.shape, ended)?;
            }
        }
        self.stages.iter_mut().for_each(Run::rest);
        Ok(())
    }

    /// Appends so many tokens to the first sequence.
    ///
    /// # Errors
    /// As [`DryContext::eval_batch`].
    pub fn eval(&mut self, n: usize) -> Result<(), Error> {
        self.eval_batch(&[(0, n)])
    }

    /// All sequences go on together, a token of each at a time, until the longest has `len`.
    ///
    /// # Errors
    /// As [`DryContext::eval_batch`].
    pub fn go_on(&mut self, len: usize) -> Result<(), Error> {
        let len = len.min(self.options.n_ctx);
        let all: Vec<(usize, usize)> = (0..self.lens.len()).map(|of| (of, 1)).collect();
        let on_host = matches!(self.stages.last(), Some(Run { engine: Engine::Host(_), .. }));
        let draws_of = if all.len() == 1 && !on_host { self.options.draws_of } else { 0 };
        let longest = |lens: &[usize]| lens.iter().copied().max().unwrap_or(0);
        while longest(&self.lens) < len {
            let (before, begun) = (self.looked_for(), self.lens.iter().all(|&len| len > 0));
            self.append(&all, draws_of)?;
            // A step for which no heap looked for more than one large block, which is back where it was, has changed nothing, and
            // so do those after it that are like it: until a sequence has more rows than the next power of two.
            let mut looked = before.iter().zip(self.looked_for());
            if begun && looked.all(|(&(all, large), now)| now == (all, large) || now == (all + 1, large + 1))
            {
                let like_it = self.lens.iter().map(|len| len.next_power_of_two() - len);
                let like_it = like_it.min().unwrap_or(0).min(len - longest(&self.lens));
                self.lens.iter_mut().for_each(|len| *len += like_it);
            }
        }
        Ok(())
    }

    /// What each stage holds.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn memory(&self) -> Result<Vec<StageMemory>, Error> {
        let memory = |run: &Run| run.memory(&self.lens, &self.options, self.has_stepped);
        self.stages.iter().map(memory).collect()
    }

    /// One step of at most a batch, of the sequences that are left and what is left of them; answers how many of them end with it.
    fn step(&mut self, left: &mut Vec<(usize, usize)>, draws_of: usize) -> Result<usize, Error> {
        let (mut parts, mut room) = (Vec::new(), self.options.n_batch);
        for (of, n) in left.iter_mut() {
            let taken = room.min(*n);
            if taken == 0 {
                break;
            }
            (room, *n) = (room - taken, *n - taken);
            self.lens[*of] += taken;
            parts.push((taken, self.lens[*of]));
        }
        for stage in &mut self.stages {
            stage.step(&self.shape, &parts, draws_of)?;
        }
        self.has_stepped = true;
        let before = left.len();
        left.retain(|&(_, n)| n > 0);
        Ok(before - left.len())
    }

    fn room_for_logits(&mut self, rows: usize) -> Result<(), Error> {
        if let Some(last) = self.stages.last_mut().filter(|_| self.rows.0 < rows) {
            let room = last.room_for_logits(rows * self.shape.n_vocab)?;
            let (_, old) = std::mem::replace(&mut self.rows, (rows, room));
            last.heaps.give(old);
        }
        Ok(())
    }

    /// As [`Heaps::looked_for`], of all stages.
    fn looked_for(&self) -> Vec<(u64, u64)> {
        self.stages.iter().flat_map(|run| run.heaps.looked_for()).collect()
    }
}
