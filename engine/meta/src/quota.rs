//! Quotas of directories. Spec 32, 32.6.

use wire::{Inode, SessionId, Status, Time};

use crate::apply::tree;
use crate::change::Change;
use crate::namespace::{Caller, Namespace};
use crate::node::{Figures, mark};
use crate::session::session_flags;
use crate::state::{ROOT, State};

/// Bits of `Quota::flags`: which limits are set.
pub mod quota_flags {
    pub const SOFT_INODES: u8 = 0x01;
    pub const SOFT_LENGTH: u8 = 0x02;
    pub const SOFT_SIZE: u8 = 0x04;
    pub const SOFT_REALSIZE: u8 = 0x08;
    pub const HARD_INODES: u8 = 0x10;
    pub const HARD_LENGTH: u8 = 0x20;
    pub const HARD_SIZE: u8 = 0x40;
    pub const HARD_REALSIZE: u8 = 0x80;
    pub const SOFT: u8 = 0x0F;
}

/// Grace period of a quota that a file has without one. Spec 50, 4.8.
pub(crate) const DEFAULT_GRACE_SECONDS: u32 = 604_800;

/// Limits of one kind for a directory with everything below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub inodes: u32,
    pub length: u64,
    pub size: u64,
    pub realsize: u64,
}

impl Limits {
    fn in_order(&self) -> [u64; 4] {
        [u64::from(self.inodes), self.length, self.size, self.realsize]
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// `quota_flags`
    pub flags: u8,
    /// A soft limit was passed for longer than the grace period.
    pub exceeded: bool,
    /// Unix seconds when a soft limit was passed; 0 = none is.
    pub since: u32,
    pub grace_seconds: u32,
    pub soft: Limits,
    pub hard: Limits,
}

impl Quota {
    /// Would these figures, grown by `more`, break the quota? Only kinds that grow count.
    pub(crate) fn refuses(&self, present: &Figures, more: &Figures) -> bool {
        let (soft, hard) = (self.soft.in_order(), self.hard.in_order());
        in_order(present).into_iter().zip(in_order(more)).enumerate().any(|(kind, (present, more))| {
            let after = present.saturating_add(more);
            let passes = |bit: u8, limit: u64| self.flags & bit << kind != 0 && after > limit;
            more != 0 && (passes(0x10, hard[kind]) || self.exceeded && passes(0x01, soft[kind]))
        })
    }

    /// True if some soft limit is passed.
    pub(crate) fn soft_is_passed(&self, present: &Figures) -> bool {
        let soft = self.soft.in_order();
        let passed = |(kind, present): (usize, u64)| self.flags & 1 << kind != 0 && present > soft[kind];
        in_order(present).into_iter().enumerate().any(passed)
    }

    /// The smallest limit on bytes and the present use of that kind, for each of length, size, realsize that is
    /// limited. Spec 31, 31.3.
    pub(crate) fn byte_limits(&self, present: &Figures) -> impl Iterator<Item = (u64, u64)> + use<> {
        let (soft, hard, present, flags) = (self.soft.in_order(), self.hard.in_order(), in_order(present), self.flags);
        (1..4).filter_map(move |kind: usize| {
            let set = |bit: u8, limit: u64| (flags & bit << kind != 0).then_some(limit);
            let limit = set(0x01, soft[kind]).into_iter().chain(set(0x10, hard[kind])).min()?;
            Some((limit, present[kind]))
        })
    }
}

fn in_order(figures: &Figures) -> [u64; 4] {
    [u64::from(figures.inodes), figures.length, figures.size, figures.realsize]
}

/// What STATFS tells of a session's tree. Spec 31, 31.3.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Inodes below the session's root.
    pub inodes: u32,
    pub trash_bytes: u64,
    pub sustained_bytes: u64,
    limits: Vec<(u64, u64)>,
}

impl Usage {
    /// Applies the quotas above the session's root to the space of the cluster. `free`: free or available bytes;
    /// returns (total, free).
    pub fn limit(&self, total: u64, free: u64) -> (u64, u64) {
        self.limits.iter().fold((total, free), |(total, free), (limit, used)| {
            let free = free.min(limit.saturating_sub(*used));
            (total.min(*limit).min(used.saturating_add(free)), free)
        })
    }
}

/// A quota and what it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaReport {
    pub quota: Quota,
    pub present: Figures,
}

impl Namespace {
    /// Spec 31, 31.3 "STATFS". An unknown session gets zeros.
    pub fn usage(&self, session: SessionId) -> Usage {
        let root = self.state.sessions.get(&session).map_or(0, |session| session.params.root.0);
        if root == 0 || self.state.node(root).is_none_or(|node| !node.is_directory()) {
            return Usage::default();
        }
        let quotas = self.quotas_above(root);
        let limits = quotas.flat_map(|(inode, quota)| quota.byte_limits(&self.state.inside(inode))).collect();
        let whole = root == ROOT;
        Usage {
            inodes: self.state.figures(root).inodes,
            trash_bytes: if whole { self.state.trash_bytes } else { 0 },
            sustained_bytes: if whole { self.state.sustained_bytes } else { 0 },
            limits,
        }
    }

