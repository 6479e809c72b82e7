//! A chunk on the device, because a client's `fsync` asks for it.
//!
//! Under the policy `written` a write is acknowledged when the system has it. What a power cut must not take is put
//! on the device here: the blocks, the table of sums (so that no log is needed to call them good), and the file's
//! name, which tells the version.

use std::cell::Cell;
use std::io;
use std::rc::Rc;

use ring::File;
use wire::{ChunkId, Version};

use super::{Chunk, Store};
use crate::cores::Core;
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::intents::IntentLog;
use crate::server::Server;
use crate::volume::Volume;

/// Numbers of checkpoints of a volume: the last that began, the last that succeeded.
#[derive(Clone, Copy, Default)]
pub(crate) struct Checkpoints {
    begun: u64,
    succeeded: u64,
}

impl Store {
    /// Returns when the device has all writes to the chunk that were acknowledged before. Those who ask at the same
    /// time share a flush. Gives the chunk's version. Errors: `NoChunk`, `WrongVersion`, `Busy`, `Disk`.
    ///
    /// Speaks of what was acknowledged in the present epoch only: a client compares the epoch that it knew when it wrote
    /// with the one after this.
    pub(crate) async fn sync_chunk(&self, id: ChunkId, version: Version) -> Result<Version, ChunkError> {
        let chunk = self.open(id, version).await?;
        let _shared = self.hold(&chunk, Hold::Shared).await?;
        chunk.check(version)?;
        self.write_table(&chunk).await?;
        let (file, volume, place) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.file.clone(), open.volume.clone(), open.place)
        };
        let synced = async {
            self.flush_with_log(&chunk, &file, &volume).await?;
            if !chunk.name_is_durable.get() {
                let path = volume.chunk_path(place.subfolder, id, place.version);
                self.sync_name(&path).await.inspect_err(|error| self.note_failed_sync(chunk.id, &volume, error))?;
                chunk.name_is_durable.set(true);
            }
            Ok(())
        };
        let outcome: Result<(), ChunkError> = synced.await;
        outcome.inspect_err(|error| self.note_fault(id, &volume, error))?;
        Ok(place.version)
    }

    /// A sync failed: the system drops what it could not write, says so once, and calls the next sync a success. So what
    /// was acknowledged before may be lost, the chunk counts as damaged, and a disk that answers EIO is given up.
    pub(super) fn note_failed_sync(&self, id: ChunkId, volume: &Volume, error: &io::Error) {
        tracing::error!("chunk {id} on {}: cannot be synced: {error}", volume.folder.display());
        self.core.begin_epoch(self.ring.random_u64());
        if ChunkError::Disk(copy_of(error)).is_hard() {
            self.lose_volume(volume);
        }
    }

    /// As `flush`; and the log may forget what it knows of the chunk, if its table was written before.
    pub(super) async fn flush_with_log(&self, chunk: &Chunk, file: &File, volume: &Volume) -> Result<(), ChunkError> {
        let Some(log) = &volume.intents else { return self.flush(chunk, file).await };
        // What the flush may leave half written must be known before, also what is written while it lasts.
        let _counted = CountedFlush::new(&chunk.flushes);
        log.make_durable().await?;
        let written = log.table_written_of(chunk.id);
        self.flush(chunk, file).await?;
        log.tables_are_durable(written);
        Ok(())
    }

    /// Puts all that the volume's file system holds on its device, and lets the logs forget what they no longer need to
    /// know. One call for all chunks of all cores: most systems do the same in the background at about the same pace.
    /// Returns when a checkpoint that began after this was called has ended; those who wait share one.
    pub(crate) async fn checkpoint(&self, index: u16) -> io::Result<()> {
        self.core.ask(0, move |server| async move { server.store.checkpoint_for_all(index).await }).await
    }

    async fn checkpoint_for_all(&self, index: u16) -> io::Result<()> {
        let volume = self.volume(index);
        let asked_at = volume.checkpoints.get().begun;
        let _turn = volume.checkpoint_turn.acquire(1).await;
        let Checkpoints { begun, succeeded } = volume.checkpoints.get();
        if succeeded > asked_at {
            return Ok(());
        }
        let number = begun + 1;
        volume.checkpoints.set(Checkpoints { begun: number, succeeded });
        // What the system is about to write may be torn by a power cut, whichever core wrote it: all logs go first, and
        // until the end each record before what it announces.
        let _hurried = Hurried::begin(&self.core, index);
        let ready = self.core.ask_all(move |server| async move { server.store.prepare_checkpoint(index).await });
        let written = ready.await.into_iter().collect::<io::Result<Vec<_>>>()?;
        if written.iter().any(|of_core| !of_core.is_empty()) {
            self.ring.sync_file_system(&volume.folder).await?;
        }
        for (core, written) in written.into_iter().enumerate().filter(|(_, written)| !written.is_empty()) {
            self.core.tell(core, move |server| {
                if let Some(log) = &server.store.volume(index).intents {
                    log.tables_are_durable(written);
                }
            });
        }
        volume.checkpoints.set(Checkpoints { begun: number, succeeded: number });
        Ok(())
    }

    /// The tables of this core that the system has, once the device has its log.
    async fn prepare_checkpoint(&self, index: u16) -> io::Result<Vec<(ChunkId, u64)>> {
        let volume = self.volume(index);
        let Some(log) = &volume.intents else { return Ok(Vec::new()) };
        let written = log.tables_written();
        log.make_durable().await?;
        Ok(written)
    }

    /// `checkpoint` of each volume, side by side, since one may hang. By the first core.
    pub(crate) fn checkpoint_all(self: &Rc<Self>) {
        let volumes = self.volumes.borrow().clone();
        for (index, volume) in volumes.into_iter().enumerate().filter(|(_, volume)| volume.is_usable()) {
            if volume.syncing.replace(true) {
                continue;
            }
            let store = self.clone();
            self.ring.spawn(async move {
                if let Err(error) = store.checkpoint(index as u16).await {
                    store.note_failed_checkpoint(&volume, error);
                }
                volume.syncing.set(false);
            });
        }
    }

    /// A disk that fails to write what the system had promised may have lost it, and the system does not try again: what
    /// is read from its memory until then is newer than what a restart would find. So such a disk is given up. What is
    /// not the disk's failure is tried again, in another epoch.
    pub(super) fn note_failed_checkpoint(&self, volume: &Volume, error: io::Error) {
        tracing::error!("{}: cannot be synced: {error}", volume.folder.display());
        self.core.begin_epoch(self.ring.random_u64());
        self.core.shared.reports.disk_error();
        if ChunkError::Disk(error).is_hard() {
            self.lose_volume(volume);
        }
    }
}

