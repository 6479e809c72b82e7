//! A cluster of real processes that loses all its chunkservers at once, again and again, while programs write.
//!
//! The links of all chunkservers fail, or all are killed, or all stand still; in between the master or the mount is
//! killed too; everything comes back in any order, and the next outage may come before all is well. Nobody helps. After
//! that every file must be readable and hold what was promised ([`crate::writer`]), through the old mount and a new one.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::cluster::{Cluster, Kind, Layout};
use crate::disk::Loss;
use crate::load::{Counts, Load};
use crate::tree::Random;

/// Nothing is read from the kernel's cache; and a file that cannot be read is an error in half a minute.
const MOUNT_OPTIONS: &str = "mfscachemode=DIRECT,mfsioretries=14";
const DISK_BYTES: u64 = 512 << 20;
/// Until every chunk has its copies again.
const COPIES_LIMIT: Duration = Duration::from_secs(200);

/// What happens to several chunkservers at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Their links lose everything.
    CutLinks,
    /// `kill -9`.
    Kill,
    /// SIGSTOP, later SIGCONT.
    Stop,
    /// Their power fails, and their disks lose what was not flushed. Needs [`Plan::has_disks`].
    PowerCut(Loss),
}

/// How a drill runs.
#[derive(Clone, Debug)]
pub struct Plan {
    pub name: &'static str,
    /// The program `mooring-writers`.
    pub program: PathBuf,
    pub outages: usize,
    pub seed: u64,
    pub chunkservers: usize,
    pub writers: u64,
    pub troubles: Vec<Trouble>,
    /// Some chunkservers are spared, sometimes.
    pub spares_some: bool,
    /// Master and mount are killed too, sometimes.
    pub kills_master: bool,
    pub kills_mount: bool,
    /// Chunkservers and master have disks of their own whose power can be cut.
    pub has_disks: bool,
    /// After so many outages the programs stop, and every file is looked at.
    pub calm_every: usize,
}

/// What a drill came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub outages: usize,
    /// Processes that were killed.
    pub kills: usize,
    pub counts: Counts,
    /// Sectors that disks forgot.
    pub forgotten: usize,
    /// Chunks whose copies were compared with each other at the end.
    pub chunks_compared: usize,
    /// The longest time until every file was readable and writable.
    pub slowest_calm: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} outages, {} kills, {} fsyncs, {} failed steps, {} snapshots, {} sectors forgotten, {} files written anew, {} chunks \
             compared, at most {} s until all was well",
            self.outages,
            self.kills,
            self.counts.synced,
            self.counts.failed,
            self.counts.snapshots,
            self.forgotten,
            self.counts.written_anew,
            self.chunks_compared,
            self.slowest_calm.as_secs()
        )
    }
}

/// Panics with what was broken, in words, one line for each file.
pub fn run(plan: &Plan) -> Outcome {
    let mut layout = Layout::ours(plan.chunkservers);
    layout.limit = Duration::from_secs(600 + 60 * plan.outages as u64);
    let mut cluster = Cluster::start(plan.name, layout);
    // While the cluster is there, so that logs are printed and kept.
    drill(&mut cluster, plan).unwrap_or_else(|what| panic!("{}: {what}", plan.name))
}

fn drill(cluster: &mut Cluster, plan: &Plan) -> Result<Outcome, String> {
    if plan.has_disks {
        let given = (0..plan.chunkservers).try_for_each(|index| cluster.give_disk(index, DISK_BYTES, plan.seed));
        given.and_then(|()| cluster.give_master_disk(DISK_BYTES, plan.seed)).map_err(|error| error.to_string())?;
        cluster.wait_all_connected();
    }
    let mount = cluster.mount_with(Kind::Mooring, &["-o", MOUNT_OPTIONS]);
    let mut load = Load::start(cluster, &plan.program, &mount, plan.writers, plan.seed);
    let mut random = Random::new(plan.seed);
    let mut outcome = Outcome::default();
    let start = Instant::now();
    for number in 0..plan.outages {
        std::thread::sleep(Duration::from_millis(300 + random.next() % 3000));
        let what = outage(cluster, plan, &mut random, &mut outcome)?;
        outcome.outages += 1;
        eprintln!("{:4} s: outage {} of {}: {what}", start.elapsed().as_secs(), number + 1, plan.outages);
        load.broken()?;
        if (number + 1).is_multiple_of(plan.calm_every) || number + 1 == plan.outages {
            let took = load.calm(cluster)?;
            outcome.slowest_calm = outcome.slowest_calm.max(took);
            eprintln!("{:4} s: all is well after {} ms", start.elapsed().as_secs(), took.as_millis());
            if number + 1 < plan.outages {
                load.go_on();
            }
        }
    }
    outcome.counts = load.counts();
    load.compare(&mount).map_err(|what| format!("through the old mount: {what}"))?;
    cluster.unmount_all();
    let mount = cluster.mount(Kind::Mooring);
    load.compare(&mount).map_err(|what| format!("through a new mount: {what}"))?;
    drop(load);
    cluster.unmount_all();
    outcome.chunks_compared = cluster.compare_copies(2, COPIES_LIMIT)?;
    Ok(outcome)
}