    /// Quotas of a directory and of those above it.
    fn quotas_above(&self, directory: u32) -> impl Iterator<Item = (u32, &Quota)> {
        let State { quotas, .. } = &self.state;
        let ancestors = (!quotas.is_empty()).then(|| self.state.ancestors(directory));
        let marked = ancestors.into_iter().flatten().filter(|inode| self.state.at(*inode).marked(mark::QUOTA));
        marked.map(|inode| (inode, &quotas[&inode]))
    }

    /// Errors: `QUOTA` if a directory or one above it may not grow so much.
    pub(crate) fn must_fit_quotas(&self, directory: u32, more: &Figures) -> Result<(), Status> {
        let refused = self.quotas_above(directory).any(|(inode, quota)| quota.refuses(&self.state.inside(inode), more));
        if refused { Err(Status::QUOTA) } else { Ok(()) }
    }

    /// Errors: `QUOTA` if the directory that a path leads to, as far as it exists, is in one marked exceeded.
    pub(crate) fn must_not_exceed_quota(&self, path: &[u8]) -> Result<(), Status> {
        let mut here = ROOT;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            match self.state.find_child(here, part) {
                Some(child) if self.state.at(child).is_directory() => here = child,
                _ => break,
            }
        }
        if self.quotas_above(here).any(|(_, quota)| quota.exceeded) { Err(Status::QUOTA) } else { Ok(()) }
    }

    /// The same for all directories that hold a name of a node.
    pub(crate) fn must_fit_quotas_of_links(&self, inode: u32, more: &Figures) -> Result<(), Status> {
        if self.state.quotas.is_empty() {
            return Ok(());
        }
        let parents = self.state.links(inode).map(|edge| self.state.edge(edge).parent);
        parents.filter(|parent| *parent != 0).try_for_each(|parent| self.must_fit_quotas(parent, more))
    }

    /// Only those directories count that are above the target and not above the source.
    pub(crate) fn must_fit_quotas_of_move(
        &self,
        child: u32,
        overwritten: Option<u32>,
        source_parent: u32,
        target_parent: u32,
    ) -> Result<(), Status> {
        if self.state.quotas.is_empty() {
            return Ok(());
        }
        let more = self.state.figures(child);
        let less = overwritten.map_or(Figures::default(), |inode| self.state.figures(inode));
        let more = Figures {
            length: more.length.saturating_sub(less.length),
            size: more.size.saturating_sub(less.size),
            realsize: more.realsize.saturating_sub(less.realsize),
            inodes: more.inodes.saturating_sub(less.inodes),
            ..Figures::default()
        };
        let new_only =
            self.quotas_above(target_parent).filter(|(inode, _)| !self.state.directory_is_below(source_parent, *inode));
        let refused = new_only.into_iter().any(|(inode, quota)| quota.refuses(&self.state.inside(inode), &more));
        if refused { Err(Status::QUOTA) } else { Ok(()) }
    }

    /// Would giving a class to a node (or all below) break a quota on the space of all copies?
    pub(crate) fn must_fit_quotas_of_class(&self, inode: u32, class: u8, recursive: bool) -> Result<(), Status> {
        if self.state.quotas.is_empty() {
            return Ok(());
        }
        let copies = u64::from(self.state.classes.copies_max(class));
        let growth: u64 = tree(&self.state, inode, recursive)
            .into_iter()
            .filter(|inode| self.state.at(*inode).has_data())
            .map(|inode| self.state.figures(inode))
            .map(|figures| (figures.size * copies).saturating_sub(figures.realsize))
            .sum();
        let more = Figures { realsize: growth, ..Figures::default() };
        match self.state.at(inode).is_directory() {
            true => self.must_fit_quotas(inode, &more),
            false => self.must_fit_quotas_of_links(inode, &more),
        }
    }

    /// The quota of a directory; one without limits if it has none. Spec 32, 32.6.
    pub fn quota(&self, session: SessionId, inode: Inode) -> Result<QuotaReport, Status> {
        let who = self.session_itself(session, Time(0))?;
        let inode = self.quota_directory(&who, inode)?;
        let quota = self.state.quotas.get(&inode).copied().unwrap_or_default();
        Ok(QuotaReport { quota, present: self.state.inside(inode) })
    }

    fn quota_directory(&self, who: &crate::access::Who<'_>, inode: Inode) -> Result<u32, Status> {
        if who.root == 0 {
            return Err(Status::EPERM);
        }
        let inode = self.resolve(who, inode, false)?;
        if self.state.at(inode).is_directory() { Ok(inode) } else { Err(Status::EPERM) }
    }

    /// Sets the limits that `flags` names, or (`limits` None) deletes them. Spec 32, 32.6 "QUOTACONTROL".
    ///
    /// `limits`: (soft, hard, grace seconds; 0 = leave).
    pub fn set_quota(
        &mut self,
        caller: &Caller<'_>,
        inode: Inode,
        flags: u8,
        limits: Option<(Limits, Limits, u32)>,
    ) -> Result<QuotaReport, Status> {
        let who = self.who(caller)?;
        if who.root != 0 && self.state.sessions[&caller.session].params.root_uid != 0 {
            return Err(Status::EACCES);
        }
        who.must_be_writable()?;
        if !who.has(session_flags::ADMIN) {
            return Err(Status::EPERM);
        }
        let inode = self.quota_directory(&who, inode)?;
        let mut quota = self.state.quotas.get(&inode).copied().unwrap_or_default();
        match limits {
            Some((soft, hard, grace_seconds)) => {
                quota.flags |= flags;
                quota.soft.take(flags, &soft);
                quota.hard.take(flags >> 4, &hard);
                if grace_seconds != 0 {
                    quota.grace_seconds = grace_seconds;
                }
            }
            None => {
                quota.flags &= !flags;
                quota.soft.take(flags, &Limits::default());
                quota.hard.take(flags >> 4, &Limits::default());
            }
        }
        self.commit(who.now, &line_of(inode, &quota))?;
        self.tick_quotas(who.now);
        self.quota(caller.session, Inode(inode))
    }

    /// All quotas with the paths of their directories, for monitoring.
    pub fn quotas(&self) -> impl Iterator<Item = (Inode, Vec<u8>, QuotaReport)> + '_ {
        self.state.quotas.iter().map(|(inode, quota)| {
            let edge = self.state.at(*inode).edge;
            let path = if edge == 0 { Vec::new() } else { self.state.path_below(edge, ROOT) };
            (Inode(*inode), path, QuotaReport { quota: *quota, present: self.state.inside(*inode) })
        })
    }

    /// Starts, stops and ends the clocks of soft limits. Spec 32, 32.6 "Semantics".
    pub(crate) fn tick_quotas(&mut self, now: Time) {
        let directories: Vec<u32> = self.state.quotas.keys().copied().collect();
        for inode in directories {
            let old = self.state.quotas[&inode];
            let mut new = old;
            if !old.soft_is_passed(&self.state.inside(inode)) {
                (new.since, new.exceeded) = (0, false);
            } else if old.since == 0 {
                new.since = now.seconds();
            }
            let grace_ends = u64::from(new.since) + u64::from(new.grace_seconds);
            new.exceeded = new.since != 0 && grace_ends < u64::from(now.seconds());
            if new != old {
                self.commit(now, &line_of(inode, &new)).expect("the directory has a quota");
            }
        }
    }
}

