//! What a chunkserver sends back, parsed where it lies.
//!
//! Received bytes come in pieces of any size; fronts are put together here, payload is shown to the caller where the
//! kernel put it and never copied, so that the measuring program costs as little as it can.

use wire::{AntoanNop, CstoclReadData, CstoclReadStatus, CstoclWriteStatus, HEADER_BYTES, Header, Packet, Status};

/// Something that has been received.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// Data begin: they come as `Bytes`, in pieces, `size` in all.
    Data(CstoclReadData),
    Bytes(&'a [u8]),
    /// The end of a read.
    ReadEnd(Status),
    /// The answer to one piece of data, or to the opening of the session: writeid 0.
    Written {
        writeid: u32,
        status: Status,
    },
}

/// The parser's state between two pieces.
#[derive(Default)]
pub struct Replies {
    /// Header and head of the packet that is being received.
    front: [u8; CstoclReadData::FRONT_BYTES],
    filled: usize,
    data_left: usize,
}

impl Replies {
    /// Shows `take` all that `bytes` complete. Errors: what no chunkserver may send here.
    pub fn feed<'a>(
        &mut self,
        mut bytes: &'a [u8],
        mut take: impl FnMut(Event<'a>) -> Result<(), String>,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            if self.data_left > 0 {
                let (data, rest) = bytes.split_at(self.data_left.min(bytes.len()));
                self.data_left -= data.len();
                bytes = rest;
                take(Event::Bytes(data))?;
                continue;
            }
            let wanted = self.front_bytes()?;
            let (part, rest) = bytes.split_at((wanted - self.filled).min(bytes.len()));
            self.front[self.filled..self.filled + part.len()].copy_from_slice(part);
            self.filled += part.len();
            bytes = rest;
            if self.filled == self.front_bytes()? {
                self.filled = 0;
                if let Some(event) = self.event()? {
                    take(event)?;
                }
            }
        }
        Ok(())
    }

    fn header(&self) -> Header {
        Header::decode(self.front.first_chunk::<HEADER_BYTES>().expect("the front is longer"))
    }

    /// Bytes of the front, as far as it is known. Errors: a packet that has no place here.
    fn front_bytes(&self) -> Result<usize, String> {
        if self.filled < HEADER_BYTES {
            return Ok(HEADER_BYTES);
        }
        match self.header() {
            Header { kind: AntoanNop::TYPE, length: 0 } => Ok(HEADER_BYTES),
            Header { kind: CstoclReadStatus::TYPE, length: 9 } => Ok(HEADER_BYTES + 9),
            Header { kind: CstoclWriteStatus::TYPE, length: 13 } => Ok(HEADER_BYTES + 13),
            Header { kind: CstoclReadData::TYPE, .. } => Ok(CstoclReadData::FRONT_BYTES),
            Header { kind, length } => Err(format!("the server sent a packet of type {kind} with {length} bytes")),
        }
    }

    /// The packet whose front is complete; None for a NOP.
    fn event(&mut self) -> Result<Option<Event<'static>>, String> {
        let Header { kind, length } = self.header();
        let payload = &self.front[HEADER_BYTES..];
        let event = match kind {
            CstoclReadStatus::TYPE => {
                CstoclReadStatus::decode(&payload[..9]).map(|end| Some(Event::ReadEnd(end.status)))
            }
            CstoclWriteStatus::TYPE => CstoclWriteStatus::decode(&payload[..13])
                .map(|written| Some(Event::Written { writeid: written.writeid, status: written.status })),
            CstoclReadData::TYPE => CstoclReadData::decode_head(length, payload).map(|head| {
                self.data_left = head.size as usize;
                Some(Event::Data(head))
            }),
            _ => Ok(None),
        };
        event.map_err(|error| format!("the server sent a bad packet of type {kind}: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{ChunkId, Crc};

    #[test]
    fn a_stream_means_the_same_in_pieces_of_any_size() {
        let data = [7u8; 100];
        let head =
            CstoclReadData { chunkid: ChunkId(1), blocknum: 2, offset: 3, size: 100, crc: Crc(crc32fast::hash(&data)) };
        let mut stream = AntoanNop {}.encode();
        stream.extend(head.front());
        stream.extend(data);
        stream.extend(CstoclReadStatus { chunkid: ChunkId(1), status: Status::OK }.encode());
        stream.extend(CstoclWriteStatus { chunkid: ChunkId(1), writeid: 9, status: Status::CRC }.encode());
        for piece_bytes in 1..=stream.len() {
            let mut replies = Replies::default();
            let (mut seen, mut received) = (Vec::new(), Vec::new());
            for piece in stream.chunks(piece_bytes) {
                let take = |event: Event<'_>| {
                    match event {
                        Event::Bytes(bytes) => received.extend_from_slice(bytes),
                        event => seen.push(format!("{event:?}")),
                    }
                    Ok(())
                };
                replies.feed(piece, take).expect("a good stream");
            }
            let expected =
                [Event::Data(head), Event::ReadEnd(Status::OK), Event::Written { writeid: 9, status: Status::CRC }];
            assert_eq!(seen, expected.map(|event| format!("{event:?}")), "in pieces of {piece_bytes}");
            assert_eq!(received, data);
        }
    }

    #[test]
    fn a_packet_that_has_no_place_is_an_error() {
        let check = |header: Header| Replies::default().feed(&header.encode(), |_| Ok(()));
        assert!(check(Header { kind: 0, length: 8 }).is_err());
        assert!(check(Header { kind: CstoclReadStatus::TYPE, length: 10 }).is_err());
        assert!(check(Header { kind: 77, length: 0 }).is_err());
        let mut front = CstoclReadData { chunkid: ChunkId(1), blocknum: 0, offset: 0, size: 5, crc: Crc(0) }.front();
        front[7] += 1; // the header's length no longer fits the size
        assert!(Replies::default().feed(&front, |_| Ok(())).is_err());
    }
}
