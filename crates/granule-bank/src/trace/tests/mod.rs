//! Recordings against what was recorded, and against files that are not what they should be.

mod events;
mod killed;

use std::io::{self, Cursor, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use granule_device::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::Owner;
use events::event;

/// A file that can be looked at when the recorder is done with it.
#[derive(Clone, Default)]
struct File(Arc<Mutex<Vec<u8>>>);

impl File {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Write for File {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn recorded(events: &[Event]) -> Vec<u8> {
    let (tracer, file) = (Tracer::new(), File::default());
    // However long it takes, it is sent when it is full: the file is the same on every machine.
    let recorder = Recorder::aging(&tracer, file.clone(), "a test", Duration::MAX).unwrap();
    for event in events {
        tracer.emit(|| event.clone());
    }
    let written = recorder.finish().unwrap();
    assert_eq!(written.lost, 0);
    assert_eq!(written.events, events.len() as u64 + 2);
    assert_eq!(written.bytes, file.bytes().len() as u64);
    file.bytes()
}

/// What can be read, and the error that it ends with.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<Error>) {
    let reader = match Reader::new(Cursor::new(bytes)) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let (mut records, mut failed) = (Vec::new(), None);
    for record in reader {
        assert!(failed.is_none(), "something follows an error");
        match record {
            Ok(record) => records.push(record),
            Err(error) => failed = Some(error),
        }
    }
    (records, failed)
}

fn events(records: &[Record]) -> Vec<Event> {
    records.iter().map(|record| record.event.clone()).collect()
}

proptest! {
    #[test]
    fn what_is_recorded_is_read(said in vec(event(), 0..400)) {
        let (records, error) = read(&recorded(&said));
        prop_assert!(error.is_none(), "{error:?}");
        let heard = events(&records);
        let started = matches!(&heard[0], Event::Start { label, .. } if label == "a test");
        prop_assert!(started);
        prop_assert_eq!(&heard[1..=said.len()], &said);
        prop_assert_eq!(&heard[said.len() + 1..], &[Event::End]);
        prop_assert!(records.is_sorted_by_key(|record| record.ns));
    }

    #[test]
    fn a_file_that_was_cut_gives_what_is_whole(said in vec(event(), 1..60), share in 0.0..1.0) {
        let whole = recorded(&said);
        let cut = (whole.len() as f64 * share) as usize;
        let (records, error) = read(&whole[..cut]);
        // One block: it is whole or it is not.
        prop_assert!(records.is_empty());
        match error {
            Some(Error::NotATrace) => prop_assert_eq!(cut, 0),
            Some(Error::Truncated { offset }) => prop_assert_eq!(offset, if cut < HEADER { 0 } else { HEADER as u64 }),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn no_changed_bit_goes_unseen(said in vec(event(), 0..30), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let mut bytes = recorded(&said);
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        let (records, error) = read(&bytes);
        prop_assert!(records.is_empty());
        match error {
            Some(Error::NotATrace) => prop_assert!(at < 8),
            Some(Error::Version { .. }) => prop_assert!((8..10).contains(&at)),
            Some(Error::Corrupt { offset: 10, .. }) => prop_assert!((10..12).contains(&at)),
            Some(Error::Corrupt { offset, .. } | Error::Truncated { offset }) => prop_assert_eq!(offset, 12),
            other => prop_assert!(false, "{other:?}"),
        }
    }

    #[test]
    fn bytes_that_are_no_events_are_told_of(payload in vec(any::<u8>(), 0..200), tags in vec(0u8..34, 0..40)) {
        // Tags in front of small numbers make events more often than noise does.
        for payload in [payload, tags.iter().flat_map(|tag| [*tag, 1, 2, 3]).collect()] {
            let bytes = file(&payload);
            let (records, error) = read(&bytes);
            match error {
                Some(Error::Corrupt { offset, .. }) => {
                    prop_assert!((20..=bytes.len() as u64).contains(&offset));
                }
                Some(Error::Truncated { offset }) => prop_assert_eq!(offset, bytes.len() as u64),
                None => prop_assert_eq!(&records.last().unwrap().event, &Event::End),
                other => prop_assert!(false, "{other:?}"),
            }
            let mut again = code::Block::default();
            records.iter().for_each(|record| again.push(record.ns, &record.event));
            if !records.is_empty() {
                prop_assert_eq!(read(&file(&again.bytes)).0, records);
            }
        }
    }
}

/// A file of one block, made by the ruler in the documentation.
fn file(payload: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x89GRANTR\n\x01\0\0\0".to_vec();
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(crc(payload).to_le_bytes());
    bytes.extend(payload);
    bytes
}

/// CRC-32 by its definition: division of polynomials over GF(2), a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let mut rest = !0u32;
    for byte in bytes {
        rest ^= u32::from(*byte);
        for _ in 0..8 {
            rest = (rest >> 1) ^ if rest & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    !rest
}

#[test]
fn the_bytes_are_those_of_the_ruler() {
    let at_300_ns = [0xac, 0x02];
    let mark = [29, 0, 2, b'h', b'i'];
    // At 0x2000, pool 1, owner 2, stream 4, 1000 of 1024 bytes, aligned to 256.
    let alloc = [21, 5, 0x80, 0x80, 0x01, 1, 2, 5, 0xe8, 0x07, 0x80, 0x08, 0x80, 0x02];
    // 0x1f00: 256 less.
    let free = [23, 1, 0xff, 0x03];
    let map = [10, 0, 7, 3, 3, 9, 1, 4];
    let end = [31, 0];
    let bytes = file(&[&at_300_ns[..], &mark, &alloc, &free, &map, &end].concat());
    let (records, error) = read(&bytes);
    assert!(error.is_none(), "{error:?}");
    let expected = [
        (300, Event::Mark { text: "hi".to_owned() }),
        (
            305,
            Event::Alloc {
                at: 0x2000,
                pool: PoolId(1),
                owner: OwnerId(2),
                stream: Some(StreamId(4)),
                requested: Bytes::new(1000),
                given: Bytes::new(1024),
                align: Bytes::new(256),
            },
        ),
        (306, Event::Free { at: 0x1f00 }),
        (306, Event::Map { range: RangeId(7), place: 3, granules: vec![9, 8, 10] }),
        (306, Event::End),
    ];
    assert_eq!(records, expected.clone().map(|(ns, event)| Record { ns, event }));
    let mut block = code::Block::default();
    expected.iter().for_each(|(ns, event)| block.push(*ns, event));
    assert_eq!(file(&block.bytes), bytes);
}

#[test]
fn of_many_blocks_all_that_are_whole_are_read() {
    let said: Vec<Event> = (0..30_000).map(|at| Event::Free { at: at * at }).collect();
    let whole = recorded(&said);
    let mut starts = vec![HEADER];
    while let Some(length) = whole.get(starts[starts.len() - 1]..).and_then(|rest| rest.first_chunk::<4>()) {
        starts.push(starts[starts.len() - 1] + BLOCK_HEADER + u32::from_le_bytes(*length) as usize);
    }
    assert!(starts.len() > 3);
    let all = events(&read(&whole).0);
    for (block, range) in starts.windows(2).enumerate() {
        for cut in [range[0], range[0] + 1, range[0] + 7, range[0] + 8, range[0] + 9, range[1] - 1] {
            let (records, error) = read(&whole[..cut]);
            assert!(
                matches!(error, Some(Error::Truncated { offset }) if offset == range[0] as u64),
                "{error:?}"
            );
            assert_eq!(events(&records), all[..records.len()]);
            assert_eq!(records.is_empty(), block == 0);
        }
        let mut damaged = whole.clone();
        damaged[range[0] + 20] ^= 4;
        let (records, error) = read(&damaged);
        assert!(
            matches!(error, Some(Error::Corrupt { offset, .. }) if offset == range[0] as u64),
            "{error:?}"
        );
        assert_eq!(events(&records), all[..records.len()]);
    }
    let longer = [&whole[..], &[0]].concat();
    assert!(matches!(read(&longer).1, Some(Error::Corrupt { offset, .. }) if offset == whole.len() as u64));
}

#[test]
fn lengths_that_lie_cost_nothing() {
    let mut bytes = file(&[0]);
    bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(matches!(read(&bytes).1, Some(Error::Corrupt { offset: 12, .. })));
    let granules = file(&[0, 10, 0, 1, 1, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(read(&granules).1, Some(Error::Corrupt { .. })));
    let text = file(&[0, 29, 0, 0xff, 0xff, 0xff, 0xff, 0x0f]);
    assert!(matches!(read(&text).1, Some(Error::Corrupt { .. })));
}

#[test]
fn other_files_are_not_traces() {
    for bytes in [&b""[..], b"GGUF\x03\0\0\0", b"{\"json\": true}", &[0; 100]] {
        assert!(matches!(read(bytes).1, Some(Error::NotATrace)));
    }
    let mut newer = file(&[0, 31, 0]);
    newer[8] = 2;
    assert!(matches!(read(&newer).1, Some(Error::Version { found: 2, known: 1 })));
    newer[8] = 1;
    assert!(read(&newer).1.is_none());
}

#[test]
fn what_is_too_long_is_cut_or_told_in_parts() {
    let text = "é".repeat(2000);
    let granules: Vec<u64> = (0..MAX_GRANULES as u64 * 2 + 5).map(|granule| granule * granule).collect();
    let map = Event::Map { range: RangeId(1), place: 10, granules: granules.clone() };
    let (device, owner) = (DeviceId(0), OwnerId(1));
    let take = Event::Take { device, owner, granules: granules.clone() };
    let give = Event::Give { device, owner, granules: granules.clone() };
    let heard = events(&read(&recorded_some(&[Event::Mark { text: text.clone() }, map, take, give])).0);
    assert!(
        matches!(&heard[1], Event::Mark { text: cut } if text.starts_with(cut.as_str()) && cut.len() == MAX_TEXT)
    );
    let (mut next, mut all) = (10, Vec::new());
    for event in &heard[2..5] {
        let Event::Map { range: RangeId(1), place, granules } = event else { panic!("{event:?}") };
        assert_eq!(*place, next);
        next += granules.len() as u64;
        all.extend_from_slice(granules);
    }
    assert_eq!(all, granules);
    let taken = heard[5..8].iter().flat_map(|event| match event {
        Event::Take { granules, .. } => granules.clone(),
        other => panic!("{other:?}"),
    });
    assert!(taken.eq(granules.iter().copied()));
    let given = heard[8..11].iter().flat_map(|event| match event {
        Event::Give { granules, .. } => granules.clone(),
        other => panic!("{other:?}"),
    });
    assert!(given.eq(granules));
    assert_eq!(heard[11..], [Event::End]);
}

fn recorded_some(events: &[Event]) -> Vec<u8> {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
    tracer.emit_all(|| events.to_vec());
    drop(recorder);
    file.bytes()
}

#[test]
fn off_nothing_is_asked_for() {
    let tracer = Tracer::new();
    tracer.emit(|| panic!("asked"));
    tracer.emit_all(|| -> Vec<Event> { panic!("asked") });
    let recorder = Recorder::start(&tracer, io::sink(), "").unwrap();
    assert!(tracer.is_on());
    assert!(matches!(Recorder::start(&tracer, io::sink(), ""), Err(Error::AlreadyRecording)));
    recorder.finish().unwrap();
    assert!(!tracer.is_on());
    tracer.emit(|| panic!("asked"));
}

#[test]
fn a_recording_started_later_knows_what_is_there() {
    let tracer = Tracer::new();
    let (kv, weights) = (tracer.owner(&Owner::new("kv")), tracer.owner(&Owner::new("weights")));
    assert_ne!(kv, weights);
    let device = DeviceId(tracer.number());
    let (granule, budget) = (Bytes::mib(2), Bytes::gib(1));
    let declared = |range| Event::Range {
        range: RangeId(range),
        device,
        owner: kv,
        base: 1 << 30,
        place: granule,
        places: 8,
    };
    tracer.declare(declared(70));
    tracer.declare(Event::Arena { range: RangeId(70), pool: PoolId(3) });
    tracer.declare(declared(71));
    tracer.declare(Event::Pool { pool: PoolId(70), device, owner: kv });
    tracer.declare(Event::Device { device, name: "host".to_owned(), granule, budget });
    tracer.retract(Event::RangeGone { range: RangeId(70) });
    let file = File::default();
    let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
    assert_eq!(tracer.owner(&Owner::new("kv")), kv);
    let later = tracer.owner(&Owner::new("later"));
    recorder.finish().unwrap();
    let heard = events(&read(&file.bytes()).0);
    for (owner, name) in [(kv, "kv"), (weights, "weights"), (later, "later")] {
        let owner = Event::Owner { owner, name: name.to_owned() };
        assert_eq!(heard.iter().filter(|event| **event == owner).count(), 1);
    }
    let rest: Vec<&Event> = heard.iter().filter(|event| !matches!(event, Event::Owner { .. })).collect();
    assert!(
        matches!(rest[..], [Event::Start { .. }, Event::Device { .. }, Event::Pool { .. }, range, Event::End]
        if *range == declared(71))
    );
}

/// Writes as many bytes as it may, then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0 == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let some = bytes.len().min(self.0);
        self.0 -= some;
        Ok(some)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_of_at_the_end_and_only_then() {
    for room in [0, 5, 12, 100, 70_000] {
        let tracer = Tracer::new();
        let recorder = Recorder::start(&tracer, Full(room), "").unwrap();
        (0..100_000u64).for_each(|at| tracer.emit(|| Event::Free { at: at << 20 }));
        let told = recorder.finish();
        assert!(
            matches!(&told, Err(Error::Io { source, offset }) if source.kind() == io::ErrorKind::StorageFull
            && *offset <= room as u64),
            "{told:?}"
        );
        // The tracer can be recorded again.
        Recorder::start(&tracer, io::sink(), "").unwrap().finish().unwrap();
    }
}

/// Writes nothing before it is let.
struct Gate(File, mpsc::Receiver<()>);

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Waits for the message that never comes: the end of the channel.
        let _ = self.1.recv();
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_disk_loses_events_and_says_how_many() {
    let (open, gate) = mpsc::channel();
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, Gate(file.clone(), gate), "").unwrap();
    let said = 3_000_000u64;
    (0..said).for_each(|at| tracer.emit(|| Event::Free { at: at * at }));
    drop(open);
    (said..said + 10).for_each(|at| tracer.emit(|| Event::Free { at: at * at }));
    let written = recorder.finish().unwrap();
    let (records, error) = read(&file.bytes());
    assert!(error.is_none(), "{error:?}");
    let heard = records.iter().filter(|record| matches!(record.event, Event::Free { .. })).count() as u64;
    let told: u64 =
        records.iter().map(|record| if let Event::Lost { events } = record.event { events } else { 0 }).sum();
    assert!(written.lost > 0);
    assert_eq!(written.lost, told);
    assert_eq!(heard + told, said + 10);
    assert_eq!(written.events, records.len() as u64);
}

#[test]
fn threads_keep_their_order_and_their_groups() {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, file.clone(), "").unwrap();
    let go = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (tracer, go) = (tracer.clone(), &go);
            scope.spawn(move || {
                while !go.load(Ordering::Acquire) {
                    std::hint::spin_loop();
                }
                for at in 0..2000u64 {
                    let stream = StreamId(thread);
                    tracer.emit_all(|| [Event::Used { at, stream }, Event::Wait { stream, on: stream }]);
                }
            });
        }
        go.store(true, Ordering::Release);
    });
    recorder.finish().unwrap();
    let mut next = [0u64; 4];
    let heard = events(&read(&file.bytes()).0);
    for pair in heard[1..heard.len() - 1].chunks(2) {
        let [Event::Used { at, stream }, Event::Wait { stream: same, .. }] = pair else { panic!("{pair:?}") };
        assert_eq!(stream, same);
        assert_eq!(*at, next[stream.0 as usize]);
        next[stream.0 as usize] += 1;
    }
    assert_eq!(next, [2000; 4]);
}
