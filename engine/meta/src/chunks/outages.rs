//! A few chunks, a few servers, and outages of everything at once. One seed decides all.
//!
//! The model knows for each copy which writes it holds, and for each chunk which write was acknowledged last. Servers fall
//! silent or are killed all together, again and again; what they were told is carried out or not, answered or not; the
//! master is killed between its journal, the commands, the answers and the permission. What must hold, at every moment: what a
//! reader is sent to holds every acknowledged write, and as soon as one copy between the last writer's version and the
//! chunk's is here, readers are sent somewhere. docs/versions.md.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use wire::{ChunkId, ChunkReport, Ip4, Status, Version, VersionWord};

use super::*;

const SERVERS: usize = 3;
const CHUNKS: u64 = 4;

#[derive(Default)]
struct Durable(BTreeMap<ChunkId, Facts>);

impl Table for Durable {
    fn facts(&self, chunk: ChunkId) -> Option<Facts> {
        self.0.get(&chunk).copied()
    }
    fn next_chunk(&self, position: u32) -> Option<(u32, ChunkId)> {
        let next = self.0.range(ChunkId(u64::from(position) + 1)..).next()?;
        Some((u32::try_from(next.0.0).expect("few chunks"), *next.0))
    }
    fn next_chunk_id(&self) -> u64 {
        CHUNKS + 1
    }
}

/// A copy: its version, and the number of the last write that it has.
type Held = BTreeMap<ChunkId, (Version, u64)>;

#[derive(Default)]
struct Peer {
    slot: Option<ServerId>,
    held: Held,
    inbox: VecDeque<Command>,
}

struct World {
    random: wire::Seed,
    seed: u64,
    durable: Durable,
    chunks: Chunks,
    peers: Vec<Peer>,
    now: u32,
    /// The last write that was acknowledged.
    acknowledged: BTreeMap<ChunkId, u64>,
    writes: u64,
    story: Vec<String>,
    /// How often a reader was sent to copies below the chunk's version.
    lagging_reads: u64,
}

fn settings() -> Settings {
    Settings { delay_init_seconds: 1, delay_disconnect_seconds: 1, stable_after_seconds: 0, ..Settings::default() }
}

impl World {
    fn new(seed: u64) -> World {
        let facts = Facts { version: Version(1), floor: Version(1), cut: None, locked_to: 0, files: 1, goal: 2 };
        let mut world = World {
            random: wire::Seed(seed),
            seed,
            durable: Durable((1..=CHUNKS).map(|id| (ChunkId(id), facts)).collect()),
            chunks: Chunks::new(settings(), 1000, seed),
            peers: (0..SERVERS).map(|_| Peer::default()).collect(),
            now: 1000,
            acknowledged: BTreeMap::new(),
            writes: 0,
            story: Vec::new(),
            lagging_reads: 0,
        };
        for id in 1..=CHUNKS {
            for peer in 0..2 {
                world.peers[peer].held.insert(ChunkId(id), (Version(1), 0));
            }
        }
        world.come_all();
        world
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random.next_u64() % end
    }

    fn tell(&mut self, text: String) {
        self.story.push(format!("{}: {text}", self.now));
    }

    fn fail(&self, chunk: ChunkId, what: &str) -> ! {
        let copies: Vec<_> = self.peers.iter().map(|peer| (peer.slot, peer.held.get(&chunk))).collect();
        let tail: Vec<&String> =
            self.story.iter().rev().filter(|line| line.contains(&format!("{chunk}")) || line.contains("all")).collect();
        let tail: Vec<&str> = tail.into_iter().take(80).rev().map(String::as_str).collect();
        panic!(
            "seed {}: {what}\n{chunk} {:?}, acknowledged {:?}, copies {copies:?}, {:?}\n{}",
            self.seed,
            self.durable.0[&chunk],
            self.acknowledged.get(&chunk),
            self.chunks.copies(chunk).collect::<Vec<_>>(),
            tail.join("\n")
        );
    }

