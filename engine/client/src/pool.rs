//! Connections to chunkservers: idle ones kept warm, and how busy and how trustworthy each server is.
//!
//! A parked connection gets a NOP each second and has its own NOPs read; whatever else arrives, or an end, drops it
//! (Spec 20, 2.3; Spec 72, 7.5). One may still die unnoticed: the first request on it then fails without an answer,
//! and the caller takes another one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{Either, select};
use ring::{BufferedReader, Instant, Ring, Stream};
use wire::{AntoanNop, CltocsTicket, Header, Packet};

use crate::locations::Server;
use crate::preference::Preference;
use crate::unsynced::Syncing;

/// Idle connections kept in all. Spec 20, 2.3.
const IDLE_MAX: usize = 200;
/// Beat of the pool. The server hangs up after 5 s of silence. Spec 20, 2.1.
const BEAT: Duration = Duration::from_secs(1);
/// Idle connections unused for longer are closed: nobody needs their NOPs.
const IDLE_SPAN: Duration = Duration::from_secs(60);
/// A server that failed is asked last for this long.
const DISTRUST_SPAN: Duration = Duration::from_secs(5);
/// Received ahead of what was asked for; small answers come whole in one receive.
const READER_BYTES: usize = 8 << 10;
/// We say something at least this often while we wait for a server. Spec 20, 3.2.
const NOP_AFTER: Duration = Duration::from_secs(1);

/// A connection to a data port, with what was received ahead.
pub(crate) struct Connection {
    pub(crate) address: SocketAddrV4,
    pub(crate) stream: Stream,
    pub(crate) reader: BufferedReader,
    /// It has been parked: the server may have hung up meanwhile.
    pub(crate) is_used: bool,
    /// The ticket that was shown last.
    shown: Option<CltocsTicket>,
}

#[derive(Default)]
pub(crate) struct Pool {
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    idle: BTreeMap<SocketAddrV4, Vec<Idle>>,
    idle_count: usize,
    /// Operations of this client under way per server.
    load: BTreeMap<SocketAddrV4, u32>,
    failed: BTreeMap<SocketAddrV4, Instant>,
    /// What servers said about syncing. Forgotten with the first sign that one is not what it was: it is asked again
    /// before it gets more data.
    syncing: BTreeMap<SocketAddrV4, Syncing>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// One operation under way at a server.
pub(crate) struct Busy {
    pool: Rc<Pool>,
    address: SocketAddrV4,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.pool.state.borrow_mut();
        if let Some(load) = state.load.get_mut(&self.address) {
            *load -= 1;
            if *load == 0 {
                state.load.remove(&self.address);
            }
        }
    }
}

impl Pool {
    /// Counts an operation at this server until the result is dropped.
    pub(crate) fn busy(self: &Rc<Self>, address: SocketAddrV4) -> Busy {
        *self.state.borrow_mut().load.entry(address).or_default() += 1;
        Busy { pool: self.clone(), address }
    }

    /// The server to ask: not one that failed lately, then one with the labels that are preferred, then the one with the
    /// fewest operations of our own; the master's order decides the rest. `avoid`: failed already in this attempt.
    pub(crate) fn choose(
        &self,
        now: Instant,
        servers: &[Server],
        preference: &Preference,
        avoid: &[SocketAddrV4],
    ) -> Option<Server> {
        let state = self.state.borrow();
        let rank = |server: &Server| {
            let address = server.address();
            let failed = state.failed.get(&address).is_some_and(|at| now - *at < DISTRUST_SPAN);
            let preferred = preference.rank(server.labels);
            (avoid.contains(&address), failed, preferred, state.load.get(&address).copied().unwrap_or(0))
        };
        servers.iter().min_by_key(|server| rank(server)).copied()
    }

