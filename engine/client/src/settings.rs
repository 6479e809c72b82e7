//! What a mount decides before it connects, and what the master tells it when it registers.

use std::net::{Ipv4Addr, SocketAddrV4};

use wire::{MetaId, SessionId, Status, VersionWord};

use crate::preference::Preference;

/// How to reach the master and how much memory to use. `Settings::new` gives the defaults of Spec 72, 1.3.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the master is: one address per try, the first that answers is kept. The caller resolves names
    /// (`Ring::run_blocking`) and may replace the list later with `Client::set_master_addresses`.
    pub master: Vec<SocketAddrV4>,
    /// Source address of the connections to master and chunkservers.
    pub bind: Option<Ipv4Addr>,
    /// The folder of the tree that becomes the root, `/` for the whole tree.
    pub subfolder: String,
    /// Free text that monitors show: the mount point.
    pub info: String,
    /// MD5 of the password of the exports line, if there is one. `Settings::password_digest` makes it.
    pub password_md5: Option<[u8; 16]>,
    /// Tries of one operation before it fails; at least 1, or `FOR_EVER`.
    pub io_retries: u32,
    /// Seconds after which an operation fails, counted from its first failure or from the loss of the master; 0 = only
    /// `io_retries` counts.
    pub timeout_secs: u32,
    /// Bytes of written data that wait in memory; a writer waits when they are used up.
    pub write_cache_bytes: usize,
    /// Bytes of all read-ahead buffers together.
    pub read_ahead_bytes: usize,
    /// Bytes of one read-ahead request.
    pub read_ahead_unit_bytes: usize,
    /// Which chunkservers are rather read from.
    pub preference: Preference,
    /// Fail at once with ENOSPC when the master has no space. Default: retry.
    pub error_on_no_space: bool,
    /// Fail at once with ENXIO when a chunk has no copy. Default: retry.
    pub error_on_lost_chunk: bool,
    /// `fsync` waits for the devices of all copies, on servers that can be asked for it (Mooring's); else it returns
    /// when their servers have the data, as MooseFS's mount does.
    pub durable_fsync: bool,
    /// Sent with MKDIR: a new folder inherits the sgid bit. Spec 72, 1.3.
    pub mkdir_copies_sgid: bool,
    /// Return from `Client::connect` before the master has answered; operations then wait for it.
    pub delayed_init: bool,
    /// Open the session for the trash and the sustained files instead of the tree. Spec 30, 3.
    pub meta: bool,
}

impl Settings {
    /// Of `io_retries`: an operation waits until what it needs is back.
    pub const FOR_EVER: u32 = u32::MAX;

    /// Defaults for one master.
    pub fn new(master: SocketAddrV4) -> Settings {
        Settings {
            master: vec![master],
            bind: None,
            subfolder: "/".into(),
            info: "[MOORING]".into(),
            password_md5: None,
            io_retries: 30,
            timeout_secs: 0,
            write_cache_bytes: 256 << 20,
            read_ahead_bytes: 256 << 20,
            read_ahead_unit_bytes: 1 << 20,
            preference: Preference::default(),
            error_on_no_space: false,
            error_on_lost_chunk: false,
            durable_fsync: true,
            mkdir_copies_sgid: true,
            delayed_init: false,
            meta: false,
        }
    }

    /// The digest that `password_md5` wants. Spec 30, 3.1.
    pub fn password_digest(password: &[u8]) -> [u8; 16] {
        use md5::Digest;
        md5::Md5::digest(password).into()
    }
}

/// What the master told at the last registration. Spec 30, 3.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The master that this session talks to.
    pub master: SocketAddrV4,
    /// The local end of the connection to it.
    pub local: Ipv4Addr,
    pub master_version: VersionWord,
    pub id: SessionId,
    pub metaid: MetaId,
    /// `session_flags`.
    pub flags: u8,
    pub umask: u16,
    pub root_uid: u32,
    pub root_gid: u32,
    pub map_all_uid: u32,
    pub map_all_gid: u32,
    pub goal_min: u8,
    pub goal_max: u8,
    pub trash_time_min_secs: u32,
    pub trash_time_max_secs: u32,
    /// Operations that the exports forbid, one bit each. Spec 30, 4.4.
    pub disables: u32,
    /// This master knows the extension `times`; another knows whole seconds.
    pub long_times: bool,
    /// This master knows the extension `unclean-end`.
    pub unclean_ends: bool,
    /// The master gives out tickets for chunks: see `wire::ticket`.
    pub tickets: bool,
}

/// Bits of `Session::disables` that a mount looks at itself. Spec 30, 4.4.
pub mod disables {
    pub const READDIR: u32 = 1 << 13;
    pub const READ: u32 = 1 << 14;
    pub const WRITE: u32 = 1 << 15;
}

/// Why a mount cannot start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountError {
    /// No address was given.
    NoAddress,
    /// Nobody answers at any of the addresses.
    CannotConnect(String),
    /// The master refused: exports, password, path.
    Refused(Status),
    /// What answered is no master, or one that we cannot talk to.
    Protocol(String),
    /// The master is older than 3.0.113 and answers in forms that we do not read.
    OldMaster(VersionWord),
    /// It serves another file system than the one that was mounted.
    Foreign { address: SocketAddrV4, ours: MetaId, theirs: MetaId },
}

impl std::fmt::Display for MountError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MountError::NoAddress => write!(f, "no address of a master was given"),
            MountError::CannotConnect(why) => write!(f, "cannot connect to the master: {why}"),
            MountError::Refused(status) => write!(f, "the master refuses the mount: {}", status.text()),
            MountError::Protocol(what) => write!(f, "the master does not speak our protocol: {what}"),
            MountError::Foreign { address, ours, theirs } => write!(
                f,
                "the master at {address} serves the file system with metaid {theirs}, and this mount belongs to {ours}: \
                 nothing is read or written there, requests wait until {ours} is back. If {theirs} is meant, unmount \
                 and mount again"
            ),
            MountError::OldMaster(version) => write!(f, "the master's version {version} is too old, 3.0.113 is needed"),
        }
    }
}

impl std::error::Error for MountError {}
