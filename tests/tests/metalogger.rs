//! The master's machine is gone, and the metalogger's files make a new master: ours and MooseFS's in every mix.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have, mooring_binary};
use mooring_tests::tree::Random;
use mooring_tests::wait::wait_until;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const FILES: usize = 20;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_lost_master_comes_back_from_our_metalogger() {
    a_lost_master_comes_back("a_lost_master_comes_back_from_our_metalogger", Kind::Mooring, Kind::Mooring);
}

#[test]
fn a_lost_master_comes_back_from_a_stock_metalogger() {
    a_lost_master_comes_back("a_lost_master_comes_back_from_a_stock_metalogger", Kind::Mooring, Kind::Stock);
}

#[test]
fn a_lost_stock_master_comes_back_from_our_metalogger() {
    a_lost_master_comes_back("a_lost_stock_master_comes_back_from_our_metalogger", Kind::Stock, Kind::Mooring);
}

/// Files before the metalogger starts, while it runs, and after it was started again; then the master is killed and its
/// folder removed. Everything must be there when a master of the same kind starts from what the metalogger kept.
fn a_lost_master_comes_back(test: &str, master: Kind, metalogger: Kind) {
    if !have(test, NEEDS) {
        return;
    }
    let mut cluster = Cluster::start(&format!("ml-{master:?}-{metalogger:?}"), Layout::new(master, &[master; 2]));
    let mount = cluster.mount(master);
    let mut random = Random::new(5);
    let contents: Vec<Vec<u8>> = (0..3 * FILES).map(|number| random.bytes(1000 * (number + 1))).collect();
    let write = |numbers: std::ops::Range<usize>| {
        for number in numbers {
            std::fs::create_dir(mount.join(format!("folder{number}"))).unwrap();
            std::fs::write(mount.join(format!("folder{number}/file")), &contents[number]).unwrap();
        }
    };
    write(0..FILES);
    cluster.start_metalogger(metalogger);
    write(FILES..2 * FILES);
    wait_for_change(&cluster, "before-the-stop", &mount);
    cluster.stop_metalogger();
    cluster.start_metalogger(metalogger);
    write(2 * FILES..3 * FILES);
    std::fs::rename(mount.join("folder0"), mount.join("renamed")).unwrap();
    std::fs::remove_file(mount.join("folder1/file")).unwrap();
    wait_for_change(&cluster, "the-last-one", &mount);
    let kept = cluster.metalogger_data();
    if master == Kind::Mooring {
        wait_until("the image and all that belongs to it", LIMIT, || would_be_whole(&kept));
    }

    cluster.kill_master();
    cluster.stop_metalogger();
    std::fs::remove_dir_all(cluster.master_data()).unwrap();
    std::fs::create_dir(cluster.master_data()).unwrap();
    match master {
        Kind::Mooring => promote(&cluster),
        Kind::Stock => {
            for entry in std::fs::read_dir(&kept).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_string_lossy().into_owned();
                if name.starts_with("metadata_ml") || name.starts_with("changelog_ml") {
                    std::fs::copy(entry.path(), cluster.master_data().join(name)).unwrap();
                }
            }
        }
    }
    cluster.start_master();
    for (number, content) in contents.iter().enumerate() {
        let path = match number {
            0 => mount.join("renamed/file"),
            1 => {
                assert!(!mount.join("folder1/file").exists());
                continue;
            }
            _ => mount.join(format!("folder{number}/file")),
        };
        assert!(std::fs::read(&path).unwrap() == *content, "{}", path.display());
    }
    std::fs::write(mount.join("goes-on"), b"new").unwrap();
    assert_eq!(std::fs::read(mount.join("goes-on")).unwrap(), b"new");
    cluster.stop_everything();
}

/// Makes a directory and waits until the metalogger has its line.
fn wait_for_change(cluster: &Cluster, name: &str, mount: &Path) {
    std::fs::create_dir(mount.join(name)).unwrap();
    let log = cluster.metalogger_data().join("changelog_ml.0.mfs");
    wait_until(&format!("the metalogger to hear of {name}"), LIMIT, || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains(name))
    });
}

/// Would a master of ours start from this, with nothing missing between image and last line?
fn would_be_whole(kept: &Path) -> bool {
    let output =
        Command::new(mooring_binary().unwrap()).args(["promote", "--to", "/nonexistent", "--from"]).arg(kept).output();
    output.unwrap().status.success()
}

fn promote(cluster: &Cluster) {
    let promote = |more: &[&str]| {
        let mut command = Command::new(mooring_binary().unwrap());
        command.arg("promote").arg("--from").arg(cluster.metalogger_data()).arg("--to").arg(cluster.master_data());
        let output = command.args(more).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let said = promote(&[]);
    assert!(said.contains("Nothing was changed") && said.contains("lost "), "{said}");
    assert_eq!(std::fs::read_dir(cluster.master_data()).unwrap().count(), 0);
    assert!(promote(&["--go"]).contains("is ready"));
    let mut again = Command::new(mooring_binary().unwrap());
    again.args(["promote", "--go", "--from"]).arg(cluster.metalogger_data()).arg("--to").arg(cluster.master_data());
    let again = again.output().unwrap();
    let refused = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && refused.contains("holds metadata already"), "{refused}");
}
