//! Asking a master: one thread, one ring, as many mounts as the job has; and filling one with files.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use mooring_tests::daemon::cpu_seconds;
use ring::{Options, Ring};
use wire::{Inode, Seed};

use super::job::{Job, Op};
use super::mount::{Ask, Mount};
use super::tree::{Made, Tree};

/// Whoever has not answered so long after a job's time hangs.
const GRACE: Duration = Duration::from_secs(60);
/// Mounts that fill a master, and requests under way on each.
const FILLERS: usize = 4;
const FILL_WINDOW: usize = 64;

/// What a job came to.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    pub operations: u64,
    pub seconds: f64,
    /// CPU that this process used meanwhile.
    pub client_cpu_seconds: f64,
    /// Of every request, sorted.
    latencies_nanos: Vec<u32>,
}

impl Outcome {
    /// The latency that this share of all requests did not exceed, in µs; 0 if there were none.
    pub fn percentile_micros(&self, share: f64) -> f64 {
        let place = (share * self.latencies_nanos.len() as f64).ceil() as usize;
        let last = self.latencies_nanos.len().saturating_sub(1);
        self.latencies_nanos.get(place.saturating_sub(1).min(last)).map_or(0.0, |nanos| f64::from(*nanos) / 1e3)
    }
}

/// What jobs leave behind for the next ones.
#[derive(Default)]
pub struct Pool {
    made: VecDeque<Made>,
    generation: u16,
}

/// Makes the tree's folders and files and notes their inodes. Errors: what the master did that it must not, in words.
pub fn fill(master: SocketAddrV4, tree: &mut Tree) -> Result<(), String> {
    let shape = Rc::new(RefCell::new(std::mem::replace(tree, Tree::new(1, 1))));
    let its = shape.clone();
    let done = run(|ring| async move {
        let folders = its.borrow().folders.len();
        let numbers = Cell::new(0..folders);
        let mut mount = Mount::new(&ring, master).await?;
        let next = || take(&numbers).map(|number| (number, Ask::Mkdir(Inode::ROOT, Tree::folder_name(number))));
        let note = |number: usize, answer: &[u8], _| its.borrow_mut().folders[number] = inode(answer);
        mount.ask_all(FILL_WINDOW, next, note).await?;
        let files = its.borrow().files.len();
        let numbers = Rc::new(Cell::new(0..files));
        let fillers: Vec<_> = (0..FILLERS)
            .map(|_| {
                let (ring, its, numbers) = (ring.clone(), its.clone(), numbers.clone());
                ring.clone().spawn(async move {
                    let mut mount = Mount::new(&ring, master).await?;
                    let next = || {
                        let number = take(&numbers)?;
                        let (folder, name) = its.borrow().place(number);
                        Some((number, Ask::Mknod(folder, name)))
                    };
                    let note = |number: usize, answer: &[u8], _| its.borrow_mut().files[number] = inode(answer);
                    mount.ask_all(FILL_WINDOW, next, note).await
                })
            })
            .collect();
        for filler in fillers {
            filler.await.expect("nobody aborts it")?;
        }
        Ok(())
    });
    *tree = Rc::into_inner(shape).expect("the ring has ended").into_inner();
    done
}

fn take(numbers: &Cell<std::ops::Range<usize>>) -> Option<usize> {
    let mut rest = numbers.take();
    let number = rest.next();
    numbers.set(rest);
    number
}

fn inode(answer: &[u8]) -> Inode {
    Inode(answer.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)))
}

