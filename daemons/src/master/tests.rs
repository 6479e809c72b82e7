//! The master in a simulated world: pretended clients and chunkservers speak to its ports, time and failures come from
//! a seed. Packets taken from MooseFS's own traffic (tests/golden) are used where they fit.

mod monitor;
mod recovery;
mod strangers;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use ring::local::Mutex;
use ring::sim::{self, NodeId, World};
use ring::{BufferedReader, JoinHandle, Ring, Stream};
use wire::*;

use super::exports::auth_passcode;
use super::{MasterError, Settings, run};
use crate::signals::Wish;

const MASTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../tests/golden/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let text = text.trim();
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
}

/// A world with a master.
struct Scene {
    world: World,
    master: NodeId,
    settings: Settings,
    wishes: RefCell<Option<ring::channel::Sender<Wish>>>,
    running: RefCell<Option<JoinHandle<Result<(), MasterError>>>>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        Scene::with(seed, "* / rw,alldirs,admin,maproot=0:0\n* . rw\n", |_| {})
    }

    fn with(seed: u64, exports: &'static str, change: impl FnOnce(&mut Settings)) -> Scene {
        let world = World::new(seed, sim::Settings::default());
        let master = world.node(MASTER);
        let at = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        let mut settings = Settings {
            data_path: PathBuf::from("/data"),
            exports_path: PathBuf::from("/data/exports"),
            metalogger_address: at(9419),
            chunkserver_address: at(9420),
            client_address: at(9421),
            ..Settings::default()
        };
        settings.chunks.delay_init_seconds = 3;
        settings.chunks.delay_disconnect_seconds = 2;
        settings.chunks.stable_after_seconds = 0;
        change(&mut settings);
        world
            .run(master, |ring| async move {
                ring.mkdir(Path::new("/data"), 0o755).await.unwrap();
                ring.sync_dir(Path::new("/")).await.unwrap();
                ring.write_file_durably(Path::new("/data/exports"), 0o644, exports.into()).await.unwrap();
                ring.write_file_durably(Path::new("/data/metadata.mfs"), 0o644, b"MFSM NEW".to_vec()).await.unwrap();
            })
            .unwrap();
        let scene = Scene { world, master, settings, wishes: RefCell::default(), running: RefCell::default() };
        scene.start();
        scene
    }

    fn start(&self) {
        let (sender, wishes) = ring::channel::channel();
        let settings = self.settings.clone();
        let ready = Rc::new(Cell::new(false));
        let is_ready = ready.clone();
        let handle = self.world.spawn(self.master, |ring| run(ring, settings, wishes, move || is_ready.set(true)));
        *self.wishes.borrow_mut() = Some(sender);
        assert!(self.world.run_until(|| ready.get() || handle.is_finished()), "seed {}", self.world.seed());
        assert!(ready.get(), "the master starts (seed {})", self.world.seed());
        *self.running.borrow_mut() = Some(handle);
    }

    /// Starts a master that must refuse. Returns its reason.
    fn refused_start(&self) -> String {
        let settings = self.settings.clone();
        let (_sender, wishes) = ring::channel::channel();
        let refused = self.world.run(self.master, |ring| run(ring, settings, wishes, || ())).unwrap();
        refused.expect_err("the start is refused").to_string()
    }

    fn crash_and_restart(&self) {
        self.world.crash(self.master);
        self.world.run_for(Duration::from_millis(100));
        self.world.restart(self.master);
        self.start();
    }

    fn stop(&self) {
        let sender = self.wishes.borrow_mut().take().unwrap();
        sender.send(Wish::Stop).map_err(drop).unwrap();
        let handle = self.running.borrow_mut().take().unwrap();
        assert!(self.world.run_until(|| handle.is_finished()), "the master stops");
    }

    /// Runs a script on a node of its own.
    fn play<T: 'static, Fut: Future<Output = T> + 'static>(&self, last: u8, script: impl FnOnce(Ring) -> Fut) -> T {
        let node = self.world.node(Ipv4Addr::new(10, 0, 0, last));
        self.world.run(node, script).expect("the script ends")
    }

    /// A chunkserver that does all that it is told, at once.
    fn chunkserver(&self, last: u8) -> Rc<Held> {
        let held = Rc::new(Held::default());
        let node = self.world.node(Ipv4Addr::new(10, 0, 0, last));
        let mine = held.clone();
        drop(self.world.spawn(node, |ring| serve_chunks(ring, last, mine)));
        let registered = held.clone();
        assert!(self.world.run_until(|| registered.registered.get()), "seed {}", self.world.seed());
        held
    }
}

/// What a pretended chunkserver has.
#[derive(Default)]
struct Held {
    chunks: RefCell<BTreeMap<ChunkId, Version>>,
    registered: Cell<bool>,
    /// Answers are given only while this is false.
    mute: Cell<bool>,
}

/// One side of a connection with the master.
pub(crate) struct Peer {
    ring: Ring,
    stream: Stream,
    reader: BufferedReader,
    /// One packet after the other, though keep-alive has a task of its own.
    sending: Rc<Mutex<()>>,
}

