//! What the users of the scenario do, and how one sees what came of it.
//!
//! The first user does one thing after the other, so that of its changes at most one is in doubt when the master fails.
//! The second asks for several files at once, so that lines of several requests share a batch of the journal.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use ring::Ring;
use wire::{
    Acl, AclEntry, AttrEntry, ChunkId, ClassBody, CltomaFuseAppendSlice, CltomaFuseArchctl, CltomaFuseCreate,
    CltomaFuseFlock, CltomaFuseGeteattr, CltomaFuseGetfacl, CltomaFuseGetsclass, CltomaFuseGetsustained,
    CltomaFuseGettrash, CltomaFuseGettrashtime, CltomaFuseGetxattr, CltomaFuseLink, CltomaFuseLookup, CltomaFuseMkdir,
    CltomaFuseMknod, CltomaFuseQuotacontrol, CltomaFuseReaddir, CltomaFuseReadlink, CltomaFuseRename, CltomaFuseRmdir,
    CltomaFuseSetattr, CltomaFuseSeteattr, CltomaFuseSetfacl, CltomaFuseSetsclass, CltomaFuseSettrashtime,
    CltomaFuseSetxattr, CltomaFuseSnapshot, CltomaFuseSymlink, CltomaFuseTruncate, CltomaFuseUndel, CltomaFuseUnlink,
    CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd, CltomaSclassCreate, CltomaSclassDelete, CltomaSclassDuplicate,
    CltomaSclassList, CltomaSclassRename, EDGE_ID_START, Gids, Inode, MatoclFuseCreate, MatoclFuseGettrash,
    MatoclFuseLookup, MatoclFuseMkdir, MatoclFuseReaddir, MatoclFuseWriteChunk, Name, NodeKind, Packet, QuotaSet,
    Status, Text, readdir_flags, set_mask,
};

use super::peer::{Peer, Session};

/// What a user wants of those who run the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The hour of the master's clock ends: its journal rotates, and an image is written.
    Hour,
    /// The master is stopped in order and started again.
    Restart,
}

/// What users and those who run the world tell one another.
#[derive(Default)]
pub(super) struct Board {
    /// What was acknowledged to the first user, and what was to be seen after each; the state in front comes first.
    pub(super) states: RefCell<Vec<(&'static str, String)>>,
    /// States are only noted when this is set.
    pub(super) observing: Cell<bool>,
    pub(super) acknowledged: Cell<usize>,
    pub(super) wanted: Cell<Option<Wanted>>,
    pub(super) session: Cell<Option<Session>>,
    /// The file on which the first user was told that it has the lock.
    pub(super) locked: Cell<Option<Inode>>,
    /// Chunks whose writing was acknowledged from beginning to end, and the file's length then.
    pub(super) written: RefCell<BTreeMap<Inode, (ChunkId, u64)>>,
    /// Files of the second user that were acknowledged.
    pub(super) files: Cell<u32>,
    /// The script is done.
    pub(super) finished: Cell<bool>,
    /// Nobody is to ask for anything more.
    pub(super) closed: Cell<bool>,
}

/// Between two looks at the board.
const LOOK: Duration = Duration::from_millis(1);
/// Files that the second user asks for at once, and its pause after them.
const AT_ONCE: u32 = 3;
const PAUSE: Duration = Duration::from_millis(60);
/// Tries of a request that depends on the chunkserver, which may be on its way back.
const TRIES: u32 = 200;

pub(super) fn name(text: &str) -> Name {
    Name::new(text.as_bytes()).expect("a short name")
}

fn gids<const AFTER: usize>() -> Gids<AFTER> {
    Gids::list(&[0])
}

/// The first user.
pub(super) struct Script {
    ring: Ring,
    board: Rc<Board>,
    peer: Peer,
    meta: Peer,
    eye: Option<Eye>,
}

impl Script {
    /// Runs the whole script, or as much of it as the master lives. Panics: the master refused what it must not refuse.
    pub(super) async fn run(ring: Ring, board: Rc<Board>) {
        if let Ok(mut script) = Script::begin(ring, board.clone()).await {
            let ended = script.play().await;
            assert!(matches!(ended, Ok(()) | Err(Status::DISCONNECTED)), "a request is refused: {ended:?}");
            board.finished.set(ended.is_ok());
        }
    }

