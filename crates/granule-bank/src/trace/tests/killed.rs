//! What is in the file while the recording goes on: what a killed program leaves.

use std::io::BufWriter;
use std::thread::sleep;
use std::time::Instant;

use super::*;

/// Waits until the file has so many bytes more than it had.
fn grown(file: &File, from: usize) -> Vec<u8> {
    let began = Instant::now();
    loop {
        let bytes = file.bytes();
        if bytes.len() > from {
            return bytes;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "nothing is written");
        sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_was_recorded_is_in_the_file_soon() {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::start(&tracer, BufWriter::new(file.clone()), "a test").unwrap();
    let mut from = HEADER;
    for count in 1..=3 {
        // At once, so that one block has both.
        tracer.emit_all(|| [Event::Mark { text: "token".to_owned() }, Event::Free { at: count }]);
        let bytes = loop {
            let bytes = grown(&file, from);
            from = bytes.len();
            if events(&read(&bytes).0).contains(&Event::Free { at: count }) {
                break bytes;
            }
        };
        let (records, error) = read(&bytes);
        assert!(
            matches!(error, Some(Error::Truncated { offset }) if offset == bytes.len() as u64),
            "{error:?}"
        );
        assert_eq!(records.len() as u64, 1 + 2 * count);
    }
    let written = recorder.finish().unwrap();
    assert_eq!((written.events, written.lost), (1 + 2 * 3 + 1, 0));
    assert_eq!(written.bytes, file.bytes().len() as u64);
}

#[test]
fn blocks_that_are_sent_young_are_in_order_and_count() {
    let (tracer, file) = (Tracer::new(), File::default());
    let recorder = Recorder::aging(&tracer, file.clone(), "", Duration::ZERO).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..2u32 {
            let tracer = &tracer;
            scope.spawn(move || {
                for at in 0..20_000u64 {
                    tracer.emit(|| Event::Used { at, stream: StreamId(thread) });
                }
            });
        }
    });
    let written = recorder.finish().unwrap();
    let (records, error) = read(&file.bytes());
    assert!(error.is_none(), "{error:?}");
    assert_eq!(written.events, records.len() as u64);
    assert!(records.is_sorted_by_key(|record| record.ns));
    // Some may have been lost, but then that is told.
    let lost =
        records.iter().map(|record| if let Event::Lost { events } = record.event { events } else { 0 });
    assert_eq!(lost.sum::<u64>(), written.lost);
    let mut heard = 0;
    for thread in 0..2 {
        let mine = records.iter().filter_map(|record| match record.event {
            Event::Used { at, stream } if stream == StreamId(thread) => Some(at),
            _ => None,
        });
        let mine: Vec<u64> = mine.collect();
        assert!(mine.is_sorted_by(|a, b| a < b));
        heard += mine.len() as u64;
    }
    assert_eq!(heard + written.lost, 40_000);
}
