//! Port 9419: metaloggers follow the journal and fetch images. Spec 42, A.
//!
//! A logger gets every line once, in order, after it is durable here. One that comes back gets what it missed if that
//! is still remembered, page by page as its socket takes it; else it sees the gap and fetches an image. Ours asks for the
//! last line that it has, too, to compare it, and asks what it will be sent next (`NEXT_OPTION`). Our image is wrapped into a file of MooseFS's
//! framing, signature and end marker included, since a stock logger keeps nothing else; version and metaid are the
//! image's:
//!
//! ```text
//! "MFSM 2.0", version u64, metaid u64, "MOOR 1.0" (section), length u64, our image, "[MFS EOF MARKER]"
//! ```

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use meta::image::{ImageError, ImageHeader};
use meta::journal::Batch;
use ring::{File, OpenHow, Stream};
use tracing::{error, info, warn};
use wire::limits::{DOWNLOAD_PIECE_BYTES_MAX, METALOGGER_BYTES_MAX};
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, AntoanNop, AntomaDownloadEnd, AntomaDownloadRequest,
    AntomaDownloadStart, AntomaRegister, Crc, Field, Header, Ip4, MatoanDownloadData, MatoanDownloadInfo,
    MatoanDownloadMissing, MatoanMetachangesLog, Name, Packet, Rest, VersionWord, WireError,
};

use super::Shared;
use super::chunkserver::version_answer;
use super::core::ip_of;
use super::journal::{Queue, packets_of};
use crate::connection::{KeepAlive, Outbox, PacketReader, write_out};
use crate::data_folder::{BACK, WRAPPED_HEAD_BYTES, WRAPPED_TAIL, journal_path};

const TIMEOUT: Duration = Duration::from_secs(10);
/// While files are renamed.
const MOVING_WAIT: Duration = Duration::from_millis(5);
/// A metalogger of ours asks with this option for the number of the next change that it will be sent, in decimal: a gap,
/// or a master that was rolled back, shows at once. A MooseFS master answers that it is not set. Spec 10, 2.
pub(crate) const NEXT_OPTION: &[u8] = b"MOORING_NEXT_CHANGE";
/// A logger that does not take the last lines of a master that stops is waited for that long.
const FAREWELL_WAIT: Duration = Duration::from_secs(5);

/// Those who follow the journal.
#[derive(Default)]
pub(super) struct Loggers {
    following: BTreeMap<u64, Follower>,
}

struct Follower {
    outbox: Rc<Outbox>,
    version: VersionWord,
    ip: Ip4,
    /// The first line that it was not handed yet, while it catches up; then it gets new lines as they come.
    behind: Option<u64>,
}

impl Loggers {
    /// Lines that became durable.
    pub(super) fn changed(&mut self, batches: &[Batch]) {
        if self.following.values().all(|follower| follower.behind.is_some()) {
            return;
        }
        for (_, packet) in batches.iter().flat_map(packets_of) {
            for follower in self.following.values().filter(|follower| follower.behind.is_none()) {
                follower.outbox.push(&packet);
            }
        }
    }

    /// Hands the next lines to one that catches up. Returns whether there are more.
    fn page(&mut self, id: u64, journal: &Queue) -> bool {
        let Some(follower) = self.following.get_mut(&id) else { return false };
        let Some(version) = follower.behind else { return false };
        let Some((packets, next)) = journal.page_from(version) else {
            warn!(from = version, "a metalogger was so slow that the changes it misses are forgotten; it is cut off");
            follower.outbox.close();
            return false;
        };
        for packet in packets {
            follower.outbox.push(&packet);
        }
        follower.behind = Some(next).filter(|next| *next < journal.durable());
        follower.behind.is_some()
    }

    /// Number of the next line that it will get.
    fn next_of(&self, id: u64, journal: &Queue) -> u64 {
        self.following.get(&id).and_then(|follower| follower.behind).unwrap_or(journal.durable())
    }

    pub(super) fn rotated(&self) {
        let packet = MatoanMetachangesLog::Rotate.encode();
        for follower in self.following.values() {
            follower.outbox.push(&packet);
        }
    }

