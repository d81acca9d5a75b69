//! One unit of work: some query tokens against some heads of a stretch of the context.

use std::ops::Range;

use granule_quant::{ATTEND_TILE, DType, HeadRows, RunningSoftmax, TileShape};

use super::Call;
use super::plan::{Plan, Words};
use crate::attention::AttentionItem;
use crate::threads::Disjoint;
use crate::{Error, KvRowLayout, rotate};

/// Which part of a call.
pub(super) struct Unit<'a, 'v> {
    pub(super) item: &'a AttentionItem<'v>,
    /// The call's token that is the unit's first.
    pub(super) token: usize,
    pub(super) tokens: usize,
    /// KV heads.
    pub(super) heads: Range<usize>,
    /// Rows of the context that the unit's first token sees.
    pub(super) seen: usize,
    /// The stretch of the context.
    pub(super) rows: Range<usize>,
    /// Which of several stretches it is.
    pub(super) split: Option<usize>,
    /// The rows come from memory: there are no other blocks of queries that have just read them.
    pub(super) from_memory: bool,
    /// The worker has not fetched the stretch's first rows while it was at the one before.
    pub(super) is_first: bool,
    /// The worker will probably go on with the rows behind the stretch.
    pub(super) goes_on: bool,
}

/// Rows that lie at one stride, have one type and one turn.
#[derive(Clone, Copy)]
struct Run<'a> {
    bytes: &'a [u8],
    stride: usize,
    /// First of them, counted from the context's start.
    first: usize,
    len: usize,
    turn: i32,
    keys: Plane,
    values: Plane,
}

/// Where a head's quants and scales are in a row.
#[derive(Clone, Copy)]
struct Plane {
    dtype: DType,
    quants: usize,
    scales: usize,
}

/// One worker's memory, cut up for a unit.
pub(super) struct Scratch<'a> {
    queries: &'a mut [f32],
    sums: &'a mut [f32],
    max: &'a mut [f32],
    total: &'a mut [f32],
    /// What is added to all scores of a row: `scale * q.c`.
    add: &'a mut [f32],
    factors: &'a mut [[f32; 2]],
    scores: &'a mut [f32],
    turned: &'a mut [f32],
    angles: &'a mut [f32],
    /// The turn and the type of keys that the queries are prepared for.
    prepared: Option<(i32, DType)>,
}

impl<'a> Scratch<'a> {
    pub(super) fn new(plan: &Plan, unit: &Unit<'_, '_>, words: &'a mut [f32]) -> Self {
        let Words { queries, sums, rows, scores, turned, angles } = plan.words(unit.tokens, unit.heads.len());
        let (queries, rest) = words.split_at_mut(queries);
        let (sums, rest) = rest.split_at_mut(sums);
        let (max, rest) = rest.split_at_mut(rows);
        let (total, rest) = rest.split_at_mut(rows);
        let (add, rest) = rest.split_at_mut(rows);
        let (factors, rest) = rest.split_at_mut(2 * rows);
        let (scores, rest) = rest.split_at_mut(scores);
        let (turned, rest) = rest.split_at_mut(turned);
        let angles = &mut rest[..angles];
        let factors = factors.as_chunks_mut().0;
        Self { queries, sums, max, total, add, factors, scores, turned, angles, prepared: None }
    }

    /// Computes the unit and writes its result to `out`, or to its place behind `part` in `partials`.
    pub(super) fn run(
        mut self,
        call: &Call<'_, '_>,
        unit: &Unit<'_, '_>,
        out: &Disjoint<'_, f32>,
        partials: &Disjoint<'_, f32>,
        part: usize,
    ) -> Result<(), Error> {
        self.max.fill(f32::MIN);
        self.total.fill(0.0);
        self.sums.fill(0.0);
        let layout = unit.item.cache.layout();
        let mut first = 0;
        for segment in unit.item.cache.segments() {
            let not_on_host = || Error::NotOnHost { what: "a KV cache" };
            let bytes = segment.rows.as_host().ok_or_else(not_on_host)?;
            let mut sinks = 0;
            if let Some((at, bytes)) = layout.sinks.zip(unit.item.cache.sinks()) {
                sinks = at.rows.saturating_sub(segment.row).min(segment.len);
                let stride = 2 * layout.elements();
                let plane = |at| Plane { dtype: DType::F16, quants: at + segment.row * stride, scales: 0 };
                let (keys, values) = (plane(at.k), plane(at.v));
                let bytes = bytes.as_host().ok_or_else(not_on_host)?;
                let run = Run { bytes, stride, first, len: sinks, turn: segment.turn, keys, values };
                self.run_of(call, unit, &run)?;
            }
            let keys = Plane { dtype: layout.k_type, quants: layout.k_quants, scales: layout.k_scales };
            let values = Plane { dtype: layout.v_type, quants: layout.v_quants, scales: layout.v_scales };
            let run = Run {
                bytes: bytes.get(sinks * layout.row_stride..).unwrap_or_default(),
                stride: layout.row_stride,
                first: first + sinks,
                len: segment.len - sinks,
                turn: segment.turn,
                keys,
                values,
            };
            self.run_of(call, unit, &run)?;
            first += segment.len;
        }
        self.write(call, unit, out, partials, part);
        Ok(())
    }

