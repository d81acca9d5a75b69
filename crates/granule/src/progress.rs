//! Progress bars: on a terminal, for what takes long; never in a pipe.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar over bytes.
pub(crate) fn bytes(what: &'static str, total: u64) -> ProgressBar {
    bar(what, total, "{prefix} {wide_bar} {bytes} of {total_bytes}")
}

/// A bar over things that are counted.
pub(crate) fn counted(what: &'static str, total: usize) -> ProgressBar {
    bar(what, total as u64, "{prefix} {wide_bar} {pos} of {len} {msg}")
}

/// indicatif draws on a terminal alone; elsewhere the bar is there and invisible.
fn bar(what: &'static str, total: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.progress_chars("━╸ "));
    bar.set_prefix(what);
    bar
}
