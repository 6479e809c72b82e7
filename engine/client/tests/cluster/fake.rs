//! A master and chunkservers that keep everything in memory, do what a script tells them, and note what they saw.
//!
//! Enough of both protocols for the client's flows; they run on any ring, so the same test drives loopback and the
//! simulated world. The head of a write chain writes all copies itself.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use ring::local::{Notify, Sender, channel};
use ring::sim::World;
use ring::{BufferedReader, Ring, Stream};
use wire::*;

/// What the master does with the next request of a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MasterFault {
    Answer(Status),
    /// Cut the connection instead of answering.
    Disconnect,
    /// Answer after the request that follows.
    AnswerAfterNext,
}

/// What a chunkserver does with its next READ or WRITE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerFault {
    /// Says this instead.
    Status(Status),
    /// Hangs up after so many blocks, or acknowledged packets.
    CloseAfter(usize),
    /// Sends this block with a wrong sum.
    BadCrc(usize),
    /// Says this after so many blocks, or acknowledged packets.
    StatusAfter(usize, Status),
    /// Says nothing any more.
    Silent,
    /// Takes data and acknowledges nothing until `Fake::release`.
    Stall,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct FakeFile {
    pub(crate) name: Vec<u8>,
    pub(crate) length: u64,
    pub(crate) chunks: BTreeMap<u32, u64>,
    /// End of what appenders have reserved.
    reserved: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct FakeChunk {
    pub(crate) version: u32,
    is_locked: bool,
    /// Per server: the bytes of the copy.
    pub(crate) copies: BTreeMap<usize, Vec<u8>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<u32, FakeFile>,
    pub(crate) chunks: BTreeMap<u64, FakeChunk>,
    pub(crate) servers: Vec<SocketAddrV4>,
    pub(crate) copies: usize,
    pub(crate) master_faults: VecDeque<(u32, MasterFault)>,
    pub(crate) server_faults: BTreeMap<usize, VecDeque<ServerFault>>,
    /// What the master and the chunkservers saw, in order.
    pub(crate) log: Vec<String>,
    /// Message ids of the requests of each type.
    pub(crate) msgids: BTreeMap<u32, Vec<u32>>,
    /// The last packet of each type, as it came.
    pub(crate) packets: BTreeMap<u32, Vec<u8>>,
    /// Answers that were recorded, by the request's type: whole packets, sent with the request's message id.
    pub(crate) recorded_answers: BTreeMap<u32, Vec<u8>>,
    pub(crate) password_md5: Option<[u8; 16]>,
    /// Per chunk and server: what is on the device.
    synced: BTreeMap<(u64, usize), Vec<u8>>,
    /// Per server; none: a server of MooseFS.
    pub(crate) epochs: BTreeMap<usize, Epoch>,
    data_links: Vec<(usize, Stream)>,
    /// Chunkservers that the master no longer names.
    pub(crate) gone: Vec<usize>,
    pub(crate) forgets_sessions: bool,
    /// The address leads to the master of another file system.
    pub(crate) is_foreign: bool,
    pub(crate) is_silent: bool,
    pub(crate) held_inodes: Vec<Vec<u32>>,
    /// The master's answer for `MOORING_EXTENSIONS`; a stock master's is empty.
    pub(crate) extensions: Vec<u8>,
    links: Vec<(Sender<Vec<u8>>, Stream)>,
    last_session: u32,
}

impl State {
    fn metaid(&self) -> MetaId {
        MetaId(if self.is_foreign { 99 } else { 77 })
    }
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) state: Rc<RefCell<State>>,
    stalled: Rc<Notify>,
    pub(crate) master: SocketAddrV4,
}

pub(crate) const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 99);

pub(crate) fn server_ip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 11 + index as u8)
}

impl Fake {
    /// In a simulated world: the master and every server on a node of its own.
    pub(crate) fn in_world(world: &World, servers: usize, copies: usize) -> Fake {
        let master = world.ring(world.node(MASTER));
        let servers: Vec<_> =
            (0..servers).map(|index| (world.ring(world.node(server_ip(index))), server_ip(index))).collect();
        Fake::start(&master, MASTER, &servers, 9421, copies)
    }

