//! The start: find the newest sound image, replay the journal that follows, say how far it came. Spec 42, C.6.
//!
//! What to take is decided in `meta::recovery`; here files are read, lines replayed, and what was torn is cut off, so
//! that the journal can go on where the sound lines end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use meta::change::{Change, raise};
use meta::image::Digest;
use meta::image::{ImageHeader, Loader};
use meta::journal::{self, Batch, SurveyEnd};
use meta::recovery::{ImageFacts, JournalFacts, Known, Overlap, Plan, Refusal, first_difference, overlaps, plan};
use meta::stock::changelog;
use meta::{Namespace, Policy};
use ring::{OpenHow, Ring};
use tracing::{info, warn};
use wire::{ChunkId, MetaId};

use super::MasterError;
use super::images;
use super::settings::Settings;
use crate::data_folder::{
    BACK, CLEAN, FILE_MODE, NEW, SEEN, TEMPORARY, first_and_last, first_bytes, gone_is_fine, header, image_bytes,
    is_image, is_journal, is_own_journal, journal_path, read_seen, version_of_moosefs,
};

/// Bytes of one read.
const PIECE_BYTES: usize = 4 << 20;
/// So much of the journal's end is remembered for metaloggers at the start.
const TAIL_BYTES: usize = 1 << 20;

/// The metadata, ready to be served.
pub(super) struct Loaded {
    pub(super) namespace: Namespace,
    /// Version of the next line on disk.
    pub(super) journal_version: u64,
    /// The last lines before that one, as far as they are in the journal.
    pub(super) tail: Batch,
    /// Chunks whose deletion the replayed lines showed.
    pub(super) deleted_chunks: Vec<ChunkId>,
    /// Chunks that were granted to a writer and never let go of in the replayed lines.
    pub(super) unfinished_chunks: BTreeSet<ChunkId>,
    /// New ones among them, with the chunk that was in their place.
    pub(super) newborn_chunks: BTreeMap<ChunkId, Option<ChunkId>>,
}

/// Loads what the data folder holds, or makes what it asks for. Errors: `Recovery` says why not, and what to do.
pub(super) async fn load(ring: &Ring, settings: &Settings) -> Result<Loaded, MasterError> {
    let folder = &settings.data_path;
    gone_is_fine(ring.unlink(&folder.join(TEMPORARY)).await)?;
    let Listed { names, headers, asks_for_new, of_moosefs } = list(ring, folder).await?;
    let has_images = headers.iter().any(|(_, header)| header.is_some());
    let has_journal = names.iter().any(|name| is_journal(name));
    if asks_for_new && has_images {
        let found: Vec<&str> = headers.iter().map(|(name, _)| name.as_str()).collect();
        return Err(MasterError::Recovery(format!(
            "{CLEAN} asks for a new file system, but there are images of an old one here: {}. Remove {CLEAN} to go on \
             with the old one, or move the old files away",
            found.join(", ")
        )));
    }
    if asks_for_new && let Some(log) = changes_of_old(ring, folder, &names).await? {
        return Err(MasterError::Recovery(format!(
            "{CLEAN} asks for a new file system, but {log} has the changes of an old one. If they are a MooseFS \
             master's, `mfsmaster -a` or `mooring import` goes on from them; for a new file system move the changelog \
             files away"
        )));
    }
    if asks_for_new || (settings.new_file_system && headers.is_empty() && !has_journal) {
        refuse_to_forget(ring, settings, asks_for_new).await?;
        return make_new(ring, settings).await;
    }
    recover(ring, settings, &names, headers, &of_moosefs).await
}

