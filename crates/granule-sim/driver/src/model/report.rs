//! What the simulator has to say about the program: a kind and a sentence that names the calls.

use std::collections::HashSet;
use std::fmt;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What kind of bug a report is about.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub(crate) enum Kind { $($(#[$doc])* $name,)* }

        impl fmt::Display for Kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Kind::$name => stringify!($name),)* })
            }
        }
    };
}

kinds! {
    /// An object is still held when its context goes, or when the process ends.
    LeakAtContextRelease,
    /// Memory is used after it was given back.
    UseAfterFree,
    /// Memory was unmapped while work might still touch it.
    UseAfterRetire,
    /// An access leaves its allocation, or a red zone was written.
    OutOfBounds,
    /// An access leaves its lease.
    PastLease,
    /// A write through a mapping that may only be read.
    WriteThroughReadOnly,
    /// An access where nothing is mapped.
    OutsideMapping,
    /// A device reaches memory that it was given no access to.
    NoAccess,
    /// Virtual memory was changed during a capture.
    VmmDuringCapture,
    /// An event is waited for that was never recorded.
    EventNeverRecorded,
    /// A kernel reads bytes that nothing wrote.
    UninitializedRead,
    /// Threads of a block touch shared memory unordered.
    SharedRace,
    /// Threads of a block part at a barrier.
    BarrierDivergence,
    /// A kernel gave up: a trap or an assertion.
    KernelTrap,
    /// A kernel's parameters are not what its PTX says, or a launch's shape is impossible.
    BadArguments,
    /// Pinned memory was overwritten before its copy had run.
    PinnedReuse,
    /// Two operations touch the same bytes, one writes, and nothing orders them.
    StreamRace,
    /// So much work is queued that races with its oldest part are not looked for any more.
    Forgotten,
    /// A host function calls the driver.
    DriverCallInHostFunction,
    /// A handle that is not, or no longer, one.
    BadHandle,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Report {
    pub(crate) kind: Kind,
    pub(crate) message: String,
}

/// All reports since the last time somebody took them; the same sentence is said once.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    list: Vec<Report>,
    said: HashSet<(Kind, String)>,
    pub(crate) print: bool,
}

impl Reports {
    pub(crate) fn add(&mut self, kind: Kind, message: String) {
        if self.said.insert((kind, message.clone())) {
            if self.print {
                eprintln!("granule-sim: {kind}: {message}");
            }
            self.list.push(Report { kind, message });
        }
    }

    pub(crate) fn list(&self) -> &[Report] {
        &self.list
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_sentence_is_said_once() {
        let mut reports = Reports::default();
        for kind in [Kind::UseAfterFree, Kind::UseAfterFree, Kind::OutOfBounds] {
            reports.add(kind, "x".into());
        }
        assert_eq!(reports.list().len(), 2);
        reports.clear();
        reports.add(Kind::UseAfterFree, "x".into());
        assert_eq!(reports.list().len(), 0);
    }
}
