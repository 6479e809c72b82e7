//! The chunkservers of one kind: starting and stopping them, their chunk files, their use of the machine.

use std::fs::File;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mooring_tests::cluster::{CSSERV_PORT, Kind, MATOCS_PORT};
use mooring_tests::copies;
use mooring_tests::daemon::Daemon;
use mooring_tests::master::Master;
use mooring_tests::namespace::{MASTER, chunkserver_address};
use mooring_tests::wait::comes_true;

use crate::job::CHAIN_MAX;

/// How long a server may take to start, register or end.
const PATIENCE: Duration = Duration::from_secs(60);
const STOCK_BINARY: &str = "/usr/sbin/mfschunkserver";

/// What is measured: `NAME=KIND[;LINE;LINE...]` on the command line, KIND being `stock`, `mooring` or `mooring@BINARY`,
/// another build of ours, and the lines being added to its configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub kind: Kind,
    /// The `mooring` to start, if not the one beside this program.
    binary: Option<PathBuf>,
    pub lines: String,
}

impl std::str::FromStr for Description {
    type Err = String;

    fn from_str(text: &str) -> Result<Description, String> {
        let wrong = || {
            format!(
                "subject {text:?}: must be NAME=stock, NAME=mooring or NAME=mooring@BINARY, with ;LINE behind for its file"
            )
        };
        let (name, rest) = text.split_once('=').ok_or_else(wrong)?;
        let (kind, lines) = rest.split_once(';').unwrap_or((rest, ""));
        let (kind, binary) = match kind.split_once('@') {
            Some(("mooring", binary)) if !binary.is_empty() => (Kind::Mooring, Some(PathBuf::from(binary))),
            None if kind == "stock" => (Kind::Stock, None),
            None if kind == "mooring" => (Kind::Mooring, None),
            _ => return Err(wrong()),
        };
        Ok(Description { name: name.to_owned(), kind, binary, lines: lines.replace(';', "\n") })
    }
}

impl Description {
    /// The `mooring` to start. Errors: it is not there.
    pub fn our_binary(&self) -> Result<PathBuf, String> {
        match &self.binary {
            // Whole, or it would be looked for in PATH.
            Some(path) => path.canonicalize().map_err(|_| format!("{}: not there", path.display())),
            None => our_binary(),
        }
    }
}

/// As many chunkservers as the longest chain has, all of one kind.
pub struct Subject {
    pub description: Description,
    servers: Vec<Server>,
    /// The largest memory of the first server until its last stop.
    peak_bytes: u64,
}

struct Server {
    address: SocketAddrV4,
    folder: PathBuf,
    daemon: Option<Daemon>,
}

impl Subject {
    /// Prepares the folders of subject number `number` under `root`.
    pub fn new(description: Description, number: usize, root: &Path) -> Result<Subject, String> {
        let mut servers = Vec::new();
        for index in 0..CHAIN_MAX {
            let folder = root.join(format!("subject{number}-{index}"));
            for part in ["var", "hdd"] {
                std::fs::create_dir_all(folder.join(part)).map_err(|error| format!("{}: {error}", folder.display()))?;
            }
            let address = SocketAddrV4::new(chunkserver_address(number * CHAIN_MAX + index), CSSERV_PORT);
            servers.push(Server { address, folder, daemon: None });
        }
        Ok(Subject { description, servers, peak_bytes: 0 })
    }

    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// The servers in the order of the chain.
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        self.servers.iter().map(|server| server.address).collect()
    }

    /// Starts what does not run, and waits until the master has all of them.
    pub fn start(&mut self, master: &Master) -> Result<(), String> {
        for server in &mut self.servers {
            if server.daemon.is_none() {
                server.start(&self.description)?;
            }
        }
        for server in &mut self.servers {
            let address = server.address;
            let daemon = server.daemon.as_mut().expect("just started");
            let registered = comes_true(PATIENCE, || master.has(*address.ip()) || daemon.ended().is_some());
            if !registered || daemon.ended().is_some() {
                return Err(format!("{} at {address} did not register; its log: {}", daemon.name(), daemon.log_text()));
            }
        }
        Ok(())
    }

    /// Stops all, so that nothing is left in any of their caches.
    pub fn stop(&mut self, master: &Master) {
        self.peak_bytes = self.peak_memory_bytes();
        for server in &mut self.servers {
            if let Some(mut daemon) = server.daemon.take() {
                daemon.terminate(PATIENCE);
            }
            comes_true(PATIENCE, || !master.has(*server.address.ip()));
        }
    }

    /// CPU seconds of all servers.
    pub fn cpu_seconds(&self) -> f64 {
        self.servers.iter().flat_map(|server| &server.daemon).map(Daemon::cpu_seconds).sum()
    }

    /// Resident memory of the first server now.
    pub fn memory_bytes(&self) -> u64 {
        self.servers[0].daemon.as_ref().map_or(0, |daemon| status_bytes(daemon.pid(), "VmRSS:"))
    }

    /// The most that the first server has ever had.
    pub fn peak_memory_bytes(&self) -> u64 {
        let now = self.servers[0].daemon.as_ref().map_or(0, |daemon| status_bytes(daemon.pid(), "VmHWM:"));
        self.peak_bytes.max(now)
    }

    /// Waits until the devices have every chunk file; how many seconds that took.
    pub fn flush(&self) -> Result<f64, String> {
        let start = Instant::now();
        self.each_file(|file| file.sync_data())?;
        Ok(start.elapsed().as_secs_f64())
    }

    /// Takes every chunk file out of the system's cache.
    pub fn evict(&self) -> Result<(), String> {
        self.each_file(evict)
    }

    fn each_file(&self, act: impl Fn(&File) -> std::io::Result<()>) -> Result<(), String> {
        let folders: Vec<PathBuf> = self.servers.iter().map(|server| server.folder.join("hdd")).collect();
        let chunks = copies::scan(folders.iter().map(PathBuf::as_path).enumerate());
        for copy in chunks.into_values().flatten() {
            let done = File::options().read(true).write(true).open(&copy.path).and_then(|file| act(&file));
            done.map_err(|error| format!("{}: {error}", copy.path.display()))?;
        }
        Ok(())
    }
}

