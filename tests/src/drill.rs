//! One of our chunkservers, a real process, killed at any moment under load, beside a model that knows every byte.
//!
//! Each chunk has a thread of its own that talks to the data port as a client does (windows of pieces, reads) and has
//! the chunk changed as a master does (versions, truncations, copies, deletions). `kill -9` comes after a random time.
//! Then the server is started again, and all that it has is compared: what was acknowledged is there; of what was not,
//! a piece is there whole or not at all, in the order sent; an order is carried out or not begun. A block that was
//! being written may be refused (a page is the largest thing that the system writes at once), never served with other
//! bytes; any other block must be good.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use wire::{
    ChunkId, CltocsRead, CltocsWrite, CltocsWriteData, CltocsWriteFinish, Crc, CstoclReadData, CstoclReadStatus,
    CstoclWriteStatus, HEADER_BYTES, Header, MatocsDelete, MatocsDuplicate, MatocsDuptrunc, MatocsSetVersion,
    MatocsTruncate, Packet, Status, Version,
};

use crate::daemon::Daemon;
use crate::master::Master;
use crate::need::mooring_binary;
use crate::tree::Random;
use crate::wait::wait_until;

const HOST: Ipv4Addr = Ipv4Addr::LOCALHOST;
const BLOCK_BYTES: usize = 65_536;
/// Blocks of a chunk that are used: enough for holes and for cuts.
const BLOCKS: usize = 6;
/// Chunks, and so threads.
const CHUNKS: u64 = 5;
/// A copy's number is its source's and this.
const COPY_OF: u64 = 1000;
const PIECES_MAX: usize = 12;
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a drill came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub kills: usize,
    /// Pieces of data and orders that were acknowledged.
    pub acknowledged: u64,
    /// Pieces that were on their way at a kill and are there.
    pub arrived: u64,
    /// Blocks that were being written at a kill and are refused since.
    pub refused: u64,
    pub blocks_compared: u64,
}

/// Kills the server `kills` times. Panics, with what is wrong, when a promise is broken. `seed` decides the load.
pub fn run(kills: usize, seed: u64) -> Outcome {
    let folder = std::env::temp_dir().join(format!("mooring-test-{}-drill{seed}", std::process::id()));
    let mut drill = Drill::new(folder.clone(), seed);
    for round in 0..kills {
        drill.round(round);
    }
    drill.start(kills);
    drill.compare(kills);
    let outcome = drill.outcome;
    drop(drill);
    std::fs::remove_dir_all(folder).ok();
    outcome
}

struct Drill {
    folder: PathBuf,
    master: Master,
    port: u16,
    server: Option<Daemon>,
    random: Random,
    chunks: Vec<Chunk>,
    outcome: Outcome,
}

/// What one chunk holds, as far as the answers tell.
struct Chunk {
    id: ChunkId,
    version: u32,
    blocks: Vec<Block>,
    /// An order that was given and not answered.
    order: Option<Order>,
    /// A copy that was made of it.
    copy: Option<(u32, Vec<Vec<u8>>)>,
    random: Random,
    acknowledged: u64,
}

struct Block {
    /// What is surely there.
    bytes: Vec<u8>,
    /// What was sent since: offset and data, oldest first.
    sent: VecDeque<(usize, Vec<u8>)>,
}

/// What a master asks of a chunk.
#[derive(Clone, Copy, Debug)]
enum Order {
    SetVersion,
    Truncate { length: usize },
    Duplicate,
    Duptrunc { length: usize },
    DeleteCopy,
}

/// The server is gone, in words. Not a failure: it was killed.
type Gone = String;

impl Drill {
    fn new(folder: PathBuf, seed: u64) -> Drill {
        std::fs::create_dir_all(folder.join("hdd")).expect("the temporary folder can be written");
        std::fs::create_dir_all(folder.join("var")).expect("the temporary folder can be written");
        let master = Master::listen(SocketAddrV4::new(HOST, 0)).expect("loopback listens");
        // A port that is free now; the server takes it at each start.
        let port = TcpListener::bind((HOST, 0)).and_then(|free| free.local_addr()).expect("loopback listens").port();
        let mut random = Random::new(seed);
        let chunks = (1..=CHUNKS).map(|id| Chunk::new(ChunkId(id), Random::new(random.next()))).collect();
        Drill { folder, master, port, server: None, random, chunks, outcome: Outcome::default() }
    }

