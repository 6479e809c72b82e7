//! The cores of one server: what they share, and how one asks another.
//!
//! A chunk belongs to the core that its id gives: that core alone opens its file, answers for it and changes its place in
//! the registry. So the data path takes no lock that another core may hold. What is not about one chunk belongs to the
//! first core: the master, the listener, disks that come and go, the monitor. What all must see is in `Shared`.
//!
//! ```text
//! first core   master ── orders ──┐       listener ── first request ──┐
//!                                 ▼ by the chunk's id                 ▼
//! each core    mailbox ─▶ Store: registry part, open chunks, cache, intent log      connections of its chunks
//! ```
//!
//! Cores ask one another by closures in a mailbox, carried out in the order in which they came. In the simulation, which
//! has one thread, there is one core.

use std::cell::OnceCell;
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures_util::future::join_all;
use ring::channel::{Receiver, Sender, channel};
use ring::{Instant, Options, Ring};
use wire::{ChunkId, Epoch};

use crate::counters::Counters;
use crate::registry::{Place, Registry, Verdict};
use crate::reports::Reports;
use crate::server::Server;
use crate::settings::Settings;
use crate::store::balance::Moving;
use crate::store::torn::TornChunks;

/// As many cores as a server may be told to have.
pub(crate) const CORES_MAX: usize = 8;
/// As many as it takes unless it is told: more were never measured.
const CORES_BY_ITSELF_MAX: usize = 4;

/// Something that another core is to do. It must not block.
type Message = Box<dyn FnOnce(&Rc<Server>) + Send>;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all cores of a server share.
pub(crate) struct Shared {
    /// By owner. Only the owner changes its part; the first core reads all.
    registries: Vec<Mutex<Registry>>,
    counters: Vec<Arc<Counters>>,
    pub(crate) reports: Reports,
    pub(crate) torn: Mutex<TornChunks>,
    /// Requests and operations under way.
    pub(crate) jobs: AtomicU32,
    pub(crate) connections: AtomicU32,
    /// See `Core::epoch`.
    epoch: AtomicU64,
    /// Volumes whose files are being listed.
    pub(crate) scans_under_way: AtomicU32,
    /// What each core's balance is doing.
    moving: Vec<AtomicU8>,
    /// Chunks that are being moved between disks at full speed.
    pub(crate) moves_under_way: AtomicU32,
    /// When the next block may come from another server.
    pub(crate) next_replicated_block: Mutex<Instant>,
    mailboxes: Vec<Sender<Message>>,
}

impl Shared {
    pub(crate) fn counters(&self) -> &[Arc<Counters>] {
        &self.counters
    }

    /// What the cores' balances are doing, all in all.
    pub(crate) fn moving(&self) -> Moving {
        let moving = self.moving.iter().map(|of_core| of_core.load(Ordering::Relaxed)).max().unwrap_or(0);
        [Moving::No, Moving::Slowly, Moving::Fast][usize::from(moving)]
    }
}

/// One core, and its way to the others.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    /// 0 is the first.
    pub(crate) number: usize,
    server: OnceCell<Weak<Server>>,
}

impl Core {
    /// Makes the server of this core known to those who ask it. Once.
    pub(crate) fn serves(&self, server: &Rc<Server>) {
        assert!(self.server.set(Rc::downgrade(server)).is_ok(), "a core has one server");
    }

    pub(crate) fn count(&self) -> usize {
        self.shared.registries.len()
    }

    pub(crate) fn is_first(&self) -> bool {
        self.number == 0
    }

    /// This core's part of a limit of the whole server.
    pub(crate) fn share(&self, of_all: usize) -> usize {
        of_all.div_ceil(self.count())
    }

    /// The core that answers for a chunk.
    pub(crate) fn owner(&self, id: ChunkId) -> usize {
        (id.0 % self.count() as u64) as usize
    }

    pub(crate) fn owns(&self, id: ChunkId) -> bool {
        self.owner(id) == self.number
    }

    pub(crate) fn counters(&self) -> Arc<Counters> {
        self.shared.counters[self.number].clone()
    }

    pub(crate) fn set_moving(&self, moving: Moving) {
        self.shared.moving[self.number].store(moving as u8, Ordering::Relaxed);
    }