impl Peer {
    async fn connect(ring: &Ring, port: u16) -> Peer {
        let to = SocketAddr::new(IpAddr::V4(MASTER), port);
        let stream = loop {
            match ring.connect(to, None).await {
                Ok(stream) => break stream,
                Err(_) => ring.sleep(Duration::from_millis(50)).await,
            }
        };
        Peer {
            ring: ring.clone(),
            reader: BufferedReader::new(stream.clone(), 1 << 16),
            stream,
            sending: Rc::new(Mutex::new(())),
        }
    }

    async fn send(&self, packet: Vec<u8>) {
        let _turn = self.sending.lock().await;
        let _ = self.stream.send_all(packet).await;
    }

    /// Keeps the connection alive until it ends.
    fn send_nops(&self, nop: Vec<u8>) {
        let (ring, stream, sending) = (self.ring.clone(), self.stream.clone(), self.sending.clone());
        drop(self.ring.spawn(async move {
            loop {
                let turn = sending.lock().await;
                if stream.send_all(nop.clone()).await.0.is_err() {
                    return;
                }
                drop(turn);
                ring.sleep(Duration::from_secs(1)).await;
            }
        }));
    }

    /// The next packet; None when the master hung up.
    async fn take(&mut self) -> Option<(u32, Vec<u8>)> {
        let head = self.reader.fill(HEADER_BYTES).await.ok()?[..HEADER_BYTES].try_into().unwrap();
        let header = Header::decode(head);
        let bytes = HEADER_BYTES + header.length as usize;
        let payload = self.reader.fill(bytes).await.ok()?[HEADER_BYTES..bytes].to_vec();
        self.reader.consume(bytes);
        Some((header.kind, payload))
    }

    /// The next packet that is no NOP.
    async fn next(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            match self.take().await? {
                (0, _) => {}
                other => return Some(other),
            }
        }
    }

    /// Asks and takes the answer of the next number.
    async fn ask<P: Packet>(&mut self, packet: &P) -> Option<Vec<u8>> {
        self.send(packet.encode()).await;
        loop {
            let (kind, payload) = self.next().await?;
            if kind == P::TYPE + 1 {
                return Some(payload);
            }
        }
    }

    /// As `ask`, decoded; or the status in its place, DISCONNECTED if the master is gone.
    async fn get<P: Packet, A: Packet>(&mut self, packet: &P) -> Result<A, Status> {
        let payload = self.ask(packet).await.ok_or(Status::DISCONNECTED)?;
        decode_answer(&payload).expect("the answer is well-formed")
    }

    /// Asks for long times, and takes the answer in that form.
    async fn get_long<A: Packet>(&mut self, mut packet: Vec<u8>) -> Result<A, Status> {
        ask_for_long_times(&mut packet);
        self.send(packet).await;
        loop {
            let (kind, payload) = self.next().await.ok_or(Status::DISCONNECTED)?;
            if kind == A::TYPE + LONG_TIMES {
                return decode_numbered_answer(kind, &payload).expect("the answer is well-formed");
            }
        }
    }

    pub(crate) async fn mount(ring: &Ring) -> Peer {
        let mut peer = Peer::connect(ring, 9421).await;
        peer.send(golden("c3-register-new-req")).await;
        let (kind, payload) = peer.next().await.expect("an answer");
        assert_eq!((kind, payload.len()), (401, 49));
        peer.send_nops(golden("c3-nop-req"));
        peer
    }

    pub(crate) async fn create(&mut self, name: &str) -> Result<Inode, Status> {
        let name = Name::new(name.as_bytes()).unwrap();
        let gids = Gids::list(&[0]);
        let packet = CltomaFuseCreate { msgid: 5, parent: Inode(1), name, mode: 0o644, umask: 0, uid: 0, gids };
        self.get::<_, MatoclFuseCreate>(&packet).await.map(|created| created.inode)
    }

    async fn lookup(&mut self, name: &str) -> Result<MatoclFuseLookup, Status> {
        let name = Name::new(name.as_bytes()).unwrap();
        let packet = CltomaFuseLookup { msgid: 6, parent: Inode(1), name, uid: 0, gids: Gids::list(&[0]) };
        self.get(&packet).await
    }

    async fn write_chunk(&mut self, inode: Inode) -> Result<MatoclFuseWriteChunk, Status> {
        self.get(&CltomaFuseWriteChunk { msgid: 7, inode, index: 0, chunkopflags: Some(0) }).await
    }

    async fn write_end(&mut self, inode: Inode, chunkid: ChunkId, length: u64) -> Status {
        let (msgid, index, chunkopflags, region) = (8, 0, 0, None);
        let packet = CltomaFuseWriteChunkEnd { msgid, chunkid, inode, index, length, chunkopflags, region };
        self.get::<_, MatoclFuseWriteChunkEnd>(&packet).await.map_or_else(|status| status, |answer| answer.status)
    }

    async fn read_chunk(&mut self, inode: Inode) -> Result<MatoclFuseReadChunk, Status> {
        self.get(&CltomaFuseReadChunk { msgid: 9, inode, index: 0, chunkopflags: Some(0) }).await
    }
}

/// BEGIN of a server at 10.0.0.`last`, made from a golden packet.
fn begin(last: u8) -> Vec<u8> {
    let CstomaRegister::Begin { mut begin, .. } = CstomaRegister::decode(&golden("cs3-begin")[8..]).unwrap() else {
        panic!("the golden packet is a BEGIN");
    };
    begin.ip = Ip4::from(Ipv4Addr::new(10, 0, 0, last));
    begin.csid = 0;
    CstomaRegister::Begin { passcode: None, begin }.encode()
}

