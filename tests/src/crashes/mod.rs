//! A master that fails at any await point of its life, and what must be there when it is started again.
//!
//! The life: an empty folder, the first start, users who change all that can be changed, hours that end (the journal
//! rotates, an image is written, old generations go), a stop in order and a second start. It is played once to count
//! the master's steps ([`ring::sim`] says what a step is) and once to see what is to be seen after each change; then
//! it is played again and ends at a step: the process is killed there, or the power fails. The master is started once
//! more from the same disk, perhaps fails again meanwhile, and then
//!
//! - it starts, without anybody's help;
//! - all that was acknowledged is to be seen, in order, and of the one change that was not either all or nothing;
//! - sessions go on, and so do locks and open files;
//! - every image that lies there and the journal behind it give the same digest as the master's last image;
//! - a metalogger that followed all the time has put nothing aside, and what it keeps gives that digest, too.

mod peer;
mod script;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use daemons::signals::Wish;
use daemons::{master, metalogger};
use meta::{Namespace, Policy, journal};
use ring::sim::{Failure, NodeId, World};
use ring::{Instant, JoinHandle, Ring};
use wire::{CltomaFuseFlock, CltomaFuseMkdir, CltomaFuseReadChunk, Gids, Inode, MatoclFuseLookup, MatoclFuseReadChunk};
use wire::{CltomaFuseOpen, Status};

use crate::workload::Broken;
use peer::{CHUNKSERVER, Held, MASTER, Peer, serve_chunks};
use script::{Board, Eye, Script, Wanted, crowd, list, lookup, name};

const LOGGER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 12);
const USERS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 21), Ipv4Addr::new(10, 0, 0, 22)];
const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 23);

const DATA: &str = "/data";
const KEPT: &str = "/kept";
/// The second in which the hour ends begins so long after the clock was set.
const BEFORE_THE_HOUR: Duration = Duration::from_millis(8);
/// A master that was started again and has not met its second failure by then goes on without.
const SECOND_FAILURE_WAIT: Duration = Duration::from_millis(400);
/// For the metalogger to come back and fetch what it misses.
const CALM: Duration = Duration::from_millis(1500);
/// In front of an image that a metalogger keeps, and behind it. Spec 42, 5.1.
const WRAPPED_HEAD_BYTES: usize = 40;
const WRAPPED_TAIL_BYTES: usize = 16;

/// How the master is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub seed: u64,
    /// BACK_LOGS.
    pub journals_kept: u32,
    /// BACK_META_KEEP_PREVIOUS.
    pub images_kept: u32,
    /// A new file system is asked for by a file `MFSM NEW`, else by an option of every start.
    pub asked_by_file: bool,
}

/// Where the master fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// Steps that it takes before.
    pub step: u64,
    pub failure: Failure,
    /// The same for the start after that.
    pub again: Option<(u64, Failure)>,
}

/// A life without failures.
pub struct Reference {
    setup: Setup,
    /// Steps of the master.
    pub steps: u64,
    /// Those of them that end with a master that serves for the first time.
    pub first_start_steps: u64,
    /// What was to be seen after each change of the first user, and what that was; the state in front of all comes first.
    states: Vec<(&'static str, String)>,
}

/// What one failure came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Failures that happened: one or two.
    pub failures: usize,
    /// Changes that had been acknowledged before the first.
    pub acknowledged: usize,
    /// The change that was not acknowledged is there.
    pub went_on: bool,
    /// Generations that were replayed to the master's digest, the metalogger's included.
    pub replays: usize,
    /// Steps of the master between the second start and the end of the checks.
    pub steps_after: u64,
}

impl Reference {
    /// Plays the life twice.
    pub fn play(setup: Setup) -> Result<Reference, Broken> {
        let mut counting = Stage::new(setup);
        let begin = counting.world.steps(counting.master);
        counting.play()?;
        let steps = counting.world.steps(counting.master) - begin;
        let first_start_steps = counting.served_at - begin;
        counting.settle_and_compare()?;

        let mut observed = Stage::new(setup);
        observed.board.observing.set(true);
        observed.play()?;
        let states = observed.board.states.take();
        assert_eq!(states.len(), observed.board.acknowledged.get() + 1, "one state for each change");
        for pair in states.windows(2) {
            let may_be_hidden = matches!(pair[1].0, "write begins" | "lock");
            assert!(may_be_hidden || pair[0].1 != pair[1].1, "{} is not to be seen", pair[1].0);
        }
        Ok(Reference { setup, steps, first_start_steps, states })
    }

