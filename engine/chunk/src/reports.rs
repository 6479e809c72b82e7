//! What the master must be told: collected all the time, also while there is no connection. Spec 40, 6.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Mutex;
use std::task::{Poll, Waker};

use wire::types::ChunkReport;
use wire::{
    ChunkId, CstomaChunkDamaged, CstomaChunkLost, CstomaChunkNew, CstomaErrorOccurred, CstomaWriteFailed, Packet,
};

use crate::cores::lock;

/// Chunks in one LOST or NEW packet. Spec 40, 6.
const CHUNKS_PER_REPORT: usize = 25_000;

/// Noted by any core, said by the first. Only ids are noted: a chunk's version and disk are looked up when it is reported,
/// since they may be others by then.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    new: BTreeSet<ChunkId>,
    changed: BTreeSet<ChunkId>,
    damaged: BTreeSet<ChunkId>,
    /// Writes to these found no room; for a master that knows the extension.
    write_failed: BTreeSet<ChunkId>,
    knows_write_failed: bool,
    lost: BTreeSet<ChunkId>,
    errors: u32,
    listing_begun: bool,
    allowed: bool,
    /// Who waits for something to say, on whatever core.
    waker: Option<Waker>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.errors == 0
            && self.damaged.is_empty()
            && self.write_failed.is_empty()
            && self.lost.is_empty()
            && self.new.is_empty()
            && self.changed.is_empty()
    }
}

