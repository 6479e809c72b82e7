//! `mooring why`: what is done about a chunk, and what that waits for, in words.
//!
//! The planner explains itself (`meta::chunks::Explanation`: its own decision, the refusals of servers as it sees them);
//! here are the sentences, and what the namespace knows besides: storage class, slots, the session that writes.

use meta::chunks::{
    CopyKind, CopyState, Copying, Decision, Explanation, Instead, LabelMask, Mode, Obstacle, Operation, Queue, Refusal,
    Rest, ServerId,
};
use wire::limits::CHUNK_BYTES;
use wire::{ChunkId, CltomaWhy, Inode, MatoclWhy, Packet, Status, Version, why_subjects};

use super::Request;
use crate::master::core::Core;

/// Chunks that one answer tells of; the tool asks on.
const CHUNKS_MAX: usize = 32;
/// Unknown chunks that one answer lists.
const UNKNOWN_MAX: usize = 4096;
/// Servers that are told of one by one, for each chunk.
const SERVERS_MAX: usize = 64;

/// Answers, or says why not: the inode is none of the session's, or no file.
pub(super) fn answer(request: &mut Request<'_>, packet: &CltomaWhy) {
    let (core, now) = (&*request.core, request.now);
    let result = match packet.subject {
        why_subjects::FILE => file(request, packet),
        why_subjects::CHUNK => Ok((0, chunk(core, ChunkId(packet.id), now))),
        why_subjects::UNKNOWN => Ok(unknown(core, ChunkId(packet.id))),
        _ => Err(Status::EINVAL),
    };
    let result = result
        .map(|(next, text)| MatoclWhy { msgid: packet.msgid, next, text: wire::Rest(text.into_bytes()) }.encode());
    request.finish(packet.msgid, result);
}

/// The chunks of a file from a slot on; with the slot to go on at, if there are more.
fn file(request: &Request<'_>, packet: &CltomaWhy) -> Result<(u64, String), Status> {
    let core = &*request.core;
    let inode = Inode(u32::try_from(packet.id).map_err(|_| Status::ENOENT)?);
    let (inode, length, slots) = core.namespace.file(request.session, inode)?;
    let mut text = String::new();
    if packet.first == 0 {
        text = format!("file of {length} bytes in {slots} {}\n", plural(slots as usize, "chunk"));
    }
    let mut chunks = core.namespace.file_chunks(inode, packet.first)?;
    for (index, id) in chunks.by_ref().take(CHUNKS_MAX) {
        let from = u64::from(index) * u64::from(CHUNK_BYTES);
        text += &format!("\nfrom byte {from}: {}", chunk(core, id, request.now));
    }
    Ok((chunks.next().map_or(0, |(index, _)| u64::from(index)), text))
}

/// Chunks that chunkservers have and the metadata do not know, from one on.
fn unknown(core: &Core, from: ChunkId) -> (u64, String) {
    let mut lines = Vec::new();
    let mut last = None;
    for (chunk, server, version) in core.chunks.quarantined_from(from) {
        // A chunk is listed in one answer, with all of its copies.
        if lines.len() >= UNKNOWN_MAX && last != Some(chunk) {
            return (chunk.0, lines.concat());
        }
        last = Some(chunk);
        lines.push(format!("{chunk} version {version} on {}\n", name(core, server)));
    }
    (0, lines.concat())
}

