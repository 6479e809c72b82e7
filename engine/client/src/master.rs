//! The connection to the master: requests out, answers and notices in, and back again after every break.
//!
//! Any number of requests are under way at once; an answer finds its request by message id. A request stays in
//! `pending` until it is answered, so that after a reconnect it is sent again, byte for byte. One task lives as long
//! as the client: connect, register (`session`), then read, write and keep alive side by side until one of them
//! fails. What the master says unasked goes to `notices`. Spec 30, 1, 5 and 6.
//!
//! Cost of one metadata request: an encode, a map entry, a share of one send, a share of one receive. Requests that
//! are queued in the same turn of the loop leave in one send.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use ring::local::{Notify, OneshotSender, oneshot};
use ring::{BufferedReader, Instant, Stream};
use wire::{
    AmtimeEntryLong, ClientNop, CltomaFuseTimeSync, Field, Header, Inode, Input, MatoclFuseChunkHasChanged,
    MatoclFuseFlengHasChanged, MatoclFuseInvalidateChunkCache, MatoclFuseTimeSyncWithId, Packet, Time, WireError,
    ask_for_long_times, ask_for_ticket, decode_numbered_answer, for_stock_master, without_unclean_end,
};

use crate::client::Inner;
use crate::retry::{patience, tries_max};
use crate::session::{Refusal, Registered, register};
use crate::{Errno, MountError, Session};

/// The master sends a NOP each second; silence for longer means that it is gone. Spec 10, 5.1.
const SILENCE: Duration = Duration::from_secs(10);
/// We send something at least this often. Spec 10, 5.1.
const NOP_AFTER: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RECONNECT_EVERY: Duration = Duration::from_secs(2);
const TIME_SYNC_EVERY_SECS: u64 = 60;
const SUSTAINED_EVERY_SECS: u64 = 60;
/// Read buffers that nobody used for this long, or twice as long, are freed. Spec 20, 3.2: 60 s.
const SWEEP_EVERY_SECS: u64 = 30;
/// Round trips above this say nothing about the clock. Spec 30, 5.3.
const TIME_SYNC_ROUND_TRIP_MAX: Duration = Duration::from_millis(100);
/// Requests that leave in one send.
const SEND_BYTES: usize = 256 << 10;
/// Largest answer we take: a listing of about five million entries. The protocol has no limit of its own.
const ANSWER_BYTES_MAX: u32 = 512 << 20;

/// An answer: packet type, and the payload with its message id.
pub(crate) struct Answer {
    pub(crate) kind: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) struct Master {
    state: RefCell<State>,
    /// Something is in `State::queue`.
    queued: Notify,
    /// The link came up, or the session is lost, or the client closes.
    changed: Notify,
    /// Microseconds to add to our clock to get the master's.
    clock_offset_micros: Cell<i64>,
    /// CREATEs under way: their inodes are not known yet, so the list of open inodes must wait. Spec 30, 5.2.
    pub(crate) creating: Cell<u32>,
}

struct State {
    addresses: Vec<SocketAddrV4>,
    session: Option<Session>,
    last_msgid: u32,
    pending: BTreeMap<u32, Pending>,
    queue: VecDeque<Rc<Vec<u8>>>,
    is_up: bool,
    /// Connections until now.
    links: u64,
    down_since: Instant,
    /// The master refuses to have us back: operations fail at once until it changes its mind.
    lost: bool,
    closing: bool,
    last_received: Instant,
    last_sent: Instant,
    time_sync_sent: Option<Instant>,
}

struct Pending {
    packet: Rc<Vec<u8>>,
    reply: OneshotSender<Result<Answer, Errno>>,
    since: Instant,
}

/// Takes a request out of `pending` when its caller has gone away.
struct PendingGuard<'a> {
    master: &'a Master,
    msgid: u32,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.master.state.borrow_mut().pending.remove(&self.msgid);
    }
}

