//! What a metalogger keeps on its disk: images of the master and the journal that follows. Spec 42, B.
//!
//! The names are MooseFS's, so that a master of either kind can be started from this folder. Three things differ from
//! a stock metalogger. After a restart the position is taken from the files, so that nothing is fetched twice and no
//! hole appears. After a gap the older files stay: with the image that is fetched then they are history, and history
//! is what one looks for after a mistake. And what belongs to another file system, or is ahead of a master that was
//! rolled back, is set aside in a folder of its own, never deleted.

use std::io;
use std::path::{Path, PathBuf};

use meta::journal::JournalError;
use meta::verify::Verifier;
use ring::{File, OpenHow, Ring};
use tracing::{error, info, warn};
use wire::MetaId;

use super::settings::Settings;
use crate::data_folder::{
    self, FILE_MODE, LINE_BYTES_MAX, NEW, WRAPPED_HEAD_BYTES, WRAPPED_TAIL, ends, gone_is_fine, is_kept_journal,
    last_line,
};

pub(super) const IMAGE: &str = "metadata_ml.mfs.back";
pub(super) const IMAGE_TEMPORARY: &str = "metadata_ml.tmp";
pub(super) const JOURNAL_TEMPORARY: &str = "changelog_ml.tmp";
/// Signature, version, metaid: the front of an image, stock or ours. Spec 42, C.3.
pub(super) const IMAGE_FRONT_BYTES: usize = 24;
/// What is set aside goes to folders named so, with the time.
const ASIDE: &str = "set-aside-";
/// Stays free for the journal when an image is fetched.
const ROOM_BYTES: u64 = 64 << 20;
/// Bytes of journal that are looked at in one read.
const PIECE_BYTES: usize = 1 << 20;

/// The front of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Front {
    /// Number of the first change that is not in the image.
    pub(super) version: u64,
    /// 0: none yet.
    pub(super) metaid: MetaId,
}

impl Front {
    /// From the first bytes of a file; None if this is no image. A master that has never stored one has a file of
    /// `MFSM NEW`, which stands for the state before the first change.
    pub(super) fn decode(bytes: &[u8]) -> Option<Front> {
        if bytes == NEW {
            return Some(Front { version: 1, metaid: MetaId(0) });
        }
        let is_image = bytes.starts_with(b"MFSM ")
            && matches!(bytes.get(5..8)?, [b'1'..=b'9', b'.', b'0'..=b'9'])
            && bytes.get(5)? >= &b'2';
        let word = |at: usize| bytes.get(at..at + 8)?.first_chunk().map(|word| u64::from_be_bytes(*word));
        if !is_image {
            return None;
        }
        Some(Front { version: word(8)?, metaid: MetaId(word(16)?) })
    }
}

/// Whole lines of a journal file, numbers rising by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
}

/// What a change is to what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Next,
    /// Changes from `missing` on did not come.
    Gap {
        missing: u64,
    },
    /// The last line that is kept, once more and the same: master and copy have the same history.
    Again,
    /// This number was stored already, or with another text: the master's history is another one.
    Back {
        kept: u64,
    },
}

pub(super) struct Store {
    ring: Ring,
    folder: PathBuf,
    journals_kept: u32,
    images_kept: u32,
    log: Option<File>,
    log_bytes: u64,
    /// Number of the change that is to come; None: unknown.
    next: Option<u64>,
    /// The change before `next`, as it was stored, if it is at hand.
    last_line: Option<(u64, Vec<u8>)>,
    /// Number of the last line in the journal file that is being written.
    live_last: Option<u64>,
    image: Option<Front>,
    /// When that was fetched, in Unix seconds.
    fetched_at: Option<u64>,
    /// Lines that are not in the file yet.
    waiting: Vec<u8>,
    /// Lines are in the file and may not be on the device.
    unsynced: bool,
    /// Timestamp of the last change, in Unix seconds of the master.
    last_change_at: u32,
    /// Image and journal do not reach the present without a hole: an image must be fetched, in whichever session.
    wants_image: bool,
}