    /// Starts, compares, loads, kills.
    fn round(&mut self, round: usize) {
        self.start(round);
        self.compare(round);
        let (master, port) = (&self.master, self.port);
        let lifetime = Duration::from_micros(500 + self.random.next() % 150_000);
        let server = self.server.as_mut().expect("it was started");
        std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.chunks.iter_mut().map(|chunk| scope.spawn(move || chunk.work(master, port))).collect();
            std::thread::sleep(lifetime);
            assert!(server.ended().is_none(), "round {round}: the server ended by itself: {}", server.log_text());
            assert!(
                threads.iter().all(|thread| !thread.is_finished()),
                "round {round}: the load goes on until the kill"
            );
            server.kill();
        });
        self.outcome.kills += 1;
        wait_until("the master to see the end of the connection", PATIENCE, || !self.master.has(HOST));
    }

    /// The ways of keeping files take turns, since each has its own way of losing them.
    fn start(&mut self, round: usize) {
        let lines = match round % 4 {
            0 => "HDD_IO_MODE = buffered",
            1 => "HDD_IO_MODE = direct",
            2 => "HDD_IO_MODE = direct\nDURABILITY = synced",
            _ => "HDD_IO_MODE = buffered\nRING_DRIVER = epoll",
        };
        let folder = self.folder.display();
        let text = format!(
            "WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {folder}/var\nHDD_CONF_FILENAME = {folder}/mfshdd.cfg\nMASTER_HOST = {HOST}\n\
             MASTER_PORT = {}\nMASTER_RECONNECTION_DELAY = 1\nCSSERV_LISTEN_HOST = {HOST}\nCSSERV_LISTEN_PORT = {}\n\
             HDD_LEAVE_SPACE_DEFAULT = 100MiB\nHDD_TEST_SPEED = 0\n{lines}\n",
            self.master.port(),
            self.port,
        );
        let write = |name: &str, text: &str| {
            std::fs::write(self.folder.join(name), text).expect("the temporary folder can be written");
        };
        write("mfschunkserver.cfg", &text);
        write("mfshdd.cfg", &format!("{folder}/hdd\n"));
        let mut command = Command::new(mooring_binary().expect("the test has asked for Need::Mooring"));
        command.arg("chunkserver").arg("-c").arg(self.folder.join("mfschunkserver.cfg")).arg("-f");
        let mut server = Daemon::start("chunkserver", command, &self.folder.join("log"));
        wait_until("the chunkserver to register", PATIENCE, || {
            assert!(server.ended().is_none(), "round {round}: the server does not start: {}", server.log_text());
            self.master.has(HOST)
        });
        self.server = Some(server);
    }

    /// Compares all that the server has with the model, and takes over what was on its way and arrived.
    fn compare(&mut self, round: usize) {
        let mut listed = self.master.listed(HOST).expect("it has registered");
        let mut client = Client::connect(self.port).expect("the server listens");
        for number in 0..self.chunks.len() {
            let name = format!("kill {round}, chunk {}", self.chunks[number].id);
            self.compare_chunk(number, &mut listed, &mut client, &name);
            self.compare_copy(number, &mut listed, &mut client, &name);
            self.outcome.acknowledged += std::mem::take(&mut self.chunks[number].acknowledged);
        }
        assert!(listed.is_empty(), "kill {round}: chunks that nobody made: {listed:?}");
    }

    fn compare_chunk(
        &mut self,
        number: usize,
        listed: &mut BTreeMap<ChunkId, Version>,
        client: &mut Client,
        name: &str,
    ) {
        let chunk = &mut self.chunks[number];
        let found = listed.remove(&chunk.id);
        if chunk.version == 0 {
            assert!(found.is_none_or(|version| version.0 == 1), "{name}: created with {found:?}");
            if found.is_none() {
                self.master.create(HOST, &[chunk.id], Version(1)).unwrap_or_else(|why| panic!("{name}: {why}"));
            }
            chunk.version = 1;
        }
        let found = found.map_or(1, |version| version.0);
        if found != chunk.version {
            assert_eq!(found, chunk.version + 1, "{name} has another version than was ever ordered");
            match chunk.order {
                Some(Order::SetVersion) => chunk.version = found,
                Some(Order::Truncate { length }) => {
                    chunk.version = found;
                    chunk.cut(length);
                }
                order => panic!("{name} has version {found}, and the order was {order:?}"),
            }
        }
        let mut is_whole = true;
        for block in 0..BLOCKS {
            let (data, status) =
                client.read(chunk.id, chunk.version, block * BLOCK_BYTES, BLOCK_BYTES).expect("the server answers");
            let model = &mut chunk.blocks[block];
            if status == Status::CRC && model.sent.iter().any(|(_, data)| data.len() > 1) {
                self.outcome.refused += 1;
                is_whole = false;
                continue;
            }
            assert_eq!(status, Status::OK, "{name} block {block}, {} pieces were on their way", model.sent.len());
            let arrived = model.settle(&data);
            let arrived = arrived.unwrap_or_else(|| panic!("{name} block {block} holds what it never should"));
            self.outcome.arrived += arrived as u64;
            self.outcome.blocks_compared += 1;
        }
        let damaged = self.master.damaged().contains(&chunk.id);
        let log = || self.server.as_ref().map(|server| server.log_text()).unwrap_or_default();
        assert!(!damaged || !is_whole, "{name} is good and was reported as damaged:\n{}", log());
        if !is_whole {
            // As a master does that has a better copy.
            self.master.delete(HOST, &[chunk.id]).unwrap_or_else(|why| panic!("{name}: {why}"));
            self.master.forget_damaged(chunk.id);
            self.master.create(HOST, &[chunk.id], Version(1)).unwrap_or_else(|why| panic!("{name}: {why}"));
            chunk.version = 1;
            chunk.blocks = empty_blocks();
        }
    }

    /// A copy is made whole or not at all, and deleted or not.
    fn compare_copy(
        &mut self,
        number: usize,
        listed: &mut BTreeMap<ChunkId, Version>,
        client: &mut Client,
        name: &str,
    ) {
        let chunk = &mut self.chunks[number];
        let id = chunk.copy_id();
        let found = listed.remove(&id);
        let order = chunk.order.take();
        let expected = match (order, &chunk.copy) {
            (Some(Order::Duplicate), None) => found.map(|_| chunk.contents(BLOCKS * BLOCK_BYTES)),
            (Some(Order::Duptrunc { length }), None) => found.map(|_| chunk.contents(length)),
            (Some(Order::DeleteCopy), Some((_, contents))) => found.map(|_| contents.clone()),
            (_, copy) => copy.as_ref().map(|(_, contents)| contents.clone()),
        };
        assert_eq!(found.is_some(), expected.is_some(), "{name}: its copy, when the order was {order:?}");
        chunk.copy = expected.map(|contents| (1, contents));
        let Some((version, contents)) = &chunk.copy else { return };
        for (block, expected) in contents.iter().enumerate() {
            let (data, status) =
                client.read(id, *version, block * BLOCK_BYTES, BLOCK_BYTES).expect("the server answers");
            assert_eq!(status, Status::OK, "{name}: block {block} of its copy, when the order was {order:?}");
            assert!(data == *expected, "{name}: block {block} of its copy, when the order was {order:?}");
            self.outcome.blocks_compared += 1;
        }
    }
}

