//! Whom a port serves: ranges of addresses, written as the first word of a line of mfsexports.cfg. Spec 60, 9.1.

use std::cell::Cell;
use std::net::Ipv4Addr;

use crate::types::Ip4;

/// Addresses from the first to the second, both included.
pub type AddressRange = (u32, u32);

/// The range of one address form; `/0` means every address here. `None`: it is no address.
pub fn address_range(text: &str) -> Option<AddressRange> {
    let address = |text: &str| text.parse::<Ipv4Addr>().ok().map(u32::from);
    if text == "*" {
        return Some((0, u32::MAX));
    }
    if let Some((first, last)) = text.split_once('-') {
        return Some((address(first)?, address(last)?));
    }
    let Some((base, mask)) = text.split_once('/') else { return address(text).map(|ip| (ip, ip)) };
    let mask = match address(mask) {
        Some(mask) => mask,
        None => match mask.parse::<u32>().ok()? {
            0 => 0,
            bits @ 1..=32 => u32::MAX << (32 - bits),
            _ => return None,
        },
    };
    let base = address(base)? & mask;
    Some((base, base | !mask))
}

/// The peers that a port serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressList {
    /// `None`: everybody.
    ranges: Option<Vec<AddressRange>>,
}

impl AddressList {
    /// Address forms, separated by blanks, commas or semicolons. Errors: the word that is no address; an empty text,
    /// since a port that serves nobody is a mistake.
    pub fn parse(text: &str) -> Result<AddressList, String> {
        let separates = |c: char| c.is_whitespace() || c == ',' || c == ';';
        let words = text.split(separates).filter(|word| !word.is_empty());
        let mut ranges = Vec::new();
        for word in words {
            match address_range(word) {
                Some((first, last)) if first <= last => ranges.push((first, last)),
                Some(_) => return Err(format!("`{word}` ends before it begins")),
                None => return Err(format!("`{word}` is no address, network or range of addresses")),
            }
        }
        if ranges.is_empty() {
            return Err("no address is given; `*` means all".to_owned());
        }
        Ok(AddressList { ranges: (!ranges.contains(&(0, u32::MAX))).then_some(ranges) })
    }

    pub fn contains(&self, ip: Ip4) -> bool {
        let in_range = |&(first, last): &AddressRange| (first..=last).contains(&ip.0);
        self.ranges.as_ref().is_none_or(|ranges| ranges.iter().any(in_range))
    }
}

/// Counts the connections of strangers, so that they cannot fill the log: the first of a minute is told of.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Unix minute of the last message; how many were refused since.
    minute: Cell<u64>,
    untold: Cell<u64>,
}

impl Refusals {
    /// One more. Returns how many there were since the last message, this one included, if it is time for the next.
    pub fn count(&self, now_seconds: u64) -> Option<u64> {
        let (minute, count) = (now_seconds / 60 + 1, self.untold.get() + 1);
        if self.minute.get() == minute {
            self.untold.set(count);
            return None;
        }
        self.minute.set(minute);
        self.untold.set(0);
        Some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_what_any_of_its_forms_holds() {
        let check = |text: &str, inside: &[&str], outside: &[&str]| {
            let list = AddressList::parse(text).unwrap();
            let holds = |ip: &&str| list.contains(Ip4::from(ip.parse::<Ipv4Addr>().unwrap()));
            assert!(inside.iter().all(holds), "{text}");
            assert!(!outside.iter().any(holds), "{text}");
        };
        check("*", &["0.0.0.0", "255.255.255.255"], &[]);
        check("10.0.0.5", &["10.0.0.5"], &["10.0.0.4", "10.0.0.6"]);
        check("10.0.0.0/24, 127.0.0.1", &["10.0.0.0", "10.0.0.255", "127.0.0.1"], &["10.0.1.0", "127.0.0.2"]);
        check("10.0.0.0/255.255.0.0 192.168.1.3-192.168.1.7", &["10.0.9.9", "192.168.1.7"], &["192.168.1.8"]);
        check("10.0.0.1;0.0.0.0/0", &["8.8.8.8"], &[]);
    }

    #[test]
    fn a_list_with_a_mistake_names_it() {
        let check = |text: &str, expected: &str| {
            let error = AddressList::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("", "no address");
        check(" , ", "no address");
        check("10.0.0.1, host", "`host`");
        check("10.0.0.9-10.0.0.1", "ends before");
        check("10.0.0.0/33", "`10.0.0.0/33`");
    }

    #[test]
    fn refusals_are_told_of_once_a_minute() {
        let refusals = Refusals::default();
        assert_eq!([0, 1, 59, 60, 61].map(|second| refusals.count(second)), [Some(1), None, None, Some(3), None]);
    }
}