impl Store {
    /// Looks at what is kept from before. Errors: as the files' operations.
    pub(super) async fn open(ring: &Ring, settings: &Settings) -> io::Result<Store> {
        let folder = settings.data_path.clone();
        let (image, fetched) = (folder.join(IMAGE), folder.join(IMAGE_TEMPORARY));
        if ring.stat(&image).await.is_err() && check_image(ring, &fetched).await.is_ok() {
            ring.rename(&fetched, &image).await?; // the one before had moved on already
        }
        for name in [IMAGE_TEMPORARY, JOURNAL_TEMPORARY] {
            gone_is_fine(ring.unlink(&folder.join(name)).await)?;
        }
        finish_setting_aside(ring, &folder).await?;
        let mut store = Store {
            ring: ring.clone(),
            journals_kept: settings.journals_kept,
            images_kept: settings.images_kept,
            log: None,
            log_bytes: 0,
            next: None,
            last_line: None,
            live_last: None,
            image: None,
            fetched_at: None,
            waiting: Vec::new(),
            unsynced: false,
            last_change_at: 0,
            wants_image: true,
            folder,
        };
        store.image = store.front_of(IMAGE).await?;
        if store.image.is_some() {
            let fetched = ring.stat(&store.path(IMAGE)).await?.mtime_sec;
            store.fetched_at = u64::try_from(fetched).ok();
        }
        store.open_log().await?;
        store.next = store.position().await?;
        store.last_line = store.find_last_line().await?;
        store.wants_image = store.next.is_none();
        match (store.image, store.next) {
            (Some(image), Some(next)) => {
                info!(metaid = %image.metaid, image = image.version, next, "going on where the files end");
            }
            (Some(image), None) => {
                warn!(image = image.version, "the journal files do not follow the image: another one will be fetched");
            }
            (None, _) => info!("no image is kept yet"),
        }
        Ok(store)
    }

    pub(super) fn use_settings(&mut self, settings: &Settings) {
        self.journals_kept = settings.journals_kept;
        self.images_kept = settings.images_kept;
    }

    /// Number of the change that is to come, if what is kept reaches so far without a hole.
    pub(super) fn next(&self) -> Option<u64> {
        self.next
    }

    pub(super) fn image(&self) -> Option<Front> {
        self.image
    }

    pub(super) fn last_change_at(&self) -> u32 {
        self.last_change_at
    }

    /// Is an image needed to make what is kept whole?
    pub(super) fn wants_image(&self) -> bool {
        self.wants_image
    }

    pub(super) fn is_unsynced(&self) -> bool {
        self.unsynced || !self.waiting.is_empty()
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The first change to ask the master for: the last one that is kept, to compare it; if that is not at hand, the next.
    pub(super) fn from(&self) -> Option<u64> {
        let next = self.next?;
        Some(if self.last_line.as_ref().is_some_and(|(number, _)| number + 1 == next) { next - 1 } else { next })
    }

    /// When the newest image was fetched, in Unix seconds.
    pub(super) fn fetched_at(&self) -> Option<u64> {
        self.fetched_at
    }

    pub(super) fn order_of(&self, number: u64, text: &[u8]) -> Order {
        match self.next {
            Some(next) if number > next => Order::Gap { missing: next },
            Some(next) if number < next => match &self.last_line {
                Some((last, same)) if *last == number && same == text => Order::Again,
                _ => Order::Back { kept: next - 1 },
            },
            _ => Order::Next,
        }
    }

    /// The next change may not follow the lines in the file: it begins another one.
    pub(super) fn must_begin_anew(&self) -> bool {
        self.next.is_none() && self.log_bytes > 0
    }

    /// Takes a change, whose order the caller has looked at. It is in the file after the next `write`.
    pub(super) fn append(&mut self, number: u64, text: &[u8]) {
        self.waiting.extend_from_slice(format!("{number}: ").as_bytes());
        self.waiting.extend_from_slice(text);
        self.waiting.push(b'\n');
        self.next = Some(number + 1);
        self.live_last = Some(number);
        let (last, line) = self.last_line.get_or_insert_default();
        *last = number;
        line.clear();
        line.extend_from_slice(text);
        // Behind a point stands the fraction, if the master is ours.
        let seconds = text.split(|byte| matches!(byte, b'|' | b'.')).next();
        let seconds = seconds.and_then(|word| std::str::from_utf8(word).ok()?.parse().ok());
        self.last_change_at = seconds.unwrap_or(self.last_change_at);
    }

    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.len()
    }

