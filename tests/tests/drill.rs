//! Crash drills with real processes. `MOORING_DRILL_KILLS=200` kills more often than every run does.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::tree::Random;
use mooring_tests::wait::wait_for;
use mooring_tests::{copies, drill};

/// One more than copies: a killed one's are made again at once, and not only when the master's slow loop has cleared up.
const SERVERS: usize = 3;

fn kills(usual: usize) -> usize {
    std::env::var("MOORING_DRILL_KILLS").ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_chunkserver_that_is_killed_at_any_moment_keeps_what_it_acknowledged() {
    if !have("a_chunkserver_that_is_killed_at_any_moment_keeps_what_it_acknowledged", &[Need::Mooring]) {
        return;
    }
    let kills = kills(12);
    let outcome = drill::run(kills, 1);
    println!("{outcome:?}");
    assert_eq!(outcome.kills, kills);
    assert!(outcome.acknowledged > kills as u64 * 10, "the load was no load: {outcome:?}");
}

/// Programs that write and sync through our mount, under MooseFS's master, while our chunkservers are killed by
/// turns. A snapshot now and then has chunks duplicated.
#[test]
fn programs_lose_nothing_that_they_synced_while_chunkservers_are_killed() {
    let needs = [Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
    if !have("programs_lose_nothing_that_they_synced_while_chunkservers_are_killed", &needs) {
        return;
    }
    let kills = kills(6);
    let mut layout = Layout::new(Kind::Stock, &[Kind::Mooring; SERVERS]);
    layout.limit = Duration::from_secs(120 + 30 * kills as u64);
    let mut cluster = Cluster::start("drill", layout);
    // Nothing is read from the kernel's cache.
    let mount = cluster.mount_with(Kind::Mooring, &["-o", "mfscachemode=DIRECT"]);
    let (stop, synced) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let programs: Vec<Arc<Mutex<Program>>> =
        (0..3).map(|number| Arc::new(Mutex::new(Program::begin(&mount, number)))).collect();
    let threads: Vec<_> = programs
        .iter()
        .map(|program| {
            let (program, stop, synced) = (program.clone(), stop.clone(), synced.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    program.lock().unwrap().step();
                    synced.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();

    let start = std::time::Instant::now();
    let mut random = Random::new(77);
    let mut snapshots: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(20 + random.next() % 400));
        // Nobody writes while it is chosen: copies that are being changed cannot be counted.
        let paused: Vec<_> = programs.iter().map(|program| program.lock().unwrap()).collect();
        let victim = wait_for("a server that can be done without", Duration::from_secs(150), || {
            let first = random.below(SERVERS);
            (first..first + SERVERS).map(|server| server % SERVERS).find(|server| can_do_without(&cluster, *server))
        });
        drop(paused);
        std::thread::sleep(Duration::from_millis(random.next() % 100));
        cluster.kill_chunkserver(victim);
        std::thread::sleep(Duration::from_millis(random.next() % 300));
        cluster.start_chunkserver(victim);
        for program in &programs {
            program.lock().unwrap().compare(&format!("after kill {kill}"));
        }
        if kill % 3 == 0 {
            let program = programs[random.below(programs.len())].lock().unwrap();
            let snapshot = mount.join(format!("snapshot{kill}"));
            let output = cluster.command("mfsmakesnapshot").arg(&program.path).arg(&snapshot).output().unwrap();
            assert!(output.status.success(), "mfsmakesnapshot: {output:?}");
            snapshots.push((snapshot, program.bytes.clone()));
        }
        eprintln!("{:4} s: kill {} of {kills}", start.elapsed().as_secs(), kill + 1);
    }
    stop.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(synced.load(Ordering::Relaxed) > 5 * kills as u64, "the load was no load");
    println!("{kills} kills, {} acknowledged fsyncs, {} snapshots", synced.load(Ordering::Relaxed), snapshots.len());

    // No server is needed.
    let compare = |mount: &Path| {
        for program in &programs {
            let program = program.lock().unwrap();
            let bytes = std::fs::read(mount.join(program.path.file_name().unwrap())).unwrap();
            assert!(bytes == program.bytes, "{}: other bytes than were synced", program.path.display());
        }
        for (path, expected) in &snapshots {
            let bytes = std::fs::read(mount.join(path.file_name().unwrap())).unwrap();
            assert!(bytes == *expected, "{}: other bytes than when it was made", path.display());
        }
    };
    programs.iter().for_each(|program| program.lock().unwrap().file = None);
    cluster.unmount_all();
    let mount = cluster.mount(Kind::Stock);
    compare(&mount);
    cluster.unmount_all();
    // Nothing was called bad, except what was being written at a kill.
    for server in 0..SERVERS {
        let log = cluster.chunkserver(server).log_text();
        let named = |what: &str| -> BTreeSet<String> {
            let lines = log.lines().filter(|line| line.contains(what));
            lines.filter_map(|line| line.split("chunk ").nth(1)).map(|rest| rest[..16].to_owned()).collect()
        };
        let (damaged, torn) = (named("is damaged"), named("torn by the crash"));
        assert!(damaged.is_subset(&torn), "chunks {damaged:?} were called damaged, and only {torn:?} were torn");
    }
}

/// Whether every chunk has its newest copy on another server, too.
fn can_do_without(cluster: &Cluster, server: usize) -> bool {
    cluster.copies().values().all(|copies| copies::holders(copies).iter().any(|holder| *holder != server))
}

/// Somebody who changes a file and syncs it, step by step, and knows what it must hold.
struct Program {
    path: PathBuf,
    file: Option<File>,
    bytes: Vec<u8>,
    random: Random,
}

impl Program {
    fn begin(mount: &Path, number: u64) -> Program {
        let path = mount.join(format!("program{number}"));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        Program { path, file: Some(file), bytes: Vec::new(), random: Random::new(number) }
    }

    /// Some writes or a change of length, then a sync. An error is a broken promise: there is always a copy.
    fn step(&mut self) {
        let file = self.file.as_ref().unwrap();
        if self.random.below(8) == 0 {
            let length = self.random.below(600_000);
            file.set_len(length as u64).unwrap();
            self.bytes.resize(length, 0);
        } else {
            for _ in 0..1 + self.random.below(4) {
                let offset = self.random.below(self.bytes.len().min(500_000) + 1);
                let length = 1 + self.random.below(100_000);
                let data = self.random.bytes(length);
                file.write_all_at(&data, offset as u64).unwrap();
                let end = self.bytes.len().max(offset + length);
                self.bytes.resize(end, 0);
                self.bytes[offset..offset + length].copy_from_slice(&data);
            }
        }
        file.sync_all().unwrap();
    }

    fn compare(&self, when: &str) {
        let found = std::fs::read(&self.path).unwrap();
        assert_eq!(found.len(), self.bytes.len(), "{when}: {}", self.path.display());
        let differs = found.iter().zip(&self.bytes).position(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{when}: {} differs at this byte", self.path.display());
    }
}
