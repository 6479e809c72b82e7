//! Every request of a client, declared once: its packet, who may ask it, its handler, whether it may have to wait for
//! chunkservers, and whether it asks for a change. All else follows from here, above all when its answer may leave.
//!
//! | how | the handler gets | and |
//! |---|---|---|
//! | `direct` | the request and its decoded packet | answers at once |
//! | `as_bytes` | the request and the packet's payload | answers at once; the packet has several forms |
//! | `waiting` | master, asker and decoded packet | may become a task, which answers later |
//! | `anybody` | master, connection, payload | serves those who have not registered too |
//!
//! The number of an answer is that of its request and 1. An answer with attributes says so by `wire::LONG_TIMES`.

use wire::{
    AntoanGetConfig, AntoanGetVersion, CltoanChart, CltoanChartData, CltoanModuleInfo, CltoanMonotonicData,
    CltomaFuseAccess, CltomaFuseAmtimeInodes, CltomaFuseAppendSlice, CltomaFuseArchctl, CltomaFuseCheck,
    CltomaFuseCreate, CltomaFuseFlock, CltomaFuseGetattr, CltomaFuseGetdetachedattr, CltomaFuseGetdirstats,
    CltomaFuseGeteattr, CltomaFuseGetfacl, CltomaFuseGetsclass, CltomaFuseGetsustained, CltomaFuseGettrash,
    CltomaFuseGettrashpath, CltomaFuseGettrashtime, CltomaFuseGetxattr, CltomaFuseLink, CltomaFuseLookup,
    CltomaFuseMkdir, CltomaFuseMknod, CltomaFuseOpen, CltomaFuseParents, CltomaFusePaths, CltomaFusePosixLock,
    CltomaFusePurge, CltomaFuseQuotacontrol, CltomaFuseReadChunk, CltomaFuseReaddir, CltomaFuseReadlink,
    CltomaFuseRegister, CltomaFuseRename, CltomaFuseRepair, CltomaFuseRmdir, CltomaFuseSetattr, CltomaFuseSeteattr,
    CltomaFuseSetfacl, CltomaFuseSetsclass, CltomaFuseSettrashpath, CltomaFuseSettrashtime, CltomaFuseSetxattr,
    CltomaFuseSnapshot, CltomaFuseStatfs, CltomaFuseSustainedInodes, CltomaFuseSymlink, CltomaFuseTimeSync,
    CltomaFuseTruncate, CltomaFuseUndel, CltomaFuseUnlink, CltomaFuseWriteChunk, CltomaFuseWriteChunkEnd,
    CltomaNodeInfo, CltomaSclassChange, CltomaSclassCreate, CltomaSclassDelete, CltomaSclassDuplicate,
    CltomaSclassList, CltomaSclassRename, CltomaWhy, CltomaWriteUncleanEnd, Packet, WireError,
};

use super::{Request, Who, admin, data, monitor, names, register, why};
use crate::master::Shared;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It asks for no change, so its answer leaves at once, unless it changed something all the same. OPEN is among
    /// them: that a file is open is told again by its client. Spec 30, 5.2.
    Looks,
    /// It asks for a change. Its answer, a refusal too, waits until all that was changed before is durable: another's
    /// change may be why.
    Changes,
    /// It tells something and gets no answer.
    Tells,
}

type Reason = String;