    /// Writes what waits. After an error the position is that of the file: what it lacks must come again.
    pub(super) async fn write(&mut self) -> io::Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let lines = std::mem::take(&mut self.waiting);
        let written = self.write_lines(lines).await;
        if written.is_err() {
            // What of it reached the file is found when the file is opened again; what it lacks must come again.
            self.log = None;
            self.next = None;
            self.wants_image = true;
        }
        written
    }

    async fn write_lines(&mut self, lines: Vec<u8>) -> io::Result<()> {
        let bytes = lines.len() as u64;
        let log = self.log.clone().ok_or_else(|| io::Error::other("the journal file is not open"))?;
        log.write_all_at(lines, self.log_bytes).await.0?;
        self.log_bytes += bytes;
        self.unsynced = true;
        Ok(())
    }

    /// Writes what waits and has it on the device.
    pub(super) async fn sync(&mut self) -> io::Result<()> {
        self.write().await?;
        if self.unsynced {
            if let Some(log) = self.log.take() {
                // After an error the system calls the next one a success: the file is opened and looked at again.
                log.datasync().await?;
                self.log = Some(log);
            }
            self.unsynced = false;
        }
        Ok(())
    }

    /// After an error of the disk: opens the journal file again and takes the position from what is there.
    pub(super) async fn recover(&mut self) -> io::Result<()> {
        if self.log.is_none() {
            self.waiting.clear();
            self.open_log().await?;
            self.unsynced = true; // what the last error left open
            self.next = self.position().await?;
            self.last_line = self.find_last_line().await?;
            self.wants_image |= self.next.is_none();
        }
        Ok(())
    }

    /// Begins another journal file; the older ones move on. One without lines stays: it would push one with lines out.
    pub(super) async fn rotate(&mut self) -> io::Result<()> {
        self.sync().await?;
        if self.log_bytes == 0 && self.log.is_some() {
            return Ok(());
        }
        self.log = None;
        self.move_journals_on().await?;
        self.open_log().await
    }

    /// Changes are missing, and an image that has them is on its way: what follows goes into a file of its own.
    pub(super) async fn jump_to(&mut self, number: u64) -> io::Result<()> {
        self.wants_image = true;
        self.rotate().await?;
        self.next = Some(number);
        Ok(())
    }

    /// A fetched image becomes the newest one.
    pub(super) async fn take_image(&mut self, front: Front) -> io::Result<()> {
        let image = self.folder.join(IMAGE);
        let older = |number: u32| self.folder.join(format!("{IMAGE}.{number}"));
        if self.images_kept > 0 && self.image != Some(front) {
            gone_is_fine(self.ring.unlink(&older(self.images_kept)).await)?;
            for number in (1..self.images_kept).rev() {
                gone_is_fine(self.ring.rename(&older(number), &older(number + 1)).await)?;
            }
            gone_is_fine(self.ring.rename(&image, &older(1)).await)?;
        }
        self.ring.rename(&self.folder.join(IMAGE_TEMPORARY), &image).await?;
        self.ring.sync_dir(&self.folder).await?;
        self.image = Some(front);
        self.fetched_at = Some(self.ring.wall_micros() / 1_000_000);
        Ok(())
    }

    /// A fetched journal file of the master takes its place beside the image. `number`: 0 or 1.
    pub(super) async fn take_journal(&mut self, number: u8) -> io::Result<()> {
        let path = self.folder.join(back_name(u32::from(number)));
        self.ring.rename(&self.folder.join(JOURNAL_TEMPORARY), &path).await?;
        self.ring.sync_dir(&self.folder).await
    }

    /// If the journal that was stored here does not reach back to the image, the files that came with the image take
    /// places in its row: old instructions copy `changelog_ml.*.mfs` and no other names.
    async fn join_to_image(&self) -> io::Result<()> {
        if self.position_by(|name| journal_number(name).is_some()).await? == self.next {
            return Ok(());
        }
        let highest = self.names().await?.iter().filter_map(|name| journal_number(name)).max().unwrap_or(0);
        for number in 0..2u32 {
            let (from, to) = (self.path(&back_name(number)), self.path(&journal_name(highest + 1 + number)));
            gone_is_fine(self.ring.rename(&from, &to).await)?;
        }
        self.ring.sync_dir(&self.folder).await
    }

    /// Whether image and journals reach to the present position without a hole.
    pub(super) async fn is_whole(&mut self) -> io::Result<bool> {
        self.write().await?;
        let reached = self.position().await?;
        let is_whole = reached.is_some() && (self.next.is_none() || reached == self.next);
        if is_whole {
            self.next = reached;
            self.wants_image = false;
            self.join_to_image().await?;
        }
        Ok(is_whole)
    }

    /// Moves everything into a folder of its own; here it begins anew. Gives the folder. After a crash in the middle the
    /// next start moves the rest.
    pub(super) async fn set_aside(&mut self, why: &str) -> io::Result<PathBuf> {
        self.sync().await?;
        self.log = None;
        let seconds = self.ring.wall_micros() / 1_000_000;
        // One second may see several.
        let mut number = 1;
        let (unfinished, aside) = loop {
            let name = if number == 1 { format!("{ASIDE}{seconds}") } else { format!("{ASIDE}{seconds}-{number}") };
            let (unfinished, aside) = (self.folder.join(format!(".{name}")), self.folder.join(&name));
            if self.ring.stat(&aside).await.is_err() {
                match self.ring.mkdir(&unfinished, 0o750).await {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    other => {
                        other?;
                        break (unfinished, aside);
                    }
                }
            }
            number += 1;
        };
        self.ring.sync_dir(&self.folder).await?;
        move_aside(&self.ring, &self.folder, &unfinished, &aside).await?;
        error!(folder = %aside.display(), "{why}; what was kept is set aside, nothing of it was deleted");
        self.image = None;
        self.fetched_at = None;
        self.next = None;
        self.last_line = None;
        self.wants_image = true;
        self.open_log().await?;
        Ok(aside)
    }

    /// Errors: there is no room for a file of so many bytes beside the journal, in words.
    pub(super) async fn has_room_for(&self, bytes: u64) -> Result<(), String> {
        let folder = self.folder.display();
        let space = self.ring.space(&self.folder).await.map_err(|error| format!("{folder}: {error}"))?;
        if space.available_bytes < bytes.saturating_add(ROOM_BYTES) {
            return Err(format!(
                "{folder} has {} MiB free, the master's file has {} MiB, and {} MiB stay for the journal. What was \
                 fetched before stays; make room there",
                space.available_bytes >> 20,
                bytes >> 20,
                ROOM_BYTES >> 20
            ));
        }
        Ok(())
    }

    /// Opens the live journal file. An unfinished last line is cut off. Where whole lines stand behind something that is
    /// none, they may be needed: that file moves on as it is, and another one begins.
    async fn open_log(&mut self) -> io::Result<()> {
        let path = self.folder.join(journal_name(0));
        let mut log = self.ring.open(&path, OpenHow::create(FILE_MODE)).await?;
        let (mut range, mut sound_bytes) = scan(&log).await?;
        if has_line_behind(&log, sound_bytes).await? {
            warn!(file = %path.display(), sound_bytes, "damaged behind these bytes; kept, and another file begins");
            self.move_journals_on().await?;
            log = self.ring.open(&path, OpenHow::create(FILE_MODE)).await?;
            (range, sound_bytes) = (None, 0);
        } else if log.stat().await?.size > sound_bytes {
            warn!(file = %path.display(), sound_bytes, "an unfinished line behind these bytes is cut off");
            log.set_len(sound_bytes).await?;
            log.datasync().await?;
        }
        self.log_bytes = sound_bytes;
        self.live_last = range.map(|range| range.last);
        self.log = Some(log);
        self.ring.sync_dir(&self.folder).await
    }

    /// Each journal file gets the next number. Those beyond the limit go, save for lines that the newest image lacks.
    async fn move_journals_on(&self) -> io::Result<()> {
        let mut numbers: Vec<u32> = self.names().await?.iter().filter_map(|name| journal_number(name)).collect();
        numbers.sort_unstable();
        for number in numbers.into_iter().rev() {
            let from = self.folder.join(journal_name(number));
            if number >= self.journals_kept {
                let reaches = ends(&self.ring.open(&from, OpenHow::read()).await?).await?.map(|(_, last)| last);
                let is_needed = |last| self.image.is_none_or(|image| last >= image.version);
                if !reaches.is_some_and(is_needed) {
                    gone_is_fine(self.ring.unlink(&from).await)?;
                    continue;
                }
                warn!(file = %from.display(), "kept beyond BACK_LOGS: the newest image lacks its changes");
            }
            let Some(next) = number.checked_add(1) else { continue };
            gone_is_fine(self.ring.rename(&from, &self.folder.join(journal_name(next))).await)?;
        }
        Ok(())
    }

    async fn names(&self) -> io::Result<Vec<String>> {
        let entries = self.ring.list(&self.folder).await?.into_iter().filter(|entry| !entry.is_dir);
        Ok(entries.filter_map(|entry| entry.name.into_string().ok()).collect())
    }

    /// How far image and journals reach: the number of the first change that is not there. None without an image, or if
    /// the live journal has lines that do not follow. Files whose lines the image has are not read.
    async fn position(&self) -> io::Result<Option<u64>> {
        self.position_by(is_kept_journal).await
    }

    /// As `position`, from the files with such names.
    async fn position_by(&self, is_used: impl Fn(&str) -> bool) -> io::Result<Option<u64>> {
        let Some(image) = self.image else { return Ok(None) };
        let mut files = Vec::new();
        for name in self.names().await?.into_iter().filter(|name| is_used(name)) {
            let file = self.ring.open(&self.folder.join(&name), OpenHow::read()).await?;
            if let Some((first, last)) = ends(&file).await? {
                files.push((first, last, name));
            }
        }
        let mut reached = image.version;
        // What goes on from there; of several the one that reaches farthest.
        while let Some(at) =
            (0..files.len()).filter(|at| (files[*at].0..=files[*at].1).contains(&reached)).max_by_key(|at| files[*at].1)
        {
            let (_, _, name) = files.swap_remove(at);
            let file = self.ring.open(&self.folder.join(&name), OpenHow::read()).await?;
            if let (Some(range), _) = scan(&file).await?
                && (range.first..=range.last).contains(&reached)
            {
                reached = range.last + 1;
            }
        }
        let is_whole = self.live_last.is_none_or(|last| last < reached);
        Ok(is_whole.then_some(reached))
    }

    /// The line before the position, from the newest files.
    async fn find_last_line(&self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let Some(next) = self.next else { return Ok(None) };
        for number in 0..2 {
            let file = match self.ring.open(&self.folder.join(journal_name(number)), OpenHow::read()).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let line = last_line(&file).await?;
            let version = line.as_deref().and_then(meta::journal::line_version);
            if let (Some(line), Some(version)) = (line, version)
                && version.checked_add(1) == Some(next)
            {
                let text = line.splitn(2, |byte| *byte == b' ').nth(1).unwrap_or_default().to_vec();
                return Ok(Some((version, text)));
            }
        }
        Ok(None)
    }

    async fn front_of(&self, name: &str) -> io::Result<Option<Front>> {
        let file = match self.ring.open(&self.folder.join(name), OpenHow::read()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let (read, mut bytes) = file.read_at(vec![0; IMAGE_FRONT_BYTES], 0).await;
        bytes.truncate(read?);
        Ok(Front::decode(&bytes))
    }
}

