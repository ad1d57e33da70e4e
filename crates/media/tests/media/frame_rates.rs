//! Fractional rates are exact in every format.

use crate::clip::{claim, finish, options};
use crate::tools::{probe, webp_delays, webpinfo};
use bundle::units::FrameRate;
use media::post_process::{Interpolation, PostProcessSpec};
use media::{ClipFormat, Outputs};
use ndarray::Array3;
use std::path::Path;

const FRAMES: usize = 24;

/// Writes a clip whose frames all differ.
fn write(folder: &Path, names: &[&str], rate: FrameRate) {
    let format = ClipFormat { size: "48x32".parse().unwrap(), rate, frames: Some(FRAMES) };
    let mut outputs = Outputs::start(&claim(folder, names), &options(format)).unwrap();
    let frame = |number: usize| {
        Array3::from_shape_fn((3, 32, 48), |(c, y, x)| ((number + c + x / 4 + y / 4) % 9) as f32 / 4.5 - 1.0)
    };
    outputs.write_all((0..FRAMES).map(frame)).unwrap();
    finish(outputs);
}

/// Rate, length in seconds and number of frames, as ffprobe reads them.
fn probed(path: &Path) -> (String, f64, usize) {
    let found = probe(path);
    let stream = &found["streams"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let seconds = text(&found["format"]["duration"]).parse().unwrap_or_default();
    (text(&stream["r_frame_rate"]), seconds, text(&stream["nb_read_frames"]).parse().unwrap())
}

/// The timing information that a format stores.
enum Stores {
    Rate,
    /// The nanoseconds of a frame, of which ffprobe computes a rate.
    FrameDuration,
    Timestamps,
}

#[test]
fn every_format_plays_at_the_exact_rate() {
    for text in ["24000/1001", "29.97", "59.94", "12.5", "24.0"] {
        let rate: FrameRate = text.parse().unwrap();
        let (frames, seconds) = rate.fraction();
        let exact = FRAMES as f64 / rate.per_second();
        let folder = tempfile::tempdir().unwrap();
        let names = ["a.mp4", "a.mkv", "a.webm", "a.y4m", "a.gif", "a.webp", "hls:live"];
        write(folder.path(), &names, rate);
        // Lengths are rounded to the given fraction of a second.
        for (name, stores, parts) in [
            ("a.mp4", Stores::Rate, 10_000.0),
            ("a.mkv", Stores::FrameDuration, 500.0),
            ("a.webm", Stores::FrameDuration, 500.0),
            ("a.y4m", Stores::Rate, 10_000.0),
            ("a.gif", Stores::Timestamps, 100.0),
            ("live/index.m3u8", Stores::Rate, 10_000.0),
        ] {
            // Players do not honour delays under 20 ms.
            if name == "a.gif" && rate.per_second() > 50.0 {
                continue;
            }
            let (found, length, count) = probed(&folder.path().join(name));
            match stores {
                Stores::Rate => assert_eq!(found, format!("{frames}/{seconds}"), "{name} at {text}"),
                Stores::FrameDuration => {
                    let (over, under) = found.split_once('/').unwrap();
                    let found = over.parse::<f64>().unwrap() / under.parse::<f64>().unwrap();
                    let error = (found / rate.per_second() - 1.0).abs();
                    assert!(error < 1e-6, "{name} at {text}: {found}");
                }
                Stores::Timestamps => {}
            }
            assert!((length - exact).abs() <= 1.0 / parts + 1e-6, "{name} at {text}: {length} s for {exact}");
            assert_eq!(count, FRAMES, "{name} at {text}");
        }
        let webp = webp_delays(&webpinfo(&folder.path().join("a.webp")));
        assert_eq!(webp.iter().sum::<u64>(), rate.nearest_timestamp(FRAMES as u64, 1000));
        let y4m = std::fs::read(folder.path().join("a.y4m")).unwrap();
        let head = String::from_utf8_lossy(&y4m[..40]).into_owned();
        assert!(head.contains(&format!(" F{frames}:{seconds} ")), "{head}");
    }
}

#[test]
fn a_clip_is_resampled_to_the_exact_frame() {
    let made =
        ClipFormat { size: "48x32".parse().unwrap(), rate: "23.976".parse().unwrap(), frames: Some(240) };
    for (text, frames) in [("29.97", 300), ("59.94", 600), ("24000/1001", 240), ("24", 240), ("12.5", 125)] {
        let rate: FrameRate = text.parse().unwrap();
        let spec =
            PostProcessSpec { rate: Some((rate, Interpolation::Repeat)), ..PostProcessSpec::default() };
        let mut post_process = spec.open(made).unwrap();
        assert_eq!(post_process.format().frames, Some(frames), "{text}");
        let mut out = Vec::new();
        for number in 0..240 {
            let frame = Array3::from_elem((3, 32, 48), number as f32);
            out.extend(post_process.push(frame).unwrap().into_iter().map(|frame| frame[[0, 0, 0]]));
        }
        out.extend(post_process.finish().into_iter().map(|frame| frame[[0, 0, 0]]));
        assert_eq!(out.len(), frames, "{text}");
        for (number, shown) in out.iter().enumerate() {
            // The frame that was shown at that time.
            let ((from, under), (to, below)) = (made.rate.fraction(), rate.fraction());
            let [from, under, to, below] = [from, under, to, below].map(u64::from);
            let expected = (number as u64 * from * below / (under * to)).min(239);
            assert_eq!(*shown, expected as f32, "frame {number} at {text}");
        }
    }
}
