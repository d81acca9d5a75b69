//! Tokens' bytes in and out: in ggml's layout, for others, and in the canonical one, for state files.
//!
//! ```text
//! canonical, one token of one layer:   K quants | K scales | V quants | V scales        no padding
//! ggml, the same token:                K: blocks of its type, heads x head_dim          V: the same
//! ```
//!
//! Both are permutations of a row's bytes without its padding, whatever number of layers shares a row.

use std::ops::Range as Span;

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_ops::KvRowLayout;
use granule_quant::{DType, PlanarBytes, ggml_from_planar, planar_bytes, planar_from_ggml};

use super::Sequence;
use crate::segments::{Segment, Segments};
use crate::{Error, KvLayout};

/// The planes of a row and how long each is without its padding, in canonical order.
fn planes(row: &KvRowLayout) -> Result<[(usize, usize); 4], Error> {
    let (k, v) = (bytes(row.k_type, row)?, bytes(row.v_type, row)?);
    Ok([
        (row.k_quants, k.quants),
        (row.k_scales, k.scales),
        (row.v_quants, v.quants),
        (row.v_scales, v.scales),
    ])
}

fn bytes(dtype: DType, row: &KvRowLayout) -> Result<PlanarBytes, Error> {
    planar_bytes(dtype, row.elements()).map_err(|error| Error::View(error.into()))
}

impl KvLayout {
    /// The bytes of one token of one layer in canonical order.
    pub(crate) fn canonical_bytes(&self) -> Result<usize, Error> {
        Ok(self.canonical_planes()?.iter().sum())
    }

    /// The bytes of each plane of one token of one layer, in canonical order. In each the heads lie one behind the other, in as many bytes each.
    pub(crate) fn canonical_planes(&self) -> Result<[usize; 4], Error> {
        let (_, row) = self.layer(0)?;
        Ok(planes(&row)?.map(|(_, len)| len))
    }

    /// The bytes of one layer's sinks: K of each row, then V of each row, in f16.
    pub(crate) fn sink_bytes(&self) -> usize {
        let shape = self.shape();
        2 * self.sinks() * shape.n_kv_heads * shape.head_dim * 2
    }
}

impl Sequence {
    /// These tokens of a layer as ggml has them: keys, then values, each tokens x heads x head dim in blocks of their type. Device
    /// work that it is [busy](Sequence::busy_until) with is waited for.
    ///
    /// # Errors
    /// [`Error::Transformed`], [`Error::NoSuchTokens`], [`Error::NoSuchLayer`], [`Error::Device`].
    pub fn export(&self, layer: usize, tokens: Span<usize>) -> Result<(Vec<u8>, Vec<u8>), Error> {
        self.check_plain()?;
        let (_, row) = self.cache.layout().layer(layer)?;
        let each = self.cache.layout().canonical_bytes()?;
        self.segments.check(&tokens)?;
        self.await_work();
        let n = tokens.len();
        let mut canonical = vec![0; each.saturating_mul(n)];
        self.read_layer(layer, tokens, &mut canonical)?;
        let [kq, ks, vq, vs] = planes(&row)?.map(|(_, len)| len);
        let (mut k, mut v) = (vec![0; n * (kq + ks)], vec![0; n * (vq + vs)]);
        let rows =
            canonical.chunks_exact(each).zip(k.chunks_exact_mut(kq + ks).zip(v.chunks_exact_mut(vq + vs)));
        for (row_bytes, (k, v)) in rows {
            let (keys, values) = row_bytes.split_at(kq + ks);
            plain(ggml_from_planar(row.k_type, &keys[..kq], &keys[kq..], k))?;
            plain(ggml_from_planar(row.v_type, &values[..vq], &values[vq..], v))?;
        }
        Ok((k, v))
    }

