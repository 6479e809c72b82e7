//! The simulated network: ordered byte streams between nodes, with delays, cuts and resets.
//!
//! A connection has two ends. What one end sends is queued at the other with a time of arrival; a `Deliver` event at
//! that time moves it to the inbox, unless the nodes are cut off from each other: then it waits in the queue, in
//! order, until the cut is healed or the connection gives up.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;

use super::state::{Event, Handle, State};
use crate::sys::operation::{Key, Parts};

pub(super) struct Listening {
    pub(super) node: u32,
    at: SocketAddr,
    /// Connections that wait to be accepted.
    backlog: VecDeque<RawFd>,
    waiting: VecDeque<Key>,
}

pub(super) struct Socket {
    pub(super) node: u32,
    from: Option<IpAddr>,
    /// Connection and end, once connected.
    end: Option<(u64, usize)>,
}

pub(super) struct Connection {
    ends: [End; 2],
}

struct End {
    node: u32,
    address: SocketAddr,
    /// On the way here, in order.
    incoming: VecDeque<(u64, Item)>,
    inbox: VecDeque<u8>,
    /// The other side has ended its sending.
    ended: bool,
    error: Option<i32>,
    closed: bool,
    /// Both directions were ended by `shutdown`.
    shut: bool,
    reader: Option<Key>,
    writer: Option<Key>,
}

enum Item {
    Bytes(Vec<u8>),
    End,
    Reset,
}

impl End {
    fn new(node: u32, address: SocketAddr) -> End {
        End {
            node,
            address,
            incoming: VecDeque::new(),
            inbox: VecDeque::new(),
            ended: false,
            error: None,
            closed: false,
            shut: false,
            reader: None,
            writer: None,
        }
    }

    /// Bytes that were sent here and not received yet.
    fn outstanding(&self) -> usize {
        let on_the_way =
            self.incoming.iter().map(|(_, item)| if let Item::Bytes(bytes) = item { bytes.len() } else { 0 });
        self.inbox.len() + on_the_way.sum::<usize>()
    }
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

impl State {
    pub(crate) fn open_socket(&mut self, node: u32, from: Option<IpAddr>) -> io::Result<RawFd> {
        if let Some(from) = from
            && !self.is_local(node, from)
        {
            return Err(error(libc::EADDRNOTAVAIL));
        }
        Ok(self.new_fd(Handle::Socket(Socket { node, from, end: None })))
    }

    fn is_local(&self, node: u32, ip: IpAddr) -> bool {
        ip.is_loopback() || ip.is_unspecified() || ip == IpAddr::V4(self.nodes[node as usize].ip)
    }

    pub(crate) fn listen(&mut self, node: u32, at: SocketAddr) -> io::Result<(RawFd, SocketAddr)> {
        if !self.is_local(node, at.ip()) {
            return Err(error(libc::EADDRNOTAVAIL));
        }
        let at = if at.port() == 0 { SocketAddr::new(at.ip(), self.take_port(node)) } else { at };
        let is_taken = self.handles.values().any(|handle| match handle {
            Handle::Listening(other) => {
                let same_ip = other.at.ip() == at.ip() || other.at.ip().is_unspecified() || at.ip().is_unspecified();
                other.node == node && other.at.port() == at.port() && same_ip
            }
            _ => false,
        });
        if is_taken {
            return Err(error(libc::EADDRINUSE));
        }
        let listening = Listening { node, at, backlog: VecDeque::new(), waiting: VecDeque::new() };
        Ok((self.new_fd(Handle::Listening(listening)), at))
    }

    fn take_port(&mut self, node: u32) -> u16 {
        let port = &mut self.nodes[node as usize].next_port;
        *port = if *port == u16::MAX { 40_000 } else { *port + 1 };
        *port
    }

    fn end_of(&self, fd: RawFd) -> Option<(u64, usize)> {
        match self.handles.get(&fd) {
            Some(Handle::Socket(socket)) => socket.end,
            _ => None,
        }
    }

    pub(crate) fn local_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        let (connection, end) = self.end_of(fd).ok_or_else(|| error(libc::ENOTCONN))?;
        Ok(self.connections[&connection].ends[end].address)
    }

