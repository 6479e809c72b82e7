//! The copies of one chunk and the operation on them. Spec 41, 1.

use wire::Version;

use super::ServerId;
use super::planner::Queue;

/// State of a copy, and whether its disk is marked for removal. Spec 41, 1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyState {
    pub kind: CopyKind,
    /// On a disk that is to be emptied ("TD"): readable and writable, but it does not count for the goal.
    pub marked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyKind {
    /// Good.
    Valid,
    /// Of an older version than the chunk, but of one at which nothing can be missing that was acknowledged: a change to
    /// the present version was begun and not ended. docs/versions.md.
    Behind(Version),
    /// An operation was sent to its server and is not answered.
    Busy,
    /// Of another version: older than the last writer's, or newer than the chunk.
    WrongVersion(Version),
    /// Damaged, or in an unknown state after an operation failed.
    Invalid,
    /// Deletion sent, answer awaited.
    Deleting,
}

impl CopyState {
    pub const VALID: CopyState = CopyState { kind: CopyKind::Valid, marked: false };
    pub const INVALID: CopyState = CopyState { kind: CopyKind::Invalid, marked: false };

    pub fn is_usable(self) -> bool {
        matches!(self.kind, CopyKind::Valid | CopyKind::Behind(_) | CopyKind::Busy)
    }

    /// The version of a copy that holds all that was acknowledged, in a chunk of this version.
    pub(super) fn good_version(self, of_chunk: Version) -> Option<Version> {
        match self.kind {
            CopyKind::Valid => Some(of_chunk),
            CopyKind::Behind(version) => Some(version),
            _ => None,
        }
    }

    pub(super) fn with(self, kind: CopyKind) -> CopyState {
        CopyState { kind, ..self }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    pub(super) server: ServerId,
    pub(super) state: CopyState,
}

/// What runs on the copies of a chunk. Spec 41, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Operation {
    #[default]
    None,
    Create,
    SetVersion,
    /// A damaged copy is asked for its version; see `rescue`.
    TakeBack,
    Duplicate,
    Truncate,
    DuplicateTruncate,
    /// Until the deadline, Unix seconds. Blocks writers, not readers.
    Replicate {
        deadline: u32,
    },
}

/// The volatile state of one chunk.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Few; in order of arrival.
    pub(super) copies: Vec<Copy>,
    pub(super) operation: Operation,
    /// The next write must raise the version first: a copy came or went since the last one. Spec 41, 1.3.
    pub(super) needs_version_increase: bool,
    /// A server failed or left during the running operation.
    pub(super) interrupted: bool,
    /// A client waits for the end of the operation.
    pub(super) client_waits: bool,
    /// Every answer so far said "no space".
    pub(super) only_no_space: bool,
    /// The write counters of the servers are raised.
    pub(super) write_in_progress: bool,
    /// The last departure of a server that announced its restart and had a copy. 0: none.
    pub(super) awaited: u16,
    pub(super) queued: Option<Queue>,
}

impl Default for Record {
    fn default() -> Record {
        Record {
            copies: Vec::new(),
            operation: Operation::None,
            needs_version_increase: true,
            interrupted: false,
            client_waits: false,
            only_no_space: true,
            write_in_progress: false,
            awaited: 0,
            queued: None,
        }
    }
}

/// How many copies a chunk has, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub valid: usize,
    pub valid_marked: usize,
    /// `Behind`, on whatever disk.
    pub behind: usize,
    pub busy: usize,
    pub busy_marked: usize,
    pub wrong_version: usize,
    pub invalid: usize,
    pub deleting: usize,
}

impl Census {
    /// Copies that hold the chunk, on whatever disk.
    pub fn usable(&self) -> usize {
        self.good() + self.busy + self.busy_marked
    }

    /// Copies that can be read: nothing that was acknowledged is missing.
    pub fn good(&self) -> usize {
        self.valid + self.valid_marked + self.behind
    }

    /// Copies that count for the goal.
    pub fn regular(&self) -> usize {
        self.valid + self.behind + self.busy
    }

