//! Our programs beside MooseFS's 3.0.117, in every mix that a migration goes through.
//!
//! Each test starts real daemons in a network namespace, copies a tree through them, and looks at every byte. What this
//! machine lacks is printed as `SKIPPED`; `MOORING_REQUIRE_INTEROP=1` makes that a failure. `MOORING_ALL_STOCK=1` puts
//! MooseFS's programs in our roles too, which tests the tests.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::fs::FileTimes;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::copies;
use mooring_tests::need::{Need, have};
use mooring_tests::tree::{self, Plan};
use mooring_tests::wait::wait_until;

const INTEROP: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const OURS_ONLY: &[Need] = &[Need::Root, Need::Fuse, Need::Mooring];

/// A chunk and a little, so that nothing fits into caches by accident of size: how long re-making copies may take.
const REPLICATION_LIMIT: Duration = Duration::from_secs(150);

#[test]
fn a_stock_mount_works_on_our_master_and_our_chunkservers() {
    if !have("a_stock_mount_works_on_our_master_and_our_chunkservers", INTEROP) {
        return;
    }
    let mut cluster = Cluster::start("a", Layout::ours(3));
    copies_a_tree_in_and_out(&mut cluster, Kind::Stock, Plan::medium(1));

    // Times that only our mount can set are shown to MooseFS's as near as it can say them.
    let (ours, stock) = (cluster.mount(Kind::Mooring), cluster.mount(Kind::Stock));
    for (set, seen) in [((5, 999_999_999), (5, 0)), ((1 << 32, 7), (u32::MAX.into(), 0)), ((-3, 5), (0, 0))] {
        let name = format!("set to {}", set.0);
        set_times(&ours.join(&name), set);
        assert_eq!(times(&ours.join(&name)), [set; 2]);
        assert_eq!(times(&stock.join(&name)), [seen; 2]);
    }
}

#[test]
fn our_mount_works_on_a_stock_master_and_stock_chunkservers() {
    if !have("our_mount_works_on_a_stock_master_and_stock_chunkservers", INTEROP) {
        return;
    }
    let mut cluster = Cluster::start("b", Layout::new(Kind::Stock, &[Kind::Stock; 3]));
    copies_a_tree_in_and_out(&mut cluster, Kind::Mooring, Plan::medium(2));
}

#[test]
fn our_chunkserver_serves_under_a_stock_master_in_write_chains_of_both_orders() {
    if !have("our_chunkserver_serves_under_a_stock_master_in_write_chains_of_both_orders", INTEROP) {
        return;
    }
    let mut cluster = Cluster::start("c", Layout::new(Kind::Stock, &[Kind::Stock, Kind::Mooring]));
    chains_pass_in_both_orders(&mut cluster, Kind::Stock, Plan::medium(3));
}

#[test]
fn our_chunkserver_stands_in_the_middle_of_a_chain_of_three() {
    if !have("our_chunkserver_stands_in_the_middle_of_a_chain_of_three", INTEROP) {
        return;
    }
    let layout = Layout::new(Kind::Stock, &[Kind::Stock, Kind::Mooring, Kind::Stock]);
    let mut cluster = Cluster::start("c3", layout);
    let mount = cluster.mount(Kind::Stock);
    cluster.set_goal(&mount, 3);
    let source = cluster.scratch("source");
    tree::grow(&source, Plan::medium(4)).unwrap();
    tree::copy(&source, &mount.join("tree"));
    tree::assert_same(&source, &mount.join("tree"));
    cluster.unmount_all();
    cluster.wait_for_copies("three copies of everything", REPLICATION_LIMIT, |copies| copies == 3);
    every_server_alone_holds_everything(&mut cluster, &source, Kind::Stock);
}

#[test]
fn a_stock_chunkserver_serves_under_our_master_in_write_chains_of_both_orders() {
    if !have("a_stock_chunkserver_serves_under_our_master_in_write_chains_of_both_orders", INTEROP) {
        return;
    }
    let mut cluster = Cluster::start("d", Layout::new(Kind::Mooring, &[Kind::Stock, Kind::Mooring]));
    chains_pass_in_both_orders(&mut cluster, Kind::Mooring, Plan::medium(5));
}

