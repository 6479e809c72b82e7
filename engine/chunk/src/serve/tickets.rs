//! Who may read or write which chunk, by the ticket that the connection showed last. See `wire::ticket`.

use wire::{ChunkId, CltocsTicket, ticket_rights};

use super::Connection;
use crate::settings::Tickets;

/// What a ticket allowed when it was shown. A request that began in time may end later.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Admission {
    chunk: ChunkId,
    rights: u8,
    /// Unix seconds.
    expires: u32,
}

impl Connection {
    /// A ticket that is not good takes the place of one that was.
    pub(super) fn take_ticket(&mut self, ticket: &CltocsTicket) {
        let Some(key) = self.server.settings.ticket_key() else { return };
        self.admission = if key.admits(ticket, self.server.ring.wall_seconds()) {
            Admission { chunk: ticket.chunkid, rights: ticket.rights, expires: ticket.expires }
        } else {
            tracing::debug!("{}: a ticket for chunk {} that is not good", self.peer, ticket.chunkid);
            Admission::default()
        };
    }

    /// Whether this connection may do that to the chunk. `right`: one of `ticket_rights`.
    pub(super) fn may(&self, chunk: ChunkId, right: u8) -> bool {
        if self.server.settings.get().tickets != Tickets::Require {
            return true;
        }
        let Admission { chunk: admitted, rights, expires } = self.admission;
        let may = admitted == chunk && rights & right != 0 && self.server.ring.wall_seconds() <= expires;
        if !may && let Some(count) = self.server.refusals.count(u64::from(self.server.ring.wall_seconds())) {
            let what = if right == ticket_rights::WRITE { "write" } else { "read" };
            tracing::warn!(peer = %self.peer, count, "refused to {what} chunk {chunk}: no ticket for that was shown");
        }
        may
    }
}
