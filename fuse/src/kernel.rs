//! The kernel's FUSE protocol: bytes of /dev/fuse to [`Request`], [`Reply`] to bytes.
//!
//! Layouts are those of Linux's `include/uapi/linux/fuse.h` at protocol 7.40, the minor that the handshake announces
//! (see [`crate::device`]); the kernel then uses the forms of that minor. Numbers are in the machine's own byte order.
//! Nothing here touches the device, so every transport shares it. What the kernel sends is trusted to be complete,
//! yet a message that is too short is an error, not a panic.

#![allow(clippy::host_endian_bytes)] // the kernel's own interface is in host order

use std::time::Duration;

use crate::reply::{Attributes, Entry, Errno, Opened, Reply, Statistics};
use crate::request::{Caller, ForgetEntry, Lock, NameBytes, Operation, Payload, Request, SetAttributes, SetTime};

/// Bytes in front of each request.
pub const REQUEST_HEAD_BYTES: usize = 40;
/// Bytes in front of each reply.
pub const REPLY_HEAD_BYTES: usize = 16;
/// Bytes between the head of a WRITE and its data.
pub const WRITE_HEAD_BYTES: usize = 40;
/// The head, the arguments and one page to spare: what a request takes beside the data of a write.
pub const REQUEST_OVERHEAD_BYTES: usize = 4096;

/// The message that came from the kernel makes no sense; the connection cannot be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Of which operation.
    pub opcode: u32,
}

mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const READLINK: u32 = 5;
    pub(super) const SYMLINK: u32 = 6;
    pub(super) const MKNOD: u32 = 8;
    pub(super) const MKDIR: u32 = 9;
    pub(super) const UNLINK: u32 = 10;
    pub(super) const RMDIR: u32 = 11;
    pub(super) const RENAME: u32 = 12;
    pub(super) const LINK: u32 = 13;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const SETXATTR: u32 = 21;
    pub(super) const GETXATTR: u32 = 22;
    pub(super) const LISTXATTR: u32 = 23;
    pub(super) const REMOVEXATTR: u32 = 24;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const OPENDIR: u32 = 27;
    pub(super) const READDIR: u32 = 28;
    pub(super) const RELEASEDIR: u32 = 29;
    pub(super) const FSYNCDIR: u32 = 30;
    pub(super) const GETLK: u32 = 31;
    pub(super) const SETLK: u32 = 32;
    pub(super) const SETLKW: u32 = 33;
    pub(super) const ACCESS: u32 = 34;
    pub(super) const CREATE: u32 = 35;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
    pub(super) const READDIRPLUS: u32 = 44;
    pub(super) const RENAME2: u32 = 45;
    pub(super) const LSEEK: u32 = 46;
}

/// Bits of `fuse_setattr_in.valid`.
mod valid {
    pub(super) const MODE: u32 = 1 << 0;
    pub(super) const UID: u32 = 1 << 1;
    pub(super) const GID: u32 = 1 << 2;
    pub(super) const SIZE: u32 = 1 << 3;
    pub(super) const ATIME: u32 = 1 << 4;
    pub(super) const MTIME: u32 = 1 << 5;
    pub(super) const HANDLE: u32 = 1 << 6;
    pub(super) const ATIME_NOW: u32 = 1 << 7;
    pub(super) const MTIME_NOW: u32 = 1 << 8;
    pub(super) const CLEARS_PRIVILEGES: u32 = 1 << 11;
}

/// `fuse_lk_in.lk_flags`: a lock of flock(2).
const LOCK_WHOLE_FILE: u32 = 1 << 0;
/// `fuse_getattr_in.getattr_flags`: the handle is valid.
const GETATTR_HANDLE: u32 = 1 << 0;
/// `fuse_write_in.write_flags`: suid and sgid must go.
const WRITE_CLEARS_PRIVILEGES: u32 = 1 << 2;
/// `fuse_open_in.open_flags`: suid and sgid must go, because of O_TRUNC.
const OPEN_CLEARS_PRIVILEGES: u32 = 1 << 0;
/// `fuse_fsync_in.fsync_flags`: fdatasync.
const SYNC_DATA_ONLY: u32 = 1 << 0;

