//! TCP connections.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::Ring;
use crate::core::Core;
use crate::sys::buffer::{IoBuf, IoBufMut};
use crate::sys::calls;
use crate::sys::gather::Gather;
use crate::sys::operation::{Descriptor, InFlight, Message};

/// Connections that wait to be accepted, per listener.
const BACKLOG: i32 = 1024;
/// Message structures that a ring keeps for reuse.
const MESSAGES_KEPT_MAX: usize = 256;

impl Ring {
    /// Connects; `from` is the local address to bind to. The connection sends without delay (TCP_NODELAY).
    ///
    /// Errors: as connect(2). There is no time-out but the kernel's (minutes): use [`Ring::timeout`].
    pub async fn connect(&self, to: SocketAddr, from: Option<std::net::IpAddr>) -> io::Result<Stream> {
        let fd = match &self.core.sim {
            Some(world) => world.borrow_mut().open_socket(self.node, from)?,
            None => {
                let socket = new_socket(&self.core, to)?;
                if let Some(from) = from {
                    socket.bind(&SockAddr::from(SocketAddr::new(from, 0)))?;
                }
                socket.into_raw_fd()
            }
        };
        let descriptor = self.descriptor(fd);
        let (result, _) = descriptor.connect(to).await;
        result?;
        Stream::new(descriptor, to)
    }

    /// Listens for connections at an address; port 0 takes a free one. Errors: as bind(2).
    pub fn listen(&self, at: SocketAddr) -> io::Result<Listener> {
        let (fd, local) = match &self.core.sim {
            Some(world) => world.borrow_mut().listen(self.node, at)?,
            None => {
                let socket = new_socket(&self.core, at)?;
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(at))?;
                socket.listen(BACKLOG)?;
                let local = socket.local_addr()?.as_socket().unwrap_or(at);
                (socket.into_raw_fd(), local)
            }
        };
        Ok(Listener { descriptor: self.descriptor(fd), local })
    }

    /// Takes up a connection that was detached from another ring (of the same or another driver).
    pub fn attach(&self, stream: DetachedStream) -> io::Result<Stream> {
        let DetachedStream { socket, peer, local } = stream;
        let socket = Socket::from(socket);
        socket.set_nonblocking(self.core.nonblocking_sockets)?;
        Ok(Stream { descriptor: self.descriptor(socket.into_raw_fd()), peer, local })
    }

    pub(crate) fn descriptor(&self, fd: i32) -> Rc<Descriptor> {
        Rc::new(Descriptor { core: self.core.clone(), node: self.node, fd, rw_flags: Cell::new(0) })
    }
}

fn new_socket(core: &Core, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(core.nonblocking_sockets)?;
    Ok(socket)
}

/// A connection. Clones are the same connection; at most one receive and one send may be under way at a time.
#[derive(Clone)]
pub struct Stream {
    descriptor: Rc<Descriptor>,
    peer: SocketAddr,
    local: SocketAddr,
}

impl Stream {
    fn new(descriptor: Rc<Descriptor>, peer: SocketAddr) -> io::Result<Stream> {
        let local = match &descriptor.core.sim {
            Some(world) => world.borrow().local_address(descriptor.fd)?,
            None => calls::with_socket(descriptor.fd, Socket::local_addr)?
                .as_socket()
                .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?,
        };
        Ok(Stream { descriptor, peer, local })
    }

    /// Receives what is there, at least one byte, up to the whole buffer. 0: the peer has ended its side.
    ///
    /// Dropped early, bytes may be lost; [`crate::BufferedReader`] loses none.
    pub async fn recv<B: IoBufMut>(&self, mut buffer: B) -> (io::Result<usize>, B) {
        loop {
            let (result, (_, back)) = self.descriptor.receive(buffer, 0, false).await;
            buffer = back;
            match result {
                Err(error) if is_passing(&error) => {}
                result => return (result.map(|bytes| bytes as usize), buffer),
            }
        }
    }

    /// Fills the whole buffer. Errors: `UnexpectedEof` when the peer ends before.
    pub async fn recv_exact<B: IoBufMut>(&self, buffer: B) -> (io::Result<()>, B) {
        self.recv_rest(buffer, 0).await
    }

