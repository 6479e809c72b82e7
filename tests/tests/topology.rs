//! A running master is told of racks and of new settings: a reload, under our master and under MooseFS's. Spec 60, 5 and 11.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::daemon::signal;
use mooring_tests::namespace::chunkserver_address;
use mooring_tests::need::{Need, have};
use mooring_tests::wait::wait_until;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];
const LIMIT: Duration = Duration::from_secs(20);
/// Enough that both servers get some, when nothing says otherwise.
const FILES: usize = 8;

#[test]
fn new_files_follow_racks_and_settings_that_a_reload_brings() {
    if !have("new_files_follow_racks_and_settings_that_a_reload_brings", NEEDS) {
        return;
    }
    for kind in [Kind::Mooring, Kind::Stock] {
        let mut cluster = Cluster::start("topology", Layout::new(kind, &[Kind::Stock, Kind::Stock]));
        let mount = cluster.mount(Kind::Stock);
        fs::create_dir(mount.join("folder")).unwrap();
        cluster.set_goal(&mount, 1);
        assert_eq!(holders(&cluster, &mount, "first"), BTreeSet::from([0, 1]), "{kind:?}: in turn");

        let settings = cluster.scratch("mfsmaster.cfg");
        let text = fs::read_to_string(&settings).unwrap();
        fs::write(
            &settings,
            text.replace("MATOML_LISTEN_PORT = 9419", "MATOML_LISTEN_PORT = 9519\nCREATIONS_RESPECT_TOPOLOGY = 2"),
        )
        .unwrap();
        for near in [1, 0] {
            let near_address = chunkserver_address(near);
            let racks = format!("# all\n* far\nnonsense\n10.77.0.1 room|near\n{near_address}/32 room|near # it\n");
            fs::write(cluster.scratch("mfstopology.cfg"), racks).unwrap();
            reload(&mut cluster, "incomplete definition in line: 3");
            let what = format!("near{near}");
            assert_eq!(holders(&cluster, &mount, &what), BTreeSet::from([near]), "{kind:?}: in the writer's rack");
        }
        assert!(cluster.master().listens_on(9519), "{kind:?}: the port for metaloggers moved");
    }
}

/// SIGHUP, until the log has one more line that a reload writes.
fn reload(cluster: &mut Cluster, line: &str) {
    let said = |cluster: &mut Cluster| cluster.master().log_text().matches(line).count();
    let before = said(cluster);
    signal(cluster.master().pid(), "HUP");
    wait_until("the master to read its files again", LIMIT, || said(cluster) > before);
    // It is the topology's line, which the settings precede; the next request comes behind it.
    let loaded = ["topology file has been loaded", "topology read again"];
    wait_until("the topology to count", LIMIT, || {
        let text = cluster.master().log_text();
        text.rfind(line).is_some_and(|at| loaded.iter().any(|loaded| text[at..].contains(loaded)))
    });
}

/// Writes some files of one chunk and tells which servers have them.
fn holders(cluster: &Cluster, mount: &Path, name: &str) -> BTreeSet<usize> {
    let before: BTreeSet<u64> = cluster.copies().into_keys().collect();
    for number in 0..FILES {
        fs::write(mount.join("folder").join(format!("{name}-{number}")), [7; 100]).unwrap();
    }
    let mut found = BTreeSet::new();
    for (_, copies) in cluster.copies().into_iter().filter(|(chunk, _)| !before.contains(chunk)) {
        found.extend(copies.iter().map(|copy| copy.server));
    }
    found
}
