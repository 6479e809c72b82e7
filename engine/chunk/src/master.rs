//! Life under a master: registration, reports, orders. Spec 40, 3 to 10.

use std::cell::Cell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use futures_util::{FutureExt, select_biased};
use md5::{Digest, Md5};
use ring::local::{Receiver, Sender, channel};
use ring::{BufferedReader, Stream};
use wire::limits::{CHUNKSERVER_FROM_MASTER_BYTES_MAX, HEADER_BYTES};
use wire::types::ChunkReport;
use wire::*;

use crate::counters::Counters;
use crate::error::ChunkError;
use crate::replicate::replicate;
use crate::serve::questions;
use crate::server::{Identity, Server};
use crate::settings::Settings;
use crate::store::balance::Moving;

const CONNECT_MAX: Duration = Duration::from_secs(1);
/// How long the orders of a lost connection may hold up the next registration; longer than an operation waits for a
/// chunk that another one holds.
const ORDERS_WAIT: Duration = Duration::from_secs(30);
const ORDERS_LOOK: Duration = Duration::from_millis(5);
const NOP_AFTER: Duration = Duration::from_secs(1);
const SEND_MAX: Duration = Duration::from_secs(10);
/// Silence of the master that ends a session, until its acknowledgement says otherwise. Spec 40, 10.
const DEFAULT_TIMEOUT_SEC: u16 = 10;
/// How often space is looked at, and how many looks lie between two load reports. Spec 40, 6.
const BEAT: Duration = Duration::from_secs(1);
const LOAD_BEATS: u32 = 5;
/// The first registration waits so long for the disks to be listed, so that the master learns of all chunks at once
/// and orders no copies of those that are not listed yet. After a clean stop this is enough for millions; what takes
/// longer is reported as it is found.
const FIRST_LIST_WAIT: Duration = Duration::from_secs(10);
/// How often it looks whether they are.
const FIRST_LIST_LOOK: Duration = Duration::from_millis(10);
/// What is to be reported waits so long for more of the kind.
const REPORTS_GATHER: Duration = Duration::from_millis(20);
/// How we are, for the master. Spec 40, 7.1.
const FINE: u8 = 1;
const OVERLOADED: u8 = 2;
const REBALANCING: u8 = 3;
/// Answers and reports that wait for the connection.
const OUTGOING_MAX: usize = 4096;

/// Why one connection to the master ended.
enum SessionEnd {
    Stopped,
    ForeignMaster {
        ours: MetaId,
        masters: MetaId,
    },
    Lost(String),
    /// The settings ask for another connection.
    Reconfigured,
    /// Another master leads, at this address; 0: ask the name again.
    Redirected(Ipv4Addr),
}

/// Connects, registers, serves, and does it again when the connection is lost; until the server stops.
///
/// A master of another file system is only another reason to try again: our address may have been taken for a while by
/// a master that was started by mistake, and what we have must be there when the right one is back.
pub(crate) async fn life(server: Rc<Server>) {
    let mut redirect = None;
    let until = server.ring.now() + FIRST_LIST_WAIT;
    while server.store.scans_under_way() > 0 && server.ring.now() < until && !server.stopping.get() {
        server.ring.sleep(FIRST_LIST_LOOK).await;
    }
    loop {
        let end = match one_session(&server, redirect.take()).await {
            Ok(end) => end,
            Err(why) => SessionEnd::Lost(why),
        };
        server.master_address.set((Ip4(0), 0));
        server.store.core.shared.reports.end_listing();
        wait_for_orders(&server).await;
        match end {
            SessionEnd::Stopped => return,
            SessionEnd::ForeignMaster { ours, masters } => tracing::error!(
                "the master serves the file system with metaid {masters}, our disks belong to {ours}: nothing on them is \
                 touched, and we try again. Wrong master, or wrong folders in mfshdd.cfg. If these disks shall become \
                 that file system's, empty, stop this server, remove chunkserverid.mfs from the data path and .metaid from \
                 every folder"
            ),
            SessionEnd::Redirected(leader) => redirect = (!leader.is_unspecified()).then_some(leader),
            SessionEnd::Lost(why) => tracing::warn!("no connection to the master: {why}"),
            SessionEnd::Reconfigured => {
                tracing::info!("connecting to the master anew, as the configuration says");
                continue;
            }
        }
        if nap_or_stop(&server, server.settings.get().master_reconnection_delay).await {
            return;
        }
    }
}

