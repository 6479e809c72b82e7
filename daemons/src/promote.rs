//! `mooring promote`: what a metalogger keeps becomes a master's data folder. Spec 42, B and C.6.
//!
//! The last step of a bad day, so it first says what would be, changes nothing until it is told to, never touches what
//! the metalogger keeps, and never writes into a folder that holds other metadata. Image and journal are loaded and
//! replayed before it says anything, and the copy once more before its files get their names.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meta::recovery::Plan;
use ring::{DriverChoice, Options};

use crate::config::{self, Config};
use crate::data_folder::{self, SEEN, seen};
use crate::master::{self, Rehearsed, Settings, rehearse};
use crate::process::{self, MASTER, METALOGGER, Program, WorkingUser};

/// Make a master's data folder of what a metalogger keeps
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// The metalogger's folder [default: DATA_PATH of mfsmetalogger.cfg]
    #[arg(long, value_name = "FOLDER")]
    from: Option<PathBuf>,
    /// The master's folder [default: DATA_PATH of mfsmaster.cfg]
    #[arg(long, value_name = "FOLDER")]
    to: Option<PathBuf>,
    /// Do it; without this, only say what would be
    #[arg(long)]
    go: bool,
}

/// Says what a master would have that starts from a metalogger's files, and with `--go` puts them into its folder.
pub fn run(arguments: &Arguments) -> ExitCode {
    match promote(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("mooring promote: {why}");
            ExitCode::FAILURE
        }
    }
}

fn promote(arguments: &Arguments) -> Result<(), String> {
    let from = match &arguments.from {
        Some(folder) => folder.clone(),
        None => configuration(METALOGGER)?.path("DATA_PATH", "/var/lib/mfs"),
    };
    let of_master = configuration(MASTER)?;
    let to = arguments.to.clone().unwrap_or_else(|| of_master.path("DATA_PATH", "/var/lib/mfs"));
    let files = kept_files(&from)?;
    let running = running_in(&[&from, &to])?;
    let there = look(&from)?;
    let plan = &there.plan;
    say(&format!("file system   {}", plan.meta_id));
    say(&format!("image         {} (changes up to {})", plan.image, plan.from.saturating_sub(1)));
    say(&format!("journal       {} files, changes up to {}", plan.journals.len(), plan.to.saturating_sub(1)));
    match last_change(&from, plan) {
        Some(at) => say(&format!("last change   {}", ago(at))),
        None => say("last change   in the image"),
    }
    say(&format!("replayed      {} changes, to version {}, digest {}", there.changes, plan.to, there.digest));
    for remark in plan.remarks.iter().chain(&running) {
        say(&format!("note          {remark}"));
    }
    say(&format!(
        "lost          what the old master acknowledged after change {}, if it did; nothing before it",
        plan.to.saturating_sub(1)
    ));
    let is_same = fs::canonicalize(&from).ok() == fs::canonicalize(&to).ok();
    if !is_same {
        refuse_other_metadata(&to)?;
    }
    let start = "start the master: mfsmaster (or mooring master), after the old one is surely gone";
    if !arguments.go {
        let what = if is_same {
            "nothing needs to be copied".to_owned()
        } else {
            format!("{} files would go to {}", files.len(), to.display())
        };
        say(&format!("\nNothing was changed; {what}. With --go it is done; then {start}."));
        return Ok(());
    }
    if let Some(running) = running.first() {
        return Err(format!("{running}: stop it first, so that nothing changes meanwhile"));
    }
    if !is_same {
        let target = Target::make(&to, &of_master)?;
        target.fill(&from, &files, &there)?;
    }
    say(&format!("\n{} is ready. Now {start}.", to.display()));
    Ok(())
}

/// Sentences about daemons that run in these folders. Errors: a lock file cannot be looked at.
fn running_in(folders: &[&Path]) -> Result<Vec<String>, String> {
    let mut running = Vec::new();
    for folder in folders {
        for program in [METALOGGER, MASTER] {
            if let Some(pid) = process::owner(&folder.join(program.lock_file()))? {
                running.push(format!("{} runs in {} (pid {})", program.name, folder.display(), pid.as_raw_nonzero()));
            }
        }
    }
    running.dedup();
    Ok(running)
}

/// Prints a line. Whoever closes the pipe early has read enough: what is to be done is done all the same.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn configuration(program: Program) -> Result<Config, String> {
    let (config, _) = config::find(&program.config_file(), None).map_err(|error| error.to_string())?;
    Ok(config)
}

