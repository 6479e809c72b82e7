//! Measures chunkservers alone: this program speaks their data port itself, is their master, and does the same jobs to
//! MooseFS's, to ours and (with fio) to plain files on the same disk, by turns in one run. `bench/chunk.sh` builds and
//! starts it; RESULTS.md keeps what came out.
//!
//! Everything lives in a network namespace, since MooseFS's chunkservers refuse a master on 127.0.0.0/8: the program
//! makes one and starts itself again inside. What a job is: `bench::job`. Before a cold job the servers are started
//! anew and their files taken out of the system's cache (no other files are). After each job the files are flushed to
//! the device, so that what one subject left to the kernel does not burden the next one.

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use bench::content::{Blocks, Model};
use bench::figures::{FIO, Figures, IDLE, PEAK, Sample};
use bench::fio::Fio;
use bench::job::{CHAIN_MAX, Job, Op, Order, State};
use bench::load::{self, Outcome, Plan};
use bench::subject::{Description, Subject};
use clap::Parser;
use mooring_tests::cluster::{Kind, MATOCS_PORT};
use mooring_tests::master::Master;
use mooring_tests::namespace::{MASTER, Namespace};
use mooring_tests::need::{Need, have};
use wire::ChunkId;

const JOBS: &str = "read-rand-64k-n32-cold,read-rand-4k-n32-cold,read-seq-1m-n4-cold,read-rand-64k-n32-hot,\
    read-rand-4k-n32-hot,read-seq-1m-n4-hot,write-seq-64k-n4-q8-new,write-seq-64k-n4-q8-over,write-seq-64k-n4-q8-c2-new,\
    write-seq-64k-n4-q8-c3-new,write-rand-4k-n8-q4,write-rand-64k-n8-q4";

