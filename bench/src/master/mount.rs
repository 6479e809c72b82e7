//! One connection to a master, as a mount has it: a session, requests, answers.

use std::net::SocketAddrV4;

use ring::{BufferedReader, Instant, Ring, Stream};
use wire::{
    CltomaFuseCreate, CltomaFuseGetattr, CltomaFuseLookup, CltomaFuseMkdir, CltomaFuseMknod, CltomaFuseReaddir,
    CltomaFuseRegister, CltomaFuseRename, CltomaFuseSustainedInodes, CltomaFuseUnlink, Gids, HEADER_BYTES, Header,
    Inode, MatoclFuseRegister, Name, NewSession, NodeKind, Packet, Status, Text, VersionWord, readdir_flags,
};

const RECEIVE_BYTES: usize = 256 << 10;
/// A listing of as many entries as there are.
const ENTRIES_ALL: u32 = u32::MAX;

/// What one request asks.
#[derive(Clone, Copy)]
#[allow(clippy::large_enum_variant, reason = "one at a time, on the stack")]
pub enum Ask {
    Lookup(Inode, Name),
    Getattr(Inode),
    Readdir(Inode),
    Mkdir(Inode, Name),
    Mknod(Inode, Name),
    Create(Inode, Name),
    /// From, to, in one folder.
    Rename(Inode, Name, Name),
    Unlink(Inode, Name),
}

impl Ask {
    /// The packet, behind what `out` holds, as the mount of uid 0 would send it.
    fn put(&self, msgid: u32, out: &mut Vec<u8>) {
        const MODE: u16 = 0o644;
        let uid = 0;
        match *self {
            Ask::Lookup(parent, name) => {
                CltomaFuseLookup { msgid, parent, name, uid, gids: Gids::list(&[0]) }.encode_into(out);
            }
            Ask::Getattr(inode) => CltomaFuseGetattr { msgid, inode, opened: 0, uid, gid: 0 }.encode_into(out),
            Ask::Readdir(inode) => {
                let flags = readdir_flags::WITHATTR;
                let gids = Gids::list(&[0]);
                CltomaFuseReaddir { msgid, inode, uid, gids, flags, maxentries: ENTRIES_ALL, nedgeid: 0 }
                    .encode_into(out);
            }
            Ask::Mkdir(parent, name) => {
                let gids = Gids::list(&[0]);
                CltomaFuseMkdir { msgid, parent, name, mode: 0o755, umask: 0, uid, gids, copysgid: 0 }.encode_into(out);
            }
            Ask::Mknod(parent, name) => {
                let (kind, gids) = (NodeKind::File, Gids::list(&[0]));
                CltomaFuseMknod { msgid, parent, name, kind, mode: MODE, umask: 0, uid, gids, rdev: 0 }
                    .encode_into(out);
            }
            Ask::Create(parent, name) => {
                CltomaFuseCreate { msgid, parent, name, mode: MODE, umask: 0, uid, gids: Gids::list(&[0]) }
                    .encode_into(out);
            }
            Ask::Rename(parent, from, to) => CltomaFuseRename {
                msgid,
                parent_src: parent,
                name_src: from,
                parent_dst: parent,
                name_dst: to,
                uid,
                gids: Gids::list(&[0]),
                mode: None,
            }
            .encode_into(out),
            Ask::Unlink(parent, name) => {
                CltomaFuseUnlink { msgid, parent, name, uid, gids: Gids::list(&[0]) }.encode_into(out);
            }
        }
    }

    /// What the answer's packet number must be.
    fn answer(&self) -> u32 {
        1 + match self {
            Ask::Lookup(..) => CltomaFuseLookup::TYPE,
            Ask::Getattr(..) => CltomaFuseGetattr::TYPE,
            Ask::Readdir(..) => CltomaFuseReaddir::TYPE,
            Ask::Mkdir(..) => CltomaFuseMkdir::TYPE,
            Ask::Mknod(..) => CltomaFuseMknod::TYPE,
            Ask::Create(..) => CltomaFuseCreate::TYPE,
            Ask::Rename(..) => CltomaFuseRename::TYPE,
            Ask::Unlink(..) => CltomaFuseUnlink::TYPE,
        }
    }
}

/// A registered session.
pub struct Mount {
    ring: Ring,
    master: SocketAddrV4,
    stream: Stream,
    reader: BufferedReader,
}