    pub(crate) fn peer_address(&self, fd: RawFd) -> io::Result<SocketAddr> {
        let (connection, end) = self.end_of(fd).ok_or_else(|| error(libc::ENOTCONN))?;
        Ok(self.connections[&connection].ends[1 - end].address)
    }

    pub(super) fn accept(&mut self, key: Key, socket: RawFd) -> Option<i32> {
        let Some(Handle::Listening(listening)) = self.handles.get_mut(&socket) else { return Some(-libc::EBADF) };
        let accepted = listening.backlog.pop_front();
        if accepted.is_none() {
            listening.waiting.push_back(key);
        }
        accepted
    }

    /// A SYN arrives where it goes to.
    pub(super) fn connect(&mut self, key: Key, node: u32, socket: RawFd, to: SocketAddr) -> Option<i32> {
        let range = self.settings.net_delay.clone();
        let answer_delay = self.dice.micros(&range);
        let target = match to.ip() {
            ip if self.is_local(node, ip) => Some(node),
            IpAddr::V4(ip) => (0..).zip(&self.nodes).find(|(_, target)| target.ip == ip).map(|(number, _)| number),
            IpAddr::V6(_) => None,
        };
        let target = target.filter(|target| self.nodes[*target as usize].alive && self.linked(node, *target));
        let Some(target) = target else {
            let after = super::micros(self.settings.connect_timeout);
            self.schedule(after, Event::Finish(key, -libc::ETIMEDOUT));
            return None;
        };
        let listener = self.handles.iter().find_map(|(fd, handle)| match handle {
            Handle::Listening(listening)
                if listening.node == target
                    && listening.at.port() == to.port()
                    && (listening.at.ip() == to.ip() || listening.at.ip().is_unspecified()) =>
            {
                Some(*fd)
            }
            _ => None,
        });
        let Some(listener) = listener else {
            self.schedule(answer_delay, Event::Finish(key, -libc::ECONNREFUSED));
            return None;
        };
        let Some(Handle::Socket(client)) = self.handles.get(&socket) else { return Some(-libc::EBADF) };
        let own_ip = if to.ip().is_loopback() { to.ip() } else { IpAddr::V4(self.nodes[node as usize].ip) };
        let from = SocketAddr::new(client.from.unwrap_or(own_ip), self.take_port(node));
        let number = self.next_connection;
        self.next_connection += 1;
        self.connections.insert(number, Connection { ends: [End::new(node, from), End::new(target, to)] });
        if let Some(Handle::Socket(client)) = self.handles.get_mut(&socket) {
            client.end = Some((number, 0));
        }
        let accepted = self.new_fd(Handle::Socket(Socket { node: target, from: None, end: Some((number, 1)) }));
        let Some(Handle::Listening(listening)) = self.handles.get_mut(&listener) else { unreachable!("just found") };
        listening.backlog.push_back(accepted);
        if let Some(waiting) = listening.waiting.pop_front() {
            self.schedule(0, Event::Perform(waiting));
        }
        self.schedule(answer_delay, Event::Finish(key, 0));
        None
    }

    pub(super) fn receive(&mut self, key: Key, socket: RawFd, into: &mut [u8]) -> Option<i32> {
        let Some((number, side)) = self.end_of(socket) else { return Some(-libc::ENOTCONN) };
        let in_pieces = self.dice.chance(self.settings.short_transfers_percent);
        let end = &mut self.connections.get_mut(&number).expect("an open socket has its connection").ends[side];
        let present = end.inbox.len().min(into.len());
        if present == 0 && !into.is_empty() {
            if let Some(error) = end.error.take() {
                return Some(-error);
            }
            if end.ended || end.shut {
                return Some(0);
            }
            end.reader = Some(key);
            return None;
        }
        let count = if in_pieces && present > 1 { 1 + self.dice.below(present as u64) as usize } else { present };
        let (front, back) = end.inbox.as_slices();
        let from_front = count.min(front.len());
        into[..from_front].copy_from_slice(&front[..from_front]);
        into[from_front..count].copy_from_slice(&back[..count - from_front]);
        end.inbox.drain(..count);
        // The other side has room again.
        self.wake_writer(number, 1 - side);
        Some(i32::try_from(count).expect("a receive is below 2 GiB"))
    }

