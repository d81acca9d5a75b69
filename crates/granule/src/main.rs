//! The `granule` command: runs, describes and measures GGUF models.

mod args;
mod bench;
mod bench_kv;
mod chat;
mod device_name;
mod devices;
mod directory;
mod info;
mod interrupt;
mod launch;
mod memory_table;
mod perplexity;
mod placement;
mod progress;
mod prompt_cache;
mod quantize;
mod ranks;
mod run;
mod session;
mod table;
mod tokenize;
mod trace;

use std::io::ErrorKind;
use std::process::ExitCode;

use args::{Args, Command};
use clap::Parser;
use granule_llama::Error;

/// What a shell reports for a program that Ctrl-C ended: 128 and the number of the signal.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(usage) => return args::explain(&usage),
    };
    if let Command::Launch(args) = &args.command {
        return launch::run(args).unwrap_or_else(|error| end_with(&error));
    }
    let done = match args.command {
        // Done above: it ends as its ranks do.
        Command::Launch(_) => Ok(()),
        Command::Run(args) => run::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Bench(args) if args.kv => bench_kv::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Tokenize(args) => tokenize::run(&args),
        Command::Quantize(args) => quantize::run(&args),
        Command::Devices(args) => devices::run(&args),
        Command::Trace(args) => trace::run(&args),
    };
    ranks::leave(done.as_ref().err());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => end_with(&error),
    }
}

/// One line for what went wrong; nothing where the reader of our output has left or Ctrl-C ended the work.
fn end_with(error: &anyhow::Error) -> ExitCode {
    let io =
        error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    let json = error.chain().filter_map(|cause| cause.downcast_ref::<serde_json::Error>()?.io_error_kind());
    if io.chain(json).any(|kind| kind == ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    if matches!(error.downcast_ref::<Error>(), Some(Error::Cancelled)) {
        return ExitCode::from(INTERRUPTED);
    }
    eprintln!("{}error: {}", ranks::speaker(), one_line(error));
    ExitCode::FAILURE
}

/// An error with its causes in one line; causes that an error has told itself are not told again.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}
