//! The same commands in two clusters, of which one has our master and one MooseFS's: what they say and do must be the same.
//!
//! A command is a line. `program arguments` is run as it stands; `user: script` is given to a shell, which that user of
//! [`USERS`] runs. `@` is the first mount, `@1` to `@9` are the others.

use std::path::PathBuf;

use crate::cluster::Cluster;

/// User, uid, gid, all groups. They need no entry in the system's lists.
pub const USERS: &[(&str, u32, u32, &str)] = &[
    ("root", 0, 0, "0"),
    ("ann", 3001, 3001, "3001,4000"),
    ("bob", 3002, 3002, "3002,4000"),
    ("eve", 3003, 3003, "3003"),
    ("ops", 3004, 4000, "4000,3001"),
];

/// The command, how it ended, and all that it printed, with `@` for the mounts. The output of a script with processes in
/// the background is sorted, since they race.
pub fn said(cluster: &Cluster, mounts: &[PathBuf], line: &str) -> String {
    let names: Vec<(String, String)> = (1..mounts.len())
        .rev()
        .chain([0])
        .map(|number| {
            let name = if number == 0 { "@".to_owned() } else { format!("@{number}") };
            (name, mounts[number].display().to_string())
        })
        .collect();
    let placed = |text: &str| names.iter().fold(text.to_owned(), |text, (name, path)| text.replace(name, path));
    let user = line.split_once(": ").and_then(|(name, script)| {
        USERS.iter().find(|user| user.0 == name).map(|(_, uid, gid, groups)| (*uid, *gid, *groups, script))
    });
    let mut command = match user {
        Some((uid, gid, groups, script)) => {
            let mut command = cluster.command("setpriv");
            command.args([format!("--reuid={uid}"), format!("--regid={gid}"), format!("--groups={groups}")]);
            command.args(["bash", "-c", &placed(script)]);
            command
        }
        None => {
            let mut words = line.split(' ');
            let mut command = cluster.command(words.next().expect("a line has a first word"));
            command.args(words.map(placed));
            command
        }
    };
    let output = command.env("LC_ALL", "C").output().unwrap_or_else(|error| panic!("{line}: {error}"));
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let text = names.iter().fold(text.into_owned(), |text, (name, path)| text.replace(path, name));
    let mut lines: Vec<String> = text.lines().map(without_number_of_copy).collect();
    if line.contains(" & ") {
        lines.sort();
    }
    // Which copy is named first is drawn by lot.
    lines.chunk_by_mut(|one, other| one.contains("copy: ") && other.contains("copy: ")).for_each(<[_]>::sort);
    format!("$ {line}\n{}\n{}", output.status, lines.join("\n"))
}

/// Runs the lines in both clusters at the same time, and gives what was said of each: ours, MooseFS's.
pub fn both(
    (ours, our_mounts): (&Cluster, &[PathBuf]),
    (stock, stock_mounts): (&Cluster, &[PathBuf]),
    lines: &str,
) -> Vec<(String, String)> {
    let lines: Vec<&str> = lines.lines().filter(|line| !line.is_empty()).collect();
    let all = |cluster: &Cluster, mounts: &[PathBuf]| -> Vec<String> {
        lines.iter().map(|line| said(cluster, mounts, line)).collect()
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| all(stock, stock_mounts));
        let found = all(ours, our_mounts);
        let wanted = beside.join().expect("commands that cannot be run panic in both threads");
        found.into_iter().zip(wanted).collect()
    })
}

/// Panics with every difference.
pub fn assert_same(answers: &[(String, String)]) {
    let differences: Vec<String> = answers
        .iter()
        .filter(|(found, wanted)| found != wanted)
        .map(|(found, wanted)| format!("--- ours\n{found}\n--- MooseFS's\n{wanted}"))
        .collect();
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), answers.len(), differences.join("\n"));
}

fn without_number_of_copy(line: &str) -> String {
    match line.split_once("copy ") {
        Some((front, rest)) if rest.starts_with(|first: char| first.is_ascii_digit()) => {
            format!("{front}copy{}", rest.trim_start_matches(|digit: char| digit.is_ascii_digit()))
        }
        _ => line.to_owned(),
    }
}
