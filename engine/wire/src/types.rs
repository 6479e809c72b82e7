//! The types of fields: ids, versions, names, group lists, and the records that several packets share.

use std::fmt;
use std::net::Ipv4Addr;

use crate::codec::{Field, Input, Seed, WireError, records};
use crate::limits::{GROUPS_MAX, NAME_BYTES_MAX};
use crate::time::Time;

macro_rules! id {
    ($( $(#[$meta:meta])* $name:ident($inner:ty) )*) => { $(
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl Field for $name {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
                if input.remaining() < size_of::<$inner>() {
                    return Err(WireError::Short { field: stringify!($name) });
                }
                <$inner>::take(input).map($name)
            }
            fn width(&self) -> usize {
                size_of::<$inner>()
            }
            fn sample(seed: &mut Seed) -> Self {
                $name(<$inner>::sample(seed))
            }
        }
    )* };
}

id! {
    /// Identity of a chunk, never 0 for an existing one; 0 in a master's answer is a hole. Spec 10, 6.
    ChunkId(u64)
    /// Version of a chunk, from 1 up; 0 asks for any. Spec 10, 6.
    Version(u32)
    /// Version of a program as one word. Spec 10, 3.
    VersionWord(u32)
    /// Number of a node of the namespace. Spec 10, 6.
    Inode(u32)
    /// Number of a client's session. Spec 30, 4.5.
    SessionId(u32)
    /// Identity of a whole metadata set. Spec 40, 4.
    MetaId(u64)
    /// An IPv4 address as a number, a.b.c.d = a<<24|b<<16|c<<8|d. Spec 10, 1.
    Ip4(u32)
    /// CRC-32 with the IEEE polynomial. Spec 10, 6.
    Crc(u32)
    /// How an operation went. Spec 10, 4. A number with named constants: peers may be newer than we are.
    Status(u8)
}

macro_rules! debug_as {
    ($($name:ident => $format:literal),* $(,)?) => { $(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    )* };
}
debug_as!(ChunkId => "{:016X}", Version => "{}", Inode => "{}", SessionId => "{}", MetaId => "{:016X}", Crc => "{:08X}");

impl Version {
    /// Asks for any version where a version is compared. Spec 10, 3.
    pub const ANY: Version = Version(0);
    /// In a chunkserver's report: the copy lies on a disk marked for removal. Spec 40, 1.3.
    pub const MARKED_FOR_REMOVAL: u32 = 1 << 31;

    pub fn next(self) -> Version {
        Version(self.0.wrapping_add(1))
    }
}

impl Inode {
    /// The root of the tree. Spec 10, 6.
    pub const ROOT: Inode = Inode(1);
}

impl From<Ipv4Addr> for Ip4 {
    fn from(address: Ipv4Addr) -> Ip4 {
        Ip4(u32::from(address))
    }
}

impl From<Ip4> for Ipv4Addr {
    fn from(address: Ip4) -> Ipv4Addr {
        Ipv4Addr::from(address.0)
    }
}

impl fmt::Debug for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv4Addr::from(*self), f)
    }
}

impl fmt::Display for Ip4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv4Addr::from(*self), f)
    }
}

impl VersionWord {
    /// What we announce: 3.0.117, which every peer up to 4.59 accepts.
    pub const OURS: VersionWord = VersionWord::new(3, 0, 117);
    /// The text beside it.
    pub const OURS_TEXT: &'static str = "3.0.117-1";

    /// The word of a community release. Spec 10, 3: the last number is doubled from major 2 on.
    pub const fn new(major: u16, middle: u8, minor: u8) -> VersionWord {
        let low = if major >= 2 { (minor as u32) * 2 } else { minor as u32 };
        VersionWord((major as u32) << 16 | (middle as u32) << 8 | low)
    }

    pub fn at_least(self, major: u16, middle: u8, minor: u8) -> bool {
        self >= VersionWord::new(major, middle, minor)
    }

    /// A feature of both lines: from `old` on below 4.0.0, or from `new` on. Spec 10, 3.
    pub fn in_either_line(self, old: (u16, u8, u8), new: (u16, u8, u8)) -> bool {
        let since_old = self.at_least(old.0, old.1, old.2) && !self.at_least(4, 0, 0);
        since_old || self.at_least(new.0, new.1, new.2)
    }

