//! BSD and POSIX locks that are held. Spec 31, 31.10. Who waits is known to `lock_queue` alone and not kept.

use std::collections::BTreeMap;

use wire::SessionId;

/// End of a range that reaches to infinity.
pub const TO_INFINITY: u64 = u64::MAX;

/// Who holds a lock: processes of a client are told apart by a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockOwner {
    pub session: SessionId,
    pub owner: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockKind {
    Shared,
    Exclusive,
}

/// A POSIX lock on the bytes `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeLock {
    pub holder: LockOwner,
    pub pid: u32,
    pub start: u64,
    /// Exclusive; `TO_INFINITY`.
    pub end: u64,
    pub kind: LockKind,
}

impl RangeLock {
    fn conflicts(&self, other: &RangeLock) -> bool {
        self.holder != other.holder
            && self.start < other.end
            && other.start < self.end
            && (self.kind == LockKind::Exclusive || other.kind == LockKind::Exclusive)
    }
}

/// All locks that are held, by inode.
#[derive(Clone, Debug, Default)]
pub(crate) struct Locks {
    whole: BTreeMap<u32, BTreeMap<LockOwner, LockKind>>,
    /// Of one holder ascending and not overlapping; touching ranges of one kind are merged.
    ranges: BTreeMap<u32, Vec<RangeLock>>,
}

impl Locks {
    /// Holders of the BSD lock of a file.
    pub(crate) fn whole(&self, inode: u32) -> impl Iterator<Item = (LockOwner, LockKind)> + '_ {
        self.whole.get(&inode).into_iter().flatten().map(|(owner, kind)| (*owner, *kind))
    }

    pub(crate) fn all_whole(&self) -> impl Iterator<Item = (u32, LockOwner, LockKind)> + '_ {
        self.whole.iter().flat_map(|(inode, holders)| holders.iter().map(|(owner, kind)| (*inode, *owner, *kind)))
    }

    /// Takes the BSD lock. False if others hold it in a way that forbids that.
    pub(crate) fn take_whole(&mut self, inode: u32, owner: LockOwner, kind: LockKind) -> bool {
        let others = self.whole(inode).filter(|(holder, _)| *holder != owner);
        let conflict = others.into_iter().any(|(_, held)| kind == LockKind::Exclusive || held == LockKind::Exclusive);
        if !conflict {
            self.whole.entry(inode).or_default().insert(owner, kind);
        }
        !conflict
    }

    /// False if the owner held none.
    pub(crate) fn drop_whole(&mut self, inode: u32, owner: LockOwner) -> bool {
        let Some(holders) = self.whole.get_mut(&inode) else { return false };
        let held = holders.remove(&owner).is_some();
        if holders.is_empty() {
            self.whole.remove(&inode);
        }
        held
    }

    pub(crate) fn ranges(&self, inode: u32) -> &[RangeLock] {
        self.ranges.get(&inode).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn all_ranges(&self) -> impl Iterator<Item = (u32, &RangeLock)> {
        self.ranges.iter().flat_map(|(inode, ranges)| ranges.iter().map(|range| (*inode, range)))
    }

    /// The first lock that forbids `wanted`.
    pub(crate) fn conflict(&self, inode: u32, wanted: &RangeLock) -> Option<RangeLock> {
        self.ranges(inode).iter().find(|held| held.conflicts(wanted)).copied()
    }

    /// Takes a range, replacing what the holder had there. False if another lock forbids it.
    pub(crate) fn take_range(&mut self, inode: u32, wanted: RangeLock) -> bool {
        if wanted.start >= wanted.end || self.conflict(inode, &wanted).is_some() {
            return false;
        }
        self.drop_range(inode, wanted.holder, wanted.start, wanted.end);
        let ranges = self.ranges.entry(inode).or_default();
        ranges.push(wanted);
        tidy(ranges);
        true
    }

    pub(crate) fn drop_range(&mut self, inode: u32, holder: LockOwner, start: u64, end: u64) {
        let Some(ranges) = self.ranges.get_mut(&inode) else { return };
        let mut left = Vec::with_capacity(ranges.len() + 1);
        for range in ranges.iter() {
            if range.holder != holder || range.end <= start || end <= range.start {
                left.push(*range);
                continue;
            }
            if range.start < start {
                left.push(RangeLock { end: start, ..*range });
            }
            if end < range.end {
                left.push(RangeLock { start: end, ..*range });
            }
        }
        if left.is_empty() {
            self.ranges.remove(&inode);
        } else {
            tidy(&mut left);
            self.ranges.insert(inode, left);
        }
    }

    /// Drops all that a session holds on a file.
    pub(crate) fn release(&mut self, inode: u32, session: SessionId) {
        if let Some(holders) = self.whole.get_mut(&inode) {
            holders.retain(|owner, _| owner.session != session);
            if holders.is_empty() {
                self.whole.remove(&inode);
            }
        }
        if let Some(ranges) = self.ranges.get_mut(&inode) {
            ranges.retain(|range| range.holder.session != session);
            if ranges.is_empty() {
                self.ranges.remove(&inode);
            }
        }
    }
}

/// Orders by holder and start, and merges touching ranges of one holder, kind and process.
fn tidy(ranges: &mut Vec<RangeLock>) {
    ranges.sort_unstable_by_key(|range| (range.holder, range.start));
    ranges.dedup_by(|next, range| {
        let same = next.holder == range.holder && next.kind == range.kind && next.pid == range.pid;
        let merges = same && range.end == next.start;
        if merges {
            range.end = next.end;
        }
        merges
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(owner: u64, start: u64, end: u64, kind: LockKind) -> RangeLock {
        RangeLock { holder: LockOwner { session: SessionId(1), owner }, pid: 7, start, end, kind }
    }

    #[test]
    fn ranges_of_one_owner_are_split_converted_and_merged() {
        let mut locks = Locks::default();
        let check = |locks: &Locks, expected: &[(u64, u64, LockKind)]| {
            let held: Vec<_> = locks.ranges(5).iter().map(|range| (range.start, range.end, range.kind)).collect();
            assert_eq!(held, expected);
        };
        use LockKind::{Exclusive, Shared};
        assert!(locks.take_range(5, lock(1, 0, 100, Shared)));
        assert!(locks.take_range(5, lock(1, 40, 60, Exclusive)));
        check(&locks, &[(0, 40, Shared), (40, 60, Exclusive), (60, 100, Shared)]);
        assert!(locks.take_range(5, lock(1, 40, 60, Shared)));
        check(&locks, &[(0, 100, Shared)]);
        locks.drop_range(5, lock(1, 0, 0, Shared).holder, 10, 20);
        check(&locks, &[(0, 10, Shared), (20, 100, Shared)]);
        assert!(!locks.take_range(5, lock(2, 0, 5, Exclusive)));
        assert!(locks.take_range(5, lock(2, 10, 20, Exclusive)));
        locks.release(5, SessionId(1));
        check(&locks, &[]);
    }
}
