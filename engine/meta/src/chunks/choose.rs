//! Choosing servers for a new chunk. Spec 41, 6.

use wire::limits::CHUNK_BYTES;
use wire::{Ip4, Status};

use super::{Chunks, HeavyLoad, Labels, Mode, ServerId};

/// Room that each chunk under write keeps free on its servers, in chunks. Spec 41, 6, step 1.
const CHUNKS_KEPT_PER_WRITE: u64 = 10;
/// What one running write or replication weighs in the order of servers. Spec 41, 6, step 4.
const WEIGHT_OF_WORK: f64 = 1000.0;

impl Chunks {
    /// Servers for `copies` copies of a new chunk, fewer if there are fewer. `client`: who will write it.
    ///
    /// Errors: EAGAIN (only overloaded ones, or not all servers are known yet), NOSPACE, NOCHUNKSERVERS.
    pub fn choose(
        &mut self,
        copies: usize,
        labels: Option<&Labels>,
        client: Ip4,
        now: u32,
    ) -> Result<Vec<ServerId>, Status> {
        let (candidates, overloaded) = self.candidates();
        if candidates.is_empty() {
            return Err(if !overloaded.is_empty() || !self.all_data_known(now) {
                Status::EAGAIN
            } else if !self.servers.is_empty() {
                Status::NOSPACE
            } else {
                Status::NOCHUNKSERVERS
            });
        }
        // Where only some servers are allowed, it matters which ones are overloaded: see `matching`.
        let any_will_do = labels.is_none_or(|labels| labels.mode != Mode::Strict);
        if any_will_do && candidates.len() < copies && candidates.len() + overloaded.len() >= copies {
            return Err(Status::EAGAIN);
        }
        let mut ordered = self.in_order_of_use(candidates);
        if self.settings.creations_near > 0 {
            // Step 6; the sort keeps the order within each half.
            ordered.sort_by_key(|id| {
                let distance = self.servers.get(*id).map_or(u32::MAX, |s| self.topology.distance(s.ip, client));
                distance >= self.settings.creations_near
            });
        }
        if let Some(labels) = labels {
            ordered = self.matching(labels, ordered, &overloaded, copies, now)?;
        }
        ordered.truncate(copies);
        self.note_use(&ordered);
        Ok(ordered)
    }

    /// Steps 1 to 3: who may take a chunk, and who only could if it were less busy.
    fn candidates(&self) -> (Vec<ServerId>, Vec<ServerId>) {
        let (mut normal, mut grace, mut overloaded) = (Vec::new(), Vec::new(), Vec::new());
        for (id, server) in self.servers.iter() {
            let keep = u64::from(CHUNK_BYTES) * (1 + CHUNKS_KEPT_PER_WRITE * u64::from(server.writes));
            if server.space.total == 0 || server.free_bytes() <= keep {
                continue;
            }
            match server.heavy_load {
                HeavyLoad::Overloaded => overloaded.push(id),
                HeavyLoad::Default | HeavyLoad::Ok if !server.maintenance => normal.push(id),
                _ => grace.push(id),
            }
        }
        if grace.len() * 5 > grace.len() + normal.len() {
            normal.append(&mut grace);
        }
        (normal, overloaded)
    }

    /// Step 4: weighted round robin, so that each server gets its share by size.
    fn in_order_of_use(&mut self, mut candidates: Vec<ServerId>) -> Vec<ServerId> {
        self.random.shuffle(&mut candidates);
        let total: u64 = candidates.iter().filter_map(|&id| self.servers.get(id)).map(|s| s.space.total).sum();
        let value = |id: &ServerId| {
            let server = self.servers.get(*id).expect("candidates are connected");
            let turn = if server.first_use {
                1.0
            } else {
                (total as f64 / server.space.total as f64 + server.correction) / (server.since_last_use as f64 + 1.0)
            };
            turn + WEIGHT_OF_WORK * f64::from(server.writes + server.replications_in)
        };
        let mut valued: Vec<(f64, ServerId)> = candidates.iter().map(|id| (value(id), *id)).collect();
        valued.sort_by(|a, b| a.0.total_cmp(&b.0));
        valued.into_iter().map(|(_, id)| id).collect()
    }

    fn note_use(&mut self, used: &[ServerId]) {
        let count = used.len() as u64;
        let total: u64 = self.servers.iter().map(|(_, server)| server.space.total).sum();
        for (_, server) in self.servers.iter_mut() {
            server.since_last_use += count;
        }
        for (position, &id) in used.iter().enumerate() {
            let Some(server) = self.servers.get_mut(id) else { continue };
            let after = count - position as u64 - 1;
            if !std::mem::take(&mut server.first_use) {
                let share = total as f64 / server.space.total.max(1) as f64;
                let distance = server.since_last_use.saturating_sub(after) as f64;
                // A deviation that could grow without bound would starve a server for ever.
                server.correction = (server.correction + share - distance).clamp(-10.0 * share, 10.0 * share);
            }
            server.since_last_use = after;
        }
    }

    /// Step 7: the servers that fit the labels come first; what the mode allows fills up.
    fn matching(
        &self,
        labels: &Labels,
        ordered: Vec<ServerId>,
        overloaded: &[ServerId],
        copies: usize,
        now: u32,
    ) -> Result<Vec<ServerId>, Status> {
        let mut chosen: Vec<ServerId> =
            self.assign(labels, &ordered).into_iter().flatten().map(|index| ordered[index]).collect();
        let with_overloaded: Vec<ServerId> = ordered.iter().chain(overloaded).copied().collect();
        let matched_later = labels.copies.len() - self.unmatched(labels, &with_overloaded);
        let could_wait = chosen.len() < copies && matched_later >= copies;
        match labels.mode {
            Mode::Strict | Mode::Standard if could_wait => return Err(Status::EAGAIN),
            // One that is overloaded, or away, may take it later.
            Mode::Strict if chosen.is_empty() && (matched_later > 0 || !self.all_data_known(now)) => {
                return Err(Status::EAGAIN);
            }
            Mode::Strict if chosen.is_empty() => return Err(Status::NOSPACE),
            Mode::Strict => {}
            Mode::Standard | Mode::Loose => {
                let free: Vec<ServerId> = ordered.into_iter().filter(|id| !chosen.contains(id)).collect();
                chosen.extend(free);
            }
        }
        Ok(chosen)
    }
}