/// Names of what a metalogger keeps. Errors: there is nothing, or it is of a kind that we cannot read.
fn kept_files(from: &Path) -> Result<Vec<String>, String> {
    let text = |error: io::Error| format!("{}: {error}", from.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(from).map_err(text)? {
        let name = entry.map_err(text)?.file_name().to_string_lossy().into_owned();
        let is_kept = name.starts_with("metadata_ml.mfs.back") || name.starts_with("changelog_ml");
        if is_kept && !name.ends_with(".tmp") {
            files.push(name);
        }
    }
    let Some(image) = files.iter().filter(|name| name.starts_with("metadata_ml.mfs.back")).min() else {
        return Err(format!("{} holds no image of a metalogger (metadata_ml.mfs.back)", from.display()));
    };
    let mut first = [0; 28];
    let read = fs::File::open(from.join(image)).and_then(|mut file| file.read_exact(&mut first));
    if read.is_err() || !data_folder::is_ours(&first) {
        return Err(format!(
            "{0}: {image} is of a MooseFS master. `mooring import {0} --to FOLDER` makes a folder of ours of it and the \
             changes that follow; a MooseFS master goes on from them with mfsmaster -a in a folder with copies of them",
            from.display()
        ));
    }
    files.sort();
    Ok(files)
}

/// What a start from this folder would do: everything is loaded and replayed.
fn look(folder: &Path) -> Result<Rehearsed, String> {
    let settings = Settings { data_path: folder.to_owned(), ..Settings::default() };
    let options = Options { driver: DriverChoice::Auto, buffers: 16, ..Options::default() };
    let rehearsed = ring::run(options, |ring| async move { rehearse(&ring, &settings).await });
    rehearsed
        .map_err(|error| format!("can't start the runtime: {error}"))?
        .map_err(|error: master::MasterError| error.to_string())
}

/// Unix seconds of the last line that would be replayed.
fn last_change(folder: &Path, plan: &Plan) -> Option<u64> {
    let (name, part) = plan.journals.last()?;
    let bytes = fs::read(folder.join(name)).ok()?;
    let lines = bytes.get(usize::try_from(part.start).ok()?..usize::try_from(part.end).ok()?)?;
    let (_, line) = meta::journal::lines(lines).filter_map(|(at, line)| Some((at, line.ok()?))).last()?;
    Some(u64::from(meta::journal::parse(line).ok()?.timestamp.seconds()))
}

fn ago(at: u64) -> String {
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let seconds = now.saturating_sub(at);
    match seconds {
        0..=119 => format!("{seconds} seconds ago"),
        120..=7199 => format!("{} minutes ago", seconds / 60),
        _ => format!("{} hours ago", seconds / 3600),
    }
}

/// Errors: the folder holds metadata, which nothing of ours overwrites.
pub(crate) fn refuse_other_metadata(to: &Path) -> Result<(), String> {
    let entries = match fs::read_dir(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("{}: {error}", to.display())),
        Ok(entries) => entries,
    };
    for entry in entries {
        let name =
            entry.map_err(|error| format!("{}: {error}", to.display()))?.file_name().to_string_lossy().into_owned();
        let is_metadata =
            (name.starts_with("metadata") && name != "metadata.mfs.empty") || name.starts_with("changelog");
        if is_metadata || name == ".metadata.seen" {
            return Err(format!(
                "{} holds metadata already ({name}). If that master is lost for good, move its metadata*, changelog* \
                 and .metadata.seen to another place, and keep them",
                to.display()
            ));
        }
    }
    Ok(())
}

/// The folder that becomes a master's, and what is put there until all of it is.
struct Target {
    folder: PathBuf,
    /// Files lie here, under names that no master takes for metadata, until they are proven.
    incomplete: PathBuf,
    /// The folder was made for this.
    is_new: bool,
    /// The user and group that all of it belongs to.
    owner: (u32, u32),
}

impl Target {
    /// Makes the folder if it is not there: then it belongs to the master's WORKING_USER. Errors: it cannot be made.
    fn make(folder: &Path, of_master: &Config) -> Result<Target, String> {
        let is_new = !folder.exists();
        let at = |error: io::Error| format!("{}: {error}", folder.display());
        let owner = if is_new {
            let user = WorkingUser::of(of_master)?;
            fs::create_dir_all(folder).map_err(at)?;
            (user.uid, user.gid)
        } else {
            let there = fs::metadata(folder).map_err(at)?;
            (there.uid(), there.gid())
        };
        let target =
            Target { folder: folder.to_owned(), incomplete: folder.join(".promote-incomplete"), is_new, owner };
        if is_new {
            target.give(folder).map_err(|error| target.undo(at(error)))?;
        }
        // What an earlier attempt left when it was killed.
        let _ = fs::remove_dir_all(&target.incomplete);
        Ok(target)
    }