async fn serve_chunks(ring: Ring, last: u8, held: Rc<Held>) {
    loop {
        let mut peer = Peer::connect(&ring, 9420).await;
        peer.send(begin(last)).await;
        let Some((104, ack)) = peer.take().await else {
            ring.sleep(Duration::from_secs(1)).await;
            continue;
        };
        assert!(matches!(MatocsMasterAck::decode(&ack), Ok(MatocsMasterAck::Begin { .. })));
        peer.send(CstomaLabels { labelmask: 0 }.encode()).await;
        let report = |(&chunkid, version): (&ChunkId, &Version)| ChunkReport { chunkid, version: version.0 };
        let list = held.chunks.borrow().iter().map(report).collect();
        peer.send(CstomaRegister::Chunks(list).encode()).await;
        assert_eq!(peer.next().await, Some((104, vec![0])), "each part is acknowledged");
        peer.send(CstomaRegister::End.encode()).await;
        let space = ServerSpace { used: 0, total: 1 << 40, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        peer.send(CstomaSpace { space }.encode()).await;
        peer.send(CstomaCurrentLoad { load: 0, hlstatus: Some(1), transferring: None }.encode()).await;
        held.registered.set(true);
        peer.send_nops(AntoanNop {}.encode());
        while let Some((kind, payload)) = peer.next().await {
            while held.mute.get() {
                peer.ring.sleep(Duration::from_millis(100)).await;
            }
            let answer = execute(&held, kind, &payload);
            peer.send(answer).await;
        }
        held.registered.set(false);
    }
}

fn execute(held: &Held, kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut chunks = held.chunks.borrow_mut();
    let status = Status::OK;
    match kind {
        MatocsCreate::TYPE => {
            let MatocsCreate { chunkid, version } = MatocsCreate::decode(payload).unwrap();
            chunks.insert(chunkid, version);
            CstomaCreate { chunkid, status }.encode()
        }
        MatocsDelete::TYPE => {
            let MatocsDelete { chunkid, .. } = MatocsDelete::decode(payload).unwrap();
            chunks.remove(&chunkid);
            CstomaDelete { chunkid, status }.encode()
        }
        MatocsSetVersion::TYPE => {
            let MatocsSetVersion { chunkid, newversion, oldversion } = MatocsSetVersion::decode(payload).unwrap();
            assert_eq!(chunks.insert(chunkid, newversion), Some(oldversion));
            CstomaSetVersion { chunkid, status }.encode()
        }
        MatocsTruncate::TYPE => {
            let packet = MatocsTruncate::decode(payload).unwrap();
            chunks.insert(packet.chunkid, packet.newversion);
            CstomaTruncate { chunkid: packet.chunkid, status }.encode()
        }
        MatocsDuplicate::TYPE => {
            let packet = MatocsDuplicate::decode(payload).unwrap();
            chunks.insert(packet.newchunkid, packet.newversion);
            CstomaDuplicate { chunkid: packet.newchunkid, status }.encode()
        }
        MatocsReplicate::TYPE => {
            let MatocsReplicate { chunkid, version, .. } = MatocsReplicate::decode(payload).unwrap();
            chunks.insert(chunkid, version);
            CstomaReplicate { chunkid, version, status }.encode()
        }
        other => panic!("a chunkserver of 3.0.117 would hang up on type {other}"),
    }
}

#[test]
fn times_are_long_for_a_client_that_asks_so_and_seconds_for_all_others() {
    let scene = Scene::new(1);
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let option = Name::new(EXTENSIONS_OPTION).unwrap();
        let value: AntoanConfigValue =
            AntoanConfigValue::decode(&client.ask(&AntoanGetConfig { msgid: 1, option }).await.unwrap()).unwrap();
        assert!(has_extension(value.value.as_bytes(), TIMES_EXTENSION));
        let inode = client.create("file").await.unwrap();
        let (atime, mtime) = (Time::at(-7, 5), Time::at(1 << 32, 6));
        let (uid, gids, opened) = (0, Gids::list(&[0]), 0);
        let setmask = set_mask::ATIME | set_mask::MTIME;
        let set = CltomaSetattrLong {
            msgid: 9,
            inode,
            opened,
            uid,
            gids,
            setmask,
            mode: 0,
            attruid: 0,
            attrgid: 0,
            atime,
            mtime,
            winattr: 0,
            sugidclearmode: 0,
        };
        let set: MatoclFuseSetattr = client.get_long(set.encode()).await.unwrap();
        assert_eq!((set.attr.atime, set.attr.mtime), (atime, mtime));
        assert_ne!(set.attr.ctime, set.attr.ctime.in_seconds());

        let stock = CltomaFuseGetattr { msgid: 1, inode, opened, uid, gid: 0 };
        let stock: MatoclFuseGetattr = client.get(&stock).await.unwrap();
        let seen = [stock.attr.atime, stock.attr.mtime, stock.attr.ctime];
        assert_eq!(seen, [0.into(), u32::MAX.into(), set.attr.ctime.in_seconds()]);

        // The other answers with attributes, and a status in the place of one.
        let (name, gids) = (Name::new(b"file").unwrap(), Gids::list(&[0]));
        let found = CltomaFuseLookup { msgid: 2, parent: Inode(1), name, uid, gids };
        let found: MatoclFuseLookup = client.get_long(found.encode()).await.unwrap();
        assert_eq!((found.attr.atime, found.attr.mtime, found.attr.ctime), (atime, mtime, set.attr.ctime));
        let (flags, gids) = (readdir_flags::WITHATTR, Gids::list(&[0]));
        let nedgeid = EDGE_ID_START;
        let list = CltomaFuseReaddir { msgid: 3, inode: Inode(1), uid, gids, flags, maxentries: 9, nedgeid };
        let list: MatoclFuseReaddir = client.get_long(list.encode()).await.unwrap();
        let listed = list.entries.iter().find(|entry| entry.inode == inode).unwrap();
        assert_eq!((listed.attr.mtime, listed.attr.extra), (mtime, 0));
        let cut = CltomaFuseTruncate { msgid: 4, inode, flags: 0, uid, gids: Gids::list(&[0]), length: 100 };
        let cut: MatoclFuseTruncate = client.get_long(cut.encode()).await.unwrap();
        assert!(cut.attr.mtime > set.attr.ctime && cut.attr.mtime == cut.attr.ctime);
        let gone = CltomaFuseGetattr { msgid: 5, inode: Inode(77), opened, uid, gid: 0 };
        assert_eq!(client.get_long::<MatoclFuseGetattr>(gone.encode()).await, Err(Status::ENOENT));

        let (atime, mtime) = (Time(cut.attr.mtime.0 + 1), Time(cut.attr.mtime.0 + 2));
        client.send(CltomaAmtimeInodesLong { entries: vec![AmtimeEntryLong { inode, atime, mtime }] }.encode()).await;
        let told = CltomaFuseGetattr { msgid: 6, inode, opened, uid, gid: 0 };
        let told: MatoclFuseGetattr = client.get_long(told.encode()).await.unwrap();
        assert_eq!((told.attr.atime, told.attr.mtime, told.attr.ctime), (atime, mtime, mtime));
    });
}

