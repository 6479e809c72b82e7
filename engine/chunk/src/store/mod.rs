//! All chunks of one core: volumes, its part of the registry, chunks in use. What it shares with others is in `cores`.
//!
//! A chunk in use is a `Chunk`: its lock, its open file and its table of sums, kept while it is used and for some
//! seconds after. Reading and writing of blocks is in `blocks`, the master's operations in `operations`, what happens
//! at start and stop in `life`.

mod across;
pub(crate) mod balance;
pub(crate) mod blocks;
pub(crate) mod disks;
pub(crate) mod life;
mod listing;
pub(crate) mod operations;
pub(crate) mod recover;
mod scanning;
pub(crate) mod scratch;
pub(crate) mod sync;
pub(crate) mod torn;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ring::local::Semaphore;
use ring::{File, Instant, IoBufExt, OpenHow, Ring};
use wire::{ChunkId, Version};

use crate::cache::Cache;
use crate::cores::Core;
use crate::counters::Counters;
use crate::error::ChunkError;
use crate::fair_lock::{FairLock, Guard, Hold, Turn};
use crate::intents::IntentLog;
use crate::intents::record::Repair;
use crate::layout::{BlockIndex, Form, HeaderWords, TABLE_BYTES, decode_header, encode_header, shape};
use crate::registry::Place;
use crate::settings::{IoMode, LiveSettings};
use crate::sums::{StoredTable, SumTable};
use crate::volume::Volume;
use scratch::{ScratchPool, Shares};

/// What the intent log of one volume asks for.
pub(crate) type Repairs = BTreeMap<ChunkId, Repair>;

/// How long an operation waits for a chunk that another one holds. Spec 20, 6.
const LOCK_WAIT: Duration = Duration::from_secs(10);
/// How long an unused chunk stays open.
const IDLE_OPEN: Duration = Duration::from_secs(10);
/// Chunks that stay open while they are not used, on all cores.
const IDLE_OPEN_MAX: usize = 400;

pub(crate) struct Store {
    pub(crate) ring: Ring,
    pub(crate) settings: Rc<LiveSettings>,
    pub(crate) core: Rc<Core>,
    /// Numbered alike on all cores.
    pub(crate) volumes: RefCell<Vec<Rc<Volume>>>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) duplicates: RefCell<Vec<Duplicate>>,
    /// This core's log of the volume that comes next.
    next_log: RefCell<Option<Rc<IntentLog>>>,
    /// New chunks of this core that the owner of their source is making.
    reserved: RefCell<BTreeMap<ChunkId, (Rc<Chunk>, Guard)>>,
    /// One at a time writes a list of torn chunks.
    torn_lock: Semaphore,
    pub(crate) cache: Cache,
    /// Blocks that the cache may hold.
    pub(crate) cache_blocks: usize,
    shares: Shares,
    scratch: ScratchPool,
    table_scratch: ScratchPool,
    in_use: RefCell<BTreeMap<ChunkId, Rc<Chunk>>>,
    /// The server stops: no chunk goes to another disk any more, since the lists of chunks are about to be made.
    pub(crate) stops: Cell<bool>,
    /// Chunks of this core that are going to another disk.
    pub(crate) moves_here: Cell<u32>,
}

/// A file that is not the chunk's best copy; removed some days after it was found. Spec 21, 7.
pub(crate) struct Duplicate {
    pub(crate) id: ChunkId,
    pub(crate) place: Place,
    pub(crate) found_at: Instant,
}

