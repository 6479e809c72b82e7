//! The frame of a metadata file: header, sections, end. Spec 50, 2 and 5.
//!
//! Bytes come in pieces of any size; each whole record goes to the caller at once, so memory does not depend on the
//! file's size. A section's length is checked against its records, which end by themselves.

use wire::{Field, Input, WireError};

use super::records::{Layout, Record};
use super::{Broken, END, NEW, SECTION_HEAD_BYTES, SIGNATURE, Section, StockError};

/// The length of a section whose writer did not know it. Spec 50, 2.3.
const UNKNOWN_LENGTH: u64 = u64::MAX;
/// Sections of a file without section headers, in order. Spec 50, 5.2.
const UNSECTIONED: [Section; 4] = [Section::Nodes, Section::Edges, Section::Free, Section::Chunks];

/// What stands in front of the sections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) signature: [u8; 8],
    /// 0x20 for `MFSM 2.0`.
    pub(super) format: u8,
    pub(super) version: u64,
    /// 0: none yet, or older than 2.0.
    pub(super) meta_id: u64,
    /// Before 2.0: the largest inode number, the next session.
    pub(super) old: Option<(u32, u32)>,
}

impl Head {
    pub(super) const BYTES: usize = 24;

    /// None: more bytes are needed. Errors: `NotStock`, `New`, `Format`.
    pub(super) fn take(bytes: &[u8]) -> Result<Option<Head>, StockError> {
        let Some(signature) = bytes.first_chunk::<8>() else {
            return if SIGNATURE.starts_with(&bytes[..bytes.len().min(5)]) {
                Ok(None)
            } else {
                Err(StockError::NotStock)
            };
        };
        if signature == NEW {
            return Err(StockError::New);
        }
        let Some([major, b'.', minor]) = signature.strip_prefix(SIGNATURE) else { return Err(StockError::NotStock) };
        let format = (major.wrapping_sub(b'0') & 15) << 4 | (minor.wrapping_sub(b'0') & 15);
        if !major.is_ascii_digit() || !minor.is_ascii_digit() || !matches!(format, 0x15 | 0x17 | 0x20) {
            return Err(StockError::Format(*signature));
        }
        let read = |input: &mut Input<'_>| -> Result<Head, WireError> {
            let head = Head { signature: *signature, format, version: 0, meta_id: 0, old: None };
            if format >= 0x20 {
                return Ok(Head { version: u64::take(input)?, meta_id: u64::take(input)?, ..head });
            }
            let inodes = u32::take(input)?;
            Ok(Head { version: u64::take(input)?, old: Some((inodes, u32::take(input)?)), ..head })
        };
        Ok(read(&mut Input::new(&bytes[8..])).ok())
    }
}

/// What the parser found.
#[derive(Debug)]
pub(super) enum Piece<'a> {
    Head(Head),
    /// A section begins. `length`: of its body; None in files without section headers, and where it is not known.
    Section {
        section: Section,
        letters: [u8; 4],
        layout: u8,
        length: Option<u64>,
    },
    Record(Record<'a>),
    End,
}

pub(super) struct Parser {
    head: Option<Head>,
    /// Bytes that are no whole record yet.
    rest: Vec<u8>,
    /// Place of `rest` in the file.
    offset: u64,
    /// The section that is being read, and where it must end.
    section: Option<(Layout, Option<u64>)>,
    seen: Vec<Section>,
    ended: bool,
}

/// What one look at the bytes gave.
enum Step {
    /// So many bytes were used.
    Used(usize),
    NeedMore,
}

impl Parser {
    pub(super) fn new() -> Parser {
        Parser { head: None, rest: Vec::new(), offset: 0, section: None, seen: Vec::new(), ended: false }
    }

