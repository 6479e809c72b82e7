//! The master's charts: what each minute brought, kept in `stats.mfs` as MooseFS's master does. Spec 70, 6.

use std::path::Path;
use std::time::Duration;

use charts::{Charts, Join, Kind, Layers, Process, Series, Stacked};
use ring::{Instant, Ring};
use tracing::warn;
use wire::Status;

use super::Shared;
use super::client::operations;
use super::core::Core;
use crate::connection::Traffic;
use crate::data_folder::{FILE_MODE, gone_is_fine};

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The charts' file in the data folder. Spec 70, 6.2.
const FILE_NAME: &str = "stats.mfs";
/// Minutes between two writings of the file.
const SAVE_MINUTES: u64 = 60;

pub(super) const SERIES_COUNT: usize = 38;

/// In the order of the specification. Spec 70, 6.1.
const SERIES: [Series; SERIES_COUNT] = [
    series("ucpu", b"UCPU", Join::Add),
    series("scpu", b"SCPU", Join::Add),
    series("delete", b"DELC", Join::Add),
    series("replicate", b"REPC", Join::Add),
    series("statfs", b"STFS", Join::Add),
    series("getattr", b"GATR", Join::Add),
    series("setattr", b"SATR", Join::Add),
    series("lookup", b"LOOK", Join::Add),
    series("mkdir", b"MKDI", Join::Add),
    series("rmdir", b"RMDI", Join::Add),
    series("symlink", b"SLNK", Join::Add),
    series("readlink", b"RLNK", Join::Add),
    series("mknod", b"MKNO", Join::Add),
    series("unlink", b"ULNK", Join::Add),
    series("rename", b"RENA", Join::Add),
    series("link", b"LINK", Join::Add),
    series("readdir", b"RDIR", Join::Add),
    series("open", b"OPEN", Join::Add),
    series("read", b"READ", Join::Add),
    series("write", b"WRIT", Join::Add),
    series("memoryrss", b"MEMR", Join::Max),
    series("prcvd", b"PRCV", Join::Add),
    series("psent", b"PSNT", Join::Add),
    series("brcvd", b"BRCV", Join::Add),
    series("bsent", b"BSNT", Join::Add),
    series("memoryvirt", b"MEMV", Join::Max),
    series("usedspace", b"USPC", Join::Max),
    series("totalspace", b"TSPC", Join::Max),
    series("create", b"NEWC", Join::Add),
    series("change", b"INTC", Join::Add),
    series("delete_ok", b"DELO", Join::Add),
    series("delete_err", b"DELE", Join::Add),
    series("replicate_ok", b"REPO", Join::Add),
    series("replicate_err", b"REPE", Join::Add),
    series("create_ok", b"NEWO", Join::Add),
    series("create_err", b"NEWE", Join::Add),
    series("change_ok", b"INTO", Join::Add),
    series("change_err", b"INTE", Join::Add),
];

pub(super) const KIND: Kind = Kind {
    series: &SERIES,
    stacked: &[
        stacked(b"TCPU", Layers::Sum(&[0, 1])),
        stacked(b"TMEM", Layers::Part { part: 20, whole: 25 }),
        stacked(b"SPAC", Layers::Part { part: 26, whole: 27 }),
        stacked(b"DELS", Layers::Sum(&[31, 30])),
        stacked(b"REPS", Layers::Sum(&[33, 32])),
        stacked(b"NEWS", Layers::Sum(&[35, 34])),
        stacked(b"INTS", Layers::Sum(&[37, 36])),
    ],
};

const fn series(name: &'static str, id: &'static [u8; 4], join: Join) -> Series {
    Series { name, id, join }
}

const fn stacked(id: &'static [u8; 4], layers: Layers) -> Stacked {
    Stacked { id, layers }
}

/// One number for each series.
type Sample = [u64; SERIES_COUNT];

/// What a chunkserver is told to do with a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Delete,
    Replicate,
    Create,
    /// Another version, another length, a duplicate.
    Change,
}

/// Commands to chunkservers since the start, by `Work`: each copy counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    sent: [u64; 4],
    done: [u64; 4],
    failed: [u64; 4],
}

impl Tally {
    pub(super) fn sent(&mut self, work: Work) {
        self.sent[work as usize] += 1;
    }

    pub(super) fn answered(&mut self, work: Work, status: Status) {
        let counters = if status == Status::OK { &mut self.done } else { &mut self.failed };
        counters[work as usize] += 1;
    }
}

/// The present minute: where the totals stood when it began.
#[derive(Debug)]
pub(super) struct Account {
    minute: u64,
    since: Instant,
    totals: Sample,
    /// The disk of the data folder at the start: nothing is written below a mount point.
    device: Option<u64>,
}

/// CPU time in the last minute: 10^9 is one core, fully used. Spec 70, 4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuUse {
    pub(super) system: u64,
    pub(super) user: u64,
}

/// The points of earlier runs.
pub(super) async fn load(ring: &Ring, folder: &Path) -> Charts {
    let path = folder.join(FILE_NAME);
    match ring.read_file(&path).await {
        Ok(file) => Charts::decode_file(&KIND, &file, ring.local_minutes()),
        Err(error) => {
            if let Err(error) = gone_is_fine(Err(error)) {
                warn!("{} cannot be read, so the charts begin anew: {error}", path.display());
            }
            Charts::new(&KIND, ring.local_minutes())
        }
    }
}

