//! A real tree through a cluster of ours: `MOORING_LARGE_TREE=/usr/lib cargo test -p mooring-tests --test large_tree --
//! --ignored --nocapture`. Any folder will do; tens of thousands of files and a gigabyte are meant.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::tree;

#[test]
#[ignore = "copies a gigabyte several times: minutes"]
fn a_real_tree_survives_copies_a_restart_and_the_kill_of_every_process() {
    let name = "a_real_tree_survives_copies_a_restart_and_the_kill_of_every_process";
    if !have(name, &[Need::Root, Need::Fuse, Need::Mooring]) {
        return;
    }
    let source = PathBuf::from(std::env::var_os("MOORING_LARGE_TREE").unwrap_or_else(|| "/usr/share".into()));
    let pictures = tree::look(&source).unwrap();
    let bytes: u64 = pictures.values().map(|picture| picture.length_bytes).sum();
    println!("{}: {} names, {} MiB", source.display(), pictures.len(), bytes >> 20);
    let mut layout = Layout::ours(3);
    layout.limit = Duration::from_secs(3600);
    let mut cluster = Cluster::start("large", layout);

    let mount = cluster.mount(Kind::Mooring);
    timed("cp -a in", || tree::copy(&source, &mount.join("copied")));
    std::fs::create_dir(mount.join("untarred")).unwrap();
    timed("tar in", || tar(&source, &mount.join("untarred")));
    let unpacked = Path::new("untarred").join(source.file_name().unwrap());
    let compare = |mount: &Path| {
        timed("compare the copy", || tree::assert_same(&source, &mount.join("copied")));
        timed("compare what tar made", || tree::assert_same(&source, &mount.join(&unpacked)));
    };
    compare(&mount);
    timed("diff -r", || {
        let mut command = Command::new("diff");
        let output = command.args(["-r", "--no-dereference"]).arg(&source).arg(mount.join("copied")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    });

    timed("stop everything", || cluster.stop_everything());
    timed("start everything", || cluster.start_servers());
    let mount = cluster.mount(Kind::Mooring);
    compare(&mount);

    Command::new("sync").arg("-f").arg(&mount).status().unwrap();
    cluster.kill_everything();
    timed("start after the kill", || cluster.start_servers());
    let mount = cluster.mount(Kind::Mooring);
    compare(&mount);
    let out = cluster.scratch("out");
    timed("cp -a out", || tree::copy(&mount.join("copied"), &out));
    tree::assert_same(&source, &out);
    timed("rm -r", || std::fs::remove_dir_all(mount.join("copied")).unwrap());
    cluster.stop_everything();
}

fn tar(source: &Path, target: &Path) {
    let script = "tar -C \"$0\" -cf - \"$1\" | tar -C \"$2\" -xpf -";
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", script]);
    command.arg(source.parent().unwrap()).arg(source.file_name().unwrap()).arg(target);
    assert!(command.status().unwrap().success(), "tar | tar");
}

fn timed<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let outcome = act();
    println!("{what}: {:.1} s", start.elapsed().as_secs_f64());
    outcome
}
