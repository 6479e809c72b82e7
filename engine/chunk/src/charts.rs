//! What the monitor draws: numbers per minute, kept for a while in four ranges. Spec 70, 6.
//!
//! Every minute each series gets a point; the longer ranges join points by sum or by maximum. Pure but for the file in
//! which the points outlive a restart, whose name and format are a stock chunkserver's. Points that never were take no
//! memory: a range is as long as what is known.

use std::collections::VecDeque;

use wire::{AntoclChartData, AntoclNoChartData, Packet};

/// Points of a range.
const POINTS_MAX: usize = 4096;
const NO_DATA: u64 = u64::MAX;
/// Minutes of one point in each range.
const RANGE_MINUTES: [u64; 4] = [1, 6, 30, 1440];
/// The name of a series in the file.
const NAME_BYTES: usize = 100;
const FILE_VERSION: u32 = 0x0001_0000;
const FILE_HEAD_BYTES: usize = 16;
/// Bytes of one series in the file.
const FILE_SERIES_BYTES: usize = NAME_BYTES + 4 * POINTS_MAX * 8;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Join {
    Add,
    Max,
}

/// The series of a chunkserver, in the order of the specification. Spec 70, 6.1.
const SERIES: [(&str, &[u8; 4], Join); 34] = [
    ("ucpu", b"UCPU", Join::Add),
    ("scpu", b"SCPU", Join::Add),
    ("masterin", b"MSTI", Join::Add),
    ("masterout", b"MSTO", Join::Add),
    ("csrepin", b"REPI", Join::Add),
    ("csrepout", b"REPO", Join::Add),
    ("csservin", b"SRVI", Join::Add),
    ("csservout", b"SRVO", Join::Add),
    ("hdrbytesr", b"HRBR", Join::Add),
    ("hdrbytesw", b"HRBW", Join::Add),
    ("hdrllopr", b"HROR", Join::Add),
    ("hdrllopw", b"HROW", Join::Add),
    ("databytesr", b"DTBR", Join::Add),
    ("databytesw", b"DTBW", Join::Add),
    ("datallopr", b"DTOR", Join::Add),
    ("datallopw", b"DTOW", Join::Add),
    ("hlopr", b"HLOR", Join::Add),
    ("hlopw", b"HLOW", Join::Add),
    ("rtime", b"TIMR", Join::Add),
    ("wtime", b"TIMW", Join::Add),
    ("repl", b"REPC", Join::Add),
    ("create", b"CREC", Join::Add),
    ("delete", b"DELC", Join::Add),
    ("version", b"VERC", Join::Add),
    ("duplicate", b"DUPC", Join::Add),
    ("truncate", b"TRUC", Join::Add),
    ("duptrunc", b"DTRC", Join::Add),
    ("test", b"TSTC", Join::Add),
    ("load", b"LOAD", Join::Max),
    ("memoryrss", b"MEMR", Join::Max),
    ("memoryvirt", b"MEMV", Join::Max),
    ("movels", b"MOVL", Join::Add),
    ("movehs", b"MOVH", Join::Add),
    ("change", b"CHGC", Join::Add),
];
pub(crate) const SERIES_COUNT: usize = SERIES.len();

/// One number for each series.
pub(crate) type Sample = [u64; SERIES_COUNT];

pub(crate) struct Charts {
    /// The minute of the newest point of the shortest range.
    minute: u64,
    /// For each series and range, newest first.
    points: Vec<[VecDeque<u64>; 4]>,
}

impl Charts {
    /// `minute`: since the epoch, in local time.
    pub(crate) fn new(minute: u64) -> Charts {
        Charts { minute, points: (0..SERIES_COUNT).map(|_| Default::default()).collect() }
    }