/// The same error once more.
pub(super) fn copy_of(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}

/// Counts a flush while it lasts.
struct CountedFlush<'a>(&'a Cell<u32>);

impl<'a> CountedFlush<'a> {
    fn new(count: &'a Cell<u32>) -> CountedFlush<'a> {
        count.set(count.get() + 1);
        CountedFlush(count)
    }
}

impl Drop for CountedFlush<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// A checkpoint of a volume lasts: its logs hurry, on all cores.
struct Hurried<'a> {
    core: &'a Core,
    volume: u16,
}

impl<'a> Hurried<'a> {
    fn begin(core: &'a Core, volume: u16) -> Hurried<'a> {
        let hurried = Hurried { core, volume };
        hurried.tell_logs(IntentLog::hurry);
        hurried
    }

    fn tell_logs(&self, what: fn(&IntentLog)) {
        let index = self.volume;
        let tell = move |server: &Rc<Server>| {
            if let Some(log) = &server.store.volume(index).intents {
                what(log);
            }
        };
        self.core.tell_others(tell);
        self.core.tell(self.core.number, tell);
    }
}

impl Drop for Hurried<'_> {
    fn drop(&mut self) {
        self.tell_logs(IntentLog::calm);
    }
}

#[cfg(test)]
mod tests {
    use ring::{IoBufExt, Options};
    use wire::Crc;

