//! MooseFS's command-line tools under our master and under MooseFS's: the same commands, in the same order, say and do the
//! same, also when they fail. Spec 71.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs;
use std::path::Path;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];

/// One command a line; `@` is the mount.
const COMMANDS: &str = "
mfsgetgoal @ @/folder/file @/link
mfsgetgoal -r @
mfssetgoal 3 @/folder/file
mfssetgoal -r 2 @/folder
mfssetgoal -r 4+ @/folder
mfssetgoal -r 3- @/folder
mfssetgoal 0 @/folder
mfssetgoal 10 @/folder
mfssetgoal x @/folder
mfsgetgoal -r @/folder
mfsgetgoal @/nothing
mfssetgoal 2 @/nothing
mfscopygoal @/folder/file @/empty
mfsrgetgoal @
mfsrsetgoal 2 @/folder
mfsgettrashtime @ @/folder/file
mfsgettrashtime -r @
mfssettrashtime 3600 @/folder/file
mfssettrashtime -r 7200 @/folder
mfssettrashtime -r 86400+ @/folder
mfssettrashtime -r 3600- @/folder
mfssettrashtime x @/folder
mfsgettrashtime -r @/folder
mfscopytrashtime @/folder/file @/empty
mfsrgettrashtime @
mfsgeteattr @ @/folder/file
mfsgeteattr -r @
mfsseteattr -f noattrcache @/folder
mfsseteattr -r -f noowner -f noentrycache @/folder
mfsseteattr -f nonsense @/folder
mfsdeleattr -f noowner @/folder/file
mfscopyeattr @/folder/file @/empty
mfsgeteattr -r @/folder
mfsgetsclass @ @/folder/file
mfsgetsclass -r @
mfslistsclass @
mfslistsclass -l @
mfsscadmin @ list
mfsscadmin @ create -C *,* -K *,* fast
mfsscadmin @ create *,*,* slow
mfsscadmin @ create *,* fast
mfsscadmin @ create *, broken
mfsscadmin @ copy fast other
mfsscadmin @ copy nothing more
mfsscadmin @ create -m strict -K A,B -A C -d 30 -a 1 archived
mfsscadmin @ modify -m l fast
mfsscadmin @ modify -K *,* 5
mfsscadmin @ modify -f -K *,* 5
mfsscadmin @ rename other another
mfsscadmin @ modify -K *,*,* another
mfsscadmin @ list -l
mfssetsclass fast @/folder/file
mfssetsclass -r slow @/folder
mfssetsclass nothing @/folder
mfsxchgsclass -r slow fast @/folder
mfscopysclass @/folder/file @/empty
mfsgetsclass -r @
mfsscadmin @ delete fast
mfsscadmin @ delete another
mfsscadmin @ delete another
mfslistsclass -l @
mfssetquota -I 50 -L 10Mi @/folder
mfssetquota -i 10 -l 5Mi -s 100Mi -r 200Mi -p 3600 @/folder
mfssetquota -I 10 @/folder/file
mfsgetquota @/folder
mfsgetquota -H @/folder
mfsgetquota @
mfscopyquota @/folder @/second
mfsgetquota @/second
mfsdelquota -I @/folder
mfsgetquota @/folder
mfsdelquota -a @/folder @/second
mfsgetquota @/folder
mfscheckfile @/folder/file @/empty @/nothing
mfscheckfile @/folder
mfsfileinfo @/empty
mfsfileinfo @/folder/file
mfsfileinfo -c @/folder/file
mfsfileinfo -s @/folder/file
mfsfileinfo @/nothing
mfsfileinfo @/folder
mfsfilerepair @/folder/file
mfsfilerepair @/nothing
mfsdirinfo @
mfsdirinfo -h @/folder
mfsdirinfo -i -d -f -c @/folder
mfsdirinfo @/folder/file
mfsdirinfo @/nothing
mfsmakesnapshot @/folder @/copy
mfsmakesnapshot @/folder @/copy
mfsmakesnapshot -o @/folder @/copy
mfsmakesnapshot @/folder/file @/copied
mfsmakesnapshot @/nothing @/copy
mfsdirinfo @/copy
mfscheckfile @/copied
mfsappendchunks @/joined @/folder/file @/copied
mfsappendchunks @/joined @/empty
mfsappendchunks @/joined @/nothing
mfsdirinfo @/joined
mfscheckfile @/joined
mfsrmsnapshot @/copied
mfsrmsnapshot @/nothing
mfschkarchive @/folder/file
mfschkarchive @/folder
mfssetarchive @/folder/file
mfschkarchive @/folder/file
mfsclrarchive @/folder/file
mfschkarchive @/folder/file
mfsfilepaths @/folder/file
mfsgetgoal
mfssetgoal
mfsdirinfo
";

#[test]
fn tools_say_and_do_the_same_as_under_a_stock_master() {
    if !have("tools_say_and_do_the_same_as_under_a_stock_master", NEEDS) {
        return;
    }
    let run = |kind: Kind, name: &str| {
        let mut cluster = Cluster::start(name, Layout::new(kind, &[Kind::Stock, Kind::Stock]));
        let mount = cluster.mount(Kind::Stock);
        fs::create_dir_all(mount.join("folder/below")).unwrap();
        fs::create_dir(mount.join("second")).unwrap();
        fs::write(mount.join("folder/file"), vec![7; 300_000]).unwrap();
        fs::write(mount.join("folder/below/other"), b"text").unwrap();
        fs::write(mount.join("empty"), b"").unwrap();
        std::os::unix::fs::symlink("folder/file", mount.join("link")).unwrap();
        COMMANDS.lines().filter(|line| !line.is_empty()).map(|line| said(&cluster, &mount, line)).collect::<Vec<_>>()
    };
    let (found, wanted) = (run(Kind::Mooring, "tools-ours"), run(Kind::Stock, "tools-stock"));
    let differences: Vec<String> = found
        .iter()
        .zip(&wanted)
        .filter(|(found, wanted)| found != wanted)
        .map(|(found, wanted)| format!("--- ours\n{found}\n--- MooseFS's\n{wanted}"))
        .collect();
    assert!(differences.is_empty(), "{} of {}:\n{}", differences.len(), wanted.len(), differences.join("\n"));
    let done = wanted.iter().filter(|said| said.contains("exit status: 0")).count();
    assert!(done * 2 > wanted.len(), "most commands work: {done} of {}", wanted.len());
}

/// The command, how it ended, and all that it printed.
fn said(cluster: &Cluster, mount: &Path, line: &str) -> String {
    let mut words = line.split(' ');
    let mount = mount.display().to_string();
    let arguments = words.clone().skip(1).map(|word| word.replace('@', &mount));
    let output = cluster.command(words.next().unwrap()).args(arguments).output().unwrap();
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text).replace(&mount, "@");
    // Which copy is named first is drawn by lot.
    let mut lines: Vec<String> = text.lines().map(without_number_of_copy).collect();
    lines.chunk_by_mut(|one, other| one.contains("copy: ") && other.contains("copy: ")).for_each(<[_]>::sort);
    format!("$ {line}\n{}\n{}", output.status, lines.join("\n"))
}

fn without_number_of_copy(line: &str) -> String {
    match line.split_once("copy ") {
        Some((front, rest)) if rest.starts_with(|first: char| first.is_ascii_digit()) => {
            format!("{front}copy{}", rest.trim_start_matches(|digit: char| digit.is_ascii_digit()))
        }
        _ => line.to_owned(),
    }
}
