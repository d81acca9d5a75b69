//! The facts about a CUDA driver that Granule builds on and its simulator assumes, asked of the driver that is here.
//!
//! It is the first program to run on any new GPU. Each fact is one line: what was seen, and beside it what the simulator
//! does where that differs. `--name` prints only the GPU's name, `--strict` fails where something differs.
#![expect(clippy::print_stdout, reason = "a program that prints what it found")]

mod driver;
mod facts;
mod times;

use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::driver::{Answer, Gpu};
use crate::facts::Fact;

/// How long one fact may take.
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers false where `--strict` was asked for and something differs.
fn run(args: &[String]) -> Result<bool, Box<dyn std::error::Error>> {
    let has = |name: &str| args.iter().any(|arg| arg == name);
    let devices = granule_device::cuda_devices()?;
    let Some(first) = devices.first() else { return Err("the driver shows no GPU".into()) };
    if has("--name") {
        if granule_sim::Sim::find().is_some() {
            return Err("the CUDA driver here is Granule's simulated one, not a GPU's".into());
        }
        println!("{}", first.name);
        return Ok(true);
    }
    if let [flag, name] = args
        && flag == "--fact"
    {
        let fact = facts::ALL.iter().find(|fact| fact.name == name).ok_or("no such fact")?;
        println!("{}", (fact.ask)(&Gpu::open(0)?)?);
        return Ok(true);
    }
    println!("# {first:#?}");
    let mut alike = true;
    for fact in facts::ALL {
        let seen = ask_apart(fact)?;
        let differs = seen != fact.simulated;
        alike &= !differs;
        let beside = if differs { format!("   [the simulator: {}]", fact.simulated) } else { String::new() };
        println!("{}: {seen}{beside}", fact.name);
    }
    if !has("--strict") {
        println!("a further context takes {}", granule_device::Device::cuda(0)?.context_bytes()?);
        for line in times::measure(&Gpu::open(0)?)? {
            println!("{line}");
        }
    }
    Ok(alike || !has("--strict"))
}

/// Asks in a process of its own: some answers leave a context that takes no more calls, and some may never come.
fn ask_apart(fact: &Fact) -> Result<String, Box<dyn std::error::Error>> {
    let mut command = Command::new(std::env::current_exe()?);
    let mut child =
        command.args(["--fact", fact.name]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let until = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > until {
            child.kill()?;
            child.wait()?;
            return Ok(format!("no answer within {} s", LIMIT.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => said(&output.stdout),
        false => format!("no answer ({}): {}", output.status, said(&output.stderr)),
    })
}

/// What a call answered, in a word.
pub(crate) fn word(answer: Answer) -> &'static str {
    match answer {
        Ok(()) => "yes",
        Err(1) => "no (invalid value)",
        Err(218) => "no (PTX not taken)",
        Err(400) => "no (invalid handle)",
        Err(500) => "no (not found)",
        Err(700) => "no (illegal address)",
        Err(801) => "no (not supported)",
        Err(900) => "no (not while capturing)",
        Err(901) => "no (capture invalidated)",
        Err(906) => "no (would join the legacy stream)",
        Err(_) => "no (another error)",
    }
}
