//! What the master knows, and how a change there reaches those whom it concerns.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use ::charts::Charts;
use meta::Namespace;
use meta::chunks::{Chunks, Command, Effect, Effects, Notice, ServerId};
use ring::local::{OneshotReceiver, OneshotSender, oneshot};
use tracing::{debug, error, info, warn};
use wire::{
    ChunkId, Ip4, MatocsCreate, MatocsDelete, MatocsDuplicate, MatocsDuptrunc, MatocsReplicate, MatocsSetVersion,
    MatocsTruncate, Packet, SessionId, Status, Time,
};

use super::charts::{self, Tally, Work};
use super::chunk_loop::ChunkLoop;
use super::chunkserver;
use super::client::{self, cache::DataCache};
use super::exports::Exports;
use super::file_check::FileCheck;
use super::heavy_load::Grace;
use super::images::LastImage;
use super::journal::Queue;
use super::metalogger::Loggers;
use super::overview::Passes;
use super::recovery::Loaded;
use super::settings::{Reserve, Settings};
use crate::connection::{KeepAlive, Outbox};

/// Rounds of effects after one event. Each round is the consequence of the one before; more than a few are a loop.
const ROUNDS_MAX: usize = 1000;
/// A noisy kind of notice is logged this often in a minute.
const NOTICES_PER_MINUTE: u32 = 10;
/// The maintenance of a server that announced its restart, in the list of chunkservers. Spec 40, 4.
const MAINTENANCE_TEMPORARY: u8 = 2;

pub(super) struct Core {
    pub(super) namespace: Namespace,
    pub(super) chunks: Chunks,
    pub(super) settings: Settings,
    pub(super) exports: Exports,
    pub(super) journal: Queue,
    pub(super) clients: BTreeMap<u64, client::Link>,
    pub(super) servers: BTreeMap<ServerId, chunkserver::Link>,
    pub(super) loggers: Loggers,
    pub(super) cache: DataCache,
    /// Requests that found their chunk locked or busy, in order of arrival. Spec 41, 5.2.
    pub(super) parked: BTreeMap<ChunkId, BTreeMap<u64, Parked>>,
    /// Those who wait for the end of an operation that they asked for.
    pub(super) waiting: BTreeMap<ChunkId, Waiting>,
    /// Sessions that a client closed; they go at the next look. Spec 30, 4.5.
    pub(super) closed_sessions: BTreeSet<SessionId>,
    /// New chunks whose writers the last master did not hear the end of, with what was in their place. See `client::data`.
    pub(super) newborn_chunks: BTreeMap<ChunkId, Option<ChunkId>>,
    /// Who was granted a chunk last, as long as it is locked: for people who ask.
    pub(super) writers: BTreeMap<ChunkId, SessionId>,
    pub(super) operations: client::operations::Operations,
    pub(super) tally: Tally,
    pub(super) grace: Grace,
    pub(super) passes: Passes,
    pub(super) chunk_loop: ChunkLoop,
    pub(super) file_check: FileCheck,
    pub(super) charts: Charts,
    /// `None` before the charts' task has begun.
    pub(super) account: Option<charts::Account>,
    pub(super) cpu: charts::CpuUse,
    pub(super) started: u32,
    pub(super) last_image: LastImage,
    /// Known chunkservers that are away, since when this master misses them.
    pub(super) absent_since: BTreeMap<(Ip4, u16), u32>,
    pub(super) effects: Effects,
    /// When the handler that runs now began: the time of the changes that it makes.
    pub(super) time: Time,
    next_number: u64,
    notices: (u32, u32),
    /// Unknown chunks that were told of last.
    quarantined_told: usize,
    /// Room for the next listing to begin with.
    pub(super) listing_bytes: usize,
}

/// A request that waits for a chunk.
pub(super) struct Parked {
    pub(super) connection: u64,
    pub(super) woken: OneshotSender<()>,
}

/// A client's request in progress.
pub(super) struct Waiting {
    pub(super) connection: u64,
    pub(super) ended: OneshotSender<Status>,
}

