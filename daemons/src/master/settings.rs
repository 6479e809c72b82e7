//! What mfsmaster.cfg says, as values. Spec 60, 5.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use meta::Policy;
use meta::chunks;
use tracing::warn;
use wire::{AddressList, MetaId, TicketKey};

use super::heavy_load::Limits as HeavyLoadLimits;
use crate::config::{self, Config};

/// Settings of a master. Everything that `run` needs to know: it reads no configuration itself, except the exports.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of metadata and journal. DATA_PATH.
    pub data_path: PathBuf,
    pub exports_path: PathBuf,
    /// TOPOLOGY_FILENAME.
    pub topology_path: PathBuf,
    /// The file that a reload reads again; None: only exports and topology are.
    pub config_path: Option<PathBuf>,
    /// Port 9419.
    pub metalogger_address: SocketAddr,
    /// Port 9420.
    pub chunkserver_address: SocketAddr,
    /// Port 9421.
    pub client_address: SocketAddr,
    /// Who may connect as a metalogger. MATOML_ALLOW. Who may be a client is the exports' matter.
    pub metaloggers_allowed: AddressList,
    /// Who may connect as a chunkserver. MATOCS_ALLOW.
    pub chunkservers_allowed: AddressList,
    /// An empty data folder becomes a new file system instead of an error.
    pub new_file_system: bool,
    /// Changes from this version on may be lost: a person said so after a refused start.
    pub lose_changes_from: Option<u64>,
    /// An image of this file system may take the place of another's: a person said so after a refused start.
    pub accept_metaid: Option<MetaId>,
    /// Old journal files kept. BACK_LOGS.
    pub journals_kept: u32,
    /// Old images kept. BACK_META_KEEP_PREVIOUS.
    pub images_kept: u32,
    /// METADATA_SAVE_FREQ.
    pub image_every_hours: u32,
    /// CHANGELOG_SAVE_MODE 1 leaves the journal to the system's cache; 0 (default) and 2 wait for the device.
    pub journal_synced: bool,
    /// CHANGELOG_PRESERVE_SECONDS.
    pub journal_remembered_seconds: u32,
    /// MATOCS_TIMEOUT.
    pub chunkserver_timeout_seconds: u16,
    /// AUTH_CODE.
    pub auth_code: Option<Vec<u8>>,
    /// What tickets for chunks are signed with, if they are given out. TICKETS, AUTH_CODE.
    pub ticket_key: Option<TicketKey>,
    /// RESERVE_SPACE.
    pub reserve: Reserve,
    /// CS_MAINTENANCE_MODE_TIMEOUT, CS_TEMP_MAINTENANCE_MODE_TIMEOUT; 0 = no end.
    pub maintenance_seconds: u32,
    pub temporary_maintenance_seconds: u32,
    /// CS_DAYS_TO_REMOVE_UNUSED; 0 = never.
    pub remove_unused_days: u32,
    pub heavy_load: HeavyLoadLimits,
    /// Chunks without copy that are listed. MISSING_LOG_CAPACITY.
    pub missing_listed: usize,
    /// A chunk table up to this size is looked at whole when a monitor asks: some milliseconds.
    pub looked_at_once: u32,
    pub policy: Policy,
    pub chunks: chunks::Settings,
    /// Options as written, for GET_CONFIG.
    pub options: Vec<(String, String)>,
}

/// Space that clients are not told of. Spec 40, 12.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reserve {
    Bytes(u64),
    PartOfTotal(f64),
    TimesFullestUsed(f64),
    TimesLargest(f64),
}

