//! All LoRA files of an export or a run: their changes, and the proof that they apply.

use super::key::expert_of;
use super::matching::{Applied, ReadWeight, Target};
use super::{Lora, LoraError};
use crate::Error;
use crate::checkpoint::Checkpoint;
use crate::weights::merge::Merge;
use crate::weights::number_format::widen;
use bundle::lora::{AppliedLora, LoraExpert, LoraUse};
use bundle::manifest::Component;
use bundle::routing::{ExpertName, Routing};
use bundle::spec::DenoiserSpec;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// The model that LoRAs are applied to.
pub struct BaseModel<'a> {
    /// Its sizes.
    pub spec: &'a DenoiserSpec,
    /// Its experts.
    pub routing: &'a Routing,
    /// Reads a weight of an expert; none if there are no weights.
    pub weights: Option<&'a ReadExpert<'a>>,
}

/// Reads a weight of an expert by its canonical name, as f32 with its shape.
pub type ReadExpert<'a> = dyn Fn(&ExpertName, &str) -> Result<(Vec<usize>, Vec<f32>), Error> + Sync + 'a;

/// Reads a weight of an expert of a checkpoint by its canonical name, as f32 with its shape.
///
/// # Errors
/// Returns an error if there is no such expert or weight, or if its file cannot be read.
pub fn read_expert(
    checkpoint: &Checkpoint,
    expert: &ExpertName,
    name: &str,
) -> Result<(Vec<usize>, Vec<f32>), Error> {
    let component = Component::Expert(expert.clone());
    let missing = || Error::MissingTensor { name: name.to_owned(), folder: PathBuf::from(&expert.0) };
    let source =
        checkpoint.sources.iter().find(|source| source.component == component).ok_or_else(missing)?;
    let tensor = source.shards.tensor(name)?;
    let mut values = vec![0.0; tensor.length / tensor.element.bytes()];
    widen(tensor.element, &tensor.read()?, &mut values);
    Ok((tensor.shape.to_vec(), values))
}

/// The changes of all files, by expert.
#[derive(Debug, Default)]
pub struct Resolved {
    /// The changes of each expert, in the order of the files.
    pub merges: Vec<(ExpertName, Merge)>,
    /// What each file changes, in order.
    pub proofs: Vec<LoraProof>,
}

/// What one file changes: the line that is shown to the user.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoraProof {
    /// The name of the file.
    pub name: String,
    /// BLAKE3 of the file.
    pub digest: String,
    /// Factor on its changes.
    pub strength: f32,
    /// What it changes in each expert, from the noisiest down.
    pub experts: Vec<ExpertProof>,
    /// Layers that the model does not have, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
    /// Keys that are left out.
    pub leftover: Vec<Leftover>,
}

/// A key that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Leftover {
    /// The key.
    pub key: String,
    /// The reason.
    pub why: String,
}

/// What a file changes in one expert.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExpertProof {
    /// The expert.
    pub expert: ExpertName,
    /// Layers that change by products of factors.
    pub pairs: usize,
    /// Such layers in the file.
    pub of_pairs: usize,
    /// Weights, biases and tables that change by stored differences.
    pub deltas: usize,
    /// The sum of the Frobenius norms of the changes; none if it needs the weights of the model.
    pub change: Option<f64>,
}

impl fmt::Display for LoraProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |count: fn(&ExpertProof) -> usize| self.experts.iter().map(count).sum::<usize>();
        let names: Vec<&str> = self.experts.iter().map(|proof| proof.expert.0.as_str()).collect();
        write!(f, "LoRA {}", self.name)?;
        if self.strength != 1.0 {
            write!(f, "@{}", self.strength)?;
        }
        write!(f, " on {}: ", names.join(" and "))?;
        if self.strength == 0.0 {
            return f.write_str("strength 0, not applied");
        }
        write!(f, "applied {} of {} pairs", sum(|proof| proof.pairs), sum(|proof| proof.of_pairs))?;
        match sum(|proof| proof.deltas) {
            0 => {}
            1 => f.write_str(", 1 delta")?,
            deltas => write!(f, ", {deltas} deltas")?,
        }
        let changes: Option<Vec<String>> =
            self.experts.iter().map(|proof| proof.change.map(rounded)).collect();
        match changes {
            Some(changes) => write!(f, ", Σ|ΔW| {}", changes.join(" + "))?,
            None => f.write_str(", Σ|ΔW| needs the weights of the model")?,
        }
        for (index, (reason, count)) in self.skipped.iter().enumerate() {
            let start = if index == 0 { "; skipped" } else { "," };
            write!(f, "{start} {count} ({reason}: this model has none)")?;
        }
        match self.leftover.as_slice() {
            [] => Ok(()),
            [one] => write!(f, "; left out {}", one.key),
            [one, others @ ..] => write!(f, "; left out {} and {} more", one.key, others.len()),
        }
    }
}

/// Three significant digits, and no fewer before the point.
fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.2e}"),
    }
}

