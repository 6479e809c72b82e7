//! Files and folders.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use ring::{IoBufExt, OpenHow, Ring};

use crate::on_both_drivers;

/// On a disk and not in RAM, so that O_DIRECT means something.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

async fn contents(ring: &Ring, path: &Path) -> Vec<u8> {
    ring.read_file(path).await.unwrap()
}

on_both_drivers! {
    async fn a_file_that_is_not_to_be_cached_reads_as_it_was_written(ring: Ring) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let how = OpenHow { uncached: true, random: true, ..OpenHow::create(0o600) };
        let file = ring.open(&folder.path().join("file"), how).await.unwrap();
        let mut block = ring.wait_buffer().await;
        block.payload_mut().iter_mut().zip(0u32..).for_each(|(byte, at)| *byte = (at % 251) as u8);
        let (result, mut block) = file.write_all_at(block, 100).await;
        result.unwrap();
        block.payload_mut().fill(0);
        let (result, block) = file.read_at(block, 100).await;
        assert_eq!(result.unwrap(), 65_536);
        assert!(block.payload().iter().zip(0u32..).all(|(byte, at)| *byte == (at % 251) as u8));
    }

    async fn a_descriptor_that_was_used_often_and_closed_means_another_file_the_next_time(ring: Ring) {
        let folder = folder();
        for number in 0..20u8 {
            // Closed at the end of each turn: the next file has the same number.
            let file = ring.open(&folder.path().join(number.to_string()), OpenHow::create_new(0o600)).await.unwrap();
            for at in 0..40u64 {
                file.write_all_at(vec![number; 10], at * 10).await.0.unwrap();
                assert_eq!(file.read_at(vec![99; 10], at * 10).await.1, vec![number; 10]);
            }
            drop(file);
            ring.yield_now().await;
        }
        for number in 0..20u8 {
            assert_eq!(contents(&ring, &folder.path().join(number.to_string())).await, vec![number; 400]);
        }
    }

    async fn what_is_written_is_read(ring: Ring) {
        let folder = folder();
        let path = folder.path().join("file");
        let file = ring.open(&path, OpenHow::create_new(0o640)).await.unwrap();
        file.write_all_at(b"hello, world", 0).await.0.unwrap();
        file.write_all_at(vec![b'x'; 100_000], 20).await.0.unwrap();
        let (result, bytes) = file.read_at(vec![9; 200_000], 5).await;
        assert_eq!(result.unwrap(), 100_015);
        assert_eq!(&bytes[..20], b", world\0\0\0\0\0\0\0\0xxxxx");
        file.datasync().await.unwrap();
        file.sync().await.unwrap();
        let stat = file.stat().await.unwrap();
        assert_eq!((stat.size, stat.is_dir, stat.mode & 0o777), (100_020, false, 0o640));
        file.set_len(5).await.unwrap();
        file.allocate(0, 4096).await.unwrap();
        assert_eq!(ring.stat(&path).await.unwrap().size, 4096);
        let whole = contents(&ring, &path).await;
        assert_eq!((&whole[..6], whole.len()), (&b"hello\0"[..], 4096));
    }

    async fn opening_fails_as_the_system_says(ring: Ring) {
        let folder = folder();
        let path = folder.path().join("file");
        assert_eq!(ring.open(&path, OpenHow::read()).await.unwrap_err().kind(), ErrorKind::NotFound);
        let first = ring.open(&path, OpenHow::create_new(0o600)).await.unwrap();
        first.write_all_at(b"x", 0).await.0.unwrap();
        let again = ring.open(&path, OpenHow::create_new(0o600)).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let odd = ring.open(Path::new("/with\0zero"), OpenHow::read()).await;
        assert_eq!(odd.unwrap_err().kind(), ErrorKind::InvalidInput);
        ring.open(&path, OpenHow::read_write().truncate(true)).await.unwrap();
        assert_eq!(first.stat().await.unwrap().size, 0);
        let appending = ring.open(&path, OpenHow::read_write().append(true)).await.unwrap();
        appending.write_all_at(b"ab", 0).await.0.unwrap();
        appending.write_all_at(b"cd", 0).await.0.unwrap();
        assert_eq!(contents(&ring, &path).await, b"abcd");
    }

    async fn direct_files_take_blocks(ring: Ring) {
        let folder = folder();
        let path = folder.path().join("direct");
        let how = OpenHow::create(0o600).direct(true).dsync(true);
        let file = match ring.open(&path, how).await {
            Ok(file) => file,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidInput);
                return eprintln!("SKIPPED: this file system refuses O_DIRECT");
            }
        };
        assert!([512, 4096].contains(&file.direct_alignment()));
        let mut writes = Vec::new();
        for number in 0..8u8 {
            let mut block = ring.buffer().unwrap();
            block.payload_mut().fill(number);
            let file = file.clone();
            writes.push(async move { file.write_all_at(block, u64::from(number) * 65_536).await.0 });
        }
        for result in join_all(writes).await {
            result.unwrap();
        }
        let reads = (0..8u8).map(|number| {
            let (file, block) = (file.clone(), ring.buffer().unwrap());
            async move {
                let (result, block) = file.read_at(block, u64::from(number) * 65_536).await;
                assert_eq!(result.unwrap(), 65_536);
                assert!(block.payload().iter().all(|byte| *byte == number));
            }
        });
        join_all(reads).await;
        let (result, slice) = file.read_at(ring.buffer().unwrap().slice(0..8192), 7 * 65_536 + 61_440).await;
        assert_eq!(result.unwrap(), 4096, "the file ends there");
        assert_eq!(slice.get_ref().payload()[4095], 7);
        let (result, _) = file.read_at(ring.buffer().unwrap().slice(0..512), 100).await;
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        let plain = ring.open(&path, OpenHow::read()).await.unwrap();
        assert_eq!(plain.direct_alignment(), 0);
    }

    async fn names_are_made_moved_and_removed(ring: Ring) {
        let folder = folder();
        let at = |name: &str| -> PathBuf { folder.path().join(name) };
        ring.mkdir(&at("sub"), 0o750).await.unwrap();
        assert_eq!(ring.mkdir(&at("sub"), 0o750).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        ring.write_file_durably(&at("sub/one"), 0o600, b"1".to_vec()).await.unwrap();
        ring.write_file_durably(&at("sub/two"), 0o600, b"2".to_vec()).await.unwrap();
        ring.write_file_durably(&at("sub/empty"), 0o600, Vec::new()).await.unwrap();
        ring.rename(&at("sub/one"), &at("sub/two")).await.unwrap();
        ring.sync_dir(&at("sub")).await.unwrap();
        ring.mkdir(&at("sub/sub"), 0o750).await.unwrap();
        let mut entries = ring.list(&at("sub")).await.unwrap();
        entries.sort();
        let entries: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.is_dir)).collect();
        assert_eq!(entries, [("empty", false), ("sub", true), ("two", false)]);
        assert_eq!(contents(&ring, &at("sub/two")).await, b"1");
        assert_eq!(contents(&ring, &at("sub/empty")).await, b"");
        assert!(ring.stat(&at("sub")).await.unwrap().is_dir);
        assert_eq!(ring.rmdir(&at("sub")).await.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
        ring.unlink(&at("sub/two")).await.unwrap();
        ring.unlink(&at("sub/empty")).await.unwrap();
        ring.rmdir(&at("sub/sub")).await.unwrap();
        ring.rmdir(&at("sub")).await.unwrap();
        assert_eq!(ring.stat(&at("sub")).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(ring.list(&at("sub")).await.unwrap_err().kind(), ErrorKind::NotFound);
    }

    async fn a_file_is_replaced_as_a_whole(ring: Ring) {
        let folder = folder();
        let path = folder.path().join("state");
        for length in [10usize, 4096, 100_000, 5] {
            ring.write_file_durably(&path, 0o600, vec![7; length]).await.unwrap();
            assert_eq!(contents(&ring, &path).await, vec![7; length]);
        }
        assert_eq!(ring.list(folder.path()).await.unwrap().len(), 1);
        assert!(!contents(&ring, Path::new("/proc/self/status")).await.is_empty());
    }

    async fn space_is_told(ring: Ring) {
        let folder = folder();
        let space = ring.space(folder.path()).await.unwrap();
        assert!(space.total_bytes >= space.free_bytes && space.free_bytes >= space.available_bytes);
        assert!(space.total_bytes > 0);
    }

    async fn a_lock_of_our_own_process_is_no_hindrance(ring: Ring) {
        let folder = folder();
        let file = ring.open(&folder.path().join("lock"), OpenHow::create(0o600)).await.unwrap();
        assert!(file.try_lock().unwrap());
        assert!(file.try_lock().unwrap());
        assert_eq!(file.lock_owner().unwrap(), None);
    }

    async fn a_dropped_write_keeps_its_buffer_until_it_is_over(ring: Ring) {
        let folder = folder();
        let file = ring.open(&folder.path().join("file"), OpenHow::create(0o600)).await.unwrap();
        let all = ring.free_buffers();
        for _ in 0..200 {
            let block = ring.wait_buffer().await;
            let write = file.write_all_at(block, 0);
            drop(ring.timeout(std::time::Duration::ZERO, write).await);
        }
        while ring.free_buffers() < all {
            ring.sleep(std::time::Duration::from_millis(1)).await;
        }
    }

    async fn descriptors_do_not_leak(ring: Ring) {
        let folder = folder();
        let path = folder.path().join("file");
        ring.open(&path, OpenHow::create(0o600)).await.unwrap();
        let mut last = 0;
        for _ in 0..200 {
            drop(ring.timeout(std::time::Duration::ZERO, ring.open(&path, OpenHow::read())).await);
            drop(ring.open(&path, OpenHow::read()).await.unwrap());
            ring.sleep(std::time::Duration::from_micros(200)).await;
            last = std::fs::read_dir("/proc/self/fd").unwrap().count();
        }
        assert!(last < 150, "{last} open descriptors");
    }
}
