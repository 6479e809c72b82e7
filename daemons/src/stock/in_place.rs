//! `mfsmaster -a` in the folder of a MooseFS master: its metadata become ours there, and its files are kept.
//!
//! Everything is loaded and replayed before anything is touched. Then every file of MooseFS's gets a second name in
//! a folder beside; then our image gets its name, in one step; then the first names go. Whenever that is cut
//! short, the next start finds either what MooseFS left, whole, or our image and nothing that is newer.

use std::fs;
use std::path::{Path, PathBuf};

use meta::image;
use tracing::{info, warn};

use super::moosefs::{self, Files};
use super::new_file::{self, Incomplete};
use super::{CLEAN, at, give_identity, now};

/// Takes over what a MooseFS master left in this folder. Returns false if there is nothing to take over: no metadata
/// of MooseFS, or ours beside it. The caller holds the folder's lock. Errors: a sentence; nothing was changed.
pub(crate) fn take_over(folder: &Path, lose_from: Option<u64>) -> Result<bool, String> {
    let files = Files::find(folder)?;
    if files.has_ours() || !files.are_of_moosefs() {
        return Ok(false);
    }
    moosefs::refuse_metalogger(folder)?;
    info!("{} is of a MooseFS master and is taken over", folder.display());
    let loaded = moosefs::load(&files, lose_from)?;
    for note in &loaded.notes {
        warn!("{note}");
    }
    info!(
        image = %loaded.image.display(),
        from = loaded.from,
        to = loaded.namespace.version(),
        changes = loaded.applied,
        "change logs of MooseFS were replayed"
    );
    let (now, mut namespace) = (now(), loaded.namespace);
    give_identity(&mut namespace, now);
    let target = folder.join(CLEAN);
    let incomplete = Incomplete::write(&target, &mut |sink| image::write(&namespace.freeze(), now, sink).map(drop))?;
    let kept = keep(folder, now, &files)?;
    incomplete.replace(&target)?;
    for path in paths(&files).filter(|path| **path != target) {
        fs::remove_file(path).map_err(|error| at(path, error))?;
    }
    new_file::sync(folder)?;
    info!("what MooseFS left is kept in {}; for the way back use mooring export", kept.display());
    Ok(true)
}

fn paths(files: &Files) -> impl Iterator<Item = &PathBuf> {
    files.images.iter().map(|image| &image.path).chain(&files.logs)
}

