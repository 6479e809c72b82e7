//! Descriptors that are neither sockets nor files.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

use crate::Ring;
use crate::net::is_passing;
use crate::sys::operation::Descriptor;

/// A descriptor that is neither socket nor file, such as /dev/fuse: its owner reads it when the ring says that it can.
#[derive(Clone)]
pub struct Watched {
    descriptor: Rc<Descriptor>,
}

impl Ring {
    /// Takes `fd` over, to tell when it can be read; who wants to read keeps a duplicate of it, set to O_NONBLOCK.
    pub fn watch(&self, fd: OwnedFd) -> Watched {
        Watched { descriptor: self.descriptor(fd.into_raw_fd()) }
    }
}

impl Watched {
    /// Waits until a read would not block: there is something, or the other side is gone. May be wrong when several
    /// read. Errors: the simulation has no such descriptors.
    pub async fn readable(&self) -> io::Result<()> {
        loop {
            match self.descriptor.ready().await.0 {
                Err(error) if is_passing(&error) => {}
                result => return result.map(drop),
            }
        }
    }
}
