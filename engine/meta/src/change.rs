//! Every change that the journal knows, declared once: its name, its arguments in order, the number of its results.
//!
//! Names, order and spelling are MooseFS's where the operation is the same (Spec 51, 6), so that people and tools can
//! read the lines. The enum, its formatting and its parsing come from the table below. Two differences: `SETSCLASS`
//! adds 8 to `smode` if the session had the admin flag, since its result depends on that; times of nodes may have a
//! fraction and a sign.

use std::borrow::Cow;

use wire::{ChunkId, Inode, Ip4, SessionId, Time, Version};

/// Bytes of a name, path, value or text; escaped in the line. Spec 51, 2.
pub type Bytes<'a> = Cow<'a, [u8]>;

macro_rules! changes {
    ($( $(#[$doc:meta])* $variant:ident $text:literal ( $($field:ident : $type:ty),* $(,)? ) $results:literal )*) => {
        /// One change of the metadata.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Change<'a> {
            $( $(#[$doc])* $variant { $($field: $type),* }, )*
        }

        impl<'a> Change<'a> {
            /// The word in the line.
            pub fn name(&self) -> &'static str {
                match self {
                    $( Change::$variant { .. } => $text, )*
                }
            }

            /// Number of results that the line carries.
            pub(crate) fn results(&self) -> usize {
                match self {
                    $( Change::$variant { .. } => $results, )*
                }
            }

            pub(crate) fn put_arguments(&self, out: &mut Vec<u8>) {
                match self {
                    $( Change::$variant { $($field),* } => {
                        let mut _separator: &[u8] = b"";
                        $(
                            out.extend_from_slice(_separator);
                            $field.put(out);
                            _separator = b",";
                        )*
                    } )*
                }
            }

            /// None: no such operation, or its arguments are not these.
            pub(crate) fn take(name: &[u8], arguments: &'a [u8]) -> Option<Change<'a>> {
                let mut _input = Arguments { rest: (!arguments.is_empty()).then_some(arguments) };
                let change = match name {
                    $( name if name == $text.as_bytes() => Change::$variant { $($field: Argument::take(&mut _input)?),* }, )*
                    _ => return None,
                };
                _input.rest.is_none().then_some(change)
            }

            #[cfg(test)]
            pub(crate) fn sample(name: &str, seed: &mut dyn FnMut() -> u64) -> Option<Change<'static>> {
                match name {
                    $( $text => Some(Change::$variant { $($field: Argument::sample(seed)),* }), )*
                    _ => None,
                }
            }

            #[cfg(test)]
            pub(crate) const NAMES: &'static [&'static str] = &[$($text),*];
        }
    };
}

changes! {
    /// The identity of the whole set of metadata.
    SetMetaId "SETMETAID" (meta_id: u64) 0
    /// Nothing; raises the version.
    Idle "IDLE" () 0

    // Names and nodes. Results: the inode, or how many nodes were changed, not changed, not permitted.
    Create "CREATE" (parent: Inode, name: Bytes<'a>, kind: u8, mode: u16, umask: u16, uid: u32, gid: u32, rdev: u32) 1
    Symlink "SYMLINK" (parent: Inode, name: Bytes<'a>, target: Bytes<'a>, uid: u32, gid: u32) 1
    Link "LINK" (inode: Inode, parent: Inode, name: Bytes<'a>) 0
    Unlink "UNLINK" (parent: Inode, name: Bytes<'a>) 1
    Move "MOVE" (source_parent: Inode, source_name: Bytes<'a>, target_parent: Inode, target_name: Bytes<'a>) 1
    /// atime := the line's time.
    Access "ACCESS" (inode: Inode) 0
    Times "AMTIME" (inode: Inode, atime: Time, mtime: Time, ctime: Time) 0
    /// `acl_mode`: 0 without access ACL, else 4096 + (user << 6 | mask << 3 | other).
    Attributes "ATTR" (inode: Inode, mode: u16, uid: u32, gid: u32, atime: Time, mtime: Time, winattr: u8,
        acl_mode: u16) 0
    SetClass "SETSCLASS" (inode: Inode, uid: u32, source: u8, target: u8, smode: u8) 3
    SetTrashTime "SETTRASHTIME" (inode: Inode, uid: u32, seconds: u32, smode: u8) 3
    SetEattr "SETEATTR" (inode: Inode, uid: u32, eattr: u8, smode: u8) 3
    SetXattr "SETXATTR" (inode: Inode, name: Bytes<'a>, value: Bytes<'a>, mode: u8) 0
    /// `entries`: 6 bytes each, id u32 and permissions u16, users first.
    SetAcl "SETACL" (inode: Inode, mode: u16, change_ctime: u8, kind: u8, user: u16, group: u16, other: u16, mask: u16,
        users: u16, groups: u16, entries: Bytes<'a>) 0
    SetQuota "QUOTA" (inode: Inode, exceeded: u8, flags: u8, since: u32, soft_inodes: u32, hard_inodes: u32,
        soft_length: u64, hard_length: u64, soft_size: u64, hard_size: u64, soft_realsize: u64, hard_realsize: u64,
        grace_seconds: u32) 0
    /// Results: XOR of inodes, removed, same, existing, hard links, new.
    Snapshot "SNAPSHOT" (source: Inode, parent: Inode, name: Bytes<'a>, smode: u8, flags: u8, uid: u32, gids: GidList,
        umask: u16) 6

    // Trash, sustained files, free inodes.
    SetPath "SETPATH" (inode: Inode, path: Bytes<'a>) 0
    Undelete "UNDEL" (inode: Inode) 0
    Purge "PURGE" (inode: Inode) 0
    /// Results: freed, sustained, XOR of inodes.
    EmptyTrash "EMPTYTRASH" (bucket: u32) 3
    /// Results: freed, XOR of inodes.
    EmptySustained "EMPTYSUSTAINED" (bucket: u32) 2
    /// Results: freed, still open, XOR of inodes.
    FreeInodes "FREEINODES" (delay_seconds: u32) 3

    // File data and chunks.
    /// `raise_version`: see `raise`.
    Write "WRITE" (inode: Inode, index: u32, raise_version: u8, touch_times: u8) 1
    Length "LENGTH" (inode: Inode, length: u64, touch_times: u8) 0
    Truncate "TRUNC" (inode: Inode, index: u32) 1
    /// The chunk that holds the new end is being cut; a shorter length holds from now on. SETVERSION ends it.
    Cut "CUT" (inode: Inode, index: u32, length: u64) 1
    Unlock "UNLOCK" (chunk: ChunkId) 0
    Rollback "ROLLBACK" (inode: Inode, index: u32, previous: ChunkId, chunk: ChunkId) 0
    /// Version 0: the slot is emptied.
    Repair "REPAIR" (inode: Inode, index: u32, version: Version) 0
    Append "APPEND" (inode: Inode, source: Inode, first: u32, last: u32) 0
    SetFileChunk "SETFILECHUNK" (inode: Inode, index: u32, chunk: ChunkId) 0
    /// Results: changed, unchanged, not permitted.
    Archive "ARCHCHG" (inode: Inode, uid: u32, command: u8) 3
    ChunkAdd "CHUNKADD" (chunk: ChunkId, version: Version, locked_to: u32) 0
    ChunkDelete "CHUNKDEL" (chunk: ChunkId, version: Version) 0
    /// The chunk has this version: what was begun is done. A file's own copy of a shared chunk goes into the file.
    SetVersion "SETVERSION" (chunk: ChunkId, version: Version) 0
    /// Copies are about to be given this version; SETVERSION ends it.
    Raise "RAISE" (chunk: ChunkId, version: Version) 0

    NextChunkId "NEXTCHUNKID" (next: ChunkId) 0

    // Sessions and locks.
    SessionAdd "SESADD" (checksum: Checksum, root: Inode, flags: u8, umask: Umask, root_uid: u32, root_gid: u32,
        map_all_uid: u32, map_all_gid: u32, goal_min: u8, goal_max: u8, trash_min: u32, trash_max: u32,
        disables: Disables, peer: Ip4, info: Bytes<'a>) 1
    SessionChange "SESCHANGED" (session: SessionId, checksum: Checksum, root: Inode, flags: u8, umask: Umask,
        root_uid: u32, root_gid: u32, map_all_uid: u32, map_all_gid: u32, goal_min: u8, goal_max: u8, trash_min: u32,
        trash_max: u32, disables: Disables, peer: Ip4, info: Bytes<'a>) 0
    SessionDelete "SESDEL" (session: SessionId) 0
    SessionDisconnect "SESDISCONNECTED" (session: SessionId) 0
    SessionConnect "SESCONNECTED" (session: SessionId) 0
    Acquire "ACQUIRE" (session: SessionId, inode: Inode) 0
    Release "RELEASE" (session: SessionId, inode: Inode) 0
    Flock "FLOCK" (inode: Inode, session: SessionId, owner: u64, lock: LockLetter) 0
    PosixLock "POSIXLOCK" (inode: Inode, session: SessionId, owner: u64, lock: LockLetter, start: u64, end: u64,
        pid: u32) 0

    // Servers and classes.
    Server "CSDBOP" (operation: u8, ip: Ip4, port: u16, argument: u32) 0
    /// `masks`: 4 per copy; create, keep, arch. Result: class id.
    ClassSet "SCSET" (name: Bytes<'a>, new: u8, create: Tagged<'W'>, keep: Tagged<'K'>, arch: Tagged<'A'>, mode: u8,
        arch_delay_days: u16, admin_only: u8, masks: Masks) 1
    /// Results: old id, new id.
    ClassDuplicate "SCDUP" (source: Bytes<'a>, target: Bytes<'a>) 2
    ClassRename "SCREN" (source: Bytes<'a>, target: Bytes<'a>) 1
    ClassDelete "SCDEL" (name: Bytes<'a>) 1
}

/// Values of `raise_version`.
pub mod raise {
    /// The chunk's copies all have its version.
    pub const NO: u8 = 0;
    /// Version + 1, or a chunk of its own for one that is shared: lines of programs that did not write down how that
    /// ended.
    pub const AT_ONCE: u8 = 1;
    /// The same is begun; SETVERSION ends it.
    pub const BEGUN: u8 = 2;
}

/// Gids as `[1,2,3]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GidList(pub Vec<u32>);

/// A number as `#123`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(pub u64);

/// A umask as `0022`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Umask(pub u16);

/// Bits as `0x0000001F`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disables(pub u32);

/// A number behind a letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tagged<const LETTER: char>(pub u32);

/// Numbers to the end of the arguments; `-` if there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Masks(pub Vec<u32>);

/// What is done to a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockLetter {
    /// R
    Shared,
    /// W
    Exclusive,
    /// U
    Unlocked,
}

/// Arguments of a line that are still to be read. None: the last one was read.
pub(crate) struct Arguments<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Arguments<'a> {
    /// The bytes up to the next comma.
    fn word(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        match rest.iter().position(|byte| *byte == b',') {
            Some(comma) => {
                self.rest = Some(&rest[comma + 1..]);
                Some(&rest[..comma])
            }
            None => {
                self.rest = None;
                Some(rest)
            }
        }
    }
}

pub(crate) trait Argument<'a>: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(input: &mut Arguments<'a>) -> Option<Self>;
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self;
}

macro_rules! numbers {
    ($($type:ty)*) => { $(
        impl<'a> Argument<'a> for $type {
            fn put(&self, out: &mut Vec<u8>) {
                put_number(u64::from(*self), out);
            }
            fn take(input: &mut Arguments<'a>) -> Option<Self> {
                <$type>::try_from(number(input.word()?)?).ok()
            }
            #[cfg(test)]
            fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
                seed() as $type >> (seed() % u64::from(<$type>::BITS))
            }
        }
    )* };
}
numbers!(u8 u16 u32 u64);

macro_rules! ids {
    ($($type:ident)*) => { $(
        impl<'a> Argument<'a> for $type {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            fn take(input: &mut Arguments<'a>) -> Option<Self> {
                Argument::take(input).map($type)
            }
            #[cfg(test)]
            fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
                $type(Argument::sample(seed))
            }
        }
    )* };
}
ids!(Inode ChunkId Version SessionId Ip4);

impl<'a> Argument<'a> for Time {
    fn put(&self, out: &mut Vec<u8>) {
        put_time(*self, out);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        time(input.word()?)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        let time = (seed() >> (seed() % 64)).cast_signed();
        match seed() % 3 {
            0 => Time(time),
            1 => Time(time.wrapping_neg()),
            _ => Time::from(time as u32),
        }
    }
}

impl<'a> Argument<'a> for Bytes<'a> {
    fn put(&self, out: &mut Vec<u8>) {
        escape(self, out);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        unescape(input.word()?)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        let length = 1 + seed() % 40;
        Cow::Owned((0..length).map(|_| seed() as u8).collect())
    }
}

impl<'a> Argument<'a> for GidList {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (at, gid) in self.0.iter().enumerate() {
            if at != 0 {
                out.push(b',');
            }
            gid.put(out);
        }
        out.push(b']');
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        let rest = input.rest?.strip_prefix(b"[")?;
        let end = rest.iter().position(|byte| *byte == b']')?;
        input.rest = match rest.get(end + 1) {
            None => None,
            Some(b',') => Some(&rest[end + 2..]),
            Some(_) => return None,
        };
        numbers_between_commas(&rest[..end]).map(GidList)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        GidList((0..seed() % 4).map(|_| Argument::sample(seed)).collect())
    }
}

impl<'a> Argument<'a> for Masks {
    fn put(&self, out: &mut Vec<u8>) {
        if self.0.is_empty() {
            out.push(b'-');
        }
        for (at, mask) in self.0.iter().enumerate() {
            if at != 0 {
                out.push(b',');
            }
            mask.put(out);
        }
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        match input.rest.take()? {
            b"-" => Some(Masks(Vec::new())),
            b"" => None,
            rest => numbers_between_commas(rest).map(Masks),
        }
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        Masks(GidList::sample(seed).0)
    }
}

impl<'a> Argument<'a> for Checksum {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'#');
        self.0.put(out);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        number(input.word()?.strip_prefix(b"#")?).map(Checksum)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        Checksum(seed())
    }
}

