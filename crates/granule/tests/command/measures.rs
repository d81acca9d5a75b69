//! `info`, `tokenize`, `perplexity` and `bench`.

use crate::make::{Made, Shape};
use crate::{TALES, json, output, stderr, stdout, text_of};

#[test]
fn ids_come_with_the_start_token_and_special_tokens() {
    let ids = |text| json(&["tokenize", TALES, text, "--json"]);
    assert_eq!(
        ids("Once upon a time"),
        serde_json::json!([1, 381, 555, 968, 982, 989, 264, 263, 260, 977, 981, 969])
    );
    assert_eq!(ids("</s>"), serde_json::json!([1, 2]));
    assert_eq!(ids(""), serde_json::json!([1]));
    assert_eq!(ids("-x").as_array().unwrap()[0], 1);
    let table = stdout(&["tokenize", TALES, "Once\n"]);
    assert_eq!(table.lines().next().unwrap().trim(), "1  <s>");
}

#[test]
fn info_tells_what_the_file_is() {
    let table = stdout(&["info", TALES]);
    for word in
        ["tales-5m", "llama, 4,984,064 weights", "4 query, 2 key-value", "1,024 tokens", "q8_0: 43 tensors"]
    {
        assert!(table.contains(word), "no `{word}` in\n{table}");
    }
    assert!(table.trim_end().ends_with("yes"), "{table}");
    let all = stdout(&["info", TALES, "--verbose"]);
    assert!(all.contains("blk.5.ffn_down.weight") && all.contains("tokenizer.ggml.tokens"));
    let json = json(&["info", TALES, "--json"]);
    assert_eq!(json["runs"], true);
    assert_eq!(json["n_weights"], 4_984_064);
    assert_eq!(json["n_vocab"], 1024);
    // 6 layers, keys and values of 2 heads of 64, 2 bytes each.
    assert_eq!(json["kv_bytes_per_token"]["f16"], 6 * 2 * 2 * 64 * 2);
}

#[test]
fn perplexity_scores_the_second_half_of_each_window() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    std::fs::write(
        &file,
        "Once upon a time the baker Mia lived near the harbor. Mia loved the dog Shadow. ".repeat(80),
    )
    .unwrap();
    let args = ["perplexity", TALES, text_of(&file), "--ctx-size", "512", "--chunks", "3", "--json"];
    let measured = json(&args);
    assert_eq!((&measured["chunks"], &measured["tokens"]), (&3.into(), &(3 * 255).into()));
    let ppl = measured["ppl"].as_f64().unwrap();
    assert!(ppl > 1.0 && ppl < 50.0, "{ppl}");
    let sentence = stdout(&args[..args.len() - 1]);
    assert!(sentence.contains(&format!("{ppl:.4}")), "{sentence}");
    let q4_0 = json(&[&args[..], &["--kv-cache-type", "q4_0"]].concat())["ppl"].as_f64().unwrap();
    assert!(q4_0 != ppl && (q4_0 / ppl - 1.0).abs() < 0.2, "{q4_0} and {ppl}");
}

