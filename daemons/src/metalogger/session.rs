//! One connection to the master: what it sends is stored, images are fetched. Spec 42, A and B.

use std::rc::Rc;
use std::time::Duration;

use ring::{File, Instant, OpenHow, Ring, Stream};
use tracing::{debug, error, info, warn};
use wire::limits::METALOGGER_BYTES_MAX;
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, AntoanNop, AntomaDownloadEnd, AntomaDownloadRequest,
    AntomaDownloadStart, AntomaRegister, Crc, Header, MatoanDownloadData, MatoanDownloadInfo, MatoanDownloadMissing,
    MatoanMetachangesLog, Name, Packet, VersionWord, WireError,
};

use super::Wishes;
use super::settings::Settings;
use super::store::{Front, IMAGE_FRONT_BYTES, IMAGE_TEMPORARY, JOURNAL_TEMPORARY, Order, Store, check_image};
use crate::connection::{KeepAlive, Outbox, PacketReader, write_out};
use crate::data_folder::{FILE_MODE, gone_is_fine};
use crate::master::NEXT_OPTION;

const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Lines are on the device at most so long after they came.
const SYNC_AFTER: Duration = Duration::from_millis(200);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_millis(100);
/// Lines that wait for the file while more are in the buffer.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Bytes that one request asks for. Spec 42, 5.2.
/// A whole one must come before the silence counts, also over a slow line.
const PIECE_BYTES: u32 = 256 << 10;
/// A piece is asked for so often before the download is given up. Spec 42, 5.2.
const TRIES_MAX: u32 = 5;
/// An image that could not be fetched, or did not help, is tried for again after this, each time after twice as long.
const DOWNLOAD_AGAIN_AFTER: Duration = Duration::from_secs(60);
const DOWNLOAD_AGAIN_MAX: Duration = Duration::from_secs(3600);
/// Second of the period in which images are fetched. Spec 42, B.2.
const DOWNLOAD_SECOND: u64 = 630;
/// The reader's own limit of silence would begin anew with each look.
const NEVER: Duration = Duration::from_secs(86_400);
/// What a 4.x master says of its own timeout; not needed.
const FORCE_TIMEOUT: u32 = 5;
const MASTER_ACK: u32 = 52;
/// Why a connection ends that somebody wished to end.
const WISHED: &str = "as wished";
/// Number of the question which change comes next.
const NEXT_MSGID: u32 = 1;

/// The files that belong to an image, by number. Spec 42, 5.1.
const IMAGE_FILE: u8 = 1;
const JOURNAL_FILES: [u8; 2] = [11, 12];

/// What a master says of a file: its size, or that there is none.
enum Info {
    Bytes(u64),
    Missing,
}

/// One piece of a file; None if its checksum did not fit.
type Piece = Option<Vec<u8>>;

pub(super) struct Session<'a> {
    ring: Ring,
    settings: Rc<Settings>,
    store: &'a mut Store,
    wishes: &'a Wishes,
    reader: PacketReader,
    outbox: Rc<Outbox>,
    heard_at: Instant,
    synced_at: Instant,
    /// An image is wanted at or after this time.
    image_due: Option<Instant>,
    registered: bool,
    /// The last line that is kept was asked for, too, and nothing came yet.
    compares: bool,
    /// An image is on its way.
    fetching: bool,
}

/// Connects and follows the master until the connection ends. Gives the reason.
pub(super) async fn follow(ring: &Ring, settings: Rc<Settings>, store: &mut Store, wishes: &Wishes) -> String {
    if let Err(error) = store.recover().await {
        return disk(error);
    }
    let asked = Settings::clone(&settings);
    let to = match unless_wished(ring, wishes, move || asked.resolve_master()).await {
        Some(Ok(to)) => to,
        Some(Err(why)) => return why,
        None => return WISHED.to_owned(),
    };
    let connecting = ring.connect(to, settings.bind_ip.map(Into::into));
    let stream = match ring.timeout(CONNECT_MAX, connecting).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return format!("{to}: {error}"),
        Err(_) => return format!("{to}: no answer"),
    };
    info!(master = %to, "connected");
    let end = follow_on(ring, settings, store, wishes, stream.clone()).await;
    stream.shutdown();
    if let Err(error) = store.sync().await {
        warn!(%error, "what came last may not be on the disk");
    }
    for name in [IMAGE_TEMPORARY, JOURNAL_TEMPORARY] {
        let _ = gone_is_fine(ring.unlink(&store.path(name)).await); // the next start removes it, too
    }
    end
}