    /// Takes in what happened until `minute`.
    pub(crate) fn add(&mut self, minute: u64, sample: &Sample) {
        if minute < self.minute {
            return; // the clock was set back
        }
        self.go_to(minute);
        for ((ranges, (_, _, join)), value) in self.points.iter_mut().zip(&SERIES).zip(sample) {
            for points in ranges {
                match points.front_mut() {
                    None => points.push_front(*value),
                    Some(point) if *point == NO_DATA => *point = *value,
                    Some(point) if *join == Join::Add => *point = point.saturating_add(*value).min(NO_DATA - 1),
                    Some(point) => *point = (*point).max(*value),
                }
            }
        }
    }

    /// Makes room for the points between the newest one and `minute`.
    fn go_to(&mut self, minute: u64) {
        for ranges in &mut self.points {
            for (points, minutes) in ranges.iter_mut().zip(RANGE_MINUTES) {
                let steps = (minute / minutes).saturating_sub(self.minute / minutes).min(POINTS_MAX as u64);
                if points.is_empty() {
                    continue; // nothing is known before the first point
                }
                for _ in 0..steps {
                    points.push_front(NO_DATA);
                }
                points.truncate(POINTS_MAX);
            }
        }
        self.minute = minute;
    }

    /// The answer to CHART_DATA. Spec 70, 6.4.
    pub(crate) fn answer(&self, chart: u32, entries_max: Option<u32>) -> Vec<u8> {
        let Some((series, range)) = find(chart) else { return AntoclNoChartData {}.encode() };
        let entries = entries_max.map_or(POINTS_MAX, |max| (max as usize).min(POINTS_MAX));
        let known = self.points[series][range].iter().copied();
        let points: Vec<u64> = known.chain(std::iter::repeat(NO_DATA)).take(entries).collect();
        let minutes = RANGE_MINUTES[range];
        let time = (self.minute / minutes * minutes * 60) as u32;
        AntoclChartData { time, entries: entries as u32, points }.encode()
    }

    /// The answer to CHART: a picture of the newest points. Spec 70, 6.3.
    pub(crate) fn picture(&self, chart: u32, size: Option<u32>) -> Vec<u8> {
        let Some(((series, range), area)) = find(chart).zip(Some(Area::of(size))) else { return png(1, 1, &[0]) };
        let known = self.points[series][range].iter().copied().map(|point| if point == NO_DATA { 0 } else { point });
        let mut points: Vec<u64> = known.take(area.width).collect();
        points.resize(area.width, 0);
        let top = points.iter().copied().max().unwrap_or(0).max(1);
        let mut pixels = vec![0; area.width * area.height];
        for (at, point) in points.into_iter().enumerate() {
            let bar = (u128::from(point) * (area.height as u128 - 1) / u128::from(top)) as usize;
            let column = area.width - 1 - at; // the newest at the right
            for row in area.height - bar..area.height {
                pixels[row * area.width + column] = 1;
            }
        }
        png(area.width, area.height, &pixels)
    }

    /// `csstats.mfs`. Spec 70, 6.2.
    pub(crate) fn encode_file(&self) -> Vec<u8> {
        let mut file = Vec::with_capacity(FILE_HEAD_BYTES + SERIES_COUNT * FILE_SERIES_BYTES);
        for word in [FILE_VERSION, POINTS_MAX as u32, SERIES_COUNT as u32, self.minute as u32] {
            file.extend_from_slice(&word.to_be_bytes());
        }
        for (ranges, (name, _, _)) in self.points.iter().zip(&SERIES) {
            let mut padded = [0; NAME_BYTES];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            file.extend_from_slice(&padded);
            for points in ranges {
                file.extend((points.len()..POINTS_MAX).flat_map(|_| NO_DATA.to_be_bytes()));
                file.extend(points.iter().rev().flat_map(|point| point.to_be_bytes()));
            }
        }
        file
    }

