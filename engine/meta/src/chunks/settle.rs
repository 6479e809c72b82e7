//! Changes of a chunk's version: begun, carried out by the servers one by one, and ended, or left in doubt and settled
//! later. docs/versions.md.
//!
//! ```text
//! RAISE, WRITE or CUT in the journal: version V + 1, the floor F stays     copies may be anything from F to V + 1
//!   every server that was asked says yes -> SETVERSION: F = V + 1          all copies that count are V + 1
//!   some say no, or leave                -> the others once more, V + 2
//!   none says yes                        -> F stays. Copies from F up are good: readable at once, raised when a writer
//!                                           asks, when as many are here as are wanted, or after a while
//! ```
//!
//! A version that was told to a server is never taken back, and nobody is let in to write while F is below V. So a copy
//! from F up holds every byte that was acknowledged, and one below F does not.

use wire::{ChunkId, Status, Version};

use super::copies::{CopyKind, Operation, Record};
use super::{Chunks, Command, Effect, Effects, Facts, ServerId, Table};

/// How long a change in doubt waits for more copies, in seconds.
pub(super) const SETTLE_WAIT_SECONDS: u32 = 30;
/// Between an attempt that no server carried out and the next one: each takes a version of its own.
const SETTLE_AGAIN_SECONDS: u32 = 10;
/// So many versions of a copy are asked for when a server has not the one that it should have; then it counts as damaged.
const ASKED_MAX: u32 = 32;

/// One server's part of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changing {
    /// The version that the copy has if the order was not carried out.
    from: Version,
    /// The server does not have that one and is asked for this one.
    asked: Option<Version>,
    /// What to tell the server once its version is known.
    cut: Option<u32>,
}

/// A change in doubt that nobody ended yet. Unix seconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    /// A good copy is here since then.
    since: u32,
    /// The last attempt failed.
    not_before: u32,
}

impl From<u32> for Waiting {
    fn from(now: u32) -> Waiting {
        Waiting { since: now, not_before: now }
    }
}

/// What an answer means for a copy.
pub(super) enum Reply {
    /// It has the new version.
    Done,
    /// It has the version from before.
    Unchanged(Version),
    /// Another order was sent.
    Again,
    /// It may hold anything.
    Lost,
}

impl Facts {
    /// Nothing was begun that did not end.
    pub fn is_settled(&self) -> bool {
        self.floor == self.version
    }

    /// Whether a copy of this version can be missing nothing that was acknowledged.
    pub(super) fn is_good(&self, version: Version) -> bool {
        (self.floor..=self.version).contains(&version)
    }

    /// What a copy of this version is.
    pub(super) fn kind_of(&self, version: Version) -> CopyKind {
        match version {
            version if version == self.version => CopyKind::Valid,
            version if self.is_good(version) => CopyKind::Behind(version),
            version => CopyKind::WrongVersion(version),
        }
    }
}

impl Chunks {
    /// All good copies go to version `new`, each from its own; those of the chunk's version are at `old`. `cut`: they are
    /// cut to so many bytes. The journal has it.
    pub(super) fn change_versions(
        &mut self,
        chunk: ChunkId,
        (old, new): (Version, Version),
        cut: Option<u32>,
        effects: &mut Effects,
    ) {
        let record = self.records.entry(chunk).or_default();
        for copy in &mut record.copies {
            let Some(from) = copy.state.good_version(old) else { continue };
            copy.state = copy.state.with(CopyKind::Busy);
            self.changing.insert((chunk, copy.server), Changing { from, asked: None, cut });
            effects.push(Effect::Send { server: copy.server, command: order(chunk, from, new, cut) });
        }
    }

    /// A damaged copy of the chunk is asked for its version.
    pub(super) fn ask_version(&mut self, chunk: ChunkId, server: ServerId, version: Version, effects: &mut Effects) {
        self.changing.insert((chunk, server), Changing { from: version, asked: Some(version), cut: None });
        effects.push(Effect::Send { server, command: Command::SetVersion { chunk, new: version, old: version } });
    }

