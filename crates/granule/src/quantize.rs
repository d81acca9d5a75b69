//! `granule quantize`: a smaller file of a model, and what its tensors became.

use std::fs;
use std::io::Write;
use std::ops::ControlFlow;

use anyhow::Result;
use granule_device::Bytes;
use granule_llama::{QuantizeOptions, Quantized, QuantizedTensor, quantize, unfinished_path};
use serde_json::json;

use crate::args::QuantizeArgs;
use crate::table::{Align, Table};
use crate::{interrupt, progress};

/// Tensors that are named where several have the same to be said of them.
const NAMED: usize = 3;

/// Writes the file and says what it holds.
pub(crate) fn run(args: &QuantizeArgs) -> Result<()> {
    let cancel = interrupt::install()?;
    let unfinished = unfinished_path(&args.output);
    let mut bar = None;
    let mut report = |done: u64, total: u64| {
        let bar = bar.get_or_insert_with(|| {
            // There is a file now, which a second Ctrl-C would leave.
            let unfinished = unfinished.clone();
            interrupt::before_end(move || drop(fs::remove_file(unfinished)));
            progress::bytes("quantizing", total)
        });
        bar.set_position(done);
        ControlFlow::Continue(())
    };
    let options =
        QuantizeOptions { force: args.force, threads: args.threads, progress: Some(&mut report), cancel };
    let done = quantize(&args.input, &args.output, args.target, options);
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let done = done?;
    for note in notes(&done) {
        eprintln!("{note}");
    }
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&describe(args, &done))?)?;
    } else {
        write!(out, "{}", table(&done))?;
    }
    Ok(())
}

/// What did not become the type that it should have, a line for all of one kind.
fn notes(done: &Quantized) -> Vec<String> {
    let mut kinds: Vec<Vec<&QuantizedTensor>> = Vec::new();
    let row = |tensor: &QuantizedTensor| tensor.dims.first().copied().unwrap_or(1);
    let kind_of = |tensor: &QuantizedTensor| (tensor.to, tensor.instead_of, row(tensor));
    for tensor in done.tensors.iter().filter(|tensor| tensor.instead_of.is_some()) {
        match kinds.iter_mut().find(|kind| kind.first().is_some_and(|&t| kind_of(t) == kind_of(tensor))) {
            Some(kind) => kind.push(tensor),
            None => kinds.push(vec![tensor]),
        }
    }
    let note = |kind: &Vec<&QuantizedTensor>| {
        let (first, wanted) = kind.first().and_then(|&first| Some((first, first.instead_of?)))?;
        let named = kind.iter().take(NAMED).map(|tensor| tensor.name.escape_debug().to_string());
        let more = if kind.len() > NAMED { ", …" } else { "" };
        Some(format!(
            "note: {} instead of {wanted}, as rows of {} are no multiple of {}, in {} of {} tensors: {}{more}",
            first.to,
            row(first),
            wanted.block_len(),
            kind.len(),
            done.tensors.len(),
            named.collect::<Vec<_>>().join(", "),
        ))
    };
    kinds.iter().filter_map(note).collect()
}

/// Tensors and bytes by type, the ones with the most bytes first, and the files.
fn table(done: &Quantized) -> Table {
    let mut kinds: Vec<(&str, usize, u64)> = Vec::new();
    for tensor in &done.tensors {
        let name = tensor.to.name();
        match kinds.iter_mut().find(|kind| kind.0 == name) {
            Some(kind) => {
                kind.1 += 1;
                kind.2 += tensor.bytes;
            }
            None => kinds.push((name, 1, tensor.bytes)),
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.2));
    let mut table = Table::new([Align::Left, Align::Right, Align::Right]);
    for (name, tensors, bytes) in kinds {
        table.row([name.to_owned(), format!("{tensors} tensors"), Bytes::new(bytes).to_string()]);
    }
    let size = |bytes: u64| Bytes::new(bytes).to_string();
    table.row(["file".to_owned(), format!("from {}", size(done.bytes_in)), size(done.bytes_out)]);
    table
}

fn describe(args: &QuantizeArgs, done: &Quantized) -> serde_json::Value {
    let tensor = |tensor: &QuantizedTensor| {
        json!({
            "name": tensor.name,
            "dims": tensor.dims,
            "from": tensor.from.name(),
            "to": tensor.to.name(),
            "instead_of": tensor.instead_of.map(|dtype| dtype.name()),
            "bytes": tensor.bytes,
        })
    };
    json!({
        "type": args.target.name(),
        "output": args.output,
        "bytes_in": done.bytes_in,
        "bytes_out": done.bytes_out,
        "fallbacks": done.tensors.iter().filter(|tensor| tensor.instead_of.is_some()).count(),
        "tensors": done.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
