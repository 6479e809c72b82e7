//! A metadata file as text, one line an object, as `mfsmetadump` prints it. Spec 50, 11.

use std::io::Write as _;

use wire::Ip4;

use super::parser::{Head, Parser, Piece};
use super::records::{
    AclRecord, ClassRecord, NodeData, NodeRecord, QuotaRecord, Record, SessionRecord, TrashTime, words_of,
};
use super::{Broken, Section, StockError};

/// Letters of the kinds of nodes, by number. Spec 50, 11.
const KINDS: &[u8] = b"?-DLFBCSTR";
/// Stands between sections.
const DASHES: &str = "# -------------------------------------------------------------------\n";

/// Takes a file in pieces and gives its text.
pub struct Dump {
    parser: Parser,
    printer: Printer,
}

struct Printer {
    /// Points instead of bytes that cannot be printed.
    dots: bool,
    /// Print only this section: `HEAD`, or its four letters.
    only: Option<[u8; 4]>,
    shown: bool,
    section: Section,
    layout: u8,
    is_old: bool,
    out: Vec<u8>,
}

macro_rules! line {
    ($out:expr, $($text:tt)*) => { $out.write_fmt(format_args!($($text)*)).expect("memory takes all") };
}

impl Dump {
    /// `dots`: bytes of names that cannot be printed become points. `only`: `HEAD` or a section, all without it.
    pub fn new(dots: bool, only: Option<[u8; 4]>) -> Dump {
        let printer = Printer {
            dots,
            only,
            shown: only.is_none(),
            section: Section::Sessions,
            layout: 0,
            is_old: false,
            out: Vec::new(),
        };
        Dump { parser: Parser::new(), printer }
    }

    /// The next bytes of the file; returns the text that they give.
    pub fn push(&mut self, bytes: &[u8]) -> (Vec<u8>, Result<(), StockError>) {
        let Dump { parser, printer } = self;
        let result = parser.push(bytes, &mut |piece| {
            printer.piece(piece);
            Ok::<(), Broken>(())
        });
        (std::mem::take(&mut self.printer.out), result)
    }

    /// After all bytes. Errors: `Truncated`, `NotStock`, `New`.
    pub fn finish(&self) -> Result<(), StockError> {
        self.parser.finish()
    }
}

impl Printer {
    fn piece(&mut self, piece: Piece<'_>) {
        match piece {
            Piece::Head(head) => self.head(&head),
            Piece::Section { section, letters, layout, length } => {
                (self.section, self.layout) = (section, layout);
                self.shown = self.only.is_none_or(|only| only == letters);
                let (dots, out) = (self.dots, &mut self.out);
                if self.only.is_none() {
                    out.extend_from_slice(DASHES.as_bytes());
                }
                if self.is_old || !self.shown {
                    return;
                }
                let head = [letters[0], letters[1], letters[2], letters[3], b' ', b'0' + (layout >> 4), b'.'];
                let head = [&head[..], &[b'0' + (layout & 15)]].concat();
                out.extend_from_slice(b"# section header: ");
                put_text(&head, dots, out);
                out.extend_from_slice(b" (");
                put_hex(&head, out);
                line!(out, ") ; length: {}\n", length.unwrap_or(u64::MAX));
                let letters = letters.map(char::from);
                let name: String = letters.iter().collect();
                line!(out, "# section type: {name} ; version: 0x{layout:02X}\n");
            }
            Piece::Record(record) if self.shown => self.record(record),
            Piece::Record(_) => {}
            Piece::End => {
                if self.only.is_none() && !self.is_old {
                    line!(self.out, "{DASHES}# MFS END OF FILE MARKER\n{DASHES}");
                }
            }
        }
    }

