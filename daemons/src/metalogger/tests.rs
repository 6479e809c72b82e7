//! A master and a metalogger in one simulated world; crashes, gaps, roll-backs.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ring::sim::{self, NodeId, World};
use ring::{JoinHandle, Ring};
use wire::Packet;

use super::store::{IMAGE, check_image};
use super::{Settings, run};
use crate::master::tests::Peer;
use crate::master::{self, MasterError, rehearse};
use crate::signals::Wish;

const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LOGGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// A daemon's end, and the wish that it go on: dropping that stops it.
type Running<E> = (JoinHandle<Result<(), E>>, ring::channel::Sender<Wish>);

struct Scene {
    world: World,
    master: NodeId,
    logger: NodeId,
    masters: Option<Running<MasterError>>,
    loggers: Option<Running<std::io::Error>>,
    made: u32,
    /// How long the master remembers changes for those who come back.
    remembered_seconds: u32,
}

fn master_settings(folder: &str) -> master::Settings {
    let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
    master::Settings {
        data_path: PathBuf::from(folder),
        exports_path: PathBuf::from("/exports"),
        metalogger_address: at(9419),
        chunkserver_address: at(9420),
        client_address: at(9421),
        ..master::Settings::default()
    }
}

fn logger_settings() -> Settings {
    Settings {
        data_path: PathBuf::from("/kept"),
        master_host: MASTER.to_string(),
        master_port: 9419,
        bind_ip: None,
        master_timeout_sec: 10,
        reconnection_delay: Duration::from_secs(1),
        journals_kept: 50,
        images_kept: 3,
        image_every_hours: 24,
    }
}

impl Scene {
    fn new(seed: u64) -> Scene {
        let world = World::new(seed, sim::Settings::default());
        let (master, logger) = (world.node(MASTER), world.node(LOGGER));
        world
            .run(master, |ring| async move {
                ring.write_file_durably(Path::new("/exports"), 0o644, b"* / rw,alldirs,maproot=0\n".to_vec())
                    .await
                    .unwrap();
                for folder in ["/data", "/other"] {
                    ring.mkdir(Path::new(folder), 0o755).await.unwrap();
                    let new = Path::new(folder).join("metadata.mfs");
                    ring.write_file_durably(&new, 0o644, b"MFSM NEW".to_vec()).await.unwrap();
                }
                ring.sync_dir(Path::new("/")).await.unwrap();
            })
            .unwrap();
        world
            .run(logger, |ring| async move {
                ring.mkdir(Path::new("/kept"), 0o755).await.unwrap();
                ring.sync_dir(Path::new("/")).await.unwrap();
            })
            .unwrap();
        Scene { world, master, logger, masters: None, loggers: None, made: 0, remembered_seconds: 1800 }
    }

    fn start_master(&mut self, folder: &str) {
        let (sender, wishes) = ring::channel::channel();
        let ready = Rc::new(Cell::new(false));
        let settings =
            master::Settings { journal_remembered_seconds: self.remembered_seconds, ..master_settings(folder) };
        let is_ready = ready.clone();
        let handle =
            self.world.spawn(self.master, |ring| master::run(ring, settings, wishes, move || is_ready.set(true)));
        assert!(self.world.run_until(|| ready.get() || handle.is_finished()));
        assert!(ready.get(), "the master starts");
        self.masters = Some((handle, sender));
    }

    fn start_logger(&mut self) {
        let (sender, wishes) = ring::channel::channel();
        let handle = self.world.spawn(self.logger, |ring| run(ring, logger_settings(), None, wishes, || {}));
        self.loggers = Some((handle, sender));
        self.world.run_for(Duration::from_secs(5));
    }

    fn stop_logger(&mut self) {
        drop(self.loggers.take());
        self.world.run_for(Duration::from_secs(5));
    }

    fn crash_master(&mut self) {
        self.world.crash(self.master);
        self.masters = None;
        self.world.restart(self.master);
        self.world.run_for(Duration::from_secs(2));
    }

    /// Makes directories at the master, and waits for the answers.
    fn change(&mut self, count: u32) {
        let from = self.made;
        self.made += count;
        let made = self.world.run(self.logger, |ring| async move {
            let mut mount = Peer::mount(&ring).await;
            for number in from..from + count {
                mount.create(&format!("f{number}")).await.unwrap();
            }
        });
        assert!(made.is_some(), "the master answers");
        self.world.run_for(Duration::from_secs(2));
    }

