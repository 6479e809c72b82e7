//! The intent log of one disk: what is about to change is written down, durably, before it changes.
//!
//! The table of sums is written behind the data. Without the log, a crash between the two would turn a good block into
//! a bad one. So the new sum of a block goes to the log first; at the next start the blocks that the log names are
//! hashed, and a block that matches its table entry or a logged sum is good. One that matches neither was torn.
//!
//! The log forgets a chunk only when the device, not the system alone, has its table: a checkpoint (`Store::checkpoint`)
//! every some seconds, an `fsync` of a client, or the policy `synced` sees to that.
//!
//! The log is a ring of 4 KiB pages in a preallocated file beside the chunk folders. Records that come while a page is
//! on its way are written together by the next one (group commit): a page holds 127, so a disk that takes 10 000
//! synchronous writes a second takes a million records. A page is overwritten one round later; by then the tables of
//! the chunks that it names must be on disk, and `pressure` asks for that in time.
//!
//! A log that is not synced page by page (files go through the page cache) fills the page it began: later records are
//! added and the page is written again, until it is full, until a sync of the log counts on it, or until a table of sums
//! is written that covers it. Else a page would hold two or three records, the ring would be through in a fifth of a
//! second, and the file system would be synced five times a second to make room.

pub(crate) mod record;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ring::local::{Notify, Semaphore};
use ring::{Block, File, IoBufExt, OpenHow, Ring};
use wire::ChunkId;

use crate::cores::CORES_MAX;
use crate::health::Health;

use record::{Intent, PAGE_BYTES, Page, RECORDS_PER_PAGE, Repair, decode_page, encode_page};

/// Name of the first core's log inside a volume's folder; those of the others have their number behind it. A stock
/// chunkserver does not look at them.
const LOG_NAME: &str = ".mooring_intents";

pub(crate) fn log_name(core: usize) -> String {
    if core == 0 { LOG_NAME.to_owned() } else { format!("{LOG_NAME}.{core}") }
}

/// The core whose log has this name.
pub(crate) fn core_of_name(name: &[u8]) -> Option<usize> {
    let number = std::str::from_utf8(name).ok()?.strip_prefix(LOG_NAME)?;
    let core = if number.is_empty() { 0 } else { number.strip_prefix('.')?.parse().ok()? };
    (log_name(core).as_bytes() == name).then_some(core)
}

/// Pages of a ring: 8 MiB. Each core has one of its own for each disk. A smaller ring is under pressure sooner, and each
/// time all that the disk's file system holds is synced: with half of it writing to new chunks cost four times the CPU.
pub(crate) const PAGES: u64 = 2048;
/// A ring may be as small as this on a disk that is full.
const PAGES_MIN: u64 = 4 * PAGES_PER_COMMIT as u64;
/// See `follow_loop`.
const LAG_MAX: Duration = Duration::from_millis(200);
/// Bytes of the largest ring.
const LOG_BYTES: u64 = PAGES * PAGE_BYTES as u64;
/// Pages written at a time: one pool buffer full.
const PAGES_PER_COMMIT: usize = 16;
/// Bytes of the buffers through which the log is read and written.
const BUFFER_BYTES: usize = PAGES_PER_COMMIT * PAGE_BYTES;
const _: () = assert!(BUFFER_BYTES == ring::PAYLOAD_BYTES && LOG_BYTES.is_multiple_of(BUFFER_BYTES as u64));

pub(crate) struct IntentLog {
    ring: Ring,
    /// Pages are written durably.
    synced: bool,
    file: File,
    /// Pages of the ring, by the size of the file: the number of cores may be another one than when it was made.
    pages: u64,
    state: RefCell<State>,
    /// Something waits to be committed.
    pending: Notify,
    /// One sync of the file at a time.
    syncing: Semaphore,
    /// One write of pages at a time, and none that a sync does not know of.
    writing: Semaphore,
    /// Syncs of the disk's file system under way: see `hurry`.
    hurried: Cell<u32>,
    /// The ring fills up: tables must be written.
    pressure: Notify,
    /// A chunk was settled, or the log broke.
    relief: Notify,
}

