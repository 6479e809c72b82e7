//! The namespace as the master uses it: checks first, then one change, applied and written down.
//!
//! `Namespace` is the state, the journal lines that were made and not yet taken, and what is known only while the
//! master runs (ends of appends, places of timers). Its methods are in the modules beside this one, by subject.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use wire::{ChunkId, Inode, MetaId, SessionId, Status, Time, VersionWord};

use crate::apply::apply;
use crate::change::Change;
use crate::journal::{self, Batch, Entry, JournalError, Outcome};
use crate::locking::LockQueues;
use crate::state::{Sizes, State};
use crate::trash::Timers;

/// Who asks, as the packet says, before the session's mapping; and when.
#[derive(Clone, Copy, Debug)]
pub struct Caller<'a> {
    pub session: SessionId,
    /// Version of the client program.
    pub version: VersionWord,
    pub uid: u32,
    /// The primary group first.
    pub gids: &'a [u32],
    /// By the master's clock.
    pub now: Time,
}

/// What the configuration says about the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// `ATIME_MODE`: 0 always, 1 files only, 2 relative, 3 relative and files only, 4 never. Spec 32, 32.9.
    pub atime_mode: u8,
    /// `INODE_REUSE_DELAY`
    pub inode_reuse_delay_seconds: u32,
    /// `MAX_ALLOWED_HARD_LINKS`
    pub hard_links_max: u16,
    /// `SESSION_SUSTAIN_TIME`
    pub session_sustain_seconds: u32,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            atime_mode: 2,
            inode_reuse_delay_seconds: 86_400,
            hard_links_max: 32_767,
            session_sustain_seconds: 86_400,
        }
    }
}

/// The metadata of one file system, in memory.
#[derive(Debug)]
pub struct Namespace {
    pub(crate) state: State,
    pub(crate) policy: Policy,
    lines: Vec<u8>,
    lines_first: u64,
    /// Where the next append to a file goes, if that is beyond its length. Spec 31, 31.9 "RESERVE".
    pub(crate) append_ends: BTreeMap<u32, u64>,
    /// Where listings of directories stopped: (directory, edge id, edge), latest last. Only saves walking there.
    pub(crate) listings: VecDeque<(u32, u64, u32)>,
    pub(crate) timers: Timers,
    pub(crate) lock_queues: LockQueues,
}

impl Namespace {
    /// A new file system: an empty root, and the first line of its journal.
    pub fn new(meta_id: MetaId, policy: Policy, now: impl Into<Time>) -> Namespace {
        let now = now.into();
        let mut namespace = Namespace::from_state(State::new(now), policy);
        let set = namespace.commit(now, &Change::SetMetaId { meta_id: meta_id.0 });
        set.expect("a new state takes any identity");
        namespace
    }

    pub(crate) fn from_state(state: State, policy: Policy) -> Namespace {
        let lines_first = state.version;
        Namespace {
            state,
            policy,
            lines: Vec::new(),
            lines_first,
            append_ends: BTreeMap::new(),
            listings: VecDeque::new(),
            timers: Timers::default(),
            lock_queues: LockQueues::default(),
        }
    }

    pub fn meta_id(&self) -> MetaId {
        MetaId(self.state.meta_id)
    }

