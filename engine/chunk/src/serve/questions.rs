//! Questions about chunks, disks and the program itself. Spec 20, 8 and Spec 10, 2.

use std::rc::Rc;

use wire::types::Rest;
use wire::{
    AntoanConfigValue, AntoanGetConfig, AntoanGetVersion, AntoanVersion, AntoanVersionWithId, AntoclModuleInfo,
    AntoclModuleInfoWithId, AntocsGetChunkBlocks, AntocsGetChunkChecksum, AntocsGetChunkChecksumTab, ChunkId,
    CltoanModuleInfo, CltocsHddList, CltocsSyncChunk, CltocsSyncEpoch, Crc, CstoanChunkBlocks, CstoanChunkChecksum,
    CstoanChunkChecksumError, CstoanChunkChecksumTab, CstoanChunkChecksumTabError, CstoclHddList, CstoclSyncChunk,
    CstoclSyncEpoch, Header, Packet, Status, Version, VersionWord,
};
use wire::{AntoclChart, AntoclMonotonicData, CltoanChart, CltoanChartData, CltoanMonotonicData};

use super::{Connection, Hangup};
use crate::error::ChunkError;
use crate::server::{MODULE_CHUNKSERVER, Server};
use crate::sums::SumTable;

impl Connection {
    /// Answers a packet that is neither read nor write.
    pub(super) async fn answer(&mut self, header: Header) -> Result<(), Hangup> {
        let server = self.server.clone();
        let answer = match header.kind {
            AntocsGetChunkBlocks::TYPE => {
                let question = self.control::<AntocsGetChunkBlocks>(header).await?;
                let owner = server.core.owner(question.chunkid);
                server.core.ask(owner, |server| async move { chunk_blocks(&server, &question).await }).await
            }
            AntocsGetChunkChecksum::TYPE => {
                let question = self.control::<AntocsGetChunkChecksum>(header).await?;
                let owner = server.core.owner(question.chunkid);
                server.core.ask(owner, |server| async move { chunk_checksum(&server, &question).await }).await
            }
            AntocsGetChunkChecksumTab::TYPE => {
                let question = self.control::<AntocsGetChunkChecksumTab>(header).await?;
                let owner = server.core.owner(question.chunkid);
                server.core.ask(owner, |server| async move { chunk_checksum_tab(&server, &question).await }).await
            }
            AntoanGetVersion::TYPE => {
                let AntoanGetVersion { msgid } = self.control(header).await?;
                our_version(msgid)
            }
            AntoanGetConfig::TYPE => {
                let AntoanGetConfig { msgid, option } = self.control(header).await?;
                AntoanConfigValue { msgid, value: server.config_value(option.as_bytes(), self.peer) }.encode()
            }
            CltoanModuleInfo::TYPE => {
                let CltoanModuleInfo { msgid } = self.control(header).await?;
                server.core.ask(0, move |first| async move { module_info(&first, msgid) }).await
            }
            CltocsSyncChunk::TYPE => {
                let CltocsSyncChunk { chunkid, version } = self.control(header).await?;
                let owner = server.core.owner(chunkid);
                let sync = move |server: Rc<Server>| async move { sync_chunk(&server, chunkid, version).await };
                let work = server.core.ask(owner, sync);
                let status = self.working(true, work).await?.err().unwrap_or(Status::OK);
                CstoclSyncChunk { chunkid, status }.encode()
            }
            CltocsSyncEpoch::TYPE => {
                let CltocsSyncEpoch { chunkid, version } = self.control(header).await?;
                let owner = server.core.owner(chunkid);
                let sync = move |server: Rc<Server>| async move { sync_chunk(&server, chunkid, version).await };
                let work = server.core.ask(owner, sync);
                let (version, status) = match self.working(true, work).await? {
                    Ok(version) => (version, Status::OK),
                    Err(status) => (version, status),
                };
                // Not before the sync has ended: a disk may have been lost meanwhile.
                let epoch = server.core.epoch().0;
                CstoclSyncEpoch { chunkid, version, status, epoch }.encode()
            }
            CltocsHddList::TYPE => {
                self.control::<CltocsHddList>(header).await?;
                let disks = server.core.ask(0, |first| async move { first.store.disk_entries() }).await;
                CstoclHddList { disks }.encode()
            }
            CltoanMonotonicData::TYPE => {
                self.control::<CltoanMonotonicData>(header).await?;
                let totals =
                    server.core.ask(0, |first| async move { (first.totals_now().await, first.store.disk_totals()) });
                let (counters, disks) = totals.await;
                AntoclMonotonicData { counters: wire::Counters(counters.to_vec()), disks }.encode()
            }
            CltoanChartData::TYPE => {
                let CltoanChartData { chart, entries_max } = self.control(header).await?;
                server.core.ask(0, move |first| async move { first.charts.borrow().answer(chart, entries_max) }).await
            }
            CltoanChart::TYPE => {
                let CltoanChart { chart, size } = self.control(header).await?;
                let picture =
                    server.core.ask(0, move |first| async move { first.charts.borrow().picture(chart, size) });
                AntoclChart { picture: Rest(picture.await) }.encode()
            }
            kind => return Err(Hangup::UnknownType(kind)),
        };
        self.send(answer).await?;
        self.renew();
        Ok(())
    }
}