    /// Points from a file, by the names of its series; what lies between it and `minute` is not known. A file that makes
    /// no sense gives none.
    pub(crate) fn decode_file(file: &[u8], minute: u64) -> Charts {
        let word = |at: usize| file.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let mut charts = Charts::new(minute);
        let (Some(FILE_VERSION), Some(4096), Some(count), Some(last)) = (word(0), word(4), word(8), word(12)) else {
            return charts;
        };
        charts.minute = u64::from(last).min(minute);
        for series in file[FILE_HEAD_BYTES..].chunks_exact(FILE_SERIES_BYTES).take(count as usize) {
            let (name, ranges) = series.split_at(NAME_BYTES);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let Some(at) = SERIES.iter().position(|(known, _, _)| known.as_bytes() == name) else { continue };
            for (points, bytes) in charts.points[at].iter_mut().zip(ranges.chunks_exact(POINTS_MAX * 8)) {
                let read = bytes
                    .chunks_exact(8)
                    .map(|point| u64::from_be_bytes(*point.first_chunk().expect("pieces of eight bytes")));
                *points = read.rev().collect();
                while points.back() == Some(&NO_DATA) {
                    points.pop_back();
                }
            }
        }
        charts.go_to(minute);
        charts
    }
}

/// Pixels of a picture. Spec 70, 6.3.
struct Area {
    width: usize,
    height: usize,
}

impl Area {
    fn of(size: Option<u32>) -> Area {
        let Some(size) = size else { return Area { width: 1000, height: 120 } };
        let height = (size & 0xFFFF).clamp(120, 1020) as usize;
        Area { width: (size >> 16).clamp(150, 4146) as usize, height: height - (height - 20) % 20 }
    }
}

