//! The life of a daemon as the system sees it: its lock file, the actions on a running one, its start.
//!
//! What `mfsmaster stop` or `mfschunkserver reload` print and return is kept, since scripts and service files rely on
//! it; so is the order of the start (configuration, limits, user, folder, lock). Two things differ under the surface.
//! Nobody forks: to go into the background the program starts itself again with `--detached` and a pipe on which that
//! process says that it is ready. And the user is changed while there is a single thread, by the system calls of that
//! thread, because no thread-spanning call can be had without `unsafe`.
//! Spec 60, 3 and 4; Spec 71, 1.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::mm::MlockAllFlags;
use rustix::process::{Flock, FlockType, Gid, Pid, Resource, Rlimit, Signal, Uid};
use tracing::{error, info, warn};

use crate::config::{self, Config};
use crate::logging;

/// Open files that a daemon wants to be allowed. Spec 71, 1.3.
const OPEN_FILES: u64 = 16384;
/// How often a waiting `stop` looks whether the lock is free.
const LOCK_POLL: Duration = Duration::from_millis(50);
/// A process whose parent is gone ends by itself; if that takes longer than this, it is ended.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);
/// What a detached process writes to standard output once it serves.
const READY: &[u8] = b"ready\n";

/// A program that runs for long: what it is called, and by that where its files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// MooseFS's name of it: `mfsmaster`.
    pub name: &'static str,
}

pub const MASTER: Program = Program { name: "mfsmaster" };
pub const CHUNKSERVER: Program = Program { name: "mfschunkserver" };
pub const METALOGGER: Program = Program { name: "mfsmetalogger" };

impl Program {
    pub fn config_file(self) -> String {
        format!("{}.cfg", self.name)
    }

    pub fn lock_file(self) -> String {
        format!(".{}.lock", self.name)
    }
}

// What a daemon's command line asks for. Spec 71, 1.1. (No doc comment: clap would print it as the program's help.)
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Arguments {
    /// Print the version and exit
    #[arg(short = 'v')]
    pub version: bool,
    /// Stay in the foreground, log to standard error
    #[arg(short = 'f')]
    pub foreground: bool,
    /// Old name of -f
    #[arg(short = 'd', hide = true)]
    pub deprecated_foreground: bool,
    /// Log configuration variables that were asked for and not found
    #[arg(short = 'u')]
    pub log_undefined: bool,
    /// Do not raise the core-file limit
    #[arg(short = 'n')]
    pub keep_core_limit: bool,
    /// How long to wait for a running process to end (stop, restart)
    #[arg(short = 't', value_name = "SECONDS", default_value_t = 1800)]
    pub lock_timeout_secs: u64,
    /// Configuration file
    #[arg(short = 'c', value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// More log lines; twice: everything
    #[arg(long = "verbose", action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Stop when standard input ends, which is when the process that started this one is gone
    #[arg(long)]
    pub exit_with_parent: bool,
    /// Say `ready` on standard output once everything works
    #[arg(long)]
    pub announce_ready: bool,
    /// Stop the running process (old form of the action)
    #[arg(short = 's', hide = true)]
    pub stop: bool,
    /// This process is the background one (set by the program itself)
    #[arg(long, hide = true)]
    pub detached: bool,
    /// start (default), stop, restart, try-restart, reload, info, test, status, kill
    #[arg(value_name = "ACTION", default_value = "start")]
    pub action: Action,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    #[default]
    Start,
    Stop,
    Restart,
    TryRestart,
    Reload,
    Info,
    Test,
    Kill,
    Restore,
}

impl FromStr for Action {
    type Err = String;

    fn from_str(word: &str) -> Result<Action, String> {
        Ok(match word.to_ascii_lowercase().as_str() {
            "start" => Action::Start,
            "stop" => Action::Stop,
            "restart" => Action::Restart,
            "try-restart" => Action::TryRestart,
            "reload" => Action::Reload,
            "info" => Action::Info,
            "test" | "status" => Action::Test,
            "kill" => Action::Kill,
            "restore" => Action::Restore,
            _ => return Err(format!("unknown action '{word}'")),
        })
    }
}

