//! What a MooseFS master wrote behind its last image: lines as ours, without checksums. Spec 51, 1 to 6.
//!
//! Names, order and spelling of ours are MooseFS's, so a line of 3.0.117 is one of our changes; what an older or newer
//! release wrote in another form is refused by its name, never half applied. What a change gave is compared with what
//! it gives here.

use std::fmt;

use wire::{Inode, Version};

use crate::apply::{SMODE_ADMIN, apply};
use crate::change::{Change, number};
use crate::journal::{Entry, JournalError, Outcome, Part, SurveyEnd, TORN_BYTES_MAX, line_version, parse_plain};
use crate::namespace::{Namespace, ReplayError};

/// Why the lines of a MooseFS master could not be replayed. `line`: its place in the file, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangelogError {
    /// A line that is none of 3.0.117's, or an operation that is not known in this form.
    Unknown { line: u64, version: u64, operation: String },
    /// It does not fit the metadata.
    Replay { line: u64, error: ReplayError },
}

impl fmt::Display for ChangelogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangelogError::Unknown { line, version, operation } => {
                write!(f, "line {line}: change {version} ({operation}) is not supported")?
            }
            ChangelogError::Replay { line, error } => write!(f, "line {line}: {error}")?,
        }
        f.write_str(
            ". Have MooseFS replay its own change logs: start mfsmaster -a once and stop it in order (mfsmaster stop), \
             which leaves a metadata.mfs that needs none",
        )
    }
}

impl std::error::Error for ChangelogError {}

/// Runs of lines with consecutive versions in a change log, as `journal::parts`: these lines have no checksums, so their
/// shape must do. One line behind the last whole one is torn; more than a line there, and what is no line and has whole
/// lines behind it, is damage.
pub fn parts(bytes: &[u8]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut run = Part { bytes: 0..0, versions: None, end: SurveyEnd::Clean };
    let mut broken = false;
    let mut offset = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let end = offset + line.len();
        let version = line.strip_suffix(b"\n").and_then(whole_line_version);
        match (version, run.versions) {
            (None, _) => broken = true,
            (Some(version), Some((first, last))) if !broken && last + 1 == version => {
                run = Part { bytes: run.bytes.start..end, versions: Some((first, version)), ..run };
            }
            (Some(version), versions) => {
                if let Some((_, last)) = versions {
                    run.end = match broken {
                        true => SurveyEnd::Damaged(JournalError::NoLine),
                        false => SurveyEnd::Gap { expected: last + 1, found: version },
                    };
                    parts.push(run);
                }
                broken = false;
                run = Part { bytes: offset..end, versions: Some((version, version)), end: SurveyEnd::Clean };
            }
        }
        offset = end;
    }
    if broken {
        let behind = &bytes[run.bytes.end..];
        let lines = behind.iter().filter(|byte| **byte == b'\n').count();
        run.end = match lines > 1 || behind.len() > TORN_BYTES_MAX {
            true => SurveyEnd::Damaged(JournalError::NoLine),
            false => SurveyEnd::Torn,
        };
    }
    parts.push(run);
    parts
}

/// The version of a line that has the shape of one: `version: time|NAME(...)`, and results. None: torn or damaged.
fn whole_line_version(line: &[u8]) -> Option<u64> {
    // The last of all numbers has none that follows.
    let version = line_version(line).filter(|version| *version < u64::MAX)?;
    let behind = line.iter().position(|byte| *byte == b':').map(|colon| &line[colon + 1..])?;
    let rest = behind.strip_prefix(b" ")?;
    let time = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = rest[time..].strip_prefix(b"|").filter(|_| time != 0)?;
    let name = rest.iter().take_while(|byte| byte.is_ascii_uppercase() || **byte == b'_').count();
    let rest = rest[name..].strip_prefix(b"(").filter(|_| name != 0)?;
    let close = rest.iter().rposition(|byte| *byte == b')')?;
    let results = &rest[close + 1..];
    let is_whole = results.is_empty()
        || results.len() > 1
            && results[0] == b':'
            && results[1..].iter().all(|byte| matches!(byte, b'0'..=b'9' | b','));
    (is_whole && line.is_ascii() && !line.contains(&0)).then_some(version)
}

