//! Writes: what travels, what is joined, what is sent again, what memory holds, and which errors stick.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use client::{Caller, Client, Errno, Handle, Inode, OpenFlags, Settings};
use wire::{CltomaFuseCreate, CltomaFuseWriteChunk, Packet, Status};

use crate::fake::{Fake, MasterFault, ServerFault};
use crate::{READ_WRITE, connect, in_some_worlds, in_worlds, open, pattern, read, settings};

async fn create(client: &Client, name: &str) -> (u32, Handle) {
    let (entry, opened) = client.create(&Caller::root(), Inode(1), name.as_bytes(), 0o644, READ_WRITE).await.unwrap();
    (entry.inode.0, opened.handle)
}

async fn write(client: &Client, handle: Handle, offset: u64, bytes: &[u8]) {
    let written = client.write(handle, offset, bytes.to_vec().into()).await.unwrap();
    assert_eq!(written as usize, bytes.len());
}

#[test]
fn written_bytes_are_on_every_copy_and_the_master_knows_the_length_after_flush() {
    in_worlds(3, 3, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "new").await;
        let content = pattern(1, 1_000_000);
        for at in (0..content.len()).step_by(77_777) {
            write(&client, handle, at as u64, &content[at..content.len().min(at + 77_777)]).await;
        }
        client.flush(handle, None).await.unwrap();
        assert!(fake.content(inode) == content);
        let attr = client.getattr(&Caller::root(), Inode(inode), Some(handle)).await.unwrap();
        assert_eq!(attr.length_bytes(), 1_000_000);
        client.close().await;
    });
}

#[test]
fn a_small_file_costs_four_round_trips_and_no_timer() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let started = ring.now();
        let (inode, handle) = create(&client, "small").await;
        write(&client, handle, 0, b"hello").await;
        client.flush(handle, None).await.unwrap();
        client.release(handle, None).await.unwrap();
        // Each way takes up to 2 ms here: CREATE, WRITE_CHUNK, connect and data, WRITE_CHUNK_END.
        assert!(started.elapsed(&ring) < Duration::from_millis(35), "{:?}", started.elapsed(&ring));
        assert_eq!(fake.content(inode), b"hello");
        let requests: Vec<String> = fake.seen("master");
        assert_eq!(requests, ["master 482", "master 434", "master 436"]);
        client.close().await;
    });
}

#[test]
fn small_neighbouring_writes_leave_as_whole_blocks() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "new").await;
        let content = pattern(1, 200_000);
        for at in (0..content.len()).step_by(1000) {
            write(&client, handle, at as u64, &content[at..at + 1000]).await;
        }
        client.flush(handle, None).await.unwrap();
        assert!(fake.content(inode) == content);
        let sent = fake.seen("DATA");
        assert_eq!(sent, ["DATA 0:0+65536", "DATA 1:0+65536", "DATA 2:0+65536", "DATA 3:0+3392"]);
        client.close().await;
    });
}

#[test]
fn overlapping_writes_end_as_the_last_one_left_them() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "new").await;
        let mut model = vec![0u8; 150_000];
        let mut dice = 12345u64;
        for step in 0..200u64 {
            dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let start = (dice >> 33) as usize % 140_000;
            let size = 1 + (dice >> 17) as usize % 10_000;
            let bytes = pattern(step, size.min(150_000 - start));
            model[start..start + bytes.len()].copy_from_slice(&bytes);
            write(&client, handle, start as u64, &bytes).await;
            match dice % 7 {
                0 => client.fsync(handle).await.unwrap(),
                1 => ring.sleep(Duration::from_millis(dice % 120)).await,
                _ => {}
            }
        }
        client.flush(handle, None).await.unwrap();
        let length = fake.content(inode).len();
        assert!(fake.content(inode) == model[..length]);
        client.close().await;
    });
}

#[test]
fn reads_see_what_was_written_and_not_sent_yet() {
    in_worlds(2, 2, |ring, fake| async move {
        let old = pattern(1, 300_000);
        fake.add_file(5, "a", &old);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ_WRITE).await;
        assert_eq!(read(&client, handle, 0, 300_000).await, old);
        let mut model = old;
        for (step, at) in [100_000usize, 65_000, 280_000, 0].into_iter().enumerate() {
            let bytes = pattern(100 + step as u64, 40_000);
            model.resize(model.len().max(at + 40_000), 0);
            model[at..at + 40_000].copy_from_slice(&bytes);
            write(&client, handle, at as u64, &bytes).await;
            assert!(read(&client, handle, 0, 400_000).await == model);
        }
        assert_eq!(client.getattr(&Caller::root(), Inode(5), None).await.unwrap().length_bytes(), 320_000);
        client.close().await;
    });
}

