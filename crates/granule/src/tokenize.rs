//! `granule tokenize`: text to token ids. Only the file's vocabulary is read.

use std::io::Write;

use anyhow::Result;
use granule_llama::{EncodeOptions, TokenId};

use crate::args::TokenizeArgs;
use crate::directory::Directory;
use crate::table::{Align, Table};

/// Prints the ids of `args.text`, with the start token that the file asks for.
pub(crate) fn run(args: &TokenizeArgs) -> Result<()> {
    let tokenizer = Directory::open(&args.model)?.tokenizer()?;
    let options = EncodeOptions { parse_special: true, ..EncodeOptions::default() };
    let tokens = tokenizer.encode(&args.text, options)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let ids: Vec<u32> = tokens.iter().copied().map(TokenId::get).collect();
        writeln!(out, "{}", serde_json::to_string(&ids)?)?;
        return Ok(());
    }
    let mut table = Table::new([Align::Right, Align::Left]);
    for token in tokens {
        table.row([
            token.to_string(),
            tokenizer.token_text(token).unwrap_or_default().escape_debug().to_string(),
        ]);
    }
    write!(out, "{table}")?;
    Ok(())
}
