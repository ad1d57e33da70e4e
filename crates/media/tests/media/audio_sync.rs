//! Audio in sync with its frames, as ffmpeg decodes it: to the sample in every container, from every input format.

use crate::clip::{claim, finish, format, names, options};
use crate::tools::{probe, run_silent, seconds};
use media::post_process::{AudioSource, PostProcess, PostProcessSpec};
use media::{OutputOptions, Outputs, Remainder};
use ndarray::{Array3, Array4};
use std::path::{Path, PathBuf};
use std::process::Command;

const RATE: usize = 48_000;
const NAMES: [&str; 3] = ["a.mp4", "a.mkv", "a.webm"];
/// Seconds at which a click starts.
const CLICKS: [f64; 3] = [0.5, 1.0, 1.5];
const FRAMES: usize = 40;

/// Writes a WAV of the given length with clicks of 10 ms: a 3 kHz tone that starts at full level.
fn clicks(path: &Path, rate: usize, channels: u16, seconds: f64) {
    let moments = (seconds * rate as f64) as usize;
    let sample = |moment: usize| -> i16 {
        let inside = CLICKS.iter().map(|click| moment.wrapping_sub((click * rate as f64) as usize));
        let since = inside.filter(|since| *since < rate / 100).min();
        since.map_or(0, |since| {
            ((since as f64 * 3000.0 / rate as f64 * std::f64::consts::TAU).cos() * 20_000.0) as i16
        })
    };
    let samples = (0..moments).flat_map(|moment| std::iter::repeat_n(sample(moment), usize::from(channels)));
    let data: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
    let u32 = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    let bytes = [
        b"RIFF".as_slice(),
        &u32(36 + data.len()),
        b"WAVEfmt ",
        &u32(16),
        &[1, 0],
        &channels.to_le_bytes(),
        &u32(rate),
        &u32(rate * usize::from(channels) * 2),
        &(channels * 2).to_le_bytes(),
        &[16, 0],
        b"data",
        &u32(data.len()),
        &data,
    ];
    std::fs::write(path, bytes.concat()).unwrap();
}

fn ffmpeg(from: &Path, options: &[&str], to: &str) -> Vec<u8> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-y", "-i"]).arg(from).args(options).arg(to);
    run_silent(&mut command)
}

/// Seconds at which the audio becomes loud after silence, and its length.
fn onsets(path: &Path) -> (Vec<f64>, f64) {
    let bytes = ffmpeg(path, &["-vn", "-ac", "1", "-ar", "48000", "-f", "s16le"], "-");
    let samples: Vec<i16> = bytes.as_chunks::<2>().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
    let mut found: Vec<usize> = vec![];
    for (moment, sample) in samples.iter().enumerate() {
        if sample.unsigned_abs() > 7000 && found.last().is_none_or(|last| moment > last + RATE / 5) {
            found.push(moment);
        }
    }
    (found.iter().map(|moment| *moment as f64 / RATE as f64).collect(), samples.len() as f64 / RATE as f64)
}

fn post_process(audio: &Path) -> PostProcess {
    let spec =
        PostProcessSpec { audio: Some(AudioSource::File(audio.to_owned())), ..PostProcessSpec::default() };
    spec.open(format("32x32", 16, FRAMES)).unwrap()
}

fn start(folder: &Path, audio: &Path, names: &[&str]) -> Outputs {
    let post_process = post_process(audio);
    let options = OutputOptions { sound: post_process.sound().cloned(), ..options(post_process.format()) };
    Outputs::start(&claim(folder, names), &options).unwrap()
}

fn write(folder: &Path, audio: &Path, names: &[&str]) {
    let mut outputs = start(folder, audio, names);
    let frame = |n: usize| Array3::from_elem((3, 32, 32), n as f32 / FRAMES as f32);
    outputs.write_all((0..FRAMES).map(frame)).unwrap();
    finish(outputs);
}

/// The types of the top-level boxes of an mp4, in order.
fn boxes(path: &Path) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap();
    let mut at = 0;
    let mut found = vec![];
    while at < bytes.len() {
        let size = u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        found.push(String::from_utf8(bytes[at + 4..at + 8].to_vec()).unwrap());
        at += size;
    }
    assert_eq!(at, bytes.len());
    found
}

