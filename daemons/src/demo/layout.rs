//! Where a demo keeps what, and what its configuration files say. Pure: paths and texts, no files.
//!
//! ```text
//! mooring-demo/
//!   etc/   mfsmaster.cfg mfsexports.cfg mfsmetalogger.cfg mfsmount.cfg mfschunkserver-1.cfg mfshdd-1.cfg ...
//!   log/   master.log metalogger.log chunkserver-1.log ... mount.log
//!   master/            metadata and change logs
//!   metalogger/        a copy of them
//!   chunkserver-1/     its identity and charts; the chunks are in chunkserver-1/disk
//!   mnt/               the mounted file system
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use crate::process::{CHUNKSERVER, MASTER, METALOGGER};

/// Four ports in a row: metaloggers, chunkservers, clients at the master; data at each chunkserver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports {
    pub(super) base: u16,
}

impl Ports {
    pub(super) fn usual() -> Ports {
        Ports { base: 9419 }
    }

    /// The first of a few quadruples that `reserve` grants and that is wholly free, with what `reserve` gave.
    pub(super) fn choose<Reservation>(
        chunkservers: u8,
        reserve: impl Fn(Ports) -> Option<Reservation>,
        is_free: impl Fn(SocketAddrV4) -> bool,
    ) -> Option<(Ports, Reservation)> {
        (0..20).find_map(|step| {
            let ports = Ports { base: 9419 + 1000 * step };
            let reservation = reserve(ports)?;
            let at_master = [ports.metaloggers(), ports.chunkservers(), ports.clients()];
            let at_chunkservers = (1..=chunkservers).map(|number| ports.data(number));
            at_master.into_iter().chain(at_chunkservers).all(&is_free).then_some((ports, reservation))
        })
    }

    pub(super) fn metaloggers(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.base)
    }

    pub(super) fn chunkservers(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.base + 1)
    }

    pub(super) fn clients(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.base + 2)
    }

    /// Chunkserver `number` (from 1) has an address of its own, as if it were a machine of its own.
    pub(super) fn data(self, number: u8) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1 + number), self.base + 3)
    }
}

/// The paths of one demo. All absolute.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) mount: PathBuf,
    pub(super) chunkservers: u8,
}

impl Layout {
    /// Paths for a demo in `dir`, which is created. Errors: it cannot be, or its path does not fit into a
    /// configuration file.
    pub(super) fn new(dir: &Path, mount: Option<&Path>, chunkservers: u8) -> Result<Layout, String> {
        std::fs::create_dir_all(dir).map_err(|error| format!("can't create {}: {error}", dir.display()))?;
        let fail = |error| format!("can't find {}: {error}", dir.display());
        let dir = dir.canonicalize().map_err(fail)?;
        let mount = mount.map_or_else(|| Ok(dir.join("mnt")), std::path::absolute).map_err(fail)?;
        // A value is printable ASCII. Spec 60, 2.
        let fits = dir
            .to_str()
            .is_some_and(|path| path.bytes().all(|byte| (32..=126).contains(&byte)) && !path.ends_with(' '));
        if !fits {
            return Err(format!(
                "{}: configuration files can hold paths of printable ASCII only - use another --dir",
                dir.display()
            ));
        }
        Ok(Layout { dir, mount, chunkservers })
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.dir.join(".demo.lock")
    }

    /// Remembers the number of copies that was set at the master.
    pub(super) fn goal_file(&self) -> PathBuf {
        self.dir.join(".demo.goal")
    }

    pub(super) fn etc(&self) -> PathBuf {
        self.dir.join("etc")
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("log")
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.logs().join(format!("{name}.log"))
    }

    pub(super) fn master_data(&self) -> PathBuf {
        self.dir.join("master")
    }

    pub(super) fn master_config(&self) -> PathBuf {
        self.etc().join("mfsmaster.cfg")
    }

    pub(super) fn metalogger_data(&self) -> PathBuf {
        self.dir.join("metalogger")
    }

    pub(super) fn metalogger_config(&self) -> PathBuf {
        self.etc().join("mfsmetalogger.cfg")
    }

