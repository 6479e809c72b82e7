//! A cluster of real processes: a master, its chunkservers, its mounts, each of either kind.
//!
//! Everything lives in one folder and one network namespace. A test says which kind plays which role, and may stop,
//! kill, restart and swap them. When a test fails, the ends of all logs are printed and the folder is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::time::Duration;

use crate::copies::{self, Copy};
use crate::daemon::{Daemon, signal};
use crate::disk::Disk;
use crate::namespace::{MASTER, Namespace, chunkserver_address};
use crate::need::{Role, effective, mooring_binary};
use crate::wait::{comes_true, wait_until};

mod trouble;

/// Whose program plays a role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MooseFS's, from /usr/sbin and /usr/bin.
    Stock,
    /// Ours.
    Mooring,
}

/// Which kind plays which role, and what is added to the configuration files.
#[derive(Debug, Clone)]
pub struct Layout {
    pub master: Kind,
    pub chunkservers: Vec<Kind>,
    /// Lines for `mfsmaster.cfg`, behind those that the harness writes: the last one counts.
    pub master_extra: String,
    /// Lines for every `mfschunkserver.cfg`.
    pub chunkserver_extra: String,
    /// `LABELS` of each chunkserver; those behind the end of the list have none.
    pub labels: Vec<String>,
    /// Our programs run under a seccomp filter that forbids io_uring, as containers do. `MOORING_FORBID_IO_URING=1`
    /// has it so in every test.
    pub forbid_io_uring: bool,
    /// Chunkservers whose folder is marked for removal, with a `*` in `mfshdd.cfg`. Spec 60, 10.
    pub marked_for_removal: BTreeSet<usize>,
    pub exports: String,
    /// `TZ` of all processes.
    pub time_zone: Option<&'static str>,
    /// Files that are there before the first start, under the cluster's folder.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    /// After this time every process is killed, so that a hanging read ends with an error and the test fails.
    pub limit: Duration,
}

impl Layout {
    pub fn new(master: Kind, chunkservers: &[Kind]) -> Layout {
        Layout {
            master,
            chunkservers: chunkservers.to_vec(),
            master_extra: String::new(),
            chunkserver_extra: String::new(),
            labels: Vec::new(),
            forbid_io_uring: std::env::var("MOORING_FORBID_IO_URING").as_deref() == Ok("1"),
            marked_for_removal: BTreeSet::new(),
            exports: "*  / rw,alldirs,admin,maproot=0:0\n*  . rw\n".into(),
            time_zone: None,
            files: BTreeMap::new(),
            limit: Duration::from_secs(300),
        }
    }

    /// Our programs in every role.
    pub fn ours(chunkservers: usize) -> Layout {
        Layout::new(Kind::Mooring, &vec![Kind::Mooring; chunkservers])
    }
}

/// Ports inside the namespace. MooseFS's own numbers, so that a log reads as expected.
pub const MATOML_PORT: u16 = 9419;
pub const MATOCS_PORT: u16 = 9420;
pub const MATOCL_PORT: u16 = 9421;
pub const CSSERV_PORT: u16 = 9422;

/// How long anything may take to start, connect or end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running cluster. Dropping it ends everything and removes its folder, unless the test is failing.
pub struct Cluster {
    layout: Layout,
    // Mounts end before the servers that they need, and the namespace goes last: fields drop in this order.
    mounts: Vec<Mount>,
    chunkservers: Vec<Option<Daemon>>,
    metalogger: Option<Daemon>,
    master: Option<Daemon>,
    disks: BTreeMap<PathBuf, Disk>,
    watchdog: Watchdog,
    namespace: Namespace,
    folder: PathBuf,
    _alone: Option<MutexGuard<'static, ()>>,
}

/// What came back from [`Cluster::exchange`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub bytes: Vec<u8>,
    /// The peer closed the connection.
    pub hung_up: bool,
    /// Nobody listens there.
    pub refused: bool,
}

