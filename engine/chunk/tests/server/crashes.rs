//! Servers that die at any moment, under load that a seed decides, beside a model that knows what must be there.
//!
//! Killed (the process ends, the system goes on): what was acknowledged is there, what was not is there or is not,
//! piece by piece. Power cut under the policy `written`: the disk may have lost what it was never told to sync, but a
//! block is one that was once written, or its checksum says that it is bad; never anything else. Under `synced` what
//! was acknowledged is there, but for a block that was being overwritten at that moment: it may be torn, and bad until
//! the master, having no better copy, takes it as it is.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use chunk::settings::{Durability, IoMode};
use ring::Listener;
use ring::sim::{Settings, World};
use wire::{Seed, Status};

use crate::support::client::Client;
use crate::support::master::Master;
use crate::support::{Bed, noise, sim_bed};

const BLOCK: usize = 65_536;
const BLOCKS: usize = 5;
const CHUNKS: u64 = 3;

/// `MOORING_SEEDS=100` tries more worlds than the few that every run tries.
fn seeds() -> std::ops::RangeInclusive<u64> {
    1..=std::env::var("MOORING_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(4)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    PowerCut,
    /// Under the policy `synced`.
    SyncedPowerCut,
}

impl End {
    fn may_lose(self) -> bool {
        self == End::PowerCut
    }
}

#[test]
fn a_killed_server_has_lost_nothing_that_it_acknowledged() {
    for seed in seeds() {
        for io_mode in [IoMode::Direct, IoMode::Buffered] {
            run(seed, io_mode, End::Kill);
        }
    }
}

#[test]
fn after_a_power_cut_no_wrong_byte_is_served() {
    for seed in seeds() {
        for io_mode in [IoMode::Direct, IoMode::Buffered] {
            run(seed, io_mode, End::PowerCut);
        }
    }
}

#[test]
fn a_server_that_syncs_has_lost_nothing_that_it_acknowledged_before_a_power_cut() {
    for seed in seeds() {
        for io_mode in [IoMode::Direct, IoMode::Buffered] {
            run(seed, io_mode, End::SyncedPowerCut);
        }
    }
}

#[test]
fn a_truncation_that_made_a_chunk_longer_is_no_damage_after_a_kill() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        let world = World::new(3, Settings::default());
        let bed = sim_bed(&world, io_mode);
        let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
        let in_it = bed.clone();
        let before = world.run(control, |_| async move {
            let (_running, mut master) = in_it.one_server().await;
            assert_eq!(master.create(1, 1).await, Status::OK);
            in_it.client(1).await.write(1, 1, &[], 0, &noise(1, BLOCK)).await;
            assert_eq!(master.truncate(1, 4 * BLOCK as u32 + 100, 2, 1).await, Status::OK);
        });
        assert!(before.is_some());
        world.kill(server);
        let in_it = bed.clone();
        let after = world.run(control, |_| async move {
            let (_running, mut master) = in_it.one_server().await;
            // A torn copy would be refused so soon after it was reported.
            assert_eq!(master.set_version(1, 3, 2).await, Status::OK);
            let mut expected = noise(1, BLOCK);
            expected.resize(5 * BLOCK, 0);
            assert!(in_it.client(1).await.read_ok(1, 3, 0, 5 * BLOCK as u32).await == expected);
        });
        assert!(after.is_some());
    }
}

/// What one block may hold: the last is the newest.
type Candidates = Vec<Vec<u8>>;

/// What a chunk holds, as far as the answers tell.
struct ChunkModel {
    version: u32,
    /// A change of version that was not answered: new version, and the length of a truncation.
    changing: Option<(u32, Option<usize>)>,
    /// The block in which a truncation that was not answered cuts.
    cut_in: Option<usize>,
    /// First what was acknowledged, then what was sent since.
    blocks: Vec<Candidates>,
    /// Everything that a block ever held; kept for power cuts.
    history: Vec<Candidates>,
}

