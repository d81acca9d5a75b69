//! `granule trace summary`: what a recording comes to, as text for people and as JSON.

use std::collections::BTreeMap;
use std::fmt;

use granule_device::Bytes;
use serde_json::{Value, json};

use super::history::{Account, Device, History, OPEN};
use super::plain;
use crate::table::{Align, Table, count};

/// How many leases are listed that were still live at the end; the others are counted.
const LISTED: usize = 20;
/// The widest bar of a histogram.
const BAR: usize = 40;

/// A summary. It says of each device who held how much, what was leased, and what was left.
pub(crate) struct Summary<'a> {
    history: &'a History,
    devices: Vec<Part<'a>>,
}

/// One device's part.
struct Part<'a> {
    device: &'a Device,
    accounts: Vec<(&'a Account, Leases)>,
    /// Leases by the power of two that they fit into.
    sizes: BTreeMap<u64, u64>,
    all: Leases,
    /// Live leases at the end, the largest first.
    left: Vec<usize>,
}

/// Leases of one owner, or of all.
#[derive(Default)]
struct Leases {
    count: u64,
    requested: u64,
    given: u64,
    live: u64,
    peak_live: Option<u64>,
    steals: u64,
    /// Of those that ended, in order.
    lifetimes: Vec<u64>,
}

impl Leases {
    fn lifetime(&self, percent: usize) -> Option<u64> {
        let last = self.lifetimes.len().checked_sub(1)?;
        self.lifetimes.get(last * percent / 100).copied()
    }

    /// What size classes took beyond what was asked for, in percent of what they took.
    fn waste(&self) -> Option<f64> {
        (self.given > 0).then(|| self.given.saturating_sub(self.requested) as f64 * 100.0 / self.given as f64)
    }

    fn json(&self) -> Value {
        json!({
            "count": self.count,
            "requested_bytes": self.requested,
            "given_bytes": self.given,
            "waste_percent": self.waste(),
            "live": self.live,
            "peak_live_bytes": self.peak_live,
            "steals": self.steals,
            "lifetime_ns": {
                "p50": self.lifetime(50), "p90": self.lifetime(90), "p99": self.lifetime(99), "max": self.lifetime(100),
            },
        })
    }
}

