//! A file that is there whole or not at all, and replaces nothing.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::at;
use crate::data_folder::FILE_MODE;

/// Gives out the bytes of a file, in order.
pub(super) type Fill<'a> = dyn FnMut(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> + 'a;

/// Bytes on the device under a name that no master takes for metadata. Dropped before it got its name, it leaves nothing.
pub(super) struct Incomplete {
    path: PathBuf,
    folder: PathBuf,
    placed: bool,
}

impl Incomplete {
    /// Writes what `fill` gives, for a file that shall be called `target`. It belongs to the folder's owner, if this
    /// process may give it away: the master's user must be able to read and rename it.
    pub(super) fn write(target: &Path, fill: &mut Fill<'_>) -> Result<Incomplete, String> {
        let folder = match target.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let name = target.file_name().ok_or_else(|| format!("{} names no file", target.display()))?;
        let path = folder.join(format!(".{}.incomplete-{}", name.to_string_lossy(), std::process::id()));
        // What a process of the same number left when it was killed. A link is removed, not followed.
        let _ = fs::remove_file(&path);
        let incomplete = Incomplete { path, folder, placed: false };
        let write = || -> io::Result<()> {
            let owner = fs::metadata(&incomplete.folder)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&incomplete.path)?;
            fill(&mut |piece| file.write_all(piece))?;
            let is = file.metadata()?;
            if (is.uid(), is.gid()) != (owner.uid(), owner.gid()) {
                give(&file, owner.uid(), owner.gid())?;
            }
            file.sync_all()
        };
        let mut write = write;
        write().map_err(|error| at(target, error))?;
        Ok(incomplete)
    }

    /// Gives the file its name. Errors: something has it already, and stays.
    pub(super) fn place(mut self, target: &Path) -> Result<(), String> {
        let place = || -> io::Result<()> {
            match renameat_with(CWD, &self.path, CWD, target, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(()),
                // A file system that cannot do that. A second name is never given over another one.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    fs::hard_link(&self.path, target).and_then(|()| fs::remove_file(&self.path))
                }
                Err(error) => Err(error.into()),
            }
        };
        place().map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => is_there(target),
            _ => at(target, error),
        })?;
        self.placed = true;
        sync(&self.folder)
    }

    /// Gives the file its name, whatever had it.
    pub(super) fn replace(mut self, target: &Path) -> Result<(), String> {
        fs::rename(&self.path, target).map_err(|error| at(target, error))?;
        self.placed = true;
        sync(&self.folder)
    }
}

impl Drop for Incomplete {
    fn drop(&mut self) {
        if !self.placed {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Who is not root may give no file away; then it belongs to who writes it, as any file of theirs.
fn give(file: &File, owner: u32, group: u32) -> io::Result<()> {
    match fchown(file, Some(owner), Some(group)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Another name for a file, which nothing has yet.
pub(super) fn move_aside(path: &Path, to: &Path) -> Result<(), String> {
    refuse_existing(to)?;
    fs::rename(path, to).map_err(|error| at(path, error))
}

/// A new file with these bytes, of the folder's owner.
pub(super) fn write_durably(target: &Path, fill: &mut Fill<'_>) -> Result<(), String> {
    // Said before the work is done; what appears meanwhile is not overwritten either.
    refuse_existing(target)?;
    Incomplete::write(target, fill)?.place(target)
}

/// Names in a folder become durable.
pub(super) fn sync(folder: &Path) -> Result<(), String> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| at(folder, error))
}

/// Errors: something has this name.
pub(super) fn refuse_existing(target: &Path) -> Result<(), String> {
    if fs::symlink_metadata(target).is_ok() { Err(is_there(target)) } else { Ok(()) }
}

fn is_there(target: &Path) -> String {
    format!("{} is there already, and nothing is overwritten", target.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> =
            entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_link_at_the_name_of_the_unfinished_file_is_not_followed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (target, other) = (folder.path().join("metadata.mfs"), folder.path().join("precious"));
        fs::write(&other, "precious").expect("it is written");
        let unfinished = folder.path().join(format!(".metadata.mfs.incomplete-{}", std::process::id()));
        std::os::unix::fs::symlink(&other, &unfinished).expect("a link");
        write_durably(&target, &mut |sink| sink(b"new")).expect("it is written");
        assert_eq!(fs::read_to_string(&other).expect("readable"), "precious");
        assert_eq!(fs::read_to_string(&target).expect("readable"), "new");
        assert_eq!(names(folder.path()), ["metadata.mfs", "precious"]);
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("metadata.mfs");
        let refused = write_durably(&target, &mut |sink| {
            fs::write(&target, "of another")?;
            sink(b"new")
        });
        assert!(refused.expect_err("the name is taken").contains("is there already"));
        assert_eq!(fs::read_to_string(&target).expect("readable"), "of another");
        assert_eq!(names(folder.path()), ["metadata.mfs"]);
        // Nor a link that leads nowhere.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).expect("a link");
        assert!(write_durably(&link, &mut |sink| sink(b"new")).is_err());
        assert_eq!(names(folder.path()), ["link", "metadata.mfs"]);
    }

    #[test]
    fn who_may_not_give_files_away_can_write_into_a_folder_of_another_all_the_same() {
        use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: only root can make a folder of another user");
            return;
        }
        let folder = tempfile::tempdir().expect("a folder");
        std::os::unix::fs::chown(folder.path(), Some(4711), Some(4712)).expect("root may");
        let owner = |name: &str| {
            let is = fs::metadata(folder.path().join(name)).expect("a file");
            (is.uid(), is.gid())
        };
        write_durably(&folder.path().join("by-root"), &mut |sink| sink(b"new")).expect("it is written");
        assert_eq!(owner("by-root"), (4711, 4712));
        // The right is a thread's own, and goes with it.
        let target = folder.path().join("by-another");
        let writer = std::thread::spawn(move || {
            let mut rights = capabilities(None).expect("this thread's");
            rights.effective.remove(CapabilitySet::CHOWN);
            set_capabilities(None, rights).expect("less is always granted");
            write_durably(&target, &mut |sink| sink(b"new"))
        });
        assert_eq!(writer.join().expect("it ends"), Ok(()));
        assert_eq!(owner("by-another"), (0, rustix::process::getegid().as_raw()));
    }

    #[test]
    fn what_could_not_be_written_leaves_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = write_durably(&folder.path().join("x"), &mut |sink| {
            sink(b"half")?;
            Err(io::Error::other("enough"))
        });
        assert!(refused.expect_err("it fails").contains("enough"));
        assert!(names(folder.path()).is_empty());
    }
}
