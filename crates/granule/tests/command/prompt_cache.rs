//! `granule run --prompt-cache`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Output;

use crate::chat::tales_with_a_template;
use crate::interrupts::interrupt;
use crate::{TALES, granule, json, output, stderr, text_of, with_stdin};

const TEXT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";
const MORE: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick. Mia loved the dog Shadow.";

fn run(file: &Path, prompt: &str, more: &[&str]) -> Output {
    let args = ["run", TALES, "-p", prompt, "--temp", "0", "-n", "20", "--prompt-cache", text_of(file)];
    output(&[&args[..], more].concat())
}

/// What a run that ends well writes, and how many of how many tokens it says were reused.
#[track_caller]
fn reused(output: &Output) -> (String, usize, usize) {
    let said = stderr(output);
    assert!(output.status.success(), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let numbers: Vec<usize> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(said.starts_with("prompt cache: ") && numbers.len() == 2, "{said}");
    (String::from_utf8(output.stdout.clone()).unwrap(), numbers[0], numbers[1])
}

#[test]
fn a_prompt_is_computed_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.state");
    let tokens = |text| json(&["tokenize", TALES, text, "--json"]).as_array().unwrap().len();
    for types in [&[][..], &["--kv-cache-type", "q4_0"]] {
        let (text, none, all) = reused(&run(&file, TEXT, types));
        assert_eq!((none, all), (0, tokens(TEXT)));
        let saved = std::fs::read(&file).unwrap();
        assert_eq!(reused(&run(&file, TEXT, types)), (text.clone(), all - 1, all));
        // A longer prompt is saved, a shorter one is part of it, another one takes its place.
        assert_eq!(std::fs::read(&file).unwrap(), saved);
        let (_, some, longer) = reused(&run(&file, MORE, types));
        assert!(some >= all - 1 && some <= all && longer == tokens(MORE), "{some} of {longer}");
        let saved = std::fs::read(&file).unwrap();
        assert_eq!(reused(&run(&file, TEXT, types)).1, all - 1);
        assert_eq!(std::fs::read(&file).unwrap(), saved, "what is in it already is not saved again");
        let (_, start, _) = reused(&run(&file, "Long ago", types));
        assert_eq!(start, 1, "the start token");
        std::fs::remove_file(&file).unwrap();
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing else was left");
}

#[test]
fn a_chat_goes_on_where_the_last_one_was() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (tales_with_a_template(dir.path()), dir.path().join("chat.state"));
    let args = ["run", text_of(&model), "--temp", "0", "-n", "20", "--stop", "\n"];
    let args = [&args[..], &["--prompt-cache", text_of(&file)]].concat();
    let last = |output: &Output| {
        assert!(output.status.success(), "{}", stderr(output));
        let said = stderr(output);
        let line = said.lines().last().unwrap().to_owned();
        line.split(' ').find_map(|word| word.parse::<usize>().ok()).unwrap()
    };
    let first = with_stdin(&args, b"Once upon a time\n");
    assert_eq!(last(&first), 0);
    let again = with_stdin(&args, b"Once upon a time\n");
    assert_eq!(again.stdout, first.stdout);
    assert!(last(&again) > 5, "{}", stderr(&again));
}

/// A chat's file is written when the first prompt was computed, when there is twice as much, and at the end; not for each message.
#[test]
fn a_chat_is_kept_without_writing_all_of_it_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let (model, file) = (tales_with_a_template(dir.path()), dir.path().join("chat.state"));
    let args = ["run", text_of(&model), "--temp", "0", "-n", "20", "--stop", "\n"];
    let mut child = granule(&[&args[..], &["--prompt-cache", text_of(&file)]].concat())
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut lengths = Vec::new();
    for message in 0..12 {
        writeln!(stdin, "Message {message}: the baker Mia and the sailor Leo.").unwrap();
        stdin.flush().unwrap();
        answers.next().unwrap().unwrap();
        lengths.push(std::fs::metadata(&file).unwrap().len());
    }
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let last = std::fs::metadata(&file).unwrap().len();
    let (first, most) = (lengths[0], lengths[11]);
    lengths.dedup();
    // Doubled three times, from one message to eight and more.
    assert!((3..=5).contains(&lengths.len()), "{lengths:?}");
    assert!(first < lengths[1] && most < last, "{lengths:?}, {last}");
    // What was said before is taken from there.
    let said: String = (0..12).map(|i| format!("Message {i}: the baker Mia and the sailor Leo.\n")).collect();
    let again = with_stdin(&[&args[..], &["--prompt-cache", text_of(&file)]].concat(), said.as_bytes());
    let (_, reused, all) = reused(&again);
    assert_eq!(reused, all - 1);
}

