//! Registration, requests, reconnects, notices.

use std::rc::Rc;
use std::time::Duration;

use client::{AttrChange, Caller, Client, Errno, Event, Inode, MountError, Settings, Time, TimeChange};
use wire::{
    CltomaFuseGetattr, CltomaFuseLookup, CltomaFuseSetattr, CltomaSetattrLong, LONG_TIMES, MatoclFuseFlengHasChanged,
    Packet, Status,
};

use crate::fake::{Fake, MasterFault};
use crate::{READ, READ_WRITE, connect, in_worlds, open, pattern, read, settings};

#[test]
fn a_mount_registers_with_its_text_and_closes_its_session() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let session = client.session().unwrap();
        assert_eq!((session.id.0, session.metaid.0, session.flags), (1, 77, 8));
        client.close().await;
        assert_eq!(fake.seen("NEWSESSION"), ["NEWSESSION `/mnt/test\\x00` Some(`/\\x00`) None"]);
        assert_eq!(fake.seen("CLOSESESSION").len(), 1);
        assert!(fake.seen("RECONNECT").is_empty(), "the end of the connection is no accident");
    });
}

#[test]
fn the_password_answers_the_masters_challenge() {
    in_worlds(1, 1, |ring, fake| async move {
        let digest = Settings::password_digest(b"secret");
        fake.state.borrow_mut().password_md5 = Some(digest);
        let without = Client::connect(ring.clone(), settings(&fake)).await.err();
        assert_eq!(without, Some(MountError::Refused(Status::NOPASSWORD)));
        let wrong = Settings { password_md5: Some(Settings::password_digest(b"guess")), ..settings(&fake) };
        assert_eq!(Client::connect(ring.clone(), wrong).await.err(), Some(MountError::Refused(Status::BADPASSWORD)));
        let right = Settings { password_md5: Some(digest), ..settings(&fake) };
        Client::connect(ring.clone(), right).await.unwrap().close().await;
    });
}

#[test]
fn requests_are_under_way_together_and_answers_find_theirs_in_any_order() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        let client = connect(&ring, &fake).await;
        fake.fault_master(CltomaFuseLookup::TYPE, MasterFault::AnswerAfterNext);
        let caller = Caller::root();
        let slow = {
            let (client, caller) = (client.clone(), caller.clone());
            ring.spawn(async move { client.lookup(&caller, Inode(1), b"a").await.unwrap().inode })
        };
        ring.sleep(Duration::from_secs(1)).await;
        // The answer to the lookup comes only after this one was asked: both are under way at once.
        let attr = client.getattr(&caller, Inode(5), None).await.unwrap();
        assert_eq!(attr.length_bytes(), 5);
        assert_eq!(slow.await, Some(Inode(5)));
        client.close().await;
    });
}

#[test]
fn a_request_is_sent_again_with_the_same_message_id_after_a_reconnect() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        let client = connect(&ring, &fake).await;
        fake.fault_master(CltomaFuseGetattr::TYPE, MasterFault::Disconnect);
        let attr = client.getattr(&Caller::root(), Inode(5), None).await.unwrap();
        assert_eq!(attr.length_bytes(), 5);
        let msgids = fake.state.borrow().msgids[&CltomaFuseGetattr::TYPE].clone();
        assert_eq!(msgids.len(), 2);
        assert_eq!(msgids[0], msgids[1]);
        assert_eq!(fake.seen("RECONNECT"), ["RECONNECT 1"]);
        assert_eq!(fake.seen("NEWSESSION").len(), 1);
        client.close().await;
    });
}

