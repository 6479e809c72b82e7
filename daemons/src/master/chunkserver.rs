//! Port 9420: a chunkserver registers, reports what it has, executes commands. Spec 40.

use std::rc::Rc;
use std::time::Duration;

use meta::chunks::identity::{Identity, Known, identify};
use meta::chunks::{Answered, Server, ServerId};
use ring::Stream;
use tracing::{info, warn};
use wire::limits::MASTER_FROM_CHUNKSERVER_BYTES_MAX;
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, AntoanNop, AntoanVersion, AntoanVersionWithId,
    CstomaChunkDamaged, CstomaChunkLost, CstomaChunkNew, CstomaCreate, CstomaCurrentLoad, CstomaDelete,
    CstomaDuplicate, CstomaDuptrunc, CstomaErrorOccurred, CstomaLabels, CstomaRegister, CstomaReplicate,
    CstomaSetVersion, CstomaSpace, CstomaTruncate, CstomaWriteFailed, Header, Ip4, MatoclFuseInvalidateChunkCache,
    MatocsMasterAck, Name, Packet, RegisterBegin, Rest, Status, VersionWord, WireError,
};

use super::Shared;
use super::charts::Work;
use super::core::{Core, ip_of};
use super::exports::auth_passcode;
use crate::connection::{KeepAlive, Outbox, PacketReader, write_out};

/// Operations of CSDBOP. Spec 40, 4.
mod database {
    pub(super) const ADD: u8 = 0;
    pub(super) const NEW_ADDRESS: u8 = 2;
    pub(super) const NEW_NUMBER: u8 = 3;
    pub(super) const MAINTENANCE_TEMPORARY: u8 = 6;
}

/// Before BEGIN a peer gets this long.
const TIMEOUT_BEFORE_BEGIN: Duration = Duration::from_secs(10);
/// A "connected" server that was silent for so long, while it registers anew, is gone: it sends NOP every second.
const SILENT_SECONDS: u32 = 3;

/// A registered chunkserver's connection, as others see it.
pub(super) struct Link {
    pub(super) outbox: Rc<Outbox>,
    pub(super) last_heard: u32,
}

/// A connection from its acceptance on.
struct Peer {
    outbox: Rc<Outbox>,
    ip: Ip4,
    server: Option<ServerId>,
    challenge: Option<[u8; 32]>,
    version: VersionWord,
    timeout: Duration,
}

/// Serves one chunkserver until its connection ends.
pub(super) async fn serve(master: Shared, stream: Stream) {
    let peer_address = stream.peer();
    let outbox = Outbox::new();
    let mut peer = Peer {
        outbox: outbox.clone(),
        ip: ip_of(peer_address),
        server: None,
        challenge: None,
        version: VersionWord(0),
        timeout: TIMEOUT_BEFORE_BEGIN,
    };
    let writer = master.ring.spawn(write_out(master.ring.clone(), stream.clone(), outbox.clone()));
    let ring = master.ring.clone();
    let mut reader = PacketReader::new(ring, stream, MASTER_FROM_CHUNKSERVER_BYTES_MAX, peer.timeout);
    let reason = loop {
        let header = match reader.next().await {
            Ok(header) => header,
            Err(gone) => break gone.to_string(),
        };
        master.folder.until_ours().await;
        let random = [(); 4].map(|()| master.ring.random_u64());
        let handled = master.with(|core, now| handle(core, &mut peer, header, reader.payload(header), random, now));
        reader.done(header);
        match handled {
            Ok(()) => reader.set_timeout(peer.timeout),
            Err(reason) => break reason,
        }
    };
    outbox.cut();
    match peer.server {
        Some(server) => {
            warn!(chunkserver = %peer_address, %reason, "chunkserver disconnected");
            master.with(|core, now| disconnect(core, server, now));
        }
        None => warn!(peer = %peer_address, %reason, "connection on the chunkservers' port closed before registration"),
    }
    writer.await;
}