    pub(super) fn close_all(&self) {
        for follower in self.following.values() {
            follower.outbox.close();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.following.len()
    }

    /// What they said of their version, and their addresses, for monitors. Spec 70, 4.4.
    pub(super) fn peers(&self) -> impl Iterator<Item = (VersionWord, Ip4)> {
        self.following.values().map(|follower| (follower.version, follower.ip))
    }
}

/// Files taken at the same moment, and the one that is being sent.
#[derive(Default)]
struct Download {
    current: Option<Source>,
    /// Journal files as they were when the image was opened.
    journals: [Option<Source>; 2],
}

struct Source {
    file: File,
    file_bytes: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Source {
    fn bytes(&self) -> u64 {
        self.head.len() as u64 + self.file_bytes + self.tail.len() as u64
    }

    /// `None`: the range is not in the file.
    async fn read(&self, offset: u64, count: u32) -> Option<Vec<u8>> {
        let end = offset.checked_add(u64::from(count)).filter(|end| *end <= self.bytes())?;
        let mut out = Vec::new();
        let head = self.head.len() as u64;
        let part = |bytes: &[u8], start: u64| {
            let from = offset.max(start).min(start + bytes.len() as u64) - start;
            let to = end.max(start).min(start + bytes.len() as u64) - start;
            bytes[from as usize..to as usize].to_vec()
        };
        out.extend(part(&self.head, 0));
        let (from, to) = (offset.max(head), end.min(head + self.file_bytes));
        if from < to {
            let wanted = usize::try_from(to - from).ok()?;
            let (read, bytes) = self.file.read_at(vec![0; wanted], from - head).await;
            if read.ok()? != wanted {
                return None;
            }
            out.extend(bytes);
        }
        out.extend(part(&self.tail, head + self.file_bytes));
        Some(out)
    }
}

/// Serves one metalogger until its connection ends.
pub(super) async fn serve(master: Shared, stream: Stream) {
    let peer = stream.peer();
    let outbox = Outbox::new();
    let id = master.with(|core, _| core.number());
    let writer = master.ring.spawn(write_out(master.ring.clone(), stream.clone(), outbox.clone()));
    let socket = stream.clone();
    let mut reader = PacketReader::new(master.ring.clone(), stream, METALOGGER_BYTES_MAX, TIMEOUT);
    let mut download = Download::default();
    let mut registered = false;
    let mut catching_up = None;
    let reason = loop {
        let header = match reader.next().await {
            Ok(header) => header,
            Err(gone) => break gone.to_string(),
        };
        master.folder.until_ours().await;
        let payload = reader.payload(header).to_vec();
        reader.done(header);
        match header.kind {
            AntomaRegister::TYPE if registered => break "second registration".to_owned(),
            AntomaRegister::TYPE => match AntomaRegister::decode(&payload) {
                Ok(packet) => {
                    registered = true;
                    let timeout = Duration::from_secs(u64::from(packet.timeout.max(3)));
                    reader.set_timeout(timeout);
                    outbox.keep_alive(KeepAlive { nop: AntoanNop {}.encode(), every: timeout / 3 });
                    info!(metalogger = %peer, version = %packet.version, from = packet.minversion, "metalogger registered");
                    let who = (packet.version, ip_of(peer));
                    follow(&master, id, &outbox, who, packet.minversion);
                    catching_up = Some(master.ring.spawn(catch_up(master.clone(), id, outbox.clone())));
                }
                Err(error) => break format!("bad register packet: {error}"),
            },
            _ => {
                if let Err(reason) = handle(&master, (id, ip_of(peer)), &outbox, &mut download, header, &payload).await
                {
                    break reason;
                }
            }
        }
    };
    if let Some(task) = catching_up {
        task.abort();
    }
    outbox.close();
    warn!(metalogger = %peer, %reason, "metalogger disconnected");
    if master.ring.timeout(TIMEOUT, writer).await.is_err() {
        socket.shutdown(); // it does not read: what it misses it will ask for
    }
    master.with(|core, _| core.loggers.following.remove(&id));
}

/// At a stop, with every line durable: the loggers get what is still on its way to them, and their connections end.
pub(super) async fn let_go(master: &Shared) {
    master.core.borrow().loggers.close_all();
    let until = master.ring.now() + FAREWELL_WAIT;
    while master.core.borrow().loggers.len() > 0 && master.ring.now() < until {
        master.ring.sleep(Duration::from_millis(5)).await;
    }
}

/// From now on the logger hears of every line; first of those that it missed.
fn follow(master: &Shared, id: u64, outbox: &Rc<Outbox>, (version, ip): (VersionWord, Ip4), from: Option<u64>) {
    master.with(|core, _| {
        let ours = core.namespace.version();
        if let Some(from) = from.filter(|from| *from > ours) {
            error!(
                "a metalogger has changes up to {}, or one more, and here the next one is {ours}: the metadata of this \
                 master are an old copy. Stop it before more is written, and start it from what that metalogger keeps",
                from - 1
            );
        }
        let durable = core.journal.durable();
        // Ours begins with the last line that it has. If that one is the first that is forgotten, it does without.
        let wanted = from.map_or(Vec::new(), |from| vec![from, from.saturating_add(1)]);
        let behind = wanted.into_iter().find(|line| *line < durable && core.journal.remembers(*line));
        core.loggers.following.insert(id, Follower { outbox: outbox.clone(), version, ip, behind });
    });
}

/// Hands a logger what it missed, not more at once than its socket takes.
async fn catch_up(master: Shared, id: u64, outbox: Rc<Outbox>) {
    let page = || {
        let mut core = master.core.borrow_mut();
        let core = &mut *core;
        core.loggers.page(id, &core.journal)
    };
    while page() {
        outbox.empty().await;
    }
}

async fn handle(
    master: &Shared,
    (id, ip): (u64, Ip4),
    outbox: &Rc<Outbox>,
    download: &mut Download,
    header: Header,
    payload: &[u8],
) -> Result<(), String> {
    let bad = |error: WireError| format!("bad packet of type {}: {error}", header.kind);
    match header.kind {
        0..=2 => {}
        AntoanGetVersion::TYPE => {
            let packet = AntoanGetVersion::decode(payload).map_err(bad)?;
            outbox.push(&version_answer(packet.msgid));
        }
        AntoanGetConfig::TYPE => {
            let AntoanGetConfig { msgid, option } = AntoanGetConfig::decode(payload).map_err(bad)?;
            let core = master.core.borrow();
            let value = match option.as_bytes() {
                NEXT_OPTION => core.loggers.next_of(id, &core.journal).to_string().into_bytes(),
                option => core.option(option, ip),
            };
            let value = Name::new(&value).map_err(bad)?;
            outbox.push(&AntoanConfigValue { msgid, value }.encode());
        }
        AntomaDownloadStart::TYPE => {
            let packet = AntomaDownloadStart::decode(payload).map_err(bad)?;
            start_download(master, outbox, download, packet.filenum).await?;
        }
        AntomaDownloadRequest::TYPE => {
            let AntomaDownloadRequest { offset, leng } = AntomaDownloadRequest::decode(payload).map_err(bad)?;
            let source = download.current.as_ref().ok_or("a piece of a file that was not opened")?;
            if leng > DOWNLOAD_PIECE_BYTES_MAX {
                return Err(format!("a piece of {leng} bytes is too large"));
            }
            let data = source.read(offset, leng).await.ok_or("a piece beyond the end of the file")?;
            let crc = Crc(crc32fast::hash(&data));
            outbox.push(&MatoanDownloadData { offset, leng, crc, data: Rest(data) }.encode());
        }
        AntomaDownloadEnd::TYPE => download.current = None,
        other => return Err(format!("unknown packet type {other}")),
    }
    Ok(())
}

/// Opens a file; with the image also the journal files that belong to it. Spec 42, 5.1.
async fn start_download(
    master: &Shared,
    outbox: &Rc<Outbox>,
    download: &mut Download,
    filenum: u8,
) -> Result<(), String> {
    match filenum {
        1 => {
            *download = open_together(master).await;
            if let Some(source) = &mut download.current
                && let Err(error) = wrap(source).await
            {
                warn!(file = BACK, %error, "the image cannot be given to a metalogger");
                download.current = None;
            }
        }
        11 | 12 => {
            download.current = download.journals[usize::from(filenum - 11)].take();
            if download.current.is_none() {
                outbox.push(&MatoanDownloadInfo { size: 0 }.encode());
                return Ok(());
            }
        }
        2 => download.current = None,
        other => return Err(format!("download of file number {other}")),
    }
    outbox.push(&match &download.current {
        Some(source) => MatoanDownloadInfo { size: source.bytes() }.encode(),
        None => MatoanDownloadMissing { marker: 0xFF }.encode(),
    });
    Ok(())
}

/// Opens image and journal files, with no rotation or new image in between.
async fn open_together(master: &Shared) -> Download {
    let folder = &master.data_path;
    loop {
        let Some(settled) = master.moves.settled() else {
            master.ring.sleep(MOVING_WAIT).await;
            continue;
        };
        let current = open(master, &folder.join(BACK)).await;
        let mut journals = [open(master, &journal_path(folder, 0)).await, open(master, &journal_path(folder, 1)).await];
        if master.moves.settled() != Some(settled) {
            continue;
        }
        // The file that is being written is padded behind its lines.
        if let (Some(source), Some(bytes)) = (&mut journals[0], master.core.borrow().journal.file_bytes()) {
            source.file_bytes = source.file_bytes.min(bytes);
        }
        return Download { current, journals };
    }
}

async fn open(master: &Shared, path: &std::path::Path) -> Option<Source> {
    let file = master.ring.open(path, OpenHow::read()).await.ok()?;
    let file_bytes = file.stat().await.ok()?.size;
    Some(Source { file, file_bytes, head: Vec::new(), tail: Vec::new() })
}

/// Puts MooseFS's framing around an image. Errors: it is none of ours.
async fn wrap(source: &mut Source) -> Result<(), ImageError> {
    let (read, mut front) = source.file.read_at(vec![0; ImageHeader::BYTES], 0).await;
    front.truncate(read.unwrap_or(0));
    let header = ImageHeader::decode(&front)?;
    let mut head = b"MFSM 2.0".to_vec();
    header.version.put(&mut head);
    header.meta_id.put(&mut head);
    head.extend_from_slice(b"MOOR 1.0");
    source.file_bytes.put(&mut head);
    debug_assert_eq!(head.len() as u64, WRAPPED_HEAD_BYTES);
    source.head = head;
    source.tail = WRAPPED_TAIL.to_vec();
    Ok(())
}