    /// All on one ring, on loopback.
    pub(crate) fn on_loopback(ring: &Ring, servers: usize, copies: usize) -> Fake {
        let servers: Vec<_> = (0..servers).map(|_| (ring.clone(), Ipv4Addr::LOCALHOST)).collect();
        Fake::start(ring, Ipv4Addr::LOCALHOST, &servers, 0, copies)
    }

    fn start(ring: &Ring, ip: Ipv4Addr, servers: &[(Ring, Ipv4Addr)], port: u16, copies: usize) -> Fake {
        let state = Rc::new(RefCell::new(State { copies, ..State::default() }));
        let stalled = Rc::new(Notify::new());
        let listener = ring.listen(SocketAddr::new(ip.into(), port)).unwrap();
        let master = v4(listener.local());
        let fake = Fake { state, stalled, master };
        let (task, its_ring) = (fake.clone(), ring.clone());
        drop(ring.spawn(async move {
            while let Ok(stream) = listener.accept().await {
                let (task, ring) = (task.clone(), its_ring.clone());
                drop(its_ring.spawn(async move { task.serve_master(ring, stream).await }));
            }
        }));
        for (index, (ring, ip)) in servers.iter().enumerate() {
            let port = if port == 0 { 0 } else { 9422 };
            let listener = ring.listen(SocketAddr::new((*ip).into(), port)).unwrap();
            fake.state.borrow_mut().servers.push(v4(listener.local()));
            let (task, its_ring) = (fake.clone(), ring.clone());
            drop(ring.spawn(async move {
                while let Ok(stream) = listener.accept().await {
                    let task = task.clone();
                    drop(its_ring.spawn(async move { task.serve_data(index, stream).await }));
                }
            }));
        }
        fake
    }

    pub(crate) fn add_file(&self, inode: u32, name: &str, content: &[u8]) {
        let mut state = self.state.borrow_mut();
        let mut file = FakeFile { name: name.as_bytes().to_vec(), length: content.len() as u64, ..FakeFile::default() };
        for (index, part) in content.chunks(64 << 20).enumerate() {
            let chunk = state.new_chunk();
            for copy in state.chunks.get_mut(&chunk).unwrap().copies.values_mut() {
                *copy = part.to_vec();
            }
            file.chunks.insert(index as u32, chunk);
        }
        state.files.insert(inode, file);
    }

    pub(crate) fn fault_master(&self, kind: u32, fault: MasterFault) {
        self.state.borrow_mut().master_faults.push_back((kind, fault));
    }

    pub(crate) fn fault_server(&self, server: usize, fault: ServerFault) {
        self.state.borrow_mut().server_faults.entry(server).or_default().push_back(fault);
    }

    /// Ends every stall.
    pub(crate) fn release(&self) {
        self.stalled.notify_all();
    }

    /// To every connected client.
    pub(crate) fn notify<P: Packet>(&self, packet: &P) {
        for (link, _) in &self.state.borrow().links {
            let _ = link.try_send(packet.encode()); // it has gone
        }
    }

    /// From now on all servers have epochs and can sync.
    pub(crate) fn with_epochs(&self) {
        let mut state = self.state.borrow_mut();
        state.epochs =
            (0..state.servers.len()).map(|server| (server, Epoch::new(1000 + 4 * server as u64, false))).collect();
    }

    /// A server starts anew. `loses`: its power failed, so it has what was synced.
    pub(crate) fn restart_server(&self, server: usize, loses: bool) {
        self.cut_connections(server);
        let mut state = self.state.borrow_mut();
        if let Some(epoch) = state.epochs.get_mut(&server) {
            *epoch = Epoch::new(epoch.0 + 400, epoch.is_durable());
        }
        let State { chunks, synced, .. } = &mut *state;
        for (chunk, record) in chunks.iter_mut().filter(|_| loses) {
            if let Some(copy) = record.copies.get_mut(&server) {
                *copy = synced.get(&(*chunk, server)).cloned().unwrap_or_default();
            }
        }
    }

    /// The connections to a server break; it goes on.
    pub(crate) fn cut_connections(&self, server: usize) {
        let mut state = self.state.borrow_mut();
        for (_, stream) in state.data_links.iter().filter(|(of, _)| *of == server) {
            stream.shutdown();
        }
        state.data_links.retain(|(of, _)| *of != server);
    }

