//! What the simulator needs to know of a PTX module: version, target, and each kernel's parameters.

use std::collections::BTreeMap;

/// One `.entry`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    /// Bytes of each parameter.
    pub(crate) parameters: Vec<u32>,
    /// `.maxntid`, multiplied out.
    pub(crate) most_threads: Option<u32>,
    /// Bytes of shared memory declared in the kernel.
    pub(crate) shared: u32,
}

/// A module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// `.version`: major and minor.
    pub(crate) version: (u32, u32),
    /// `.target sm_80`: 80.
    pub(crate) target: u32,
    /// `.target sm_90a`: this compute capability and no other.
    pub(crate) exact: bool,
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// The newest PTX that a driver of this version takes; both as the driver numbers them (12040).
/// Source: the table of releases in the PTX ISA documentation.
pub(crate) fn newest_version(driver: i32) -> (u32, u32) {
    let (major, minor) = (driver / 1000, driver % 1000 / 10);
    match (major, minor) {
        (11, m) => (7, m.min(8) as u32),
        (12, m @ 0..=5) => (8, m as u32),
        (12, 6) => (8, 5),
        (12, 7) => (8, 6),
        (12, 8) => (8, 7),
        (12, _) => (8, 8),
        (13, m) => (9, m as u32),
        _ => (99, 0),
    }
}

/// Reads a module. The error says what is missing.
pub(crate) fn parse(text: &str) -> Result<Module, String> {
    let text = without_comments(text);
    let words = tokens(&text);
    let mut version = None;
    let mut target = None;
    let mut entries = BTreeMap::new();
    let mut at = 0;
    while let Some(word) = words.get(at) {
        match *word {
            ".version" => version = words.get(at + 1).and_then(|w| parse_version(w)),
            ".target" => target = words.get(at + 1).and_then(|w| parse_target(w)),
            ".entry" => {
                let (name, entry) = parse_entry(&words[at + 1..])?;
                entries.insert(name, entry);
            }
            _ => {}
        }
        at += 1;
    }
    let (target, exact) = target.ok_or("no .target sm_…")?;
    Ok(Module { version: version.ok_or("no .version")?, target, exact, entries })
}

fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find('/') {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
            out.push(' ');
        } else {
            out.push('/');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

fn tokens(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for piece in text.split_whitespace() {
        let mut rest = piece;
        while let Some(at) = rest.find(|c| "(),;{}[]".contains(c)) {
            if at > 0 {
                words.push(&rest[..at]);
            }
            words.push(&rest[at..=at]);
            rest = &rest[at + 1..];
        }
        if !rest.is_empty() {
            words.push(rest);
        }
    }
    words
}

fn parse_version(word: &str) -> Option<(u32, u32)> {
    let (major, minor) = word.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

fn parse_target(word: &str) -> Option<(u32, bool)> {
    let number = word.strip_prefix("sm_")?;
    let plain = number.trim_end_matches(char::is_alphabetic);
    Some((plain.parse().ok()?, number != plain))
}

/// Bytes of a fundamental type such as `.u64`.
fn type_size(word: &str) -> Option<u32> {
    let bits = word.strip_prefix('.')?.trim_start_matches(['u', 's', 'b', 'f']);
    match bits {
        "8" => Some(1),
        "16" => Some(2),
        "32" => Some(4),
        "64" => Some(8),
        "128" => Some(16),
        _ => None,
    }
}

fn parse_entry(words: &[&str]) -> Result<(String, Entry), String> {
    let name = words.first().ok_or(".entry without a name")?.to_string();
    let mut entry = Entry::default();
    let mut at = 1;
    if words.get(at) == Some(&"(") {
        at += 1;
        while let Some(&word) = words.get(at).filter(|w| **w != ")") {
            if word == ".param" {
                let (size, used) =
                    declared_size(&words[at + 1..]).ok_or(format!("a parameter of {name} has no size"))?;
                entry.parameters.push(size);
                at += used;
            }
            at += 1;
        }
    }
    // Directives such as .maxntid, then the body.
    while let Some(&word) = words.get(at).filter(|w| **w != "{" && **w != ";") {
        if word == ".maxntid" {
            let numbers = words[at + 1..].iter().filter(|w| **w != ",").map_while(|w| w.parse::<u32>().ok());
            entry.most_threads = Some(numbers.fold(1, u32::saturating_mul));
        }
        at += 1;
    }
    let mut depth = 0;
    while let Some(&word) = words.get(at) {
        match word {
            "{" => depth += 1,
            "}" => depth -= 1,
            ".shared" if words.get(at.wrapping_sub(1)) != Some(&".extern") => {
                entry.shared += declared_size(&words[at + 1..]).map_or(0, |(size, _)| size);
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
        at += 1;
    }
    Ok((name, entry))
}

/// The size of `.align 8 .b8 name[16]` or `.u64 name`, and how many words that took.
fn declared_size(words: &[&str]) -> Option<(u32, usize)> {
    let mut size = None;
    for (n, word) in words.iter().enumerate() {
        match *word {
            "[" => return Some((size? * words.get(n + 1)?.parse::<u32>().ok()?, n + 2)),
            "," | ")" | ";" => return Some((size?, n.saturating_sub(1))),
            _ => size = size.or_else(|| type_size(word)),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "
//
// Generated by a compiler
//
.version 8.4
.target sm_80
.address_size 64

	// .globl	add
.extern .shared .align 16 .b8 more[];
.visible .entry add(
	.param .u64 add_param_0, /* a pointer */
	.param .u64 .ptr .global .align 1 add_param_1,
	.param .align 8 .b8 add_param_2[24],
	.param .f32 add_param_3
)
.maxntid 128, 2, 1
{
	.reg .b32 	%r<5>;
	.shared .align 4 .b8 tile[1024];
	ld.param.u64 	%rd1, [add_param_0];
	{ add.s32 %r1, %r2, %r3; }
	ret;
}
.visible .entry nothing()
{
	ret;
}";

    #[test]
    fn versions_targets_and_parameters_are_read() {
        let module = parse(TEXT).unwrap();
        assert_eq!((module.version, module.target, module.exact), ((8, 4), 80, false));
        let add = Entry { parameters: vec![8, 8, 24, 4], most_threads: Some(256), shared: 1024 };
        assert_eq!(module.entries["add"], add);
        assert_eq!(module.entries["nothing"], Entry::default());
        assert_eq!(module.entries.len(), 2);
    }

    #[test]
    fn an_architecture_specific_target_is_exact() {
        let module = parse(".version 8.7\n.target sm_90a\n").unwrap();
        assert_eq!((module.target, module.exact), (90, true));
        assert_eq!(parse("hello").unwrap_err(), "no .target sm_…");
        assert_eq!(parse(".target sm_80").unwrap_err(), "no .version");
    }

    #[test]
    fn drivers_take_ptx_up_to_their_own() {
        for (driver, version) in
            [(11080, (7, 8)), (12040, (8, 4)), (12060, (8, 5)), (12080, (8, 7)), (13000, (9, 0))]
        {
            assert_eq!(newest_version(driver), version);
        }
    }
}