fn journal_name(number: u32) -> String {
    format!("changelog_ml.{number}.mfs")
}

fn back_name(number: u32) -> String {
    format!("changelog_ml_back.{number}.mfs")
}

fn journal_number(name: &str) -> Option<u32> {
    name.strip_prefix("changelog_ml.")?.strip_suffix(".mfs")?.parse().ok()
}

fn is_kept(name: &str) -> bool {
    (name.starts_with("metadata_ml.mfs") || name.starts_with("changelog_ml")) && !name.ends_with(".tmp")
}

/// Moves all that is kept into a folder whose name says that this is not done yet; when it is, the name changes.
async fn move_aside(ring: &Ring, folder: &Path, unfinished: &Path, aside: &Path) -> io::Result<()> {
    for entry in ring.list(folder).await?.into_iter().filter(|entry| !entry.is_dir) {
        if is_kept(&entry.name.to_string_lossy()) {
            ring.rename(&folder.join(&entry.name), &unfinished.join(&entry.name)).await?;
        }
    }
    ring.sync_dir(unfinished).await?;
    ring.sync_dir(folder).await?;
    ring.rename(unfinished, aside).await?;
    ring.sync_dir(folder).await
}

/// What a crash interrupted: everything that is kept belongs together, there.
async fn finish_setting_aside(ring: &Ring, folder: &Path) -> io::Result<()> {
    for entry in ring.list(folder).await?.into_iter().filter(|entry| entry.is_dir) {
        let name = entry.name.to_string_lossy();
        if let Some(finished) = name.strip_prefix('.').filter(|name| name.starts_with(ASIDE)) {
            warn!(folder = finished, "setting aside was interrupted; the rest follows now");
            move_aside(ring, folder, &folder.join(&entry.name), &folder.join(finished)).await?;
        }
    }
    Ok(())
}

