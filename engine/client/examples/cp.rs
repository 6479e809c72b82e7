//! Copies trees in and out of a cluster through `client` alone, compares them, and measures. No mount, no FUSE.
//!
//! ```text
//! cp MASTER:PORT in LOCAL REMOTE          copy a local tree to a new remote folder
//! cp MASTER:PORT out REMOTE LOCAL         and back
//! cp MASTER:PORT compare LOCAL REMOTE     read every remote file and compare its bytes
//! cp MASTER:PORT write REMOTE MIB         one file, sequentially; MB/s
//! cp MASTER:PORT read REMOTE [TIMES]      read it; MB/s, and verify its pattern
//! cp MASTER:PORT random REMOTE COUNT      random 4 KiB reads one after the other; per second
//! cp MASTER:PORT creates REMOTE COUNT [PARALLEL] [BYTES]   files of BYTES bytes; per second
//! cp MASTER:PORT operations REMOTE        every kind of call on a new folder, checked against what it must give
//! ```
//! Environment: BIND = source address, GOAL = copies of new folders, DRIVER = auto, uring, epoll.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "the local side of a copy is ordinary files")]

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use client::{
    AccessList, AttrChange, Caller, Client, Errno, Inode, LockKind, NodeKind, OpenFlags, PosixLock, Settings,
    TimeChange, XattrMode,
};

const PIECE_BYTES: usize = 1 << 20;
/// Files copied side by side.
const PARALLEL: usize = 8;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (master, words) = words.split_first().ok_or("usage: cp MASTER:PORT COMMAND ...; see the source")?;
    let master = master
        .to_socket_addrs()?
        .find_map(|address| match address {
            std::net::SocketAddr::V4(address) => Some(address),
            std::net::SocketAddr::V6(_) => None,
        })
        .ok_or("no IPv4 address")?;
    let mut settings = Settings::new(master);
    settings.info = "[cp]".into();
    settings.bind = std::env::var("BIND").ok().map(|ip| ip.parse()).transpose()?;
    let mut options = ring::Options::default();
    if let Ok(driver) = std::env::var("DRIVER") {
        options.driver = driver.parse()?;
    }
    ring::run(options, |ring| async move {
        let client = Client::connect(ring.clone(), settings.clone()).await?;
        let done = run(&ring, &client, &settings, words).await;
        client.close().await;
        done
    })?
}

async fn run(ring: &ring::Ring, client: &Client, settings: &Settings, words: &[&str]) -> Result<(), Failure> {
    let started = ring.now();
    match words {
        ["in", local, remote] => {
            let folder = make_folder(client, remote).await?;
            let mut files = Vec::new();
            copy_folders(client, Path::new(local), folder, &mut files).await?;
            let bytes = in_parallel(ring, files, |(path, parent)| copy_in(client.clone(), path, parent)).await?;
            report("copied in", started.elapsed(ring), bytes);
        }
        ["out", remote, local] => {
            let mut files = Vec::new();
            list(client, find(client, remote).await?, Path::new(local), &mut files).await?;
            let bytes = in_parallel(ring, files, |(path, inode)| copy_out(client.clone(), path, inode)).await?;
            report("copied out", started.elapsed(ring), bytes);
        }
        ["compare", local, remote] => {
            let mut files = Vec::new();
            list(client, find(client, remote).await?, Path::new(""), &mut files).await?;
            let local = PathBuf::from(local);
            let count = files.len();
            let bytes =
                in_parallel(ring, files, |(path, inode)| compare(client.clone(), local.join(path), inode)).await?;
            println!("{count} files are equal");
            report("compared", started.elapsed(ring), bytes);
        }
        ["write", remote, mib] => {
            let bytes = mib.parse::<u64>()? << 20;
            write_pattern(client, remote, bytes).await?;
            report("written", started.elapsed(ring), bytes);
        }
        ["read", remote, times @ ..] => {
            let times: u32 = times.first().map_or(Ok(1), |times| times.parse())?;
            for _ in 0..times {
                let started = ring.now();
                let bytes = read_pattern(client, remote).await?;
                report("read", started.elapsed(ring), bytes);
            }
        }
        ["random", remote, count] => random_reads(ring, client, remote, count.parse()?).await?,
        ["creates", remote, count, rest @ ..] => {
            let parallel = rest.first().map_or(Ok(1), |parallel| parallel.parse())?;
            let bytes = rest.get(1).map_or(Ok(0), |bytes| bytes.parse())?;
            creates(ring, client, remote, count.parse()?, parallel, bytes).await?;
        }
        ["operations", remote] => {
            // A second session beside the first: another machine, as far as the master knows.
            let other = Client::connect(ring.clone(), settings.clone()).await?;
            let done = operations(ring, client, &other, remote).await;
            other.close().await;
            done?;
        }
        _ => return Err("unknown command; see the source".into()),
    }
    Ok(())
}

