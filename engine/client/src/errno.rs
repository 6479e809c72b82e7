//! What a caller gets when an operation fails: the number that goes to the kernel. One table turns the master's
//! statuses into it (Spec 10, 4; Spec 72, 4.4).

use std::fmt;

use wire::Status;

/// A Linux error number, always positive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal),* $(,)?) => {
        impl Errno {
            $( pub const $name: Errno = Errno($number); )*

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $number => Some(stringify!($name)), )*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, ENOENT = 2, EINTR = 4, EIO = 5, ENXIO = 6, EBADF = 9, EAGAIN = 11, EACCES = 13, EEXIST = 17,
    ENOTDIR = 20, EISDIR = 21, EINVAL = 22, EFBIG = 27, ENOSPC = 28, EROFS = 30, EMLINK = 31, ERANGE = 34,
    ENAMETOOLONG = 36, ENOSYS = 38, ENOTEMPTY = 39, ENODATA = 61, ENOTSUP = 95, EDQUOT = 122, ECANCELED = 125,
}

impl Errno {
    /// The error of a metadata operation. `Status::OK` is not an error; it becomes `EINVAL` like every status without
    /// an entry of its own. Spec 10, 4.
    pub fn from_status(status: Status) -> Errno {
        match status {
            Status::EPERM => Errno::EPERM,
            Status::ENOTDIR => Errno::ENOTDIR,
            Status::ENOENT | Status::ENOENT_NOCACHE => Errno::ENOENT,
            Status::EACCES => Errno::EACCES,
            Status::EEXIST => Errno::EEXIST,
            Status::EINVAL => Errno::EINVAL,
            Status::ENOTEMPTY => Errno::ENOTEMPTY,
            Status::CHUNKLOST | Status::CSNOTPRESENT => Errno::ENXIO,
            Status::INDEXTOOBIG => Errno::EFBIG,
            Status::NOCHUNKSERVERS | Status::NOSPACE => Errno::ENOSPC,
            Status::NOTOPENED => Errno::EBADF,
            Status::IO => Errno::EIO,
            Status::EROFS => Errno::EROFS,
            Status::QUOTA => Errno::EDQUOT,
            Status::ENOATTR => Errno::ENODATA,
            Status::ENOTSUP => Errno::ENOTSUP,
            Status::ERANGE => Errno::ERANGE,
            Status::EAGAIN => Errno::EAGAIN,
            Status::EINTR => Errno::EINTR,
            Status::ECANCELED => Errno::ECANCELED,
            Status::ENAMETOOLONG => Errno::ENAMETOOLONG,
            Status::EMLINK => Errno::EMLINK,
            _ => Errno::EINVAL,
        }
    }
}

impl From<Status> for Errno {
    fn from(status: Status) -> Errno {
        Errno::from_status(status)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_of_the_protocol_has_the_error_of_the_table() {
        let named = [
            (1, 1),
            (2, 20),
            (3, 2),
            (4, 13),
            (5, 17),
            (6, 22),
            (7, 39),
            (8, 6),
            (10, 27),
            (12, 28),
            (17, 9),
            (21, 28),
            (22, 5),
            (33, 30),
            (34, 122),
            (38, 61),
            (39, 95),
            (40, 34),
            (43, 6),
            (45, 11),
            (46, 4),
            (47, 125),
            (48, 2),
            (58, 36),
            (59, 31),
        ];
        for number in 1..=255u8 {
            let expected = named.iter().find(|(status, _)| *status == number).map_or(22, |(_, errno)| *errno);
            assert_eq!(Errno::from_status(Status(number)).0, expected, "status {number}");
        }
    }
}
