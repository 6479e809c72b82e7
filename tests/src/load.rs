//! Writers in a process of their own, and how a drill speaks with them.
//!
//! Not in the test's process: whatever that starts closes the files that it had open in it, and so waits for a mount
//! that waits for the very chunkservers which the test is about to start.
//!
//! One line for each wish, one or more for each answer, the last of them `.`; a broken promise is told with any answer.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::wait::comes_true;
use crate::writer::Writer;

/// Within this time every file must be readable and writable after everything is back.
const HEALING_LIMIT: Duration = Duration::from_secs(150);

/// What the writers have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub synced: u64,
    /// Steps that failed.
    pub failed: u64,
    pub snapshots: usize,
    /// Files that were lost before anything of them had been synced.
    pub written_anew: u64,
}

/// The test's end.
pub struct Load {
    child: Child,
    wishes: ChildStdin,
    answers: mpsc::Receiver<String>,
}

impl Load {
    /// Starts the program `mooring-writers`, on a healthy cluster.
    pub fn start(cluster: &Cluster, program: &Path, mount: &Path, writers: u64, seed: u64) -> Load {
        let mut command = cluster.command(&program.to_string_lossy());
        command.arg(mount).arg(writers.to_string()).arg(seed.to_string());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("mooring-writers is built");
        let wishes = child.stdin.take().expect("it is piped");
        let answers = listen(child.stdout.take().expect("it is piped"));
        Load { child, wishes, answers }
    }

    /// Errors: what was broken until now.
    pub fn broken(&mut self) -> Result<(), String> {
        self.ask("broken").map(|_| ())
    }

    /// Stops the writers and waits until each has read its file again, if it had to, and synced it. How long that took.
    ///
    /// Errors: what was broken, or which file cannot be read or synced.
    pub fn calm(&mut self, cluster: &Cluster) -> Result<Duration, String> {
        let start = Instant::now();
        let late = self.ask("calm")?;
        if late.is_empty() {
            return Ok(start.elapsed());
        }
        let said: Vec<String> =
            late.iter().map(|path| format!("{path}\n{}", cluster.explain(&PathBuf::from(path)))).collect();
        Err(format!(
            "{} s after everything was back these can not be read or synced: {}",
            start.elapsed().as_secs(),
            said.join("\n")
        ))
    }

    pub fn go_on(&mut self) {
        self.ask("go on").ok();
    }

    pub fn counts(&mut self) -> Counts {
        let said = self.ask("counts").unwrap_or_default().join(" ");
        let numbers: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [synced, failed, snapshots, written_anew] = numbers[..] else { return Counts::default() };
        Counts { synced, failed, snapshots: snapshots as usize, written_anew }
    }

    /// Every file and every snapshot, as `mount` shows it. The writers must be calm.
    ///
    /// Errors: what differs.
    pub fn compare(&mut self, mount: &Path) -> Result<(), String> {
        let wrong = self.ask(&format!("compare {}", mount.display()))?;
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
    }

    fn ask(&mut self, wish: &str) -> Result<Vec<String>, String> {
        writeln!(self.wishes, "{wish}").map_err(|error| format!("the writers are gone: {error}"))?;
        let mut lines = Vec::new();
        let limit = HEALING_LIMIT * 2;
        loop {
            let line = self.answers.recv_timeout(limit).map_err(|_| format!("the writers hang at `{wish}`"))?;
            if line == "." {
                break;
            }
            lines.push(line);
        }
        let broken: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("BROKEN ")).collect();
        if broken.is_empty() { Ok(lines) } else { Err(broken.join("\n")) }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn listen(output: ChildStdout) -> mpsc::Receiver<String> {
    let (said, heard) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if said.send(line).is_err() {
                return;
            }
        }
    });
    heard
}

/// What the writers' threads have in common.
#[derive(Default)]
struct Shared {
    /// Nothing is changed any more; what is uncertain is read and synced.
    is_calm: AtomicBool,
    /// Writers that have nothing uncertain left.
    settled: Vec<AtomicBool>,
    broken: Mutex<Vec<String>>,
}

