//! `mooring demo`: a whole cluster in one process tree, on this machine, in one folder.
//!
//! The demo is a supervisor of ordinary processes: it writes ordinary configuration files, starts this program again
//! as master, metalogger, chunkservers and mount, waits until each says that it is ready, and then watches. Nothing is special
//! about the servers that it starts; the files in its `etc` folder start the same servers by hand.
//!
//! Order is what keeps data: the mount goes first at the end (it writes out what it holds), then the chunkservers,
//! then the master, then the metalogger, which has heard all of it. If the demo itself is killed, its children notice that their standard input ended and stop by
//! themselves.

mod child;
mod layout;
mod mountpoint;
mod settle;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::process;
use crate::signals::{self, Wish};
use child::{Child, Recipe};
use layout::{Layout, Ports};
use mountpoint::Mountpoint;

/// How long one server may take to begin serving before the demo gives up on it.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// How long servers of an earlier demo, which was killed, may take to go.
const REMNANT_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may take to stop in order before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a mount may stay in use at the end before it is detached from under its users.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);
/// How often processes are looked at.
const TICK: Duration = Duration::from_millis(50);
/// A server that dies more often than this within [`DEATH_WINDOW`] is not started again.
const DEATHS_MAX: usize = 5;
const DEATH_WINDOW: Duration = Duration::from_secs(120);

pub const CHUNKSERVERS_MAX: u8 = 32;
pub const GOAL_MAX: u8 = 9;

/// A whole Mooring on this machine: master, metalogger, chunkservers and a mounted file system, for trying it out
#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// Folder for everything: configuration, logs, data, and the mount point
    #[arg(long, default_value = "mooring-demo")]
    pub dir: PathBuf,
    /// Chunkservers to start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(CHUNKSERVERS_MAX)))]
    pub chunkservers: u8,
    /// Copies of every file [default: 2 at the first start, later what it was]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=i64::from(GOAL_MAX)))]
    pub goal: Option<u8>,
    /// Where the file system is mounted [default: DIR/mnt]
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// How input and output is done: auto, uring or epoll
    #[arg(long, default_value = "auto", value_parser = ["auto", "uring", "epoll"])]
    pub driver: String,
    /// Seconds before a chunkserver that died is started again
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub restart_after: u64,
}

/// Run the demo until Ctrl-C, SIGTERM or a failure. Returns the exit status.
pub fn run(arguments: &Arguments) -> ExitCode {
    match demo(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            eprintln!("mooring demo: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<(), String> {
    let began = Instant::now();
    let (wish_sender, wishes) = mpsc::channel();
    signals::listen(true, move |wish| {
        let _ = wish_sender.send(wish);
    })
    .map_err(|error| format!("can't listen for signals: {error}"))?;

    mountpoint::check_fuse()?;
    let layout = Layout::new(&arguments.dir, arguments.mount.as_deref(), arguments.chunkservers)?;
    let _lock = lock(&layout)?;
    let mountpoint = Mountpoint::new(&layout.mount);
    clear_remnants(&layout, &mountpoint)?;
    let (ports, _reservation) = choose_ports(arguments.chunkservers)?;
    write_files(&layout, ports, &arguments.driver)?;

    let mut cluster = Cluster::new(&layout, &mountpoint, ports)?;
    let kept = kept_goal(&layout);
    let wanted = arguments.goal.or(if kept.is_none() { Some(arguments.chunkservers.min(2)) } else { None });
    let outcome =
        cluster.start(&wishes, wanted).and_then(|()| wanted.map_or(Ok(()), |copies| keep_goal(&layout, copies)));
    if let Err(sentence) = outcome {
        cluster.stop(&wishes);
        return if sentence.is_empty() { Ok(()) } else { Err(sentence) };
    }
    print!("{}", cluster.summary(wanted.or(kept).unwrap_or(1), began.elapsed()));
    let result = cluster.watch(&wishes, Duration::from_secs(arguments.restart_after));
    cluster.stop(&wishes);
    result
}

/// One demo per folder. The lock goes with the process.
fn lock(layout: &Layout) -> Result<File, String> {
    let path = layout.lock_file();
    let file = File::options().write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|error| format!("can't create {}: {error}", path.display()))?;
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => {
            let pid = process::owner(&path).ok().flatten().map_or(0, |pid| pid.as_raw_nonzero().get());
            Err(format!(
                "another demo (process {pid}) is running in {} - stop it with Ctrl-C or `kill {pid}`, or use another --dir",
                layout.dir.display()
            ))
        }
        Err(error) => Err(format!("can't lock {}: {error}", path.display())),
    }
}

