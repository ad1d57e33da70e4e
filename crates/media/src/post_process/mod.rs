//! What is done to the frames of a clip on their way to all outputs: key and background, another rate, logo, captions;
//! and the sound that goes with them. Everything is loaded and looked at before the run ([`PostProcessSpec::open`]).
//!
//! The frames are dressed once, as f32, before they are converted: all outputs show the same.

mod animation;
mod captions;
mod gapless;
mod load;
mod overlay;
mod reader;
mod resample;
mod sound;
mod srt;
mod text;
mod whole;

pub use overlay::{Corner, KeyColour};
pub use resample::Between;
pub use sound::Sound;
pub(super) use sound::{CHANNELS, RATE};
pub use srt::{Caption, SrtError};

use super::{ClipFormat, Error};
use bundle::units::FrameRate;
use captions::Captions;
use load::Film;
use ndarray::Array3;
use overlay::{ChromaKey, Overlay};
use resample::Resampler;
use std::path::PathBuf;

/// What was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PostProcessSpec {
    /// Texts at the bottom of the frame.
    pub captions: Vec<Caption>,
    /// A picture in a corner.
    pub logo: Option<(PathBuf, Corner)>,
    /// The colour of a screen, and the picture or film that replaces it.
    pub key: Option<(KeyColour, PathBuf)>,
    /// A file whose sound goes with the clip.
    pub audio: Option<PathBuf>,
    /// The rate at which the clip is played, and where its frames come from.
    pub rate: Option<(FrameRate, Between)>,
}

impl PostProcessSpec {
    /// Loads everything for a clip.
    ///
    /// # Errors
    /// A file that cannot be read, is damaged or does not fit; a font, a decoder or an element that is missing, with its
    /// Debian package.
    pub fn open(&self, made: ClipFormat) -> Result<PostProcess, Error> {
        let rate = self.rate.map_or(made.rate, |(rate, _)| rate);
        let frames = made.frames.map(|frames| Resampler::count(made.rate, rate, frames));
        let format = ClipFormat { rate, frames, ..made };
        let resampler = self
            .rate
            .filter(|(rate, _)| *rate != made.rate)
            .map(|(rate, between)| (Resampler::new(made.rate, rate, between), between));
        let note = resampler
            .as_ref()
            .map(|(_, between)| format!("{rate} fps made of {} by {}", made.rate, between.description()));
        let mut captions = Captions::open(&self.captions, format)?;
        let mut notes = std::mem::take(&mut captions.notes);
        let logo = self.logo.as_ref().map(|(path, corner)| {
            let (rgba, size) = load::picture("--logo", path)?;
            let margin = made.size.height / 30;
            Overlay::in_corner(&rgba, size, made.size, *corner, margin).ok_or_else(|| Error::PostProcess {
                flag: "--logo",
                given: path.display().to_string(),
                why: format!("it is {size}, larger than the clip, which is {}", made.size),
            })
        });
        let key = self.key.as_ref().map(|(colour, path)| {
            if let Some(frames) = made.frames {
                let pictures = Film::check("--background", path, made.size, made.rate, frames)?;
                // One picture is no film.
                if (2..frames).contains(&pictures) {
                    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                    let seconds = pictures as f64 / made.rate.per_second();
                    let shown = path.display();
                    notes.push(format!(
                        "{shown} ends after {seconds:.2} s; its last picture stays behind the clip"
                    ));
                }
            }
            Film::open("--background", path, made.size, made.rate).map(|film| (*colour, None, film))
        });
        let key = key.transpose()?;
        let sound = self.audio.as_ref().zip(frames).map(|(path, frames)| {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let seconds = frames as f64 / rate.per_second();
            let samples = load::samples("--audio", path, seconds)?;
            Sound::fit(&samples, frames, rate).ok_or_else(|| Error::PostProcess {
                flag: "--audio",
                given: path.display().to_string(),
                why: "there is no sound in it".into(),
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
            given: 0,
        })
    }
}

/// What is done to the frames of one clip.
#[derive(Debug)]
pub struct PostProcess {
    format: ClipFormat,
    note: Option<String>,
    notes: Vec<String>,
    key: Option<(KeyColour, Option<ChromaKey>, Film)>,
    resampler: Option<Resampler>,
    logo: Option<Overlay>,
    captions: Captions,
    sound: Option<Sound>,
    given: usize,
}

impl PostProcess {
    /// The clip as it comes out: another rate has another number of frames.
    pub fn format(&self) -> ClipFormat {
        self.format
    }

    /// What the metadata says about it.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What was decided that the user should know: captions that are smaller or not shown, a film that is too short.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The sound of the clip.
    pub fn sound(&self) -> Option<&Sound> {
        self.sound.as_ref()
    }

    /// The frames `[3,H,W]` in -1..1 that come out when the next one goes in.
    ///
    /// # Errors
    /// The background can no longer be read.
    pub fn push(&mut self, mut frame: Array3<f32>) -> Result<Vec<Array3<f32>>, Error> {
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

    /// The frames that come after the last one.
    pub fn finish(&mut self) -> Vec<Array3<f32>> {
        let count = self.format.frames.unwrap_or(self.given);
        let frames = self.resampler.take().map_or(vec![], |resampler| resampler.finish(count));
        self.overlaid(frames)
    }

    /// Logo and captions on frames that come out.
    fn overlaid(&mut self, mut frames: Vec<Array3<f32>>) -> Vec<Array3<f32>> {
        frames.truncate(self.format.frames.unwrap_or(usize::MAX).saturating_sub(self.given));
        for frame in &mut frames {
            if let Some(logo) = &self.logo {
                logo.draw(frame);
            }
            self.captions.draw(self.given, frame);
            self.given += 1;
        }
        frames
    }
}
