//! The HTTP server of Rushes: public video APIs over one queue of clips that survives its process.
//!
//! In reading order: [`Config`] and [`run`] (start and end), `routes` (all of them, and the checks around them),
//! `access` (tokens, cookies, origins), `links` (media without a token), `clips` (the one model of a job behind all
//! APIs), then the APIs: `openai`, `dashscope`, `plain`, `mlperf`, and `own` and `auditions` for what only Rushes has. `fault` is what
//! is answered to a request that cannot be served. [`screening`] is where texts and frames can be refused. `uploads` keeps
//! pictures and sounds of clients, and `post` puts them and captions on clips. `loras` and `latents` find what requests
//! name, with `named_files`. `live` encodes clips that somebody watches while they are made.
//!
//! A request passes `connections` (limits of a client), `routes` (its number and the log), `fault::styled`, the guard
//! of `access`, and its route. A clip is stored by the thread of `clips::queue` before its client gets an answer; the
//! thread of `clips::maker` makes it.

mod access;
mod app;
mod auditions;
mod body;
mod capabilities;
mod clips;
mod config;
mod connections;
mod dashscope;
mod fault;
mod fetch;
mod health;
mod ids;
mod latents;
mod lingering;
mod links;
mod live;
mod loras;
mod media_files;
mod metrics;
mod mlperf;
mod models;
mod named_files;
mod openai;
mod own;
mod page;
mod paths;
mod pictures;
mod plain;
mod post;
mod prefer;
mod query;
mod routes;
pub mod screening;
mod sizes;
mod start;
mod times;
mod uploads;
mod variants;
mod webhooks;

pub use access::tokens;
pub use config::{Alias, Config, ConfigError, Limits, PublicUrl};
pub use fetch::FetchPolicy;
pub use loras::{LoraBundles, Room, ServedLoras};
pub use routes::description;
pub use start::{Error, Started, run};
