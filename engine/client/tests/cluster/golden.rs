//! What a stock 3.0.117 client sent, we send; what a stock master answered, we understand. Packets of tests/golden;
//! message ids are counted differently and left out of the comparison.

use client::{
    AttrChange, Caller, Client, Errno, Handle, Inode, LockKind, NodeKind, OpenFlags, PosixLock, Settings, XattrMode,
};

use crate::fake::Fake;
use crate::{READ_WRITE, in_worlds, settings};

macro_rules! golden {
    ($name:literal) => {
        bytes_of(include_str!(concat!("../../../../tests/golden/", $name, ".hex")))
    };
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let hex = hex.trim().as_bytes();
    hex.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn without_msgid(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8..12].fill(0);
    packet
}

/// The last packet of the golden one's type is the golden one.
#[track_caller]
fn check_sent(fake: &Fake, golden: Vec<u8>) {
    let kind = u32::from_be_bytes(golden[..4].try_into().unwrap());
    let sent = fake.state.borrow().packets.get(&kind).cloned().expect("a packet of this type was sent");
    if kind < 400 {
        assert_eq!(sent, golden);
    } else {
        assert_eq!(without_msgid(sent), without_msgid(golden));
    }
}

fn answer_with(fake: &Fake, golden: Vec<u8>) {
    let kind = u32::from_be_bytes(golden[..4].try_into().unwrap()) - 1;
    fake.state.borrow_mut().recorded_answers.insert(kind, golden);
}

fn caller() -> Caller {
    Caller { umask: 0o022, ..Caller::root() }
}

#[test]
fn a_registration_is_byte_for_byte_that_of_a_stock_client() {
    in_worlds(1, 1, |ring, fake| async move {
        let settings = Settings { info: "/mnt/valid-mnt".into(), ..settings(&fake) };
        let client = Client::connect(ring.clone(), settings).await.unwrap();
        let sent = fake.state.borrow().packets[&400].clone();
        assert_eq!(sent, golden!("c3-register-new-req"));
        let timesync = golden!("c3-timesync-req");
        ring.sleep(std::time::Duration::from_secs(1)).await;
        check_sent(&fake, timesync);
        client.close().await;
    });
}

#[test]
fn names_and_nodes_are_asked_for_and_answered_as_recorded() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = crate::connect(&ring, &fake).await;
        let caller = caller();

        answer_with(&fake, golden!("c3-lookup-dir-ans"));
        let found = client.lookup(&caller, Inode(1), b"d1").await.unwrap();
        check_sent(&fake, golden!("c3-lookup-req"));
        assert_eq!(
            (found.inode, found.attr.kind, found.attr.mode, found.flags),
            (Inode(2), NodeKind::Directory, 0o755, 0xFF)
        );
        answer_with(&fake, golden!("c3-lookup-chunk-ans"));
        let found = client.lookup(&caller, Inode(1), b"d1").await.unwrap();
        assert_eq!((found.inode, found.attr.length_bytes(), found.flags), (Inode(11), 721_396, 0x1FF));
        assert!(found.allows(7));
        answer_with(&fake, golden!("c3-lookup-enoent-ans"));
        assert_eq!(client.lookup(&caller, Inode(1), b"d1").await, Err(Errno::ENOENT));

        answer_with(&fake, golden!("c3-getattr-ans"));
        let attr = client.getattr(&caller, Inode(1), None).await.unwrap();
        check_sent(&fake, golden!("c3-getattr-req"));
        assert_eq!((attr.mode, attr.mtime.seconds(), attr.nlink), (0o777, 1_795_246_038, 2));

        answer_with(&fake, golden!("c3-setattr-ans"));
        let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
        let attr = client.setattr(&caller, Inode(84), None, &change).await.unwrap();
        check_sent(&fake, golden!("c3-setattr-req"));
        assert_eq!(attr.mode, 0o600);

        answer_with(&fake, golden!("c3-readlink-ans"));
        assert_eq!(client.readlink(Inode(4)).await.unwrap(), b"d1/l1");
        check_sent(&fake, golden!("c3-readlink-req"));
        answer_with(&fake, golden!("c3-symlink-ans"));
        assert_eq!(client.symlink(&caller, Inode(83), b"s1", b"f1").await.unwrap().inode, Inode(85));
        check_sent(&fake, golden!("c3-symlink-req"));
        answer_with(&fake, golden!("c3-mknod-ans"));
        let made = client.mknod(&caller, Inode(83), b"p1", NodeKind::Fifo, 0o666, 0).await.unwrap();
        check_sent(&fake, golden!("c3-mknod-req"));
        assert_eq!((made.inode, made.attr.kind), (Inode(86), NodeKind::Fifo));
        answer_with(&fake, golden!("c3-mkdir-ans"));
        assert_eq!(client.mkdir(&caller, Inode(1), b"gvalid-mnt", 0o777).await.unwrap().inode, Inode(83));
        check_sent(&fake, golden!("c3-mkdir-req"));
        answer_with(&fake, golden!("c3-unlink-ans"));
        client.unlink(&caller, Inode(1), b"lk").await.unwrap();
        check_sent(&fake, golden!("c3-unlink-req"));
        answer_with(&fake, golden!("c3-rmdir-ans"));
        client.rmdir(&caller, Inode(83), b"d1").await.unwrap();
        check_sent(&fake, golden!("c3-rmdir-req"));
        answer_with(&fake, golden!("c3-rename-ans"));
        assert_eq!(client.rename(&caller, Inode(83), b"l1", Inode(83), b"l2").await.unwrap().inode, Inode(84));
        check_sent(&fake, golden!("c3-rename-req"));
        answer_with(&fake, golden!("c3-link-ans"));
        assert_eq!(client.link(&caller, Inode(84), Inode(83), b"l1").await.unwrap().attr.nlink, 2);
        check_sent(&fake, golden!("c3-link-req"));

        answer_with(&fake, golden!("c3-readdir-ans"));
        let entries = client.read_dir(&caller, Inode(1), true).await.unwrap();
        check_sent(&fake, golden!("c3-readdir-req"));
        assert_eq!(&*entries[0].name, b".");
        assert!(entries.iter().all(|entry| entry.attr.is_some_and(|attr| attr.kind == entry.kind)));
        answer_with(&fake, golden!("c3-access-ans"));
        client.access(&caller, Inode(1), 4).await.unwrap();
        check_sent(&fake, golden!("c3-access-req"));
        answer_with(&fake, golden!("c3-statfs-ans"));
        let space = client.statfs().await.unwrap();
        check_sent(&fake, golden!("c3-statfs-req"));
        assert_eq!((space.total_bytes, space.available_bytes, space.inodes), (195_145_498_624, 143_175_245_824, 10));

        answer_with(&fake, golden!("c3-setxattr-ans"));
        client.setxattr(&caller, Inode(3), b"user.m", &[b'q'; 1000], XattrMode::CreateOrReplace).await.unwrap();
        check_sent(&fake, golden!("c3-setxattr-req"));
        answer_with(&fake, golden!("c3-getxattr-list-ans"));
        assert_eq!(client.listxattr(&caller, Inode(84)).await.unwrap(), b"user.a\0");
        assert_eq!(client.getxattr(&caller, Inode(1), b"security.selinux").await.unwrap(), b"user.a\0");
        check_sent(&fake, golden!("c3-getxattr-req"));
        client.close().await;
    });
}

