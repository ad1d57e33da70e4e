//! Pushes one picture for each tick of the clock into a live output, whatever the run is doing.
//!
//! Every picture has the next number and so the next moment of one time line: neither the change from previews to the clip
//! nor the clip's beginning anew is a jump. A picture that is on again shares its memory with the first time.

use super::broadcast::{Broadcast, Sent, Turn};
use crate::preview_files::resized_colours;
use crate::{ClipFormat, Error, Output, OutputOptions, OutputTarget, SharedFrame};
use bundle::Cancel;
use bundle::geometry::PixelSize;
use ndarray::{Array3, ArrayView3, ArrayView4, Axis};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A live output that always has a picture.
#[derive(Debug)]
pub struct LivePublisher {
    shared: Arc<PublisherState>,
    size: PixelSize,
    /// Frames of the clip that each latent frame after the first makes.
    stride: usize,
    thread: JoinHandle<Result<Sent, Error>>,
}

#[derive(Debug)]
struct PublisherState {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    broadcast: Broadcast<SharedFrame>,
    /// Ends the playlist when it is requested.
    until: Option<Cancel>,
}

impl PublisherState {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the playlist is whole, so it is of use even after a panic elsewhere.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LivePublisher {
    /// Starts the output in the format of the finished clip. It shows `noise [C,T,h,w]` until the first preview; each latent
    /// frame will make about `stride` frames.
    ///
    /// # Errors
    /// An output that does not start.
    pub fn start(
        target: OutputTarget,
        options: &OutputOptions,
        format: ClipFormat,
        noise: ArrayView4<'_, f32>,
        stride: usize,
    ) -> Result<Self, Error> {
        // The run's own cancellation ends the clip; what is on the air ends when the run says so.
        let cancel = Cancel::new();
        let format = ClipFormat { frames: None, ..format };
        let options = OutputOptions { format, sound: None, cancel, ..options.clone() };
        let ClipFormat { size, rate, .. } = format;
        let output = Output::start(target, &options)?;
        let first = frame(noise_colours(noise).view(), size)?;
        let state = State { broadcast: Broadcast::new(first, rate), until: None };
        let shared = Arc::new(PublisherState { state: Mutex::new(state), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(output, &of_thread));
        Ok(Self { shared, size, stride, thread })
    }

    /// What was on so far.
    pub fn sent(&self) -> Sent {
        self.shared.lock().broadcast.sent()
    }

    /// Somewhere that previews can go.
    pub fn sink(&self) -> LiveSink {
        LiveSink { shared: Arc::clone(&self.shared), size: self.size, stride: self.stride }
    }

    /// Adds frames of the clip, each `[3,H,W]` in -1..1.
    ///
    /// # Errors
    /// Frames of another size.
    pub fn add(&self, frames: &[Array3<f32>]) -> Result<(), Error> {
        for colours in frames {
            let frame = frame(colours.view(), self.size)?;
            self.shared.lock().broadcast.playlist().add(frame);
        }
        Ok(())
    }

    /// The clip is whole: it goes round until `until` is requested. Gives what was on.
    ///
    /// # Errors
    /// What ended the output before that.
    pub fn go_round(self, until: &Cancel) -> Result<Sent, Error> {
        let mut state = self.shared.lock();
        state.broadcast.playlist().complete();
        state.until = Some(until.clone());
        drop(state);
        self.join()
    }

    /// Ends the output here.
    ///
    /// # Errors
    /// What ended it before.
    pub fn stop(self) -> Result<Sent, Error> {
        let now = Cancel::new();
        now.cancel();
        self.shared.lock().until = Some(now);
        self.shared.changed.notify_all();
        self.join()
    }

    fn join(self) -> Result<Sent, Error> {
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

fn run(mut output: Output, shared: &PublisherState) -> Result<Sent, Error> {
    let began = Instant::now();
    loop {
        let mut state = shared.lock();
        let picture = loop {
            if state.until.as_ref().is_some_and(Cancel::is_cancelled) {
                let sent = state.broadcast.sent();
                drop(state);
                return output.finish().map(|_clip| sent).map_err(|failure| failure.0);
            }
            match state.broadcast.turn(began.elapsed()) {
                Turn::Push(picture) => break picture,
                Turn::Wait(left) => {
                    state =
                        shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        drop(state);
        output.push(&picture)?;
    }
}

/// Puts previews on.
#[derive(Debug)]
pub struct LiveSink {
    shared: Arc<PublisherState>,
    size: PixelSize,
    stride: usize,
}

impl LiveSink {
    /// Shows a preview: `frames [N,3,H,W]` in -1..1, which stand for `latent_frames` latent frames.
    ///
    /// # Errors
    /// Frames of another shape.
    pub fn show(&self, frames: ArrayView4<'_, f32>, latent_frames: usize) -> Result<(), Error> {
        let pictures = frames.axis_iter(Axis(0)).map(|colours| frame(colours, self.size));
        let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
        // One picture for each latent frame stands for as many frames as that will make.
        let hold = if frames.len_of(Axis(0)) == latent_frames { self.stride } else { 1 };
        self.shared.lock().broadcast.playlist().show(pictures, hold);
        Ok(())
    }
}

fn frame(colours: ArrayView3<'_, f32>, size: PixelSize) -> Result<SharedFrame, Error> {
    let colours = resized_colours(colours, size);
    let found = [3, size.height, size.width];
    SharedFrame::for_video(colours).ok_or(Error::Shape { expected: found, found })
}

/// Noise as it is: three channels of its first frame, in -1..1.
fn noise_colours(noise: ArrayView4<'_, f32>) -> Array3<f32> {
    let (channels, _, height, width) = noise.dim();
    Array3::from_shape_fn((3, height, width), |(c, y, x)| noise[[c % channels, 0, y, x]] * 0.4)
}
