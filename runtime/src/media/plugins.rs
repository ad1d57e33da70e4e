//! What the installed GStreamer can do, and which Debian package has what it cannot.

use super::Error;
use super::encoder::H264Encoder;
use gstreamer as gst;
use gstreamer::prelude::*;

/// Elements of every mp4 pipeline with the Debian package of each, besides the encoder's.
const NEEDED: [(&str, &str); 3] = [
    ("appsrc", "gstreamer1.0-plugins-base"),
    ("mp4mux", "gstreamer1.0-plugins-good"),
    ("filesink", "libgstreamer1.0-0"),
];

/// An element that is not installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingElement {
    /// Name of the element.
    pub element: &'static str,
    /// The Debian package that has it.
    pub package: &'static str,
}

/// What this machine offers for video out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Version of the GStreamer library, like `GStreamer 1.22.0`.
    pub version: String,
    /// The H.264 encoder that is used.
    pub encoder: Option<H264Encoder>,
    /// What an mp4 needs besides the encoder and is not there.
    pub missing: Vec<MissingElement>,
}

impl Survey {
    /// The encoder, when an mp4 can be written.
    ///
    /// # Errors
    /// The elements or the encoder that are missing, with their packages.
    pub fn ready(&self) -> Result<H264Encoder, Error> {
        if self.missing.is_empty() {
            self.encoder.ok_or(Error::NoEncoder)
        } else {
            Err(Error::MissingElements { elements: self.missing.clone() })
        }
    }
}

/// Starts GStreamer, once per process, and looks at what is installed.
///
/// # Errors
/// GStreamer cannot start.
pub fn survey() -> Result<Survey, Error> {
    gst::init().map_err(|error| Error::NoGStreamer { why: error.to_string() })?;
    Ok(Survey {
        version: gst::version_string().to_string(),
        encoder: H264Encoder::choose(installed),
        missing: missing(installed),
    })
}

/// Whether an element is there and its library can be loaded.
fn installed(element: &str) -> bool {
    gst::ElementFactory::find(element).is_some_and(|factory| factory.load().is_ok())
}

fn missing(installed: impl Fn(&str) -> bool) -> Vec<MissingElement> {
    NEEDED
        .into_iter()
        .filter(|(element, _)| !installed(element))
        .map(|(element, package)| MissingElement { element, package })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey_with(elements: &[&str]) -> Survey {
        let installed = |element: &str| elements.contains(&element);
        Survey {
            version: "GStreamer 1.22.0".into(),
            encoder: H264Encoder::choose(installed),
            missing: missing(installed),
        }
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        insta::assert_snapshot!(survey_with(&["filesink", "x264enc"]).ready().unwrap_err(), @"video cannot be written on this machine: GStreamer has no appsrc, mp4mux (install it with `sudo apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good`)");
        insta::assert_snapshot!(survey_with(&["appsrc", "mp4mux", "filesink"]).ready().unwrap_err(), @"no H.264 encoder is installed: GStreamer has none of x264enc, openh264enc (install one with `sudo apt-get install gstreamer1.0-plugins-ugly`)");
    }

    #[test]
    fn a_complete_machine_is_ready() {
        let survey = survey_with(&["appsrc", "mp4mux", "filesink", "x264enc"]);
        assert_eq!(survey.ready().unwrap(), H264Encoder::X264);
    }
}
