//! `mooring probe FOLDER...`: what the disks under some folders can do, and lines for `mfschunkserver.cfg` that follow
//! from it.
//!
//! It works in one file per folder, whose name is removed before anything is written to it: whatever ends the program,
//! nothing stays behind. Nothing else in the folder is opened. `disk` is what the system says, `measure` what is
//! measured, `proposal` (pure) what follows.

mod disk;
mod measure;
mod proposal;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ring::{Options, Ring};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use disk::Disk;
use measure::{Figures, Measured};

/// Buffers of the ring: more than there are requests at a time.
const BUFFERS: usize = 64;

/// Measure the disks under folders and propose settings for a chunkserver
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Folders on the disks to be measured, as in mfshdd.cfg
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// About so many seconds for each folder
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// The most that is written to each folder, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(8..=65_536))]
    size_mib: u32,
}

/// A disk and what was measured on it.
pub(crate) struct Probed {
    pub(crate) folder: PathBuf,
    pub(crate) disk: Disk,
    pub(crate) figures: Figures,
}

/// Status 0 if all folders could be measured.
pub fn run(arguments: &Arguments) -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if let Err(error) = signal_hook::flag::register(signal, interrupted.clone()) {
            eprintln!("mooring probe: can't listen for signals: {error}");
            return ExitCode::FAILURE;
        }
    }
    let options = Options { buffers: BUFFERS, ..Options::default() };
    let outcome = ring::run(options, |ring| probe_all(ring, arguments, interrupted));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("mooring probe: can't start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn probe_all(ring: Ring, arguments: &Arguments, interrupted: Arc<AtomicBool>) -> bool {
    let mut probed = Vec::new();
    for folder in &arguments.folders {
        match probe_one(&ring, folder, arguments, &interrupted).await {
            Ok(one) => {
                println!("{one}");
                probed.push(one);
            }
            Err(problem) => eprintln!("mooring probe: {}: {problem}", folder.display()),
        }
        if interrupted.load(Ordering::Relaxed) {
            eprintln!("mooring probe: interrupted");
            return false;
        }
    }
    if !probed.is_empty() {
        print!("{}", proposal::lines(&probed, disk::memory_mib(), ring.driver_name() == "uring"));
    }
    probed.len() == arguments.folders.len()
}

async fn probe_one(
    ring: &Ring,
    folder: &Path,
    arguments: &Arguments,
    interrupted: &AtomicBool,
) -> Result<Probed, String> {
    let folder = folder.canonicalize().map_err(|error| error.to_string())?;
    let disk = Disk::of(&folder).map_err(|error| error.to_string())?;
    let space = ring.space(&folder).await.map_err(|error| error.to_string())?;
    let size_bytes = u64::from(arguments.size_mib) << 20;
    check_room(space.available_bytes, size_bytes)?;
    let budget = Duration::from_secs(u64::from(arguments.seconds));
    let figures = measure::measure(ring, &folder, size_bytes, budget, interrupted).await?;
    Ok(Probed { folder, disk, figures })
}

/// What a chunkserver leaves free unless it is told otherwise (HDD_LEAVE_SPACE_DEFAULT). Spec 60, 6.
const LEFT_FREE_BYTES: u64 = 256 << 20;

/// Is there room for a file of that size?
fn check_room(free_bytes: u64, size_bytes: u64) -> Result<(), String> {
    let needed = size_bytes.saturating_add(LEFT_FREE_BYTES);
    if free_bytes >= needed {
        return Ok(());
    }
    Err(format!(
        "{} MiB are free and {} are needed: {} for the measurement, {} to be left free; --size-mib takes less",
        free_bytes >> 20,
        needed >> 20,
        size_bytes >> 20,
        LEFT_FREE_BYTES >> 20
    ))
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Probed { folder, disk, figures } = self;
        writeln!(f, "{}: {disk}", folder.display())?;
        match figures.alignment_bytes {
            Some(bytes) => writeln!(f, "  O_DIRECT: yes, aligned to {bytes} bytes")?,
            None => writeln!(f, "  O_DIRECT: the file system refuses it")?,
        }
        for Measured { what, rates } in &figures.measured {
            writeln!(
                f,
                "  {what:<44} {:7.0} MB/s {:8.0}/s   p50 {:8.2} ms   p99 {:8.2} ms",
                rates.mb_per_second,
                rates.per_second,
                f64::from(rates.p50_micros) / 1000.0,
                f64::from(rates.p99_micros) / 1000.0,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_nearly_full_is_refused_with_the_numbers() {
        assert_eq!(check_room(1280 << 20, 1024 << 20), Ok(()));
        let error = check_room(1279 << 20, 1024 << 20).expect_err("one too few");
        assert!(error.contains("1279 MiB are free and 1280 are needed"), "{error}");
        check_room(u64::MAX - 1, u64::MAX).expect_err("no sum goes around");
    }
}
