//! Every bound of the protocol and of the formats, with its unit and its reason.
//!
//! The relations between them are checked when compiling. Nothing here is tunable: peers rely on these numbers.

/// Bytes in one block, the unit of checksumming. Spec 10, 6.
pub const BLOCK_BYTES: u32 = 64 << 10;
/// Blocks in one chunk. Spec 10, 6.
pub const BLOCKS_PER_CHUNK: u16 = 1024;
/// Bytes in one chunk. Spec 10, 6.
pub const CHUNK_BYTES: u32 = BLOCK_BYTES * BLOCKS_PER_CHUNK as u32;
const _: () = assert!(CHUNK_BYTES == 64 << 20);

/// CRC-32 (IEEE) of a block of zeros. Spec 10, 6.
pub const EMPTY_BLOCK_CRC: u32 = 0xD797_8EEB;

/// Bytes of a packet's header: type and length. Spec 10, 1.
pub const HEADER_BYTES: usize = 8;

/// Largest payload the master takes from a chunkserver. Spec 10, 1.2.
pub const MASTER_FROM_CHUNKSERVER_BYTES_MAX: u32 = 500_000_000;
/// Largest payload the master takes from a client or tool. Spec 10, 1.2.
pub const MASTER_FROM_CLIENT_BYTES_MAX: u32 = 50_000_000;
/// Largest payload between master and metalogger, both ways. Spec 10, 1.2.
pub const METALOGGER_BYTES_MAX: u32 = 1_500_000;
/// Largest payload a chunkserver takes from its master. Spec 10, 1.2.
pub const CHUNKSERVER_FROM_MASTER_BYTES_MAX: u32 = 10_000;
/// Largest payload on the chunkserver's data port. Spec 10, 1.2.
pub const DATA_PORT_BYTES_MAX: u32 = 100_000;
/// Largest piece of a file in one download request. Spec 42, 5.2.
pub const DOWNLOAD_PIECE_BYTES_MAX: u32 = 1_000_000;

/// Bytes of a READ_DATA payload in front of the data. Spec 20, 1.
pub const READ_DATA_HEAD_BYTES: u32 = 20;
/// Bytes of a WRITE_DATA payload in front of the data. Spec 20, 1.
pub const WRITE_DATA_HEAD_BYTES: u32 = 24;
const _: () = assert!(WRITE_DATA_HEAD_BYTES + BLOCK_BYTES <= DATA_PORT_BYTES_MAX);

/// Servers that one write chain may name behind the first; a chain longer than the largest goal makes no sense, but
/// stock masters list up to 100 copies. Spec 31, 31.7.
pub const CHAIN_SERVERS_MAX: usize = 99;

/// Bytes of a directory entry's name. Spec 10, 6.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of a symlink's target. Spec 10, 6.
pub const SYMLINK_BYTES_MAX: usize = 4096;
/// Bytes of a path as sent to the master. Spec 10, 6.
pub const PATH_BYTES_MAX: usize = 1024;
/// Bytes of the free text of a session, and of its path. Spec 30, 3.
pub const SESSION_TEXT_BYTES_MAX: usize = 1024;
/// Bytes of an extended attribute's value, and of the list of names. Spec 10, 6.
pub const XATTR_BYTES_MAX: usize = 65_536;
/// Supplementary groups in a packet. Spec 31, 31.1.
pub const GROUPS_MAX: usize = 4096;
/// Largest chunk index in a file. Spec 10, 6.
pub const CHUNK_INDEX_MAX: u32 = 0x7FFF_FFFF;
/// Bytes of the largest file: 64 MiB times 2^31. Spec 10, 6.
pub const FILE_BYTES_MAX: u64 = 1 << 57;
const _: () = assert!((CHUNK_INDEX_MAX as u64 + 1) * CHUNK_BYTES as u64 == FILE_BYTES_MAX);
/// Smallest inode number that a client keeps for objects of its own. A master never hands it out. Spec 10, 6.
pub const RESERVED_INODE_MIN: u32 = 0x7FFF_0000;
/// Copies of a chunk that a goal may ask for. Spec 10, 6.
pub const GOAL_MAX: u8 = 9;
/// Locations in one answer to a client. Spec 31, 31.7.
pub const LOCATIONS_MAX: usize = 100;
/// Longest text of one journal line, the closing NUL included. Spec 42, 4.
pub const JOURNAL_LINE_BYTES_MAX: usize = 200_000;
