//! Reads, questions and the rules of port 9422. Spec 20, 2, 3 and 8.

use std::time::Duration;

use wire::types::Name;
use wire::*;

use crate::support::{everywhere, in_sim, noise};

#[test]
fn ranges_come_back_block_by_block() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let data = noise(1, 1_000_000);
        master.create(1, 1).await;
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        for (offset, size) in [(0, 1), (0, 65_536), (65_535, 2), (1, 999_999), (500_000, 400_000), (131_072, 65_536)] {
            let expected = &data[offset as usize..(offset + size) as usize];
            assert!(client.read_ok(1, 1, offset, size).await == expected, "{size} bytes at {offset}");
        }
        assert_eq!(client.read_ok(1, 1, (64 << 20) - 5, 5).await, [0; 5], "behind the end are zeros");
        assert_eq!(client.read(1, 1, 7, 0).await, (vec![], Status::OK));
        assert_eq!(client.read(1, 1, 0, (64 << 20) + 1).await.1, Status::WRONGSIZE);
        assert_eq!(client.read(1, 1, 64 << 20, 1).await.1, Status::WRONGOFFSET);
        assert_eq!(client.read(1, 0, 0, 10).await.1, Status::OK, "version 0 is any");
        assert_eq!(client.read(1, 2, 0, 10).await, (vec![], Status::WRONGVERSION));
        assert_eq!(client.read(77, 1, 0, 10).await, (vec![], Status::NOCHUNK));
        let (chunkid, version) = (ChunkId(1), Version(1));
        client.send(CltocsRead { with_proto: false, chunkid, version, offset: 0, size: 10 }.encode()).await;
        assert_eq!(client.next().await.unwrap().0, CstoclReadData::TYPE, "the form of replicators works too");
        assert_eq!(client.next_as::<CstoclReadStatus>().await.status, Status::OK);
        running.stop().await;
    });
}

#[test]
fn a_rotten_block_is_never_sent_and_the_master_learns_of_it() {
    everywhere(|bed| async move {
        let bed = bed.without_cache();
        let (running, mut master) = bed.one_server().await;
        let data = noise(2, 400_000);
        master.create(1, 1).await;
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        assert_eq!(client.read_ok(1, 1, 0, 10).await, data[..10]); // the session has ended
        let node = &bed.nodes[1];
        node.rot(&node.chunk_path(1, 1).await, 8192 + 2 * 65_536 + 40_000).await;
        let (sent, status) = client.read(1, 1, 0, 400_000).await;
        assert_eq!((sent.len(), status), (2 * 65_536, Status::CRC), "what came before is sent, nothing after");
        assert!(sent == data[..2 * 65_536]);
        assert_eq!(client.read(1, 1, 2 * 65_536, 1).await, (vec![], Status::CRC), "however small the part");
        assert_eq!(client.read_ok(1, 1, 3 * 65_536, 1000).await, data[3 * 65_536..][..1000]);
        assert_eq!(master.report::<CstomaChunkDamaged>().await.chunks, [ChunkId(1)]);
        master.report::<CstomaErrorOccurred>().await;
        running.stop().await;
    });
}

#[test]
fn an_idle_connection_gets_nops_and_ends_after_five_seconds_of_silence() {
    in_sim(1, |bed| async move {
        let (running, _master) = bed.one_server().await;
        let mut client = bed.client(1).await;
        let began = client.ring.now();
        assert_eq!(client.next().await, None);
        let lasted = began.elapsed(&client.ring);
        assert!(lasted >= Duration::from_millis(4900) && lasted < Duration::from_millis(5300), "{lasted:?}");
        assert!((2..=3).contains(&client.nops), "{} NOPs", client.nops);

        let mut client = bed.client(1).await;
        for _ in 0..10 {
            client.send(AntoanNop {}.encode()).await;
            client.ring.sleep(Duration::from_secs(2)).await;
        }
        let version: AntoanVersion = client.ask(AntoanGetVersion { msgid: None }).await;
        assert_eq!(version.version, VersionWord::OURS, "NOPs keep a connection alive");
        running.stop().await;
    });
}

#[test]
fn a_reader_that_waits_for_the_disk_gets_nops() {
    let world = ring::sim::World::new(2, ring::sim::Settings::default());
    let bed = crate::support::sim_bed(&world, chunk::settings::IoMode::Direct);
    let server = world.node(bed.nodes[1].ip);
    let (running, client) = world
        .run(world.node(bed.nodes[0].ip), |_| {
            let bed = bed.clone();
            async move {
                let (running, mut master) = bed.one_server().await;
                master.create(1, 1).await;
                let mut client = bed.client(1).await;
                client.write(1, 1, &[], 0, &noise(3, 70_000)).await;
                assert_eq!(client.read(1, 1, 0, 0).await.1, Status::OK);
                ((running, master), client)
            }
        })
        .unwrap();
    world.break_disk(server, &bed.nodes[1].root, ring::sim::DiskFault::Slow(Duration::from_millis(3500)));
    let mut client = client;
    world.run(world.node(bed.nodes[0].ip), |_| async move {
        assert_eq!(client.read_ok(1, 1, 0, 70_000).await, noise(3, 70_000));
        assert!((3..=4).contains(&client.nops), "{} NOPs", client.nops);
        drop(running);
    });
}