    /// The version of the metadata: that of the next journal line.
    pub fn version(&self) -> u64 {
        self.state.version
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Lines made since the last call. They must be safe before answers that depend on them leave.
    pub fn take_journal(&mut self) -> Batch {
        let batch = Batch { first: self.lines_first, next: self.state.version, bytes: std::mem::take(&mut self.lines) };
        self.lines_first = self.state.version;
        batch
    }

    /// As `take_journal`, behind what `batch` holds already: the lines before these, or nothing. Returns whether there
    /// were any.
    pub fn take_journal_into(&mut self, batch: &mut Batch) -> bool {
        if self.lines.is_empty() {
            return false;
        }
        if batch.is_empty() {
            batch.first = self.lines_first;
        }
        debug_assert!(batch.bytes.is_empty() || batch.next == self.lines_first, "lines come without gaps");
        batch.bytes.extend_from_slice(&self.lines);
        batch.next = self.state.version;
        self.lines.clear();
        self.lines_first = self.state.version;
        true
    }

    pub fn journal_is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Writes a line that changes nothing, so that followers see that the journal lives. Spec 51, 7.
    pub fn idle(&mut self, now: impl Into<Time>) {
        self.commit(now.into(), &Change::Idle {}).expect("changes nothing");
    }

    /// Applies a line that was read. It is not written down again.
    pub fn replay(&mut self, entry: &Entry<'_>) -> Result<(), ReplayError> {
        let expected = self.state.version;
        if entry.version != expected {
            return Err(ReplayError::Gap { expected, found: entry.version });
        }
        let what = |status: Status| ReplayError::Refused { version: expected, operation: entry.change.name(), status };
        let outcome = apply(&mut self.state, &entry.change, entry.timestamp).map_err(what)?;
        if outcome != entry.outcome {
            let operation = entry.change.name();
            let results = Box::new(Results { written: entry.outcome, computed: outcome });
            return Err(ReplayError::Mismatch { version: expected, operation, results });
        }
        self.state.version += 1;
        self.lines_first = self.state.version;
        Ok(())
    }

    /// A line that was applied elsewhere is counted.
    pub(crate) fn skip_version(&mut self) {
        self.state.version += 1;
        self.lines_first = self.state.version;
    }

    /// Applies the lines of a journal (or of a piece of one, cut at a line), passing over those that the state has
    /// already. Returns how many were applied.
    pub fn replay_lines(&mut self, bytes: &[u8]) -> Result<u64, ReplayError> {
        let mut applied = 0;
        for (offset, line) in journal::lines(bytes) {
            let entry = line.and_then(journal::parse).map_err(|error| ReplayError::Line { offset, error })?;
            if entry.version >= self.state.version {
                self.replay(&entry)?;
                applied += 1;
            }
        }
        Ok(applied)
    }

    /// Applies a change and writes it down. An error changed nothing and writes nothing.
    pub(crate) fn commit(&mut self, now: Time, change: &Change<'_>) -> Result<Outcome, Status> {
        let outcome = apply(&mut self.state, change, now)?;
        journal::format(self.state.version, now, change, &outcome, &mut self.lines);
        self.state.version += 1;
        Ok(outcome)
    }

    /// The same state for a thread that writes an image of it. Costs a pointer per page of the large tables and a
    /// copy of the small ones.
    pub fn freeze(&mut self) -> Snapshot {
        Snapshot { state: self.state.freeze() }
    }

    /// What there is, for monitoring.
    pub fn sizes(&self) -> Sizes {
        self.state.sizes()
    }

    /// Inodes that ceased to exist since the last call: caches of them are void.
    pub fn take_removed_inodes(&mut self) -> Vec<Inode> {
        let removed = std::mem::take(&mut self.state.removed_inodes);
        for inode in &removed {
            self.append_ends.remove(&inode.0);
        }
        removed
    }

    /// Chunks whose storage class (or its definition) or archive flag changed since the last call.
    pub fn take_touched_chunks(&mut self) -> Vec<ChunkId> {
        self.state.chunks.take_touched()
    }

    /// Chunks that replayed lines forgot since the last call: late copies of them may be deleted.
    pub fn take_deleted_chunks(&mut self) -> Vec<ChunkId> {
        self.state.chunks.take_deleted()
    }

    /// Chunks that lost their last file since the last call, and that no file holds now.
    pub fn take_released_chunks(&mut self) -> Vec<ChunkId> {
        self.state.chunks.take_released()
    }
}

/// A state that does not change any more. `image` writes it.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) state: State,
}

impl Snapshot {
    pub fn meta_id(&self) -> MetaId {
        MetaId(self.state.meta_id)
    }

    pub fn version(&self) -> u64 {
        self.state.version
    }
}

/// What a change gave when it was written down, and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Results {
    pub written: Outcome,
    pub computed: Outcome,
}

/// Why a line could not be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplayError {
    /// No sound line at this offset of the bytes given.
    Line { offset: usize, error: JournalError },
    /// The line is not the next one.
    Gap { expected: u64, found: u64 },
    /// The state does not allow the change: it is not the state that the journal belongs to.
    Refused { version: u64, operation: &'static str, status: Status },
    /// The change gave another result than when it was written.
    Mismatch { version: u64, operation: &'static str, results: Box<Results> },
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplayError::Line { offset, error } => write!(f, "at offset {offset}: {error}"),
            ReplayError::Gap { expected, found } => {
                write!(f, "journal line {found} where {expected} must follow: lines are missing or out of order")
            }
            ReplayError::Refused { version, operation, status } => {
                write!(f, "journal line {version} ({operation}) does not fit the metadata: {status}")
            }
            ReplayError::Mismatch { version, operation, results } => write!(
                f,
                "journal line {version} ({operation}) says {:?} but gives {:?}: image and journal do not belong together",
                results.written.values(),
                results.computed.values()
            ),
        }
    }
}

impl std::error::Error for ReplayError {}
