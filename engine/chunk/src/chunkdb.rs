//! `.chunkdb`: the list of a disk's chunks, from a clean stop to the next start. Spec 21, 5.
//!
//! Name and format are a stock chunkserver's, in both directions: what takes this disk next, ours or theirs, starts in
//! seconds. It is believed only if nothing in the folders is newer, and it is removed before it is used, so that after
//! a crash there is none. The record that ends the list is written last, after the file has its name: so the file is
//! not older than its folder, and a list that was cut short is never taken for a whole one.

use std::io;
use std::path::Path;

use ring::{File, OpenHow, Ring, Stat};
use wire::{ChunkId, Version};

use crate::layout::subfolder_name;

pub(crate) const NAME: &str = ".chunkdb";
pub(crate) const NAME_IN_THE_MAKING: &str = ".tmp_chunkdb";

const SIGNATURE: &[u8; 11] = b"MFS CHUNKDB";
/// Bytes before the path: signature, format digit, length of the path.
const FRONT_BYTES: usize = 14;
/// What we write: format 2.
const RECORD_BYTES: usize = 18;
/// What is read or written at a time.
const PIECE_BYTES: usize = 1 << 20;
/// More is no list of one disk's chunks.
const LIST_BYTES_MAX: u64 = 4 << 30;
/// From this number of blocks on, the file itself is to be asked. Spec 21, 5.
const BLOCKS_UNSURE: u16 = 1024;

/// One chunk of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: ChunkId,
    pub(crate) version: Version,
    /// None: not known yet.
    pub(crate) blocks: Option<u16>,
    pub(crate) subfolder: u8,
}

/// A list that agrees with its folder, not read yet.
pub(crate) struct FoundIndex {
    file: File,
    size_bytes: u64,
    record_bytes: usize,
    position: u64,
}

/// Looks for a list that can be believed. `line_path`: the folder as configured. None also when the disk fails: the
/// scan that follows will see that.
pub(crate) async fn find_index(ring: &Ring, folder: &Path, line_path: &str) -> Option<FoundIndex> {
    let file = ring.open(&folder.join(NAME), OpenHow::read()).await.ok()?;
    let stat = file.stat().await.ok()?;
    let front_bytes = FRONT_BYTES + line_path.len();
    let (result, front) = file.read_at(vec![0; front_bytes], 0).await;
    let whole = result.ok()? == front_bytes && stat.size <= LIST_BYTES_MAX;
    let record_bytes = decode_front(&front, line_path).filter(|_| whole)?;
    let records_bytes = stat.size.checked_sub(front_bytes as u64)?;
    let (result, last) = file.read_at(vec![1; record_bytes], stat.size.checked_sub(record_bytes as u64)?).await;
    let ends = result.ok()? == record_bytes && last.iter().all(|byte| *byte == 0);
    if !ends || !records_bytes.is_multiple_of(record_bytes as u64) {
        return None;
    }
    let of_folder = ring.stat(folder).await.ok()?;
    // Seconds for the folder itself: a stock server gives the list its name after it has written it.
    let mut is_current = of_folder.mtime_sec <= stat.mtime_sec;
    for subfolder in 0..=u8::MAX {
        is_current &= time_of(&ring.stat(&folder.join(subfolder_name(subfolder))).await.ok()?) <= time_of(&stat);
    }
    let size_bytes = stat.size - record_bytes as u64;
    is_current.then_some(FoundIndex { file, size_bytes, record_bytes, position: front_bytes as u64 })
}

fn time_of(stat: &Stat) -> (i64, u32) {
    (stat.mtime_sec, stat.mtime_nanos)
}

impl FoundIndex {
    /// All records. None if one of them makes no sense: then none is to be believed. Errors: the disk's.
    pub(crate) async fn read(&self, ring: &Ring) -> io::Result<Option<Vec<Record>>> {
        let piece_bytes = PIECE_BYTES - PIECE_BYTES % self.record_bytes;
        let mut records = Vec::with_capacity(((self.size_bytes - self.position) / self.record_bytes as u64) as usize);
        let mut position = self.position;
        let mut buffer = vec![0; piece_bytes];
        while position < self.size_bytes {
            let wanted = piece_bytes.min((self.size_bytes - position) as usize);
            buffer.resize(wanted, 0);
            let (result, back) = self.file.read_at(buffer, position).await;
            buffer = back;
            if result? != wanted {
                return Ok(None);
            }
            for bytes in buffer.chunks(self.record_bytes) {
                let Some(record) = decode_record(bytes) else { return Ok(None) };
                records.push(record);
            }
            position += wanted as u64;
            ring.yield_now().await;
        }
        Ok(Some(records))
    }
}

