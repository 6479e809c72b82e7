//! One process of the demo: start it, hear that it is ready, notice that it died, stop it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child as Running, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use super::{DEATH_WINDOW, DEATHS_MAX, TICK};
use crate::process;

/// How many last lines of a log explain a death.
const TAIL_LINES: usize = 12;

/// How to start a process; the same for every time it is started.
pub(super) struct Recipe {
    pub(super) name: String,
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) log: PathBuf,
}

pub(super) struct Child {
    recipe: Recipe,
    running: Option<Running>,
    /// Held open while the child shall live: its end tells the child that the demo is gone.
    leash: Option<ChildStdin>,
    ready: Arc<AtomicBool>,
    deaths: Vec<Instant>,
}

impl Child {
    pub(super) fn new(recipe: Recipe) -> Child {
        Child { recipe, running: None, leash: None, ready: Arc::default(), deaths: Vec::new() }
    }

    pub(super) fn name(&self) -> &str {
        &self.recipe.name
    }

    pub(super) fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(Running::id)
    }

    pub(super) fn start(&mut self) -> Result<(), String> {
        let recipe = &self.recipe;
        let fail = |error: io::Error| format!("can't start {}: {error}", recipe.name);
        let log = File::options().create(true).append(true).open(&recipe.log).map_err(fail)?;
        let mut running = Command::new(&recipe.program)
            .args(&recipe.arguments)
            .arg("--exit-with-parent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A group of its own: Ctrl-C reaches the demo alone, which then stops its children in order.
            .process_group(0)
            .spawn()
            .map_err(fail)?;
        self.leash = running.stdin.take();
        let mut output = running.stdout.take().expect("asked for above");
        self.running = Some(running);
        let ready = Arc::new(AtomicBool::new(false));
        self.ready = Arc::clone(&ready);
        thread::spawn(move || {
            ready.store(process::wait_until_ready(&mut output), Ordering::Release);
            let _ = io::copy(&mut output, &mut io::sink());
        });
        Ok(())
    }

    /// Whether the process has said that it serves. Errors: it has ended instead.
    pub(super) fn is_ready(&mut self) -> Result<bool, String> {
        self.check_alive()?;
        Ok(self.ready.load(Ordering::Acquire))
    }

    /// Errors: the process has ended; the sentence has the end of its log.
    pub(super) fn check_alive(&mut self) -> Result<(), String> {
        match self.take_end() {
            None => Ok(()),
            Some(status) => Err(format!("{} ended ({status}){}", self.recipe.name, self.tail())),
        }
    }

    /// Notice a death, tell about it, and start the process again after a while. `prepare` runs before the new start.
    /// Errors: it died too often.
    pub(super) fn revive(
        &mut self,
        after: Duration,
        prepare: impl FnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        if let Some(status) = self.take_end() {
            self.deaths.retain(|death| death.elapsed() < DEATH_WINDOW);
            self.deaths.push(Instant::now());
            let tail = self.tail();
            if self.deaths.len() > DEATHS_MAX {
                return Err(format!("{} keeps dying ({status}); giving up{tail}", self.recipe.name));
            }
            println!("{} died ({status}) - starting it again in {} s{tail}", self.recipe.name, after.as_secs());
        }
        let is_due = self.deaths.last().is_some_and(|death| death.elapsed() >= after);
        if self.running.is_none() && is_due {
            prepare()?;
            self.start()?;
            println!("{} runs again (process {})", self.recipe.name, self.pid().unwrap_or(0));
        }
        Ok(())
    }

    pub(super) fn ask_to_stop(&self) {
        if let Some(running) = &self.running {
            send(running, Signal::TERM);
        }
    }

    /// Wait for the end; after `timeout` make it.
    pub(super) fn wait_or_kill(&mut self, timeout: Duration) {
        let began = Instant::now();
        while self.running.is_some() {
            match self.take_end() {
                Some(status) if !status.success() => {
                    println!("{} ended with {status}{}", self.recipe.name, self.tail());
                }
                Some(_) => {}
                None if began.elapsed() > timeout => {
                    println!("{} does not stop - killing it{}", self.recipe.name, self.tail());
                    if let Some(running) = &self.running {
                        send(running, Signal::KILL);
                    }
                    thread::sleep(TICK * 4);
                }
                None => thread::sleep(TICK / 5),
            }
        }
    }

    /// The exit status if the process has ended since the last look.
    fn take_end(&mut self) -> Option<ExitStatus> {
        let status = self.running.as_mut()?.try_wait().ok()??;
        self.running = None;
        self.leash = None;
        Some(status)
    }

    /// The end of the log, ready to be put behind a sentence.
    fn tail(&self) -> String {
        let log = fs::read(&self.recipe.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        format!("\n  the end of {}:\n    {}", self.recipe.log.display(), last.join("\n    "))
    }
}

fn send(running: &Running, signal: Signal) {
    if let Some(pid) = i32::try_from(running.id()).ok().and_then(Pid::from_raw) {
        // An error means that it has ended meanwhile, which the next look will tell.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &tempfile::TempDir) -> Child {
        Child::new(Recipe {
            name: "sh".into(),
            program: "/bin/sh".into(),
            arguments: ["-c".into(), script.into()].into(),
            log: folder.path().join("sh.log"),
        })
    }

    fn wait_for(mut condition: impl FnMut() -> bool) {
        let began = Instant::now();
        while !condition() {
            assert!(began.elapsed() < Duration::from_secs(10), "it takes too long");
            thread::sleep(TICK / 10);
        }
    }

    #[test]
    fn a_child_is_ready_when_it_says_so_and_its_death_comes_with_its_last_words() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let mut child = shell("echo ready; read line; echo the disk is gone >&2; exit 3", &folder);
        child.start().expect("there is a shell");
        wait_for(|| child.is_ready() == Ok(true));
        child.leash = None;
        wait_for(|| child.check_alive().is_err_and(|sentence| sentence.contains("the disk is gone")));
        assert_eq!(child.pid(), None);
    }

    #[test]
    fn a_child_that_dies_is_started_again_until_it_dies_too_often() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let mut child = shell("exit 1", &folder);
        child.start().expect("there is a shell");
        let mut starts = 0;
        let mut refused = String::new();
        wait_for(|| {
            let outcome = child.revive(Duration::ZERO, || {
                starts += 1;
                Ok(())
            });
            refused = outcome.err().unwrap_or_default();
            !refused.is_empty()
        });
        assert_eq!(starts, DEATHS_MAX);
        assert!(refused.contains("keeps dying"), "{refused}");
    }

    #[test]
    fn a_child_that_ignores_the_request_to_stop_is_killed() {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let mut child = shell("trap '' TERM; echo ready; while :; do sleep 0.1; done", &folder);
        child.start().expect("there is a shell");
        wait_for(|| child.is_ready() == Ok(true));
        child.ask_to_stop();
        child.wait_or_kill(Duration::from_millis(100));
        assert_eq!(child.pid(), None);
    }
}