/// Where the data of a WRITE lies in `message`, or `None` for any other operation: lets a transport keep the buffer
/// and hand the data on without copying it.
pub fn write_data_range(message: &[u8]) -> Option<std::ops::Range<usize>> {
    let mut head = Arguments { rest: message, opcode: 0 };
    head.u32().ok()?;
    if head.u32().ok()? != opcode::WRITE {
        return None;
    }
    let mut size = Arguments { rest: message.get(REQUEST_HEAD_BYTES + 16..)?, opcode: opcode::WRITE };
    let size_bytes = size.u32().ok()? as usize;
    let start = REQUEST_HEAD_BYTES + WRITE_HEAD_BYTES;
    (start + size_bytes <= message.len()).then_some(start..start + size_bytes)
}

/// Decode one message of the kernel. The data of a WRITE is what `payload` makes of its range in `message`.
pub fn decode(message: &[u8], payload: impl FnOnce(std::ops::Range<usize>) -> Payload) -> Result<Request, Malformed> {
    let mut head = Arguments { rest: message, opcode: 0 };
    let length = head.u32()? as usize;
    let opcode = head.u32()?;
    head.opcode = opcode;
    let unique = head.u64()?;
    let inode = head.u64()?;
    let caller = Caller { uid: head.u32()?, gid: head.u32()?, pid: head.u32()? };
    head.u32()?;
    if length != message.len() {
        return Err(Malformed { opcode });
    }
    let operation = operation(head, message, payload)?;
    Ok(Request { unique, inode, caller, operation })
}