/// One packet. An error is the reason to hang up.
fn handle(
    core: &mut Core,
    peer: &mut Peer,
    header: Header,
    payload: &[u8],
    random: [u64; 4],
    now: u32,
) -> Result<(), String> {
    let bad = |error: WireError| format!("bad packet of type {}: {error}", header.kind);
    if let Some(link) = peer.server.and_then(|server| core.servers.get_mut(&server)) {
        link.last_heard = now;
    }
    match header.kind {
        AntoanNop::TYPE | 1 | 2 => return Ok(()),
        AntoanGetVersion::TYPE => {
            let packet = AntoanGetVersion::decode(payload).map_err(bad)?;
            peer.outbox.push(&version_answer(packet.msgid));
            return Ok(());
        }
        AntoanGetConfig::TYPE => {
            let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(payload).map_err(bad)?;
            let value = Name::new(&core.option(option.as_bytes(), peer.ip)).map_err(bad)?;
            peer.outbox.push(&AntoanConfigValue { msgid, value }.encode());
            return Ok(());
        }
        CstomaRegister::TYPE => {
            let packet = CstomaRegister::decode(payload).map_err(bad)?;
            return register(core, peer, packet, random, now);
        }
        _ => {}
    }
    let Some(server) = peer.server else {
        return Err(format!("packet of type {} before registration", header.kind));
    };
    report(core, server, header, payload, now)
}

/// What a registered server may send.
fn report(core: &mut Core, server: ServerId, header: Header, payload: &[u8], now: u32) -> Result<(), String> {
    let bad = |error: WireError| format!("bad packet of type {}: {error}", header.kind);
    let Core { namespace, chunks, effects, tally, .. } = core;
    let table = &*namespace;
    match header.kind {
        CstomaSpace::TYPE => {
            let packet = CstomaSpace::decode(payload).map_err(bad)?;
            if let Some(server) = chunks.servers_mut().get_mut(server) {
                server.space = packet.space;
            }
        }
        CstomaCurrentLoad::TYPE => {
            let packet = CstomaCurrentLoad::decode(payload).map_err(bad)?;
            core.note_load(server, packet.load, packet.hlstatus, now);
        }
        CstomaLabels::TYPE => {
            let packet = CstomaLabels::decode(payload).map_err(bad)?;
            if let Some(server) = chunks.servers_mut().get_mut(server) {
                server.labels = packet.labelmask;
            }
        }
        CstomaErrorOccurred::TYPE => {
            CstomaErrorOccurred::decode(payload).map_err(bad)?;
            if let Some(server) = chunks.servers_mut().get_mut(server) {
                server.errors = server.errors.saturating_add(1);
            }
        }
        CstomaChunkDamaged::TYPE => {
            let packet = CstomaChunkDamaged::decode(payload).map_err(bad)?;
            warn!(chunks = packet.chunks.len(), "a chunkserver reports damaged chunks");
            chunks.report_damaged(server, &packet.chunks, table, now, effects);
        }
        CstomaWriteFailed::TYPE => {
            let packet = CstomaWriteFailed::decode(payload).map_err(bad)?;
            chunks.report_write_failed(server, &packet.chunks, table, now, effects);
        }
        CstomaChunkLost::TYPE => {
            let packet = CstomaChunkLost::decode(payload).map_err(bad)?;
            chunks.report_lost(server, &packet.chunks, table, now, effects);
        }
        CstomaChunkNew::TYPE => {
            let packet = CstomaChunkNew::decode(payload).map_err(bad)?;
            chunks.report_chunks(server, &packet.chunks, table, now, effects);
        }
        CstomaCreate::TYPE => {
            let CstomaCreate { chunkid, status } = CstomaCreate::decode(payload).map_err(bad)?;
            tally.answered(Work::Create, status);
            chunks.answer(server, chunkid, Answered::Create, status, table, now, effects);
        }
        CstomaDelete::TYPE => {
            let CstomaDelete { chunkid, status } = CstomaDelete::decode(payload).map_err(bad)?;
            tally.answered(Work::Delete, status);
            chunks.answer_delete(server, chunkid, status, table, now, effects);
        }
        CstomaDuplicate::TYPE => {
            let CstomaDuplicate { chunkid, status } = CstomaDuplicate::decode(payload).map_err(bad)?;
            tally.answered(Work::Change, status);
            chunks.answer(server, chunkid, Answered::Duplicate, status, table, now, effects);
        }
        CstomaSetVersion::TYPE => {
            let CstomaSetVersion { chunkid, status } = CstomaSetVersion::decode(payload).map_err(bad)?;
            tally.answered(Work::Change, status);
            chunks.answer(server, chunkid, Answered::SetVersion, status, table, now, effects);
        }
        CstomaTruncate::TYPE => {
            let CstomaTruncate { chunkid, status } = CstomaTruncate::decode(payload).map_err(bad)?;
            tally.answered(Work::Change, status);
            chunks.answer(server, chunkid, Answered::Truncate, status, table, now, effects);
        }
        CstomaDuptrunc::TYPE => {
            let CstomaDuptrunc { chunkid, status } = CstomaDuptrunc::decode(payload).map_err(bad)?;
            tally.answered(Work::Change, status);
            chunks.answer(server, chunkid, Answered::DuplicateTruncate, status, table, now, effects);
        }
        CstomaReplicate::TYPE => {
            let CstomaReplicate { chunkid, version, status } = CstomaReplicate::decode(payload).map_err(bad)?;
            tally.answered(Work::Replicate, status);
            if status != Status::OK {
                info!(chunk = %chunkid, %status, "a replication failed");
            }
            chunks.answer_replicate(server, chunkid, version, status, table, now, effects);
        }
        other => return Err(format!("unknown packet type {other}")),
    }
    Ok(())
}