/// One chunk in use.
pub(crate) struct Chunk {
    pub(crate) id: ChunkId,
    /// Shared: reading or writing a block. Exclusive: changing the chunk as a whole.
    lock: Rc<FairLock>,
    /// Who writes the table or extends the file; taken under a shared hold of `lock`.
    file_lock: Rc<FairLock>,
    /// One for each block that is being changed; those that are idle are used again.
    block_locks: RefCell<Vec<(BlockIndex, Rc<FairLock>)>>,
    /// Who flushes the file to its device, for all whose writes had ended by then.
    sync_lock: Rc<FairLock>,
    /// Writes that have ended, and how many of them the last flush covered.
    writes_ended: Cell<u64>,
    writes_synced: Cell<u64>,
    /// Flushes under way that may write back a part of what is written meanwhile.
    flushes: Cell<u32>,
    /// A sync of the file failed. What the system could not write it has dropped by now, so no later sync may succeed.
    sync_failed: RefCell<Option<io::Error>>,
    /// The device knows the file by its present name.
    name_is_durable: Cell<bool>,
    state: RefCell<Option<OpenFile>>,
    /// Deleted: handles that are still held lead nowhere.
    gone: Cell<bool>,
    write_sessions: Cell<u32>,
    last_used: Cell<Instant>,
}

/// The open file of a chunk.
struct OpenFile {
    file: File,
    volume: Rc<Volume>,
    place: Place,
    minor: u8,
    form: Form,
    /// Positions and lengths of IO are multiples of this; 1 when the file is buffered.
    alignment: u32,
    /// Blocks that the chunk has.
    blocks: u16,
    /// Blocks that the file has. More than `blocks`: it was extended ahead of the data, in zeros. Fewer: it was cut
    /// short behind our back. What is read behind its end does not fit the sums then, so those blocks are bad and the
    /// others good.
    file_blocks: u16,
    sums: SumTable,
    sums_changed: bool,
    /// On disk, the entries behind the last block are those of empty blocks: the file may be extended ahead.
    tail_is_empty: bool,
    /// Writes under way: number, and the first log page that may name it.
    writes_under_way: Vec<(u64, u64)>,
    next_write: u64,
}

impl Store {
    pub(crate) fn new(ring: &Ring, settings: Rc<LiveSettings>, core: Rc<Core>) -> Store {
        let cache_blocks = settings.get().cache_blocks(ring.free_buffers(), core.count());
        let shares = Shares::of_cores(core.count());
        Store {
            cache: Cache::new(cache_blocks),
            cache_blocks,
            ring: ring.clone(),
            settings,
            volumes: RefCell::default(),
            counters: core.counters(),
            core,
            duplicates: RefCell::default(),
            next_log: RefCell::default(),
            reserved: RefCell::default(),
            torn_lock: Semaphore::new(1),
            scratch: ScratchPool::new(ring, shares.scratch),
            table_scratch: ScratchPool::new(ring, shares.tables),
            shares,
            in_use: RefCell::default(),
            stops: Cell::new(false),
            moves_here: Cell::new(0),
        }
    }

    /// Buffers that are kept aside, and not in the pool: also the one that each disk's log is written from.
    pub(crate) fn kept_aside(&self) -> usize {
        self.shares.scratch + self.shares.tables + self.settings.get().folders.len()
    }

    pub(crate) fn volume(&self, index: u16) -> Rc<Volume> {
        self.volumes.borrow()[usize::from(index)].clone()
    }

    /// The chunk, open and of the asked version. `version`: `ANY` takes each.
    ///
    /// Errors: `NoChunk` (then the master learns that it is not here), `WrongVersion`, `Busy`, what opening gives.
    pub(crate) async fn open(&self, id: ChunkId, version: Version) -> Result<Rc<Chunk>, ChunkError> {
        let chunk = self.known(id)?;
        check_version(self.place(id)?.version, version)?;
        if chunk.state.borrow().is_none() {
            let _alone = self.hold(&chunk, Hold::Exclusive).await?;
            self.load(&chunk).await?;
        }
        chunk.check(version)?;
        chunk.last_used.set(self.ring.now());
        Ok(chunk)
    }

