//! Loading a model and making a context, as the flags say and with a bar on a terminal; and the recording of their memory.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use granule_bank::trace::{Reader, Recorder, Tracer};
use granule_llama::{CancelToken, Context, ContextOptions, LoadOptions, Model, Precision};

use crate::args::{ContextArgs, LoadArgs};
use crate::placement::{self, Place};
use crate::{interrupt, progress, ranks};

/// A recording that is going on. It is written beside its place and put there when it is whole, so that a run that comes to
/// nothing costs nobody an earlier recording.
pub(crate) struct Recording {
    /// Taken by who ends it: the run, or Ctrl-C.
    writing: Arc<Mutex<Option<Writing>>>,
}

struct Writing {
    recorder: Recorder,
    path: PathBuf,
    /// Where it is being written, where that is another file.
    part: Option<PathBuf>,
}

impl Recording {
    /// Starts to record what a bank with this tracer tells.
    pub(crate) fn start(tracer: &Tracer, path: &Path, model: &Path) -> Result<Recording> {
        let part = beside(path)?;
        let out = part.as_deref().unwrap_or(path);
        let told = || format!("the recording {}", out.display());
        let label = format!("granule run {}", model.file_name().unwrap_or_default().display());
        let recorder = Recorder::start(tracer, File::create(out).with_context(told)?, &label);
        let writing = Writing { recorder: recorder.with_context(told)?, path: path.to_owned(), part };
        let writing = Arc::new(Mutex::new(Some(writing)));
        let recording = Recording { writing: Arc::clone(&writing) };
        interrupt::before_end(move || {
            if let Err(error) = (Recording { writing }).finish() {
                eprintln!("error: {error:#}");
            }
        });
        Ok(recording)
    }

    /// Ends it, puts it in its place, and says what came of it.
    pub(crate) fn finish(self) -> Result<()> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        writing.map_or(Ok(()), Writing::finish)
    }

    /// Ends it with nothing to show.
    pub(crate) fn discard(self) -> Result<()> {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Writing { recorder, part: Some(part), .. }) = writing else { return Ok(()) };
        drop(recorder);
        fs::remove_file(&part).with_context(|| format!("the recording {}", part.display()))
    }
}

impl Writing {
    fn finish(self) -> Result<()> {
        let path = self.path.display();
        let told = || format!("the recording {path}");
        let written = self.recorder.finish().with_context(told)?;
        if let Some(part) = &self.part {
            fs::rename(part, &self.path).with_context(told)?;
        }
        let lost = match written.lost {
            0 => String::new(),
            lost => format!(", {lost} were lost: the disk did not keep up"),
        };
        eprintln!(
            "{} events in {path}{lost}; look at them: granule trace view {path} -o page.html",
            written.events
        );
        Ok(())
    }
}

/// Where to write what will stand at `path`; `None`: there, where it is no ordinary file. What is there and no recording is
/// not overwritten.
fn beside(path: &Path) -> Result<Option<PathBuf>> {
    let told = || format!("the recording {}", path.display());
    ensure!(path.as_os_str() != "-", "a recording cannot go where the text goes: name a file");
    match fs::metadata(path) {
        Ok(there) if there.is_file() && there.len() > 0 => {
            let is_recording = Reader::new(File::open(path).with_context(told)?).is_ok();
            ensure!(is_recording, "{} is there and is no recording: choose another name", path.display());
        }
        Ok(there) if !there.is_file() => return Ok(None),
        _ => {}
    }
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    Ok(Some(part.into()))
}

/// Loads the model, for contexts like these; Ctrl-C meanwhile ends the program. What happens to its memory is told to the tracer.
pub(crate) fn load_traced(
    args: &LoadArgs,
    context: &ContextOptions,
    cancel: &CancelToken,
    tracer: &Tracer,
) -> Result<Arc<Model>> {
    let mut bar = None;
    let mut report = |done: u64, total: u64| {
        bar.get_or_insert_with(|| progress::bytes("loading", total)).set_position(done);
        ControlFlow::Continue(())
    };
    let options = LoadOptions {
        no_mmap: args.no_mmap,
        mlock: args.mlock,
        no_repack: args.no_repack,
        precision: if args.precise { Precision::Precise } else { Precision::Fast },
        threads: args.threads.or_else(ranks::threads),
        threads_batch: args.threads_batch,
        ..LoadOptions::default()
    };
    let (bank, placement) = match placement::place(args, &options, context, tracer)? {
        Place::In(bank) => (Some(bank), None),
        Place::Split(placement) => (None, Some(placement)),
    };
    let options = LoadOptions { bank, placement, progress: Some(&mut report), ..options };
    // Reading and locking may block for long: until there is a model, there is nothing to end but the program.
    let model = interrupt::while_waiting(cancel, || Model::load(&args.model, options));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let model = model?;
    if ranks::speaks() {
        placement::tell(&args.place, &model);
    }
    Ok(model)
}

/// Loads the model, for contexts like these; Ctrl-C meanwhile ends the program.
pub(crate) fn load(args: &LoadArgs, context: &ContextOptions, cancel: &CancelToken) -> Result<Arc<Model>> {
    load_traced(args, context, cancel, &Tracer::new())
}

/// A context for `n_ctx` tokens, or for as many as the model was trained for, as the flags say.
pub(crate) fn options(args: &ContextArgs, n_ctx: Option<usize>) -> ContextOptions {
    ContextOptions {
        n_ctx,
        n_batch: args.batch_size.get(),
        type_k: args.type_k(),
        type_v: args.type_v(),
        kv_transform: args.kv_transform(),
        graphs: !args.no_graphs,
        cublas: args.cublas,
        ..ContextOptions::default()
    }
}

/// A context for `n_ctx` tokens, or for as many as the model was trained for; Ctrl-C stops what has to be computed for it.
pub(crate) fn context(
    model: &Arc<Model>,
    args: &ContextArgs,
    n_ctx: Option<usize>,
    cancel: &CancelToken,
) -> Result<Context> {
    let options = options(args, n_ctx);
    let mut bar = None;
    let mut report = |done: usize, total: usize| {
        bar.get_or_insert_with(|| progress::counted("transform", total)).set_position(done as u64);
    };
    let context = Context::new_reporting(Arc::clone(model), options, cancel.clone(), &mut report);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(context?)
}
