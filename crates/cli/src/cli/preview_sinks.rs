//! The sinks of previews: picture files and the live address.

use media::live::LiveSink;
use media::preview_files::PreviewFiles;
use ndarray::Axis;
use runtime::preview::{Preview, Sink};

/// Writes the first frame of each preview as a PNG.
#[derive(Debug)]
pub(super) struct Pictures(pub(super) PreviewFiles);

impl Sink for Pictures {
    fn show(&mut self, preview: &Preview) -> Result<(), runtime::Error> {
        let frame = preview.frames.index_axis(Axis(0), 0);
        self.0.write(preview.step, preview.steps, frame).map_err(runtime::Error::callback)
    }
}

/// Publishes all frames of each preview at the live address.
#[derive(Debug)]
pub(super) struct Live(pub(super) LiveSink);

impl Sink for Live {
    fn show(&mut self, preview: &Preview) -> Result<(), runtime::Error> {
        self.0.show(preview.frames.view(), preview.latent_frames).map_err(runtime::Error::callback)
    }
}
