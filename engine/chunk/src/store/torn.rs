//! Chunks with a block that a crash tore, and that the master may take as they are if nobody has a better copy.
//!
//! A block that was being overwritten when the machine lost its power holds old and new sectors side by side. It is
//! refused, and the master is told that the copy is damaged: another copy takes its place. If every copy was hit (the
//! power of all servers failed at once), refusing for ever would lose the whole chunk for the sake of a write that
//! nobody was told is durable. So what is torn is remembered, also over restarts, in a small file beside the chunk
//! folders. A master that has no other copy sets the chunk's version on this one; that is its word that the torn
//! blocks count as they are, as on any local disk. Blocks that rotted are never in this list and stay bad.
//!
//! ```text
//! .mooring_torn, text, a line a chunk:  <chunk id, hex> <version> <block>,<block>,...
//!                                       <chunk id, hex> <version> cut <length in bytes>
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::MutexGuard;
use std::time::Duration;

use ring::Instant;
use wire::limits::CHUNK_BYTES;
use wire::{ChunkId, Version};

use super::Store;
use crate::cores::lock;
use crate::error::ChunkError;
use crate::layout::BlockIndex;
use crate::volume::Volume;

/// Name of the list inside a volume's folder. A stock chunkserver does not look at it.
pub(super) const LIST_NAME: &str = ".mooring_torn";
/// A longer list is not ours: a chunk takes some tens of bytes.
const LIST_BYTES_MAX: u64 = 64 << 20;
/// A version that was set so soon after the damage was reported may have been ordered before the master read of it.
const REPORT_TRAVELS: Duration = Duration::from_secs(5);

/// What a crash left half done in one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Torn {
    pub(crate) version: Version,
    pub(crate) what: TornPart,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TornPart {
    /// These blocks are partly overwritten.
    Blocks(Vec<BlockIndex>),
    /// The block in which the chunk was being cut to so many bytes has neither its old nor its new content.
    Cut { length_bytes: u32 },
}

/// What the list of a volume says. Lines that make no sense are left out: they only ever make a chunk readable.
pub(crate) fn parse(text: &str) -> BTreeMap<ChunkId, Torn> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<(ChunkId, Torn)> {
    let mut words = line.split(' ');
    let id = ChunkId(u64::from_str_radix(words.next()?, 16).ok()?);
    let version = Version(words.next()?.parse().ok()?);
    let what = match (words.next()?, words.next()) {
        ("cut", Some(length)) => {
            let length_bytes = length.parse().ok().filter(|length| *length <= CHUNK_BYTES)?;
            TornPart::Cut { length_bytes }
        }
        (blocks, None) => {
            let numbers = blocks.split(',').map(|number| BlockIndex::new(number.parse().ok()?));
            TornPart::Blocks(numbers.collect::<Option<_>>()?)
        }
        _ => return None,
    };
    words.next().is_none().then_some((id, Torn { version, what }))
}

fn put_line(id: ChunkId, torn: &Torn, out: &mut String) {
    use std::fmt::Write as _;
    let _ = match &torn.what {
        TornPart::Cut { length_bytes } => writeln!(out, "{:016X} {} cut {length_bytes}", id.0, torn.version.0),
        TornPart::Blocks(blocks) => {
            let numbers: Vec<String> = blocks.iter().map(|block| block.number().to_string()).collect();
            writeln!(out, "{:016X} {} {}", id.0, torn.version.0, numbers.join(","))
        }
    }; // writing to a string does not fail
}

/// The torn chunks of all volumes, and of all cores: there are few, and one file for each volume.
#[derive(Default)]
pub(crate) struct TornChunks {
    known: BTreeMap<ChunkId, Known>,
}

struct Known {
    volume: u16,
    torn: Torn,
    /// When the master was last told that the copy is damaged.
    told: Option<Instant>,
}

impl TornChunks {
    /// The volume is not in use any more; its list stays on it.
    fn forget_volume(&mut self, volume: u16) {
        self.known.retain(|_, known| known.volume != volume);
    }

    fn of_volume(&self, volume: u16) -> impl Iterator<Item = (ChunkId, &Torn)> {
        self.known.iter().filter(move |(_, known)| known.volume == volume).map(|(id, known)| (*id, &known.torn))
    }
}

