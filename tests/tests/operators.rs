//! Operators' bad days with the master, played through with real daemons: what was acknowledged stays, and what cannot be
//! right is refused with the way out named. `MOORING_DRILL_KILLS=100` kills more often than every run does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use meta::{Namespace, Policy};
use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have, mooring_binary};
use mooring_tests::tree::Random;
use mooring_tests::wait::{wait_for, wait_until};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Mooring];
const LIMIT: Duration = Duration::from_secs(60);
const WRITERS: usize = 3;
const BACK: &str = "metadata.mfs.back";
const CLEAN: &str = "metadata.mfs";
const LOG: &str = "changelog.0.mfs";

// --- killed under load ---

#[test]
fn a_master_that_is_killed_under_load_loses_nothing_that_it_acknowledged() {
    if !have("a_master_that_is_killed_under_load_loses_nothing_that_it_acknowledged", NEEDS) {
        return;
    }
    let kills = std::env::var("MOORING_DRILL_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(10u32);
    let mut layout = Layout::ours(1);
    layout.limit = Duration::from_secs(120 + 15 * u64::from(kills));
    let mut cluster = Cluster::start("op-kills", layout);
    let mount = cluster.mount(Kind::Mooring);
    let first_image = cluster.scratch("first-image");
    fs::copy(cluster.master_data().join(BACK), &first_image).unwrap();

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (stop, done, folder) = (stop.clone(), done.clone(), mount.join(format!("writer{number}")));
            fs::create_dir(&folder).unwrap();
            std::thread::spawn(move || {
                let mut writer = Writer { folder, names: Vec::new(), number: 0 };
                while !stop.load(Ordering::Relaxed) {
                    writer.step();
                    done.fetch_add(1, Ordering::Relaxed);
                }
                writer
            })
        })
        .collect();
    let mut random = Random::new(9);
    for kill in 0..kills {
        let before = done.load(Ordering::Relaxed);
        wait_until("the load to go on", LIMIT, || done.load(Ordering::Relaxed) > before + WRITERS as u64 * 4);
        std::thread::sleep(Duration::from_millis(random.next() % 200));
        cluster.kill_master();
        cluster.start_master();
        if kill % 10 == 9 {
            println!("kill {} of {kills}, {} acknowledged", kill + 1, done.load(Ordering::Relaxed));
        }
    }
    stop.store(true, Ordering::Relaxed);
    let writers: Vec<Writer> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    writers.iter().for_each(Writer::check);
    cluster.stop_everything();

    // The image that the living master left is what all lines since the first image give.
    let live = load(&cluster.master_data().join(CLEAN));
    let mut again = load(&first_image);
    let lines = replay_all(&mut again, &cluster.master_data());
    assert_eq!((again.version(), again.digest()), (live.version(), live.digest()));
    println!(
        "kills: {kills}, acknowledged: {}, lines replayed: {lines}, version {}, digest {}: the same as the master's",
        done.load(Ordering::Relaxed),
        live.version(),
        live.digest()
    );
}

/// One who changes names in a folder of its own and remembers what must be there.
struct Writer {
    folder: PathBuf,
    names: Vec<String>,
    number: u32,
}

impl Writer {
    fn step(&mut self) {
        let number = self.number;
        self.number += 1;
        let path = |name: &str| self.folder.join(name);
        match number % 5 {
            0 => {
                let name = format!("folder{number}");
                made(fs::create_dir(path(&name)));
                self.names.push(name);
            }
            1 => {
                let name = format!("link{number}");
                made(std::os::unix::fs::symlink("somewhere", path(&name)));
                self.names.push(name);
            }
            2 => {
                let name = format!("file{number}");
                made(OpenOptions::new().write(true).create(true).truncate(false).open(path(&name)).map(drop));
                self.names.push(name);
            }
            3 => {
                let to = format!("renamed{number}");
                let from = self.names.pop().unwrap();
                gone(fs::rename(path(&from), path(&to)));
                self.names.push(to);
            }
            _ => {
                if number % 15 == 14 {
                    gone(fs::remove_file(path(&self.names.pop().unwrap())));
                }
            }
        }
    }