/// Errors: a new file system is asked for where an older one has been, and nothing but the note of that is left.
async fn refuse_to_forget(ring: &Ring, settings: &Settings, asks_for_new: bool) -> Result<(), MasterError> {
    let known = known(ring, settings).await?;
    let Some(meta_id) = known.meta_id.filter(|meta_id| settings.accept_metaid != Some(*meta_id)) else { return Ok(()) };
    let asked = if asks_for_new { format!("{CLEAN} asks") } else { "--new asks".to_owned() };
    let note = settings.data_path.join(SEEN);
    Err(MasterError::Recovery(format!(
        "{asked} for a new file system, but {} says that this folder had the metadata of the file system {meta_id} up to \
         change {}, and they are missing. Copy them back from a backup, or from a metalogger (`mooring promote`); for a \
         new file system, whose master takes none of the old one's chunks, move {SEEN} to another place",
        note.display(),
        known.version_seen.saturating_sub(1)
    )))
}

type Headers = Vec<(String, Option<ImageHeader>)>;

/// What lies in a folder.
struct Listed {
    names: Vec<String>,
    /// Files that are named as images, with what their first bytes say.
    headers: Headers,
    /// One of them asks for a new file system.
    asks_for_new: bool,
    /// Those that a MooseFS master wrote, with their versions. They are among `headers`, without header.
    of_moosefs: Vec<(String, u64)>,
}

async fn list(ring: &Ring, folder: &Path) -> Result<Listed, MasterError> {
    let mut names: Vec<String> = ring
        .list(folder)
        .await?
        .into_iter()
        .filter(|entry| !entry.is_dir)
        .filter_map(|entry| entry.name.into_string().ok())
        .collect();
    names.sort();

    let mut asks_for_new = false;
    let mut headers: Headers = Vec::new();
    let mut of_moosefs = Vec::new();
    for name in names.iter().filter(|name| is_image(name)) {
        let (first, size) = first_bytes(ring, &folder.join(name)).await?;
        if name == CLEAN && size == NEW.len() as u64 && first == NEW {
            asks_for_new = true;
            continue;
        }
        if let Some(version) = version_of_moosefs(&first) {
            of_moosefs.push((name.clone(), version));
        }
        headers.push((name.clone(), header(&first)));
    }
    Ok(Listed { names, headers, asks_for_new, of_moosefs })
}

/// A change log with more in it than the line with which a new file system begins: a start that was cut short right then
/// may have left that.
async fn changes_of_old(ring: &Ring, folder: &Path, names: &[String]) -> Result<Option<String>, MasterError> {
    for name in names.iter().filter(|name| is_journal(name)) {
        let bytes = ring.read_file(&folder.join(name)).await?;
        let ours = journal::parts(&bytes).into_iter().filter_map(|part| part.versions);
        let of_moosefs = changelog::parts(&bytes).into_iter().filter_map(|part| part.versions);
        if ours.chain(of_moosefs).any(|versions| versions != (1, 1)) {
            return Ok(Some(name.clone()));
        }
    }
    Ok(None)
}

/// Where a start from a folder would come to.
pub(crate) struct Rehearsed {
    pub(crate) plan: Plan,
    pub(crate) digest: Digest,
    /// Lines that were replayed.
    pub(crate) changes: u64,
}

/// What a start from this folder would do: loads the image and replays every line. Changes nothing. Errors: `Recovery`
/// says why it would be refused.
pub(crate) async fn rehearse(ring: &Ring, settings: &Settings) -> Result<Rehearsed, MasterError> {
    recovered(ring, settings).await.map(|(rehearsed, _)| rehearsed)
}

/// As `rehearse`, with the metadata.
pub(crate) async fn recovered(ring: &Ring, settings: &Settings) -> Result<(Rehearsed, Namespace), MasterError> {
    let Listed { names, headers, of_moosefs, .. } = list(ring, &settings.data_path).await?;
    let Replayed { plan, namespace, changes, .. } =
        load_and_replay(ring, settings, &names, headers, &of_moosefs).await?;
    Ok((Rehearsed { plan, digest: namespace.digest(), changes }, namespace))
}

