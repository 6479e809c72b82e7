//! Packets of our own, numbers from 10000 up: MooseFS has none there.
//!
//! A peer that does not know them hangs up, so nobody sends one before the peer has named the extension in its answer
//! to the option `MOORING_EXTENSIONS`: names, separated by blanks. ARCHITECTURE.md lists them.

use crate::codec::{HEADER_BYTES, Header, Input, Packet, WireError, packets, records};
use crate::fs::{
    CltomaFuseCreate, CltomaFuseGetattr, CltomaFuseLink, CltomaFuseLookup, CltomaFuseMkdir, CltomaFuseMknod,
    CltomaFuseOpen, CltomaFuseReadChunk, CltomaFuseReaddir, CltomaFuseRename, CltomaFuseSetattr, CltomaFuseSymlink,
    CltomaFuseTruncate, CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd,
};
use crate::session::{AmtimeEntry, CltomaFuseAmtimeInodes};
use crate::time::Time;
use crate::types::{ChunkId, Gids, Inode, Rest, Status, Version};

/// Name of the extension "the device of this chunkserver has all of the chunk that it acknowledged".
pub const SYNC_EXTENSION: &str = "sync";
/// The option whose value, as a chunkserver's answer to GET_CONFIG, is its epoch: 16 hexadecimal digits. A server that has
/// none answers with an empty value, as a MooseFS server does for every option that is not set. Who gets an epoch may
/// send `CltocsSyncEpoch`.
pub const EPOCH_OPTION: &[u8] = b"MOORING_EPOCH";

/// A chunkserver's word for "nothing that I acknowledged since I told you this was lost".
///
/// Random and never 0. It changes whenever the server may have lost data that it acknowledged before: at its start, when
/// a disk is given up or added again, when a sync fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// In an epoch with this bit, the device has each write before the server acknowledges it (`DURABILITY = synced`).
    const DURABLE: u64 = 1;

    /// A new epoch. `random`: never twice the same.
    pub fn new(random: u64, is_durable: bool) -> Epoch {
        Epoch(random & !Epoch::DURABLE | 2 | u64::from(is_durable))
    }

    /// Everything that is acknowledged in this epoch outlives it.
    pub fn is_durable(self) -> bool {
        self.0 & Epoch::DURABLE != 0
    }

    /// The value of `EPOCH_OPTION`.
    pub fn to_value(self) -> String {
        format!("{:016x}", self.0)
    }

    /// Reads the value of `EPOCH_OPTION`. `None` if the peer has no epochs.
    pub fn from_value(value: &[u8]) -> Option<Epoch> {
        let digits = std::str::from_utf8(value).ok().filter(|digits| digits.len() == 16)?;
        u64::from_str_radix(digits, 16).ok().filter(|word| *word != 0).map(Epoch)
    }
}

/// Name of the extension "this chunkserver takes tickets", or "this master gives them out".
pub const TICKETS_EXTENSION: &str = "tickets";
/// Name of the extension "this master knows copies to which a write failed, and that are as good as before".
pub const WRITE_FAILED_EXTENSION: &str = "write-failed";
/// Name of the extension "this master knows times to the nanosecond, before 1970 and after 2106".
pub const TIMES_EXTENSION: &str = "times";

/// Name of the extension "this master hears of write sessions that failed".
pub const UNCLEAN_END_EXTENSION: &str = "unclean-end";

/// Added to the number of a client's request: times in the answer's attribute records are long (`Time`, 8 bytes), and
/// the answer's number has the same added. Nothing else about the packets changes, save for the two below, in which
/// the client's times are long.
pub const LONG_TIMES: u32 = 10_000;

/// Requests whose answer has attributes.
const ANSWERED_WITH_TIMES: [u32; 12] = [
    CltomaFuseLookup::TYPE,
    CltomaFuseGetattr::TYPE,
    CltomaFuseSetattr::TYPE,
    CltomaFuseSymlink::TYPE,
    CltomaFuseMknod::TYPE,
    CltomaFuseMkdir::TYPE,
    CltomaFuseRename::TYPE,
    CltomaFuseLink::TYPE,
    CltomaFuseReaddir::TYPE,
    CltomaFuseOpen::TYPE,
    CltomaFuseTruncate::TYPE,
    CltomaFuseCreate::TYPE,
];

/// Requests whose answer has a ticket in front of the file's length, behind the message id, if `LONG_TIMES` was added to
/// their number.
const ANSWERED_WITH_TICKETS: [u32; 2] = [CltomaFuseReadChunk::TYPE, CltomaFuseWriteChunk::TYPE];

/// Name of the extension "this master says in words why a chunk is as it is".
pub const WHY_EXTENSION: &str = "why";