impl Reports {
    /// Makes a note, and wakes whoever is to say it.
    fn note(&self, note: impl FnOnce(&mut Waiting)) {
        let mut waiting = lock(&self.waiting);
        note(&mut waiting);
        let waker = waiting.waker.take();
        drop(waiting);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn damaged(&self, id: ChunkId) {
        self.note(|waiting| {
            waiting.damaged.insert(id);
        });
    }

    /// A write to this copy failed and left it as it was. A master that does not know the extension is not told: it knows
    /// only copies that are damaged.
    pub(crate) fn write_failed(&self, id: ChunkId) {
        self.note(|waiting| {
            if waiting.knows_write_failed {
                waiting.write_failed.insert(id);
            }
        });
    }

    /// Whether the master of this connection knows the extension `write-failed`.
    pub(crate) fn set_knows_write_failed(&self, knows: bool) {
        lock(&self.waiting).knows_write_failed = knows;
    }

    pub(crate) fn lost(&self, id: ChunkId) {
        self.note(|waiting| {
            waiting.new.remove(&id);
            waiting.changed.remove(&id);
            waiting.lost.insert(id);
        });
    }

    /// A scan found a chunk, which is in the registry by now.
    pub(crate) fn found(&self, id: ChunkId) {
        self.note(|waiting| {
            // Else it will be in the list.
            if waiting.listing_begun {
                waiting.new.insert(id);
            }
        });
    }

    /// Another file is the chunk's best copy, or the mark of its disk changed.
    pub(crate) fn changed(&self, id: ChunkId) {
        self.note(|waiting| {
            if waiting.listing_begun {
                waiting.new.remove(&id);
                waiting.changed.insert(id);
            }
        });
    }

    /// From here on a list of all chunks goes to the master: what was to be said of them before is in it.
    pub(crate) fn begin_listing(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.listing_begun = true;
        waiting.lost.clear();
        waiting.new.clear();
        waiting.changed.clear();
    }

    /// The list was sent: reports may be.
    pub(crate) fn allow(&self) {
        self.note(|waiting| waiting.allowed = true);
    }

    pub(crate) fn may_be_sent(&self) -> bool {
        lock(&self.waiting).allowed
    }

    /// The connection ended: the next one begins with a list.
    pub(crate) fn end_listing(&self) {
        let mut waiting = lock(&self.waiting);
        waiting.listing_begun = false;
        waiting.allowed = false;
        waiting.knows_write_failed = false;
        waiting.write_failed.clear();
    }

    /// The chunk is gone by the master's own will.
    pub(crate) fn forget(&self, id: ChunkId) {
        let mut waiting = lock(&self.waiting);
        waiting.damaged.remove(&id);
        waiting.write_failed.remove(&id);
        waiting.new.remove(&id);
        waiting.changed.remove(&id);
    }

    pub(crate) fn disk_error(&self) {
        self.note(|waiting| waiting.errors += 1);
    }

    /// Waits until there is something to report, and it may be. One at a time waits.
    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            let mut waiting = lock(&self.waiting);
            if !waiting.is_empty() && waiting.allowed {
                return Poll::Ready(());
            }
            waiting.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// All that is to be said, as packets in the order of the specification; forgets it. `present`: the version that a
    /// chunk has now, with bit 31, if we have it. That decides, whatever was true when something was noted: what is here
    /// is not lost, and what is gone is neither new nor changed.
    pub(crate) fn take_packets(&self, out: &mut Vec<Vec<u8>>, present: impl Fn(ChunkId) -> Option<u32>) {
        let mut waiting = {
            let mut waiting = lock(&self.waiting);
            let Waiting { listing_begun, allowed, knows_write_failed, .. } = *waiting;
            let waker = waiting.waker.take();
            let rest = Waiting { listing_begun, allowed, knows_write_failed, waker, ..Waiting::default() };
            std::mem::replace(&mut *waiting, rest)
        };
        waiting.lost.retain(|id| present(*id).is_none());
        for _ in 0..waiting.errors {
            out.push(CstomaErrorOccurred {}.encode());
        }
        let damaged: Vec<ChunkId> = waiting.damaged.into_iter().collect();
        if !damaged.is_empty() {
            out.push(CstomaChunkDamaged { chunks: damaged }.encode());
        }
        if !waiting.write_failed.is_empty() {
            out.push(CstomaWriteFailed { chunks: waiting.write_failed.into_iter().collect() }.encode());
        }
        let lost: Vec<ChunkId> = waiting.lost.into_iter().collect();
        out.extend(lost.chunks(CHUNKS_PER_REPORT).map(|chunks| CstomaChunkLost { chunks: chunks.to_vec() }.encode()));
        let as_reports = |chunks: BTreeSet<ChunkId>| -> Vec<ChunkReport> {
            let report = |chunkid| Some(ChunkReport { chunkid, version: present(chunkid)? });
            chunks.into_iter().filter_map(report).collect()
        };
        out.extend(as_reports(waiting.new).chunks(CHUNKS_PER_REPORT).map(new_packet));
        for chunks in as_reports(waiting.changed).chunks(CHUNKS_PER_REPORT) {
            let ids = chunks.iter().map(|chunk| chunk.chunkid).collect();
            out.push(CstomaChunkLost { chunks: ids }.encode());
            out.push(new_packet(chunks));
        }
    }
}

fn new_packet(chunks: &[ChunkReport]) -> Vec<u8> {
    CstomaChunkNew { chunks: chunks.to_vec() }.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said after `note`, where these chunks are here: lost, and new with their versions.
    fn said(note: impl FnOnce(&Reports), here: &[(u64, u32)]) -> (Vec<u64>, Vec<(u64, u32)>) {
        let reports = Reports::default();
        reports.begin_listing();
        note(&reports);
        let mut packets = Vec::new();
        reports
            .take_packets(&mut packets, |id| here.iter().find(|(here, _)| *here == id.0).map(|(_, version)| *version));
        let (mut lost, mut new) = (Vec::new(), Vec::new());
        for packet in packets {
            let (kind, payload) = (u32::from_be_bytes(*packet.first_chunk().unwrap()), &packet[8..]);
            if kind == CstomaChunkLost::TYPE {
                lost.extend(CstomaChunkLost::decode(payload).unwrap().chunks.iter().map(|id| id.0));
            } else {
                let chunks = CstomaChunkNew::decode(payload).unwrap().chunks;
                new.extend(chunks.iter().map(|chunk| (chunk.chunkid.0, chunk.version)));
            }
        }
        (lost, new)
    }

    #[test]
    fn a_chunk_is_reported_as_it_is_now_and_not_as_it_was_when_that_was_noted() {
        let changed = |reports: &Reports| reports.changed(ChunkId(1));
        assert_eq!(said(changed, &[(1, 7)]), (vec![1], vec![(1, 7)]));
        assert_eq!(said(changed, &[]), (vec![], vec![]), "deleted meanwhile");
        let found = |reports: &Reports| reports.found(ChunkId(1));
        assert_eq!(said(found, &[(1, 7)]), (vec![], vec![(1, 7)]));
        assert_eq!(said(found, &[]), (vec![], vec![]));
    }

    #[test]
    fn what_is_lost_stays_lost_when_its_disk_is_said_to_have_changed() {
        let lost_and_changed = |reports: &Reports| {
            reports.lost(ChunkId(1));
            reports.changed(ChunkId(1));
        };
        assert_eq!(said(lost_and_changed, &[]), (vec![1], vec![]));
        assert_eq!(said(lost_and_changed, &[(1, 3)]), (vec![1], vec![(1, 3)]), "another file of it was found");
    }
}