/// A point for every minute, until the task is dropped.
pub(super) async fn keep(master: Shared) {
    let device = master.ring.stat(&master.data_path).await.ok().map(|folder| folder.device);
    let process = look(&master.ring).await;
    let first = Account {
        device,
        minute: master.ring.local_minutes(),
        since: master.ring.now(),
        totals: totals(&master.core.borrow(), &master.traffic, process),
    };
    master.core.borrow_mut().account = Some(first);
    loop {
        master.ring.sleep(LOOK).await;
        let minute = master.ring.local_minutes();
        if master.core.borrow().account.as_ref().is_some_and(|account| account.minute == minute) {
            continue;
        }
        let process = look(&master.ring).await;
        end_minute(&mut master.core.borrow_mut(), &master, minute, process);
        if minute.is_multiple_of(SAVE_MINUTES) {
            save(&master, device).await;
        }
    }
}

fn end_minute(core: &mut Core, master: &Shared, minute: u64, process: Process) {
    let now = totals(core, &master.traffic, process);
    let Some(account) = core.account.take() else { return };
    core.account = Some(Account { minute, since: master.ring.now(), totals: now, device: account.device });
    let sample = difference(&now, &account.totals);
    core.charts.add(minute.saturating_sub(1), &sample);
    let elapsed = account.since.elapsed(&master.ring).as_micros().max(1);
    let part = |micros: u64| u64::try_from(u128::from(micros) * 1_000_000_000 / elapsed).unwrap_or(u64::MAX);
    core.cpu = CpuUse { user: part(sample[0]), system: part(sample[1]) };
}

/// The end: what the present minute had so far joins the newest point, and everything goes to the file.
pub(super) async fn close(master: &Shared) {
    let process = look(&master.ring).await;
    let device = {
        let mut core = master.core.borrow_mut();
        let now = totals(&core, &master.traffic, process);
        let account = core.account.take();
        if let Some(account) = &account {
            core.charts.join_newest(&difference(&now, &account.totals));
        }
        account.and_then(|account| account.device)
    };
    save(master, device).await;
}

/// Errors are logged: charts are no reason to stop. What could not be written whole takes no room from the journal.
async fn save(master: &Shared, device: Option<u64>) {
    if master.folder.is_strange() {
        return;
    }
    let path = master.data_path.join(FILE_NAME);
    let lost = "so the charts of the last hour end with this run";
    match master.ring.stat(&master.data_path).await {
        Ok(folder) if device.is_none_or(|device| device == folder.device) => {}
        Ok(_) => return warn!("{} would be written to another disk than at the start, {lost}", path.display()),
        Err(error) => return warn!("{} cannot be written, {lost}: {error}", path.display()),
    }
    let file = master.core.borrow().charts.encode_file();
    if let Err(error) = master.ring.write_file_durably(&path, FILE_MODE, file).await {
        warn!("{} cannot be written, {lost}: {error}", path.display());
        if let Err(error) = gone_is_fine(master.ring.unlink(&path.with_extension("mfs.new")).await) {
            warn!("{}.new cannot be removed: {error}", path.display());
        }
    }
}

/// Memory and CPU time of this process.
async fn look(ring: &Ring) -> Process {
    let text = |path: &'static str| async move {
        let bytes = ring.read_file(Path::new(path)).await.unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Process::parse(&text("/proc/self/stat").await, &text("/proc/self/status").await)
}

/// Totals of all series since the start; those that are no totals are what they are now.
fn totals(core: &Core, traffic: &Traffic, process: Process) -> Sample {
    let (total, used) = core.chunks.servers().space();
    let Tally { sent, done, failed } = &core.tally;
    let [packets_in, packets_out, bytes_in, bytes_out] = traffic.totals();
    let mut sample = [0; SERIES_COUNT];
    sample[..4].copy_from_slice(&[
        process.user_micros,
        process.system_micros,
        sent[Work::Delete as usize],
        sent[Work::Replicate as usize],
    ]);
    const { assert!(4 + operations::COUNT == 20) };
    sample[4..20].copy_from_slice(core.operations.totals());
    sample[20..30].copy_from_slice(&[
        process.resident_bytes,
        packets_in,
        packets_out,
        bytes_in,
        bytes_out,
        process.virtual_bytes,
        used,
        total,
        sent[Work::Create as usize],
        sent[Work::Change as usize],
    ]);
    for (work, pair) in sample[30..].chunks_exact_mut(2).enumerate() {
        pair.copy_from_slice(&[done[work], failed[work]]);
    }
    sample
}

/// What a minute added, and the present values of what is no total.
fn difference(now: &Sample, before: &Sample) -> Sample {
    std::array::from_fn(|at| match SERIES[at].join {
        Join::Add => now[at].saturating_sub(before[at]),
        Join::Max => now[at],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_the_difference_of_totals_but_for_what_is_no_total() {
        let (mut now, mut before) = ([0; SERIES_COUNT], [0; SERIES_COUNT]);
        (now[2], before[2]) = (7, 5);
        (now[26], before[26]) = (3, 9);
        let minute = difference(&now, &before);
        assert_eq!((minute[2], minute[26]), (2, 3));
    }

    #[test]
    fn commands_are_counted_by_what_they_do_and_how_they_ended() {
        let mut tally = Tally::default();
        for work in [Work::Delete, Work::Replicate, Work::Create, Work::Change, Work::Change] {
            tally.sent(work);
            tally.answered(work, if work == Work::Create { Status::NOSPACE } else { Status::OK });
        }
        assert_eq!((tally.sent, tally.done, tally.failed), ([1, 1, 1, 2], [1, 1, 0, 2], [0, 0, 1, 0]));
    }
}
