//! `mooring import`, `mooring export` and `mfsmetadump`: MooseFS's `metadata.mfs` in, out, and as text. Spec 50 and 71.
//!
//! Import and export work on a master that does not run, read its files and write another one, and never touch what
//! they read: the way back stays open. `moosefs` finds and loads what a MooseFS master left, `in_place` is
//! `mfsmaster -a` in its own folder, `restore` is `mfsmetarestore`, `dirinfo` is `mfsmetadirinfo`.

pub mod dirinfo;
mod in_place;
mod moosefs;
mod new_file;
pub mod restore;

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meta::stock::{self, Dump, StockError};
use meta::{Namespace, Policy, image};
use wire::MetaId;

use self::moosefs::{Files, Image, Kind};
use crate::data_folder::{self, CLEAN};
use crate::promote::refuse_other_metadata;

pub(crate) use self::in_place::take_over;

const PIECE_BYTES: usize = 1 << 20;

/// Take over a MooseFS cluster: make a Mooring master's metadata of a MooseFS master's metadata.mfs
#[derive(Debug, Clone, clap::Args)]
pub struct ImportArguments {
    /// The folder (DATA_PATH) of a MooseFS master that does not run, or of its metalogger, or one image in it
    /// (metadata.mfs, metadata.mfs.back, metadata_ml.mfs.back); changes in the change logs beside it come along
    #[arg(value_name = "FOLDER|FILE")]
    from: PathBuf,
    /// The new master's folder (DATA_PATH), without metadata so far
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Go on without the changes from this version on; an import that was refused names it
    #[arg(long, value_name = "VERSION")]
    lose_changes_from: Option<u64>,
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
    let from = &arguments.from;
    refuse_other_metadata(&arguments.to)?;
    let folder = if from.is_dir() { from.as_path() } else { folder_of(from) };
    moosefs::refuse_running(folder)?;
    let mut files = Files::find(folder)?;
    if from.is_dir() {
        refuse_ours(&files, folder)?;
        files.images.retain(|image| image.kind == Kind::MooseFs);
    } else {
        let image = Image::look(from)?.filter(|image| image.kind == Kind::MooseFs);
        let image = image.ok_or_else(|| at(from, StockError::NotStock))?;
        files.others = std::mem::replace(&mut files.images, vec![image]);
    }
    let loaded = moosefs::load(&files, arguments.lose_changes_from)?;
    loaded.describe().iter().for_each(|line| say(line));
    let mut namespace = loaded.namespace;
    let now = now();
    give_identity(&mut namespace, now);
    describe(&namespace);
    std::fs::create_dir_all(&arguments.to).map_err(|error| at(&arguments.to, error))?;
    let to = arguments.to.join(CLEAN);
    new_file::write_durably(&to, &mut |sink| image::write(&namespace.freeze(), now, sink).map(drop))?;
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
    let in_doubt: Vec<String> =
        namespace.chunks().filter(|chunk| !chunk.is_settled()).map(|chunk| chunk.id.to_string()).collect();
    if !in_doubt.is_empty() {
        say(&format!(
            "note          {} chunks have a change in doubt, whose copies may differ in version, which MooseFS does not \
             heal: start this master with all chunkservers, wait half a minute, stop it and export again. They are {}",
            in_doubt.len(),
            in_doubt.join(" ")
        ));
    }
    let now = now();
    new_file::write_durably(&arguments.to, &mut |sink| stock::write(&namespace, now, sink))?;
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

/// Errors: the folder is a master's or metalogger's of ours.
fn refuse_ours(files: &Files, folder: &Path) -> Result<(), String> {
    match files.images.iter().find(|image| image.kind == Kind::Ours) {
        Some(image) => Err(format!(
            "{} is of a Mooring master: a start in {} goes on from it, and nothing is to be imported (from a \
             metalogger's folder: mooring promote)",
            image.path.display(),
            folder.display()
        )),
        None => Ok(()),
    }
}

/// Metadata that never had an identity get one.
fn give_identity(namespace: &mut Namespace, now: u32) {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    stock::name(namespace, MetaId(u64::from(now) << 32 | random & 0xFFFF_FFFF), now);
}

fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
    let first = File::open(path).and_then(|file| first_bytes(&file)).map_err(|error| at(path, error))?;
    Ok(data_folder::is_ours(&first))
}

/// What tells whose a file is.
fn first_bytes(file: &File) -> io::Result<Vec<u8>> {
    let mut first = Vec::new();
    file.take(256).read_to_end(&mut first)?;
    Ok(first)
}

/// Loads an image of ours, a master's or a metalogger's.
fn load_ours(path: &Path) -> Result<Namespace, String> {
    let mut file = File::open(path).map_err(|error| at(path, error))?;
    let bytes = || -> io::Result<std::ops::Range<u64>> {
        let (first, size) = (first_bytes(&file)?, file.metadata()?.len());
        Ok(data_folder::image_bytes(&first, size))
    };
    let bytes = bytes().map_err(|error| at(path, error))?;
    file.seek(SeekFrom::Start(bytes.start)).map_err(|error| at(path, error))?;
    let size = bytes.end.saturating_sub(bytes.start);
    let (mut loader, image) = (image::Loader::new(size), file.take(size));
    take_pieces(path, image, |piece| loader.push(piece).map_err(|error| error.to_string()))?;
    loader.finish(Policy::default()).map_err(|error| at(path, error))
}

fn read_pieces(path: &Path, take: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
    take_pieces(path, File::open(path).map_err(|error| at(path, error))?, take)
}

/// `path` is for what goes wrong.
fn take_pieces(
    path: &Path,
    mut file: impl io::Read,
    mut take: impl FnMut(&[u8]) -> Result<(), String>,
) -> Result<(), String> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece).map_err(|error| at(path, error))? {
            0 => return Ok(()),
            count => take(&piece[..count]).map_err(|error| at(path, error))?,
        }
    }
}

fn describe(namespace: &Namespace) {
    let (totals, sizes) = (namespace.totals(), namespace.sizes());
    let changes = namespace.version().saturating_sub(1);
    say(&format!("file system   {}, changes up to {changes}", namespace.meta_id()));
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
mod tests;
