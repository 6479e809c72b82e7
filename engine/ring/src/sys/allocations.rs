//! Counting allocations, for tests that show that a path makes none, and for measurements.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting what each thread allocates. A program that wants the count declares it as its
/// `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct CountingAllocator;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

impl CountingAllocator {
    /// Allocations (also those that move a block that grows) of the calling thread since its start.
    pub fn count() -> u64 {
        COUNT.with(Cell::get)
    }
}

// SAFETY: all is left to the system's allocator. The counter is a plain cell without a destructor: it can be used at
// any time of a thread's life, and allocates nothing.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::rc::Rc;
    use std::time::Duration;

    use super::CountingAllocator;
    use crate::local::{Crew, Notify};
    use crate::{Block, DriverChoice, Gather, OpenHow, Options, Ring, Stream};

    #[global_allocator]
    static ALLOCATOR: CountingAllocator = CountingAllocator;

    async fn pair(ring: &Ring) -> (Stream, Stream) {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let listener = ring.listen(any).unwrap();
        let client = ring.connect(listener.local(), None).await.unwrap();
        (client, listener.accept().await.unwrap())
    }

    #[test]
    fn a_warm_data_path_allocates_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let ran = crate::run(Options { driver: DriverChoice::Uring, ..Options::default() }, |ring| async move {
            let (client, server) = pair(&ring).await;
            let file = ring.open(&path, OpenHow::create(0o600)).await.unwrap();
            let mut head = vec![1; 20];
            let mut gather = Gather::new();
            let (crew, done) = {
                let (file, its, done) = (file.clone(), ring.clone(), Rc::new(Notify::new()));
                let its_done = done.clone();
                let crew = Crew::new(&ring, move |block: Block| {
                    let (file, ring, done) = (file.clone(), its.clone(), its_done.clone());
                    async move {
                        let written = ring.timeout(Duration::from_secs(9), file.write_all_at(block, 0)).await;
                        written.unwrap().0.unwrap();
                        done.notify_one();
                    }
                });
                (crew, done)
            };
            let mut before = 0;
            for round in 0..300 {
                if round == 100 {
                    before = CountingAllocator::count();
                }
                let sent = async {
                    let (result, back, block) = client.send_two(head, ring.buffer().unwrap()).await;
                    result.unwrap();
                    drop(block);
                    back
                };
                let received = async {
                    let (result, block) = server.recv_exact(ring.buffer().unwrap().with_head(20, 1000)).await;
                    result.unwrap();
                    drop(block);
                    let (result, block) = server.recv_exact(ring.buffer().unwrap().with_head(0, 65_536 - 1000)).await;
                    result.unwrap();
                    block.into_block()
                };
                let (back, block) = futures_util::join!(sent, received);
                head = back;
                let (result, block) = file.write_all_at(block, 0).await;
                result.unwrap();
                let (result, block) = file.read_at(block, 0).await;
                result.unwrap();
                client.send_all(block.with_head(12, 100)).await.0.unwrap();
                crew.give(ring.buffer().unwrap());
                crew.give(ring.buffer().unwrap());
                done.notified().await;
                done.notified().await;
                let block = ring.buffer().unwrap().share();
                for _ in 0..3 {
                    gather.push(&[1; 28]);
                    gather.push_payload(block.clone(), 0..1000);
                }
                drop(block);
                let (result, back) = client.send_gather(gather).await;
                result.unwrap();
                gather = back;
                gather.clear();
                let (result, _) = server.recv_exact(ring.buffer().unwrap().with_head(0, 3 * 1028)).await;
                result.unwrap();
                let (result, _) = server.recv_exact(ring.buffer().unwrap().with_head(12, 100)).await;
                result.unwrap();
            }
            CountingAllocator::count() - before
        });
        match ran {
            Ok(count) => assert_eq!(count, 0, "allocations in 200 warm rounds"),
            Err(error) => eprintln!("SKIPPED: io_uring is not available here: {error}"),
        }
    }
}