    /// The server did not do what it should; others are preferred for some seconds.
    pub(crate) fn distrust(&self, now: Instant, address: SocketAddrV4) {
        let mut state = self.state.borrow_mut();
        state.failed.retain(|_, at| now - *at < DISTRUST_SPAN);
        state.failed.insert(address, now);
        state.syncing.remove(&address); // another program may come up there
        // What is parked there is likely dead too.
        if let Some(idle) = state.idle.remove(&address) {
            state.idle_count -= idle.len();
        }
    }

    /// What the server said about syncing, if it was asked.
    pub(crate) fn syncing(&self, address: SocketAddrV4) -> Option<Syncing> {
        self.state.borrow().syncing.get(&address).copied()
    }

    pub(crate) fn note_syncing(&self, address: SocketAddrV4, syncing: Syncing) {
        self.state.borrow_mut().syncing.insert(address, syncing);
    }

    /// The server may be another than the one that was asked.
    pub(crate) fn forget_syncing(&self, address: SocketAddrV4) {
        self.state.borrow_mut().syncing.remove(&address);
    }

    /// A parked connection, or a new one. Errors: nobody answers within `patience`.
    pub(crate) async fn connect(
        &self,
        ring: &Ring,
        address: SocketAddrV4,
        bind: Option<IpAddr>,
        patience: Duration,
    ) -> std::io::Result<Connection> {
        if let Some(connection) = self.state.borrow_mut().take_idle(address) {
            return Ok(connection);
        }
        let stream = ring
            .timeout(patience, ring.connect(address.into(), bind))
            .await
            .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let reader = BufferedReader::new(stream.clone(), READER_BYTES);
        Ok(Connection { address, stream, reader, is_used: false, shown: None })
    }

    /// Parks a connection between two requests.
    pub(crate) fn park(&self, now: Instant, mut connection: Connection) {
        let mut state = self.state.borrow_mut();
        if state.idle_count >= IDLE_MAX {
            state.drop_oldest();
        }
        connection.is_used = true;
        state.idle_count += 1;
        state.idle.entry(connection.address).or_default().push(Idle { connection, since: now });
    }

    /// Keeps parked connections alive, as long as the client lives.
    pub(crate) async fn beat(self: Rc<Self>, ring: Ring) {
        loop {
            ring.sleep(BEAT).await;
            let addresses: Vec<SocketAddrV4> = self.state.borrow().idle.keys().copied().collect();
            for address in addresses {
                let count = self.state.borrow().idle.get(&address).map_or(0, Vec::len);
                for _ in 0..count {
                    // The oldest first; it goes back as the newest but one, its own `since` kept.
                    let Some(mut idle) = self.state.borrow_mut().take_oldest(address) else { break };
                    let is_fresh = ring.now() - idle.since < IDLE_SPAN;
                    if is_fresh && is_quiet(&mut idle.connection) && idle.connection.send_nop().await.is_ok() {
                        let mut state = self.state.borrow_mut();
                        state.idle_count += 1;
                        state.idle.entry(address).or_default().push(idle);
                    } else {
                        // From now on nobody would notice that it starts anew; or it did.
                        self.forget_syncing(address);
                    }
                }
            }
        }
    }

    /// Closes everything parked.
    pub(crate) fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.idle.clear();
        state.idle_count = 0;
    }
}

impl State {
    /// The newest: most likely alive.
    fn take_idle(&mut self, address: SocketAddrV4) -> Option<Connection> {
        let idle = self.idle.get_mut(&address)?.pop()?;
        self.idle_count -= 1;
        Some(idle.connection)
    }

    fn take_oldest(&mut self, address: SocketAddrV4) -> Option<Idle> {
        let idle = self.idle.get_mut(&address)?;
        if idle.is_empty() {
            return None;
        }
        self.idle_count -= 1;
        Some(idle.remove(0))
    }

    fn drop_oldest(&mut self) {
        let oldest = self
            .idle
            .iter()
            .filter_map(|(address, idle)| idle.iter().map(|idle| idle.since).min().map(|since| (since, *address)))
            .min();
        if let Some((_, address)) = oldest {
            self.take_oldest(address);
        }
    }
}

