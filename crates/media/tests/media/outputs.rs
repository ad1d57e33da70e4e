//! Every file format, read back by ffprobe, ffmpeg, webpinfo and webpmux.

use crate::clip::{claim, finish, format, names};
use crate::tools::{ffprobe, run, run_silent, seconds, webp_delays, webpinfo};
use bundle::Cancel;
use bundle::geometry::PixelSize;
use bundle::units::{FrameRate, Seed};
use media::{ClipFormat, OutputOptions, Outputs, Remainder, Tags};
use ndarray::{Array4, ArrayView4, Axis, Slice};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Frames `[N,3,H,W]` in -1..1: a drifting gradient and three soft discs of different colours that cross it. The
/// colours are pale because 4:2:0 halves the resolution of chroma.
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

/// A rate as ffprobe writes it.
fn fraction(rate: FrameRate) -> String {
    let (frames, seconds) = rate.fraction();
    format!("{frames}/{seconds}")
}

fn tags() -> Tags {
    Tags::new("一只猫 & a ball".to_owned(), "Wan2.2-T2V-A14B", Seed(7))
}

fn start(folder: &Path, names: &[&str], format: ClipFormat) -> Outputs {
    let options = OutputOptions::new(format, tags(), &Cancel::new());
    Outputs::start(&claim(folder, names), &options).unwrap()
}

/// Writes frames in chunks of four, as the decoder does.
fn write(folder: &Path, names: &[&str], format: ClipFormat, frames: &Array4<f32>) {
    let mut outputs = start(folder, names, format);
    for chunk in frames.axis_chunks_iter(Axis(0), 4) {
        outputs.write(chunk).unwrap();
    }
    let written = finish(outputs);
    assert_eq!(written.len(), names.len());
    for clip in written {
        assert_eq!(Some(clip.frames), format.frames, "{}", clip.output);
    }
}

/// The only stream and the format of a file, which ffprobe must read without messages.
fn probe(path: &Path) -> (Value, Value) {
    let mut found: Value = serde_json::from_slice(&run_silent(&mut ffprobe(path))).unwrap();
    assert_eq!(found["streams"].as_array().unwrap().len(), 1);
    (found["streams"][0].take(), found["format"].take())
}

/// The pictures `[N,H,W,3]` in 0..1 that ffmpeg decodes.
fn read_back(path: &Path, size: PixelSize) -> Array4<f32> {
    decoded(path, &[], size)
}

fn decoded(path: &Path, filters: &[&str], size: PixelSize) -> Array4<f32> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "warning", "-i"]).arg(path).args(filters);
    let bytes = run_silent(command.args(["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]));
    as_pictures(&bytes, size)
}

fn as_pictures(bytes: &[u8], size: PixelSize) -> Array4<f32> {
    let count = bytes.len() / (3 * size.width * size.height);
    let samples = bytes.iter().map(|byte| f32::from(*byte) / 255.0).collect();
    Array4::from_shape_vec((count, size.height, size.width, 3), samples).unwrap()
}

/// Pictures `[N,H,W,3]` in 0..1 of frames `[N,3,H,W]` in -1..1.
fn pictures(frames: ArrayView4<'_, f32>) -> Array4<f32> {
    frames.permuted_axes([0, 2, 3, 1]).mapv(|x| x * 0.5 + 0.5)
}

fn psnr(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    assert_eq!(a.dim(), b.dim());
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2));
    -10.0 * (squares.sum::<f64>() / a.len() as f64).log10()
}

#[test]
fn clips_of_every_size_and_rate_read_back_unchanged() {
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
        let frames = moving_clip(format.size, format.frames.unwrap());
        write(folder.path(), &["clip.mp4"], format, &frames);

        let (stream, file) = probe(&path);
        let expected = [
            ("codec_name", "h264".to_owned()),
            ("pix_fmt", "yuv420p".into()),
            ("color_range", "tv".into()),
            ("color_space", "bt709".into()),
            ("color_transfer", "bt709".into()),
            ("color_primaries", "bt709".into()),
            ("r_frame_rate", fraction(format.rate)),
            ("avg_frame_rate", fraction(format.rate)),
            ("nb_frames", format.frames.unwrap().to_string()),
            ("nb_read_frames", format.frames.unwrap().to_string()),
        ];
        for (name, value) in expected {
            assert_eq!(stream[name], value, "{name} of {format:?}");
        }
        assert_eq!(stream["width"], format.size.width);
        assert_eq!(stream["height"], format.size.height);
        let length = format.frames.unwrap() as f64 / format.rate.per_second();
        assert!(
            (seconds(&stream["duration"]) - length).abs() < 1e-3,
            "{} for {length} s",
            stream["duration"]
        );
        assert!((seconds(&file["duration"]) - length).abs() < 1e-3, "{} for {length} s", file["duration"]);
        assert_eq!(seconds(&stream["start_time"]), 0.0);

        let shown = pictures(frames.view());
        assert!(shown.std(0.0) > 0.1, "{format:?} has too little contrast to compare");
        let quality = psnr(&read_back(&path, format.size), &shown);
        assert!(quality >= 36.0, "{quality:.1} dB for {format:?}");
    }
}

