//! Backgrounds, logos and audio files that are truncated, overwritten, unusable or shorter than the clip.

use crate::clip::{claim, finish, format, options};
use crate::tools::generated;
use bundle::{Diagnose, ErrorClass};
use media::post_process::{AudioSource, Corner, KeyColour, PostProcess, PostProcessSpec};
use media::{Error, Outputs};
use ndarray::Array3;
use std::path::{Path, PathBuf};

/// Four seconds of a moving picture.
const MOVING: &str = "testsrc=s=160x96:r=16:d=4";
/// Four seconds of a tone.
const TONE: &str = "sine=frequency=440:duration=4";

fn open(spec: PostProcessSpec, frames: usize) -> Result<PostProcess, Error> {
    spec.open(format("64x32", 16, frames))
}

fn background(path: &Path, frames: usize) -> Result<PostProcess, Error> {
    open(
        PostProcessSpec { key: Some((KeyColour::Green, path.to_owned())), ..PostProcessSpec::default() },
        frames,
    )
}

fn logo(path: &Path) -> Result<PostProcess, Error> {
    open(PostProcessSpec { logo: Some((path.to_owned(), Corner::TopLeft)), ..PostProcessSpec::default() }, 1)
}

fn audio(path: &Path, frames: usize) -> Result<PostProcess, Error> {
    open(
        PostProcessSpec { audio: Some(AudioSource::File(path.to_owned())), ..PostProcessSpec::default() },
        frames,
    )
}

/// A copy of a file with changed bytes.
fn modified(path: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    let copy = path.with_file_name(format!("{name}-{}", path.file_name().unwrap().to_str().unwrap()));
    std::fs::write(&copy, bytes).unwrap();
    copy
}

fn truncated(path: &Path) -> PathBuf {
    modified(path, "truncated", |bytes| bytes.truncate(bytes.len() / 2))
}

/// A copy in which a twentieth of the file, from its middle on, is zeros.
fn overwritten(path: &Path) -> PathBuf {
    modified(path, "overwritten", |bytes| {
        let (middle, count) = (bytes.len() / 2, bytes.len() / 20);
        bytes[middle..middle + count].fill(0);
    })
}

/// The error names the file and states that it is damaged, and where.
fn assert_refused(opened: Result<PostProcess, Error>, path: &Path) {
    let error = match opened {
        Err(error) => error,
        Ok(_) => panic!("{} was accepted", path.display()),
    };
    let report = error.report();
    assert_eq!(report.class, ErrorClass::BadInput, "{}: {report}", path.display());
    assert!(report.what.contains(path.file_name().unwrap().to_str().unwrap()), "{report}");
    let names_damage = ["cut short", "damaged", "incomplete"].iter().any(|word| report.why.contains(word));
    assert!(
        names_damage && report.why.contains(|c: char| c.is_ascii_digit()),
        "{}: {report}",
        path.display()
    );
}

