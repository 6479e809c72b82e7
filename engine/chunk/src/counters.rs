//! What a server counts while it works, and the minute by minute account of it for the monitor. Spec 70, 6.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use charts::{Charts, Process};
use ring::Ring;

use crate::series::{KIND, SERIES_COUNT, Sample};
use crate::server::Server;

/// How often the load is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The charts' file in the data path. Spec 70, 6.2.
const FILE_NAME: &str = "csstats.mfs";
/// Minutes between two writings of the file.
const SAVE_MINUTES: u64 = 60;

/// Totals of one core since the start.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) master_in_bytes: Count,
    pub(crate) master_out_bytes: Count,
    pub(crate) replication_in_bytes: Count,
    pub(crate) replication_out_bytes: Count,
    pub(crate) served_in_bytes: Count,
    pub(crate) served_out_bytes: Count,
    pub(crate) reads: Count,
    pub(crate) writes: Count,
    pub(crate) replicated: Count,
    pub(crate) created: Count,
    pub(crate) deleted: Count,
    pub(crate) versions_set: Count,
    pub(crate) duplicated: Count,
    pub(crate) truncated: Count,
    pub(crate) duptruncated: Count,
    pub(crate) tested: Count,
    pub(crate) moved: Count,
    pub(crate) changed: Count,
}

/// A total that one core adds to and any reads.
#[derive(Default)]
pub(crate) struct Count(AtomicU64);

impl Count {
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.get() + more, Ordering::Relaxed); // nobody else writes
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Memory and CPU time of this process.
async fn look(ring: &Ring) -> Process {
    let text = |path: &'static str| async move {
        let bytes = ring.read_file(std::path::Path::new(path)).await.unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Process::parse(&text("/proc/self/stat").await, &text("/proc/self/status").await)
}

impl Server {
    /// Totals of all series; those that are no totals are what they are now. Spec 70, 6.5.
    fn totals(&self, process: Process, load: u64) -> Sample {
        let of_cores = self.core.shared.counters();
        let count = |of: fn(&Counters) -> &Count| of_cores.iter().map(|counters| of(counters).get()).sum::<u64>();
        let sum = |of: fn(&crate::disk_stats::DiskCounters) -> u64| {
            let volumes = self.store.volumes.borrow();
            volumes.iter().flat_map(|volume| &volume.shared.stats).map(|of_core| of(of_core)).sum::<u64>()
        };
        [
            process.user_micros,
            process.system_micros,
            count(|counters| &counters.master_in_bytes),
            count(|counters| &counters.master_out_bytes),
            count(|counters| &counters.replication_in_bytes),
            count(|counters| &counters.replication_out_bytes),
            count(|counters| &counters.served_in_bytes),
            count(|counters| &counters.served_out_bytes),
            sum(|disk| disk.header_read.bytes.get()),
            sum(|disk| disk.header_write.bytes.get()),
            sum(|disk| disk.header_read.count.get()),
            sum(|disk| disk.header_write.count.get()),
            sum(|disk| disk.read.bytes.get()),
            sum(|disk| disk.write.bytes.get()),
            sum(|disk| disk.read.count.get()),
            sum(|disk| disk.write.count.get()),
            count(|counters| &counters.reads),
            count(|counters| &counters.writes),
            sum(|disk| disk.read.micros.get()) * 1000,
            sum(|disk| disk.write.micros.get()) * 1000,
            count(|counters| &counters.replicated),
            count(|counters| &counters.created),
            count(|counters| &counters.deleted),
            count(|counters| &counters.versions_set),
            count(|counters| &counters.duplicated),
            count(|counters| &counters.truncated),
            count(|counters| &counters.duptruncated),
            count(|counters| &counters.tested),
            load,
            process.resident_bytes,
            process.virtual_bytes,
            count(|counters| &counters.moved),
            0,
            count(|counters| &counters.changed),
        ]
    }

    /// The totals as a monitor asks for them.
    pub(crate) async fn totals_now(&self) -> Sample {
        self.totals(look(&self.ring).await, u64::from(self.jobs()))
    }

    /// Reads the charts of the last run and adds a point to each every minute, until the task is dropped.
    pub(crate) async fn keep_charts(self: Rc<Self>) {
        if let Ok(file) = self.ring.read_file(&self.charts_path()).await {
            *self.charts.borrow_mut() = Charts::decode_file(&KIND, &file, self.ring.local_minutes());
        }
        let mut before = self.totals(look(&self.ring).await, 0);
        let mut minute = self.ring.local_minutes();
        let mut load_max = 0;
        loop {
            self.ring.sleep(LOOK).await;
            load_max = load_max.max(u64::from(self.jobs()));
            if self.ring.local_minutes() == minute {
                continue;
            }
            minute = self.ring.local_minutes();
            let now = self.totals(look(&self.ring).await, load_max);
            self.charts.borrow_mut().add(minute - 1, &difference(&now, &before));
            self.store.volumes.borrow().iter().for_each(|volume| volume.end_minute());
            (before, load_max) = (now, 0);
            if minute.is_multiple_of(SAVE_MINUTES) {
                self.save_charts().await;
            }
        }
    }

    /// Errors are logged: charts are no reason to stop.
    pub(crate) async fn save_charts(&self) {
        let file = self.charts.borrow().encode_file();
        let mode = self.settings.get().file_mode;
        if let Err(error) = self.ring.write_file_durably(&self.charts_path(), mode, file).await {
            tracing::warn!("{} cannot be written: {error}", self.charts_path().display());
        }
    }

    fn charts_path(&self) -> std::path::PathBuf {
        self.settings.get().data_path.join(FILE_NAME)
    }
}

/// What a minute added, and the present values of what is no total.
fn difference(now: &Sample, before: &Sample) -> Sample {
    const GAUGES: std::ops::RangeInclusive<usize> = 28..=30;
    let mut sample = [0; SERIES_COUNT];
    for (at, value) in sample.iter_mut().enumerate() {
        *value = if GAUGES.contains(&at) { now[at] } else { now[at].saturating_sub(before[at]) };
    }
    sample
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_the_difference_of_totals_but_for_what_is_no_total() {
        let (mut now, mut before) = ([0; SERIES_COUNT], [0; SERIES_COUNT]);
        (now[20], before[20]) = (7, 5);
        (now[28], before[28]) = (3, 9);
        let minute = difference(&now, &before);
        assert_eq!((minute[20], minute[28]), (2, 3));
    }
}