    fn head(&mut self, head: &Head) {
        // What MooseFS's tool takes for a file without sections.
        self.is_old = head.format < 0x16;
        if self.only.is_some_and(|only| &only != b"HEAD") {
            return;
        }
        let out = &mut self.out;
        out.extend_from_slice(b"# header: ");
        put_text(&head.signature, self.dots, out);
        out.extend_from_slice(b" (");
        put_hex(&head.signature, out);
        out.extend_from_slice(b")\n");
        match head.old {
            None => line!(out, "# version: {} ; fileid: 0x{:X}\n", head.version, head.meta_id),
            Some((inodes, sessions)) => {
                line!(out, "# maxnodeid: {inodes} ; version: {} ; nextsessionid: {sessions}\n", head.version);
            }
        }
    }

    fn record(&mut self, record: Record<'_>) {
        let (dots, layout, out) = (self.dots, self.layout, &mut self.out);
        match record {
            Record::SessionsHead { dver, next, counters } => {
                out.extend_from_slice(b"# ");
                if let Some(dver) = dver {
                    line!(out, "dver: {dver} ; ");
                }
                line!(out, "nextsessionid: {next} ; statscount: {counters}\n");
            }
            Record::Session(session) => put_session(&session, layout, dots, out),
            Record::LabelDescription { label, text } => {
                line!(out, "LABELDESC|l:{}|n:", char::from(b'A' + label));
                put_text(text, dots, out);
                out.push(b'\n');
            }
            Record::Class(class) => put_class(&class, layout, dots, out),
            Record::NodesHead { inode_max, count } => {
                line!(out, "# maxinode: {inode_max}");
                if let Some(count) = count {
                    line!(out, " ; hashelements: {count}");
                }
                out.push(b'\n');
            }
            Record::Node(node) => put_node(&node, dots, out),
            Record::EdgesHead { next } => line!(out, "# nextedgeid: {next:016X}\n"),
            Record::Edge { parent, child, id, name } => {
                match parent {
                    0 => out.extend_from_slice(b"EDGE|p:      NULL"),
                    _ => line!(out, "EDGE|p:{parent:10}"),
                }
                line!(out, "|c:{child:10}|i:0x{id:016X}|n:");
                put_text(name, dots, out);
                out.push(b'\n');
            }
            Record::FreeHead { count } => line!(out, "# free nodes: {count}\n"),
            Record::Free { inode, since } => line!(out, "FREEID|i:{inode:10}|f:{since:10}\n"),
            Record::QuotasHead { count } => line!(out, "# quota nodes: {count}\n"),
            Record::Quota(quota) => put_quota(&quota, out),
            Record::Xattr { inode, name, value } => {
                line!(out, "XATTR|i:{inode:10}|n:");
                put_text(name, dots, out);
                out.extend_from_slice(b"|v:");
                put_hex(value, out);
                out.push(b'\n');
            }
            Record::Acl(acl) => put_acl(&acl, out),
            Record::Open { session, inode } => line!(out, "OPENFILE|s:{session:10}|i:{inode:10}\n"),
            Record::Lock { inode, owner, session, kind } => {
                // MooseFS's tool takes half of the owner for the session here, which helps nobody.
                let kind = if kind == 0 { 'R' } else { 'W' };
                line!(out, "FLOCK|i:{inode:10}|s:{session:10}|o:{owner:016X}|t:{kind}\n");
            }
            Record::Range { inode, owner, session, pid, start, end, kind } => {
                let kind = match kind {
                    1 => 'R',
                    2 => 'W',
                    _ => '?',
                };
                line!(out, "POSIXLOCK|i:{inode:10}|s:{session:10}|o:0x{owner:016X}|p:{pid:10}");
                line!(out, "|r:<{start:20},{end:20})|t:{kind}\n");
            }
            Record::ServersHead { count } => line!(out, "# chunk servers: {count}\n"),
            Record::Server { ip, port, csid, maintenance, until } => {
                out.extend_from_slice(b"CHUNKSERVER|i:");
                put_ip(ip, out);
                line!(out, "|p:{port:5}");
                if let Some(csid) = csid {
                    line!(out, "|#:{csid:5}");
                }
                match (maintenance, until) {
                    (Some(maintenance), Some(until)) => {
                        let word = ["off", "on", "temp"].get(usize::from(maintenance)).unwrap_or(&"?");
                        line!(out, "|m:{word:>4}|t:{until:10}");
                    }
                    (Some(maintenance), None) => line!(out, "|m:{maintenance}"),
                    _ => {}
                }
                out.push(b'\n');
            }
            Record::ChunksHead { next } => line!(out, "# nextchunkid: {next:016X}\n"),
            Record::Chunk { id, version, locked_to, archived } => {
                line!(out, "CHUNK|i:0x{id:016X}|v:0x{version:08X}|t:{locked_to:10}");
                if let Some(archived) = archived {
                    line!(out, "|a:{archived}");
                }
                out.push(b'\n');
            }
        }
    }
}

