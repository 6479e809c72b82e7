//! The measurements on one disk, on a file that has no name any more.
//!
//! Requests are those of a chunkserver: 64 KiB, one block, and 4 KiB, a small read or the write of a part. What is read
//! has been written past the page cache just before, so that it comes from the disk; what a disk keeps in a cache of its
//! own cannot be told apart.

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use ring::{Block, File, Instant, IoBufExt, OpenHow, Ring};

const BLOCK_BYTES: u64 = 64 << 10;
const SMALL_BYTES: u64 = 4 << 10;
/// Requests at a time, in a row and at random.
const DEPTH_IN_A_ROW: usize = 16;
const DEPTH_AT_RANDOM: usize = 32;
/// Measurements that share the time.
const MEASUREMENTS: u32 = 9;
/// Latencies that are kept for the percentiles of one measurement.
const LATENCIES_MAX: usize = 1 << 20;

/// What was measured on one disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Figures {
    /// Of direct IO; None: the file system refuses O_DIRECT.
    pub(crate) alignment_bytes: Option<u32>,
    pub(crate) measured: Vec<Measured>,
    /// Random reads of 4 KiB, one at a time, in microseconds: what tells heads from flash.
    pub(crate) read_latency_micros: u32,
    /// Random reads of 64 KiB, many at a time.
    pub(crate) random_read_mb_per_second: f64,
    /// A write of 4 KiB with its flush, in microseconds.
    pub(crate) flush_micros: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) what: String,
    pub(crate) rates: Rates,
}

/// MB are millions of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Rates {
    pub(crate) mb_per_second: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_micros: u32,
    pub(crate) p99_micros: u32,
}

/// One kind of load.
#[derive(Debug, Clone, Copy)]
struct Load {
    write: bool,
    at_random: bool,
    bytes: u64,
    depth: usize,
    /// Each write is followed by a flush.
    flush: bool,
}

const WRITE: Load = Load { write: true, at_random: false, bytes: BLOCK_BYTES, depth: DEPTH_IN_A_ROW, flush: false };
const READ: Load = Load { write: false, ..WRITE };
const READ_AT_RANDOM: Load = Load { at_random: true, depth: DEPTH_AT_RANDOM, ..READ };
const READ_ALONE: Load = Load { bytes: SMALL_BYTES, depth: 1, ..READ_AT_RANDOM };
const WRITE_SMALL: Load = Load { write: true, bytes: SMALL_BYTES, ..READ_AT_RANDOM };
const FLUSH: Load = Load { depth: 1, flush: true, ..WRITE_SMALL };

impl Load {
    fn name(self, mode: &str) -> String {
        let order = if self.at_random { "random" } else { "sequential" };
        let verb = if self.write { "write" } else { "read" };
        let flush = if self.flush { " and flush" } else { "" };
        format!("{order} {verb}{flush}, {} KiB x {}, {mode}", self.bytes >> 10, self.depth)
    }
}

/// Measures for about `budget`, on a file of at most `size_bytes`. Errors: a sentence, or that it was interrupted.
pub(crate) async fn measure(
    ring: &Ring,
    folder: &Path,
    size_bytes: u64,
    budget: Duration,
    interrupted: &AtomicBool,
) -> Result<Figures, String> {
    let (buffered, direct) = nameless_file(ring, folder).await?;
    let part = budget / MEASUREMENTS;
    let mut figures = Figures { alignment_bytes: direct.as_ref().map(File::direct_alignment), ..Figures::default() };
    match buffered.allocate(0, size_bytes).await {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => return Err(error.to_string()),
        _ => {} // a file system that cannot is measured as it is
    }
    let mut bench = Bench { ring, interrupted, size_bytes, figures: &mut figures };
    let (first, mode) = direct.as_ref().map_or((&buffered, "buffered"), |direct| (direct, "direct"));
    let writes = bench.run(first, WRITE, mode, part).await?;
    buffered.datasync().await.map_err(|error| error.to_string())?;
    // Only what was written is on the disk: the rest would be read as zeros from nowhere.
    bench.size_bytes = writes.max(8 * BLOCK_BYTES).min(size_bytes);
    bench.run(first, READ, mode, part).await?;
    bench.run(first, READ_AT_RANDOM, mode, part).await?;
    bench.figures.random_read_mb_per_second = bench.last().mb_per_second;
    bench.run(first, READ_ALONE, mode, part).await?;
    bench.figures.read_latency_micros = bench.last().p50_micros;
    bench.run(first, WRITE_SMALL, mode, part).await?;
    bench.run(first, FLUSH, mode, part).await?;
    bench.figures.flush_micros = bench.last().p50_micros;
    if direct.is_some() {
        bench.run(&buffered, READ, "buffered", part).await?;
        bench.run(&buffered, WRITE_SMALL, "buffered", part).await?;
        bench.run(&buffered, WRITE, "buffered", part).await?;
    }
    Ok(figures)
}

