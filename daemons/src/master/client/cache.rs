//! Who may keep the pages of a file over an open. Spec 30, 6.1.

use wire::{Inode, SessionId};

/// Files fall into as many sets.
const SETS: usize = 1 << 15;
/// (File, session) pairs that a set remembers; the one that was not used for longest goes first. What is forgotten
/// costs a client its pages once, nothing else.
const WAYS: usize = 16;

/// For (file, session): are the pages that the session holds still valid?
///
/// A look-up asks it, so it is one table that never moves: one or two cache lines for a question. Untouched parts of
/// it take no memory.
#[derive(Debug)]
pub(in crate::master) struct DataCache {
    /// `SETS * WAYS`; each set is in order of use, the free places (file 0) last.
    entries: Box<[Entry]>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    inode: u32,
    session: u32,
    /// 1: valid. A number, so that the table is made of untouched zeros.
    valid: u32,
}

impl Default for DataCache {
    fn default() -> DataCache {
        DataCache { entries: vec![Entry::default(); SETS * WAYS].into_boxed_slice() }
    }
}

impl DataCache {
    /// A look-up or open: may the pages stay?
    pub(in crate::master) fn may_keep(&mut self, inode: Inode, session: SessionId) -> bool {
        let set = self.set(inode);
        if let [first, ..] = set
            && first.is(inode, session)
        {
            return first.valid != 0;
        }
        let valid = set.iter().any(|entry| entry.is(inode, session) && entry.valid != 0);
        touch(set, inode, session, valid);
        valid
    }

    /// The session read the file, or dropped its pages.
    pub(in crate::master) fn read(&mut self, inode: Inode, session: SessionId) {
        let set = self.set(inode);
        if set.iter().any(|entry| entry.is(inode, session)) {
            touch(set, inode, session, true);
        }
    }

    /// The session changed the file: what others hold is void.
    pub(in crate::master) fn written(&mut self, inode: Inode, session: SessionId) {
        let own = self.set(inode).iter().any(|entry| entry.is(inode, session));
        self.forget(inode);
        if own {
            touch(self.set(inode), inode, session, true);
        }
    }

    pub(in crate::master) fn forget(&mut self, inode: Inode) {
        let set = self.set(inode);
        if !set.iter().any(|entry| entry.inode == inode.0) {
            return;
        }
        let mut kept = 0;
        for at in 0..WAYS {
            if set[at].inode != inode.0 {
                set[kept] = set[at];
                kept += 1;
            }
        }
        set[kept..].fill(Entry::default());
    }

    fn set(&mut self, inode: Inode) -> &mut [Entry] {
        // Neighbours go to different sets, since they are used together.
        let at = inode.0 as usize % SETS * WAYS;
        &mut self.entries[at..at + WAYS]
    }
}

impl Entry {
    fn is(&self, inode: Inode, session: SessionId) -> bool {
        (self.inode, self.session) == (inode.0, session.0)
    }
}

/// The pair comes to the front.
fn touch(set: &mut [Entry], inode: Inode, session: SessionId, valid: bool) {
    let place = set.iter().position(|entry| entry.is(inode, session)).unwrap_or(WAYS - 1);
    set.copy_within(0..place, 1);
    set[0] = Entry { inode: inode.0, session: session.0, valid: u32::from(valid) };
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

    #[test]
    fn the_one_that_was_not_used_for_longest_is_forgotten() {
        let mut cache = DataCache::default();
        let file = |number: usize| Inode((5 + number * SETS) as u32);
        for number in 0..WAYS {
            cache.may_keep(file(number), SessionId(1));
            cache.read(file(number), SessionId(1));
        }
        assert!(cache.may_keep(file(0), SessionId(1)));
        cache.may_keep(file(WAYS), SessionId(1));
        assert!(cache.may_keep(file(0), SessionId(1)), "used just now");
        assert!(!cache.may_keep(file(1), SessionId(1)), "had to make room");
        cache.forget(file(0));
        assert!(!cache.may_keep(file(0), SessionId(1)));
        assert!(cache.may_keep(file(WAYS - 1), SessionId(1)), "stays beside the one that went");
    }
}
