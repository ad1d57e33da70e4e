//! File names of a bundle.
//!
//! ```text
//! BUNDLE/bundle.json
//!        tokenizer.json
//!        text_encoder/cpu-f32.<digest>.onnx            + weights/*.safetensors
//!        experts/high_noise/cpu-f32.<digest>.onnx      + weights/*.safetensors
//!        experts/low_noise/cpu-f32.<digest>.onnx       + weights/*.safetensors
//!        image_encoder/…                               + weights/*.safetensors, with an image encoder
//!        preview/map.json                              the linear map of previews, once fitted
//!        decoder/first.cpu-f32.<digest>.onnx
//!        decoder/next.cpu-f32.<digest>.onnx            + weights/*.safetensors
//!        decoder/trunk.first.…, upsampler.first.…, trunk.next.…, upsampler.next.…: both split in two, for tiles
//!        preview/first.…, preview/next.…               + weights/*.safetensors, with a tiny decoder
//! ```
//!
//! Weights are below the folder of their graphs because ONNX Runtime refuses external data outside of it.

use crate::component::{Component, Part};
use crate::digest::Digest;
use crate::variant::Variant;

/// Name of the manifest. It is written last, so a folder that has it is complete.
pub const MANIFEST: &str = "bundle.json";
/// Name of the manifest of graphs without weights, see [`graph_set`](crate::graph_set). It is written last.
pub const GRAPHS: &str = "graphs.json";
/// Name of the tokenizer.
pub const TOKENIZER: &str = "tokenizer.json";
/// The linear map of previews.
pub const PREVIEW_MAP: &str = "preview/map.json";
/// Folder of bundles that are the same with LoRAs as branches, in the bundle.
pub const LORAS: &str = "loras";
/// Folder of a component's weights, in the folder of its graphs.
pub const WEIGHTS: &str = "weights";

/// Returns the folder of a component, relative to the bundle.
pub fn component_folder(component: &Component) -> String {
    match component {
        Component::TextEncoder => "text_encoder".into(),
        Component::Expert(name) => format!("experts/{name}"),
        Component::ImageEncoder => "image_encoder".into(),
        Component::Decoder => "decoder".into(),
        Component::Preview => "preview".into(),
    }
}

/// Returns the file of a graph, relative to the bundle.
pub fn graph_file(component: &Component, part: Part, variant: Variant, digest: &Digest) -> String {
    let prefix = match part {
        Part::Whole => "",
        Part::First => "first.",
        Part::Next => "next.",
        Part::TrunkFirst => "trunk.first.",
        Part::UpsamplerFirst => "upsampler.first.",
        Part::TrunkNext => "trunk.next.",
        Part::UpsamplerNext => "upsampler.next.",
    };
    format!("{}/{prefix}{}.{}.onnx", component_folder(component), variant.name(), digest.short())
}
