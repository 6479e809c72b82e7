//! Hidden files in the root of the mount, made by the mount itself. Spec 72, 2.

use std::net::SocketAddrV4;
use std::time::Duration;

use crate::reply::{Attributes, Entry};

/// Inodes from here on belong to hidden files.
pub const FIRST_INODE: u64 = 0x7FFF_FFF0;
const MASTER_INFO_INODE: u64 = 0x7FFF_FFFF;
const STATS_INODE: u64 = 0x7FFF_FFF0;
const PARAMS_INODE: u64 = 0x7FFF_FFF5;
/// How long the kernel may believe that they are there.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// The hidden files that we have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Where the proxy for tools listens, and which session this is.
    MasterInfo,
    /// Counters.
    Stats,
    /// Options and what the master said.
    Params,
}

const ALL: [Special; 3] = [Special::MasterInfo, Special::Stats, Special::Params];

impl Special {
    /// By name, in the root. `.masterinfo` also stands in every directory that has no such name of its own.
    pub fn by_name(name: &[u8]) -> Option<Special> {
        ALL.into_iter().find(|special| special.name().as_bytes() == name)
    }

    /// By inode.
    pub fn by_inode(inode: u64) -> Option<Special> {
        ALL.into_iter().find(|special| special.inode() == inode)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Special::MasterInfo => ".masterinfo",
            Special::Stats => ".stats",
            Special::Params => ".params",
        }
    }

    /// Its inode.
    pub fn inode(self) -> u64 {
        match self {
            Special::MasterInfo => MASTER_INFO_INODE,
            Special::Stats => STATS_INODE,
            Special::Params => PARAMS_INODE,
        }
    }

    /// What stat shows.
    pub fn attributes(self) -> Attributes {
        let (mode, size_bytes) = match self {
            Special::MasterInfo => (0o444, MASTER_INFO_BYTES as u64),
            Special::Stats => (0o644, 0),
            Special::Params => (0o400, 0),
        };
        Attributes { inode: self.inode(), size_bytes, mode: libc::S_IFREG | mode, links: 1, ..Attributes::default() }
    }

    /// What a lookup gives.
    pub fn entry(self) -> Entry {
        Entry { attributes: self.attributes(), entry_timeout: TIMEOUT, attributes_timeout: TIMEOUT }
    }
}

const MASTER_INFO_BYTES: usize = 14;

/// Contents of `.masterinfo`: address of the proxy, session, version of the master. Spec 30, 7.
pub fn master_info(proxy: SocketAddrV4, session: wire::SessionId, master: wire::VersionWord) -> Vec<u8> {
    let mut out = Vec::with_capacity(MASTER_INFO_BYTES);
    out.extend_from_slice(&proxy.ip().octets());
    out.extend_from_slice(&proxy.port().to_be_bytes());
    out.extend_from_slice(&session.0.to_be_bytes());
    out.extend_from_slice(&master.0.to_be_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn master_info_is_the_example_of_the_specification() {
        let proxy = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0xA443);
        let bytes = master_info(proxy, wire::SessionId(4), wire::VersionWord(0x0003_00EA));
        assert_eq!(bytes, [0x7F, 0, 0, 1, 0xA4, 0x43, 0, 0, 0, 4, 0, 3, 0, 0xEA]);
    }

    #[test]
    fn hidden_files_are_found_by_name_and_inode() {
        for special in ALL {
            assert_eq!(Special::by_name(special.name().as_bytes()), Some(special));
            assert_eq!(Special::by_inode(special.inode()), Some(special));
            assert!(special.inode() >= FIRST_INODE);
        }
        assert_eq!(Special::by_name(b"masterinfo"), None);
    }
}