/// Wait for servers of a killed demo to end, and take away a mount that it left behind.
fn clear_remnants(layout: &Layout, mountpoint: &Mountpoint) -> Result<(), String> {
    let began = Instant::now();
    let mut told = false;
    loop {
        let mut running = Vec::new();
        for lock_path in layout.server_locks() {
            running.extend(process::owner(&lock_path)?);
        }
        if running.is_empty() {
            break;
        }
        if !told {
            println!("Waiting for the servers of an earlier demo to stop ...");
            told = true;
        }
        if began.elapsed() > REMNANT_TIMEOUT {
            let pids: Vec<String> = running.iter().map(|pid| pid.as_raw_nonzero().to_string()).collect();
            return Err(format!(
                "servers of an earlier demo are still running: stop them with `kill {}`",
                pids.join(" ")
            ));
        }
        std::thread::sleep(TICK);
    }
    mountpoint.clear()
}

/// The usual ports if nobody has them, else others, with a word about it. Two demos that start at the same moment
/// would both find them free, so a demo also holds a name on this machine for as long as it uses them.
fn choose_ports(chunkservers: u8) -> Result<(Ports, UnixListener), String> {
    let reserve = |ports: Ports| {
        let name = SocketAddr::from_abstract_name(format!("mooring-demo-{}", ports.base)).ok()?;
        UnixListener::bind_addr(&name).ok()
    };
    let is_free = |address| TcpListener::bind(address).is_ok();
    let (ports, reservation) = Ports::choose(chunkservers, reserve, is_free)
        .ok_or("no free ports on 127.0.0.1 - something listens on all that were tried, from 9419 on")?;
    if ports != Ports::usual() {
        println!("Ports 9419 to 9422 are taken on this machine: using {} to {} instead.", ports.base, ports.base + 3);
    }
    Ok((ports, reservation))
}

/// The number of copies that an earlier start has set at the master.
fn kept_goal(layout: &Layout) -> Option<u8> {
    fs::read_to_string(layout.goal_file()).ok()?.trim().parse().ok()
}

fn keep_goal(layout: &Layout, copies: u8) -> Result<(), String> {
    let path = layout.goal_file();
    fs::write(&path, format!("{copies}\n")).map_err(|error| format!("can't write {}: {error}", path.display()))
}

/// Folders, configuration files, and at the first start the seed of a file system.
fn write_files(layout: &Layout, ports: Ports, driver: &str) -> Result<(), String> {
    let fail = |path: &Path, error: io::Error| format!("can't write {}: {error}", path.display());
    for folder in layout.folders() {
        fs::create_dir_all(&folder).map_err(|error| fail(&folder, error))?;
    }
    let as_root = rustix::process::geteuid().is_root();
    for (path, text) in layout.configuration(ports, driver, as_root) {
        fs::write(&path, text).map_err(|error| fail(&path, error))?;
    }
    let master = layout.master_data();
    let mut names = fs::read_dir(&master)
        .map_err(|error| fail(&master, error))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    if !names.any(|name| name.starts_with("metadata") || name.starts_with("changelog")) {
        let seed = master.join("metadata.mfs");
        fs::write(&seed, crate::data_folder::NEW).map_err(|error| fail(&seed, error))?;
    }
    Ok(())
}

/// The processes, in the order in which they are started.
struct Cluster<'a> {
    layout: &'a Layout,
    mountpoint: &'a Mountpoint,
    ports: Ports,
    master: Child,
    metalogger: Child,
    chunkservers: Vec<Child>,
    mount: Child,
}

