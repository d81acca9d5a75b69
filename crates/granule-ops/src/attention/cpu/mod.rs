//! Attention on the host: tiles of cache rows meet all query rows that read them while they are near.

mod plan;
mod unit;

use granule_quant::Isa;

use self::plan::{Cuts, Place, Plan};
use self::unit::{Scratch, Unit};
use super::{AttentionItem, AttentionShape, check};
use crate::threads::Disjoint;
use crate::{Error, KvRowLayout, Threads};

/// f32 elements of scratch that [`cpu`] needs for a call with up to `n_tokens` query tokens, in as many sequences as may be.
#[must_use]
pub fn scratch_len(threads: &Threads, layout: &KvRowLayout, n_heads: usize, n_tokens: usize) -> usize {
    scratch_len_for(threads.count(), layout, n_heads, n_tokens)
}

/// [`scratch_len`] with so many threads, for who plans and has none.
#[must_use]
pub fn scratch_len_for(threads: usize, layout: &KvRowLayout, n_heads: usize, n_tokens: usize) -> usize {
    let plan = Plan::new(threads, layout, n_heads);
    let workers = threads * plan.worker_words(n_tokens);
    ALIGN + index_words(n_tokens) + workers + plan.partials_words(n_tokens)
}

/// Words by which scratch may have to be moved to start with a cache line.
const ALIGN: usize = 16;

/// Where each item's units, and where its stretches' results start.
fn index_words(items: usize) -> usize {
    (2 * items).next_multiple_of(ALIGN)
}

/// Attention of a batch of sequences. `q` and `out` are tokens x heads x head dim, the items' tokens one after the other;
/// `scratch` is at least [`scratch_len`] long.
///
/// The result is within rounding of the exact one on the cache as it is stored: queries that meet quantized keys, and weights
/// that meet quantized values, are 15 bits and a sign (see [`granule_quant::Isa::scores`] and
/// [`granule_quant::Isa::weighted_sums`]). How sums are cut up depends on shapes and on nothing else: the same call gives the
/// same bits, on any number of threads.
///
/// # Errors
/// [`Error::Dimension`] if the query heads are no multiple of the key-value heads or an item has no tokens, [`Error::Shape`]
/// if a length does not fit, [`Error::Layouts`] if the items' layouts differ, [`Error::NoRope`] if a segment has a turn and
/// there is no rotation, [`Error::NotOnHost`]. `out` is then as it was.
pub fn cpu(
    threads: &Threads,
    shape: &AttentionShape<'_>,
    q: &[f32],
    items: &[AttentionItem<'_>],
    out: &mut [f32],
    scratch: &mut [f32],
) -> Result<(), Error> {
    check(shape, items, q.len(), out.len())?;
    let Some(first) = items.first() else { return Ok(()) };
    let on_host = |item: &AttentionItem<'_>| {
        let rows = item.cache.segments().iter().all(|segment| segment.rows.as_host().is_some());
        rows && item.cache.sinks().is_none_or(|sinks| sinks.as_host().is_some())
    };
    if !items.iter().all(on_host) {
        return Err(Error::NotOnHost { what: "a KV cache" });
    }
    let layout = first.cache.layout();
    let plan = Plan::new(threads.count(), layout, shape.n_heads);
    let n_tokens: usize = items.iter().map(|item| item.n_tokens).sum();
    let want = scratch_len(threads, layout, shape.n_heads, n_tokens);
    if scratch.len() < want {
        return Err(Error::Shape { what: "attention scratch", got: scratch.len(), want });
    }
    let aligned = scratch.as_ptr().align_offset(64).min(ALIGN);
    let (index, rest) = scratch[aligned..].split_at_mut(index_words(items.len()));
    let per_worker = plan.worker_words(n_tokens);
    let (workers, partials) = rest.split_at_mut(threads.count() * per_worker);

    let rows = items.iter().map(|item| item.cache.len()).sum();
    let call = Call { isa: Isa::best(), plan, shape, q, items, rows };
    let (starts, parts): (&mut [u32], _) = bytemuck::cast_slice_mut(index).split_at_mut(items.len());
    let (mut units, mut words, mut any_split) = (0, 0, false);
    for (i, item) in items.iter().enumerate() {
        let cuts = call.cuts(item);
        (starts[i], parts[i]) = (index_u32(units)?, index_u32(words)?);
        units += cuts.units();
        if cuts.splits > 1 {
            words += cuts.splits * plan.partial_words(item.n_tokens);
            any_split = true;
        }
    }
    let (starts, parts) = (&*starts, &*parts);
    {
        let (out, workers, partials) = (Disjoint::new(out), Disjoint::new(workers), Disjoint::new(partials));
        threads.try_for_each_chunk(units, 1, &|worker, some| {
            // SAFETY: every worker has its own part.
            let words = unsafe { workers.range(worker * per_worker..(worker + 1) * per_worker) };
            for unit in some {
                let place = Place::new(unit, units, threads.count());
                let item = starts.partition_point(|&start| start as usize <= unit) - 1;
                let part = parts[item] as usize;
                let unit = call.unit(item, unit - starts[item] as usize, place);
                Scratch::new(&call.plan, &unit, &mut *words).run(&call, &unit, &out, &partials, part)?;
            }
            Ok::<(), Error>(())
        })?;
    }
    if any_split {
        let (out, partials) = (Disjoint::new(out), &*partials);
        let heads = plan.n_kv_heads * items.len();
        threads.for_each_chunk(heads, heads.div_ceil(threads.count()), &|_, range| {
            for i in range {
                let (item, head) = (i / plan.n_kv_heads, i % plan.n_kv_heads);
                call.combine(item, head, &partials[parts[item] as usize..], &out);
            }
        });
    }
    Ok(())
}

