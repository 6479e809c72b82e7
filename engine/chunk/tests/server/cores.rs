//! Servers of several cores: connections that go from one to another, orders about chunks of two, starts with another
//! number of cores than before. On the real drivers, since the simulation has one thread.

use std::thread;

use chunk::settings::Settings;
use ring::local::oneshot;
use wire::*;

use crate::support::master::Master;
use crate::support::{Bed, noise, on_real_drivers};

const CHUNKS: u64 = 9;

#[test]
fn one_connection_reads_and_writes_chunks_of_all_cores() {
    on_real_drivers(3, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        let mut client = bed.client(1).await;
        for id in 1..=CHUNKS {
            assert_eq!(master.create(id, 1).await, Status::OK);
            client.write(id, 1, &[], 0, &noise(id, 200_000)).await;
        }
        for at in 0..10 * CHUNKS {
            let id = 1 + at * 5 % CHUNKS;
            let offset = (at * 12_345 % 150_000) as u32;
            let expected = &noise(id, 200_000)[offset as usize..][..50_000];
            assert!(client.read_ok(id, 1, offset, 50_000).await == expected, "chunk {id} at {offset}");
            let question = AntocsGetChunkBlocks { chunkid: ChunkId(id + 1), version: Version(1) };
            let answer: CstoanChunkBlocks = client.ask(question).await;
            assert_eq!(answer.chunkid, ChunkId(id + 1));
            let expected = if id < CHUNKS { (4, Status::OK) } else { (0, Status::NOCHUNK) };
            assert_eq!((answer.blocks, answer.status), expected);
        }
        running.stop().await;
    });
}

#[test]
fn what_came_behind_a_request_goes_to_the_other_core_with_it() {
    on_real_drivers(3, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        let mut client = bed.client(1).await;
        for id in 1..=CHUNKS {
            assert_eq!(master.create(id, 1).await, Status::OK);
        }
        // Whole sessions, each with its data, and then reads, in one piece: more than a reader takes at a time.
        let mut bytes = Vec::new();
        for id in 1..=CHUNKS {
            let (chunkid, version, data) = (ChunkId(id), Version(1), noise(id, 3000));
            bytes.extend(CltocsWrite { with_proto: true, chunkid, version, chain: Vec::new() }.encode());
            let crc = chunk::sums::sum_of(&data);
            let head = CltocsWriteData { chunkid, writeid: 1, blocknum: 0, offset: 0, size: data.len() as u32, crc };
            bytes.extend(head.front());
            bytes.extend(&data);
            bytes.extend(CltocsWriteFinish { chunkid, version }.encode());
        }
        client.send(bytes).await;
        for id in 1..=CHUNKS {
            for writeid in [0, 1] {
                let status: CstoclWriteStatus = client.next_as().await;
                assert_eq!((status.chunkid, status.writeid, status.status), (ChunkId(id), writeid, Status::OK));
            }
        }
        let read =
            |id| CltocsRead { with_proto: true, chunkid: ChunkId(id), version: Version(1), offset: 10, size: 99 };
        client.send((1..=CHUNKS).flat_map(|id| read(id).encode()).collect()).await;
        for id in 1..=CHUNKS {
            let (kind, payload) = client.next().await.expect("data");
            assert_eq!((kind, &payload[20..]), (CstoclReadData::TYPE, &noise(id, 3000)[10..109]));
            let status: CstoclReadStatus = client.next_as().await;
            assert_eq!((status.chunkid, status.status), (ChunkId(id), Status::OK));
        }
        running.stop().await;
    });
}

#[test]
fn duplicates_are_made_for_every_owner() {
    on_real_drivers(3, |bed| async move {
        let (running, mut master) = bed.one_server().await;
        let data = noise(1, 150_000);
        for source in 1..=3 {
            assert_eq!(master.create(source, 1).await, Status::OK);
            bed.client(1).await.write(source, 1, &[], 0, &data).await;
        }
        let chunk = |id: u64, version| (ChunkId(id), Version(version));
        for source in 1..=3u64 {
            for at in 1..=3u64 {
                let (new, cut) = (source * 10 + at, source * 100 + at);
                let ((newchunkid, newversion), (oldchunkid, oldversion)) = (chunk(new, 7), chunk(source, 1));
                let duplicate = || MatocsDuplicate { newchunkid, newversion, oldchunkid, oldversion };
                assert_eq!(master.order::<CstomaDuplicate>(duplicate()).await.status, Status::OK);
                assert_eq!(master.order::<CstomaDuplicate>(duplicate()).await.status, Status::CHUNKEXIST);
                let (newchunkid, newversion) = chunk(cut, 7);
                let order = MatocsDuptrunc { newchunkid, newversion, oldchunkid, oldversion, length: 70_000 };
                assert_eq!(master.order::<CstomaDuptrunc>(order).await.status, Status::OK);
                assert_eq!(bed.client(1).await.read_ok(new, 7, 0, 150_000).await, data);
                let read = bed.client(1).await.read_ok(cut, 7, 0, 2 * 65_536).await;
                assert!(read[..70_000] == data[..70_000] && read[70_000..].iter().all(|byte| *byte == 0));
                // It is a chunk like any other.
                bed.client(1).await.write(new, 7, &[], 65_536, &noise(new, 10_000)).await;
                assert_eq!(bed.client(1).await.read_ok(source, 1, 65_536, 10_000).await, data[65_536..75_536]);
                assert_eq!(master.set_version(new, 8, 7).await, Status::OK);
                assert_eq!(master.delete(cut, 7).await, Status::OK);
                assert_eq!(bed.nodes[1].find_chunk(cut, 7).await, None);
            }
            let ((newchunkid, newversion), (oldchunkid, oldversion)) = (chunk(source + 50, 1), chunk(source + 60, 1));
            let order = MatocsDuplicate { newchunkid, newversion, oldchunkid, oldversion };
            assert_eq!(master.order::<CstomaDuplicate>(order).await.status, Status::NOCHUNK);
            assert_eq!(master.create(source + 50, 1).await, Status::OK, "what failed left no reservation");
        }
        running.stop().await;
        let (running, master) = bed.one_server().await;
        assert_eq!(master.listed.len(), 3 + 9 + 3);
        assert!(master.listed.is_sorted_by_key(|chunk| chunk.chunkid), "the list is that of one server");
        for new in (1..=3).flat_map(|source| (1..=3).map(move |at| source * 10 + at)) {
            assert_eq!(bed.client(1).await.read_ok(new, 8, 65_536, 10_000).await, noise(new, 10_000));
        }
        running.stop().await;
    });
}