/// Waits for orders of the connection that ended: what they change must be in the list that the next registration sends,
/// or the master would know a chunk by a version that it no longer has. A disk that hangs is waited for only so long:
/// its chunks are of no use meanwhile, but those of the others are.
async fn wait_for_orders(server: &Server) {
    let until = server.ring.now() + ORDERS_WAIT;
    while server.orders.get() > 0 && !server.stopping.get() {
        if server.ring.now() >= until {
            tracing::error!("{} orders of the lost connection have not ended yet", server.orders.get());
            return;
        }
        server.ring.sleep(ORDERS_LOOK).await;
    }
}

/// True if the server stops. A reload ends the nap.
async fn nap_or_stop(server: &Server, nap: Duration) -> bool {
    let stop = server.stop.notified();
    if !server.stopping.get() {
        let stop_or_reload = futures_util::future::select(stop, Box::pin(server.reloaded_since(server.reloads.get())));
        let _ = server.ring.timeout(nap, stop_or_reload).await; // either way the flag says it
    }
    server.stopping.get()
}

async fn one_session(server: &Rc<Server>, redirect: Option<Ipv4Addr>) -> Result<SessionEnd, String> {
    let (settings, reloads_at_begin) = (server.settings.get(), server.reloads.get());
    let ip = match redirect {
        Some(ip) => ip,
        None => resolve(server).await?,
    };
    let to = SocketAddr::from((ip, settings.master_port));
    let connecting = server.ring.connect(to, settings.bind_ip.map(Into::into));
    let stream = match server.ring.timeout(CONNECT_MAX, connecting).await {
        Ok(connected) => connected.map_err(|error| format!("{to}: {error}"))?,
        Err(_) => return Err(format!("{to}: no answer")),
    };
    tracing::info!("connected to the master at {to}");
    let (outgoing, to_send) = channel(OUTGOING_MAX);
    let session = Rc::new(Session {
        server: server.clone(),
        outgoing,
        master_version: Cell::new(VersionWord(0)),
        timeout_sec: Cell::new(match settings.master_timeout_sec {
            0 => DEFAULT_TIMEOUT_SEC,
            seconds => seconds,
        }),
        state: Cell::new(State::Unregistered),
        address: (Ip4::from(ip), settings.master_port),
        reloads_at_begin,
    });
    session.say_begin(None).await;
    let end = {
        let mut receive = Box::pin(session.receive(BufferedReader::new(stream.clone(), 4096)).fuse());
        let mut send = Box::pin(session.send(&stream, to_send).fuse());
        let mut report = Box::pin(session.report().fuse());
        let mut beat = Box::pin(session.beat().fuse());
        let mut stop = Box::pin(wait_stop(server).fuse());
        let mut reconfigured = Box::pin(session.follow_reloads(&settings).fuse());
        select_biased! {
            end = receive => end,
            why = send => SessionEnd::Lost(why),
            _ = report => SessionEnd::Lost("reports ended".to_owned()),
            _ = beat => SessionEnd::Lost("beats ended".to_owned()),
            _ = stop => SessionEnd::Stopped,
            _ = reconfigured => SessionEnd::Reconfigured,
        }
    };
    if matches!(end, SessionEnd::Stopped | SessionEnd::Reconfigured)
        && session.state.get() == State::Registered
        && session.master_version.get().at_least(3, 0, 75)
    {
        let _ = server.ring.timeout(SEND_MAX, stream.send_all(CstomaRegister::Disconnect.encode())).await;
    }
    stream.shutdown();
    Ok(end)
}