    pub(super) fn send(&mut self, key: Key, socket: RawFd, parts: Parts<'_>) -> Option<i32> {
        let Some((number, side)) = self.end_of(socket) else { return Some(-libc::ENOTCONN) };
        let in_pieces = self.dice.chance(self.settings.short_transfers_percent);
        let window = self.settings.window_bytes;
        let connection = self.connections.get_mut(&number).expect("an open socket has its connection");
        let own = &mut connection.ends[side];
        if let Some(error) = own.error.take() {
            own.shut = true; // the next send gives EPIPE
            return Some(-error);
        }
        if own.shut {
            return Some(-libc::EPIPE);
        }
        let room = window.saturating_sub(connection.ends[1 - side].outstanding());
        if room == 0 {
            connection.ends[side].writer = Some(key);
            return None;
        }
        let length: usize = parts.iter().map(<[u8]>::len).sum();
        let mut count = length.min(room);
        if in_pieces && count > 1 {
            count = 1 + self.dice.below(count as u64) as usize;
        }
        let mut bytes = Vec::with_capacity(count);
        for part in parts.iter() {
            bytes.extend_from_slice(&part[..part.len().min(count - bytes.len())]);
        }
        self.post(number, 1 - side, Item::Bytes(bytes));
        Some(i32::try_from(count).expect("a window is below 2 GiB"))
    }

    /// Puts something on its way to one end.
    fn post(&mut self, number: u64, to: usize, item: Item) {
        let range = self.settings.net_delay.clone();
        let arrival = self.now + self.dice.micros(&range);
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let queue = &mut connection.ends[to].incoming;
        // Bytes do not overtake each other.
        let arrival = queue.back().map_or(arrival, |(last, _)| arrival.max(*last));
        queue.push_back((arrival, item));
        self.schedule(arrival - self.now, Event::Deliver { connection: number, end: to });
    }

    pub(super) fn deliver(&mut self, number: u64, to: usize) {
        loop {
            let Some(connection) = self.connections.get(&number) else { return };
            let [a, b] = &connection.ends;
            if !self.linked(a.node, b.node) {
                return;
            }
            let now = self.now;
            let end = &mut self.connections.get_mut(&number).expect("just found").ends[to];
            match end.incoming.front() {
                Some((arrival, _)) if *arrival <= now => {}
                _ => return,
            }
            let (_, item) = end.incoming.pop_front().expect("just seen");
            match item {
                Item::Bytes(bytes) if end.closed => {
                    // Nobody reads this any more: the sender learns it.
                    if !bytes.is_empty() {
                        self.post(number, 1 - to, Item::Reset);
                    }
                }
                Item::Bytes(bytes) => end.inbox.extend(bytes),
                Item::End => end.ended = true,
                Item::Reset => end.error = Some(libc::ECONNRESET),
            }
            self.wake_reader(number, to);
            self.wake_writer(number, to);
            self.forget_if_over(number);
        }
    }

    fn wake_reader(&mut self, number: u64, side: usize) {
        let end = self.connections.get_mut(&number).map(|connection| &mut connection.ends[side]);
        if let Some(key) = end.and_then(|end| end.reader.take()) {
            self.schedule(0, Event::Perform(key));
        }
    }

    fn wake_writer(&mut self, number: u64, side: usize) {
        let end = self.connections.get_mut(&number).map(|connection| &mut connection.ends[side]);
        if let Some(key) = end.and_then(|end| end.writer.take()) {
            self.schedule(0, Event::Perform(key));
        }
    }

    /// An operation that waits for the network does so no longer. False: it is not one.
    pub(super) fn stop_waiting(&mut self, key: Key) -> bool {
        for handle in self.handles.values_mut() {
            if let Handle::Listening(listening) = handle
                && let Some(place) = listening.waiting.iter().position(|waiting| *waiting == key)
            {
                listening.waiting.remove(place);
                return true;
            }
        }
        for end in self.connections.values_mut().flat_map(|connection| &mut connection.ends) {
            for waiting in [&mut end.reader, &mut end.writer] {
                if *waiting == Some(key) {
                    *waiting = None;
                    return true;
                }
            }
        }
        false
    }