    /// The copy of a chunk moves from one server to another that did not have it.
    pub(crate) fn move_copies(&self, from: usize, to: usize) {
        let mut state = self.state.borrow_mut();
        let State { chunks, synced, .. } = &mut *state;
        for (chunk, record) in chunks {
            if let Some(copy) = record.copies.remove(&from) {
                synced.remove(&(*chunk, from));
                synced.insert((*chunk, to), copy.clone());
                record.copies.insert(to, copy);
            }
        }
    }

    /// Every copy as its device has it.
    pub(crate) fn on_devices(&self, inode: u32) -> Vec<Vec<u8>> {
        let state = self.state.borrow();
        let chunk = state.files[&inode].chunks[&0];
        let copies = state.chunks[&chunk].copies.keys().filter(|server| !state.gone.contains(server));
        copies.map(|server| state.synced.get(&(chunk, *server)).cloned().unwrap_or_default()).collect()
    }

    pub(crate) fn disconnect_clients(&self) {
        for (_, stream) in self.state.borrow_mut().links.drain(..) {
            stream.shutdown();
        }
    }

    /// What was noted and contains `word`.
    /// Payload of the last packet of a type.
    pub(crate) fn packet(&self, kind: u32) -> Vec<u8> {
        self.state.borrow().packets[&kind][HEADER_BYTES..].to_vec()
    }

    pub(crate) fn seen(&self, word: &str) -> Vec<String> {
        self.state.borrow().log.iter().filter(|line| line.contains(word)).cloned().collect()
    }

    pub(crate) fn content(&self, inode: u32) -> Vec<u8> {
        let state = self.state.borrow();
        let file = &state.files[&inode];
        let mut content = vec![0; file.length as usize];
        for (index, chunk) in &file.chunks {
            let chunk = &state.chunks[chunk];
            let (_, first) = chunk.copies.iter().find(|(server, _)| !state.gone.contains(server)).unwrap();
            for (server, copy) in &chunk.copies {
                assert!(state.gone.contains(server) || copy == first, "all copies are equal");
            }
            let at = *index as usize * (64 << 20);
            let size = first.len().min(content.len().saturating_sub(at));
            content[at..at + size].copy_from_slice(&first[..size]);
        }
        content
    }

    fn note(&self, line: String) {
        self.state.borrow_mut().log.push(line);
    }

    // --- the master

