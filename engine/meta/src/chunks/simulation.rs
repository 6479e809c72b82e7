//! A cluster of pretended chunkservers under random events. One seed decides everything.
//!
//! What must hold: a deletion never leaves fewer intact copies than wanted; a good copy is never believed bad for ever;
//! when peace comes, every chunk has as many copies as it wants, unused chunks are gone, unknown ones are still there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use wire::{ChunkId, ChunkReport, Ip4, Status, Version, VersionWord};

use super::*;

#[derive(Default)]
struct Durable {
    facts: BTreeMap<ChunkId, Facts>,
    next: u64,
}

impl Table for Durable {
    fn facts(&self, chunk: ChunkId) -> Option<Facts> {
        self.facts.get(&chunk).copied()
    }
    fn next_chunk(&self, position: u32) -> Option<(u32, ChunkId)> {
        let next = self.facts.range(ChunkId(u64::from(position) + 1)..).next().map(|(&chunk, _)| chunk)?;
        Some((u32::try_from(next.0).expect("few chunks"), next))
    }
    fn next_chunk_id(&self) -> u64 {
        self.next
    }
}

/// A pretended chunkserver.
#[derive(Default)]
struct Peer {
    slot: Option<ServerId>,
    held: BTreeMap<ChunkId, Version>,
    damaged: BTreeSet<ChunkId>,
    inbox: VecDeque<Command>,
}

struct Cluster {
    seed: wire::Seed,
    durable: Durable,
    chunks: Chunks,
    peers: Vec<Peer>,
    now: u32,
    /// What happened, newest last, for the message of a failure.
    story: VecDeque<String>,
    quarantined: BTreeSet<(ChunkId, usize)>,
}

