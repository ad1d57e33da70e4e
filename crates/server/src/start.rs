//! The life of a server: open everything, serve, end.

use crate::access::tokens::{self, Tokens};
use crate::app::App;
use crate::auditions::ending::give_up_old;
use crate::auditions::index::Auditions;
use crate::clips::deleting::{remove_files, remove_unknown};
use crate::clips::index::Clips;
use crate::clips::maker::{Made, Maker};
use crate::clips::queue::Queue;
use crate::clips::ticket::Ticket;
use crate::config::{Config, ConfigError, PublicUrl};
use crate::connections;
use crate::fetch::Fetcher;
use crate::links::keys::Keys;
use crate::live::LiveClips;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pictures::Pictures;
use crate::uploads::Uploads;
use crate::{routes, webhooks};
use bundle::{Cancel, Diagnose, Report};
use jobs::owner::{Follower, Options};
use jobs::store::OwnedStore;
use runtime::text_store::TextStore;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

/// How often a request to end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often clips whose jobs are gone are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How often clips that nobody watches any more are looked for.
const SWEEP_LIVE_EVERY: Duration = Duration::from_secs(5);
/// The threads that answer requests. Nearly everything else waits for the network or the disk.
const THREADS: usize = 2;

/// A server that cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A bundle, a file or a value is invalid.
    Contract(#[from] bundle::Error),
    /// The queue cannot be used.
    Jobs(#[from] jobs::Error),
    /// The tokens cannot be used.
    Tokens(#[from] tokens::Error),
    /// The configuration is invalid.
    Config(#[from] ConfigError),
    /// The address cannot be listened on.
    Listen {
        /// The address.
        address: SocketAddr,
        /// The problem.
        #[source]
        source: std::io::Error,
    },
    /// Others could connect, and there are no tokens.
    NoTokens {
        /// The address.
        address: SocketAddr,
    },
    /// The system has refused something that the server needs.
    System(#[source] std::io::Error),
}

bundle::display_as_report!(Error);

impl Diagnose for Error {
    fn report(&self) -> Report {
        match self {
            Self::Contract(error) => error.report(),
            Self::Jobs(error) => error.report(),
            Self::Tokens(error) => error.report(),
            Self::Config(error) => error.report(),
            Self::Listen { address, source } => Report::failed(
                format!("cannot listen on {address}"),
                source.to_string(),
                "end the program that uses it, or choose another address",
            ),
            Self::NoTokens { address } => Report::bad_input(
                format!("cannot serve on {address}"),
                "other machines could use it, and there are no tokens",
                "make one with `rushes serve token add NAME` for the same data folder, or listen on 127.0.0.1",
            ),
            Self::System(error) => Report::failed(
                "the server cannot run",
                error.to_string(),
                "check the limits of the system for processes, threads and open files",
            ),
        }
    }
}

/// What a server tells while it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The address that it listens on.
    pub address: SocketAddr,
    /// The address that links are built from.
    pub url: String,
    /// Whether requests need a token.
    pub needs_token: bool,
    /// The names of the models.
    pub models: Vec<String>,
    /// The clips that wait.
    pub waiting: usize,
    /// What the content filter refuses; `None` if there is none.
    pub screen: Option<String>,
}

/// Serves until `options.cancel` is requested. Jobs that had begun are in the queue then, and go on at the next start.
///
/// # Errors
/// The configuration, a bundle, the queue or the address cannot be used.
pub fn run(config: Config, options: Options, started: &mut dyn FnMut(&Started)) -> Result<(), Error> {
    config.check()?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .thread_name("serve")
        .enable_all()
        .build()
        .map_err(Error::System)?;
    runtime.block_on(serve(config, options, started))
}

async fn serve(config: Config, options: Options, started: &mut dyn FnMut(&Started)) -> Result<(), Error> {
    let cancel = options.cancel.clone();
    let tokens = Tokens::open(&config.data)?;
    if !config.listen.ip().is_loopback() && !tokens.are_used() {
        return Err(Error::NoTokens { address: config.listen });
    }
    match config.screen.describe() {
        Some(what) => tracing::info!("the content filter is on: {what}"),
        None => tracing::warn!("the content filter is off: clients may ask for anything"),
    }
    let models = Models::open(&config)?;
    let listener = TcpListener::bind(config.listen);
    let listener = listener.await.map_err(|source| Error::Listen { address: config.listen, source })?;
    let address = listener.local_addr().map_err(Error::System)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let keys = Keys::open(&config.data, now.as_secs())?;
    let folder = make_folder(&config.data.join("clips"))?;
    let uploads = Arc::new(Uploads::open(config.data.join("uploads"), config.limits.clone())?);
    let (queue, clips) = restored(&config.data.join("queue"), Clips::new(folder))?;
    let (made, ends) = mpsc::unbounded_channel();
    let live = Arc::new(LiveClips::new(config.data.join("live"), config.limits.live));
    let watching = (Arc::clone(&clips), Arc::clone(&live));
    let pictures = Arc::new(Pictures::new(watching, queue.clone(), config.classifier.clone()));
    let follower: Arc<dyn Follower> = Arc::<Pictures>::clone(&pictures);
    let texts = text_store(&config)?;
    let options = Options { follower: Some(follower), texts, ..options };
    let maker = Maker::start(queue.folder(), options, Arc::clone(&clips), made).await?;
    let (end, ending) = watch::channel(false);
    let url = config.public_url.clone().unwrap_or_else(|| PublicUrl::of_listener(address));
    let (limits, fetch) = (config.limits.clone(), config.fetch.clone());
    let app = Arc::new(App {
        config,
        url,
        models,
        tokens,
        keys,
        auditions: Auditions::of(&clips),
        clips,
        queue,
        lora_turn: Arc::default(),
        live,
        pictures,
        uploads,
        metrics: Metrics::default(),
        fetcher: Fetcher::new(fetch),
        is_making: maker.running(),
        ending: ending.clone(),
    });
    let routes = routes::router(&app).map_err(|error| Error::System(error.into()))?;
    tokio::spawn(follow_ends(Arc::clone(&app), ends));
    // Those that an earlier server could not tell.
    app.clips.all().iter().for_each(|clip| webhooks::begin(&app, clip));
    tokio::spawn(sweep(Arc::clone(&app)));
    tokio::spawn(sweep_live(Arc::clone(&app)));
    tokio::spawn(watch_cancel(cancel, end));
    started(&Started {
        address,
        url: app.url.with(""),
        needs_token: !app.config.is_open(&app.tokens),
        models: app.models.all().iter().map(|model| model.name.clone()).collect(),
        waiting: app.clips.open(),
        screen: app.config.screen.describe(),
    });
    connections::serve(listener, routes, &limits, ending).await;
    tokio::task::spawn_blocking(move || maker.join()).await.map_err(|error| Error::System(error.into()))
}

async fn watch_cancel(cancel: Cancel, end: watch::Sender<bool>) {
    while !cancel.is_cancelled() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    end.send_replace(true);
    // The receivers learn no more.
    std::future::pending::<()>().await;
}

/// Does what follows the end of a clip.
async fn follow_ends(app: Arc<App>, mut ends: mpsc::UnboundedReceiver<Made>) {
    while let Some(Made::Ended(clip)) = ends.recv().await {
        let status = clip.status();
        if !status.state.has_ended() {
            // A take that was cancelled to be kept is queued again by now.
            continue;
        }
        tracing::info!(clip = clip.ticket.id, job = clip.job.0, state = %status.state, "a clip has ended");
        app.metrics.ended(status.state);
        app.pictures.forget(clip.job);
        app.live.end(clip.job, status.is_complete() && !status.is_deleted);
        if status.is_deleted || !status.is_complete() {
            remove_files(app.clips.folder(), &clip.ticket.id);
        }
        webhooks::begin(&app, &clip);
    }
}

/// Removes, again and again, the clips whose jobs the queue has removed to keep within its budget.
async fn sweep(app: Arc<App>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            () = app.ended() => return,
        }
        let swept = Arc::clone(&app);
        let sweep = move || {
            swept.uploads.sweep(swept.now());
            for clip in swept.clips.all() {
                let is_gone = !swept.queue.job_folder(clip.job).exists();
                if is_gone && clip.status().state.has_ended() {
                    remove_files(swept.clips.folder(), &clip.ticket.id);
                    swept.clips.forget(&clip);
                }
            }
            swept.auditions.sweep(&swept.clips);
        };
        if tokio::task::spawn_blocking(sweep).await.is_err() {
            tracing::error!("clips whose jobs are gone could not be removed");
        }
        give_up_old(&app).await;
    }
}

/// Where the text states of prompts are kept, if they are.
fn text_store(config: &Config) -> Result<Option<Arc<TextStore>>, bundle::Error> {
    if config.text_cache.0 == 0 {
        return Ok(None);
    }
    let folder = make_folder(&config.data.join("texts"))?;
    Ok(Some(Arc::new(TextStore::open(&folder, config.text_cache)?)))
}

/// Ends, again and again, what nobody watches any more.
async fn sweep_live(app: Arc<App>) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(SWEEP_LIVE_EVERY) => app.live.sweep(),
            () = app.ended() => return,
        }
    }
}

