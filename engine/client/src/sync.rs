//! `fsync`: what was written is on the devices of every copy, not only in their servers' memory.
//!
//! A write is acknowledged when every server of the chain has it. What was written since the last `fsync` is noted with
//! the servers and their epochs (`unsynced`); then each server of each such chunk is asked to put it on its device, all
//! at the same time: one packet a copy, and no question to the master, as long as every server confirms what it took.
//! When one does not (it is away, it has started anew, the copy was moved), the master says where copies are now and
//! `unsynced::judge` decides. Bytes that no server is known to have any more are written again; if they are not kept, or
//! another session has written there since, `fsync` fails, and says so once.
//!
//! A server of MooseFS cannot be asked: there `fsync` means what it means for MooseFS's own mount. Copies that the master
//! makes later, in place of lost ones, are on their device when their server says so.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntocsGetChunkChecksum, ChunkId, CltocsSyncChunk, CltocsSyncEpoch,
    CltomaFuseGetattr, CltomaFuseReadChunk, CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd, CstoanChunkChecksum,
    CstoclSyncChunk, CstoclSyncEpoch, EPOCH_OPTION, EXTENSIONS_OPTION, Epoch, Inode, MatoclFuseGetattr,
    MatoclFuseReadChunk, MatoclFuseWriteChunk, Name, Packet, SYNC_EXTENSION, Status, Version, has_extension,
};

use crate::client::Inner;
use crate::files::File;
use crate::locations::ChunkLocation;
use crate::pool::Connection;
use crate::retry::{Direction, Failure, Tries};
use crate::unsynced::{Answer, Note, Syncing, Unsynced, Verdict, judge};
use crate::{Caller, Errno};

/// Without a packet or a NOP from the server for so long, it is gone.
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// Chunks that are put on devices at the same time.
const CHUNKS_AT_ONCE: usize = 16;
/// How often an `fsync` writes the same chunk again before it gives up.
const REWRITES_MAX: u32 = 5;
/// How often copies are compared before they count as different: somebody may be writing.
const COMPARISONS_MAX: u32 = 3;
const COMPARE_AGAIN_AFTER: Duration = Duration::from_millis(300);
/// A task that syncs early rests so long after an error.
const EARLY_REST: Duration = Duration::from_secs(1);

/// How the sync of one chunk went.
enum Synced {
    Yes,
    /// The bytes are known to be nowhere.
    Lost,
}

impl Inner {
    /// Everything that was written to the file is on the devices, as far as the servers can be asked for that.
    /// Errors: as `flush_file`; EIO when acknowledged bytes are lost, and the like when a copy can be reached by nobody.
    pub(crate) async fn sync_file(self: &Rc<Self>, file: &Rc<File>) -> Result<(), Errno> {
        let _ = self.flush_file(file).await; // what was lost is told to the caller, and the rest is synced
        for _ in 0..REWRITES_MAX {
            let lost = self.sync_notes(file.inode, &file.unsynced).await?;
            if lost.is_empty() {
                return Ok(());
            }
            for index in lost {
                self.mend(file, index).await?;
            }
        }
        tracing::error!("inode {}: chunkservers start anew again and again; fsync gives up", file.inode);
        Err(Errno::EIO)
    }

    /// Syncs all that is noted. Gives the chunks whose bytes are lost.
    async fn sync_notes(&self, inode: Inode, unsynced: &Unsynced) -> Result<Vec<u32>, Errno> {
        let mut lost = Vec::new();
        for some in unsynced.notes().chunks(CHUNKS_AT_ONCE) {
            let outcomes = join_all(some.iter().map(|(index, note)| self.sync_chunk(inode, *index, note))).await;
            let mut error = None;
            for ((index, note), outcome) in some.iter().zip(outcomes) {
                match outcome {
                    Ok(Synced::Yes) => unsynced.is_synced(*index, note.last),
                    Ok(Synced::Lost) => lost.push(*index),
                    Err(errno) => error = Some(errno),
                }
            }
            if let Some(errno) = error {
                return Err(errno);
            }
        }
        Ok(lost)
    }

