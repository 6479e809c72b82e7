//! `mfschunkserver.cfg` and `mfshdd.cfg`. Spec 60, 6 and 10.

use std::io;
use std::net::{Ipv4Addr, ToSocketAddrs};
use std::time::Duration;

use chunk::folders::{parse_folders, parse_labels, possible_comments};
use chunk::settings::{Durability, IoMode, Settings, Tickets};

use crate::config::{self, Config};

/// The largest block cache, in MiB: 256 GiB.
const BLOCK_CACHE_MIB_MAX: u32 = 256 << 10;
const CORES_MAX: u32 = 8;

/// Settings of a chunkserver. Errors: a sentence for the person who wrote the configuration.
pub fn from_config(config: &Config) -> Result<Settings, String> {
    let hdd_path = config::secondary_path(config, "HDD_CONF_FILENAME", "mfshdd.cfg");
    let hdd_text = std::fs::read(&hdd_path).map_err(|error| format!("{}: {error}", hdd_path.display()))?;
    let hdd_text = String::from_utf8_lossy(&hdd_text);
    let folders = parse_folders(&hdd_text);
    // A stock server takes the comment for a part of the path too.
    if let Some((line, path, folder)) =
        possible_comments(&hdd_text).into_iter().find(|(_, path, folder)| !path.exists() && folder.exists())
    {
        return Err(format!(
            "{}, line {line}: there is no folder {path:?}, but {folder:?}: a comment needs a line of its own",
            hdd_path.display()
        ));
    }
    if folders.is_empty() {
        return Err(format!("{}: names no folder for chunks", hdd_path.display()));
    }
    let umask = umask(config);
    let seconds = |name, default, range| Duration::from_secs(u64::from(config.number::<u32>(name, default, range)));
    let defaults = Settings::new(config.path("DATA_PATH", "/var/lib/mfs"), folders);
    Ok(Settings {
        start_with_invalid_disks: config.boolean("ALLOW_STARTING_WITH_INVALID_DISKS", false),
        listen_ip: listen_address(config, "CSSERV_LISTEN_HOST")?.unwrap_or(Ipv4Addr::UNSPECIFIED),
        listen_port: port(config, "CSSERV_LISTEN_PORT", 9422)?,
        allowed: config.addresses("CSSERV_ALLOW")?,
        master_host: config.text("MASTER_HOST", "mfsmaster"),
        master_port: port(config, "MASTER_PORT", 9420)?,
        bind_ip: listen_address(config, "BIND_HOST")?,
        master_timeout_sec: match config.number::<u16>("MASTER_TIMEOUT", 0, 0..=u16::MAX) {
            0 => 0,
            seconds => seconds.max(10),
        },
        master_reconnection_delay: seconds("MASTER_RECONNECTION_DELAY", 5, 1..=u32::MAX),
        auth_code: config.optional("AUTH_CODE").map(|code| code.as_bytes().to_vec()),
        tickets: tickets(config)?,
        labels: parse_labels(&config.text("LABELS", "")),
        chunks_per_register_packet: config.number::<u32>("CHUNKS_PER_REGISTER_PACKET", 10_000, 1000..=100_000) as usize,
        jobs_max: config.number("WORKERS_MAX", 250, 1..=100_000),
        leave_space_bytes: leave_space(config),
        files_per_subfolder_turn: config.number("HDD_RR_CHUNK_COUNT", 10_000, 1..=100_000),
        keep_duplicates: seconds("HDD_KEEP_DUPLICATES_HOURS", 168, 0..=2400) * 3600,
        disk_errors_tolerated: config.number("HDD_ERROR_TOLERANCE_COUNT", 2, 1..=10),
        disk_errors_period: seconds("HDD_ERROR_TOLERANCE_PERIOD", 600, 10..=86_400),
        test_speed: test_speed(config),
        min_test_interval: seconds("HDD_MIN_TEST_INTERVAL", 86_400, 0..=u32::MAX),
        rebalance_percent: config.number("HDD_REBALANCE_UTILIZATION", 20, 0..=100),
        rebalance_moves: config.number("HDD_HIGH_SPEED_REBALANCE_LIMIT", 0, 0..=10),
        replication_speed: at_least_zero(config.float("REPLICATION_SPEED_LIMIT", 0.0)),
        cores: config.number("CORES", defaults.cores as u32, 0..=CORES_MAX) as usize,
        io_mode: io_mode(config)?,
        durability: durability(config)?,
        block_cache_mib: config.number("BLOCK_CACHE_MIB", defaults.block_cache_mib, 0..=BLOCK_CACHE_MIB_MAX),
        file_mode: 0o666 & !umask,
        folder_mode: 0o777 & !umask,
        resolve,
        options: config.values().clone(),
        ..defaults
    })
}

