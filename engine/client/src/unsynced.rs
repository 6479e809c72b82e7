//! What servers acknowledged and may still lose: which chunks, who took the bytes, and the bytes themselves.
//!
//! A server acknowledges a write when its system has it; a power cut takes it back. Each server has an **epoch**, a
//! random word that changes whenever it may have lost something ([`wire::Epoch`]). So a write is noted with the epoch
//! that each server had before it, and an `fsync` believes a server only if that epoch is still the same after the
//! sync. A note keeps the epochs of the earliest write that is not synced: a later answer never replaces them.
//!
//! The bytes are kept with the note, as long as the write cache has room, so that they can be written once more when
//! every server that had them has started anew. Pure, but for the shares of the cache's memory; `sync` asks the servers.
//!
//! ```text
//!                       listed by the master now
//!   took the write      yes                               no
//!   same epoch          good                              has it on its device, or no copy: good
//!   another epoch       compare with a good one           its copy must be older than the listed ones: fence
//!   not asked, away     wait for it                       fence
//!   never               good if all who took it are       -
//!                       in their epochs; else compare
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use wire::limits::BLOCK_BYTES;
use wire::{ChunkId, Epoch, Status, Time, Version};

use crate::locations::ChunkLocation;
use crate::retry::Failure;
use crate::write::Block;

/// What a server can do for an `fsync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Syncing {
    /// It puts chunks on its device and says in which epoch.
    Epoch(Epoch),
    /// It puts chunks on its device and has no epochs: a server of ours of former days.
    Plain,
    /// It cannot be asked: a server of MooseFS.
    No,
}

/// A server that took some of the writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receiver {
    /// What it said before the first of them. `None`: it could not be asked.
    pub(crate) before: Option<Syncing>,
    /// Where the last of them went.
    pub(crate) chunkid: ChunkId,
    pub(crate) version: Version,
    /// It took all of them.
    pub(crate) has_all: bool,
}

/// Who took what was written to one chunk and not synced since.
#[derive(Clone, Debug, Default)]
pub(crate) struct Note {
    pub(crate) receivers: BTreeMap<SocketAddrV4, Receiver>,
    /// Number of the last of these writes: what is written while an `fsync` runs is left for the next one.
    pub(crate) last: u64,
    /// Where that went.
    pub(crate) version: Version,
    /// Another session wrote to the chunk, or cut the file: our bytes may not be the newest.
    pub(crate) is_foreign: bool,
    /// The master may have told nobody about other sessions' writes: the connection was lost, or the file closed.
    pub(crate) is_unwatched: bool,
    /// All of the bytes are kept.
    pub(crate) is_kept: bool,
}

#[derive(Default)]
struct Chunk {
    note: Note,
    /// By block, oldest first, with the number of the write.
    kept: BTreeMap<u16, Vec<(u64, Block)>>,
}

/// Of one file, open or closed.
#[derive(Default)]
pub(crate) struct Unsynced {
    chunks: RefCell<BTreeMap<u32, Chunk>>,
    last: Cell<u64>,
    /// When a write of ours last reached the master, by its clock.
    pub(crate) touched: Cell<Time>,
}