/// Videos that the minimal set of packages can decode.
fn videos(folder: &Path) -> Vec<PathBuf> {
    let videos: [(&str, &[&str]); 8] = [
        ("video.avi", &["-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "3"]),
        ("vp9.webm", &["-c:v", "libvpx-vp9", "-b:v", "2M", "-g", "16", "-deadline", "realtime"]),
        ("vp8.webm", &["-c:v", "libvpx", "-b:v", "2M", "-g", "16"]),
        ("vp8.mkv", &["-c:v", "libvpx", "-b:v", "2M"]),
        ("video.ogv", &["-c:v", "libtheora"]),
        ("video.gif", &[]),
        ("video.webp", &["-c:v", "libwebp_anim", "-lossless", "0"]),
        ("video.y4m", &["-pix_fmt", "yuv420p"]),
    ];
    videos.iter().map(|(name, options)| generated(folder, name, MOVING, options)).collect()
}

/// The mean difference of each frame to the one before.
fn changes(mut post_process: PostProcess, frames: usize) -> Vec<f32> {
    let green = Array3::from_shape_fn((3, 32, 64), |(c, _, _)| [-0.76, 0.49, -0.69][c]);
    let shown: Vec<_> = (0..frames).flat_map(|_| post_process.push(green.clone()).unwrap()).collect();
    shown.windows(2).map(|pair| (&pair[1] - &pair[0]).abs().mean().unwrap()).collect()
}

#[test]
fn every_video_format_plays_as_a_background_and_is_refused_when_damaged() {
    let folder = tempfile::tempdir().unwrap();
    for video in videos(folder.path()) {
        let name = video.display();
        let post_process = background(&video, 64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(post_process.notes(), Vec::<String>::new(), "{name}");
        let moved = changes(post_process, 64).iter().filter(|change| **change > 1e-4).count();
        assert!(moved > 48, "{name}: only {moved} of 63 frames differ from the one before");
        assert_refused(background(&truncated(&video), 64), &truncated(&video));
        assert_refused(background(&overwritten(&video), 64), &overwritten(&video));
    }
    // Damage to H.264 containers is found without an H.264 decoder.
    for name in ["video.mp4", "video.mkv", "video.mov"] {
        let video = generated(folder.path(), name, MOVING, &["-c:v", "libx264"]);
        assert_refused(background(&truncated(&video), 64), &truncated(&video));
    }
}

#[test]
fn every_output_format_can_be_a_background() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.webp", "a.y4m"];
    let paths = names.map(|name| folder.path().join(name));
    let options = options(format("32x48", 16, 20));
    let mut outputs = Outputs::start(&claim(folder.path(), &names), &options).unwrap();
    let frame =
        |n: usize| Array3::from_shape_fn((3, 48, 32), |(c, y, x)| ((c + y + x + n) % 20) as f32 / 10.0 - 1.0);
    outputs.write_all((0..20).map(frame)).unwrap();
    assert_eq!(finish(outputs).len(), names.len());
    for path in &paths {
        let post_process = background(path, 20).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(post_process.notes(), Vec::<String>::new(), "{}", path.display());
        let moved = changes(post_process, 20).iter().filter(|change| **change > 1e-3).count();
        assert!(moved >= 18, "{}: {moved} of 19 frames differ from the one before", path.display());
    }
}

#[test]
fn a_short_background_holds_its_last_frame_and_adds_a_note() {
    let folder = tempfile::tempdir().unwrap();
    for video in videos(folder.path()).iter().step_by(2) {
        let post_process = background(video, 80).unwrap();
        let notes = post_process.notes().join("\n");
        assert!(notes.contains("ends after 4.") && notes.contains("last frame is repeated"), "{notes}");
        assert!(changes(post_process, 80)[70..].iter().all(|change| *change == 0.0), "{}", video.display());
    }
    for (name, options) in [
        ("still.png", &["-frames:v", "1"][..]),
        ("still.webp", &["-frames:v", "1", "-c:v", "libwebp"]),
        ("still.jpg", &["-frames:v", "1"]),
        ("still.gif", &["-frames:v", "1"]),
    ] {
        let still = generated(folder.path(), name, MOVING, options);
        let post_process = background(&still, 20).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(post_process.notes(), Vec::<String>::new(), "{name}");
        assert!(changes(post_process, 20).iter().all(|change| *change == 0.0), "{name}");
    }
}

#[test]
fn a_damaged_logo_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let small = "testsrc=s=48x24:d=1";
    for (name, options) in [
        ("logo.png", &[][..]),
        ("logo.jpg", &["-q:v", "1"]),
        ("logo.webp", &["-c:v", "libwebp"]),
        ("logo.gif", &[]),
    ] {
        let picture = generated(folder.path(), name, small, &[&["-frames:v", "1"], options].concat());
        logo(&picture).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_refused(logo(&truncated(&picture)), &truncated(&picture));
    }
}

#[test]
fn damaged_sound_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let files: [(&str, &[&str]); 6] = [
        ("tone.wav", &[]),
        ("tone.flac", &[]),
        ("tone.ogg", &["-c:a", "libvorbis"]),
        ("tone.opus", &["-c:a", "libopus"]),
        ("tone.mp3", &["-c:a", "libmp3lame"]),
        ("tone.mka", &["-c:a", "libvorbis"]),
    ];
    for (name, options) in files {
        let sound = generated(folder.path(), name, TONE, options);
        audio(&sound, 64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_refused(audio(&truncated(&sound), 64), &truncated(&sound));
        // Audio that is shorter than the clip is repeated.
        audio(&sound, 80).unwrap();
    }
    for name in ["tone.ogg", "tone.opus"] {
        let path = folder.path().join(name);
        assert_refused(audio(&overwritten(&path), 64), &overwritten(&path));
    }
}

#[test]
fn files_without_the_expected_stream_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sound = generated(folder, "tone.ogg", TONE, &["-c:a", "libvorbis"]);
    let picture = generated(folder, "a.png", MOVING, &["-frames:v", "1"]);
    let note = folder.join("note.txt");
    std::fs::write(&note, "a text, long enough that no header of a container is missing only for its length")
        .unwrap();
    let empty = folder.join("empty.mp4");
    std::fs::write(&empty, "").unwrap();
    let why = |opened: Result<PostProcess, Error>| match opened {
        Err(error @ Error::PostProcess { .. }) => error.report().why,
        other => panic!("{other:?}"),
    };
    assert!(why(background(&sound, 4)).contains("it contains no picture"));
    assert!(why(logo(&sound)).contains("it contains no picture"));
    assert!(why(audio(&picture, 4)).contains("it contains no sound"));
    for path in [&note, &empty, &folder.join("absent.mp4"), &folder.to_owned()] {
        for opened in [background(path, 4), logo(path), audio(path, 4)] {
            assert!(!why(opened).is_empty());
        }
    }
}
