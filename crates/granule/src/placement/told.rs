//! Where a model's layers are, as it is told: on stderr, beside a measurement, and in JSON.

use std::ops::Range;

use granule_llama::{Stage, StageRank};
use serde_json::{Value, json};

/// Layers that are in one place, or split over several.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    layers: Range<usize>,
    /// In the order of the ranks, where there are several.
    devices: Vec<String>,
    /// The parts that are in this process; empty where the layers are whole.
    ranks: Vec<StageRank>,
}

fn runs<'a>(stages: impl Iterator<Item = Stage<'a>>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for Stage { device, layers, rank, .. } in stages {
        let device = device.to_owned();
        match runs.last_mut() {
            Some(last) if rank.is_some() && last.layers == layers => {
                last.devices.push(device);
                last.ranks.extend(rank);
            }
            _ => runs.push(Run { layers, devices: vec![device], ranks: rank.into_iter().collect() }),
        }
    }
    runs
}

/// "host ×2", "cuda:0 + cuda:1".
pub(crate) fn together(devices: &[String]) -> String {
    let is_virtual = |name: &String| name.starts_with("host:");
    if devices.len() > 1 && devices.iter().all(is_virtual) {
        return format!("host ×{}", devices.len());
    }
    devices.join(" + ")
}

/// Whole numbers as small as they can be: "3:1".
fn ratio(parts: impl Iterator<Item = usize> + Clone) -> String {
    let divisor = parts.clone().fold(0, gcd).max(1);
    parts.map(|part| (part / divisor).to_string()).collect::<Vec<_>>().join(":")
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn numbers(layers: &Range<usize>) -> String {
    match layers.end.saturating_sub(1) {
        last if last == layers.start => last.to_string(),
        last => format!("{} to {last}", layers.start),
    }
}

impl Run {
    fn describe(&self) -> String {
        let (layers, devices) = (numbers(&self.layers), together(&self.devices));
        match self.ranks.first() {
            None => format!("{layers} on {devices}"),
            Some(rank) if self.ranks.len() < rank.ranks => {
                format!("{layers} split over {} ranks, rank {} on {devices}", rank.ranks, rank.rank)
            }
            Some(_) => {
                let heads = ratio(self.ranks.iter().map(|rank| rank.heads.len()));
                let ff = ratio(self.ranks.iter().map(|rank| rank.ff.len()));
                let parts = if heads == ff { heads } else { format!("heads {heads}, feed-forward {ff}") };
                format!("{layers} split over {devices} ({parts})")
            }
        }
    }
}

/// "layers 0 to 3 on host, 4 to 15 split over cuda:0 + cuda:1 (3:1)". Where heads go round less evenly than the rest, both
/// are told; of ranks that are processes each knows where it is itself: "layers 0 to 15 split over 2 ranks, rank 0 on host".
pub(crate) fn describe<'a>(stages: impl Iterator<Item = Stage<'a>>) -> String {
    format!("layers {}", runs(stages).iter().map(Run::describe).collect::<Vec<_>>().join(", "))
}

/// The same for a program: each run of layers, first and last, and who has which part of them.
pub(crate) fn json<'a>(stages: impl Iterator<Item = Stage<'a>>) -> Value {
    runs(stages).iter().map(run_as_json).collect()
}

fn run_as_json(run: &Run) -> Value {
    let range = |range: &Range<usize>| json!([range.start, range.end.saturating_sub(1)]);
    let rank = |(rank, device): (&StageRank, &String)| {
        json!({
            "rank": rank.rank,
            "device": device,
            "heads": range(&rank.heads),
            "kv_heads": range(&rank.kv_heads),
            "ff": range(&rank.ff),
            "vocab": range(&rank.vocab),
        })
    };
    json!({
        "layers": range(&run.layers),
        "device": together(&run.devices),
        "n_ranks": run.ranks.first().map_or(1, |rank| rank.ranks),
        "ranks": run.ranks.iter().zip(&run.devices).map(rank).collect::<Vec<_>>(),
    })
}

/// Which part of split layers is on a device: "rank 1 of 2 (heads 6 to 7, …)". None where it has none.
pub(crate) fn part_on<'a>(stages: impl Iterator<Item = Stage<'a>>, device: &str) -> Option<String> {
    let mut parts: Vec<String> = Vec::new();
    for rank in stages.filter(|stage| stage.device == device).filter_map(|stage| stage.rank) {
        let told = part(&rank);
        if !parts.contains(&told) {
            parts.push(told);
        }
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn part(rank: &StageRank) -> String {
    let StageRank { rank, ranks, heads, kv_heads, ff, .. } = rank;
    format!(
        "rank {rank} of {ranks} (heads {}, key-value heads {}, feed-forward {})",
        numbers(heads),
        numbers(kv_heads),
        numbers(ff)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn devices_are_named_together() {
        assert_eq!(together(&names(&["host"])), "host");
        assert_eq!(together(&names(&["host:1"])), "host:1");
        assert_eq!(together(&names(&["host:0", "host:1", "host:2"])), "host ×3");
        assert_eq!(together(&names(&["cuda:1", "cuda:0"])), "cuda:1 + cuda:0");
        assert_eq!(together(&names(&["host", "cuda:0"])), "host + cuda:0");
    }

    #[test]
    fn ratios_are_in_lowest_terms() {
        for (parts, told) in
            [(&[24, 8][..], "3:1"), (&[9, 3, 3], "3:1:1"), (&[5], "1"), (&[3, 2], "3:2"), (&[], "")]
        {
            assert_eq!(ratio(parts.iter().copied()), told);
        }
        assert_eq!([numbers(&(3..4)), numbers(&(0..16))], ["3", "0 to 15"]);
    }
}