/// Calls what may wait for long, such as for a name server. None: meanwhile somebody wished something else.
pub(super) async fn unless_wished<T: Send + 'static>(
    ring: &Ring,
    wishes: &Wishes,
    call: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let mut answer = std::pin::pin!(ring.run_blocking(call));
    loop {
        if let Ok(answer) = ring.timeout(LOOK, answer.as_mut()).await {
            return Some(answer);
        }
        if wishes.changed.get() {
            return None;
        }
    }
}

async fn follow_on(ring: &Ring, settings: Rc<Settings>, store: &mut Store, wishes: &Wishes, stream: Stream) -> String {
    let outbox = Outbox::new();
    let writer = ring.spawn(write_out(ring.clone(), stream.clone(), outbox.clone()));
    let reader = PacketReader::new(ring.clone(), stream, METALOGGER_BYTES_MAX, NEVER);
    let now = ring.now();
    let mut session = Session {
        ring: ring.clone(),
        settings,
        store,
        wishes,
        reader,
        outbox: outbox.clone(),
        heard_at: now,
        synced_at: now,
        image_due: None,
        registered: false,
        compares: false,
        fetching: false,
    };
    let end = session.run().await;
    outbox.cut();
    writer.abort();
    match end {
        Ok(never) => match never {},
        Err(why) => why,
    }
}

