//! `granule trace`: the summary, the page and the lines against the events themselves, read naively; and files that are none.

mod files;
mod naive;
mod recording;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use granule_bank::trace::{Reader, Record};
use serde_json::Value;

use crate::{json, output, stderr, stdout, text_of};
use naive::Naive;

/// A name that would like to be markup, to end the data, and to turn round what stands beside it.
const HOSTILE: &str = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"\u{202e}\u{2028}\0";

fn recorded(dir: &Path, tokens: usize) -> (PathBuf, Vec<Record>) {
    let path = dir.join("engine.trace");
    recording::record(&path, HOSTILE, tokens);
    let records = Reader::new(File::open(&path).unwrap()).unwrap().map(Result::unwrap).collect();
    (path, records)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_summary_counts_what_the_events_say() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = recorded(dir.path(), 12);
    let naive = Naive::of(&records);
    let told = json(&["trace", "summary", text_of(&path), "--json"]);
    assert_eq!(told["label"], "an engine <b>of</b> tales");
    assert_eq!(number(&told["events"]), records.len() as u64);
    assert_eq!(number(&told["nanoseconds"]), records[records.len() - 1].ns);
    assert_eq!((&told["complete"], &told["problem"]), (&Value::Bool(true), &Value::Null));
    assert_eq!((number(&told["lost_events"]), number(&told["unknown_events"])), (0, 0));
    let [device] = &told["devices"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!(number(&device["held_bytes"]), naive.moments.last().unwrap().held());
    let peak = naive.moments.iter().map(naive::Moment::held).max().unwrap();
    assert_eq!(number(&device["peak_held_bytes"]), peak);
    let peak_at = naive.moments.iter().find(|moment| moment.held() == peak).unwrap().ns;
    assert_eq!(number(&device["peak_held_at_ns"]), peak_at);
    assert_eq!(
        number(&device["peak_used_bytes"]),
        naive.moments.iter().map(naive::Moment::used).max().unwrap()
    );
    assert_eq!(number(&device["granules"]["created"]), naive.created);
    assert_eq!(number(&device["granules"]["destroyed"]), naive.destroyed);
    let leases = &device["leases"];
    assert_eq!(number(&leases["count"]), naive.leases.len() as u64);
    let (requested, given) =
        naive.leases.iter().fold((0, 0), |(r, g), lease| (r + lease.requested, g + lease.given));
    assert_eq!((number(&leases["requested_bytes"]), number(&leases["given_bytes"])), (requested, given));
    let waste = leases["waste_percent"].as_f64().unwrap();
    assert!((waste - (given - requested) as f64 * 100.0 / given as f64).abs() < 1e-9);
    let mut lives: Vec<u64> = naive.leases.iter().filter_map(|lease| Some(lease.to? - lease.from)).collect();
    lives.sort_unstable();
    assert_eq!(number(&leases["lifetime_ns"]["max"]), lives[lives.len() - 1]);
    let p50 = number(&leases["lifetime_ns"]["p50"]);
    assert!(lives.iter().filter(|life| **life < p50).count() <= lives.len() / 2);
    assert!(lives.iter().filter(|life| **life > p50).count() <= lives.len() / 2);
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    for lease in &naive.leases {
        *sizes
            .entry((0..).map(|bit| 1 << bit).find(|class| *class >= lease.requested).unwrap())
            .or_default() += 1;
    }
    let told_sizes: BTreeMap<u64, u64> = device["sizes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|size| (number(&size["up_to_bytes"]), number(&size["count"])))
        .collect();
    assert_eq!(told_sizes, sizes);
    for owner in device["owners"].as_array().unwrap() {
        let name = owner["owner"].as_str().unwrap();
        let held = |moment: &naive::Moment| moment.owners.get(name).map_or(0, |owner| owner.held);
        assert_eq!(number(&owner["held_bytes"]), held(naive.moments.last().unwrap()), "{name}");
        assert_eq!(
            number(&owner["peak_held_bytes"]),
            naive.moments.iter().map(held).max().unwrap(),
            "{name}"
        );
        let mine = naive.leases.iter().filter(|lease| lease.owner == name).count();
        assert_eq!(number(&owner["leases"]["count"]), mine as u64, "{name}");
        assert_eq!(number(&owner["refused"]), u64::from(name == HOSTILE), "{name}");
    }
    assert_eq!(device["owners"].as_array().unwrap().len(), 4);
    let [left] = &device["left"].as_array().unwrap()[..] else { panic!("{device}") };
    let leaked: Vec<_> = naive.leases.iter().filter(|lease| lease.to.is_none()).collect();
    assert_eq!(leaked.len(), 1);
    assert_eq!(number(&left["address"]), leaked[0].at);
    assert_eq!((&left["owner"], number(&left["requested_bytes"])), (&Value::from("scratch"), 777_216));
}

#[test]
fn a_summary_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = recorded(dir.path(), 3);
    let told = stdout(&["trace", "summary", text_of(&path)]);
    assert!(told.starts_with("an engine <b>of</b> tales\n"), "{told}");
    for line in
        ["host linux x86_64: granules of 2.0 MiB, budget 400.0 MiB", "weights", "1 lease live at the end"]
    {
        assert_eq!(told.lines().filter(|told| told.starts_with(line)).count(), 1, "{line}: {told}");
    }
    assert!(told.contains("  759.0 KiB  scratch  compute"), "{told}");
    assert!(!told.contains("INCOMPLETE") && !told.contains(['\0', '\u{202e}']), "{told}");
}

#[test]
fn lines_are_the_events() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = recorded(dir.path(), 3);
    let lines: Vec<Value> = stdout(&["trace", "export", text_of(&path)])
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), records.len());
    assert!(lines.iter().zip(&records).all(|(line, record)| number(&line["ns"]) == record.ns));
    assert_eq!(
        (&lines[0]["event"], &lines[lines.len() - 1]["event"]),
        (&Value::from("start"), &Value::from("end"))
    );
    let naive = Naive::of(&records);
    let of = |event: &'static str| lines.iter().filter(move |line| line["event"] == event);
    for (number_of, (line, lease)) in of("alloc").zip(&naive.leases).enumerate() {
        assert_eq!(number(&line["lease"]), number_of as u64);
        assert_eq!((number(&line["requested"]), number(&line["at"])), (lease.requested, lease.at));
    }
    assert_eq!(of("alloc").count(), naive.leases.len());
    for line in of("free") {
        let lease = &naive.leases[number(&line["lease"]) as usize];
        assert_eq!(lease.to, Some(number(&line["ns"])));
    }
}

