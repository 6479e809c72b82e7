//! Questions of monitors and tools. Spec 70.

use charts::Process;
use meta::chunks::HeavyLoad;
use tracing::{info, warn};
use wire::{
    AntoclChart, AntoclModuleInfo, AntoclModuleInfoWithId, AntoclMonotonicData, CltoanChart, CltoanChartData,
    CltoanModuleInfo, CltoanMonotonicData, Field, HEADER_BYTES, Header, Ip4, Packet, Status, VersionWord,
    session_flags,
};

use super::requests::Entry;
use crate::master::Shared;
use crate::master::core::Core;

pub(super) const CSERV_LIST: u32 = 500;
pub(super) const SESSION_LIST: u32 = 508;
pub(super) const INFO: u32 = 510;
pub(super) const MLOG_LIST: u32 = 522;
pub(super) const CSSERV_COMMAND: u32 = 524;
pub(super) const SESSION_COMMAND: u32 = 526;

/// CSSERV_COMMAND that forgets a server. Spec 70, 5.1.
const REMOVE: u8 = 0;

/// One question. An error is the reason to hang up.
pub(super) fn handle(master: &Shared, id: u64, asked: &'static Entry, payload: &[u8]) -> Result<(), String> {
    let micros = master.ring.wall_micros();
    master.with(|core, now| answer(core, id, asked, payload, micros, now))
}

fn answer(
    core: &mut Core,
    id: u64,
    asked: &'static Entry,
    payload: &[u8],
    micros: u64,
    now: u32,
) -> Result<(), String> {
    let kind = asked.kind;
    let outbox = core.clients.get(&id).ok_or("the connection is closed")?.outbox.clone();
    let packet = match kind {
        CltoanModuleInfo::TYPE => module_info(core, payload)?,
        CltoanMonotonicData::TYPE if payload.is_empty() => {
            let counters = wire::Counters(core.charts.totals().to_vec());
            AntoclMonotonicData { counters, disks: wire::DiskTotals(None) }.encode()
        }
        CltoanChart::TYPE => {
            let CltoanChart { chart, size } = CltoanChart::decode(payload).map_err(|error| error.to_string())?;
            AntoclChart { picture: wire::Rest(core.charts.picture(chart, size)) }.encode()
        }
        CltoanChartData::TYPE => {
            let packet = CltoanChartData::decode(payload).map_err(|error| error.to_string())?;
            core.charts.answer(packet.chart, packet.entries_max)
        }
        CSERV_LIST if payload.is_empty() => packet(kind + 1, &chunkservers(core, now)),
        SESSION_LIST if payload.len() <= 1 => {
            packet(kind + 1, &sessions(core, payload.first().copied().unwrap_or(0), now))
        }
        INFO if payload.is_empty() => packet(kind + 1, &info(core, micros)),
        MLOG_LIST if payload.is_empty() => {
            let mut out = Vec::new();
            for (version, ip) in core.loggers.peers() {
                version.put(&mut out);
                ip.put(&mut out);
            }
            packet(kind + 1, &out)
        }
        // The old form: the removal of a server, and an answer without status.
        CSSERV_COMMAND if payload.len() == 6 => {
            if is_admin(core, id) {
                let status = server_command(core, &[&[REMOVE][..], payload].concat(), now);
                info!(%status, "a chunkserver is to be forgotten");
            }
            packet(kind + 1, &[])
        }
        CSSERV_COMMAND if payload.len() == 7 => {
            let status = if is_admin(core, id) { server_command(core, payload, now) } else { Status::EPERM_NOTADMIN };
            packet(kind + 1, &[status.0])
        }
        SESSION_COMMAND if payload.len() == 5 => {
            let status = if is_admin(core, id) { session_command(core, payload) } else { Status::EPERM_NOTADMIN };
            packet(kind + 1, &[status.0])
        }
        _ => match super::monitor::answer(core, kind, payload, now) {
            Some(payload) => packet(kind + 1, &payload),
            None => return Err(format!("monitoring packet of type {kind} with {} bytes is not served", payload.len())),
        },
    };
    core.answer(&outbox, asked.purpose, packet);
    Ok(())
}

