//! Which chunk files a volume has: from the list that a clean stop left, else by listing its folders. Spec 21, 7.

use std::io;
use std::sync::atomic::Ordering;

use ring::{OpenHow, Ring};
use wire::limits::{BLOCK_BYTES, BLOCKS_PER_CHUNK};
use wire::{ChunkId, Version};

use crate::chunkdb;
use crate::layout::{
    Form, HEADER_USED_BYTES, SUBFOLDERS, TEMPORARY_PREFIX, decode_header, parse_chunk_name, shape, subfolder_name,
};
use crate::settings::Settings;
use crate::volume::{Volume, VolumeState};

/// Records of a list that are taken in before others have their turn.
const RECORDS_AT_ONCE: usize = 4096;

/// A chunk file found by a scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) id: ChunkId,
    pub(crate) version: Version,
    pub(crate) subfolder: u8,
    /// 0 where nobody needs to know.
    pub(crate) blocks: u16,
}

/// Does the scan say how many blocks the volume has, if that matters?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocks {
    Known,
    Unknown,
}

/// Finds all chunk files of a volume: those of the list that the last clean stop left, which is used up by this; if
/// there is none, by the names in its folders. Errors: the disk's.
///
/// `check_sizes` (after a crash): by the names, and files that no chunk can have are left out. Also makes missing
/// sub-folders, moves files of the old one-digit layout to their place, removes temporary copies that were left over.
pub(crate) async fn scan(
    ring: &Ring,
    volume: &Volume,
    settings: &Settings,
    check_sizes: bool,
    mut found: impl FnMut(Found),
) -> io::Result<Blocks> {
    let index = volume.index.take();
    let whole = volume.is_read_only || prepare_folder(ring, volume, settings).await?;
    if let Some(index) = index.filter(|_| whole && !check_sizes && !volume.is_read_only) {
        // It is true no longer than until the first change: no later start may find it, not even after a power cut.
        ring.sync_dir(&volume.folder).await?;
        if let Some(records) = index.read(ring).await? {
            return Ok(take_records(ring, volume, records, found).await);
        }
    }
    for subfolder in 0..=u8::MAX {
        if volume.state() != VolumeState::Scanning {
            return Ok(Blocks::Known); // given up, or taken out, meanwhile
        }
        let path = volume.folder.join(subfolder_name(subfolder));
        let entries = match ring.list(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound && volume.is_marked() => continue,
            other => other?,
        };
        for entry in entries {
            let Some((id, version)) = parse_chunk_name(entry.name.as_encoded_bytes()) else { continue };
            let mut blocks = Some(0);
            if check_sizes || volume.has_limit() {
                blocks = shape(ring.stat(&path.join(&entry.name)).await?.size).map(|(_, blocks)| blocks);
                if blocks.is_none() && check_sizes && !volume.is_read_only {
                    blocks = mend_length(ring, &path.join(&entry.name)).await?;
                }
            }
            match blocks.filter(|_| id.0 != 0) {
                Some(blocks) => found(Found { id, version, subfolder, blocks }),
                None => tracing::warn!("{} cannot be a chunk, left alone", path.join(&entry.name).display()),
            }
        }
        volume.scanned_subfolders.store(u32::from(subfolder) + 1, Ordering::Relaxed);
        ring.yield_now().await;
    }
    volume.scanned_subfolders.store(SUBFOLDERS as u32, Ordering::Relaxed);
    Ok(Blocks::Known)
}

/// Chunks of a list are believed. `Blocks::Unknown` where the size of all files matters and the list does not say it.
async fn take_records(
    ring: &Ring,
    volume: &Volume,
    records: Vec<chunkdb::Record>,
    mut found: impl FnMut(Found),
) -> Blocks {
    let mut sizes = Blocks::Known;
    let total = records.len().max(1);
    for (at, piece) in records.chunks(RECORDS_AT_ONCE).enumerate() {
        for record in piece {
            let &chunkdb::Record { id, version, subfolder, blocks } = record;
            if blocks.is_none() {
                sizes = Blocks::Unknown;
            }
            let blocks = if volume.has_limit() { blocks.unwrap_or(0) } else { 0 };
            found(Found { id, version, subfolder, blocks });
        }
        volume.scanned_subfolders.store((at * RECORDS_AT_ONCE * SUBFOLDERS / total) as u32, Ordering::Relaxed);
        ring.yield_now().await;
    }
    volume.scanned_subfolders.store(SUBFOLDERS as u32, Ordering::Relaxed);
    if volume.has_limit() { sizes } else { Blocks::Known }
}