async fn wait_stop(server: &Server) {
    loop {
        let stop = server.stop.notified();
        if server.stopping.get() {
            return;
        }
        stop.await;
    }
}

/// One of the addresses of the master's name, at random. Spec 40, 10.
async fn resolve(server: &Server) -> Result<Ipv4Addr, String> {
    let settings = server.settings.get();
    let (host, resolve) = (settings.master_host.clone(), settings.resolve);
    let asked = host.clone();
    let addresses =
        server.ring.run_blocking(move || resolve(&asked)).await.map_err(|error| format!("{host}: {error}"))?;
    let pick = server.ring.random_u64() as usize % addresses.len().max(1);
    addresses.get(pick).copied().ok_or_else(|| format!("{host} has no IPv4 address"))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unregistered,
    /// Chunks up to this id were listed.
    Listing {
        after: ChunkId,
    },
    Registered,
}

struct Session {
    server: Rc<Server>,
    outgoing: Sender<Vec<u8>>,
    master_version: Cell<VersionWord>,
    timeout_sec: Cell<u16>,
    state: Cell<State>,
    address: (Ip4, u16),
    /// Reloads until this session began.
    reloads_at_begin: u32,
}

impl Session {
    async fn say(&self, packet: Vec<u8>) {
        let _ = self.outgoing.send(packet).await; // the connection's end is noticed by who owns it
    }

    async fn say_begin(&self, passcode: Option<[u8; 16]>) {
        let settings = self.server.settings.get();
        let begin = RegisterBegin {
            version: VersionWord::OURS,
            ip: Ip4::from(settings.listen_ip),
            port: settings.listen_port,
            timeout: settings.master_timeout_sec,
            csid: self.server.identity.get().csid,
            space: self.server.store.server_space(),
        };
        self.say(CstomaRegister::Begin { passcode, begin }.encode()).await;
    }

    /// Handles what the master says until the session ends.
    async fn receive(self: &Rc<Self>, mut reader: BufferedReader) -> SessionEnd {
        loop {
            let header = match self.fill(&mut reader, HEADER_BYTES).await {
                Ok(()) => Header::decode(reader.buffered().first_chunk().expect("eight bytes were waited for")),
                Err(why) => return SessionEnd::Lost(why),
            };
            if header.length > CHUNKSERVER_FROM_MASTER_BYTES_MAX {
                return SessionEnd::Lost(format!(
                    "packet of type {} with {} bytes is too long",
                    header.kind, header.length
                ));
            }
            let whole = HEADER_BYTES + header.length as usize;
            if let Err(why) = self.fill(&mut reader, whole).await {
                return SessionEnd::Lost(why);
            }
            let payload = reader.buffered()[HEADER_BYTES..whole].to_vec();
            reader.consume(whole);
            self.server.store.counters.master_in_bytes.add(whole as u64);
            match self.take(header.kind, &payload).await {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(why) => return SessionEnd::Lost(format!("packet of type {} from the master: {why}", header.kind)),
            }
        }
    }

