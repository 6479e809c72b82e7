//! The state of a world: its clock, its nodes, what is going to happen and when.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use super::disk::Disk;
use super::net::{Connection, Listening, Socket};
use super::random::{Dice, mix};
use super::{DiskFault, Failure, Settings};
use crate::driver::{Driver, Wait};
use crate::remote::TaskKey;
use crate::sys::operation::{Key, Op, Request, Table};
use crate::time::Instant;

pub(crate) type SharedState = Rc<RefCell<State>>;

/// Everything in a world but its tasks.
pub(crate) struct State {
    pub(super) settings: Settings,
    pub(super) now: u64,
    pub(super) dice: Dice,
    /// Numbers for the tasks come from dice of their own, so that a task that rolls more does not change the world.
    task_dice: Dice,
    /// What will happen: by time, then in the order in which it was decided.
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(super) nodes: Vec<Node>,
    pub(super) handles: BTreeMap<RawFd, Handle>,
    next_fd: RawFd,
    pub(super) connections: BTreeMap<u64, Connection>,
    pub(super) next_connection: u64,
    /// Pairs of nodes that cannot reach each other, and which cut it was.
    pub(super) cuts: BTreeMap<(u32, u32), u64>,
    pub(super) next_cut: u64,
    /// Operations that have not ended, and their node.
    under_way: BTreeMap<Key, u32>,
    finished: Vec<(Key, i32)>,
    /// Tasks that are ready on nodes that are frozen.
    held_back: BTreeMap<u32, Vec<TaskKey>>,
    /// Nodes that failed at an ordered step and whose tasks are still there.
    failed: Vec<u32>,
    trace: u64,
}

pub(super) struct Node {
    pub(super) ip: Ipv4Addr,
    pub(super) alive: bool,
    pub(super) disk: Disk,
    pub(super) faults: Vec<(PathBuf, DiskFault)>,
    pub(super) clock_skew_micros: i64,
    pub(super) next_port: u16,
    /// What it has done so far: see `sim`.
    pub(super) steps: u64,
    /// After so many steps it fails.
    pub(super) doom: Option<(u64, Failure)>,
    /// It failed so.
    pub(super) has_failed: bool,
}

/// What a descriptor is.
pub(super) enum Handle {
    Listening(Listening),
    Socket(Socket),
    File(OpenFile),
}

pub(super) struct OpenFile {
    pub(super) node: u32,
    pub(super) inode: u64,
    pub(super) path: PathBuf,
    pub(super) flags: i32,
}

/// Something that will happen.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// An operation is tried.
    Perform(Key),
    /// An operation ends with this result.
    Finish(Key, i32),
    /// Bytes arrive at one end of a connection.
    Deliver { connection: u64, end: usize },
    /// A connection across a cut gives up, if it is still the same cut.
    GiveUp { connection: u64, cut: u64 },
    /// Names of a node's disk become durable by themselves.
    SettleNames { node: u32 },
}

/// How often an operation on a disk that hangs is tried again.
const HANG_LOOK_MICROS: u64 = 100_000;

