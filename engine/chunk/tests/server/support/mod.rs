//! A bed for scenarios: nodes with a ring, an address and a folder each, simulated or real.

pub(crate) mod client;
pub(crate) mod master;

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use chunk::folders::FolderLine;
use chunk::server::ServerError;
use chunk::settings::{IoMode, Settings};
use ring::local::{OneshotSender, Sender, channel, oneshot};
use ring::sim::World;
use ring::{DriverChoice, JoinHandle, Options, Ring};
use wire::{ChunkId, Version};

use client::Client;
use master::Master;

pub(crate) const MASTER_PORT: u16 = 9420;
pub(crate) const DATA_PORT: u16 = 9422;

#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) ring: Ring,
    pub(crate) ip: Ipv4Addr,
    pub(crate) root: PathBuf,
}

/// Node 0 is for master and clients, the others for chunkservers.
#[derive(Clone)]
pub(crate) struct Bed {
    pub(crate) nodes: Vec<Node>,
    pub(crate) io_mode: IoMode,
    pub(crate) is_simulated: bool,
    pub(crate) block_cache_mib: u32,
    pub(crate) cores: usize,
}

const NODES: u8 = 5;

/// Runs a scenario in a simulated world, with direct and with buffered files.
pub(crate) fn in_sim<Fut: Future<Output = ()> + 'static>(seed: u64, scenario: impl Fn(Bed) -> Fut) {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let world = World::new(seed, ring::sim::Settings::default());
        let bed = sim_bed(&world, io_mode);
        let ended = world.run(world.node(bed.nodes[0].ip), |_| scenario(bed.clone()));
        assert!(ended.is_some(), "seed {seed}, {io_mode:?}: the scenario came to an end");
    }
}

pub(crate) fn sim_bed(world: &World, io_mode: IoMode) -> Bed {
    let nodes = (0..NODES)
        .map(|number| {
            let ip = Ipv4Addr::new(10, 0, 0, 1 + number);
            Node { ring: world.ring(world.node(ip)), ip, root: PathBuf::from("/data") }
        })
        .collect();
    Bed { nodes, io_mode, is_simulated: true, block_cache_mib: 4, cores: 1 }
}

/// Runs a scenario in a simulated world and on the real drivers, with direct and with buffered files, and there with
/// servers of one core and of three.
pub(crate) fn everywhere<Fut: Future<Output = ()> + 'static>(scenario: impl Fn(Bed) -> Fut) {
    in_sim(1, &scenario);
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        for io_mode in [IoMode::Direct, IoMode::Buffered] {
            for cores in [1, 3] {
                on_driver(driver, io_mode, cores, &scenario);
            }
        }
    }
}

/// Runs a scenario on the real drivers alone, with direct and with buffered files.
pub(crate) fn on_real_drivers<Fut: Future<Output = ()>>(cores: usize, scenario: impl Fn(Bed) -> Fut) {
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        for io_mode in [IoMode::Direct, IoMode::Buffered] {
            on_driver(driver, io_mode, cores, &scenario);
        }
    }
}

fn on_driver<Fut: Future<Output = ()>>(
    driver: DriverChoice,
    io_mode: IoMode,
    cores: usize,
    scenario: impl Fn(Bed) -> Fut,
) {
    static NEXT_NET: AtomicU8 = AtomicU8::new(0);
    let net = NEXT_NET.fetch_add(1, Ordering::Relaxed);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { driver, buffers: 512, ..Options::default() };
    let second = 64 + (std::process::id() % 128) as u8;
    let ran = ring::run(options, |ring| {
        let nodes = (0..NODES)
            .map(|number| Node {
                ring: ring.clone(),
                ip: Ipv4Addr::new(127, second, net, 1 + number),
                root: folder.path().join(number.to_string()),
            })
            .collect();
        scenario(Bed { nodes, io_mode, is_simulated: false, block_cache_mib: 4, cores })
    });
    match ran {
        Err(error) if driver == DriverChoice::Uring => eprintln!("no io_uring here, driver not tested: {error}"),
        ran => ran.unwrap(),
    }
}

impl Node {
    pub(crate) fn hdd(&self) -> PathBuf {
        self.root.join("hdd")
    }

    /// Folders for a chunkserver, if they are not there.
    pub(crate) async fn prepare(&self) {
        for path in [self.root.clone(), self.hdd(), self.root.join("var")] {
            let _ = self.ring.mkdir(&path, 0o755).await;
        }
    }

    pub(crate) fn data_address(&self) -> SocketAddr {
        SocketAddr::from((self.ip, DATA_PORT))
    }

    /// Where the file of a chunk is. Panics if there is none.
    pub(crate) async fn chunk_path(&self, id: u64, version: u32) -> PathBuf {
        let found = self.find_chunk(id, version).await;
        found.unwrap_or_else(|| panic!("no file of chunk {id} version {version}"))
    }

    pub(crate) async fn find_chunk(&self, id: u64, version: u32) -> Option<PathBuf> {
        self.chunk_path_in("hdd", id, version).await
    }

