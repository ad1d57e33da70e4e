//! Files that the clip is dressed with: cut short, overwritten, of no use; and those that only end early.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use bundle::{Diagnose, ErrorClass};
use media::post_process::{Corner, KeyColour, PostProcess, PostProcessSpec};
use media::{ClipFormat, Error, OutputOptions, OutputTarget, Outputs, Tags};
use ndarray::Array3;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Four seconds of a picture that moves.
const MOVING: &str = "testsrc=s=160x96:r=16:d=4";
/// Four seconds of a tone.
const TONE: &str = "sine=frequency=440:duration=4";

fn made(folder: &Path, name: &str, source: &str, options: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let status = Command::new("ffmpeg")
        .args(["-v", "error", "-y", "-f", "lavfi", "-i", source])
        .args(options)
        .arg(&path)
        .status()
        .expect("ffmpeg: `make setup` installs it");
    assert!(status.success(), "{name}");
    path
}

fn open(spec: PostProcessSpec, frames: usize) -> Result<PostProcess, Error> {
    let rate = FrameRate::try_new(16).unwrap();
    spec.open(ClipFormat { size: "64x32".parse().unwrap(), rate, frames: Some(frames) })
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
    open(PostProcessSpec { audio: Some(path.to_owned()), ..PostProcessSpec::default() }, frames)
}

/// Another file with the bytes changed.
fn spoilt(path: &Path, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    let spoilt = path.with_file_name(format!("{name}-{}", path.file_name().unwrap().to_str().unwrap()));
    std::fs::write(&spoilt, bytes).unwrap();
    spoilt
}

fn cut(path: &Path) -> PathBuf {
    spoilt(path, "cut", |bytes| bytes.truncate(bytes.len() / 2))
}

/// Half way a twentieth of the file is zeros.
fn overwritten(path: &Path) -> PathBuf {
    spoilt(path, "overwritten", |bytes| {
        let (middle, count) = (bytes.len() / 2, bytes.len() / 20);
        bytes[middle..middle + count].fill(0);
    })
}

/// What was refused, which says that the file is damaged, and where.
fn assert_refused(opened: Result<PostProcess, Error>, path: &Path) {
    let error = match opened {
        Err(error) => error,
        Ok(_) => panic!("{} was accepted", path.display()),
    };
    let report = error.report();
    assert_eq!(report.class, ErrorClass::BadInput, "{}: {report}", path.display());
    assert!(report.what.contains(path.file_name().unwrap().to_str().unwrap()), "{report}");
    let says = ["cut short", "damaged", "incomplete"].iter().any(|word| report.why.contains(word));
    assert!(says && report.why.contains(|c: char| c.is_ascii_digit()), "{}: {report}", path.display());
}

/// Films that need no package beyond the minimal install.
fn films(folder: &Path) -> Vec<PathBuf> {
    let films: [(&str, &[&str]); 8] = [
        ("film.avi", &["-c:v", "mjpeg", "-pix_fmt", "yuvj420p", "-q:v", "3"]),
        ("vp9.webm", &["-c:v", "libvpx-vp9", "-b:v", "2M", "-g", "16", "-deadline", "realtime"]),
        ("vp8.webm", &["-c:v", "libvpx", "-b:v", "2M", "-g", "16"]),
        ("vp8.mkv", &["-c:v", "libvpx", "-b:v", "2M"]),
        ("film.ogv", &["-c:v", "libtheora"]),
        ("film.gif", &[]),
        ("film.webp", &["-c:v", "libwebp_anim", "-lossless", "0"]),
        ("film.y4m", &["-pix_fmt", "yuv420p"]),
    ];
    films.iter().map(|(name, options)| made(folder, name, MOVING, options)).collect()
}

/// How much the blue of the background changes from one frame to the next, in each frame.
fn changes(mut post_process: PostProcess, frames: usize) -> Vec<f32> {
    let green = Array3::from_shape_fn((3, 32, 64), |(c, _, _)| [-0.76, 0.49, -0.69][c]);
    let shown: Vec<_> = (0..frames).flat_map(|_| post_process.push(green.clone()).unwrap()).collect();
    shown.windows(2).map(|pair| (&pair[1] - &pair[0]).abs().mean().unwrap()).collect()
}

