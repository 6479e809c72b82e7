//! The journal on disk: written in batches, made durable, rotated; and what waits for it.
//!
//! ```text
//! handlers --lines--> pending --take all--> write, fdatasync --> durable --> answers and commands that waited leave
//!              ^                                 |
//!              '---- more lines gather ----------'     one batch = all that came during the last fdatasync
//! ```
//!
//! A packet that tells of a change never leaves before its line is durable; packets of pure reads leave at once. If the
//! disk refuses a batch, or the file is no longer where a start would look for it, it is tried again and nothing is
//! acknowledged meanwhile: the folder may be filled, removed, or no longer mounted. Spec 51, 1 and 3; Spec 42, C.2.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::join;
use meta::Namespace;
use meta::journal::{Batch, TORN_BYTES_MAX};
use ring::{File, Instant, IoBufExt, OpenHow, Ring};
use tracing::{error, info, warn};
use wire::{MatoanMetachangesLog, MetaId, Packet, Rest};

use super::Shared;
use super::folder::{self, Own, Verdict};
use super::images;
use super::settings::Settings;
use crate::connection::{KeepAlive, Outbox};
use crate::data_folder::{BACK, FILE_MODE, gone_is_fine, journal_path};

/// Lines are written in whole pages of this size.
const PAGE_BYTES: usize = 4096;
/// The file is extended to multiples of this.
const AHEAD_BYTES: u64 = 1 << 20;
const _: () = assert!(TORN_BYTES_MAX <= ring::PAYLOAD_BYTES && TORN_BYTES_MAX.is_multiple_of(PAGE_BYTES));
/// At most so many lines are handed to a follower that comes back, before it has taken them. Spec 42, 3.1.
const PAGE_LINES: usize = 10_000;
/// ... and at most about so many bytes.
const PAGE_BYTES_MAX: usize = 8 << 20;
/// While nothing is to be written, it is looked so often whether the data folder is still there.
const LOOK: Duration = Duration::from_secs(5);
/// How far the metadata came is noted beside the journal at least so often while changes are made.
const NOTE: Duration = Duration::from_secs(10);
/// A folder must be found empty so often, `RETRY` apart, before it counts as emptied: somebody may be about to unpack a
/// backup there.
const EMPTY_LOOKS: u32 = 3;
/// How long the disk gets before a refused batch is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Lines that are not durable yet, packets that wait for them, and lines that followers may still ask for.
pub(super) struct Queue {
    /// Lines for the next batch.
    pending: Batch,
    /// Version behind the last durable line.
    durable: u64,
    waiting: VecDeque<Waiting>,
    remembered: VecDeque<(u32, Batch)>,
    /// Bytes of lines in the file that is being written; behind them it may be padded. `None`: it is not open, and not
    /// padded.
    file_bytes: Option<u64>,
    rotate: bool,
    stop: bool,
    /// The last batch cannot be written.
    stuck: bool,
    /// A person says that the data folder may be on another disk from now on.
    accept_folder: bool,
    /// The last durable line, with its newline; empty: not known.
    last_line: Vec<u8>,
    /// The newest file has lines.
    has_lines: bool,
}

struct Waiting {
    version: u64,
    outbox: Rc<Outbox>,
    packet: Vec<u8>,
    keep_alive: Option<KeepAlive>,
}

impl Queue {
    /// `version`: that of the next line.
    pub(super) fn new(version: u64) -> Queue {
        Queue {
            pending: Batch { first: version, next: version, bytes: Vec::new() },
            durable: version,
            waiting: VecDeque::new(),
            remembered: VecDeque::new(),
            file_bytes: None,
            rotate: false,
            stop: false,
            stuck: false,
            accept_folder: false,
            last_line: Vec::new(),
            has_lines: false,
        }
    }

    /// Lines for the next batch. Returns whether there were any.
    pub(super) fn take_from(&mut self, namespace: &mut Namespace) -> bool {
        namespace.take_journal_into(&mut self.pending)
    }