fn operation(
    mut a: Arguments<'_>,
    message: &[u8],
    payload: impl FnOnce(std::ops::Range<usize>) -> Payload,
) -> Result<Operation, Malformed> {
    use Operation as O;
    Ok(match a.opcode {
        opcode::LOOKUP => O::Lookup { name: a.name()? },
        opcode::FORGET => O::Forget { entries: vec![ForgetEntry { inode: inode_of(message), count: a.u64()? }] },
        opcode::BATCH_FORGET => {
            let count = a.u32()? as usize;
            a.u32()?;
            let entry = |_| Ok(ForgetEntry { inode: a.u64()?, count: a.u64()? });
            O::Forget { entries: (0..count.min(message.len() / 16)).map(entry).collect::<Result<_, Malformed>>()? }
        }
        opcode::GETATTR => {
            let flags = a.u32()?;
            a.u32()?;
            let handle = a.u64()?;
            O::GetAttributes { handle: (flags & GETATTR_HANDLE != 0).then_some(handle) }
        }
        opcode::SETATTR => O::SetAttributes(set_attributes(a)?),
        opcode::READLINK => O::ReadLink,
        opcode::SYMLINK => O::SymbolicLink { name: a.name()?, target: a.name()? },
        opcode::MKNOD => {
            let (mode, device, umask) = (a.u32()?, a.u32()?, a.u32()?);
            a.u32()?;
            O::MakeNode { name: a.name()?, mode, umask, device }
        }
        opcode::MKDIR => {
            let (mode, umask) = (a.u32()?, a.u32()?);
            O::MakeDirectory { name: a.name()?, mode, umask }
        }
        opcode::UNLINK => O::Unlink { name: a.name()? },
        opcode::RMDIR => O::RemoveDirectory { name: a.name()? },
        opcode::RENAME => {
            let new_directory = a.u64()?;
            O::Rename { name: a.name()?, new_directory, new_name: a.name()?, flags: 0 }
        }
        opcode::RENAME2 => {
            let (new_directory, flags) = (a.u64()?, a.u32()?);
            a.u32()?;
            O::Rename { name: a.name()?, new_directory, new_name: a.name()?, flags }
        }
        opcode::LINK => O::Link { source: a.u64()?, name: a.name()? },
        opcode::OPEN => O::Open { flags: a.i32()?, clears_privileges: a.u32()? & OPEN_CLEARS_PRIVILEGES != 0 },
        opcode::CREATE => {
            let (flags, mode, umask) = (a.i32()?, a.u32()?, a.u32()?);
            a.u32()?;
            O::Create { name: a.name()?, mode, umask, flags }
        }
        opcode::READ => {
            let (handle, offset_bytes, size_bytes) = (a.u64()?, a.u64()?, a.u32()?);
            O::Read { handle, offset_bytes, size_bytes }
        }
        opcode::WRITE => {
            let (handle, offset_bytes) = (a.u64()?, a.u64()?);
            a.u32()?; // the size, see write_data_range
            let clears_privileges = a.u32()? & WRITE_CLEARS_PRIVILEGES != 0;
            let range = write_data_range(message).ok_or(Malformed { opcode: a.opcode })?;
            O::Write { handle, offset_bytes, data: payload(range), clears_privileges }
        }
        opcode::FLUSH => {
            let handle = a.u64()?;
            a.u64()?;
            O::Flush { handle, lock_owner: a.u64()? }
        }
        opcode::RELEASE => {
            let (handle, flags) = (a.u64()?, a.i32()?);
            a.u32()?;
            O::Release { handle, flags, lock_owner: a.u64()? }
        }
        opcode::FSYNC => {
            let (handle, flags) = (a.u64()?, a.u32()?);
            O::Sync { handle, data_only: flags & SYNC_DATA_ONLY != 0 }
        }
        opcode::OPENDIR => O::OpenDirectory { flags: a.i32()? },
        code @ (opcode::READDIR | opcode::READDIRPLUS) => {
            let (handle, offset, size_bytes) = (a.u64()?, a.u64()?, a.u32()?);
            O::ReadDirectory { handle, offset, size_bytes, with_attributes: code == opcode::READDIRPLUS }
        }
        opcode::RELEASEDIR => O::ReleaseDirectory { handle: a.u64()? },
        opcode::FSYNCDIR => O::SyncDirectory { handle: a.u64()? },
        opcode::STATFS => O::FileSystemStatistics,
        opcode::ACCESS => O::Access { mask: a.u32()? },
        opcode::GETXATTR => {
            let size_bytes = a.u32()?;
            a.u32()?;
            O::GetExtendedAttribute { name: a.name()?, size_bytes }
        }
        opcode::SETXATTR => {
            let (size_bytes, flags) = (a.u32()? as usize, a.i32()?);
            let name = a.name()?;
            let value = a.rest.get(..size_bytes).ok_or(Malformed { opcode: a.opcode })?;
            O::SetExtendedAttribute { name, value: value.into(), flags }
        }
        opcode::LISTXATTR => O::ListExtendedAttributes { size_bytes: a.u32()? },
        opcode::REMOVEXATTR => O::RemoveExtendedAttribute { name: a.name()? },
        code @ (opcode::GETLK | opcode::SETLK | opcode::SETLKW) => {
            let (handle, owner) = (a.u64()?, a.u64()?);
            let lock = Lock { start_bytes: a.u64()?, end_bytes: a.u64()?, kind: a.i32()?, pid: a.u32()? };
            let whole_file = a.u32()? & LOCK_WHOLE_FILE != 0;
            match code {
                opcode::GETLK => O::GetLock { handle, owner, lock },
                _ => O::SetLock { handle, owner, lock, wait: code == opcode::SETLKW, whole_file },
            }
        }
        opcode::FALLOCATE => {
            let (handle, offset_bytes, length_bytes) = (a.u64()?, a.u64()?, a.u64()?);
            O::Allocate { handle, offset_bytes, length_bytes, mode: a.i32()? }
        }
        opcode::LSEEK => O::Seek { handle: a.u64()?, offset_bytes: a.u64()?, whence: a.i32()? },
        opcode::INTERRUPT => O::Interrupt { unique: a.u64()? },
        opcode::DESTROY => O::Destroy,
        opcode => O::Unknown { opcode },
    })
}

fn set_attributes(mut a: Arguments<'_>) -> Result<SetAttributes, Malformed> {
    let valid = a.u32()?;
    a.u32()?;
    let (handle, size_bytes) = (a.u64()?, a.u64()?);
    a.u64()?; // lock owner
    let (atime, mtime) = (a.i64()?, a.i64()?);
    a.i64()?; // ctime is the server's business
    let (atime_nanos, mtime_nanos) = (a.u32()?, a.u32()?);
    a.u32()?;
    let mode = a.u32()?;
    a.u32()?;
    let (uid, gid) = (a.u32()?, a.u32()?);
    let has = |bit: u32| valid & bit != 0;
    let time = |set, now, seconds, nanos| match (has(set), has(now)) {
        (_, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(seconds, nanos)),
        (false, false) => None,
    };
    Ok(SetAttributes {
        handle: has(valid::HANDLE).then_some(handle),
        size_bytes: has(valid::SIZE).then_some(size_bytes),
        mode: has(valid::MODE).then_some(mode),
        uid: has(valid::UID).then_some(uid),
        gid: has(valid::GID).then_some(gid),
        atime: time(valid::ATIME, valid::ATIME_NOW, atime, atime_nanos),
        mtime: time(valid::MTIME, valid::MTIME_NOW, mtime, mtime_nanos),
        clears_privileges: has(valid::CLEARS_PRIVILEGES),
    })
}