#[test]
fn a_chunk_folder_goes_from_a_stock_chunkserver_to_ours_and_back() {
    if !have("a_chunk_folder_goes_from_a_stock_chunkserver_to_ours_and_back", INTEROP) {
        return;
    }
    let mut cluster = Cluster::start("e", Layout::new(Kind::Stock, &[Kind::Stock]));
    let (first, second) = (cluster.scratch("first"), cluster.scratch("second"));
    tree::grow(&first, Plan::medium(6)).unwrap();
    tree::grow(&second, Plan::medium(7)).unwrap();

    // Written by the stock one, served by ours.
    let mount = cluster.mount(Kind::Stock);
    tree::copy(&first, &mount.join("first"));
    cluster.unmount_all();
    cluster.stop_chunkserver(0);
    cluster.swap_chunkserver(0, Kind::Mooring);
    cluster.start_chunkserver(0);
    let mount = cluster.mount(Kind::Stock);
    tree::assert_same(&first, &mount.join("first"));

    // Written and changed by ours, served by the stock one. Appending changes blocks that the stock one wrote.
    tree::copy(&second, &mount.join("second"));
    for folder in [&first, &mount.join("first")] {
        append(&folder.join("more than one chunk"), b"a few more bytes");
    }
    cluster.unmount_all();
    cluster.stop_chunkserver(0);
    files_pass_mfschunktool(&cluster);
    cluster.swap_chunkserver(0, Kind::Stock);
    cluster.start_chunkserver(0);
    let mount = cluster.mount(Kind::Stock);
    tree::assert_same(&second, &mount.join("second"));
    let contents = |root: &Path| -> Vec<(PathBuf, u64)> {
        tree::look(root).unwrap().into_iter().map(|(path, picture)| (path, picture.hash)).collect()
    };
    assert_eq!(contents(&first), contents(&mount.join("first")));
}

#[test]
fn our_programs_in_every_role_keep_a_tree_over_a_restart() {
    if !have("our_programs_in_every_role_keep_a_tree_over_a_restart", OURS_ONLY) {
        return;
    }
    let mut cluster = Cluster::start("ours", Layout::ours(3));
    copies_a_tree_in_and_out(&mut cluster, Kind::Mooring, Plan::medium(8));
    cluster.stop_everything();
    cluster.start_servers();
    let mount = cluster.mount(Kind::Mooring);
    tree::assert_same(&cluster.scratch("source"), &mount.join("tree"));
}

#[test]
fn our_programs_work_where_io_uring_is_forbidden_and_say_so() {
    let needs = [OURS_ONLY, &[Need::Stock, Need::Program("perl")]].concat();
    if !have("our_programs_work_where_io_uring_is_forbidden_and_say_so", &needs) {
        return;
    }
    // Once every one of them is ours, and once beside stock ones, in chains.
    for (name, master, servers) in
        [("forbid", Kind::Mooring, [Kind::Mooring; 2]), ("forbid2", Kind::Stock, [Kind::Mooring, Kind::Stock])]
    {
        let layout = Layout { forbid_io_uring: true, ..Layout::new(master, &servers) };
        let mut cluster = Cluster::start(name, layout);
        copies_a_tree_in_and_out(&mut cluster, Kind::Mooring, Plan::small(41));
        let log = cluster.chunkserver(0).log_text();
        for line in ["io_uring is not available, using epoll and threads", "input and output by epoll"] {
            assert!(log.contains(line), "{line:?} is not in the log: {log}");
        }
    }
}

#[test]
fn a_killed_chunkserver_disturbs_no_reader_and_its_copies_are_made_again() {
    if !have("a_killed_chunkserver_disturbs_no_reader_and_its_copies_are_made_again", OURS_ONLY) {
        return;
    }
    let mut cluster = Cluster::start("kill1", Layout::ours(3));
    let mount = cluster.mount(Kind::Mooring);
    let source = cluster.scratch("source");
    tree::grow(&source, Plan::medium(9)).unwrap();
    tree::copy(&source, &mount.join("tree"));
    cluster.wait_for_copies("two copies of everything written", REPLICATION_LIMIT, |copies| copies == 2);
    cluster.unmount_all();

    // A fresh mount has nothing cached. The reader goes through the whole tree again and again.
    let mount = cluster.mount(Kind::Mooring);
    let reader = Reader::start(&source, &mount.join("tree"));
    reader.wait_for_files(20);
    cluster.kill_chunkserver(1);
    reader.wait_for_whole_tree();
    reader.finish();

    cluster.wait_for_copies("lost copies to be made again", REPLICATION_LIMIT, |copies| copies == 2);
    cluster.start_chunkserver(1);
    cluster.wait_for_copies("surplus copies to go", REPLICATION_LIMIT, |copies| copies == 2);
    cluster.unmount_all();
    let mount = cluster.mount(Kind::Mooring);
    tree::assert_same(&source, &mount.join("tree"));
}

