//! The power of chunkservers fails between a write's acknowledgement and its `fsync`, while master and mount live on.
//!
//! The servers come back with what they had on their devices, which is older than what they had acknowledged. An `fsync`
//! that returns 0 after that promises the newer bytes: so the power fails once more, everywhere, and each copy alone is
//! read. Some of them only restart, or only lose their connections, and lose nothing.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use chunk::folders::FolderLine;
use chunk::settings::Durability;
use client::{Caller, Client, Errno, Settings};
use daemons::master;
use daemons::signals::Wish;
use ring::sim::{NodeId, World};
use wire::Inode;

use crate::tree::Random;
use crate::workload::{Broken, READ_WRITE};

const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const CHUNKSERVERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12)];
const WRITER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 21);
const READER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 22);
const FILE_BYTES: usize = 256 << 10;
const ROUNDS: usize = 3;
/// Until servers are registered again and copies have been made where they are missing.
const CALM: Duration = Duration::from_secs(30);

/// What happens to a chunkserver between the acknowledgement and the `fsync`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accident {
    PowerCut,
    Kill,
    LostConnection,
    None,
}

/// Run the scenario of `seed`. Errors: the sentence that says which promise was broken.
pub fn run(seed: u64) -> Result<(), Broken> {
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: 256, ..Default::default() });
    let durability = if seed.is_multiple_of(4) { Durability::Synced } else { Durability::Written };
    let mut cluster = Cluster::start(&world, durability);
    let mut random = Random::new(seed ^ 0x90E3);
    let writer = world.node(WRITER);
    let client = world.run(writer, |ring| async move { connect(&ring).await }).expect("the cluster is healthy");
    let fails = |what: &str, errno: Errno| Broken(format!("{what} fails on a cluster that is back: {errno}"));

    let mut content = random.bytes(FILE_BYTES);
    let (first, in_it) = (content.clone(), client.clone());
    let handle = world.run(writer, |_| async move {
        let (_, opened) = in_it.create(&Caller::root(), Inode::ROOT, b"file", 0o644, READ_WRITE).await?;
        in_it.write(opened.handle, 0, first.into()).await?;
        in_it.fsync(opened.handle).await?;
        Ok(opened.handle)
    });
    let handle = handle.expect("the script ends").map_err(|errno| fails("the first write", errno))?;

    for _ in 0..ROUNDS {
        let place = random.below(FILE_BYTES);
        let (size, is_closed) = (1 + random.below(FILE_BYTES - place), random.below(3) == 0);
        let data = random.bytes(size);
        content[place..place + size].copy_from_slice(&data);
        let in_it = client.clone();
        let written = world.run(writer, |ring| async move {
            in_it.write(handle, place as u64, data.into()).await?;
            if is_closed {
                in_it.flush(handle, None).await?;
            }
            ring.sleep(Duration::from_secs(1)).await; // acknowledged, without an fsync
            Ok(())
        });
        written.expect("the script ends").map_err(|errno| fails("a write", errno))?;

        let kinds = [Accident::PowerCut, Accident::PowerCut, Accident::Kill, Accident::LostConnection, Accident::None];
        let accidents = [0, 1].map(|_| kinds[random.below(kinds.len())]);
        cluster.accidents(&world, &accidents);
        world.run_for(Duration::from_millis(random.next() % 15_000));
        let in_it = client.clone();
        let synced = world.run(writer, |_| async move { in_it.fsync(handle).await });
        let synced = synced.expect("an fsync ends");
        // The bytes are in the mount's memory, so nothing need be lost.
        synced.map_err(|errno| fails(&format!("fsync after {accidents:?}"), errno))?;

        cluster.accidents(&world, &[Accident::PowerCut; 2]);
        world.run_for(CALM);
        for alone in 0..CHUNKSERVERS.len() {
            cluster.down(&world, 1 - alone);
            let expected = content.clone();
            let read = world.run(world.node(READER), |ring| async move { read_file(&ring, &expected).await });
            let read = read.expect("the script ends");
            read.map_err(|broken| Broken(format!("{accidents:?}, then all power, copy {alone} alone: {}", broken.0)))?;
            cluster.up(&world, 1 - alone);
            world.run_for(CALM);
        }
    }
    Ok(())
}

