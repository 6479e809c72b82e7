//! Receiving packets: small heads and controls from a buffer, payload past it.
//!
//! The buffer's front is looked at while a receive fills its tail. A receive that was begun belongs to the reader, not
//! to the future that waits for it, so a time-out or a select that drops such a future loses no byte.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::FutureExt;

use crate::net::{Stream, is_passing};
use crate::sys::buffer::IoBufMut;
use crate::sys::operation::{Descriptor, InFlight};
use crate::sys::staging::{Staging, Tail};

/// Buffers what a connection receives.
///
/// ```text
/// staging: | consumed | buffered | tail, lent to the receive that is under way |
///          0        start      filled                                     capacity
/// ```
pub struct BufferedReader {
    stream: Stream,
    staging: Rc<Staging>,
    start: usize,
    under_way: Option<InFlight<(Rc<Descriptor>, Tail)>>,
}

impl BufferedReader {
    /// A reader with a buffer of `capacity` bytes.
    pub fn new(stream: Stream, capacity: usize) -> BufferedReader {
        BufferedReader { stream, staging: Staging::new(capacity.max(64)), start: 0, under_way: None }
    }

    /// A reader that begins with bytes that another one had buffered.
    pub fn with_buffered(stream: Stream, capacity: usize, buffered: &[u8]) -> BufferedReader {
        let staging = Staging::grown(buffered, capacity.max(64).max(buffered.len()));
        BufferedReader { stream, staging, start: 0, under_way: None }
    }

    /// The connection and what is buffered, for `with_buffered` elsewhere. None, and the reader is lost, if a receive is
    /// under way: whose bytes would come too late.
    pub fn into_parts(self) -> Option<(Stream, Vec<u8>)> {
        let buffered = self.buffered().to_vec();
        self.under_way.is_none().then_some((self.stream, buffered))
    }

    /// The connection.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Waits until at least `bytes` bytes are buffered and gives all that are. The buffer grows if it must: the
    /// caller has checked `bytes` against a limit. Errors: `UnexpectedEof`. Dropped early, no byte is lost.
    pub async fn fill(&mut self, bytes: usize) -> io::Result<&[u8]> {
        self.fill_within(bytes, usize::MAX).await
    }

    /// As `fill`, and leaves with the kernel what comes behind those bytes: payload that `read_into` is to take from
    /// there without a copy.
    pub async fn fill_exactly(&mut self, bytes: usize) -> io::Result<&[u8]> {
        self.fill_within(bytes, bytes).await
    }

    /// As `fill`, and leaves with the kernel what comes behind the first `bytes_max` bytes (at least `bytes`).
    pub async fn fill_within(&mut self, bytes: usize, bytes_max: usize) -> io::Result<&[u8]> {
        while self.buffered().len() < bytes {
            if self.under_way.is_none() {
                self.make_room(bytes);
            }
            let room = bytes_max.max(bytes) - self.buffered().len();
            if poll_fn(|context| self.poll_receive(context, room)).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffered())
    }

    /// What is buffered.
    pub fn buffered(&self) -> &[u8] {
        &self.staging.filled()[self.start..]
    }

    /// Forgets the first `bytes` bytes of the buffer. Panics when there are fewer.
    pub fn consume(&mut self, bytes: usize) {
        assert!(bytes <= self.buffered().len(), "consumed more than was buffered");
        self.start += bytes;
        if self.under_way.is_none() && self.buffered().is_empty() {
            self.staging.restart(self.start, 0);
            self.start = 0;
        }
    }

    /// Fills the whole of `buffer`: from what is buffered, then straight from the connection. Dropped early, the
    /// connection is of no more use. Errors: `UnexpectedEof`.
    pub async fn read_into<B: IoBufMut>(&mut self, mut buffer: B) -> (io::Result<()>, B) {
        let length = buffer.as_bytes().len();
        let mut done = 0;
        loop {
            let taken = self.buffered().len().min(length - done);
            buffer.as_bytes_mut()[done..done + taken].copy_from_slice(&self.buffered()[..taken]);
            self.consume(taken);
            done += taken;
            if done == length {
                return (Ok(()), buffer);
            }
            if self.under_way.is_none() {
                return self.stream.recv_rest(buffer, done).await;
            }
            // A receive that somebody began and left has the next bytes.
            match self.more().await {
                Ok(0) => return (Err(io::ErrorKind::UnexpectedEof.into()), buffer),
                Ok(_) => {}
                Err(error) => return (Err(error), buffer),
            }
        }
    }

    /// One receive: how many bytes were added to the buffer; 0 when the peer has ended its side. Dropped early, no
    /// byte is lost.
    pub async fn more(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_more(context)).await
    }

    /// As `more`, for a future written by hand.
    pub fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.poll_receive(context, usize::MAX)
    }

    fn poll_receive(&mut self, context: &mut Context<'_>, bytes_max: usize) -> Poll<io::Result<usize>> {
        loop {
            if self.under_way.is_none() {
                self.make_room(self.buffered().len() + 1);
            }
            let stream = &self.stream;
            let staging = &self.staging;
            let receive = self.under_way.get_or_insert_with(|| stream.start_receive(staging.lend_tail(bytes_max)));
            let Poll::Ready((result, (_, tail))) = receive.poll_unpin(context) else { return Poll::Pending };
            self.under_way = None;
            match result {
                Ok(bytes) => {
                    tail.received(bytes as usize);
                    return Poll::Ready(Ok(bytes as usize));
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Makes room for `bytes` buffered bytes in all: moves them to the front if that is enough, else grows.
    fn make_room(&mut self, bytes: usize) {
        let buffered = self.buffered().len();
        let capacity = self.staging.capacity();
        let is_cheap_and_useful = self.start > capacity / 2 && buffered <= capacity / 4;
        if self.start + bytes <= capacity && !is_cheap_and_useful {
            return;
        }
        if bytes <= capacity {
            self.staging.restart(self.start, buffered);
        } else {
            self.staging = Staging::grown(self.buffered(), bytes.next_power_of_two());
        }
        self.start = 0;
    }
}
