//! The master: the namespace in memory, the journal on disk, and three ports.
//!
//! ```text
//! port 9421  client/      mounts and tools: look-ups, changes, chunk locations, write grants
//! port 9420  chunkserver  registration, reports, commands and their answers
//! port 9419  metalogger   the journal as it grows, downloads of image and journal
//!                 |
//! Core: Namespace (what lasts) + Chunks (where copies are) + what connections wait for
//!                 |
//! journal, images, recovery: files in DATA_PATH
//! ```
//!
//! One core owns everything. A handler gets `&mut Core`, does its work without waiting, and leaves packets in outboxes;
//! what must wait (a chunk operation, a locked chunk) is a task of its own that looks again at the world after each
//! wait. A packet that tells of a change leaves when its journal line is durable (`journal`). Decisions are in `meta`.

mod chunkserver;
mod client;
mod core;
mod exports;
mod images;
mod journal;
mod metalogger;
mod recovery;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod timers;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ring::local::Notify;
use ring::{Listener, Ring, Stream};
use tracing::{error, info, warn};

use self::core::Core;
use self::exports::Exports;
use self::journal::{JournalFile, Moves};
use crate::signals::Wish;

pub(crate) use self::chunkserver::version_answer;
pub(crate) use self::images::{SEEN, seen};
pub(crate) use self::journal::{FILE_MODE, gone_is_fine};
pub(crate) use self::metalogger::NEXT_OPTION;
pub(crate) use self::recovery::Rehearsed;
pub(crate) use self::recovery::{NEW, WRAPPED_HEAD_BYTES, WRAPPED_TAIL, is_journal, recovered, rehearse};
pub use self::settings::{Reserve, Settings};

/// Whether the text of an exports file lets anybody mount anything. Any text is taken; bad lines are logged.
pub fn exports_something(text: &str) -> bool {
    let exports = Exports::parse(text);
    exports.describe(0);
    !exports.is_empty()
}

/// What all tasks of a master share.
pub(crate) struct Master {
    ring: Ring,
    core: RefCell<Core>,
    /// There are lines to write, or something else for the journal's task.
    journal_wake: Notify,
    /// The journal was rotated: an image may follow.
    rotated: Notify,
    moves: Moves,
    /// An image is being written.
    saving: Cell<bool>,
    /// The address that answers GET_CONFIG and the like never change at run time; the rest is in `Core`.
    data_path: std::path::PathBuf,
}

pub(crate) type Shared = Rc<Master>;

impl Master {
    /// Unix seconds.
    fn now(&self) -> u32 {
        u32::try_from(self.ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX)
    }

    /// Runs a handler and draws the consequences of what it did: effects, journal lines.
    fn with<T>(&self, handle: impl FnOnce(&mut Core, u32) -> T) -> T {
        let now = self.now();
        let mut core = self.core.borrow_mut();
        let result = handle(&mut core, now);
        if core.settle(now) {
            self.journal_wake.notify_one();
        }
        result
    }
}

/// Why a master does not start.
#[derive(Debug)]
pub enum MasterError {
    /// No sound metadata; the text says what was found and what to do.
    Recovery(String),
    Exports(String),
    Listen {
        port: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    Disk(io::Error),
}

impl fmt::Display for MasterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MasterError::Recovery(text) | MasterError::Exports(text) => f.write_str(text),
            MasterError::Listen { port, address, error } => write!(f, "cannot listen on {address} for {port}: {error}"),
            MasterError::Disk(error) => write!(f, "cannot use the data folder: {error}"),
        }
    }
}

impl std::error::Error for MasterError {}

impl From<io::Error> for MasterError {
    fn from(error: io::Error) -> MasterError {
        MasterError::Disk(error)
    }
}

