//! Plays what a recording says was leased and freed, stream by stream, on any allocator.
//!
//! A [`Script`] is read from a recording once, so that nothing is decoded while it is played; a [`Player`] plays it on a
//! [`Subject`], as many steps at a time as the caller wants: whoever takes times takes them around [`Player::play`].
//!
//! What is played is what the program did: leases, further uses, frees, captures, trims. What the recorded allocator did about
//! it (steals, waits, granules) is its own affair and is left out. Everything is played by one thread, in the recorded order:
//! the same script on the same subject gives the same calls.
//!
//! ```
//! use granule_bank::trace::{Event, OwnerId, PoolId, Reader, Recorder, Tracer};
//! use granule_device::Bytes;
//! use granule_pool::replay::{Player, Request, Script, Subject};
//!
//! /// Hands out addresses one after the other.
//! struct Bump(u64);
//!
//! impl Subject for Bump {
//!     type Block = u64;
//!     type Error = std::convert::Infallible;
//!
//!     fn alloc(&mut self, request: Request) -> Result<u64, Self::Error> {
//!         let at = self.0.next_multiple_of(request.align.get());
//!         self.0 = at + request.size.get();
//!         Ok(at)
//!     }
//!
//!     fn free(&mut self, _: u64) {}
//! }
//!
//! # let path = std::env::temp_dir().join(format!("example-{}.replay", std::process::id()));
//! # let tracer = Tracer::new();
//! # let recorder = Recorder::start(&tracer, std::fs::File::create(&path)?, "an example")?;
//! # let (pool, owner, stream, align) = (PoolId(0), OwnerId(0), None, Bytes::new(256));
//! # let (requested, given) = (Bytes::new(1000), Bytes::new(1024));
//! # tracer.emit(|| Event::Alloc { at: 4096, pool, owner, stream, requested, given, align });
//! # tracer.emit(|| Event::Free { at: 4096 });
//! # recorder.finish()?;
//! let script = Script::read(Reader::new(std::fs::File::open(&path)?)?)?;
//! let mut player = Player::new(&script, Bump(0));
//! while player.play(64) > 0 {}
//! assert_eq!(player.finish().peak_live, Bytes::new(1000));
//! # std::fs::remove_file(path)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[cfg(test)]
mod on_a_pool;
mod play;
mod script;
#[cfg(test)]
mod tests;

pub use play::{Player, Report, Request, Subject};
pub use script::{Script, Step};