/// What a line's checksum says of it.
enum Sum {
    Fits,
    /// As in the lines of MooseFS's masters.
    None,
    /// What stands at its place does not fit: a damaged line of ours, or one of MooseFS's with a name such as
    /// `#0123ABCD` at the end.
    Other,
}

/// `None`: the line is no line.
fn sum_of_line(line: &[u8]) -> Option<Sum> {
    match meta::journal::parse(line) {
        Ok(_) | Err(JournalError::Syntax) => Some(Sum::Fits),
        Err(JournalError::NoChecksum) => Some(Sum::None),
        Err(JournalError::Checksum { .. }) => Some(Sum::Other),
        Err(JournalError::Torn | JournalError::NoLine) => None,
    }
}

/// The numbers of a journal file's sound lines as far as they rise by one, and the bytes of those lines.
///
/// Lines of our masters have checksums, which must fit; those of MooseFS's have none. Whose lines they are shows by the
/// first whose checksum fits: until then what looks like a checksum may be a part of a name.
async fn scan(file: &File) -> io::Result<(Option<Range>, u64)> {
    let mut range: Option<Range> = None;
    let (mut sound_bytes, mut offset) = (0, 0);
    let mut rest = Vec::new();
    let mut has_sums = false;
    // What was sound in front of the first line that is damaged if the lines have checksums.
    let mut if_ours: Option<(Option<Range>, u64)> = None;
    loop {
        let (read, piece) = file.read_at(vec![0; PIECE_BYTES], offset).await;
        let count = read?;
        if count == 0 {
            return Ok((range, sound_bytes));
        }
        offset += count as u64;
        rest.extend_from_slice(&piece[..count]);
        let mut used = 0;
        while let Some(end) = rest[used..].iter().position(|byte| *byte == b'\n') {
            let line = &rest[used..used + end];
            let (Some(number), Some(sum)) = (meta::journal::line_version(line), sum_of_line(line)) else {
                return Ok((range, sound_bytes));
            };
            match (sum, if_ours) {
                (Sum::Fits, Some(sound)) => return Ok(sound),
                (Sum::Fits, None) => has_sums = true,
                (Sum::None | Sum::Other, _) if has_sums => return Ok((range, sound_bytes)),
                (Sum::Other, None) => if_ours = Some((range, sound_bytes)),
                (Sum::None | Sum::Other, _) => {}
            }
            range = match range {
                None => Some(Range { first: number, last: number }),
                Some(Range { first, last }) if number == last + 1 => Some(Range { first, last: number }),
                Some(_) => return Ok((range, sound_bytes)),
            };
            used += end + 1;
            sound_bytes += end as u64 + 1;
        }
        rest.drain(..used);
        if rest.len() > LINE_BYTES_MAX {
            return Ok((range, sound_bytes));
        }
    }
}