impl Core {
    pub(super) fn new(loaded: Loaded, settings: Settings, exports: Exports, now: u32, seed: u64) -> Core {
        let mut chunks = Chunks::new(settings.chunks.clone(), now, seed);
        for chunk in loaded.deleted_chunks {
            chunks.remember_deleted(chunk);
        }
        for &chunk in &loaded.unfinished_chunks {
            chunks.remember_unfinished(chunk);
        }
        let mut journal = Queue::new(loaded.journal_version);
        journal.remember(loaded.tail, now);
        Core {
            journal,
            namespace: loaded.namespace,
            chunks,
            settings,
            exports,
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            loggers: Loggers::default(),
            cache: DataCache::default(),
            parked: BTreeMap::new(),
            waiting: BTreeMap::new(),
            closed_sessions: BTreeSet::new(),
            newborn_chunks: loaded.newborn_chunks,
            writers: BTreeMap::new(),
            operations: client::operations::Operations::default(),
            tally: Tally::default(),
            grace: Grace::default(),
            passes: Passes::default(),
            chunk_loop: ChunkLoop::default(),
            file_check: FileCheck::default(),
            charts: Charts::new(&charts::KIND, 0), // those of this folder are loaded next
            account: None,
            cpu: charts::CpuUse::default(),
            started: now,
            last_image: LastImage::default(),
            absent_since: BTreeMap::new(),
            effects: Effects::new(),
            time: Time::from(now),
            next_number: 1,
            notices: (0, 0),
            quarantined_told: 0,
            listing_bytes: 0,
        }
    }

    /// After loading, before anybody is served.
    pub(super) fn start(&mut self) {
        let time = self.time;
        self.count_absent_servers();
        // Nobody was told of these.
        for (chunk, inode, index) in self.namespace.unattached_chunks() {
            self.must(chunk, |namespace| namespace.rollback(time, inode, index, None, chunk));
        }
        let connected: Vec<SessionId> =
            self.namespace.sessions().filter(|(_, session)| session.disconnected == 0).map(|(id, _)| id).collect();
        for session in connected {
            // Nobody is connected after a start; the time until they are forgotten begins now.
            let _ = self.namespace.session_disconnected(self.time, session);
        }
    }

    /// A number that no other connection or request has.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The consequences of what a handler did. Returns whether there are lines to write.
    pub(super) fn settle(&mut self, now: u32) -> bool {
        for round in 0.. {
            for inode in self.namespace.take_removed_inodes() {
                self.cache.forget(inode);
            }
            for chunk in self.namespace.take_released_chunks() {
                self.chunks.touched(chunk, &self.namespace, now, &mut self.effects);
            }
            for chunk in self.namespace.take_touched_chunks() {
                self.chunks.touched(chunk, &self.namespace, now, &mut self.effects);
            }
            if self.effects.is_empty() {
                break;
            }
            assert!(round < ROUNDS_MAX, "effects cause effects without end");
            for effect in std::mem::take(&mut self.effects) {
                self.apply(effect, now);
            }
        }
        client::locks::deliver(self);
        self.journal.take_from(&mut self.namespace)
    }

    fn apply(&mut self, effect: Effect, now: u32) {
        let time = self.time;
        match effect {
            Effect::Send { server, command } => self.send_command(server, command),
            Effect::Raise { chunk, version } => {
                self.must(chunk, |namespace| namespace.raise_chunk(time, chunk, version));
            }
            // A file that was cut meanwhile does not take its own copy of a shared chunk: whoever waits is told.
            Effect::SetVersion { chunk, version } => {
                if let Err(status) = self.namespace.set_chunk_version(time, chunk, version) {
                    debug!(%chunk, %status, "what was begun with the chunk cannot be ended");
                }
            }
            Effect::RemoveRecord { chunk, version } => {
                self.must(chunk, |namespace| namespace.chunk_delete(time, chunk, version));
            }
            Effect::RaiseNextChunkId { next } => {
                if next > self.namespace.next_chunk_id().0 {
                    self.must(ChunkId(next), |namespace| namespace.raise_next_chunk_id(time, ChunkId(next)));
                }
            }
            Effect::Finished { chunk, status } => {
                if let Some(waiting) = self.waiting.remove(&chunk) {
                    let _ = waiting.ended.send(status); // a client that went away does its rollback itself
                }
            }
            Effect::Wake { chunk } => {
                for (_, parked) in self.parked.remove(&chunk).unwrap_or_default() {
                    let _ = parked.woken.send(()); // it may have run out of time just now
                }
            }
            Effect::Notice(notice) => self.log_notice(notice, now),
        }
    }