fn report(what: &str, span: std::time::Duration, bytes: u64) {
    let seconds = span.as_secs_f64();
    println!("{what}: {bytes} bytes in {seconds:.3} s, {:.0} MB/s", bytes as f64 / 1e6 / seconds);
}

async fn find(client: &Client, path: &str) -> Result<Inode, Failure> {
    let mut inode = Inode::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        inode = client.lookup(&Caller::root(), inode, name.as_bytes()).await?.inode;
    }
    Ok(inode)
}

async fn make_folder(client: &Client, path: &str) -> Result<Inode, Failure> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    let parent = find(client, parent).await?;
    let made = match client.mkdir(&Caller::root(), parent, name.as_bytes(), 0o755).await {
        Ok(entry) => entry.inode,
        Err(Errno::EEXIST) => find(client, path).await?,
        Err(errno) => return Err(errno.into()),
    };
    if let Ok(goal) = std::env::var("GOAL") {
        client.set_goal(&Caller::root(), made, goal.parse()?, false).await?;
    }
    Ok(made)
}

/// Makes the folders and collects the files.
async fn copy_folders(
    client: &Client,
    local: &Path,
    remote: Inode,
    files: &mut Vec<(PathBuf, Inode)>,
) -> Result<(), Failure> {
    let mut folders = vec![(local.to_path_buf(), remote)];
    while let Some((local, remote)) = folders.pop() {
        for entry in std::fs::read_dir(local)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() {
                let made = client.mkdir(&Caller::root(), remote, name.as_encoded_bytes(), 0o755).await?;
                folders.push((entry.path(), made.inode));
            } else if entry.file_type()?.is_symlink() {
                let target = std::fs::read_link(entry.path())?;
                let target = target.as_os_str().as_encoded_bytes();
                client.symlink(&Caller::root(), remote, name.as_encoded_bytes(), target).await?;
            } else if entry.file_type()?.is_file() {
                files.push((entry.path(), remote));
            }
        }
    }
    Ok(())
}

async fn list(client: &Client, remote: Inode, at: &Path, files: &mut Vec<(PathBuf, Inode)>) -> Result<(), Failure> {
    let mut folders = vec![(remote, at.to_path_buf())];
    while let Some((remote, at)) = folders.pop() {
        for entry in client.read_dir(&Caller::root(), remote, true).await? {
            let name = std::str::from_utf8(&entry.name)?.to_owned();
            match entry.kind {
                _ if name == "." || name == ".." => {}
                NodeKind::Directory => folders.push((entry.inode, at.join(name))),
                NodeKind::File => files.push((at.join(name), entry.inode)),
                _ => {}
            }
        }
    }
    Ok(())
}

/// Runs a job per item, a few at a time; the sum of what they return.
async fn in_parallel<T, F, Fut>(ring: &ring::Ring, items: Vec<T>, job: F) -> Result<u64, Failure>
where
    F: Fn(T) -> Fut,
    Fut: Future<Output = Result<u64, Failure>> + 'static,
{
    let mut total = 0;
    let mut running = std::collections::VecDeque::new();
    for item in items {
        if running.len() == PARALLEL {
            let first: ring::JoinHandle<_> = running.pop_front().expect("counted");
            total += first.await.ok_or("a job was aborted")??;
        }
        running.push_back(ring.spawn(job(item)));
    }
    for job in running {
        total += job.await.ok_or("a job was aborted")??;
    }
    Ok(total)
}

async fn copy_in(client: Client, path: PathBuf, parent: Inode) -> Result<u64, Failure> {
    use std::io::Read;
    let name = path.file_name().ok_or("a file has a name")?.as_encoded_bytes().to_vec();
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let (_, opened) = client.create(&Caller::root(), parent, &name, 0o644, flags).await?;
    let mut source = std::fs::File::open(path)?;
    let mut offset = 0;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut source).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            break;
        }
        offset += u64::from(client.write(opened.handle, offset, piece.into()).await?);
    }
    client.flush(opened.handle, None).await?;
    client.release(opened.handle, None).await?;
    Ok(offset)
}