/// The page's data, and its columns as numbers.
fn page_data(page: &str) -> (Value, BTreeMap<String, Vec<f64>>) {
    use base64::Engine;
    let (_, rest) = page.split_once("id=\"data\">").unwrap();
    let (data, _) = rest.split_once("</script>").unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    let decoded =
        |text: &Value| base64::engine::general_purpose::STANDARD.decode(text.as_str().unwrap()).unwrap();
    let columns = data["columns"].as_object().unwrap().iter().map(|(name, column)| {
        let numbers = if column["f64"].is_string() {
            decoded(&column["f64"]).as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
        } else {
            decoded(&column["u32"])
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f64::from(u32::from_le_bytes(*bytes)))
                .collect()
        };
        (name.clone(), numbers)
    });
    (data.clone(), columns.collect())
}

#[test]
fn a_page_holds_what_was_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (path, records) = recorded(dir.path(), 12);
    let output = output(&["trace", "view", text_of(&path)]);
    assert!(output.status.success() && output.stdout.is_empty(), "{}", stderr(&output));
    let beside = dir.path().join("engine.trace.html");
    assert_eq!(stderr(&output), format!("{}\n", text_of(&beside)));
    let page = std::fs::read_to_string(&beside).unwrap();
    assert_eq!(stdout(&["trace", "view", text_of(&path), "-o", "-"]), page);
    let (data, columns) = page_data(&page);
    let naive = Naive::of(&records);
    let name = |account: f64| data["accounts"][account as usize]["name"].as_str().unwrap();
    let range = |range: f64| (range as u32 != u32::MAX).then(|| &data["ranges"][range as usize]);

    let column = |name: &str| &columns[name];
    assert_eq!(column("lease.from").len(), naive.leases.len());
    for (i, lease) in naive.leases.iter().enumerate() {
        assert_eq!(column("lease.from")[i], lease.from as f64);
        assert_eq!(column("lease.to")[i], lease.to.map_or(f64::INFINITY, |to| to as f64));
        assert_eq!(column("lease.requested")[i], lease.requested as f64);
        assert_eq!(column("lease.given")[i], lease.given as f64);
        assert_eq!(name(column("lease.account")[i]), lease.owner);
        let base = range(column("lease.range")[i]).unwrap()["base"].as_str().unwrap();
        let base = u64::from_str_radix(base.trim_start_matches("0x"), 16).unwrap();
        assert_eq!(base + column("lease.at")[i] as u64, lease.at);
    }
    for (index, moment) in naive.moments.iter().enumerate() {
        let t = moment.ns as f64;
        // The curves say what was after the last event of a moment.
        if naive.moments.get(index + 1).is_some_and(|next| next.ns == moment.ns) {
            continue;
        }
        let curve = |kind: &str, owner: &str| {
            let (ns, of) = (column(&format!("{kind}.ns")), column(&format!("{kind}.account")));
            let last = (0..ns.len()).rev().find(|i| ns[*i] <= t && name(of[*i]) == naive::shown(owner));
            last.map_or(0.0, |i| column(&format!("{kind}.bytes"))[i])
        };
        for (owner, expected) in &moment.owners {
            assert_eq!(curve("held", owner), expected.held as f64, "{owner} at {t}");
            assert_eq!(curve("used", owner), expected.used as f64, "{owner} at {t}");
        }
        let there = |i: &usize| column("placement.from")[*i] <= t && t < column("placement.to")[*i];
        let mut placed: Vec<_> = (0..column("placement.from").len())
            .filter(there)
            .map(|i| {
                let id = number(&range(column("placement.range")[i]).unwrap()["id"]) as u32;
                let retired = column("placement.retired")[i] <= t;
                (id, column("placement.place")[i] as u64, column("placement.granule")[i] as u64, retired)
            })
            .collect();
        placed.sort_unstable();
        assert_eq!(placed, moment.placed, "at {t}");
    }
    let marks = data["moments"].as_array().unwrap().iter().filter(|moment| moment["what"] == "mark");
    assert_eq!(marks.count(), 12 + 4);
    let told = json(&["trace", "summary", text_of(&path), "--json"]);
    let shown = serde_json::to_string(&naive::shown(HOSTILE)).unwrap();
    let told = told["devices"].to_string().replace(&serde_json::to_string(HOSTILE).unwrap(), &shown);
    assert_eq!(data["summary"], serde_json::from_str::<Value>(&told).unwrap());
}

