//! A day in the life of a cluster of MooseFS with one of our chunkservers in it, beside the same day of a cluster that
//! is MooseFS's alone: both must keep every byte, and their masters must count the same copies in the evening.
//!
//! `cargo test -p mooring-tests --test day -- --ignored --nocapture`. Both clusters go through the day together, so that the master's slow loops run at the same time. What a file must
//! hold is known from a twin on an ordinary file system, to which everything is done as well.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::tree::{self, Plan, Random};
use mooring_tests::wait::comes_true;
use mooring_tests::{chunkfile, copies};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const SERVERS: usize = 3;
/// The one that is ours in one of the clusters.
const OURS: usize = 0;
/// How long the master may take for anything that it does at once, and for two of its loops.
const LIMIT: Duration = Duration::from_secs(150);

#[test]
#[ignore = "three minutes: the loop of a MooseFS master takes at least one"]
fn a_day_with_one_of_our_chunkservers_ends_as_one_with_stock_servers_alone() {
    if !have("a_day_with_one_of_our_chunkservers_ends_as_one_with_stock_servers_alone", NEEDS) {
        return;
    }
    let layout = |servers: [Kind; SERVERS]| Layout {
        limit: LIMIT * 4,
        // One loop of the master is enough for everything that it finds.
        master_extra: "CHUNKS_SOFT_DEL_LIMIT = 1000\nCHUNKS_WRITE_REP_LIMIT = 50\nCHUNKS_READ_REP_LIMIT = 50".into(),
        ..Layout::new(Kind::Stock, &servers)
    };
    let mixed = Cluster::start("day", layout([Kind::Mooring, Kind::Stock, Kind::Stock]));
    let stock = Cluster::start_beside(&mixed, "daybeside", layout([Kind::Stock; SERVERS]));
    let mut days = [Day::begin(mixed), Day::begin(stock)];
    let start = std::time::Instant::now();
    let mut each = |what: &str, act: &mut dyn FnMut(&mut Day)| {
        eprintln!("{:4} s: {what}", start.elapsed().as_secs());
        days.iter_mut().for_each(act);
    };
    each("copying", &mut Day::copy);
    each("appending, overwriting, cutting", &mut |day| day.change(21));
    each("snapshots, and changes behind them", &mut Day::snapshot);
    each("goals", &mut Day::set_goals);
    each("things go", &mut Day::remove);
    for server in 0..SERVERS {
        each("a server is killed while somebody writes, and returns", &mut |day| day.kill_and_return(server));
    }
    each("a disk is marked for removal", &mut Day::mark_disk);
    each("it is empty of what counts", &mut Day::wait_until_drained);
    each("and replaced", &mut Day::replace_disk);
    each("more changes", &mut |day| day.change(22));
    each("evening", &mut Day::settle);

    let [mixed, stock] = &mut days;
    // A file that was open when it was removed is counted until the master hears that it is closed.
    comes_true(LIMIT, || mixed.matrix() == stock.matrix());
    assert_eq!(mixed.matrix(), stock.matrix(), "the masters count other copies");
    assert_eq!(mixed.copies_of_files(), stock.copies_of_files(), "files have other numbers of copies");
    for day in [mixed, stock] {
        day.compare();
        day.chunk_files_are_sound();
    }
}

/// One cluster and its twin.
struct Day {
    cluster: Cluster,
    mount: PathBuf,
    twin: PathBuf,
}

impl Day {
    fn begin(mut cluster: Cluster) -> Day {
        let mount = cluster.mount(Kind::Stock);
        let twin = cluster.scratch("twin");
        std::fs::create_dir_all(&twin).unwrap();
        Day { cluster, mount, twin }
    }

