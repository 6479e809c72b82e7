//! Status codes. Spec 10, 4: number, name and the text that tools print.

use std::fmt;

use crate::types::Status;

macro_rules! statuses {
    ($( $number:literal $name:ident $text:literal )*) => {
        impl Status {
            $( #[doc = $text] pub const $name: Status = Status($number); )*

            /// The text that MooseFS's tools print. Spec 10, 4.
            pub fn text(self) -> &'static str {
                match self.0 {
                    $( $number => $text, )*
                    _ => "Unknown MFS error",
                }
            }

            fn name(self) -> Option<&'static str> {
                match self.0 {
                    $( $number => Some(stringify!($name)), )*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    0 OK "OK"
    1 EPERM "Operation not permitted"
    2 ENOTDIR "Not a directory"
    3 ENOENT "No such file or directory"
    4 EACCES "Permission denied"
    5 EEXIST "File exists"
    6 EINVAL "Invalid argument"
    7 ENOTEMPTY "Directory not empty"
    8 CHUNKLOST "Chunk lost"
    9 OUTOFMEMORY "Out of memory"
    10 INDEXTOOBIG "Index too big"
    11 LOCKED "Chunk locked"
    12 NOCHUNKSERVERS "No chunk servers"
    13 NOCHUNK "No such chunk"
    14 CHUNKBUSY "Chunk is busy"
    15 REGISTER "Incorrect register BLOB"
    16 NOTDONE "Operation not completed"
    17 NOTOPENED "File not opened"
    18 NOTSTARTED "Write not started"
    19 WRONGVERSION "Wrong chunk version"
    20 CHUNKEXIST "Chunk already exists"
    21 NOSPACE "No space left"
    22 IO "IO error"
    23 BNUMTOOBIG "Incorrect block number"
    24 WRONGSIZE "Incorrect size"
    25 WRONGOFFSET "Incorrect offset"
    26 CANTCONNECT "Can't connect"
    27 WRONGCHUNKID "Incorrect chunk id"
    28 DISCONNECTED "Disconnected"
    29 CRC "CRC error"
    30 DELAYED "Operation delayed"
    31 CANTCREATEPATH "Can't create path"
    32 MISMATCH "Data mismatch"
    33 EROFS "Read-only file system"
    34 QUOTA "Quota exceeded"
    35 BADSESSIONID "Bad session id"
    36 NOPASSWORD "Password is needed"
    37 BADPASSWORD "Incorrect password"
    38 ENOATTR "Attribute not found"
    39 ENOTSUP "Operation not supported"
    40 ERANGE "Result too large"
    41 NOTFOUND "Entity not found"
    42 ACTIVE "Entity is active"
    43 CSNOTPRESENT "Chunkserver not present"
    44 WAITING "Waiting on lock"
    45 EAGAIN "Resource temporarily unavailable"
    46 EINTR "Interrupted system call"
    47 ECANCELED "Operation canceled"
    48 ENOENT_NOCACHE "No such file or directory (not cacheable)"
    49 EPERM_NOTADMIN "Operation not permitted (mfs admin only)"
    50 CLASSEXISTS "Class name already in use"
    51 CLASSLIMITREACH "Maximum number of classes reached"
    52 NOSUCHCLASS "No such class"
    53 CLASSINUSE "Class in use"
    54 INCOMPATVERSION "One of MFS instance components is too old to perform this operation"
    55 PATTERNEXISTS "Pattern already defined"
    56 PATLIMITREACHED "Maximum number of patterns reached"
    57 NOSUCHPATTERN "No such pattern"
    58 ENAMETOOLONG "File name too long"
    59 EMLINK "Too many links"
    60 ETIMEDOUT "Operation timed out"
    61 EBADF "Bad file descriptor"
    62 EFBIG "File too large"
    63 EISDIR "Is a directory"
}

impl Status {
    pub fn is_ok(self) -> bool {
        self == Status::OK
    }

    /// `Ok(())` for OK, else the status as an error.
    pub fn into_result(self) -> Result<(), Status> {
        if self.is_ok() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {}", self.0),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.0)
    }
}

impl std::error::Error for Status {}
