//! Port 9421: mounts and tools. Spec 30 to 32.
//!
//! `requests` declares them all. Most are answered within their handler. Those that may have to wait for chunkservers or
//! for a lock on a chunk (`data`) become tasks; those that wait for a file lock are remembered by the namespace (`locks`).

mod admin;
pub(super) mod cache;
mod data;
mod extras;
pub(super) mod locks;
mod monitor;
mod names;
pub(super) mod operations;
mod register;
mod requests;
mod why;

use std::rc::Rc;
use std::time::Duration;

use meta::Caller;
use ring::Stream;
use tracing::{debug, info, warn};
use wire::limits::MASTER_FROM_CLIENT_BYTES_MAX;
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, Attr, ClientNop, CltomaFuseTimeSync, Field, HEADER_BYTES,
    Header, Inode, Ip4, MatoclFuseTimeSync, MatoclFuseTimeSyncWithId, Name, Packet, SessionId, Status, VersionWord,
    WireError, encode_status,
};

use self::requests::{Entry, Purpose, Serve};
use super::Shared;
use super::chunkserver::version_answer;
use super::core::{Core, ip_of};
use crate::connection::{KeepAlive, Outbox, PacketReader, write_out};

/// A client that is silent for so long is gone. Spec 30, 1.1.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Room for an answer; most fit.
const PACKET_BYTES: usize = 128;
/// A mount hears from us at least this often.
const NOP_EVERY: Duration = Duration::from_secs(1);

/// What a connection may do. Spec 30, 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Unregistered,
    Mount,
    /// A tool of 3.x that speaks for a mount's session: no notifications, no NOPs.
    Tool,
}

/// A client's connection.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) outbox: Rc<Outbox>,
    pub(super) class: Class,
    pub(super) session: Option<SessionId>,
    pub(super) version: VersionWord,
    pub(super) ip: Ip4,
    pub(super) challenge: Option<[u8; 32]>,
}

impl Link {
    pub(super) fn is_mount(&self) -> bool {
        self.class == Class::Mount
    }
}

/// Who asks, and in which form. A request that waits keeps it.
#[derive(Clone)]
struct Who {
    id: u64,
    link: Link,
    session: SessionId,
    /// The client asked for long times.
    long_times: bool,
    /// Packet number of the answer.
    answer: u32,
    purpose: Purpose,
}

impl Who {
    fn reply(&self, core: &mut Core, packet: Vec<u8>) {
        core.answer(&self.link.outbox, self.purpose, packet);
    }
}

/// One request that is answered at once: who asks, and the world.
struct Request<'a> {
    core: &'a mut Core,
    id: u64,
    link: Link,
    session: SessionId,
    long_times: bool,
    answer: u32,
    purpose: Purpose,
    now: u32,
}

/// Serves one client until its connection ends.
pub(super) async fn serve(master: Shared, stream: Stream) {
    let peer = stream.peer();
    let outbox = Outbox::counted(master.traffic.clone());
    let link = Link {
        outbox: outbox.clone(),
        class: Class::Unregistered,
        session: None,
        version: VersionWord(0),
        ip: ip_of(peer),
        challenge: None,
    };
    let id = master.with(|core, _| {
        let id = core.number();
        core.clients.insert(id, link);
        id
    });
    let writer = master.ring.spawn(write_out(master.ring.clone(), stream.clone(), outbox.clone()));
    let mut reader = PacketReader::new(master.ring.clone(), stream, MASTER_FROM_CLIENT_BYTES_MAX, TIMEOUT);
    let reason = loop {
        let header = match reader.next().await {
            Ok(header) => header,
            Err(gone) => break gone.to_string(),
        };
        master.folder.until_ours().await;
        master.traffic.received(header);
        let handled = handle(&master, id, header, reader.payload(header));
        reader.done(header);
        if let Err(reason) = handled {
            break reason;
        }
    };
    outbox.close();
    let registered = master.with(|core, _| disconnect(core, id));
    match registered {
        Some(session) => info!(client = %peer, %session, %reason, "client disconnected"),
        None if reason == crate::connection::Gone::Closed.to_string() => {
            debug!(client = %peer, %reason, "connection closed")
        }
        None => warn!(client = %peer, %reason, "connection on the clients' port closed"),
    }
    writer.await;
}

