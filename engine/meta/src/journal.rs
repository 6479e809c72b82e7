//! Lines of the journal: how a change is written down and read back. Framing as Spec 51, 1, and a checksum.
//!
//! ```text
//! <version>: <timestamp>|<OPERATION>(<argument>,...,#<crc>)[:<result>,...]\n
//! 16: 1795243403.028000115|WRITE(4,0,1,0,#6B0E5F7A):1
//! 17: 1795243403|IDLE(#00C0FFEE)
//! ```
//!
//! `version` is the version of the metadata before the change. `timestamp` is the time of the change in seconds, with
//! nine digits of their fraction behind a point unless it is a whole second: programs before that wrote whole seconds,
//! and their lines mean what they meant. `crc` is the CRC-32C, as eight upper-case hex digits,
//! of the line without newline and without the checksum itself (`,#6B0E5F7A` or `#00C0FFEE`). What the change
//! produced stands behind the colon; replay computes it again and compares.

use std::fmt;
use std::ops::Range;

use wire::Time;

use crate::change::{Change, hex, number, put_hex, put_number, put_time, time};

/// Results of a change, at most six numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    values: [u64; 6],
    count: u8,
}

impl Outcome {
    pub(crate) const NONE: Outcome = Outcome { values: [0; 6], count: 0 };

    pub(crate) fn of<const N: usize>(results: [u64; N]) -> Outcome {
        let mut outcome = Outcome { count: N as u8, ..Outcome::NONE };
        outcome.values[..N].copy_from_slice(&results);
        outcome
    }

    pub fn values(&self) -> &[u64] {
        &self.values[..usize::from(self.count)]
    }

    pub(crate) fn first(&self) -> u64 {
        self.values[0]
    }

    pub(crate) fn words<const N: usize>(&self) -> [u32; N] {
        std::array::from_fn(|at| self.values[at] as u32)
    }
}

/// One line, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Version of the metadata before the change.
    pub version: u64,
    /// When the change was made: the time that replay uses.
    pub timestamp: Time,
    pub change: Change<'a>,
    pub outcome: Outcome,
}

/// Why bytes are no line of a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalError {
    /// No newline: the writer was cut off. Only the end of a journal may be so.
    Torn,
    /// No checksum where one must be: damaged, or not written by us.
    NoChecksum,
    /// The line was altered after it was written.
    Checksum { written: u32, computed: u32 },
    /// The checksum holds, yet this is no line that we know: a newer program wrote it.
    Syntax,
    /// In a change log of MooseFS, whose lines have no checksums: what stands here has not the shape of one.
    NoLine,
}

impl fmt::Display for JournalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            JournalError::Torn => f.write_str("the line ends without a newline: it was torn while being written"),
            JournalError::NoChecksum => f.write_str("the line has no checksum: it is damaged or of another program"),
            JournalError::Checksum { written, computed } => {
                write!(f, "the line's checksum is {written:08X}, its bytes give {computed:08X}: it is damaged")
            }
            JournalError::NoLine => f.write_str("what follows is no line of a change log: it is torn or damaged"),
            JournalError::Syntax => {
                f.write_str("the line is sound but unknown: it was written by a newer version of Mooring")
            }
        }
    }
}

impl std::error::Error for JournalError {}

