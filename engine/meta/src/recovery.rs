//! What to load and replay when the master starts, decided from what lies in its folder. Pure: the caller reads.
//!
//! The newest sound image is loaded; then journal files are replayed that join it without a gap. Whatever would lose
//! or mix up changes is refused, with the way out named.

use std::fmt;
use std::ops::Range;

use wire::MetaId;

use crate::image::ImageHeader;
use crate::journal::{self, SurveyEnd};

/// One image file, as far as its header and checksums tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageFacts {
    pub name: String,
    /// None: it is no image, or damaged; `name` is then only mentioned.
    pub header: Option<ImageHeader>,
}

/// A run of sound lines in a journal file, as `journal::parts` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalFacts {
    pub name: String,
    /// Versions of its first and last sound line; None if there is none.
    pub versions: Option<(u64, u64)>,
    /// Where its lines lie in the file.
    pub bytes: Range<u64>,
    pub end: SurveyEnd,
}

/// What is known from elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Identity that this folder belongs to (from a marker file or from chunkservers), if one is known.
    pub meta_id: Option<MetaId>,
    /// The highest version that was ever acknowledged as far as anybody remembers; 0 = unknown.
    pub version_seen: u64,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The image to load.
    pub image: String,
    pub meta_id: MetaId,
    /// Version of the image.
    pub from: u64,
    /// Files to replay, each with the bytes of it that hold the lines; lines below `from`, and lines that another file
    /// gave already, are skipped.
    pub journals: Vec<(String, Range<u64>)>,
    /// Version that the metadata will have.
    pub to: u64,
    /// Things that were found and left out: to be logged.
    pub remarks: Vec<String>,
}

/// Why the master must not start on its own. The text names the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no image at all.
    Nothing,
    /// There are images, but no sound one.
    NoSoundImage { names: Vec<String> },
    /// Images, or image and cluster, are of different file systems.
    Foreign { image: String, found: MetaId, expected: MetaId },
    /// Lines between the image and a journal file are missing.
    Gap { have: u64, next: u64, file: String },
    /// A journal is damaged before its end, and lines that follow would be lost.
    Damaged { file: String, after: u64, lost_to: u64 },
    /// Two files have the same line with different contents.
    TwoHistories { version: u64, one: String, other: String },
    /// The result would be older than what the cluster has seen.
    Older { reaches: u64, seen: u64 },
}

impl Refusal {
    /// Whether lines are missing from this version on.
    fn is_at(&self, version: u64) -> bool {
        match self {
            Refusal::Gap { have, .. } => *have == version,
            Refusal::Damaged { after, .. } => *after == version,
            _ => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Nothing => f.write_str(
                "there is no metadata image. For a new file system put an 8-byte file `MFSM NEW` as metadata.mfs into \
                 the data folder, or start with --new; else copy metadata.mfs and changelog*.mfs back from a metalogger",
            ),
            Refusal::NoSoundImage { names } => write!(
                f,
                "no image is sound ({}). Copy metadata.mfs and changelog*.mfs from a metalogger or a backup",
                names.join(", ")
            ),
            Refusal::Foreign { image, found, expected } => write!(
                f,
                "{image} belongs to the file system {found}, this cluster is {expected}. Remove the image if it is \
                 here by mistake; start with --accept-metaid={found} if the cluster shall become that one"
            ),
            Refusal::Gap { have, next, file } => write!(
                f,
                "changes {have} to {} are missing: {file} begins with {next}. Copy the changelog files that hold them \
                 from a metalogger; --lose-changes-from={have} goes on without them and all later ones",
                next - 1
            ),
            Refusal::Damaged { file, after, lost_to } => write!(
                f,
                "{file} is damaged after change {}, and changes up to {lost_to} follow. Copy the file from a \
                 metalogger; --lose-changes-from={after} goes on without them",
                after - 1
            ),
            Refusal::TwoHistories { version, one, other } => write!(
                f,
                "change {version} is one thing in {one} and another in {other}: once an old copy of the metadata was \
                 started from, and two histories came to lie here. See by the times and names in their lines which one \
                 is wanted, move the journal files and images of the other one to another place, keep them, and start \
                 again"
            ),
            Refusal::Older { reaches, seen } => write!(
                f,
                "the metadata found here end before change {reaches}, but the cluster has seen change {}: this is an \
                 old copy. Copy newer files from a metalogger; start with --lose-changes-from={reaches} to give the \
                 later changes up",
                seen - 1
            ),
        }
    }
}