/// Writes the list of a disk that is at rest. Durable when this returns. Errors: the disk's; then there is no list.
pub(crate) async fn write(
    ring: &Ring,
    folder: &Path,
    line_path: &str,
    mode: u32,
    records: impl Iterator<Item = Record>,
) -> io::Result<()> {
    let beside = folder.join(NAME_IN_THE_MAKING);
    let file = ring.open(&beside, OpenHow::create(mode).truncate(true)).await?;
    let mut position = 0u64;
    let mut piece = encode_front(line_path);
    for record in records {
        piece.extend_from_slice(&encode_record(&record));
        if piece.len() >= PIECE_BYTES {
            let length = piece.len();
            let (result, back) = file.write_all_at(piece, position).await;
            result?;
            position += length as u64;
            piece = back;
            piece.clear();
        }
    }
    let length = piece.len();
    if length > 0 {
        file.write_all_at(piece, position).await.0?;
        position += length as u64;
    }
    file.datasync().await?;
    ring.rename(&beside, &folder.join(NAME)).await?;
    ring.sync_dir(folder).await?;
    file.write_all_at(vec![0; RECORD_BYTES], position).await.0?;
    file.sync().await
}

fn encode_front(line_path: &str) -> Vec<u8> {
    let mut front = SIGNATURE.to_vec();
    front.push(b'2');
    front.extend_from_slice(&(line_path.len() as u16).to_be_bytes());
    front.extend_from_slice(line_path.as_bytes());
    front
}

/// The length of the records that follow, if this is the list of that folder.
fn decode_front(front: &[u8], line_path: &str) -> Option<usize> {
    let format = front.strip_prefix(SIGNATURE)?.first()?;
    let path_bytes = u16::from_be_bytes(*front.get(12..)?.first_chunk()?);
    let is_ours = usize::from(path_bytes) == line_path.len() && front.get(FRONT_BYTES..)? == line_path.as_bytes();
    let record_bytes = match format {
        b'1' => 16,
        b'2' => RECORD_BYTES,
        b'3' => 19,
        b'4' => 23,
        _ => return None,
    };
    is_ours.then_some(record_bytes)
}

fn encode_record(record: &Record) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&record.id.0.to_be_bytes());
    bytes[8..12].copy_from_slice(&record.version.0.to_be_bytes());
    // We look at a file when it is first used; then its blocks and the length of its header are known.
    bytes[12..14].copy_from_slice(&record.blocks.unwrap_or(u16::MAX).to_be_bytes());
    bytes[16..18].copy_from_slice(&u16::from(record.subfolder).to_be_bytes());
    bytes
}

/// None if no chunk can have this record.
fn decode_record(bytes: &[u8]) -> Option<Record> {
    let id = u64::from_be_bytes(*bytes.first_chunk()?);
    let version = u32::from_be_bytes(*bytes.get(8..)?.first_chunk()?);
    let blocks = u16::from_be_bytes(*bytes.get(12..)?.first_chunk()?);
    let at = if bytes.len() == 16 { 14 } else { 16 }; // the first format does not have the length of the header
    let subfolder = u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
    let subfolder = u8::try_from(subfolder).ok().filter(|_| id != 0)?;
    let blocks = (blocks < BLOCKS_UNSURE).then_some(blocks);
    Some(Record { id: ChunkId(id), version: Version(version), blocks, subfolder })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_that_of_the_specification() {
        let record = Record { id: ChunkId(0x0102), version: Version(3), blocks: None, subfolder: 0xFE };
        let bytes = encode_record(&record);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0xFF, 0xFF, 0, 0, 0, 0xFE]);
        assert_eq!(decode_record(&bytes), Some(record));
        let blocks = |blocks: u16| {
            let mut bytes = bytes;
            bytes[12..14].copy_from_slice(&blocks.to_be_bytes());
            decode_record(&bytes).unwrap().blocks
        };
        assert_eq!((blocks(0), blocks(1023), blocks(1024)), (Some(0), Some(1023), None));
    }

    #[test]
    fn records_of_all_formats_are_read() {
        let newest = [&[0; 7][..], &[9], &[0, 0, 0, 1], &[0, 5], &[16, 0], &[0, 7], &[1], &[0, 0, 2, 0]].concat();
        let expected = Some(Record { id: ChunkId(9), version: Version(1), blocks: Some(5), subfolder: 7 });
        assert_eq!([18, 19, 23].map(|length| decode_record(&newest[..length])), [expected; 3]);
        assert_eq!(decode_record(&[&newest[..14], &[0, 7]].concat()), expected);
    }

    #[test]
    fn records_that_make_no_sense_are_seen() {
        assert_eq!(decode_record(&[0; 18]), None, "there is no chunk 0");
        let mut bytes = [1; 18];
        assert_eq!(decode_record(&bytes), None, "there is no sub-folder 257");
        bytes[16] = 0;
        assert!(decode_record(&bytes).is_some());
    }

    #[test]
    fn the_list_of_another_folder_is_not_taken() {
        let front = encode_front("/mnt/a/");
        assert_eq!(decode_front(&front, "/mnt/a/"), Some(18));
        assert_eq!(decode_front(&front, "/mnt/b/"), None);
        assert_eq!(decode_front(&front, "/mnt/a/b/"), None);
        assert_eq!(decode_front(b"MFS CHUNKDB9\0\x07/mnt/a/", "/mnt/a/"), None);
        assert_eq!(decode_front(b"MFS", "/mnt/a/"), None);
    }
}