/// Cuts a file that a crash left with a part of a block at its end: it was being extended or trimmed there, and what
/// was acknowledged reaches no further than its whole blocks. Gives their number; None if this is no chunk file.
async fn mend_length(ring: &Ring, path: &std::path::Path) -> io::Result<Option<u16>> {
    let file = ring.open(path, OpenHow::read_write()).await?;
    let (result, front) = file.read_at(vec![0; Form::Aligned.header_bytes() as usize], 0).await;
    if result? < front.len() || decode_header(&front).is_none() {
        return Ok(None);
    }
    // Where the old layout has its table, which is never all zeros once there are blocks, the new one has zeros.
    let is_aligned = front[HEADER_USED_BYTES..].iter().all(|byte| *byte == 0);
    let form = if is_aligned { Form::Aligned } else { Form::Legacy };
    let Some(data_bytes) = file.stat().await?.size.checked_sub(form.data_offset()) else { return Ok(None) };
    let blocks = (data_bytes / u64::from(BLOCK_BYTES)).min(u64::from(BLOCKS_PER_CHUNK)) as u16;
    tracing::warn!("{}: ends inside a block after a crash, cut to {blocks} blocks", path.display());
    file.set_len(form.file_bytes(blocks)).await?;
    file.sync().await?; // the log is about to forget that there was something to put right
    Ok(Some(blocks))
}

/// Sub-folders, left-overs, and the list of chunks that changes make untrue. True if nothing had to be made or moved.
/// Spec 21, 1 and 5.
async fn prepare_folder(ring: &Ring, volume: &Volume, settings: &Settings) -> io::Result<bool> {
    let entries = ring.list(&volume.folder).await?;
    let mut present = [false; SUBFOLDERS];
    for entry in &entries {
        let name = entry.name.as_encoded_bytes();
        let path = volume.folder.join(&entry.name);
        if let Some(subfolder) = subfolder_of_name(name) {
            present[usize::from(subfolder)] = true;
        } else if name.starts_with(TEMPORARY_PREFIX.as_bytes())
            || name == chunkdb::NAME.as_bytes()
            || name == chunkdb::NAME_IN_THE_MAKING.as_bytes()
        {
            ring.unlink(&path).await?;
        }
    }
    if !volume.is_marked() && present.contains(&false) {
        make_subfolders(ring, volume, settings).await?;
    }
    let mut whole = !present.contains(&false);
    for entry in entries.iter().filter(|entry| is_old_subfolder(entry.name.as_encoded_bytes())) {
        move_old_subfolder(ring, volume, &volume.folder.join(&entry.name)).await?;
        whole = false;
    }
    Ok(whole)
}

/// Makes the sub-folders that are missing.
pub(crate) async fn make_subfolders(ring: &Ring, volume: &Volume, settings: &Settings) -> io::Result<()> {
    for subfolder in 0..=u8::MAX {
        match ring.mkdir(&volume.folder.join(subfolder_name(subfolder)), settings.folder_mode).await {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    ring.sync_dir(&volume.folder).await
}

fn subfolder_of_name(name: &[u8]) -> Option<u8> {
    (0..=u8::MAX).find(|subfolder| subfolder_name(*subfolder).as_bytes() == name)
}

fn is_old_subfolder(name: &[u8]) -> bool {
    matches!(name, [b'0'..=b'9' | b'A'..=b'F'])
}

async fn move_old_subfolder(ring: &Ring, volume: &Volume, old: &std::path::Path) -> io::Result<()> {
    for entry in ring.list(old).await? {
        if let Some((id, _)) = parse_chunk_name(entry.name.as_encoded_bytes()) {
            let folder = volume.folder.join(subfolder_name(id.0 as u8));
            ring.rename(&old.join(&entry.name), &folder.join(&entry.name)).await?;
        }
    }
    if let Err(error) = ring.rmdir(old).await {
        tracing::info!("{} of the old layout stays: {error}", old.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_names_of_subfolders_are_subfolders() {
        assert_eq!(subfolder_of_name(b"0F"), Some(15));
        assert_eq!(subfolder_of_name(b"0f"), None);
        assert_eq!(subfolder_of_name(b"F"), None);
        assert!(is_old_subfolder(b"F") && !is_old_subfolder(b"0F") && !is_old_subfolder(b"G"));
    }
}
