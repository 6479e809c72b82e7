//! Between master and chunkserver, port 9420. Spec 40.

use crate::codec::{Entry, Field, Input, Packet, Seed, WireError, packets, records};
use crate::types::{ChunkId, ChunkReport, Ip4, MetaId, Status, Version, VersionWord};

packets! {
    /// Space of a server: normal disks, then those marked for removal ("td"). Spec 40, 6.
    CstomaSpace = 101 { space: ServerSpace }

    /// Copies with bad sums or read errors. Spec 40, 6.
    CstomaChunkDamaged = 102 { chunks: Vec<ChunkId> }

    /// Spec 40, 6.
    CstomaCurrentLoad = 103 { load: u32, hlstatus: Option<u8>, transferring: Option<u8> }

    /// Copies that are gone. Spec 40, 6.
    CstomaChunkLost = 105 { chunks: Vec<ChunkId> }

    /// One disk error; the master counts. Spec 40, 6.
    CstomaErrorOccurred = 106 {}

    /// Copies that appeared. Spec 40, 6.
    CstomaChunkNew = 107 { chunks: Vec<ChunkReport> }

    /// Bit n is label 'A' + n. Spec 40, 6.
    CstomaLabels = 109 { labelmask: u32 }

    /// Spec 40, 8.1.
    MatocsCreate = 110 { chunkid: ChunkId, version: Version }

    /// Spec 40, 8.1.
    CstomaCreate = 111 { chunkid: ChunkId, status: Status }

    /// Version 0 deletes any. Spec 40, 8.1.
    MatocsDelete = 120 { chunkid: ChunkId, version: Version }

    /// Spec 40, 8.1.
    CstomaDelete = 121 { chunkid: ChunkId, status: Status }

    /// Spec 40, 8.1.
    MatocsDuplicate = 130 { newchunkid: ChunkId, newversion: Version, oldchunkid: ChunkId, oldversion: Version }

    /// Carries the new chunk's id. Spec 40, 8.1.
    CstomaDuplicate = 131 { chunkid: ChunkId, status: Status }

    /// The new version comes first. Spec 40, 8.1.
    MatocsSetVersion = 140 { chunkid: ChunkId, newversion: Version, oldversion: Version }

    /// Spec 40, 8.1.
    CstomaSetVersion = 141 { chunkid: ChunkId, status: Status }

    /// Copy from one source. Spec 40, 8.1.
    MatocsReplicate = 150 { chunkid: ChunkId, version: Version, srcip: Ip4, srcport: u16 }

    /// Spec 40, 8.1.
    CstomaReplicate = 151 { chunkid: ChunkId, version: Version, status: Status }

    /// The generic form: section 8.2 says which operation it means. Spec 40, 8.1.
    MatocsChunkop = 152 { chunkid: ChunkId, version: Version, newversion: Version, copychunkid: ChunkId, copyversion: Version, length: u32 }

    /// Spec 40, 8.1.
    CstomaChunkop = 153 { chunkid: ChunkId, version: Version, newversion: Version, copychunkid: ChunkId, copyversion: Version, length: u32, status: Status }

    /// Spec 40, 8.1.
    MatocsTruncate = 160 { chunkid: ChunkId, length: u32, newversion: Version, oldversion: Version }

    /// Spec 40, 8.1.
    CstomaTruncate = 161 { chunkid: ChunkId, status: Status }

    /// Spec 40, 8.1.
    MatocsDuptrunc = 170 { newchunkid: ChunkId, newversion: Version, oldchunkid: ChunkId, oldversion: Version, length: u32 }

    /// Carries the new chunk's id. Spec 40, 8.1.
    CstomaDuptrunc = 171 { chunkid: ChunkId, status: Status }
}

/// The packets with several forms of one number.
pub(crate) const FORMS: &[Entry] = &[Entry::of::<CstomaRegister>(), Entry::of::<MatocsMasterAck>()];

