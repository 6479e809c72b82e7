//! What the master must be told: collected all the time, also while there is no connection. Spec 40, 6.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Mutex;
use std::task::{Poll, Waker};

use wire::types::ChunkReport;
use wire::{ChunkId, CstomaChunkDamaged, CstomaChunkLost, CstomaChunkNew, CstomaErrorOccurred, Packet};

use crate::cores::lock;

/// Chunks in one LOST or NEW packet. Spec 40, 6.
const CHUNKS_PER_REPORT: usize = 25_000;

/// Noted by any core, said by the first.
#[derive(Default)]
pub(crate) struct Reports {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    /// Version with bit 31.
    new: BTreeMap<ChunkId, u32>,
    changed: BTreeMap<ChunkId, u32>,
    damaged: BTreeSet<ChunkId>,
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

    pub(crate) fn lost(&self, id: ChunkId) {
        self.note(|waiting| {
            waiting.new.remove(&id);
            waiting.changed.remove(&id);
            waiting.lost.insert(id);
        });
    }

    /// A scan found a chunk, which is in the registry by now.
    pub(crate) fn found(&self, id: ChunkId, version: u32) {
        self.note(|waiting| {
            // Else it will be in the list.
            if waiting.listing_begun {
                waiting.new.insert(id, version);
            }
        });
    }

    /// Another file is the chunk's best copy, or the mark of its disk changed.
    pub(crate) fn changed(&self, id: ChunkId, version: u32) {
        self.note(|waiting| {
            if waiting.listing_begun {
                waiting.new.remove(&id);
                waiting.lost.remove(&id);
                waiting.changed.insert(id, version);
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
    }

    /// The chunk is gone by the master's own will.
    pub(crate) fn forget(&self, id: ChunkId) {
        let mut waiting = lock(&self.waiting);
        waiting.damaged.remove(&id);
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

    /// All that is to be said, as packets in the order of the specification; forgets it. `is_here`: do we have this
    /// chunk now? Then it is not lost, whatever was true when that was noted.
    pub(crate) fn take_packets(&self, out: &mut Vec<Vec<u8>>, is_here: impl Fn(ChunkId) -> bool) {
        let mut waiting = {
            let mut waiting = lock(&self.waiting);
            let (listing_begun, allowed, waker) = (waiting.listing_begun, waiting.allowed, waiting.waker.take());
            std::mem::replace(&mut *waiting, Waiting { listing_begun, allowed, waker, ..Waiting::default() })
        };
        waiting.lost.retain(|id| !is_here(*id));
        for _ in 0..waiting.errors {
            out.push(CstomaErrorOccurred {}.encode());
        }
        let damaged: Vec<ChunkId> = waiting.damaged.into_iter().collect();
        if !damaged.is_empty() {
            out.push(CstomaChunkDamaged { chunks: damaged }.encode());
        }
        let lost: Vec<ChunkId> = waiting.lost.into_iter().collect();
        out.extend(lost.chunks(CHUNKS_PER_REPORT).map(|chunks| CstomaChunkLost { chunks: chunks.to_vec() }.encode()));
        out.extend(as_reports(waiting.new).chunks(CHUNKS_PER_REPORT).map(new_packet));
        for chunks in as_reports(waiting.changed).chunks(CHUNKS_PER_REPORT) {
            let ids = chunks.iter().map(|chunk| chunk.chunkid).collect();
            out.push(CstomaChunkLost { chunks: ids }.encode());
            out.push(new_packet(chunks));
        }
    }
}

fn as_reports(chunks: BTreeMap<ChunkId, u32>) -> Vec<ChunkReport> {
    chunks.into_iter().map(|(chunkid, version)| ChunkReport { chunkid, version }).collect()
}

fn new_packet(chunks: &[ChunkReport]) -> Vec<u8> {
    CstomaChunkNew { chunks: chunks.to_vec() }.encode()
}
