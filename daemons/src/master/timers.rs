//! What time alone brings about: the planner's ticks, trash, sessions that expire, maintenance that ends, rotation.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::{info, warn};
use wire::SessionId;

use super::Shared;
use super::chunk_loop;
use super::core::Core;

/// Between two ticks of the planner.
const TICK: Duration = Duration::from_millis(50);
/// Sessions stay for so long after a start, so that clients can come back. Spec 30, 4.5.
const SESSIONS_AFTER_START_SECONDS: u32 = 120;
/// How often sessions are looked at.
const SESSIONS_EVERY_SECONDS: u32 = 10;
const FORGET_SERVERS_EVERY_SECONDS: u32 = 600;
/// How often unknown chunks are counted.
const QUARANTINE_EVERY_SECONDS: u32 = 10;

/// How often the list of writers is gone through.
const WRITERS_EVERY_SECONDS: u32 = 10;

/// CSDBOP operations. Spec 40, 4.
const SERVER_DELETE: u8 = 1;
const MAINTENANCE_OFF: u8 = 5;

/// The planner of chunk copies, some tens of times per second.
pub(super) async fn plan(master: Shared) {
    let mut last = master.ring.now();
    loop {
        master.ring.sleep(TICK).await;
        let elapsed = last.elapsed(&master.ring).min(Duration::from_secs(1));
        last = master.ring.now();
        master.with(|core, now| {
            let Core { namespace, chunks, effects, .. } = core;
            chunks.tick(namespace, now, elapsed, effects);
        });
    }
}

pub(super) async fn every_second(master: Shared) {
    let mut last = master.now();
    loop {
        master.ring.sleep(Duration::from_secs(1)).await;
        let now = master.now();
        master.with(second);
        if now / 60 != last / 60 {
            master.with(|core, _| core.namespace.tick_minute(core.time));
        }
        if now / 3600 != last / 3600 {
            master.with(|core, _| {
                core.journal.ask_for_rotation();
                let Core { operations, namespace, .. } = core;
                operations.end_hour(|session| namespace.session(session).is_some());
            });
            master.journal_wake.notify_one();
        }
        last = now;
    }
}

fn second(core: &mut Core, now: u32) {
    core.namespace.tick_second(core.time);
    core.namespace.tick_archive(core.time);
    core.journal.forget_before(now.saturating_sub(core.settings.journal_remembered_seconds));
    if now.is_multiple_of(SESSIONS_EVERY_SECONDS) && now > core.started.saturating_add(SESSIONS_AFTER_START_SECONDS) {
        remove_sessions(core, now);
    }
    if now.is_multiple_of(QUARANTINE_EVERY_SECONDS) {
        core.warn_of_quarantined();
    }
    if now.is_multiple_of(WRITERS_EVERY_SECONDS) {
        core.forget_writers(now);
    }
    core.wake_unlocked(now);
    end_maintenance(core, now);
    core.spare_loaded(now);
    chunk_loop::second(core, now);
    if now.is_multiple_of(FORGET_SERVERS_EVERY_SECONDS) {
        forget_servers(core, now);
    }
}

/// Sessions that were closed, or that nobody came back to.
fn remove_sessions(core: &mut Core, now: u32) {
    let connected: BTreeSet<SessionId> = core.clients.values().filter_map(|link| link.session).collect();
    let mut gone = core.namespace.expired_sessions(now, &|session| connected.contains(&session));
    gone.extend(core.closed_sessions.iter().filter(|session| !connected.contains(session)));
    for session in gone {
        core.closed_sessions.remove(&session);
        match core.namespace.session_remove(core.time, session) {
            Ok(()) => info!(%session, "session removed"),
            Err(status) => warn!(%session, %status, "cannot remove a session"),
        }
    }
}

/// Temporary maintenance ends when the server is back, any maintenance at its end time. Spec 40, 11.3.
fn end_maintenance(core: &mut Core, now: u32) {
    let over: Vec<_> = core
        .namespace
        .servers()
        .filter(|(_, entry)| {
            let back = core.chunks.servers().by_csid(entry.csid).is_some();
            let timed_out = entry.maintenance_until != 0 && entry.maintenance_until < now;
            (entry.maintenance == 2 && back) || (entry.maintenance != 0 && timed_out)
        })
        .map(|(address, entry)| (address, entry.csid))
        .collect();
    let any = !over.is_empty();
    for ((ip, port), csid) in over {
        if let Err(status) = core.namespace.server_op(core.time, MAINTENANCE_OFF, ip, port, 0) {
            warn!(%status, "cannot end the maintenance of a chunkserver");
        }
        if let Some(id) = core.chunks.servers().by_csid(csid)
            && let Some(server) = core.chunks.servers_mut().get_mut(id)
        {
            server.maintenance = false;
        }
    }
    if any {
        core.count_absent_servers();
    }
}

/// Servers that did not come for days. Spec 40, 11.2. The clock starts when this master first misses them.
fn forget_servers(core: &mut Core, now: u32) {
    let days = core.settings.remove_unused_days;
    let absent: Vec<_> = core
        .namespace
        .servers()
        .filter(|(_, entry)| core.chunks.servers().by_csid(entry.csid).is_none())
        .map(|(address, _)| address)
        .collect();
    core.absent_since.retain(|address, _| absent.contains(address));
    for address in absent {
        let since = *core.absent_since.entry(address).or_insert(now);
        if days != 0 && since.saturating_add(days * 86_400) < now {
            info!(ip = %address.0, port = address.1, "a chunkserver that did not come for days is forgotten");
            if let Err(status) = core.namespace.server_op(core.time, SERVER_DELETE, address.0, address.1, 0) {
                warn!(%status, "cannot forget a chunkserver");
            }
            core.absent_since.remove(&address);
        }
    }
    core.count_absent_servers();
}