/// A server on a thread of its own, to be killed.
struct Killable {
    kill: ring::channel::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Killable {
    async fn start(bed: &Bed, settings: Settings) -> Killable {
        bed.nodes[1].prepare().await;
        let options = bed.nodes[1].ring.options().expect("a real ring");
        let (kill, mut killed) = ring::channel::channel::<()>();
        let (is_ready, mut ready) = ring::channel::channel();
        let thread = thread::spawn(move || {
            ring::run(options, |ring| async move {
                let (_never, stopped) = oneshot::<()>();
                let stop = async move {
                    stopped.await;
                };
                let server = chunk::server::run(ring, settings, stop, move || is_ready.send(()).unwrap());
                let ended = std::pin::pin!(server);
                futures_util::future::select(ended, std::pin::pin!(killed.recv())).await;
            })
            .unwrap();
        });
        ready.recv().await.expect("it starts");
        Killable { kill, thread }
    }

    /// All tasks of all cores end where they are. The system keeps what it has of the files.
    fn kill(self) {
        drop(self.kill);
        self.thread.join().unwrap();
    }
}

async fn logs(bed: &Bed) -> usize {
    let entries = bed.nodes[1].ring.list(&bed.nodes[1].hdd()).await.unwrap();
    entries.iter().filter(|entry| entry.name.to_str().unwrap().starts_with(".mooring_intents")).count()
}

#[test]
fn another_number_of_cores_finds_all_that_a_crash_left_to_be_put_right() {
    on_real_drivers(1, |bed| async move {
        let listener = Master::listen(&bed.nodes[0]);
        let with = |cores| Settings { cores, block_cache_mib: 0, ..bed.settings(1) };
        let mut content = vec![Vec::new(); CHUNKS as usize + 1];
        for (round, cores) in [4usize, 1, 4, 3, 2, 4].into_iter().enumerate() {
            let server = Killable::start(&bed, with(cores)).await;
            let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
            let mut sessions = Vec::new();
            for id in 1..=CHUNKS {
                let mut client = bed.client(1).await;
                if round == 0 {
                    assert_eq!(master.create(id, 1).await, Status::OK);
                } else {
                    let read = client.read_ok(id, 1, 0, 2 * 65_536).await;
                    assert!(read == content[id as usize], "chunk {id}, {cores} cores in round {round}");
                }
                // Whole blocks and parts; the table of sums stays in memory as long as the session lasts.
                let mut data = noise(id + 100 * round as u64, 2 * 65_536);
                assert_eq!(client.open_write(id, 1, &[]).await, Status::OK);
                client.send_piece(id, 1, 0, 0, &data[..65_536]).await;
                client.send_piece(id, 2, 1, 0, &data[65_536..]).await;
                client.send_piece(id, 3, 0, 1000, &[7; 5000]).await;
                data[1000..6000].fill(7);
                content[id as usize] = data;
                for writeid in 1..=3 {
                    assert_eq!(client.status().await, (writeid, Status::OK));
                }
                sessions.push(client);
            }
            assert_eq!(logs(&bed).await, cores, "the logs of former cores go when nothing in them is left");
            server.kill();
        }
        let running = bed.start_with(1, with(2)).await;
        let master = Master::accept(&bed.nodes[0].ring, &listener).await;
        assert_eq!(master.listed.len() as u64, CHUNKS);
        for id in 1..=CHUNKS {
            assert!(bed.client(1).await.read_ok(id, 1, 0, 2 * 65_536).await == content[id as usize], "chunk {id}");
        }
        running.stop().await;
    });
}
