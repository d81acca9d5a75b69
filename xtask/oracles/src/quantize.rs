//! The tales model as ggml's quantizer has made it from its F32 file, against what is made of that here: types, bytes, squared
//! errors, perplexity.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use granule_llama::gguf::{Gguf, TensorInfo};
use granule_llama::{QuantizeOptions, QuantizeTarget, quantize};
use granule_quant::{DType, decode, encode};

use crate::Oracles;
use crate::engine::{Pair, load};
use crate::perplexity::measure;
use crate::report::{Group, Report};

/// Files whose blocks leave no choice.
const SAME: [&str; 7] = ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"];
/// Files with types whose scales are looked for.
const FITTED: [&str; 3] = ["q4_k_m", "q5_k_m", "q6_k"];
/// How much larger an error may be than ggml's.
const ERROR: f64 = 1.02;
/// How far the perplexity may be from that of ggml's file.
const PERPLEXITY: f64 = 0.002;

/// A file in memory.
struct File {
    bytes: Vec<u8>,
    gguf: Gguf,
}

impl File {
    fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let gguf = Gguf::parse(&bytes).with_context(|| path.display().to_string())?;
        Ok(File { bytes, gguf })
    }

    fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.bytes[self.gguf.data_range(tensor)]
    }

    /// A tensor's elements.
    fn numbers(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.gguf.tensor(name).with_context(|| format!("no tensor {name}"))?;
        let dtype = tensor.ty.dtype().context("a type that is not read")?;
        decoded(dtype, self.data(tensor))
    }
}

fn decoded(dtype: DType, bytes: &[u8]) -> Result<Vec<f32>> {
    let mut numbers = vec![0.0; bytes.len() / dtype.block_bytes() * dtype.block_len()];
    decode(dtype, bytes, &mut numbers)?;
    Ok(numbers)
}

pub(crate) fn compare(oracles: &Oracles, report: &mut Report) -> Result<()> {
    report.group("quantize: bytes of types that leave no choice", |group| {
        each_tensor(oracles, &SAME, |name, dtype, numbers, theirs| {
            let ours = encoded(dtype, numbers)?;
            group.check(ours == theirs, || format!("{name}: other bytes in {dtype}"));
            Ok(())
        })
    })?;
    report.group("quantize: squared errors of types whose scales are looked for", |group| {
        let mut worst: Vec<(DType, [f64; 3])> = Vec::new();
        each_tensor(oracles, &FITTED, |name, dtype, numbers, theirs| {
            if !FITTED.iter().any(|fitted| fitted.starts_with(dtype.name())) {
                return Ok(());
            }
            let ours = errors(numbers, &decoded(dtype, &encoded(dtype, numbers)?)?);
            let theirs = errors(numbers, &decoded(dtype, theirs)?);
            let ratios = [0, 1, 2].map(|i| ours[i] / theirs[i]);
            group.check(ratios.iter().all(|&ratio| ratio <= ERROR), || format!("{name}, {dtype}: {ratios:.4?}"));
            match worst.iter_mut().find(|worst| worst.0 == dtype) {
                Some((_, worst)) => *worst = [0, 1, 2].map(|i| worst[i].max(ratios[i])),
                None => worst.push((dtype, ratios)),
            }
            Ok(())
        })?;
        for (dtype, [plain, size, square]) in worst {
            group.note(format!(
                "{dtype}: at most {plain:.4} of ggml's error, {size:.4} weighted by size, {square:.4} by its square"
            ));
        }
        Ok(())
    })?;
    report.group("quantize: a q4_k_m file", |group| mixture(oracles, group))
}

fn encoded(dtype: DType, numbers: &[f32]) -> Result<Vec<u8>> {
    let mut bytes = vec![0; dtype.row_bytes(numbers.len())?];
    encode(dtype, numbers, &mut bytes)?;
    Ok(bytes)
}

/// Calls `compare` with each tensor of the files that is not in F32: its name, its type, the numbers that it was made from and what
/// was made of them.
fn each_tensor(
    oracles: &Oracles,
    files: &[&str],
    mut compare: impl FnMut(&str, DType, &[f32], &[u8]) -> Result<()>,
) -> Result<()> {
    let source = File::read(&oracles.tales("f32"))?;
    for weights in files {
        let file = File::read(&oracles.tales(weights))?;
        for tensor in file.gguf.tensors() {
            let dtype = tensor.ty.dtype().context("a type that is not read")?;
            if dtype != DType::F32 {
                compare(&tensor.name, dtype, &source.numbers(&tensor.name)?, file.data(tensor))?;
            }
        }
    }
    Ok(())
}

/// Squared errors: plain, weighted by the numbers' size, and by its square.
fn errors(numbers: &[f32], back: &[f32]) -> [f64; 3] {
    let rms = numbers.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / numbers.len() as f64;
    let mut sums = [0.0; 3];
    for (x, back) in numbers.iter().zip(back) {
        let (x, error) = (f64::from(*x), (f64::from(*x) - f64::from(*back)).powi(2));
        [1.0, rms.sqrt() + x.abs(), x * x]
            .iter()
            .zip(&mut sums)
            .for_each(|(weight, sum)| *sum += weight * error);
    }
    sums
}

fn mixture(oracles: &Oracles, group: &mut Group) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let ours = dir.path().join("tales.gguf");
    let theirs = oracles.tales("q4_k_m");
    quantize(oracles.tales("f32"), &ours, QuantizeTarget::Q4_K_M, QuantizeOptions::default())?;
    let (made, given) = (File::read(&ours)?, File::read(&theirs)?);
    ensure!(made.gguf.tensors().len() == given.gguf.tensors().len(), "other tensors");
    for tensor in made.gguf.tensors() {
        let want = given.gguf.tensor(&tensor.name).map(|tensor| tensor.ty);
        group.check(want == Some(tensor.ty), || format!("{}: {}, not {want:?}", tensor.name, tensor.ty));
    }
    for (key, want) in given.gguf.metadata().iter() {
        let got = made.gguf.metadata().find(key);
        group.check(got == Some(want), || format!("metadata key {key} differs"));
    }
    let heldout = oracles.text("heldout.txt")?;
    let perplexity = |path: &Path| measure(&load(path)?, Pair::F16, &heldout, 512, 40);
    let (got, want) = (perplexity(&ours)?, perplexity(&theirs)?);
    group.note(format!("perplexity {got:.4}, of ggml's file {want:.4}"));
    group.check((got / want - 1.0).abs() <= PERPLEXITY, || format!("perplexity {got:.5}, not {want:.5}"));
    Ok(())
}
