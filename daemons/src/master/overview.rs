//! Sums over all chunks, for those who watch: copies by goal, by class, which are locked, and for which servers it holds
//! that their disks marked for removal may go. Spec 70, 4.2, 4.7 and 4.14.
//!
//! The table may have millions of chunks, and nobody shall wait for a monitor's question: all chunks are looked at in
//! passes, some at a time, and what is told is what the last pass found. A small table is looked at when somebody asks.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use meta::chunks::{Chunks, CopyKind};
use meta::{ChunkRecord, Namespace};

use super::Shared;
use super::core::Core;

const STEPS_PER_SECOND: u32 = 20;
/// Slots of the table in one step: at least, and at most (some milliseconds).
const STEP_MIN: u32 = 100;
const STEP_MAX: u32 = 3000;
/// After a question passes are as fast as may be for so long.
const ASKED_SECONDS: u32 = 600;

/// Goals and copies that a matrix tells apart: 0 to 9, and 10 for more.
const SIDE: usize = 11;
/// Chunks by goal (rows) and copies (columns).
pub(super) type Matrix = [u32; MATRIX_CELLS];
pub(super) const MATRIX_CELLS: usize = SIDE * SIDE;

/// Chunks under a writer's lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Locked {
    pub(super) unused: u32,
    pub(super) used: u32,
}

/// Chunks of a class that are under, at and over their goal, each in keep and in archive state.
pub(super) type ClassChunks = [[u64; 2]; 3];

#[derive(Debug)]
pub(super) struct Overview {
    /// By all copies, and by those on disks that stay.
    pub(super) matrices: [Matrix; 2],
    /// The same sums of copies.
    pub(super) copies: [u32; 2],
    /// By class.
    pub(super) classes: Vec<ClassChunks>,
    pub(super) locked: Locked,
}

impl Default for Overview {
    fn default() -> Overview {
        Overview {
            matrices: [[0; MATRIX_CELLS]; 2],
            copies: [0; 2],
            classes: vec![ClassChunks::default(); 256],
            locked: Locked::default(),
        }
    }
}

impl Overview {
    fn add(&mut self, chunk: &ChunkRecord, namespace: &Namespace, chunks: &Chunks, now: u32) {
        let goal = namespace.goal_of(chunk);
        let census = chunks.census(chunk.id);
        for (at, copies) in [census.usable(), census.regular()].into_iter().enumerate() {
            self.matrices[at][goal.min(SIDE - 1) * SIDE + copies.min(SIDE - 1)] += 1;
            self.copies[at] = self.copies[at].saturating_add(u32::try_from(copies).unwrap_or(u32::MAX));
        }
        if chunk.is_locked(now) {
            *if chunk.references > 0 { &mut self.locked.used } else { &mut self.locked.unused } += 1;
        }
        if chunk.references > 0 {
            let valid = chunks.copies(chunk.id).filter(|(_, state)| state.kind == CopyKind::Valid && !state.marked);
            let row = match valid.count().cmp(&goal) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => 1,
                std::cmp::Ordering::Greater => 2,
            };
            self.classes[usize::from(chunk.class)][row][usize::from(chunk.archived)] += 1;
        }
    }
}

/// The pass that is under way, and what earlier ones found.
#[derive(Debug, Default)]
pub(super) struct Passes {
    slot: u32,
    began: u32,
    /// Servers came, went or reported meanwhile.
    disturbed: bool,
    present: Overview,
    last: Rc<Overview>,
    /// Unix seconds of the last question.
    asked: Cell<u32>,
    /// By csid.
    removal: BTreeMap<u16, Removal>,
}

impl Core {
    /// As it is now, or was at the end of the last pass.
    pub(super) fn overview(&self, now: u32) -> Rc<Overview> {
        self.passes.asked.set(now);
        if !self.is_small() {
            return self.passes.last.clone();
        }
        let mut overview = Overview::default();
        self.namespace.chunks().for_each(|chunk| overview.add(&chunk, &self.namespace, &self.chunks, now));
        Rc::new(overview)
    }

    /// Whether all chunks and files may be looked at at once.
    pub(super) fn is_small(&self) -> bool {
        let chunks_max = self.settings.looked_at_once;
        self.namespace.chunk_slots() <= chunks_max && self.namespace.inodes_end() <= chunks_max.saturating_mul(10)
    }
}

/// Looks at chunks until the task is dropped.
pub(super) async fn keep_looking(master: Shared) {
    loop {
        master.ring.sleep(Duration::from_secs(1) / STEPS_PER_SECOND).await;
        let now = master.now();
        look_at_some_chunks(&mut master.core.borrow_mut(), now);
    }
}

fn look_at_some_chunks(core: &mut Core, now: u32) {
    let Core { chunks, namespace, passes, settings, .. } = core;
    let slots = namespace.chunk_slots();
    let step = match now.saturating_sub(passes.asked.get()) {
        ..ASKED_SECONDS => STEP_MAX,
        _ => (slots / settings.chunks.sweep_seconds.max(1) / STEPS_PER_SECOND).clamp(STEP_MIN, STEP_MAX),
    };
    let end = passes.slot.saturating_add(step).min(slots);
    passes.disturbed |= chunks.in_progress(now);
    for chunk in (passes.slot..end).filter_map(|slot| namespace.chunk_at_slot(slot)) {
        passes.present.add(&chunk, namespace, chunks, now);
        if chunk.references > 0 && chunks.census(chunk.id).regular() < namespace.goal_of(&chunk) {
            let marked = chunks.copies(chunk.id).filter(|(_, state)| state.marked && state.is_usable());
            for server in marked.filter_map(|(server, _)| chunks.servers().get(server)) {
                passes.removal.insert(server.csid, Removal::Running);
            }
        }
    }
    passes.slot = end;
    if end < slots || now <= passes.began {
        return;
    }
    passes.last = Rc::new(std::mem::take(&mut passes.present));
    (passes.slot, passes.began) = (0, now);
    if std::mem::take(&mut passes.disturbed) {
        return;
    }
    for (_, server) in chunks.servers().iter() {
        let state = passes.removal.entry(server.csid).or_default();
        *state = state.after_a_pass();
    }
}

/// May the disks of a server that are marked for removal go? Spec 41, 8.7.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Removal {
    #[default]
    Unknown,
    /// All chunks were looked at once since servers came or went.
    Unsettled,
    /// A chunk has too few copies elsewhere.
    Running,
    Ran,
    Possible,
}

impl Removal {
    fn after_a_pass(self) -> Removal {
        match self {
            Removal::Unknown => Removal::Unsettled,
            Removal::Unsettled | Removal::Ran | Removal::Possible => Removal::Possible,
            Removal::Running => Removal::Ran,
        }
    }
}

impl Passes {
    /// What the last pass found.
    pub(super) fn last(&self) -> &Overview {
        &self.last
    }

    /// 0 not known yet, 1 chunks are being copied, 2 the disks may go. Spec 70, 4.2.
    pub(super) fn removal(&self, csid: u16) -> u8 {
        match self.removal.get(&csid).copied().unwrap_or_default() {
            Removal::Unknown | Removal::Unsettled => 0,
            Removal::Running | Removal::Ran => 1,
            Removal::Possible => 2,
        }
    }

    /// A chunkserver went: what was known of copies elsewhere is not.
    pub(super) fn server_gone(&mut self) {
        self.removal.clear();
        self.disturbed = true;
    }
}
