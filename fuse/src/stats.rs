//! Counters of requests, shown by the hidden file `.stats`. Spec 72, 2.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;

use crate::request::Operation;

/// How often each operation was asked for.
#[derive(Default)]
pub struct Counters {
    counts: RefCell<BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// One more of these.
    pub fn count(&self, operation: &Operation) {
        *self.counts.borrow_mut().entry(name(operation)).or_default() += 1;
    }

    /// From zero.
    pub fn reset(&self) {
        self.counts.borrow_mut().clear();
    }

    /// One line a counter, the sum of them first.
    pub fn text(&self) -> String {
        let counts = self.counts.borrow();
        let mut text = format!("fuse_ops: {}\n", counts.values().sum::<u64>());
        for (name, count) in counts.iter() {
            let _ = writeln!(text, "fuse_ops.{name}: {count}"); // a String takes everything
        }
        text
    }
}

fn name(operation: &Operation) -> &'static str {
    use Operation as O;
    match operation {
        O::Lookup { .. } => "lookup",
        O::Forget { .. } => "forget",
        O::GetAttributes { .. } => "getattr",
        O::SetAttributes(_) => "setattr",
        O::ReadLink => "readlink",
        O::SymbolicLink { .. } => "symlink",
        O::MakeNode { .. } => "mknod",
        O::MakeDirectory { .. } => "mkdir",
        O::Unlink { .. } => "unlink",
        O::RemoveDirectory { .. } => "rmdir",
        O::Rename { .. } => "rename",
        O::Link { .. } => "link",
        O::Open { .. } => "open",
        O::Create { .. } => "create",
        O::Read { .. } => "read",
        O::Write { .. } => "write",
        O::Flush { .. } => "flush",
        O::Release { .. } => "release",
        O::Sync { .. } => "fsync",
        O::OpenDirectory { .. } => "opendir",
        O::ReadDirectory { with_attributes: true, .. } => "readdirplus",
        O::ReadDirectory { with_attributes: false, .. } => "readdir",
        O::ReleaseDirectory { .. } => "releasedir",
        O::SyncDirectory { .. } => "fsyncdir",
        O::FileSystemStatistics => "statfs",
        O::Access { .. } => "access",
        O::GetExtendedAttribute { .. } => "getxattr",
        O::SetExtendedAttribute { .. } => "setxattr",
        O::ListExtendedAttributes { .. } => "listxattr",
        O::RemoveExtendedAttribute { .. } => "removexattr",
        O::GetLock { .. } => "getlk",
        O::SetLock { whole_file: false, .. } => "setlk",
        O::SetLock { whole_file: true, .. } => "flock",
        O::Allocate { .. } => "fallocate",
        O::Seek { .. } => "lseek",
        O::Interrupt { .. } => "interrupt",
        O::Destroy => "destroy",
        O::Unknown { .. } => "unknown",
    }
}