impl State {
    pub(super) fn new(seed: u64, settings: Settings) -> State {
        State {
            settings,
            now: 0,
            dice: Dice::new(seed),
            task_dice: Dice::new(mix(seed)),
            events: BTreeMap::new(),
            next_event: 0,
            nodes: Vec::new(),
            handles: BTreeMap::new(),
            next_fd: 1000,
            connections: BTreeMap::new(),
            next_connection: 0,
            cuts: BTreeMap::new(),
            next_cut: 0,
            under_way: BTreeMap::new(),
            finished: Vec::new(),
            held_back: BTreeMap::new(),
            failed: Vec::new(),
            trace: seed,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::from_micros(self.now)
    }

    pub(crate) fn wall_micros(&self, node: u32) -> u64 {
        let wall = self.settings.start_wall_micros + self.now;
        wall.saturating_add_signed(self.nodes[node as usize].clock_skew_micros)
    }

    pub(crate) fn random_for_tasks(&mut self) -> u64 {
        self.task_dice.next()
    }

    pub(crate) fn random_below(&mut self, bound: u64) -> u64 {
        self.dice.below(bound)
    }

    /// One number for all that has happened: two runs that agree in it were the same.
    pub(super) fn trace(&self) -> u64 {
        self.trace
    }

    fn note(&mut self, what: u64) {
        self.trace = mix(self.trace ^ mix(self.now) ^ what);
    }

    pub(super) fn new_fd(&mut self, handle: Handle) -> RawFd {
        let fd = self.next_fd;
        self.next_fd += 1; // never reused: a late operation cannot reach another's descriptor
        self.handles.insert(fd, handle);
        fd
    }

    pub(super) fn schedule(&mut self, after_micros: u64, event: Event) {
        self.events.insert((self.now + after_micros, self.next_event), event);
        self.next_event += 1;
    }

    pub(super) fn finish(&mut self, key: Key, result: i32) {
        if self.under_way.remove(&key).is_some() {
            self.note(key.0 ^ u64::from(result.cast_unsigned()) << 24);
            self.finished.push((key, result));
        }
    }

    pub(super) fn node_of(&self, key: Key) -> Option<u32> {
        self.under_way.get(&key).copied()
    }

    /// Whether bytes can go from one node to another.
    pub(super) fn linked(&self, a: u32, b: u32) -> bool {
        !self.cuts.contains_key(&(a.min(b), a.max(b)))
    }

    /// A node's power fails: what it does ends, its disk decides, its connections break. Its tasks are the caller's.
    pub(super) fn crash(&mut self, node: u32, table: &mut Table) {
        let lost: Vec<Key> = self.under_way.iter().filter(|(_, at)| **at == node).map(|(key, _)| *key).collect();
        for key in &lost {
            if let Some(Request::Write { file, from, offset }) = table.request(*key)
                && let Some(Handle::File(open)) = self.handles.get(&file)
            {
                let (inode, disk) = (open.inode, &mut self.nodes[node as usize].disk);
                disk.tear_write(inode, offset, from, &mut self.dice);
            }
            self.finish(*key, -libc::ECANCELED);
        }
        self.nodes[node as usize].disk.crash(&mut self.dice);
        self.nodes[node as usize].alive = false;
        let fds: Vec<RawFd> =
            self.handles.iter().filter(|(_, handle)| handle.node() == node).map(|(fd, _)| *fd).collect();
        for fd in fds {
            self.crash_socket(fd);
            self.handles.remove(&fd);
        }
    }

    /// A node's process is killed: what it does ends, and so do its connections. Its tasks are the caller's.
    fn kill(&mut self, node: u32, table: &mut Table) {
        let ended: Vec<Key> = self.under_way.iter().filter(|(_, at)| **at == node).map(|(key, _)| *key).collect();
        for key in ended {
            if self.dice.chance(50)
                && let Some(request) = table.request(key).filter(Request::is_on_disk)
            {
                let _ = self.perform_on_disk(node, request); // nobody is left who would hear of it
            }
            self.finish(key, -libc::ECANCELED);
        }
        let open: Vec<RawFd> =
            self.handles.iter().filter(|(_, handle)| handle.node() == node).map(|(fd, _)| *fd).collect();
        for fd in open {
            self.close(fd);
        }
    }

    /// Counts a step that a node is about to take. False: it fails here, and does not take it.
    pub(crate) fn step(&mut self, node: u32, table: &mut Table) -> bool {
        let there = &mut self.nodes[node as usize];
        let Some((_, failure)) = there.doom.filter(|(at, _)| there.steps >= *at) else {
            there.steps += 1;
            return true;
        };
        (there.doom, there.has_failed) = (None, true);
        match failure {
            Failure::Killed => self.kill(node, table),
            Failure::PowerCut => self.crash(node, table),
        }
        self.failed.push(node);
        false
    }

    /// Keeps a task that is ready, if its node is frozen.
    pub(crate) fn hold_back(&mut self, node: u32, task: TaskKey) -> bool {
        let held_back = self.held_back.get_mut(&node);
        held_back.map(|tasks| tasks.push(task)).is_some()
    }

    pub(super) fn image_of_disk(&mut self, node: u32) -> Disk {
        let mut disk = self.nodes[node as usize].disk.clone();
        disk.crash(&mut self.dice);
        disk
    }

    pub(super) fn freeze(&mut self, node: u32) {
        self.held_back.entry(node).or_default();
    }

    /// Ends a freeze. Returns the tasks that are ready.
    pub(super) fn thaw(&mut self, node: u32) -> Vec<TaskKey> {
        self.held_back.remove(&node).unwrap_or_default()
    }

    /// Nodes that failed, whose tasks are to be dropped.
    pub(crate) fn take_failed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.failed)
    }

    fn close(&mut self, fd: RawFd) {
        match self.handles.remove(&fd) {
            Some(Handle::File(file)) => self.nodes[file.node as usize].disk.close(file.inode),
            Some(Handle::Socket(socket)) => self.close_socket(socket),
            Some(Handle::Listening(listening)) => self.close_listening(listening),
            None => {} // its node crashed
        }
    }

    fn happen(&mut self, event: Event, table: &mut Table) {
        match event {
            Event::Perform(key) => self.perform(key, table),
            Event::Finish(key, result) => self.finish(key, result),
            Event::Deliver { connection, end } => self.deliver(connection, end),
            Event::GiveUp { connection, cut } => self.give_up(connection, cut),
            Event::SettleNames { node } => {
                let settled = self.now.saturating_sub(super::micros(*self.settings.names_settle.start()));
                self.nodes[node as usize].disk.settle_until(settled);
            }
        }
    }

    fn perform(&mut self, key: Key, table: &mut Table) {
        let Some(node) = self.node_of(key) else { return };
        let Some(request) = table.request(key) else { return };
        if self.hangs(node, &request) {
            return self.schedule(HANG_LOOK_MICROS, Event::Perform(key));
        }
        let counts = request.is_on_disk() || matches!(request, Request::Send { .. });
        if counts && !self.step(node, table) {
            return;
        }
        let Some(request) = table.request(key) else { return };
        let result = match request {
            Request::Accept { socket } => self.accept(key, socket),
            Request::Connect { socket, to } => self.connect(key, node, socket, to),
            Request::Receive { socket, into } => self.receive(key, socket, into),
            Request::Send { socket, parts } => self.send(key, socket, parts),
            request => Some(self.perform_on_disk(node, request).unwrap_or_else(|error| -error)),
        };
        if let Some(result) = result {
            self.finish(key, result);
        }
    }
}