fn empty_blocks() -> Vec<Block> {
    (0..BLOCKS).map(|_| Block { bytes: vec![0; BLOCK_BYTES], sent: VecDeque::new() }).collect()
}

impl Block {
    fn acknowledge(&mut self) {
        let (offset, data) = self.sent.pop_front().expect("a piece was sent before it is acknowledged");
        self.bytes[offset..offset + data.len()].copy_from_slice(&data);
    }

    /// How many of the sent pieces make the content `found`; takes that over. None if it can not have come about.
    fn settle(&mut self, found: &[u8]) -> Option<usize> {
        let mut bytes = self.bytes.clone();
        let sent = std::mem::take(&mut self.sent);
        let mut arrived = (bytes == found).then_some(0);
        for (count, (offset, data)) in sent.iter().enumerate() {
            bytes[*offset..offset + data.len()].copy_from_slice(data);
            if bytes == found {
                arrived = Some(count + 1);
            }
        }
        self.bytes = found.to_vec();
        arrived
    }
}

impl Chunk {
    fn new(id: ChunkId, random: Random) -> Chunk {
        Chunk { id, version: 0, blocks: empty_blocks(), order: None, copy: None, random, acknowledged: 0 }
    }

    fn copy_id(&self) -> ChunkId {
        ChunkId(self.id.0 + COPY_OF)
    }

    /// The content of all blocks, cut to `length`.
    fn contents(&self, length: usize) -> Vec<Vec<u8>> {
        let whole = self.blocks.iter().map(|block| block.bytes.clone());
        whole
            .enumerate()
            .map(|(block, mut bytes)| {
                bytes[length.saturating_sub(block * BLOCK_BYTES).min(BLOCK_BYTES)..].fill(0);
                bytes
            })
            .collect()
    }

