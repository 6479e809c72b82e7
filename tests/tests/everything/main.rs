//! Everything that a MooseFS master writes into its change logs comes over: what we make of an image and the change logs
//! behind it is what that master had in memory, and what it makes of them itself. Spec 50 and 51.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::daemon::signal;
use mooring_tests::need::{Need, have, mooring_binary};
use mooring_tests::wait::{comes_true, wait_until};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const LIMIT: Duration = Duration::from_secs(90);

/// Operations that the test must have caused; others come by chance or not at all.
const OPERATIONS: &str = "ACQUIRE APPEND ARCHCHG ATTR CREATE CSDBOP EMPTYSUSTAINED EMPTYTRASH FLOCK LENGTH \
    LINK MOVE POSIXLOCK PURGE QUOTA REPAIR SCDEL SCDUP SCREN SCSET SESADD SESCHANGED SESDEL SESDISCONNECTED SETACL \
    SETEATTR SETMETAID SETPATH SETSCLASS SETTRASHTIME SETXATTR SNAPSHOT SYMLINK TRUNC UNDEL UNLINK UNLOCK WRITE CHUNKADD";

#[test]
fn what_a_killed_master_left_comes_in_as_it_recovers_it_itself() {
    if !have("what_a_killed_master_left_comes_in_as_it_recovers_it_itself", NEEDS) {
        return;
    }
    let mut layout = Layout::new(Kind::Stock, &[Kind::Stock, Kind::Stock]);
    layout.master_extra = "CHANGELOG_SAVE_MODE = 2\nBACK_META_KEEP_PREVIOUS = 3\n".into();
    let mut cluster = Cluster::start("everything", layout);
    let mount = cluster.mount(Kind::Stock);
    let second = cluster.mount(Kind::Stock);
    let meta = cluster.mount_meta();

    // Files of which each bucket of the trash and of sustained files has one: one bucket a second is looked through. They
    // are open as long as the second mount has a session.
    fs::create_dir(second.join("low")).unwrap();
    for number in 0..120 {
        fs::write(second.join(format!("low/{number}")), b"").unwrap();
    }
    run(cluster.command("bash").arg("-c").arg("mfssettrashtime 0 ?[02468] ??[02468]").current_dir(mount.join("low")));
    let mut holder = Holder::start(&cluster, &second, "open $f[@f], '<', $_ or die for glob 'low/*[02468]'; hold()");
    fs::create_dir(mount.join("one")).unwrap();
    everything(&cluster, &mount, &meta, "one");
    fs::write(mount.join("doomed"), b"its chunk will be gone").unwrap();
    run(cluster.command("bash").arg("-c").arg("rm *").current_dir(mount.join("low")));

    // The state in memory of a master, as it stores it at a clean stop, and what we make of its changes since the first.
    cluster.stop_master();
    let left = copy_of(&cluster, "stopped");
    let stored = dump(&left.join("metadata.mfs"));
    assert_same_sums(&left.join("metadata.mfs"), &left.join("metadata.mfs"));
    assert_same_stats(&left.join("stats.mfs"));
    fs::remove_file(left.join("metadata.mfs")).unwrap();
    assert_same(&cluster, &left, stored, |line| line.starts_with("SESSION"));

    // A chunk goes, another comes that the master does not know.
    for server in 0..2 {
        cluster.stop_chunkserver(server);
    }
    cluster.layout().exports = "*  / rw,alldirs,admin,maproot=0:0,mingoal=1,maxgoal=8\n*  . rw\n".into();
    let doomed = chunk_of(&cluster, b"its chunk will be gone");
    let folder = doomed.first().unwrap().parent().unwrap().to_owned();
    stranger(doomed.first().unwrap(), &folder);
    doomed.iter().for_each(|path| fs::remove_file(path).unwrap());
    cluster.start_servers();
    cluster.start_metalogger(Kind::Stock);
    wait_until("the mount to have its master again", LIMIT, || fs::metadata(mount.join("low")).is_ok());
    let mut in_trash = String::from("find . -path ./undel -prune -o -type f -print0 | grep -z '|low|' | xargs -0 ");
    in_trash.push_str("mfssettrashtime 0");
    run(cluster.command("bash").arg("-c").arg(in_trash).current_dir(meta.join("trash")));
    fs::create_dir(mount.join("two")).unwrap();
    everything(&cluster, &mount, &meta, "two");
    wait_until("the chunk to be given up", LIMIT, || {
        let repaired = cluster.command("mfsfilerepair").arg(mount.join("doomed")).output().unwrap();
        String::from_utf8_lossy(&repaired.stdout).lines().any(|line| line.contains("erased") && line.ends_with(" 1"))
    });
    holder.end();
    run(Command::new("umount").arg(&second));
    cluster.stop_chunkserver(1);
    wait_until("the session of the second mount to be gone", LIMIT, || {
        let removed = cluster.command("mfscli").args(["-H", "10.77.0.1", "-p", "-CRS/2"]).output().unwrap();
        String::from_utf8_lossy(&removed.stdout).contains("has been removed")
    });
    for command in ["-CM1/10.77.0.11/9422", "-CM0/10.77.0.11/9422", "-CM1/10.77.0.11/9422", "-CRC/10.77.0.12/9422"] {
        run(cluster.command("mfscli").args(["-H", "10.77.0.1", "-p", command]));
    }
    // What is open, locked and deleted while it is open when the master dies.
    let program = "open my $f, '+<', 'two/dir/t7' or die; open my $g, '<', 'two/dir/t8' or die; flock $f, 2 or die;
        my $lock = pack('s s x4 q q i x4', 0, 0, 5, 10, 0); fcntl $g, 7, $lock or die $!;
        system 'mfssettrashtime 0 two/dir/t7 >&2'; unlink 'two/dir/t7' or die; hold()";
    let mut holder = Holder::start(&cluster, &mount, program);
    let mut seen = BTreeSet::new();
    wait_until("the timers of the master to have done something", LIMIT, || {
        seen = operations(&cluster.master_data());
        ["EMPTYTRASH", "EMPTYSUSTAINED", "CHUNKADD"].iter().all(|name| seen.contains(*name))
    });
    cluster.kill_master();
    let left = copy_of(&cluster, "killed");
    let missing: Vec<&str> = OPERATIONS.split_whitespace().filter(|name| !seen.contains(*name)).collect();
    assert!(missing.is_empty(), "the test did not cause {missing:?}; it caused {seen:?}");
    let (last, kept) = (last_change(&left.join("changelog.0.mfs")), cluster.metalogger_data());
    // What the master wrote right before it was killed may not have left it.
    let kept_log = kept.join("changelog_ml.0.mfs");
    comes_true(Duration::from_secs(10), || last_change(&kept_log) >= last);
    let reached = last_change(&kept_log);
    assert!(reached + 10 >= last, "the metalogger follows until {reached} of {last}");
    cluster.kill_everything();
    holder.end();
    let of_metalogger = unlike(&imported(&cluster, &kept), |_| false);
    let sent = left_until(&cluster, &left, reached);
    assert_eq!(of_metalogger, unlike(&imported(&cluster, &sent), |_| false), "what a metalogger kept is the same");

    cluster.start_master(); // with -a
    cluster.stop_master();
    let stored = dump(&cluster.master_data().join("metadata.mfs"));
    // Its timers may have emptied a bucket meanwhile.
    let (restarted, logs) = (cluster.scratch("restarted"), cluster.master_data());
    run(Command::new("cp").arg("-a").arg(&left).arg(&restarted));
    run(Command::new("bash").args(["-c", "cp -a \"$0\"/changelog.*.mfs \"$1\""]).arg(&logs).arg(&restarted));
    // At its start it gives no session up, but knows since when they are away.
    assert_same(&cluster, &restarted, stored, |_| false);

    // Our mfsmetarestore makes a file of MooseFS's of them, in that folder.
    let restored = mooring(&["metarestore", "-a", "-d", &left.display().to_string()]);
    assert!(restored.contains("changes applied"), "{restored}");
    assert_eq!(unlike(&dump(&left.join("metadata.mfs")), |_| false), unlike(&imported(&cluster, &left), |_| false));

    // And our master takes the folder over where it is.
    fs::remove_file(left.join("metadata.mfs")).unwrap();
    fs::remove_dir_all(cluster.master_data()).unwrap();
    fs::rename(&left, cluster.master_data()).unwrap();
    cluster.layout().master = Kind::Mooring;
    let refused = cluster.refused_master();
    assert!(refused.contains("is of a MooseFS master") && refused.contains("start with -a"), "{refused}");
    let expected = unlike(&imported(&cluster, &cluster.master_data()), |line| !is_kept(line));
    let binary = mooring_binary().unwrap().display().to_string();
    let configuration = cluster.scratch("mfsmaster.cfg");
    for arguments in [&["master", "-a", "start"][..], &["master", "stop"]] {
        run(cluster.command(&binary).args(arguments).arg("-c").arg(&configuration));
    }
    let exported = cluster.scratch("taken-over.mfs");
    let text = |path: &Path| path.display().to_string();
    mooring(&["export", "--from", &text(&cluster.master_data()), "--to", &text(&exported)]);
    assert_eq!(unlike(&dump(&exported), |line| !is_kept(line)), expected);
    let entries = fs::read_dir(cluster.master_data()).unwrap().map(|entry| entry.unwrap().path());
    let kept = entries.filter(|path| path.is_dir()).collect::<Vec<_>>();
    let again = unlike(&imported(&cluster, kept.first().unwrap()), |line| !is_kept(line));
    assert_eq!((again, kept.len()), (expected, 1), "what MooseFS left is kept, and can be imported");
}

