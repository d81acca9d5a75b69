//! Recorded traces on subjects: one thread plays all streams, each with its own handle.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use granule_bank::trace::Reader;
use granule_pool::replay::{self, Request, Script};

use crate::script::BATCH;
use crate::{Handle, Subject, Timing};

/// The committed traces.
pub fn files() -> io::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "trace"));
    files.sort();
    Ok(files)
}

/// A recorded program's steps.
///
/// # Errors
/// A file that is no whole recording.
pub fn read(path: &Path) -> Result<Script, Box<dyn std::error::Error>> {
    Ok(Script::read(Reader::new(File::open(path)?)?)?)
}

/// A subject as the replay wants it: with a handle for each stream.
pub struct Streams<'a, S: Subject + 'a> {
    subject: &'a S,
    handles: Vec<S::Handle<'a>>,
    /// The most that was reserved after an allocation, while it is looked at.
    peak: Option<Option<u64>>,
}

impl<'a, S: Subject> replay::Subject for &mut Streams<'a, S> {
    type Block = (S::Block, u32);
    type Error = &'static str;

    #[inline]
    fn alloc(&mut self, request: Request) -> Result<Self::Block, Self::Error> {
        let size = u32::try_from(request.size.get()).map_err(|_| "more than 4 GiB")?;
        let handle = self.handles.get_mut(request.stream as usize).ok_or("a stream that is not there")?;
        let block = handle.alloc(size.max(1));
        std::hint::black_box(S::Handle::address(&block));
        if let Some(peak) = &mut self.peak {
            *peak = (*peak).max(self.subject.footprint().reserved);
        }
        Ok((block, request.stream))
    }

    #[inline]
    fn free(&mut self, (block, stream): Self::Block) {
        self.handles[stream as usize].free_moved(block);
    }
}

impl<'a, S: Subject> Streams<'a, S> {
    /// A handle for each of the script's streams.
    pub fn new(subject: &'a S, script: &Script) -> Streams<'a, S> {
        let handles = (0..script.streams().len()).map(|stream| subject.handle(stream)).collect();
        Streams { subject, handles, peak: None }
    }

    /// Plays the trace once; what it leaves live is freed.
    pub fn pass(&mut self, script: &Script, timing: &mut Timing) {
        let mut player = replay::Player::new(script, self);
        loop {
            let before = Instant::now();
            let steps = player.play(BATCH);
            let took = before.elapsed();
            if steps < BATCH {
                return;
            }
            timing.record(took);
        }
    }

    /// As [`Streams::pass`]; answers the most that was reserved after an allocation.
    pub fn peak(&mut self, script: &Script) -> Option<u64> {
        self.peak = Some(None);
        self.pass(script, &mut Timing::default());
        self.peak.take().flatten()
    }
}

/// The most that is live at once in a trace, as it was asked for.
pub fn peak_live(script: &Script) -> u64 {
    let mut player = replay::Player::new(script, Nowhere);
    player.play(script.steps().len());
    player.finish().peak_live.get()
}

/// Takes memory from nowhere.
struct Nowhere;

impl replay::Subject for Nowhere {
    type Block = ();
    type Error = ();

    fn alloc(&mut self, _request: Request) -> Result<(), ()> {
        Ok(())
    }

    fn free(&mut self, _block: ()) {}
}
