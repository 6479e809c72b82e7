//! A whole cluster in one simulated world: master, three chunkservers, two users, and whatever can go wrong.
//!
//! One seed decides time, order, faults and load. Two workers ([`crate::workload`]) work while the master loses its
//! power, chunkservers are killed or lose theirs, and links are cut; then everything is healed, and each worker's
//! folder is read through both clients: every listing and every byte must be as acknowledged.
//!
//! What may be asked of goal 2 decides what is done to the servers: one chunkserver is away at a time. Under `written`
//! they are killed, which costs a process but no byte that the system has. Under `synced` (half of the seeds) one of
//! them also loses its power, and with it what was not synced, but only when every chunk has had the time to get its two
//! copies: a block that is torn while its other copy is behind is beyond what two copies can stand.

use std::cell::{Cell, RefCell};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use chunk::folders::FolderLine;
use chunk::settings::Durability;
use client::{Caller, Client, Errno, Settings};
use daemons::master;
use daemons::signals::Wish;
use ring::sim::{NodeId, World};
use wire::Inode;

use crate::tree::Random;
use crate::workload::{Broken, Counts, READ_WRITE, Worker};

const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CHUNKSERVERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12), Ipv4Addr::new(10, 0, 0, 13)];
const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 21), Ipv4Addr::new(10, 0, 0, 22)];

/// Buffers of each node: of a chunkserver's, 64 are for its cache, so that blocks come and go.
const BUFFERS: usize = 256 + 64;
/// Time for lost copies to be made again, before and after a chunkserver loses its power.
const CALM: Duration = Duration::from_secs(30);
/// Operations of each worker while faults are about.
const STEPS: usize = 50;
/// Virtual time after which everything is healed, whether the workers are done or not.
const FAULTS_END: Duration = Duration::from_secs(200);
/// Virtual time in which a healed cluster must have let every worker finish.
const FINISH_LIMIT: Duration = Duration::from_secs(900);

/// What a run has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub counts: [Counts; 2],
    /// Two runs that agree in this number went the same way.
    pub trace: u64,
    pub faults: usize,
    pub virtual_time: Duration,
}

/// Run the scenario of `seed`.
///
/// Errors: the sentence that says which promise was broken. Seeds divisible by 8 meet no fault, and then no operation
/// may fail.
pub fn run(seed: u64) -> Result<Outcome, Broken> {
    let has_faults = !seed.is_multiple_of(8);
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: BUFFERS, ..Default::default() });
    let began = world.now();
    let durability = if seed.is_multiple_of(2) { Durability::Synced } else { Durability::Written };
    let mut cluster = Cluster::start(&world, durability);
    let finished = Rc::new(Cell::new(0));
    let workers: Vec<Rc<RefCell<Seat>>> = (0..CLIENTS.len())
        .map(|index| seat_worker(&world, cluster.clients[index], index, seed, has_faults, finished.clone()))
        .collect();
    let everybody_is_done = {
        let finished = finished.clone();
        move || finished.get() == CLIENTS.len()
    };

    let mut faults = 0;
    if has_faults {
        let mut random = Random::new(seed ^ 0xFA17);
        let victim = random.below(CHUNKSERVERS.len());
        let power_fails_at = (cluster.durability == Durability::Synced).then_some(victim);
        while world.now().saturating_duration_since(began) < FAULTS_END && !everybody_is_done() {
            world.run_for(Duration::from_millis(300 + random.next() % 4000));
            cluster.one_fault(&world, &mut random, power_fails_at);
            faults += 1;
        }
    }
    wait(&world, FINISH_LIMIT, "the workers to finish", everybody_is_done)?;
    for seat in &workers {
        if let Some(broken) = seat.borrow_mut().broken.take() {
            return Err(broken);
        }
    }
    audit(&world, &cluster, &workers)?;
    let counts = [0, 1].map(|index| workers[index].borrow().worker.as_ref().map_or(Counts::default(), Worker::counts));
    Ok(Outcome { counts, trace: world.trace(), faults, virtual_time: world.now().saturating_duration_since(began) })
}

