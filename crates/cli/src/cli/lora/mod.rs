//! `rushes lora`: what a LoRA file contains and what of it applies to a model; and the bundles that runs with LoRAs keep.

mod apply;
mod kept;
mod prune;

pub(super) use apply::{against, check, kept_bundle, make, open};
pub(super) use kept::list as list_kept;

use super::global::GlobalArgs;
use super::render;
use crate::Error;
use bundle::lora::{LoraExpert, LoraUse};
use bundle::manifest::Bundle;
use bundle::routing::ExpertName;
use clap::{Args, Subcommand};
use export::checkpoint::Checkpoint;
use export::lora::resolved::{BaseModel, ReadExpert, Resolved, read_expert};
use export::lora::summary::Summary;
use export::lora::{Lora, LoraError};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// The LoRA files of a command that applies them.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct LoraArgs {
    /// Apply a LoRA: [EXPERT=]FILE[@STRENGTH], where EXPERT is high_noise, low_noise or all. Without EXPERT, the keys of
    /// the file decide, then the words high and low in its name; else it is for every expert. May be given more than
    /// once
    #[arg(long, value_name = "[EXPERT=]FILE[@STRENGTH]", help_heading = "LoRA")]
    pub(super) lora: Vec<LoraUse>,
    /// Leave out keys of LoRA files that cannot be applied, instead of refusing the file
    #[arg(long, help_heading = "LoRA")]
    pub(super) lora_lenient: bool,
}

/// The arguments of `rushes lora`.
#[derive(Debug, Args)]
pub(super) struct LoraCommandArgs {
    #[command(subcommand)]
    command: LoraCommand,
}

#[derive(Debug, Subcommand)]
enum LoraCommand {
    /// Print the key families, ranks, scales and number formats of a LoRA file, the experts that it is for, and what of it
    /// applies to a bundle or a checkpoint
    Inspect(InspectArgs),
    /// Remove bundles with LoRAs that runs have kept and cannot use any more: those whose base bundle has changed or is
    /// gone, damaged ones, and what ended runs have left
    Prune(prune::PruneArgs),
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// LoRA file, or a folder that PEFT or diffusers wrote, with the expert and the strength as in --lora
    #[arg(value_name = "[EXPERT=]FILE[@STRENGTH]")]
    file: LoraUse,
    /// Match it with the experts of this bundle
    #[arg(long, value_name = "DIR", conflicts_with = "checkpoint")]
    bundle: Option<PathBuf>,
    /// Match it with the experts of this checkpoint, a folder in the diffusers or the official layout
    #[arg(long, value_name = "DIR")]
    checkpoint: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &LoraCommandArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    match &args.command {
        LoraCommand::Inspect(args) => inspect(args, global),
        LoraCommand::Prune(args) => prune::run(args, global),
    }
}

fn inspect(args: &InspectArgs, global: &GlobalArgs) -> Result<ExitCode, Error> {
    let lora = Lora::open(&args.file.file)?;
    let summary = lora.summary()?;
    let (expert, reason) = expert(&args.file, &lora);
    let resolved = match (&args.bundle, &args.checkpoint) {
        (Some(bundle), _) => Some(against(&Bundle::open(bundle)?, std::slice::from_ref(&args.file), true)?),
        (None, Some(checkpoint)) => Some(against_checkpoint(&args.file, checkpoint)?),
        (None, None) => None,
    };
    let proof = resolved.as_ref().and_then(|resolved| resolved.proofs.first());
    let value = json!({
        "event": "lora",
        "file": render::path(lora.file().path()),
        "digest": lora.file().digest(),
        "strength": args.file.strength,
        "expert": expert,
        "expert_by": reason,
        "content": summary,
        "model": proof,
    });
    let mut text = describe(&lora, &summary, expert, reason);
    for line in proof.iter().flat_map(|proof| {
        let leftover = proof.leftover.iter().map(|left| format!("not applied   {}: {}", left.key, left.why));
        std::iter::once(proof.to_string()).chain(leftover)
    }) {
        // Writing into a String cannot fail.
        let _ = write!(text, "\n{line}");
    }
    render::result(global.json, &value, &text)?;
    let leftover = proof.map_or(&[][..], |proof| &proof.leftover);
    match LoraError::of_leftover(lora.file().path(), leftover) {
        Some(error) => Err(export::Error::from(error).into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The expert that a file is for, and what says so.
fn expert(lora: &LoraUse, file: &Lora) -> (LoraExpert, &'static str) {
    match (lora.expert, file.expert_in_name()) {
        (Some(expert), _) => (expert, "as stated"),
        (None, _) if file.has_both_experts() => {
            (LoraExpert::All, "by its keys, with changes of its own for each")
        }
        (None, Some(expert)) => (expert, "by the name of the file"),
        (None, None) => (LoraExpert::All, "because neither its keys nor its name say another"),
    }
}

fn against_checkpoint(lora: &LoraUse, folder: &std::path::Path) -> Result<Resolved, Error> {
    let checkpoint = Checkpoint::open(folder)?;
    let read = |expert: &ExpertName, name: &str| read_expert(&checkpoint, expert, name);
    let read: &ReadExpert<'_> = &read;
    matched(
        lora,
        &BaseModel { spec: &checkpoint.denoiser, routing: &checkpoint.routing, weights: Some(read) },
    )
}

fn matched(lora: &LoraUse, model: &BaseModel<'_>) -> Result<Resolved, Error> {
    Ok(Resolved::new(std::slice::from_ref(lora), true, model)?)
}

fn describe(lora: &Lora, summary: &Summary, expert: LoraExpert, reason: &str) -> String {
    let digest = lora.file().digest();
    let change = match summary.change {
        Some(change) => format!("{change:.4} at strength 1"),
        None => "needs the weights of the model, because of its magnitudes".to_owned(),
    };
    let mut lines = vec![
        format!("{} (digest {})", lora.file().path().display(), digest.get(..12).unwrap_or(digest)),
        format!("names         {}", summary.naming.join(", ")),
        format!("changes       {}", counted(&summary.forms)),
        format!("formats       {}", counted(&summary.formats)),
    ];
    if !summary.ranks.is_empty() {
        lines.push(format!("ranks         {}", counted(&summary.ranks)));
        lines.push(format!("alpha/rank    {}", counted(&summary.factors)));
    }
    lines.push(format!("Σ|ΔW|         {change}"));
    lines.push(format!("expert        {expert}, {reason}"));
    lines.extend(summary.unknown.iter().map(|key| format!("not a LoRA key: {key}")));
    lines.join("\n")
}

fn counted<T: Display>(counts: &BTreeMap<T, usize>) -> String {
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{name} ({count})")).collect();
    counts.join(", ")
}
