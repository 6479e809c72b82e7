//! What the codec and the checksums cost, without any IO. Reported, never asserted.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wire::{ChunkId, CltocsWriteData, CltomaFuseLookup, Crc, Gids, Header, Inode, Name, Packet};

fn lookup(criterion: &mut Criterion) {
    let packet = CltomaFuseLookup {
        msgid: 7,
        parent: Inode::ROOT,
        name: Name::new(b"a-name-of-19-bytes!").expect("short"),
        uid: 1000,
        gids: Gids::list(&[1000, 4, 24]),
    };
    let bytes = packet.encode();
    criterion.bench_function("lookup request: encode", |bencher| {
        let mut out = Vec::with_capacity(256);
        bencher.iter(|| {
            out.clear();
            black_box(&packet).encode_into(&mut out);
        });
    });
    criterion.bench_function("lookup request: decode", |bencher| {
        bencher.iter(|| CltomaFuseLookup::decode(black_box(&bytes[8..])).expect("legal"));
    });
}

fn write_data_head(criterion: &mut Criterion) {
    let head = CltocsWriteData { chunkid: ChunkId(5), writeid: 1, blocknum: 3, offset: 0, size: 65536, crc: Crc(9) };
    let front = head.front();
    criterion.bench_function("write data head: encode and decode", |bencher| {
        bencher.iter(|| {
            let front = black_box(&front);
            let header = Header::decode(front[..8].try_into().expect("8 bytes"));
            CltocsWriteData::decode_head(header.length, &front[8..]).expect("legal").front()
        });
    });
}

fn block_sum(criterion: &mut Criterion) {
    let block = vec![0x5Au8; 64 << 10];
    let mut group = criterion.benchmark_group("block checksum");
    group.throughput(Throughput::Bytes(block.len() as u64));
    group.bench_function("64 KiB, whole", |bencher| bencher.iter(|| crc32fast::hash(black_box(&block))));
    // As a block comes from a disk: in memory, and in no cache of the processor. Larger than any of those.
    let many = vec![0x5Au8; 256 << 20];
    let mut blocks = many.chunks_exact(block.len()).cycle();
    group.bench_function("64 KiB, whole, out of memory", |bencher| {
        bencher.iter(|| crc32fast::hash(black_box(blocks.next().expect("it goes around"))));
    });
    group.finish();
}

criterion_group!(benches, lookup, write_data_head, block_sum);
criterion_main!(benches);
