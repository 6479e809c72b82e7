//! What an import takes and what it refuses.

use std::fs;

use super::*;

/// A MooseFS master's folder: an image of a new file system as `metadata.mfs.back`. Gives the version of its next change.
fn folder() -> (tempfile::TempDir, u64) {
    let folder = tempfile::tempdir().expect("a folder");
    let namespace = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
    fs::write(folder.path().join("metadata.mfs.back"), stock::to_bytes(&namespace, 0)).expect("the image is written");
    (folder, namespace.version())
}

fn import_of(from: &Path, lose_changes_from: Option<u64>) -> Result<Namespace, String> {
    let to = tempfile::tempdir().expect("a folder");
    let to = to.path().join("new");
    let arguments = ImportArguments { from: from.to_owned(), to: to.clone(), lose_changes_from };
    match try_import(&arguments) {
        Ok(()) => load_ours(&to.join(CLEAN)),
        Err(why) => {
            assert!(!to.join(CLEAN).exists());
            Err(why)
        }
    }
}

fn log(folder: &Path, name: &str, text: impl AsRef<str>) {
    fs::write(folder.join(name), text.as_ref()).expect("the log is written");
}

fn access(version: u64) -> String {
    format!("{version}: 1795300001|ACCESS(1)\n")
}

#[test]
fn the_changes_behind_an_image_come_along_from_all_files_that_have_them() {
    let (folder, version) = folder();
    let path = folder.path();
    let lines: Vec<String> = (version - 1..version + 9).map(access).collect();
    log(path, "changelog.2.mfs", lines[..4].concat());
    log(path, "changelog.0.mfs", [&lines[8..].concat(), "9: 17953"].concat());
    log(path, "changelog_ml_back.1.mfs", lines[3..6].concat());
    log(path, "changelog_ml.0.mfs", lines[5..9].concat());
    let imported = import_of(path, None).expect("no change is missing");
    assert_eq!(imported.version(), version + 9);
    assert_eq!(import_of(&path.join("metadata.mfs.back"), None).expect("one image").digest(), imported.digest());
}

#[test]
fn a_gap_and_a_torn_middle_are_refused_with_the_file_and_the_change() {
    let (folder, version) = folder();
    let path = folder.path();
    let lines: Vec<String> = (version..version + 9).map(access).collect();
    log(path, "changelog.0.mfs", [lines[..3].concat(), lines[5..].concat()].concat());
    let gap = import_of(path, None).map(drop).expect_err("two changes are missing");
    let named = format!("changes {} to {} are missing", version + 3, version + 4);
    assert!(gap.contains(&named) && gap.contains("changelog.0.mfs"), "{gap}");
    let torn = [lines[..3].concat(), "5: 17953000\n".to_owned(), lines[5..].concat()].concat();
    log(path, "changelog.0.mfs", torn);
    let torn = import_of(path, None).map(drop).expect_err("two changes are missing");
    assert!(torn.contains(&format!("damaged after change {}", version + 2)), "{torn}");
    let cut = import_of(path, Some(version + 3)).expect("a person said so");
    assert_eq!(cut.version(), version + 3);
    // What is missing in one file is in another.
    log(path, "changelog_ml.7.mfs", lines[2..5].concat());
    assert_eq!(import_of(path, None).expect("whole again").version(), version + 9);
    // Two files that contradict each other.
    log(path, "changelog_ml.7.mfs", lines[2..5].concat().replace("1795300001", "1795300002"));
    let two = import_of(path, None).map(drop).expect_err("two histories");
    assert!(two.contains("one thing in") && two.contains("changelog_ml.7.mfs"), "{two}");
}

#[test]
fn changes_whose_lines_are_damaged_up_to_the_end_are_refused_with_file_and_line() {
    let (folder, version) = folder();
    let path = folder.path();
    let lines: Vec<String> = (version..version + 9).map(access).collect();
    let broken = |lines: &[String]| lines.concat().replace("ACCESS", "?");
    log(path, "changelog.0.mfs", [lines[..3].concat(), broken(&lines[3..])].concat());
    let refused = import_of(path, None).map(drop).expect_err("six changes would be lost");
    assert!(refused.contains("changelog.0.mfs: line 4: ") && refused.contains("is damaged after change"), "{refused}");
    assert_eq!(import_of(path, Some(version + 3)).expect("a person said so").version(), version + 3);
    // No line is whole.
    log(path, "changelog.0.mfs", broken(&lines));
    let refused = import_of(path, None).map(drop).expect_err("nine changes would be lost");
    assert!(refused.contains("changelog.0.mfs: line 1: there is no whole line"), "{refused}");
    assert_eq!(import_of(path, Some(version)).expect("a person said so").version(), version);
    // The damage begins before the image does.
    log(path, "changelog.0.mfs", [access(version - 2), broken(&lines)].concat());
    let refused = import_of(path, None).map(drop).expect_err("nine changes would be lost");
    assert!(refused.contains("that follow the image may have been there"), "{refused}");
    // One torn line is what a crash leaves.
    log(path, "changelog.0.mfs", &lines[0][..9]);
    assert_eq!(import_of(path, None).expect("nobody was told of it").version(), version);
}