    /// The unit's rows of a run.
    fn run_of(&mut self, call: &Call<'_, '_>, unit: &Unit<'_, '_>, run: &Run<'_>) -> Result<(), Error> {
        let from = unit.rows.start.max(run.first);
        let to = unit.rows.end.min(run.first + run.len);
        if from >= to {
            return Ok(());
        }
        if unit.from_memory && (unit.is_first || from == run.first) {
            let (start, lines) = lines(unit.item.cache.layout());
            let n = ATTEND_TILE.min(to - from);
            let rows = &run.bytes[(from - run.first) * run.stride..];
            granule_quant::fetch_rows(rows, run.stride, n, start, lines);
        }
        self.prepare(call, unit, run.turn, run.keys.dtype)?;
        let fetched = if unit.goes_on { run.first + run.len } else { to };
        for tile in (from..to).step_by(ATTEND_TILE) {
            let n = ATTEND_TILE.min(to - tile);
            for head in 0..unit.heads.len() {
                self.tile(call, unit, run, tile..tile + n, head, tile + n < fetched)?;
            }
        }
        Ok(())
    }

    /// Brings the queries into the form in which they meet a run's keys.
    fn prepare(
        &mut self,
        call: &Call<'_, '_>,
        unit: &Unit<'_, '_>,
        turn: i32,
        dtype: DType,
    ) -> Result<(), Error> {
        if self.prepared == Some((turn, dtype)) {
            return Ok(());
        }
        let Plan { n_heads, group, head_dim, .. } = call.plan;
        let rows = unit.tokens * group;
        let dims = if turn == 0 { 0 } else { call.shape.rope.map_or(0, |rope| rope.dims()) };
        if let Some(rope) = call.shape.rope.filter(|_| dims > 0) {
            rope.turn(turn, &mut self.angles[..dims])?;
            // Back by as much.
            self.angles[..dims].as_chunks_mut::<2>().0.iter_mut().for_each(|[_, sin]| *sin = -*sin);
        }
        let words = granule_quant::query_words(dtype, head_dim, rows);
        let per_head = call.plan.query_words(rows);
        for (i, kv_head) in unit.heads.clone().enumerate() {
            let turned = &mut self.turned[..rows * head_dim];
            for (token, turned) in turned.chunks_exact_mut(group * head_dim).enumerate() {
                let from = ((unit.token + token) * n_heads + kv_head * group) * head_dim;
                turned.copy_from_slice(&call.q[from..from + group * head_dim]);
                if dims > 0 {
                    rotate(turned, group, head_dim, dims, &self.angles[..dims])?;
                }
            }
            let add = &mut self.add[i * rows..(i + 1) * rows];
            add.fill(0.0);
            if let Some(transform) = call.shape.transform {
                for (add, query) in add.iter_mut().zip(turned.chunks_exact_mut(head_dim)) {
                    *add = call.shape.scale * transform.query(kv_head, query);
                }
            }
            let queries = &mut self.queries[i * per_head..][..words];
            call.isa.prepare_queries(dtype, head_dim, turned, queries)?;
        }
        self.prepared = Some((turn, dtype));
        Ok(())
    }