    /// Everything up to this version is durable.
    pub(super) fn is_durable(&self, version: u64) -> bool {
        self.durable >= version
    }

    /// Sends the packet once `version` is durable.
    pub(super) fn send_when_durable(
        &mut self,
        version: u64,
        outbox: &Rc<Outbox>,
        packet: Vec<u8>,
        keep_alive: Option<KeepAlive>,
    ) {
        self.waiting.push_back(Waiting { version, outbox: outbox.clone(), packet, keep_alive });
    }

    /// How many of the bytes of the newest file are lines, if not all.
    pub(super) fn file_bytes(&self) -> Option<u64> {
        self.file_bytes
    }

    pub(super) fn ask_for_rotation(&mut self) {
        self.rotate = true;
    }

    /// If the journal waits because the data folder is on another disk: that is as it should be.
    pub(super) fn accept_folder(&mut self) {
        self.accept_folder = self.stuck;
    }

    /// The writer ends once everything is durable, with a last rotation.
    pub(super) fn ask_for_stop(&mut self) {
        self.stop = true;
    }

    /// Lines that were durable before this run, so that those who follow can compare and go on.
    pub(super) fn remember(&mut self, tail: Batch, now: u32) {
        debug_assert!(self.remembered.is_empty() && tail.next <= self.durable, "they are older than all others");
        if tail.next == self.durable && !tail.is_empty() {
            self.last_line = last_line_of(&tail.bytes).to_vec();
            self.remembered.push_back((now, tail));
        }
    }

    /// What is not durable yet may never be: the disk refuses it, or the writer is about to end.
    pub(super) fn may_stay_behind(&self) -> bool {
        self.stuck || self.stop
    }

    /// Number of the first line that is not durable.
    pub(super) fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether the lines from `version` on are still here.
    pub(super) fn remembers(&self, version: u64) -> bool {
        let oldest = self.remembered.front().map_or(self.durable, |(_, batch)| batch.first);
        (oldest..=self.durable).contains(&version)
    }

    /// Packets of the lines from `version` on, oldest first, and the number of the line behind them; `None` if they are
    /// no longer remembered. With `version` = `durable()` there are none.
    pub(super) fn page_from(&self, version: u64) -> Option<(Vec<Vec<u8>>, u64)> {
        if !self.remembers(version) {
            return None;
        }
        let begin = self.remembered.partition_point(|(_, batch)| batch.next <= version);
        let (mut packets, mut next, mut bytes) = (Vec::new(), version, 0);
        for (number, packet) in self.remembered.range(begin..).flat_map(|(_, batch)| packets_of(batch)) {
            if number < version {
                continue;
            }
            if packets.len() == PAGE_LINES || bytes > PAGE_BYTES_MAX {
                break;
            }
            bytes += packet.len();
            packets.push(packet);
            next = number + 1;
        }
        Some((packets, next))
    }

    pub(super) fn forget_before(&mut self, seconds: u32) {
        while self.remembered.front().is_some_and(|(at, _)| *at < seconds) {
            self.remembered.pop_front();
        }
    }

    /// What a folder must show to be this master's.
    pub(super) fn own<'a>(&'a self, meta_id: MetaId, has_lines: bool, batch: Option<&'a [u8]>) -> Own<'a> {
        Own { meta_id, durable: self.durable, last_line: &self.last_line, has_lines, batch }
    }

    pub(super) fn has_lines(&self) -> bool {
        self.has_lines
    }

    /// What waited for lines before `version` leaves.
    fn became_durable(&mut self, version: u64) {
        self.durable = version;
        while self.waiting.front().is_some_and(|waiting| waiting.version <= version) {
            let Some(waiting) = self.waiting.pop_front() else { break };
            waiting.outbox.push_owned(waiting.packet);
            if let Some(keep_alive) = waiting.keep_alive {
                waiting.outbox.keep_alive(keep_alive);
            }
        }
    }

