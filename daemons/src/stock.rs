//! `mooring import`, `mooring export` and `mfsmetadump`: MooseFS's `metadata.mfs` in, out, and as text. Spec 50 and 71.
//!
//! Import and export work on a master that was stopped in order, read one file and write another, and never touch what
//! they read: the way back stays open.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meta::stock::{self, Dump, StockError};
use meta::{Namespace, Policy, image};
use wire::MetaId;

use crate::master::FILE_MODE;
use crate::process::{self, MASTER};
use crate::promote::refuse_other_metadata;

/// What a master that was stopped in order leaves, MooseFS's and ours.
const CLEAN: &str = "metadata.mfs";
const PIECE_BYTES: usize = 1 << 20;

/// Take over a MooseFS cluster: make a Mooring master's metadata of a MooseFS master's metadata.mfs
#[derive(Debug, Clone, clap::Args)]
pub struct ImportArguments {
    /// metadata.mfs of a MooseFS master that was stopped in order (mfsmaster stop), or the folder that holds it
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// The new master's folder (DATA_PATH), without metadata so far
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
}

/// The way back: make a metadata.mfs for MooseFS 3.0.117 of a Mooring master's metadata
#[derive(Debug, Clone, clap::Args)]
pub struct ExportArguments {
    /// The folder (DATA_PATH) of a Mooring master that was stopped in order, or its metadata.mfs
    #[arg(long, value_name = "FOLDER")]
    from: PathBuf,
    /// The file to write; it must not be there
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
}

/// Print a metadata file as text (mfsmetadump)
#[derive(Debug, Clone, clap::Args)]
pub struct DumpArguments {
    /// Points instead of bytes that cannot be printed
    #[arg(short = 'd')]
    dots: bool,
    /// Only this section: HEAD, SESS, LABS, SCLA, NODE, EDGE, FREE, QUOT, XATR, PACL, OPEN, FLCK, PLCK, CSDB, CHNK
    #[arg(short = 's', value_name = "SECTION", value_parser = letters)]
    section: Option<[u8; 4]>,
    /// metadata.mfs, of MooseFS or of Mooring
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

fn letters(text: &str) -> Result<[u8; 4], String> {
    text.as_bytes().try_into().map_err(|_| "a section's name has four letters".to_owned())
}

pub fn import(arguments: &ImportArguments) -> ExitCode {
    status("mooring import", try_import(arguments))
}

pub fn export(arguments: &ExportArguments) -> ExitCode {
    status("mooring export", try_export(arguments))
}

pub fn dump(arguments: &DumpArguments) -> ExitCode {
    status("mfsmetadump", try_dump(arguments))
}

fn status(program: &str, result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{program}: {why}");
            ExitCode::FAILURE
        }
    }
}

fn try_import(arguments: &ImportArguments) -> Result<(), String> {
    let from = file_in(
        &arguments.from,
        "a MooseFS master leaves it when it is stopped in order: start it once (mfsmaster -a after a crash) and stop it",
    )?;
    refuse_other_metadata(&arguments.to)?;
    let folder = from.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(pid) = process::owner(&folder.join(MASTER.lock_file()))? {
        let (folder, pid) = (folder.display(), pid.as_raw_nonzero());
        return Err(format!(
            "mfsmaster runs in {folder} (pid {pid}): what it changes from now on would be lost; stop it"
        ));
    }
    let now = now();
    let mut loader = stock::Loader::new();
    let beside = from.with_file_name("sessions.mfs");
    if let Ok(sessions) = fs::read(&beside)
        && let Err(why) = loader.sessions(&sessions)
    {
        say(&format!("note          {why}; mounts must be mounted again"));
    }
    read_pieces(&from, |piece| loader.push(piece).map_err(|error| error.to_string()))?;
    let imported = loader.finish(Policy::default(), now).map_err(|error| at(&from, error))?;
    let mut namespace = imported.namespace;
    refuse_later_changes(folder, &from, namespace.version())?;
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    stock::name(&mut namespace, MetaId(u64::from(now) << 32 | random & 0xFFFF_FFFF), now);
    for note in &imported.notes {
        say(&format!("note          {note}"));
    }
    describe(&namespace);
    fs::create_dir_all(&arguments.to).map_err(|error| at(&arguments.to, error))?;
    let to = arguments.to.join(CLEAN);
    write_durably(&to, |sink| image::write(&namespace.freeze(), now, sink).map(drop))?;
    say(&format!(
        "\n{} is ready, {} is as it was. Start the master on the address of the old one: mounts and chunkservers go on \
         by themselves.",
        to.display(),
        from.display()
    ));
    Ok(())
}

fn try_export(arguments: &ExportArguments) -> Result<(), String> {
    let from =
        file_in(&arguments.from, "a Mooring master leaves it when it is stopped in order: start it once and stop it")?;
    let namespace = load_ours(&from)?;
    describe(&namespace);
    let now = now();
    write_durably(&arguments.to, |sink| stock::write(&namespace, now, sink))?;
    say(&format!(
        "\n{} is ready for MooseFS 3.0.117. Put it as {CLEAN} into a data folder without other metadata and start \
         mfsmaster on the address of this master.",
        arguments.to.display()
    ));
    Ok(())
}

