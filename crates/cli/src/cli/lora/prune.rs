//! `rushes lora prune`: removes bundles with LoRAs that runs have kept.

use super::kept::{Kept, list};
use crate::Error;
use crate::cli::global::GlobalArgs;
use crate::cli::render;
use bundle::layout;
use bundle::units::ByteCount;
use clap::Args;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// The arguments of `rushes lora prune`.
#[derive(Debug, Args)]
pub(super) struct PruneArgs {
    /// Look into this bundle too, and not into the cache alone. May be given more than once
    #[arg(long, value_name = "DIR")]
    bundle: Vec<PathBuf>,
    /// Remove all of them
    #[arg(long)]
    all: bool,
    /// Remove those too that no run has used for this many days
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u32>,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl PruneArgs {
    fn takes(&self, kept: &Kept) -> bool {
        let limit = self.older_than.map(|days| Duration::from_secs(u64::from(days) * DAY));
        self.all || kept.useless.is_some() || limit.is_some_and(|limit| kept.unused_for >= limit)
    }
}

/// Runs the command.
pub(super) fn run(args: &PruneArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let cache = crate::mini::cache_folder(global.cache_dir.as_deref());
    let folders = args.bundle.iter().chain(cache.as_ref()).map(|folder| folder.join(layout::LORAS));
    let (mut removed, mut busy, mut left) = (Vec::new(), Vec::new(), 0_usize);
    for folder in folders {
        for kept in list(&folder)? {
            if !args.takes(&kept) {
                left += 1;
            } else if args.dry_run || kept.remove()? {
                removed.push(kept);
            } else {
                busy.push(kept);
            }
        }
    }
    let total: ByteCount = removed.iter().map(|kept| kept.bytes).sum();
    let value = json!({
        "event": "pruned",
        "dry_run": args.dry_run,
        "bytes": total,
        "removed": removed.iter().map(as_value).collect::<Vec<_>>(),
        "busy": busy.iter().map(as_value).collect::<Vec<_>>(),
        "kept": left,
    });
    let word = if args.dry_run { "would be removed" } else { "removed" };
    let why = |kept: &Kept| kept.useless.map_or(String::new(), |useless| format!(": {}", useless.why()));
    let mut lines: Vec<String> = removed
        .iter()
        .map(|kept| format!("{} ({}){}", kept.folder.display(), kept.bytes, why(kept)))
        .collect();
    lines.push(format!("{} bundles with LoRAs {word}, {total}; {left} kept", removed.len()));
    if !busy.is_empty() {
        lines.push(format!("{} are in use and stay", busy.len()));
    }
    render::result(global.json, &value, &lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn as_value(kept: &Kept) -> Value {
    json!({
        "folder": render::path(&kept.folder),
        "bytes": kept.bytes,
        "why": kept.useless.map(super::kept::Uselessness::why),
    })
}
