//! All chunkservers away at once, again and again, while two users go on; power cuts, full and failing disks.
//!
//! Whatever happens, what is read is legal for the user's ledger ([`super::history`]). When everything works again, each
//! file has its copies in bounded time; each valid copy alone holds only legal bytes, and all of them the same; one
//! server that is back with a valid copy makes the file readable within a minute; and what `fsync` confirmed is there
//! after one more power cut of all servers.

use std::cell::{Cell, RefCell};
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::time::Duration;

use chunk::settings::Durability;
use client::Client;
use ring::sim::{DiskFault, NodeId, World};

use super::cluster::{BUFFERS, CHUNKSERVERS, CLIENTS, Cluster, chunks_path, connect, wait};
use super::copies;
use super::writer::{Ledger, Writer};
use crate::tree::Random;
use crate::workload::{Broken, Counts};

/// Something that breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Nobody reaches some or all chunkservers, one to four times in a row.
    Silent,
    /// Some or all chunkservers stand still and go on, one to four times in a row.
    Frozen,
    /// Some or all chunkservers are killed, one to four times in a row.
    Killed,
    /// The master is killed or loses its power in the midst of it.
    Master,
    /// A user is killed, and another one goes on.
    Client,
    /// Some or all chunkservers lose their power.
    Power,
    /// One chunkserver's disk fails to sync.
    Syncs,
    /// The disks of some or all chunkservers fill up, and get room again.
    Full,
    /// One chunkserver comes back with an older image of its disk.
    Older,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Fault; 9] = [
        Fault::Silent,
        Fault::Frozen,
        Fault::Killed,
        Fault::Master,
        Fault::Client,
        Fault::Power,
        Fault::Syncs,
        Fault::Full,
        Fault::Older,
    ];

    /// Kinds that the cluster stands today.
    pub const STOOD: [Fault; 0] = [];

    /// The kind with this name, as `MOORING_SIM_FAULTS` has it.
    pub fn named(name: &str) -> Option<Fault> {
        Fault::ALL.into_iter().find(|fault| format!("{fault:?}").eq_ignore_ascii_case(name))
    }

    /// Chunkservers may lose what they have acknowledged and not synced.
    fn loses_memory(self) -> bool {
        matches!(self, Fault::Power | Fault::Syncs | Fault::Older)
    }

    /// Only beside others.
    fn is_companion(self) -> bool {
        matches!(self, Fault::Master | Fault::Client)
    }
}

/// Time in which every chunk must get its copies again.
const REPAIR_LIMIT: Duration = Duration::from_secs(300);
/// Time in which one good copy must make its file readable.
const READABLE_LIMIT: Duration = Duration::from_secs(60);
const FINISH_LIMIT: Duration = Duration::from_secs(900);
const LEAVE_SPACE_BYTES: u64 = 1 << 20;

/// Run the scenario of `seed` with some of these kinds of faults.
///
/// Errors: the sentence that says which promise was broken, and what had been done to the cluster.
pub fn outages(seed: u64, kinds: &[Fault]) -> Result<Counts, Broken> {
    let mut random = Random::new(seed ^ 0x0D7A6E5);
    let (companions, mut themes): (Vec<Fault>, Vec<Fault>) = kinds.iter().partition(|kind| kind.is_companion());
    while themes.len() > 2 {
        themes.swap_remove(random.below(themes.len()));
    }
    let companions: Vec<Fault> = companions.into_iter().filter(|_| random.below(2) == 0).collect();
    let world = World::new(seed, ring::sim::Settings { disk_bytes: 1 << 40, buffers: BUFFERS, ..Default::default() });
    let mut cluster = Cluster::start(&world, Durability::Written);
    let closes_make_sure = !themes.iter().any(|theme| theme.loses_memory());
    let stop = Rc::new(Cell::new(false));
    let users: Vec<User> = (0..CLIENTS.len())
        .map(|index| User::new(&world, cluster.clients[index], index, seed, closes_make_sure, stop.clone()))
        .collect();
    let mut run = Run { world: &world, cluster: &mut cluster, random, users, companions, story: Vec::new() };
    let outcome = run.all(&themes, &stop);
    let mut counts = Counts::default();
    for user in &run.users {
        let of = user.ledger.borrow().counts;
        counts.acknowledged += of.acknowledged;
        counts.failed += of.failed;
        counts.reads_compared += of.reads_compared;
        counts.bytes_compared += of.bytes_compared;
    }
    match outcome {
        Ok(()) => Ok(counts),
        Err(Broken(what)) => Err(Broken(format!("{what} [{}]", run.story.join(", ")))),
    }
}