fn try_dump(arguments: &DumpArguments) -> Result<(), String> {
    let mut dump = Dump::new(arguments.dots, arguments.section);
    let mut print = |piece: &[u8]| -> Result<(), String> {
        let (text, result) = dump.push(piece);
        // Whoever closes the pipe early has read enough.
        io::stdout().write_all(&text).map_err(|error| format!("standard output: {error}"))?;
        result.map_err(|error| match error {
            StockError::New => "empty file".to_owned(),
            other => other.to_string(),
        })
    };
    let path = &arguments.file;
    if is_ours(path)? {
        let namespace = load_ours(path)?;
        stock::write(&namespace, now(), &mut print)?;
    } else {
        read_pieces(path, print)?;
    }
    dump.finish().map_err(|error| at(path, error))
}

/// Errors: a change log beside the file has changes that the file does not: `version` is that of its next one.
fn refuse_later_changes(folder: &Path, file: &Path, version: u64) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(|error| at(folder, error))? {
        let entry = entry.map_err(|error| at(folder, error))?;
        let name = entry.file_name();
        let is_log = name.to_str().is_some_and(|name| name.starts_with("changelog") && name.ends_with(".mfs"));
        if !is_log {
            continue;
        }
        let lines = fs::read(entry.path()).map_err(|error| at(&entry.path(), error))?;
        let parts = stock::changelog::parts(&lines);
        if let Some(last) = parts.iter().filter_map(|part| part.versions).map(|(_, last)| last).max()
            && last >= version
        {
            return Err(format!(
                "{} ends before change {version}, but {} goes on to {last}: what is in it would be lost. The MooseFS \
                 master was not stopped in order: start it once with mfsmaster -a, stop it, and import the {CLEAN} that \
                 it leaves",
                file.display(),
                entry.path().display()
            ));
        }
    }
    Ok(())
}

/// The file itself, or the clean image in a folder.
fn file_in(path: &Path, way_out: &str) -> Result<PathBuf, String> {
    if !path.is_dir() {
        return Ok(path.to_owned());
    }
    let file = path.join(CLEAN);
    if file.exists() { Ok(file) } else { Err(format!("{} is not there; {way_out}", file.display())) }
}

fn is_ours(path: &Path) -> Result<bool, String> {
    let mut first = [0; 8];
    let read = File::open(path).and_then(|mut file| file.read(&mut first)).map_err(|error| at(path, error))?;
    Ok(first[..read].starts_with(b"MOORMETA"))
}

fn load_ours(path: &Path) -> Result<Namespace, String> {
    let mut loader = image::Loader::new();
    read_pieces(path, |piece| loader.push(piece).map_err(|error| error.to_string()))?;
    loader.finish(Policy::default()).map_err(|error| at(path, error))
}

fn read_pieces(path: &Path, mut take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| at(path, error))?;
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(|error| at(path, error))? {
            0 => return Ok(()),
            count => take(&piece[..count]).map_err(|error| at(path, error))?,
        }
    }
}

/// A new file, whole or not at all, of the folder's owner: the master's user must be able to read and rename it.
fn write_durably(
    path: &Path,
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> Result<(), String> {
    if path.exists() {
        return Err(format!("{} is there already, and nothing is overwritten", path.display()));
    }
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| format!("{} names no file", path.display()))?;
    // A name that no master takes for metadata.
    let temporary = folder.join(format!(".{}.incomplete", name.to_string_lossy()));
    let write = || -> io::Result<()> {
        let owner = fs::metadata(folder)?;
        let mut how = OpenOptions::new();
        let mut file = how.write(true).create(true).truncate(true).mode(FILE_MODE).open(&temporary)?;
        fill(&mut |piece| file.write_all(piece))?;
        std::os::unix::fs::chown(&temporary, Some(owner.uid()), Some(owner.gid()))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        at(path, error)
    })
}

fn describe(namespace: &Namespace) {
    let (totals, sizes) = (namespace.totals(), namespace.sizes());
    say(&format!("file system   {}, changes up to {}", namespace.meta_id(), namespace.version() - 1));
    say(&format!("nodes         {} ({} directories, {} files)", totals.nodes, totals.dirs, totals.files));
    say(&format!("chunks        {}", sizes.chunks));
}

fn at(path: &Path, error: impl std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}

/// Prints a line. Whoever closes the pipe early has read enough: what is to be done is done all the same.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

/// Unix seconds.
fn now() -> u32 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| u32::try_from(since.as_secs()).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import_of(file: &Path, to: PathBuf) -> Result<(), String> {
        try_import(&ImportArguments { from: file.to_owned(), to })
    }

    #[test]
    fn an_image_that_its_change_logs_go_beyond_is_not_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let namespace = Namespace::new(MetaId(7), Policy::default(), 1_795_300_000);
        let version = namespace.version();
        let back = folder.path().join("metadata.mfs.back");
        fs::write(&back, stock::to_bytes(&namespace, 0)).expect("the image is written");
        let log = folder.path().join("changelog.0.mfs");
        fs::write(&log, format!("{version}: 1795300001|ACCESS(1)\n{}: 17953", version + 1))
            .expect("the log is written");
        let to = folder.path().join("new");
        let refused = import_of(&back, to.clone()).expect_err("a change would be lost");
        assert!(refused.contains("changelog.0.mfs") && refused.contains("mfsmaster -a"), "{refused}");
        assert!(!to.join(CLEAN).exists());
        fs::write(&log, format!("{}: 1795300001|ACCESS(1)\n", version - 1)).expect("the log is written");
        import_of(&back, to.clone()).expect("the image has all that the log has");
        assert!(to.join(CLEAN).exists());
    }
}
