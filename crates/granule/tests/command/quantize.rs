//! `granule quantize`.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use granule_llama::gguf::{Gguf, GgufWriter};
use granule_quant::DType;

use crate::bad_input::refused;
use crate::interrupts::interrupt;
use crate::make::{Made, Shape};
use crate::{TALES, granule, json, output, stderr, stdout, text_of};

/// The model that comes with granule-llama, its weights decoded.
fn plain_tales(dir: &Path) -> PathBuf {
    let file = std::fs::read(TALES).unwrap();
    let gguf = Gguf::parse(&file).unwrap();
    let decoded: Vec<Vec<u8>> = gguf
        .tensors()
        .iter()
        .map(|tensor| {
            let mut numbers = vec![0.0f32; tensor.dims.iter().product::<u64>() as usize];
            granule_quant::decode(tensor.ty.dtype().unwrap(), &file[gguf.data_range(tensor)], &mut numbers)
                .unwrap();
            numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
        })
        .collect();
    let mut writer = GgufWriter::new(3).unwrap();
    for (key, value) in gguf.metadata().iter() {
        writer.set(key, value.clone()).unwrap();
    }
    for (tensor, data) in gguf.tensors().iter().zip(&decoded) {
        writer.tensor(&tensor.name, &tensor.dims, DType::F32.into(), data).unwrap();
    }
    let path = dir.join("tales.f32.gguf");
    std::fs::write(&path, writer.to_bytes()).unwrap();
    path
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_comes_out_runs() {
    let dir = tempfile::tempdir().unwrap();
    let input = plain_tales(dir.path());
    let text = |model: &str| stdout(&["run", model, "-p", "Once upon a time", "--temp", "0", "-n", "40"]);
    for to in ["f16", "bf16", "q8_0", "q4_0", "Q4_K_M"] {
        let path = dir.path().join(to);
        let table = stdout(&["quantize", text_of(&input), text_of(&path), to]);
        assert!(table.contains("file") && table.contains("tensors"), "{table}");
        let written = text(text_of(&path));
        assert!(written.len() > 40, "{to}: {written}");
        // The decoded weights become the very blocks that they were.
        assert!(to != "q8_0" || written == text(TALES));
    }
    // What is quantized already has nothing more to give.
    refused(&["quantize", text_of(&dir.path().join("q4_0")), "no.gguf", "q4_k_m"], &["q6_k already", "f16"]);
}

#[test]
fn each_tensor_has_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let (input, path) = (plain_tales(dir.path()), dir.path().join("out.gguf"));
    let done = json(&["quantize", text_of(&input), text_of(&path), "q4_k_m", "--json"]);
    assert_eq!((&done["type"], &done["fallbacks"]), (&"q4_k_m".into(), &0.into()));
    assert_eq!(done["bytes_in"].as_u64().unwrap(), std::fs::metadata(&input).unwrap().len());
    assert_eq!(done["bytes_out"].as_u64().unwrap(), std::fs::metadata(&path).unwrap().len());
    let info = json(&["info", text_of(&path), "--json", "--verbose"]);
    let types = |all: &serde_json::Value, key: &str| -> Vec<(String, String)> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        all["tensors"].as_array().unwrap().iter().map(|t| (text(&t["name"]), text(&t[key]))).collect()
    };
    let found = types(&info, "type");
    assert_eq!(types(&done, "to"), found);
    let q6_k: Vec<_> = found.iter().filter(|(_, ty)| ty == "q6_k").map(|(name, _)| name.as_str()).collect();
    let layers =
        [2, 5].map(|i| [format!("blk.{i}.attn_v.weight"), format!("blk.{i}.ffn_down.weight")]).concat();
    assert_eq!(q6_k.len(), 5);
    assert!(q6_k.contains(&"token_embd.weight") && layers.iter().all(|name| q6_k.contains(&name.as_str())));
    assert_eq!(info["metadata"]["general.file_type"], 15);
    assert_eq!(info["metadata"]["general.quantization_version"], 2);
    assert_eq!(files(dir.path()), ["out.gguf", "tales.f32.gguf"]);
}

