//! Every layout of every section, from 1.7 to 3.0.117, made by hand from the specification. Spec 50, 3.2, 4 and 5.3.
//!
//! There are no programs of those releases to write such files; those of 3.0.117 itself are in tests/everything.

use super::*;
use crate::acl;
use crate::class::LabelSets;
use crate::namespace::{Namespace, Policy};
use crate::times::Times;
use wire::{Ip4, SessionId};

const NOW: u32 = 1_795_300_000;

/// Bytes as they are put together.
#[derive(Clone, Default)]
struct Out(Vec<u8>);

impl Out {
    fn u8(mut self, value: u8) -> Out {
        self.0.push(value);
        self
    }
    fn u16(mut self, value: u16) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u32(mut self, value: u32) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn u32s(self, values: &[u32]) -> Out {
        values.iter().fold(self, |out, value| out.u32(*value))
    }
    fn u64(mut self, value: u64) -> Out {
        self.0.extend(value.to_be_bytes());
        self
    }
    fn bytes(mut self, bytes: &[u8]) -> Out {
        self.0.extend_from_slice(bytes);
        self
    }
    fn zeros(self, count: usize) -> Out {
        self.bytes(&vec![0; count])
    }
}

type Body = (&'static [u8; 4], u8, Out);

fn sections(head: Out, bodies: &[Body]) -> Vec<u8> {
    let file = bodies.iter().fold(head, |out, (letters, layout, body)| {
        let digits = [b' ', b'0' + (layout >> 4), b'.', b'0' + (layout & 15)];
        out.bytes(*letters).bytes(&digits).u64(body.0.len() as u64).bytes(&body.0)
    });
    file.bytes(END).0
}

fn file(bodies: &[Body]) -> Vec<u8> {
    sections(Out::default().bytes(b"MFSM 2.0").u64(50).u64(7), bodies)
}

fn load(bytes: &[u8]) -> Result<Namespace, StockError> {
    let mut whole = Loader::new();
    whole.push(bytes)?;
    let loaded = whole.finish(Policy::default(), NOW)?.namespace;
    // The size of pieces does not matter.
    let mut pieces = Loader::new();
    bytes.chunks(7).try_for_each(|piece| pieces.push(piece))?;
    assert_eq!(pieces.finish(Policy::default(), NOW)?.namespace.digest(), loaded.digest());
    Ok(loaded)
}

/// The part of a node's record that all kinds have. `kind`: its number since 2.0, and its letter before.
fn node(layout: u8, kind: (u8, u8), inode: u32, class: u8, eattr: u8, mode: u16) -> Out {
    let out = Out::default().u8(if layout <= 0x12 { kind.1 } else { kind.0 }).u32(inode).u8(class);
    let out = match layout {
        0x14.. => out.u8(eattr).u8(9).u16(mode),
        0x12.. => out.u8(eattr).u16(mode),
        _ => out.u16(u16::from(eattr) << 12 | mode),
    };
    let out = out.u32s(&[11, 12, 100, 200, 300]);
    if layout >= 0x14 { out.u16(3) } else { out.u32(2 * 3600 + 1) }
}

/// A root, and what the section under test names: file 2 and directory 3.
fn nodes(layout: u8) -> Body {
    let head = match layout {
        0x10 => Out::default().u32(9),
        _ => Out::default().u32(9).u32(0),
    };
    let file = node(layout, (1, b'f'), 2, 3, 5, 0o640).u64(70_000).u32(2);
    let file = if layout <= 0x13 { file.u16(1) } else { file };
    let file = file.u64(0).u64(8);
    let file = if layout <= 0x13 { file.u32(4) } else { file };
    let all = [
        node(layout, (2, b'd'), 1, 2, 0, 0o755),
        node(layout, (2, b'd'), 3, 2, 1, 0o711),
        file,
        node(layout, (3, b'l'), 4, 0, 0, 0o777).u32(2).bytes(b"to"),
        node(layout, (4, b'q'), 5, 0, 0, 0o600),
        node(layout, (6, b'c'), 6, 0, 0, 0o600).u32(0x103),
    ];
    (b"NODE", layout, all.into_iter().fold(head, |out, node| out.bytes(&node.0)).u8(0))
}

fn edges(layout: u8) -> Body {
    let id = |out: Out, id: u64| if layout >= 0x11 { out.u64(id) } else { out };
    let top = 0x7FFF_FFFF_FFFF_FFF0u64;
    let head = if layout >= 0x11 { Out::default().u64(top) } else { Out::default() };
    let all = [(1, 2, b"a"), (1, 3, b"b"), (1, 4, b"c"), (1, 5, b"d"), (1, 6, b"e"), (3, 2, b"f")];
    let body = all
        .iter()
        .zip(1..)
        .fold(head, |out, ((parent, child, name), at)| id(out.u32(*parent).u32(*child), top + at).u16(1).bytes(*name));
    (b"EDGE", layout, id(body.zeros(8), 0).u16(0))
}

fn chunks(layout: u8) -> Body {
    let flag = |out: Out, flag: u8| if layout >= 0x11 { out.u8(flag) } else { out };
    let body = flag(Out::default().u64(20).u64(8).u32(5).u32(NOW + 60), 1);
    (b"CHNK", layout, flag(body.zeros(16), 0))
}

fn session(layout: u8, id: u32) -> Out {
    let mut out = Out::default().u32(id);
    if layout >= 0x13 {
        out = out.u64(99);
    }
    out = out.u32(2).u32(0x0A00_0001).u32(1).u8(8);
    if layout >= 0x14 {
        out = out.u16(0o22);
    }
    out = out.u8(2).u8(5).u32s(&[60, 7200, 1, 2, 3, 4]);
    if layout >= 0x15 {
        out = out.u32(6);
    }
    if layout >= 0x11 {
        out = out.u32(777);
    }
    out.u32s(&[1, 2, 3, 4])
}

fn sessions(layout: u8) -> Body {
    let head = match layout {
        0x10 => Out::default().u16(1),
        0x11 => Out::default().u16(2),
        _ => Out::default(),
    };
    let end = session(layout, 0).0.len();
    (b"SESS", layout, head.u32(6).u16(2).bytes(&session(layout, 4).bytes(b"/m").0).zeros(end))
}

#[test]
fn sessions_of_each_layout() {
    for layout in 0x10..=0x15 {
        let loaded = load(&file(&[sessions(layout), nodes(0x14), edges(0x11)])).unwrap();
        let session = &loaded.state.sessions[&SessionId(4)];
        let params = &session.params;
        assert_eq!((params.root.0, params.flags, &params.info[..], params.peer_ip.0), (1, 8, &b"/m"[..], 0x0A00_0001));
        assert_eq!((params.goal_min, params.goal_max), (2, 5), "{layout:02X}");
        assert_eq!((params.trash_time_min_seconds, params.trash_time_max_seconds), (60, 7200));
        assert_eq!((params.root_uid, params.root_gid, params.map_all_uid, params.map_all_gid), (1, 2, 3, 4));
        assert_eq!(params.exports_checksum, if layout >= 0x13 { 99 } else { 0 });
        assert_eq!(params.umask, if layout >= 0x14 { 0o22 } else { 0 });
        assert_eq!(params.disables, if layout >= 0x15 { 6 } else { 0 });
        assert_eq!(session.disconnected, if layout >= 0x11 { 777 } else { NOW }, "{layout:02X}");
        assert_eq!(loaded.state.next_session, 6);
    }
    let unknown = file(&[(b"SESS", 0x10, Out::default().u16(3)), nodes(0x14), edges(0x11)]);
    assert!(matches!(load(&unknown), Err(StockError::Malformed { section: Some(Section::Sessions), .. })));
}

#[test]
fn storage_classes_of_each_layout() {
    let (a, b): (LabelSets, LabelSets) = ([1, 0, 0, 0], [2, 4, 0, 0]);
    for layout in 0x10..=0x16 {
        let groups = if layout == 0x10 { 1 } else { 2 };
        let masks = |out: Out, set: &LabelSets| out.u32s(&set[..groups]);
        let mut body = Out::default();
        if layout <= 0x15 {
            for label in 0..26 {
                body = body.u8(label % 3).bytes(&b"xyz"[..usize::from(label % 3)]);
            }
        }
        if layout >= 0x11 {
            body = body.u8(2);
        }
        body = body.u16(12);
        body = match layout {
            0x10 | 0x11 | 0x13 => masks(masks(body.u8(2), &a), &b),
            0x12 => masks(masks(body.u8(2).u32(3).u32(0), &a), &b).zeros(24),
            0x14 => masks(masks(masks(body.u8(2).u8(1).u8(2), &a), &b), &a),
            0x15 => masks(masks(masks(masks(body.u8(2).u16(30).u8(1).u8(2).u8(1), &a), &b), &a), &b),
            _ => {
                let body = body.u8(4).u8(1).u8(2).u16(30).u8(1).u8(2).u8(1).bytes(b"fast");
                masks(masks(masks(masks(body, &a), &b), &a), &b)
            }
        };
        let end = [3, 3, 11, 3, 5, 8, 10][usize::from(layout - 0x10)];
        let loaded = load(&file(&[(b"LABS", layout, body.zeros(end)), nodes(0x14), edges(0x11)]));
        let loaded = loaded.unwrap_or_else(|error| panic!("{layout:02X}: {error}"));
        let class = loaded.state.classes.get(12).unwrap();
        let b = if groups == 1 { [2, 0, 0, 0] } else { b };
        let (create, keep, arch) = match layout {
            0x10..=0x13 => (vec![a, b], vec![a, b], vec![a, b]),
            0x14 => (vec![a], vec![b, a], vec![b, a]),
            _ => (vec![a], vec![b, a], vec![b]),
        };
        assert_eq!((&class.create, &class.keep, &class.arch), (&create, &keep, &arch), "{layout:02X}");
        assert_eq!(class.name, if layout >= 0x16 { &b"fast"[..] } else { b"sclass_3" });
        assert_eq!(class.mode, if layout >= 0x14 { 2 } else { 1 });
        assert_eq!((class.arch_delay_days, class.admin_only), (if layout >= 0x15 { 30 } else { 0 }, layout >= 0x16));
    }
}

#[test]
fn nodes_entries_and_chunks_of_each_layout() {
    for (node, edge, chunk) in
        [(0x10, 0x10, 0x10), (0x11, 0x11, 0x10), (0x12, 0x11, 0x10), (0x13, 0x11, 0x11), (0x14, 0x11, 0x11)]
    {
        let loaded = load(&file(&[sessions(0x12), nodes(node), edges(edge), chunks(chunk)])).unwrap();
        let state = &loaded.state;
        let file = *state.node(2).unwrap();
        assert_eq!(
            (file.mode(), file.eattr(), file.class, state.trash_hours(&file), file.links),
            (0o640, 5, 3, 3, 2),
            "{node:02X}"
        );
        let times = Times { atime: 100.into(), mtime: 200.into(), ctime: 300.into() };
        assert_eq!((state.owner(&file), state.times(&file)), ((11, 12), times));
        assert_eq!((file.winattr(), file.length()), (if node >= 0x14 { 9 } else { 0 }, 70_000));
        let slot = state.chunk_of(&file, 1);
        assert_eq!((state.chunk_of(&file, 0), state.chunks.at(slot).id.0, state.chunks.at(slot).version.0), (0, 8, 5));
        assert_eq!((state.chunks.at(slot).locked_to, state.chunks.at(slot).archived), (NOW + 60, chunk >= 0x11));
        assert_eq!((state.target(state.node(4).unwrap()), state.node(6).unwrap().rdev()), (&b"to"[..], 0x103));
        assert_eq!(state.node(5).unwrap().kind(), wire::NodeKind::Fifo);
        assert_eq!(state.is_open_by(SessionId(4), 2), node <= 0x13, "lists of sessions are in old nodes");
        assert_eq!((state.find_child(3, b"f"), state.find_child(1, b"e")), (Some(2), Some(6)));
        // Directories are listed as the file has them, newest first.
        let names: Vec<u8> = state.children(1).map(|edge| state.name(edge)[0]).collect();
        assert_eq!(names, b"abcde");
        assert_eq!((loaded.version(), loaded.meta_id().0, state.chunks.next_id()), (50, 7, 20));
    }
}

#[test]
fn quotas_acls_and_servers_of_each_layout() {
    for layout in [0x10, 0x11] {
        let quota = Out::default().u32(1).u32(3);
        let quota = if layout >= 0x11 { quota.u32(55) } else { quota };
        let quota = quota.u8(1).u8(0x31).u32(44).u32s(&[10, 20]).u64(1).u64(2).u64(3).u64(4).u64(5).u64(6);
        // An ACL with a mask of 0, by a mistake of releases before 3.0.98.
        let acl = Out::default().u32(2).u8(1).u16(1).u16(4).u16(1).u16(0).u16(1).u16(0).u32(9).u16(6);
        let bodies = [nodes(0x14), edges(0x11), (b"QUOT", layout, quota), (b"PACL", layout, acl.zeros(17))];
        let loaded = load(&file(&bodies)).unwrap();
        let quota = &loaded.state.quotas[&3];
        let grace = if layout >= 0x11 { 55 } else { crate::quota::DEFAULT_GRACE_SECONDS };
        assert_eq!((quota.exceeded, quota.flags, quota.since, quota.grace_seconds), (true, 0x31, 44, grace));
        assert_eq!((quota.soft.inodes, quota.soft.length, quota.soft.size, quota.soft.realsize), (10, 1, 3, 5));
        assert_eq!((quota.hard.inodes, quota.hard.length, quota.hard.size, quota.hard.realsize), (20, 2, 4, 6));
        let acl = &loaded.state.acls[&(2, acl::ACCESS)];
        assert_eq!(
            (acl.user, acl.group, acl.other, acl.mask),
            if layout == 0x10 { (6, 4, 0, 7) } else { (1, 4, 1, 0) }
        );
        assert_eq!(acl.users, [(9, 6)]);
    }
    for layout in 0x10..=0x13 {
        let mut server = Out::default().u32(1).u32(0x0A00_0001).u16(9422);
        if layout >= 0x11 {
            server = server.u16(3);
        }
        if layout >= 0x12 {
            server = server.u8(1);
        }
        if layout >= 0x13 {
            server = server.u32(66);
        }
        let loaded = load(&file(&[nodes(0x14), edges(0x11), (b"CSDB", layout, server)])).unwrap();
        let entry = &loaded.state.servers[&(Ip4(0x0A00_0001), 9422)];
        let since = |first: u8, value: u32| if layout >= first { value } else { 0 };
        let found = (u32::from(entry.csid), u32::from(entry.maintenance), entry.maintenance_until);
        assert_eq!(found, (since(0x11, 3), since(0x12, 1), since(0x13, 66)));
    }
}

#[test]
fn a_file_of_1_7_comes_in() {
    let head = Out::default().bytes(b"MFSM 1.7").u32(9).u64(77).u32(6);
    // Without the largest number in front of the nodes: it is in the head.
    let mut nodes = nodes(0x10);
    nodes.2.0.drain(..4);
    let free = Out::default().u32(1).u32(8).u32(50);
    let xattr = Out::default().u32(2).u8(6).u32(1).bytes(b"user.av").zeros(9);
    let bodies = [nodes, edges(0x10), (b"FREE", 0x10, free), (b"XATR", 0x10, xattr), chunks(0x10)];
    let bytes = sections(head.clone(), &bodies);
    let loaded = load(&bytes).unwrap();
    assert_eq!((loaded.version(), loaded.meta_id().0, loaded.state.next_session), (77, 0, 6));
    assert_eq!(loaded.state.xattrs[&2][&b"user.a"[..]], b"v");
    assert_eq!(loaded.state.free_queue(), &[(8, 50)]);
    assert_eq!(loaded.state.find_child(3, b"f"), Some(2));
    let lock = [bodies[0].clone(), (b"LOCK", 0x10, Out::default())];
    assert!(matches!(load(&sections(head, &lock)), Err(StockError::UnknownSection { letters: [b'L', ..], .. })));
    for end in 0..bytes.len() {
        assert!(load(&bytes[..end]).is_err(), "cut at {end}");
    }
}

/// What has a key and comes twice was read from a damaged file: neither of the two is known to be right.
#[test]
fn what_comes_twice_is_refused_with_its_section_and_place() {
    let once = |letters: &'static [u8; 4], layout: u8, body: Out| {
        let bodies = [sessions(0x15), nodes(0x14), edges(0x11), (b"OPEN", 0x10, open(1)), (letters, layout, body)];
        let bodies: Vec<Body> = bodies.into_iter().filter(|body| body.0 != letters || body.2.0.len() > 8).collect();
        load(&file(&bodies))
    };
    fn open(times: usize) -> Out {
        (0..times).fold(Out::default(), |out, _| out.u32(4).u32(2)).zeros(8)
    }
    let quota = |count: u32| (0..count).fold(Out::default().u32(count), |out, _| out.u32(3).zeros(66));
    let xattr = |times: usize| (0..times).fold(Out::default(), |out, _| out.u32(2).u8(1).u32(1).bytes(b"nv")).zeros(9);
    let flock = |times: usize| (0..times).fold(Out::default(), |out, _| out.u32(2).u64(5).u32(4).u8(0)).zeros(17);
    let range = |times: u64| {
        (0..times).fold(Out::default(), |out, at| out.u32(2).u64(5).u32(4).u32(1).u64(3 * at).u64(9).u8(1)).zeros(37)
    };
    let class = |times: usize| {
        let one = |out: Out| out.u16(3).u8(1).u8(0).u8(1).u16(0).u8(1).u8(1).u8(1).bytes(b"3").zeros(48);
        (0..times).fold(Out::default().u8(4), |out, _| one(out)).zeros(10)
    };
    let free = |count: u32| (0..count).fold(Out::default().u32(count), |out, _| out.u32(8).u32(5));
    let check = |letters: &'static [u8; 4], layout: u8, one: Out, two: Out| {
        let name = letters.escape_ascii();
        assert!(once(letters, layout, one.clone()).is_ok(), "{name}: {:?}", once(letters, layout, one).err());
        let refused = once(letters, layout, two).map(drop);
        let Err(StockError::Malformed { section: Some(section), offset, .. }) = refused else {
            panic!("{name} twice: {refused:?}")
        };
        assert_eq!(section.letters(), letters);
        assert!(offset > 100, "the second one's place: {offset}");
    };
    check(b"QUOT", 0x11, quota(1), quota(2));
    check(b"XATR", 0x10, xattr(1), xattr(2));
    check(b"FLCK", 0x10, flock(1), flock(2));
    check(b"PLCK", 0x10, range(1), range(2));
    check(b"SCLA", 0x16, class(1), class(2));
    check(b"FREE", 0x10, free(1), free(2));
    let twice = |bodies: &[Body]| load(&file(bodies)).map(drop).unwrap_err();
    let two_opens = twice(&[sessions(0x15), nodes(0x14), edges(0x11), (b"OPEN", 0x10, open(2))]);
    assert!(matches!(two_opens, StockError::Malformed { section: Some(Section::Open), .. }), "{two_opens}");
    let mut two_sessions = sessions(0x15);
    let (head, record) = (6, session(0x15, 4).0.len() + 2);
    let again = two_sessions.2.0[head..head + record].to_vec();
    two_sessions.2.0.splice(head..head, again);
    let refused = twice(&[two_sessions, nodes(0x14), edges(0x11)]);
    assert!(refused.to_string().contains("session 4 occurs twice (section SESS"), "{refused}");
}

