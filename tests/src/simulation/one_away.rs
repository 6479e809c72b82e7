//! One chunkserver is away at a time, and the master loses its power, while two users work.
//!
//! One seed decides time, order, faults and load. Two workers ([`crate::workload`]) work while the master loses its
//! power, chunkservers are killed or lose theirs, and links are cut; then everything is healed, and each worker's
//! folder is read through both clients: every listing and every byte must be as acknowledged.
//!
//! What may be asked of goal 2 decides what is done to the servers: one chunkserver is away at a time. Under `written`
//! they are killed, which costs a process but no byte that the system has. Under `synced` (half of the seeds) one of
//! them also loses its power, and with it what was not synced, but only when every chunk has had the time to get its two
//! copies: a block that is torn while its other copy is behind is beyond what two copies can stand.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use chunk::settings::Durability;
use client::Client;
use ring::sim::{NodeId, World};

use super::cluster::{BUFFERS, CALM, CHUNKSERVERS, CLIENTS, Cluster, connect, wait};
use crate::tree::Random;
use crate::workload::{Broken, Counts, Worker};

/// Operations of each worker while faults are about.
const STEPS: usize = 50;
/// Virtual time after which everything is healed, whether the workers are done or not.
const FAULTS_END: Duration = Duration::from_secs(200);
/// Virtual time in which a healed cluster must have let every worker finish.
const FINISH_LIMIT: Duration = Duration::from_secs(900);

/// What a run has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub counts: [Counts; 2],
    /// Two runs that agree in this number went the same way.
    pub trace: u64,
    pub faults: usize,
    pub virtual_time: Duration,
}

/// Run the scenario of `seed`.
///
/// Errors: the sentence that says which promise was broken. Seeds divisible by 8 meet no fault, and then no operation
/// may fail.
pub fn run(seed: u64) -> Result<Outcome, Broken> {
    let has_faults = !seed.is_multiple_of(8);
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: BUFFERS, ..Default::default() });
    let began = world.now();
    let durability = if seed.is_multiple_of(2) { Durability::Synced } else { Durability::Written };
    let mut cluster = Cluster::start(&world, durability);
    let finished = Rc::new(Cell::new(0));
    let workers: Vec<Rc<RefCell<Seat>>> = (0..CLIENTS.len())
        .map(|index| seat_worker(&world, cluster.clients[index], index, seed, has_faults, finished.clone()))
        .collect();
    let everybody_is_done = {
        let finished = finished.clone();
        move || finished.get() == CLIENTS.len()
    };

    let mut faults = 0;
    if has_faults {
        let mut random = Random::new(seed ^ 0xFA17);
        let victim = random.below(CHUNKSERVERS.len());
        let power_fails_at = (cluster.durability == Durability::Synced).then_some(victim);
        while world.now().saturating_duration_since(began) < FAULTS_END && !everybody_is_done() {
            world.run_for(Duration::from_millis(300 + random.next() % 4000));
            cluster.one_fault(&world, &mut random, power_fails_at);
            faults += 1;
        }
    }
    wait(&world, FINISH_LIMIT, "the workers to finish", everybody_is_done)?;
    for seat in &workers {
        if let Some(broken) = seat.borrow_mut().broken.take() {
            return Err(broken);
        }
    }
    audit(&world, &cluster, &workers)?;
    let counts = [0, 1].map(|index| workers[index].borrow().worker.as_ref().map_or(Counts::default(), Worker::counts));
    Ok(Outcome { counts, trace: world.trace(), faults, virtual_time: world.now().saturating_duration_since(began) })
}

/// A worker's place: where its task leaves it when it is done.
#[derive(Default)]
struct Seat {
    worker: Option<Worker>,
    client: Option<Client>,
    broken: Option<Broken>,
}

fn seat_worker(
    world: &World,
    node: NodeId,
    index: usize,
    seed: u64,
    has_faults: bool,
    finished: Rc<Cell<usize>>,
) -> Rc<RefCell<Seat>> {
    let seat = Rc::new(RefCell::new(Seat::default()));
    let filled = seat.clone();
    drop(world.spawn(node, move |ring| async move {
        let mut random = Random::new(seed.wrapping_mul(2).wrapping_add(index as u64) ^ 0x5EED);
        let client = connect(&ring).await;
        let name = format!("folder{index}");
        let mut worker = match Worker::new(ring.clone(), client.clone(), &name, random.next(), has_faults).await {
            Ok(worker) => worker,
            Err(errno) => {
                filled.borrow_mut().broken = Some(Broken(format!("{name} cannot be made: {errno}")));
                finished.set(finished.get() + 1);
                return;
            }
        };
        for _ in 0..STEPS {
            ring.sleep(Duration::from_millis(random.next() % 2500)).await;
            if let Err(broken) = worker.step().await {
                filled.borrow_mut().broken = Some(broken);
                break;
            }
        }
        let mut seat = filled.borrow_mut();
        seat.worker = Some(worker);
        seat.client = Some(client);
        finished.set(finished.get() + 1);
    }));
    seat
}

/// With everything healed, each folder through each client, and no failure is excused any more.
fn audit(world: &World, cluster: &Cluster, seats: &[Rc<RefCell<Seat>>]) -> Result<(), Broken> {
    world.run_for(Duration::from_secs(30));
    for reader in 0..seats.len() {
        let client = seats[reader].borrow().client.clone().expect("every worker has finished");
        for seat in seats {
            let mut worker = seat.borrow_mut().worker.take().expect("every worker has finished");
            worker.expect_faults(false);
            let client = client.clone();
            let done = Rc::new(RefCell::new(None));
            let result = done.clone();
            drop(world.spawn(cluster.clients[reader], move |_| async move {
                let outcome = worker.audit(&client).await;
                *result.borrow_mut() = Some((worker, outcome));
            }));
            wait(world, FINISH_LIMIT, "an audit to finish", || done.borrow().is_some())?;
            let (worker, outcome) = done.borrow_mut().take().expect("just looked");
            seat.borrow_mut().worker = Some(worker);
            outcome?;
        }
    }
    Ok(())
}

impl Cluster {
    /// Something breaks, some time passes, and it works again.
    fn one_fault(&mut self, world: &World, random: &mut Random, power_fails_at: Option<usize>) {
        let duration = Duration::from_millis(50 + random.next() % 8000);
        match random.below(10) {
            0 | 1 => {
                world.crash(self.master);
                world.run_for(duration / 2);
                world.restart(self.master);
                self.start_master(world, false);
            }
            2..=5 => {
                let index = random.below(CHUNKSERVERS.len());
                let node = self.chunkservers[index];
                let power_fails = Some(index) == power_fails_at && random.below(2) == 0;
                if power_fails {
                    world.run_for(CALM);
                    world.crash(node);
                } else {
                    world.kill(node);
                }
                world.run_for(duration);
                world.restart(node);
                self.start_chunkserver(world, index);
                if power_fails {
                    world.run_for(CALM);
                }
            }
            _ => {
                let nodes: Vec<NodeId> =
                    [self.master].into_iter().chain(self.chunkservers).chain(self.clients).collect();
                let first = random.below(nodes.len());
                let second = (first + 1 + random.below(nodes.len() - 1)) % nodes.len();
                world.cut(nodes[first], nodes[second]);
                world.run_for(duration);
                world.heal(nodes[first], nodes[second]);
            }
        }
    }
}
