//! A master of one kind: its folder and settings, its process, its use of the machine.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mooring_tests::cluster::{Kind, MATOCL_PORT, MATOCS_PORT, MATOML_PORT};
use mooring_tests::daemon::Daemon;
use mooring_tests::namespace::MASTER;
use mooring_tests::wait::comes_true;

use crate::subject::{Description, status_bytes};

const PATIENCE: Duration = Duration::from_secs(120);
const STOCK_BINARY: &str = "/usr/sbin/mfsmaster";

/// A master that runs.
pub struct Subject {
    pub description: Description,
    folder: PathBuf,
    ip: Ipv4Addr,
    daemon: Daemon,
}

impl Subject {
    /// Starts an empty master in a new folder under `root`; `number` gives it an address of its own.
    pub fn start(description: &Description, number: u8, root: &Path) -> Result<Subject, String> {
        let folder = root.join(format!("master{number}"));
        let [a, b, c, first] = MASTER.octets();
        let ip = Ipv4Addr::new(a, b, c, first + number);
        let data = folder.join("data");
        std::fs::remove_dir_all(&folder).ok();
        let text = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {data}\nEXPORTS_FILENAME = {folder}/mfsexports.cfg\n\
             TOPOLOGY_FILENAME = {folder}/mfstopology.cfg\nMATOML_LISTEN_HOST = {ip}\nMATOML_LISTEN_PORT = {MATOML_PORT}\n\
             MATOCS_LISTEN_HOST = {ip}\nMATOCS_LISTEN_PORT = {MATOCS_PORT}\nMATOCL_LISTEN_HOST = {ip}\n\
             MATOCL_LISTEN_PORT = {MATOCL_PORT}\nOPERATIONS_DELAY_INIT = 1\nNICE_LEVEL = 0\nLOCK_MEMORY = 0\n{lines}\n",
            data = data.display(),
            folder = folder.display(),
            lines = description.lines,
        );
        std::fs::create_dir_all(&data)
            .and_then(|()| std::fs::write(data.join("metadata.mfs"), "MFSM NEW"))
            .and_then(|()| std::fs::write(folder.join("mfsexports.cfg"), "*  / rw,alldirs,admin,maproot=0:0\n"))
            .and_then(|()| std::fs::write(folder.join("mfstopology.cfg"), ""))
            .and_then(|()| std::fs::write(folder.join("mfsmaster.cfg"), text))
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let daemon = spawn(description, &folder)?;
        let mut subject = Subject { description: description.clone(), folder, ip, daemon };
        subject.wait_until_ready()?;
        Ok(subject)
    }

    /// Stops it in order and starts it again. Returns the seconds of each.
    pub fn restart(&mut self) -> Result<(f64, f64), String> {
        let begun = std::time::Instant::now();
        self.daemon.terminate(PATIENCE);
        let stopped = begun.elapsed().as_secs_f64();
        let begun = std::time::Instant::now();
        self.daemon = spawn(&self.description, &self.folder)?;
        self.wait_until_ready()?;
        Ok((stopped, begun.elapsed().as_secs_f64()))
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let listens = |daemon: &Daemon, ip| {
            daemon.tcp_table().iter().any(|row| row.listening && row.local == SocketAddrV4::new(ip, MATOCL_PORT))
        };
        let ready = comes_true(PATIENCE, || listens(&self.daemon, self.ip) || self.daemon.ended().is_some());
        if !ready || self.daemon.ended().is_some() {
            return Err(format!("{} does not serve; its log: {}", self.description.name, self.daemon.log_text()));
        }
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// Where mounts connect to.
    pub fn address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, MATOCL_PORT)
    }

    /// Where chunkservers connect to.
    pub fn chunkservers_address(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, MATOCS_PORT)
    }

    pub fn cpu_seconds(&self) -> f64 {
        self.daemon.cpu_seconds()
    }

    /// Resident now.
    pub fn memory_bytes(&self) -> u64 {
        status_bytes(self.daemon.pid(), "VmRSS:")
    }
}

fn spawn(description: &Description, folder: &Path) -> Result<Daemon, String> {
    let configuration = folder.join("mfsmaster.cfg");
    let mut command = Command::new("setpriv"); // so that the kernel ends it with us
    command.args(["--pdeathsig", "KILL"]);
    match description.kind {
        Kind::Stock => command.arg(STOCK_BINARY).arg("-f").arg("-c").arg(&configuration).arg("start"),
        Kind::Mooring => command.arg(description.our_binary()?).arg("master").arg("-c").arg(&configuration).arg("-f"),
    };
    Ok(Daemon::start(&description.name, command, &folder.join("log")))
}
