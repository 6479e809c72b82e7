//! All packet forms in one list: for dumps, tests and fuzzing. A number may stand here more than once, where the
//! specification uses it in several forms or in both directions.

use crate::codec::{Entry, Field, WireError};
use crate::data::{CltocsRead, CltocsWrite, CltocsWriteData, CstoclReadData};
use crate::limits::{READ_DATA_HEAD_BYTES, WRITE_DATA_HEAD_BYTES};

/// READ_DATA and WRITE_DATA are heads in front of data; here they are recoded with it.
const WITH_DATA: &[Entry] = &[
    Entry {
        kind: CstoclReadData::TYPE,
        name: "CstoclReadData",
        recode: |payload| {
            let head = CstoclReadData::decode_head(payload.len() as u32, payload)?;
            Ok([&head.front()[8..], &payload[READ_DATA_HEAD_BYTES as usize..]].concat())
        },
        sample: |seed| {
            let size = seed.below(100) as u32;
            let head = CstoclReadData {
                chunkid: Field::sample(seed),
                blocknum: Field::sample(seed),
                offset: Field::sample(seed),
                size,
                crc: Field::sample(seed),
            };
            [&head.front()[8..], &vec![7; size as usize]].concat()
        },
        dump: |payload| Ok(format!("{:?}", CstoclReadData::decode_head(payload.len() as u32, payload)?)),
    },
    Entry {
        kind: CltocsWriteData::TYPE,
        name: "CltocsWriteData",
        recode: |payload| {
            let head = CltocsWriteData::decode_head(payload.len() as u32, payload)?;
            Ok([&head.front()[8..], &payload[WRITE_DATA_HEAD_BYTES as usize..]].concat())
        },
        sample: |seed| {
            let size = seed.below(100) as u32;
            let head = CltocsWriteData {
                chunkid: Field::sample(seed),
                writeid: Field::sample(seed),
                blocknum: Field::sample(seed),
                offset: Field::sample(seed),
                size,
                crc: Field::sample(seed),
            };
            [&head.front()[8..], &vec![7; size as usize]].concat()
        },
        dump: |payload| Ok(format!("{:?}", CltocsWriteData::decode_head(payload.len() as u32, payload)?)),
    },
];

const DATA_FORMS: &[Entry] = &[Entry::of::<CltocsRead>(), Entry::of::<CltocsWrite>()];

/// Every packet form that this crate knows.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    [
        crate::any::PACKETS,
        crate::charts::PACKETS,
        crate::data::PACKETS,
        DATA_FORMS,
        WITH_DATA,
        crate::chunkserver::PACKETS,
        crate::chunkserver::FORMS,
        crate::metalogger::PACKETS,
        crate::metalogger::FORMS,
        crate::session::PACKETS,
        crate::session::FORMS,
        crate::fs::PACKETS,
        crate::fs::FORMS,
        crate::extension::PACKETS,
    ]
    .into_iter()
    .flatten()
}

/// The forms of one number.
pub fn forms_of(kind: u32) -> impl Iterator<Item = &'static Entry> {
    entries().filter(move |entry| entry.kind == kind)
}

/// The packet as text for a log line: its name and fields in the first form that fits, else its number and length.
pub fn describe(kind: u32, payload: &[u8]) -> String {
    forms_of(kind)
        .find_map(|entry| (entry.dump)(payload).ok())
        .unwrap_or_else(|| format!("packet {kind} with {} bytes", payload.len()))
}

/// Decodes a payload in any form of the number and encodes it again. Errors: of the last form tried; `Type` when the
/// number is unknown.
pub fn recode(kind: u32, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut outcome = Err(WireError::Type { expected: 0, found: kind });
    for entry in forms_of(kind) {
        outcome = (entry.recode)(payload);
        if outcome.as_deref() == Ok(payload) {
            break;
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Header, Seed};
    use crate::limits::HEADER_BYTES;

    #[test]
    fn every_sample_survives_decode_and_encode() {
        let mut seed = Seed(1);
        for entry in entries() {
            for _ in 0..200 {
                let payload = (entry.sample)(&mut seed);
                assert_eq!((entry.recode)(&payload).as_ref(), Ok(&payload), "{}", entry.name);
            }
        }
    }

    /// A cut payload is refused, or is itself a legal shorter form (a list with fewer records, an older form).
    #[test]
    fn a_packet_cut_short_is_refused_or_a_legal_shorter_form() {
        let mut seed = Seed(2);
        for entry in entries() {
            for _ in 0..20 {
                let payload = (entry.sample)(&mut seed);
                for cut in 0..payload.len() {
                    if let Ok(again) = (entry.recode)(&payload[..cut]) {
                        // Forms that are told by their length alone.
                        let by_length = matches!(entry.kind, 200 | 210 | 401 | 404);
                        let legal = again == payload[..cut] || by_length;
                        assert!(legal, "{} cut to {cut} of {} bytes: {payload:02x?}", entry.name, payload.len());
                    }
                }
            }
        }
    }

    #[test]
    fn random_bytes_never_panic_a_decoder() {
        let mut seed = Seed(3);
        for entry in entries() {
            for _ in 0..300 {
                let length = seed.below(200) as usize;
                let payload: Vec<u8> = (0..length).map(|_| seed.next_u64() as u8 & seed.next_u64() as u8).collect();
                let _ = (entry.recode)(&payload);
                let _ = (entry.dump)(&payload);
            }
        }
    }

    /// Spec 10, 7 and Spec 70, 6.4 use these numbers in several forms; every other number stands in the tables once.
    #[test]
    fn a_number_is_used_twice_only_where_the_specification_does() {
        const SEVERAL_FORMS: &[u32] = &[0, 11, 61, 301, 303, 361, 403, 429, 441, 463, 479, 497, 507, 531, 705];
        let mut seen = std::collections::BTreeMap::new();
        for entry in entries() {
            *seen.entry(entry.kind).or_insert(0) += 1;
        }
        for (kind, count) in seen {
            assert!(count == 1 || SEVERAL_FORMS.contains(&kind), "number {kind} stands {count} times in the tables");
        }
    }

    #[test]
    fn golden_packets_decode_and_encode_back_unchanged() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden");
        let mut count = 0;
        let mut failures = Vec::new();
        for file in std::fs::read_dir(folder).expect("tests/golden is in the repository") {
            let path = file.expect("readable").path();
            if path.extension().is_none_or(|extension| extension != "hex") {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("readable");
            let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
            let packet: Vec<u8> = digits
                .chunks(2)
                .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal"))
                .collect();
            let header = Header::decode(packet[..HEADER_BYTES].try_into().expect("a whole header"));
            let payload = &packet[HEADER_BYTES..];
            assert_eq!(header.length as usize, payload.len(), "{}", path.display());
            count += 1;
            // An answer of one byte behind the message id is a status, whatever its number. Spec 30, 1.
            if payload.len() == 5 && (351..=497).contains(&header.kind) && header.kind % 2 == 1 {
                continue;
            }
            // The form of a 4.59 master for 4.59 clients: we announce 3.0.117 and never get it.
            if header.kind == 401 && payload.len() == 57 {
                continue;
            }
            let again = recode(header.kind, payload);
            if again.as_deref() != Ok(payload) {
                failures.push(format!("{}: type {}: {:?}", path.display(), header.kind, again.err()));
            }
        }
        assert!(count > 180, "only {count} golden packets found");
        assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
    }
}