/// Appends the line of a change, newline included.
pub fn format(version: u64, timestamp: Time, change: &Change<'_>, outcome: &Outcome, out: &mut Vec<u8>) {
    let start = out.len();
    put_number(version, out);
    out.extend_from_slice(b": ");
    put_time(timestamp, out);
    out.push(b'|');
    out.extend_from_slice(change.name().as_bytes());
    out.push(b'(');
    let arguments = out.len();
    change.put_arguments(out);
    let has_arguments = out.len() > arguments;
    let before = crc32c::crc32c(&out[start..]);
    let split = out.len();
    out.push(b')');
    for (at, value) in outcome.values().iter().enumerate() {
        out.push(if at == 0 { b':' } else { b',' });
        put_number(*value, out);
    }
    let sum = crc32c::crc32c_append(before, &out[split..]);
    // Eight digits, `#` and perhaps a comma go in front of the closing parenthesis.
    let mut tail = [0u8; 160];
    let tail_bytes = out.len() - split;
    tail[..tail_bytes].copy_from_slice(&out[split..]);
    out.truncate(split);
    if has_arguments {
        out.push(b',');
    }
    out.push(b'#');
    put_hex(sum, out);
    out.extend_from_slice(&tail[..tail_bytes]);
    out.push(b'\n');
}

/// Reads one line without its newline. Errors: all but `Torn`.
pub fn parse(line: &[u8]) -> Result<Entry<'_>, JournalError> {
    let close = line.iter().position(|byte| *byte == b')').ok_or(JournalError::NoChecksum)?;
    let (before, behind) = line.split_at(close);
    let hash = before.len().checked_sub(9).ok_or(JournalError::NoChecksum)?;
    let (rest, sum) = before.split_at(hash);
    let written = sum.strip_prefix(b"#").and_then(hex).ok_or(JournalError::NoChecksum)?;
    let rest = rest.strip_suffix(b",").unwrap_or(rest);
    let computed = crc32c::crc32c_append(crc32c::crc32c(rest), behind);
    if written != computed {
        return Err(JournalError::Checksum { written, computed });
    }
    parse_sound(rest, &behind[1..]).ok_or(JournalError::Syntax)
}

/// Reads one line of a MooseFS master, which has no checksum, without its newline.
pub(crate) fn parse_plain(line: &[u8]) -> Option<Entry<'_>> {
    let close = line.iter().position(|byte| *byte == b')')?;
    parse_sound(&line[..close], &line[close + 1..])
}

fn parse_sound<'a>(before: &'a [u8], results: &[u8]) -> Option<Entry<'a>> {
    let (version, rest) = split_once(before, b':')?;
    let (timestamp, rest) = split_once(rest.strip_prefix(b" ")?, b'|')?;
    let (name, arguments) = split_once(rest, b'(')?;
    let change = Change::take(name, arguments)?;
    let mut outcome = Outcome::NONE;
    if let Some(results) = results.strip_prefix(b":") {
        for word in results.split(|byte| *byte == b',') {
            *outcome.values.get_mut(usize::from(outcome.count))? = number(word)?;
            outcome.count += 1;
        }
    } else if !results.is_empty() {
        return None;
    }
    if outcome.values().len() != change.results() {
        return None;
    }
    Some(Entry { version: number(version)?, timestamp: time(timestamp)?, change, outcome })
}

fn split_once(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let position = text.iter().position(|byte| *byte == at)?;
    Some((&text[..position], &text[position + 1..]))
}

/// The version that a line begins with.
pub fn line_version(line: &[u8]) -> Option<u64> {
    number(split_once(line, b':')?.0)
}

/// The lines of a journal from its bytes, each with the offset at which it begins. A last line without newline comes
/// as `Torn`.
pub fn lines(bytes: &[u8]) -> impl Iterator<Item = (usize, Result<&[u8], JournalError>)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[offset..];
        if rest.is_empty() {
            return None;
        }
        let start = offset;
        match rest.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                offset += end + 1;
                Some((start, Ok(&rest[..end])))
            }
            None => {
                offset = bytes.len();
                Some((start, Err(JournalError::Torn)))
            }
        }
    })
}

/// What a journal file holds, before anything of it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survey {
    /// Version of the first line and of the last sound one; None if there is no sound line.
    pub versions: Option<(u64, u64)>,
    /// Bytes from the start that are sound lines with consecutive versions.
    pub sound_bytes: usize,
    pub end: SurveyEnd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurveyEnd {
    /// All lines are sound.
    Clean,
    /// The last line has no newline, or is the last and damaged, or pages of the last write are missing: the writer
    /// was cut off there.
    Torn,
    /// A damaged line with more behind it.
    Damaged(JournalError),
    /// The line that follows has not the next version.
    Gap { expected: u64, found: u64 },
}