    async fn begin(ring: Ring, board: Rc<Board>) -> Result<Script, Status> {
        let tries = || !board.closed.get();
        let (peer, session) = Peer::register(&ring, false, tries).await?;
        board.session.set(Some(session));
        let (meta, _) = Peer::register(&ring, true, tries).await?;
        let mut script = Script { ring, board: board.clone(), peer, meta, eye: None };
        script.open_eye().await?;
        script.note("nothing").await?;
        Ok(script)
    }

    async fn open_eye(&mut self) -> Result<(), Status> {
        if self.board.observing.get() {
            self.eye = Some(Eye::open(&self.ring).await?);
        }
        Ok(())
    }

    async fn note(&mut self, what: &'static str) -> Result<(), Status> {
        if let Some(eye) = &mut self.eye {
            let seen = eye.look().await?;
            self.board.states.borrow_mut().push((what, seen));
        }
        Ok(())
    }

    /// A change was acknowledged.
    async fn done(&mut self, what: &'static str) -> Result<(), Status> {
        self.board.acknowledged.set(self.board.acknowledged.get() + 1);
        self.note(what).await
    }

    async fn want(&mut self, wanted: Wanted) -> Result<(), Status> {
        self.board.wanted.set(Some(wanted));
        while self.board.wanted.get().is_some() {
            if self.board.closed.get() {
                return Err(Status::DISCONNECTED);
            }
            self.ring.sleep(LOOK).await;
        }
        if wanted == Wanted::Restart {
            let board = self.board.clone();
            let session = board.session.get().ok_or(Status::DISCONNECTED)?;
            let tries = || !board.closed.get();
            self.peer = Peer::reconnect(&self.ring, session, tries).await?;
            (self.meta, _) = Peer::register(&self.ring, true, tries).await?;
            self.open_eye().await?;
        }
        Ok(())
    }

