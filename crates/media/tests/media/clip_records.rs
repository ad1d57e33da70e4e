//! The record of a clip, read back from every format and from copies that ffmpeg makes of them.

use crate::clip::{claim, finish, format, moving_bar, options};
use crate::tools::{probe, run, run_silent};
use bundle::ErrorClass;
use media::clip_record::{self, Error};
use media::{OutputOptions, Outputs, Tags};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const FRAMES: usize = 4;

const NAMES: [&str; 6] = ["clip.mp4", "clip.mkv", "clip.webm", "clip.webp", "clip.gif", "frames/"];

/// A record with characters of every length in UTF-8.
fn record(length: usize) -> String {
    let text = "the fox – 狐 🦊 \"runs\" ".repeat(length / 20 + 1);
    let text: String = text.chars().take(length).collect();
    serde_json::json!({"spec": {"version": 1, "prompt": text, "seed": 7}, "latents": ["a0b1c2d3"]})
        .to_string()
}

/// Writes a clip to a new folder.
fn write(names: &[&str], change: impl FnOnce(&mut OutputOptions)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(format("64x48", 16, FRAMES));
    change(&mut options);
    let mut outputs = Outputs::start(&claim(folder.path(), names), &options).unwrap();
    (0..FRAMES).for_each(|number| outputs.push(&moving_bar(options.format, number)).unwrap());
    for clip in finish(outputs) {
        assert_eq!(
            (clip.frames, clip.bytes.is_some_and(|bytes| bytes > 0)),
            (FRAMES, true),
            "{}",
            clip.output
        );
    }
    folder
}

fn with_record(names: &[&str], record: &str) -> TempDir {
    write(names, |options| options.tags.record = Some(record.to_owned()))
}

/// A copy that `ffmpeg -c copy` makes without messages.
fn copied(from: &Path, name: &str) -> PathBuf {
    let to = from.with_file_name(name);
    run_silent(
        Command::new("ffmpeg").args(["-v", "error", "-y", "-i"]).arg(from).args(["-c", "copy"]).arg(&to),
    );
    to
}

#[test]
fn every_format_carries_the_record() {
    for length in [10, 30_000] {
        let record = record(length);
        let folder = with_record(&NAMES, &record);
        for name in NAMES {
            assert_eq!(clip_record::read(&folder.path().join(name)).unwrap(), record, "{name}");
        }
        let tag = |name: &str| probe(folder.path().join(name))["format"]["tags"]["RUSHES_JOB"].take();
        assert_eq!(tag("clip.mkv"), tag("clip.webm"));
        assert!(tag("clip.mkv").as_str().is_some_and(|tag| tag.starts_with("eyJ")), "{}", tag("clip.mkv"));
        // The frames and the other tags are as without a record.
        for name in &NAMES[..3] {
            let found = probe(folder.path().join(name));
            assert_eq!(found["streams"][0]["nb_read_frames"], FRAMES.to_string(), "{name}");
            assert!(found["format"]["tags"].to_string().contains("AI-generated"), "{name}: {found}");
            run_silent(
                Command::new("ffmpeg")
                    .args(["-v", "warning", "-i"])
                    .arg(folder.path().join(name))
                    .args(["-f", "null", "-"]),
            );
        }
        let later = clip_record::read(&folder.path().join("frames/00002.png")).unwrap_err();
        assert!(matches!(&later, Error::Absent { why, .. } if why.contains("first picture")), "{later}");
    }
}

#[test]
fn gstreamer_reads_files_with_a_record() {
    let folder = with_record(&NAMES[..3], &record(30_000));
    for (name, decoder) in
        [("clip.mp4", "qtdemux"), ("clip.mkv", "matroskademux"), ("clip.webm", "matroskademux")]
    {
        let source = format!("location={}", folder.path().join(name).display());
        let output = run(Command::new("gst-launch-1.0").args([
            "-t",
            "filesrc",
            &source,
            "!",
            decoder,
            "!",
            "fakesink",
            "silent=false",
            "-v",
        ]));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.matches("last-message = chain").count(), FRAMES, "{name}: {text}");
        assert!(text.contains("AI-generated"), "{name}: {text}");
    }
}

