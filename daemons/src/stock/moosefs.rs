//! What a MooseFS master or metalogger left in a folder: the newest image that loads, and the changes behind it.
//! Spec 50, 9.3, and 51, 5.
//!
//! Nothing here writes. MooseFS itself skips a change log with a torn end as a whole and goes on from an older image if
//! the newest one is damaged; here whatever would lose a change is refused, with the file and the way out named.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use meta::image::ImageHeader;
use meta::journal::{self, Part, SurveyEnd};
use meta::recovery::{ImageFacts, JournalFacts, Known, Overlap, Plan, Refusal, first_difference, overlaps, plan};
use meta::stock::{self, changelog};
use meta::{Namespace, Policy};
use wire::MetaId;

use super::{at, load_ours, now, read_pieces};
use crate::data_folder::{self, NEW, WRAPPED_TAIL, is_image};
use crate::process::{self, MASTER, METALOGGER, Program};

/// Whose format a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    MooseFs,
    Ours,
}

/// An image, as far as its two ends tell.
#[derive(Clone, Debug)]
pub(super) struct Image {
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// None: it does not end as it must.
    pub(super) header: Option<ImageHeader>,
    /// `MFSM NEW`: it asks for a new file system, which the change logs may have made.
    pub(super) is_new: bool,
    /// Older than 2.0: sessions are in a file of their own, and change logs mean something else.
    is_old: bool,
}

/// Images and change logs, by path.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) images: Vec<Image>,
    /// Images beside those, which are not to be loaded.
    pub(super) others: Vec<Image>,
    pub(super) logs: Vec<PathBuf>,
    /// A person named each of them: one that gives nothing is a mistake.
    pub(super) logs_are_named: bool,
}

/// Metadata as image and change logs give them.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) namespace: Namespace,
    pub(super) kind: Kind,
    pub(super) image: PathBuf,
    pub(super) from: u64,
    pub(super) logs: usize,
    pub(super) applied: u64,
    /// What was found and left out.
    pub(super) notes: Vec<String>,
}

impl Loaded {
    /// Lines for people.
    pub(super) fn describe(&self) -> Vec<String> {
        let (from, to) = (self.from.saturating_sub(1), self.namespace.version().saturating_sub(1));
        let mut lines = vec![format!("image         {} (changes up to {from})", self.image.display())];
        lines.push(format!("change logs   {} files, {} changes applied, up to change {to}", self.logs, self.applied));
        lines.extend(self.notes.iter().map(|note| format!("note          {note}")));
        lines
    }
}

/// Errors: a master or metalogger of either kind works in this folder. Not for a process that has a lock there: whoever
/// closes a lock file gives its lock up.
pub(super) fn refuse_running(folder: &Path) -> Result<(), String> {
    refuse(folder, &[MASTER, METALOGGER])
}

/// As `refuse_running`, for a master that has its lock.
pub(super) fn refuse_metalogger(folder: &Path) -> Result<(), String> {
    refuse(folder, &[METALOGGER])
}

fn refuse(folder: &Path, programs: &[Program]) -> Result<(), String> {
    for program in programs {
        if let Some(pid) = process::owner(&folder.join(program.lock_file()))? {
            let (name, folder, pid) = (program.name, folder.display(), pid.as_raw_nonzero());
            return Err(format!(
                "{name} runs in {folder} (pid {pid}): what it changes from now on would be lost; stop it"
            ));
        }
    }
    Ok(())
}

impl Files {
    /// What lies in a folder: images of either kind, change logs of master and metalogger.
    pub(super) fn find(folder: &Path) -> Result<Files, String> {
        let mut files = Files::default();
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(|error| at(folder, error))? {
            paths.push(entry.map_err(|error| at(folder, error))?.path());
        }
        paths.sort();
        for path in paths.into_iter().filter(|path| path.is_file()) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            if is_image(name) {
                files.images.extend(Image::look(&path)?);
            } else if data_folder::is_journal(name) {
                files.logs.push(path);
            }
        }
        Ok(files)
    }

    /// Images of MooseFS that hold something, or change logs that do.
    pub(super) fn are_of_moosefs(&self) -> bool {
        let images = || self.images.iter().filter(|image| image.kind == Kind::MooseFs);
        images().any(|image| !image.is_new) || images().next().is_some() && !self.logs.is_empty()
    }

    pub(super) fn has_ours(&self) -> bool {
        self.images.iter().any(|image| image.kind == Kind::Ours)
    }
}

