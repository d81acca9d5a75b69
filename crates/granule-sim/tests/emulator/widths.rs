//! The instrument has no hole: the checked build sees every byte that a kernel reads or writes, whatever the code looks like.

use granule_sim::emulator_build::Mode;

use crate::library::{Access, Param, Shape, library};

/// Types of `widths.cu` and their sizes.
const WIDTHS: [(&str, u64); 12] = [
    ("u8", 1),
    ("u16", 2),
    ("u32", 4),
    ("u64", 8),
    ("f32", 4),
    ("f64", 8),
    ("wide", 16),
    ("pair", 8),
    ("loose", 16),
    ("block34", 34),
    ("block18", 18),
    ("three", 3),
];
const WAYS: [&str; 5] = ["assign", "cell", "copy", "builtin", "bytes"];

/// 64 bytes at a multiple of 16.
#[repr(align(16))]
struct Aligned([u8; 64]);

/// Runs on two pieces of 64 bytes; answers which bytes the hook saw read and written, as offsets of `from` and `to`.
fn seen(name: &str, more: &[Param]) -> (Vec<u64>, Vec<u64>) {
    let from = Aligned(std::array::from_fn(|i| i as u8 + 1));
    let mut to = Aligned([0; 64]);
    let (source, target) = (from.0.as_ptr() as u64, to.0.as_mut_ptr() as u64);
    let (mut read, mut written) = (Vec::new(), Vec::new());
    let reads = name != "set_constant" && name != "set_loop";
    let mut params = if reads { vec![Param::from(source)] } else { vec![] };
    params.push(Param::from(target));
    params.extend(more);
    library(Mode::Checked)
        .run_watched(name, Shape::new(1, 1), &params, |Access { address, size, write, atomic, at }| {
            assert!(!atomic && at.thread == [0; 3] && at.block == [0; 3], "{name}");
            let bytes = (0..u64::from(size)).map(|i| address + i);
            if write {
                written.extend(bytes.map(|at| at - target))
            } else {
                read.extend(bytes.map(|at| at - source))
            }
            true
        })
        .unwrap();
    for bytes in [&mut read, &mut written] {
        bytes.sort_unstable();
        bytes.dedup();
    }
    if reads {
        assert!(written.iter().all(|&i| to.0[i as usize] == from.0[i as usize]), "{name}");
    } else {
        assert!(written.iter().all(|&i| to.0[i as usize] == 7), "{name}");
    }
    (read, written)
}

#[test]
fn every_width_in_every_way() {
    for (width, bytes) in WIDTHS {
        for way in WAYS {
            let name = format!("{way}_{width}");
            let all: Vec<u64> = (0..bytes).collect();
            assert_eq!(seen(&name, &[]), (all.clone(), all), "{name}");
        }
    }
}

#[test]
fn sets_and_moves() {
    let all: Vec<u64> = (0..64).collect();
    assert_eq!(seen("set_constant", &[]), (vec![], all.clone()));
    assert_eq!(seen("set_loop", &[64_u32.into()]), (vec![], all.clone()));
    assert_eq!(seen("move_loop", &[16_u32.into()]), (all.clone(), all));
}

#[test]
fn atomics_are_told_apart() {
    let from = [3_u32, 19, 5];
    let mut to = [0_u32; 16];
    let params = [(&from[..]).into(), (&mut to[..]).into(), 3_u32.into()];
    let (mut reads, mut updates) = (Vec::new(), 0);
    library(Mode::Checked)
        .run_watched("histogram", Shape::new(1, 32), &params, |access| {
            assert_eq!(access.write, access.atomic, "{access:?}");
            assert_eq!(access.size, 4);
            if access.write {
                updates += 1;
            } else {
                reads.push((access.address - from.as_ptr() as u64, access.at.thread[0]));
            }
            true
        })
        .unwrap();
    assert_eq!((reads, updates), (vec![(0, 0), (4, 1), (8, 2)], 16));
}

#[test]
fn a_refused_access_does_not_happen() {
    for seed in 0..20 {
        let mut to = [0_u32; 65];
        let end = to[64..].as_ptr() as u64;
        let params = [(&mut to[..]).into(), 64_u64.into()];
        let shape = Shape::new(1, 32).seed(seed);
        let failure = library(Mode::Checked)
            .run_watched("write_at", shape, &params, |access| access.address < end)
            .unwrap_err();
        assert_eq!(failure.code, 5);
        let expected = format!(
            "kernel write_at, thread (3,0,0) of block (0,0,0): write of 4 bytes at 0x{end:x} refused"
        );
        assert!(failure.message.starts_with(&expected), "{}", failure.message);
        assert!(failure.message.contains("planted.cu:"), "{}", failure.message);
        assert_eq!(to[64], 0);
    }
}
