//! What the numbers were measured on.

use std::fs;
use std::thread::available_parallelism;

/// The processor's name and how many of them this process may use.
pub fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let name = field("model name").unwrap_or_else(|| std::env::consts::ARCH.into());
    // Virtual machines tend to hide the generation in the name, not in the numbers.
    let numbers = field("cpu family").zip(field("model\t"));
    let numbers =
        numbers.map_or(String::new(), |(family, model)| format!(" (family {family}, model {model})"));
    let cores = available_parallelism().map_or(1, usize::from);
    format!("{name}{numbers}, {cores} cores")
}
