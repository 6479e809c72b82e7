//! POSIX test suites by others on our mount, master and chunkservers.
//!
//! `pjdfstest` and `fsx` come from crates.io (`.ci/run` installs them under target/tools; or set PATH). pjdfstest runs
//! as root and needs the users `nobody` and `tests`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have, tool};

#[test]
fn our_mount_passes_every_case_of_pjdfstest() {
    let needs = [Need::Root, Need::Fuse, Need::Mooring, Need::Tool("pjdfstest"), Need::User("tests")];
    if !have("our_mount_passes_every_case_of_pjdfstest", &needs) {
        return;
    }
    let mut layout = Layout::ours(2);
    layout.limit = Duration::from_secs(900);
    let mut cluster = Cluster::start("pjdfstest", layout);
    let mount = cluster.mount_with(Kind::Mooring, &["-o", "allow_other"]);
    let settings = cluster.scratch("pjdfstest.toml");
    std::fs::write(
        &settings,
        "[features]\nposix_fallocate = {}\nrename_ctime = {}\nutime_now = {}\nutimensat = {}\n\
         [settings]\nnaptime = 0.2\nallow_remount = false\n\
         [dummy_auth]\nentries = [ [\"nobody\",\"nogroup\"], [\"tests\",\"tests\"] ]\n",
    )
    .unwrap();
    let program = tool("pjdfstest").unwrap();
    let output = Command::new(program).arg("-c").arg(&settings).arg("-p").arg(&mount).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let cases = |result: &str| -> BTreeSet<&str> {
        let lines = text.lines().filter_map(|line| line.strip_suffix(result));
        lines.map(str::trim_end).filter(|name| name.contains("::")).collect()
    };
    let (passed, failed) = (cases(" ok"), cases(" FAILED"));
    assert!(passed.len() > 300, "only {} cases passed; is it set up? {text}", passed.len());
    println!("pjdfstest: {} passed, {} failed", passed.len(), failed.len());
    let details: String = failed.iter().map(|name| details(&text, name)).collect();
    assert!(failed.is_empty(), "{} cases fail: {failed:#?}\n{details}", failed.len());
}

#[test]
fn fsx_finds_no_wrong_byte_on_our_mount() {
    let needs = [Need::Root, Need::Fuse, Need::Mooring, Need::Tool("fsx")];
    if !have("fsx_finds_no_wrong_byte_on_our_mount", &needs) {
        return;
    }
    let mut cluster = Cluster::start("fsx", Layout::ours(2));
    let mount = cluster.mount(Kind::Mooring);
    for seed in ["1", "2"] {
        fsx(&cluster, &mount, seed);
    }
}

fn fsx(cluster: &Cluster, mount: &Path, seed: &str) {
    let artifacts = cluster.scratch("fsx");
    std::fs::create_dir_all(&artifacts).unwrap();
    let mut command = Command::new(tool("fsx").unwrap());
    command.args(["-q", "-N", "10000", "-S", seed, "-P"]).arg(&artifacts).arg(mount.join(format!("fsx{seed}")));
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let end: Vec<&str> = said.lines().rev().take(40).collect();
    let end: Vec<&str> = end.into_iter().rev().collect();
    assert!(output.status.success(), "fsx with seed {seed}: {}\n{}", output.status, end.join("\n"));
}

/// What pjdfstest printed about a case: the lines behind its name.
fn details(text: &str, name: &str) -> String {
    let from_name = text.lines().skip_while(|line| !line.starts_with(name));
    let lines: Vec<&str> = from_name
        .take(1)
        .chain(
            text.lines()
                .skip_while(|line| !line.starts_with(name))
                .skip(1)
                .take_while(|line| line.starts_with('\t'))
                .take(4),
        )
        .collect();
    lines.join("\n") + "\n"
}
