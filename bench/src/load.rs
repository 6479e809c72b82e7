//! Doing a job to a chunkserver: one thread, one ring, as many connections as the job has.
//!
//! Buffers are made before the clock runs and used again for each request; received data are looked at only when they
//! are to be verified. So the load costs little more than the kernel's share of it, and [`Outcome`] says how much of
//! a core that was: near 1 would mean that the program measured itself.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use mooring_tests::daemon::cpu_seconds;
use ring::local::{Permit, Semaphore};
use ring::{Instant, IoBufExt, Options, Ring, Stream};
use wire::limits::{BLOCK_BYTES, CHUNK_BYTES};
use wire::{ChainServer, ChunkId, CltocsRead, CltocsWrite, CltocsWriteData, CltocsWriteFinish, Crc, Packet, Seed};
use wire::{CstoclReadData, Version};

use crate::content::{Blocks, Model, VARIANTS};
use crate::job::{Job, Op, Order};
use crate::replies::{Event, Replies};

/// The version of every chunk here.
pub const VERSION: Version = Version(1);
/// Received at a time.
const RECEIVE_BYTES: usize = 256 << 10;
/// Pieces of data in one write session with random places.
const SESSION_PIECES: u32 = 4096;
/// A job that has not ended so long after its time has met a server that hangs.
const GRACE: Duration = Duration::from_secs(60);

/// A job and what it is done to.
pub struct Plan {
    pub job: Job,
    /// The servers of a subject in the order of its chains.
    pub servers: Vec<SocketAddrV4>,
    /// The one that is talked to; those behind it are the rest of the chain.
    pub first: usize,
    pub chunks: Vec<ChunkId>,
    /// No request begins later.
    pub limit: Duration,
    pub seed: u64,
    /// Check the sum and every byte of what is read.
    pub verify: bool,
}

/// What it came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub operations: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// CPU that this process used meanwhile.
    pub client_cpu_seconds: f64,
    /// Of every request, sorted.
    pub latencies_micros: Vec<u32>,
}

impl Outcome {
    /// The latency that this share of all requests did not exceed; 0 if there were none.
    pub fn percentile_micros(&self, share: f64) -> f64 {
        let last = self.latencies_micros.len().saturating_sub(1);
        let place = (share * self.latencies_micros.len() as f64).ceil() as usize;
        self.latencies_micros.get(place.saturating_sub(1).min(last)).copied().map_or(0.0, f64::from)
    }
}

/// Does the job. Errors: what a server did that it must not, in words.
pub fn run(plan: Plan, blocks: &Rc<Blocks>, model: &Rc<RefCell<Model>>) -> Result<Outcome, String> {
    let (blocks, model) = (blocks.clone(), model.clone());
    let options = Options { buffers: 16, ..Options::default() };
    let outcome = ring::run(options, |ring| async move {
        let sums = blocks.sums(plan.job.request_bytes.min(BLOCK_BYTES));
        let shuffled = RefCell::new(shuffled(&plan).into_iter());
        let tally = RefCell::new(Outcome { latencies_micros: Vec::with_capacity(1 << 20), ..Outcome::default() });
        let mut streams = Vec::new();
        for _ in 0..plan.job.connections {
            let to = plan.servers[plan.first];
            let stream = ring.connect(to.into(), None).await.map_err(|error| format!("{to}: {error}"))?;
            streams.push(stream);
        }
        let (cpu, start) = (cpu_seconds(std::process::id()), ring.now());
        let (end, limit) = (start + plan.limit, plan.limit + GRACE);
        let work = Rc::new(Work { ring: ring.clone(), plan, blocks, sums, model, end, shuffled, tally });
        let tasks: Vec<_> = streams.into_iter().enumerate().map(|(n, stream)| work.clone().begin(n, stream)).collect();
        let all = async {
            for task in tasks {
                task.await.expect("nobody aborts it")?;
            }
            Ok::<_, String>(())
        };
        ring.timeout(limit, all).await.map_err(|_| "the server has hung for a minute".to_owned())??;
        let mut outcome = work.tally.take();
        outcome.seconds = start.elapsed(&ring).as_secs_f64();
        outcome.client_cpu_seconds = cpu_seconds(std::process::id()) - cpu;
        outcome.latencies_micros.sort_unstable();
        Ok(outcome)
    });
    outcome.map_err(|error| format!("the ring cannot start: {error}"))?
}