#[test]
fn files_closed_and_synced_survive_the_kill_of_every_process() {
    if !have("files_closed_and_synced_survive_the_kill_of_every_process", OURS_ONLY) {
        return;
    }
    let mut cluster = Cluster::start("killall", Layout::ours(3));
    let mount = cluster.mount(Kind::Mooring);
    let source = cluster.scratch("source");
    tree::grow(&source, Plan::medium(10)).unwrap();
    tree::copy(&source, &mount.join("tree"));
    Command::new("sync").arg("-f").arg(&mount).status().expect("the program `sync` runs");
    // Somebody is still writing when it happens: what that leaves behind must not hurt the rest.
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (stop, path) = (Arc::clone(&stop), mount.join("half written"));
        std::thread::spawn(move || {
            let block = vec![7; 300_000];
            let mut file = std::fs::File::create(path).ok()?;
            while !stop.load(Ordering::Relaxed) {
                std::io::Write::write_all(&mut file, &block).ok()?;
            }
            Some(())
        })
    };
    wait_until("the writer to be under way", Duration::from_secs(30), || {
        std::fs::metadata(mount.join("half written")).is_ok_and(|metadata| metadata.len() > 1_000_000)
    });
    cluster.kill_everything();
    stop.store(true, Ordering::Relaxed);
    writer.join().unwrap();

    cluster.start_servers();
    let mount = cluster.mount(Kind::Mooring);
    tree::assert_same(&source, &mount.join("tree"));
    // The file system works on: new files, and the half-written one can be read as far as it goes, or removed.
    tree::copy(&source, &mount.join("again"));
    tree::assert_same(&source, &mount.join("again"));
    std::fs::remove_file(mount.join("half written")).unwrap();
}

// --- what the tests share ---

/// `cp -a` in, look; fresh mount; look, `cp -a` out, look.
fn copies_a_tree_in_and_out(cluster: &mut Cluster, kind: Kind, plan: Plan) {
    let source = cluster.scratch("source");
    tree::grow(&source, plan).unwrap();
    let mount = cluster.mount(kind);
    tree::copy(&source, &mount.join("tree"));
    tree::assert_same(&source, &mount.join("tree"));
    cluster.unmount_all();
    let mount = cluster.mount(kind);
    tree::assert_same(&source, &mount.join("tree"));
    let out = cluster.scratch("out");
    tree::copy(&mount.join("tree"), &out);
    tree::assert_same(&source, &out);
    tree_changes_are_kept(cluster, &mount, kind);
    std::fs::remove_dir_all(&out).unwrap();
    times_are_kept(cluster, kind);
}

/// To the nanosecond and beyond 2106 if mount and master are ours, else in seconds.
fn times_are_kept(cluster: &mut Cluster, kind: Kind) {
    cluster.unmount_all();
    let mount = cluster.mount(kind);
    let exact = kind == Kind::Mooring && cluster.layout().master == Kind::Mooring;
    let fraction = |nanos| if exact { nanos } else { 0 };
    let mut expected = vec![((1_234_567_890, 123_456_789), (1_234_567_890, fraction(123_456_789)))];
    if kind == Kind::Mooring {
        let far = |seconds: i64| if exact { seconds } else { seconds.clamp(0, u32::MAX.into()) };
        expected.extend([1 << 32, 1 << 33, -1000].map(|seconds| ((seconds, 1), (far(seconds), fraction(1)))));
    }
    for (set, seen) in &expected {
        let path = mount.join(format!("set to {}", set.0));
        set_times(&path, *set);
        assert_eq!(times(&path), [*seen; 2]);
    }
    // What the master's clock says: two changes within one second are told apart.
    let path = mount.join("changed twice");
    let ctime = |path: &Path| std::fs::metadata(path).map(|found| (found.ctime(), found.ctime_nsec())).unwrap();
    std::fs::write(&path, b"").unwrap();
    let made = ctime(&path);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let changed = ctime(&path);
    assert!(if exact { made < changed } else { (made.1, changed.1) == (0, 0) }, "{made:?} {changed:?}");
    cluster.unmount_all();
    let mount = cluster.mount(kind);
    assert_eq!(ctime(&mount.join("changed twice")), changed);
    for (set, seen) in &expected {
        assert_eq!(times(&mount.join(format!("set to {}", set.0))), [*seen; 2]);
    }
}