async fn open_for_reading(client: &Client, inode: Inode) -> Result<client::Handle, Errno> {
    let flags = OpenFlags { read: true, ..OpenFlags::default() };
    Ok(client.open(&Caller::root(), inode, flags).await?.handle)
}

/// Reads a whole file, piece by piece.
async fn read_whole(
    client: &Client,
    inode: Inode,
    mut each: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let handle = open_for_reading(client, inode).await?;
    let mut offset = 0;
    loop {
        let data = client.read(handle, offset, PIECE_BYTES as u32).await?;
        if data.is_empty() {
            break;
        }
        for piece in data.pieces() {
            each(offset, piece.as_slice())?;
            offset += piece.as_slice().len() as u64;
        }
    }
    client.release(handle, None).await?;
    Ok(offset)
}

async fn copy_out(client: Client, path: PathBuf, inode: Inode) -> Result<u64, Failure> {
    use std::io::Write;
    std::fs::create_dir_all(path.parent().ok_or("a file has a folder")?)?;
    let mut target = std::fs::File::create(path)?;
    read_whole(&client, inode, |_, bytes| Ok(target.write_all(bytes)?)).await
}

async fn compare(client: Client, path: PathBuf, inode: Inode) -> Result<u64, Failure> {
    let expected = std::fs::read(&path)?;
    let size = read_whole(&client, inode, |offset, bytes| {
        let offset = offset as usize;
        if expected.get(offset..offset + bytes.len()) != Some(bytes) {
            return Err(format!("{} differs near byte {offset}", path.display()).into());
        }
        Ok(())
    })
    .await?;
    if size != expected.len() as u64 {
        return Err(format!("{}: {size} bytes instead of {}", path.display(), expected.len()).into());
    }
    Ok(size)
}

/// 1 MiB that differs for every position of a file.
fn pattern(offset: u64) -> Vec<u8> {
    let mut piece = vec![0u8; PIECE_BYTES];
    for (at, word) in piece.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&((offset + 8 * at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_be_bytes());
    }
    piece
}

async fn write_pattern(client: &Client, remote: &str, bytes: u64) -> Result<(), Failure> {
    let (parent, name) = remote.rsplit_once('/').unwrap_or(("", remote));
    let parent = find(client, parent).await?;
    let flags = OpenFlags { read: true, write: true, ..OpenFlags::default() };
    let (_, opened) = client.create(&Caller::root(), parent, name.as_bytes(), 0o644, flags).await?;
    // Making the pattern costs as much as writing it: eight pieces in turn.
    let pieces: Vec<Vec<u8>> = (0..8).map(|n| pattern(n << 20)).collect();
    for offset in (0..bytes).step_by(PIECE_BYTES) {
        let piece = pieces[(offset >> 20) as usize % 8].clone();
        client.write(opened.handle, offset, piece.into()).await?;
    }
    client.flush(opened.handle, None).await?;
    client.release(opened.handle, None).await?;
    Ok(())
}

async fn read_pattern(client: &Client, remote: &str) -> Result<u64, Failure> {
    let inode = find(client, remote).await?;
    let pieces: Vec<Vec<u8>> = (0..8).map(|n| pattern(n << 20)).collect();
    read_whole(client, inode, |offset, bytes| {
        let (piece, at) = ((offset >> 20) as usize % 8, offset as usize % PIECE_BYTES);
        let expected = pieces[piece].get(at..at + bytes.len());
        if expected == Some(bytes) { Ok(()) } else { Err(format!("wrong bytes at {offset}").into()) }
    })
    .await
}

async fn random_reads(ring: &ring::Ring, client: &Client, remote: &str, count: u64) -> Result<(), Failure> {
    let inode = find(client, remote).await?;
    let length = client.getattr(&Caller::root(), inode, None).await?.length_bytes();
    let handle = open_for_reading(client, inode).await?;
    let started = ring.now();
    for _ in 0..count {
        let offset = ring.random_u64() % (length / 4096) * 4096;
        let data = client.read(handle, offset, 4096).await?;
        assert_eq!(data.len(), 4096, "the file is long enough");
    }
    let seconds = started.elapsed(ring).as_secs_f64();
    println!("random: {count} reads in {seconds:.3} s, {:.0}/s", count as f64 / seconds);
    client.release(handle, None).await?;
    Ok(())
}