fn register(
    core: &mut Core,
    peer: &mut Peer,
    packet: CstomaRegister,
    random: [u64; 4],
    now: u32,
) -> Result<(), String> {
    match (packet, peer.server) {
        (CstomaRegister::Begin { .. }, Some(_)) => Err("second BEGIN on one connection".to_owned()),
        (CstomaRegister::Begin { passcode, begin }, None) => {
            if let Some(code) = core.settings.auth_code.clone() {
                match (passcode, peer.challenge) {
                    (None, _) => {
                        let challenge: [u8; 32] =
                            random.map(u64::to_be_bytes).concat().try_into().expect("four words are 32 bytes");
                        peer.challenge = Some(challenge);
                        peer.outbox.push(&MatocsMasterAck::Challenge(challenge).encode());
                        return Ok(());
                    }
                    (Some(proof), Some(challenge)) if proof == auth_passcode(&challenge, &code) => {}
                    (Some(_), _) => return Err("wrong AUTH_CODE".to_owned()),
                }
            }
            begin_registration(core, peer, &begin, now)
        }
        (CstomaRegister::Chunks(reports), Some(server)) => {
            let Core { namespace, chunks, effects, .. } = core;
            chunks.report_chunks(server, &reports, namespace, now, effects);
            core.reply(&peer.outbox.clone(), MatocsMasterAck::Next.encode());
            Ok(())
        }
        (CstomaRegister::End, Some(server)) => {
            let last = core.chunks.registered(server);
            info!(server = describe(core, server), "chunkserver registered");
            core.count_absent_servers();
            if last {
                invalidate_caches(core);
            }
            Ok(())
        }
        (CstomaRegister::Disconnect, server) => {
            if let Some(server) = server {
                temporary_maintenance(core, server, now);
            }
            Err("the chunkserver says good-bye".to_owned())
        }
        (CstomaRegister::Chunks(_) | CstomaRegister::End, None) => Err("chunk list before BEGIN".to_owned()),
    }
}

