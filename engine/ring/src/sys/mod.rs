//! Everything that needs `unsafe`: memory lent to the kernel, and system calls.
//!
//! The rule that the rest rests on: an operation's slot in [`operation::Table`] outlives the kernel's interest in it,
//! and whoever waits for the operation owns its memory until the slot is finished. A future that is dropped early
//! leaves that memory to the slot. Above this module everything is safe Rust.
#![allow(unsafe_code)]

pub(crate) mod allocations;
pub(crate) mod arena;
pub(crate) mod buffer;
pub(crate) mod calls;
pub(crate) mod epoll;
pub(crate) mod gather;
pub(crate) mod offload;
pub(crate) mod operation;
pub(crate) mod shared;
pub(crate) mod staging;
pub(crate) mod uring;
