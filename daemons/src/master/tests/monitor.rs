//! What monitors ask, and what nobody may ask.

use super::*;

/// Asks on a new connection; `None`: the master hangs up.
async fn ask(ring: &Ring, kind: u32, payload: &[u8]) -> Option<(u32, Vec<u8>)> {
    let mut monitor = Peer::connect(ring, 9421).await;
    monitor.send(question(kind, payload)).await;
    monitor.next().await
}

fn words(payload: &[u8]) -> Vec<u32> {
    payload.chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect()
}

async fn points(ring: &Ring, chart: u32) -> AntoclChartData {
    let question = CltoanChartData { chart, entries_max: Some(3) }.encode();
    let (kind, payload) = ask(ring, 506, &question[HEADER_BYTES..]).await.unwrap();
    assert_eq!(kind, 507);
    AntoclChartData::decode(&payload).unwrap()
}

async fn written_file(client: &mut Peer, name: &str) -> Inode {
    let inode = client.create(name).await.unwrap();
    let grant = client.write_chunk(inode).await.unwrap();
    assert_eq!(client.write_end(inode, grant.chunkid, 5000).await, Status::OK);
    inode
}

#[test]
fn each_minute_is_a_point_in_the_charts_and_they_outlive_a_restart() {
    let scene = Scene::new(41);
    let _servers = (scene.chunkserver(11), scene.chunkserver(12));
    const OPEN: u32 = 170;
    const CREATED: u32 = 340;
    let file = ["mknod", "open", "write", "create", "create_ok"];
    let at = |name: &str| crate::master::charts::KIND.series.iter().position(|series| series.name == name).unwrap();
    let places = file.map(at);
    scene.play(21, move |ring| async move {
        let mut client = Peer::mount(&ring).await;
        written_file(&mut client, "file").await;
        let (_, payload) = ask(&ring, 502, &[]).await.unwrap();
        let AntoclMonotonicData { counters, .. } = AntoclMonotonicData::decode(&payload).unwrap();
        assert_eq!(counters.0, [0; 38], "no minute has ended");
        ring.sleep(Duration::from_secs(62)).await;
        let (_, payload) = ask(&ring, 502, &[]).await.unwrap();
        let AntoclMonotonicData { counters, disks } = AntoclMonotonicData::decode(&payload).unwrap();
        assert_eq!(disks, DiskTotals(None));
        assert_eq!(places.map(|at| counters.0[at]), [1, 1, 1, 2, 2], "{file:?}");
        let traffic = ["prcvd", "psent", "brcvd", "bsent", "totalspace"].map(|name| counters.0[at(name)]);
        assert!(traffic.iter().all(|count| *count > 0), "{traffic:?}");
        let open = points(&ring, OPEN).await;
        assert_eq!((open.entries, open.points[0]), (3, 1));
        let (kind, payload) = ask(&ring, 504, &CREATED.to_be_bytes()).await.unwrap();
        assert!(kind == 505 && payload.starts_with(b"\x89PNG"));
        client.create("in a minute that does not end").await.unwrap();
        ring.sleep(Duration::from_secs(1)).await;
    });
    scene.stop();
    scene.start();
    scene.play(21, |ring| async move {
        let open = points(&ring, OPEN).await;
        assert_eq!(open.points.iter().filter(|point| **point != u64::MAX).sum::<u64>(), 2, "{:?}", open.points);
        let made = points(&ring, CREATED).await;
        assert!(made.points.contains(&2), "{:?}", made.points);
    });
}

