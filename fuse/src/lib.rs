//! The mount: FUSE requests to client calls and back.
//!
//! ```text
//! kernel  <->  device (threads: read, decode)  --channel-->  serve (one core)  -->  adapter  -->  client
//!                       ^------------- answers, written from the core ------------------'
//! ```
//!
//! [`request`] and [`reply`] are what a file system sees; [`kernel`] is the protocol's bytes; [`device`] the transport
//! over /dev/fuse; [`serve`] runs requests as tasks and ends those of killed processes. None of these knows the client.
//! [`adapter`] does, with its helpers: [`translate`] and [`acl`] (pure), [`directory`], [`groups`], [`xattr`], [`special`],
//! [`stats`]. [`proxy`] is the door for file tools. Arguments, messages and signals are the business of `daemons`.

#![forbid(unsafe_code)]

pub mod acl;
pub mod adapter;
pub mod device;
pub mod directory;
pub mod groups;
pub mod kernel;
pub mod mount_table;
pub mod proxy;
pub mod reply;
pub mod request;
pub mod serve;
pub mod special;
pub mod stats;
pub mod translate;
pub mod xattr;
