//! The runtime that we wrote beside the one the design card names: an echo server on `ring` (drivers uring and epoll)
//! and on tokio-uring, asked by the same blocking clients over loopback. Round trips a second; reported, never asserted.
//!
//! A request is 32 bytes, the reply 4 KiB or 64 KiB: the shape of READ and READ_DATA. ARCHITECTURE.md says what else
//! spoke against tokio-uring as the base.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ring::{DriverChoice, IoBufExt, Options};

const REQUEST_BYTES: usize = 32;
const CONNECTIONS: usize = 8;

/// Serves replies of `reply_bytes` on our own runtime until the process ends.
fn serve_on_ring(driver: DriverChoice, reply_bytes: usize) -> Option<SocketAddr> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let outcome: std::io::Result<()> = ring::run(Options { driver, ..Options::default() }, |ring| async move {
            let listener = ring.listen("127.0.0.1:0".parse().expect("an address")).expect("loopback listens");
            send.send(listener.local()).expect("the bench waits");
            while let Ok(stream) = listener.accept().await {
                ring.spawn(async move {
                    let mut request = vec![0u8; REQUEST_BYTES];
                    let mut reply = vec![7u8; reply_bytes];
                    loop {
                        let (got, back) = stream.recv_exact(request).await;
                        request = back;
                        if got.is_err() {
                            return;
                        }
                        let (sent, back) = stream.send_all(reply.slice(0..reply_bytes)).await;
                        reply = back.into_inner();
                        if sent.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        if let Err(error) = outcome {
            eprintln!("SKIPPED: driver {driver}: {error}");
        }
    });
    receive.recv().ok()
}

/// The same server on tokio-uring.
fn serve_on_tokio_uring(reply_bytes: usize) -> Option<SocketAddr> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        tokio_uring::start(async move {
            let listener = tokio_uring::net::TcpListener::bind("127.0.0.1:0".parse().expect("an address"))
                .expect("loopback listens");
            send.send(listener.local_addr().expect("bound")).expect("the bench waits");
            loop {
                let (stream, _) = listener.accept().await.expect("accepts");
                stream.set_nodelay(true).expect("an option of every TCP socket");
                tokio_uring::spawn(async move {
                    let mut request = vec![0u8; REQUEST_BYTES];
                    let mut reply = vec![7u8; reply_bytes];
                    loop {
                        let mut have = 0;
                        while have < REQUEST_BYTES {
                            let (got, back) = stream.read(request).await;
                            request = back;
                            match got {
                                Ok(bytes) if bytes > 0 => have += bytes,
                                _ => return,
                            }
                        }
                        let (sent, back) = stream.write_all(reply).await;
                        reply = back;
                        if sent.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    });
    receive.recv().ok()
}

/// Time for `round_trips` in all over some connections.
fn drive(server: SocketAddr, reply_bytes: usize, round_trips: u64) -> Duration {
    let start = Instant::now();
    thread::scope(|scope| {
        for connection in 0..CONNECTIONS as u64 {
            let share = round_trips / CONNECTIONS as u64 + u64::from(connection < round_trips % CONNECTIONS as u64);
            scope.spawn(move || {
                let mut stream = TcpStream::connect(server).expect("the server listens");
                stream.set_nodelay(true).expect("an option of every TCP socket");
                let mut reply = vec![0u8; reply_bytes];
                for _ in 0..share {
                    stream.write_all(&[1; REQUEST_BYTES]).expect("the server reads");
                    stream.read_exact(&mut reply).expect("the server answers");
                }
            });
        }
    });
    start.elapsed()
}

fn echo(criterion: &mut Criterion) {
    // A plain check that loopback can be used at all, with its reason if not.
    if let Err(error) = TcpListener::bind("127.0.0.1:0") {
        eprintln!("SKIPPED: loopback cannot be used: {error}");
        return;
    }
    let mut group = criterion.benchmark_group("echo, 8 connections");
    group.sample_size(10);
    for reply_bytes in [4 << 10, 64 << 10] {
        group.throughput(Throughput::Bytes(reply_bytes as u64));
        let servers = [
            ("ring uring", serve_on_ring(DriverChoice::Uring, reply_bytes)),
            ("ring epoll", serve_on_ring(DriverChoice::Epoll, reply_bytes)),
            ("tokio-uring", serve_on_tokio_uring(reply_bytes)),
        ];
        for (name, server) in servers {
            let Some(server) = server else { continue };
            group.bench_function(BenchmarkId::new(name, reply_bytes), |bencher| {
                bencher.iter_custom(|iterations| drive(server, reply_bytes, iterations));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, echo);
criterion_main!(benches);
