//! Open directories: one listing from the master per pass, and the pieces of it that the kernel asks for.
//!
//! A listing is a snapshot: an offset is a place in it, so offsets stay good while names come and go, and each name is
//! shown once. Rewinding takes a new one. Spec 72, 4.3.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use client::{DirEntry, Inode};

use crate::kernel::put_directory_entry;
use crate::translate::{self, CacheTimes};

/// The directories that processes have open, by handle.
#[derive(Default)]
pub struct Directories {
    open: RefCell<HashMap<u64, OpenDirectory>>,
}

struct OpenDirectory {
    listing: Option<Rc<Vec<DirEntry>>>,
}

impl Directories {
    /// A new open directory under the number `handle`.
    pub fn open(&self, handle: u64) {
        self.open.borrow_mut().insert(handle, OpenDirectory { listing: None });
    }

    /// The directory is closed.
    pub fn close(&self, handle: u64) {
        self.open.borrow_mut().remove(&handle);
    }

    /// The listing to go on with at `offset`; `None`: a new one must be asked for.
    pub fn listing(&self, handle: u64, offset: u64) -> Option<Rc<Vec<DirEntry>>> {
        if offset == 0 {
            return None;
        }
        self.open.borrow().get(&handle)?.listing.clone()
    }

    /// Keep a listing for the pieces that follow.
    pub fn keep(&self, handle: u64, listing: &Rc<Vec<DirEntry>>) {
        if let Some(directory) = self.open.borrow_mut().get_mut(&handle) {
            directory.listing = Some(listing.clone());
        }
    }
}

/// The entries from `offset` on that fit `size_bytes`, as the kernel wants them.
///
/// `attributes_for`: with attributes, then the kernel holds a reference to each entry that has them, and `given` is
/// called for it.
pub fn piece(
    listing: &[DirEntry],
    offset: u64,
    size_bytes: usize,
    attributes_for: Option<&CacheTimes>,
    mut given: impl FnMut(&DirEntry),
) -> Vec<u8> {
    let mut out = Vec::with_capacity(size_bytes);
    let first = usize::try_from(offset).unwrap_or(usize::MAX).min(listing.len());
    for (index, listed) in listing.iter().enumerate().skip(first) {
        let attributes = listed.attr.as_ref().filter(|_| !is_dots(&listed.name));
        let entry = attributes_for.map(|times| match attributes {
            Some(attr) => translate::listed_entry(listed, attr, times),
            None => translate::negative_entry(&CacheTimes::default()), // inode 0: name and type only
        });
        let next = index as u64 + 1;
        let type_bits = translate::type_bits(listed.kind);
        let inode = inode_number(listed.inode);
        if !put_directory_entry(&mut out, size_bytes, next, inode, type_bits, &listed.name, entry.as_ref()) {
            break;
        }
        if attributes_for.is_some() && attributes.is_some() {
            given(listed);
        }
    }
    out
}

fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

fn inode_number(inode: Inode) -> u64 {
    u64::from(inode.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use client::{Attr, NodeKind};

    fn listing(names: &[&str], with_attributes: bool) -> Vec<DirEntry> {
        let attr = Attr {
            flags: 4,
            kind: NodeKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            atime: 0.into(),
            mtime: 0.into(),
            ctime: 0.into(),
            nlink: 1,
            extra: 0,
            winattr: 0,
        };
        let entry = |(index, name): (usize, &&str)| DirEntry {
            name: name.as_bytes().into(),
            inode: Inode(u32::try_from(index).expect("few") + 2),
            kind: NodeKind::File,
            attr: with_attributes.then_some(attr),
        };
        names.iter().enumerate().map(entry).collect()
    }

    #[test]
    fn pieces_follow_each_other_without_gap_or_repetition() {
        let all = listing(&[".", "..", "a", "b", "c"], false);
        let first = piece(&all, 0, 100, None, |_| panic!("no attributes, no references"));
        assert_eq!(first.len(), 96);
        let rest = piece(&all, 3, 100, None, |_| {});
        assert_eq!(rest.len(), 64);
        assert_eq!(piece(&all, 5, 100, None, |_| {}), [0; 0]);
        assert_eq!(piece(&all, u64::MAX, 100, None, |_| {}), [0; 0]);
    }

    #[test]
    fn only_entries_that_were_handed_out_are_referred_to() {
        let all = listing(&[".", "..", "a", "b", "c"], true);
        let mut given = Vec::new();
        let times = CacheTimes::default();
        let out = piece(&all, 0, 4 * 160, Some(&times), |entry| given.push(entry.inode.0));
        assert_eq!(out.len(), 4 * 160);
        assert_eq!(given, [4, 5]);
    }
}
