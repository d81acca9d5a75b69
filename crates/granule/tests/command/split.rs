//! Layers that are split over several devices, and layers in turn on them: `--tensor-parallel`, `--tensor-split`, `--device host,host`.

use crate::bad_input::refused;
use crate::chat::tales_with_a_template;
use crate::make::{Made, Shape};
use crate::{TALES, json, output, stderr, stdout, text_of, with_stdin};

const RUN: [&str; 9] = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "-n", "24", "--precise"];

/// What a command that ends well writes to stdout, and what it says on stderr.
#[track_caller]
fn told(args: &[&str]) -> (String, String) {
    let output = output(args);
    let said = stderr(&output);
    assert!(output.status.success(), "{args:?}: {said}");
    (String::from_utf8(output.stdout).unwrap(), said)
}

#[test]
fn a_tale_of_several_devices_is_that_of_one() {
    let tale = stdout(&RUN);
    for (flags, places) in [
        (&["--tensor-parallel", "2"][..], "layers 0 to 5 split over host ×2 (1:1)"),
        // Key-value heads are two, feed-forward elements many.
        (
            &["--tensor-parallel", "2", "--tensor-split", "3,1"],
            "layers 0 to 5 split over host ×2 (heads 1:1, feed-forward 3:1)",
        ),
        (&["--tensor-parallel", "4", "--threads", "1"], "layers 0 to 5 split over host ×4 (1:1:1:1)"),
        (&["--device", "host,host", "--tensor-parallel", "2"], "layers 0 to 5 split over host ×2 (1:1)"),
        (&["--device", "host,host"], "layers 0 to 2 on host:0, 3 to 5 on host:1"),
        (&["--device", "host,host", "--layer-split", "1,0"], "layers 0 to 5 on host:0"),
        (
            &["--device", "host,host,host", "--tensor-parallel", "3", "--tensor-split", "1,1,2"],
            "layers 0 to 5 split over host ×3 (1:1:2)",
        ),
        (
            &["--device", "host,host,host,host", "--tensor-parallel", "2", "--layer-split", "1,2"],
            "layers 0 to 1 split over host ×2 (1:1), 2 to 5 split over host ×2 (1:1)",
        ),
        (&["--tensor-parallel", "2", "--tensor-split", "free", "--memory-limit", "64MiB"], "(1:1)"),
        (&["--tensor-parallel", "2", "--no-mmap", "--no-repack"], "(1:1)"),
    ] {
        let (text, said) = told(&[&RUN[..], flags].concat());
        assert_eq!(text, tale, "{flags:?}");
        assert!(said.lines().count() == 1 && said.contains(places), "{flags:?}: {said}");
    }
    // One rank is no split, and says nothing.
    assert_eq!(stdout(&[&RUN[..], &["--tensor-parallel", "1"]].concat()), tale);
}