    async fn serve_master(self, ring: Ring, stream: Stream) {
        let (link, mut outgoing) = channel::<Vec<u8>>(10_000);
        let sending = stream.clone();
        drop(ring.spawn(async move {
            while let Some(packet) = outgoing.recv().await {
                if sending.send_all(packet).await.0.is_err() {
                    return;
                }
            }
            sending.shutdown();
        }));
        let mut reader = BufferedReader::new(stream.clone(), 64 << 10);
        let mut challenge = None;
        let mut delayed: Option<Vec<u8>> = None;
        // NOPs, as long as the connection lives.
        let (nop_link, nop_state) = (link.clone(), self.state.clone());
        let nop_ring = ring.clone();
        let nops = ring.spawn(async move {
            loop {
                nop_ring.sleep(Duration::from_secs(1)).await;
                if !nop_state.borrow().is_silent && nop_link.try_send(ClientNop { msgid: 0 }.encode()).is_err() {
                    return;
                }
            }
        });
        while let Ok((kind, payload)) = next_packet(&mut reader).await {
            self.state.borrow_mut().packets.insert(kind, packet_of(kind, &payload));
            if kind == CltomaFuseRegister::TYPE {
                let request = CltomaFuseRegister::decode(&payload).unwrap();
                let answer = self.register(&request, &mut challenge);
                let is_over = matches!(request, CltomaFuseRegister::CloseSession { .. });
                if matches!(
                    answer,
                    MatoclFuseRegister::Session { .. } | MatoclFuseRegister::Reconnected { status: Status::OK, .. }
                ) {
                    self.state.borrow_mut().links.push((link.clone(), stream.clone()));
                }
                let _ = link.try_send(answer.encode());
                if is_over {
                    break;
                }
                continue;
            }
            if kind == CltoanModuleInfo::TYPE {
                let metaid = self.state.borrow().metaid();
                let answer = AntoclModuleInfo {
                    module: 1,
                    version: VersionWord::OURS,
                    id: 0,
                    metaid,
                    leader_ip: Ip4(0),
                    leader_port: 0,
                };
                let _ = link.try_send(answer.encode());
                continue;
            }
            if kind == AntoanGetConfig::TYPE {
                let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(&payload).unwrap();
                assert_eq!(option.as_bytes(), EXTENSIONS_OPTION);
                let value = Name::new(&self.state.borrow().extensions).unwrap();
                let _ = link.try_send(AntoanConfigValue { msgid, value }.encode());
                continue;
            }
            if let Some(one_way) = one_way(kind, &payload) {
                if let OneWay::Held(inodes) = one_way {
                    self.state.borrow_mut().held_inodes.push(inodes);
                } else if let OneWay::Times(times) = one_way {
                    for entry in times.entries {
                        let name = |time: u32| if time == 0 { "-" } else { "set" };
                        let (atime, mtime) = (name(entry.atime), name(entry.mtime));
                        self.note(format!("times of {}: {atime} {mtime}", entry.inode));
                    }
                } else if let OneWay::TimeSync = one_way {
                    let usec = ring.wall_micros();
                    let _ = link.try_send(MatoclFuseTimeSyncWithId { msgid: 0, usec }.encode());
                }
                continue;
            }
            if self.state.borrow().is_silent {
                continue;
            }
            let msgid = u32::take(&mut Input::new(&payload)).unwrap();
            self.state.borrow_mut().msgids.entry(kind).or_default().push(msgid);
            let fault = {
                let mut state = self.state.borrow_mut();
                let place = state.master_faults.iter().position(|(at, _)| *at == kind);
                place.and_then(|place| state.master_faults.remove(place)).map(|(_, fault)| fault)
            };
            match fault {
                Some(MasterFault::Answer(status)) => {
                    self.note(format!("master {kind} -> {status:?}"));
                    let _ = link.try_send(encode_status(kind + 1, msgid, status));
                }
                Some(MasterFault::Disconnect) => {
                    self.note(format!("master {kind} -> cut"));
                    break;
                }
                Some(MasterFault::AnswerAfterNext) => delayed = Some(self.answer(kind, msgid, &payload)),
                None => {
                    let _ = link.try_send(self.answer(kind, msgid, &payload));
                    if let Some(answer) = delayed.take() {
                        let _ = link.try_send(answer);
                    }
                }
            }
        }
        nops.abort();
        stream.shutdown();
    }

    fn register(&self, request: &CltomaFuseRegister, challenge: &mut Option<[u8; 32]>) -> MatoclFuseRegister {
        let mut state = self.state.borrow_mut();
        match request {
            CltomaFuseRegister::GetRandom => {
                let random = std::array::from_fn(|at| at as u8);
                *challenge = Some(random);
                MatoclFuseRegister::Random(random)
            }
            CltomaFuseRegister::NewSession(session) => {
                state.log.push(format!("NEWSESSION {:?} {:?} {:?}", session.info, session.path, session.sessionid));
                if let Some(digest) = state.password_md5 {
                    use md5::Digest;
                    let Some(challenge) = challenge else { return MatoclFuseRegister::Status(Status::NOPASSWORD) };
                    let mut hash = md5::Md5::new();
                    hash.update(&challenge[..16]);
                    hash.update(digest);
                    hash.update(&challenge[16..]);
                    let expected: [u8; 16] = hash.finalize().into();
                    if session.passcode != Some(expected) {
                        return MatoclFuseRegister::Status(Status::BADPASSWORD);
                    }
                }
                state.last_session += 1;
                let limits = SessionLimits {
                    sesflags: 8,
                    umask: 0,
                    rootuid: 0,
                    rootgid: 0,
                    mapalluid: 999,
                    mapallgid: 999,
                    mingoal: 1,
                    maxgoal: 9,
                    mintrashtime: 0,
                    maxtrashtime: u32::MAX,
                    disables: 0,
                };
                MatoclFuseRegister::Session {
                    version: VersionWord::OURS,
                    sessionid: SessionId(state.last_session),
                    metaid: Some(state.metaid()),
                    limits,
                }
            }
            CltomaFuseRegister::Reconnect { sessionid, metaid, .. } => {
                state.log.push(format!("RECONNECT {sessionid}"));
                let is_known = !state.forgets_sessions && *metaid == Some(state.metaid());
                let status = if is_known { Status::OK } else { Status::BADSESSIONID };
                MatoclFuseRegister::Reconnected { version: VersionWord::OURS, status }
            }
            CltomaFuseRegister::CloseSession { sessionid, .. } => {
                state.log.push(format!("CLOSESESSION {sessionid}"));
                MatoclFuseRegister::Status(Status::OK)
            }
            other => panic!("the client registers with {other:?}"),
        }
    }