/// Does a whole line end behind this offset?
async fn has_line_behind(file: &File, mut offset: u64) -> io::Result<bool> {
    loop {
        let (read, piece) = file.read_at(vec![0; PIECE_BYTES], offset).await;
        let count = read?;
        if count == 0 || piece[..count].contains(&b'\n') {
            return Ok(count > 0);
        }
        offset += count as u64;
    }
}

/// Whether a fetched file is a whole image: signature, end marker, and, if it is one of ours, every checksum in it.
/// Gives its front. Errors: why not, in words.
pub(super) async fn check_image(ring: &Ring, path: &Path) -> Result<Front, String> {
    let text = |error: io::Error| error.to_string();
    let file = ring.open(path, OpenHow::read()).await.map_err(text)?;
    let bytes = file.stat().await.map_err(text)?.size;
    let read = async |offset: u64, count: usize| {
        let (read, mut bytes) = file.read_at(vec![0; count], offset).await;
        bytes.truncate(read.map_err(text)?);
        Ok::<_, String>(bytes)
    };
    let head = read(0, WRAPPED_HEAD_BYTES as usize).await?;
    let front = Front::decode(&head).ok_or("it does not begin as an image does")?;
    if head == NEW {
        return Ok(front);
    }
    let end = bytes.saturating_sub(WRAPPED_TAIL.len() as u64);
    if read(end, WRAPPED_TAIL.len()).await? != WRAPPED_TAIL {
        return Err("it does not end as an image does: it was cut off".to_owned());
    }
    if data_folder::is_ours(&head) {
        let mut verifier = Verifier::new();
        let mut offset = WRAPPED_HEAD_BYTES;
        while offset < end {
            let piece = read(offset, usize::try_from(end - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)).await?;
            if piece.is_empty() {
                return Err("it became shorter meanwhile".to_owned());
            }
            verifier.push(&piece).map_err(|error| error.to_string())?;
            offset += piece.len() as u64;
        }
        let header = verifier.finish().map_err(|error| error.to_string())?;
        if (header.version, header.meta_id) != (front.version, front.metaid) {
            return Err("its two headers name different states".to_owned());
        }
    }
    Ok(front)
}

