//! Counters of one disk: since the start, and by the minute for a day. Spec 20, 8.2.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use wire::data::DiskStats;

use crate::counters::Count;

/// Minutes that are kept: a day.
const MINUTES_MAX: usize = 24 * 60;

/// What one core did. One core writes, any reads.
#[derive(Default)]
pub(crate) struct DiskCounters {
    pub(crate) read: OperationCounter,
    pub(crate) write: OperationCounter,
    pub(crate) sync: OperationCounter,
    /// Headers and tables of sums.
    pub(crate) header_read: OperationCounter,
    pub(crate) header_write: OperationCounter,
}

#[derive(Default)]
pub(crate) struct OperationCounter {
    pub(crate) bytes: Count,
    pub(crate) count: Count,
    pub(crate) micros: Count,
    /// The longest of this minute, and of all.
    minute_micros_max: AtomicU32,
    micros_max: AtomicU32,
}

impl OperationCounter {
    pub(crate) fn add(&self, bytes: u64, took: Duration) {
        let micros = took.as_micros().min(u128::from(u32::MAX)) as u32;
        self.bytes.add(bytes);
        self.count.add(1);
        self.micros.add(u64::from(micros));
        for max in [&self.minute_micros_max, &self.micros_max] {
            if micros > max.load(Ordering::Relaxed) {
                max.fetch_max(micros, Ordering::Relaxed);
            }
        }
    }
}

impl DiskCounters {
    /// Since the start.
    pub(crate) fn totals(&self) -> DiskStats {
        let DiskCounters { read, write, sync, .. } = self;
        DiskStats {
            rbytes: read.bytes.get(),
            wbytes: write.bytes.get(),
            usecread: read.micros.get(),
            usecwrite: write.micros.get(),
            usecfsync: sync.micros.get(),
            rops: read.count.get() as u32,
            wops: write.count.get() as u32,
            fsyncops: sync.count.get() as u32,
            usecreadmax: read.micros_max.load(Ordering::Relaxed),
            usecwritemax: write.micros_max.load(Ordering::Relaxed),
            usecfsyncmax: sync.micros_max.load(Ordering::Relaxed),
        }
    }

    /// The longest operations since this was asked last; the rest is zeros.
    pub(crate) fn take_minute_maxima(&self) -> DiskStats {
        let take = |counter: &OperationCounter| counter.minute_micros_max.swap(0, Ordering::Relaxed);
        DiskStats {
            usecreadmax: take(&self.read),
            usecwritemax: take(&self.write),
            usecfsyncmax: take(&self.sync),
            ..no_stats()
        }
    }
}

/// What a disk did, by the minute.
#[derive(Default)]
pub(crate) struct DiskHistory {
    /// Totals at the end of the last minute.
    counted: Option<DiskStats>,
    /// Newest first.
    minutes: VecDeque<DiskStats>,
}

impl DiskHistory {
    /// A minute has passed, after which there are these totals. `maxima`: the longest operations in it.
    pub(crate) fn end_minute(&mut self, now: DiskStats, maxima: &DiskStats) {
        let before = self.counted.replace(now.clone()).unwrap_or_else(no_stats);
        let minute = DiskStats {
            rbytes: now.rbytes - before.rbytes,
            wbytes: now.wbytes - before.wbytes,
            usecread: now.usecread - before.usecread,
            usecwrite: now.usecwrite - before.usecwrite,
            usecfsync: now.usecfsync - before.usecfsync,
            rops: now.rops.wrapping_sub(before.rops),
            wops: now.wops.wrapping_sub(before.wops),
            fsyncops: now.fsyncops.wrapping_sub(before.fsyncops),
            usecreadmax: maxima.usecreadmax,
            usecwritemax: maxima.usecwritemax,
            usecfsyncmax: maxima.usecfsyncmax,
        };
        self.minutes.push_front(minute);
        self.minutes.truncate(MINUTES_MAX);
    }

    /// The last minute, hour, day.
    pub(crate) fn recent(&self) -> [DiskStats; 3] {
        [1, 60, MINUTES_MAX].map(|count| self.minutes.iter().take(count).fold(no_stats(), sum))
    }
}

/// Both together; of what is a maximum, the greater one.
pub(crate) fn sum(a: DiskStats, b: &DiskStats) -> DiskStats {
    DiskStats {
        rbytes: a.rbytes + b.rbytes,
        wbytes: a.wbytes + b.wbytes,
        usecread: a.usecread + b.usecread,
        usecwrite: a.usecwrite + b.usecwrite,
        usecfsync: a.usecfsync + b.usecfsync,
        rops: a.rops.wrapping_add(b.rops),
        wops: a.wops.wrapping_add(b.wops),
        fsyncops: a.fsyncops.wrapping_add(b.fsyncops),
        usecreadmax: a.usecreadmax.max(b.usecreadmax),
        usecwritemax: a.usecwritemax.max(b.usecwritemax),
        usecfsyncmax: a.usecfsyncmax.max(b.usecfsyncmax),
    }
}

pub(crate) fn no_stats() -> DiskStats {
    DiskStats {
        rbytes: 0,
        wbytes: 0,
        usecread: 0,
        usecwrite: 0,
        usecfsync: 0,
        rops: 0,
        wops: 0,
        fsyncops: 0,
        usecreadmax: 0,
        usecwritemax: 0,
        usecfsyncmax: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_counted_by_the_minute_the_hour_and_the_day() {
        let (disk, mut history) = (DiskCounters::default(), DiskHistory::default());
        for minute in 1..=61 {
            disk.read.add(minute, Duration::from_micros(1000 - minute));
            history.end_minute(disk.totals(), &disk.take_minute_maxima());
        }
        let [minute, hour, day] = history.recent();
        assert_eq!((minute.rbytes, minute.rops, minute.usecreadmax), (61, 1, 939));
        assert_eq!((hour.rbytes, hour.rops, hour.usecreadmax), ((2..=61).sum(), 60, 998));
        assert_eq!((day.rbytes, day.rops, day.usecreadmax), ((1..=61).sum(), 61, 999));
        assert_eq!((disk.totals().rbytes, disk.totals().usecreadmax), ((1..=61).sum(), 999));
    }
}
