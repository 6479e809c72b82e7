//! The image: the whole state as a file of ours, and a digest of it. No IO: bytes go to, and come from, the caller.
//!
//! ```text
//! header   "MOORMETA", format u32, 0 u32, meta id u64, version u64, written at u32, CRC-32C u32 of these 36 bytes
//! frame    section 4 letters, payload bytes u32, CRC-32C u32 of section, length and payload; payload: whole records
//! ...      sections in the order of `Section`, each in as many frames as it needs, empty ones in none
//! frame    "END ": records u64, digest u64
//! ```
//!
//! All numbers are big-endian. Records are written in the order of the tables, and loading is one pass over the bytes
//! in which each is checked against what was read before. The digest is a sum over the records, so it does not depend
//! on where they lie in memory; it is equal for a live state, its image, and the state that replay gives.

mod load;
mod records;

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use wire::{Field, Input, MetaId, WireError};

use crate::index::hash;
use crate::namespace::{Namespace, Policy, Snapshot};
use crate::state::State;
pub use load::Loader;
use records::{put_before_nodes, put_behind_edges, put_edges, put_nodes, put_slots, put_state};

const MAGIC: &[u8; 8] = b"MOORMETA";
/// Layout of the records below. A change of it makes a new number; old ones stay readable. Format 2 has no changes of
/// chunks that were begun and not ended.
const FORMAT: u32 = 3;
/// The first layout: times of nodes are whole seconds in 32 bits.
const FORMAT_SECONDS: u32 = 1;
const HEADER_BYTES: usize = 40;
pub(crate) const FRAME_HEAD_BYTES: usize = 12;
/// A frame is closed when its payload has reached this size.
const FRAME_BYTES: usize = 1 << 20;
/// No record is longer: a session's text, a symlink, a value of an attribute.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Inodes that a thread takes at a time to count their digest.
const DIGEST_INODES: u32 = 1 << 16;
/// More of them wait for memory.
const DIGEST_THREADS: usize = 8;
const FRAME_BYTES_MAX: usize = FRAME_BYTES + RECORD_BYTES_MAX;

/// Kinds of records, in the order in which they stand in the file: what is named comes before what names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Counters: next edge, chunk, session.
    Counters,
    Classes,
    Chunks,
    Nodes,
    /// Chunks of files that have more than the first.
    Slots,
    /// Names; parent 0: trash and sustained files with their paths.
    Edges,
    /// Inode numbers that wait.
    Free,
    Xattrs,
    Acls,
    Quotas,
    Sessions,
    OpenFiles,
    /// BSD locks.
    Locks,
    /// POSIX locks.
    Ranges,
    Servers,
    /// Changes of chunks that were begun and not ended.
    Unsettled,
    End,
}

const SECTIONS: [(Section, &[u8; 4]); 17] = [
    (Section::Counters, b"CNTR"),
    (Section::Classes, b"SCLA"),
    (Section::Chunks, b"CHNK"),
    (Section::Nodes, b"NODE"),
    (Section::Slots, b"SLOT"),
    (Section::Edges, b"EDGE"),
    (Section::Free, b"FREE"),
    (Section::Xattrs, b"XATR"),
    (Section::Acls, b"PACL"),
    (Section::Quotas, b"QUOT"),
    (Section::Sessions, b"SESS"),
    (Section::OpenFiles, b"OPEN"),
    (Section::Locks, b"FLCK"),
    (Section::Ranges, b"PLCK"),
    (Section::Servers, b"CSDB"),
    (Section::Unsettled, b"CHUN"),
    (Section::End, b"END "),
];

impl Section {
    pub(crate) fn letters(self) -> &'static [u8; 4] {
        SECTIONS[self as usize].1
    }

    fn from_letters(letters: &[u8]) -> Option<Section> {
        SECTIONS.iter().find(|(_, own)| own.as_slice() == letters).map(|(section, _)| *section)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letters().escape_ascii())
    }
}

/// Identity of a state. Equal states have equal digests; it is no protection against forgery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest(pub u64);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016X}", self.0)
    }
}

/// What an image says about itself in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageHeader {
    pub meta_id: MetaId,
    /// Version of the metadata: the journal line of this version is the first one that is not in the image.
    pub version: u64,
    /// Unix seconds.
    pub written_at: u32,
}

