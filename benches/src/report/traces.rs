//! Recorded traces, played on each subject.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use granule_bank::trace::Reader;
use granule_pool::replay::{self, Request};

use super::{Effort, Field, GRANULE, Section, Visitor};
use crate::script::BATCH;
use crate::table::{Table, bytes, count, over};
use crate::{Handle, Subject, Timing};

const ABOUT: &str = "A recorded program's leases, in its order, by one thread, each on its stream. Columns as above, from all passes but \
    the first. What plays a trace looks at each step's kind, stream and pool, so the harness costs more than above. Marks of \
    further streams, captures, alignments above 256 and trims (each pass would begin by taking memory anew) are left out.";

/// The committed traces.
pub(super) fn files() -> io::Result<Vec<PathBuf>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces");
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut files = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "trace"));
    files.sort();
    Ok(files)
}

/// A subject as the replay wants it: with a handle for each stream.
struct Streams<'a, S: Subject + 'a> {
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

struct Rows<'a> {
    effort: Effort,
    script: &'a replay::Script,
    peak: u64,
    table: Table,
}

impl Visitor for Rows<'_> {
    fn visit<S: Subject>(&mut self, subject: S) {
        let handles = (0..self.script.streams().len()).map(|stream| subject.handle(stream)).collect();
        let mut streams = Streams { subject: &subject, handles, peak: Some(None) };
        let mut timing = Timing::default();
        pass(self.script, &mut streams, &mut timing);
        let peak = streams.peak.take().flatten();
        let first = subject.footprint().calls;
        timing = Timing::default();
        let (start, mut passes) = (Instant::now(), 0);
        while passes < 3 || start.elapsed() < self.effort.time {
            pass(self.script, &mut streams, &mut timing);
            passes += 1;
        }
        let later = subject.footprint().calls.zip(first).map(|(all, first)| all - first);
        let ns = |quantile| format!("{:.1}", timing.pair(quantile));
        self.table.row(vec![
            subject.name().into(),
            ns(0.5),
            ns(0.99),
            ns(0.999),
            bytes(peak),
            over(peak, self.peak),
            format!("{} / {}", count(first), count(later)),
        ]);
    }
}

/// Plays the trace once.
fn pass<S: Subject>(script: &replay::Script, streams: &mut Streams<'_, S>, timing: &mut Timing) {
    let mut player = replay::Player::new(script, streams);
    loop {
        let before = Instant::now();
        let steps = player.play(BATCH);
        let took: Duration = before.elapsed();
        if steps < BATCH {
            return;
        }
        timing.record(took);
    }
}

/// Takes memory from nowhere: for what a script comes to.
struct Nowhere;

impl replay::Subject for Nowhere {
    type Block = ();
    type Error = ();

    fn alloc(&mut self, _request: Request) -> Result<(), ()> {
        Ok(())
    }

    fn free(&mut self, _block: ()) {}
}

/// One trace.
pub(super) fn section(effort: Effort, path: &Path) -> Result<Section, Box<dyn std::error::Error>> {
    let script = replay::Script::read(Reader::new(File::open(path)?)?)?;
    let mut player = replay::Player::new(&script, Nowhere);
    player.play(script.steps().len());
    let peak = player.finish().peak_live.get();
    let table = Table::new(["", "p50", "p99", "p99.9", "peak reserved", "waste", "calls first / later"]);
    let mut rows = Rows { effort, script: &script, peak, table };
    Field { streams: script.streams().len(), peak, slow: true, granule: GRANULE }.visit(&mut rows);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let title = format!("Trace: {name}, {} steps", script.steps().len());
    Ok(Section { title, about: ABOUT, table: rows.table })
}