    /// A change that the chunk table's own facts allow.
    fn must(&mut self, chunk: ChunkId, change: impl FnOnce(&mut Namespace) -> Result<(), Status>) {
        if let Err(status) = change(&mut self.namespace) {
            error!(%chunk, %status, "the chunk table refuses a change that was planned from it");
        }
    }

    fn log_notice(&mut self, notice: Notice, now: u32) {
        if self.notices.0 != now / 60 {
            self.notices = (now / 60, 0);
        }
        self.notices.1 += 1;
        if self.notices.1 > NOTICES_PER_MINUTE {
            return;
        }
        let name = |server: ServerId| {
            self.chunks
                .servers()
                .get(server)
                .map_or_else(String::new, |server| format!("{}:{}", server.ip, server.port))
        };
        match notice {
            Notice::Quarantined { server, chunk, version } => {
                warn!(%chunk, %version, server = name(server), "a chunkserver has a chunk that the metadata does not know; it is kept");
            }
            Notice::ChunkIdOutOfRange { server, chunk } => {
                warn!(%chunk, server = name(server), "a chunkserver reports a nonsensical chunk id; ignored");
            }
            Notice::VersionAdopted { chunk, from, to } => {
                warn!(%chunk, %from, %to, "no copy had the right version; copies one version off were taken");
            }
            Notice::TakenBack { chunk, server } => {
                warn!(%chunk, server = name(server), "every copy is damaged; this one is asked whether it counts all the same");
            }
            Notice::Unavailable { chunk, other_copies } => {
                warn!(%chunk, other_copies, "a file's chunk has no valid copy");
            }
            Notice::UnexpectedAnswer { server, chunk } => {
                debug!(%chunk, server = name(server), "an answer that nobody waited for");
            }
        }
    }

    /// Commands wait until everything that was decided before is durable: a deletion, above all, must not overtake it.
    fn send_command(&mut self, server: ServerId, command: Command) {
        let Some(link) = self.servers.get(&server) else { return };
        self.tally.sent(work_of(command));
        let packet = encode_command(command);
        let version = self.namespace.version();
        if self.journal.is_durable(version) {
            link.outbox.push(&packet);
        } else {
            self.journal.send_when_durable(version, &link.outbox, packet, None);
        }
    }

    /// Sends an answer; if this handler changed something, once that is durable.
    pub(super) fn reply(&mut self, outbox: &Rc<Outbox>, packet: Vec<u8>) {
        if self.namespace.journal_is_empty() {
            outbox.push_owned(packet);
        } else {
            self.journal.send_when_durable(self.namespace.version(), outbox, packet, None);
        }
    }

    /// Sends the answer to one who asked for a change. If nothing had to be changed, another's change may be why, and
    /// that must be durable too: who is told that a name exists, or that a lock is his, takes it for done.
    pub(super) fn reply_behind_all(&mut self, outbox: &Rc<Outbox>, packet: Vec<u8>) {
        let version = self.namespace.version();
        if self.journal.is_durable(version) {
            outbox.push_owned(packet);
        } else {
            self.journal.send_when_durable(version, outbox, packet, None);
        }
    }

    /// As `reply`; from then on the connection is kept alive.
    pub(super) fn reply_and_keep_alive(&mut self, outbox: &Rc<Outbox>, packet: Vec<u8>, keep_alive: KeepAlive) {
        if self.namespace.journal_is_empty() {
            outbox.push(&packet);
            outbox.keep_alive(keep_alive);
        } else {
            self.journal.send_when_durable(self.namespace.version(), outbox, packet, Some(keep_alive));
        }
    }

    /// A request waits until this chunk is free. Returns its ticket, for `unpark`, and what wakes it.
    pub(super) fn park(&mut self, chunk: ChunkId, connection: u64) -> (u64, OneshotReceiver<()>) {
        let ticket = self.number();
        let (sender, woken) = oneshot();
        self.parked.entry(chunk).or_default().insert(ticket, Parked { connection, woken: sender });
        (ticket, woken)
    }