/// What to load and replay. Files of a MooseFS master are not ours to load; but where they are all there is, or newer than
/// what we have, a start would be a new file system or an old one. Errors: `Recovery` says what to do.
async fn decide(
    ring: &Ring,
    settings: &Settings,
    images: &[ImageFacts],
    journals: &[JournalFacts],
    of_moosefs: &[(String, u64)],
) -> Result<Plan, MasterError> {
    let newest = of_moosefs.iter().max_by_key(|(_, version)| *version);
    let folder = settings.data_path.display();
    if let Some((name, _)) = newest.filter(|_| !images.is_empty() && images.iter().all(|image| image.header.is_none()))
    {
        return Err(MasterError::Recovery(format!(
            "{folder}/{name} is of a MooseFS master. Stop that master if it runs; then start with -a to make its \
             metadata ours in this folder (its files are kept in a folder left-by-moosefs), or leave this folder as it \
             is: `mooring import {folder} --to NEW_FOLDER`, and start with DATA_PATH = NEW_FOLDER"
        )));
    }
    let known = known(ring, settings).await?;
    let plan = plan(images, journals, &known, settings.lose_changes_from).map_err(refused)?;
    if let Some((name, version)) = newest.filter(|(_, version)| *version > plan.to) {
        return Err(MasterError::Recovery(format!(
            "{folder}/{name}, which a MooseFS master wrote, reaches change {}, our metadata beside it change {}: they \
             would be an old copy. To go on with what MooseFS wrote, move our files away and start with -a, or \
             `mooring import {folder}/{name} --to NEW_FOLDER` and start with DATA_PATH = NEW_FOLDER; to go on with \
             ours, move {name} away",
            version.saturating_sub(1),
            plan.to.saturating_sub(1)
        )));
    }
    Ok(plan)
}

/// A new file system, with an image from the start. At whatever moment this ends, a start finds what asked for it, or
/// the image in its place, which has everything; the journal's file comes last.
async fn make_new(ring: &Ring, settings: &Settings) -> Result<Loaded, MasterError> {
    let now = u32::try_from(ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX);
    let metaid = MetaId(u64::from(now) << 32 | (ring.random_u64() & 0xFFFF_FFFF));
    let mut namespace = Namespace::new(metaid, settings.policy, now);
    let tail = namespace.take_journal();
    let folder = &settings.data_path;
    images::store(ring, folder, namespace.freeze(), now, settings.images_kept, true).await?;
    ring.rename(&folder.join(CLEAN), &folder.join(BACK)).await?;
    let file = ring.open(&journal_path(folder, 0), OpenHow::create(FILE_MODE).truncate(true)).await?;
    file.write_all_at(tail.bytes.clone(), 0).await.0?;
    file.sync().await?;
    ring.sync_dir(folder).await?;
    info!(%metaid, "a new file system");
    let journal_version = namespace.version();
    Ok(Loaded {
        namespace,
        journal_version,
        tail,
        deleted_chunks: Vec::new(),
        unfinished_chunks: BTreeSet::new(),
        newborn_chunks: BTreeMap::new(),
    })
}

/// What a data folder holds.
struct Found {
    images: Vec<ImageFacts>,
    /// The newest image that loads to its end.
    loaded: Option<(String, Namespace)>,
    journals: Vec<JournalFacts>,
    /// Change logs that a MooseFS master wrote, with the version after their last line.
    logs_of_moosefs: Vec<(String, u64)>,
}