impl<'a> Summary<'a> {
    pub(crate) fn new(history: &'a History) -> Summary<'a> {
        let parts = history.devices.iter().map(|device| Part {
            device,
            accounts: Vec::new(),
            sizes: BTreeMap::new(),
            all: Leases::default(),
            left: Vec::new(),
        });
        let mut devices: Vec<Part<'a>> = parts.collect();
        let mut leases: Vec<Leases> = history.accounts.iter().map(of_account).collect();
        for (index, lease) in history.leases.iter().enumerate() {
            let part = &mut devices[history.accounts[lease.account].device];
            let class = lease.requested.checked_next_power_of_two().unwrap_or(u64::MAX);
            *part.sizes.entry(class).or_default() += 1;
            if lease.to == OPEN {
                part.left.push(index);
            } else {
                leases[lease.account].lifetimes.push(lease.to - lease.from);
            }
        }
        for (account, mut leases) in history.accounts.iter().zip(leases) {
            leases.lifetimes.sort_unstable();
            let part = &mut devices[account.device];
            let all = &mut part.all;
            all.count += leases.count;
            all.requested = all.requested.saturating_add(leases.requested);
            all.given = all.given.saturating_add(leases.given);
            all.live += leases.live;
            all.steals += leases.steals;
            all.lifetimes.extend_from_slice(&leases.lifetimes);
            part.accounts.push((account, leases));
        }
        for part in &mut devices {
            part.all.lifetimes.sort_unstable();
            part.accounts
                .sort_by_key(|(account, _)| std::cmp::Reverse((account.peak_held, account.peak_live)));
            part.left.sort_by_key(|lease| std::cmp::Reverse(history.leases[*lease].given));
        }
        Summary { history, devices }
    }

    /// The devices' figures alone.
    pub(crate) fn figures(&self) -> Value {
        self.devices.iter().map(|part| self.device_json(part)).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let history = self.history;
        json!({
            "label": history.label,
            "unix_ms": (history.events > 0).then_some(history.unix_ms),
            "nanoseconds": history.end,
            "events": history.events,
            "lost_events": history.lost,
            "unknown_events": history.unknown,
            "complete": history.broken.is_none(),
            "problem": history.broken.as_ref().map(ToString::to_string),
            "devices": self.figures(),
        })
    }

    fn device_json(&self, part: &Part<'_>) -> Value {
        let device = part.device;
        let owner = |(account, leases): &(&Account, Leases)| {
            json!({
                "owner": account.name,
                "held_bytes": account.held,
                "peak_held_bytes": account.peak_held,
                "charged_bytes": account.charged,
                "used_bytes": account.used,
                "peak_used_bytes": account.peak_used,
                "granules_taken": account.taken,
                "granules_given": account.given,
                "refused": account.refused,
                "live_bytes": account.live,
                "leases": leases.json(),
            })
        };
        let left = |index: &usize| {
            let lease = &self.history.leases[*index];
            json!({
                "owner": self.history.accounts[lease.account].name,
                "address": lease.at,
                "requested_bytes": lease.requested,
                "given_bytes": lease.given,
                "since_ns": lease.from,
                "stream": lease.stream.map(|stream| &self.history.streams[stream].name),
            })
        };
        let sizes = part.sizes.iter().map(|(class, count)| json!({ "up_to_bytes": class, "count": count }));
        json!({
            "device": device.name,
            "granule_bytes": device.granule,
            "budget_bytes": device.budget,
            "held_bytes": device.held,
            "peak_held_bytes": device.peak_held,
            "peak_held_at_ns": device.peak_held_at,
            "used_bytes": device.used,
            "peak_used_bytes": device.peak_used,
            "granules": {
                "created": device.created, "create_calls": device.create_calls,
                "destroyed": device.destroyed, "destroy_calls": device.destroy_calls,
                "map_calls": device.maps, "unmap_calls": device.unmaps, "retired": device.retired,
            },
            "waits": device.waits,
            "captures": device.captures,
            "trims": device.trims,
            "trimmed_bytes": device.trimmed,
            "leases": part.all.json(),
            "sizes": sizes.collect::<Vec<_>>(),
            "owners": part.accounts.iter().map(owner).collect::<Vec<_>>(),
            "left": part.left.iter().map(left).collect::<Vec<_>>(),
        })
    }

    fn device(&self, part: &Part<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let device = part.device;
        let mut head = Table::new([Align::Left]);
        let (granule, budget) = (Bytes::new(device.granule), Bytes::new(device.budget));
        head.row([format!("{}: granules of {granule}, budget {budget}", plain(&device.name))]);
        write!(f, "\n{head}")?;
        let mut lines = Table::new([Align::Left, Align::Left]);
        lines.row([
            "  held".to_owned(),
            format!(
                "{} at the end, at most {} ({} into it); at most {} in use",
                Bytes::new(device.held),
                Bytes::new(device.peak_held),
                time(device.peak_held_at),
                Bytes::new(device.peak_used),
            ),
        ]);
        lines.row([
            "  granules".to_owned(),
            format!(
                "{} made in {}, {} destroyed in {}; {}, {}, {} retired",
                number(device.created),
                calls(device.create_calls, "call"),
                number(device.destroyed),
                calls(device.destroy_calls, "call"),
                calls(device.maps, "mapping"),
                calls(device.unmaps, "unmapping"),
                number(device.retired),
            ),
        ]);
        lines.row([
            "  streams".to_owned(),
            format!(
                "{} from others' heaps, {}, {}, {} that gave back {}",
                calls(part.all.steals, "lease"),
                calls(device.waits, "wait"),
                calls(device.captures, "capture"),
                calls(device.trims, "trim"),
                Bytes::new(device.trimmed),
            ),
        ]);
        write!(f, "{lines}\n{}", owners(part))?;
        if part.all.count > 0 {
            write!(f, "\n{}", sizes(part))?;
        }
        self.left(part, f)
    }

    fn end(&self) -> &'static str {
        if self.history.broken.is_none() { "at the end" } else { "where the recording breaks off" }
    }

