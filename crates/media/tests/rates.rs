//! Rates that are no whole numbers are exact in every format.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use media::post_process::{Between, PostProcessSpec};
use media::{ClipFormat, OutputOptions, OutputSpec, OutputTarget, Outputs, Tags};
use ndarray::Array3;
use std::path::Path;
use std::process::Command;

const FRAMES: usize = 24;

/// Writes a clip to every output of a folder that holds its frames apart.
fn write(folder: &Path, names: &[&str], rate: FrameRate) {
    let named = |name: &&str| match name.strip_prefix("hls:") {
        Some(name) => format!("hls:{}", folder.join(name).display()),
        None => folder.join(name).display().to_string(),
    };
    let specs: Vec<OutputSpec> = names.iter().map(|name| named(name).parse().unwrap()).collect();
    let format = ClipFormat { size: "48x32".parse().unwrap(), rate, frames: Some(FRAMES) };
    let options = OutputOptions::new(format, Tags::new(None, "mini", Seed(1)), &Cancel::new());
    let targets = OutputTarget::claim_all(&specs).unwrap();
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    let frame = |number: usize| {
        Array3::from_shape_fn((3, 32, 48), |(c, y, x)| ((number + c + x / 4 + y / 4) % 9) as f32 / 4.5 - 1.0)
    };
    outputs.write_all((0..FRAMES).map(frame)).unwrap();
    let outcome = outputs.finish();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
}

/// Rate, and length in seconds, as ffprobe reads them.
fn probed(path: &Path) -> (String, f64, usize) {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-of", "json"])
        .args(["-show_entries", "stream=r_frame_rate,nb_read_frames:format=duration"])
        .arg(path)
        .output()
        .expect("ffprobe (Debian package ffmpeg)");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let stream = &found["streams"][0];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let seconds = text(&found["format"]["duration"]).parse().unwrap_or_default();
    (text(&stream["r_frame_rate"]), seconds, text(&stream["nb_read_frames"]).parse().unwrap())
}

/// What a format says about the rate of its frames.
enum Keeps {
    Rate,
    Duration,
    Times,
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
        // Formats that keep the rate itself, those that keep the nanoseconds of a frame, which ffprobe makes a rate of, and
        // those that keep times alone. Lengths are rounded to so many parts of a second.
        for (name, keeps, parts) in [
            ("a.mp4", Keeps::Rate, 10_000.0),
            ("a.mkv", Keeps::Duration, 500.0),
            ("a.webm", Keeps::Duration, 500.0),
            ("a.y4m", Keeps::Rate, 10_000.0),
            ("a.gif", Keeps::Times, 100.0),
            ("live/index.m3u8", Keeps::Rate, 10_000.0),
        ] {
            // Players slow down delays under two hundredths.
            if name == "a.gif" && rate.per_second() > 50.0 {
                continue;
            }
            let (found, length, count) = probed(&folder.path().join(name));
            match keeps {
                Keeps::Rate => assert_eq!(found, format!("{frames}/{seconds}"), "{name} at {text}"),
                Keeps::Duration => {
                    let (over, under) = found.split_once('/').unwrap();
                    let found = over.parse::<f64>().unwrap() / under.parse::<f64>().unwrap();
                    let error = (found / rate.per_second() - 1.0).abs();
                    assert!(error < 1e-6, "{name} at {text}: {found}");
                }
                Keeps::Times => {}
            }
            assert!((length - exact).abs() <= 1.0 / parts + 1e-6, "{name} at {text}: {length} s for {exact}");
            assert_eq!(count, FRAMES, "{name} at {text}");
        }
        assert_eq!(
            webp_milliseconds(&folder.path().join("a.webp")),
            rate.nearest_timestamp(FRAMES as u64, 1000)
        );
        let y4m = std::fs::read(folder.path().join("a.y4m")).unwrap();
        let head = String::from_utf8_lossy(&y4m[..40]).into_owned();
        assert!(head.contains(&format!(" F{frames}:{seconds} ")), "{head}");
    }
}

/// The sum of the durations of a WebP's frames.
fn webp_milliseconds(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    let frames = bytes.windows(4).enumerate().filter(|(_, name)| *name == b"ANMF");
    // After name and length come place and size, three bytes each.
    frames
        .map(|(at, _)| u64::from(u32::from_le_bytes([bytes[at + 20], bytes[at + 21], bytes[at + 22], 0])))
        .sum()
}

#[test]
fn another_rate_is_made_exactly_and_sound_fits_it() {
    let made =
        ClipFormat { size: "48x32".parse().unwrap(), rate: "23.976".parse().unwrap(), frames: Some(240) };
    for (text, frames) in [("29.97", 300), ("59.94", 600), ("24000/1001", 240), ("24", 240), ("12.5", 125)] {
        let rate: FrameRate = text.parse().unwrap();
        let spec = PostProcessSpec { rate: Some((rate, Between::Repeat)), ..PostProcessSpec::default() };
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
            // The frame that was on at that moment.
            let ((from, under), (to, below)) = (made.rate.fraction(), rate.fraction());
            let [from, under, to, below] = [from, under, to, below].map(u64::from);
            let expected = (number as u64 * from * below / (under * to)).min(239);
            assert_eq!(*shown, expected as f32, "frame {number} at {text}");
        }
    }
}
