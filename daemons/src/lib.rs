//! The daemons of Mooring and what they share: configuration, logging, the life of a process, the demo.
//!
//! Thin on purpose. What a daemon does is in the engines (`chunk`, `meta`, `client`); here are arguments, files of
//! settings, signals, and the lines that tie an engine to a ring. `main.rs` picks the daemon.
#![forbid(unsafe_code)]

pub mod chunkserver;
pub mod config;
mod connection;
mod data_folder;
pub mod demo;
pub mod huge;
pub mod logging;
pub mod master;
pub mod metalogger;
pub mod mount;
pub mod probe;
pub mod process;
pub mod promote;
pub mod serve;
pub mod signals;
pub mod statsdump;
pub mod stock;
pub mod why;