/// Files of one run of [`lights_out`], and how often each is written.
const SYNCED_FILES: usize = 6;
const SYNCED_ROUNDS: usize = 3;

/// The power of every server fails at once, right behind the last `fsync`. Under the default policy no server had to
/// write anything to its device by then, save what `fsync` asked for.
///
/// Errors: the sentence that says which file is not as it was when its `fsync` returned.
pub fn lights_out(seed: u64) -> Result<(), Broken> {
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: 256, ..Default::default() });
    let mut cluster = Cluster::start(&world, Durability::Written);
    let written = world.run(cluster.clients[0], move |ring| async move {
        let client = connect(&ring).await;
        write_and_sync(&client, seed).await.map_err(|errno| Broken(format!("a healthy cluster fails: {errno}")))
    });
    let files = written.expect("the script ends")?;
    let servers: Vec<NodeId> = [cluster.master].into_iter().chain(cluster.chunkservers).collect();
    for node in &servers {
        world.crash(*node);
    }
    world.run_for(Duration::from_secs(1));
    for node in &servers {
        world.restart(*node);
    }
    cluster.start_master(&world, false);
    for index in 0..CHUNKSERVERS.len() {
        cluster.start_chunkserver(&world, index);
    }
    world.run_for(CALM);
    let compared = world.run(cluster.clients[1], move |ring| async move {
        let client = connect(&ring).await;
        for (name, expected) in files {
            let found = read_whole(&client, &name).await;
            let found = found.map_err(|errno| Broken(format!("{name} cannot be read after the power cut: {errno}")))?;
            if found != expected {
                let at = found.iter().zip(&expected).position(|(found, expected)| found != expected);
                let (is, was) = (found.len(), expected.len());
                return Err(Broken(format!("{name} has {is} bytes of {was}, the first that differs is {at:?}")));
            }
        }
        Ok(())
    });
    compared.expect("the script ends")
}

/// Writes and overwrites files, some blocks whole and some in part, each time with an `fsync`; beside them one file
/// that nobody syncs. Gives names and contents.
async fn write_and_sync(client: &Client, seed: u64) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    let (caller, mut random) = (Caller::root(), Random::new(seed ^ 0xF5C));
    let mut files = Vec::new();
    for number in 0..SYNCED_FILES {
        let name = format!("synced{number}");
        let (_, opened) = client.create(&caller, Inode::ROOT, name.as_bytes(), 0o644, READ_WRITE).await?;
        client.release(opened.handle, None).await?;
        files.push((name, Vec::new()));
    }
    for _ in 0..SYNCED_ROUNDS {
        for (name, bytes) in &mut files {
            let inode = client.lookup(&caller, Inode::ROOT, name.as_bytes()).await?.inode;
            let handle = client.open(&caller, inode, READ_WRITE).await?.handle;
            let place = random.below(bytes.len() + 1);
            let length = 1 + random.below(200_000);
            let data = random.bytes(length);
            bytes.resize(bytes.len().max(place + data.len()), 0);
            bytes[place..place + data.len()].copy_from_slice(&data);
            client.write(handle, place as u64, data.into()).await?;
            // As a program that writes, closes, and syncs later through another handle.
            let handle = if random.below(3) == 0 {
                client.flush(handle, None).await?;
                client.release(handle, None).await?;
                client.open(&caller, inode, READ_WRITE).await?.handle
            } else {
                handle
            };
            client.fsync(handle).await?;
            client.release(handle, None).await?;
            if random.below(4) == 0 {
                let cut = random.below(bytes.len());
                client.truncate(&caller, inode, None, cut as u64).await?;
                bytes.truncate(cut);
            }
        }
    }
    let (_, opened) = client.create(&caller, Inode::ROOT, b"not synced", 0o644, READ_WRITE).await?;
    client.write(opened.handle, 0, random.bytes(100_000).into()).await?;
    client.release(opened.handle, None).await?;
    Ok(files)
}

