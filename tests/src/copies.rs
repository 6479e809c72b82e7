//! Which chunk lies in which folder, as the disks tell it: the truth behind what a master says.
//!
//! Spec 21, 1: `XX/chunk_IIIIIIIIIIIIIIII_VVVVVVVV.mfs` in the 256 sub-folders of a data folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One chunk file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// The chunkserver's number in the test.
    pub server: usize,
    pub version: u32,
    pub path: PathBuf,
}

/// All copies of all chunks in `folders`, each with its server's number.
pub fn scan<'a>(folders: impl IntoIterator<Item = (usize, &'a Path)>) -> BTreeMap<u64, Vec<Copy>> {
    let mut chunks: BTreeMap<u64, Vec<Copy>> = BTreeMap::new();
    for (server, folder) in folders {
        let subfolders = std::fs::read_dir(folder).into_iter().flatten().flatten();
        for subfolder in subfolders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            for file in std::fs::read_dir(subfolder.path()).into_iter().flatten().flatten() {
                if let Some((chunk, version)) = parse_name(&file.file_name().to_string_lossy()) {
                    chunks.entry(chunk).or_default().push(Copy { server, version, path: file.path() });
                }
            }
        }
    }
    chunks
}

/// The servers that hold the newest version of each chunk.
pub fn holders(copies: &[Copy]) -> Vec<usize> {
    let newest = copies.iter().map(|copy| copy.version).max().unwrap_or(0);
    copies.iter().filter(|copy| copy.version == newest).map(|copy| copy.server).collect()
}

fn parse_name(name: &str) -> Option<(u64, u32)> {
    let middle = name.strip_prefix("chunk_")?.strip_suffix(".mfs")?;
    let (chunk, version) = middle.split_once('_')?;
    if chunk.len() != 16 || version.len() != 8 {
        return None;
    }
    Some((u64::from_str_radix(chunk, 16).ok()?, u32::from_str_radix(version, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_chunks_are_counted() {
        assert_eq!(parse_name("chunk_00000000000000A1_00000002.mfs"), Some((0xA1, 2)));
        assert_eq!(parse_name("chunk_A1_2.mfs"), None);
        assert_eq!(parse_name("reptmp_chunk_00000000000000A1"), None);
    }
}
