//! What lies in a data folder of a master or a metalogger: names, the heads of images, the ends of journal files.
//!
//! One place answers what several programs ask: is this a journal, an image, whose is it, what is its first line and its
//! last one. The master, metalogger, promote, import and the tools must not disagree about that. What to do with the
//! answers is theirs.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use meta::image::ImageHeader;
use ring::{File, OpenHow, Ring};
use wire::MetaId;

/// The image of a running master.
pub(crate) const BACK: &str = "metadata.mfs.back";
/// The image of a master that was stopped in order.
pub(crate) const CLEAN: &str = "metadata.mfs";
pub(crate) const TEMPORARY: &str = "metadata.mfs.back.tmp";
/// Remembers how far the metadata of this folder came, so that an older copy of them is noticed at the next start.
pub(crate) const SEEN: &str = ".metadata.seen";
/// A file of these 8 bytes asks for a new file system.
pub(crate) const NEW: &[u8] = b"MFSM NEW";
/// Mode of journal files and images.
pub(crate) const FILE_MODE: u32 = 0o640;

/// In front of an image that a metalogger keeps: signature, version, metaid, and a section's head. See `metalogger`.
pub(crate) const WRAPPED_HEAD_BYTES: u64 = 40;
pub(crate) const WRAPPED_TAIL: &[u8; 16] = b"[MFS EOF MARKER]";

/// So much of a journal file's beginning and end is read to see which lines it has.
const END_BYTES: usize = 256 << 10;
/// `1: 1|IDLE(#00C0FFEE)` and its end: no line is shorter.
const LINE_BYTES_MIN: u64 = 21;
/// A line is no longer. Spec 42, A.4.
pub(crate) const LINE_BYTES_MAX: usize = 200_100;
/// Holds the number of a file's first line.
const FRONT_BYTES: usize = 32;

// --- names

/// The master's journal file of this number; 0 is the one that is written.
pub(crate) fn journal_path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("changelog.{number}.mfs"))
}

