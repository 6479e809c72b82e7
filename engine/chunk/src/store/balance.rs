//! Chunks move between the disks of this server, so that all are filled alike. Spec 21, 9.
//!
//! A move is a copy with every block verified, made whole and durable under a temporary name, then named; only then the
//! old file goes. The chunk is held meanwhile: whoever wants it waits for tens of milliseconds. The master knows
//! servers, not disks, and hears nothing of it but that we are at it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use wire::{ChunkId, Version};

use super::Store;
use super::operations::NewFile;
use crate::cores::Core;
use crate::error::ChunkError;
use crate::sums::SumTable;
use crate::volume::{Volume, VolumeState};

/// Between two looks at disks that were in balance.
const REST: Duration = Duration::from_secs(60);
/// How often a core looks whether it may move something, while others have all moves.
const MOVES_NAP: Duration = Duration::from_millis(20);
/// Chunks that are drawn at a time.
const BATCH: usize = 32;
/// Smaller disks take no part. Spec 21, 9.
const SMALLEST_BYTES: u64 = 1_000_000_000;
/// Thousandths of a disk: a difference from the average that begins a move, and that ends moving.
const BEGIN_PER_MILLE: u64 = 10;
const END_PER_MILLE: u64 = 5;
/// A disk that is used this much takes nothing.
const FULL_PER_MILLE: u64 = 990;

/// A disk as the balance sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    index: u16,
    total_bytes: u64,
    used_bytes: u64,
    chunks: u32,
    /// `<`: everything is to go.
    drain: bool,
    /// `>`: everything is to come.
    fill: bool,
    /// May new files be made here?
    takes: bool,
}

impl Disk {
    fn used_per_mille(&self) -> u64 {
        (u128::from(self.used_bytes) * 1000 / u128::from(self.total_bytes.max(1))) as u64
    }

    fn has_room(&self) -> bool {
        self.takes && !self.drain && self.used_per_mille() < FULL_PER_MILLE
    }
}

/// From which disk to which a chunk should move now. `begun`: moves are under way, and go on to the nearer end. Pure.
fn plan(disks: &[Disk], begun: bool) -> Option<(u16, u16)> {
    let part: Vec<&Disk> = disks.iter().filter(|disk| disk.total_bytes >= SMALLEST_BYTES).collect();
    let emptiest = |fill_only: bool, not: u16| {
        let fits = |disk: &&&Disk| disk.has_room() && disk.index != not && (disk.fill || !fill_only);
        part.iter().filter(fits).min_by_key(|disk| disk.used_per_mille()).map(|disk| disk.index)
    };
    let draining = part.iter().filter(|disk| disk.drain && disk.chunks > 0).max_by_key(|disk| disk.used_per_mille());
    if let Some(source) = draining {
        return emptiest(true, source.index).or_else(|| emptiest(false, source.index)).map(|to| (source.index, to));
    }
    let ordinary = part.iter().filter(|disk| !disk.drain && disk.chunks > 0);
    if let Some(to) = emptiest(true, u16::MAX)
        && let Some(source) = ordinary.clone().filter(|disk| !disk.fill).max_by_key(|disk| disk.used_per_mille())
    {
        return Some((source.index, to));
    }
    let (used, total) = part.iter().filter(|disk| !disk.drain).fold((0u128, 0u128), |(used, total), disk| {
        (used + u128::from(disk.used_bytes), total + u128::from(disk.total_bytes))
    });
    let average = (used * 1000 / total.max(1)) as u64;
    let source = ordinary.max_by_key(|disk| disk.used_per_mille())?;
    let to = emptiest(false, source.index)?;
    let of_target = part.iter().find(|disk| disk.index == to)?.used_per_mille();
    let difference = source.used_per_mille().saturating_sub(average).max(average.saturating_sub(of_target));
    let enough = if begun { END_PER_MILLE } else { BEGIN_PER_MILLE };
    (difference > enough && source.used_per_mille() > of_target).then_some((source.index, to))
}

/// Counts a move of this core while it lasts.
struct UnderWay<'a>(&'a Cell<u32>);