/// One user after the other on one node, with one ledger.
struct User {
    node: NodeId,
    ledger: Rc<RefCell<Ledger>>,
    seat: Rc<RefCell<Seat>>,
    stop: Rc<Cell<bool>>,
    seed: u64,
    died: u64,
}

#[derive(Default)]
struct Seat {
    writer: Option<Rc<Writer>>,
    broken: Option<Broken>,
    is_done: bool,
}

impl User {
    fn new(world: &World, node: NodeId, index: usize, seed: u64, sure: bool, stop: Rc<Cell<bool>>) -> User {
        let ledger = Rc::new(RefCell::new(Ledger::new(["a", "b"][index], sure)));
        let seed = seed.wrapping_mul(2).wrapping_add(index as u64) ^ 0x0DD5EED;
        let mut user = User { node, ledger, seat: Rc::default(), stop, seed, died: 0 };
        user.begin(world);
        user
    }

    fn begin(&mut self, world: &World) {
        self.seat = Rc::default();
        let (seat, ledger, stop) = (self.seat.clone(), self.ledger.clone(), self.stop.clone());
        let random = RefCell::new(Random::new(self.seed ^ self.died << 32));
        drop(world.spawn(self.node, move |ring| async move {
            let client = connect(&ring).await;
            let writer = Rc::new(Writer { ring: ring.clone(), client, ledger, random });
            seat.borrow_mut().writer = Some(writer.clone());
            while !stop.get() {
                let pause = writer.random.borrow_mut().below(1200) as u64;
                ring.sleep(Duration::from_millis(pause)).await;
                if let Err(broken) = writer.step().await {
                    seat.borrow_mut().broken = Some(broken);
                    break;
                }
            }
            seat.borrow_mut().is_done = true;
        }));
    }

    fn die(&mut self, world: &World) {
        world.kill(self.node);
        self.died += 1;
        self.ledger.borrow_mut().user_died(world.now());
        world.restart(self.node);
        self.begin(world);
    }
}

struct Run<'a> {
    world: &'a World,
    cluster: &'a mut Cluster,
    random: Random,
    users: Vec<User>,
    companions: Vec<Fault>,
    /// What was done, for whoever reads why it went wrong.
    story: Vec<String>,
}