impl Unsynced {
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.borrow().is_empty()
    }

    /// The servers of `location` acknowledged a block. `before`: what each of them said before the block was sent.
    pub(crate) fn add(&self, index: u32, location: &ChunkLocation, before: &[Option<Syncing>], block: Block) {
        self.last.set(self.last.get() + 1);
        let number = self.last.get();
        let mut chunks = self.chunks.borrow_mut();
        let chunk = chunks
            .entry(index)
            .or_insert_with(|| Chunk { note: Note { is_kept: true, ..Note::default() }, kept: BTreeMap::new() });
        chunk.note.add(number, location, before);
        if chunk.note.is_kept {
            let of_block = chunk.kept.entry(block.number()).or_default();
            of_block.retain(|(_, older)| !block.covers(older));
            of_block.push((number, block.shrunk()));
        }
    }

    /// Chunks with notes, in ascending order.
    pub(crate) fn notes(&self) -> Vec<(u32, Note)> {
        self.chunks.borrow().iter().map(|(index, chunk)| (*index, chunk.note.clone())).collect()
    }

    pub(crate) fn note(&self, index: u32) -> Option<Note> {
        self.chunks.borrow().get(&index).map(|chunk| chunk.note.clone())
    }

    /// The devices of all copies have the chunk as it was with write number `last`.
    pub(crate) fn is_synced(&self, index: u32, last: u64) {
        let mut chunks = self.chunks.borrow_mut();
        let Some(chunk) = chunks.get_mut(&index) else { return };
        if chunk.note.last <= last {
            chunks.remove(&index);
            return;
        }
        chunk.kept.retain(|_, of_block| {
            of_block.retain(|(number, _)| *number > last);
            !of_block.is_empty()
        });
    }

    /// Takes a chunk's note away, and the bytes that were kept, oldest first in each block.
    pub(crate) fn take(&self, index: u32) -> Vec<Block> {
        let chunk = self.chunks.borrow_mut().remove(&index).unwrap_or_default();
        chunk.kept.into_values().flatten().map(|(_, block)| block).collect()
    }

    /// Gives the memory of kept bytes back; the notes stay.
    pub(crate) fn drop_bytes(&self) {
        for chunk in self.chunks.borrow_mut().values_mut() {
            chunk.note.is_kept = false;
            chunk.kept.clear();
        }
    }

    pub(crate) fn keeps_bytes(&self) -> bool {
        self.chunks.borrow().values().any(|chunk| !chunk.kept.is_empty())
    }

    /// Another session wrote to this chunk; `to_the_end`: and cut the file there, or changed its length.
    pub(crate) fn foreign_change(&self, index: u32, to_the_end: bool) {
        for (at, chunk) in self.chunks.borrow_mut().range_mut(index..) {
            if *at == index || to_the_end {
                chunk.note.is_foreign = true;
            }
        }
    }

    /// Other sessions' writes may have gone unnoticed.
    pub(crate) fn unwatch(&self) {
        self.chunks.borrow_mut().values_mut().for_each(|chunk| chunk.note.is_unwatched = true);
    }

    /// This client cut the file: what it had written behind `length` is never to come back.
    pub(crate) fn cut(&self, index: u32, length_in_chunk: u32) {
        for (at, chunk) in self.chunks.borrow_mut().range_mut(index..) {
            let length = if *at == index { length_in_chunk } else { 0 };
            chunk.kept.retain(|number, of_block| {
                let in_block = length.saturating_sub(u32::from(*number) * BLOCK_BYTES);
                of_block.retain_mut(|(_, block)| block.cut(in_block));
                !of_block.is_empty()
            });
        }
    }
}

impl Note {
    fn add(&mut self, number: u64, location: &ChunkLocation, before: &[Option<Syncing>]) {
        let is_first = self.receivers.is_empty();
        let is_listed = |address: &SocketAddrV4| location.servers.iter().any(|server| server.address() == *address);
        for (address, receiver) in &mut self.receivers {
            receiver.has_all &= is_listed(address);
        }
        for (server, before) in location.servers.iter().zip(before) {
            let (chunkid, version) = (location.chunkid, location.version);
            let receiver = self.receivers.entry(server.address());
            let receiver = receiver.or_insert(Receiver { before: *before, chunkid, version, has_all: is_first });
            (receiver.chunkid, receiver.version) = (chunkid, version);
        }
        (self.last, self.version) = (number, location.version);
    }

    /// Every server that took the writes has them on its device.
    pub(crate) fn is_confirmed(&self, answers: &BTreeMap<SocketAddrV4, Answer>) -> bool {
        self.receivers.iter().all(|(address, receiver)| {
            let answer = answers.get(address);
            receiver.is_in_its_epoch(answer) && answer.is_some_and(|answer| answer.is_synced())
        })
    }

