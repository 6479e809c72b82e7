//! Packets that any two peers may exchange. Spec 10, 2.

use crate::codec::packets;
use crate::types::{Ip4, MetaId, Name, Rest, VersionWord};

packets! {
    /// Keep-alive towards chunkservers and metaloggers, and on the data port: empty. Spec 10, 2.
    AntoanNop = 0 {}

    /// Keep-alive between client and master: a message id of zero. Spec 10, 2.
    ClientNop = 0 { msgid: u32 }

    /// Never sent by 3.0.117 or 4.59.2, but to be ignored. Spec 10, 2.
    AntoanUnknownCommand = 1 { rest: Rest }

    /// As above. Spec 10, 2.
    AntoanBadCommandSize = 2 { rest: Rest }

    /// Spec 10, 2.
    AntoanGetVersion = 10 { msgid: Option<u32> }

    /// The text is not terminated. With the question's message id: `AntoanVersionWithId`. Spec 10, 2.
    AntoanVersion = 11 { version: VersionWord, text: Rest }

    /// Spec 10, 2.
    AntoanVersionWithId = 11 { msgid: u32, version: VersionWord, text: Rest }

    /// Asks for an option of the peer's configuration. Spec 10, 2.
    AntoanGetConfig = 80 { msgid: u32, option: Name }

    /// Its value, empty when it is not set. Spec 10, 2.
    AntoanConfigValue = 81 { msgid: u32, value: Name }

    /// What are you? Spec 10, 2.
    CltoanModuleInfo = 530 { msgid: Option<u32> }

    /// Spec 10, 2.
    AntoclModuleInfo = 531 {
        /// 1 master, 2 chunkserver.
        module: u8,
        version: VersionWord,
        id: u16,
        metaid: MetaId,
        leader_ip: Ip4,
        leader_port: u16,
    }

    /// With the question's message id.
    AntoclModuleInfoWithId = 531 { msgid: u32, module: u8, version: VersionWord, id: u16, metaid: MetaId, leader_ip: Ip4, leader_port: u16 }
}

/// The option that a Mooring process answers with the names of its extensions; a stock peer's answer is empty.
pub const EXTENSIONS_OPTION: &[u8] = b"MOORING_EXTENSIONS";

/// Whether an option's value tells where a file or folder lies on its machine: strangers need not know.
pub fn names_a_path(option: &[u8]) -> bool {
    [&b"_PATH"[..], b"_FILENAME", b"_FILE"].iter().any(|end| option.ends_with(end))
}