    /// Keeps durable lines for followers that come back.
    fn keep(&mut self, mut batch: Batch, now: u32) {
        batch.bytes.shrink_to_fit();
        self.remembered.push_back((now, batch));
    }
}

/// The last of these whole lines, with its newline.
fn last_line_of(lines: &[u8]) -> &[u8] {
    lines.split_inclusive(|byte| *byte == b'\n').next_back().unwrap_or_default()
}

/// The lines of a batch as metaloggers get them.
pub(super) fn packets_of(batch: &Batch) -> impl Iterator<Item = (u64, Vec<u8>)> {
    batch.lines().map(|(changeno, text)| {
        (changeno, MatoanMetachangesLog::Change { changeno, text: Rest(text.to_vec()) }.encode())
    })
}

/// The file that is being written.
///
/// A file that grows makes every sync commit the file system's own journal, with whatever else is dirty there: a
/// millisecond beside busy chunkservers. So a synced journal is kept longer than its lines, by zeros that are written
/// already, and lines are written over them, whole pages at a time, past the page cache. Rotation and a clean stop cut
/// the zeros off; after a crash recovery does.
pub(super) struct JournalFile {
    ring: Ring,
    folder: PathBuf,
    /// Opened when the first line comes.
    file: Option<Growing>,
    synced: bool,
    /// The device on which the data folder was at the start. Elsewhere nothing is written: the folder below a disk that
    /// is no longer mounted is not the one that the next start reads.
    device: Option<u64>,
    /// The newest file has lines.
    has_lines: bool,
    /// When it was last noted how far the metadata came; None: not since this file was begun.
    noted_at: Option<Instant>,
    /// How often in a row the folder was found empty.
    empty_looks: u32,
}

struct Growing {
    file: File,
    /// What it was when it was opened. The folder's device may be another: so it is on an overlay of file systems.
    device: u64,
    inode: u64,
    /// Bytes of lines.
    lines: u64,
    /// Bytes of the file: lines, then zeros.
    allocated: u64,
    /// Lines of the last page, as far as it is not full. Synced only.
    last_page: Vec<u8>,
}

impl JournalFile {
    pub(super) fn new(ring: Ring, folder: PathBuf, synced: bool) -> JournalFile {
        let (device, noted_at) = (None, None);
        JournalFile { ring, folder, file: None, synced, device, has_lines: false, noted_at, empty_looks: 0 }
    }

    /// A reload may have changed how the next file is written.
    fn follow(&mut self, settings: &Settings) {
        if self.file.is_none() {
            self.synced = settings.journal_synced;
        }
    }

    /// Appends and, if so configured, waits for the device. Returns the bytes of lines that the file then has.
    async fn append(&mut self, bytes: &[u8]) -> io::Result<u64> {
        if self.file.is_none() {
            self.same_device().await?;
            self.noted_at = None;
            let opened = self.open().await?;
            self.has_lines |= opened.lines > 0;
            self.file = Some(opened);
        }
        let Some(growing) = &mut self.file else { return Ok(0) };
        let path = journal_path(&self.folder, 0);
        // Beside the write, which takes longer.
        let place = is_in_place(&self.ring, &path, growing.device, growing.inode);
        let write = async {
            if self.synced {
                growing.write_synced(&self.ring, &path, bytes).await
            } else {
                growing.file.write_all_at(bytes.to_vec(), growing.lines).await.0?;
                growing.lines += bytes.len() as u64;
                Ok(())
            }
        };
        let (written, place) = join!(write, place);
        written?;
        if let Err(error) = place {
            self.same_device().await?;
            return Err(error);
        }
        Ok(growing.lines)
    }

