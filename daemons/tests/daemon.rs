//! A daemon's life as a service manager sees it: the words and exit statuses of `mfsmaster start`, `test`, `stop`.
//! Spec 71, 1.1. The master stands for all daemons; what they share is tested.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Command;

struct Place {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Place {
    /// A folder with a configuration, an empty file system, and this program under the name `mfsmaster`.
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let path = folder.path();
        let program = path.join("mfsmaster");
        symlink(env!("CARGO_BIN_EXE_mooring"), &program).expect("a link can be made");
        let free: Vec<TcpListener> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let ports: Vec<u16> = free.iter().map(|socket| socket.local_addr().expect("bound").port()).collect();
        fs::create_dir(path.join("data")).expect("a folder can be made");
        fs::write(path.join("data/metadata.mfs"), "MFSM NEW").expect("writable");
        fs::write(path.join("exports.cfg"), "* / rw,alldirs,maproot=0\n").expect("writable");
        fs::write(
            path.join("mfsmaster.cfg"),
            format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nNICE_LEVEL = 0\nDATA_PATH = {0}/data\nEXPORTS_FILENAME = {0}/exports.cfg\n\
                 MATOML_LISTEN_HOST = 127.0.0.1\nMATOML_LISTEN_PORT = {1}\n\
                 MATOCS_LISTEN_HOST = 127.0.0.1\nMATOCS_LISTEN_PORT = {2}\n\
                 MATOCL_LISTEN_HOST = 127.0.0.1\nMATOCL_LISTEN_PORT = {3}\n",
                path.display(),
                ports[0],
                ports[1],
                ports[2]
            ),
        )
        .expect("writable");
        Place { folder, program }
    }

    /// Exit status and standard error of one action.
    fn act(&self, words: &[&str]) -> (i32, String) {
        let output = Command::new(&self.program)
            .arg("-c")
            .arg(self.folder.path().join("mfsmaster.cfg"))
            .args(words)
            .output()
            .expect("the program under test can be started");
        (output.status.code().expect("it is not killed"), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn check(&self, words: &[&str], status: i32, part: &str) {
        let (code, text) = self.act(words);
        assert!(code == status && text.contains(part), "{words:?} gave {code}, not {status} with {part:?}:\n{text}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.act(&["kill"]);
    }
}

#[test]
fn a_daemon_starts_answers_and_stops_with_the_words_of_moosefs() {
    let place = Place::new();
    place.check(&["test"], 1, "mfsmaster is not running");
    place.check(&["stop"], 0, "can't find process to terminate");
    place.check(&["try-restart"], 1, "can't find process to restart");
    let (status, said) = place.act(&["start"]);
    assert!(status == 0 && said.contains("mfsmaster daemon initialized properly"), "{status}: {said}");
    place.check(&["test"], 0, "mfsmaster pid: ");
    let (_, text) = place.act(&["test"]);
    let pid = text.trim().rsplit(' ').next().expect("it ends with the number");
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).expect("it runs");
    assert_eq!(name, "mfsmaster\n", "pgrep finds it");
    let log = said + &fs::read_to_string(place.folder.path().join("data/mfsmaster.log")).unwrap_or_default();
    for part in ["metadata loaded", "inodes=1", "exports: * / rw,alldirs", "listening on 127.0.0.1:"] {
        assert!(log.contains(part), "{part}:\n{log}");
    }
    place.check(&["STATUS"], 0, "mfsmaster pid: ");
    place.check(&["start"], 1, "can't start: lockfile is already locked by another process");
    place.check(&["info"], 0, "info signal has been sent");
    place.check(&["reload"], 0, "reload signal has been sent");
    place.check(&["test"], 0, "mfsmaster pid: ");
    place.check(&["restart"], 0, "waiting for termination terminated");
    place.check(&["stop"], 0, "sending SIGTERM to lock owner (pid:");
    place.check(&["test"], 1, "mfsmaster is not running");
    place.check(&["reload"], 1, "can't find process to send reload signal");
}

#[test]
fn a_start_that_fails_says_why_and_ends_with_1() {
    let place = Place::new();
    fs::write(place.folder.path().join("data/metadata.mfs"), "this is no metadata").expect("writable");
    let (status, text) = place.act(&["start"]);
    assert!(status == 1 && text.contains("metadata"), "{status}: {text}");
    place.check(&["-h"], 1, "");
    place.check(&["begin"], 1, "unknown action 'begin'");
    let missing = Command::new(&place.program).args(["-c", "/nonexistent/m.cfg"]).output().expect("it starts");
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&missing.stderr), "main config file (/nonexistent/m.cfg) not found\n");
}

#[test]
fn a_daemon_whose_folder_was_removed_moved_or_replaced_is_found_all_the_same() {
    let place = Place::new();
    let (data, aside) = (place.folder.path().join("data"), place.folder.path().join("aside"));
    place.check(&["start"], 0, "mfsmaster daemon initialized properly");
    let (_, running) = place.act(&["test"]);
    fs::rename(&data, &aside).expect("it can be moved");
    assert_eq!(place.act(&["test"]), (0, running.clone()), "it is gone");
    place.check(&["reload"], 0, "reload signal has been sent");
    fs::create_dir(&data).expect("a folder can be made");
    for name in [".metadata.seen", ".mfsmaster.lock", "metadata.mfs.back"] {
        fs::write(data.join(name), "of another day").expect("writable");
    }
    assert_eq!(place.act(&["test"]), (0, running.clone()), "another one is in its place");
    place.check(&["start"], 1, "can't start: process");
    fs::remove_dir_all(&data).expect("it can be removed");
    fs::rename(&aside, &data).expect("it can be moved back");
    assert_eq!(place.act(&["test"]), (0, running));
    fs::remove_file(data.join(".mfsmaster.lock")).expect("it can be removed");
    place.check(&["stop"], 0, "waiting for termination terminated");
    place.check(&["test"], 1, "mfsmaster is not running");
    place.check(&["start"], 0, "mfsmaster daemon initialized properly");
    place.check(&["-s"], 0, "waiting for termination terminated");
}