/// What the connections of a job share.
struct Work {
    ring: Ring,
    plan: Plan,
    blocks: Rc<Blocks>,
    /// Of each block's beginning, as long as a request.
    sums: Vec<Crc>,
    model: Rc<RefCell<Model>>,
    end: Instant,
    /// Numbers of requests of a cold random read that nobody has taken yet.
    shuffled: RefCell<std::vec::IntoIter<u32>>,
    tally: RefCell<Outcome>,
}

/// Every request of a cold random read, each once. Empty for other jobs.
fn shuffled(plan: &Plan) -> Vec<u32> {
    if plan.job.op == Op::Write || plan.job.order == Order::Sequential || !plan.job.is_one_pass() {
        return Vec::new();
    }
    let per_chunk = CHUNK_BYTES / plan.job.request_bytes;
    let mut numbers: Vec<u32> = (0..plan.chunks.len() as u32 * per_chunk).collect();
    let mut seed = Seed(plan.seed);
    for place in (1..numbers.len()).rev() {
        numbers.swap(place, seed.below(place as u64 + 1) as usize);
    }
    numbers
}

impl Work {
    fn begin(self: Rc<Self>, number: usize, stream: Stream) -> ring::JoinHandle<Result<(), String>> {
        let ring = self.ring.clone();
        ring.spawn(async move {
            match self.plan.job.op {
                Op::Read => self.read(number, stream).await,
                Op::Write => self.write(number, stream).await,
            }
        })
    }

    fn is_over(&self) -> bool {
        self.ring.now() >= self.end
    }

    fn count(&self, start: Instant) {
        let mut tally = self.tally.borrow_mut();
        tally.operations += 1;
        tally.bytes += u64::from(self.plan.job.request_bytes);
        tally.latencies_micros.push(u32::try_from(start.elapsed(&self.ring).as_micros()).unwrap_or(u32::MAX));
    }