/// A journal file of a master, or one that a metalogger keeps.
pub(crate) fn is_journal(name: &str) -> bool {
    ["changelog.", "changelog_ml.", "changelog_ml_back."].iter().any(|prefix| {
        let number = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".mfs"));
        number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// A journal file of a master; `name` is a journal file's.
pub(crate) fn is_own_journal(name: &str) -> bool {
    name.starts_with("changelog.")
}

/// A journal file that a metalogger keeps.
pub(crate) fn is_kept_journal(name: &str) -> bool {
    is_journal(name) && !is_own_journal(name)
}

/// Names that MooseFS takes for images: `metadata` and more. One of a package's is the sample of an empty one, the
/// temporary ones are of a store that was cut short.
pub(crate) fn is_image(name: &str) -> bool {
    let is_other = name == "metadata.crc" || name == "metadata.mfs.empty" || name.ends_with(".tmp");
    name.starts_with("metadata") && name.len() > "metadata".len() && !is_other
}

// --- the heads of images

/// The first bytes of a file, and its size.
pub(crate) async fn first_bytes(ring: &Ring, path: &Path) -> io::Result<(Vec<u8>, u64)> {
    let file = ring.open(path, OpenHow::read()).await?;
    let size = file.stat().await?.size;
    let (read, mut bytes) = file.read_at(vec![0; 256], 0).await;
    bytes.truncate(read?);
    Ok((bytes, size))
}

/// The header of an image of ours, wrapped as for a metalogger or not.
pub(crate) fn header(first: &[u8]) -> Option<ImageHeader> {
    let bytes = if is_wrapped(first) { &first[WRAPPED_HEAD_BYTES as usize..] } else { first };
    ImageHeader::decode(bytes).ok()
}

/// Whether an image is of a master of ours, whatever became of the rest of it.
pub(crate) fn is_ours(first: &[u8]) -> bool {
    first.starts_with(b"MOORMETA") || first.get(24..28) == Some(b"MOOR")
}

/// Whether an image of ours is wrapped as for a metalogger, and its own header follows.
pub(crate) fn is_wrapped(first: &[u8]) -> bool {
    first.starts_with(b"MFSM 2.0") && first.len() as u64 > WRAPPED_HEAD_BYTES && is_ours(first)
}

/// Where the image lies in a file of so many bytes, wrapped as for a metalogger or not.
pub(crate) fn image_bytes(first: &[u8], size: u64) -> Range<u64> {
    match is_wrapped(first) {
        true => WRAPPED_HEAD_BYTES..size.saturating_sub(WRAPPED_TAIL.len() as u64),
        false => 0..size,
    }
}

/// The version of an image that a MooseFS master wrote; 0 if its file is too old to tell. Spec 50, 2.
pub(crate) fn version_of_moosefs(first: &[u8]) -> Option<u64> {
    if !first.starts_with(b"MFSM ") || first == NEW || is_wrapped(first) {
        return None;
    }
    let version = first.get(8..16).and_then(|bytes| bytes.first_chunk()).map(|bytes| u64::from_be_bytes(*bytes));
    Some(version.filter(|_| first[5] >= b'2').unwrap_or(0))
}

// --- the ends of journal files

/// Versions of the first line of a journal file of ours and of the last one. None: it does not begin with a line of ours.
/// The last one is None if the file does not end with a line, or cannot have as many lines as there are versions from one
/// to the other.
pub(crate) async fn first_and_last(file: &File, size: u64) -> io::Result<Option<(u64, Option<u64>)>> {
    let version_of =
        |line: Option<&[u8]>| line.and_then(|line| meta::journal::parse(line).ok()).map(|entry| entry.version);
    let (read, mut bytes) = file.read_at(vec![0; END_BYTES], 0).await;
    bytes.truncate(read?);
    let Some(first) = version_of(bytes.split(|byte| *byte == b'\n').next()) else { return Ok(None) };
    let (read, mut bytes) = file.read_at(vec![0; END_BYTES], size.saturating_sub(END_BYTES as u64)).await;
    bytes.truncate(read?);
    let whole = bytes.strip_suffix(b"\n");
    let last = version_of(whole.and_then(|whole| whole.rsplit(|byte| *byte == b'\n').next()));
    let fits = |last: &u64| last.checked_sub(first).is_some_and(|more| more < size / LINE_BYTES_MIN);
    Ok(Some((first, last.filter(fits))))
}

/// The numbers of the first and the last line of a journal file of anybody's, whatever lies between. None: it has no
/// lines.
pub(crate) async fn ends(file: &File) -> io::Result<Option<(u64, u64)>> {
    let (read, mut front) = file.read_at(vec![0; FRONT_BYTES], 0).await;
    front.truncate(read?);
    let first = meta::journal::line_version(&front);
    let last = last_line(file).await?.as_deref().and_then(meta::journal::line_version);
    // Of a damaged file all may be needed.
    Ok(match (first, last) {
        (None, None) => None,
        (first, last) => Some((first.unwrap_or(0), last.unwrap_or(u64::MAX - 1))),
    })
}

/// The last whole line of a journal file, without newline.
pub(crate) async fn last_line(file: &File) -> io::Result<Option<Vec<u8>>> {
    let from = file.stat().await?.size.saturating_sub(LINE_BYTES_MAX as u64);
    let (read, mut bytes) = file.read_at(vec![0; LINE_BYTES_MAX], from).await;
    bytes.truncate(read?);
    let Some(end) = bytes.iter().rposition(|byte| *byte == b'\n') else { return Ok(None) };
    let begin = bytes[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    Ok(Some(bytes[begin..end].to_vec()))
}

// --- the note of how far the metadata came

/// What is to be remembered of metadata that have come so far.
pub(crate) fn seen(metaid: MetaId, version: u64) -> String {
    format!("{metaid} {version}\n")
}

/// What `seen` wrote. None: something else stands there.
pub(crate) fn read_seen(bytes: &[u8]) -> Option<(MetaId, u64)> {
    let text = String::from_utf8_lossy(bytes);
    let mut words = text.split_whitespace();
    let metaid = u64::from_str_radix(words.next()?, 16).ok()?;
    Some((MetaId(metaid), words.next()?.parse().ok()?))
}

/// A file that is not there needs no removal or rename.
pub(crate) fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