#[cfg(test)]
mod tests {
    use ring::sim::{self, World};

    use super::*;

    /// First, last and bytes of the sound lines of a file with these lines.
    fn scanned(lines: &str) -> (Option<(u64, u64)>, u64) {
        let world = World::new(1, sim::Settings::default());
        let node = world.node(std::net::Ipv4Addr::new(10, 0, 0, 1));
        let bytes = lines.as_bytes().to_vec();
        world
            .run(node, |ring| async move {
                ring.write_file_durably(Path::new("/log"), 0o644, bytes).await.unwrap();
                let file = ring.open(Path::new("/log"), OpenHow::read()).await.unwrap();
                let (range, sound_bytes) = scan(&file).await.unwrap();
                (range.map(|range| (range.first, range.last)), sound_bytes)
            })
            .unwrap()
    }

    /// A line of our master: any sum fits something, so it is looked for.
    fn of_ours(version: u64) -> String {
        let line = |sum: u32| format!("{version}: 1700000000|ACCESS(1,#{sum:08X})\n");
        let Err(JournalError::Checksum { computed, .. }) = meta::journal::parse(line(0).trim_end().as_bytes()) else {
            panic!("zero does not fit");
        };
        line(computed)
    }

    /// A folder with an image of version 1 and a store in it.
    async fn store_with_image(ring: &Ring) -> Store {
        ring.mkdir(Path::new("/kept"), 0o755).await.unwrap();
        let image = [b"MFSM 2.0".as_slice(), &1u64.to_be_bytes(), &7u64.to_be_bytes(), WRAPPED_TAIL].concat();
        ring.write_file_durably(&Path::new("/kept").join(IMAGE), 0o644, image).await.unwrap();
        ring.sync_dir(Path::new("/")).await.unwrap();
        open(ring).await
    }

    async fn open(ring: &Ring) -> Store {
        let settings = Settings {
            data_path: "/kept".into(),
            master_host: String::new(),
            master_port: 0,
            bind_ip: None,
            master_timeout_sec: 10,
            reconnection_delay: std::time::Duration::from_secs(1),
            journals_kept: 5,
            images_kept: 3,
            image_every_hours: 24,
        };
        Store::open(ring, &settings).await.unwrap()
    }