async fn find(ring: &Ring, settings: &Settings, names: &[String], mut headers: Headers) -> Result<Found, MasterError> {
    let folder = &settings.data_path;
    // Newest first; the first one that loads to its end is the image. The same version: the clean one.
    headers.sort_by_key(|(name, header)| {
        (std::cmp::Reverse(header.map_or(0, |header| header.version)), name.as_str() != CLEAN, name.clone())
    });
    let mut images: Vec<ImageFacts> = Vec::new();
    let mut loaded: Option<(String, Namespace)> = None;
    for (name, header) in headers {
        if let (Some(_), None) = (header, &loaded) {
            match load_image(ring, &folder.join(&name), settings.policy).await {
                Ok(namespace) => loaded = Some((name.clone(), namespace)),
                Err(reason) => {
                    warn!(file = name, %reason, "an image cannot be loaded");
                    images.push(ImageFacts { name, header: None });
                    continue;
                }
            }
        } else if header.is_some()
            && loaded.as_ref().is_some_and(|(_, namespace)| Some(namespace.version()) == header.map(|h| h.version))
        {
            continue; // as new as the one that is loaded, which stands for it
        }
        images.push(ImageFacts { name, header });
    }

    let from = loaded.as_ref().map(|(_, namespace)| namespace.version());
    let older = older_journals(ring, folder, names, from).await?;
    let (mut journals, mut logs_of_moosefs) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| is_journal(name)) {
        if let Some((facts, inode)) = older.iter().find(|(facts, _)| facts.name == *name) {
            // Beside a metalogger that runs the name may be another file's by now.
            if ring.stat(&folder.join(name)).await?.inode == *inode {
                journals.push(facts.clone());
                continue;
            }
        }
        let bytes = ring.read_file(&folder.join(name)).await?;
        let parts = journal::parts(&bytes);
        if parts.iter().all(|part| part.versions.is_none())
            && let Some(last) =
                changelog::parts(&bytes).into_iter().filter_map(|part| part.versions).map(|of| of.1).max()
        {
            logs_of_moosefs.push((name.clone(), last + 1));
        }
        journals.extend(parts.into_iter().map(|part| JournalFacts {
            name: name.clone(),
            versions: part.versions,
            bytes: part.bytes.start as u64..part.bytes.end as u64,
            end: part.end,
        }));
    }
    Ok(Found { images, loaded, journals, logs_of_moosefs })
}

/// Journal files whose lines the image `from` has all, and no other file has, with their inodes: what lies between the
/// first line and the last one is not needed, and not read. There may be fifty of them, with a gigabyte each. The newest
/// file is never among them, since it is to go on where its sound lines end.
///
/// That versions rise from the first line to the last is taken on trust: no program of ours writes a file where they do
/// not.
pub(super) async fn older_journals(
    ring: &Ring,
    folder: &Path,
    names: &[String],
    from: Option<u64>,
) -> Result<Vec<(JournalFacts, u64)>, MasterError> {
    let Some(from) = from else { return Ok(Vec::new()) };
    let (mut found, mut inodes) = (Vec::new(), Vec::new());
    for name in names.iter().filter(|name| is_journal(name)) {
        let file = ring.open(&folder.join(name), OpenHow::read()).await?;
        let there = file.stat().await?;
        if there.size == 0 {
            continue;
        }
        // What begins with no line of ours may have any.
        let Some((first, last)) = first_and_last(&file, there.size).await? else { return Ok(Vec::new()) };
        let versions = Some((first, last.unwrap_or(u64::MAX)));
        found.push(JournalFacts { name: name.clone(), versions, bytes: 0..there.size, end: SurveyEnd::Clean });
        inodes.push(there.inode);
    }
    let shared: BTreeSet<usize> = overlaps(&found).iter().flat_map(|overlap| [overlap.one, overlap.other]).collect();
    let is_older = |facts: &JournalFacts| facts.versions.is_some_and(|(_, last)| last < from);
    let is_newest = |facts: &JournalFacts| folder.join(&facts.name) == journal_path(folder, 0);
    let files = found.into_iter().zip(inodes).enumerate();
    let kept = files.filter(|(at, (facts, _))| !shared.contains(at) && is_older(facts) && !is_newest(facts));
    Ok(kept.map(|(_, file)| file).collect())
}

fn refused(refusal: Refusal) -> MasterError {
    MasterError::Recovery(format!("the metadata cannot be recovered: {refusal}"))
}