impl Store {
    fn torn(&self) -> MutexGuard<'_, TornChunks> {
        lock(&self.core.shared.torn)
    }

    pub(super) fn forget_torn_of(&self, index: u16) {
        self.torn().forget_volume(index);
    }

    /// Reads what earlier starts found torn on this volume. Chunks that changed since are not meant any more.
    pub(super) async fn load_torn(&self, index: u16, volume: &Volume) -> io::Result<()> {
        let path = volume.folder.join(LIST_NAME);
        match self.ring.stat(&path).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
            Ok(stat) if stat.size > LIST_BYTES_MAX => {
                tracing::error!("{}: {} bytes are no list of torn chunks; not read", path.display(), stat.size);
                return Ok(());
            }
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&self.ring.read_file(&path).await?).into_owned();
        for (id, torn) in parse(&text) {
            let place = self.core.place(id);
            if place.is_some_and(|place| place.volume == index && place.version == torn.version) {
                self.torn().known.insert(id, Known { volume: index, torn, told: None });
            }
        }
        Ok(())
    }

    /// Remembers what recovery found torn, in memory and on the disk.
    pub(super) async fn remember_torn(&self, index: u16, found: Vec<(ChunkId, Torn)>) {
        if found.is_empty() {
            return;
        }
        for (id, torn) in found {
            self.torn().known.insert(id, Known { volume: index, torn, told: None });
        }
        self.write_torn(index).await;
    }

    /// The chunk is whole again, or gone.
    pub(super) async fn forget_torn(&self, id: ChunkId) {
        let known = self.torn().known.remove(&id);
        if let Some(known) = known {
            self.write_torn(known.volume).await;
        }
    }

    /// The list of one volume. If it cannot be written, a restart takes these chunks for rotten: nothing wrong is read.
    async fn write_torn(&self, index: u16) {
        // By the first core, so that no two are at the file.
        self.core.ask(0, move |server| async move { server.store.write_torn_here(index).await }).await;
    }

    async fn write_torn_here(&self, index: u16) {
        let _alone = self.torn_lock.acquire(1).await;
        let volume = self.volume(index);
        let path = volume.folder.join(LIST_NAME);
        let mut text = String::new();
        for (id, torn) in self.torn().of_volume(index) {
            put_line(id, torn, &mut text);
        }
        // A disk that is given up, or taken out, keeps the list that it has: its chunks left ours, and they may come back.
        // Its state changes first, so what was read before this is all of it.
        if !volume.is_usable() {
            return;
        }
        let written = match text.is_empty() {
            true => match self.ring.unlink(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            false => self.ring.write_file_durably(&path, self.settings.get().file_mode, text.into_bytes()).await,
        };
        if let Err(error) = written {
            tracing::error!("{}: cannot be written: {error}", path.display());
        }
    }

    /// Says to the master that the torn copies are damaged. Once for each registration, since the list of chunks that
    /// it got names them like all others.
    pub(crate) fn report_torn(&self) {
        let now = self.ring.now();
        for (id, known) in &mut self.torn().known {
            known.told = Some(now);
            self.core.shared.reports.damaged(*id);
        }
    }

    /// Errors: `Sum` for a torn chunk: it must not get another version with the bad block still in it.
    pub(super) fn refuse_torn(&self, id: ChunkId) -> Result<(), ChunkError> {
        if self.torn().known.contains_key(&id) { Err(ChunkError::Sum) } else { Ok(()) }
    }

    /// What is torn in the chunk, if the master knows of it and wants the chunk all the same. Errors: `Sum` if it may
    /// not know yet; then the copy is damaged for it.
    pub(super) fn torn_to_accept(&self, id: ChunkId) -> Result<Option<Torn>, ChunkError> {
        let torn = self.torn();
        let Some(known) = torn.known.get(&id) else { return Ok(None) };
        let knows = known.told.is_some_and(|told| told.elapsed(&self.ring) >= REPORT_TRAVELS);
        if knows { Ok(Some(known.torn.clone())) } else { Err(ChunkError::Sum) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_reads_back_and_nonsense_in_it_is_left_out() {
        let block = |number| BlockIndex::new(number).unwrap();
        let list = [
            (ChunkId(0xA7), Torn { version: Version(3), what: TornPart::Blocks(vec![block(0), block(1023)]) }),
            (ChunkId(0xA8), Torn { version: Version(1), what: TornPart::Cut { length_bytes: 70_000 } }),
        ];
        let mut text = String::new();
        for (id, torn) in &list {
            put_line(*id, torn, &mut text);
        }
        assert_eq!(text, "00000000000000A7 3 0,1023\n00000000000000A8 1 cut 70000\n");
        text.push_str("\n1 1\n1 1 1024\n1 1 cut 67108865\n1 1 cut\n1 1 5 6\nx 1 5\n1 x 5\n1 1 ,\n1 1 cut 5 6\n");
        assert_eq!(parse(&text), BTreeMap::from(list));
    }

    #[test]
    fn a_disk_that_is_given_up_keeps_its_list_and_stays_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let settings = crate::server::tests::settings_in(folder.path(), 1);
        let options = ring::Options { buffers: settings.buffers(), ..ring::Options::default() };
        ring::run(options, |ring| async move {
            let (server, _others, _serve_others) = crate::cores::start(&ring, settings).await.unwrap();
            let store = &server.store;
            store.start(None).await.unwrap();
            let volume = store.volume(0);
            let (path, torn) = (volume.folder.join(LIST_NAME), TornPart::Cut { length_bytes: 1 });
            store.remember_torn(0, vec![(ChunkId(7), Torn { version: Version(1), what: torn })]).await;
            assert!(ring.stat(&path).await.is_ok());
            // A chunk was mended at the moment when its disk was given up.
            assert!(volume.give_up() && !volume.give_up(), "once");
            store.forget_torn(ChunkId(7)).await;
            assert!(ring.stat(&path).await.is_ok(), "the disk may come back");
            assert!(!volume.leave(), "there is nothing to bring to rest");
            assert!(!volume.give_up() && !volume.is_ours(), "it is being taken out and stays so");
        })
        .unwrap();
    }
}
