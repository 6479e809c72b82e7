//! What mfsmetalogger.cfg says, as values. Spec 60, 7.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use crate::config::Config;

/// Settings of a metalogger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where everything is kept. DATA_PATH.
    pub data_path: PathBuf,
    /// MASTER_HOST, MASTER_PORT. The name is looked up anew for each connection.
    pub master_host: String,
    pub master_port: u16,
    /// BIND_HOST; None = any address.
    pub bind_ip: Option<Ipv4Addr>,
    /// Silence after which the master is given up. MASTER_TIMEOUT.
    pub master_timeout_sec: u16,
    pub reconnection_delay: Duration,
    /// Old journal files kept. BACK_LOGS.
    pub journals_kept: u32,
    /// Old images kept. BACK_META_KEEP_PREVIOUS.
    pub images_kept: u32,
    /// META_DOWNLOAD_FREQ.
    pub image_every_hours: u32,
}

impl Settings {
    /// Errors: a sentence, when an address makes no sense.
    pub fn from_config(config: &Config) -> Result<Settings, String> {
        let journals_kept = config.number("BACK_LOGS", 50u32, 5..=10_000);
        Ok(Settings {
            data_path: config.path("DATA_PATH", "/var/lib/mfs"),
            master_host: config.text("MASTER_HOST", "mfsmaster"),
            master_port: config.number("MASTER_PORT", 9419u16, 1..=u16::MAX),
            bind_ip: bind_ip(config)?,
            master_timeout_sec: config.number("MASTER_TIMEOUT", 10u16, 10..=65535),
            reconnection_delay: Duration::from_secs(config.number("MASTER_RECONNECTION_DELAY", 5u64, 1..=86_400)),
            journals_kept,
            images_kept: config.number("BACK_META_KEEP_PREVIOUS", 3u32, 0..=99),
            image_every_hours: config.number("META_DOWNLOAD_FREQ", 24.min(journals_kept / 2), 1..=(journals_kept / 2)),
        })
    }

    /// One address of the master's name. Errors: a sentence. May wait for a name server.
    pub(super) fn resolve_master(&self) -> Result<SocketAddr, String> {
        let addresses = resolve(&self.master_host, self.master_port);
        let addresses = addresses.map_err(|error| format!("MASTER_HOST = {}: {error}", self.master_host))?;
        addresses.first().copied().ok_or_else(|| format!("MASTER_HOST = {} has no IPv4 address", self.master_host))
    }
}

fn bind_ip(config: &Config) -> Result<Option<Ipv4Addr>, String> {
    let host = config.text("BIND_HOST", "*");
    if host == "*" {
        return Ok(None);
    }
    let addresses = resolve(&host, 0).map_err(|error| format!("BIND_HOST = {host}: {error}"))?;
    match addresses.first() {
        Some(SocketAddr::V4(address)) => Ok(Some(*address.ip())),
        _ => Err(format!("BIND_HOST = {host} has no IPv4 address")),
    }
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.filter(SocketAddr::is_ipv4).collect())
}
