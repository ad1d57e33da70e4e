//! What every request can reach.

use crate::access::tokens::Tokens;
use crate::auditions::index::Auditions;
use crate::clips::index::Clips;
use crate::clips::queue::Queue;
use crate::config::{Config, PublicUrl};
use crate::fetch::Fetcher;
use crate::links::keys::Keys;
use crate::links::{self, Grant};
use crate::live::LiveClips;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pictures::Pictures;
use crate::uploads::Uploads;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// What every request can reach.
#[derive(Debug)]
pub(crate) struct App {
    /// The configuration.
    pub config: Config,
    /// The address that links are built from.
    pub url: PublicUrl,
    /// The bundles.
    pub models: Models,
    /// The tokens.
    pub tokens: Tokens,
    /// The keys of links and cookies.
    pub keys: Keys,
    /// The clips of this server.
    pub clips: Arc<Clips>,
    /// The auditions that some of them are takes of.
    pub(crate) auditions: Auditions,
    /// The queue.
    pub queue: Queue,
    /// Held while a bundle with LoRAs is made.
    pub(crate) lora_turn: Arc<tokio::sync::Mutex<()>>,
    /// Clips that are watched while they are made.
    pub(crate) live: Arc<LiveClips>,
    /// Pictures of clips.
    pub(crate) pictures: Arc<Pictures>,
    /// Pictures that clients have uploaded.
    pub(crate) uploads: Arc<Uploads>,
    /// Counts for monitoring.
    pub(crate) metrics: Metrics,
    /// Asks other servers.
    pub(crate) fetcher: Fetcher,
    /// True while clips are made.
    pub is_making: Arc<AtomicBool>,
    /// True once the server ends.
    pub ending: watch::Receiver<bool>,
}

impl App {
    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
    }

    /// The address of a file of a clip, which needs no token.
    pub(crate) fn media_link(&self, id: &str, variant: &str) -> String {
        let grant = Grant { method: "GET", id, variant };
        let query = grant.query(&self.keys, self.now(), links::LIFE);
        self.url.with(&format!("/media/{id}/{variant}?{query}"))
    }

    /// Waits until the server ends.
    pub(crate) async fn ended(&self) {
        let mut ending = self.ending.clone();
        // An error means that the server is gone.
        let _ = ending.wait_for(|is_ending| *is_ending).await;
    }
}