    /// Bytes of the attribute record for this client: 36, or 35 without winattr. Spec 31, 31.2.
    pub fn attr_has_winattr(self) -> bool {
        self.at_least(3, 0, 93) && self != VersionWord::new(4, 0, 0) && self != VersionWord::new(4, 0, 1)
    }
}

impl fmt::Display for VersionWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, middle, low) = (self.0 >> 16, (self.0 >> 8) & 0xFF, self.0 & 0xFF);
        write!(f, "{major}.{middle}.{}", if major >= 2 { low >> 1 } else { low })
    }
}

impl fmt::Debug for VersionWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A length byte and up to 255 bytes, without terminator. Held inline: a name costs no allocation. Spec 10.
#[derive(Clone, Copy)]
pub struct Name {
    length: u8,
    bytes: [u8; NAME_BYTES_MAX],
}

impl Name {
    /// Errors: `Range` if `bytes` is longer than 255.
    pub fn new(bytes: &[u8]) -> Result<Name, WireError> {
        let length = u8::try_from(bytes.len())
            .map_err(|_| WireError::Range { field: "name length", value: bytes.len() as u64 })?;
        let mut name = Name { length, bytes: [0; NAME_BYTES_MAX] };
        name.bytes[..bytes.len()].copy_from_slice(bytes);
        Ok(name)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Name {}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.as_bytes().escape_ascii())
    }
}

impl Field for Name {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.length);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = u8::take(input)?;
        Name::new(input.bytes(usize::from(length), "name")?)
    }
    fn width(&self) -> usize {
        1 + usize::from(self.length)
    }
    fn sample(seed: &mut Seed) -> Self {
        let length = seed.below(256) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| seed.next_u64() as u8).collect();
        Name::new(&bytes).expect("below 256 bytes")
    }
}

/// A `u32` length and that many bytes, at most `MAX`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Text<const MAX: usize>(pub Vec<u8>);

impl<const MAX: usize> fmt::Debug for Text<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.escape_ascii())
    }
}

impl<const MAX: usize> Field for Text<MAX> {
    fn put(&self, out: &mut Vec<u8>) {
        assert!(self.0.len() <= MAX, "a text is checked before it is sent");
        (self.0.len() as u32).put(out);
        out.extend_from_slice(&self.0);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = u32::take(input)?;
        if length as usize > MAX {
            return Err(WireError::Range { field: "text length", value: u64::from(length) });
        }
        Ok(Text(input.bytes(length as usize, "text")?.to_vec()))
    }
    fn width(&self) -> usize {
        4 + self.0.len()
    }
    fn sample(seed: &mut Seed) -> Self {
        let length = seed.below(MAX.min(300) as u64 + 1);
        Text((0..length).map(|_| seed.next_u64() as u8).collect())
    }
}

/// All bytes to the end of the packet.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Rest(pub Vec<u8>);

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.escape_ascii())
    }
}

impl Field for Rest {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        Ok(Rest(input.rest().to_vec()))
    }
    fn width(&self) -> usize {
        self.0.len()
    }
    fn sample(seed: &mut Seed) -> Self {
        Rest((0..seed.below(64)).map(|_| seed.next_u64() as u8).collect())
    }
}

/// The groups of a caller, the primary one first. Spec 31, 31.1.
///
/// `AFTER`: bytes of the packet's fields behind the list. They tell the list (`count`, `count` gids) from the old
/// form, a single gid in the place of `count`, which a client without any group still sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gids<const AFTER: usize = 0> {
    list: Vec<u32>,
    single: bool,
}

impl<const AFTER: usize> Gids<AFTER> {
    /// The list form; an empty list becomes the single-gid form with "no group". Groups beyond 4096 are dropped.
    pub fn list(gids: &[u32]) -> Self {
        if gids.is_empty() {
            return Gids { list: vec![u32::MAX], single: true };
        }
        Gids { list: gids[..gids.len().min(GROUPS_MAX)].to_vec(), single: false }
    }

    /// Never empty; the first one is the primary group.
    pub fn as_slice(&self) -> &[u32] {
        &self.list
    }

    /// The same groups in another packet.
    pub fn moved<const OTHER: usize>(self) -> Gids<OTHER> {
        Gids { list: self.list, single: self.single }
    }

    /// True for the form in which one gid stood in the place of the list.
    pub fn is_single(&self) -> bool {
        self.single
    }
}

