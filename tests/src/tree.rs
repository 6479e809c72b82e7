//! Folders full of everything that a file system must keep, and how two of them differ.
//!
//! A tree is made from a seed, so that a failing copy can be repeated. It holds files around every size at which the
//! protocol changes its ways (block, chunk, holes), names with odd bytes, links of both kinds, special files, modes,
//! owners and times. A picture of it ([`look`]) keeps what must survive a copy: type, mode, owner, length, content,
//! modification time in whole seconds (Spec 10: times are 32-bit seconds), and which names are one file.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::fs::{self, File, FileTimes, Permissions};
use std::hash::Hasher;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// What [`grow`] makes.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub folders: usize,
    pub files: usize,
    /// Also a file of more than one chunk (64 MiB), with holes.
    pub large: bool,
}

impl Plan {
    /// A few hundred files, about 100 MiB with the large one.
    pub fn medium(seed: u64) -> Plan {
        Plan { seed, folders: 20, files: 250, large: true }
    }

    /// Some dozen files, a few MiB.
    pub fn small(seed: u64) -> Plan {
        Plan { seed, folders: 6, files: 40, large: false }
    }
}

/// What must survive a copy, for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub kind: &'static str,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file or symlink, 0 for the others.
    pub length_bytes: u64,
    pub mtime_seconds: i64,
    /// Of a file's content or a symlink's target.
    pub hash: u64,
    /// Device numbers of device nodes.
    pub device: u64,
    /// The first name, in order, of the same file.
    pub same_as: PathBuf,
}

/// Sizes at which something changes: nothing, one byte, around a page, around a block, several blocks.
const SIZES: [usize; 12] = [0, 1, 13, 4095, 4096, 4097, 65535, 65536, 65537, 131_072, 200_003, 1_500_000];

/// Make a tree in the new folder `root`. Root may do more (owners, devices); what an ordinary user may not is left out.
pub fn grow(root: &Path, plan: Plan) -> io::Result<()> {
    let mut random = Random::new(plan.seed);
    fs::create_dir(root)?;
    let mut folders = vec![root.to_owned()];
    for number in 0..plan.folders {
        let parent = folders[random.below(folders.len())].clone();
        let folder = parent.join(name(&mut random, number, "d"));
        fs::create_dir(&folder)?;
        folders.push(folder);
    }
    let mut files = Vec::new();
    for number in 0..plan.files {
        let path = folders[random.below(folders.len())].join(name(&mut random, number, "f"));
        let size = SIZES.get(number).copied().unwrap_or_else(|| usual_size(&mut random));
        fs::write(&path, content(&mut random, size))?;
        files.push(path);
    }
    if plan.large {
        let path = root.join("more than one chunk");
        write_with_holes(&path, &mut random)?;
        files.push(path);
    }
    for number in 0..plan.files / 20 + 2 {
        let path = folders[random.below(folders.len())].join(format!("symlink{number}"));
        let target = match number % 3 {
            0 => PathBuf::from("/nowhere/at all"),
            1 => files[random.below(files.len())].clone(),
            _ => PathBuf::from("../".repeat(1 + random.below(40)) + "x"),
        };
        symlink(target, path)?;
    }
    for number in 0..plan.files / 20 + 2 {
        let path = folders[random.below(folders.len())].join(format!("hardlink{number}"));
        fs::hard_link(&files[random.below(files.len())], path)?;
    }
    special_files(root)?;
    attributes(&mut random, &files, &folders)
}

/// Modes, owners, then times: the order in which each survives the next.
fn attributes(random: &mut Random, files: &[PathBuf], folders: &[PathBuf]) -> io::Result<()> {
    const FILE_MODES: [u32; 8] = [0o644, 0o600, 0o755, 0o444, 0o400, 0o4755, 0o2755, 0o666];
    const FOLDER_MODES: [u32; 4] = [0o755, 0o700, 0o1777, 0o2775];
    for (paths, modes) in [(files, &FILE_MODES[..]), (folders, &FOLDER_MODES[..])] {
        for path in paths {
            if random.below(4) == 0 {
                chown(path, Some(1000), Some(1001)).or_else(ignore_permission)?;
            }
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + random.next() % 700_000_000);
            File::open(path)?.set_times(FileTimes::new().set_modified(when).set_accessed(when))?;
            fs::set_permissions(path, Permissions::from_mode(modes[random.below(modes.len())]))?;
        }
    }
    Ok(())
}

