//! Whole chunkservers under a scripted master and scripted clients, on the simulated driver and on the real ones.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test: a panic is its way to fail")]

mod caching;
mod cores;
mod crashes;
mod disks;
mod monitor;
mod operations;
mod port;
mod registration;
mod support;
mod syncing;
mod tickets;
mod volumes;
mod writes;