/// The writers' end: the program `mooring-writers`. Ends with its standard input.
pub fn serve(mount: &Path, count: u64, seed: u64) {
    let settled = (0..count).map(|_| AtomicBool::new(false)).collect();
    let shared = Arc::new(Shared { settled, ..Shared::default() });
    let begin = |number| Writer::begin(mount, number, seed).expect("the cluster is healthy");
    let writers: Vec<_> = (0..count).map(|number| Arc::new(Mutex::new(begin(number)))).collect();
    for (number, writer) in writers.iter().enumerate() {
        let (writer, shared) = (writer.clone(), shared.clone());
        std::thread::spawn(move || work(number, &writer, &shared));
    }
    for wish in std::io::stdin().lines().map_while(Result::ok) {
        let mut lines = match wish.split_once(' ').unwrap_or((&wish, "")) {
            ("calm", _) => calm(&shared, mount),
            ("go", _) => {
                shared.is_calm.store(false, Ordering::SeqCst);
                Vec::new()
            }
            ("counts", _) => vec![counts(&writers)],
            ("compare", path) => compare(&writers, Path::new(path)),
            _ => Vec::new(),
        };
        lines.extend(lock(&shared.broken).iter().map(|what| format!("BROKEN {what}")));
        lines.push(".".into());
        println!("{}", lines.join("\n"));
    }
    // Threads that wait for a mount would wait for ever.
    std::process::exit(0);
}

/// The paths of those that could not be settled.
fn calm(shared: &Shared, mount: &Path) -> Vec<String> {
    shared.settled.iter().for_each(|settled| settled.store(false, Ordering::SeqCst));
    shared.is_calm.store(true, Ordering::SeqCst);
    let are_settled = || shared.settled.iter().all(|settled| settled.load(Ordering::SeqCst));
    comes_true(HEALING_LIMIT, || are_settled() || !lock(&shared.broken).is_empty());
    let late = (0..shared.settled.len()).filter(|number| !shared.settled[*number].load(Ordering::SeqCst));
    late.map(|number| mount.join(format!("file{number}")).display().to_string()).collect()
}

fn counts(writers: &[Arc<Mutex<Writer>>]) -> String {
    let mut counts = Counts::default();
    for writer in writers {
        let writer = lock(writer);
        counts.synced += writer.synced;
        counts.failed += writer.failed;
        counts.snapshots += writer.snapshots.len();
        counts.written_anew += writer.written_anew;
    }
    format!("{} {} {} {}", counts.synced, counts.failed, counts.snapshots, counts.written_anew)
}

fn compare(writers: &[Arc<Mutex<Writer>>], mount: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    for writer in writers {
        let writer = lock(writer);
        let file = (&writer.path, &writer.model.promised);
        for (path, expected) in std::iter::once(file).chain(writer.snapshots.iter().map(|(path, bytes)| (path, bytes)))
        {
            let path = mount.join(path.file_name().expect("it is a file's"));
            let what = match std::fs::read(&path) {
                Ok(found) if found == *expected => continue,
                Ok(found) => {
                    let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
                    format!("{} bytes of {}, the first that differs is {differs:?}", found.len(), expected.len())
                }
                Err(error) => error.to_string(),
            };
            wrong.push(format!("{}: {what}", path.display()));
        }
    }
    wrong
}

fn work(number: usize, writer: &Mutex<Writer>, shared: &Shared) {
    loop {
        let is_calm = shared.is_calm.load(Ordering::SeqCst);
        let mut writer = lock(writer);
        let outcome = match (is_calm, writer.is_settled()) {
            (true, true) if shared.settled[number].load(Ordering::SeqCst) => Ok(()),
            (true, true) => writer.verify(),
            (true, false) => writer.settle(),
            (false, _) => writer.step(),
        };
        if let Err(what) = outcome {
            lock(&shared.broken).push(what);
            return;
        }
        if is_calm && writer.is_settled() {
            shared.settled[number].store(true, Ordering::SeqCst);
        }
        let rests = is_calm || writer.is_in_doubt();
        drop(writer);
        if rests {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
