//! What came out: medians over the rounds, tables of them, what the targets ask for, JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use crate::job::{Job, Op, Order, State};
use crate::load::Outcome;

/// The column of fio in every table.
pub const FIO: &str = "fio";

/// One job, once, by one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub mib_per_second: f64,
    pub iops: f64,
    /// p50, p99, p99.9.
    pub latencies_micros: [f64; 3],
    /// Of the servers (of fio itself in its column), user and system.
    pub cpu_seconds_per_gib: f64,
    /// How long the files took to reach the device afterwards.
    pub flush_seconds: f64,
    /// Part of a core that the measuring program used.
    pub client_share: f64,
}

impl Sample {
    pub fn new(outcome: &Outcome, server_cpu_seconds: f64, flush_seconds: f64) -> Sample {
        let gib = outcome.bytes as f64 / f64::from(1 << 30);
        let seconds = outcome.seconds.max(1e-6);
        Sample {
            mib_per_second: gib * 1024.0 / seconds,
            iops: outcome.operations as f64 / seconds,
            latencies_micros: [0.5, 0.99, 0.999].map(|share| outcome.percentile_micros(share)),
            cpu_seconds_per_gib: server_cpu_seconds / gib,
            flush_seconds,
            client_share: outcome.client_cpu_seconds / seconds,
        }
    }

    fn json(&self) -> Value {
        json!({
            "mib_per_second": self.mib_per_second, "iops": self.iops, "p50_micros": self.latencies_micros[0],
            "p99_micros": self.latencies_micros[1], "p999_micros": self.latencies_micros[2],
            "server_cpu_seconds_per_gib": self.cpu_seconds_per_gib, "flush_seconds": self.flush_seconds,
            "client_core_share": self.client_share,
        })
    }
}

/// All samples of a run.
pub struct Figures {
    jobs: Vec<Job>,
    /// Columns in order: fio first, then the subjects; those of MooseFS before ours.
    columns: Vec<String>,
    samples: BTreeMap<(String, String), Vec<Sample>>,
    /// Column, figure, bytes.
    memory: Vec<(String, &'static str, u64)>,
}

impl Figures {
    pub fn new(jobs: &[Job], subjects: &[String]) -> Figures {
        let columns = std::iter::once(FIO.to_owned()).chain(subjects.iter().cloned()).collect();
        Figures { jobs: jobs.to_vec(), columns, samples: BTreeMap::new(), memory: Vec::new() }
    }

    pub fn add(&mut self, job: &Job, column: &str, sample: Sample) {
        self.samples.entry((job.name.clone(), column.to_owned())).or_default().push(sample);
    }

    pub fn add_memory(&mut self, column: &str, figure: &'static str, bytes: u64) {
        self.memory.push((column.to_owned(), figure, bytes));
    }

    fn median(&self, job: &Job, column: &str, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.samples.get(&(job.name.clone(), column.to_owned()))?.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        Some(if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 })
    }

    /// The tables. `stock` and `ours`: the two columns that the ratios are of, where there are such.
    pub fn markdown(&self, stock: Option<&str>, ours: Option<&str>) -> String {
        let mut text = String::new();
        self.table(&mut text, "MiB/s", stock, ours, 0, |sample| sample.mib_per_second);
        self.table(&mut text, "requests/s", stock, ours, 0, |sample| sample.iops);
        self.table(&mut text, "CPU seconds of the servers per GiB", stock, ours, 3, |sample| {
            sample.cpu_seconds_per_gib
        });
        self.latencies(&mut text);
        self.table(&mut text, "seconds until the device had what was written", stock, ours, 2, |s| s.flush_seconds);
        self.table(&mut text, "part of a core that this program used", stock, ours, 2, |sample| sample.client_share);
        if !self.memory.is_empty() {
            text.push_str("| memory of one server | MiB |\n|---|---|\n");
            for (column, figure, bytes) in &self.memory {
                let mib = *bytes as f64 / f64::from(1 << 20);
                writeln!(text, "| {column}, {figure} | {mib:.1} |").expect("a String takes all");
            }
            text.push('\n');
        }
        if let Some(ours) = ours {
            self.targets(&mut text, stock, ours);
        }
        text
    }