    /// What a master would have that starts from the folder of the metalogger: the number of the next change.
    fn kept(&self) -> u64 {
        self.plan_of(self.logger, "/kept").expect("it would start").to
    }

    fn at_the_master(&self, folder: &str) -> u64 {
        self.plan_of(self.master, folder).expect("it would start").to
    }

    fn plan_of(&self, node: NodeId, folder: &str) -> Result<meta::recovery::Plan, MasterError> {
        let settings = master_settings(folder);
        self.world
            .run(node, |ring| async move { rehearse(&ring, &settings).await.map(|reached| reached.plan) })
            .expect("it ends")
    }

    fn copy_at_the_master(&self, from: &'static str, to: &'static str) {
        let copied = self.world.run(self.master, |ring| async move {
            ring.mkdir(Path::new(to), 0o755).await.unwrap();
            for entry in ring.list(Path::new(from)).await.unwrap() {
                let bytes = ring.read_file(&Path::new(from).join(&entry.name)).await.unwrap();
                ring.write_file_durably(&Path::new(to).join(&entry.name), 0o644, bytes).await.unwrap();
            }
            ring.sync_dir(Path::new("/")).await.unwrap();
        });
        assert!(copied.is_some());
    }

    /// The folder in which what was kept before was set aside.
    fn aside(&self) -> String {
        let names = self.names("/kept");
        let aside: Vec<&String> = names.iter().filter(|name| name.starts_with("set-aside-")).collect();
        assert_eq!(aside.len(), 1, "{names:?}");
        format!("/kept/{}", aside[0])
    }