impl Limits {
    /// Takes the limits of the kinds in the low four bits of `flags`.
    fn take(&mut self, flags: u8, given: &Limits) {
        if flags & 1 != 0 {
            self.inodes = given.inodes;
        }
        if flags & 2 != 0 {
            self.length = given.length;
        }
        if flags & 4 != 0 {
            self.size = given.size;
        }
        if flags & 8 != 0 {
            self.realsize = given.realsize;
        }
    }
}

fn line_of(inode: u32, quota: &Quota) -> Change<'static> {
    Change::SetQuota {
        inode: Inode(inode),
        exceeded: u8::from(quota.exceeded),
        flags: quota.flags,
        since: quota.since,
        soft_inodes: quota.soft.inodes,
        hard_inodes: quota.hard.inodes,
        soft_length: quota.soft.length,
        hard_length: quota.hard.length,
        soft_size: quota.soft.size,
        hard_size: quota.hard.size,
        soft_realsize: quota.soft.realsize,
        hard_realsize: quota.hard.realsize,
        grace_seconds: quota.grace_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_limit_holds_at_once_and_a_soft_one_when_exceeded() {
        let mut quota = Quota { flags: quota_flags::HARD_INODES | quota_flags::SOFT_LENGTH, ..Quota::default() };
        quota.hard.inodes = 10;
        quota.soft.length = 100;
        let present = Figures { inodes: 9, length: 100, ..Figures::default() };
        let more = |inodes: u32, length: u64| Figures { inodes, length, ..Figures::default() };
        assert!(!quota.refuses(&present, &more(1, 50)));
        assert!(quota.refuses(&present, &more(2, 0)));
        quota.exceeded = true;
        assert!(quota.refuses(&present, &more(1, 50)));
        assert!(!quota.refuses(&present, &more(1, 0)), "a kind that does not grow is not refused");
    }
}
