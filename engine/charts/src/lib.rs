//! What monitors draw: numbers per minute, kept for a while in four ranges. Spec 70, 6.
//!
//! Every minute each series gets a point; the longer ranges join points by sum or by maximum. A server says which series
//! it has (`Kind`) and what each minute gave (a sample: one number for each series). The points outlive a restart in a
//! file whose format is MooseFS's; reading and writing it is the server's business, as are clocks. Points that never
//! were take no memory: a range is as long as what is known.
#![forbid(unsafe_code)]

mod picture;
mod process;

use std::collections::VecDeque;

use wire::{AntoclChartData, AntoclNoChartData, Packet};

pub use picture::draw;
pub use process::Process;

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

/// How the points of a longer range come from the shorter ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    Add,
    Max,
}

/// One row of numbers. Spec 70, 6.1.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// As in the file.
    pub name: &'static str,
    /// Four letters, upper case.
    pub id: &'static [u8; 4],
    pub join: Join,
}

/// A picture of several series on top of one another. Spec 70, 6.1.
#[derive(Clone, Copy, Debug)]
pub struct Stacked {
    pub id: &'static [u8; 4],
    pub layers: Layers,
}

/// Series by number.
#[derive(Clone, Copy, Debug)]
pub enum Layers {
    /// Their sum, the first one below.
    Sum(&'static [usize]),
    /// A part of a whole below, the rest of the whole above.
    Part { part: usize, whole: usize },
}

/// What a kind of server has charts of.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub series: &'static [Series],
    /// Chart numbers from `STACKED_FROM` on.
    pub stacked: &'static [Stacked],
}

/// The number of the first stacked chart. Spec 70, 6.1.
const STACKED_FROM: usize = 100;

/// The points of one server.
#[derive(Debug)]
pub struct Charts {
    kind: &'static Kind,
    /// The minute of the newest point of the shortest range.
    minute: u64,
    /// For each series and range, newest first.
    points: Vec<[VecDeque<u64>; 4]>,
    /// For each series, all that was added since the start.
    totals: Vec<u64>,
}

impl Charts {
    /// `minute`: the present one; since the epoch, in local time.
    pub fn new(kind: &'static Kind, minute: u64) -> Charts {
        let series = kind.series.len();
        let points = (0..series).map(|_| Default::default()).collect();
        Charts { kind, minute, points, totals: vec![0; series] }
    }

    /// Takes in what happened within `minute`, which is over: one number for each series.
    pub fn add(&mut self, minute: u64, sample: &[u64]) {
        assert_eq!(sample.len(), self.kind.series.len(), "one number for each series");
        for (total, value) in self.totals.iter_mut().zip(sample) {
            *total = total.saturating_add(*value);
        }
        if minute < self.minute {
            return; // the clock was set back
        }
        self.go_to(minute);
        for ((ranges, series), value) in self.points.iter_mut().zip(self.kind.series).zip(sample) {
            for points in ranges {
                match points.front_mut() {
                    None => points.push_front(*value),
                    Some(point) if *point == NO_DATA => *point = *value,
                    Some(point) if series.join == Join::Add => *point = point.saturating_add(*value).min(NO_DATA - 1),
                    Some(point) => *point = (*point).max(*value),
                }
            }
        }
    }