/// Whether this connection may give administration commands: its session is an administrator's, or the exports have its
/// address with `admin`. MooseFS's master obeys anybody. Spec 70, 5.
fn is_admin(core: &Core, id: u64) -> bool {
    let Some(link) = core.clients.get(&id) else { return false };
    let session = link.session.and_then(|session| core.namespace.session(session));
    let allowed = session.is_some_and(|session| session.params.flags & session_flags::ADMIN != 0)
        || core.exports.allows_admin(link.ip);
    if !allowed {
        warn!(
            client = %link.ip,
            "an administration command is refused: no line of mfsexports.cfg has this address with `admin` and without \
             a password; add one and reload the master to allow it"
        );
    }
    allowed
}

fn packet(kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("lists are far below 4 GiB");
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&Header { kind, length }.encode());
    out.extend_from_slice(payload);
    out
}

fn module_info(core: &Core, payload: &[u8]) -> Result<Vec<u8>, String> {
    let packet = CltoanModuleInfo::decode(payload).map_err(|error| error.to_string())?;
    let (version, metaid) = (VersionWord::OURS, core.namespace.meta_id());
    let (module, id, leader_ip, leader_port) = (1, 0, Ip4(0), 0);
    Ok(match packet.msgid {
        Some(msgid) => AntoclModuleInfoWithId { msgid, module, version, id, metaid, leader_ip, leader_port }.encode(),
        None => AntoclModuleInfo { module, version, id, metaid, leader_ip, leader_port }.encode(),
    })
}

/// 149 bytes: the form of 3.0.117. `micros`: what the clock says. Spec 70, 4.1.
fn info(core: &Core, micros: u64) -> Vec<u8> {
    let (total, free, avail) = core.space();
    let sums = core.namespace.totals();
    let now = u32::try_from(micros / 1_000_000).unwrap_or(u32::MAX);
    let [all, regular] = core.overview(now).copies;
    let mut out = Vec::with_capacity(149);
    VersionWord::OURS.put(&mut out);
    memory_bytes().put(&mut out);
    for value in [core.cpu.system, core.cpu.user, total, avail, free, sums.trash_bytes] {
        value.put(&mut out);
    }
    sums.trash_nodes.put(&mut out);
    sums.sustained_bytes.put(&mut out);
    for value in [sums.sustained_nodes, sums.nodes, sums.dirs, sums.files, core.namespace.chunk_count(), all, regular] {
        value.put(&mut out);
    }
    core.last_image.at.put(&mut out);
    core.last_image.took_millis.put(&mut out);
    0u8.put(&mut out);
    out.extend_from_slice(&[0xFF; 4]);
    Ip4(0).put(&mut out);
    0u32.put(&mut out);
    core.namespace.version().put(&mut out);
    core.exports.checksum().put(&mut out);
    micros.put(&mut out);
    0u32.put(&mut out);
    out
}

/// Resident bytes of this process, as the system tells.
fn memory_bytes() -> u64 {
    Process::parse("", &crate::master::system_file("/proc/self/status").unwrap_or_default()).resident_bytes
}

/// 69 bytes each. Spec 70, 4.2.
fn chunkservers(core: &Core, now: u32) -> Vec<u8> {
    let mut out = Vec::new();
    for ((ip, port), entry) in core.namespace.servers() {
        let server = core.chunks.servers().by_csid(entry.csid).and_then(|id| core.chunks.servers().get(id));
        let maintenance = match entry.maintenance {
            1 => 2,
            2 => 2 | 4,
            _ => 0,
        };
        let flags = u8::from(server.is_none()) | maintenance;
        flags.put(&mut out);
        let version = server.map_or(0, |server| server.version.0);
        out.extend_from_slice(&version.to_be_bytes()[1..]);
        ip.put(&mut out);
        port.put(&mut out);
        entry.csid.put(&mut out);
        let Some(server) = server else {
            out.resize(out.len() + 40 + 8 + 4 + 4 + 1, 0);
            continue;
        };
        server.space.put(&mut out);
        server.errors.put(&mut out);
        server.load.put(&mut out);
        let grace: u32 = match server.heavy_load {
            HeavyLoad::Ok => 0,
            HeavyLoad::Overloaded => 0xC000_0000,
            HeavyLoad::Rebalance => 0x8000_0000,
            HeavyLoad::Default | HeavyLoad::Graceful => core.grace.left(entry.csid, now),
        };
        grace.put(&mut out);
        server.labels.put(&mut out);
        core.passes.removal(entry.csid).put(&mut out);
    }
    out
}