/// What is not saved is said, and the answer is there all the same.
#[test]
fn what_cannot_be_written_is_found_before_anything_is_computed() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("no/such/folder");
    for (file, word) in [(&*nowhere, "no/such/folder"), (dir.path(), "no state file")] {
        // A model that is not there would be found first otherwise.
        let args = ["run", "no-such-model.gguf", "-p", TEXT, "--prompt-cache", text_of(file)];
        let refused = output(&args);
        assert_eq!(refused.status.code(), Some(1));
        assert!(refused.stdout.is_empty());
        assert!(stderr(&refused).contains(word), "{}", stderr(&refused));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn an_answer_comes_also_where_the_prompt_is_not_saved() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.state");
    let (text, ..) = reused(&run(&file, TEXT, &[]));
    let saved = std::fs::read(&file).unwrap();
    // The file can be read; nothing can be put beside it.
    std::fs::create_dir(dir.path().join("prompt.state.part")).unwrap();
    assert_eq!(reused(&run(&file, TEXT, &[])).0, text, "there is nothing to save");
    let more = run(&file, MORE, &[]);
    assert_eq!(more.status.code(), Some(1));
    let said: Vec<String> = stderr(&more).lines().map(str::to_owned).collect();
    assert!(said[0].starts_with("prompt cache: ") && said[1].starts_with("warning: "), "{said:?}");
    assert!(said[1].contains("prompt.state.part") && said[2].contains("was not saved"), "{said:?}");
    let whole = output(&["run", TALES, "-p", MORE, "--temp", "0", "-n", "20"]);
    assert_eq!(more.stdout, whole.stdout);
    assert_eq!(std::fs::read(&file).unwrap(), saved);
}

#[test]
fn what_does_not_fit_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.state");
    reused(&run(&file, TEXT, &["--kv-cache-type", "q4_0"]));
    let good = std::fs::read(&file).unwrap();
    let refused = |more: &[&str], words: &[&str]| {
        let output = run(&file, TEXT, more);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty() && said.lines().count() == 1, "{said}");
        for word in ["error: --prompt-cache ", text_of(&file)].iter().chain(words) {
            assert!(said.contains(word), "`{word}` is not in: {said}");
        }
    };
    refused(&[], &["q4_0", "--cache-type-k"]);
    refused(&["--kv-cache-type", "q4_0", "--kv-transform", "none"], &["transform", "--kv-transform"]);
    refused(&["--kv-cache-type", "q4_0", "-c", "16"], &["16", "--ctx-size"]);
    assert_eq!(std::fs::read(&file).unwrap(), good);
    std::fs::write(&file, &good[..good.len() - 7]).unwrap();
    refused(&["--kv-cache-type", "q4_0"], &["cut", "remove it"]);
    std::fs::write(&file, "a letter").unwrap();
    refused(&[], &["no state file", "another file"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"a letter");
    // Another model, of the same file but for one weight in each block.
    let other = dir.path().join("other.gguf");
    let mut bytes = std::fs::read(TALES).unwrap();
    let half = bytes.len() / 2;
    bytes[half..].iter_mut().step_by(34).for_each(|byte| *byte ^= 1);
    std::fs::write(&other, bytes).unwrap();
    std::fs::write(&file, &good).unwrap();
    let args =
        ["run", text_of(&other), "-p", TEXT, "--kv-cache-type", "q4_0", "--prompt-cache", text_of(&file)];
    let said = stderr(&output(&args));
    assert!(said.contains("another model") && said.contains("each model"), "{said}");
}

#[test]
fn ctrl_c_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.state");
    reused(&run(&file, TEXT, &[]));
    let good = std::fs::read(&file).unwrap();
    // A prompt that takes its time, in batches of one token.
    let long = "and the sailor Leo ".repeat(150);
    let args = ["run", TALES, "-p", &long, "-b", "1", "-n", "4", "--prompt-cache", text_of(&file)];
    let child = granule(&args).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", stderr(&output));
    assert_eq!(std::fs::read(&file).unwrap(), good);
    assert!(!dir.path().join("prompt.state.part").exists());
}
