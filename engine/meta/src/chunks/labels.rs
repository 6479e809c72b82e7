//! Which servers a storage class allows. Spec 41, 7.

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
    /// candidates are preferred), at most one of each group. Returns for each wanted copy the index of its candidate.
    pub(super) fn assign(&self, candidates: &[Candidate]) -> Vec<Option<usize>> {
        let mut groups: Vec<u64> = Vec::with_capacity(candidates.len());
        let mut members: Vec<Vec<usize>> = Vec::with_capacity(candidates.len());
        for (index, candidate) in candidates.iter().enumerate() {
            match groups.iter().position(|group| *group == candidate.group) {
                Some(known) => members[known].push(index),
                None => {
                    groups.push(candidate.group);
                    members.push(vec![index]);
                }
            }
        }
        let mut holder: Vec<Option<(usize, usize)>> = vec![None; members.len()];
        for wanted in 0..self.copies.len() {
            let mut seen = vec![false; members.len()];
            self.augment(wanted, candidates, &members, &mut holder, &mut seen);
        }
        let mut assigned = vec![None; self.copies.len()];
        for (wanted, candidate) in holder.into_iter().flatten() {
            assigned[wanted] = Some(candidate);
        }
        assigned
    }

    fn augment(
        &self,
        wanted: usize,
        candidates: &[Candidate],
        members: &[Vec<usize>],
        holder: &mut [Option<(usize, usize)>],
        seen: &mut [bool],
    ) -> bool {
        for group in 0..members.len() {
            let fits = |&&index: &&usize| self.copies[wanted].matches(candidates[index].labels);
            let Some(&candidate) = members[group].iter().find(fits) else { continue };
            if std::mem::replace(&mut seen[group], true) {
                continue;
            }
            let free = match holder[group] {
                None => true,
                Some((other, _)) => self.augment(other, candidates, members, holder, seen),
            };
            if free {
                holder[group] = Some((wanted, candidate));
                return true;
            }
        }
        false
    }
}

/// A server that could take a copy, as far as the assignment goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) labels: u32,
    /// Only one server of a group gets a copy. CHUNKS_UNIQUE_MODE.
    pub(super) group: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wanted_label_that_can_be_served_is_served() {
        let check = |candidates: &[(u32, u64)], masks: &[&[u32]], expected: &[Option<usize>]| {
            let copies = masks.iter().map(|mask| LabelMask(mask.to_vec())).collect();
            let candidates: Vec<Candidate> =
                candidates.iter().map(|&(labels, group)| Candidate { labels, group }).collect();
            let assigned = Labels { mode: Mode::Standard, copies }.assign(&candidates);
            assert_eq!(assigned, expected, "{masks:?}");
        };
        let three = [(0b011, 1), (0b001, 2), (0b100, 3)];
        // A can be the first or the second, B only the first: B must not lose its only server to A.
        check(&three, &[&[0b001], &[0b010]], &[Some(1), Some(0)]);
        check(&three, &[&[0b010], &[0b010]], &[Some(0), None]);
        check(&three, &[&[], &[0b100, 0b1000]], &[Some(0), Some(2)]);
        // Two servers of one machine: one copy between them, by the one that fits.
        let two_on_one = [(0b001, 1), (0b010, 1), (0b001, 2)];
        check(&two_on_one, &[&[], &[]], &[Some(2), Some(0)]);
        check(&two_on_one, &[&[0b010], &[0b001]], &[Some(1), Some(2)]);
        check(&two_on_one, &[&[0b010], &[0b010]], &[Some(1), None]);
        check(&two_on_one, &[&[], &[], &[]], &[Some(2), Some(0), None]);
    }
}