    /// The chunk, if it is open already and of the asked version: `open` without a wait.
    pub(crate) fn opened(&self, id: ChunkId, version: Version) -> Option<Rc<Chunk>> {
        let in_use = self.in_use.borrow();
        let chunk = in_use.get(&id)?;
        let works = |volume: &Volume| volume.is_usable() && !volume.hangs();
        let is_usable = chunk.state.borrow().as_ref().is_some_and(|open| works(&open.volume));
        if !is_usable || chunk.check(version).is_err() {
            return None;
        }
        chunk.last_used.set(self.ring.now());
        Some(chunk.clone())
    }

    /// The chunk, held by this operation alone and open. For operations.
    async fn open_alone(&self, id: ChunkId, version: Version) -> Result<(Rc<Chunk>, Guard), ChunkError> {
        let chunk = self.known(id)?;
        check_version(self.place(id)?.version, version)?;
        let alone = self.hold(&chunk, Hold::Exclusive).await?;
        self.load(&chunk).await?;
        chunk.check(version)?;
        chunk.last_used.set(self.ring.now());
        Ok((chunk, alone))
    }

    /// Is this chunk on a disk that does not answer?
    pub(crate) fn waits_for_hanging_disk(&self, id: ChunkId) -> bool {
        self.core.place(id).is_some_and(|place| self.volume(place.volume).hangs())
    }

    fn place(&self, id: ChunkId) -> Result<Place, ChunkError> {
        self.core.place(id).ok_or(ChunkError::NoChunk)
    }

    /// The handle of a chunk that the registry knows.
    fn known(&self, id: ChunkId) -> Result<Rc<Chunk>, ChunkError> {
        let Some(place) = self.core.place(id) else {
            if self.scans_under_way() > 0 {
                return Err(ChunkError::Busy); // it may yet be found
            }
            self.core.shared.reports.lost(id);
            return Err(ChunkError::NoChunk);
        };
        let volume = self.volume(place.volume);
        if !volume.is_usable() {
            return Err(ChunkError::NoChunk);
        }
        if volume.is_recovering() || volume.hangs() {
            return Err(ChunkError::Busy);
        }
        Ok(self.handle(id))
    }

    fn handle(&self, id: ChunkId) -> Rc<Chunk> {
        self.in_use.borrow_mut().entry(id).or_insert_with(|| Rc::new(Chunk::new(id, self.ring.now()))).clone()
    }

    /// A handle for a chunk that is about to be made, held alone. Errors: `Exists`, `Busy`.
    async fn reserve(&self, id: ChunkId) -> Result<(Rc<Chunk>, Guard), ChunkError> {
        if id.0 == 0 {
            return Err(ChunkError::Invalid);
        }
        if self.core.place(id).is_some() {
            return Err(ChunkError::Exists);
        }
        let chunk = Rc::new(Chunk::new(id, self.ring.now()));
        {
            let mut in_use = self.in_use.borrow_mut();
            if in_use.contains_key(&id) {
                return Err(ChunkError::Busy); // another operation is making or deleting it right now
            }
            in_use.insert(id, chunk.clone());
        }
        let alone = chunk.lock.enqueue(Hold::Exclusive).await;
        Ok((chunk, alone))
    }

    /// Drops the handle of a chunk that was not made after all, or that is no more.
    fn forget(&self, chunk: &Chunk) {
        self.cache.forget_chunk(chunk.id);
        chunk.gone.set(true);
        chunk.state.take();
        let mut in_use = self.in_use.borrow_mut();
        // After the loss of its disk, another copy may be in use by now.
        if in_use.get(&chunk.id).is_some_and(|known| std::ptr::eq(&**known, chunk)) {
            in_use.remove(&chunk.id);
        }
    }

    async fn hold(&self, chunk: &Chunk, hold: Hold) -> Result<Guard, ChunkError> {
        self.wait_turn(chunk.lock.enqueue(hold)).await
    }

    async fn wait_turn(&self, turn: Turn) -> Result<Guard, ChunkError> {
        self.ring.timeout(LOCK_WAIT, turn).await.map_err(|_| ChunkError::Busy)
    }