    /// An answer to such an order, in a chunk that is to have the version of `facts`.
    pub(super) fn changed(
        &mut self,
        chunk: ChunkId,
        server: ServerId,
        status: Status,
        facts: &Facts,
        effects: &mut Effects,
    ) -> Reply {
        let key = (chunk, server);
        let Some(Changing { from, asked, cut }) = self.changing.get(&key).copied() else {
            return if status == Status::OK { Reply::Done } else { Reply::Lost };
        };
        match (status, asked) {
            // It has the new version only if it carried this order out.
            (Status::OK, Some(version)) if version != facts.version => {
                self.changing.insert(key, Changing { from: version, asked: None, cut });
                effects.push(Effect::Send { server, command: order(chunk, version, facts.version, cut) });
                Reply::Again
            }
            (Status::OK, _) => Reply::Done,
            // Not even begun.
            (Status::NOTDONE | Status::NOSPACE, None) => Reply::Unchanged(from),
            // A late order of another connection was carried out meanwhile, or an answer was lost: which version is it?
            (Status::WRONGVERSION, _) => {
                let next = asked.map_or(facts.version, |version| Version(version.0.wrapping_sub(1)));
                if !facts.is_good(next) || facts.version.0 - next.0 >= ASKED_MAX {
                    return Reply::Lost;
                }
                self.changing.insert(key, Changing { from, asked: Some(next), cut });
                effects.push(Effect::Send { server, command: Command::SetVersion { chunk, new: next, old: next } });
                Reply::Again
            }
            _ => Reply::Lost,
        }
    }

    /// Ends what is in doubt about a chunk, without a writer: a version of its own on every good copy that is here.
    /// Nothing happens if it is settled, has no good copy, or an operation runs.
    pub fn settle(&mut self, chunk: ChunkId, table: &impl Table, effects: &mut Effects) {
        self.forget_departed(chunk);
        let Some(facts) = table.facts(chunk).filter(|facts| !facts.is_settled()) else { return };
        let Some(record) = self.records.get_mut(&chunk) else { return };
        if record.operation != Operation::None || record.census().good() == 0 {
            return;
        }
        record.operation = if facts.cut.is_some() { Operation::Truncate } else { Operation::SetVersion };
        record.interrupted = false;
        record.client_waits = false;
        record.only_no_space = true;
        self.operating.insert(chunk);
        self.stale.insert(chunk);
        let new = facts.version.next();
        effects.push(Effect::Raise { chunk, version: new });
        self.change_versions(chunk, (facts.version, new), facts.cut, effects);
    }

    /// When a change in doubt is settled without a writer (Unix seconds), if not yet.
    pub(super) fn settles_at(&self, chunk: ChunkId, facts: &Facts, record: &Record, now: u32) -> Option<u32> {
        let Waiting { since, not_before } = self.unsettled.get(&chunk).copied().unwrap_or(Waiting::from(now));
        let is_complete = record.census().good() >= usize::from(facts.goal) || self.all_data_known(now);
        let at = if is_complete { not_before } else { not_before.max(since.saturating_add(SETTLE_WAIT_SECONDS)) };
        Some(at).filter(|at| *at > now)
    }

    /// No server carried the change out.
    pub(super) fn settle_later(&mut self, chunk: ChunkId, now: u32) {
        let waiting = self.unsettled.entry(chunk).or_insert(Waiting::from(now));
        waiting.not_before = now.saturating_add(SETTLE_AGAIN_SECONDS);
    }

    /// Notes since when a change in doubt could be settled.
    pub(super) fn note_unsettled(&mut self, chunk: ChunkId, facts: &Facts, now: u32) {
        let has_good = self.records.get(&chunk).is_some_and(|record| record.census().good() > 0);
        if !facts.is_settled() && has_good {
            self.unsettled.entry(chunk).or_insert(Waiting::from(now));
        } else {
            self.unsettled.remove(&chunk);
        }
    }
}

fn order(chunk: ChunkId, old: Version, new: Version, cut: Option<u32>) -> Command {
    match cut {
        Some(length_bytes) => Command::Truncate { chunk, length_bytes, new, old },
        None => Command::SetVersion { chunk, new, old },
    }
}