async fn read_whole(client: &Client, name: &str) -> Result<Vec<u8>, Errno> {
    let caller = Caller::root();
    let entry = client.lookup(&caller, Inode::ROOT, name.as_bytes()).await?;
    let handle = client.open(&caller, entry.inode, READ_WRITE).await?.handle;
    let mut bytes = Vec::new();
    loop {
        let piece = client.read(handle, bytes.len() as u64, 1 << 20).await?;
        if piece.is_empty() {
            break;
        }
        bytes.extend_from_slice(&piece.to_vec());
    }
    client.release(handle, None).await?;
    Ok(bytes)
}

/// A worker's place: where its task leaves it when it is done.
#[derive(Default)]
struct Seat {
    worker: Option<Worker>,
    client: Option<Client>,
    broken: Option<Broken>,
}

fn seat_worker(
    world: &World,
    node: NodeId,
    index: usize,
    seed: u64,
    has_faults: bool,
    finished: Rc<Cell<usize>>,
) -> Rc<RefCell<Seat>> {
    let seat = Rc::new(RefCell::new(Seat::default()));
    let filled = seat.clone();
    drop(world.spawn(node, move |ring| async move {
        let mut random = Random::new(seed.wrapping_mul(2).wrapping_add(index as u64) ^ 0x5EED);
        let client = connect(&ring).await;
        let name = format!("folder{index}");
        let mut worker = match Worker::new(ring.clone(), client.clone(), &name, random.next(), has_faults).await {
            Ok(worker) => worker,
            Err(errno) => {
                filled.borrow_mut().broken = Some(Broken(format!("{name} cannot be made: {errno}")));
                finished.set(finished.get() + 1);
                return;
            }
        };
        for _ in 0..STEPS {
            ring.sleep(Duration::from_millis(random.next() % 2500)).await;
            if let Err(broken) = worker.step().await {
                filled.borrow_mut().broken = Some(broken);
                break;
            }
        }
        let mut seat = filled.borrow_mut();
        seat.worker = Some(worker);
        seat.client = Some(client);
        finished.set(finished.get() + 1);
    }));
    seat
}

/// Mounts as a patient user does: again and again.
async fn connect(ring: &ring::Ring) -> Client {
    loop {
        let settings = Settings::new(SocketAddrV4::new(MASTER, 9421));
        match Client::connect(ring.clone(), settings).await {
            Ok(client) => return client,
            Err(_) => ring.sleep(Duration::from_millis(500)).await,
        }
    }
}

/// With everything healed, each folder through each client, and no failure is excused any more.
fn audit(world: &World, cluster: &Cluster, seats: &[Rc<RefCell<Seat>>]) -> Result<(), Broken> {
    world.run_for(Duration::from_secs(30));
    for reader in 0..seats.len() {
        let client = seats[reader].borrow().client.clone().expect("every worker has finished");
        for seat in seats {
            let mut worker = seat.borrow_mut().worker.take().expect("every worker has finished");
            worker.expect_faults(false);
            let client = client.clone();
            let done = Rc::new(RefCell::new(None));
            let result = done.clone();
            drop(world.spawn(cluster.clients[reader], move |_| async move {
                let outcome = worker.audit(&client).await;
                *result.borrow_mut() = Some((worker, outcome));
            }));
            wait(world, FINISH_LIMIT, "an audit to finish", || done.borrow().is_some())?;
            let (worker, outcome) = done.borrow_mut().take().expect("just looked");
            seat.borrow_mut().worker = Some(worker);
            outcome?;
        }
    }
    Ok(())
}

