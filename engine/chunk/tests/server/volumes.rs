//! Disks that come, go and change while the server runs, and the list that a clean stop leaves. Spec 21, 5 and 8.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use chunk::folders::FolderLine;
use chunk::settings::Settings;
use ring::sim::World;
use wire::*;

use crate::support::master::Master;
use crate::support::{Bed, everywhere, in_sim, noise, sim_bed};

/// Settings of node 1 with these folders beside each other in its root.
pub(crate) async fn with_folders(bed: &Bed, names: &[&str]) -> Settings {
    let node = &bed.nodes[1];
    node.prepare().await;
    let mut folders = Vec::new();
    for name in names {
        let path = node.root.join(name.trim_start_matches(['*', '<', '>', '~']));
        let _ = node.ring.mkdir(&path, 0o755).await;
        let plain = FolderLine::plain(path.to_str().unwrap());
        folders.push(FolderLine { marked_for_removal: name.contains('*'), drain: name.contains('<'), ..plain });
    }
    Settings { folders, ..bed.settings(1) }
}

fn list_of(bed: &Bed, folder: &str) -> PathBuf {
    bed.nodes[1].root.join(folder).join(".chunkdb")
}

/// Waits until so many disks are in use and listed.
async fn until_disks_are_ready(bed: &Bed, count: usize) {
    loop {
        let list: CstoclHddList = bed.client(1).await.ask(CltocsHddList {}).await;
        if list.disks.iter().filter(|disk| disk.flags == 0).count() == count {
            return;
        }
        bed.sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn a_reload_adds_and_removes_disks() {
    everywhere(|bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.create(1, 1).await, Status::OK);
        let mut client = bed.client(1).await;
        client.write(1, 1, &[], 0, &noise(1, 100_000)).await;

        let _ = running.reload.send(with_folders(&bed, &["<a", "b"]).await).await;
        until_disks_are_ready(&bed, 2).await;
        drop(client);
        assert_eq!(master.create(2, 7).await, Status::OK);
        assert!(bed.nodes[1].chunk_path_in("b", 2, 7).await.is_some(), "what is drained takes no new chunks");

        let _ = running.reload.send(with_folders(&bed, &["b"]).await).await;
        let lost: CstomaChunkLost = master.report().await;
        assert_eq!(lost.chunks, [ChunkId(1)]);
        assert_eq!(bed.client(1).await.read(1, 1, 0, 10).await, (vec![], Status::NOCHUNK));
        while bed.nodes[1].ring.stat(&list_of(&bed, "a")).await.is_err() {
            bed.sleep(Duration::from_millis(5)).await;
        }
        loop {
            // Taking it back while it is let go of is refused, until it is done.
            let _ = running.reload.send(with_folders(&bed, &["b", "a"]).await).await;
            bed.sleep(Duration::from_millis(50)).await;
            let list: CstoclHddList = bed.client(1).await.ask(CltocsHddList {}).await;
            if list.disks.len() == 2 && list.disks[0].flags == 0 {
                break;
            }
        }
        let new: CstomaChunkNew = master.report().await;
        assert_eq!(new.chunks.iter().map(|chunk| (chunk.chunkid.0, chunk.version)).collect::<Vec<_>>(), [(1, 1)]);
        assert!(bed.client(1).await.read_ok(1, 1, 0, 100_000).await == noise(1, 100_000));
        running.stop().await;
    });
}

#[test]
fn a_changed_mark_is_reported_for_every_chunk_of_the_disk() {
    in_sim(2, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=3 {
            assert_eq!(master.create(id, 5).await, Status::OK);
        }
        for (folder, version) in [("*a", 5 | 1 << 31), ("a", 5)] {
            let _ = running.reload.send(with_folders(&bed, &[folder]).await).await;
            let lost: CstomaChunkLost = master.report().await;
            assert_eq!(lost.chunks, [1, 2, 3].map(ChunkId));
            let new: CstomaChunkNew = master.report().await;
            assert!(new.chunks.iter().all(|chunk| chunk.version == version));
            assert_eq!(new.chunks.len(), 3);
        }
        assert_eq!(master.create(4, 1).await, Status::OK);
        running.stop().await;
    });
}