    fn table(
        &self,
        text: &mut String,
        figure: &str,
        stock: Option<&str>,
        ours: Option<&str>,
        digits: usize,
        of: impl Fn(&Sample) -> f64 + Copy,
    ) {
        let rows: Vec<&Job> = self
            .jobs
            .iter()
            .filter(|job| self.columns.iter().any(|c| self.median(job, c, of).is_some_and(|v| v > 0.0)))
            .collect();
        if rows.is_empty() {
            return;
        }
        let ratios: Vec<(&str, &str)> = ours
            .into_iter()
            .flat_map(|ours| std::iter::once(FIO).chain(stock).map(move |against| (ours, against)))
            .collect();
        let heads: Vec<String> =
            self.columns.iter().cloned().chain(ratios.iter().map(|(a, b)| format!("{a} / {b}"))).collect();
        writeln!(text, "| {figure} | {} |\n|---|{}", heads.join(" | "), "---|".repeat(heads.len()))
            .expect("a String takes all");
        for job in rows {
            let value = |column: &str| self.median(job, column, of);
            let plain = self
                .columns
                .iter()
                .map(|column| value(column).filter(|v| *v > 0.0).map_or("-".into(), |v| format!("{v:.digits$}")));
            let ratio = ratios.iter().map(|(a, b)| match (value(a), value(b)) {
                (Some(a), Some(b)) if b > 0.0 => format!("{:.2}", a / b),
                _ => "-".into(),
            });
            let cells: Vec<String> = plain.chain(ratio).collect();
            writeln!(text, "| {} | {} |", job.name, cells.join(" | ")).expect("a String takes all");
        }
        text.push('\n');
    }

    fn latencies(&self, text: &mut String) {
        let heads = self.columns.join(" | ");
        writeln!(text, "| p50 / p99 / p99.9, µs | {heads} |\n|---|{}", "---|".repeat(self.columns.len()))
            .expect("a String takes all");
        for job in &self.jobs {
            let cell = |column: &String| {
                let one = |place: usize| self.median(job, column, |sample| sample.latencies_micros[place]);
                match (one(0), one(1), one(2)) {
                    (Some(p50), Some(p99), Some(p999)) => format!("{p50:.0} / {p99:.0} / {p999:.0}"),
                    _ => "-".into(),
                }
            };
            let cells: Vec<String> = self.columns.iter().map(cell).collect();
            writeln!(text, "| {} | {} |", job.name, cells.join(" | ")).expect("a String takes all");
        }
        text.push('\n');
    }