/// The inode in the head of a message whose head was read already.
fn inode_of(message: &[u8]) -> u64 {
    u64::from_ne_bytes(message[16..24].try_into().expect("eight bytes"))
}

/// The arguments behind the head, taken one after the other.
struct Arguments<'a> {
    rest: &'a [u8],
    opcode: u32,
}

impl Arguments<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed { opcode: self.opcode })?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.bytes().map(u32::from_ne_bytes)
    }

    fn i32(&mut self) -> Result<i32, Malformed> {
        self.bytes().map(i32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.bytes().map(u64::from_ne_bytes)
    }

    fn i64(&mut self) -> Result<i64, Malformed> {
        self.bytes().map(i64::from_ne_bytes)
    }

    /// A string up to its NUL.
    fn name(&mut self) -> Result<NameBytes, Malformed> {
        let end = self.rest.iter().position(|&byte| byte == 0).ok_or(Malformed { opcode: self.opcode })?;
        let name = self.rest[..end].into();
        self.rest = &self.rest[end + 1..];
        Ok(name)
    }
}

/// Encode an answer: the head and the fixed part. The bytes of [`Reply::Data`] follow it as they are, and are already
/// counted in the head.
pub fn encode(unique: u64, answer: &Result<Reply, Errno>) -> Vec<u8> {
    let mut out = Vec::with_capacity(REPLY_HEAD_BYTES + 144);
    out.extend_from_slice(&[0; REPLY_HEAD_BYTES]);
    let mut error = 0;
    let mut data_bytes = 0;
    match answer {
        Err(errno) => error = -errno.0,
        Ok(Reply::Empty) => {}
        Ok(Reply::Entry(entry)) => put_entry(&mut out, entry),
        Ok(Reply::Attributes(attributes, timeout)) => {
            put_u64(&mut out, timeout.as_secs());
            put_u32(&mut out, timeout.subsec_nanos());
            put_u32(&mut out, 0);
            put_attributes(&mut out, attributes);
        }
        Ok(Reply::Opened(opened)) => put_opened(&mut out, opened),
        Ok(Reply::Created(entry, opened)) => {
            put_entry(&mut out, entry);
            put_opened(&mut out, opened);
        }
        Ok(Reply::Data(parts)) => data_bytes = parts.iter().map(|part| part.as_ref().as_ref().len()).sum(),
        Ok(Reply::Written(size) | Reply::Size(size)) => {
            put_u32(&mut out, *size);
            put_u32(&mut out, 0);
        }
        Ok(Reply::Statistics(statistics)) => put_statistics(&mut out, statistics),
        Ok(Reply::Lock(lock)) => {
            put_u64(&mut out, lock.start_bytes);
            put_u64(&mut out, lock.end_bytes);
            out.extend_from_slice(&lock.kind.to_ne_bytes());
            put_u32(&mut out, lock.pid);
        }
        Ok(Reply::Offset(offset)) => put_u64(&mut out, *offset),
    }
    let length = out.len() + data_bytes;
    put_head(&mut out, length, error, unique);
    out
}

/// The kernel shall drop the pages of `inode` from `offset` on for `length` bytes (0 = to the end), and its attributes.
/// A negative `offset` drops the attributes alone.
pub fn invalidate_inode(inode: u64, offset_bytes: i64, length_bytes: i64) -> Vec<u8> {
    let mut out = vec![0; REPLY_HEAD_BYTES];
    put_u64(&mut out, inode);
    out.extend_from_slice(&offset_bytes.to_ne_bytes());
    out.extend_from_slice(&length_bytes.to_ne_bytes());
    notification(out, 2)
}

/// The kernel shall forget what `name` in directory `parent` means.
pub fn invalidate_entry(parent: u64, name: &[u8]) -> Vec<u8> {
    let mut out = vec![0; REPLY_HEAD_BYTES];
    put_u64(&mut out, parent);
    put_u32(&mut out, length_u32(name.len()));
    put_u32(&mut out, 0);
    out.extend_from_slice(name);
    out.push(0);
    notification(out, 3)
}

/// A notification is a reply to nobody, its code where the error stands.
fn notification(mut out: Vec<u8>, code: i32) -> Vec<u8> {
    let length = out.len();
    put_head(&mut out, length, code, 0);
    out
}

