//! What the pool has to hold, measured in one run.

use super::memory::{granule, history, ratios};
use super::threads::scripts;
use super::{Effort, Section, look_at};
use crate::crowd::crowd;
use crate::play::{Turn, compare, median, turn};
use crate::subjects::{ClassLifo, GgmlList, Granule, Nothing};
use crate::table::Table;
use crate::workload::{KvBlocks, Sizes, churn};
use crate::{Player, Script, Subject};

pub(super) const TITLE: &str = "Ratios";

const ABOUT: &str = "Random sizes to 1 MiB, one thread, lock included. Those compared take turns of a few milliseconds; a ratio is \
    the median of the turns' ratios, after what the harness needs in the same round has been taken off both sides (`raw`: \
    before that). ns: of an allocation and a free, raw.";

struct Rows {
    table: Table,
}

impl Rows {
    fn add(&mut self, what: &str, [target, measured, raw]: [String; 3], met: bool, details: String) {
        let met = if met { "yes" } else { "NO" };
        self.table.row(vec![what.into(), target, measured, raw, met.into(), details]);
    }
}

pub(super) fn section(effort: Effort) -> Section {
    let table = Table::new(["", "target", "measured", "raw", "met", "from"]);
    let mut rows = Rows { table };
    one_thread(effort, &mut rows);
    two_threads(effort, &mut rows);
    load_and_unload(effort, &mut rows);
    Section { title: TITLE.into(), about: ABOUT, table: rows.table }
}

/// A player in its second cycle.
fn warm<'a, S: Subject>(subject: &'a S, script: &'a Script) -> Turn<'a> {
    let mut player = Player::new(subject, script, 0);
    player.cycle();
    turn(player)
}

fn ratio(over: &[f64], under: &[f64]) -> f64 {
    median(over.iter().zip(under).map(|(over, under)| over / under))
}

fn less(from: &[f64], what: &[f64]) -> Vec<f64> {
    from.iter().zip(what).map(|(from, what)| from - what).collect()
}

/// One subject's medians of the rounds, with the harness and without.
struct Times {
    raw: Vec<f64>,
    net: Vec<f64>,
}

impl Times {
    fn over(&self, floor: &Times) -> (f64, f64) {
        (ratio(&self.net, &floor.net), ratio(&self.raw, &floor.raw))
    }

    fn ns(&self) -> String {
        format!("{:.1} ns", median(self.raw.iter().copied()))
    }
}

fn one_thread(effort: Effort, rows: &mut Rows) {
    let mut at = Vec::new();
    for live in [100, 1_000, 10_000] {
        let script = churn(live, Sizes::CLASSES, effort.pairs, live as u64);
        let (pool, floor, list) = (Granule::new(1), ClassLifo::default(), GgmlList::new(1));
        let mut turns = vec![warm(&Nothing, &script), warm(&floor, &script), warm(&pool, &script)];
        if live == 1_000 {
            turns.push(warm(&list, &script));
        }
        let before = pool.footprint().calls;
        let mut times = compare(&mut turns, effort.rounds, effort.turn).into_iter();
        let calls = pool.footprint().calls.zip(before).map_or(u64::MAX, |(after, before)| after - before);
        drop(turns);
        let harness = times.next().unwrap_or_default();
        let mut times = times.map(|raw| Times { net: less(&raw, &harness), raw });
        let (Some(floor), Some(pool)) = (times.next(), times.next()) else { return };
        let (net, raw) = pool.over(&floor);
        let cells = ["≤ 1.30".into(), format!("{net:.2}"), format!("{raw:.2}")];
        let from =
            format!("{} over {}, harness {:.1} ns", pool.ns(), floor.ns(), median(harness.iter().copied()));
        rows.add(&format!("the pool over the class-LIFO floor, {live} live"), cells, net <= 1.3, from);
        let cells = ["0".into(), calls.to_string(), String::new()];
        rows.add(
            &format!("driver calls after the first cycle, {live} live"),
            cells,
            calls == 0,
            String::new(),
        );
        if let Some(list) = times.next() {
            let (net, raw) = list.over(&pool);
            let cells = ["≥ 3.00".into(), format!("{net:.2}"), format!("{raw:.2}")];
            let from = format!("{} over {}", list.ns(), pool.ns());
            rows.add("ggml's best-fit list, no lock, over the pool, 1000 live", cells, net >= 3.0, from);
        }
        at.push((pool, floor));
    }
    if let [(pool_few, floor_few), .., (pool_many, floor_many)] = at.as_slice() {
        let (net, raw) = pool_many.over(pool_few);
        let cells = ["0.75 to 1.25".into(), format!("{net:.2}"), format!("{raw:.2}")];
        let (floor, _) = floor_many.over(floor_few);
        let from = format!("{} over {}; the floor itself: {floor:.2}", pool_many.ns(), pool_few.ns());
        rows.add("the pool, 10000 live over 100 live", cells, (0.75..=1.25).contains(&net), from);
    }
}

fn two_threads(effort: Effort, rows: &mut Rows) {
    let (pool, scripts) = (Granule::new(2), scripts(effort, 2));
    let (mut one, mut two) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds.div_ceil(8) {
        one.push(crowd(&pool, &scripts[..1], 4 * effort.turn).pairs_per_second);
        two.push(crowd(&pool, &scripts, 4 * effort.turn).pairs_per_second);
    }
    let both = ratio(&two, &one);
    let cells = ["≥ 1.60".into(), format!("{both:.2}"), String::new()];
    let [one, two] = [one, two].map(|rates| median(rates) / 1e6);
    let from = format!("{two:.1} over {one:.1} million pairs a second");
    rows.add("two threads on two streams over one", cells, both >= 1.6, from);
}

fn load_and_unload(effort: Effort, rows: &mut Rows) {
    let pool = Granule::with(1, granule(effort));
    let (looks, _) = look_at(&pool, &history(effort, KvBlocks::One));
    let (mean, worst, phase) = ratios(&looks, granule(effort)).unwrap_or((f64::NAN, f64::NAN, ""));
    let left = looks.last().and_then(|look| look.held);
    let cells = ["≤ 1.03".into(), format!("{mean:.3}"), String::new()];
    let from =
        format!("all of {} trims together; the worst of them {worst:.3}, after \"{phase}\"", looks.len());
    rows.add("held over live, models loaded and unloaded", cells, mean <= 1.03, from);
    let cells = ["0 B".into(), crate::table::bytes(left), String::new()];
    rows.add("held when everything was freed and trimmed", cells, left == Some(0), String::new());
}
