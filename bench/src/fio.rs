//! The same job by fio with io_uring and O_DIRECT, on plain files as large as the chunks, on the same disk: what the
//! device and the kernel give when nothing stands between.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use wire::limits::CHUNK_BYTES;

use crate::figures::Sample;
use crate::job::{Job, Op, Order, State};
use crate::subject::evict;

/// Files of plain bytes for fio.
pub struct Fio {
    folder: PathBuf,
    files: usize,
}

impl Fio {
    /// Writes `files` files of 64 MiB under `root`. Errors: fio's.
    pub fn new(root: &Path, files: usize) -> Result<Fio, String> {
        let fio = Fio { folder: root.join("fio"), files };
        std::fs::create_dir_all(&fio.folder).map_err(|error| format!("{}: {error}", fio.folder.display()))?;
        fio.command(&[
            "--name=fill",
            "--rw=write",
            "--bs=1m",
            "--iodepth=8",
            &fio.size(files),
            &fio.names("base", 0, 1),
        ])?;
        Ok(fio)
    }

    /// The job's figures; None if it makes no sense without a server: hot data, and chains.
    pub fn run(&self, job: &Job, limit: Duration) -> Result<Option<Sample>, String> {
        if job.state == State::Hot || job.chain > 1 {
            return Ok(None);
        }
        let base = if job.state == State::New { "new" } else { "base" };
        for index in 0..self.files {
            let path = self.folder.join(format!("{base}.{index}"));
            let done = if job.state == State::New {
                std::fs::remove_file(&path).or_else(|error| if path.exists() { Err(error) } else { Ok(()) })
            } else {
                std::fs::File::options().read(true).write(true).open(&path).and_then(|file| evict(&file))
            };
            done.map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let rw = match (job.op, job.order) {
            (Op::Read, Order::Sequential) => "read",
            (Op::Read, Order::Random) => "randread",
            (Op::Write, Order::Sequential) => "write",
            (Op::Write, Order::Random) => "randwrite",
        };
        let mut arguments = vec![
            format!("--rw={rw}"),
            format!("--bs={}", job.request_bytes),
            format!("--runtime={}", limit.as_secs_f64().ceil()),
        ];
        if !job.is_one_pass() {
            arguments.push("--time_based".into());
        }
        match job.order {
            // One job with all requests under way, over all files.
            Order::Random => {
                arguments.extend([format!("--iodepth={}", job.depth()), "--file_service_type=random".into()]);
                arguments.extend(["--name=j".into(), self.size(self.files), self.names(base, 0, 1)]);
            }
            // Each connection's chunks are the files of one job.
            Order::Sequential => {
                arguments.extend([format!("--iodepth={}", job.window), "--file_service_type=sequential".into()]);
                for stream in 0..job.connections.min(self.files) {
                    let files = job.chunks_of(stream, self.files).count();
                    let names = self.names(base, stream, job.connections);
                    arguments.extend([format!("--name=j{stream}"), self.size(files), names]);
                }
            }
        }
        let before = children_cpu_seconds();
        let text = self.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let cpu_seconds = children_cpu_seconds() - before;
        sample(&text, job.op, cpu_seconds).map(Some).ok_or_else(|| format!("fio printed something else: {text}"))
    }

    fn command(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("fio");
        command.args(["--ioengine=io_uring", "--direct=1", "--thread", "--group_reporting", "--output-format=json"]);
        command.arg(format!("--directory={}", self.folder.display())).args(arguments);
        let output = command.output().map_err(|error| format!("fio does not run: {error}"))?;
        if !output.status.success() {
            return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn size(&self, files: usize) -> String {
        format!("--size={}", files as u64 * u64::from(CHUNK_BYTES))
    }

    fn names(&self, base: &str, first: usize, step: usize) -> String {
        let names = (first..self.files).step_by(step).map(|index| format!("{base}.{index}"));
        format!("--filename={}", names.collect::<Vec<_>>().join(":"))
    }
}

/// The figures in fio's JSON.
fn sample(text: &str, op: Op, cpu_seconds: f64) -> Option<Sample> {
    let report: Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?; // notes may stand in front
    let side = report.get("jobs")?.get(0)?.get(if op == Op::Read { "read" } else { "write" })?;
    let number = |name: &str| side.get(name).and_then(Value::as_f64);
    let percentile =
        |name: &str| side.get("clat_ns")?.get("percentile")?.get(name)?.as_f64().map(|nanos| nanos / 1000.0);
    let bytes = number("io_bytes")?;
    Some(Sample {
        mib_per_second: number("bw_bytes")? / f64::from(1 << 20),
        iops: number("iops")?,
        latencies_micros: [percentile("50.000000")?, percentile("99.000000")?, percentile("99.900000")?],
        cpu_seconds_per_gib: cpu_seconds / (bytes / f64::from(1 << 30)),
        flush_seconds: 0.0,
        client_share: 0.0,
    })
}

/// CPU of all children of this process that have ended: proc(5), /proc/PID/stat, cutime and cstime.
fn children_cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().map(|word| word.parse().unwrap_or(0.0)).collect())
        .unwrap_or_default();
    // Fields 16 and 17; the first behind the name is number 3. USER_HZ is 100.
    fields.iter().skip(13).take(2).sum::<f64>() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_report_is_understood() {
        let text = r#"fio: a note
            {"jobs": [{"read": {"io_bytes": 1073741824, "bw_bytes": 104857600, "iops": 1600.0, "clat_ns":
            {"percentile": {"50.000000": 1000, "99.000000": 2000, "99.900000": 3000}}}}]}"#;
        let sample = sample(text, Op::Read, 0.5).expect("all is there");
        assert_eq!((sample.mib_per_second, sample.iops, sample.cpu_seconds_per_gib), (100.0, 1600.0, 0.5));
        assert_eq!(sample.latencies_micros, [1.0, 2.0, 3.0]);
        assert!(super::sample(text, Op::Write, 0.5).is_none());
    }
}
