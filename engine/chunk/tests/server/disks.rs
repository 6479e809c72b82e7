//! Disks that fail or are full. Spec 20, 5; Spec 21, 8.5.

use std::time::Duration;

use chunk::settings::IoMode;
use ring::sim::{DiskFault, Settings, World};
use wire::*;

use crate::support::client::Client;
use crate::support::master::Master;
use crate::support::{Bed, Running, noise, sim_bed};

/// A world with one server that has four chunks of two blocks each.
fn world_with_chunks(io_mode: IoMode) -> (World, Bed, Running, Master) {
    let world = World::new(1, Settings::default());
    let bed = sim_bed(&world, io_mode);
    let in_it = bed.clone();
    let (running, master) = world
        .run(world.node(bed.nodes[0].ip), |_| async move {
            let (running, mut master) = in_it.one_server().await;
            for id in 1..=4 {
                assert_eq!(master.create(id, 1).await, Status::OK);
                in_it.client(1).await.write(id, 1, &[], 0, &noise(id, 100_000)).await;
            }
            in_it.sleep(Duration::from_secs(15)).await; // until idle chunks are closed
            (running, master)
        })
        .expect("the server starts");
    (world, bed, running, master)
}

#[test]
fn a_disk_with_too_many_errors_is_given_up_and_its_chunks_are_lost() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let (world, bed, _running, mut master) = world_with_chunks(io_mode);
        world.break_disk(world.node(bed.nodes[1].ip), &bed.nodes[1].hdd(), DiskFault::Reads);
        let in_it = bed.clone();
        world
            .run(world.node(bed.nodes[0].ip), |_| async move {
                let mut client = in_it.client(1).await;
                for id in 1..=3 {
                    assert_eq!(client.read(id, 1, 0, 10).await, (vec![], Status::IO));
                }
                assert_eq!(client.read(4, 1, 0, 10).await, (vec![], Status::NOCHUNK), "the disk is not asked any more");
                let lost: CstomaChunkLost = master.report().await;
                assert_eq!(lost.chunks, [1, 2, 3, 4].map(ChunkId));
                assert_eq!(master.create(9, 1).await, Status::NOSPACE);
                let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
                assert_eq!(disks.disks[0].flags, 2, "tools see a damaged disk");
                assert_eq!(disks.disks[0].errchunkid, ChunkId(3));
            })
            .expect("the server answers");
    }
}

#[test]
fn a_full_disk_refuses_writes_and_keeps_what_it_has() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let (world, bed, running, master) = world_with_chunks(io_mode);
        let server = world.node(bed.nodes[1].ip);
        let control = world.node(bed.nodes[0].ip);
        for subfolder in 0..=255 {
            let folder = bed.nodes[1].hdd().join(chunk::layout::subfolder_name(subfolder));
            world.break_disk(server, &folder, DiskFault::Full);
        }
        let in_it = bed.clone();
        let (mut client, mut master) = world
            .run(control, |_| async move {
                for (block, size) in [(5, 65_536), (5, 100), (0, 65_536), (0, 100)] {
                    let mut client = in_it.client(1).await;
                    assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
                    client.send_piece(1, 1, block, 0, &vec![1; size]).await;
                    assert_eq!(client.status().await, (1, Status::NOSPACE), "{size} bytes of block {block}");
                }
                (in_it.client(1).await, master)
            })
            .expect("the server answers");
        world.mend_disk(server);
        world.run(control, |_| async move {
            for id in 1..=4 {
                assert!(client.read_ok(id, 1, 0, 100_000).await == noise(id, 100_000));
            }
            assert_eq!(client.read_ok(1, 1, 5 * 65_536, 65_536).await, [0; 65_536]);
            client.write(1, 1, &[], 5 * 65_536, &[7; 65_536]).await;
            assert_eq!(client.read_ok(1, 1, 5 * 65_536, 65_536).await, [7; 65_536]);
            assert_eq!(master.set_version(1, 2, 1).await, Status::OK);
            let damaged = master.others.iter().any(|(kind, _)| *kind == CstomaChunkDamaged::TYPE);
            assert!(!damaged, "a write that found no room spoiled nothing");
            running.stop().await;
        });
    }
}

