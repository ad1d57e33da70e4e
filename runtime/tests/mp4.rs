//! Clips as an independent reader sees them: ffprobe and ffmpeg read back what the writer made.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::geometry::PixelSize;
use bundle::units::{FrameRate, Seed};
use ndarray::{Array4, Axis, Slice};
use runtime::media::{ClipFormat, Kept, Mp4Writer, Tags, check_output, frames::pictures};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Frames `[N,3,H,W]` in -1..1: a gradient that drifts, and three soft discs of different colours that cross it. The
/// colours are pale, because 4:2:0 halves the resolution of what differs between red, green and blue.
fn moving_clip(size: PixelSize, count: usize) -> Array4<f32> {
    let (width, height) = (size.width as f32, size.height as f32);
    let radius = width.min(height) / 4.0;
    Array4::from_shape_fn((count, 3, size.height, size.width), |(n, colour, y, x)| {
        let (x, y, time, colour) = (x as f32, y as f32, n as f32 / 16.0, colour as f32);
        let background = (3.0 * x / width + 2.0 * y / height + time + 0.2 * colour).sin() * 0.6;
        (0..3).fold(background, |behind, disc| {
            let phase = disc as f32 * 2.1;
            let centre_x = width * (0.5 + 0.4 * (1.3 * time + phase).sin());
            let centre_y = height * (0.5 + 0.4 * (1.7 * time + 2.0 * phase).cos());
            let cover = ((radius - (x - centre_x).hypot(y - centre_y)) / 3.0 + 0.5).clamp(0.0, 1.0);
            let front = 0.7 * (phase + 0.5).cos() + 0.1 * (phase + 2.0 * colour).cos();
            behind * (1.0 - cover) + front * cover
        })
    })
}

fn format(size: &str, frames_per_second: u32, frames: usize) -> ClipFormat {
    ClipFormat { size: size.parse().unwrap(), rate: FrameRate::try_new(frames_per_second).unwrap(), frames }
}

fn tags() -> Tags {
    Tags { title: Some("一只猫 & a ball".into()), model: "Wan2.2-T2V-A14B".into(), seed: Seed(7) }
}

/// Writes frames four at a time, as a decoder gives them.
fn write(path: &Path, format: ClipFormat, frames: &Array4<f32>) {
    let target = check_output(path).unwrap();
    let mut writer = Mp4Writer::create(&target, format, &tags()).unwrap();
    for chunk in frames.axis_chunks_iter(Axis(0), 4) {
        writer.write(chunk).unwrap();
    }
    let clip = writer.finish().unwrap();
    assert_eq!((clip.path.as_path(), clip.frames), (path, format.frames));
}