impl<const AFTER: usize> Field for Gids<AFTER> {
    fn put(&self, out: &mut Vec<u8>) {
        if !self.single {
            (self.list.len() as u32).put(out);
        }
        for gid in &self.list {
            gid.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let first = u32::take(input)?;
        if input.remaining() == AFTER {
            return Ok(Gids { list: vec![first], single: true });
        }
        if first == 0 || first as usize > GROUPS_MAX {
            return Err(WireError::Range { field: "group count", value: u64::from(first) });
        }
        if input.remaining() / 4 < first as usize {
            return Err(WireError::Short { field: "groups" });
        }
        let list = (0..first).map(|_| u32::take(input)).collect::<Result<_, _>>()?;
        Ok(Gids { list, single: false })
    }
    fn width(&self) -> usize {
        4 * self.list.len() + if self.single { 0 } else { 4 }
    }
    fn sample(seed: &mut Seed) -> Self {
        Gids { list: (0..1 + seed.below(5)).map(|_| u32::sample(seed)).collect(), single: false }
    }
}

/// What a node is. Spec 10, 6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum NodeKind {
    File = 1,
    Directory = 2,
    Symlink = 3,
    Fifo = 4,
    BlockDevice = 5,
    CharDevice = 6,
    Socket = 7,
    /// A deleted file that waits in the trash; shown to clients as a file.
    Trash = 8,
    /// A deleted file that is still open; shown to clients as a file.
    Sustained = 9,
}

impl NodeKind {
    #[inline]
    pub fn from_number(number: u8) -> Option<NodeKind> {
        use NodeKind::*;
        [File, Directory, Symlink, Fifo, BlockDevice, CharDevice, Socket, Trash, Sustained]
            .into_iter()
            .find(|kind| *kind as u8 == number)
    }
}

impl Field for NodeKind {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let number = u8::take(input)?;
        NodeKind::from_number(number).ok_or(WireError::Range { field: "node type", value: u64::from(number) })
    }
    fn width(&self) -> usize {
        1
    }
    fn sample(seed: &mut Seed) -> Self {
        NodeKind::from_number(1 + seed.below(9) as u8).expect("1 to 9 are kinds")
    }
}

/// Attribute record, 36 bytes. Spec 31, 31.2. Clients before 3.0.93 get it without `winattr`: `put_for`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// `attr_flags`.
    pub flags: u8,
    pub kind: NodeKind,
    /// Permission bits with suid, sgid, sticky: 07777.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub atime: Time,
    pub mtime: Time,
    pub ctime: Time,
    pub nlink: u32,
    /// Files: length. Directories: pseudo-length. Symlinks: target length in the low half. Devices: rdev in the
    /// high half. Others: 0.
    pub extra: u64,
    pub winattr: u8,
}

/// Bits of `Attr::flags`. Spec 31, 31.2.
pub mod attr_flags {
    pub const NO_ATTR_CACHE: u8 = 0x01;
    pub const NO_ENTRY_CACHE: u8 = 0x02;
    pub const ALLOW_DATA_CACHE: u8 = 0x04;
    pub const NO_XATTR: u8 = 0x08;
    pub const DIRECT_MODE: u8 = 0x10;
    pub const UNDELETABLE: u8 = 0x20;
}

impl Attr {
    /// Bytes of the record with winattr.
    pub const BYTES: usize = 36;
    /// Bytes of the record with long times.
    pub const LONG_BYTES: usize = Attr::BYTES + 3 * (size_of::<Time>() - size_of::<u32>());

    /// Length in bytes of a file, directory (pseudo-length) or symlink.
    pub fn length_bytes(&self) -> u64 {
        match self.kind {
            NodeKind::BlockDevice | NodeKind::CharDevice => 0,
            _ => self.extra,
        }
    }

    /// Device number of a device, else 0.
    pub fn rdev(&self) -> u32 {
        match self.kind {
            NodeKind::BlockDevice | NodeKind::CharDevice => (self.extra >> 32) as u32,
            _ => 0,
        }
    }

    /// `extra` of a device.
    pub fn extra_of_device(rdev: u32) -> u64 {
        u64::from(rdev) << 32
    }