#[test]
fn lengths_and_numbers_beyond_the_section_are_refused_at_once() {
    // Chunks of a file, chunks of a class, beyond what the section holds: nobody waits for more of the file.
    let file_record = node(0x14, (1, b'f'), 2, 3, 0, 0o640).u64(0).u32(0x7FFF_FFFF);
    let class_record = (0..26).fold(Out::default(), |out, _| out.u8(0)).u8(1).u16(12).u8(1).u32(u32::MAX).u32(0);
    for (letters, layout, body) in
        [(b"NODE", 0x14, Out::default().u32(9).u32(0).bytes(&file_record.0)), (b"LABS", 0x12, class_record.u32(0))]
    {
        let bytes = file(&[(letters, layout, body.zeros(3000))]);
        let mut loader = Loader::new();
        let refused = bytes[..bytes.len() - 2900].chunks(64).try_for_each(|piece| loader.push(piece)).unwrap_err();
        assert!(refused.to_string().contains("too many chunks"), "{refused}");
    }
    let version =
        |version: u64| sections(Out::default().bytes(b"MFSM 2.0").u64(version).u64(7), &[nodes(0x14), edges(0x11)]);
    assert!(load(&version(1 << 62)).is_ok());
    for bad in [0, (1 << 62) + 1, u64::MAX] {
        assert!(load(&version(bad)).unwrap_err().to_string().contains("version"), "{bad}");
    }
}