#[derive(Default)]
struct State {
    /// Number of the next page.
    next: u64,
    /// The page before it, if records may still be added there, and what it holds.
    open: Option<OpenPage>,
    open_records: Vec<Intent>,
    /// What waits to be committed, in order.
    waiting: VecDeque<Intent>,
    /// Records that were ever put in the line, and how many of them are durable.
    asked: u64,
    committed: u64,
    /// Who waits for a record, by its number, ascending.
    waiters: VecDeque<(u64, Waker)>,
    /// Ride along with the next page, whenever that is.
    lazy: Vec<Intent>,
    /// Per chunk, first and last page with records that its table on disk may not cover.
    unsettled: BTreeMap<ChunkId, (u64, u64)>,
    /// Chunks whose table the system has, and the page before which it covers all records; the device may not have it.
    written: BTreeMap<ChunkId, u64>,
    /// The system has all pages before this one, and the device all before that one.
    written_pages: u64,
    durable_pages: u64,
    broken: bool,
}

#[derive(Clone, Copy)]
struct OpenPage {
    sequence: u64,
    /// When its first record came.
    wall_sec: u64,
}

impl State {
    fn break_down(&mut self) -> VecDeque<(u64, Waker)> {
        self.broken = true;
        self.waiting.clear();
        std::mem::take(&mut self.waiters)
    }
}

/// The log could not be written: nothing may be changed on this disk.
#[derive(Debug)]
pub(crate) struct LogBroken;

/// How a log is written.
#[derive(Clone, Copy)]
pub(crate) struct LogKind {
    pub(crate) direct: bool,
    /// Every page reaches the device before what it announces is done.
    pub(crate) synced: bool,
    /// Mode of a new file.
    pub(crate) mode: u32,
}