/// What no timer of a running master changes.
fn is_kept(line: &str) -> bool {
    line.starts_with("NODE|") && !["NODE|k:T", "NODE|k:R"].iter().any(|kind| line.starts_with(kind))
        || ["EDGE|p:  ", "XATTR", "POSIXACL", "SCLASS"].iter().any(|kind| line.starts_with(kind))
            && !line.contains("NULL")
}

/// Sums over directories are those of MooseFS's tool, in each format. `ours`: the same metadata as an image of ours.
fn assert_same_sums(stock: &Path, ours: &Path) {
    let paths = ["/", "one", "two/dir/", "//one//copy", "one/dir/file", "joined", "nothing", ""];
    for options in [&[][..], &["-f", "J"], &["-f", "C", "-a", "to\tge\"ther"], &["-f", "c;"], &["-a", "all"]] {
        let said = |mut command: Command, file: &Path| {
            let output = command.args(options).arg(file).args(paths).output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let expected = said(Command::new("/usr/sbin/mfsmetadirinfo"), stock);
        for file in [stock, ours] {
            let mut command = Command::new(mooring_binary().unwrap());
            command.arg("metadirinfo");
            assert_eq!(said(command, file), expected, "{options:?} {}", file.display());
        }
        assert!(expected.1.contains("one/dir/file") && expected.0 == Some(0), "{expected:?}");
    }
}

/// Numbers of charts are those of MooseFS's tool.
fn assert_same_stats(file: &Path) {
    for options in [
        "-f *",
        "-f mem,ucpu,cpu,delete_stat,brcvd -r 1 -d",
        "-f lookup -f space -r 3 -s ;",
        "-f * -h",
        "-f lookup,usedspace -H",
    ] {
        let said = |mut command: Command| {
            let output = command.args(options.split(' ')).arg("-i").arg(file).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let mut ours = Command::new(mooring_binary().unwrap());
        ours.arg("statsdump");
        let (found, expected) = (said(ours), said(Command::new("/usr/sbin/mfsstatsdump")));
        assert_eq!(expected.lines().count(), 4097);
        let other = found.lines().zip(expected.lines()).find(|(found, expected)| found != expected);
        assert!(found == expected, "{options}: {other:?}");
    }
    for options in ["-f *", "-f ucpu,mem -x 300 -y 210 -r 2", "-f lookup -x 1 -y 5000"] {
        let pictures = |mut command: Command| -> BTreeMap<String, Vec<u8>> {
            let folder = tempfile::tempdir().unwrap();
            command.args(options.split(' ')).arg("-i").arg(file).arg("-p").arg(folder.path().join("of.it.png"));
            let output = command.output().unwrap();
            assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b""[..]), "{options}: {output:?}");
            let heads = fs::read_dir(folder.path()).unwrap().map(|entry| {
                let entry = entry.unwrap();
                // Up to width and height.
                let head = fs::read(entry.path()).unwrap()[..24].to_vec();
                (entry.file_name().into_string().unwrap(), head)
            });
            heads.collect()
        };
        let mut ours = Command::new(mooring_binary().unwrap());
        ours.arg("statsdump");
        let (found, expected) = (pictures(ours), pictures(Command::new("/usr/sbin/mfsstatsdump")));
        assert!(!expected.is_empty() && found == expected, "{options}: {found:?} {expected:?}");
    }
}