impl Master {
    pub(crate) fn new(now: Instant, addresses: Vec<SocketAddrV4>) -> Master {
        Master {
            state: RefCell::new(State {
                addresses,
                session: None,
                last_msgid: 0,
                pending: BTreeMap::new(),
                queue: VecDeque::new(),
                is_up: false,
                links: 0,
                down_since: now,
                lost: false,
                closing: false,
                last_received: now,
                last_sent: now,
                time_sync_sent: None,
            }),
            queued: Notify::new(),
            changed: Notify::new(),
            clock_offset_micros: Cell::new(0),
            creating: Cell::new(0),
        }
    }

    pub(crate) fn session(&self) -> Option<Session> {
        self.state.borrow().session.clone()
    }

    pub(crate) fn set_addresses(&self, addresses: Vec<SocketAddrV4>) {
        if !addresses.is_empty() {
            self.state.borrow_mut().addresses = addresses;
        }
    }

    /// True if the exports forbid this operation. Spec 30, 4.4.
    pub(crate) fn is_disabled(&self, bit: u32) -> bool {
        self.state.borrow().session.as_ref().is_some_and(|session| session.disables & bit != 0)
    }

    /// Does the master of the present or last session know the extension `times`?
    pub(crate) fn has_long_times(&self) -> bool {
        self.state.borrow().session.as_ref().is_some_and(|session| session.long_times)
    }

    /// Does the master of the present or last session know the extension `unclean-end`?
    pub(crate) fn has_unclean_ends(&self) -> bool {
        self.state.borrow().session.as_ref().is_some_and(|session| session.unclean_ends)
    }

    /// How many connections there were: what is told on one that breaks may never have arrived.
    pub(crate) fn links(&self) -> u64 {
        self.state.borrow().links
    }

    /// Does the master of the present or last session give out tickets for chunks?
    fn gives_tickets(&self) -> bool {
        self.state.borrow().session.as_ref().is_some_and(|session| session.tickets)
    }

    /// Now by the master's clock, as the master keeps times.
    pub(crate) fn clock(&self, ring: &ring::Ring) -> Time {
        let ours = i64::try_from(ring.wall_nanos()).unwrap_or(i64::MAX);
        let now = Time(ours.saturating_add(self.clock_offset_micros.get().saturating_mul(1000)));
        if self.has_long_times() { now } else { now.in_seconds() }
    }

    /// One request and its answer. `packet`: the whole packet for a message id. Waits through reconnects.
    /// Errors: EIO when the master stays away for as long as the settings allow, or the session is lost.
    pub(crate) async fn call(&self, ring: &ring::Ring, packet: impl FnOnce(u32) -> Vec<u8>) -> Result<Answer, Errno> {
        let (msgid, receiver) = {
            let mut state = self.state.borrow_mut();
            if state.lost || state.closing {
                return Err(Errno::EIO);
            }
            let msgid = state.next_msgid();
            let packet = Rc::new(packet(msgid));
            let (reply, receiver) = oneshot();
            state.pending.insert(msgid, Pending { packet: packet.clone(), reply, since: ring.now() });
            if state.is_up {
                state.queue.push_back(packet);
                self.queued.notify_one();
            }
            (msgid, receiver)
        };
        let _guard = PendingGuard { master: self, msgid };
        receiver.await.unwrap_or(Err(Errno::EIO))
    }

    /// A packet without an answer; dropped if the master is away.
    pub(crate) fn tell(&self, packet: Vec<u8>) {
        let mut state = self.state.borrow_mut();
        if state.is_up {
            state.queue.push_back(Rc::new(packet));
            self.queued.notify_one();
        }
    }

    /// No new requests and no reconnect from now on.
    pub(crate) fn begin_close(&self) {
        self.state.borrow_mut().closing = true;
    }

    /// Waits until the link is down, at most `limit`.
    pub(crate) async fn wait_down(&self, ring: &ring::Ring, limit: Duration) {
        if self.state.borrow().is_up {
            let _ = ring.timeout(limit, self.changed.notified()).await; // it will be closed by us then
        }
    }

    /// Ends the task: nothing is sent any more, waiting requests fail.
    pub(crate) fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closing = true;
        state.fail_all();
        drop(state);
        self.changed.notify_all();
        self.queued.notify_all();
    }
}

impl State {
    fn next_msgid(&mut self) -> u32 {
        loop {
            self.last_msgid = self.last_msgid.wrapping_add(1);
            if self.last_msgid != 0 && !self.pending.contains_key(&self.last_msgid) {
                return self.last_msgid;
            }
        }
    }

