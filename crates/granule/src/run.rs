//! `granule run`: continues a prompt, or chats. The text goes to stdout as it is written, everything else to stderr.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use granule_bank::trace::{Event, Tracer};
use granule_llama::{
    CancelToken, Context, EncodeOptions, Error, Finish, GenerateOptions, GenerationStats, Model,
    SamplingOptions, TokenId,
};
use serde_json::json;

use crate::args::RunArgs;
use crate::prompt_cache::{self, PromptCache};
use crate::session::Recording;
use crate::table::{Align, Table};
use crate::{chat, interrupt, memory_table, placement, progress, ranks, session};

/// What one prompt gave.
pub(crate) struct Answer {
    pub(crate) text: String,
    tokens: Vec<TokenId>,
    pub(crate) finish: Finish,
    stats: GenerationStats,
}

/// Loads, writes, and says where the memory went if asked to; and records it.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let mut options = GenerateOptions {
        sampling: sampling(args)?,
        n_predict: args.n_predict,
        stop: args.stop.clone(),
        continues: false,
    };
    check(args)?;
    if let Some(path) = &args.prompt_cache {
        prompt_cache::check(path)?;
    }
    let cancel = interrupt::install()?;
    let tracer = Tracer::new();
    let start = |path: &PathBuf| Recording::start(&tracer, path, &args.load.model);
    let recording = args.trace.as_ref().map(start).transpose()?;
    tracer.mark("load");
    let context = session::options(&args.context, args.ctx_size.map(usize::from));
    let model = match session::load_traced(&args.load, &context, &cancel, &tracer) {
        Ok(model) => model,
        Err(error) => {
            recording.map_or(Ok(()), Recording::discard)?;
            return Err(error);
        }
    };
    // Which no two processes have drawn alike.
    options.sampling.seed = ranks::agree(options.sampling.seed)?;
    let done = write(args, options, &cancel, &tracer, model);
    // Everything has given its memory back by now, or is a leak.
    let recorded = recording.map_or(Ok(()), Recording::finish);
    if let (Err(_), Err(error)) = (&done, &recorded) {
        eprintln!("error: {error:#}");
    }
    done.and(recorded)
}

/// Refuses what one of several processes cannot do: their input and their files are not shared.
fn check(args: &RunArgs) -> Result<()> {
    if ranks::here()?.is_some() {
        ensure!(args.prompt.is_some(), "several processes need a prompt, -p: a chat is for one process");
        let files = [("--prompt-cache", args.prompt_cache.is_some()), ("--trace", args.trace.is_some())];
        for (flag, is_named) in files {
            ensure!(!is_named, "{flag} is for one process: several would write the same file");
        }
    }
    Ok(())
}

fn write(
    args: &RunArgs,
    options: GenerateOptions,
    cancel: &CancelToken,
    tracer: &Tracer,
    model: Arc<Model>,
) -> Result<()> {
    let n_ctx = args.ctx_size.map(usize::from);
    tracer.mark("context");
    let mut context = session::context(&model, &args.context, n_ctx, cancel)?;
    drop(model);
    let mut cache = match &args.prompt_cache {
        Some(path) => Some(PromptCache::load(path, &mut context)?),
        None => None,
    };
    let finish = match &args.prompt {
        Some(prompt) if !args.chat => raw(args, prompt, &mut context, options, cache.as_mut())?,
        Some(message) => chat::one(args, message, &mut context, &options, cache.as_mut())?,
        None => {
            let finish = chat::many(args, &mut context, &options, cache.as_mut(), cancel);
            if let Some(cache) = &mut cache {
                cache.end_chat(&context);
            }
            finish?
        }
    };
    if args.verbose && ranks::speaks() {
        eprint!("\n{}", memory_table::table(&context));
    }
    match finish {
        Some(Finish::Cancelled) => Err(Error::Cancelled.into()),
        _ => cache.map_or(Ok(()), PromptCache::finish),
    }
}

fn sampling(args: &RunArgs) -> Result<SamplingOptions> {
    let given = &args.sampling;
    let sampling = SamplingOptions {
        temp: given.temp,
        top_k: given.top_k,
        top_p: given.top_p,
        min_p: given.min_p,
        repeat_penalty: given.repeat_penalty,
        seed: given.seed.unwrap_or_else(any_seed),
        ..SamplingOptions::default()
    };
    sampling.validate()?;
    if args.verbose && sampling.temp > 0.0 && ranks::speaks() {
        eprintln!("seed {}", sampling.seed);
    }
    Ok(sampling)
}