#[test]
fn what_was_not_acknowledged_is_sent_again_whatever_ended_the_session() {
    let faults = [
        ServerFault::CloseAfter(0),
        ServerFault::CloseAfter(3),
        ServerFault::StatusAfter(2, Status::IO),
        ServerFault::Status(Status::WRONGVERSION),
        ServerFault::Status(Status::NOTDONE),
        ServerFault::Silent,
    ];
    in_worlds(2, 2, move |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        for (number, fault) in faults.into_iter().enumerate() {
            let (inode, handle) = create(&client, &format!("file{number}")).await;
            fake.fault_server(0, fault);
            fake.fault_server(1, fault);
            let content = pattern(number as u64, 400_000);
            write(&client, handle, 0, &content).await;
            client.flush(handle, None).await.unwrap();
            assert!(fake.content(inode) == content, "{fault:?}");
            client.release(handle, None).await.unwrap();
            fake.state.borrow_mut().server_faults.clear();
        }
        client.close().await;
    });
}

#[test]
fn a_master_that_wants_to_know_hears_of_every_session_that_failed_and_of_no_other() {
    let faults = [
        (ServerFault::CloseAfter(1), 1),
        (ServerFault::StatusAfter(2, Status::IO), 1),
        (ServerFault::Status(Status::NOTDONE), 1),
        (ServerFault::Silent, 1),
        (ServerFault::CloseAfter(1000), 0),
    ];
    for knows in [true, false] {
        in_some_worlds(3, 1, 1, move |ring, fake| async move {
            if knows {
                fake.state.borrow_mut().extensions = wire::UNCLEAN_END_EXTENSION.into();
            }
            let client = connect(&ring, &fake).await;
            let mut expected = 0;
            for (number, (fault, unclean)) in faults.into_iter().enumerate() {
                let (_, handle) = create(&client, &format!("file{number}")).await;
                fake.fault_server(0, fault);
                write(&client, handle, 0, &pattern(1, 400_000)).await;
                client.flush(handle, None).await.unwrap();
                expected += if knows { unclean } else { 0 };
                assert_eq!(fake.seen("unclean end").len(), expected, "{fault:?}");
            }
            client.close().await;
        });
    }
}

#[test]
fn times_are_told_before_the_end_of_a_write_and_never_after_it() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "file").await;
        let told = || fake.seen("times of");
        let written = format!("times of {inode}: - set");
        write(&client, handle, 0, b"one").await;
        client.fsync(handle).await.unwrap();
        assert_eq!(told(), std::slice::from_ref(&written), "by the time that fsync returns");
        ring.sleep(Duration::from_secs(5)).await;
        assert_eq!(told(), std::slice::from_ref(&written), "another client may have set another time since");
        write(&client, handle, 0, b"two").await;
        client.release(handle, None).await.unwrap();
        ring.sleep(Duration::from_secs(5)).await;
        assert_eq!(told(), [written.clone(), written.clone()]);
        // Reading is told once as well, with the close at the latest.
        let handle = open(&client, inode, READ_WRITE).await;
        read(&client, handle, 0, 3).await;
        client.flush(handle, None).await.unwrap();
        ring.sleep(Duration::from_secs(5)).await;
        assert_eq!(told()[2..], [format!("times of {inode}: set -")]);
        client.close().await;
    });
}

#[test]
fn a_time_that_a_broken_connection_swallowed_is_told_again() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "file").await;
        fake.fault_master(wire::CltomaFuseWriteChunkEnd::TYPE, MasterFault::Disconnect);
        write(&client, handle, 0, b"one").await;
        client.fsync(handle).await.unwrap();
        ring.sleep(Duration::from_secs(5)).await;
        let written = format!("times of {inode}: - set");
        assert_eq!(fake.seen("times of"), [written.clone(), written], "once before the break and once after it");
        client.close().await;
    });
}

