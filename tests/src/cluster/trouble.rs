//! What befalls several parts of a cluster at once: links, kills, processes that stand still, mounts that die.

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::{Cluster, Mount, PATIENCE, Role, effective, is_mounted, still_runs, umount};
use crate::chunkfile;
use crate::copies;
use crate::daemon::{Daemon, signal};
use crate::disk::{Cut, Disk, Loss};
use crate::namespace::{MASTER, chunkserver_address};
use crate::wait::wait_until;

impl Cluster {
    /// The links of these chunkservers lose everything, until [`Cluster::heal_links`].
    pub fn cut_links(&self, servers: &[usize]) {
        let addresses: Vec<_> = servers.iter().map(|server| chunkserver_address(*server)).collect();
        self.namespace.cut(&addresses);
    }

    pub fn heal_links(&self) {
        self.namespace.heal();
    }

    /// SIGSTOP or SIGCONT to these chunkservers, with one call of `kill`.
    pub fn signal_chunkservers(&self, servers: &[usize], name: &str) {
        let pids: Vec<String> = servers
            .iter()
            .filter_map(|server| self.chunkservers[*server].as_ref())
            .map(|d| d.pid().to_string())
            .collect();
        Command::new("kill").arg(format!("-{name}")).args(&pids).status().expect("the program `kill` runs");
    }

    /// `kill -9` of these chunkservers, with one call of `kill`.
    pub fn kill_chunkservers(&mut self, servers: &[usize]) {
        self.signal_chunkservers(servers, "KILL");
        for server in servers {
            if self.chunkservers[*server].is_some() {
                self.kill_chunkserver(*server);
            }
        }
    }

    /// Start chunkserver `index` if it does not run, and wait for nothing.
    pub fn revive_chunkserver(&mut self, index: usize) {
        if self.chunkservers[index].is_none() {
            self.spawn_chunkserver(index);
        }
    }

    pub fn master_runs(&self) -> bool {
        self.master.is_some()
    }

    /// Wait until every chunkserver is connected to the master. All must have been started.
    pub fn wait_all_connected(&mut self) {
        for index in 0..self.chunkservers.len() {
            self.wait_connected(index);
        }
    }

    /// `kill -9` of a mount. Its mount point is free at once; [`Cluster::revive_mount`] mounts there again.
    pub fn kill_mount(&mut self, index: usize) {
        let mount = &mut self.mounts[index];
        signal(mount.daemon.pid(), "KILL");
        umount(&mount.path, true);
        mount.daemon.kill();
        self.watchdog.forget(mount.daemon.pid());
    }

    /// Mount again where the mount `index` was killed, with what it was mounted with. The master must run.
    pub fn revive_mount(&mut self, index: usize) {
        let Mount { path, kind, more, .. } = &self.mounts[index];
        let command = self.mount_command(*kind, path, more);
        let path = path.clone();
        let mut daemon = self.spawn(&format!("mount{index}"), command);
        self.watchdog.watch(daemon.pid());
        wait_until("the mount to appear again", PATIENCE, || {
            still_runs(&mut daemon);
            is_mounted(&path)
        });
        self.mounts[index].daemon = daemon;
    }

    pub(super) fn mount_command(&self, kind: super::Kind, path: &std::path::Path, more: &[String]) -> Command {
        let mut command = match effective(kind, Role::Mount) {
            super::Kind::Stock => self.namespace.command("/usr/bin/mfsmount"),
            super::Kind::Mooring => self.ours("mount"),
        };
        command.arg(path).args(["-H", &MASTER.to_string(), "-P", &super::MATOCL_PORT.to_string(), "-f"]).args(more);
        command
    }

    /// From now on chunkserver `index` keeps everything on a disk of its own whose power can be cut. It starts empty.
    pub fn give_disk(&mut self, index: usize, bytes: u64, seed: u64) -> io::Result<()> {
        self.stop_chunkserver(index);
        let folder = self.chunkserver_folder(index);
        let disk = Disk::new(&folder, bytes, seed)?;
        for path in [folder.join("var"), self.data_folder(index)] {
            std::fs::create_dir_all(path)?;
        }
        self.disks.insert(folder, disk);
        self.start_chunkserver(index);
        Ok(())
    }