/// One packet. An error is the reason to hang up.
fn handle(master: &Shared, id: u64, header: Header, payload: &[u8]) -> Result<(), String> {
    let (kind, long_times) = wire::without_long_times(header.kind);
    let asked = requests::find(kind);
    if let Some(Entry { serve: Serve::Anybody(serve), .. }) = asked {
        return serve(master, id, asked.expect("it was just matched"), payload);
    }
    let link = master.core.borrow().clients.get(&id).cloned().ok_or("the connection is closed")?;
    let Some(session) = link.session else {
        return Err(format!("packet of type {kind} before registration"));
    };
    let Some(asked) = asked else { return not_served(master, &link, kind, payload) };
    master.core.borrow_mut().operations.count(session, kind);
    let (answer, purpose) = (answer_number(kind + 1, long_times), asked.purpose);
    let who = Who { id, link, session, long_times, answer, purpose };
    match asked.serve {
        Serve::Waiting(serve) => serve(master, who, payload),
        Serve::Direct(serve) => master.with(|core, now| {
            let Who { id, link, session, long_times, answer, purpose } = who;
            serve(&mut Request { core, id, link, session, long_times, answer, purpose, now }, payload)
        }),
        Serve::Anybody(_) => unreachable!("served above"),
    }
    .map_err(|error| bad(asked, error))
}

fn bad(asked: &Entry, error: WireError) -> String {
    format!("bad packet of type {}: {error}", asked.kind)
}

/// A packet that the protocol knows and we do not serve is answered; nonsense is not. Spec 30, 2.
fn not_served(master: &Shared, link: &Link, kind: u32, payload: &[u8]) -> Result<(), String> {
    let msgid = payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    let Some(msgid) = msgid.filter(|_| requests::is_known(kind)) else {
        return Err(format!("unknown packet type {kind}"));
    };
    let packet = encode_status(kind + 1, msgid, Status::ENOTSUP);
    master.with(|core, _| core.answer(&link.outbox, Purpose::Looks, packet));
    Ok(())
}

fn nothing(_: &Shared, _: u64, _: &'static Entry, _: &[u8]) -> Result<(), String> {
    Ok(())
}

fn get_version(master: &Shared, id: u64, asked: &'static Entry, payload: &[u8]) -> Result<(), String> {
    let packet = AntoanGetVersion::decode(payload).map_err(|error| bad(asked, error))?;
    master.with(|core, _| core.answer_connection(id, asked, version_answer(packet.msgid)));
    Ok(())
}

fn get_config(master: &Shared, id: u64, asked: &'static Entry, payload: &[u8]) -> Result<(), String> {
    let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(payload).map_err(|error| bad(asked, error))?;
    master.with(|core, _| {
        let asker = core.clients.get(&id).map_or(Ip4(0), |link| link.ip);
        let value = Name::new(&core.option(option.as_bytes(), asker)).map_err(|error| bad(asked, error))?;
        core.answer_connection(id, asked, AntoanConfigValue { msgid, value }.encode());
        Ok(())
    })
}

fn time_sync(master: &Shared, who: Who, packet: CltomaFuseTimeSync) {
    let usec = master.ring.wall_micros();
    let answer = match packet.msgid {
        Some(msgid) => MatoclFuseTimeSyncWithId { msgid, usec }.encode(),
        None => MatoclFuseTimeSync { usec }.encode(),
    };
    master.with(|core, _| who.reply(core, answer));
}

/// The connection is gone: nobody waits on it any more. Returns the session that it belonged to.
fn disconnect(core: &mut Core, id: u64) -> Option<SessionId> {
    let link = core.clients.remove(&id)?;
    for parked in core.parked.values_mut() {
        parked.retain(|_, parked| parked.connection != id);
    }
    core.parked.retain(|_, parked| !parked.is_empty());
    // Their tasks find the sender gone and undo what they began.
    core.waiting.retain(|_, waiting| waiting.connection != id);
    let session = link.session?;
    if !core.clients.values().any(|other| other.session == Some(session))
        && let Err(status) = core.namespace.session_disconnected(core.time, session)
    {
        debug!(%session, %status, "a session that is gone loses its connection");
    }
    Some(session)
}