    #[allow(clippy::too_many_lines, reason = "a list of things to do, one after the other")]
    async fn play(&mut self) -> Result<(), Status> {
        let top = self.mkdir(Inode::ROOT, "a").await?;
        let folder = self.mkdir(top, "folder").await?;
        let file = self.create(top, "file").await?;
        self.write(file, 70_000).await?;
        self.order("symlink", &{
            let target = Text(b"folder/target\0".to_vec());
            CltomaFuseSymlink { msgid: 1, parent: top, name: name("symlink"), target, uid: 0, gids: gids() }
        })
        .await?;
        let linked = name("second name");
        let link = CltomaFuseLink { msgid: 1, inode: file, parent_dst: folder, name: linked, uid: 0, gids: gids() };
        self.order("link", &link).await?;
        self.chmod(file, 0o4751).await?;
        self.xattr(file, "user.first", Some(b"value")).await?;
        let locked = CltomaFuseFlock { msgid: 1, inode: file, reqid: 1, owner: 7, cmd: 3 };
        self.order("lock", &locked).await?;
        self.board.locked.set(Some(file));
        let victim = self.create(top, "victim").await?;
        self.write(victim, 1000).await?;
        self.rename((top, "victim"), (folder, "moved")).await?;

        self.want(Wanted::Hour).await?;
        self.create(top, "replacing").await?;
        self.rename((top, "replacing"), (folder, "moved")).await?;
        self.xattr(folder, "user.second", Some(&[b'x'; 3000])).await?;
        self.chmod(folder, 0o2775).await?;
        let setting = CltomaFuseSettrashtime { msgid: 1, inode: top, uid: 0, seconds: 7 * 86_400, smode: 4 };
        self.order("trash time", &setting).await?;
        let class = CltomaFuseSetsclass { msgid: 1, inode: top, uid: 0, goal: 3, smode: 4, names: Vec::new() };
        self.order("goal", &class).await?;
        self.truncate(file, 1234).await?;
        let copy = name("snapshot");
        let copying = CltomaFuseSnapshot {
            msgid: 1,
            source: folder,
            parent: top,
            name: copy,
            uid: 0,
            gids: gids(),
            smode: 8,
            umask: 0,
        };
        self.order("snapshot", &copying).await?;

        self.want(Wanted::Hour).await?;
        self.write(file, 80_000).await?; // its chunk is shared with the snapshot
        self.unlink(top, "file").await?;
        let pipe = CltomaFuseMknod {
            msgid: 1,
            parent: folder,
            name: name("pipe"),
            kind: NodeKind::Fifo,
            mode: 0o600,
            umask: 0,
            uid: 5,
            gids: gids(),
            rdev: 0,
        };
        self.order("mknod", &pipe).await?;
        let other = self.create(top, "other").await?;
        self.write(other, 5000).await?;
        let append = CltomaFuseAppendSlice {
            msgid: 1,
            flags: 0,
            inode: other,
            source: file,
            from: 0,
            to: 0x8000_0000,
            uid: 0,
            gids: gids(),
        };
        self.order("append", &append).await?;
        let limits = QuotaSet {
            grace: 3600,
            sinodes: 100,
            slength: 1 << 30,
            ssize: 0,
            srealsize: 0,
            hinodes: 200,
            hlength: 0,
            hsize: 0,
            hrealsize: 0,
        };
        let quota = CltomaFuseQuotacontrol { msgid: 1, inode: top, qflags: 0x13, set: Some(limits) };
        self.order("quota", &quota).await?;
        let users = vec![AclEntry { id: 5, perm: 6 }];
        let acl = Acl { userperm: 7, groupperm: 5, otherperm: 0, mask: 7, users, groups: Vec::new() };
        self.order("acl", &CltomaFuseSetfacl { msgid: 1, inode: other, uid: 0, acltype: 1, acl }).await?;

        self.want(Wanted::Restart).await?;
        let bits = CltomaFuseSeteattr { msgid: 1, inode: folder, uid: 0, eattr: 0x02, smode: 5 };
        self.order("extra attributes", &bits).await?;
        self.xattr(folder, "user.second", None).await?;
        let any = vec![[0; 4]; 2];
        let body =
            ClassBody { admin_only: 0, mode: 1, arch_delay: 9, create: any.clone(), keep: any.clone(), arch: any };
        let made = CltomaSclassCreate { msgid: 1, name: name("class"), fver: 0, body };
        self.order("class", &made).await?;
        let twin = CltomaSclassDuplicate { msgid: 1, old: name("class"), new: name("twin") };
        self.order("class duplicated", &twin).await?;
        let renamed = CltomaSclassRename { msgid: 1, old: name("twin"), new: name("named") };
        self.order("class renamed", &renamed).await?;
        let dropped = CltomaSclassDelete { msgid: 1, name: name("class") };
        self.order("class deleted", &dropped).await?;
        let using =
            CltomaFuseSetsclass { msgid: 1, inode: other, uid: 0, goal: 0xFF, smode: 0, names: vec![name("named")] };
        self.order("class used", &using).await?;
        let archived = CltomaFuseArchctl { msgid: 1, inode: other, cmd: 1, uid: Some(0) };
        self.order("archived", &archived).await?;
        self.unlink(folder, "moved").await?;
        self.undelete("moved").await?;
        self.mkdir(top, "short").await?;

        self.want(Wanted::Hour).await?;
        let rmdir = CltomaFuseRmdir { msgid: 1, parent: top, name: name("short"), uid: 0, gids: gids() };
        self.order("rmdir", &rmdir).await?;
        let times = CltomaFuseSettrashtime { msgid: 1, inode: other, uid: 0, seconds: 0, smode: 0 };
        self.order("no trash", &times).await?;
        self.unlink(top, "other").await?; // it stays as long as it is open
        self.truncate(file, 0).await?; // it is in the trash, and open
        self.chmod(top, 0o700).await?;
        self.rename((folder, "second name"), (top, "last")).await
    }

    async fn order<P: Packet>(&mut self, what: &'static str, packet: &P) -> Result<(), Status> {
        self.peer.order(packet).await?;
        self.done(what).await
    }

