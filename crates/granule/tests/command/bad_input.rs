//! Whatever is wrong: one clear line on stderr, nothing on stdout, and a status that is not zero.

use std::path::Path;

use crate::{TALES, output, stderr, text_of};

/// Runs `args`, which must fail in one line that has all of `words` in it.
#[track_caller]
pub(crate) fn refused(args: &[&str], words: &[&str]) {
    let output = output(args);
    let said = stderr(&output);
    assert!(matches!(output.status.code(), Some(1 | 2)), "{args:?}: {:?}, {said}", output.status);
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("error: ") && !said.contains("panicked"), "{said}");
    for word in words {
        assert!(said.contains(word), "`{word}` is not in: {said}");
    }
}

fn file(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("bad.gguf");
    std::fs::write(&path, bytes).unwrap();
    text_of(&path).to_owned()
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let good = std::fs::read(TALES).unwrap();
    let commands: [&[&str]; 5] = [
        &["run", "FILE", "-p", "x"],
        &["info", "FILE"],
        &["tokenize", "FILE", "x"],
        &["bench", "FILE"],
        &["perplexity", "FILE", TALES],
    ];
    let mut version_1 = good.clone();
    version_1[4] = 1;
    let mut big_endian = good.clone();
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    let files: [(&[u8], &str); 6] = [
        (b"", "cut short"),
        (b"GGUF", "cut short"),
        (b"not a model, but some text", "not a GGUF file"),
        (&good[..good.len() / 2], "cut short"),
        (&version_1, "version 1"),
        (&big_endian, "big-endian"),
    ];
    for command in commands {
        for (bytes, word) in files {
            let path = file(dir.path(), bytes);
            let args: Vec<&str> =
                command.iter().map(|&a| if a == "FILE" { path.as_str() } else { a }).collect();
            // The perplexity command reads its text first, and a model is none.
            let word = if command[0] == "perplexity" { "UTF-8" } else { word };
            refused(&args, &[word]);
        }
        let args: Vec<&str> = command.iter().map(|&a| if a == "FILE" { "no-such.gguf" } else { a }).collect();
        if command[0] != "perplexity" {
            refused(&args, &["no-such.gguf", "No such file"]);
        }
    }
    refused(&["run", "/", "-p", "x"], &["directory"]);
    refused(&["perplexity", TALES, "no-such.txt"], &["no-such.txt"]);
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    refused(&["perplexity", TALES, text_of(&short)], &["512"]);
}

#[test]
fn limits() {
    let long = "word ".repeat(400);
    refused(&["run", TALES, "-p", &long, "-c", "100"], &["100"]);
    refused(&["run", TALES, "-p", "x", "--memory-limit", "1MiB"], &["weights", "1.0 MiB"]);
    refused(&["run", TALES, "-p", &long[..1500], "--memory-limit", "9MiB"], &["out of memory", "9.0 MiB"]);
    refused(&["bench", TALES, "--depth", "99999999999999999"], &[]);
    refused(&["bench", TALES, "--depth", "18446744073709551615"], &["depth"]);
}

#[test]
fn flags() {
    refused(&["run", TALES, "-p", "x", "--temp", "-1"], &["temp"]);
    refused(&["run", TALES, "-p", "x", "--temp", "NaN"], &["temp"]);
    refused(&["run", TALES, "-p", "x", "--top-p", "2"], &["top_p"]);
    refused(&["run", TALES, "-p", "x", "--kv-cache-type", "q5_9"], &["q5_9", "q8_0"]);
    refused(&["run", TALES, "-p", "x", "--ctx-size", "0"], &["--ctx-size"]);
    refused(&["run", TALES, "-p", "x", "--threads", "0"], &["--threads"]);
    refused(&["run", TALES, "-p", "x", "--threads-batch", "0"], &["--threads-batch"]);
    refused(&["bench", TALES, "--parallel", "0"], &["--parallel"]);
    refused(&["run", TALES, "-p", "x", "--memory-limit", "lots"], &["lots"]);
    refused(&["run", TALES, "--echo"], &["--prompt"]);
    refused(&["run"], &["MODEL"]);
    refused(&["sing", TALES], &["sing"]);
    refused(&["run", TALES, "-p", "x", "--temperature", "1"], &["--temperature"]);
}

#[cfg(unix)]
#[test]
fn arguments_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let prompt = std::ffi::OsStr::from_bytes(b"\xff\xfe");
    let output = crate::granule(&["run", TALES, "-p"]).arg(prompt).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}