/// Applies the lines that the metadata does not have yet. Returns how many. `bytes`: a run of `parts`; `lines_before` it
/// stand in the file. Errors leave the namespace half way: it is to be thrown away.
pub fn replay(namespace: &mut Namespace, bytes: &[u8], lines_before: u64) -> Result<u64, ChangelogError> {
    let mut applied = 0;
    // A last line without its end was torn while it was written.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    for (at, text) in (lines_before + 1..).zip(bytes[..whole].split(|byte| *byte == b'\n')) {
        let Some(version) = line_version(text).filter(|version| *version >= namespace.version()) else { continue };
        let expected = namespace.version();
        let refused = |error: ReplayError| ChangelogError::Replay { line: at, error };
        if version != expected {
            return Err(refused(ReplayError::Gap { expected, found: version }));
        }
        if is_renumeration(text) {
            namespace.skip_version();
            applied += 1;
            continue;
        }
        let mut entry = parse(text).ok_or_else(|| unknown(at, version, text))?;
        prepare(&mut entry);
        if is_foreign(&entry) {
            return Err(unknown(at, version, text));
        }
        let operation = entry.change.name();
        let computed = apply(&mut namespace.state, &entry.change, entry.timestamp)
            .map_err(|status| refused(ReplayError::Refused { version, operation, status }))?;
        if !agree(&entry, &computed) {
            let results = Box::new(crate::namespace::Results { written: entry.outcome, computed });
            return Err(refused(ReplayError::Mismatch { version, operation, results }));
        }
        namespace.skip_version();
        applied += 1;
    }
    Ok(applied)
}

/// A line as one of our changes. In one of them the result is an argument with us.
fn parse(line: &[u8]) -> Option<Entry<'_>> {
    parse_plain(line).or_else(|| repair(line))
}

/// `REPAIR(inode,index):version`.
fn repair(line: &[u8]) -> Option<Entry<'static>> {
    let mut words = line.splitn(2, |byte| *byte == b'|');
    let (head, text) = (words.next()?, words.next()?.strip_prefix(b"REPAIR(")?);
    let timestamp = number(&head[head.iter().position(|byte| *byte == b' ')? + 1..])?;
    let close = text.iter().position(|byte| *byte == b')')?;
    let (inode, index) = text[..close].split_at(text[..close].iter().position(|byte| *byte == b',')?);
    let word = |text: &[u8]| u32::try_from(number(text)?).ok();
    let chunk_version = Version(word(text[close..].strip_prefix(b"):")?)?);
    let change = Change::Repair { inode: Inode(word(inode)?), index: word(&index[1..])?, version: chunk_version };
    let timestamp = u32::try_from(timestamp).ok()?;
    Some(Entry { version: line_version(line)?, timestamp: timestamp.into(), change, outcome: Outcome::NONE })
}

fn unknown(line: u64, version: u64, text: &[u8]) -> ChangelogError {
    let operation = text.split(|byte| *byte == b'|').nth(1).unwrap_or(text);
    let operation = operation.split(|byte| *byte == b'(').next().unwrap_or(operation);
    let operation = operation[..operation.len().min(40)].escape_ascii().to_string();
    ChangelogError::Unknown { line, version, operation }
}

/// MooseFS replays this as an admin's, and writes nothing else down. Spec 51, 10.
fn prepare(entry: &mut Entry<'_>) {
    if let Change::SetClass { smode, .. } = &mut entry.change {
        *smode |= SMODE_ADMIN;
    }
}

/// New ids for the entries of directories, which get theirs when the image is loaded. Spec 50, 4.6.
fn is_renumeration(line: &[u8]) -> bool {
    line.split(|byte| *byte == b'|').nth(1).is_some_and(|text| text.starts_with(b"RENUMERATEEDGES("))
}

/// Lines that only we write.
fn is_foreign(entry: &Entry<'_>) -> bool {
    matches!(entry.change, Change::SessionConnect { .. })
}

/// Results that MooseFS compares at replay, too. Spec 51, 2 and 6.5.
fn agree(entry: &Entry<'_>, computed: &Outcome) -> bool {
    let (written, computed) = (entry.outcome.values(), computed.values());
    let xor_at = match entry.change {
        Change::Snapshot { .. } if written.iter().all(|value| *value == 0) => return true,
        Change::Snapshot { .. } => Some(0),
        Change::EmptyTrash { .. } | Change::FreeInodes { .. } => Some(2),
        Change::EmptySustained { .. } => Some(1),
        _ => None,
    };
    written.len() == computed.len()
        && written
            .iter()
            .zip(computed)
            .enumerate()
            .all(|(at, (written, computed))| written == computed || Some(at) == xor_at && *written == 0)
}