    /// The whole answer packet.
    fn answer(&self, kind: u32, msgid: u32, payload: &[u8]) -> Vec<u8> {
        let mut state = self.state.borrow_mut();
        state.log.push(format!("master {kind}"));
        if let Some(recorded) = state.recorded_answers.get(&kind) {
            let mut answer = recorded.clone();
            answer[8..12].copy_from_slice(&msgid.to_be_bytes());
            return answer;
        }
        match kind {
            CltomaFuseLookup::TYPE => {
                let request = CltomaFuseLookup::decode(payload).unwrap();
                let found = state.files.iter().find(|(_, file)| file.name == request.name.as_bytes());
                match found {
                    Some((inode, file)) => {
                        let (inode, attr) = (Inode(*inode), attr_of(file));
                        MatoclFuseLookup { msgid, inode, attr, lflags: 0xFF, chunk_zero: None }.encode()
                    }
                    None => encode_status(kind + 1, msgid, Status::ENOENT),
                }
            }
            CltomaFuseGetattr::TYPE => {
                let inode = CltomaFuseGetattr::decode(payload).unwrap().inode;
                match state.files.get(&inode.0) {
                    Some(file) => MatoclFuseGetattr { msgid, attr: attr_of(file) }.encode(),
                    None => encode_status(kind + 1, msgid, Status::ENOENT),
                }
            }
            CltomaFuseCreate::TYPE => {
                let request = CltomaFuseCreate::decode(payload).unwrap();
                let inode = state.files.last_key_value().map_or(100, |(inode, _)| inode + 1);
                let file = FakeFile { name: request.name.as_bytes().to_vec(), ..FakeFile::default() };
                let attr = attr_of(&file);
                state.files.insert(inode, file);
                MatoclFuseCreate { msgid, oflags: 0, inode: Inode(inode), attr }.encode()
            }
            CltomaFuseOpen::TYPE => {
                let request = CltomaFuseOpen::decode(payload).unwrap();
                match state.files.get(&request.inode.0) {
                    Some(file) => MatoclFuseOpen { msgid, oflags: 0, attr: attr_of(file) }.encode(),
                    None => encode_status(kind + 1, msgid, Status::ENOENT),
                }
            }
            CltomaFuseReadChunk::TYPE => {
                let request = CltomaFuseReadChunk::decode(payload).unwrap();
                let file = &state.files[&request.inode.0];
                let length = file.length;
                let chunk = file.chunks.get(&request.index).copied().unwrap_or(0);
                let (version, locations) = state.locate(chunk);
                MatoclFuseReadChunk {
                    msgid,
                    ticket: GivenTicket(None),
                    protocolid: 2,
                    length,
                    chunkid: ChunkId(chunk),
                    version,
                    locations,
                }
                .encode()
            }
            CltomaFuseWriteChunk::TYPE => {
                let request = CltomaFuseWriteChunk::decode(payload).unwrap();
                let existing = state.files[&request.inode.0].chunks.get(&request.index).copied();
                let chunk = existing.unwrap_or_else(|| state.new_chunk());
                if state.chunks[&chunk].is_locked {
                    return encode_status(kind + 1, msgid, Status::LOCKED);
                }
                let file = state.files.get_mut(&request.inode.0).unwrap();
                file.chunks.insert(request.index, chunk);
                let length = file.length;
                let record = state.chunks.get_mut(&chunk).unwrap();
                record.is_locked = true;
                record.version += 1;
                let (version, locations) = state.locate(chunk);
                MatoclFuseWriteChunk {
                    msgid,
                    ticket: GivenTicket(None),
                    protocolid: 2,
                    length,
                    chunkid: ChunkId(chunk),
                    version,
                    locations,
                }
                .encode()
            }
            CltomaFuseWriteChunkEnd::TYPE => {
                let request = CltomaFuseWriteChunkEnd::decode(payload).unwrap();
                state.log.push(format!("end of chunk {} length {}", request.index, request.length));
                state.chunks.get_mut(&request.chunkid.0).unwrap().is_locked = false;
                let file = state.files.get_mut(&request.inode.0).unwrap();
                file.length = file.length.max(request.length);
                encode_status(kind + 1, msgid, Status::OK)
            }
            CltomaWriteUncleanEnd::TYPE => {
                state.log.push("unclean end".into());
                drop(state);
                let request = CltomaWriteUncleanEnd::decode(payload).unwrap();
                let stock = CltomaFuseWriteChunkEnd::from(request).encode();
                self.answer(CltomaFuseWriteChunkEnd::TYPE, msgid, &stock[HEADER_BYTES..])
            }
            CltomaFuseTruncate::TYPE => {
                let request = CltomaFuseTruncate::decode(payload).unwrap();
                let file = state.files.get_mut(&request.inode.0).unwrap();
                let mut prevlength = file.length;
                if request.flags & truncate_flags::RESERVE != 0 {
                    prevlength = file.length.max(file.reserved);
                    file.reserved = prevlength + request.length;
                } else {
                    file.length = request.length;
                }
                MatoclFuseTruncate { msgid, prevlength, attr: attr_of(file) }.encode()
            }
            _ => encode_status(kind + 1, msgid, Status::ENOTSUP),
        }
    }