    /// One tile of a run against the queries of the unit's `i`-th head.
    fn tile(
        &mut self,
        call: &Call<'_, '_>,
        unit: &Unit<'_, '_>,
        run: &Run<'_>,
        tile: Range<usize>,
        i: usize,
        more: bool,
    ) -> Result<(), Error> {
        let Plan { group, head_dim, .. } = call.plan;
        let rows = unit.tokens * group;
        let head = unit.heads.start + i;
        let bytes = &run.bytes[(tile.start - run.first) * run.stride..];
        let of_head = |plane: Plane| {
            let one = granule_quant::planar_bytes(plane.dtype, head_dim)?;
            let planes = [plane.quants + head * one.quants, plane.scales + head * one.scales];
            HeadRows::new(plane.dtype, head_dim, bytes, run.stride, planes, tile.len())
        };
        let (mut keys, mut values) = (of_head(run.keys)?, of_head(run.values)?);
        if more {
            // The next tile, a share of it with each head's keys and values: its rows may be pages apart.
            let (start, lines) = lines(unit.item.cache.layout());
            let share = |j: usize| {
                let (from, to) =
                    (lines * j / (2 * unit.heads.len()), lines * (j + 1) / (2 * unit.heads.len()));
                (ATTEND_TILE * run.stride + start + from * 64, to - from)
            };
            let ((k_at, k_lines), (v_at, v_lines)) = (share(2 * i), share(2 * i + 1));
            (keys, values) = (keys.fetching(k_at, k_lines), values.fetching(v_at, v_lines));
        }
        let words = granule_quant::query_words(run.keys.dtype, head_dim, rows);
        let queries = &self.queries[i * call.plan.query_words(rows)..][..words];
        call.isa.scores(&keys, queries, rows, self.scores);
        let here = i * rows..(i + 1) * rows;
        let mut running = RunningSoftmax {
            max: &mut self.max[here.clone()],
            total: &mut self.total[here.clone()],
            factors: &mut self.factors[..rows],
        };
        let seen = unit.seen.cast_signed() - tile.start.cast_signed();
        let shape = TileShape { rows, keys: tile.len(), seen, group, scale: call.shape.scale };
        call.isa.softmax_tile(shape, &self.add[here.clone()], self.scores, &mut running);
        let sums = &mut self.sums[here.start * head_dim..here.end * head_dim];
        call.isa.weighted_sums(&values, self.scores, &self.factors[..rows], sums);
        Ok(())
    }

    /// Writes what the unit has computed.
    fn write(
        &self,
        call: &Call<'_, '_>,
        unit: &Unit<'_, '_>,
        out: &Disjoint<'_, f32>,
        partials: &Disjoint<'_, f32>,
        part: usize,
    ) {
        let Plan { n_heads, group, head_dim, .. } = call.plan;
        for (i, kv_head) in unit.heads.clone().enumerate() {
            for token in 0..unit.tokens {
                for g in 0..group {
                    let from = (i * unit.tokens + token) * group + g;
                    let sums = &self.sums[from * head_dim..(from + 1) * head_dim];
                    let row = token * n_heads + kv_head * group + g;
                    if let Some(split) = unit.split {
                        let start = part + split * call.plan.partial_words(unit.tokens);
                        let at = start + 2 * unit.tokens * n_heads + row * head_dim;
                        // SAFETY: each stretch has a place of its own, and in it each row of each head.
                        unsafe {
                            let ends = [self.max[from], self.total[from]];
                            partials.range(start + 2 * row..start + 2 * row + 2).copy_from_slice(&ends);
                            partials.range(at..at + head_dim).copy_from_slice(sums);
                        }
                        continue;
                    }
                    let at = (unit.token * n_heads + row) * head_dim;
                    // SAFETY: each row of the output is in one unit.
                    let out = unsafe { out.range(at..at + head_dim) };
                    let total = self.total[from];
                    out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum / total);
                    if let Some(transform) = call.shape.transform {
                        transform.output(kv_head, out);
                    }
                }
            }
        }
    }
}

/// Where a layer's part of a row begins, and how many cache lines it touches: one more where it may begin inside of one
/// (ranges begin with a line; where rows of somebody else's do not, the last line is not asked for).
fn lines(layout: &KvRowLayout) -> (usize, usize) {
    let scales = if layout.v_type.is_quantized() { layout.elements() / 16 } else { 0 };
    let quants = granule_quant::planar_bytes(layout.v_type, layout.elements()).map_or(0, |v| v.quants);
    let end = (layout.v_scales + scales).max(layout.v_quants + quants);
    let inside = [layout.row_stride, layout.rows_at, layout.k_quants].iter().any(|at| at % 64 != 0);
    (layout.k_quants, (end - layout.k_quants).div_ceil(64) + usize::from(inside))
}
