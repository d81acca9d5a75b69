//! The same model whole and split over ranks of one process, in turns: tokens per second, and bytes that a rank sends for a token.
//!
//! `cargo run --release -p granule-llama --example ranks -- MODEL [THREADS] [RANKS] [ROUNDS]`; ranks share the threads.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_llama::{Context, ContextOptions, Error, LoadOptions, Model, ModelPlan, Placement, TokenId};
use granule_split::Shares;

/// Tokens of the prompt, and behind it one by one.
const PROMPT: usize = 256;
const DECODE: usize = 24;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::new(args.first().ok_or("give a model")?);
    let number = |at: usize, usual: usize| args.get(at).map_or(Ok(usual), |given| given.parse::<usize>());
    let (threads, ranks, rounds) = (number(1, 2)?, number(2, 2)?, number(3, 3)?);
    let n_layers = ModelPlan::open(path)?.config().n_layers;
    let load = |ranks: usize| -> Result<Arc<Model>, Box<dyn std::error::Error>> {
        let banks = (0..ranks).map(|_| Ok(Bank::new(Device::host()?, BankOptions::new())?));
        let banks = banks.collect::<Result<Vec<_>, Error>>()?;
        let placement = Some(Placement::new().split(&banks, Shares::equal(ranks)?, n_layers));
        let threads = NonZeroUsize::new(threads);
        Ok(Model::load(path, LoadOptions { placement, threads, ..LoadOptions::default() })?)
    };
    let (whole, split) = (load(1)?, load(ranks)?);
    let mut all = [Vec::new(), Vec::new()];
    for _ in 0..rounds {
        for (model, all) in [&whole, &split].into_iter().zip(&mut all) {
            all.push(speeds(model)?);
        }
    }
    for (what, all) in ["whole".to_owned(), format!("{ranks} ranks")].iter().zip(&mut all) {
        let median = |of: fn(&(f64, f64)) -> f64| {
            let mut speeds: Vec<f64> = all.iter().map(of).collect();
            speeds.sort_by(f64::total_cmp);
            speeds[speeds.len() / 2]
        };
        println!("{what}: prompt {:.1} t/s, decode {:.2} t/s", median(|s| s.0), median(|s| s.1));
    }
    let mut context = Context::new(Arc::clone(&split), options())?;
    context.eval(&[TokenId::new(1)])?;
    let config = split.config();
    let formula = 4.0 * (config.n_layers * config.n_embd) as f64 * (ranks - 1) as f64 / ranks as f64 * 4.0;
    for rank in context.traffic() {
        println!("rank {} sent {} bytes for a token; the formula says {formula}", rank.rank, rank.sent.get());
    }
    Ok(())
}

fn options() -> ContextOptions {
    ContextOptions { n_ctx: Some(PROMPT + DECODE), ..ContextOptions::default() }
}

/// Tokens per second of a prompt, and behind it.
fn speeds(model: &Arc<Model>) -> Result<(f64, f64), Error> {
    let mut context = Context::new(Arc::clone(model), options())?;
    let prompt: Vec<TokenId> = (0..PROMPT as u32).map(|i| TokenId::new(i * 7 % 1000 + 5)).collect();
    let start = Instant::now();
    context.eval(&prompt)?;
    let first = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for &token in &prompt[..DECODE] {
        context.eval(&[token])?;
    }
    Ok((PROMPT as f64 / first, DECODE as f64 / start.elapsed().as_secs_f64()))
}