#[test]
fn rows_that_do_not_fit_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let input = Made::new(&Shape { n_ff: 100, ..Shape::default() }).write(dir.path());
    let path = dir.path().join("out.gguf");
    let done = output(&["quantize", text_of(&input), text_of(&path), "q4_k_m"]);
    assert!(done.status.success());
    let said = stderr(&done);
    assert!(said.lines().all(|line| line.starts_with("note: ")), "{said}");
    for words in
        [&["q5_0 instead of q4_k", "64", "256", "attn_q"][..], &["f16 instead of q6_k", "100", "ffn_down"]]
    {
        assert!(said.lines().any(|line| words.iter().all(|word| line.contains(word))), "{words:?}: {said}");
    }
}

#[test]
fn bad_input() {
    let dir = tempfile::tempdir().unwrap();
    let input = plain_tales(dir.path());
    let there = dir.path().join("there.gguf");
    std::fs::write(&there, "precious").unwrap();
    let (input, there) = (text_of(&input), text_of(&there));
    let new = dir.path().join("new.gguf");
    let new = text_of(&new);
    refused(&["quantize", input, new, "q3_k_s"], &["q3_k_s", "q4_k_m", "q8_0"]);
    refused(&["quantize", input, new], &["TYPE"]);
    refused(&["quantize", TALES, new, "q4_0"], &["q8_0 already"]);
    refused(&["quantize", "no-such.gguf", new, "q4_0"], &["no-such.gguf", "No such file"]);
    refused(&["quantize", there, new, "q4_0"], &["not a GGUF file"]);
    refused(&["quantize", input, there, "q4_0"], &["there.gguf", "there already"]);
    refused(&["quantize", input, input, "q4_0", "--force"], &["over the file that is read"]);
    refused(&["quantize", input, "no/such/folder.gguf", "q4_0"], &["no/such/folder.gguf", "No such file"]);
    refused(&["quantize", input, text_of(dir.path()), "q4_0", "--force"], &["not a plain file"]);
    assert_eq!(std::fs::read(there).unwrap(), b"precious");
    assert_eq!(files(dir.path()), ["tales.f32.gguf", "there.gguf"]);
    assert!(output(&["quantize", input, there, "q4_0", "--force"]).status.success());
    assert!(stdout(&["info", there]).contains("q4_0: 42 tensors"));
}

/// Starts a long one, and interrupts it once it writes.
fn interrupted(input: &Path, out: &Path, force: &[&str]) -> Output {
    let args = [&["quantize", text_of(input), text_of(out), "q4_k_m", "-t", "1"], force].concat();
    let child = granule(&args).spawn().unwrap();
    let unfinished = granule_llama::unfinished_path(out);
    let start = Instant::now();
    while !unfinished.exists() {
        assert!(start.elapsed() < Duration::from_secs(60), "it does not begin");
        std::thread::sleep(Duration::from_millis(1));
    }
    interrupt(&child);
    child.wait_with_output().unwrap()
}

#[test]
fn ctrl_c_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shape =
        Shape { n_embd: 1024, n_ff: 4096, n_layers: 1, weights: vec![DType::F16], ..Shape::default() };
    let input = Made::new(&shape).write(dir.path());
    let out = dir.path().join("out.gguf");
    let done = interrupted(&input, &out, &[]);
    assert_eq!((done.status.code(), stderr(&done).as_str()), (Some(130), ""));
    assert_eq!(files(dir.path()), ["model.gguf"]);
    std::fs::write(&out, "precious").unwrap();
    assert_eq!(interrupted(&input, &out, &["--force"]).status.code(), Some(130));
    assert_eq!(std::fs::read(&out).unwrap(), b"precious");
    assert_eq!(files(dir.path()), ["model.gguf", "out.gguf"]);
}