#[test]
fn a_chunkserver_that_tells_no_state_is_spared_when_its_load_is_heavy_until_it_is_sent_back_to_work() {
    let scene = Scene::new(42);
    let _other = scene.chunkserver(12);
    scene.play(11, |ring| async move {
        let mut server = Peer::connect(&ring, 9420).await;
        server.send(begin(11)).await;
        assert_eq!(server.take().await.map(|packet| packet.0), Some(104));
        server.send(CstomaRegister::End.encode()).await;
        server.send_nops(AntoanNop {}.encode());
        let told = |load| CstomaCurrentLoad { load, hlstatus: None, transferring: None }.encode();
        let record = async |of: u8| {
            let (_, list) = ask(&ring, 500, &[]).await.unwrap();
            list.chunks_exact(69).find(|record| record[4..8] == [10, 0, 0, of]).unwrap().to_vec()
        };
        let grace = async |of: u8| words(&record(of).await[60..64])[0];
        server.send(told(150)).await;
        ring.sleep(Duration::from_secs(1)).await;
        assert_eq!(grace(11).await, 0, "150 is not above 150");
        server.send(told(151)).await;
        ring.sleep(Duration::from_secs(2)).await;
        let left = grace(11).await;
        assert!((895..900).contains(&left), "{left} s are left");
        let command = [&[1][..], &record(11).await[4..10]].concat();
        assert_eq!(ask(&ring, 524, &command).await, Some((525, vec![Status::OK.0])));
        assert_eq!((grace(11).await, grace(12).await), (0, 0));
        // A server that says itself how it is, is taken at its word.
        server.send(CstomaCurrentLoad { load: 900, hlstatus: Some(1), transferring: None }.encode()).await;
        ring.sleep(Duration::from_secs(1)).await;
        assert_eq!(grace(11).await, 0);
    });
}

#[test]
fn files_that_miss_copies_are_counted_in_a_round() {
    let scene = Scene::new(43);
    let _servers = (scene.chunkserver(11), scene.chunkserver(12));
    let find = |last| scene.play(last, |ring| async move { ask(&ring, 512, &[1]).await.unwrap().1 });
    assert_eq!(find(31), [0; 44], "no round has ended");
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let (uid, gids, parent) = (0, Gids::list(&[0]), Inode(1));
        let inode = written_file(&mut client, "twice").await;
        written_file(&mut client, "thrown away").await;
        let name = Name::new(b"second").unwrap();
        let link = CltomaFuseLink { msgid: 1, inode, parent_dst: parent, name, uid, gids: gids.clone() };
        let _: MatoclFuseLink = client.get(&link).await.unwrap();
        let name = Name::new(b"thrown away").unwrap();
        assert!(client.ask(&CltomaFuseUnlink { msgid: 1, parent, name, uid, gids }).await.is_some());
    });
    scene.world.run_for(Duration::from_secs(700));
    let found = words(&find(32));
    assert!(found[0] > 0 && found[1] >= found[0] + 300, "a round takes as long as a sweep: {found:?}");
    assert_eq!(found[2..], [2, 0, 0, 0, 0, 2, 0, 0, 0], "files and chunks");
    // Both servers are away for good.
    for last in [11, 12] {
        scene.world.cut(scene.world.node(Ipv4Addr::new(10, 0, 0, last)), scene.master);
    }
    scene.world.run_for(Duration::from_secs(700));
    let found = words(&find(33));
    assert_eq!(found[2..], [2, 0, 2, 1, 0, 2, 0, 2, 0], "one by two names, and one in the trash, miss their chunks");
}