/// Is this the error of a disk without room?
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl IntentLog {
    /// Opens the log of one core, of so many pages, of the volume at `folder`, making it if it is not there, and says what it
    /// asks to repair.
    ///
    /// Errors: the disk's; `is_full` if there is not even room for a small one.
    pub(crate) async fn open(
        ring: &Ring,
        folder: &Path,
        (core, pages_wanted): (usize, u64),
        kind: LogKind,
    ) -> io::Result<(Rc<IntentLog>, BTreeMap<ChunkId, Repair>)> {
        let LogKind { direct, synced, mode } = kind;
        let path = folder.join(log_name(core));
        let file = ring.open(&path, OpenHow { read: true, ..OpenHow::create(mode) }).await?;
        let pages = read_pages(ring, &file).await?;
        let next = pages.iter().map(|page| page.sequence + 1).max().unwrap_or(0);
        let repairs = record::repairs(pages);
        let may_be_remade = repairs.is_empty() && has_room_for_logs(ring, folder).await?;
        let ring_pages = match make_size(ring, &file, pages_wanted, may_be_remade).await {
            Err(error) if is_full(&error) => {
                let _ = ring.unlink(&path).await; // too small for a log: else it is tried again
                return Err(error);
            }
            other => other?,
        };
        drop(file);
        let how = OpenHow { direct, dsync: synced, ..OpenHow::read_write() };
        let file = match ring.open(&path, how).await {
            Err(error) if direct && error.kind() == io::ErrorKind::InvalidInput => {
                ring.open(&path, OpenHow { direct: false, ..how }).await?
            }
            other => other?,
        };
        let log = IntentLog {
            ring: ring.clone(),
            synced,
            file,
            pages: ring_pages,
            state: RefCell::new(State {
                next,
                open_records: Vec::with_capacity(RECORDS_PER_PAGE),
                written_pages: next,
                durable_pages: next,
                ..State::default()
            }),
            pending: Notify::new(),
            syncing: Semaphore::new(1),
            writing: Semaphore::new(1),
            hurried: Cell::new(0),
            pressure: Notify::new(),
            relief: Notify::new(),
        };
        Ok((Rc::new(log), repairs))
    }

    /// Writes down what is about to be done; returns when that is durable. Errors: `LogBroken`.
    pub(crate) async fn record(&self, intent: Intent) -> Result<(), LogBroken> {
        let number = {
            let mut state = self.state.borrow_mut();
            if state.broken {
                return Err(LogBroken);
            }
            state.waiting.push_back(intent);
            state.asked += 1;
            state.asked
        };
        self.pending.notify_one();
        let mut stands_in_line = false;
        poll_fn(|context| {
            let mut state = self.state.borrow_mut();
            if state.committed >= number {
                return Poll::Ready(Ok(()));
            }
            if state.broken {
                return Poll::Ready(Err(LogBroken));
            }
            if !stands_in_line {
                stands_in_line = true;
                state.waiters.push_back((number, context.waker().clone()));
            } else if let Some((_, waker)) = state.waiters.iter_mut().find(|(waiting, _)| *waiting == number) {
                waker.clone_from(context.waker());
            }
            Poll::Pending
        })
        .await
    }

    /// Number of the page to write: whatever is recorded from now on gets this one or a later one.
    pub(crate) fn page_at_hand(&self) -> u64 {
        let state = self.state.borrow();
        state.open.map_or(state.next, |page| page.sequence)
    }

    /// As `page_at_hand`, of a page in which nothing is recorded yet.
    pub(crate) fn next_page(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.open = None;
        state.next
    }

    /// The system has the chunk's table, which covers all its records on pages before `before`.
    pub(crate) fn table_written(&self, id: ChunkId, before: u64) {
        let mut state = self.state.borrow_mut();
        if state.unsettled.contains_key(&id) {
            state.written.insert(id, before);
        }
    }

    /// What `table_written` has told of one chunk, to be given to `tables_are_durable`.
    pub(crate) fn table_written_of(&self, id: ChunkId) -> Option<(ChunkId, u64)> {
        self.state.borrow().written.get(&id).map(|before| (id, *before))
    }

    /// As `table_written_of`, of all chunks.
    pub(crate) fn tables_written(&self) -> Vec<(ChunkId, u64)> {
        self.state.borrow().written.iter().map(|(id, before)| (*id, *before)).collect()
    }

    /// The device has what these tables and their blocks were when the list was made.
    pub(crate) fn tables_are_durable(&self, written: impl IntoIterator<Item = (ChunkId, u64)>) {
        for (id, before) in written {
            let mut state = self.state.borrow_mut();
            if state.written.get(&id) == Some(&before) {
                state.written.remove(&id);
            }
            drop(state);
            self.settle(id, before);
        }
    }

    /// The device has all pages that were written until now. Those who wait at the same time share a sync. Errors: the
    /// disk's.
    pub(crate) async fn make_durable(&self) -> io::Result<()> {
        let wanted = self.state.borrow().written_pages;
        if self.state.borrow().durable_pages >= wanted {
            return Ok(());
        }
        let _turn = self.syncing.acquire(1).await;
        if self.state.borrow().durable_pages >= wanted {
            return Ok(());
        }
        // A page that is written again while the device takes it may be torn there: none of those that count is.
        self.next_page();
        drop(self.writing.acquire(1).await);
        let covered = self.state.borrow().written_pages;
        if let Err(error) = self.file.datasync().await {
            // The system has given up these pages; another sync would succeed without them.
            tracing::error!("the intent log cannot be synced, its disk takes no more changes: {error}");
            let waiters = self.state.borrow_mut().break_down();
            waiters.into_iter().for_each(|(_, waker)| waker.wake());
            return Err(error);
        }
        self.state.borrow_mut().durable_pages = covered;
        Ok(())
    }

    /// From here to `calm`, the system writes back whatever it has: what is recorded must be durable before it is done.
    pub(crate) fn hurry(&self) {
        self.hurried.set(self.hurried.get() + 1);
    }

    pub(crate) fn calm(&self) {
        self.hurried.set(self.hurried.get() - 1);
    }

    pub(crate) fn is_hurried(&self) -> bool {
        self.hurried.get() > 0
    }

    #[cfg(test)]
    pub(crate) fn is_durable(&self) -> bool {
        let state = self.state.borrow();
        state.durable_pages == state.written_pages
    }

    /// Keeps a log whose pages are not written durably (files go through the page cache) at most this far behind: the
    /// system writes files back seconds later, and until then a power cut takes their pages and the log's alike.
    pub(crate) async fn follow_loop(self: Rc<Self>) {
        loop {
            self.ring.sleep(LAG_MAX).await;
            if self.make_durable().await.is_err() {
                return; // said there
            }
        }
    }

    /// The chunk's table on the device covers all its records on pages before `before`.
    pub(crate) fn settle(&self, id: ChunkId, before: u64) {
        let mut state = self.state.borrow_mut();
        let Some((first, last)) = state.unsettled.get_mut(&id) else { return };
        if *first >= before {
            return;
        }
        *first = before;
        if *last < before {
            state.unsettled.remove(&id);
        }
        state.lazy.push(Intent::Settled { id, before });
        drop(state);
        self.relief.notify_all();
    }

    /// Waits until the log fills up, then names the chunks whose tables must be written, oldest records first.
    pub(crate) async fn under_pressure(&self) -> Vec<ChunkId> {
        loop {
            let chunks = self.old_chunks();
            if !chunks.is_empty() {
                return chunks;
            }
            self.pressure.notified().await;
        }
    }

    /// Nothing if half of the ring is free. If not, what stands in a much younger half is named too: one checkpoint then
    /// makes room for long.
    fn old_chunks(&self) -> Vec<ChunkId> {
        let state = self.state.borrow();
        let older_than = |pages: u64, first: u64| first + pages < state.next;
        if !state.unsettled.values().any(|(first, _)| older_than(self.pages / 2, *first)) {
            return Vec::new();
        }
        let unsettled = state.unsettled.iter();
        let mut chunks: Vec<(u64, ChunkId)> = unsettled
            .filter(|(_, (first, _))| older_than(self.pages / 8, *first))
            .map(|(id, (first, _))| (*first, *id))
            .collect();
        chunks.sort_unstable();
        chunks.into_iter().map(|(_, id)| id).collect()
    }

    /// Commits records until the log breaks or the task is dropped. One task per log runs this. `health`: of its disk.
    pub(crate) async fn commit_loop(self: Rc<Self>, health: Rc<Health>) {
        let mut buffer = self.ring.wait_buffer().await;
        let mut records = Vec::new();
        loop {
            let asked = self.next_batch(&mut records).await;
            let under_way = health.begin(&self.ring);
            let writing = self.writing.acquire(1).await;
            let (result, back) = self.commit(&mut records, buffer).await;
            drop((writing, under_way));
            buffer = back;
            if let Err(error) = &result {
                tracing::error!("the intent log cannot be written, its disk takes no more changes: {error}");
                let waiters = self.state.borrow_mut().break_down();
                waiters.into_iter().for_each(|(_, waker)| waker.wake());
                return;
            }
            self.state.borrow_mut().committed += asked;
            self.wake_committed();
        }
    }

    fn wake_committed(&self) {
        let mut state = self.state.borrow_mut();
        while let Some((number, _)) = state.waiters.front()
            && *number <= state.committed
        {
            let (_, waker) = state.waiters.pop_front().expect("the front was just seen");
            waker.wake(); // runs no task
        }
    }

    /// Says in the log that nothing is left to repair. The caller has written all tables. Errors: the disk's; then the log
    /// may ask for the same repairs at the next start.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        self.record(Intent::Clean).await.map_err(|LogBroken| io::Error::other("the intent log cannot be written"))?;
        self.file.datasync().await
    }

    /// Waits for records and puts them into `records`. Gives how many of them somebody waits for.
    async fn next_batch(&self, records: &mut Vec<Intent>) -> u64 {
        loop {
            {
                let state = &mut *self.state.borrow_mut();
                let room = self.pages_free(state);
                if room <= self.pages / 2 {
                    self.pressure.notify_one();
                }
                if !state.waiting.is_empty() && room >= PAGES_PER_COMMIT as u64 {
                    records.clear();
                    let lazy_count = state.lazy.len().min(RECORDS_PER_PAGE);
                    records.extend(state.lazy.drain(..lazy_count));
                    let count_max = RECORDS_PER_PAGE * (PAGES_PER_COMMIT - 1) - records.len(); // one page may be open
                    let count = state.waiting.len().min(count_max);
                    records.extend(state.waiting.drain(..count));
                    return count as u64;
                }
            }
            if self.state.borrow().waiting.is_empty() {
                self.pending.notified().await;
            } else {
                self.relief.notified().await;
            }
        }
    }

    /// Pages that may be written before one with unsettled records would be overwritten.
    fn pages_free(&self, state: &State) -> u64 {
        let oldest = state.unsettled.values().map(|(first, _)| *first).min().unwrap_or(state.next);
        self.pages - (state.next - oldest)
    }

    /// Writes pages with these records, the first of them behind those of the open page. `records` is spoilt.
    async fn commit(&self, records: &mut Vec<Intent>, mut buffer: Block) -> (io::Result<()>, Block) {
        let now_sec = self.ring.wall_micros() / 1_000_000;
        let (first, pages) = {
            let state = &mut *self.state.borrow_mut();
            let open = state.open.take();
            let known = open.map_or(0, |_| state.open_records.len());
            let OpenPage { sequence: first, wall_sec } =
                open.unwrap_or(OpenPage { sequence: state.next, wall_sec: now_sec });
            records.splice(..0, state.open_records.drain(..).take(known));
            let pages = records.len().div_ceil(RECORDS_PER_PAGE);
            for (at, page) in records.chunks(RECORDS_PER_PAGE).enumerate() {
                let sequence = first + at as u64;
                let wall_sec = if at == 0 { wall_sec } else { now_sec };
                encode_page(
                    sequence,
                    wall_sec,
                    page,
                    &mut buffer.payload_mut()[at * PAGE_BYTES..(at + 1) * PAGE_BYTES],
                );
                for record in page {
                    if let Intent::Write { id, .. } | Intent::Truncate { id, .. } = record {
                        state.unsettled.entry(*id).or_insert((sequence, sequence)).1 = sequence;
                    }
                }
                if at + 1 == pages && page.len() < RECORDS_PER_PAGE && !self.synced {
                    state.open = Some(OpenPage { sequence, wall_sec });
                    state.open_records.extend_from_slice(page);
                }
            }
            state.next = first + pages as u64;
            (first, pages)
        };
        // A batch that crosses the end of the ring takes two writes.
        let until_end = ((self.pages - first % self.pages) as usize).min(pages);
        let parts = [(0, until_end, first % self.pages), (until_end, pages, 0)];
        for (from, to, position) in parts.into_iter().filter(|(from, to, _)| from < to) {
            let piece = buffer.slice(from * PAGE_BYTES..to * PAGE_BYTES);
            let (result, piece) = self.file.write_all_at(piece, position * PAGE_BYTES as u64).await;
            buffer = piece.into_inner();
            if result.is_err() {
                return (result, buffer);
            }
        }
        let mut state = self.state.borrow_mut();
        state.written_pages = first + pages as u64;
        if self.synced {
            state.durable_pages = state.written_pages;
        }
        drop(state);
        (Ok(()), buffer)
    }
}

