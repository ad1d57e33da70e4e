//! Bundles with LoRAs as branches.

use bundle::lora::LoraUse;
use bundle::manifest::{Bundle, Component};
use bundle::routing::ExpertName;
use bundle::stop::Stop;
use export::Error;
use export::branched::{self, BranchedRequest};
use export::lora::resolved::{BaseModel, Resolved};
use export::quantized::BundleWeights;
use std::path::Path;

/// Writes a bundle with branches to the new folder `folder`.
///
/// # Errors
/// Returns an error if a LoRA cannot be applied as a branch.
///
/// # Panics
/// Panics if the folder exists.
pub fn branched(bundle: &Bundle, loras: &[LoraUse], folder: &Path) -> Result<Bundle, Error> {
    let manifest = &bundle.manifest;
    let read = |name: &ExpertName, weight: &str| {
        let entry = manifest.component(&Component::Expert(name.clone()))?;
        BundleWeights::open(bundle, entry)?.read(weight)
    };
    let model = BaseModel { spec: &manifest.denoiser, routing: &manifest.routing, weights: Some(&read) };
    let resolved = Resolved::new(loras, false, &model)?;
    std::fs::create_dir(folder).expect("a new folder");
    branched::write(&BranchedRequest { bundle, loras: &resolved, stop: &Stop::new() }, folder)?;
    Ok(Bundle::open(folder)?)
}
