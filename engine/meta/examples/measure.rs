//! Speed and memory of the namespace: `cargo run --release --example measure [millions of files [empty]]`.
//!
//! Creates files with 19-letter names in directories of a thousand, empty and (without the second word) with one chunk
//! each, then looks them up in random order, sets times, freezes, writes and loads an image, and replays the journal. Times are
//! processor time, save for those of single requests: their worst is measured by the clock, beside an image that
//! another thread writes and without one.

use std::time::{Duration, Instant};

use meta::journal::Batch;
use meta::session::SessionParams;
use meta::{Caller, Namespace, Policy};
use wire::{Inode, MetaId, NodeKind, Time, VersionWord};

const NOW: u32 = 1_800_000_000;

fn main() {
    let millions: f64 = std::env::args().nth(1).and_then(|word| word.parse().ok()).unwrap_or(1.0);
    let files = (millions * 1e6) as u64;
    let is_empty = std::env::args().nth(2).is_some_and(|word| word == "empty");
    let before = resident_bytes();
    let mut ns = Namespace::new(MetaId(1), Policy::default(), NOW);
    let session = ns.session_add(NOW, SessionParams::full_access());
    let caller =
        Caller { session, version: VersionWord::OURS, uid: 0, gids: &[0], now: Time::at(NOW.into(), 123_456_789) };

    let directories: Vec<Inode> = (0..files.div_ceil(1000))
        .map(|n| ns.mkdir(&caller, Inode::ROOT, format!("directory{n}").as_bytes(), 0o755, 0, true).expect("new").0)
        .collect();
    let mut batch = ns.take_journal();
    let mut journal = std::mem::take(&mut batch.bytes);
    let mut inodes = Vec::with_capacity(files as usize);
    let timer = Timer::start("create, journal kept");
    for n in 0..files {
        let name = format!("file{n:015}");
        let parent = directories[(n / 1000) as usize];
        let made = ns.mknod(&caller, parent, name.as_bytes(), NodeKind::File, 0o644, 0, 0);
        inodes.push(made.expect("new").0);
        if n % 1000 == 0 {
            drain(&mut ns, &mut batch, &mut journal);
        }
    }
    timer.stop(files);
    drain(&mut ns, &mut batch, &mut journal);
    let own = |journal: &Vec<u8>, inodes: &Vec<Inode>| (journal.len() + inodes.len() * 4) as u64;
    let empty = resident_bytes() - before - own(&journal, &inodes);
    println!("bytes per empty file: {:.1}", empty as f64 / files as f64);
    println!("journal bytes per create: {:.1}", journal.len() as f64 / files as f64);

    let timer = Timer::start("look-up, random");
    let mut random = 1u64;
    for _ in 0..files {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = (random >> 20) % files;
        let mut name = *b"file000000000000000";
        let mut rest = n;
        for digit in name[4..].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        let found = ns.lookup(&caller, directories[(n / 1000) as usize], &name).expect("was made");
        assert_eq!(found.inode, inodes[n as usize]);
    }
    timer.stop(files);

    let timer = Timer::start("write grant and end");
    for (n, inode) in inodes.iter().enumerate().filter(|_| !is_empty) {
        let grant = ns.grant_write(NOW, *inode, 0, true, false).expect("a file");
        ns.write_end(session, VersionWord::OURS, NOW, *inode, grant.chunk, 5000, false).expect("granted");
        if n % 1000 == 0 {
            drain(&mut ns, &mut batch, &mut journal);
        }
    }
    timer.stop(files);
    drain(&mut ns, &mut batch, &mut journal);
    let full = resident_bytes() - before - own(&journal, &inodes);
    println!("bytes per file of one chunk: {:.1}", full as f64 / files as f64);
    println!("{:?}\n{:?}", ns.sizes(), ns.memory());
    let timer = Timer::start("times apart");
    for (n, inode) in inodes.iter().enumerate() {
        ns.amtime(NOW + 20, session, *inode, NOW + 10, NOW + 20);
        if n % 1000 == 0 {
            drain(&mut ns, &mut batch, &mut journal);
        }
    }
    timer.stop(files);
    drain(&mut ns, &mut batch, &mut journal);
    let apart = resident_bytes() - before - own(&journal, &inodes);
    println!("bytes per file whose times lie apart: {:.1}", apart as f64 / files as f64);
    journal.extend(pause(&mut ns, &caller, &directories, files));

    let timer = Timer::start("freeze");
    let snapshot = ns.freeze();
    timer.stop(1);
    let timer = Timer::start("image written");
    let image = meta::image::to_bytes(&snapshot, NOW);
    timer.stop(files);
    println!("image bytes per file: {:.1}", image.len() as f64 / files as f64);
    drop(snapshot);
    let timer = Timer::start("image loaded");
    let loaded = meta::image::load(&image, Policy::default()).expect("sound");
    timer.stop(files);
    assert_eq!(loaded.digest(), ns.digest());
    drop(loaded);
    drop(image);

    let timer = Timer::start("journal replayed (lines)");
    let mut again = Namespace::new(MetaId(1), Policy::default(), NOW);
    let lines = again.replay_lines(&journal).expect("own lines");
    timer.stop(lines);
    assert_eq!(again.digest(), ns.digest());

    let timer = Timer::start("unlink");
    for n in 0..files {
        let name = format!("file{n:015}");
        ns.unlink(&caller, directories[(n / 1000) as usize], name.as_bytes()).expect("exists");
        if n % 1000 == 0 {
            ns.take_journal();
        }
    }
    timer.stop(files);
}