    // --- a chunkserver

    async fn serve_data(self, index: usize, stream: Stream) {
        let mut reader = BufferedReader::new(stream.clone(), 64 << 10);
        self.state.borrow_mut().data_links.push((index, stream.clone()));
        while let Ok((kind, payload)) = next_packet(&mut reader).await {
            self.state.borrow_mut().packets.insert(kind, packet_of(kind, &payload));
            let goes_on = match kind {
                0 => true,
                AntoanGetConfig::TYPE => {
                    let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(&payload).unwrap();
                    self.note(format!("cs{index} CONFIG {}", String::from_utf8_lossy(option.as_bytes())));
                    let epoch = self.state.borrow().epochs.get(&index).copied();
                    let value =
                        epoch.filter(|_| option.as_bytes() == EPOCH_OPTION).map_or_else(String::new, Epoch::to_value);
                    let value = Name::new(value.as_bytes()).unwrap();
                    stream.send_all(AntoanConfigValue { msgid, value }.encode()).await.0.is_ok()
                }
                CltocsSyncEpoch::TYPE => stream.send_all(self.sync(index, &payload)).await.0.is_ok(),
                AntocsGetChunkChecksum::TYPE => {
                    let AntocsGetChunkChecksum { chunkid, version } = AntocsGetChunkChecksum::decode(&payload).unwrap();
                    self.note(format!("cs{index} CHECKSUM"));
                    let copy = self.state.borrow().chunks[&chunkid.0].copies[&index].clone();
                    let checksum = crc32fast::hash(&copy);
                    stream.send_all(CstoanChunkChecksum { chunkid, version, checksum }.encode()).await.0.is_ok()
                }
                CltocsRead::TYPE => self.serve_read(index, &stream, &payload).await,
                CltocsWrite::TYPE => self.serve_write(index, &stream, &mut reader, &payload).await,
                _ => false,
            };
            if !goes_on {
                break;
            }
        }
        stream.shutdown();
    }

    fn sync(&self, index: usize, payload: &[u8]) -> Vec<u8> {
        let CltocsSyncEpoch { chunkid, version } = CltocsSyncEpoch::decode(payload).unwrap();
        self.note(format!("cs{index} SYNC"));
        let mut state = self.state.borrow_mut();
        let epoch = state.epochs[&index].0;
        let copy =
            state.chunks.get(&chunkid.0).and_then(|chunk| Some((chunk.version, chunk.copies.get(&index)?.clone())));
        let status = match copy {
            None => Status::NOCHUNK,
            Some((has, _)) if has != version.0 => Status::WRONGVERSION,
            Some((_, copy)) => {
                state.synced.insert((chunkid.0, index), copy);
                Status::OK
            }
        };
        CstoclSyncEpoch { chunkid, version, status, epoch }.encode()
    }

