//! One connection of a daemon: packets in, packets out, keep-alive, and the reason why it ended.
//!
//! A connection is two tasks. The reader takes packet after packet and hands each to its port's handler, which never
//! waits; the writer sends what gathers in the `Outbox` and says NOP when there was nothing to say. Whoever holds the
//! outbox may push at any time. Spec 10, 1 and 5.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ring::local::Notify;
use ring::{BufferedReader, Ring, Stream};
use wire::{HEADER_BYTES, Header};

/// Bytes that may wait for a peer that does not read. Beyond that it is cut off.
const WAITING_BYTES_MAX: usize = 256 << 20;
/// Shorter packets are copied behind one another.
const COPIED_BYTES_MAX: usize = 4 << 10;
/// A buffer up to this size is used again.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// Bytes of one receive.
const RECEIVE_BYTES: usize = 64 << 10;

/// What went over the connections of a port, heads of packets included.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    received_packets: Cell<u64>,
    received_bytes: Cell<u64>,
    sent_packets: Cell<u64>,
    sent_bytes: Cell<u64>,
}

impl Traffic {
    pub(crate) fn received(&self, header: Header) {
        self.received_packets.set(self.received_packets.get() + 1);
        self.received_bytes.set(self.received_bytes.get() + HEADER_BYTES as u64 + u64::from(header.length));
    }

    fn sent(&self, packets: u64, bytes: u64) {
        self.sent_packets.set(self.sent_packets.get() + packets);
        self.sent_bytes.set(self.sent_bytes.get() + bytes);
    }

    /// Packets received and sent, bytes received and sent, since the start.
    pub(crate) fn totals(&self) -> [u64; 4] {
        [&self.received_packets, &self.sent_packets, &self.received_bytes, &self.sent_bytes].map(Cell::get)
    }
}

/// Packets on their way to a peer.
pub(crate) struct Outbox {
    state: RefCell<State>,
    wake: Notify,
    traffic: Rc<Traffic>,
    /// Everything that was here is with the system.
    emptied: Notify,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// How many packets these bytes are.
    packets: u64,
    /// Bytes that were here are on their way into the socket.
    sending: bool,
    keep_alive: Option<KeepAlive>,
    ending: Ending,
}

#[derive(Clone, Debug)]
pub(crate) struct KeepAlive {
    pub(crate) nop: Vec<u8>,
    pub(crate) every: Duration,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ending {
    #[default]
    No,
    /// When everything is sent.
    Flush,
    Now,
}

impl Outbox {
    pub(crate) fn new() -> Rc<Outbox> {
        Outbox::counted(Rc::default())
    }

    /// What is sent from here is counted there.
    pub(crate) fn counted(traffic: Rc<Traffic>) -> Rc<Outbox> {
        Rc::new(Outbox { state: RefCell::default(), wake: Notify::new(), emptied: Notify::new(), traffic })
    }

