//! Which machines are near each other. Spec 41, 10.1.
//!
//! Addresses have racks, racks are paths (`dc1|room2|rack7`). Kept as ranges that do not overlap, so that a look-up is a
//! binary search; racks are numbered, since most questions are "the same?".

use std::collections::BTreeMap;

use wire::Ip4;

/// Racks of addresses. Empty: all addresses are as near to each other as can be, save for an address to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// First address of a range -> last address and rack. Ranges do not overlap.
    ranges: BTreeMap<u32, (u32, usize)>,
    /// Levels from the outermost inwards.
    racks: Vec<Vec<String>>,
}

impl Topology {
    /// From now on these addresses (both included) are in `rack`, whatever was said of them before.
    pub fn put(&mut self, first: Ip4, last: Ip4, rack: &str) {
        let (first, last) = (first.0, last.0);
        if first > last {
            return;
        }
        let levels: Vec<String> = rack.split('|').map(str::to_owned).collect();
        let known = self.racks.iter().position(|rack| *rack == levels);
        let rack = known.unwrap_or_else(|| {
            self.racks.push(levels);
            self.racks.len() - 1
        });
        let before = self.ranges.range(..first).next_back().map(|(&start, &(end, rack))| (start, end, rack));
        if let Some((start, end, other)) = before.filter(|(_, end, _)| *end >= first) {
            self.ranges.insert(start, (first - 1, other));
            if end > last {
                self.ranges.insert(last + 1, (end, other));
            }
        }
        let inside: Vec<u32> = self.ranges.range(first..=last).map(|(&start, _)| start).collect();
        for start in inside {
            let Some((end, other)) = self.ranges.remove(&start) else { continue };
            if end > last {
                self.ranges.insert(last + 1, (end, other));
            }
        }
        self.ranges.insert(first, (last, rack));
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The number of an address's rack, if it has one.
    pub(super) fn rack(&self, ip: Ip4) -> Option<usize> {
        self.ranges.range(..=ip.0).next_back().filter(|(_, (last, _))| *last >= ip.0).map(|(_, (_, rack))| *rack)
    }

    /// 0 the same address, 1 the same rack, more the further out their paths part. Spec 41, 10.1.
    pub fn distance(&self, one: Ip4, other: Ip4) -> u32 {
        if one == other {
            return 0;
        }
        let (one, other) = (self.rack(one), self.rack(other));
        if one == other {
            return 1;
        }
        let levels = |rack: Option<usize>| rack.map_or(&[][..], |rack| &self.racks[rack][..]);
        let (a, b) = (levels(one), levels(other));
        let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        // No rack is a rack of one level that nobody shares.
        let left = a.len().max(b.len()).max(1) - common;
        u32::try_from(left).unwrap_or(u32::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u32) -> Ip4 {
        Ip4(0x0A00_0000 + last)
    }

    #[test]
    fn distances_are_those_of_the_specification() {
        let mut topology = Topology::default();
        for (last, rack) in [(1, "A"), (2, "A"), (3, "B"), (4, "A|B"), (5, "A|C"), (6, "C|D"), (7, "A|B|E")] {
            topology.put(ip(last), ip(last), rack);
        }
        let check = |one: u32, other: u32, expected: u32| {
            assert_eq!(topology.distance(ip(one), ip(other)), expected, "{one} {other}");
            assert_eq!(topology.distance(ip(other), ip(one)), expected, "{other} {one}");
        };
        check(1, 1, 0);
        check(1, 2, 1);
        check(1, 3, 2);
        check(4, 5, 2);
        check(1, 4, 2);
        check(4, 6, 3);
        check(4, 7, 2);
        check(7, 6, 4);
        check(8, 9, 1); // neither has a rack
        check(8, 8, 0);
        check(1, 8, 2);
        check(4, 8, 3);
    }

    #[test]
    fn a_later_line_wins_for_its_whole_range() {
        let mut topology = Topology::default();
        topology.put(ip(10), ip(20), "outer");
        topology.put(ip(13), ip(15), "inner");
        topology.put(ip(18), ip(30), "end");
        topology.put(ip(5), ip(10), "start");
        topology.put(ip(40), ip(30), "nothing");
        let names: Vec<&str> =
            (4..=31).map(|last| topology.rack(ip(last)).map_or("-", |rack| topology.racks[rack][0].as_str())).collect();
        let expected: Vec<&str> =
            [(1, "-"), (6, "start"), (2, "outer"), (3, "inner"), (2, "outer"), (13, "end"), (1, "-")]
                .iter()
                .flat_map(|(count, name)| std::iter::repeat_n(*name, *count))
                .collect();
        assert_eq!(names, expected);
        topology.put(Ip4(0), Ip4(u32::MAX), "all");
        assert_eq!((topology.ranges.len(), topology.distance(ip(1), ip(99))), (1, 1));
        topology.put(Ip4(u32::MAX), Ip4(u32::MAX), "last");
        assert_eq!(topology.distance(Ip4(u32::MAX), Ip4(0)), 2);
    }
}
