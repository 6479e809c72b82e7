//! What a client may believe about data that it had acknowledged: SYNC and the server's epoch.

use std::time::Duration;

use chunk::settings::{Durability, IoMode};
use ring::sim::{DiskFault, Settings, World};
use wire::*;

use crate::support::client::Client;
use crate::support::{noise, sim_bed};

async fn epoch(client: &mut Client) -> Epoch {
    let option = Name::new(EPOCH_OPTION).unwrap();
    let answer: AntoanConfigValue = client.ask(AntoanGetConfig { msgid: 1, option }).await;
    Epoch::from_value(answer.value.as_bytes()).expect("a server of ours has an epoch")
}

/// The status, the version that was synced, and the epoch afterwards.
async fn sync(client: &mut Client, id: u64, version: u32) -> (Status, u32, Epoch) {
    let (chunkid, version) = (ChunkId(id), Version(version));
    let answer: CstoclSyncEpoch = client.ask(CltocsSyncEpoch { chunkid, version }).await;
    assert_eq!(answer.chunkid, chunkid);
    (answer.status, answer.version.0, Epoch(answer.epoch))
}

#[test]
fn a_sync_names_the_epoch_and_the_version_that_it_speaks_of() {
    crate::support::everywhere(|bed| async move {
        let (running, mut master) = bed.one_server().await;
        assert_eq!(master.create(1, 3).await, Status::OK);
        let mut client = bed.client(1).await;
        let known = epoch(&mut client).await;
        assert!(!known.is_durable(), "the policy is `written`");
        client.write(1, 3, &[], 0, &noise(1, 100_000)).await;
        assert_eq!(sync(&mut client, 1, 3).await, (Status::OK, 3, known));
        assert_eq!(sync(&mut client, 1, 0).await, (Status::OK, 3, known));
        assert_eq!(sync(&mut client, 1, 2).await, (Status::WRONGVERSION, 2, known));
        assert_eq!(sync(&mut client, 9, 1).await, (Status::NOCHUNK, 1, known));
        drop(client);
        assert_eq!(epoch(&mut bed.client(1).await).await, known, "another connection, the same server");
        running.stop().await;
    });
}

#[test]
fn a_server_that_starts_begins_an_epoch_of_its_policy() {
    let world = World::new(1, Settings::default());
    let bed = sim_bed(&world, IoMode::Buffered);
    let mut epochs = Vec::new();
    for durability in [Durability::Written, Durability::Written, Durability::Synced] {
        let in_it = bed.clone();
        let seen = world.run(world.node(bed.nodes[0].ip), |_| async move {
            let settings = chunk::settings::Settings { durability, ..in_it.settings(1) };
            let _running = in_it.start_with(1, settings).await;
            epoch(&mut in_it.client(1).await).await
        });
        epochs.push(seen.unwrap());
        world.kill(world.node(bed.nodes[1].ip));
    }
    assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    assert_eq!(epochs.iter().map(|epoch| epoch.is_durable()).collect::<Vec<_>>(), [false, false, true]);
}

#[test]
fn after_a_sync_that_failed_no_other_one_succeeds() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let world = World::new(1, Settings::default());
        let bed = sim_bed(&world, io_mode);
        let (control, server) = (world.node(bed.nodes[0].ip), world.node(bed.nodes[1].ip));
        let in_it = bed.clone();
        let (_running, mut master, known) = world
            .run(control, |_| async move {
                let (running, mut master) = in_it.one_server().await;
                assert_eq!(master.create(1, 1).await, Status::OK);
                let mut client = in_it.client(1).await;
                let known = epoch(&mut client).await;
                client.write(1, 1, &[], 0, &noise(1, 100_000)).await;
                (running, master, known)
            })
            .unwrap();
        for subfolder in 0..=255 {
            let folder = bed.nodes[1].hdd().join(chunk::layout::subfolder_name(subfolder));
            world.break_disk(server, &folder, DiskFault::Syncs);
        }
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                let (status, _, epoch) = sync(&mut in_it.client(1).await, 1, 1).await;
                assert_eq!(status, Status::IO);
                assert_ne!(epoch, known, "what was acknowledged may be lost");
            })
            .unwrap();
        world.mend_disk(server);
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                let (status, _, epoch) = sync(&mut in_it.client(1).await, 1, 1).await;
                assert_ne!(status, Status::OK, "the system has dropped what it could not write");
                assert_ne!(epoch, known);
                let lost: CstomaChunkLost = master.report().await;
                assert_eq!(lost.chunks, [ChunkId(1)], "a disk that answers EIO is given up");
            })
            .unwrap();
    }
}

#[test]
fn a_disk_that_is_given_up_and_one_that_is_added_again_begin_an_epoch() {
    let world = World::new(1, Settings::default());
    let bed = sim_bed(&world, IoMode::Buffered);
    let (control, server) = (world.node(bed.nodes[0].ip), world.node(bed.nodes[1].ip));
    let in_it = bed.clone();
    let (running, mut master, known) = world
        .run(control, |_| async move {
            let (running, mut master) = in_it.one_server().await;
            assert_eq!(master.create(1, 1).await, Status::OK);
            in_it.client(1).await.write(1, 1, &[], 0, b"late").await;
            let known = epoch(&mut in_it.client(1).await).await;
            (running, master, known)
        })
        .unwrap();
    world.break_disk(server, &bed.nodes[1].hdd(), DiskFault::Syncs);
    let in_it = bed.clone();
    let (mut running, without_it) = world
        .run(control, |_| async move {
            let lost: CstomaChunkLost = master.report().await;
            assert_eq!(lost.chunks, [ChunkId(1)]);
            let without_it = epoch(&mut in_it.client(1).await).await;
            assert_ne!(without_it, known);
            in_it.sleep(Duration::from_secs(1)).await;
            (running, without_it)
        })
        .unwrap();
    world.mend_disk(server);
    let in_it = bed.clone();
    world
        .run(control, |_| async move {
            running.reload.send(in_it.settings(1)).await.unwrap();
            let mut client = in_it.client(1).await;
            while sync(&mut client, 1, 1).await.0 != Status::OK {
                in_it.sleep(Duration::from_millis(100)).await;
            }
            assert_ne!(epoch(&mut client).await, without_it);
            let _ = &mut running;
        })
        .unwrap();
}