    /// What tells clients whether this server may have lost something that it acknowledged: then it is another.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.shared.epoch.load(Ordering::SeqCst))
    }

    /// Something that was acknowledged may be lost. From now on no client believes that it is here. `random`: a number
    /// that never was one before.
    pub(crate) fn begin_epoch(&self, random: u64) {
        self.shared.epoch.store(Epoch::new(random, self.epoch().is_durable()).0, Ordering::SeqCst);
    }

    // --- the registry

    /// Where a chunk is, whoever its owner.
    pub(crate) fn place(&self, id: ChunkId) -> Option<Place> {
        lock(&self.shared.registries[self.owner(id)]).get(id)
    }

    /// Notes where a chunk of this core is.
    pub(crate) fn insert(&self, id: ChunkId, place: Place) {
        self.own_registry(id).insert(id, place);
    }

    /// Forgets a chunk of this core.
    pub(crate) fn remove(&self, id: ChunkId) {
        self.own_registry(id).remove(id);
    }

    /// Takes in a file of a chunk of this core that a scan found.
    pub(crate) fn found(&self, id: ChunkId, place: Place, known_is_in_use: bool) -> Verdict {
        self.own_registry(id).found(id, place, known_is_in_use)
    }

    fn own_registry(&self, id: ChunkId) -> MutexGuard<'_, Registry> {
        assert!(self.owns(id), "chunk {id} belongs to another core");
        lock(&self.shared.registries[self.number])
    }

    /// This core's chunks on a volume.
    pub(crate) fn of_volume(&self, volume: u16) -> Vec<(ChunkId, Place)> {
        lock(&self.shared.registries[self.number]).of_volume(volume)
    }

    /// At most `count` chunks of this core with ids above `after`, ascending.
    pub(crate) fn some_after(&self, after: ChunkId, count: usize) -> Vec<(ChunkId, Place)> {
        lock(&self.shared.registries[self.number]).some_after(after, count)
    }

    /// As `some_after`, of all cores.
    pub(crate) fn some_of_all_after(&self, after: ChunkId, count: usize) -> Vec<(ChunkId, Place)> {
        let parts = self.shared.registries.iter();
        let mut some: Vec<_> = parts.flat_map(|part| lock(part).some_after(after, count)).collect();
        some.sort_unstable_by_key(|(id, _)| *id);
        some.truncate(count);
        some
    }

    /// All chunks of a volume.
    pub(crate) fn all_of_volume(&self, volume: u16) -> Vec<(ChunkId, Place)> {
        self.shared.registries.iter().flat_map(|part| lock(part).of_volume(volume)).collect()
    }

    // --- asking others

    /// Has a core do something, after whatever it was told before. At once if it is this one.
    pub(crate) fn tell(&self, core: usize, act: impl FnOnce(&Rc<Server>) + Send + 'static) {
        if core == self.number {
            act(&self.server());
        } else {
            let _ = self.shared.mailboxes[core].send(Box::new(act)); // a core that has ended does nothing
        }
    }

    /// As `tell`, all cores but this one.
    pub(crate) fn tell_others(&self, act: impl FnOnce(&Rc<Server>) + Clone + Send + 'static) {
        (0..self.count()).filter(|core| *core != self.number).for_each(|core| self.tell(core, act.clone()));
    }

    /// What a core answers. The work goes on there, also if nobody waits any more.
    pub(crate) async fn ask<T, Work, Answer>(&self, core: usize, work: Work) -> T
    where
        T: Send + 'static,
        Work: FnOnce(Rc<Server>) -> Answer + Send + 'static,
        Answer: Future<Output = T> + 'static,
    {
        if core == self.number {
            return work(self.server()).await;
        }
        let (sender, mut answer) = channel();
        self.tell(core, move |server| {
            let working = work(server.clone());
            server.ring.spawn(async move { drop(sender.send(working.await)) });
        });
        match answer.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await, // that core has ended, and this one is about to
        }
    }

    /// What each core answers, by number.
    pub(crate) async fn ask_all<T, Work, Answer>(&self, work: Work) -> Vec<T>
    where
        T: Send + 'static,
        Work: FnOnce(Rc<Server>) -> Answer + Clone + Send + 'static,
        Answer: Future<Output = T> + 'static,
    {
        join_all((0..self.count()).map(|core| self.ask(core, work.clone()))).await
    }

    fn server(&self) -> Rc<Server> {
        self.server.get().and_then(Weak::upgrade).expect("who asks is a part of the server")
    }
}

