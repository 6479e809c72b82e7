//! Between master and metalogger, port 9419. Spec 42, A.

use crate::codec::{Entry, Field, Input, Packet, Seed, WireError, packets};
use crate::types::{Crc, Rest, VersionWord};

packets! {
    /// Which file: 1 image, 11 and 12 the journal files opened with it. Spec 42, 5.1.
    AntomaDownloadStart = 60 { filenum: u8 }

    /// Its size; no such file is `MatoanDownloadMissing`. Spec 42, 5.1.
    MatoanDownloadInfo = 61 { size: u64 }

    /// One byte 0xFF. Spec 42, 5.1.
    MatoanDownloadMissing = 61 { marker: u8 }

    /// Spec 42, 5.2.
    AntomaDownloadRequest = 62 { offset: u64, leng: u32 }

    /// A piece of the file with the CRC-32 of its bytes; its length is `leng`. Spec 42, 5.2.
    MatoanDownloadData = 63 { offset: u64, leng: u32, crc: Crc, data: Rest }

    /// Spec 42, 5.2.
    AntomaDownloadEnd = 64 {}
}

/// The packets with several forms of one number.
pub(crate) const FORMS: &[Entry] = &[Entry::of::<AntomaRegister>(), Entry::of::<MatoanMetachangesLog>()];

/// First packet of a metalogger. Spec 42, 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AntomaRegister {
    pub version: VersionWord,
    /// Seconds.
    pub timeout: u16,
    /// Present (rver 2): send everything from this change number on. Absent (rver 1): only what is new.
    pub minversion: Option<u64>,
}

impl Field for AntomaRegister {
    fn put(&self, out: &mut Vec<u8>) {
        (1 + u8::from(self.minversion.is_some())).put(out);
        self.version.put(out);
        self.timeout.put(out);
        self.minversion.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = input.remaining();
        match (u8::take(input)?, length) {
            (1, 7) | (2, 15) => Ok(AntomaRegister {
                version: Field::take(input)?,
                timeout: Field::take(input)?,
                minversion: Field::take(input)?,
            }),
            (rver, _) => Err(WireError::Range { field: "register version and length", value: u64::from(rver) }),
        }
    }
    fn width(&self) -> usize {
        7 + self.minversion.width()
    }
    fn sample(seed: &mut Seed) -> Self {
        AntomaRegister { version: Field::sample(seed), timeout: Field::sample(seed), minversion: Field::sample(seed) }
    }
}

impl Packet for AntomaRegister {
    const TYPE: u32 = 50;
    const NAME: &'static str = "AntomaRegister";
}

/// News of the journal. Spec 42, 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatoanMetachangesLog {
    /// One change: its number, and the line's text behind `number: `, without the closing NUL of the wire.
    Change { changeno: u64, text: Rest },
    /// Rotate the files.
    Rotate,
}

impl Field for MatoanMetachangesLog {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            MatoanMetachangesLog::Change { changeno, text } => {
                0xFFu8.put(out);
                changeno.put(out);
                text.put(out);
                0u8.put(out);
            }
            MatoanMetachangesLog::Rotate => 0x55u8.put(out),
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0xFF => {
                let changeno = u64::take(input)?;
                let mut text = input.rest().to_vec();
                match text.pop() {
                    Some(0) => Ok(MatoanMetachangesLog::Change { changeno, text: Rest(text) }),
                    Some(other) => Err(WireError::Range { field: "end of a change", value: u64::from(other) }),
                    None => Err(WireError::Short { field: "change" }),
                }
            }
            0x55 => Ok(MatoanMetachangesLog::Rotate),
            marker => Err(WireError::Range { field: "change marker", value: u64::from(marker) }),
        }
    }
    fn width(&self) -> usize {
        match self {
            MatoanMetachangesLog::Change { text, .. } => 10 + text.width(),
            MatoanMetachangesLog::Rotate => 1,
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(2) {
            0 => MatoanMetachangesLog::Change { changeno: Field::sample(seed), text: Field::sample(seed) },
            _ => MatoanMetachangesLog::Rotate,
        }
    }
}

impl Packet for MatoanMetachangesLog {
    const TYPE: u32 = 51;
    const NAME: &'static str = "MatoanMetachangesLog";
}