#[test]
fn an_operation_that_is_not_known_is_refused_by_name_line_and_version() {
    let (folder, version) = folder();
    let text = format!("{}{}: 1795300001|TRASH_REMOVE(5)\n", access(version), version + 1);
    log(folder.path(), "changelog.0.mfs", text);
    let refused = import_of(folder.path(), None).map(drop).expect_err("an operation of MooseFS 4");
    let named = format!("changelog.0.mfs: line 2: change {} (TRASH_REMOVE)", version + 1);
    assert!(refused.contains(&named), "{refused}");
}

#[test]
fn an_older_image_is_not_taken_in_place_of_a_newer_one() {
    let (folder, version) = folder();
    let path = folder.path();
    let lines: String = (version..version + 9).map(access).collect();
    log(path, "changelog.0.mfs", &lines);
    let mut newer = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
    stock::changelog::replay(&mut newer, lines.as_bytes(), 0).expect("they fit");
    let bytes = stock::to_bytes(&newer, 0);
    fs::write(path.join("metadata.mfs"), &bytes).expect("written");
    fs::remove_file(path.join("changelog.0.mfs")).expect("removed");
    let refused = import_of(&path.join("metadata.mfs.back"), None).map(drop).expect_err("metadata.mfs is newer");
    assert!(refused.contains("metadata.mfs beside it is newer"), "{refused}");
    assert_eq!(import_of(path, None).expect("the newest is taken").version(), version + 9);
    // The newest one is damaged: only with the changes up to it the older one will do.
    let at = bytes.windows(4).position(|letters| letters == b"NODE").expect("a section");
    let damaged = [&bytes[..at], b"NODF", &bytes[at + 4..]].concat();
    fs::write(path.join("metadata.mfs"), damaged).expect("written");
    let refused = import_of(path, None).map(drop).expect_err("nine changes would be lost");
    assert!(refused.contains("NODF") && refused.contains("--lose-changes-from"), "{refused}");
    log(path, "changelog.0.mfs", &lines);
    assert_eq!(import_of(path, None).expect("nothing is lost").digest(), newer.digest());
    // Two clusters.
    let other = Namespace::new(MetaId(8), Policy::default(), 1_795_300_000);
    fs::write(path.join("metadata.mfs.back.1"), stock::to_bytes(&other, 0)).expect("written");
    assert!(import_of(path, None).map(drop).expect_err("of two clusters").contains("different file systems"));
}

#[test]
fn a_master_that_was_killed_in_its_first_hour_comes_in_from_its_change_logs_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("metadata.mfs.back"), b"MFSM NEW").expect("written");
    log(folder.path(), "changelog.0.mfs", "1: 1795300000|SETMETAID(7)\n2: 1795300001|CREATE(1,d,2,511,18,0,0,0):2\n");
    let imported = import_of(folder.path(), None).expect("all changes are there");
    assert_eq!((imported.version(), imported.meta_id(), imported.totals().nodes), (3, MetaId(7), 2));
    fs::remove_file(folder.path().join("changelog.0.mfs")).expect("removed");
    log(folder.path(), "changelog.0.mfs", "2: 1795300001|CREATE(1,d,2,511,18,0,0,0):2\n");
    assert!(
        import_of(folder.path(), None)
            .map(drop)
            .expect_err("the first is missing")
            .contains("changes 1 to 1 are missing")
    );
}

#[test]
fn our_own_metadata_are_not_imported() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut namespace = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
    fs::write(folder.path().join(CLEAN), image::to_bytes(&namespace.freeze(), 0)).expect("written");
    assert!(import_of(folder.path(), None).map(drop).expect_err("ours").contains("is of a Mooring master"));
    assert!(import_of(&folder.path().join(CLEAN), None).is_err());
}

#[test]
fn a_file_of_moosefs_4_is_named_as_such_before_its_change_logs_are_looked_at() {
    let (folder, version) = folder();
    let image = folder.path().join("metadata.mfs.back");
    log(folder.path(), "changelog.0.mfs", format!("{version}: 1795300001|NEWTHING(1,2)\n{}: 5|\n", version + 1));
    let bytes = fs::read(&image).expect("readable");
    let place = bytes.windows(5).position(|window| window == b"CHNK ").expect("it has chunks");
    for (at, new) in [(place, &b"CHNK 9.9"[..]), (0, b"MFSM 4.0")] {
        let mut changed = bytes.clone();
        changed[at..at + 8].copy_from_slice(new);
        fs::write(&image, changed).expect("written");
        let refused = import_of(folder.path(), None).map(drop).expect_err("it is newer");
        assert!(refused.contains("of MooseFS 4, which cannot be taken over yet"), "{refused}");
        assert!(refused.contains("metadata.mfs.back") && !refused.contains("changelog"), "{refused}");
    }
}