    /// Opens the file if it is not open. A file that was cut short is opened and reported. The caller holds the chunk
    /// alone.
    async fn load(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        if chunk.state.borrow().is_none() {
            self.load_before_repair(chunk).await?;
            self.report_if_cut_short(chunk);
        }
        Ok(())
    }

    /// Tells the master of a file that ends before blocks that had content.
    fn report_if_cut_short(&self, chunk: &Chunk) {
        let cut = chunk.state.borrow().as_ref().filter(|open| open.file_blocks < open.blocks).map(|open| {
            let error = ChunkError::CutShort { file_blocks: open.file_blocks, blocks: open.blocks };
            (open.volume.clone(), error)
        });
        if let Some((volume, error)) = cut {
            self.note_fault(chunk.id, &volume, &error);
        }
    }

    /// As `load`, for a chunk that recovery is about to put right: a truncation that a crash interrupted leaves a file
    /// that is shorter than its table, and is no fault.
    async fn load_before_repair(&self, chunk: &Chunk) -> Result<(), ChunkError> {
        if chunk.state.borrow().is_some() {
            return Ok(());
        }
        if chunk.gone.get() {
            return Err(ChunkError::NoChunk);
        }
        let place = self.place(chunk.id)?;
        let volume = self.volume(place.volume);
        let path = volume.chunk_path(place.subfolder, chunk.id, place.version);
        let loaded = self.load_file(chunk.id, place, volume.clone(), path).await;
        match loaded {
            Ok(file) => {
                *chunk.state.borrow_mut() = Some(file);
                Ok(())
            }
            Err(error) => {
                self.note_fault(chunk.id, &volume, &error);
                Err(error)
            }
        }
    }

    async fn load_file(
        &self,
        id: ChunkId,
        place: Place,
        volume: Rc<Volume>,
        path: PathBuf,
    ) -> Result<OpenFile, ChunkError> {
        let _under_way = volume.health.begin(&self.ring);
        let (file, form, file_blocks, alignment) = self.open_file(&volume, &path).await?;
        let mut scratch = self.scratch.take(&volume).await;
        let front_bytes = form.data_offset() as usize;
        let started = self.ring.now();
        let (result, piece) = file.read_at(scratch.take().slice(0..front_bytes), 0).await;
        volume.stats.header_read.add(front_bytes as u64, self.ring.now() - started);
        scratch.put(piece.into_inner());
        if result? != front_bytes {
            return Err(ChunkError::BadLength);
        }
        let words = decode_header(scratch.payload()).filter(|words| words.id == id).ok_or(ChunkError::BadHeader)?;
        let table = scratch.payload()[form.header_bytes() as usize..front_bytes].first_chunk::<TABLE_BYTES>();
        let table = table.expect("4096 bytes of table were read");
        let StoredTable { sums, blocks, tail_is_empty } = SumTable::decode(table, file_blocks);
        drop(scratch);
        let open = OpenFile {
            file,
            volume,
            place,
            minor: words.minor,
            form,
            alignment,
            blocks,
            file_blocks,
            sums,
            sums_changed: false,
            tail_is_empty,
            writes_under_way: Vec::new(),
            next_write: 0,
        };
        if words.version != place.version && !open.volume.is_read_only {
            // A crash between the renaming and the writing of the header: the name is what the master was told.
            tracing::warn!(
                "chunk {id}: header says version {}, name {}; header put right",
                words.version,
                place.version
            );
            self.write_header(&open, id, place.version).await?;
        }
        Ok(open)
    }