    async fn fill(&self, reader: &mut BufferedReader, bytes: usize) -> Result<(), String> {
        while reader.buffered().len() < bytes {
            let one_more = reader.buffered().len() + 1;
            let limit = Duration::from_secs(u64::from(self.timeout_sec.get()));
            match self.server.ring.timeout(limit, reader.fill(one_more)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_) => return Err("the master is silent".to_owned()),
            }
        }
        Ok(())
    }

    /// One packet of the master.
    async fn take(self: &Rc<Self>, kind: u32, payload: &[u8]) -> Result<Option<SessionEnd>, String> {
        match kind {
            0..=2 => Ok(None),
            5 if payload.len() == 2 => {
                self.timeout_sec.set(u16::from_be_bytes([payload[0], payload[1]]).max(DEFAULT_TIMEOUT_SEC));
                Ok(None)
            }
            MatocsMasterAck::TYPE => self.acknowledged(decode(payload)?).await,
            AntoanConfigValue::TYPE => {
                let answer: AntoanConfigValue = decode(payload)?;
                let knows = has_extension(answer.value.as_bytes(), WRITE_FAILED_EXTENSION);
                self.server.store.core.shared.reports.set_knows_write_failed(knows);
                Ok(None)
            }
            _ => {
                let order = Order::decode(kind, payload)?;
                self.begin(order);
                Ok(None)
            }
        }
    }

    async fn acknowledged(&self, ack: MatocsMasterAck) -> Result<Option<SessionEnd>, String> {
        let ours = self.server.identity.get();
        match ack {
            MatocsMasterAck::Next => self.list_some().await,
            MatocsMasterAck::BeginOld { master_version } => {
                self.master_version.set(master_version);
                self.begin_listing().await;
            }
            MatocsMasterAck::BeginWithoutMetaId { master_version, timeout, csid } => {
                self.master_version.set(master_version);
                self.use_timeout(timeout);
                self.server.set_identity(Identity { csid, ..ours }).await;
                self.begin_listing().await;
            }
            MatocsMasterAck::Begin { master_version, timeout, csid, metaid } => {
                if let Some(end) = foreign(ours.metaid, metaid) {
                    return Ok(Some(end));
                }
                self.master_version.set(master_version);
                self.use_timeout(timeout);
                let metaid = if metaid.0 == 0 { ours.metaid } else { metaid };
                self.server.set_identity(Identity { csid, metaid }).await;
                self.begin_listing().await;
            }
            MatocsMasterAck::Wait { master_version, timeout, metaid } => {
                if let Some(masters) = metaid
                    && foreign(ours.metaid, masters).is_some()
                {
                    return Err("it leads another file system".to_owned());
                }
                self.master_version.set(master_version);
                self.use_timeout(timeout);
            }
            MatocsMasterAck::Redirect { leader_ip } => {
                return Ok(Some(SessionEnd::Redirected(Ipv4Addr::from(leader_ip))));
            }
            MatocsMasterAck::Challenge(random) => match &self.server.settings.get().auth_code {
                Some(code) => self.say_begin(Some(passcode(&random, code))).await,
                None => return Err("it asks for a password and AUTH_CODE is not set".to_owned()),
            },
        }
        Ok(None)
    }

    fn use_timeout(&self, seconds: u16) {
        if self.server.settings.get().master_timeout_sec == 0 && seconds > 0 {
            self.timeout_sec.set(seconds.max(DEFAULT_TIMEOUT_SEC));
        }
    }

    async fn begin_listing(&self) {
        if self.state.get() != State::Unregistered {
            return;
        }
        self.server.master_address.set(self.address);
        if self.master_version.get().at_least(2, 1, 0) {
            self.say(CstomaLabels { labelmask: self.server.settings.get().labels }.encode()).await;
        }
        self.state.set(State::Listing { after: ChunkId(0) });
        self.server.store.core.shared.reports.begin_listing();
        self.list_some().await;
    }

    /// Sends the next part of the list of chunks, or says that it has ended. One part for each acknowledgement.
    async fn list_some(&self) {
        let State::Listing { after } = self.state.get() else { return };
        let store = &self.server.store;
        let part = store.core.some_of_all_after(after, self.server.settings.get().chunks_per_register_packet);
        let Some((last, _)) = part.last().copied() else {
            self.state.set(State::Registered);
            self.say(CstomaRegister::End.encode()).await;
            tracing::info!("registered with the master, version {}", self.master_version.get());
            let option = Name::new(EXTENSIONS_OPTION).expect("a short name");
            self.say(AntoanGetConfig { msgid: 1, option }.encode()).await;
            store.report_torn();
            store.core.shared.reports.allow();
            return;
        };
        self.state.set(State::Listing { after: last });
        let chunks = part
            .into_iter()
            .filter(|(_, place)| store.volume(place.volume).is_usable())
            .map(|(chunkid, place)| ChunkReport { chunkid, version: store.reported_version(place) })
            .collect();
        self.say(CstomaRegister::Chunks(chunks).encode()).await;
    }

    /// Sends what is queued, several packets at a time, and NOPs when there is nothing.
    async fn send(&self, stream: &Stream, mut queue: Receiver<Vec<u8>>) -> String {
        const BATCH_BYTES: usize = 64 << 10;
        loop {
            let mut bytes = match self.server.ring.timeout(NOP_AFTER, queue.recv()).await {
                Ok(Some(packet)) => packet,
                Ok(None) => return "the queue to the master ended".to_owned(),
                Err(_) => AntoanNop {}.encode(),
            };
            while bytes.len() < BATCH_BYTES
                && let Some(packet) = queue.try_recv()
            {
                bytes.extend_from_slice(&packet);
            }
            self.server.store.counters.master_out_bytes.add(bytes.len() as u64);
            match self.server.ring.timeout(SEND_MAX, stream.send_all(bytes)).await {
                Ok((Ok(()), _)) => {}
                Ok((Err(error), _)) => return error.to_string(),
                Err(_) => return "the master does not take what it is sent".to_owned(),
            }
        }
    }

    /// Damaged, lost, new: as soon as there is any. Spec 40, 6.
    async fn report(&self) {
        let reports = &self.server.core.shared.reports;
        loop {
            reports.wait().await;
            self.server.ring.sleep(REPORTS_GATHER).await; // a scan finds thousands: they go together
            let mut packets = Vec::new();
            reports.take_packets(&mut packets, |id| self.server.store.present_version(id));
            for packet in packets {
                self.say(packet).await;
            }
        }
    }

    /// Says what a reload changed; ends when it asks for another connection. Spec 40, 10.
    async fn follow_reloads(&self, begun_with: &Settings) {
        let mut labels = begun_with.labels;
        let mut seen = self.reloads_at_begin;
        loop {
            self.server.reloaded_since(seen).await;
            seen = self.server.reloads.get();
            let settings = self.server.settings.get();
            if settings.asks_for_another_connection(begun_with) {
                return;
            }
            if settings.labels != labels && self.state.get() != State::Unregistered {
                self.say(CstomaLabels { labelmask: settings.labels }.encode()).await;
            }
            labels = settings.labels;
        }
    }

    /// Space when it changed, load every five seconds and when the state of overload flips.
    async fn beat(&self) {
        let server = &self.server;
        let mut said_space = None;
        let mut overloaded = false;
        let mut beat = 0u32;
        loop {
            server.ring.sleep(BEAT).await;
            if self.state.get() == State::Unregistered {
                continue;
            }
            let space = server.store.server_space();
            if said_space.as_ref() != Some(&space) {
                self.say(CstomaSpace { space: space.clone() }.encode()).await;
                said_space = Some(space);
            }
            let load = server.jobs();
            let was_overloaded = overloaded;
            overloaded = is_overloaded(load, server.settings.get().jobs_max, overloaded);
            let due = beat.is_multiple_of(LOAD_BEATS) || overloaded != was_overloaded;
            if self.state.get() == State::Registered && due && self.master_version.get().at_least(1, 6, 28) {
                let knows_balance = self.master_version.get().at_least(3, 0, 62);
                let status = match server.core.shared.moving() {
                    _ if overloaded => OVERLOADED,
                    Moving::Fast => OVERLOADED,
                    Moving::Slowly if !knows_balance => OVERLOADED,
                    Moving::Slowly => REBALANCING,
                    Moving::No => FINE,
                };
                let hlstatus = self.master_version.get().at_least(3, 0, 7).then_some(status);
                self.say(CstomaCurrentLoad { load, hlstatus, transferring: None }.encode()).await;
            }
            beat = beat.wrapping_add(1);
        }
    }

    /// Carries out an order beside everything else. The answer goes to the connection on which the order came.
    fn begin(&self, order: Order) {
        let server = self.server.clone();
        let outgoing = self.outgoing.clone();
        server.orders.set(server.orders.get() + 1);
        self.server.ring.spawn(async move {
            let owner = server.core.owner(order.chunk());
            let answer = server.core.ask(owner, |server| async move { order.carry_out(&server).await }).await;
            server.orders.set(server.orders.get() - 1);
            let _ = outgoing.send(answer).await; // a lost connection discards answers. Spec 40, 10
        });
    }
}