/// Another one each time.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::from(now.subsec_nanos()) ^ now.as_secs().rotate_left(32) ^ u64::from(std::process::id())
}

/// A raw prompt: special tokens in it are recognized, and there is no template.
fn raw(
    args: &RunArgs,
    prompt: &str,
    context: &mut Context,
    mut options: GenerateOptions,
    cache: Option<&mut PromptCache<'_>>,
) -> Result<Option<Finish>> {
    let encode = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
    let tokens = context.model().tokenizer().encode(prompt, encode)?;
    if args.echo && !args.json {
        print(prompt)?;
    }
    options.continues = args.echo;
    let kept = context.rewind_to(&tokens)?;
    let mut answer = answer(args, context, &tokens, kept, options, cache)?;
    if args.echo {
        answer.text.insert_str(0, prompt);
    }
    finish_line(args, context, &answer)?;
    Ok(Some(answer.finish))
}

/// Writes what the model has to say behind `prompt`, whose first `kept` tokens are in the context; as it comes, unless it goes
/// into a JSON object.
pub(crate) fn answer(
    args: &RunArgs,
    context: &mut Context,
    prompt: &[TokenId],
    kept: usize,
    options: GenerateOptions,
    cache: Option<&mut PromptCache<'_>>,
) -> Result<Answer> {
    let left = prompt.len() - kept;
    let bar = (left > args.context.batch_size.get()).then(|| progress::counted("prompt", left));
    let tracer = context.model().bank().tracer().clone();
    tracer.mark("prompt");
    let generation = context.generate_reporting(&prompt[kept..], options, &mut |done| {
        if let Some(bar) = &bar {
            bar.set_position(done as u64);
        }
    });
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let mut generation = generation?;
    if let Some(cache) = cache {
        cache.prompt(generation.context(), kept);
    }
    let (mut text, mut tokens) = (String::new(), Vec::new());
    while let Some(piece) = generation.next_piece() {
        let piece = piece?;
        if !args.json && !piece.text.is_empty() {
            print(piece.text)?;
        }
        text.push_str(piece.text);
        if let Some(token) = piece.token {
            tokens.push(token);
            tracer.emit(|| Event::Mark { text: format!("token {}", tokens.len()) });
        }
    }
    let finish = generation.finish().cloned().unwrap_or(Finish::Length);
    Ok(Answer { text, tokens, finish, stats: generation.stats() })
}

/// Puts text on stdout at once.
fn print(text: &str) -> std::io::Result<()> {
    let mut out = ranks::out();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Ends an answer: a line break, or the JSON object; and a word on how it went, if there is one.
pub(crate) fn finish_line(args: &RunArgs, context: &Context, answer: &Answer) -> Result<()> {
    let Answer { text, tokens, finish, stats } = answer;
    if args.json {
        let ids: Vec<u32> = tokens.iter().copied().map(TokenId::get).collect();
        let json = json!({
            "text": text,
            "tokens": ids,
            "finish": name(finish),
            "n_prompt": stats.n_prompt,
            "n_generated": stats.n_generated,
            "prompt_seconds": stats.prompt_time.as_secs_f64(),
            "decode_seconds": stats.decode_time.as_secs_f64(),
            "placement": placement::json(context.model().stages()),
            "memory": memory_table::json(&context.memory_info()),
        });
        print(&format!("{json}\n"))?;
    } else {
        print("\n")?;
    }
    if *finish == Finish::ContextFull {
        eprintln!("the context of {} tokens is full", context.n_ctx());
    }
    if args.verbose && ranks::speaks() {
        eprint!("{}{}", if std::io::stderr().is_terminal() { "\n" } else { "" }, speed(stats));
    }
    Ok(())
}

/// Why a generation ended, in one word.
fn name(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndOfText => "end_of_text",
        Finish::Stop(_) => "stop",
        Finish::Length => "length",
        Finish::ContextFull => "context_full",
        Finish::Cancelled => "cancelled",
        _ => "other",
    }
}

fn speed(stats: &GenerationStats) -> Table {
    let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Right]);
    let mut row = |what: &str, tokens: usize, time: Duration| {
        let seconds = time.as_secs_f64();
        let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
        table.row([
            what.to_owned(),
            format!("{tokens} tokens"),
            format!("{:.1} ms", seconds * 1e3),
            format!("{rate:.1} t/s"),
        ]);
    };
    row("prompt", stats.n_prompt, stats.prompt_time);
    row("decode", stats.n_decoded, stats.decode_time);
    table
}
