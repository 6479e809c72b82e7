//! The metalogger: keeps a copy of the master's metadata that is never older than what the network has brought. Spec 42.
//!
//! It fetches the image when it first connects and every day, and stores each change as it comes; `store` says what
//! lies on its disk, `session` what goes over the wire. `promote` makes a master of what it keeps.

mod session;
mod settings;
mod store;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;

use ring::Ring;
use ring::channel::Receiver;
use ring::local::Notify;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::signals::Wish;
pub use settings::Settings;
use store::Store;

/// What others wish.
struct Wishes {
    settings: RefCell<Rc<Settings>>,
    /// There are other settings, or it is to stop: the session ends.
    changed: Cell<bool>,
    stop: Cell<bool>,
    info: Cell<bool>,
    wake: Notify,
    /// The next connection asks for new changes only; see `session`.
    compare_in_vain: Cell<bool>,
}

impl Wishes {
    fn new(settings: Settings) -> Wishes {
        Wishes {
            settings: RefCell::new(Rc::new(settings)),
            changed: Cell::new(false),
            stop: Cell::new(false),
            info: Cell::new(false),
            wake: Notify::new(),
            compare_in_vain: Cell::new(false),
        }
    }
}

/// Runs a metalogger until somebody wishes that it stop. Errors: the data folder cannot be used. `config_path`: the
/// file to read again when somebody wishes that.
pub async fn run(
    ring: Ring,
    settings: Settings,
    config_path: Option<PathBuf>,
    wishes: Receiver<Wish>,
    ready: impl FnOnce(),
) -> io::Result<()> {
    let mut store = Store::open(&ring, &settings)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", settings.data_path.display())))?;
    let shared = Rc::new(Wishes::new(settings));
    let listener = ring.spawn(listen(ring.clone(), shared.clone(), config_path, wishes));
    ready();
    loop {
        let settings = shared.settings.borrow().clone();
        store.use_settings(&settings);
        let why = session::follow(&ring, settings.clone(), &mut store, &shared).await;
        if shared.stop.get() {
            break;
        }
        if shared.changed.take() {
            info!("connecting anew, as the configuration says");
            continue;
        }
        warn!("no connection to the master: {why}");
        let _ = ring.timeout(settings.reconnection_delay, shared.wake.notified()).await; // the flags say the rest
        if shared.stop.get() {
            break;
        }
    }
    listener.abort();
    store.sync().await
}

async fn listen(ring: Ring, shared: Rc<Wishes>, config_path: Option<PathBuf>, mut wishes: Receiver<Wish>) {
    loop {
        match wishes.recv().await {
            Some(Wish::Stop) | None => {
                shared.stop.set(true);
                shared.changed.set(true);
            }
            Some(Wish::Info) => shared.info.set(true),
            Some(Wish::Reload) => {
                let path = config_path.clone();
                let read = ring.run_blocking(move || read_again(path)).await;
                match read {
                    Ok(settings) => {
                        shared.settings.replace(Rc::new(settings));
                        shared.changed.set(true);
                    }
                    Err(why) => error!("the configuration stays as it was: {why}"),
                }
            }
        }
        shared.wake.notify_one();
        if shared.stop.get() {
            return;
        }
    }
}

fn read_again(config_path: Option<PathBuf>) -> Result<Settings, String> {
    let config = match config_path {
        Some(path) => Config::load(&path).map_err(|error| error.to_string())?,
        None => Config::empty(),
    };
    Settings::from_config(&config)
}