#[test]
fn a_disk_without_room_for_a_log_is_read_and_changed_no_more() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let (world, bed, running, master) = world_with_chunks(io_mode);
        let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                running.stop().await;
                drop(master);
                let log = in_it.nodes[1].hdd().join(".mooring_intents");
                in_it.nodes[1].ring.unlink(&log).await.unwrap();
            })
            .expect("it stops");
        // What is there already can be written over.
        world.break_disk(server, &bed.nodes[1].hdd().join(".mooring_intents"), DiskFault::Full);
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                let (running, mut master) = in_it.one_server().await;
                assert_eq!(master.listed.len(), 4);
                let mut client = in_it.client(1).await;
                assert_eq!(client.read_ok(1, 1, 0, 100_000).await, noise(1, 100_000));
                assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
                client.send_piece(1, 1, 0, 0, b"no").await;
                assert_eq!(client.status().await, (1, Status::NOSPACE));
                assert_eq!(master.truncate(2, 70_000, 2, 1).await, Status::NOSPACE);
                assert_eq!(master.create(9, 1).await, Status::NOSPACE);
                let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
                assert_eq!(disks.disks[0].used, disks.disks[0].total, "nobody is told of room that cannot be used");
                assert_eq!(master.set_version(3, 2, 1).await, Status::OK);
                assert_eq!(master.delete(4, 1).await, Status::OK, "that makes room");
                assert_eq!(in_it.client(1).await.read_ok(1, 1, 0, 100_000).await, noise(1, 100_000));
                running.stop().await;
            })
            .expect("the server starts and answers");
        world.mend_disk(server);
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                let (running, mut master) = in_it.one_server().await;
                assert_eq!(master.listed.iter().map(|chunk| chunk.version).collect::<Vec<_>>(), [1, 1, 2]);
                in_it.client(1).await.write(1, 1, &[], 0, b"yes").await;
                assert_eq!(in_it.client(1).await.read_ok(1, 1, 0, 3).await, b"yes");
                assert_eq!(master.create(9, 1).await, Status::OK);
                running.stop().await;
            })
            .expect("there is room again");
    }
}

#[test]
fn a_chunk_that_cannot_be_made_leaves_no_file_under_its_name() {
    let (world, bed, running, mut master) = world_with_chunks(IoMode::Direct);
    let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
    for subfolder in 0..=255 {
        let folder = bed.nodes[1].hdd().join(chunk::layout::subfolder_name(subfolder));
        world.break_disk(server, &folder, DiskFault::Syncs);
    }
    let in_it = bed.clone();
    let running = world
        .run(control, |_| async move {
            assert_eq!(master.duplicate((9, 1), (1, 1)).await, Status::IO, "the device does not take its name");
            assert!(in_it.nodes[1].find_chunk(9, 1).await.is_none());
            running
        })
        .expect("the server answers");
    world.mend_disk(server);
    world.run(control, |_| async move { running.stop().await }).expect("it stops");
}

#[test]
fn a_log_that_cannot_be_written_stops_changes_and_nothing_else() {
    let (world, bed, _running, mut master) = world_with_chunks(IoMode::Direct);
    world.break_disk(world.node(bed.nodes[1].ip), &bed.nodes[1].hdd().join(".mooring_intents"), DiskFault::Writes);
    let in_it = bed.clone();
    world
        .run(world.node(bed.nodes[0].ip), |_| async move {
            let mut client: Client = in_it.client(1).await;
            assert_eq!(client.open_write(1, 1, &[]).await, Status::OK);
            client.send_piece(1, 1, 0, 0, b"no").await;
            assert_eq!(client.status().await, (1, Status::IO));
            assert_eq!(client.read_ok(1, 1, 0, 100_000).await, noise(1, 100_000));
            assert_eq!(client.read_ok(2, 1, 0, 100_000).await, noise(2, 100_000));
            let damaged: CstomaChunkDamaged = master.report().await;
            assert_eq!(damaged.chunks, [ChunkId(1)]);
        })
        .expect("the server answers");
}