impl Session<'_> {
    async fn run(&mut self) -> Result<std::convert::Infallible, String> {
        let every = Duration::from_secs(u64::from(self.settings.master_timeout_sec)) / 3;
        self.outbox.keep_alive(KeepAlive { nop: AntoanNop {}.encode(), every });
        self.look_whose_master().await?;
        let next = self.store.next();
        // The last line once more, so that a master whose history is another one is noticed. A MooseFS master that just
        // does not remember that one gives nothing; then the next connection does without.
        let minversion = if self.wishes.compare_in_vain.take() { next } else { self.store.from() };
        self.compares = minversion < next;
        let (version, timeout) = (VersionWord::OURS, self.settings.master_timeout_sec);
        self.outbox.push(&AntomaRegister { version, timeout, minversion }.encode());
        let option = Name::new(NEXT_OPTION).map_err(|error| error.to_string())?;
        self.outbox.push(&AntoanGetConfig { msgid: NEXT_MSGID, option }.encode());
        self.registered = true;
        info!(from = minversion, "registered with the master");
        if self.store.wants_image() {
            self.image_due = Some(self.ring.now());
        }
        let mut pause = DOWNLOAD_AGAIN_AFTER;
        loop {
            if self.image_due.is_some_and(|due| due <= self.ring.now()) {
                self.image_due = None;
                self.fetching = true;
                let fetched = self.fetch_all().await?;
                self.fetching = false;
                match fetched {
                    None => pause = DOWNLOAD_AGAIN_AFTER,
                    Some(why) => {
                        warn!("no image that helps: {why}; the next try is in {} s", pause.as_secs());
                        self.image_due = Some(self.ring.now() + pause);
                        pause = (2 * pause).min(DOWNLOAD_AGAIN_MAX);
                    }
                }
            }
            if let Some(header) = self.look_for_packet().await? {
                return Err(format!("an answer of type {} to nothing", header.kind));
            }
        }
    }

    /// Before anything is stored: is this the master of what is kept? Its image tells, since anybody may read it.
    async fn look_whose_master(&mut self) -> Result<(), String> {
        let Some(ours) = self.store.image() else { return Ok(()) };
        self.outbox.push(&AntomaDownloadStart { filenum: IMAGE_FILE }.encode());
        let unknown = || "its image cannot be looked at, so it may be another file system's master".to_owned();
        let Info::Bytes(bytes) = self.info().await? else { return Err(unknown()) };
        let leng = u32::try_from(bytes).unwrap_or(u32::MAX).min(IMAGE_FRONT_BYTES as u32);
        let piece = self.piece(0, leng).await?;
        self.outbox.push(&AntomaDownloadEnd {}.encode());
        let theirs = piece.as_deref().and_then(Front::decode).ok_or_else(unknown)?;
        if theirs.metaid != ours.metaid && theirs.metaid.0 != 0 && ours.metaid.0 != 0 {
            return Err(format!(
                "the master serves the file system with metaid {}, what is kept here is of {}: nothing is stored, and we \
                 try again. If {} shall be kept in its place, stop the metalogger and move the files of its data path \
                 away",
                theirs.metaid, ours.metaid, theirs.metaid
            ));
        } else if self.store.next().is_some_and(|next| theirs.version > next) {
            debug!(theirs.version, "the master's image is ahead");
        }
        Ok(())
    }

    async fn aside(&mut self, why: &str) -> Result<(), String> {
        self.store.set_aside(why).await.map_err(|error| format!("what is kept cannot be set aside: {error}"))?;
        Ok(())
    }

    /// Waits a while for a packet and takes it, and does what is due. Gives the header of a packet that belongs to a
    /// download: its payload is the reader's until `done`.
    async fn look_for_packet(&mut self) -> Result<Option<Header>, String> {
        let timeout = Duration::from_secs(u64::from(self.settings.master_timeout_sec));
        match self.ring.timeout(LOOK, self.reader.next()).await {
            Err(_) => {
                if self.heard_at.elapsed(&self.ring) >= timeout {
                    return Err(format!("nothing was heard for {} s", timeout.as_secs()));
                }
            }
            Ok(Err(gone)) => return Err(gone.to_string()),
            Ok(Ok(header)) => {
                self.heard_at = self.ring.now();
                if matches!(header.kind, MatoanDownloadInfo::TYPE | MatoanDownloadData::TYPE) {
                    self.do_what_is_due().await?;
                    return Ok(Some(header));
                }
                let payload = self.reader.payload(header).to_vec();
                self.reader.done(header);
                self.take(header, &payload).await?;
            }
        }
        self.do_what_is_due().await?;
        Ok(None)
    }

    async fn take(&mut self, header: Header, payload: &[u8]) -> Result<(), String> {
        let bad = |error: WireError| format!("packet of type {} from the master: {error}", header.kind);
        match header.kind {
            0..=2 | FORCE_TIMEOUT | MASTER_ACK => Ok(()),
            AntoanGetVersion::TYPE => {
                let msgid = AntoanGetVersion::decode(payload).map_err(bad)?.msgid;
                self.outbox.push(&crate::master::version_answer(msgid));
                Ok(())
            }
            AntoanGetConfig::TYPE => Err("it asks a metalogger for options".to_owned()),
            AntoanConfigValue::TYPE => {
                let AntoanConfigValue { msgid, value } = AntoanConfigValue::decode(payload).map_err(bad)?;
                let next = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.parse().ok());
                if let Some(next) = next.filter(|_| msgid == NEXT_MSGID) {
                    self.is_said_to_come(next).await?;
                }
                Ok(())
            }
            MatoanMetachangesLog::TYPE => match MatoanMetachangesLog::decode(payload).map_err(bad)? {
                MatoanMetachangesLog::Rotate => self.store.rotate().await.map_err(disk),
                MatoanMetachangesLog::Change { changeno, text } => self.change(changeno, &text.0).await,
            },
            other => Err(format!("unknown packet type {other}")),
        }
    }

    /// A master of ours says which change it will send next.
    async fn is_said_to_come(&mut self, number: u64) -> Result<(), String> {
        self.compares = false; // it would have given the last line, too
        match self.store.next() {
            Some(next) if number > next => self.gap(next, number).await,
            Some(next) if number.saturating_add(1) < next => {
                error!(
                    "the next change of the master is {number}, and up to {} are kept here: its metadata are an old copy. \
                     Stop it before more is written, and start it from what is kept here; with its next change that \
                     will be set aside",
                    next - 1
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Changes will not come any more: an image that has them is fetched.
    async fn gap(&mut self, missing: u64, number: u64) -> Result<(), String> {
        warn!("changes {missing} to {} did not come; an image that has them is fetched", number - 1);
        self.store.jump_to(number).await.map_err(disk)?;
        self.image_due = Some(self.ring.now());
        Ok(())
    }

    async fn change(&mut self, number: u64, text: &[u8]) -> Result<(), String> {
        if text.contains(&b'\n') || text.contains(&0) || number == u64::MAX {
            return Err(format!("change {number} is no line"));
        }
        let compares = std::mem::take(&mut self.compares);
        match self.store.order_of(number, text) {
            Order::Next => {}
            Order::Again => return Ok(()),
            Order::Gap { missing } if compares => {
                self.wishes.compare_in_vain.set(true);
                return Err(format!("it does not give change {} once more; asking from {missing} on", missing - 1));
            }
            Order::Gap { missing } => self.gap(missing, number).await?,
            Order::Back { kept } => {
                let why = format!(
                    "the master's change {number} is not the one that is kept here, where changes up to {kept} are: its \
                     metadata come from an old copy. If they were rolled back by mistake, stop it and use what was set \
                     aside"
                );
                self.aside(&why).await?;
                self.image_due = Some(self.ring.now());
            }
        }
        if self.store.must_begin_anew() {
            self.store.rotate().await.map_err(disk)?;
        }
        self.store.append(number, text);
        if self.store.waiting_bytes() > WAITING_BYTES_MAX || !self.reader.has_packet() {
            self.store.write().await.map_err(disk)?;
        }
        Ok(())
    }

    async fn do_what_is_due(&mut self) -> Result<(), String> {
        if self.wishes.changed.get() {
            return Err(WISHED.to_owned());
        }
        if self.wishes.info.take() {
            self.tell();
        }
        if self.store.is_unsynced() && self.synced_at.elapsed(&self.ring) >= SYNC_AFTER {
            self.store.sync().await.map_err(disk)?;
            self.synced_at = self.ring.now();
        }
        let of = |seconds: u64| period(seconds, self.settings.image_every_hours);
        let is_new_period =
            self.store.fetched_at().is_some_and(|fetched| of(self.ring.wall_micros() / 1_000_000) > of(fetched));
        if self.registered && is_new_period && !self.fetching {
            self.image_due.get_or_insert(self.ring.now());
        }
        Ok(())
    }

    fn tell(&self) {
        let image = self.store.image().map(|image| image.version);
        let seconds = (self.ring.wall_micros() / 1_000_000).saturating_sub(u64::from(self.store.last_change_at()));
        info!(image, next = self.store.next(), last_change_seconds_ago = seconds, "what is kept");
    }

    /// Fetches the image and the journal files that belong to it. `Ok(Some)`: why there is none. Errors: the
    /// connection must end.
    async fn fetch_all(&mut self) -> Result<Option<String>, String> {
        let began = self.ring.now();
        let bytes = match self.fetch(IMAGE_FILE, IMAGE_TEMPORARY).await? {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(Some("the master has none".to_owned())),
            Err(why) => return Ok(Some(why)),
        };
        let path = self.store.path(IMAGE_TEMPORARY);
        let front = match check_image(&self.ring, &path).await {
            Ok(front) => front,
            Err(why) => return Ok(Some(format!("what came is no sound image: {why}"))),
        };
        let (before, lines) = (self.store.image(), self.store.next());
        if before.is_some_and(|ours| ours.metaid != front.metaid && ours.metaid.0 != 0 && front.metaid.0 != 0) {
            return Err("its file system is another one now".to_owned()); // the next connection looks before it stores
        }
        if let (Some(before), Some(next)) = (before, lines)
            && front.version < before.version
            && front.version < next
        {
            warn!(have = before.version, came = front.version, "the master's image is older than the one before");
        }
        self.store.take_image(front).await.map_err(disk)?;
        for (number, filenum) in (0u8..).zip(JOURNAL_FILES) {
            match self.fetch(filenum, JOURNAL_TEMPORARY).await? {
                Ok(Some(_)) => self.store.take_journal(number).await.map_err(disk)?,
                Ok(None) => {}
                Err(why) => warn!("the journal file that belongs to the image did not come: {why}"),
            }
        }
        let took_millis = began.elapsed(&self.ring).as_millis();
        info!(version = front.version, bytes, took_millis, "image fetched");
        if !self.store.is_whole().await.map_err(disk)? {
            return Ok(Some("image and journal do not reach the present: changes between them are missing".to_owned()));
        }
        Ok(None)
    }

    /// Fetches one file. `Ok(Ok(None))`: the master has none. `Ok(Err)`: why it was given up.
    async fn fetch(&mut self, filenum: u8, name: &str) -> Result<Result<Option<u64>, String>, String> {
        self.outbox.push(&AntomaDownloadStart { filenum }.encode());
        let Info::Bytes(bytes) = self.info().await? else { return Ok(Ok(None)) };
        if let Err(why) = self.store.has_room_for(bytes).await {
            self.outbox.push(&AntomaDownloadEnd {}.encode());
            return Ok(Err(why));
        }
        let path = self.store.path(name);
        let file = self.ring.open(&path, OpenHow::create(FILE_MODE).truncate(true)).await.map_err(disk)?;
        let fetched = self.fetch_into(&file, bytes).await?;
        self.outbox.push(&AntomaDownloadEnd {}.encode());
        if fetched.is_ok() {
            file.sync().await.map_err(disk)?;
        }
        Ok(fetched.map(|()| Some(bytes)))
    }

    async fn fetch_into(&mut self, file: &File, bytes: u64) -> Result<Result<(), String>, String> {
        let mut offset = 0;
        let mut tries = 0;
        while offset < bytes {
            let leng = u32::try_from(bytes - offset).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            let why = match self.piece(offset, leng).await? {
                None => "its checksum does not fit".to_owned(),
                Some(piece) => match file.write_all_at(piece, offset).await.0 {
                    Ok(()) => {
                        offset += u64::from(leng);
                        tries = 0;
                        continue;
                    }
                    Err(error) => format!("it cannot be written: {error}"),
                },
            };
            tries += 1;
            if tries >= TRIES_MAX {
                return Ok(Err(format!("the piece at {offset} was given up after {TRIES_MAX} tries: {why}")));
            }
        }
        Ok(Ok(()))
    }

    async fn info(&mut self) -> Result<Info, String> {
        let header = self.answer(MatoanDownloadInfo::TYPE).await?;
        let payload = self.reader.payload(header);
        let info = match (MatoanDownloadInfo::decode(payload), MatoanDownloadMissing::decode(payload)) {
            (Ok(info), _) => Ok(Info::Bytes(info.size)),
            (Err(_), Ok(_)) => Ok(Info::Missing),
            (Err(error), _) => Err(format!("size of a file: {error}")),
        };
        self.reader.done(header);
        info
    }

    async fn piece(&mut self, offset: u64, leng: u32) -> Result<Piece, String> {
        self.outbox.push(&AntomaDownloadRequest { offset, leng }.encode());
        let header = self.answer(MatoanDownloadData::TYPE).await?;
        let packet = MatoanDownloadData::decode(self.reader.payload(header));
        self.reader.done(header);
        let packet = packet.map_err(|error| format!("piece of a file: {error}"))?;
        if (packet.offset, packet.leng, packet.data.0.len()) != (offset, leng, leng as usize) {
            return Err(format!("{leng} bytes at {offset} were asked for, {} at {} came", packet.leng, packet.offset));
        }
        Ok((Crc(crc32fast::hash(&packet.data.0)) == packet.crc).then_some(packet.data.0))
    }

    /// Waits for the answer to a request of a download; changes go on meanwhile.
    async fn answer(&mut self, kind: u32) -> Result<Header, String> {
        loop {
            match self.look_for_packet().await? {
                Some(header) if header.kind == kind => return Ok(header),
                Some(header) => return Err(format!("an answer of type {} in place of {kind}", header.kind)),
                None => {}
            }
        }
    }
}

/// An error of our own disk: the connection ends, and the next one asks for what was not stored.
fn disk(error: std::io::Error) -> String {
    format!("our own disk: {error}")
}

/// Which period of so many hours it is, each beginning with the second in which images are fetched.
fn period(unix_seconds: u64, hours: u32) -> u64 {
    unix_seconds.saturating_sub(DOWNLOAD_SECOND) / (3600 * u64::from(hours.max(1)))
}
