//! `granule trace`: what a recording of memory tells, as a summary, as a page to look at, as JSON lines.

mod export;
mod history;
mod page;
mod summary;
mod write;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use granule_bank::trace::Reader;

use crate::args::{TraceArgs, TraceCommand};
use history::History;
use summary::Summary;

/// Does it. Of a file that is cut or damaged, what can be read is told, marked as incomplete, and then the error is one.
pub(crate) fn run(args: &TraceArgs) -> Result<()> {
    match &args.command {
        TraceCommand::Summary { file, json } => {
            let history = read(file)?;
            let summary = Summary::new(&history);
            let mut out = std::io::stdout().lock();
            if *json {
                writeln!(out, "{}", serde_json::to_string_pretty(&summary.json())?)?;
            } else {
                write!(out, "{summary}")?;
            }
            whole(history, file)
        }
        TraceCommand::View { file, output } => {
            let output = output.clone().unwrap_or_else(|| beside(file));
            let to_stdout = output.as_os_str() == OsStr::new("-");
            ensure!(
                to_stdout || !write::same_file(file, &output),
                "{} is the recording itself: choose another name for the page",
                output.display()
            );
            let history = read(file)?;
            let page = page::page(&history)?;
            if to_stdout {
                std::io::stdout().lock().write_all(page.as_bytes())?;
            } else {
                write::whole(&output, page.as_bytes()).with_context(|| output.display().to_string())?;
                eprintln!("{}", output.display());
            }
            whole(history, file)
        }
        TraceCommand::Export { file } => {
            let reader = open(file)?;
            let out = BufWriter::new(std::io::stdout().lock());
            export::export(reader, out).with_context(|| file.display().to_string())
        }
    }
}

fn open(path: &Path) -> Result<Reader<File>> {
    let name = || path.display().to_string();
    Reader::new(File::open(path).with_context(name)?).with_context(name)
}

fn read(path: &Path) -> Result<History> {
    Ok(History::read(open(path)?))
}

/// That not all of the file could be read is an error, after all that could be said was said.
fn whole(history: History, path: &Path) -> Result<()> {
    history.broken.map_or(Ok(()), |broken| Err(broken).with_context(|| path.display().to_string()))
}

/// The page for a trace where nobody says where: beside it.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.to_path_buf().into_os_string();
    name.push(".html");
    name.into()
}

/// A name as it may be shown: what would be invisible, or would turn round what stands beside it, is shown as escapes.
fn plain(name: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    name.chars().flat_map(|c| if hidden(c) { c.escape_unicode().collect() } else { vec![c] }).collect()
}
