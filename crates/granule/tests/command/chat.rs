//! `granule run` as a chat, in a pipe: each line of stdin is a message.

use std::path::{Path, PathBuf};

use granule_llama::gguf::{Gguf, GgufWriter, Value};

use crate::{TALES, output, stderr, stdout, text_of, with_stdin};

/// The tales with a chat template: the conversation as it stands, a line each. Behind "Once upon a time" comes a tale.
pub(crate) fn tales_with_a_template(dir: &Path) -> PathBuf {
    let file = std::fs::read(TALES).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let mut writer = GgufWriter::new(3).unwrap();
    for (key, value) in gguf.metadata().iter() {
        writer.set(key, value.clone()).unwrap();
    }
    let template = "{{ bos_token }}{% for m in messages %}{{ m.content }}\n{% endfor %}";
    writer.set("tokenizer.chat_template", Value::String(template.to_owned())).unwrap();
    for tensor in gguf.tensors() {
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty, &file[gguf.data_range(tensor)]).unwrap();
    }
    let path = dir.join("chat.gguf");
    std::fs::write(&path, writer.to_bytes()).unwrap();
    path
}

const GREEDY: [&str; 4] = ["--temp", "0", "-n", "20"];

#[test]
fn each_line_is_a_message_and_has_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let args = [&["run", text_of(&model)], &GREEDY[..], &["--stop", "\n"]].concat();
    let one = with_stdin(&args, b"Once upon a time\n");
    assert!(one.status.success() && one.stderr.is_empty(), "{}", stderr(&one));
    let two = with_stdin(&args, b"Once upon a time\r\n\nAnd then?");
    let (one, two) = (String::from_utf8(one.stdout).unwrap(), String::from_utf8(two.stdout).unwrap());
    assert!(one.len() > 5 && one.lines().count() == 1, "{one}");
    assert_eq!(two.lines().count(), 2, "{two}");
    // Each answer is that to the conversation so far, whatever of it was in the cache already.
    assert!(two.starts_with(&one), "{two}");
    let chat =
        [&["run", text_of(&model), "--chat", "-p", "Once upon a time"], &GREEDY[..], &["--stop", "\n"]]
            .concat();
    assert_eq!(stdout(&chat), one);
}

#[test]
fn json_is_one_object_for_each_answer() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let args = [&["run", text_of(&model), "--json"], &GREEDY[..]].concat();
    let output = with_stdin(&args, b"Once upon a time\nAnd then?\n");
    let lines: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 2);
    // What the second prompt has in common with what is in the cache was not computed again.
    assert!(lines[1]["n_prompt"].as_u64().unwrap() < lines[1]["memory"]["n_tokens"].as_u64().unwrap() - 25);
}

#[test]
fn a_long_chat_forgets_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let args = [&["run", text_of(&model), "-c", "128"], &GREEDY[..]].concat();
    let output = with_stdin(&args, "Once upon a time there was a dog.\n".repeat(8).as_bytes());
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("forgotten"), "{}", stderr(&output));
}

#[test]
fn a_model_without_a_template_does_not_chat() {
    for args in [&["run", TALES][..], &["run", TALES, "--chat", "-p", "Hello"]] {
        let output = output(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("chat template"), "{}", stderr(&output));
    }
}

#[test]
fn stdin_that_is_no_text_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let output = with_stdin(&["run", text_of(&model)], b"\xff\xfe\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("UTF-8"), "{}", stderr(&output));
}