#[test]
fn a_request_for_a_master_of_ours_goes_to_a_stock_one_in_its_own_form_and_in_seconds() {
    const LONG_SETATTR: u32 = CltomaFuseSetattr::TYPE + LONG_TIMES;
    const LONG_GETATTR: u32 = CltomaFuseGetattr::TYPE + LONG_TIMES;
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        fake.state.borrow_mut().extensions = b"sync times".to_vec();
        let client = connect(&ring, &fake).await;
        assert!(client.session().unwrap().long_times);
        let change = AttrChange { mtime: Some(TimeChange::At(Time::at(7, 999_999_999))), ..AttrChange::default() };
        let set = || async { client.setattr(&Caller::root(), Inode(5), None, &change).await.unwrap_err() };
        fake.fault_master(LONG_SETATTR, MasterFault::Answer(Status::EACCES));
        assert_eq!(set().await, Errno::EACCES);
        assert_eq!(CltomaSetattrLong::decode(&fake.packet(LONG_SETATTR)).unwrap().mtime, Time::at(7, 999_999_999));

        // The next master on this address is a stock one.
        fake.state.borrow_mut().extensions.clear();
        fake.fault_master(LONG_SETATTR, MasterFault::Disconnect);
        fake.fault_master(CltomaFuseSetattr::TYPE, MasterFault::Answer(Status::EPERM));
        assert_eq!(set().await, Errno::EPERM);
        assert_eq!(CltomaFuseSetattr::decode(&fake.packet(CltomaFuseSetattr::TYPE)).unwrap().mtime, 7);
        assert!(!client.session().unwrap().long_times);
        client.getattr(&Caller::root(), Inode(5), None).await.unwrap();

        // And the one after it is ours again; what was asked in the stock form stays so.
        fake.state.borrow_mut().extensions = b"times".to_vec();
        fake.fault_master(CltomaFuseGetattr::TYPE, MasterFault::Disconnect);
        client.getattr(&Caller::root(), Inode(5), None).await.unwrap();
        assert!(client.session().unwrap().long_times);
        fake.fault_master(LONG_GETATTR, MasterFault::Answer(Status::EPERM));
        assert_eq!(client.getattr(&Caller::root(), Inode(5), None).await, Err(Errno::EPERM));
        client.close().await;
    });
}

#[test]
fn a_forgotten_session_is_replaced_and_open_files_are_told_first() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 5000);
        fake.add_file(5, "a", &content);
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        client.kernel_holds(Inode(1));
        fake.state.borrow_mut().forgets_sessions = true;
        fake.fault_master(CltomaFuseGetattr::TYPE, MasterFault::Disconnect);
        client.getattr(&Caller::root(), Inode(5), Some(handle)).await.unwrap();
        assert_eq!(client.session().unwrap().id.0, 2);
        assert_eq!(fake.state.borrow().held_inodes.last(), Some(&vec![1, 5]));
        assert_eq!(read(&client, handle, 0, 5000).await, content);
        client.close().await;
    });
}

#[test]
fn the_master_of_another_file_system_gets_nothing_and_the_right_one_gets_all() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", &[]);
        let client = Rc::new(connect(&ring, &fake).await);
        let handle = open(&client, 5, READ_WRITE).await;
        let content = pattern(3, 100_000);
        // Another file system that has a file with the same number. Then also one that knows of no session at all.
        for forgets in [false, true] {
            fake.state.borrow_mut().forgets_sessions = forgets;
            fake.state.borrow_mut().is_foreign = true;
            fake.disconnect_clients();
            ring.sleep(Duration::from_millis(100)).await;
            client.write(handle, 0, content.clone().into()).await.unwrap();
            let asked = fake.seen("NEWSESSION").len();
            let asking = client.clone();
            let question = ring.spawn(async move { asking.getattr(&Caller::root(), Inode(5), None).await });
            ring.sleep(Duration::from_secs(11)).await;
            assert!(!question.is_finished(), "it waits for its own file system");
            assert_eq!(fake.seen("NEWSESSION").len(), asked, "and leaves no session behind");
            assert!(fake.content(5).is_empty(), "nothing is written there");
            fake.state.borrow_mut().is_foreign = false;
            question.await.unwrap().unwrap();
            client.flush(handle, None).await.unwrap();
            assert_eq!(fake.content(5), content);
            fake.add_file(5, "a", &[]);
        }
        client.close().await;
    });
}

#[test]
fn a_master_that_stays_away_fails_requests_after_the_tries_and_not_before() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        let client = connect(&ring, &fake).await;
        fake.state.borrow_mut().is_silent = true; // neither answers nor keep-alives, and then no new session either
        let started = ring.now();
        let mut gone = settings(&fake);
        gone.master[0].set_port(1);
        client.set_master_addresses(gone.master);
        let failed = client.getattr(&Caller::root(), Inode(5), None).await;
        assert_eq!(failed, Err(Errno::EIO));
        let seconds = started.elapsed(&ring).as_secs();
        // 10 s of silence until the connection is given up, then about 130 s of tries.
        assert!((125..=170).contains(&seconds), "{seconds} s");
        client.close().await;
    });
}

