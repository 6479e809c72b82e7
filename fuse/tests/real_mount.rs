//! A tiny file system in memory, mounted for real: the transport and the core that serves, without a cluster.
//!
//! Needs /dev/fuse and root or fusermount3; without them the tests say that they were skipped.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use fuse::device::{Device, MountSettings, Mounted, Notification, start_notifier};
use fuse::kernel::put_directory_entry;
use fuse::reply::{Attributes, Entry, Errno, Opened, Reply};
use fuse::request::{ForgetEntry, Operation, Request};
use fuse::serve::{FuseOps, serve};

/// Files by name in one directory; inode = place in `files` + 2. Reading `stuck` never ends, nor does looking for
/// `stuck-name`.
#[derive(Default)]
struct Memory {
    files: RefCell<Vec<(Vec<u8>, Vec<u8>)>>,
    references: RefCell<BTreeMap<u64, i64>>,
    opened: Cell<u64>,
    ring: RefCell<Option<ring::Ring>>,
}

impl Memory {
    fn attributes(&self, inode: u64) -> Attributes {
        let file = self.files.borrow();
        let size = if inode == 1 { 0 } else { file[inode as usize - 2].1.len() as u64 };
        let mode = if inode == 1 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 };
        Attributes { inode, size_bytes: size, mode, links: 1, block_bytes: 65536, ..Attributes::default() }
    }

    fn entry(&self, inode: u64) -> Entry {
        *self.references.borrow_mut().entry(inode).or_default() += 1;
        Entry {
            attributes: self.attributes(inode),
            entry_timeout: Duration::ZERO,
            attributes_timeout: Duration::from_secs(60),
        }
    }

    fn find(&self, name: &[u8]) -> Option<u64> {
        self.files.borrow().iter().position(|(known, _)| known == name).map(|place| place as u64 + 2)
    }

    fn opened(&self) -> Opened {
        self.opened.set(self.opened.get() + 1);
        Opened { handle: self.opened.get(), ..Opened::default() }
    }
}

impl FuseOps for Memory {
    async fn handle(self: Rc<Self>, request: Request) -> Result<Reply, Errno> {
        use Operation as O;
        match request.operation {
            O::Lookup { name } if &*name == b"stuck-name" => {
                let ring = self.ring.borrow().clone().unwrap();
                ring.sleep(Duration::from_secs(3600)).await;
                Err(Errno(libc::ENOENT))
            }
            O::Lookup { name } => self.find(&name).map(|i| Reply::Entry(self.entry(i))).ok_or(Errno(libc::ENOENT)),
            O::GetAttributes { .. } => Ok(Reply::Attributes(self.attributes(request.inode), Duration::ZERO)),
            O::SetAttributes(set) => {
                if let Some(size) = set.size_bytes {
                    self.files.borrow_mut()[request.inode as usize - 2].1.resize(size as usize, 0);
                }
                Ok(Reply::Attributes(self.attributes(request.inode), Duration::ZERO))
            }
            O::Create { name, .. } => {
                self.files.borrow_mut().push((name.to_vec(), Vec::new()));
                let inode = self.find(&name).unwrap();
                Ok(Reply::Created(self.entry(inode), self.opened()))
            }
            O::Open { flags, .. } => {
                if flags & libc::O_TRUNC != 0 {
                    self.files.borrow_mut()[request.inode as usize - 2].1.clear();
                }
                Ok(Reply::Opened(self.opened()))
            }
            O::OpenDirectory { .. } => Ok(Reply::Opened(self.opened())),
            O::Read { offset_bytes, size_bytes, .. } => {
                if self.find(b"stuck") == Some(request.inode) {
                    let ring = self.ring.borrow().clone().unwrap();
                    ring.sleep(Duration::from_secs(3600)).await;
                }
                let files = self.files.borrow();
                let data = &files[request.inode as usize - 2].1;
                let start = (offset_bytes as usize).min(data.len());
                let end = (start + size_bytes as usize).min(data.len());
                // In two parts, as a reply may be.
                let middle = (start + end) / 2;
                Ok(Reply::Data(vec![Box::new(data[start..middle].to_vec()), Box::new(data[middle..end].to_vec())]))
            }
            O::Write { offset_bytes, data, .. } => {
                let mut files = self.files.borrow_mut();
                let file = &mut files[request.inode as usize - 2].1;
                let end = offset_bytes as usize + data.len();
                file.resize(file.len().max(end), 0);
                file[offset_bytes as usize..end].copy_from_slice(&data);
                Ok(Reply::Written(data.len() as u32))
            }
            O::ReadDirectory { offset, size_bytes, with_attributes, .. } => {
                let mut out = Vec::new();
                let names: Vec<Vec<u8>> = self.files.borrow().iter().map(|(name, _)| name.clone()).collect();
                for (place, name) in names.iter().enumerate().skip(offset as usize) {
                    let inode = place as u64 + 2;
                    let entry = with_attributes.then(|| self.entry(inode));
                    let next = place as u64 + 1;
                    let kind = libc::S_IFREG;
                    if !put_directory_entry(&mut out, size_bytes as usize, next, inode, kind, name, entry.as_ref()) {
                        *self.references.borrow_mut().get_mut(&inode).unwrap() -= i64::from(with_attributes);
                        break;
                    }
                }
                Ok(Reply::bytes(out))
            }
            O::SetLock { wait: true, .. } => {
                let ring = self.ring.borrow().clone().unwrap();
                ring.sleep(Duration::from_secs(3600)).await;
                Ok(Reply::Empty)
            }
            O::Flush { .. } | O::Release { .. } | O::ReleaseDirectory { .. } | O::Access { .. } => Ok(Reply::Empty),
            _ => Err(Errno(libc::ENOSYS)),
        }
    }