fn output(program: &str, arguments: &[&str], path: &Path) -> Vec<u8> {
    let (before, after) =
        arguments.split_at(arguments.iter().take_while(|&&argument| argument != "-i").count());
    let mut command = Command::new(program);
    command.args(before).arg("-i").arg(path).args(after.iter().skip(1));
    let output =
        command.output().unwrap_or_else(|error| panic!("{program} (Debian package ffmpeg): {error}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What ffprobe says: the only stream, and the whole file.
fn probe(path: &Path) -> (Value, Value) {
    let arguments = ["-v", "warning", "-count_frames", "-show_streams", "-show_format", "-of", "json", "-i"];
    let mut found: Value = serde_json::from_slice(&output("ffprobe", &arguments, path)).unwrap();
    assert_eq!(found["streams"].as_array().unwrap().len(), 1);
    (found["streams"][0].take(), found["format"].take())
}

/// The pictures `[N,H,W,3]` in 0..1 that ffmpeg decodes.
fn read_back(path: &Path, size: PixelSize) -> Array4<f32> {
    let bytes = output("ffmpeg", &["-v", "warning", "-i", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], path);
    let count = bytes.len() / (3 * size.width * size.height);
    let samples = bytes.into_iter().map(|byte| f32::from(byte) / 255.0).collect();
    Array4::from_shape_vec((count, size.height, size.width, 3), samples).unwrap()
}

fn psnr(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / a.len() as f64).log10()
}

#[test]
fn clips_of_every_shape_read_back_as_they_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        format("832x480", 16, 21),
        format("480x832", 24, 17),
        format("16x16", 16, 6),
        format("128x96", 30, 90),
        format("176x144", 16, 1),
        format("18x34", 25, 5),
    ];
    for format in cases {
        let path = folder.path().join("clip.mp4");
        let frames = moving_clip(format.size, format.frames);
        write(&path, format, &frames);

        let (stream, file) = probe(&path);
        let expected = [
            ("codec_name", "h264".to_owned()),
            ("pix_fmt", "yuv420p".into()),
            ("color_range", "tv".into()),
            ("color_space", "bt709".into()),
            ("color_transfer", "bt709".into()),
            ("color_primaries", "bt709".into()),
            ("r_frame_rate", format!("{}/1", format.rate.per_second())),
            ("avg_frame_rate", format!("{}/1", format.rate.per_second())),
            ("nb_frames", format.frames.to_string()),
            ("nb_read_frames", format.frames.to_string()),
        ];
        for (name, value) in expected {
            assert_eq!(stream[name], value, "{name} of {format:?}");
        }
        assert_eq!(stream["width"], format.size.width);
        assert_eq!(stream["height"], format.size.height);
        let seconds = |value: &Value| value.as_str().unwrap().parse::<f64>().unwrap();
        let length = format.frames as f64 / f64::from(format.rate.per_second());
        assert!(
            (seconds(&stream["duration"]) - length).abs() < 1e-3,
            "{} for {length} s",
            stream["duration"]
        );
        assert!((seconds(&file["duration"]) - length).abs() < 1e-3, "{} for {length} s", file["duration"]);
        assert_eq!(seconds(&stream["start_time"]), 0.0);

        let shown = pictures(frames.view());
        assert!(shown.std(0.0) > 0.1, "{format:?} is too flat to judge by");
        let quality = psnr(&read_back(&path, format.size), &shown);
        assert!(quality >= 36.0, "{quality:.1} dB for {format:?}");
    }
}

#[test]
fn the_file_says_that_it_was_generated_by_which_model_and_seed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let format = format("32x32", 16, 5);
    write(&path, format, &moving_clip(format.size, format.frames));
    let (_, file) = probe(&path);
    let tags = &file["tags"];
    assert_eq!(tags["title"], "一只猫 & a ball");
    let comment = tags["comment"].as_str().unwrap();
    assert!(comment.starts_with("AI-generated: Rushes "), "{comment}");
    assert!(comment.ends_with("model Wan2.2-T2V-A14B, seed 7"), "{comment}");
    assert_eq!(tags["keywords"], "AI-generated");
    assert!(tags["encoder"].as_str().unwrap().starts_with("Rushes "), "{tags}");
}

#[test]
fn an_interrupted_clip_plays_with_the_frames_it_got() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    let format = format("64x48", 16, 81);
    let frames = moving_clip(format.size, 13);
    for count in [1, 13] {
        std::fs::write(&path, "an older clip").unwrap();
        let target = check_output(&path).unwrap();
        let mut writer = Mp4Writer::create(&target, format, &tags()).unwrap();
        writer.write(frames.slice_axis(Axis(0), Slice::from(..count))).unwrap();
        let kept = writer.interrupt();
        assert_eq!(kept, Kept::Whole { part: folder.path().join("clip.part.mp4"), frames: count });

        let read = read_back(target.part(), format.size);
        assert_eq!(read.len_of(Axis(0)), count);
        let shown = pictures(frames.slice_axis(Axis(0), Slice::from(..count)));
        let quality = psnr(&read, &shown);
        assert!(quality >= 36.0, "{quality:.1} dB");
        assert_eq!(std::fs::read(&path).unwrap(), b"an older clip");
    }
}