async fn connect(ring: &ring::Ring) -> Client {
    loop {
        match Client::connect(ring.clone(), Settings::new(SocketAddrV4::new(MASTER, 9421))).await {
            Ok(client) => return client,
            Err(_) => ring.sleep(Duration::from_millis(500)).await,
        }
    }
}

/// Reads the file through a mount of its own.
async fn read_file(ring: &ring::Ring, expected: &[u8]) -> Result<(), Broken> {
    let client = connect(ring).await;
    let read = async {
        let inode = client.lookup(&Caller::root(), Inode::ROOT, b"file").await?.inode;
        let handle = client.open(&Caller::root(), inode, READ_WRITE).await?.handle;
        let bytes = client.read(handle, 0, FILE_BYTES as u32).await?.to_vec();
        client.release(handle, None).await?;
        Ok::<_, Errno>(bytes)
    };
    let found = read.await.map_err(|errno| Broken(format!("cannot be read: {errno}")))?;
    client.close().await;
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None if found.len() == expected.len() => Ok(()),
        at => Err(Broken(format!("{} bytes of {}, the first that differs is {at:?}", found.len(), expected.len()))),
    }
}

struct Cluster {
    master: NodeId,
    chunkservers: [NodeId; 2],
    durability: Durability,
    // Nobody asks the master to stop; a sender that went away would be taken as a wish.
    _wishes: ring::channel::Sender<Wish>,
}

impl Cluster {
    fn start(world: &World, durability: Durability) -> Cluster {
        let (master, chunkservers) = (world.node(MASTER), CHUNKSERVERS.map(|ip| world.node(ip)));
        world.run(master, |ring| async move {
            ring.mkdir(&data_path(), 0o755).await.expect("the disk of a new node is empty");
            let exports = b"* / rw,alldirs,admin,maproot=0:0\n".to_vec();
            ring.write_file_durably(&exports_path(), 0o644, exports).await.expect("the disk is sound");
        });
        for node in chunkservers {
            world.run(node, |ring| async move {
                for path in [data_path(), chunks_path()] {
                    ring.mkdir(&path, 0o755).await.expect("the disk of a new node is empty");
                }
                ring.sync_dir(&PathBuf::from("/")).await.expect("the disk is sound");
            });
        }
        let mut settings = master::Settings {
            data_path: data_path(),
            exports_path: exports_path(),
            new_file_system: true,
            ..master::Settings::default()
        };
        settings.chunks.delay_init_seconds = 5;
        settings.chunks.delay_disconnect_seconds = 2;
        settings.chunks.sweep_seconds = 60;
        let (_wishes, wishes) = ring::channel::channel();
        drop(world.spawn(master, move |ring| async move {
            let outcome = master::run(ring, settings, wishes, || {}).await;
            panic!("the master ended by itself: {outcome:?}");
        }));
        let cluster = Cluster { master, chunkservers, durability, _wishes };
        (0..CHUNKSERVERS.len()).for_each(|index| cluster.start_chunkserver(world, index));
        world.run_for(Duration::from_secs(12));
        cluster
    }

    fn start_chunkserver(&self, world: &World, index: usize) {
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

    /// All at the same time; half a second later everything that was ended is started again.
    fn accidents(&mut self, world: &World, accidents: &[Accident; 2]) {
        for (index, accident) in accidents.iter().enumerate() {
            let node = self.chunkservers[index];
            match accident {
                Accident::PowerCut => world.crash(node),
                Accident::Kill => world.kill(node),
                Accident::LostConnection => {
                    world.cut(node, self.master);
                    world.cut(node, world.node(WRITER));
                }
                Accident::None => {}
            }
        }
        let is_short = !accidents.contains(&Accident::LostConnection);
        world.run_for(if is_short { Duration::from_millis(500) } else { Duration::from_secs(12) });
        for (index, accident) in accidents.iter().enumerate() {
            let node = self.chunkservers[index];
            match accident {
                Accident::PowerCut | Accident::Kill => self.up(world, index),
                Accident::LostConnection => {
                    world.heal(node, self.master);
                    world.heal(node, world.node(WRITER));
                }
                Accident::None => {}
            }
        }
    }

    fn down(&self, world: &World, index: usize) {
        world.kill(self.chunkservers[index]);
    }

    fn up(&self, world: &World, index: usize) {
        world.restart(self.chunkservers[index]);
        self.start_chunkserver(world, index);
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