fn assert_in_sync(path: &Path, clicks: &[f64], what: &str) {
    let (found, lasts) = onsets(path);
    assert_eq!(found.len(), clicks.len(), "{what}: {found:?}");
    for (found, click) in found.iter().zip(clicks) {
        assert!((found - click).abs() < 0.003, "{what}: the click of {click} s is at {found} s");
    }
    let length = FRAMES as f64 / 16.0;
    // Where the container counts in packets, readers play the last packet in full.
    assert!(lasts > length - 0.001 && lasts < length + 0.025, "{what}: {lasts} s of sound");
    let found = probe(path);
    assert!((seconds(&found["format"]["duration"]) - length).abs() < 0.0015, "{what}: {}", found["format"]);
    if path.extension().unwrap() == "mp4" {
        for stream in found["streams"].as_array().unwrap() {
            assert!((seconds(&stream["duration"]) - length).abs() < 0.001, "{what}: {stream}");
            assert!(seconds(&stream["start_time"]).abs() < 1e-6, "{what}: {stream}");
        }
    }
}

#[test]
fn every_container_plays_audio_to_the_sample() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wav = folder.join("clicks.wav");
    for (rate, channels) in [(48_000, 2), (48_000, 1), (44_100, 2), (44_100, 1)] {
        clicks(&wav, rate, channels, 2.5);
        write(folder, &wav, &NAMES);
        for name in NAMES {
            assert_in_sync(&folder.join(name), &CLICKS, &format!("{name} of {channels} at {rate}"));
        }
    }
    // Longer and shorter than the clip.
    clicks(&wav, 48_000, 2, 7.0);
    write(folder, &wav, &NAMES);
    for name in NAMES {
        assert_in_sync(&folder.join(name), &CLICKS, name);
    }
    clicks(&wav, 48_000, 2, 1.25);
    write(folder, &wav, &NAMES);
    for name in NAMES {
        assert_in_sync(&folder.join(name), &[0.5, 1.0, 1.75, 2.25], name);
    }
}

#[test]
fn every_input_format_is_in_sync() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wav = folder.join("clicks.wav");
    clicks(&wav, 48_000, 2, 2.5);
    let cases: [(&str, &[&str]); 7] = [
        ("a.mp3", &["-c:a", "libmp3lame"]),
        ("b.mp3", &["-c:a", "libmp3lame", "-ar", "44100", "-ac", "1", "-metadata", "title=a title"]),
        ("a.flac", &[]),
        ("a.ogg", &["-c:a", "libvorbis"]),
        ("a.opus", &["-c:a", "libopus"]),
        ("a.mka", &["-c:a", "libvorbis"]),
        ("a.m4a", &["-c:a", "aac"]),
    ];
    for (name, options) in cases {
        let source: PathBuf = folder.join(name);
        ffmpeg(&wav, options, source.to_str().unwrap());
        write(folder, &source, &NAMES[..2]);
        for container in &NAMES[..2] {
            assert_in_sync(&folder.join(container), &CLICKS, &format!("{container} of {name}"));
        }
    }
}

#[test]
fn the_audio_of_an_interrupted_clip_ends_with_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wav = folder.join("clicks.wav");
    clicks(&wav, 48_000, 2, 2.5);
    let mut outputs = start(folder, &wav, &["a.mp4"]);
    outputs.write(Array4::zeros((20, 3, 32, 32)).view()).unwrap();
    let remainders = outputs.interrupt();
    let [(_, Remainder::Whole { part, frames: 20 })] = remainders.as_slice() else {
        panic!("{remainders:?}")
    };
    let (found, _) = onsets(part);
    assert!((found[0] - 0.5).abs() < 0.003 && (found[1] - 1.0).abs() < 0.003, "{found:?}");
    assert!((seconds(&probe(part)["format"]["duration"]) - 1.25).abs() < 0.0015);
}

#[test]
fn a_finished_mp4_has_its_index_before_its_frames() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wav = folder.join("clicks.wav");
    clicks(&wav, 48_000, 2, 2.5);
    write(folder, &wav, &["a.mp4"]);
    assert_eq!(boxes(&folder.join("a.mp4")), ["ftyp", "moov", "uuid", "mdat"]);
    assert_eq!(names(folder), ["a.mp4", "clicks.wav"]);
    // A reader that cannot seek, as a browser on its first request.
    let bytes = std::fs::read(folder.join("a.mp4")).unwrap();
    let mut reader = Command::new("ffmpeg")
        .args(["-v", "error", "-i", "pipe:0", "-f", "framecrc", "-"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = reader.stdin.take().unwrap();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut input, &bytes));
    let output = reader.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    let listed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(listed.lines().filter(|line| line.starts_with("0,")).count(), FRAMES, "{listed}");

    let mut outputs = start(folder, &wav, &["b.mp4"]);
    outputs.write(Array4::zeros((5, 3, 32, 32)).view()).unwrap();
    let [(_, Remainder::Whole { part, .. })] = &*outputs.interrupt() else { panic!("it was interrupted") };
    let order = boxes(part);
    let position = |kind: &str| order.iter().position(|found| found == kind).unwrap();
    assert!(position("mdat") < position("moov"), "an incomplete part is not copied: {order:?}");
}