    async fn mkdir(&mut self, parent: Inode, text: &str) -> Result<Inode, Status> {
        let (name, umask) = (name(text), 0);
        let packet = CltomaFuseMkdir { msgid: 1, parent, name, mode: 0o755, umask, uid: 0, gids: gids(), copysgid: 0 };
        let made: MatoclFuseMkdir = self.peer.get(&packet).await?;
        self.done("mkdir").await?;
        Ok(made.inode)
    }

    async fn create(&mut self, parent: Inode, text: &str) -> Result<Inode, Status> {
        let name = name(text);
        let packet = CltomaFuseCreate { msgid: 1, parent, name, mode: 0o644, umask: 0, uid: 0, gids: gids() };
        let made: MatoclFuseCreate = self.peer.get(&packet).await?;
        self.done("create").await?;
        Ok(made.inode)
    }

    /// The first chunk, so that the file has this length.
    async fn write(&mut self, inode: Inode, length: u64) -> Result<(), Status> {
        let ask = CltomaFuseWriteChunk { msgid: 1, inode, index: 0, chunkopflags: Some(0) };
        let mut tries = 0;
        let grant: MatoclFuseWriteChunk = loop {
            match self.peer.get(&ask).await {
                Err(Status::DISCONNECTED) => return Err(Status::DISCONNECTED),
                Err(_) if tries < TRIES => self.ring.sleep(Duration::from_millis(20)).await,
                other => break other?,
            }
            tries += 1;
        };
        self.done("write begins").await?;
        let chunkid = grant.chunkid;
        let end = CltomaFuseWriteChunkEnd { msgid: 1, chunkid, inode, index: 0, length, chunkopflags: 0, region: None };
        self.peer.order(&end).await?;
        self.board.written.borrow_mut().insert(inode, (chunkid, length));
        self.done("write").await
    }

    async fn truncate(&mut self, inode: Inode, length: u64) -> Result<(), Status> {
        // What is asked may have happened or not: neither chunk nor length are known until the answer is there.
        self.board.written.borrow_mut().remove(&inode);
        let packet = CltomaFuseTruncate { msgid: 1, inode, flags: 1, uid: 0, gids: gids(), length };
        self.order("truncate", &packet).await
    }

    async fn chmod(&mut self, inode: Inode, mode: u16) -> Result<(), Status> {
        let setmask = set_mask::MODE | set_mask::UID | set_mask::MTIME;
        let (attruid, mtime) = (1000 + u32::from(mode), 123_000 + u32::from(mode));
        let packet = CltomaFuseSetattr {
            msgid: 1,
            inode,
            opened: 0,
            uid: 0,
            gids: gids(),
            setmask,
            mode,
            attruid,
            attrgid: 0,
            atime: 0,
            mtime,
            winattr: 0,
            sugidclearmode: 0,
        };
        self.order("setattr", &packet).await
    }

    async fn xattr(&mut self, inode: Inode, text: &str, value: Option<&[u8]>) -> Result<(), Status> {
        let (mode, value) = if value.is_some() { (0, value.unwrap_or_default()) } else { (3, &[][..]) };
        let (name, value) = (name(text), Text(value.to_vec()));
        let packet = CltomaFuseSetxattr { msgid: 1, inode, name, value, mode, opened: 0, uid: 0, gids: gids() };
        self.order("xattr", &packet).await
    }

    async fn rename(&mut self, from: (Inode, &str), to: (Inode, &str)) -> Result<(), Status> {
        let (parent_src, name_src) = (from.0, name(from.1));
        let (parent_dst, name_dst) = (to.0, name(to.1));
        let packet =
            CltomaFuseRename { msgid: 1, parent_src, name_src, parent_dst, name_dst, uid: 0, gids: gids(), mode: None };
        self.order("rename", &packet).await
    }

    async fn unlink(&mut self, parent: Inode, text: &str) -> Result<(), Status> {
        let packet = CltomaFuseUnlink { msgid: 1, parent, name: name(text), uid: 0, gids: gids() };
        self.order("unlink", &packet).await
    }

