//! What a CUDA context takes of its device's memory, which no driver says: measured on one that is made for it and goes again.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUcontext;

use super::calls::Driver;
use super::context::{Context, Raw, current, lock, memory};
use super::errors::{self, check};
use super::stream::Relaxed;
use crate::{Bytes, Device, Error};

/// Contexts that are made, at most, until two figures agree or the memory around one stands still.
const TRIES: usize = 5;
/// No further one is begun after this: making one takes a tenth of a second, or seconds where many are made at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// So many figures, which lie within this part of the middle one, are taken for the truth where no two are equal.
const FEWEST: usize = 3;
const SPREAD: u64 = 16;

/// What is measured, and how, in words.
const WHAT: &str = "a CUDA context's own memory";
const HOW: &str = "making another context";

type Create = unsafe extern "C" fn(*mut CUcontext, c_uint, c_int) -> c_uint;
type Destroy = unsafe extern "C" fn(CUcontext) -> c_uint;

impl Device {
    /// What a CUDA context takes of this device's memory for itself, before anything is made in it: the driver's tables, stacks,
    /// room for what kernels print. A process that computes on the device pays it on top of all that it allocates.
    ///
    /// It is measured on a further context that is made and destroyed again, which may take some tenths of a second. Others may
    /// use the device meanwhile: it is measured until free memory is afterwards what it was before (and the figure is not zero)
    /// or two figures are equal, up to five times and for two seconds; else the middle figure is the answer. Later answers are the
    /// same figure, without another measurement, unless it was a middle one of few or of such as lie far apart. What comes in
    /// a context later is not in it: modules of kernels, which drivers load when they are first used, and memory for kernels' own arrays
    /// ([`FunctionAttributes::local`](crate::FunctionAttributes)). No GPU has confirmed yet that a process's first context takes as
    /// much as a further one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] on the host, where the driver makes no further context, and where others let go of more memory each
    /// time than a context takes; [`Error::OutOfMemory`] where there is no room for one; [`Error::Capturing`]; [`Error::Driver`].
    /// Nothing has changed then.
    pub fn context_bytes(&self) -> Result<Bytes, Error> {
        static MEASURED: Mutex<BTreeMap<c_int, Bytes>> = Mutex::new(BTreeMap::new());
        let context = self.cuda_context(WHAT)?;
        // Held while it is measured: two at once would see one another's.
        let mut measured = lock(&MEASURED);
        if let Some(&bytes) = measured.get(&context.device) {
            return Ok(bytes);
        }
        let cost = context.cost_of_another()?;
        if cost.settled {
            measured.insert(context.device, cost.bytes);
        }
        Ok(cost.bytes)
    }
}

/// What was found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    bytes: Bytes,
    /// Whether measuring again is not worth its time.
    settled: bool,
}

/// Figures of measurements, one after the other.
#[derive(Default)]
struct Figures(Vec<Bytes>);

impl Figures {
    /// Takes free memory before the context was there, while it was and afterwards; answers the cost once it is known.
    fn take(&mut self, before: Bytes, with_it: Bytes, after: Bytes) -> Option<Cost> {
        // Less free memory before than with it: others have let go of more than it took.
        let bytes = before.checked_sub(with_it)?;
        let still = after == before && !bytes.is_zero();
        let settled = still || self.0.contains(&bytes);
        self.0.push(bytes);
        settled.then_some(Cost { bytes, settled })
    }

    /// The middle one.
    fn middle(mut self) -> Option<Cost> {
        self.0.sort_unstable();
        let (&least, &most) = self.0.first().zip(self.0.last())?;
        let bytes = self.0[self.0.len() / 2];
        let near = most.saturating_sub(least).saturating_mul(SPREAD) <= bytes;
        Some(Cost { bytes, settled: near && self.0.len() >= FEWEST })
    }
}

impl Context {
    fn cost_of_another(&self) -> Result<Cost, Error> {
        self.refuse_in_capture(HOW)?;
        let symbols = (self.library.extension("cuCtxCreate_v2"), self.library.extension("cuCtxDestroy_v2"));
        let (Some(create), Some(destroy)) = symbols else {
            return Err(Error::Unsupported { what: HOW, why: "the driver has no cuCtxCreate_v2" });
        };
        let _bound = self.bind()?;
        let _relaxed = Relaxed::enter(&self.driver);
        let (begun, mut figures) = (Instant::now(), Figures::default());
        for _ in 0..TRIES {
            let (before, _) = memory(&self.driver)?;
            let other = Another::new(&self.driver, self.raw(), self.device, create, destroy);
            let other = other.map_err(|error| self.explain(error, Bytes::ZERO))?;
            let (with_it, _) = memory(&self.driver)?;
            drop(other);
            let (after, _) = memory(&self.driver)?;
            if let Some(cost) = figures.take(before, with_it, after) {
                return Ok(cost);
            }
            if begun.elapsed() >= PATIENCE {
                break;
            }
        }
        let why = "other work lets go of memory faster than a context takes it";
        figures.middle().ok_or(Error::Unsupported { what: WHAT, why })
    }
}

/// A context of its own, current on this thread until it is dropped and with it destroyed.
struct Another<'a> {
    driver: &'a Driver,
    /// What is current without it.
    before: CUcontext,
    context: Raw<cudarc::driver::sys::CUctx_st>,
    destroy: Destroy,
}

