//! The door for file tools (mfsgetgoal, mfssetgoal ...): they talk to the mount, which asks the master in its own
//! session. Spec 72, 2.1; Spec 30, 7.
//!
//! A tool finds address and port in `.masterinfo`. Its registration is answered here; every other packet goes to the
//! master with the mount's own message id, and the answer comes back with the tool's.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use client::Client;
use ring::{BufferedReader, Ring, Stream};

/// Longest question, as a 4.x mount takes it. Spec 72, 2.1.
const QUESTION_BYTES_MAX: u32 = 65536;
/// Longest answer.
const ANSWER_BYTES_MAX: usize = 4_000_000;
/// How long a tool may think between two questions.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);
/// Tools served at a time; one more waits in the listener's queue.
const TOOLS_MAX: usize = 64;

const CLTOMA_FUSE_REGISTER: u32 = 400;
const MATOCL_FUSE_REGISTER: u32 = 401;
/// `rcode` of a tool's registration, behind the 64 bytes of the blob.
const REGISTER_TOOLS: u8 = 4;
const REGISTER_BLOB_BYTES: usize = 64;

/// Start listening at a free port of `at`, serve until the ring ends. Returns the address. Errors: the system's.
pub fn start(ring: &Ring, client: Client, at: Ipv4Addr) -> std::io::Result<SocketAddrV4> {
    let listener = ring.listen(SocketAddr::from((at, 0)))?;
    let SocketAddr::V4(address) = listener.local() else {
        return Err(std::io::Error::other("an IPv4 address was listened at"));
    };
    let slots = Rc::new(ring::local::Semaphore::new(TOOLS_MAX));
    ring.spawn({
        let ring = ring.clone();
        async move {
            loop {
                let slot = slots.acquire(1).await;
                match listener.accept().await {
                    Ok(stream) => {
                        let (ring_of_tool, client) = (ring.clone(), client.clone());
                        ring.spawn(async move {
                            if serve_tool(&ring_of_tool, stream, &client).await.is_none() {
                                tracing::debug!("a file tool's connection ended");
                            }
                            drop(slot);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the proxy for file tools does not accept a connection");
                        ring.sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }
    });
    Ok(address)
}

/// Answer questions until the tool hangs up or says something wrong; then the connection is closed.
async fn serve_tool(ring: &Ring, stream: Stream, client: &Client) -> Option<()> {
    let mut reader = BufferedReader::new(stream.clone(), 4096);
    loop {
        let question = ring.timeout(IDLE_TIMEOUT, read_packet(&mut reader)).await.ok()??;
        let answer = match question.kind {
            CLTOMA_FUSE_REGISTER => register(&question.payload)?,
            kind => {
                let (msgid, rest) = question.payload.split_at_checked(4)?;
                let (kind, payload) = client.forward(kind, rest).await.ok()?;
                if payload.len() > ANSWER_BYTES_MAX {
                    return None;
                }
                packet(kind, &[msgid, &payload])
            }
        };
        stream.send_all(answer).await.0.ok()?;
    }
}

struct Question {
    kind: u32,
    payload: Vec<u8>,
}

async fn read_packet(reader: &mut BufferedReader) -> Option<Question> {
    let head: [u8; wire::HEADER_BYTES] =
        reader.fill(wire::HEADER_BYTES).await.ok()?[..wire::HEADER_BYTES].try_into().ok()?;
    let header = wire::Header::decode(&head);
    if header.length > QUESTION_BYTES_MAX {
        return None;
    }
    reader.consume(wire::HEADER_BYTES);
    let length = header.length as usize;
    let payload = reader.fill(length).await.ok()?[..length].to_vec();
    reader.consume(length);
    Some(Question { kind: header.kind, payload })
}

/// A tool registers with the session that `.masterinfo` named; nothing is checked, as in the original.
fn register(payload: &[u8]) -> Option<Vec<u8>> {
    (payload.get(REGISTER_BLOB_BYTES) == Some(&REGISTER_TOOLS))
        .then(|| packet(MATOCL_FUSE_REGISTER, &[&[wire::Status::OK.0]]))
}

fn packet(kind: u32, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = Vec::with_capacity(wire::HEADER_BYTES + length);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&u32::try_from(length).expect("bounded by ANSWER_BYTES_MAX").to_be_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_is_registered_by_its_code_alone() {
        let mut payload = vec![0; 73];
        payload[64] = REGISTER_TOOLS;
        assert_eq!(register(&payload), Some(vec![0, 0, 1, 0x91, 0, 0, 0, 1, 0]));
        payload[64] = 3;
        assert_eq!(register(&payload), None);
        assert_eq!(register(&[]), None);
    }
}