/// A process that holds its lock and may begin to serve.
#[derive(Debug)]
pub struct Daemon {
    pub program: Program,
    pub config: Config,
    /// The file that the configuration came from, to read it again on reload; None while defaults are used.
    pub config_path: Option<PathBuf>,
    pub data_path: PathBuf,
    /// Ctrl-C means stop.
    pub foreground: bool,
    log_undefined: bool,
    announce_ready: bool,
    detached: bool,
    /// Held for life; the kernel drops them with the process.
    _lock: (File, Option<File>),
}

/// Do what the command line asks for. `serve` runs the daemon until it ends; it is called in the process that
/// is to be the daemon, with the lock held, and calls [`Daemon::ready`] when it serves.
///
/// Returns the exit status of this process. Spec 71, 1.1.
pub fn run(program: Program, arguments: &Arguments, serve: impl FnOnce(Daemon) -> Result<(), String>) -> ExitCode {
    if arguments.version {
        println!("version: 3.0.117-1 ; build: mooring {}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    match act(program, arguments, serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            // A daemon that has begun logs its end itself; nothing is left to be said here.
            if !sentence.is_empty() {
                eprintln!("{sentence}");
            }
            ExitCode::FAILURE
        }
    }
}

fn act(
    program: Program,
    arguments: &Arguments,
    serve: impl FnOnce(Daemon) -> Result<(), String>,
) -> Result<(), String> {
    logging::init(i8::try_from(arguments.verbose).unwrap_or(i8::MAX));
    if arguments.deprecated_foreground {
        eprintln!("option '-d' is deprecated - use '-f' instead");
    }
    let (config, note) =
        config::find(&program.config_file(), arguments.config.as_deref()).map_err(|error| error.to_string())?;
    // Only the process that the user started says so, not once more the one in the background.
    if let Some(note) = note.filter(|_| !arguments.detached) {
        eprintln!("{note}");
    }
    let data_path = config.path("DATA_PATH", "/var/lib/mfs");
    let lock_path = data_path.join(program.lock_file());
    let timeout = Duration::from_secs(arguments.lock_timeout_secs);

    match if arguments.stop { Action::Stop } else { arguments.action } {
        Action::Test => test(program, &lock_path),
        Action::Stop => stop(&lock_path, Signal::TERM, timeout),
        Action::Kill => stop(&lock_path, Signal::KILL, timeout),
        Action::Reload => send(&lock_path, Signal::HUP, "reload"),
        Action::Info => send(&lock_path, Signal::USR1, "info"),
        Action::Restore => Err(format!(
            "there is nothing to restore by hand: {} replays the change logs at every start and says how far it came; \
             mfsmetarestore -a does that without a start",
            program.name
        )),
        Action::Start | Action::Restart | Action::TryRestart => {
            if arguments.foreground || arguments.deprecated_foreground || arguments.detached {
                let daemon = prepare(program, arguments, config, &data_path)?;
                serve(daemon).map_err(|sentence| {
                    error!("{sentence}");
                    String::new()
                })
            } else {
                launch_in_background()
            }
        }
    }
}

// --- actions on a running process

fn test(program: Program, lock_path: &Path) -> Result<(), String> {
    match owner(lock_path)? {
        Some(pid) => {
            eprintln!("{} pid: {}", program.name, pid.as_raw_nonzero());
            Ok(())
        }
        None => Err(format!("{} is not running", program.name)),
    }
}

fn send(lock_path: &Path, signal: Signal, what: &str) -> Result<(), String> {
    let Some(pid) = owner(lock_path)? else {
        return Err(format!("can't find process to send {what} signal"));
    };
    rustix::process::kill_process(pid, signal).map_err(|error| format!("can't send {what} signal: {error}"))?;
    eprintln!("{what} signal has been sent");
    Ok(())
}

