//! Operations on all copies of a chunk: start, answers, end. Spec 41, 4 and 5; docs/versions.md.
//!
//! ```text
//! begin -> every copy Busy -> answers -> no copy Busy: "finished"
//!   a valid copy, not interrupted   -> SETVERSION: what was begun is done; then the client gets OK
//!   a valid copy, interrupted       -> version raised once more on the survivors, the client goes on waiting
//!   none                            -> the client gets NOSPACE or NOTDONE; the versions stay in doubt (`settle`)
//! ```

use wire::{ChunkId, Status, Version};

use super::copies::{CopyKind, CopyState, Operation};
use super::pace::End;
use super::settle::Reply;
use super::{Chunks, Command, Effect, Effects, Notice, ServerId, Table};

/// Which command an answer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answered {
    Create,
    SetVersion,
    Duplicate,
    Truncate,
    DuplicateTruncate,
}

impl Answered {
    fn operation(self) -> Operation {
        match self {
            Answered::Create => Operation::Create,
            Answered::SetVersion => Operation::SetVersion,
            Answered::Duplicate => Operation::Duplicate,
            Answered::Truncate => Operation::Truncate,
            Answered::DuplicateTruncate => Operation::DuplicateTruncate,
        }
    }
}

impl Chunks {
    /// A new chunk on `targets`. Spec 41, 4.1.
    pub fn begin_create(&mut self, chunk: ChunkId, version: Version, targets: &[ServerId], effects: &mut Effects) {
        self.begin(chunk, Operation::Create);
        let record = self.records.entry(chunk).or_default();
        for &server in targets {
            record.set(server, CopyState::VALID.with(CopyKind::Busy));
            effects.push(Effect::Send { server, command: Command::Create { chunk, version } });
        }
    }

    /// All good copies go to version `new`; those of the chunk's version are at `old`. `cut`: bytes to which they must be
    /// cut, from a change before this one. Spec 41, 4.2.
    pub fn begin_set_version(
        &mut self,
        chunk: ChunkId,
        old: Version,
        new: Version,
        cut: Option<u32>,
        effects: &mut Effects,
    ) {
        self.begin(chunk, if cut.is_some() { Operation::Truncate } else { Operation::SetVersion });
        self.change_versions(chunk, (old, new), cut, effects);
    }

    /// The writer's own copy of a shared chunk, made beside each copy of the old one. Spec 41, 4.3.
    pub fn begin_duplicate(&mut self, old: (ChunkId, Version), new: (ChunkId, Version), effects: &mut Effects) {
        let command = Command::Duplicate { new: new.0, new_version: new.1, old: old.0, old_version: old.1 };
        self.begin_beside(old.0, new.0, Operation::Duplicate, command, effects);
    }

    /// Cut all copies to `length_bytes`. Spec 41, 4.4.
    pub fn begin_truncate(
        &mut self,
        chunk: ChunkId,
        length_bytes: u32,
        old: Version,
        new: Version,
        effects: &mut Effects,
    ) {
        self.begin(chunk, Operation::Truncate);
        self.change_versions(chunk, (old, new), Some(length_bytes), effects);
    }

    /// `begin_duplicate`, cut to `length_bytes`.
    pub fn begin_duplicate_truncate(
        &mut self,
        old: (ChunkId, Version),
        new: (ChunkId, Version),
        length_bytes: u32,
        effects: &mut Effects,
    ) {
        let command =
            Command::DuplicateTruncate { new: new.0, new_version: new.1, old: old.0, old_version: old.1, length_bytes };
        self.begin_beside(old.0, new.0, Operation::DuplicateTruncate, command, effects);
    }

    fn begin(&mut self, chunk: ChunkId, operation: Operation) {
        let record = self.records.entry(chunk).or_default();
        record.operation = operation;
        record.interrupted = false;
        record.client_waits = true;
        record.only_no_space = true;
        self.operating.insert(chunk);
    }

    fn begin_beside(
        &mut self,
        old: ChunkId,
        new: ChunkId,
        operation: Operation,
        command: Command,
        effects: &mut Effects,
    ) {
        let servers = self.records.get(&old).map(|record| record.usable_servers()).unwrap_or_default();
        self.begin(new, operation);
        let record = self.records.entry(new).or_default();
        for server in servers {
            record.set(server, CopyState::VALID.with(CopyKind::Busy));
            effects.push(Effect::Send { server, command });
        }
    }

    /// The client that waited is gone; the operation goes on without it. Spec 41, 5.1.
    pub fn forget_client(&mut self, chunk: ChunkId) {
        if let Some(record) = self.records.get_mut(&chunk) {
            record.client_waits = false;
        }
    }