#[test]
fn a_reload_changes_labels_at_once_and_the_master_by_a_new_connection() {
    in_sim(3, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start(1).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        let mut settings = bed.settings(1);
        settings.labels = 0b101;
        let _ = running.reload.send(settings.clone()).await;
        let labels: CstomaLabels = master.report().await;
        assert_eq!(labels.labelmask, 0b101);

        let other = bed.nodes[0].ring.listen((bed.nodes[0].ip, 9999).into()).unwrap();
        settings.master_port = 9999;
        let _ = running.reload.send(settings).await;
        loop {
            let (kind, payload) = master.next().await.expect("a farewell");
            if kind == CstomaRegister::TYPE {
                assert_eq!(CstomaRegister::decode(&payload), Ok(CstomaRegister::Disconnect));
                break;
            }
        }
        let mut master = Master::accept(&bed.nodes[0].ring, &other).await;
        assert_eq!(master.create(1, 1).await, Status::OK);
        running.stop().await;
    });
}

#[test]
fn a_damaged_disk_is_tried_again_by_a_reload() {
    let world = World::new(4, ring::sim::Settings::default());
    let bed = sim_bed(&world, chunk::settings::IoMode::Buffered);
    let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
    let in_it = bed.clone();
    let (running, mut master) = world
        .run(control, |_| async move {
            let (running, mut master) = in_it.one_server().await;
            for id in 1..=4 {
                assert_eq!(master.create(id, 1).await, Status::OK);
                in_it.client(1).await.write(id, 1, &[], 0, &noise(id, 70_000)).await;
            }
            in_it.sleep(Duration::from_secs(15)).await;
            (running, master)
        })
        .unwrap();
    world.break_disk(server, &bed.nodes[1].hdd(), ring::sim::DiskFault::Reads);
    let in_it = bed.clone();
    let (running, mut master) = world
        .run(control, |_| async move {
            let mut client = in_it.client(1).await;
            for id in 1..=3 {
                assert_eq!(client.read(id, 1, 0, 10).await, (vec![], Status::IO));
            }
            let lost: CstomaChunkLost = master.report().await;
            assert_eq!(lost.chunks.len(), 4);
            (running, master)
        })
        .unwrap();
    world.mend_disk(server);
    let in_it = bed.clone();
    world
        .run(control, |_| async move {
            let _ = running.reload.send(in_it.settings(1)).await;
            let mut new = 0;
            while new < 4 {
                new += master.report::<CstomaChunkNew>().await.chunks.len();
            }
            assert!(in_it.client(1).await.read_ok(2, 1, 0, 70_000).await == noise(2, 70_000));
            let mut client = in_it.client(1).await;
            let disks: CstoclHddList = client.ask(CltocsHddList {}).await;
            assert_eq!((disks.disks.len(), disks.disks[0].flags), (1, 0), "its errors are forgotten");
            running.stop().await;
        })
        .unwrap();
}

#[test]
fn a_clean_stop_leaves_a_list_which_the_next_start_uses_up() {
    everywhere(|bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=20 {
            assert_eq!(master.create(id, id as u32).await, Status::OK);
        }
        running.stop().await;
        let list = bed.nodes[1].read(&list_of(&bed, "a")).await;
        let path_bytes = list[13] as usize;
        assert_eq!(&list[..12], b"MFS CHUNKDB2");
        assert_eq!(list.len(), 14 + path_bytes + 21 * 18);
        assert_eq!(list[14 + path_bytes..][..12], [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);

        let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.listed.iter().map(|chunk| chunk.chunkid.0).collect::<Vec<_>>(), (1..=20).collect::<Vec<_>>());
        assert!(
            bed.nodes[1].ring.stat(&list_of(&bed, "a")).await.is_err(),
            "it is not there for a start after a crash"
        );
        running.stop().await;
    });
}