impl<'a> UnderWay<'a> {
    fn new(count: &'a Cell<u32>) -> UnderWay<'a> {
        count.set(count.get() + 1);
        UnderWay(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Store {
    /// Moves chunks for as long as disks differ; for a part of the time only, or several at a time, as the settings say.
    /// Each core moves its own; time and moves are shared out.
    pub(crate) async fn balance(self: Rc<Self>) {
        let mut begun = false;
        loop {
            let settings = self.settings.get();
            let pair = match settings.rebalance_percent {
                0 if settings.rebalance_moves == 0 => None,
                _ => plan(&self.disks_in_balance(), begun),
            };
            begun = pair.is_some();
            self.core.set_moving(match pair {
                None => Moving::No,
                Some(_) if settings.rebalance_moves > 0 => Moving::Fast,
                Some(_) => Moving::Slowly,
            });
            match pair {
                Some((from, to)) => self.move_some(from, to).await,
                None => self.ring.sleep(REST).await,
            }
        }
    }

    fn disks_in_balance(&self) -> Vec<Disk> {
        let volumes = self.volumes.borrow();
        let takes_part = |volume: &(usize, &Rc<Volume>)| {
            volume.1.state() == VolumeState::Ready && !volume.1.is_marked() && !volume.1.hangs()
        };
        let disk = |(index, volume): (usize, &Rc<Volume>)| {
            let (line, space) = (volume.line(), volume.space());
            Disk {
                index: index as u16,
                total_bytes: space.total_bytes,
                used_bytes: space.total_bytes.saturating_sub(space.available_bytes),
                chunks: volume.chunks(),
                drain: line.drain,
                fill: line.fill,
                takes: volume.intents.is_some() && !self.has_duplicates(index as u16),
            }
        };
        volumes.iter().enumerate().filter(takes_part).map(disk).collect()
    }

    /// Moves some chunks, drawn at random.
    async fn move_some(self: &Rc<Self>, from: u16, to: u16) {
        let mut chunks = self.core.of_volume(from);
        let settings = self.settings.get();
        let mut moved = 0u32;
        for _ in 0..BATCH.min(chunks.len()) {
            let permits = self.wait_for_moves(settings.rebalance_moves).await;
            let mut ids = Vec::new();
            while ids.len() < permits.count.max(1) as usize && !chunks.is_empty() {
                let at = self.ring.random_u64() as usize % chunks.len();
                ids.push(chunks.swap_remove(at).0);
            }
            let began = self.ring.now();
            let moves: Vec<_> = ids
                .into_iter()
                .map(|id| {
                    let store = self.clone();
                    self.ring.spawn(async move { store.move_chunk(id, to).await })
                })
                .collect();
            for one in moves {
                match one.await {
                    Some(Ok(())) => moved += 1,
                    Some(Err(error)) => tracing::debug!("a chunk stays where it is: {error}"),
                    None => return,
                }
            }
            drop(permits);
            if settings.rebalance_moves == 0 {
                // So long for others as makes the share of the time that the settings allow to this core.
                let (percent, whole) = (settings.rebalance_percent.clamp(1, 100), 100 * self.core.count() as u32);
                self.ring.sleep((self.ring.now() - began) * (whole - percent) / percent).await;
            }
            if chunks.is_empty() || !self.volume(from).is_usable() || !self.volume(to).is_usable() {
                break;
            }
        }
        for index in [from, to] {
            let volume = self.volume(index);
            if volume.is_usable() {
                let _ = volume.refresh_space(&self.ring, &self.settings.get()).await; // looked at again in a minute
            }
        }
        if moved == 0 {
            self.ring.sleep(REST).await; // all in use, or failing: not again at once
        }
    }

    /// Waits until at least one of `moves_max` moves at a time is free, and takes this core's share, or what there is.
    async fn wait_for_moves(&self, moves_max: u32) -> Moves {
        let under_way = &self.core.shared.moves_under_way;
        let share = moves_max.div_ceil(self.core.count() as u32);
        let mut count = 0;
        while moves_max > 0 && count == 0 {
            let taken = under_way.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |moves| {
                count = share.min(moves_max.saturating_sub(moves));
                Some(moves + count)
            });
            taken.expect("never refused");
            if count == 0 {
                self.ring.sleep(MOVES_NAP).await;
            }
        }
        Moves { core: self.core.clone(), count }
    }

    /// Moves one chunk that nobody is writing to another disk. Errors: `Busy`, `NoChunk`, `Sum`, `Disk`; then it is
    /// where it was.
    async fn move_chunk(&self, id: ChunkId, to: u16) -> Result<(), ChunkError> {
        if self.stops.get() {
            return Err(ChunkError::Busy);
        }
        let _under_way = UnderWay::new(&self.moves_here);
        let target = self.volume(to);
        let (chunk, alone) = self.open_alone(id, Version::ANY).await?;
        let (source, old) = {
            let state = chunk.state.borrow();
            let open = state.as_ref().ok_or(ChunkError::NoChunk)?;
            (open.volume.clone(), open.place)
        };
        if chunk.write_sessions.get() > 0 || old.volume == to || !target.is_usable() {
            return Err(ChunkError::Busy);
        }
        let _arriving = UnderWay::new(&target.arrivals);
        self.refuse_torn(id)?;
        self.trim(&chunk).await?;
        self.write_table(&chunk).await?;
        let file = self.create_on(&target, id).await?;
        let mut new = NewFile {
            chunk: chunk.clone(),
            _alone: alone,
            volume: target.clone(),
            file,
            sums: SumTable::default(),
            blocks: 0,
        };
        let place = match self.copy_and_name(&mut new, old.version).await {
            Ok(place) => place,
            Err(error) => {
                let _ = self.ring.unlink(&target.temporary_path(id)).await; // else removed at the next start
                return Err(error);
            }
        };
        // The new name is durable. If the old one came back after a power cut, it would be an older content under the
        // same version: so it is gone for good before anybody may write.
        let old_path = source.chunk_path(old.subfolder, id, old.version);
        let removed = self.ring.unlink(&old_path).await;
        let synced = self.ring.sync_dir(old_path.parent().expect("in a sub-folder")).await;
        if let Err(error) = removed.and(synced) {
            tracing::error!("{}: the old file of a moved chunk stays: {error}", old_path.display());
        }
        let blocks = chunk.blocks();
        self.take_in(new, place);
        if matches!(target.state(), VolumeState::Damaged | VolumeState::Gone) {
            // Given up since the file got its name there.
            self.core.remove(id);
            self.core.shared.reports.lost(id);
            self.forget(&chunk);
        }
        chunk.name_is_durable.set(true);
        source.count_file(old.subfolder, -1);
        source.remove_blocks(u64::from(blocks));
        if let Some(log) = &source.intents {
            log.settle(id, u64::MAX);
        }
        self.counters.moved.add(1);
        Ok(())
    }

    async fn copy_and_name(&self, new: &mut NewFile, version: Version) -> Result<crate::registry::Place, ChunkError> {
        let chunk = new.chunk.clone();
        self.copy_blocks(&chunk, new, None).await?;
        self.name_file(new, version, true).await
    }
}

/// Moves at full speed that this core may have under way now; none where the speed is a share of the time.
struct Moves {
    core: Rc<Core>,
    count: u32,
}

impl Drop for Moves {
    fn drop(&mut self) {
        self.core.shared.moves_under_way.fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// What the balance is doing; the master orders less meanwhile. Spec 40, 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Moving {
    No,
    Slowly,
    Fast,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(index: u16, used_per_mille: u64) -> Disk {
        let total_bytes = 2_000_000_000;
        let used_bytes = total_bytes / 1000 * used_per_mille;
        Disk { index, total_bytes, used_bytes, chunks: 100, drain: false, fill: false, takes: true }
    }

    #[test]
    fn disks_that_differ_by_more_than_a_hundredth_are_evened_out() {
        assert_eq!(plan(&[disk(0, 500), disk(1, 519)], false), None);
        assert_eq!(plan(&[disk(0, 500), disk(1, 519)], true), Some((1, 0)), "once begun it goes on to half of that");
        assert_eq!(plan(&[disk(0, 500), disk(1, 509)], true), None);
        assert_eq!(plan(&[disk(0, 700), disk(1, 500), disk(2, 600)], false), Some((0, 1)));
        assert_eq!(plan(&[disk(0, 990), disk(1, 995)], false), None, "there is no room anywhere");
        assert_eq!(plan(&[disk(0, 100)], false), None);
        assert_eq!(plan(&[], false), None);
        let small = Disk { total_bytes: 900_000_000, ..disk(1, 0) };
        assert_eq!(plan(&[disk(0, 500), small], false), None, "a small disk takes no part");
        assert_eq!(plan(&[disk(0, 700), Disk { takes: false, ..disk(1, 0) }], false), None);
    }

    #[test]
    fn marks_move_everything_one_way() {
        let drain = |index, used| Disk { drain: true, ..disk(index, used) };
        let fill = |index, used| Disk { fill: true, ..disk(index, used) };
        assert_eq!(plan(&[drain(0, 10), disk(1, 900)], false), Some((0, 1)));
        assert_eq!(plan(&[drain(0, 10), disk(1, 100), fill(2, 900)], false), Some((0, 2)));
        assert_eq!(plan(&[Disk { chunks: 0, ..drain(0, 10) }, disk(1, 10)], false), None, "it is empty");
        assert_eq!(plan(&[disk(0, 10), fill(1, 900)], false), Some((0, 1)));
        assert_eq!(plan(&[drain(0, 10), disk(1, 995)], false), None);
    }
}
