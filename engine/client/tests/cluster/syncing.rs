//! `fsync`: what servers lose while nobody looks, and what the client may still call safe.

use std::time::Duration;

use client::{Caller, Client, Errno, Handle, Inode, Settings};
use wire::{MatoclFuseChunkHasChanged, Version};

use crate::fake::Fake;
use crate::{READ_WRITE, in_worlds, pattern, settings};

/// A file of two copies whose first content is on the devices and whose second content was only acknowledged.
async fn acknowledged(client: &Client, ring: &ring::Ring, size: usize) -> (u32, Handle, Vec<u8>) {
    let (entry, opened) = client.create(&Caller::root(), Inode(1), b"file", 0o644, READ_WRITE).await.unwrap();
    client.write(opened.handle, 0, pattern(1, size).into()).await.unwrap();
    client.fsync(opened.handle).await.unwrap();
    let content = pattern(2, size);
    client.write(opened.handle, 0, content.clone().into()).await.unwrap();
    ring.sleep(Duration::from_secs(1)).await;
    (entry.inode.0, opened.handle, content)
}

async fn connect(ring: &ring::Ring, fake: &Fake) -> Client {
    fake.with_epochs();
    crate::connect(ring, fake).await
}

fn is_on_all_devices(fake: &Fake, inode: u32, content: &[u8]) -> bool {
    fake.on_devices(inode).iter().all(|copy| copy == content)
}

#[test]
fn a_sync_is_one_packet_a_copy_and_the_epoch_is_asked_for_once() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 200_000).await;
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        client.fsync(handle).await.unwrap();
        assert_eq!(fake.seen("SYNC").len(), 4, "{:?}", fake.seen("cs"));
        assert_eq!(fake.seen("CONFIG").len(), 2, "{:?}", fake.seen("cs"));
        assert!(fake.seen("master 432").is_empty(), "the master is not asked");
        client.close().await;
    });
}

#[test]
fn what_servers_lost_is_written_again_before_fsync_says_that_it_is_safe() {
    for servers in [&[0][..], &[1], &[0, 1]] {
        in_worlds(2, 2, move |ring, fake| async move {
            let client = connect(&ring, &fake).await;
            let (inode, handle, content) = acknowledged(&client, &ring, 256 << 10).await;
            servers.iter().for_each(|server| fake.restart_server(*server, true));
            client.fsync(handle).await.unwrap();
            assert!(fake.content(inode) == content);
            assert!(is_on_all_devices(&fake, inode, &content));
            client.close().await;
        });
    }
}

#[test]
fn a_file_that_was_closed_and_opened_again_is_written_again_too() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        client.release(handle, None).await.unwrap();
        [0, 1].iter().for_each(|server| fake.restart_server(*server, true));
        let handle = crate::open(&client, inode, READ_WRITE).await;
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        client.close().await;
    });
}

#[test]
fn what_was_cut_off_is_not_written_again() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 200_000).await;
        client.truncate(&Caller::root(), Inode(inode), Some(handle), 70_000).await.unwrap();
        [0, 1].iter().for_each(|server| fake.restart_server(*server, true));
        client.fsync(handle).await.unwrap();
        assert_eq!(fake.state.borrow().files[&inode].length, 70_000);
        assert!(fake.content(inode) == content[..70_000]);
        client.close().await;
    });
}

#[test]
fn a_server_that_starts_anew_and_lost_nothing_is_compared_and_gets_nothing_again() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        let writes = fake.seen("WRITE to").len();
        fake.restart_server(1, false);
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        assert_eq!(fake.seen("CHECKSUM").len(), 2);
        assert_eq!(fake.seen("WRITE to").len(), writes);
        client.close().await;
    });
}

#[test]
fn a_broken_connection_is_no_loss() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        let writes = fake.seen("WRITE to").len();
        [0, 1].iter().for_each(|server| fake.cut_connections(*server));
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        assert_eq!(fake.seen("WRITE to").len(), writes);
        client.close().await;
    });
}

#[test]
fn a_copy_that_was_moved_meanwhile_is_as_good_as_those_that_it_was_made_from() {
    in_worlds(3, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        let (writes, from) =
            (fake.seen("WRITE to").len(), *fake.state.borrow().chunks[&1].copies.keys().next().unwrap());
        let to = (0..3).find(|server| !fake.state.borrow().chunks[&1].copies.contains_key(server)).unwrap();
        fake.move_copies(from, to);
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        assert_eq!(fake.seen("WRITE to").len(), writes);
        client.close().await;
    });
}

#[test]
fn a_server_that_syncs_each_write_loses_nothing_when_it_starts_anew() {
    in_worlds(2, 2, |ring, fake| async move {
        fake.with_epochs();
        for epoch in fake.state.borrow_mut().epochs.values_mut() {
            *epoch = wire::Epoch::new(epoch.0, true);
        }
        let client = crate::connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        let writes = fake.seen("WRITE to").len();
        [0, 1].iter().for_each(|server| fake.restart_server(*server, false));
        client.fsync(handle).await.unwrap();
        assert!(is_on_all_devices(&fake, inode, &content));
        assert_eq!(fake.seen("WRITE to").len(), writes);
        client.close().await;
    });
}

#[test]
fn lost_bytes_over_which_another_client_has_written_are_an_error_that_is_told() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let (inode, handle, _) = acknowledged(&client, &ring, 100_000).await;
        let writes = fake.seen("WRITE to").len();
        let (chunkid, version) = (wire::ChunkId(1), Version(fake.state.borrow().chunks[&1].version));
        let (inode, length) = (Inode(inode), 100_000);
        fake.notify(&MatoclFuseChunkHasChanged {
            msgid: 0,
            inode,
            index: 0,
            chunkid,
            version,
            length,
            truncflag: 0,
            region: None,
        });
        [0, 1].iter().for_each(|server| fake.restart_server(*server, true));
        assert_eq!(client.fsync(handle).await, Err(Errno::EIO));
        assert_eq!(fake.seen("WRITE to").len(), writes, "the other client's bytes are newer");
        client.close().await;
    });
}

#[test]
fn servers_of_moosefs_are_not_asked_and_fsync_means_what_it_means_there() {
    in_worlds(2, 2, |ring, fake| async move {
        let client = crate::connect(&ring, &fake).await;
        let (inode, handle, content) = acknowledged(&client, &ring, 100_000).await;
        client.fsync(handle).await.unwrap();
        assert!(fake.content(inode) == content);
        assert!(fake.seen("SYNC").is_empty());
        client.close().await;
    });
}

#[test]
fn more_than_the_write_cache_is_synced_early_and_then_not_kept() {
    crate::in_some_worlds(2, 2, 2, |ring, fake| async move {
        fake.with_epochs();
        let settings = Settings { write_cache_bytes: 2 << 20, ..settings(&fake) };
        let client = Client::connect(ring.clone(), settings).await.unwrap();
        let (entry, opened) = client.create(&Caller::root(), Inode(1), b"big", 0o644, READ_WRITE).await.unwrap();
        let content = pattern(1, 8 << 20);
        for at in (0..content.len()).step_by(1 << 18) {
            client.write(opened.handle, at as u64, content[at..at + (1 << 18)].to_vec().into()).await.unwrap();
        }
        client.flush(opened.handle, None).await.unwrap();
        assert!(!fake.seen("SYNC").is_empty(), "before anybody asked");
        [0, 1].iter().for_each(|server| fake.restart_server(*server, true));
        client.fsync(opened.handle).await.unwrap();
        assert!(fake.content(entry.inode.0) == content);
        assert!(is_on_all_devices(&fake, entry.inode.0, &content));
        client.close().await;
    });
}