    /// Fills `buffer[done..]`.
    pub(crate) async fn recv_rest<B: IoBufMut>(&self, mut buffer: B, mut done: usize) -> (io::Result<()>, B) {
        while done < buffer.as_bytes().len() {
            let (result, (_, back)) = self.descriptor.receive(buffer, done, true).await;
            buffer = back;
            match result {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(bytes) => done += bytes as usize,
                Err(error) if is_passing(&error) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends the whole buffer. Dropped early, a part may have been sent: then the connection is of no more use.
    pub async fn send_all<B: IoBuf>(&self, mut buffer: B) -> (io::Result<()>, B) {
        let mut done = 0;
        while done < buffer.as_bytes().len() {
            let (result, (_, back)) = self.descriptor.send(buffer, done).await;
            buffer = back;
            match progress(result) {
                Ok(bytes) => done += bytes,
                Err(error) => return (Err(error), buffer),
            }
        }
        (Ok(()), buffer)
    }

    /// Sends `first`, then `second`, in one operation. Dropped early: as `send_all`.
    pub async fn send_two<A: IoBuf, B: IoBuf>(&self, mut first: A, mut second: B) -> (io::Result<()>, A, B) {
        let core = &self.descriptor.core;
        let length = first.as_bytes().len() + second.as_bytes().len();
        let mut done = 0;
        let mut message = core.messages.borrow_mut().pop().unwrap_or_else(Message::new);
        while done < length {
            let (result, (_, back)) = self.descriptor.send_two(message, first, second, done).await;
            (message, first, second) = back;
            match progress(result) {
                Ok(bytes) => done += bytes,
                Err(error) => return (Err(error), first, second),
            }
        }
        let mut kept = core.messages.borrow_mut();
        if kept.len() < MESSAGES_KEPT_MAX {
            kept.push(message);
        }
        (Ok(()), first, second)
    }

    /// Sends all parts of `gather` in one operation, and gives it back as it was. Dropped early: as `send_all`.
    pub async fn send_gather(&self, mut gather: Gather) -> (io::Result<()>, Gather) {
        let length = gather.total_bytes();
        let mut done = 0;
        while done < length {
            let (result, (_, back)) = self.descriptor.send_gather(gather, done).await;
            gather = back;
            match progress(result) {
                Ok(bytes) => done += bytes,
                Err(error) => return (Err(error), gather),
            }
        }
        (Ok(()), gather)
    }

    /// The peer's address.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Our address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Ends both directions at once: a receive or send that is under way ends with EOF or an error.
    pub fn shutdown(&self) {
        match &self.descriptor.core.sim {
            Some(world) => world.borrow_mut().shutdown_socket(self.descriptor.fd),
            None => calls::shutdown_socket(self.descriptor.fd),
        }
    }

    /// Takes the connection off this ring, to go on another: `Ring::attach` there. Errors: it is in use, by another
    /// handle or by an operation under way: it is given back. Only on the real drivers.
    pub fn detach(self) -> Result<DetachedStream, Stream> {
        if self.descriptor.core.sim.is_some() {
            return Err(self);
        }
        let (peer, local) = (self.peer, self.local);
        match Rc::try_unwrap(self.descriptor) {
            Ok(descriptor) => Ok(DetachedStream { socket: calls::take_over(descriptor.into_fd()), peer, local }),
            Err(descriptor) => Err(Stream { descriptor, peer, local }),
        }
    }

    /// A receive as a future that can be kept and polled later.
    pub(crate) fn start_receive<B: IoBufMut>(&self, buffer: B) -> InFlight<(Rc<Descriptor>, B)> {
        self.descriptor.receive(buffer, 0, false)
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({} -> {})", self.local, self.peer)
    }
}

/// A connection on its way from one ring to another.
pub struct DetachedStream {
    socket: OwnedFd,
    peer: SocketAddr,
    local: SocketAddr,
}

/// Bytes that a send got rid of.
fn progress(result: io::Result<u32>) -> io::Result<usize> {
    match result {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        Ok(bytes) => Ok(bytes as usize),
        Err(error) if is_passing(&error) => Ok(0),
        Err(error) => Err(error),
    }
}

/// The call was interrupted and is to be made again.
pub(crate) fn is_passing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

/// Accepts connections.
pub struct Listener {
    descriptor: Rc<Descriptor>,
    local: SocketAddr,
}

impl Listener {
    /// The next connection. It sends without delay (TCP_NODELAY).
    ///
    /// Errors: as accept(2); connections that broke before they were accepted are passed over.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            let (result, _) = self.descriptor.accept().await;
            let fd = match result {
                Ok(fd) => i32::try_from(fd).expect("a descriptor is an i32"),
                Err(error) if is_passing(&error) || error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error),
            };
            let core = self.descriptor.core.clone();
            let descriptor = Rc::new(Descriptor { core, node: self.descriptor.node, fd, rw_flags: Cell::new(0) });
            if let Ok(stream) = accepted(descriptor) {
                return Ok(stream);
            }
        }
    }

    /// The address, with the port that was taken.
    pub fn local(&self) -> SocketAddr {
        self.local
    }
}

fn accepted(descriptor: Rc<Descriptor>) -> io::Result<Stream> {
    let peer = match &descriptor.core.sim {
        Some(world) => world.borrow().peer_address(descriptor.fd)?,
        None => calls::with_socket(descriptor.fd, |socket| {
            socket.set_tcp_nodelay(true)?;
            socket.peer_addr()
        })?
        .as_socket()
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?,
    };
    Stream::new(descriptor, peer)
}