    fn check(&self) {
        let mut found: Vec<String> = fs::read_dir(&self.folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let mut expected = self.names.clone();
        found.sort();
        expected.sort();
        assert!(found == expected, "{}: {} names, {} expected", self.folder.display(), found.len(), expected.len());
    }
}

/// A request whose answer was lost is made once more, and then finds its own work.
fn made(result: std::io::Result<()>) {
    assert!(result.is_ok() || result.as_ref().unwrap_err().kind() == std::io::ErrorKind::AlreadyExists, "{result:?}");
}

fn gone(result: std::io::Result<()>) {
    assert!(result.is_ok() || result.as_ref().unwrap_err().kind() == std::io::ErrorKind::NotFound, "{result:?}");
}

// --- files of the master that are torn, missing, old, empty ---

#[test]
fn a_torn_end_of_the_journal_is_cut_off() {
    if !have("a_torn_end_of_the_journal_is_cut_off", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-torn", Layout::ours(0));
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "kept", 20);
    cluster.kill_master();
    let log = cluster.master_data().join(LOG);
    let bytes = fs::read(&log).unwrap();
    let end = bytes.iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    let next = version_behind(&bytes[..end]);
    let torn = format!("{next}: 1795243403|CREATE(1,half of a na");
    let file = OpenOptions::new().write(true).open(&log).unwrap();
    file.set_len(end as u64).unwrap();
    file.write_all_at(torn.as_bytes(), end as u64).unwrap();
    cluster.start_master();
    assert!(cluster.master().log_text().contains("torn"), "it is said");
    assert_made(&mount, "kept", 20);
    make(&mount, "later", 5);
    cluster.kill_master();
    assert!(!String::from_utf8_lossy(&fs::read(&log).unwrap()).contains("half of a na"));
    cluster.start_master();
    assert_made(&mount, "later", 5);
    cluster.stop_everything();
}

#[test]
fn a_missing_journal_file_is_named_and_a_metalogger_s_file_fills_the_gap() {
    if !have("a_missing_journal_file_is_named_and_a_metalogger_s_file_fills_the_gap", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-missing", Layout::ours(0));
    let data = cluster.master_data();
    let first_image = fs::read(data.join(BACK)).unwrap();
    let mount = cluster.mount(Kind::Mooring);
    cluster.start_metalogger(Kind::Mooring);
    for round in ["one", "two", "three"] {
        make(&mount, round, 10);
        cluster.stop_master();
        cluster.start_master();
    }
    make(&mount, "four", 10);
    let kept = cluster.metalogger_data();
    wait_until("the metalogger to have the last change", LIMIT, || {
        fs::read_to_string(kept.join("changelog_ml.0.mfs")).is_ok_and(|text| text.contains("four9"))
    });
    cluster.kill_master();
    cluster.stop_metalogger();
    // Only the first image is left, and one of the files behind it is not.
    for entry in fs::read_dir(&data).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("metadata.mfs") {
            fs::remove_file(path).unwrap();
        }
    }
    fs::write(data.join(BACK), first_image).unwrap();
    let missing = data.join("changelog.2.mfs");
    let aside = cluster.scratch("changelog.2.mfs");
    fs::rename(&missing, &aside).unwrap();
    let lines = fs::read(&aside).unwrap();
    let (first, last) = (meta::journal::line_version(&lines).unwrap(), version_behind(&lines) - 1);

    let before = picture(&data);
    let refused = cluster.refused_master();
    let named = [format!("changes {first} to {last} are missing"), format!("--lose-changes-from={first}")];
    assert!(named.iter().all(|words| refused.contains(words)), "{refused}");
    assert_eq!(picture(&data), before, "a refused start changes nothing");

    // The metalogger has those lines, under names of its own.
    for entry in fs::read_dir(&kept).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("changelog_ml.") {
            fs::copy(entry.path(), data.join(name)).unwrap();
        }
    }
    cluster.start_master();
    ["one", "two", "three", "four"].iter().for_each(|round| assert_made(&mount, round, 10));
    cluster.stop_everything();
}

