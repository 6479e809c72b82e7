//! The handle on a world: nodes, time, and accidents to order.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::OsString;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use super::disk::Disk;
use super::state::{SharedState, SimDriver, State, is_quiet};
use super::{DiskFault, Failure, Settings};
use crate::core::Core;
use crate::remote::{Entered, Remote, TaskKey};
use crate::sys::arena::Pool;
use crate::time::Instant;
use crate::{JoinHandle, Ring};

/// `run_until` gives up after this much virtual time.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// A node of a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(u32);

/// What a disk holds, for [`World::replace_disk`].
pub struct DiskImage(Disk);

/// A simulated world. Same seed and same calls, same run.
pub struct World {
    core: Rc<Core>,
    state: SharedState,
    seed: u64,
    by_address: RefCell<BTreeMap<Ipv4Addr, NodeId>>,
    /// Tasks that were ready when the last run ended.
    ready: RefCell<VecDeque<TaskKey>>,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64, settings: Settings) -> World {
        let pool = Pool::new(settings.buffers).expect("memory for the buffers of a simulation");
        let state = Rc::new(RefCell::new(State::new(seed, settings)));
        let driver = SimDriver { state: state.clone(), cancelled: BTreeSet::new() };
        let core = Core::new(Box::new(driver), Remote::new(None), pool, Some(state.clone()));
        World { core, state, seed, by_address: RefCell::default(), ready: RefCell::default() }
    }

    /// The seed, for the message of a failing test.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The node with an address; made, switched on and with an empty disk, if there is none yet. 127/8 is every
    /// node's way to itself.
    pub fn node(&self, ip: Ipv4Addr) -> NodeId {
        let mut nodes = self.by_address.borrow_mut();
        *nodes.entry(ip).or_insert_with(|| NodeId(self.state.borrow_mut().add_node(ip)))
    }

    /// The handle that tasks of a node use.
    pub fn ring(&self, node: NodeId) -> Ring {
        Ring { core: self.core.clone(), node: node.0 }
    }

    /// Starts a task on a node. It first runs in the next `run_...`.
    pub fn spawn<F, Fut>(&self, node: NodeId, task: F) -> JoinHandle<Fut::Output>
    where
        F: FnOnce(Ring) -> Fut,
        Fut: Future + 'static,
    {
        let ring = self.ring(node);
        ring.spawn(task(ring.clone()))
    }

    /// Starts a task on a node and runs the world until it has ended. None: it was dropped by a crash, or nothing
    /// happens any more.
    pub fn run<F, Fut>(&self, node: NodeId, task: F) -> Option<Fut::Output>
    where
        F: FnOnce(Ring) -> Fut,
        Fut: Future + 'static,
    {
        let mut handle = self.spawn(node, task);
        if !self.run_until(|| handle.is_finished()) {
            return None;
        }
        let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::Pin::new(&mut handle).poll(context) {
            std::task::Poll::Ready(output) => output,
            std::task::Poll::Pending => None,
        }
    }

    /// Lets virtual time pass.
    pub fn run_for(&self, duration: Duration) {
        let end = self.state.borrow().after(duration);
        self.turn_until(end, &mut || false);
        self.state.borrow_mut().advance_to(end);
    }

    /// Runs until `predicate` holds, which is asked after every turn. False: it does not hold and nothing will happen
    /// any more, or a virtual day has passed.
    pub fn run_until(&self, mut predicate: impl FnMut() -> bool) -> bool {
        if predicate() {
            return true;
        }
        let end = self.state.borrow().after(PATIENCE);
        let mut holds = false;
        self.turn_until(end, &mut || {
            holds = predicate();
            holds
        });
        holds
    }

    fn turn_until(&self, end: Instant, is_enough: &mut dyn FnMut() -> bool) {
        let entered = Entered::new(&self.core.remote);
        entered.with_ready(|ready| ready.append(&mut self.ready.borrow_mut()));
        while self.now() < end {
            self.core.turn(&entered, Some(end), &mut || false);
            if is_enough() || self.is_stuck(&entered) {
                break;
            }
        }
        *self.ready.borrow_mut() = entered.leave();
    }

    fn is_stuck(&self, entered: &Entered) -> bool {
        let no_timers = self.core.timers.borrow().first().is_none();
        no_timers && is_quiet(&self.state.borrow()) && entered.with_ready(|ready| ready.is_empty())
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Instant {
        self.state.borrow().now()
    }

    /// One number for all that has happened so far: two runs that agree in it went the same way.
    pub fn trace(&self) -> u64 {
        self.state.borrow().trace()
    }

    /// A number from the world's dice, for tests that decide by the same seed.
    pub fn random_below(&self, bound: u64) -> u64 {
        self.state.borrow_mut().random_below(bound)
    }

    /// The power of a node fails: its tasks are dropped, its connections break, its disk keeps what was synced and
    /// some of the rest.
    pub fn crash(&self, node: NodeId) {
        self.state.borrow_mut().crash(node.0, &mut self.core.table.borrow_mut());
        self.core.drop_tasks(Some(node.0));
    }

    /// Switches a node on that crashed or failed. Its tasks are to be spawned anew.
    pub fn restart(&self, node: NodeId) -> Ring {
        self.state.borrow_mut().thaw(node.0);
        let there = &mut self.state.borrow_mut().nodes[node.0 as usize];
        (there.alive, there.has_failed, there.doom) = (true, false, None);
        self.ring(node)
    }

    /// Steps that a node has taken: see the head of this module.
    pub fn steps(&self, node: NodeId) -> u64 {
        self.state.borrow().nodes[node.0 as usize].steps
    }

    /// Once the node has taken so many steps, it fails instead of taking the next one.
    pub fn fail_at(&self, node: NodeId, steps: u64, failure: Failure) {
        self.state.borrow_mut().nodes[node.0 as usize].doom = Some((steps, failure));
    }

    /// What was ordered by `fail_at` has happened, and the node was not restarted since.
    pub fn has_failed(&self, node: NodeId) -> bool {
        self.state.borrow().nodes[node.0 as usize].has_failed
    }

    /// Ends a node's tasks and connections as a killed process does: its disk loses nothing.
    pub fn kill(&self, node: NodeId) {
        self.core.drop_tasks(Some(node.0));
    }

    /// Stops a node's process, as SIGSTOP does: none of its tasks goes on until [`World::thaw`], while its kernel takes
    /// connections and bytes and finishes what was asked of the disk.
    pub fn freeze(&self, node: NodeId) {
        self.state.borrow_mut().freeze(node.0);
    }

    /// A frozen node goes on.
    pub fn thaw(&self, node: NodeId) {
        let ready = self.state.borrow_mut().thaw(node.0);
        self.ready.borrow_mut().extend(ready);
    }

    /// The disk of a node as a copy of its device would show it now: what was synced, and some of the rest.
    pub fn image_of_disk(&self, node: NodeId) -> DiskImage {
        DiskImage(self.state.borrow_mut().image_of_disk(node.0))
    }

    /// An operator puts another device into a node, which is to be switched off: it holds what the image has.
    pub fn replace_disk(&self, node: NodeId, image: &DiskImage) {
        let there = &mut self.state.borrow_mut().nodes[node.0 as usize];
        assert!(!there.alive, "a disk is replaced while its node is off");
        let capacity_bytes = there.disk.capacity_bytes;
        there.disk = image.0.clone();
        there.disk.capacity_bytes = capacity_bytes;
    }

    /// Bytes that the files of a node's disk take.
    pub fn used_disk_bytes(&self, node: NodeId) -> u64 {
        self.state.borrow().nodes[node.0 as usize].disk.used_bytes()
    }

    /// Nothing reaches one node from the other, until `heal`. Connections that stay cut end with an error.
    pub fn cut(&self, a: NodeId, b: NodeId) {
        self.state.borrow_mut().cut(a.0, b.0);
    }

    /// Ends a cut: what was under way arrives.
    pub fn heal(&self, a: NodeId, b: NodeId) {
        self.state.borrow_mut().heal(a.0, b.0);
    }

    /// Sets a node's wall clock ahead or back.
    pub fn skew_clock(&self, node: NodeId, micros: i64) {
        self.state.borrow_mut().nodes[node.0 as usize].clock_skew_micros = micros;
    }

    /// From now on this is wrong with all files whose path starts with `prefix`.
    pub fn break_disk(&self, node: NodeId, prefix: &Path, fault: DiskFault) {
        self.state.borrow_mut().nodes[node.0 as usize].faults.push((prefix.to_owned(), fault));
    }

    /// Ends all faults of a node's disk.
    pub fn mend_disk(&self, node: NodeId) {
        self.state.borrow_mut().nodes[node.0 as usize].faults.clear();
    }

    /// Changes the size of a node's disk.
    pub fn set_disk_bytes(&self, node: NodeId, bytes: u64) {
        self.state.borrow_mut().nodes[node.0 as usize].disk.capacity_bytes = bytes;
    }

    /// The medium alters a byte of a file: it is XORed with `mask`.
    pub fn rot(&self, node: NodeId, path: &Path, offset: u64, mask: u8) -> io::Result<()> {
        let disk = &mut self.state.borrow_mut().nodes[node.0 as usize].disk;
        disk.find(path).and_then(|inode| disk.rot(inode, offset, mask)).map_err(io::Error::from_raw_os_error)
    }

    /// Names in a folder, in their order.
    pub fn names(&self, node: NodeId, path: &Path) -> io::Result<Vec<OsString>> {
        let disk = &self.state.borrow().nodes[node.0 as usize].disk;
        let entries = disk.find(path).and_then(|folder| disk.list(folder)).map_err(io::Error::from_raw_os_error)?;
        Ok(entries.into_iter().map(|(name, _)| name).collect())
    }

    /// What a file holds now.
    pub fn contents(&self, node: NodeId, path: &Path) -> io::Result<Vec<u8>> {
        let disk = &self.state.borrow().nodes[node.0 as usize].disk;
        disk.find(path).and_then(|inode| disk.contents(inode)).map_err(io::Error::from_raw_os_error)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Tasks hold handles on the core, which holds the tasks.
        self.core.drop_tasks(None);
        // So does what their operations under way keep.
        let orphans = self.core.table.borrow_mut().take_orphans();
        drop(orphans);
    }
}