impl ChunkModel {
    fn new() -> ChunkModel {
        let zeros = vec![vec![vec![0; BLOCK]]; BLOCKS];
        ChunkModel { version: 1, changing: None, cut_in: None, blocks: zeros.clone(), history: zeros }
    }

    fn send(&mut self, block: usize, offset: usize, data: &[u8]) {
        let mut content = self.blocks[block].last().unwrap().clone();
        content[offset..offset + data.len()].copy_from_slice(data);
        self.history[block].push(content.clone());
        self.blocks[block].push(content);
    }

    fn acknowledge(&mut self, block: usize) {
        self.blocks[block].remove(0);
    }

    fn set(&mut self, block: usize, content: Vec<u8>) {
        self.history[block].push(content.clone());
        self.blocks[block] = vec![content];
    }

    fn was_being_changed(&self, block: usize) -> bool {
        self.blocks[block].len() > 1 || self.cut_in == Some(block)
    }

    fn changed(&mut self) {
        let Some((version, length)) = self.changing.take() else { return };
        self.cut_in = None;
        self.version = version;
        for block in 0..BLOCKS {
            let content = self.after_cut(block, length.unwrap_or(BLOCKS * BLOCK));
            self.set(block, content);
        }
    }

    /// What the block should hold once the chunk is cut to `length`.
    fn after_cut(&self, block: usize, length: usize) -> Vec<u8> {
        let mut content = self.blocks[block].last().unwrap().clone();
        let keep = length.saturating_sub(block * BLOCK).min(BLOCK);
        content[keep..].fill(0);
        content
    }
}

type Model = Rc<RefCell<BTreeMap<u64, ChunkModel>>>;

fn run(seed: u64, io_mode: IoMode, end: End) {
    let world = World::new(seed, Settings::default());
    let bed = sim_bed(&world, io_mode);
    let control = world.node(bed.nodes[0].ip);
    let server = world.node(bed.nodes[1].ip);
    let model: Model = Rc::default();
    let listener = Rc::new(Master::listen(&bed.nodes[0]));
    for round in 0..6 {
        let name = format!("seed {seed}, {io_mode:?}, round {round}");
        let (bed_now, model_now, listener_now) = (bed.clone(), model.clone(), listener.clone());
        let begun = world.run(control, |_| begin_round(bed_now, model_now, listener_now, end, name.clone()));
        let (master, running) = begun.unwrap_or_else(|| panic!("{name}: the server comes back"));
        let work_seed = Seed(world.random_below(u64::MAX));
        let work = world.spawn(control, |_| work(bed.clone(), master, model.clone(), work_seed));
        world.run_for(Duration::from_micros(1_000 + world.random_below(400_000)));
        match end {
            End::Kill => world.kill(server),
            End::PowerCut | End::SyncedPowerCut => {
                world.crash(server);
                world.restart(server);
            }
        }
        assert!(!work.is_finished(), "{name}: the load goes on until the server dies");
        work.abort();
        drop(running);
    }
}

