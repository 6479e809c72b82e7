//! What a disk holds: its files are listed in the background while everything else goes on, and what a crash left half
//! done is put right before anybody writes. Spec 21, 7 and 8.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use wire::ChunkId;

use super::recover::Recovered;
use super::{Duplicate, Repairs, Store, torn};
use crate::chunkdb::{self, Record};
use crate::layout::SUBFOLDERS;
use crate::registry::{Place, Verdict};
use crate::scan::{Blocks, Found, scan};
use crate::volume::{Volume, VolumeState};

/// A disk that was given up is tried again only when the scan that was under way has ended; so long is waited for that.
const SCAN_END_WAIT: Duration = Duration::from_secs(5);
pub(super) const SCAN_NAP: Duration = Duration::from_millis(20);
/// Files that are handed to the owners of their chunks at a time.
const FOUND_AT_ONCE: usize = 1024;

impl Store {
    /// Waits for the end of a scan that will soon notice that its disk was given up. False if the disk does not answer.
    pub(super) async fn scan_ends(&self, volume: &Volume) -> bool {
        let until = self.ring.now() + SCAN_END_WAIT;
        while volume.scanning.get() && self.ring.now() < until {
            self.ring.sleep(SCAN_NAP).await;
        }
        !volume.scanning.get()
    }

    pub(super) fn begin_scan(self: &Rc<Self>, index: u16, repairs: Repairs) {
        self.volume(index).scanning.set(true);
        self.core.shared.scans_under_way.fetch_add(1, Ordering::AcqRel);
        let store = self.clone();
        self.ring.spawn(async move {
            let volume = store.volume(index);
            if let Err(error) = store.scan_volume(index, &volume, repairs).await
                && volume.is_usable()
            {
                tracing::error!("{}: cannot be read: {error}", volume.folder.display());
                store.lose_volume(&volume);
            }
            volume.scanning.set(false);
            store.core.shared.scans_under_way.fetch_sub(1, Ordering::AcqRel);
        });
    }

    /// Lists the files of a disk and puts right what a crash left; then it takes new chunks.
    async fn scan_volume(self: &Rc<Self>, index: u16, volume: &Rc<Volume>, repairs: Repairs) -> io::Result<()> {
        let started = self.ring.now();
        let after_crash = !repairs.is_empty();
        let settings = self.settings.get();
        if self.ring.stat(&volume.folder.join(torn::LIST_NAME)).await.is_ok() {
            volume.recovering.store(true, Ordering::Release); // until we know which chunks it means
        }
        // For tools and for the master, though nothing new comes here before the end.
        volume.refresh_space(&self.ring, &settings).await?;
        let mut batches = Batches::new(self, index);
        let blocks = scan(&self.ring, volume, &settings, after_crash, |found| batches.take(found)).await?;
        batches.end().await;
        if !volume.is_usable() {
            return Ok(());
        }
        self.load_torn(index, volume).await?;
        if after_crash {
            let done = self.recover_on_all(index, repairs).await;
            tracing::warn!("{}: put right after a crash: {done:?}", volume.folder.display());
            if !volume.is_usable() {
                return Ok(()); // given up meanwhile: the logs keep for the next time what was not put right
            }
        }
        self.empty_logs(index, volume, after_crash).await?;
        if volume.recovering.swap(false, Ordering::AcqRel) && self.core.shared.reports.may_be_sent() {
            self.report_torn();
        }
        if blocks == Blocks::Unknown {
            self.measure(index).await;
        }
        volume.refresh_space(&self.ring, &self.settings.get()).await?;
        if volume.scan_has_ended() {
            let took = self.ring.now() - started;
            tracing::info!("{}: {} chunks, listed in {took:?}", volume.folder.display(), volume.chunks());
        }
        Ok(())
    }

    /// Each core puts right what the logs say of its chunks.
    async fn recover_on_all(&self, index: u16, repairs: Repairs) -> Recovered {
        let mut of_cores = vec![Repairs::new(); self.core.count()];
        for (id, repair) in repairs {
            of_cores[self.core.owner(id)].insert(id, repair);
        }
        let recovering = of_cores.into_iter().enumerate().map(|(core, repairs)| {
            self.core.ask(core, move |server| async move { server.store.recover(index, repairs).await })
        });
        join_all(recovering).await.into_iter().sum()
    }