/// The pictures of a y4m, which is uncompressed: the reference for all other formats.
fn read_y4m(path: &Path, size: PixelSize) -> Array4<f32> {
    let (stream, _) = probe(path);
    assert_eq!((&stream["codec_name"], &stream["pix_fmt"]), (&"rawvideo".into(), &"yuv420p".into()));
    assert_eq!(stream["color_range"], "tv");
    let matrix = "scale=in_color_matrix=bt709:in_range=tv:out_range=pc:flags=accurate_rnd+full_chroma_int";
    decoded(path, &["-vf", matrix], size)
}

#[test]
fn every_format_shows_the_frames_of_the_y4m() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let format = format("96x64", 16, 21);
    let frames = moving_clip(format.size, 21);
    let outputs = ["a.y4m", "a.mp4", "a.webm", "a.mkv", "a.gif", "a.webp", "frames/"];
    write(folder, &outputs, format, &frames);
    assert_eq!(names(folder), ["a.gif", "a.mkv", "a.mp4", "a.webm", "a.webp", "a.y4m", "frames"]);

    let expected = read_y4m(&folder.join("a.y4m"), format.size);
    let quality = psnr(&expected, &pictures(frames.view()));
    assert!(quality >= 36.0, "y4m: {quality:.1} dB");

    for (name, codec) in [("a.mp4", "h264"), ("a.webm", "vp9"), ("a.mkv", "h264")] {
        let (stream, file) = probe(&folder.join(name));
        let found =
            ["codec_name", "pix_fmt", "color_range", "color_space", "color_transfer", "color_primaries"]
                .map(|key| stream[key].as_str().unwrap_or_default());
        assert_eq!(found, [codec, "yuv420p", "tv", "bt709", "bt709", "bt709"], "{name}: {stream}");
        assert_eq!((&stream["width"], &stream["height"]), (&96.into(), &64.into()), "{name}");
        assert_eq!(stream["nb_read_frames"], "21", "{name}");
        assert_eq!(stream["avg_frame_rate"], "16/1", "{name}");
        // Matroska counts in milliseconds.
        let length = seconds(&file["duration"]);
        assert!((length - 21.0 / 16.0).abs() < 2e-3, "{name}: {length} s");
        assert!(file["tags"].to_string().contains("AI-generated"), "{name}: {}", file["tags"]);
        let quality = psnr(&read_back(&folder.join(name), format.size), &expected);
        assert!(quality >= 38.0, "{name}: {quality:.1} dB");
    }

    let (stream, file) = probe(&folder.join("a.gif"));
    assert_eq!((&stream["codec_name"], &stream["nb_read_frames"]), (&"gif".into(), &"21".into()));
    let length = seconds(&file["duration"]);
    assert!((length - 21.0 / 16.0).abs() < 0.01, "{length} s");
    assert!(file["tags"]["comment"].as_str().unwrap().starts_with("AI-generated"), "{file}");
    let quality = psnr(&read_back(&folder.join("a.gif"), format.size), &expected);
    assert!(quality >= 28.0, "gif, 256 colours a frame: {quality:.1} dB");

    let numbered = folder.join("frames/%05d.png");
    let (stream, _) = probe(&numbered);
    assert_eq!((&stream["codec_name"], &stream["nb_read_frames"]), (&"png".into(), &"21".into()));
    let quality = psnr(&read_back(&numbered, format.size), &pictures(frames.view()));
    assert!(quality >= 55.0, "png, without the loss of 4:2:0: {quality:.1} dB");
    let first = std::fs::read(folder.join("frames/00001.png")).unwrap();
    assert!(first.windows(12).any(|bytes| bytes == b"AI-generated"));
}

