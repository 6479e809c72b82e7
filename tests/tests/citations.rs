//! Every section of the specification that the code cites exists: `Spec 20, 3.1` is section 3.1 of docs/spec/20-*.md.
//!
//! Alone: `cargo test -p mooring-tests --test citations`. It lists each citation that leads nowhere, with its place.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[test]
fn every_cited_section_of_the_specification_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let parts = parts_of_the_specification(&root.join("docs/spec"));
    assert!(parts.len() >= 15, "docs/spec is not where it was");
    let mut cited = 0;
    let mut broken = Vec::new();
    for path in sources(root) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for citation in citations(line) {
                cited += 1;
                if !exists(&parts, &citation) {
                    let place = path.strip_prefix(root).unwrap().display();
                    broken.push(format!("{place}:{}: Spec {}, {}", number + 1, citation.part, citation.section));
                }
            }
        }
    }
    println!("{cited} citations in Rust sources");
    assert!(broken.is_empty(), "{} citations lead nowhere:\n{}", broken.len(), broken.join("\n"));
}

#[derive(Debug, PartialEq, Eq)]
struct Citation {
    part: u32,
    /// Empty when the whole part is meant.
    section: String,
}

/// `Spec 20, 3.1 and 4; Spec 21` is three citations: 20 section 3.1, 20 section 4, all of 21.
fn citations(line: &str) -> Vec<Citation> {
    let mut found = Vec::new();
    for (start, _) in line.match_indices("Spec ") {
        let rest = &line[start + "Spec ".len()..];
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        if digits != 2 {
            continue; // `Spec NN` in an explanation, or a word that begins so
        }
        let part = rest[..digits].parse().unwrap();
        let mut rest = &rest[digits..];
        let mut sections = Vec::new();
        while let Some(next) =
            rest.strip_prefix(", ").or_else(|| rest.strip_prefix(" and ").filter(|_| !sections.is_empty()))
        {
            let length = section_length(next);
            if length == 0 {
                break;
            }
            sections.push(next[..length].to_owned());
            rest = &next[length..];
        }
        if sections.is_empty() {
            sections.push(String::new());
        }
        found.extend(sections.into_iter().map(|section| Citation { part, section }));
    }
    found
}

/// How many bytes at the start of `text` are a section's number: `3`, `3.1`, `32.5`, or one capital letter.
fn section_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let ends = |at: usize| !bytes.get(at).is_some_and(|byte| byte.is_ascii_alphanumeric());
    if bytes.first().is_some_and(u8::is_ascii_uppercase) && ends(1) {
        return 1;
    }
    let mut length = 0;
    loop {
        let digits = bytes[length..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits == 0 {
            return length.saturating_sub(1); // the dot was the end of a sentence
        }
        length += digits;
        if bytes.get(length) != Some(&b'.') {
            return if ends(length) { length } else { 0 };
        }
        length += 1;
    }
}

fn exists(parts: &BTreeMap<u32, BTreeSet<String>>, citation: &Citation) -> bool {
    parts
        .get(&citation.part)
        .is_some_and(|sections| citation.section.is_empty() || sections.contains(&citation.section))
}

/// The numbers of all headings, by part. Parts 31 and 32 number theirs `31.4`: that is also plain `4`.
fn parts_of_the_specification(folder: &Path) -> BTreeMap<u32, BTreeSet<String>> {
    let mut parts = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let Some(part) = name.get(..2).and_then(|digits| digits.parse::<u32>().ok()) else { continue };
        let text = std::fs::read_to_string(&path).unwrap();
        let headings = text.lines().filter(|line| line.starts_with('#'));
        let sections: BTreeSet<String> = headings
            .map(|line| line.trim_start_matches('#').trim_start())
            .map(|title| title[..section_length(title)].to_owned())
            .filter(|section| !section.is_empty())
            .flat_map(|section| {
                let short = section.strip_prefix(&format!("{part}.")).map(str::to_owned);
                [Some(section), short].into_iter().flatten()
            })
            .collect();
        parts.insert(part, sections);
    }
    parts
}

/// All Rust files of the repository, without what was built.
fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') {
                    waiting.push(entry.path());
                }
            } else if name.ends_with(".rs") && entry.path() != Path::new(root).join("tests/tests/citations.rs") {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_citation_is_read_as_it_is_meant() {
    let check = |line: &str, expected: &[(u32, &str)]| {
        let found: Vec<(u32, String)> = citations(line).into_iter().map(|c| (c.part, c.section)).collect();
        let expected: Vec<(u32, String)> =
            expected.iter().map(|(part, section)| (*part, section.to_string())).collect();
        assert_eq!(found, expected, "{line}");
    };
    check("/// Errors: none. Spec 20, 3.1.", &[(20, "3.1")]);
    check("Spec 20, 3.1 and 4; Spec 21", &[(20, "3.1"), (20, "4"), (21, "")]);
    check("Spec 30, 3, 5 and 6", &[(30, "3"), (30, "5"), (30, "6")]);
    check("Spec 10, 7 uses these numbers in several places", &[(10, "7")]);
    check("Spec 42, A. The rest", &[(42, "A")]);
    check("Spec 31 and 32", &[(31, "")]);
    check("Spec 10: times are 32-bit seconds", &[(10, "")]);
    check("Specification 10, 3", &[]);
    check("Spec NN, x.y", &[]);
}