async fn creates(
    ring: &ring::Ring,
    client: &Client,
    remote: &str,
    count: usize,
    parallel: usize,
    bytes: usize,
) -> Result<(), Failure> {
    let folder = make_folder(client, remote).await?;
    let content = Rc::new(vec![7u8; bytes]);
    let started = ring.now();
    let jobs: Vec<_> = (0..parallel)
        .map(|worker| {
            let (client, content) = (client.clone(), content.clone());
            ring.spawn(async move {
                for n in (worker..count).step_by(parallel) {
                    let name = format!("file-{n:08}");
                    let flags = OpenFlags { write: true, ..OpenFlags::default() };
                    let (_, opened) = client.create(&Caller::root(), folder, name.as_bytes(), 0o644, flags).await?;
                    if !content.is_empty() {
                        client.write(opened.handle, 0, content.to_vec().into()).await?;
                    }
                    client.flush(opened.handle, None).await?;
                    client.release(opened.handle, None).await?;
                }
                Ok::<(), Errno>(())
            })
        })
        .collect();
    for job in jobs {
        job.await.ok_or("a job was aborted")??;
    }
    let seconds = started.elapsed(ring).as_secs_f64();
    println!("creates: {count} files of {bytes} bytes in {seconds:.3} s, {:.0}/s", count as f64 / seconds);
    Ok(())
}

