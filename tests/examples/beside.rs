//! Measures Mooring beside MooseFS: the same programs of `bench/mount.sh` on a mount of each, in one run, by turns.
//!
//! `bench/cluster.sh [ROUNDS] [SIZE]` builds and starts this. Each round starts a fresh cluster of one kind (a master,
//! three chunkservers, goal 2, one mount), measures, stops it, and does the same with the other kind; every second
//! round begins with the other one. Prints a Markdown table: medians, their ratio, CPU seconds and memory per process.
#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on may say so by panicking")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};

const CHUNKSERVERS: usize = 3;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().map_or(3, |word| word.parse().expect("ROUNDS is a number"));
    let size = arguments.next().unwrap_or_else(|| "512m".into());
    if !have("the comparison with MooseFS", &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring]) {
        std::process::exit(1);
    }
    let mut figures = Figures::default();
    for round in 0..rounds {
        let order = if round % 2 == 0 { [Kind::Stock, Kind::Mooring] } else { [Kind::Mooring, Kind::Stock] };
        for kind in order {
            eprintln!("round {} of {rounds}: {kind:?}", round + 1);
            measure(kind, &size, &mut figures);
        }
    }
    figures.print(rounds, &size);
}

/// Values by figure and kind, one for each round, figures in the order in which they were first met.
#[derive(Default)]
struct Figures {
    order: Vec<String>,
    values: BTreeMap<(String, bool), Vec<f64>>,
}

impl Figures {
    fn add(&mut self, name: &str, kind: Kind, value: f64) {
        if !self.order.iter().any(|known| known == name) {
            self.order.push(name.to_owned());
        }
        self.values.entry((name.to_owned(), kind == Kind::Mooring)).or_default().push(value);
    }

    fn median(&self, name: &str, kind: Kind) -> Option<f64> {
        let mut values = self.values.get(&(name.to_owned(), kind == Kind::Mooring))?.clone();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }

    fn print(&self, rounds: usize, size: &str) {
        println!("{rounds} rounds, files of {size}, {CHUNKSERVERS} chunkservers, goal 2, medians.\n");
        println!("| figure | MooseFS 3.0.117 | Mooring | Mooring / MooseFS |");
        println!("|---|---|---|---|");
        for name in &self.order {
            let text = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.1}"));
            let (stock, ours) = (self.median(name, Kind::Stock), self.median(name, Kind::Mooring));
            let ratio = match (stock, ours) {
                (Some(stock), Some(ours)) if stock > 0.0 => format!("{:.2}", ours / stock),
                _ => "-".into(),
            };
            println!("| {name} | {} | {} | {ratio} |", text(stock), text(ours));
        }
    }
}

fn measure(kind: Kind, size: &str, figures: &mut Figures) {
    let mut layout = Layout::new(kind, &[kind; CHUNKSERVERS]);
    layout.limit = Duration::from_secs(1800);
    if kind == Kind::Mooring {
        // Lines for our master alone, to compare at another durability: MooseFS's journal is never synced.
        layout.master_extra = std::env::var("MOORING_MASTER_EXTRA").unwrap_or_default();
    }
    let mut cluster = Cluster::start("bench", layout);
    // Options for our mount alone, for the same reason: MooseFS's fsync never waits for a device.
    let options = std::env::var("MOORING_MOUNT_OPTIONS").ok().filter(|_| kind == Kind::Mooring);
    let mount = match &options {
        Some(options) => cluster.mount_with(kind, &["-o", options]),
        None => cluster.mount(kind),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bench/mount.sh");
    let before = usage(&mut cluster);
    let start = Instant::now();
    let output = Command::new("bash").arg(script).arg(&mount).arg(size).output().expect("bash runs");
    let seconds = start.elapsed().as_secs_f64();
    let after = usage(&mut cluster);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    eprint!("{text}{}", String::from_utf8_lossy(&output.stderr));
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [name, value, unit, rest @ ..] = &words[..] else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        figures.add(&format!("{name}, {unit}"), kind, value);
        for pair in rest.chunks(2) {
            if let [key @ ("iops" | "p50us" | "p99us"), value] = pair
                && (*key != "iops" || name.contains('k'))
                && let Ok(value) = value.parse()
            {
                figures.add(&format!("{name}, {key}"), kind, value);
            }
        }
    }
    figures.add("whole run, s", kind, seconds);
    for ((role, cpu_before, _), (_, cpu_after, memory_bytes)) in before.into_iter().zip(after) {
        figures.add(&format!("CPU of {role}, s"), kind, cpu_after - cpu_before);
        figures.add(&format!("peak memory of {role}, MiB"), kind, memory_bytes / f64::from(1 << 20));
    }
}

/// (role, CPU seconds, peak memory in bytes) of each process; the chunkservers together.
fn usage(cluster: &mut Cluster) -> [(&'static str, f64, f64); 3] {
    let mut chunkservers = ("the chunkservers", 0.0, 0.0);
    for index in 0..CHUNKSERVERS {
        let daemon = cluster.chunkserver(index);
        chunkservers.1 += daemon.cpu_seconds();
        chunkservers.2 += peak_memory_bytes(daemon.pid());
    }
    let master = cluster.master();
    let master = ("the master", master.cpu_seconds(), peak_memory_bytes(master.pid()));
    let mount = cluster.mount_daemon(0);
    [master, chunkservers, ("the mount", mount.cpu_seconds(), peak_memory_bytes(mount.pid()))]
}

fn peak_memory_bytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1))
        .and_then(|word| word.parse().ok())
        .map_or(0.0, |kib: f64| kib * 1024.0)
}
