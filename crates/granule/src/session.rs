//! Loading a model and making a context, as the flags say and with a bar on a terminal.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use granule_llama::{CancelToken, Context, ContextOptions, LoadOptions, Model};

use crate::args::{ContextArgs, LoadArgs};
use crate::{interrupt, progress};

/// Loads the model; Ctrl-C meanwhile ends the program.
pub(crate) fn load(args: &LoadArgs, cancel: &CancelToken) -> Result<Arc<Model>> {
    let mut bar = None;
    let mut report = |done: u64, total: u64| {
        bar.get_or_insert_with(|| progress::bytes("loading", total)).set_position(done);
        ControlFlow::Continue(())
    };
    let options = LoadOptions {
        memory_limit: args.memory_limit,
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
