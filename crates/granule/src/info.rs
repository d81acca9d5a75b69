//! `granule info`: what a file holds, and what it will take to run it.

use std::io::Write;

use anyhow::Result;
use granule_device::Bytes;
use granule_kv::{KvLayout, KvType};
use granule_llama::gguf::Value;
use granule_llama::{Config, DeviceMemory, LoadOptions, ModelPlan, Placement, PlannedText};
use serde_json::{Map, json};

use crate::args::InfoArgs;
use crate::directory::Directory;
use crate::table::{Align, Table, count};
use crate::{memory_table, placement, session};

/// Tensors of one type: its name, how many there are, their elements and their bytes.
struct Kind {
    name: &'static str,
    tensors: usize,
    elements: u64,
    bytes: u64,
}

/// What it will take of each device where it is run, with a full context.
struct Needs {
    plan: ModelPlan,
    placement: Placement,
    devices: Vec<DeviceMemory>,
    n_ctx: usize,
}

impl Needs {
    fn of(args: &InfoArgs) -> Result<Needs> {
        let plan = ModelPlan::open(&args.model)?;
        let options = session::options(&args.context, args.ctx_size.map(usize::from));
        let placement = placement::planned(&plan, &args.place, &options)?;
        let n_ctx = options.n_ctx.unwrap_or(plan.config().n_ctx_train);
        let load = LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
        let text = PlannedText { prompt: options.n_batch.min(n_ctx), len: n_ctx, ..PlannedText::default() };
        let devices = plan.memory(&load, &options, &text)?;
        Ok(Needs { plan, placement, devices, n_ctx })
    }

    fn rows(&self, table: &mut Table) -> Result<()> {
        let stages = self.plan.stages(&self.placement)?;
        table.row(["would run".to_owned(), placement::describe(stages.iter().cloned())]);
        for (i, device) in self.devices.iter().enumerate() {
            let label = if i == 0 { "would need" } else { "" };
            let what = memory_table::of(device, stages.iter().cloned());
            let tokens = count(self.n_ctx);
            let line = format!("{} on {} for {tokens} tokens; {what}", device.total, device.device);
            table.row([label.to_owned(), line]);
        }
        Ok(())
    }

    fn json(&self) -> Result<serde_json::Value> {
        let stages = self.plan.stages(&self.placement)?;
        Ok(json!({
            "n_ctx": self.n_ctx,
            "placement": placement::json(stages.into_iter()),
            "devices": self.devices.iter().map(memory_table::of_device).collect::<Vec<_>>(),
        }))
    }
}

/// Prints what the file is.
pub(crate) fn run(args: &InfoArgs) -> Result<()> {
    let directory = Directory::open(&args.model)?;
    let is_asked = args.place.names_any() || args.ctx_size.is_some();
    let needs = is_asked.then(|| Needs::of(args)).transpose()?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let mut all = describe(&directory, args);
        if let Some(needs) = &needs {
            all["needs"] = needs.json()?;
        }
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    let mut table = table(args, &directory);
    if let Some(needs) = &needs {
        needs.rows(&mut table)?;
    }
    write!(out, "{table}")?;
    if args.verbose {
        write!(out, "\n{}\n{}", metadata_table(&directory), tensor_table(&directory))?;
    }
    Ok(())
}

/// Tensors by type, the ones with the most bytes first.
fn kinds(directory: &Directory) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for tensor in directory.tensors() {
        let name = tensor.ty.name();
        let at = kinds.iter().position(|k| k.name == name).unwrap_or_else(|| {
            kinds.push(Kind { name, tensors: 0, elements: 0, bytes: 0 });
            kinds.len() - 1
        });
        if let Some(kind) = kinds.get_mut(at) {
            kind.tensors += 1;
            kind.elements = kind.elements.saturating_add(tensor.dims.iter().product());
            kind.bytes = kind.bytes.saturating_add(tensor.bytes);
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.bytes));
    kinds
}

/// Why the model does not run here; `None` where it does, as far as its directory tells.
fn obstacle(directory: &Directory) -> Option<String> {
    let problem = Config::from_gguf(directory.gguf()).err().map(|error| error.to_string());
    let strange = || directory.tensors().find(|t| t.ty.dtype().is_none());
    let weights = || strange().map(|t| format!("its weights are of type {}", t.ty.name()));
    let tokenizer = || directory.tokenizer().err().map(|error| format!("{error:#}"));
    problem.or_else(weights).or_else(tokenizer)
}

/// Over how many devices each layer can be split; none for a model that does not run here.
fn tensor_parallel(args: &InfoArgs) -> Vec<usize> {
    ModelPlan::open(&args.model).and_then(|plan| plan.legal_ranks()).unwrap_or_default()
}

