//! MooseFS's metadata file, `metadata.mfs`, and its change logs: read, written, printed. Spec 50 and 51. No IO.
//!
//! A file goes through `parser`, which takes its frame apart and gives one `Record` after the other; `build` makes a
//! `Namespace` of them, `dump` prints them, `dirinfo` sums them up. `writer` makes a file that MooseFS 3.0.117 loads. The format has no
//! checksums, so everything is checked against what was read before, and what contradicts itself is refused with its
//! section and offset. `changelog` replays what a MooseFS master wrote behind its last image.

mod build;
pub mod changelog;
pub mod dirinfo;
mod dump;
#[cfg(test)]
mod layout_tests;
mod parser;
mod records;
mod sessions;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;

pub use build::{Imported, Loader, name, new_file_system};
pub use dump::Dump;
pub use writer::{to_bytes, write};

use crate::image::ImageHeader;
use wire::MetaId;

/// The bytes that every file begins with; the digits are the version of the frame. Spec 50, 2.1.
const SIGNATURE: &[u8; 5] = b"MFSM ";
/// A file that asks for a new file system. Spec 50, 2.1.
const NEW: &[u8; 8] = b"MFSM NEW";
/// Stands in the place of a section's header behind the last one. Spec 50, 2.2.
const END: &[u8; 16] = b"[MFS EOF MARKER]";
/// Bytes of a section's header. Spec 50, 2.3.
const SECTION_HEAD_BYTES: usize = 16;

/// What holds which records. Spec 50, 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    Sessions,
    Classes,
    Nodes,
    Edges,
    Free,
    Quotas,
    Xattrs,
    Acls,
    Open,
    Locks,
    Ranges,
    Servers,
    Chunks,
}

/// Section, its letters, the newest layout that 3.0.117 writes. In the order in which 3.0.117 writes them. Spec 50, 3.
const SECTIONS: [(Section, &[u8; 4], u8); 13] = [
    (Section::Sessions, b"SESS", 0x15),
    (Section::Classes, b"SCLA", 0x16),
    (Section::Nodes, b"NODE", 0x14),
    (Section::Edges, b"EDGE", 0x11),
    (Section::Free, b"FREE", 0x10),
    (Section::Quotas, b"QUOT", 0x11),
    (Section::Xattrs, b"XATR", 0x10),
    (Section::Acls, b"PACL", 0x11),
    (Section::Open, b"OPEN", 0x10),
    (Section::Locks, b"FLCK", 0x10),
    (Section::Ranges, b"PLCK", 0x10),
    (Section::Servers, b"CSDB", 0x13),
    (Section::Chunks, b"CHNK", 0x11),
];

impl Section {
    fn letters(self) -> &'static [u8; 4] {
        SECTIONS[self as usize].1
    }

    /// The newest layout that is known. Spec 50, 3.2.
    fn newest(self) -> u8 {
        SECTIONS[self as usize].2
    }

    fn from_letters(letters: &[u8]) -> Option<Section> {
        if letters == b"LABS" {
            return Some(Section::Classes);
        }
        SECTIONS.iter().find(|(_, own, _)| own.as_slice() == letters).map(|(section, ..)| *section)
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.letters().escape_ascii())
    }
}

/// Why bytes are no metadata file of MooseFS, or none that can be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StockError {
    /// The file does not begin as one of MooseFS's does.
    NotStock,
    /// `MFSM NEW`: it asks for a new file system and holds nothing.
    New,
    /// The digits of the signature are none that MooseFS ever wrote.
    Format([u8; 8]),
    /// What follows is no section that MooseFS 3.0 has.
    UnknownSection { letters: [u8; 4], offset: u64 },
    /// The section's layout is newer than that of MooseFS 3.0.117.
    Newer { section: Section, layout: u8 },
    /// The bytes end inside this section.
    Truncated { section: Option<Section>, offset: u64 },
    /// A record that contradicts the format, or what was read before.
    Malformed { section: Option<Section>, offset: u64, what: String },
    /// Bytes follow after the end.
    Trailing { offset: u64 },
}

