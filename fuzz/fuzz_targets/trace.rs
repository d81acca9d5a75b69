//! Arbitrary bytes as a trace, and as a block whose length and checksum are right: never a panic, nothing behind an error, time
//! that goes forward, and a script that can be played.

#![no_main]

use granule_bank::trace::{Event, Reader, Record};
use granule_pool::replay::{Player, Request, Script, Subject};
use libfuzzer_sys::fuzz_target;

/// An allocator that says yes, and knows what it has given.
#[derive(Default)]
struct Yes {
    live: std::collections::HashSet<u64>,
    next: u64,
}

impl Subject for &mut Yes {
    type Block = u64;
    type Error = ();

    fn alloc(&mut self, request: Request) -> Result<u64, ()> {
        assert!(request.align.get().is_power_of_two());
        self.next += 1;
        self.live.insert(self.next);
        Ok(self.next)
    }

    fn free(&mut self, block: u64) {
        assert!(self.live.remove(&block), "freed twice");
    }
}

fn read(bytes: &[u8]) {
    let Ok(mut reader) = Reader::new(bytes) else { return };
    let (mut records, mut last) = (Vec::<Record>::new(), 0);
    while let Some(record) = reader.next() {
        let Ok(record) = record else {
            assert!(reader.next().is_none(), "something follows an error");
            break;
        };
        assert!(record.ns >= last);
        last = record.ns;
        let end = record.event == Event::End;
        records.push(record);
        if end {
            break;
        }
    }
    assert!(reader.offset() <= bytes.len() as u64);
    let script = Script::of(records);
    let mut yes = Yes::default();
    let mut player = Player::new(&script, &mut yes);
    while player.play(7) > 0 {}
    let report = player.finish();
    assert_eq!(report.allocs, report.frees);
    assert!(yes.live.is_empty());
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut file = b"\x89GRANTR\n\x01\0\0\0".to_vec();
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(crc32fast::hash(data).to_le_bytes());
    file.extend(data);
    read(&file);
});