    fn names(&self, folder: &str) -> Vec<String> {
        let folder = PathBuf::from(folder);
        let list = |ring: Ring| async move { ring.list(&folder).await.unwrap() };
        let mut names: Vec<String> = self
            .world
            .run(self.logger, list)
            .unwrap()
            .into_iter()
            .map(|entry| entry.name.to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

#[test]
fn every_change_is_kept_and_a_master_would_start_from_it() {
    let mut scene = Scene::new(1);
    scene.start_master("/data");
    scene.change(3);
    scene.start_logger();
    scene.change(20);
    let at_the_master = scene.at_the_master("/data");
    assert!(at_the_master > 23);
    assert_eq!(scene.kept(), at_the_master);
    assert!(scene.names("/kept").contains(&IMAGE.to_owned()), "the image comes at once");
}

#[test]
fn a_restart_goes_on_where_the_files_end() {
    let mut scene = Scene::new(2);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.stop_logger();
    scene.change(5);
    assert!(scene.kept() < scene.at_the_master("/data"));
    scene.start_logger();
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
    scene.change(5);
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
    let names = scene.names("/kept");
    assert!(!names.contains(&format!("{IMAGE}.1")), "no second image was fetched: {names:?}");
    assert!(!names.contains(&"changelog_ml.1.mfs".to_owned()), "{names:?}");
}

#[test]
fn after_a_gap_an_image_is_fetched_and_the_older_files_stay() {
    let mut scene = Scene::new(3);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.stop_logger();
    scene.remembered_seconds = 1;
    scene.crash_master();
    scene.start_master("/data");
    scene.change(5);
    scene.world.run_for(Duration::from_secs(5)); // what it remembered for loggers is gone
    scene.start_logger();
    scene.world.run_for(Duration::from_secs(2));
    assert_eq!(scene.kept(), scene.at_the_master("/data"), "without another change");
    scene.change(5);
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
    let names = scene.names("/kept");
    assert!(names.contains(&"changelog_ml.1.mfs".to_owned()), "{names:?}");
    assert!(names.contains(&format!("{IMAGE}.1")), "{names:?}");
}

#[test]
fn a_master_that_was_rolled_back_does_not_take_what_is_kept_with_it() {
    let mut scene = Scene::new(4);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.crash_master();
    scene.copy_at_the_master("/data", "/old");
    scene.start_master("/data");
    scene.change(20);
    let newest = scene.kept();
    assert_eq!(newest, scene.at_the_master("/data"));
    scene.crash_master();
    scene.start_master("/old");
    scene.world.run_for(Duration::from_secs(15)); // until the metalogger is here again
    scene.change(3);
    assert_eq!(scene.kept(), scene.at_the_master("/old"));
    assert_eq!(scene.plan_of(scene.logger, &scene.aside()).unwrap().to, newest, "all that was kept is still there");
}

#[test]
fn a_master_that_was_rolled_back_and_has_passed_what_is_kept_is_not_taken_for_the_same() {
    let mut scene = Scene::new(24);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.crash_master();
    scene.copy_at_the_master("/data", "/old");
    scene.start_master("/data");
    scene.change(10);
    scene.stop_logger();
    let newest = scene.kept();
    scene.crash_master();
    scene.start_master("/old");
    scene.change(30);
    assert!(scene.at_the_master("/old") > newest);
    scene.start_logger();
    scene.change(3);
    assert_eq!(scene.kept(), scene.at_the_master("/old"));
    assert_eq!(scene.plan_of(scene.logger, &scene.aside()).unwrap().to, newest, "all that was kept is still there");
}

#[test]
fn a_master_that_crashed_goes_on_with_its_metalogger_without_another_image() {
    let mut scene = Scene::new(25);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.stop_logger();
    scene.change(5);
    scene.crash_master();
    scene.start_master("/data");
    scene.change(5);
    scene.start_logger();
    scene.world.run_for(Duration::from_secs(2));
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
    let names = scene.names("/kept");
    assert!(!names.contains(&format!("{IMAGE}.1")) && !names.contains(&"changelog_ml.1.mfs".to_owned()), "{names:?}");
}

#[test]
fn an_image_that_was_due_while_no_connection_stood_is_fetched_by_the_next_one() {
    let mut scene = Scene::new(26);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.stop_logger();
    let (master, wishes) = scene.masters.take().unwrap();
    drop(wishes); // a stop makes a new image
    assert!(scene.world.run_until(|| master.is_finished()));
    scene.world.run_for(Duration::from_secs(25 * 3600));
    scene.start_master("/data");
    scene.start_logger();
    scene.world.run_for(Duration::from_secs(5));
    let names = scene.names("/kept");
    assert!(names.contains(&format!("{IMAGE}.1")), "{names:?}");
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
}

#[test]
fn an_image_for_which_there_is_no_room_leaves_the_old_one_and_is_tried_for_again() {
    let mut scene = Scene::new(27);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.stop_logger();
    let old = scene.world.contents(scene.logger, &Path::new("/kept").join(IMAGE)).unwrap();
    scene.change(5);
    scene.remembered_seconds = 1;
    scene.crash_master();
    scene.start_master("/data");
    scene.change(5);
    scene.world.run_for(Duration::from_secs(5));
    scene.world.set_disk_bytes(scene.logger, 4 << 20);
    scene.start_logger();
    scene.change(5);
    let now = scene.world.contents(scene.logger, &Path::new("/kept").join(IMAGE)).unwrap();
    assert!(now == old && !scene.names("/kept").contains(&format!("{IMAGE}.1")));
    scene.world.set_disk_bytes(scene.logger, 1 << 30);
    scene.world.run_for(Duration::from_secs(70));
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
}

#[test]
fn a_look_up_that_hangs_does_not_keep_a_metalogger_from_stopping() {
    let options = ring::Options { driver: ring::DriverChoice::Auto, buffers: 16, ..ring::Options::default() };
    let (release, hangs) = std::sync::mpsc::channel::<()>();
    let stopped = ring::run(options, |ring| async move {
        let wishes = super::Wishes::new(logger_settings());
        wishes.changed.set(true);
        super::session::unless_wished(&ring, &wishes, move || hangs.recv().is_ok()).await
    });
    assert_eq!(stopped.unwrap(), None, "somebody wished a stop");
    drop(release);
}

#[test]
fn the_master_of_another_file_system_is_not_followed_and_the_right_one_is_when_it_is_back() {
    let mut scene = Scene::new(5);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(20);
    let newest = scene.kept();
    let names = scene.names("/kept");
    scene.crash_master();
    scene.start_master("/other");
    scene.change(3);
    scene.world.run_for(Duration::from_secs(5));
    assert_eq!(scene.kept(), newest);
    assert_eq!(scene.names("/kept"), names, "nothing came and nothing went");
    scene.crash_master();
    scene.start_master("/data");
    scene.change(3);
    scene.world.run_for(Duration::from_secs(5));
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
}

#[test]
fn power_cuts_of_the_metalogger_cost_at_most_the_last_moment() {
    for seed in 10..60 {
        let mut scene = Scene::new(seed);
        scene.start_master("/data");
        scene.start_logger();
        scene.change(10);
        let settled = scene.at_the_master("/data");
        // In the middle of a load, a power cut.
        let load = scene.world.spawn(scene.logger, |ring| async move {
            let mut mount = Peer::mount(&ring).await;
            for number in 0.. {
                mount.create(&format!("under-load-{number}")).await.unwrap();
            }
        });
        scene.world.run_for(Duration::from_millis(scene.world.random_below(900)));
        drop(load);
        scene.world.crash(scene.logger);
        scene.loggers = None;
        scene.world.restart(scene.logger);
        assert!(scene.kept() >= settled, "seed {seed}");
        scene.start_logger();
        scene.change(3);
        assert_eq!(scene.kept(), scene.at_the_master("/data"), "seed {seed}");
    }
}

#[test]
fn an_image_that_was_altered_or_cut_off_is_not_taken() {
    let mut scene = Scene::new(6);
    scene.start_master("/data");
    scene.start_logger();
    let (whole, checked) = scene
        .world
        .run(scene.logger, |ring| async move {
            let path = PathBuf::from("/kept").join(IMAGE);
            let whole = ring.read_file(&path).await.unwrap();
            let check = async |bytes: &[u8]| {
                let path = Path::new("/kept/altered");
                ring.write_file_durably(path, 0o644, bytes.to_vec()).await.unwrap();
                check_image(&ring, path).await
            };
            let mut checked =
                vec![check(&whole).await, check(&whole[..whole.len() - 1]).await, check(b"MFSM NEW 2").await];
            for at in [0, 9, 17, 50, 70, whole.len() - 30, whole.len() - 3] {
                let mut altered = whole.clone();
                altered[at] ^= 1;
                checked.push(check(&altered).await);
            }
            let mut short = whole[..whole.len() - 60].to_vec();
            short.extend_from_slice(b"[MFS EOF MARKER]");
            checked.push(check(&short).await);
            (whole, checked)
        })
        .unwrap();
    assert!(whole.len() > 200);
    assert!(checked[0].is_ok(), "{:?}", checked[0]);
    for (at, checked) in checked.iter().enumerate().skip(1) {
        assert!(checked.is_err(), "the {at}th");
    }
}

#[test]
fn an_image_that_a_lost_connection_kept_away_is_fetched_by_the_next_one() {
    let mut scene = Scene::new(7);
    scene.start_master("/data");
    scene.change(5);
    // The connection breaks before the image is there.
    let (sender, wishes) = ring::channel::channel();
    let handle = scene.world.spawn(scene.logger, |ring| run(ring, logger_settings(), None, wishes, || {}));
    scene.world.run_for(Duration::from_millis(20));
    assert!(!scene.names("/kept").contains(&IMAGE.to_owned()), "the image is still on its way");
    scene.crash_master();
    scene.start_master("/data");
    scene.loggers = Some((handle, sender));
    scene.change(5);
    scene.world.run_for(Duration::from_secs(20));
    scene.change(5);
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
    assert!(scene.names("/kept").contains(&IMAGE.to_owned()));
}

#[test]
fn a_full_disk_ends_no_metalogger_and_loses_no_change_that_the_master_remembers() {
    let mut scene = Scene::new(8);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(5);
    scene.world.break_disk(scene.logger, Path::new("/kept"), sim::DiskFault::Writes);
    scene.change(20);
    scene.world.run_for(Duration::from_secs(20));
    scene.world.mend_disk(scene.logger);
    scene.world.run_for(Duration::from_secs(20));
    scene.change(5);
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
}

#[test]
fn lines_behind_a_rotten_one_are_kept() {
    let mut scene = Scene::new(9);
    scene.start_master("/data");
    scene.start_logger();
    scene.change(30);
    scene.stop_logger();
    let log = Path::new("/kept/changelog_ml.0.mfs");
    let before = scene.world.contents(scene.logger, log).unwrap();
    scene.world.rot(scene.logger, log, before.len() as u64 / 2, 1).unwrap();
    scene.start_logger();
    scene.change(5);
    let moved = scene.world.contents(scene.logger, Path::new("/kept/changelog_ml.1.mfs")).unwrap();
    assert_eq!(moved.len(), before.len(), "nothing of it was cut off");
    assert_eq!(scene.kept(), scene.at_the_master("/data"));
}

#[test]
fn a_master_that_is_stopped_hands_over_its_last_changes() {
    for seed in 100..120 {
        let mut scene = Scene::new(seed);
        scene.start_master("/data");
        scene.start_logger();
        scene.change(3);
        let writing = scene.world.spawn(scene.logger, |ring| async move {
            let mut mount = Peer::mount(&ring).await;
            for number in 0.. {
                if mount.create(&format!("late{number}")).await.is_err() {
                    break;
                }
            }
        });
        scene.world.run_for(Duration::from_millis(20 + seed));
        let (master, wishes) = scene.masters.take().unwrap();
        drop(wishes);
        assert!(scene.world.run_until(|| master.is_finished()));
        writing.abort();
        scene.world.run_for(Duration::from_secs(2));
        assert_eq!(scene.kept(), scene.at_the_master("/data"), "seed {seed}");
    }
}

#[test]
fn image_and_journals_of_a_download_fit_together_while_the_master_rotates() {
    let mut rotated = 0;
    for seed in 0..6u64 {
        let mut scene = Scene::new(200 + seed);
        scene.start_master("/data");
        scene.change(20);
        let wall_micros = scene.world.run(scene.logger, |ring| async move { ring.wall_micros() }).unwrap();
        let hour_micros = 3_600_000_000;
        let left = hour_micros - wall_micros % hour_micros;
        scene.world.run_for(Duration::from_micros(left - 2_000_000));
        scene.change(20); // so that there is a journal to rotate
        scene.world.run_for(Duration::from_micros(seed * 90_000));
        scene.world.break_disk(scene.master, Path::new("/data"), sim::DiskFault::Slow(Duration::from_millis(2)));
        let fetched = scene.world.run(scene.logger, |ring| async move {
            let stream = ring.connect(SocketAddr::new(IpAddr::V4(MASTER), 9419), None).await.unwrap();
            let mut reader = ring::BufferedReader::new(stream.clone(), 1 << 16);
            let mut fetched = Vec::new();
            for _ in 0..150 {
                let mut lines = Vec::new();
                for filenum in [1u8, 11, 12] {
                    stream.send_all(wire::AntomaDownloadStart { filenum }.encode()).await.0.unwrap();
                    let size = wire::MatoanDownloadInfo::decode(&answer(&mut reader).await).unwrap().size;
                    if filenum > 1 && size > 0 {
                        let leng = u32::try_from(size).unwrap();
                        stream.send_all(wire::AntomaDownloadRequest { offset: 0, leng }.encode()).await.0.unwrap();
                        lines.push(wire::MatoanDownloadData::decode(&answer(&mut reader).await).unwrap().data.0);
                    } else {
                        lines.push(Vec::new());
                    }
                }
                fetched.push((lines.swap_remove(1), lines.pop().unwrap()));
            }
            fetched
        });
        for (newest, before) in fetched.unwrap() {
            let range = |bytes: &[u8]| meta::journal::survey(bytes).versions;
            let (newest, before) = (range(&newest), range(&before));
            assert!(newest.is_some() || before.is_some(), "seed {seed}: a file was seen in neither place");
            if let (Some((first, _)), Some((_, last))) = (newest, before) {
                assert_eq!(first, last + 1, "seed {seed}");
            }
            rotated += u32::from(before.is_some());
        }
    }
    assert!(rotated > 0, "rotations were met");
}

async fn answer(reader: &mut ring::BufferedReader) -> Vec<u8> {
    let head = reader.fill(wire::HEADER_BYTES).await.unwrap();
    let header = wire::Header::decode(head[..wire::HEADER_BYTES].try_into().unwrap());
    let whole = wire::HEADER_BYTES + header.length as usize;
    let payload = reader.fill(whole).await.unwrap()[wire::HEADER_BYTES..whole].to_vec();
    reader.consume(whole);
    payload
}