impl Default for Settings {
    fn default() -> Settings {
        let any = |port: u16| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        Settings {
            data_path: PathBuf::from("/var/lib/mfs"),
            exports_path: PathBuf::from("/etc/mfs/mfsexports.cfg"),
            topology_path: PathBuf::from("/etc/mfs/mfstopology.cfg"),
            config_path: None,
            metalogger_address: any(9419),
            chunkserver_address: any(9420),
            client_address: any(9421),
            metaloggers_allowed: AddressList::default(),
            chunkservers_allowed: AddressList::default(),
            new_file_system: false,
            lose_changes_from: None,
            accept_metaid: None,
            journals_kept: 50,
            images_kept: 1,
            image_every_hours: 1,
            journal_synced: true,
            journal_remembered_seconds: 1800,
            chunkserver_timeout_seconds: 10,
            auth_code: None,
            ticket_key: None,
            reserve: Reserve::Bytes(0),
            maintenance_seconds: 0,
            temporary_maintenance_seconds: 1800,
            remove_unused_days: 7,
            heavy_load: HeavyLoadLimits::default(),
            missing_listed: 100_000,
            looked_at_once: 5000,
            policy: Policy::default(),
            chunks: chunks::Settings::default(),
            options: Vec::new(),
        }
    }
}

impl Settings {
    /// These, read again while the master runs: what only a start can decide stays as it was. Errors: a sentence.
    pub(super) fn read_again(&self) -> Result<Settings, String> {
        let Some(path) = &self.config_path else { return Ok(self.clone()) };
        let config = Config::load(path).map_err(|error| error.to_string())?;
        let read = Settings::from_config(&config)?;
        if read.data_path != self.data_path {
            warn!("DATA_PATH changed; that is for the next start, not for a reload");
        }
        Ok(Settings {
            data_path: self.data_path.clone(),
            config_path: self.config_path.clone(),
            new_file_system: self.new_file_system,
            lose_changes_from: self.lose_changes_from,
            accept_metaid: self.accept_metaid,
            ..read
        })
    }

