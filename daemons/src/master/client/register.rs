//! How a client comes in: challenge, new session, reconnect, good-bye. Spec 30, 3.

use meta::session::SessionParams;
use tracing::{info, warn};
use wire::{
    CltomaFuseRegister, Field, HEADER_BYTES, Header, Inode, MatoclFuseRegister, MetaId, NewSession, Packet, SessionId,
    SessionLimits, Status, VersionWord, session_flags,
};

use super::requests::Entry;
use super::{Class, bad, client_keep_alive};
use crate::master::Shared;
use crate::master::core::Core;
use crate::master::exports::{Grant, Request};

/// One register packet. An error is the reason to hang up.
pub(super) fn register(master: &Shared, id: u64, asked: &'static Entry, payload: &[u8]) -> Result<(), String> {
    let packet = CltomaFuseRegister::decode(payload).map_err(|error| bad(asked, error))?;
    let random = [(); 4].map(|()| master.ring.random_u64());
    master.with(|core, _| register_as(core, id, packet, random))
}

fn register_as(core: &mut Core, id: u64, packet: CltomaFuseRegister, random: [u64; 4]) -> Result<(), String> {
    let link = core.clients.get(&id).ok_or("the connection is closed")?;
    let is_close = matches!(packet, CltomaFuseRegister::CloseSession { .. });
    if is_close != link.session.is_some() {
        return Err("register packet at the wrong time".to_owned());
    }
    match packet {
        CltomaFuseRegister::GetRandom => {
            let challenge: [u8; 32] =
                random.map(u64::to_be_bytes).concat().try_into().expect("four words are 32 bytes");
            let link = core.clients.get_mut(&id).ok_or("the connection is closed")?;
            link.challenge = Some(challenge);
            link.outbox.push(&answer(&MatoclFuseRegister::Random(challenge), VersionWord(0)));
        }
        CltomaFuseRegister::NewSession(wanted) | CltomaFuseRegister::NewMetaSession(wanted) => {
            new_session(core, id, &wanted);
        }
        CltomaFuseRegister::Reconnect { sessionid, version, metaid } => {
            reconnect(core, id, (sessionid, version, metaid), Class::Mount);
        }
        CltomaFuseRegister::Tools { sessionid, version, metaid } => {
            reconnect(core, id, (sessionid, version, metaid), Class::Tool);
        }
        CltomaFuseRegister::CloseSession { sessionid, metaid } => close_session(core, id, sessionid, metaid),
    }
    Ok(())
}

/// Payload in the form for this client, with its header.
fn answer(packet: &MatoclFuseRegister, client: VersionWord) -> Vec<u8> {
    let payload = match packet {
        MatoclFuseRegister::Session { .. } | MatoclFuseRegister::Reconnected { .. } => packet.payload_for(client),
        other => {
            let mut out = Vec::new();
            other.put(&mut out);
            out
        }
    };
    let length = u32::try_from(payload.len()).expect("register answers are short");
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&Header { kind: MatoclFuseRegister::TYPE, length }.encode());
    out.extend_from_slice(&payload);
    out
}

fn new_session(core: &mut Core, id: u64, wanted: &NewSession) {
    let Some(link) = core.clients.get_mut(&id) else { return };
    link.version = wanted.version;
    let link = link.clone();
    match admit(core, &link, wanted) {
        Ok((session, params)) => {
            let is_meta = wanted.path.is_none();
            info!(%session, ip = %link.ip, version = %wanted.version, info = %params.info.escape_ascii(), "session registered");
            attach(core, id, session, Class::Mount);
            let packet =
                if is_meta { meta_answer(core, session, &params) } else { session_answer(core, session, &params) };
            core.reply_and_keep_alive(&link.outbox, answer(&packet, wanted.version), client_keep_alive());
        }
        Err(status) => {
            warn!(ip = %link.ip, version = %wanted.version, %status, "a client may not register");
            core.reply(&link.outbox, answer(&MatoclFuseRegister::Status(status), wanted.version));
        }
    }
}

/// The exports decide; then the session is made, or a known one is moved to the present rules. Spec 30, 3.2.
fn admit(core: &mut Core, link: &super::Link, wanted: &NewSession) -> Result<(SessionId, SessionParams), Status> {
    let path = wanted.path.as_ref().map(|path| path.0.strip_suffix(&[0]).unwrap_or(&path.0));
    let proof = link.challenge.as_ref().zip(wanted.passcode.as_ref());
    let request = Request { ip: link.ip, version: wanted.version, path, proof };
    let grant = core.exports.find(&request)?.clone();
    let root = match path {
        Some(path) => core.namespace.resolve_root(path)?,
        None => Inode(0),
    };
    let info = wanted.info.0.strip_suffix(&[0]).unwrap_or(&wanted.info.0);
    let params = params(core, link, &grant, root, info);
    let metaid = core.namespace.meta_id();
    let same_metadata = wanted.metaid.is_none_or(|theirs| theirs == metaid);
    let known = wanted
        .sessionid
        .filter(|session| same_metadata && session.0 != 0 && core.namespace.session(*session).is_some());
    let session = match known {
        Some(session) => {
            core.namespace.session_change(core.time, session, params.clone())?;
            core.closed_sessions.remove(&session);
            session
        }
        None => core.namespace.session_add(core.time, params.clone()),
    };
    Ok((session, params))
}