    /// Brings a file back whose name in the trash ends so.
    async fn undelete(&mut self, end: &str) -> Result<(), Status> {
        let trash: MatoclFuseGettrash = self.meta.get(&CltomaFuseGettrash { msgid: 1, bucket: None }).await?;
        let has_end = |entry: &&wire::DetachedEntry| entry.name.as_bytes().ends_with(end.as_bytes());
        // The one that was replaced is there too, and older.
        let entry = trash.entries.iter().filter(has_end).max_by_key(|entry| entry.inode).ok_or(Status::ENOENT)?;
        self.meta.order(&CltomaFuseUndel { msgid: 1, inode: entry.inode }).await?;
        self.done("undelete").await
    }
}

/// The second user: files `/b/0`, `/b/1`, ... in their order.
pub(super) async fn crowd(ring: Ring, board: Rc<Board>) {
    let tries = || !board.closed.get();
    let Ok((mut peer, session)) = Peer::register(&ring, false, tries).await else { return };
    loop {
        let _ = make_files(&ring, &board, &mut peer).await; // it was disconnected, or it is enough
        match Peer::reconnect(&ring, session, tries).await {
            Ok(again) => peer = again,
            Err(_) => return,
        }
    }
}

async fn make_files(ring: &Ring, board: &Board, peer: &mut Peer) -> Result<(), Status> {
    let packet = CltomaFuseMkdir {
        msgid: 1,
        parent: Inode::ROOT,
        name: name("b"),
        mode: 0o755,
        umask: 0,
        uid: 0,
        gids: gids(),
        copysgid: 0,
    };
    match peer.order(&packet).await {
        Ok(()) | Err(Status::EEXIST) => {}
        Err(status) => return Err(status),
    }
    let found: MatoclFuseLookup = peer.get(&lookup(Inode::ROOT, "b")).await?;
    let mut next = list(peer, found.inode).await?.len() as u32;
    while !board.closed.get() {
        let asked: Vec<Vec<u8>> = (next..next + AT_ONCE)
            .map(|number| {
                let (kind, name) = (NodeKind::File, name(&number.to_string()));
                let (parent, mode) = (found.inode, 0o644);
                CltomaFuseMknod { msgid: 1, parent, name, kind, mode, umask: 0, uid: 0, gids: gids(), rdev: 0 }.encode()
            })
            .collect();
        peer.send(asked.concat()).await?;
        for _ in 0..AT_ONCE {
            let (_, payload) = peer.next().await?;
            assert!(payload.len() > 5, "a file is refused: {payload:?}");
            next += 1;
            board.files.set(next);
        }
        ring.sleep(PAUSE).await;
    }
    Ok(())
}

pub(super) fn lookup(parent: Inode, text: &str) -> CltomaFuseLookup {
    CltomaFuseLookup { msgid: 1, parent, name: name(text), uid: 0, gids: gids() }
}

/// Entries of a folder but for `.` and `..`, by name.
pub(super) async fn list(peer: &mut Peer, inode: Inode) -> Result<Vec<AttrEntry>, Status> {
    let (flags, maxentries, nedgeid) = (readdir_flags::WITHATTR, 10_000, EDGE_ID_START);
    let packet = CltomaFuseReaddir { msgid: 1, inode, uid: 0, gids: gids(), flags, maxentries, nedgeid };
    let listing: MatoclFuseReaddir = peer.get(&packet).await?;
    let mut entries = listing.entries;
    entries.retain(|entry| !matches!(entry.name.as_bytes(), b"." | b".."));
    entries.sort_by(|one, other| one.name.as_bytes().cmp(other.name.as_bytes()));
    Ok(entries)
}

/// One who sees everything below `/a`, the trash, and the classes.
pub(super) struct Eye {
    pub(super) peer: Peer,
    meta: Peer,
}

impl Eye {
    pub(super) async fn open(ring: &Ring) -> Result<Eye, Status> {
        let (peer, _) = Peer::register(ring, false, || true).await?;
        let (meta, _) = Peer::register(ring, true, || true).await?;
        Ok(Eye { peer, meta })
    }

