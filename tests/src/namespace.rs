//! The network in which a cluster of a test lives: a network namespace whose `lo` bears 10.77.0.0/24.
//!
//! MooseFS's chunkservers refuse a master on 127.0.0.0/8, hence other addresses; a namespace, hence fixed ports and no
//! quarrel between tests. Processes enter it with `nsenter`, which (unlike `ip netns exec`) keeps mounts visible.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The master's address.
pub const MASTER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The device into which lost packets go, and the number of the rules that lead them there.
const CUTTER: &str = "cut";
const CUT_PRIORITY: &str = "5";

/// Chunkserver number `index` listens here.
pub fn chunkserver_address(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index).ok().filter(|index| *index < 20).expect("at most 20 chunkservers in a test");
    Ipv4Addr::new(10, 77, 0, 11 + last)
}

/// One network namespace. Dropping it removes it.
pub struct Namespace {
    name: String,
    has_cutter: AtomicBool,
}

impl Namespace {
    /// A fresh namespace, named after this process. Removes first what killed runs have left behind.
    pub fn create() -> Namespace {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let name = format!("mooring-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        ip(&["netns", "add", &name]);
        let namespace = Namespace { name, has_cutter: AtomicBool::new(false) };
        ip(&["-n", &namespace.name, "link", "set", "lo", "up"]);
        for last in 1..=30 {
            ip(&["-n", &namespace.name, "addr", "add", &format!("10.77.0.{last}/24"), "dev", "lo"]);
        }
        namespace
    }

    /// A command that will run inside, and that the kernel kills when the thread which starts it ends.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter"]);
        command.arg(format!("--net=/run/netns/{}", self.name)).arg(program);
        command
    }

    /// What comes from or goes to these addresses is lost from now on, without a word to either side, as behind a cable
    /// that was pulled. [`Namespace::heal`] ends it.
    pub fn cut(&self, addresses: &[Ipv4Addr]) {
        if !self.has_cutter.swap(true, Ordering::Relaxed) {
            // Packets are led into a device that is down: few kernels have everything that would drop them by itself.
            ip(&["-n", &self.name, "link", "add", CUTTER, "type", "veth", "peer", "name", "cut-peer"]);
            self.tc(&["qdisc", "add", "dev", "lo", "clsact"]);
        }
        for address in addresses {
            for side in ["src", "dst"] {
                let filter = ["filter", "add", "dev", "lo", "egress", "protocol", "ip", "prio", CUT_PRIORITY, "u32"];
                let address = format!("{address}/32");
                let action = ["match", "ip", side, &address, "action", "mirred", "egress", "redirect", "dev", CUTTER];
                self.tc(&[&filter[..], &action[..]].concat());
            }
        }
    }

    /// Whatever was cut is whole again.
    pub fn heal(&self) {
        self.tc(&["filter", "del", "dev", "lo", "egress", "prio", CUT_PRIORITY]);
    }

    fn tc(&self, arguments: &[&str]) {
        let status = self.command("tc").args(arguments).status().expect("the program `tc` (package iproute2) runs");
        assert!(status.success(), "tc {} failed: {status}", arguments.join(" "));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        Command::new("ip").args(["netns", "del", &self.name]).status().ok();
    }
}

/// Remove namespaces whose test process is gone.
fn sweep() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for entry in names.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix("mooring-").and_then(|rest| rest.split('-').next()).map(str::to_owned);
        if owner.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            Command::new("ip").args(["netns", "del", &name]).status().ok();
        }
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().expect("the program `ip` (package iproute2) runs");
    assert!(status.success(), "ip {} failed: {status}", arguments.join(" "));
}
