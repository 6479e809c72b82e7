//! Duplicates of a chunk that another core is to own.
//!
//! The owner of the source has it open and locked, so it makes the file. The owner of the new chunk keeps the number
//! reserved meanwhile and takes the file in when it has its name. The source is locked before the number is reserved, as
//! where one core owns both, and a reservation waits for nobody.

use std::rc::Rc;

use wire::{ChunkId, Version};

use super::operations::NewFile;
use super::{Chunk, Store};
use crate::error::ChunkError;
use crate::fair_lock::Hold;
use crate::registry::Place;
use crate::sums::SumTable;

/// A file with its name, of a chunk that nobody knows yet.
struct Made {
    place: Place,
    blocks: u16,
}

impl Store {
    /// As `duplicate_from`, for a new chunk that this core will not own. The caller holds the source alone.
    pub(super) async fn duplicate_for_another_core(
        &self,
        source: &Rc<Chunk>,
        (id, version): (ChunkId, Version),
        length_bytes: Option<u32>,
    ) -> Result<(), ChunkError> {
        let owner = self.core.owner(id);
        self.core.ask(owner, move |server| async move { server.store.keep_reserved(id).await }).await?;
        let made = self.make_duplicate(source, id, version, length_bytes).await;
        let Made { place, blocks } = match made {
            Ok(made) => made,
            Err(error) => {
                self.core.ask(owner, move |server| async move { server.store.give_up_reserved(id) }).await;
                return Err(error);
            }
        };
        let taken = self.core.ask(owner, move |server| async move {
            let store = &server.store;
            store.take_in_reserved(id, place, blocks)
        });
        if taken.await {
            return Ok(());
        }
        // Its disk was taken out or given up meanwhile. If it comes back, this must not be a copy of the chunk.
        let _ = self.ring.unlink(&self.volume(place.volume).chunk_path(place.subfolder, id, version)).await;
        Err(ChunkError::Disk(std::io::Error::other("the disk was taken out of use")))
    }

    async fn make_duplicate(
        &self,
        source: &Rc<Chunk>,
        id: ChunkId,
        version: Version,
        length_bytes: Option<u32>,
    ) -> Result<Made, ChunkError> {
        let volume = self.choose_volume().ok_or(ChunkError::NoSpace)?;
        let file = self.create_on(&volume, id).await?;
        // A handle that nobody can find: the number is reserved elsewhere.
        let chunk = Rc::new(Chunk::new(id, self.ring.now()));
        let alone = chunk.lock.enqueue(Hold::Exclusive).await;
        let mut new = NewFile { chunk, _alone: alone, volume, file, sums: SumTable::default(), blocks: 0 };
        let made = match self.copy_blocks(source, &mut new, length_bytes).await {
            Ok(()) => {
                let named = self.name_file(&new, version, true).await;
                named.inspect_err(|error| self.note_not_made(&new, error))
            }
            Err(error) => Err(error),
        };
        match made {
            Ok(place) => Ok(Made { place, blocks: new.blocks }),
            Err(error) => {
                let _ = self.ring.unlink(&new.volume.temporary_path(id)).await; // else removed at the next start
                Err(error)
            }
        }
    }

    /// Errors: as `reserve`.
    async fn keep_reserved(&self, id: ChunkId) -> Result<(), ChunkError> {
        let reserved = self.reserve(id).await?;
        self.reserved.borrow_mut().insert(id, reserved);
        Ok(())
    }

    fn give_up_reserved(&self, id: ChunkId) {
        if let Some((chunk, _alone)) = self.reserved.borrow_mut().remove(&id) {
            self.forget(&chunk);
        }
    }

    /// False if its disk is not in use any more. The chunk is opened when it is first used.
    fn take_in_reserved(&self, id: ChunkId, place: Place, blocks: u16) -> bool {
        self.give_up_reserved(id);
        let volume = self.volume(place.volume);
        if !volume.is_usable() {
            return false;
        }
        volume.count_file(place.subfolder, 1);
        volume.add_blocks(u64::from(blocks));
        self.core.insert(id, place);
        true
    }
}