/// What a log asks to repair that no core writes any more. Errors: the disk's.
pub(crate) async fn repairs_of(ring: &Ring, path: &Path) -> io::Result<BTreeMap<ChunkId, Repair>> {
    let file = ring.open(path, OpenHow::read()).await?;
    Ok(record::repairs(read_pages(ring, &file).await?))
}

/// Has the disk room for larger logs of all cores, and some to spare? A log that is given up for a larger one must not
/// end as none. Errors: the disk's.
async fn has_room_for_logs(ring: &Ring, folder: &Path) -> io::Result<bool> {
    Ok(ring.space(folder).await?.available_bytes >= 2 * CORES_MAX as u64 * LOG_BYTES)
}

/// Gives a log's file the size of `wanted` pages, or what a full disk has room for, with zeros written out: pages are then
/// overwritten in place, and no write of the log waits for the file system's own journal. Gives its pages.
///
/// A file that is larger stays as it is. A smaller one is made anew, since a page's place follows from the size: but only
/// `may_be_remade`, if there is nothing in it to repair and room enough to be sure of a new one. Errors: the disk's; `is_full`
/// if there is no room for `PAGES_MIN`.
async fn make_size(ring: &Ring, file: &File, wanted: u64, may_be_remade: bool) -> io::Result<u64> {
    let (buffer_bytes, page_bytes) = (BUFFER_BYTES as u64, PAGE_BYTES as u64);
    let size = file.stat().await?.size.min(LOG_BYTES);
    let pages = size / buffer_bytes * buffer_bytes / page_bytes;
    if pages >= wanted || (pages >= PAGES_MIN && !may_be_remade) {
        return Ok(pages);
    }
    file.set_len(0).await?;
    let mut buffer = ring.wait_buffer().await;
    buffer.payload_mut().fill(0);
    let mut filled = 0;
    while filled < wanted * page_bytes {
        let (result, back) = file.write_all_at(buffer, filled).await;
        buffer = back;
        match result {
            Err(error) if is_full(&error) && filled >= PAGES_MIN * page_bytes => {
                tracing::warn!(
                    "the disk is full: its intent log has {filled} bytes instead of {}",
                    wanted * page_bytes
                );
                file.set_len(filled).await?; // of the last piece a part may be there
                break;
            }
            other => other?,
        }
        filled += buffer_bytes;
    }
    file.datasync().await?;
    Ok(filled / page_bytes)
}

