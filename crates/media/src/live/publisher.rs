//! Pushes one picture per frame interval into a live output, independently of the progress of the run.
//!
//! Pictures are numbered without gaps, so timestamps are continuous when the clip follows the previews and when it is
//! repeated. A repeated picture shares its memory with the first time.

use super::broadcast::{Action, Broadcast, Sent};
use crate::preview_files::resized_colours;
use crate::{ClipFormat, Error, Output, OutputOptions, OutputTarget, SharedFrame};
use bundle::Cancel;
use bundle::geometry::PixelSize;
use ndarray::{Array3, ArrayView3, ArrayView4, Axis};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

/// A live output that always shows a picture. Dropping it ends the output, and waits a few seconds at most for a viewer
/// or server that does not take the last pictures.
///
/// ```no_run
/// use bundle::{Cancel, units::Seed};
/// use media::live::LivePublisher;
/// use media::{ClipFormat, OutputOptions, OutputTarget, Tags};
/// use ndarray::{Array3, Array4};
///
/// let format = ClipFormat { size: "832x480".parse()?, rate: "16".parse()?, frames: Some(81) };
/// let cancel = Cancel::new();
/// let options = OutputOptions::new(format, Tags::new(None, "mini", Seed(42)), &cancel);
/// let target = OutputTarget::claim(&"rtsp://127.0.0.1:8554/cat".parse()?)?;
/// let noise = Array4::zeros((16, 21, 60, 104));
/// let live = LivePublisher::start(target, &options, format, noise.view(), 4)?;
/// let previews = live.sink();
/// previews.show(Array4::zeros((1, 3, 60, 104)).view(), 21)?;
/// live.add_frames(&vec![Array3::zeros((3, 480, 832)); 81])?;
/// let sent = live.repeat_until(&cancel)?;
/// println!("{} pictures", sent.pictures);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LivePublisher {
    shared: Arc<PublisherState>,
    size: PixelSize,
    /// Frames of the clip per latent frame after the first.
    stride: usize,
    /// Ends the waits of the output.
    cancel: Cancel,
    /// `None` once it is joined.
    thread: Option<JoinHandle<Result<Sent, Error>>>,
}

#[derive(Debug)]
struct PublisherState {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    broadcast: Broadcast<SharedFrame>,
    /// Ends the output when it is requested.
    until: Option<Cancel>,
    /// True if the output ends with the clip.
    ends_after_clip: bool,
}

impl PublisherState {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the playlist is complete, so the state is valid even after a panic in another thread.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LivePublisher {
    /// Starts the output in the format of the finished clip. Shows `noise [C,T,h,w]` until the first preview. `stride`
    /// is the number of frames per latent frame.
    ///
    /// # Errors
    /// Returns an error if the output does not start.
    pub fn start(
        target: OutputTarget,
        options: &OutputOptions,
        format: ClipFormat,
        noise: ArrayView4<'_, f32>,
        stride: usize,
    ) -> Result<Self, Error> {
        // Cancelling the run ends the clip. The live output ends only when the run ends it.
        let cancel = Cancel::new();
        let format = ClipFormat { frames: None, ..format };
        let options = OutputOptions { format, sound: None, cancel: cancel.clone(), ..options.clone() };
        let ClipFormat { size, rate, .. } = format;
        let output = Output::start(target, &options)?;
        let name = output.spec().to_string();
        let first = frame(noise_colours(noise)?.view(), size)?;
        let state = State { broadcast: Broadcast::new(first, rate), until: None, ends_after_clip: false };
        let shared = Arc::new(PublisherState { state: Mutex::new(state), changed: Condvar::new() });
        let state = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("live".into()).spawn(move || run(output, &state));
        let thread = thread.map_err(|error| Error::Pipeline {
            output: name,
            element: "the thread of the live output".into(),
            why: error.to_string(),
        })?;
        Ok(Self { shared, size, stride, cancel, thread: Some(thread) })
    }

    /// The number of pictures pushed so far.
    pub fn sent(&self) -> Sent {
        self.shared.lock().broadcast.sent()
    }

    /// Returns a sink for previews.
    pub fn sink(&self) -> LiveSink {
        LiveSink { shared: Arc::clone(&self.shared), size: self.size, stride: self.stride }
    }

    /// Adds frames of the clip, each `[3,H,W]` in -1..1.
    ///
    /// # Errors
    /// Returns an error if a frame has another shape.
    pub fn add_frames(&self, frames: &[Array3<f32>]) -> Result<(), Error> {
        for colours in frames {
            let frame = frame(colours.view(), self.size)?;
            self.shared.lock().broadcast.playlist().add(frame);
        }
        Ok(())
    }

