//! A chunk file, bit for bit as MooseFS keeps it, so that a disk can go to a stock chunkserver and back.
//!
//! ```text
//! 0        8          16          20        H            H + 4096
//! | MFSC 1.x | chunk id | version  | zeros … | 1024 × sum | block 0 | block 1 | …
//! ```
//!
//! H (the header's size) is not stored: it follows from the length of the file. New files have H = 4096, so that data
//! begin at 8192 and suit direct IO; files with H = 1024 are read and changed in place. All integers are big-endian.
//! This module and `sums` are the only places that know bytes of the file; neither does IO. Spec 21, 1 and 2.

use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK};
use wire::{ChunkId, Version};

/// Bytes of the table of sums: one word for each of 1024 blocks.
pub const TABLE_BYTES: usize = 4096;
const _: () = assert!(TABLE_BYTES == BLOCKS_PER_CHUNK as usize * 4);

/// Bytes of the header that carry meaning; zeros follow up to its end.
pub const HEADER_USED_BYTES: usize = 20;

/// Sub-folders of a volume that hold chunk files. Spec 21, 1.
pub const SUBFOLDERS: usize = 256;

/// One of a chunk's 1024 blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(u16);

impl BlockIndex {
    /// None outside 0..1024.
    pub fn new(index: u32) -> Option<BlockIndex> {
        (index < u32::from(BLOCKS_PER_CHUNK)).then_some(BlockIndex(index as u16))
    }

    pub fn number(self) -> u16 {
        self.0
    }

    pub fn as_usize(self) -> usize {
        usize::from(self.0)
    }

    /// Blocks of a chunk that ends with this one.
    pub fn count_through(self) -> u16 {
        self.0 + 1
    }
}

/// Which of the two layouts a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Header of 1024 bytes: files of 1.x, 2.x and early 3.x.
    Legacy,
    /// Header of 4096 bytes: what 3.0.117, 4.x and we make.
    Aligned,
}

impl Form {
    pub const fn header_bytes(self) -> u64 {
        match self {
            Form::Legacy => 1024,
            Form::Aligned => 4096,
        }
    }

    /// Where the table of sums begins.
    pub const fn table_offset(self) -> u64 {
        self.header_bytes()
    }

    /// Where block 0 begins.
    pub const fn data_offset(self) -> u64 {
        self.header_bytes() + TABLE_BYTES as u64
    }

    pub fn block_offset(self, block: BlockIndex) -> u64 {
        self.data_offset() + u64::from(block.0) * u64::from(BLOCK_BYTES)
    }

    /// Length of a file with so many blocks.
    pub const fn file_bytes(self, blocks: u16) -> u64 {
        self.data_offset() + blocks as u64 * BLOCK_BYTES as u64
    }

    /// The largest power of two that divides every position we read or write in such a file.
    pub const fn position_alignment(self) -> u32 {
        match self {
            Form::Legacy => 1024,
            Form::Aligned => 4096,
        }
    }
}

