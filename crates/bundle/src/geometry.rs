//! Frames, pixels, latents and tokens: every rounding rule in one place.

use crate::{Error, Field};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Pixels and frames per latent position. Wan2.1's VAE: 4 frames, 8 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaeStride {
    /// Frames per latent frame (the first encodes a single frame).
    pub time: usize,
    /// Pixels per latent position, in each direction.
    pub space: usize,
}

/// Latent positions per token: `[time, height, width]`. Wan: 1, 2, 2.
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
    /// The largest number of frames, far above what any model was trained for.
    pub const MAX: usize = 100_000;

    /// Creates a number of frames from 1 to [`Self::MAX`].
    ///
    /// # Errors
    /// Returns an error for any other number.
    pub fn try_new(frames: usize) -> Result<Self, Error> {
        if (1..=Self::MAX).contains(&frames) {
            Ok(Self(frames))
        } else {
            Err(Error::value(
                Field::Frames,
                frames,
                format!("a clip has 1 to {} frames", Self::MAX),
                "use the default by leaving it out",
            ))
        }
    }

    /// Returns the number.
    pub fn get(self) -> usize {
        self.0
    }

    /// Returns the latent frames needed for at least this many frames: `⌈(n-1)/stride⌉ + 1`.
    pub fn latent_frames(self, stride: VaeStride) -> usize {
        (self.0 - 1).div_ceil(stride.time) + 1
    }

    /// Returns the frames that the model generates: the next `stride·n + 1`. The frames above this count are trimmed.
    pub fn generated(self, stride: VaeStride) -> usize {
        (self.latent_frames(stride) - 1) * stride.time + 1
    }
}

/// Width and height of a frame in pixels.
///
/// ```
/// use bundle::geometry::PixelSize;
///
/// let size: PixelSize = "832x480".parse()?;
/// assert_eq!((size.width, size.height), (832, 480));
/// assert_eq!(size.to_string(), "832x480");
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PixelSize {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

impl PixelSize {
    /// The largest accepted side.
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
                    Field::Size,
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
///
/// ```
/// use bundle::geometry::{FrameCount, LatentShape, Patch, VaeStride};
///
/// let (stride, patch) = (VaeStride { time: 4, space: 8 }, Patch { time: 1, height: 2, width: 2 });
/// let shape = LatentShape::of_clip("832x480".parse()?, FrameCount::try_new(81)?, 16, stride, patch)?;
/// assert_eq!(shape.dims(), (16, 21, 60, 104));
/// assert_eq!(shape.tokens(patch), 32_760);
/// # Ok::<(), bundle::Error>(())
/// ```
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
    /// Returns the latent shape of a clip.
    ///
    /// # Errors
    /// Returns an error with the two nearest valid sizes if a side is not a multiple of `stride.space × patch`.
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
            return Err(Error::value(Field::Size, size, rule, fix));
        }
        Ok(Self {
            channels,
            frames: frames.latent_frames(stride),
            height: size.height / stride.space,
            width: size.width / stride.space,
        })
    }

    /// Returns the number of tokens of a denoising step.
    pub fn tokens(&self, patch: Patch) -> usize {
        let [frames, height, width] = self.token_grid(patch);
        frames * height * width
    }

    /// Returns the number of tokens along time, height and width.
    pub fn token_grid(&self, patch: Patch) -> [usize; 3] {
        [self.frames / patch.time, self.height / patch.height, self.width / patch.width]
    }

    /// Returns the shape in ndarray's form.
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
    fn published_sizes_have_the_published_token_counts() {
        let tokens = |size: &str| {
            let shape =
                LatentShape::of_clip(size.parse().unwrap(), FrameCount(81), 16, WAN.0, WAN.1).unwrap();
            (shape.frames, shape.tokens(WAN.1))
        };
        assert_eq!(tokens("832x480"), (21, 32_760));
        assert_eq!(tokens("1280x720"), (21, 75_600));
    }

    #[test]
    fn a_size_that_is_not_a_multiple_is_refused_with_the_two_nearest() {
        let error =
            LatentShape::of_clip(PixelSize { width: 830, height: 480 }, FrameCount(81), 16, WAN.0, WAN.1);
        insta::assert_snapshot!(error.unwrap_err(), @"size cannot be 830x480: width and height must be multiples of 16 (use 816x480 or 832x480)");
    }

    #[test]
    fn sizes_are_parsed_in_the_usual_spellings_only() {
        for text in ["832x480", "832X480", "832*480", " 832 x 480 "] {
            assert_eq!(text.parse::<PixelSize>().unwrap(), PixelSize { width: 832, height: 480 });
        }
        for wrong in ["", "832", "x480", "0x16", "832x480x3", "-16x16", "99999x16"] {
            assert!(wrong.parse::<PixelSize>().is_err(), "{wrong} was accepted");
        }
    }

    proptest! {
        #[test]
        fn generated_frames_are_the_fewest_that_cover_the_request(requested in 1_usize..2000) {
            let frames = FrameCount::try_new(requested).unwrap();
            let generated = frames.generated(WAN.0);
            prop_assert!(generated >= requested && generated < requested + 4);
            prop_assert_eq!(generated % 4, 1);
            prop_assert_eq!(FrameCount(generated).latent_frames(WAN.0), frames.latent_frames(WAN.0));
        }
    }
}