    /// A server answered a command. Spec 41, 5.
    #[allow(clippy::too_many_arguments, reason = "the fields of the packet, and the world")]
    pub fn answer(
        &mut self,
        server: ServerId,
        chunk: ChunkId,
        answered: Answered,
        status: Status,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        let Some(record) = self.records.get_mut(&chunk) else {
            effects.push(Effect::Notice(Notice::UnexpectedAnswer { server, chunk }));
            return;
        };
        let Some(state) = record.copy(server).filter(|state| state.kind == CopyKind::Busy) else {
            effects.push(Effect::Notice(Notice::UnexpectedAnswer { server, chunk }));
            return;
        };
        let expected = record.operation == answered.operation()
            // A cut copy may be asked for its version, and a damaged one is.
            || answered == Answered::SetVersion && record.operation == Operation::TakeBack
            || answered == Answered::SetVersion && record.operation == Operation::Truncate
            || answered == Answered::Truncate && record.operation == Operation::SetVersion;
        if !expected {
            effects.push(Effect::Notice(Notice::UnexpectedAnswer { server, chunk }));
            if !record.is_changing() {
                return;
            }
        }
        let makes_new =
            matches!(record.operation, Operation::Create | Operation::Duplicate | Operation::DuplicateTruncate);
        let takes_back = record.operation == Operation::TakeBack;
        record.only_no_space &= status == Status::NOSPACE;
        if makes_new {
            self.made(server, chunk, state, status, effects);
        } else {
            let facts = table.facts(chunk);
            let reply = match &facts {
                Some(facts) => self.changed(chunk, server, status, facts, effects),
                None => Reply::Lost,
            };
            let record = self.records.get_mut(&chunk).expect("looked at above");
            let kind = match reply {
                Reply::Again => return,
                Reply::Done => CopyKind::Valid,
                Reply::Unchanged(_) if takes_back => CopyKind::Invalid,
                Reply::Unchanged(from) => facts.map_or(CopyKind::Invalid, |facts| facts.kind_of(from)),
                Reply::Lost => CopyKind::Invalid,
            };
            self.changing.remove(&(chunk, server));
            record.set(server, state.with(kind));
            record.interrupted |= kind != CopyKind::Valid;
        }
        if self.records.get(&chunk).and_then(|record| record.copy(server)).is_some_and(|s| s.kind == CopyKind::Valid) {
            self.unfinished.remove(&chunk);
        }
        self.finish_if_all_answered(chunk, table, now, effects);
    }

