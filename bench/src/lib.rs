//! Programs that measure Mooring beside MooseFS, and criterion benches of the engines.
//!
//! `bin/chunk` measures chunkservers alone, by their data port:
//!
//! | module | what it holds |
//! |---|---|
//! | [`job`] | what is done: `read-rand-64k-n32-cold` and the like |
//! | [`load`] | doing it to a chunkserver, on a ring |
//! | [`replies`] | what a chunkserver sends back, parsed where it lies |
//! | [`content`] | the bytes that are written, and who wrote what |
//! | [`subject`] | the chunkservers of one kind, their files and their use of the machine |
//! | [`fio`] | the same job by fio, on plain files |
//! | [`figures`] | medians, tables, JSON |
//!
//! `bin/master` measures masters alone, by their clients' port: [`master`].
#![forbid(unsafe_code)]

pub mod content;
pub mod figures;
pub mod fio;
pub mod job;
pub mod load;
pub mod master;
pub mod replies;
pub mod subject;
