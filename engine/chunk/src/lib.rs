//! The chunk engine: layout, checksums, operations, volumes, the data port and the life under a master.
//!
//! ```text
//! server      start, stop, what runs beside what;                       cores  what they share, how one asks another
//! serve       port 9422: a connection, reads, write chains, questions;  peers  connections to other chunkservers
//! master      port 9420: registration, reports, orders;                 replicate  a copy from another server
//! store       volumes, registry, chunks in use: read and write a block, the operations, recovery, disks that come and go
//! cache       verified blocks in memory
//! scan chunkdb  which files a disk has: its folders, and the list that a clean stop left;  health  disks that hang
//! counters series disk_stats  what the monitor is told
//! layout sums registry folders error   pure: bytes of a chunk file, arithmetic of sums, which file is which chunk
//! ```
//!
//! Flows touch the world through `ring` alone, so that a whole server also runs on the simulated driver. Chunks are spread
//! over cores by their ids: each core owns a `Store` and everything in it, and a connection goes to the owner of the chunk
//! that its READ or WRITE names. What the cores share is in `cores`.
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "numbers of blocks, bytes in a chunk and sub-folders are bounded")]

mod cache;
mod chunkdb;
mod cores;
mod counters;
mod disk_stats;
mod error;
mod fair_lock;
pub mod folders;
mod health;
mod intents;
pub mod layout;
mod master;
mod registry;
mod replicate;
mod reports;
mod scan;
mod series;
mod serve;
pub mod server;
pub mod settings;
mod store;
pub mod sums;
mod volume;