    /// Appends the form that a client of this version reads: 36 or 35 bytes.
    pub fn put_for(&self, client: VersionWord, out: &mut Vec<u8>) {
        let mut bytes = [0; Attr::BYTES];
        self.write_to(&mut bytes);
        out.extend_from_slice(&bytes[..Attr::bytes_for(client)]);
    }

    /// Bytes of the form that a client of this version reads: the first ones that `write_to` writes.
    pub fn bytes_for(client: VersionWord) -> usize {
        Attr::BYTES - usize::from(!client.attr_has_winattr())
    }

    /// Writes the record with winattr.
    #[inline]
    pub fn write_to(&self, bytes: &mut [u8; Attr::BYTES]) {
        bytes[0] = self.flags;
        bytes[1..3].copy_from_slice(&(u16::from(self.kind as u8) << 12 | self.mode & 0o7777).to_be_bytes());
        let [atime, mtime, ctime] = [self.atime, self.mtime, self.ctime].map(Time::seconds);
        let words = [self.uid, self.gid, atime, mtime, ctime, self.nlink];
        for (place, word) in bytes[3..27].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        bytes[27..35].copy_from_slice(&self.extra.to_be_bytes());
        bytes[35] = self.winattr;
    }

    /// Writes the form of the extension `times`: each time in the place of its seconds, nothing left out.
    #[inline]
    pub fn write_long_to(&self, bytes: &mut [u8; Attr::LONG_BYTES]) {
        let mut short = [0; Attr::BYTES];
        self.write_to(&mut short);
        bytes[..11].copy_from_slice(&short[..11]);
        for (place, time) in bytes[11..35].chunks_exact_mut(8).zip([self.atime, self.mtime, self.ctime]) {
            place.copy_from_slice(&time.0.to_be_bytes());
        }
        bytes[35..].copy_from_slice(&short[23..]);
    }

    /// Appends the form of the extension `times`.
    pub fn put_long(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; Attr::LONG_BYTES];
        self.write_long_to(&mut bytes);
        out.extend_from_slice(&bytes);
    }
}

impl Field for Attr {
    fn put(&self, out: &mut Vec<u8>) {
        let mut bytes = [0; Attr::BYTES];
        self.write_to(&mut bytes);
        out.extend_from_slice(&bytes);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let long = input.has_long_times();
        if input.remaining() < if long { Attr::LONG_BYTES } else { Attr::BYTES } {
            return Err(WireError::Short { field: "attributes" });
        }
        let flags = u8::take(input)?;
        let kind_mode = u16::take(input)?;
        let kind = NodeKind::from_number((kind_mode >> 12) as u8)
            .ok_or(WireError::Range { field: "node type", value: u64::from(kind_mode >> 12) })?;
        let (uid, gid) = (u32::take(input)?, u32::take(input)?);
        let mut time = || if long { Time::take(input) } else { u32::take(input).map(Time::from) };
        let (atime, mtime, ctime) = (time()?, time()?, time()?);
        let (nlink, extra, winattr) = (u32::take(input)?, u64::take(input)?, u8::take(input)?);
        Ok(Attr { flags, kind, mode: kind_mode & 0o7777, uid, gid, atime, mtime, ctime, nlink, extra, winattr })
    }
    fn width(&self) -> usize {
        Attr::BYTES
    }
    fn sample(seed: &mut Seed) -> Self {
        Attr {
            flags: u8::sample(seed),
            kind: NodeKind::sample(seed),
            mode: u16::sample(seed) & 0o7777,
            uid: u32::sample(seed),
            gid: u32::sample(seed),
            atime: u32::sample(seed).into(),
            mtime: u32::sample(seed).into(),
            ctime: u32::sample(seed).into(),
            nlink: u32::sample(seed),
            extra: u64::sample(seed),
            winattr: u8::sample(seed),
        }
    }
}

records! {
    /// Where a copy of a chunk is, as told to clients from 3.0.10 on. Spec 31, 31.7.
    Location {
        ip: Ip4,
        port: u16,
        /// The chunkserver's version.
        version: VersionWord,
        /// Bit n is label 'A' + n.
        labels: u32,
    }

    /// One server of a write chain. Spec 20, 1.
    ChainServer { ip: Ip4, port: u16 }

    /// A chunk that a chunkserver reports; bit 31 of the version marks a disk that is to be emptied. Spec 40, 1.3.
    ChunkReport { chunkid: ChunkId, version: u32 }
}
