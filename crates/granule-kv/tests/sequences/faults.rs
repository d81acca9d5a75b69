//! Every driver call of a scripted run fails once, and from every call on all of them fail.

use std::ops::Range;

use granule_device::{Bytes, Device, FaultPlan, LiveCounts};
use granule_kv::{Error, KvMemory, Sequence};

use crate::support::{Model, Open, append, assert_holds, assert_reported, bank, cache, exact, is_host};

/// What a script works on, and which call of each step is to fail.
struct Script {
    device: Device,
    sequences: Vec<Sequence>,
    models: Vec<Model>,
    k: Option<u64>,
    fired: bool,
}

type Step = fn(&mut Script) -> Result<(), Error>;

impl Script {
    /// The part of a step that may be struck. What a test writes and looks at is none, though it makes calls on a GPU.
    fn strike<T>(&mut self, call: impl FnOnce(&mut [Sequence]) -> Result<T, Error>) -> Result<T, Error> {
        let guard = self.k.map(|k| self.device.inject_fault(FaultPlan::nth(k)));
        let done = call(&mut self.sequences);
        self.fired = guard.is_some_and(|guard| guard.fired());
        done
    }

    fn add(&mut self, which: usize, count: u32) -> Result<(), Error> {
        let start = self.models[which].len() as u32 * 3 + which as u32;
        let ids: Vec<u32> = (start..start + count).collect();
        self.strike(|sequences| sequences[which].prepare(ids.len()))?;
        append(&mut self.sequences[which], &mut self.models[which], &ids)
    }

    fn copy(&mut self, which: usize, tokens: Range<usize>) -> Result<(), Error> {
        let copy = self.strike(|sequences| sequences[which].copy(tokens.clone()))?;
        self.sequences.push(copy);
        let mut model = self.models[which].clone();
        model.keep(tokens);
        self.models.push(model);
        Ok(())
    }

    fn remove(&mut self, which: usize, tokens: Range<usize>) -> Result<(), Error> {
        self.strike(|sequences| sequences[which].remove(tokens.clone()))?;
        self.models[which].remove(tokens);
        Ok(())
    }

    fn trim(&mut self, which: usize) -> Result<(), Error> {
        self.strike(|sequences| sequences[which].trim()).map(|_| ())
    }

    fn memory(&self) -> (Vec<KvMemory>, Vec<usize>) {
        let lens = self.models.iter().map(Model::len).collect();
        (self.sequences.iter().map(Sequence::memory).collect(), lens)
    }
}

const STEPS: [Step; 13] = [
    |script| script.add(0, 20),
    |script| script.copy(0, 0..20),
    |script| script.add(1, 40),
    |script| script.add(0, 1),
    |script| script.copy(1, 0..60),
    |script| script.remove(2, 5..60),
    |script| script.trim(2),
    |script| script.add(2, 2),
    |script| script.remove(1, 3..30),
    |script| script.trim(1),
    |script| script.add(1, 3),
    |script| script.copy(1, 2..20),
    |script| script.add(3, 9),
];