const SERVERS: usize = 5;

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let settings =
            Settings { delay_init_seconds: 5, delay_disconnect_seconds: 2, sweep_seconds: 5, ..Settings::default() };
        let mut cluster = Cluster {
            seed: wire::Seed(seed),
            durable: Durable { facts: BTreeMap::new(), next: 1 },
            chunks: Chunks::new(settings, 1000, seed),
            peers: (0..SERVERS).map(|_| Peer::default()).collect(),
            now: 1000,
            story: VecDeque::new(),
            quarantined: BTreeSet::new(),
        };
        for peer in 0..SERVERS {
            cluster.connect(peer);
        }
        cluster
    }

    fn tell(&mut self, text: String) {
        self.story.push_back(format!("{}: {text}", self.now));
        if self.story.len() > 50_000 {
            self.story.pop_front();
        }
    }

    /// What happened to one chunk, and to the servers.
    fn story_of(&self, chunk: ChunkId) -> String {
        let id = chunk.to_string();
        let told =
            self.story.iter().filter(|line| line.contains(&id) || line.contains("server") && line.ends_with('s'));
        told.cloned().collect::<Vec<_>>().join("\n")
    }

    fn peer_of(&self, slot: ServerId) -> Option<usize> {
        self.peers.iter().position(|peer| peer.slot == Some(slot))
    }

    /// Intact copies of the present version on connected servers that no deletion is on its way to.
    fn intact(&self, chunk: ChunkId) -> usize {
        let version = self.durable.facts[&chunk].version;
        let dying =
            |peer: &Peer| peer.inbox.iter().any(|c| matches!(c, Command::Delete { chunk: c, .. } if *c == chunk));
        self.peers
            .iter()
            .filter(|peer| peer.slot.is_some() && peer.held.get(&chunk) == Some(&version))
            .filter(|peer| !peer.damaged.contains(&chunk) && !dying(peer))
            .count()
    }

    fn apply(&mut self, effects: Effects) {
        for effect in effects {
            self.tell(format!("{effect:?}"));
            match effect {
                Effect::Send { server, command } => {
                    let Some(peer) = self.peer_of(server) else { continue };
                    self.peers[peer].inbox.push_back(command);
                    if let Command::Delete { chunk, .. } = command {
                        self.check_deletion(chunk, peer);
                    }
                }
                Effect::Raise { chunk, version } => {
                    let facts = self.durable.facts.get_mut(&chunk).expect("known");
                    assert!(version > facts.version, "versions only rise\n{}", self.story_of(chunk));
                    facts.version = version;
                }
                Effect::SetVersion { chunk, version } => {
                    let facts = self.durable.facts.get_mut(&chunk).expect("known");
                    (facts.version, facts.floor, facts.cut) = (version, version, None);
                }
                Effect::RemoveRecord { chunk, version } => {
                    let gone = self.durable.facts.remove(&chunk).expect("known");
                    assert_eq!((gone.files, gone.version), (0, version));
                }
                Effect::RaiseNextChunkId { next } => self.durable.next = self.durable.next.max(next),
                Effect::Finished { chunk, status } => {
                    // The client writes, and lets go after a while.
                    if let Some(facts) = self.durable.facts.get_mut(&chunk) {
                        facts.locked_to = if status.is_ok() { self.now + 2 } else { 0 };
                        if status.is_ok() {
                            self.chunks.write_granted(chunk);
                        } else if facts.version == Version(1) {
                            facts.files = 0; // the file's slot is rolled back
                        }
                    }
                }
                Effect::Wake { .. } | Effect::Notice(_) => {}
            }
        }
    }

    fn check_deletion(&self, chunk: ChunkId, peer: usize) {
        assert!(!self.quarantined.contains(&(chunk, peer)), "{chunk} is quarantined\n{}", self.story_of(chunk));
        let Some(facts) = self.durable.facts.get(&chunk) else { return };
        let was_good =
            self.peers[peer].held.get(&chunk) == Some(&facts.version) && !self.peers[peer].damaged.contains(&chunk);
        if facts.files > 0 && was_good {
            let left = self.intact(chunk);
            assert!(left >= 1, "{chunk} loses its last copy\n{}", self.story_of(chunk));
        }
    }

    fn connect(&mut self, peer: usize) {
        self.tell(format!("server {peer} comes"));
        let space = Space { used: 1 << 30, total: 1 << 40, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
        let ip = Ip4(0x0A00_0000 + u32::try_from(peer).expect("small"));
        let csid = u16::try_from(peer).expect("small") + 1;
        let server = Server::new(csid, ip, 9422, VersionWord::OURS, space);
        let Some(slot) = self.chunks.connect(server) else { return };
        self.peers[peer].slot = Some(slot);
        let reports: Vec<ChunkReport> = self.peers[peer]
            .held
            .iter()
            .filter(|(chunk, _)| !self.peers[peer].damaged.contains(chunk))
            .map(|(&chunkid, version)| ChunkReport { chunkid, version: version.0 })
            .collect();
        let mut effects = Vec::new();
        self.chunks.report_chunks(slot, &reports, &self.durable, self.now, &mut effects);
        self.apply(effects);
        let damaged: Vec<ChunkId> = self.peers[peer].damaged.iter().copied().collect();
        let mut effects = Vec::new();
        self.chunks.report_damaged(slot, &damaged, &self.durable, self.now, &mut effects);
        self.chunks.registered(slot);
        self.count_absent();
        self.apply(effects);
    }

    fn disconnect(&mut self, peer: usize) {
        let Some(slot) = self.peers[peer].slot.take() else { return };
        self.tell(format!("server {peer} goes"));
        self.peers[peer].inbox.clear();
        self.count_absent();
        let mut effects = Vec::new();
        self.chunks.disconnect(slot, &self.durable, self.now, &mut effects);
        self.apply(effects);
    }

    fn count_absent(&mut self) {
        let absent = self.peers.iter().filter(|peer| peer.slot.is_none()).count();
        self.chunks.set_absent_servers(absent, 0);
    }

    /// The peer executes one command and answers. `fault`: it may fail.
    fn execute(&mut self, peer: usize, fault: bool) {
        let Some(slot) = self.peers[peer].slot else { return };
        let Some(command) = self.peers[peer].inbox.pop_front() else { return };
        let chance = self.seed.below(100);
        let forced = match chance {
            0..4 if fault => Some(Status::NOTDONE),
            4..8 if fault => Some(Status::IO),
            _ => None,
        };
        let (now, mut effects) = (self.now, Vec::new());
        let held = &mut self.peers[peer].held;
        let at = |held: &BTreeMap<ChunkId, Version>, chunk: ChunkId, version: Version| match held.get(&chunk) {
            None => Status::NOCHUNK,
            Some(&present) if present != version && version != Version::ANY => Status::WRONGVERSION,
            Some(_) => Status::OK,
        };
        match command {
            Command::Create { chunk, version } => {
                let status = forced.unwrap_or(Status::OK);
                if status.is_ok() {
                    held.insert(chunk, version);
                }
                self.chunks.answer(slot, chunk, Answered::Create, status, &self.durable, now, &mut effects);
            }
            Command::Delete { chunk, version } => {
                let status = forced.unwrap_or(at(held, chunk, version));
                if status.is_ok() {
                    held.remove(&chunk);
                    self.peers[peer].damaged.remove(&chunk);
                }
                self.chunks.answer_delete(slot, chunk, status, &self.durable, now, &mut effects);
            }
            Command::SetVersion { chunk, new, old } | Command::Truncate { chunk, new, old, .. } => {
                let status = forced.unwrap_or(at(held, chunk, old));
                // An error other than NOTDONE leaves either version behind.
                if status.is_ok() || (status == Status::IO && self.seed.below(2) == 0 && held.contains_key(&chunk)) {
                    held.insert(chunk, new);
                }
                let answered = match command {
                    Command::SetVersion { .. } => Answered::SetVersion,
                    _ => Answered::Truncate,
                };
                self.chunks.answer(slot, chunk, answered, status, &self.durable, now, &mut effects);
            }
            Command::Duplicate { new, new_version, old, old_version }
            | Command::DuplicateTruncate { new, new_version, old, old_version, .. } => {
                let status = forced.unwrap_or(at(held, old, old_version));
                if status.is_ok() {
                    held.insert(new, new_version);
                }
                self.chunks.answer(slot, new, Answered::Duplicate, status, &self.durable, now, &mut effects);
            }
            Command::Replicate { chunk, version, source_ip, .. } => {
                let source = usize::try_from(source_ip.0 - 0x0A00_0000).expect("small");
                let there = self.peers[source].held.get(&chunk) == Some(&version)
                    && !self.peers[source].damaged.contains(&chunk);
                let status = match forced {
                    Some(status) => status,
                    None if !there => Status::WRONGVERSION,
                    None if self.peers[peer].held.contains_key(&chunk) => Status::CHUNKEXIST,
                    None => Status::OK,
                };
                if status.is_ok() {
                    self.peers[peer].held.insert(chunk, version);
                }
                self.chunks.answer_replicate(slot, chunk, version, status, &self.durable, now, &mut effects);
            }
        }
        self.tell(format!("server {peer} did {command:?}"));
        self.apply(effects);
    }

    fn write(&mut self, chunk: ChunkId) {
        let mut effects = Vec::new();
        if self.chunks.before_write(chunk, false, false, &self.durable, self.now) == Ok(WriteStep::Operation) {
            let facts = self.durable.facts.get_mut(&chunk).expect("known");
            let old = facts.version;
            facts.version = old.next();
            let cut = facts.cut;
            facts.locked_to = self.now + LOCK_SECONDS;
            self.tell(format!("write {chunk}"));
            self.chunks.begin_set_version(chunk, old, old.next(), cut, &mut effects);
        }
        self.apply(effects);
    }

    fn create(&mut self, goal: u8) {
        let Ok(targets) = self.chunks.choose(usize::from(goal), None, Ip4(0), self.now) else { return };
        let chunk = ChunkId(self.durable.next);
        self.durable.next += 1;
        let facts = Facts {
            version: Version(1),
            floor: Version(1),
            cut: None,
            locked_to: self.now + LOCK_SECONDS,
            files: 1,
            goal,
        };
        self.durable.facts.insert(chunk, facts);
        let mut effects = Vec::new();
        self.tell(format!("create {chunk} goal {goal}"));
        self.chunks.begin_create(chunk, Version(1), &targets, &mut effects);
        self.apply(effects);
    }

    fn some_chunk(&mut self) -> Option<ChunkId> {
        let count = self.durable.facts.len() as u64;
        let pick = self.seed.below(count.max(1));
        self.durable.facts.keys().nth(usize::try_from(pick).expect("small")).copied()
    }

    fn pass_time(&mut self) {
        self.now += 1;
        let expired: Vec<ChunkId> = self
            .durable
            .facts
            .iter()
            .filter(|(_, facts)| facts.locked_to != 0 && facts.locked_to <= self.now + 1 && facts.files > 0)
            .map(|(&chunk, _)| chunk)
            .collect();
        let mut effects = Vec::new();
        for chunk in expired {
            // Clients unlock; sometimes one forgets and the lock runs out.
            if self.seed.below(10) > 0 {
                self.durable.facts.get_mut(&chunk).expect("known").locked_to = 0;
                self.chunks.unlocked(chunk, &self.durable, self.now, &mut effects);
            }
        }
        self.apply(effects);
        for _ in 0..3 {
            let mut effects = Vec::new();
            // What a tick begins with is the end of the walk over lost copies.
            let rest = self.chunks.rest(self.now).filter(|rest| *rest != Rest::Departing);
            self.chunks.tick(&self.durable, self.now, Duration::from_millis(333), &mut effects);
            if rest.is_some() {
                let moves = |command| matches!(command, Command::Replicate { .. } | Command::Delete { .. });
                let acted =
                    effects.iter().any(|effect| matches!(effect, Effect::Send { command, .. } if moves(*command)));
                assert!(!acted, "the planner rests: {rest:?}, {effects:?}");
            }
            self.apply(effects);
        }
    }

    fn disturb(&mut self) {
        let peer = usize::try_from(self.seed.below(SERVERS as u64)).expect("small");
        match self.seed.below(100) {
            0..15 => {
                let goal = 1 + u8::try_from(self.seed.below(3)).expect("small");
                self.create(goal);
            }
            15..30 => {
                if let Some(chunk) = self.some_chunk().filter(|chunk| self.durable.facts[chunk].files > 0) {
                    self.write(chunk);
                }
            }
            30..33 => {
                if let Some(chunk) = self.some_chunk() {
                    self.durable.facts.get_mut(&chunk).expect("known").files = 0;
                    self.tell(format!("drop {chunk}"));
                    let mut effects = Vec::new();
                    self.chunks.touched(chunk, &self.durable, self.now, &mut effects);
                    self.apply(effects);
                }
            }
            33..37 => {
                if let Some(chunk) = self.some_chunk() {
                    let goal = 1 + u8::try_from(self.seed.below(4)).expect("small");
                    self.durable.facts.get_mut(&chunk).expect("known").goal = goal;
                    self.tell(format!("{chunk} wants {goal}"));
                    let mut effects = Vec::new();
                    self.chunks.touched(chunk, &self.durable, self.now, &mut effects);
                    self.apply(effects);
                }
            }
            37..39 => self.disconnect(peer),
            39..43 if self.peers[peer].slot.is_none() => self.connect(peer),
            43..44 => self.damage(peer),
            44..65 => self.pass_time(),
            _ => self.execute(peer, true),
        }
    }

    /// One copy goes bad, if another intact one stays.
    fn damage(&mut self, peer: usize) {
        let Some(slot) = self.peers[peer].slot else { return };
        let Some(chunk) = self.peers[peer].held.keys().next_back().copied() else { return };
        if !self.durable.facts.contains_key(&chunk) || self.intact(chunk) < 2 {
            return;
        }
        self.peers[peer].damaged.insert(chunk);
        self.tell(format!("{chunk} rots on {peer}"));
        let mut effects = Vec::new();
        self.chunks.report_damaged(slot, &[chunk], &self.durable, self.now, &mut effects);
        self.apply(effects);
    }

    /// Every server is there, nothing fails, clients rest.
    fn peace(&mut self) {
        // A copy whose fate an error left open is told by its server when it comes back.
        for peer in 0..SERVERS {
            self.disconnect(peer);
        }
        self.pass_time();
        for peer in 0..SERVERS {
            self.connect(peer);
        }
        for _ in 0..200 {
            for peer in 0..SERVERS {
                while !self.peers[peer].inbox.is_empty() {
                    self.execute(peer, false);
                }
            }
            self.pass_time();
        }
    }
}