fn stop(lock_path: &Path, signal: Signal, timeout: Duration) -> Result<(), String> {
    let Some(pid) = owner(lock_path)? else {
        eprintln!("can't find process to terminate");
        return Ok(());
    };
    end_owner(lock_path, pid, signal, timeout)
}

fn end_owner(lock_path: &Path, pid: Pid, signal: Signal, timeout: Duration) -> Result<(), String> {
    let name = if signal == Signal::KILL { "SIGKILL" } else { "SIGTERM" };
    eprintln!("sending {name} to lock owner (pid:{})", pid.as_raw_nonzero());
    rustix::process::kill_process(pid, signal).map_err(|error| format!("can't kill lock owner: {error}"))?;
    eprint!("waiting for termination ");
    let started = Instant::now();
    let mut dots = 0;
    while owner(lock_path)? == Some(pid) {
        if started.elapsed() > timeout {
            eprintln!("give up");
            return Err(format!("can't stop: process {} is still running", pid.as_raw_nonzero()));
        }
        if started.elapsed().as_secs() / 10 > dots {
            dots += 1;
            eprint!(".");
        }
        thread::sleep(LOCK_POLL);
    }
    eprintln!("terminated");
    Ok(())
}

/// The process that holds the lock, as the kernel says. Spec 71, 1.2.
pub(crate) fn owner(lock_path: &Path) -> Result<Option<Pid>, String> {
    let file = match File::open(lock_path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return hidden_owner(lock_path, true),
        Err(error) => return Err(format!("can't open lockfile {}: {error}", lock_path.display())),
    };
    let wanted = Flock::from(FlockType::WriteLock);
    let holder = rustix::process::fcntl_getlk(&file, &wanted)
        .map_err(|error| format!("can't look at lockfile {}: {error}", lock_path.display()))?;
    match holder {
        // The folder may have been replaced under a running process, whose lock file is another one.
        None => hidden_owner(lock_path, false),
        Some(Flock { pid: Some(pid), .. }) => Ok(Some(pid)),
        Some(_) => Err(format!("{} is locked by a process of another container", lock_path.display())),
    }
}

/// What a running process shows in /proc of the lock file that it began with, whatever became of that file and its
/// folder: the name of a descriptor without a file. `None`: this kernel has no such descriptors.
fn show_lock(lock_path: &Path) -> Option<File> {
    let name = shown_lock(lock_path);
    rustix::fs::memfd_create(name.as_str(), rustix::fs::MemfdFlags::CLOEXEC).ok().map(File::from)
}

/// The name has room for 249 bytes.
fn shown_lock(lock_path: &Path) -> String {
    let path = std::path::absolute(lock_path).unwrap_or_else(|_| lock_path.to_owned());
    let text: Vec<char> = path.to_string_lossy().chars().collect();
    let end: String = text[text.len().saturating_sub(60)..].iter().collect();
    format!("mooring:{:08x}:{end}", crc32c::crc32c(path.as_os_str().as_bytes()))
}