/// Errors: files have the same line with different contents.
async fn same_history(ring: &Ring, folder: &Path, journals: &[JournalFacts]) -> Result<(), MasterError> {
    for Overlap { one, other, versions } in overlaps(journals) {
        let (one, other) = (&journals[one], &journals[other]);
        let (left, right) =
            (run(ring, folder, &one.name, &one.bytes).await?, run(ring, folder, &other.name, &other.bytes).await?);
        if let Some(version) = first_difference(&left, &right, versions) {
            return Err(refused(Refusal::TwoHistories { version, one: one.name.clone(), other: other.name.clone() }));
        }
    }
    Ok(())
}

/// A run of lines of a journal file.
async fn run(ring: &Ring, folder: &Path, name: &str, at: &Range<u64>) -> Result<Vec<u8>, MasterError> {
    let path = folder.join(name);
    let mut bytes = ring.read_file(&path).await?;
    let (start, end) = (usize::try_from(at.start), usize::try_from(at.end));
    match (start, end) {
        (Ok(start), Ok(end)) if start <= end && end <= bytes.len() => {
            bytes.truncate(end);
            bytes.drain(..start);
            Ok(bytes)
        }
        _ => Err(MasterError::Recovery(format!("{}: became shorter meanwhile", path.display()))),
    }
}

/// Metadata as image and journal give them, before anything on disk is touched.
struct Replayed {
    plan: Plan,
    image: String,
    namespace: Namespace,
    changes: u64,
    open: OpenWrites,
    journals: Vec<JournalFacts>,
    logs_of_moosefs: Vec<(String, u64)>,
}

async fn load_and_replay(
    ring: &Ring,
    settings: &Settings,
    names: &[String],
    headers: Headers,
    of_moosefs: &[(String, u64)],
) -> Result<Replayed, MasterError> {
    let folder = &settings.data_path;
    let Found { images, loaded, journals, logs_of_moosefs } = find(ring, settings, names, headers).await?;
    let of_moosefs = [of_moosefs, &logs_of_moosefs].concat();
    let plan = decide(ring, settings, &images, &journals, &of_moosefs).await?;
    same_history(ring, folder, &journals).await?;
    let (image, mut namespace) = match loaded {
        Some((name, namespace)) if name == plan.image => (name, namespace),
        _ => {
            let namespace = load_image(ring, &folder.join(&plan.image), settings.policy)
                .await
                .map_err(|reason| MasterError::Recovery(format!("{}: {reason}", plan.image)))?;
            (plan.image.clone(), namespace)
        }
    };
    let mut changes = 0u64;
    let mut open = OpenWrites::default();
    for (name, bytes) in &plan.journals {
        changes += replay(ring, folder, name, bytes, &mut namespace, &mut open).await?;
    }
    if namespace.version() != plan.to {
        let reached = namespace.version();
        let text = format!("the metadata reach change {reached}, not {}: the files change meanwhile", plan.to);
        return Err(MasterError::Recovery(text));
    }
    Ok(Replayed { plan, image, namespace, changes, open, journals, logs_of_moosefs })
}

