//! What MooseFS's `mfscli` prints of our master and of MooseFS's, after the same commands.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::wait::wait_for;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
/// Sections whose text must be the same.
const SAME: &[&str] = &["-SLI", "-SIC", "-SMF", "-SMB", "-SEX", "-SMS", "-SOF", "-SAL", "-SMO", "-SQU", "-SSC", "-SRS"];

#[test]
fn sections_of_mfscli_are_those_of_a_stock_master() {
    if !have("sections_of_mfscli_are_those_of_a_stock_master", NEEDS) {
        return;
    }
    not_at_the_end_of_an_hour();
    let mut ours = Cluster::start("cli-ours", Layout::new(Kind::Mooring, &[Kind::Stock]));
    let mut stock = Cluster::start_beside(&ours, "cli-stock", Layout::new(Kind::Stock, &[Kind::Stock]));
    let mut made = Vec::new();
    for cluster in [&mut ours, &mut stock] {
        let mount = cluster.mount(Kind::Stock);
        work(cluster, &mount);
        made.push(files_that_fit(cluster, &mount));
    }
    assert_eq!(made[0], made[1], "files under a hard limit of three inodes");
    let mut wrong = Vec::new();
    for section in SAME {
        let (found, wanted) = (mfscli(&ours, section), mfscli(&stock, section));
        if found != wanted {
            wrong.push(format!("{section}: ours\n{found}\nMooseFS's\n{wanted}"));
        }
    }
    let (found, wanted) = (counts(&ours), counts(&stock));
    assert_eq!(found, wanted, "-SIG");
    // -SMO shows the last hour; this hour's counters are in the same packet. How often a kernel asks for the space, and
    // asks again for attributes and names when it is slow and its cache grows old, is not ours to say.
    let (mut found, mut wanted) = (operations(&ours), operations(&stock));
    assert!(wanted[4] > 0, "the directories were counted: {wanted:?}");
    for by_the_kernel in [0, 1, 3] {
        for counts in [&mut found, &mut wanted] {
            counts[by_the_kernel] = counts[by_the_kernel].min(1);
        }
    }
    assert_eq!(found, wanted, "operations of the session, in the order of Spec 70, 4.3");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_whose_chunks_are_gone_are_listed() {
    if !have("files_whose_chunks_are_gone_are_listed", NEEDS) {
        return;
    }
    let mut cluster = Cluster::start("cli-missing", Layout::new(Kind::Mooring, &[Kind::Mooring]));
    let mount = cluster.mount(Kind::Stock);
    work(&cluster, &mount);
    assert_eq!(mfscli(&cluster, "-SMF").trim(), "");
    cluster.stop_chunkserver(0);
    let listed = |cluster: &Cluster| mfscli(cluster, "-SMF").trim().to_owned();
    wait_for("the missing chunk is listed", Duration::from_secs(120), || (!listed(&cluster).is_empty()).then_some(()));
    let lines = listed(&cluster);
    println!("{lines}");
    assert!(lines.contains("folder/file") && lines.contains("third"), "{lines}");
    cluster.start_chunkserver(0);
    wait_for("the chunk is there again", Duration::from_secs(60), || listed(&cluster).is_empty().then_some(()));
    let memory = mfscli(&cluster, "-SMU");
    let nodes = memory.lines().find(|line| line.contains("\tnodes\t")).unwrap_or_else(|| panic!("{memory}"));
    let bytes: Vec<u64> = nodes.split('\t').skip(2).map(|word| word.trim().parse().unwrap()).collect();
    assert!(bytes[0] > 0 && bytes[0] <= bytes[1], "used, then allocated: {nodes}");
}

#[test]
fn commands_of_mfscli_are_obeyed_as_by_a_stock_master_but_from_administrators_alone() {
    if !have("commands_of_mfscli_are_obeyed_as_by_a_stock_master_but_from_administrators_alone", NEEDS) {
        return;
    }
    let said = |kind: Kind, name: &str| {
        let mut cluster = Cluster::start(name, Layout::new(kind, &[Kind::Stock]));
        let mut said = vec![servers(&cluster)];
        for command in ["-CM1/10.77.0.11/9422", "-CM0/10.77.0.11/9422", "-CM1/10.77.0.99/9422", "-CRC/10.77.0.11/9422"]
        {
            said.extend([mfscli(&cluster, command), servers(&cluster)]);
        }
        let present = servers(&cluster);
        cluster.stop_chunkserver(0);
        let gone = || (servers(&cluster) != present).then_some(());
        wait_for("the server is seen to be away", Duration::from_secs(30), gone);
        said.push(servers(&cluster));
        said.extend([mfscli(&cluster, "-CRC/10.77.0.11/9422"), servers(&cluster)]);
        said
    };
    let (found, wanted) = (said(Kind::Mooring, "cli-command-ours"), said(Kind::Stock, "cli-command-stock"));
    println!("{wanted:#?}");
    assert_eq!(found, wanted);

    let mut layout = Layout::new(Kind::Mooring, &[Kind::Stock]);
    layout.exports = "* / rw,alldirs,maproot=0:0\n".into();
    let cluster = Cluster::start("cli-command-refused", layout);
    let before = servers(&cluster);
    let answer = mfscli(&cluster, "-CM1/10.77.0.11/9422");
    println!("{answer}");
    assert_eq!(servers(&cluster), before, "nobody is an administrator here");
}

/// Chunkservers by address, id, labels, version, load and state; the rest of `-SCS` is space.
fn servers(cluster: &Cluster) -> String {
    let text = mfscli(cluster, "-SCS");
    let columns = |line: &str| line.split('\t').take(8).collect::<Vec<_>>().join(" ");
    text.lines().map(columns).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// At a full hour the counters of operations begin anew: the two clusters must not lie on two sides of it.
fn not_at_the_end_of_an_hour() {
    let left = || 3600 - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() % 3600;
    while left() < 60 {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A request of each kind that a session's counters tell apart.
fn work(cluster: &Cluster, mount: &Path) {
    fs::create_dir(mount.join("folder")).unwrap();
    fs::create_dir(mount.join("gone")).unwrap();
    fs::remove_dir(mount.join("gone")).unwrap();
    fs::write(mount.join("folder/file"), b"text").unwrap();
    fs::write(mount.join("folder/gone"), b"").unwrap();
    fs::remove_file(mount.join("folder/gone")).unwrap();
    fs::hard_link(mount.join("folder/file"), mount.join("second")).unwrap();
    fs::rename(mount.join("second"), mount.join("third")).unwrap();
    std::os::unix::fs::symlink("third", mount.join("link")).unwrap();
    assert_eq!(fs::read(mount.join("link")).unwrap(), b"text");
    assert_eq!(fs::read_dir(mount).unwrap().count(), 3);
    let quota = cluster.command("mfssetquota").args(["-I", "100", "-L", "1GiB"]).arg(mount.join("folder")).output();
    let quota = quota.expect("mfssetquota runs");
    assert!(quota.status.success(), "mfssetquota: {}", String::from_utf8_lossy(&quota.stderr));
}

/// Makes files in a folder that may have three inodes, until that is refused; how many there are then.
fn files_that_fit(cluster: &Cluster, mount: &Path) -> usize {
    let narrow = mount.join("narrow");
    fs::create_dir(&narrow).unwrap();
    let quota = cluster.command("mfssetquota").args(["-I", "3"]).arg(&narrow).output().expect("mfssetquota runs");
    assert!(quota.status.success(), "mfssetquota: {}", String::from_utf8_lossy(&quota.stderr));
    (0..10).take_while(|number| fs::write(narrow.join(number.to_string()), b"").is_ok()).count()
}

/// What `-SIG` says of nodes and chunks; the rest of it is space, memory and times.
fn counts(cluster: &Cluster) -> Vec<String> {
    let text = mfscli(cluster, "-SIG");
    let counted = ["trash files", "sustained files", "all fs objects", "directories", "files", "chunks", "copies"];
    let lines = text.lines().filter(|line| counted.iter().any(|what| line.contains(what)));
    let lines: Vec<String> = lines.map(str::to_owned).collect();
    assert_eq!(lines.len(), 8, "{text}");
    lines
}

/// This hour's counters of the only session, and the last hour's behind them. Spec 70, 4.3.
fn operations(cluster: &Cluster) -> Vec<u32> {
    const COUNTERS_BYTES: usize = 2 * 16 * 4;
    let question = [&508u32.to_be_bytes()[..], &1u32.to_be_bytes(), &[4]].concat();
    let answer = cluster.exchange("10.77.0.1:9421".parse().unwrap(), &question, Duration::from_secs(1)).bytes;
    let word = |bytes: &[u8]| u32::from_be_bytes(*bytes.first_chunk().unwrap());
    let mut rest = &answer[..];
    while word(rest) != 509 {
        rest = &rest[8 + word(&rest[4..]) as usize..]; // NOP
    }
    let payload = &rest[8..8 + word(&rest[4..]) as usize];
    payload[payload.len() - COUNTERS_BYTES..].chunks_exact(4).map(word).collect()
}

/// A section as plain text, without the folder of the cluster.
fn mfscli(cluster: &Cluster, section: &str) -> String {
    let output =
        cluster.command("mfscli").args(["-H", "10.77.0.1", "-p", "-n", section]).output().expect("mfscli runs");
    assert!(output.status.success(), "mfscli {section}: {}", String::from_utf8_lossy(&output.stderr));
    let folder = cluster.scratch("").display().to_string();
    String::from_utf8_lossy(&output.stdout).replace(folder.trim_end_matches('/'), "FOLDER")
}