records! {
    /// Bytes and chunks on normal disks, and on those marked for removal. Spec 40, 3.1.
    ServerSpace { used: u64, total: u64, chunks: u32, tdused: u64, tdtotal: u64, tdchunks: u32 }

    /// What a chunkserver says of itself first. Spec 40, 3.1, rver 60 behind the passcode.
    RegisterBegin {
        version: VersionWord,
        /// Address for clients; 0 = the one the master sees.
        ip: Ip4,
        port: u16,
        /// Seconds; 0 = the master chooses.
        timeout: u16,
        csid: u16,
        space: ServerSpace,
    }
}

/// One step of a chunkserver's registration. Spec 40, 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CstomaRegister {
    /// rver 60.
    Begin { passcode: Option<[u8; 16]>, begin: RegisterBegin },
    /// rver 61.
    Chunks(Vec<ChunkReport>),
    /// rver 62.
    End,
    /// rver 63.
    Disconnect,
}

/// Bytes of rver 60 without and with passcode. Spec 40, 3.1.
const BEGIN_BYTES: usize = 55;
const BEGIN_WITH_PASSCODE_BYTES: usize = 71;

impl Field for CstomaRegister {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            CstomaRegister::Begin { passcode, begin } => {
                60u8.put(out);
                passcode.put(out);
                begin.put(out);
            }
            CstomaRegister::Chunks(chunks) => {
                61u8.put(out);
                chunks.put(out);
            }
            CstomaRegister::End => 62u8.put(out),
            CstomaRegister::Disconnect => 63u8.put(out),
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = input.remaining();
        let rver = u8::take(input)?;
        match rver {
            60 if length == BEGIN_BYTES => {
                Ok(CstomaRegister::Begin { passcode: None, begin: RegisterBegin::take(input)? })
            }
            60 if length == BEGIN_WITH_PASSCODE_BYTES => {
                Ok(CstomaRegister::Begin { passcode: Some(Field::take(input)?), begin: RegisterBegin::take(input)? })
            }
            60 => Err(WireError::Range { field: "register packet length", value: length as u64 }),
            61 => Ok(CstomaRegister::Chunks(Vec::take(input)?)),
            62 => Ok(CstomaRegister::End),
            63 => Ok(CstomaRegister::Disconnect),
            _ => Err(WireError::Range { field: "register version", value: u64::from(rver) }),
        }
    }
    fn width(&self) -> usize {
        1 + match self {
            CstomaRegister::Begin { passcode, begin } => passcode.width() + begin.width(),
            CstomaRegister::Chunks(chunks) => chunks.width(),
            CstomaRegister::End | CstomaRegister::Disconnect => 0,
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(4) {
            0 => CstomaRegister::Begin { passcode: Option::sample(seed), begin: RegisterBegin::sample(seed) },
            1 => CstomaRegister::Chunks(Vec::sample(seed)),
            2 => CstomaRegister::End,
            _ => CstomaRegister::Disconnect,
        }
    }
}

impl Packet for CstomaRegister {
    const TYPE: u32 = 100;
    const NAME: &'static str = "CstomaRegister";
}

/// The master's word during registration. Spec 40, 5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MatocsMasterAck {
    /// 1 byte: send the next part.
    Next,
    /// 5 bytes, type 0: after the old BEGIN (rver 50).
    BeginOld { master_version: VersionWord },
    /// 9 bytes: without metaid, for chunkservers before 2.0.33.
    BeginWithoutMetaId { master_version: VersionWord, timeout: u16, csid: u16 },
    /// 17 bytes: after BEGIN.
    Begin { master_version: VersionWord, timeout: u16, csid: u16, metaid: MetaId },
    /// 5 bytes, type 1: another master leads.
    Redirect { leader_ip: Ip4 },
    /// 7 or 15 bytes, type 2: wait.
    Wait { master_version: VersionWord, timeout: u16, metaid: Option<MetaId> },
    /// 33 bytes, type 3: prove that you know the AUTH_CODE.
    Challenge([u8; 32]),
}

