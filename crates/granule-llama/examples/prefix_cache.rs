//! Time to the first token of a prompt, and of the same prompt again after others came and went.
//!
//! `cargo run --release -p granule-llama --example prefix_cache -- MODEL TEXT-FILE [TOKENS]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use granule_llama::{Context, ContextOptions, Error, LoadOptions, Model, TokenId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(model), Some(text)) = (args.next(), args.next()) else {
        return Err("give a model and a text file".into());
    };
    let n = args.next().map_or(Ok(1000), |n| n.parse::<usize>())?;
    let model = Model::load(model, LoadOptions::default())?;
    let text = model.tokenizer().encode(&std::fs::read_to_string(text)?, Default::default())?;
    let prompt = text.get(..n).ok_or("the text is too short")?;
    let options = ContextOptions { n_ctx: Some(n + 64), prefix_cache: true, ..ContextOptions::default() };
    // What the first evaluation of a process costs is not the prompt's.
    time(&model, options, &[TokenId::new(1); 32])?;
    let (first, none) = time(&model, options, prompt)?;
    for other in 2..6 {
        time(&model, options, &vec![TokenId::new(other); n / 4])?;
    }
    let mut again: Vec<(Duration, usize)> =
        (0..5).map(|_| time(&model, options, prompt)).collect::<Result<_, _>>()?;
    again.sort();
    let (median, reused) = again[again.len() / 2];
    println!("first {first:.2?} ({none} of {n} tokens reused), again {median:.2?} ({reused} reused)");
    println!("{:.2}%", 100.0 * median.as_secs_f64() / first.as_secs_f64());
    println!("{:?}", model.prefixes().stats());
    Ok(())
}

/// In a context of its own: until there are logits to choose the first token by.
fn time(model: &Arc<Model>, options: ContextOptions, prompt: &[TokenId]) -> Result<(Duration, usize), Error> {
    let mut context = Context::new(Arc::clone(model), options)?;
    let start = Instant::now();
    let reused = context.eval_prompt(prompt, &mut |_| {})?;
    Ok((start.elapsed(), reused))
}