fn put_head(out: &mut [u8], length: usize, error: i32, unique: u64) {
    out[..4].copy_from_slice(&length_u32(length).to_ne_bytes());
    out[4..8].copy_from_slice(&error.to_ne_bytes());
    out[8..16].copy_from_slice(&unique.to_ne_bytes());
}

fn length_u32(length: usize) -> u32 {
    u32::try_from(length).expect("a message is as long as a request asked for, far below 4 GiB")
}

/// Append an entry of a directory listing to `out` unless that would make it longer than `size_bytes_max`.
///
/// `offset` is what a later request names to go on behind this entry. `entry` is given for a listing with attributes;
/// without cache times (inode 0) the kernel takes name and type only. Returns whether it fitted.
pub fn put_directory_entry(
    out: &mut Vec<u8>,
    size_bytes_max: usize,
    offset: u64,
    inode: u64,
    type_bits: u32,
    name: &[u8],
    entry: Option<&Entry>,
) -> bool {
    let fixed = if entry.is_some() { 128 + 24 } else { 24 };
    let padded = (fixed + name.len()).next_multiple_of(8);
    if out.len() + padded > size_bytes_max {
        return false;
    }
    let end = out.len() + padded;
    if let Some(entry) = entry {
        put_entry(out, entry);
    }
    put_u64(out, inode);
    put_u64(out, offset);
    put_u32(out, length_u32(name.len()));
    put_u32(out, type_bits >> 12);
    out.extend_from_slice(name);
    out.resize(end, 0);
    true
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_ne_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_ne_bytes());
}

/// Generation is always 1: inode numbers are the master's. Spec 72, 4.1.
fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put_u64(out, entry.attributes.inode);
    put_u64(out, 1);
    put_u64(out, entry.entry_timeout.as_secs());
    put_u64(out, entry.attributes_timeout.as_secs());
    put_u32(out, entry.entry_timeout.subsec_nanos());
    put_u32(out, entry.attributes_timeout.subsec_nanos());
    put_attributes(out, &entry.attributes);
}

fn put_attributes(out: &mut Vec<u8>, a: &Attributes) {
    put_u64(out, a.inode);
    put_u64(out, a.size_bytes);
    put_u64(out, a.blocks_512);
    for time in [a.atime, a.mtime, a.ctime] {
        out.extend_from_slice(&time.0.to_ne_bytes());
    }
    for time in [a.atime, a.mtime, a.ctime] {
        put_u32(out, time.1);
    }
    for value in [a.mode, a.links, a.uid, a.gid, a.device, a.block_bytes, 0] {
        put_u32(out, value);
    }
}

fn put_opened(out: &mut Vec<u8>, opened: &Opened) {
    let flag = |set: bool, bit: u32| if set { 1 << bit } else { 0 };
    put_u64(out, opened.handle);
    put_u32(
        out,
        flag(opened.direct_io, 0)
            | flag(opened.keep_cache, 1)
            | flag(opened.cache_directory, 3)
            | flag(opened.no_flush, 5)
            | flag(opened.parallel_direct_writes, 6),
    );
    put_u32(out, 0);
}

fn put_statistics(out: &mut Vec<u8>, s: &Statistics) {
    for value in [s.blocks, s.blocks_free, s.blocks_available, s.files, s.files_free] {
        put_u64(out, value);
    }
    for value in [s.block_bytes, s.name_length_max, s.block_bytes, 0, 0, 0, 0, 0, 0, 0] {
        put_u32(out, value);
    }
}

