//! What the executor asks of a driver.

use std::cell::RefCell;
use std::os::fd::RawFd;

use crate::sys::operation::{Key, Op, Table};
use crate::time::Instant;

/// How long a driver may wait for something to finish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: tasks are ready.
    Not,
    /// Until that time, or without end.
    Until(Option<Instant>),
}

/// Performs operations. Results are as the kernel gives them: >= 0, or a negative errno. Each operation that was
/// submitted finishes once, also when it was cancelled.
pub(crate) trait Driver {
    fn name(&self) -> &'static str;

    /// Takes up an operation of a node (0 on the real drivers).
    fn submit(&mut self, key: Key, node: u32, op: Op);

    /// Ends the operation soon, if it can.
    fn cancel(&mut self, key: Key);

    /// Closes a descriptor that no operation uses any more.
    fn close(&mut self, fd: RawFd);

    /// Forgets a socket that no operation uses any more, without closing it.
    fn forget_socket(&mut self, fd: RawFd);

    /// Hands everything to the kernel, waits, and adds what has finished.
    fn park(&mut self, wait: Wait, table: &RefCell<Table>, finished: &mut Vec<(Key, i32)>);

    /// Runs a call that blocks, elsewhere.
    fn call(&mut self, call: Box<dyn FnOnce() + Send>);

    /// Whether sockets are to be in non-blocking mode.
    fn wants_nonblocking_sockets(&self) -> bool;
}
