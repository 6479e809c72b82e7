//! What is known of extended attributes without asking the master.
//!
//! Two sources. Attributes say of a node that it has none at all, as good as they are themselves: for a second. And a
//! value, or its absence, once asked for is kept for the time of `mfsxattrcacheto`, per caller, since who may see it is
//! the master's decision; own changes end that, changes by others show after that time. Spec 72, 4.2.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use client::Inode;
use ring::{Instant, Ring};

use crate::request::Caller;

/// How long "this node has none" holds: as long as attributes do.
const NONE_LIFE: Duration = Duration::from_secs(1);
/// Entries kept at most; beyond, all go.
const ENTRIES_MAX: usize = 20_000;
/// A longer value is not kept.
const VALUE_BYTES_MAX: usize = 4096;

/// See the module.
pub struct ExtendedAttributes {
    ring: Ring,
    life: Duration,
    none: RefCell<HashMap<u32, Instant>>,
    values: RefCell<BTreeMap<Key, Known>>,
}

/// When the master said it, and the value; `None`: there is none.
type Known = (Instant, Option<Vec<u8>>);
/// Inode, name, uid, gid.
type Key = (u32, Box<[u8]>, u32, u32);

impl ExtendedAttributes {
    /// Keep values for `life`.
    pub fn new(ring: Ring, life: Duration) -> ExtendedAttributes {
        ExtendedAttributes { ring, life, none: RefCell::default(), values: RefCell::default() }
    }

    /// Attributes of `inode` came, and said that it has no extended ones, or did not say so.
    pub fn seen(&self, inode: Inode, has_none: bool) {
        let mut none = self.none.borrow_mut();
        if !has_none {
            none.remove(&inode.0);
            return;
        }
        if none.len() >= ENTRIES_MAX {
            none.clear();
        }
        none.insert(inode.0, self.ring.now());
    }

    /// The node has been said to have none.
    pub fn has_none(&self, inode: Inode) -> bool {
        self.none.borrow().get(&inode.0).is_some_and(|seen| self.ring.now() < *seen + NONE_LIFE)
    }

    /// What is known of attribute `name`: outer `None` nothing, inner `None` that it does not exist.
    pub fn get(&self, inode: Inode, caller: &Caller, name: &[u8]) -> Option<Option<Vec<u8>>> {
        if self.has_none(inode) {
            return Some(None);
        }
        let values = self.values.borrow();
        let (kept, value) = values.get(&key(inode, caller, name))?;
        (self.ring.now() < *kept + self.life).then(|| value.clone())
    }

    /// Keep what the master said.
    pub fn keep(&self, inode: Inode, caller: &Caller, name: &[u8], value: Option<&[u8]>) {
        if self.life.is_zero() || value.is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
            return;
        }
        let mut values = self.values.borrow_mut();
        if values.len() >= ENTRIES_MAX {
            values.clear();
        }
        values.insert(key(inode, caller, name), (self.ring.now(), value.map(<[u8]>::to_vec)));
    }

    /// This mount changes attributes of `inode`.
    pub fn forget(&self, inode: Inode) {
        self.none.borrow_mut().remove(&inode.0);
        let mut values = self.values.borrow_mut();
        let first: Key = (inode.0, Box::default(), 0, 0);
        let stale: Vec<Key> =
            values.range(first..).map(|(key, _)| key).take_while(|key| key.0 == inode.0).cloned().collect();
        for key in stale {
            values.remove(&key);
        }
    }
}

fn key(inode: Inode, caller: &Caller, name: &[u8]) -> Key {
    (inode.0, name.into(), caller.uid, caller.gid)
}