/// "2 to 8 devices".
fn devices(legal: &[usize]) -> Option<String> {
    let many = legal.get(1..).filter(|many| !many.is_empty())?;
    let follow = many.windows(2).all(|pair| pair[1] == pair[0] + 1);
    Some(match (follow, many) {
        (true, [first, .., last]) => format!("over {first} to {last} devices"),
        _ => {
            let many: Vec<String> = many.iter().map(usize::to_string).collect();
            format!("over {} devices", many.join(", "))
        }
    })
}

/// Bytes of one token in a cache of this type, or `None` where heads are no whole blocks of it.
fn kv_bytes(config: &Config, kv: KvType) -> Option<Bytes> {
    let layout = KvLayout::new(config.kv_shape(), kv, kv, None, 0).ok()?;
    Some(layout.token_bytes())
}

const KV_TYPES: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];

fn table(args: &InfoArgs, directory: &Directory) -> Table {
    let mut table = Table::new([Align::Left, Align::Left]);
    let gguf = directory.gguf();
    let meta = gguf.metadata();
    let text = |key: &str| meta.find_str(key).ok().flatten().map(str::to_owned);
    let files = if directory.files() > 1 { format!(", {} files", directory.files()) } else { String::new() };
    let version = gguf.version();
    table.row([
        "file".to_owned(),
        format!("{}, {}, GGUF {version}{files}", args.model.display(), directory.bytes()),
    ]);
    if let Some(name) = text("general.name") {
        table.row(["name", name.as_str()]);
    }
    for key in ["license", "description"] {
        if let Some(value) = text(&format!("general.{key}")) {
            table.row([key, value.as_str()]);
        }
    }
    let elements: u64 = kinds(directory).iter().map(|kind| kind.elements).sum();
    let architecture = text("general.architecture").unwrap_or_else(|| "unknown".to_owned());
    table.row(["architecture".to_owned(), format!("{architecture}, {} weights", count(elements as usize))]);
    let config = Config::from_gguf(gguf).ok();
    if let Some(c) = &config {
        let per_kv = c.n_heads / c.n_kv_heads.max(1);
        table.row(["layers".to_owned(), count(c.n_layers)]);
        table.row(["embedding".to_owned(), count(c.n_embd)]);
        table.row([
            "heads".to_owned(),
            format!(
                "{} query, {} key-value ({per_kv} to 1), {} elements each",
                c.n_heads, c.n_kv_heads, c.head_dim
            ),
        ]);
        table.row(["feed-forward".to_owned(), count(c.n_ff)]);
        table.row(["context".to_owned(), format!("{} tokens in training", count(c.n_ctx_train))]);
        table.row(["rope".to_owned(), rope(directory, c)]);
        let tied = directory.tensors().all(|t| t.name != "output.weight");
        table.row(["output", if tied { "the embedding table" } else { "a matrix of its own" }]);
    }
    if let Ok(tokenizer) = directory.tokenizer() {
        let kind = text("tokenizer.ggml.model").unwrap_or_default();
        let pre = text("tokenizer.ggml.pre").map(|pre| format!(", {pre}")).unwrap_or_default();
        table.row(["vocabulary".to_owned(), format!("{} tokens ({kind}{pre})", count(tokenizer.n_vocab()))]);
        let name = |id| tokenizer.token_text(id).unwrap_or_default().to_owned();
        let start = match tokenizer.bos() {
            Some(bos) if tokenizer.adds_bos() => format!("{} in front of a text", name(bos)),
            _ => "none in front of a text".to_owned(),
        };
        let ends: Vec<String> = tokenizer.eog().iter().copied().map(name).collect();
        table.row(["start token".to_owned(), start]);
        table.row(["end tokens".to_owned(), ends.join(" ")]);
    }
    let template = text("tokenizer.chat_template").is_some();
    table.row(["chat template", if template { "yes" } else { "no: raw prompts only" }]);
    for (i, kind) in kinds(directory).iter().enumerate() {
        let label = if i == 0 { "weights" } else { "" };
        let bytes = Bytes::new(kind.bytes);
        table.row([label.to_owned(), format!("{}: {} tensors, {bytes}", kind.name, kind.tensors)]);
    }
    if let Some(config) = &config {
        for (i, kv) in KV_TYPES.into_iter().enumerate() {
            let label = if i == 0 { "kv cache" } else { "" };
            let line = match kv_bytes(config, kv) {
                Some(token) => {
                    let full = token.saturating_mul(config.n_ctx_train as u64);
                    format!("{kv}: {token} a token, {full} for {} tokens", count(config.n_ctx_train))
                }
                None => format!("{kv}: not with heads of {} elements", config.head_dim),
            };
            table.row([label.to_owned(), line]);
        }
    }
    let legal = tensor_parallel(args);
    if !legal.is_empty() {
        let line = devices(&legal).unwrap_or_else(|| "not over several devices: no whole blocks".to_owned());
        table.row(["layers split".to_owned(), line]);
    }
    table.row([
        "runs here".to_owned(),
        obstacle(directory).map_or("yes".to_owned(), |why| format!("no: {why}")),
    ]);
    table
}

