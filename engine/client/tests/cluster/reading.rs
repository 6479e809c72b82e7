//! Reads: pieces, holes, ends, and what is done when a server fails in the middle.

use std::time::Duration;

use client::{Caller, Errno, Inode, Settings};
use wire::{
    ChunkId, CltomaFuseReadChunk, MatoclFuseChunkHasChanged, MatoclFuseInvalidateChunkCache, Packet, Status, Version,
};

use crate::fake::{MasterFault, ServerFault};
use crate::{READ, READ_WRITE, connect, in_some_worlds, in_worlds, open, pattern, read, settings};

#[test]
fn a_read_gives_the_bytes_of_the_file_and_stops_at_its_end() {
    in_worlds(2, 2, |ring, fake| async move {
        let content = pattern(1, 200_000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        for (offset, size) in [(0, 200_000), (1, 1), (65_535, 2), (65_536, 65_536), (199_999, 100), (100_000, 500_000)]
        {
            let end = content.len().min(offset + size);
            assert_eq!(read(&client, handle, offset as u64, size as u32).await, content[offset..end]);
        }
        assert_eq!(read(&client, handle, 200_000, 10).await, b"");
        assert_eq!(read(&client, handle, 1 << 40, 10).await, b"");
        assert_eq!(client.read(handle, 1 << 57, 10).await.err(), Some(Errno::EFBIG));
        client.close().await;
    });
}

#[test]
fn a_hole_is_zeros_without_a_server() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"");
        fake.state.borrow_mut().files.get_mut(&5).unwrap().length = 300_000;
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        assert_eq!(read(&client, handle, 100, 400_000).await, vec![0; 299_900]);
        assert!(fake.seen("READ").is_empty());
        client.close().await;
    });
}

#[test]
fn a_server_that_hangs_up_in_the_middle_is_followed_by_the_next_at_the_byte_reached() {
    in_worlds(2, 2, |ring, fake| async move {
        let content = pattern(1, 5 * 65_536);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        for server in 0..2 {
            fake.fault_server(server, ServerFault::CloseAfter(2));
        }
        assert_eq!(read(&client, handle, 0, 5 * 65_536).await, content);
        // Two blocks from each, then the rest: nothing is asked for twice.
        let offsets: Vec<String> = fake.seen("READ").iter().map(|line| line[4..].to_owned()).collect();
        assert_eq!(offsets[..3], ["READ 0+327680", "READ 131072+196608", "READ 262144+65536"]);
        client.close().await;
    });
}

#[test]
fn a_block_with_a_wrong_sum_is_never_given_to_the_reader() {
    in_worlds(2, 2, |ring, fake| async move {
        let content = pattern(1, 5 * 65_536);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        for bad_block in 0..2 {
            fake.fault_server(0, ServerFault::BadCrc(bad_block));
            fake.fault_server(1, ServerFault::BadCrc(bad_block));
        }
        assert_eq!(read(&client, handle, 0, 5 * 65_536).await, content);
        client.close().await;
    });
}

#[test]
fn a_busy_server_costs_a_pause_and_no_try() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 1000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        for _ in 0..40 {
            fake.fault_server(0, ServerFault::Status(Status::NOTDONE));
        }
        let started = ring.now();
        assert_eq!(read(&client, handle, 0, 1000).await, content);
        let seconds = started.elapsed(&ring).as_secs();
        assert!((12..=14).contains(&seconds), "40 pauses of 300 ms: {seconds} s");
        client.close().await;
    });
}

#[test]
fn a_wrong_version_makes_the_client_ask_the_master_again() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 1000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        assert_eq!(read(&client, handle, 100, 500).await, content[100..600]);
        fake.state.borrow_mut().chunks.get_mut(&1).unwrap().version += 1;
        assert_eq!(read(&client, handle, 10, 500).await, content[10..510]);
        let asked = fake.seen(&format!("master {}", CltomaFuseReadChunk::TYPE)).len();
        assert_eq!(asked, 2);
        client.close().await;
    });
}