#[test]
fn a_file_is_granted_to_a_writer_and_shown_to_a_reader() {
    let scene = Scene::new(1);
    let (one, two) = (scene.chunkserver(11), scene.chunkserver(12));
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("file").await.unwrap();
        assert_eq!(client.create("file").await, Err(Status::EEXIST));
        let hole = client.read_chunk(inode).await.unwrap();
        assert_eq!((hole.chunkid, hole.locations.len()), (ChunkId(0), 0));
        let grant = client.write_chunk(inode).await.unwrap();
        assert_eq!((grant.protocolid, grant.version, grant.locations.len()), (2, Version(1), 2));
        assert_eq!(client.write_end(inode, grant.chunkid, 5000).await, Status::OK);
        let read = client.read_chunk(inode).await.unwrap();
        assert_eq!((read.chunkid, read.version, read.length), (grant.chunkid, Version(1), 5000));
        // No copy came or went since: the next write needs no new version.
        let again = client.write_chunk(inode).await.unwrap();
        assert_eq!((again.chunkid, again.version), (grant.chunkid, Version(1)));
        assert_eq!(client.write_end(inode, grant.chunkid, 0).await, Status::OK);
        let found = client.lookup("file").await.unwrap();
        assert_eq!((found.inode, found.attr.extra), (inode, 5000));
        assert_eq!(found.chunk_zero.map(|zero| zero.chunkid), Some(grant.chunkid));
        let folder = client.lookup(".").await.unwrap();
        assert_ne!(folder.attr.flags & attr_flags::ALLOW_DATA_CACHE, 0, "only a file may lose that");
        let (uid, gids) = (0, Gids::list(&[0]));
        let cut = CltomaFuseTruncate { msgid: 1, inode, flags: 0, uid, gids, length: 100 };
        let cut: MatoclFuseTruncate = client.get(&cut).await.unwrap();
        assert_eq!((cut.prevlength, cut.attr.extra), (5000, 100));
        assert_eq!(client.read_chunk(inode).await.unwrap().version, Version(2), "cutting raises the version");
    });
    assert_eq!(*one.chunks.borrow(), *two.chunks.borrow());
    assert_eq!(one.chunks.borrow().values().copied().collect::<Vec<_>>(), [Version(2)]);
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_any_moment() {
    for seed in 1..=12 {
        let scene = Scene::new(seed);
        let acknowledged: Rc<RefCell<Vec<String>>> = Rc::default();
        let mine = acknowledged.clone();
        let node = scene.world.node(Ipv4Addr::new(10, 0, 0, 21));
        drop(scene.world.spawn(node, |ring| async move {
            let mut client = Peer::mount(&ring).await;
            for number in 0.. {
                let name = format!("file{number}");
                if client.create(&name).await.is_err() {
                    return;
                }
                mine.borrow_mut().push(name);
            }
        }));
        let moment = Duration::from_millis(20 + scene.world.random_below(400));
        scene.world.run_for(moment);
        scene.crash_and_restart();
        let names = acknowledged.borrow().clone();
        assert!(!names.is_empty(), "seed {seed}: something was acknowledged");
        scene.play(22, |ring| async move {
            let mut client = Peer::mount(&ring).await;
            for name in names {
                assert!(client.lookup(&name).await.is_ok(), "seed {seed}: {name} is lost");
            }
        });
        scene.stop();
        scene.start();
        let last = acknowledged.borrow().last().cloned().unwrap();
        let found = scene.play(23, |ring| async move { Peer::mount(&ring).await.lookup(&last).await.is_ok() });
        assert!(found, "seed {seed}: a stop in order keeps everything");
    }
}