    /// Where connection `number` reads: chunk and offset, one after the other.
    fn places(&self, number: usize) -> Box<dyn Iterator<Item = (ChunkId, u32)> + '_> {
        let Plan { job, chunks, .. } = &self.plan;
        let size = job.request_bytes;
        let per_chunk = CHUNK_BYTES / size;
        let place = move |number: u32| (chunks[(number / per_chunk) as usize], number % per_chunk * size);
        match (job.order, job.is_one_pass()) {
            (Order::Random, true) => Box::new(std::iter::from_fn(|| self.shuffled.borrow_mut().next()).map(place)),
            (Order::Random, false) => {
                let mut seed = Seed(self.plan.seed + number as u64);
                let all = u64::from(per_chunk) * chunks.len() as u64;
                Box::new(std::iter::from_fn(move || Some(place(seed.below(all) as u32))))
            }
            (Order::Sequential, one_pass) => {
                // Hot chunks may be fewer than connections: then several go through the same one.
                let first = number % chunks.len();
                let own: Vec<usize> =
                    if one_pass { job.chunks_of(number, chunks.len()).collect() } else { vec![first] };
                let pass = own
                    .into_iter()
                    .flat_map(move |chunk| (0..per_chunk).map(move |request| (chunks[chunk], request * size)));
                if one_pass { Box::new(pass) } else { Box::new(pass.cycle()) }
            }
        }
    }

    async fn read(&self, number: usize, stream: Stream) -> Result<(), String> {
        let address = self.plan.servers[self.plan.first];
        let lost = |error: std::io::Error| format!("{address}, reading: {error}");
        let mut request = Vec::with_capacity(64);
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut replies = Replies::default();
        for (chunkid, offset) in self.places(number) {
            if self.is_over() {
                break;
            }
            let size = self.plan.job.request_bytes;
            request.clear();
            CltocsRead { with_proto: true, chunkid, version: VERSION, offset, size }.encode_into(&mut request);
            let start = self.ring.now();
            let result;
            (result, request) = stream.send_all(request).await;
            result.map_err(lost)?;
            let mut answer = Answer::new(self, chunkid, offset);
            while !answer.is_complete {
                let result;
                (result, buffer) = stream.recv(buffer).await;
                let bytes = result.map_err(lost)?;
                if bytes == 0 {
                    return Err(format!("{address} closed the connection during a read"));
                }
                replies.feed(&buffer[..bytes], |event| answer.take(event))?;
            }
            self.count(start);
        }
        Ok(())
    }

    async fn write(&self, number: usize, stream: Stream) -> Result<(), String> {
        let session = Session { window: Semaphore::new(self.plan.job.window), pending: RefCell::default() };
        match select(pin!(self.send(number, &stream, &session)), pin!(self.acknowledge(&stream, &session))).await {
            Either::Left((result, _)) | Either::Right((result, _)) => result,
        }
    }

    /// All sessions of one connection.
    async fn send(&self, number: usize, stream: &Stream, session: &Session) -> Result<(), String> {
        let Plan { job, chunks, .. } = &self.plan;
        let per_chunk = CHUNK_BYTES / job.request_bytes;
        let mut seed = Seed(self.plan.seed + number as u64);
        let mut front = Vec::with_capacity(CltocsWriteData::FRONT_BYTES);
        let own = job.chunks_of(number, chunks.len());
        let rounds = if job.is_one_pass() { 1 } else { usize::MAX };
        for chunk in own.clone().cycle().take(own.count().saturating_mul(rounds)) {
            if self.is_over() {
                break;
            }
            let chunkid = chunks[chunk];
            self.open(stream, session, chunkid).await?;
            let pieces = if job.order == Order::Sequential { per_chunk } else { SESSION_PIECES };
            for piece in 0..pieces {
                let writeid = piece + 1; // never 0: that is the opening
                if self.is_over() {
                    break;
                }
                let place = match job.order {
                    Order::Sequential => piece,
                    Order::Random => seed.below(u64::from(per_chunk)) as u32,
                };
                let variant = seed.below(VARIANTS as u64) as usize;
                let permit = session.window.acquire(1).await;
                front =
                    self.send_piece(stream, session, front, Piece { chunkid, writeid, place, variant }, permit).await?;
            }
            drop(session.window.acquire(job.window).await); // everything is acknowledged
            let finish = CltocsWriteFinish { chunkid, version: VERSION }.encode();
            stream.send_all(finish).await.0.map_err(|error| self.lost_write(&error))?;
        }
        Ok(())
    }

    async fn open(&self, stream: &Stream, session: &Session, chunkid: ChunkId) -> Result<(), String> {
        let first = self.plan.first;
        let chain = self.plan.servers[first + 1..first + self.plan.job.chain].iter();
        let chain = chain.map(|server| ChainServer { ip: (*server.ip()).into(), port: server.port() }).collect();
        session.pending.borrow_mut().push_back(Pending { writeid: 0, start: self.ring.now(), permit: None });
        let open = CltocsWrite { with_proto: true, chunkid, version: VERSION, chain }.encode();
        stream.send_all(open).await.0.map_err(|error| self.lost_write(&error))
    }

    async fn send_piece(
        &self,
        stream: &Stream,
        session: &Session,
        mut front: Vec<u8>,
        piece: Piece,
        permit: Permit,
    ) -> Result<Vec<u8>, String> {
        let Piece { chunkid, writeid, place, variant } = piece;
        let size = self.plan.job.request_bytes;
        let at = place * size;
        let (blocknum, offset) = ((at / BLOCK_BYTES) as u16, (at % BLOCK_BYTES) as u16);
        let head = CltocsWriteData { chunkid, writeid, blocknum, offset, size, crc: self.sums[variant] };
        front.clear();
        front.extend_from_slice(&head.front());
        for server in self.plan.first..self.plan.first + self.plan.job.chain {
            self.model.borrow_mut().wrote(server, chunkid, at, size, variant);
        }
        session.pending.borrow_mut().push_back(Pending { writeid, start: self.ring.now(), permit: Some(permit) });
        let data = self.blocks.block(variant).slice(0..size as usize);
        let (result, front, _) = stream.send_two(front, data).await;
        result.map_err(|error| self.lost_write(&error))?;
        Ok(front)
    }

    /// Takes statuses, until the sender has no more to send.
    async fn acknowledge(&self, stream: &Stream, session: &Session) -> Result<(), String> {
        let mut buffer = vec![0; 4096];
        let mut replies = Replies::default();
        loop {
            let result;
            (result, buffer) = stream.recv(buffer).await;
            let bytes = result.map_err(|error| self.lost_write(&error))?;
            if bytes == 0 {
                return Err(format!("{} closed the connection during a write", self.plan.servers[self.plan.first]));
            }
            replies.feed(&buffer[..bytes], |event| match event {
                Event::Written { writeid, status } if status.is_ok() => {
                    let mut pending = session.pending.borrow_mut();
                    let place = pending.iter().position(|pending| pending.writeid == writeid);
                    let place =
                        place.ok_or_else(|| format!("a status for writeid {writeid}, which is not waited for"))?;
                    let answered = pending.remove(place).expect("it was found");
                    if answered.permit.is_some() {
                        self.count(answered.start);
                    }
                    Ok(())
                }
                event => Err(format!("{} answered a write with {event:?}", self.plan.servers[self.plan.first])),
            })?;
        }
    }

    fn lost_write(&self, error: &std::io::Error) -> String {
        format!("{}, writing: {error}", self.plan.servers[self.plan.first])
    }
}

