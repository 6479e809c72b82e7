//! Programs that write through a mount, for the drills: `mooring-writers MOUNT COUNT SEED`. See `mooring_tests::load`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mount, count, seed] = &arguments[..] else { panic!("usage: mooring-writers MOUNT COUNT SEED") };
    let number = |text: &str| text.parse().expect("COUNT and SEED are numbers");
    mooring_tests::load::serve(&PathBuf::from(mount), number(count), number(seed));
}