#[test]
fn bench_measures_at_each_depth() {
    let args = [
        "bench",
        TALES,
        "--prompt",
        "16",
        "--gen",
        "4",
        "--depth",
        "0,32",
        "--repeat",
        "3",
        "--cache-type-v",
        "q8_0",
    ];
    let all = json(&[&args[..], &["--json"]].concat());
    let all = all.as_array().unwrap();
    let tests: Vec<_> =
        all.iter().map(|m| (m["test"].as_str().unwrap(), m["depth"].as_u64().unwrap())).collect();
    assert_eq!(tests, [("pp16", 0), ("tg4", 0), ("pp16", 32), ("tg4", 32)]);
    for m in all {
        assert_eq!((m["cache_type_k"].as_str(), m["cache_type_v"].as_str()), (Some("f16"), Some("q8_0")));
        let mut runs: Vec<f64> = m["runs"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
        runs.sort_by(f64::total_cmp);
        assert_eq!(runs.len(), 3);
        assert_eq!(m["tokens_per_second"].as_f64().unwrap(), runs[1]);
        assert!(m["threads"].as_u64().unwrap() >= 1);
    }
    assert_eq!(stdout(&args).lines().count(), 5);
}

#[test]
fn bench_decodes_sequences_at_once() {
    let args = ["bench", TALES, "--prompt", "8", "--gen", "3", "--depth", "0,40", "--repeat", "2"];
    let args = [&args[..], &["--parallel", "5,1", "--batch-size", "4", "--threads", "1"]].concat();
    let all = json(&[&args[..], &["--threads-batch", "2", "--json"]].concat());
    let number = |m: &serde_json::Value, key: &str| m[key].as_u64().unwrap();
    let kind = |m: &serde_json::Value| {
        (
            m["test"].as_str().unwrap().to_owned(),
            number(m, "depth"),
            number(m, "parallel"),
            number(m, "threads"),
        )
    };
    let expected = [0, 40].map(|at| [("pp8", at, 1, 2), ("tg3", at, 1, 1), ("tg3", at, 5, 2)]).concat();
    let expected: Vec<_> =
        expected.into_iter().map(|(test, at, n, threads)| (test.to_owned(), at, n, threads)).collect();
    assert_eq!(all.as_array().unwrap().iter().map(kind).collect::<Vec<_>>(), expected);
    for m in all.as_array().unwrap() {
        let (every, each) =
            (m["tokens_per_second"].as_f64().unwrap(), m["tokens_per_second_each"].as_f64().unwrap());
        assert!((every / each - number(m, "parallel") as f64).abs() < 1e-9);
        // All sequences in one step.
        assert!(number(m, "n_batch") >= 5);
    }
    let table = stdout(&args);
    assert_eq!(table.lines().count(), 7, "{table}");
    assert!(table.lines().next().unwrap().contains("parallel"), "{table}");
}

/// What cannot fit is refused before anything is computed; what turns out not to fit is the bank's error.
#[test]
fn bench_says_how_many_sequences_are_too_many() {
    let args = ["bench", TALES, "--prompt", "0", "--gen", "2", "--repeat", "1", "--memory-limit", "40MiB"];
    let refused = |more: &[&str], words: &[&str]| {
        let output = output(&[&args[..], more].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(words.iter().all(|word| stderr(&output).contains(word)), "{}", stderr(&output));
    };
    refused(&["--depth", "1000", "--parallel", "50"], &["50 sequences of 1002 tokens", "are free"]);
    refused(&["--parallel", "18446744073709551615"], &["are free"]);
    // A granule each.
    refused(&["--parallel", "30"], &["out of memory"]);
    let both = output(&["bench", TALES, "--kv", "--parallel", "2"]);
    assert!(stderr(&both).contains("--parallel") && both.status.code() == Some(2), "{}", stderr(&both));
}

#[test]
fn bench_takes_several_types() {
    let args = ["bench", TALES, "--prompt", "0", "--gen", "2", "--repeat", "1", "--cache-type-k", "f16,q8_0"];
    let all = json(&[&args[..], &["--kv-cache-type", "f32", "--json"]].concat());
    let of = |m: &serde_json::Value, key: &str| m[key].as_str().unwrap().to_owned();
    let pairs: Vec<_> =
        all.as_array().unwrap().iter().map(|m| (of(m, "cache_type_k"), of(m, "cache_type_v"))).collect();
    assert_eq!(pairs, [("f16".into(), "f32".into()), ("q8_0".into(), "f32".into())]);
}

/// Heads of 48 hold no blocks of 32: left out by name where everything is compared, an error where they were asked for.
#[test]
fn bench_says_what_it_leaves_out() {
    let dir = tempfile::tempdir().unwrap();
    let model = Made::new(&Shape { head_dim: Some(48), ..Shape::default() }).write(dir.path());
    let quick =
        ["bench", text_of(&model), "--kv", "--prompt", "0", "--gen", "2", "--depths", "0", "--repeat", "1"];
    let every = output(&[&quick[..], &["--json"]].concat());
    assert!(every.status.success(), "{}", stderr(&every));
    let pairs: serde_json::Value = serde_json::from_slice(&every.stdout).unwrap();
    assert_eq!(pairs.as_array().unwrap().len(), 9);
    let said = stderr(&every);
    assert_eq!(said.lines().count(), 2, "{said}");
    for kv_type in ["q8_0", "q4_0"] {
        assert!(said.lines().any(|line| line.starts_with("left out: ") && line.contains(kv_type)), "{said}");
    }
    for named in ["--cache-type-k", "--cache-type-v", "--kv-cache-type"] {
        let refused = output(&[&quick[..], &[named, "q4_0"]].concat());
        assert_eq!(refused.status.code(), Some(1), "{named}");
        assert!(stderr(&refused).contains("q4_0 needs a head dim"), "{named}: {}", stderr(&refused));
    }
    // Keys that are possible were asked for; which values are left out is said.
    let some = output(&[&quick[..], &["--cache-type-k", "bf16"]].concat());
    assert!(some.status.success() && stderr(&some).lines().count() == 2, "{}", stderr(&some));
}

#[test]
fn bench_compares_pairs_of_types() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    let text = "Once upon a time the baker Mia lived near the harbor. Mia loved the dog Shadow. ";
    std::fs::write(&file, text.repeat(20)).unwrap();
    let quick = ["bench", TALES, "--kv", "--prompt", "8", "--gen", "2", "--depths", "16,0", "--repeat", "1"];
    let types = ["--cache-type-k", "f16,q4_0", "--cache-type-v", "q8_0"];
    let text = ["--text", text_of(&file), "--ctx-size", "64", "--chunks", "2"];
    let args = [&quick[..], &types, &text].concat();
    let all = json(&[&args[..], &["--json"]].concat());
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 2);
    for (pair, (k, bytes, transformed)) in
        all.iter().zip([("f16", 6 * (256 + 136), false), ("q4_0", 6 * (72 + 136), true)])
    {
        assert_eq!((pair["cache_type_k"].as_str(), pair["cache_type_v"].as_str()), (Some(k), Some("q8_0")));
        // Planes start at multiples of 16 bytes.
        let held = pair["bytes_per_token"].as_u64().unwrap();
        assert!((bytes..bytes + 6 * 64).contains(&held), "{held}");
        assert_eq!(pair["transformed"], transformed);
        let depths = pair["depths"].as_array().unwrap();
        assert_eq!(depths.iter().map(|d| d["depth"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 16]);
        for depth in depths {
            assert_eq!((&depth["prompt"]["n_tokens"], &depth["decode"]["n_tokens"]), (&8.into(), &2.into()));
            assert!(depth["decode"]["tokens_per_second"].as_f64().unwrap() > 0.0);
        }
        assert_eq!(pair["perplexity"]["tokens"], 2 * 31);
        let ppl = pair["perplexity"]["ppl"].as_f64().unwrap();
        let types = ["--cache-type-k", k, "--cache-type-v", "q8_0", "--json"];
        let alone = ["perplexity", TALES, text_of(&file), "--ctx-size", "64", "--chunks", "2"];
        assert_eq!(json(&[&alone[..], &types].concat())["ppl"].as_f64().unwrap(), ppl);
    }
    let table = stdout(&args);
    assert_eq!(table.lines().count(), 4, "{table}");
    for word in ["bytes/token", "pp8 @ 0", "tg2 @ 16", "perplexity"] {
        assert!(table.lines().next().unwrap().contains(word), "{table}");
    }
    // Every pair where none is named; and no perplexity where there is no text.
    let every = json(&[&quick[..], &["--json"]].concat());
    assert_eq!(every.as_array().unwrap().len(), 25);
    assert!(every[0].get("perplexity").is_none());
    for (more, word) in [
        (&["--text", "no-such.txt"][..], "no-such.txt"),
        (&["--cache-type-k", "q8_0,q5_9"], "q5_9"),
        (&["--depths", "18446744073709551615"], "depth"),
    ] {
        let output = output(&[&quick[..], more].concat());
        assert!(!output.status.success() && stderr(&output).contains(word), "{}", stderr(&output));
    }
    // A text without one window is refused before anything is measured.
    let refused = output(&[&quick[..], &["--text", text_of(&file), "--ctx-size", "100000"]].concat());
    assert!(refused.stdout.is_empty() && stderr(&refused).contains("100000"), "{}", stderr(&refused));
    let no_kv = output(&["bench", TALES, "--text", text_of(&file)]);
    assert!(stderr(&no_kv).contains("--kv"), "{}", stderr(&no_kv));
}
