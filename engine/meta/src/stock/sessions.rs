//! `sessions.mfs`, the file beside `metadata.mfs` in which MooseFS 1.6 keeps its sessions. Spec 50, 6.

use wire::{Field, Input, Ip4};

use super::records::{SessionRecord, words_of};
use super::{Broken, must};

/// All sessions of the file, in order; None as `disconnected`: it is not in the file. Errors: a sentence.
pub(super) fn take(bytes: &[u8]) -> Result<Vec<SessionRecord<'_>>, String> {
    let mut input = Input::new(bytes);
    records(&mut input).map_err(|broken| match broken {
        Broken::Short => "sessions.mfs ends too early".to_owned(),
        Broken::Rule(what) => format!("sessions.mfs: {what}"),
    })
}

fn records<'a>(input: &mut Input<'a>) -> Result<Vec<SessionRecord<'a>>, Broken> {
    let signature = input.bytes(8, "signature")?;
    let (kind, counters) = match signature {
        b"MFSS 1.5" => (0, 16),
        b"MFSS \x01\x06\x01" => (1, 16),
        b"MFSS \x01\x06\x02" => (2, 21),
        b"MFSS \x01\x06\x03" => (3, u16::take(input)?),
        b"MFSS \x01\x06\x04" => (4, u16::take(input)?),
        _ => return Err(Broken::Rule("it does not begin as a file of MooseFS 1.6 does".to_owned())),
    };
    let mut sessions = Vec::new();
    while !input.is_empty() {
        let mut record = SessionRecord { id: u32::take(input)?, ..SessionRecord::default() };
        let info_bytes = u32::take(input)?;
        record.peer_ip = Ip4::take(input)?;
        record.root = u32::take(input)?;
        record.flags = u8::take(input)?;
        (record.goals, record.trash_seconds) = ((1, 9), (0, u32::MAX));
        if kind >= 4 {
            record.goals = (u8::take(input)?, u8::take(input)?);
            record.trash_seconds = (u32::take(input)?, u32::take(input)?);
        }
        let ids = if kind >= 1 { 4 } else { 2 };
        for id in record.ids.iter_mut().take(ids) {
            *id = u32::take(input)?;
        }
        for hour in [&mut record.counters.0, &mut record.counters.1] {
            let words = input.bytes(usize::from(counters) * 4, "counters")?;
            *hour = words_of::<4>(words).map(|word| word as u32).collect();
        }
        must(record.id != 0, || "a session has id 0".to_owned())?;
        record.info = input.bytes(info_bytes as usize, "info")?;
        sessions.push(record);
    }
    Ok(sessions)
}