    /// Changes of the first user.
    pub fn changes(&self) -> usize {
        self.states.len() - 1
    }

    /// Plays the life up to this point, and what comes then. Errors: the promise that was broken.
    pub fn fail_at(&self, point: Point) -> Result<Outcome, Broken> {
        let mut stage = Stage::new(self.setup);
        let begin = stage.world.steps(stage.master);
        stage.world.fail_at(stage.master, begin + point.step, point.failure);
        stage.play()?;
        let mut outcome = Outcome { acknowledged: stage.board.acknowledged.get(), ..Outcome::default() };
        if stage.has_failed() {
            outcome.failures = 1;
            stage.board.closed.set(true);
            let before = stage.start_after_failure(point.again)?;
            outcome.failures += before.1;
            outcome.went_on = stage.ask_witness(&self.states)?;
            outcome.steps_after = stage.world.steps(stage.master) - before.0;
        }
        outcome.replays = stage.settle_and_compare()?;
        Ok(outcome)
    }
}

/// The world of one life.
struct Stage {
    setup: Setup,
    world: World,
    master: NodeId,
    logger: NodeId,
    board: Rc<Board>,
    held: Rc<Held>,
    running: Option<Running>,
    /// A sender that goes away would be taken as a wish.
    wishes: Vec<ring::channel::Sender<Wish>>,
    hours: i64,
    /// Steps of the master when it served for the first time.
    served_at: u64,
}

struct Running {
    handle: JoinHandle<Result<(), master::MasterError>>,
    ready: Rc<Cell<bool>>,
    since: Instant,
}

impl Stage {
    fn new(setup: Setup) -> Stage {
        let world = World::new(setup.seed, ring::sim::Settings { buffers: 64, ..Default::default() });
        let (master, logger) = (world.node(MASTER), world.node(LOGGER));
        world.run(master, move |ring| async move {
            let new = setup.asked_by_file.then_some(b"MFSM NEW".as_slice());
            let exports = b"* / rw,alldirs,admin,maproot=0:0\n* . rw\n".as_slice();
            make_folder(&ring, DATA, [("exports", Some(exports)), ("metadata.mfs", new)]).await
        });
        world.run(logger, |ring| async move { make_folder(&ring, KEPT, []).await });
        let stage = Stage {
            setup,
            world,
            master,
            logger,
            board: Rc::default(),
            held: Rc::default(),
            running: None,
            wishes: Vec::new(),
            hours: 0,
            served_at: 0,
        };
        let held = stage.held.clone();
        drop(stage.world.spawn(stage.world.node(CHUNKSERVER), |ring| serve_chunks(ring, held)));
        stage
    }

    fn has_failed(&self) -> bool {
        self.world.has_failed(self.master)
    }

    /// Starts the master and waits until it serves, or has failed as ordered. Errors: it refuses.
    fn start(&mut self) -> Result<(), Broken> {
        let mut settings = master::Settings {
            data_path: DATA.into(),
            exports_path: Path::new(DATA).join("exports"),
            new_file_system: !self.setup.asked_by_file,
            journals_kept: self.setup.journals_kept,
            images_kept: self.setup.images_kept,
            ..master::Settings::default()
        };
        settings.chunks.stable_after_seconds = 0;
        let (sender, wishes) = ring::channel::channel();
        self.wishes.push(sender);
        let ready = Rc::new(Cell::new(false));
        let is_ready = ready.clone();
        let serve = |ring: Ring| master::run(ring, settings, wishes, move || is_ready.set(true));
        let handle = self.world.spawn(self.master, serve);
        self.world.run_until(|| ready.get() || handle.is_finished());
        let since = self.world.now();
        self.running = Some(Running { handle, ready, since });
        self.see_whether_it_runs()
    }

    /// Errors: the master ended by itself.
    fn see_whether_it_runs(&mut self) -> Result<(), Broken> {
        let Some(running) = &mut self.running else { return Ok(()) };
        if running.handle.is_finished() && !self.world.has_failed(self.master) {
            let context = &mut Context::from_waker(Waker::noop());
            let Poll::Ready(Some(ended)) = Pin::new(&mut running.handle).poll(context) else { return Ok(()) };
            let names = self.world.names(self.master, Path::new(DATA)).unwrap_or_default();
            let text = ended.map_or_else(|error| error.to_string(), |()| "it ended".to_owned());
            return Err(Broken(format!("the master does not run: {text}; in its folder: {names:?}")));
        }
        assert!(running.ready.get() || self.world.has_failed(self.master), "it serves, or it failed");
        Ok(())
    }

