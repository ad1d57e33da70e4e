//! Removes variant files that an interrupted run left in the bundle, or that could not be removed while the bundle was
//! in use.

use bundle::layout::{self, component_folder};
use bundle::lock;
use bundle::manifest::Bundle;
use std::collections::BTreeSet;
use std::path::Path;

/// Digits of a digest in a file name.
const DIGITS: usize = 12;

/// Removes variant files that `bundle.json` does not name, unless another process uses the bundle. The caller must hold
/// the write lock of the bundle.
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
                    // A file that cannot be removed wastes disk space and is harmless.
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
    }
}

/// Returns true if a file name has the form of variant graphs and weights: a stem, a digest and the extension.
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
    fn variant_files_are_recognised_by_their_names() {
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