/// Makes a file with this atime and mtime: seconds and nanoseconds.
fn set_times(path: &Path, (seconds, nanos): (i64, u32)) {
    let seconds = match Duration::from_secs(seconds.unsigned_abs()) {
        before if seconds < 0 => UNIX_EPOCH - before,
        after => UNIX_EPOCH + after,
    };
    let time = seconds + Duration::from_nanos(nanos.into());
    let file = std::fs::File::create(path).unwrap();
    file.set_times(FileTimes::new().set_accessed(time).set_modified(time)).unwrap();
}

/// atime and mtime.
fn times(path: &Path) -> [(i64, u32); 2] {
    let found = std::fs::metadata(path).unwrap();
    [(found.atime(), found.atime_nsec()), (found.mtime(), found.mtime_nsec())]
        .map(|(seconds, nanos)| (seconds, u32::try_from(nanos).unwrap()))
}

/// What `cp` does not do: overwriting in the middle, truncating, renaming over, removing.
fn tree_changes_are_kept(cluster: &mut Cluster, mount: &Path, kind: Kind) {
    let twin = cluster.scratch("twin");
    std::fs::create_dir_all(&twin).unwrap();
    std::fs::create_dir(mount.join("changed")).unwrap();
    for folder in [&twin, &mount.join("changed")] {
        change(folder).unwrap_or_else(|error| panic!("changing files in {}: {error}", folder.display()));
    }
    let contents = |root: &Path| -> Vec<(PathBuf, u64, u64)> {
        let looked = tree::look(root).unwrap().into_iter();
        looked.map(|(path, picture)| (path, picture.length_bytes, picture.hash)).collect()
    };
    assert_eq!(contents(&twin), contents(&mount.join("changed")));
    cluster.unmount_all();
    let mount = cluster.mount(kind);
    assert_eq!(contents(&twin), contents(&mount.join("changed")));
}

/// A fixed series of changes, the same on any file system.
fn change(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut random = tree::Random::new(11);
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(folder.join("one"))?;
    file.write_all_at(&random.bytes(500_000), 0)?;
    for _ in 0..200 {
        let (offset, length) = (random.below(600_000), 1 + random.below(90_000));
        file.write_all_at(&random.bytes(length), offset as u64)?;
    }
    file.set_len(333_333)?;
    file.set_len(444_444)?; // what lies between reads as zeros
    let mut tail = vec![1; 111_111];
    file.read_exact_at(&mut tail, 333_333)?;
    assert!(tail.iter().all(|byte| *byte == 0), "a file that grew again must read as zeros where it was cut");
    file.write_all_at(b"far behind the end", 70 << 20)?;
    file.sync_all()?;
    std::fs::write(folder.join("two"), b"two")?;
    std::fs::write(folder.join("three"), random.bytes(70_000))?;
    std::fs::rename(folder.join("three"), folder.join("two"))?;
    std::fs::create_dir(folder.join("folder"))?;
    std::fs::rename(folder.join("two"), folder.join("folder/four"))?;
    std::fs::write(folder.join("gone"), b"gone")?;
    std::fs::remove_file(folder.join("gone"))?;
    append(&folder.join("folder/four"), &random.bytes(66_000));
    Ok(())
}