/// Takes a file out of the system's cache, what is dirty of it first being written.
pub fn evict(file: &File) -> std::io::Result<()> {
    file.sync_data()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

impl Server {
    fn start(&mut self, description: &Description) -> Result<(), String> {
        let Server { address, folder, .. } = &*self;
        let configuration = folder.join("mfschunkserver.cfg");
        let text = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {folder}/var\nHDD_CONF_FILENAME = {folder}/mfshdd.cfg\n\
             MASTER_HOST = {MASTER}\nMASTER_PORT = {MATOCS_PORT}\nMASTER_RECONNECTION_DELAY = 1\nBIND_HOST = {ip}\n\
             CSSERV_LISTEN_HOST = {ip}\nCSSERV_LISTEN_PORT = {port}\nHDD_LEAVE_SPACE_DEFAULT = 100MiB\n\
             HDD_TEST_SPEED = 0\nNICE_LEVEL = 0\n{lines}\n",
            folder = folder.display(),
            ip = address.ip(),
            port = address.port(),
            lines = description.lines,
        );
        let disks = format!("{}\n", folder.join("hdd").display());
        std::fs::write(&configuration, text)
            .and_then(|()| std::fs::write(folder.join("mfshdd.cfg"), disks))
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let mut command = Command::new("setpriv"); // so that the kernel ends it with us
        command.args(["--pdeathsig", "KILL"]);
        match description.kind {
            Kind::Stock => command.arg(STOCK_BINARY).arg("-f").arg("-c").arg(&configuration).arg("start"),
            Kind::Mooring => {
                command.arg(description.our_binary()?).arg("chunkserver").arg("-c").arg(&configuration).arg("-f")
            }
        };
        self.daemon = Some(Daemon::start(&description.name, command, &folder.join("log")));
        Ok(())
    }
}

/// `MOORING_BIN`, or the binary beside this one.
fn our_binary() -> Result<PathBuf, String> {
    let given = std::env::var_os("MOORING_BIN").map(PathBuf::from);
    let path = match given {
        Some(path) => path,
        None => std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("mooring"),
    };
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{}: not there; cargo build --release -p mooring", path.display()))
    }
}

/// A line of /proc/PID/status that is in kB, in bytes; 0 if it is not there.
pub fn status_bytes(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    value.and_then(|value| value.split_whitespace().next()).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0)
        * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_described_in_one_word() {
        let described = "direct=mooring;HDD_IO_MODE = direct;WORKERS_MAX = 9".parse();
        let lines = "HDD_IO_MODE = direct\nWORKERS_MAX = 9".to_owned();
        let expected = Description { name: "direct".into(), kind: Kind::Mooring, binary: None, lines };
        assert_eq!(described, Ok(expected));
        let other = "before=mooring@/old/mooring".parse::<Description>().expect("a build may be named");
        assert_eq!(other.our_binary(), Err("/old/mooring: not there".to_owned()));
        assert!("mooring".parse::<Description>().is_err());
        assert!("a=lizard".parse::<Description>().is_err());
    }

    #[test]
    fn a_process_has_memory() {
        assert!(status_bytes(std::process::id(), "VmRSS:") > 1 << 16);
        assert_eq!(status_bytes(std::process::id(), "VmNothing:"), 0);
    }
}