    /// Repeats the complete clip until `until` is requested. Returns the number of pictures pushed.
    ///
    /// # Errors
    /// Returns the error of an output that failed before.
    pub fn repeat_until(self, until: &Cancel) -> Result<Sent, Error> {
        let mut state = self.shared.lock();
        state.broadcast.playlist().complete();
        state.until = Some(until.clone());
        drop(state);
        self.join()
    }

    /// Ends the output after the last frame of the clip, which is complete now. Does not wait for it. Without frames it
    /// ends now.
    pub fn end_after_clip(&self) {
        let mut state = self.shared.lock();
        state.broadcast.playlist().complete();
        state.ends_after_clip = true;
    }

    /// Ends the output now.
    ///
    /// # Errors
    /// Returns the error of an output that failed before.
    pub fn stop(self) -> Result<Sent, Error> {
        self.end();
        self.join()
    }

    fn end(&self) {
        let now = Cancel::new();
        now.cancel();
        self.shared.lock().until = Some(now);
        self.shared.changed.notify_all();
    }

    fn join(mut self) -> Result<Sent, Error> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            // `self` is consumed when the thread is joined, so that this is not reached.
            None => Ok(self.sent()),
        }
    }
}

impl Drop for LivePublisher {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.end();
            // The last pictures are not waited for as long as those of a run that continues.
            self.cancel.cancel();
            // Nobody asked for the result.
            let _ = thread.join();
        }
    }
}

fn run(mut output: Output, shared: &PublisherState) -> Result<Sent, Error> {
    let started = Instant::now();
    loop {
        let mut state = shared.lock();
        let picture = loop {
            let is_over = state.ends_after_clip && state.broadcast.playlist().is_at_end();
            if is_over || state.until.as_ref().is_some_and(Cancel::is_cancelled) {
                let sent = state.broadcast.sent();
                drop(state);
                return output.finish().map(|_clip| sent).map_err(|failure| failure.0);
            }
            match state.broadcast.next_action(started.elapsed()) {
                Action::Push(picture) => break picture,
                Action::Wait(remaining) => {
                    state = shared
                        .changed
                        .wait_timeout(state, remaining)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0;
                }
            }
        };
        drop(state);
        output.push(&picture)?;
    }
}

/// Shows previews on a live output.
#[derive(Debug)]
pub struct LiveSink {
    shared: Arc<PublisherState>,
    size: PixelSize,
    stride: usize,
}

impl LiveSink {
    /// Shows a preview: `frames [N,3,H,W]` in -1..1 of `latent_frames` latent frames.
    ///
    /// # Errors
    /// Returns an error if the frames have another shape.
    pub fn show(&self, frames: ArrayView4<'_, f32>, latent_frames: usize) -> Result<(), Error> {
        let pictures = frames.axis_iter(Axis(0)).map(|colours| frame(colours, self.size));
        let pictures = pictures.collect::<Result<Vec<_>, _>>()?;
        // One picture per latent frame is held for the frames that it represents.
        let hold = if frames.len_of(Axis(0)) == latent_frames { self.stride } else { 1 };
        self.shared.lock().broadcast.playlist().show(pictures, hold);
        Ok(())
    }
}

fn frame(colours: ArrayView3<'_, f32>, size: PixelSize) -> Result<SharedFrame, Error> {
    let colours = resized_colours(colours, size)?;
    let found = [3, size.height, size.width];
    SharedFrame::for_video(colours).ok_or(Error::Shape { expected: found, found })
}

/// Three channels of the first frame of the noise, scaled to -1..1.
fn noise_colours(noise: ArrayView4<'_, f32>) -> Result<Array3<f32>, Error> {
    let (channels, frames, height, width) = noise.dim();
    if channels == 0 || frames == 0 {
        return Err(Error::Shape {
            expected: [3, height, width],
            found: [channels.min(frames), height, width],
        });
    }
    Ok(Array3::from_shape_fn((3, height, width), |(c, y, x)| noise[[c % channels, 0, y, x]] * 0.4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;

    #[test]
    fn noise_without_values_is_an_error() {
        for shape in [(0, 1, 2, 2), (4, 0, 2, 2)] {
            assert!(matches!(noise_colours(Array4::zeros(shape).view()), Err(Error::Shape { .. })));
        }
        let size = PixelSize { width: 4, height: 2 };
        let empty = noise_colours(Array4::zeros((4, 1, 0, 2)).view()).unwrap();
        assert!(matches!(frame(empty.view(), size), Err(Error::Shape { .. })));
        assert_eq!(noise_colours(Array4::zeros((1, 1, 2, 3)).view()).unwrap().dim(), (3, 2, 3));
    }
}
