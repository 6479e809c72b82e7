//! The core of a mount: requests in, answers out, on one core.
//!
//! Transports put requests into a channel; [`serve`] starts a task for each and sends what the file system answers
//! back through the transport. Which file system stands behind is [`FuseOps`]'s affair, which transport in front is
//! [`Transport`]'s.
//!
//! **Interruption.** A signal for a process that waits for us arrives as a request of its own. Programs do not expect
//! EINTR from opening or reading a file, so a signal that the process survives ends only a wait for a lock. A signal
//! that kills it ends whatever it waits for: the task is dropped and the kernel gets EINTR, so that a process that
//! waits for a dead cluster can be killed. Which of the two it was, /proc tells; the kernel tells us of the first
//! signal only, hence we look again until the request ends.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ring::{JoinHandle, Ring, channel};

use crate::device::Transport;
use crate::reply::{Errno, Reply};
use crate::request::{ForgetEntry, Operation, Request};

/// How often we look whether the process behind an interrupted request is being killed.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A file system: answers requests. It lives on one core.
pub trait FuseOps: 'static {
    /// Answer `request`. May be dropped at any `.await` when the caller is killed.
    fn handle(self: Rc<Self>, request: Request) -> impl Future<Output = Result<Reply, Errno>>;
    /// The kernel gives references back. No answer.
    fn forget(&self, entries: &[ForgetEntry]);
}

/// Serve requests until the last transport is gone. Requests that are still under way then end with it.
pub async fn serve<O: FuseOps>(
    ring: Ring,
    mut requests: channel::Receiver<Request>,
    transport: Arc<dyn Transport>,
    ops: Rc<O>,
) {
    let running = Rc::new(RefCell::new(HashMap::new()));
    while let Some(request) = requests.recv().await {
        match request.operation {
            Operation::Forget { entries } => ops.forget(&entries),
            Operation::Interrupt { unique } => interrupt(&ring, unique, request.unique, &running, &transport),
            Operation::Destroy => return,
            _ => start(&ring, request, &running, &transport, &ops),
        }
    }
}

/// Requests under way, by number.
type RunningTable = Rc<RefCell<HashMap<u64, Running>>>;

struct Running {
    task: Option<JoinHandle<()>>,
    pid: u32,
    /// A wait for a lock: any signal ends it.
    waits_for_lock: bool,
}

fn start<O: FuseOps>(
    ring: &Ring,
    request: Request,
    running: &RunningTable,
    transport: &Arc<dyn Transport>,
    ops: &Rc<O>,
) {
    let unique = request.unique;
    let waits_for_lock = matches!(request.operation, Operation::SetLock { wait: true, .. });
    let entry = Running { task: None, pid: request.caller.pid, waits_for_lock };
    running.borrow_mut().insert(unique, entry);
    let task = ring.spawn({
        let (running, transport, ops) = (running.clone(), transport.clone(), ops.clone());
        async move {
            let answer = ops.handle(request).await;
            running.borrow_mut().remove(&unique);
            transport.answer(unique, &answer);
        }
    });
    if let Some(entry) = running.borrow_mut().get_mut(&unique) {
        entry.task = Some(task);
    }
}

/// A signal for the process behind request `unique`; `notice` is the number of the interruption itself.
fn interrupt(ring: &Ring, unique: u64, notice: u64, running: &RunningTable, transport: &Arc<dyn Transport>) {
    let (pid, waits_for_lock) = match running.borrow().get(&unique) {
        Some(entry) => (entry.pid, entry.waits_for_lock),
        None => {
            // Answered already, which the kernel knows; or still on its way to us, then it shall ask again.
            transport.answer(notice, &Err(Errno(libc::EAGAIN)));
            return;
        }
    };
    if waits_for_lock {
        end(unique, running, transport);
        return;
    }
    ring.spawn({
        let (ring, running, transport) = (ring.clone(), running.clone(), transport.clone());
        async move {
            while running.borrow().contains_key(&unique) {
                if is_being_killed(&ring, pid).await {
                    end(unique, &running, &transport);
                    return;
                }
                ring.sleep(LOOK_AGAIN).await;
            }
        }
    });
}

/// Drop what works on request `unique` and tell the kernel that it was interrupted.
fn end(unique: u64, running: &RunningTable, transport: &Arc<dyn Transport>) {
    let entry = running.borrow_mut().remove(&unique);
    let Some(entry) = entry else { return };
    if let Some(task) = entry.task {
        task.abort();
    }
    transport.answer(unique, &Err(Errno(libc::EINTR)));
}

/// Whether thread `pid` has a SIGKILL waiting (which the kernel makes of every signal that kills) or is gone.
async fn is_being_killed(ring: &Ring, pid: u32) -> bool {
    if pid == 0 {
        return false; // not a process of ours to see, as in another pid namespace
    }
    match ring.read_file(&PathBuf::from(format!("/proc/{pid}/status"))).await {
        Ok(status) => has_kill_pending(&String::from_utf8_lossy(&status)),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Whether the text of /proc/PID/status shows a pending SIGKILL, for the thread or the process.
fn has_kill_pending(status: &str) -> bool {
    let masks = status.lines().filter_map(|line| line.strip_prefix("SigPnd:").or(line.strip_prefix("ShdPnd:")));
    let kill = 1u64 << (libc::SIGKILL - 1);
    masks.filter_map(|mask| u64::from_str_radix(mask.trim(), 16).ok()).any(|mask| mask & kill != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pending_kill_is_seen_and_other_signals_are_not() {
        let status = |pending: &str| format!("Name:\tcat\nSigQ:\t1/2\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\n");
        assert!(has_kill_pending(&status("0000000000000100")));
        assert!(!has_kill_pending(&status("0000000000002002")));
        assert!(!has_kill_pending("gone"));
    }
}
