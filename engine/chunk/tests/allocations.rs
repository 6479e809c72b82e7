//! The data path of a warm server allocates nothing: reads of whole blocks and of parts, from disk and from the cache,
//! writes of blocks and of parts, as the last server of a chain and in its middle.
//!
//! A server runs on this thread, with a master and the rest of the chain on other threads; the client is an ordinary
//! socket on a third. What this thread allocates between two marks is counted.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;

use chunk::folders::FolderLine;
use chunk::layout::{HeaderWords, TABLE_BYTES, chunk_name, encode_header};
use chunk::settings::{IoMode, Settings};
use chunk::sums::sum_of;
use ring::{CountingAllocator, DriverChoice, Options};
use wire::types::ChainServer;
use wire::*;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const BLOCK: usize = 65_536;
const BLOCKS: usize = 32;
/// The chunk that is read and the one that is written: of the first core's, also where there are two.
const READ: ChunkId = ChunkId(2);
const WRITTEN: ChunkId = ChunkId(4);
/// Requests, or pieces, between two marks.
const REQUESTS: u32 = 1000;
/// What may be allocated meanwhile: the housekeeping of some seconds, and a write session. Far fewer than one each.
const ALLOCATIONS_MAX: u64 = 100;
/// Each job is done so often and its best time counts: what comes once a minute (charts) costs more than the limit, and
/// what a request needs is needed every time.
const ROUNDS: usize = 3;
const JOBS: usize = 7;

#[test]
fn the_data_path_allocates_nothing_for_a_request() {
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        for (io_mode, block_cache_mib) in [(IoMode::Direct, 0), (IoMode::Buffered, 0), (IoMode::DontCache, 16)] {
            for cores in [1, 2] {
                check(driver, io_mode, block_cache_mib, cores);
            }
        }
    }
}

fn check(driver: DriverChoice, io_mode: IoMode, block_cache_mib: u32, cores: usize) {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = Options { driver, buffers: 512, ..Options::default() };
    let next = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let next_server = start_next(folder.path().join("next"), next, driver);
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let settings = Settings { cores, ..prepare(&folder.path().join("here"), here, io_mode, block_cache_mib) };
    let ran = ring::run(options, |ring| async move {
        let (marks, mut marked) = ring::channel::channel::<String>();
        let (is_ready, ready) = mpsc::channel();
        let client = std::thread::spawn(move || {
            ready.recv().unwrap();
            run_client(here, next, &marks);
        });
        let (stop, stopped) = ring::local::oneshot::<()>();
        let server = ring.spawn(chunk::server::run(
            ring.clone(),
            settings,
            async move { stopped.await.unwrap_or_default() },
            move || is_ready.send(()).unwrap(),
        ));
        let mut counts = Vec::new();
        while let Some(what) = marked.recv().await {
            let before = CountingAllocator::count();
            marked.recv().await;
            counts.push((what, CountingAllocator::count() - before));
        }
        client.join().unwrap();
        let _ = stop.send(());
        server.await.unwrap().unwrap();
        counts
    });
    drop(next_server);
    match ran {
        Err(error) if driver == DriverChoice::Uring => eprintln!("SKIPPED: no io_uring here: {error}"),
        counts => {
            let counts = counts.unwrap();
            println!("{driver}, {cores} cores, {io_mode:?}, cache of {block_cache_mib} MiB: {counts:?}");
            assert_eq!(counts.len(), ROUNDS * JOBS);
            for (what, _) in &counts[..JOBS] {
                let of_rounds = counts.iter().filter(|(other, _)| other == what);
                let count = of_rounds.map(|(_, count)| *count).min().unwrap();
                assert!(
                    count <= ALLOCATIONS_MAX,
                    "{driver}, {cores} cores, {io_mode:?}: {count} allocations for {REQUESTS} × {what}"
                );
            }
        }
    }
}

fn run_client(here: SocketAddr, next: SocketAddr, marks: &ring::channel::Sender<String>) {
    Client::connect(here).wait_for_chunk();
    Client::connect(next).wait_for_chunk();
    let mut client = Client::connect(here);
    let chain = |length: usize| -> Vec<ChainServer> {
        let SocketAddr::V4(next) = next else { unreachable!("an IPv4 address") };
        vec![ChainServer { ip: (*next.ip()).into(), port: next.port() }; length]
    };
    // Everything once, so that every pool, table and list has its size.
    for _ in 0..3 {
        client.read(100, 0, BLOCK as u32);
        client.read(100, 20_000, 4096);
        client.read(4, 0, (BLOCKS * BLOCK) as u32);
        client.write(200, BLOCK as u32, chain(0));
        client.write(200, 4096, chain(0));
        client.write(200, BLOCK as u32, chain(1));
        client.write(200, 4096, chain(1));
    }
    let mark = |what: &str, act: &mut dyn FnMut()| {
        marks.send(what.to_owned()).unwrap();
        act();
        marks.send(String::new()).unwrap();
    };
    for _ in 0..ROUNDS {
        mark("read of a block", &mut || client.read(REQUESTS, 0, BLOCK as u32));
        mark("read of a part", &mut || client.read(REQUESTS, 20_000, 4096));
        mark("read of many blocks", &mut || client.read(REQUESTS / 20, 0, (BLOCKS * BLOCK) as u32));
        mark("write of a block", &mut || client.write(REQUESTS, BLOCK as u32, chain(0)));
        mark("write of a part", &mut || client.write(REQUESTS, 4096, chain(0)));
        mark("write of a block, passed on", &mut || client.write(REQUESTS, BLOCK as u32, chain(1)));
        mark("write of a part, passed on", &mut || client.write(REQUESTS, 4096, chain(1)));
    }
}