#[test]
fn a_film_of_every_kind_moves_and_one_that_is_damaged_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for film in films(folder.path()) {
        let name = film.display();
        let post_process = background(&film, 64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(post_process.notes(), Vec::<String>::new(), "{name}");
        let moved = changes(post_process, 64).iter().filter(|change| **change > 1e-4).count();
        assert!(moved > 48, "{name}: only {moved} of 63 frames differ from the one before");
        assert_refused(background(&cut(&film), 64), &cut(&film));
        assert_refused(background(&overwritten(&film), 64), &overwritten(&film));
    }
    // What H.264 is made of is known without a decoder for it.
    for name in ["film.mp4", "film.mkv", "film.mov"] {
        let film = made(folder.path(), name, MOVING, &["-c:v", "libx264"]);
        assert_refused(background(&cut(&film), 64), &cut(&film));
    }
}

#[test]
fn what_we_write_can_be_a_background() {
    let folder = tempfile::tempdir().unwrap();
    let names = ["a.mp4", "a.mkv", "a.webm", "a.gif", "a.webp", "a.y4m"];
    let paths = names.map(|name| folder.path().join(name));
    let specs: Vec<_> = paths.iter().map(|path| path.to_str().unwrap().parse().unwrap()).collect();
    let targets = OutputTarget::claim_all(&specs).unwrap();
    let rate = FrameRate::try_new(16).unwrap();
    let format = ClipFormat { size: "32x48".parse().unwrap(), rate, frames: Some(20) };
    let options = OutputOptions::new(format, Tags::new(None, "mini", Seed(1)), &Cancel::new());
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    let frame =
        |n: usize| Array3::from_shape_fn((3, 48, 32), |(c, y, x)| ((c + y + x + n) % 20) as f32 / 10.0 - 1.0);
    outputs.write_all((0..20).map(frame)).unwrap();
    assert_eq!(outputs.finish().written.len(), names.len());
    for path in &paths {
        let post_process = background(path, 20).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(post_process.notes(), Vec::<String>::new(), "{}", path.display());
        let moved = changes(post_process, 20).iter().filter(|change| **change > 1e-3).count();
        assert!(moved >= 18, "{}: {moved} of 19 frames differ from the one before", path.display());
    }
}

#[test]
fn a_film_that_ends_early_holds_its_last_picture_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for film in films(folder.path()).iter().step_by(2) {
        let post_process = background(film, 80).unwrap();
        let notes = post_process.notes().join("\n");
        assert!(notes.contains("ends after 4.") && notes.contains("last frame is repeated"), "{notes}");
        assert!(changes(post_process, 80)[70..].iter().all(|change| *change == 0.0), "{}", film.display());
    }
    for (name, options) in [
        ("still.png", &["-frames:v", "1"][..]),
        ("still.webp", &["-frames:v", "1", "-c:v", "libwebp"]),
        ("still.jpg", &["-frames:v", "1"]),
        ("still.gif", &["-frames:v", "1"]),
    ] {
        let still = made(folder.path(), name, MOVING, options);
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
        let picture = made(folder.path(), name, small, &[&["-frames:v", "1"], options].concat());
        logo(&picture).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_refused(logo(&cut(&picture)), &cut(&picture));
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
        let sound = made(folder.path(), name, TONE, options);
        audio(&sound, 64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_refused(audio(&cut(&sound), 64), &cut(&sound));
        // Shorter than the clip it is repeated, by choice.
        audio(&sound, 80).unwrap();
    }
    for name in ["tone.ogg", "tone.opus"] {
        let path = folder.path().join(name);
        assert_refused(audio(&overwritten(&path), 64), &overwritten(&path));
    }
}

#[test]
fn files_without_what_is_wanted_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let sound = made(folder, "tone.ogg", TONE, &["-c:a", "libvorbis"]);
    let picture = made(folder, "a.png", MOVING, &["-frames:v", "1"]);
    let note = folder.join("note.txt");
    std::fs::write(&note, "no film at all, but a text of some length that no player would take for one")
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
