//! What a chunkserver is told when it starts. Defaults are those of MooseFS. Spec 60, 6.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use wire::{AddressList, ChunkId, Packet, TicketKey};

use crate::folders::FolderLine;

/// How chunk files are read and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// O_DIRECT where the file system and the file's layout allow it.
    Direct,
    /// Through the page cache.
    Buffered,
    /// Through the page cache, without leaving anything there; where the kernel cannot, as `Buffered`.
    DontCache,
}

/// What an acknowledgement promises. Design, section 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// The system has it: it outlives this process. As MooseFS does.
    Written,
    /// The device has it: a flush, shared with whoever waits for one, comes before every acknowledgement.
    Synced,
}

/// What is done with tickets. They need an AUTH_CODE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tickets {
    /// Whoever reaches the data port is served, as MooseFS does.
    Off,
    /// Other servers are shown tickets, so that they may require them. All must be Mooring's.
    Send,
    /// Besides, a request without a ticket is refused.
    Require,
}

/// Everything a chunkserver must know. See `Settings::new` for the defaults.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where `chunkserverid.mfs` lies.
    pub data_path: PathBuf,
    pub folders: Vec<FolderLine>,
    pub start_with_invalid_disks: bool,
    /// Address of the data port; 0.0.0.0 also means that the master takes the address it sees.
    pub listen_ip: Ipv4Addr,
    pub listen_port: u16,
    /// Who may connect to the data port: mounts, tools and the other chunkservers.
    pub allowed: AddressList,
    pub master_host: String,
    pub master_port: u16,
    /// Local address of connections to the master.
    pub bind_ip: Option<Ipv4Addr>,
    /// Seconds; 0 = the master's.
    pub master_timeout_sec: u16,
    pub master_reconnection_delay: Duration,
    pub auth_code: Option<Vec<u8>>,
    pub tickets: Tickets,
    /// Bit n is label 'A' + n.
    pub labels: u32,
    pub chunks_per_register_packet: usize,
    /// Requests and operations under way at a time; more are answered NOTDONE.
    pub jobs_max: u32,
    pub leave_space_bytes: u64,
    /// New files that one sub-folder of a disk takes before the emptiest one is next.
    pub files_per_subfolder_turn: u32,
    pub keep_duplicates: Duration,
    pub disk_errors_tolerated: u32,
    pub disk_errors_period: Duration,
    /// MB/s of background verification per disk; 0 = off.
    pub test_speed: f64,
    pub min_test_interval: Duration,
    /// Share of the time for moves between disks of this server; 0 = none.
    pub rebalance_percent: u32,
    /// Moves at a time, without a pause; 0 = one at a time, for that share.
    pub rebalance_moves: u32,
    /// MB/s of all copies from other chunkservers together; 0 = no limit.
    pub replication_speed: f64,
    /// Threads that serve, each with its share of the chunks, at most 8; 0 = as many as this process may run on, at most 4.
    pub cores: usize,
    pub io_mode: IoMode,
    pub durability: Durability,
    /// MiB of verified blocks that are kept in memory, by all cores together; 0 = none. They lie in the ring's buffers, of which the cache
    /// leaves `IO_BUFFERS_MIN` to everything else: see `Settings::buffers`.
    pub block_cache_mib: u32,
    /// Modes of new files and folders, the umask applied.
    pub file_mode: u32,
    pub folder_mode: u32,
    /// Addresses of a host's name. Runs on a thread of its own.
    pub resolve: fn(&str) -> io::Result<Vec<Ipv4Addr>>,
    /// What the configuration file says, for peers that ask.
    pub options: BTreeMap<String, String>,
}

/// Seconds for which a ticket holds that a server signs for itself: it is shown at once.
const OWN_TICKET_SECONDS: u32 = 60;

/// Buffers of a chunkserver's ring that are not for the cache: a bound of what is under way.
const IO_BUFFERS: usize = 512;
/// Fewer buffers than this are not shared with a cache.
const IO_BUFFERS_MIN: usize = 256;

/// As `IO_BUFFERS` and `IO_BUFFERS_MIN`, of one core of several: a part of them, but never less than this.
const IO_BUFFERS_OF_A_CORE: usize = 192;
const IO_BUFFERS_OF_A_CORE_MIN: usize = 128;

impl Settings {
    /// Buffers that the ring of this chunkserver, of its first core, is to have.
    pub fn buffers(&self) -> usize {
        self.buffers_of(crate::cores::count(self))
    }

    /// Buffers of each of so many cores.
    pub(crate) fn buffers_of(&self, cores: usize) -> usize {
        // Each disk's log has one for good.
        (IO_BUFFERS / cores).max(IO_BUFFERS_OF_A_CORE) + self.cache_share(cores) + self.folders.len()
    }

    /// Blocks that the cache of each of so many cores may hold, on rings with so many buffers.
    pub(crate) fn cache_blocks(&self, buffers: usize, cores: usize) -> usize {
        let others = (IO_BUFFERS_MIN / cores).max(IO_BUFFERS_OF_A_CORE_MIN);
        self.cache_share(cores).min(buffers.saturating_sub(others))
    }