/// Most bytes that one write puts behind a journal. What a power cut tears lies within so many bytes.
pub const TORN_BYTES_MAX: usize = 64 << 10;

/// Looks through a journal file: every line's checksum and the order of versions.
///
/// Zeros at the end are no lines: a journal that is being written is kept longer than its lines, see the master. Zeros
/// within are pages that a power cut kept from the device while it took others of the same write. Nobody was told
/// that such a write is durable, so it is a torn end.
pub fn survey(bytes: &[u8]) -> Survey {
    let content = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let bytes = &bytes[..content];
    let mut survey = Survey { versions: None, sound_bytes: 0, end: SurveyEnd::Clean };
    for (offset, line) in lines(bytes) {
        let checked = line.and_then(|line| parse(line).map(|entry| (line.len(), entry.version)));
        let (length, version) = match checked {
            Ok(sound) => sound,
            Err(JournalError::Torn) => {
                survey.end = SurveyEnd::Torn;
                return survey;
            }
            Err(error) => {
                let rest = &bytes[offset..];
                let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
                let hole = rest[..end].iter().position(|byte| *byte == 0);
                let misses_pages = hole.is_some_and(|hole| rest.len() - hole <= TORN_BYTES_MAX);
                let torn = (end + 1 == rest.len() || misses_pages) && error != JournalError::Syntax;
                survey.end = if torn { SurveyEnd::Torn } else { SurveyEnd::Damaged(error) };
                return survey;
            }
        };
        if let Some((first, last)) = survey.versions {
            if version != last + 1 {
                survey.end = SurveyEnd::Gap { expected: last + 1, found: version };
                return survey;
            }
            survey.versions = Some((first, version));
        } else {
            survey.versions = Some((version, version));
        }
        survey.sound_bytes = offset + length + 1;
    }
    survey
}

/// A run of sound lines within a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where its lines lie in the file.
    pub bytes: Range<usize>,
    /// Version of the first line and of the last one; None only for a file without any sound line.
    pub versions: Option<(u64, u64)>,
    /// What ends it.
    pub end: SurveyEnd,
}

/// All runs of sound lines in a journal file, in the order in which they lie there; at least one. Behind a damaged line
/// or a gap there may be lines that are needed, if another file has what is missing.
pub fn parts(bytes: &[u8]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut start = 0;
    loop {
        let found = survey(&bytes[start..]);
        let end = start + found.sound_bytes;
        let next = match found.end {
            SurveyEnd::Clean | SurveyEnd::Torn => None,
            SurveyEnd::Gap { .. } => Some(end),
            SurveyEnd::Damaged(_) => {
                bytes[end..].iter().position(|byte| *byte == b'\n').map(|newline| end + newline + 1)
            }
        };
        if found.versions.is_some() || parts.is_empty() {
            parts.push(Part { bytes: start..end, versions: found.versions, end: found.end });
        }
        match next {
            Some(next) => start = next,
            None => return parts,
        }
    }
}