impl<'a> Another<'a> {
    fn new(
        driver: &'a Driver,
        before: CUcontext,
        device: c_int,
        create: Create,
        destroy: Destroy,
    ) -> Result<Self, Error> {
        driver.gate("cuCtxCreate_v2")?;
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: cuda.h's signature, which keeps its version for ever; the answer is written into a local.
        let made = check("cuCtxCreate_v2", unsafe { create(&raw mut context, 0, device) });
        made.map_err(|error| match errors::code(&error) {
            Some(code) if errors::MAKES_NO_CONTEXT.contains(&code) => {
                Error::Unsupported { what: HOW, why: "the driver, or who runs it, allows no further one" }
            }
            _ => error,
        })?;
        Ok(Another { driver, before, context: Raw(context), destroy })
    }
}

impl Drop for Another<'_> {
    fn drop(&mut self) {
        let driver = self.driver.unfailing();
        // Past injected faults: there is nobody to try it again. A driver that refuses has done it, or cannot.
        if driver.gate("cuCtxDestroy_v2").is_ok() {
            // SAFETY: the context was made for this alone and nothing is left in it. It is current here, so that the driver makes
            // the one current again that was.
            let _ = unsafe { (self.destroy)(self.context.0) };
        }
        // Unless it failed before that.
        if current(&driver).is_ok_and(|current| current != self.before) {
            // SAFETY: it was current when the other one was made, and its owner is alive.
            let _ = unsafe { driver.put_back(self.before) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::ptr::without_provenance_mut;

    use super::*;
    use crate::cuda::calls::Functions;

    fn mib(n: u64) -> Bytes {
        Bytes::mib(n)
    }

    #[test]
    fn a_figure_is_believed_where_memory_stood_still_or_it_comes_again() {
        let known = |bytes| Some(Cost { bytes, settled: true });
        assert_eq!(Figures::default().take(mib(900), mib(600), mib(900)), known(mib(300)));
        let mut figures = Figures::default();
        assert_eq!(figures.take(mib(900), mib(500), mib(800)), None);
        assert_eq!(figures.take(mib(800), mib(500), mib(790)), None);
        assert_eq!(figures.take(mib(790), mib(390), mib(700)), known(mib(400)));
        // Nothing at all only where that comes again: somebody may have let go of as much as it took.
        let mut figures = Figures::default();
        assert_eq!(figures.take(mib(900), mib(900), mib(900)), None);
        assert_eq!(figures.take(mib(900), mib(900), mib(900)), known(Bytes::ZERO));
        // Less than nothing is no figure.
        let mut figures = Figures::default();
        assert_eq!(figures.take(mib(700), mib(900), mib(700)), None);
        assert_eq!(figures.take(mib(700), mib(900), mib(700)), None);
        assert_eq!(figures.middle(), None);
    }

    #[test]
    fn a_middle_figure_is_kept_where_there_are_several_close_together() {
        let middle = |costs: &[u64]| Figures(costs.iter().map(|&cost| mib(cost)).collect()).middle();
        assert_eq!(middle(&[323, 320, 324, 321, 322]), Some(Cost { bytes: mib(322), settled: true }));
        assert_eq!(middle(&[323, 100, 324, 321, 322]), Some(Cost { bytes: mib(322), settled: false }));
        assert_eq!(middle(&[323, 322]), Some(Cost { bytes: mib(323), settled: false }));
        assert_eq!(middle(&[0, 900, 320]), Some(Cost { bytes: mib(320), settled: false }));
    }

    thread_local! {
        static CURRENT: Cell<usize> = const { Cell::new(0) };
    }

    const OURS: usize = 0x100;
    const OTHER: usize = 0x200;

    unsafe extern "C" fn get(context: *mut CUcontext) -> c_uint {
        // SAFETY: the caller's pointer.
        unsafe { *context = without_provenance_mut(CURRENT.get()) };
        0
    }

    unsafe extern "C" fn set(context: CUcontext) -> c_uint {
        CURRENT.set(context.addr());
        0
    }

    unsafe extern "C" fn create(context: *mut CUcontext, _: c_uint, device: c_int) -> c_uint {
        if device > 0 {
            return device.unsigned_abs();
        }
        CURRENT.set(OTHER);
        // SAFETY: the caller's pointer.
        unsafe { get(context) }
    }

    /// It leaves the context current.
    unsafe extern "C" fn refuse(_: CUcontext) -> c_uint {
        999
    }

    #[test]
    fn the_context_is_current_again_also_where_the_other_one_stays() {
        let functions = Functions { cuCtxGetCurrent: get, cuCtxSetCurrent: set, ..Functions::refusing() };
        let driver = Driver::new(Box::leak(Box::new(functions)), Default::default());
        let ours = without_provenance_mut(OURS);
        CURRENT.set(OURS);
        let other = Another::new(&driver, ours, 0, create, refuse).unwrap();
        assert_eq!(CURRENT.get(), OTHER);
        drop(other);
        assert_eq!(CURRENT.get(), OURS);
        // An answer that means that it cannot be told, and one that means something else.
        let none = Another::new(&driver, ours, 801, create, refuse);
        assert!(matches!(none.map(drop), Err(Error::Unsupported { .. })));
        let none = Another::new(&driver, ours, 700, create, refuse);
        assert!(matches!(none.map(drop), Err(Error::Driver { code: 700, .. })));
        assert_eq!(CURRENT.get(), OURS);
    }
}
