//! Predicted memory of sessions and of whole clips, from sizes alone.
//!
//! [`text_encoder_need`], [`step_need`] and [`decoder_need`] predict one session each;
//! [`memory_plan`](crate::memory_plan) adds up those of a clip.

mod accelerator;
mod decoder;
mod step;
mod text_encoder;
mod weights;

pub use decoder::{decoder_caches, decoder_need};
pub use step::{StepShape, step_need};
pub use text_encoder::text_encoder_need;
pub(crate) use weights::running_variant;

use bundle::units::ByteCount;
use bundle::variant::Variant;
use engines::{Provider, WeightMemory};
use std::num::NonZeroUsize;

/// Bytes of one f32.
const F32: u128 = 4;
/// Bytes of one bf16.
const BF16: u128 = 2;

/// Settings that decide the memory of a session, besides the shapes of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionSettings {
    /// The execution provider. It decides what attention keeps in memory.
    pub provider: Provider,
    /// The variant of the model. A component without graphs for it is counted in the variant that runs instead, as in
    /// [`Model::graph`](crate::model::Model::graph). `None` is the exported one on the CPU.
    pub variant: Option<Variant>,
    /// The location of weights in memory.
    pub weights: WeightMemory,
    /// Threads of the session; `None` uses every core.
    pub threads: Option<NonZeroUsize>,
}

/// Memory that a run takes for itself, as measured: buffers of the library, and of the process's allocator.
const RUN: u128 = 500_000;
/// Bytes of a pool for each entry of its table of blocks: 8 bytes for each 256.
const POOL_PER_TABLE: u128 = 32;

/// Memory of ONNX Runtime's pool when `live` bytes are held at the peak of a run.
///
/// The pool is reserved in one piece before the first run ([`engines::Engine::reserve`]). A thirty-second of it is lost
/// between blocks, as measured. Its table of blocks has 8 bytes for each 256 bytes of its region, whose size is a power
/// of two: the table is an eighth of what is used, or less.
fn pool(live: u128) -> u128 {
    let used = live + live / 32 + RUN;
    let reserved = u64::try_from(used + used / 8)
        .map_or(u128::MAX / 2, |bytes| u128::from(engines::memory::reserved_pool(ByteCount(bytes)).0));
    used + reserved.checked_next_power_of_two().unwrap_or(reserved) / POOL_PER_TABLE
}

/// Memory of the pool of an accelerator: its table of blocks is in the memory of the CPU.
fn pool_of_accelerator(live: u128) -> u128 {
    live + live / 32 + RUN
}

/// Converts a byte count. Sums and products use 128 bits, which the extents of a bundle cannot exceed.
fn bytes(count: u128) -> ByteCount {
    ByteCount(u64::try_from(count).unwrap_or(u64::MAX))
}

fn wide(extent: usize) -> u128 {
    extent as u128
}