struct Mount {
    daemon: Daemon,
    path: PathBuf,
    kind: Kind,
    /// Arguments that were added.
    more: Vec<String>,
}

impl Cluster {
    /// Start a master and its chunkservers on an empty file system. `test` names the folder and the messages.
    pub fn start(test: &str, layout: Layout) -> Cluster {
        static ALONE: Mutex<()> = Mutex::new(());
        // One cluster at a time: two of them would starve each other on two cores and time out.
        let alone = ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        Cluster::begin(test, layout, Some(alone))
    }

    /// As [`Cluster::start`], beside a cluster that is there already and does the same things at the same time.
    pub fn start_beside(_other: &Cluster, test: &str, layout: Layout) -> Cluster {
        Cluster::begin(test, layout, None)
    }

    fn begin(test: &str, layout: Layout, alone: Option<MutexGuard<'static, ()>>) -> Cluster {
        sweep_mounts();
        let folder = std::env::temp_dir().join(format!("mooring-test-{}-{test}", std::process::id()));
        std::fs::create_dir_all(folder.join("logs")).expect("the temporary folder can be written");
        let mut cluster = Cluster {
            mounts: Vec::new(),
            chunkservers: layout.chunkservers.iter().map(|_| None).collect(),
            metalogger: None,
            master: None,
            disks: BTreeMap::new(),
            watchdog: Watchdog::new(test, layout.limit),
            namespace: Namespace::create(),
            folder,
            layout,
            _alone: alone,
        };
        let data = cluster.master_data();
        std::fs::create_dir_all(&data).expect("the folder can be written");
        write(&data.join("metadata.mfs"), "MFSM NEW");
        for index in 0..cluster.chunkservers.len() {
            std::fs::create_dir_all(cluster.chunkserver_folder(index).join("var")).expect("the folder can be written");
            std::fs::create_dir_all(cluster.data_folder(index)).expect("the folder can be written");
        }
        for (path, bytes) in &cluster.layout.files {
            std::fs::write(cluster.folder.join(path), bytes).expect("its folder is there");
        }
        cluster.start_servers();
        cluster
    }

    // --- where things are ---