#[test]
fn a_list_that_is_not_whole_or_not_of_this_folder_is_not_believed() {
    in_sim(5, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let settings = with_folders(&bed, &["a"]).await;
        let running = bed.start_with(1, settings.clone()).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=3 {
            assert_eq!(master.create(id, 1).await, Status::OK);
        }
        running.stop().await;
        // A list that names a chunk more than there is shows whether it was believed.
        let file = list_of(&bed, "a");
        let whole = bed.nodes[1].read(&file).await;
        let end = whole.len() - 18;
        let mut believable = whole[..end].to_vec();
        believable.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 99, 0, 0, 0, 1, 255, 255, 0, 0, 0, 0]);
        let cut = believable.clone();
        believable.extend_from_slice(&[0; 18]);
        let mut of_another = believable.clone();
        of_another[15] ^= 1;
        let mut bad_subfolder = believable.clone();
        let at = bad_subfolder.len() - 20;
        bad_subfolder[at] = 1;
        for (list, chunks) in [(cut, 3), (of_another, 3), (bad_subfolder, 3), (believable, 4)] {
            bed.nodes[1].ring.write_file_durably(&file, 0o644, list).await.unwrap();
            let running = bed.start_with(1, settings.clone()).await;
            let master = Master::accept(&bed.nodes[0].ring, &listener).await;
            assert_eq!(master.listed.len(), chunks);
            running.stop().await;
        }
    });
}

#[test]
fn a_disk_that_was_changed_after_the_stop_is_looked_through() {
    everywhere(|bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let node = &bed.nodes[1];
        let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.create(1, 1).await, Status::OK);
        running.stop().await;
        bed.sleep(Duration::from_millis(50)).await;
        let path = node.chunk_path_in("a", 1, 1).await.unwrap();
        node.ring.unlink(&path).await.unwrap();
        if !bed.is_simulated {
            let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
            let master = Master::accept(&bed.nodes[0].ring, &listener).await;
            assert_eq!(master.listed.len(), 0);
            running.stop().await;
        }
    });
}

#[test]
fn the_same_folder_twice_is_refused() {
    in_sim(6, |bed| async move {
        let mut settings = with_folders(&bed, &["a"]).await;
        settings.folders.push(FolderLine::plain(bed.nodes[1].root.join("./a").to_str().unwrap()));
        let running = bed.start_with(1, settings).await;
        assert!(running.end().await.unwrap_err().to_string().contains("another line names the same folder"));
    });
}

#[test]
fn chunks_move_away_from_a_disk_that_is_drained() {
    in_sim(7, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let settings = Settings { rebalance_percent: 50, ..with_folders(&bed, &["a"]).await };
        let running = bed.start_with(1, settings).await;
        let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
        for id in 1..=12 {
            assert_eq!(master.create(id, 3).await, Status::OK);
            bed.client(1).await.write(id, 3, &[], 0, &noise(id, 150_000)).await;
        }
        let settings = Settings { rebalance_percent: 50, ..with_folders(&bed, &["<a", "b"]).await };
        let _ = running.reload.send(settings.clone()).await;
        bed.sleep(Duration::from_secs(150)).await;
        for id in 1..=12 {
            assert!(bed.nodes[1].chunk_path_in("a", id, 3).await.is_none());
            assert!(bed.nodes[1].chunk_path_in("b", id, 3).await.is_some());
            assert!(bed.client(1).await.read_ok(id, 3, 0, 150_000).await == noise(id, 150_000));
            bed.client(1).await.write(id, 3, &[], 5, b"after").await;
        }
        let disks: CstoclHddList = bed.client(1).await.ask(CltocsHddList {}).await;
        assert_eq!([disks.disks[0].chunks, disks.disks[1].chunks], [12, 0]);
        running.stop().await;
        let running = bed.start_with(1, settings).await;
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.listed.len(), 12);
        assert_eq!(bed.client(1).await.read_ok(12, 3, 5, 5).await, b"after");
        running.stop().await;
    });
}