/// Starts the server and compares all that it has with the model.
async fn begin_round(
    bed: Bed,
    model: Model,
    listener: Rc<Listener>,
    end: End,
    name: String,
) -> (Master, crate::support::Running) {
    let mut settings = bed.settings(1);
    if end == End::SyncedPowerCut {
        settings.durability = Durability::Synced;
    }
    let mut running = bed.start_with(1, settings.clone()).await;
    let mut master = Master::accept(&bed.nodes[0].ring, &listener).await;
    if bed.nodes[0].ring.random_u64().is_multiple_of(2) {
        // What is torn is known after one more restart, too.
        drop(master);
        running.stop().await;
        running = bed.start_with(1, settings).await;
        master = Master::accept(&bed.nodes[0].ring, &listener).await;
    }
    let mut client = bed.client(1).await;
    for id in 1..=CHUNKS {
        let found = master.listed.iter().find(|chunk| chunk.chunkid.0 == id).map(|chunk| chunk.version);
        let known = model.borrow_mut().remove(&id);
        let mut chunk = match (known, found) {
            (None, Some(_)) => ChunkModel::new(), // created, and not answered
            (Some(chunk), None) if !end.may_lose() => panic!("{name}: chunk {id} {} is gone", chunk.version),
            (known, None) => {
                assert_eq!(master.create(id, 1).await, Status::OK);
                let history = known.map_or_else(|| ChunkModel::new().history, |chunk| chunk.history);
                ChunkModel { history, ..ChunkModel::new() }
            }
            (Some(chunk), Some(_)) => chunk,
        };
        let version = found.unwrap_or(1);
        if version != chunk.version {
            let expected = chunk.changing.map(|(version, _)| version);
            assert!(end.may_lose() || expected == Some(version), "{name}: chunk {id} has version {version}");
            if expected == Some(version) {
                let cut_in = chunk.cut_in;
                chunk.changed();
                chunk.cut_in = cut_in;
            }
            chunk.version = version;
        }
        let is_whole = compare(&mut client, id, &mut chunk, end, &name).await;
        if !is_whole && end == End::SyncedPowerCut {
            // The master has nothing better: it takes the chunk as it is, once it has surely read of the damage.
            let (old, new) = (chunk.version, chunk.version + 1);
            assert_eq!(master.set_version(id, new, old).await, Status::CRC, "{name}: a copy that may be replaced");
            bed.nodes[0].ring.sleep(Duration::from_secs(6)).await;
            assert_eq!(master.set_version(id, new, old).await, Status::OK, "{name}: chunk {id} was torn, not rotten");
            chunk.version = new;
            client = bed.client(1).await; // a silent one is hung up on
            take_as_it_is(&mut client, id, &mut chunk, &name).await;
        } else if !is_whole {
            assert_eq!(master.delete(id, 0).await, Status::OK);
            assert_eq!(master.create(id, 1).await, Status::OK);
            // A power cut may undo the deletion too.
            chunk = ChunkModel { history: chunk.history, ..ChunkModel::new() };
        }
        chunk.changing = None;
        chunk.cut_in = None;
        model.borrow_mut().insert(id, chunk);
    }
    (master, running)
}

/// False if a part of the chunk is bad, which only a power cut may bring about.
async fn compare(client: &mut Client, id: u64, chunk: &mut ChunkModel, end: End, name: &str) -> bool {
    let mut is_whole = true;
    for block in 0..BLOCKS {
        let (data, status) = client.read(id, chunk.version, (block * BLOCK) as u32, BLOCK as u32).await;
        if status != Status::OK {
            // A flush keeps what was acknowledged; a block that was just being overwritten may be torn.
            let torn = end == End::SyncedPowerCut && status == Status::CRC && chunk.was_being_changed(block);
            assert!(end.may_lose() || torn, "{name}: chunk {id} block {block}: {status}");
            assert!(matches!(status, Status::CRC | Status::IO | Status::NOCHUNK), "{name}: {status}");
            is_whole = false;
            continue;
        }
        let may_be = if end.may_lose() { &chunk.history[block] } else { &chunk.blocks[block] };
        assert!(may_be.contains(&data), "{name}: chunk {id} block {block} holds what it never should");
        chunk.set(block, data);
    }
    is_whole
}

/// After the master took a torn chunk back, each sector of it is one that was written there.
async fn take_as_it_is(client: &mut Client, id: u64, chunk: &mut ChunkModel, name: &str) {
    const SECTOR: usize = 512;
    for block in 0..BLOCKS {
        let (data, status) = client.read(id, chunk.version, (block * BLOCK) as u32, BLOCK as u32).await;
        assert_eq!(status, Status::OK, "{name}: chunk {id} block {block}");
        for (at, sector) in data.chunks(SECTOR).enumerate() {
            let range = at * SECTOR..(at + 1) * SECTOR;
            let kept = sector.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let fits = |candidate: &Vec<u8>| {
                let candidate = &candidate[range.clone()];
                candidate == sector || (chunk.cut_in == Some(block) && candidate.starts_with(&sector[..kept]))
            };
            assert!(chunk.blocks[block].iter().any(fits), "{name}: chunk {id} block {block} sector {at}");
        }
        chunk.set(block, data);
    }
}