/// The lines go the way that they go in a master: one buffer is filled again and again.
fn drain(ns: &mut Namespace, batch: &mut Batch, journal: &mut Vec<u8>) {
    batch.bytes.clear();
    ns.take_journal_into(batch);
    journal.extend(&batch.bytes);
}

/// The slowest of many requests, look-ups and renames of random files, with and without an image beside. Returns the
/// journal's lines.
fn pause(ns: &mut Namespace, caller: &Caller<'_>, directories: &[Inode], files: u64) -> Vec<u8> {
    let mut journal = Vec::new();
    let mut random = 7u64;
    let mut rounds = |ns: &mut Namespace, what: &str, is_over: &dyn Fn() -> bool, first: Duration| {
        let mut latencies = vec![first];
        while !is_over() || latencies.len() < 100_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let n = (random >> 20) % files;
            let (parent, name) = (directories[(n / 1000) as usize], format!("file{n:015}"));
            let begun = Instant::now();
            ns.lookup(caller, parent, name.as_bytes()).expect("was made");
            latencies.push(begun.elapsed());
            let begun = Instant::now();
            ns.rename(caller, (parent, name.as_bytes()), (parent, b"another name of 19!")).expect("is free");
            latencies.push(begun.elapsed());
            ns.rename(caller, (parent, b"another name of 19!"), (parent, name.as_bytes())).expect("is free");
            journal.extend(ns.take_journal().bytes);
        }
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
        let (count, worst) = (latencies.len(), at(1.0));
        println!("{what}: {count} requests, µs p50 {:.1}, p99.9 {:.1}, worst {worst:.1}", at(0.5), at(0.999));
    };
    rounds(ns, "no image", &|| true, Duration::ZERO);
    let begun = Instant::now();
    let snapshot = ns.freeze();
    let frozen = begun.elapsed(); // whoever comes then waits that long
    let writer = std::thread::spawn(move || {
        let begun = Instant::now();
        let written = meta::image::write::<()>(&snapshot, NOW, &mut |_| Ok(()));
        (written.is_ok(), begun.elapsed())
    });
    rounds(ns, "beside an image", &|| writer.is_finished(), frozen);
    let (is_whole, took) = writer.join().expect("it does not panic");
    assert!(is_whole);
    println!("freezing took {:.1} ms, writing {:.2} s", frozen.as_secs_f64() * 1e3, took.as_secs_f64());
    journal
}

struct Timer {
    what: &'static str,
    start_nanos: u64,
}

impl Timer {
    fn start(what: &'static str) -> Timer {
        Timer { what, start_nanos: processor_nanos() }
    }

    fn stop(self, count: u64) {
        let seconds = (processor_nanos() - self.start_nanos) as f64 / 1e9;
        let each = seconds * 1e9 / count as f64;
        println!("{}: {:.2} s, {:.0} ns each, {:.2} M/s", self.what, seconds, each, count as f64 / seconds / 1e6);
    }
}

/// Time that this thread had a processor: other load on the machine does not count.
fn processor_nanos() -> u64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    statistics.split(' ').next().and_then(|word| word.parse().ok()).expect("a number")
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 = statm.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number");
    pages * 4096
}
