//! `fsync`: what was written is on the devices of every copy, not only in their servers' memory.
//!
//! A write is acknowledged when every server of the chain has it. Which chunks were written since the last `fsync`
//! is noted; then each server of each such chunk is asked to put it on its device, all at the same time. A server of
//! MooseFS cannot be asked: there `fsync` means what it means for MooseFS's own mount. Copies that the master makes
//! later, in place of lost ones, are on their device when their server says so.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use futures_util::future::join_all;
use wire::{
    AntoanConfigValue, AntoanGetConfig, CltocsSyncChunk, CltomaFuseReadChunk, CstoclSyncChunk, EXTENSIONS_OPTION,
    MatoclFuseReadChunk, Name, Packet, SYNC_EXTENSION, Status, has_extension,
};

use crate::Errno;
use crate::client::Inner;
use crate::files::File;
use crate::locations::ChunkLocation;
use crate::pool::Connection;
use crate::retry::{Direction, Failure, Tries};

/// Without a packet or a NOP from the server for so long, it is gone.
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// Chunks that are put on devices at the same time.
const CHUNKS_AT_ONCE: usize = 16;

impl Inner {
    /// Everything that was written to the file is on the devices, as far as the servers can be asked for that.
    /// Errors: as `flush_file`; EIO and the like when a copy can be reached by nobody.
    pub(crate) async fn sync_file(&self, file: &File) -> Result<(), Errno> {
        self.flush_file(file).await?;
        if !self.settings.durable_fsync {
            return Ok(());
        }
        let chunks: Vec<(u32, UnsyncedChunk)> = file.unsynced().into_iter().collect();
        for some in chunks.chunks(CHUNKS_AT_ONCE) {
            let outcomes = join_all(some.iter().map(|(index, chunk)| async {
                self.sync_chunk(file, *index, chunk.location.clone()).await?;
                file.is_synced(*index, chunk.noted);
                Ok(())
            }));
            outcomes.await.into_iter().collect::<Result<(), Errno>>()?;
        }
        Ok(())
    }

    /// All copies of one chunk. A copy that moved is looked for where the master says that it is now.
    async fn sync_chunk(&self, file: &File, index: u32, mut location: ChunkLocation) -> Result<(), Errno> {
        let mut tries = Tries::new(Direction::Write, &self.settings);
        loop {
            let servers = location.servers.clone();
            let copies = servers.iter().map(|server| self.sync_copy(server.address(), &location));
            let failures: Vec<Failure> = join_all(copies).await.into_iter().filter_map(Result::err).collect();
            let Some(failure) = failures.first() else { return Ok(()) };
            tracing::debug!("inode {} chunk {index}: cannot be synced yet: {failure:?}", file.inode);
            self.ring.sleep(tries.after(*failure)?).await;
            let chunkid = location.chunkid;
            match self.where_is(file, index).await? {
                Ok(found) if found.chunkid != chunkid => return Ok(()), // cut off, or replaced: another write's matter
                Ok(found) if found.servers.is_empty() => location.servers = servers,
                Ok(found) => location = found,
                Err(status) => {
                    let pause = tries.after(Failure::Master(status))?;
                    self.ring.sleep(pause).await;
                }
            }
        }
    }

    async fn where_is(&self, file: &File, index: u32) -> Result<Result<ChunkLocation, Status>, Errno> {
        let answer: Result<MatoclFuseReadChunk, Status> = self
            .ask_status(|msgid| CltomaFuseReadChunk { msgid, inode: file.inode, index, chunkopflags: Some(0) })
            .await?;
        Ok(answer.map(|answer| ChunkLocation::new(answer.chunkid, answer.version, &answer.locations)))
    }

    async fn sync_copy(&self, address: SocketAddrV4, location: &ChunkLocation) -> Result<(), Failure> {
        // A parked connection may be dead: it costs no try.
        loop {
            let connection = self.pool.connect(&self.ring, address, self.bind(), CONNECT_PATIENCE).await;
            let connection = connection.map_err(|_| {
                self.pool.distrust(self.ring.now(), address);
                Failure::CannotConnect
            })?;
            let was_used = connection.is_used;
            match self.sync_on(connection, location).await {
                Err(Failure::Broken) if was_used => {}
                outcome => return outcome,
            }
        }
    }

    async fn sync_on(&self, mut connection: Connection, location: &ChunkLocation) -> Result<(), Failure> {
        let can_sync = match self.pool.can_sync(connection.address) {
            Some(known) => known,
            None => {
                let can_sync = match self.ask_extensions(&mut connection).await {
                    Ok(value) => has_extension(&value, SYNC_EXTENSION),
                    // Servers of long ago hang up on the question. One that is gone fails again, and is found out.
                    Err(Failure::Broken) if !connection.is_used => false,
                    Err(failure) => return Err(failure),
                };
                self.pool.note_can_sync(connection.address, can_sync);
                can_sync
            }
        };
        if can_sync {
            let request = CltocsSyncChunk { chunkid: location.chunkid, version: location.version };
            let answer: CstoclSyncChunk = self.exchange(&mut connection, request).await?;
            if answer.chunkid != location.chunkid {
                return Err(Failure::Broken);
            }
            answer.status.into_result().map_err(Failure::Server)?;
        }
        self.pool.park(self.ring.now(), connection);
        Ok(())
    }

    async fn ask_extensions(&self, connection: &mut Connection) -> Result<Vec<u8>, Failure> {
        let option = Name::new(EXTENSIONS_OPTION).expect("a short name");
        let answer: AntoanConfigValue = self.exchange(connection, AntoanGetConfig { msgid: 1, option }).await?;
        Ok(answer.value.as_bytes().to_vec())
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
}

/// The longest answer that is expected here: a configuration value of 255 bytes.
const ANSWER_BYTES_MAX: u32 = 1024;

/// Chunks of one file with acknowledged writes that nobody put on a device yet.
pub(crate) type Unsynced = BTreeMap<u32, UnsyncedChunk>;

#[derive(Clone, Debug)]
pub(crate) struct UnsyncedChunk {
    /// Where the last of these writes went.
    pub(crate) location: ChunkLocation,
    /// Number of the last of these writes: what is written while an `fsync` runs is left for the next one.
    pub(crate) noted: u64,
}