    /// Wakes the requests whose chunk is free because its lock ran out: no event tells of that.
    pub(super) fn wake_unlocked(&mut self, now: u32) {
        let is_free = |chunk: &ChunkId| self.chunks.before_read(*chunk, &self.namespace, now).is_ok();
        let free: Vec<ChunkId> = self.parked.keys().copied().filter(is_free).collect();
        self.effects.extend(free.into_iter().map(|chunk| Effect::Wake { chunk }));
    }

    /// The request gave up waiting.
    pub(super) fn unpark(&mut self, chunk: ChunkId, ticket: u64) {
        if let Some(parked) = self.parked.get_mut(&chunk) {
            parked.remove(&ticket);
            if parked.is_empty() {
                self.parked.remove(&chunk);
            }
        }
    }

    /// Those who let go of their chunk, or whose time is over, are no writers any more.
    pub(super) fn forget_writers(&mut self, now: u32) {
        let Core { writers, namespace, .. } = self;
        writers.retain(|chunk, _| namespace.chunk(*chunk).is_some_and(|record| record.is_locked(now)));
    }

    /// Ends the connections of clients and chunkservers. Metaloggers stay: the last lines are still to come.
    pub(super) fn cut_all(&mut self) {
        let clients = self.clients.values().map(|link| &link.outbox);
        let servers = self.servers.values().map(|link| &link.outbox);
        for outbox in clients.chain(servers) {
            outbox.close();
        }
    }

    /// How many known chunkservers are away decides what may be called lost. Spec 41, 2.
    pub(super) fn count_absent_servers(&mut self) {
        let connected: BTreeSet<u16> = self.chunks.servers().iter().map(|(_, server)| server.csid).collect();
        let (mut absent, mut in_maintenance, mut expected) = (0, 0, BTreeSet::new());
        for (_, entry) in self.namespace.servers() {
            if entry.maintenance == MAINTENANCE_TEMPORARY {
                expected.insert(entry.csid);
            }
            if !connected.contains(&entry.csid) {
                absent += 1;
                in_maintenance += usize::from(entry.maintenance != 0);
            }
        }
        self.chunks.set_absent_servers(absent, in_maintenance);
        self.chunks.set_expected_servers(expected);
    }

    /// Bytes in all, free, and free for clients. Spec 31, 31.3.
    pub(super) fn space(&self) -> (u64, u64, u64) {
        let (total, used) = self.chunks.servers().space();
        let free = total.saturating_sub(used);
        let largest = |value: fn(&meta::chunks::Server) -> u64| {
            self.chunks.servers().iter().map(|(_, server)| value(server)).max().unwrap_or(0)
        };
        let part = |factor: f64, of: u64| (factor * of as f64) as u64;
        let reserved = match self.settings.reserve {
            Reserve::Bytes(bytes) => bytes,
            Reserve::PartOfTotal(factor) => part(factor, total),
            Reserve::TimesFullestUsed(factor) => part(factor, largest(|server| server.space.used)),
            Reserve::TimesLargest(factor) => part(factor, largest(|server| server.space.total)),
        };
        (total, free, free.saturating_sub(reserved))
    }

    /// Settings that were read again. Ports are the business of whoever listens.
    pub(super) fn change_settings(&mut self, settings: Settings) {
        *self.chunks.settings_mut() = settings.chunks.clone();
        self.namespace.set_policy(settings.policy);
        if settings.journal_synced != self.settings.journal_synced {
            self.journal.ask_for_rotation(); // the next file is written the other way
        }
        self.settings = settings;
    }

    /// New exports: whoever registered under others is cut and registers again. Spec 30, 4.1.
    pub(super) fn change_exports(&mut self, exports: Exports) {
        self.exports = exports;
        for link in self.clients.values() {
            let session = link.session.and_then(|session| self.namespace.session(session));
            if session.is_some_and(|session| session.params.exports_checksum != self.exports.checksum()) {
                link.outbox.close();
            }
        }
    }

    /// Many unknown chunks are what empty or old metadata look like; they may be all that is left of the files.
    pub(super) fn warn_of_quarantined(&mut self) {
        let unknown = self.chunks.quarantined().count();
        if unknown > self.quarantined_told {
            error!(
                unknown,
                known = self.namespace.chunk_count(),
                "chunkservers have chunks that these metadata do not know. None of them is deleted. If the metadata here \
                 are empty or old by mistake, stop this master and put the right ones into the data folder"
            );
        }
        self.quarantined_told = unknown;
    }