    use super::*;
    use crate::cores;
    use crate::intents::record::Intent;
    use crate::layout::BlockIndex;
    use crate::server::Server;
    use crate::server::tests::settings_in;
    use crate::settings::{IoMode, Settings};
    use crate::store::blocks::Part;

    /// A chunk of the core was changed, and the system has its table.
    async fn change_a_chunk(server: Rc<Server>) {
        let (id, version) = (ChunkId(30 + server.core.number as u64), Version(1));
        let log = server.store.volume(0).intents.clone().unwrap();
        log.record(Intent::Write { id, version, block: BlockIndex::new(0).unwrap(), sum: Crc(1) }).await.unwrap();
        log.table_written(id, log.next_page());
    }

    #[test]
    fn what_is_written_while_the_system_writes_back_is_in_a_durable_log_before() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { io_mode: IoMode::Buffered, ..settings_in(folder.path(), 1) };
        let options = Options { buffers: settings.buffers(), ..Options::default() };
        ring::run(options, |ring| async move {
            let (server, _others, serve_others) = cores::start(&ring, settings).await.unwrap();
            let _serves_others = ring.spawn(serve_others);
            let store = &server.store;
            store.start(None).await.unwrap();
            let (id, version, block) = (ChunkId(7), Version(1), BlockIndex::new(0).unwrap());
            while store.create(id, version).await.is_err() {
                ring.sleep(std::time::Duration::from_millis(1)).await; // the disk is being listed
            }
            let chunk = store.open(id, version).await.unwrap();
            let log = store.volume(0).intents.clone().unwrap();
            let write = async |byte: u8| {
                let mut data = ring.wait_buffer().await;
                data.payload_mut().fill(byte);
                let sum = crate::sums::sum_of(data.payload());
                let part = Part { block, offset_bytes: 0, size_bytes: wire::limits::BLOCK_BYTES };
                let data = data.share().slice(0..wire::limits::BLOCK_BYTES as usize);
                store.write_part(&chunk, version, chunk.block_turn(block), part, sum, data).await.unwrap();
            };
            log.hurry();
            write(1).await;
            assert!(log.is_durable(), "during a checkpoint");
            log.calm();
            let flush = CountedFlush::new(&chunk.flushes);
            write(2).await;
            assert!(log.is_durable(), "during a flush of the chunk");
            drop(flush);
            store.checkpoint(0).await.unwrap();
            assert!(!log.is_hurried(), "it is over");
        })
        .unwrap();
    }

    #[test]
    fn a_checkpoint_makes_the_logs_of_all_cores_durable_and_settles_their_tables() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { io_mode: IoMode::Buffered, ..settings_in(folder.path(), 3) };
        let options = Options { buffers: settings.buffers(), ..Options::default() };
        ring::run(options, |ring| async move {
            let (server, others, serve_others) = cores::start(&ring, settings).await.unwrap();
            let _serves_others = ring.spawn(serve_others);
            server.store.start(None).await.unwrap();
            server.core.ask_all(change_a_chunk).await;
            let of_logs = || {
                let of_log = server.core.ask_all(|server| async move {
                    let log = server.store.volume(0).intents.clone().unwrap();
                    (log.tables_written().len(), log.is_durable())
                });
                async { <[(usize, bool); 3]>::try_from(of_log.await).unwrap() }
            };
            assert_eq!(of_logs().await.map(|(tables, _)| tables), [1; 3]);
            server.core.ask(1, |server| async move { server.store.checkpoint(0).await }).await.unwrap();
            assert_eq!(of_logs().await, [(0, true); 3]);
            assert_eq!(server.store.volume(0).checkpoints.get().begun, 1, "one call of the system for all cores");
            drop(others);
        })
        .unwrap();
    }
}