/// How long the kernel may believe something: `f64` seconds of an option to a time.
pub fn timeout(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, inode: u64, arguments: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_u32(&mut out, u32::try_from(REQUEST_HEAD_BYTES + arguments.len()).expect("short"));
        put_u32(&mut out, opcode);
        put_u64(&mut out, 77);
        put_u64(&mut out, inode);
        for value in [1000, 100, 4242, 0] {
            put_u32(&mut out, value);
        }
        out.extend_from_slice(arguments);
        out
    }

    fn decoded(bytes: &[u8]) -> Result<Request, Malformed> {
        decode(bytes, |range| Payload::new(bytes.to_vec(), range))
    }

    #[test]
    fn a_lookup_carries_name_and_caller() {
        let request = decoded(&message(opcode::LOOKUP, 5, b"file\0")).expect("well formed");
        assert_eq!((request.unique, request.inode), (77, 5));
        assert_eq!(request.caller, Caller { uid: 1000, gid: 100, pid: 4242 });
        assert!(matches!(request.operation, Operation::Lookup { name } if &*name == b"file"));
    }

    #[test]
    fn every_message_cut_short_is_refused_or_unknown() {
        let long = message(0, 5, &[1; 120]);
        for code in 1..60u32 {
            for length in 0..long.len() {
                let mut cut = long[..length].to_vec();
                if length >= 8 {
                    cut[..4].copy_from_slice(&u32::try_from(length).expect("short").to_ne_bytes());
                    cut[4..8].copy_from_slice(&code.to_ne_bytes());
                }
                let _ = decoded(&cut); // must not panic
                if length < REQUEST_HEAD_BYTES {
                    assert!(decoded(&cut).is_err());
                }
            }
        }
    }

    #[test]
    fn the_data_of_a_write_is_found_behind_its_arguments() {
        let mut arguments = Vec::new();
        put_u64(&mut arguments, 9);
        put_u64(&mut arguments, 4096);
        put_u32(&mut arguments, 3);
        arguments.extend_from_slice(&[0; 20]);
        arguments.extend_from_slice(b"abc");
        let bytes = message(opcode::WRITE, 5, &arguments);
        let Operation::Write { handle, offset_bytes, data, .. } = decoded(&bytes).expect("well formed").operation
        else {
            panic!("a write is a write");
        };
        assert_eq!((handle, offset_bytes, &*data), (9, 4096, &b"abc"[..]));
        assert_eq!(write_data_range(&bytes[..bytes.len() - 1]), None);
    }

    #[test]
    fn a_setattr_tells_now_from_a_given_time() {
        let mut arguments = vec![0; 88];
        arguments[..4].copy_from_slice(&(valid::ATIME | valid::MTIME | valid::MTIME_NOW | valid::MODE).to_ne_bytes());
        arguments[32..40].copy_from_slice(&(-5i64).to_ne_bytes());
        arguments[56..60].copy_from_slice(&7u32.to_ne_bytes());
        arguments[68..72].copy_from_slice(&0o100644u32.to_ne_bytes());
        let request = decoded(&message(opcode::SETATTR, 5, &arguments)).expect("well formed");
        let Operation::SetAttributes(set) = request.operation else { panic!("a setattr is a setattr") };
        assert_eq!(
            set,
            SetAttributes {
                mode: Some(0o100644),
                atime: Some(SetTime::At(-5, 7)),
                mtime: Some(SetTime::Now),
                ..SetAttributes::default()
            }
        );
    }

    #[test]
    fn replies_have_the_lengths_of_the_kernel_header() {
        let entry = Entry {
            attributes: Attributes::default(),
            entry_timeout: Duration::ZERO,
            attributes_timeout: Duration::from_secs(1),
        };
        let check = |reply, expected: usize| {
            let bytes = encode(1, &Ok(reply));
            assert_eq!(bytes.len(), REPLY_HEAD_BYTES + expected);
            assert_eq!(bytes[..4], u32::try_from(bytes.len()).expect("short").to_ne_bytes());
        };
        check(Reply::Empty, 0);
        check(Reply::Entry(entry), 128);
        check(Reply::Attributes(Attributes::default(), Duration::ZERO), 104);
        check(Reply::Opened(Opened::default()), 16);
        check(Reply::Created(entry, Opened::default()), 144);
        check(Reply::Written(5), 8);
        check(Reply::Statistics(Statistics::default()), 80);
        check(Reply::Lock(Lock { start_bytes: 0, end_bytes: 1, kind: 2, pid: 3 }), 24);
        check(Reply::Offset(5), 8);
        let data = encode(1, &Ok(Reply::bytes(vec![1, 2, 3])));
        assert_eq!((data.len(), data[0]), (16, 19));
        assert_eq!(encode(1, &Err(Errno(2)))[4..8], (-2i32).to_ne_bytes());
    }

    #[test]
    fn a_directory_entry_that_does_not_fit_is_left_out() {
        let mut out = Vec::new();
        assert!(put_directory_entry(&mut out, 64, 1, 5, 0o100644, b"12345678", None));
        assert_eq!(out.len(), 32);
        assert!(put_directory_entry(&mut out, 64, 2, 6, 0o040755, b"a", None));
        assert_eq!(out.len(), 64);
        assert!(!put_directory_entry(&mut out, 64, 3, 7, 0o100644, b"b", None));
        assert_eq!(out.len(), 64);
    }
}