    pub(super) fn log_info(&mut self, now: u32) {
        let (total, free, _) = self.space();
        info!(
            uptime_seconds = now.saturating_sub(self.started),
            version = self.namespace.version(),
            chunks = self.namespace.chunk_count(),
            clients = self.clients.len(),
            chunkservers = self.servers.len(),
            total_bytes = total,
            free_bytes = free,
            queues = ?self.chunks.queue_lengths(),
            quarantined = self.chunks.quarantined().count(),
            "state of the master"
        );
    }

    /// What was loaded, by which people check a restore, and what is exported.
    pub(super) fn log_start(&self) {
        let (totals, chunks) = (self.namespace.totals(), self.namespace.chunk_count());
        let (inodes, directories, files) = (totals.nodes, totals.dirs, totals.files);
        info!(
            inodes,
            directories,
            files,
            chunks,
            changes = self.namespace.version().saturating_sub(1),
            "metadata loaded"
        );
        for line in self.exports.lines() {
            info!("exports: {line}");
        }
    }

    /// A peer's question about the configuration. Ours alone is the list of extensions. Where files lie is told to
    /// administrators only. Spec 10, 2.
    pub(super) fn option(&self, name: &[u8], asker: Ip4) -> Vec<u8> {
        if name == wire::EXTENSIONS_OPTION {
            return EXTENSIONS.join(" ").into_bytes();
        }
        if name == b"AUTH_CODE" {
            return if self.settings.auth_code.is_some() { b"[DEFINED]".to_vec() } else { Vec::new() };
        }
        let value = self.settings.options.iter().find(|(option, _)| option.as_bytes() == name);
        let Some((_, value)) = value else { return Vec::new() };
        if wire::any::names_a_path(name) && !self.exports.allows_admin(asker) {
            return b"[DEFINED]".to_vec();
        }
        value.as_bytes()[..value.len().min(255)].to_vec()
    }
}

/// Names of our extensions to the protocol that this master serves, separated by blanks.
const EXTENSIONS: [&str; 5] = [
    wire::TICKETS_EXTENSION,
    wire::TIMES_EXTENSION,
    wire::UNCLEAN_END_EXTENSION,
    wire::WHY_EXTENSION,
    wire::WRITE_FAILED_EXTENSION,
];

fn work_of(command: Command) -> Work {
    match command {
        Command::Create { .. } => Work::Create,
        Command::Delete { .. } => Work::Delete,
        Command::Replicate { .. } => Work::Replicate,
        Command::SetVersion { .. }
        | Command::Duplicate { .. }
        | Command::Truncate { .. }
        | Command::DuplicateTruncate { .. } => Work::Change,
    }
}

fn encode_command(command: Command) -> Vec<u8> {
    match command {
        Command::Create { chunk: chunkid, version } => MatocsCreate { chunkid, version }.encode(),
        Command::Delete { chunk: chunkid, version } => MatocsDelete { chunkid, version }.encode(),
        Command::SetVersion { chunk: chunkid, new, old } => {
            MatocsSetVersion { chunkid, newversion: new, oldversion: old }.encode()
        }
        Command::Duplicate { new, new_version, old, old_version } => {
            MatocsDuplicate { newchunkid: new, newversion: new_version, oldchunkid: old, oldversion: old_version }
                .encode()
        }
        Command::Truncate { chunk: chunkid, length_bytes, new, old } => {
            MatocsTruncate { chunkid, length: length_bytes, newversion: new, oldversion: old }.encode()
        }
        Command::DuplicateTruncate { new, new_version, old, old_version, length_bytes } => MatocsDuptrunc {
            newchunkid: new,
            newversion: new_version,
            oldchunkid: old,
            oldversion: old_version,
            length: length_bytes,
        }
        .encode(),
        Command::Replicate { chunk: chunkid, version, source_ip, source_port } => {
            MatocsReplicate { chunkid, version, srcip: source_ip, srcport: source_port }.encode()
        }
    }
}

/// The address of a peer as a number; IPv6 has none yet.
pub(super) fn ip_of(address: std::net::SocketAddr) -> Ip4 {
    match address.ip() {
        std::net::IpAddr::V4(ip) => Ip4::from(ip),
        std::net::IpAddr::V6(_) => Ip4(0),
    }
}
