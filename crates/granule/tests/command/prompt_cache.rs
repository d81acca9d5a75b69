//! `granule run --prompt-cache`.

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
    // Nowhere to put it.
    let nowhere = dir.path().join("no/such/folder");
    let output = run(&nowhere, TEXT, &[]);
    assert!(!output.status.success() && stderr(&output).contains("no/such/folder"), "{}", stderr(&output));
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