    /// Puts keys and values of ggml's layout into the first of a layer's prepared rows, from which
    /// [`commit`](Sequence::commit) makes tokens.
    ///
    /// # Errors
    /// [`Error::Transformed`], [`Error::NoSuchLayer`], [`Error::Length`]; [`Error::NotPrepared`] where they are more tokens
    /// than there is room for; [`Error::Device`].
    pub fn import(&mut self, layer: usize, k: &[u8], v: &[u8]) -> Result<(), Error> {
        self.check_plain()?;
        let (_, row) = self.cache.layout().layer(layer)?;
        let [kq, ks, vq, vs] = planes(&row)?.map(|(_, len)| len);
        let n = k.len() / (kq + ks);
        for (what, bytes, each) in [("keys", k.len(), kq + ks), ("values", v.len(), vq + vs)] {
            if bytes != n * each {
                return Err(Error::Length { what, bytes, tokens: n, each });
            }
        }
        if n > self.prepared {
            return Err(Error::NotPrepared { requested: n, prepared: self.prepared });
        }
        let each = kq + ks + vq + vs;
        let mut canonical = vec![0; n * each];
        let rows = canonical.chunks_exact_mut(each).zip(k.chunks_exact(kq + ks).zip(v.chunks_exact(vq + vs)));
        for (row_bytes, (k, v)) in rows {
            let (keys, values) = row_bytes.split_at_mut(kq + ks);
            let (quants, scales) = keys.split_at_mut(kq);
            plain(planar_from_ggml(row.k_type, k, quants, scales))?;
            let (quants, scales) = values.split_at_mut(vq);
            plain(planar_from_ggml(row.v_type, v, quants, scales))?;
        }
        let first = self.room.start;
        self.write_rows(layer, first..first + n, &canonical)
    }

    fn check_plain(&self) -> Result<(), Error> {
        if self.cache.layout().sinks() > 0 { Err(Error::Transformed) } else { Ok(()) }
    }

    /// Waits for the device work that may still write what is to be read: copies go on streams of their own.
    pub(crate) fn await_work(&self) {
        if let Some(event) = &self.busy {
            event.synchronize();
        }
    }