impl Image {
    /// None: it is no image of anybody's.
    pub(super) fn look(path: &Path) -> Result<Option<Image>, String> {
        let look = || -> io::Result<(Vec<u8>, Vec<u8>)> {
            let mut file = open_regular(path)?;
            let mut first = Vec::new();
            file.by_ref().take(256).read_to_end(&mut first)?;
            let size = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(size.saturating_sub(16)))?;
            let mut last = Vec::new();
            file.take(16).read_to_end(&mut last)?;
            Ok((first, last))
        };
        let (first, last) = look().map_err(|error| at(path, error))?;
        let image = |kind, header, is_new, is_old| Image { path: path.to_owned(), kind, header, is_new, is_old };
        if first.starts_with(NEW) {
            let header = ImageHeader { meta_id: MetaId(0), version: 1, written_at: 0 };
            return Ok(Some(image(Kind::MooseFs, Some(header), true, false)));
        }
        stock::refuse_newer_format(&first).map_err(|why| at(path, why))?;
        if let Some(header) = stock::header(&first) {
            let is_sectioned = first[5..8] >= b"1.6"[..];
            let is_whole = if is_sectioned { last == b"[MFS EOF MARKER]" } else { last == [0; 16] };
            return Ok(Some(image(Kind::MooseFs, is_whole.then_some(header), false, first[5] < b'2')));
        }
        let is_ours = data_folder::is_ours(&first);
        let is_whole = !data_folder::is_wrapped(&first) || last == WRAPPED_TAIL;
        let header = data_folder::header(&first).filter(|_| is_whole);
        Ok(is_ours.then(|| image(Kind::Ours, header, false, false)))
    }

    fn version(&self) -> u64 {
        self.header.map_or(0, |header| header.version)
    }

    fn id(&self) -> u64 {
        self.header.map_or(0, |header| header.meta_id.0)
    }
}

/// Loads the newest of these images that loads, and replays what follows. All are of one kind. `lose_from`: a person said
/// that changes from this version on may be lost. Errors: a sentence.
pub(super) fn load(files: &Files, lose_from: Option<u64>) -> Result<Loaded, String> {
    one_cluster(&files.images)?;
    if let Some(newest) = files.images.iter().max_by_key(|image| image.version()) {
        refuse_newer(newest)?;
    }
    let kind = files.images.first().map_or(Kind::MooseFs, |image| image.kind);
    let journals = survey(kind, &files.logs)?;
    let mut damaged: Vec<(&Image, String)> = Vec::new();
    loop {
        let images: Vec<ImageFacts> = files.images.iter().map(|image| facts(image, &damaged)).collect();
        let plan = plan(&images, &journals, &Known::default(), lose_from).map_err(|refusal| {
            let damages: Vec<String> = damaged.iter().map(|(image, why)| at(&image.path, why)).collect();
            let refusal = with_line(&refusal, &journals);
            if damages.is_empty() { refusal } else { format!("{}; {refusal}", damages.join("; ")) }
        })?;
        let image = files.images.iter().find(|image| image.path.display().to_string() == plan.image);
        let image = image.ok_or_else(|| format!("{}: no such image", plan.image))?;
        if image.is_old && plan.to > plan.from {
            return Err(format!(
                "{} is of a MooseFS before 2.0, whose change logs beside it go on to change {} and cannot be replayed: \
                 stop that master in order (mfsmaster stop, or mfsmetarestore -a of its own), which leaves a \
                 metadata.mfs that needs none",
                plan.image,
                plan.to - 1
            ));
        }
        match load_image(image, &journals) {
            Ok((namespace, notes)) => {
                no_unreadable_log(&plan, files, &journals, lose_from)?;
                not_beyond(&plan, files, &damaged, lose_from)?;
                same_history(&plan, &journals)?;
                return replay(kind, namespace, plan, notes);
            }
            Err(why) => damaged.push((image, why)),
        }
    }
}