async fn recover(
    ring: &Ring,
    settings: &Settings,
    names: &[String],
    headers: Headers,
    of_moosefs: &[(String, u64)],
) -> Result<Loaded, MasterError> {
    let folder = &settings.data_path;
    let replayed = load_and_replay(ring, settings, names, headers, of_moosefs).await?;
    let Replayed { plan, image, mut namespace, changes: applied, open, journals, logs_of_moosefs } = replayed;
    for remark in &plan.remarks {
        warn!("recovery: {remark}");
    }
    info!(image, from = plan.from, to = namespace.version(), changes = applied, "metadata recovered");

    let now = u32::try_from(ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX);
    let as_left = applied == 0 && plan.remarks.is_empty() && settings.accept_metaid.is_none();
    if !as_left || image != BACK {
        if image == CLEAN && as_left {
            gone_is_fine(ring.rename(&folder.join(CLEAN), &folder.join(BACK)).await)?;
            ring.sync_dir(folder).await?;
        } else {
            images::store(ring, folder, namespace.freeze(), now, settings.images_kept, false).await?;
        }
    }
    // With the image safe: what must not be met again, torn ends and lines that were given up.
    for parts in journals.chunk_by(|part, next| part.name == next.name) {
        let last = parts.last().expect("a chunk has an element");
        let (name, sound_end) = (&last.name, last.bytes.end);
        let path = folder.join(name);
        let is_given_up = |part: &JournalFacts| part.versions.is_some_and(|(_, last)| last >= namespace.version());
        if logs_of_moosefs.iter().any(|(of_moosefs, _)| of_moosefs == name) {
            // Nothing of ours is in it, and it stands where our lines will.
            if is_own_journal(name) {
                ring.rename(&path, &folder.join(format!("{name}.of-moosefs-{now}"))).await?;
                ring.sync_dir(folder).await?;
                warn!(file = name, "a MooseFS master's change log lies here, older than our metadata; it was renamed");
            }
        } else if parts.iter().any(is_given_up) {
            ring.rename(&path, &folder.join(format!("{name}.given-up-{now}"))).await?;
            ring.sync_dir(folder).await?;
            warn!(
                file = name,
                "the journal's lines from {} on are given up; the file was renamed",
                namespace.version()
            );
        } else if ring.stat(&path).await?.size > sound_end && is_own_journal(name) {
            let file = ring.open(&path, OpenHow::create(FILE_MODE)).await?;
            file.set_len(sound_end).await?;
            file.sync().await?;
            if last.end != SurveyEnd::Clean {
                warn!(file = name, bytes = sound_end, "the torn end of the journal was cut off");
            }
        }
    }
    let deleted_chunks = namespace.take_deleted_chunks();
    let journal_version = namespace.version();
    let tail = tail(ring, folder, journal_version).await?;
    let OpenWrites { unfinished: unfinished_chunks, newborn: newborn_chunks } = open;
    Ok(Loaded { namespace, journal_version, tail, deleted_chunks, unfinished_chunks, newborn_chunks })
}

/// The last lines of the newest journal file, if they end right before `next`. A metalogger that comes back compares its
/// own last line with them, and goes on without another image.
async fn tail(ring: &Ring, folder: &Path, next: u64) -> Result<Batch, MasterError> {
    for number in 0..2 {
        let file = match ring.open(&journal_path(folder, number), OpenHow::read()).await {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            other => other?,
        };
        let size = file.stat().await?.size;
        let from = size.saturating_sub(TAIL_BYTES as u64);
        let (read, mut bytes) = file.read_at(vec![0; TAIL_BYTES], from).await;
        bytes.truncate(read?);
        // The first of them may be the end of a line.
        let cut = if from == 0 { Some(0) } else { bytes.iter().position(|byte| *byte == b'\n').map(|end| end + 1) };
        let bytes = bytes.split_off(cut.unwrap_or(bytes.len()));
        let last = journal::parts(&bytes).pop().and_then(|part| Some((part.versions?, part.bytes)));
        match last {
            Some(((first, last), part)) if last.checked_add(1) == Some(next) => {
                return Ok(Batch { first, next, bytes: bytes[part].to_vec() });
            }
            Some(_) => break,
            None => {} // no lines yet
        }
    }
    Ok(Batch::default())
}