    /// These tokens of a layer in canonical order, one after the other; `out` is as long as that. Sinks are apart. Nobody writes
    /// to them any more.
    pub(crate) fn read_layer(&self, layer: usize, tokens: Span<usize>, out: &mut [u8]) -> Result<(), Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        let (grid, each) = (self.grid(group), self.cache.layout().canonical_bytes()?);
        check_length("canonical rows", out.len(), tokens.len(), each)?;
        let planes = planes(&row)?;
        let mut out = out.chunks_exact_mut(each);
        for rows in self.segments.rows_of(tokens)? {
            for row in rows {
                let bytes = self.ranges[group].slice(grid.bytes(&(row..row + 1)))?;
                let Some(mut left) = out.next() else { return Ok(()) };
                for (at, len) in planes {
                    let (plane, rest) = left.split_at_mut(len);
                    self.copy_bytes(bytes.subslice(at..at + len)?, plane.into())?;
                    left = rest;
                }
            }
        }
        Ok(())
    }

    /// A layer's sinks, [`sink_bytes`](KvLayout::sink_bytes) long; zeros where no token lies in one.
    pub(crate) fn read_sinks(&self, layer: usize, out: &mut [u8]) -> Result<(), Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        check_length("sinks", out.len(), 1, self.cache.layout().sink_bytes())?;
        out.fill(0);
        let Some(sinks) = row.sinks else { return Ok(()) };
        let each = row.elements() * 2;
        let (keys, values) = out.split_at_mut(sinks.rows * each);
        for index in self.sink_rows() {
            for (at, out) in [(sinks.k, &mut *keys), (sinks.v, &mut *values)] {
                let from = self.ranges[group].slice(at + index * each..at + (index + 1) * each)?;
                self.copy_bytes(from, (&mut out[index * each..(index + 1) * each]).into())?;
            }
        }
        Ok(())
    }

    /// Gives a sequence without tokens those of segments of another one, in rows that follow one another but for sinks, which
    /// stay what they are. What the rows hold is to be written with [`write_layer`](Sequence::write_layer) and
    /// [`write_sinks`](Sequence::write_sinks) before anybody else sees the sequence.
    pub(crate) fn adopt(&mut self, segments: &[Segment]) -> Result<(), Error> {
        self.clear();
        let segments = Segments::packed(segments, self.cache.layout().sinks())?;
        let (requested, n_ctx) = (segments.len(), self.n_ctx);
        let end = segments.rows_end();
        if requested > n_ctx || end > self.rows {
            return Err(Error::ContextFull { requested, len: 0, n_ctx });
        }
        self.reserve_rows(end)?;
        self.set_segments(segments);
        self.ready = self.find_ready();
        Ok(())
    }

    /// Writes these tokens of a layer, given in canonical order, into the rows of a sequence that was just
    /// [adopted](Sequence::adopt).
    pub(crate) fn write_layer(
        &mut self,
        layer: usize,
        tokens: Span<usize>,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let each = self.cache.layout().canonical_bytes()?;
        check_length("canonical rows", bytes.len(), tokens.len(), each)?;
        let mut bytes = bytes;
        for rows in self.segments.rows_of(tokens)? {
            let (these, rest) = bytes.split_at(rows.len() * each);
            self.write_rows(layer, rows, these)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Writes a layer's sinks, as [`read_sinks`](Sequence::read_sinks) has them, into a sequence that was just adopted.
    pub(crate) fn write_sinks(&mut self, layer: usize, bytes: &[u8]) -> Result<(), Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        check_length("sinks", bytes.len(), 1, self.cache.layout().sink_bytes())?;
        let Some(sinks) = row.sinks else { return Ok(()) };
        let each = row.elements() * 2;
        let (keys, values) = bytes.split_at(sinks.rows * each);
        let device = self.cache.bank().device().clone();
        for index in self.sink_rows() {
            for (at, bytes) in [(sinks.k, keys), (sinks.v, values)] {
                let to = self.ranges[group].slice_mut(at + index * each..at + (index + 1) * each)?;
                copy_to(&device, (&bytes[index * each..(index + 1) * each]).into(), to)?;
            }
        }
        Ok(())
    }

    /// The sinks that a token lies in.
    fn sink_rows(&self) -> Vec<usize> {
        let sinks = self.cache.layout().sinks();
        let rows = self.segments().iter().flat_map(Segment::rows);
        rows.filter(|&row| row < sinks).collect()
    }

    /// Writes rows of a layer that are this sequence's alone, from canonical ones.
    fn write_rows(&mut self, layer: usize, rows: Span<usize>, bytes: &[u8]) -> Result<(), Error> {
        let (group, layout) = self.cache.layout().layer(layer)?;
        let (grid, planes) = (self.grid(group), planes(&layout)?);
        let device = self.cache.bank().device().clone();
        let each: usize = planes.iter().map(|(_, len)| len).sum();
        for (row, mut left) in rows.zip(bytes.chunks_exact(each)) {
            let start = grid.bytes(&(row..row + 1)).start;
            for (at, len) in planes {
                let (plane, rest) = left.split_at(len);
                let to = self.ranges[group].slice_mut(start + at..start + at + len)?;
                copy_to(&device, plane.into(), to)?;
                left = rest;
            }
        }
        Ok(())
    }

    fn copy_bytes(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        copy_to(self.cache.bank().device(), from, to)
    }
}

/// Copies bytes: as they are where this process can address both, and by the device where it cannot.
fn copy_to(
    device: &granule_device::Device,
    from: DeviceSlice<'_>,
    mut to: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    if from.is_empty() {
        return Ok(());
    }
    match (from.as_host(), to.as_host_mut()) {
        (Some(from), Some(to)) => to.copy_from_slice(from),
        _ => device.copy(from, to)?,
    }
    Ok(())
}

fn check_length(what: &'static str, bytes: usize, tokens: usize, each: usize) -> Result<(), Error> {
    if tokens.checked_mul(each) == Some(bytes) {
        Ok(())
    } else {
        Err(Error::Length { what, bytes, tokens, each })
    }
}

fn plain<T>(done: Result<T, granule_quant::Error>) -> Result<T, Error> {
    done.map_err(|error| Error::View(error.into()))
}
