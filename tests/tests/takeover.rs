//! A cluster of MooseFS goes on under our master, and back: only the master is stopped, chunkservers and mount stay.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have, mooring_binary};
use mooring_tests::tree::{self, Plan};
use mooring_tests::wait::wait_until;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_stock_cluster_is_taken_over_and_given_back() {
    there_and_back("a_stock_cluster_is_taken_over_and_given_back", [Kind::Stock; 3]);
}

#[test]
fn a_mixed_cluster_is_taken_over_and_given_back() {
    there_and_back("a_mixed_cluster_is_taken_over_and_given_back", [Kind::Stock, Kind::Mooring, Kind::Stock]);
}

fn there_and_back(test: &str, chunkservers: [Kind; 3]) {
    if !have(test, NEEDS) {
        return;
    }
    let began = SystemTime::now() - Duration::from_secs(60);
    let mut cluster = Cluster::start(test, Layout::new(Kind::Stock, &chunkservers));
    let mount = cluster.mount(Kind::Stock);
    let source = cluster.scratch("source");
    tree::grow(&source, Plan::medium(31)).unwrap();
    tree::copy(&source, &mount.join("tree"));
    tool(&cluster, "mfssetgoal", &["-r", "3"], &mount.join("tree"));
    tool(&cluster, "mfssetquota", &["-I", "1000"], &mount.join("tree"));
    tool(&cluster, "mfsseteattr", &["-f", "noattrcache"], &mount.join("tree"));
    run(cluster.command("mfsmakesnapshot").arg(mount.join("tree")).arg(mount.join("copy")));
    fs::write(mount.join("deleted"), b"in the trash").unwrap();
    fs::remove_file(mount.join("deleted")).unwrap();
    fs::write(mount.join("held"), b"deleted and open").unwrap();
    tool(&cluster, "mfssettrashtime", &["0"], &mount.join("held"));
    let held = File::open(mount.join("held")).unwrap();
    fs::remove_file(mount.join("held")).unwrap();
    let before = facts(&cluster, &mount);

    let of_running = cluster.master_data().join("metadata.mfs.back");
    let mut import = Command::new(mooring_binary().unwrap());
    let refused = import.arg("import").arg(of_running).arg("--to").arg(cluster.scratch("none")).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("mfsmaster runs in"), "the master's files are in use: {said}");

    // There. What the other master left goes aside, and is not touched.
    let left = set_aside(&mut cluster, "left-by-moosefs");
    let as_left = fs::read(left.join("metadata.mfs")).unwrap();
    same_dump(&left.join("metadata.mfs"));
    mooring(Command::new(mooring_binary().unwrap()).arg("import").arg(&left).arg("--to").arg(cluster.master_data()));
    assert_eq!(fs::read(left.join("metadata.mfs")).unwrap(), as_left);
    cluster.layout().master = Kind::Mooring;
    cluster.start_master();
    wait_for_files(&mount);
    assert_equal(&facts(&cluster, &mount), &before);
    tree::assert_same(&source, &mount.join("tree"));
    assert_eq!(std::os::unix::fs::FileExt::read_at(&held, &mut [0; 64], 0).unwrap(), b"deleted and open".len());
    fs::write(mount.join("tree/written under ours"), vec![7; 3_000_000]).unwrap();
    fs::remove_file(mount.join("copy/a fifo")).unwrap();
    wait_until("the mount's cache to let go of the folders' old times", LIMIT, || {
        let is_new = |folder: &str| fs::metadata(mount.join(folder)).unwrap().modified().unwrap() > began;
        is_new("tree") && is_new("copy")
    });
    let changed = facts(&cluster, &mount);

    // And back.
    let ours = set_aside(&mut cluster, "left-by-ours");
    let exported = cluster.master_data().join("metadata.mfs");
    mooring(Command::new(mooring_binary().unwrap()).arg("export").arg("--from").arg(&ours).arg("--to").arg(&exported));
    same_dump(&exported);
    cluster.layout().master = Kind::Stock;
    cluster.start_master();
    let log = cluster.master().log_text();
    let again = log.rsplit("loading metadata").next().unwrap_or_default();
    assert!(!["warning", "error", "orphan", "unknown", "mismatch"].iter().any(|word| again.contains(word)), "{again}");
    wait_for_files(&mount);
    assert_equal(&facts(&cluster, &mount), &changed);
    assert_eq!(fs::read(mount.join("tree/written under ours")).unwrap(), vec![7; 3_000_000]);
    assert_eq!(std::os::unix::fs::FileExt::read_at(&held, &mut [0; 64], 0).unwrap(), b"deleted and open".len());
    fs::write(mount.join("written at last"), b"x").unwrap();
    drop(held);
    cluster.stop_everything();
}

/// Stops the master and moves its folder away; an empty one takes its place.
fn set_aside(cluster: &mut Cluster, name: &str) -> PathBuf {
    cluster.stop_master();
    let aside = cluster.scratch(name);
    fs::rename(cluster.master_data(), &aside).unwrap();
    fs::create_dir(cluster.master_data()).unwrap();
    aside
}

/// Until the mount has its master again and a chunk can be read.
fn wait_for_files(mount: &Path) {
    wait_until("the mount to have its master and chunkservers again", LIMIT, || {
        fs::metadata(mount.join("tree")).is_ok() && fs::write(mount.join("probe"), b"probe").is_ok()
    });
    fs::remove_file(mount.join("probe")).unwrap();
}

/// What every name below the mount is, and what the tools say of two of them.
fn facts(cluster: &Cluster, mount: &Path) -> Vec<String> {
    let mut facts = Vec::new();
    for folder in ["tree", "copy"] {
        for (path, picture) in tree::look(&mount.join(folder)).unwrap() {
            let inode = fs::symlink_metadata(mount.join(folder).join(&path)).unwrap().ino();
            facts.push(format!("{folder} {inode} {path:?} {picture:?}"));
        }
    }
    for (program, more) in
        [("mfsgetgoal", "-r"), ("mfsgetquota", "-H"), ("mfsgeteattr", "-r"), ("mfsgettrashtime", "-r")]
    {
        let output = cluster.command(program).arg(more).arg(mount.join("tree")).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().map(str::to_owned);
        facts.extend(lines);
    }
    facts
}

/// Our tool and MooseFS's print the same of a file, save for what MooseFS's prints wrong (Spec 50, 11).
fn same_dump(file: &Path) {
    let stock = Command::new("/usr/sbin/mfsmetadump").arg(file).output().unwrap();
    let ours = Command::new(mooring_binary().unwrap()).arg("metadump").arg(file).output().unwrap();
    assert!(stock.status.success() && ours.status.success());
    let lines = |bytes: &[u8]| -> Vec<String> {
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.starts_with(b"FLOCK"))
            .map(|line| line.escape_ascii().to_string())
            .collect()
    };
    let (stock, ours) = (lines(&stock.stdout), lines(&ours.stdout));
    assert_equal(&ours, &stock);
}

/// Long lists: only the first difference is of interest.
fn assert_equal(found: &[String], expected: &[String]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
}

fn tool(cluster: &Cluster, program: &str, arguments: &[&str], path: &Path) {
    run(cluster.command(program).args(arguments).arg(path));
}

fn mooring(command: &mut Command) {
    run(command);
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
}