impl LoraProof {
    /// The entry of `bundle.json` for one expert; none if the file does not change it.
    pub fn applied(&self, expert: &ExpertName, is_branch: bool) -> Option<AppliedLora> {
        let proof = self.experts.iter().find(|proof| proof.expert == *expert)?;
        (self.strength != 0.0).then(|| AppliedLora {
            name: self.name.clone(),
            digest: self.digest.clone(),
            strength: self.strength,
            pairs: proof.pairs,
            deltas: proof.deltas,
            skipped: self.skipped.values().sum(),
            change: proof.change.unwrap_or_default(),
            is_branch,
        })
    }
}

impl Resolved {
    /// Reads the files and matches them with the experts of a model. Without `lenient`, a key that cannot be applied is
    /// an error.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, is for another model or for an expert that the model does not have, or
    /// has keys that cannot be applied.
    pub fn new(loras: &[LoraUse], lenient: bool, model: &BaseModel<'_>) -> Result<Self, Error> {
        let mut resolved = Self::default();
        for lora in loras {
            let file = Lora::open(&lora.file)?;
            resolved.add(lora, &file, lenient, model)?;
        }
        Ok(resolved)
    }

    /// The merges of one expert, in order.
    pub fn of_expert(&self, expert: &ExpertName) -> Vec<Merge> {
        self.merges.iter().filter(|(name, _)| name == expert).map(|(_, merge)| merge.clone()).collect()
    }

    fn add(
        &mut self,
        lora: &LoraUse,
        file: &Lora,
        lenient: bool,
        model: &BaseModel<'_>,
    ) -> Result<(), Error> {
        let path = || file.file().path().to_owned();
        let mut proof = LoraProof {
            name: file.file().name(),
            digest: file.file().digest().to_owned(),
            strength: lora.strength,
            experts: Vec::new(),
            skipped: BTreeMap::new(),
            leftover: Vec::new(),
        };
        let mut leftover: Vec<Leftover> = Vec::new();
        for (expert, is_second) in experts_of(lora, file, model.routing)? {
            let earlier = self.of_expert(&expert);
            let read = model.weights.map(|weights| |name: &str| weights(&expert, name));
            let weights = read.as_ref().map(|read| read as &ReadWeight<'_>);
            let target = Target { spec: model.spec, weights, earlier: &earlier };
            let applied = file.matched(is_second, lora.strength, &target)?;
            let Applied { merges, pairs, of_pairs, deltas, skipped, leftover: keys, change } = applied;
            for (reason, count) in skipped {
                *proof.skipped.entry(reason).or_default() += count;
            }
            leftover.extend(keys.into_iter().map(|(key, why)| Leftover { key, why }));
            proof.experts.push(ExpertProof { expert: expert.clone(), pairs, of_pairs, deltas, change });
            self.merges.extend(merges.into_iter().map(|merge| (expert.clone(), merge)));
        }
        // A file for both experts has its keys twice.
        leftover.sort();
        leftover.dedup();
        if let Some(error) = LoraError::of_leftover(&path(), &leftover).filter(|_| !lenient) {
            return Err(error.into());
        }
        if proof.experts.iter().all(|proof| proof.pairs + proof.deltas == 0) {
            return Err(LoraError::Nothing { path: path() }.into());
        }
        proof.leftover = leftover;
        self.proofs.push(proof);
        Ok(())
    }
}

/// The experts that a file is applied to, each with the transformer of the file: by the user, else by the keys, else by
/// the name of the file, else all.
fn experts_of(lora: &LoraUse, file: &Lora, routing: &Routing) -> Result<Vec<(ExpertName, bool)>, Error> {
    let all: Vec<ExpertName> = routing.routes().iter().map(|route| route.expert.clone()).collect();
    let named = |expert: LoraExpert| all.iter().find(|name| name.0 == expert.name()).cloned();
    let missing = |expert: LoraExpert| -> Error {
        let path = file.file().path().to_owned();
        let available = all.iter().map(|name| name.0.clone()).collect();
        LoraError::Expert { path, asked: expert.name().to_owned(), available }.into()
    };
    let stated = lora.expert.filter(|expert| *expert != LoraExpert::All);
    if file.has_both_experts() {
        let halves = [false, true].map(|is_second| (expert_of(is_second), is_second));
        let chosen = halves.into_iter().filter(|(expert, _)| stated.is_none_or(|stated| stated == *expert));
        return chosen
            .map(|(expert, is_second)| Ok((named(expert).ok_or_else(|| missing(expert))?, is_second)))
            .collect();
    }
    if let Some(expert) = stated {
        return Ok(vec![(named(expert).ok_or_else(|| missing(expert))?, false)]);
    }
    let by_name = file.expert_in_name().filter(|_| lora.expert.is_none()).and_then(named);
    Ok(match by_name {
        Some(expert) => vec![(expert, false)],
        None => all.into_iter().map(|expert| (expert, false)).collect(),
    })
}