/// A chunkserver of one file system must not register with the master of another. 0 says nothing.
fn foreign(ours: MetaId, masters: MetaId) -> Option<SessionEnd> {
    let differ = ours.0 != 0 && masters.0 != 0 && ours != masters;
    differ.then_some(SessionEnd::ForeignMaster { ours, masters })
}

/// Spec 40, 7.2: above three quarters it is overloaded, below a half it is not.
fn is_overloaded(jobs: u32, jobs_max: u32, was: bool) -> bool {
    if was { jobs >= jobs_max / 2 } else { jobs > jobs_max - jobs_max / 4 }
}

/// Spec 40, 3.5.
fn passcode(random: &[u8; 32], code: &[u8]) -> [u8; 16] {
    let mut digest = Md5::new();
    digest.update(&random[..16]);
    digest.update(code);
    digest.update(&random[16..]);
    digest.finalize().into()
}

fn decode<P: Packet>(payload: &[u8]) -> Result<P, String> {
    P::decode(payload).map_err(|why| why.to_string())
}

/// What a master may order. Spec 40, 8.
enum Order {
    Create(MatocsCreate),
    Delete(MatocsDelete),
    SetVersion(MatocsSetVersion),
    Duplicate(MatocsDuplicate),
    Replicate(MatocsReplicate),
    Chunkop(MatocsChunkop),
    Truncate(MatocsTruncate),
    Duptrunc(MatocsDuptrunc),
    Blocks(AntocsGetChunkBlocks),
    Checksum(AntocsGetChunkChecksum),
    ChecksumTab(AntocsGetChunkChecksumTab),
}

