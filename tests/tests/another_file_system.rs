//! The master's address leads to another file system for a while: somebody started a master in an empty folder, or the
//! address was given to another machine. Mounts, chunkservers and metaloggers of the first one must do nothing there,
//! and go on when their own is back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::wait::wait_until;

const LIMIT: Duration = Duration::from_secs(60);
const SAYS: &str = "serves the file system with metaid";

#[test]
fn our_master() {
    if have("another_file_system", &[Need::Root, Need::Fuse, Need::Mooring]) {
        play(Kind::Mooring);
    }
}

#[test]
fn a_stock_master() {
    if have("another_file_system", &[Need::Root, Need::Fuse, Need::Mooring, Need::Stock]) {
        play(Kind::Stock);
    }
}

fn play(master: Kind) {
    let mut cluster = Cluster::start("another-fs", Layout::new(master, &[Kind::Mooring]));
    if master == Kind::Mooring {
        cluster.start_metalogger(Kind::Mooring);
    }
    let mount = cluster.mount(Kind::Mooring);
    let path = mount.join("f");
    let old = vec![1u8; 1 << 20];
    fs::write(&path, &old).unwrap();
    let inode = fs::metadata(&path).unwrap().ino();
    let (new, source, ready) = (vec![2u8; 512 << 10], cluster.scratch("new"), cluster.scratch("ready"));
    fs::write(&source, &new).unwrap();
    // A process of its own: whatever starts programs would wait for the files that it has open here.
    let script = "exec 1<>\"$0\"; touch \"$1\"; read go; \
                  exec dd if=\"$2\" bs=512k seek=4096 oflag=seek_bytes conv=notrunc,fsync status=none";
    let mut writer =
        Command::new("sh").args(["-c", script]).args([&path, &ready, &source]).stdin(Stdio::piped()).spawn().unwrap();
    wait_until("the writer to have the file open", LIMIT, || ready.exists());

    cluster.stop_master();
    let new = vec![2u8; 512 << 10];
    writer.stdin.take().unwrap().write_all(b"go\n").unwrap(); // the mount keeps it, or lets the writer wait
    let (data, own) = (cluster.master_data(), cluster.scratch("own"));
    fs::rename(&data, &own).unwrap();
    fs::create_dir(&data).unwrap();
    fs::write(data.join("metadata.mfs"), "MFSM NEW").unwrap();
    cluster.start_master();
    wait_until("the mount to say so", LIMIT, || cluster.mount_daemon(0).log_text().contains(SAYS));
    wait_until("the chunkserver to say so", LIMIT, || cluster.chunkserver(0).log_text().contains(SAYS));
    assert!(cluster.chunkserver(0).ended().is_none());
    // A listing waits: it must not show an empty tree.
    let listing = std::thread::spawn({
        let mount = mount.clone();
        move || fs::read_dir(mount).unwrap().count()
    });
    std::thread::sleep(Duration::from_secs(5)); // the fault needs a moment in which to show itself
    assert!(!listing.is_finished());

    cluster.stop_master();
    let other = cluster.scratch("other");
    fs::rename(&data, &other).unwrap();
    fs::rename(&own, &data).unwrap();
    cluster.start_master();
    assert_eq!(listing.join().unwrap(), 1);
    assert!(writer.wait().unwrap().success());
    let mut expected = old;
    expected[4096..4096 + new.len()].copy_from_slice(&new);
    let found = fs::read(&path).unwrap();
    assert!(found == expected, "what waited for its own file system is there");
    assert_eq!(fs::metadata(&path).unwrap().ino(), inode);

    // Whatever the other master wrote down, none of it came from this mount.
    for entry in fs::read_dir(&other).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("changelog") {
            let text = String::from_utf8_lossy(&fs::read(entry.path()).unwrap()).into_owned();
            for word in ["WRITE", "SESADD", "LENGTH", "CREATE"] {
                assert!(!text.contains(word), "{word} in {text}");
            }
        }
    }
    cluster.stop_everything();
}