impl<'a> Cluster<'a> {
    fn new(layout: &'a Layout, mountpoint: &'a Mountpoint, ports: Ports) -> Result<Cluster<'a>, String> {
        let program =
            std::env::current_exe().map_err(|error| format!("can't find this program's own file: {error}"))?;
        let server = |name: String, subcommand: &str, config: PathBuf| {
            let words = [subcommand.into(), "-c".into(), config.into(), "-f".into(), "--announce-ready".into()];
            Child::new(Recipe { program: program.clone(), arguments: words.into(), log: layout.log(&name), name })
        };
        let mut mount_words: Vec<OsString> =
            ["mount".into(), "-c".into(), layout.mount_config().into(), "-f".into(), "--announce-ready".into()].into();
        if !rustix::process::geteuid().is_root() {
            // Without allow_other, which an ordinary user has to be granted in /etc/fuse.conf.
            mount_words.push("-n".into());
        }
        mount_words.push(layout.mount.clone().into());
        Ok(Cluster {
            layout,
            mountpoint,
            ports,
            master: server("master".into(), "master", layout.master_config()),
            metalogger: server("metalogger".into(), "metalogger", layout.metalogger_config()),
            chunkservers: (1..=layout.chunkservers)
                .map(|number| server(format!("chunkserver-{number}"), "chunkserver", layout.chunkserver_config(number)))
                .collect(),
            mount: Child::new(Recipe {
                program,
                arguments: mount_words,
                log: layout.log("mount"),
                name: "mount".into(),
            }),
        })
    }

    /// Start everything; each server serves when this returns, and new files get `copies` copies.
    /// An empty error: the user pressed Ctrl-C meanwhile.
    fn start(&mut self, wishes: &Receiver<Wish>, copies: Option<u8>) -> Result<(), String> {
        self.master.start()?;
        until(wishes, "the master", || self.master.is_ready())?;
        self.metalogger.start()?;
        for chunkserver in &mut self.chunkservers {
            chunkserver.start()?;
        }
        self.mount.start()?;
        for chunkserver in &mut self.chunkservers {
            let name = chunkserver.name().to_owned();
            until(wishes, &name, || chunkserver.is_ready())?;
        }
        until(wishes, "the metalogger", || self.metalogger.is_ready())?;
        until(wishes, "the mount", || self.mount.is_ready())?;
        if !settle::settle(self.ports.clients(), &self.layout.disks(), copies)? {
            println!("Not every chunkserver has registered with the master yet; their logs may tell why.");
        }
        Ok(())
    }

    /// Look after the processes until the user wants an end, or one is lost for good.
    fn watch(&mut self, wishes: &Receiver<Wish>, restart_after: Duration) -> Result<(), String> {
        loop {
            match wishes.recv_timeout(TICK * 4) {
                Ok(Wish::Stop) => {
                    println!("\nStopping ...");
                    return Ok(());
                }
                Ok(Wish::Reload | Wish::Info) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err("signals are not heard any more".into()),
            }
            for chunkserver in &mut self.chunkservers {
                chunkserver.revive(restart_after, || Ok(()))?;
            }
            self.master.revive(Duration::from_secs(1), || Ok(()))?;
            self.metalogger.revive(Duration::from_secs(1), || Ok(()))?;
            let mountpoint = self.mountpoint;
            self.mount.revive(Duration::from_secs(1), || mountpoint.clear())?;
        }
    }

    /// Unmount, stop the chunkservers, the master, the metalogger. Tells what does not go well; goes on with the rest.
    fn stop(&mut self, wishes: &Receiver<Wish>) {
        self.unmount(wishes);
        for chunkserver in &mut self.chunkservers {
            chunkserver.ask_to_stop();
        }
        for chunkserver in &mut self.chunkservers {
            chunkserver.wait_or_kill(STOP_TIMEOUT);
        }
        self.master.ask_to_stop();
        self.master.wait_or_kill(STOP_TIMEOUT);
        // Last, so that it has every change of the master.
        self.metalogger.ask_to_stop();
        self.metalogger.wait_or_kill(STOP_TIMEOUT);
        println!("Stopped. The files are kept in {}; the same command brings them back.", self.layout.dir.display());
    }

    fn unmount(&mut self, wishes: &Receiver<Wish>) {
        let began = Instant::now();
        let mut told = false;
        while self.mountpoint.is_mounted() {
            if self.mountpoint.unmount().is_ok() {
                continue;
            }
            if !told {
                println!(
                    "{} is in use: leave it within {} s, or press Ctrl-C again to detach it now.",
                    self.layout.mount.display(),
                    BUSY_TIMEOUT.as_secs()
                );
                told = true;
            }
            let impatient = wishes.recv_timeout(TICK * 4) == Ok(Wish::Stop);
            if impatient || began.elapsed() > BUSY_TIMEOUT {
                if let Err(sentence) = self.mountpoint.detach() {
                    println!("{sentence}");
                }
                self.mount.ask_to_stop();
                break;
            }
        }
        // The mount's process ends by itself once it has written out what it held.
        self.mount.wait_or_kill(STOP_TIMEOUT);
    }

    fn summary(&self, copies: u8, took: Duration) -> String {
        let mount = self.layout.mount.display();
        let copies = if copies == 1 { "one copy".into() } else { format!("{copies} copies") };
        let servers: Vec<String> =
            (1..=self.layout.chunkservers).map(|number| self.ports.data(number).to_string()).collect();
        let victim = self.chunkservers.first().and_then(Child::pid).unwrap_or(0);
        format!(
            "\
Mooring runs (ready after {:.1} s): {} chunkservers, {copies} of every new file.

  files          {mount}
  master         {}   (a stock mfsmount finds it there too)
  metalogger     {}
  chunkservers   {}
  configuration  {}
  logs           {}

Try, in another terminal:
  cp -a /usr/include {mount}/ && diff -r /usr/include {mount}/include && echo equal
  df -h {mount}
  kill -9 {victim}      # chunkserver-1: files stay readable, lost copies are made again

Ctrl-C unmounts and stops everything; the files stay.
",
            took.as_secs_f64(),
            self.layout.chunkservers,
            self.ports.clients(),
            self.layout.metalogger_data().display(),
            servers.join(" "),
            self.layout.etc().display(),
            self.layout.logs().display(),
        )
    }
}