    /// Nobody who took the writes can be asked: an `fsync` then means what MooseFS means by it.
    pub(crate) fn is_of_stock_servers(&self) -> bool {
        self.receivers.values().all(|receiver| receiver.before == Some(Syncing::No))
    }
}

/// What a server answers to SYNC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Its device has its copy. `epoch`: its present one, if it has epochs.
    Synced {
        epoch: Option<Epoch>,
    },
    Refused {
        status: Status,
        epoch: Option<Epoch>,
    },
    /// It cannot be talked to.
    Away(Failure),
}

impl Answer {
    fn epoch(self) -> Option<Epoch> {
        match self {
            Answer::Synced { epoch } | Answer::Refused { epoch, .. } => epoch,
            Answer::Away(_) => None,
        }
    }

    fn is_synced(self) -> bool {
        matches!(self, Answer::Synced { .. })
    }
}

impl Receiver {
    /// It has lost nothing of what it acknowledged, as far as it can tell.
    fn is_in_its_epoch(&self, answer: Option<&Answer>) -> bool {
        let Some(answer) = answer.filter(|answer| !matches!(answer, Answer::Away(_))) else { return false };
        match (self.before, answer.epoch()) {
            // What was durable when it was acknowledged outlives an epoch, if the server was not told otherwise since.
            (Some(Syncing::Epoch(before)), Some(now)) => before == now || (before.is_durable() && now.is_durable()),
            (Some(Syncing::Plain | Syncing::No), None) => true,
            _ => false,
        }
    }

    fn has_an_epoch(&self) -> bool {
        matches!(self.before, Some(Syncing::Epoch(_)))
    }
}

/// What the answers mean for an `fsync`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// All copies that count have all of the bytes on their devices.
    Safe,
    /// These copies are good if they are equal to the witness's.
    Compare { witness: SocketAddrV4, others: Vec<SocketAddrV4> },
    /// A server that is away may come back with a copy that passes for a good one: the master must raise the version.
    Fence,
    /// A copy cannot be synced now.
    Wait(Failure),
    /// Nobody is known to have all of the bytes.
    Lost,
}