#[test]
fn memory_is_told_by_rank() {
    let split = ["--tensor-parallel", "2"];
    let (_, said) = told(&[&RUN[..], &split, &["--verbose"]].concat());
    for word in [
        "on host:0",
        "rank 0 of 2 (heads 0 to 1, key-value heads 0, feed-forward 0 to ",
        "rank 1 of 2 (heads 2 to 3, key-value heads 1, feed-forward ",
        " of 6 layers: weights ",
        "by rank 1 to the others so far, in ",
    ] {
        assert!(said.contains(word), "no `{word}` in\n{said}");
    }
    let (text, _) = told(&[&RUN[..], &split, &["--json"]].concat());
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let devices = value["memory"]["devices"].as_array().unwrap();
    assert_eq!(devices.len(), 2);
    let of = |name: &str| devices.iter().map(|device| device[name].as_u64().unwrap()).collect::<Vec<_>>();
    assert_eq!((of("layers"), devices[1]["device"].as_str()), (vec![6, 6], Some("host:1")));
    // Keys and values are halves; what is whole on one device is not on two.
    let one = json(&[&RUN[..], &["--json"]].concat());
    assert_eq!(of("kv_used").iter().sum::<u64>(), one["memory"]["kv_used"].as_u64().unwrap());
    assert_eq!(of("kv_used")[0], of("kv_used")[1]);
    let place = &value["placement"][0];
    assert_eq!((&place["layers"], &place["n_ranks"]), (&serde_json::json!([0, 5]), &2.into()));
    assert_eq!(place["device"], "host ×2");
    assert_eq!(place["ranks"][1]["device"], "host:1");
    assert_eq!(place["ranks"][1]["heads"], serde_json::json!([2, 3]));
    assert_eq!(place["ranks"][1]["vocab"][1], 1023);
    assert_eq!(one["placement"][0]["ranks"], serde_json::json!([]));
    // Twice a layer, of every token: half of its 256 numbers to the other rank, and half of the sum. The last one was not evaluated.
    let step = |tokens: u64| 6 * 2 * tokens * 256 * 4;
    let (prompt, generated) = (value["n_prompt"].as_u64().unwrap(), value["n_generated"].as_u64().unwrap());
    for (rank, traffic) in value["traffic"].as_array().unwrap().iter().enumerate() {
        assert_eq!(traffic["rank"], rank);
        assert_eq!(traffic["sent"].as_u64(), Some(step(prompt + generated - 1)), "{value}");
    }
    assert_eq!(one["traffic"], serde_json::json!([]));
}

#[test]
fn measures_and_info_take_the_same_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("text.txt");
    std::fs::write(&file, "Once upon a time the baker Mia lived near the harbor. ".repeat(60)).unwrap();
    let split = ["--tensor-parallel", "2", "--tensor-split", "1,1"];
    let args =
        ["perplexity", TALES, text_of(&file), "--ctx-size", "128", "--chunks", "2", "--json", "--precise"];
    let one = json(&args)["ppl"].as_f64().unwrap();
    let (measured, said) = told(&[&args[..], &split].concat());
    let measured: serde_json::Value = serde_json::from_str(&measured).unwrap();
    assert!((measured["ppl"].as_f64().unwrap() / one - 1.0).abs() < 1e-3, "{measured}, alone {one}");
    assert!(said.starts_with("layers 0 to 5 split over host ×2"), "{said}");
    assert_eq!(measured["placement"][0]["n_ranks"], 2);
    let bench = ["bench", TALES, "--prompt", "4", "--gen", "2", "--repeat", "1", "--json"];
    let (measured, _) = told(&[&bench[..], &split].concat());
    let measured: serde_json::Value = serde_json::from_str(&measured).unwrap();
    assert_eq!(measured[0]["device"], "host ×2");
    assert_eq!(measured[1]["placement"][0]["ranks"][0]["kv_heads"], serde_json::json!([0, 0]));
    let (text, _) = told(&[&bench[..8], &split].concat());
    assert!(text.starts_with("on host ×2\n"), "{text}");
}

/// Before anything is loaded `info` says what each rank will hold, and then it holds that.
#[test]
fn info_plans_for_each_rank() {
    let shown = stdout(&["info", TALES]);
    assert!(shown.contains("layers split") && shown.contains("over 2 to 4 devices"), "{shown}");
    assert!(!shown.contains("would need"), "{shown}");
    let split = ["--tensor-parallel", "2", "--ctx-size", "64", "--batch-size", "16"];
    let shown = stdout(&[&["info", TALES][..], &split].concat());
    assert!(shown.contains("layers 0 to 5 split over host ×2 (1:1)"), "{shown}");
    assert!(shown.contains("on host:1 for 64 tokens; rank 1 of 2 (heads 2 to 3, "), "{shown}");
    let planned = json(&[&["info", TALES, "--json"][..], &split].concat());
    assert_eq!(planned["tensor_parallel"], serde_json::json!([1, 2, 3, 4]));
    let planned = &planned["needs"];
    assert_eq!((&planned["n_ctx"], &planned["placement"][0]["n_ranks"]), (&64.into(), &2.into()));
    let flags = ["run", TALES, "-p", "Once upon a time", "--temp", "0", "--json"];
    let (held, _) = told(&[&flags[..], &split].concat());
    let held: serde_json::Value = serde_json::from_str(&held).unwrap();
    let (planned, held) =
        (planned["devices"].as_array().unwrap(), held["memory"]["devices"].as_array().unwrap());
    for (planned, held) in planned.iter().zip(held) {
        for part in ["device", "layers", "model", "kv_transform"] {
            assert_eq!(planned[part], held[part], "{part}");
        }
        assert!(planned["total"].as_u64() >= held["total"].as_u64(), "{planned} {held}");
    }
}