/// What a `CltomaWhy` is about.
pub mod why_subjects {
    /// `id` is an inode: its chunks, from slot `first` on.
    pub const FILE: u8 = 0;
    /// `id` is a chunk.
    pub const CHUNK: u8 = 1;
    /// Chunks that the metadata do not know, from chunk `id` on.
    pub const UNKNOWN: u8 = 2;
}

packets! {
    /// Asks a chunkserver, on its data port, to put what it has of a chunk on the device: data, sums and name. NOPs
    /// may come before the answer.
    CltocsSyncChunk = 10001 { chunkid: ChunkId, version: Version }

    CstoclSyncChunk = 10002 { chunkid: ChunkId, status: Status }

    /// As `CltocsSyncChunk`, to a server that has an epoch. `version` 0 stands for the version that the server has.
    CltocsSyncEpoch = 10005 { chunkid: ChunkId, version: Version }

    /// `epoch`: the server's when the sync ended. Only if it is the same as before a write does OK speak of that write.
    CstoclSyncEpoch = 10006 { chunkid: ChunkId, version: Version, status: Status, epoch: u64 }

    /// A chunkserver to its master: writes to its copies of these chunks found no room. They hold what they held before.
    CstomaWriteFailed = 10030 { chunks: Vec<ChunkId> }

    /// WRITE_CHUNK_END after a session that failed: some of its packets may still be on their way to a server, so the
    /// master raises the version before anybody writes again.
    CltomaWriteUncleanEnd = 10020 {
        msgid: u32, chunkid: ChunkId, inode: Inode, index: u32, length: u64, chunkopflags: u8, region: Option<u64>,
    }

    MatoclWriteUncleanEnd = 10021 { msgid: u32, status: Status }

    /// SETATTR with long times.
    CltomaSetattrLong = 10410 {
        msgid: u32, inode: Inode, opened: u8, uid: u32, gids: Gids<29>, setmask: u8, mode: u16, attruid: u32,
        attrgid: u32, atime: Time, mtime: Time, winattr: u8, sugidclearmode: u8,
    }

    /// AMTIME_INODES with long times.
    CltomaAmtimeInodesLong = 10701 { entries: Vec<AmtimeEntryLong> }

    /// Asks a master, in a session, what is done about chunks and why. See `why_subjects`.
    CltomaWhy = 10003 { msgid: u32, subject: u8, id: u64, first: u32 }

    /// Lines of text. If `next` is not 0 there is more: from that slot, or that unknown chunk, on. A refusal is a status
    /// behind the message id, as for other requests of clients.
    MatoclWhy = 10004 { msgid: u32, next: u64, text: Rest }

    /// Shown to a chunkserver, on its data port, before a READ or WRITE of this chunk. Not answered: what it does not
    /// allow is refused with EACCES. `rights`: see `ticket_rights`; `expires`: Unix seconds. See `ticket`.
    CltocsTicket = 10080 { chunkid: ChunkId, rights: u8, expires: u32, proof: [u8; 16] }
}

records! {
    /// Times that a client saw by itself; 0 = no value.
    AmtimeEntryLong { inode: Inode, atime: Time, mtime: Time }
}

/// Whether `value`, the answer for `MOORING_EXTENSIONS`, names the extension.
pub fn has_extension(value: &[u8], name: &str) -> bool {
    value.split(|byte| *byte == b' ').any(|word| word == name.as_bytes())
}

/// A request's number without `LONG_TIMES`, and whether it had it.
pub fn without_long_times(kind: u32) -> (u32, bool) {
    match kind.checked_sub(LONG_TIMES) {
        Some(stock)
            if ANSWERED_WITH_TIMES.contains(&stock)
                || ANSWERED_WITH_TICKETS.contains(&stock)
                || stock == CltomaFuseAmtimeInodes::TYPE =>
        {
            (stock, true)
        }
        _ => (kind, false),
    }
}

/// Asks for long times, in a whole packet, if the answer to it has any.
pub fn ask_for_long_times(packet: &mut [u8]) {
    let Some((head, _)) = packet.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    let Header { kind, length } = Header::decode(head);
    if ANSWERED_WITH_TIMES.contains(&kind) && kind != CltomaFuseSetattr::TYPE {
        *head = Header { kind: kind + LONG_TIMES, length }.encode();
    }
}

/// Asks for a ticket, in a whole packet, if the answer to it can have one.
pub fn ask_for_ticket(packet: &mut [u8]) {
    let Some((head, _)) = packet.split_first_chunk_mut::<HEADER_BYTES>() else { return };
    let Header { kind, length } = Header::decode(head);
    if ANSWERED_WITH_TICKETS.contains(&kind) {
        *head = Header { kind: kind + LONG_TIMES, length }.encode();
    }
}

