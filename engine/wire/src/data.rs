//! The chunkserver's data port, 9422. Spec 20, 1.
//!
//! The packets that carry data are declared by their head; the data stay where the kernel put them. The header's
//! length is then the head's width plus `size`.

use crate::codec::{Field, HEADER_BYTES, Header, Input, Packet, Seed, WireError, packets, records};
use crate::limits::{CHAIN_SERVERS_MAX, READ_DATA_HEAD_BYTES, WRITE_DATA_HEAD_BYTES};
use crate::types::{ChainServer, ChunkId, Crc, Name, Status, Version};

packets! {
    /// The end of a read: how it went. Spec 20, 3.1.
    CstoclReadStatus = 201 { chunkid: ChunkId, status: Status }

    /// Status of one piece of data, or of the opening when `writeid` is 0. Spec 20, 4.2.
    CstoclWriteStatus = 211 { chunkid: ChunkId, writeid: u32, status: Status }

    /// The end of a write session; has no answer. Spec 20, 4.2.
    CltocsWriteFinish = 213 { chunkid: ChunkId, version: Version }

    /// Spec 20, 1.
    AntocsGetChunkBlocks = 250 { chunkid: ChunkId, version: Version }

    /// Spec 20, 8.1.
    CstoanChunkBlocks = 251 { chunkid: ChunkId, version: Version, blocks: u16, status: Status }

    /// Spec 20, 1.
    AntocsGetChunkChecksum = 300 { chunkid: ChunkId, version: Version }

    /// The sum over the table; an error is `CstoanChunkChecksumError`. Spec 20, 8.1.
    CstoanChunkChecksum = 301 { chunkid: ChunkId, version: Version, checksum: u32 }

    /// Spec 20, 8.1.
    CstoanChunkChecksumError = 301 { chunkid: ChunkId, version: Version, status: Status }

    /// Spec 20, 1.
    AntocsGetChunkChecksumTab = 302 { chunkid: ChunkId, version: Version }

    /// All 1024 entries as they stand in the table. Spec 20, 8.1.
    CstoanChunkChecksumTab = 303 { chunkid: ChunkId, version: Version, table: Vec<Crc> }

    /// Spec 20, 8.1.
    CstoanChunkChecksumTabError = 303 { chunkid: ChunkId, version: Version, status: Status }

    /// Spec 20, 8.2.
    CltocsHddList = 600 {}

    /// Spec 20, 8.2.
    CstoclHddList = 601 { disks: Vec<DiskEntry> }
}

records! {
    /// Counters of a disk over some time. Spec 20, 8.2.
    DiskStats {
        rbytes: u64, wbytes: u64, usecread: u64, usecwrite: u64, usecfsync: u64,
        rops: u32, wops: u32, fsyncops: u32, usecreadmax: u32, usecwritemax: u32, usecfsyncmax: u32,
    }
}

/// Bytes of `DiskEntry` behind its size field, without the path. Spec 20, 8.2.
const DISK_ENTRY_FIXED_BYTES: u16 = 34 + 3 * 64;

/// One line of the disk configuration as tools see it. Spec 20, 8.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskEntry {
    pub path: Name,
    /// 1 marked for removal, 2 damaged, 4 scanning, 8 invalid.
    pub flags: u8,
    pub errchunkid: ChunkId,
    pub errtime: u32,
    /// Bytes; while scanning: percent done.
    pub used: u64,
    pub total: u64,
    pub chunks: u32,
    /// Last minute, last hour, last day.
    pub stats: [DiskStats; 3],
}

