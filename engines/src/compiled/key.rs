//! What a compiled engine depends on.

use crate::{EngineShape, GraphContent, Provider};
use bundle::digest::Digest;
use bundle::variant::Precision;
use std::collections::BTreeMap;

/// What a compiled engine depends on. Engines of equal keys compute the same.
///
/// The number of threads is not part of it: OpenVINO writes the same engine for any number, and applies it on opening.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineKey {
    /// The graph and its weights. Two experts have graphs of one topology, and an engine of one runs as the other.
    pub content: GraphContent,
    /// The provider.
    pub provider: Provider,
    /// Its version.
    pub provider_version: String,
    /// The version of ONNX Runtime.
    pub onnx_runtime: String,
    /// What the engine's code is for, such as `sm90` or the instruction sets of the processor.
    pub architecture: String,
    /// The number format that the provider was asked to compute in.
    pub precision: Precision,
    /// The shape that it runs; `None` if it runs every shape.
    pub shape: Option<EngineShape>,
    /// A digest of the LoRAs in the graph or its weights; `None` without one. `content` differs with them too: this part
    /// is what records name them by.
    pub lora: Option<[u8; 32]>,
}

/// Digits of the digest in the name of a folder.
const DIGITS: usize = 40;

impl EngineKey {
    /// The parts of the key in words, as a record states them.
    pub fn words(&self) -> BTreeMap<String, String> {
        let none = || "none".to_owned();
        let parts = [
            ("architecture", self.architecture.clone()),
            ("content", hexadecimal(&self.content.0)),
            ("lora", self.lora.map_or_else(none, |digest| hexadecimal(&digest))),
            ("onnx_runtime", self.onnx_runtime.clone()),
            ("precision", self.precision.to_string()),
            ("provider", self.provider.to_string()),
            ("provider_version", self.provider_version.clone()),
            ("shape", self.shape.map_or("any".to_owned(), |shape| shape.to_string())),
        ];
        parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The name of the engine's folder.
    pub fn folder_name(&self) -> String {
        folder_name(self.provider, &self.words())
    }
}

/// The name of the folder of an engine with a key in words.
pub(super) fn folder_name(provider: Provider, words: &BTreeMap<String, String>) -> String {
    let parts = words.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
    let digest = Digest::of_parts(parts).blake3;
    format!("{provider}-{}", digest.get(..DIGITS).unwrap_or(&digest))
}

/// Returns the provider in the name of an engine's folder; `None` for other names.
pub(super) fn provider_in(name: &str) -> Option<Provider> {
    let (provider, digits) = name.rsplit_once('-')?;
    let is_digest = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    provider.parse().ok().filter(|_| is_digest)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeSet;

    pub(crate) fn key() -> EngineKey {
        EngineKey {
            content: GraphContent([7; 32]),
            provider: Provider::OpenVino,
            provider_version: "1.8.1".into(),
            onnx_runtime: "1.31.1".into(),
            architecture: "intel64 avx2".into(),
            precision: Precision::F32,
            shape: None,
            lora: None,
        }
    }

    #[test]
    fn every_part_of_the_key_changes_the_folder() {
        let shape = EngineShape { frames: 5, height: 60, width: 104, batch: 1 };
        let keys = [
            key(),
            EngineKey { content: GraphContent([8; 32]), ..key() },
            EngineKey { provider: Provider::TensorRt, ..key() },
            EngineKey { provider_version: "1.8.2".into(), ..key() },
            EngineKey { onnx_runtime: "1.32.0".into(), ..key() },
            EngineKey { architecture: "intel64 avx2 avx512".into(), ..key() },
            EngineKey { precision: Precision::Bf16, ..key() },
            EngineKey { shape: Some(shape), ..key() },
            EngineKey { shape: Some(EngineShape { batch: 2, ..shape }), ..key() },
            EngineKey { shape: Some(EngineShape { frames: 6, ..shape }), ..key() },
            EngineKey { shape: Some(EngineShape { height: 104, width: 60, ..shape }), ..key() },
            EngineKey { lora: Some([7; 32]), ..key() },
        ];
        let names: BTreeSet<String> = keys.iter().map(EngineKey::folder_name).collect();
        assert_eq!(names.len(), keys.len());
        let words: BTreeSet<_> = keys.iter().map(EngineKey::words).collect();
        assert_eq!(words.len(), keys.len());
    }

    #[test]
    fn the_key_in_words_is_stable() {
        let shape = EngineShape { frames: 5, height: 60, width: 104, batch: 2 };
        let words = EngineKey { shape: Some(shape), lora: Some([1; 32]), ..key() }.words();
        let words: Vec<String> = words.iter().map(|(name, value)| format!("{name}={value}")).collect();
        insta::assert_snapshot!(words.join("\n"), @r"
        architecture=intel64 avx2
        content=0707070707070707070707070707070707070707070707070707070707070707
        lora=0101010101010101010101010101010101010101010101010101010101010101
        onnx_runtime=1.31.1
        precision=f32
        provider=openvino
        provider_version=1.8.1
        shape=5 frames of 60x104, batch 2
        ");
    }

    #[test]
    fn only_names_of_engine_folders_are_recognised() {
        assert_eq!(provider_in(&key().folder_name()), Some(Provider::OpenVino));
        let rtx = EngineKey { provider: Provider::TensorRtRtx, ..key() };
        assert_eq!(provider_in(&rtx.folder_name()), Some(Provider::TensorRtRtx));
        for name in ["", "openvino", "openvino-12", "photos", "timing", "mini-0123456789abcdef-v0.1.0-2"] {
            assert_eq!(provider_in(name), None, "{name}");
        }
        assert_eq!(provider_in(&key().folder_name().replace("openvino", "photos")), None);
        assert_eq!(provider_in(&format!("{}.part", key().folder_name())), None);
    }
}