/// A whole request as a master without `UNCLEAN_END_EXTENSION` takes it.
pub fn without_unclean_end(packet: &[u8]) -> Vec<u8> {
    match packet.split_first_chunk::<HEADER_BYTES>() {
        Some((head, payload)) if Header::decode(head).kind == CltomaWriteUncleanEnd::TYPE => {
            let header = Header { kind: CltomaFuseWriteChunkEnd::TYPE, ..Header::decode(head) };
            [&header.encode()[..], payload].concat()
        }
        _ => packet.to_vec(),
    }
}

/// A whole request as a master without any extension takes it: seconds in the place of long times.
pub fn for_stock_master(packet: &[u8]) -> Vec<u8> {
    let packet = &without_unclean_end(packet)[..];
    let Some((head, payload)) = packet.split_first_chunk::<HEADER_BYTES>() else { return packet.to_vec() };
    let Header { kind, length } = Header::decode(head);
    let (stock, true) = without_long_times(kind) else { return packet.to_vec() };
    if stock == CltomaFuseSetattr::TYPE
        && let Ok(request) = CltomaSetattrLong::decode(payload)
    {
        return request.in_seconds().encode();
    }
    [&Header { kind: stock, length }.encode()[..], payload].concat()
}

/// As `decode_answer`, of a packet with this number.
pub fn decode_numbered_answer<P: Packet>(kind: u32, payload: &[u8]) -> Result<Result<P, Status>, WireError> {
    if payload.len() == 5 {
        return Ok(Err(Status(payload[4])));
    }
    let mut input = Input::with_times(payload, kind >= LONG_TIMES);
    let packet = P::take(&mut input)?;
    input.finish()?;
    Ok(Ok(packet))
}

impl CltomaSetattrLong {
    pub fn in_seconds(self) -> CltomaFuseSetattr {
        CltomaFuseSetattr {
            msgid: self.msgid,
            inode: self.inode,
            opened: self.opened,
            uid: self.uid,
            gids: self.gids.moved(),
            setmask: self.setmask,
            mode: self.mode,
            attruid: self.attruid,
            attrgid: self.attrgid,
            atime: self.atime.seconds(),
            mtime: self.mtime.seconds(),
            winattr: self.winattr,
            sugidclearmode: self.sugidclearmode,
        }
    }
}

impl From<CltomaFuseWriteChunkEnd> for CltomaWriteUncleanEnd {
    fn from(end: CltomaFuseWriteChunkEnd) -> CltomaWriteUncleanEnd {
        let CltomaFuseWriteChunkEnd { msgid, chunkid, inode, index, length, chunkopflags, region } = end;
        CltomaWriteUncleanEnd { msgid, chunkid, inode, index, length, chunkopflags, region }
    }
}

impl From<CltomaWriteUncleanEnd> for CltomaFuseWriteChunkEnd {
    fn from(end: CltomaWriteUncleanEnd) -> CltomaFuseWriteChunkEnd {
        let CltomaWriteUncleanEnd { msgid, chunkid, inode, index, length, chunkopflags, region } = end;
        CltomaFuseWriteChunkEnd { msgid, chunkid, inode, index, length, chunkopflags, region }
    }
}

impl From<CltomaFuseSetattr> for CltomaSetattrLong {
    fn from(short: CltomaFuseSetattr) -> CltomaSetattrLong {
        CltomaSetattrLong {
            msgid: short.msgid,
            inode: short.inode,
            opened: short.opened,
            uid: short.uid,
            gids: short.gids.moved(),
            setmask: short.setmask,
            mode: short.mode,
            attruid: short.attruid,
            attrgid: short.attrgid,
            atime: short.atime.into(),
            mtime: short.mtime.into(),
            winattr: short.winattr,
            sugidclearmode: short.sugidclearmode,
        }
    }
}

impl AmtimeEntryLong {
    pub fn in_seconds(&self) -> AmtimeEntry {
        AmtimeEntry { inode: self.inode, atime: self.atime.seconds(), mtime: self.mtime.seconds() }
    }
}