impl Field for DiskEntry {
    fn put(&self, out: &mut Vec<u8>) {
        (DISK_ENTRY_FIXED_BYTES + self.path.as_bytes().len() as u16).put(out);
        self.path.put(out);
        self.flags.put(out);
        self.errchunkid.put(out);
        self.errtime.put(out);
        self.used.put(out);
        self.total.put(out);
        self.chunks.put(out);
        for stats in &self.stats {
            stats.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let size = u16::take(input)?;
        let before = input.remaining();
        let entry = DiskEntry {
            path: Name::take(input)?,
            flags: u8::take(input)?,
            errchunkid: ChunkId::take(input)?,
            errtime: u32::take(input)?,
            used: u64::take(input)?,
            total: u64::take(input)?,
            chunks: u32::take(input)?,
            stats: [DiskStats::take(input)?, DiskStats::take(input)?, DiskStats::take(input)?],
        };
        if before - input.remaining() != usize::from(size) {
            return Err(WireError::Range { field: "disk entry size", value: u64::from(size) });
        }
        Ok(entry)
    }
    fn width(&self) -> usize {
        2 + usize::from(DISK_ENTRY_FIXED_BYTES) + self.path.as_bytes().len()
    }
    fn sample(seed: &mut Seed) -> Self {
        DiskEntry {
            path: Name::sample(seed),
            flags: u8::sample(seed),
            errchunkid: ChunkId::sample(seed),
            errtime: u32::sample(seed),
            used: u64::sample(seed),
            total: u64::sample(seed),
            chunks: u32::sample(seed),
            stats: std::array::from_fn(|_| DiskStats::sample(seed)),
        }
    }
}

/// Asks for a range of a chunk. Spec 20, 1 and 3.1: with the protocol byte the reader copes with NOPs at any time; the
/// replicators' form goes without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CltocsRead {
    pub with_proto: bool,
    pub chunkid: ChunkId,
    pub version: Version,
    pub offset: u32,
    pub size: u32,
}

impl Field for CltocsRead {
    fn put(&self, out: &mut Vec<u8>) {
        if self.with_proto {
            PROTO.put(out);
        }
        self.chunkid.put(out);
        self.version.put(out);
        self.offset.put(out);
        self.size.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let with_proto = input.remaining() == 21;
        if with_proto {
            u8::take(input)?; // any value is taken as 3.x does
        }
        Ok(CltocsRead {
            with_proto,
            chunkid: ChunkId::take(input)?,
            version: Version::take(input)?,
            offset: u32::take(input)?,
            size: u32::take(input)?,
        })
    }
    fn width(&self) -> usize {
        20 + usize::from(self.with_proto)
    }
    fn sample(seed: &mut Seed) -> Self {
        CltocsRead {
            with_proto: seed.below(2) == 1,
            chunkid: ChunkId::sample(seed),
            version: Version::sample(seed),
            offset: u32::sample(seed),
            size: u32::sample(seed),
        }
    }
}

impl Packet for CltocsRead {
    const TYPE: u32 = 200;
    const NAME: &'static str = "CltocsRead";
}

/// The protocol byte's only value. Spec 20, 1.
pub const PROTO: u8 = 1;

/// Opens a write session through this server to the servers of `chain`. Spec 20, 4.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CltocsWrite {
    pub with_proto: bool,
    pub chunkid: ChunkId,
    pub version: Version,
    pub chain: Vec<ChainServer>,
}

impl Field for CltocsWrite {
    fn put(&self, out: &mut Vec<u8>) {
        if self.with_proto {
            PROTO.put(out);
        }
        self.chunkid.put(out);
        self.version.put(out);
        self.chain.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        // An odd length means that the byte is there: 12 + 6N or 13 + 6N.
        let with_proto = input.remaining() % 2 == 1;
        if with_proto {
            u8::take(input)?;
        }
        let (chunkid, version) = (ChunkId::take(input)?, Version::take(input)?);
        let chain: Vec<ChainServer> = Vec::take(input)?;
        if chain.len() > CHAIN_SERVERS_MAX {
            return Err(WireError::Range { field: "write chain", value: chain.len() as u64 });
        }
        Ok(CltocsWrite { with_proto, chunkid, version, chain })
    }
    fn width(&self) -> usize {
        12 + usize::from(self.with_proto) + self.chain.width()
    }
    fn sample(seed: &mut Seed) -> Self {
        CltocsWrite {
            with_proto: seed.below(2) == 1,
            chunkid: ChunkId::sample(seed),
            version: Version::sample(seed),
            chain: Vec::sample(seed),
        }
    }
}

impl Packet for CltocsWrite {
    const TYPE: u32 = 210;
    const NAME: &'static str = "CltocsWrite";
}

/// Head of READ_DATA; `size` bytes of data follow. Spec 20, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CstoclReadData {
    pub chunkid: ChunkId,
    pub blocknum: u16,
    pub offset: u16,
    pub size: u32,
    /// Of exactly the bytes carried.
    pub crc: Crc,
}

