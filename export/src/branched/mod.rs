//! Bundles whose experts have LoRAs as branches: the weights of the base bundle stay as they are.
//!
//! Such a bundle has hard links to the files of its base, step graphs of its own, and a file with the factors of the
//! branches and with private copies of the small weights that change: biases, norms, modulation tables, and the layers
//! before and after the blocks.
//!
//! | Modules | Contents |
//! |---|---|
//! | `layer` | the branch of one layer, from changes to tensors |
//! | `plan` | branches and private copies of one expert in one variant |
//! | `packed` | the same for Rushes kernels, whose layers are fused and packed |
//! | `factors` | the factors of a fused layer's branch in the formats of these kernels |
//! | `folder` | the bundle on disk |

mod factors;
mod folder;
mod layer;
mod packed;
mod plan;

pub use folder::{BranchedRequest, digest, write};
pub use packed::pack;