fn rope(directory: &Directory, config: &Config) -> String {
    let scaling = if directory.tensors().any(|t| t.name == "rope_freqs.weight") {
        "scaled by rope_freqs.weight".to_owned()
    } else if config.rope_linear == 1.0 {
        "not scaled".to_owned()
    } else {
        format!("scaled by 1/{}", config.rope_linear)
    };
    format!("base {}, {scaling}", config.rope_base)
}

/// One line for a value: arrays by their length.
fn short(value: &Value) -> String {
    const LONGEST: usize = 80;
    let text = match value {
        Value::Array(array) => format!("{} x {}", array.len(), array.element_name()),
        Value::String(text) => text.escape_debug().to_string(),
        other => match json_value(other) {
            serde_json::Value::String(text) => text,
            number => number.to_string(),
        },
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

fn metadata_table(directory: &Directory) -> Table {
    let mut table = Table::new([Align::Left, Align::Left]);
    for (key, value) in directory.gguf().metadata().iter() {
        table.row([key.to_owned(), short(value)]);
    }
    table
}

fn tensor_table(directory: &Directory) -> Table {
    let mut table = Table::new([Align::Left, Align::Left, Align::Right, Align::Right]);
    for tensor in directory.tensors() {
        let dims = tensor.dims.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        table.row([
            tensor.name.clone(),
            tensor.ty.name().to_owned(),
            dims,
            Bytes::new(tensor.bytes).to_string(),
        ]);
    }
    table
}

/// A metadata value as JSON; an array by its element type and its length.
fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => json!(v),
        Value::Array(v) => json!({ "array_of": v.element_name(), "len": v.len() }),
        other => match other.as_integer().map(i64::try_from) {
            Some(Ok(v)) => json!(v),
            // The few integers beyond: as text, so that no reader of JSON rounds them.
            Some(Err(_)) => json!(other.as_integer().map(|v| v.to_string())),
            None => serde_json::Value::Null,
        },
    }
}

fn describe(directory: &Directory, args: &InfoArgs) -> serde_json::Value {
    let verbose = args.verbose;
    let gguf = directory.gguf();
    let mut all = Map::new();
    let mut put = |key: &str, value: serde_json::Value| all.insert(key.to_owned(), value);
    put("gguf_version", json!(gguf.version()));
    put("files", json!(directory.files()));
    put("bytes", json!(directory.bytes().get()));
    put("architecture", json!(gguf.metadata().find_str("general.architecture").ok().flatten()));
    put("name", json!(gguf.metadata().find_str("general.name").ok().flatten()));
    let obstacle = obstacle(directory);
    put("runs", json!(obstacle.is_none()));
    put("obstacle", json!(obstacle));
    let kinds = kinds(directory);
    put("n_weights", json!(kinds.iter().map(|k| k.elements).sum::<u64>()));
    let weights = kinds.iter().map(|k| json!({ "type": k.name, "tensors": k.tensors, "bytes": k.bytes }));
    put("weights", weights.collect());
    if let Ok(c) = Config::from_gguf(gguf) {
        put("n_layers", json!(c.n_layers));
        put("n_embd", json!(c.n_embd));
        put("n_heads", json!(c.n_heads));
        put("n_kv_heads", json!(c.n_kv_heads));
        put("head_dim", json!(c.head_dim));
        put("n_ff", json!(c.n_ff));
        put("n_ctx_train", json!(c.n_ctx_train));
        put("rope_freq_base", json!(c.rope_base));
        let per_token = KV_TYPES.iter().map(|&kv| (kv.to_string(), json!(kv_bytes(&c, kv).map(Bytes::get))));
        put("kv_bytes_per_token", serde_json::Value::Object(per_token.collect()));
    }
    if let Ok(tokenizer) = directory.tokenizer() {
        put("n_vocab", json!(tokenizer.n_vocab()));
    }
    put("tensor_parallel", json!(tensor_parallel(args)));
    put("chat_template", json!(gguf.metadata().find_str("tokenizer.chat_template").ok().flatten().is_some()));
    if verbose {
        let meta = gguf.metadata().iter().map(|(key, value)| (key.to_owned(), json_value(value)));
        put("metadata", serde_json::Value::Object(meta.collect()));
        let tensors = directory
            .tensors()
            .map(|t| json!({ "name": t.name, "type": t.ty.name(), "dims": t.dims, "bytes": t.bytes }));
        put("tensors", tensors.collect());
    }
    serde_json::Value::Object(all)
}