#[test]
fn a_disk_that_cannot_keep_what_it_took_is_given_up() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let (world, bed, _running, master) = world_with_chunks(io_mode);
        let in_it = bed.clone();
        let master = world
            .run(world.node(bed.nodes[0].ip), |_| async move {
                in_it.client(1).await.write(2, 1, &[], 70_000, b"late").await;
                master
            })
            .expect("the server answers");
        // The folder itself: files are synced as ever, what the system writes back by itself is lost.
        world.break_disk(world.node(bed.nodes[1].ip), &bed.nodes[1].hdd(), DiskFault::Syncs);
        let mut master = master;
        world
            .run(world.node(bed.nodes[0].ip), |_| async move {
                let lost: CstomaChunkLost = master.report().await;
                assert_eq!(lost.chunks, [1, 2, 3, 4].map(ChunkId));
            })
            .expect("the server tells that they are lost");
    }
}

#[test]
fn a_disk_whose_log_stays_full_is_given_up() {
    let (world, bed, _running, mut master) = world_with_chunks(IoMode::Buffered);
    let control = world.node(bed.nodes[0].ip);
    let in_it = bed.clone();
    let (stuck, writer) = world
        .run(control, |_| async move {
            let mut stuck = in_it.client(1).await;
            assert_eq!(stuck.open_write(1, 1, &[]).await, Status::OK);
            stuck.send_piece(1, 1, 0, 0, b"its table will not be written").await;
            assert_eq!(stuck.status().await, (1, Status::OK));
            let mut writer = in_it.client(1).await;
            assert_eq!(writer.open_write(2, 1, &[]).await, Status::OK);
            (stuck, writer)
        })
        .expect("the server answers");
    let subfolder_of_1 = {
        let in_it = bed.clone();
        world.run(control, |_| async move { in_it.nodes[1].chunk_path(1, 1).await }).unwrap()
    };
    world.break_disk(world.node(bed.nodes[1].ip), &subfolder_of_1, DiskFault::Writes);
    world
        .run(control, |_| async move {
            let mut writer = writer;
            let mut written = 0u32;
            loop {
                writer.send_piece(2, written + 1, 0, 0, &written.to_be_bytes()).await;
                match writer.status_or_end().await {
                    Some((_, Status::OK)) => written += 1,
                    None => break, // a session that stands still is ended
                    Some((_, refused)) => {
                        assert!([Status::IO, Status::NOCHUNK].contains(&refused), "{refused:?}");
                        break;
                    }
                }
            }
            assert!(written > 1500, "the log was full: {written}");
            let lost: CstomaChunkLost = master.report().await;
            assert_eq!(lost.chunks, [1, 2, 3, 4].map(ChunkId));
            drop(stuck);
        })
        .expect("the server tells that they are lost");
}