    /// Copies, replays the copy, and only then gives the files their names.
    fn fill(&self, from: &Path, files: &[String], there: &Rehearsed) -> Result<(), String> {
        let at = |error: io::Error| format!("{} -> {}: {error}", from.display(), self.folder.display());
        let fill = || {
            let seen = self.copy(from, files, there).map_err(at)?;
            let arrived = look(&self.incomplete)?;
            if (arrived.plan.meta_id, arrived.plan.to, arrived.digest)
                != (there.plan.meta_id, there.plan.to, there.digest)
            {
                return Err(format!(
                    "what arrived in {} is not what was sent: version {} with digest {}, not version {} with digest {}",
                    self.folder.display(),
                    arrived.plan.to,
                    arrived.digest,
                    there.plan.to,
                    there.digest
                ));
            }
            // First the note of how far the metadata came: with it a part of the files would be refused.
            for name in [seen].iter().chain(files) {
                fs::rename(self.incomplete.join(name), self.folder.join(name)).map_err(at)?;
            }
            fs::remove_dir(&self.incomplete).map_err(at)?;
            fs::File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(at)
        };
        fill().map_err(|why| {
            for name in files.iter().map(String::as_str).chain([SEEN]) {
                let _ = fs::remove_file(self.folder.join(name)); // nothing of these names was there before
            }
            self.undo(why)
        })
    }

    /// Gives the name of the note beside the files.
    fn copy(&self, from: &Path, files: &[String], there: &Rehearsed) -> io::Result<String> {
        fs::create_dir(&self.incomplete)?;
        for name in files {
            let path = self.incomplete.join(name);
            fs::copy(from.join(name), &path)?;
            self.give(&path)?;
            fs::File::open(&path)?.sync_all()?;
        }
        let path = self.incomplete.join(SEEN);
        fs::write(&path, seen(there.plan.meta_id, there.plan.to))?;
        self.give(&path)?;
        fs::File::open(&path)?.sync_all()?;
        fs::File::open(&self.incomplete)?.sync_all()?;
        Ok(SEEN.to_owned())
    }

    /// The master's user owns its folder, and so what is in it.
    fn give(&self, path: &Path) -> io::Result<()> {
        let now = fs::metadata(path)?;
        if (now.uid(), now.gid()) == self.owner || !rustix::process::geteuid().is_root() {
            return Ok(()); // an ordinary user cannot give away, and starts the master itself
        }
        std::os::unix::fs::chown(path, Some(self.owner.0), Some(self.owner.1))
    }

    /// Leaves nothing behind. Gives the error back.
    fn undo(&self, why: String) -> String {
        let _ = fs::remove_dir_all(&self.incomplete);
        if self.is_new {
            let _ = fs::remove_dir(&self.folder);
        }
        why
    }
}

#[cfg(test)]
mod tests {
    use meta::journal::Batch;
    use meta::{Namespace, Policy};
    use wire::{ChunkId, MetaId};

    use super::*;
    use crate::data_folder::{WRAPPED_HEAD_BYTES, WRAPPED_TAIL};

    /// A folder as a metalogger of ours keeps it: an image, and `changes` lines behind it. Gives the metadata.
    fn kept(folder: &Path, changes: u64) -> (Namespace, Batch) {
        let mut namespace = Namespace::new(MetaId(77), Policy::default(), 1_700_000_000);
        namespace.take_journal();
        let mut image = Vec::new();
        let keep = &mut |piece: &[u8]| -> Result<(), ()> {
            image.extend_from_slice(piece);
            Ok(())
        };
        meta::image::write(&namespace.freeze(), 1_700_000_000, keep).unwrap();
        let mut file = b"MFSM 2.0".to_vec();
        file.extend_from_slice(&[namespace.version().to_be_bytes(), 77u64.to_be_bytes()].concat());
        file.extend_from_slice(b"MOOR 1.0");
        file.extend_from_slice(&(image.len() as u64).to_be_bytes());
        assert_eq!(file.len() as u64, WRAPPED_HEAD_BYTES);
        file.extend_from_slice(&image);
        file.extend_from_slice(WRAPPED_TAIL);
        fs::write(folder.join("metadata_ml.mfs.back"), file).unwrap();
        for number in 0..changes {
            namespace.raise_next_chunk_id(1_700_000_001, ChunkId(1000 + number)).unwrap();
        }
        let lines = namespace.take_journal();
        fs::write(folder.join("changelog_ml.0.mfs"), &lines.bytes).unwrap();
        (namespace, lines)
    }

