//! Whether the data folder is still this master's own.
//!
//! A running master has all metadata in memory, and its folder may be taken away under it: no longer mounted, emptied, or
//! replaced by an unpacked backup. What lies there then may be all that is left of another file system, or of another
//! day, and numbers of changes alone do not tell: each history has a change 4711. So nothing is written to a folder before
//! it has shown whose it is: by the id in every image, by the last line that this master wrote, byte for byte, or by the
//! image that it stored itself. In any other folder nothing is changed, and nobody is answered, until a person decides.
//!
//! ```text
//! our last line ends the journal        whole: what a failed write left behind it is cut off
//! our image, and not that line          lacking: an image of the present is stored first
//! no images and no journals at all      emptied: the same
//! everything else                       strange: wait, say so, answer nobody
//! ```

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;

use ring::Stat;
use ring::local::{Mutex, Notify};
use tracing::{error, warn};
use wire::MetaId;

use super::Shared;
use crate::data_folder::{
    BACK, FILE_MODE, SEEN, first_bytes, header, is_image, is_journal, journal_path, last_line, read_seen, seen,
};

/// What a master remembers of its folder.
pub(super) struct OwnFolder {
    /// The image that it loaded or stored last.
    image: Cell<Option<Identity>>,
    /// The highest version that was noted; whoever has it may write the note.
    noted: Mutex<u64>,
    /// Why the folder that lies there is not touched.
    strange: RefCell<Option<String>>,
    /// It is ours again.
    back: Notify,
}

/// One file and no other: a copy has another inode, or was written at another time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, u32),
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        let (device, inode) = (stat.device, stat.inode);
        Identity { device, inode, size_bytes: stat.size, modified: (stat.mtime_sec, stat.mtime_nanos) }
    }
}

/// Remembers the image that lies in the folder now: it was just loaded or stored.
pub(super) async fn remember_image(master: &Shared) {
    let there = master.ring.stat(&master.data_path.join(BACK)).await;
    master.folder.image.set(there.ok().map(|stat| Identity::of(&stat)));
}

/// Whether the image in the folder is the one that was loaded or stored last.
pub(super) async fn has_own_image(master: &Shared) -> bool {
    let there = master.ring.stat(&master.data_path.join(BACK)).await;
    there.is_ok_and(|stat| master.folder.image.get() == Some(Identity::of(&stat)))
}

/// Notes on disk that the metadata came to `version`: no start goes on from less. All before it must be durable.
pub(super) async fn note(master: &Shared, version: u64) -> io::Result<()> {
    let mut noted = master.folder.noted.lock().await;
    *noted = version.max(*noted);
    let text = seen(master.core.borrow().namespace.meta_id(), *noted);
    master.ring.write_file_durably(&master.data_path.join(SEEN), FILE_MODE, text.into_bytes()).await
}

impl OwnFolder {
    pub(super) fn new() -> OwnFolder {
        let (image, noted, strange, back) = (Cell::new(None), Mutex::new(0), RefCell::new(None), Notify::new());
        OwnFolder { image, noted, strange, back }
    }

    /// Returns once the folder is this master's own: until then nobody is answered.
    pub(super) async fn until_ours(&self) {
        loop {
            let back = self.back.notified();
            if self.strange.borrow().is_none() {
                return;
            }
            back.await;
        }
    }

    pub(super) fn is_strange(&self) -> bool {
        self.strange.borrow().is_some()
    }

    /// The folder is not ours. Said once for each reason.
    pub(super) fn is_not_ours(&self, why: &str) {
        if self.strange.borrow().as_deref() != Some(why) {
            error!(
                "the data folder is not the one that this master wrote: {why}. Nothing there is touched, and nobody is \
                 answered. If what lies there shall be served, end this master (`mfsmaster kill`: its own metadata are \
                 then given up) and start it again; else put its own folder back, or an empty one"
            );
            *self.strange.borrow_mut() = Some(why.to_owned());
        }
    }

    pub(super) fn is_ours_again(&self) {
        if self.strange.borrow_mut().take().is_some() {
            warn!("the data folder is this master's own again");
            self.back.notify_all();
        }
    }
}

/// What lies in the folder.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// Names of images and journal files, whosever they are.
    names: Vec<String>,
    /// Images of ours, and whose they are.
    images: Vec<(String, MetaId)>,
    noted: Option<MetaId>,
    /// The journal file that is written.
    newest: Vec<u8>,
    /// The last line of the one before.
    before: Option<Vec<u8>>,
    has_own_image: bool,
}

impl Facts {
    pub(super) fn has_image(&self) -> bool {
        self.names.iter().any(|name| name == BACK)
    }

    pub(super) fn newest_bytes(&self) -> usize {
        self.newest.len()
    }
}