#[test]
fn who_is_told_of_anothers_change_is_told_when_that_is_durable() {
    let scene = Scene::new(19);
    let slow = Duration::from_millis(400);
    let (node, other) = (scene.world.node(Ipv4Addr::new(10, 0, 0, 21)), scene.world.node(Ipv4Addr::new(10, 0, 0, 22)));
    let (mut first, mut second) = (
        scene.world.run(node, |ring| async move { Peer::mount(&ring).await }).unwrap(),
        scene.world.run(other, |ring| async move { Peer::mount(&ring).await }).unwrap(),
    );
    scene.world.break_disk(scene.master, Path::new("/"), sim::DiskFault::Slow(slow));
    let made = scene.world.spawn(node, |_| async move { first.create("name").await.map(drop) });
    scene.world.run_for(Duration::from_millis(20));
    let began = scene.world.now();
    let refused = scene.world.run(other, |_| async move {
        assert!(second.lookup("name").await.is_ok(), "who only looks does not wait");
        second.create("name").await
    });
    assert_eq!(refused, Some(Err(Status::EEXIST)));
    assert!(scene.world.now().saturating_duration_since(began) > slow / 2, "the name is durable");
    // Both answers left together; the network may hand over the second one first.
    scene.world.run_for(Duration::from_millis(20));
    assert!(made.is_finished());
}

#[test]
fn no_answer_to_a_change_leaves_before_what_was_changed_earlier_is_durable() {
    let scene = Scene::new(29);
    let slow = Duration::from_millis(400);
    let (node, other) = (scene.world.node(Ipv4Addr::new(10, 0, 0, 21)), scene.world.node(Ipv4Addr::new(10, 0, 0, 22)));
    let mount = |node| scene.world.run(node, |ring| async move { Peer::mount(&ring).await }).unwrap();
    let (mut first, mut second) = (mount(node), mount(other));
    scene.world.break_disk(scene.master, Path::new("/"), sim::DiskFault::Slow(slow));
    let mut seed = wire::Seed(1);
    let mut answered = 0;
    for kind in super::client::changing_requests() {
        let made = scene.world.spawn(node, move |_| async move {
            first.create(&format!("name{kind}")).await.expect("it is new");
            first
        });
        scene.world.run_for(Duration::from_millis(20));
        // Nearly all samples are refused, for the inodes that they name do not exist.
        let entry = wire::registry::forms_of(kind).next().expect("a request is a packet");
        let payload = (entry.sample)(&mut seed);
        let length = u32::try_from(payload.len()).unwrap();
        let packet = [&Header { kind, length }.encode()[..], &payload].concat();
        let asked = scene.world.spawn(other, move |_| async move {
            second.send(packet).await;
            let answer = second.next().await;
            (answer, second)
        });
        scene.world.run_for(slow / 2);
        assert!(!asked.is_finished(), "{}: answered before the name was durable", entry.name);
        scene.world.run_for(slow * 4);
        assert!(made.is_finished() && asked.is_finished(), "{}: no answer", entry.name);
        first = scene.world.run(node, |_| async move { made.await.unwrap() }).unwrap();
        let (answer, peer) = scene.world.run(other, |_| async move { asked.await.unwrap() }).unwrap();
        assert_eq!(answer.map(|(kind, _)| kind), Some(kind + 1), "{}", entry.name);
        second = peer;
        answered += 1;
    }
    assert!(answered > 20);
}

#[test]
fn a_second_writer_waits_for_the_first() {
    let scene = Scene::new(3);
    let _server = scene.chunkserver(11);
    scene.world.run_for(Duration::from_secs(5)); // until the set of servers counts as settled
    scene.play(21, |ring| async move {
        let mut first = Peer::mount(&ring).await;
        let mut second = Peer::mount(&ring).await;
        let inode = first.create("file").await.unwrap();
        let grant = first.write_chunk(inode).await.unwrap();
        let began = ring.now();
        let asks = ring.spawn(async move { (second.write_chunk(inode).await, second) });
        ring.sleep(Duration::from_secs(2)).await;
        assert!(!asks.is_finished());
        assert_eq!(first.write_end(inode, grant.chunkid, 10).await, Status::OK);
        let (granted, mut second) = asks.await.unwrap();
        assert_eq!(granted.unwrap().chunkid, grant.chunkid);
        assert!(began.elapsed(&ring) < Duration::from_secs(3));
        // Nobody lets go of it now: after half a minute the answer is LOCKED.
        let locked = second.read_chunk(inode).await;
        assert_eq!(locked.map(|answer| answer.chunkid), Err(Status::LOCKED));
        assert!(began.elapsed(&ring) > Duration::from_secs(30));
    });
}