/// Which file system's folder this is, and how far its metadata came before. Design: an older image than the cluster
/// has seen, or one of another cluster, is refused.
///
/// Errors: the file is there and cannot be read or understood. That is not the same as none: an old image would pass.
async fn known(ring: &Ring, settings: &Settings) -> Result<Known, MasterError> {
    let path = settings.data_path.join(SEEN);
    let unclear = |why: String| {
        MasterError::Recovery(format!(
            "{}, which tells how far the metadata came, {why}: an image that is too old could not be noticed. If this \
             folder holds the newest metadata that there are, remove that file and start again",
            path.display()
        ))
    };
    let known = match ring.read_file(&path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Known::default(),
        Err(error) => return Err(unclear(format!("cannot be read ({error})"))),
        Ok(bytes) => {
            let (meta_id, version_seen) = read_seen(&bytes).ok_or_else(|| unclear("is damaged".to_owned()))?;
            Known { meta_id: Some(meta_id), version_seen }
        }
    };
    Ok(match settings.accept_metaid {
        Some(accepted) if known.meta_id != Some(accepted) => Known { meta_id: Some(accepted), version_seen: 0 },
        _ => known,
    })
}

async fn load_image(ring: &Ring, path: &Path, policy: Policy) -> Result<Namespace, String> {
    let file = ring.open(path, OpenHow::read()).await.map_err(|error| error.to_string())?;
    let size = file.stat().await.map_err(|error| error.to_string())?.size;
    let (first, _) = first_bytes(ring, path).await.map_err(|error| error.to_string())?;
    let Range { start: mut offset, end } = image_bytes(&first, size);
    let mut loader = Loader::new(end.saturating_sub(offset));
    let mut buffer = vec![0; PIECE_BYTES];
    while offset < end {
        let wanted = usize::try_from(end - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let (read, bytes) = file.read_at(buffer, offset).await;
        buffer = bytes;
        let count = read.map_err(|error| error.to_string())?.min(wanted);
        if count == 0 {
            break;
        }
        loader.push(&buffer[..count]).map_err(|error| error.to_string())?;
        offset += count as u64;
    }
    loader.finish(policy).map_err(|error| error.to_string())
}

/// Grants of chunks whose end the replayed lines do not show.
#[derive(Default)]
struct OpenWrites {
    unfinished: BTreeSet<ChunkId>,
    newborn: BTreeMap<ChunkId, Option<ChunkId>>,
}

/// Applies the lines of a file that the metadata does not have yet. Returns how many.
async fn replay(
    ring: &Ring,
    folder: &Path,
    name: &str,
    at: &Range<u64>,
    namespace: &mut Namespace,
    open: &mut OpenWrites,
) -> Result<u64, MasterError> {
    let lines = run(ring, folder, name, at).await?;
    let mut applied = 0;
    let refuse = |text: String| MasterError::Recovery(format!("{}: {text}", folder.join(name).display()));
    for (_, line) in journal::lines(&lines) {
        let line = line.map_err(|error| refuse(error.to_string()))?;
        if journal::line_version(line).is_some_and(|version| version < namespace.version()) {
            continue;
        }
        let entry = journal::parse(line).map_err(|error| refuse(error.to_string()))?;
        let before = match entry.change {
            Change::Write { inode, index, .. } => namespace.chunk_in_slot(inode, index),
            _ => None,
        };
        namespace.replay(&entry).map_err(|error| refuse(error.to_string()))?;
        applied += 1;
        match entry.change {
            Change::Write { raise_version, .. } => {
                let Some(chunk) = entry.outcome.values().first().map(|chunk| ChunkId(*chunk)) else { continue };
                if before != Some(chunk) && raise_version != raise::BEGUN || before.is_none() {
                    open.newborn.insert(chunk, before);
                }
                if raise_version != raise::BEGUN {
                    open.unfinished.insert(chunk);
                }
            }
            Change::Unlock { chunk } | Change::Rollback { chunk, .. } => {
                open.unfinished.remove(&chunk);
                open.newborn.remove(&chunk);
            }
            Change::SetVersion { chunk, .. } | Change::Raise { chunk, .. } => drop(open.unfinished.remove(&chunk)),
            _ => {}
        }
    }
    Ok(applied)
}