/// A process that runs although nobody has the lock of the file that lies there now, if any: the folder was removed, moved
/// or replaced meanwhile. Errors: there may be one, which this user may not look at.
fn hidden_owner(lock_path: &Path, is_gone: bool) -> Result<Option<Pid>, String> {
    let path = std::path::absolute(lock_path).unwrap_or_else(|_| lock_path.to_owned());
    let signs = [format!("/memfd:{} (deleted)", shown_lock(lock_path)), format!("{} (deleted)", path.display())];
    let mut closed = None;
    let Ok(processes) = fs::read_dir("/proc") else { return Ok(None) };
    for number in processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let Some(pid) = Pid::from_raw(number).filter(|pid| *pid != rustix::process::getpid()) else { continue };
        match fs::read_dir(format!("/proc/{number}/fd")) {
            Ok(open) => {
                let mut links = open.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
                if links.any(|link| signs.iter().any(|sign| link.as_os_str() == sign.as_str())) {
                    return Ok(Some(pid));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && is_program(number, lock_path) => {
                closed.get_or_insert(number);
            }
            Err(_) => {} // it ended meanwhile, or is another program's
        }
    }
    match closed.filter(|_| is_gone) {
        None => Ok(None),
        Some(number) => Err(format!(
            "{} is not there, and whether process {number} began with it this user may not see: ask as root, or as the \
             user of that process",
            lock_path.display()
        )),
    }
}

/// Whether a process is of the program that such a lock file is of.
fn is_program(number: i32, lock_path: &Path) -> bool {
    let line = fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
    let mut words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    let called_as = words.next().unwrap_or_default();
    let called_as = Path::new(&called_as).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let lock = lock_path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = lock.trim_start_matches('.').trim_end_matches(".lock");
    called_as == name || (called_as == "mooring" && words.next().is_some_and(|word| name.ends_with(&word)))
}

// --- the start

/// Make this process the daemon: limits, user, folder, lock. Spec 71, 1.3.
fn prepare(program: Program, arguments: &Arguments, config: Config, data_path: &Path) -> Result<Daemon, String> {
    if arguments.detached {
        // A session of its own: the terminal's end and its Ctrl-C do not reach it. Fails only for a group leader.
        let _ = rustix::process::setsid();
    }
    // What `ps` and `pgrep` go by; else it would be the name of the file behind the link.
    if let Ok(name) = std::ffi::CString::new(program.name) {
        let _ = rustix::thread::set_name(&name);
    }
    let config_path = std::path::absolute(config.source()).ok().filter(|path| path.exists());
    let ident = config.text("SYSLOG_IDENT", program.name);
    apply_limits(&config, arguments.keep_core_limit);
    change_user(&config)?;

    std::env::set_current_dir(data_path)
        .map_err(|error| format!("can't set working directory to {}: {error}", data_path.display()))?;
    info!("working directory: {}", data_path.display());
    let mask = config.number::<u32>("FILE_UMASK", 0o027, 0..=u32::MAX) & 0o077;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));

    let lock_path = data_path.join(program.lock_file());
    let lock = take_lock(program, &lock_path, arguments)?;
    info!("lockfile created and locked");
    if arguments.exit_with_parent {
        end_with_parent();
    }
    if arguments.detached {
        let fallback = data_path.join(format!("{}.log", program.name));
        let sentence = logging::keep(&ident, &fallback)
            .map_err(|error| format!("can't open log file {}: {error}", fallback.display()))?;
        info!("{sentence}");
    }
    Ok(Daemon {
        program,
        config,
        config_path,
        data_path: data_path.to_owned(),
        foreground: !arguments.detached,
        log_undefined: arguments.log_undefined,
        announce_ready: arguments.announce_ready,
        detached: arguments.detached,
        _lock: lock,
    })
}

impl Daemon {
    /// Everything has been read from the configuration: say what was not understood, or not set.
    pub fn configuration_is_read(&self) {
        self.config.warn_unused();
        if self.log_undefined {
            for name in self.config.undefined() {
                info!("config: {name} is not defined - using the default");
            }
        }
    }

    /// The daemon serves: tell whoever waits, and leave the terminal if this is the background process.
    pub fn ready(&self) {
        info!("{} daemon initialized properly", self.program.name);
        if self.detached {
            logging::leave_terminal();
            match File::options().read(true).write(true).open("/dev/null") {
                Ok(null) => {
                    // First the log, so that whoever reads it sees its end; then the word on standard output.
                    let _ = rustix::stdio::dup2_stderr(&null);
                    announce();
                    let _ = rustix::stdio::dup2_stdout(&null);
                }
                Err(_) => announce(),
            }
        } else if self.announce_ready {
            announce();
        }
    }
}

/// Say on standard output that this process serves. That nobody listens any more is no reason to stop.
pub fn announce() {
    let mut output = io::stdout();
    let _ = output.write_all(READY).and_then(|()| output.flush());
}