/// Both scripts, in a folder of the mount.
fn everything(cluster: &Cluster, mount: &Path, meta: &Path, name: &str) {
    for script in [include_str!("files.sh"), include_str!("trash.sh")] {
        let mut bash = cluster.command("bash");
        bash.args(["-c", script]).env("MOUNT", mount).env("HERE", mount.join(name)).env("META", meta).env("TAG", name);
        run(&mut bash);
    }
}

/// A perl program on a mount that goes on until it is told to end.
struct Holder(Child);

impl Holder {
    fn start(cluster: &Cluster, folder: &Path, program: &str) -> Holder {
        let program = format!("$| = 1; sub hold {{ print \"ready\\n\"; <STDIN> }} our @f; {program}");
        let mut perl = cluster.command("perl");
        perl.arg("-e").arg(program).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = perl.spawn().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line).unwrap();
        assert_eq!(line, "ready\n");
        Holder(child)
    }

    fn end(&mut self) {
        signal(self.0.id(), "KILL");
        self.0.wait().unwrap();
    }
}

fn copy_of(cluster: &Cluster, name: &str) -> PathBuf {
    let copy = cluster.scratch(name);
    run(Command::new("cp").arg("-a").arg(cluster.master_data()).arg(&copy));
    copy
}

/// A copy of what a killed master left, without the changes after this one.
fn left_until(cluster: &Cluster, left: &Path, last: u64) -> PathBuf {
    let copy = cluster.scratch("sent");
    run(Command::new("cp").arg("-a").arg(left).arg(&copy));
    let log = copy.join("changelog.0.mfs");
    let text = fs::read_to_string(&log).unwrap();
    let number = |line: &str| line.split(':').next().and_then(|number| number.parse::<u64>().ok());
    let sent = text.split_inclusive('\n').take_while(|line| number(line).is_some_and(|number| number <= last));
    fs::write(&log, sent.collect::<String>()).unwrap();
    copy
}