    fn next_fault(&self, index: usize) -> Option<ServerFault> {
        self.state.borrow_mut().server_faults.get_mut(&index)?.pop_front()
    }

    async fn serve_read(&self, index: usize, stream: &Stream, payload: &[u8]) -> bool {
        let request = CltocsRead::decode(payload).unwrap();
        assert!(request.with_proto, "our servers are new enough");
        self.note(format!("cs{index} READ {}+{}", request.offset, request.size));
        let fault = self.next_fault(index);
        let end = |status| CstoclReadStatus { chunkid: request.chunkid, status }.encode();
        if let Some(ServerFault::Status(status)) = fault {
            return stream.send_all(end(status)).await.0.is_ok();
        }
        if fault == Some(ServerFault::Silent) {
            self.stalled.notified().await;
            return false;
        }
        let content = self.state.borrow().chunks.get(&request.chunkid.0).and_then(|chunk| {
            (chunk.version == request.version.0).then(|| chunk.copies.get(&index).cloned()).flatten()
        });
        let Some(content) = content else {
            return stream.send_all(end(Status::WRONGVERSION)).await.0.is_ok();
        };
        let (mut at, until) = (request.offset as usize, (request.offset + request.size) as usize);
        let mut block = 0;
        while at < until {
            match fault {
                Some(ServerFault::CloseAfter(count)) if count == block => return false,
                Some(ServerFault::StatusAfter(count, status)) if count == block => {
                    return stream.send_all(end(status)).await.0.is_ok();
                }
                _ => {}
            }
            let size = (65_536 - at % 65_536).min(until - at);
            let mut data: Vec<u8> = (at..at + size).map(|at| content.get(at).copied().unwrap_or(0)).collect();
            let head = CstoclReadData {
                chunkid: request.chunkid,
                blocknum: (at / 65_536) as u16,
                offset: (at % 65_536) as u16,
                size: size as u32,
                crc: Crc(crc32fast::hash(&data)),
            };
            if fault == Some(ServerFault::BadCrc(block)) {
                data[0] ^= 1;
            }
            // A NOP in front of every packet: clients must cope.
            let mut packet = vec![0; 8];
            packet.extend_from_slice(&head.front());
            packet.extend_from_slice(&data);
            if stream.send_all(packet).await.0.is_err() {
                return false;
            }
            at += size;
            block += 1;
        }
        stream.send_all(end(Status::OK)).await.0.is_ok()
    }