/// Does a job for `limit` or until there is nothing left to do. Errors: a request was refused, or the master hangs.
pub fn job(
    master: SocketAddrV4,
    job: &Job,
    tree: &Rc<Tree>,
    pool: &mut Pool,
    limit: Duration,
    seed: u64,
) -> Result<Outcome, String> {
    let hands = match job.op {
        Op::Rename | Op::Unlink => deal(&mut pool.made, job.connections),
        _ => vec![VecDeque::new(); job.connections],
    };
    pool.generation += 1;
    let (work, tree, generation) = (job.clone(), tree.clone(), pool.generation);
    let (outcome, left) = run(|ring| async move {
        let mut mounts = Vec::new();
        for _ in 0..work.connections {
            mounts.push(Mount::new(&ring, master).await?);
        }
        let (cpu, start) = (cpu_seconds(std::process::id()), ring.now());
        let tasks: Vec<_> = mounts
            .into_iter()
            .zip(hands)
            .enumerate()
            .map(|(number, (mut mount, hand))| {
                let mut questions = Questions {
                    op: work.op,
                    tree: tree.clone(),
                    seed: Seed(seed << 16 | number as u64),
                    connection: number as u16,
                    generation,
                    made: 0,
                    hand,
                    left: VecDeque::new(),
                };
                let (ring, window) = (ring.clone(), work.window);
                ring.clone().spawn(async move {
                    let mut latencies = Vec::with_capacity(1 << 16);
                    let next = || (start.elapsed(&ring) < limit).then(|| questions.next()).flatten();
                    let note = |_, _: &[u8], since: ring::Instant| {
                        latencies.push(u32::try_from(since.elapsed(&ring).as_nanos()).unwrap_or(u32::MAX));
                    };
                    mount.ask_all(window, next, note).await?;
                    let took = start.elapsed(&ring);
                    Ok::<_, String>((mount, questions, latencies, took))
                })
            })
            .collect();
        let mut outcome = Outcome::default();
        let (mut left, mut used) = (VecDeque::new(), Vec::new());
        let all = async {
            for task in tasks {
                let (mount, questions, latencies, took) = task.await.expect("nobody aborts it")?;
                outcome.seconds = outcome.seconds.max(took.as_secs_f64());
                outcome.latencies_nanos.extend(latencies);
                left.extend(questions.hand);
                left.extend(questions.left);
                used.push(mount);
            }
            Ok::<_, String>(())
        };
        ring.timeout(limit + GRACE, all).await.map_err(|_| format!("{master} has hung for a minute"))??;
        outcome.client_cpu_seconds = cpu_seconds(std::process::id()) - cpu;
        outcome.operations = outcome.latencies_nanos.len() as u64;
        outcome.latencies_nanos.sort_unstable();
        if work.op == Op::Create {
            for mount in &mut used {
                mount.close_files().await?;
            }
        }
        Ok((outcome, left))
    })?;
    pool.made.extend(left);
    Ok(outcome)
}

/// A share for each connection.
fn deal(made: &mut VecDeque<Made>, connections: usize) -> Vec<VecDeque<Made>> {
    let mut hands = vec![VecDeque::new(); connections];
    for (place, made) in made.drain(..).enumerate() {
        hands[place % connections].push_back(made);
    }
    hands
}

/// What one connection asks.
struct Questions {
    op: Op,
    tree: Rc<Tree>,
    seed: Seed,
    connection: u16,
    generation: u16,
    made: u32,
    /// Files to rename or remove, not touched yet.
    hand: VecDeque<Made>,
    /// Files that the job leaves.
    left: VecDeque<Made>,
}

impl Questions {
    fn next(&mut self) -> Option<(usize, Ask)> {
        let files = self.tree.files.len() as u64;
        let ask = match self.op {
            Op::Lookup => {
                let (folder, name) = self.tree.place(self.seed.below(files) as usize);
                Ask::Lookup(folder, name)
            }
            Op::Getattr => Ask::Getattr(self.tree.files[self.seed.below(files) as usize]),
            Op::Readdir => Ask::Readdir(self.tree.folders[self.seed.below(self.tree.own_folders() as u64) as usize]),
            Op::Mknod | Op::Create => {
                let (generation, connection) = (self.generation, self.connection);
                let made = Made { generation, connection, number: self.made, letter: b'm' };
                self.made += 1;
                self.left.push_back(made);
                let (folder, name) = self.tree.place_of(made);
                if self.op == Op::Create { Ask::Create(folder, name) } else { Ask::Mknod(folder, name) }
            }
            Op::Rename => {
                let made = self.hand.pop_front()?;
                let renamed = Made { letter: if made.letter == b'm' { b'r' } else { b'm' }, ..made };
                self.left.push_back(renamed);
                let (folder, from) = self.tree.place_of(made);
                Ask::Rename(folder, from, self.tree.place_of(renamed).1)
            }
            Op::Unlink => {
                let (folder, name) = self.tree.place_of(self.hand.pop_front()?);
                Ask::Unlink(folder, name)
            }
        };
        Some((0, ask))
    }
}

fn run<T, F: Future<Output = Result<T, String>>>(main: impl FnOnce(Ring) -> F) -> Result<T, String> {
    ring::run(Options::default(), main).map_err(|error| format!("the ring cannot start: {error}"))?
}
