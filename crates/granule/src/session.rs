//! Loading a model and making a context, as the flags say and with a bar on a terminal; and the recording of their memory.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use granule_bank::trace::{Recorder, Tracer};
use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_llama::{CancelToken, Context, ContextOptions, LoadOptions, Model};

use crate::args::{ContextArgs, LoadArgs};
use crate::{interrupt, progress};

/// A recording that is going on.
pub(crate) struct Recording {
    recorder: Recorder,
    path: PathBuf,
}

impl Recording {
    /// Starts to record what a bank with this tracer tells.
    pub(crate) fn start(tracer: &Tracer, path: &Path, model: &Path) -> Result<Recording> {
        let told = || format!("the recording {}", path.display());
        let label = format!("granule run {}", model.file_name().unwrap_or_default().display());
        let recorder = Recorder::start(tracer, File::create(path).with_context(told)?, &label);
        Ok(Recording { recorder: recorder.with_context(told)?, path: path.to_owned() })
    }

    /// Ends it, and says what came of it.
    pub(crate) fn finish(self) -> Result<()> {
        let path = self.path.display();
        let written = self.recorder.finish().with_context(|| format!("the recording {path}"))?;
        let lost = match written.lost {
            0 => String::new(),
            lost => format!(", {lost} were lost: the disk did not keep up"),
        };
        eprintln!("{} events in {path}{lost}; look at them: granule trace view {path} -o page.html", written.events);
        Ok(())
    }
}

/// Loads the model; Ctrl-C meanwhile ends the program. What happens to its memory is told to the tracer.
pub(crate) fn load_traced(args: &LoadArgs, cancel: &CancelToken, tracer: &Tracer) -> Result<Arc<Model>> {
    let options = BankOptions::new().tracer(tracer);
    let options = if let Some(limit) = args.memory_limit { options.budget(limit) } else { options };
    let bank = Bank::new(Device::host()?, options)?;
    let mut bar = None;
    let mut report = |done: u64, total: u64| {
        bar.get_or_insert_with(|| progress::bytes("loading", total)).set_position(done);
        ControlFlow::Continue(())
    };
    let options = LoadOptions {
        bank: Some(bank),
        no_mmap: args.no_mmap,
        mlock: args.mlock,
        threads: args.threads,
        progress: Some(&mut report),
        ..LoadOptions::default()
    };
    // Reading and locking may block for long: until there is a model, there is nothing to end but the program.
    let model = interrupt::while_waiting(cancel, || Model::load(&args.model, options));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    Ok(model?)
}

/// Loads the model; Ctrl-C meanwhile ends the program.
pub(crate) fn load(args: &LoadArgs, cancel: &CancelToken) -> Result<Arc<Model>> {
    load_traced(args, cancel, &Tracer::new())
}

/// A context for `n_ctx` tokens, or for as many as the model was trained for.
pub(crate) fn context(
    model: &Arc<Model>,
    args: &ContextArgs,
    n_ctx: Option<usize>,
    cancel: &CancelToken,
) -> Result<Context> {
    let options = ContextOptions {
        n_ctx,
        n_batch: args.batch_size.get(),
        type_k: args.type_k(),
        type_v: args.type_v(),
        ..ContextOptions::default()
    };
    let mut context = Context::new(Arc::clone(model), options)?;
    context.set_cancel_token(cancel.clone());
    Ok(context)
}