    /// The master's own half of the effects. `is_killed`: it ends after its journal, before anything leaves.
    fn apply(&mut self, effects: Effects, is_killed: bool) {
        for effect in effects {
            self.tell(format!("{effect:?}"));
            match effect {
                Effect::Send { server, command } if !is_killed => {
                    if let Some(peer) = self.peers.iter_mut().find(|peer| peer.slot == Some(server)) {
                        peer.inbox.push_back(command);
                    }
                }
                Effect::Raise { chunk, version } => {
                    let facts = self.durable.0.get_mut(&chunk).expect("known");
                    assert!(version > facts.version, "no version is used twice");
                    facts.version = version;
                }
                Effect::SetVersion { chunk, version } => {
                    let facts = self.durable.0.get_mut(&chunk).expect("known");
                    if facts.version != version {
                        self.fail(chunk, "another version was taken for the chunk's");
                    }
                    facts.floor = version;
                }
                Effect::Finished { chunk, status } if !is_killed => {
                    if status.is_ok() {
                        self.let_in(chunk);
                    } else {
                        self.durable.0.get_mut(&chunk).expect("known").locked_to = 0;
                    }
                }
                _ => {}
            }
        }
    }

    /// A writer has its permission: it writes to all copies, or is cut short.
    fn let_in(&mut self, chunk: ChunkId) {
        let facts = self.durable.0[&chunk];
        if facts.floor != facts.version {
            self.fail(chunk, "a writer was let in at a version that does not count");
        }
        self.chunks.write_granted(chunk);
        let servers: Vec<ServerId> =
            self.chunks.copies(chunk).filter(|(_, state)| state.is_usable()).map(|copy| copy.0).collect();
        self.writes += 1;
        let number = self.writes;
        let is_cut_short = self.below(4) == 0;
        let mut all = !servers.is_empty();
        for server in servers {
            let fate = self.below(2) == 0;
            let Some(peer) = self.peers.iter_mut().find(|peer| peer.slot == Some(server)) else {
                all = false;
                continue;
            };
            match peer.held.get_mut(&chunk) {
                Some(copy) if copy.0 == facts.version && (!is_cut_short || fate) => copy.1 = number,
                Some(copy) if copy.0 == facts.version => all = false,
                _ => all = false,
            }
        }
        if all {
            self.acknowledged.insert(chunk, number);
        }
        self.tell(format!("{chunk} write {number} {}", if all { "acknowledged" } else { "cut short" }));
        let end = if is_cut_short { self.now + 3 } else { 0 };
        self.durable.0.get_mut(&chunk).expect("known").locked_to = end;
        if end == 0 {
            let mut effects = Vec::new();
            self.chunks.unlocked(chunk, &self.durable, self.now, &mut effects);
            self.apply(effects, false);
        }
    }

