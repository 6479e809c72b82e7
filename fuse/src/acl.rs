//! POSIX access control lists: the extended attributes by which programs see them, and the lists that the master keeps.
//! Pure. Spec 32, 32.7; Spec 72, 4.3.
//!
//! ```text
//! attribute = version u32 = 2, then entries of { tag u16, permissions u16, id u32 }, little-endian
//! tags: 1 owner, 2 a user, 4 owning group, 8 a group, 0x10 mask, 0x20 others; in this order, ids ascending
//! ```

#![allow(clippy::little_endian_bytes)] // the kernel's own interface

use client::AccessList;

use crate::reply::Errno;

const VERSION: u32 = 2;
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;
const HEAD_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Whether attribute `name` is an access control list: `Some(true)` the default one of a directory.
pub fn is_default_list(name: &[u8]) -> Option<bool> {
    match name {
        b"system.posix_acl_access" => Some(false),
        b"system.posix_acl_default" => Some(true),
        _ => None,
    }
}

/// The list that takes a list away.
pub fn nothing() -> AccessList {
    let absent = AccessList::ABSENT;
    AccessList { owner: absent, group: absent, other: absent, mask: absent, users: Vec::new(), groups: Vec::new() }
}

/// Read an attribute's value. One without entries takes the list away.
///
/// Errors: EINVAL: length, version, unknown tag, the same entry twice, named entries without a mask.
pub fn parse(value: &[u8]) -> Result<AccessList, Errno> {
    let invalid = Errno(libc::EINVAL);
    let (head, entries) = value.split_first_chunk::<HEAD_BYTES>().ok_or(invalid)?;
    if u32::from_le_bytes(*head) != VERSION || entries.len() % ENTRY_BYTES != 0 {
        return Err(invalid);
    }
    let mut list = nothing();
    for entry in entries.chunks_exact(ENTRY_BYTES) {
        let tag = u16::from_le_bytes([entry[0], entry[1]]);
        let permissions = u16::from_le_bytes([entry[2], entry[3]]);
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        if permissions > 7 {
            return Err(invalid);
        }
        let single = match tag {
            OWNER => &mut list.owner,
            OWNING_GROUP => &mut list.group,
            OTHER => &mut list.other,
            MASK => &mut list.mask,
            USER | GROUP => {
                let named = if tag == USER { &mut list.users } else { &mut list.groups };
                if named.iter().any(|(known, _)| *known == id) {
                    return Err(invalid);
                }
                named.push((id, permissions));
                continue;
            }
            _ => return Err(invalid),
        };
        if *single != AccessList::ABSENT {
            return Err(invalid);
        }
        *single = permissions;
    }
    let has_named = !list.users.is_empty() || !list.groups.is_empty();
    if has_named && list.mask == AccessList::ABSENT { Err(invalid) } else { Ok(list) }
}

/// Write an attribute's value.
pub fn format(list: &AccessList) -> Vec<u8> {
    let mut out = VERSION.to_le_bytes().to_vec();
    let mut put = |tag: u16, permissions: u16, id: u32| {
        if permissions != AccessList::ABSENT {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
    };
    let sorted = |named: &[(u32, u16)]| {
        let mut named = named.to_vec();
        named.sort_unstable();
        named
    };
    put(OWNER, list.owner, NO_ID);
    for (id, permissions) in sorted(&list.users) {
        put(USER, permissions, id);
    }
    put(OWNING_GROUP, list.group, NO_ID);
    for (id, permissions) in sorted(&list.groups) {
        put(GROUP, permissions, id);
    }
    put(MASK, list.mask, NO_ID);
    put(OTHER, list.other, NO_ID);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut out = VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            out.extend_from_slice(&tag.to_le_bytes());
            out.extend_from_slice(&permissions.to_le_bytes());
            out.extend_from_slice(&id.to_le_bytes());
        }
        out
    }

    #[test]
    fn a_list_survives_both_ways() {
        let check = |entries: &[(u16, u16, u32)]| {
            let bytes = value(entries);
            assert_eq!(format(&parse(&bytes).expect("valid")), bytes);
        };
        check(&[(OWNER, 7, NO_ID), (OWNING_GROUP, 5, NO_ID), (OTHER, 5, NO_ID)]);
        let user_and_group = [(USER, 6, 1001), (USER, 4, 1002)];
        let mut all = vec![(OWNER, 7, NO_ID)];
        all.extend(user_and_group);
        all.extend([(OWNING_GROUP, 5, NO_ID), (GROUP, 7, 50), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)]);
        check(&all);
    }

    #[test]
    fn a_plain_mode_has_no_mask_and_nothing_is_a_removal() {
        let plain = parse(&value(&[(OWNER, 7, NO_ID), (OWNING_GROUP, 5, NO_ID), (OTHER, 5, NO_ID)])).expect("valid");
        assert_eq!((plain.owner, plain.group, plain.other, plain.mask), (7, 5, 5, AccessList::ABSENT));
        assert_eq!(parse(&value(&[])), Ok(nothing()));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |bytes: &[u8]| assert_eq!(parse(bytes), Err(Errno(libc::EINVAL)));
        refused(&[]);
        refused(&[1, 0, 0, 0]);
        refused(&value(&[(OWNER, 7, NO_ID)])[..11]);
        refused(&value(&[(OWNER, 8, NO_ID)]));
        refused(&value(&[(OWNER, 7, NO_ID), (OWNER, 7, NO_ID)]));
        refused(&value(&[(USER, 7, 5), (USER, 7, 5), (MASK, 7, NO_ID)]));
        refused(&value(&[(USER, 7, 5)]));
        refused(&value(&[(0x40, 7, NO_ID)]));
    }
}
