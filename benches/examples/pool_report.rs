//! The pool beside floors and peers, in one run: the ratios that it has to hold, and times, memory and calls by workload.
//!
//! `cargo run --release --package granule-benches --example pool_report -- [--quick] [SECTION]` prints Markdown; SECTION is part
//! of a heading ("ratios", "decode", "threads", "loading"). A record is made on a machine that does nothing else.

use std::process::ExitCode;

use granule_benches::report::{Effort, report};

fn main() -> ExitCode {
    let mut effort = Effort::FULL;
    let mut only = String::new();
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--quick" => effort = Effort::QUICK,
            flag if flag.starts_with('-') => {
                eprintln!(
                    "pool_report: {flag} is no flag; there is --quick, and part of a section's heading"
                );
                return ExitCode::FAILURE;
            }
            section => section.clone_into(&mut only),
        }
    }
    match report(effort, &only, |section| println!("{section}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pool_report: {error}");
            ExitCode::FAILURE
        }
    }
}