    fn come(&mut self, peer: usize) {
        if self.peers[peer].slot.is_some() {
            return;
        }
        let space = Space { used: 1 << 30, total: 1 << 40, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        let number = u16::try_from(peer).expect("few");
        let server = Server::new(number + 1, Ip4(u32::from(number)), 9422, VersionWord::OURS, space);
        let Some(slot) = self.chunks.connect(server) else { return };
        self.tell(format!("all: server {peer} comes"));
        self.peers[peer].slot = Some(slot);
        let report = |(&chunkid, copy): (&ChunkId, &(Version, u64))| ChunkReport { chunkid, version: copy.0.0 };
        let reports: Vec<ChunkReport> = self.peers[peer].held.iter().map(report).collect();
        let mut effects = Vec::new();
        self.chunks.report_chunks(slot, &reports, &self.durable, self.now, &mut effects);
        self.chunks.registered(slot);
        self.count_absent();
        self.apply(effects, false);
        self.check();
    }

    fn come_all(&mut self) {
        let first = usize::try_from(self.below(SERVERS as u64)).expect("few");
        for peer in 0..SERVERS {
            self.come((first + peer) % SERVERS);
        }
    }

    /// The connection ends. What the server was told it does, as far as it comes; nobody hears of it.
    fn go(&mut self, peer: usize) {
        let Some(slot) = self.peers[peer].slot.take() else { return };
        self.tell(format!("all: server {peer} goes"));
        while let Some(command) = self.peers[peer].inbox.pop_front() {
            if self.below(2) == 0 {
                self.carry_out(peer, command);
            }
        }
        self.count_absent();
        let mut effects = Vec::new();
        self.chunks.disconnect(slot, &self.durable, self.now, &mut effects);
        let is_killed = self.below(8) == 0;
        self.apply(effects, is_killed);
        if is_killed {
            self.kill_master();
        }
    }

    fn count_absent(&mut self) {
        let absent = self.peers.iter().filter(|peer| peer.slot.is_none()).count();
        self.chunks.set_absent_servers(absent, 0);
    }

    /// The durable facts stay, all else is gone. Servers find their connections cut.
    fn kill_master(&mut self) {
        self.tell("all: the master is killed".to_owned());
        for peer in 0..SERVERS {
            self.peers[peer].slot = None;
            while let Some(command) = self.peers[peer].inbox.pop_front() {
                if self.below(2) == 0 {
                    self.carry_out(peer, command);
                }
            }
        }
        let seed = self.random.next_u64();
        self.chunks = Chunks::new(settings(), self.now, seed);
        self.count_absent();
    }

    fn carry_out(&mut self, peer: usize, command: Command) -> Status {
        let held = &mut self.peers[peer].held;
        let at = |held: &Held, chunk: ChunkId, version: Version| match held.get(&chunk) {
            None => Status::NOCHUNK,
            Some(copy) if copy.0 != version && version != Version::ANY => Status::WRONGVERSION,
            Some(_) => Status::OK,
        };
        match command {
            Command::SetVersion { chunk, new, old } => {
                let status = at(held, chunk, old);
                if status.is_ok() {
                    held.get_mut(&chunk).expect("it is there").0 = new;
                }
                status
            }
            Command::Delete { chunk, version } => {
                let status = at(held, chunk, version);
                if status.is_ok() {
                    held.remove(&chunk);
                }
                status
            }
            Command::Replicate { chunk, version, source_ip, .. } => {
                let source = usize::try_from(source_ip.0).expect("few");
                match self.peers[source].held.get(&chunk).copied() {
                    Some(copy) if copy.0 == version && self.peers[source].slot.is_some() => {
                        self.peers[peer].held.entry(chunk).or_insert(copy);
                        Status::OK
                    }
                    _ => Status::WRONGVERSION,
                }
            }
            other => panic!("{other:?} is not asked for here"),
        }
    }

    /// A server does what it was told first, and answers.
    fn execute(&mut self, peer: usize, faults: bool) {
        let Some(slot) = self.peers[peer].slot else { return };
        let Some(command) = self.peers[peer].inbox.pop_front() else { return };
        let status = match faults && self.below(10) == 0 {
            true => Status::NOTDONE,
            false => self.carry_out(peer, command),
        };
        self.tell(format!("server {peer}: {command:?} {status}"));
        let (now, mut effects) = (self.now, Vec::new());
        match command {
            Command::SetVersion { chunk, .. } => {
                self.chunks.answer(slot, chunk, Answered::SetVersion, status, &self.durable, now, &mut effects);
            }
            Command::Delete { chunk, .. } => {
                self.chunks.answer_delete(slot, chunk, status, &self.durable, now, &mut effects);
            }
            Command::Replicate { chunk, version, .. } => {
                self.chunks.answer_replicate(slot, chunk, version, status, &self.durable, now, &mut effects);
            }
            other => panic!("{other:?} is not asked for here"),
        }
        let is_killed = faults && self.below(60) == 0;
        self.apply(effects, is_killed);
        if is_killed {
            self.kill_master();
        }
    }

    fn write(&mut self, faults: bool) {
        let chunk = ChunkId(1 + self.below(CHUNKS));
        let (now, mut effects) = (self.now, Vec::new());
        match self.chunks.before_write(chunk, false, false, &self.durable, now) {
            Ok(WriteStep::Grant) => self.let_in(chunk),
            Ok(WriteStep::Operation) => {
                let facts = self.durable.0.get_mut(&chunk).expect("known");
                let old = facts.version;
                facts.version = old.next();
                facts.locked_to = now + LOCK_SECONDS;
                self.chunks.begin_set_version(chunk, old, old.next(), None, &mut effects);
                let is_killed = faults && self.below(30) == 0;
                self.apply(effects, is_killed);
                if is_killed {
                    self.kill_master();
                }
            }
            Err(_) => {}
        }
    }

    fn pass_second(&mut self) {
        self.now += 1;
        for id in 1..=CHUNKS {
            let facts = self.durable.0.get_mut(&ChunkId(id)).expect("known");
            // A lock of 120 s would only make the runs longer.
            if facts.locked_to > self.now + 5 {
                facts.locked_to = self.now + 5;
            }
        }
        for _ in 0..3 {
            let mut effects = Vec::new();
            self.chunks.tick(&self.durable, self.now, Duration::from_millis(333), &mut effects);
            self.apply(effects, false);
        }
    }

    /// What holds at every moment.
    fn check(&mut self) {
        for id in 1..=CHUNKS {
            let chunk = ChunkId(id);
            let facts = self.durable.0[&chunk];
            let acknowledged = self.acknowledged.get(&chunk).copied().unwrap_or(0);
            for peer in &self.peers {
                if let Some(&(version, write)) = peer.held.get(&chunk)
                    && version >= facts.floor
                    && write < acknowledged
                {
                    self.fail(chunk, "a copy of a good version lacks what was acknowledged");
                }
            }
            match self.chunks.before_read(chunk, &self.durable, self.now) {
                Ok(()) => {}
                Err(_) => continue,
            }
            let shown = self.chunks.locations(chunk, Ip4(99), &self.durable, self.now);
            let (version, shown) = shown.unwrap_or((facts.version, Vec::new()));
            for location in &shown {
                let peer = &self.peers[usize::try_from(location.ip.0).expect("few")];
                match peer.held.get(&chunk) {
                    Some(&(of, write)) if of == version && write >= acknowledged => {}
                    _ => self.fail(chunk, "a reader is sent to a copy that lacks something"),
                }
            }
            self.lagging_reads += u64::from(!shown.is_empty() && version != facts.version);
            let here = |peer: &&Peer| {
                let usable = |slot| self.chunks.copies(chunk).any(|(at, _)| at == slot);
                peer.slot.is_some_and(usable) && peer.held.get(&chunk).is_some_and(|copy| copy.0 >= facts.floor)
            };
            let pending = self.peers.iter().any(|peer| !peer.inbox.is_empty());
            if shown.is_empty() && !pending && self.peers.iter().any(|peer| here(&peer)) {
                self.fail(chunk, "a good copy is here, and readers are sent nowhere");
            }
        }
    }

    fn disturb(&mut self) {
        let peer = usize::try_from(self.below(SERVERS as u64)).expect("few");
        match self.below(100) {
            0..25 => self.write(true),
            25..75 => self.execute(peer, true),
            75..87 => self.pass_second(),
            87..89 => self.go(peer),
            89..90 => (0..SERVERS).for_each(|peer| self.go(peer)),
            90..91 => self.kill_master(),
            _ => self.come(peer),
        }
        self.check();
    }
}

fn run(seed: u64) -> u64 {
    let mut world = World::new(seed);
    for _ in 0..600 {
        world.disturb();
    }
    // All go; one comes back at a time, and after each of them what is there is readable.
    (0..SERVERS).for_each(|peer| world.go(peer));
    world.come_all();
    for _ in 0..80 {
        for peer in 0..SERVERS {
            while !world.peers[peer].inbox.is_empty() {
                world.execute(peer, false);
            }
        }
        world.pass_second();
        world.check();
    }
    for id in 1..=CHUNKS {
        let chunk = ChunkId(id);
        let facts = world.durable.0[&chunk];
        let good = world.peers.iter().filter(|peer| peer.held.get(&chunk).is_some_and(|copy| copy.0 == facts.version));
        let good = good.count();
        if good != usize::from(facts.goal) || facts.floor != facts.version {
            world.fail(chunk, "in peace it is not as wanted");
        }
    }
    world.lagging_reads
}

#[test]
fn what_was_acknowledged_is_readable_with_the_first_good_copy_after_any_outage() {
    let lagging: u64 = (1..=60).map(run).sum();
    assert!(lagging > 100, "copies behind the chunk's version were read {lagging} times");
}