fn put_session(session: &SessionRecord<'_>, layout: u8, dots: bool, out: &mut Vec<u8>) {
    line!(out, "SESSION|s:{:10}", session.id);
    if let Some(sum) = session.exports_checksum {
        line!(out, "|e:#{sum}");
    }
    out.extend_from_slice(b"|p:");
    put_ip(session.peer_ip, out);
    let prefix = if layout == 0x13 { "" } else { "0x" };
    line!(out, "|r:{:10}|f:{prefix}{:02X}", session.root, session.flags);
    if let Some(umask) = session.umask {
        line!(out, "|u:0{umask:03o}");
    }
    let ((goal_min, goal_max), (trash_min, trash_max)) = (session.goals, session.trash_seconds);
    line!(out, "|g:{goal_min}-{goal_max}|t:{trash_min:10}-{trash_max:10}");
    let [root_uid, root_gid, all_uid, all_gid] = session.ids;
    line!(out, "|m:{root_uid:10},{root_gid:10},{all_uid:10},{all_gid:10}");
    if let Some(disables) = session.disables {
        line!(out, "|x:0x{disables:08X}");
    }
    if let Some(disconnected) = session.disconnected {
        line!(out, "|d:{disconnected:10}");
    }
    for (letter, counters) in [('c', &session.counters.0), ('l', &session.counters.1)] {
        let words: Vec<String> = counters.iter().map(u32::to_string).collect();
        line!(out, "|{letter}:[{}]", words.join(","));
    }
    out.extend_from_slice(b"|i:");
    put_text(session.info, dots, out);
    out.push(b'\n');
}

fn put_class(class: &ClassRecord<'_>, layout: u8, dots: bool, out: &mut Vec<u8>) {
    let (id, admin, mode, delay) = (class.id, class.admin_only, class.mode, class.arch_delay_days);
    line!(out, "SCLASS|#:{id:5}|x:{admin}|m:{mode}|d:{delay:5}");
    let lists: &[(&str, Option<&Vec<[u32; 4]>>)] = match layout {
        0x15.. => &[("c", Some(&class.create)), ("k", class.keep.as_ref()), ("a", class.arch.as_ref())],
        0x14 => &[("c", Some(&class.create)), ("k+a", class.keep.as_ref())],
        _ => &[("c+k+a", Some(&class.create))],
    };
    for (at, (name, list)) in lists.iter().enumerate() {
        let copies: Vec<String> = list.iter().flat_map(|list| list.iter()).map(expression).collect();
        line!(out, "{}|{name}: {}", if at == 0 { "" } else { " " }, copies.join(":"));
    }
    if let Some(name) = class.name {
        out.extend_from_slice(b" |n:");
        put_text(name, dots, out);
    }
    out.push(b'\n');
}

/// `AB+C`: labels of a mask together, masks as alternatives; `*` fits any server.
fn expression(masks: &[u32; 4]) -> String {
    if masks[0] == 0 {
        return "*".to_owned();
    }
    let letters =
        |mask: &u32| -> String { (0..26u8).filter(|at| mask >> at & 1 != 0).map(|at| char::from(b'A' + at)).collect() };
    let words: Vec<String> = masks.iter().take_while(|mask| **mask != 0).map(letters).collect();
    words.join("+")
}