    /// Bytes of a chunk are lost: writes them again. Errors: EIO if that cannot be done or must not be.
    async fn mend(self: &Rc<Self>, file: &Rc<File>, index: u32) -> Result<(), Errno> {
        let inode = file.inode;
        let Some(note) = file.unsynced.note(index) else { return Ok(()) };
        let refusal = if !note.is_kept {
            Some("they are not in memory any more")
        } else if note.is_foreign || (note.is_unwatched && !self.nobody_else_wrote(file).await?) {
            Some("another client has written to the file since")
        } else {
            None
        };
        if let Some(why) = refusal {
            tracing::error!(
                "inode {inode} chunk {index}: the chunkservers have lost bytes that they had acknowledged and not synced, \
                 and {why}: fsync fails"
            );
            drop(file.unsynced.take(index));
            file.losses.add(Errno::EIO);
            file.bytes_changed(0, u64::MAX);
            return Err(Errno::EIO);
        }
        tracing::warn!(
            "inode {inode} chunk {index}: the chunkservers have lost bytes that they had acknowledged; writing them again"
        );
        self.write_again(file, index).await
    }

    /// As far as the file's time of modification can tell.
    async fn nobody_else_wrote(&self, file: &File) -> Result<bool, Errno> {
        let (inode, caller) = (file.inode, Caller::root());
        let answer: MatoclFuseGetattr =
            self.ask(|msgid| CltomaFuseGetattr { msgid, inode, opened: 1, uid: caller.uid, gid: 0 }).await?;
        Ok(answer.attr.mtime.seconds() <= file.unsynced.touched.get().seconds().saturating_add(1))
    }

    /// All copies of one chunk.
    async fn sync_chunk(&self, inode: Inode, index: u32, note: &Note) -> Result<Synced, Errno> {
        if note.is_of_stock_servers() {
            return Ok(Synced::Yes);
        }
        // First as if nothing had happened.
        let noted = note.receivers.iter().map(|(address, receiver)| (*address, receiver.chunkid, receiver.version));
        let answers = self.ask_all(noted).await;
        if note.is_confirmed(&answers) {
            return Ok(Synced::Yes);
        }
        let mut tries = Tries::new(Direction::Write, &self.settings);
        let (mut compared, mut granted) = (0, note.version);
        loop {
            let listed = match self.where_is(inode, index).await? {
                Ok(listed) if listed.is_hole() => return Ok(Synced::Yes), // cut off since
                Ok(listed) => listed,
                Err(status) => {
                    self.ring.sleep(tries.after(self.ring.now(), Failure::Master(status))?).await;
                    continue;
                }
            };
            if listed.servers.is_empty() {
                self.ring.sleep(tries.after(self.ring.now(), Failure::NoServers)?).await;
                continue;
            }
            let there = listed.servers.iter().map(|server| (server.address(), listed.chunkid, listed.version));
            let is_listed = |address: &SocketAddrV4| listed.servers.iter().any(|server| server.address() == *address);
            let others = note.receivers.iter().filter(|(address, _)| !is_listed(address));
            let others = others.map(|(address, receiver)| (*address, receiver.chunkid, receiver.version));
            let answers = self.ask_all(there.chain(others)).await;
            let verdict = judge(note, &listed, granted, &answers);
            tracing::debug!("inode {inode} chunk {index}: {verdict:?} by {answers:?}");
            let failure = match verdict {
                Verdict::Safe => return Ok(Synced::Yes),
                Verdict::Lost => return Ok(Synced::Lost),
                Verdict::Wait(failure) => failure,
                Verdict::Fence => match self.raise_version(inode, index).await? {
                    Ok(version) if version > granted => {
                        granted = version;
                        continue;
                    }
                    Ok(_) => Failure::NoServers, // the master does not miss the server yet
                    Err(status) => Failure::Master(status),
                },
                Verdict::Compare { witness, others } => match self.are_equal(&listed, witness, &others).await {
                    Ok(true) => return Ok(Synced::Yes),
                    Ok(false) => {
                        compared += 1;
                        if compared == COMPARISONS_MAX {
                            return Ok(Synced::Lost);
                        }
                        self.ring.sleep(COMPARE_AGAIN_AFTER).await;
                        continue;
                    }
                    Err(failure) => failure,
                },
            };
            tracing::debug!("inode {inode} chunk {index}: cannot be synced yet: {failure:?}");
            self.ring.sleep(tries.after(self.ring.now(), failure)?).await;
        }
    }

    async fn where_is(&self, inode: Inode, index: u32) -> Result<Result<ChunkLocation, Status>, Errno> {
        let answer: Result<MatoclFuseReadChunk, Status> =
            self.ask_status(|msgid| CltomaFuseReadChunk { msgid, inode, index, chunkopflags: Some(0) }).await?;
        Ok(answer.map(|answer| ChunkLocation::new(answer.chunkid, answer.version, &answer.locations, answer.ticket)))
    }

