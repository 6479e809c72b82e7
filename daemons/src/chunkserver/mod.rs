//! The chunkserver: `mfschunkserver.cfg` and `mfshdd.cfg` into settings, signals into a stop, `chunk` does the rest.

mod settings;

use chunk::server::ServerError;
use chunk::settings::Settings;
use ring::Ring;
use ring::channel::Receiver;

use crate::signals::Wish;

pub use settings::from_config;

/// Runs a chunkserver until somebody wishes that it stop, or until nobody can wish any more.
pub async fn run(
    ring: Ring,
    settings: Settings,
    mut wishes: Receiver<Wish>,
    ready: impl FnOnce(),
) -> Result<(), ServerError> {
    let stop = async move {
        loop {
            match wishes.recv().await {
                Some(Wish::Stop) | None => return,
                Some(Wish::Reload) => tracing::warn!("a chunkserver takes a changed configuration at its next start"),
                Some(Wish::Info) => {}
            }
        }
    };
    chunk::server::run(ring, settings, stop, ready).await
}