/// Spec 70, 4.3.
fn sessions(core: &Core, mode: u8, now: u32) -> Vec<u8> {
    let mut out = Vec::new();
    (super::operations::COUNT as u16).put(&mut out);
    let text = |bytes: &[u8], out: &mut Vec<u8>| {
        u32::try_from(bytes.len()).unwrap_or(0).put(out);
        out.extend_from_slice(bytes);
    };
    for (id, session) in core.namespace.sessions() {
        let sockets = core.clients.values().filter(|link| link.session == Some(id));
        let version = sockets.clone().map(|link| link.version).next().unwrap_or(VersionWord(0));
        let count = sockets.count();
        if count == 0 && mode < 2 {
            continue;
        }
        let params = &session.params;
        id.put(&mut out);
        params.peer_ip.put(&mut out);
        version.put(&mut out);
        if mode >= 2 {
            u32::try_from(core.namespace.open_files(id).count()).unwrap_or(u32::MAX).put(&mut out);
            u8::try_from(count).unwrap_or(u8::MAX).put(&mut out);
            let until = session.disconnected.saturating_add(core.settings.policy.session_sustain_seconds);
            (if count > 0 { u32::MAX } else { until.saturating_sub(now) }).put(&mut out);
        }
        text(&params.info, &mut out);
        let path = match params.root.0 {
            0 => b".".to_vec(),
            _ => core.namespace.path_of_root(params.root),
        };
        text(&path, &mut out);
        (params.flags & !session_flags::ATTRBIT).put(&mut out);
        if mode >= 3 {
            params.umask.put(&mut out);
        }
        for word in [params.root_uid, params.root_gid, params.map_all_uid, params.map_all_gid] {
            word.put(&mut out);
        }
        if mode >= 1 {
            params.goal_min.put(&mut out);
            params.goal_max.put(&mut out);
            params.trash_time_min_seconds.put(&mut out);
            params.trash_time_max_seconds.put(&mut out);
        }
        if mode >= 4 {
            params.disables.put(&mut out);
        }
        let (present, last) = core.operations.of(id);
        present.iter().chain(&last).for_each(|count| count.put(&mut out));
    }
    out
}

/// Spec 70, 5.1.
fn server_command(core: &mut Core, payload: &[u8], now: u32) -> Status {
    let mut input = wire::Input::new(payload);
    let (Ok(command), Ok(ip), Ok(port)) = (u8::take(&mut input), Ip4::take(&mut input), u16::take(&mut input)) else {
        return Status::EINVAL;
    };
    let Some((_, entry)) = core.namespace.servers().find(|(address, _)| *address == (ip, port)) else {
        return Status::NOTFOUND;
    };
    let csid = entry.csid;
    let connected = core.chunks.servers().by_csid(csid);
    let (operation, argument) = match command {
        REMOVE if connected.is_some() => return Status::ACTIVE,
        REMOVE => (1, 0),
        1 => {
            core.back_to_work(csid, now);
            return Status::OK;
        }
        2 => (
            4,
            match core.settings.maintenance_seconds {
                0 => 0,
                seconds => now.saturating_add(seconds),
            },
        ),
        3 => (5, 0),
        _ => return Status::EINVAL,
    };
    if let Err(status) = core.namespace.server_op(core.time, operation, ip, port, argument) {
        return status;
    }
    if let Some(server) = connected.and_then(|id| core.chunks.servers_mut().get_mut(id)) {
        server.maintenance = command == 2;
    }
    core.count_absent_servers();
    Status::OK
}

/// Spec 70, 5.2.
fn session_command(core: &mut Core, payload: &[u8]) -> Status {
    let mut input = wire::Input::new(payload);
    let (Ok(command), Ok(session)) = (u8::take(&mut input), wire::SessionId::take(&mut input)) else {
        return Status::EINVAL;
    };
    if command != 0 {
        return Status::EINVAL;
    }
    if core.namespace.session(session).is_none() {
        return Status::NOTFOUND;
    }
    if core.clients.values().any(|link| link.session == Some(session)) {
        return Status::ACTIVE;
    }
    core.namespace.session_remove(core.time, session).err().unwrap_or(Status::OK)
}