    /// As `find_chunk`, in another folder of the node.
    pub(crate) async fn chunk_path_in(&self, folder: &str, id: u64, version: u32) -> Option<PathBuf> {
        let name = chunk::layout::chunk_name(ChunkId(id), Version(version));
        for subfolder in 0..=255 {
            let path = self.root.join(folder).join(chunk::layout::subfolder_name(subfolder)).join(&name);
            if self.ring.stat(&path).await.is_ok() {
                return Some(path);
            }
        }
        None
    }

    /// Chunk files in a folder of the node.
    pub(crate) async fn chunk_count(&self, folder: &str) -> usize {
        let mut count = 0;
        for subfolder in 0..=255 {
            let path = self.root.join(folder).join(chunk::layout::subfolder_name(subfolder));
            count += self.ring.list(&path).await.map_or(0, |files| files.len());
        }
        count
    }

    pub(crate) async fn read(&self, path: &Path) -> Vec<u8> {
        self.ring.read_file(path).await.unwrap()
    }

    pub(crate) async fn write(&self, path: &Path, bytes: Vec<u8>) {
        let file = self.ring.open(path, ring::OpenHow::create(0o644)).await.unwrap();
        file.write_all_at(bytes, 0).await.0.unwrap();
    }

    /// Alters one byte of a file, as rot does.
    pub(crate) async fn rot(&self, path: &Path, offset: u64) {
        let file = self.ring.open(path, ring::OpenHow::read_write()).await.unwrap();
        let (count, byte) = file.read_at(vec![0u8; 1], offset).await;
        assert_eq!(count.unwrap(), 1);
        file.write_all_at(vec![byte[0] ^ 0x40], offset).await.0.unwrap();
    }
}

/// A chunkserver that runs.
pub(crate) struct Running {
    pub(crate) reload: Sender<Settings>,
    stop: OneshotSender<()>,
    ended: JoinHandle<Result<(), ServerError>>,
}

impl Running {
    /// Stops it in good order.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.ended.await.expect("not aborted").unwrap();
    }

    /// Waits for an end of its own.
    pub(crate) async fn end(self) -> Result<(), ServerError> {
        let Running { stop, ended, .. } = self;
        let result = ended.await.expect("not aborted");
        drop(stop);
        result
    }
}

impl Bed {
    /// The same, for servers that read every block from disk, with what has become of it there.
    pub(crate) fn without_cache(self) -> Bed {
        Bed { block_cache_mib: 0, ..self }
    }

    pub(crate) fn settings(&self, number: usize) -> Settings {
        let node = &self.nodes[number];
        Settings {
            listen_ip: node.ip,
            listen_port: DATA_PORT,
            master_host: self.nodes[0].ip.to_string(),
            master_port: MASTER_PORT,
            master_timeout_sec: 60_000,
            master_reconnection_delay: Duration::from_millis(50),
            leave_space_bytes: 1 << 20,
            test_speed: 0.0,
            io_mode: self.io_mode,
            block_cache_mib: self.block_cache_mib,
            cores: self.cores,
            ..Settings::new(node.root.join("var"), vec![FolderLine::plain(node.hdd().to_str().unwrap())])
        }
    }

    pub(crate) async fn start(&self, number: usize) -> Running {
        self.start_with(number, self.settings(number)).await
    }

    pub(crate) async fn start_with(&self, number: usize, settings: Settings) -> Running {
        let node = &self.nodes[number];
        node.prepare().await;
        let (stop, stopped) = oneshot();
        let (is_ready, ready) = oneshot();
        let stopped = async move {
            stopped.await;
        };
        let (reload, reloads) = channel(1);
        let run = chunk::server::run_with_reloads(node.ring.clone(), settings, reloads, stopped, move || {
            let _ = is_ready.send(());
        });
        let ended = node.ring.spawn(run);
        ready.await;
        Running { reload, stop, ended }
    }

    /// One chunkserver on node 1, registered with a master.
    pub(crate) async fn one_server(&self) -> (Running, Master) {
        let listener = Master::listen(&self.nodes[0]);
        let running = self.start(1).await;
        (running, Master::accept(&self.nodes[0].ring, &listener).await)
    }

    /// So many chunkservers on nodes 1, 2, …, each with a master of its own.
    pub(crate) async fn servers(&self, count: usize) -> Vec<(Running, Master)> {
        let listener = Master::listen(&self.nodes[0]);
        let mut servers = Vec::new();
        for number in 1..=count {
            let running = self.start(number).await;
            servers.push((running, Master::accept(&self.nodes[0].ring, &listener).await));
        }
        servers
    }

    pub(crate) async fn client(&self, number: usize) -> Client {
        Client::connect(&self.nodes[0].ring, self.nodes[number].data_address()).await
    }

    pub(crate) async fn sleep(&self, duration: Duration) {
        self.nodes[0].ring.sleep(duration).await;
    }
}

/// Bytes that differ from place to place, by a seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut seed = wire::Seed(seed);
    let words = (0..bytes.div_ceil(8)).flat_map(|_| seed.next_u64().to_be_bytes());
    words.take(bytes).collect()
}
