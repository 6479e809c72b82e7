//! The master's orders. Spec 20, 6; Spec 40, 8.

use std::path::Path;

use wire::*;

use crate::support::{Node, everywhere, in_sim, noise};

const MIB64: u32 = 64 << 20;

/// Length of a chunk file of so many blocks.
fn length(blocks: u64) -> u64 {
    8192 + blocks * 65536
}

async fn file_length(node: &Node, path: &Path) -> u64 {
    node.ring.stat(path).await.unwrap().size
}

#[test]
fn a_new_chunk_is_a_header_and_a_table_of_empty_blocks() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        assert_eq!(master.create(0x1F, 3).await, Status::OK);
        assert_eq!(master.create(0x1F, 3).await, Status::CHUNKEXIST);
        assert_eq!(master.create(0x1F, 4).await, Status::CHUNKEXIST);
        let node = &bed.nodes[1];
        let path = node.chunk_path(0x1F, 3).await;
        let bytes = node.read(&path).await;
        assert_eq!(bytes.len(), 8192);
        assert_eq!(&bytes[..20], b"MFSC 1.0\0\0\0\0\0\0\0\x1F\0\0\0\x03");
        assert!(bytes[20..4096].iter().all(|byte| *byte == 0));
        assert!(bytes[4096..].chunks(4).all(|sum| sum == 0xD797_8EEB_u32.to_be_bytes()));
        assert_eq!(master.delete(0x1F, 9).await, Status::WRONGVERSION);
        assert_eq!(master.delete(0x1F, 3).await, Status::OK);
        assert_eq!(node.find_chunk(0x1F, 3).await, None);
        assert_eq!(master.delete(0x1F, 3).await, Status::NOCHUNK);
        assert_eq!(master.report::<CstomaChunkLost>().await.chunks, [ChunkId(0x1F)]);
        running.stop().await;
    });
}

#[test]
fn a_version_is_in_the_name_and_in_the_header() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        master.create(1, 1).await;
        assert_eq!(master.set_version(1, 0, 1).await, Status::EINVAL);
        assert_eq!(master.set_version(1, 5, 2).await, Status::WRONGVERSION);
        assert_eq!(master.set_version(2, 5, 1).await, Status::NOCHUNK);
        assert_eq!(master.set_version(1, 5, 1).await, Status::OK);
        let node = &bed.nodes[1];
        assert_eq!(node.find_chunk(1, 1).await, None);
        let path = node.chunk_path(1, 5).await;
        assert_eq!(node.read(&path).await[16..20], [0, 0, 0, 5]);
        let mut client = bed.client(1).await;
        assert_eq!(client.read(1, 1, 0, 10).await.1, Status::WRONGVERSION);
        assert_eq!(client.read_ok(1, 5, 0, 10).await, [0; 10]);
        running.stop().await;
    });
}

#[test]
fn a_rotten_version_in_the_header_is_put_right_by_the_name() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        master.create(1, 5).await;
        bed.client(1).await.write(1, 5, &[], 0, &noise(1, 70_000)).await;
        running.stop().await;
        let node = &bed.nodes[1];
        let path = node.chunk_path(1, 5).await;
        node.rot(&path, 18).await;
        assert_eq!(node.read(&path).await[16..20], [0, 0, 0x40, 5]);
        let (running, mut master) = bed.one_server().await;
        assert_eq!(bed.client(1).await.read_ok(1, 5, 0, 70_000).await, noise(1, 70_000));
        assert_eq!(node.read(&path).await[16..20], [0, 0, 0, 5]);
        assert_eq!(master.set_version(1, 6, 5).await, Status::OK);
        running.stop().await;
    });
}

