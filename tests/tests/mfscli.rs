//! What MooseFS's `mfscli` prints of our master and of MooseFS's, after the same commands.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::daemon::Daemon;
use mooring_tests::need::{Need, have};
use mooring_tests::wait::{comes_true, wait_for};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];

/// Every section but the charts, and what must occur in it, so that nothing is compared with nothing.
const SECTIONS: &[(&str, &[&str])] = &[
    ("-SIN", &["metadata servers:", "total space", "nodes", "chunkclass stable", "chunk loop", "check loop"]),
    ("-SIM", &["metadata servers:"]),
    ("-SLI", &[]),
    ("-SIG", &["trash files\t2", "sustained files\t1", "all fs objects"]),
    ("-SMU", &["nodes", "quota"]),
    ("-SIC", &["goal/copies/chunks:", "chunkclass stable"]),
    ("-SIL", &["chunk loop", "check loop"]),
    ("-SMF", &[]),
    ("-SCS", &["10.77.0.11", "10.77.0.12", "A", "B"]),
    ("-SMB", &["3.0.117"]),
    ("-SHD", &["chunkserver0/hdd", "chunkserver1/hdd"]),
    ("-SEX", &["10.99.255.255", "10.98.0.9"]),
    ("-SMS", &["FOLDER/mnt0", "FOLDER/mnt1", "FOLDER/meta2"]),
    ("-SRS", &["strict", "open file", "lock"]),
    ("-SSC", &["strict", "second"]),
    ("-SOF", &["held", "folder/file"]),
    ("-SAL", &["POSIX"]),
    ("-SMO", &["FOLDER/mnt0"]),
    ("-SQU", &["/folder", "/narrow"]),
];