/// Wait until `is_done`. Errors: it says so, it takes longer than [`READY_TIMEOUT`], or (empty) Ctrl-C.
fn until(wishes: &Receiver<Wish>, what: &str, mut is_done: impl FnMut() -> Result<bool, String>) -> Result<(), String> {
    let began = Instant::now();
    while !is_done()? {
        if began.elapsed() > READY_TIMEOUT {
            return Err(format!("{what} did not get ready within {} s", READY_TIMEOUT.as_secs()));
        }
        if wishes.recv_timeout(TICK) == Ok(Wish::Stop) {
            return Err(String::new());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        demo: Arguments,
    }

    fn parse(words: &[&str]) -> Option<Arguments> {
        Line::try_parse_from(std::iter::once("demo").chain(words.iter().copied())).ok().map(|line| line.demo)
    }

    #[test]
    fn the_defaults_are_three_chunkservers_in_a_folder_here() {
        let arguments = parse(&[]).expect("no argument is required");
        assert_eq!(arguments.dir, Path::new("mooring-demo"));
        assert_eq!((arguments.chunkservers, arguments.goal, arguments.driver.as_str()), (3, None, "auto"));
    }

    #[test]
    fn numbers_and_names_outside_the_possible_are_refused() {
        for words in [
            ["--chunkservers", "0"],
            ["--chunkservers", "33"],
            ["--goal", "0"],
            ["--goal", "10"],
            ["--driver", "threads"],
            ["--restart-after", "-1"],
        ] {
            assert!(parse(&words).is_none(), "{words:?}");
        }
        assert!(parse(&["--chunkservers", "32", "--goal", "9", "--driver", "epoll"]).is_some());
    }
}
