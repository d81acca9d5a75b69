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
    /// Of the stages, the first that has logits: the last one, or the first rank there is of the last run.
    tail: usize,
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
    /// What its steps are sized by: the model's shape, or its part's.
    shape: ModelShape,
    heaps: Heaps,
    engine: Engine,
    /// Of a rank's part, what its own logits are in: how many rows there is room for, and that room.
    own_logits: Option<(usize, Leased)>,
}

#[derive(Debug)]
enum Engine {
    Host(HostRun),
    #[cfg(feature = "cuda")]
    Cuda(CudaRun),
}

impl Run {
    fn new(shape: &ModelShape, stage: &Stage, is_first: bool, is_last: bool) -> Result<Run, Error> {
        // The host's steps are the same wherever the stage stands.
        let _ = (is_first, is_last);
        let heaps = Heaps::new(stage.granule);
        let (engine, heaps) = match stage.compute {
            Compute::Host { threads, threads_batch } => {
                let (_, row) = stage.kv.layer(0)?;
                (Engine::Host(HostRun::new(row, [threads, threads_batch])), heaps)
            }
            #[cfg(feature = "cuda")]
            Compute::Cuda(facts) => {
                let mut heaps = heaps;
                // Ranks are given what tokens stand for.
                let ends = Ends { looks_up: is_first && stage.part.is_none(), is_last };
                let scratch = stage.engine_scratch.to_usize().unwrap_or(usize::MAX);
                let mut run = CudaRun::new(facts, ends, &stage.kv, &stage.products, scratch, &mut heaps)?;
                run.is_part = stage.part.is_some();
                run.sums = stage.part.as_ref().and_then(|part| part.sums.clone());
                (Engine::Cuda(run), heaps)
            }
        };
        let shape = stage.part.as_ref().map_or(*shape, |part| part.shape);
        Ok(Run { stage: stage.clone(), shape, heaps, engine, own_logits: None })
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
    fn step(&mut self, parts: &[(usize, usize)], draws_of: usize) -> Result<(), Error> {
        match &mut self.engine {
            Engine::Host(host) => host.step(&self.shape, &mut self.heaps, parts, draws_of),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.step(&self.shape, &mut self.heaps, parts, draws_of),
        }
    }

    /// The logits of `n` tokens of the last step; a rank's go to memory of its own, from where all ranks' are put together.
    fn logits(&mut self, n: usize) -> Result<(), Error> {
        if self.stage.part.is_some() && self.own_logits.as_ref().is_none_or(|(rows, _)| *rows < n) {
            let room = self.room_for_logits(n * self.shape.n_vocab)?;
            if let Some((_, old)) = self.own_logits.replace((n, room)) {
                self.heaps.give(old);
            }
        }
        match &mut self.engine {
            Engine::Host(host) => host.logits(&self.shape, &mut self.heaps, n),
            #[cfg(feature = "cuda")]
            Engine::Cuda(cuda) => cuda.logits(&self.shape, &mut self.heaps, n),
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
            rank: stage.part.as_ref().map(|part| part.rank),
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
        let run_of = |stage: &Stage| stage.part.as_ref().map(|part| part.run);
        let last = stages.last().ok_or(Error::Nothing { what: "stages" })?;
        let is_tail = |stage: &&Stage| run_of(stage).is_some() && run_of(stage) == run_of(last);
        let tail = stages.len() - stages.iter().rev().take_while(is_tail).count().max(1);
        let is_first = |stage: &Stage| stage.part.is_some() && run_of(stage) == run_of(&stages[0]);
        let runs = stages
            .iter()
            .enumerate()
            .map(|(index, stage)| Run::new(shape, stage, index == 0 || is_first(stage), index >= tail));
        let mut stages: Vec<Run> = runs.collect::<Result<_, _>>()?;
        let rows = stages[tail].room_for_logits(shape.n_vocab)?;
        // Those that the last call left are kept apart, for good.
        let _ = stages[tail].room_for_logits(shape.n_vocab)?;
        let (lens, has_stepped) = (vec![0], false);
        Ok(DryContext { shape: *shape, options, stages, tail, lens, rows: (1, rows), has_stepped })
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
            for last in &mut self.stages[self.tail..] {
                last.logits(ended)?;
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
        // The host draws for itself, and ranks have a part of the logits each.
        let last = self.stages.last();
        let draws =
            last.is_some_and(|run| run.stage.part.is_none() && !matches!(run.engine, Engine::Host(_)));
        let draws_of = if all.len() == 1 && draws { self.options.draws_of } else { 0 };
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
            stage.step(&parts, draws_of)?;
        }
        self.has_stepped = true;
        let before = left.len();
        left.retain(|&(_, n)| n > 0);
        Ok(before - left.len())
    }

    fn room_for_logits(&mut self, rows: usize) -> Result<(), Error> {
        if self.rows.0 < rows {
            let room = self.stages[self.tail].room_for_logits(rows * self.shape.n_vocab)?;
            let (_, old) = std::mem::replace(&mut self.rows, (rows, room));
            self.stages[self.tail].heaps.give(old);
        }
        Ok(())
    }

    /// As [`Heaps::looked_for`], of all stages.
    fn looked_for(&self) -> Vec<(u64, u64)> {
        self.stages.iter().flat_map(|run| run.heaps.looked_for()).collect()
    }
}
