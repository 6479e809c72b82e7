//! Which known chunkserver is it that registers? Spec 40, 4.

use wire::Ip4;

/// An entry of the durable chunkserver database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    pub csid: u16,
    pub ip: Ip4,
    pub port: u16,
    pub connected: bool,
}

/// Who registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An entry as it is.
    Known { csid: u16 },
    /// An entry with csid 0 (registered by an old program): it gets this number. `CSDBOP` NEWID.
    Numbered { csid: u16 },
    /// An entry whose address changes. `CSDBOP` NEWIPPORT.
    Moved { csid: u16 },
    /// A new entry. `CSDBOP` ADD.
    New { csid: u16 },
    /// The server is still connected: the old connection lives on until it times out.
    StillConnected { csid: u16 },
    /// All 65535 numbers are in use.
    NoNumberLeft,
}

/// `ip`, `port`: where clients reach it. `csid`: what it says it is, 0 = nothing.
///
/// The lookup order of Spec 40, section 4.
pub fn identify(database: &[Known], ip: Ip4, port: u16, csid: u16) -> Identity {
    let by_csid = database.iter().find(|known| csid != 0 && known.csid == csid);
    let by_address = database.iter().find(|known| known.ip == ip && known.port == port);
    let taken = |number: u16| database.iter().any(|known| known.csid == number);
    let free = || (1..=u16::MAX).find(|&number| !taken(number));

    if let Some(known) = by_csid.filter(|known| known.ip == ip && known.port == port).or(by_address) {
        return match known {
            Known { connected: true, csid, .. } => Identity::StillConnected { csid: *csid },
            Known { csid: 0, .. } if csid != 0 && !taken(csid) => Identity::Numbered { csid },
            Known { csid: 0, .. } => free().map_or(Identity::NoNumberLeft, |csid| Identity::Numbered { csid }),
            Known { csid, .. } => Identity::Known { csid: *csid },
        };
    }
    match by_csid {
        Some(known) if !known.connected => Identity::Moved { csid },
        None if csid != 0 => Identity::New { csid },
        _ => free().map_or(Identity::NoNumberLeft, |csid| Identity::New { csid }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(csid: u16, last_byte: u32, connected: bool) -> Known {
        Known { csid, ip: Ip4(0x0A00_0000 + last_byte), port: 9422, connected }
    }

    #[test]
    fn a_server_is_found_by_number_and_address_in_the_order_of_the_specification() {
        let database = [known(1, 1, false), known(2, 2, true), known(3, 3, false), known(0, 4, false)];
        let check = |last_byte: u32, csid: u16, expected: Identity| {
            assert_eq!(identify(&database, Ip4(0x0A00_0000 + last_byte), 9422, csid), expected, "{last_byte} {csid}");
        };
        check(1, 1, Identity::Known { csid: 1 });
        check(2, 2, Identity::StillConnected { csid: 2 });
        check(1, 0, Identity::Known { csid: 1 });
        check(1, 3, Identity::Known { csid: 1 }); // the address wins over the number
        check(2, 9, Identity::StillConnected { csid: 2 });
        check(9, 3, Identity::Moved { csid: 3 });
        check(9, 2, Identity::New { csid: 4 }); // number of a connected server: another one
        check(9, 7, Identity::New { csid: 7 });
        check(9, 0, Identity::New { csid: 4 });
        check(4, 6, Identity::Numbered { csid: 6 });
        check(4, 0, Identity::Numbered { csid: 4 });
    }
}