impl Order {
    fn decode(kind: u32, payload: &[u8]) -> Result<Order, String> {
        Ok(match kind {
            MatocsCreate::TYPE => Order::Create(decode(payload)?),
            MatocsDelete::TYPE => Order::Delete(decode(payload)?),
            MatocsSetVersion::TYPE => Order::SetVersion(decode(payload)?),
            MatocsDuplicate::TYPE => Order::Duplicate(decode(payload)?),
            MatocsReplicate::TYPE => Order::Replicate(decode(payload)?),
            MatocsChunkop::TYPE => Order::Chunkop(decode(payload)?),
            MatocsTruncate::TYPE => Order::Truncate(decode(payload)?),
            MatocsDuptrunc::TYPE => Order::Duptrunc(decode(payload)?),
            AntocsGetChunkBlocks::TYPE => Order::Blocks(decode(payload)?),
            AntocsGetChunkChecksum::TYPE => Order::Checksum(decode(payload)?),
            AntocsGetChunkChecksumTab::TYPE => Order::ChecksumTab(decode(payload)?),
            _ => return Err("unknown type".to_owned()),
        })
    }

    /// The chunk that there is already, or that is to be made: its owner carries out the order.
    fn chunk(&self) -> ChunkId {
        match self {
            Order::Create(order) => order.chunkid,
            Order::Delete(order) => order.chunkid,
            Order::SetVersion(order) => order.chunkid,
            Order::Duplicate(order) => order.oldchunkid,
            Order::Replicate(order) => order.chunkid,
            Order::Chunkop(order) => order.chunkid,
            Order::Truncate(order) => order.chunkid,
            Order::Duptrunc(order) => order.oldchunkid,
            Order::Blocks(question) => question.chunkid,
            Order::Checksum(question) => question.chunkid,
            Order::ChecksumTab(question) => question.chunkid,
        }
    }

    /// Does it and gives the answer.
    async fn carry_out(self, server: &Rc<Server>) -> Vec<u8> {
        match &self {
            Order::Blocks(question) => return questions::chunk_blocks(server, question).await,
            Order::Checksum(question) => return questions::chunk_checksum(server, question).await,
            Order::ChecksumTab(question) => return questions::chunk_checksum_tab(server, question).await,
            _ => {}
        }
        let status = match server.begin_job() {
            Some(_job) => match self.operate(server).await {
                Ok(()) => Status::OK,
                Err(error) => error.status(),
            },
            None => Status::NOTDONE,
        };
        self.answer(status)
    }

