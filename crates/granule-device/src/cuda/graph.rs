//! Work captured from a stream, to be run again and again as one.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::sys;

use super::context::{Context, Raw};
use super::release::Leftover;
use super::stream::Resource;
use crate::live::{Counted, Thing};
use crate::{Device, Error, Stream};

/// Captured work. It keeps the modules of its kernels; the memory is its maker's business, as the safety of
/// [`Stream::launch`] says.
pub struct Graph {
    raw: Raw<sys::CUgraph_st>,
    context: Arc<Context>,
    kept: Vec<Resource>,
    owner: Counted,
}

/// A graph made ready to run. Cheap to clone.
#[derive(Clone)]
pub struct ExecutableGraph {
    inner: Arc<Executable>,
}

struct Executable {
    raw: Raw<sys::CUgraphExec_st>,
    context: Arc<Context>,
    #[expect(dead_code, reason = "the modules of its kernels, held while it can run")]
    kept: Vec<Resource>,
    owner: Counted,
}

impl Stream {
    /// Records the work that is given from now on, instead of running it, until [`Stream::end_capture`].
    ///
    /// Kernels and copies of slices can be captured: their memory is the maker's business. What needs to know when it has run
    /// is refused with [`Error::Capturing`]: regions, events, functions of this process. So is, on all of the device, what
    /// maps, allocates and loads; what is dropped meanwhile is given back afterwards.
    ///
    /// # Errors
    /// [`Error::Capturing`] where the stream is captured already, and where cudarc has a view of a region that was lent for
    /// this stream: drop the view first. [`Error::Unsupported`] on the host; [`Error::Driver`].
    pub fn begin_capture(&self) -> Result<(), Error> {
        self.cuda_queue("capturing a stream")?.begin_capture()
    }

    /// Ends the capture. Any thread may.
    ///
    /// # Errors
    /// [`Error::NotCapturing`]; [`Error::Driver`] where something has spoilt the capture, which is over then.
    pub fn end_capture(&self) -> Result<Graph, Error> {
        let queue = self.cuda_queue("capturing a stream")?;
        let (raw, kept) = queue.end_capture()?;
        let context = Arc::clone(queue.context());
        Ok(Graph { raw, context, kept, owner: Counted::new(self.device(), Thing::Graph) })
    }
}

impl Graph {
    /// The device whose work it is.
    pub fn device(&self) -> &Device {
        self.owner.device()
    }

    /// How many kernels, copies and fills it has.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn nodes(&self) -> Result<usize, Error> {
        let _bound = self.context.bind()?;
        let mut count = 0;
        // SAFETY: the graph is alive; no list means that only the number is asked for.
        unsafe {
            self.context.driver.cuGraphGetNodes(self.raw.0, std::ptr::null_mut(), &raw mut count)?;
        }
        Ok(count)
    }

    /// Makes it ready to run.
    ///
    /// # Errors
    /// [`Error::Driver`]; [`Error::Capturing`].
    pub fn instantiate(&self) -> Result<ExecutableGraph, Error> {
        self.context.refuse_in_capture("instantiating a graph")?;
        let _bound = self.context.bind()?;
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph is alive; the answer is written into a local.
        unsafe {
            self.context.driver.cuGraphInstantiateWithFlags(&raw mut executable, self.raw.0, 0)?;
        }
        let inner = Executable {
            raw: Raw(executable),
            context: Arc::clone(&self.context),
            kept: self.kept.clone(),
            owner: Counted::new(self.device(), Thing::Graph),
        };
        Ok(ExecutableGraph { inner: Arc::new(inner) })
    }
}

impl ExecutableGraph {
    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.inner.owner.device()
    }

    /// Runs it on a stream, as one piece of work.
    ///
    /// # Errors
    /// [`Error::OtherDevice`], [`Error::Driver`].
    ///
    /// # Safety
    /// - As of [`Stream::launch`], for every kernel and copy that was captured.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<(), Error> {
        stream.check_device(self.device(), "a graph")?;
        let queue = stream.cuda_queue("a graph")?;
        queue.reap();
        let context = queue.context();
        let _bound = context.bind()?;
        let graph = Arc::clone(&self.inner) as Resource;
        queue.give(None, Vec::new(), Some(graph), |stream| {
            // SAFETY: the caller's promise; the graph is kept until it has run.
            unsafe { context.driver.cuGraphLaunch(self.inner.raw.0, stream) }
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.context.release(Leftover::Graph(self.raw));
    }
}

impl Drop for Executable {
    fn drop(&mut self) {
        self.context.release(Leftover::Executable(self.raw));
    }
}

impl fmt::Debug for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Graph({})", self.device().name())
    }
}

impl fmt::Debug for ExecutableGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExecutableGraph({})", self.device().name())
    }
}
