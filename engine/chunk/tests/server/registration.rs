//! Life under a master. Spec 40, 3 to 6 and 10.

use chunk::server::ServerError;
use md5::{Digest, Md5};
use wire::*;

use crate::support::master::{METAID, Master};
use crate::support::{DATA_PORT, everywhere, in_sim, noise};

#[test]
fn a_server_registers_and_says_farewell() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        assert_eq!(master.begin.version, VersionWord::OURS);
        assert_eq!((master.begin.ip, master.begin.port), (bed.nodes[1].ip.into(), DATA_PORT));
        assert_eq!((master.begin.csid, master.listed.len()), (0, 0));
        assert_eq!(master.create(5, 1).await, Status::OK);
        let space: CstomaSpace = master.report().await;
        assert!(space.space.total > 0);
        let load: CstomaCurrentLoad = master.report().await;
        assert_eq!((load.hlstatus, load.transferring), (Some(1), None));
        let node = &bed.nodes[1];
        let running = node.ring.spawn(running.stop());
        assert_eq!(CstomaRegister::decode(&master.next().await.unwrap().1), Ok(CstomaRegister::Disconnect));
        assert_eq!(master.next().await, None);
        running.await;
        assert_eq!(node.read(&node.hdd().join(".metaid")).await, METAID.0.to_be_bytes());
        let identity = node.read(&node.root.join("var/chunkserverid.mfs")).await;
        assert_eq!(identity, [&7u16.to_be_bytes()[..], &METAID.0.to_be_bytes()].concat());
    });
}

#[test]
fn chunks_are_listed_in_parts_after_a_restart() {
    in_sim(2, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start(1).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=25 {
            assert_eq!(master.create(id, id as u32).await, Status::OK);
        }
        running.stop().await;
        let mut settings = bed.settings(1);
        settings.chunks_per_register_packet = 10;
        settings.folders[0].marked_for_removal = true;
        let running = bed.start_with(1, settings).await;
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.begin.csid, 7, "the number that the master gave is kept");
        assert_eq!(master.begin.space.tdchunks, 25);
        let listed: Vec<(u64, u32)> = master.listed.iter().map(|chunk| (chunk.chunkid.0, chunk.version)).collect();
        let expected: Vec<(u64, u32)> = (1..=25).map(|id| (id, id as u32 | 1 << 31)).collect();
        assert_eq!(listed, expected, "bit 31 says that the disk is marked for removal");
        running.stop().await;
    });
}

#[test]
fn a_lost_master_is_connected_to_again() {
    in_sim(3, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start(1).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.create(9, 1).await, Status::OK);
        drop(master);
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.listed.len(), 1);
        running.stop().await;
    });
}

#[test]
fn a_password_is_proved_by_the_digest() {
    in_sim(4, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let mut settings = bed.settings(1);
        settings.auth_code = Some(b"secret".to_vec());
        let running = bed.start_with(1, settings).await;
        let mut master = Master::greet(&listener).await;
        let random: [u8; 32] = std::array::from_fn(|at| at as u8);
        master.send(MatocsMasterAck::Challenge(random)).await;
        let (_, payload) = master.next().await.unwrap();
        let Ok(CstomaRegister::Begin { passcode, .. }) = CstomaRegister::decode(&payload) else { panic!("a BEGIN") };
        let expected: [u8; 16] = Md5::digest([&random[..16], b"secret", &random[16..]].concat()).into();
        assert_eq!(passcode, Some(expected));
        running.stop().await;
    });
}

#[test]
fn the_master_of_another_file_system_is_refused_until_the_right_one_is_back_and_nothing_is_touched() {
    in_sim(5, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start(1).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.create(1, 1).await, Status::OK);
        running.stop().await;
        let running = bed.start(1).await;
        for _ in 0..3 {
            let mut other = Master::greet(&listener).await;
            other.acknowledge(MetaId(99)).await;
            assert!(other.next().await.is_none(), "it hangs up, and lists nothing");
        }
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.listed.len(), 1);
        running.stop().await;
        let node = &bed.nodes[1];
        assert_eq!(node.read(&node.hdd().join(".metaid")).await, METAID.0.to_be_bytes());
        node.chunk_path(1, 1).await;
    });
}

#[test]
fn a_folder_of_another_file_system_is_refused() {
    in_sim(6, |bed| async move {
        let node = &bed.nodes[1];
        node.prepare().await;
        node.write(&node.root.join("var/chunkserverid.mfs"), [&[0u8, 7][..], &METAID.0.to_be_bytes()].concat()).await;
        node.write(&node.hdd().join(".metaid"), 99u64.to_be_bytes().to_vec()).await;
        let running = bed.start(1).await;
        assert!(matches!(running.end().await, Err(ServerError::Folders(_))));
    });
}

#[test]
fn hours_without_a_master_lose_nothing() {
    in_sim(8, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let settings = chunk::settings::Settings {
            master_reconnection_delay: std::time::Duration::from_secs(5),
            ..bed.settings(1)
        };
        let running = bed.start_with(1, settings).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=2 {
            assert_eq!(master.create(id, 1).await, Status::OK);
            bed.client(1).await.write(id, 1, &[], 0, &noise(id, 100_000)).await;
        }
        drop((master, listener));
        bed.sleep(std::time::Duration::from_secs(3600)).await;
        assert!(bed.client(1).await.read_ok(1, 1, 0, 100_000).await == noise(1, 100_000), "clients are served on");
        let node = &bed.nodes[1];
        node.rot(&node.chunk_path(2, 1).await, 8192 + 70_000).await;
        assert_eq!(bed.client(1).await.read(2, 1, 65_536, 10).await.1, Status::CRC);
        bed.sleep(std::time::Duration::from_secs(2 * 3600)).await;
        let listener = Master::listen(&bed.nodes[0]);
        let began = bed.nodes[0].ring.now();
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert!(bed.nodes[0].ring.now() - began < std::time::Duration::from_secs(10), "it tries every five seconds");
        assert_eq!(master.listed.iter().map(|chunk| chunk.chunkid.0).collect::<Vec<_>>(), [1, 2]);
        let damaged: CstomaChunkDamaged = master.report().await;
        assert_eq!(damaged.chunks, [ChunkId(2)]);
        assert_eq!(master.delete(2, 1).await, Status::OK);
        running.stop().await;
    });
}
