//! The thread that makes the clips: the owner of the store.

use super::index::Clips;
use bundle::Cancel;
use jobs::owner::{self, Notice, Options};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long an owner that has failed is not started again.
const PAUSE: Duration = Duration::from_secs(2);

/// What the maker tells the server, besides the states that it notes.
#[derive(Debug)]
pub(crate) enum Made {
    /// A clip has ended.
    Ended(Arc<super::index::Clip>),
}

/// The thread that makes the clips.
#[derive(Debug)]
pub(crate) struct Maker {
    thread: JoinHandle<()>,
    is_running: Arc<AtomicBool>,
}

impl Maker {
    /// Owns the store in a folder and makes its jobs until `options.cancel` is requested.
    ///
    /// # Errors
    /// Another process owns the store, or the store or the devices cannot be used.
    pub(crate) async fn start(
        folder: &Path,
        options: Options,
        clips: Arc<Clips>,
        made: mpsc::UnboundedSender<Made>,
    ) -> Result<Self, jobs::Error> {
        let is_running = Arc::new(AtomicBool::new(false));
        let (started, starts) = oneshot::channel();
        let work = Work {
            folder: folder.to_owned(),
            options,
            clips,
            made,
            is_running: Arc::clone(&is_running),
            started: Some(started),
        };
        let thread = std::thread::Builder::new().name("maker".into()).spawn(move || work.run());
        let thread =
            thread.map_err(bundle::Error::file("start the thread that makes the clips of", folder))?;
        match starts.await {
            Ok(started) => started?,
            // The thread has panicked, which is reported when it is joined.
            Err(_gone) => {}
        }
        Ok(Self { thread, is_running })
    }

    /// Tells whether jobs are made, also after this is joined.
    pub(crate) fn running(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_running)
    }

    /// Waits until the thread has ended, which needs `options.cancel`.
    pub(crate) fn join(self) {
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
    }
}

struct Work {
    folder: PathBuf,
    options: Options,
    clips: Arc<Clips>,
    made: mpsc::UnboundedSender<Made>,
    is_running: Arc<AtomicBool>,
    started: Option<oneshot::Sender<Result<(), jobs::Error>>>,
}

impl Work {
    fn run(mut self) {
        let cancel: Cancel = self.options.cancel.clone();
        loop {
            let ended = self.own();
            self.is_running.store(false, Ordering::Relaxed);
            match (ended, self.started.take()) {
                (Err(error), Some(started)) => {
                    drop(started.send(Err(error)));
                    return;
                }
                (Err(error), None) => tracing::error!("the clips are not made for a moment: {error}"),
                (Ok(_), _) => {}
            }
            if cancel.is_cancelled() {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn own(&mut self) -> Result<owner::Summary, jobs::Error> {
        let Self { folder, options, clips, made, is_running, started } = self;
        owner::run(folder, options.clone(), &mut |notice| match notice {
            Notice::Started { waiting } => {
                tracing::info!(waiting, "making clips");
                is_running.store(true, Ordering::Relaxed);
                if let Some(started) = started.take() {
                    drop(started.send(Ok(())));
                }
            }
            Notice::Message(text) => tracing::warn!("{text}"),
            Notice::Jobs { jobs, .. } => clips.note_progress(&jobs),
            Notice::Ended { id, outcome } => {
                if let Some(clip) = clips.note_end(id, outcome) {
                    // Fails only when the server ends.
                    let _ = made.send(Made::Ended(clip));
                }
            }
            _ => {}
        })
    }
}
