//! Write sessions and chains. Spec 20, 4 and 5.

use std::time::Duration;

use chunk::sums::sum_of;
use wire::limits::EMPTY_BLOCK_CRC;
use wire::*;

use crate::support::{Bed, Node, everywhere, in_sim, noise};

#[test]
fn packets_of_an_older_session_that_come_late_change_nothing_once_the_version_was_raised() {
    for is_raised in [false, true] {
        everywhere(move |bed| async move {
            let (running, mut master) = bed.one_server().await;
            assert_eq!(master.create(1, 1).await, Status::OK);
            let mut stuck = bed.client(1).await;
            assert_eq!(stuck.open_write(1, 1, &[]).await, Status::OK);
            let version = if is_raised { 2 } else { 1 };
            if is_raised {
                assert_eq!(master.set_version(1, 2, 1).await, Status::OK);
            }
            bed.client(1).await.write(1, version, &[], 0, b"newer").await;
            stuck.send_piece(1, 1, 0, 0, b"older").await;
            let expected = if is_raised { (Status::WRONGVERSION, b"newer") } else { (Status::OK, b"older") };
            assert_eq!(stuck.status().await, (1, expected.0));
            assert_eq!(bed.client(1).await.read_ok(1, version, 0, 5).await, expected.1);
            running.stop().await;
        });
    }
}

