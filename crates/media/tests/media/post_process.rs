//! Captions, logo, background, audio and another rate on whole clips.

use crate::clip::{claim, finish, format, options};
use crate::tools::{generated, probe, run, seconds};
use bundle::Field;
use bundle::units::FrameRate;
use media::post_process::{AudioSource, Caption, Corner, Interpolation, KeyColour, PostProcessSpec};
use media::{ClipFormat, Error, OutputOptions, Outputs, Tags, check_sound};
use ndarray::{Array3, Array4, s};
use std::process::Command;

/// The frames `[N,3,H,W]` of a grey clip after post-processing.
fn processed(spec: &PostProcessSpec, format: ClipFormat, grey: f32) -> Array4<f32> {
    let mut post_process = spec.open(format).unwrap();
    let frame = Array3::from_elem((3, format.size.height, format.size.width), grey);
    let mut frames: Vec<_> =
        (0..format.frames.unwrap()).flat_map(|_| post_process.push(frame.clone()).unwrap()).collect();
    frames.extend(post_process.finish());
    let views: Vec<_> = frames.iter().map(|frame| frame.view()).collect();
    ndarray::stack(ndarray::Axis(0), &views).unwrap()
}

#[test]
fn captions_are_shown_at_their_times_with_every_character() {
    let at = |start: u64, end: u64, text: &str| Caption {
        start: std::time::Duration::from_millis(start),
        end: std::time::Duration::from_millis(end),
        text: text.into(),
    };
    let shown = |text: &str| {
        let spec = PostProcessSpec { captions: vec![at(250, 500, text)], ..PostProcessSpec::default() };
        processed(&spec, format("320x192", 16, 10), 0.25)
    };
    let frames = shown("A < B & C");
    let changed = |n: usize| frames.slice(s![n, .., .., ..]).iter().filter(|value| **value != 0.25).count();
    for n in [0, 3, 8, 9] {
        assert_eq!(changed(n), 0, "frame {n}");
    }
    assert!(changed(4) > 500 && changed(4) == changed(7), "{} samples", changed(4));
    let top = frames.slice(s![5, .., ..96, ..]);
    assert!(top.iter().all(|value| *value == 0.25), "it is at the bottom");
    let brightest = frames.slice(s![5, .., .., ..]).iter().fold(-1.0_f32, |a, b| a.max(*b));
    assert!(brightest > 0.9, "white letters: {brightest}");
    // Pango treats these as markup. Unescaped, nothing would be drawn.
    assert_ne!(shown("A < B & C"), shown("A B C"));

    // U+10FFFD is in no common font.
    let spec =
        PostProcessSpec { captions: vec![Caption::always("a \u{10fffd}")], ..PostProcessSpec::default() };
    match spec.open(format("320x192", 16, 1)) {
        Err(Error::NoFont { character, .. }) => assert_eq!(character, '\u{10fffd}'),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_logo_keeps_its_transparency_and_an_unusable_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let source = "color=red@0.5:s=20x10,format=rgba";
    let logo = generated(folder.path(), "logo.png", source, &["-frames:v", "1"]);
    let spec =
        PostProcessSpec { logo: Some((logo.clone(), Corner::BottomRight)), ..PostProcessSpec::default() };
    let frames = processed(&spec, format("96x60", 16, 1), 0.0);
    let colour = |y: usize, x: usize| [0, 1, 2].map(|c| frames[[0, c, y, x]]);
    let [red, green, blue] = colour(52, 84);
    assert!((red - 0.5).abs() < 0.03 && (green + 0.5).abs() < 0.03 && (blue + 0.5).abs() < 0.03);
    assert_eq!(colour(52, 60), [0.0; 3]);
    assert_eq!(colour(59, 95), [0.0; 3], "two pixels from the edges");

    let error = spec.open(format("16x16", 16, 1)).unwrap_err().to_string();
    assert!(error.contains("20x10, larger than the clip"), "{error}");
    let note = folder.path().join("note.png");
    std::fs::write(&note, "no picture").unwrap();
    for path in [note, folder.path().join("absent.png")] {
        let spec = PostProcessSpec { logo: Some((path, Corner::TopLeft)), ..PostProcessSpec::default() };
        let error = spec.open(format("96x60", 16, 1)).unwrap_err();
        assert!(matches!(error, Error::PostProcess { field: Field::Logo, .. }), "{error}");
    }
}

#[test]
fn a_video_replaces_the_key_colour() {
    let folder = tempfile::tempdir().unwrap();
    let source = "color=blue:s=64x32:r=16:d=0.25,format=yuvj420p";
    let video = generated(folder.path(), "video.avi", source, &["-c:v", "mjpeg", "-q:v", "2"]);
    let spec = PostProcessSpec { key: Some((KeyColour::Green, video)), ..PostProcessSpec::default() };
    let mut post_process = spec.open(format("96x64", 16, 9)).unwrap();
    let green = [-0.76, 0.49, -0.69];
    let mut frame = Array3::from_shape_fn((3, 64, 96), |(c, _, _)| green[c]);
    frame.slice_mut(s![.., 20..40, 30..60]).fill(0.6);
    for _ in 0..9 {
        let shown = post_process.push(frame.clone()).unwrap().remove(0);
        assert!(shown[[2, 5, 5]] > 0.9 && shown[[1, 5, 5]] < -0.9, "the last frame of the video is repeated");
        assert!((shown[[1, 30, 45]] - 0.6).abs() < 1e-5);
    }
}

#[test]
fn audio_is_as_long_as_the_clip_and_the_metadata_names_another_rate() {
    let folder = tempfile::tempdir().unwrap();
    let source = "sine=frequency=440:duration=1";
    let audio = generated(folder.path(), "tone.wav", source, &[]);
    let spec = PostProcessSpec {
        audio: Some(AudioSource::File(audio)),
        rate: Some((FrameRate::try_new(24).unwrap(), Interpolation::Blend)),
        ..PostProcessSpec::default()
    };
    let mut post_process = spec.open(format("96x64", 16, 40)).unwrap();
    assert_eq!(post_process.format().frames, Some(60));
    let names = ["a.mp4", "a.webm", "a.mkv", "a.gif"];
    let targets = claim(folder.path(), &names);
    check_sound(&targets).unwrap();
    assert!(matches!(check_sound(&targets[3..]), Err(Error::NoSound)));
    let plain = options(post_process.format());
    let tags = Tags { note: post_process.note().map(str::to_owned), ..plain.tags.clone() };
    let options = OutputOptions { sound: post_process.sound().cloned(), tags, ..plain };
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    for number in 0..40 {
        let frame = Array3::from_elem((3, 64, 96), number as f32 / 40.0);
        outputs.write_all(post_process.push(frame).unwrap()).unwrap();
    }
    outputs.write_all(post_process.finish()).unwrap();
    finish(outputs);
    for name in &names[..3] {
        let path = folder.path().join(name);
        let found = probe(&path);
        let streams = found["streams"].as_array().unwrap();
        assert_eq!(streams[0]["nb_read_frames"], "60", "{name}");
        assert_eq!(streams[1]["codec_type"], "audio", "{name}");
        assert_eq!(streams[1]["sample_rate"], "48000", "{name}");
        let length = seconds(&found["format"]["duration"]);
        assert!((length - 2.5).abs() < 0.1, "{name}: {length} s");
        let tags = found["format"]["tags"].to_string().replace('_', " ");
        assert!(tags.contains("24 fps made of 16 by blending"), "{name}: {tags}");
        let mut volumedetect = Command::new("ffmpeg");
        volumedetect.args(["-v", "info", "-i"]).arg(&path);
        let levels = run(volumedetect.args(["-af", "volumedetect", "-vn", "-f", "null", "-"]));
        let levels = String::from_utf8_lossy(&levels.stderr).into_owned();
        let loudest = levels.split("max_volume: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
        assert!(loudest.parse::<f64>().unwrap() > -30.0, "{name}: {loudest} dB");
    }
}