/// Pure. `answers`: of all servers of `listed` about the chunk that is there now, and of the other receivers about what
/// they took. `granted`: the highest version with which the master gave a permission to write: it serves no older copy
/// ever again, while a version that is only listed may be one that it has not settled yet.
pub(crate) fn judge(
    note: &Note,
    listed: &ChunkLocation,
    granted: Version,
    answers: &BTreeMap<SocketAddrV4, Answer>,
) -> Verdict {
    let addresses = || listed.servers.iter().map(|server| server.address());
    for address in addresses() {
        match answers.get(&address) {
            Some(Answer::Synced { .. }) => {}
            Some(Answer::Refused { status, .. }) => return Verdict::Wait(Failure::Server(*status)),
            Some(Answer::Away(failure)) => return Verdict::Wait(*failure),
            None => return Verdict::Wait(Failure::Broken),
        }
    }
    let keeps_its_word =
        |address: &SocketAddrV4| note.receivers.get(address).is_some_and(|r| r.is_in_its_epoch(answers.get(address)));
    let all_keep_their_word = note.receivers.keys().all(keeps_its_word);
    let took_all = |address: &SocketAddrV4| note.receivers.get(address).is_some_and(|receiver| receiver.has_all);
    let is_good = |address: &SocketAddrV4| all_keep_their_word || (keeps_its_word(address) && took_all(address));
    let doubtful: Vec<SocketAddrV4> = addresses().filter(|address| !is_good(address)).collect();
    let some_have_epochs = note.receivers.values().any(Receiver::has_an_epoch);
    let can_testify = |address: &SocketAddrV4| {
        is_good(address) && (!some_have_epochs || note.receivers.get(address).is_some_and(Receiver::has_an_epoch))
    };
    let witness = addresses().find(can_testify);
    if !all_keep_their_word && witness.is_none() {
        return Verdict::Lost;
    }
    let is_listed = |address: &SocketAddrV4| addresses().any(|listed| listed == *address);
    let is_harmless = |address: &SocketAddrV4, receiver: &Receiver| {
        let is_outdated = receiver.chunkid != listed.chunkid || receiver.version < granted;
        let no_chunk = |answer: &Answer| matches!(answer, Answer::Refused { status: Status::NOCHUNK, .. });
        let has_it = |answer: &Answer| answer.is_synced() || no_chunk(answer);
        is_outdated || (keeps_its_word(address) && answers.get(address).is_some_and(has_it))
    };
    let absent = || note.receivers.iter().filter(|(address, _)| !is_listed(address));
    if absent().any(|(address, receiver)| !is_harmless(address, receiver)) {
        return Verdict::Fence;
    }
    match witness {
        Some(witness) if !doubtful.is_empty() => Verdict::Compare { witness, others: doubtful },
        _ => Verdict::Safe,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use wire::VersionWord;

    use super::*;
    use crate::locations::Server;

    const OLD: Epoch = Epoch(10);
    const NEW: Epoch = Epoch(20);
    const SYNCED: Answer = Answer::Synced { epoch: Some(OLD) };
    const STARTED_ANEW: Answer = Answer::Synced { epoch: Some(NEW) };
    const AWAY: Answer = Answer::Away(Failure::CannotConnect);

    fn address(server: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, server), 9422)
    }

    fn location(version: u32, servers: &[u8]) -> ChunkLocation {
        let server = |server: &u8| {
            let ip = *address(*server).ip();
            Server { ip, port: 9422, version: VersionWord::OURS, labels: 0 }
        };
        ChunkLocation {
            chunkid: ChunkId(7),
            version: Version(version),
            servers: servers.iter().map(server).collect(),
            ticket: None,
        }
    }

    /// Writes to these servers, one after the other, each server in the epoch `OLD`.
    fn note(writes: &[(u32, &[u8])]) -> Note {
        let mut note = Note::default();
        for (number, (version, servers)) in writes.iter().enumerate() {
            let before = vec![Some(Syncing::Epoch(OLD)); servers.len()];
            note.add(number as u64 + 1, &location(*version, servers), &before);
        }
        note
    }

    /// The version that is listed was granted.
    fn check(writes: &[(u32, &[u8])], listed: (u32, &[u8]), answers: &[(u8, Answer)], expected: Verdict) {
        let answers = answers.iter().map(|(server, answer)| (address(*server), *answer)).collect();
        let judged = judge(&note(writes), &location(listed.0, listed.1), Version(listed.0), &answers);
        assert_eq!(judged, expected, "{writes:?} {answers:?}");
    }

    fn compare(witness: u8, others: &[u8]) -> Verdict {
        Verdict::Compare { witness: address(witness), others: others.iter().map(|other| address(*other)).collect() }
    }

    #[test]
    fn who_is_in_its_epoch_is_believed_and_who_is_not_is_compared_or_fenced() {
        let refused = |status| Answer::Refused { status, epoch: Some(OLD) };
        let both: &[(u32, &[u8])] = &[(3, &[1, 2])];
        check(both, (3, &[1, 2]), &[(1, SYNCED), (2, SYNCED)], Verdict::Safe);
        check(both, (4, &[1, 2]), &[(1, SYNCED), (2, SYNCED)], Verdict::Safe);
        check(both, (3, &[1, 2]), &[(1, SYNCED), (2, STARTED_ANEW)], compare(1, &[2]));
        check(both, (3, &[1, 2]), &[(1, STARTED_ANEW), (2, STARTED_ANEW)], Verdict::Lost);
        // Away, and the master does not know it yet; then it knows, and the copy must not come back as a good one.
        check(both, (3, &[1, 2]), &[(1, SYNCED), (2, AWAY)], Verdict::Wait(Failure::CannotConnect));
        check(both, (3, &[1]), &[(1, SYNCED), (2, AWAY)], Verdict::Fence);
        check(both, (3, &[1]), &[(1, SYNCED), (2, STARTED_ANEW)], Verdict::Fence);
        check(both, (4, &[1]), &[(1, SYNCED), (2, AWAY)], Verdict::Safe);
        check(both, (3, &[1]), &[(1, SYNCED), (2, SYNCED)], Verdict::Safe);
        check(both, (3, &[1]), &[(1, SYNCED), (2, refused(Status::NOCHUNK))], Verdict::Safe);
        check(both, (3, &[1]), &[(1, SYNCED), (2, refused(Status::IO))], Verdict::Fence);
        check(both, (3, &[2]), &[(1, SYNCED), (2, STARTED_ANEW)], Verdict::Lost);
    }

    #[test]
    fn a_copy_that_was_made_later_is_good_if_nobody_lost_anything_and_compared_otherwise() {
        let gone = Answer::Refused { status: Status::NOCHUNK, epoch: Some(OLD) };
        let gone_and_new = Answer::Refused { status: Status::NOCHUNK, epoch: Some(NEW) };
        let both: &[(u32, &[u8])] = &[(3, &[1, 2])];
        check(both, (3, &[1, 3]), &[(1, SYNCED), (2, gone), (3, STARTED_ANEW)], Verdict::Safe);
        check(both, (3, &[3, 4]), &[(1, gone), (2, gone), (3, SYNCED), (4, SYNCED)], Verdict::Safe);
        check(both, (4, &[1, 3]), &[(1, SYNCED), (2, AWAY), (3, SYNCED)], compare(1, &[3]));
        check(both, (4, &[3]), &[(1, gone_and_new), (2, AWAY), (3, SYNCED)], Verdict::Lost);
    }

    #[test]
    fn who_missed_a_write_is_no_witness_unless_nobody_lost_anything() {
        let writes: &[(u32, &[u8])] = &[(3, &[1, 2]), (4, &[1])];
        check(writes, (4, &[1, 2]), &[(1, SYNCED), (2, SYNCED)], Verdict::Safe);
        check(writes, (4, &[1, 2]), &[(1, STARTED_ANEW), (2, SYNCED)], Verdict::Lost);
        check(writes, (4, &[2]), &[(1, AWAY), (2, SYNCED)], Verdict::Lost);
    }

    #[test]
    fn a_version_that_nobody_was_granted_fences_nobody() {
        let answers: BTreeMap<_, _> = [(1, SYNCED), (2, AWAY)].map(|(server, answer)| (address(server), answer)).into();
        let judged = |granted| judge(&note(&[(3, &[1, 2])]), &location(4, &[1]), Version(granted), &answers);
        assert_eq!(judged(3), Verdict::Fence, "the master may yet serve the copy that is away");
        assert_eq!(judged(4), Verdict::Safe);
    }

    #[test]
    fn the_epoch_of_the_earliest_unsynced_write_counts() {
        let mut note = note(&[(3, &[1, 2])]);
        note.add(2, &location(3, &[1, 2]), &[Some(Syncing::Epoch(NEW)), Some(Syncing::Epoch(OLD))]);
        let answers = [(1, STARTED_ANEW), (2, SYNCED)].map(|(server, answer)| (address(server), answer)).into();
        assert!(!note.is_confirmed(&answers));
        assert_eq!(judge(&note, &location(3, &[1, 2]), Version(3), &answers), compare(2, &[1]));
    }

    #[test]
    fn beside_servers_with_epochs_one_of_moosefs_is_no_witness() {
        let mut note = Note::default();
        note.add(1, &location(3, &[1, 2]), &[Some(Syncing::Epoch(OLD)), Some(Syncing::No)]);
        let judged = |first: Answer| {
            let answers = [(address(1), first), (address(2), Answer::Synced { epoch: None })].into();
            judge(&note, &location(3, &[1, 2]), Version(3), &answers)
        };
        assert_eq!(judged(SYNCED), Verdict::Safe);
        assert_eq!(judged(STARTED_ANEW), Verdict::Lost);
    }
}