    /// The whole life, or as much of it as the master lives.
    fn play(&mut self) -> Result<(), Broken> {
        self.follow();
        self.start()?;
        self.served_at = self.world.steps(self.master);
        let board = &self.board;
        drop(self.world.spawn(self.world.node(USERS[0]), |ring| Script::run(ring, board.clone())));
        drop(self.world.spawn(self.world.node(USERS[1]), |ring| crowd(ring, board.clone())));
        while !self.has_failed() {
            let wants = || self.board.wanted.get().is_some() || self.board.finished.get();
            let ended = || self.running.as_ref().is_some_and(|running| running.handle.is_finished());
            self.world.run_until(|| self.has_failed() || wants() || ended());
            self.see_whether_it_runs()?;
            if self.board.finished.get() {
                break;
            }
            match self.board.wanted.get() {
                Some(Wanted::Hour) => self.end_hour(),
                Some(Wanted::Restart) => {
                    self.stop()?;
                    if !self.has_failed() {
                        self.start()?;
                    }
                }
                None => {}
            }
            self.board.wanted.set(None);
        }
        self.board.closed.set(true);
        Ok(())
    }

    /// A metalogger, for the whole life.
    fn follow(&mut self) {
        let settings = metalogger::Settings {
            data_path: KEPT.into(),
            master_host: MASTER.to_string(),
            master_port: 9419,
            bind_ip: None,
            master_timeout_sec: 10,
            reconnection_delay: Duration::from_millis(50),
            journals_kept: 50,
            images_kept: 3,
            image_every_hours: 1,
        };
        let (sender, wishes) = ring::channel::channel();
        self.wishes.push(sender);
        drop(self.world.spawn(self.logger, move |ring| async move {
            let outcome = metalogger::run(ring, settings, None, wishes, || {}).await;
            panic!("the metalogger ended by itself: {outcome:?}");
        }));
    }

    /// Shortly before the master looks at its clock, that is put forward by an hour.
    fn end_hour(&mut self) {
        let Some(running) = &self.running else { return };
        let into_second = self.world.now().saturating_duration_since(running.since).subsec_micros();
        let ahead = Duration::from_secs(1).saturating_sub(Duration::from_micros(into_second.into()));
        let end = self.world.now() + ahead.saturating_sub(BEFORE_THE_HOUR);
        self.world.run_until(|| self.has_failed() || self.world.now() >= end);
        self.hours += 1;
        self.world.skew_clock(self.master, self.hours * 3_600_000_000);
    }

    /// Stops the master in order, unless it fails meanwhile.
    fn stop(&mut self) -> Result<(), Broken> {
        let Some(running) = self.running.take() else { return Ok(()) };
        let sender = self.wishes.pop().expect("the last one is this master's");
        let sent = sender.send(Wish::Stop);
        assert!(sent.is_ok() || self.has_failed(), "it listens");
        let end = self.world.now() + Duration::from_secs(60);
        self.world.run_until(|| running.handle.is_finished() || self.world.now() >= end);
        if running.handle.is_finished() { Ok(()) } else { Err(Broken("the master does not stop".into())) }
    }

    /// Starts the master from what the failure left. Gives its steps before that, and how many failures there were then.
    fn start_after_failure(&mut self, again: Option<(u64, Failure)>) -> Result<(u64, usize), Broken> {
        self.world.run_for(Duration::from_millis(20));
        self.world.restart(self.master);
        let mut before = self.world.steps(self.master);
        let mut failures = 0;
        if let Some((step, failure)) = again {
            self.world.fail_at(self.master, before + step, failure);
        }
        self.start()?;
        if again.is_some() {
            let end = self.world.now() + SECOND_FAILURE_WAIT;
            self.world.run_until(|| self.has_failed() || self.world.now() >= end);
            if self.has_failed() {
                failures = 1;
                self.world.run_for(Duration::from_millis(20));
                self.world.restart(self.master);
                before = self.world.steps(self.master);
                self.start()?;
            }
            self.world.restart(self.master); // without the failure that did not come
        }
        Ok((before, failures))
    }

