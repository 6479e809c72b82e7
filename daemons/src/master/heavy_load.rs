//! Chunkservers whose load is far above the others': they are spared for a while. Spec 40, 7.3.
//!
//! A server that says itself how it is (3.0.7 and later do) is taken at its word; this is for those that only tell a
//! number. Sparing ends by itself, or with the command "back to work".

use std::collections::BTreeMap;

use meta::chunks::{HeavyLoad, ServerId};
use tracing::warn;

use super::core::Core;

/// When a load is heavy, and what follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// CS_HEAVY_LOAD_THRESHOLD.
    pub load: u32,
    /// CS_HEAVY_LOAD_RATIO_THRESHOLD: so many times the others' average.
    pub ratio: f64,
    /// CS_HEAVY_LOAD_GRACE_PERIOD.
    pub grace_seconds: u32,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { load: 150, ratio: 3.0, grace_seconds: 900 }
    }
}

/// Until when servers are spared (Unix seconds), by their numbers: that outlasts a reconnection.
#[derive(Debug, Default)]
pub(super) struct Grace {
    until: BTreeMap<u16, u32>,
}

impl Grace {
    /// Seconds left.
    pub(super) fn left(&self, csid: u16, now: u32) -> u32 {
        self.until.get(&csid).map_or(0, |until| until.saturating_sub(now))
    }
}

impl Core {
    /// A server told its load. `own_word`: how it says that it is.
    pub(super) fn note_load(&mut self, server: ServerId, load: u32, own_word: Option<u8>, now: u32) {
        let limits = self.settings.heavy_load;
        let others = self.chunks.servers().iter().filter(|(id, _)| *id != server);
        let (count, sum) =
            others.fold((0u32, 0f64), |(count, sum), (_, other)| (count + 1, sum + f64::from(other.load)));
        let average = if count == 0 { f64::from(load) } else { sum / f64::from(count) };
        let heavy = load > limits.load && f64::from(load) > average * limits.ratio;
        let Some(server) = self.chunks.servers_mut().get_mut(server) else { return };
        server.load = load;
        server.heavy_load = own_word.map_or(HeavyLoad::Default, HeavyLoad::from_number);
        if heavy {
            let until = now.saturating_add(limits.grace_seconds);
            if self.grace.until.insert(server.csid, until).is_none_or(|before| before <= now) {
                let (ip, port) = (server.ip, server.port);
                warn!(%ip, port, load, average, seconds = limits.grace_seconds, "a chunkserver is heavily loaded");
            }
        }
        self.spare_loaded(now);
    }

    /// Who is spared now, of those that do not say themselves how they are. Once a second.
    pub(super) fn spare_loaded(&mut self, now: u32) {
        let Core { chunks, grace, .. } = self;
        grace.until.retain(|_, until| *until > now);
        for server in chunks.servers_mut().all_mut() {
            if matches!(server.heavy_load, HeavyLoad::Default | HeavyLoad::Graceful) {
                let spared = grace.until.contains_key(&server.csid);
                server.heavy_load = if spared { HeavyLoad::Graceful } else { HeavyLoad::Default };
            }
        }
    }

    /// The command "back to work". Spec 70, 5.1.
    pub(super) fn back_to_work(&mut self, csid: u16, now: u32) {
        self.grace.until.remove(&csid);
        self.spare_loaded(now);
    }
}
