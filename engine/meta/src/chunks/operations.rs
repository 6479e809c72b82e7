//! Operations on all copies of a chunk: start, answers, end. Spec 41, 4 and 5.
//!
//! ```text
//! begin -> every copy Busy -> answers -> no copy Busy: "finished"
//!   a valid copy, not interrupted   -> done, the client gets OK
//!   a valid copy, interrupted       -> version raised once more on the survivors, the client goes on waiting
//!   none, but copies of version - 1 -> these are the chunk again, SETVERSION back, the client gets NOTDONE
//!   none                            -> the client gets NOSPACE or NOTDONE
//! ```

use wire::{ChunkId, Status, Version};

use super::copies::{CopyKind, CopyState, Operation};
use super::pace::End;
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

    /// All usable copies go from version `old` to `new`. Spec 41, 4.2.
    pub fn begin_set_version(&mut self, chunk: ChunkId, old: Version, new: Version, effects: &mut Effects) {
        self.begin(chunk, Operation::SetVersion);
        self.make_busy(chunk, effects, Command::SetVersion { chunk, new, old });
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
        self.make_busy(chunk, effects, Command::Truncate { chunk, length_bytes, new, old });
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

    fn make_busy(&mut self, chunk: ChunkId, effects: &mut Effects, command: Command) {
        let record = self.records.entry(chunk).or_default();
        for copy in &mut record.copies {
            if copy.state.is_usable() {
                copy.state = copy.state.with(CopyKind::Busy);
                effects.push(Effect::Send { server: copy.server, command });
            }
        }
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
        let takes_back = record.operation == Operation::TakeBack && answered == Answered::SetVersion;
        if record.operation != answered.operation() && !takes_back {
            effects.push(Effect::Notice(Notice::UnexpectedAnswer { server, chunk }));
            if !record.is_changing() {
                return;
            }
        }
        let version = table.facts(chunk).map_or(Version(0), |facts| facts.version);
        let makes_new =
            matches!(record.operation, Operation::Create | Operation::Duplicate | Operation::DuplicateTruncate);
        record.only_no_space &= status == Status::NOSPACE;
        match status {
            Status::OK => {
                record.set(server, state.with(CopyKind::Valid));
                self.unfinished.remove(&chunk);
            }
            // Not even started: the server still has the old version, or nothing.
            Status::NOTDONE if makes_new => {
                record.remove(server);
                record.interrupted = true;
            }
            Status::NOTDONE if !takes_back => {
                let before = Version(version.0.wrapping_sub(1));
                record.set(server, state.with(CopyKind::WrongVersion(before)));
                record.interrupted = true;
            }
            // A chunk of this number is there already. It is not ours to delete.
            Status::CHUNKEXIST if makes_new => {
                record.remove(server);
                record.interrupted = true;
                self.quarantine.insert((chunk, server), Version(0));
                effects.push(Effect::Notice(Notice::Quarantined { server, chunk, version: Version(0) }));
            }
            _ => {
                record.set(server, state.with(CopyKind::Invalid));
                record.interrupted = true;
            }
        }
        self.finish_if_all_answered(chunk, table, now, effects);
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
                self.end_operation(chunk, Status::OK, table, now, effects);
            }
            (true, true) => {
                // Emergency: whoever failed may hold anything, so the survivors move on to a version of their own.
                let new = facts.version.next();
                record.interrupted = false;
                record.operation = Operation::SetVersion;
                self.stale.insert(chunk);
                effects.push(Effect::SetVersion { chunk, version: new });
                self.make_busy(chunk, effects, Command::SetVersion { chunk, new, old: facts.version });
            }
            (false, _) => {
                let status = if record.only_no_space { Status::NOSPACE } else { Status::NOTDONE };
                let in_place = matches!(record.operation, Operation::SetVersion | Operation::Truncate);
                let before = Version(facts.version.0.wrapping_sub(1));
                let mut reverted = false;
                for copy in &mut record.copies {
                    if in_place && copy.state.kind == CopyKind::WrongVersion(before) {
                        copy.state = copy.state.with(CopyKind::Valid);
                        reverted = true;
                    }
                }
                record.needs_version_increase = true;
                if reverted {
                    self.stale.insert(chunk);
                    effects.push(Effect::SetVersion { chunk, version: before });
                } else if in_place && record.copies.iter().any(|copy| copy.state.kind == CopyKind::Invalid) {
                    self.expect_rescue(chunk, now);
                }
                self.end_operation(chunk, status, table, now, effects);
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
