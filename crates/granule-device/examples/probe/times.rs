//! How long the calls take that Granule makes when memory grows and shrinks.

use std::time::Instant;

use crate::driver::{Answer, Gpu, Home};

const ROUNDS: usize = 200;

/// Times of one call, in microseconds.
struct Times {
    name: String,
    taken: Vec<f64>,
}

impl Times {
    fn new(name: impl Into<String>) -> Times {
        Times { name: name.into(), taken: Vec::with_capacity(ROUNDS) }
    }

    fn time<T>(&mut self, call: impl FnOnce() -> Answer<T>) -> Answer<T> {
        let start = Instant::now();
        let answer = call();
        self.taken.push(start.elapsed().as_secs_f64() * 1e6);
        answer
    }

    fn line(mut self) -> String {
        self.taken.sort_by(f64::total_cmp);
        let at = |share: f64| self.taken[((self.taken.len() - 1) as f64 * share) as usize];
        format!("{}: median {:.1} us, p99 {:.1} us", self.name, at(0.5), at(0.99))
    }
}

/// One line for each call.
pub(crate) fn measure(gpu: &Gpu) -> Result<Vec<String>, String> {
    let all = || {
        let mut lines = [granules(gpu, 1, "idle")?, granules(gpu, 16, "idle")?].concat();
        let stream = gpu.stream()?;
        // Longer than the measurement takes.
        gpu.busy(stream, 2000)?;
        lines.extend(granules(gpu, 1, "beside a busy stream")?);
        gpu.wait_for(stream)?;
        Ok(lines)
    };
    all().map_err(|code: u32| format!("error {code} while measuring"))
}

/// Growing by `run` granules at once and shrinking again.
fn granules(gpu: &Gpu, run: usize, when: &str) -> Answer<Vec<String>> {
    let name = |what: &str| format!("{what}, {run} at once, {when}");
    let mut create = Times::new(name("cuMemCreate of each"));
    let mut map = Times::new(name("cuMemMap of each"));
    let mut access = Times::new(name("cuMemSetAccess over the run"));
    let mut unmap = Times::new(name("cuMemUnmap over the run"));
    let mut release = Times::new(name("cuMemRelease of each"));
    let base = gpu.reserve(run * gpu.granule)?;
    for _ in 0..ROUNDS / run.min(4) {
        let mut handles = Vec::with_capacity(run);
        for index in 0..run {
            let handle = create.time(|| gpu.create(Home::Device, gpu.granule))?;
            map.time(|| gpu.map(base + (index * gpu.granule) as u64, handle))?;
            handles.push(handle);
        }
        access.time(|| gpu.access(base, run * gpu.granule, true))?;
        unmap.time(|| gpu.unmap(base, run * gpu.granule))?;
        for handle in handles {
            release.time(|| gpu.release(handle))?;
        }
    }
    gpu.unreserve(base, run * gpu.granule)?;
    Ok([create, map, access, unmap, release].map(Times::line).to_vec())
}