/// How a request is served. See the table above.
#[derive(Clone, Copy)]
pub(super) enum Serve {
    Direct(fn(&mut Request<'_>, &[u8]) -> Result<(), WireError>),
    Waiting(fn(&Shared, Who, &[u8]) -> Result<(), WireError>),
    /// Gets the connection and what is asked. An error is the reason to hang up.
    Anybody(fn(&Shared, u64, &'static Entry, &[u8]) -> Result<(), Reason>),
}

pub(super) struct Entry {
    pub(super) kind: u32,
    pub(super) purpose: Purpose,
    pub(super) serve: Serve,
}

macro_rules! serve {
    (direct $packet:ty => $handler:expr) => {
        Serve::Direct(|request, payload| {
            $handler(request, &<$packet>::decode(payload)?);
            Ok(())
        })
    };
    (as_bytes $packet:ty => $handler:expr) => {
        Serve::Direct($handler)
    };
    (waiting $packet:ty => $handler:expr) => {
        Serve::Waiting(|master, who, payload| {
            $handler(master, who, <$packet>::decode(payload)?);
            Ok(())
        })
    };
    (anybody $packet:ty => $handler:expr) => {
        Serve::Anybody($handler)
    };
}

macro_rules! purpose {
    (looks) => {
        Purpose::Looks
    };
    (changes) => {
        Purpose::Changes
    };
    (tells) => {
        Purpose::Tells
    };
}

macro_rules! requests {
    (
        packets { $( $how:ident $purpose:ident $packet:ident => $handler:expr; )* }
        numbers { $( $number_purpose:ident $number:expr => $serve:expr; )* }
    ) => {
        pub(super) static REQUESTS: &[Entry] = &[
            $( Entry { kind: <$packet>::TYPE, purpose: purpose!($purpose), serve: serve!($how $packet => $handler) }, )*
            $( Entry { kind: $number, purpose: purpose!($number_purpose), serve: $serve }, )*
        ];
    };
}

requests! { packets {
    // How a connection comes in; what anybody may ask. Spec 30, 3; Spec 10, 2.
    anybody changes CltomaFuseRegister => register::register;
    anybody looks AntoanGetVersion => super::get_version;
    anybody looks AntoanGetConfig => super::get_config;
    // What a mount tells, and the time. Spec 30, 5 and 6.
    direct tells CltomaFuseSustainedInodes => Request::sustained_inodes;
    as_bytes tells CltomaFuseAmtimeInodes => names::access_times;
    waiting looks CltomaFuseTimeSync => super::time_sync;
    // Names, nodes, attributes. Spec 31, 31.3 to 31.6.
    direct looks CltomaFuseStatfs => Request::statfs;
    direct looks CltomaFuseAccess => Request::access;
    direct looks CltomaFuseLookup => Request::lookup;
    direct looks CltomaFuseGetattr => Request::getattr;
    as_bytes changes CltomaFuseSetattr => names::setattr;
    direct looks CltomaFuseReadlink => Request::readlink;
    direct changes CltomaFuseSymlink => Request::symlink;
    direct changes CltomaFuseMknod => Request::mknod;
    direct changes CltomaFuseMkdir => Request::mkdir;
    direct changes CltomaFuseUnlink => Request::unlink;
    direct changes CltomaFuseRmdir => Request::rmdir;
    direct changes CltomaFuseRename => Request::rename;
    direct changes CltomaFuseLink => Request::link;
    direct looks CltomaFuseReaddir => Request::readdir;
    direct looks CltomaFuseOpen => Request::open;
    direct changes CltomaFuseCreate => Request::create;
    // Data and its chunks. Spec 31, 31.7 to 31.9.
    waiting looks CltomaFuseReadChunk => data::serve;
    waiting changes CltomaFuseWriteChunk => data::serve;
    direct changes CltomaFuseWriteChunkEnd => data::write_chunk_end;
    direct changes CltomaFuseAppendSlice => Request::append_slice;
    waiting changes CltomaFuseTruncate => data::serve;
    direct changes CltomaFuseRepair => Request::repair;
    direct looks CltomaFuseCheck => Request::check;
    // Locks. Spec 31, 31.10. An answer may come much later, from `locks::deliver`.
    direct changes CltomaFuseFlock => Request::flock;
    direct changes CltomaFusePosixLock => Request::posix_lock;
    // Classes, trash times and the like of nodes; figures. Spec 32.
    direct looks CltomaFuseGettrashtime => Request::get_trash_time;
    direct changes CltomaFuseSettrashtime => Request::set_trash_time;
    direct looks CltomaFuseGetsclass => Request::get_class;
    direct changes CltomaFuseSetsclass => Request::set_class;
    direct looks CltomaFuseGeteattr => Request::get_eattr;
    direct changes CltomaFuseSeteattr => Request::set_eattr;
    direct changes CltomaFuseArchctl => Request::archive;
    direct looks CltomaFuseGetdirstats => Request::dir_stats;
    direct changes CltomaFuseQuotacontrol => Request::quota;
    direct looks CltomaFuseParents => Request::parents;
    direct looks CltomaFusePaths => Request::paths;
    direct looks CltomaNodeInfo => Request::node_info;
    direct changes CltomaFuseSnapshot => Request::snapshot;
    // Extended attributes and ACLs.
    direct looks CltomaFuseGetxattr => Request::get_xattr;
    direct changes CltomaFuseSetxattr => Request::set_xattr;
    direct looks CltomaFuseGetfacl => Request::get_acl;
    direct changes CltomaFuseSetfacl => Request::set_acl;
    // Trash and sustained files.
    direct looks CltomaFuseGettrash => Request::trash;
    direct looks CltomaFuseGetdetachedattr => Request::detached_attr;
    direct looks CltomaFuseGettrashpath => Request::trash_path;
    direct changes CltomaFuseSettrashpath => Request::set_trash_path;
    direct changes CltomaFuseUndel => Request::undelete;
    direct changes CltomaFusePurge => Request::purge;
    direct looks CltomaFuseGetsustained => Request::sustained;
    // Storage classes.
    direct changes CltomaSclassCreate => Request::class_create;
    direct changes CltomaSclassChange => Request::class_change;
    direct changes CltomaSclassDelete => Request::class_delete;
    direct changes CltomaSclassDuplicate => Request::class_duplicate;
    direct changes CltomaSclassRename => Request::class_rename;
    direct looks CltomaSclassList => Request::class_list;
    // Our own. See ARCHITECTURE.md, "Extensions".
    direct looks CltomaWhy => why::answer;
    direct changes CltomaWriteUncleanEnd => data::write_unclean_end;
    // Monitors and administrators. Spec 70.
    anybody looks CltoanModuleInfo => admin::handle;
    anybody looks CltoanMonotonicData => admin::handle;
    anybody looks CltoanChart => admin::handle;
    anybody looks CltoanChartData => admin::handle;
} numbers {
    tells 0 => Serve::Anybody(super::nothing);
    tells 1 => Serve::Anybody(super::nothing);
    tells 2 => Serve::Anybody(super::nothing);
    // SUSTAINED_INODES as it was numbered for masters before 3.0.74.
    tells 499 => serve!(direct CltomaFuseSustainedInodes => Request::sustained_inodes);
    looks admin::CSERV_LIST => Serve::Anybody(admin::handle);
    looks admin::SESSION_LIST => Serve::Anybody(admin::handle);
    looks admin::INFO => Serve::Anybody(admin::handle);
    looks admin::MLOG_LIST => Serve::Anybody(admin::handle);
    changes admin::CSSERV_COMMAND => Serve::Anybody(admin::handle);
    changes admin::SESSION_COMMAND => Serve::Anybody(admin::handle);
    looks monitor::FSTEST_INFO => Serve::Anybody(admin::handle);
    looks monitor::CHUNKSTEST_INFO => Serve::Anybody(admin::handle);
    looks monitor::CHUNKS_MATRIX => Serve::Anybody(admin::handle);
    looks monitor::QUOTA_INFO => Serve::Anybody(admin::handle);
    looks monitor::EXPORTS_INFO => Serve::Anybody(admin::handle);
    looks monitor::MEMORY_INFO => Serve::Anybody(admin::handle);
    looks monitor::LIST_OPEN_FILES => Serve::Anybody(admin::handle);
    looks monitor::LIST_ACQUIRED_LOCKS => Serve::Anybody(admin::handle);
    looks monitor::MASS_RESOLVE_PATHS => Serve::Anybody(admin::handle);
    looks monitor::SCLASS_INFO => Serve::Anybody(admin::handle);
    looks monitor::MISSING_CHUNKS => Serve::Anybody(admin::handle);
} }

/// Numbers below this have a place of their own in `PLACES`, and those from `OURS` on behind them.
const STOCK_MAX: usize = 800;
const OURS: usize = 10_000;
const OURS_MAX: usize = 128;
/// The place of a number that nobody serves.
const NONE: u8 = u8::MAX;
const _: () = assert!(REQUESTS.len() < NONE as usize);

/// Where each number stands in `REQUESTS`, so that to find a request costs two loads however many there are.
static PLACES: [u8; STOCK_MAX + OURS_MAX] = {
    let mut places = [NONE; STOCK_MAX + OURS_MAX];
    let mut at = 0;
    while at < REQUESTS.len() {
        let place = place(REQUESTS[at].kind).expect("a request's number is in one of the two ranges");
        assert!(places[place] == NONE, "a number is declared once");
        places[place] = at as u8;
        at += 1;
    }
    places
};

const fn place(kind: u32) -> Option<usize> {
    match kind as usize {
        stock @ ..STOCK_MAX => Some(stock),
        ours @ OURS.. if ours < OURS + OURS_MAX => Some(STOCK_MAX + ours - OURS),
        _ => None,
    }
}

/// The request of this number, without `wire::LONG_TIMES`.
pub(super) fn find(kind: u32) -> Option<&'static Entry> {
    REQUESTS.get(usize::from(PLACES[place(kind)?]))
}

/// Whether a packet is a request of the protocol that this master does not serve: it is refused, where nonsense ends the
/// connection. Spec 30, 2.
pub(super) fn is_known(kind: u32) -> bool {
    matches!(kind, 350..=390 | 402..=496 | 552 | 554) && kind.is_multiple_of(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_found_by_its_number() {
        for entry in REQUESTS {
            assert!(std::ptr::eq(find(entry.kind).expect("declared"), entry), "{}", entry.kind);
        }
        for kind in [3, 401, 498, STOCK_MAX as u32, 9_999, 10_002, 10_128, u32::MAX] {
            assert!(find(kind).is_none(), "{kind}");
        }
    }
}
