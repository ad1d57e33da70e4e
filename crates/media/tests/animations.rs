//! Animations at every rate, as independent readers see them: as long as the clip, and no picture too short for players.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use media::{ClipFormat, OutputOptions, OutputTarget, Outputs, Tags, notes};
use ndarray::Array4;
use std::path::Path;
use std::process::Command;

/// Frames that are told apart by their grey.
fn frames(count: usize) -> Array4<f32> {
    Array4::from_shape_fn((count, 3, 16, 16), |(n, ..)| n as f32 / count as f32 - 0.5)
}

/// Writes a clip of so many frames at a rate; frames of each file as the program counts them, and what it says of them.
fn write(folder: &Path, rate: u32, count: usize) -> (Vec<usize>, Vec<String>) {
    let specs = ["a.gif", "a.webp"].map(|name| folder.join(name).to_str().unwrap().parse().unwrap());
    let targets = OutputTarget::claim_all(&specs).unwrap();
    let rate = FrameRate::try_new(rate).unwrap();
    let format = ClipFormat { size: "16x16".parse().unwrap(), rate, frames: Some(count) };
    let options = OutputOptions::new(format, Tags::new(None, "mini", Seed(1)), &Cancel::new());
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    outputs.write(frames(count).view()).unwrap();
    let outcome = outputs.finish();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    (outcome.written.iter().map(|clip| clip.frames).collect(), notes(&targets, format))
}

fn said(program: &str, arguments: &[&str], path: &Path) -> String {
    let found = Command::new(program).args(arguments).arg(path).output();
    let found = found.unwrap_or_else(|error| panic!("{program}: {error}; `make setup` installs it"));
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    String::from_utf8(found.stdout).unwrap()
}

/// Milliseconds for which each picture of a GIF is shown, from its graphic control extensions.
fn gif_delays(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(&*bytes).unwrap();
    std::iter::from_fn(|| decoder.read_next_frame().unwrap().map(|frame| 10 * u64::from(frame.delay)))
        .collect()
}

fn webp_delays(path: &Path) -> Vec<u64> {
    let said = said("webpinfo", &[], path);
    assert!(said.contains("No error detected"), "{said}");
    let delays = said.lines().filter_map(|line| line.trim().strip_prefix("Duration: "));
    delays.map(|number| number.parse().unwrap()).collect()
}

#[test]
fn animations_last_as_long_as_the_clip_at_every_rate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (rate, count) in [
        (1, 2),
        (7, 9),
        (16, 5),
        (24, 13),
        (30, 31),
        (48, 20),
        (50, 50),
        (51, 51),
        (60, 60),
        (90, 40),
        (91, 50),
        (120, 121),
        (240, 60),
    ] {
        let (counted, _) = write(folder, rate, count);
        let exact = 1000.0 * count as f64 / f64::from(rate);
        let (gif, webp) = (gif_delays(&folder.join("a.gif")), webp_delays(&folder.join("a.webp")));
        assert_eq!(counted, [gif.len(), webp.len()], "{count} frames at {rate}");
        let sum = |delays: &[u64]| delays.iter().sum::<u64>() as f64;
        assert!((sum(&gif) - exact).abs() <= 5.0, "{count} frames at {rate}: {gif:?}");
        assert!((sum(&webp) - exact).abs() <= 0.5, "{count} frames at {rate}: {webp:?}");
        assert!(gif.iter().all(|delay| *delay >= 20), "{count} frames at {rate}: {gif:?}");
        assert!(webp.iter().all(|delay| *delay > 10), "{count} frames at {rate}: {webp:?}");
        assert!(rate > 50 || gif.len() == count, "{count} frames at {rate}");
        assert!(rate > 90 || webp.len() == count, "{count} frames at {rate}");

        let probed = said(
            "ffprobe",
            &[
                "-v",
                "error",
                "-count_frames",
                "-show_entries",
                "stream=nb_read_frames:format=duration",
                "-of",
                "csv=p=0",
            ],
            &folder.join("a.gif"),
        );
        let found: Vec<f64> = probed.split_whitespace().map(|number| number.parse().unwrap()).collect();
        assert_eq!(found[0] as usize, gif.len());
        assert!((1000.0 * found[1] - exact).abs() <= 5.0, "{count} frames at {rate}: {probed}");
    }
}

#[test]
fn frames_that_are_left_out_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (counted, notes) = write(folder.path(), 60, 60);
    assert_eq!(counted, [50, 60]);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("a.gif shows 50 of the 60 frames"), "{notes:?}");
    assert_eq!(write(folder.path(), 120, 12).1.len(), 2);
    assert_eq!(write(folder.path(), 50, 12).1, Vec::<String>::new());
}