/// A mount sends what its threads ask for in one piece: a read that finds the chunk locked, and behind it what unlocks it.
#[test]
fn a_read_that_waits_is_woken_by_what_was_sent_right_behind_it() {
    for seed in 1..=30 {
        let scene = Scene::new(seed);
        scene.chunkserver(2);
        let read = scene.play(9, |ring| async move {
            let mut mount = Peer::mount(&ring).await;
            let inode = mount.create("both").await.unwrap();
            let chunkid = mount.write_chunk(inode).await.unwrap().chunkid;
            let mut both = CltomaFuseReadChunk { msgid: 9, inode, index: 0, chunkopflags: Some(0) }.encode();
            let (msgid, index, length, chunkopflags, region) = (8, 0, 100, 0, None);
            let end = CltomaFuseWriteChunkEnd { msgid, chunkid, inode, index, length, chunkopflags, region };
            both.extend(end.encode());
            mount.send(both).await;
            loop {
                let (kind, payload) = mount.next().await.expect("an answer");
                if kind == MatoclFuseReadChunk::TYPE {
                    return decode_answer::<MatoclFuseReadChunk>(&payload)
                        .expect("well-formed")
                        .map(|read| read.length);
                }
            }
        });
        assert_eq!(read, Ok(100), "seed {seed}");
    }
}

/// No event tells that a lock ran out.
#[test]
fn a_read_that_waits_is_woken_when_the_lock_runs_out() {
    let scene = Scene::new(6);
    scene.chunkserver(2);
    let read = scene.play(9, |ring| async move {
        let mut mount = Peer::mount(&ring).await;
        let inode = mount.create("left").await.unwrap();
        mount.write_chunk(inode).await.unwrap();
        ring.sleep(Duration::from_secs(100)).await;
        mount.read_chunk(inode).await.map(|read| read.length)
    });
    assert_eq!(read, Ok(0));
}

#[test]
fn a_writer_that_goes_before_its_grant_leaves_nothing_behind() {
    let scene = Scene::new(4);
    let server = scene.chunkserver(11);
    server.mute.set(true);
    let inode = scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("file").await.unwrap();
        client.send(CltomaFuseWriteChunk { msgid: 7, inode, index: 0, chunkopflags: None }.encode()).await;
        ring.sleep(Duration::from_millis(500)).await;
        client.stream.shutdown();
        inode
    });
    scene.world.run_for(Duration::from_secs(1));
    server.mute.set(false);
    scene.world.run_for(Duration::from_secs(10));
    assert!(server.chunks.borrow().is_empty(), "the chunk that nobody holds is deleted");
    let read = scene.play(22, |ring| async move { Peer::mount(&ring).await.read_chunk(inode).await });
    assert_eq!(read.map(|answer| answer.chunkid), Ok(ChunkId(0)), "the slot is empty again");
}

#[test]
fn who_writes_after_a_session_that_failed_or_never_ended_gets_another_version() {
    let scene = Scene::new(25);
    let [held, _other] = [11, 12].map(|last| scene.chunkserver(last));
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("file").await.unwrap();
        let first = client.write_chunk(inode).await.unwrap();
        assert_eq!(client.write_end(inode, first.chunkid, 10).await, Status::OK);
        let second = client.write_chunk(inode).await.unwrap();
        assert_eq!(second.version, first.version, "the first writer ended as it should");
        let (msgid, chunkid, index, length, chunkopflags, region) = (8, first.chunkid, 0, 10, 0, None);
        let end = CltomaWriteUncleanEnd { msgid, chunkid, inode, index, length, chunkopflags, region };
        client.send(end.encode()).await;
        while client.next().await.expect("an answer").0 != MatoclWriteUncleanEnd::TYPE {}
        let third = client.write_chunk(inode).await.unwrap();
        assert_eq!(third.version, second.version.next());
        assert_eq!(held.chunks.borrow()[&chunkid], third.version, "the server was told first");
        // This writer dies. Its lock ends by itself.
        ring.sleep(Duration::from_secs(125)).await;
        let fourth = client.write_chunk(inode).await.unwrap();
        assert_eq!(fourth.version, third.version.next());
        assert_eq!(client.write_end(inode, chunkid, 10).await, Status::OK);
        let fifth = client.write_chunk(inode).await.unwrap();
        assert_eq!(fifth.version, fourth.version);
    });
}

#[test]
fn copies_are_made_again_and_surplus_ones_removed() {
    let scene = Scene::new(5);
    let servers = [11, 12, 13].map(|last| scene.chunkserver(last));
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        for number in 0..10 {
            let inode = client.create(&format!("f{number}")).await.unwrap();
            let grant = client.write_chunk(inode).await.unwrap();
            assert_eq!(client.write_end(inode, grant.chunkid, 10).await, Status::OK);
        }
    });
    let copies = || servers.iter().map(|held| held.chunks.borrow().len()).sum::<usize>();
    assert_eq!(copies(), 20);
    let away = scene.world.node(Ipv4Addr::new(10, 0, 0, 11));
    scene.world.cut(away, scene.master);
    scene.world.run_for(Duration::from_secs(60));
    let left = servers[1].chunks.borrow().len() + servers[2].chunks.borrow().len();
    assert_eq!(left, 20, "two copies of each on the two servers that are left");
    scene.world.heal(away, scene.master);
    scene.world.run_for(Duration::from_secs(60));
    assert_eq!(copies(), 20, "the server that came back brought copies that are not needed any more");
}