    /// A permission to write that is given back unused: the master raises the version if a copy is missing, so that the
    /// one that is away never passes for a good one. Gives the version.
    async fn raise_version(&self, inode: Inode, index: u32) -> Result<Result<Version, Status>, Errno> {
        let grant: Result<MatoclFuseWriteChunk, Status> =
            self.ask_status(|msgid| CltomaFuseWriteChunk { msgid, inode, index, chunkopflags: Some(0) }).await?;
        let grant = match grant {
            Ok(grant) => grant,
            Err(status) => return Ok(Err(status)),
        };
        let chunkid = grant.chunkid;
        let end =
            |msgid| CltomaFuseWriteChunkEnd { msgid, chunkid, inode, index, length: 0, chunkopflags: 0, region: None };
        self.ask_done(end).await?;
        Ok(Ok(grant.version))
    }

    /// Whether copies have the bytes that the witness has, by the sums of their tables.
    async fn are_equal(
        &self,
        listed: &ChunkLocation,
        witness: SocketAddrV4,
        others: &[SocketAddrV4],
    ) -> Result<bool, Failure> {
        let (chunkid, version) = (listed.chunkid, listed.version);
        let asked = std::iter::once(witness).chain(others.iter().copied());
        let sums = join_all(asked.map(|address| {
            self.on_connection(address, async move |connection| {
                let question = AntocsGetChunkChecksum { chunkid, version };
                let answer: CstoanChunkChecksum = self.exchange(connection, question).await?;
                Ok(answer.checksum)
            })
        }));
        let sums = sums.await.into_iter().collect::<Result<Vec<_>, Failure>>()?;
        Ok(sums.windows(2).all(|pair| pair[0] == pair[1]))
    }

    // --- servers

    /// What each server of the chunk says about syncing. Asked once, before it gets data, and then remembered.
    pub(crate) async fn ask_before_data(&self, location: &ChunkLocation) -> Vec<Option<Syncing>> {
        if !self.settings.durable_fsync {
            return Vec::new();
        }
        let known: Vec<_> = location.servers.iter().map(|server| self.pool.syncing(server.address())).collect();
        if known.iter().all(Option::is_some) {
            return known;
        }
        let asked = location.servers.iter().map(|server| self.syncing_of(server.address()));
        join_all(asked).await.into_iter().map(Result::ok).collect()
    }

    async fn syncing_of(&self, address: SocketAddrV4) -> Result<Syncing, Failure> {
        if let Some(known) = self.pool.syncing(address) {
            return Ok(known);
        }
        let asked = self.on_connection(address, async |connection| {
            match self.ask_option(connection, EPOCH_OPTION).await {
                Ok(value) if let Some(epoch) = Epoch::from_value(&value) => return Ok(Syncing::Epoch(epoch)),
                Ok(_) => {}
                // Servers of long ago hang up on the question. One that is gone fails again, and is found out.
                Err(Failure::Broken) if !connection.is_used => return Ok(Syncing::No),
                Err(failure) => return Err(failure),
            }
            let extensions = self.ask_option(connection, EXTENSIONS_OPTION).await?;
            Ok(if has_extension(&extensions, SYNC_EXTENSION) { Syncing::Plain } else { Syncing::No })
        });
        let syncing = asked.await?;
        self.pool.note_syncing(address, syncing);
        Ok(syncing)
    }

    async fn ask_option(&self, connection: &mut Connection, option: &[u8]) -> Result<Vec<u8>, Failure> {
        let option = Name::new(option).expect("a short name");
        let answer: AntoanConfigValue = self.exchange(connection, AntoanGetConfig { msgid: 1, option }).await?;
        Ok(answer.value.as_bytes().to_vec())
    }

    /// Asks servers to sync chunks, all at the same time.
    async fn ask_all(
        &self,
        copies: impl Iterator<Item = (SocketAddrV4, ChunkId, Version)>,
    ) -> BTreeMap<SocketAddrV4, Answer> {
        let asked = copies.map(|(address, chunkid, version)| async move {
            let answer = self.sync_copy(address, chunkid, version).await;
            (address, answer.unwrap_or_else(Answer::Away))
        });
        join_all(asked).await.into_iter().collect()
    }

    async fn sync_copy(&self, address: SocketAddrV4, chunkid: ChunkId, version: Version) -> Result<Answer, Failure> {
        let (status, epoch) = match self.syncing_of(address).await? {
            Syncing::No => (Status::OK, None),
            Syncing::Plain => {
                let question = CltocsSyncChunk { chunkid, version };
                let answer: CstoclSyncChunk = self
                    .on_connection(address, async |connection| self.exchange(connection, question.clone()).await)
                    .await?;
                (answer.status, None)
            }
            Syncing::Epoch(_) => {
                let question = CltocsSyncEpoch { chunkid, version };
                let answer: CstoclSyncEpoch = self
                    .on_connection(address, async |connection| self.exchange(connection, question.clone()).await)
                    .await?;
                let epoch = Epoch(answer.epoch);
                self.pool.note_syncing(address, Syncing::Epoch(epoch));
                (answer.status, Some(epoch))
            }
        };
        Ok(if status == Status::OK { Answer::Synced { epoch } } else { Answer::Refused { status, epoch } })
    }

