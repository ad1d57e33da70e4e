//! Published models whose recommended settings are known.

use crate::geometry::{Patch, PixelSize};
use crate::settings::{Recommended, ScheduleKind, SolverKind};
use crate::spec::{DenoiserSpec, VaeSpec};
use crate::units::FrameRate;

/// The negative prompt that Wan is published with.
pub const OFFICIAL_NEGATIVE_PROMPT: &str = "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走";

/// A published model.
#[derive(Debug, Clone, PartialEq)]
pub struct KnownModel {
    /// Its name.
    pub name: &'static str,
    /// What its authors recommend.
    pub recommended: Recommended,
}

/// Finds the published model that a denoiser with this many experts belongs to.
pub fn identify(denoiser: &DenoiserSpec, experts: usize) -> Option<KnownModel> {
    let dims = (denoiser.width(), denoiser.layers, denoiser.in_channels, experts);
    (dims == (5120, 40, 16, 2)).then(|| KnownModel {
        name: "Wan2.2-T2V-A14B",
        recommended: Recommended {
            size: Some(PixelSize { width: 1280, height: 720 }),
            frames: Some(81),
            fps: Some(FrameRate::WAN),
            steps: Some(40),
            guidance: Some(vec![4.0, 3.0]),
            // Its scheduler_config.json says 3, which gives a different trajectory and worse clips.
            shift: Some(12.0),
            sampler: Some(SolverKind::UniPc),
            schedule: Some(ScheduleKind::Official),
            negative: Some(OFFICIAL_NEGATIVE_PROMPT.into()),
        },
    })
}

/// A text-to-video denoiser of Wan, whose heads are 128 wide. The published ones: 12 heads, 30 layers, 8960 (1.3B), and 40,
/// 40, 13824 (A14B).
pub fn wan_denoiser(heads: usize, layers: usize, feed_forward: usize) -> DenoiserSpec {
    DenoiserSpec {
        heads,
        head_width: 128,
        layers,
        feed_forward,
        in_channels: 16,
        out_channels: 16,
        patch: Patch { time: 1, height: 2, width: 2 },
        text_width: 4096,
        frequency_width: 256,
        epsilon: 1e-6,
    }
}

/// The VAE that the A14B models share with Wan2.1.
pub fn wan21_vae() -> VaeSpec {
    VaeSpec {
        base: 96,
        latent_channels: 16,
        multipliers: vec![1, 2, 4, 4],
        residual_blocks: 2,
        temporal_downsample: vec![false, true, true],
        latents_mean: vec![
            -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
            -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
        ],
        latents_std: vec![
            2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
            1.6382, 1.1253, 2.8251, 1.9160,
        ],
    }
}