    /// From now on the master keeps its files on a disk of its own whose power can be cut.
    pub fn give_master_disk(&mut self, bytes: u64, seed: u64) -> io::Result<()> {
        self.stop_master();
        let (folder, aside) = (self.master_data(), self.folder.join("master-aside"));
        std::fs::rename(&folder, &aside)?;
        std::fs::create_dir_all(&folder)?;
        let disk = Disk::new(&folder, bytes, seed)?;
        for entry in std::fs::read_dir(&aside)? {
            let entry = entry?;
            std::fs::copy(entry.path(), folder.join(entry.file_name()))?;
            std::fs::File::open(folder.join(entry.file_name()))?.sync_all()?;
        }
        std::fs::File::open(&folder)?.sync_all()?;
        self.disks.insert(folder, disk);
        self.start_master();
        Ok(())
    }

    /// The power of these chunkservers, and of the master if `with_master`, fails at the same time, and is back: they
    /// can be started again. All must have disks of their own.
    pub fn cut_power(&mut self, servers: &[usize], with_master: bool, loss: Loss) -> io::Result<Cut> {
        let mut folders: Vec<PathBuf> = servers.iter().map(|server| self.chunkserver_folder(*server)).collect();
        // Nobody sees a disk fail: everything stands still at the same moment.
        self.signal_chunkservers(servers, "STOP");
        if with_master {
            signal(self.master().pid(), "STOP");
            folders.push(self.master_data());
        }
        let mut sum = Cut::default();
        for folder in &folders {
            let cut = self.disks.get_mut(folder).expect("it was given a disk").cut(loss);
            sum.unflushed += cut.unflushed;
            sum.forgotten += cut.forgotten;
            sum.flushes += cut.flushes;
        }
        self.kill_chunkservers(servers);
        if with_master {
            self.kill_master();
        }
        for folder in &folders {
            self.disks.get_mut(folder).expect("it was given a disk").restore()?;
        }
        Ok(sum)
    }

    /// Waits until every chunk has as many copies as `goal`, and compares them: without writers all are equal. The
    /// cluster is stopped after that.
    ///
    /// Errors: which copies differ, or do not fit their sums.
    pub fn compare_copies(&mut self, goal: usize, limit: Duration) -> Result<usize, String> {
        self.wait_for_copies("copies of everything", limit, |copies| copies >= goal);
        for server in 0..self.chunkservers.len() {
            self.stop_chunkserver(server);
        }
        let folders: Vec<(usize, PathBuf)> =
            (0..self.chunkservers.len()).map(|index| (index, self.data_folder(index))).collect();
        let chunks = copies::scan(folders.iter().map(|(index, folder)| (*index, folder.as_path())));
        let mut wrong = Vec::new();
        for (chunk, copies) in &chunks {
            let newest = copies.iter().map(|copy| copy.version).max().unwrap_or(0);
            let copies: Vec<_> = copies.iter().filter(|copy| copy.version == newest).collect();
            let contents: Vec<Result<Vec<u8>, String>> =
                copies.iter().map(|copy| chunkfile::content(&copy.path)).collect();
            let first = contents.first();
            if contents.iter().any(|content| content.is_err() || Some(content) != first) {
                let said = copies.iter().zip(&contents).map(|(copy, content)| match content {
                    Ok(bytes) => format!("{}: {} bytes", copy.path.display(), bytes.len()),
                    Err(why) => format!("{}: {why}", copy.path.display()),
                });
                wrong.push(format!("chunk {chunk:016X}: {}", said.collect::<Vec<_>>().join(", ")));
            }
        }
        if wrong.is_empty() { Ok(chunks.len()) } else { Err(format!("copies differ: {}", wrong.join("\n"))) }
    }

    /// What the cluster itself says about a file that is in trouble: `why` and `mfsfileinfo`.
    pub fn explain(&self, path: &std::path::Path) -> String {
        let mut said = String::new();
        let commands = [(self.ours("why"), "why"), (self.command("mfsfileinfo"), "mfsfileinfo")];
        for (mut command, name) in commands {
            let output = command.arg(path).output();
            let text = output.map(|output| {
                let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                format!("{out}{errors}")
            });
            said.push_str(&format!("{name}: {}\n", text.unwrap_or_else(|error| error.to_string())));
        }
        said
    }

    /// Whether a process that should run has ended by itself: its name and the end of its log.
    pub fn ended_by_itself(&mut self) -> Option<String> {
        let daemons = self.chunkservers.iter_mut().flatten().chain(&mut self.master);
        let ended = |daemon: &mut Daemon| daemon.ended().is_some();
        let daemon = daemons.into_iter().find_map(|daemon| ended(daemon).then_some(&*daemon))?;
        let log = daemon.log_text();
        let lines: Vec<&str> = log.lines().collect();
        Some(format!("{}: {}", daemon.name(), lines[lines.len().saturating_sub(8)..].join("\n")))
    }
}