impl Core {
    /// The one way out for an answer to a client's request: what the request is for decides when it may leave.
    fn answer(&mut self, outbox: &Rc<Outbox>, purpose: Purpose, packet: Vec<u8>) {
        match purpose {
            Purpose::Looks => self.reply(outbox, packet),
            Purpose::Changes => self.reply_behind_all(outbox, packet),
            Purpose::Tells => debug_assert!(false, "what is told gets no answer"),
        }
    }

    fn answer_connection(&mut self, id: u64, asked: &Entry, packet: Vec<u8>) {
        if let Some(outbox) = self.clients.get(&id).map(|link| link.outbox.clone()) {
            self.answer(&outbox, asked.purpose, packet);
        }
    }

    /// Tells every other mount that has the file open. Spec 30, 6.
    pub(super) fn notify_openers(&mut self, inode: Inode, but: u64, packet: &[u8]) {
        let sessions: Vec<SessionId> = self.namespace.openers(inode).collect();
        let told: Vec<Rc<Outbox>> = self
            .clients
            .iter()
            .filter(|&(&id, link)| {
                id != but
                    && link.is_mount()
                    && link.version.at_least(3, 0, 74)
                    && link.session.is_some_and(|session| sessions.contains(&session))
            })
            .map(|(_, link)| link.outbox.clone())
            .collect();
        for outbox in told {
            self.reply(&outbox, packet.to_vec());
        }
    }
}

impl Request<'_> {
    fn caller<'b>(&self, uid: u32, gids: &'b [u32]) -> Caller<'b> {
        Caller { session: self.session, version: self.link.version, uid, gids, now: self.core.time }
    }

    fn status(&mut self, msgid: u32, status: Status) {
        let packet = encode_status(self.answer, msgid, status);
        self.reply(packet);
    }

    /// A packet, or a status in its place.
    fn finish(&mut self, msgid: u32, result: Result<Vec<u8>, Status>) {
        match result {
            Ok(packet) => self.reply(packet),
            Err(status) => self.status(msgid, status),
        }
    }

    fn reply(&mut self, packet: Vec<u8>) {
        self.core.answer(&self.link.outbox, self.purpose, packet);
    }

    /// The answer's packet from its payload.
    fn packet(&self, msgid: u32, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        packet(self.answer, msgid, put)
    }

    /// An answer that ends with attributes.
    fn with_attr(&self, msgid: u32, attr: &Attr, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        self.packet(msgid, |out| {
            put(out);
            self.put_attr(attr, out);
        })
    }

    /// Attributes in the form that the client reads.
    fn put_attr(&self, attr: &Attr, out: &mut Vec<u8>) {
        match self.long_times {
            true => attr.put_long(out),
            false => attr.put_for(self.link.version, out),
        }
    }
}

/// The number of an answer, by the form in which it was asked for.
fn answer_number(stock: u32, long_times: bool) -> u32 {
    if long_times { stock + wire::LONG_TIMES } else { stock }
}

/// Header, message id, and what `put` appends.
fn packet(kind: u32, msgid: u32, put: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(PACKET_BYTES);
    out.extend_from_slice(&[0; HEADER_BYTES]);
    msgid.put(&mut out);
    put(&mut out);
    with_header(kind, out)
}

/// The packet whose payload stands behind room for a header.
fn with_header(kind: u32, mut out: Vec<u8>) -> Vec<u8> {
    let length = u32::try_from(out.len() - HEADER_BYTES).expect("answers are far below 4 GiB");
    out[..HEADER_BYTES].copy_from_slice(&Header { kind, length }.encode());
    out
}

/// Numbers of the requests in a session that ask for a change.
#[cfg(test)]
pub(super) fn changing_requests() -> impl Iterator<Item = u32> {
    let in_session = |entry: &&Entry| !matches!(entry.serve, Serve::Anybody(_));
    requests::REQUESTS
        .iter()
        .filter(in_session)
        .filter(|entry| entry.purpose == Purpose::Changes)
        .map(|entry| entry.kind)
}

fn client_keep_alive() -> KeepAlive {
    KeepAlive { nop: ClientNop { msgid: 0 }.encode(), every: NOP_EVERY }
}