    /// Opens a chunk file as its volume's mode and its layout allow. Gives file, layout, blocks and alignment.
    async fn open_file(&self, volume: &Volume, path: &std::path::Path) -> Result<(File, Form, u16, u32), ChunkError> {
        let how = OpenHow { read: true, write: !volume.is_read_only, ..how_to_open(volume.mode()) };
        let file = self.open_as_volume_allows(volume, path, how).await?;
        let (form, blocks) = shape(file.stat().await?.size).ok_or(ChunkError::BadLength)?;
        let alignment = file.direct_alignment();
        if alignment > form.position_alignment() {
            let file = self.ring.open(path, OpenHow { direct: false, ..how }).await?;
            return Ok((file, form, blocks, 1));
        }
        Ok((file, form, blocks, alignment.max(1)))
    }

    /// Direct if the volume is, until its file system says that it cannot.
    async fn open_as_volume_allows(&self, volume: &Volume, path: &std::path::Path, how: OpenHow) -> io::Result<File> {
        match self.ring.open(path, how).await {
            Err(error) if how.direct && error.kind() == io::ErrorKind::InvalidInput => {
                tracing::info!("{}: no direct IO here, going through the page cache", volume.folder.display());
                volume.fall_to_buffered();
                self.ring.open(path, OpenHow { direct: false, ..how }).await
            }
            other => other,
        }
    }

    /// Writes the whole header: the 20 bytes that mean something, then zeros.
    async fn write_header(&self, open: &OpenFile, id: ChunkId, version: Version) -> io::Result<()> {
        let words = HeaderWords { minor: open.minor, id, version };
        let header_bytes = open.form.header_bytes() as usize;
        let (file, mut scratch) = (open.file.clone(), self.table_scratch.take_for_table(&open.volume).await);
        scratch.payload_mut()[..header_bytes].fill(0);
        scratch.payload_mut()[..20].copy_from_slice(&encode_header(words));
        let (result, piece) = file.write_all_at(scratch.take().slice(0..header_bytes), 0).await;
        scratch.put(piece.into_inner());
        result
    }

    /// A write found no room. The master hears that this copy could not take it, and soon how little room there is.
    fn note_no_space(&self, id: ChunkId, volume: &Volume) {
        if !volume.look_soon() {
            tracing::warn!("chunk {id}: no room on {}; the copy keeps what it has", volume.folder.display());
        }
        self.core.shared.reports.write_failed(id);
    }

    /// Notes that a copy or a disk is bad: for the master, for the tools, and against the disk.
    fn note_fault(&self, id: ChunkId, volume: &Volume, error: &ChunkError) {
        if !error.is_damage() {
            return;
        }
        tracing::error!("chunk {id} on {} is damaged: {error}", volume.folder.display());
        self.core.shared.reports.damaged(id);
        self.core.shared.reports.disk_error();
        if volume.note_error(id, error.is_hard(), &self.ring, &self.settings.get()) {
            self.lose_volume(volume);
        }
    }

    /// The version of a chunk that we have on a disk that works, as the master is told it.
    pub(crate) fn present_version(&self, id: ChunkId) -> Option<u32> {
        let place = self.core.place(id)?;
        self.volume(place.volume).is_usable().then(|| self.reported_version(place))
    }

    /// The version as the master is told it: bit 31 says that the disk is marked for removal.
    pub(crate) fn reported_version(&self, place: Place) -> u32 {
        let mark = if self.volume(place.volume).is_marked() { Version::MARKED_FOR_REMOVAL } else { 0 };
        place.version.0 & !Version::MARKED_FOR_REMOVAL | mark
    }