    fn fail_all(&mut self) {
        for (_, pending) in std::mem::take(&mut self.pending) {
            let _ = pending.reply.send(Err(Errno::EIO)); // nobody waits: nothing to tell
        }
    }

    /// Fails the requests whose time is over. Spec 72, 7.1.
    fn fail_expired(&mut self, now: Instant, limit: Duration) {
        let expired: Vec<u32> = self
            .pending
            .iter()
            .filter(|(_, pending)| now - pending.since.max(self.down_since) >= limit)
            .map(|(msgid, _)| *msgid)
            .collect();
        for msgid in expired {
            if let Some(pending) = self.pending.remove(&msgid) {
                let _ = pending.reply.send(Err(Errno::EIO)); // nobody waits: nothing to tell
            }
        }
    }
}

impl Inner {
    /// One request, typed: the answer, or the status in its place as an error. Errors: EIO also when the answer is
    /// not what the specification says.
    pub(crate) async fn ask<Q: Packet, A: Packet>(&self, request: impl FnOnce(u32) -> Q) -> Result<A, Errno> {
        self.ask_status(request).await?.map_err(Errno::from_status)
    }

    /// As `ask`, with the status as the master gave it.
    pub(crate) async fn ask_status<Q: Packet, A: Packet>(
        &self,
        request: impl FnOnce(u32) -> Q,
    ) -> Result<Result<A, wire::Status>, Errno> {
        let long_times = self.master.has_long_times();
        let tickets = self.master.gives_tickets();
        let packet = |msgid| {
            let mut packet = request(msgid).encode();
            if long_times {
                ask_for_long_times(&mut packet);
            }
            if tickets {
                ask_for_ticket(&mut packet);
            }
            packet
        };
        let answer = self.master.call(&self.ring, packet).await?;
        if answer.kind <= 2 {
            return Err(Errno::ENOTSUP); // UNKNOWN_COMMAND, BAD_COMMAND_SIZE: Spec 30, 1.1
        }
        decode_numbered_answer::<A>(answer.kind, &answer.payload).map_err(|error| {
            tracing::warn!("answer {} of the master is not understood: {error}", answer.kind);
            Errno::EIO
        })
    }

    /// A request whose answer is a status alone.
    pub(crate) async fn ask_done<Q: Packet>(&self, request: impl FnOnce(u32) -> Q) -> Result<(), Errno> {
        let answer = self.master.call(&self.ring, |msgid| request(msgid).encode()).await?;
        match answer.payload.get(4) {
            // Some successes carry a value behind the message id (UNLINK's inode): longer than a status.
            Some(status) if answer.payload.len() == 5 && answer.kind > 2 => {
                wire::Status(*status).into_result().map_err(Errno::from_status)
            }
            Some(_) if answer.kind > 2 => Ok(()),
            _ => Err(Errno::ENOTSUP),
        }
    }

    /// Connects and registers until the master accepts; then keeps the session alive. `first` hears how the first
    /// registration went.
    pub(crate) async fn run_master(self: Rc<Self>, first: OneshotSender<Result<(), MountError>>) {
        let mut first = Some(first);
        loop {
            let attempt = self.connect_master().await;
            if self.master.state.borrow().closing {
                return;
            }
            match attempt {
                Ok((stream, reader, session)) => {
                    self.link_is_up(session);
                    if let Some(first) = first.take() {
                        let _ = first.send(Ok(())); // delayed init: nobody waits
                    }
                    let why = self.serve_link(&stream, reader).await;
                    stream.shutdown();
                    self.link_is_down();
                    if self.master.state.borrow().closing {
                        return;
                    }
                    tracing::warn!("connection to the master lost: {why}");
                    continue; // at once, then every 2 s
                }
                Err(error) => {
                    let is_lost = matches!(error, MountError::Refused(_) | MountError::OldMaster(_));
                    if let Some(first) = first.take_if(|_| !self.settings.delayed_init) {
                        let _ = first.send(Err(error)); // the caller has given up: nothing to tell
                        return;
                    }
                    tracing::warn!("no session with the master: {error}");
                    let mut state = self.master.state.borrow_mut();
                    state.lost = is_lost;
                    if is_lost {
                        state.fail_all();
                    }
                }
            }
            let limit = match self.settings.timeout_secs {
                0 => tries_max(&self.settings).map(patience),
                seconds => Some(Duration::from_secs(u64::from(seconds))),
            };
            if let Some(limit) = limit {
                self.master.state.borrow_mut().fail_expired(self.ring.now(), limit);
            }
            let _ = self.ring.timeout(RECONNECT_EVERY, self.master.changed.notified()).await; // sooner when closing
        }
    }

