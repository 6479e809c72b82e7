//! The namespace in memory: nodes, edges, chunk table, sessions, journal, image, chunk planner. No IO.
//!
//! `Namespace` answers what clients ask and changes the metadata; each change is one journal line, and applying the
//! lines again gives the same state (`Namespace::replay`). Time comes in with every call; nothing here reads a clock,
//! draws a random number or depends on the order of a hash table.
//!
//! | to find | look in |
//! |---|---|
//! | records and their sizes | `node`, `owners`, `times`, `chunk_table` |
//! | tables, names, hash index | `arena`, `names`, `index` |
//! | the tables together, kept consistent | `state` |
//! | each change and what it does | `change`, `apply`, `snapshot` |
//! | lines of the journal | `journal` |
//! | the image, and the digest of a state; whether one is whole | `image`, `verify` |
//! | what to load and replay at start | `recovery` |
//! | MooseFS's `metadata.mfs` and change logs, in and out | `stock` |
//! | what clients ask, by subject | `access`, `entries`, `attributes`, `files`, `trees`, `trash`, `clients`, `locking`, `quota` |
//! | copies of chunks and the planner | `chunks` |
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "records are packed: each cast here cuts what was checked before")]

mod access;
pub mod acl;
mod apply;
mod archiving;
mod arena;
mod attributes;
pub mod change;
mod chunk_table;
pub mod chunks;
pub mod class;
mod clients;
mod entries;
mod files;
pub mod image;
mod index;
pub mod journal;
mod locking;
pub mod locks;
mod names;
mod namespace;
pub mod node;
mod owners;
pub mod quota;
#[cfg(test)]
mod random;
pub mod recovery;
pub mod session;
mod snapshot;
mod state;
pub mod stock;
#[cfg(test)]
mod tests;
mod times;
mod totals;
mod trash;
mod trees;
pub mod verify;

pub use arena::Memory;
pub use attributes::{SetAttr, setattr_flags, sugid_clear, xattr_mode};
pub use chunk_table::ChunkRecord;
pub use entries::{DirEntry, Found, READDIR_AT_PARENT, READDIR_END, READDIR_START, lookup_flags, readdir_flags};
pub use files::{Grant, Opened, Slot, Truncate, WriteTarget, open_flags, opened_flags, truncate_flags};
pub use locking::{LockAnswer, LockReply, LockRequest, RangeWanted, flock_command, posix_command, posix_type};
pub use namespace::{Caller, Namespace, Policy, ReplayError, Results, Snapshot};
pub use snapshot::snapshot_flags;
pub use state::{ClassNodes, ServerEntry, Sizes, Tables};
pub use totals::{Placed, Totals};
pub use trees::{Archived, ClassChange, Tally, smode};