#[test]
fn a_loss_is_told_once_to_each_handle_and_new_writes_are_tried_again() {
    in_worlds(1, 1, |ring, fake| async move {
        let settings = Settings { error_on_no_space: true, ..settings(&fake) };
        let client = Client::connect(ring.clone(), settings).await.unwrap();
        let (inode, handle) = create(&client, "full").await;
        let other = open(&client, inode, READ_WRITE).await;
        let x = || b"x".to_vec().into();
        fake.fault_master(CltomaFuseWriteChunk::TYPE, MasterFault::Answer(Status::NOSPACE));
        write(&client, handle, 0, b"lost").await;
        assert_eq!(client.fsync(handle).await, Err(Errno::ENOSPC));
        client.fsync(handle).await.unwrap();
        client.flush(handle, None).await.unwrap();
        // The other handle heard of nothing yet: one write is refused, `close` and `fsync` tell it all the same.
        assert_eq!(client.write(other, 0, x()).await, Err(Errno::ENOSPC));
        write(&client, other, 0, b"kept").await;
        assert_eq!(client.flush(other, None).await, Err(Errno::ENOSPC), "one of two copies of the descriptor");
        assert_eq!(client.fsync(other).await, Err(Errno::ENOSPC));
        client.fsync(other).await.unwrap();
        assert_eq!(fake.content(inode), b"kept");
        // Who opens the file after somebody was told hears nothing.
        let third = open(&client, inode, READ_WRITE).await;
        client.fsync(third).await.unwrap();
        // A second loss is another one, and nobody was told when the file is opened.
        fake.fault_master(CltomaFuseWriteChunk::TYPE, MasterFault::Answer(Status::NOSPACE));
        write(&client, third, 0, b"lost").await;
        ring.sleep(Duration::from_secs(1)).await;
        let fourth = open(&client, inode, READ_WRITE).await;
        for handle in [handle, other, third, fourth] {
            assert_eq!(client.release(handle, None).await, Err(Errno::ENOSPC));
        }
        client.close().await;
    });
}

#[test]
fn a_file_is_written_again_as_soon_as_the_servers_are_back() {
    in_worlds(1, 1, |ring, fake| async move {
        let settings = Settings { io_retries: 4, ..settings(&fake) };
        let client = Client::connect(ring.clone(), settings).await.unwrap();
        let (inode, handle) = create(&client, "image").await;
        write(&client, handle, 0, &pattern(1, 300_000)).await;
        client.fsync(handle).await.unwrap();
        let fault = ServerFault::StatusAfter(1, Status::IO);
        (0..4).for_each(|_| fake.fault_server(0, fault));
        write(&client, handle, 0, &pattern(2, 300_000)).await;
        assert_eq!(client.fsync(handle).await, Err(Errno::EIO));
        let content = pattern(3, 300_000);
        write(&client, handle, 0, &content).await;
        client.fsync(handle).await.unwrap();
        assert!(fake.content(inode) == content, "without closing it");
        client.close().await;
    });
}

#[test]
fn a_writer_waits_when_the_write_cache_is_full() {
    in_some_worlds(3, 1, 1, |ring, fake| async move {
        let settings = Settings { write_cache_bytes: 2 << 20, ..settings(&fake) };
        let client = Client::connect(ring.clone(), settings).await.unwrap();
        let (inode, handle) = create(&client, "big").await;
        fake.fault_server(0, ServerFault::Stall);
        let taken = Rc::new(Cell::new(0usize));
        let content = pattern(1, 4 << 20);
        let writing = {
            let (client, taken, content) = (client.clone(), taken.clone(), content.clone());
            ring.spawn(async move {
                for at in (0..content.len()).step_by(1 << 18) {
                    write(&client, handle, at as u64, &content[at..at + (1 << 18)]).await;
                    taken.set(taken.get() + (1 << 18));
                }
            })
        };
        ring.sleep(Duration::from_secs(2)).await;
        assert_eq!(taken.get(), 2 << 20, "exactly the cache");
        fake.release();
        writing.await.unwrap();
        client.flush(handle, None).await.unwrap();
        assert!(fake.content(inode) == content);
        client.close().await;
    });
}

#[test]
fn a_file_over_several_chunks_is_written_in_several_sessions() {
    in_some_worlds(1, 2, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "sparse").await;
        let bytes = pattern(1, 100_000);
        let chunk = 64u64 << 20;
        write(&client, handle, chunk - 50_000, &bytes).await;
        client.flush(handle, None).await.unwrap();
        let content = fake.content(inode);
        assert_eq!(content.len() as u64, chunk + 50_000);
        assert!(content[(chunk - 50_000) as usize..] == bytes);
        assert_eq!(fake.seen("end of chunk").len(), 2);
        assert!(read(&client, handle, chunk - 50_000, 200_000).await == bytes);
        client.close().await;
    });
}

