//! Who may keep the pages of a file over an open. Spec 30, 6.1.

use std::collections::BTreeMap;

use wire::{Inode, SessionId};

/// Entries that are remembered; the one that was not used for longest goes first.
const ENTRIES_MAX: usize = 500_000;

/// For (file, session): are the pages that the session holds still valid?
#[derive(Debug, Default)]
pub(in crate::master) struct DataCache {
    entries: BTreeMap<(Inode, SessionId), Entry>,
    by_age: BTreeMap<u64, (Inode, SessionId)>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    valid: bool,
    used: u64,
}

impl DataCache {
    /// A look-up or open: may the pages stay?
    pub(in crate::master) fn may_keep(&mut self, inode: Inode, session: SessionId) -> bool {
        let valid = self.entries.get(&(inode, session)).is_some_and(|entry| entry.valid);
        self.touch(inode, session, valid);
        valid
    }

    /// The session read the file, or dropped its pages.
    pub(in crate::master) fn read(&mut self, inode: Inode, session: SessionId) {
        if self.entries.contains_key(&(inode, session)) {
            self.touch(inode, session, true);
        }
    }

    /// The session changed the file: what others hold is void.
    pub(in crate::master) fn written(&mut self, inode: Inode, session: SessionId) {
        let own = self.entries.contains_key(&(inode, session));
        self.forget(inode);
        if own {
            self.touch(inode, session, true);
        }
    }

    pub(in crate::master) fn forget(&mut self, inode: Inode) {
        let all = (inode, SessionId(0))..=(inode, SessionId(u32::MAX));
        let keys: Vec<_> = self.entries.range(all).map(|(key, entry)| (*key, entry.used)).collect();
        for (key, used) in keys {
            self.entries.remove(&key);
            self.by_age.remove(&used);
        }
    }

    fn touch(&mut self, inode: Inode, session: SessionId, valid: bool) {
        self.clock += 1;
        let used = self.clock;
        if let Some(before) = self.entries.insert((inode, session), Entry { valid, used }) {
            self.by_age.remove(&before.used);
        }
        self.by_age.insert(used, (inode, session));
        if self.entries.len() > ENTRIES_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_stay_until_another_session_writes() {
        let mut cache = DataCache::default();
        let (file, one, two) = (Inode(5), SessionId(1), SessionId(2));
        assert!(!cache.may_keep(file, one));
        cache.read(file, one);
        assert!(cache.may_keep(file, one));
        assert!(!cache.may_keep(file, two));
        cache.read(file, two);
        cache.written(file, one);
        assert!(cache.may_keep(file, one));
        assert!(!cache.may_keep(file, two));
        cache.forget(file);
        assert!(!cache.may_keep(file, one));
    }
}