#[test]
fn an_old_image_in_place_is_refused_and_the_newer_files_go_on() {
    if !have("an_old_image_in_place_is_refused_and_the_newer_files_go_on", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-old", Layout::ours(0));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "old", 10);
    cluster.stop_master();
    let backup = fs::read(data.join(CLEAN)).unwrap();
    let of_backup = load(&data.join(CLEAN)).version();
    cluster.start_master();
    make(&mount, "new", 10);
    cluster.stop_master();
    // A backup is put in place of everything; the note of how far the metadata came stays, as nobody knows of it.
    let aside = cluster.scratch("newest");
    fs::create_dir(&aside).unwrap();
    for entry in fs::read_dir(&data).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with("metadata") || name.starts_with("changelog") {
            fs::rename(entry.path(), aside.join(name)).unwrap();
        }
    }
    fs::write(data.join(CLEAN), backup).unwrap();
    let refused = cluster.refused_master();
    assert!(refused.contains("old copy") && refused.contains(&format!("--lose-changes-from={of_backup}")), "{refused}");

    fs::remove_file(data.join(CLEAN)).unwrap();
    for entry in fs::read_dir(&aside).unwrap() {
        let entry = entry.unwrap();
        fs::rename(entry.path(), data.join(entry.file_name())).unwrap();
    }
    cluster.start_master();
    assert_made(&mount, "old", 10);
    assert_made(&mount, "new", 10);
    cluster.stop_everything();
}

#[test]
fn empty_metadata_beside_full_chunkservers_delete_no_chunk() {
    if !have("empty_metadata_beside_full_chunkservers_delete_no_chunk", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-empty", Layout::ours(2));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    for number in 0..10u8 {
        fs::write(mount.join(format!("file{number}")), vec![number; 10_000]).unwrap();
    }
    cluster.unmount_all();
    let chunks = cluster.copies();
    assert!(chunks.len() >= 10);
    cluster.stop_master();
    let aside = cluster.scratch("right-one");
    fs::rename(&data, &aside).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join(CLEAN), "MFSM NEW").unwrap();
    cluster.start_master();
    for server in 0..2 {
        let refusal = "Wrong master, or wrong folders";
        wait_until("the refusal", LIMIT, || cluster.chunkserver(server).log_text().contains(refusal));
        assert_eq!(cluster.chunkserver(server).ended(), None, "it waits for its own master");
        assert_eq!(cluster.copies(), chunks);
    }
    (0..2).for_each(|server| cluster.kill_chunkserver(server));
    // Somebody makes them join all the same.
    forget_identity(&cluster);
    cluster.start_servers();
    let alarm = "chunks that these metadata do not know";
    wait_until("the alarm", LIMIT, || cluster.master().log_text().contains(alarm));
    std::thread::sleep(Duration::from_secs(8)); // the planner has time to do harm
    assert_eq!(cluster.copies(), chunks);

    (0..2).for_each(|server| cluster.stop_chunkserver(server));
    cluster.stop_master();
    fs::rename(&data, cluster.scratch("wrong-one")).unwrap();
    fs::rename(&aside, &data).unwrap();
    forget_identity(&cluster);
    cluster.start_servers();
    let mount = cluster.mount(Kind::Mooring);
    for number in 0..10u8 {
        assert_eq!(fs::read(mount.join(format!("file{number}"))).unwrap(), vec![number; 10_000]);
    }
    cluster.stop_everything();
}

