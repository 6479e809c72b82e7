//! What came out of the jobs: medians over the rounds, as tables with ratios.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::load::Outcome;

/// One job, once, by one master.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sample {
    pub per_second: f64,
    /// Of the master, for each request, user and system.
    pub cpu_micros: f64,
    /// p50, p99, p99.9.
    pub latencies_micros: [f64; 3],
    /// Part of a core that the measuring program used.
    pub client_share: f64,
}

impl Sample {
    pub fn new(outcome: &Outcome, server_cpu_seconds: f64) -> Sample {
        let (operations, seconds) = (outcome.operations.max(1) as f64, outcome.seconds.max(1e-6));
        Sample {
            per_second: operations / seconds,
            cpu_micros: server_cpu_seconds * 1e6 / operations,
            latencies_micros: [0.5, 0.99, 0.999].map(|share| outcome.percentile_micros(share)),
            client_share: outcome.client_cpu_seconds / seconds,
        }
    }
}

/// All samples of a run, by job and column.
#[derive(Default)]
pub struct Figures(BTreeMap<(String, String), Vec<Sample>>);

impl Figures {
    pub fn add(&mut self, job: &str, column: &str, sample: Sample) {
        self.0.entry((job.to_owned(), column.to_owned())).or_default().push(sample);
    }

    fn median(&self, job: &str, column: &str, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        let mut values: Vec<f64> = self.0.get(&(job.to_owned(), column.to_owned()))?.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// One table, a row for each job; ratios of `ours` to `stock`.
    pub fn markdown(&self, jobs: &[&str], stock: &str, ours: &str) -> String {
        let mut text = format!(
            "| job | {stock}, 1/s | {ours}, 1/s | ratio | {stock}, CPU µs each | {ours}, CPU µs each | ratio | \
             {stock}, µs p50 / p99 / p99.9 | {ours}, µs p50 / p99 / p99.9 | own share of a core |\n\
             |---|---|---|---|---|---|---|---|---|---|\n"
        );
        for job in jobs {
            let value = |column: &str, of: fn(&Sample) -> f64| self.median(job, column, of).unwrap_or(f64::NAN);
            let rate = |column| value(column, |sample| sample.per_second);
            let cpu = |column| value(column, |sample| sample.cpu_micros);
            let share = |column| value(column, |sample| sample.client_share);
            let latency = |column| {
                let [p50, p99, p999]: [fn(&Sample) -> f64; 3] =
                    [|s| s.latencies_micros[0], |s| s.latencies_micros[1], |s| s.latencies_micros[2]];
                format!("{:.0} / {:.0} / {:.0}", value(column, p50), value(column, p99), value(column, p999))
            };
            writeln!(
                text,
                "| {job} | {:.0} | {:.0} | {:.2} | {:.2} | {:.2} | {:.2} | {} | {} | {:.2}, {:.2} |",
                rate(stock),
                rate(ours),
                rate(ours) / rate(stock),
                cpu(stock),
                cpu(ours),
                cpu(ours) / cpu(stock),
                latency(stock),
                latency(ours),
                share(stock),
                share(ours),
            )
            .expect("a String takes all");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_medians_and_their_ratios() {
        let mut figures = Figures::default();
        for (column, rates, cpu_micros) in [("a", [10.0, 20.0, 90.0], 8.0), ("b", [60.0; 3], 2.0)] {
            for per_second in rates {
                figures.add("job", column, Sample { per_second, cpu_micros, ..Sample::default() });
            }
        }
        let text = figures.markdown(&["job"], "a", "b");
        assert!(text.contains("| job | 20 | 60 | 3.00 | 8.00 | 2.00 | 0.25 |"), "{text}");
    }
}
