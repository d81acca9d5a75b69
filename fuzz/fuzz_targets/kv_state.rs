//! Arbitrary bytes as a state file: as they are, with a header and sums that fit them, and as changes to a file that was saved.
//! Never a panic, never an allocation that the file's own length does not pay for; what is restored and saved again is the file;
//! and a file that differs from what was saved in a bit is refused, by whatever name.

#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions, LiveCounts};
use granule_kv::state::{SaveSequence, StateFile, save};
use granule_kv::{Identity, KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use libfuzzer_sys::fuzz_target;

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| std::env::temp_dir().join(format!("granule-fuzz-state-{}", std::process::id())));

/// A file of two sequences, one with a hole.
static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let shape = KvShape { n_layers: 2, n_kv_heads: 1, head_dim: 32 };
    let layout = KvLayout::new(shape, KvType::Q4_0, KvType::Q8_0, Some(1), 4).unwrap();
    let bank = bank();
    let cache = cache(&bank, layout);
    let sequences = [12, 5].map(|n: usize| {
        let mut sequence = cache.sequence(20).unwrap();
        sequence.prepare(n).unwrap();
        for layer in 0..2 {
            let mut view = sequence.rows_mut(layer).unwrap();
            let mut rows = view.rows();
            rows.as_host_mut().unwrap().iter_mut().zip((0..=255u8).cycle()).for_each(|(to, byte)| *to = byte);
        }
        sequence.commit(n).unwrap();
        sequence.remove(2..4).unwrap();
        sequence
    });
    save_all(&sequences, &Identity { model: b"m".to_vec(), ..Identity::default() }, &[vec![7; 10], vec![9; 3]])
});

fn bank() -> Bank {
    let granule = Bytes::kib(4);
    let options = HostOptions::new().granule(granule).capacity(granule.saturating_mul(64));
    Bank::new(Device::host_with(options).unwrap(), BankOptions::new()).unwrap()
}

fn cache(bank: &Bank, layout: KvLayout) -> KvCache {
    KvCache::new(bank, layout, KvOptions::new().ahead(0).parked(Bytes::ZERO)).unwrap()
}

fn save_all(sequences: &[Sequence], identity: &Identity, tokens: &[Vec<u32>]) -> Vec<u8> {
    let all = sequences.iter().zip(tokens);
    let all: Vec<_> = all.map(|(sequence, tokens)| SaveSequence { sequence, further: &[], heads: &[], tokens, extra: b"x" }).collect();
    let path = PATH.with_extension("again");
    save(&path, identity, &all).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    bytes
}

/// Whether it was taken; what is taken is what is saved again.
fn read(bytes: &[u8]) -> bool {
    std::fs::write(&*PATH, bytes).unwrap();
    let Ok(file) = StateFile::open(&*PATH) else { return false };
    let (k, v) = file.types();
    let count = file.sequences();
    let (mut tokens, mut plain) = (Vec::new(), true);
    for which in 0..count {
        tokens.push(file.tokens(which).unwrap().to_vec());
        plain &= file.extra(which).unwrap() == b"x";
    }
    if file.shape().n_layers > 64 || count > 8 {
        return true;
    }
    for (layers_per_row, sinks) in [(1, 0), (1, 4), (file.shape().n_layers, 0), (file.shape().n_layers, 4)] {
        let layout = KvLayout::new(file.shape(), k, v, Some(layers_per_row), sinks).unwrap();
        if file.check(file.identity(), &layout).is_err() {
            continue;
        }
        let bank = bank();
        let cache = cache(&bank, layout);
        let restored = tokens.iter().enumerate();
        let restored = restored.map(|(which, tokens)| file.restore(which, &cache, tokens.len(), file.identity()));
        if let Ok(restored) = restored.collect::<Result<Vec<_>, _>>()
            && plain
        {
            assert!(save_all(&restored, file.identity(), &tokens) == bytes, "another file");
        }
        let device = bank.device().clone();
        drop((cache, bank));
        assert_eq!(device.live(), LiveCounts::default());
    }
    true
}

/// A header and sums for contents and rows.
fn forge(contents: &[u8], data: &[u8]) -> Vec<u8> {
    let sums: Vec<u8> = data.chunks(64 << 10).flat_map(|chunk| crc32fast::hash(chunk).to_le_bytes()).collect();
    let len = (48 + contents.len() + data.len() + sums.len()) as u64;
    let mut file = b"\x89GRANKV\n\x01\0\0\0".to_vec();
    file.extend(crc32fast::hash(contents).to_le_bytes());
    [len, contents.len() as u64, data.len() as u64].iter().for_each(|number| file.extend(number.to_le_bytes()));
    file.extend(crc32fast::hash(&sums).to_le_bytes());
    file.extend(crc32fast::hash(&file).to_le_bytes());
    [file, contents.to_vec(), data.to_vec(), sums].concat()
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, data)) = data.split_first() else { return };
    let contents_len = u64::from_le_bytes(GOOD[24..32].try_into().unwrap()) as usize;
    let (contents, rows) = (&GOOD[48..48 + contents_len], &GOOD[48 + contents_len..]);
    let rows = &rows[..rows.len() - 4];
    match how % 4 {
        0 => drop(read(data)),
        // Any contents, any rows.
        1 => {
            let at = data.len().min(usize::from(how) * 4);
            read(&forge(&data[..at], &data[at..]));
        }
        // Good contents with changes, the sums right.
        2 => {
            let mut contents = contents.to_vec();
            for change in data.chunks_exact(2) {
                let at = usize::from(change[0]) % contents.len();
                contents[at] = change[1];
            }
            read(&forge(&contents, rows));
        }
        // Changes that no sum knows of.
        _ => {
            let mut bad = GOOD.clone();
            for change in data.chunks_exact(3).take(3) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bad.len();
                bad[at] ^= change[2];
            }
            if data.len() % 5 == 4 {
                bad.truncate(data.iter().fold(0, |sum, &byte| sum + usize::from(byte)) % (bad.len() + 1));
            }
            assert_eq!(read(&bad), bad == *GOOD, "taken though it is not what was saved");
        }
    }
});