impl Run<'_> {
    fn all(&mut self, themes: &[Fault], stop: &Cell<bool>) -> Result<(), Broken> {
        for _ in 0..1 + self.random.below(3) {
            self.pass(500, 5000);
            let Some(theme) = (!themes.is_empty()).then(|| themes[self.random.below(themes.len())]) else { break };
            self.one_fault(theme)?;
            self.no_user_saw_wrong()?;
        }
        self.pass(500, 5000);
        stop.set(true);
        let done = |users: &[User]| users.iter().all(|user| user.seat.borrow().is_done);
        wait(self.world, FINISH_LIMIT, "the users to finish", || done(&self.users))?;
        self.no_user_saw_wrong()?;
        self.at_rest()?;
        self.one_server_is_enough()?;
        self.at_rest()?;
        if themes.contains(&Fault::Power) {
            for writer in self.writers() {
                self.on(0, async move { writer.sync_all().await })?;
            }
            self.note("power of all");
            self.power(&[0, 1, 2]);
            self.at_rest()?;
        }
        Ok(())
    }

    fn note(&mut self, what: impl Into<String>) {
        let at = self.world.now().as_micros() as f64 / 1e6;
        self.story.push(format!("{at:.1} s {}", what.into()));
    }

    fn pass(&mut self, least_millis: u64, more_millis: u64) {
        self.world.run_for(Duration::from_millis(least_millis + self.random.next() % more_millis));
    }

    fn no_user_saw_wrong(&self) -> Result<(), Broken> {
        self.users.iter().find_map(|user| user.seat.borrow_mut().broken.take()).map_or(Ok(()), Err)
    }

    fn one_fault(&mut self, theme: Fault) -> Result<(), Broken> {
        match theme {
            Fault::Silent | Fault::Frozen | Fault::Killed => {
                for _ in 0..=self.random.below(4) {
                    let who = self.some_servers();
                    self.note(format!("{theme:?} {who:?}"));
                    self.take_away(theme, &who);
                    self.pass_away();
                    self.bring_back(theme, &who);
                    self.pass(300, 6000);
                }
            }
            Fault::Power => {
                let who = self.some_servers();
                self.note(format!("power of {who:?}"));
                self.power(&who);
            }
            Fault::Full => {
                let who = self.some_servers();
                self.note(format!("full {who:?}"));
                for server in &who {
                    let node = self.cluster.chunkservers[*server];
                    let used = self.world.used_disk_bytes(node);
                    let room = self.random.next() % (LEAVE_SPACE_BYTES + (512 << 10));
                    self.world.set_disk_bytes(node, used + room);
                }
                self.pass_away();
                for node in self.cluster.chunkservers {
                    self.world.set_disk_bytes(node, 1 << 40);
                }
            }
            // Each of these takes one copy of everything: only when all others are whole, and one at a time.
            Fault::Syncs => {
                self.repaired()?;
                let server = self.random.below(CHUNKSERVERS.len());
                self.note(format!("syncs of {server} fail"));
                self.world.break_disk(self.cluster.chunkservers[server], &chunks_path(), DiskFault::Syncs);
                self.pass_away();
                self.world.mend_disk(self.cluster.chunkservers[server]);
                self.take_away(Fault::Killed, &[server]);
                self.bring_back(Fault::Killed, &[server]);
                self.repaired()?;
            }
            Fault::Older => {
                self.repaired()?;
                let server = self.random.below(CHUNKSERVERS.len());
                let node = self.cluster.chunkservers[server];
                let image = self.world.image_of_disk(node);
                self.note(format!("image of {server}"));
                self.pass_away();
                self.repaired()?;
                self.note(format!("older disk in {server}"));
                self.world.crash(node);
                self.world.replace_disk(node, &image);
                self.pass(100, 8000);
                self.world.restart(node);
                self.cluster.start_chunkserver(self.world, server);
                self.repaired()?;
            }
            Fault::Master | Fault::Client => unreachable!("they come beside others"),
        }
        Ok(())
    }

    /// All servers, or some.
    fn some_servers(&mut self) -> Vec<usize> {
        let all = 0..CHUNKSERVERS.len();
        if self.random.below(3) > 0 {
            return all.collect();
        }
        let first = self.random.below(CHUNKSERVERS.len());
        all.filter(|server| *server == first || self.random.below(2) == 0).collect()
    }

    /// The time that servers are away; others may fail in it.
    fn pass_away(&mut self) {
        self.pass(1000, 10_000);
        for companion in self.companions.clone() {
            if self.random.below(3) > 0 {
                continue;
            }
            match companion {
                Fault::Master => {
                    self.note("master");
                    if self.random.below(2) == 0 {
                        self.world.crash(self.cluster.master);
                    } else {
                        self.world.kill(self.cluster.master);
                    }
                    self.pass(50, 4000);
                    self.world.restart(self.cluster.master);
                    self.cluster.start_master(self.world, false);
                }
                _ => {
                    let user = self.random.below(self.users.len());
                    self.note(format!("user {user}"));
                    self.users[user].die(self.world);
                }
            }
        }
        self.pass(100, 7000);
    }

    fn take_away(&mut self, how: Fault, who: &[usize]) {
        for server in who {
            let node = self.cluster.chunkservers[*server];
            match how {
                Fault::Silent => self.others(node).for_each(|other| self.world.cut(node, other)),
                Fault::Frozen => self.world.freeze(node),
                Fault::Power => self.world.crash(node),
                _ => self.world.kill(node),
            }
            if self.random.below(4) == 0 {
                self.pass(1, 1500);
            }
        }
    }

    /// In any order, at once or one by one.
    fn bring_back(&mut self, how: Fault, who: &[usize]) {
        let mut left = who.to_vec();
        let is_slow = self.random.below(2) == 0;
        while !left.is_empty() {
            let server = left.swap_remove(self.random.below(left.len()));
            let node = self.cluster.chunkservers[server];
            match how {
                Fault::Silent => self.others(node).for_each(|other| self.world.heal(node, other)),
                Fault::Frozen => self.world.thaw(node),
                _ => {
                    self.world.restart(node);
                    self.cluster.start_chunkserver(self.world, server);
                }
            }
            if is_slow {
                self.pass(10, 5000);
            }
        }
    }

    fn others(&self, node: NodeId) -> impl Iterator<Item = NodeId> + use<> {
        let all = [self.cluster.master].into_iter().chain(self.cluster.chunkservers).chain(self.cluster.clients);
        all.filter(move |other| *other != node)
    }

    fn power(&mut self, who: &[usize]) {
        self.take_away(Fault::Power, who);
        self.pass(100, 8000);
        self.bring_back(Fault::Power, who);
    }

    fn writers(&self) -> Vec<Rc<Writer>> {
        self.users.iter().filter_map(|user| user.seat.borrow().writer.clone()).collect()
    }

    /// Runs a task of a user's node to its end.
    fn on<T: 'static>(&self, user: usize, task: impl Future<Output = T> + 'static) -> T {
        self.world.run(self.users[user].node, |_| task).expect("nothing ends this node's tasks now")
    }

    /// Every chunk has as many valid copies as it is to have, in bounded time.
    fn repaired(&mut self) -> Result<(), Broken> {
        let end = self.world.now() + REPAIR_LIMIT;
        loop {
            self.world.run_for(Duration::from_secs(2));
            let mut lacking = None;
            for (user, writer) in (0..).zip(self.writers()) {
                let found = self.on(user, async move { lacks_copies(&writer).await });
                lacking = lacking.or(found);
            }
            match lacking {
                None => return Ok(()),
                Some(what) if self.world.now() >= end => return Err(Broken(what)),
                Some(_) => {}
            }
        }
    }

    /// Everything works and nobody writes: each copy by itself, and each file through each mount.
    fn at_rest(&mut self) -> Result<(), Broken> {
        self.repaired()?;
        let clients: Vec<Client> = self.writers().iter().map(|writer| writer.client.clone()).collect();
        for (user, writer) in (0..).zip(self.writers()) {
            let clients = clients.clone();
            self.on(user, async move {
                for name in writer.names() {
                    for client in &clients {
                        match writer.examine(client, &name).await {
                            Ok(outcome) => outcome?,
                            Err(errno) => {
                                let why = copies::why(client, writer.entry(&name).inode).await;
                                return Err(writer.broken(&name, &format!("cannot be read: {errno}; {why}")));
                            }
                        }
                    }
                    compare_copies(&writer, &name).await?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Every server is killed; one comes back, and what has a valid copy there can be read within a minute.
    fn one_server_is_enough(&mut self) -> Result<(), Broken> {
        let mut expected = Vec::new();
        let first = self.random.below(CHUNKSERVERS.len());
        for writer in self.writers() {
            let asked = writer.clone();
            let names = self.on(0, async move {
                let mut names = Vec::new();
                for name in asked.names() {
                    let chunk = copies::locate(&asked.client, asked.entry(&name).inode, 0).await;
                    if let Ok(Some(chunk)) = chunk
                        && chunk.servers.iter().any(|server| *server.ip() == CHUNKSERVERS[first])
                    {
                        names.push(name);
                    }
                }
                names
            });
            expected.push((writer, names));
        }
        self.note(format!("all killed, {first} comes back"));
        let all: Vec<usize> = (0..CHUNKSERVERS.len()).collect();
        self.take_away(Fault::Killed, &all);
        self.pass(100, 12_000);
        self.bring_back(Fault::Killed, &[first]);
        for (user, (writer, names)) in (0..).zip(expected) {
            self.on(user, async move {
                let end = writer.ring.now() + READABLE_LIMIT;
                for name in names {
                    loop {
                        let left = end.saturating_duration_since(writer.ring.now());
                        match writer.ring.timeout(left, writer.examine(&writer.client, &name)).await {
                            Ok(Ok(outcome)) => break outcome?,
                            Ok(Err(_)) => writer.ring.sleep(Duration::from_millis(500)).await,
                            Err(_) => {
                                let why = copies::why(&writer.client, writer.entry(&name).inode).await;
                                return Err(writer.broken(&name, &format!("one good copy is not enough; {why}")));
                            }
                        }
                    }
                }
                Ok(())
            })?;
        }
        let others: Vec<usize> = all.into_iter().filter(|server| *server != first).collect();
        self.bring_back(Fault::Killed, &others);
        Ok(())
    }
}

/// What lacks a copy, in the master's words.
async fn lacks_copies(writer: &Writer) -> Option<String> {
    for name in writer.names() {
        let inode = writer.entry(&name).inode;
        let chunk = copies::locate(&writer.client, inode, 0).await;
        let is_whole = chunk.as_ref().is_ok_and(|chunk| chunk.as_ref().is_none_or(|chunk| chunk.servers.len() >= 2));
        if !is_whole {
            let how_many = chunk.map(|chunk| chunk.map(|chunk| chunk.servers.len()));
            let why = copies::why(&writer.client, inode).await;
            return Some(format!("{name}: {how_many:?} valid copies after {} s; {why}", REPAIR_LIMIT.as_secs()));
        }
    }
    None
}

/// Each valid copy alone is legal, and they are equal.
async fn compare_copies(writer: &Writer, name: &str) -> Result<(), Broken> {
    let mut tries_left = 5;
    loop {
        match read_copies(writer, name).await {
            Ok(copies) => return check_copies(writer, name, &copies),
            Err(what) if tries_left == 0 => return Err(writer.broken(name, &what)),
            // A copy too many may have been deleted, or moved, since the master was asked.
            Err(_) => writer.ring.sleep(Duration::from_secs(2)).await,
        }
        tries_left -= 1;
    }
}

/// What each server that the master names gives. Errors: which one gives nothing, and why.
async fn read_copies(writer: &Writer, name: &str) -> Result<Vec<(SocketAddrV4, Vec<u8>)>, String> {
    let entry = writer.entry(name);
    let chunk = copies::locate(&writer.client, entry.inode, 0).await;
    let Some(chunk) = chunk.map_err(|errno| format!("the master does not say where it is: {errno}"))? else {
        return Ok(Vec::new());
    };
    let size = u32::try_from(entry.history.wanted).expect("files are small");
    let mut copies = Vec::new();
    for server in &chunk.servers {
        let found = copies::read(&writer.ring, &chunk, *server, size).await;
        copies.push((*server, found.map_err(|what| format!("the valid copy on {server}: {what}"))?));
    }
    Ok(copies)
}

fn check_copies(writer: &Writer, name: &str, copies: &[(SocketAddrV4, Vec<u8>)]) -> Result<(), Broken> {
    let history = writer.entry(name).history;
    for (server, found) in copies {
        let legal = history.check(0, found);
        legal.map_err(|what| writer.broken(name, &format!("the valid copy on {server}: {what}")))?;
    }
    for pair in copies.windows(2) {
        let differ = pair[0].1.iter().zip(&pair[1].1).filter(|(one, other)| one != other).count();
        if pair[0].1 != pair[1].1 {
            return Err(writer.broken(name, &format!("two valid copies differ in {differ} bytes")));
        }
    }
    Ok(())
}