/// What this master knows of its own journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    pub(super) meta_id: MetaId,
    /// Version of the first line that is not durable.
    pub(super) durable: u64,
    /// The line before it, with its newline; empty: not known.
    pub(super) last_line: &'a [u8],
    /// The newest file had lines.
    pub(super) has_lines: bool,
    /// Lines that a failed write may have left; None: any are allowed.
    pub(super) batch: Option<&'a [u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Its own, with every durable line; those end at this byte of the newest journal file.
    Whole {
        end: usize,
    },
    /// Its own, and durable lines are missing.
    Lacking,
    Emptied,
    Strange(String),
}

/// Reads what `judge` asks. Errors: the folder is not there or cannot be read.
pub(super) async fn look(master: &Shared) -> io::Result<Facts> {
    let (ring, folder) = (&master.ring, &master.data_path);
    let mut facts = Facts::default();
    for entry in ring.list(folder).await?.into_iter().filter(|entry| !entry.is_dir) {
        let Ok(name) = entry.name.into_string() else { continue };
        if is_image(&name) {
            let (first, _) = first_bytes(ring, &folder.join(&name)).await?;
            facts.images.extend(header(&first).map(|header| (name.clone(), header.meta_id)));
        }
        if is_image(&name) || is_journal(&name) {
            facts.names.push(name);
        }
    }
    let absent_is_empty = |read: io::Result<Vec<u8>>| match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    };
    let noted = absent_is_empty(ring.read_file(&folder.join(SEEN)).await)?;
    facts.noted = read_seen(&noted).map(|(meta_id, _)| meta_id);
    facts.newest = absent_is_empty(ring.read_file(&journal_path(folder, 0)).await)?;
    facts.before = match ring.open(&journal_path(folder, 1), ring::OpenHow::read()).await {
        Ok(file) => last_line(&file).await?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    facts.has_own_image = has_own_image(master).await;
    Ok(facts)
}

/// Whose folder it is. Pure.
pub(super) fn judge(facts: &Facts, own: &Own<'_>) -> Verdict {
    if let Some((name, other)) = facts.images.iter().find(|(_, meta_id)| *meta_id != own.meta_id) {
        return Verdict::Strange(format!("{name} is of the file system {other}, and this is {}", own.meta_id));
    }
    if let Some(other) = facts.noted.filter(|meta_id| *meta_id != own.meta_id) {
        return Verdict::Strange(format!("{SEEN} is of the file system {other}, and this is {}", own.meta_id));
    }
    let (mut end, mut last) = (0, None);
    for line in facts.newest.split_inclusive(|byte| *byte == b'\n') {
        let version = meta::journal::line_version(line).filter(|_| line.ends_with(b"\n"));
        let Some(version) = version.filter(|version| *version < own.durable) else { break };
        end += line.len();
        last = Some((version, line));
    }
    let theirs: BTreeSet<&[u8]> = own.batch.unwrap_or_default().split_inclusive(|byte| *byte == b'\n').collect();
    let behind = facts.newest[end..].split_inclusive(|byte| *byte == b'\n');
    let is_line = |line: &[u8]| line.strip_suffix(b"\n").is_some_and(|line| meta::journal::parse(line).is_ok());
    if own.batch.is_some()
        && let Some(line) = behind.into_iter().find(|line| is_line(line) && !theirs.contains(line))
    {
        let version = meta::journal::line_version(line).unwrap_or(0);
        return Verdict::Strange(format!("its journal has a change {version} that this master did not make"));
    }
    // Right after a rotation there may be no line, and the last one is in the file before.
    let in_before = facts.before.as_deref().filter(|_| last.is_none() && !own.has_lines);
    let ends_with = last.or_else(|| in_before.and_then(|line| Some((meta::journal::line_version(line)?, line))));
    if let Some((_, line)) = ends_with.filter(|(version, _)| version.checked_add(1) == Some(own.durable)) {
        let of = |line: &'_ [u8]| line.strip_suffix(b"\n").unwrap_or(line).to_vec();
        return match own.last_line {
            [] if facts.has_own_image => Verdict::Whole { end },
            known if !known.is_empty() && of(known) == of(line) => Verdict::Whole { end },
            _ => Verdict::Strange(format!("its change {} is not the one that this master made", own.durable - 1)),
        };
    }
    if facts.has_own_image {
        // A start that found an image and no line behind it has nothing to miss.
        let nothing_was_there = last.is_none() && !own.has_lines && own.last_line.is_empty();
        return if nothing_was_there { Verdict::Whole { end } } else { Verdict::Lacking };
    }
    if facts.names.is_empty() {
        return Verdict::Emptied;
    }
    let found = facts.names.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    Verdict::Strange(format!("neither its last change, {}, nor its image is among {found}", own.durable - 1))
}