/// Errors: two images are of different clusters.
fn one_cluster(images: &[Image]) -> Result<(), String> {
    let mut named = images.iter().filter(|image| image.id() != 0);
    let Some(first) = named.next() else { return Ok(()) };
    match named.find(|image| image.id() != first.id()) {
        Some(other) => Err(format!(
            "{} and {} are of different file systems ({:016X} and {:016X}); move what does not belong here to another \
             place",
            first.path.display(),
            other.path.display(),
            first.id(),
            other.id()
        )),
        None => Ok(()),
    }
}

fn facts(image: &Image, damaged: &[(&Image, String)]) -> ImageFacts {
    let is_damaged = damaged.iter().any(|(other, _)| other.path == image.path);
    // An image that has no identity yet is of the cluster that the others are of.
    let header = image.header.map(|header| ImageHeader { meta_id: MetaId(0), ..header });
    ImageFacts { name: image.path.display().to_string(), header: header.filter(|_| !is_damaged) }
}

fn survey(kind: Kind, logs: &[PathBuf]) -> Result<Vec<JournalFacts>, String> {
    let mut journals = Vec::new();
    for path in logs {
        let bytes = fs::read(path).map_err(|error| at(path, error))?;
        let parts: Vec<Part> = match kind {
            Kind::MooseFs => changelog::parts(&bytes),
            Kind::Ours => journal::parts(&bytes),
        };
        journals.extend(parts.into_iter().map(|part| JournalFacts {
            name: path.display().to_string(),
            versions: part.versions,
            bytes: part.bytes.start as u64..part.bytes.end as u64,
            end: part.end,
        }));
    }
    Ok(journals)
}

/// The last change in a change log, if there is one.
pub(super) fn last_change(kind: Kind, path: &Path) -> Result<Option<u64>, String> {
    let journals = survey(kind, &[path.to_owned()])?;
    Ok(journals.iter().filter_map(|journal| journal.versions).map(|(_, last)| last).max())
}

/// Errors: a file of MooseFS 4. Said before anything about its change logs, of which we know nothing either.
fn refuse_newer(image: &Image) -> Result<(), String> {
    if image.kind != Kind::MooseFs || image.is_new || image.is_old {
        return Ok(());
    }
    let mut file = open_regular(&image.path).map_err(|error| at(&image.path, error))?;
    let mut place = stock::FIRST_SECTION;
    loop {
        let mut head = [0; 16];
        let read = file.seek(SeekFrom::Start(place)).and_then(|_| file.read_exact(&mut head));
        if read.is_err() {
            return Ok(()); // it is cut short: that is said when it is loaded
        }
        match stock::next_section(&head, place).map_err(|why| at(&image.path, why))? {
            Some(next) => place = next,
            None => return Ok(()),
        }
    }
}

fn load_image(image: &Image, journals: &[JournalFacts]) -> Result<(Namespace, Vec<String>), String> {
    if image.kind == Kind::Ours {
        return Ok((load_ours(&image.path)?, Vec::new()));
    }
    if image.is_new {
        // The master made the root when it started, and wrote its first line right after.
        let first = journals.iter().find(|journal| journal.versions.is_some_and(|(first, _)| first == 1));
        let created = first.and_then(|journal| {
            let line = run(journal).ok()?;
            let rest = &line[line.iter().position(|byte| *byte == b' ')? + 1..];
            String::from_utf8_lossy(&rest[..rest.iter().position(|byte| *byte == b'|')?]).parse().ok()
        });
        return Ok((stock::new_file_system(Policy::default(), created.unwrap_or_else(now)), Vec::new()));
    }
    let mut loader = stock::Loader::new();
    let mut notes = Vec::new();
    if image.is_old
        && let Ok(sessions) = open_regular(&image.path.with_file_name("sessions.mfs")).and_then(|mut file| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| bytes)
        })
        && let Err(why) = loader.sessions(&sessions)
    {
        notes.push(format!("{why}; mounts must be mounted again"));
    }
    read_pieces(&image.path, |piece| loader.push(piece).map_err(|error| error.to_string()))?;
    let imported = loader.finish(Policy::default(), now()).map_err(|error| error.to_string())?;
    notes.extend(imported.notes);
    Ok((imported.namespace, notes))
}