fn special_files(root: &Path) -> io::Result<()> {
    run(Command::new("mkfifo").arg(root.join("a fifo")))?;
    std::os::unix::net::UnixListener::bind(root.join("a socket")).ok(); // its path may be too long for a socket
    // Not everybody may make devices, not even every root.
    run(Command::new("mknod").arg(root.join("a device")).args(["c", "1", "3"])).ok();
    Ok(())
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.stderr(std::process::Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("{command:?}: {status}"))) }
}

fn ignore_permission(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::PermissionDenied { Ok(()) } else { Err(error) }
}

/// Names that have broken programs before: blanks, line ends, no UTF-8, the longest one, and many plain ones.
fn name(random: &mut Random, number: usize, letter: &str) -> PathBuf {
    let plain = format!("{letter}{number:04}");
    let bytes = match number % 13 {
        3 => format!("{plain} with blanks ").into_bytes(),
        5 => format!("{plain}\nand a line end\t").into_bytes(),
        7 => [plain.as_bytes(), &[0xFF, 0xFE, 0x01, b'\\', b'"', b'\'']].concat(),
        9 => [plain.as_bytes(), "-äöü-漢字-🦌".as_bytes()].concat(),
        11 => format!("-{plain}*?[x]$(y)|;&").into_bytes(),
        12 => [plain.as_bytes(), &vec![b'n'; 255 - plain.len()]].concat(),
        _ => format!("{plain}-{:x}", random.next() & 0xFFFF).into_bytes(),
    };
    PathBuf::from(OsStr::from_bytes(&bytes))
}

fn usual_size(random: &mut Random) -> usize {
    match random.below(10) {
        0 => 0,
        1..=6 => random.below(20_000),
        7 | 8 => random.below(200_000),
        _ => random.below(1_000_000),
    }
}

/// Random bytes, zeros, or a repeated line.
fn content(random: &mut Random, size: usize) -> Vec<u8> {
    match random.below(4) {
        0 => vec![0; size],
        1 => b"the moose is moored\n".iter().copied().cycle().take(size).collect(),
        _ => random.bytes(size),
    }
}

/// 64 MiB and a little, written in a few places only: holes inside a block, of whole blocks, across the chunk's end.
fn write_with_holes(path: &Path, random: &mut Random) -> io::Result<()> {
    const CHUNK_BYTES: u64 = 64 << 20;
    let mut file = File::create(path)?;
    for (offset, length) in
        [(0, 100_000), (1_000_003, 70_000), (CHUNK_BYTES - 90_000, 180_000), (CHUNK_BYTES + (1 << 20), 3_000_000)]
    {
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(&random.bytes(length))?;
    }
    file.set_len(CHUNK_BYTES + 5_000_001)
}

/// A picture of everything under `root`, by relative path. Reads every byte.
pub fn look(root: &Path) -> io::Result<BTreeMap<PathBuf, Picture>> {
    let mut pictures = BTreeMap::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(relative) = waiting.pop() {
        let path = root.join(&relative);
        let metadata = fs::symlink_metadata(&path).map_err(|error| within(&path, error))?;
        if metadata.is_dir() {
            for entry in fs::read_dir(&path).map_err(|error| within(&path, error))? {
                waiting.push(relative.join(entry.map_err(|error| within(&path, error))?.file_name()));
            }
        }
        let picture = picture(&path, &metadata).map_err(|error| within(&path, error))?;
        pictures.insert(relative, ((metadata.dev(), metadata.ino()), picture));
    }
    let mut first_names = BTreeMap::new();
    let named = pictures.into_iter().map(|(relative, (identity, mut picture))| {
        picture.same_as = first_names.entry(identity).or_insert_with(|| relative.clone()).clone();
        (relative, picture)
    });
    Ok(named.collect())
}

