//! `--prompt-cache`: keys and values of a prompt in a file, so that the next run need not compute them again.
//!
//! The file is written after the first prompt of a run. In a chat it is written again when the conversation is twice as long as what
//! the file holds of it, and at the end: a crash costs at most the time for half of it.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use granule_kv::state::{StateError, check_path};
use granule_llama::{Context, Error, TokenId};

/// The file, and what is known of it.
pub(crate) struct PromptCache<'a> {
    path: &'a Path,
    /// The tokens that it holds.
    holds: Vec<TokenId>,
    /// Whether a prompt of this run was there.
    had_prompt: bool,
    /// Whether the last try to save came to nothing.
    failed: bool,
}

/// Refuses a file that cannot be written, while nothing has been computed for it. One that is there may be meant for reading.
pub(crate) fn check(path: &Path) -> Result<()> {
    if is_there(path) && path.is_file() { Ok(()) } else { check_path(path).with_context(|| told(path)) }
}

/// Whether there is something to load: neither no file, nor one that was made for this and has nothing in it yet.
fn is_there(path: &Path) -> bool {
    match std::fs::metadata(path) {
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
        Ok(there) => !there.is_file() || there.len() > 0,
    }
}

fn told(path: &Path) -> String {
    format!("--prompt-cache {}", path.display())
}

impl<'a> PromptCache<'a> {
    /// Has the context begin with what the file holds. Where there is no file, that is nothing.
    pub(crate) fn load(path: &'a Path, context: &mut Context) -> Result<Self> {
        if is_there(path) {
            context.load_state(path).map_err(advised).with_context(|| told(path))?;
        }
        Ok(Self { path, holds: context.tokens().to_vec(), had_prompt: false, failed: false })
    }

    /// To be told of each prompt, of which `kept` tokens did not have to be computed, once the context holds it. Says of the first
    /// one how much of it came from the file, and saves what is worth it. The last token is always computed, because of its logits.
    pub(crate) fn prompt(&mut self, context: &Context, kept: usize) {
        let tokens = context.tokens().len();
        if !self.had_prompt {
            eprintln!("prompt cache: {kept} of {tokens} tokens reused");
        }
        // What the file has of this conversation: it may hold another one, or what has been forgotten since.
        let safe = self.holds.iter().zip(context.tokens()).take_while(|(held, token)| held == token).count();
        if !self.had_prompt || tokens >= 2 * safe {
            self.save(context);
        }
        self.had_prompt = true;
    }

    /// Saves what a chat has come to.
    pub(crate) fn end_chat(&mut self, context: &Context) {
        if self.had_prompt {
            self.save(context);
        }
    }

    /// Whether the file holds what it is to hold.
    pub(crate) fn finish(self) -> Result<()> {
        ensure!(!self.failed, "{} was not saved", told(self.path));
        Ok(())
    }

    /// Saves the context's tokens, unless the file has them. That it fails is no reason to stop what is being said.
    fn save(&mut self, context: &Context) {
        if self.holds.starts_with(context.tokens()) && is_there(self.path) {
            return;
        }
        let saved = context.save_state(self.path);
        self.failed = saved.is_err();
        match saved {
            Ok(_) => context.tokens().clone_into(&mut self.holds),
            Err(error) => eprintln!("warning: {}: {error}", told(self.path)),
        }
    }
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
