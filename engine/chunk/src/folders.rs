//! `mfshdd.cfg`: which folders hold chunks, and how much of each may be used. Pure. Spec 21, 8.1 and Spec 60, 10.

use std::path::PathBuf;

use wire::WireError;
use wire::types::Name;

/// One usable line of `mfshdd.cfg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FolderLine {
    /// Ends with `/`, as tools see it.
    pub path: String,
    /// `*`: the master copies its chunks elsewhere; no new chunks.
    pub marked_for_removal: bool,
    /// `<`: chunks are moved away to other folders of this server; no new chunks.
    pub drain: bool,
    /// `>`: chunks are moved here from other folders.
    pub fill: bool,
    /// `~`: a changed size of the volume is no error.
    pub any_size: bool,
    pub limit: SpaceLimit,
}

/// How much of a volume may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceLimit {
    /// Leave what HDD_LEAVE_SPACE_DEFAULT says.
    Default,
    /// Leave so many bytes free.
    Leave(u64),
    /// Use at most so many bytes; 0 or more than the volume has is as `Default`.
    AtMost(u64),
}

impl FolderLine {
    /// A folder without marks and limits.
    pub fn plain(path: &str) -> FolderLine {
        FolderLine {
            path: with_slash(path),
            marked_for_removal: false,
            drain: false,
            fill: false,
            any_size: false,
            limit: SpaceLimit::Default,
        }
    }

    pub fn folder(&self) -> PathBuf {
        PathBuf::from(&self.path)
    }

    /// The path as tools see it: longer than 255 bytes, it is shown as `(...)` and its last 250. Spec 20, 8.2.
    pub fn shown_path(&self) -> Name {
        let bytes = self.path.as_bytes();
        Name::new(bytes)
            .or_else(|_: WireError| Name::new(&[b"(...)", &bytes[bytes.len() - 250..]].concat()))
            .expect("5 and 250 bytes fit a name")
    }
}

/// The folders that the text names, in its order. A line that stands there twice counts once.
pub fn parse_folders(text: &str) -> Vec<FolderLine> {
    let mut folders = Vec::new();
    for folder in without_mark(text).lines().filter_map(parse_folder_line) {
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Lines, counted from 1, whose path goes on behind a `#`, with that path and the part of it before the `#`. It may be
/// meant as a comment, or be a name with a `#` in it: who can look at the disk decides.
pub fn possible_comments(text: &str) -> Vec<(usize, PathBuf, PathBuf)> {
    let with_comment = |(at, line): (usize, &str)| {
        let path = parse_folder_line(line)?.path;
        let end = path.find(" #").or_else(|| path.find("\t#"))?;
        let folder = PathBuf::from(path[..end].trim_end_matches([' ', '\t']));
        Some((at + 1, PathBuf::from(path), folder))
    };
    without_mark(text).lines().enumerate().filter_map(with_comment).collect()
}

/// The text without the mark that some editors put in front of UTF-8.
fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// None for comments and empty lines.
fn parse_folder_line(line: &str) -> Option<FolderLine> {
    let line = line.trim_matches([' ', '\t', '\r', '\n']);
    if line.is_empty() || line.starts_with('#') {
        return None;
    }
    let path_start = line.find(|mark| !matches!(mark, '*' | '<' | '>' | '~'))?;
    let (marks, rest) = line.split_at(path_start);
    let rest = rest.trim_start_matches([' ', '\t']);
    let (path, limit) = split_limit(rest);
    Some(FolderLine {
        path: with_slash(path),
        marked_for_removal: marks.contains('*'),
        drain: marks.contains('<'),
        fill: marks.contains('>'),
        any_size: marks.contains('~'),
        limit,
    })
}

/// The last word is a limit only if it parses as one; else it belongs to the path.
fn split_limit(rest: &str) -> (&str, SpaceLimit) {
    let whole = (rest, SpaceLimit::Default);
    let Some((path, word)) = rest.rsplit_once([' ', '\t']) else { return whole };
    let path = path.trim_end_matches([' ', '\t']);
    if path.is_empty() {
        return whole;
    }
    let limit = match word.strip_prefix('-') {
        Some(size) => parse_size(size).map(SpaceLimit::Leave),
        None => parse_size(word).map(SpaceLimit::AtMost),
    };
    limit.map_or(whole, |limit| (path, limit))
}

fn with_slash(path: &str) -> String {
    if path.ends_with('/') { path.to_owned() } else { format!("{path}/") }
}

/// Bytes: a number, optionally with a fraction, then optionally k, M, G, T, P, E (powers of 1000) or Ki … Ei (powers
/// of 1024), then optionally `B`. Spec 60, 2.
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(number_end);
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.matches('.').count() > 1 {
        return None;
    }
    let unit = unit.strip_suffix('B').unwrap_or(unit);
    let (letter, base) = match unit.strip_suffix('i') {
        Some(letter) => (letter, 1024f64),
        None => (unit, 1000f64),
    };
    let power = match (letter, base as u32) {
        ("", 1000) => 0,
        ("k" | "K", _) => 1,
        ("M", _) => 2,
        ("G", _) => 3,
        ("T", _) => 4,
        ("P", _) => 5,
        ("E", _) => 6,
        _ => return None,
    };
    let factor = base.powi(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor as u64);
    }
    let bytes = number.parse::<f64>().ok()? * factor;
    (bytes < u64::MAX as f64).then_some(bytes as u64)
}