    /// What came since the newest point joins it: the server stops, and its minute will not end.
    pub fn join_newest(&mut self, sample: &[u64]) {
        self.add(self.minute, sample);
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

    /// For each series the sum of all samples since the start, of what is no total as well. Spec 70, 6.5.
    pub fn totals(&self) -> &[u64] {
        &self.totals
    }

    /// The answer to CHART_DATA. Spec 70, 6.4.
    pub fn answer(&self, chart: u32, entries_max: Option<u32>) -> Vec<u8> {
        let Some((Chart::Plain(series), range)) = self.kind.find(chart) else { return AntoclNoChartData {}.encode() };
        let entries = entries_max.map_or(POINTS_MAX, |max| (max as usize).min(POINTS_MAX));
        let known = self.points[series][range].iter().copied();
        let points: Vec<u64> = known.chain(std::iter::repeat(NO_DATA)).take(entries).collect();
        let minutes = RANGE_MINUTES[range];
        let time = (self.minute / minutes * minutes * 60) as u32;
        AntoclChartData { time, entries: entries as u32, points }.encode()
    }

    /// The answer to CHART: a PNG of the newest points. Spec 70, 6.3.
    pub fn picture(&self, chart: u32, size: Option<u32>) -> Vec<u8> {
        let Some((chart, range)) = self.kind.find(chart) else { return picture::nothing() };
        let newest = |series: usize| {
            let known = self.points[series][range].iter().copied();
            known.map(|point| if point == NO_DATA { 0 } else { point }).chain(std::iter::repeat(0)).take(POINTS_MAX)
        };
        let layers: Vec<Vec<u64>> = match chart {
            Chart::Plain(series) => vec![newest(series).collect()],
            Chart::Stacked(Layers::Sum(all)) => all.iter().map(|series| newest(*series).collect()).collect(),
            Chart::Stacked(Layers::Part { part, whole }) => {
                let rest = newest(part).zip(newest(whole)).map(|(part, whole)| whole.saturating_sub(part));
                vec![newest(part).collect(), rest.collect()]
            }
        };
        picture::draw(&layers, size)
    }

    /// What is kept while the server is down. Spec 70, 6.2.
    pub fn encode_file(&self) -> Vec<u8> {
        let series = self.kind.series;
        let mut file = Vec::with_capacity(FILE_HEAD_BYTES + series.len() * FILE_SERIES_BYTES);
        for word in [FILE_VERSION, POINTS_MAX as u32, series.len() as u32, self.minute as u32] {
            file.extend_from_slice(&word.to_be_bytes());
        }
        for (ranges, series) in self.points.iter().zip(series) {
            let mut padded = [0; NAME_BYTES];
            padded[..series.name.len()].copy_from_slice(series.name.as_bytes());
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
    pub fn decode_file(kind: &'static Kind, file: &[u8], minute: u64) -> Charts {
        let word = |at: usize| file.get(at..)?.first_chunk().map(|word| u32::from_be_bytes(*word));
        let mut charts = Charts::new(kind, minute);
        let (Some(FILE_VERSION), Some(4096), Some(count), Some(last)) = (word(0), word(4), word(8), word(12)) else {
            return charts;
        };
        charts.minute = u64::from(last).min(minute);
        for series in file[FILE_HEAD_BYTES..].chunks_exact(FILE_SERIES_BYTES).take(count as usize) {
            let (name, ranges) = series.split_at(NAME_BYTES);
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            let Some(at) = kind.series.iter().position(|known| known.name.as_bytes() == name) else { continue };
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

/// What a chart number stands for.
#[derive(Clone, Copy, Debug)]
enum Chart {
    Plain(usize),
    Stacked(Layers),
}

impl Kind {
    /// Chart and range of a number: ten times the chart plus the range, or the letters of its id, whose case tells the
    /// range. Spec 70, 6.1.
    fn find(&self, number: u32) -> Option<(Chart, usize)> {
        let stacked = |at: usize| self.stacked.get(at).map(|stacked| Chart::Stacked(stacked.layers));
        if number < 0x0100_0000 {
            let (chart, range) = ((number / 10) as usize, (number % 10) as usize);
            let chart = match chart.checked_sub(STACKED_FROM) {
                Some(at) => stacked(at)?,
                None if chart < self.series.len() => Chart::Plain(chart),
                None => return None,
            };
            return (range < 4).then_some((chart, range));
        }
        let letters = number.to_be_bytes();
        let is = |id: &[u8; 4]| letters.eq_ignore_ascii_case(id);
        let chart = match self.series.iter().position(|series| is(series.id)) {
            Some(series) => Chart::Plain(series),
            None => stacked(self.stacked.iter().position(|stacked| is(stacked.id))?)?,
        };
        let range =
            letters.iter().rev().enumerate().map(|(bit, letter)| (usize::from(letter & 0x20) >> 5) << bit).sum();
        (range < 4).then_some((chart, range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(charts: &Charts, chart: u32, count: u32) -> (u32, Vec<u64>) {
        let answer = AntoclChartData::decode(&charts.answer(chart, Some(count))[8..]).unwrap();
        assert_eq!(answer.entries, count);
        (answer.time, answer.points)
    }

    const KIND: Kind = Kind {
        series: &[
            Series { name: "ucpu", id: b"UCPU", join: Join::Add },
            Series { name: "scpu", id: b"SCPU", join: Join::Add },
            Series { name: "load", id: b"LOAD", join: Join::Max },
        ],
        stacked: &[
            Stacked { id: b"TCPU", layers: Layers::Sum(&[0, 1]) },
            Stacked { id: b"PART", layers: Layers::Part { part: 0, whole: 2 } },
        ],
    };

    fn sample(value: u64) -> [u64; 3] {
        [value; 3]
    }

    #[test]
    fn longer_ranges_join_the_shorter_ones_points() {
        let mut charts = Charts::new(&KIND, 59);
        for minute in 60..=67 {
            charts.add(minute, &sample(minute));
        }
        charts.add(70, &sample(5));
        assert_eq!(points(&charts, 0, 5), (70 * 60, vec![5, NO_DATA, NO_DATA, 67, 66]));
        assert_eq!(points(&charts, 1, 3), (66 * 60, vec![66 + 67 + 5, 60 + 61 + 62 + 63 + 64 + 65, NO_DATA]));
        assert_eq!(points(&charts, 21, 2), (66 * 60, vec![67, 65]), "the load is a maximum");
        assert_eq!(points(&charts, 3, 2), (0, vec![(60..=67).sum::<u64>() + 5, NO_DATA]));
    }

    #[test]
    fn charts_are_known_by_number_and_by_name() {
        let found = |number| match KIND.find(number)? {
            (Chart::Plain(series), range) => Some((series, range)),
            (Chart::Stacked(Layers::Sum(_)), range) => Some((100, range)),
            (Chart::Stacked(Layers::Part { .. }), range) => Some((101, range)),
        };
        assert_eq!([22, 1003, 1010].map(found), [Some((2, 2)), Some((100, 3)), Some((101, 0))]);
        assert_eq!([30, 4, 1020, 1004].map(found), [None; 4]);
        let name = |letters: &[u8; 4]| found(u32::from_be_bytes(*letters));
        assert_eq!([b"UCPU", b"SCPu", b"LOad", b"TCpU"].map(name), [(0, 0), (1, 1), (2, 3), (100, 2)].map(Some));
        assert_eq!([b"lOAD", b"XXXX"].map(name), [None; 2]);
        let empty = |number| Charts::new(&KIND, 0).answer(number, None)[4..] == [0, 0, 0, 0];
        assert!(empty(30) && empty(1000), "an unknown chart is empty, and the data are those of single series");
    }

    #[test]
    fn totals_are_the_sums_of_all_samples() {
        let mut charts = Charts::new(&KIND, 0);
        assert_eq!(charts.totals(), [0, 0, 0]);
        charts.add(1, &[1, 2, 3]);
        charts.add(2, &[1, 0, 3]);
        charts.add(1, &[1, 0, 0]);
        assert_eq!(charts.totals(), [3, 2, 6]);
    }

    #[test]
    fn pictures_are_of_single_series_and_of_several() {
        let mut charts = Charts::new(&KIND, 9);
        charts.add(10, &[1, 2, 4]);
        let size = |chart| {
            let file = charts.picture(chart, None);
            [16, 20].map(|at| u32::from_be_bytes(*file[at..].first_chunk().unwrap()))
        };
        assert_eq!([0, 3, 1000, 1013].map(size), [[1000, 120]; 4]);
        assert_eq!([30, 1020].map(size), [[1, 1]; 2], "there is no such chart");
    }

    #[test]
    fn points_outlive_a_restart() {
        let mut charts = Charts::new(&KIND, 999);
        charts.add(1000, &sample(7));
        charts.add(1001, &sample(8));
        let file = charts.encode_file();
        assert_eq!(file.len(), FILE_HEAD_BYTES + KIND.series.len() * FILE_SERIES_BYTES);
        let later = Charts::decode_file(&KIND, &file, 1003);
        assert_eq!(points(&later, 10, 5), (1003 * 60, vec![NO_DATA, NO_DATA, 8, 7, NO_DATA]));
        assert_eq!(points(&Charts::decode_file(&KIND, &file[..500], 1003), 0, 1).1, [NO_DATA]);
        assert_eq!(points(&Charts::decode_file(&KIND, b"nonsense", 5), 0, 1), (300, vec![NO_DATA]));
    }
}
