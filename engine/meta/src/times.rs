//! The times of nodes: 12 bytes in the node, and a record of 16 beside it for those that need one.
//!
//! A new node's three times are one; a file that was just written has mtime and ctime in common and an atime near them.
//! So ctime stands in the node as it is, and a word beside it says how far atime is from it. Only a node whose times
//! are further apart (copied with its times, renamed, read long after it was written) has a record with the other two.

use wire::Time;

use crate::arena::{Arena, Memory};

/// What a node says about its times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

impl Times {
    pub(crate) fn all(now: Time) -> Times {
        Times { atime: now, mtime: now, ctime: now }
    }
}

/// The times of a node as the node holds them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackedTimes {
    /// ctime, high and low.
    ctime: [u32; 2],
    /// Without `FAR`: mtime is ctime, and atime lies so many nanoseconds behind ctime (31 bits with sign: a second
    /// either way). With it: the handle of a record.
    word: u32,
}
const _: () = assert!(size_of::<PackedTimes>() == 12);

const FAR: u32 = 1 << 31;
const NEAR_NANOS: std::ops::Range<i64> = -(1 << 30)..1 << 30;

/// The times of a node besides ctime.
#[derive(Clone, Copy, Debug, Default)]
struct Far {
    mtime: Time,
    atime: Time,
}
const _: () = assert!(size_of::<Far>() == 16);

impl PackedTimes {
    fn new(ctime: Time, word: u32) -> PackedTimes {
        PackedTimes { ctime: [(ctime.0 >> 32) as u32, ctime.0 as u32], word }
    }

    #[inline]
    pub(crate) fn ctime(self) -> Time {
        Time((u64::from(self.ctime[0]) << 32 | u64::from(self.ctime[1])).cast_signed())
    }

    #[inline]
    fn far(self) -> Option<u32> {
        (self.word & FAR != 0).then_some(self.word & !FAR)
    }
}

/// The records of those nodes that have one.
#[derive(Debug)]
pub(crate) struct FarTimes {
    records: Arena<Far>,
}

impl FarTimes {
    pub(crate) fn new() -> FarTimes {
        FarTimes { records: Arena::new() }
    }

    #[inline]
    pub(crate) fn get(&self, packed: PackedTimes) -> Times {
        let ctime = packed.ctime();
        match packed.far() {
            Some(handle) => {
                let Far { mtime, atime } = *self.records.get(handle);
                Times { atime, mtime, ctime }
            }
            None => {
                let distance = i64::from((packed.word << 1).cast_signed() >> 1);
                Times { atime: Time(ctime.0.wrapping_add(distance)), mtime: ctime, ctime }
            }
        }
    }

    /// What the node holds from now on in the place of `old`, whose record is used again or given back.
    pub(crate) fn replace(&mut self, old: PackedTimes, times: &Times) -> PackedTimes {
        let distance = times.atime.0.checked_sub(times.ctime.0).filter(|distance| NEAR_NANOS.contains(distance));
        if let Some(distance) = distance.filter(|_| times.mtime == times.ctime) {
            self.remove(old);
            return PackedTimes::new(times.ctime, distance as u32 & !FAR);
        }
        let far = Far { mtime: times.mtime, atime: times.atime };
        let handle = match old.far() {
            Some(handle) => {
                *self.records.get_mut(handle) = far;
                handle
            }
            None => self.records.insert(far),
        };
        debug_assert!(handle & FAR == 0, "there are less than 2^31 nodes");
        PackedTimes::new(times.ctime, FAR | handle)
    }

    /// The node goes.
    pub(crate) fn remove(&mut self, packed: PackedTimes) {
        if let Some(handle) = packed.far() {
            self.records.remove(handle);
        }
    }

    pub(crate) fn memory(&self) -> Memory {
        self.records.memory()
    }

    pub(crate) fn freeze(&mut self) -> FarTimes {
        FarTimes { records: self.records.freeze() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_triple_of_times_reads_back_and_only_far_ones_have_a_record() {
        let mut far = FarTimes::new();
        let now = 1_795_243_403_123_456_789;
        let mut packed = PackedTimes::default();
        for (atime, mtime, ctime, records) in [
            (now, now, now, 0),
            (now - (1 << 30), now, now, 0),
            (now + (1 << 30) - 1, now, now, 0),
            (now - (1 << 30) - 1, now, now, 1),
            (now + (1 << 30), now, now, 1),
            (now, now - 1, now, 1),
            (now, now, now - 1, 1),
            (-1, -1, -1, 0),
            (i64::MIN, i64::MIN, i64::MIN, 0),
            (i64::MAX, i64::MAX, i64::MAX - 1, 1),
            (i64::MIN, i64::MAX, i64::MAX, 1),
            (i64::MAX, i64::MIN, i64::MIN, 1),
            (i64::MAX, i64::MAX, i64::MAX, 0),
            (0, 0, 0, 0),
            (1 << 62, 0, -1, 1),
            (1 << 32, 0, 0, 1),
            (5, 0, 0, 0),
        ] {
            let times = Times { atime: Time(atime), mtime: Time(mtime), ctime: Time(ctime) };
            packed = far.replace(packed, &times);
            assert_eq!(far.get(packed), times);
            assert_eq!(far.records.live(), records, "{times:?}");
        }
    }

    #[test]
    fn a_record_is_given_back_when_the_times_meet_again_or_the_node_goes() {
        let mut far = FarTimes::new();
        let apart = Times { atime: Time(1), mtime: Time(2), ctime: Time(3) };
        let first = far.replace(PackedTimes::default(), &apart);
        let second = far.replace(PackedTimes::default(), &apart);
        assert_eq!(far.records.live(), 2);
        far.replace(first, &Times::all(Time(9)));
        assert_eq!(far.records.live(), 1);
        far.remove(second);
        assert_eq!(far.records.live(), 0);
    }
}
