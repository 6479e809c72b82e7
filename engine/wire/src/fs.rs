//! File-system and chunk operations between client and master, port 9421. Spec 31 and 32.
//!
//! Every packet begins with a message id that the answer echoes. An answer of exactly one byte behind it is a status:
//! `decode_answer` tells the two apart, `encode_status` makes the short one.

use crate::codec::{Entry, Field, HEADER_BYTES, Header, Input, Packet, Seed, WireError, packets, records};
use crate::limits::{PATH_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX};
use crate::ticket::GivenTicket;
use crate::types::{
    Attr, ChunkId, Gids, Inode, Ip4, Location, Name, NodeKind, Rest, Status, Text, Version, VersionWord,
};

/// The answer `kind` with a status only: header, message id, status. Spec 30, 1.
pub fn encode_status(kind: u32, msgid: u32, status: Status) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + 5);
    out.extend_from_slice(&Header { kind, length: 5 }.encode());
    msgid.put(&mut out);
    status.put(&mut out);
    out
}

/// An answer's payload, message id included: the packet, or the status that stands in its place. Spec 30, 1.
pub fn decode_answer<P: Packet>(payload: &[u8]) -> Result<Result<P, Status>, WireError> {
    if payload.len() == 5 {
        return Ok(Err(Status(payload[4])));
    }
    P::decode(payload).map(Ok)
}

/// Flags of OPEN. Spec 31, 31.6.
pub mod open_flags {
    pub const READ: u8 = 0x01;
    pub const WRITE: u8 = 0x02;
    pub const AFTER_CREATE: u8 = 0x04;
    pub const TRUNCATE: u8 = 0x08;
    pub const CACHE_CLEARED: u8 = 0x10;
}

/// `oflags` of the answers to OPEN and CREATE. Spec 31, 31.6.
pub mod opened_flags {
    pub const KEEPCACHE: u8 = 0x01;
    pub const DIRECTMODE: u8 = 0x02;
    pub const APPENDONLY: u8 = 0x04;
}

/// `lflags` of LOOKUP's answer; the low 8 bits are access modes. Spec 31, 31.4.
pub mod lookup_flags {
    pub const CHUNK_ZERO_DATA: u16 = 0x0100;
    pub const RO_FILESYSTEM: u16 = 0x0200;
    pub const KEEPCACHE: u16 = 0x0400;
    pub const IMMUTABLE: u16 = 0x0800;
    pub const DIRECTMODE: u16 = 0x1000;
    pub const APPENDONLY: u16 = 0x2000;
}

/// `setmask` of SETATTR. Spec 31, 31.5.
pub mod set_mask {
    pub const WINATTR: u8 = 0x01;
    pub const MODE: u8 = 0x02;
    pub const UID: u8 = 0x04;
    pub const GID: u8 = 0x08;
    pub const MTIME_NOW: u8 = 0x10;
    pub const MTIME: u8 = 0x20;
    pub const ATIME: u8 = 0x40;
    pub const ATIME_NOW: u8 = 0x80;
}

/// Flags of TRUNCATE. Spec 31, 31.9.
pub mod truncate_flags {
    pub const OPENED: u8 = 0x01;
    pub const UPDATE: u8 = 0x02;
    pub const TIMEFIX: u8 = 0x04;
    pub const RESERVE: u8 = 0x08;
}

/// `chunkopflags`. Spec 31, 31.8.
pub mod chunk_op_flags {
    pub const CANMODTIME: u8 = 0x01;
    pub const CONTINUEOP: u8 = 0x02;
    pub const CANUSERESERVESPACE: u8 = 0x04;
}

/// Flags of READDIR. Spec 31, 31.6.
pub mod readdir_flags {
    pub const WITHATTR: u8 = 0x01;
    pub const ADDTOCACHE: u8 = 0x02;
}

/// Entry ids of READDIR: the start, and the end of a listing. Spec 31, 31.6.
pub const EDGE_ID_START: u64 = 0;
pub const EDGE_ID_END: u64 = 0x7FFF_FFFF_FFFF_FFFF;

