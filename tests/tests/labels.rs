//! Where copies are by storage classes: the same servers under our master as under MooseFS's, after the same commands.
//! Spec 41, 7.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::namespace::chunkserver_address;
use mooring_tests::need::{Need, have};
use mooring_tests::wait::comes_true;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
/// For a file's copies to be where they belong.
const LIMIT: Duration = Duration::from_secs(40);

/// The labels of the four servers. No one has X.
const LABELS: [&str; 4] = ["A", "B", "C", "D,E"];

/// Name and what `mfsscadmin create` is told.
const CLASSES: [(&str, &str); 11] = [
    ("both", "A,B"),
    ("moves", "-C A -K B -A C -d 30"),
    ("all-labels", "DE"),
    ("one-label", "E+X"),
    ("strict", "-m strict A,X"),
    ("standard", "A,X"),
    ("loose", "-m loose A,X"),
    ("other", "A,C"),
    ("strict-two", "-m strict A,B"),
    ("loose-two", "-m loose B,C"),
    ("more", "-C A -K A,B,C"),
];

struct Scene {
    cluster: Cluster,
    mount: PathBuf,
    kind: Kind,
    /// What tools said.
    said: Vec<String>,
}

impl Scene {
    fn new(kind: Kind, name: &str) -> Scene {
        let mut layout = Layout::new(kind, &[Kind::Stock; 4]);
        layout.labels = LABELS.map(str::to_owned).to_vec();
        let mut cluster = Cluster::start(name, layout);
        let mount = cluster.mount(Kind::Stock);
        Scene { cluster, mount, kind, said: Vec::new() }
    }

    /// Runs a tool on something in the mount; what it says is remembered.
    fn tool(&mut self, line: &str) -> String {
        let mount = self.mount.display().to_string();
        let mut words = line.split(' ').map(|word| word.replace('@', &mount));
        let output = self.cluster.command(&words.next().unwrap()).args(words).output().unwrap();
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).replace(&mount, "@");
        self.said.push(format!("$ {line}\n{}\n{text}", output.status));
        text
    }

    fn write(&mut self, name: &str, class: &str) {
        let folder = self.mount.join(class);
        if !folder.exists() {
            fs::create_dir(&folder).unwrap();
            self.tool(&format!("mfssetsclass {class} @/{class}"));
        }
        fs::write(folder.join(name), vec![7; 100_000]).unwrap();
    }

    /// The servers that have the only chunk of a file.
    fn holders(&self, file: &str) -> BTreeSet<usize> {
        let output = self.cluster.command("mfsfileinfo").arg(self.mount.join(file)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let id = text.split("chunk 0: ").nth(1).and_then(|rest| u64::from_str_radix(rest.get(..16)?, 16).ok());
        let copies = self.cluster.copies();
        copies.get(&id.unwrap_or(0)).into_iter().flatten().map(|copy| copy.server).collect()
    }

    /// Waits until the copies of a file are on these servers alone.
    fn ends_on(&mut self, file: &str, servers: &[usize]) {
        let wanted = BTreeSet::from_iter(servers.iter().copied());
        self.ends(file, &format!("{servers:?}"), |found| *found == wanted);
        let text = self.tool(&format!("mfscheckfile @/{file}"));
        assert!(text.contains(&format!("chunks with {} cop", servers.len())), "{:?}: {text}", self.kind);
        self.tool(&format!("mfsfileinfo @/{file}"));
        let last = self.said.last_mut().unwrap();
        *last = in_order(last);
    }

    fn ends(&self, file: &str, what: &str, is_wanted: impl Fn(&BTreeSet<usize>) -> bool) {
        let done = comes_true(LIMIT, || is_wanted(&self.holders(file)));
        let said = self.said.join("\n");
        assert!(done, "{:?}: {file} is on {:?}, and not on {what}; {said}", self.kind, self.holders(file));
    }
}

/// Which copy is named first is drawn by lot.
fn in_order(text: &str) -> String {
    let mut lines: Vec<&str> =
        text.lines().map(|line| line.split_once(": 10.").map_or(line, |(_, rest)| rest)).collect();
    lines[1..].sort_unstable();
    lines.join("\n")
}

