//! Which servers a storage class allows. Spec 41, 7.

use super::{ServerId, Servers};

/// One wanted copy: the server's labels must contain all bits of some mask. No masks = any server.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct LabelMask(pub Vec<u32>);

impl LabelMask {
    pub fn matches(&self, labels: u32) -> bool {
        self.0.is_empty() || self.0.iter().any(|mask| labels & mask == *mask)
    }
}

/// How strictly the labels are meant. Spec 41, 7.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Loose,
    Standard,
    Strict,
}

/// The copies that a storage class wants, one mask each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    pub mode: Mode,
    pub copies: Vec<LabelMask>,
}

impl Labels {
    /// `None` if any server will do for every copy.
    pub fn restricting(mode: Mode, copies: Vec<LabelMask>) -> Option<Labels> {
        copies.iter().any(|mask| !mask.0.is_empty()).then_some(Labels { mode, copies })
    }

    /// Assigns a server to as many wanted copies as possible (maximum matching by augmenting paths; earlier
    /// candidates are preferred). Returns for each wanted copy the index of its candidate.
    pub(super) fn assign(&self, servers: &Servers, candidates: &[ServerId]) -> Vec<Option<usize>> {
        let labels: Vec<u32> = candidates.iter().map(|&id| servers.get(id).map_or(0, |server| server.labels)).collect();
        let mut holder: Vec<Option<usize>> = vec![None; candidates.len()];
        for wanted in 0..self.copies.len() {
            let mut seen = vec![false; candidates.len()];
            self.augment(wanted, &labels, &mut holder, &mut seen);
        }
        let mut assigned = vec![None; self.copies.len()];
        for (candidate, wanted) in holder.iter().enumerate() {
            if let Some(wanted) = wanted {
                assigned[*wanted] = Some(candidate);
            }
        }
        assigned
    }

    /// Wanted copies for which there is none of these servers.
    pub(super) fn unmatched(&self, servers: &Servers, candidates: &[ServerId]) -> usize {
        self.assign(servers, candidates).iter().filter(|assigned| assigned.is_none()).count()
    }

    fn augment(&self, wanted: usize, labels: &[u32], holder: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        for candidate in 0..labels.len() {
            if seen[candidate] || !self.copies[wanted].matches(labels[candidate]) {
                continue;
            }
            seen[candidate] = true;
            let free = match holder[candidate] {
                None => true,
                Some(other) => self.augment(other, labels, holder, seen),
            };
            if free {
                holder[candidate] = Some(wanted);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Server, Space};
    use super::*;
    use wire::{Ip4, VersionWord};

    #[test]
    fn every_wanted_label_that_can_be_served_is_served() {
        let mut servers = Servers::default();
        for (slot, labels) in [(1, 0b001), (2, 0b011), (3, 0b100)] {
            let space = Space { used: 0, total: 1, chunks: 0, tdused: 0, tdtotal: 0, tdchunks: 0 };
            let mut server = Server::new(slot, Ip4(0), 0, VersionWord::OURS, space);
            server.labels = labels;
            servers.insert(ServerId(slot), server);
        }
        let candidates = [ServerId(2), ServerId(1), ServerId(3)];
        let check = |masks: &[&[u32]], expected: &[Option<usize>]| {
            let copies = masks.iter().map(|mask| LabelMask(mask.to_vec())).collect();
            let assigned = Labels { mode: Mode::Standard, copies }.assign(&servers, &candidates);
            assert_eq!(assigned, expected);
        };
        // A can be 1 or 2, B only 2: B must not lose its only server to A.
        check(&[&[0b001], &[0b010]], &[Some(1), Some(0)]);
        check(&[&[0b010], &[0b010]], &[Some(0), None]);
        check(&[&[], &[0b100, 0b1000]], &[Some(0), Some(2)]);
    }
}