    /// All that is to be seen, as text: without numbers of inodes, and without times that nobody has set.
    pub(super) async fn look(&mut self) -> Result<String, Status> {
        let mut out = String::new();
        let detached =
            [CltomaFuseGettrash { msgid: 1, bucket: None }.encode(), CltomaFuseGetsustained { msgid: 1 }.encode()];
        for (what, payload) in ["trash", "sustained"].iter().zip(self.meta.ask_all(&detached).await?) {
            let whole = [&[0; 4], &payload[..]].concat();
            let entries = MatoclFuseGettrash::decode(&whole).map_or_else(|_| Vec::new(), |answer| answer.entries);
            let mut names: Vec<String> =
                entries.iter().map(|entry| entry.name.as_bytes().escape_ascii().to_string()).collect();
            names.sort();
            writeln!(out, "{what}: {}", names.join(" ")).expect("a string takes everything");
        }
        let classes = self.peer.ask_all(&[CltomaSclassList { msgid: 1, longmode: 1 }.encode()]).await?;
        writeln!(out, "classes: {}", classes[0].escape_ascii()).expect("a string takes everything");
        let top: MatoclFuseLookup = match self.peer.get(&lookup(Inode::ROOT, "a")).await {
            Err(Status::ENOENT) => return Ok(out),
            other => other?,
        };
        let mut seen: BTreeMap<Inode, String> = BTreeMap::new();
        let first = AttrEntry { name: name("a"), inode: top.inode, attr: top.attr };
        let mut folders = vec![(String::new(), vec![first])];
        while let Some((path, entries)) = folders.pop() {
            for entry in entries {
                let path = format!("{path}/{}", entry.name.as_bytes().escape_ascii());
                if let Some(first) = seen.get(&entry.inode) {
                    writeln!(out, "{path}: the same as {first}").expect("a string takes everything");
                    continue;
                }
                seen.insert(entry.inode, path.clone());
                let AttrEntry { inode, attr, .. } = &entry;
                let mtime = if attr.mtime.seconds() < 1_000_000 { attr.mtime.seconds() } else { 0 };
                let size = if attr.kind == NodeKind::Directory { 0 } else { attr.extra };
                write!(
                    out,
                    "{path}: {:?} {:o} {}:{} links {} size {size} time {mtime}",
                    attr.kind, attr.mode, attr.uid, attr.gid, attr.nlink
                )
                .expect("a string takes everything");
                self.details(*inode, attr.kind, &mut out).await?;
                if attr.kind == NodeKind::Directory {
                    folders.push((path, list(&mut self.peer, *inode).await?));
                }
            }
        }
        Ok(out)
    }

    async fn details(&mut self, inode: Inode, kind: NodeKind, out: &mut String) -> Result<(), Status> {
        let xattr = |text: &str| {
            let (name, mode, opened) = (name(text), 0, 0);
            CltomaFuseGetxattr { msgid: 1, inode, name, mode, opened, uid: 0, gids: gids() }.encode()
        };
        let mut asked = vec![
            ("eattr", CltomaFuseGeteattr { msgid: 1, inode, gmode: 0 }.encode()),
            ("xattrs", xattr("")),
            ("first", xattr("user.first")),
            ("second", xattr("user.second")),
            ("acl", CltomaFuseGetfacl { msgid: 1, inode, acltype: 1, ignored: wire::Rest(Vec::new()) }.encode()),
        ];
        if matches!(kind, NodeKind::File | NodeKind::Directory) {
            asked.push(("class", CltomaFuseGetsclass { msgid: 1, inode, gmode: 0 }.encode()));
            asked.push(("trash time", CltomaFuseGettrashtime { msgid: 1, inode, gmode: 0 }.encode()));
            asked.push(("archived", CltomaFuseArchctl { msgid: 1, inode, cmd: 2, uid: None }.encode()));
        }
        if kind == NodeKind::Directory {
            asked.push(("quota", CltomaFuseQuotacontrol { msgid: 1, inode, qflags: 0, set: None }.encode()));
        }
        if kind == NodeKind::Symlink {
            asked.push(("target", CltomaFuseReadlink { msgid: 1, inode }.encode()));
        }
        let packets: Vec<Vec<u8>> = asked.iter().map(|(_, packet)| packet.clone()).collect();
        for ((what, _), answer) in asked.iter().zip(self.peer.ask_all(&packets).await?) {
            write!(out, " {what} {}", answer.escape_ascii()).expect("a string takes everything");
        }
        out.push('\n');
        Ok(())
    }
}
