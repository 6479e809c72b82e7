//! Chunk files as anybody may find them on a disk: whether one is sound, and how to spoil it. Spec 21, 2.
//!
//! Written against the specification and not with the engine's own layout, so that the two check each other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK_BYTES: u64 = 65_536;
const TABLE_BYTES: u64 = 4096;

/// What is changed in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// One bit in the middle of this block.
    Data { block: u64 },
    /// One bit of this block's sum.
    Sum { block: u64 },
    /// One bit of the signature.
    Signature,
    /// One bit of the chunk's number in the header.
    Number,
}

/// Changes one bit of the file, as a disk does that forgets.
pub fn spoil(path: &Path, rot: Rot) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let header_bytes = header_bytes(file.metadata()?.len()).ok_or(io::ErrorKind::InvalidData)?;
    let position = match rot {
        Rot::Data { block } => header_bytes + TABLE_BYTES + block * BLOCK_BYTES + BLOCK_BYTES / 2,
        Rot::Sum { block } => header_bytes + block * 4 + 1,
        Rot::Signature => 2,
        Rot::Number => 15,
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, position)?;
    byte[0] ^= 0x10;
    file.write_all_at(&byte, position)?;
    file.sync_all()
}

/// The data of a sound file, without zeros at its end. Errors: as of [`check`].
pub fn content(path: &Path) -> Result<Vec<u8>, String> {
    check(path)?;
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let start = header_bytes(bytes.len() as u64).ok_or("too short")? + TABLE_BYTES;
    let data = &bytes[start as usize..];
    let end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Ok(data[..end].to_vec())
}

/// Whether header, table and data fit each other and the file's name. Errors: what does not, in words.
pub fn check(path: &Path) -> Result<(), String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let bytes = std::fs::read(path).map_err(|error| format!("{name}: {error}"))?;
    let start = header_bytes(bytes.len() as u64).ok_or(format!("{name}: {} bytes long", bytes.len()))? as usize;
    let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
    if &bytes[..7] != b"MFSC 1." {
        return Err(format!("{name}: wrong signature"));
    }
    let header = format!("chunk_{:08X}{:08X}_{:08X}.mfs", word(8), word(12), word(16));
    if header != name {
        return Err(format!("{name}: the header is that of {header}"));
    }
    for (block, data) in bytes[start + TABLE_BYTES as usize..].chunks(BLOCK_BYTES as usize).enumerate() {
        if crc32fast::hash(data) != word(start + block * 4) {
            return Err(format!("{name}: block {block} does not fit its sum"));
        }
    }
    Ok(())
}

/// The size of the header follows from the file's length.
fn header_bytes(file_bytes: u64) -> Option<u64> {
    match file_bytes.checked_sub(TABLE_BYTES)? % BLOCK_BYTES {
        bytes @ (1024 | 4096) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_rot_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("chunk_00000000000000A1_00000002.mfs");
        let blocks = [vec![1u8; 65_536], vec![2; 65_536]];
        let mut bytes = b"MFSC 1.0".to_vec();
        bytes.extend(0xA1u64.to_be_bytes());
        bytes.extend(2u32.to_be_bytes());
        bytes.resize(4096, 0);
        blocks.iter().for_each(|block| bytes.extend(crc32fast::hash(block).to_be_bytes()));
        bytes.resize(8192, 0);
        blocks.iter().for_each(|block| bytes.extend(block));
        for rot in [Rot::Data { block: 1 }, Rot::Sum { block: 0 }, Rot::Signature, Rot::Number] {
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(check(&path), Ok(()));
            spoil(&path, rot).unwrap();
            assert!(check(&path).is_err(), "{rot:?}");
        }
    }
}
