//! Recordings of what happens to memory: who took what, when, and where it lay.
//!
//! A [`Tracer`] is where the bank, its ranges and the pools above it send their [`Event`]s. It is off until a [`Recorder`] is
//! started on it; off, an event costs one relaxed load of a flag. On, an event is put into a buffer under a short lock, and a
//! thread of the recorder's own writes the buffers, full ones at once and others within a tenth of a second. Recording calls no driver, waits for no disk and fails nobody: where
//! the disk does not keep up, events are dropped and counted; where it fails, [`Recorder::finish`] says so.
//!
//! ```
//! use granule_bank::trace::{Event, Reader, Recorder, Tracer};
//!
//! let path = std::env::temp_dir().join(format!("example-{}.trace", std::process::id()));
//! let tracer = Tracer::new();
//! tracer.mark("nobody hears this");
//! let recorder = Recorder::start(&tracer, std::fs::File::create(&path)?, "an example")?;
//! tracer.mark("load");
//! recorder.finish()?;
//!
//! let reader = Reader::new(std::fs::File::open(&path)?)?;
//! let events = reader.map(|record| Ok(record?.event)).collect::<Result<Vec<_>, granule_bank::trace::Error>>()?;
//! assert!(matches!(&events[0], Event::Start { label, .. } if label == "an example"));
//! assert_eq!(&events[1..], [Event::Mark { text: "load".to_owned() }, Event::End]);
//! # std::fs::remove_file(path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The file
//! Numbers of fixed width are little-endian. A *varint* is LEB128: seven bits a byte, the lowest first, the top bit set where
//! another byte follows. *Signed* ones are zigzag: 0, -1, 1, -2, … as 0, 1, 2, 3, ….
//!
//! ```text
//! file:   0        8        10       12
//!         | magic  | version| zero   | block | block | … | the last block's last event is End
//!           89 47 52 41 4E 54 52 0A  ("\x89GRANTR\n"); version 1
//!
//! block:  0        4        8
//!         | length | CRC-32 | payload: `length` bytes, at most 1 MiB; the CRC (IEEE) is the payload's
//!
//! payload: varint: nanoseconds from the start to the block | event | event | …
//!
//! event:  tag: u8 | varint: nanoseconds since the event before, or the block | fields, in the order of `Event`'s
//! ```
//!
//! Fields: ids, sizes and counts are varints; an `Option<StreamId>` is 0 or the id plus one; a text is its length in bytes, at
//! most 1,024, and so many bytes of UTF-8; an address is signed, what it differs by from the last address in its block (the
//! first one: from 0); a list of granules is its length, the first one, then signed differences. Every block can be read
//! without the ones before it, and what a block holds is known to be whole before any of it is believed.

mod code;
mod error;
mod event;
mod read;
mod record;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use event::{DeviceId, Event, OwnerId, PoolId, RangeId, StreamId};
pub use read::{Reader, Record};
pub use record::{Recorder, Tracer, Written};

/// What a file begins with: no text file does, and one that went through a text-mode copy does not.
const MAGIC: [u8; 8] = *b"\x89GRANTR\n";
/// The version of the format.
const VERSION: u16 = 1;
/// The length of what stands before the first block.
const HEADER: usize = 12;
/// The length of what stands before a block's payload.
const BLOCK_HEADER: usize = 8;
/// The longest payload of a block.
const MAX_PAYLOAD: usize = 1 << 20;
/// The longest text, in bytes: a longer one is cut.
const MAX_TEXT: usize = 1024;
/// The most granules in one event: more of them are written as several.
const MAX_GRANULES: usize = 16 * 1024;
