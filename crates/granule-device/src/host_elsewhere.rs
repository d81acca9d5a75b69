//! The host device on systems that lack a memfd: a clear error.

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
