//! Where the audio of a clip comes from: any file that GStreamer decodes, or a canonical WAV file, which it never sees.

use super::load;
use crate::Error;
use crate::sound::{CHANNELS, RATE};
use crate::wav::Wav;
use bundle::Field;
use gstreamer as gst;
use gstreamer::prelude::*;
use gstreamer_app::{AppSink, AppSrc};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest time without a converted sample.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The interval at which errors are checked while waiting.
const POLL_INTERVAL: gst::ClockTime = gst::ClockTime::from_mseconds(10);
/// Seconds that are read beyond the end, for the filter of another rate.
const MARGIN: f64 = 0.1;

/// Where the audio of a clip comes from.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum AudioSource {
    /// A file of the user. GStreamer finds out what it is, and decodes it.
    File(PathBuf),
    /// A file that [`Wav::to_bytes`] has written. Its samples are read in Rust, and GStreamer gets nothing but them.
    CanonicalWav {
        /// The path of the file.
        canonical_wav: PathBuf,
    },
}

impl AudioSource {
    /// The path of the file.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) | Self::CanonicalWav { canonical_wav: path } => path,
        }
    }

    /// The same kind of source at another path.
    #[must_use]
    pub fn with_path(&self, path: PathBuf) -> Self {
        match self {
            Self::File(_) => Self::File(path),
            Self::CanonicalWav { .. } => Self::CanonicalWav { canonical_wav: path },
        }
    }

    /// The first `seconds`: 16-bit samples, [`CHANNELS`] interleaved, [`RATE`] per second.
    ///
    /// # Errors
    /// The file cannot be read or contains no audio.
    pub(super) fn samples(&self, field: Field, seconds: f64) -> Result<Vec<i16>, Error> {
        match self {
            Self::File(path) => load::samples(field, path, seconds),
            Self::CanonicalWav { canonical_wav: path } => {
                let refused = |why| Error::PostProcess { field, value: path.display().to_string(), why };
                let wav = Wav::read(path, seconds + MARGIN).map_err(|error| refused(error.to_string()))?;
                converted(&wav).map_err(refused)
            }
        }
    }
}

/// A sound with [`CHANNELS`] and [`RATE`]. The pipeline gets samples of a known format, so it looks for none.
fn converted(wav: &Wav) -> Result<Vec<i16>, String> {
    if (wav.rate() as usize, usize::from(wav.channels())) == (RATE, CHANNELS) {
        return Ok(wav.samples().to_vec());
    }
    gst::init().map_err(|error| error.to_string())?;
    let text = format!(
        "appsrc name=source format=time ! audioconvert ! audioresample ! \
         audio/x-raw,format=S16LE,rate={RATE},channels={CHANNELS},layout=interleaved ! \
         appsink name=sink sync=false max-buffers=2"
    );
    let built = gst::parse::launch(&text).map_err(|error| error.to_string())?;
    let pipeline = built.downcast::<gst::Pipeline>().map_err(|_other| "it is no pipeline".to_owned())?;
    let source = pipeline.by_name("source").and_then(|element| element.downcast::<AppSrc>().ok());
    let sink = pipeline.by_name("sink").and_then(|element| element.downcast::<AppSink>().ok());
    let (Some(source), Some(sink)) = (source, sink) else {
        return Err("its pipeline has no source or sink".to_owned());
    };
    let rate = i32::try_from(wav.rate()).map_err(|error| error.to_string())?;
    let caps = gst::Caps::builder("audio/x-raw")
        .field("format", "S16LE")
        .field("layout", "interleaved")
        .field("rate", rate)
        .field("channels", i32::from(wav.channels()))
        .build();
    source.set_caps(Some(&caps));
    let found = run(&pipeline, &source, &sink, wav);
    // No error matters any more.
    let _ = pipeline.set_state(gst::State::Null);
    found
}

