//! `--prompt-cache`: keys and values of a prompt in a file, so that the next run need not compute them again.

use std::path::Path;
use std::sync::Once;

use anyhow::{Context as _, Result};
use granule_kv::state::StateError;
use granule_llama::{Context, Error, TokenId};

/// Has the context begin with what the file holds. Where there is no file, that is nothing.
pub(crate) fn load(path: &Path, context: &mut Context) -> Result<()> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        // Made for this, and nothing in it yet.
        Ok(there) if there.is_file() && there.len() == 0 => return Ok(()),
        _ => {}
    }
    let told = || format!("--prompt-cache {}", path.display());
    context.load_state(path).map_err(advised).with_context(told)
}

/// Says of the first prompt how much of it came from the file, and saves the file again where the prompt, which the context
/// holds now, has more than was kept. The last token is always computed, because of its logits.
pub(crate) fn save(path: &Path, context: &Context, kept: usize) -> Result<()> {
    let tokens: &[TokenId] = context.tokens();
    // What a chat keeps of itself later on is no news.
    static TOLD: Once = Once::new();
    TOLD.call_once(|| eprintln!("prompt cache: {kept} of {} tokens reused", tokens.len()));
    if kept + 1 < tokens.len() || !path.exists() {
        context.save_state(path).with_context(|| format!("--prompt-cache {}", path.display()))?;
    }
    Ok(())
}

/// What went wrong, and what to do about it.
fn advised(error: Error) -> anyhow::Error {
    let Error::State(state) = &error else { return error.into() };
    let what = match state {
        StateError::WrongTypes { .. } => {
            "name its types with --cache-type-k and --cache-type-v, or another file"
        }
        StateError::WrongTransform => {
            "run with the --kv-transform that it was made with, or name another file"
        }
        StateError::TooLong { .. } => "raise --ctx-size, or name another file",
        StateError::WrongModel | StateError::WrongShape { .. } | StateError::WrongRope => {
            "name a file for each model"
        }
        StateError::Damaged { .. } | StateError::Cut { .. } | StateError::Version { .. } => {
            "remove it, and it is made again"
        }
        StateError::NotAStateFile { .. } => "name another file",
        _ => return error.into(),
    };
    anyhow::anyhow!("{error}: {what}")
}