    /// Errors: a sentence, when an address or a list of limits makes no sense.
    pub fn from_config(config: &Config) -> Result<Settings, String> {
        let defaults = Settings::default();
        let chunk_defaults = chunks::Settings::default();
        let journals_kept = config.number("BACK_LOGS", 50u32, 0..=1000);
        let client = match (config.optional("MATOCL_LISTEN_HOST"), config.optional("MATOCL_LISTEN_PORT")) {
            (None, None) if config.optional("MATOCU_LISTEN_PORT").is_some() => "MATOCU",
            _ => "MATOCL",
        };
        let old_loop = match config.optional("CHUNKS_LOOP_MIN_TIME") {
            None => config.optional("CHUNKS_LOOP_TIME").map(|_| config.number("CHUNKS_LOOP_TIME", 300u32, 60..=7200)),
            Some(_) => None,
        };
        Ok(Settings {
            data_path: config.path("DATA_PATH", "/var/lib/mfs"),
            exports_path: config::secondary_path(config, "EXPORTS_FILENAME", "mfsexports.cfg"),
            topology_path: config::secondary_path(config, "TOPOLOGY_FILENAME", "mfstopology.cfg"),
            metalogger_address: address(config, "MATOML", 9419)?,
            chunkserver_address: address(config, "MATOCS", 9420)?,
            client_address: address(config, client, 9421)?,
            metaloggers_allowed: config.addresses("MATOML_ALLOW")?,
            chunkservers_allowed: config.addresses("MATOCS_ALLOW")?,
            journals_kept,
            images_kept: config.number("BACK_META_KEEP_PREVIOUS", 1u32, 0..=99),
            image_every_hours: config.number("METADATA_SAVE_FREQ", 1u32, 1..=(journals_kept / 2).max(1)),
            journal_synced: config.number("CHANGELOG_SAVE_MODE", 0u8, 0..=2) != 1,
            journal_remembered_seconds: config.number("CHANGELOG_PRESERVE_SECONDS", 1800u32, 0..=15000),
            chunkserver_timeout_seconds: config.number("MATOCS_TIMEOUT", 10u16, 10..=65535),
            auth_code: config.optional("AUTH_CODE").map(|code| code.as_bytes().to_vec()),
            ticket_key: ticket_key(config)?,
            reserve: reserve(&config.text("RESERVE_SPACE", "0")),
            maintenance_seconds: config.number("CS_MAINTENANCE_MODE_TIMEOUT", 0u32, 0..=u32::MAX),
            temporary_maintenance_seconds: config.number("CS_TEMP_MAINTENANCE_MODE_TIMEOUT", 1800u32, 0..=u32::MAX),
            remove_unused_days: match config.number("CS_DAYS_TO_REMOVE_UNUSED", 7u32, 0..=u32::MAX) {
                366.. => 0,
                days => days,
            },
            heavy_load: HeavyLoadLimits {
                load: config.number("CS_HEAVY_LOAD_THRESHOLD", 150u32, 0..=u32::MAX),
                ratio: config.float("CS_HEAVY_LOAD_RATIO_THRESHOLD", 3.0),
                grace_seconds: config.number("CS_HEAVY_LOAD_GRACE_PERIOD", 900u32, 0..=u32::MAX),
            },
            missing_listed: config.number("MISSING_LOG_CAPACITY", 100_000usize, 1000..=1_000_000),
            policy: Policy {
                atime_mode: config.number("ATIME_MODE", 2u8, 0..=4),
                inode_reuse_delay_seconds: config.number("INODE_REUSE_DELAY", 86_400u32, 300..=3_000_000),
                hard_links_max: config.number("MAX_ALLOWED_HARD_LINKS", 32_767u16, 8..=65_000),
                session_sustain_seconds: config.number("SESSION_SUSTAIN_TIME", 86_400u32, 60..=604_800),
            },
            chunks: chunks::Settings {
                delay_init_seconds: delay(config, "INIT", chunk_defaults.delay_init_seconds),
                delay_disconnect_seconds: delay(config, "DISCONNECT", chunk_defaults.delay_disconnect_seconds),
                write_replications: limits(config, "CHUNKS_WRITE_REP_LIMIT", chunk_defaults.write_replications)?,
                read_replications: limits(config, "CHUNKS_READ_REP_LIMIT", chunk_defaults.read_replications)?,
                deletions: config.number("CHUNKS_SOFT_DEL_LIMIT", 10u32, 1..=u32::MAX),
                examined_per_second: match old_loop {
                    Some(_) => 10_000_000,
                    None => config.number("CHUNKS_LOOP_MAX_CPS", 100_000u32, 10_000..=10_000_000),
                },
                sweep_seconds: old_loop.unwrap_or_else(|| config.number("CHUNKS_LOOP_MIN_TIME", 300u32, 60..=7200)),
                acceptable_difference: match config.optional("ACCEPTABLE_PERCENTAGE_DIFFERENCE") {
                    None => config.float("ACCEPTABLE_DIFFERENCE", 0.01).clamp(0.001, 0.1),
                    Some(_) => config.float("ACCEPTABLE_PERCENTAGE_DIFFERENCE", 1.0).clamp(0.1, 10.0) / 100.0,
                },
                creations_near: config.number("CREATIONS_RESPECT_TOPOLOGY", 0u32, 0..=u32::MAX),
                replications_near: config.number("REPLICATIONS_RESPECT_TOPOLOGY", 0u8, 0..=2),
                unique: match config.number("CHUNKS_UNIQUE_MODE", 0u8, 0..=2) {
                    0 => chunks::Unique::No,
                    1 => chunks::Unique::Address,
                    _ => chunks::Unique::Rack,
                },
                queue_length: config.number("PRIORITY_QUEUES_LENGTH", 1_000_000usize, 10_000..=100_000_000),
                ..chunk_defaults
            },
            options: config.values().iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
            ..defaults
        })
    }
}

fn ticket_key(config: &Config) -> Result<Option<TicketKey>, String> {
    match (config.text("TICKETS", "off").as_str(), config.optional("AUTH_CODE")) {
        ("off", _) => Ok(None),
        ("send", Some(code)) => Ok(Some(TicketKey::new(code.as_bytes()))),
        ("send", None) => {
            Err("TICKETS are signed with AUTH_CODE, which is not set: set it here and at each chunkserver".to_owned())
        }
        (other, _) => Err(format!("TICKETS = {other}: must be off or send")),
    }
}

/// `OPERATIONS_DELAY_...` of MooseFS 4, else `REPLICATIONS_DELAY_...`.
fn delay(config: &Config, what: &str, default: u32) -> u32 {
    let older = config.number(&format!("REPLICATIONS_DELAY_{what}"), default, 0..=u32::MAX);
    config.number(&format!("OPERATIONS_DELAY_{what}"), older, 0..=u32::MAX)
}