/// One outage, until everything is started again and connected. Says what it was.
fn outage(cluster: &mut Cluster, plan: &Plan, random: &mut Random, outcome: &mut Outcome) -> Result<String, String> {
    let trouble = plan.troubles[random.below(plan.troubles.len())];
    let mut servers: Vec<usize> = (0..plan.chunkservers).collect();
    shuffle(&mut servers, random);
    if plan.spares_some && random.below(3) == 0 {
        servers.truncate(1 + random.below(plan.chunkservers - 1));
    }
    let kills_master = plan.kills_master && random.below(4) == 0;
    let kills_mount = plan.kills_mount && random.below(4) == 0;
    let lasts = Duration::from_millis(match trouble {
        Trouble::CutLinks => 500 + random.next() % 10_500,
        Trouble::Kill | Trouble::PowerCut(_) => random.next() % 3000,
        Trouble::Stop => 5000 + random.next() % 6000,
    });
    let mut loses_master = false;
    match trouble {
        Trouble::PowerCut(loss) => {
            loses_master = kills_master;
            let cut = cluster.cut_power(&servers, kills_master, loss).map_err(|error| error.to_string())?;
            outcome.forgotten += cut.forgotten;
        }
        Trouble::CutLinks => cluster.cut_links(&servers),
        Trouble::Kill => cluster.kill_chunkservers(&servers),
        Trouble::Stop => cluster.signal_chunkservers(&servers, "STOP"),
    }
    let first = lasts.mul_f64(random.below(100) as f64 / 100.0);
    std::thread::sleep(first);
    if kills_master && !loses_master {
        cluster.kill_master();
    }
    if kills_mount {
        cluster.kill_mount(0);
    }
    std::thread::sleep(lasts - first);
    outcome.kills += usize::from(kills_master) + usize::from(kills_mount);
    outcome.kills += if matches!(trouble, Trouble::Kill | Trouble::PowerCut(_)) { servers.len() } else { 0 };

    // The master comes back before, between or behind the chunkservers; the mount needs it.
    let master_at = random.below(servers.len() + 1);
    let is_in_turns = random.below(2) == 0;
    let pause = |random: &mut Random| {
        if is_in_turns {
            std::thread::sleep(Duration::from_millis(random.next() % 1500));
        }
    };
    for (at, server) in servers.iter().enumerate() {
        if at == master_at && kills_master {
            cluster.start_master();
        }
        match trouble {
            Trouble::CutLinks => {}
            Trouble::Kill | Trouble::PowerCut(_) => cluster.revive_chunkserver(*server),
            Trouble::Stop => cluster.signal_chunkservers(&[*server], "CONT"),
        }
        pause(random);
    }
    if trouble == Trouble::CutLinks {
        cluster.heal_links();
    }
    if !cluster.master_runs() {
        cluster.start_master();
    }
    if kills_mount {
        cluster.revive_mount(0);
    }
    // The next outage may come before all are back.
    if random.below(3) != 0 {
        cluster.wait_all_connected();
    }
    let also = [(kills_master, ", the master killed"), (kills_mount, ", the mount killed")];
    let also: String = also.iter().filter(|(happened, _)| *happened).map(|(_, text)| *text).collect();
    Ok(format!("{trouble:?} of {servers:?} for {} ms{also}", lasts.as_millis()))
}

fn shuffle(items: &mut [usize], random: &mut Random) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.below(last + 1));
    }
}