    fn cache_share(&self, cores: usize) -> usize {
        self.block_cache_mib as usize * crate::cache::BLOCKS_PER_MIB / cores
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.durability == Durability::Synced
    }

    /// Is another connection to the master needed, now that these are the settings? Spec 40, 10.
    pub(crate) fn asks_for_another_connection(&self, old: &Settings) -> bool {
        let of = |settings: &Settings| {
            (
                settings.master_host.clone(),
                settings.master_port,
                settings.bind_ip,
                settings.master_timeout_sec,
                settings.auth_code.clone(),
                settings.listen_ip,
                settings.listen_port,
            )
        };
        of(self) != of(old)
    }

    /// A chunkserver with default settings.
    pub fn new(data_path: PathBuf, folders: Vec<FolderLine>) -> Settings {
        Settings {
            data_path,
            folders,
            start_with_invalid_disks: false,
            listen_ip: Ipv4Addr::UNSPECIFIED,
            listen_port: 9422,
            allowed: AddressList::default(),
            master_host: "mfsmaster".to_owned(),
            master_port: 9420,
            bind_ip: None,
            master_timeout_sec: 0,
            master_reconnection_delay: Duration::from_secs(5),
            auth_code: None,
            tickets: Tickets::Off,
            labels: 0,
            chunks_per_register_packet: 10_000,
            jobs_max: 250,
            leave_space_bytes: 256 << 20,
            files_per_subfolder_turn: 10_000,
            keep_duplicates: Duration::from_secs(168 * 3600),
            disk_errors_tolerated: 2,
            disk_errors_period: Duration::from_secs(600),
            test_speed: 1.0,
            min_test_interval: Duration::from_secs(86_400),
            rebalance_percent: 20,
            rebalance_moves: 0,
            replication_speed: 0.0,
            cores: 0,
            io_mode: IoMode::Direct,
            durability: Durability::Written,
            block_cache_mib: 64,
            file_mode: 0o666 & !0o027,
            folder_mode: 0o777 & !0o027,
            resolve: dotted_address,
            options: BTreeMap::new(),
        }
    }
}

/// Settings that a reload may replace while the server runs. Take them anew for each use.
pub(crate) struct LiveSettings {
    now: RefCell<Rc<Settings>>,
    ticket_key: RefCell<Option<Rc<TicketKey>>>,
    synced: bool,
}

impl LiveSettings {
    pub(crate) fn new(settings: Settings) -> LiveSettings {
        LiveSettings {
            synced: settings.durability == Durability::Synced,
            ticket_key: RefCell::new(ticket_key(&settings)),
            now: RefCell::new(Rc::new(settings)),
        }
    }

    pub(crate) fn get(&self) -> Rc<Settings> {
        self.now.borrow().clone()
    }

    /// What tickets are signed with, unless they are off.
    pub(crate) fn ticket_key(&self) -> Option<Rc<TicketKey>> {
        self.ticket_key.borrow().clone()
    }

    /// What another server is sent before a request of ours about this chunk: a ticket, or nothing. `now`: Unix seconds.
    pub(crate) fn own_ticket(&self, chunk: ChunkId, rights: u8, now: u32) -> Vec<u8> {
        let sign = |key: Rc<TicketKey>| key.sign(chunk, rights, now.saturating_add(OWN_TICKET_SECONDS)).encode();
        self.ticket_key().map_or_else(Vec::new, sign)
    }

    /// What a start decides once and for all.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Takes changed settings, but for those that need a restart. Gives the former ones, and the names of what stays
    /// as it was.
    pub(crate) fn replace(&self, mut new: Settings) -> (Rc<Settings>, Vec<&'static str>) {
        let old = self.get();
        let mut kept = Vec::new();
        keep(&mut new.data_path, &old.data_path, "DATA_PATH", &mut kept);
        keep(&mut new.io_mode, &old.io_mode, "HDD_IO_MODE", &mut kept);
        keep(&mut new.durability, &old.durability, "DURABILITY", &mut kept);
        keep(&mut new.cores, &old.cores, "CORES", &mut kept);
        keep(&mut new.block_cache_mib, &old.block_cache_mib, "BLOCK_CACHE_MIB", &mut kept);
        keep(&mut new.file_mode, &old.file_mode, "FILE_UMASK", &mut kept);
        new.folder_mode = old.folder_mode;
        *self.ticket_key.borrow_mut() = ticket_key(&new);
        *self.now.borrow_mut() = Rc::new(new);
        (old, kept)
    }
}

fn ticket_key(settings: &Settings) -> Option<Rc<TicketKey>> {
    let code = settings.auth_code.as_ref().filter(|_| settings.tickets != Tickets::Off)?;
    Some(Rc::new(TicketKey::new(code)))
}

fn keep<T: PartialEq + Clone>(new: &mut T, old: &T, name: &'static str, kept: &mut Vec<&'static str>) {
    if new != old {
        kept.push(name);
        *new = old.clone();
    }
}

/// Takes dotted addresses alone: enough where no names are in play.
fn dotted_address(host: &str) -> io::Result<Vec<Ipv4Addr>> {
    let address = host.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "not a dotted address"))?;
    Ok(vec![address])
}