#[test]
fn a_chain_writes_to_all_its_servers() {
    everywhere(|bed| async move {
        let mut servers = bed.servers(3).await;
        for (length, id) in [(1usize, 1u64), (2, 2), (3, 3)] {
            for (_, master) in &mut servers {
                assert_eq!(master.create(id, 1).await, Status::OK);
            }
            let chain: Vec<&Node> = bed.nodes[2..1 + length].iter().collect();
            let data = noise(id, 3 * 65_536 + 777);
            let mut client = bed.client(1).await;
            client.write(id, 1, &chain, 100, &data).await;
            client.write(id, 1, &chain, 65_536 + 50, &[7; 1000]).await;
            let mut expected = vec![0; 100];
            expected.extend_from_slice(&data);
            expected[65_536 + 50..][..1000].fill(7);
            for number in 1..=length {
                let read = bed.client(number).await.read_ok(id, 1, 0, expected.len() as u32).await;
                assert!(read == expected, "server {number} of {length}");
            }
            for number in length + 1..=3 {
                assert_eq!(bed.client(number).await.read_ok(id, 1, 0, 300).await, [0; 300]);
            }
        }
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn the_old_form_of_write_works_too() {
    in_sim(1, |bed| async move {
        let mut servers = bed.servers(2).await;
        for (_, master) in &mut servers {
            master.create(1, 1).await;
        }
        let mut client = bed.client(1).await;
        client.begin_write(1, 1, &[&bed.nodes[2]], false).await;
        assert_eq!(client.status().await, (0, Status::OK));
        client.send_piece(1, 1, 0, 0, b"hello").await;
        assert_eq!(client.status().await, (1, Status::OK));
        assert_eq!(client.nops, 0);
        drop(client); // such clients end a session by hanging up
        assert_eq!(bed.client(2).await.read_ok(1, 1, 0, 5).await, b"hello");
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn many_pieces_under_way_are_reported_in_order_and_applied_in_order() {
    everywhere(|bed| async move {
        let mut servers = bed.servers(2).await;
        for (_, master) in &mut servers {
            master.create(1, 1).await;
        }
        let mut client = bed.client(1).await;
        assert_eq!(client.open_write(1, 1, &[&bed.nodes[2]]).await, Status::OK);
        let mut expected = vec![0u8; 4 * 65_536];
        let mut seed = Seed(9);
        let sender = &mut client;
        for writeid in 1..=120u32 {
            let (block, offset) = (seed.below(4) as usize, seed.below(60_000) as usize);
            let piece = noise(seed.next_u64(), 1 + seed.below(5_000) as usize);
            expected[block * 65_536 + offset..][..piece.len()].copy_from_slice(&piece);
            sender.send_piece(1, writeid, block as u16, offset as u16, &piece).await;
        }
        for writeid in 1..=120 {
            assert_eq!(client.status().await, (writeid, Status::OK));
        }
        client.finish_write(1, 1).await;
        for number in [1, 2] {
            assert!(bed.client(number).await.read_ok(1, 1, 0, 4 * 65_536).await == expected, "server {number}");
        }
        for (running, mut master) in servers {
            assert_eq!(master.chunkop(1, 1, 0, (0, 0), 2).await, Status::OK);
            running.stop().await;
        }
    });
}

#[test]
fn bad_pieces_get_their_status_and_end_the_session() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        master.create(1, 1).await;
        let long = vec![1u8; 70_000];
        let whole = &long[..65_536];
        for (id, block, offset, data, sum, expected) in [
            (2, 0, 0, &long[..5], sum_of(&long[..5]), Status::WRONGCHUNKID),
            (1, 1024, 65_535, &long[..], Crc(0), Status::BNUMTOOBIG),
            (1, 0, 65_535, &long[..], Crc(0), Status::WRONGSIZE),
            (1, 0, 1, whole, Crc(0), Status::WRONGOFFSET),
            (1, 0, 0, whole, Crc(0), Status::CRC),
        ] {
            let mut client = bed.client(1).await;
            assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
            client.send_piece(1, 1, 3, 0, b"good").await;
            assert_eq!(client.status().await, (1, Status::OK));
            client.send_piece_with_sum(id, 2, block, offset, data, sum).await;
            assert_eq!(client.status().await, (2, expected));
        }
        let mut client = bed.client(1).await;
        assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
        assert_eq!(master.set_version(1, 2, 1).await, Status::OK, "a session does not hold up the master");
        client.send_piece(1, 1, 1024, 0, b"late").await;
        assert_eq!(client.status().await, (1, Status::WRONGVERSION), "the version is checked first");
        assert_eq!(client.read_ok(1, 2, 0, 5).await, [0; 5], "the connection is idle again");
        assert_eq!(client.open_write(1, 1, &[]).await, Status::WRONGVERSION);
        assert_eq!(client.open_write(5, 1, &[]).await, Status::NOCHUNK);
        assert_eq!(client.open_write(1, 2, &[&bed.nodes[3]]).await, Status::CANTCONNECT);
        assert_eq!(client.open_write(1, 2, &[]).await, Status::OK);
        client.send_piece(1, 1, 0, 0, &[]).await;
        assert_eq!(client.status().await, (1, Status::OK), "nothing is a piece too");
        client.finish_write(9, 2).await;
        assert_eq!(client.status().await, (1, Status::WRONGCHUNKID));
        assert_eq!(master.chunkop(1, 2, 0, (0, 0), 2).await, Status::OK);
        running.stop().await;
    });
}

#[test]
fn an_error_behind_us_is_told_and_ends_the_chain() {
    everywhere(|bed| async move {
        let mut servers = bed.servers(2).await;
        servers[0].1.create(1, 1).await;
        let mut client = bed.client(1).await;
        assert_eq!(client.open_write(1, 1, &[&bed.nodes[2]]).await, Status::NOCHUNK, "the next one has no such chunk");
        assert_eq!(client.status_or_end().await, None);
        servers[1].1.create(1, 1).await;
        let mut client = bed.client(1).await;
        assert_eq!(client.open_write(1, 1, &[&bed.nodes[2]]).await, Status::OK);
        client.send_piece(1, 1, 0, 0, b"good").await;
        assert_eq!(client.status().await, (1, Status::OK));
        client.send_piece_with_sum(1, 2, 0, 0, b"bad", Crc(1)).await;
        let status = client.status_or_end().await;
        assert!(matches!(status, Some((2, Status::CRC))), "{status:?}");
        assert_eq!(client.status_or_end().await, None);
        for number in [1, 2] {
            assert_eq!(bed.client(number).await.read_ok(1, 1, 0, 4).await, b"good");
        }
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn a_silent_session_ends_after_five_seconds_and_nops_keep_it() {
    in_sim(3, |bed| async move {
        let mut servers = bed.servers(2).await;
        for (_, master) in &mut servers {
            master.create(1, 1).await;
        }
        for chain in [vec![], vec![&bed.nodes[2]]] {
            let mut client = bed.client(1).await;
            assert_eq!(client.open_write(1, 1, &chain).await, Status::OK);
            for _ in 0..8 {
                client.ring.sleep(Duration::from_secs(2)).await;
                client.send(AntoanNop {}.encode()).await;
            }
            client.send_piece(1, 1, 0, 0, b"still here").await;
            assert_eq!(client.status().await, (1, Status::OK));
            let began = client.ring.now();
            let nops = client.nops;
            assert!(nops >= 14, "one NOP each second: {nops}");
            assert_eq!(client.status_or_end().await, None);
            let lasted = began.elapsed(&client.ring);
            assert!(lasted >= Duration::from_millis(4900) && lasted < Duration::from_millis(5300), "{lasted:?}");
        }
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn the_file_rests_at_its_true_length_with_its_table() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let node = &bed.nodes[1];
        master.create(1, 1).await;
        let mut client = bed.client(1).await;
        let data = noise(6, 20 * 65_536 + 5);
        client.write(1, 1, &[], 0, &data).await;
        client.write(1, 1, &[], 30 * 65_536, &[0; 65_536]).await;
        assert_eq!(client.read(1, 1, 0, 0).await.1, Status::OK); // the session before has ended
        let bytes = node.read(&node.chunk_path(1, 1).await).await;
        assert_eq!(bytes.len(), 8192 + 31 * 65_536, "a block of zeros at the end is a block");
        for (block, content) in bytes[8192..].chunks(65_536).enumerate() {
            let sum = u32::from_be_bytes(bytes[4096 + block * 4..][..4].try_into().unwrap());
            assert_eq!(Crc(sum), sum_of(content), "block {block}");
        }
        assert!(bytes[4096 + 31 * 4..8192].chunks(4).all(|sum| sum == EMPTY_BLOCK_CRC.to_be_bytes()));
        assert!(bytes[8192..][..data.len()] == data);
        running.stop().await;
    });
}

#[test]
fn a_file_of_the_old_layout_is_served_and_changed_in_place() {
    everywhere(|bed| async move {
        let node = &bed.nodes[1];
        node.prepare().await;
        let data = noise(7, 2 * 65_536);
        let mut bytes = chunk::layout::encode_header(chunk::layout::HeaderWords {
            minor: b'0',
            id: ChunkId(0x55),
            version: Version(3),
        })
        .to_vec();
        bytes.resize(1024, 0);
        for block in data.chunks(65_536) {
            bytes.extend_from_slice(&sum_of(block).0.to_be_bytes());
        }
        bytes.resize(5120, 0); // entries behind the end are zeros, as 3.x leaves them
        bytes.extend_from_slice(&data);
        let old_folder = node.hdd().join("5");
        node.ring.mkdir(&old_folder, 0o755).await.unwrap();
        node.write(&old_folder.join("chunk_0000000000000055_00000003.mfs"), bytes).await;

        let (running, mut master) = bed.one_server().await;
        assert_eq!(master.listed.len(), 1, "the folder of one digit was moved");
        assert!(node.ring.stat(&old_folder).await.is_err());
        let mut client = bed.client(1).await;
        assert!(client.read_ok(0x55, 3, 0, 2 * 65_536).await == data);
        client.write(0x55, 3, &[], 65_530, &[9; 100]).await;
        client.write(0x55, 3, &[], 4 * 65_536, &[8; 100]).await;
        let mut expected = data.clone();
        expected[65_530..][..100].fill(9);
        expected.resize(4 * 65_536, 0);
        expected.extend_from_slice(&[8; 100]);
        assert!(client.read_ok(0x55, 3, 0, expected.len() as u32).await == expected);
        assert_eq!(master.truncate(0x55, 70_000, 4, 3).await, Status::OK);
        let path = node.hdd().join("55/chunk_0000000000000055_00000004.mfs");
        assert_eq!(node.ring.stat(&path).await.unwrap().size, 5120 + 2 * 65_536);
        assert_eq!(master.chunkop(0x55, 4, 0, (0, 0), 2).await, Status::OK);
        running.stop().await;
    });
}

#[test]
fn readers_and_writers_of_one_block_never_see_half_a_write() {
    in_sim(5, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        master.create(1, 1).await;
        bed.client(1).await.write(1, 1, &[], 0, &[1; 65_536]).await;
        let ring = bed.nodes[0].ring.clone();
        let writer = {
            let bed = bed.clone();
            ring.spawn(async move {
                let mut client = bed.client(1).await;
                for value in 2..40u8 {
                    client.write(1, 1, &[], 0, &[value; 65_536]).await;
                }
            })
        };
        let mut client = bed.client(1).await;
        let mut last = 1;
        while !writer.is_finished() {
            let block = client.read_ok(1, 1, 0, 65_536).await;
            assert!(block.iter().all(|byte| *byte == block[0]) && block[0] >= last);
            last = block[0];
        }
        assert!(!master.others.iter().any(|(kind, _)| *kind == CstomaChunkDamaged::TYPE));
        running.stop().await;
    });
}

#[test]
fn chains_in_every_order_share_few_buffers_and_all_end() {
    // Each server keeps 33 aside: scratch, tables, its log.
    let settings = ring::sim::Settings { buffers: 3 * 33 + 60, ..ring::sim::Settings::default() };
    for seed in 1..=2 {
        let world = ring::sim::World::new(seed, settings.clone());
        let bed = crate::support::sim_bed(&world, chunk::settings::IoMode::Direct);
        let began = world.now();
        let ended = world.run(world.node(bed.nodes[0].ip), |_| many_chains(bed.clone()));
        assert!(ended.is_some(), "seed {seed}");
        let lasted = world.now() - began;
        assert!(lasted < Duration::from_secs(30), "seed {seed}: nobody waits for long: {lasted:?}");
    }
}

async fn many_chains(bed: Bed) {
    const CLIENTS: u64 = 6;
    const BYTES: usize = 40 * 65_536;
    let mut servers = bed.servers(3).await;
    for id in 1..=CLIENTS {
        for (_, master) in &mut servers {
            assert_eq!(master.create(id, 1).await, Status::OK);
        }
    }
    let orders = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];
    let writers: Vec<_> = (1..=CLIENTS)
        .map(|id| {
            let (bed, order) = (bed.clone(), orders[id as usize % 6]);
            bed.nodes[0].ring.clone().spawn(async move {
                let chain = [&bed.nodes[order[1]], &bed.nodes[order[2]]];
                bed.client(order[0]).await.write(id, 1, &chain, 3, &noise(id, BYTES)).await;
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("not aborted");
    }
    for id in 1..=CLIENTS {
        for number in 1..=3 {
            let data = bed.client(number).await.read_ok(id, 1, 3, BYTES as u32).await;
            assert!(data == noise(id, BYTES), "chunk {id} on server {number}");
        }
    }
}
