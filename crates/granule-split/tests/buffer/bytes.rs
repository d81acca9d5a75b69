//! Where bytes lie, and that they come back.

use std::ops::Range;

use granule_bank::Owner;
use granule_device::{Bytes, Device};
use granule_quant::DType;
use granule_split::plan::divide;
use granule_split::{
    BufferPlan, Error, Lanes, LanesOptions, Padding, Shares, Split, SplitBuffer, TensorSplit,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{Open, banks, pattern, read, twin, write};

#[derive(Clone, Debug)]
struct Case {
    dtype: DType,
    rows: usize,
    blocks: usize,
    split: Split,
    weights: Vec<u64>,
    /// Rows that ranks have in common with the one before.
    lap: usize,
    align: usize,
    multiple: usize,
    /// Bytes of a ring's piece.
    piece: u64,
    seed: u64,
    /// Some rows, by thousandths.
    some: (usize, usize),
}

fn cases() -> impl Strategy<Value = Case> {
    let split = prop::sample::select(vec![Split::Column, Split::Row, Split::Replicated]);
    let align = prop::sample::select(vec![1usize, 4, 7, 16, 64, 256]);
    let shape = (prop::sample::select(DType::ALL.to_vec()), 1usize..40, 1usize..24, split, 0usize..3);
    let rest =
        (vec(1u64..9, 1..=16), align, 1usize..20, 1u64..3000, any::<u64>(), (0usize..=1000, 0usize..=1000));
    (shape, rest).prop_map(
        |((dtype, rows, blocks, split, lap), (weights, align, multiple, piece, seed, some))| Case {
            dtype,
            rows,
            blocks,
            split,
            weights,
            lap,
            align,
            multiple,
            piece,
            seed,
            some,
        },
    )
}

/// The parts of the ranks, if there are enough rows or blocks for all.
fn parts(case: &Case) -> Option<Vec<Range<usize>>> {
    let shares = Shares::ratio(&case.weights).unwrap();
    let block = case.dtype.block_len();
    match case.split {
        Split::Column => {
            let mut parts = divide("rows", case.rows, 1, &shares).ok()?;
            for rank in 1..parts.len() {
                parts[rank].start = parts[rank].start.saturating_sub(case.lap).max(parts[rank - 1].start);
            }
            Some(parts)
        }
        Split::Row => divide("columns", case.blocks * block, block, &shares).ok(),
        Split::Replicated => Some(vec![0..case.rows; case.weights.len()]),
    }
}

/// Scatters, gathers, whole and in part, and compares every byte on every device with the twin.
fn check(open: Open<'_>, case: &Case) {
    let Some(parts) = parts(case) else { return };
    let Case { dtype, rows, blocks, split, align, multiple, .. } = *case;
    let tensor = TensorSplit::new(dtype, rows, blocks * dtype.block_len(), split, parts.clone()).unwrap();
    let plan = BufferPlan::new(tensor, Padding { row_align: align, rows_multiple: multiple }).unwrap();
    let banks = banks(open, parts.len());
    let mut lanes = Lanes::new(&banks, LanesOptions::default().piece(Bytes::new(case.piece))).unwrap();
    for (rank, bank) in banks.iter().enumerate() {
        // The granules that it is about to have held something else.
        let len = plan.held(rank, bank.granule()).unwrap();
        let mut other = bank.growable(&Owner::new("other"), len).unwrap();
        other.grow_to(len).unwrap();
        write(
            bank.device(),
            &vec![0xdd; plan.bytes(rank).unwrap()],
            other.slice_mut(..plan.bytes(rank).unwrap()).unwrap(),
        );
    }
    let mut buffer = SplitBuffer::new(&mut lanes, &Owner::new("weights"), plan.clone()).unwrap();
    let shard = |buffer: &SplitBuffer, rank: usize| {
        let device: &Device = banks[rank].device();
        read(device, buffer.shard(rank).unwrap())
    };
    for (rank, bank) in banks.iter().enumerate() {
        assert_eq!(bank.stats().held, plan.held(rank, bank.granule()).unwrap());
        assert_eq!(shard(&buffer, rank), vec![0; plan.bytes(rank).unwrap()]);
    }
    let holds = |buffer: &SplitBuffer, whole: &[u8]| {
        for (rank, part) in parts.iter().enumerate() {
            assert_eq!(shard(buffer, rank), twin(&plan, rank, part, align, multiple, whole), "rank {rank}");
        }
    };
    let row = blocks * dtype.block_bytes();
    let mut whole = pattern(rows * row, case.seed);
    buffer.scatter(&mut lanes, &whole).unwrap();
    holds(&buffer, &whole);
    // What a rank is not the first to have is not asked of it.
    for (rank, bank) in banks.iter().enumerate() {
        let (own, first) =
            (plan.tensor().shard(rank).unwrap().rows, plan.tensor().first_held(rank).unwrap().rows);
        let later = (first.start - own.start) * plan.stride(rank).unwrap();
        let shard = buffer.shard_mut(rank).unwrap().subslice(..later).unwrap();
        write(bank.device(), &vec![0; later], shard);
    }
    let mut back = vec![0; whole.len()];
    buffer.gather(&mut lanes, &mut back).unwrap();
    assert_eq!(back, whole);
    buffer.scatter(&mut lanes, &whole).unwrap();

    let (a, b) = (case.some.0 * rows / 1000, case.some.1 * rows / 1000);
    let some = a.min(b)..a.max(b);
    let bytes = some.start * row..some.end * row;
    let mut back = vec![0; bytes.len()];
    buffer.gather_rows(&mut lanes, some.clone(), &mut back).unwrap();
    assert_eq!(back, &whole[bytes.clone()]);
    whole[bytes.clone()].copy_from_slice(&pattern(bytes.len(), case.seed ^ 0x5555));
    buffer.scatter_rows(&mut lanes, some, &whole[bytes]).unwrap();
    holds(&buffer, &whole);

    drop(buffer);
    assert!(banks.iter().all(|bank| bank.stats().held.is_zero()));
}

pub(crate) fn what_is_scattered_is_gathered(open: Open<'_>) {
    let is_host = open(0).kind() == granule_device::DeviceKind::Host;
    let config =
        Config { cases: if is_host { 200 } else { 12 }, failure_persistence: None, ..Config::default() };
    TestRunner::new(config)
        .run(&cases(), |case| {
            check(open, &case);
            Ok(())
        })
        .unwrap();
    // Rows larger than a piece, pieces of many rows, and one byte at a time.
    for (split, piece) in [(Split::Row, 4096), (Split::Column, 100), (Split::Replicated, 1)] {
        let (dtype, weights, some) = (DType::Q4_K, vec![2, 1, 1], (250, 800));
        let rows = if piece == 1 { 2 } else { 9 };
        check(
            open,
            &Case {
                dtype,
                rows,
                blocks: 8,
                split,
                weights,
                lap: 1,
                align: 256,
                multiple: 4,
                piece,
                seed: 3,
                some,
            },
        );
    }
}

pub(crate) fn one_pair_of_lanes_serves_many_buffers(open: Open<'_>) {
    let banks = banks(open, 2);
    let mut lanes = Lanes::new(&banks, LanesOptions::default().piece(Bytes::new(500))).unwrap();
    let plan = |rows: usize| {
        let tensor =
            TensorSplit::new(DType::F16, rows, 64, Split::Column, vec![0..rows / 2, rows / 2..rows]).unwrap();
        BufferPlan::new(tensor, Padding::default()).unwrap()
    };
    let owner = Owner::new("weights");
    let mut buffers: Vec<_> =
        (2..10).map(|rows| SplitBuffer::new(&mut lanes, &owner, plan(rows)).unwrap()).collect();
    for (i, buffer) in buffers.iter_mut().enumerate() {
        buffer.scatter(&mut lanes, &pattern((i + 2) * 128, i as u64)).unwrap();
    }
    for (i, buffer) in buffers.iter().enumerate() {
        let mut back = vec![0; (i + 2) * 128];
        buffer.gather(&mut lanes, &mut back).unwrap();
        assert_eq!(back, pattern((i + 2) * 128, i as u64));
    }
}

pub(crate) fn what_does_not_fit_is_refused(open: Open<'_>) {
    let banks = banks(open, 2);
    let mut lanes = Lanes::new(&banks, LanesOptions::default()).unwrap();
    let tensor = |parts: Vec<Range<usize>>| {
        let tensor = TensorSplit::new(DType::Q8_0, 8, 32, Split::Column, parts).unwrap();
        BufferPlan::new(tensor, Padding::default()).unwrap()
    };
    let owner = Owner::new("weights");
    let three = SplitBuffer::new(&mut lanes, &owner, tensor(vec![0..2, 2..4, 4..8]));
    assert!(matches!(three, Err(Error::Size { what: "lanes", found: 2, expected: 3 })));
    let mut buffer = SplitBuffer::new(&mut lanes, &owner, tensor(vec![0..3, 3..8])).unwrap();
    assert!(matches!(buffer.scatter(&mut lanes, &[0; 8 * 34 - 1]), Err(Error::Size { expected: 272, .. })));
    assert!(matches!(buffer.gather(&mut lanes, &mut [0; 8 * 34 + 1]), Err(Error::Size { .. })));
    assert!(matches!(buffer.scatter_rows(&mut lanes, 7..9, &[0; 68]), Err(Error::Size { .. })));
    assert!(matches!(buffer.shard(2), Err(Error::NoRank { rank: 2, ranks: 2 })));
    assert!(matches!(buffer.shard_mut(2), Err(Error::NoRank { .. })));
    let mut one = Lanes::new(&banks[..1], LanesOptions::default()).unwrap();
    assert!(matches!(buffer.scatter(&mut one, &[0; 272]), Err(Error::Size { what: "lanes", .. })));
    let swapped = [banks[1].clone(), banks[0].clone()];
    let mut swapped = Lanes::new(&swapped, LanesOptions::default()).unwrap();
    let other = buffer.scatter(&mut swapped, &[0; 272]);
    if !banks[0].device().is_same(banks[1].device()) {
        assert!(matches!(other, Err(Error::Device(granule_device::Error::OtherDevice { what: "a lane" }))));
    }
    buffer.scatter_rows(&mut lanes, 4..4, &[]).unwrap();
    assert!(matches!(Lanes::new(&[], LanesOptions::default()), Err(Error::Ranks { ranks: 0, .. })));
    let nothing = Lanes::new(&banks, LanesOptions::default().piece(Bytes::ZERO));
    assert!(matches!(nothing, Err(Error::Device(granule_device::Error::ZeroSize { .. }))));
}