    pub(super) fn mount_config(&self) -> PathBuf {
        self.etc().join("mfsmount.cfg")
    }

    fn chunkserver_data(&self, number: u8) -> PathBuf {
        self.dir.join(format!("chunkserver-{number}"))
    }

    fn disk(&self, number: u8) -> PathBuf {
        self.chunkserver_data(number).join("disk")
    }

    pub(super) fn chunkserver_config(&self, number: u8) -> PathBuf {
        self.etc().join(format!("mfschunkserver-{number}.cfg"))
    }

    /// Every folder that must exist before the servers start. Not the mount point: that may be a dead mount.
    pub(super) fn folders(&self) -> Vec<PathBuf> {
        [self.etc(), self.logs(), self.master_data(), self.metalogger_data()].into_iter().chain(self.disks()).collect()
    }

    pub(super) fn disks(&self) -> Vec<PathBuf> {
        (1..=self.chunkservers).map(|number| self.disk(number)).collect()
    }

    /// The lock files of all servers that an earlier demo may have left running.
    pub(super) fn server_locks(&self) -> Vec<PathBuf> {
        let chunkservers =
            (1..=super::CHUNKSERVERS_MAX).map(|number| self.chunkserver_data(number).join(CHUNKSERVER.lock_file()));
        let metadata =
            [self.master_data().join(MASTER.lock_file()), self.metalogger_data().join(METALOGGER.lock_file())];
        metadata.into_iter().chain(chunkservers).collect()
    }

    /// All configuration files with their texts.
    pub(super) fn configuration(&self, ports: Ports, driver: &str, as_root: bool) -> Vec<(PathBuf, String)> {
        let exports = self.etc().join("mfsexports.cfg");
        let mut files = vec![
            (self.master_config(), self.master_text(&exports, ports, driver, as_root)),
            (
                exports,
                format!(
                    "{HEADER}# address, path, options\n127.0.0.0/8 / rw,alldirs,admin,maproot=0:0\n127.0.0.0/8 . rw\n"
                ),
            ),
        ];
        files.push((self.metalogger_config(), self.metalogger_text(ports, driver, as_root)));
        files.push((self.mount_config(), self.mount_text(ports, driver)));
        for number in 1..=self.chunkservers {
            let disks = self.etc().join(format!("mfshdd-{number}.cfg"));
            files
                .push((self.chunkserver_config(number), self.chunkserver_text(number, &disks, ports, driver, as_root)));
            files.push((
                disks,
                format!("{HEADER}# one folder per line, best one per disk\n{}\n", self.disk(number).display()),
            ));
        }
        files
    }

    fn master_text(&self, exports: &Path, ports: Ports, driver: &str, as_root: bool) -> String {
        format!(
            "{HEADER}{user}DATA_PATH = {data}
EXPORTS_FILENAME = {exports}

# metaloggers, chunkservers, clients
MATOML_LISTEN_HOST = 127.0.0.1
MATOML_LISTEN_PORT = {metaloggers}
MATOCS_LISTEN_HOST = 127.0.0.1
MATOCS_LISTEN_PORT = {chunkservers}
MATOCL_LISTEN_HOST = 127.0.0.1
MATOCL_LISTEN_PORT = {clients}

# a demo should not wait a minute before it makes lost copies again
REPLICATIONS_DELAY_INIT = 5

RING_DRIVER = {driver}
",
            user = modest(as_root),
            data = self.master_data().display(),
            exports = exports.display(),
            metaloggers = ports.metaloggers().port(),
            chunkservers = ports.chunkservers().port(),
            clients = ports.clients().port(),
        )
    }

    fn metalogger_text(&self, ports: Ports, driver: &str, as_root: bool) -> String {
        format!(
            "{HEADER}{user}DATA_PATH = {data}

MASTER_HOST = 127.0.0.1
MASTER_PORT = {master}
MASTER_RECONNECTION_DELAY = 1

RING_DRIVER = {driver}
",
            user = modest(as_root),
            data = self.metalogger_data().display(),
            master = ports.metaloggers().port(),
        )
    }