#[test]
fn sections_of_mfscli_are_those_of_a_stock_master() {
    if !have("sections_of_mfscli_are_those_of_a_stock_master", NEEDS) {
        return;
    }
    not_at_the_end_of_an_hour();
    let layout = |master: Kind, second: Kind| {
        let mut layout = Layout::new(master, &[Kind::Stock, second]);
        layout.labels = ["A", "B"].map(str::to_owned).to_vec();
        layout.exports = EXPORTS.into();
        layout.master_extra = "CHUNKS_LOOP_MIN_TIME = 3600\n".into(); // no loop ends here, and all say so
        layout
    };
    let ours = Cluster::start("cli-ours", layout(Kind::Mooring, Kind::Mooring));
    let stock = Cluster::start_beside(&ours, "cli-stock", layout(Kind::Stock, Kind::Stock));
    let mut pair = [ours, stock];
    let mut holders: Vec<Vec<Daemon>> = Vec::new();
    let mut fitting = Vec::new();
    for cluster in &mut pair {
        let mount = cluster.mount(Kind::Stock);
        work(cluster, &mount);
        fitting.push(files_that_fit(cluster, &mount));
        fs::create_dir(mount.join("below")).unwrap();
        cluster.mount_with(Kind::Stock, &["-S", "below", "-o", "ro"]);
        cluster.mount_meta();
        classes(cluster, &mount);
        fs::write(mount.join("held"), b"held").unwrap();
        fs::write(mount.join("thrown away"), b"trash").unwrap();
        tool(cluster, &["mfssettrashtime", "0"], &mount.join("held"));
        fs::remove_file(mount.join("thrown away")).unwrap();
        holders.push(vec![
            hold(cluster, "held", &mount.join("held"), ""),
            hold(cluster, "range", &mount.join("folder/file"), RANGE_LOCK),
        ]);
        fs::remove_file(mount.join("held")).unwrap();
        cluster.start_metalogger_anyhow(Kind::Stock);
    }
    assert_eq!(fitting[0], fitting[1], "files under a hard limit of three inodes");
    let [ours, stock] = &mut pair;
    let mut wrong = Vec::new();
    for (section, needed) in SECTIONS {
        compare(ours, stock, section, needed, &mut wrong);
    }
    // MooseFS's writes both kinds of locks over one another, so they are looked at one after the other.
    for (holders, cluster) in holders.iter_mut().zip([&*ours, &*stock]) {
        holders.pop();
        holders.push(hold(cluster, "flock", &cluster.scratch("mnt0/folder/file"), "flock($file, 1) or die $!;"));
    }
    compare(ours, stock, "-SAL", &["FLOCK"], &mut wrong);
    // -SMO shows the last hour; this hour's counters are in the same packet. How often a kernel asks for the space, and
    // asks again for attributes and names when it is slow and its cache grows old, is not ours to say.
    let (mut found, mut wanted) = (operations(ours), operations(stock));
    assert!(wanted[4] > 0, "the directories were counted: {wanted:?}");
    for by_the_kernel in [0, 1, 3] {
        for counts in [&mut found, &mut wanted] {
            counts[by_the_kernel] = counts[by_the_kernel].min(1);
        }
    }
    assert_eq!(found, wanted, "operations of the session, in the order of Spec 70, 4.3");
    // A server goes: what was there alone is missing.
    for cluster in [&mut *ours, &mut *stock] {
        cluster.stop_chunkserver(1);
    }
    compare(ours, stock, "-SCS", &["Disconnected", "maintenance_temp_on"], &mut wrong);
    compare(ours, stock, "-SIC", &["chunkclass missing:\t1", "chunkclass endangered:"], &mut wrong);
    compare(ours, stock, "-SSC", &["NO"], &mut wrong);
    compare(ours, stock, "-SHD", &["chunkserver0/hdd"], &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lines of all kinds; those for other addresses concern nobody here.
const EXPORTS: &str = "*  / rw,alldirs,admin,maproot=0:0\n*  . rw\n\
    10.99.0.0/16 / ro,mapall=500:600,mingoal=2,maxgoal=5,mintrashtime=1h,maxtrashtime=2d,password=word\n\
    10.98.0.1-10.98.0.9 /folder rw,ignoregid,minversion=2.1.0,maproot=7:8,umask=0027,disable=mkfifo:unlink\n";

/// Waits until a section reads the same under both masters, and has what it needs.
fn compare(ours: &Cluster, stock: &Cluster, section: &str, needed: &[&str], wrong: &mut Vec<String>) {
    let mut texts = (String::new(), String::new());
    let fine = comes_true(Duration::from_secs(5), || {
        texts = (plain(section, &mfscli(ours, section)), plain(section, &mfscli(stock, section)));
        texts.0 == texts.1 && needed.iter().all(|text| texts.1.contains(text))
    });
    println!("{section}\n{}", texts.1);
    if !fine {
        wrong.push(format!("{section} (with {needed:?}): ours\n{}\nMooseFS's\n{}", texts.0, texts.1));
    }
}

/// A section without what must differ between two masters, or two moments.
fn plain(section: &str, text: &str) -> String {
    let lines = text.lines().filter_map(|line| {
        let columns: Vec<&str> = line.split('\t').collect();
        let hidden: &[usize] = match (columns[0], section) {
            // Time, number of changes, memory, CPU, and the sum over the exports' lines, whose way is each master's own.
            ("metadata servers:", _) => &[4, 5, 7, 8, 12],
            ("memory usage detailed info:", _) => &[2, 3],
            ("master info:", _) => match columns[1] {
                name if name.starts_with("CPU used") => return None, // not before a minute has ended
                "RAM used" | "avail space" | "free space" => &[2],
                _ => &[],
            },
            // Who came first, space that is used on a disk of this machine, and what disks did in the last minute.
            ("chunk servers:", _) => &[3, 9],
            (name, "-SCS") if name.contains("Disconnected") => &[3],
            ("disks:", _) => &[5, 6, 7, 8, 9, 10, 11, 12, 13],
            // The kernel's name of who holds it.
            (name, "-SAL" | "-SRS") if name.contains("lock") => &[6, 7],
            _ => &[],
        };
        let shown = |(at, column)| if hidden.contains(&at) { "~" } else { column };
        Some(columns.into_iter().enumerate().map(shown).collect::<Vec<_>>().join("\t"))
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A process that keeps a file open, after it has done to it what the script says.
fn hold(cluster: &Cluster, name: &str, path: &Path, script: &str) -> Daemon {
    let script = format!("open(my $file, '+<', $ARGV[0]) or die $!; {script} $| = 1; print \"holds\\n\"; sleep 1000;");
    let mut command = cluster.command("perl");
    command.args(["-e", &script]).arg(path);
    let mut holder = Daemon::start(name, command, &cluster.scratch("logs").join(format!("{name}.log")));
    wait_for("the file is held", Duration::from_secs(20), || {
        assert!(holder.ended().is_none(), "{}", holder.log_text());
        holder.log_text().contains("holds").then_some(())
    });
    holder
}

/// F_SETLK (6) of a write lock (1) on 90 bytes from the tenth on.
const RANGE_LOCK: &str = "my $lock = pack('s s x4 q q l x4', 1, 0, 10, 90, 0); fcntl($file, 6, $lock) or die $!;";

/// Storage classes by labels, and files in them.
fn classes(cluster: &Cluster, mount: &Path) {
    let mount_text = mount.display().to_string();
    for arguments in [&["create", "-m", "s", "-K", "A,B", "strict"][..], &["create", "-K", "B", "second"]] {
        let output = cluster.command("mfsscadmin").arg(&mount_text).args(arguments).output().unwrap();
        assert!(output.status.success(), "mfsscadmin: {}", String::from_utf8_lossy(&output.stderr));
    }
    for class in ["strict", "second"] {
        let folder = mount.join(format!("by-{class}"));
        fs::create_dir(&folder).unwrap();
        tool(cluster, &["mfssetsclass", class], &folder);
        fs::write(folder.join("file"), class).unwrap();
    }
}

fn tool(cluster: &Cluster, words: &[&str], path: &Path) {
    let output = cluster.command(words[0]).args(&words[1..]).arg(path).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn charts_of_mfscli_are_those_of_stock_servers_from_the_same_files_and_so_are_the_files() {
    if !have("charts_of_mfscli_are_those_of_stock_servers_from_the_same_files_and_so_are_the_files", NEEDS) {
        return;
    }
    // What happens today is each server's own: the files end with yesterday, of local time.
    let today = days_since_the_epoch();
    let files = |with: &mut Layout| {
        with.time_zone = Some("XXX-9"); // nine hours ahead
        with.files.insert("master/stats.mfs".into(), charts_file(MASTER_CHARTS, today));
        with.files.insert("chunkserver0/var/csstats.mfs".into(), charts_file(CHUNKSERVER_CHARTS, today));
    };
    let mut layouts = [Layout::ours(1), Layout::new(Kind::Stock, &[Kind::Stock])];
    layouts.iter_mut().for_each(files);
    let [ours, stock] = layouts;
    let mut ours = Cluster::start("cli-charts-ours", ours);
    let mut stock = Cluster::start_beside(&ours, "cli-charts-stock", stock);
    for range in ["0", "1", "2", "3"] {
        for (section, count, columns, prefix) in [
            ("-SMC", "-a", MASTER_CHARTS, &["", "+"][..]),
            ("-SCC", "-c", CHUNKSERVER_CHARTS, &["10.77.0.11:9422:", "10.77.0.11:9422:+"]),
        ] {
            let mut arguments = vec![section.to_owned(), "-m".into(), range.into(), count.into(), "4096".into()];
            for prefix in prefix {
                let option = if section == "-SMC" { "-b" } else { "-d" };
                // `mfscli` knows no chart of a chunkserver's changed chunks; it is in the file all the same.
                let columns = columns.split(' ').filter(|name| section == "-SMC" || *name != "change");
                arguments.extend(columns.flat_map(|name| [option.to_owned(), format!("{prefix}{name}")]));
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let lines = |cluster| until(today, &mfscli_with(cluster, &arguments));
            let (found, wanted) = (lines(&ours), lines(&stock));
            let known = wanted.iter().filter(|line| line.split('\t').nth(2).is_some_and(|value| value != "-")).count();
            assert!(known > 80, "{section}, range {range}: only {known} points of {} are known", wanted.len());
            let wrong = found.iter().zip(&wanted).find(|(found, wanted)| found != wanted);
            assert_eq!(wrong, None, "{section}, range {range}: ours, then MooseFS's");
            assert_eq!(found.len(), wanted.len(), "{section}, range {range}");
        }
    }
    ours.stop_everything();
    stock.stop_everything();
    for name in ["master/stats.mfs", "chunkserver0/var/csstats.mfs"] {
        let [ours, stock] =
            [&ours, &stock].map(|cluster| known_points(&fs::read(cluster.scratch(name)).unwrap(), today));
        assert!(stock.len() > 30 && stock.values().all(|points| points.iter().all(|range| range.len() > 80)), "{name}");
        assert_eq!(ours.keys().collect::<Vec<_>>(), stock.keys().collect::<Vec<_>>(), "{name}");
        for (series, points) in &ours {
            assert!(points == &stock[series], "{name}: the series {series} is another one");
        }
    }
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
        cluster.mount(Kind::Stock);
        let mut said = vec![servers(&cluster), sessions(&cluster)];
        for command in COMMANDS {
            said.extend([mfscli(&cluster, command), servers(&cluster), sessions(&cluster)]);
        }
        let (present, connected) = (servers(&cluster), sessions(&cluster));
        cluster.stop_chunkserver(0);
        cluster.mount_daemon(0).kill();
        let gone = || (servers(&cluster) != present && sessions(&cluster) != connected).then_some(());
        wait_for("server and mount are seen to be away", Duration::from_secs(60), gone);
        said.extend([servers(&cluster), sessions(&cluster)]);
        said.extend([mfscli(&cluster, "-CRC/10.77.0.11/9422"), servers(&cluster)]);
        said.extend([mfscli(&cluster, "-CRS/1"), sessions(&cluster)]);
        said
    };
    let (found, wanted) = (said(Kind::Mooring, "cli-command-ours"), said(Kind::Stock, "cli-command-stock"));
    println!("{wanted:#?}");
    assert!(
        wanted.iter().any(|text| text.contains("back to work")) && wanted.last().unwrap().is_empty(),
        "{wanted:#?}"
    );
    assert_eq!(found, wanted);

    let mut layout = Layout::new(Kind::Mooring, &[Kind::Stock]);
    layout.exports = "* / rw,alldirs,maproot=0:0\n".into();
    let mut cluster = Cluster::start("cli-command-refused", layout);
    cluster.mount(Kind::Stock);
    cluster.mount_daemon(0).kill();
    let left = wait_for("the session has no connection", Duration::from_secs(60), || {
        Some(sessions(&cluster)).filter(|text| text.ends_with("away"))
    });
    cluster.stop_chunkserver(0);
    wait_for("the server is away", Duration::from_secs(60), || {
        servers(&cluster).contains("Disconnected").then_some(())
    });
    let before = servers(&cluster);
    for command in COMMANDS.iter().chain(&["-CRC/10.77.0.11/9422", "-CRS/1"]) {
        println!("{command}: {}", mfscli(&cluster, command).trim());
        assert_eq!(
            (servers(&cluster), sessions(&cluster)),
            (before.clone(), left.clone()),
            "nobody is an administrator"
        );
    }
}

/// With a connected server and a connected session.
const COMMANDS: &[&str] = &[
    "-CM1/10.77.0.11/9422",
    "-CM0/10.77.0.11/9422",
    "-CM1/10.77.0.99/9422",
    "-CBW/10.77.0.11/9422",
    "-CBW/10.77.0.99/9422",
    "-CRC/10.77.0.11/9422",
    "-CRS/1",
    "-CRS/77",
];

/// Sessions by number, address, mount point, open files and connections; one without has its seconds left there.
fn sessions(cluster: &Cluster) -> String {
    let text = mfscli(cluster, "-SMS");
    let seconds = |word: &str| word.parse::<u32>().is_ok_and(|seconds| seconds > 80_000);
    let columns = |line: &str| {
        let words = line.split('\t').skip(1).take(5);
        words.map(|word| if seconds(word) { "away" } else { word }).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(columns).collect::<Vec<_>>().join("\n").trim().to_owned()
}

/// Series in the order of Spec 70, 6.1.
const MASTER_CHARTS: &str = "ucpu scpu delete replicate statfs getattr setattr lookup mkdir rmdir symlink readlink mknod \
    unlink rename link readdir open read write memoryrss prcvd psent brcvd bsent memoryvirt usedspace totalspace create \
    change delete_ok delete_err replicate_ok replicate_err create_ok create_err change_ok change_err";
const CHUNKSERVER_CHARTS: &str = "ucpu scpu masterin masterout csrepin csrepout csservin csservout hdrbytesr hdrbytesw \
    hdrllopr hdrllopw databytesr databytesw datallopr datallopw hlopr hlopw rtime wtime repl create delete version \
    duplicate truncate duptrunc test load memoryrss memoryvirt movels movehs change";

const POINTS: u64 = 4096;
const NO_DATA: u64 = u64::MAX;
const RANGE_MINUTES: [u64; 4] = [1, 6, 30, 1440];

/// In a place that is nine hours ahead.
fn days_since_the_epoch() -> u64 {
    let unix_seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    (unix_seconds + 9 * 3600) / 86_400
}

/// A file of charts whose newest point is the last minute of yesterday. Spec 70, 6.2.
fn charts_file(names: &str, today: u64) -> Vec<u8> {
    let names: Vec<&str> = names.split(' ').collect();
    let minute = today * 1440 - 1;
    let head = [0x0001_0000, POINTS as u32, names.len() as u32, minute as u32];
    let mut file: Vec<u8> = head.iter().flat_map(|word| word.to_be_bytes()).collect();
    for (series, name) in names.iter().enumerate() {
        let mut padded = [0; 100];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        file.extend(padded);
        for range in 0..4 {
            let value = |at: u64| match at {
                ..100 => NO_DATA,
                at if at % 11 == 3 => NO_DATA,
                at => (at * 7919 % 1009) * 10u64.pow(series as u32 % 9) + range * 3 + series as u64,
            };
            file.extend((0..POINTS).flat_map(|at| value(at).to_be_bytes()));
        }
    }
    file
}

/// Points of each series in a file of charts by range and time, as far as they are of days before `today`.
fn known_points(file: &[u8], today: u64) -> BTreeMap<String, [BTreeMap<u64, u64>; 4]> {
    let word = |at: usize| u32::from_be_bytes(*file[at..].first_chunk().unwrap());
    assert_eq!((word(0), word(4)), (0x0001_0000, POINTS as u32));
    let (series_bytes, minute) = (100 + 4 * POINTS as usize * 8, u64::from(word(12)));
    assert_eq!(file.len(), 16 + word(8) as usize * series_bytes);
    let series = file[16..].chunks_exact(series_bytes).map(|series| {
        let name = series[..100].split(|byte| *byte == 0).next().unwrap();
        let ranges = std::array::from_fn(|range| {
            let points = series[100..].chunks_exact(POINTS as usize * 8).nth(range).unwrap().chunks_exact(8);
            let newest = minute / RANGE_MINUTES[range];
            let points = points
                .enumerate()
                .map(|(at, point)| (newest + 1 + at as u64 - POINTS, u64::from_be_bytes(point.try_into().unwrap())));
            let before = |time: u64| (time + 1) * RANGE_MINUTES[range] <= today * 1440;
            points.filter(|(time, point)| *point != NO_DATA && before(*time)).collect()
        });
        (String::from_utf8_lossy(name).into_owned(), ranges)
    });
    series.collect()
}

/// Lines of a chart that are older than `today`.
fn until(today: u64, text: &str) -> Vec<String> {
    let output =
        Command::new("date").args(["-u", "-d", &format!("@{}", today * 86_400), "+%Y-%m-%d"]).output().unwrap();
    let day = String::from_utf8(output.stdout).unwrap();
    let older = |line: &&str| line.split('\t').nth(1).is_some_and(|time| time < day.trim());
    text.lines().filter(older).map(str::to_owned).collect()
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
    tool(cluster, &["mfssetquota", "-I", "100", "-L", "1GiB"], &mount.join("folder"));
}

/// Makes files in a folder that may have three inodes, until that is refused; how many there are then.
fn files_that_fit(cluster: &Cluster, mount: &Path) -> usize {
    let narrow = mount.join("narrow");
    fs::create_dir(&narrow).unwrap();
    tool(cluster, &["mfssetquota", "-I", "3"], &narrow);
    (0..10).take_while(|number| fs::write(narrow.join(number.to_string()), b"").is_ok()).count()
}

/// This hour's counters of the first session, and the last hour's behind them. Spec 70, 4.3.
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
    // How many counters there are, then the sessions, of variable length.
    let mut sessions = &payload[2..];
    loop {
        let mount_bytes = word(&sessions[21..]) as usize;
        let path_bytes = word(&sessions[25 + mount_bytes..]) as usize;
        let head_bytes = 29 + mount_bytes + path_bytes + 33;
        let (session, others) = sessions.split_at(head_bytes + COUNTERS_BYTES);
        if word(session) == 1 {
            return session[head_bytes..].chunks_exact(4).map(word).collect();
        }
        sessions = others;
    }
}

/// A section as plain text, without the folder of the cluster.
fn mfscli(cluster: &Cluster, section: &str) -> String {
    mfscli_with(cluster, &[section])
}

fn mfscli_with(cluster: &Cluster, arguments: &[&str]) -> String {
    let mut command = cluster.command("mfscli");
    let output = command.args(["-H", "10.77.0.1", "-p", "-n"]).args(arguments).output().expect("mfscli runs");
    assert!(output.status.success(), "mfscli {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let folder = cluster.scratch("").display().to_string();
    String::from_utf8_lossy(&output.stdout).replace(folder.trim_end_matches('/'), "FOLDER")
}
