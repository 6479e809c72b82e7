//! CPU of a ring's thread per request, over loopback: requests of 32 bytes, replies of 20 bytes to 64 KiB.
//!
//! The server runs on a ring pinned to core 1, its clients on another pinned to core 0. CPU per operation is read from
//! the scheduler (`schedstat`), so that a busy machine disturbs it less than throughput. Reported, never asserted:
//! `cargo bench -p mooring-ring --bench echo [driver [connections [reply_bytes [features]]]]`, features as in
//! `ring::Features::changed`, for instance `-defer_taskrun`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use ring::{BufferedReader, DriverChoice, Features, IoBufExt, LEAD_BYTES, Options, Ring, Stream};

const REQUEST_BYTES: usize = 32;
const MEASURED: Duration = Duration::from_millis(1500);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let only = |place: usize| arguments.get(place);
    let (features, unknown) = Features::default().changed(only(3).map_or("", String::as_str));
    assert!(unknown.is_empty(), "no such features: {unknown:?}");
    for driver in [DriverChoice::Uring, DriverChoice::Epoll] {
        for connections in [1, 8, 32] {
            for reply_bytes in [20, 4 << 10, 64 << 10] {
                let names = [driver.to_string(), connections.to_string(), reply_bytes.to_string()];
                let wanted = names.iter().enumerate().all(|(place, name)| only(place).is_none_or(|only| only == name));
                if wanted {
                    measure(driver, features, connections, reply_bytes);
                }
            }
        }
    }
}

fn measure(driver: DriverChoice, features: Features, connections: usize, reply_bytes: usize) {
    let served = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let (address_sender, address) = mpsc::channel();
    let (count, stopped) = (served.clone(), stop.clone());
    let server = std::thread::spawn(move || {
        let options = Options { driver, pin_to_core: Some(1), features, ..Options::default() };
        ring::run(options, |ring| async move {
            let listener = ring.listen("127.0.0.1:0".parse().expect("an address")).expect("loopback listens");
            address_sender.send(listener.local()).expect("main waits");
            let served = Rc::new(Cell::new(0));
            for _ in 0..connections {
                let stream = listener.accept().await.expect("accepts");
                ring.spawn(serve(ring.clone(), stream, reply_bytes, served.clone()));
            }
            ring.sleep(Duration::from_millis(200)).await;
            let (start_cpu, start, start_count) = (thread_cpu_nanos(), ring.now(), served.get());
            ring.sleep(MEASURED).await;
            let (cpu, operations) = (thread_cpu_nanos() - start_cpu, served.get() - start_count);
            let elapsed = start.elapsed(&ring);
            count.store(operations, Ordering::Relaxed);
            stopped.store(true, Ordering::Relaxed);
            let per_second = operations as f64 / elapsed.as_secs_f64();
            println!(
                "{driver:5} {connections:2} connections, {reply_bytes:5} B replies: {per_second:8.0}/s, {:6.2} us CPU each, {:5.2} GB/s",
                cpu as f64 / 1000.0 / operations.max(1) as f64,
                per_second * reply_bytes as f64 / 1e9,
            );
        })
    });
    let Ok(address) = address.recv() else {
        return println!("SKIPPED: {driver} is not available");
    };
    let options = Options { driver, pin_to_core: Some(0), ..Options::default() };
    ring::run(options, |ring| async move {
        for _ in 0..connections {
            let stream = ring.connect(address, None).await.expect("the server listens");
            ring.spawn(ask(ring.clone(), stream, reply_bytes));
        }
        while !stop.load(Ordering::Relaxed) {
            ring.sleep(Duration::from_millis(50)).await;
        }
    })
    .expect("the server's driver works here too");
    server.join().expect("the server ends").expect("the driver works");
}

async fn serve(ring: Ring, stream: Stream, reply_bytes: usize, served: Rc<Cell<u64>>) {
    let mut reader = BufferedReader::new(stream.clone(), 4096);
    let mut block = ring.wait_buffer().await;
    let head = reply_bytes.min(LEAD_BYTES).min(20);
    while reader.fill(REQUEST_BYTES).await.is_ok() {
        reader.consume(REQUEST_BYTES);
        let (sent, framed) = stream.send_all(block.with_head(head, reply_bytes - head)).await;
        block = framed.into_block();
        if sent.is_err() {
            return;
        }
        served.set(served.get() + 1);
    }
}

async fn ask(ring: Ring, stream: Stream, reply_bytes: usize) {
    let mut request = vec![1; REQUEST_BYTES];
    let mut reply = ring.wait_buffer().await.slice(0..reply_bytes);
    loop {
        let (sent, back) = stream.send_all(request).await;
        let (received, whole) = stream.recv_exact(reply).await;
        if sent.is_err() || received.is_err() {
            return;
        }
        (request, reply) = (back, whole);
    }
}

/// Nanoseconds that the calling thread has been running.
fn thread_cpu_nanos() -> u64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    schedstat.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