/// Writes until connections between servers 0 and 1 were seen in both directions, then proves that each of the two
/// holds everything by reading from it alone.
fn chains_pass_in_both_orders(cluster: &mut Cluster, kind: Kind, plan: Plan) {
    let mount = cluster.mount(kind);
    std::fs::create_dir(mount.join("chains")).unwrap();
    let mut random = tree::Random::new(plan.seed);
    let both = BTreeSet::from([(0, 1), (1, 0)]);
    let done = AtomicBool::new(false);
    let watched: &Cluster = cluster;
    // A link may stand no longer than the write that it serves, so another thread looks all the time.
    let links = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut links = BTreeSet::new();
            while !done.load(Ordering::Relaxed) && links != both {
                links.extend(watched.links());
            }
            links
        });
        for number in 0..400 {
            let mut file = std::fs::File::create(mount.join(format!("chains/{number}"))).unwrap();
            std::io::Write::write_all(&mut file, &random.bytes(600_000)).unwrap();
            file.sync_data().unwrap();
            if number >= 10 && watcher.is_finished() {
                break;
            }
        }
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap()
    });
    assert_eq!(links, both, "write chains must have passed in both orders");
    let source = cluster.scratch("source");
    tree::grow(&source, plan).unwrap();
    tree::copy(&source, &mount.join("tree"));
    tree::assert_same(&source, &mount.join("tree"));
    cluster.unmount_all();
    cluster.wait_for_copies("two copies of everything", REPLICATION_LIMIT, |copies| copies == 2);
    every_server_alone_holds_everything(cluster, &source, kind);
}

/// Reads the tree from each chunkserver while all others are stopped.
fn every_server_alone_holds_everything(cluster: &mut Cluster, source: &Path, kind: Kind) {
    let servers = cluster.servers();
    for alone in 0..servers {
        for other in (0..servers).filter(|other| *other != alone) {
            cluster.stop_chunkserver(other);
        }
        let mount = cluster.mount(kind);
        tree::assert_same(source, &mount.join("tree"));
        cluster.unmount_all();
        for other in (0..servers).filter(|other| *other != alone) {
            cluster.start_chunkserver(other);
        }
    }
}

/// MooseFS's own checker finds nothing wrong with the files of chunkserver 0, which is stopped.
fn files_pass_mfschunktool(cluster: &Cluster) {
    let chunks = copies::scan([(0, cluster.data_folder(0).as_path())]);
    assert!(!chunks.is_empty());
    for copy in chunks.values().flatten() {
        let output = Command::new("/usr/sbin/mfschunktool").arg(&copy.path).output().expect("mfschunktool runs");
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}: {}", copy.path.display(), String::from_utf8_lossy(&said));
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
}

/// Reads a tree over and over in a thread, comparing every file with the original.
struct Reader {
    files: Arc<AtomicUsize>,
    rounds: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<(), String>>,
}

impl Reader {
    fn start(source: &Path, copy: &Path) -> Reader {
        let files = Arc::new(AtomicUsize::new(0));
        let rounds = Arc::new(AtomicUsize::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let pictures = tree::look(source).unwrap();
        let thread = {
            let (files, rounds, stop, copy) =
                (Arc::clone(&files), Arc::clone(&rounds), Arc::clone(&stop), copy.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for (path, picture) in pictures.iter().filter(|(_, picture)| picture.kind == "file") {
                        let path = copy.join(path);
                        let hash = tree::hash_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                        if hash != picture.hash {
                            return Err(format!("{}: other bytes than were written", path.display()));
                        }
                        files.fetch_add(1, Ordering::Relaxed);
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        };
        Reader { files, rounds, stop, thread }
    }

    fn wait_for_files(&self, count: usize) {
        wait_until("the reader to get going", Duration::from_secs(60), || {
            self.files.load(Ordering::Relaxed) >= count || self.thread.is_finished()
        });
    }

    /// Until one more round that began after this call has ended.
    fn wait_for_whole_tree(&self) {
        let rounds = self.rounds.load(Ordering::Relaxed) + 2;
        wait_until("the reader to read the whole tree", Duration::from_secs(200), || {
            self.rounds.load(Ordering::Relaxed) >= rounds || self.thread.is_finished()
        });
    }

    fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(problem) = self.thread.join().unwrap() {
            panic!("the reader met an error: {problem}");
        }
    }
}