#[test]
fn what_cannot_be_split_is_refused_with_what_can() {
    let run = &["run", TALES, "-p", "x"][..];
    for (flags, words) in [
        (&["--tensor-parallel", "5"][..], &["over 5 ranks", "possible: 1 to 4"][..]),
        (&["--tensor-parallel", "0"], &["--tensor-parallel", "1..=16"]),
        (&["--tensor-parallel", "17"], &["1..=16"]),
        (&["--tensor-split", "3,1"], &["--tensor-parallel"]),
        (&["--tensor-parallel", "2", "--tensor-split", "3,1,1"], &["3 shares", "--tensor-parallel 2"]),
        (&["--tensor-parallel", "2", "--tensor-split", "1,0"], &["every device has some of each layer"]),
        (&["--tensor-parallel", "2", "--tensor-split", "half"], &["shares such as 3,1, or free"]),
        (&["--tensor-parallel", "2", "--device", "host,host,host"], &["needs 2 devices", "host,host,host"]),
        (&["--tensor-parallel", "2", "--gpu-layers", "3"], &["--gpu-layers without a GPU"]),
        (&["--tensor-parallel", "2", "--layer-split", "1,1"], &["--layer-split has 2 shares"]),
        (&["--tensor-parallel", "2", "--memory-limit", "2MiB"], &["2.0 MiB"]),
    ] {
        refused(&[run, flags].concat(), words);
    }
    // Blocks of 256 over heads of 64: two of these are no whole block.
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape {
        n_embd: 256,
        n_heads: 4,
        n_kv_heads: 2,
        n_ff: 512,
        weights: vec![granule_quant::DType::Q4_K],
        ..Shape::default()
    };
    let path = Made::new(&shape).write(dir.path());
    let info = stdout(&["info", text_of(&path)]);
    assert!(info.contains("layers split") && info.contains("not over several devices"), "{info}");
    let run = ["run", text_of(&path), "-p", "x", "--tensor-parallel", "2"];
    refused(&run, &["key-value heads cannot be split over 2 ranks", "possible: 1"]);
}

/// A chat in a pipe, whose second answer goes on from what is in the ranks' caches.
#[test]
fn a_chat_of_ranks_is_that_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = tales_with_a_template(dir.path());
    let chat = |more: &[&str]| {
        let run = ["run", text_of(&model), "--temp", "0", "-n", "12", "--precise"];
        let output = with_stdin(&[&run[..], more].concat(), b"Once upon a time\nAnd then?\n");
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let text = chat(&["--tensor-parallel", "2"]);
    assert!(text.lines().count() >= 2, "{text}");
    assert_eq!(text, chat(&[]));
}

/// A file that ranks have written goes on with one device, and with other ranks.
#[test]
fn a_prompt_is_kept_for_any_split() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.cache");
    let args = [&RUN[..], &["--prompt-cache", text_of(&file)]].concat();
    let tale = stdout(&RUN);
    let (text, _) = told(&[&args[..], &["--tensor-parallel", "2"]].concat());
    assert_eq!(text, tale);
    for more in
        [&[][..], &["--tensor-parallel", "2"], &["--tensor-parallel", "3"], &["--device", "host,host"]]
    {
        let (text, said) = told(&[&args[..], more].concat());
        assert_eq!(text, tale, "{more:?}");
        assert!(said.contains("reused"), "{more:?}: {said}");
    }
}