#[test]
fn appends_of_two_clients_never_overlap() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "log", b"");
        let flags = OpenFlags { append: true, ..READ_WRITE };
        let mut jobs = Vec::new();
        for number in 0..2u8 {
            let (client, its_ring) = (connect(&ring, &fake).await, ring.clone());
            jobs.push(ring.spawn(async move {
                let handle = open(&client, 5, flags).await;
                for _ in 0..10 {
                    write(&client, handle, 0, &[b'a' + number; 100]).await;
                    client.flush(handle, None).await.unwrap();
                    its_ring.sleep(Duration::from_millis(3)).await;
                }
                client.close().await;
            }));
        }
        for job in jobs {
            job.await.unwrap();
        }
        let content = fake.content(5);
        assert_eq!(content.len(), 2000);
        for record in content.chunks(100) {
            assert!(record.iter().all(|byte| *byte == record[0]), "records are whole");
        }
        client_counts(&content);
    });
}

fn client_counts(content: &[u8]) {
    for letter in [b'a', b'b'] {
        assert_eq!(content.iter().filter(|byte| **byte == letter).count(), 1000);
    }
}

#[test]
fn a_file_is_cut_only_when_all_that_was_written_before_has_arrived() {
    // So whoever kills the mount leaves the old length with what was written, or the new length: nothing between.
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "file").await;
        let content = pattern(1, 300_000);
        write(&client, handle, 0, &content).await;
        client.truncate(&Caller::root(), Inode(inode), Some(handle), 100_000).await.unwrap();
        assert_eq!(fake.content(inode), content[..100_000]);
        let of = |word: &str| fake.state.borrow().log.iter().rposition(|line| line.starts_with(word)).unwrap();
        assert!(of("DATA") < of("end of chunk") && of("end of chunk") < of("master 464"), "{:?}", fake.seen("master"));
        client.close().await;
    });
}

#[test]
fn truncating_drops_what_was_read_ahead_and_sets_the_length() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 200_000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ_WRITE).await;
        assert!(read(&client, handle, 0, 200_000).await == content);
        write(&client, handle, 0, b"new").await;
        let attr = client.truncate(&Caller::root(), Inode(5), Some(handle), 1000).await.unwrap();
        assert_eq!(attr.length_bytes(), 1000);
        let mut expected = content[..1000].to_vec();
        expected[..3].copy_from_slice(b"new");
        assert_eq!(read(&client, handle, 0, 200_000).await, expected);
        client.close().await;
    });
}

#[test]
fn a_create_whose_answer_was_lost_is_asked_again_and_says_what_the_master_says() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        fake.fault_master(CltomaFuseCreate::TYPE, MasterFault::Disconnect);
        let (inode, handle) = create(&client, "once").await;
        write(&client, handle, 0, b"x").await;
        client.release(handle, None).await.unwrap();
        assert_eq!(fake.content(inode), b"x");
        assert_eq!(fake.seen("master 482"), ["master 482 -> cut", "master 482"]);
        client.close().await;
    });
}

#[test]
fn dirty_data_survives_the_loss_of_the_master_connection() {
    in_worlds(1, 1, |ring, fake: Fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle) = create(&client, "kept").await;
        let content = pattern(1, 500_000);
        write(&client, handle, 0, &content).await;
        fake.disconnect_clients();
        client.flush(handle, None).await.unwrap();
        assert!(fake.content(inode) == content);
        client.close().await;
    });
}

#[test]
fn a_chunk_that_is_being_written_can_be_read_though_the_master_forgot_to_say_where() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 300_000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ_WRITE).await;
        write(&client, handle, 0, b"new").await;
        ring.sleep(Duration::from_millis(60)).await; // the chunk is locked by our session now
        fake.notify(&wire::MatoclFuseInvalidateChunkCache { msgid: 0 });
        ring.sleep(Duration::from_millis(5)).await;
        assert!(read(&client, handle, 200_000, 1000).await == content[200_000..201_000]);
        assert!(fake.seen("master 432").is_empty(), "READ_CHUNK would wait for ourselves");
        client.close().await;
    });
}
