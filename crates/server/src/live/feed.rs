//! The thread that encodes one clip which is watched.

use super::{length, remove};
use bundle::Cancel;
use bundle::preview::LatentToRgb;
use bundle::units::Seed;
use media::live::LivePublisher;
use media::{ClipFormat, OutputOptions, OutputSpec, OutputTarget, Tags};
use ndarray::{Array4, Axis};
use runtime::preview::latent_to_rgb::colours;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

/// What a clip is encoded from.
#[derive(Debug)]
pub(super) struct Source {
    /// Size, rate and number of its frames.
    pub(super) format: ClipFormat,
    /// Its initial noise `[C,T,h,w]`.
    pub(super) noise: Array4<f32>,
    /// Draws latents; `None` if the model cannot.
    pub(super) map: Option<LatentToRgb>,
    /// Frames of a latent frame.
    pub(super) stride: usize,
    /// The name of the model.
    pub(super) model: String,
    /// The seed.
    pub(super) seed: Seed,
}

/// What happens to a clip.
#[derive(Debug)]
enum Event {
    Clean(Arc<Array4<f32>>),
    Frames(usize, Array4<f32>),
    Complete,
    Stop(PathBuf),
}

/// The thread that encodes a clip. It ends when this is dropped, at the latest.
#[derive(Debug)]
pub(super) struct Feed {
    events: Sender<Event>,
    length: Duration,
}

impl Feed {
    /// Starts to encode a clip into a folder.
    ///
    /// # Errors
    /// The output cannot be started.
    pub(super) fn start(folder: &Path, source: Source) -> Result<Self, media::Error> {
        let target = OutputTarget::claim(&OutputSpec::Hls { folder: folder.to_owned() })?;
        let cancel = Cancel::new();
        let tags = Tags::new(None, &*source.model, source.seed);
        let options = OutputOptions::new(source.format, tags, &cancel);
        let live = LivePublisher::start(target, &options, source.format, source.noise.view(), source.stride)?;
        let (events, received) = channel();
        let length = length(source.format.frames.unwrap_or(0), source.format.rate);
        let work = Work { live, source, added: 0 };
        let thread = std::thread::Builder::new().name("watched".into()).spawn(move || work.run(&received));
        thread.map_err(|error| media::Error::Pipeline {
            output: folder.display().to_string(),
            element: "the thread of a clip that is watched".into(),
            why: error.to_string(),
        })?;
        Ok(Self { events, length })
    }

    /// How long the clip takes.
    pub(super) fn length(&self) -> Duration {
        self.length
    }

    /// Shows the clean latent of a step.
    pub(super) fn show(&self, clean: Arc<Array4<f32>>) {
        self.send(Event::Clean(clean));
    }

    /// Shows frames, the first of which has this number.
    pub(super) fn add(&self, first: usize, frames: Array4<f32>) {
        self.send(Event::Frames(first, frames));
    }

    /// Ends the playlist once all frames are shown.
    pub(super) fn complete(&self) {
        self.send(Event::Complete);
    }

    /// Ends at once, and removes the folder. Does not wait for it.
    pub(super) fn stop_and_remove(self, folder: PathBuf) {
        self.send(Event::Stop(folder));
    }

    fn send(&self, event: Event) {
        // Fails when the thread has ended after an error, which it has reported.
        let _ = self.events.send(event);
    }
}

struct Work {
    live: LivePublisher,
    source: Source,
    /// Frames that were added.
    added: usize,
}

impl Work {
    fn run(mut self, events: &Receiver<Event>) {
        for event in events {
            let done = match event {
                Event::Clean(clean) => self.show(&clean),
                Event::Frames(first, frames) => self.add(first, &frames),
                Event::Complete => {
                    self.live.end_after_clip();
                    Ok(())
                }
                Event::Stop(folder) => {
                    drop(self);
                    remove(&folder);
                    return;
                }
            };
            if let Err(error) = done {
                tracing::warn!("a clip is not shown as it should be to those who watch it: {error}");
            }
        }
    }

    fn show(&self, clean: &Array4<f32>) -> Result<(), media::Error> {
        // Drawing takes time, and nobody sees previews once there are frames.
        let Some(map) = self.source.map.as_ref().filter(|_| self.added == 0) else { return Ok(()) };
        self.live.sink().show(colours(map, clean.view()).view(), clean.len_of(Axis(1)))
    }

    fn add(&mut self, first: usize, frames: &Array4<f32>) -> Result<(), media::Error> {
        // A job that was interrupted decodes its first frames again.
        let known = self.added.saturating_sub(first);
        self.added = self.added.max(first + frames.len_of(Axis(0)));
        let new: Vec<_> = frames.axis_iter(Axis(0)).skip(known).map(|frame| frame.to_owned()).collect();
        self.live.add_frames(&new)
    }
}