#[test]
fn nonsense_is_hung_up_on_and_harms_nobody() {
    let scene = Scene::new(6);
    let _server = scene.chunkserver(11);
    let header = |kind: u32, length: u32| Header { kind, length }.encode().to_vec();
    let cases: Vec<(u16, Vec<u8>)> = vec![
        (9421, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n".to_vec()),
        (9421, header(402, 60_000_000)),
        (9421, CltomaFuseStatfs { msgid: 1 }.encode()), // before registration
        (9421, [header(400, 65), vec![b'x'; 65]].concat()),
        (9421, header(12345, 0)),
        (9421, header(406, 4)),
        (9420, header(101, 40)), // before registration
        (9420, golden("c3-register-new-req")),
        (9420, header(100, 600_000_000)),
        (9420, [header(100, 2), vec![60, 1]].concat()),
        (9419, header(60, 2_000_000)),
        (9419, [header(50, 1), vec![9]].concat()),
        (9419, [header(62, 12), vec![0; 12]].concat()),
    ];
    for (port, bytes) in cases {
        let what = format!("port {port}: {:02x?}", &bytes[..bytes.len().min(16)]);
        let ended = scene.play(21, move |ring| async move {
            let mut peer = Peer::connect(&ring, port).await;
            peer.send(bytes).await;
            ring.timeout(Duration::from_secs(25), async { while peer.take().await.is_some() {} }).await.is_ok()
        });
        assert!(ended, "{what} ends the connection");
    }
    scene.play(22, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("fine").await.unwrap();
        assert!(client.write_chunk(inode).await.is_ok());
    });
}

#[test]
fn a_known_packet_that_is_not_served_is_answered() {
    let scene = Scene::new(7);
    let answer = scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let packet = [Header { kind: 380, length: 8 }.encode().to_vec(), vec![0, 0, 0, 77, 0, 0, 0, 0]].concat();
        client.send(packet).await;
        client.next().await
    });
    assert_eq!(answer, Some((381, vec![0, 0, 0, 77, Status::ENOTSUP.0])));
}

#[test]
fn passwords_are_asked_for_by_challenge() {
    use md5::{Digest, Md5};
    let scene = Scene::with(8, "* / rw,password=secret\n", |_| {});
    let try_with = |password: Option<&'static [u8]>| {
        scene.play(21, move |ring| async move {
            let mut peer = Peer::connect(&ring, 9421).await;
            let CltomaFuseRegister::NewSession(mut wanted) =
                CltomaFuseRegister::decode(&golden("c3-register-new-req")[8..]).unwrap()
            else {
                panic!("the golden packet asks for a session");
            };
            if let Some(password) = password {
                let random = peer.ask(&CltomaFuseRegister::GetRandom).await.unwrap();
                let challenge: [u8; 32] = random.try_into().expect("32 bytes");
                wanted.passcode = Some(super::exports::passcode(&challenge, &Md5::digest(password).into()));
            }
            let answer = peer.ask(&CltomaFuseRegister::NewSession(wanted)).await.unwrap();
            MatoclFuseRegister::decode(&answer).unwrap()
        })
    };
    assert_eq!(try_with(None), MatoclFuseRegister::Status(Status::NOPASSWORD));
    assert_eq!(try_with(Some(b"wrong")), MatoclFuseRegister::Status(Status::BADPASSWORD));
    assert!(matches!(try_with(Some(b"secret")), MatoclFuseRegister::Session { .. }));
}

#[test]
fn chunkservers_prove_that_they_know_the_auth_code() {
    let scene = Scene::with(9, "* / rw\n", |settings| settings.auth_code = Some(b"code".to_vec()));
    let try_with = |code: &'static [u8]| {
        scene.play(11, move |ring| async move {
            let mut peer = Peer::connect(&ring, 9420).await;
            peer.send(begin(11)).await;
            let (_, payload) = peer.take().await?;
            let Ok(MatocsMasterAck::Challenge(challenge)) = MatocsMasterAck::decode(&payload) else {
                panic!("a challenge comes first");
            };
            let Ok(CstomaRegister::Begin { begin, .. }) = CstomaRegister::decode(&begin(11)[8..]) else {
                panic!("BEGIN");
            };
            let passcode = Some(auth_passcode(&challenge, code));
            peer.send(CstomaRegister::Begin { passcode, begin }.encode()).await;
            peer.take().await
        })
    };
    assert_eq!(try_with(b"wrong"), None);
    let (kind, ack) = try_with(b"code").expect("an acknowledge");
    assert_eq!((kind, ack.len()), (104, 17));
}

