//! The runtime: one executor per core, sockets, direct files, timers, buffers; three drivers behind one interface.
//!
//! ```text
//! flows:  async fn over Ring, Stream, File, Block, BufferedReader     straight lines, no protocol known here
//!            |  operations own their buffers until they end
//! core:   tasks, ready list, timers, table of operations              one thread, one loop
//!            |  submit, cancel, park
//! driver: uring  io_uring; one system call per turn of the loop
//!         epoll  non-blocking sockets, threads for files; where io_uring is forbidden
//!         sim    virtual time, seeded; a network that cuts and delays, disks that tear and forget
//! ```
//!
//! A flow that takes its files, sockets, clock and random numbers from here alone runs unchanged on all three. `unsafe`
//! lives in `sys` alone. Deliberately absent: protocols, UDP, work stealing (a task stays on its core; cores talk
//! through [`channel`]).

mod core;
mod driver;
mod features;
mod file;
mod folder;
mod join;
mod net;
mod random;
mod reader;
mod remote;
mod ring;
mod sys;
mod time;
mod watch;

pub mod channel;
pub mod local;
pub mod sim;

use sys::arena;

pub use arena::{Block, LEAD_BYTES, PAYLOAD_BYTES, WholeBlock};
pub use features::Features;
pub use file::{File, OpenHow, Stat};
pub use folder::{DirEntry, Space};
pub use join::JoinHandle;
pub use net::{DetachedStream, Listener, Stream};
pub use reader::BufferedReader;
pub use ring::{DriverChoice, Options, Ring, run};
pub use sys::allocations::CountingAllocator;
pub use sys::buffer::{IoBuf, IoBufExt, IoBufMut, Slice};
pub use sys::gather::Gather;
pub use sys::shared::SharedBlock;
pub use time::{Instant, Sleep, TimedOut};
pub use watch::Watched;
