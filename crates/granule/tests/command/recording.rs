//! `granule run --trace`: a recording is whole or is not there, and nothing else is lost.

use std::fs;
use std::io::{Read, Write};
use std::process::Stdio;

use granule_bank::trace::{Event, Reader};

use crate::chat::tales_with_a_template;
use crate::interrupts::interrupt;
use crate::{TALES, granule, output, stderr, text_of};

/// The events of a recording, which is whole.
fn events(path: &std::path::Path) -> Vec<Event> {
    let events = Reader::new(fs::File::open(path).unwrap()).unwrap().map(|record| record.unwrap().event);
    let events: Vec<Event> = events.collect();
    assert!(matches!(events.first(), Some(Event::Start { .. })) && events.last() == Some(&Event::End));
    events
}

#[test]
fn a_run_is_recorded_from_load_to_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let run =
        output(&["run", TALES, "-p", "Once", "--temp", "0", "-n", "5", "--trace", path.to_str().unwrap()]);
    assert!(run.status.success(), "{}", stderr(&run));
    let events = events(&path);
    let marks: Vec<&str> = events
        .iter()
        .filter_map(|e| if let Event::Mark { text } = e { Some(&text[..]) } else { None })
        .collect();
    assert_eq!(marks[..3], ["load", "context", "prompt"]);
    assert_eq!(marks[3..], ["token 1", "token 2", "token 3", "token 4", "token 5"]);
    let (mut leased, mut charged) = (0_i64, 0_i64);
    for event in &events {
        match event {
            Event::Alloc { .. } => leased += 1,
            Event::Free { .. } => leased -= 1,
            Event::Charge { size, .. } => charged += size.get() as i64,
            Event::Discharge { size, .. } => charged -= size.get() as i64,
            _ => {}
        }
    }
    assert_eq!((leased, charged), (0, 0), "everything was given back before the end");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_is_no_recording_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.gguf");
    fs::copy(TALES, &model).unwrap();
    let model = model.to_str().unwrap();
    let run = output(&["run", model, "-p", "Once", "-n", "2", "--trace", model]);
    assert!(!run.status.success() && stderr(&run).contains("no recording"), "{}", stderr(&run));
    assert_eq!(fs::read(model).unwrap(), fs::read(TALES).unwrap());
}

#[test]
fn a_run_that_comes_to_nothing_leaves_the_earlier_recording() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let trace = path.to_str().unwrap();
    assert!(output(&["run", TALES, "-p", "Once", "-n", "2", "--trace", trace]).status.success());
    let before = fs::read(&path).unwrap();
    assert!(!output(&["run", TALES, "-p", "Once", "--temp", "-1", "--trace", trace]).status.success());
    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_full_disk_is_told() {
    let run = output(&["run", TALES, "-p", "Once", "-n", "2", "--trace", "/dev/full"]);
    assert!(!run.status.success() && stderr(&run).contains("/dev/full"), "{}", stderr(&run));
}

#[test]
fn a_run_that_is_interrupted_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.trace");
    let mut child =
        granule(&["run", TALES, "-p", "Once", "--trace", path.to_str().unwrap()]).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert!(events(&path).iter().any(|event| matches!(event, Event::Alloc { .. })));
}

#[test]
fn a_chat_that_is_interrupted_while_it_waits_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.trace");
    let model = tales_with_a_template(folder.path());
    let args = ["run", text_of(&model), "-n", "5", "--trace", path.to_str().unwrap()];
    let mut child = granule(&args).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Once upon a time\n").unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    interrupt(&child);
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    drop(stdin);
    assert!(events(&path).iter().any(|event| matches!(event, Event::Alloc { .. })));
}