    fn go(from: &Path, to: &Path) -> Result<(), String> {
        promote(&Arguments { from: Some(from.to_owned()), to: Some(to.to_owned()), go: true })
    }

    #[test]
    fn the_copy_is_replayed_and_says_how_far_it_came() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("kept"), folder.path().join("master"));
        fs::create_dir(&from).unwrap();
        let (namespace, _) = kept(&from, 20);
        let there = look(&from).unwrap();
        assert_eq!((there.plan.to, there.digest, there.changes), (namespace.version(), namespace.digest(), 20));
        fs::create_dir(&to).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        if is_root {
            std::os::unix::fs::chown(&to, Some(4711), Some(4712)).unwrap();
        }
        go(&from, &to).unwrap();
        let note = fs::read_to_string(to.join(SEEN)).unwrap();
        assert_eq!(note, seen(MetaId(77), namespace.version()));
        assert_eq!(look(&to).unwrap().digest, namespace.digest());
        for entry in fs::read_dir(&to).unwrap() {
            let entry = entry.unwrap();
            let owner = entry.metadata().unwrap();
            assert!(!is_root || (owner.uid(), owner.gid()) == (4711, 4712), "{:?}", entry.path());
            assert!(!entry.file_name().to_string_lossy().contains("incomplete"));
        }
    }

    #[test]
    fn a_new_folder_belongs_to_the_working_user() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("kept"), folder.path().join("some/where"));
        fs::create_dir(&from).unwrap();
        kept(&from, 1);
        let config = Config::parse(b"WORKING_USER = #4711\nWORKING_GROUP = #4712\n", Path::new("test"));
        let target = Target::make(&to, &config).unwrap();
        target.fill(&from, &kept_files(&from).unwrap(), &look(&from).unwrap()).unwrap();
        for path in [&to, &to.join(SEEN), &to.join("changelog_ml.0.mfs")] {
            let owner = fs::metadata(path).unwrap();
            let is_root = rustix::process::geteuid().is_root();
            assert!(!is_root || (owner.uid(), owner.gid()) == (4711, 4712), "{}", path.display());
        }
    }

    #[test]
    fn lines_that_cannot_be_replayed_are_found_before_anything_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("kept"), folder.path().join("master"));
        fs::create_dir(&from).unwrap();
        let (namespace, lines) = kept(&from, 3);
        // A sound line that contradicts the metadata: a chunk is deleted that never was.
        let mut bad = lines.bytes.clone();
        let change = meta::change::Change::ChunkDelete { chunk: ChunkId(5), version: wire::Version(1) };
        meta::journal::format(namespace.version(), 1_700_000_001.into(), &change, &Default::default(), &mut bad);
        fs::write(from.join("changelog_ml.0.mfs"), bad).unwrap();
        let refused = go(&from, &to).unwrap_err();
        assert!(refused.contains("changelog_ml.0.mfs"), "{refused}");
        assert!(!to.exists());
    }

    #[test]
    fn a_copy_that_fails_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("kept"), folder.path().join("master"));
        fs::create_dir(&from).unwrap();
        kept(&from, 3);
        fs::create_dir(from.join("changelog_ml.9.mfs")).unwrap(); // the last to be copied, and no file
        assert!(go(&from, &to).is_err());
        assert!(!to.exists());
        fs::create_dir(&to).unwrap();
        assert!(go(&from, &to).is_err());
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0);
    }

    #[test]
    fn two_histories_are_refused_with_both_files_and_the_change_named() {
        let folder = tempfile::tempdir().unwrap();
        let (namespace, lines) = kept(folder.path(), 9);
        let first = lines.first;
        let text = String::from_utf8(lines.bytes.clone()).unwrap();
        let mut parting = text.lines().take(4).collect::<Vec<_>>().join("\n").into_bytes();
        parting.push(b'\n');
        let idle = meta::change::Change::Idle {};
        for version in first + 4..namespace.version() + 5 {
            meta::journal::format(version, 1_700_000_009.into(), &idle, &Default::default(), &mut parting);
        }
        fs::write(folder.path().join("changelog_ml.1.mfs"), parting).unwrap();
        let refused = look(folder.path()).err().unwrap();
        let named = ["changelog_ml.0.mfs", "changelog_ml.1.mfs", &format!("change {} ", first + 4), "move the journal"];
        assert!(named.iter().all(|word| refused.contains(word)), "{refused}");
    }
}