fn index_u32(n: usize) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::Shape {
        what: "units of an attention call",
        got: n,
        want: u32::MAX as usize,
    })
}

/// One call.
struct Call<'a, 'v> {
    isa: Isa,
    plan: Plan,
    shape: &'a AttentionShape<'a>,
    q: &'a [f32],
    items: &'a [AttentionItem<'v>],
    /// Rows of all items' caches.
    rows: usize,
}

impl<'a, 'v> Call<'a, 'v> {
    fn cuts(&self, item: &AttentionItem<'_>) -> Cuts {
        self.plan.cuts(item.n_tokens, item.cache.len(), self.items.len(), self.rows)
    }

    /// The call's tokens before an item's.
    fn tokens_before(&self, item: usize) -> usize {
        self.items[..item].iter().map(|item| item.n_tokens).sum()
    }

    /// Unit `index` of an item: the latest queries, which see the most, first, so that what is left for others to take from a
    /// share's end are small units.
    fn unit(&self, item: usize, index: usize, place: Place) -> Unit<'a, 'v> {
        let at = &self.items[item];
        let cuts = self.cuts(at);
        let (block, rest) =
            (index / (cuts.head_groups * cuts.splits), index % (cuts.head_groups * cuts.splits));
        let (split, heads) = (rest / cuts.head_groups, rest % cuts.head_groups * cuts.heads);
        let first = (cuts.blocks - 1 - block) * cuts.tokens;
        let tokens = cuts.tokens.min(at.n_tokens - first);
        let seen = at.cache.len() - at.n_tokens + first + 1;
        let stretch = cuts.stretch(split, at.cache.len());
        Unit {
            item: at,
            token: self.tokens_before(item) + first,
            tokens,
            heads: heads..(heads + cuts.heads).min(self.plan.n_kv_heads),
            seen,
            rows: stretch.start..stretch.end.min(seen + tokens - 1),
            split: (cuts.splits > 1).then_some(split),
            from_memory: cuts.blocks == 1,
            is_first: place.is_first || cuts.head_groups > 1 || split == 0,
            goes_on: !place.is_last && cuts.head_groups == 1 && split + 1 < cuts.splits,
        }
    }

    /// Puts the stretches' results for one item and KV head together.
    fn combine(&self, item: usize, kv_head: usize, partials: &[f32], out: &Disjoint<'_, f32>) {
        let Plan { n_heads, group, head_dim, .. } = self.plan;
        let (at, n_tokens) = (self.tokens_before(item), self.items[item].n_tokens);
        let cuts = self.cuts(&self.items[item]);
        if cuts.splits < 2 {
            return;
        }
        let results = partials[..cuts.splits * self.plan.partial_words(n_tokens)]
            .chunks_exact(self.plan.partial_words(n_tokens));
        for token in 0..n_tokens {
            for head in kv_head * group..(kv_head + 1) * group {
                let row = token * n_heads + head;
                let of_row = |part: &'_ [f32]| {
                    let (ends, sums) = part.split_at(2 * n_tokens * n_heads);
                    (ends[2 * row], ends[2 * row + 1], row * head_dim + (part.len() - sums.len()))
                };
                let max = results.clone().fold(f32::MIN, |max, part| max.max(of_row(part).0));
                let start = (at * n_heads + row) * head_dim;
                // SAFETY: each row belongs to one item and one key-value head.
                let out = unsafe { out.range(start..start + head_dim) };
                out.fill(0.0);
                let mut all = 0f32;
                for part in results.clone() {
                    let (top, total, sums) = of_row(part);
                    let factor = (top - max).exp();
                    all += total * factor;
                    for (out, sum) in out.iter_mut().zip(&part[sums..sums + head_dim]) {
                        *out += sum * factor;
                    }
                }
                out.iter_mut().for_each(|x| *x /= all);
                if let Some(transform) = self.shape.transform {
                    transform.output(kv_head, out);
                }
            }
        }
    }
}
