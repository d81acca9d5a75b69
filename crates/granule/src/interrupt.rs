//! Ctrl-C: the first one stops what is being computed, the second one ends the program, as does one that comes while
//! nothing is computed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use granule_llama::CancelToken;

use crate::{INTERRUPTED, ranks};

/// Whether the program waits for a person; then there is nothing to stop but itself.
static WAITING: AtomicBool = AtomicBool::new(false);

/// What is done before Ctrl-C ends the program.
static LAST: Mutex<Option<Box<dyn FnOnce() + Send>>> = Mutex::new(None);

/// Has this done before Ctrl-C ends the program; only the last one that was given.
pub(crate) fn before_end(last: impl FnOnce() + Send + 'static) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(last));
}

fn end() -> ! {
    if let Some(last) = LAST.lock().unwrap_or_else(PoisonError::into_inner).take() {
        last();
    }
    std::process::exit(INTERRUPTED.into())
}

/// From now on Ctrl-C sets the token that this returns. A request to terminate ends the program, as ever.
pub(crate) fn install() -> anyhow::Result<CancelToken> {
    let token = CancelToken::default();
    let set = token.clone();
    ctrlc::set_handler(move || {
        // One of several processes cannot stop a step before the others: it ends, and they do.
        let is_one_of_several = matches!(ranks::here(), Ok(Some(_)));
        if WAITING.load(Ordering::SeqCst) || set.is_cancelled() || is_one_of_several {
            end();
        }
        set.cancel();
    })?;
    Ok(token)
}

/// Runs `read`, in which Ctrl-C ends the program; as does one that came since `cancel` was looked at last.
pub(crate) fn while_waiting<T>(cancel: &CancelToken, read: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::SeqCst);
    if cancel.is_cancelled() {
        end();
    }
    let read = read();
    WAITING.store(false, Ordering::SeqCst);
    read
}