/// One chunk: what it is, where it is, what is done and what that waits for.
fn chunk(core: &Core, id: ChunkId, now: u32) -> String {
    let why = core.chunks.explain(id, &core.namespace, now);
    let mut lines = vec![what_it_is(id, &why)];
    lines.extend(rule(core, id, &why).map(|rule| format!("  wanted: {rule}")));
    let version = why.facts.map_or(Version(0), |facts| facts.version);
    for (server, state) in &why.copies {
        lines.push(format!("  copy on {}: {}", name(core, *server), copy_words(*state, version)));
    }
    for (server, version) in &why.quarantined {
        lines.push(format!("  copy on {}: of version {version}, kept", name(core, *server)));
    }
    if why.facts.is_some() {
        lines.push(format!("  state: {}", state(core, id, &why, now)));
        lines.extend(obstacles(core, &why).into_iter().map(|line| format!("    {line}")));
        lines.extend(waits(core, &why, now).into_iter().map(|line| format!("  waits: {line}")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn what_it_is(id: ChunkId, why: &Explanation) -> String {
    match why.facts {
        Some(facts) => {
            let slots = plural(facts.files as usize, "slot");
            format!("chunk {id}, version {}, in {} {slots} of files", facts.version, facts.files)
        }
        None if why.was_deleted => format!("chunk {id} was deleted; what copies turn up go"),
        None if why.quarantined.is_empty() => {
            format!("chunk {id} is not in the metadata, and no chunkserver that is here has told of it")
        }
        None => format!(
            "chunk {id} is not in the metadata; its copies are kept, since the metadata may be old or not the right ones"
        ),
    }
}

/// The storage class and which of its definitions applies.
fn rule(core: &Core, id: ChunkId, why: &Explanation) -> Option<String> {
    let record = core.namespace.chunk(id).filter(|record| record.references > 0)?;
    let class = core.namespace.class(record.class)?;
    let goal = why.facts?.goal;
    let copies = format!("{goal} {}", if goal == 1 { "copy" } else { "copies" });
    if class.is_simple() {
        return Some(format!("{copies} on any servers (goal {})", class.name.escape_ascii()));
    }
    let which = if record.archived { "archive" } else { "keep" };
    let mode = match why.mode {
        Some(Mode::Loose) => ", loose: other servers will do where these are busy or full",
        Some(Mode::Standard) => ", standard: other servers will do where these are full",
        Some(Mode::Strict) => ", strict: no other servers",
        None => "",
    };
    let labels: Vec<String> = why.wanted.iter().map(|(mask, _)| labels(mask)).collect();
    let labels = if labels.is_empty() { "any servers".to_owned() } else { labels.join(",") };
    let archive = match (class.arch_delay_days, record.archived) {
        (0, _) | (_, true) => String::new(),
        (days, false) => format!("; archived {days} days after the file's last change"),
    };
    Some(format!("{copies} on {labels} (class {}, {which}{mode}{archive})", class.name.escape_ascii()))
}

/// As mfsscadmin writes them: `AB` both, `A+B` one of them, `*` any.
fn labels(mask: &LabelMask) -> String {
    if mask.0.is_empty() {
        return "*".to_owned();
    }
    mask.0.iter().map(|set| letters(*set)).collect::<Vec<_>>().join("+")
}

fn letters(set: u32) -> String {
    (0..26u8).filter(|bit| set >> bit & 1 == 1).map(|bit| char::from(b'A' + bit)).collect()
}

fn copy_words(state: CopyState, of_chunk: Version) -> String {
    let what = match state.kind {
        CopyKind::Valid => "good".to_owned(),
        CopyKind::Behind(version) => {
            format!("good, of version {version}: a change of the chunk was begun and not ended")
        }
        CopyKind::Busy => "told to change or to be made, not answered yet".to_owned(),
        CopyKind::WrongVersion(version) if version > of_chunk => {
            format!("of version {version}, newer than the metadata know of: it is kept, and they may be an old copy")
        }
        CopyKind::WrongVersion(version) => format!("of version {version}: older than what was written last"),
        CopyKind::Invalid => "damaged, or what it holds is not known".to_owned(),
        CopyKind::Deleting => "told to go, not answered yet".to_owned(),
    };
    let mark = if state.marked { "; its disk is marked for removal, so that it does not count" } else { "" };
    format!("{what}{mark}")
}

/// What the planner does at its next look.
fn state(core: &Core, id: ChunkId, why: &Explanation, now: u32) -> String {
    let good = why.copies.iter().filter(|(_, state)| state.is_usable() && !state.marked).count();
    let missing = usize::from(why.facts.map_or(0, |facts| facts.goal)).saturating_sub(good);
    match &why.decision {
        Decision::Unknown => "not in the metadata".to_owned(),
        Decision::AsWanted => "as wanted".to_owned(),
        Decision::Locked { until } => {
            let writer = core.writers.get(&id).map_or_else(
                || "by a writer whom this master did not see".to_owned(),
                |session| format!("by a write of session {session}{}", session_words(core, *session)),
            );
            format!(
                "locked {writer}, for another {} s at most; nothing is copied or deleted meanwhile",
                until.saturating_sub(now)
            )
        }
        Decision::Operating(Operation::Replicate { deadline }) => {
            format!("being copied; given up in {} s; writers wait meanwhile", deadline.saturating_sub(now))
        }
        Decision::Operating(operation) => format!("the servers were told to {}", operation_words(*operation)),
        Decision::RemoveRecord => {
            "no file wants it and no copy is left: its record goes once every known server is here".to_owned()
        }
        Decision::DeleteUnused => "no file wants it: its copies go".to_owned(),
        Decision::NoCopies => format!("no server that is here has a copy{}", absent(why)),
        Decision::Adopt(version) => {
            format!("no copy has the right version; those of version {version} become the chunk")
        }
        Decision::Unavailable => format!(
            "no copy is good, and none proves that it is not older than what was written{}; mfsfilerepair decides",
            absent(why)
        ),
        Decision::Settle => {
            "a change of it was begun and its end is not known: next it is ended on the copies that are here, which lack \
             nothing that was acknowledged"
                .to_owned()
        }
        Decision::Unsettled { until } => format!(
            "a change of it was begun and its end is not known; it can be read. The change is ended when all copies are \
             here, when it is written, or in {} s",
            until.saturating_sub(now)
        ),
        Decision::Replicate(Copying { source, target, endangered }) => {
            let danger = if *endangered { "only one good copy is left" } else { "another copy is wanted" };
            format!("{danger}: next it is copied from {} to {}", name(core, *source), name(core, *target))
        }
        Decision::Stuck { elsewhere, .. } if *elsewhere => {
            "enough copies, not where they are wanted; they cannot be moved now".to_owned()
        }
        Decision::Stuck { instead, .. } => {
            let instead = match instead {
                None => String::new(),
                Some(Instead::DeleteBad) => {
                    "; every server has a copy of some kind: the bad ones go to make room".to_owned()
                }
                Some(Instead::MakeRoom(server)) => {
                    format!("; the copy marked for removal on {} goes to make room", name(core, *server))
                }
            };
            format!(
                "{missing} more {} wanted, and none can be made now{instead}",
                if missing == 1 { "copy is" } else { "copies are" }
            )
        }
        Decision::DeleteBad => "enough good copies: the bad ones go".to_owned(),
        Decision::DeleteSurplus(servers) if servers.is_empty() => {
            "more copies than wanted; those that could go are on servers that are overloaded or in maintenance"
                .to_owned()
        }
        Decision::DeleteSurplus(servers) => {
            format!("more copies than wanted: {} goes", list(core, servers))
        }
    }
}

fn operation_words(operation: Operation) -> &'static str {
    match operation {
        Operation::None => "do nothing",
        Operation::Create => "make it",
        Operation::SetVersion => "raise its version before it is written",
        Operation::TakeBack => "say whether a damaged copy counts all the same",
        Operation::Duplicate => "make it of a chunk that several files share",
        Operation::Truncate => "cut it",
        Operation::DuplicateTruncate => "make it of a chunk that several files share, and cut it",
        Operation::Replicate { .. } => "copy it",
    }
}

/// Why no copy can be made: of the whole, and of each server.
fn obstacles(core: &Core, why: &Explanation) -> Vec<String> {
    let Decision::Stuck { obstacle, .. } = &why.decision else { return Vec::new() };
    let mut lines = Vec::new();
    let missing: Vec<String> =
        why.wanted.iter().filter(|(_, server)| server.is_none()).map(|(mask, _)| labels(mask)).collect();
    match obstacle {
        Obstacle::Maintenance => {
            lines.push("every server that is away is in maintenance: it will be back with its copies".to_owned())
        }
        Obstacle::NoMatchingTarget if missing.iter().all(|labels| labels == "*") => {
            lines.push(
                "no server that could take a copy is on a machine, or in a rack, of its own (CHUNKS_UNIQUE_MODE)"
                    .to_owned(),
            );
        }
        Obstacle::NoMatchingTarget => {
            lines.push(format!("no server that could take a copy has the labels {}", missing.join(",")));
        }
        Obstacle::NoTarget if why.targets.is_empty() => lines.push("no server is here that could take one".to_owned()),
        Obstacle::NoTarget | Obstacle::NoSource => {}
    }
    let told =
        why.targets.iter().map(|one| (one, "takes none")).chain(why.sources.iter().map(|one| (one, "gives none")));
    for ((server, refusal), verb) in told.take(SERVERS_MAX) {
        lines.push(format!("{} {verb}: {}", name(core, *server), refusal_words(*refusal)));
    }
    let more = (why.targets.len() + why.sources.len()).saturating_sub(SERVERS_MAX);
    if more > 0 {
        lines.push(format!("and {more} servers more"));
    }
    lines
}

fn refusal_words(refusal: Refusal) -> String {
    match refusal {
        Refusal::HasCopy(_) => "it has one of some kind".to_owned(),
        Refusal::NoCopy => "it has none that can be read".to_owned(),
        Refusal::NoDisk => "it has no disk, or has not told of one yet".to_owned(),
        Refusal::AlmostFull => "not more than 1 % of it is free".to_owned(),
        Refusal::Overloaded => "it says that it has too much to do".to_owned(),
        Refusal::Maintenance => "it is in maintenance".to_owned(),
        Refusal::Slow { running, millis_per_copy } => format!(
            "{running} under way, and it completes one in {}.{} s: more would only wait there",
            millis_per_copy / 1000,
            millis_per_copy % 1000 / 100
        ),
        Refusal::Limit { running } => {
            format!("replication limit reached, {running} under way (CHUNKS_WRITE_REP_LIMIT, CHUNKS_READ_REP_LIMIT)")
        }
    }
}

/// What has to pass first, and how long that takes.
fn waits(core: &Core, why: &Explanation, now: u32) -> Vec<String> {
    let mut lines = Vec::new();
    for (source, target, since) in &why.copying {
        let seconds = now.saturating_sub(*since);
        lines.push(format!(
            "for the copy from {} to {}, {seconds} s under way",
            name(core, *source),
            name(core, *target)
        ));
    }
    if matches!(why.decision, Decision::Operating(_)) {
        let busy: Vec<ServerId> =
            why.copies.iter().filter(|(_, state)| state.kind == CopyKind::Busy).map(|copy| copy.0).collect();
        if why.copying.is_empty() && !busy.is_empty() {
            lines.push(format!("for the answer of {}", list(core, &busy)));
        }
    }
    if !why.at_deletion_limit.is_empty() {
        lines.push(format!("deletion limit reached on {} (CHUNKS_SOFT_DEL_LIMIT)", list(core, &why.at_deletion_limit)));
    }
    if let (Some(at), Decision::Unavailable) = (why.rescue_at, &why.decision) {
        lines
            .push(format!("{} s until a damaged copy is asked whether it counts all the same", at.saturating_sub(now)));
    }
    let idle = matches!(why.decision, Decision::AsWanted | Decision::Locked { .. } | Decision::Operating(_));
    if idle {
        return lines;
    }
    match why.rest {
        Some(rest) => lines.push(rest_words(rest, now)),
        None => match why.queued {
            Some((queue, before)) => lines.push(format!("its turn among {}, {before} before it", queue_words(queue))),
            None => lines.push(format!(
                "the sweep over all chunks, which comes by within {} s (CHUNKS_LOOP_MIN_TIME)",
                why.sweep_seconds
            )),
        },
    }
    lines
}

fn rest_words(rest: Rest, now: u32) -> String {
    let left = |until: u32| until.saturating_sub(now);
    match rest {
        Rest::Registering(servers) => {
            format!(
                "nothing is copied or deleted while {servers} {} still listing chunks",
                if servers == 1 { "server is" } else { "servers are" }
            )
        }
        Rest::Departing => "the copies of a server that left are still being struck off".to_owned(),
        Rest::Receiving { until } => format!("{} s, since a server just told of new or lost chunks", left(until)),
        Rest::Started { until } => format!("{} s since the master's start: REPLICATIONS_DELAY_INIT", left(until)),
        Rest::Disconnected { until } => {
            format!("{} s since a server left, it may come back: REPLICATIONS_DELAY_DISCONNECT", left(until))
        }
        Rest::NoServers => "no chunkserver is here".to_owned(),
    }
}

fn queue_words(queue: Queue) -> &'static str {
    match queue {
        Queue::EndangeredHighGoal => "chunks with one copy left of three or more",
        Queue::Endangered => "chunks with one copy left of two",
        Queue::UndergoalMarked => "chunks with one copy on a disk that stays",
        Queue::Marked => "chunks on disks marked for removal",
        Queue::Undergoal => "chunks with too few copies",
        Queue::WrongLabel => "chunks on servers with the wrong labels",
        Queue::Overgoal => "chunks with too many copies",
        Queue::Cleanup => "chunks with bad copies",
        Queue::Unused => "chunks that no file wants",
    }
}

/// Who could still have it.
fn absent(why: &Explanation) -> String {
    match why.absent {
        (0, _) => ", and no known server is away".to_owned(),
        (1, 0) => "; 1 known server is away".to_owned(),
        (servers, 0) => format!("; {servers} known servers are away"),
        (servers, kept) => format!("; {servers} known servers are away, {kept} of them in maintenance"),
    }
}

fn session_words(core: &Core, session: wire::SessionId) -> String {
    core.namespace.session(session).map_or_else(String::new, |session| {
        format!(" ({} at {})", session.params.info.escape_ascii(), session.params.peer_ip)
    })
}

/// Address and labels.
fn name(core: &Core, id: ServerId) -> String {
    core.chunks.servers().get(id).map_or_else(
        || "a server that left".to_owned(),
        |server| match server.labels {
            0 => format!("{}:{}", server.ip, server.port),
            labels => format!("{}:{} ({})", server.ip, server.port, letters(labels)),
        },
    )
}

fn list(core: &Core, servers: &[ServerId]) -> String {
    servers.iter().map(|server| name(core, *server)).collect::<Vec<_>>().join(", ")
}

fn plural(count: usize, word: &str) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}
