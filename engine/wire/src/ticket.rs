//! Tickets: what a session may do to a chunk, signed by the master, shown to chunkservers.
//!
//! ```text
//! master   AUTH_CODE -> key; answers READ_CHUNK and WRITE_CHUNK with a ticket: chunk, rights, end, proof
//! mount    shows it (`CltocsTicket`) on a connection before its READ or WRITE
//! server   AUTH_CODE -> the same key: no question to the master, no list of sessions
//! ```
//!
//! The proof is a keyed BLAKE3 hash, cut to 16 bytes. A ticket is for whoever holds it: it does not name the session, so
//! a chunkserver that holds the key signs for itself what it passes down a chain or copies from another server. Versions
//! are not signed; they are checked by the chunkserver as ever, and keep a writer out that was overtaken.

use crate::codec::{Field, Input, Seed, WireError};
use crate::extension::CltocsTicket;
use crate::types::ChunkId;

/// Bits of `CltocsTicket::rights`.
pub mod ticket_rights {
    pub const READ: u8 = 1;
    pub const WRITE: u8 = 2;
}

/// A ticket in the master's answer about a chunk, which the answer names besides: what `CltocsTicket` has behind the
/// chunk. Takes no bytes where none was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenTicket(pub Option<(u8, u32, [u8; 16])>);

impl GivenTicket {
    pub fn new(ticket: &CltocsTicket) -> GivenTicket {
        GivenTicket(Some((ticket.rights, ticket.expires, ticket.proof)))
    }

    /// As it is shown to a chunkserver. `None`: the master gives none out.
    pub fn for_chunk(self, chunkid: ChunkId) -> Option<CltocsTicket> {
        let (rights, expires, proof) = self.0.filter(|(rights, ..)| *rights != 0)?;
        Some(CltocsTicket { chunkid, rights, expires, proof })
    }
}

impl Field for GivenTicket {
    fn put(&self, out: &mut Vec<u8>) {
        if let Some((rights, expires, proof)) = self.0 {
            rights.put(out);
            expires.put(out);
            proof.put(out);
        }
    }

    fn take(input: &mut Input<'_>) -> Result<GivenTicket, WireError> {
        if !input.has_long_times() {
            return Ok(GivenTicket(None));
        }
        Ok(GivenTicket(Some((u8::take(input)?, u32::take(input)?, <[u8; 16]>::take(input)?))))
    }

    fn width(&self) -> usize {
        self.0.map_or(0, |_| 21)
    }

    fn sample(_: &mut Seed) -> GivenTicket {
        GivenTicket(None)
    }
}

/// What master and chunkservers of a cluster share: made of AUTH_CODE.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey([u8; 32]);

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TicketKey(..)")
    }
}

impl TicketKey {
    pub fn new(auth_code: &[u8]) -> TicketKey {
        TicketKey(blake3::derive_key("Mooring 2026-12 tickets for chunks", auth_code))
    }

    /// A ticket for these rights, good until `expires` (Unix seconds).
    pub fn sign(&self, chunkid: ChunkId, rights: u8, expires: u32) -> CltocsTicket {
        CltocsTicket { chunkid, rights, expires, proof: self.proof(chunkid, rights, expires) }
    }

    /// Whether the ticket was signed with this key, and is good at `now` (Unix seconds).
    pub fn admits(&self, ticket: &CltocsTicket, now: u32) -> bool {
        let expected = self.proof(ticket.chunkid, ticket.rights, ticket.expires);
        // Without an early end: the time tells nothing about how many bytes fit.
        let differs = expected.iter().zip(&ticket.proof).fold(0, |differs, (a, b)| differs | (a ^ b));
        differs == 0 && now <= ticket.expires
    }

    fn proof(&self, chunkid: ChunkId, rights: u8, expires: u32) -> [u8; 16] {
        let mut signed = [0; 13];
        signed[..8].copy_from_slice(&chunkid.0.to_be_bytes());
        signed[8] = rights;
        signed[9..].copy_from_slice(&expires.to_be_bytes());
        let hash = blake3::keyed_hash(&self.0, &signed);
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_good_for_what_was_signed_and_nothing_else() {
        let key = TicketKey::new(b"secret");
        let ticket = key.sign(ChunkId(7), ticket_rights::READ, 1000);
        assert!(key.admits(&ticket, 1000));
        assert!(!key.admits(&ticket, 1001), "it has ended");
        assert!(!TicketKey::new(b"another").admits(&ticket, 5));
        let forged = [
            CltocsTicket { chunkid: ChunkId(8), ..ticket.clone() },
            CltocsTicket { rights: ticket_rights::READ | ticket_rights::WRITE, ..ticket.clone() },
            CltocsTicket { expires: 1001, ..ticket.clone() },
            CltocsTicket { proof: [0; 16], ..ticket },
        ];
        assert!(forged.iter().all(|ticket| !key.admits(ticket, 5)));
    }
}