packets! {
    /// Spec 31, 31.3.
    CltomaFuseStatfs = 402 { msgid: u32 }

    /// `free` is sent to clients of 3.0.102..4.0.0 and from 4.9.0 on: then the form is `MatoclFuseStatfsFree`.
    MatoclFuseStatfs = 403 { msgid: u32, total: u64, avail: u64, trash: u64, sustained: u64, inodes: u32 }

    /// Spec 31, 31.3.
    MatoclFuseStatfsFree = 403 { msgid: u32, total: u64, avail: u64, free: u64, trash: u64, sustained: u64, inodes: u32 }

    /// A status and nothing else: the answer's number is the request's plus 1.
    MatoclFuseAccess = 405 { msgid: u32, status: Status }

    /// Spec 31, 31.4.
    CltomaFuseLookup = 406 { msgid: u32, parent: Inode, name: Name, uid: u32, gids: Gids }

    /// Spec 31, 31.4. `chunk_zero` is there when `lflags` has CHUNK_ZERO_DATA.
    MatoclFuseLookup = 407 { msgid: u32, inode: Inode, attr: Attr, lflags: u16, chunk_zero: Option<ChunkZero> }

    /// Spec 31, 31.5.
    CltomaFuseGetattr = 408 { msgid: u32, inode: Inode, opened: u8, uid: u32, gid: u32 }

    /// Spec 31, 31.5.
    MatoclFuseGetattr = 409 { msgid: u32, attr: Attr }

    /// The group list must hold at least one gid: with none a 3.0.117 master crashes. Spec 31, 31.5.
    CltomaFuseSetattr = 410 {
        msgid: u32, inode: Inode, opened: u8, uid: u32, gids: Gids<21>, setmask: u8, mode: u16, attruid: u32,
        attrgid: u32, atime: u32, mtime: u32, winattr: u8, sugidclearmode: u8,
    }

    /// Spec 31, 31.5.
    MatoclFuseSetattr = 411 { msgid: u32, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseReadlink = 412 { msgid: u32, inode: Inode }

    /// With the closing NUL. Spec 31, 31.6.
    MatoclFuseReadlink = 413 { msgid: u32, target: Text<{ SYMLINK_BYTES_MAX + 1 }> }

    /// Trailing NULs of the target are ignored. Spec 31, 31.6.
    CltomaFuseSymlink = 414 { msgid: u32, parent: Inode, name: Name, target: Text<{ SYMLINK_BYTES_MAX + 1 }>, uid: u32, gids: Gids }

    /// Spec 31, 31.6.
    MatoclFuseSymlink = 415 { msgid: u32, inode: Inode, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseMknod = 416 { msgid: u32, parent: Inode, name: Name, kind: NodeKind, mode: u16, umask: u16, uid: u32, gids: Gids<4>, rdev: u32 }

    /// Spec 31, 31.6.
    MatoclFuseMknod = 417 { msgid: u32, inode: Inode, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseMkdir = 418 { msgid: u32, parent: Inode, name: Name, mode: u16, umask: u16, uid: u32, gids: Gids<1>, copysgid: u8 }

    /// Spec 31, 31.6.
    MatoclFuseMkdir = 419 { msgid: u32, inode: Inode, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseUnlink = 420 { msgid: u32, parent: Inode, name: Name, uid: u32, gids: Gids }

    /// On success, to clients of `removed_answer_has_inode`; others get a status. Spec 31, 31.6.
    MatoclFuseUnlink = 421 { msgid: u32, inode: Inode }

    /// Spec 31, 31.6.
    CltomaFuseRmdir = 422 { msgid: u32, parent: Inode, name: Name, uid: u32, gids: Gids }

    /// As `MatoclFuseUnlink`. Spec 31, 31.6.
    MatoclFuseRmdir = 423 { msgid: u32, inode: Inode }

    /// 4.x clients append a mode for masters from 4.18.0 on: 0 normal, 1 exchange, 2 no replacement. Spec 31, 31.6.
    CltomaFuseRename = 424 { msgid: u32, parent_src: Inode, name_src: Name, parent_dst: Inode, name_dst: Name, uid: u32, gids: Gids, mode: Option<u8> }

    /// Spec 31, 31.6.
    MatoclFuseRename = 425 { msgid: u32, inode: Inode, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseLink = 426 { msgid: u32, inode: Inode, parent_dst: Inode, name: Name, uid: u32, gids: Gids }

    /// Spec 31, 31.6.
    MatoclFuseLink = 427 { msgid: u32, inode: Inode, attr: Attr }

    /// Spec 31, 31.6.
    CltomaFuseReaddir = 428 { msgid: u32, inode: Inode, uid: u32, gids: Gids<13>, flags: u8, maxentries: u32, nedgeid: u64 }

    /// Listing without attributes. Spec 31, 31.6.
    MatoclFuseReaddirPlain = 429 { msgid: u32, nedgeid: u64, entries: Vec<PlainEntry> }

    /// Listing with attributes. Spec 31, 31.6.
    MatoclFuseReaddir = 429 { msgid: u32, nedgeid: u64, entries: Vec<AttrEntry> }

    /// Bits of `open_flags`. Spec 31, 31.6.
    CltomaFuseOpen = 430 { msgid: u32, inode: Inode, uid: u32, gids: Gids<1>, flags: u8 }

    /// Bits of `opened_flags`. Clients without it get no `oflags`. Spec 31, 31.6.
    MatoclFuseOpen = 431 { msgid: u32, oflags: u8, attr: Attr }

    /// Spec 31, 31.8.
    CltomaFuseReadChunk = 432 { msgid: u32, inode: Inode, index: u32, chunkopflags: Option<u8> }

    /// `protocolid` 2. Chunk id 0: a hole. `ticket`: nothing, but for who asked for it (`LONG_TIMES`). Spec 31, 31.7.
    MatoclFuseReadChunk = 433 { msgid: u32, ticket: GivenTicket, protocolid: u8, length: u64, chunkid: ChunkId, version: Version, locations: Vec<Location> }

    /// Spec 31, 31.9.
    CltomaFuseWriteChunk = 434 { msgid: u32, inode: Inode, index: u32, chunkopflags: Option<u8> }

    /// As `MatoclFuseReadChunk`. Spec 31, 31.7.
    MatoclFuseWriteChunk = 435 { msgid: u32, ticket: GivenTicket, protocolid: u8, length: u64, chunkid: ChunkId, version: Version, locations: Vec<Location> }

    /// 4.x clients append the region written, for masters from 4.40.0 on. Spec 31, 31.9.
    CltomaFuseWriteChunkEnd = 436 { msgid: u32, chunkid: ChunkId, inode: Inode, index: u32, length: u64, chunkopflags: u8, region: Option<u64> }

    /// Spec 31, 31.9.
    MatoclFuseWriteChunkEnd = 437 { msgid: u32, status: Status }

    /// Chunks [from, to) of `source` are appended to `inode`. Spec 32, 32.4.
    CltomaFuseAppendSlice = 438 { msgid: u32, flags: u8, inode: Inode, source: Inode, from: u32, to: u32, uid: u32, gids: Gids }

    /// Spec 32, 32.4.
    MatoclFuseAppendSlice = 439 { msgid: u32, status: Status }

    /// A file, or one chunk of it. Spec 32, 32.3.
    CltomaFuseCheck = 440 { msgid: u32, inode: Inode, index: Option<u32> }

    /// Chunks with 0..9 and more copies, and empty slots. Spec 32, 32.3.
    MatoclFuseCheck = 441 { msgid: u32, counts: [Count; 12] }

    /// One chunk. Spec 32, 32.3.
    MatoclFuseCheckChunk = 441 { msgid: u32, chunkid: ChunkId, version: Version, copies: Vec<CheckedCopy> }

    /// Spec 32, 32.2.
    CltomaFuseGettrashtime = 442 { msgid: u32, inode: Inode, gmode: u8 }

    /// `fcnt` entries of files, then `dcnt` of directories. Spec 32, 32.2.
    MatoclFuseGettrashtime = 443 { msgid: u32, fcnt: u32, dcnt: u32, entries: Vec<TrashtimeCount> }

    /// Spec 32, 32.2.
    CltomaFuseSettrashtime = 444 { msgid: u32, inode: Inode, uid: u32, seconds: u32, smode: u8 }

    /// Spec 32, 32.2.
    MatoclFuseSettrashtime = 445 { msgid: u32, changed: u32, notchanged: u32, notpermitted: u32 }

    /// Spec 32, 32.1.
    CltomaFuseGetsclass = 446 { msgid: u32, inode: Inode, gmode: u8 }

    /// `fn_` entries of files, then `dn` of directories. Spec 32, 32.1.
    MatoclFuseGetsclass = 447 { msgid: u32, fn_: u8, dn: u8, entries: Vec<ClassCount> }

    /// Goal 1..9, or 0xFF and class names behind the mode: `names`. Spec 32, 32.1.
    CltomaFuseSetsclass = 448 { msgid: u32, inode: Inode, uid: u32, goal: u8, smode: u8, names: Vec<Name> }

    /// Spec 32, 32.1.
    MatoclFuseSetsclass = 449 { msgid: u32, changed: u32, notchanged: u32, notpermitted: u32 }

    /// Spec 32, 32.8.
    CltomaFuseGettrash = 450 { msgid: u32, bucket: Option<u32> }

    /// Spec 32, 32.8.
    MatoclFuseGettrash = 451 { msgid: u32, entries: Vec<DetachedEntry> }

    /// Spec 32, 32.8.
    CltomaFuseGetdetachedattr = 452 { msgid: u32, inode: Inode, dtype: Option<u8> }

    /// Spec 32, 32.8.
    MatoclFuseGetdetachedattr = 453 { msgid: u32, attr: Attr }

    /// Spec 32, 32.8.
    CltomaFuseGettrashpath = 454 { msgid: u32, inode: Inode }

    /// With the closing NUL. Spec 32, 32.8.
    MatoclFuseGettrashpath = 455 { msgid: u32, path: Text<65536> }

    /// Trailing NULs are cut. Spec 32, 32.8.
    CltomaFuseSettrashpath = 456 { msgid: u32, inode: Inode, path: Text<{ PATH_BYTES_MAX + 1 }> }

    /// Spec 32, 32.8.
    MatoclFuseSettrashpath = 457 { msgid: u32, status: Status }

    /// Spec 32, 32.8.
    CltomaFuseUndel = 458 { msgid: u32, inode: Inode }

    /// Spec 32, 32.8.
    MatoclFuseUndel = 459 { msgid: u32, status: Status }

    /// Spec 32, 32.8.
    CltomaFusePurge = 460 { msgid: u32, inode: Inode }

    /// Spec 32, 32.8.
    MatoclFusePurge = 461 { msgid: u32, status: Status }

    /// Spec 32, 32.3.
    CltomaFuseGetdirstats = 462 { msgid: u32, inode: Inode }

    /// To registered connections of a 3.x master. Spec 32, 32.3.
    MatoclFuseGetdirstats = 463 {
        msgid: u32, inodes: u32, dirs: u32, files: u32, zero1: u32, zero2: u32, chunks: u32, zero3: u32, zero4: u32,
        length: u64, size: u64, realsize: u64,
    }

    /// To tools, and of 4.x masters. Spec 32, 32.3.
    MatoclFuseGetdirstatsShort = 463 { msgid: u32, inodes: u32, dirs: u32, files: u32, chunks: u32, length: u64, size: u64, realsize: u64 }

    /// Bits of `truncate_flags`. Spec 31, 31.9.
    CltomaFuseTruncate = 464 { msgid: u32, inode: Inode, flags: u8, uid: u32, gids: Gids<8>, length: u64 }

    /// Clients without it get no `prevlength`. Spec 31, 31.9.
    MatoclFuseTruncate = 465 { msgid: u32, prevlength: u64, attr: Attr }

    /// 4.x appends flags, for masters from 4.27.0 on. Spec 32, 32.4.
    CltomaFuseRepair = 466 { msgid: u32, inode: Inode, uid: u32, gids: Gids }

    /// Spec 32, 32.4.
    MatoclFuseRepair = 467 { msgid: u32, notchanged: u32, erased: u32, repaired: u32 }

    /// Spec 32, 32.5.
    CltomaFuseSnapshot = 468 { msgid: u32, source: Inode, parent: Inode, name: Name, uid: u32, gids: Gids<3>, smode: u8, umask: u16 }

    /// Spec 32, 32.5.
    MatoclFuseSnapshot = 469 { msgid: u32, status: Status }

    /// Spec 32, 32.8.
    CltomaFuseGetsustained = 470 { msgid: u32 }

    /// Spec 32, 32.8.
    MatoclFuseGetsustained = 471 { msgid: u32, entries: Vec<DetachedEntry> }

    /// Spec 32, 32.2.
    CltomaFuseGeteattr = 472 { msgid: u32, inode: Inode, gmode: u8 }

    /// `fn_` entries of files, then `dn` of directories. Spec 32, 32.2.
    MatoclFuseGeteattr = 473 { msgid: u32, fn_: u8, dn: u8, entries: Vec<EattrCount> }

    /// Spec 32, 32.2.
    CltomaFuseSeteattr = 474 { msgid: u32, inode: Inode, uid: u32, eattr: u8, smode: u8 }

    /// Spec 32, 32.2.
    MatoclFuseSeteattr = 475 { msgid: u32, changed: u32, notchanged: u32, notpermitted: u32 }

    /// Reads with `qflags` 0, deletes the flagged limits, or sets them with `set`. Spec 32, 32.6.
    CltomaFuseQuotacontrol = 476 { msgid: u32, inode: Inode, qflags: u8, set: Option<QuotaSet> }

    /// Spec 32, 32.6.
    MatoclFuseQuotacontrol = 477 { msgid: u32, qflags: u8, limits: QuotaSet, inodes: u32, length: u64, size: u64, realsize: u64 }

    /// Mode 0 data, 1 length only; an empty name lists. Spec 32, 32.7.
    CltomaFuseGetxattr = 478 { msgid: u32, inode: Inode, name: Name, mode: u8, opened: u8, uid: u32, gids: Gids }

    /// Mode 0. Spec 32, 32.7.
    MatoclFuseGetxattr = 479 { msgid: u32, value: Text<XATTR_BYTES_MAX> }

    /// Mode 1. Spec 32, 32.7.
    MatoclFuseGetxattrLength = 479 { msgid: u32, length: u32 }

    /// Mode 0 create or replace, 1 create only, 2 replace only, 3 remove. Spec 32, 32.7.
    CltomaFuseSetxattr = 480 { msgid: u32, inode: Inode, name: Name, value: Text<XATTR_BYTES_MAX>, mode: u8, opened: u8, uid: u32, gids: Gids }

    /// Spec 32, 32.7.
    MatoclFuseSetxattr = 481 { msgid: u32, status: Status }

    /// Spec 31, 31.6.
    CltomaFuseCreate = 482 { msgid: u32, parent: Inode, name: Name, mode: u16, umask: u16, uid: u32, gids: Gids }

    /// Clients without it get no `oflags`. Spec 31, 31.6.
    MatoclFuseCreate = 483 { msgid: u32, oflags: u8, inode: Inode, attr: Attr }

    /// Spec 32, 32.3.
    CltomaFuseParents = 484 { msgid: u32, inode: Inode }

    /// Spec 32, 32.3.
    MatoclFuseParents = 485 { msgid: u32, parents: Vec<Inode> }

    /// Spec 32, 32.3.
    CltomaFusePaths = 486 { msgid: u32, inode: Inode }

    /// Spec 32, 32.3.
    MatoclFusePaths = 487 { msgid: u32, paths: Vec<Text<65536>> }

    /// What follows is ignored. Spec 32, 32.7.
    CltomaFuseGetfacl = 488 { msgid: u32, inode: Inode, acltype: u8, ignored: Rest }

    /// Spec 32, 32.7.
    MatoclFuseGetfacl = 489 { msgid: u32, acl: Acl }

    /// Spec 32, 32.7.
    CltomaFuseSetfacl = 490 { msgid: u32, inode: Inode, uid: u32, acltype: u8, acl: Acl }

    /// Spec 32, 32.7.
    MatoclFuseSetfacl = 491 { msgid: u32, status: Status }

    /// Spec 31, 31.10.
    CltomaFuseFlock = 492 { msgid: u32, inode: Inode, reqid: u32, owner: u64, cmd: u8 }

    /// Spec 31, 31.10.
    MatoclFuseFlock = 493 { msgid: u32, status: Status }

    /// The range is [start, end). Spec 31, 31.10.
    CltomaFusePosixLock = 494 { msgid: u32, inode: Inode, reqid: u32, owner: u64, pid: u32, cmd: u8, kind: u8, start: u64, end: u64 }

    /// GET that succeeded; everything else is a status. Spec 31, 31.10.
    MatoclFusePosixLock = 495 { msgid: u32, pid: u32, kind: u8, start: u64, end: u64 }

    /// cmd 2 reads; 1 sets and 0 clears, with a uid. Spec 32, 32.2.
    CltomaFuseArchctl = 496 { msgid: u32, inode: Inode, cmd: u8, uid: Option<u32> }

    /// Spec 32, 32.2.
    MatoclFuseArchctlGet = 497 { msgid: u32, archived: u64, notarchived: u64, all: u32, partly: u32, none: u32 }

    /// Spec 32, 32.2.
    MatoclFuseArchctlSet = 497 { msgid: u32, changed: u64, notchanged: u64, notpermitted: u32 }

    /// Spec 32, 32.3.
    CltomaNodeInfo = 546 { msgid: u32, inode: Inode, maxentries: u32, continueid: u64 }

    /// Spec 32, 32.10. `fver` 0 and the class's body.
    CltomaSclassCreate = 350 { msgid: u32, name: Name, fver: u8, body: ClassBody }

    /// Spec 32, 32.10.
    MatoclSclassCreate = 351 { msgid: u32, status: Status }

    /// `chgmask` 0 shows the class. Spec 32, 32.10.
    CltomaSclassChange = 352 { msgid: u32, name: Name, fver: u8, chgmask: u16, body: ClassBody }

    /// The class as it is now. Spec 32, 32.10.
    MatoclSclassChange = 353 { msgid: u32, fver: u8, body: ClassBody }

    /// Spec 32, 32.10.
    CltomaSclassDelete = 354 { msgid: u32, name: Name }

    /// Spec 32, 32.10.
    MatoclSclassDelete = 355 { msgid: u32, status: Status }

    /// Spec 32, 32.10.
    CltomaSclassDuplicate = 356 { msgid: u32, old: Name, new: Name }

    /// Spec 32, 32.10.
    MatoclSclassDuplicate = 357 { msgid: u32, status: Status }

    /// Spec 32, 32.10.
    CltomaSclassRename = 358 { msgid: u32, old: Name, new: Name }

    /// Spec 32, 32.10.
    MatoclSclassRename = 359 { msgid: u32, status: Status }

    /// Spec 32, 32.10.
    CltomaSclassList = 360 { msgid: u32, longmode: u8 }

    /// Names only. Spec 32, 32.10.
    MatoclSclassList = 361 { msgid: u32, names: Vec<Name> }

    /// Names and bodies. Spec 32, 32.10.
    MatoclSclassListLong = 361 { msgid: u32, classes: Vec<NamedClass> }
}

records! {
    /// Where chunk 0 is, told along with a lookup. Spec 31, 31.4.
    ChunkZero { protocolid: u8, chunkid: ChunkId, version: Version, locations: Vec<Location> }

    /// Spec 31, 31.6.
    PlainEntry { name: Name, inode: Inode, kind: NodeKind }

    /// Spec 31, 31.6.
    AttrEntry { name: Name, inode: Inode, attr: Attr }

    /// Spec 32, 32.3.
    Count { count: u32 }

    /// Type 0 valid or busy, 1 marked for removal, 2 wrong version, 3 both, 4 invalid. Spec 32, 32.3.
    CheckedCopy { ip: Ip4, port: u16, copytype: u8 }

    /// Spec 32, 32.2.
    TrashtimeCount { seconds: u32, count: u32 }

    /// Spec 32, 32.2.
    EattrCount { eattr: u8, count: u32 }

    /// Spec 32, 32.8.
    DetachedEntry { name: Name, inode: Inode }

    /// Spec 32, 32.6.
    QuotaSet {
        /// Seconds.
        grace: u32,
        sinodes: u32, slength: u64, ssize: u64, srealsize: u64,
        hinodes: u32, hlength: u64, hsize: u64, hrealsize: u64,
    }

    /// Spec 32, 32.7: permission of one named user or group.
    AclEntry { id: u32, perm: u16 }

    /// A non-empty chunk slot of a file. Spec 32, 32.3.
    NodeInfoChunk { chunkid: ChunkId, size: u32, copies: u8 }

    /// Spec 32, 32.10.
    NamedClass { name: Name, body: ClassBody }
}

/// Twelve counters in a row.
impl Field for [Count; 12] {
    fn put(&self, out: &mut Vec<u8>) {
        for count in self {
            count.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let mut counts = std::array::from_fn(|_| Count { count: 0 });
        for count in &mut counts {
            *count = Count::take(input)?;
        }
        Ok(counts)
    }
    fn width(&self) -> usize {
        48
    }
    fn sample(seed: &mut Seed) -> Self {
        std::array::from_fn(|_| Count::sample(seed))
    }
}

/// How many nodes have a class: a simple goal by its number, another class by its name. Spec 32, 32.1.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "names are held inline; these lists are short and rare")]
pub enum ClassCount {
    Goal { goal: u8, count: u32 },
    Class { name: Name, count: u32 },
}

impl Field for ClassCount {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            ClassCount::Goal { goal, count } => {
                goal.put(out);
                count.put(out);
            }
            ClassCount::Class { name, count } => {
                0xFFu8.put(out);
                name.put(out);
                count.put(out);
            }
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        match u8::take(input)? {
            0xFF => Ok(ClassCount::Class { name: Field::take(input)?, count: Field::take(input)? }),
            goal => Ok(ClassCount::Goal { goal, count: Field::take(input)? }),
        }
    }
    fn width(&self) -> usize {
        match self {
            ClassCount::Goal { .. } => 5,
            ClassCount::Class { name, .. } => 5 + name.width(),
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(2) {
            0 => ClassCount::Goal { goal: 1 + seed.below(9) as u8, count: Field::sample(seed) },
            _ => ClassCount::Class { name: Field::sample(seed), count: Field::sample(seed) },
        }
    }
}

/// An access control list; 0xFFFF = absent. Spec 32, 32.7.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    pub userperm: u16,
    pub groupperm: u16,
    pub otherperm: u16,
    pub mask: u16,
    pub users: Vec<AclEntry>,
    pub groups: Vec<AclEntry>,
}

impl Field for Acl {
    fn put(&self, out: &mut Vec<u8>) {
        for word in [self.userperm, self.groupperm, self.otherperm, self.mask] {
            word.put(out);
        }
        (self.users.len() as u16).put(out);
        (self.groups.len() as u16).put(out);
        self.users.put(out);
        self.groups.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let mut words = [0u16; 6];
        for word in &mut words {
            *word = u16::take(input)?;
        }
        let [userperm, groupperm, otherperm, mask, users, groups] = words;
        let mut entries = |count: u16| (0..count).map(|_| AclEntry::take(input)).collect::<Result<Vec<_>, _>>();
        Ok(Acl { userperm, groupperm, otherperm, mask, users: entries(users)?, groups: entries(groups)? })
    }
    fn width(&self) -> usize {
        12 + self.users.width() + self.groups.width()
    }
    fn sample(seed: &mut Seed) -> Self {
        Acl {
            userperm: Field::sample(seed),
            groupperm: Field::sample(seed),
            otherperm: Field::sample(seed),
            mask: Field::sample(seed),
            users: Field::sample(seed),
            groups: Field::sample(seed),
        }
    }
}

/// Up to four alternatives of label masks for one copy; all zero = any server. Spec 32, 32.10.
pub type LabelMasks = [u32; 4];

/// A storage class as 3.x packets carry it. Spec 32, 32.10.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassBody {
    pub admin_only: u8,
    /// 0 loose, 1 standard, 2 strict.
    pub mode: u8,
    /// Days.
    pub arch_delay: u16,
    pub create: Vec<LabelMasks>,
    pub keep: Vec<LabelMasks>,
    pub arch: Vec<LabelMasks>,
}

impl Field for ClassBody {
    fn put(&self, out: &mut Vec<u8>) {
        self.admin_only.put(out);
        self.mode.put(out);
        self.arch_delay.put(out);
        for list in [&self.create, &self.keep, &self.arch] {
            (list.len() as u8).put(out);
        }
        for mask in [&self.create, &self.keep, &self.arch].into_iter().flatten().flatten() {
            mask.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let (admin_only, mode, arch_delay) = (u8::take(input)?, u8::take(input)?, u16::take(input)?);
        let (create, keep, arch) = (u8::take(input)?, u8::take(input)?, u8::take(input)?);
        let mut masks = |count: u8| {
            (0..count)
                .map(|_| Ok([u32::take(input)?, u32::take(input)?, u32::take(input)?, u32::take(input)?]))
                .collect::<Result<Vec<LabelMasks>, WireError>>()
        };
        Ok(ClassBody { admin_only, mode, arch_delay, create: masks(create)?, keep: masks(keep)?, arch: masks(arch)? })
    }
    fn width(&self) -> usize {
        7 + 16 * (self.create.len() + self.keep.len() + self.arch.len())
    }
    fn sample(seed: &mut Seed) -> Self {
        let mut masks = || (0..seed.below(4)).map(|_| std::array::from_fn(|_| u32::sample(seed))).collect();
        ClassBody { create: masks(), keep: masks(), arch: masks(), admin_only: 1, mode: 2, arch_delay: 7 }
    }
}

/// Whether access with this mask would be granted. Spec 31, 31.3: the single-gid form has a one-byte mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CltomaFuseAccess {
    pub msgid: u32,
    pub inode: Inode,
    pub uid: u32,
    pub gids: Vec<u32>,
    /// R 4, W 2, X 1.
    pub mask: u16,
}

impl Field for CltomaFuseAccess {
    fn put(&self, out: &mut Vec<u8>) {
        self.msgid.put(out);
        self.inode.put(out);
        self.uid.put(out);
        if self.gids.is_empty() {
            u32::MAX.put(out);
            (self.mask as u8).put(out);
        } else {
            (self.gids.len() as u32).put(out);
            self.gids.put(out);
            self.mask.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let single = input.remaining() == 17;
        let (msgid, inode, uid) = (u32::take(input)?, Inode::take(input)?, u32::take(input)?);
        if single {
            let gids = vec![u32::take(input)?];
            return Ok(CltomaFuseAccess { msgid, inode, uid, gids, mask: u16::from(u8::take(input)?) });
        }
        let gids = Gids::<2>::take(input)?;
        if gids.is_single() {
            return Err(WireError::Range { field: "group count", value: 0 });
        }
        Ok(CltomaFuseAccess { msgid, inode, uid, gids: gids.as_slice().to_vec(), mask: u16::take(input)? })
    }
    fn width(&self) -> usize {
        if self.gids.is_empty() { 17 } else { 18 + 4 * self.gids.len() }
    }
    fn sample(seed: &mut Seed) -> Self {
        CltomaFuseAccess {
            msgid: Field::sample(seed),
            inode: Field::sample(seed),
            uid: Field::sample(seed),
            gids: Gids::<2>::sample(seed).as_slice().to_vec(),
            mask: Field::sample(seed),
        }
    }
}

impl Packet for CltomaFuseAccess {
    const TYPE: u32 = 404;
    const NAME: &'static str = "CltomaFuseAccess";
}

/// What is inside a node. Spec 32, 32.3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatoclNodeInfo {
    pub msgid: u32,
    pub info: NodeInfo,
}

/// Spec 32, 32.3. `continueid` 0 in an answer: the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeInfo {
    /// Neither file nor directory.
    Other,
    Directory {
        continueid: u64,
        children: Vec<Inode>,
    },
    File {
        continueid: u64,
        length: u64,
        chunks: Vec<NodeInfoChunk>,
    },
}

impl Field for MatoclNodeInfo {
    fn put(&self, out: &mut Vec<u8>) {
        self.msgid.put(out);
        match &self.info {
            NodeInfo::Other => 0u16.put(out),
            NodeInfo::Directory { continueid, children } => {
                1u16.put(out);
                continueid.put(out);
                children.put(out);
            }
            NodeInfo::File { continueid, length, chunks } => {
                2u16.put(out);
                continueid.put(out);
                length.put(out);
                chunks.put(out);
            }
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let msgid = u32::take(input)?;
        let info = match u16::take(input)? {
            0 => NodeInfo::Other,
            1 => NodeInfo::Directory { continueid: Field::take(input)?, children: Field::take(input)? },
            2 => NodeInfo::File {
                continueid: Field::take(input)?,
                length: Field::take(input)?,
                chunks: Field::take(input)?,
            },
            kind => return Err(WireError::Range { field: "node info kind", value: u64::from(kind) }),
        };
        Ok(MatoclNodeInfo { msgid, info })
    }
    fn width(&self) -> usize {
        6 + match &self.info {
            NodeInfo::Other => 0,
            NodeInfo::Directory { children, .. } => 8 + children.width(),
            NodeInfo::File { chunks, .. } => 16 + chunks.width(),
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        let msgid = Field::sample(seed);
        let info = match seed.below(3) {
            0 => NodeInfo::Other,
            1 => NodeInfo::Directory { continueid: Field::sample(seed), children: Field::sample(seed) },
            _ => NodeInfo::File {
                continueid: Field::sample(seed),
                length: Field::sample(seed),
                chunks: Field::sample(seed),
            },
        };
        MatoclNodeInfo { msgid, info }
    }
}

impl Packet for MatoclNodeInfo {
    const TYPE: u32 = 547;
    const NAME: &'static str = "MatoclNodeInfo";
}

/// The packets with several forms of one number.
pub(crate) const FORMS: &[Entry] = &[Entry::of::<CltomaFuseAccess>(), Entry::of::<MatoclNodeInfo>()];

/// Clients that read an inode in the answer to UNLINK and RMDIR. Spec 31, 31.6.
pub fn removed_answer_has_inode(client: VersionWord) -> bool {
    client.in_either_line((3, 0, 107), (4, 18, 0))
}

/// Clients that read `oflags` in the answers to OPEN and CREATE, and `prevlength` in TRUNCATE's. Spec 31, 31.6, 31.9.
pub fn knows_open_flags(client: VersionWord) -> bool {
    client.in_either_line((3, 0, 113), (4, 22, 0))
}

/// Clients that read `free` in STATFS's answer. Spec 31, 31.3.
pub fn statfs_answer_has_free(client: VersionWord) -> bool {
    client.in_either_line((3, 0, 102), (4, 9, 0))
}

/// Clients that forget chunk locations on packet 706. Spec 30, 6.
pub fn knows_invalidate_chunk_cache(client: VersionWord) -> bool {
    client.in_either_line((3, 0, 100), (4, 3, 0))
}
