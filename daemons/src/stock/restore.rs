//! `mfsmetarestore`: the metadata of a master that crashed, recovered without starting it. Spec 71, 3.
//!
//! MooseFS 3.0.117 has only a script of this name, which says that it is no more and reports success. Here it does what
//! that of 1.6 did, for MooseFS's folders and for ours, in the format of what it reads; it says how many changes it applied,
//! and fails if there is one that it could not apply.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meta::{image, stock};
use ring::{DriverChoice, Options};

use super::moosefs::{self, Files, Image, Kind, Loaded};
use super::new_file::{self, Incomplete};
use super::{CLEAN, at, describe, now, say, status};
use crate::config;
use crate::master::{self, Settings};
use crate::process::MASTER;

/// Recover a crashed master's metadata without starting it (mfsmetarestore)
#[derive(Debug, Clone, clap::Args)]
#[command(arg_required_else_help = true)]
pub struct Arguments {
    /// Find the newest image and the change logs behind it in the data folder, and store the result there as metadata.mfs
    #[arg(short = 'a', conflicts_with_all = ["image", "to", "logs"], required_unless_present = "image")]
    automatically: bool,
    /// The data folder [default: DATA_PATH of mfsmaster.cfg]
    #[arg(short = 'd', value_name = "FOLDER", requires = "automatically")]
    folder: Option<PathBuf>,
    /// The image to begin with
    #[arg(short = 'm', value_name = "IMAGE", requires = "to")]
    image: Option<PathBuf>,
    /// The file to write; it must not be there
    #[arg(short = 'o', value_name = "FILE", requires = "image")]
    to: Option<PathBuf>,
    /// Not supported: damaged metadata is refused rather than guessed at
    #[arg(short = 'i')]
    ignore_errors: bool,
    /// Accepted and not needed: what is done is said
    #[arg(short = 'x', action = clap::ArgAction::Count)]
    verbosely: u8,
    /// Go on without the changes from this version on; a restore that was refused names it
    #[arg(long, value_name = "VERSION")]
    lose_changes_from: Option<u64>,
    /// Change logs that follow the image, in any order
    #[arg(value_name = "CHANGELOG", requires = "image")]
    logs: Vec<PathBuf>,
}

pub fn run(arguments: &Arguments) -> ExitCode {
    status("mfsmetarestore", restore(arguments))
}

fn restore(arguments: &Arguments) -> Result<(), String> {
    if arguments.ignore_errors {
        return Err("option -i is not supported: damaged metadata is refused rather than guessed at".to_owned());
    }
    match (&arguments.image, &arguments.to) {
        (Some(image), Some(to)) => restore_files(arguments, image, to),
        _ => restore_folder(arguments),
    }
}

/// `-m IMAGE -o FILE CHANGELOG...`
fn restore_files(arguments: &Arguments, image: &Path, to: &Path) -> Result<(), String> {
    new_file::refuse_existing(to)?;
    let image = Image::look(image)?.ok_or_else(|| at(image, "this is no metadata image"))?;
    let files = Files { images: vec![image], others: Vec::new(), logs: arguments.logs.clone(), logs_are_named: true };
    let loaded = moosefs::load(&files, arguments.lose_changes_from)?;
    if loaded.applied == 0 && arguments.lose_changes_from.is_none() {
        refuse_logs_beside(&loaded, &arguments.logs)?;
    }
    loaded.describe().iter().for_each(|line| say(line));
    describe(&loaded.namespace);
    write(loaded, to)?.place(to)?;
    say(&format!("\n{} is ready.", to.display()));
    Ok(())
}

/// Errors: no change was applied, and a change log that nobody named lies beside the image and goes on from there.
fn refuse_logs_beside(loaded: &Loaded, named: &[PathBuf]) -> Result<(), String> {
    let folder = match loaded.image.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name_of = |path: &PathBuf| path.file_name().map(std::ffi::OsStr::to_owned);
    for path in Files::find(folder)?.logs {
        let is_named = named.iter().any(|other| name_of(other) == name_of(&path));
        let last = moosefs::last_change(loaded.kind, &path)?;
        if let Some(last) = last.filter(|last| !is_named && *last >= loaded.namespace.version()) {
            return Err(format!(
                "no change was applied, but {} beside {} goes on to change {last}: name the change logs behind the \
                 image (-m IMAGE -o FILE CHANGELOG...), or let them be found with -a -d {}",
                path.display(),
                loaded.image.display(),
                folder.display()
            ));
        }
    }
    Ok(())
}