fn params(core: &Core, link: &super::Link, grant: &Grant, root: Inode, info: &[u8]) -> SessionParams {
    let is_meta = root == Inode(0);
    SessionParams {
        exports_checksum: core.exports.checksum(),
        root,
        flags: grant.flags,
        umask: grant.umask,
        root_uid: grant.root.0,
        root_gid: grant.root.1,
        map_all_uid: if is_meta { 0 } else { grant.map_all.0 },
        map_all_gid: if is_meta { 0 } else { grant.map_all.1 },
        goal_min: grant.goals.0,
        goal_max: grant.goals.1,
        trash_time_min_seconds: grant.trash_times.0,
        trash_time_max_seconds: grant.trash_times.1,
        disables: grant.disables,
        peer_ip: link.ip,
        info: info.to_vec(),
    }
}

fn attach(core: &mut Core, id: u64, session: SessionId, class: Class) {
    if let Some(link) = core.clients.get_mut(&id) {
        link.session = Some(session);
        link.class = class;
    }
    if core.namespace.session(session).is_some_and(|session| session.disconnected != 0)
        && let Err(status) = core.namespace.session_connected(core.time, session)
    {
        warn!(%session, %status, "cannot note that a session is connected");
    }
}

fn session_answer(core: &Core, sessionid: SessionId, params: &SessionParams) -> MatoclFuseRegister {
    MatoclFuseRegister::Session {
        version: VersionWord::OURS,
        sessionid,
        metaid: Some(core.namespace.meta_id()),
        limits: SessionLimits {
            sesflags: params.flags,
            umask: params.umask,
            rootuid: params.root_uid,
            rootgid: params.root_gid,
            mapalluid: params.map_all_uid,
            mapallgid: params.map_all_gid,
            mingoal: params.goal_min,
            maxgoal: params.goal_max,
            mintrashtime: params.trash_time_min_seconds,
            maxtrashtime: params.trash_time_max_seconds,
            disables: params.disables,
        },
    }
}

fn meta_answer(core: &Core, sessionid: SessionId, params: &SessionParams) -> MatoclFuseRegister {
    MatoclFuseRegister::MetaSession {
        version: VersionWord::OURS,
        sessionid,
        metaid: core.namespace.meta_id(),
        sesflags: params.flags,
        mingoal: params.goal_min,
        maxgoal: params.goal_max,
        mintrashtime: params.trash_time_min_seconds,
        maxtrashtime: params.trash_time_max_seconds,
    }
}

/// RECONNECT and TOOLS: the session goes on if nothing about it changed. Spec 30, 3.3.
fn reconnect(
    core: &mut Core,
    id: u64,
    (session, version, metaid): (SessionId, VersionWord, Option<MetaId>),
    class: Class,
) {
    let Some(link) = core.clients.get_mut(&id) else { return };
    link.version = version;
    let link = link.clone();
    let status = match core.namespace.session(session) {
        _ if metaid.is_some_and(|theirs| theirs != core.namespace.meta_id()) => Status::BADSESSIONID,
        None => Status::BADSESSIONID,
        Some(known) => {
            let params = &known.params;
            let moved = params.peer_ip != link.ip && params.flags & session_flags::DYNAMICIP == 0;
            if params.exports_checksum != core.exports.checksum() || moved { Status::EPERM } else { Status::OK }
        }
    };
    let packet = match class {
        Class::Tool => MatoclFuseRegister::Status(status),
        _ => MatoclFuseRegister::Reconnected { version: VersionWord::OURS, status },
    };
    let packet = answer(&packet, version);
    info!(%session, ip = %link.ip, %status, "a client reconnects");
    if status != Status::OK {
        core.reply(&link.outbox, packet);
        return;
    }
    core.closed_sessions.remove(&session);
    attach(core, id, session, class);
    match class {
        Class::Mount => core.reply_and_keep_alive(&link.outbox, packet, client_keep_alive()),
        _ => core.reply(&link.outbox, packet),
    }
}

fn close_session(core: &mut Core, id: u64, session: SessionId, metaid: Option<MetaId>) {
    let Some(link) = core.clients.get(&id).cloned() else { return };
    let own = link.session == Some(session) && metaid.is_none_or(|theirs| theirs == core.namespace.meta_id());
    if own && core.clients.values().filter(|other| other.session == Some(session)).count() == 1 {
        core.closed_sessions.insert(session);
    }
    let status = if own { Status::OK } else { Status::BADSESSIONID };
    if link.version.at_least(1, 7, 29) {
        core.reply(&link.outbox, answer(&MatoclFuseRegister::Status(status), link.version));
    }
    link.outbox.close();
}