/// Why bytes are no image, or not a sound one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The file does not begin as an image of ours does.
    NotAnImage,
    /// Written by a newer program.
    Format(u32),
    /// The header's checksum is wrong.
    Header,
    /// The bytes end inside this section. Offsets are those of the frame in the file.
    Truncated { section: Option<Section>, offset: u64 },
    /// The frame was altered after it was written.
    Checksum { section: Option<Section>, offset: u64 },
    /// The checksum holds but the records do not fit together.
    Malformed { section: Section, offset: u64, what: &'static str },
    /// Bytes follow after the end.
    Trailing { offset: u64 },
    /// All sections are sound, yet the whole is not what was written.
    Digest { written: Digest, computed: Digest },
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |f: &mut fmt::Formatter<'_>, section: &Option<Section>, offset: &u64| match section {
            Some(section) => write!(f, " (section {section}, offset {offset})"),
            None => write!(f, " (offset {offset})"),
        };
        match self {
            ImageError::NotAnImage => f.write_str("this is no Mooring metadata image"),
            ImageError::Format(format) => {
                write!(f, "the image has format {format}, this program knows up to {FORMAT}: use a newer one")
            }
            ImageError::Header => f.write_str("the header of the image is damaged"),
            ImageError::Truncated { section, offset } => {
                f.write_str("the image ends too early")?;
                at(f, section, offset)
            }
            ImageError::Checksum { section, offset } => {
                f.write_str("the image is damaged: wrong checksum")?;
                at(f, section, offset)
            }
            ImageError::Malformed { section, offset, what } => {
                write!(f, "the image contradicts itself: {what}")?;
                at(f, &Some(*section), offset)
            }
            ImageError::Trailing { offset } => write!(f, "bytes follow after the end of the image (offset {offset})"),
            ImageError::Digest { written, computed } => {
                write!(f, "the image's digest is {written}, its records give {computed}")
            }
        }
    }
}

impl std::error::Error for ImageError {}

impl Namespace {
    /// Digest of everything that lasts. Reads the whole state: seconds for a large one.
    pub fn digest(&self) -> Digest {
        digest(&self.state)
    }
}

impl Snapshot {
    pub fn digest(&self) -> Digest {
        digest(&self.state)
    }
}

/// Writes an image: calls `sink` with its bytes in order, about a megabyte at a time. The first error ends it.
pub fn write<E>(
    snapshot: &Snapshot,
    written_at: u32,
    sink: &mut dyn FnMut(&[u8]) -> Result<(), E>,
) -> Result<Digest, E> {
    let state = &snapshot.state;
    let header = ImageHeader { meta_id: MetaId(state.meta_id), version: state.version, written_at };
    sink(&header.encode())?;
    let mut digest = Digester::default();
    let mut frames = Frames { sink, section: Section::Counters, payload: Vec::new(), result: Ok(()) };
    put_state(state, FORMAT, &mut |section, record| {
        digest.add(section, record);
        frames.add(section, record);
    });
    let mut end = Vec::new();
    digest.records.put(&mut end);
    digest.sum.put(&mut end);
    frames.add(Section::End, &end);
    frames.close();
    frames.result.map(|()| Digest(digest.sum))
}

/// An image as one piece of memory: for tests and small states.
pub fn to_bytes(snapshot: &Snapshot, written_at: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut sink = |piece: &[u8]| -> Result<(), std::convert::Infallible> {
        bytes.extend_from_slice(piece);
        Ok(())
    };
    let Ok(_) = write(snapshot, written_at, &mut sink);
    bytes
}

/// Reads an image that is in memory as a whole.
pub fn load(bytes: &[u8], policy: Policy) -> Result<Namespace, ImageError> {
    let mut loader = Loader::new(bytes.len() as u64);
    loader.push(bytes)?;
    loader.finish(policy)
}

impl ImageHeader {
    /// Bytes to read for `decode`.
    pub const BYTES: usize = HEADER_BYTES;

    /// Errors: `NotAnImage`, `Format`, `Header`, `Truncated`.
    pub fn decode(bytes: &[u8]) -> Result<ImageHeader, ImageError> {
        ImageHeader::decode_with_format(bytes).map(|(header, _)| header)
    }

    /// Also the layout of the records.
    fn decode_with_format(bytes: &[u8]) -> Result<(ImageHeader, u32), ImageError> {
        if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
            return Err(ImageError::NotAnImage);
        }
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return Err(ImageError::Truncated { section: None, offset: 0 });
        };
        let mut input = Input::new(&bytes[MAGIC.len()..]);
        let read = |input: &mut Input<'_>| -> Result<(u32, ImageHeader, u32), WireError> {
            let format = u32::take(input)?;
            u32::take(input)?;
            let header = ImageHeader {
                meta_id: MetaId::take(input)?,
                version: u64::take(input)?,
                written_at: u32::take(input)?,
            };
            Ok((format, header, u32::take(input)?))
        };
        let (format, header, sum) = read(&mut input).map_err(|_| ImageError::Header)?;
        if sum != crc32c::crc32c(&bytes[..HEADER_BYTES - 4]) {
            return Err(ImageError::Header);
        }
        if !(FORMAT_SECONDS..=FORMAT).contains(&format) {
            return Err(ImageError::Format(format));
        }
        Ok((header, format))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        FORMAT.put(&mut bytes);
        0u32.put(&mut bytes);
        self.meta_id.put(&mut bytes);
        self.version.put(&mut bytes);
        self.written_at.put(&mut bytes);
        crc32c::crc32c(&bytes).put(&mut bytes);
        bytes
    }
}

