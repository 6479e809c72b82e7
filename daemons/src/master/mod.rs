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

mod charts;
mod chunk_loop;
mod chunkserver;
mod client;
mod core;
mod exports;
mod file_check;
mod folder;
mod heavy_load;
mod images;
mod journal;
mod metalogger;
mod overview;
mod recovery;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod timers;
mod topology;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::select;
use meta::chunks::Topology;
use ring::local::{Mutex, Notify};
use ring::{JoinHandle, Listener, Ring, Stream};
use tracing::{error, info, warn};
use wire::{AddressList, Refusals, Time};

use self::core::{Core, ip_of};
use self::exports::Exports;
use self::journal::{JournalFile, Moves};
use crate::connection::Traffic;
use crate::signals::Wish;

pub(crate) use self::chunkserver::version_answer;
pub use self::heavy_load::Limits as HeavyLoadLimits;
pub(crate) use self::metalogger::NEXT_OPTION;
pub(crate) use self::recovery::{Rehearsed, recovered, rehearse};
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
    /// How often the journal was rotated; whoever has it may change the names of journal files.
    rotations: Mutex<u32>,
    folder: folder::OwnFolder,
    /// An image is being written.
    saving: Cell<bool>,
    /// What went over the clients' connections.
    traffic: Rc<Traffic>,
    /// The address that answers GET_CONFIG and the like never change at run time; the rest is in `Core`.
    data_path: std::path::PathBuf,
}

pub(crate) type Shared = Rc<Master>;

/// A clock that goes back by so much was set: its time counts. By less it only stood still for many changes.
const CLOCK_STEP_NANOS: i64 = 1_000_000;

impl Master {
    /// Unix seconds.
    fn now(&self) -> u32 {
        u32::try_from(self.ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX)
    }

    /// The time of what is done now: later than that of what was done before, so that no two changes of a node have the
    /// same, unless the clock was set back.
    fn time(&self, last: Time) -> Time {
        let clock = Time(i64::try_from(self.ring.wall_nanos()).unwrap_or(i64::MAX));
        if clock <= last && last.0 - clock.0 < CLOCK_STEP_NANOS { Time(last.0 + 1) } else { clock }
    }