impl CstoclReadData {
    pub const TYPE: u32 = 202;
    /// Header and head: what stands in front of the data.
    pub const FRONT_BYTES: usize = HEADER_BYTES + READ_DATA_HEAD_BYTES as usize;

    /// Header and head for `size` bytes of data.
    pub fn front(&self) -> [u8; Self::FRONT_BYTES] {
        let mut front = [0; Self::FRONT_BYTES];
        front[..8].copy_from_slice(&Header { kind: Self::TYPE, length: READ_DATA_HEAD_BYTES + self.size }.encode());
        front[8..16].copy_from_slice(&self.chunkid.0.to_be_bytes());
        front[16..18].copy_from_slice(&self.blocknum.to_be_bytes());
        front[18..20].copy_from_slice(&self.offset.to_be_bytes());
        front[20..24].copy_from_slice(&self.size.to_be_bytes());
        front[24..28].copy_from_slice(&self.crc.0.to_be_bytes());
        front
    }

    /// The head of a READ_DATA whose header announced `length` payload bytes. Errors: `Short`; `Range` if `size` is
    /// not what `length` leaves for data.
    pub fn decode_head(length: u32, head: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(head);
        let data = CstoclReadData {
            chunkid: ChunkId::take(&mut input)?,
            blocknum: u16::take(&mut input)?,
            offset: u16::take(&mut input)?,
            size: u32::take(&mut input)?,
            crc: Crc::take(&mut input)?,
        };
        check_data_size(length, READ_DATA_HEAD_BYTES, data.size)?;
        Ok(data)
    }
}

/// Head of WRITE_DATA; `size` bytes of data follow. Spec 20, 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CltocsWriteData {
    pub chunkid: ChunkId,
    /// Chosen by the client, never 0; servers echo it.
    pub writeid: u32,
    pub blocknum: u16,
    pub offset: u16,
    pub size: u32,
    /// Of exactly the bytes carried.
    pub crc: Crc,
}

impl CltocsWriteData {
    pub const TYPE: u32 = 212;
    /// Header and head: what stands in front of the data.
    pub const FRONT_BYTES: usize = HEADER_BYTES + WRITE_DATA_HEAD_BYTES as usize;

    /// Header and head for `size` bytes of data.
    pub fn front(&self) -> [u8; Self::FRONT_BYTES] {
        let mut front = [0; Self::FRONT_BYTES];
        front[..8].copy_from_slice(&Header { kind: Self::TYPE, length: WRITE_DATA_HEAD_BYTES + self.size }.encode());
        front[8..16].copy_from_slice(&self.chunkid.0.to_be_bytes());
        front[16..20].copy_from_slice(&self.writeid.to_be_bytes());
        front[20..22].copy_from_slice(&self.blocknum.to_be_bytes());
        front[22..24].copy_from_slice(&self.offset.to_be_bytes());
        front[24..28].copy_from_slice(&self.size.to_be_bytes());
        front[28..32].copy_from_slice(&self.crc.0.to_be_bytes());
        front
    }

    /// The head of a WRITE_DATA whose header announced `length` payload bytes. `blocknum`, `offset` and `size` are not
    /// checked against the block: the receiver answers those with statuses (Spec 20, 4.4). Errors: `Short`; `Range`
    /// if `size` is not what `length` leaves for data.
    pub fn decode_head(length: u32, head: &[u8]) -> Result<Self, WireError> {
        let mut input = Input::new(head);
        let data = CltocsWriteData {
            chunkid: ChunkId::take(&mut input)?,
            writeid: u32::take(&mut input)?,
            blocknum: u16::take(&mut input)?,
            offset: u16::take(&mut input)?,
            size: u32::take(&mut input)?,
            crc: Crc::take(&mut input)?,
        };
        check_data_size(length, WRITE_DATA_HEAD_BYTES, data.size)?;
        Ok(data)
    }
}

/// The data must be exactly what the header's length leaves behind the head.
fn check_data_size(length: u32, head_bytes: u32, size: u32) -> Result<(), WireError> {
    if length.checked_sub(head_bytes) == Some(size) {
        Ok(())
    } else {
        Err(WireError::Range { field: "data size", value: u64::from(size) })
    }
}
