//! What fails on one device leaves nothing on any.

use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{Bytes, FaultPlan, LiveCounts};
use granule_quant::DType;
use granule_split::{BufferPlan, Error, Lanes, LanesOptions, Padding, Split, SplitBuffer, TensorSplit};

use crate::support::{Open, banks, pattern};

/// 30 rows of 2 KiB over three ranks, in memory of some granules each on the host.
fn plan() -> BufferPlan {
    let tensor = TensorSplit::new(DType::F32, 30, 512, Split::Column, vec![0..10, 10..22, 22..30]).unwrap();
    BufferPlan::new(tensor, Padding { row_align: 2304, rows_multiple: 8 }).unwrap()
}

/// All that a buffer does. What it was given comes back.
fn script(banks: &[Bank]) -> Result<(), Error> {
    let mut lanes = Lanes::new(banks, LanesOptions::default().piece(Bytes::new(5000)))?;
    let made = SplitBuffer::new(&mut lanes, &Owner::new("weights"), plan());
    let held = |bank: &Bank| bank.stats().held.get();
    let mut buffer = match made {
        Ok(buffer) => buffer,
        Err(error) => {
            assert_eq!(banks.iter().map(held).sum::<u64>(), 0, "held after {error}");
            return Err(error);
        }
    };
    let whole = pattern(30 * 2048, 9);
    buffer.scatter(&mut lanes, &whole)?;
    let mut back = vec![0; whole.len()];
    buffer.gather(&mut lanes, &mut back)?;
    assert_eq!(back, whole);
    Ok(())
}

fn walk(open: Open<'_>, fault: fn(u64) -> FaultPlan) {
    let banks = banks(open, 3);
    script(&banks).unwrap();
    for failing in 0..banks.len() {
        let mut failed = 0;
        for k in 1.. {
            let guard = banks[failing].device().inject_fault(fault(k));
            let done = script(&banks);
            let fired = guard.fired();
            drop(guard);
            if let Err(error) = done {
                assert!(fired, "rank {failing}, k = {k}: {error}");
                failed += 1;
            }
            for bank in &banks {
                assert_eq!(bank.stats().held, Bytes::ZERO, "rank {failing}, k = {k}");
                bank.trim();
                assert_eq!(bank.device().live(), LiveCounts::default(), "rank {failing}, k = {k}");
            }
            if !fired {
                break;
            }
        }
        script(&banks).unwrap();
        assert!(failed > 5, "{failed} calls of rank {failing} were failed");
    }
}

pub(crate) fn every_failing_call_leaves_nothing(open: Open<'_>) {
    walk(open, FaultPlan::nth);
}

pub(crate) fn every_lasting_failure_leaves_nothing(open: Open<'_>) {
    walk(open, FaultPlan::from_nth);
}

pub(crate) fn a_full_device_leaves_nothing_on_the_others(open: Open<'_>) {
    for short in 0..3 {
        let bank = |rank: usize| {
            let device = open(rank);
            let granule = device.granularity();
            let needed = plan().held(rank, granule).unwrap();
            // Somebody else has the last granule that it needs.
            let bank = Bank::new(device, BankOptions::new().budget(needed)).unwrap();
            let other = (rank == short).then(|| bank.charge(&Owner::new("other"), Bytes::new(1)).unwrap());
            (bank, other)
        };
        let (banks, _others): (Vec<_>, Vec<_>) = (0..3).map(bank).unzip();
        let mut lanes = Lanes::new(&banks, LanesOptions::default()).unwrap();
        let refused = SplitBuffer::new(&mut lanes, &Owner::new("weights"), plan());
        let Err(Error::Bank(granule_bank::Error::OutOfMemory { device, largest_owner, .. })) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(device, banks[short].device().name());
        assert_eq!(largest_owner.unwrap().0, Owner::new("other"));
        let held: Vec<u64> = banks.iter().map(|bank| bank.stats().held.get()).collect();
        assert_eq!(held.iter().sum::<u64>(), held[short]);
        assert_eq!(held[short], 1);
    }
}
