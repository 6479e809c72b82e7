//! POSIX access control lists of nodes. Spec 32, 32.7.

/// "Absent" in a permission field.
pub const ABSENT: u16 = 0xFFFF;
/// Type numbers of the two lists that a node may have.
pub const ACCESS: u8 = 1;
pub const DEFAULT: u8 = 2;

/// Permissions are rwx = 4, 2, 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acl {
    pub user: u16,
    pub group: u16,
    pub other: u16,
    /// `ABSENT` if there is none.
    pub mask: u16,
    /// (uid, permissions)
    pub users: Vec<(u32, u16)>,
    /// (gid, permissions)
    pub groups: Vec<(u32, u16)>,
}

impl Acl {
    /// True if plain mode bits say the same.
    pub fn is_plain(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask == ABSENT
    }

    /// True for the form that asks for removal.
    pub fn is_removal(&self) -> bool {
        self.is_plain() && [self.user, self.group, self.other].iter().all(|perm| *perm == ABSENT)
    }

    /// Which accesses are allowed: bit `1 << mask` for each mask of rwx that is. uid 0 does not come here.
    pub(crate) fn access_bits(&self, uid: u32, owner: u32, owning_group: u32, in_group: impl Fn(u32) -> bool) -> u8 {
        let masked = |perm: u16| if self.mask == ABSENT { perm } else { perm & self.mask };
        if uid == owner {
            return masks_within(self.user);
        }
        if let Some((_, perm)) = self.users.iter().find(|(named, _)| *named == uid) {
            return masks_within(masked(*perm));
        }
        let owning = in_group(owning_group).then_some(self.group);
        let named = self.groups.iter().filter(|(gid, _)| in_group(*gid)).map(|(_, perm)| *perm);
        let by_group = owning.into_iter().chain(named).map(|perm| masks_within(masked(perm)));
        by_group.reduce(|all, one| all | one).unwrap_or_else(|| masks_within(self.other))
    }

    /// Mode of a node made below a directory with this default list, and its access list. Spec 32, 32.7.
    pub(crate) fn inherit(&self, mode: u16) -> (u16, Option<Acl>) {
        let special = mode & 0o7000;
        if self.is_plain() {
            return (special | mode & (self.user << 6 | self.group << 3 | self.other), None);
        }
        let mut acl = self.clone();
        acl.user &= mode >> 6 & 7;
        acl.other &= mode & 7;
        acl.mask &= mode >> 3 & 7;
        (special | acl.user << 6 | acl.group << 3 | acl.other, Some(acl))
    }
}

/// Bit `1 << mask` for each mask of rwx that `perm` holds. Spec 31, 31.4.
pub(crate) fn masks_within(perm: u16) -> u8 {
    [0x01, 0x03, 0x05, 0x0F, 0x11, 0x33, 0x55, 0xFF][usize::from(perm & 7)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_access_modes_is_that_of_the_specification() {
        for perm in 0..8u16 {
            let expected = (0..8u16).filter(|mask| mask & !perm == 0).fold(0, |bits, mask| bits | 1 << mask);
            assert_eq!(masks_within(perm), expected);
        }
    }

    #[test]
    fn groups_are_united_but_one_of_them_must_allow_all() {
        let acl = Acl { user: 7, group: 4, other: 7, mask: 6, users: vec![(5, 7)], groups: vec![(20, 2)] };
        let bits = |uid: u32, gids: &[u32]| acl.access_bits(uid, 1, 10, |gid| gids.contains(&gid));
        assert_eq!(bits(1, &[]), 0xFF);
        assert_eq!(bits(5, &[10]), masks_within(6), "a named user is masked");
        assert_eq!(bits(9, &[10, 20]), 0x11 | 0x05, "read by one, write by the other, never both");
        assert_eq!(bits(9, &[]), 0xFF, "other is not masked");
    }
}
