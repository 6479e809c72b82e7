//! A chunk on the device, because a client's `fsync` asks for it.
//!
//! Under the policy `written` a write is acknowledged when the system has it. What a power cut must not take is put
//! on the device here: the blocks, the table of sums (so that no log is needed to call them good), and the file's
//! name, which tells the version.

use std::io;
use std::rc::Rc;

use ring::File;
use wire::{ChunkId, Version};

use super::{Chunk, Store};
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::volume::Volume;

impl Store {
    /// Returns when the device has all writes to the chunk that were acknowledged before. Those who ask at the same
    /// time share a flush. Errors: `NoChunk`, `WrongVersion`, `Busy`, `Disk`.
    pub(crate) async fn sync_chunk(&self, id: ChunkId, version: Version) -> Result<(), ChunkError> {
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
                self.sync_name(&path).await?;
                chunk.name_is_durable.set(true);
            }
            Ok(())
        };
        let outcome: Result<(), ChunkError> = synced.await;
        outcome.inspect_err(|error| self.note_fault(id, &volume, error))
    }

    /// As `flush`; and the log may forget what it knows of the chunk, if its table was written before.
    pub(super) async fn flush_with_log(&self, chunk: &Chunk, file: &File, volume: &Volume) -> Result<(), ChunkError> {
        let Some(log) = &volume.intents else { return self.flush(chunk, file).await };
        // What the flush may leave half written must be known before.
        log.make_durable().await?;
        let written = log.table_written_of(chunk.id);
        self.flush(chunk, file).await?;
        log.tables_are_durable(written);
        Ok(())
    }

    /// Puts all that the volume's file system holds on its device, and lets the log forget what it no longer needs to
    /// know. One call for all chunks: most systems do the same in the background at about the same pace.
    pub(crate) async fn checkpoint(&self, volume: &Volume) -> io::Result<()> {
        let Some(log) = &volume.intents else { return Ok(()) };
        let written = log.tables_written();
        if written.is_empty() {
            return Ok(());
        }
        log.make_durable().await?;
        self.ring.sync_file_system(&volume.folder).await?;
        log.tables_are_durable(written);
        Ok(())
    }

    /// `checkpoint` of each volume, side by side, since one may hang; what fails counts against the disk and is tried
    /// again.
    pub(crate) fn checkpoint_all(self: &Rc<Self>) {
        let volumes = self.volumes.borrow().clone();
        for volume in volumes.into_iter().filter(|volume| volume.is_usable()) {
            if volume.syncing.replace(true) {
                continue;
            }
            let store = self.clone();
            self.ring.spawn(async move {
                if let Err(error) = store.checkpoint(&volume).await {
                    tracing::error!("{}: cannot be synced: {error}", volume.folder.display());
                    store.core.shared.reports.disk_error();
                }
                volume.syncing.set(false);
            });
        }
    }
}
