//! `mooring probe` as people call it: what it prints, what it refuses, and that it leaves nothing behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Exit status, standard output, standard error.
fn outcome(command: &mut Command) -> (i32, String, String) {
    let output = command.output().expect("the program under test can be started");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// The program, for a short measurement of a small file.
fn probe(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
    command.arg("probe").args(["--seconds", "1", "--size-mib", "8"]).arg(folder);
    command
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).expect("it can be listed").next().is_none()
}

/// On a disk and not in memory, as far as the build is.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch folder")
}

/// Runs words of the shell in a mount namespace of their own, where they may mount; None without the right to.
fn in_own_mounts(script: &str, folder: &Path) -> Option<(i32, String, String)> {
    let allowed = Command::new("unshare").args(["--mount", "true"]).stderr(Stdio::null()).status();
    if !allowed.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: needs root and unshare(1), to mount something");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-e", "-c", script]).env("FOLDER", folder);
    Some(outcome(command.env("MOORING", env!("CARGO_BIN_EXE_mooring"))))
}

#[test]
fn a_disk_is_measured_and_lines_are_proposed_that_a_chunkserver_takes() {
    let folder = scratch();
    let (status, text, errors) = outcome(&mut probe(folder.path()));
    assert_eq!((status, errors.as_str()), (0, ""), "{text}");
    assert!(is_empty(folder.path()));
    for part in ["O_DIRECT: ", "sequential write", "random read, 4 KiB x 1", "and flush", "MB/s", "p99"] {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    let profile = text.lines().find_map(|line| line.strip_prefix("TUNING_PROFILE = ")).expect("a profile is proposed");
    assert!(["nvme", "ssd", "hdd"].contains(&profile), "{text}");
}

#[test]
fn a_full_disk_a_missing_folder_and_a_file_are_refused_by_name() {
    let folder = scratch();
    let missing = folder.path().join("missing");
    let file = folder.path().join("file");
    fs::write(&file, "x").expect("writable");
    for (path, part) in [(&missing, "No such file or directory"), (&file, "not a directory")] {
        let (status, text, errors) = outcome(&mut probe(path));
        assert_eq!((status, text.as_str()), (1, ""));
        assert!(errors.contains(part) && errors.contains(&path.display().to_string()), "{errors}");
    }
    let script = "mount -t tmpfs -o size=32m tmpfs \"$FOLDER\"; exec \"$MOORING\" probe --size-mib 8 \"$FOLDER\"";
    if let Some((status, _, errors)) = in_own_mounts(script, folder.path()) {
        assert!(status == 1 && errors.contains("32 MiB are free and 264 are needed"), "{status}: {errors}");
    }
}

#[test]
fn who_may_not_write_there_is_told_so() {
    // Root may write anywhere, so somebody else is asked, from a place that is open to all.
    let open = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().expect("a folder");
    let program = open.path().join("mooring");
    fs::copy(env!("CARGO_BIN_EXE_mooring"), &program).expect("writable");
    let theirs = open.path().join("closed");
    fs::create_dir(&theirs).expect("writable");
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o555)).expect("it is ours");
    let is_root = rustix::process::geteuid().is_root();
    let mut command = if is_root { Command::new("setpriv") } else { Command::new(&program) };
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    }
    let (status, text, errors) = outcome(command.args(["probe", "--size-mib", "8", "--seconds", "1"]).arg(&theirs));
    assert_eq!((status, text.as_str()), (1, ""));
    assert!(errors.contains("cannot make a file there") && errors.contains("Permission denied"), "{errors}");
    assert!(is_empty(&theirs));
}

#[test]
fn a_file_system_that_is_read_only_is_refused_and_one_in_memory_is_called_so() {
    let folder = scratch();
    let script = "mount -t tmpfs tmpfs \"$FOLDER\"; \"$MOORING\" probe --seconds 1 --size-mib 8 \"$FOLDER\"; \
        test -z \"$(ls -A \"$FOLDER\")\"";
    if let Some((status, text, errors)) = in_own_mounts(script, folder.path()) {
        assert_eq!((status, errors.as_str()), (0, ""), "{text}");
        assert!(text.contains("tmpfs, no block device") && text.contains("is memory, not a disk"), "{text}");
    }
    let script = "mount -t tmpfs -o ro tmpfs \"$FOLDER\"; exec \"$MOORING\" probe --size-mib 8 \"$FOLDER\"";
    if let Some((status, text, errors)) = in_own_mounts(script, folder.path()) {
        assert_eq!((status, text.as_str()), (1, ""));
        assert!(errors.contains("Read-only file system"), "{errors}");
    }
}

#[test]
fn an_interrupted_measurement_leaves_nothing_behind() {
    let folder = scratch();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
    command.args(["probe", "--seconds", "60", "--size-mib", "64"]).arg(folder.path());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = rustix::process::Pid::from_child(&child);
    let fds = format!("/proc/{}/fd", child.id());
    let has_its_file = || {
        let links = fs::read_dir(&fds).into_iter().flatten().flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        links.filter(|link| link.to_string_lossy().contains(".mooring-probe-")).count() > 0
    };
    let patience = Instant::now();
    while !has_its_file() && patience.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(has_its_file(), "the measurement began");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("interrupted; nothing is left behind"), "{errors}");
    assert!(is_empty(folder.path()));
}