    /// All that can be seen from outside. Gives whether the change in doubt is there.
    fn ask_witness(&mut self, states: &[(&'static str, String)]) -> Result<bool, Broken> {
        let board = self.board.clone();
        let states: Vec<_> = states.iter().skip(board.acknowledged.get()).take(2).cloned().collect();
        let node = self.world.node(WITNESS);
        let user = self.world.ring(self.world.node(USERS[0]));
        let seen = self.world.run(node, |ring| async move { witness(&ring, user, &board, &states).await });
        self.see_whether_it_runs()?;
        seen.ok_or_else(|| Broken("the witness gets no answer".into()))?
    }

    /// Stops the master, and compares all that lies on both disks. Gives how many generations were replayed.
    fn settle_and_compare(&mut self) -> Result<usize, Broken> {
        self.world.run_for(CALM);
        self.stop()?;
        self.world.run_for(Duration::from_millis(500));
        let all = self.files(self.master, DATA);
        let image = all.get("metadata.mfs").ok_or_else(|| Broken("a stop in order leaves no image".into()))?;
        let stopped = load(image).map_err(|error| Broken(format!("the image of the stop: {error}")))?;
        let lines = lines_of(&all)?;
        let mut replays = 0;
        for (file, bytes) in all.iter().filter(|(file, _)| file.starts_with("metadata.mfs")) {
            // With so few journals kept, older images are there for those who want an old state.
            if self.setup.journals_kept >= 2 || file == "metadata.mfs" {
                let image = load(bytes).map_err(|error| Broken(format!("{file}: {error}")))?;
                compare(file, image, &lines, &stopped)?;
                replays += 1;
            }
        }
        let kept = self.files(self.logger, KEPT);
        if let Some(aside) = kept.keys().find(|file| file.starts_with("set-aside")) {
            return Err(Broken(format!("the metalogger takes the master for another one: {aside}")));
        }
        let wrapped = kept.get("metadata_ml.mfs.back").ok_or_else(|| Broken("the metalogger has no image".into()))?;
        let image = &wrapped[WRAPPED_HEAD_BYTES..wrapped.len() - WRAPPED_TAIL_BYTES];
        let image = load(image).map_err(|error| Broken(format!("the metalogger's image: {error}")))?;
        compare("what the metalogger keeps", image, &lines_of(&kept)?, &stopped)?;
        Ok(replays + 1)
    }

    /// Names and contents of the files in a folder, folders with nothing in them.
    fn files(&self, node: NodeId, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let names = self.world.names(node, Path::new(folder)).unwrap_or_default();
        let file = |file: std::ffi::OsString| {
            let path: PathBuf = Path::new(folder).join(&file);
            let bytes = self.world.contents(node, &path).unwrap_or_default();
            (file.to_string_lossy().into_owned(), bytes)
        };
        names.into_iter().map(file).collect()
    }
}

async fn make_folder<const COUNT: usize>(ring: &Ring, path: &str, files: [(&str, Option<&[u8]>); COUNT]) {
    let sound = "the disk of a new node is sound and empty";
    ring.mkdir(Path::new(path), 0o755).await.expect(sound);
    ring.sync_dir(Path::new("/")).await.expect(sound);
    for (file, bytes) in files {
        if let Some(bytes) = bytes {
            ring.write_file_durably(&Path::new(path).join(file), 0o644, bytes.to_vec()).await.expect(sound);
        }
    }
}

fn load(image: &[u8]) -> Result<Namespace, String> {
    meta::image::load(image, Policy::default()).map_err(|error| error.to_string())
}

/// All lines of the journal files among these, by version. Errors: two files have different lines.
fn lines_of(files: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<u64, Vec<u8>>, Broken> {
    let mut lines: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (file, bytes) in files.iter().filter(|(file, _)| file.starts_with("changelog")) {
        for part in journal::parts(bytes) {
            for line in bytes[part.bytes].split_inclusive(|byte| *byte == b'\n') {
                let version = journal::line_version(line).expect("it was parsed");
                if lines.insert(version, line.to_vec()).is_some_and(|other| other != line) {
                    return Err(Broken(format!("{file} has another change {version} than a file before it")));
                }
            }
        }
    }
    Ok(lines)
}

/// An image and the lines behind it give the state in which the master was stopped.
fn compare(
    what: &str,
    mut image: Namespace,
    lines: &BTreeMap<u64, Vec<u8>>,
    stopped: &Namespace,
) -> Result<(), Broken> {
    let from = image.version();
    while let Some(line) = lines.get(&image.version()) {
        let replayed = image.replay_lines(line);
        replayed.map_err(|error| Broken(format!("{what}: change {}: {error}", image.version())))?;
    }
    if (image.version(), image.digest()) != (stopped.version(), stopped.digest()) {
        return Err(Broken(format!(
            "{what} of version {from} comes to version {} and digest {}, the master stopped at version {} with digest {}",
            image.version(),
            image.digest(),
            stopped.version(),
            stopped.digest()
        )));
    }
    Ok(())
}

/// What was acknowledged is there. `states`: the state after the last change that was, and after the next one.
async fn witness(ring: &Ring, user: Ring, board: &Board, states: &[(&'static str, String)]) -> Result<bool, Broken> {
    let refused = |what: &'static str| move |status: Status| Broken(format!("{what}: {status}"));
    let mut eye = Eye::open(ring).await.map_err(refused("nobody can register"))?;
    let seen = eye.look().await.map_err(refused("nobody can look"))?;
    let found = states.iter().position(|(_, state)| *state == seen);
    let Some(found) = found else {
        let mut text = "what is to be seen is neither the state after".to_owned();
        for (what, state) in states {
            text += &format!(" `{what}` nor\n{state}\n");
        }
        return Err(Broken(format!("{text}\nit is\n{seen}")));
    };

    // The second user's files: those that were acknowledged, and a part of the next ones, in order.
    let files = match eye.peer.get(&lookup(Inode::ROOT, "b")).await {
        Err(Status::ENOENT) => Vec::new(),
        other => {
            let folder: MatoclFuseLookup = other.map_err(refused("/b"))?;
            list(&mut eye.peer, folder.inode).await.map_err(refused("/b"))?
        }
    };
    let mut numbers: Vec<u32> = Vec::new();
    numbers.extend(files.iter().filter_map(|file| String::from_utf8_lossy(file.name.as_bytes()).parse::<u32>().ok()));
    numbers.sort_unstable();
    if (numbers.len() as u32) < board.files.get() || numbers.iter().zip(0..).any(|(number, at)| *number != at) {
        return Err(Broken(format!("{} files were acknowledged, there are {numbers:?}", board.files.get())));
    }

    // Chunks that were written to the end, unless the change in doubt is about that file.
    let written = board.written.borrow().clone();
    for (inode, (chunk, length)) in written {
        let packet = CltomaFuseReadChunk { msgid: 1, inode, index: 0, chunkopflags: Some(0) };
        let mut tries = 0;
        loop {
            let read: Result<MatoclFuseReadChunk, Status> = eye.peer.get(&packet).await;
            match read {
                Ok(read) if !read.locations.is_empty() => {
                    let next = states.get(1).map_or("", |state| state.0);
                    let in_doubt = matches!(next, "write begins" | "write" | "truncate" | "append");
                    if !in_doubt && (read.chunkid != chunk || read.length < length) {
                        return Err(Broken(format!("{read:?} of {inode} instead of chunk {chunk}, {length} bytes")));
                    }
                    break;
                }
                _ if tries < 100 => ring.sleep(Duration::from_millis(50)).await,
                other => return Err(Broken(format!("chunk {chunk} of {inode} cannot be read: {other:?}"))),
            }
            tries += 1;
        }
    }

    // The user comes back.
    if let Some(session) = board.session.get() {
        let mut user = Peer::reconnect(&user, session, || true).await.map_err(refused("the session is lost"))?;
        if let Some(inode) = board.locked.get() {
            let lock = |cmd| CltomaFuseFlock { msgid: 1, inode, reqid: 2, owner: 7, cmd };
            let open = CltomaFuseOpen { msgid: 1, inode, uid: 0, gids: Gids::list(&[0]), flags: 3 };
            let opened = eye.peer.order(&open).await;
            // It may be in the trash by now; then nobody opens it anew.
            if opened.is_ok() {
                let tried = eye.peer.order(&lock(3)).await;
                if tried != Err(Status::EAGAIN) {
                    return Err(Broken(format!("a lock that is held is given to another: {tried:?}")));
                }
            }
            user.order(&lock(0)).await.map_err(refused("the owner cannot unlock"))?;
            if opened.is_ok() {
                eye.peer.order(&lock(3)).await.map_err(refused("a free lock"))?;
            }
        }
        let (name, uid, gids) = (name("after"), 0, Gids::list(&[0]));
        let packet =
            CltomaFuseMkdir { msgid: 1, parent: Inode::ROOT, name, mode: 0o755, umask: 0, uid, gids, copysgid: 0 };
        user.order(&packet).await.map_err(refused("no change after the failure"))?;
    }
    Ok(found == 1)
}
