//! `rushes serve`: public video APIs over HTTP.
//!
//! [`token`] has the commands about tokens, [`models`] the bundles that are served, [`filter`] what is refused,
//! [`loras`] the LoRAs that requests may name.

mod filter;
mod loras;
mod models;
mod token;

use super::global::GlobalArgs;
use super::jobs::user_data;
use super::owner::OwnerArgs;
use super::render;
use super::threads::Threads;
use crate::Error;
use ::server::{Alias, Config, FetchPolicy, Limits, PublicUrl, Started};
use bundle::units::ByteCount;
use bundle::{ErrorClass, Field, Report};
use clap::{Args, Subcommand};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The arguments of `rushes serve`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_precedence_over_arg = true)]
pub(super) struct ServeArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Add, list and revoke the tokens of clients
    Token(token::TokenArgs),
}

/// Where the server keeps everything.
#[derive(Debug, Clone, Args)]
struct DataArgs {
    /// Folder of the queue, the clips and the tokens [default: rushes/serve in the user's data folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl DataArgs {
    /// The absolute path of the folder.
    ///
    /// # Errors
    /// No folder was given, and that of the user's data is unknown.
    fn folder(&self) -> Result<PathBuf, Error> {
        match &self.data_dir {
            Some(folder) => std::path::absolute(folder).map_err(|error| {
                Error::argument("--data-dir", folder.display(), error.to_string(), "give an absolute path")
            }),
            None => {
                let data = user_data(|name| std::env::var_os(name));
                Ok(data.ok_or(Error::NoServerFolder)?.join("rushes/serve"))
            }
        }
    }
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Listen on this address. Without tokens it must be one that only this machine can reach
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
    listen: SocketAddr,
    /// Serve this bundle, under the name of its model or another one. May be given more than once; the first is used by
    /// requests that name no model [default: the embedded model, mini]
    #[arg(long, value_name = "[NAME=]DIR", value_parser = models::bundle)]
    bundle: Vec<models::BundleArg>,
    /// Another name of a bundle, in which * stands for any text, such as wan2.2-*=a14b. May be given more than once
    #[arg(long, value_name = "PATTERN=BUNDLE", value_parser = alias)]
    model_alias: Vec<Alias>,
    /// Address that clients reach the server at, such as https://video.example, which links are built from [default:
    /// that of --listen]
    #[arg(long, value_name = "URL", value_parser = public_url)]
    public_url: Option<PublicUrl>,
    /// Let pages of this origin use the server. May be given more than once
    #[arg(long, value_name = "ORIGIN")]
    cors: Vec<String>,
    /// Tell other servers when clips have ended, as clients ask for: those with these names, or all that have public
    /// addresses (public)
    #[arg(long, value_name = "HOST,...|public", value_parser = fetch_policy)]
    allow_fetch: Option<FetchPolicy>,
    /// Let clients name files of initial noise in this folder, by their plain names
    #[arg(long, value_name = "DIR")]
    latents: Option<PathBuf>,
    /// Let clients name LoRAs in this folder, by their plain names
    #[arg(long, value_name = "DIR")]
    lora_dir: Option<PathBuf>,
    /// Let answers name the paths of clips on this machine, to clients that run on it
    #[arg(long)]
    allow_paths: bool,
    /// Keep the text states of prompts, so that the text encoder is not needed for them again, in at most so much disk
    /// space; 0 keeps none
    #[arg(long, value_name = "BYTES", default_value = "1GB", value_parser = text_cache)]
    text_cache: ByteCount,
    /// Answer a request that asks for a finished clip again, with the same seed, with that clip
    #[arg(long)]
    result_cache: bool,
    /// Refuse requests beyond this many jobs that wait or run
    #[arg(long, value_name = "N", default_value_t = Limits::default().queue)]
    max_queue: usize,
    /// Refuse clips with more frames
    #[arg(long, value_name = "N", default_value_t = Limits::default().frames)]
    max_frames: usize,
    /// Refuse clips with a longer side, in pixels
    #[arg(long, value_name = "N", default_value_t = Limits::default().side)]
    max_side: usize,
    /// Refuse clips with more steps
    #[arg(long, value_name = "N", default_value_t = Limits::default().steps)]
    max_steps: usize,
    #[command(flatten)]
    filter: filter::FilterArgs,
    #[command(flatten)]
    owner: OwnerArgs,
}

impl ServeArgs {
    /// The value of `--threads`.
    pub(super) fn threads(&self) -> Option<Threads> {
        self.run.owner.threads()
    }
}