impl From<&AmtimeEntry> for AmtimeEntryLong {
    fn from(short: &AmtimeEntry) -> AmtimeEntryLong {
        AmtimeEntryLong { inode: short.inode, atime: short.atime.into(), mtime: short.mtime.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{Field, Seed};
    use crate::fs::MatoclFuseLookup;
    use crate::types::Attr;

    #[test]
    fn an_epoch_is_read_as_it_was_written_and_nothing_else_is_one() {
        for random in [0, 1, 2, 3, 7 << 60, u64::MAX] {
            for is_durable in [false, true] {
                let epoch = Epoch::new(random, is_durable);
                assert_ne!(epoch.0, 0);
                assert_eq!(epoch.is_durable(), is_durable);
                assert_eq!(Epoch::from_value(epoch.to_value().as_bytes()), Some(epoch));
            }
        }
        for value in [&b""[..], b"1", b"0000000000000000", b"00000000000000012", b"000000000000000g", b"\xff"] {
            assert_eq!(Epoch::from_value(value), None);
        }
    }

    fn sample(seed: &mut Seed) -> Attr {
        Attr { atime: Time::sample(seed), mtime: Time::sample(seed), ctime: Time::sample(seed), ..Attr::sample(seed) }
    }

    #[test]
    fn a_long_attribute_record_comes_back_and_is_refused_cut_short() {
        let mut seed = Seed(1);
        for _ in 0..200 {
            let attr = sample(&mut seed);
            let mut bytes = Vec::new();
            attr.put_long(&mut bytes);
            assert_eq!(bytes.len(), Attr::LONG_BYTES);
            assert_eq!(Attr::take(&mut Input::with_times(&bytes, true)), Ok(attr));
            for cut in 0..bytes.len() {
                let short = Attr::take(&mut Input::with_times(&bytes[..cut], true));
                assert_eq!(short, Err(WireError::Short { field: "attributes" }));
            }
        }
    }

    #[test]
    fn the_form_of_an_answer_goes_by_its_number() {
        let mut seed = Seed(2);
        for _ in 0..200 {
            let found = MatoclFuseLookup { attr: sample(&mut seed), ..MatoclFuseLookup::sample(&mut seed) };
            let mut short = Vec::new();
            found.put(&mut short);
            let mut long = short[..8].to_vec();
            found.attr.put_long(&mut long);
            long.extend_from_slice(&short[8 + Attr::BYTES..]);
            let answer = |kind: u32, payload: &[u8]| decode_numbered_answer::<MatoclFuseLookup>(kind, payload);
            assert_eq!(answer(407 + LONG_TIMES, &long), Ok(Ok(found.clone())));
            let [atime, mtime, ctime] = [found.attr.atime, found.attr.mtime, found.attr.ctime].map(Time::in_seconds);
            let in_seconds = MatoclFuseLookup { attr: Attr { atime, mtime, ctime, ..found.attr }, ..found };
            assert_eq!(answer(407, &short), Ok(Ok(in_seconds)));
        }
        assert_eq!(
            decode_numbered_answer::<MatoclFuseLookup>(10407, &[0, 0, 0, 1, 2]),
            Ok(Err(Status(2))),
            "a status is a status in both"
        );
    }

    #[test]
    fn a_stock_master_gets_every_request_as_it_was_before_the_extension() {
        let mut seed = Seed(3);
        for kind in ANSWERED_WITH_TIMES.into_iter().filter(|kind| *kind != CltomaFuseSetattr::TYPE) {
            let entry = crate::registry::forms_of(kind).next().expect("a declared packet");
            let payload = (entry.sample)(&mut seed);
            let stock = [&Header { kind, length: payload.len() as u32 }.encode()[..], &payload].concat();
            let mut long = stock.clone();
            ask_for_long_times(&mut long);
            assert_eq!(without_long_times(Header::decode(long.first_chunk().expect("whole")).kind), (kind, true));
            assert_eq!(for_stock_master(&long), stock, "{}", entry.name);
            assert_eq!(for_stock_master(&stock), stock, "{}", entry.name);
        }
        for _ in 0..200 {
            let long = CltomaSetattrLong::sample(&mut seed);
            let stock = long.clone().in_seconds();
            assert_eq!(for_stock_master(&long.encode()), stock.encode());
            assert_eq!(CltomaSetattrLong::from(stock.clone()).in_seconds(), stock);
        }
        for _ in 0..200 {
            let unclean = CltomaWriteUncleanEnd::sample(&mut seed);
            let stock = CltomaFuseWriteChunkEnd::from(unclean.clone());
            assert_eq!(for_stock_master(&unclean.clone().encode()), stock.clone().encode());
            assert_eq!(without_unclean_end(&unclean.clone().encode()), stock.clone().encode());
            assert_eq!(CltomaWriteUncleanEnd::from(stock), unclean);
        }
        let other = CltocsSyncChunk::sample(&mut seed).encode();
        assert_eq!(for_stock_master(&other), other);
        assert_eq!(without_long_times(10001), (10001, false));
        for cut in [0, 3, 7] {
            assert_eq!(for_stock_master(&other[..cut]), other[..cut]);
            ask_for_long_times(&mut other.clone()[..cut]);
        }
    }
}