/// All whole pages of the file.
async fn read_pages(ring: &Ring, file: &File) -> io::Result<Vec<Page>> {
    let mut pages = Vec::new();
    let mut buffer = ring.wait_buffer().await;
    for position in (0..file.stat().await?.size.min(LOG_BYTES)).step_by(BUFFER_BYTES) {
        let (result, back) = file.read_at(buffer, position).await;
        buffer = back;
        let count = result?;
        pages.extend(buffer.payload()[..count].chunks(PAGE_BYTES).filter_map(decode_page));
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_core_has_a_log_of_its_own_name() {
        for core in [0, 1, 17] {
            assert_eq!(core_of_name(log_name(core).as_bytes()), Some(core));
        }
        for other in
            [".mooring_intents.", ".mooring_intents.0", ".mooring_intents.01", ".mooring_intents.x", ".mooring_torn"]
        {
            assert_eq!(core_of_name(other.as_bytes()), None, "{other}");
        }
    }

    /// Opens a log of so many pages in a simulated world, commits `writes` records to it, and gives its
    /// pages and the chunks that it asked to repair.
    async fn use_log(ring: Ring, wanted: u64, writes: u64, clean: bool) -> (u64, usize) {
        let kind = LogKind { direct: false, synced: true, mode: 0o644 };
        let (log, repairs) = IntentLog::open(&ring, Path::new("/d"), (0, wanted), kind).await.unwrap();
        let committing = ring.spawn(log.clone().commit_loop(Rc::default()));
        for number in 1..=writes {
            let (block, sum) = (crate::layout::BlockIndex::new(0).unwrap(), wire::Crc(1));
            log.record(Intent::Write { id: ChunkId(number), version: wire::Version(1), block, sum }).await.unwrap();
        }
        if clean {
            log.finish().await.unwrap();
        }
        committing.abort();
        (log.pages, repairs.len())
    }

    fn write(number: u64) -> Intent {
        let (block, sum) = (crate::layout::BlockIndex::new(0).unwrap(), wire::Crc(number as u32));
        Intent::Write { id: ChunkId(number), version: wire::Version(1), block, sum }
    }

    /// Runs `job` with a log in a simulated world and gives the records of the log's pages afterwards, in their order.
    fn pages_after<F: Future<Output = ()> + 'static>(
        synced: bool,
        job: impl FnOnce(Ring, Rc<IntentLog>) -> F + 'static,
    ) -> Vec<(u64, Vec<Intent>)> {
        let world = ring::sim::World::new(1, ring::sim::Settings::default());
        let node = world.node([10, 0, 0, 1].into());
        let pages = world.run(node, move |ring| async move {
            ring.mkdir(Path::new("/d"), 0o755).await.unwrap();
            let kind = LogKind { direct: false, synced, mode: 0o644 };
            let (log, _) = IntentLog::open(&ring, Path::new("/d"), (0, PAGES_MIN), kind).await.unwrap();
            let committing = ring.spawn(log.clone().commit_loop(Rc::default()));
            job(ring.clone(), log.clone()).await;
            committing.abort();
            let mut pages = read_pages(&ring, &log.file).await.unwrap();
            pages.sort_by_key(|page| page.sequence);
            pages.into_iter().map(|page| (page.sequence, page.records)).collect()
        });
        pages.unwrap()
    }

    #[test]
    fn a_page_is_filled_before_the_next_is_begun() {
        let filled = pages_after(false, |_, log| async move {
            for number in 0..RECORDS_PER_PAGE as u64 + 2 {
                log.record(write(number)).await.unwrap();
            }
            assert_eq!((log.page_at_hand(), log.state.borrow().written_pages), (1, 2));
        });
        let of_first_page = (0..RECORDS_PER_PAGE as u64).map(write).collect();
        let of_second_page = (RECORDS_PER_PAGE as u64..RECORDS_PER_PAGE as u64 + 2).map(write).collect();
        assert_eq!(filled, [(0, of_first_page), (1, of_second_page)]);
    }

    #[test]
    fn a_page_that_the_device_has_is_not_written_again() {
        let pages = pages_after(false, |_, log| async move {
            log.record(write(1)).await.unwrap();
            log.make_durable().await.unwrap();
            log.record(write(2)).await.unwrap();
            log.record(write(3)).await.unwrap();
            assert!(!log.is_durable(), "two records came behind the sync");
            // A table that covers what was recorded: what comes later is told apart by its page.
            assert_eq!((log.page_at_hand(), log.next_page(), log.page_at_hand()), (1, 2, 2));
            log.record(write(4)).await.unwrap();
        });
        assert_eq!(pages, [(0, vec![write(1)]), (1, vec![write(2), write(3)]), (2, vec![write(4)])]);
        let pages = pages_after(true, |_, log| async move {
            log.record(write(1)).await.unwrap();
            log.record(write(2)).await.unwrap();
            assert!(log.is_durable());
        });
        assert_eq!(pages, [(0, vec![write(1)]), (1, vec![write(2)])], "each page is on the device at once");
    }

    #[test]
    fn a_sync_waits_for_the_page_that_is_being_written() {
        pages_after(false, |ring, log| async move {
            log.record(write(1)).await.unwrap();
            let being_written = log.writing.acquire(1).await;
            let syncing = ring.spawn({
                let log = log.clone();
                async move { log.make_durable().await.unwrap() }
            });
            ring.sleep(LAG_MAX).await;
            assert!(!log.is_durable());
            drop(being_written);
            syncing.await;
            assert!(log.is_durable());
        });
    }

    #[test]
    fn pressure_names_more_than_what_is_in_the_way() {
        let _ = pages_after(false, |_, log| async move {
            for number in 0..log.pages / 2 + 2 {
                assert_eq!(
                    log.old_chunks().len(),
                    if number <= log.pages / 2 { 0 } else { 1 + 3 * log.pages as usize / 8 }
                );
                log.record(write(number)).await.unwrap();
                log.next_page();
            }
        });
    }

    #[test]
    fn a_log_gets_another_size_only_when_there_is_nothing_in_it_to_repair() {
        let world = ring::sim::World::new(1, ring::sim::Settings::default());
        let node = world.node([10, 0, 0, 1].into());
        let used = world.run(node, |ring| async move {
            ring.mkdir(Path::new("/d"), 0o755).await.unwrap();
            let mut used = Vec::new();
            for (wanted, writes, clean) in [(512, 3, false), (2048, 2, true), (2048, 700, true), (1024, 0, true)] {
                used.push(use_log(ring.clone(), wanted, writes, clean).await);
            }
            used
        });
        assert_eq!(used.unwrap(), [(512, 0), (512, 3), (2048, 0), (2048, 0)]);
    }

    #[test]
    fn a_log_on_a_disk_that_is_nearly_full_stays_as_small_as_it_is() {
        let world = ring::sim::World::new(1, ring::sim::Settings::default());
        let node = world.node([10, 0, 0, 1].into());
        world.set_disk_bytes(node, 100 << 20);
        let used = world.run(node, |ring| async move {
            ring.mkdir(Path::new("/d"), 0o755).await.unwrap();
            let mut used = Vec::new();
            for wanted in [512, 2048] {
                used.push(use_log(ring.clone(), wanted, 3, true).await);
            }
            used
        });
        assert_eq!(used.unwrap(), [(512, 0), (512, 0)]);
    }
}