/// A refusal for people; of a damaged file with the line.
fn with_line(refusal: &Refusal, journals: &[JournalFacts]) -> String {
    let Refusal::Damaged { file, after, .. } = refusal else { return refusal.to_string() };
    let ends_there = |journal: &&JournalFacts| {
        journal.name == *file && journal.versions.is_some_and(|(_, last)| last.checked_add(1) == Some(*after))
    };
    let end = journals.iter().find(ends_there).and_then(|journal| usize::try_from(journal.bytes.end).ok());
    let bytes = fs::read(file).ok();
    match bytes.as_deref().zip(end).and_then(|(bytes, end)| bytes.get(..end)) {
        Some(sound) => format!("{file}: line {}: {refusal}", sound.iter().filter(|byte| **byte == b'\n').count() + 1),
        None => refusal.to_string(),
    }
}

/// Errors: a change log of which nothing can be read may hold changes that would be lost. One torn line in a file that
/// was only found is noted by the plan.
fn no_unreadable_log(
    plan: &Plan,
    files: &Files,
    journals: &[JournalFacts],
    lose_from: Option<u64>,
) -> Result<(), String> {
    let highest = journals.iter().filter_map(|journal| journal.versions).map(|(_, last)| last).max();
    let is_bad = |journal: &&JournalFacts| match (journal.end, journal.versions) {
        (SurveyEnd::Damaged(_), None) => true,
        // Its last lines may have followed the image.
        (SurveyEnd::Damaged(_), Some((_, last))) => last < plan.from && Some(last) == highest,
        (SurveyEnd::Torn, None) => files.logs_are_named,
        _ => false,
    };
    let Some(journal) = journals.iter().find(is_bad).filter(|_| lose_from != Some(plan.to)) else { return Ok(()) };
    let what = match journal.versions {
        None => "line 1: there is no whole line in this file: it is damaged, packed or no change log".to_owned(),
        Some((_, last)) => {
            format!("damaged after change {last}, and changes that follow the image may have been there")
        }
    };
    Err(format!(
        "{}: {what}. Unpack it, or copy a sound one from a metalogger; if its changes are not wanted leave it out, or go \
         on with --lose-changes-from={}",
        journal.name, plan.to
    ))
}

/// Errors: something here, or what MooseFS stored elsewhere in an emergency, is newer than what `plan` comes to.
fn not_beyond(plan: &Plan, files: &Files, damaged: &[(&Image, String)], lose_from: Option<u64>) -> Result<(), String> {
    if lose_from == Some(plan.to) {
        return Ok(());
    }
    let reached = plan.to.saturating_sub(1);
    if let Some((image, why)) = damaged.iter().find(|(image, _)| image.version() > plan.to) {
        return Err(format!(
            "{}: {why}. Without it the metadata end with change {reached}, and it reached change {}: copy a sound one \
             from a metalogger; --lose-changes-from={} goes on without the later changes",
            image.path.display(),
            image.version() - 1,
            plan.to
        ));
    }
    let of_moosefs = files.others.iter().filter(|image| image.kind == Kind::MooseFs);
    if let Some(image) = of_moosefs.into_iter().find(|image| image.version() > plan.to) {
        return Err(format!(
            "{} beside it is newer: it reaches change {}, {} with the change logs only change {reached}. Name the newer \
             one, or the folder",
            image.path.display(),
            image.version() - 1,
            plan.image
        ));
    }
    let id = files.images.iter().map(Image::id).find(|id| *id != 0);
    let places = ["/", "/tmp", "/var", "/usr", "/usr/share", "/usr/local", "/usr/local/var", "/usr/local/share"];
    let is_moosefs = files.images.iter().any(|image| image.kind == Kind::MooseFs);
    for place in places.into_iter().filter(|_| is_moosefs && id.is_some()) {
        let path = Path::new(place).join("metadata.mfs.emergency");
        let Some(image) = stored_in_emergency(&path) else { continue };
        if Some(image.id()) == id && image.version() > plan.to {
            return Err(format!(
                "{} was stored by this master in an emergency and reaches change {}, the files here change {reached}: \
                 copy it beside them",
                path.display(),
                image.version() - 1
            ));
        }
    }
    Ok(())
}