/// A PNG of two colours, not compressed: pixel 0 is the ground, 1 a bar.
fn png(width: usize, height: usize, pixels: &[u8]) -> Vec<u8> {
    const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A];
    const DEFLATE_BLOCK_MAX: usize = 65_535;
    let mut head = Vec::new();
    head.extend_from_slice(&(width as u32).to_be_bytes());
    head.extend_from_slice(&(height as u32).to_be_bytes());
    head.extend_from_slice(&[8, 3, 0, 0, 0]); // eight bits, by palette
    let rows: Vec<u8> = pixels.chunks(width).flat_map(|row| std::iter::once(0).chain(row.iter().copied())).collect();
    let mut data = vec![0x78, 0x01];
    let count = rows.len().div_ceil(DEFLATE_BLOCK_MAX);
    for (at, piece) in rows.chunks(DEFLATE_BLOCK_MAX).enumerate() {
        let length = piece.len() as u16;
        let [high, low] = length.to_be_bytes();
        data.extend_from_slice(&[u8::from(at + 1 == count), low, high, !low, !high]);
        data.extend_from_slice(piece);
    }
    data.extend_from_slice(&adler32(&rows).to_be_bytes());
    let mut file = SIGNATURE.to_vec();
    let palette = [0xFF, 0xFF, 0xFF, 0x36, 0x6A, 0x9E];
    for (kind, body) in [(b"IHDR", &head[..]), (b"PLTE", &palette[..]), (b"IDAT", &data[..]), (b"IEND", &[][..])] {
        file.extend_from_slice(&(body.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend_from_slice(kind);
        file.extend_from_slice(body);
        let sum = crc32fast::hash(&file[start..]);
        file.extend_from_slice(&sum.to_be_bytes());
    }
    file
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (low, high) = bytes.iter().fold((1, 0), |(low, high): (u32, u32), byte| {
        let low = (low + u32::from(*byte)) % MODULUS;
        (low, (high + low) % MODULUS)
    });
    high << 16 | low
}

/// Series and range of a chart number: ten times the series plus the range, or the letters of its id, whose case tells
/// the range. Spec 70, 6.1.
fn find(chart: u32) -> Option<(usize, usize)> {
    if chart < 0x0100_0000 {
        let (series, range) = ((chart / 10) as usize, (chart % 10) as usize);
        return (series < SERIES_COUNT && range < 4).then_some((series, range));
    }
    let letters = chart.to_be_bytes();
    let series = SERIES.iter().position(|(_, id, _)| letters.eq_ignore_ascii_case(*id))?;
    let range = letters.iter().rev().enumerate().map(|(bit, letter)| (usize::from(letter & 0x20) >> 5) << bit).sum();
    (range < 4).then_some((series, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(charts: &Charts, chart: u32, count: u32) -> (u32, Vec<u64>) {
        let answer = AntoclChartData::decode(&charts.answer(chart, Some(count))[8..]).unwrap();
        assert_eq!(answer.entries, count);
        (answer.time, answer.points)
    }

    fn sample(value: u64) -> Sample {
        [value; SERIES_COUNT]
    }

    #[test]
    fn longer_ranges_join_the_shorter_ones_points() {
        let mut charts = Charts::new(59);
        for minute in 60..=67 {
            charts.add(minute, &sample(minute));
        }
        charts.add(70, &sample(5));
        assert_eq!(points(&charts, 0, 5), (70 * 60, vec![5, NO_DATA, NO_DATA, 67, 66]));
        assert_eq!(points(&charts, 1, 3), (66 * 60, vec![66 + 67 + 5, 60 + 61 + 62 + 63 + 64 + 65, NO_DATA]));
        assert_eq!(points(&charts, 281, 2), (66 * 60, vec![67, 65]), "the load is a maximum");
        assert_eq!(points(&charts, 3, 2), (0, vec![(60..=67).sum::<u64>() + 5, NO_DATA]));
    }

    #[test]
    fn charts_are_known_by_number_and_by_name() {
        assert_eq!(find(332), Some((33, 2)));
        assert_eq!((find(340), find(4), find(1000)), (None, None, None));
        let name = |letters: &[u8; 4]| find(u32::from_be_bytes(*letters));
        assert_eq!(name(b"UCPU"), Some((0, 0)));
        assert_eq!(name(b"SCPu"), Some((1, 1)));
        assert_eq!(name(b"CHgc"), Some((33, 3)));
        assert_eq!((name(b"cHGC"), name(b"XXXX")), (None, None));
        assert_eq!(Charts::new(0).answer(1000, None)[4..], [0, 0, 0, 0], "an unknown chart is empty");
    }

    #[test]
    fn a_picture_is_a_png_of_the_size_that_was_asked_for() {
        let mut charts = Charts::new(9);
        charts.add(10, &sample(3));
        let size = |chart, size| {
            let file = charts.picture(chart, size);
            assert!(file.starts_with(b"\x89PNG\r\n\x1a\n") && file.ends_with(b"IEND\xAE\x42\x60\x82"));
            [16, 20].map(|at| u32::from_be_bytes(*file[at..].first_chunk().unwrap()))
        };
        assert_eq!(size(0, None), [1000, 120]);
        assert_eq!(size(0, Some(300 << 16 | 255)), [300, 240]);
        assert_eq!(size(0, Some(1)), [150, 120]);
        assert_eq!(size(1000, None), [1, 1], "there is no such chart");
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
    }

    #[test]
    fn points_outlive_a_restart() {
        let mut charts = Charts::new(999);
        charts.add(1000, &sample(7));
        charts.add(1001, &sample(8));
        let file = charts.encode_file();
        assert_eq!(file.len(), FILE_HEAD_BYTES + SERIES_COUNT * FILE_SERIES_BYTES);
        let later = Charts::decode_file(&file, 1003);
        assert_eq!(points(&later, 320, 5), (1003 * 60, vec![NO_DATA, NO_DATA, 8, 7, NO_DATA]));
        assert_eq!(points(&Charts::decode_file(&file[..500], 1003), 0, 1).1, [NO_DATA]);
        assert_eq!(points(&Charts::decode_file(b"nonsense", 5), 0, 1), (300, vec![NO_DATA]));
    }
}