/// Wait for the word of a process that was started with `--announce-ready`. False: its output ended without it.
pub fn wait_until_ready(mut output: impl Read) -> bool {
    let mut said = Vec::new();
    let mut part = [0; 64];
    loop {
        match output.read(&mut part) {
            Ok(0) => return false,
            Ok(count) => said.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return false,
        }
        if said.windows(READY.len()).any(|window| window == READY) {
            return true;
        }
    }
}

/// Start this program again as a background process, relay what it says until it serves, and take over its result.
fn launch_in_background() -> Result<(), String> {
    let fail = |error: io::Error| format!("can't start the background process: {error}");
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe().map_err(fail)?);
    if let Some(called_as) = arguments.next() {
        command.arg0(called_as);
    }
    let mut child = command
        .args(arguments)
        .arg("--detached")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(fail)?;
    let mut log = child.stderr.take().expect("asked for above");
    let relay = thread::spawn(move || io::copy(&mut log, &mut io::stderr()));
    let ready = wait_until_ready(child.stdout.take().expect("asked for above"));
    let _ = relay.join();
    if ready {
        return Ok(());
    }
    let status = child.wait().map_err(fail)?;
    Err(format!("error occurred during initialization - exiting ({status})"))
}

fn take_lock(program: Program, lock_path: &Path, arguments: &Arguments) -> Result<(File, Option<File>), String> {
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o640).open(lock_path).map_err(
            |error| {
                format!(
                    "can't create lockfile {}: {error} (the working user needs to own DATA_PATH)",
                    lock_path.display()
                )
            },
        )?;
    if arguments.action != Action::Start {
        match owner(lock_path)? {
            Some(pid) => {
                let timeout = Duration::from_secs(arguments.lock_timeout_secs);
                end_owner(lock_path, pid, Signal::TERM, timeout)?;
            }
            None if arguments.action == Action::TryRestart => {
                return Err("can't find process to restart".to_owned());
            }
            None => {}
        }
    }
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            return Err("can't start: lockfile is already locked by another process".to_owned());
        }
        Err(error) => return Err(format!("can't lock {}: {error}", lock_path.display())),
    }
    if let Some(pid) = hidden_owner(lock_path, false)? {
        return Err(format!(
            "can't start: process {} began with the lock file that was here before: its folder was removed or replaced \
             under it. See what that process logs; `{} stop` ends it",
            pid.as_raw_nonzero(),
            program.name
        ));
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| format!("{}: can't write {}: {error}", program.name, lock_path.display()))?;
    Ok((file, show_lock(lock_path)))
}

/// Limits and priorities. None is worth refusing to start for. Spec 60, 4.
fn apply_limits(config: &Config, keep_core_limit: bool) {
    raise_limit(Resource::Nofile, OPEN_FILES, "open files");
    if !keep_core_limit {
        let core = rustix::process::getrlimit(Resource::Core);
        let _ = rustix::process::setrlimit(Resource::Core, Rlimit { current: core.maximum, ..core });
    }
    // Registered buffers of io_uring count as locked memory on older kernels.
    let _ = rustix::process::setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
    // As it is used: the room of a cache is not all taken at once.
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
    if config.boolean("LOCK_MEMORY", false)
        && let Err(error) = rustix::mm::mlockall(flags)
    {
        warn!("can't lock memory: {error}");
    }
    let nice = config.number::<i32>("NICE_LEVEL", -19, -20..=19);
    if rustix::process::setpriority_process(None, nice).is_err() && rustix::process::geteuid().is_root() {
        warn!("can't set nice level to {nice}");
    }
    if config.boolean("DISABLE_OOM_KILLER", true) && rustix::process::geteuid().is_root() {
        let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    }
}