/// The files on disks of the chunk that holds this text.
fn chunk_of(cluster: &Cluster, text: &[u8]) -> Vec<PathBuf> {
    let paths = (0..cluster.servers()).map(|server| (server, cluster.data_folder(server))).collect::<Vec<_>>();
    let all = mooring_tests::copies::scan(paths.iter().map(|(server, path)| (*server, path.as_path())));
    let holds = |path: &PathBuf| fs::read(path).unwrap().windows(text.len()).any(|window| window == text);
    all.into_values().flatten().map(|copy| copy.path).filter(holds).collect()
}

/// A chunk of another number, which no file has. Spec 21, 2: the number stands at 8, the version behind it.
fn stranger(path: &Path, folder: &Path) {
    let mut bytes = fs::read(path).unwrap();
    bytes[8..16].copy_from_slice(&0x1000u64.to_be_bytes());
    let version = u32::from_be_bytes(*bytes[16..20].first_chunk().unwrap());
    fs::write(folder.join(format!("chunk_{:016X}_{version:08X}.mfs", 0x1000)), bytes).unwrap();
}

/// Names of operations in all change logs of a folder.
fn operations(folder: &Path) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_name().to_string_lossy().starts_with("changelog.") {
            let bytes = fs::read(entry.path()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            names.extend(text.lines().filter_map(|line| Some(line.split_once('|')?.1.split_once('(')?.0.to_owned())));
        }
    }
    names
}

/// The number of the last line, 0 before there is one.
fn last_change(log: &Path) -> u64 {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().last().and_then(|line| line.split(':').next());
    last.map_or(0, |number| number.parse().unwrap_or(0))
}

/// What our import makes of a folder, as MooseFS's own tool prints it.
fn imported(cluster: &Cluster, left: &Path) -> Vec<String> {
    let (ours, file) = (cluster.scratch("imported"), cluster.scratch("exported.mfs"));
    let text = |path: &Path| path.display().to_string();
    let said = mooring(&["import", &text(left), "--to", &text(&ours)]);
    assert!(said.contains("changes applied"), "{said}");
    mooring(&["export", "--from", &text(&ours), "--to", &text(&file)]);
    let lines = dump(&file);
    assert_same_sums(&file, &ours.join("metadata.mfs"));
    fs::remove_dir_all(ours).unwrap();
    fs::remove_file(file).unwrap();
    lines
}

fn assert_same(cluster: &Cluster, left: &Path, stored: Vec<String>, leave: impl Fn(&str) -> bool + Copy) {
    let (ours, stock) = (unlike(&imported(cluster, left), leave), unlike(&stored, leave));
    let only = |some: &[String], others: &[String]| {
        let others: BTreeSet<&String> = others.iter().collect();
        some.iter().filter(|line| !others.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    assert!(stock.len() > 200, "there is something to compare: {} lines", stock.len());
    assert!(ours == stock, "ours alone:\n{}\nMooseFS's alone:\n{}", only(&ours, &stock), only(&stock, &ours));
}

/// Lines in order, without what cannot be the same: counters of operations, which are in no change log; lengths of
/// sections, which depend on what sessions there are; the order of a hash table.
fn unlike(lines: &[String], leave: impl Fn(&str) -> bool) -> Vec<String> {
    let comparable = |line: &String| match line.split_once("|c:[") {
        Some((front, behind)) => format!("{front}|i:{}", behind.split_once("|i:").unwrap().1),
        None => line.split(" ; length: ").next().unwrap().to_owned(),
    };
    let mut lines: Vec<String> = lines.iter().filter(|line| !leave(line)).map(comparable).collect();
    lines.sort();
    lines
}

fn dump(file: &Path) -> Vec<String> {
    let output = Command::new("/usr/sbin/mfsmetadump").arg(file).output().unwrap();
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stdout));
    output.stdout.split(|byte| *byte == b'\n').map(|line| line.escape_ascii().to_string()).collect()
}

fn mooring(arguments: &[&str]) -> String {
    let output = Command::new(mooring_binary().unwrap()).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "mooring {arguments:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
}