    /// Closes chunks that nobody has used for a while, and more of them when many are open. Waits for no disk.
    pub(crate) fn close_idle(self: &Rc<Self>) {
        let now = self.ring.now();
        let mut idle: Vec<(Instant, Rc<Chunk>)> =
            self.in_use.borrow().values().map(|chunk| (chunk.last_used.get(), chunk.clone())).collect();
        idle.sort_by_key(|(last_used, _)| *last_used);
        let surplus = idle.len().saturating_sub(self.core.share(IDLE_OPEN_MAX));
        for (at, (last_used, chunk)) in idle.into_iter().enumerate() {
            if !chunk.is_unused() || (at >= surplus && now - last_used < IDLE_OPEN) {
                continue;
            }
            if !chunk.has_unwritten_sums() {
                self.close(&chunk);
            } else if chunk.volume().is_some_and(|volume| !volume.hangs()) {
                let store = self.clone();
                self.ring.spawn(async move {
                    if store.write_table(&chunk).await.is_ok() && chunk.is_unused() && !chunk.has_unwritten_sums() {
                        store.close(&chunk);
                    }
                });
            }
        }
    }

    fn close(&self, chunk: &Chunk) {
        chunk.state.take();
        self.in_use.borrow_mut().remove(&chunk.id);
    }
}

/// What a volume's mode means for its chunk files. Blocks are asked for by those who know what is wanted next; with
/// several of them under way, the kernel's reading ahead would only be in the way.
fn how_to_open(mode: IoMode) -> OpenHow {
    let (direct, uncached) = (mode == IoMode::Direct, mode == IoMode::DontCache);
    OpenHow { direct, uncached, random: true, ..OpenHow::default() }
}

fn check_version(found: Version, asked: Version) -> Result<(), ChunkError> {
    if asked == Version::ANY || asked == found { Ok(()) } else { Err(ChunkError::WrongVersion) }
}

impl Chunk {
    fn new(id: ChunkId, now: Instant) -> Chunk {
        Chunk {
            id,
            lock: Rc::default(),
            file_lock: Rc::default(),
            block_locks: RefCell::default(),
            sync_lock: Rc::default(),
            writes_ended: Cell::new(0),
            writes_synced: Cell::new(0),
            flushes: Cell::new(0),
            sync_failed: RefCell::default(),
            name_is_durable: Cell::new(false),
            state: RefCell::default(),
            gone: Cell::new(false),
            write_sessions: Cell::new(0),
            last_used: Cell::new(now),
        }
    }

    /// Has nobody a handle, but for the map and whoever asks?
    fn is_unused(self: &Rc<Self>) -> bool {
        Rc::strong_count(self) == 2 && self.lock.is_idle() && self.write_sessions.get() == 0
    }

    /// Errors: `NoChunk` if it was deleted meanwhile, `WrongVersion`.
    fn check(&self, version: Version) -> Result<(), ChunkError> {
        match &*self.state.borrow() {
            Some(open) => check_version(open.place.version, version),
            None => Err(ChunkError::NoChunk),
        }
    }

    /// Takes a place in the line of those who change a block.
    pub(crate) fn block_turn(&self, block: BlockIndex) -> Turn {
        let mut locks = self.block_locks.borrow_mut();
        let of_block = locks.iter().position(|(other, _)| *other == block);
        let place = of_block.or_else(|| locks.iter().position(|(_, lock)| lock.is_idle())).unwrap_or_else(|| {
            locks.push((block, Rc::default()));
            locks.len() - 1
        });
        locks[place].0 = block;
        locks[place].1.enqueue(Hold::Exclusive)
    }

    pub(crate) fn blocks(&self) -> u16 {
        self.state.borrow().as_ref().map_or(0, |open| open.blocks)
    }

    /// Blocks as they are counted against the limit of the disk: those of a cut file that it has.
    fn counted_blocks(&self) -> u16 {
        self.state.borrow().as_ref().map_or(0, |open| open.blocks.min(open.file_blocks))
    }

    pub(crate) fn sums(&self) -> SumTable {
        self.state.borrow().as_ref().map_or_else(SumTable::default, |open| open.sums.clone())
    }

    fn has_unwritten_sums(&self) -> bool {
        self.state.borrow().as_ref().is_some_and(|open| open.sums_changed)
    }

    fn volume(&self) -> Option<Rc<Volume>> {
        self.state.borrow().as_ref().map(|open| open.volume.clone())
    }
}
