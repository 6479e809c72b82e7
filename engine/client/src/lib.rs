//! What a mount or a tool needs: master session, chunk locations, read and write pipelines, caches.
//!
//! One [`Client`] is one session with one master; it lives on one core of `ring` and is cloned like an `Rc`. All of
//! its calls are `async`, may run side by side in any number, and may be dropped at any `.await`: what was asked of
//! the master may then have happened or not, as with a signal. Nothing here opens files, starts threads or reads
//! clocks, so the same code runs on `ring::sim`.
//!
//! ```text
//! Client::connect(ring, Settings) -> Result<Client, MountError>      session() -> Session       close()
//! set_master_addresses(Vec<SocketAddrV4>)   take_events() -> Option<ring::local::Receiver<Event>>
//! kernel_holds(inode)   kernel_forgot(inode, count)                  every looked-up inode, for SUSTAINED_INODES
//!
//! names    lookup readlink symlink mknod mkdir unlink rmdir rename link read_dir
//! nodes    getattr setattr access statfs truncate getxattr listxattr setxattr removexattr get_acl set_acl
//! files    create open -> Opened { handle, .. }   read -> ReadData   write   flush   fsync   release
//! locks    flock posix_lock posix_lock_test       a dropped call that waits is interrupted at the master
//! tools    goal set_goal trash_time set_trash_time
//!          forward(packet type, payload after msgid) -> (type, payload after msgid): the proxy for file tools
//! ```
//!
//! Errors are [`Errno`], ready for the kernel. Written data that is lost is told to each handle of the file once, by
//! `fsync` or else by each `flush`; one `write` is refused, too. What is written afterwards is tried again.
//!
//! Inside: `master` holds the connection, `session` the registration, `locations` where chunks are, `pool` the
//! connections to chunkservers, `read` and `write` the two pipelines, `files` what is known of each open inode.

#![forbid(unsafe_code)]

mod client;
mod errno;
mod files;
mod handles;
mod locations;
mod locks;
mod master;
mod names;
mod pool;
mod preference;
mod read;
mod readahead;
mod retry;
mod session;
mod settings;
mod sync;
mod types;
mod unsynced;
mod write;

pub use client::Client;
pub use errno::Errno;
pub use preference::Preference;
pub use settings::{MountError, Session, Settings, disables};
pub use types::*;
pub use wire::{Attr, Inode, NodeKind, Time, attr_flags, lookup_flags, session_flags};
