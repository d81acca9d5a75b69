//! Every driver call of a scripted run fails once, and from every call on all of them fail.

use granule_device::{Bytes, FaultPlan, LiveCounts};
use granule_kv::{Error, KvMemory, Sequence};

use crate::support::{Model, Open, append, assert_holds, assert_reported, bank, cache, exact};

type Both = (Vec<Sequence>, Vec<Model>);
type Step = fn(&mut Both) -> Result<(), Error>;

fn add(both: &mut Both, which: usize, count: u32) -> Result<(), Error> {
    let start = both.1[which].len() as u32 * 3 + which as u32;
    let ids: Vec<u32> = (start..start + count).collect();
    let (sequence, model) = (&mut both.0[which], &mut both.1[which]);
    // Bytes go in by device copies, which can be struck too: what counts here is the room.
    sequence.prepare(ids.len())?;
    append(sequence, model, &ids)
}

fn fork(both: &mut Both, which: usize) -> Result<(), Error> {
    let fork = both.0[which].fork()?;
    both.0.push(fork);
    both.1.push(both.1[which].clone());
    Ok(())
}

const STEPS: [Step; 13] = [
    |both| add(both, 0, 20),
    |both| fork(both, 0),
    |both| add(both, 1, 40),
    |both| add(both, 0, 1),
    |both| fork(both, 1),
    |both| {
        both.0[2].truncate(5)?;
        both.1[2].keep(0..5);
        Ok(())
    },
    |both| both.0[2].trim().map(|_| ()),
    |both| add(both, 2, 2),
    |both| {
        both.0[1].remove(3..30)?;
        both.1[1].remove(3..30);
        Ok(())
    },
    |both| both.0[1].trim().map(|_| ()),
    |both| add(both, 1, 3),
    |both| {
        let copy = both.0[1].copy(2..20)?;
        both.0.push(copy);
        let mut model = both.1[1].clone();
        model.keep(2..20);
        both.1.push(model);
        Ok(())
    },
    |both| add(both, 3, 9),
];

/// A script with growth, forks, private copies, cutting and trimming, in each step of which the k-th call fails, for every k. A
/// step that is struck reports an error and has changed nothing, or it was struck where memory is given back, which stays for
/// a trim; then the step is done again.
pub(crate) fn every_failing_call_changes_nothing(open: Open<'_>) {
    for (layers_per_row, cached, sinks) in [(1, 0, 0), (2, 4, 4), (3, 0, 0)] {
        let mut struck = 0;
        for k in 1.. {
            let bank = bank(open, 60, cached);
            let device = bank.device().clone();
            let cache = cache(&bank, layers_per_row, sinks, exact());
            let mut both: Both = (vec![cache.sequence(100).unwrap()], vec![Model::default()]);
            let mut fired = false;
            for (index, step) in STEPS.into_iter().enumerate() {
                let before: Vec<KvMemory> = both.0.iter().map(Sequence::memory).collect();
                let (total, lens) = (cache.memory(), both.1.iter().map(Model::len).collect::<Vec<_>>());
                let guard = device.inject_fault(FaultPlan::nth(k));
                let done = step(&mut both);
                let struck_here = guard.fired();
                drop(guard);
                fired |= struck_here;
                if let Err(error) = done {
                    assert!(struck_here, "{error}");
                    struck += 1;
                    assert_eq!(both.1.iter().map(Model::len).collect::<Vec<_>>(), lens);
                    let after: Vec<KvMemory> = both.0.iter().map(Sequence::memory).collect();
                    assert_eq!(after, before, "step {index}, k = {k}: {error}");
                    assert_eq!(cache.memory(), total);
                    step(&mut both).unwrap();
                }
                both.0.iter().zip(&both.1).for_each(|(sequence, model)| assert_holds(sequence, model));
                assert_reported(&cache, both.0.iter());
            }
            drop(both);
            assert_eq!(bank.stats().held, Bytes::ZERO);
            drop(cache);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            if !fired {
                break;
            }
        }
        assert!(struck > 20, "{struck} steps were struck");
    }
}

/// From the k-th call on all fail, undoing included: tokens and lengths are as they were, and once calls work again
/// everything goes on, and in the end nothing is left.
pub(crate) fn nothing_is_lost_where_undoing_fails_too(open: Open<'_>) {
    for (layers_per_row, ahead) in [(1, 0), (3, 0), (3, 12)] {
        for k in 1.. {
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