#[test]
fn copies_keep_the_record() {
    let record = record(30_000);
    let folder = with_record(&NAMES, &record);
    let at = |name: &str| folder.path().join(name);
    for (from, to) in [
        ("clip.mp4", "b.mp4"),
        ("clip.mp4", "b.mkv"),
        ("clip.mkv", "c.mp4"),
        ("clip.mkv", "c.mkv"),
        ("clip.webm", "d.webm"),
        ("clip.webm", "d.mkv"),
        ("clip.webm", "d.mp4"),
        ("clip.gif", "copy.gif"),
        // A copy of a copy.
        ("b.mkv", "e.mp4"),
        ("c.mp4", "e.mkv"),
        ("d.mp4", "e.webm"),
    ] {
        assert_eq!(clip_record::read(&copied(&at(from), to)).unwrap(), record, "{from} to {to}");
    }
    std::fs::create_dir(at("copy")).unwrap();
    copied(&at("frames/%05d.png"), "../copy/%05d.png");
    assert_eq!(clip_record::read(&at("copy")).unwrap(), record);
    let moved = at("faststart.mp4");
    run_silent(
        Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(at("clip.mp4"))
            .args(["-c", "copy", "-movflags", "faststart+use_metadata_tags"])
            .arg(&moved),
    );
    assert_eq!(clip_record::read(&moved).unwrap(), record);
}

#[test]
fn a_copy_that_lost_the_record_names_its_program() {
    let folder = with_record(&["clip.mp4"], &record(10));
    let bare = folder.path().join("bare.mkv");
    let no_tags = ["-map_metadata", "-1", "-c", "copy"];
    run_silent(
        Command::new("ffmpeg")
            .args(["-v", "error", "-i"])
            .arg(folder.path().join("clip.mp4"))
            .args(no_tags)
            .arg(&bare),
    );
    let error = clip_record::read(&bare).unwrap_err();
    assert!(matches!(&error, Error::Absent { why, .. } if why.contains("Lavf")), "{error}");
}

#[test]
fn without_metadata_only_the_mark_is_written() {
    let secret = ["a clip", "mini", "seed", "a note", "RUSHES_JOB", "rushes:job"];
    let left_out = |mark: bool| {
        write(&NAMES, |options| {
            let tags = options.tags.clone();
            let (note, record) = (Some("a note".into()), Some(record(10)));
            options.tags = Tags { metadata: false, mark, note, record, ..tags };
        })
    };
    for mark in [true, false] {
        let folder = left_out(mark);
        for name in ["clip.mp4", "clip.mkv", "clip.webm", "clip.webp", "clip.gif", "frames/00001.png"] {
            let bytes = std::fs::read(folder.path().join(name)).unwrap();
            let has = |text: &str| bytes.windows(text.len()).any(|found| found == text.as_bytes());
            for text in secret {
                assert!(!has(text), "{name} contains {text:?}");
            }
            assert_eq!(has("AI-generated"), mark, "{name}");
            if ["clip.mp4", "clip.webp"].contains(&name) {
                assert_eq!(has("trainedAlgorithmicMedia"), mark, "{name}");
            }
            let error = clip_record::read(&folder.path().join(name)).unwrap_err();
            assert!(matches!(&error, Error::Absent { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn an_output_whose_record_does_not_fit_is_not_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = options(format("64x48", 16, FRAMES));
    options.tags.record = Some(record(60_000));
    let checked = options.tags.check_record().unwrap_err();
    assert!(matches!(&checked, media::Error::Record { .. }), "{checked}");
    let error = Outputs::start(&claim(folder.path(), &["clip.mkv"]), &options).unwrap_err();
    let report = bundle::Diagnose::report(&error);
    assert_eq!(report.class, ErrorClass::BadInput, "{error}");
    assert!(!folder.path().join("clip.mkv").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_clips_end_in_an_error_or_a_record(
        name in prop::sample::select(&NAMES[..5]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..40),
        kept in any::<prop::sample::Index>(),
    ) {
        static CLIPS: std::sync::LazyLock<TempDir> =
            std::sync::LazyLock::new(|| with_record(&NAMES[..5], &record(50)));
        let mut bytes = std::fs::read(CLIPS.path().join(name)).unwrap();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(kept.index(bytes.len()) + 1);
        let damaged = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(damaged.path(), bytes).unwrap();
        match clip_record::read(damaged.path()) {
            Ok(record) => prop_assert!(serde_json::from_str::<serde_json::Value>(&record).is_ok()),
            Err(error) => prop_assert!(!matches!(error, Error::Unreadable { .. }), "{}", error),
        }
    }
}