#[test]
fn names_are_never_markup_and_nothing_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = recorded(dir.path(), 2);
    let page = stdout(&["trace", "view", text_of(&path), "-o", "-"]);
    assert_eq!(page.matches("<script").count(), 2);
    assert_eq!(page.matches("</script").count(), 2);
    assert!(!page.contains("<img") && !page.contains("<b>of"));
    assert!(!page.contains('\u{202e}') && !page.contains('\u{2028}') && !page.contains('\0'));
    assert!(page.contains("<title>an engine &lt;b>of&lt;/b> tales"));
    assert!(page.contains("default-src 'none'"));
    for outside in
        ["http:", "https:", "//cdn", "url(", "@import", "src=\"", "<link", "fetch(", "XMLHttpRequest"]
    {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(!page.contains("<!--"), "a slot was left open");
}

#[test]
fn a_file_that_was_cut_is_told_of_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    // Two blocks and more.
    let (path, _) = recorded(dir.path(), 300);
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes.len() > 140_000);
    let cut = dir.path().join("cut.trace");
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).unwrap();
    let mut damaged = bytes.clone();
    let at = damaged.len() - 100;
    damaged[at] ^= 1;
    let bad = dir.path().join("bad.trace");
    std::fs::write(&bad, damaged).unwrap();
    for (file, word) in [(&cut, "too early"), (&bad, "damaged")] {
        for args in [
            &["trace", "summary", text_of(file)][..],
            &["trace", "summary", text_of(file), "--json"],
            &["trace", "view", text_of(file), "-o", "-"],
            &["trace", "export", text_of(file)],
        ] {
            let output = output(args);
            let (said, told) = (stderr(&output), String::from_utf8(output.stdout).unwrap());
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
            assert!(said.contains(word) && said.contains("at byte") && said.contains(".trace"), "{said}");
            match args {
                [_, "summary", _] => {
                    assert!(told.contains("INCOMPLETE") && told.contains("weights"), "{told}")
                }
                [_, "summary", ..] => {
                    let told: Value = serde_json::from_str(&told).unwrap();
                    assert_eq!(told["complete"], false);
                    assert!(told["problem"].as_str().unwrap().contains(word));
                    assert!(number(&told["events"]) > 1000);
                }
                [_, "view", ..] => assert!(page_data(&told).0["broken"].as_str().unwrap().contains(word)),
                _ => assert!(told.lines().count() > 1000 && !told.contains("\"event\":\"end\"")),
            }
        }
    }
}

#[test]
fn files_that_are_no_traces() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (good, _) = recorded(dir.path(), 1);
    let mut newer = std::fs::read(good).unwrap();
    newer[8] = 9;
    let missing = dir.path().join("no-such.trace");
    let page = dir.path().join("page.html");
    for (path, words) in [
        (missing, ["no-such.trace", "No such file"]),
        (file("empty", b""), ["empty", "not a Granule trace"]),
        (file("text", b"once upon a time"), ["text", "not a Granule trace"]),
        (file("newer", &newer), ["newer", "version 9"]),
        (file("head", &newer[..5]), ["head", "too early"]),
        (dir.path().to_path_buf(), ["directory", ""]),
    ] {
        for args in [
            &["trace", "summary", text_of(&path)][..],
            &["trace", "view", text_of(&path), "-o", text_of(&page)],
            &["trace", "export", text_of(&path)],
        ] {
            let output = output(args);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(output.stdout.is_empty() && !page.exists(), "{args:?}");
            assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
            assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        }
    }
}
