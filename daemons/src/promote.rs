//! `mooring promote`: what a metalogger keeps becomes a master's data folder. Spec 42, B and C.6.
//!
//! The last step of a bad day, so it first says what would be, changes nothing until it is told to, never touches what
//! the metalogger keeps, and never writes into a folder that holds other metadata.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use meta::recovery::Plan;
use ring::{DriverChoice, Options};

use crate::config;
use crate::master::{self, Settings, examine};
use crate::process::{MASTER, METALOGGER};

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
        None => data_path(&METALOGGER.config_file())?,
    };
    let to = match &arguments.to {
        Some(folder) => folder.clone(),
        None => data_path(&MASTER.config_file())?,
    };
    let files = kept_files(&from)?;
    let plan = look(&from)?;
    say(&format!("file system   {}", plan.meta_id));
    say(&format!("image         {} (changes up to {})", plan.image, plan.from.saturating_sub(1)));
    say(&format!("journal       {} files, changes up to {}", plan.journals.len(), plan.to.saturating_sub(1)));
    match last_change(&from, &plan) {
        Some(at) => say(&format!("last change   {}", ago(at))),
        None => say("last change   in the image"),
    }
    for remark in &plan.remarks {
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
    if !is_same {
        copy_all(&from, &to, &files).map_err(|error| format!("{} -> {}: {error}", from.display(), to.display()))?;
        let arrived = look(&to)?;
        if (arrived.meta_id, arrived.to) != (plan.meta_id, plan.to) {
            return Err(format!(
                "{}: what arrived is not what was sent; is the metalogger still running?",
                to.display()
            ));
        }
    }
    say(&format!("\n{} is ready. Now {start}.", to.display()));
    Ok(())
}

/// Prints a line. Whoever closes the pipe early has read enough: what is to be done is done all the same.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn data_path(config_file: &str) -> Result<PathBuf, String> {
    let (config, _) = config::find(config_file, None).map_err(|error| error.to_string())?;
    Ok(config.path("DATA_PATH", "/var/lib/mfs"))
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
    if read.is_err() || !first.ends_with(b"MOOR") {
        return Err(format!(
            "{0}: {image} is of a MooseFS master. With what it has, without the changes behind it, `mooring import \
             {0}/{image} --to FOLDER` makes a folder of ours; to have them all, copy the metadata_ml and changelog_ml \
             files into the data folder of a MooseFS master, start it with mfsmaster -a, stop it, and import that folder",
            from.display()
        ));
    }
    files.sort();
    Ok(files)
}

/// What a start from this folder would do.
fn look(folder: &Path) -> Result<Plan, String> {
    let settings = Settings { data_path: folder.to_owned(), ..Settings::default() };
    let options = Options { driver: DriverChoice::Auto, buffers: 16, ..Options::default() };
    let examined = ring::run(options, |ring| async move { examine(&ring, &settings).await });
    examined
        .map_err(|error| format!("can't start the runtime: {error}"))?
        .map_err(|error: master::MasterError| error.to_string())
}

/// Unix seconds of the last line that would be replayed.
fn last_change(folder: &Path, plan: &Plan) -> Option<u64> {
    let (name, part) = plan.journals.last()?;
    let bytes = fs::read(folder.join(name)).ok()?;
    let lines = bytes.get(usize::try_from(part.start).ok()?..usize::try_from(part.end).ok()?)?;
    let (_, line) = meta::journal::lines(lines).filter_map(|(at, line)| Some((at, line.ok()?))).last()?;
    Some(u64::from(meta::journal::parse(line).ok()?.timestamp))
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

fn copy_all(from: &Path, to: &Path, files: &[String]) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    fs::create_dir_all(to)?;
    let owner = fs::metadata(to)?;
    for name in files {
        let path = to.join(name);
        fs::copy(from.join(name), &path)?;
        // The master's user owns its folder, and so what is in it.
        std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
        fs::File::open(&path)?.sync_all()?;
    }
    fs::File::open(to)?.sync_all()
}