    /// Does something on a connection of its own. A parked one may be dead: that costs no try.
    async fn on_connection<T>(
        &self,
        address: SocketAddrV4,
        act: impl AsyncFn(&mut Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        loop {
            let connection = self.pool.connect(&self.ring, address, self.bind(), CONNECT_PATIENCE).await;
            let mut connection = connection.map_err(|_| {
                self.pool.distrust(self.ring.now(), address);
                Failure::CannotConnect
            })?;
            match act(&mut connection).await {
                Ok(answer) => {
                    self.pool.park(self.ring.now(), connection);
                    return Ok(answer);
                }
                Err(Failure::Broken) if connection.is_used => self.pool.forget_syncing(address),
                Err(failure) => {
                    self.pool.forget_syncing(address);
                    return Err(failure);
                }
            }
        }
    }

    /// One question, one answer, on a connection that nobody else uses.
    async fn exchange<Question: Packet, Answer: Packet>(
        &self,
        connection: &mut Connection,
        question: Question,
    ) -> Result<Answer, Failure> {
        let broken = |_| Failure::Broken;
        connection.stream.send_all(question.encode()).await.0.map_err(|_| Failure::Broken)?;
        let header = connection.next_header(&self.ring, SILENCE, true).await.map_err(broken)?;
        if header.kind != Answer::TYPE || header.length > ANSWER_BYTES_MAX {
            return Err(Failure::Broken);
        }
        let length = header.length as usize;
        let payload = connection.head(&self.ring, SILENCE, length).await.map_err(broken)?;
        let answer = Answer::decode(payload).map_err(|_| Failure::Broken)?;
        connection.reader.consume(length);
        Ok(answer)
    }

    // --- before anybody asks

    /// Kept bytes take the room of new ones: syncs in the background until half of the write cache is free, so that
    /// writers need not wait. The bytes of closed files go first, without a sync: their notes stay, so that an `fsync`
    /// later knows whether they are safe, and fails if not.
    pub(crate) fn sync_early(self: &Rc<Self>) {
        if !self.write_budget.is_scarce() || self.syncs_early.get() {
            return;
        }
        self.files.drop_closed_bytes(|| self.write_budget.is_ample());
        if self.write_budget.is_ample() {
            return;
        }
        self.syncs_early.set(true);
        let inner = self.clone();
        drop(self.ring.spawn(async move {
            while !inner.write_budget.is_ample() {
                let keeping = inner.files.all().into_iter().find(|file| file.unsynced.keeps_bytes());
                let Some(file) = keeping else { break };
                if !inner.sync_in_background(&file).await {
                    inner.ring.sleep(EARLY_REST).await;
                }
            }
            inner.syncs_early.set(false);
        }));
    }

    /// False if it failed; `fsync` will find out again.
    async fn sync_in_background(self: &Rc<Self>, file: &Rc<File>) -> bool {
        let synced = async {
            for index in self.sync_notes(file.inode, &file.unsynced).await? {
                self.mend(file, index).await?;
            }
            Ok::<(), Errno>(())
        };
        synced
            .await
            .inspect_err(|errno| tracing::debug!("inode {}: cannot be synced early: {errno}", file.inode))
            .is_ok()
    }

    /// Too many files were closed to remember all that is unsynced: syncs the first ones.
    pub(crate) fn sync_surplus(self: &Rc<Self>) {
        while let Some((inode, unsynced)) = self.files.next_to_sync() {
            let inner = self.clone();
            drop(self.ring.spawn(async move {
                match inner.sync_notes(inode, &unsynced).await {
                    Ok(lost) if lost.is_empty() => {}
                    Ok(_) => tracing::error!(
                        "inode {inode}: bytes that chunkservers had acknowledged are lost; the file is closed"
                    ),
                    Err(Errno::EBADF) => {} // removed since
                    Err(errno) => tracing::error!("inode {inode}: cannot be synced after its end: {errno}"),
                }
            }));
        }
    }
}

/// The longest answer that is expected here: a configuration value of 255 bytes.
const ANSWER_BYTES_MAX: u32 = 1024;
