//! CPU of a ring's thread per file operation: random reads and writes past the page cache.
//!
//! A file of 256 MiB, written before, in the folder of the build (or in the folder named by `RING_BENCH_DIR`). Prints
//! operations a second, CPU per operation, and whether the kernel needed threads of its own (`iou-wrk`), which it
//! should not. Reported, never asserted: `cargo bench -p mooring-ring --bench files [driver [features]]`, features as in
//! `ring::Features::changed`, for instance `-registered_buffers`.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use ring::{DriverChoice, Features, File, IoBufExt, OpenHow, Options, PAYLOAD_BYTES, Ring};

const BLOCKS: u64 = 4096;
const BLOCK_BYTES: u64 = PAYLOAD_BYTES as u64;
const MEASURED: Duration = Duration::from_millis(1500);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let only = arguments.first();
    let (features, unknown) = Features::default().changed(arguments.get(1).map_or("", String::as_str));
    assert!(unknown.is_empty(), "no such features: {unknown:?}");
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        if only.is_none_or(|only| *only == driver.to_string()) {
            let options = Options { driver, pin_to_core: Some(1), features, ..Options::default() };
            if let Err(error) = ring::run(options, measure) {
                println!("SKIPPED: {driver}: {error}");
            }
        }
    }
}

async fn measure(ring: Ring) {
    let folder =
        std::env::var_os("RING_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let path = folder.join(format!("ring-bench-{}", std::process::id()));
    let how = OpenHow::create(0o600);
    let file = match ring.open(&path, how.direct(true)).await {
        Ok(file) => file,
        Err(error) => {
            println!("this folder has no direct files ({error}), measuring the page cache");
            ring.open(&path, how).await.expect("a file can be made")
        }
    };
    for number in 0..BLOCKS {
        let mut block = ring.wait_buffer().await;
        block.payload_mut().fill(number as u8);
        file.write_all_at(block, number * BLOCK_BYTES).await.0.expect("there is room");
    }
    for (bytes, depth) in [(4 << 10, 1), (4 << 10, 32), (64 << 10, 16)] {
        for writes in [false, true] {
            run(&ring, &file, bytes, depth, writes).await;
        }
    }
    ring.unlink(&path).await.expect("it is ours");
}

async fn run(ring: &Ring, file: &File, bytes: usize, depth: usize, writes: bool) {
    let operations = Rc::new(Cell::new(0u64));
    let (start, start_cpu) = (ring.now(), thread_cpu_nanos());
    join_all((0..depth).map(|_| async {
        while start.elapsed(ring) < MEASURED {
            let offset = ring.random_u64() % (BLOCKS * BLOCK_BYTES / bytes as u64) * bytes as u64;
            let part = ring.wait_buffer().await.slice(0..bytes);
            if writes {
                file.write_all_at(part, offset).await.0.expect("it can be written");
            } else {
                assert_eq!(file.read_at(part, offset).await.0.expect("it can be read"), bytes);
            }
            operations.set(operations.get() + 1);
        }
    }))
    .await;
    let (elapsed, cpu) = (start.elapsed(ring), thread_cpu_nanos() - start_cpu);
    let per_second = operations.get() as f64 / elapsed.as_secs_f64();
    println!(
        "{:5} {:5} of {bytes:5} B, depth {depth:2}: {per_second:8.0}/s, {:7.1} MB/s, {:6.2} us CPU each, {} kernel threads",
        ring.driver_name(),
        if writes { "write" } else { "read" },
        per_second * bytes as f64 / 1e6,
        cpu as f64 / 1000.0 / operations.get().max(1) as f64,
        kernel_threads(),
    );
}

fn kernel_threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0 };
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.flatten().filter(|task| task.path().exists()).map(name).filter(|name| name.starts_with("iou-wrk")).count()
}

/// Nanoseconds that the calling thread has been running.
fn thread_cpu_nanos() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