#[test]
fn truncation_cuts_extends_and_keeps_sums_right() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let node = &bed.nodes[1];
        let data = noise(1, 200_000);
        master.create(1, 1).await;
        bed.client(1).await.write(1, 1, &[], 0, &data).await;
        assert_eq!(master.truncate(1, MIB64 + 1, 2, 1).await, Status::EINVAL);
        assert_eq!(master.truncate(1, 0, 0, 1).await, Status::EINVAL);
        assert_eq!(master.truncate(1, 100_000, 2, 1).await, Status::OK);
        assert_eq!(file_length(node, &node.chunk_path(1, 2).await).await, length(2));
        let mut client = bed.client(1).await;
        let mut expected = data[..100_000].to_vec();
        expected.resize(300_000, 0);
        assert_eq!(client.read_ok(1, 2, 0, 300_000).await, expected);
        assert_eq!(master.truncate(1, 250_000, 3, 2).await, Status::OK);
        assert_eq!(file_length(node, &node.chunk_path(1, 3).await).await, length(4));
        assert_eq!(client.read_ok(1, 3, 0, 300_000).await, expected);
        assert_eq!(master.truncate(1, 65_536, 4, 3).await, Status::OK);
        assert_eq!(client.read_ok(1, 4, 0, 70_000).await, [&expected[..65_536], &[0; 4464]].concat());
        assert_eq!(master.truncate(1, 0, 5, 4).await, Status::OK);
        assert_eq!(file_length(node, &node.chunk_path(1, 5).await).await, length(0));
        assert_eq!(master.truncate(1, MIB64, 6, 5).await, Status::OK);
        assert_eq!(file_length(node, &node.chunk_path(1, 6).await).await, length(1024));
        assert_eq!(master.chunkop(1, 6, 0, (0, 0), 2).await, Status::OK, "every block fits its sum");
        running.stop().await;
    });
}

#[test]
fn a_truncation_never_calls_rot_good() {
    in_sim(1, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        let node = &bed.nodes[1];
        master.create(1, 1).await;
        bed.client(1).await.write(1, 1, &[], 0, &noise(1, 100_000)).await;
        bed.sleep(std::time::Duration::from_millis(50)).await;
        node.rot(&node.chunk_path(1, 1).await, 8192 + 65_536 + 10).await;
        assert_eq!(master.truncate(1, 70_000, 2, 1).await, Status::CRC);
        assert_eq!(master.report::<CstomaChunkDamaged>().await.chunks, [ChunkId(1)]);
        node.chunk_path(1, 1).await;
        assert_eq!(bed.client(1).await.read(1, 1, 65_536, 10).await.1, Status::CRC);
        running.stop().await;
    });
}

#[test]
fn a_duplicate_has_the_blocks_of_its_source_or_is_not_there() {
    everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        let node = &bed.nodes[1];
        let data = noise(2, 150_000);
        master.create(1, 1).await;
        bed.client(1).await.write(1, 1, &[], 0, &data).await;
        assert_eq!(master.duplicate((2, 1), (1, 0)).await, Status::EINVAL);
        assert_eq!(master.duplicate((0, 1), (1, 1)).await, Status::EINVAL);
        assert_eq!(master.duplicate((2, 1), (1, 9)).await, Status::WRONGVERSION);
        assert_eq!(master.duplicate((2, 1), (7, 1)).await, Status::NOCHUNK);
        assert_eq!(master.duplicate((2, 8), (1, 1)).await, Status::OK);
        assert_eq!(master.duplicate((2, 8), (1, 1)).await, Status::CHUNKEXIST);
        assert_eq!(master.duptrunc((3, 4), (1, 1), MIB64 + 1).await, Status::EINVAL);
        assert_eq!(master.duptrunc((3, 4), (1, 1), 70_000).await, Status::OK);
        assert_eq!(master.duptrunc((4, 4), (1, 1), 400_000).await, Status::OK);
        let mut client = bed.client(1).await;
        assert_eq!(client.read_ok(2, 8, 0, 150_000).await, data);
        let mut cut = data[..70_000].to_vec();
        cut.resize(150_000, 0);
        assert_eq!(client.read_ok(3, 4, 0, 150_000).await, cut);
        assert_eq!(client.read_ok(4, 4, 0, 150_000).await, data);
        for (id, version, blocks) in [(2, 8, 3), (3, 4, 2), (4, 4, 7)] {
            assert_eq!(file_length(node, &node.chunk_path(id, version).await).await, length(blocks));
            assert_eq!(master.chunkop(id, version, 0, (0, 0), 2).await, Status::OK);
        }
        assert_eq!(master.set_version(1, 2, 1).await, Status::OK, "the source is as it was");
        node.rot(&node.chunk_path(1, 2).await, 8192 + 5).await;
        assert_eq!(master.duplicate((5, 1), (1, 2)).await, Status::CRC);
        assert_eq!(node.find_chunk(5, 1).await, None);
        assert_eq!(master.create(5, 1).await, Status::OK, "its id is free again");
        running.stop().await;
    });
}

