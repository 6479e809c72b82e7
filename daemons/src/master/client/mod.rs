//! Port 9421: mounts and tools. Spec 30 to 32.
//!
//! Most requests are answered within their handler. Those that may have to wait for chunkservers or for a lock on a
//! chunk (`data`) become tasks; those that wait for a file lock are remembered by the namespace (`locks`).

mod admin;
pub(super) mod cache;
mod data;
mod extras;
pub(super) mod locks;
mod monitor;
mod names;
pub(super) mod operations;
mod register;
mod why;

use std::rc::Rc;
use std::time::Duration;

use meta::Caller;
use ring::Stream;
use tracing::{debug, info, warn};
use wire::limits::MASTER_FROM_CLIENT_BYTES_MAX;
use wire::{
    AmtimeEntryLong, AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, Attr, ClientNop, CltomaAmtimeInodesLong,
    CltomaFuseAmtimeInodes, CltomaFuseReadChunk, CltomaFuseRegister, CltomaFuseSustainedInodes, CltomaFuseTimeSync,
    CltomaFuseTruncate, CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd, CltomaWhy, Field, HEADER_BYTES, Header, Inode,
    Ip4, MatoclFuseTimeSync, MatoclFuseTimeSyncWithId, Name, Packet, SessionId, Status, VersionWord, WireError,
    encode_status,
};

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

/// One request: who asks, and the world.
struct Request<'a> {
    core: &'a mut Core,
    id: u64,
    link: Link,
    session: SessionId,
    /// Packet number of the answer.
    answer: u32,
    /// The client asked for long times.
    long_times: bool,
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
    let bad = |error: WireError| format!("bad packet of type {}: {error}", header.kind);
    let kind = header.kind;
    // What anybody may ask.
    match kind {
        0..=2 => return Ok(()),
        AntoanGetVersion::TYPE => {
            let packet = AntoanGetVersion::decode(payload).map_err(bad)?;
            master.with(|core, _| core.push(id, &version_answer(packet.msgid)));
            return Ok(());
        }
        AntoanGetConfig::TYPE => {
            let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(payload).map_err(bad)?;
            return master.with(|core, _| {
                let asker = core.clients.get(&id).map_or(Ip4(0), |link| link.ip);
                let value = Name::new(&core.option(option.as_bytes(), asker)).map_err(bad)?;
                core.push(id, &AntoanConfigValue { msgid, value }.encode());
                Ok(())
            });
        }
        CltomaFuseRegister::TYPE => {
            let packet = CltomaFuseRegister::decode(payload).map_err(bad)?;
            let random = [(); 4].map(|()| master.ring.random_u64());
            return master.with(|core, _| register::register(core, id, packet, random));
        }
        500..=550 if kind != wire::CltomaNodeInfo::TYPE => {
            let micros = master.ring.wall_micros();
            return master.with(|core, now| admin::handle(core, id, kind, payload, micros, now));
        }
        _ => {}
    }
    let (kind, long_times) = wire::without_long_times(kind);
    let link = master.core.borrow().clients.get(&id).cloned().ok_or("the connection is closed")?;
    let Some(session) = link.session else {
        return Err(format!("packet of type {kind} before registration"));
    };
    master.core.borrow_mut().operations.count(session, kind);
    // What may have to wait.
    let who = data::Who { id, link: link.clone(), session, long_times };
    match kind {
        CltomaFuseReadChunk::TYPE => {
            data::read_chunk(master, who, CltomaFuseReadChunk::decode(payload).map_err(bad)?);
            return Ok(());
        }
        CltomaFuseWriteChunk::TYPE => {
            data::write_chunk(master, who, CltomaFuseWriteChunk::decode(payload).map_err(bad)?);
            return Ok(());
        }
        CltomaFuseTruncate::TYPE => {
            data::truncate(master, who, CltomaFuseTruncate::decode(payload).map_err(bad)?);
            return Ok(());
        }
        CltomaFuseTimeSync::TYPE => {
            let packet = CltomaFuseTimeSync::decode(payload).map_err(bad)?;
            let usec = master.ring.wall_micros();
            link.outbox.push(&match packet.msgid {
                Some(msgid) => MatoclFuseTimeSyncWithId { msgid, usec }.encode(),
                None => MatoclFuseTimeSync { usec }.encode(),
            });
            return Ok(());
        }
        _ => {}
    }
    master.with(|core, now| {
        let answer = answer_number(kind + 1, long_times);
        let mut request = Request { core, id, link, session, answer, long_times, now };
        match kind {
            CltomaFuseSustainedInodes::TYPE | 499 => {
                let packet = CltomaFuseSustainedInodes::decode(payload).map_err(bad)?;
                request.core.namespace.sustained_inodes(request.core.time, session, &packet.inodes);
                return Ok(());
            }
            CltomaFuseAmtimeInodes::TYPE => {
                let entries = match long_times {
                    true => CltomaAmtimeInodesLong::decode(payload).map_err(bad)?.entries,
                    false => {
                        let packet = CltomaFuseAmtimeInodes::decode(payload).map_err(bad)?;
                        packet.entries.iter().map(AmtimeEntryLong::from).collect()
                    }
                };
                let core = request.core;
                for entry in entries {
                    core.namespace.amtime(core.time, session, entry.inode, entry.atime, entry.mtime);
                }
                return Ok(());
            }
            CltomaFuseWriteChunkEnd::TYPE => {
                let packet = CltomaFuseWriteChunkEnd::decode(payload).map_err(bad)?;
                data::write_chunk_end(&mut request, &packet);
                return Ok(());
            }
            CltomaWhy::TYPE => {
                why::answer(&mut request, &CltomaWhy::decode(payload).map_err(bad)?);
                return Ok(());
            }
            _ => {}
        }
        if names::dispatch(&mut request, kind, payload).map_err(bad)?
            || extras::dispatch(&mut request, kind, payload).map_err(bad)?
        {
            return Ok(());
        }
        not_supported(&mut request, kind, payload)
    })
}