#[test]
fn a_disk_that_is_marked_for_removal_may_go_once_its_chunks_have_copies_elsewhere() {
    let scene = Scene::new(46);
    let (marked, _other) = (scene.chunkserver(11), scene.chunkserver(12));
    let state = |last: u8| {
        let list = scene.play(31, |ring| async move { ask(&ring, 500, &[]).await.unwrap().1 });
        list.chunks_exact(69).find(|record| record[4..8] == [10, 0, 0, last]).unwrap()[68]
    };
    assert_eq!(state(11), 0, "not known yet");
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        written_file(&mut client, "file").await;
    });
    scene.world.run_for(Duration::from_secs(20));
    assert_eq!(state(11), 2, "nothing needs it");
    // Its disk is marked now, which it tells when it comes again; there is no other server for the copy.
    let node = scene.world.node(Ipv4Addr::new(10, 0, 0, 11));
    scene.world.cut(node, scene.master);
    marked.chunks.borrow_mut().values_mut().for_each(|version| version.0 |= Version::MARKED_FOR_REMOVAL);
    scene.world.run_for(Duration::from_secs(40));
    scene.world.heal(node, scene.master);
    scene.world.run_for(Duration::from_secs(40));
    assert_eq!((state(11), state(12)), (1, 2), "a copy is wanted that only this disk has");
    let third = scene.chunkserver(13);
    scene.world.run_for(Duration::from_secs(40));
    assert_eq!(third.chunks.borrow().len(), 1);
    assert_eq!(state(11), 2, "the copy was made");
}

#[test]
fn a_large_table_is_told_as_the_last_pass_found_it() {
    const CHUNKS: u32 = 20;
    let exports = "* / rw,alldirs,admin,maproot=0:0\n";
    let scene = Scene::with(47, exports, |settings| settings.looked_at_once = 19);
    let _servers = (scene.chunkserver(11), scene.chunkserver(12));
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = client.create("file").await.unwrap();
        for index in 0..CHUNKS {
            let question = CltomaFuseWriteChunk { msgid: 7, inode, index, chunkopflags: Some(0) };
            let grant: MatoclFuseWriteChunk = client.get(&question).await.unwrap();
            assert_eq!(client.write_end(inode, grant.chunkid, 1).await, Status::OK);
        }
    });
    let asked = |last| {
        scene.play(last, |ring| async move {
            let matrices = ask(&ring, 516, &[]).await.unwrap().1;
            let info = ask(&ring, 510, &[]).await.unwrap().1;
            let memory = ask(&ring, 528, &[]).await.unwrap().1;
            let lists: Vec<u64> =
                memory[32..48].chunks_exact(8).map(|it| u64::from_be_bytes(it.try_into().unwrap())).collect();
            assert!(lists[1] > 0 && lists[0] >= lists[1], "copies take memory: {lists:?}");
            (words(&matrices[1..]), words(&info[88..100]), ask(&ring, 544, &[]).await.unwrap().1.len())
        })
    };
    asked(31);
    scene.world.run_for(Duration::from_secs(5));
    let (matrices, [chunks, copies, regular], missing) = {
        let (matrices, counts, missing) = asked(32);
        (matrices, <[u32; 3]>::try_from(counts).unwrap(), missing)
    };
    assert_eq!((matrices[2 * 11 + 2], matrices[121 + 2 * 11 + 2]), (CHUNKS, CHUNKS), "wanted twice, there twice");
    assert_eq!((chunks, copies, regular, missing), (CHUNKS, 2 * CHUNKS, 2 * CHUNKS, 0));
    for last in [11, 12] {
        scene.world.cut(scene.world.node(Ipv4Addr::new(10, 0, 0, last)), scene.master);
    }
    scene.world.run_for(Duration::from_secs(700));
    let (matrices, counts, missing) = asked(33);
    assert_eq!((matrices[2 * 11], &counts[1..]), (CHUNKS, &[0, 0][..]), "no copy is here");
    assert_eq!(missing, CHUNKS as usize * 16, "the last round over all files has each");
}

