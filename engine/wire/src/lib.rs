//! Packets, fields, status codes and limits of the MooseFS protocol: bytes in, values out. No IO.
//!
//! A packet is declared once, in a table (`codec::packets!`); its encoder, decoder, length, dump and tests come from
//! that. Names follow the specification's: CLTOCS_READ is `CltocsRead`. Payload bytes of READ_DATA and WRITE_DATA
//! never pass through the codec. Byte order is written here (and in `chunk::layout`), nowhere else.
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "widths are the protocol's: each cast here cuts on purpose")]

pub mod addresses;
pub mod any;
pub mod charts;
pub mod chunkserver;
pub mod codec;
pub mod data;
pub mod extension;
pub mod fs;
pub mod limits;
pub mod metalogger;
pub mod registry;
pub mod session;
mod status;
pub mod ticket;
pub mod time;
pub mod types;

pub use addresses::{AddressList, AddressRange, Refusals, address_range};
pub use any::*;
pub use charts::*;
pub use chunkserver::{
    CstomaChunkDamaged, CstomaChunkLost, CstomaChunkNew, CstomaChunkop, CstomaCreate, CstomaCurrentLoad, CstomaDelete,
    CstomaDuplicate, CstomaDuptrunc, CstomaErrorOccurred, CstomaLabels, CstomaReplicate, CstomaSetVersion, CstomaSpace,
    CstomaTruncate, MatocsChunkop, MatocsCreate, MatocsDelete, MatocsDuplicate, MatocsDuptrunc, MatocsReplicate,
    MatocsSetVersion, MatocsTruncate,
};
pub use chunkserver::{CstomaRegister, MatocsMasterAck, RegisterBegin, ServerSpace};
pub use codec::{Entry, Field, HEADER_BYTES, Header, Input, Packet, Seed, WireError};
pub use data::*;
pub use extension::*;
pub use fs::*;
pub use metalogger::{
    AntomaDownloadEnd, AntomaDownloadRequest, AntomaDownloadStart, AntomaRegister, MatoanDownloadData,
    MatoanDownloadInfo, MatoanDownloadMissing, MatoanMetachangesLog,
};
pub use session::*;
pub use ticket::{GivenTicket, TicketKey, ticket_rights};
pub use time::Time;
pub use types::*;