/// `-a [-d FOLDER]`
fn restore_folder(arguments: &Arguments) -> Result<(), String> {
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => {
            let (config, _) = config::find(&MASTER.config_file(), None).map_err(|error| error.to_string())?;
            config.path("DATA_PATH", "/var/lib/mfs")
        }
    };
    moosefs::refuse_running(&folder)?;
    let files = Files::find(&folder)?;
    let loaded = match files.has_ours() {
        true => load_as_a_start(&folder, arguments.lose_changes_from)?,
        false => moosefs::load(&files, arguments.lose_changes_from)?,
    };
    loaded.describe().iter().for_each(|line| say(line));
    describe(&loaded.namespace);
    let target = folder.join(CLEAN);
    if loaded.image == target && loaded.applied == 0 {
        say(&format!("\n{} is whole already, and no change follows it: nothing was changed.", target.display()));
        return Ok(());
    }
    let applied = loaded.applied;
    let incomplete = write(loaded, &target)?;
    if fs::symlink_metadata(&target).is_ok() {
        let aside = folder.join(format!("{CLEAN}.before-restore-{}", now()));
        new_file::move_aside(&target, &aside)?;
        say(&format!("note          the {CLEAN} that was there is now {}", aside.display()));
    }
    incomplete.place(&target)?;
    say(&format!("\n{} is ready, with {applied} changes from the change logs.", target.display()));
    Ok(())
}

/// The metadata that a start of our master would have.
fn load_as_a_start(folder: &Path, lose_changes_from: Option<u64>) -> Result<Loaded, String> {
    let settings = Settings { data_path: folder.to_owned(), lose_changes_from, ..Settings::default() };
    let options = Options { driver: DriverChoice::Auto, buffers: 16, ..Options::default() };
    let rehearsed = ring::run(options, |ring| async move { master::recovered(&ring, &settings).await });
    let (rehearsed, namespace) = rehearsed
        .map_err(|error| format!("can't start the runtime: {error}"))?
        .map_err(|error: master::MasterError| error.to_string())?;
    Ok(Loaded {
        namespace,
        kind: Kind::Ours,
        image: folder.join(&rehearsed.plan.image),
        from: rehearsed.plan.from,
        logs: rehearsed.plan.journals.len(),
        applied: rehearsed.changes,
        notes: rehearsed.plan.remarks,
    })
}

/// In the format that it was read in.
fn write(loaded: Loaded, to: &Path) -> Result<Incomplete, String> {
    let (mut namespace, now) = (loaded.namespace, now());
    Incomplete::write(to, &mut |sink| match loaded.kind {
        Kind::MooseFs => stock::write(&namespace, now, sink),
        Kind::Ours => image::write(&namespace.freeze(), now, sink).map(drop),
    })
}

#[cfg(test)]
mod tests {
    use meta::{Namespace, Policy};
    use wire::{ChunkId, MetaId};

    use super::*;

    /// What a killed master of ours leaves: an image, and changes behind it.
    fn killed(folder: &Path) -> Namespace {
        let mut namespace = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
        namespace.take_journal();
        fs::write(folder.join("metadata.mfs.back"), image::to_bytes(&namespace.freeze(), 0)).expect("written");
        for number in 0..5 {
            namespace.raise_next_chunk_id(1_795_300_001, ChunkId(1000 + number)).expect("a change");
        }
        fs::write(folder.join("changelog.0.mfs"), namespace.take_journal().bytes).expect("written");
        namespace
    }

