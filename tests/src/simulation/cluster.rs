//! The servers of a simulated cluster: how they are laid out, started, and waited for.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use chunk::folders::FolderLine;
use chunk::settings::Durability;
use client::{Client, Settings};
use daemons::master;
use daemons::signals::Wish;
use ring::sim::{NodeId, World};

use crate::workload::Broken;

pub(super) const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const CHUNKSERVERS: [Ipv4Addr; 3] =
    [Ipv4Addr::new(10, 0, 0, 11), Ipv4Addr::new(10, 0, 0, 12), Ipv4Addr::new(10, 0, 0, 13)];
pub(super) const CLIENTS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 21), Ipv4Addr::new(10, 0, 0, 22)];

/// Buffers of each node: of a chunkserver's, 64 are for its cache, so that blocks come and go.
pub(super) const BUFFERS: usize = 256 + 64;
/// Time for lost copies to be made again, before and after a chunkserver loses its power.
pub(super) const CALM: Duration = Duration::from_secs(30);

/// The servers and their nodes.
pub(super) struct Cluster {
    pub(super) master: NodeId,
    pub(super) chunkservers: [NodeId; 3],
    pub(super) clients: [NodeId; 2],
    // Nobody asks the masters to stop; a sender that went away would be taken as a wish.
    wishes: Vec<ring::channel::Sender<Wish>>,
    pub(super) durability: Durability,
}

impl Cluster {
    pub(super) fn start(world: &World, durability: Durability) -> Cluster {
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

    pub(super) fn start_master(&mut self, world: &World, is_new: bool) {
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

    pub(super) fn start_chunkserver(&mut self, world: &World, index: usize) {
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
}

pub(super) fn data_path() -> PathBuf {
    PathBuf::from("/data")
}

pub(super) fn chunks_path() -> PathBuf {
    PathBuf::from("/chunks")
}

pub(super) fn exports_path() -> PathBuf {
    PathBuf::from("/data/mfsexports.cfg")
}

/// Mounts as a patient user does: again and again.
pub(super) async fn connect(ring: &ring::Ring) -> Client {
    loop {
        let settings = Settings::new(SocketAddrV4::new(MASTER, 9421));
        match Client::connect(ring.clone(), settings).await {
            Ok(client) => return client,
            Err(_) => ring.sleep(Duration::from_millis(500)).await,
        }
    }
}

pub(super) fn wait(world: &World, limit: Duration, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Broken> {
    let end = world.now() + limit;
    world.run_until(|| holds() || world.now() >= end);
    if holds() { Ok(()) } else { Err(Broken(format!("waited {} virtual seconds in vain for {what}", limit.as_secs()))) }
}