#[test]
fn the_generic_order_means_each_operation() {
    in_sim(2, |bed| async move {
        const NO_LENGTH: u32 = 0xFFFF_FFFF;
        let (running, mut master) = bed.one_server().await;
        let node = &bed.nodes[1];
        assert_eq!(master.chunkop(1, 1, 0, (0, 0), 1).await, Status::OK, "create");
        bed.client(1).await.write(1, 1, &[], 0, &noise(3, 80_000)).await;
        assert_eq!(master.chunkop(1, 1, 2, (0, 0), NO_LENGTH).await, Status::OK, "set version");
        assert_eq!(master.chunkop(1, 2, 3, (0, 0), 70_000).await, Status::OK, "truncate");
        assert_eq!(master.chunkop(1, 3, 4, (2, 1), NO_LENGTH).await, Status::OK, "duplicate, raising the source");
        assert_eq!(master.chunkop(1, 4, 4, (3, 1), 10).await, Status::OK, "duptrunc");
        assert_eq!(master.chunkop(1, 4, 0, (0, 0), 2).await, Status::OK, "test");
        assert_eq!(master.chunkop(1, 4, 0, (0, 0), 3).await, Status::EINVAL);
        assert_eq!(master.chunkop(1, 4, 0, (0, 0), 0).await, Status::OK, "delete");
        assert_eq!(node.find_chunk(1, 4).await, None);
        node.chunk_path(2, 1).await;
        node.chunk_path(3, 1).await;
        running.stop().await;
    });
}

#[test]
fn a_copy_comes_from_another_server_whole_or_not_at_all() {
    everywhere(|bed| async move {
        let bed = bed.without_cache();
        let mut servers = bed.servers(2).await;
        let data = noise(4, 300_000);
        assert_eq!(servers[0].1.create(1, 6).await, Status::OK);
        bed.client(1).await.write(1, 6, &[], 65_536, &data).await;
        assert_eq!(servers[1].1.replicate(1, 6, &bed.nodes[1]).await, Status::OK);
        assert_eq!(servers[1].1.replicate(1, 6, &bed.nodes[1]).await, Status::CHUNKEXIST);
        assert_eq!(servers[1].1.replicate(2, 6, &bed.nodes[1]).await, Status::NOCHUNK);
        assert_eq!(servers[1].1.replicate(3, 1, &bed.nodes[3]).await, Status::CANTCONNECT);
        let copy = bed.client(2).await.read_ok(1, 6, 0, 400_000).await;
        let mut expected = vec![0; 65_536];
        expected.extend_from_slice(&data);
        expected.resize(400_000, 0);
        assert!(copy == expected);
        servers[1].1.delete(1, 6).await;
        let source = &bed.nodes[1];
        source.rot(&source.chunk_path(1, 6).await, 8192 + 3 * 65_536).await;
        assert_eq!(servers[1].1.replicate(1, 6, source).await, Status::CRC);
        assert_eq!(bed.nodes[2].find_chunk(1, 6).await, None);
        assert_eq!(bed.client(2).await.read(1, 6, 0, 5).await, (vec![], Status::NOCHUNK));
        for (running, _) in servers {
            running.stop().await;
        }
    });
}

#[test]
fn a_full_disk_takes_no_chunk() {
    in_sim(3, |bed| async move {
        let mut settings = bed.settings(1);
        settings.leave_space_bytes = 1 << 40;
        let listener = crate::support::master::Master::listen(&bed.nodes[0]);
        let running = bed.start_with(1, settings).await;
        let mut master = crate::support::master::Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.create(1, 1).await, Status::NOSPACE);
        assert_eq!(master.duplicate((2, 1), (1, 1)).await, Status::NOCHUNK);
        running.stop().await;
    });
}
