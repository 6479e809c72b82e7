//! The simulated driver: a world of nodes in one thread, with time, order, network and disks decided by a seed.
//!
//! ```no_run
//! # use std::{net::Ipv4Addr, time::Duration};
//! # use ring::sim::{Settings, World};
//! let world = World::new(7, Settings::default());
//! let server = world.node(Ipv4Addr::new(10, 0, 0, 1));
//! world.spawn(server, |ring| async move { /* serve */ });
//! world.run_for(Duration::from_secs(5));
//! world.crash(server); // tasks gone, unsynced writes lost or torn
//! let _ring = world.restart(server);
//! ```
//!
//! All nodes share one executor and one clock, which jumps from event to event. Whatever the real world leaves open is
//! rolled: which ready task runs first, how long a disk or a packet takes, how many bytes a receive gives, what a
//! crash leaves of unsynced sectors and names. The same seed gives the same run; [`World::trace`] tells two runs apart.
//!
//! The steps of each node are counted: a poll of one of its tasks, or an operation of it that takes effect on its disk
//! or sends. Between two of them the node does nothing that outlives it. So a scenario in which it may fail at any
//! await point is run once for [`World::steps`], and then once for each of them with [`World::fail_at`].

mod disk;
mod files;
mod net;
mod random;
mod state;
mod world;

use std::ops::RangeInclusive;
use std::time::Duration;

pub(crate) use state::SharedState;
pub use world::{DiskImage, NodeId, World};

/// The laws of a world.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long bytes travel.
    pub net_delay: RangeInclusive<Duration>,
    /// How long a file operation takes.
    pub disk_delay: RangeInclusive<Duration>,
    /// After how long a change of names is durable without a sync of the folder.
    pub names_settle: RangeInclusive<Duration>,
    /// After how long a connection across a cut ends with an error.
    pub cut_timeout: RangeInclusive<Duration>,
    /// After how long connecting to a node that does not answer fails.
    pub connect_timeout: Duration,
    /// Bytes that a connection takes before its sender must wait.
    pub window_bytes: usize,
    /// How many of a hundred sends and receives transfer less than they could.
    pub short_transfers_percent: u64,
    /// Size of each node's disk.
    pub disk_bytes: u64,
    /// Alignment that direct files ask for: 512 or 4096.
    pub direct_alignment: u32,
    /// Direct files are refused, as some file systems do.
    pub refuse_direct: bool,
    /// Unix time at the start.
    pub start_wall_micros: u64,
    /// Slots of the buffer pool that all nodes share.
    pub buffers: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            net_delay: Duration::from_micros(20)..=Duration::from_millis(2),
            disk_delay: Duration::from_micros(20)..=Duration::from_millis(1),
            names_settle: Duration::from_secs(1)..=Duration::from_secs(30),
            cut_timeout: Duration::from_secs(1)..=Duration::from_secs(20),
            connect_timeout: Duration::from_secs(20),
            window_bytes: 256 << 10,
            short_transfers_percent: 30,
            disk_bytes: 1 << 30,
            direct_alignment: 512,
            refuse_direct: false,
            start_wall_micros: 1_700_000_000_000_000,
            buffers: 512,
        }
    }
}

/// How a node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Its process is killed: the disk keeps all that it has taken. What was asked of it, and had not happened yet,
    /// happens or not.
    Killed,
    /// Its power fails, as [`World::crash`].
    PowerCut,
}

/// What can be wrong with a part of a node's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFault {
    /// Reads fail with EIO.
    Reads,
    /// Writes fail with EIO.
    Writes,
    /// Syncs fail with EIO.
    Syncs,
    /// Writes fail with ENOSPC.
    Full,
    /// Every operation of the node takes so much longer.
    Slow(Duration),
    /// Nothing comes back, until `mend_disk`. Listings and questions for space are answered all the same.
    Hangs,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX / 4)
}
