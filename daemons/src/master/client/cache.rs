//! Who may keep the pages of a file over an open. Spec 30, 6.1.

use wire::{Inode, SessionId};

/// Files fall into as many sets.
const SETS: usize = 1 << 15;
/// (File, session) pairs that a set remembers; the one that was not used for longest goes first. What is forgotten
/// costs a client its pages once, nothing else.
/// As many mounts may have one file open.
const WAYS: usize = 16;
/// Sets begin at multiples of this: each is a pair of cache lines, which processors fetch together.
const LINES_BYTES: usize = 128;
const _: () = assert!(WAYS * size_of::<Entry>() == LINES_BYTES);

/// For (file, session): are the pages that the session holds still valid?
///
/// A look-up asks it, so it is one table that never moves, and a question costs one pair of cache lines. Untouched parts of it
/// take no memory.
#[derive(Debug)]
pub(in crate::master) struct DataCache {
    /// `SETS * WAYS` from `first` on; each set is in order of use, the free places (file 0) last.
    entries: Box<[Entry]>,
    first: usize,
}

/// From the top: inode, 32 bits; session, 31 bits; 1: valid. A number, so that the table is made of untouched zeros.
type Entry = u64;

/// The pair, not valid; None for sessions whose number does not fit: their pages go each time.
fn pair(inode: Inode, session: SessionId) -> Option<Entry> {
    (session.0 >> 31 == 0).then_some(u64::from(inode.0) << 32 | u64::from(session.0) << 1)
}

fn is_pair(entry: Entry, pair: Entry) -> bool {
    entry & !1 == pair
}

fn inode_of(entry: Entry) -> u32 {
    (entry >> 32) as u32
}

impl Default for DataCache {
    fn default() -> DataCache {
        let entries = vec![0; (SETS + 1) * WAYS].into_boxed_slice();
        // Should it not be possible to tell, sets lie across more lines.
        let first = Some(entries.as_ptr().align_offset(LINES_BYTES)).filter(|first| *first < WAYS).unwrap_or(0);
        DataCache { entries, first }
    }
}

impl DataCache {
    /// A look-up or open: may the pages stay?
    pub(in crate::master) fn may_keep(&mut self, inode: Inode, session: SessionId) -> bool {
        let Some(pair) = pair(inode, session) else { return false };
        let set = self.set(inode);
        let valid = set.contains(&(pair | 1));
        touch(set, pair, valid);
        valid
    }

    /// The session read the file, or dropped its pages.
    pub(in crate::master) fn read(&mut self, inode: Inode, session: SessionId) {
        let Some(pair) = pair(inode, session) else { return };
        let set = self.set(inode);
        if set.iter().any(|entry| is_pair(*entry, pair)) {
            touch(set, pair, true);
        }
    }

    /// The session changed the file: what others hold is void.
    pub(in crate::master) fn written(&mut self, inode: Inode, session: SessionId) {
        let own = pair(inode, session).filter(|pair| self.set(inode).iter().any(|entry| is_pair(*entry, *pair)));
        self.forget(inode);
        if let Some(pair) = own {
            touch(self.set(inode), pair, true);
        }
    }

    pub(in crate::master) fn forget(&mut self, inode: Inode) {
        let set = self.set(inode);
        let mut kept = 0;
        for at in 0..WAYS {
            if inode_of(set[at]) != inode.0 {
                set[kept] = set[at];
                kept += 1;
            }
        }
        set[kept..].fill(0);
    }

    fn set(&mut self, inode: Inode) -> &mut [Entry] {
        // Neighbours go to different sets, since they are used together.
        let at = self.first + inode.0 as usize % SETS * WAYS;
        &mut self.entries[at..at + WAYS]
    }
}

/// The pair comes to the front.
fn touch(set: &mut [Entry], pair: Entry, valid: bool) {
    let place = set.iter().position(|entry| is_pair(*entry, pair)).unwrap_or(WAYS - 1);
    set.copy_within(0..place, 1);
    set[0] = pair | u64::from(valid);
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

    #[test]
    fn the_last_inode_and_the_last_sessions_have_places() {
        let mut cache = DataCache::default();
        let (file, session) = (Inode(u32::MAX), SessionId(u32::MAX >> 1));
        for (session, keeps) in [(session, true), (SessionId(u32::MAX), false)] {
            assert!(!cache.may_keep(file, session));
            cache.read(file, session);
            assert_eq!(cache.may_keep(file, session), keeps);
        }
        cache.written(file, SessionId(u32::MAX));
        assert!(!cache.may_keep(file, session), "another one wrote");
    }
}