    /// One `-o` option a line, then the default mount point. Spec 72, 1.2.
    fn mount_text(&self, ports: Ports, driver: &str) -> String {
        let master = ports.clients();
        format!(
            "{HEADER}mfsmaster={}\nmfsport={}\nmfsringdriver={driver}\n{}\n",
            master.ip(),
            master.port(),
            self.mount.display()
        )
    }

    fn chunkserver_text(&self, number: u8, disks: &Path, ports: Ports, driver: &str, as_root: bool) -> String {
        let address = ports.data(number);
        format!(
            "{HEADER}{user}DATA_PATH = {data}
HDD_CONF_FILENAME = {disks}

MASTER_HOST = 127.0.0.1
MASTER_PORT = {master}
MASTER_RECONNECTION_DELAY = 1

# an address of its own, as if this were a machine of its own
BIND_HOST = {ip}
CSSERV_LISTEN_HOST = {ip}
CSSERV_LISTEN_PORT = {port}

# several chunkservers share this machine
BLOCK_CACHE_MIB = 64
CORES = 1

RING_DRIVER = {driver}
",
            user = modest(as_root),
            data = self.chunkserver_data(number).display(),
            disks = disks.display(),
            master = ports.chunkservers().port(),
            ip = address.ip(),
            port = address.port(),
        )
    }
}

const HEADER: &str = "# Written by `mooring demo` at each start. Copy it before you change it.\n";

/// A demo runs as whoever started it, and takes no precedence over that person's other work.
fn modest(as_root: bool) -> String {
    let user = if as_root { "WORKING_USER = root\nWORKING_GROUP = root\n" } else { "" };
    format!("{user}NICE_LEVEL = 0\nDISABLE_OOM_KILLER = 0\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn ports_are_the_usual_ones_unless_somebody_has_one_of_them() {
        let choose = |chunkservers, is_free: &dyn Fn(SocketAddrV4) -> bool| {
            Ports::choose(chunkservers, |_| Some(()), is_free).map(|(ports, ())| ports)
        };
        assert_eq!(choose(3, &|_| true), Some(Ports::usual()));
        let one_taken = |address: SocketAddrV4| address != SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 4), 9422);
        assert_eq!(choose(3, &one_taken), Some(Ports { base: 10419 }));
        assert_eq!(choose(2, &one_taken), Some(Ports::usual()));
        assert_eq!(choose(1, &|_| false), None);
        let reserved = Ports::choose(1, |ports| (ports != Ports::usual()).then_some(()), |_| true);
        assert_eq!(reserved, Some((Ports { base: 10419 }, ())));
    }

    #[test]
    fn every_configuration_file_reads_back_as_it_was_meant() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let layout = Layout::new(&folder.path().join("a demo"), None, 2).expect("a plain path");
        let files = layout.configuration(Ports::usual(), "epoll", true);
        assert_eq!(files.len(), 4 + 2 * 2);
        let read = |name: &str| {
            let (path, text) = files.iter().find(|(path, _)| path.ends_with(name)).expect("it is written");
            Config::parse(text.as_bytes(), path)
        };
        let master = read("mfsmaster.cfg");
        assert_eq!(master.path("DATA_PATH", ""), layout.master_data());
        assert_eq!(master.optional("MATOCL_LISTEN_PORT"), Some("9421"));
        assert_eq!(master.optional("WORKING_USER"), Some("root"));
        let chunkserver = read("mfschunkserver-2.cfg");
        assert_eq!(chunkserver.optional("CSSERV_LISTEN_HOST"), Some("127.0.0.3"));
        assert_eq!(chunkserver.optional("MASTER_PORT"), Some("9420"));
        assert_eq!(chunkserver.optional("BLOCK_CACHE_MIB"), Some("64"));
        assert_eq!(chunkserver.optional("RING_DRIVER"), Some("epoll"));
    }

    #[test]
    fn a_folder_whose_name_no_configuration_file_can_hold_is_refused() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        assert!(Layout::new(&folder.path().join("caf\u{e9}"), None, 1).is_err());
        assert!(Layout::new(&folder.path().join("two words"), None, 1).is_ok());
    }
}