async fn open_84(fake: &Fake, client: &Client) -> Handle {
    fake.add_file(84, "f1", b"");
    client.open(&caller(), Inode(84), READ_WRITE).await.unwrap().handle
}

#[test]
fn files_are_created_cut_and_locked_as_recorded() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = crate::connect(&ring, &fake).await;
        answer_with(&fake, golden!("c3-create-ans"));
        let (entry, opened) = client.create(&caller(), Inode(83), b"f1", 0o666, READ_WRITE).await.unwrap();
        check_sent(&fake, golden!("c3-create-req"));
        assert_eq!(entry.inode, Inode(84));
        client.release(opened.handle, None).await.unwrap();

        let handle = open_84(&fake, &client).await;
        answer_with(&fake, golden!("c3-truncate-ans"));
        let attr = client.truncate(&caller(), Inode(84), Some(handle), 100_000).await.unwrap();
        check_sent(&fake, golden!("c3-truncate-req"));
        assert_eq!(attr.length_bytes(), 100_000);

        answer_with(&fake, golden!("c3-flock-ans"));
        client.flock(handle, 0x6651_c0f0_899c_ff76, LockKind::Exclusive, true).await.unwrap();
        check_sent(&fake, golden!("c3-flock-req"));
        answer_with(&fake, golden!("c3-posixlock-ans"));
        let lock = PosixLock { kind: LockKind::Exclusive, start: 5, end: 15, pid: 20_463 };
        client.posix_lock(handle, 0x788d_c0de_8e9c_fc5c, lock, true).await.unwrap();
        let mut golden = golden!("c3-posixlock-req");
        golden[19] = 2; // the number of the request: we count both kinds of locks together
        check_sent(&fake, golden);
        client.close().await;
    });
}

#[test]
fn an_append_reserves_its_bytes_as_recorded() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = crate::connect(&ring, &fake).await;
        fake.add_file(84, "f1", b"");
        let flags = OpenFlags { append: true, ..READ_WRITE };
        let handle = client.open(&caller(), Inode(84), flags).await.unwrap().handle;
        client.write(handle, 0, b"abc".to_vec().into()).await.unwrap();
        check_sent(&fake, golden!("c3-truncate-reserve-req"));
        client.close().await;
    });
}

#[test]
fn data_travels_as_recorded() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = crate::connect(&ring, &fake).await;
        // Chunk 17, version 1 after the grant, in one copy: the recorded chain's second server is left out.
        for inode in 1000..1016 {
            fake.add_file(inode, "before", b"x");
        }
        let handle = open_84(&fake, &client).await;
        client.write(handle, 0, b"hello golden".to_vec().into()).await.unwrap();
        client.flush(handle, None).await.unwrap();
        check_sent(&fake, golden!("c3-writechunk-req"));
        check_sent(&fake, golden!("c3-writedata"));
        check_sent(&fake, golden!("c3-writechunkend-req"));
        ring.sleep(std::time::Duration::from_millis(50)).await; // WRITE_FINISH has no answer to wait for
        // The fake raises the version with every grant.
        let version_2 = |mut packet: Vec<u8>, at: usize| {
            packet[at] = 2;
            packet
        };
        check_sent(&fake, version_2(golden!("c3-writefinish"), 19));
        let mut write = version_2(golden!("c3-write"), 20);
        write.truncate(21);
        write[7] = 13;
        check_sent(&fake, write);
        assert_eq!(crate::read(&client, handle, 0, 100).await, b"hello golden");
        check_sent(&fake, version_2(golden!("c3-read"), 20));
        client.close().await;
    });
}