    /// Errors: the folder is gone or another one, or the file that is written is no longer in it.
    async fn look(&self, master: &Shared) -> io::Result<()> {
        self.same_device().await?;
        match &self.file {
            Some(growing) => {
                let path = journal_path(&self.folder, 0);
                is_in_place(&self.ring, &path, growing.device, growing.inode).await
            }
            None if folder::has_own_image(master).await => Ok(()),
            None => Err(io::Error::other(format!("{BACK} is not the image that this master stored"))),
        }
    }

    /// Notes how far the metadata came, if that is due: for every file once before its first line is acknowledged, so
    /// that a start notices if just that file is missing. Later from time to time, and nobody waits for that.
    async fn note(&mut self, master: &Shared, version: u64) -> io::Result<()> {
        let is_first = self.noted_at.is_none();
        if self.noted_at.is_some_and(|at| at.elapsed(&self.ring) < NOTE) {
            return Ok(());
        }
        // What is noted must be there after a power cut too.
        let unsynced = self.file.as_ref().filter(|_| !self.synced).map(|growing| growing.file.clone());
        let (ring, shared) = (self.ring.clone(), master.clone());
        let note = async move {
            if let Some(file) = unsynced {
                file.datasync().await?;
            }
            folder::note(&shared, version).await
        };
        if is_first {
            note.await?;
        } else {
            drop(ring.spawn(async move {
                if let Err(error) = note.await {
                    warn!(%error, "cannot note how far the metadata came");
                }
            }));
        }
        self.noted_at = Some(self.ring.now());
        Ok(())
    }

    async fn same_device(&self) -> io::Result<()> {
        let folder = &self.folder;
        let there = self.ring.stat(folder).await.map_err(|error| named(folder, error))?;
        if self.device.is_some_and(|device| device != there.device) {
            return Err(io::Error::other(format!(
                "{} is on another disk than at the start. Mount the one that was there; if it is lost for good, and what \
                 is there now is to become the data folder, tell the master to reload",
                folder.display()
            )));
        }
        Ok(())
    }

    /// The file as the last run or the last failure left it: nothing but lines.
    async fn open(&self) -> io::Result<Growing> {
        let path = journal_path(&self.folder, 0);
        let how = OpenHow::create(FILE_MODE);
        let mut file = self.ring.open(&path, how).await?;
        let there = file.stat().await?;
        let (lines, device, inode) = (there.size, there.device, there.inode);
        self.ring.sync_dir(&self.folder).await?;
        let mut last_page = Vec::new();
        if self.synced {
            let begun = (lines % PAGE_BYTES as u64) as usize;
            let (read, page) = file.read_at(vec![0; begun], lines - begun as u64).await;
            if read? != begun {
                return Err(io::Error::other("the journal became shorter while it was opened"));
            }
            last_page = page;
            file = match self.ring.open(&path, how.dsync(true).direct(true)).await {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.ring.open(&path, how.dsync(true)).await?
                }
                other => other?,
            };
        }
        Ok(Growing { file, device, inode, lines, allocated: lines, last_page })
    }

    /// 0 to 1, and those before on by one. None goes: an image that has their lines comes first (`remove_old`). A file
    /// without lines stays. `rotations` counts before the first file moves: if it fails in the middle, one file more is
    /// kept rather than one too few. Spec 51, 3.
    async fn rotate(&mut self, rotations: &mut u32) -> io::Result<()> {
        let has_lines = match &self.file {
            Some(growing) => growing.lines > 0,
            None => match self.ring.stat(&journal_path(&self.folder, 0)).await {
                Ok(stat) => stat.size > 0,
                Err(error) => return gone_is_fine(Err(error)),
            },
        };
        if !has_lines {
            return Ok(());
        }
        // If this fails, the file stays the one that is written: whoever opened it anew would take its zeros for lines.
        if let Some(growing) = &mut self.file {
            if growing.allocated > growing.lines {
                growing.file.set_len(growing.lines).await?;
                growing.allocated = growing.lines;
            }
            growing.file.sync().await?;
        }
        self.file = None;
        self.has_lines = false;
        let mut free = 1;
        // What cannot be looked at may be there: a name that is taken for free would cost the file that has it.
        loop {
            match self.ring.stat(&journal_path(&self.folder, free)).await {
                Ok(_) => free += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(error) => return Err(error),
            }
        }
        *rotations = rotations.wrapping_add(1);
        for number in (0..free).rev() {
            let (from, to) = (journal_path(&self.folder, number), journal_path(&self.folder, number + 1));
            gone_is_fine(self.ring.rename(&from, &to).await)?;
        }
        self.ring.sync_dir(&self.folder).await
    }
}

