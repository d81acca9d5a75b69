//! cuBLAS's part: handles, and products that a device computes in stream order. The library's documentation is the source.

use super::call::Call;
use super::queue::{Action, Op};
use super::report::Kind;
use super::{Caller, Result, Simulation};
use crate::code::Code;

/// A handle of the library.
#[derive(Debug)]
pub(crate) struct Blas {
    pub(crate) made: Call,
    pub(crate) context: u64,
    /// As the program named it; 0 is the default one.
    stream: u64,
    workspace: Option<(u64, u64)>,
}

/// The type of a product's factors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Factor {
    F16,
    Bf16,
}

impl Factor {
    fn value(self, bytes: [u8; 2]) -> f32 {
        match self {
            Factor::F16 => half::f16::from_le_bytes(bytes).to_f32(),
            Factor::Bf16 => half::bf16::from_le_bytes(bytes).to_f32(),
        }
    }
}

/// Rows in memory: so many, of so many bytes each, so many apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    pub(crate) at: u64,
    pub(crate) count: u64,
    pub(crate) len: u64,
    pub(crate) stride: u64,
}

impl Rows {
    /// Start and length of each stretch without a gap.
    fn stretches(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let Rows { at, count, len, stride } = *self;
        let whole = stride == len;
        let (count, len) = if whole { (u64::from(count > 0), count * len) } else { (count, len) };
        (0..count).map(move |row| (at + row * stride, len)).filter(|&(_, len)| len > 0)
    }
}

/// `out[i][j] = alpha * sum_k x[i][k] * w[j][k] + beta * out[i][j]`, all row-major.
#[derive(Clone, Debug)]
pub(crate) struct Gemm {
    pub(crate) factor: Factor,
    pub(crate) x: Rows,
    pub(crate) w: Rows,
    pub(crate) out: Rows,
    pub(crate) alpha: f32,
    pub(crate) beta: f32,
    /// What the library may write as it likes.
    pub(crate) workspace: Option<(u64, u64)>,
}

impl Gemm {
    /// Where it reads and writes: address, bytes, whether it writes.
    pub(crate) fn touches(&self) -> Vec<(u64, u64, bool)> {
        let read = self.x.stretches().chain(self.w.stretches()).map(|(at, len)| (at, len, false));
        let written = self.out.stretches().chain(self.workspace).map(|(at, len)| (at, len, true));
        read.chain(written).collect()
    }
}

impl Simulation {
    /// What a workspace holds when a product is done with it.
    const USED: u8 = 0xb1;
    /// What a workspace's address is a multiple of.
    const WORKSPACE_ALIGN: u64 = 256;

    pub(crate) fn create_blas(&mut self, caller: &Caller) -> Result<u64> {
        let context = self.context(caller)?;
        // It allocates.
        self.forbid_while_capturing(caller)?;
        let handle = self.new_handle();
        self.blas.insert(handle, Blas { made: caller.call, context, stream: 0, workspace: None });
        Ok(handle)
    }

    /// Waits for the device, as the documentation says.
    pub(crate) fn destroy_blas(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        self.blas(caller, handle)?;
        self.synchronize_context(caller)?;
        self.blas.remove(&handle);
        Ok(())
    }

    fn blas(&mut self, caller: &Caller, handle: u64) -> Result<&mut Blas> {
        let Some(found) = self.blas.get(&handle) else {
            return self.bad_handle(caller, "handle of cuBLAS", handle);
        };
        if caller.context != Some(found.context) {
            let message = format!("{} with a handle of cuBLAS that was made in another context", caller.call);
            self.reports.add(Kind::BadArguments, message);
            return Err(Code::INVALID_CONTEXT);
        }
        self.blas.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }

    /// Products go to this stream from now on; the workspace is the library's own again.
    pub(crate) fn set_blas_stream(&mut self, caller: &Caller, handle: u64, stream: u64) -> Result<()> {
        self.stream_of(caller, stream)?;
        let blas = self.blas(caller, handle)?;
        (blas.stream, blas.workspace) = (stream, None);
        Ok(())
    }

    pub(crate) fn set_blas_workspace(
        &mut self,
        caller: &Caller,
        handle: u64,
        at: u64,
        len: u64,
    ) -> Result<()> {
        let blas = self.blas(caller, handle)?;
        if !at.is_multiple_of(Self::WORKSPACE_ALIGN) {
            return Err(Code::INVALID_VALUE);
        }
        blas.workspace = Some((at, len));
        Ok(())
    }

    pub(crate) fn gemm(&mut self, caller: &Caller, handle: u64, mut gemm: Gemm) -> Result<()> {
        self.context(caller)?;
        let Blas { stream, workspace, .. } = *self.blas(caller, handle)?;
        gemm.workspace = workspace;
        let stream = self.stream_of(caller, stream)?;
        self.issue(caller, stream, Action::Gemm(gemm.into()), false).map(|_| ())
    }

    /// The bytes of all rows, one row behind the other.
    fn read_rows(&mut self, op: &Op, rows: &Rows) -> std::result::Result<Vec<u8>, Code> {
        let mut bytes = Vec::new();
        for (at, len) in rows.stretches() {
            if let Some(unset) = self.first_unwritten(op, at, len) {
                let message =
                    format!("{} reads {len} bytes at {at:#x}: nothing wrote the byte at {unset:#x}", op.call);
                self.reports.add(Kind::UninitializedRead, message);
            }
            bytes.extend(self.read_known(op, at, len)?);
        }
        Ok(bytes)
    }

    pub(crate) fn run_gemm(&mut self, op: &Op, gemm: &Gemm) -> std::result::Result<(), Code> {
        let Gemm { factor, x, w, out, alpha, beta, workspace } = gemm;
        let numbers = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|&pair| factor.value(pair)).collect()
        };
        let (xs, ws) = (numbers(&self.read_rows(op, x)?), numbers(&self.read_rows(op, w)?));
        // Where nothing is added, what was there is not looked at: it may be NaN.
        let before = if *beta == 0.0 { Vec::new() } else { self.read_rows(op, out)? };
        if let Some((at, len)) = *workspace {
            self.write_known(op, at, &vec![Self::USED; len as usize], false)?;
        }
        let (columns, width) = ((x.len / 2) as usize, (out.len / 4) as usize);
        let mut before = before.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let result: Vec<u8> = xs
            .chunks_exact(columns.max(1))
            .flat_map(|x| ws.chunks_exact(columns.max(1)).map(move |w| (x, w)))
            .flat_map(|(x, w)| {
                let sum = alpha * x.iter().zip(w).fold(0.0, |sum, (x, w)| sum + x * w);
                let total = before.next().map_or(sum, |before| sum + beta * before);
                total.to_le_bytes()
            })
            .collect();
        for (row, bytes) in result.chunks_exact((width * 4).max(1)).enumerate() {
            self.write_known(op, out.at + row as u64 * out.stride, bytes, true)?;
        }
        Ok(())
    }
}