    pub(crate) fn push(&self, packet: &[u8]) {
        let mut state = self.state.borrow_mut();
        if state.bytes.len() + packet.len() > WAITING_BYTES_MAX {
            state.ending = Ending::Now;
        } else {
            state.packets += 1;
            state.bytes.extend_from_slice(packet);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Waits until everything is in the socket: for one who has more than should wait here. For one task at a time; when
    /// the connection ends it may wait for ever.
    pub(crate) async fn empty(&self) {
        while self.is_busy() {
            self.emptied.notified().await;
        }
    }

    fn is_busy(&self) -> bool {
        let state = self.state.borrow();
        state.sending || !state.bytes.is_empty()
    }

    /// As `push`; a long packet is not copied if nothing waits before it.
    pub(crate) fn push_owned(&self, packet: Vec<u8>) {
        let mut state = self.state.borrow_mut();
        if packet.len() < COPIED_BYTES_MAX || !state.bytes.is_empty() {
            drop(state);
            return self.push(&packet);
        }
        state.packets += 1;
        state.bytes = packet;
        drop(state);
        self.wake.notify_one();
    }

    /// A notice that nobody asked for. Left out until the peer's registration was answered: that answer may still wait
    /// for the disk, and a peer in the middle of its hand-shake takes nothing else. What it missed it does not have yet.
    pub(crate) fn push_notice(&self, packet: &[u8]) {
        if self.state.borrow().keep_alive.is_some() {
            self.push(packet);
        }
    }

    /// From now on silence is broken.
    pub(crate) fn keep_alive(&self, keep_alive: KeepAlive) {
        self.state.borrow_mut().keep_alive = Some(keep_alive);
        self.wake.notify_one();
    }

    /// Closes once everything is sent.
    pub(crate) fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.ending = if state.ending == Ending::Now { Ending::Now } else { Ending::Flush };
        drop(state);
        self.wake.notify_one();
    }

    /// Closes at once.
    pub(crate) fn cut(&self) {
        self.state.borrow_mut().ending = Ending::Now;
        self.wake.notify_one();
    }
}

/// Sends what the outbox gathers until it is closed or the peer is gone. Closes the stream.
pub(crate) async fn write_out(ring: Ring, stream: Stream, outbox: Rc<Outbox>) {
    loop {
        let (bytes, packets, ending) = {
            let mut state = outbox.state.borrow_mut();
            state.sending = !state.bytes.is_empty();
            if state.sending {
                (std::mem::take(&mut state.bytes), std::mem::take(&mut state.packets), state.ending)
            } else {
                outbox.emptied.notify_one();
                (Vec::new(), 0, state.ending)
            }
        };
        if ending == Ending::Now || (ending == Ending::Flush && bytes.is_empty()) {
            break;
        }
        if !bytes.is_empty() {
            let (sent, mut spent) = stream.send_all(bytes).await;
            if sent.is_err() {
                break;
            }
            outbox.traffic.sent(packets, spent.len() as u64);
            let mut state = outbox.state.borrow_mut();
            if state.bytes.capacity() == 0 && spent.capacity() <= KEPT_BYTES_MAX {
                spent.clear();
                state.bytes = spent;
            }
            continue;
        }
        let every = outbox.state.borrow().keep_alive.as_ref().map(|keep_alive| keep_alive.every);
        match every {
            None => outbox.wake.notified().await,
            Some(every) => {
                if ring.timeout(every, outbox.wake.notified()).await.is_err() {
                    let nop = outbox.state.borrow().keep_alive.as_ref().map(|keep_alive| keep_alive.nop.clone());
                    outbox.push(&nop.unwrap_or_default());
                }
            }
        }
    }
    stream.shutdown();
}

/// Why a connection has no more packets.
#[derive(Debug)]
pub(crate) enum Gone {
    /// The peer closed between two packets.
    Closed,
    /// The peer closed inside a packet, or the network failed.
    Broken(io::Error),
    Silent {
        seconds: u64,
    },
    TooLong {
        kind: u32,
        bytes: u32,
        max: u32,
    },
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::Closed => f.write_str("closed by the peer"),
            Gone::Broken(error) => write!(f, "connection broken: {error}"),
            Gone::Silent { seconds } => write!(f, "nothing was heard for {seconds} s"),
            Gone::TooLong { kind, bytes, max } => {
                write!(f, "packet of type {kind} announces {bytes} bytes, at most {max} are allowed")
            }
        }
    }
}

/// Packets of one peer, one after the other.
pub(crate) struct PacketReader {
    ring: Ring,
    reader: BufferedReader,
    /// Largest payload. Spec 10, 1.2.
    max: u32,
    timeout: Duration,
}

impl PacketReader {
    pub(crate) fn new(ring: Ring, stream: Stream, max: u32, timeout: Duration) -> PacketReader {
        PacketReader { ring, reader: BufferedReader::new(stream, RECEIVE_BYTES), max, timeout }
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Waits until a whole packet is there. Its payload is `payload()` until `done`.
    pub(crate) async fn next(&mut self) -> Result<Header, Gone> {
        self.buffer(HEADER_BYTES).await?;
        let header = self.reader.buffered()[..HEADER_BYTES].try_into().expect("that many bytes were waited for");
        let header = Header::decode(header);
        if header.length > self.max {
            return Err(Gone::TooLong { kind: header.kind, bytes: header.length, max: self.max });
        }
        self.buffer(HEADER_BYTES + header.length as usize).await?;
        Ok(header)
    }

    pub(crate) fn payload(&self, header: Header) -> &[u8] {
        &self.reader.buffered()[HEADER_BYTES..HEADER_BYTES + header.length as usize]
    }

    pub(crate) fn done(&mut self, header: Header) {
        self.reader.consume(HEADER_BYTES + header.length as usize);
    }

    /// Whether a whole packet is there already: `next` will not wait.
    pub(crate) fn has_packet(&self) -> bool {
        let buffered = self.reader.buffered();
        buffered.first_chunk().map(Header::decode).is_some_and(|header| {
            let whole = HEADER_BYTES as u64 + u64::from(header.length);
            buffered.len() as u64 >= whole
        })
    }

    /// At least `bytes` in the buffer. Time runs out only when not one byte came.
    async fn buffer(&mut self, bytes: usize) -> Result<(), Gone> {
        while self.reader.buffered().len() < bytes {
            let before = self.reader.buffered().len();
            let filled = self.ring.timeout(self.timeout, self.reader.fill(bytes)).await.map(|filled| filled.map(drop));
            match filled {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if before == 0 && error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(if self.reader.buffered().is_empty() { Gone::Closed } else { Gone::Broken(error) });
                }
                Ok(Err(error)) => return Err(Gone::Broken(error)),
                Err(_) if self.reader.buffered().len() > before => {}
                Err(_) => return Err(Gone::Silent { seconds: self.timeout.as_secs() }),
            }
        }
        Ok(())
    }
}
