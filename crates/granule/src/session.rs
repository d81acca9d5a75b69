//! Loading a model and making a context, as the flags say and with a bar on a terminal.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Result;
use granule_llama::{CancelToken, Context, ContextOptions, LoadOptions, Model};

use crate::args::{ContextArgs, LoadArgs};
use crate::progress;

/// Loads the model; `cancel` ends it early.
pub(crate) fn load(args: &LoadArgs, cancel: &CancelToken) -> Result<Arc<Model>> {
    let mut bar = None;
    let mut report = |done: u64, total: u64| {
        bar.get_or_insert_with(|| progress::bytes("loading", total)).set_position(done);
        if cancel.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let options = LoadOptions {
        memory_limit: args.memory_limit,
        no_mmap: args.no_mmap,
        mlock: args.mlock,
        threads: args.threads,
        progress: Some(&mut report),
        ..LoadOptions::default()
    };
    let model = Model::load(&args.model, options);
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
