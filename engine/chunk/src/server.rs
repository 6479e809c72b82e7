//! A whole chunkserver: start, what runs beside what, stop.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use charts::Charts;
use futures_util::future::{Either, select};
use ring::local::{self, Crew, Notify};
use ring::{JoinHandle, Ring};
use wire::types::Name;
use wire::{Ip4, MetaId};

use crate::cores::{self, Core};
use crate::master;
use crate::series::KIND;
use crate::serve::peers::Peers;
use crate::serve::{AheadJob, ReadJob, WriteJob, accept_loop};
use crate::settings::{LiveSettings, Settings};
use crate::store::Store;

/// What MODULE_INFO says we are. Spec 10, 2.
pub(crate) const MODULE_CHUNKSERVER: u8 = 2;
/// What we speak beyond the protocol of 3.0.117, as told to peers that ask for `MOORING_EXTENSIONS`.
const EXTENSIONS: [&str; 2] = [wire::SYNC_EXTENSION, wire::TICKETS_EXTENSION];
/// The file in which the master's names for us and for the file system are kept. Spec 40, 4.
const IDENTITY_FILE: &str = "chunkserverid.mfs";
/// Sessions are told apart by the servers behind them, up to this number, when buffers are short.
pub(crate) const CHAIN_CLASSES: usize = 8;
/// At a stop, requests and operations under way get this long to end.
const STOP_WAIT: Duration = Duration::from_secs(10);
/// At a stop, the master gets this long to take our farewell.
const FAREWELL_WAIT: Duration = Duration::from_secs(5);

/// Why a chunkserver ended, other than by being told to.
#[derive(Debug)]
pub enum ServerError {
    /// A folder cannot be used.
    Folders(String),
    /// The data port cannot be listened on.
    Listen(SocketAddr, std::io::Error),
    /// No ring can be had for another core.
    Cores(std::io::Error),
    /// A core ended by itself: a defect, of which its thread has told.
    CoreEnded(String),
}