    /// Tries every address once. Follows a redirect to the leader. Spec 30, 3.3 and 5.1.
    async fn connect_master(&self) -> Result<(Stream, BufferedReader, Session), MountError> {
        let addresses = self.master.state.borrow().addresses.clone();
        let old = self.master.session();
        let mut last = MountError::NoAddress;
        for mut address in addresses {
            for _redirect in 0..3 {
                match self.try_master(address, old.as_ref()).await {
                    Ok(Registered::Session(link)) => return Ok(*link),
                    Ok(Registered::Redirect(ip)) if ip != *address.ip() && !ip.is_unspecified() => {
                        address.set_ip(ip);
                    }
                    Ok(Registered::Redirect(_)) => {
                        last = MountError::CannotConnect("the masters are electing a leader".into());
                        break;
                    }
                    Err(error) => {
                        last = error;
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn try_master(&self, address: SocketAddrV4, old: Option<&Session>) -> Result<Registered, MountError> {
        let cannot = |why: std::io::Error| MountError::CannotConnect(format!("{address}: {why}"));
        let from = self.settings.bind.map(Into::into);
        let stream = match self.ring.timeout(CONNECT_TIMEOUT, self.ring.connect(address.into(), from)).await {
            Ok(connected) => connected.map_err(cannot)?,
            Err(_) => return Err(MountError::CannotConnect(format!("{address}: no answer"))),
        };
        register(&self.ring, &self.settings, address, stream, old).await.map_err(|refusal| match refusal {
            Refusal::Status(status) => MountError::Refused(status),
            Refusal::OldMaster(version) => MountError::OldMaster(version),
            Refusal::Foreign { ours, theirs } => MountError::Foreign { address, ours, theirs },
            Refusal::Io(why) => cannot(why),
            Refusal::Protocol(what) => MountError::Protocol(what),
        })
    }

    fn link_is_up(&self, session: Session) {
        let (long_times, unclean_ends, tickets) = (session.long_times, session.unclean_ends, session.tickets);
        let is_new_session = {
            let mut state = self.master.state.borrow_mut();
            let now = self.ring.now();
            let is_new = state.session.as_ref().map(|old| old.id) != Some(session.id);
            state.session = Some(session);
            state.is_up = true;
            state.links += 1;
            state.lost = false;
            state.last_received = now;
            state.last_sent = now;
            state.time_sync_sent = Some(now);
            // First the clock and, so that no open file is forgotten, the list; then what still waits for an answer,
            // oldest first.
            state.queue.clear();
            state.queue.push_back(Rc::new(CltomaFuseTimeSync { msgid: Some(0) }.encode()));
            is_new
        };
        if is_new_session {
            self.tell_held_inodes();
        }
        let mut state = self.master.state.borrow_mut();
        // Some may have been made for another master.
        let form = |packet: &Rc<Vec<u8>>| match (long_times && tickets, unclean_ends) {
            (true, true) => packet.clone(),
            (true, false) => Rc::new(without_unclean_end(packet)),
            (false, _) => Rc::new(for_stock_master(packet)),
        };
        let again: Vec<_> = state.pending.values().map(|pending| form(&pending.packet)).collect();
        state.queue.extend(again);
        drop(state);
        self.master.queued.notify_one();
        self.master.changed.notify_all();
    }

    fn link_is_down(&self) {
        {
            let mut state = self.master.state.borrow_mut();
            state.is_up = false;
            state.down_since = self.ring.now();
            state.queue.clear();
        }
        self.master.changed.notify_all();
        self.locations.clear(); // notices may have been missed: Spec 30, 5.1
        self.files.all_changed();
    }

    /// Reads, writes and keeps alive until one of the three fails; says which.
    async fn serve_link(&self, stream: &Stream, mut reader: BufferedReader) -> String {
        let reading = std::pin::pin!(self.read_answers(&mut reader));
        let writing = std::pin::pin!(self.write_requests(stream));
        let keeping = std::pin::pin!(self.keep_alive());
        match select(select(reading, writing), keeping).await {
            Either::Left((Either::Left((why, _)) | Either::Right((why, _)), _)) | Either::Right((why, _)) => why,
        }
    }

    async fn read_answers(&self, reader: &mut BufferedReader) -> String {
        loop {
            let header = match reader.fill(wire::HEADER_BYTES).await {
                Ok(bytes) => {
                    Header::decode(bytes[..wire::HEADER_BYTES].try_into().expect("fill gives what was asked for"))
                }
                Err(error) => return error.to_string(),
            };
            if header.length < 4 || header.length > ANSWER_BYTES_MAX {
                return format!("packet {} has {} bytes", header.kind, header.length);
            }
            reader.consume(wire::HEADER_BYTES);
            self.master.state.borrow_mut().last_received = self.ring.now();
            let payload = match self.read_payload(reader, header.length as usize).await {
                Ok(payload) => payload,
                Err(error) => return error.to_string(),
            };
            let msgid = u32::take(&mut Input::new(&payload)).expect("at least 4 bytes, checked above");
            if msgid != 0 {
                let pending = self.master.state.borrow_mut().pending.remove(&msgid);
                if let Some(pending) = pending {
                    let _ = pending.reply.send(Ok(Answer { kind: header.kind, payload })); // its caller has gone
                }
            } else if let Err(error) = self.take_notice(header.kind, &payload) {
                return format!("notice {}: {error}", header.kind);
            }
        }
    }

    async fn read_payload(&self, reader: &mut BufferedReader, length: usize) -> std::io::Result<Vec<u8>> {
        if reader.buffered().len() >= length || length <= 4096 {
            let payload = reader.fill(length).await?[..length].to_vec();
            reader.consume(length);
            return Ok(payload);
        }
        // A long answer comes in pieces, each of which is a sign of life.
        let mut payload = Vec::with_capacity(length.min(1 << 20));
        while payload.len() < length {
            let piece = (length - payload.len()).min(64 << 10);
            payload.extend_from_slice(&reader.fill(piece).await?[..piece]);
            reader.consume(piece);
            self.master.state.borrow_mut().last_received = self.ring.now();
        }
        Ok(payload)
    }

    async fn write_requests(&self, stream: &Stream) -> String {
        loop {
            let batch = {
                let mut state = self.master.state.borrow_mut();
                take_batch(&mut state.queue)
            };
            let sent = match batch {
                None => {
                    self.master.queued.notified().await;
                    continue;
                }
                Some(Batch::One(packet)) => stream.send_all(packet).await.0,
                Some(Batch::Many(bytes)) => stream.send_all(bytes).await.0,
            };
            if let Err(error) = sent {
                return error.to_string();
            }
            self.master.state.borrow_mut().last_sent = self.ring.now();
        }
    }

    /// Once a second: NOP, silence, times, and once a minute the clock and the list of open inodes. Spec 30, 5.
    async fn keep_alive(&self) -> String {
        let (mut seconds, mut list_is_due) = (0u64, false);
        loop {
            self.ring.sleep(Duration::from_secs(1)).await;
            seconds += 1;
            if self.master.state.borrow().closing {
                return "the client closes".into();
            }
            let now = self.ring.now();
            let (last_received, last_sent) = {
                let state = self.master.state.borrow();
                (state.last_received, state.last_sent)
            };
            if now - last_received >= SILENCE {
                return "the master is silent".into();
            }
            self.tell_times();
            if seconds.is_multiple_of(SWEEP_EVERY_SECS) {
                self.files.sweep_readers();
            }
            if seconds.is_multiple_of(TIME_SYNC_EVERY_SECS) {
                self.master.state.borrow_mut().time_sync_sent = Some(now);
                self.master.tell(CltomaFuseTimeSync { msgid: Some(0) }.encode());
            }
            list_is_due |= seconds.is_multiple_of(SUSTAINED_EVERY_SECS);
            if list_is_due && self.master.creating.get() == 0 {
                list_is_due = false;
                self.tell_held_inodes();
            }
            if now - last_sent >= NOP_AFTER - Duration::from_millis(100) {
                self.master.tell(ClientNop { msgid: 0 }.encode());
            }
        }
    }

    /// What the master says unasked. Errors: a notice of the wrong length; the connection must go. Spec 30, 6.
    fn take_notice(&self, kind: u32, payload: &[u8]) -> Result<(), WireError> {
        match kind {
            ClientNop::TYPE | 1 | 2 => {}
            MatoclFuseChunkHasChanged::TYPE => {
                let notice = MatoclFuseChunkHasChanged::decode(payload)?;
                self.chunk_has_changed(&notice);
            }
            MatoclFuseFlengHasChanged::TYPE => {
                let notice = MatoclFuseFlengHasChanged::decode(payload)?;
                self.length_has_changed(notice.inode, notice.length);
            }
            MatoclFuseTimeSyncWithId::TYPE => {
                let notice = MatoclFuseTimeSyncWithId::decode(payload)?;
                self.set_clock(notice.usec);
            }
            MatoclFuseInvalidateChunkCache::TYPE => self.locations.clear(),
            5 => {} // FORCE_TIMEOUT of 4.x masters, never sent to 3.x clients: Spec 10, 2
            other => return Err(WireError::Type { expected: 0, found: other }),
        }
        Ok(())
    }

    fn set_clock(&self, master_micros: u64) {
        let Some(sent) = self.master.state.borrow_mut().time_sync_sent.take() else { return };
        let round_trip = self.ring.now() - sent;
        if round_trip > TIME_SYNC_ROUND_TRIP_MAX {
            return;
        }
        let half = i64::try_from(round_trip.as_micros() / 2).unwrap_or(0);
        let ours = i64::try_from(self.ring.wall_micros()).unwrap_or(i64::MAX);
        let theirs = i64::try_from(master_micros).unwrap_or(i64::MAX);
        self.master.clock_offset_micros.set(theirs.saturating_add(half).saturating_sub(ours));
    }

    /// Inodes that the master must keep for us, the complete list. Spec 30, 5.2.
    pub(crate) fn tell_held_inodes(&self) {
        let inodes: Vec<Inode> = self.files.held_inodes();
        self.master.tell(wire::CltomaFuseSustainedInodes { inodes }.encode());
    }

    /// Times of reads and writes that the master has not heard of. Spec 30, 5.3.
    pub(crate) fn tell_times(&self) {
        self.tell_these_times(self.files.take_times());
    }

    /// The same of one inode.
    pub(crate) fn tell_times_of(&self, inode: Inode) {
        self.tell_these_times(self.files.take_times_of(inode).into_iter().collect());
    }

    pub(crate) fn tell_these_times(&self, entries: Vec<AmtimeEntryLong>) {
        if entries.is_empty() {
            return;
        }
        self.master.tell(match self.master.has_long_times() {
            true => wire::CltomaAmtimeInodesLong { entries }.encode(),
            false => {
                let entries = entries.iter().map(AmtimeEntryLong::in_seconds).collect();
                wire::CltomaFuseAmtimeInodes { entries }.encode()
            }
        });
    }

    /// Waits until everything queued has left, at most a second.
    pub(crate) async fn drain_queue(&self) {
        for _ in 0..100 {
            if self.master.state.borrow().queue.is_empty() {
                return;
            }
            self.ring.sleep(Duration::from_millis(10)).await;
        }
    }
}

enum Batch {
    One(Rc<Vec<u8>>),
    Many(Vec<u8>),
}

fn take_batch(queue: &mut VecDeque<Rc<Vec<u8>>>) -> Option<Batch> {
    let first = queue.pop_front()?;
    if queue.is_empty() {
        return Some(Batch::One(first));
    }
    let mut bytes = first.to_vec();
    while let Some(next) = queue.front().filter(|next| bytes.len() + next.len() <= SEND_BYTES) {
        bytes.extend_from_slice(next);
        queue.pop_front();
    }
    Some(Batch::Many(bytes))
}