    /// The answer to an order that makes a chunk.
    fn made(&mut self, server: ServerId, chunk: ChunkId, state: CopyState, status: Status, effects: &mut Effects) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        record.interrupted |= status != Status::OK;
        match status {
            Status::OK => record.set(server, state.with(CopyKind::Valid)),
            // Not even started: the server has nothing.
            Status::NOTDONE | Status::NOSPACE => drop(record.remove(server)),
            // A chunk of this number is there already. It is not ours to delete.
            Status::CHUNKEXIST => {
                record.remove(server);
                self.quarantine.insert((chunk, server), Version(0));
                effects.push(Effect::Notice(Notice::Quarantined { server, chunk, version: Version(0) }));
            }
            _ => record.set(server, state.with(CopyKind::Invalid)),
        }
    }

    /// The end of an operation, once no copy is busy. Nothing happens before that, or without an operation.
    pub(super) fn finish_if_all_answered(
        &mut self,
        chunk: ChunkId,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        if !record.is_changing() || record.any_busy() {
            return;
        }
        let Some(facts) = table.facts(chunk) else {
            self.end_operation(chunk, Status::NOCHUNK, table, now, effects);
            return;
        };
        let valid = record.copies.iter().any(|copy| copy.state.kind == CopyKind::Valid);
        match (valid, record.interrupted) {
            (true, false) => {
                record.needs_version_increase = false;
                if !facts.is_settled() {
                    self.stale.insert(chunk);
                    self.unsettled.remove(&chunk);
                    effects.push(Effect::SetVersion { chunk, version: facts.version });
                    self.settled_at(chunk, facts.version);
                }
                self.end_operation(chunk, Status::OK, table, now, effects);
            }
            (true, true) => {
                // Emergency: whoever failed may hold anything, so the survivors move on to a version of their own.
                let new = facts.version.next();
                record.interrupted = false;
                record.operation = Operation::SetVersion;
                self.stale.insert(chunk);
                effects.push(Effect::Raise { chunk, version: new });
                self.raise_survivors(chunk, facts.version, new, effects);
            }
            (false, _) => {
                let status = if record.only_no_space { Status::NOSPACE } else { Status::NOTDONE };
                record.needs_version_increase = true;
                if !facts.is_settled() {
                    self.settle_later(chunk, now);
                }
                let Some(record) = self.records.get_mut(&chunk) else { return };
                let census = record.census();
                if census.usable() == 0 && census.invalid > 0 {
                    self.expect_rescue(chunk, now);
                }
                self.end_operation(chunk, status, table, now, effects);
            }
        }
    }

    /// The copies that were changed go on to a version that the others do not have.
    fn raise_survivors(&mut self, chunk: ChunkId, old: Version, new: Version, effects: &mut Effects) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        let mut set_aside = Vec::new();
        record.copies.retain(|copy| {
            let is_behind = matches!(copy.state.kind, CopyKind::Behind(_));
            if is_behind {
                set_aside.push(*copy);
            }
            !is_behind
        });
        self.change_versions(chunk, (old, new), None, effects);
        if let Some(record) = self.records.get_mut(&chunk) {
            record.copies.extend(set_aside);
        }
    }

    /// The chunk has this version now: what is behind is stale.
    fn settled_at(&mut self, chunk: ChunkId, version: Version) {
        let Some(record) = self.records.get_mut(&chunk) else { return };
        for copy in &mut record.copies {
            if let CopyKind::Behind(older) = copy.state.kind
                && older != version
            {
                copy.state = copy.state.with(CopyKind::WrongVersion(older));
            }
        }
    }

    fn end_operation(&mut self, chunk: ChunkId, status: Status, table: &impl Table, now: u32, effects: &mut Effects) {
        let record = self.records.entry(chunk).or_default();
        record.operation = Operation::None;
        record.interrupted = false;
        self.operating.remove(&chunk);
        if std::mem::take(&mut record.client_waits) {
            effects.push(Effect::Finished { chunk, status });
        }
        effects.push(Effect::Wake { chunk });
        self.review(chunk, table, now);
    }

    /// The answer to a deletion. A chunk that was gone already is as good.
    pub fn answer_delete(
        &mut self,
        server: ServerId,
        chunk: ChunkId,
        status: Status,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        self.servers.lower(server, |server| &mut server.deletions);
        let Some(record) = self.records.get_mut(&chunk) else { return };
        let Some(state) = record.copy(server).filter(|state| state.kind == CopyKind::Deleting) else { return };
        match status {
            Status::OK | Status::NOCHUNK => {
                record.remove(server);
                let used = table.facts(chunk).is_some_and(|facts| facts.files > 0);
                self.statistics.deleted_marked += u32::from(state.marked && used);
            }
            _ => record.set(server, state.with(CopyKind::Invalid)),
        }
        record.needs_version_increase = true;
        self.review_or_remove(chunk, table, now, effects);
    }

    /// The answer to a replication. Spec 41, 8.4 and 8.6.
    #[allow(clippy::too_many_arguments, reason = "the fields of the packet, and the world")]
    pub fn answer_replicate(
        &mut self,
        server: ServerId,
        chunk: ChunkId,
        version: Version,
        status: Status,
        table: &impl Table,
        now: u32,
        effects: &mut Effects,
    ) {
        let end = if status == Status::OK { End::Completed } else { End::Otherwise };
        let Some(replication) = self.take_replication(chunk, server, end) else {
            effects.push(Effect::Notice(Notice::UnexpectedAnswer { server, chunk }));
            return;
        };
        let Some(facts) = table.facts(chunk) else { return };
        let record = self.records.entry(chunk).or_default();
        let same = version == facts.version && replication.version == facts.version;
        match record.copy(server) {
            // The answer that the operation waited for.
            Some(state) if state.kind == CopyKind::Busy && matches!(record.operation, Operation::Replicate { .. }) => {
                match status {
                    Status::OK if same => {
                        record.set(server, state.with(CopyKind::Valid));
                        // One more than wanted is made only for its place.
                        if record.census().valid > usize::from(facts.goal) {
                            self.statistics.replicated_labels += 1;
                        } else {
                            self.statistics.replicated_undergoal += 1;
                        }
                    }
                    Status::OK => record.set(server, state.with(CopyKind::Invalid)),
                    _ => {
                        record.remove(server);
                    }
                }
                self.end_replication(chunk, effects);
            }
            // Rebalancing: the chunk was free to change meanwhile.
            None if status == Status::OK => {
                let untouched = same && facts.locked_to < now && record.operation == Operation::None;
                record.set(server, if untouched { CopyState::VALID } else { CopyState::INVALID });
                record.needs_version_increase = true;
                self.statistics.rebalanced += u32::from(untouched);
            }
            _ => {}
        }
        self.review(chunk, table, now);
    }

    /// The replication of this chunk is over, whatever it gave. Writers may go on.
    pub(super) fn end_replication(&mut self, chunk: ChunkId, effects: &mut Effects) {
        if let Some(record) = self.records.get_mut(&chunk)
            && matches!(record.operation, Operation::Replicate { .. })
        {
            record.operation = Operation::None;
            self.operating.remove(&chunk);
            effects.push(Effect::Wake { chunk });
        }
    }

    /// Strikes a replication off the list, lowers the counters of both ends, and learns of how it ended.
    pub(super) fn take_replication(
        &mut self,
        chunk: ChunkId,
        target: ServerId,
        end: End,
    ) -> Option<super::Replication> {
        let replication = self.replications.remove(&(chunk, target))?;
        self.servers.copy_ended(replication.source, target, end, self.clock);
        Some(replication)
    }
}