/// Reads what a parked server sent: nothing or NOPs. False: it hung up, or sent what nobody asked for.
fn is_quiet(connection: &mut Connection) -> bool {
    loop {
        match connection.reader.more().now_or_never() {
            None => break,
            Some(Ok(0)) | Some(Err(_)) => return false,
            Some(Ok(_)) => {}
        }
        if connection.reader.buffered().len() > 1024 {
            return false;
        }
    }
    while connection.reader.buffered().len() >= wire::HEADER_BYTES {
        if connection.reader.buffered()[..wire::HEADER_BYTES] != [0; wire::HEADER_BYTES] {
            return false;
        }
        connection.reader.consume(wire::HEADER_BYTES);
    }
    true
}

impl Connection {
    /// A request about a chunk, with its ticket in front unless that was shown just before.
    pub(crate) fn with_ticket(&mut self, ticket: Option<&CltocsTicket>, request: Vec<u8>) -> Vec<u8> {
        if ticket.is_none() || self.shown.as_ref() == ticket {
            return request;
        }
        self.shown = ticket.cloned();
        let mut packets = ticket.map(CltocsTicket::encode).unwrap_or_default();
        packets.extend(request);
        packets
    }

    pub(crate) async fn send_nop(&self) -> std::io::Result<()> {
        self.stream.send_all(AntoanNop {}.encode()).await.0
    }

    /// The next packet's header; NOPs are dropped. The packet's payload is not consumed. While nothing comes we send
    /// a NOP a second, unless `nop` is false: then another task does. Errors: `Silence` after `silence` without a
    /// packet; end of the connection.
    pub(crate) async fn next_header(&mut self, ring: &Ring, silence: Duration, nop: bool) -> Result<Header, Lost> {
        let mut quiet = Duration::ZERO;
        loop {
            let received = ring.timeout(NOP_AFTER.min(silence), self.reader.fill(wire::HEADER_BYTES)).await;
            let header = match received {
                Ok(Ok(bytes)) => {
                    Header::decode(bytes[..wire::HEADER_BYTES].try_into().expect("fill gives what was asked for"))
                }
                Ok(Err(_)) => return Err(Lost::Ended),
                Err(_) => {
                    quiet += NOP_AFTER.min(silence);
                    if quiet >= silence {
                        return Err(Lost::Silent);
                    }
                    if nop {
                        self.send_nop().await.map_err(|_| Lost::Ended)?;
                    }
                    continue;
                }
            };
            if header.kind == AntoanNop::TYPE && header.length == 0 {
                self.reader.consume(wire::HEADER_BYTES);
                quiet = Duration::ZERO;
                continue;
            }
            if header.length > wire::limits::DATA_PORT_BYTES_MAX {
                return Err(Lost::Protocol);
            }
            self.reader.consume(wire::HEADER_BYTES);
            return Ok(header);
        }
    }

    /// `bytes` bytes of the packet's payload, still in the reader: consume them.
    pub(crate) async fn head(&mut self, ring: &Ring, silence: Duration, bytes: usize) -> Result<&[u8], Lost> {
        match ring.timeout(silence, self.reader.fill(bytes)).await {
            Ok(Ok(head)) => Ok(&head[..bytes]),
            Ok(Err(_)) => Err(Lost::Ended),
            Err(_) => Err(Lost::Silent),
        }
    }

    /// Fills `buffer` with payload.
    pub(crate) async fn data(&mut self, ring: &Ring, silence: Duration, buffer: Vec<u8>) -> Result<Vec<u8>, Lost> {
        let reading = pin!(self.reader.read_into(buffer));
        match select(reading, ring.sleep(silence)).await {
            Either::Left(((Ok(()), buffer), _)) => Ok(buffer),
            Either::Left(((Err(_), _), _)) => Err(Lost::Ended),
            Either::Right(_) => Err(Lost::Silent),
        }
    }
}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub(crate) enum Lost {
    /// It ended.
    Ended,
    Silent,
    /// Bytes that are no answer to what we asked.
    Protocol,
}