#[test]
fn a_metalogger_gets_every_line_once_and_can_fetch_the_image() {
    let scene = Scene::new(10);
    let lines = scene.play(31, |ring| async move {
        let mut logger = Peer::connect(&ring, 9419).await;
        logger.send(golden("ml3-register")).await;
        ring.sleep(Duration::from_millis(100)).await;
        let mut client = Peer::mount(&ring).await;
        for name in ["a", "b", "c"] {
            client.create(name).await.unwrap();
        }
        let mut lines = Vec::new();
        while lines.len() < 7 {
            let (kind, payload) = logger.next().await.unwrap();
            assert_eq!(kind, 51);
            let Ok(MatoanMetachangesLog::Change { changeno, text }) = MatoanMetachangesLog::decode(&payload) else {
                panic!("a change");
            };
            lines.push((changeno, String::from_utf8(text.0).unwrap()));
        }
        // The image, in one piece: it is small.
        let mut files = Vec::new();
        for number in [1, 11, 12] {
            logger.send(AntomaDownloadStart { filenum: number }.encode()).await;
            let (_, info) = logger.next().await.unwrap();
            let size = MatoanDownloadInfo::decode(&info).unwrap().size;
            if size > 0 {
                let leng = u32::try_from(size).unwrap();
                logger.send(AntomaDownloadRequest { offset: 0, leng }.encode()).await;
                let (_, data) = logger.next().await.unwrap();
                let data = MatoanDownloadData::decode(&data).unwrap();
                assert_eq!(crc32fast::hash(&data.data.0), data.crc.0);
                files.push(data.data.0);
            }
            logger.send(AntomaDownloadEnd {}.encode()).await;
        }
        assert!(files[0].starts_with(b"MFSM 2.0") && files[0].ends_with(b"[MFS EOF MARKER]"));
        assert!(files.len() > 1 && files[1..].iter().all(|lines| lines.ends_with(b"\n") && !lines.contains(&0)));
        lines
    });
    let first = lines[0].0;
    let numbers: Vec<u64> = lines.iter().map(|line| line.0).collect();
    assert_eq!(numbers, (first..first + 7).collect::<Vec<_>>());
    assert!(lines.iter().any(|line| line.1.contains("CREATE(1,c,")), "{lines:?}");
}

#[test]
fn a_changed_export_moves_its_sessions() {
    let scene = Scene::new(12);
    let ended = scene.play(21, {
        let wishes = scene.wishes.borrow().clone().unwrap();
        let master = scene.master;
        let world_ring = scene.world.ring(master);
        move |ring| async move {
            let mut client = Peer::mount(&ring).await;
            let path = Path::new("/data/exports");
            world_ring.write_file_durably(path, 0o644, b"* / ro\n".to_vec()).await.unwrap();
            wishes.send(Wish::Reload).map_err(drop).unwrap();
            while client.take().await.is_some() {}
            let mut client = Peer::mount(&ring).await;
            client.create("x").await
        }
    });
    assert_eq!(ended, Err(Status::EROFS));
}

#[test]
fn a_chunk_that_a_crash_left_unborn_does_not_block_its_file() {
    let scene = Scene::new(13);
    let server = scene.chunkserver(11);
    let away = scene.world.node(Ipv4Addr::new(10, 0, 0, 11));
    scene.world.cut(away, scene.master);
    let inode = scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("file").await.unwrap();
        client.send(CltomaFuseWriteChunk { msgid: 7, inode, index: 0, chunkopflags: None }.encode()).await;
        ring.sleep(Duration::from_millis(500)).await;
        inode
    });
    // What was on its way to the server is gone too.
    scene.world.crash(away);
    server.registered.set(false);
    scene.crash_and_restart();
    scene.world.heal(away, scene.master);
    scene.world.restart(away);
    drop(scene.world.spawn(away, |ring| serve_chunks(ring, 11, server.clone())));
    scene.world.run_for(Duration::from_secs(30));
    assert!(server.registered.get(), "the server came back");
    assert_eq!(server.chunks.borrow().len(), 0, "the chunk was never born");
    let grant = scene.play(22, |ring| async move { Peer::mount(&ring).await.write_chunk(inode).await });
    assert_eq!(grant.map(|grant| grant.locations.len()), Ok(1));
}

/// A question of a monitor, which has no packet of its own in `wire`.
fn question(kind: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header { kind, length: u32::try_from(payload.len()).unwrap() };
    [&header.encode()[..], payload].concat()
}

#[test]
fn commands_are_obeyed_only_from_the_addresses_of_administrators() {
    let scene = Scene::with(17, "10.0.0.21 / rw,admin\n* / rw,alldirs,maproot=0:0\n", |_| {});
    let remove_session = |last| {
        scene.play(last, |ring| async move {
            let mut monitor = Peer::connect(&ring, 9421).await;
            monitor.send(question(526, &[0, 0, 0, 0, 99])).await;
            let session = monitor.next().await;
            monitor.send(question(524, &[0, 10, 0, 0, 9, 0x24, 0xCE])).await;
            (session, monitor.next().await)
        })
    };
    let both = |status: Status| (Some((527, vec![status.0])), Some((525, vec![status.0])));
    assert_eq!(remove_session(21), both(Status::NOTFOUND), "obeyed, but there is no such session or server");
    assert_eq!(remove_session(22), both(Status::EPERM_NOTADMIN));
}

#[test]
fn a_monitor_sees_metaloggers_with_version_and_address() {
    let scene = Scene::new(18);
    let seen = scene.play(23, |ring| async move {
        let logger = Peer::connect(&ring, 9419).await;
        logger.send(AntomaRegister { version: VersionWord(0x0003_00EA), timeout: 10, minversion: None }.encode()).await;
        ring.sleep(Duration::from_millis(500)).await;
        let mut monitor = Peer::connect(&ring, 9421).await;
        monitor.send(question(522, &[])).await;
        monitor.next().await
    });
    assert_eq!(seen, Some((523, vec![0, 3, 0, 0xEA, 10, 0, 0, 23])));
}