impl<'a> Argument<'a> for Umask {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend([b'0', digit(self.0 >> 6 & 7), digit(self.0 >> 3 & 7), digit(self.0 & 7)]);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        match input.word()? {
            [b'0', digits @ ..] if digits.len() == 3 && digits.iter().all(|byte| (b'0'..b'8').contains(byte)) => {
                Some(Umask(digits.iter().fold(0, |sum, byte| sum << 3 | u16::from(byte - b'0'))))
            }
            _ => None,
        }
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        Umask(seed() as u16 & 0o777)
    }
}

impl<'a> Argument<'a> for Disables {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"0x");
        put_hex(self.0, out);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        hex(input.word()?.strip_prefix(b"0x")?).map(Disables)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        Disables(seed() as u32)
    }
}

impl<'a, const LETTER: char> Argument<'a> for Tagged<LETTER> {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(LETTER as u8);
        self.0.put(out);
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        let digits = input.word()?.strip_prefix(&[LETTER as u8])?;
        u32::try_from(number(digits)?).ok().map(Tagged)
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        Tagged(Argument::sample(seed))
    }
}

impl<'a> Argument<'a> for LockLetter {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(match self {
            LockLetter::Shared => b'R',
            LockLetter::Exclusive => b'W',
            LockLetter::Unlocked => b'U',
        });
    }
    fn take(input: &mut Arguments<'a>) -> Option<Self> {
        match input.word()? {
            b"R" => Some(LockLetter::Shared),
            b"W" => Some(LockLetter::Exclusive),
            b"U" => Some(LockLetter::Unlocked),
            _ => None,
        }
    }
    #[cfg(test)]
    fn sample(seed: &mut dyn FnMut() -> u64) -> Self {
        [LockLetter::Shared, LockLetter::Exclusive, LockLetter::Unlocked][seed() as usize % 3]
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b',' | b'%' | b'(' | b')' | 0..32 | 127..=255 => {
                out.extend([b'%', hex_digit(byte >> 4), hex_digit(byte & 15)]);
            }
            plain => out.push(*plain),
        }
    }
}

