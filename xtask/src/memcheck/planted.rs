//! The list of planted bugs, asked of the program that holds them.

use anyhow::{Context, Result, bail};

use crate::test::binaries::{self, Binary};

/// One planted bug and who finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bug {
    pub(crate) name: String,
    /// The tool of compute-sanitizer that is for it, if one is.
    pub(crate) tool: Option<String>,
    /// What the simulated driver calls it.
    pub(crate) report: String,
    /// Whether every order of events shows it.
    pub(crate) every_time: bool,
}

/// The program, and what it holds.
pub(crate) fn list(programs: &[Binary]) -> Result<(&Binary, Vec<Bug>)> {
    let program = binaries::program(programs, "granule-planted")?;
    let output = program.command().arg("--list").output().context("granule-planted does not start")?;
    if !output.status.success() {
        bail!("granule-planted --list: {}", output.status);
    }
    Ok((program, parse(&String::from_utf8_lossy(&output.stdout))?))
}

fn parse(listed: &str) -> Result<Vec<Bug>> {
    let bugs = listed.lines().map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [name, tool, report, when] => Ok(Bug {
            name: name.to_owned(),
            tool: (tool != "-").then(|| tool.to_owned()),
            report: report.to_owned(),
            every_time: when == "always",
        }),
        _ => bail!("granule-planted --list: {line:?}"),
    });
    bugs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read() {
        let bugs = parse("leak memcheck Leak always\nmissing-wait - StreamRace sometimes\n").unwrap();
        assert_eq!((bugs[0].tool.as_deref(), bugs[0].every_time), (Some("memcheck"), true));
        assert_eq!((bugs[1].tool.as_deref(), bugs[1].every_time), (None, false));
        assert!(parse("half a line").is_err());
    }
}