impl Mount {
    /// Connects and registers. Spec 30, 3.2. Errors: in words.
    pub async fn new(ring: &Ring, master: SocketAddrV4) -> Result<Mount, String> {
        let lost = |error| format!("{master}: {error}");
        let stream = ring.connect(master.into(), None).await.map_err(lost)?;
        let reader = BufferedReader::new(stream.clone(), RECEIVE_BYTES);
        let mut mount = Mount { ring: ring.clone(), master, stream, reader };
        let wanted = NewSession {
            version: VersionWord::OURS,
            info: Text(b"/measured\0".to_vec()),
            path: Some(Text(b"/\0".to_vec())),
            sessionid: None,
            metaid: None,
            passcode: None,
        };
        mount.stream.send_all(CltomaFuseRegister::NewSession(wanted).encode()).await.0.map_err(lost)?;
        let header = mount.whole_packet().await?;
        let answer = MatoclFuseRegister::decode(mount.payload(header));
        mount.done(header);
        match answer {
            Ok(MatoclFuseRegister::Session { .. }) => Ok(mount),
            other => Err(format!("{master} does not register us: {other:?}")),
        }
    }

    /// Sends what `next` gives, `window` at a time, until it gives no more, and waits for all answers. `answered` gets
    /// each question's number as `next` gave it, the answer's payload behind the message id, and when it was asked.
    /// Errors: the master refused one, or is gone.
    pub async fn ask_all(
        &mut self,
        window: usize,
        mut next: impl FnMut() -> Option<(usize, Ask)>,
        mut answered: impl FnMut(usize, &[u8], Instant),
    ) -> Result<(), String> {
        let mut waiting: Vec<Option<(usize, u32, Instant)>> = vec![None; window];
        let mut idle: Vec<usize> = (0..window).rev().collect();
        let mut packets = Vec::new();
        let mut is_over = false;
        loop {
            while let (false, Some(slot)) = (is_over, idle.last().copied()) {
                match next() {
                    None => is_over = true,
                    Some((number, ask)) => {
                        idle.pop();
                        ask.put(slot as u32 + 1, &mut packets);
                        waiting[slot] = Some((number, ask.answer(), self.ring.now()));
                    }
                }
            }
            if !packets.is_empty() {
                let result;
                (result, packets) = self.stream.send_all(packets).await;
                result.map_err(|error| format!("{}: {error}", self.master))?;
                packets.clear();
            }
            if idle.len() == window {
                return Ok(());
            }
            let mut header = self.whole_packet().await?;
            loop {
                let payload = self.payload(header);
                let msgid = payload.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
                let slot = (msgid as usize).wrapping_sub(1);
                if let Some(place) = waiting.get_mut(slot)
                    && let Some((number, kind, since)) = *place
                    && kind == header.kind
                {
                    let rest = &payload[4..];
                    if let [status] = rest
                        && *status != 0
                    {
                        return Err(format!("{}: request {number} got {}", self.master, Status(*status)));
                    }
                    answered(number, rest, since);
                    *place = None;
                    idle.push(slot);
                }
                self.done(header);
                match self.buffered_packet() {
                    Some(more) => header = more,
                    None => break,
                }
            }
        }
    }

    /// Lets go of every file that CREATE opened. Spec 30, 5.2.
    pub async fn close_files(&mut self) -> Result<(), String> {
        let packet = CltomaFuseSustainedInodes { inodes: Vec::new() }.encode();
        self.stream.send_all(packet).await.0.map_err(|error| format!("{}: {error}", self.master))?;
        let mut once = Some((0, Ask::Getattr(Inode::ROOT)));
        self.ask_all(1, || once.take(), |_, _, _| {}).await
    }

    async fn whole_packet(&mut self) -> Result<Header, String> {
        loop {
            if let Some(header) = self.buffered_packet() {
                return Ok(header);
            }
            let wanted = match self.reader.buffered().first_chunk().map(Header::decode) {
                Some(header) => HEADER_BYTES + header.length as usize,
                None => HEADER_BYTES,
            };
            self.reader.fill(wanted).await.map_err(|error| format!("{}: {error}", self.master))?;
        }
    }

    fn buffered_packet(&self) -> Option<Header> {
        let buffered = self.reader.buffered();
        let header = Header::decode(buffered.first_chunk()?);
        (buffered.len() >= HEADER_BYTES + header.length as usize).then_some(header)
    }

    fn payload(&self, header: Header) -> &[u8] {
        &self.reader.buffered()[HEADER_BYTES..HEADER_BYTES + header.length as usize]
    }

    fn done(&mut self, header: Header) {
        self.reader.consume(HEADER_BYTES + header.length as usize);
    }
}