/// Gives each file a second name in a new folder, which it returns.
fn keep(folder: &Path, now: u32, files: &Files) -> Result<PathBuf, String> {
    let name = |attempt: u32| match attempt {
        0 => folder.join(format!("left-by-moosefs-{now}")),
        _ => folder.join(format!("left-by-moosefs-{now}-{attempt}")),
    };
    let kept = (0..100).map(name).find(|path| fs::symlink_metadata(path).is_err());
    let kept = kept.ok_or_else(|| format!("{}: too many folders left-by-moosefs-{now}", folder.display()))?;
    fs::create_dir(&kept).map_err(|error| at(&kept, error))?;
    for path in paths(files) {
        let second = kept.join(path.file_name().unwrap_or_default());
        // Of a link the file is kept: the link may lead nowhere from there.
        let file = fs::canonicalize(path).map_err(|error| at(path, error))?;
        // Where a file cannot have two names, a copy is as good.
        let copy = |_| fs::copy(&file, &second).and_then(|_| fs::File::open(&second)?.sync_all());
        fs::hard_link(&file, &second).or_else(copy).map_err(|error| at(&second, error))?;
    }
    new_file::sync(&kept)?;
    new_file::sync(folder)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use meta::stock::{self, changelog};
    use meta::{Namespace, Policy};
    use wire::MetaId;

    use super::*;

    /// What a MooseFS master leaves that was killed: an image, and two changes behind it.
    fn killed(folder: &Path) -> Namespace {
        let mut namespace = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
        let version = namespace.version();
        fs::write(folder.join("metadata.mfs.back"), stock::to_bytes(&namespace, 0)).expect("written");
        let lines = format!(
            "{version}: 1795300001|CREATE(1,d,2,493,18,5,6,0):2\n{}: 1795300002|SETTRASHTIME(2,0,7200,0):1,0,0\n",
            version + 1
        );
        fs::write(folder.join("changelog.0.mfs"), &lines).expect("written");
        assert_eq!(changelog::replay(&mut namespace, lines.as_bytes(), 0), Ok(2));
        namespace
    }

    fn ours(folder: &Path) -> Namespace {
        super::super::load_ours(&folder.join(CLEAN)).expect("our image")
    }

    #[test]
    fn what_a_killed_master_left_becomes_ours_and_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = killed(folder.path());
        let image = fs::read(folder.path().join("metadata.mfs.back")).expect("readable");
        // An older clean one stands where ours will.
        fs::write(folder.path().join(CLEAN), b"MFSM NEW").expect("written");
        assert_eq!(take_over(folder.path(), None), Ok(true));
        assert_eq!(ours(folder.path()).digest(), expected.digest());
        let entries = || fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
        let kept = entries().find(|path| path.is_dir()).expect("the kept files");
        assert_eq!(entries().count(), 2);
        assert_eq!(fs::read(kept.join("metadata.mfs.back")).expect("readable"), image);
        assert_eq!(fs::read(kept.join(CLEAN)).expect("readable"), b"MFSM NEW");
        assert!(kept.join("changelog.0.mfs").exists());
        assert_eq!(take_over(folder.path(), None), Ok(false), "once is enough");
        // And what is kept comes in again.
        let loaded = moosefs::load(&Files::find(&kept).expect("found"), None).expect("loads");
        assert_eq!((loaded.namespace.digest(), loaded.applied), (expected.digest(), 2));
    }

    #[test]
    fn files_that_lie_elsewhere_behind_links_are_kept_too() {
        let folder = tempfile::tempdir().expect("a folder");
        let (data, elsewhere) = (folder.path().join("data"), folder.path().join("elsewhere"));
        fs::create_dir(&data).expect("a folder");
        fs::create_dir(&elsewhere).expect("a folder");
        let expected = killed(&elsewhere);
        for name in ["metadata.mfs.back", "changelog.0.mfs"] {
            std::os::unix::fs::symlink(Path::new("../elsewhere").join(name), data.join(name)).expect("a link");
        }
        assert_eq!(take_over(&data, None), Ok(true));
        assert_eq!(ours(&data).digest(), expected.digest());
        fs::remove_dir_all(&elsewhere).expect("removed");
        let mut entries = fs::read_dir(&data).expect("a folder").map(|entry| entry.expect("an entry").path());
        let kept = entries.find(|path| path.is_dir()).expect("the kept files");
        let loaded = moosefs::load(&Files::find(&kept).expect("found"), None).expect("loads");
        assert_eq!((loaded.namespace.digest(), loaded.applied), (expected.digest(), 2));
    }

    #[test]
    fn what_cannot_be_taken_over_is_left_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        killed(folder.path());
        let log = folder.path().join("changelog.0.mfs");
        let lines = fs::read_to_string(&log).expect("readable");
        fs::write(&log, lines.replace("SETTRASHTIME", "SETTRASHTIMES")).expect("written");
        let refused = take_over(folder.path(), None).expect_err("an operation that is not known");
        assert!(refused.contains("changelog.0.mfs: line 2") && refused.contains("SETTRASHTIMES"), "{refused}");
        assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 2);
        // A folder that only asks for a new file system is no MooseFS master's.
        fs::remove_file(&log).expect("removed");
        fs::remove_file(folder.path().join("metadata.mfs.back")).expect("removed");
        fs::write(folder.path().join(CLEAN), b"MFSM NEW").expect("written");
        assert_eq!(take_over(folder.path(), None), Ok(false));
    }
}