/// Lines that were made since the last time, for the file and for metaloggers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Version of the first line.
    pub first: u64,
    /// Version that the line after the last one will have: the metadata's version now.
    pub next: u64,
    /// Whole lines with their newlines: what goes to the file.
    pub bytes: Vec<u8>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Each line as metaloggers get it: its version, and the text from the timestamp on without newline. Spec 51, 4.
    pub fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let lines = self.bytes.split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1]);
        (self.first..).zip(lines).map(|(version, line)| {
            let (_, rest) = split_once(line, b' ').expect("we wrote it: `version: text`");
            (version, rest)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const NOW: Time = Time(1_795_243_403_028_000_115);

    fn line(version: u64, change: &Change<'_>, outcome: &Outcome) -> Vec<u8> {
        let mut out = Vec::new();
        format(version, NOW, change, outcome, &mut out);
        out
    }

    fn samples() -> Vec<(Change<'static>, Outcome)> {
        let mut random = Random::new(7);
        let mut samples = Vec::new();
        for name in Change::NAMES.iter().flat_map(|name| std::iter::repeat_n(*name, 20)) {
            let change = Change::sample(name, &mut || random.next()).expect("a name of the table");
            let mut outcome = Outcome { count: change.results() as u8, ..Outcome::NONE };
            for at in 0..change.results() {
                outcome.values[at] = random.next() >> (random.next() % 64);
            }
            samples.push((change, outcome));
        }
        samples
    }

    #[test]
    fn every_change_reads_back_as_it_was_written() {
        for (at, (change, outcome)) in samples().iter().enumerate() {
            let text = line(at as u64, change, outcome);
            let text = text.strip_suffix(b"\n").unwrap();
            assert!(!text.contains(&b'\n'));
            let entry = parse(text).unwrap_or_else(|e| panic!("{e}: {}", text.escape_ascii()));
            assert_eq!((entry.version, entry.timestamp), (at as u64, NOW));
            assert_eq!((&entry.change, &entry.outcome), (change, outcome));
        }
    }

    #[test]
    fn lines_are_spelled_as_the_specification_s_samples() {
        let check = |change: Change<'_>, outcome: Outcome, expected: &str| {
            let text = String::from_utf8(line(16, &change, &outcome)).unwrap();
            let hash = text.rfind('#').unwrap();
            let without_sum = format!("{}{}", text[..hash].trim_end_matches(','), &text[hash + 9..]);
            assert_eq!(without_sum, expected);
        };
        let write = Change::Write { inode: wire::Inode(4), index: 0, raise_version: 1, touch_times: 0 };
        check(write, Outcome::of([1]), "16: 1795243403.028000115|WRITE(4,0,1,0):1\n");
        check(Change::Idle {}, Outcome::NONE, "16: 1795243403.028000115|IDLE()\n");
        let class = Change::SetClass { inode: wire::Inode(4), uid: 0, source: 3, target: 3, smode: 1 };
        check(class, Outcome::of([1, 0, 0]), "16: 1795243403.028000115|SETSCLASS(4,0,3,3,1):1,0,0\n");
        let session = Change::SessionAdd {
            checksum: crate::change::Checksum(18_432_386_147_808_961_246),
            root: wire::Inode(1),
            flags: 8,
            umask: crate::change::Umask(0),
            root_uid: 0,
            root_gid: 0,
            map_all_uid: 999,
            map_all_gid: 999,
            goal_min: 1,
            goal_max: 9,
            trash_min: 0,
            trash_max: u32::MAX,
            disables: crate::change::Disables(0),
            peer: wire::Ip4(2_130_706_433),
            info: b"/mnt/x"[..].into(),
        };
        check(
            session,
            Outcome::of([1]),
            "16: 1795243403.028000115|SESADD(#18432386147808961246,1,8,0000,0,0,999,999,1,9,0,4294967295,0x00000000,2130706433,\
             /mnt/x):1\n",
        );
        let snapshot = Change::Snapshot {
            source: wire::Inode(2),
            parent: wire::Inode(1),
            name: b"d,2"[..].into(),
            smode: 0,
            flags: 72,
            uid: 0,
            gids: crate::change::GidList(vec![0, 7]),
            umask: 18,
        };
        check(
            snapshot,
            Outcome::of([15, 0, 0, 0, 0, 7]),
            "16: 1795243403.028000115|SNAPSHOT(2,1,d%2C2,0,72,0,[0,7],18):15,0,0,0,0,7\n",
        );
    }

    #[test]
    fn no_garbage_makes_the_parser_panic_and_none_passes_the_checksum() {
        let mut random = Random::new(3);
        for (change, outcome) in samples() {
            let mut text = line(9, &change, &outcome);
            text.pop();
            let sound = text.clone();
            let at = random.below(text.len() as u64) as usize;
            text[at] ^= 1 << random.below(8);
            assert!(parse(&text).is_err(), "{} as {}", sound.escape_ascii(), text.escape_ascii());
            for cut in 0..sound.len() {
                assert!(parse(&sound[..cut]).is_err());
            }
        }
        for _ in 0..20_000 {
            let garbage: Vec<u8> =
                (0..random.below(60)).map(|_| b"0123456789:|(),#% AWRITE\n"[random.below(25) as usize]).collect();
            assert!(parse(&garbage).is_err());
            let _ = survey(&garbage);
        }
    }

    #[test]
    fn a_journal_cut_at_any_byte_keeps_its_whole_lines_and_says_torn() {
        let mut bytes = Vec::new();
        let mut ends = vec![0];
        for (at, (change, outcome)) in samples().iter().step_by(20).enumerate() {
            format(at as u64 + 5, Time(77), change, outcome, &mut bytes);
            ends.push(bytes.len());
        }
        for cut in 0..=bytes.len() {
            let survey = survey(&bytes[..cut]);
            let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
            assert_eq!(survey.sound_bytes, ends[whole]);
            assert_eq!(survey.versions, (whole > 0).then(|| (5, 4 + whole as u64)));
            assert_eq!(survey.end, if ends[whole] == cut { SurveyEnd::Clean } else { SurveyEnd::Torn });
        }
    }

    #[test]
    fn zeros_behind_the_lines_are_nothing_and_pages_missing_from_the_last_write_are_a_torn_end() {
        let mut bytes = Vec::new();
        let mut ends = Vec::new();
        for version in 1..=300 {
            format(version, Time(9), &Change::Idle {}, &Outcome::NONE, &mut bytes);
            ends.push(bytes.len());
        }
        let whole = bytes.len();
        bytes.resize(1 << 20, 0);
        let padded = survey(&bytes);
        assert_eq!((padded.versions, padded.sound_bytes, padded.end), (Some((1, 300)), whole, SurveyEnd::Clean));

        let mut hole = bytes.clone();
        hole[4096..8192].fill(0);
        let torn = survey(&hole);
        let sound = ends.iter().rposition(|end| *end <= 4096).unwrap();
        assert_eq!((torn.sound_bytes, torn.end), (ends[sound], SurveyEnd::Torn));
        assert_eq!(survey(&[0; 4096]), Survey { versions: None, sound_bytes: 0, end: SurveyEnd::Clean });

        // So far from the end that no write reaches over it, a hole is damage: lines behind it were acknowledged.
        let mut long = Vec::new();
        for version in 1..=5000 {
            format(version, Time(9), &Change::Idle {}, &Outcome::NONE, &mut long);
        }
        long[4096..8192].fill(0);
        assert!(matches!(survey(&long).end, SurveyEnd::Damaged(_)));
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_no_torn_end_and_a_missing_one_is_a_gap() {
        let mut bytes = Vec::new();
        for version in 1..=3 {
            format(version, Time(9), &Change::Idle {}, &Outcome::NONE, &mut bytes);
        }
        let length = bytes.len() / 3;
        let gap = [&bytes[..length], &bytes[2 * length..]].concat();
        assert_eq!(survey(&gap).end, SurveyEnd::Gap { expected: 2, found: 3 });
        bytes[length + 4] ^= 1;
        let damaged = survey(&bytes);
        assert!(matches!(damaged.end, SurveyEnd::Damaged(JournalError::Checksum { .. })), "{damaged:?}");
        assert_eq!((damaged.versions, damaged.sound_bytes), (Some((1, 1)), length));
    }
}
