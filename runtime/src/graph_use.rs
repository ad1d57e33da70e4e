//! What a graph of a component is used for, and what its engines are known by.

use bundle::digest::Digest;
use bundle::file_digest::FileDigest;
use bundle::geometry::LatentShape;
use bundle::lora::AppliedLora;
use bundle::manifest::{Component, ComponentEntry, GraphEntry, Manifest, Part};
use bundle::signature::Signature;
use engines::residency::MemoryNeed;
use engines::{EngineShape, GraphContent};

/// A graph of a component, and what it is used for.
#[derive(Debug, Clone, Copy)]
pub struct GraphUse<'a> {
    /// The component.
    pub component: &'a Component,
    /// The graph of the component.
    pub part: Part,
    /// The signature that the graph must have.
    pub contract: &'a Signature,
    /// The predicted memory of its session for this use.
    pub need: MemoryNeed,
    /// The shape of the clip; `None` for graphs that do not depend on it.
    pub shape: Option<EngineShape>,
}

/// The shape of a latent, for engines that run one shape, with calls of `batch` prompts.
pub fn engine_shape(latent: LatentShape, batch: usize) -> EngineShape {
    let narrow = |extent: usize| u32::try_from(extent).unwrap_or(u32::MAX);
    EngineShape {
        frames: narrow(latent.frames),
        height: narrow(latent.height),
        width: narrow(latent.width),
        batch: narrow(batch),
    }
}

/// A digest of a graph and of the weights that it reads; `None` for bundles without digests. Weights of other variants of
/// the component do not change it.
pub fn content_of(manifest: &Manifest, entry: &ComponentEntry, graph: &GraphEntry) -> Option<GraphContent> {
    let weights = entry.weight_files_of(graph.variant).iter().map(|weights| &weights.file);
    let mut parts = vec![entry.digest.blake3.clone()];
    for file in std::iter::once(&graph.file).chain(weights) {
        let FileDigest { bytes, sampled, whole } = manifest.digests.get(file)?;
        parts.push(format!("{file} {} {sampled} {}", bytes.0, whole.as_deref().unwrap_or_default()));
    }
    let hash = Digest::of_parts(parts.iter().map(String::as_bytes)).bytes()?;
    Some(GraphContent(hash))
}

/// A digest of the LoRAs of a component, merged or as branches: of their files, strengths and order, not of their names;
/// `None` without one.
pub fn loras_of(entry: &ComponentEntry) -> Option<[u8; 32]> {
    if entry.loras.is_empty() {
        return None;
    }
    let part =
        |lora: &AppliedLora| format!("{} {:08x} {}", lora.digest, lora.strength.to_bits(), lora.is_branch);
    let parts: Vec<String> = entry.loras.iter().map(part).collect();
    Digest::of_parts(parts.iter().map(String::as_bytes)).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory_plan::tests::{a14b, a14b_with_fp8};
    use bundle::manifest::WeightFile;
    use bundle::routing::ExpertName;
    use bundle::units::ByteCount;
    use bundle::variant::{Precision, Target};

    /// A manifest with digests of all its files.
    fn with_digests(mut manifest: Manifest) -> Manifest {
        let digest = |file: &str| FileDigest {
            bytes: ByteCount(1),
            sampled: Digest::of_parts([file.as_bytes()]).blake3,
            whole: None,
        };
        let entries = manifest.components.iter();
        let graphs = entries.clone().flat_map(|entry| entry.graphs.iter().map(|graph| &graph.file));
        let weights = entries.flat_map(|entry| entry.weight_files().map(|weights| &weights.file));
        manifest.digests = graphs.chain(weights).map(|file| (file.clone(), digest(file))).collect();
        manifest
    }

    /// The content of the plain graph of an expert.
    fn content(manifest: &Manifest, expert: &str, precision: Precision) -> GraphContent {
        let entry = manifest.component(&Component::Expert(ExpertName(expert.into()))).unwrap();
        let fits = |graph: &&GraphEntry| {
            (graph.variant.target, graph.variant.precision) == (Target::Plain, precision)
        };
        content_of(manifest, entry, entry.graphs.iter().find(fits).unwrap()).unwrap()
    }

    #[test]
    fn a_graph_is_known_by_its_own_weights() {
        let before = with_digests(a14b());
        let after = with_digests(a14b_with_fp8());
        let bf16 = content(&before, "high_noise", Precision::Bf16);
        assert_eq!(content(&after, "high_noise", Precision::Bf16), bf16, "a variant was added");
        assert_ne!(content(&after, "high_noise", Precision::Fp8), bf16);
        assert_ne!(content(&before, "low_noise", Precision::Bf16), bf16);

        // A variant without weights of its own reads those of the component.
        let mut shared = a14b_with_fp8();
        for entry in &mut shared.components {
            entry.variants[0].weights = Vec::new();
        }
        let content_of_shared = content(&with_digests(shared.clone()), "high_noise", Precision::Fp8);
        for entry in &mut shared.components {
            let bytes = entry.weights[0].bytes;
            entry.weights = vec![WeightFile { file: "other.safetensors".into(), bytes }];
        }
        assert_ne!(content(&with_digests(shared), "high_noise", Precision::Fp8), content_of_shared);
    }

    #[test]
    fn loras_are_known_by_file_strength_and_order() {
        let lora = |name: &str, digest: char, strength| AppliedLora {
            name: name.into(),
            digest: digest.to_string().repeat(64),
            strength,
            pairs: 1,
            deltas: 0,
            skipped: 0,
            change: 1.0,
            is_branch: true,
        };
        let of = |loras: &[AppliedLora]| {
            let entry = ComponentEntry { loras: loras.to_vec(), ..a14b().components[1].clone() };
            loras_of(&entry)
        };
        let (one, other) = (lora("x", 'a', 1.0), lora("y", 'b', 1.0));
        assert_eq!(of(&[]), None);
        let known = of(std::slice::from_ref(&one));
        assert!(known.is_some());
        assert_eq!(of(&[lora("renamed", 'a', 1.0)]), known);
        let merged = AppliedLora { is_branch: false, ..one.clone() };
        let others =
            [vec![other.clone()], vec![lora("x", 'a', 0.5)], vec![merged], vec![one.clone(), other.clone()]];
        for loras in others {
            assert_ne!(of(&loras), known, "{loras:?}");
        }
        assert_ne!(of(&[one.clone(), other.clone()]), of(&[other, one]));
    }

    #[test]
    fn a_bundle_without_digests_has_no_content() {
        let manifest = a14b();
        let entry = &manifest.components[0];
        assert_eq!(content_of(&manifest, entry, &entry.graphs[0]), None);
    }
}