/// A new file without a name, twice: through the page cache and, where that is possible, past it.
async fn nameless_file(ring: &Ring, folder: &Path) -> Result<(File, Option<File>), String> {
    let path = folder.join(format!(".mooring-probe-{}", std::process::id()));
    let why = |error: io::Error| format!("cannot make a file there to measure with: {error}");
    let buffered = ring.open(&path, OpenHow::create_new(0o600)).await.map_err(why)?;
    let direct = ring.open(&path, OpenHow::read_write().direct(true)).await;
    ring.unlink(&path).await.map_err(|error| format!("{}: cannot be removed: {error}", path.display()))?;
    match direct {
        Ok(direct) => Ok((buffered, Some(direct))),
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok((buffered, None)),
        Err(error) => Err(why(error)),
    }
}

struct Bench<'a> {
    ring: &'a Ring,
    interrupted: &'a AtomicBool,
    /// The part of the file that is worked in.
    size_bytes: u64,
    figures: &'a mut Figures,
}

/// What the requests of one load share.
struct Work<'a> {
    ring: &'a Ring,
    interrupted: &'a AtomicBool,
    file: &'a File,
    load: Load,
    /// Places in units of the load's requests, each once.
    places: RefCell<std::vec::IntoIter<u32>>,
    end: Instant,
    done: Cell<u64>,
    latencies_micros: RefCell<Vec<u32>>,
}

impl Bench<'_> {
    fn last(&self) -> Rates {
        self.figures.measured.last().map(|measured| measured.rates).unwrap_or_default()
    }

    /// Does one load for a time, or until it has been everywhere once; how many bytes it moved.
    async fn run(&mut self, file: &File, load: Load, mode: &str, time: Duration) -> Result<u64, String> {
        let what = load.name(mode);
        let start = self.ring.now();
        let work = Rc::new(Work {
            ring: self.ring,
            interrupted: self.interrupted,
            file,
            load,
            places: RefCell::new(self.places(load).into_iter()),
            end: start + time,
            done: Cell::new(0),
            latencies_micros: RefCell::default(),
        });
        let mut blocks = Vec::new();
        for _ in 0..load.depth {
            let mut block = self.ring.wait_buffer().await;
            // Bytes that no disk can compress.
            block.payload_mut().chunks_mut(8).for_each(|bytes| {
                let random = self.ring.random_u64().to_be_bytes();
                bytes.copy_from_slice(&random[..bytes.len()]);
            });
            blocks.push(block);
        }
        let workers = join_all(blocks.into_iter().map(|block| work.clone().requests(block))).await;
        workers.into_iter().collect::<io::Result<()>>().map_err(|error| format!("{what}: {error}"))?;
        if load.write && mode == "buffered" {
            file.datasync().await.map_err(|error| format!("{what}: {error}"))?; // memory is not what is measured
        }
        if self.interrupted.load(Ordering::Relaxed) {
            return Err("interrupted; nothing is left behind".to_owned());
        }
        let seconds = (self.ring.now() - start).as_secs_f64().max(1e-6);
        let requests = work.done.get();
        let mut latencies = work.latencies_micros.take();
        latencies.sort_unstable();
        let bytes = requests * load.bytes;
        let rates = Rates {
            mb_per_second: bytes as f64 / 1e6 / seconds,
            per_second: requests as f64 / seconds,
            p50_micros: percentile(&latencies, 50),
            p99_micros: percentile(&latencies, 99),
        };
        self.figures.measured.push(Measured { what, rates });
        Ok(bytes)
    }

    fn places(&self, load: Load) -> Vec<u32> {
        let count = u32::try_from(self.size_bytes / load.bytes).expect("at most 64 GiB in units of 4 KiB");
        let mut places: Vec<u32> = (0..count).collect();
        if load.at_random {
            for last in (1..places.len()).rev() {
                let other = self.ring.random_u64() % (last as u64 + 1);
                places.swap(last, usize::try_from(other).expect("below a usize"));
            }
        }
        places
    }
}

impl Work<'_> {
    /// One request after the other.
    async fn requests(self: Rc<Self>, block: Block) -> io::Result<()> {
        let length = usize::try_from(self.load.bytes).expect("a block at most");
        let mut buffer = block.slice(0..length);
        loop {
            let started = self.ring.now();
            if started >= self.end || self.interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            let Some(place) = self.places.borrow_mut().next() else { return Ok(()) };
            let offset = u64::from(place) * self.load.bytes;
            buffer = if self.load.write {
                let (result, buffer) = self.file.write_all_at(buffer, offset).await;
                result?;
                buffer
            } else {
                let (result, buffer) = self.file.read_at(buffer, offset).await;
                if result? != length {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                buffer
            };
            if self.load.flush {
                self.file.datasync().await?;
            }
            self.done.set(self.done.get() + 1);
            let mut latencies = self.latencies_micros.borrow_mut();
            if latencies.len() < LATENCIES_MAX {
                let micros = (self.ring.now() - started).as_micros();
                latencies.push(u32::try_from(micros).unwrap_or(u32::MAX));
            }
        }
    }
}

/// Of sorted numbers: the one that `percent` of them do not exceed; 0 if there are none.
fn percentile(sorted: &[u32], percent: usize) -> u32 {
    let place = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(place).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_seen() {
        assert_eq!([percentile(&[], 50), percentile(&[7], 50), percentile(&[7], 99)], [0, 7, 7]);
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!([percentile(&hundred, 50), percentile(&hundred, 99)], [50, 99]);
    }
}