/// What an operator removes so that chunkservers join another file system.
fn forget_identity(cluster: &Cluster) {
    for server in 0..cluster.servers() {
        let folder = cluster.data_folder(server);
        fs::remove_file(folder.join(".metaid")).unwrap();
        fs::remove_file(folder.parent().unwrap().join("var/chunkserverid.mfs")).unwrap();
    }
}

#[test]
fn a_metalogger_s_files_copied_by_hand_make_a_master() {
    if !have("a_metalogger_s_files_copied_by_hand_make_a_master", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-by-hand", Layout::ours(0));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "early", 10);
    cluster.start_metalogger(Kind::Mooring);
    make(&mount, "late", 10);
    let kept = cluster.metalogger_data();
    wait_until("the metalogger to have the last change", LIMIT, || {
        fs::read_to_string(kept.join("changelog_ml.0.mfs")).is_ok_and(|text| text.contains("late9"))
    });
    let running = promote(&kept, &cluster.scratch("nowhere"));
    assert!(running.contains("mfsmetalogger runs in") && running.contains("stop it first"), "{running}");
    assert!(!cluster.scratch("nowhere").exists());
    cluster.kill_master();
    cluster.stop_metalogger();
    fs::remove_dir_all(&data).unwrap();
    fs::create_dir(&data).unwrap();
    // As in every old instruction.
    let copy = format!("cp {0}/metadata_ml.mfs.back {0}/changelog_ml.*.mfs {1}/", kept.display(), data.display());
    assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
    cluster.start_master();
    assert_made(&mount, "early", 10);
    assert_made(&mount, "late", 10);
    cluster.kill_master();
    cluster.start_master();
    assert_made(&mount, "late", 10);
    cluster.stop_everything();
}

// --- a data folder that fills or vanishes under a running master ---

#[test]
fn a_data_folder_that_fills_lets_changes_wait_and_loses_none() {
    if !have("a_data_folder_that_fills_lets_changes_wait_and_loses_none", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-full", Layout::ours(0));
    let disk = Disk::under(&mut cluster);
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "before", 10);
    let filler = disk.path.join("filler");
    fill(&filler);
    let load = Load::begin(&mount);
    wait_until("the alarm", LIMIT, || cluster.master().log_text().contains("cannot write the journal"));
    let stopped_at = load.settled();
    assert_made(&mount, "before", 10); // what needs no change is answered
    assert_eq!(load.done(), stopped_at, "no change is acknowledged while there is no room");
    fs::remove_file(&filler).unwrap();
    wait_until("changes to go on", LIMIT, || load.done() > stopped_at + 10);
    // Full once more, and killed in the middle of it.
    fill(&filler);
    load.settled();
    cluster.kill_master();
    fs::remove_file(&filler).unwrap();
    cluster.start_master();
    wait_until("changes to go on", LIMIT, || load.done() > stopped_at + 20);
    load.end();
    assert_made(&mount, "before", 10);
    cluster.stop_everything();
    drop(disk);
}

#[test]
fn a_data_folder_that_is_not_mounted_any_more_lets_changes_wait_until_it_is() {
    if !have("a_data_folder_that_is_not_mounted_any_more_lets_changes_wait_until_it_is", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-unmounted", Layout::ours(0));
    let disk = Disk::under(&mut cluster);
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "before", 10);
    let load = Load::begin(&mount);
    // The disk lives on elsewhere, as one that is unmounted does.
    disk.hide();
    wait_until("the alarm", LIMIT, || cluster.master().log_text().contains("is on another disk than at the start"));
    let stopped_at = load.settled();
    assert_eq!(fs::read_dir(&disk.path).unwrap().count(), 0, "nothing is written below the mount point");
    disk.show();
    wait_until("changes to go on", LIMIT, || load.done() > stopped_at + 10);
    cluster.kill_master();
    cluster.start_master();
    load.end();
    assert_made(&mount, "before", 10);
    cluster.stop_everything();
    drop(disk);
}

#[test]
fn a_data_folder_that_is_removed_is_made_whole_from_memory() {
    if !have("a_data_folder_that_is_removed_is_made_whole_from_memory", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-removed", Layout::ours(0));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "before", 10);
    let load = Load::begin(&mount);
    wait_until("the load", LIMIT, || load.done() > 10);
    fs::rename(&data, cluster.scratch("taken-away")).unwrap();
    wait_until("the alarm", LIMIT, || cluster.master().log_text().contains("cannot write the journal"));
    let stopped_at = load.settled();
    fs::create_dir(&data).unwrap();
    wait_until("changes to go on", LIMIT, || load.done() > stopped_at + 10);
    cluster.kill_master();
    cluster.start_master();
    load.end();
    assert_made(&mount, "before", 10);
    // Only the newest file of the journal is removed, with lines that no image has.
    let load = Load::begin(&mount.join("before0"));
    wait_until("the load", LIMIT, || load.done() > 10);
    fs::remove_file(data.join(LOG)).unwrap();
    let at = load.done();
    wait_until("changes to go on", LIMIT, || load.done() > at + 10);
    cluster.kill_master();
    cluster.start_master();
    load.end();
    cluster.stop_everything();
}

#[test]
fn a_backup_that_is_unpacked_under_a_running_master_is_left_as_it_is() {
    if !have("a_backup_that_is_unpacked_under_a_running_master_is_left_as_it_is", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-unpacked", Layout::ours(0));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "precious", 40);
    cluster.unmount_all();
    cluster.kill_master(); // its journal has lines that the image has not
    let backup = cluster.scratch("backup");
    fs::rename(&data, &backup).unwrap();
    // An empty file system runs where the backup belongs, and comes farther than that.
    fs::create_dir(&data).unwrap();
    fs::write(data.join(CLEAN), "MFSM NEW").unwrap();
    cluster.start_master();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "other", 5);
    let unpack = |from: &Path| {
        let copy = format!("rm -rf {0}/* && cp -a {1}/. {0}/", data.display(), from.display());
        assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
    };
    unpack(&backup);
    let before = picture(&data);
    let probe = mount.join("asked");
    let asking = std::thread::spawn(move || fs::create_dir(probe));
    wait_until("the alarm", LIMIT, || cluster.master().log_text().contains("Nothing there is touched"));
    std::thread::sleep(Duration::from_secs(6)); // it tries again meanwhile
    assert!(!asking.is_finished(), "nobody is answered");
    assert_eq!(picture(&data), before, "nothing is touched");
    cluster.kill_master();
    // The mount would wait: what is served next is another file system.
    cluster.kill_mount(0);
    let _ = asking.join();
    cluster.start_master();
    cluster.revive_mount(0);
    assert_made(&mount, "precious", 40);
    // The same file system on an older day.
    cluster.kill_master();
    let older = cluster.scratch("older");
    let copy = format!("cp -a {} {}", data.display(), older.display());
    assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
    cluster.start_master();
    make(&mount, "later", 10);
    let log = || cluster.scratch("logs/master.log");
    let said = |text: &str| fs::read_to_string(log()).is_ok_and(|log| log.matches(text).count() >= 2);
    let taken = cluster.scratch("taken-away");
    fs::rename(&data, &taken).unwrap();
    let copy = format!("cp -a {} {}", older.display(), data.display());
    assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
    let before = picture(&data);
    wait_until("the alarm", LIMIT, || said("Nothing there is touched"));
    assert_eq!(picture(&data), before, "nothing is touched");
    // Its own folder is put back.
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&taken, &data).unwrap();
    make(&mount, "again", 5);
    cluster.kill_master();
    cluster.start_master();
    ["later0", "later9", "again4"].iter().for_each(|name| assert!(mount.join(name).is_dir(), "{name}"));
    cluster.stop_everything();
}

#[test]
fn a_start_without_the_newest_journal_file_is_refused() {
    if !have("a_start_without_the_newest_journal_file_is_refused", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-newest", Layout::ours(0));
    let data = cluster.master_data();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "old", 3);
    for round in ["one", "two"] {
        cluster.stop_master();
        cluster.start_master();
        make(&mount, round, 2);
        cluster.kill_master();
        let (log, aside) = (data.join(LOG), cluster.scratch("newest.mfs"));
        fs::rename(&log, &aside).unwrap();
        let refused = cluster.refused_master();
        assert!(refused.contains("old copy") && refused.contains("--lose-changes-from="), "{refused}");
        fs::rename(&aside, &log).unwrap();
        cluster.start_master();
        assert_made(&mount, round, 2);
    }
    // Nothing but the note is left, and somebody asks for a new file system.
    cluster.stop_master();
    let aside = cluster.scratch("aside");
    fs::create_dir(&aside).unwrap();
    let moved = format!("mv {}/m* {}/changelog* {}/", data.display(), data.display(), aside.display());
    assert!(Command::new("sh").args(["-c", &moved]).status().unwrap().success());
    fs::write(data.join(CLEAN), "MFSM NEW").unwrap();
    let before = picture(&data);
    let refused = cluster.refused_master();
    assert!(refused.contains("asks for a new file system") && refused.contains("move .metadata.seen"), "{refused}");
    assert_eq!(picture(&data), before);
    fs::remove_file(data.join(CLEAN)).unwrap();
    let moved = format!("mv {}/* {}/", aside.display(), data.display());
    assert!(Command::new("sh").args(["-c", &moved]).status().unwrap().success());
    cluster.start_master();
    assert_made(&mount, "two", 2);
    cluster.stop_everything();
}

#[test]
fn a_data_folder_on_an_overlay_of_file_systems_is_as_good_as_another() {
    if !have("a_data_folder_on_an_overlay_of_file_systems_is_as_good_as_another", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("op-overlay", Layout::ours(0));
    cluster.stop_master();
    let (data, files, upper) = (cluster.master_data(), cluster.scratch("files"), cluster.scratch("upper"));
    fs::rename(&data, &files).unwrap();
    fs::create_dir(&data).unwrap();
    fs::create_dir(&upper).unwrap();
    // Layers on two file systems: then a file's device is not its folder's.
    run("mount", &["-t", "tmpfs", "tmpfs"], &upper);
    fs::create_dir(upper.join("up")).unwrap();
    fs::create_dir(upper.join("work")).unwrap();
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        files.display(),
        upper.join("up").display(),
        upper.join("work").display()
    );
    run("mount", &["-t", "overlay", "overlay", "-o", &layers], &data);
    let undone = Unmounted(vec![data.clone(), upper]);
    fs::write(data.join("probe"), "").unwrap();
    let devices = [data.join("probe"), data.clone()].map(|path| fs::metadata(path).unwrap().dev());
    println!("devices of a file and of its folder: {devices:?}");
    cluster.start_master();
    let mount = cluster.mount(Kind::Mooring);
    make(&mount, "made", 10);
    cluster.kill_master();
    cluster.start_master();
    assert_made(&mount, "made", 10);
    assert!(!cluster.master().log_text().contains("cannot write the journal"));
    cluster.stop_everything();
    drop(undone);
}

/// Mount points that go in the end.
struct Unmounted(Vec<PathBuf>);

impl Drop for Unmounted {
    fn drop(&mut self) {
        for path in &self.0 {
            Command::new("umount").arg("-l").arg(path).stderr(std::process::Stdio::null()).status().ok();
        }
    }
}

/// A small disk in memory at the master's data folder.
struct Disk {
    path: PathBuf,
    elsewhere: PathBuf,
}

impl Disk {
    fn under(cluster: &mut Cluster) -> Disk {
        cluster.stop_master();
        let (path, elsewhere) = (cluster.master_data(), cluster.scratch("elsewhere"));
        let files = cluster.scratch("files");
        fs::rename(&path, &files).unwrap();
        fs::create_dir(&path).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        // Five of them are for the charts.
        run("mount", &["-t", "tmpfs", "-o", "size=13m", "tmpfs"], &path);
        let copy = format!("cp -a {}/. {}/", files.display(), path.display());
        assert!(Command::new("sh").args(["-c", &copy]).status().unwrap().success());
        cluster.start_master();
        Disk { path, elsewhere }
    }

    fn hide(&self) {
        run("mount", &["--bind", &self.path.display().to_string()], &self.elsewhere);
        run("umount", &["-l"], &self.path);
    }

    fn show(&self) {
        run("mount", &["--bind", &self.elsewhere.display().to_string()], &self.path);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for path in [&self.path, &self.elsewhere] {
            Command::new("umount").arg("-l").arg(path).stderr(std::process::Stdio::null()).status().ok();
        }
    }
}

/// Somebody who makes folders, one after the other, and counts those that were acknowledged.
struct Load {
    folder: PathBuf,
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<()>,
}

impl Load {
    fn begin(folder: &Path) -> Load {
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, counted, place) = (stop.clone(), done.clone(), folder.to_owned());
        let thread = std::thread::spawn(move || {
            for number in 0.. {
                made(fs::create_dir(place.join(format!("load{number}"))));
                counted.store(number + 1, Ordering::SeqCst);
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        Load { folder: folder.to_owned(), stop, done, thread }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    /// Waits until no more is acknowledged. Gives how many were.
    fn settled(&self) -> u64 {
        wait_for("the load to stop", LIMIT, || {
            let before = self.done();
            std::thread::sleep(Duration::from_secs(1));
            (self.done() == before).then_some(before)
        })
    }

    /// All that was acknowledged is there.
    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        assert_made(&self.folder, "load", self.done.load(Ordering::SeqCst));
    }
}

fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for bytes in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) {
    let output = Command::new(program).args(arguments).arg(path).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

// --- what lies in a master's folder ---

fn make(folder: &Path, name: &str, count: u64) {
    for number in 0..count {
        fs::create_dir(folder.join(format!("{name}{number}"))).unwrap();
    }
}

fn assert_made(folder: &Path, name: &str, count: u64) {
    for number in 0..count {
        let path = folder.join(format!("{name}{number}"));
        assert!(fs::metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).is_dir());
    }
}

fn load(image: &Path) -> Namespace {
    meta::image::load(&fs::read(image).unwrap(), Policy::default()).unwrap()
}

/// Replays all journal files of a folder, oldest first. Gives how many lines were new.
fn replay_all(namespace: &mut Namespace, folder: &Path) -> u64 {
    let mut applied = 0;
    for number in (0..=50).rev() {
        if let Ok(bytes) = fs::read(folder.join(format!("changelog.{number}.mfs"))) {
            let lines = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            applied += namespace.replay_lines(&bytes[..lines]).unwrap();
        }
    }
    applied
}

fn version_behind(lines: &[u8]) -> u64 {
    let last = lines.split(|byte| *byte == b'\n').rfind(|line| !line.iter().all(|byte| *byte == 0)).unwrap();
    meta::journal::line_version(last).unwrap() + 1
}

/// Every file with its size and time, but for locks.
fn picture(folder: &Path) -> Vec<(String, u64, i64, i64)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let there = entry.metadata().unwrap();
            (entry.file_name().into_string().unwrap(), there.len(), there.mtime(), there.mtime_nsec())
        })
        .filter(|(name, ..)| !name.ends_with(".lock"))
        .collect();
    files.sort();
    files
}

fn promote(from: &Path, to: &Path) -> String {
    let mut command = Command::new(mooring_binary().unwrap());
    let output = command.args(["promote", "--go", "--from"]).arg(from).arg("--to").arg(to).output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
