//! One child process: a master, a chunkserver, a mount. Its output goes to a log file; dropping it kills it.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::need::say_loudly;
use crate::wait::comes_true;

/// How long a killed child may take to end.
const KILLED_LIMIT: Duration = Duration::from_secs(30);

/// A running (or ended) child.
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

/// One row of a network namespace's TCP table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpRow {
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    pub listening: bool,
    pub established: bool,
    pub inode: u64,
}

impl Daemon {
    /// Start `command` with its output appended to `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Daemon {
        let output = OpenOptions::new().create(true).append(true).open(log).expect("the log file can be written");
        let errors: File = output.try_clone().expect("a file descriptor is free");
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Daemon { name: name.to_owned(), child, log: log.to_owned() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id: the starters in front of it replace themselves, they do not fork.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All that it has written to stdout and stderr until now, over all its starts.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// `kill -9`, and the end.
    ///
    /// A mount one of whose threads asks that mount itself cannot end before it is unmounted; it is left to that.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        if !comes_true(KILLED_LIMIT, || !matches!(self.child.try_wait(), Ok(None))) {
            say_loudly(&format!("{} did not end within {} s of kill -9", self.name, KILLED_LIMIT.as_secs()));
        }
    }

    /// Ask it to end (SIGTERM), and wait. Panics when it has not ended after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> ExitStatus {
        signal(self.pid(), "TERM");
        let start = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(start.elapsed() < limit, "{} ignored SIGTERM for {} s", self.name, limit.as_secs());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Wait for its own end, without asking for it.
    pub fn wait_end(&mut self, limit: Duration) -> bool {
        comes_true(limit, || self.ended().is_some())
    }

    /// CPU seconds that it has used, user and system.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid())
    }

    /// The TCP sockets of its whole network namespace.
    pub fn tcp_table(&self) -> Vec<TcpRow> {
        let text = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.pid())).unwrap_or_default();
        text.lines().skip(1).filter_map(parse_tcp_row).collect()
    }

    /// Whether somebody in its network namespace listens on `port`.
    pub fn listens_on(&self, port: u16) -> bool {
        self.tcp_table().iter().any(|row| row.listening && row.local.port() == port)
    }

    /// The addresses to which this process itself has connections now.
    pub fn connected_to(&self) -> Vec<SocketAddrV4> {
        let inodes = socket_inodes(self.pid());
        let rows = self.tcp_table();
        rows.into_iter().filter(|row| row.established && inodes.contains(&row.inode)).map(|row| row.remote).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Send a signal by name.
pub fn signal(pid: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status().ok();
}

/// CPU seconds of process `pid`, all its threads, user and system; 0 when it is gone.
pub fn cpu_seconds(pid: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0; // USER_HZ, the same on every Linux that we know
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold blanks: count fields behind it. utime and stime are fields 14 and 15 of proc(5).
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0.0 };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

fn socket_inodes(pid: u32) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links
        .filter_map(|link| {
            let text = link.to_string_lossy().into_owned();
            text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
        })
        .collect()
}

/// `  0: 0B4D0A0A:4BDD 00000000:0000 0A ... inode`, addresses in the machine's byte order.
fn parse_tcp_row(line: &str) -> Option<TcpRow> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let address = |text: &str| -> Option<SocketAddrV4> {
        let (ip, port) = text.split_once(':')?;
        let word = u32::from_str_radix(ip, 16).ok()?;
        let ip = Ipv4Addr::from(if cfg!(target_endian = "little") { word.swap_bytes() } else { word });
        Some(SocketAddrV4::new(ip, u16::from_str_radix(port, 16).ok()?))
    };
    Some(TcpRow {
        local: address(fields.get(1)?)?,
        remote: address(fields.get(2)?)?,
        listening: *fields.get(3)? == "0A",
        established: *fields.get(3)? == "01",
        inode: fields.get(9)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_tcp_table_is_understood() {
        let line =
            "   1: 0B004D0A:4BDD 01004D0A:C0FE 01 00000000:00000000 00:00000000 00000000     0        0 4711 1 0";
        let row = parse_tcp_row(line).unwrap();
        assert_eq!(row.local, "10.77.0.11:19421".parse().unwrap());
        assert_eq!(row.remote, "10.77.0.1:49406".parse().unwrap());
        assert!(row.established && !row.listening);
        assert_eq!(row.inode, 4711);
    }

    #[test]
    fn a_process_knows_its_cpu_time() {
        // As much work as it takes: on a busy machine a short while may hold none of ours.
        let start = Instant::now();
        while cpu_seconds(std::process::id()) == 0.0 {
            assert!(start.elapsed() < Duration::from_secs(60), "a minute of work is not seen");
        }
        assert_eq!(cpu_seconds(u32::MAX), 0.0);
    }
}
