//! The demo as a user meets it: start, write, stop, start again, compare; and what happens when it is killed.
//!
//! Needs /dev/fuse and, unless root, fusermount3. Where they are missing the tests say so and pass.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

const READY_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A running demo; killed when the test ends early.
struct Demo {
    process: Child,
    dir: PathBuf,
    said: Vec<String>,
    lines: mpsc::Receiver<String>,
}

impl Demo {
    fn command(dir: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mooring"));
        command.args(["demo", "--chunkservers", "2", "--dir"]).arg(dir);
        command
    }

    fn start(dir: &Path) -> Demo {
        let mut process =
            Demo::command(dir).stdout(Stdio::piped()).spawn().expect("the program under test can be started");
        let output = BufReader::new(process.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let mut demo = Demo { process, dir: dir.to_owned(), said: Vec::new(), lines };
        demo.wait_for_line("Ctrl-C unmounts");
        demo
    }

    fn mount(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    fn wait_for_line(&mut self, part: &str) {
        let began = Instant::now();
        loop {
            match self.lines.recv_timeout(READY_TIMEOUT.saturating_sub(began.elapsed())) {
                Ok(line) => {
                    let found = line.contains(part);
                    self.said.push(line);
                    if found {
                        return;
                    }
                }
                Err(_) => panic!("the demo never said {part:?}; it said:\n{}{}", self.said.join("\n"), self.logs()),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().expect("a pid")).expect("not zero");
        rustix::process::kill_process(pid, signal).expect("the demo still runs");
    }

    /// As Ctrl-C does. Panics unless it ends well.
    fn stop(mut self) {
        self.signal(Signal::INT);
        let began = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("our child") {
                assert!(status.success(), "the demo ended with {status}{}", self.logs());
                break;
            }
            assert!(began.elapsed() < STOP_TIMEOUT, "the demo does not stop{}", self.logs());
            thread::sleep(Duration::from_millis(20));
        }
        assert!(!is_mounted(&self.mount()), "the mount is still there");
    }

    fn logs(&self) -> String {
        let mut all = String::new();
        for entry in fs::read_dir(self.dir.join("log")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            all.push_str(&format!("\n--- {}\n{tail}", entry.path().display()));
        }
        all
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // Its children notice by themselves.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn can_mount() -> bool {
    let usable = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !usable {
        assert!(std::env::var_os("MOORING_REQUIRE_INTEROP").is_none(), "/dev/fuse cannot be opened here");
        eprintln!("SKIPPED: /dev/fuse cannot be opened here, so no demo can be tried");
    }
    usable
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("Linux has it");
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

/// Files of many sizes: empty, inside a block, across blocks, across a chunk.
fn write_tree(root: &Path) {
    for (number, size) in
        [0usize, 1, 100, 65_535, 65_536, 65_537, 3_000_000, (64 << 20) + 12_345].into_iter().enumerate()
    {
        let folder = root.join(format!("folder-{}", number % 3));
        fs::create_dir_all(&folder).expect("a folder can be made");
        let mut file = File::create(folder.join(format!("file-{size}"))).expect("a file can be made");
        file.write_all(&content(size)).expect("it can be written");
        file.sync_all().expect("it can be synced");
    }
    std::os::unix::fs::symlink("folder-0/file-0", root.join("link")).expect("a symlink can be made");
    fs::hard_link(root.join("folder-1/file-1"), root.join("second name")).expect("a hard link can be made");
}

fn content(size: usize) -> Vec<u8> {
    let mut state = size as u64 | 1;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

fn assert_same(one: &Path, other: &Path) {
    let difference =
        Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output().expect("diff is installed");
    let text = String::from_utf8_lossy(&difference.stdout).into_owned() + &String::from_utf8_lossy(&difference.stderr);
    assert!(difference.status.success(), "the trees differ:\n{text}");
}

#[test]
fn files_are_there_again_after_a_stop_and_a_second_start() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().expect("a scratch folder");
    let (dir, model) = (folder.path().join("demo"), folder.path().join("model"));
    write_tree(&model);

    let demo = Demo::start(&dir);
    write_tree(&demo.mount().join("tree"));
    assert_same(&model, &demo.mount().join("tree"));
    let second = Demo::command(&dir).output().expect("the program under test can be started");
    let refusal = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && refusal.contains("another demo (process"), "{refusal}");
    demo.stop();
    assert!(fs::read_dir(dir.join("mnt")).expect("a folder").next().is_none(), "files are under the mount point");

    let demo = Demo::start(&dir);
    assert_same(&model, &demo.mount().join("tree"));
    demo.stop();
}

#[test]
fn a_killed_demo_leaves_nothing_that_keeps_the_next_one_from_starting() {
    if !can_mount() {
        return;
    }
    let folder = tempfile::tempdir().expect("a scratch folder");
    let dir = folder.path().join("demo");
    let demo = Demo::start(&dir);
    let file = demo.mount().join("kept");
    let mut kept = File::create(&file).expect("a file can be made");
    kept.write_all(&content(200_000)).expect("it can be written");
    kept.sync_all().expect("it can be synced");
    drop(kept);
    demo.signal(Signal::KILL);
    drop(demo);

    let demo = Demo::start(&dir);
    assert!(fs::read(&file).expect("the file is there") == content(200_000), "the file has changed");
    demo.stop();
}