    /// What the project has set itself for chunkservers, as far as these jobs tell.
    fn targets(&self, text: &mut String, stock: Option<&str>, ours: &str) {
        text.push_str("| target | wanted | measured | |\n|---|---|---|---|\n");
        let mut row = |what: String, wanted: String, measured: f64, is_met: bool| {
            let verdict = if is_met { "met" } else { "**not met**" };
            writeln!(text, "| {what} | {wanted} | {measured:.2} | {verdict} |").expect("a String takes all");
        };
        for job in &self.jobs {
            let ratio = |against: &str, of: fn(&Sample) -> f64| {
                Some(self.median(job, ours, of)? / self.median(job, against, of).filter(|value| *value > 0.0)?)
            };
            let of_fio = match (job.op, job.order, job.state) {
                (Op::Read, Order::Random, State::Cold) if job.request_bytes == 65536 && job.depth() == 32 => Some(0.9),
                (Op::Write, Order::Sequential, _) if job.chain == 1 => Some(0.8),
                _ => None,
            };
            if let (Some(least), Some(ratio)) = (of_fio, ratio(FIO, |sample| sample.mib_per_second)) {
                row(format!("{}: MiB/s, of fio's", job.name), format!("≥ {least}"), ratio, ratio >= least);
            }
            let Some(stock) = stock else { continue };
            let is_twice = match job.op {
                Op::Read => job.state == State::Hot,
                Op::Write => job.chain > 1 || (job.order == Order::Random && job.request_bytes == 4096),
            };
            if let (true, Some(ratio)) = (is_twice, ratio(stock, |sample| sample.mib_per_second)) {
                row(format!("{}: MiB/s, of {stock}'s", job.name), "≥ 2".into(), ratio, ratio >= 2.0);
            }
            if let Some(ratio) = ratio(stock, |sample| sample.cpu_seconds_per_gib) {
                row(format!("{}: CPU per GiB, of {stock}'s", job.name), "≤ 0.5".into(), ratio, ratio <= 0.5);
            }
        }
        let idle = self.memory.iter().find(|(column, figure, _)| column == ours && *figure == IDLE);
        if let Some((_, _, bytes)) = idle {
            let mib = *bytes as f64 / f64::from(1 << 20);
            row("memory when idle, MiB".into(), "< 64".into(), mib, mib < 64.0);
        }
        text.push('\n');
    }

    /// Every sample.
    pub fn json(&self) -> Value {
        let samples: Vec<Value> = self
            .samples
            .iter()
            .map(|((job, column), samples)| {
                json!({ "job": job, "subject": column, "rounds": samples.iter().map(Sample::json).collect::<Vec<_>>() })
            })
            .collect();
        let memory: Vec<Value> = self
            .memory
            .iter()
            .map(|(column, figure, bytes)| json!({ "subject": column, "figure": figure, "bytes": bytes }))
            .collect();
        json!({ "samples": samples, "memory": memory })
    }
}

/// Memory of a server that has registered and done nothing.
pub const IDLE: &str = "idle";
/// The most it ever had.
pub const PEAK: &str = "peak";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_targets_stand_in_the_tables() {
        let job: Job = "read-rand-64k-n32-cold".parse().expect("a good name");
        let mut figures = Figures::new(std::slice::from_ref(&job), &["MooseFS".into(), "Mooring".into()]);
        for (column, rates, cpu) in
            [(FIO, [100.0, 110.0, 500.0], 0.1), ("MooseFS", [50.0; 3], 1.0), ("Mooring", [99.0; 3], 0.6)]
        {
            for mib_per_second in rates {
                let latencies_micros = [7.0, 8.0, 9.0];
                let sample = Sample { mib_per_second, cpu_seconds_per_gib: cpu, latencies_micros, ..Sample::default() };
                figures.add(&job, column, sample);
            }
        }
        figures.add_memory("Mooring", IDLE, 10 << 20);
        let text = figures.markdown(Some("MooseFS"), Some("Mooring"));
        for line in [
            "| MiB/s | fio | MooseFS | Mooring | Mooring / fio | Mooring / MooseFS |",
            "| read-rand-64k-n32-cold | 110 | 50 | 99 | 0.90 | 1.98 |",
            "| p50 / p99 / p99.9, µs | fio | MooseFS | Mooring |",
            "| read-rand-64k-n32-cold | 7 / 8 / 9 | 7 / 8 / 9 | 7 / 8 / 9 |",
            "| read-rand-64k-n32-cold: MiB/s, of fio's | ≥ 0.9 | 0.90 | met |",
            "| read-rand-64k-n32-cold: CPU per GiB, of MooseFS's | ≤ 0.5 | 0.60 | **not met** |",
            "| memory when idle, MiB | < 64 | 10.00 | met |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("seconds until"), "a table without values is left out");
        assert_eq!(figures.json()["samples"][0]["rounds"].as_array().map(Vec::len), Some(3));
    }
}
