//! Measures masters alone: this program speaks their clients' port as mounts do, to MooseFS's and to ours, by turns in
//! one run. `bench/master.sh` builds and starts it; RESULTS.md keeps what came out.
//!
//! Everything lives in a network namespace: the program makes one and starts itself again inside. A job: `bench::master::job`.
//! Both masters keep running throughout; who is asked first changes from round to round.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use bench::master::figures::{Figures, Sample};
use bench::master::job::Job;
use bench::master::load::{self, Pool};
use bench::master::subject::Subject;
use bench::master::tree::Tree;
use bench::subject::Description;
use clap::Parser;
use mooring_tests::cluster::Kind;
use mooring_tests::namespace::Namespace;
use mooring_tests::need::{Need, have};

const JOBS: &str = "lookup-n32,getattr-n32,readdir-n8,mknod-n32,create-n32,rename-n32,unlink-n32,\
    lookup-n8-q16,getattr-n8-q16,mknod-n8-q16,create-n8-q16,rename-n8-q16,unlink-n8-q16";

/// Masters alone, by their clients' port: MooseFS's and ours
#[derive(Parser)]
struct Arguments {
    /// Jobs, each OP[-nCONNECTIONS][-qWINDOW]: lookup, getattr, readdir, mknod, create, rename, unlink. The last two
    /// take files that mknod and create have made
    #[arg(long, default_value = JOBS, value_delimiter = ',')]
    jobs: Vec<Job>,
    /// What is measured, NAME=stock or NAME=mooring, with ;LINE for its configuration file; may be repeated. The
    /// ratios are of the first stock one and the last of ours
    #[arg(long = "subject", default_values = ["MooseFS=stock", "Mooring=mooring"])]
    subjects: Vec<Description>,
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Empty files that each master is filled with
    #[arg(long, default_value_t = 200_000)]
    files: usize,
    /// Files in a folder
    #[arg(long, default_value_t = 1000)]
    per_folder: usize,
    /// Limit of each job
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// A folder on the disk with the masters' data; everything goes into a new folder in it
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Measure memory, stop and start only: bytes for each file, read from the processes once the lines for
    /// metaloggers are forgotten
    #[arg(long)]
    memory: bool,
    /// Leave the masters' folders behind, to profile a start from them
    #[arg(long)]
    keep: bool,
    #[arg(long, hide = true)]
    inside: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !arguments.inside {
        return begin_inside(&arguments);
    }
    let root = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let root = root.join(format!("mooring-bench-{}", std::process::id()));
    let result = if arguments.memory { memory(&arguments, &root) } else { speed(&arguments, &root) };
    if arguments.keep {
        eprintln!("the masters' folders are in {}", root.display());
    } else {
        std::fs::remove_dir_all(&root).ok();
    }
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("master: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this program again in a network namespace of its own.
fn begin_inside(arguments: &Arguments) -> ExitCode {
    let mut needs = vec![Need::Root];
    if arguments.subjects.iter().any(|subject| subject.kind == Kind::Stock) {
        needs.push(Need::Stock);
    }
    if !have("the measurement of masters", &needs) {
        return ExitCode::FAILURE;
    }
    let namespace = Namespace::create();
    let program = std::env::current_exe().expect("Linux knows our path");
    let mut command = namespace.command(&program.to_string_lossy());
    let status = command.arg("--inside").args(std::env::args_os().skip(1)).status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn load_of_the_machine() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn speed(arguments: &Arguments, root: &Path) -> Result<(), String> {
    let limit = Duration::from_secs_f64(arguments.seconds);
    let mut benches = Vec::new();
    for (number, description) in (0..).zip(&arguments.subjects) {
        let subject = Subject::start(description, number, root)?;
        let mut tree = Tree::new(arguments.files, arguments.per_folder);
        load::fill(subject.address(), &mut tree).map_err(|why| format!("{}: {why}", description.name))?;
        benches.push((subject, Rc::new(tree), Pool::default()));
    }
    let mut figures = Figures::default();
    let count = benches.len() as u64;
    for round in 0..arguments.rounds {
        for job in &arguments.jobs {
            for turn in 0..count {
                let (subject, tree, pool) = &mut benches[((turn + round) % count) as usize];
                let cpu = subject.cpu_seconds();
                let outcome = load::job(subject.address(), job, tree, pool, limit, round)
                    .map_err(|why| format!("{}, {}: {why}", job.name, subject.name()))?;
                let sample = Sample::new(&outcome, subject.cpu_seconds() - cpu);
                eprintln!(
                    "round {}, {}, {}: {:.0}/s, {:.2} µs CPU each, own share {:.2}",
                    round + 1,
                    job.name,
                    subject.name(),
                    sample.per_second,
                    sample.cpu_micros,
                    sample.client_share
                );
                figures.add(&job.name, subject.name(), sample);
            }
        }
    }
    let of = |kind: Kind| arguments.subjects.iter().filter(move |s| s.kind == kind).map(|s| s.name.as_str());
    let names: Vec<&str> = arguments.jobs.iter().map(|job| job.name.as_str()).collect();
    let all = || arguments.subjects.iter().map(|subject| subject.name.as_str());
    let stock = of(Kind::Stock).next().or_else(|| all().next()).unwrap_or_default();
    let ours = of(Kind::Mooring).next_back().or_else(|| all().next_back()).unwrap_or_default();
    println!(
        "{} rounds, {} files, {} s a job; medians. Load of the machine: {}\n",
        arguments.rounds,
        arguments.files,
        arguments.seconds,
        load_of_the_machine()
    );
    print!("{}", figures.markdown(&names, stock, ours));
    Ok(())
}

/// Empty, then with files; then stopped and started with them.
fn memory(arguments: &Arguments, root: &Path) -> Result<(), String> {
    const MIB: f64 = (1 << 20) as f64;
    println!(
        "| master | empty, MiB | with {} empty files, MiB | bytes per file | stop, s | start, s |\n|---|---|---|---|---|---|",
        arguments.files
    );
    for (number, description) in (0..).zip(&arguments.subjects) {
        let mut description = description.clone();
        description.lines.push_str("\nCHANGELOG_PRESERVE_SECONDS = 0");
        let mut subject = Subject::start(&description, number, root)?;
        let settle = || std::thread::sleep(Duration::from_secs(4));
        settle();
        let empty = subject.memory_bytes();
        let mut tree = Tree::new(arguments.files, arguments.per_folder);
        load::fill(subject.address(), &mut tree).map_err(|why| format!("{}: {why}", description.name))?;
        settle();
        let full = subject.memory_bytes();
        let each = full.saturating_sub(empty) as f64 / arguments.files as f64;
        let (empty, full) = (empty as f64 / MIB, full as f64 / MIB);
        let (stop, start) = subject.restart()?;
        println!("| {} | {empty:.1} | {full:.1} | {each:.1} | {stop:.1} | {start:.1} |", subject.name());
    }
    println!("\nLoad of the machine: {}", load_of_the_machine());
    Ok(())
}