/// Another file is begun. With the names to itself: see `remove_old`.
async fn rotate(master: &Shared, file: &mut JournalFile) -> io::Result<()> {
    let mut rotations = master.rotations.lock().await;
    let _moving = master.moves.begin();
    file.rotate(&mut rotations).await
}

/// Removes journal files beyond those that are to be kept, now that an image is safe. `rotations`: how many there had
/// been when the image's state was taken. Files that were the newest since then stay, since the image may lack their
/// lines; without it a crash would lose them.
pub(super) async fn remove_old(master: &Shared, kept: u32, rotations: u32) -> io::Result<()> {
    let now = master.rotations.lock().await;
    let first = kept.saturating_add(now.wrapping_sub(rotations)).saturating_add(1);
    for number in first.. {
        match master.ring.unlink(&journal_path(&master.data_path, number)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed?,
        }
    }
    Ok(())
}

impl Growing {
    /// One write for as much as a buffer holds; each ends on the device before the next begins, so that a power cut
    /// tears no more than `TORN_BYTES_MAX`.
    async fn write_synced(&mut self, ring: &Ring, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let end = self.lines + bytes.len() as u64;
        if end > self.allocated {
            self.extend(ring, path, end.next_multiple_of(AHEAD_BYTES)).await?;
        }
        let mut buffer = ring.wait_buffer().await;
        let mut rest = bytes;
        while !rest.is_empty() {
            let held = self.last_page.len();
            let (now, later) = rest.split_at(rest.len().min(TORN_BYTES_MAX - held));
            let used = held + now.len();
            let whole = used.next_multiple_of(PAGE_BYTES);
            let room = buffer.payload_mut();
            room[..held].copy_from_slice(&self.last_page);
            room[held..used].copy_from_slice(now);
            room[used..whole].fill(0);
            let (result, piece) = self.file.write_all_at(buffer.slice(0..whole), self.lines - held as u64).await;
            result?;
            buffer = piece.into_inner();
            self.last_page = buffer.payload()[used - used % PAGE_BYTES..used].to_vec();
            self.lines += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    async fn extend(&mut self, ring: &Ring, path: &Path, end: u64) -> io::Result<()> {
        // Through the cache and with one sync at the end: a hundred times as fast as synced writes that extend.
        let file = ring.open(path, OpenHow::create(FILE_MODE)).await?;
        let zeros = usize::try_from(end - self.allocated).map_err(io::Error::other)?;
        file.write_all_at(vec![0u8; zeros], self.allocated).await.0?;
        file.sync().await?;
        self.allocated = end;
        Ok(())
    }
}

/// Counts when files of the data folder get other names, so that who opens several of them knows that they fit together.
#[derive(Default)]
pub(super) struct Moves {
    under_way: Cell<u32>,
    begun: Cell<u64>,
}

/// Names change until this is dropped.
pub(super) struct Moving<'a>(&'a Moves);

impl Moves {
    pub(super) fn begin(&self) -> Moving<'_> {
        self.under_way.set(self.under_way.get() + 1);
        self.begun.set(self.begun.get() + 1);
        Moving(self)
    }