/// A script with growth, forks, private copies, cutting and trimming, in each step of which the k-th call fails, for every k. A
/// step that is struck reports an error and has changed nothing, or it was struck where memory is given back, which stays for
/// a trim; then the step is done again.
pub(crate) fn every_failing_call_changes_nothing(open: Open<'_>) {
    let all = is_host(&open(1));
    for (layers_per_row, cached, sinks) in [(2, 4, 4), (1, 0, 0), (3, 0, 0)] {
        let mut struck = 0;
        for k in 1.. {
            let bank = bank(open, 60, cached);
            let device = bank.device().clone();
            let cache = cache(&bank, layers_per_row, sinks, exact());
            let (sequences, models) = (vec![cache.sequence(100).unwrap()], vec![Model::default()]);
            let mut script = Script { device: device.clone(), sequences, models, k: Some(k), fired: false };
            let mut fired = false;
            for (index, step) in STEPS.into_iter().enumerate() {
                let (before, total) = (script.memory(), cache.memory());
                let done = step(&mut script);
                fired |= script.fired;
                if let Err(error) = &done {
                    assert!(script.fired, "{error}");
                    struck += 1;
                    assert_eq!(script.memory(), before, "step {index}, k = {k}: {error}");
                    assert_eq!(cache.memory(), total);
                    script.k = None;
                    step(&mut script).unwrap();
                    script.k = Some(k);
                }
                // A GPU is slow to be looked at token by token.
                if all || done.is_err() || index == STEPS.len() - 1 {
                    let both = script.sequences.iter().zip(&script.models);
                    both.for_each(|(sequence, model)| assert_holds(sequence, model));
                }
                assert_reported(&cache, script.sequences.iter());
            }
            drop(script);
            assert_eq!(bank.stats().held, Bytes::ZERO);
            drop(cache);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            if !fired {
                break;
            }
        }
        assert!(struck > 20, "{struck} steps were struck");
        if !all {
            return;
        }
    }
}

/// From the k-th call on all fail, undoing included: tokens and lengths are as they were, and once calls work again
/// everything goes on, and in the end nothing is left.
pub(crate) fn nothing_is_lost_where_undoing_fails_too(open: Open<'_>) {
    let stride = if is_host(&open(1)) { 1 } else { 5 };
    for (layers_per_row, ahead) in [(1, 0), (3, 0), (3, 12)] {
        for k in (1..).step_by(stride) {
            let bank = bank(open, 60, 2);
            let device = bank.device().clone();
            let options = exact().ahead(ahead);
            let cache = cache(&bank, layers_per_row, 4, options);
            let mut parent = cache.sequence(100).unwrap();
            let mut model = Model::default();
            append(&mut parent, &mut model, &(0..30).collect::<Vec<_>>()).unwrap();
            let mut fork = parent.fork().unwrap();
            let mut other = model.clone();
            let guard = device.inject_fault(FaultPlan::from_nth(k));
            let second = fork.fork();
            let prepared = fork.prepare(40).map(|_| ());
            let removed = parent.remove(9..20).and_then(|()| parent.trim());
            let fired = guard.fired();
            drop(guard);
            assert!(second.is_ok() && prepared.is_ok() && removed.is_ok() || fired);
            model.remove(9..20);
            assert_holds(&parent, &model);
            assert_holds(&fork, &other);
            let mut second = second.ok().map(|second| (second, other.clone()));
            append(&mut parent, &mut model, &[5; 50]).unwrap();
            append(&mut fork, &mut other, &[6; 50]).unwrap();
            if let Some((second, model)) = &mut second {
                append(second, model, &[8]).unwrap();
                assert_holds(second, model);
            }
            assert_holds(&parent, &model);
            assert_holds(&fork, &other);
            drop((parent, fork, second));
            drop(cache);
            assert_eq!(bank.stats().held, Bytes::ZERO);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            // With a mapper, how many calls there are depends on how far it gets.
            if !fired {
                break;
            }
        }
    }
}

/// Where giving back behind device work fails, no row counts as ready that has no memory.
pub(crate) fn a_trim_that_fails_leaves_no_row_ready_without_memory(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 1, 0, exact());
    let stream = bank.device().stream().unwrap();
    let mut struck = 0;
    for k in 1..12 {
        let mut sequence = cache.sequence(100).unwrap();
        let mut model = Model::default();
        append(&mut sequence, &mut model, &(0..60).collect::<Vec<_>>()).unwrap();
        sequence.busy_until(&stream.record().unwrap());
        stream.synchronize().unwrap();
        sequence.truncate(2).unwrap();
        model.keep(0..2);
        let guard = bank.device().inject_fault(FaultPlan::nth(k));
        let trimmed = sequence.trim();
        drop(guard);
        struck += usize::from(trimmed.is_err());
        append(&mut sequence, &mut model, &[7; 40]).unwrap();
        assert_holds(&sequence, &model);
    }
    assert!(struck > 0);
}