/// An image in a folder where anybody may have put something. None also for who may not read there: no master's user.
fn stored_in_emergency(path: &Path) -> Option<Image> {
    fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Image::look(path).ok().flatten()
}

/// Opens a file, and nothing that would let its reader wait for somebody.
fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "this is no regular file")),
    }
}

/// Errors: two files have the same change with different contents, among those that follow the image.
fn same_history(plan: &Plan, journals: &[JournalFacts]) -> Result<(), String> {
    for Overlap { one, other, versions: (first, last) } in overlaps(journals) {
        let versions = (first.max(plan.from), last);
        let (one, other) = (&journals[one], &journals[other]);
        if versions.0 > versions.1 {
            continue;
        }
        if let Some(version) = first_difference(&run(one)?, &run(other)?, versions) {
            let (one, other) = (one.name.clone(), other.name.clone());
            return Err(Refusal::TwoHistories { version, one, other }.to_string());
        }
    }
    Ok(())
}

/// The lines of a run.
fn run(journal: &JournalFacts) -> Result<Vec<u8>, String> {
    let bytes = fs::read(&journal.name).map_err(|error| at(Path::new(&journal.name), error))?;
    part_of(&bytes, &journal.bytes).map(<[u8]>::to_vec).ok_or_else(|| format!("{}: became shorter", journal.name))
}

fn part_of<'a>(bytes: &'a [u8], range: &std::ops::Range<u64>) -> Option<&'a [u8]> {
    bytes.get(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)
}

fn replay(kind: Kind, mut namespace: Namespace, plan: Plan, mut notes: Vec<String>) -> Result<Loaded, String> {
    let (mut applied, mut used) = (0, BTreeSet::new());
    for (name, range) in &plan.journals {
        let path = Path::new(name);
        let bytes = fs::read(path).map_err(|error| at(path, error))?;
        let lines = part_of(&bytes, range).ok_or_else(|| format!("{name}: became shorter"))?;
        let before = bytes.len().min(usize::try_from(range.start).unwrap_or(usize::MAX));
        let lines_before = bytes[..before].iter().filter(|byte| **byte == b'\n').count() as u64;
        let added = match kind {
            Kind::MooseFs => changelog::replay(&mut namespace, lines, lines_before).map_err(|error| at(path, error))?,
            Kind::Ours => namespace.replay_lines(lines).map_err(|error| at(path, error))?,
        };
        applied += added;
        used.extend((added != 0).then_some(name));
    }
    if namespace.version() != plan.to {
        let reached = namespace.version();
        return Err(format!("the changes reach {reached}, not {}: the files change meanwhile", plan.to));
    }
    notes.extend(plan.remarks);
    let logs = used.len();
    Ok(Loaded { namespace, kind, image: PathBuf::from(plan.image), from: plan.from, logs, applied, notes })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn nobody_waits_for_a_pipe_where_an_image_may_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        std::os::unix::fs::symlink(path("pipe"), path("link")).expect("a link");
        fs::write(path("file"), "MFSM NEW").expect("written");
        assert!(stored_in_emergency(&path("file")).is_some_and(|image| image.is_new));
        let names = ["pipe", "link", "none"].map(path);
        let (sender, found) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for name in names {
                let looked = Image::look(&name).map(|image| image.is_some());
                let _ = sender.send((looked, stored_in_emergency(&name).is_some()));
            }
        });
        for _ in 0..3 {
            let (looked, stored) = found.recv_timeout(Duration::from_secs(20)).expect("no end of waiting");
            assert!(looked.is_err() && !stored, "{looked:?}");
        }
    }
}
