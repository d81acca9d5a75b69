//! `granule perplexity`: how well a model predicts a text, by the measure customary for GGUF files.

use std::io::Write;

use anyhow::{Context as _, Result};
use granule_llama::{Perplexity, perplexity};

use crate::args::PerplexityArgs;
use crate::{interrupt, placement, progress, ranks, session};

/// Measures and prints.
pub(crate) fn run(args: &PerplexityArgs) -> Result<()> {
    let name = args.file.display();
    let text = std::fs::read(&args.file).with_context(|| format!("cannot read `{name}`"))?;
    let text = String::from_utf8(text).ok().with_context(|| format!("`{name}` is not UTF-8"))?;
    let cancel = interrupt::install()?;
    let n_ctx = args.ctx_size.get();
    let model = session::load(&args.load, &session::options(&args.context, Some(n_ctx)), &cancel)?;
    let tokens = model.tokenizer().encode(&text, Default::default())?;
    let windows = Perplexity::windows(tokens.len(), n_ctx)?;
    let mut context = session::context(&model, &args.context, Some(n_ctx), &cancel)?;
    let chunks = args.chunks.map(usize::from);
    let bar = progress::counted("windows", chunks.unwrap_or(usize::MAX).min(windows));
    let measured = perplexity(&mut context, &tokens, n_ctx, chunks, &mut |so_far| {
        bar.set_position(so_far.chunks as u64);
        bar.set_message(format!("{:.4}", so_far.ppl));
    });
    bar.finish_and_clear();
    let measured = measured?;
    let mut out = ranks::out();
    if args.json {
        let json = serde_json::json!({
            "ppl": measured.ppl,
            "chunks": measured.chunks,
            "tokens": measured.tokens,
            "ctx_size": n_ctx,
            "cache_type_k": args.context.type_k().to_string(),
            "cache_type_v": args.context.type_v().to_string(),
            "kv_transform": args.context.kv_transform().to_string(),
            "placement": placement::json(model.stages()),
        });
        writeln!(out, "{json}")?;
    } else {
        let (ppl, chunks, tokens) = (measured.ppl, measured.chunks, measured.tokens);
        writeln!(out, "perplexity {ppl:.4} over {chunks} windows of {n_ctx}, {tokens} tokens scored")?;
    }
    Ok(())
}