fn wait(world: &World, limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Broken> {
    let end = world.now() + limit;
    world.run_until(|| holds() || world.now() >= end);
    if holds() { Ok(()) } else { Err(Broken(format!("waited {} virtual seconds in vain for {what}", limit.as_secs()))) }
}

/// The servers and their nodes.
struct Cluster {
    master: NodeId,
    chunkservers: [NodeId; 3],
    clients: [NodeId; 2],
    // Nobody asks the masters to stop; a sender that went away would be taken as a wish.
    wishes: Vec<ring::channel::Sender<Wish>>,
    durability: Durability,
}

impl Cluster {
    fn start(world: &World, durability: Durability) -> Cluster {
        let mut cluster = Cluster {
            master: world.node(MASTER),
            chunkservers: CHUNKSERVERS.map(|ip| world.node(ip)),
            clients: CLIENTS.map(|ip| world.node(ip)),
            wishes: Vec::new(),
            durability,
        };
        let master = cluster.master;
        world.run(master, |ring| async move {
            let made = ring.mkdir(&data_path(), 0o755).await;
            made.expect("the disk of a new node is empty");
            let exports = b"* / rw,alldirs,admin,maproot=0:0\n".to_vec();
            ring.write_file_durably(&exports_path(), 0o644, exports).await.expect("the disk is sound");
        });
        for node in cluster.chunkservers {
            world.run(node, |ring| async move {
                for path in [data_path(), chunks_path()] {
                    ring.mkdir(&path, 0o755).await.expect("the disk of a new node is empty");
                }
                ring.sync_dir(&PathBuf::from("/")).await.expect("the disk is sound");
            });
        }
        cluster.start_master(world, true);
        for index in 0..CHUNKSERVERS.len() {
            cluster.start_chunkserver(world, index);
        }
        // Clients come when the servers have found each other: what a half-built cluster does is another scenario.
        world.run_for(Duration::from_secs(12));
        cluster
    }

    fn start_master(&mut self, world: &World, is_new: bool) {
        let mut settings = master::Settings {
            data_path: data_path(),
            exports_path: exports_path(),
            new_file_system: is_new,
            ..master::Settings::default()
        };
        settings.chunks.delay_init_seconds = 5;
        settings.chunks.delay_disconnect_seconds = 2;
        settings.chunks.sweep_seconds = 60;
        let (sender, wishes) = ring::channel::channel();
        self.wishes.push(sender);
        drop(world.spawn(self.master, move |ring| async move {
            let outcome = master::run(ring, settings, wishes, || {}).await;
            panic!("the master ended by itself: {outcome:?}");
        }));
    }

    fn start_chunkserver(&mut self, world: &World, index: usize) {
        let folders = vec![FolderLine::plain(&chunks_path().to_string_lossy())];
        let mut settings = chunk::settings::Settings::new(data_path(), folders);
        settings.listen_ip = CHUNKSERVERS[index];
        settings.bind_ip = Some(CHUNKSERVERS[index]);
        settings.durability = self.durability;
        settings.master_host = MASTER.to_string();
        settings.master_reconnection_delay = Duration::from_secs(1);
        drop(world.spawn(self.chunkservers[index], move |ring| async move {
            let outcome = chunk::server::run(ring, settings, std::future::pending(), || {}).await;
            panic!("chunkserver {index} ended by itself: {outcome:?}");
        }));
    }

    /// Something breaks, some time passes, and it works again.
    fn one_fault(&mut self, world: &World, random: &mut Random, power_fails_at: Option<usize>) {
        let duration = Duration::from_millis(50 + random.next() % 8000);
        match random.below(10) {
            0 | 1 => {
                world.crash(self.master);
                world.run_for(duration / 2);
                world.restart(self.master);
                self.start_master(world, false);
            }
            2..=5 => {
                let index = random.below(CHUNKSERVERS.len());
                let node = self.chunkservers[index];
                let power_fails = Some(index) == power_fails_at && random.below(2) == 0;
                if power_fails {
                    world.run_for(CALM);
                    world.crash(node);
                } else {
                    world.kill(node);
                }
                world.run_for(duration);
                world.restart(node);
                self.start_chunkserver(world, index);
                if power_fails {
                    world.run_for(CALM);
                }
            }
            _ => {
                let nodes: Vec<NodeId> =
                    [self.master].into_iter().chain(self.chunkservers).chain(self.clients).collect();
                let first = random.below(nodes.len());
                let second = (first + 1 + random.below(nodes.len() - 1)) % nodes.len();
                world.cut(nodes[first], nodes[second]);
                world.run_for(duration);
                world.heal(nodes[first], nodes[second]);
            }
        }
    }
}

fn data_path() -> PathBuf {
    PathBuf::from("/data")
}

fn chunks_path() -> PathBuf {
    PathBuf::from("/chunks")
}

fn exports_path() -> PathBuf {
    PathBuf::from("/data/mfsexports.cfg")
}