#[test]
fn nonsense_ends_its_own_connection_only() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        master.create(1, 1).await;
        let packet = |kind: u32, length: u32, sent: usize| {
            let mut bytes = Header { kind, length }.encode().to_vec();
            bytes.resize(8 + sent, 0xEE);
            bytes
        };
        for (bytes, what) in [
            (packet(999, 4, 4), "an unknown type"),
            (packet(200, 100_001, 0), "more than the port takes"),
            (packet(200, u32::MAX, 0), "four gigabytes"),
            (packet(200, 19, 19), "a read of a wrong length"),
            (packet(210, 14, 14), "a write of a wrong length"),
            (packet(212, 30, 30), "data without a session"),
            (packet(213, 12, 12), "a finish without a session"),
            (packet(250, 11, 11), "a question of a wrong length"),
        ] {
            let mut client = bed.client(1).await;
            client.send(bytes).await;
            assert_eq!(client.next().await, None, "{what} closes the connection");
        }
        let mut client = bed.client(1).await;
        client.send(packet(1, 50_000, 50_000)).await;
        let blocks: CstoanChunkBlocks =
            client.ask(AntocsGetChunkBlocks { chunkid: ChunkId(1), version: Version(1) }).await;
        assert_eq!(blocks.status, Status::OK, "types 0 to 2 mean nothing in any length");
        running.stop().await;
    });
}

#[test]
fn questions_about_chunks_are_answered_from_the_table() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let data = noise(5, 130_000);
        master.create(1, 1).await;
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &data).await;
        let (chunkid, version) = (ChunkId(1), Version(1));
        let question = AntocsGetChunkBlocks { chunkid, version: Version(0) };
        let blocks: CstoanChunkBlocks = client.ask(question.clone()).await;
        assert_eq!((blocks.version, blocks.blocks, blocks.status), (Version(0), 2, Status::OK));
        let table: CstoanChunkChecksumTab = client.ask(AntocsGetChunkChecksumTab { chunkid, version }).await;
        assert_eq!(table.table.len(), 1024);
        assert_eq!(table.table[0], chunk::sums::sum_of(&data[..65_536]));
        assert_eq!(table.table[2], Crc(0xD797_8EEB));
        let sum: CstoanChunkChecksum = client.ask(AntocsGetChunkChecksum { chunkid, version }).await;
        let expected = table.table.iter().fold(1u32, |sum, word| sum.wrapping_mul(426_265_243) ^ word.0);
        assert_eq!(sum.checksum, expected);
        let wrong: CstoanChunkChecksumError = client.ask(AntocsGetChunkChecksum { chunkid, version: Version(4) }).await;
        assert_eq!(wrong.status, Status::WRONGVERSION);
        let none: CstoanChunkBlocks = client.ask(AntocsGetChunkBlocks { chunkid: ChunkId(8), version }).await;
        assert_eq!((none.blocks, none.status), (0, Status::NOCHUNK));
        let on_masters_port: CstoanChunkBlocks = master.order(question).await;
        assert_eq!(on_masters_port.blocks, 2);
        running.stop().await;
    });
}

#[test]
fn tools_learn_what_we_are() {
    in_sim(4, |bed| async move {
        let listener = crate::support::master::Master::listen(&bed.nodes[0]);
        let mut settings = bed.settings(1);
        settings.options.insert("LABELS".to_owned(), "A,B".to_owned());
        settings.auth_code = Some(b"secret".to_vec());
        let running = bed.start_with(1, settings).await;
        let master = crate::support::master::Master::accept(&bed.nodes[0].ring, &listener).await;
        let mut client = bed.client(1).await;
        let info: AntoclModuleInfo = client.ask(CltoanModuleInfo { msgid: None }).await;
        assert_eq!((info.module, info.id, info.leader_port), (2, 7, 9420));
        let mut value = async |option: &[u8]| {
            let question = AntoanGetConfig { msgid: 3, option: Name::new(option).unwrap() };
            let answer: AntoanConfigValue = client.ask(question).await;
            assert_eq!(answer.msgid, 3);
            answer.value.as_bytes().to_vec()
        };
        assert_eq!(value(b"LABELS").await, b"A,B");
        assert_eq!(value(b"AUTH_CODE").await, b"[DEFINED]");
        assert_eq!(value(b"NOTHING").await, b"");
        assert_ne!(value(b"MOORING_EXTENSIONS").await, b"");
        let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
        assert_eq!(disks.disks.len(), 1);
        assert_eq!((disks.disks[0].path.as_bytes(), disks.disks[0].flags), (&b"/data/hdd/"[..], 0));
        assert!(disks.disks[0].total > 0);
        drop(master);
        running.stop().await;
    });
}

#[test]
fn only_listed_addresses_are_served() {
    in_sim(5, |bed| async move {
        let listener = crate::support::master::Master::listen(&bed.nodes[0]);
        let check = async |allowed: &str, is_served: bool| {
            let mut settings = bed.settings(1);
            settings.allowed = AddressList::parse(allowed).unwrap();
            settings.options.insert("DATA_PATH".to_owned(), "/data".to_owned());
            let running = bed.start_with(1, settings).await;
            let master = crate::support::master::Master::accept(&bed.nodes[0].ring, &listener).await;
            let mut client = bed.client(1).await;
            let option = Name::new(b"DATA_PATH").unwrap();
            client.send(AntoanGetConfig { msgid: 3, option }.encode()).await;
            let answer = client.next().await.map(|(_, payload)| AntoanConfigValue::decode(&payload).unwrap());
            assert_eq!(answer.is_some(), is_served, "{allowed}");
            if let Some(answer) = answer {
                assert_eq!(answer.value.as_bytes(), b"[DEFINED]", "where files lie is not told to others");
            }
            drop(master);
            running.stop().await;
        };
        check("*", true).await;
        check("10.0.0.0/24", true).await;
        check("10.0.0.2-10.0.0.200, 127.0.0.1", false).await;
    });
}