impl std::error::Error for Refusal {}

/// Decides what to load and replay. `lose_from`: a person said that changes from this version on may be lost.
pub fn plan(
    images: &[ImageFacts],
    journals: &[JournalFacts],
    known: &Known,
    lose_from: Option<u64>,
) -> Result<Plan, Refusal> {
    let mut remarks = Vec::new();
    for image in images.iter().filter(|image| image.header.is_none()) {
        remarks.push(format!("{} is not a sound image and is left out", image.name));
    }
    let sound = images.iter().filter_map(|image| image.header.map(|header| (header, &image.name)));
    let Some((header, image)) = sound.max_by_key(|(header, name)| (header.version, *name)) else {
        let names: Vec<String> = images.iter().map(|image| image.name.clone()).collect();
        return Err(if names.is_empty() { Refusal::Nothing } else { Refusal::NoSoundImage { names } });
    };
    let foreign = images.iter().find_map(|image| {
        let other = image.header?;
        (known.meta_id.is_none() && other.meta_id != header.meta_id).then_some((&image.name, other.meta_id))
    });
    if let Some((name, found)) = foreign {
        return Err(Refusal::Foreign { image: name.clone(), found, expected: header.meta_id });
    }
    if let Some(expected) = known.meta_id.filter(|expected| *expected != header.meta_id) {
        return Err(Refusal::Foreign { image: image.clone(), found: header.meta_id, expected });
    }

    for file in journals.iter().filter(|file| file.versions.is_none() && file.end != SurveyEnd::Clean) {
        remarks.push(format!("{} holds no whole line and is left out", file.name));
    }
    // Files by their first line; a file that gives nothing new is left out.
    let mut files: Vec<(&JournalFacts, (u64, u64))> =
        journals.iter().filter_map(|file| file.versions.map(|versions| (file, versions))).collect();
    files.sort_by(|(left, left_versions), (right, right_versions)| {
        (left_versions, &left.name).cmp(&(right_versions, &right.name))
    });
    let highest = files.iter().map(|(_, (_, last))| last + 1).max().unwrap_or(0);
    let mut version = header.version;
    let mut chosen = Vec::new();
    let mut refusal: Option<Refusal> = None;
    for (file, (first, last)) in files {
        if last < version {
            continue;
        }
        if first > version {
            let gap = Refusal::Gap { have: version, next: first, file: file.name.clone() };
            refusal = refusal.filter(|earlier| earlier.is_at(version)).or(Some(gap));
            break;
        }
        chosen.push((file.name.clone(), file.bytes.clone()));
        version = last + 1;
        match file.end {
            SurveyEnd::Clean => {}
            SurveyEnd::Torn => remarks.push(format!("the last line of {} is torn and cut off", file.name)),
            SurveyEnd::Damaged(error) => {
                remarks.push(format!("{} after change {last}: {error}", file.name));
                // Whether that loses anything depends on the other files.
                refusal = Some(Refusal::Damaged { file: file.name.clone(), after: version, lost_to: version });
            }
            SurveyEnd::Gap { expected, found } => {
                remarks.push(format!("{} jumps from change {} to {found}", file.name, expected - 1));
                refusal = Some(Refusal::Gap { have: expected, next: found, file: file.name.clone() });
            }
        }
    }
    // A file that broke off is no loss if another one went on from there.
    refusal = refusal.filter(|refusal| refusal.is_at(version));
    if let Some(Refusal::Damaged { after, lost_to, .. }) = &mut refusal {
        *lost_to = highest.max(*after + 1) - 1;
    }
    if refusal.is_none() && version < known.version_seen {
        refusal = Some(Refusal::Older { reaches: version, seen: known.version_seen });
    }
    if let Some(refusal) = refusal {
        if lose_from != Some(version) {
            return Err(refusal);
        }
        remarks.push(format!("changes from {version} on are given up as asked: {refusal}"));
    }
    Ok(Plan {
        image: image.clone(),
        meta_id: header.meta_id,
        from: header.version,
        journals: chosen,
        to: version,
        remarks,
    })
}

/// Lines that two files have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Places in the list of journals.
    pub one: usize,
    pub other: usize,
    /// First and last version that both have.
    pub versions: (u64, u64),
}