/// Chunkservers alone, by their data port: MooseFS's, ours, and fio on plain files
#[derive(Parser)]
struct Arguments {
    /// Jobs, each OP-ORDER-SIZE[-nCONNECTIONS][-qWINDOW][-cCHAIN][-STATE]: read|write, seq|rand, cold|hot|over|new
    #[arg(long, default_value = JOBS, value_delimiter = ',')]
    jobs: Vec<Job>,
    /// What is measured, NAME=stock or NAME=mooring, with ;LINE for its configuration file; may be repeated. The
    /// ratios are of the first stock one and the last of ours
    #[arg(long = "subject", default_values = ["MooseFS=stock", "Mooring=mooring"])]
    subjects: Vec<Description>,
    #[arg(long, default_value_t = 3)]
    rounds: u64,
    /// Chunks of 64 MiB, and files as large for fio
    #[arg(long, default_value_t = 16)]
    chunks: usize,
    /// Chunks that a hot job reads
    #[arg(long, default_value_t = 2)]
    hot_chunks: usize,
    /// Limit of each job; reads of cold and sequential writes may be done earlier
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// A folder on the disk that is measured; everything goes into a new folder in it
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Write every figure of every round to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Check every sum and every byte that is read, and at the end all chunks on all servers; the figures suffer
    #[arg(long)]
    verify: bool,
    /// Leave fio out
    #[arg(long)]
    no_fio: bool,
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
    let result = measure(&arguments, &root);
    std::fs::remove_dir_all(&root).ok();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("chunk: {problem}");
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
    if !have("the measurement of chunkservers", &needs) {
        return ExitCode::FAILURE;
    }
    let namespace = Namespace::create();
    let program = std::env::current_exe().expect("Linux knows our path");
    let mut command = namespace.command(&program.to_string_lossy());
    let status = command.arg("--inside").args(std::env::args_os().skip(1)).status();
    if status.is_ok_and(|status| status.success()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn measure(arguments: &Arguments, root: &Path) -> Result<(), String> {
    let needs_own_chunk =
        |job: &&Job| job.op == Op::Write || job.order == Order::Sequential && job.state == State::Cold;
    if let Some(job) = arguments.jobs.iter().filter(needs_own_chunk).find(|job| job.connections > arguments.chunks) {
        let Job { name, connections, .. } = job;
        return Err(format!("{name}: {connections} connections need as many chunks: --chunks {connections}"));
    }
    let names: Vec<String> = arguments.subjects.iter().map(|subject| subject.name.clone()).collect();
    let mut run = Run::new(arguments, root)?;
    let mut figures = Figures::new(&arguments.jobs, &names);
    for bench in &run.benches {
        figures.add_memory(bench.subject.name(), IDLE, bench.subject.memory_bytes());
    }
    run.fill()?;
    for round in 0..arguments.rounds {
        for job in &arguments.jobs {
            run.job(job, round, &mut figures).map_err(|problem| format!("{}: {problem}", job.name))?;
        }
    }
    for bench in &run.benches {
        figures.add_memory(bench.subject.name(), PEAK, bench.subject.peak_memory_bytes());
    }
    if arguments.verify {
        run.verify_all()?;
    }
    let damaged = run.master.damaged();
    if !damaged.is_empty() {
        return Err(format!("servers reported damage in {damaged:?}"));
    }
    let of = |kind: Kind| arguments.subjects.iter().filter(move |s| s.kind == kind).map(|s| s.name.as_str());
    let (stock, ours) = (of(Kind::Stock).next(), of(Kind::Mooring).next_back());
    println!(
        "{} rounds, {} chunks, at most {} s a job; medians. Load of the machine: {}\n",
        arguments.rounds,
        arguments.chunks,
        arguments.seconds,
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim()
    );
    print!("{}", figures.markdown(stock, ours));
    if let Some(path) = &arguments.json {
        std::fs::write(path, figures.json().to_string()).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    for bench in &mut run.benches {
        bench.subject.stop(&run.master);
    }
    Ok(())
}

/// Everything that lasts from job to job.
struct Run<'a> {
    arguments: &'a Arguments,
    master: Master,
    fio: Option<Fio>,
    benches: Vec<Bench>,
    blocks: Rc<Blocks>,
    next_chunk: u64,
}

/// One subject with its chunks.
struct Bench {
    subject: Subject,
    /// On all its servers.
    chunks: Vec<ChunkId>,
    model: Rc<RefCell<Model>>,
}

impl Run<'_> {
    fn new<'a>(arguments: &'a Arguments, root: &Path) -> Result<Run<'a>, String> {
        let master = Master::listen(SocketAddrV4::new(MASTER, MATOCS_PORT))?;
        let mut benches = Vec::new();
        for (number, description) in arguments.subjects.iter().enumerate() {
            let mut subject = Subject::new(description.clone(), number, root)?;
            subject.start(&master)?;
            benches.push(Bench { subject, chunks: Vec::new(), model: Rc::default() });
        }
        let fio = if arguments.no_fio { None } else { Some(Fio::new(root, arguments.chunks)?) };
        Ok(Run { arguments, master, fio, benches, blocks: Rc::default(), next_chunk: 1 })
    }

    fn new_chunks(&mut self) -> Vec<ChunkId> {
        let first = self.next_chunk;
        self.next_chunk += self.arguments.chunks as u64;
        (first..self.next_chunk).map(ChunkId).collect()
    }

    /// Writes the chunks of every subject, through all its servers.
    fn fill(&mut self) -> Result<(), String> {
        let job: Job = "write-seq-64k-n4-q16-c3-new".parse()?;
        for number in 0..self.benches.len() {
            let chunks = self.new_chunks();
            let bench = &mut self.benches[number];
            bench.chunks = chunks;
            for server in bench.subject.addresses() {
                self.master.create(*server.ip(), &bench.chunks, load::VERSION)?;
            }
            let whole = Duration::from_secs(600);
            bench.load(&job, &bench.chunks, whole, 0, false, &self.blocks)?;
            bench.subject.flush()?;
        }
        Ok(())
    }

    /// One job by everybody. Who begins changes from round to round.
    fn job(&mut self, job: &Job, round: u64, figures: &mut Figures) -> Result<(), String> {
        let limit = Duration::from_secs_f64(self.arguments.seconds);
        let turns = self.benches.len() + 1;
        for turn in 0..turns {
            let turn = (turn + round as usize) % turns;
            let sample = if turn == 0 {
                let sample = self.fio.as_ref().map(|fio| fio.run(job, limit)).transpose()?.flatten();
                sample.map(|sample| (FIO.to_owned(), sample))
            } else {
                let sample = self.subject_job(turn - 1, job, round, limit)?;
                Some((self.benches[turn - 1].subject.name().to_owned(), sample))
            };
            if let Some((column, sample)) = sample {
                let Sample { mib_per_second, iops, cpu_seconds_per_gib, client_share, .. } = sample;
                eprintln!(
                    "round {}, {}, {column}: {mib_per_second:.0} MiB/s, {iops:.0}/s, {cpu_seconds_per_gib:.3} CPU s/GiB, \
                     own share {client_share:.2}",
                    round + 1,
                    job.name
                );
                figures.add(job, &column, sample);
            }
        }
        Ok(())
    }

    fn subject_job(&mut self, number: usize, job: &Job, round: u64, limit: Duration) -> Result<Sample, String> {
        let verify = self.arguments.verify;
        let made = if job.state == State::New { self.new_chunks() } else { Vec::new() };
        let Run { master, benches, blocks, arguments, .. } = self;
        let bench = &mut benches[number];
        let servers: Vec<_> = bench.subject.addresses().into_iter().take(job.chain).collect();
        let mut chunks = if job.state == State::New { made.clone() } else { bench.chunks.clone() };
        match job.state {
            State::Cold => {
                bench.subject.stop(master);
                bench.subject.evict()?;
                bench.subject.start(master)?;
            }
            State::Hot => {
                chunks.truncate(arguments.hot_chunks.max(1));
                let warm_up = Job { state: State::Cold, request_bytes: 1 << 20, connections: 4, ..job.clone() };
                for _ in 0..2 {
                    bench.load(&warm_up, &chunks, limit.max(Duration::from_secs(5)), round, verify, blocks)?;
                }
            }
            State::New => {
                for server in &servers {
                    master.create(*server.ip(), &made, load::VERSION)?;
                }
            }
            State::Over => {}
        }
        let cpu = bench.subject.cpu_seconds();
        let outcome = bench.load(job, &chunks, limit, round + 1, verify, blocks)?;
        let cpu = bench.subject.cpu_seconds() - cpu;
        let flush = if job.op == Op::Write { bench.subject.flush()? } else { 0.0 };
        if job.state == State::New {
            if verify {
                bench.verify(&made, job.chain, blocks)?;
            }
            for server in &servers {
                master.delete(*server.ip(), &made)?;
            }
            made.iter().for_each(|chunk| bench.model.borrow_mut().forget(*chunk));
        }
        Ok(Sample::new(&outcome, cpu, flush))
    }

    /// Reads every chunk from every server and compares all bytes.
    fn verify_all(&self) -> Result<(), String> {
        for bench in &self.benches {
            bench.verify(&bench.chunks, CHAIN_MAX, &self.blocks)?;
        }
        eprintln!("every byte was verified");
        Ok(())
    }
}

impl Bench {
    fn load(
        &self,
        job: &Job,
        chunks: &[ChunkId],
        limit: Duration,
        seed: u64,
        verify: bool,
        blocks: &Rc<Blocks>,
    ) -> Result<Outcome, String> {
        let (job, chunks, servers) = (job.clone(), chunks.to_vec(), self.subject.addresses());
        load::run(Plan { job, servers, first: 0, chunks, limit, seed, verify }, blocks, &self.model)
    }

    /// Reads these chunks whole from each of the first `servers` servers and compares sums and bytes.
    fn verify(&self, chunks: &[ChunkId], servers: usize, blocks: &Rc<Blocks>) -> Result<(), String> {
        let job: Job = "read-seq-4m-n4-cold".parse()?;
        for first in 0..servers {
            let (job, chunks, limit) = (job.clone(), chunks.to_vec(), Duration::from_secs(3600));
            let plan = Plan { job, servers: self.subject.addresses(), first, chunks, limit, seed: 0, verify: true };
            load::run(plan, blocks, &self.model)?;
        }
        Ok(())
    }
}