/// Creates a folder that only its user can read.
fn make_folder(folder: &Path) -> Result<std::path::PathBuf, bundle::Error> {
    use std::os::unix::fs::PermissionsExt;
    let failed = bundle::Error::file("create", folder);
    let made = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)));
    made.map(|()| folder.to_owned()).map_err(failed)
}

/// Opens the queue, and takes the clips that it has.
fn restored(folder: &Path, clips: Clips) -> Result<(Queue, Arc<Clips>), Error> {
    // An owner repairs the store, and takes jobs whose folders are whole and whose rows were not written before a kill.
    // Without them here, a request that is sent again with its key would make a second clip.
    let (owned, notes) = OwnedStore::open(folder)?;
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    drop(owned);
    let (queue, rows) = Queue::open(folder)?;
    let mut known = HashSet::new();
    for row in rows {
        if let Some(ticket) = Ticket::read(&queue.job_folder(row.id)) {
            known.insert(ticket.id.clone());
            let refusal = Ticket::refusal(&queue.job_folder(row.id));
            let clip = clips.add(row, ticket);
            if let Some(why) = refusal {
                clips.note_refused(&clip, why);
            }
        }
    }
    remove_unknown(clips.folder(), &known.iter().map(String::as_str).collect());
    Ok((queue, Arc::new(clips)))
}

/// Allows as many open files as the system does: each connection is one.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!("the number of open files stays as it is: {error}");
    }
}