fn within(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn picture(path: &Path, metadata: &fs::Metadata) -> io::Result<Picture> {
    let kind = metadata.file_type();
    let (name, length_bytes, hash) = if kind.is_file() {
        ("file", metadata.len(), hash_file(path)?)
    } else if kind.is_symlink() {
        ("symlink", metadata.len(), hash_bytes(fs::read_link(path)?.as_os_str().as_bytes()))
    } else {
        let name = match () {
            () if kind.is_dir() => "folder",
            () if kind.is_fifo() => "fifo",
            () if kind.is_socket() => "socket",
            () if kind.is_char_device() => "character device",
            () => "block device",
        };
        (name, 0, 0)
    };
    let is_device = kind.is_char_device() || kind.is_block_device();
    Ok(Picture {
        kind: name,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        length_bytes,
        mtime_seconds: metadata.mtime(),
        hash,
        device: if is_device { metadata.rdev() } else { 0 },
        same_as: PathBuf::new(),
    })
}

/// A hash of the file's content, read from its start to its end.
pub fn hash_file(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.write(&buffer[..length]),
        }
    }
}

fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Every difference between two pictures, one sentence each, `left` and `right` being what the trees are called.
pub fn differences(
    left: &str,
    old: &BTreeMap<PathBuf, Picture>,
    right: &str,
    new: &BTreeMap<PathBuf, Picture>,
) -> Vec<String> {
    let mut found = Vec::new();
    for (path, was) in old {
        match new.get(path) {
            None => found.push(format!("{}: only in {left}", path.display())),
            Some(is) if is != was => {
                found.push(format!("{}: {left} {was:?}, {right} {is:?}", path.display()));
            }
            Some(_) => {}
        }
    }
    found.extend(
        new.keys().filter(|path| !old.contains_key(*path)).map(|p| format!("{}: only in {right}", p.display())),
    );
    found
}

/// Panics with the first differences between the trees `left` and `right`.
pub fn assert_same(left: &Path, right: &Path) {
    let old = look(left).unwrap_or_else(|error| panic!("reading {}: {error}", left.display()));
    let new = look(right).unwrap_or_else(|error| panic!("reading {}: {error}", right.display()));
    assert_pictures_same(&left.display().to_string(), &old, &right.display().to_string(), &new);
}

/// As [`assert_same`], for pictures taken before.
pub fn assert_pictures_same(
    left: &str,
    old: &BTreeMap<PathBuf, Picture>,
    right: &str,
    new: &BTreeMap<PathBuf, Picture>,
) {
    let found = differences(left, old, right, new);
    let first: Vec<&String> = found.iter().take(10).collect();
    assert!(found.is_empty(), "{} differences between {left} and {right}, the first: {first:#?}", found.len());
}

/// `cp -a source target`, with `target` a name that does not exist yet.
pub fn copy(source: &Path, target: &Path) {
    let output = Command::new("cp").arg("-a").arg(source).arg(target).output().expect("the program `cp` runs");
    assert!(
        output.status.success(),
        "cp -a {} {}: {}",
        source.display(),
        target.display(),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Small and repeatable: splitmix64. Not for anything secret.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    #[allow(clippy::should_implement_trait, reason = "not an iterator: it never ends and has no borrower")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to `bound - 1`; `bound` is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_be_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_equal_and_any_change_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        grow(&first, Plan::small(1)).unwrap();
        copy(&first, &second);
        assert_same(&first, &second);

        let victim =
            look(&second).unwrap().into_iter().find(|(_, p)| p.kind == "file" && p.length_bytes > 9).unwrap().0;
        let before = look(&second).unwrap();
        let path = second.join(&victim);
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(5).unwrap();
        file.set_times(FileTimes::new().set_modified(times)).unwrap();
        let found = differences("before", &before, "after", &look(&second).unwrap());
        assert!(!found.is_empty());
    }

    #[test]
    fn the_same_seed_makes_the_same_tree() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (folder.path().join("first"), folder.path().join("second"));
        grow(&first, Plan::small(7)).unwrap();
        grow(&second, Plan::small(7)).unwrap();
        let kept = |root| {
            look(root).unwrap().into_iter().filter(|(_, p)| p.kind == "file").map(|(path, p)| (path, p.hash, p.mode))
        };
        assert!(kept(&first).eq(kept(&second)));
    }
}
