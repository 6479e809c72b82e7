//! `mooring why`: what is said about files and chunks of a real cluster, and to whom nothing can be said.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::daemon::signal;
use mooring_tests::namespace::MASTER;
use mooring_tests::need::{Need, have, mooring_binary};
use mooring_tests::wait::{comes_true, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

/// Status and everything that was printed.
fn why(cluster: &Cluster, arguments: &[&str]) -> (bool, String) {
    let binary = mooring_binary().unwrap();
    let output = cluster.command(&binary.to_string_lossy()).arg("why").args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_chunk_is_explained_through_the_mount_and_by_the_master_s_address() {
    if !have(
        "a_chunk_is_explained_through_the_mount_and_by_the_master_s_address",
        &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring],
    ) {
        return;
    }
    let mut cluster = Cluster::start("why", Layout::ours(2));
    let mount = cluster.mount(Kind::Mooring);
    let file = mount.join("file");
    fs::write(&file, vec![7; 100_000]).unwrap();
    let path = file.display().to_string();
    let says = |cluster: &Cluster, what: &[&str], parts: &[&str]| {
        let mut text = String::new();
        wait_until(&format!("{what:?} to be answered with {parts:?}"), LIMIT, || {
            let (ok, said) = why(cluster, what);
            text = said;
            ok && parts.iter().all(|part| text.contains(part))
        });
        text
    };
    cluster.set_goal(&file, 2);
    let text = says(&cluster, &[&path], &["in 1 chunk\n", "2 copies on any servers (goal 2)", "state: as wanted"]);
    assert_eq!(text.matches(":9422: good").count(), 2, "{text}");

    cluster.set_goal(&file, 3);
    let parts = ["1 more copy is wanted, and none can be made now", "takes none: it has one of some kind"];
    let text = says(&cluster, &[&path], &parts);
    let (_, after) = text.split_once(": chunk ").unwrap();
    let chunk = &after[..16];

    // What the planner waits for, told to it by a reload; and who has a chunk that is written.
    let settings = cluster.scratch("mfsmaster.cfg");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("OPERATIONS_DELAY_INIT = 1", "OPERATIONS_DELAY_INIT = 3600")).unwrap();
    signal(cluster.master().pid(), "HUP");
    says(&cluster, &[&path], &["waits: 35", " s since the master's start: REPLICATIONS_DELAY_INIT"]);
    fs::write(&settings, text).unwrap();
    signal(cluster.master().pid(), "HUP");
    says(&cluster, &[&path], &["waits: its turn among chunks with too few copies, 0 before it"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let written = File::options().write(true).open(&file).unwrap();
            while !done.load(Ordering::Relaxed) {
                written.write_all_at(&[8; 50_000], 0).unwrap();
            }
        });
        let session = format!("locked by a write of session 1 ({} at 10.77.0.1), for another 1", mount.display());
        let locked = comes_true(LIMIT, || why(&cluster, &[&path]).1.contains(&session));
        done.store(true, Ordering::Relaxed);
        assert!(locked, "{}", why(&cluster, &[&path]).1);
    });

    let master = MASTER.to_string();
    let by_address = ["-H", &master, "/file", chunk];
    says(&cluster, &by_address, &[parts[0], &format!("chunk {chunk}, version ")]);
    let (ok, text) = why(&cluster, &["-H", &master, "/nothing"]);
    assert!(!ok && text.contains("/nothing: No such file"), "{text}");
    let (ok, text) = why(&cluster, &[&mount.display().to_string()]);
    assert!(!ok && text.contains("not a file"), "{text}");
    let (ok, text) = why(&cluster, &["/proc/self"]);
    assert!(!ok && text.contains("not in a mount"), "{text}");

    // A chunk that is on a disk and in no metadata: kept, listed, explained.
    says(&cluster, &["-H", &master, "--unknown"], &["no chunkserver that is here has a chunk that"]);
    let own = cluster.copies()[&u64::from_str_radix(chunk, 16).unwrap()][0].clone();
    cluster.stop_chunkserver(own.server);
    let mut bytes = fs::read(&own.path).unwrap();
    bytes[8..16].copy_from_slice(&0x4A_u64.to_be_bytes());
    let foreign = own.path.with_file_name("chunk_000000000000004A_00000001.mfs");
    fs::write(&foreign, bytes).unwrap();
    cluster.start_chunkserver(own.server);
    says(&cluster, &["-H", &master, "--unknown"], &["000000000000004A version 1 on 10.77.0."]);
    says(&cluster, &["-H", &master, "4A"], &["is not in the metadata; its copies are kept"]);
    assert!(foreign.exists());
}

#[test]
fn a_stock_master_is_not_asked_what_it_does_not_know() {
    let name = "a_stock_master_is_not_asked_what_it_does_not_know";
    if !have(name, &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring]) {
        return;
    }
    let mut cluster = Cluster::start("why-stock", Layout::new(Kind::Stock, &[Kind::Stock]));
    for kind in [Kind::Stock, Kind::Mooring] {
        let file = cluster.mount(kind).join("file");
        fs::write(&file, b"text").unwrap();
        let (ok, text) = why(&cluster, &[&file.display().to_string()]);
        assert!(!ok && text.contains("the master is not Mooring's"), "{kind:?}: {text}");
        assert_eq!(fs::read(&file).unwrap(), b"text", "the mount goes on");
    }
    let (ok, text) = why(&cluster, &["-H", &MASTER.to_string(), "/file"]);
    assert!(!ok && text.contains("the master is not Mooring's"), "{text}");
}