    fn cut(&mut self, length: usize) {
        let contents = self.contents(length);
        for (block, bytes) in self.blocks.iter_mut().zip(contents) {
            block.bytes = bytes;
        }
    }

    /// Works until the server is gone.
    fn work(&mut self, master: &Master, port: u16) -> Gone {
        let mut client = match Client::connect(port) {
            Ok(client) => client,
            Err(gone) => return gone,
        };
        loop {
            let done = match self.random.below(10) {
                0 => self.give(master, Order::SetVersion),
                1 => {
                    let length = self.random.below(BLOCKS * BLOCK_BYTES + 1);
                    self.give(master, Order::Truncate { length })
                }
                2 if self.copy.is_some() => self.give(master, Order::DeleteCopy),
                2 if self.random.below(2) == 0 => self.give(master, Order::Duplicate),
                2 => {
                    let length = self.random.below(BLOCKS * BLOCK_BYTES + 1);
                    self.give(master, Order::Duptrunc { length })
                }
                3 => self.look(&mut client),
                _ => self.session(&mut client),
            };
            if let Err(gone) = done {
                return gone;
            }
        }
    }

    /// Has an order carried out.
    fn give(&mut self, master: &Master, order: Order) -> Result<(), Gone> {
        let (chunkid, oldversion, newversion) = (self.id, Version(self.version), Version(self.version + 1));
        let (newchunkid, copy_version) = (self.copy_id(), Version(1));
        self.order = Some(order);
        let ordered = match order {
            Order::SetVersion => master.order(HOST, chunkid, &MatocsSetVersion { chunkid, newversion, oldversion }),
            Order::Truncate { length } => {
                master.order(HOST, chunkid, &MatocsTruncate { chunkid, length: length as u32, newversion, oldversion })
            }
            Order::Duplicate => {
                let order = MatocsDuplicate { newchunkid, newversion: copy_version, oldchunkid: chunkid, oldversion };
                master.order(HOST, newchunkid, &order)
            }
            Order::Duptrunc { length } => {
                let (newversion, oldchunkid, length) = (copy_version, chunkid, length as u32);
                let order = MatocsDuptrunc { newchunkid, newversion, oldchunkid, oldversion, length };
                master.order(HOST, newchunkid, &order)
            }
            Order::DeleteCopy => {
                master.order(HOST, newchunkid, &MatocsDelete { chunkid: newchunkid, version: copy_version })
            }
        };
        let status = ordered?.answer()?;
        assert_eq!(status, Status::OK, "chunk {chunkid}: {order:?}");
        self.order = None;
        self.acknowledged += 1;
        match order {
            Order::SetVersion => self.version += 1,
            Order::Truncate { length } => {
                self.version += 1;
                self.cut(length);
            }
            Order::Duplicate => self.copy = Some((1, self.contents(BLOCKS * BLOCK_BYTES))),
            Order::Duptrunc { length } => self.copy = Some((1, self.contents(length))),
            Order::DeleteCopy => self.copy = None,
        }
        Ok(())
    }

    /// Reads a part and compares it.
    fn look(&mut self, client: &mut Client) -> Result<(), Gone> {
        let offset = self.random.below(BLOCKS * BLOCK_BYTES - 1);
        let size = 1 + self.random.below(BLOCKS * BLOCK_BYTES - offset);
        let (data, status) = client.read(self.id, self.version, offset, size)?;
        assert_eq!(status, Status::OK, "chunk {}: a read under load", self.id);
        let expected: Vec<u8> = self.blocks.iter().flat_map(|block| &block.bytes).copied().collect();
        assert!(data == expected[offset..offset + size], "chunk {}: a read under load gave other bytes", self.id);
        Ok(())
    }

