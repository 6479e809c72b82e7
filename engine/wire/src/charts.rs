//! Charts and counters, as the monitor asks them of any server. Spec 70, 6.

use crate::codec::{Field, Input, Seed, WireError, packets};
use crate::data::DiskStats;
use crate::types::{ChunkId, Name, Rest};

packets! {
    /// Running totals since the start. Spec 70, 6.5.
    CltoanMonotonicData = 502 {}

    /// Spec 70, 6.5.
    AntoclMonotonicData = 503 { counters: Counters, disks: DiskTotals }

    /// A chart as a picture. Spec 70, 6.3.
    CltoanChart = 504 {
        chart: u32,
        /// Pixels: width in the upper half, height in the lower one.
        size: Option<u32>,
    }

    /// A PNG file. Spec 70, 6.3.
    AntoclChart = 505 { picture: Rest }

    /// The points of a chart. Spec 70, 6.4.
    CltoanChartData = 506 { chart: u32, entries_max: Option<u32> }

    /// Newest first; all ones where nothing is known. Spec 70, 6.4.
    AntoclChartData = 507 { time: u32, entries: u32, points: Vec<u64> }

    /// There is no such chart. Spec 70, 6.4.
    AntoclNoChartData = 507 {}
}

/// Totals of all series, in their order: a count in 16 bits, then so many numbers. Spec 70, 6.5.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(pub Vec<u64>);

/// One record for each disk: a count in 16 bits, then so many records. A master has none, and leaves out the count.
/// Spec 70, 6.5.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskTotals(pub Option<Vec<DiskTotal>>);

/// A disk as in `DiskEntry`, with totals since the start. Spec 70, 6.5.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskTotal {
    pub path: Name,
    pub flags: u8,
    pub errchunkid: ChunkId,
    pub errtime: u32,
    pub used: u64,
    pub total: u64,
    pub chunks: u32,
    pub stats: DiskStats,
}

/// Bytes of `DiskTotal` behind its size field, without the path.
const DISK_TOTAL_FIXED_BYTES: u16 = 34 + 64;

impl Field for Counters {
    fn put(&self, out: &mut Vec<u8>) {
        (self.0.len() as u16).put(out);
        self.0.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let count = u16::take(input)?;
        (0..count).map(|_| u64::take(input)).collect::<Result<_, _>>().map(Counters)
    }
    fn width(&self) -> usize {
        2 + self.0.width()
    }
    fn sample(seed: &mut Seed) -> Self {
        Counters(Vec::sample(seed))
    }
}

impl Field for DiskTotals {
    fn put(&self, out: &mut Vec<u8>) {
        if let Some(disks) = &self.0 {
            (disks.len() as u16).put(out);
            disks.put(out);
        }
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        if input.is_empty() {
            return Ok(DiskTotals(None));
        }
        let count = u16::take(input)?;
        let disks: Result<Vec<DiskTotal>, _> = (0..count).map(|_| DiskTotal::take(input)).collect();
        Ok(DiskTotals(Some(disks?)))
    }
    fn width(&self) -> usize {
        self.0.as_ref().map_or(0, |disks| 2 + disks.width())
    }
    fn sample(seed: &mut Seed) -> Self {
        DiskTotals((seed.below(2) == 1).then(|| Vec::sample(seed)))
    }
}

impl Field for DiskTotal {
    fn put(&self, out: &mut Vec<u8>) {
        (DISK_TOTAL_FIXED_BYTES + self.path.as_bytes().len() as u16).put(out);
        self.path.put(out);
        self.flags.put(out);
        self.errchunkid.put(out);
        self.errtime.put(out);
        self.used.put(out);
        self.total.put(out);
        self.chunks.put(out);
        self.stats.put(out);
    }
    fn take(input: &mut Input<'_>) -> Result<Self, WireError> {
        let size = u16::take(input)?;
        let before = input.remaining();
        let disk = DiskTotal {
            path: Name::take(input)?,
            flags: u8::take(input)?,
            errchunkid: ChunkId::take(input)?,
            errtime: u32::take(input)?,
            used: u64::take(input)?,
            total: u64::take(input)?,
            chunks: u32::take(input)?,
            stats: DiskStats::take(input)?,
        };
        if before - input.remaining() != usize::from(size) {
            return Err(WireError::Range { field: "disk totals size", value: u64::from(size) });
        }
        Ok(disk)
    }
    fn width(&self) -> usize {
        2 + usize::from(DISK_TOTAL_FIXED_BYTES) + self.path.as_bytes().len()
    }
    fn sample(seed: &mut Seed) -> Self {
        DiskTotal {
            path: Name::sample(seed),
            flags: u8::sample(seed),
            errchunkid: ChunkId::sample(seed),
            errtime: u32::sample(seed),
            used: u64::sample(seed),
            total: u64::sample(seed),
            chunks: u32::sample(seed),
            stats: DiskStats::sample(seed),
        }
    }
}