    /// Nothing is left to repair: no log says anything else, and those of former cores go. Nobody may change a chunk
    /// before: what is written from then on goes to the log of the chunk's present owner, and no other may speak of it.
    async fn empty_logs(&self, index: u16, volume: &Volume, after_crash: bool) -> io::Result<()> {
        if volume.is_read_only {
            return Ok(());
        }
        let former = self.logs_of_former_cores(&volume.folder).await?;
        for path in &former {
            self.ring.unlink(path).await?;
        }
        if !former.is_empty() {
            self.ring.sync_dir(&volume.folder).await?;
        }
        if after_crash {
            let finished = self.core.ask_all(move |server| async move { server.store.finish_log(index).await });
            finished.await.into_iter().collect::<io::Result<()>>()?;
        }
        Ok(())
    }

    pub(crate) fn scans_under_way(&self) -> u32 {
        self.core.shared.scans_under_way.load(Ordering::Acquire)
    }

    /// Leaves the list of a disk's chunks for the next start. All logs say that there is nothing to repair. Spec 21, 5.
    pub(super) async fn leave_list(&self, volume: &Volume, chunks: Vec<(ChunkId, Place)>) {
        if volume.is_read_only || volume.scanned_subfolders.load(Ordering::Relaxed) < SUBFOLDERS as u32 {
            return;
        }
        let record =
            |(id, place): (_, Place)| Record { id, version: place.version, blocks: None, subfolder: place.subfolder };
        let records = chunks.into_iter().map(record);
        let mode = self.settings.get().file_mode;
        let path = volume.line().path;
        if let Err(error) = chunkdb::write(&self.ring, &volume.folder, &path, mode, records).await {
            tracing::warn!("{path}: the list of chunks cannot be written, the next start will scan: {error}");
        }
    }

    fn take_found(&self, index: u16, found: Found) {
        let volume = self.volume(index);
        if volume.state() != VolumeState::Scanning {
            return;
        }
        let place = Place { version: found.version, volume: index, subfolder: found.subfolder };
        let in_use = self.in_use.borrow().contains_key(&found.id);
        let verdict = self.core.found(found.id, place, in_use);
        let loser = match verdict {
            Verdict::Known => return,
            Verdict::New => {
                self.core.shared.reports.found(found.id);
                None
            }
            Verdict::Better { loser } => {
                self.core.shared.reports.changed(found.id);
                Some(loser)
            }
            Verdict::Duplicate => Some(place),
        };
        volume.count_file(found.subfolder, 1);
        volume.add_blocks(u64::from(found.blocks));
        if let Some(place) = loser {
            tracing::warn!("chunk {} has two files here; version {} is the lesser one", found.id, place.version);
            self.duplicates.borrow_mut().push(Duplicate { id: found.id, place, found_at: self.ring.now() });
        }
    }
}

/// What a scan finds, on its way to the owners.
struct Batches<'store> {
    store: &'store Rc<Store>,
    volume: u16,
    of_cores: Vec<Vec<Found>>,
}

impl Batches<'_> {
    fn new(store: &Rc<Store>, volume: u16) -> Batches<'_> {
        Batches { store, volume, of_cores: vec![Vec::new(); store.core.count()] }
    }

    fn take(&mut self, found: Found) {
        let owner = self.store.core.owner(found.id);
        if owner == self.store.core.number {
            return self.store.take_found(self.volume, found);
        }
        self.of_cores[owner].push(found);
        if self.of_cores[owner].len() >= FOUND_AT_ONCE {
            self.send(owner);
        }
    }

    fn send(&mut self, owner: usize) {
        let (volume, batch) = (self.volume, std::mem::take(&mut self.of_cores[owner]));
        self.store.core.tell(owner, move |server| {
            batch.into_iter().for_each(|found| server.store.take_found(volume, found));
        });
    }

    /// Returns when all owners have taken what was found.
    async fn end(mut self) {
        (0..self.of_cores.len()).for_each(|owner| self.send(owner));
        self.store.core.ask_all(|_| async {}).await;
    }
}
