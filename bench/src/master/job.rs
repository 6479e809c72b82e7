//! What is asked of a master: one job, by its name.
//!
//! `OP[-nCONNECTIONS][-qWINDOW]`: `lookup-n32` is 32 mounts with one request under way each, `create-n8-q16` 8 mounts with 16.

use std::str::FromStr;

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// A name that is there, anywhere in the tree.
    Lookup,
    /// A file's attributes, anywhere in the tree.
    Getattr,
    /// A whole folder with attributes, in one answer.
    Readdir,
    /// A new file, not opened.
    Mknod,
    /// A new file, opened, as open(2) with O_CREAT does.
    Create,
    /// A new name in the same folder.
    Rename,
    /// Into the trash, as it is set by default.
    Unlink,
}

const OPS: [(&str, Op); 7] = [
    ("lookup", Op::Lookup),
    ("getattr", Op::Getattr),
    ("readdir", Op::Readdir),
    ("mknod", Op::Mknod),
    ("create", Op::Create),
    ("rename", Op::Rename),
    ("unlink", Op::Unlink),
];

/// Connections, and requests under way on each, that one job may have.
pub const MOST: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    pub op: Op,
    /// Each is a mount with a session of its own.
    pub connections: usize,
    /// Requests under way on each connection.
    pub window: usize,
}

impl FromStr for Job {
    type Err = String;

    fn from_str(name: &str) -> Result<Job, String> {
        let wrong =
            || format!("job {name:?}: must be OP[-nCONNECTIONS][-qWINDOW], each 1 to {MOST}, such as lookup-n32");
        let mut words = name.split('-');
        let op = words.next().and_then(|word| OPS.iter().find(|(name, _)| *name == word)).ok_or_else(wrong)?.1;
        let mut job = Job { name: name.to_owned(), op, connections: 1, window: 1 };
        for word in words {
            let number = || word.get(1..)?.parse().ok().filter(|number| (1..=MOST).contains(number));
            let place = match word.chars().next() {
                Some('n') => &mut job.connections,
                Some('q') => &mut job.window,
                _ => return Err(wrong()),
            };
            *place = number().ok_or_else(wrong)?;
        }
        Ok(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_what_its_name_says() {
        let job = "create-n8-q16".parse();
        assert_eq!(job, Ok(Job { name: "create-n8-q16".into(), op: Op::Create, connections: 8, window: 16 }));
        for bad in ["", "look", "lookup-n0", "lookup-n257", "lookup-x3", "lookup-n"] {
            assert!(bad.parse::<Job>().is_err(), "{bad}");
        }
    }
}