fn unescape(text: &[u8]) -> Option<Bytes<'_>> {
    if !text.contains(&b'%') {
        return Some(Cow::Borrowed(text));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'%' {
            let (digits, behind) = rest.split_at_checked(2)?;
            bytes.push(nibble(digits[0])? << 4 | nibble(digits[1])?);
            rest = behind;
        } else {
            bytes.push(*first);
        }
    }
    Some(Cow::Owned(bytes))
}

pub(crate) fn put_number(number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A decimal number without sign or padding.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 1 && text[0] == b'0' {
        return None;
    }
    text.iter().try_fold(0u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const FRACTION_DIGITS: usize = 9;

/// A time as it displays: seconds, with nine digits of their fraction unless they are whole. Whole ones look as
/// MooseFS's.
pub(crate) fn put_time(time: Time, out: &mut Vec<u8>) {
    let nanos = time.0.unsigned_abs();
    if time.0 < 0 {
        out.push(b'-');
    }
    put_number(nanos / NANOS_PER_SECOND, out);
    let mut rest = nanos % NANOS_PER_SECOND;
    if rest != 0 {
        let mut fraction = *b".000000000";
        for digit in fraction[1..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&fraction);
    }
}

/// Reads what `put_time` writes.
pub(crate) fn time(text: &[u8]) -> Option<Time> {
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let point = digits.iter().position(|byte| *byte == b'.').unwrap_or(digits.len());
    let (seconds, fraction) = digits.split_at(point);
    let mut nanos = number(seconds)?.checked_mul(NANOS_PER_SECOND)?;
    if let [b'.', fraction @ ..] = fraction {
        if fraction.len() != FRACTION_DIGITS || !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        nanos = nanos.checked_add(fraction.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')))?;
    }
    match is_negative {
        true => 0i64.checked_sub_unsigned(nanos).map(Time),
        false => i64::try_from(nanos).ok().map(Time),
    }
}

fn numbers_between_commas(text: &[u8]) -> Option<Vec<u32>> {
    if text.is_empty() {
        return Some(Vec::new());
    }
    text.split(|byte| *byte == b',').map(|word| u32::try_from(number(word)?).ok()).collect()
}

/// Eight upper-case hex digits.
pub(crate) fn put_hex(word: u32, out: &mut Vec<u8>) {
    out.extend((0..8).rev().map(|at| hex_digit((word >> (4 * at) & 15) as u8)));
}

pub(crate) fn hex(text: &[u8]) -> Option<u32> {
    if text.len() != 8 {
        return None;
    }
    text.iter().try_fold(0, |word, byte| Some(word << 4 | u32::from(nibble(*byte)?)))
}

fn digit(value: u16) -> u8 {
    b'0' + value as u8
}

fn hex_digit(value: u8) -> u8 {
    b"0123456789ABCDEF"[usize::from(value)]
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}
