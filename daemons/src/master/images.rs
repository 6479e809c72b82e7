//! Images: the whole metadata in one file, written beside the running master. Spec 42, C.3 and C.4.
//!
//! A frozen copy of the state goes to a thread that turns it into bytes; this core writes them under a temporary name,
//! syncs, and only then gives the file its name. A crash leaves the old image or the new one.

use std::cell::Cell;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::join;
use meta::{Snapshot, image};
use ring::{OpenHow, Ring};
use tracing::{error, info, warn};

use super::Shared;
use super::folder;
use super::journal::remove_old;
use crate::data_folder::{BACK, CLEAN, FILE_MODE, SEEN, TEMPORARY, gone_is_fine, seen};

/// While another image is being written.
const SAVING_WAIT: Duration = Duration::from_millis(20);

/// While the journal is behind the image.
const JOURNAL_WAIT: Duration = Duration::from_millis(2);

/// What is told of the last image. Spec 70, 4.1.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastImage {
    /// Unix seconds; 0 = none yet.
    pub(super) at: u32,
    pub(super) took_millis: u32,
}

/// An image after each rotation of the journal that the settings ask for.
pub(super) async fn save_hourly(master: Shared) {
    loop {
        master.rotated.notified().await;
        let hours = master.now() / 3600;
        let every = master.core.borrow().settings.image_every_hours.max(1);
        if hours.is_multiple_of(every)
            && let Err(error) = save(&master, false).await
        {
            error!(%error, "cannot store the metadata; the journal holds all changes, the next hour tries again");
        }
    }
}

/// The last image: its name says that the journal is not needed.
pub(super) async fn save_at_stop(master: &Shared) -> io::Result<()> {
    save(master, true).await
}

/// Stores the present state, in a folder that has just been judged.
pub(super) async fn save_here(master: &Shared) -> io::Result<()> {
    save_alone(master, false, false).await
}

/// Stores the present state. Errors: also that the folder is not this master's.
async fn save(master: &Shared, clean: bool) -> io::Result<()> {
    save_alone(master, clean, true).await
}

/// One at a time: they have the same temporary name.
async fn save_alone(master: &Shared, clean: bool, judge: bool) -> io::Result<()> {
    while master.saving.replace(true) {
        master.ring.sleep(SAVING_WAIT).await;
    }
    let _saving = Saving(&master.saving);
    if judge {
        folder::may_store(master).await?;
    }
    save_now(master, clean).await
}

/// Ends with the task, also if that is cut short.
struct Saving<'a>(&'a Cell<bool>);

impl Drop for Saving<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

async fn save_now(master: &Shared, clean: bool) -> io::Result<()> {
    let now = master.now();
    let began = master.ring.now();
    let rotations = *master.rotations.lock().await;
    let (snapshot, kept, journals_kept) = {
        let mut core = master.core.borrow_mut();
        (core.namespace.freeze(), core.settings.images_kept, core.settings.journals_kept)
    };
    let version = snapshot.version();
    write(&master.ring, &master.data_path, snapshot, now).await?;
    wait_for_journal(master, version).await;
    let moving = master.moves.begin();
    put_in_place(&master.ring, &master.data_path, kept, clean).await?;
    folder::remember_image(master).await;
    // Last: what is remembered must be there.
    folder::note(master, version).await?;
    if let Err(error) = remove_old(master, journals_kept, rotations).await {
        warn!(%error, "old journal files cannot be removed; the next image tries again");
    }
    drop(moving);
    let took = began.elapsed(&master.ring);
    info!(version, took_millis = took.as_millis(), "metadata stored");
    master.core.borrow_mut().last_image =
        LastImage { at: now, took_millis: u32::try_from(took.as_millis()).unwrap_or(u32::MAX) };
    Ok(())
}

/// Until the lines that the image has are durable too: if it were ahead of them at a crash, they would be missing in the
/// journal for ever, and neither an older image nor a metalogger could go on over the hole. If the journal cannot be
/// written any more, the image is what saves them.
async fn wait_for_journal(master: &Shared, version: u64) {
    let is_behind = || {
        let journal = &master.core.borrow().journal;
        !journal.is_durable(version) && !journal.may_stay_behind()
    };
    while is_behind() {
        master.ring.sleep(JOURNAL_WAIT).await;
    }
}

/// Writes an image and gives it its name; older ones move on. `clean`: under the name of a clean stop.
pub(super) async fn store(
    ring: &Ring,
    folder: &Path,
    snapshot: Snapshot,
    now: u32,
    kept: u32,
    clean: bool,
) -> io::Result<()> {
    let seen = write(ring, folder, snapshot, now).await?;
    put_in_place(ring, folder, kept, clean).await?;
    // Last: what is remembered must be there.
    ring.write_file_durably(&folder.join(SEEN), FILE_MODE, seen.into_bytes()).await
}

async fn put_in_place(ring: &Ring, folder: &Path, kept: u32, clean: bool) -> io::Result<()> {
    let temporary = folder.join(TEMPORARY);
    let back = folder.join(BACK);
    for number in (1..kept).rev() {
        gone_is_fine(ring.rename(&numbered(folder, number), &numbered(folder, number + 1)).await)?;
    }
    if kept > 0 {
        gone_is_fine(ring.rename(&back, &numbered(folder, 1)).await)?;
    }
    if clean {
        ring.rename(&temporary, &folder.join(CLEAN)).await?;
        gone_is_fine(ring.unlink(&back).await)?;
    } else {
        ring.rename(&temporary, &back).await?;
        gone_is_fine(ring.unlink(&folder.join(CLEAN)).await)?;
    }
    ring.sync_dir(folder).await
}

fn numbered(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{BACK}.{number}"))
}

/// Writes the file under its temporary name: bytes are made on another thread and written here, piece by piece. Gives
/// what is to be remembered of it.
async fn write(ring: &Ring, folder: &Path, snapshot: Snapshot, now: u32) -> io::Result<String> {
    let seen = seen(snapshot.meta_id(), snapshot.version());
    let file = ring.open(&folder.join(TEMPORARY), OpenHow::create(FILE_MODE).truncate(true)).await?;
    let (sender, mut pieces) = ring::channel::channel::<Vec<u8>>();
    let make =
        ring.run_blocking(move || image::write(&snapshot, now, &mut |piece| sender.send(piece.to_vec()).map_err(drop)));
    let keep = async {
        let mut offset = 0;
        while let Some(piece) = pieces.recv().await {
            let bytes = piece.len() as u64;
            file.write_all_at(piece, offset).await.0?;
            offset += bytes;
        }
        file.sync().await
    };
    let (made, written) = join!(make, keep);
    written?;
    made.map(|_| seen).map_err(|()| io::Error::other("the image was not written to its end"))
}