pub(crate) async fn chunk_blocks(server: &Server, question: &AntocsGetChunkBlocks) -> Vec<u8> {
    let &AntocsGetChunkBlocks { chunkid, version } = question;
    let (blocks, status) = match look_up(server, chunkid, version).await {
        Ok((blocks, _)) => (blocks, Status::OK),
        Err(error) => (0, error.status()),
    };
    CstoanChunkBlocks { chunkid, version, blocks, status }.encode()
}

pub(crate) async fn chunk_checksum(server: &Server, question: &AntocsGetChunkChecksum) -> Vec<u8> {
    let &AntocsGetChunkChecksum { chunkid, version } = question;
    match look_up(server, chunkid, version).await {
        Ok((_, sums)) => CstoanChunkChecksum { chunkid, version, checksum: sums.checksum() }.encode(),
        Err(error) => CstoanChunkChecksumError { chunkid, version, status: error.status() }.encode(),
    }
}

pub(crate) async fn chunk_checksum_tab(server: &Server, question: &AntocsGetChunkChecksumTab) -> Vec<u8> {
    let &AntocsGetChunkChecksumTab { chunkid, version } = question;
    match look_up(server, chunkid, version).await {
        Ok((_, sums)) => {
            let table = sums.words().iter().map(|word| Crc(*word)).collect();
            CstoanChunkChecksumTab { chunkid, version, table }.encode()
        }
        Err(error) => CstoanChunkChecksumTabError { chunkid, version, status: error.status() }.encode(),
    }
}

async fn sync_chunk(server: &Server, id: ChunkId, version: Version) -> Result<Version, Status> {
    let _job = server.begin_job().ok_or(ChunkError::Busy.status())?;
    server.store.sync_chunk(id, version).await.map_err(|error| error.status())
}

async fn look_up(server: &Server, id: ChunkId, version: Version) -> Result<(u16, SumTable), ChunkError> {
    let _job = server.begin_job().ok_or(ChunkError::Busy)?;
    let chunk = server.store.open(id, version).await?;
    Ok((chunk.blocks(), chunk.sums()))
}

fn our_version(msgid: Option<u32>) -> Vec<u8> {
    let version = VersionWord::OURS;
    let text = Rest(VersionWord::OURS_TEXT.as_bytes().to_vec());
    match msgid {
        None => AntoanVersion { version, text }.encode(),
        Some(msgid) => AntoanVersionWithId { msgid, version, text }.encode(),
    }
}

fn module_info(server: &Server, msgid: Option<u32>) -> Vec<u8> {
    let identity = server.identity.get();
    let (module, version) = (MODULE_CHUNKSERVER, VersionWord::OURS);
    let (id, metaid) = (identity.csid, identity.metaid);
    let (leader_ip, leader_port) = server.master_address.get();
    match msgid {
        None => AntoclModuleInfo { module, version, id, metaid, leader_ip, leader_port }.encode(),
        Some(msgid) => AntoclModuleInfoWithId { msgid, module, version, id, metaid, leader_ip, leader_port }.encode(),
    }
}