/// `LABELS`: letters A to Z in any case, separated by `,` or `;`. Every letter counts, also in malformed text. Bit n is
/// label 'A' + n. Spec 40, 6.
pub fn parse_labels(text: &str) -> u32 {
    text.bytes()
        .map(|letter| letter.to_ascii_uppercase())
        .filter(u8::is_ascii_uppercase)
        .fold(0, |mask, letter| mask | 1 << (letter - b'A'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, expected: FolderLine) {
        assert_eq!(parse_folder_line(line), Some(expected), "{line}");
    }

    #[test]
    fn a_line_is_marks_a_path_and_perhaps_a_limit() {
        let plain = FolderLine::plain("/mnt/a");
        assert_eq!(plain.path, "/mnt/a/");
        check("/mnt/a", plain.clone());
        check("/mnt/a/ \r", plain.clone());
        check("*/mnt/a", FolderLine { marked_for_removal: true, ..plain.clone() });
        check("~>*/mnt/a", FolderLine { marked_for_removal: true, fill: true, any_size: true, ..plain.clone() });
        check("</mnt/a\t-10GiB", FolderLine { drain: true, limit: SpaceLimit::Leave(10 << 30), ..plain.clone() });
        check("/mnt/a 1.5T", FolderLine { limit: SpaceLimit::AtMost(1_500_000_000_000), ..plain.clone() });
        check("/mnt/a b", FolderLine::plain("/mnt/a b"));
        check("/mnt/a b 5MiB", FolderLine { limit: SpaceLimit::AtMost(5 << 20), ..FolderLine::plain("/mnt/a b") });
    }

    #[test]
    fn comments_and_empty_lines_are_no_folders() {
        assert_eq!(parse_folders("# /mnt/x\n\n   \n/mnt/a\n/mnt/b\n").len(), 2);
        assert_eq!(parse_folders("*\n"), Vec::new());
        assert_eq!(parse_folders("  # /mnt/x\n"), Vec::new());
    }

    #[test]
    fn what_an_editor_or_a_hasty_hand_leaves_behind_is_no_part_of_a_path() {
        let plain = [FolderLine::plain("/mnt/a")];
        for text in ["  /mnt/a", "\t/mnt/a\t\r\n", "\u{feff}/mnt/a\r\n", "/mnt/a\n/mnt/a/\n"] {
            assert_eq!(parse_folders(text), plain, "{text:?}");
        }
        assert_eq!(parse_folders("* /mnt/a\n"), [FolderLine { marked_for_removal: true, ..plain[0].clone() }]);
        assert_eq!(parse_folders("/mnt/a\n*/mnt/a\n").len(), 2, "which of them is meant, nobody can know");
        let comment = possible_comments("\n/mnt/a b\n/mnt/a \t# the old one\n#x\n");
        assert_eq!(comment, [(3, PathBuf::from("/mnt/a \t# the old one/"), PathBuf::from("/mnt/a"))]);
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("256MiB", Some(256 << 20)),
            ("256MB", Some(256_000_000)),
            ("10G", Some(10_000_000_000)),
            ("0.5Ki", Some(512)),
            ("7B", Some(7)),
            ("12Q", None),
            ("i", None),
            ("1i", None),
            ("", None),
            ("1.2.3", None),
            ("99999999999E", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn every_letter_of_the_labels_counts() {
        assert_eq!(parse_labels("A,c; Z"), 1 | 1 << 2 | 1 << 25);
        assert_eq!(parse_labels(""), 0);
    }

    #[test]
    fn a_long_path_is_shown_by_its_end() {
        let line = FolderLine::plain(&format!("/{}", "x".repeat(400)));
        let shown = line.shown_path();
        assert_eq!(shown.as_bytes().len(), 255);
        assert!(shown.as_bytes().starts_with(b"(...)"));
    }
}
