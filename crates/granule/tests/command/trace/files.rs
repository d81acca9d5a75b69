//! What becomes of files: the page is whole or not there, the recording stays, and a killed program leaves one.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use granule_bank::trace::{DeviceId, Event, OwnerId, Reader, Recorder, Tracer};
use granule_device::Bytes;

use super::{page_data, recorded, recording};
use crate::chat::tales_with_a_template;
use crate::{granule, json, output, stderr, stdout, text_of};

#[test]
#[cfg(unix)]
fn a_page_never_replaces_its_recording() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = recorded(dir.path(), 2);
    let before = fs::read(&path).unwrap();
    let beside = dir.path().join("engine.trace.html");
    let (link, symlink) = (dir.path().join("hard"), dir.path().join("soft"));
    fs::hard_link(&path, &link).unwrap();
    std::os::unix::fs::symlink(&path, &symlink).unwrap();
    fs::hard_link(&path, &beside).unwrap();
    let around = dir.path().join(".").join("engine.trace");
    let names = [&path, &link, &symlink, &around].map(|name| vec!["-o", text_of(name)]);
    for name in names.into_iter().chain([vec![]]) {
        let output = output(&[&["trace", "view", text_of(&path)], &name[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{name:?}");
        assert!(stderr(&output).contains("is the recording itself"), "{}", stderr(&output));
        assert_eq!(fs::read(&path).unwrap(), before);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 4, "nothing is left beside it");
}

#[test]
#[cfg(unix)]
fn a_page_that_has_no_room_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = recorded(dir.path(), 2);
    let page = dir.path().join("page.html");
    for before in [None, Some("the page before")] {
        if let Some(before) = before {
            fs::write(&page, before).unwrap();
        }
        // Files may have few blocks; writing more of them is an error, and no signal.
        let limited = "trap '' XFSZ; ulimit -f 4; exec \"$0\" \"$@\"";
        let program = env!("CARGO_BIN_EXE_granule");
        let mut shell = Command::new("sh");
        shell.args(["-c", limited, program, "trace", "view", text_of(&path), "-o", text_of(&page)]);
        let output = shell.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("page.html"), "{}", stderr(&output));
        assert_eq!(fs::read_to_string(&page).ok().as_deref(), before);
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 1 + usize::from(before.is_some()), "nothing is left beside it");
    }
}

#[test]
#[cfg(unix)]
fn a_page_goes_where_a_link_leads() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = recorded(dir.path(), 2);
    let (page, link) = (dir.path().join("page.html"), dir.path().join("link.html"));
    fs::write(&page, "the page before").unwrap();
    std::os::unix::fs::symlink(&page, &link).unwrap();
    assert!(output(&["trace", "view", text_of(&path), "-o", text_of(&link)]).status.success());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&page).unwrap(), stdout(&["trace", "view", text_of(&path), "-o", "-"]));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside it");
}

#[test]
fn of_a_recording_that_holds_nothing_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("header.trace");
    recording::record(&path, "cache", 1);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..12]).unwrap();
    let text = output(&["trace", "summary", text_of(&path)]);
    assert_eq!(text.status.code(), Some(1));
    let said = String::from_utf8_lossy(&text.stdout);
    assert!(said.starts_with("The recording holds nothing: ") && said.contains("too early"), "{said}");
    assert!(said.lines().count() == 1 && !said.contains("time,") && !said.contains("1970"), "{said}");
    let told = output(&["trace", "summary", text_of(&path), "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(
        (&told["unix_ms"], &told["events"], &told["complete"]),
        (&().into(), &0.into(), &false.into())
    );
    fs::write(&path, bytes).unwrap();
    assert!(
        json(&["trace", "summary", text_of(&path), "--json"])["unix_ms"].as_u64() > Some(1_600_000_000_000)
    );
}

#[test]
fn a_program_that_is_killed_leaves_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let (path, model) = (dir.path().join("chat.trace"), tales_with_a_template(dir.path()));
    let args = ["run", text_of(&model), "-n", "3", "--trace", text_of(&path)];
    let mut child = granule(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"Once upon a time\n").unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    // It waits for the next line now, for ever.
    let part = dir.path().join("chat.trace.part");
    let began = Instant::now();
    loop {
        let there = Reader::new(File::open(&part).unwrap());
        let mut events = there.into_iter().flatten().filter_map(|record| Some(record.ok()?.event));
        if events.any(|event| matches!(event, Event::Mark { text } if text == "token 3")) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the last token is not written");
        sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let told = output(&["trace", "summary", text_of(&part)]);
    let said = String::from_utf8_lossy(&told.stdout);
    assert!(said.starts_with("granule run chat.gguf\n") && said.contains("INCOMPLETE"), "{said}");
}

#[test]
fn only_times_are_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("huge.trace");
    let tracer = Tracer::new();
    let recorder = Recorder::start(&tracer, File::create(&path).unwrap(), "huge").unwrap();
    let (device, owner, size) = (DeviceId(0), OwnerId(0), Bytes::new(u64::MAX));
    tracer.emit(|| Event::Charge { device, owner, size });
    recorder.finish().unwrap();
    let (_, columns) = page_data(&stdout(&["trace", "view", text_of(&path), "-o", "-"]));
    for size in ["charge.size", "held.bytes", "used.bytes"] {
        assert_eq!(columns[size], [u64::MAX as f64], "{size}");
    }
    assert_eq!(columns["charge.to"], [f64::INFINITY]);
}