    /// A folder of the test's own, beside the cluster's.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn master_data(&self) -> PathBuf {
        self.folder.join("master")
    }

    fn chunkserver_folder(&self, index: usize) -> PathBuf {
        self.folder.join(format!("chunkserver{index}"))
    }

    /// The folder in which chunkserver `index` keeps its chunks: what the specification calls a disk.
    pub fn data_folder(&self, index: usize) -> PathBuf {
        self.chunkserver_folder(index).join("hdd")
    }

    /// A command inside the cluster's network: tools need that to reach the master.
    pub fn command(&self, program: &str) -> Command {
        self.namespace.command(program)
    }

    /// The master, which must be running.
    pub fn master(&mut self) -> &mut Daemon {
        self.master.as_mut().expect("the test has started the master")
    }

    /// Chunkserver `index`, which must be running.
    pub fn chunkserver(&mut self, index: usize) -> &mut Daemon {
        self.chunkservers[index].as_mut().expect("the test has started this chunkserver")
    }

    /// The process behind mount number `index`.
    pub fn mount_daemon(&mut self, index: usize) -> &mut Daemon {
        &mut self.mounts[index].daemon
    }

    // --- servers ---

    /// How many chunkservers the layout names, running or not.
    pub fn servers(&self) -> usize {
        self.chunkservers.len()
    }

    /// Start whatever server is not running, master first.
    pub fn start_servers(&mut self) {
        if self.master.is_none() {
            self.start_master();
        }
        for index in 0..self.chunkservers.len() {
            if self.chunkservers[index].is_none() {
                self.spawn_chunkserver(index);
            }
        }
        for index in 0..self.chunkservers.len() {
            self.wait_connected(index);
        }
    }

    pub fn start_master(&mut self) {
        let data = self.master_data();
        let configuration = self.folder.join("mfsmaster.cfg");
        write(&self.folder.join("mfsexports.cfg"), &self.layout.exports);
        write(&self.folder.join("mfstopology.cfg"), "");
        write(
            &configuration,
            &format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {data}\n\
                 EXPORTS_FILENAME = {folder}/mfsexports.cfg\nTOPOLOGY_FILENAME = {folder}/mfstopology.cfg\n\
                 MATOML_LISTEN_HOST = {MASTER}\nMATOML_LISTEN_PORT = {MATOML_PORT}\n\
                 MATOCS_LISTEN_HOST = {MASTER}\nMATOCS_LISTEN_PORT = {MATOCS_PORT}\n\
                 MATOCL_LISTEN_HOST = {MASTER}\nMATOCL_LISTEN_PORT = {MATOCL_PORT}\n\
                 OPERATIONS_DELAY_INIT = 1\nOPERATIONS_DELAY_DISCONNECT = 1\nREPLICATIONS_DELAY_INIT = 1\n\
                 CHUNKS_LOOP_MIN_TIME = 60\nNICE_LEVEL = 0\n{extra}\n",
                data = data.display(),
                folder = self.folder.display(),
                extra = self.layout.master_extra,
            ),
        );
        let command = match effective(self.layout.master, Role::Master) {
            Kind::Stock => {
                let mut command = self.namespace.command("/usr/sbin/mfsmaster");
                command.arg("-f").arg("-c").arg(&configuration);
                if !data.join("metadata.mfs").exists() {
                    command.arg("-a"); // it was killed, and does not recover unasked
                }
                command.arg("start");
                command
            }
            Kind::Mooring => {
                let mut command = self.ours("master");
                command.arg("-c").arg(&configuration).arg("-f");
                command
            }
        };
        let mut daemon = self.spawn("master", command);
        self.watchdog.watch(daemon.pid());
        for port in [MATOCL_PORT, MATOCS_PORT] {
            listening(&mut daemon, port);
        }
        self.master = Some(daemon);
    }

    /// Other exports, which the running master reads at once.
    pub fn reload_exports(&mut self, exports: &str) {
        self.layout.exports = exports.into();
        write(&self.folder.join("mfsexports.cfg"), exports);
        signal(self.master().pid(), "HUP");
    }

    /// Try to start our master, which must refuse. Gives what it wrote.
    pub fn refused_master(&mut self) -> String {
        let mut command = self.ours("master");
        command.arg("-c").arg(self.folder.join("mfsmaster.cfg")).arg("-f");
        let mut daemon = self.spawn("refused-master", command);
        let written_before = daemon.log_text().len();
        assert!(daemon.wait_end(PATIENCE), "the master starts, and should have refused");
        daemon.log_text()[written_before..].to_owned()
    }

    /// Where the metalogger keeps its files.
    pub fn metalogger_data(&self) -> PathBuf {
        self.folder.join("metalogger")
    }

    /// Start a metalogger and wait until it has an image.
    pub fn start_metalogger(&mut self, kind: Kind) {
        self.start_metalogger_anyhow(kind);
        let data = self.metalogger_data();
        let daemon = self.metalogger.as_mut().expect("just started");
        wait_until("the metalogger to have an image", PATIENCE, || {
            still_runs(daemon);
            data.join("metadata_ml.mfs.back").exists()
        });
    }

    /// Start a metalogger without waiting for an image: MooseFS's gets none before the next full hour.
    pub fn start_metalogger_anyhow(&mut self, kind: Kind) {
        let data = self.metalogger_data();
        let configuration = self.folder.join("mfsmetalogger.cfg");
        std::fs::create_dir_all(&data).expect("the folder can be written");
        write(
            &configuration,
            &format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {data}\nMASTER_HOST = {MASTER}\n\
                 MASTER_PORT = {MATOML_PORT}\nMASTER_RECONNECTION_DELAY = 1\nNICE_LEVEL = 0\n",
                data = data.display(),
            ),
        );
        let command = match effective(kind, Role::Metalogger) {
            Kind::Stock => {
                let mut command = self.namespace.command("/usr/sbin/mfsmetalogger");
                command.arg("-f").arg("-c").arg(&configuration).arg("start");
                command
            }
            Kind::Mooring => {
                let mut command = self.ours("metalogger");
                command.arg("-c").arg(&configuration).arg("-f");
                command
            }
        };
        let daemon = self.spawn("metalogger", command);
        self.watchdog.watch(daemon.pid());
        self.metalogger = Some(daemon);
    }

    /// Orderly stop of the metalogger.
    pub fn stop_metalogger(&mut self) {
        let mut daemon = self.metalogger.take().expect("the test has started the metalogger");
        daemon.terminate(PATIENCE);
        self.watchdog.forget(daemon.pid());
    }

    /// Start chunkserver `index` and wait until the master has it.
    pub fn start_chunkserver(&mut self, index: usize) {
        self.spawn_chunkserver(index);
        self.wait_connected(index);
    }

    /// Start chunkserver `index` without waiting for anything: for those that the master should turn away.
    pub fn start_chunkserver_anyhow(&mut self, index: usize) {
        self.spawn_chunkserver(index);
    }

    /// What stands in configuration files, and who plays which role, from the next start on.
    pub fn layout(&mut self) -> &mut Layout {
        &mut self.layout
    }

    /// From the next start on, chunkserver `index` is of this kind. Its folders stay as they are.
    pub fn swap_chunkserver(&mut self, index: usize, kind: Kind) {
        self.layout.chunkservers[index] = kind;
    }

    /// Orderly stop of chunkserver `index`.
    pub fn stop_chunkserver(&mut self, index: usize) {
        let mut daemon = self.chunkservers[index].take().expect("the test has started this chunkserver");
        daemon.terminate(PATIENCE);
        self.watchdog.forget(daemon.pid());
    }

    /// `kill -9` of chunkserver `index`.
    pub fn kill_chunkserver(&mut self, index: usize) {
        let mut daemon = self.chunkservers[index].take().expect("the test has started this chunkserver");
        daemon.kill();
        self.watchdog.forget(daemon.pid());
    }

    /// Orderly stop of the master.
    pub fn stop_master(&mut self) {
        let mut daemon = self.master.take().expect("the test has started the master");
        daemon.terminate(PATIENCE);
        self.watchdog.forget(daemon.pid());
    }

    /// `kill -9` of the master.
    pub fn kill_master(&mut self) {
        let mut daemon = self.master.take().expect("the test has started the master");
        daemon.kill();
        self.watchdog.forget(daemon.pid());
    }

    /// Unmount everything, then stop every server in good order.
    pub fn stop_everything(&mut self) {
        self.unmount_all();
        for index in 0..self.chunkservers.len() {
            if self.chunkservers[index].is_some() {
                self.stop_chunkserver(index);
            }
        }
        if self.metalogger.is_some() {
            self.stop_metalogger();
        }
        if self.master.is_some() {
            self.stop_master();
        }
    }

    /// `kill -9` of every process at once.
    pub fn kill_everything(&mut self) {
        let mut pids: Vec<String> = self.mounts.iter().map(|mount| mount.daemon.pid().to_string()).collect();
        pids.extend(
            self.chunkservers
                .iter()
                .flatten()
                .chain(&self.master)
                .chain(&self.metalogger)
                .map(|daemon| daemon.pid().to_string()),
        );
        let status = Command::new("kill").arg("-9").args(&pids).status().expect("the program `kill` runs");
        assert!(status.success(), "kill -9 {pids:?}: {status}");
        for pid in pids {
            self.watchdog.forget(pid.parse().expect("a pid is a number"));
        }
        for mount in self.mounts.drain(..) {
            umount(&mount.path, true);
        }
        self.chunkservers.iter_mut().for_each(|slot| *slot = None);
        self.metalogger = None;
        self.master = None;
    }

    // --- mounts ---

    /// Mount the file system, with a `kind` of mount, at a new mount point, and return that.
    pub fn mount(&mut self, kind: Kind) -> PathBuf {
        self.mount_with(kind, &[])
    }

    /// As [`Cluster::mount`], with more arguments for the command line.
    pub fn mount_with(&mut self, kind: Kind, more: &[&str]) -> PathBuf {
        let path = self.folder.join(format!("mnt{}", self.mounts.len()));
        std::fs::create_dir_all(&path).expect("the folder can be written");
        let more: Vec<String> = more.iter().map(|&argument| argument.to_owned()).collect();
        let command = self.mount_command(kind, &path, &more);
        let mut daemon = self.spawn(&format!("mount{}", self.mounts.len()), command);
        self.watchdog.watch(daemon.pid());
        wait_until("the mount to appear", PATIENCE, || {
            still_runs(&mut daemon);
            is_mounted(&path)
        });
        std::fs::metadata(&path).expect("the root of the mount answers");
        self.mounts.push(Mount { daemon, path: path.clone(), kind, more });
        self.wait_for_space(&path);
        path
    }

    /// MooseFS's mount of the META folder: trash and sustained files.
    pub fn mount_meta(&mut self) -> PathBuf {
        let path = self.folder.join(format!("meta{}", self.mounts.len()));
        std::fs::create_dir_all(&path).expect("the folder can be written");
        let mut command = self.namespace.command("/usr/bin/mfsmount");
        command.arg(&path).args(["-m", "-H", &MASTER.to_string(), "-P", &MATOCL_PORT.to_string(), "-f"]);
        let mut daemon = self.spawn(&format!("meta{}", self.mounts.len()), command);
        self.watchdog.watch(daemon.pid());
        wait_until("the META mount to appear", PATIENCE, || {
            still_runs(&mut daemon);
            is_mounted(&path)
        });
        self.mounts.push(Mount { daemon, path: path.clone(), kind: Kind::Stock, more: vec!["-m".into()] });
        path
    }

    /// Try to mount with these arguments behind the mount point, and give it `limit` to fail. Returns what it wrote, and
    /// its exit status if it ended by itself.
    pub fn fail_to_mount(
        &mut self,
        kind: Kind,
        arguments: &[&str],
        limit: Duration,
    ) -> (Option<std::process::ExitStatus>, String) {
        let path = self.folder.join("no mount");
        std::fs::create_dir_all(&path).expect("the folder can be written");
        let mut command = match effective(kind, Role::Mount) {
            Kind::Stock => self.namespace.command("/usr/bin/mfsmount"),
            Kind::Mooring => self.ours("mount"),
        };
        command.arg(&path).arg("-f").args(arguments);
        let mut daemon = self.spawn("failing mount", command);
        let written_before = daemon.log_text().len();
        comes_true(limit, || daemon.ended().is_some());
        let outcome = (daemon.ended(), daemon.log_text()[written_before..].to_owned());
        umount(&path, true);
        outcome
    }

    /// Connect to `address` from inside the network, send `bytes`, and listen for `limit` or until the peer hangs up.
    pub fn exchange(&self, address: SocketAddrV4, bytes: &[u8], limit: Duration) -> Answer {
        let script = format!(
            "exec 3<>/dev/tcp/{}/{} || exit 1; cat >&3; timeout {} cat <&3",
            address.ip(),
            address.port(),
            limit.as_secs().max(1)
        );
        let mut command = self.namespace.command("bash");
        command.arg("-c").arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("bash runs");
        // The peer may hang up before it has read all: that is an answer, not an error.
        child.stdin.take().expect("it is piped").write_all(bytes).ok();
        let output = child.wait_with_output().expect("bash ends: its commands have a time limit");
        let refused = output.status.code() == Some(1) && !output.stderr.is_empty() && output.stdout.is_empty();
        Answer { bytes: output.stdout, hung_up: output.status.code() != Some(124), refused }
    }

    /// Unmount everything in good order and wait until each mount's process has ended: then all is written.
    pub fn unmount_all(&mut self) {
        for mut mount in self.mounts.drain(..) {
            let done = comes_true(Duration::from_secs(10), || umount(&mount.path, false));
            assert!(done, "{} cannot be unmounted: busy", mount.path.display());
            assert!(mount.daemon.wait_end(PATIENCE), "{} did not end after its umount", mount.daemon.name());
            self.watchdog.forget(mount.daemon.pid());
        }
    }

    /// Wait until the file system offers the space of every running chunkserver: then all of them have registered, and
    /// new chunks get all their copies.
    fn wait_for_space(&mut self, path: &Path) {
        // What a chunkserver calls its total: what is used and what ordinary users may still use (Spec 40, 6).
        let one_bytes = |disk: Space| disk.used_bytes + disk.available_bytes;
        let running = (0..self.chunkservers.len()).filter(|index| self.chunkservers[*index].is_some());
        let bytes: u64 = running.filter_map(|index| statfs(&self.data_folder(index))).map(one_bytes).sum();
        let wanted = bytes / 100 * 97;
        wait_until("space of every chunkserver", PATIENCE, || {
            statfs(path).is_some_and(|space| space.total_bytes >= wanted)
        });
    }

    /// Set the goal of everything under `path`, with MooseFS's tool.
    pub fn set_goal(&self, path: &Path, goal: u8) {
        let mut command = self.command("mfssetgoal");
        let output = command.arg("-r").arg(goal.to_string()).arg(path).output().expect("mfssetgoal runs");
        assert!(output.status.success(), "mfssetgoal: {}", String::from_utf8_lossy(&output.stdout));
    }

    // --- what can be seen ---

    /// All copies of all chunks on the disks of the running chunkservers.
    pub fn copies(&self) -> BTreeMap<u64, Vec<Copy>> {
        let running = (0..self.chunkservers.len()).filter(|index| self.chunkservers[*index].is_some());
        let folders: Vec<(usize, PathBuf)> = running.map(|index| (index, self.data_folder(index))).collect();
        copies::scan(folders.iter().map(|(index, folder)| (*index, folder.as_path())))
    }

    /// Wait until each of the chunks in `chunks` has `fit` newest copies on running servers, and nothing else is left.
    pub fn wait_for_copies(&self, what: &str, limit: Duration, fit: impl Fn(usize) -> bool) {
        let start = std::time::Instant::now();
        loop {
            let chunks = self.copies();
            let bad: Vec<_> = chunks.iter().filter(|(_, copies)| !fit(copies::holders(copies).len())).collect();
            if bad.is_empty() && !chunks.is_empty() {
                return;
            }
            if start.elapsed() > limit {
                let counts: Vec<_> = bad.iter().map(|(chunk, copies)| (chunk, copies::holders(copies))).collect();
                panic!(
                    "{what}: {} of {} chunks are still wrong after {} s; chunk and holders of the first: {:?}",
                    bad.len(),
                    chunks.len(),
                    limit.as_secs(),
                    &counts[..counts.len().min(8)]
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Pairs (from, to) of chunkservers between which a connection stands now: the links of write chains (and of
    /// replications, when the master is making copies).
    pub fn links(&self) -> BTreeSet<(usize, usize)> {
        let mut links = BTreeSet::new();
        for (from, daemon) in self.chunkservers.iter().enumerate() {
            for remote in daemon.iter().flat_map(Daemon::connected_to) {
                let to = (0..self.chunkservers.len())
                    .find(|to| *to != from && remote == SocketAddrV4::new(chunkserver_address(*to), CSSERV_PORT));
                links.extend(to.map(|to| (from, to)));
            }
        }
        links
    }

    // --- inner workings ---

    fn spawn_chunkserver(&mut self, index: usize) {
        let folder = self.chunkserver_folder(index);
        let configuration = folder.join("mfschunkserver.cfg");
        let address = chunkserver_address(index);
        let mark = if self.layout.marked_for_removal.contains(&index) { "*" } else { "" };
        write(&folder.join("mfshdd.cfg"), &format!("{mark}{}\n", self.data_folder(index).display()));
        write(
            &configuration,
            &format!(
                "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {folder}/var\n\
                 HDD_CONF_FILENAME = {folder}/mfshdd.cfg\nMASTER_HOST = {MASTER}\nMASTER_PORT = {MATOCS_PORT}\n\
                 MASTER_RECONNECTION_DELAY = 1\nBIND_HOST = {address}\n\
                 CSSERV_LISTEN_HOST = {address}\nCSSERV_LISTEN_PORT = {CSSERV_PORT}\n\
                 HDD_LEAVE_SPACE_DEFAULT = 100MiB\nHDD_TEST_SPEED = 0\nNICE_LEVEL = 0\nLABELS = {labels}\n{extra}\n",
                folder = folder.display(),
                labels = self.layout.labels.get(index).map_or("", String::as_str),
                extra = self.layout.chunkserver_extra,
            ),
        );
        let command = match effective(self.layout.chunkservers[index], Role::Chunkserver) {
            Kind::Stock => {
                let mut command = self.namespace.command("/usr/sbin/mfschunkserver");
                command.arg("-f").arg("-c").arg(&configuration).arg("start");
                command
            }
            Kind::Mooring => {
                let mut command = self.ours("chunkserver");
                command.arg("-c").arg(&configuration).arg("-f");
                command
            }
        };
        let daemon = self.spawn(&format!("chunkserver{index}"), command);
        self.watchdog.watch(daemon.pid());
        self.chunkservers[index] = Some(daemon);
    }

    fn wait_connected(&mut self, index: usize) {
        let address = chunkserver_address(index);
        let master = self.master.as_ref().map(Daemon::pid);
        let daemon = self.chunkservers[index].as_mut().expect("just started");
        wait_until(&format!("{} to listen", daemon.name()), PATIENCE, || {
            still_runs(daemon);
            daemon.tcp_table().iter().any(|row| row.listening && *row.local.ip() == address)
        });
        if master.is_some() {
            let to_master = SocketAddrV4::new(MASTER, MATOCS_PORT);
            wait_until(&format!("{} to reach the master", daemon.name()), PATIENCE, || {
                still_runs(daemon);
                daemon.connected_to().contains(&to_master)
            });
        }
    }

    fn spawn(&self, name: &str, mut command: Command) -> Daemon {
        if let Some(zone) = self.layout.time_zone {
            command.env("TZ", zone);
        }
        Daemon::start(name, command, &self.folder.join("logs").join(format!("{name}.log")))
    }

    fn ours(&self, command_name: &str) -> Command {
        let binary = mooring_binary().expect("the test has asked for Need::Mooring");
        let binary = binary.to_string_lossy();
        let mut command = if self.layout.forbid_io_uring {
            let mut command = self.namespace.command("perl");
            command.args(["-e", FORBID_IO_URING, &binary]);
            command
        } else {
            self.namespace.command(&binary)
        };
        command.arg(command_name);
        command
    }

    fn print_logs(&self) {
        let mut logs: Vec<PathBuf> =
            std::fs::read_dir(self.folder.join("logs")).into_iter().flatten().flatten().map(|e| e.path()).collect();
        logs.sort();
        for log in logs {
            let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- end of {} ---", log.display());
            for line in &lines[lines.len().saturating_sub(30)..] {
                eprintln!("    {line}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for mount in &self.mounts {
            umount(&mount.path, true);
        }
        if std::thread::panicking() {
            self.print_logs();
            eprintln!("everything is kept in {}", self.folder.display());
        } else {
            self.mounts.clear();
            self.chunkservers.clear();
            self.master = None;
            self.disks.clear();
            std::fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// Kills every process of a cluster when a test takes too long: a read that hangs then ends with an error.
struct Watchdog {
    pids: Arc<Mutex<BTreeSet<u32>>>,
    // Dropping the sender wakes the thread and ends it.
    _alive: mpsc::Sender<()>,
}

impl Watchdog {
    fn new(test: &str, limit: Duration) -> Watchdog {
        let pids = Arc::new(Mutex::new(BTreeSet::new()));
        let (alive, ended) = mpsc::channel::<()>();
        let (test, watched) = (test.to_owned(), Arc::clone(&pids));
        std::thread::spawn(move || {
            if ended.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{test}: not done after {} s, all its processes are killed now", limit.as_secs());
                let pids: Vec<u32> = watched.lock().expect("nobody panics with this lock").iter().copied().collect();
                pids.into_iter().for_each(|pid| signal(pid, "KILL"));
            }
        });
        Watchdog { pids, _alive: alive }
    }

    fn watch(&self, pid: u32) {
        self.pids.lock().expect("nobody panics with this lock").insert(pid);
    }

    fn forget(&self, pid: u32) {
        self.pids.lock().expect("nobody panics with this lock").remove(&pid);
    }
}

/// Puts a seccomp filter over itself under which io_uring_setup(2), number 425 everywhere, gives EPERM, and becomes the
/// program in its arguments. prctl(2) is 157 or 167; 38 is PR_SET_NO_NEW_PRIVS, 22 with 2 a filter of four instructions:
/// load the number; if it is 425, go on, else skip one; return EPERM; allow.
const FORBID_IO_URING: &str = r#"
    my $prctl = `uname -m` =~ /x86_64/ ? 157 : 167;
    my $filter = pack("SCCL" x 4, 0x20, 0, 0, 0, 0x15, 0, 1, 425, 0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7fff0000);
    my $program = pack("Sx6P", 4, $filter);
    syscall($prctl, 38, 1, 0, 0, 0) == 0 or die "PR_SET_NO_NEW_PRIVS: $!";
    syscall($prctl, 22, 2, $program) == 0 or die "PR_SET_SECCOMP: $!";
    exec { $ARGV[0] } @ARGV or die "$ARGV[0]: $!";
"#;

/// Sizes of a file system, from `statfs`.
struct Space {
    total_bytes: u64,
    used_bytes: u64,
    available_bytes: u64,
}

fn statfs(path: &Path) -> Option<Space> {
    let output = Command::new("stat").args(["-f", "-c", "%b %f %a %S"]).arg(path).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [total, free, available, block] = numbers[..] else { return None };
    Some(Space { total_bytes: total * block, used_bytes: (total - free) * block, available_bytes: available * block })
}

fn listening(daemon: &mut Daemon, port: u16) {
    wait_until(&format!("{} to listen on {port}", daemon.name().to_owned()), PATIENCE, || {
        still_runs(daemon);
        daemon.listens_on(port)
    });
}

fn still_runs(daemon: &mut Daemon) {
    if let Some(status) = daemon.ended() {
        panic!("{} has ended ({status}); its log:\n{}", daemon.name().to_owned(), daemon.log_text());
    }
}

fn is_mounted(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let wanted = path.to_string_lossy();
    mounts.lines().any(|line| line.split_whitespace().nth(1) == Some(&*wanted))
}

/// `lazily`: whoever uses it; what is asked of it fails then, and so a mount that asks itself can end.
fn umount(path: &Path, lazily: bool) -> bool {
    let mut command = Command::new("umount");
    if lazily {
        command.args(["-l", "-f"]);
    }
    command.arg(path).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Unmount what killed test runs have left behind.
fn sweep_mounts() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for path in mounts.lines().filter_map(|line| line.split_whitespace().nth(1)) {
        let owner = path.split("/mooring-test-").nth(1).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            umount(Path::new(path), true);
        }
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}