/// Pushes all samples through a pipeline, and takes what it makes of them.
fn run(pipeline: &gst::Pipeline, source: &AppSrc, sink: &AppSink, wav: &Wav) -> Result<Vec<i16>, String> {
    let stopped = |error: &dyn std::fmt::Display| format!("its samples cannot be converted: {error}");
    pipeline.set_state(gst::State::Playing).map_err(|error| stopped(&error))?;
    let bytes: Vec<u8> = wav.samples().iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let duration = u64::try_from(wav.duration().as_nanos()).map_err(|error| stopped(&error))?;
    let mut buffer = gst::Buffer::from_mut_slice(bytes);
    let stamped = buffer.make_mut();
    stamped.set_pts(gst::ClockTime::ZERO);
    stamped.set_duration(gst::ClockTime::from_nseconds(duration));
    source.push_buffer(buffer).map_err(|error| stopped(&error))?;
    source.end_of_stream().map_err(|error| stopped(&error))?;
    let bus = pipeline.bus().ok_or_else(|| stopped(&"the pipeline has no bus"))?;
    let mut samples = Vec::new();
    let mut last = Instant::now();
    loop {
        if let Some(sample) = sink.try_pull_sample(POLL_INTERVAL) {
            let whole = sample.buffer().and_then(|buffer| buffer.map_readable().ok());
            let bytes = whole.ok_or_else(|| stopped(&"a packet is incomplete"))?;
            samples.extend(bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)));
            last = Instant::now();
        } else if let Some(message) = bus.pop_filtered(&[gst::MessageType::Error]) {
            return Err(match message.view() {
                gst::MessageView::Error(error) => stopped(&error.error().message()),
                _ => stopped(&"the pipeline has failed"),
            });
        } else if sink.is_eos() {
            return Ok(samples);
        } else if last.elapsed() > TIMEOUT {
            return Err(stopped(&"the pipeline returns no data"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tone of 440 Hz with this rate and number of channels, as a file.
    fn tone(folder: &Path, rate: u32, channels: u16, seconds: f64) -> AudioSource {
        let moments = (f64::from(rate) * seconds) as usize;
        let level = |moment: usize| {
            let angle = moment as f64 / f64::from(rate) * 440.0 * std::f64::consts::TAU;
            (angle.sin() * 16_000.0) as i16
        };
        let data: Vec<u8> = (0..moments)
            .flat_map(|moment| std::iter::repeat_n(level(moment), usize::from(channels)))
            .flat_map(i16::to_le_bytes)
            .collect();
        let file = crate::wav::tests::file(1, channels, rate, 16, &data);
        let wav = Wav::decode(&file, Duration::from_secs(60)).unwrap();
        let path = folder.join("sound.wav");
        std::fs::write(&path, wav.to_bytes().unwrap()).unwrap();
        AudioSource::CanonicalWav { canonical_wav: path }
    }

    #[test]
    fn rates_and_channels_are_converted_without_a_change_of_pitch_or_length() {
        let folder = tempfile::tempdir().unwrap();
        for (rate, channels) in [(8000, 1), (22_050, 2), (44_100, 1), (48_000, 2), (192_000, 2)] {
            let found = tone(folder.path(), rate, channels, 1.0).samples(Field::Audio, 5.0).unwrap();
            let about = format!("{rate} Hz, {channels} channels");
            assert!(found.len().abs_diff(2 * RATE) < 200, "{about}: {}", found.len());
            let left: Vec<i16> = found.iter().step_by(2).copied().collect();
            let rises = left.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
            assert!(rises.abs_diff(440) <= 1, "{about}: {rises}");
            assert!(found.chunks(2).all(|pair| pair[0] == pair[1]), "{about}: both channels are the same");
            let loudest = left.iter().copied().max().unwrap();
            assert!((15_500..16_500).contains(&loudest), "{about}: {loudest}");
        }
    }

    #[test]
    fn no_more_is_read_than_a_clip_needs() {
        let folder = tempfile::tempdir().unwrap();
        let found = tone(folder.path(), 48_000, 2, 3.0).samples(Field::Audio, 0.5).unwrap();
        assert_eq!(found.len() / CHANNELS, (0.6 * RATE as f64) as usize);
    }

    #[test]
    fn only_canonical_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sound.wav");
        let source = AudioSource::CanonicalWav { canonical_wav: path.clone() };
        let refused = || source.samples(Field::Audio, 1.0).unwrap_err().to_string();
        assert!(refused().contains("damaged"), "{}", refused());
        // GStreamer would find out what these are.
        for content in [&b"ID3\x04\0\0\0\0\0\0"[..], b"OggS\0\x02", b"fLaC\0\0\0\x22"] {
            std::fs::write(&path, content).unwrap();
            assert!(refused().contains("no RIFF tag"), "{}", refused());
        }
        std::fs::write(&path, crate::wav::tests::file(3, 1, 48_000, 32, &[0; 400])).unwrap();
        assert!(refused().contains("not those of a canonical file"), "{}", refused());
    }

    #[test]
    fn a_path_alone_is_a_file_of_the_user() {
        let read = |json: &str| serde_json::from_str::<AudioSource>(json);
        assert_eq!(read("\"/song.ogg\"").unwrap(), AudioSource::File("/song.ogg".into()));
        let canonical = AudioSource::CanonicalWav { canonical_wav: "/sound.wav".into() };
        let json = serde_json::to_string(&canonical).unwrap();
        assert_eq!(json, r#"{"canonical_wav":"/sound.wav"}"#);
        assert_eq!(read(&json).unwrap(), canonical);
        assert!(read(r#"{"canonical_wav":"/a","other":1}"#).is_err());
        assert_eq!(canonical.with_path("/b".into()).path(), Path::new("/b"));
    }
}
