//! What the network alone costs: answers every request of a mount at once with one answer of a usual length, without
//! looking anything up and without a journal. A master on one core and this ring has its work on top of that.
//!
//! Takes the arguments of `mooring`, so that it can be a subject of `bench/master.sh`:
//! `--subject 'Echo=mooring@target/release/echo'`.

use std::net::SocketAddr;
use std::process::ExitCode;

use ring::{BufferedReader, Options, Ring, Stream};
use wire::{
    CltomaFuseReaddir, CltomaFuseRegister, CltomaFuseUnlink, HEADER_BYTES, Header, MatoclFuseRegister, MetaId, Packet,
    SessionId, SessionLimits, VersionWord,
};

const RECEIVE_BYTES: usize = 256 << 10;
/// Inode and attributes, as LOOKUP, MKNOD and GETATTR have them, more or less.
const ANSWER: [u8; 39] = [1; 39];
/// As much as READDIR answers for a thousand entries with attributes, 12 letters each or so.
static LISTING: [u8; 52_000] = [1; 52_000];

fn main() -> ExitCode {
    let served = address().and_then(|address| {
        ring::run(Options::default(), |ring| serve(ring, address)).map_err(|error| error.to_string())?
    });
    if let Err(problem) = served {
        eprintln!("echo: {problem}");
    }
    ExitCode::FAILURE
}

/// From the configuration file behind `-c`.
fn address() -> Result<SocketAddr, String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != "-c").skip(1);
    let path = arguments.next().ok_or("usage: echo master -c FILE -f")?;
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let value = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        let found = pairs.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned());
        found.ok_or(format!("{path}: {name} is missing"))
    };
    let address = format!("{}:{}", value("MATOCL_LISTEN_HOST")?, value("MATOCL_LISTEN_PORT")?);
    address.parse().map_err(|error| format!("{address}: {error}"))
}

async fn serve(ring: Ring, address: SocketAddr) -> Result<(), String> {
    let listener = ring.listen(address).map_err(|error| format!("{address}: {error}"))?;
    loop {
        let stream = listener.accept().await.map_err(|error| error.to_string())?;
        drop(ring.spawn(answer(stream)));
    }
}

async fn answer(stream: Stream) {
    let mut reader = BufferedReader::new(stream.clone(), RECEIVE_BYTES);
    let mut answers = Vec::new();
    while reader.fill(reader.buffered().len() + 1).await.is_ok() {
        while let Some(header) = reader.buffered().first_chunk().map(Header::decode)
            && let Some(payload) = reader.buffered().get(HEADER_BYTES..HEADER_BYTES + header.length as usize)
        {
            put_answer(header.kind, payload, &mut answers);
            reader.consume(HEADER_BYTES + header.length as usize);
        }
        let sent;
        (sent, answers) = stream.send_all(answers).await;
        if sent.is_err() {
            return;
        }
        answers.clear();
    }
}

fn put_answer(kind: u32, payload: &[u8], out: &mut Vec<u8>) {
    let msgid = &payload[..payload.len().min(4)];
    let answer = match kind {
        CltomaFuseRegister::TYPE => return out.extend(session().encode()),
        CltomaFuseReaddir::TYPE => &LISTING[..],
        CltomaFuseUnlink::TYPE => &[0],
        _ => &ANSWER[..],
    };
    let length = (msgid.len() + answer.len()) as u32;
    out.extend_from_slice(&Header { kind: kind + 1, length }.encode());
    out.extend_from_slice(msgid);
    out.extend_from_slice(answer);
}

fn session() -> MatoclFuseRegister {
    let limits = SessionLimits {
        sesflags: 0,
        umask: 0,
        rootuid: 0,
        rootgid: 0,
        mapalluid: 0,
        mapallgid: 0,
        mingoal: 1,
        maxgoal: 9,
        mintrashtime: 0,
        maxtrashtime: u32::MAX,
        disables: 0,
    };
    MatoclFuseRegister::Session { version: VersionWord::OURS, sessionid: SessionId(1), metaid: Some(MetaId(1)), limits }
}