/// Writes, truncates and raises versions until the server dies.
async fn work(bed: Bed, mut master: Master, model: Model, mut seed: Seed) {
    let mut client = bed.client(1).await;
    loop {
        let id = 1 + seed.below(CHUNKS);
        match seed.below(10) {
            0 => {
                let (old, new) = begin_change(&model, id, None);
                if master.set_version(id, new, old).await == Status::OK {
                    model.borrow_mut().get_mut(&id).unwrap().changed();
                }
            }
            1 => {
                let length = seed.below((BLOCKS * BLOCK) as u64) as usize;
                let (old, new) = begin_change(&model, id, Some(length));
                if master.truncate(id, length as u32, new, old).await == Status::OK {
                    model.borrow_mut().get_mut(&id).unwrap().changed();
                }
            }
            _ => session(&mut client, &model, id, &mut seed).await,
        }
    }
}

fn begin_change(model: &Model, id: u64, length: Option<usize>) -> (u32, u32) {
    let mut model = model.borrow_mut();
    let chunk = model.get_mut(&id).unwrap();
    chunk.changing = Some((chunk.version + 1, length));
    chunk.cut_in = length.map(|length| length / BLOCK);
    if let Some(length) = length {
        // A power cut may keep what was cut and lose the new version.
        for block in 0..BLOCKS {
            let content = chunk.after_cut(block, length);
            chunk.history[block].push(content);
        }
    }
    (chunk.version, chunk.version + 1)
}

/// One write session of some pieces, all on their way before the first is acknowledged.
async fn session(client: &mut Client, model: &Model, id: u64, seed: &mut Seed) {
    let version = model.borrow()[&id].version;
    assert_eq!(client.open_write(id, version, &[]).await, Status::OK);
    let mut sent = Vec::new();
    for writeid in 1..=1 + seed.below(8) as u32 {
        let block = seed.below(BLOCKS as u64) as usize;
        let whole = seed.below(3) == 0;
        let offset = if whole { 0 } else { seed.below(BLOCK as u64) as usize };
        let length = if whole { BLOCK } else { 1 + seed.below((BLOCK - offset).min(9000) as u64) as usize };
        let data = noise(seed.next_u64(), length);
        model.borrow_mut().get_mut(&id).unwrap().send(block, offset, &data);
        client.send_piece(id, writeid, block as u16, offset as u16, &data).await;
        sent.push(block);
    }
    for (at, block) in sent.into_iter().enumerate() {
        assert_eq!(client.status().await, (at as u32 + 1, Status::OK));
        model.borrow_mut().get_mut(&id).unwrap().acknowledge(block);
    }
    client.finish_write(id, version).await;
}

#[test]
fn a_file_that_lost_its_tail_serves_what_it_has_and_never_zeros_for_what_it_lost() {
    for io_mode in [IoMode::Direct, IoMode::Buffered] {
        for killed in [true, false] {
            for kept_blocks in [0u64, 2] {
                cut_short(io_mode, killed, kept_blocks);
            }
        }
    }
}