    pub fn all(&self) -> usize {
        self.usable() + self.wrong_version + self.invalid + self.deleting
    }
}

impl Record {
    pub(super) fn census(&self) -> Census {
        let mut census = Census::default();
        for copy in &self.copies {
            let counter = match (copy.state.kind, copy.state.marked) {
                (CopyKind::Valid, false) => &mut census.valid,
                (CopyKind::Valid, true) => &mut census.valid_marked,
                (CopyKind::Behind(_), _) => &mut census.behind,
                (CopyKind::Busy, false) => &mut census.busy,
                (CopyKind::Busy, true) => &mut census.busy_marked,
                (CopyKind::WrongVersion(_), _) => &mut census.wrong_version,
                (CopyKind::Invalid, _) => &mut census.invalid,
                (CopyKind::Deleting, _) => &mut census.deleting,
            };
            *counter += 1;
        }
        census
    }

    pub(super) fn copy(&self, server: ServerId) -> Option<CopyState> {
        self.copies.iter().find(|copy| copy.server == server).map(|copy| copy.state)
    }

    pub(super) fn copy_mut(&mut self, server: ServerId) -> Option<&mut CopyState> {
        self.copies.iter_mut().find(|copy| copy.server == server).map(|copy| &mut copy.state)
    }

    /// Adds the copy, or changes the one that is there.
    pub(super) fn set(&mut self, server: ServerId, state: CopyState) {
        match self.copy_mut(server) {
            Some(present) => *present = state,
            None => self.copies.push(Copy { server, state }),
        }
    }

    pub(super) fn remove(&mut self, server: ServerId) -> Option<CopyState> {
        let at = self.copies.iter().position(|copy| copy.server == server)?;
        Some(self.copies.remove(at).state)
    }

    /// A server with a copy in this state left; it announced its restart if `departure` is not 0.
    pub(super) fn note_departure(&mut self, state: CopyState, departure: u16) {
        if state.is_usable() && departure != 0 {
            self.awaited = departure;
        }
    }

    pub(super) fn usable_servers(&self) -> Vec<ServerId> {
        self.copies.iter().filter(|copy| copy.state.is_usable()).map(|copy| copy.server).collect()
    }

    /// Servers with a good copy on a disk that stays.
    pub(super) fn valid_servers(&self) -> Vec<ServerId> {
        self.copies.iter().filter(|copy| copy.state == CopyState::VALID).map(|copy| copy.server).collect()
    }

    /// Without an operation nothing is under way that could answer: what such a copy holds is not known.
    pub(super) fn give_up_busy(&mut self) {
        if self.operation != Operation::None {
            return;
        }
        for copy in &mut self.copies {
            if copy.state.kind == CopyKind::Busy {
                copy.state = copy.state.with(CopyKind::Invalid);
            }
        }
    }

    /// Copies that are damaged, or older than the last writer's, in a chunk of this version. What is newer is kept.
    pub(super) fn bad(&self, of_chunk: Version) -> usize {
        let is_bad = |copy: &&Copy| match copy.state.kind {
            CopyKind::Invalid => true,
            CopyKind::WrongVersion(version) => version < of_chunk,
            _ => false,
        };
        self.copies.iter().filter(is_bad).count()
    }

    /// The good copies that a client may be sent to: those of the highest version that is here, and that version.
    pub(super) fn readable(&self, of_chunk: Version) -> Option<(Version, Vec<ServerId>)> {
        let version = |copy: &Copy| copy.state.good_version(of_chunk);
        let highest = self.copies.iter().filter_map(version).max()?;
        let copies = self.copies.iter().filter(|copy| version(copy) == Some(highest));
        Some((highest, copies.map(|copy| copy.server).collect()))
    }

    pub(super) fn any_busy(&self) -> bool {
        self.copies.iter().any(|copy| copy.state.kind == CopyKind::Busy)
    }

    /// An operation that changes the chunk runs.
    pub(super) fn is_changing(&self) -> bool {
        !matches!(self.operation, Operation::None | Operation::Replicate { .. })
    }
}
