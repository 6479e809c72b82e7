//! What the namespace costs on one core, without network and disk: look-ups, and creates with their journal lines.
//! Reported, never asserted. 100,000 files in folders of 1000 are there; names have 19 letters.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use meta::journal::Batch;
use meta::session::SessionParams;
use meta::{Caller, Namespace, Policy};
use wire::{Inode, MetaId, NodeKind, Seed, VersionWord};

const NOW: u32 = 1_800_000_000;
const FILES: u64 = 100_000;
const PER_FOLDER: u64 = 1000;
/// Requests of one measurement.
const REQUESTS: u64 = 10_000;

fn name(number: u64) -> String {
    format!("file{number:015}")
}

/// The namespace, a session, its folders.
fn filled() -> (Namespace, wire::SessionId, Vec<Inode>) {
    let mut ns = Namespace::new(MetaId(1), Policy::default(), NOW);
    let session = ns.session_add(NOW, SessionParams::full_access());
    let caller = Caller { session, version: VersionWord::OURS, uid: 0, gids: &[0], now: NOW.into() };
    let folders: Vec<Inode> = (0..FILES / PER_FOLDER)
        .map(|n| ns.mkdir(&caller, Inode::ROOT, format!("folder{n}").as_bytes(), 0o755, 0, true).expect("new").0)
        .collect();
    for n in 0..FILES {
        let folder = folders[(n / PER_FOLDER) as usize];
        ns.mknod(&caller, folder, name(n).as_bytes(), NodeKind::File, 0o644, 0, 0).expect("new");
    }
    ns.take_journal();
    (ns, session, folders)
}

fn requests(criterion: &mut Criterion) {
    let (mut ns, session, folders) = filled();
    let caller = Caller { session, version: VersionWord::OURS, uid: 0, gids: &[0], now: NOW.into() };
    let mut group = criterion.benchmark_group("namespace");
    group.throughput(Throughput::Elements(REQUESTS)).sample_size(20);
    let mut seed = Seed(1);
    let random: Vec<(Inode, String)> =
        (0..REQUESTS).map(|_| seed.below(FILES)).map(|n| (folders[(n / PER_FOLDER) as usize], name(n))).collect();
    group.bench_function("look-ups of random files", |bencher| {
        bencher.iter(|| {
            for (folder, name) in &random {
                black_box(ns.lookup(&caller, *folder, name.as_bytes()).expect("is there"));
            }
        });
    });
    let mut next = FILES;
    let mut batch = Batch::default();
    group.bench_function("creates with their journal lines", |bencher| {
        bencher.iter_batched(
            || {
                next += REQUESTS;
                (next - REQUESTS..next).map(|n| (folders[(n / 100) as usize % folders.len()], name(n))).collect()
            },
            |new: Vec<(Inode, String)>| {
                for (folder, name) in &new {
                    ns.mknod(&caller, *folder, name.as_bytes(), NodeKind::File, 0o644, 0, 0).expect("new");
                    ns.take_journal_into(&mut batch);
                }
                batch = Batch::default();
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
