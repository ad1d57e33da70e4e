//! What sees the pictures of clips while they are made, such as a server that shows previews.

use ndarray::Array4;
use runtime::scheduler::JobId;
use std::fmt;
use std::sync::Arc;

/// Sees the pictures of clips while they are made. It is called on the threads of the devices, which do nothing else
/// meanwhile.
pub trait Follower: fmt::Debug + Send + Sync {
    /// A step is made, counted from 1. `clean [C,T,h,w]` is the clean latent that it predicted.
    fn on_step(&self, id: JobId, step: usize, clean: &Arc<Array4<f32>>);

    /// Frames are decoded: `frames [N,3,H,W]` in -1..1. The first of them has the number `first`, from 0. A job that
    /// was interrupted while it was decoded begins at 0 again.
    fn on_frames(&self, id: JobId, first: usize, frames: &Array4<f32>);
}
