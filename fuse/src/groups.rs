//! The supplementary groups of a process, which the kernel does not send and the master wants.
//!
//! They are read from /proc and remembered, since a process rarely changes them. Spec 72, 4.2.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use ring::{Instant, Ring};

use crate::request::Caller;

/// Callers remembered at most; beyond, all are forgotten and read anew.
const CALLERS_MAX: usize = 20_000;
/// Groups sent at most; the kernel allows a process 65536, a 4.x master takes 4096. Spec 31, 31.1.
const GROUPS_MAX: usize = 4096;

/// The groups of recent callers.
pub struct Groups {
    ring: Ring,
    life: Duration,
    known: RefCell<HashMap<Caller, (Instant, Vec<u32>)>>,
}

impl Groups {
    /// Remember for `life`; zero: supplementary groups are not used at all.
    pub fn new(ring: Ring, life: Duration) -> Groups {
        Groups { ring, life, known: RefCell::default() }
    }

    /// All groups of `caller`, its primary one first.
    ///
    /// The superuser is known by its one group: the master allows it everything, or maps it to somebody else together
    /// with its groups (Spec 30, 4.3).
    pub async fn of(&self, caller: &Caller) -> Vec<u32> {
        if self.life.is_zero() || caller.uid == 0 || caller.pid == 0 {
            return vec![caller.gid];
        }
        let now = self.ring.now();
        if let Some((read_at, groups)) = self.known.borrow().get(caller)
            && now < *read_at + self.life
        {
            return groups.clone();
        }
        let status = self.ring.read_file(&PathBuf::from(format!("/proc/{}/status", caller.pid))).await;
        let Ok(status) = status else { return vec![caller.gid] };
        let groups = with_primary(caller.gid, parse_groups(&String::from_utf8_lossy(&status)));
        let mut known = self.known.borrow_mut();
        if known.len() >= CALLERS_MAX {
            known.clear();
        }
        known.insert(*caller, (now, groups.clone()));
        groups
    }
}

/// The `Groups:` line of /proc/PID/status.
fn parse_groups(status: &str) -> Vec<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or("");
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

fn with_primary(primary: u32, others: Vec<u32>) -> Vec<u32> {
    let others = others.into_iter().filter(|&group| group != primary);
    std::iter::once(primary).chain(others).take(GROUPS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_primary_group_comes_first_and_once() {
        let groups = parse_groups("Uid:\t5\t5\t5\t5\nGroups:\t4 24 1000 \nNStgid:\t1\n");
        assert_eq!(groups, [4, 24, 1000]);
        assert_eq!(with_primary(24, groups), [24, 4, 1000]);
        assert_eq!(parse_groups("Groups:\t \n"), [0; 0]);
    }
}