impl fmt::Display for StockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |section: &Option<Section>, offset: &u64| match section {
            Some(section) => format!("section {section}, offset {offset}"),
            None => format!("offset {offset}"),
        };
        match self {
            StockError::NotStock => f.write_str("this is no metadata file of MooseFS: it does not begin with MFSM"),
            StockError::New => f.write_str("this file (MFSM NEW) asks for a new file system; there is nothing in it"),
            StockError::Format(signature) if signature[5] >= b'3' => write!(
                f,
                "`{}` is the metadata format of MooseFS 4, which cannot be taken over yet",
                signature.escape_ascii()
            ),
            StockError::Format(signature) => {
                write!(f, "`{}` is no metadata format of MooseFS 1.5 to 3.0", signature.escape_ascii())
            }
            StockError::UnknownSection { letters, offset } => write!(
                f,
                "section `{}` (offset {offset}) is none of MooseFS 3.0.117: the file is damaged, or of MooseFS 4, which \
                 cannot be taken over yet",
                letters.escape_ascii()
            ),
            StockError::Newer { section, layout } => write!(
                f,
                "section {section} has layout {}.{}, MooseFS 3.0.117 writes up to {}.{}: it is of MooseFS 4, which \
                 cannot be taken over yet",
                layout >> 4,
                layout & 15,
                section.newest() >> 4,
                section.newest() & 15
            ),
            StockError::Truncated { section, offset } => {
                write!(f, "the metadata file ends too early ({})", at(section, offset))
            }
            StockError::Malformed { section, offset, what } => {
                write!(f, "the metadata file is damaged: {what} ({})", at(section, offset))
            }
            StockError::Trailing { offset } => {
                write!(f, "bytes follow after the end of the metadata (offset {offset})")
            }
        }
    }
}

impl std::error::Error for StockError {}

/// What a file says about itself in front, as far as an image of ours says the same: `written_at` is 0. Only the first
/// 24 bytes are looked at. None: it is no metadata file of MooseFS that holds something. Spec 50, 2.2 and 5.1.
pub fn header(first: &[u8]) -> Option<ImageHeader> {
    let head = parser::Head::take(first).ok()??;
    // What a metalogger of ours keeps is wrapped as if it were a file of MooseFS's.
    let is_wrapped = first.get(parser::Head::BYTES..).is_some_and(|rest| rest.starts_with(b"MOOR"));
    (!is_wrapped).then_some(ImageHeader { meta_id: MetaId(head.meta_id), version: head.version, written_at: 0 })
}

/// Where the first section's header begins in a file of MooseFS 1.7 or later.
pub const FIRST_SECTION: u64 = parser::Head::BYTES as u64;

/// From one section's header at `offset` to the place of the next one. None: there is none, or the length is not known.
/// Errors: `Newer`: a file of MooseFS 4.
pub fn next_section(head: &[u8; SECTION_HEAD_BYTES], offset: u64) -> Result<Option<u64>, StockError> {
    if head == END {
        return Ok(None);
    }
    let [a, b, c, d, b' ', major, b'.', minor, length @ ..] = *head else { return Ok(None) };
    let letters = [a, b, c, d];
    if !letters.iter().all(u8::is_ascii_uppercase) || !major.is_ascii_digit() || !minor.is_ascii_digit() {
        return Ok(None); // damaged: that is said when it is loaded
    }
    // One that is not known may be damaged as well: the loader says so.
    let layout = (major - b'0') << 4 | (minor - b'0');
    if let Some(section) = Section::from_letters(&letters).filter(|section| layout > section.newest()) {
        return Err(StockError::Newer { section, layout });
    }
    let length = u64::from_be_bytes(length);
    Ok(offset.checked_add(SECTION_HEAD_BYTES as u64).and_then(|body| body.checked_add(length)))
}

/// Errors: `Format`, of a signature that is newer than those of MooseFS 3.0.
pub fn refuse_newer_format(first: &[u8]) -> Result<(), StockError> {
    match parser::Head::take(first) {
        Err(StockError::Format(signature)) if signature[5] >= b'3' => Err(StockError::Format(signature)),
        _ => Ok(()),
    }
}

/// Why a record is not taken.
#[derive(Debug)]
enum Broken {
    /// It is not there whole.
    Short,
    Rule(String),
}

impl From<wire::WireError> for Broken {
    fn from(_: wire::WireError) -> Broken {
        Broken::Short
    }
}

fn must(holds: bool, rule: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken::Rule(rule())) }
}