impl Field for MatocsMasterAck {
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            MatocsMasterAck::Next => 0u8.put(out),
            MatocsMasterAck::BeginOld { master_version } => {
                0u8.put(out);
                master_version.put(out);
            }
            MatocsMasterAck::BeginWithoutMetaId { master_version, timeout, csid } => {
                0u8.put(out);
                master_version.put(out);
                timeout.put(out);
                csid.put(out);
            }
            MatocsMasterAck::Begin { master_version, timeout, csid, metaid } => {
                0u8.put(out);
                master_version.put(out);
                timeout.put(out);
                csid.put(out);
                metaid.put(out);
            }
            MatocsMasterAck::Redirect { leader_ip } => {
                1u8.put(out);
                leader_ip.put(out);
            }
            MatocsMasterAck::Wait { master_version, timeout, metaid } => {
                2u8.put(out);
                master_version.put(out);
                timeout.put(out);
                metaid.put(out);
            }
            MatocsMasterAck::Challenge(random) => {
                3u8.put(out);
                random.put(out);
            }
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let length = input.remaining();
        match (u8::take(input)?, length) {
            (0, 1) => Ok(MatocsMasterAck::Next),
            (0, 5) => Ok(MatocsMasterAck::BeginOld { master_version: Field::take(input)? }),
            (0, 9) => Ok(MatocsMasterAck::BeginWithoutMetaId {
                master_version: Field::take(input)?,
                timeout: Field::take(input)?,
                csid: Field::take(input)?,
            }),
            (0, 17) => Ok(MatocsMasterAck::Begin {
                master_version: Field::take(input)?,
                timeout: Field::take(input)?,
                csid: Field::take(input)?,
                metaid: Field::take(input)?,
            }),
            (1, 5) => Ok(MatocsMasterAck::Redirect { leader_ip: Field::take(input)? }),
            (2, 7 | 15) => Ok(MatocsMasterAck::Wait {
                master_version: Field::take(input)?,
                timeout: Field::take(input)?,
                metaid: Field::take(input)?,
            }),
            (3, 33) => Ok(MatocsMasterAck::Challenge(Field::take(input)?)),
            (kind, _) => Err(WireError::Range { field: "acknowledge type and length", value: u64::from(kind) }),
        }
    }
    fn width(&self) -> usize {
        match self {
            MatocsMasterAck::Next => 1,
            MatocsMasterAck::BeginOld { .. } | MatocsMasterAck::Redirect { .. } => 5,
            MatocsMasterAck::BeginWithoutMetaId { .. } => 9,
            MatocsMasterAck::Begin { .. } => 17,
            MatocsMasterAck::Wait { metaid, .. } => 7 + metaid.width(),
            MatocsMasterAck::Challenge(_) => 33,
        }
    }
    fn sample(seed: &mut Seed) -> Self {
        match seed.below(7) {
            0 => MatocsMasterAck::Next,
            1 => MatocsMasterAck::BeginOld { master_version: Field::sample(seed) },
            2 => MatocsMasterAck::BeginWithoutMetaId {
                master_version: Field::sample(seed),
                timeout: Field::sample(seed),
                csid: Field::sample(seed),
            },
            3 => MatocsMasterAck::Begin {
                master_version: Field::sample(seed),
                timeout: Field::sample(seed),
                csid: Field::sample(seed),
                metaid: Field::sample(seed),
            },
            4 => MatocsMasterAck::Redirect { leader_ip: Field::sample(seed) },
            5 => MatocsMasterAck::Wait {
                master_version: Field::sample(seed),
                timeout: Field::sample(seed),
                metaid: Field::sample(seed),
            },
            _ => MatocsMasterAck::Challenge(Field::sample(seed)),
        }
    }
}

impl Packet for MatocsMasterAck {
    const TYPE: u32 = 104;
    const NAME: &'static str = "MatocsMasterAck";
}