    fn forget(&self, entries: &[ForgetEntry]) {
        for entry in entries {
            *self.references.borrow_mut().entry(entry.inode).or_default() -= entry.count as i64;
        }
    }
}

/// Mount a `Memory`, run `test` on it, unmount, and hand back what is left of references and file contents.
fn with_mount(test: impl Fn(&Path, Arc<Device>)) {
    for read_on_core in [false, true] {
        with_one_mount(read_on_core, &test);
    }
}

fn with_one_mount(read_on_core: bool, test: &impl Fn(&Path, Arc<Device>)) {
    let folder = tempfile::tempdir().unwrap();
    let settings = MountSettings {
        mount_point: folder.path().to_owned(),
        source: "mfs#memory:0".into(),
        allow_other: false,
        options: Vec::new(),
        flock_locks: true,
        posix_locks: true,
        threads: 2,
    };
    let mut mounted = match Mounted::new(&settings) {
        Ok(mounted) => mounted,
        Err(error) => {
            eprintln!("SKIPPED: cannot mount here ({error}); needs /dev/fuse and root or fusermount3");
            return;
        }
    };
    let device = mounted.device();
    let unmounter = mounted.unmounter();
    let (sender, receiver) = ring::channel::channel();
    let accept = move |request| {
        let _ = sender.send(request);
    };
    let (readers, to_core) = if read_on_core {
        (None, Some((mounted, accept)))
    } else {
        (Some(thread::spawn(move || mounted.read_requests(accept))), None)
    };
    let transport = device.clone();
    let core = thread::spawn(move || {
        ring::run(ring::Options::default(), |ring| async move {
            let memory = Rc::new(Memory::default());
            *memory.ring.borrow_mut() = Some(ring.clone());
            if let Some((mounted, accept)) = to_core {
                let here = ring.clone();
                ring.spawn(async move { mounted.read_requests_here(&here, accept).await.unwrap() });
            }
            serve(ring, receiver, transport, memory.clone()).await;
            let kept = memory.references.borrow();
            assert!(kept.values().all(|&count| count >= 0), "more references forgotten than given: {kept:?}");
        })
    });
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(folder.path(), device)));
    unmounter.unmount(folder.path()).unwrap();
    if let Some(readers) = readers {
        readers.join().unwrap().unwrap();
    }
    core.join().unwrap().unwrap();
    if let Err(panic) = failed {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn what_is_written_is_read_again() {
    with_mount(|root, _| {
        let data: Vec<u8> = (0..5_000_001u32).map(|i| (i % 251) as u8).collect();
        fs::write(root.join("big"), &data).unwrap();
        fs::write(root.join("small"), b"x").unwrap();
        assert!(fs::read(root.join("big")).unwrap() == data);
        assert_eq!(fs::metadata(root.join("big")).unwrap().len(), data.len() as u64);
        assert_eq!(fs::read(root.join("nothing")).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["big", "small"]);
    });
}

#[test]
fn a_long_directory_is_listed_once_and_whole() {
    with_mount(|root, _| {
        let wanted: Vec<String> = (0..3000).map(|i| format!("file-with-a-long-name-{i:05}")).collect();
        for name in &wanted {
            fs::write(root.join(name), b"").unwrap();
        }
        let names: Vec<_> =
            fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(names, wanted);
    });
}

/// Start `command`, which is to hang, kill it, and see that it dies.
fn dies_when_killed(command: &mut Command) {
    let mut process = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(process.try_wait().unwrap().is_none(), "it waits");
    process.kill().unwrap();
    for _ in 0..50 {
        if let Some(status) = process.try_wait().unwrap() {
            assert_eq!(status.signal(), Some(libc::SIGKILL));
            return;
        }
        thread::sleep(Duration::from_millis(100));
    }
    panic!("still there five seconds after SIGKILL");
}

#[test]
fn a_process_that_waits_for_a_name_can_be_killed() {
    with_mount(|root, _| dies_when_killed(Command::new("stat").arg(root.join("stuck-name"))));
}

#[test]
fn a_process_that_waits_for_data_can_be_killed() {
    with_mount(|root, _| {
        fs::write(root.join("stuck"), b"never shown").unwrap();
        dies_when_killed(Command::new("cat").arg(root.join("stuck")));
    });
}

#[test]
fn any_signal_ends_a_wait_for_a_lock() {
    with_mount(|root, _| {
        fs::write(root.join("locked"), b"").unwrap();
        // The shell's trap survives the signal; flock(1) must return because its call was interrupted.
        let started = Instant::now();
        let status = Command::new("timeout")
            .args(["-s", "INT", "0.3", "flock"])
            .arg(root.join("locked"))
            .arg("true")
            .status()
            .unwrap();
        assert!(!status.success());
        assert!(started.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn pages_are_dropped_when_the_kernel_is_told() {
    with_mount(|root, device| {
        let path = root.join("changed");
        fs::write(&path, b"before").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let notifier = start_notifier(device).unwrap();
        notifier.send(Notification::Inode { inode: 2, offset_bytes: 0, length_bytes: 0 }).unwrap();
        notifier.send(Notification::Entry { parent: 1, name: b"changed".to_vec() }).unwrap();
        thread::sleep(Duration::from_millis(100));
        assert_eq!(fs::read(&path).unwrap(), b"before");
    });
}