fn leave_space(config: &Config) -> u64 {
    let bytes = config.size("HDD_LEAVE_SPACE_DEFAULT", 256 << 20);
    if bytes < 64 << 20 {
        tracing::warn!(
            "HDD_LEAVE_SPACE_DEFAULT = {bytes} bytes: a chunk may not fit any more when a disk is that full"
        );
    }
    bytes
}

/// MB/s per disk. Files of old versions say how many seconds lie between two chunks instead. Spec 21, 9.
fn test_speed(config: &Config) -> f64 {
    let speed = match (config.optional("HDD_TEST_SPEED"), config.number::<u32>("HDD_TEST_FREQ", 0, 0..=u32::MAX)) {
        (None, frequency) if config.optional("HDD_TEST_FREQ").is_some() => match frequency {
            0 => 0.0,
            seconds => 10.0 / f64::from(seconds),
        },
        _ => config.float("HDD_TEST_SPEED", 1.0),
    };
    at_least_zero(speed)
}

/// A speed in MB/s; what makes no sense is none.
fn at_least_zero(speed: f64) -> f64 {
    if speed.is_finite() { speed.clamp(0.0, 1e6) } else { 0.0 }
}

/// Octal, as people write it, with or without a leading zero.
fn umask(config: &Config) -> u32 {
    let text = config.text("FILE_UMASK", "027");
    u32::from_str_radix(text.trim(), 8).unwrap_or(0o027) & 0o777
}

fn io_mode(config: &Config) -> Result<IoMode, String> {
    match config.text("HDD_IO_MODE", "buffered").as_str() {
        "direct" => Ok(IoMode::Direct),
        "buffered" => Ok(IoMode::Buffered),
        "dontcache" => Ok(IoMode::DontCache),
        other => Err(format!("HDD_IO_MODE = {other}: must be direct, buffered or dontcache")),
    }
}

fn durability(config: &Config) -> Result<Durability, String> {
    match config.text("DURABILITY", "written").as_str() {
        "written" => Ok(Durability::Written),
        "synced" => Ok(Durability::Synced),
        other => Err(format!("DURABILITY = {other}: must be written or synced")),
    }
}

fn tickets(config: &Config) -> Result<Tickets, String> {
    let tickets = match config.text("TICKETS", "off").as_str() {
        "off" => Tickets::Off,
        "send" => Tickets::Send,
        "require" => Tickets::Require,
        other => return Err(format!("TICKETS = {other}: must be off, send or require")),
    };
    if tickets != Tickets::Off && config.optional("AUTH_CODE").is_none() {
        return Err("TICKETS are signed with AUTH_CODE, which is not set: set it here and at the master".to_owned());
    }
    Ok(tickets)
}

/// None for `*`.
fn listen_address(config: &Config, name: &str) -> Result<Option<Ipv4Addr>, String> {
    let host = config.text(name, "*");
    if host == "*" {
        return Ok(None);
    }
    let addresses = resolve(&host).map_err(|error| format!("{name} = {host}: {error}"))?;
    addresses.first().copied().map(Some).ok_or_else(|| format!("{name} = {host}: has no IPv4 address"))
}

fn port(config: &Config, name: &str, default: u16) -> Result<u16, String> {
    let text = config.text(name, &default.to_string());
    text.parse().map_err(|_| format!("{name} = {text}: must be a port number"))
}

fn resolve(host: &str) -> io::Result<Vec<Ipv4Addr>> {
    let addresses = (host, 0).to_socket_addrs()?;
    Ok(addresses
        .filter_map(|address| match address.ip() {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_of_the_test_may_come_from_its_old_option() {
        let speed = |text: &str| test_speed(&Config::parse(text.as_bytes(), std::path::Path::new("test")));
        assert_eq!(speed(""), 1.0);
        assert_eq!(speed("HDD_TEST_SPEED = 2.5\n"), 2.5);
        assert_eq!(speed("HDD_TEST_FREQ = 5\n"), 2.0);
        assert_eq!(speed("HDD_TEST_FREQ = 0\n"), 0.0);
        assert_eq!(speed("HDD_TEST_FREQ = 5\nHDD_TEST_SPEED = 0\n"), 0.0);
        assert_eq!(speed("HDD_TEST_SPEED = -3\n"), 0.0);
    }
}
