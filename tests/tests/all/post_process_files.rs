//! Files for overlays and audio: a wrong file is reported by name before the run.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tests::golden;
use tests::program::{event, rushes};

static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case("moving-clip").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
});

/// Hides the decoders of H.264 and AAC that a machine may have.
const HIDDEN: &str = "avdec_h264:NONE,openh264dec:NONE,vah264dec:NONE,vaapih264dec:NONE,nvh264dec:NONE,\
                      nvh264sldec:NONE,v4l2h264dec:NONE,v4l2slh264dec:NONE,avdec_aac:NONE,avdec_aac_fixed:NONE,\
                      faad:NONE,fdkaacdec:NONE,avdec_mpeg4:NONE";

/// A short run with these arguments, in a working folder, without the hidden decoders.
fn generate(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = rushes(folder);
    command.env("GST_PLUGIN_FEATURE_RANK", HIDDEN);
    command.args([
        "generate",
        "a boat",
        "--size",
        "64x32",
        "--steps",
        "1",
        "--guidance",
        "1",
        "--frames",
        "9",
    ]);
    command.args(["-o", "clip.y4m", "--bundle"]).arg(&BUNDLE.1).args(arguments).output().unwrap()
}

fn create(folder: &Path, name: &str, arguments: &[&str]) {
    let status = Command::new("ffmpeg")
        .current_dir(folder)
        .args(["-v", "error", "-f", "lavfi", "-i"])
        .args(arguments)
        .arg(name)
        .status()
        .expect("ffmpeg: `make setup` installs it");
    assert!(status.success(), "{name}");
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn clips_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("clip"))
        .collect()
}

#[test]
fn a_missing_decoder_is_named_with_its_package() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let film = "testsrc=s=64x32:r=16:d=1";
    create(folder, "film.mp4", &[film, "-c:v", "libx264"]);
    create(folder, "film.mkv", &[film, "-c:v", "libx264"]);
    create(folder, "film.avi", &[film, "-c:v", "mpeg4"]);
    create(folder, "tone.m4a", &["sine=d=1", "-c:a", "aac"]);
    create(folder, "tone.mkv", &["sine=d=1", "-c:a", "aac"]);
    let cases: [(&[&str], &str); 6] = [
        (&["--key", "green", "--background", "film.mp4"], "x-h264"),
        (&["--key", "green", "--background", "film.mkv"], "x-h264"),
        (&["--key", "blue", "--background", "film.avi"], "video/mpeg"),
        (&["--logo", "film.mp4@top-left"], "x-h264"),
        (&["--audio", "tone.m4a"], "audio/mpeg"),
        (&["--audio", "tone.mkv"], "audio/mpeg"),
    ];
    for (arguments, media_type) in cases {
        let output = generate(folder, arguments);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {}", stderr_of(&output));
        let stderr = stderr_of(&output);
        assert!(
            stderr.contains(media_type) && stderr.contains("gstreamer1.0-libav"),
            "{arguments:?}: {stderr}"
        );
        assert_eq!(clips_in(folder), Vec::<String>::new());
    }
}

#[test]
fn unusable_files_are_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    create(folder, "tone.wav", &["sine=d=1"]);
    create(folder, "picture.png", &["testsrc=s=64x32", "-frames:v", "1"]);
    std::fs::write(
        folder.join("note.mp4"),
        "a note of some length, and no film at all, as everybody can see",
    )
    .unwrap();
    std::fs::write(folder.join("c.vtt"), "WEBVTT\n\n00:01.000 --> 00:02.000\nHello\n").unwrap();
    std::fs::write(folder.join("latin.srt"), b"00:00:00,000 --> 00:00:01,000\ncaf\xe9\n").unwrap();
    std::fs::write(folder.join("times.srt"), "1\n00:00:00,000 -> 00:00:01,000\nHello\n").unwrap();
    std::fs::write(folder.join("empty.srt"), "").unwrap();
    let long = "a caption that goes on and on ".repeat(20);
    let cases: [(&[&str], &[&str]); 12] = [
        (&["--key", "green", "--background", "note.mp4"], &["--background", "note.mp4"]),
        (&["--key", "green", "--background", "tone.wav"], &["tone.wav", "no picture"]),
        (&["--logo", "note.mp4@top-left"], &["--logo", "note.mp4"]),
        (&["--logo", "tone.wav@top-left"], &["no picture"]),
        (&["--audio", "note.mp4", "-o", "clip.mkv"], &["--audio", "note.mp4"]),
        (&["--audio", "picture.png", "-o", "clip.mkv"], &["no sound"]),
        (&["--caption", "c.vtt"], &[".vtt", "ffmpeg -i"]),
        (&["--caption", "latin.srt"], &["UTF-8", "iconv"]),
        (&["--caption", "times.srt"], &["line 2", "-->"]),
        (&["--caption", "empty.srt"], &["no caption"]),
        (&["--caption", &long], &["does not fit", "64x32"]),
        (&["--caption", " "], &["no visible character"]),
    ];
    for (arguments, words) in cases {
        let output = generate(folder, arguments);
        let stderr = stderr_of(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(words.iter().all(|word| stderr.contains(word)), "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert_eq!(clips_in(folder), Vec::<String>::new());
    }
}

#[test]
fn adjustments_are_reported_and_the_clip_is_generated() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    create(folder, "film.webm", &["testsrc=s=64x32:r=16:d=0.125", "-c:v", "libvpx"]);
    let file = "1\n00:00:00,000 --> 00:00:01,000\nHi\n \n2\n00:01:00,000 --> 00:01:01,000\nlate\n";
    std::fs::write(folder.join("c.srt"), format!("\u{feff}{file}").replace('\n', "\r\n")).unwrap();
    let output = generate(
        folder,
        &[
            "--key",
            "green",
            "--background",
            "film.webm",
            "--caption",
            "c.srt",
            "--fps",
            "60",
            "-o",
            "clip.gif",
            "--json",
        ],
    );
    let stderr = stderr_of(&output);
    assert!(output.status.success(), "{stderr}");
    for words in ["film.webm ends after", "`late` at 00:01:00,000", "clip.gif shows 7 of the 9 frames"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
    let done = event(&output, "done");
    let frames: Vec<_> =
        done["outputs"].as_array().unwrap().iter().map(|output| output["frames"].as_u64()).collect();
    assert_eq!(frames, [Some(9), Some(7)], "{done}");
}