    async fn serve_write(&self, index: usize, stream: &Stream, reader: &mut BufferedReader, payload: &[u8]) -> bool {
        let request = CltocsWrite::decode(payload).unwrap();
        let chain: Vec<usize> = {
            let state = self.state.borrow();
            let place = |server: &ChainServer| {
                state
                    .servers
                    .iter()
                    .position(|at| Ip4::from(*at.ip()) == server.ip && at.port() == server.port)
                    .unwrap()
            };
            std::iter::once(index).chain(request.chain.iter().map(place)).collect()
        };
        self.note(format!("WRITE to {chain:?}"));
        let fault = self.next_fault(index);
        let status_of = |writeid, status| CstoclWriteStatus { chunkid: request.chunkid, writeid, status }.encode();
        match fault {
            Some(ServerFault::Status(status)) => return stream.send_all(status_of(0, status)).await.0.is_ok(),
            Some(ServerFault::Silent) => {
                self.stalled.notified().await;
                return false;
            }
            _ => {}
        }
        if stream.send_all(status_of(0, Status::OK)).await.0.is_err() {
            return false;
        }
        let mut count = 0;
        while let Ok((kind, payload)) = next_packet(reader).await {
            self.state.borrow_mut().packets.insert(kind, packet_of(kind, &payload));
            match kind {
                0 => continue,
                CltocsWriteFinish::TYPE => return true,
                CltocsWriteData::TYPE => {}
                other => panic!("packet {other} in a write session"),
            }
            match fault {
                Some(ServerFault::CloseAfter(limit)) if limit == count => return false,
                Some(ServerFault::Stall) if count == 0 => self.stalled.notified().await,
                _ => {}
            }
            let data = CltocsWriteData::decode_head(payload.len() as u32, &payload[..24]).unwrap();
            if let Some(ServerFault::StatusAfter(limit, status)) = fault
                && limit == count
            {
                let _ = stream.send_all(status_of(data.writeid, status)).await;
                return false; // data that is still on its way ends the connection: Spec 20, 4.2
            }
            assert_eq!(crc32fast::hash(&payload[24..]), data.crc.0, "the sum is of exactly the data");
            assert_eq!(data.chunkid, request.chunkid);
            self.note(format!("DATA {}:{}+{}", data.blocknum, data.offset, data.size));
            {
                let mut state = self.state.borrow_mut();
                let chunk = state.chunks.get_mut(&request.chunkid.0).unwrap();
                assert_eq!(chunk.version, request.version.0);
                let at = usize::from(data.blocknum) * 65_536 + usize::from(data.offset);
                for server in &chain {
                    let copy = chunk.copies.entry(*server).or_default();
                    if copy.len() < at + data.size as usize {
                        copy.resize(at + data.size as usize, 0);
                    }
                    copy[at..at + data.size as usize].copy_from_slice(&payload[24..]);
                }
            }
            count += 1;
            if stream.send_all(status_of(data.writeid, Status::OK)).await.0.is_err() {
                return false;
            }
        }
        false
    }
}

impl State {
    fn new_chunk(&mut self) -> u64 {
        let id = self.chunks.len() as u64 + 1;
        let living: Vec<usize> = (0..self.servers.len()).filter(|server| !self.gone.contains(server)).collect();
        let copies = (0..self.copies).map(|at| (living[(id as usize + at) % living.len()], Vec::new())).collect();
        self.chunks.insert(id, FakeChunk { version: 1, is_locked: false, copies });
        id
    }

    fn locate(&self, chunk: u64) -> (Version, Vec<Location>) {
        let Some(record) = self.chunks.get(&chunk) else { return (Version(0), Vec::new()) };
        let place = |server: &usize| Location {
            ip: (*self.servers[*server].ip()).into(),
            port: self.servers[*server].port(),
            version: VersionWord::OURS,
            labels: 0,
        };
        (
            Version(record.version),
            record.copies.keys().filter(|server| !self.gone.contains(server)).map(place).collect(),
        )
    }
}

enum OneWay {
    Nop,
    Times(CltomaFuseAmtimeInodes),
    Held(Vec<u32>),
    TimeSync,
}

fn one_way(kind: u32, payload: &[u8]) -> Option<OneWay> {
    match kind {
        0 => Some(OneWay::Nop),
        CltomaFuseAmtimeInodes::TYPE => Some(OneWay::Times(CltomaFuseAmtimeInodes::decode(payload).unwrap())),
        CltomaFuseSustainedInodes::TYPE => {
            let inodes = CltomaFuseSustainedInodes::decode(payload).unwrap().inodes;
            Some(OneWay::Held(inodes.into_iter().map(|inode| inode.0).collect()))
        }
        CltomaFuseTimeSync::TYPE => Some(OneWay::TimeSync),
        _ => None,
    }
}

pub(crate) fn attr_of(file: &FakeFile) -> Attr {
    Attr {
        flags: 4,
        kind: NodeKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        atime: 1.into(),
        mtime: 1.into(),
        ctime: 1.into(),
        nlink: 1,
        extra: file.length,
        winattr: 0,
    }
}

async fn next_packet(reader: &mut BufferedReader) -> std::io::Result<(u32, Vec<u8>)> {
    let header = Header::decode(reader.fill(8).await?[..8].try_into().unwrap());
    reader.consume(8);
    let length = header.length as usize;
    let payload = reader.fill(length).await?[..length].to_vec();
    reader.consume(length);
    Ok((header.kind, payload))
}

fn packet_of(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet = Header { kind, length: payload.len() as u32 }.encode().to_vec();
    packet.extend_from_slice(payload);
    packet
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("IPv4 was asked for"),
    }
}
