//! GIF and WebP at every rate: as long as the clip, without delays that players do not honour.

use crate::clip::{claim, finish, format, options};
use crate::tools::{probe, seconds, webp_delays, webpinfo};
use media::{Outputs, notes};
use ndarray::Array4;
use std::path::Path;

/// Frames that differ in their grey level.
fn frames(count: usize) -> Array4<f32> {
    Array4::from_shape_fn((count, 3, 16, 16), |(n, ..)| n as f32 / count as f32 - 0.5)
}

/// Writes a clip. Returns the frames of each file as the library counts them, and its notes.
fn write(folder: &Path, rate: u32, count: usize) -> (Vec<usize>, Vec<String>) {
    let targets = claim(folder, &["a.gif", "a.webp"]);
    let format = format("16x16", rate, count);
    let mut outputs = Outputs::start(&targets, &options(format)).unwrap();
    outputs.write(frames(count).view()).unwrap();
    (finish(outputs).iter().map(|clip| clip.frames).collect(), notes(&targets, format))
}

/// Milliseconds for which each frame of a GIF is shown, from its graphic control extensions.
fn gif_delays(path: &Path) -> Vec<u64> {
    let bytes = std::fs::read(path).unwrap();
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let mut decoder = options.read_info(&*bytes).unwrap();
    std::iter::from_fn(|| decoder.read_next_frame().unwrap().map(|frame| 10 * u64::from(frame.delay)))
        .collect()
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
        let gif = gif_delays(&folder.join("a.gif"));
        let webp = webp_delays(&webpinfo(&folder.join("a.webp")));
        assert_eq!(counted, [gif.len(), webp.len()], "{count} frames at {rate}");
        let sum = |delays: &[u64]| delays.iter().sum::<u64>() as f64;
        assert!((sum(&gif) - exact).abs() <= 5.0, "{count} frames at {rate}: {gif:?}");
        assert!((sum(&webp) - exact).abs() <= 0.5, "{count} frames at {rate}: {webp:?}");
        assert!(gif.iter().all(|delay| *delay >= 20), "{count} frames at {rate}: {gif:?}");
        assert!(webp.iter().all(|delay| *delay > 10), "{count} frames at {rate}: {webp:?}");
        assert!(rate > 50 || gif.len() == count, "{count} frames at {rate}");
        assert!(rate > 90 || webp.len() == count, "{count} frames at {rate}");

        let probed = probe(folder.join("a.gif"));
        assert_eq!(probed["streams"][0]["nb_read_frames"], gif.len().to_string());
        let length = 1000.0 * seconds(&probed["format"]["duration"]);
        assert!((length - exact).abs() <= 5.0, "{count} frames at {rate}: {length} ms");
    }
}

#[test]
fn dropped_frames_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let (counted, notes) = write(folder.path(), 60, 60);
    assert_eq!(counted, [50, 60]);
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("a.gif shows 50 of the 60 frames"), "{notes:?}");
    assert_eq!(write(folder.path(), 120, 12).1.len(), 2);
    assert_eq!(write(folder.path(), 50, 12).1, Vec::<String>::new());
}
