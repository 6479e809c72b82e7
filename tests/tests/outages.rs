//! All chunkservers are lost at once, again and again, while programs write; the master and the mount with them.
//! `MOORING_DRILL_OUTAGES=100` loses them more often than every run does, `MOORING_DRILL_SEED` differently.

use mooring_tests::disk::Loss;
use mooring_tests::need::{Need, have, say_loudly};
use mooring_tests::outage::{Plan, Trouble, run};

const NEEDS: &[Need] = &[
    Need::Root,
    Need::Fuse,
    Need::Mooring,
    Need::Program("tc"),
    Need::Program("mfsmakesnapshot"),
    Need::Program("mfsfileinfo"),
];

fn number(name: &str, usual: usize) -> usize {
    std::env::var(name).ok().and_then(|count| count.parse().ok()).unwrap_or(usual)
}

fn plan(name: &'static str, outages: usize, troubles: &[Trouble]) -> Plan {
    Plan {
        name,
        program: env!("CARGO_BIN_EXE_mooring-writers").into(),
        outages: number("MOORING_DRILL_OUTAGES", outages),
        seed: number("MOORING_DRILL_SEED", 1) as u64,
        chunkservers: 2,
        writers: 6,
        troubles: troubles.to_vec(),
        spares_some: false,
        kills_master: false,
        kills_mount: false,
        has_disks: false,
        calm_every: 4,
    }
}

fn drill(plan: &Plan) {
    if !have(plan.name, NEEDS) {
        return;
    }
    say_loudly(&format!("{}: {}", plan.name, run(plan)));
}

#[test]
fn files_are_whole_after_the_links_of_all_chunkservers_failed() {
    drill(&plan("links", 2, &[Trouble::CutLinks]));
}

#[test]
fn files_are_whole_after_all_chunkservers_were_killed_together() {
    drill(&plan("kills", 4, &[Trouble::Kill]));
}

#[test]
fn files_are_whole_after_all_chunkservers_stood_still() {
    drill(&plan("stops", 1, &[Trouble::Stop]));
}

/// Not yet in every run: a killed chunkserver was seen to hold its lock for more than a minute, so that the one that
/// follows it does not start within the test's patience.
#[test]
#[ignore = "a killed chunkserver may hold its lock for longer than the test waits"]
fn files_are_whole_after_outages_in_which_master_and_mount_were_killed_too() {
    let all = [Trouble::CutLinks, Trouble::Kill, Trouble::Kill, Trouble::Kill, Trouble::Stop];
    let plan = Plan {
        chunkservers: 3,
        spares_some: true,
        kills_master: true,
        kills_mount: true,
        ..plan("everything", 4, &all)
    };
    drill(&plan);
}

/// Not yet in every run: see whether all that can be lost before it is synced leaves a file that can be read.
#[test]
#[ignore = "power cuts of all copies at once are not held out yet"]
fn what_was_synced_is_there_after_power_cuts() {
    let cuts = [Trouble::PowerCut(Loss::All), Trouble::PowerCut(Loss::Some { one_in: 2 })];
    let plan = Plan { has_disks: true, spares_some: true, kills_master: true, ..plan("power", 4, &cuts) };
    if have(plan.name, &[Need::Program("mkfs.ext4"), Need::Program("losetup")]) {
        drill(&plan);
    }
}