fn raise_limit(resource: Resource, wanted: u64, name: &str) {
    let now = rustix::process::getrlimit(resource);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let maximum = now.maximum.map(|maximum| maximum.max(wanted));
    let as_root = Rlimit { current: Some(wanted), maximum };
    let as_user = Rlimit { current: Some(now.maximum.map_or(wanted, |most| most.min(wanted))), maximum: now.maximum };
    match rustix::process::setrlimit(resource, as_root).or_else(|_| rustix::process::setrlimit(resource, as_user)) {
        Ok(()) => info!("{name} limit has been set to: {wanted}"),
        Err(error) => warn!("can't raise the {name} limit to {wanted}: {error}"),
    }
}

/// Become WORKING_USER and WORKING_GROUP; only root can, and for anybody else the options mean nothing.
fn change_user(config: &Config) -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        // Known options all the same.
        let _ = (config.optional("WORKING_USER"), config.optional("WORKING_GROUP"));
        return Ok(());
    }
    let WorkingUser { user, named, uid, gid } = WorkingUser::of(config)?;
    if uid == 0 && gid == 0 {
        return Ok(());
    }
    // The calls below change one thread; every later thread starts from it.
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "the user is changed before the first thread is started");
    let fail = |error: rustix::io::Errno| format!("can't become user {user} ({uid}:{gid}): {error}");
    let group = fs::read_to_string("/etc/group").unwrap_or_default();
    let extra: Vec<Gid> = groups_of(&group, &user).map(Gid::from_raw).collect();
    rustix::thread::set_thread_groups(&extra).map_err(fail)?;
    rustix::thread::set_thread_res_gid(Gid::from_raw(gid), Gid::from_raw(gid), Gid::from_raw(gid)).map_err(fail)?;
    rustix::thread::set_thread_res_uid(Uid::from_raw(uid), Uid::from_raw(uid), Uid::from_raw(uid)).map_err(fail)?;
    let why = if named { "" } else { " (WORKING_USER is not set)" };
    info!("running as user {user} ({uid}:{gid}){why}");
    Ok(())
}

/// As whom a daemon runs. WORKING_USER and WORKING_GROUP.
pub(crate) struct WorkingUser {
    user: String,
    /// The configuration names it.
    named: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl WorkingUser {
    /// Errors: this machine does not know user or group.
    pub(crate) fn of(config: &Config) -> Result<WorkingUser, String> {
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let group = fs::read_to_string("/etc/group").unwrap_or_default();
        let (user, named) = match config.optional("WORKING_USER") {
            Some(name) => (name.to_owned(), true),
            // Packages create the user mfs; a machine without it falls back as MooseFS does.
            None if find_user(&passwd, "mfs").is_some() => ("mfs".to_owned(), false),
            None => ("nobody".to_owned(), false),
        };
        let (uid, primary) = find_user(&passwd, &user)
            .ok_or_else(|| format!("{user}: no such user in /etc/passwd (WORKING_USER may also be #UID)"))?;
        let gid = match config.text("WORKING_GROUP", "").as_str() {
            "" => primary,
            name => find_group(&group, name)
                .ok_or_else(|| format!("{name}: no such group in /etc/group (WORKING_GROUP may also be #GID)"))?,
        };
        Ok(WorkingUser { user, named, uid, gid })
    }
}

/// Uid and primary gid of a user by name or `#uid`, from the text of /etc/passwd.
fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let number = name.strip_prefix('#').map(|digits| digits.parse::<u32>());
    let found = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let user = fields.next()?;
        let uid: u32 = fields.nth(1)?.parse().ok()?;
        let gid: u32 = fields.next()?.parse().ok()?;
        let same = match &number {
            Some(number) => number.as_ref() == Ok(&uid),
            None => user == name,
        };
        same.then_some((uid, gid))
    });
    match number {
        // A number without an entry is its own group.
        Some(Ok(uid)) => found.or(Some((uid, uid))),
        _ => found,
    }
}

