//! `granule run` with a prompt.

use crate::{TALES, json, output, stderr, stdout};

/// From `oracles/greedy.json`: a prompt for the q8_0 file, and the text that any greedy engine's must begin with.
const PROMPT: &str = "Long ago the teacher Nora, the sailor Kofi and the painter Hana lived near the castle Redcliff. \
    The teacher Nora had the fox Pepper and the kite Comet. In her bag there were pears, nine of \
    them. Kofi kept the drum Thunder by the door, and the goat Patch followed his steps all day. \
    Hana loved the cat Marble and the lamp Ember. On Friday Hana took the lamp Ember to the mill \
    Oakham. The fox Pepper slept beside the kite Comet. That night everyone slept well.\nQuestion: \
    What was the name of the drum? Answer: The drum Thunder.\nQuestion: Who was the teacher? Answer:";
const SAFE_TEXT: &str = "The teacher Nora.\nQuestion: What was the name of the cat? Answer: The cat Marble.\nQuestion: \
    What was the name of the cat? Answer: The cat Marble.\nQuestion:";

const GREEDY: [&str; 4] = ["--temp", "0", "-n", "64"];

fn greedy(more: &[&str]) -> Vec<&'static str> {
    let more: Vec<&'static str> = more.iter().map(|m| &*m.to_string().leak()).collect();
    [&["run", TALES, "-p", PROMPT], &GREEDY[..], &more].concat()
}

#[test]
fn the_text_and_a_line_break_go_to_stdout_and_nothing_else_anywhere() {
    let text = stdout(&greedy(&[]));
    assert!(text.starts_with(SAFE_TEXT), "{text}");
    assert!(text.ends_with('\n') && !text.contains(PROMPT));
}

#[test]
fn echo_puts_the_prompt_in_front() {
    let text = stdout(&greedy(&[]));
    let echoed = stdout(&greedy(&["--echo"]));
    let rest = echoed.strip_prefix(PROMPT).unwrap();
    // Behind a prompt the space between the two is written; alone, the text begins without it.
    assert_eq!(rest.trim_start(), text);
}

#[test]
fn how_the_memory_is_filled_changes_no_text() {
    let text = stdout(&greedy(&[]));
    for more in [
        &["--threads", "1"][..],
        &["--threads", "2", "--threads-batch", "1"],
        &["--threads-batch", "3"],
        &["--no-mmap"],
        &["--ctx-size", "300"],
        &["--memory-limit", "64MiB"],
        &["--cache-type-k", "f16", "--cache-type-v", "f16"],
        &["--kv-cache-type", "f16"],
        &["--repeat-penalty", "1.0", "--top-k", "1"],
    ] {
        assert_eq!(stdout(&greedy(more)), text, "{more:?}");
    }
    for kv in ["f32", "bf16", "q8_0", "q4_0"] {
        assert!(stdout(&greedy(&["--kv-cache-type", kv])).starts_with("The teacher Nora."), "{kv}");
    }
    assert!(stdout(&greedy(&["-b", "7"])).starts_with("The teacher Nora."));
}

#[test]
fn a_seed_gives_the_same_text_again() {
    let drawn =
        |seed| stdout(&["run", TALES, "-p", "Once upon a time", "-n", "40", "--temp", "1.5", "--seed", seed]);
    assert_eq!(drawn("7"), drawn("7"));
    assert_ne!(drawn("7"), drawn("8"));
}

#[test]
fn a_stop_text_ends_it_and_is_left_out() {
    assert_eq!(stdout(&greedy(&["--stop", "\n"])), "The teacher Nora.\n");
    assert_eq!(stdout(&greedy(&["--stop", "never", "--stop", "er Nora"])), "The teach\n");
}

#[test]
fn json_says_how_it_went() {
    let json = json(&greedy(&["--json"]));
    assert!(json["text"].as_str().unwrap().starts_with(SAFE_TEXT));
    assert_eq!(json["finish"], "length");
    assert_eq!(json["n_prompt"], 140);
    assert_eq!(json["n_generated"], 64);
    assert_eq!(json["tokens"].as_array().unwrap().len(), 64);
    let memory = &json["memory"];
    let parts = ["model", "kv", "activations", "scratch"].map(|part| memory[part].as_u64().unwrap());
    assert_eq!(parts.iter().sum::<u64>(), memory["total"].as_u64().unwrap());
    // The last token was written and not computed.
    assert_eq!(memory["n_tokens"], 140 + 63);
}

#[test]
fn verbose_ends_with_where_the_memory_went() {
    let quiet = stdout(&greedy(&[]));
    let output = output(&greedy(&["--verbose"]));
    assert_eq!(String::from_utf8(output.stdout.clone()).unwrap(), quiet);
    let said = stderr(&output);
    for word in ["prompt", "decode", "t/s", "model", "kv cache", "activations", "scratch"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(said.trim_end().lines().last().unwrap().starts_with("total"), "{said}");
}

#[test]
fn a_full_context_ends_the_text_and_says_so() {
    let output = output(&["run", TALES, "-p", "Once upon a time", "--temp", "0", "-c", "20"]);
    assert!(output.status.success());
    assert!(stderr(&output).contains("the context of 20 tokens is full"));
    assert!(!output.stdout.is_empty());
}

#[test]
fn no_tokens_are_a_line_break() {
    assert_eq!(stdout(&["run", TALES, "-p", "Once", "-n", "0"]), "\n");
}