/// Errors: an image may not be stored here.
pub(super) async fn may_store(master: &Shared) -> io::Result<()> {
    if !master.folder.is_strange() && has_own_image(master).await {
        return Ok(());
    }
    let facts = look(master).await?;
    let verdict = {
        let core = master.core.borrow();
        judge(&facts, &core.journal.own(core.namespace.meta_id(), core.journal.has_lines(), None))
    };
    match verdict {
        Verdict::Strange(why) => {
            master.folder.is_not_ours(&why);
            Err(io::Error::other(format!("the data folder is not this master's: {why}")))
        }
        Verdict::Whole { .. } | Verdict::Lacking | Verdict::Emptied => {
            master.folder.is_ours_again();
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use meta::change::Change;
    use meta::journal::{Outcome, format};

    use super::*;

    fn lines(versions: std::ops::Range<u64>, time: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for version in versions {
            format(version, time.into(), &Change::Idle {}, &Outcome::default(), &mut bytes);
        }
        bytes
    }

    /// A folder with lines 1 to 9 of this master, which is at 10.
    fn facts() -> Facts {
        Facts {
            names: vec![BACK.into(), "changelog.0.mfs".into()],
            images: vec![(BACK.into(), MetaId(7))],
            noted: Some(MetaId(7)),
            newest: lines(1..10, 5),
            before: None,
            has_own_image: true,
        }
    }

    fn judged(facts: &Facts, batch: &[u8]) -> Verdict {
        let last = lines(9..10, 5);
        let own = Own { meta_id: MetaId(7), durable: 10, last_line: &last, has_lines: true, batch: Some(batch) };
        judge(facts, &own)
    }

    fn is_strange(facts: &Facts, batch: &[u8], word: &str) {
        let verdict = judged(facts, batch);
        assert!(matches!(&verdict, Verdict::Strange(why) if why.contains(word)), "{verdict:?} ({word})");
    }

    #[test]
    fn a_folder_with_our_last_line_is_ours_and_what_a_failed_write_left_is_cut_off() {
        let whole = Verdict::Whole { end: lines(1..10, 5).len() };
        assert_eq!(judged(&facts(), b""), whole);
        let copied = Facts { has_own_image: false, ..facts() };
        assert_eq!(judged(&copied, b""), whole, "the folder was moved to another disk");
        let batch = lines(10..13, 6);
        for cut in [0, 7, batch.len() / 2, batch.len()] {
            let newest = [lines(1..10, 5), batch[..cut].to_vec(), vec![0; 100]].concat();
            assert_eq!(judged(&Facts { newest, ..facts() }, &batch), whole, "{cut}");
        }
    }

    #[test]
    fn a_restored_backup_is_strange_whatever_its_numbers_are() {
        let other = Facts { has_own_image: false, images: vec![("metadata.mfs".into(), MetaId(8))], ..facts() };
        is_strange(&other, b"", "file system");
        is_strange(&Facts { noted: Some(MetaId(8)), ..facts() }, b"", "file system");
        // The same file system and the same numbers, and another history.
        is_strange(&Facts { newest: lines(1..10, 6), ..facts() }, b"", "change 9");
        // It goes on behind our last change.
        is_strange(&Facts { newest: lines(1..14, 5), ..facts() }, &lines(10..12, 5), "change 12");
        is_strange(&Facts { newest: lines(1..11, 5), ..facts() }, &lines(10..12, 6), "change 10");
        // An older day of the same file system.
        is_strange(&Facts { newest: lines(1..8, 5), has_own_image: false, ..facts() }, b"", "neither");
        let image_only = Facts { newest: Vec::new(), has_own_image: false, ..facts() };
        is_strange(&image_only, b"", "neither");
        // What somebody put there to begin a new one.
        let new = Facts { names: vec!["metadata.mfs".into()], ..Facts::default() };
        is_strange(&new, b"", "neither");
    }

    #[test]
    fn a_folder_that_lacks_lines_or_all_gets_an_image_of_the_present() {
        assert_eq!(judged(&Facts { newest: Vec::new(), ..facts() }, b""), Verdict::Lacking);
        assert_eq!(judged(&Facts { newest: lines(1..9, 5), ..facts() }, b""), Verdict::Lacking);
        assert_eq!(judged(&Facts::default(), b""), Verdict::Emptied);
        assert_eq!(judged(&Facts { noted: Some(MetaId(7)), ..Facts::default() }, b""), Verdict::Emptied);
    }

    #[test]
    fn right_after_a_rotation_the_last_line_is_in_the_file_before() {
        let last = lines(9..10, 5);
        let own = Own { meta_id: MetaId(7), durable: 10, last_line: &last, has_lines: false, batch: Some(b"") };
        let rotated = |time| Facts { newest: Vec::new(), before: Some(lines(9..10, time)), ..facts() };
        assert_eq!(judge(&rotated(5), &own), Verdict::Whole { end: 0 });
        assert!(matches!(judge(&rotated(6), &own), Verdict::Strange(_)));
        // A start from an image alone.
        let own = Own { last_line: b"", ..own };
        assert_eq!(judge(&Facts { newest: Vec::new(), ..facts() }, &own), Verdict::Whole { end: 0 });
    }
}