/// A chunk of five blocks, the fourth of zeros, whose file is cut at the border of a block while no server runs.
fn cut_short(io_mode: IoMode, killed: bool, kept_blocks: u64) {
    let name = format!("{io_mode:?}, killed: {killed}, {kept_blocks} blocks kept");
    let world = World::new(5, Settings::default());
    let bed = sim_bed(&world, io_mode);
    let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
    let mut content = noise(1, 5 * BLOCK);
    content[3 * BLOCK..4 * BLOCK].fill(0);
    let (in_it, written) = (bed.clone(), content.clone());
    let before = world.run(control, |_| async move {
        let (running, mut master) = in_it.one_server().await;
        for id in [1, 2] {
            assert_eq!(master.create(id, 1).await, Status::OK);
            in_it.client(1).await.write(id, 1, &[], 0, &written).await;
        }
        // Another one is being written when the server dies, so that its start is an unclean one in any case.
        assert_eq!(in_it.client(1).await.open_write(2, 1, &[]).await, Status::OK);
        in_it.sleep(Duration::from_secs(1)).await;
        if !killed {
            running.stop().await;
        }
        let path = in_it.nodes[1].chunk_path(1, 1).await;
        let file = in_it.nodes[1].ring.open(&path, ring::OpenHow::read_write()).await.unwrap();
        file.set_len(8192 + kept_blocks * BLOCK as u64).await.unwrap();
    });
    assert!(before.is_some(), "{name}");
    if killed {
        world.kill(server);
    }
    let (in_it, case) = (bed.clone(), name.clone());
    let after = world.run(control, |_| async move {
        let (name, (running, mut master)) = (case, in_it.one_server().await);
        let mut client = in_it.client(1).await;
        let kept = kept_blocks as usize * BLOCK;
        let (_, status) = client.read(1, 1, kept as u32, BLOCK as u32).await;
        assert_eq!(status, Status::CRC, "{name}: what was lost is an error");
        let (_, status) = client.read(1, 1, 4 * BLOCK as u32, BLOCK as u32).await;
        assert_eq!(status, Status::CRC, "{name}: to the last block");
        if kept > 0 {
            assert!(client.read_ok(1, 1, 0, kept as u32).await == content[..kept], "{name}: the rest is good");
        }
        let damaged: wire::CstomaChunkDamaged = master.report().await;
        assert_eq!(damaged.chunks, [wire::ChunkId(1)], "{name}: the master hears of it");
        assert_eq!(master.duplicate((3, 1), (1, 1)).await, Status::CRC, "{name}: zeros are not copied either");
        // Written anew, a block is good again, and those around it do not become good by that.
        client.write(1, 1, &[], 4 * BLOCK as u32, &content[4 * BLOCK..]).await;
        assert!(client.read_ok(1, 1, 4 * BLOCK as u32, BLOCK as u32).await == content[4 * BLOCK..], "{name}");
        assert_eq!(client.read(1, 1, 2 * BLOCK as u32, 100).await.1, Status::CRC, "{name}: a hole is no content");
        assert_eq!(in_it.client(1).await.read_ok(2, 1, 0, 5 * BLOCK as u32).await, content, "{name}: another chunk");
        running.stop().await;
    });
    assert!(after.is_some(), "{name}");
}

#[test]
fn what_a_lost_connection_ordered_is_in_the_list_of_the_next_one() {
    let world = World::new(9, Settings::default());
    let bed = sim_bed(&world, IoMode::Direct);
    let (server, control) = (world.node(bed.nodes[1].ip), world.node(bed.nodes[0].ip));
    let in_it = bed.clone();
    let begun = world.run(control, |_| async move {
        let listener = Master::listen(&in_it.nodes[0]);
        let running = in_it.start(1).await;
        let mut master = Master::accept(&in_it.nodes[0].ring, &listener).await;
        assert_eq!(master.create(1, 1).await, Status::OK);
        (listener, running, master)
    });
    let (listener, running, mut master) = begun.unwrap();
    world.break_disk(server, &bed.nodes[1].hdd(), ring::sim::DiskFault::Slow(Duration::from_millis(500)));
    let in_it = bed.clone();
    let ended = world.run(control, |_| async move {
        let order = wire::MatocsSetVersion {
            chunkid: wire::ChunkId(1),
            newversion: wire::Version(2),
            oldversion: wire::Version(1),
        };
        master.send(order).await;
        in_it.sleep(Duration::from_millis(100)).await;
        drop(master);
        let master = Master::accept(&in_it.nodes[0].ring, &listener).await;
        let versions: Vec<u32> = master.listed.iter().map(|report| report.version).collect();
        assert_eq!(versions, [2], "the list waits for the order");
        running.stop().await;
    });
    assert!(ended.is_some());
}