    pub(crate) fn shutdown_socket(&mut self, fd: RawFd) {
        let Some((number, side)) = self.end_of(fd) else { return };
        let Some(connection) = self.connections.get_mut(&number) else { return };
        if !std::mem::replace(&mut connection.ends[side].shut, true) {
            self.post(number, 1 - side, Item::End);
        }
        self.wake_reader(number, side);
        self.wake_writer(number, side);
    }

    pub(super) fn close_socket(&mut self, socket: Socket) {
        let Some((number, side)) = socket.end else { return };
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let end = &mut connection.ends[side];
        end.closed = true;
        let farewell = if end.inbox.is_empty() { Item::End } else { Item::Reset };
        let was_shut = std::mem::replace(&mut end.shut, true);
        if !was_shut || matches!(farewell, Item::Reset) {
            self.post(number, 1 - side, farewell);
        }
        self.forget_if_over(number);
    }

    pub(super) fn close_listening(&mut self, listening: Listening) {
        for fd in listening.backlog {
            if let Some(Handle::Socket(socket)) = self.handles.remove(&fd) {
                self.close_socket(socket);
            }
        }
    }

    fn forget_if_over(&mut self, number: u64) {
        let over = |connection: &Connection| connection.ends.iter().all(|end| end.closed);
        if self.connections.get(&number).is_some_and(over) {
            self.connections.remove(&number);
        }
    }

    /// The node behind this socket has crashed: its peer sees a reset some time later.
    pub(super) fn crash_socket(&mut self, fd: RawFd) {
        let Some((number, side)) = self.end_of(fd) else { return };
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.ends[side].closed = true;
        connection.ends[side].shut = true;
        // What it had sent and was not delivered yet is gone with it, or not.
        if self.dice.chance(50) {
            self.connections.get_mut(&number).expect("just found").ends[1 - side].incoming.clear();
        }
        self.post(number, 1 - side, Item::Reset);
        self.forget_if_over(number);
    }

    pub(super) fn cut(&mut self, a: u32, b: u32) {
        let cut = self.next_cut;
        self.next_cut += 1;
        self.cuts.entry((a.min(b), a.max(b))).or_insert(cut);
        for number in self.connections_between(a, b) {
            let range = self.settings.cut_timeout.clone();
            let after = self.dice.micros(&range);
            self.schedule(after, Event::GiveUp { connection: number, cut });
        }
    }

    pub(super) fn heal(&mut self, a: u32, b: u32) {
        if self.cuts.remove(&(a.min(b), a.max(b))).is_none() {
            return;
        }
        let range = self.settings.net_delay.clone();
        for number in self.connections_between(a, b) {
            for end in 0..2 {
                let delay = self.dice.micros(&range);
                let now = self.now;
                let queue = &mut self.connections.get_mut(&number).expect("just listed").ends[end].incoming;
                if let Some((last, _)) = queue.back() {
                    let arrival = (*last).max(now + delay);
                    for (time, _) in queue.iter_mut() {
                        *time = (*time).max(now + delay);
                    }
                    self.schedule(arrival - now, Event::Deliver { connection: number, end });
                    self.schedule(delay, Event::Deliver { connection: number, end });
                }
            }
        }
    }

    fn connections_between(&self, a: u32, b: u32) -> Vec<u64> {
        let between = |connection: &Connection| {
            let [first, second] = &connection.ends;
            (first.node, second.node) == (a, b) || (first.node, second.node) == (b, a)
        };
        self.connections.iter().filter(|(_, connection)| between(connection)).map(|(number, _)| *number).collect()
    }

    pub(super) fn give_up(&mut self, number: u64, cut: u64) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        let [a, b] = &connection.ends;
        if self.cuts.get(&(a.node.min(b.node), a.node.max(b.node))) != Some(&cut) {
            return;
        }
        for end in &mut connection.ends {
            end.error = Some(libc::ETIMEDOUT);
            end.ended = true;
            end.incoming.clear();
        }
        for side in 0..2 {
            self.wake_reader(number, side);
            self.wake_writer(number, side);
        }
    }
}