/// Gid of a group by name or `#gid`, from the text of /etc/group.
fn find_group(group: &str, name: &str) -> Option<u32> {
    if let Some(digits) = name.strip_prefix('#') {
        return digits.parse().ok();
    }
    group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

/// The groups that list `user` as a member.
fn groups_of<'a>(group: &'a str, user: &'a str) -> impl Iterator<Item = u32> + 'a {
    group.lines().filter_map(move |line| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member == user).then_some(gid)
    })
}

/// Stop this process, in order, when its standard input ends. The demo starts its servers so: however it dies, the
/// pipe ends, and nothing is left behind.
pub fn end_with_parent() {
    let watch = || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        warn!("the process that started this one is gone - stopping");
        let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::TERM);
        thread::sleep(ORPHAN_TIMEOUT);
        warn!("could not stop within {} s - exiting", ORPHAN_TIMEOUT.as_secs());
        std::process::exit(1);
    };
    if let Err(error) = thread::Builder::new().name("parent".into()).spawn(watch) {
        warn!("can't watch the parent process: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nmfs:x:420:421::/var/lib/mfs:/usr/sbin/nologin\nbroken\n";
    const GROUP: &str = "root:x:0:\nfuse:x:105:anna,mfs\nmfs:x:421:\n";

    #[test]
    fn users_and_groups_are_found_by_name_and_by_number() {
        assert_eq!(find_user(PASSWD, "mfs"), Some((420, 421)));
        assert_eq!(find_user(PASSWD, "#420"), Some((420, 421)));
        assert_eq!(find_user(PASSWD, "#7"), Some((7, 7)));
        assert_eq!(find_user(PASSWD, "#x"), None);
        assert_eq!(find_user(PASSWD, "anna"), None);
        assert_eq!(find_group(GROUP, "fuse"), Some(105));
        assert_eq!(find_group(GROUP, "#9"), Some(9));
        assert_eq!(find_group(GROUP, "none"), None);
        assert_eq!(groups_of(GROUP, "mfs").collect::<Vec<_>>(), [105]);
    }

    #[test]
    fn action_words_are_compared_without_regard_to_case() {
        assert_eq!("START".parse(), Ok(Action::Start));
        assert_eq!("Try-Restart".parse(), Ok(Action::TryRestart));
        assert_eq!("status".parse(), Ok(Action::Test));
        assert!("begin".parse::<Action>().is_err());
    }

    #[test]
    fn actions_without_a_process_say_so_and_only_stop_counts_as_done() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let lock = folder.path().join(".mfsmaster.lock");
        let timeout = Duration::from_secs(1);
        assert_eq!(test(MASTER, &lock), Err("mfsmaster is not running".to_owned()));
        assert_eq!(send(&lock, Signal::HUP, "reload"), Err("can't find process to send reload signal".to_owned()));
        assert_eq!(send(&lock, Signal::USR1, "info"), Err("can't find process to send info signal".to_owned()));
        assert_eq!(stop(&lock, Signal::TERM, timeout), Ok(()));
        let arguments = Arguments { action: Action::TryRestart, ..Arguments::default() };
        assert_eq!(take_lock(MASTER, &lock, &arguments).map(drop), Err("can't find process to restart".to_owned()));
    }

    #[test]
    fn the_lock_file_holds_the_pid_and_nobody_else_seems_to_run() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let lock = folder.path().join(".mfsmaster.lock");
        fs::write(&lock, "123456789\n").expect("a writable folder");
        let _held = take_lock(MASTER, &lock, &Arguments::default()).expect("a free lock");
        assert_eq!(fs::read_to_string(&lock).expect("readable"), format!("{}\n", std::process::id()));
        // A process does not see its own lock, so the test sees nobody; tests/daemon.rs asks from another process.
        assert_eq!(owner(&lock), Ok(None));
    }

    #[test]
    fn readiness_is_the_word_and_nothing_less() {
        assert!(wait_until_ready(&b"ready\n"[..]));
        assert!(wait_until_ready(&b"noise\nready\n"[..]));
        assert!(!wait_until_ready(&b"read"[..]));
        assert!(!wait_until_ready(&b""[..]));
    }
}