    async fn operate(&self, server: &Rc<Server>) -> Result<(), ChunkError> {
        let store = &server.store;
        self.count(&store.counters);
        match self {
            Order::Create(order) => store.create(order.chunkid, order.version).await,
            Order::Delete(order) => store.delete(order.chunkid, order.version).await,
            Order::SetVersion(order) => store.set_version(order.chunkid, order.newversion, order.oldversion).await,
            Order::Duplicate(order) => {
                let new = (order.newchunkid, order.newversion);
                store.duplicate(new, (order.oldchunkid, order.oldversion), None).await
            }
            Order::Duptrunc(order) => {
                let new = (order.newchunkid, order.newversion);
                store.duplicate(new, (order.oldchunkid, order.oldversion), Some(order.length)).await
            }
            Order::Truncate(order) => {
                store.truncate(order.chunkid, order.length, order.newversion, order.oldversion).await
            }
            Order::Replicate(order) => {
                let source = SocketAddr::from((Ipv4Addr::from(order.srcip), order.srcport));
                replicate(store, order.chunkid, order.version, source).await
            }
            Order::Chunkop(order) => store.chunkop(order).await,
            Order::Blocks(_) | Order::Checksum(_) | Order::ChecksumTab(_) => Ok(()),
        }
    }

    fn count(&self, counters: &Counters) {
        let count = match self {
            Order::Create(_) => &counters.created,
            Order::Delete(_) => &counters.deleted,
            Order::SetVersion(_) => &counters.versions_set,
            Order::Duplicate(_) => &counters.duplicated,
            Order::Duptrunc(_) => &counters.duptruncated,
            Order::Truncate(_) => &counters.truncated,
            Order::Replicate(_) => &counters.replicated,
            Order::Chunkop(_) => &counters.changed,
            Order::Blocks(_) | Order::Checksum(_) | Order::ChecksumTab(_) => return,
        };
        count.add(1);
    }

    fn answer(&self, status: Status) -> Vec<u8> {
        match self {
            Order::Create(order) => CstomaCreate { chunkid: order.chunkid, status }.encode(),
            Order::Delete(order) => CstomaDelete { chunkid: order.chunkid, status }.encode(),
            Order::SetVersion(order) => CstomaSetVersion { chunkid: order.chunkid, status }.encode(),
            Order::Duplicate(order) => CstomaDuplicate { chunkid: order.newchunkid, status }.encode(),
            Order::Duptrunc(order) => CstomaDuptrunc { chunkid: order.newchunkid, status }.encode(),
            Order::Truncate(order) => CstomaTruncate { chunkid: order.chunkid, status }.encode(),
            Order::Replicate(order) => {
                CstomaReplicate { chunkid: order.chunkid, version: order.version, status }.encode()
            }
            Order::Chunkop(order) => {
                let &MatocsChunkop { chunkid, version, newversion, copychunkid, copyversion, length } = order;
                CstomaChunkop { chunkid, version, newversion, copychunkid, copyversion, length, status }.encode()
            }
            Order::Blocks(_) | Order::Checksum(_) | Order::ChecksumTab(_) => {
                unreachable!("questions are answered where they are looked up")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_begins_above_three_quarters_and_ends_below_a_half() {
        assert!(!is_overloaded(187, 250, false));
        assert!(is_overloaded(189, 250, false));
        assert!(is_overloaded(125, 250, true));
        assert!(!is_overloaded(124, 250, true));
    }

    #[test]
    fn only_two_known_and_different_file_systems_are_foreign() {
        assert!(foreign(MetaId(1), MetaId(2)).is_some());
        assert!(foreign(MetaId(1), MetaId(1)).is_none());
        assert!(foreign(MetaId(0), MetaId(2)).is_none());
        assert!(foreign(MetaId(1), MetaId(0)).is_none());
    }
}
