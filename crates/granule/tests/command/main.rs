//! The command as a person or a script meets it: what goes to stdout, what to stderr, and how it ends.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is wrong"
)]

mod bad_input;
mod chat;
mod devices;
mod interrupts;
#[allow(dead_code, reason = "the engine's tests use more of it")]
#[path = "../../../granule-llama/tests/support/make.rs"]
mod make;
mod measures;
mod prompt_cache;
mod quantize;
mod recording;
mod run;
mod split;
mod trace;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The model that comes with granule-llama.
const TALES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../granule-llama/models/tales-5m.q8_0.gguf");

fn granule(args: &[&str]) -> Command {
    // Built here, or packed beside these tests in a bundle.
    let program = std::env::var_os("CARGO_BIN_EXE_granule");
    let mut command = Command::new(program.unwrap_or_else(|| env!("CARGO_BIN_EXE_granule").into()));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(args: &[&str]) -> Output {
    granule(args).output().unwrap()
}

/// What a command that ends well writes to stdout; nothing may be on stderr.
#[track_caller]
fn stdout(args: &[&str]) -> String {
    let output = output(args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    assert_eq!(stderr(&output), "", "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&stdout(args)).unwrap()
}

/// Runs with `input` on stdin.
fn with_stdin(args: &[&str], input: &[u8]) -> Output {
    let mut child = granule(args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}