/// BEGIN: who is it, and may it come in? Spec 40, 3.2 and 4.
fn begin_registration(core: &mut Core, peer: &mut Peer, begin: &RegisterBegin, now: u32) -> Result<(), String> {
    let ip = if begin.ip == Ip4(0) { peer.ip } else { begin.ip };
    let timeout = match begin.timeout {
        0 => core.settings.chunkserver_timeout_seconds,
        1..10 => return Err(format!("a timeout of {} s is too short", begin.timeout)),
        seconds => seconds,
    };
    let known: Vec<Known> = core
        .namespace
        .servers()
        .map(|((ip, port), entry)| Known {
            csid: entry.csid,
            ip,
            port,
            connected: entry.csid != 0 && core.chunks.servers().by_csid(entry.csid).is_some(),
        })
        .collect();
    let log = |core: &mut Core, operation: u8, argument: u32| {
        core.namespace
            .server_op(now, operation, ip, begin.port, argument)
            .map_err(|status| format!("the list of chunkservers refuses it: {status}"))
    };
    let csid = match identify(&known, ip, begin.port, begin.csid) {
        Identity::Known { csid } => csid,
        Identity::Numbered { csid } => {
            log(core, database::NEW_NUMBER, u32::from(csid))?;
            csid
        }
        Identity::Moved { csid } => {
            log(core, database::NEW_ADDRESS, u32::from(csid))?;
            csid
        }
        Identity::New { csid } => {
            log(core, database::ADD, u32::from(csid))?;
            csid
        }
        Identity::StillConnected { csid } => {
            if let Some(link) = core.chunks.servers().by_csid(csid).and_then(|old| core.servers.get(&old))
                && link.last_heard.saturating_add(SILENT_SECONDS) < now
            {
                link.outbox.cut();
            }
            return Err(format!("chunkserver {csid} ({ip}:{}) is still connected", begin.port));
        }
        Identity::NoNumberLeft => return Err("all chunkserver ids are in use".to_owned()),
    };
    let mut server = Server::new(csid, ip, begin.port, begin.version, begin.space.clone());
    server.maintenance = core.namespace.servers().any(|(_, entry)| entry.csid == csid && entry.maintenance == 1);
    let Some(id) = core.chunks.connect(server) else { return Err("too many chunkservers".to_owned()) };
    core.servers.insert(id, Link { outbox: peer.outbox.clone(), last_heard: now });
    peer.server = Some(id);
    peer.version = begin.version;
    peer.timeout = Duration::from_secs(u64::from(timeout));
    core.count_absent_servers();
    info!(server = describe(core, id), version = %begin.version, csid, "chunkserver begins to register");

    // Never a NOP before this: an unregistered 3.x chunkserver would take us for a master of 1.6. Spec 40, 1.1.
    let metaid = core.namespace.meta_id();
    let ack = MatocsMasterAck::Begin { master_version: VersionWord::OURS, timeout, csid, metaid };
    let every = Duration::from_millis(u64::from(timeout) * 1000 / 3);
    let keep_alive = KeepAlive { nop: AntoanNop {}.encode(), every };
    core.reply_and_keep_alive(&peer.outbox.clone(), ack.encode(), keep_alive);
    Ok(())
}

/// A server that announces its restart: while it is away, chunks that it has are not copied because of it. Spec 40, 11.3.
fn temporary_maintenance(core: &mut Core, server: ServerId, now: u32) {
    let Some(server) = core.chunks.servers().get(server) else { return };
    let (ip, port, csid) = (server.ip, server.port, server.csid);
    if core.namespace.servers().any(|(_, entry)| entry.csid == csid && entry.maintenance != 0) {
        return;
    }
    let until = match core.settings.temporary_maintenance_seconds {
        0 => 0,
        seconds => now.saturating_add(seconds),
    };
    if let Err(status) = core.namespace.server_op(core.time, database::MAINTENANCE_TEMPORARY, ip, port, until) {
        warn!(%status, "cannot note that a chunkserver restarts");
    }
    core.count_absent_servers();
}

fn disconnect(core: &mut Core, server: ServerId, now: u32) {
    core.servers.remove(&server);
    core.passes.server_gone();
    let Core { namespace, chunks, effects, .. } = core;
    chunks.disconnect(server, namespace, now, effects);
    core.count_absent_servers();
    invalidate_caches(core);
}

/// Clients forget where chunks are. Spec 30, 6.
fn invalidate_caches(core: &Core) {
    let packet = MatoclFuseInvalidateChunkCache { msgid: 0 }.encode();
    for link in core.clients.values() {
        if link.is_mount() && link.version.in_either_line((3, 0, 100), (4, 3, 0)) {
            link.outbox.push_notice(&packet);
        }
    }
}

fn describe(core: &Core, server: ServerId) -> String {
    core.chunks.servers().get(server).map_or_else(String::new, |server| format!("{}:{}", server.ip, server.port))
}

/// Answer to GET_VERSION, with the question's message id if it had one. Spec 10, 2.
pub(crate) fn version_answer(msgid: Option<u32>) -> Vec<u8> {
    let text = Rest(VersionWord::OURS_TEXT.as_bytes().to_vec());
    match msgid {
        Some(msgid) => AntoanVersionWithId { msgid, version: VersionWord::OURS, text }.encode(),
        None => AntoanVersion { version: VersionWord::OURS, text }.encode(),
    }
}
