//! What the master must be told: collected all the time, also while there is no connection. Spec 40, 6.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use ring::local::Notify;
use wire::types::ChunkReport;
use wire::{ChunkId, CstomaChunkDamaged, CstomaChunkLost, CstomaChunkNew, CstomaErrorOccurred, Packet};

/// Chunks in one LOST or NEW packet. Spec 40, 6.
const CHUNKS_PER_REPORT: usize = 25_000;

#[derive(Default)]
pub(crate) struct Reports {
    waiting: RefCell<Waiting>,
    errors: Cell<u32>,
    listing_begun: Cell<bool>,
    allowed: Cell<bool>,
    wake: Notify,
}

#[derive(Default)]
struct Waiting {
    damaged: BTreeSet<ChunkId>,
    lost: BTreeSet<ChunkId>,
    /// Version with bit 31.
    new: BTreeMap<ChunkId, u32>,
    changed: BTreeMap<ChunkId, u32>,
}

impl Reports {
    pub(crate) fn damaged(&self, id: ChunkId) {
        self.waiting.borrow_mut().damaged.insert(id);
        self.wake.notify_one();
    }

    pub(crate) fn lost(&self, id: ChunkId) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.new.remove(&id);
        waiting.changed.remove(&id);
        waiting.lost.insert(id);
        drop(waiting);
        self.wake.notify_one();
    }

    /// A scan found a chunk.
    pub(crate) fn found(&self, id: ChunkId, version: u32) {
        if !self.listing_begun.get() {
            return; // it will be in the list
        }
        self.waiting.borrow_mut().new.insert(id, version);
        self.wake.notify_one();
    }

    /// Another file is the chunk's best copy, or the mark of its disk changed.
    pub(crate) fn changed(&self, id: ChunkId, version: u32) {
        if !self.listing_begun.get() {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        waiting.new.remove(&id);
        waiting.lost.remove(&id);
        waiting.changed.insert(id, version);
        drop(waiting);
        self.wake.notify_one();
    }

    /// From here on a list of all chunks goes to the master: what was to be said of them before is in it.
    pub(crate) fn begin_listing(&self) {
        self.listing_begun.set(true);
        let mut waiting = self.waiting.borrow_mut();
        waiting.lost.clear();
        waiting.new.clear();
        waiting.changed.clear();
    }

    /// The list was sent: reports may be.
    pub(crate) fn allow(&self) {
        self.allowed.set(true);
        self.wake.notify_one();
    }

    pub(crate) fn may_be_sent(&self) -> bool {
        self.allowed.get()
    }

    /// The connection ended: the next one begins with a list.
    pub(crate) fn end_listing(&self) {
        self.listing_begun.set(false);
        self.allowed.set(false);
    }

    /// The chunk is gone by the master's own will.
    pub(crate) fn forget(&self, id: ChunkId) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.damaged.remove(&id);
        waiting.new.remove(&id);
        waiting.changed.remove(&id);
    }

    pub(crate) fn disk_error(&self) {
        self.errors.set(self.errors.get() + 1);
        self.wake.notify_one();
    }

    /// Waits until there is something to report, and it may be.
    pub(crate) async fn wait(&self) {
        while self.is_empty() || !self.allowed.get() {
            self.wake.notified().await;
        }
    }

    fn is_empty(&self) -> bool {
        let waiting = self.waiting.borrow();
        self.errors.get() == 0
            && waiting.damaged.is_empty()
            && waiting.lost.is_empty()
            && waiting.new.is_empty()
            && waiting.changed.is_empty()
    }

    /// All that is to be said, as packets in the order of the specification; forgets it. `is_here`: do we have this
    /// chunk now? Then it is not lost, whatever was true when that was noted.
    pub(crate) fn take_packets(&self, out: &mut Vec<Vec<u8>>, is_here: impl Fn(ChunkId) -> bool) {
        let mut waiting = self.waiting.take();
        waiting.lost.retain(|id| !is_here(*id));
        for _ in 0..self.errors.take() {
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
