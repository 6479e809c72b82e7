//! Whatever needs more than one crate: whole clusters of real processes, trees copied through them and compared,
//! fuzz targets, simulation scenarios.
//!
//! The harness starts daemons of either kind, MooseFS's (`Kind::Stock`) and ours (`Kind::Mooring`), in any mix, as
//! children of the test, inside a network namespace of their own. It waits by polling, never by sleeping for a fixed
//! time, and whatever happens it leaves no process, mount or namespace behind.
//!
//! | module | what it holds |
//! |---|---|
//! | [`chunkfile`] | chunk files on a disk: whether one is sound, and how to spoil it |
//! | [`cluster`] | a master, its chunkservers and mounts: start, stop, kill, swap one kind for the other |
//! | [`compare`] | the same commands under our master and MooseFS's, by several users |
//! | [`crashes`] | a master that fails at any of its await points, and what must be there then |
//! | [`daemon`] | one child process: its log, its end, its CPU time, its connections |
//! | [`disk`] | a disk whose power can be cut, and which then forgets what was not flushed |
//! | [`drill`] | one chunkserver, killed again and again under load, and a model of what must be there |
//! | [`fuzz`] | a target for every decoder of bytes from outside, and what feeds them |
//! | [`load`] | writers in a process of their own, and how a drill speaks with them |
//! | [`master`] | the master's side of a chunkserver's life, for servers that are driven directly |
//! | [`namespace`] | the network in which a cluster lives |
//! | [`outage`] | all chunkservers lost at once, again and again, under load, in a cluster of real processes |
//! | [`power`] | chunkservers that lose what they had acknowledged, between a write and its `fsync` |
//! | [`simulation`] | a whole cluster in a simulated world, under faults |
//! | [`tree`] | folders full of everything a file system must keep, and how two of them differ |
//! | [`copies`] | which chunk lies in which folder, as the disks tell it |
//! | [`need`] | what this machine lacks, said loudly |
//! | [`wait`] | polling with a limit and a name |
//! | [`writer`] | a program on a real mount that knows what its file may hold after any trouble |
//! | [`workload`] | random work through the client library with a model that remembers every byte |
#![forbid(unsafe_code)]

pub mod chunkfile;
pub mod cluster;
pub mod compare;
pub mod copies;
pub mod crashes;
pub mod daemon;
pub mod disk;
pub mod drill;
pub mod fuzz;
pub mod load;
pub mod master;
pub mod namespace;
pub mod need;
pub mod outage;
pub mod power;
pub mod simulation;
pub mod tree;
pub mod wait;
pub mod workload;
pub mod writer;
