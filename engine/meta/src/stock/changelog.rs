//! What a MooseFS master wrote behind its last image: lines as ours, without checksums. Spec 51, 1 to 6.
//!
//! Names, order and spelling of ours are MooseFS's, so a line of 3.0.117 is one of our changes; what an older or newer
//! release wrote in another form is refused by its name, never half applied. What a change gave is compared with what
//! it gives here.

use std::fmt;

use crate::apply::{SMODE_ADMIN, apply};
use crate::change::Change;
use crate::journal::{Entry, Outcome, Part, SurveyEnd, line_version, parse_plain};
use crate::namespace::{Namespace, ReplayError};

/// Why the lines of a MooseFS master could not be replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangelogError {
    /// A line that is none of 3.0.117's, or an operation that is not known in this form.
    Unknown { version: u64, operation: String },
    /// It does not fit the metadata.
    Replay(ReplayError),
}

impl fmt::Display for ChangelogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangelogError::Unknown { version, operation } => {
                write!(f, "change {version} ({operation}) is not supported")?
            }
            ChangelogError::Replay(error) => write!(f, "{error}")?,
        }
        f.write_str(
            ". Have MooseFS replay its own change logs: start mfsmaster -a once and stop it in order (mfsmaster stop), \
             which leaves a metadata.mfs that needs none",
        )
    }
}

impl std::error::Error for ChangelogError {}

/// Runs of lines with consecutive versions in a change log, as `journal::parts`: by their versions alone, since these
/// lines have no checksums. A last line without newline is torn.
pub fn parts(bytes: &[u8]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut run = Part { bytes: 0..0, versions: None, end: SurveyEnd::Clean };
    let mut offset = 0;
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let end = offset + line.len();
        match line.strip_suffix(b"\n").map(line_version) {
            Some(Some(version)) => match run.versions {
                Some((first, last)) if last.checked_add(1) == Some(version) => {
                    run = Part { bytes: run.bytes.start..end, versions: Some((first, version)), ..run };
                }
                _ => {
                    if let Some((_, last)) = run.versions {
                        run.end = SurveyEnd::Gap { expected: last.saturating_add(1), found: version };
                        parts.push(run);
                    }
                    run = Part { bytes: offset..end, versions: Some((version, version)), end: SurveyEnd::Clean };
                }
            },
            _ if end == bytes.len() => run.end = SurveyEnd::Torn,
            // Something that is no line: what is behind it may be needed, what is before it goes on.
            _ => {}
        }
        offset = end;
    }
    parts.push(run);
    parts
}

/// Applies the lines that the metadata does not have yet. Returns how many. Errors leave the namespace half way: it is
/// to be thrown away.
pub fn replay(namespace: &mut Namespace, bytes: &[u8]) -> Result<u64, ChangelogError> {
    let mut applied = 0;
    // A last line without its end was torn while it was written.
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    for line in bytes[..whole].split(|byte| *byte == b'\n') {
        let Some(version) = line_version(line).filter(|version| *version >= namespace.version()) else { continue };
        let expected = namespace.version();
        if version != expected {
            return Err(ChangelogError::Replay(ReplayError::Gap { expected, found: version }));
        }
        if is_renumeration(line) {
            namespace.skip_version();
            applied += 1;
            continue;
        }
        let mut entry = parse_plain(line).ok_or_else(|| unknown(version, line))?;
        prepare(&mut entry);
        if is_foreign(&entry) {
            return Err(unknown(version, line));
        }
        let operation = entry.change.name();
        let computed = apply(&mut namespace.state, &entry.change, entry.timestamp)
            .map_err(|status| ChangelogError::Replay(ReplayError::Refused { version, operation, status }))?;
        if !agree(&entry, &computed) {
            let results = Box::new(crate::namespace::Results { written: entry.outcome, computed });
            return Err(ChangelogError::Replay(ReplayError::Mismatch { version, operation, results }));
        }
        namespace.skip_version();
        applied += 1;
    }
    Ok(applied)
}

fn unknown(version: u64, line: &[u8]) -> ChangelogError {
    let operation = line.split(|byte| *byte == b'|').nth(1).unwrap_or(line);
    let operation = operation.split(|byte| *byte == b'(').next().unwrap_or(operation);
    let operation = operation[..operation.len().min(40)].escape_ascii().to_string();
    ChangelogError::Unknown { version, operation }
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