impl std::fmt::Display for ServerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ServerError::Folders(why) => write!(f, "{why}"),
            ServerError::Listen(at, error) => write!(f, "cannot listen on {at}: {error}"),
            ServerError::Cores(error) => write!(f, "cannot start another core (CORES = 1 does without): {error}"),
            ServerError::CoreEnded(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for ServerError {}

/// Runs a chunkserver on this ring until `stop` ends; calls `ready` when it serves. At the end all data that were
/// acknowledged are with the disks, and the next start has nothing to repair.
pub async fn run(
    ring: Ring,
    settings: Settings,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let (_sender, reloads) = local::channel(1);
    run_with_reloads(ring, settings, reloads, stop, ready).await
}

/// As `run`; settings that come by `reloads` replace the ones before while everything goes on. Spec 21, 8.4; Spec 60, 6.
pub async fn run_with_reloads(
    ring: Ring,
    settings: Settings,
    reloads: local::Receiver<Settings>,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let (server, others, serve_others) = cores::start(&ring, settings).await.map_err(ServerError::Cores)?;
    let result = beside(&ring, serve_others, serve(server, reloads, stop, ready)).await;
    drop(others);
    result
}

/// What `life` ends with, while this core also serves the others, which `life` asks and which ask this one.
///
/// Errors: `CoreEnded`, at once, in whatever phase `life` is: it would wait for that core for ever. As if this process
/// had been killed: what is left undone is put right at the next start.
async fn beside(
    ring: &Ring,
    serve_others: impl Future<Output = String> + 'static,
    life: impl Future<Output = Result<(), ServerError>>,
) -> Result<(), ServerError> {
    let (sender, others_end) = local::oneshot();
    let _serves_others = EndsWith(ring.spawn(async move { drop(sender.send(serve_others.await)) }));
    match select(Box::pin(others_end.recv()), Box::pin(life)).await {
        Either::Left((why, _)) => Err(ServerError::CoreEnded(why.unwrap_or_default())),
        Either::Right((result, _)) => result,
    }
}

/// The whole life of the first core.
async fn serve(
    server: Rc<Server>,
    reloads: local::Receiver<Settings>,
    stop: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let (ring, settings) = (server.ring.clone(), server.settings.get());
    let at = SocketAddr::from((settings.listen_ip, settings.listen_port));
    let identity = read_identity(&ring, &settings).await;
    let known = (identity.metaid.0 != 0).then_some(identity.metaid);
    let metaid = server.store.start(known).await.map_err(|why| ServerError::Folders(why.0))?;
    server.identity.set(Identity { metaid: metaid.unwrap_or(MetaId(0)), ..identity });
    let listener = ring.listen(at).map_err(|error| ServerError::Listen(at, error))?;
    tracing::info!(
        "chunkserver ready: {} disks, {} cores, port {at}, driver {}",
        server.store.volumes.borrow().len(),
        server.core.count(),
        ring.driver_name()
    );

    let mut background = server.begin_background();
    background.push(ring.spawn(server.clone().take_reloads(reloads)));
    background.push(ring.spawn(server.clone().keep_charts()));
    *server.accepting.borrow_mut() = Some(ring.spawn(accept_loop(server.clone(), listener)));
    ready();

    let mut life = Box::pin(master::life(server.clone()));
    let result = match select(Box::pin(stop), life.as_mut()).await {
        Either::Left(_) => {
            server.stopping.set(true);
            server.stop.notify_all();
            let _ = ring.timeout(FAREWELL_WAIT, life).await; // a master that does not listen learns it by the silence
            Ok(())
        }
        Either::Right(((), _)) => Ok(()),
    };
    background.iter().chain(&server.accepting.take()).for_each(JoinHandle::abort);
    server.end_requests().await;
    server.save_charts().await;
    result
}

/// A task that ends when this is dropped.
struct EndsWith(JoinHandle<()>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the parts of a server share on one core.
pub(crate) struct Server {
    pub(crate) ring: Ring,
    pub(crate) settings: Rc<LiveSettings>,
    pub(crate) core: Rc<Core>,
    pub(crate) store: Rc<Store>,
    pub(crate) peers: Rc<Peers>,
    pub(crate) writes_under_way: Cell<usize>,
    /// Pool buffers that each class of sessions leaves to the classes below it.
    pub(crate) buffers_per_class: usize,
    /// Who reads blocks from disk, reads ahead, and writes pieces.
    pub(crate) read_crew: Crew<ReadJob>,
    pub(crate) ahead_crew: Crew<AheadJob>,
    pub(crate) write_crew: Crew<WriteJob>,
    pub(crate) connections: RefCell<Connections>,
    /// Requests without a ticket, where one is required.
    pub(crate) refusals: wire::Refusals,
    pub(crate) stopping: Cell<bool>,
    /// This core is to end. Not the first, which ends with the server.
    pub(crate) ended: Cell<bool>,
    // What follows is the first core's.
    pub(crate) identity: Cell<Identity>,
    /// Where we are registered; zeros when we are not.
    pub(crate) master_address: Cell<(Ip4, u16)>,
    /// Orders of masters that are being carried out.
    pub(crate) orders: Cell<u32>,
    pub(crate) stop: Notify,
    /// Wakes who must look whether a reload concerns it; their number tells.
    pub(crate) reloaded: Notify,
    pub(crate) reloads: Cell<u32>,
    accepting: RefCell<Option<JoinHandle<()>>>,
    pub(crate) charts: RefCell<Charts>,
}

/// Tasks that serve connections, so that a stop can end them.
#[derive(Default)]
pub(crate) struct Connections {
    pub(crate) tasks: BTreeMap<u64, JoinHandle<()>>,
    pub(crate) next: u64,
}

/// Who the master says we are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) csid: u16,
    pub(crate) metaid: MetaId,
}

/// A request or operation under way, on whatever core. Spec 20, 9.
pub(crate) struct Job {
    core: Rc<Core>,
}

impl Drop for Job {
    fn drop(&mut self) {
        self.core.shared.jobs.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Server {
    /// The server of one core, ready to be asked.
    pub(crate) async fn start(ring: &Ring, settings: Settings, core: Core) -> Rc<Server> {
        let settings = Rc::new(LiveSettings::new(settings));
        let core = Rc::new(core);
        let store = Rc::new(Store::new(ring, settings.clone(), core.clone()));
        let buffers = ring.free_buffers();
        store.prepare().await;
        let server = Rc::new(Server {
            peers: Rc::new(Peers::new(ring, &core)),
            writes_under_way: Cell::new(0),
            buffers_per_class: buffers.saturating_sub(store.cache_blocks + store.kept_aside()) / (2 * CHAIN_CLASSES),
            read_crew: Crew::new(ring, ReadJob::run),
            ahead_crew: Crew::new(ring, AheadJob::run),
            write_crew: Crew::new(ring, WriteJob::run),
            connections: RefCell::default(),
            refusals: wire::Refusals::default(),
            stopping: Cell::new(false),
            ended: Cell::new(false),
            identity: Cell::default(),
            orders: Cell::new(0),
            master_address: Cell::new((Ip4(0), 0)),
            stop: Notify::new(),
            reloaded: Notify::new(),
            reloads: Cell::new(0),
            accepting: RefCell::default(),
            charts: RefCell::new(Charts::new(&KIND, ring.local_minutes())),
            ring: ring.clone(),
            settings,
            core,
            store,
        });
        server.core.serves(&server);
        server
    }

    /// What each core does beside everything else.
    pub(crate) fn begin_background(&self) -> Vec<JoinHandle<()>> {
        vec![
            self.ring.spawn(self.peers.clone().beat()),
            self.ring.spawn(self.store.clone().background()),
            self.ring.spawn(self.store.clone().balance()),
        ]
    }

    /// None if too many are under way.
    pub(crate) fn begin_job(&self) -> Option<Job> {
        let jobs = &self.core.shared.jobs;
        let job = Job { core: self.core.clone() };
        let before = jobs.fetch_add(1, Ordering::Relaxed);
        (before < self.settings.get().jobs_max).then_some(job) // dropped, it is counted off again
    }

    pub(crate) fn jobs(&self) -> u32 {
        self.core.shared.jobs.load(Ordering::Relaxed)
    }

    /// The value of an option, as a peer sees it: empty if it is not set; passwords are not shown, and where files lie is
    /// told on this machine only.
    pub(crate) fn config_value(&self, option: &[u8], peer: SocketAddr) -> Name {
        let settings = self.settings.get();
        let (epoch, extensions) = (self.core.epoch().to_value(), EXTENSIONS.join(" "));
        let value = match option {
            wire::any::EXTENSIONS_OPTION => extensions.as_bytes(),
            wire::EPOCH_OPTION => epoch.as_bytes(),
            b"AUTH_CODE" => settings.auth_code.as_ref().map_or(&b""[..], |_| b"[DEFINED]"),
            _ => {
                let name = std::str::from_utf8(option).unwrap_or("");
                match settings.options.get(name) {
                    Some(_) if wire::any::names_a_path(option) && !peer.ip().is_loopback() => b"[DEFINED]",
                    value => value.map_or(&b""[..], String::as_bytes),
                }
            }
        };
        Name::new(&value[..value.len().min(255)]).expect("cut at 255 bytes")
    }

    /// Keeps what the master calls us and the file system. Errors are logged: the next start asks again.
    pub(crate) async fn set_identity(&self, identity: Identity) {
        if self.identity.get() == identity && identity.metaid.0 != 0 {
            self.store.confirm_metaid(identity.metaid);
            return;
        }
        self.identity.set(identity);
        let mut bytes = identity.csid.to_be_bytes().to_vec();
        bytes.extend_from_slice(&identity.metaid.0.to_be_bytes());
        if let Err(error) = self.ring.write_file_durably(&self.identity_path(), 0o640, bytes).await {
            tracing::error!("{} cannot be written: {error}", self.identity_path().display());
        }
        if identity.metaid.0 != 0 {
            self.store.confirm_metaid(identity.metaid);
        }
    }

    fn identity_path(&self) -> PathBuf {
        self.settings.get().data_path.join(IDENTITY_FILE)
    }

    async fn take_reloads(self: Rc<Self>, mut reloads: local::Receiver<Settings>) {
        while let Some(settings) = reloads.recv().await {
            self.reload(settings).await;
        }
    }

    /// Makes other settings the ones in force.
    async fn reload(self: &Rc<Self>, mut new: Settings) {
        let old = self.settings.get();
        if (new.listen_ip, new.listen_port) != (old.listen_ip, old.listen_port) {
            let at = SocketAddr::from((new.listen_ip, new.listen_port));
            match self.ring.listen(at) {
                Ok(listener) => {
                    tracing::info!("listening on {at} now");
                    let former = self.accepting.replace(Some(self.ring.spawn(accept_loop(self.clone(), listener))));
                    former.iter().for_each(JoinHandle::abort); // the connections that it accepted go on
                }
                Err(error) => {
                    tracing::error!("cannot listen on {at}, the old address stays: {error}");
                    (new.listen_ip, new.listen_port) = (old.listen_ip, old.listen_port);
                }
            }
        }
        let for_others = new.clone();
        let (old, kept) = self.settings.replace(new);
        for name in kept {
            tracing::warn!("{name} was changed; that takes a restart");
        }
        self.core.tell_others(move |server| drop(server.settings.replace(for_others)));
        let metaid = self.identity.get().metaid;
        self.store.change_folders((metaid.0 != 0).then_some(metaid)).await;
        if old.leave_space_bytes != self.settings.get().leave_space_bytes {
            self.store.look_at_all_space();
        }
        tracing::info!("the configuration was read again");
        self.reloads.set(self.reloads.get() + 1);
        self.reloaded.notify_all();
    }

    /// Waits for a reload beyond the first `seen`.
    pub(crate) async fn reloaded_since(&self, seen: u32) {
        while self.reloads.get() == seen {
            self.reloaded.notified().await;
        }
    }

    /// Ends all connections, waits for what they left under way, and brings the disks to rest. By the first core.
    async fn end_requests(&self) {
        let end = self.core.ask_all(|server| async move { server.end_connections().await });
        let until = self.ring.now() + STOP_WAIT;
        let mut at_rest = end.await.into_iter().all(|at_rest| at_rest);
        while self.jobs() > 0 && self.ring.now() < until {
            self.ring.sleep(Duration::from_millis(5)).await;
        }
        at_rest &= self.jobs() == 0;
        if at_rest {
            self.store.finish().await;
        } else {
            tracing::warn!("stopped with operations under way; the next start looks at the chunks that they touch");
        }
    }

    /// Ends this core's connections, and its moves between disks. True when nothing of them is under way any more; false
    /// if that took too long.
    async fn end_connections(&self) -> bool {
        self.stopping.set(true); // no connection comes from another core any more
        self.connections.borrow().tasks.values().for_each(JoinHandle::abort);
        self.store.stops.set(true);
        let until = self.ring.now() + STOP_WAIT;
        let is_at_rest = || self.writes_under_way.get() == 0 && self.store.moves_here.get() == 0;
        while !is_at_rest() && self.ring.now() < until {
            self.ring.sleep(Duration::from_millis(5)).await;
        }
        is_at_rest()
    }
}

/// The file may be missing or, from old versions, hold the csid alone.
async fn read_identity(ring: &Ring, settings: &Settings) -> Identity {
    let bytes = ring.read_file(&settings.data_path.join(IDENTITY_FILE)).await.unwrap_or_default();
    let csid = bytes.first_chunk().map_or(0, |word| u16::from_be_bytes(*word));
    let metaid = bytes.get(2..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_be_bytes(*word));
    Identity { csid, metaid: MetaId(metaid) }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use ring::{DriverChoice, Options};

    use super::*;
    use crate::folders::FolderLine;

    /// A server with one disk, and without a master.
    pub(crate) fn settings_in(folder: &std::path::Path, cores: usize) -> Settings {
        let (data, disk) = (folder.join("data"), folder.join("disk"));
        [&data, &disk].into_iter().for_each(|path| std::fs::create_dir(path).unwrap());
        Settings {
            listen_ip: Ipv4Addr::LOCALHOST,
            listen_port: 0,
            master_host: "127.0.0.1".to_owned(),
            master_port: 9, // nobody is there
            cores,
            ..Settings::new(data, vec![FolderLine::plain(disk.to_str().unwrap())])
        }
    }

    /// When another core is made to panic.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Moment {
        BeforeTheDisksAreTaken,
        Ready,
        AtTheStop,
    }

    /// How a server of three cores ends whose second one panics.
    fn end_after_a_panic(driver: DriverChoice, moment: Moment) -> Result<(), ServerError> {
        let folder = tempfile::tempdir().unwrap();
        let settings = settings_in(folder.path(), 3);
        let options = Options { driver, buffers: settings.buffers(), ..Options::default() };
        ring::run(options, |ring| async move {
            let (server, others, serve_others) = cores::start(&ring, settings).await.unwrap();
            let panics = |server: &Rc<Server>, now: Moment| {
                if moment == now {
                    server.core.tell(1, |_| panic!("on purpose, by a test"));
                }
            };
            panics(&server, Moment::BeforeTheDisksAreTaken);
            let (sender, reloads) = local::channel(1);
            let stop = async {
                if moment == Moment::Ready {
                    std::future::pending::<()>().await; // it ends all the same
                }
                panics(&server, Moment::AtTheStop);
            };
            let ready = || panics(&server, Moment::Ready);
            let life = beside(&ring, serve_others, serve(server.clone(), reloads, stop, ready));
            let end = ring.timeout(Duration::from_secs(60), life).await;
            drop((others, sender));
            end.unwrap_or_else(|_| panic!("{moment:?}: it waits for a core that is no more"))
        })
        .unwrap()
    }

    #[test]
    fn a_server_ends_when_one_of_its_cores_panics_whatever_it_does_just_then() {
        for driver in [DriverChoice::Auto, DriverChoice::Epoll] {
            for moment in [Moment::BeforeTheDisksAreTaken, Moment::Ready, Moment::AtTheStop] {
                let end = end_after_a_panic(driver, moment);
                assert!(matches!(end, Err(ServerError::CoreEnded(_))), "{moment:?}: {end:?}");
            }
        }
    }
}