/// A client with an ordinary socket.
struct Client {
    stream: TcpStream,
    block: Vec<u8>,
    number: u32,
}

impl Client {
    fn connect(to: SocketAddr) -> Client {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, block: (0..BLOCK).map(|at| (at * 7 % 251) as u8).collect(), number: 0 }
    }

    fn packet(&mut self) -> (u32, Vec<u8>) {
        loop {
            let mut header = [0; 8];
            self.stream.read_exact(&mut header).unwrap();
            let Header { kind, length } = Header::decode(&header);
            let mut payload = vec![0; length as usize];
            self.stream.read_exact(&mut payload).unwrap();
            if kind != 0 {
                return (kind, payload);
            }
        }
    }

    /// Until the server has listed its disk, and with it the last chunk.
    fn wait_for_chunk(&mut self) {
        for _ in 0..2000 {
            let (chunkid, version) = (WRITTEN, Version(1));
            let request = CltocsRead { with_proto: true, chunkid, version, offset: 0, size: 1 };
            self.stream.write_all(&request.encode()).unwrap();
            loop {
                let (kind, payload) = self.packet();
                if kind == CstoclReadStatus::TYPE {
                    if CstoclReadStatus::decode(&payload).unwrap().status == Status::OK {
                        return;
                    }
                    break;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("the server does not find its chunks");
    }

    /// So many reads of so many bytes, from one place in the first block to the next.
    fn read(&mut self, count: u32, offset: u32, size: u32) {
        for _ in 0..count {
            self.number += 1;
            let first = if size as usize > BLOCK { 0 } else { self.number % BLOCKS as u32 * BLOCK as u32 };
            let (chunkid, version) = (READ, Version(1));
            let request = CltocsRead { with_proto: true, chunkid, version, offset: first + offset, size };
            self.stream.write_all(&request.encode()).unwrap();
            let mut received = 0;
            loop {
                let (kind, payload) = self.packet();
                if kind == CstoclReadStatus::TYPE {
                    assert_eq!(CstoclReadStatus::decode(&payload).unwrap().status, Status::OK);
                    break;
                }
                received += payload.len() - 20;
            }
            assert_eq!(received, size as usize);
        }
    }

    /// A session of so many pieces, 8 at a time.
    fn write(&mut self, count: u32, size: u32, chain: Vec<ChainServer>) {
        let (chunkid, version) = (WRITTEN, Version(1));
        self.stream.write_all(&CltocsWrite { with_proto: true, chunkid, version, chain }.encode()).unwrap();
        self.status(0);
        let crc = sum_of(&self.block[..size as usize]);
        for writeid in 1..=count + 8 {
            if writeid <= count {
                let blocknum = (writeid % BLOCKS as u32) as u16;
                let offset = if size as usize == BLOCK { 0 } else { 8192 };
                let head = CltocsWriteData { chunkid, writeid, blocknum, offset, size, crc };
                self.stream.write_all(&head.front()).unwrap();
                self.stream.write_all(&self.block[..size as usize]).unwrap();
            }
            if writeid > 8 {
                self.status(writeid - 8);
            }
        }
        self.stream.write_all(&CltocsWriteFinish { chunkid, version }.encode()).unwrap();
    }

    fn status(&mut self, writeid: u32) {
        let (kind, payload) = self.packet();
        assert_eq!(kind, CstoclWriteStatus::TYPE);
        let status = CstoclWriteStatus::decode(&payload).unwrap();
        assert_eq!((status.writeid, status.status), (writeid, Status::OK));
    }
}

/// A folder with two chunks, and settings of a server for it. Its master never answers.
fn prepare(root: &Path, at: SocketAddr, io_mode: IoMode, block_cache_mib: u32) -> Settings {
    let hdd = root.join("hdd");
    for path in [hdd.join("00"), root.join("var")] {
        std::fs::create_dir_all(path).unwrap();
    }
    for id in [READ, WRITTEN] {
        let block = vec![id.0 as u8; BLOCK];
        let mut file = vec![0; 4096];
        file[..20].copy_from_slice(&encode_header(HeaderWords { minor: b'0', id, version: Version(1) }));
        for _ in 0..TABLE_BYTES / 4 {
            file.extend_from_slice(&sum_of(&block).0.to_be_bytes());
        }
        for _ in 0..BLOCKS {
            file.extend_from_slice(&block);
        }
        std::fs::write(hdd.join("00").join(chunk_name(id, Version(1))), file).unwrap();
    }
    Settings {
        listen_ip: Ipv4Addr::LOCALHOST,
        listen_port: at.port(),
        master_host: "127.0.0.1".to_owned(),
        master_port: 9,
        test_speed: 0.0,
        io_mode,
        block_cache_mib,
        ..Settings::new(root.join("var"), vec![FolderLine::plain(hdd.to_str().unwrap())])
    }
}

/// The next server of the chain, on a thread and a ring of its own. It stops when the sender is dropped.
fn start_next(root: PathBuf, at: SocketAddr, driver: DriverChoice) -> ring::channel::Sender<()> {
    let settings = prepare(&root, at, IoMode::Buffered, 0);
    let (stop, mut stopped) = ring::channel::channel::<()>();
    let (is_ready, ready) = mpsc::channel();
    std::thread::spawn(move || {
        let driver = if driver == DriverChoice::Epoll { driver } else { DriverChoice::Auto };
        let options = Options { driver, buffers: 256, ..Options::default() };
        let stop = async move {
            stopped.recv().await;
        };
        ring::run(options, |ring| chunk::server::run(ring, settings, stop, move || is_ready.send(()).unwrap()))
            .unwrap()
            .unwrap();
    });
    ready.recv().unwrap();
    stop
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
