//! MooseFS's command-line tools under our master and under MooseFS's: the same commands, in the same order, say and do the
//! same, also when they fail. Spec 71.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::compare;
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
    let chunkservers = [Kind::Stock, Kind::Stock];
    let mut ours = Cluster::start("tools-ours", Layout::new(Kind::Mooring, &chunkservers));
    let mut stock = Cluster::start_beside(&ours, "tools-stock", Layout::new(Kind::Stock, &chunkservers));
    let mounts = [&mut ours, &mut stock].map(|cluster| {
        let mount = cluster.mount(Kind::Stock);
        fs::create_dir_all(mount.join("folder/below")).unwrap();
        fs::create_dir(mount.join("second")).unwrap();
        fs::write(mount.join("folder/file"), vec![7; 300_000]).unwrap();
        fs::write(mount.join("folder/below/other"), b"text").unwrap();
        fs::write(mount.join("empty"), b"").unwrap();
        std::os::unix::fs::symlink("folder/file", mount.join("link")).unwrap();
        [mount]
    });
    let answers = compare::both((&ours, &mounts[0]), (&stock, &mounts[1]), COMMANDS);
    compare::assert_same(&answers);
    let done = answers.iter().filter(|(_, said)| said.contains("exit status: 0")).count();
    assert!(done * 2 > answers.len(), "most commands work: {done} of {}", answers.len());
}