/// `PREFIX_LISTEN_HOST` and `PREFIX_LISTEN_PORT`.
fn address(config: &Config, prefix: &str, port: u16) -> Result<SocketAddr, String> {
    let host = config.text(&format!("{prefix}_LISTEN_HOST"), "*");
    let port = config.text(&format!("{prefix}_LISTEN_PORT"), &port.to_string());
    let number: u16 = port.parse().map_err(|_| format!("{prefix}_LISTEN_PORT = {port} is not a port number"))?;
    let host = if host == "*" { "0.0.0.0" } else { host.as_str() };
    (host, number)
        .to_socket_addrs()
        .map_err(|error| format!("{prefix}_LISTEN_HOST = {host}: {error}"))?
        .find(SocketAddr::is_ipv4)
        .ok_or_else(|| format!("{prefix}_LISTEN_HOST = {host} has no IPv4 address"))
}

/// One number for all classes, or one each; a fifth, which MooseFS 4 knows, is left out.
fn limits(config: &Config, name: &str, default: [f64; 4]) -> Result<[f64; 4], String> {
    let Some(text) = config.optional(name) else { return Ok(default) };
    let numbers: Result<Vec<f64>, _> = text.split([',', ';']).map(|word| word.trim().parse::<f64>()).collect();
    match numbers.as_deref() {
        Ok([one]) => Ok([*one; 4]),
        Ok([a, b, c, d] | [a, b, c, d, _]) => Ok([*a, *b, *c, *d]),
        _ => Err(format!("{name} = {text}: one number or four are expected")),
    }
}

/// `N`, `N%`, `NU`, `NC`. Spec 40, 12.
fn reserve(text: &str) -> Reserve {
    let text = text.trim();
    let number = |suffix: char| text.strip_suffix(suffix).and_then(|number| number.trim().parse::<f64>().ok());
    if let Some(percent) = number('%') {
        return Reserve::PartOfTotal(percent / 100.0);
    }
    if let Some(times) = number('U') {
        return Reserve::TimesFullestUsed(times);
    }
    if let Some(times) = number('C') {
        return Reserve::TimesLargest(times);
    }
    Reserve::Bytes(config::parse_size(text).unwrap_or_else(|| {
        warn!("RESERVE_SPACE = {text} cannot be understood - nothing is reserved");
        0
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_file_of_moosefs_gives_the_same_master() {
        let text = b"MATOCS_LISTEN_HOST = 127.0.0.1\nMATOCS_LISTEN_PORT = 20\nBACK_LOGS = 7\nRESERVE_SPACE = 5%\n\
            CHUNKS_WRITE_REP_LIMIT = 5,1,1,4,4\nOPERATIONS_DELAY_INIT = 1\nCHANGELOG_SAVE_MODE = 1\n";
        let settings = Settings::from_config(&Config::parse(text, Path::new("test"))).unwrap();
        assert_eq!(settings.chunkserver_address, "127.0.0.1:20".parse().unwrap());
        assert_eq!(settings.client_address, "0.0.0.0:9421".parse().unwrap());
        assert_eq!(settings.journals_kept, 7);
        assert_eq!(settings.reserve, Reserve::PartOfTotal(0.05));
        assert_eq!(settings.chunks.write_replications, [5.0, 1.0, 1.0, 4.0]);
        assert_eq!(settings.chunks.delay_init_seconds, 1);
        assert!(!settings.journal_synced);
        let text = b"CHUNKS_LOOP_TIME = 900\nACCEPTABLE_DIFFERENCE = 0.05\n";
        let chunks = Settings::from_config(&Config::parse(text, Path::new("test"))).unwrap().chunks;
        assert_eq!((chunks.sweep_seconds, chunks.examined_per_second), (900, 10_000_000));
        assert!((chunks.acceptable_difference - 0.05).abs() < 1e-9);
        let bad = Settings::from_config(&Config::parse(b"CHUNKS_READ_REP_LIMIT = x\n", Path::new("test")));
        assert!(bad.is_err());
    }
}