    /// One write session, all its pieces on their way before the first is acknowledged.
    fn session(&mut self, client: &mut Client) -> Result<(), Gone> {
        let (chunkid, version) = (self.id, Version(self.version));
        client.send(&CltocsWrite { with_proto: true, chunkid, version, chain: Vec::new() }.encode())?;
        let mut sent = Vec::new();
        for writeid in 1..=1 + self.random.below(PIECES_MAX) {
            let block = self.random.below(BLOCKS);
            let (offset, length) = match self.random.below(4) {
                0 => (0, BLOCK_BYTES),
                1 => (self.random.below(16) * 4096, 4096),
                _ => {
                    let offset = self.random.below(BLOCK_BYTES);
                    (offset, 1 + self.random.below((BLOCK_BYTES - offset).min(20_000)))
                }
            };
            let data = self.random.bytes(length);
            let crc = Crc(crc32fast::hash(&data));
            let (blocknum, size) = (block as u16, length as u32);
            let head = CltocsWriteData { chunkid, writeid: writeid as u32, blocknum, offset: offset as u16, size, crc };
            let packet = [&head.front()[..], &data].concat();
            self.blocks[block].sent.push_back((offset, data));
            sent.push(block);
            client.send(&packet)?;
        }
        for writeid in 0..=sent.len() {
            let status: CstoclWriteStatus = client.receive()?;
            assert_eq!((status.writeid as usize, status.status), (writeid, Status::OK), "chunk {chunkid}: a write");
            if writeid > 0 {
                self.blocks[sent[writeid - 1]].acknowledge();
                self.acknowledged += 1;
            }
        }
        client.send(&CltocsWriteFinish { chunkid, version }.encode())
    }
}

/// A connection to the data port.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(port: u16) -> Result<Client, Gone> {
        let stream = TcpStream::connect((HOST, port)).map_err(|error| error.to_string())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(Client { stream })
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.stream.write_all(bytes).map_err(|error| error.to_string())
    }

    /// The next packet that is no NOP.
    fn packet(&mut self) -> Result<(Header, Vec<u8>), Gone> {
        let start = Instant::now();
        loop {
            let mut header = [0; HEADER_BYTES];
            self.stream.read_exact(&mut header).map_err(|error| error.to_string())?;
            let header = Header::decode(&header);
            assert!(header.length <= 100_000, "a packet of {} bytes", header.length);
            let mut payload = vec![0; header.length as usize];
            self.stream.read_exact(&mut payload).map_err(|error| error.to_string())?;
            if header.kind != 0 {
                return Ok((header, payload));
            }
            assert!(start.elapsed() < PATIENCE, "nothing but NOPs for {} s", PATIENCE.as_secs());
        }
    }

    fn receive<P: Packet>(&mut self) -> Result<P, Gone> {
        let (header, payload) = self.packet()?;
        assert_eq!(header.kind, P::TYPE, "a packet of another type than {}", P::NAME);
        Ok(P::decode(&payload).expect("a good packet"))
    }

    /// A range, every head and sum checked, and the status that ended it.
    fn read(&mut self, chunkid: ChunkId, version: u32, offset: usize, size: usize) -> Result<(Vec<u8>, Status), Gone> {
        let (version, first, size) = (Version(version), offset as u32, size as u32);
        self.send(&CltocsRead { with_proto: true, chunkid, version, offset: first, size }.encode())?;
        let mut data = Vec::with_capacity(size as usize);
        loop {
            let (header, payload) = self.packet()?;
            if header.kind == CstoclReadStatus::TYPE {
                let status = CstoclReadStatus::decode(&payload).expect("a good packet").status;
                assert!(!status.is_ok() || data.len() == size as usize, "chunk {chunkid}: a read ended early");
                return Ok((data, status));
            }
            assert_eq!(header.kind, CstoclReadData::TYPE, "data or a status");
            let head = CstoclReadData::decode_head(header.length, &payload[..20]).expect("a good packet");
            let position = u32::from(head.blocknum) * BLOCK_BYTES as u32 + u32::from(head.offset);
            assert_eq!(position as usize, offset + data.len(), "chunk {chunkid}: the data come in order");
            assert_eq!(head.crc.0, crc32fast::hash(&payload[20..]), "chunk {chunkid}: the sum is that of the data");
            data.extend_from_slice(&payload[20..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_sent_in_order_can_be_there() {
        let new =
            || Block { bytes: vec![0; 8], sent: VecDeque::from([(0, vec![1; 4]), (2, vec![2; 4]), (0, vec![3; 1])]) };
        let check = |found: [u8; 8]| new().settle(&found);
        assert_eq!(check([0; 8]), Some(0));
        assert_eq!(check([1, 1, 1, 1, 0, 0, 0, 0]), Some(1));
        assert_eq!(check([1, 1, 2, 2, 2, 2, 0, 0]), Some(2));
        assert_eq!(check([3, 1, 2, 2, 2, 2, 0, 0]), Some(3));
        assert_eq!(check([0, 0, 2, 2, 2, 2, 0, 0]), None, "the second without the first");
        assert_eq!(check([1, 1, 0, 0, 0, 0, 0, 0]), None, "half of the first");
    }
}
