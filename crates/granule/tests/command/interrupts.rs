//! A reader that leaves, and Ctrl-C.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};

use crate::chat::tales_with_a_template;
use crate::{TALES, granule, stderr, stdout, text_of};

const LONG: [&str; 6] = ["run", TALES, "-p", "Once upon a time", "--temp", "0"];

/// Starts a long text and waits for its first bytes.
fn started() -> (Child, String) {
    let mut child = granule(&LONG).spawn().unwrap();
    let mut first = [0; 4];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    (child, String::from_utf8(first.to_vec()).unwrap())
}

pub(crate) fn interrupt(child: &Child) {
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let (mut child, _) = started();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    assert_eq!(stderr(&output), "");
}

#[test]
fn ctrl_c_ends_the_text_with_a_line_break() {
    let whole = stdout(&LONG);
    let (mut child, mut text) = started();
    interrupt(&child);
    child.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(stderr(&output), "");
    assert!(text.len() < whole.len(), "it was not stopped");
    assert!(whole.starts_with(text.strip_suffix('\n').unwrap()), "{text}");
}

#[test]
fn ctrl_c_while_it_waits_for_a_message_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let args = ["run", text_of(&model), "--temp", "0", "--stop", "\n"];
    let mut child = granule(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Once upon a time\n").unwrap();
    let mut answer = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut answer).unwrap();
    assert!(answer.len() > 5, "{answer}");
    interrupt(&child);
    // Stdin stays open all the while.
    assert_eq!(child.wait().unwrap().code(), Some(130));
    drop(stdin);
}