/// The frame at the beginning of the bytes, if it is there whole: its section and payload, with its checksum and its
/// place behind `last` checked. `offset`: where the bytes lie in the file.
pub(crate) fn whole_frame(
    bytes: &[u8],
    last: Option<Section>,
    offset: u64,
) -> Result<Option<(Section, &[u8])>, ImageError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    if last == Some(Section::End) {
        return Err(ImageError::Trailing { offset });
    }
    let Some(head) = bytes.get(..FRAME_HEAD_BYTES) else { return Ok(None) };
    let section = Section::from_letters(&head[..4]);
    let damaged = ImageError::Checksum { section: section.or(last), offset };
    let word = |at: usize| head[at..at + 4].iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    let (length, sum) = (word(4) as usize, word(8));
    let Some(section) = section.filter(|_| length <= FRAME_BYTES_MAX) else { return Err(damaged) };
    let Some(payload) = bytes.get(FRAME_HEAD_BYTES..FRAME_HEAD_BYTES + length) else { return Ok(None) };
    if crc32c::crc32c_append(crc32c::crc32c(&head[..8]), payload) != sum {
        return Err(damaged);
    }
    if last.is_some_and(|last| last > section) {
        return Err(ImageError::Malformed { section, offset, what: "sections are out of order" });
    }
    Ok(Some((section, payload)))
}

fn digest(state: &State) -> Digest {
    digest_of_format(state, FORMAT)
}

/// The digest that an image of this format says of the state. Being a sum it is counted by as many threads as there are
/// processors, if the state is large.
fn digest_of_format(state: &State, format: u32) -> Digest {
    let end = state.inodes_end();
    let pieces = end.div_ceil(DIGEST_INODES);
    let threads =
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(DIGEST_THREADS).min(pieces as usize);
    let next = AtomicU32::new(0);
    let count = || {
        let mut digest = Digester::default();
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return digest.sum;
            }
            let inodes = piece * DIGEST_INODES..(piece + 1).saturating_mul(DIGEST_INODES).min(end);
            for kind in [put_nodes, put_slots, put_edges] {
                kind(state, format, inodes.clone(), &mut |section, record| digest.add(section, record));
            }
        }
    };
    let mut rest = Digester::default();
    let of_inodes = std::thread::scope(|scope| {
        let spawn = |_| std::thread::Builder::new().name("digest".to_owned()).spawn_scoped(scope, count).ok();
        // As many as the system gives.
        let helpers: Vec<_> = (1..threads).map_while(spawn).collect();
        let mut add = |section: Section, record: &[u8]| rest.add(section, record);
        put_before_nodes(state, &mut add);
        put_behind_edges(state, &mut add);
        let own = count();
        let theirs = helpers.into_iter().map(|helper| helper.join().expect("it only reads and adds"));
        theirs.fold(own, u64::wrapping_add)
    });
    Digest(rest.sum.wrapping_add(of_inodes))
}

#[derive(Default)]
struct Digester {
    sum: u64,
    records: u64,
    /// Numbers that wait are a queue: their order counts.
    waiting: u64,
}

impl Digester {
    fn add(&mut self, section: Section, record: &[u8]) {
        let mut seed = section as u64;
        if section == Section::Free {
            self.waiting += 1;
            seed |= self.waiting << 8;
        }
        self.sum = self.sum.wrapping_add(hash(seed, record));
        self.records += 1;
    }
}

struct Frames<'a, E> {
    sink: &'a mut dyn FnMut(&[u8]) -> Result<(), E>,
    section: Section,
    payload: Vec<u8>,
    result: Result<(), E>,
}

impl<E> Frames<'_, E> {
    fn add(&mut self, section: Section, record: &[u8]) {
        debug_assert!(record.len() <= RECORD_BYTES_MAX);
        if section != self.section || self.payload.len() >= FRAME_BYTES {
            self.close();
            self.section = section;
        }
        self.payload.extend_from_slice(record);
    }

    fn close(&mut self) {
        if self.payload.is_empty() || self.result.is_err() {
            return;
        }
        let mut head = self.section.letters().to_vec();
        (self.payload.len() as u32).put(&mut head);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head), &self.payload);
        sum.put(&mut head);
        self.result = (self.sink)(&head).and_then(|()| (self.sink)(&self.payload));
        self.payload.clear();
    }
}