    fn on_a_ring<T: 'static>(test: impl AsyncFnOnce(Ring) -> T + 'static) -> T {
        let world = World::new(1, sim::Settings::default());
        let node = world.node(std::net::Ipv4Addr::new(10, 0, 0, 1));
        world.run(node, |ring| async move { test(ring).await }).unwrap()
    }

    #[test]
    fn journals_that_the_image_lacks_stay_whatever_their_number_and_empty_ones_push_none_out() {
        on_a_ring(async |ring| {
            let mut store = store_with_image(&ring).await;
            for number in 1..=12 {
                store.append(number, b"1700000000|ACCESS(1)");
                store.rotate().await.unwrap();
                store.rotate().await.unwrap();
            }
            assert_eq!(store.position().await.unwrap(), Some(13));
            assert_eq!(open(&ring).await.from(), Some(12), "the last line is found in the file before");
            let names = store.names().await.unwrap();
            assert!(names.contains(&journal_name(12)) && !names.contains(&journal_name(13)), "{names:?}");
            // With an image that has them, the limit counts.
            store.image = Some(Front { version: 13, metaid: MetaId(7) });
            store.append(13, b"1700000000|ACCESS(1)");
            store.rotate().await.unwrap();
            let names = store.names().await.unwrap();
            assert!(names.contains(&journal_name(5)) && !names.contains(&journal_name(6)), "{names:?}");
        });
    }

    #[test]
    fn two_that_are_set_aside_in_one_second_do_not_mix() {
        on_a_ring(async |ring| {
            let mut store = store_with_image(&ring).await;
            let mut folders = Vec::new();
            for number in 1..=3 {
                store.append(number, b"1700000000|ACCESS(1)");
                folders.push(store.set_aside("a test").await.unwrap());
            }
            for (number, folder) in (1..).zip(folders) {
                let log = ring.read_file(&folder.join(journal_name(0))).await.unwrap();
                assert!(log.starts_with(format!("{number}: ").as_bytes()), "{}", folder.display());
            }
        });
    }

    #[test]
    fn a_power_cut_while_setting_aside_leaves_all_in_one_place() {
        let (mut here, mut there) = (0, 0);
        for moment in 0..120u64 {
            let world = World::new(moment, sim::Settings::default());
            let node = world.node(std::net::Ipv4Addr::new(10, 0, 0, 1));
            let prepared = world.run(node, |ring| async move {
                let mut store = store_with_image(&ring).await;
                for number in 1..=3 {
                    store.append(number, b"1700000000|ACCESS(1)");
                    store.rotate().await.unwrap();
                }
                store
            });
            let mut store = prepared.unwrap();
            let task = world.spawn(node, |_| async move { store.set_aside("a test").await.map(drop) });
            world.run_for(std::time::Duration::from_micros(20 * moment));
            world.crash(node);
            drop(task);
            world.restart(node);
            let (kept, aside) = world
                .run(node, |ring| async move {
                    let store = open(&ring).await;
                    let kept = store.names().await.unwrap().into_iter().filter(|name| is_kept(name));
                    let kept = kept.filter(|name| *name != journal_name(0)).count();
                    let folders = ring.list(Path::new("/kept")).await.unwrap().into_iter().filter(|entry| entry.is_dir);
                    let folders: Vec<_> = folders.map(|entry| entry.name).collect();
                    let mut aside = 0;
                    for folder in folders {
                        assert!(folder.to_string_lossy().starts_with(ASIDE), "{folder:?}");
                        aside += ring.list(&Path::new("/kept").join(folder)).await.unwrap().len();
                    }
                    (kept, aside)
                })
                .unwrap();
            assert!((kept, aside) == (4, 0) || (kept == 0 && aside >= 4), "{moment}: {kept} here, {aside} there");
            here += u32::from(aside == 0);
            there += u32::from(kept == 0);
        }
        assert!(here > 0 && there > 0, "the moments reach from the beginning to the end: {here}, {there}");
    }

    #[test]
    fn names_that_look_like_checksums_are_no_damage_in_a_journal_of_moosefs() {
        let lines = "7: 1700000000|UNLINK(1,#6B0E5F7A):5\n8: 1700000000|UNLINK(1,b):6\n9: 1700000001|ACCESS(1)\n";
        assert_eq!(scanned(lines), (Some((7, 9)), lines.len() as u64));
    }

    #[test]
    fn a_damaged_first_line_of_ours_is_found_by_the_second() {
        let first = of_ours(7).replace("ACCESS(1", "ACCESS(2");
        assert_eq!(scanned(&format!("{first}{}", of_ours(8))), (None, 0));
        let (one, three) = (of_ours(7), of_ours(9));
        let two = of_ours(8).replace("ACCESS(1", "ACCESS(3");
        assert_eq!(scanned(&format!("{one}{two}{three}")), (Some((7, 7)), one.len() as u64));
    }
}
