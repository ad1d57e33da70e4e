//! `rushes serve token`: the tokens of clients.

use super::data_folder;
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use ::server::tokens;
use clap::{Args, Subcommand};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// The arguments of `rushes serve token`.
#[derive(Debug, Args)]
pub(super) struct TokenArgs {
    #[command(subcommand)]
    action: Action,
    /// Folder of the server's data [default: rushes/serve in the user's data folder]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a token and print it. It is shown only this once
    Add {
        /// Name of the token's holder
        name: String,
        /// Refuse requests of this token beyond this many of its jobs that wait or run
        #[arg(long, value_name = "N")]
        max_jobs: Option<usize>,
    },
    /// Print the names of the tokens
    List,
    /// Remove a token; a running server refuses it from now on
    Revoke {
        /// Name of the token's holder
        name: String,
    },
}

/// Runs the command.
pub(super) fn run(args: &TokenArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let data = data_folder(args.data_dir.as_ref())?;
    match &args.action {
        Action::Add { name, max_jobs } => {
            let token = tokens::add(&data, name, *max_jobs).map_err(::server::Error::from)?;
            render::result(global.json, &json!({"name": name, "token": token}), &token)?;
        }
        Action::List => {
            let tokens = tokens::list(&data).map_err(::server::Error::from)?;
            let names: Vec<&str> = tokens.iter().map(|token| &*token.name).collect();
            let shown = |token: &tokens::Token| {
                let tokens::Token { name, created, max_jobs, .. } = token;
                json!({"name": name, "created": created, "max_jobs": max_jobs})
            };
            let value = json!({"event": "tokens", "tokens": tokens.iter().map(shown).collect::<Vec<_>>()});
            let text = if names.is_empty() { "there are no tokens".to_owned() } else { names.join("\n") };
            render::result(global.json, &value, &text)?;
        }
        Action::Revoke { name } => {
            tokens::revoke(&data, name).map_err(::server::Error::from)?;
            let value = json!({"event": "revoked", "name": name});
            render::result(global.json, &value, &format!("{name} is revoked"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
