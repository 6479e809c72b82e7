//! Test: the data path allocates nothing once it is warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;

use crate::{DriverChoice, OpenHow, Options, Ring, Stream};

/// Counts what the calling thread allocates.
struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

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
        for round in 0..300 {
            if round == 100 {
                COUNT.set(0);
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
            let (result, _) = server.recv_exact(ring.buffer().unwrap().with_head(12, 100)).await;
            result.unwrap();
        }
        COUNT.get()
    });
    match ran {
        Ok(count) => assert_eq!(count, 0, "allocations in 200 warm rounds"),
        Err(error) => eprintln!("SKIPPED: io_uring is not available here: {error}"),
    }
}
