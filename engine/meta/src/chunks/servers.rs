//! The connected chunkservers: space, load, labels, running work.

use std::collections::BTreeMap;

use wire::{Ip4, ServerSpace, VersionWord};

use super::pace::{self, Pace};

/// A connected server's slot. Given anew at each registration; not reused while copies of the last holder remain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub u16);

/// Bytes and chunks of a server. `td...` = on disks marked for removal.
pub type Space = ServerSpace;

/// What a server says of its own load. Spec 40, 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HeavyLoad {
    /// Never told.
    #[default]
    Default,
    Ok,
    Overloaded,
    Rebalance,
    /// Never told, and spared by the master because of its load. Spec 40, 7.3.
    Graceful,
}

impl HeavyLoad {
    /// From the wire; unknown values count as overloaded.
    pub fn from_number(number: u8) -> HeavyLoad {
        match number {
            0 => HeavyLoad::Default,
            1 => HeavyLoad::Ok,
            3 => HeavyLoad::Rebalance,
            _ => HeavyLoad::Overloaded,
        }
    }
}

/// A connected chunkserver.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its number for life. Spec 40, 4.
    pub csid: u16,
    pub ip: Ip4,
    pub port: u16,
    pub version: VersionWord,
    pub labels: u32,
    pub space: Space,
    pub load: u32,
    pub heavy_load: HeavyLoad,
    pub maintenance: bool,
    /// Disk errors it reported.
    pub errors: u32,
    /// Between BEGIN and END.
    pub registering: bool,
    /// Chunks under write with a usable copy here. Spec 41, 1.4.
    pub writes: u32,
    pub replications_in: u32,
    pub replications_out: u32,
    pub deletions: u32,
    /// Of copies made here, and of copies made from here.
    pub(super) pace_in: Pace,
    pub(super) pace_out: Pace,
    /// Weighted round robin of creations. Spec 41, 6, step 4.
    pub(super) since_last_use: u64,
    pub(super) correction: f64,
    pub(super) first_use: bool,
}

impl Server {
    pub fn new(csid: u16, ip: Ip4, port: u16, version: VersionWord, space: Space) -> Server {
        Server {
            csid,
            ip,
            port,
            version,
            labels: 0,
            space,
            load: 0,
            heavy_load: HeavyLoad::Default,
            maintenance: false,
            errors: 0,
            registering: true,
            writes: 0,
            replications_in: 0,
            replications_out: 0,
            deletions: 0,
            pace_in: Pace::default(),
            pace_out: Pace::default(),
            since_last_use: 0,
            correction: 0.0,
            first_use: true,
        }
    }

    /// Free bytes on disks that take new chunks.
    pub fn free_bytes(&self) -> u64 {
        self.space.total.saturating_sub(self.space.used)
    }

    /// Used part, 0 to 1.
    pub fn usage(&self) -> f64 {
        if self.space.total == 0 { 1.0 } else { self.space.used as f64 / self.space.total as f64 }
    }

    /// Not more than 1 % free: takes no replicas. Spec 41, 8.4.
    pub fn almost_full(&self) -> bool {
        self.free_bytes() <= self.space.total / 100
    }

    /// Overloaded, spared or in maintenance: takes replicas of endangered chunks only.
    pub fn spared(&self) -> bool {
        matches!(self.heavy_load, HeavyLoad::Overloaded | HeavyLoad::Graceful) || self.maintenance
    }
}

/// All connected servers, by slot.
#[derive(Debug, Default)]
pub struct Servers {
    connected: BTreeMap<ServerId, Server>,
}

impl Servers {
    pub fn get(&self, id: ServerId) -> Option<&Server> {
        self.connected.get(&id)
    }

    pub fn get_mut(&mut self, id: ServerId) -> Option<&mut Server> {
        self.connected.get_mut(&id)
    }

    pub fn all_mut(&mut self) -> impl Iterator<Item = &mut Server> {
        self.connected.values_mut()
    }

    pub fn contains(&self, id: ServerId) -> bool {
        self.connected.contains_key(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = (ServerId, &Server)> {
        self.connected.iter().map(|(&id, server)| (id, server))
    }

    pub fn len(&self) -> usize {
        self.connected.len()
    }

    pub fn is_empty(&self) -> bool {
        self.connected.is_empty()
    }

    pub fn by_csid(&self, csid: u16) -> Option<ServerId> {
        self.connected.iter().find(|(_, server)| server.csid == csid).map(|(&id, _)| id)
    }

    /// Servers between BEGIN and END.
    pub fn registering(&self) -> usize {
        self.connected.values().filter(|server| server.registering).count()
    }

    /// Bytes in all and used, over normal disks of all connected servers.
    pub fn space(&self) -> (u64, u64) {
        self.connected.values().fold((0, 0), |(total, used), server| {
            (total.saturating_add(server.space.total), used.saturating_add(server.space.used))
        })
    }

    pub(super) fn insert(&mut self, id: ServerId, server: Server) {
        self.connected.insert(id, server);
    }

    pub(super) fn remove(&mut self, id: ServerId) -> Option<Server> {
        self.connected.remove(&id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (ServerId, &mut Server)> {
        self.connected.iter_mut().map(|(&id, server)| (id, server))
    }

    /// A copy from `source` to `target` ended.
    pub(super) fn copy_ended(&mut self, source: ServerId, target: ServerId, end: pace::End, clock: f64) {
        self.lower(target, |server| &mut server.replications_in);
        self.lower(source, |server| &mut server.replications_out);
        let mut of_source = self.connected.get(&source).map(|server| (server.pace_out, server.replications_out));
        let mut of_target = self.connected.get(&target).map(|server| (server.pace_in, server.replications_in));
        let one = of_source.as_mut().map(|(pace, left)| (pace, *left));
        let other = of_target.as_mut().map(|(pace, left)| (pace, *left));
        pace::ended(one, other, end, clock);
        if let (Some((pace, _)), Some(server)) = (of_source, self.connected.get_mut(&source)) {
            server.pace_out = pace;
        }
        if let (Some((pace, _)), Some(server)) = (of_target, self.connected.get_mut(&target)) {
            server.pace_in = pace;
        }
    }

    /// Undo of `replications_out += 1` and the like, for a server that may be gone.
    pub(super) fn lower(&mut self, id: ServerId, counter: fn(&mut Server) -> &mut u32) {
        if let Some(server) = self.connected.get_mut(&id) {
            let value = counter(server);
            *value = value.saturating_sub(1);
        }
    }
}
