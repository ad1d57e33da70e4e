//! Variants that a run wrote and did not live to make part of the bundle, or could not remove because the bundle was
//! being read.

use bundle::layout::{self, component_folder};
use bundle::lock;
use bundle::manifest::Bundle;
use std::collections::BTreeSet;
use std::path::Path;

/// Digits of a digest in the name of a file.
const DIGITS: usize = 12;

/// Removes files of variants that `bundle.json` does not name, unless a run reads the bundle. No other run may be
/// writing into it.
pub(super) fn clear(bundle: &Bundle) {
    if lock::is_being_read(&bundle.folder) {
        return;
    }
    let named = bundle.manifest.files();
    let components: BTreeSet<String> =
        bundle.manifest.components.iter().map(|entry| component_folder(&entry.component)).collect();
    for component in components {
        for (folder, end) in
            [(component.clone(), "onnx"), (format!("{component}/{}", layout::WEIGHTS), "safetensors")]
        {
            for entry in std::fs::read_dir(bundle.path(&folder)).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
                if is_file
                    && is_of_variant(&name, end)
                    && !named.contains(format!("{folder}/{name}").as_str())
                {
                    // One that stays behind wastes room and harms nothing.
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Whether a file is called as graphs and weights of variants are: something, a digest, and the end.
fn is_of_variant(name: &str, end: &str) -> bool {
    let path = Path::new(name);
    let is_end = path.extension().is_some_and(|found| found == end);
    let digest = path.file_stem().and_then(|stem| Path::new(stem).extension());
    is_end
        && digest.and_then(|digest| digest.to_str()).is_some_and(|digest| {
            digest.len() == DIGITS && digest.bytes().all(|digit| digit.is_ascii_hexdigit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variants_are_known_by_their_names() {
        for name in ["cpu-int8-own.0123456789ab.onnx", "first.cpu-int8.0123456789ab.onnx"] {
            assert!(is_of_variant(name, "onnx"), "{name}");
        }
        assert!(is_of_variant("int8.0123456789ab.safetensors", "safetensors"));
        for name in ["mine.onnx", "cpu-int8.0123.onnx", "0123456789ab.onnx", "cpu-int8.0123456789ag.onnx"] {
            assert!(!is_of_variant(name, "onnx"), "{name}");
        }
        assert!(!is_of_variant("diffusion_pytorch_model.safetensors", "safetensors"));
    }
}
