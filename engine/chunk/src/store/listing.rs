//! What the master and the tools are told of the disks.

use std::sync::atomic::Ordering;

use wire::data::DiskEntry;
use wire::{ChunkId, DiskTotal, DiskTotals, ServerSpace};

use super::Store;
use crate::cores::lock;
use crate::disk_stats::no_stats;
use crate::folders::FolderLine;
use crate::volume::{Volume, VolumeState};

impl Store {
    /// Sums over the disks, for the master. Spec 40, 3.1.
    pub(crate) fn server_space(&self) -> ServerSpace {
        let mut sum = ServerSpace { used: 0, total: 0, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        for volume in self.volumes.borrow().iter().filter(|volume| volume.state() == VolumeState::Ready) {
            let space = volume.space();
            let used = space.total_bytes.saturating_sub(space.available_bytes);
            if volume.is_marked() {
                sum.tdused += used;
                sum.tdtotal += space.total_bytes;
                sum.tdchunks += volume.chunks();
            } else {
                sum.used += used;
                sum.total += space.total_bytes;
                sum.chunks += volume.chunks();
            }
        }
        sum
    }

    /// The disks in use with what they did since the start. Spec 70, 6.5.
    pub(crate) fn disk_totals(&self) -> DiskTotals {
        let volumes = self.volumes.borrow();
        let totals = volumes.iter().filter(|volume| volume.is_ours()).map(|volume| {
            let DiskEntry { path, flags, errchunkid, errtime, used, total, chunks, .. } = disk_entry(volume);
            DiskTotal { path, flags, errchunkid, errtime, used, total, chunks, stats: volume.stats_totals() }
        });
        DiskTotals(Some(totals.collect()))
    }

    /// The disks as tools see them, last line first. Spec 20, 8.2.
    pub(crate) fn disk_entries(&self) -> Vec<DiskEntry> {
        let volumes = self.volumes.borrow();
        let entry_of =
            |line: &FolderLine| match volumes.iter().find(|volume| volume.is_ours() && volume.path_is(&line.path)) {
                Some(volume) => disk_entry(volume),
                None => unusable_entry(line),
            };
        self.settings.get().folders.iter().rev().map(entry_of).collect()
    }
}

/// Flags of a disk in `DiskEntry`. Spec 20, 8.2.
const MARKED: u8 = 1;
const DAMAGED: u8 = 2;
const SCANNING: u8 = 4;
const INVALID: u8 = 8;

fn disk_entry(volume: &Volume) -> DiskEntry {
    let state = volume.state();
    let space = volume.space();
    let mark = if volume.is_marked() { MARKED } else { 0 };
    let last_error = volume.last_error();
    let (used, total, state_flag) = match state {
        VolumeState::Scanning => {
            (u64::from(volume.scanned_subfolders.load(Ordering::Relaxed)) * 100 / 256, 0, SCANNING)
        }
        VolumeState::Ready => (space.total_bytes.saturating_sub(space.available_bytes), space.total_bytes, 0),
        VolumeState::Damaged | VolumeState::Leaving | VolumeState::Gone => (0, 0, DAMAGED),
    };
    let stats = lock(&volume.history).recent();
    DiskEntry {
        path: volume.line().shown_path(),
        flags: mark | state_flag,
        errchunkid: last_error.map_or(ChunkId(0), |error| error.chunk),
        errtime: last_error.map_or(0, |error| error.wall_sec),
        used,
        total,
        chunks: volume.chunks(),
        stats,
    }
}

fn unusable_entry(line: &FolderLine) -> DiskEntry {
    let none = no_stats();
    DiskEntry {
        path: line.shown_path(),
        flags: DAMAGED | INVALID,
        errchunkid: ChunkId(0),
        errtime: 0,
        used: 0,
        total: 0,
        chunks: 0,
        stats: [none.clone(), none.clone(), none],
    }
}