/// Calls of every kind, by two sessions where it takes two.
async fn operations(ring: &ring::Ring, client: &Client, other: &Client, remote: &str) -> Result<(), Failure> {
    let root = Caller::root();
    let folder = make_folder(client, remote).await?;
    let read_write = OpenFlags { read: true, write: true, ..OpenFlags::default() };

    // Names and attributes.
    let (entry, opened) = client.create(&root, folder, b"file", 0o640, read_write).await?;
    let file = entry.inode;
    assert_eq!(client.create(&root, folder, b"file", 0o640, read_write).await.err(), Some(Errno::EEXIST));
    assert_eq!(client.link(&root, file, folder, b"link").await?.attr.nlink, 2);
    client.symlink(&root, folder, b"symlink", b"some/where").await?;
    let symlink = client.lookup(&root, folder, b"symlink").await?;
    assert_eq!(client.readlink(symlink.inode).await?, b"some/where");
    client.mkdir(&root, folder, b"sub", 0o750).await?;
    client.mknod(&root, folder, b"fifo", NodeKind::Fifo, 0o600, 0).await?;
    let device = client.mknod(&root, folder, b"device", NodeKind::CharDevice, 0o600, 0x0105).await?;
    assert_eq!(device.attr.rdev(), 0x0105);
    client.rename(&root, folder, b"link", folder, b"renamed").await?;
    assert_eq!(client.lookup(&root, folder, b"link").await.err(), Some(Errno::ENOENT));
    assert_eq!(client.rmdir(&root, folder, b"file").await.err(), Some(Errno::ENOTDIR));
    let names: Vec<_> = client.read_dir(&root, folder, true).await?.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names.len(), 8, "{names:?}");
    let change = AttrChange {
        mode: Some(0o604),
        uid: Some(1000),
        gid: Some(1001),
        mtime: Some(TimeChange::At(1_234_567.into())),
        atime: Some(TimeChange::Now),
        ..AttrChange::default()
    };
    let attr = client.setattr(&root, file, None, &change).await?;
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.mtime), (0o604, 1000, 1001, 1_234_567.into()));
    let stranger = Caller { uid: 2000, gids: vec![2000, 2001], ..Caller::default() };
    assert_eq!(client.access(&stranger, file, 4).await, Ok(()));
    assert_eq!(client.access(&stranger, file, 2).await, Err(Errno::EACCES));
    assert_eq!(client.unlink(&stranger, folder, b"file").await, Err(Errno::EACCES));

    // Extended attributes and access lists.
    client.setxattr(&root, file, b"user.colour", b"blue", XattrMode::CreateOnly).await?;
    assert_eq!(client.setxattr(&root, file, b"user.colour", b"red", XattrMode::CreateOnly).await, Err(Errno::EEXIST));
    assert_eq!(client.getxattr(&root, file, b"user.colour").await?, b"blue");
    assert_eq!(client.listxattr(&root, file).await?, b"user.colour\0");
    client.removexattr(&root, file, b"user.colour").await?;
    assert_eq!(client.getxattr(&root, file, b"user.colour").await.err(), Some(Errno::ENODATA));
    let list = AccessList { owner: 6, group: 4, other: 0, mask: 6, users: vec![(2000, 6)], groups: vec![] };
    client.set_acl(&root, file, false, &list).await?;
    assert_eq!(client.get_acl(file, false).await?, list);
    assert_eq!(client.access(&stranger, file, 2).await, Ok(()));

    // Goals, trash, space.
    client.set_goal(&root, file, 3, false).await?;
    assert_eq!(client.goal(file).await?, Some(3));
    client.set_trash_time(&root, file, 7200, false).await?;
    assert_eq!(client.trash_time(file).await?, 7200);
    assert!(client.statfs().await?.total_bytes > 0);

    // Two sessions append to one file: every record whole, none lost.
    let append = OpenFlags { append: true, ..read_write };
    let handles = [client.open(&root, file, append).await?.handle, other.open(&root, file, append).await?.handle];
    for round in 0..20u8 {
        client.write(handles[0], 0, vec![b'a' + round; 100].into()).await?;
        other.write(handles[1], 0, vec![b'A' + round; 100].into()).await?;
    }
    client.flush(handles[0], None).await?;
    other.flush(handles[1], None).await?;
    assert_eq!(other.getattr(&root, file, None).await?.length_bytes(), 4000);
    let content = other.read(handles[1], 0, 10_000).await?.to_vec();
    let mut seen: Vec<u8> = content.chunks(100).map(|record| record[0]).collect();
    assert!(content.chunks(100).all(|record| record.iter().all(|byte| *byte == record[0])));
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 40);

    // What one session writes, the other one reads, though it has read before.
    client.write(opened.handle, 1000, b"changed".to_vec().into()).await?;
    client.flush(opened.handle, None).await?;
    ring.sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(other.read(handles[1], 1000, 7).await?.to_vec(), b"changed");
    other.truncate(&root, file, None, 500).await?;
    ring.sleep(std::time::Duration::from_millis(200)).await;
    assert_eq!(client.read(opened.handle, 0, 10_000).await?.len(), 500);

    // Locks: refused, waited for, and taken back.
    client.flock(opened.handle, 1, LockKind::Exclusive, true).await?;
    assert_eq!(other.flock(handles[1], 2, LockKind::Exclusive, false).await, Err(Errno::EAGAIN));
    let given_up =
        ring.timeout(std::time::Duration::from_millis(300), other.flock(handles[1], 2, LockKind::Shared, true));
    assert!(given_up.await.is_err(), "it waits until it is dropped");
    ring.sleep(std::time::Duration::from_millis(300)).await;
    let waiting = {
        let (other, handle) = (other.clone(), handles[1]);
        ring.spawn(async move { other.flock(handle, 3, LockKind::Exclusive, true).await })
    };
    ring.sleep(std::time::Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    client.flock(opened.handle, 1, LockKind::Unlock, false).await?;
    assert_eq!(waiting.await, Some(Ok(())), "the lock that was taken back is not in its way");
    let range = |kind, start, end| PosixLock { kind, start, end, pid: 77 };
    client.posix_lock(opened.handle, 1, range(LockKind::Exclusive, 10, 20), false).await?;
    let overlapping = range(LockKind::Shared, 15, 30);
    assert_eq!(other.posix_lock(handles[1], 2, overlapping, false).await, Err(Errno::EAGAIN));
    assert!(other.posix_lock_test(handles[1], 2, overlapping).await?.is_some());
    client.flush(opened.handle, Some(1)).await?;
    other.posix_lock(handles[1], 2, overlapping, false).await?;

    // A deleted file lives on while it is open.
    client.set_trash_time(&root, file, 0, false).await?;
    client.unlink(&root, folder, b"file").await?;
    client.unlink(&root, folder, b"renamed").await?;
    client.write(opened.handle, 0, b"still here".to_vec().into()).await?;
    client.fsync(opened.handle).await?;
    assert_eq!(client.read(opened.handle, 0, 10).await?.to_vec(), b"still here");
    for handle in [handles[0], opened.handle] {
        client.release(handle, None).await?;
    }
    other.release(handles[1], Some(3)).await?;
    println!("all operations gave what they must");
    Ok(())
}