    /// Does it to the mount and to the twin.
    fn both(&self, act: impl Fn(&Path) -> io::Result<()>) {
        for root in [&self.twin, &self.mount] {
            act(root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
        }
    }

    fn tool(&self, program: &str, arguments: &[&str], paths: &[&Path]) -> String {
        let mut command = self.cluster.command(program);
        let output = command.args(arguments).args(paths).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{program} {arguments:?} {paths:?}: {said}");
        said
    }

    fn copy(&mut self) {
        let source = self.cluster.scratch("source");
        tree::grow(&source, Plan::small(31)).unwrap();
        for name in ["tree", "other"] {
            self.both(|root| {
                tree::copy(&source, &root.join(name));
                Ok(())
            });
        }
        self.both(|root| {
            let mut random = Random::new(32);
            std::fs::create_dir(root.join("plain"))?;
            (0..12).try_for_each(|number| std::fs::write(file(root, number), random.bytes(20_000 * number + 1)))?;
            // Past the end of a chunk.
            File::create(root.join("long"))?.write_all_at(&random.bytes(300_000), (64 << 20) - 150_000)
        });
    }

    /// Appends, overwrites, cuts and grows.
    fn change(&mut self, seed: u64) {
        self.both(|root| {
            let mut random = Random::new(seed);
            for number in 0..12 {
                let file = File::options().read(true).write(true).open(file(root, number))?;
                let length = file.metadata()?.len();
                file.write_all_at(&random.bytes(1 + number * 9000), length)?;
                for _ in 0..4 {
                    let offset = random.below(length as usize + 1) as u64;
                    let length = 1 + random.below(70_000);
                    file.write_all_at(&random.bytes(length), offset)?;
                }
                let length = file.metadata()?.len();
                match number % 3 {
                    0 => file.set_len(length / 3)?,
                    1 => file.set_len(length + 100_000)?,
                    _ => {}
                }
                file.sync_all()?;
            }
            let long = File::options().write(true).open(root.join("long"))?;
            long.set_len((64 << 20) + 50_000)?;
            long.write_all_at(&random.bytes(90_000), (64 << 20) - 30_000)?;
            long.sync_all()
        });
    }

    /// Snapshots share chunks with their originals until one of the two changes.
    fn snapshot(&mut self) {
        for round in 0..2 {
            let name = format!("snapshot{round}");
            tree::copy(&self.twin.join("plain"), &self.twin.join(&name));
            std::fs::copy(self.twin.join("long"), self.twin.join(format!("{name} of long"))).unwrap();
            self.tool("mfsmakesnapshot", &[], &[&self.mount.join("plain"), &self.mount.join(&name)]);
            let long = self.mount.join(format!("{name} of long"));
            self.tool("mfsmakesnapshot", &[], &[&self.mount.join("long"), &long]);
            self.change(40 + round);
            // The copy changes, too, and the original stays.
            self.both(|root| {
                let copy = File::options().write(true).open(root.join(&name).join("7"))?;
                copy.write_all_at(b"changed in the copy", 70_000)?;
                copy.set_len(80_001)?;
                copy.sync_all()
            });
        }
    }

    fn set_goals(&mut self) {
        for (name, goal) in [("tree", "3"), ("snapshot0", "1"), ("other", "3")] {
            self.tool("mfssetgoal", &["-r", goal], &[&self.mount.join(name)]);
        }
        self.wait_for_no(ALL, "undergoal");
        self.tool("mfssetgoal", &["-r", "2"], &[&self.mount.join("other")]);
    }

    /// Somebody appends and syncs all the time, and never sees an error.
    fn kill_and_return(&mut self, server: usize) {
        let name = format!("written while {server} was killed");
        let mut random = Random::new(server as u64);
        let append = |root: &Path, bytes: &[u8]| {
            let mut file = File::options().create(true).append(true).open(root.join(&name)).unwrap();
            file.write_all(bytes).and_then(|()| file.sync_all()).unwrap();
        };
        for step in 0..30 {
            let bytes = random.bytes(30_000);
            append(&self.twin, &bytes);
            append(&self.mount, &bytes);
            match step {
                5 => self.cluster.kill_chunkserver(server),
                15 => self.cluster.start_chunkserver(server),
                _ => {}
            }
        }
        self.compare();
        // What was written with one server less has all its copies before the next one goes.
        self.wait_for_no(ALL, "undergoal");
        self.wait_for_no(ALL, "endangered");
    }

    /// With three servers of one disk each, only goals up to 2 can do without a disk.
    fn mark_disk(&mut self) {
        self.tool("mfssetgoal", &["-r", "2"], &[&self.mount.join("tree"), &self.mount.join("snapshot0")]);
        self.wait_for_no(ALL, "endangered");
        self.cluster.stop_chunkserver(OURS);
        self.cluster.layout().marked_for_removal.insert(OURS);
        self.cluster.start_chunkserver(OURS);
    }

    /// Until every file's chunks have their copies on the other servers: the master does not count those of the disk.
    fn wait_until_drained(&mut self) {
        for class in ["missing", "endangered", "undergoal"] {
            self.wait_for_no(REGULAR, class);
        }
        self.compare();
    }

    fn replace_disk(&mut self) {
        self.cluster.stop_chunkserver(OURS);
        let folder = self.cluster.data_folder(OURS);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir(&folder).unwrap();
        self.compare();
        self.cluster.layout().marked_for_removal.clear();
        self.cluster.start_chunkserver(OURS);
        // A new mount waits until all servers offer their space.
        self.cluster.unmount_all();
        self.mount = self.cluster.mount(Kind::Stock);
        // New files with a copy on every server. (Old ones would get theirs in the master's slow loop.)
        self.both(|root| std::fs::create_dir(root.join("late")));
        self.tool("mfssetgoal", &["3"], &[&self.mount.join("late")]);
        let source = self.cluster.scratch("source");
        self.both(|root| {
            tree::copy(&source, &root.join("late/tree"));
            Ok(())
        });
    }

    fn remove(&mut self) {
        self.tool("mfssettrashtime", &["-r", "0"], &[&self.mount]);
        self.both(|root| {
            std::fs::remove_dir_all(root.join("other"))?;
            std::fs::remove_file(root.join("snapshot0 of long"))
        });
    }

    /// Until the master has nothing more to do: no chunk has too few copies, none too many.
    fn settle(&mut self) {
        for class in ["missing", "endangered", "undergoal", "overgoal"] {
            self.wait_for_no(ALL, class);
        }
        // What belongs to no file goes in the master's slow loop, which takes minutes.
        if std::env::var("MOORING_WHOLE_DAY").as_deref() == Ok("1") {
            self.wait_for_no(ALL, "pending deletion");
            self.wait_for_no(ALL, "to be removed");
        }
        // A fresh mount has nothing in its caches.
        self.cluster.unmount_all();
        self.mount = self.cluster.mount(Kind::Stock);
        self.compare();
    }

    fn wait_for_no(&self, matrix: &str, class: &str) {
        let none = || self.chunk_info(matrix, &format!("chunkclass {class}:")) == ["0"];
        assert!(comes_true(LIMIT, none), "chunks are {class}, still: {}", self.monitor(matrix));
    }

    fn monitor(&self, matrix: &str) -> String {
        self.tool("mfscli", &["-H", "10.77.0.1", "-P", "9421", "-SIC", "-m", matrix, "-p", "-s", ";"], &[])
    }

    /// Values behind this word in what the monitor says of chunks.
    fn chunk_info(&self, matrix: &str, word: &str) -> Vec<String> {
        let said = self.monitor(matrix);
        let values = said.lines().filter_map(|line| line.split_once(word));
        values.map(|(_, value)| value.trim_matches(';').to_owned()).collect()
    }

    /// Goal, copies, chunks: the master's matrix, without the chunks that belong to no file any more.
    fn matrix(&self) -> Vec<String> {
        let mut rows = self.chunk_info(ALL, "goal/copies/chunks:");
        rows.retain(|row| !row.starts_with("0;"));
        rows
    }

    /// For each file, in order: how many valid copies each chunk has.
    fn copies_of_files(&self) -> Vec<(PathBuf, Vec<usize>)> {
        let files = tree::look(&self.twin).unwrap().into_iter().filter(|(_, picture)| picture.kind == "file");
        files
            .map(|(path, _)| {
                let said = self.tool("mfsfileinfo", &[], &[&self.mount.join(&path)]);
                let chunks = said.split("\tchunk ").skip(1);
                (path, chunks.map(|chunk| chunk.matches("status:VALID").count()).collect())
            })
            .collect()
    }

    /// Every file has the bytes of its twin.
    fn compare(&mut self) {
        let contents = |root: &Path| -> Vec<(PathBuf, u64, u64)> {
            let looked = tree::look(root).unwrap().into_iter();
            looked.map(|(path, picture)| (path, picture.length_bytes, picture.hash)).collect()
        };
        let (expected, found) = (contents(&self.twin), contents(&self.mount));
        let wrong = expected.iter().zip(&found).find(|(expected, found)| expected != found);
        assert!(wrong.is_none() && expected.len() == found.len(), "a file differs from its twin: {wrong:?}");
    }

    fn chunk_files_are_sound(&mut self) {
        self.cluster.stop_everything();
        let folder = self.cluster.data_folder(OURS);
        let chunks = copies::scan([(OURS, folder.as_path())]);
        assert!(!chunks.is_empty());
        for copy in chunks.values().flatten() {
            chunkfile::check(&copy.path).unwrap_or_else(|why| panic!("{why}"));
        }
    }
}

/// The monitor's matrices: of all copies, and without those on disks that are marked for removal.
const ALL: &str = "0";
const REGULAR: &str = "1";

fn file(root: &Path, number: usize) -> PathBuf {
    root.join("plain").join(number.to_string())
}