fn put_node(node: &NodeRecord<'_>, dots: bool, out: &mut Vec<u8>) {
    let kind = char::from(*KINDS.get(usize::from(node.kind)).unwrap_or(&b'?'));
    line!(out, "NODE|k:{kind}|i:{:10}|#:{}|e:0x{:02X}", node.inode, node.class, node.eattr);
    if let Some(winattr) = node.winattr {
        line!(out, "|w:0x{winattr:X}");
    }
    line!(out, "|m:0{:04o}|u:{:10}|g:{:10}", node.mode, node.uid, node.gid);
    line!(out, "|a:{:10},m:{:10},c:{:10}", node.atime, node.mtime, node.ctime);
    match node.trash_time {
        TrashTime::Hours(hours) => line!(out, "|t:{hours:5}h"),
        TrashTime::Seconds(seconds) => line!(out, "|t:{seconds:10}s"),
    }
    match &node.data {
        NodeData::Nothing => {}
        NodeData::Device(rdev) => line!(out, "|d:{:5},{:5}", rdev >> 16, rdev & 0xFFFF),
        NodeData::Target(target) => {
            out.extend_from_slice(b"|p:");
            put_text(target, dots, out);
        }
        NodeData::File { length, chunks, sessions } => {
            let chunk = |id: u64| if id == 0 { "N".to_owned() } else { format!("{id:016X}") };
            let ids: Vec<String> = words_of::<8>(chunks).map(chunk).collect();
            line!(out, "|l:{length:20}|c:({})", ids.join(","));
            if let Some(sessions) = sessions {
                let ids: Vec<String> = words_of::<4>(sessions).map(|id| id.to_string()).collect();
                line!(out, "|r:({})", ids.join(","));
            }
        }
    }
    out.push(b'\n');
}

fn put_quota(quota: &QuotaRecord, out: &mut Vec<u8>) {
    line!(out, "QUOTA|i:{:10}", quota.inode);
    if let Some(grace) = quota.grace_seconds {
        line!(out, "|g:{grace}");
    }
    line!(out, "|e:{}|f:0x{:02X}|s:{:10}", quota.exceeded, quota.flags, quota.since);
    let limits = |(inodes, bytes): (u32, [u64; 3])| [u64::from(inodes), bytes[0], bytes[1], bytes[2]];
    let (soft, hard) = (limits(quota.soft), limits(quota.hard));
    for (kind, letter) in ['i', 'l', 's', 'r'].into_iter().enumerate() {
        let width = if kind == 0 { 10 } else { 20 };
        for (name, limit, bit) in [('s', soft[kind], 0x01 << kind), ('h', hard[kind], 0x10 << kind)] {
            match quota.flags & bit {
                0 => line!(out, "|{name}{letter}:{:>width$}", "-"),
                _ => line!(out, "|{name}{letter}:{limit:width$}"),
            }
        }
    }
    out.push(b'\n');
}

fn put_acl(acl: &AclRecord, out: &mut Vec<u8>) {
    let [user, group, other, mask] = acl.perms;
    line!(out, "POSIXACL|i:{:10}|t:{}", acl.inode, acl.kind);
    line!(out, "|u:0{user:05o}|g:0{group:05o}|o:0{other:05o}|m:0{mask:05o}|n:(");
    let entries = acl.users.iter().map(|entry| ('u', entry)).chain(acl.groups.iter().map(|entry| ('g', entry)));
    let words: Vec<String> = entries.map(|(letter, (id, perm))| format!("{letter}({id}):0{perm:05o}")).collect();
    line!(out, "{})\n", words.join(","));
}

fn put_ip(ip: Ip4, out: &mut Vec<u8>) {
    let [a, b, c, d] = [ip.0 >> 24, ip.0 >> 16 & 255, ip.0 >> 8 & 255, ip.0 & 255];
    line!(out, "{a:03}.{b:03}.{c:03}.{d:03}");
}

fn put_text(text: &[u8], dots: bool, out: &mut Vec<u8>) {
    out.extend(text.iter().map(|byte| if dots && !(32..127).contains(byte) { b'.' } else { *byte }));
}

fn put_hex(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        line!(out, "{byte:02X}");
    }
}