fn alias(text: &str) -> Result<Alias, Error> {
    Ok(text.parse::<Alias>()?)
}

fn fetch_policy(text: &str) -> Result<FetchPolicy, Error> {
    Ok(text.parse::<FetchPolicy>()?)
}

fn text_cache(text: &str) -> Result<ByteCount, Error> {
    text.parse().map_err(|_error: bundle::Error| {
        let rule = "it is not a number of bytes";
        Error::argument("--text-cache", format!("`{text}`"), rule, "write it like 1GB, or 0 to keep none")
    })
}

fn public_url(text: &str) -> Result<PublicUrl, Error> {
    Ok(text.parse::<PublicUrl>()?)
}

/// Runs the command.
pub(super) fn run(args: &ServeArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    match &args.action {
        Some(Action::Token(token)) => token::run(token, global),
        None => serve(&args.run, &args.data, global),
    }
}

fn serve(args: &RunArgs, data: &DataArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let data = data.folder()?;
    std::fs::create_dir_all(&data).map_err(bundle::Error::file("create", &data))?;
    let left = Report::new(
        ErrorClass::Interrupted,
        "stopped at once",
        "the jobs are in the queue; those that had begun go on after the last step whose snapshot is complete",
        "start the server again with the same arguments",
    );
    let stop = global.interrupts.cancel();
    let bundles = models::named(&args.bundle, args.owner.devices(), global, stop.stop())?;
    let config = Config {
        listen: args.listen,
        data,
        bundles,
        aliases: args.model_alias.clone(),
        public_url: args.public_url.clone(),
        cors: args.cors.iter().map(|origin| checked_origin(origin)).collect::<Result<_, _>>()?,
        latents: args.latents.as_deref().map(|path| folder("--latents", path)).transpose()?,
        loras: args.lora_dir.as_deref().map(|path| loras::served(path, global)).transpose()?,
        allow_paths: args.allow_paths,
        fetch: args.allow_fetch.clone().unwrap_or_default(),
        text_cache: args.text_cache,
        result_cache: args.result_cache,
        limits: Limits {
            queue: args.max_queue,
            frames: args.max_frames,
            side: args.max_side,
            steps: args.max_steps,
            ..Limits::default()
        },
        screen: args.filter.screen()?,
        classifier: None,
    };
    config.check()?;
    let options = args.owner.options(global, false, left)?;
    let mut failed = None;
    ::server::run(config, options, &mut |started| {
        failed = tell(started, global.json).err();
    })?;
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The absolute path of a folder that a flag names.
fn folder(flag: &'static str, folder: &Path) -> Result<PathBuf, Error> {
    let refused = |rule: &str| Error::argument(flag, folder.display(), rule, "name a folder that exists");
    if !folder.is_dir() {
        return Err(refused("it is not a folder"));
    }
    std::path::absolute(folder).map_err(|error| refused(&error.to_string()))
}

/// An origin as browsers send it.
fn checked_origin(origin: &str) -> Result<String, Error> {
    let parsed: PublicUrl = origin.parse()?;
    if parsed.origin() == origin {
        return Ok(origin.to_owned());
    }
    let rule = "an origin has a scheme, a host and perhaps a port, and nothing else";
    Err(Error::argument("--cors", format!("`{origin}`"), rule, format!("write it like {}", parsed.origin())))
}

/// Tells that the server answers.
fn tell(started: &Started, as_json: bool) -> Result<(), Error> {
    let Started { address, url, needs_token, models, waiting, screen } = started;
    let value = json!({
        "event": "serving",
        "address": address.to_string(),
        "url": url,
        "needs_token": needs_token,
        "models": models,
        "waiting": waiting,
        "content_filter": screen,
    });
    let access = if *needs_token { "with a token" } else { "to this machine, without a token" };
    let left = match waiting {
        0 => String::new(),
        1 => "; 1 clip waits".to_owned(),
        count => format!("; {count} clips wait"),
    };
    let filter = if screen.is_some() { "" } else { "; the content filter is off" };
    render::result(as_json, &value, &format!("serving {} at {url} {access}{left}{filter}", models.join(", ")))
}

/// The folder of the data that an argument names, for commands about it.
fn data_folder(folder: Option<&PathBuf>) -> Result<PathBuf, Error> {
    DataArgs { data_dir: folder.cloned() }.folder()
}

/// A bundle error that names the flag of the bundle.
fn refused_bundle(given: &str, rule: &str, fix: &str) -> Error {
    bundle::Error::value(Field::Bundle, format!("`{given}`"), rule, fix).into()
}
