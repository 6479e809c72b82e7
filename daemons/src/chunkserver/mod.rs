//! The chunkserver: `mfschunkserver.cfg` and `mfshdd.cfg` into settings, signals into stops and reloads, `chunk` does
//! the rest.

pub mod profile;
mod settings;

use std::path::PathBuf;

use chunk::server::ServerError;
use chunk::settings::Settings;
use ring::Ring;
use ring::channel::Receiver;
use ring::local::{Sender, channel, oneshot};

use crate::config::Config;
use crate::signals::Wish;

pub use settings::from_config;

/// Options that others read when the process starts. Spec 60, 4.
const READ_AT_THE_START: [&str; 10] = [
    "WORKING_USER",
    "WORKING_GROUP",
    "SYSLOG_IDENT",
    "LOCK_MEMORY",
    "NICE_LEVEL",
    "DATA_PATH",
    "FILE_UMASK",
    "DISABLE_OOM_KILLER",
    "RING_DRIVER",
    "RING_FEATURES",
];

/// Runs a chunkserver until somebody wishes that it stop, or until nobody can wish any more. `config_path`: the file to
/// read again when somebody wishes that.
pub async fn run(
    ring: Ring,
    settings: Settings,
    config_path: Option<PathBuf>,
    mut wishes: Receiver<Wish>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let (reload, reloads) = channel(1);
    let (stop, stopped) = oneshot::<()>();
    let ours = ring.clone();
    let listener = ring.spawn(async move {
        let _stop = stop; // dropped at the end of this task, which is the wish to stop
        loop {
            match wishes.recv().await {
                Some(Wish::Stop) | None => return,
                Some(Wish::Reload) => read_again(&ours, config_path.clone(), &reload).await,
                Some(Wish::Info) => {}
            }
        }
    });
    let stop = async move {
        stopped.recv().await;
    };
    let end = chunk::server::run_with_reloads(ring, settings, reloads, stop, ready).await;
    listener.abort();
    end
}

/// What cannot be read changes nothing. Spec 60, 2.
async fn read_again(ring: &Ring, config_path: Option<PathBuf>, reload: &Sender<Settings>) {
    let read = ring
        .run_blocking(move || {
            let mut config = match config_path {
                Some(path) => Config::load(&path).map_err(|error| error.to_string())?,
                None => Config::empty(),
            };
            profile::apply(&mut config)?;
            let settings = from_config(&config)?;
            for name in READ_AT_THE_START {
                config.optional(name);
            }
            config.warn_unused();
            Ok::<_, String>(settings)
        })
        .await;
    match read {
        Ok(settings) => drop(reload.send(settings).await),
        Err(why) => tracing::error!("the configuration stays as it was: {why}"),
    }
}