    /// The next bytes of the file; `each` gets what they hold. An error of `each` becomes one with a place.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    ) -> Result<(), StockError> {
        let mut joined = std::mem::take(&mut self.rest);
        joined.extend_from_slice(bytes);
        let mut used = 0;
        while let Step::Used(count) = self.step(&joined[used..], each)? {
            used += count;
            self.offset += count as u64;
        }
        joined.drain(..used);
        self.rest = joined;
        Ok(())
    }

    /// After all bytes. Errors: `Truncated`, `NotStock`, `New`.
    pub(super) fn finish(&self) -> Result<(), StockError> {
        if self.head.is_none() {
            Head::take(&self.rest)?;
        }
        if !self.ended || !self.rest.is_empty() {
            return Err(StockError::Truncated { section: self.section_now(), offset: self.offset });
        }
        Ok(())
    }

    fn section_now(&self) -> Option<Section> {
        self.section.as_ref().map(|(layout, _)| layout.section).or(self.seen.last().copied())
    }

    fn step(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    ) -> Result<Step, StockError> {
        let offset = self.offset;
        if self.ended {
            return if bytes.is_empty() { Ok(Step::NeedMore) } else { Err(StockError::Trailing { offset }) };
        }
        let Some(head) = self.head else {
            let Some(head) = Head::take(bytes)? else { return Ok(Step::NeedMore) };
            self.head = Some(head);
            give(each, Piece::Head(head), None, offset)?;
            return Ok(Step::Used(Head::BYTES));
        };
        if self.section.is_none() {
            return match head.format >= 0x16 {
                true => self.next_section(&head, bytes, each),
                false => self.next_unsectioned(&head, each),
            };
        }
        self.next_record(bytes, each)
    }

    fn next_unsectioned(
        &mut self,
        head: &Head,
        each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    ) -> Result<Step, StockError> {
        let Some(section) = UNSECTIONED.get(self.seen.len()).copied() else {
            self.ended = true;
            give(each, Piece::End, None, self.offset)?;
            return Ok(Step::Used(0));
        };
        self.seen.push(section);
        let piece = Piece::Section { section, letters: *section.letters(), layout: 0x10, length: None };
        give(each, piece, Some(section), self.offset)?;
        self.section = Some((Layout::new(section, 0x10, head.format), None));
        Ok(Step::Used(0))
    }

    fn next_section(
        &mut self,
        head: &Head,
        bytes: &[u8],
        each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    ) -> Result<Step, StockError> {
        let offset = self.offset;
        let Some(frame) = bytes.first_chunk::<SECTION_HEAD_BYTES>() else { return Ok(Step::NeedMore) };
        if frame == END {
            self.ended = true;
            give(each, Piece::End, None, offset)?;
            return Ok(Step::Used(SECTION_HEAD_BYTES));
        }
        let letters = [frame[0], frame[1], frame[2], frame[3]];
        let Some(section) = Section::from_letters(&letters) else {
            return Err(StockError::UnknownSection { letters, offset });
        };
        let malformed = |what: String| StockError::Malformed { section: Some(section), offset, what };
        let digits = [frame[5], frame[7]];
        if frame[4] != b' ' || frame[6] != b'.' || !digits.iter().all(|digit| (b'0'..=b'?').contains(digit)) {
            return Err(malformed("the section's header has no layout".to_owned()));
        }
        let layout = (digits[0] & 15) << 4 | digits[1] & 15;
        if layout > section.newest() {
            return Err(StockError::Newer { section, layout });
        }
        if layout < 0x10 {
            return Err(malformed(format!("layout 0x{layout:02X} never was")));
        }
        if self.seen.contains(&section) {
            return Err(malformed("the section occurs twice".to_owned()));
        }
        let length = frame[8..].iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let length = (length != UNKNOWN_LENGTH).then_some(length);
        let body = offset + SECTION_HEAD_BYTES as u64;
        let end = match length {
            Some(length) => Some(body.checked_add(length).ok_or_else(|| malformed("its length is absurd".to_owned()))?),
            None => None,
        };
        self.seen.push(section);
        give(each, Piece::Section { section, letters, layout, length }, Some(section), offset)?;
        self.section = Some((Layout::new(section, layout, head.format), end));
        Ok(Step::Used(SECTION_HEAD_BYTES))
    }

    fn next_record(
        &mut self,
        bytes: &[u8],
        each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    ) -> Result<Step, StockError> {
        let offset = self.offset;
        let Some((layout, end)) = &mut self.section else { return Ok(Step::NeedMore) };
        let section = layout.section;
        let malformed = |what: String| StockError::Malformed { section: Some(section), offset, what };
        // No record may reach beyond its section.
        let left = end.map_or(usize::MAX, |end| usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX));
        let bytes = &bytes[..bytes.len().min(left)];
        let mut input = Input::new(bytes);
        // What a record changes of the layout holds only if the record was there whole.
        let mut next = layout.clone();
        match next.take(&mut input, left as u64) {
            Ok(record) => {
                let used = bytes.len() - input.remaining();
                *layout = next;
                match record {
                    Some(record) => give(each, Piece::Record(record), Some(section), offset)?,
                    None => {
                        let at = offset + used as u64;
                        if end.is_some_and(|end| end != at) {
                            return Err(malformed("the section is longer than its records".to_owned()));
                        }
                        self.section = None;
                    }
                }
                Ok(Step::Used(used))
            }
            Err(Broken::Short) if bytes.len() == left => {
                Err(malformed("a record reaches beyond its section".to_owned()))
            }
            Err(Broken::Short) => Ok(Step::NeedMore),
            Err(Broken::Rule(what)) => Err(malformed(what)),
        }
    }
}

fn give(
    each: &mut dyn FnMut(Piece<'_>) -> Result<(), Broken>,
    piece: Piece<'_>,
    section: Option<Section>,
    offset: u64,
) -> Result<(), StockError> {
    each(piece).map_err(|broken| match broken {
        Broken::Short => StockError::Truncated { section, offset },
        Broken::Rule(what) => StockError::Malformed { section, offset, what },
    })
}
