//! What can go wrong with a chunk, and the one place where that becomes a status code. Spec 20, 5 and 6.

use std::io;

use wire::Status;

#[derive(Debug)]
pub(crate) enum ChunkError {
    /// We have no such chunk.
    NoChunk,
    /// Its file has a length that no chunk file has.
    BadLength,
    /// Header and name disagree, or there is no header.
    BadHeader,
    WrongVersion,
    /// Another operation holds it for too long, or the server has too much to do.
    Busy,
    Exists,
    /// The disk is full, or its file system's quota is used up. What was there before is unharmed.
    NoSpace,
    /// An argument that no chunk could have.
    Invalid,
    /// A block does not have the content that its sum says. Never answered with data.
    Sum,
    /// The file ends before blocks that had content by the table of sums. The blocks before its end are served.
    CutShort {
        file_blocks: u16,
        blocks: u16,
    },
    /// The intent log of its disk cannot be written.
    LogBroken,
    Disk(io::Error),
    /// A source of a replication, or the next server of a chain, answered this or could not be talked to.
    Peer(Status),
}

impl ChunkError {
    pub(crate) fn status(&self) -> Status {
        match self {
            ChunkError::NoChunk | ChunkError::BadLength => Status::NOCHUNK,
            ChunkError::WrongVersion => Status::WRONGVERSION,
            ChunkError::Busy => Status::NOTDONE,
            ChunkError::Exists => Status::CHUNKEXIST,
            ChunkError::NoSpace => Status::NOSPACE,
            ChunkError::Invalid => Status::EINVAL,
            ChunkError::Sum | ChunkError::CutShort { .. } => Status::CRC,
            ChunkError::BadHeader | ChunkError::LogBroken | ChunkError::Disk(_) => Status::IO,
            ChunkError::Peer(status) => *status,
        }
    }

    /// Does it mean that our copy is bad? Such a chunk is reported to the master as damaged.
    pub(crate) fn is_damage(&self) -> bool {
        use ChunkError::*;
        matches!(self, BadLength | BadHeader | Sum | CutShort { .. } | LogBroken | Disk(_))
    }

    /// EIO, EROFS, ENOENT: errors that count against the disk itself. Spec 21, 8.5.
    pub(crate) fn is_hard(&self) -> bool {
        const EIO: i32 = 5;
        match self {
            ChunkError::Disk(error) => {
                error.raw_os_error() == Some(EIO)
                    || matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem)
            }
            ChunkError::LogBroken => true,
            _ => false,
        }
    }
}

impl From<io::Error> for ChunkError {
    /// For operations that leave a chunk as it was when they fail. See `half_done` for the others.
    fn from(error: io::Error) -> ChunkError {
        const ENOMEM: i32 = 12;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        match (error.kind(), error.raw_os_error()) {
            (io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded, _) => ChunkError::NoSpace,
            (_, Some(ENOMEM | ENFILE | EMFILE)) => ChunkError::Busy,
            _ => ChunkError::Disk(error),
        }
    }
}

impl ChunkError {
    /// The same failure of an operation that left the chunk neither as it was nor as it should be: a copy that is
    /// damaged, also where nothing is wrong with the disk.
    pub(crate) fn half_done(self) -> ChunkError {
        match self {
            ChunkError::NoSpace => ChunkError::Disk(io::ErrorKind::StorageFull.into()),
            ChunkError::Busy => ChunkError::Disk(io::Error::other("the system refuses more open files or memory")),
            other => other,
        }
    }
}

impl From<crate::intents::LogBroken> for ChunkError {
    fn from(_: crate::intents::LogBroken) -> ChunkError {
        ChunkError::LogBroken
    }
}

impl std::fmt::Display for ChunkError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ChunkError::Disk(error) => write!(f, "{error}"),
            ChunkError::BadLength => write!(f, "the file has a length that no chunk has"),
            ChunkError::BadHeader => write!(f, "the header does not name this chunk"),
            ChunkError::Sum => write!(f, "a block does not have the content that its checksum says"),
            ChunkError::CutShort { file_blocks, blocks } => {
                write!(f, "the file was cut short: it has {file_blocks} of {blocks} blocks, by its table of checksums")
            }
            ChunkError::LogBroken => write!(f, "the intent log of the disk cannot be written"),
            other => write!(f, "{}", other.status()),
        }
    }
}