fn history(kind: Kind, name: &str) -> Vec<String> {
    let mut scene = Scene::new(kind, name);
    for (class, words) in CLASSES {
        scene.tool(&format!("mfsscadmin @ create {words} {class}"));
    }
    scene.tool("mfsscadmin @ list -l");

    // Written in the class.
    for (class, _) in CLASSES {
        scene.write("file", class);
    }
    scene.ends_on("both/file", &[0, 1]);
    scene.ends_on("moves/file", &[1]);
    scene.ends_on("all-labels/file", &[3]);
    scene.ends_on("one-label/file", &[3]);
    scene.ends_on("strict/file", &[0]);
    scene.ends_on("more/file", &[0, 1, 2]);
    for class in ["standard", "loose"] {
        scene.ends(&format!("{class}/file"), "A and any other", |found| found.len() == 2 && found.contains(&0));
    }

    // Written before it got the class.
    fs::write(scene.mount.join("before"), vec![7; 100_000]).unwrap();
    scene.tool("mfssetgoal 4 @/before");
    scene.ends_on("before", &[0, 1, 2, 3]);
    scene.tool("mfssetsclass both @/before");
    scene.ends_on("before", &[0, 1]);
    scene.tool("mfsgetsclass @/before");

    // The archive bit, by hand.
    scene.tool("mfschkarchive @/moves/file");
    scene.tool("mfssetarchive @/moves/file");
    scene.ends_on("moves/file", &[2]);
    scene.tool("mfschkarchive @/moves/file");
    scene.tool("mfsclrarchive @/moves/file");
    scene.ends_on("moves/file", &[1]);

    // Another class.
    scene.tool("mfssetsclass other @/both/file");
    scene.ends_on("both/file", &[0, 2]);

    // The only server with the label is away: strict waits for it, the others do not.
    scene.ends_on("strict-two/file", &[0, 1]);
    scene.ends_on("loose-two/file", &[1, 2]);
    scene.ends_on("before", &[0, 1]);
    scene.cluster.kill_chunkserver(1); // one that is stopped in order is in maintenance, and waited for
    for (file, kept) in [("loose-two/file", 2), ("before", 0)] {
        scene.ends(file, "two servers that are here", |found| found.len() == 2 && found.contains(&kept));
    }
    assert_eq!(scene.holders("strict-two/file"), BTreeSet::from([0]), "{kind:?}: strict");
    scene.cluster.start_chunkserver(1);
    for (file, servers) in [("loose-two/file", [1, 2]), ("before", [0, 1]), ("strict-two/file", [0, 1])] {
        // The copies that stood in for the lost ones go when a sweep over all chunks comes by.
        scene.ends(file, "them and others", |found| servers.iter().all(|server| found.contains(server)));
    }
    scene.tool("mfsscadmin @ list -l");
    scene.said
}

#[test]
fn copies_are_on_the_same_labels_as_under_a_stock_master() {
    if !have("copies_are_on_the_same_labels_as_under_a_stock_master", NEEDS) {
        return;
    }
    let (wanted, found) = (history(Kind::Stock, "labels-stock"), history(Kind::Mooring, "labels-ours"));
    for (found, wanted) in found.iter().zip(&wanted) {
        assert_eq!(found, wanted, "ours, then MooseFS's");
    }
    assert_eq!(found.len(), wanted.len());
}

#[test]
fn a_mount_reads_from_servers_with_the_labels_that_it_prefers() {
    let name = "a_mount_reads_from_servers_with_the_labels_that_it_prefers";
    if !have(name, &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring]) {
        return;
    }
    let mut layout = Layout::new(Kind::Mooring, &[Kind::Mooring, Kind::Stock]);
    layout.labels = ["A", "B"].map(str::to_owned).to_vec();
    let mut cluster = Cluster::start("preferred", layout);
    let mount = cluster.mount(Kind::Mooring);
    let names: Vec<String> = (0..6).map(|number| format!("file{number}")).collect();
    for name in &names {
        fs::write(mount.join(name), vec![7; 100_000]).unwrap();
    }
    cluster.wait_for_copies("two copies of each file", LIMIT, |copies| copies == 2);
    for (index, (labels, server)) in [("C;B", 1), ("A;B", 0)].into_iter().enumerate() {
        let mount = cluster.mount_with(Kind::Mooring, &["-o", &format!("mfspreflabels={labels}")]);
        for name in &names {
            assert_eq!(fs::read(mount.join(name)).unwrap().len(), 100_000);
        }
        // Connections are kept for a while: those are all that it made.
        let reads_from: BTreeSet<_> = cluster.mount_daemon(1 + index).connected_to().into_iter().collect();
        let asked: Vec<bool> = (0..2)
            .map(|server| reads_from.iter().any(|address| *address.ip() == chunkserver_address(server)))
            .collect();
        assert_eq!(asked, [server == 0, server == 1], "{labels}: {reads_from:?}");
    }
    let (status, text) = cluster.fail_to_mount(Kind::Mooring, &["-o", "mfspreflabels=A;"], LIMIT);
    assert!(status.is_some_and(|status| !status.success()) && text.contains("preferred labels"), "{text}");
}