    /// What was still live at the end.
    fn left(&self, part: &Part<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let left = &part.left;
        if left.is_empty() {
            return writeln!(f, "\nno lease was live {}", self.end());
        }
        let bytes = left.iter().map(|lease| self.history.leases[*lease].given).fold(0, u64::saturating_add);
        let leases = calls(left.len() as u64, "lease");
        writeln!(f, "\n{leases} live {}, {}:", self.end(), Bytes::new(bytes))?;
        let mut table = Table::new([Align::Right, Align::Left, Align::Left, Align::Right, Align::Right]);
        for index in left.iter().take(LISTED) {
            let lease = &self.history.leases[*index];
            table.row([
                format!("  {}", Bytes::new(lease.requested)),
                plain(&self.history.accounts[lease.account].name),
                match lease.stream {
                    Some(stream) => plain(&self.history.streams[stream].name),
                    None => "-".to_owned(),
                },
                format!("since {}", time(lease.from)),
                format!("{:#x}", lease.at),
            ]);
        }
        write!(f, "{table}")?;
        match left.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => writeln!(f, "  and {} more", count(more)),
        }
    }
}

fn of_account(account: &Account) -> Leases {
    Leases {
        count: account.leases,
        requested: account.sum_requested,
        given: account.sum_given,
        live: account.live_leases,
        peak_live: Some(account.peak_live),
        steals: account.steals,
        lifetimes: Vec::new(),
    }
}

impl fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let history = self.history;
        let mut head = Table::new([Align::Left]);
        if let (0, Some(broken)) = (history.events, &history.broken) {
            head.row([format!("The recording holds nothing: {broken}.")]);
            return write!(f, "{head}");
        }
        head.row([if history.label.is_empty() { "(no label)".to_owned() } else { plain(&history.label) }]);
        head.row([format!(
            "{}, {}, {} events",
            when(history.unix_ms),
            time(history.end),
            number(history.events)
        )]);
        if let Some(broken) = &history.broken {
            head.row([format!("INCOMPLETE: {broken}. What follows is what could be read.")]);
        }
        if history.lost > 0 {
            head.row([format!("{} events are missing: the disk did not keep up", number(history.lost))]);
        }
        if history.unknown > 0 {
            let unknown = number(history.unknown);
            head.row([format!(
                "{unknown} events name memory that the recording did not see taken, and are left out"
            )]);
        }
        write!(f, "{head}")?;
        self.devices.iter().try_for_each(|part| self.device(part, f))
    }
}

fn owners(part: &Part<'_>) -> Table {
    let mut table = Table::new([
        Align::Left,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
        Align::Right,
    ]);
    table.row(["owner", "held", "peak", "leases", "live", "peak", "waste", "half live", "refused"]);
    for (account, leases) in &part.accounts {
        table.row([
            plain(&account.name),
            Bytes::new(account.held).to_string(),
            Bytes::new(account.peak_held).to_string(),
            number(account.leases),
            Bytes::new(account.live).to_string(),
            Bytes::new(account.peak_live).to_string(),
            leases.waste().map_or_else(|| "-".to_owned(), |waste| format!("{waste:.1}%")),
            leases.lifetime(50).map_or_else(|| "-".to_owned(), |ns| format!("< {}", time(ns))),
            number(account.refused),
        ]);
    }
    table
}

fn sizes(part: &Part<'_>) -> Table {
    let mut table = Table::new([Align::Left, Align::Right, Align::Left]);
    table.row(["lease of up to", "count", ""]);
    let most = part.sizes.values().copied().max().unwrap_or(1);
    for (class, n) in &part.sizes {
        let bar = usize::try_from(u128::from(*n) * BAR as u128 / u128::from(most)).unwrap_or(BAR).max(1);
        table.row([Bytes::new(*class).to_string(), number(*n), "#".repeat(bar)]);
    }
    table
}

fn number(n: u64) -> String {
    count(usize::try_from(n).unwrap_or(usize::MAX))
}

/// "1 call", "2 calls".
fn calls(n: u64, what: &str) -> String {
    format!("{} {what}{}", number(n), if n == 1 { "" } else { "s" })
}

/// A span of time in the unit that suits it.
pub(crate) fn time(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// The moment in UTC.
pub(crate) fn when(unix_ms: u64) -> String {
    let moment = i64::try_from(unix_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    match moment.filter(|_| unix_ms > 0) {
        Some(moment) => format!("{moment:.0}").replace('T', " ").replace('Z', " UTC"),
        None => "at an unknown time".to_owned(),
    }
}