/// Layout and number of blocks of a file by its length; None if no chunk file has that length.
pub fn shape(file_bytes: u64) -> Option<(Form, u16)> {
    [Form::Aligned, Form::Legacy].into_iter().find_map(|form| {
        let data_bytes = file_bytes.checked_sub(form.data_offset())?;
        let blocks = data_bytes / u64::from(BLOCK_BYTES);
        let whole = data_bytes % u64::from(BLOCK_BYTES) == 0 && blocks <= u64::from(BLOCKS_PER_CHUNK);
        whole.then_some((form, blocks as u16))
    })
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderWords {
    /// The `0` of `MFSC 1.0`, or the `1` that 4.x writes; kept when a header is rewritten.
    pub minor: u8,
    pub id: ChunkId,
    pub version: Version,
}

/// The first 20 bytes of a chunk file; the rest of the header is zeros.
pub fn encode_header(words: HeaderWords) -> [u8; HEADER_USED_BYTES] {
    let mut bytes = [0; HEADER_USED_BYTES];
    bytes[..8].copy_from_slice(b"MFSC 1.0");
    bytes[7] = words.minor;
    bytes[8..16].copy_from_slice(&words.id.0.to_be_bytes());
    bytes[16..20].copy_from_slice(&words.version.0.to_be_bytes());
    bytes
}

/// None if the bytes are no chunk header (signature `MFSC 1.0` or `MFSC 1.1`).
pub fn decode_header(bytes: &[u8]) -> Option<HeaderWords> {
    let bytes: &[u8; HEADER_USED_BYTES] = bytes.first_chunk()?;
    if !bytes.starts_with(b"MFSC 1.") || !matches!(bytes[7], b'0' | b'1') {
        return None;
    }
    let id = u64::from_be_bytes(bytes[8..16].try_into().expect("eight bytes"));
    let version = u32::from_be_bytes(bytes[16..20].try_into().expect("four bytes"));
    Some(HeaderWords { minor: bytes[7], id: ChunkId(id), version: Version(version) })
}

/// `chunk_IIIIIIIIIIIIIIII_VVVVVVVV.mfs`.
pub fn chunk_name(id: ChunkId, version: Version) -> String {
    format!("chunk_{:016X}_{:08X}.mfs", id.0, version.0)
}

/// Id and version of a chunk by the name of its file. Lower-case digits and other lengths are no chunk. Spec 21, 1.
pub fn parse_chunk_name(name: &[u8]) -> Option<(ChunkId, Version)> {
    let digits = name.strip_prefix(b"chunk_")?.strip_suffix(b".mfs")?;
    if digits.len() != 16 + 1 + 8 || digits[16] != b'_' {
        return None;
    }
    Some((ChunkId(capital_hex(&digits[..16])?), Version(capital_hex(&digits[17..])? as u32)))
}

/// Name of the file in which a copy is built before it gets its final name. It lies in the volume's own folder, has
/// the name that MooseFS gives its temporary copies, and may be deleted when found at a start. Spec 21, 1.
pub fn temporary_name(id: ChunkId) -> String {
    format!("{TEMPORARY_PREFIX}{:016X}", id.0)
}

/// See `temporary_name`.
pub const TEMPORARY_PREFIX: &str = "reptmp_chunk_";

/// `00` … `FF`.
pub fn subfolder_name(subfolder: u8) -> String {
    format!("{subfolder:02X}")
}

fn capital_hex(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0u64, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'A'..=b'F' => digit - b'A' + 10,
            _ => return None,
        };
        Some(number << 4 | u64::from(value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_id_and_version_in_capital_digits() {
        assert_eq!(chunk_name(ChunkId(0x1F), Version(2)), "chunk_000000000000001F_00000002.mfs");
        assert_eq!(parse_chunk_name(b"chunk_000000000000001F_00000002.mfs"), Some((ChunkId(0x1F), Version(2))));
        for no_chunk in [
            "chunk_000000000000001f_00000002.mfs",
            "chunk_000000000000001F-00000002.mfs",
            "chunk_00000000000001F_00000002.mfs",
            "chunk_000000000000001F_00000002.mfsx",
            "chunk_000000000000001F_0000000G.mfs",
            "",
        ] {
            assert_eq!(parse_chunk_name(no_chunk.as_bytes()), None, "{no_chunk}");
        }
    }

    #[test]
    fn every_name_we_make_is_read_back() {
        for id in [1, 0xFFFF_FFFF_FFFF_FFFF, 0x10_0000_0000_0000] {
            for version in [0, 1, 0x7FFF_FFFF] {
                let name = chunk_name(ChunkId(id), Version(version));
                assert_eq!(name.len(), 35);
                assert_eq!(parse_chunk_name(name.as_bytes()), Some((ChunkId(id), Version(version))));
            }
        }
    }

    #[test]
    fn the_header_is_that_of_a_stock_file() {
        // The first bytes of a file that mfschunkserver 3.0.117 wrote for chunk 2, version 1.
        let golden = b"MFSC 1.0\x00\x00\x00\x00\x00\x00\x00\x02\x00\x00\x00\x01";
        let words = HeaderWords { minor: b'0', id: ChunkId(2), version: Version(1) };
        assert_eq!(&encode_header(words), golden);
        assert_eq!(decode_header(golden), Some(words));
        assert_eq!(decode_header(b"MFSC 1.2\0\0\0\0\0\0\0\x02\0\0\0\x01"), None);
        assert_eq!(decode_header(b"MFSC 1.0"), None);
    }

    #[test]
    fn the_length_tells_layout_and_blocks() {
        assert_eq!(shape(8192), Some((Form::Aligned, 0)));
        assert_eq!(shape(5120), Some((Form::Legacy, 0)));
        assert_eq!(shape(8192 + 65536), Some((Form::Aligned, 1)));
        assert_eq!(shape(5120 + (64 << 20)), Some((Form::Legacy, 1024)));
        for wrong in [0, 5119, 8191, 8193, 8192 + 65535, 8192 + (64 << 20) + 65536, u64::MAX] {
            assert_eq!(shape(wrong), None, "{wrong}");
        }
        for form in [Form::Legacy, Form::Aligned] {
            for blocks in 0..=BLOCKS_PER_CHUNK {
                assert_eq!(shape(form.file_bytes(blocks)), Some((form, blocks)));
            }
        }
    }
}