/// Runs a master until it is told to stop; then its metadata is on disk as one image.
///
/// `wishes`: stop, reload, tell. `ready`: called once everything is loaded and all ports listen.
pub async fn run(
    ring: Ring,
    settings: Settings,
    mut wishes: ring::channel::Receiver<Wish>,
    ready: impl FnOnce(),
) -> Result<(), MasterError> {
    let exports = read_exports(&ring, &settings).await?;
    if exports.is_empty() {
        let path = settings.exports_path.display();
        return Err(MasterError::Exports(format!("{path} exports nothing, so nobody could mount this file system")));
    }
    let loaded = recovery::load(&ring, &settings).await?;
    let listen = |port, address| ring.listen(address).map_err(|error| MasterError::Listen { port, address, error });
    let clients = listen("clients", settings.client_address)?;
    let servers = listen("chunkservers", settings.chunkserver_address)?;
    let loggers = listen("metaloggers", settings.metalogger_address)?;

    let file =
        JournalFile::new(ring.clone(), settings.data_path.clone(), settings.journals_kept, settings.journal_synced);
    let data_path = settings.data_path.clone();
    let now = u32::try_from(ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX);
    let master = Rc::new(Master {
        core: RefCell::new(Core::new(loaded, settings, exports, now, ring.random_u64())),
        journal_wake: Notify::new(),
        rotated: Notify::new(),
        moves: Moves::default(),
        saving: Cell::new(false),
        data_path,
        ring: ring.clone(),
    });
    master.with(|core, now| core.start(now));

    let writer = ring.spawn(journal::write_journal(master.clone(), file));
    let tasks = [
        ring.spawn(serve_port(master.clone(), clients, client::serve)),
        ring.spawn(serve_port(master.clone(), servers, chunkserver::serve)),
        ring.spawn(serve_port(master.clone(), loggers, metalogger::serve)),
        ring.spawn(timers::plan(master.clone())),
        ring.spawn(timers::every_second(master.clone())),
    ];
    let saver = ring.spawn(images::save_hourly(master.clone()));
    ready();
    info!(driver = ring.driver_name(), "master serves");
    loop {
        match wishes.recv().await {
            Some(Wish::Reload) => {
                master.core.borrow_mut().journal.accept_folder();
                reload(&master).await;
            }
            Some(Wish::Info) => master.with(|core, now| core.log_info(now)),
            Some(Wish::Stop) | None => break,
        }
    }
    info!("master stops");
    for task in tasks {
        task.abort();
    }
    saver.abort();
    stop(&master, writer).await;
    Ok(())
}

/// Everything to disk: the journal's last lines, then one image that needs no journal.
async fn stop(master: &Shared, writer: ring::JoinHandle<()>) {
    master.with(|core, _| {
        core.cut_all();
        core.journal.ask_for_rotation();
        core.journal.ask_for_stop();
    });
    master.journal_wake.notify_one();
    writer.await;
    metalogger::let_go(master).await;
    // As MooseFS does: without an image there is no clean stop. Spec 42, C.4.
    loop {
        match images::save_at_stop(master).await {
            Ok(()) => return,
            Err(error) => error!(%error, "cannot store the metadata; trying again"),
        }
        master.ring.sleep(Duration::from_secs(10)).await;
    }
}

async fn read_exports(ring: &Ring, settings: &Settings) -> Result<Exports, MasterError> {
    let path = &settings.exports_path;
    let bytes = ring
        .read_file(path)
        .await
        .map_err(|error| MasterError::Exports(format!("cannot read the exports in {}: {error}", path.display())))?;
    Ok(Exports::parse(&String::from_utf8_lossy(&bytes)))
}

/// The exports are read again; sessions that they change are cut and come back under the new ones. Spec 30, 4.1.
async fn reload(master: &Shared) {
    let settings = master.core.borrow().settings.clone();
    match read_exports(&master.ring, &settings).await {
        Ok(exports) if !exports.is_empty() => {
            info!("exports read again");
            master.with(|core, _| core.change_exports(exports));
        }
        Ok(_) => warn!("the exports are empty now; the old ones stay"),
        Err(error) => warn!(%error, "the old exports stay"),
    }
}

/// Accepts connections for ever.
async fn serve_port<F>(master: Shared, listener: Listener, serve: fn(Shared, Stream) -> F)
where
    F: Future<Output = ()> + 'static,
{
    loop {
        match listener.accept().await {
            Ok(stream) => drop(master.ring.spawn(serve(master.clone(), stream))),
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                master.ring.sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// One of the system's own lists of users and groups. Not the cluster's data, so it does not come through the ring.
fn system_file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}
