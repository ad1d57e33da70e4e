//! Frames, pixels, latents and tokens: every rounding rule in one place.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How many pixels and frames one latent position stands for. Wan2.1's VAE: 4 frames, 8 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaeStride {
    /// Frames per latent frame (after the first, which stands for one frame).
    pub time: usize,
    /// Pixels per latent position, in each direction.
    pub space: usize,
}

/// How many latent positions one token covers: `[time, height, width]`. Wan: 1, 2, 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    /// Latent frames per token.
    pub time: usize,
    /// Latent rows per token.
    pub height: usize,
    /// Latent columns per token.
    pub width: usize,
}

/// Number of frames of a clip, at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FrameCount(usize);

impl FrameCount {
    /// The longest clip that is accepted, far above what any model was trained for.
    pub const MAX: usize = 100_000;

    /// A number of frames from 1 to [`Self::MAX`].
    ///
    /// # Errors
    /// Any other number.
    pub fn try_new(frames: usize) -> Result<Self, Error> {
        if (1..=Self::MAX).contains(&frames) {
            Ok(Self(frames))
        } else {
            Err(Error::value(
                "--frames",
                frames,
                format!("a clip has 1 to {} frames", Self::MAX),
                "use the default by leaving it out",
            ))
        }
    }

    /// The number itself.
    pub fn get(self) -> usize {
        self.0
    }

    /// Latent frames that are needed for at least this many frames: `⌈(n-1)/stride⌉ + 1`.
    pub fn latent_frames(self, stride: VaeStride) -> usize {
        (self.0 - 1).div_ceil(stride.time) + 1
    }

    /// The frames that the model makes: the next `stride·n + 1`. The rest over what was asked is trimmed.
    pub fn made(self, stride: VaeStride) -> usize {
        (self.latent_frames(stride) - 1) * stride.time + 1
    }
}

/// Width and height of a picture in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PixelSize {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl PixelSize {
    /// The largest side that is accepted.
    pub const MAX_SIDE: usize = 16_384;
}

impl fmt::Display for PixelSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl std::str::FromStr for PixelSize {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let side =
            |part: &str| part.trim().parse::<usize>().ok().filter(|side| (1..=Self::MAX_SIDE).contains(side));
        text.split_once(['x', 'X', '*', '×'])
            .and_then(|(width, height)| Some(Self { width: side(width)?, height: side(height)? }))
            .ok_or_else(|| {
                Error::value(
                    "--size",
                    format!("`{text}`"),
                    format!("it takes width and height in pixels, each 1 to {}", Self::MAX_SIDE),
                    "write it like 832x480",
                )
            })
    }
}

impl TryFrom<String> for PixelSize {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PixelSize> for String {
    fn from(size: PixelSize) -> Self {
        size.to_string()
    }
}

/// Shape of a latent, `[C,T,h,w]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatentShape {
    /// Latent channels.
    pub channels: usize,
    /// Latent frames.
    pub frames: usize,
    /// Latent rows.
    pub height: usize,
    /// Latent columns.
    pub width: usize,
}

impl LatentShape {
    /// The latent of a clip.
    ///
    /// # Errors
    /// A side that is no multiple of `stride.space × patch`, with the two nearest sizes that are.
    pub fn of_clip(
        size: PixelSize,
        frames: FrameCount,
        channels: usize,
        stride: VaeStride,
        patch: Patch,
    ) -> Result<Self, Error> {
        let (step_w, step_h) = (stride.space * patch.width, stride.space * patch.height);
        if !size.width.is_multiple_of(step_w) || !size.height.is_multiple_of(step_h) {
            let rule = if step_w == step_h {
                format!("width and height must be multiples of {step_w}")
            } else {
                format!("the width must be a multiple of {step_w} and the height of {step_h}")
            };
            let below = PixelSize {
                width: (size.width / step_w).max(1) * step_w,
                height: (size.height / step_h).max(1) * step_h,
            };
            let above = PixelSize {
                width: size.width.div_ceil(step_w) * step_w,
                height: size.height.div_ceil(step_h) * step_h,
            };
            let fix = if below == above { format!("use {below}") } else { format!("use {below} or {above}") };
            return Err(Error::value("--size", size, rule, fix));
        }
        Ok(Self {
            channels,
            frames: frames.latent_frames(stride),
            height: size.height / stride.space,
            width: size.width / stride.space,
        })
    }

    /// Tokens that a denoiser sees.
    pub fn tokens(&self, patch: Patch) -> usize {
        let [frames, height, width] = self.token_grid(patch);
        frames * height * width
    }

    /// Tokens along time, height and width.
    pub fn token_grid(&self, patch: Patch) -> [usize; 3] {
        [self.frames / patch.time, self.height / patch.height, self.width / patch.width]
    }

    /// The shape as ndarray takes it.
    pub fn dims(&self) -> (usize, usize, usize, usize) {
        (self.channels, self.frames, self.height, self.width)
    }
}

impl fmt::Display for LatentShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{},{},{},{}]", self.channels, self.frames, self.height, self.width)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WAN: (VaeStride, Patch) = (VaeStride { time: 4, space: 8 }, Patch { time: 1, height: 2, width: 2 });

    #[test]
    fn the_published_sizes_give_the_published_token_counts() {
        let tokens = |size: &str| {
            let shape =
                LatentShape::of_clip(size.parse().unwrap(), FrameCount(81), 16, WAN.0, WAN.1).unwrap();
            (shape.frames, shape.tokens(WAN.1))
        };
        assert_eq!(tokens("832x480"), (21, 32_760));
        assert_eq!(tokens("1280x720"), (21, 75_600));
    }

    #[test]
    fn a_size_that_does_not_divide_is_refused_with_the_two_nearest() {
        let error =
            LatentShape::of_clip(PixelSize { width: 830, height: 480 }, FrameCount(81), 16, WAN.0, WAN.1);
        insta::assert_snapshot!(error.unwrap_err(), @"--size cannot be 830x480: width and height must be multiples of 16 (use 816x480 or 832x480)");
    }

    #[test]
    fn sizes_are_read_in_the_usual_spellings_and_nothing_else() {
        for text in ["832x480", "832X480", "832*480", " 832 x 480 "] {
            assert_eq!(text.parse::<PixelSize>().unwrap(), PixelSize { width: 832, height: 480 });
        }
        for wrong in ["", "832", "x480", "0x16", "832x480x3", "-16x16", "99999x16"] {
            assert!(wrong.parse::<PixelSize>().is_err(), "{wrong} was accepted");
        }
    }

    proptest! {
        #[test]
        fn made_frames_are_the_fewest_that_cover_what_was_asked(asked in 1_usize..2000) {
            let frames = FrameCount::try_new(asked).unwrap();
            let made = frames.made(WAN.0);
            prop_assert!(made >= asked && made < asked + 4);
            prop_assert_eq!(made % 4, 1);
            prop_assert_eq!(FrameCount(made).latent_frames(WAN.0), frames.latent_frames(WAN.0));
        }
    }
}
