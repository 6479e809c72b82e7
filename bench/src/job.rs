//! What is done: one job, by its name.
//!
//! `OP-ORDER-SIZE[-nCONNECTIONS][-qWINDOW][-cCHAIN][-STATE]`, for instance `read-rand-64k-n32-cold` or
//! `write-seq-64k-n4-q8-c3-new`:
//!
//! | word | values | default |
//! |---|---|---|
//! | OP | `read`, `write` | |
//! | ORDER | `seq`: each connection goes through its own chunks; `rand` | |
//! | SIZE | bytes of one request: `4k` to `64m` for reads, to `64k` (one block) for writes | |
//! | `n` | connections, each with one read or one write session at a time | 1 |
//! | `q` | pieces of data under way in a write session; a reader sends its next request after the answer (Spec 20, 2.2) | 1 |
//! | `c` | servers in the write chain | 1 |
//! | STATE | reads: `cold`, each byte at most once and none of it in a cache; `hot`, few chunks again and again. Writes: `over` what is there; `new` chunks | `cold`, `over` |

use std::str::FromStr;

use wire::limits::{BLOCK_BYTES, CHUNK_BYTES};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Read,
    Write,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Sequential,
    Random,
}

/// What the chunks are before the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Cold,
    Hot,
    Over,
    New,
}

/// Connections that one job may have.
pub const CONNECTIONS_MAX: usize = 256;
/// Pieces of data that a write session may have under way.
pub const WINDOW_MAX: usize = 256;
/// Servers in a chain.
pub const CHAIN_MAX: usize = 3;
/// The smallest request, and what every request is a multiple of.
pub const UNIT_BYTES: u32 = 4 << 10;

/// One job. See the module for its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub name: String,
    pub op: Op,
    pub order: Order,
    pub request_bytes: u32,
    pub connections: usize,
    pub window: usize,
    pub chain: usize,
    pub state: State,
}

impl Job {
    /// Requests under way at a time.
    pub fn depth(&self) -> usize {
        self.connections * self.window
    }

    /// The chunks, out of `count`, that connection `connection` goes through.
    pub fn chunks_of(&self, connection: usize, count: usize) -> impl Iterator<Item = usize> + Clone + 'static {
        (connection..count).step_by(self.connections)
    }

    /// Does each request happen at most once, so that the job ends by itself?
    pub fn is_one_pass(&self) -> bool {
        match self.op {
            Op::Read => self.state == State::Cold,
            Op::Write => self.order == Order::Sequential,
        }
    }
}

impl FromStr for Job {
    type Err = String;

    fn from_str(name: &str) -> Result<Job, String> {
        let wrong = |why: &str| format!("job {name:?}: {why}; an example: write-seq-64k-n4-q8-c3-new");
        let mut words = name.split('-');
        let op = match words.next() {
            Some("read") => Op::Read,
            Some("write") => Op::Write,
            _ => return Err(wrong("begins with neither `read` nor `write`")),
        };
        let order = match words.next() {
            Some("seq") => Order::Sequential,
            Some("rand") => Order::Random,
            _ => return Err(wrong("the second word is neither `seq` nor `rand`")),
        };
        let request_bytes = words.next().and_then(bytes).ok_or_else(|| wrong("the third word is no size"))?;
        let state = if op == Op::Read { State::Cold } else { State::Over };
        let mut job =
            Job { name: name.to_owned(), op, order, request_bytes, connections: 1, window: 1, chain: 1, state };
        for word in words {
            let number = |most: usize| -> Result<usize, String> {
                let number = word.get(1..).and_then(|digits| digits.parse().ok());
                number
                    .filter(|number| (1..=most).contains(number))
                    .ok_or_else(|| wrong(&format!("{word:?}: 1 to {most}")))
            };
            match (word, word.chars().next()) {
                ("cold", _) => job.state = State::Cold,
                ("hot", _) => job.state = State::Hot,
                ("over", _) => job.state = State::Over,
                ("new", _) => job.state = State::New,
                (_, Some('n')) => job.connections = number(CONNECTIONS_MAX)?,
                (_, Some('q')) => job.window = number(WINDOW_MAX)?,
                (_, Some('c')) => job.chain = number(CHAIN_MAX)?,
                _ => return Err(wrong(&format!("{word:?} is none of n, q, c with a number, cold, hot, over, new"))),
            }
        }
        let most = if op == Op::Read { CHUNK_BYTES } else { BLOCK_BYTES };
        if !request_bytes.is_power_of_two() || !(UNIT_BYTES..=most).contains(&request_bytes) {
            return Err(wrong(&format!("the size must be a power of two, 4k to {} KiB", most >> 10)));
        }
        match (op, job.state) {
            (Op::Read, State::Over | State::New) => Err(wrong("a read is cold or hot")),
            (Op::Write, State::Cold | State::Hot) => Err(wrong("a write goes over what is there, or to new chunks")),
            (Op::Write, State::New) if order == Order::Random => Err(wrong("new chunks are written in order")),
            (Op::Read, _) if job.window > 1 || job.chain > 1 => {
                Err(wrong("a connection reads one thing at a time, from one server: use n"))
            }
            _ => Ok(job),
        }
    }
}

/// `4k`, `1m`, `4096`.
fn bytes(word: &str) -> Option<u32> {
    let (digits, shift) = match word.strip_suffix('k') {
        Some(digits) => (digits, 10),
        None => word.strip_suffix('m').map_or((word, 0), |digits| (digits, 20)),
    };
    digits.parse::<u32>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_all_of_a_job() {
        let job: Job = "write-seq-64k-n4-q8-c3-new".parse().expect("a good name");
        let expected = Job {
            name: "write-seq-64k-n4-q8-c3-new".into(),
            op: Op::Write,
            order: Order::Sequential,
            request_bytes: 65536,
            connections: 4,
            window: 8,
            chain: 3,
            state: State::New,
        };
        assert_eq!(job, expected);
        assert_eq!(job.depth(), 32);
        assert_eq!(job.chunks_of(1, 10).collect::<Vec<_>>(), [1, 5, 9]);
        assert_eq!("read-rand-1m".parse::<Job>().map(|job| (job.connections, job.state)), Ok((1, State::Cold)));
    }

    #[test]
    fn what_no_connection_can_do_is_refused() {
        for name in [
            "",
            "read",
            "read-up-4k",
            "read-rand-5k",
            "read-rand-128m",
            "read-rand-4k-q2",
            "read-rand-4k-new",
            "read-rand-4k-n0",
            "write-seq-128k",
            "write-rand-4k-new",
            "write-seq-4k-hot",
            "write-seq-4k-c4",
            "write-seq-4k-n",
            "write-seq-9999999999k",
        ] {
            assert!(name.parse::<Job>().is_err(), "{name}");
        }
    }
}
