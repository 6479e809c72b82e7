//! From a prepared process to a running engine: settings out of the configuration, signals into wishes, a ring.

use std::fmt::Display;

use ring::channel::{self, Receiver};
use ring::{DriverChoice, Features, Options, Ring};
use tracing::{info, warn};
use wire::MetaId;

use crate::chunkserver as chunkserver_shell;
use crate::config::Config;
use crate::master as master_shell;
use crate::metalogger as metalogger_shell;
use crate::process::Daemon;
use crate::signals::{self, Wish};
use crate::stock;

/// Buffers of a ring that moves no file data.
const FEW_BUFFERS: usize = 16;

// What only a person may decide about the metadata, said on the command line of one start. (clap prints doc comments.)
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct MetadataDecisions {
    /// Begin a new file system if the data folder has none
    #[arg(long = "new")]
    pub new_file_system: bool,
    /// Go on without the changes from this version on; a start that was refused names it
    #[arg(long, value_name = "VERSION")]
    pub lose_changes_from: Option<u64>,
    /// Become the file system with this id (16 hex digits), although the data folder was another's
    #[arg(long, value_name = "METAID", value_parser = metaid)]
    pub accept_metaid: Option<MetaId>,
}

fn metaid(text: &str) -> Result<MetaId, String> {
    let number = u64::from_str_radix(text, 16).map_err(|_| "16 hex digits are expected".to_owned())?;
    Ok(MetaId(number))
}

/// Run a master until it is told to stop. `take_over`: what a MooseFS master left in its folder becomes ours first. Errors:
/// why it cannot start, or cannot go on.
pub fn master(daemon: Daemon, decisions: MetadataDecisions, take_over: bool) -> Result<(), String> {
    let settings = master_shell::Settings {
        new_file_system: decisions.new_file_system,
        lose_changes_from: decisions.lose_changes_from,
        accept_metaid: decisions.accept_metaid,
        config_path: daemon.config_path.clone(),
        ..master_shell::Settings::from_config(&daemon.config)?
    };
    if take_over {
        stock::take_over(&settings.data_path, settings.lose_changes_from)?;
    }
    on_a_ring(&daemon, FEW_BUFFERS, move |ring, wishes, ready| master_shell::run(ring, settings, wishes, ready))
}

/// Run a metalogger until it is told to stop. Errors: why it cannot start.
pub fn metalogger(daemon: Daemon) -> Result<(), String> {
    let settings = metalogger_shell::Settings::from_config(&daemon.config)?;
    let config_path = daemon.config_path.clone();
    on_a_ring(&daemon, FEW_BUFFERS, move |ring, wishes, ready| {
        metalogger_shell::run(ring, settings, config_path, wishes, ready)
    })
}

/// Run a chunkserver until it is told to stop. Errors: why it cannot start, or cannot go on.
pub fn chunkserver(mut daemon: Daemon) -> Result<(), String> {
    chunkserver_shell::profile::apply(&mut daemon.config)?;
    let settings = chunkserver_shell::from_config(&daemon.config)?;
    let config_path = daemon.config_path.clone();
    let buffers = settings.buffers();
    on_a_ring(&daemon, buffers, move |ring, wishes, ready| {
        chunkserver_shell::run(ring, settings, config_path, wishes, ready)
    })
}

/// `RING_DRIVER = auto|uring|epoll`, an option of ours in every daemon's file.
fn driver(config: &Config) -> DriverChoice {
    config.parsed("RING_DRIVER", DriverChoice::Auto)
}

/// `RING_FEATURES = -registered_buffers -defer_taskrun`, an option of ours in every daemon's file: what of io_uring is
/// not to be used, to measure it, or where a kernel is in trouble with it.
fn features(config: &Config) -> Features {
    let words = config.text("RING_FEATURES", "");
    let (features, unknown) = Features::default().changed(&words);
    for word in unknown {
        warn!("RING_FEATURES: {word} is unknown; there are {}", Features::NAMES.join(", "));
    }
    features
}

/// Run `main` on a ring of this thread; it gets the process's signals as wishes, and calls its last argument when it
/// serves. By then all settings have been read, so names in the file that nobody asked for are mentioned.
#[allow(clippy::needless_lifetimes, reason = "elided, the box's lifetime would be any, and `Main` could not hold it")]
fn on_a_ring<'a, Main, Error>(
    daemon: &'a Daemon,
    buffers: usize,
    main: impl FnOnce(Ring, Receiver<Wish>, Box<dyn FnOnce() + 'a>) -> Main,
) -> Result<(), String>
where
    Main: Future<Output = Result<(), Error>>,
    Error: Display,
{
    let options =
        Options { driver: driver(&daemon.config), buffers, features: features(&daemon.config), ..Options::default() };
    daemon.configuration_is_read();
    let (sender, wishes) = channel::channel();
    signals::listen(daemon.foreground, move |wish| {
        let _ = sender.send(wish);
    })
    .map_err(|error| format!("can't listen for signals: {error}"))?;
    let outcome = ring::run(options, |ring| {
        info!("input and output by {}", ring.driver_name());
        main(ring, wishes, Box::new(|| daemon.ready()))
    });
    match outcome {
        Ok(Ok(())) => {
            info!("{} ended", daemon.program.name);
            Ok(())
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("can't start the runtime: {error}")),
    }
}