    /// A number that stays the same until names change; None while they do.
    pub(super) fn settled(&self) -> Option<u64> {
        (self.under_way.get() == 0).then(|| self.begun.get())
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// Writes batch after batch until the master stops.
pub(super) async fn write_journal(master: Shared, mut file: JournalFile) {
    file.device = master.ring.stat(&file.folder).await.ok().map(|there| there.device);
    loop {
        let (batch, rotate, stop) = {
            let mut core = master.core.borrow_mut();
            file.follow(&core.settings);
            let queue = &mut core.journal;
            let rotate = std::mem::take(&mut queue.rotate);
            let next = queue.pending.next;
            let empty = Batch { first: next, next, bytes: Vec::with_capacity(queue.pending.bytes.len()) };
            (std::mem::replace(&mut queue.pending, empty), rotate, queue.stop)
        };
        if !batch.is_empty() {
            let file_bytes = append_at_last(&master, &mut file, &batch).await;
            let now = master.now();
            let mut core = master.core.borrow_mut();
            core.journal.file_bytes = Some(file_bytes);
            core.journal.last_line = last_line_of(&batch.bytes).to_vec();
            core.journal.has_lines = true;
            core.journal.became_durable(batch.next);
            core.loggers.changed(std::slice::from_ref(&batch));
            if core.settings.journal_remembered_seconds > 0 {
                core.journal.keep(batch, now);
            }
            continue;
        }
        if rotate {
            let rotated = match file.look(&master).await {
                Ok(()) => self::rotate(&master, &mut file).await,
                Err(error) => Err(error),
            };
            match rotated {
                Ok(()) => info!("journal rotated"),
                Err(error) => error!(%error, "cannot rotate the journal"),
            }
            let mut core = master.core.borrow_mut();
            core.journal.file_bytes = None;
            core.journal.has_lines = file.has_lines;
            core.loggers.rotated();
            drop(core);
            master.rotated.notify_one();
            continue;
        }
        if stop {
            return;
        }
        if master.ring.timeout(LOOK, master.journal_wake.notified()).await.is_err()
            && (master.folder.is_strange() || file.look(&master).await.is_err())
        {
            let put = put_in_order(&mut file, &master, &[]).await;
            match put {
                Ok(()) => master.core.borrow_mut().journal.stuck = false,
                Err(_) if master.folder.is_strange() => {}
                Err(error) => error!(%error, "the data folder is not as it was; changes will wait until it is"),
            }
        }
    }
}

/// The disk may be full for a while: nothing is acknowledged until the batch is safe.
async fn append_at_last(master: &Shared, file: &mut JournalFile, batch: &Batch) -> u64 {
    let bytes = &batch.bytes;
    let mut failed = false;
    loop {
        // A file is begun only in a folder that is known.
        let is_known = !failed && !master.folder.is_strange();
        let is_known = is_known && (file.file.is_some() || folder::has_own_image(master).await);
        let ready = if is_known { Ok(()) } else { put_in_order(file, master, bytes).await };
        let result = match ready {
            Ok(()) => file.append(bytes).await,
            Err(error) => Err(error),
        };
        let result = match result {
            Ok(file_bytes) => file.note(master, batch.next).await.map(|()| file_bytes),
            Err(error) => Err(error),
        };
        match result {
            Ok(file_bytes) => {
                if failed {
                    warn!("the journal can be written again");
                }
                master.core.borrow_mut().journal.stuck = false;
                file.has_lines = true;
                return file_bytes;
            }
            Err(error) => {
                if !master.folder.is_strange() {
                    error!(%error, "cannot write the journal; clients wait until it can be written");
                }
                failed = true;
                {
                    let queue = &mut master.core.borrow_mut().journal;
                    (queue.file_bytes, queue.stuck) = (None, true);
                }
                master.ring.sleep(RETRY).await;
            }
        }
    }
}

/// Makes the folder such that the journal can go on there, after a failure. `batch`: what a failed attempt may have left
/// behind the last whole batch; that goes. If lines before are not there, or the folder was emptied, an image of the
/// present state comes first: it has them all. Errors: the folder is not there, or not this master's (`folder::judge`).
async fn put_in_order(file: &mut JournalFile, master: &Shared, batch: &[u8]) -> io::Result<()> {
    // Whatever is open may be elsewhere by now. After a failed sync the cache may hold what the disk has not, too.
    file.file = None;
    master.core.borrow_mut().journal.stuck = true;
    if std::mem::take(&mut master.core.borrow_mut().journal.accept_folder) {
        file.device = Some(file.ring.stat(&file.folder).await?.device);
    }
    file.same_device().await?;
    let facts = folder::look(master).await?;
    let verdict = {
        let core = master.core.borrow();
        folder::judge(&facts, &core.journal.own(core.namespace.meta_id(), file.has_lines, Some(batch)))
    };
    file.empty_looks = if verdict == Verdict::Emptied { file.empty_looks + 1 } else { 0 };
    match verdict {
        Verdict::Strange(why) => {
            master.folder.is_not_ours(&why);
            return Err(io::Error::other(why));
        }
        Verdict::Emptied if file.empty_looks < EMPTY_LOOKS => {
            return Err(io::Error::other(
                "the data folder is empty; if it stays so, an image of the present is stored there",
            ));
        }
        Verdict::Whole { end } if facts.has_image() => {
            if end < facts.newest_bytes() {
                let handle = master.ring.open(&journal_path(&file.folder, 0), OpenHow::create(FILE_MODE)).await?;
                handle.set_len(end as u64).await?;
                handle.sync().await?;
            }
        }
        Verdict::Whole { .. } | Verdict::Lacking | Verdict::Emptied => {
            warn!("the lines before are not in the data folder any more; an image of the present is stored there");
            if facts.newest_bytes() > 0 {
                rotate(master, file).await?;
            }
            images::save_here(master).await?;
        }
    }
    master.folder.is_ours_again();
    Ok(())
}

/// Errors: this name is no longer that of the file that is written.
async fn is_in_place(ring: &Ring, path: &Path, device: u64, inode: u64) -> io::Result<()> {
    let there = ring.stat(path).await.map_err(|error| named(path, error))?;
    if (there.device, there.inode) != (device, inode) {
        return Err(io::Error::other(format!("{} is not the file that is written", path.display())));
    }
    Ok(())
}

fn named(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use meta::change::Change;

    use super::*;

    /// A queue with these batches of lines, all durable.
    fn queue(batches: impl IntoIterator<Item = std::ops::Range<u64>>) -> Queue {
        let mut queue = Queue::new(1);
        for batch in batches {
            let mut bytes = Vec::new();
            for version in batch.clone() {
                meta::journal::format(
                    version,
                    9.into(),
                    &Change::Idle {},
                    &meta::journal::Outcome::default(),
                    &mut bytes,
                );
            }
            queue.became_durable(batch.end);
            queue.keep(Batch { first: batch.start, next: batch.end, bytes }, 9);
        }
        queue
    }

    #[test]
    fn one_who_missed_many_changes_gets_them_in_pages_without_a_gap() {
        let queue = queue((0..500).map(|batch| 1 + 51 * batch..1 + 51 * (batch + 1)));
        let mut from = 7;
        let mut pages = Vec::new();
        while from < queue.durable() {
            let (packets, next) = queue.page_from(from).unwrap();
            let first = MatoanMetachangesLog::decode(&packets[0][wire::HEADER_BYTES..]).unwrap();
            assert!(matches!(first, MatoanMetachangesLog::Change { changeno, .. } if changeno == from), "{first:?}");
            assert_eq!(packets.len() as u64, next - from);
            pages.push(packets.len());
            from = next;
        }
        assert_eq!(pages, [PAGE_LINES, PAGE_LINES, 25_500 - 2 * PAGE_LINES - 6]);
        assert!(queue.page_from(from).unwrap().0.is_empty());
        assert!(queue.page_from(from + 1).is_none());
    }
}
