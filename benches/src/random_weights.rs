//! Random weights at real sizes.

use bundle::dtype::ElementType;
use export::checkpoint::inventory::Required;
use export::weights::{ExternalTensor, PlacedWeights};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Result, Write};
use std::path::Path;

/// The standard deviation of the weights; keeps activations of deep models finite.
const SPREAD: f32 = 0.02;

/// Writes random f32 weights to `weights/random.bin` in `folder`, and returns the location of each tensor.
///
/// # Errors
/// Returns an error if the file cannot be written.
pub fn write(folder: &Path, required: &[Required]) -> Result<PlacedWeights> {
    std::fs::create_dir_all(folder.join("weights"))?;
    let location = "weights/random.bin";
    let mut file = BufWriter::new(File::create(folder.join(location))?);
    let mut tensors = BTreeMap::new();
    let mut offset = 0_u64;
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    for weight in required {
        let count = weight.shape.iter().product::<usize>();
        // Gains are near 1, all other weights near 0.
        let centre = if weight.name.contains("norm") || weight.name.ends_with("gamma") { 1.0 } else { 0.0 };
        for _ in 0..count {
            file.write_all(&(centre + SPREAD * random.next()).to_le_bytes())?;
        }
        let length = (count * ElementType::F32.bytes()) as u64;
        let tensor = ExternalTensor {
            location: location.into(),
            offset,
            length,
            element: ElementType::F32,
            shape: weight.shape.clone(),
        };
        tensors.insert(weight.name.clone(), tensor);
        offset += length;
    }
    file.flush()?;
    Ok(PlacedWeights { tensors, files: Vec::new(), from: folder.to_owned() })
}

/// A xorshift generator, which returns the same numbers in each run.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// Returns a uniformly distributed number of mean 0 and variance 1.
    #[expect(clippy::should_implement_trait, reason = "an endless source does not need an iterator")]
    pub fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit an f32")]
        let unit = (self.0 >> 40) as f32 / (1_u32 << 24) as f32;
        (unit - 0.5) * 12.0_f32.sqrt()
    }
}