    /// Runs a handler and draws the consequences of what it did: effects, journal lines.
    fn with<T>(&self, handle: impl FnOnce(&mut Core, u32) -> T) -> T {
        let mut core = self.core.borrow_mut();
        core.time = self.time(core.time);
        let now = core.time.seconds();
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
    let topology = read_topology(&ring, &settings).await;
    let loaded = recovery::load(&ring, &settings).await?;
    let mut listeners = Vec::new();
    for port in PORTS {
        let listener = port.listen(&ring, &settings)?;
        info!("listening on {} for {}", listener.local(), port.name);
        listeners.push((port, (port.address)(&settings), listener));
    }

    let file = JournalFile::new(ring.clone(), settings.data_path.clone(), settings.journal_synced);
    let data_path = settings.data_path.clone();
    let now = u32::try_from(ring.wall_micros() / 1_000_000).unwrap_or(u32::MAX);
    let master = Rc::new(Master {
        core: RefCell::new(Core::new(loaded, settings, exports, now, ring.random_u64())),
        journal_wake: Notify::new(),
        rotated: Notify::new(),
        moves: Moves::default(),
        rotations: Mutex::new(0),
        folder: folder::OwnFolder::new(),
        saving: Cell::new(false),
        traffic: Rc::default(),
        data_path,
        ring: ring.clone(),
    });
    folder::remember_image(&master).await;
    master.core.borrow().log_start();
    master.with(|core, _| {
        core.start();
        core.chunks.set_topology(topology.unwrap_or_default());
    });
    let earlier = charts::load(&ring, &master.data_path).await;
    master.core.borrow_mut().charts = earlier;

    let writer = ring.spawn(journal::write_journal(master.clone(), file));
    let tasks = [
        ring.spawn(timers::plan(master.clone())),
        ring.spawn(timers::every_second(master.clone())),
        ring.spawn(charts::keep(master.clone())),
        ring.spawn(file_check::keep_checking(master.clone())),
        ring.spawn(overview::keep_looking(master.clone())),
    ];
    let mut listening: Vec<Listening> = listeners
        .into_iter()
        .map(|(port, address, listener)| Listening { port, address, task: (port.serve)(port, &master, listener) })
        .collect();
    let saver = ring.spawn(images::save_hourly(master.clone()));
    ready();
    info!(driver = ring.driver_name(), "master serves");
    loop {
        match wishes.recv().await {
            Some(Wish::Reload) => {
                master.core.borrow_mut().journal.accept_folder();
                reload(&master, &mut listening).await;
            }
            Some(Wish::Info) => master.with(|core, now| core.log_info(now)),
            Some(Wish::Stop) | None => break,
        }
    }
    info!("master stops");
    for task in tasks.into_iter().chain(listening.into_iter().map(|port| port.task)) {
        task.abort();
    }
    saver.abort();
    // A stop may wait for the folder: whoever says that another one is meant is still heard.
    let heard = async {
        while let Some(wish) = wishes.recv().await {
            if matches!(wish, Wish::Reload) {
                master.core.borrow_mut().journal.accept_folder();
                master.journal_wake.notify_one();
            }
        }
        std::future::pending::<()>().await
    };
    select(pin!(stop(&master, writer)), pin!(heard)).await;
    Ok(())
}

/// Everything to disk: the journal's last lines, then one image that needs no journal.
async fn stop(master: &Shared, writer: JoinHandle<()>) {
    master.with(|core, _| {
        core.cut_all();
        core.journal.ask_for_rotation();
        core.journal.ask_for_stop();
    });
    master.journal_wake.notify_one();
    writer.await;
    metalogger::let_go(master).await;
    charts::close(master).await;
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

/// None: there is no such file, or it cannot be read; the log says so. Spec 60, 11.
async fn read_topology(ring: &Ring, settings: &Settings) -> Option<Topology> {
    let path = &settings.topology_path;
    match ring.read_file(path).await {
        Ok(bytes) => Some(topology::parse(&String::from_utf8_lossy(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            info!("no topology file ({})", path.display());
            None
        }
        Err(error) => {
            warn!(%error, "cannot read the topology in {}", path.display());
            None
        }
    }
}

/// All that is not for a start alone is read again: settings, topology, exports. Sessions that these change are cut and
/// come back under the new ones. What cannot be read or understood stays as it was. Spec 60, 5; Spec 30, 4.1.
async fn reload(master: &Shared, listening: &mut [Listening]) {
    let settings = master.core.borrow().settings.clone();
    let old = settings.clone();
    let settings = match master.ring.run_blocking(move || old.read_again()).await {
        Ok(read) => {
            info!("settings read again");
            master.with(|core, _| core.change_settings(read.clone()));
            master.journal_wake.notify_one();
            read
        }
        Err(why) => {
            error!("the settings stay as they were: {why}");
            settings
        }
    };
    for port in listening {
        port.follow(master, &settings);
    }
    match read_topology(&master.ring, &settings).await {
        Some(topology) => {
            info!("topology read again");
            master.with(|core, _| core.chunks.set_topology(topology));
        }
        None => info!("the topology stays as it was"),
    }
    match read_exports(&master.ring, &settings).await {
        Ok(exports) if !exports.is_empty() => {
            info!("exports read again");
            master.with(|core, _| core.change_exports(exports));
        }
        Ok(_) => warn!("the exports are empty now; the old ones stay"),
        Err(error) => warn!(%error, "the old exports stay"),
    }
}

/// One of the three ports: where it is by the settings, and who serves it.
#[derive(Clone, Copy)]
struct Port {
    name: &'static str,
    address: fn(&Settings) -> SocketAddr,
    /// Whom it serves, and the option that says so.
    allowed: Allowed,
    serve: fn(Port, &Shared, Listener) -> JoinHandle<()>,
}

/// An option, and the list that it gave.
type Allowed = Option<(&'static str, fn(&Settings) -> &AddressList)>;

const PORTS: [Port; 3] = [
    Port {
        name: "clients",
        address: |settings| settings.client_address,
        allowed: None, // the exports decide, when a client registers
        serve: |port, master, listener| master.ring.spawn(serve_port(port, master.clone(), listener, client::serve)),
    },
    Port {
        name: "chunkservers",
        address: |settings| settings.chunkserver_address,
        allowed: Some(("MATOCS_ALLOW", |settings| &settings.chunkservers_allowed)),
        serve: |port, master, listener| {
            master.ring.spawn(serve_port(port, master.clone(), listener, chunkserver::serve))
        },
    },
    Port {
        name: "metaloggers",
        address: |settings| settings.metalogger_address,
        allowed: Some(("MATOML_ALLOW", |settings| &settings.metaloggers_allowed)),
        serve: |port, master, listener| {
            master.ring.spawn(serve_port(port, master.clone(), listener, metalogger::serve))
        },
    },
];

impl Port {
    fn serves(self, master: &Shared, stream: &Stream) -> bool {
        self.allowed.is_none_or(|(_, allowed)| allowed(&master.core.borrow().settings).contains(ip_of(stream.peer())))
    }

    fn listen(self, ring: &Ring, settings: &Settings) -> Result<Listener, MasterError> {
        let address = (self.address)(settings);
        ring.listen(address).map_err(|error| MasterError::Listen { port: self.name, address, error })
    }
}

/// A port that is served.
struct Listening {
    port: Port,
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Listening {
    /// After a reload: elsewhere, if the settings say so and that is possible. Connections stay. Spec 60, 5.2.
    fn follow(&mut self, master: &Shared, settings: &Settings) {
        let address = (self.port.address)(settings);
        if address == self.address {
            return;
        }
        match self.port.listen(&master.ring, settings) {
            Ok(listener) => {
                info!("the port for {} is now {address}", self.port.name);
                let task = (self.port.serve)(self.port, master, listener);
                std::mem::replace(&mut self.task, task).abort();
                self.address = address;
            }
            Err(error) => error!(%error, "the port for {} stays {}", self.port.name, self.address),
        }
    }
}

/// Accepts connections for ever.
async fn serve_port<F>(port: Port, master: Shared, listener: Listener, serve: fn(Shared, Stream) -> F)
where
    F: Future<Output = ()> + 'static,
{
    let refusals = Refusals::default();
    loop {
        match listener.accept().await {
            Ok(stream) if !port.serves(&master, &stream) => {
                let (peer, option) = (stream.peer(), port.allowed.map_or("", |(option, _)| option));
                if let Some(count) = refusals.count(u64::from(master.ring.wall_seconds())) {
                    warn!(%peer, count, "a stranger on the port for {}: {option} does not list this address", port.name);
                }
                stream.shutdown();
            }
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
