//! The host device on systems other than Linux: a clear error.

use std::sync::Arc;

use crate::backend::Backend;
use crate::fault::Faults;
use crate::{Error, HostOptions};

pub(crate) fn open(_: HostOptions, _: Arc<Faults>) -> Result<Box<dyn Backend>, Error> {
    Err(Error::Unsupported {
        what: "the host device",
        why: "it is built on Linux's memfd, fallocate and MAP_FIXED",
    })
}

/// No file is mapped where nothing watches over it.
#[derive(Debug)]
pub(crate) enum Guard {}

impl Guard {
    pub(crate) fn watch(_: usize, _: usize) -> Result<Guard, Error> {
        Err(Error::Unsupported {
            what: "mapping a file",
            why: "a file that is cut short is survived on Linux only",
        })
    }

    pub(crate) fn was_cut(&self) -> bool {
        match *self {}
    }
}

pub(crate) fn let_go(_: &memmap2::Mmap, _: std::ops::Range<usize>) {}

pub(crate) fn lock_bytes(_: &[u8]) -> Result<(), Error> {
    Err(Error::Unsupported { what: "locking a file in memory", why: "it is done on Linux only" })
}