#[test]
fn a_silent_master_is_left_after_ten_seconds() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        let client = connect(&ring, &fake).await;
        fake.state.borrow_mut().is_silent = true;
        let state = fake.state.clone();
        let its_ring = ring.clone();
        drop(ring.spawn(async move {
            its_ring.sleep(Duration::from_secs(11)).await;
            state.borrow_mut().is_silent = false;
        }));
        let started = ring.now();
        client.getattr(&Caller::root(), Inode(5), None).await.unwrap();
        let seconds = started.elapsed(&ring).as_secs();
        assert!((9..=16).contains(&seconds), "{seconds} s");
        assert_eq!(fake.seen("RECONNECT").len(), 1);
        client.close().await;
    });
}

#[test]
fn the_list_of_held_inodes_goes_out_every_minute() {
    in_worlds(1, 1, |ring, fake| async move {
        fake.add_file(5, "a", b"12345");
        let client = connect(&ring, &fake).await;
        let handle = open(&client, 5, READ).await;
        for inode in [9, 7, 9] {
            client.kernel_holds(Inode(inode));
        }
        ring.sleep(Duration::from_secs(65)).await;
        assert_eq!(fake.state.borrow().held_inodes.last(), Some(&vec![5, 7, 9]));
        client.kernel_forgot(Inode(9), 1);
        client.kernel_forgot(Inode(7), 1);
        client.release(handle, None).await.unwrap();
        ring.sleep(Duration::from_secs(60)).await;
        assert_eq!(fake.state.borrow().held_inodes.last(), Some(&vec![9]));
        client.close().await;
    });
}

#[test]
fn a_notice_about_the_length_reaches_readers_and_the_mount() {
    in_worlds(1, 1, |ring, fake| async move {
        let content = pattern(1, 70_000);
        fake.add_file(5, "a", &content[..10]);
        let client = connect(&ring, &fake).await;
        let mut events = client.take_events().unwrap();
        let handle = open(&client, 5, READ_WRITE).await;
        assert_eq!(read(&client, handle, 0, 100_000).await, content[..10]);
        {
            let mut state = fake.state.borrow_mut();
            state.files.get_mut(&5).unwrap().length = 70_000;
            for copy in state.chunks.get_mut(&1).unwrap().copies.values_mut() {
                *copy = content.clone();
            }
        }
        fake.notify(&MatoclFuseFlengHasChanged { msgid: 0, inode: Inode(5), length: 70_000 });
        let event = events.recv().await;
        assert_eq!(event, Some(Event::LengthChanged { inode: Inode(5), length: 70_000 }));
        assert_eq!(read(&client, handle, 0, 100_000).await, content);
        client.close().await;
    });
}

#[test]
fn a_refused_operation_has_the_error_of_the_table() {
    in_worlds(1, 1, |ring, fake| async move {
        let client = connect(&ring, &fake).await;
        let caller = Caller::root();
        assert_eq!(client.lookup(&caller, Inode(1), b"none").await, Err(Errno::ENOENT));
        fake.fault_master(CltomaFuseLookup::TYPE, MasterFault::Answer(Status::ENOENT_NOCACHE));
        assert_eq!(client.lookup(&caller, Inode(1), b"none").await, Err(Errno::ENOENT));
        fake.fault_master(CltomaFuseLookup::TYPE, MasterFault::Answer(Status::QUOTA));
        assert_eq!(client.lookup(&caller, Inode(1), b"none").await, Err(Errno::EDQUOT));
        assert_eq!(client.lookup(&caller, Inode(1), &[b'n'; 256]).await, Err(Errno::ENAMETOOLONG));
        client.close().await;
    });
}

#[test]
fn the_same_flows_run_on_the_real_drivers() {
    for driver in [ring::DriverChoice::Auto, ring::DriverChoice::Epoll] {
        let options = ring::Options { driver, ..ring::Options::default() };
        ring::run(options, |ring| async move {
            let fake = Fake::on_loopback(&ring, 2, 2);
            let client = connect(&ring, &fake).await;
            let content = pattern(3, 300_000);
            let (entry, opened) = client.create(&Caller::root(), Inode(1), b"new", 0o644, READ_WRITE).await.unwrap();
            client.write(opened.handle, 0, content.clone().into()).await.unwrap();
            client.flush(opened.handle, None).await.unwrap();
            assert_eq!(fake.content(entry.inode.0), content);
            assert_eq!(read(&client, opened.handle, 1000, 200_000).await, content[1000..201_000]);
            fake.disconnect_clients();
            assert_eq!(client.getattr(&Caller::root(), entry.inode, None).await.unwrap().length_bytes(), 300_000);
            client.close().await;
        })
        .unwrap();
    }
}