#[test]
fn the_tools_of_libwebp_read_an_animated_webp() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let format = format("96x64", 16, 9);
    write(folder, &["a.webp", "a.y4m"], format, &moving_clip(format.size, 9));
    let webpmux = |arguments: &[&str]| run(Command::new("webpmux").current_dir(folder).args(arguments));
    let report = webpinfo(&folder.join("a.webp"));
    assert!(report.contains("Canvas size 96 x 64") && report.contains("Loop count      : 0"), "{report}");
    let delays = webp_delays(&report);
    assert_eq!((delays.len(), delays.iter().sum()), (9, 563_u64), "9 frames of 62.5 ms, rounded once");
    webpmux(&["-get", "xmp", "a.webp", "-o", "a.xmp"]);
    assert!(std::fs::read_to_string(folder.join("a.xmp")).unwrap().contains("trainedAlgorithmicMedia"));

    let expected = read_y4m(&folder.join("a.y4m"), format.size);
    for number in [1, 9] {
        webpmux(&["-get", "frame", &number.to_string(), "a.webp", "-o", "one.webp"]);
        let frame = expected.slice_axis(Axis(0), Slice::from(number - 1..number)).to_owned();
        let quality = psnr(&read_back(&folder.join("one.webp"), format.size), &frame);
        assert!(quality >= 32.0, "frame {number}: {quality:.1} dB");
    }
}

#[test]
fn the_metadata_names_the_mark_the_model_and_the_seed() {
    let folder = tempfile::tempdir().unwrap();
    let format = format("32x32", 16, 5);
    write(folder.path(), &["clip.mp4", "clip.mkv"], format, &moving_clip(format.size, 5));
    let (_, file) = probe(&folder.path().join("clip.mp4"));
    let tags = &file["tags"];
    assert_eq!(tags["title"], "一只猫 & a ball");
    let comment = tags["comment"].as_str().unwrap();
    assert!(comment.starts_with("AI-generated: Rushes "), "{comment}");
    assert!(comment.ends_with("model Wan2.2-T2V-A14B, seed 7"), "{comment}");
    assert_eq!(tags["keywords"], "AI-generated");
    let arguments =
        ["-v", "error", "-export_xmp", "1", "-show_entries", "format_tags=xmp", "-of", "default=nk=1"];
    let xmp = run(Command::new("ffprobe").args(arguments).arg(folder.path().join("clip.mp4"))).stdout;
    let xmp = String::from_utf8(xmp).unwrap();
    assert!(xmp.contains("trainedAlgorithmicMedia") && xmp.contains("一只猫 &amp; a ball"), "{xmp}");
    assert!(tags["encoder"].as_str().unwrap().starts_with("Rushes "), "{tags}");
    let (_, file) = probe(&folder.path().join("clip.mkv"));
    let version = env!("CARGO_PKG_VERSION");
    let comment = format!("AI-generated:Rushes/{version}:Wan2.2-T2V-A14B:seed_7");
    assert!(file["tags"].to_string().contains(&comment), "{file}");
}

#[test]
fn an_interrupted_clip_plays_with_the_frames_so_far() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let format = format("64x48", 16, 81);
    let frames = moving_clip(format.size, 13);
    let outputs = ["clip.mp4", "clip.webm", "clip.mkv", "clip.gif", "clip.y4m"];
    let parts = ["clip.part.mp4", "clip.part.webm", "clip.part.mkv", "clip.part.gif", "clip.part.y4m"];
    for count in [1, 13] {
        std::fs::write(folder.join("clip.mp4"), "an older clip").unwrap();
        let mut outputs = start(folder, &outputs, format);
        outputs.write(frames.slice_axis(Axis(0), Slice::from(..count))).unwrap();
        let remainders: Vec<_> = outputs.interrupt().into_iter().map(|(_, remainder)| remainder).collect();
        let whole = |part: &&str| Remainder::Whole { part: folder.join(part), frames: count };
        assert_eq!(remainders, parts.iter().map(whole).collect::<Vec<_>>());

        let expected = read_y4m(&folder.join("clip.part.y4m"), format.size);
        assert_eq!(expected.len_of(Axis(0)), count);
        for (part, least) in parts.into_iter().zip([36.0, 36.0, 36.0, 26.0, 36.0]) {
            let quality = psnr(&read_back(&folder.join(part), format.size), &expected);
            assert!(quality >= least, "{part}: {quality:.1} dB");
        }
        assert_eq!(std::fs::read(folder.join("clip.mp4")).unwrap(), b"an older clip");
    }
}