/// Where journal files overlap. If the lines are equal there (`first_difference`), then everywhere: each run of lines is
/// compared with the one before it that reaches farthest.
pub fn overlaps(journals: &[JournalFacts]) -> Vec<Overlap> {
    let mut runs: Vec<(u64, u64, usize)> = Vec::new();
    runs.extend(
        journals.iter().enumerate().filter_map(|(at, run)| run.versions.map(|(first, last)| (first, last, at))),
    );
    runs.sort_unstable();
    let mut found = Vec::new();
    let mut farthest: Option<(u64, usize)> = None;
    for (first, last, at) in runs {
        if let Some((reached, one)) = farthest.filter(|(reached, _)| first <= *reached) {
            found.push(Overlap { one, other: at, versions: (first, last.min(reached)) });
        }
        if farthest.is_none_or(|(reached, _)| last > reached) {
            farthest = Some((last, at));
        }
    }
    found
}

/// The first of these versions whose lines are not equal. `one` and `other`: bytes of runs that hold all of them.
pub fn first_difference(one: &[u8], other: &[u8], versions: (u64, u64)) -> Option<u64> {
    let common = |bytes| {
        let lines = journal::lines(bytes).map(|(_, line)| line.unwrap_or_default());
        lines.skip_while(move |line| journal::line_version(line).is_none_or(|version| version < versions.0))
    };
    (versions.0..=versions.1)
        .zip(common(one).zip(common(other)))
        .find(|(_, (one, other))| one != other)
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Change;
    use crate::journal::{JournalError, Outcome};

    fn image(name: &str, version: u64) -> ImageFacts {
        let header = ImageHeader { meta_id: MetaId(7), version, written_at: 1 };
        ImageFacts { name: name.into(), header: Some(header) }
    }

    fn journal(name: &str, first: u64, last: u64, end: SurveyEnd) -> JournalFacts {
        JournalFacts { name: name.into(), versions: Some((first, last)), bytes: 10 * first..10 * (last + 1), end }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.journals.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_newest_sound_image_is_taken_and_only_what_it_lacks_is_replayed() {
        let images = [image("old", 5), image("new", 20), ImageFacts { name: "bad".into(), header: None }];
        let journals = [
            journal("c0", 31, 40, SurveyEnd::Torn),
            journal("c2", 1, 15, SurveyEnd::Clean),
            journal("c1", 16, 30, SurveyEnd::Clean),
        ];
        let plan = plan(&images, &journals, &Known { meta_id: Some(MetaId(7)), version_seen: 41 }, None).unwrap();
        assert_eq!((plan.image.as_str(), plan.from, plan.to), ("new", 20, 41));
        assert_eq!(names(&plan), ["c1", "c0"]);
        assert_eq!(plan.remarks.len(), 2, "{:?}", plan.remarks);
    }

    #[test]
    fn missing_lines_are_refused_and_the_way_out_is_named() {
        let journals = [journal("c1", 5, 9, SurveyEnd::Clean), journal("c0", 12, 20, SurveyEnd::Clean)];
        let refusal = plan(&[image("i", 5)], &journals, &Known::default(), None).unwrap_err();
        assert_eq!(refusal, Refusal::Gap { have: 10, next: 12, file: "c0".into() });
        assert!(refusal.to_string().contains("--lose-changes-from=10"), "{refusal}");
        let plan = plan(&[image("i", 5)], &journals, &Known::default(), Some(10)).unwrap();
        assert_eq!((names(&plan), plan.to), (vec!["c1"], 10));
    }

    #[test]
    fn a_foreign_image_and_one_older_than_the_cluster_are_refused() {
        let foreign = Known { meta_id: Some(MetaId(8)), version_seen: 0 };
        assert!(matches!(plan(&[image("i", 5)], &[], &foreign, None), Err(Refusal::Foreign { .. })));
        let mut of_another = image("other", 9);
        of_another.header.as_mut().unwrap().meta_id = MetaId(8);
        let mixed = plan(&[image("i", 5), of_another], &[], &Known::default(), None);
        assert!(matches!(mixed, Err(Refusal::Foreign { .. })), "{mixed:?}");
        let seen = Known { meta_id: None, version_seen: 9 };
        assert_eq!(plan(&[image("i", 5)], &[], &seen, None), Err(Refusal::Older { reaches: 5, seen: 9 }));
        assert_eq!(plan(&[], &[], &seen, None), Err(Refusal::Nothing));
        let bad = [ImageFacts { name: "x".into(), header: None }];
        assert_eq!(plan(&bad, &[], &seen, None), Err(Refusal::NoSoundImage { names: vec!["x".into()] }));
    }

    #[test]
    fn files_of_two_histories_are_told_apart_wherever_they_overlap() {
        let lines = |versions: std::ops::Range<u64>, time: u32| {
            let mut bytes = Vec::new();
            versions.for_each(|version| {
                journal::format(version, time.into(), &Change::Idle {}, &Outcome::default(), &mut bytes);
            });
            bytes
        };
        let runs = [
            journal("long", 1, 100, SurveyEnd::Clean),
            journal("inside", 20, 30, SurveyEnd::Clean),
            journal("beyond", 90, 120, SurveyEnd::Clean),
            journal("apart", 200, 210, SurveyEnd::Clean),
            journal("late", 110, 130, SurveyEnd::Clean),
        ];
        let found = overlaps(&runs);
        let at = |one, other, versions| Overlap { one, other, versions };
        assert_eq!(found, [at(0, 1, (20, 30)), at(0, 2, (90, 100)), at(2, 4, (110, 120))]);

        let (one, same) = (lines(1..101, 7), lines(90..121, 7));
        assert_eq!(first_difference(&one, &same, (90, 100)), None);
        let mut parting = lines(90..95, 7);
        parting.extend(lines(95..121, 8));
        assert_eq!(first_difference(&one, &parting, (90, 100)), Some(95));
        assert_eq!(first_difference(&parting, &one, (90, 94)), None);
    }

    #[test]
    fn damage_in_one_file_is_made_good_by_another_that_overlaps() {
        let damaged = SurveyEnd::Damaged(JournalError::NoChecksum);
        let alone = [journal("c0", 5, 9, damaged)];
        let refused = plan(&[image("i", 5)], &alone, &Known::default(), None);
        assert!(matches!(refused, Err(Refusal::Damaged { after: 10, .. })), "{refused:?}");
        let with_copy = [journal("c0", 5, 9, damaged), journal("ml", 5, 14, SurveyEnd::Clean)];
        let plan = plan(&[image("i", 5)], &with_copy, &Known::default(), None).unwrap();
        assert_eq!((names(&plan), plan.to), (vec!["c0", "ml"], 15));
    }

    #[test]
    fn a_file_without_a_whole_line_is_left_out_with_a_remark() {
        let none = |name: &str, end| JournalFacts { versions: None, ..journal(name, 5, 9, end) };
        let damaged = SurveyEnd::Damaged(JournalError::NoChecksum);
        let files = [none("bad", damaged), none("torn", SurveyEnd::Torn), none("empty", SurveyEnd::Clean)];
        let plan = plan(&[image("i", 5)], &files, &Known::default(), None).unwrap();
        assert_eq!((names(&plan), plan.to, plan.remarks.len()), (Vec::<&str>::new(), 5, 2), "{:?}", plan.remarks);
    }

    #[test]
    fn what_lies_behind_a_gap_or_damage_is_used_when_another_file_has_what_is_missing() {
        let images = [image("i", 5)];
        let gap = journal("ml", 5, 9, SurveyEnd::Gap { expected: 10, found: 15 });
        let behind = journal("ml", 15, 20, SurveyEnd::Clean);
        let refused = plan(&images, &[gap.clone(), behind.clone()], &Known::default(), None).unwrap_err();
        assert_eq!(refused, Refusal::Gap { have: 10, next: 15, file: "ml".into() });
        let back = journal("back", 1, 16, SurveyEnd::Torn);
        let whole = plan(&images, &[gap, behind.clone(), back.clone()], &Known::default(), None).unwrap();
        assert_eq!((names(&whole), whole.to), (vec!["back", "ml"], 21));
        assert_eq!(whole.journals[1].1, behind.bytes);

        let damaged = journal("ml", 5, 9, SurveyEnd::Damaged(JournalError::NoChecksum));
        let refused = plan(&images, &[damaged.clone(), behind.clone()], &Known::default(), None).unwrap_err();
        assert_eq!(refused, Refusal::Damaged { file: "ml".into(), after: 10, lost_to: 20 });
        let whole = plan(&images, &[damaged.clone(), behind.clone(), back], &Known::default(), None).unwrap();
        assert_eq!(whole.to, 21);
        let short = journal("back", 1, 12, SurveyEnd::Clean);
        let refused = plan(&images, &[damaged, behind, short], &Known::default(), None).unwrap_err();
        assert_eq!(refused, Refusal::Gap { have: 13, next: 15, file: "ml".into() });
    }
}