/// The cores beside the first. They end when this is dropped.
pub(crate) struct Others {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// How many cores a server gets; in the simulation, one.
pub(crate) fn count(settings: &Settings) -> usize {
    match settings.cores {
        0 => thread::available_parallelism().map_or(1, usize::from).min(CORES_BY_ITSELF_MAX),
        cores => cores.min(CORES_MAX),
    }
}

/// Starts the cores beside this one, which is the first, and gives what is needed to be that. The future that is
/// returned carries out what others ask of this core; it ends with a sentence if another core ends by itself.
///
/// Errors: a ring cannot be had.
pub(crate) async fn start(
    ring: &Ring,
    settings: Settings,
) -> std::io::Result<(Rc<Server>, Others, impl Future<Output = String> + use<>)> {
    let count = if ring.options().is_some() { count(&settings) } else { 1 };
    let (mailboxes, mut letters): (Vec<_>, Vec<_>) = (0..count).map(|_| channel::<Message>()).unzip();
    let shared = Arc::new(Shared {
        registries: (0..count).map(|_| Mutex::default()).collect(),
        counters: (0..count).map(|_| Arc::default()).collect(),
        reports: Reports::default(),
        torn: Mutex::default(),
        jobs: AtomicU32::new(0),
        connections: AtomicU32::new(0),
        epoch: AtomicU64::new(Epoch::new(ring.random_u64(), settings.is_synced()).0),
        scans_under_way: AtomicU32::new(0),
        moving: (0..count).map(|_| AtomicU8::new(0)).collect(),
        moves_under_way: AtomicU32::new(0),
        next_replicated_block: Mutex::new(ring.now()),
        mailboxes,
    });
    let mut others = Others { shared: shared.clone(), threads: Vec::new() };
    let (ended, mut ends) = channel::<()>();
    for (number, letters) in letters.drain(1..).enumerate().map(|(at, letters)| (at + 1, letters)) {
        let options =
            Options { buffers: settings.buffers_of(count), pin_to_core: None, ..ring.options().expect("a real ring") };
        let (shared, settings, ended) = (shared.clone(), settings.clone(), ended.clone());
        let (started, mut start) = channel::<()>();
        let body = move || -> std::io::Result<()> {
            let _ended = SaysEnd(ended);
            ring::run(options, |ring| another_core(ring, settings, shared, number, letters, started))
        };
        let (say_why, mut why) = channel();
        let thread = thread::Builder::new().name(format!("chunks-{number}"));
        others.threads.push(thread.spawn(move || {
            if let Err(error) = body() {
                let _ = say_why.send(error);
            }
        })?);
        if start.recv().await.is_none() {
            return Err(why.recv().await.unwrap_or_else(|| std::io::Error::other("its thread panicked")));
        }
    }
    drop(ended);
    let first = Core { shared, number: 0, server: OnceCell::new() };
    let server = Server::start(ring, settings, first).await;
    let is_alone = count == 1;
    let mut letters = letters.pop().expect("the first core's is left");
    let of_server = Rc::downgrade(&server);
    let serve = async move {
        loop {
            let letter = std::pin::pin!(letters.recv());
            let end = std::pin::pin!(async {
                match is_alone {
                    true => std::future::pending().await,
                    false => ends.recv().await,
                }
            });
            let futures_util::future::Either::Left((Some(letter), _)) = futures_util::future::select(letter, end).await
            else {
                return "a thread of a core has ended; what it said last is above".to_owned();
            };
            let Some(server) = of_server.upgrade() else { std::future::pending().await };
            letter(&server);
        }
    };
    Ok((server, others, serve))
}

/// The life of a core that is not the first.
async fn another_core(
    ring: Ring,
    settings: Settings,
    shared: Arc<Shared>,
    number: usize,
    mut letters: Receiver<Message>,
    started: Sender<()>,
) {
    let core = Core { shared, number, server: OnceCell::new() };
    let server = Server::start(&ring, settings, core).await;
    let _background = server.begin_background();
    let _ = started.send(());
    while let Some(letter) = letters.recv().await {
        letter(&server);
        if server.ended.get() {
            return;
        }
    }
}

/// Tells the first core that a thread ends, also by a panic.
struct SaysEnd(Sender<()>);

impl Drop for SaysEnd {
    fn drop(&mut self) {
        let _ = self.0.send(()); // at a stop nobody listens any more
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        for mailbox in self.shared.mailboxes.iter().skip(1) {
            let _ = mailbox.send(Box::new(|server| server.ended.set(true)));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // a panic was said by the thread itself
        }
    }
}