    fn arguments(words: &[&str]) -> Arguments {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: Arguments,
        }
        let line: Line = clap::Parser::try_parse_from([&["mfsmetarestore"], words].concat()).expect("a command line");
        line.arguments
    }

    fn ours(path: &Path) -> Namespace {
        super::super::load_ours(path).expect("our image")
    }

    #[test]
    fn a_folder_of_ours_gets_the_image_that_a_start_would_have() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = killed(folder.path());
        let (path, clean) = (folder.path().display().to_string(), folder.path().join(CLEAN));
        assert_eq!(restore(&arguments(&["-a", "-d", &path])), Ok(()));
        assert_eq!(ours(&clean).digest(), expected.digest());
        let before = fs::metadata(&clean).and_then(|file| file.modified()).expect("a file");
        assert_eq!(restore(&arguments(&["-a", "-d", &path])), Ok(()), "nothing is left to do");
        assert_eq!(fs::metadata(&clean).and_then(|file| file.modified()).expect("a file"), before);
        // An older one goes aside.
        fs::copy(folder.path().join("metadata.mfs.back"), &clean).expect("copied");
        assert_eq!(restore(&arguments(&["-a", "-d", &path])), Ok(()));
        assert_eq!(ours(&clean).digest(), expected.digest());
        let names = fs::read_dir(folder.path()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
        assert!(names.into_iter().any(|name| name.to_string_lossy().contains(".before-restore-")));
    }

    #[test]
    fn what_a_metalogger_of_ours_kept_is_read_as_our_metadata() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = killed(folder.path());
        let text = |name: &str| folder.path().join(name).display().to_string();
        let (image, log, to) = (text("metadata_ml.mfs.back"), text("changelog.0.mfs"), text("restored"));
        let bytes = fs::read(text("metadata.mfs.back")).expect("readable");
        let version = crate::data_folder::header(&bytes).expect("an image").version;
        let mut wrapped = [&b"MFSM 2.0"[..], &version.to_be_bytes(), &7u64.to_be_bytes(), b"MOOR 1.0"].concat();
        wrapped.extend_from_slice(&(bytes.len() as u64).to_be_bytes());
        wrapped.extend_from_slice(&bytes);
        wrapped.extend_from_slice(crate::data_folder::WRAPPED_TAIL);
        fs::write(&image, &wrapped).expect("written");
        assert_eq!(restore(&arguments(&["-m", &image, "-o", &to, &log])), Ok(()));
        assert_eq!(ours(Path::new(&to)).digest(), expected.digest());
        // mfsmetadump and mfsmetadirinfo begin with these.
        assert_eq!(super::super::is_ours(Path::new(&image)), Ok(true));
        assert_eq!(ours(Path::new(&image)).version(), version);
        let other = text("other");
        for cut in [20, 39, 40, 41, 100, wrapped.len() - 17, wrapped.len() - 1] {
            fs::write(&image, &wrapped[..cut]).expect("written");
            restore(&arguments(&["-m", &image, "-o", &other, &log])).expect_err("it is cut");
            assert!(!Path::new(&other).exists(), "cut at {cut}");
        }
    }

    #[test]
    fn files_that_are_named_are_used_and_what_they_lack_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let expected = killed(folder.path());
        let text = |name: &str| folder.path().join(name).display().to_string();
        let (image, log, to) = (text("metadata.mfs.back"), text("changelog.0.mfs"), text("restored"));
        assert_eq!(restore(&arguments(&["-m", &image, "-o", &to, &log])), Ok(()));
        assert_eq!(ours(Path::new(&to)).digest(), expected.digest());
        let taken = restore(&arguments(&["-m", &image, "-o", &to, &log])).expect_err("the file is there");
        assert!(taken.contains("is there already"), "{taken}");
        let lines = fs::read_to_string(&log).expect("readable");
        let without_first: String = lines.split_inclusive('\n').skip(1).collect();
        fs::write(&log, without_first).expect("written");
        let other = text("other");
        let gap = restore(&arguments(&["-m", &image, "-o", &other, &log])).expect_err("the first change is missing");
        assert!(gap.contains("are missing") && !Path::new(&other).exists(), "{gap}");
        // No log is named, and one lies beside the image.
        let all = fs::read(&log).expect("readable");
        fs::write(&log, &lines).expect("written");
        let none = restore(&arguments(&["-m", &image, "-o", &other])).expect_err("changes follow");
        assert!(none.contains("no change was applied") && none.contains("changelog.0.mfs"), "{none}");
        assert!(!Path::new(&other).exists());
        fs::write(&log, all).expect("written");
        // Packed or damaged: nothing in it is a line.
        for bytes in [&b"\x1f\x8b\x08\n\xA7\n\xA7\n"[..], b"2: 17953"] {
            fs::write(&log, bytes).expect("written");
            let refused = restore(&arguments(&["-m", &image, "-o", &other, &log])).expect_err("nothing can be read");
            assert!(refused.contains("changelog.0.mfs: line 1: there is no whole line"), "{refused}");
        }
        fs::write(&log, "").expect("written");
        assert_eq!(restore(&arguments(&["-m", &image, "-o", &other, &log])), Ok(()), "an empty one lacks nothing");
        fs::remove_file(&other).expect("removed");
        assert!(restore(&arguments(&["-m", &log, "-o", &other])).expect_err("a log").contains("no metadata image"));
        assert!(restore(&arguments(&["-a", "-i", "-d", "/"])).expect_err("guessing").contains("-i is not supported"));
    }
}