/// A packet that the protocol knows and we do not serve is answered; nonsense is not. Spec 30, 2.
fn not_supported(request: &mut Request<'_>, kind: u32, payload: &[u8]) -> Result<(), String> {
    let known = matches!(kind, 350..=390 | 402..=496 | 552 | 554) && kind.is_multiple_of(2);
    let msgid = payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes));
    match msgid {
        Some(msgid) if known => {
            request.status(msgid, Status::ENOTSUP);
            Ok(())
        }
        _ => Err(format!("unknown packet type {kind}")),
    }
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
    fn push(&self, id: u64, packet: &[u8]) {
        if let Some(link) = self.clients.get(&id) {
            link.outbox.push(packet);
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
        let (kind, _) = wire::without_long_times(self.answer - 1);
        if only_looks(kind) {
            self.core.reply(&self.link.outbox, packet);
        } else {
            self.core.reply_behind_all(&self.link.outbox, packet);
        }
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

/// Whether a request asks for no change, so that its answer need not outlive a crash. OPEN is among them: that a file
/// is open is told again by its client. Spec 30, 5.2.
fn only_looks(kind: u32) -> bool {
    matches!(
        kind,
        CltomaWhy::TYPE | 360 | 402..=408 | 412 | 428 | 430 | 440 | 442 | 446 | 450..=454 | 462 | 470 | 472 | 478 | 484..=488 | 546
    )
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

fn client_keep_alive() -> KeepAlive {
    KeepAlive { nop: ClientNop { msgid: 0 }.encode(), every: NOP_EVERY }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_looks_does_not_wait_for_the_disk() {
        for kind in [CltomaWhy::TYPE, wire::CltomaFuseGetattr::TYPE, wire::CltomaFuseLookup::TYPE] {
            assert!(only_looks(kind), "{kind}");
        }
        for kind in [wire::CltomaFuseMkdir::TYPE, CltomaFuseTruncate::TYPE, CltomaFuseWriteChunkEnd::TYPE] {
            assert!(!only_looks(kind), "{kind}");
        }
    }
}