#[test]
fn a_disk_that_hangs_holds_up_nobody_else_and_is_used_again_when_it_answers() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let world = World::new(5, Settings::default());
        let bed = sim_bed(&world, io_mode);
        let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
        let in_it = bed.clone();
        let (running, on_a, on_b) = world
            .run(control, |_| async move {
                let listener = Master::listen(&in_it.nodes[0]);
                let settings = crate::volumes::with_folders(&in_it, &["a", "b"]).await;
                let running = in_it.start_with(1, settings).await;
                let mut master = Master::accept(&in_it.nodes[0].ring, &listener).await;
                let (mut on_a, mut on_b) = (Vec::new(), Vec::new());
                for id in 1..=60 {
                    assert_eq!(master.create(id, 1).await, Status::OK);
                    in_it.client(1).await.write(id, 1, &[], 0, &noise(id, 70_000)).await;
                    let is_on_a = in_it.nodes[1].chunk_path_in("a", id, 1).await.is_some();
                    if is_on_a { on_a.push(id) } else { on_b.push(id) }
                }
                in_it.sleep(Duration::from_secs(15)).await; // until idle chunks are closed
                (running, on_a, on_b)
            })
            .expect("the server starts");
        assert!(on_a.len() >= 25 && on_b.len() >= 25, "new chunks are spread");
        world.break_disk(server, &bed.nodes[1].root.join("a"), DiskFault::Hangs);
        let (in_it, first, on_b_now) = (bed.clone(), on_a[0], on_b.clone());
        world
            .run(control, |ring| async move {
                let mut stuck = Vec::new();
                for id in on_a.clone() {
                    let bed = in_it.clone();
                    stuck.push(ring.spawn(async move { bed.client(1).await.read(id, 1, 0, 70_000).await }));
                }
                for id in &on_b_now {
                    assert!(in_it.client(1).await.read_ok(*id, 1, 0, 70_000).await == noise(*id, 70_000));
                    in_it.client(1).await.write(*id, 1, &[], 100, b"new").await;
                }
                in_it.sleep(Duration::from_secs(8)).await;
                for reader in stuck {
                    assert!(reader.is_finished(), "those that waited already are sent to another copy");
                    assert_eq!(reader.await.unwrap(), (vec![], Status::NOTDONE));
                }
                assert_eq!(in_it.client(1).await.read(first, 1, 0, 10).await, (vec![], Status::NOTDONE));
                assert_eq!(&in_it.client(1).await.read_ok(on_b_now[0], 1, 100, 3).await, b"new");
            })
            .expect("the other disk is served");
        world.mend_disk(server);
        let in_it = bed.clone();
        world
            .run(control, |_| async move {
                in_it.sleep(Duration::from_secs(3)).await;
                assert!(in_it.client(1).await.read_ok(first, 1, 0, 70_000).await == noise(first, 70_000));
                running.stop().await;
            })
            .expect("the disk is used again");
    }
}

#[test]
fn chunks_of_a_lost_disk_can_be_made_again_on_another_disk_of_the_server() {
    let world = World::new(6, Settings::default());
    let bed = sim_bed(&world, IoMode::Direct);
    let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
    let in_it = bed.clone();
    let (mut servers, on_a) = world
        .run(control, |_| async move {
            let listener = Master::listen(&in_it.nodes[0]);
            let settings = crate::volumes::with_folders(&in_it, &["a", "b"]).await;
            let mut servers = vec![(in_it.start_with(1, settings).await, None)];
            servers[0].1 = Some(Master::accept(&in_it.nodes[0].ring, &listener).await);
            let other = in_it.start(2).await;
            servers.push((other, Some(Master::accept(&in_it.nodes[0].ring, &listener).await)));
            let mut on_a = Vec::new();
            for id in 1..=10 {
                for (_, master) in &mut servers {
                    assert_eq!(master.as_mut().unwrap().create(id, 1).await, Status::OK);
                }
                in_it.client(1).await.write(id, 1, &[&in_it.nodes[2]], 0, &noise(id, 70_000)).await;
                if in_it.nodes[1].chunk_path_in("a", id, 1).await.is_some() {
                    on_a.push(id);
                }
            }
            in_it.sleep(Duration::from_secs(15)).await;
            (servers, on_a)
        })
        .expect("the servers start");
    assert!(on_a.len() > 3);
    world.break_disk(server, &bed.nodes[1].root.join("a"), DiskFault::Reads);
    let in_it = bed.clone();
    world
        .run(control, |_| async move {
            let master = servers[0].1.as_mut().unwrap();
            for id in &on_a[..3] {
                assert_eq!(in_it.client(1).await.read(*id, 1, 0, 10).await, (vec![], Status::IO));
            }
            let lost: CstomaChunkLost = master.report().await;
            assert_eq!(lost.chunks, on_a.iter().map(|id| ChunkId(*id)).collect::<Vec<_>>());
            for id in on_a {
                assert_eq!(master.replicate(id, 1, &in_it.nodes[2]).await, Status::OK);
                assert!(in_it.nodes[1].chunk_path_in("b", id, 1).await.is_some());
                assert!(in_it.client(1).await.read_ok(id, 1, 0, 70_000).await == noise(id, 70_000));
            }
        })
        .expect("the chunks are made again");
}