#[test]
fn a_stop_while_chunks_move_leaves_lists_that_are_true() {
    let moved = Rc::new(Cell::new(0));
    for seed in 0..12 {
        let moved = moved.clone();
        in_sim(seed, move |bed| {
            let moved = moved.clone();
            async move {
                let listener = Master::listen(&bed.nodes[0]);
                let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
                let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
                for id in 1..=20 {
                    assert_eq!(master.create(id, 1).await, Status::OK);
                    bed.client(1).await.write(id, 1, &[], 0, &noise(id, 70_000)).await;
                }
                running.stop().await;
                let settings = Settings { rebalance_moves: 3, ..with_folders(&bed, &["<a", "b"]).await };
                let running = bed.start_with(1, settings).await;
                let _master = Master::accept(&bed.nodes[0].ring, &listener).await;
                until_disks_are_ready(&bed, 2).await;
                // The second look, a minute after the start, begins to move.
                bed.sleep(Duration::from_micros(59_600_000 + bed.nodes[0].ring.random_u64() % 400_000)).await;
                running.stop().await;
                let count = bed.nodes[1].chunk_count("b").await;
                moved.set(moved.get() + usize::from((1..20).contains(&count)));
                let running = bed.start_with(1, with_folders(&bed, &["a", "b"]).await).await;
                let master = Master::accept(&bed.nodes[0].ring, &listener).await;
                assert_eq!(master.listed.len(), 20);
                for id in 1..=20 {
                    assert!(bed.client(1).await.read_ok(id, 1, 0, 70_000).await == noise(id, 70_000), "chunk {id}");
                }
                running.stop().await;
            }
        });
    }
    assert!(moved.get() > 0, "no stop came while chunks moved");
}

#[test]
fn a_disk_that_is_taken_out_while_chunks_move_to_it_has_all_of_them_when_it_returns() {
    let split = Rc::new(Cell::new(0));
    for seed in 0..12 {
        let split = split.clone();
        in_sim(seed, move |bed| {
            let split = split.clone();
            async move {
                let listener = Master::listen(&bed.nodes[0]);
                let running = bed.start_with(1, with_folders(&bed, &["a"]).await).await;
                let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
                for id in 1..=20 {
                    assert_eq!(master.create(id, 1).await, Status::OK);
                    bed.client(1).await.write(id, 1, &[], 0, &noise(id, 70_000)).await;
                }
                running.stop().await;
                let moving = |settings| Settings { rebalance_moves: 3, ..settings };
                let running = bed.start_with(1, moving(with_folders(&bed, &["<a", "b"]).await)).await;
                let _master = Master::accept(&bed.nodes[0].ring, &listener).await;
                until_disks_are_ready(&bed, 2).await;
                // The second look, a minute after the start, begins to move.
                bed.sleep(Duration::from_micros(59_600_000 + bed.nodes[0].ring.random_u64() % 400_000)).await;
                let _ = running.reload.send(with_folders(&bed, &["a"]).await).await;
                bed.sleep(Duration::from_secs(30)).await;
                let count = bed.nodes[1].chunk_count("b").await;
                split.set(split.get() + usize::from((1..20).contains(&count)));
                let _ = running.reload.send(with_folders(&bed, &["a", "b"]).await).await;
                until_disks_are_ready(&bed, 2).await;
                for id in 1..=20 {
                    assert!(bed.client(1).await.read_ok(id, 1, 0, 70_000).await == noise(id, 70_000), "chunk {id}");
                }
                running.stop().await;
            }
        });
    }
    assert!(split.get() > 0, "no disk was taken out while chunks moved");
}
