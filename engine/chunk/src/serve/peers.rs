//! Connections to other chunkservers, for write chains. Spec 20, 2.3 and 2.4.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use ring::{BufferedReader, Ring};
use wire::limits::HEADER_BYTES;
use wire::types::ChainServer;
use wire::{AntoanNop, Packet};

use crate::cores::Core;

/// Parked connections kept at most by all cores; then the oldest goes.
const PARKED_MAX: usize = 250;
const BEAT: Duration = Duration::from_millis(500);
/// How long each try of a connect may take.
const TRIES_MS: [u64; 10] = [200, 300, 400, 600, 800, 1200, 1600, 2400, 3200, 4800];
/// A NOP must be taken at once.
const NOP_SEND_MAX: Duration = Duration::from_millis(200);
const SEND_MAX: Duration = Duration::from_secs(5);
const READER_BYTES: usize = 1024;

pub(crate) struct Peers {
    ring: Ring,
    parked: RefCell<VecDeque<Parked>>,
    /// This core's share of `PARKED_MAX`.
    parked_max: usize,
}

struct Parked {
    to: SocketAddr,
    reader: BufferedReader,
}

pub(crate) fn address_of(server: &ChainServer) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(server.ip), server.port))
}

impl Peers {
    pub(crate) fn new(ring: &Ring, core: &Core) -> Peers {
        Peers { ring: ring.clone(), parked: RefCell::default(), parked_max: core.share(PARKED_MAX) }
    }

    /// A connection to a chunkserver on which `opening` was sent: a parked one, or a new one. None when all tries
    /// failed.
    pub(crate) async fn connect(&self, to: SocketAddr, opening: &[u8]) -> Option<BufferedReader> {
        for (at, milliseconds) in TRIES_MS.into_iter().enumerate() {
            let parked = if at == 0 { self.unpark(to) } else { None };
            let reader = match parked {
                Some(reader) => reader,
                None => {
                    let limit = Duration::from_millis(milliseconds);
                    match self.ring.timeout(limit, self.ring.connect(to, None)).await {
                        Ok(Ok(stream)) => BufferedReader::new(stream, READER_BYTES),
                        _ => continue,
                    }
                }
            };
            let sent = self.ring.timeout(SEND_MAX, reader.stream().send_all(opening.to_vec())).await;
            if matches!(sent, Ok((Ok(()), _))) {
                return Some(reader);
            }
        }
        None
    }

    /// Keeps a connection whose last session ended in good order.
    pub(crate) fn park(&self, reader: BufferedReader) {
        let mut parked = self.parked.borrow_mut();
        if parked.len() >= self.parked_max {
            parked.pop_front();
        }
        parked.push_back(Parked { to: reader.stream().peer(), reader });
    }

    fn unpark(&self, to: SocketAddr) -> Option<BufferedReader> {
        let mut parked = self.parked.borrow_mut();
        let newest = parked.iter().rposition(|entry| entry.to == to)?;
        parked.remove(newest).map(|entry| entry.reader)
    }

    /// Keeps parked connections alive and drops those that died.
    pub(crate) async fn beat(self: Rc<Self>) {
        loop {
            self.ring.sleep(BEAT).await;
            let count = self.parked.borrow().len();
            for _ in 0..count {
                let Some(mut entry) = self.parked.borrow_mut().pop_front() else { break };
                if !is_quiet(&mut entry.reader) {
                    continue;
                }
                let nop = entry.reader.stream().send_all(AntoanNop {}.encode());
                if matches!(self.ring.timeout(NOP_SEND_MAX, nop).await, Ok((Ok(()), _))) {
                    self.parked.borrow_mut().push_back(entry);
                }
            }
        }
    }
}

/// Has nothing but NOPs come? An end or anything else makes a connection useless.
fn is_quiet(reader: &mut BufferedReader) -> bool {
    if let Some(received) = reader.more().now_or_never()
        && !matches!(received, Ok(1..))
    {
        return false;
    }
    while let Some(bytes) = reader.buffered().first_chunk::<HEADER_BYTES>() {
        if *bytes != [0; HEADER_BYTES] {
            return false;
        }
        reader.consume(HEADER_BYTES);
    }
    true
}