/// What 3.0.117 crashes at, or never ends with, and what it hangs up on. Spec 70, 1.2 and 1.3; Spec 31, 31.5.
#[test]
fn questions_that_hurt_a_stock_master_are_refused_and_the_next_is_answered() {
    let scene = Scene::new(44);
    let setattr = CltomaFuseSetattr::TYPE;
    let node_info = CltomaNodeInfo::TYPE;
    // Registered or not; packet; payload.
    let cases: &[(&str, bool, u32, &[u8])] = &[
        ("NODE_INFO without a session, which crashes it", false, node_info, &[0; 16]),
        ("NODE_INFO without a session, with a message id", false, node_info, &[0; 20]),
        ("SETATTR without groups in the form of one group, which crashes it", true, setattr, &[0; 38]),
        ("CSERV_LIST with a mode", false, 500, &[1]),
        ("MONOTONIC_DATA with a byte", false, 502, &[1]),
        ("CHART without a number", false, 504, &[]),
        ("CHART with half a size", false, 504, &[0; 6]),
        ("CHART_DATA without a number", false, 506, &[]),
        ("CHART_DATA of several series", false, 506, &[0; 9]),
        ("SESSION_LIST with a message id", false, 508, &[0; 5]),
        ("INFO with a byte", false, 510, &[0]),
        ("FSTEST_INFO with two bytes", false, 512, &[0; 2]),
        ("CHUNKSTEST_INFO with a byte", false, 514, &[0]),
        ("CHUNKS_MATRIX of a class", false, 516, &[0; 2]),
        ("QUOTA_INFO with a version", false, 518, &[1]),
        ("EXPORTS_INFO with two bytes", false, 520, &[0; 2]),
        ("MLOG_LIST with a byte", false, 522, &[0]),
        ("CSSERV_COMMAND without a server", false, 524, &[]),
        ("CSSERV_COMMAND with more than a server", false, 524, &[0; 8]),
        ("SESSION_COMMAND without a session", false, 526, &[]),
        ("MEMORY_INFO with a byte", false, 528, &[0]),
        ("MODULE_INFO with a byte", false, 530, &[0]),
        ("LIST_OPEN_FILES without a session", false, 532, &[]),
        ("LIST_ACQUIRED_LOCKS without an inode", false, 534, &[]),
        ("MASS_RESOLVE_PATHS of half an inode", false, 536, &[0; 2]),
        ("an unused number", false, 538, &[]),
        ("an unused number", false, 540, &[]),
        ("SCLASS_INFO of 4.x", false, 542, &[5]),
        ("MISSING_CHUNKS with two bytes", false, 544, &[0; 2]),
        ("PATTERN_INFO of 4.x", false, 548, &[]),
        ("INSTANCE_NAME of 4.x", false, 550, &[]),
        ("an answer", false, 511, &[]),
    ];
    for &(what, registered, kind, payload) in cases {
        let ended = scene.play(21, move |ring| async move {
            let mut peer = if registered { Peer::mount(&ring).await } else { Peer::connect(&ring, 9421).await };
            peer.send(question(kind, payload)).await;
            ring.timeout(Duration::from_secs(5), peer.next()).await
        });
        assert!(matches!(ended, Ok(None)), "{what}: {ended:?}");
        let answer = scene.play(22, |ring| async move { ask(&ring, 510, &[]).await });
        assert_eq!(answer.map(|(kind, payload)| (kind, payload.len())), Some((511, 149)), "after {what}");
    }
}

#[test]
fn node_info_of_a_file_that_ends_in_holes_comes_to_an_end() {
    let scene = Scene::new(45);
    let _server = scene.chunkserver(11);
    scene.play(21, |ring| async move {
        let mut client = Peer::mount(&ring).await;
        let inode = written_file(&mut client, "file").await;
        let (flags, uid, gids, length) = (0, 0, Gids::list(&[0]), 10 << 30);
        let longer = CltomaFuseTruncate { msgid: 1, inode, flags, uid, gids, length };
        let _: MatoclFuseTruncate = client.get(&longer).await.unwrap();
        let mut continueid = 0;
        for _ in 0..200 {
            let question = CltomaNodeInfo { msgid: 1, inode, maxentries: 1, continueid };
            let answer: MatoclNodeInfo = client.get(&question).await.unwrap();
            let NodeInfo::File { continueid: next, .. } = answer.info else { panic!("{:?}", answer.info) };
            if next == 0 {
                return;
            }
            assert!(next > continueid, "it goes on");
            continueid = next;
        }
        panic!("no end");
    });
}
