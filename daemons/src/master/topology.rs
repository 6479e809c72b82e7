//! mfstopology.cfg: which machines are near each other. Spec 60, 11.
//!
//! Pure: text in, racks out. Bad lines are logged in the words of MooseFS's master, and left out.

use meta::chunks::Topology;
use tracing::warn;
use wire::{Ip4, address_range};

/// The racks of all lines, the later ones over the earlier ones.
pub(super) fn parse(text: &str) -> Topology {
    let mut topology = Topology::default();
    for (number, line) in text.lines().enumerate() {
        match parse_line(line) {
            Ok(None) => {}
            Ok(Some(((first, last), rack))) => topology.put(Ip4(first), Ip4(last), rack),
            Err(what) => warn!("mfstopology: {what} line: {} - the line is ignored", number + 1),
        }
    }
    topology
}

type Placed<'a> = ((u32, u32), &'a str);

/// Address and rack; `Ok(None)` for a line that says nothing. Errors: the beginning of a sentence.
fn parse_line(line: &str) -> Result<Option<Placed<'_>>, &'static str> {
    let line = line.split_once('#').map_or(line, |(front, _)| front);
    let mut words = line.split_ascii_whitespace();
    let Some(address) = words.next() else { return Ok(None) };
    let range = address_range(address);
    match (range, words.next(), words.next()) {
        (None, Some(_), _) => Err("incorrect ip/network definition in"),
        (_, None, _) => Err("incomplete definition in"),
        (Some(_), Some(_), Some(_)) => Err("garbage found at the end of"),
        (Some(range), Some(rack), None) => Ok(Some((range, rack))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_told_apart_as_by_a_stock_master() {
        let check = |line: &str, expected: Result<Option<&str>, &str>| {
            assert_eq!(parse_line(line).map(|placed| placed.map(|placed| placed.1)), expected, "{line}");
        };
        check("10.0.0.1 A", Ok(Some("A")));
        check("  10.0.0.0/24\tdc1|room2|rack7  ", Ok(Some("dc1|room2|rack7")));
        check("10.0.0.2-10.0.0.9 1 # tail", Ok(Some("1")));
        check("10.0.0.2 A#tail", Ok(Some("A")));
        check("* A", Ok(Some("A")));
        check("# comment", Ok(None));
        check("", Ok(None));
        check("10.0.0.300 B", Err("incorrect ip/network definition in"));
        check("10.0.0.1/33 B", Err("incorrect ip/network definition in"));
        check("DEFAULTS X", Err("incorrect ip/network definition in"));
        check("10.0.0.0/24", Err("incomplete definition in"));
        check("nonsense", Err("incomplete definition in"));
        check("* A|B C", Err("garbage found at the end of"));
    }

    #[test]
    fn a_file_gives_distances() {
        let topology = parse("* far\nbad\n10.0.0.0/24 A|B\n10.0.0.7 A|C\n");
        let distance = |one: u32, other: u32| topology.distance(Ip4(0x0A00_0000 + one), Ip4(0x0A00_0000 + other));
        assert_eq!([distance(1, 2), distance(1, 7), distance(1, 0x100), distance(0x100, 0x200)], [1, 2, 3, 1]);
        assert!(parse("").is_empty());
    }
}
