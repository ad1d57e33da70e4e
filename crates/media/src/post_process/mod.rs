//! Post-processing ("overlays and audio"): chroma key, another frame rate, logo, captions and audio.
//!
//! All files are loaded and checked before the run ([`PostProcessSpec::open`]). Frames are processed once, as f32,
//! before they are converted, so that all outputs show the same.

mod animation;
mod audio;
mod captions;
mod gapless;
mod integrity;
mod load;
mod overlay;
mod reader;
mod resample;
mod srt;
mod text;

pub use audio::AudioSource;
pub use overlay::{Corner, KeyColour};
pub use resample::Interpolation;
pub use srt::{Caption, SrtError};

use crate::frames::check_shape;
pub use crate::sound::Sound;
use crate::{ClipFormat, Error};
use bundle::Field;
use bundle::units::FrameRate;
use captions::Captions;
use load::BackgroundVideo;
use ndarray::Array3;
use overlay::ChromaKey;
pub(crate) use overlay::Overlay;
use resample::Resampler;
use std::path::PathBuf;
pub(crate) use text::{check as check_text, draw as draw_text};

/// The settings of post-processing.
///
/// ```
/// use bundle::units::FrameRate;
/// use media::ClipFormat;
/// use media::post_process::{Interpolation, PostProcessSpec};
/// use ndarray::Array3;
///
/// let input = ClipFormat { size: "64x32".parse()?, rate: FrameRate::try_new(16)?, frames: Some(2) };
/// let rate = Some((FrameRate::try_new(24)?, Interpolation::Blend));
/// let mut post_process = PostProcessSpec { rate, ..PostProcessSpec::default() }.open(input)?;
/// assert_eq!(post_process.format().frames, Some(3));
/// let mut frames = vec![];
/// for _ in 0..2 {
///     frames.extend(post_process.push(Array3::zeros((3, 32, 64)))?);
/// }
/// frames.extend(post_process.finish());
/// assert_eq!(frames.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostProcessSpec {
    /// Captions at the bottom of the frame.
    pub captions: Vec<Caption>,
    /// A picture in a corner.
    pub logo: Option<(PathBuf, Corner)>,
    /// The key colour, and the picture or video that replaces it.
    pub key: Option<(KeyColour, PathBuf)>,
    /// The audio of the clip.
    pub audio: Option<AudioSource>,
    /// The output rate, and the interpolation of its frames.
    pub rate: Option<(FrameRate, Interpolation)>,
}

impl PostProcessSpec {
    /// Loads all files for a clip.
    ///
    /// # Errors
    /// Returns an error if a file cannot be read, is damaged or does not fit, or if a font, a decoder or an element is
    /// missing (with its Debian package).
    pub fn open(&self, input: ClipFormat) -> Result<PostProcess, Error> {
        let rate = self.rate.map_or(input.rate, |(rate, _)| rate);
        let frames = input.frames.map(|frames| Resampler::count(input.rate, rate, frames));
        let format = ClipFormat { rate, frames, ..input };
        let resampler = self
            .rate
            .filter(|(rate, _)| *rate != input.rate)
            .map(|(rate, interpolation)| (Resampler::new(input.rate, rate, interpolation), interpolation));
        let note = resampler.as_ref().map(|(_, interpolation)| {
            format!("{rate} fps made of {} by {}", input.rate, interpolation.description())
        });
        let mut captions = Captions::open(&self.captions, format)?;
        let mut notes = std::mem::take(&mut captions.notes);
        let logo = self.logo.as_ref().map(|(path, corner)| {
            let (rgba, size) = load::picture(Field::Logo, path)?;
            let margin = input.size.height / 30;
            Overlay::in_corner(&rgba, size, input.size, *corner, margin).ok_or_else(|| Error::PostProcess {
                field: Field::Logo,
                value: path.display().to_string(),
                why: format!("it is {size}, larger than the clip, which is {}", input.size),
            })
        });
        let key = self.key.as_ref().map(|(colour, path)| {
            if let Some(frames) = input.frames {
                let pictures =
                    BackgroundVideo::check(Field::Background, path, input.size, input.rate, frames)?;
                // A single picture is not a video.
                if (2..frames).contains(&pictures) {
                    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                    let seconds = pictures as f64 / input.rate.per_second();
                    let shown = path.display();
                    notes.push(format!("{shown} ends after {seconds:.2} s; its last frame is repeated"));
                }
            }
            BackgroundVideo::open(Field::Background, path, input.size, input.rate)
                .map(|video| (*colour, None, video))
        });
        let key = key.transpose()?;
        let sound = self.audio.as_ref().zip(frames).map(|(source, frames)| {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let seconds = frames as f64 / rate.per_second();
            let samples = source.samples(Field::Audio, seconds)?;
            Sound::fit(&samples, frames, rate).ok_or_else(|| Error::PostProcess {
                field: Field::Audio,
                value: source.path().display().to_string(),
                why: "it contains no sound".into(),
            })
        });
        Ok(PostProcess {
            format,
            note,
            notes,
            key,
            resampler: resampler.map(|(resampler, _)| resampler),
            logo: logo.transpose()?,
            captions,
            sound: sound.transpose()?,
            count: 0,
        })
    }
}

/// Post-processing of one clip, opened by [`PostProcessSpec::open`].
#[derive(Debug)]
pub struct PostProcess {
    format: ClipFormat,
    note: Option<String>,
    notes: Vec<String>,
    key: Option<(KeyColour, Option<ChromaKey>, BackgroundVideo)>,
    resampler: Option<Resampler>,
    logo: Option<Overlay>,
    captions: Captions,
    sound: Option<Sound>,
    /// Frames returned so far.
    count: usize,
}

impl PostProcess {
    /// The format of the processed clip. Another rate changes the number of frames.
    pub fn format(&self) -> ClipFormat {
        self.format
    }

    /// A note for the metadata.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Notes for the user: captions that were shrunk or are not shown, a background that is too short.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The audio of the clip.
    pub fn sound(&self) -> Option<&Sound> {
        self.sound.as_ref()
    }

    /// Processes the next frame `[3,H,W]` in -1..1. Returns the frames that are complete.
    ///
    /// # Errors
    /// Returns an error if the frame has another size than the clip, or if the background cannot be read.
    pub fn push(&mut self, mut frame: Array3<f32>) -> Result<Vec<Array3<f32>>, Error> {
        check_shape(frame.view(), [3, self.format.size.height, self.format.size.width])?;
        if let Some((colour, key, background)) = &mut self.key {
            let key = key.get_or_insert_with(|| ChromaKey::measure(*colour, frame.view()));
            key.apply(&mut frame, background.next()?.view());
        }
        let frames = match &mut self.resampler {
            Some(resampler) => resampler.push(frame),
            None => vec![frame],
        };
        Ok(self.overlaid(frames))
    }

    /// Returns the remaining frames after the last one was pushed.
    pub fn finish(&mut self) -> Vec<Array3<f32>> {
        let total = self.format.frames.unwrap_or(self.count);
        let frames = self.resampler.take().map_or(vec![], |resampler| resampler.finish(total));
        self.overlaid(frames)
    }

    /// Draws logo and captions.
    fn overlaid(&mut self, mut frames: Vec<Array3<f32>>) -> Vec<Array3<f32>> {
        frames.truncate(self.format.frames.unwrap_or(usize::MAX).saturating_sub(self.count));
        for frame in &mut frames {
            if let Some(logo) = &self.logo {
                logo.draw(frame);
            }
            self.captions.draw(self.count, frame);
            self.count += 1;
        }
        frames
    }
}