#[test]
fn a_silent_server_is_left_for_another_copy_after_two_seconds() {
    in_worlds(2, 2, |ring, fake| async move {
        let content = pattern(1, 1000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        // Whichever is asked first.
        fake.fault_server(0, ServerFault::Silent);
        let started = ring.now();
        assert_eq!(read(&client, handle, 0, 1000).await, content);
        assert!(started.elapsed(&ring) < Duration::from_millis(2500));
        client.close().await;
    });
}

#[test]
fn without_any_good_copy_the_read_fails_after_the_tries() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", &pattern(1, 1000));
        let settings = Settings { io_retries: 4, ..settings(&fake) };
        let client = client::Client::connect(ring.clone(), settings).await.unwrap();
        let handle = open(&client, 5, READ).await;
        for _ in 0..20 {
            fake.fault_server(0, ServerFault::BadCrc(0));
        }
        assert_eq!(client.read(handle, 0, 1000).await.err(), Some(Errno::EIO));
        assert_eq!(fake.seen("READ").len(), 4);
        client.close().await;
    });
}

#[test]
fn the_masters_refusals_become_the_errors_of_the_table() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", &pattern(1, 1000));
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        let kind = CltomaFuseReadChunk::TYPE;
        for (status, errno) in
            [(Status::ENOENT, Errno::EBADF), (Status::QUOTA, Errno::EDQUOT), (Status::IO, Errno::EIO)]
        {
            fake.fault_master(kind, MasterFault::Answer(status));
            assert_eq!(client.read(handle, 0, 1000).await.err(), Some(errno));
        }
        for _ in 0..50 {
            fake.fault_master(kind, MasterFault::Answer(Status::LOCKED));
        }
        assert_eq!(read(&client, handle, 0, 1000).await.len(), 1000, "a locked chunk is waited for");
        client.close().await;
    });
}

#[test]
fn a_sequential_reader_finds_the_next_bytes_already_fetched() {
    in_some_worlds(3, 2, 2, |ring, fake| async move {
        let content = pattern(1, 4 << 20);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        let mut all = Vec::new();
        while all.len() < content.len() {
            let piece = read(&client, handle, all.len() as u64, 128 << 10).await;
            all.extend_from_slice(&piece);
            ring.sleep(Duration::from_millis(500)).await; // what is ahead arrives
        }
        assert_eq!(all, content);
        let requests = fake.seen("READ").len();
        assert!(requests <= 16, "{requests} requests for 32 reads");
        let bytes: u64 =
            fake.seen("READ").iter().map(|line| line.rsplit('+').next().unwrap().parse::<u64>().unwrap()).sum();
        assert_eq!(bytes, 4 << 20, "nothing is fetched twice");
        client.close().await;
    });
}

#[test]
fn a_chunk_changed_by_another_client_is_read_again() {
    in_worlds(1, 1, |ring, fake| async move {
        let (old, new) = (pattern(1, 300_000), pattern(2, 300_000));
        fake.add_file(5, "a", &old);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        assert_eq!(read(&client, handle, 0, 100_000).await, old[..100_000]); // and more is on its way
        {
            let mut state = fake.state.borrow_mut();
            let chunk = state.chunks.get_mut(&1).unwrap();
            chunk.version = 2;
            for copy in chunk.copies.values_mut() {
                *copy = new.clone();
            }
        }
        fake.notify(&MatoclFuseChunkHasChanged {
            msgid: 0,
            inode: Inode(5),
            index: 0,
            chunkid: ChunkId(1),
            version: Version(2),
            length: 300_000,
            truncflag: 0,
            region: None,
        });
        ring.sleep(Duration::from_secs(1)).await;
        assert_eq!(read(&client, handle, 100_000, 200_000).await, new[100_000..]);
        client.close().await;
    });
}

#[test]
fn all_locations_can_be_invalidated() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", &pattern(1, 1000));
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        let asked = || fake.seen(&format!("master {}", CltomaFuseReadChunk::TYPE)).len();
        for _ in 0..3 {
            read(&client, handle, 500, 100).await;
        }
        assert_eq!(asked(), 1);
        fake.notify(&MatoclFuseInvalidateChunkCache { msgid: 0 });
        ring.sleep(Duration::from_millis(100)).await;
        read(&client, handle, 500, 100).await;
        assert_eq!(asked(), 2);
        client.close().await;
    });
}

#[test]
fn a_handle_reads_only_if_it_was_opened_for_reading() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"x");
        let client = connect(&ring, &fake).await;
        let flags = client::OpenFlags { read: false, ..READ_WRITE };
        let opened = client.open(&Caller::root(), Inode(5), flags).await.unwrap();
        assert_eq!(client.read(opened.handle, 0, 1).await.err(), Some(Errno::EBADF));
        client.release(opened.handle, None).await.unwrap();
        assert_eq!(client.read(opened.handle, 0, 1).await.err(), Some(Errno::EBADF));
        client.close().await;
    });
}
