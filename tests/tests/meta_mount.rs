//! The trash and the sustained files as MooseFS's META mount shows them, under our master and under MooseFS's. Spec 32 and 71.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on may say so by panicking")]

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::time::Duration;

use mooring_tests::cluster::{Cluster, Kind, Layout};
use mooring_tests::need::{Need, have};
use mooring_tests::wait::wait_for;

const NEEDS: &[Need] = &[Need::Root, Need::Fuse, Need::Stock, Need::Mooring];

#[test]
fn trash_and_sustained_files_are_shown_and_brought_back_as_by_a_stock_master() {
    if !have("trash_and_sustained_files_are_shown_and_brought_back_as_by_a_stock_master", NEEDS) {
        return;
    }
    let (found, wanted) = (history(Kind::Mooring, "meta-ours"), history(Kind::Stock, "meta-stock"));
    assert_eq!(found, wanted, "ours, then MooseFS's");
    assert!(wanted.iter().any(|fact| fact.contains("folder|back")), "the trash was seen: {wanted:#?}");
}

/// What is seen while files are deleted, looked for, renamed in the trash, brought back and deleted for good.
fn history(kind: Kind, name: &str) -> Vec<String> {
    let mut cluster = Cluster::start(name, Layout::new(kind, &[Kind::Stock]));
    let mount = cluster.mount(Kind::Stock);
    fs::create_dir(mount.join("folder")).unwrap();
    for file in ["back", "elsewhere", "gone", "stays"] {
        fs::write(mount.join("folder").join(file), file).unwrap();
    }
    fs::write(mount.join("held"), b"still open").unwrap();
    let output = cluster.command("mfssettrashtime").arg("0").arg(mount.join("held")).output().unwrap();
    assert!(output.status.success());
    let held = File::open(mount.join("held")).unwrap();
    for file in ["folder/back", "folder/elsewhere", "folder/gone", "folder/stays", "held"] {
        fs::remove_file(mount.join(file)).unwrap();
    }
    let meta = cluster.mount_meta();
    let mut facts = all_below(&meta);
    let in_trash = |what: &str| {
        let path = all_paths(&meta.join("trash")).into_iter().find(|path| path.contains(what));
        meta.join("trash").join(path.unwrap_or_else(|| panic!("{what} is not in the trash")))
    };
    let (back, elsewhere, gone) = (in_trash("|back"), in_trash("|elsewhere"), in_trash("|gone"));
    facts.push(format!("back: {:?}", fs::read_to_string(&back)));
    facts.push(format!("new path: {:?}", outcome(fs::write(&elsewhere, "second/new name"))));
    facts.push(format!("new path reads: {:?}", fs::read_to_string(&elsewhere)));
    facts.push(format!("bad path: {:?}", outcome(fs::write(&elsewhere, "a//../b"))));
    facts.extend(all_below(&meta));
    facts.push(format!("undel of a bad path: {:?}", outcome(undelete(&elsewhere))));
    facts.push(format!("new path again: {:?}", outcome(fs::write(&elsewhere, "second/new name"))));
    for path in [&back, &elsewhere] {
        facts.push(format!("undel: {:?}", outcome(undelete(path))));
    }
    facts.push(format!("rm: {:?}", outcome(fs::remove_file(&gone))));
    facts.push(format!("mkdir: {:?}", outcome(fs::create_dir(meta.join("trash/new")))));
    facts.push(format!("create: {:?}", outcome(fs::write(meta.join("trash/new"), b""))));
    wait_for("the file is back", Duration::from_secs(10), || fs::read(mount.join("folder/back")).ok());
    for file in ["folder/back", "second/new name", "folder/gone", "folder/stays"] {
        facts.push(format!("{file}: {:?}", fs::read_to_string(mount.join(file)).map_err(|error| error.kind())));
    }
    facts.push("afterwards".to_owned());
    facts.extend(all_below(&meta));
    drop(held);
    facts
}

fn undelete(path: &Path) -> io::Result<()> {
    fs::rename(path, path.parent().unwrap().join("undel").join(path.file_name().unwrap()))
}

fn outcome(result: io::Result<()>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Names below a folder that are no folders, or folders of whose kind there is one, in their order.
fn all_paths(folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(here) = open.pop() {
        for entry in fs::read_dir(&here).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                paths.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    paths.sort();
    paths
}

/// Files of the trash and sustained ones with kind, size and links, and the number of folders.
fn all_below(meta: &Path) -> Vec<String> {
    let mut facts = Vec::new();
    for folder in ["trash", "sustained"] {
        let folders = fs::read_dir(meta.join(folder)).unwrap().count();
        facts.push(format!("{folder}: {folders} entries"));
        for path in all_paths(&meta.join(folder)) {
            let found = fs::symlink_metadata(meta.join(folder).join(&path)).unwrap();
            facts.push(format!("{folder}/{path} {:?} {} bytes", found.file_type(), found.len()));
        }
    }
    facts
}