impl Handle {
    fn node(&self) -> u32 {
        match self {
            Handle::Listening(listening) => listening.node,
            Handle::Socket(socket) => socket.node,
            Handle::File(file) => file.node,
        }
    }
}

/// The driver of a simulated world, for all its nodes.
pub(super) struct SimDriver {
    pub(super) state: SharedState,
    /// Cancelled operations: noted here, since a cancel may come while the state is in use.
    pub(super) cancelled: BTreeSet<Key>,
}

impl Driver for SimDriver {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn submit(&mut self, key: Key, node: u32, op: Op) {
        let mut state = self.state.borrow_mut();
        state.under_way.insert(key, node);
        if !state.nodes[node as usize].alive {
            return state.finish(key, -libc::ESHUTDOWN);
        }
        let delay = match op {
            Op::Accept { .. } | Op::Receive { .. } | Op::Send { .. } | Op::SendParts { .. } => 0,
            Op::Connect { .. } => {
                let range = state.settings.net_delay.clone();
                state.dice.micros(&range)
            }
            _ => state.disk_delay(node, op),
        };
        state.schedule(delay, Event::Perform(key));
    }

    fn cancel(&mut self, key: Key) {
        self.cancelled.insert(key);
    }

    fn close(&mut self, fd: RawFd) {
        self.state.borrow_mut().close(fd);
    }

    fn forget_socket(&mut self, _fd: RawFd) {}

    fn park(&mut self, wait: Wait, table: &RefCell<Table>, finished: &mut Vec<(Key, i32)>) {
        let state = &mut *self.state.borrow_mut();
        let mut table = table.borrow_mut();
        for key in std::mem::take(&mut self.cancelled) {
            // Work on a disk goes on, as it does in a real one; waiting for the network ends.
            if state.stop_waiting(key) {
                state.finish(key, -libc::ECANCELED);
            }
        }
        let next = state.events.first_key_value().map(|((time, _), _)| *time);
        match wait {
            _ if !state.finished.is_empty() => {}
            // A turn takes time, so that tasks that only yield cannot stop the clock.
            Wait::Not => state.now += 1,
            Wait::Until(deadline) => {
                let deadline = deadline.map(Instant::as_micros);
                if let Some(target) = next.into_iter().chain(deadline).min() {
                    state.now = state.now.max(target);
                }
            }
        }
        while let Some(first) = state.events.first_entry() {
            if first.key().0 > state.now {
                break;
            }
            let event = first.remove();
            state.happen(event, &mut table);
        }
        finished.append(&mut state.finished);
    }

    fn call(&mut self, call: Box<dyn FnOnce() + Send>) {
        call();
    }

    fn wants_nonblocking_sockets(&self) -> bool {
        false
    }
}

/// Nothing will ever happen again, unless a task or a timer does something.
pub(super) fn is_quiet(state: &State) -> bool {
    state.events.is_empty() && state.finished.is_empty()
}

impl State {
    fn disk_delay(&mut self, node: u32, op: Op) -> u64 {
        let range = self.settings.disk_delay.clone();
        let mut delay = self.dice.micros(&range);
        if matches!(op, Op::Sync { .. }) {
            delay += self.dice.micros(&range); // a flush takes longer
        }
        let slow: u64 = self.nodes[node as usize]
            .faults
            .iter()
            .map(|(_, fault)| if let DiskFault::Slow(by) = fault { super::micros(*by) } else { 0 })
            .sum();
        delay + slow
    }

    /// Schedules that the names which were just changed become durable some time.
    pub(super) fn settle_names_later(&mut self, node: u32) {
        let range = self.settings.names_settle.clone();
        let after = self.dice.micros(&range);
        self.schedule(after + 1, Event::SettleNames { node });
    }

    pub(super) fn add_node(&mut self, ip: Ipv4Addr) -> u32 {
        let number = u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes");
        assert!(self.nodes.iter().all(|node| node.ip != ip), "{ip} is another node's address");
        let disk = Disk::new(self.settings.disk_bytes);
        let node = Node {
            ip,
            alive: true,
            disk,
            faults: Vec::new(),
            clock_skew_micros: 0,
            next_port: 40_000,
            steps: 0,
            doom: None,
            has_failed: false,
        };
        self.nodes.push(node);
        number
    }

    pub(super) fn advance_to(&mut self, time: Instant) {
        self.now = self.now.max(time.as_micros());
    }

    pub(super) fn after(&self, duration: Duration) -> Instant {
        self.now() + duration
    }
}