/// One piece of data on its way out.
struct Piece {
    chunkid: ChunkId,
    writeid: u32,
    /// Counted in requests, from the chunk's beginning.
    place: u32,
    variant: usize,
}

/// A connection's write session.
struct Session {
    window: Semaphore,
    pending: RefCell<VecDeque<Pending>>,
}

/// Something sent that has no status yet.
struct Pending {
    writeid: u32,
    start: Instant,
    /// Its place in the window; the opening has none.
    permit: Option<Permit>,
}

/// What has come of one read's answer.
struct Answer<'a> {
    work: &'a Work,
    chunk: ChunkId,
    position: u32,
    end: u32,
    sum: crc32fast::Hasher,
    /// Of the data that are coming in.
    head: Option<(CstoclReadData, u32)>,
    is_complete: bool,
}

impl<'a> Answer<'a> {
    fn new(work: &'a Work, chunk: ChunkId, offset: u32) -> Answer<'a> {
        let end = offset + work.plan.job.request_bytes;
        let sum = crc32fast::Hasher::new();
        Answer { work, chunk, position: offset, end, sum, head: None, is_complete: false }
    }

    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Data(head) => {
                let at = u32::from(head.blocknum) * BLOCK_BYTES + u32::from(head.offset);
                if head.chunkid != self.chunk || at != self.position || head.size > self.end - at {
                    return Err(format!("data of another place than {} of {}: {head:?}", self.position, self.chunk));
                }
                self.sum.reset();
                self.head = Some((head, head.size));
            }
            Event::Bytes(bytes) => self.data(bytes)?,
            Event::ReadEnd(status) if !status.is_ok() => {
                return Err(format!("reading {} at {}: {status}", self.chunk, self.position));
            }
            Event::ReadEnd(_) if self.position != self.end => {
                return Err(format!("reading {}: ended at {} instead of {}", self.chunk, self.position, self.end));
            }
            Event::ReadEnd(_) => self.is_complete = true,
            Event::Written { .. } => return Err("a write status during a read".into()),
        }
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<(), String> {
        let (head, left) = self.head.as_mut().expect("data come after their head");
        let size = bytes.len() as u32;
        *left -= size;
        if self.work.plan.verify {
            self.sum.update(bytes);
            if *left == 0 && self.sum.clone().finalize() != head.crc.0 {
                return Err(format!("{}: wrong CRC in {head:?}", self.chunk));
            }
            if !self.work.model.borrow().holds(
                &self.work.blocks,
                self.work.plan.first,
                self.chunk,
                self.position,
                bytes,
            ) {
                return Err(format!("{}: other bytes than were written near {}", self.chunk, self.position));
            }
        }
        self.position += size;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let outcome = Outcome { latencies_micros: (1..=1000).collect(), ..Outcome::default() };
        assert_eq!(
            [0.5, 0.99, 0.999, 1.0].map(|share| outcome.percentile_micros(share)),
            [500.0, 990.0, 999.0, 1000.0]
        );
        assert_eq!(Outcome::default().percentile_micros(0.5), 0.0);
    }

    #[test]
    fn a_cold_random_read_asks_for_every_byte_once() {
        let job: Job = "read-rand-64k-n4-cold".parse().expect("a good name");
        let chunks = vec![ChunkId(1), ChunkId(2)];
        let plan = Plan { job, servers: vec![], first: 0, chunks, limit: Duration::ZERO, seed: 3, verify: false };
        let mut numbers = shuffled(&plan);
        assert!(!numbers.is_sorted());
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..2048));
    }
}