fn run(seed: u64, steps: usize) {
    let mut cluster = Cluster::new(seed);
    let foreign = ChunkId(700);
    cluster.peers[2].held.insert(foreign, Version(4));
    cluster.quarantined.insert((foreign, 2));
    for _ in 0..steps {
        cluster.disturb();
    }
    cluster.peace();
    let Cluster { durable, chunks, peers, .. } = &cluster;
    for (&chunk, facts) in &durable.facts {
        let intact = cluster.intact(chunk);
        let somewhere =
            peers.iter().any(|peer| peer.held.get(&chunk) == Some(&facts.version) && !peer.damaged.contains(&chunk));
        assert!(facts.files > 0, "seed {seed}: unused {chunk} still has a record\n{}", cluster.story_of(chunk));
        if somewhere {
            assert_eq!(
                intact,
                usize::from(facts.goal),
                "seed {seed}: {chunk} {facts:?} {:?}\n{}",
                chunks.copies(chunk).collect::<Vec<_>>(),
                cluster.story_of(chunk)
            );
        }
    }
    for (number, peer) in peers.iter().enumerate() {
        for chunk in peer.held.keys() {
            let known = durable.facts.contains_key(chunk);
            let kept =
                chunks.quarantined().any(|entry| entry.0 == *chunk) || cluster.quarantined.contains(&(*chunk, number));
            assert!(known || kept, "seed {seed}: {chunk} lies forgotten on {number}\n{}", cluster.story_of(*chunk));
        }
    }
    assert_eq!(peers[2].held.get(&foreign), Some(&Version(4)), "seed {seed}: the unknown chunk is kept");
    for (_, server) in chunks.servers().iter() {
        let counters = (server.replications_in, server.replications_out, server.deletions, server.writes);
        assert_eq!(counters, (0, 0, 0, 0), "seed {seed}: counters return to zero");
    }
}

#[test]
fn no_last_copy_goes_and_every_goal_is_reached_when_peace_comes() {
    for seed in 1..=20 {
        run(seed, 1000);
    }
}
