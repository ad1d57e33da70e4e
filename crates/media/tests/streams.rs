//! Streams as ffmpeg and ffprobe read them over the loopback while they are made, and readers that stop or leave.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use media::{ClipFormat, Error, Output, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder};
use media::{SharedFrame, Tags};
use ndarray::Array3;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn options(size: &str, frames: Option<usize>) -> OutputOptions {
    let rate = FrameRate::try_new(16).unwrap();
    let format = ClipFormat { size: size.parse().unwrap(), rate, frames };
    let tags = Tags::new("a clip".to_owned(), "mini", Seed(7));
    OutputOptions::new(format, tags, &Cancel::new())
}

/// A picture with a bar that moves.
fn frame(options: &OutputOptions, number: usize) -> SharedFrame {
    let size = options.format.size;
    let colour = |(c, y, x)| if (x + number) % 32 < 8 { 0.7 } else { (y + 40 * c) as f32 / 200.0 - 0.5 };
    SharedFrame::new(Array3::from_shape_fn((3, size.height, size.width), colour)).unwrap()
}

fn claim(specs: &[String]) -> Vec<OutputTarget> {
    let specs: Vec<OutputSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    OutputTarget::claim_all(&specs).unwrap()
}

fn in_folder(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

fn probe(arguments: &[&str]) -> Value {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"])
        .args(arguments)
        .output()
        .expect("ffprobe (Debian package ffmpeg)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Pushes frames until a reader has what it wants.
fn feed_until_done(outputs: &mut Outputs, options: &OutputOptions, reader: &mut Child) {
    for number in 0..1000 {
        if reader.try_wait().unwrap().is_some() {
            return;
        }
        outputs.push(&frame(options, number)).unwrap();
    }
    reader.kill().unwrap();
    panic!("the reader did not get what it wanted out of 1000 frames");
}

#[test]
fn an_hls_folder_plays_whole_and_says_where_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let options = options("96x64", Some(40));
    let targets = claim(&[format!("hls:{}", in_folder(folder.path(), "live"))]);
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    for number in 0..40 {
        outputs.push(&frame(&options, number)).unwrap();
    }
    let outcome = outputs.finish();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    let playlist = in_folder(folder.path(), "live/index.m3u8");
    assert!(std::fs::read_to_string(&playlist).unwrap().ends_with("#EXT-X-ENDLIST\n"));
    let found = probe(&[&playlist]);
    let stream = &found["streams"][0];
    let fields =
        ["codec_name", "pix_fmt", "color_space", "nb_read_frames"].map(|key| stream[key].as_str().unwrap());
    assert_eq!(fields, ["h264", "yuv420p", "bt709", "40"], "{stream}");
    let seconds: f64 = found["format"]["duration"].as_str().unwrap().parse().unwrap();
    assert!((seconds - 2.5).abs() < 0.01, "{seconds}");
    let head = std::fs::read(folder.path().join("live/init.mp4")).unwrap();
    assert!(head.windows(12).any(|bytes| bytes == b"AI-generated"), "the mark lies in the head");
}

#[test]
fn rtsp_is_read_over_tcp_and_udp_while_it_runs() {
    let options = options("96x64", None);
    let targets = claim(&["rtsp://127.0.0.1:0/clip".into()]);
    let address = targets[0].address().unwrap();
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    for transport in ["tcp", "udp"] {
        let mut reader = Command::new("ffprobe")
            .args(["-v", "error", "-rtsp_transport", transport, "-read_intervals", "%+#24"])
            .args(["-show_entries", "packet=pts_time:stream=codec_name,width,height", "-of", "json"])
            .arg(format!("rtsp://{address}/clip"))
            .stdout(Stdio::piped())
            .spawn()
            .expect("ffprobe (Debian package ffmpeg)");
        feed_until_done(&mut outputs, &options, &mut reader);
        let mut said = String::new();
        reader.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        let found: Value = serde_json::from_str(&said).unwrap();
        assert_eq!(found["streams"][0]["codec_name"], "h264", "{transport}: {said}");
        assert_eq!(found["streams"][0]["width"], 96, "{transport}: {said}");
        let times: Vec<f64> = found["packets"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|packet| packet["pts_time"].as_str().map(|time| time.parse().unwrap()))
            .collect();
        assert!(times.len() >= 16, "{transport}: {times:?}");
        // Frames come at the rate of the clip, by their own times; a datagram that is lost is lost.
        for pair in times.windows(2) {
            let frames = (pair[1] - pair[0]) * 16.0;
            let lost = transport == "udp" && frames >= 1.0;
            assert!(
                (frames - frames.round()).abs() < 0.02 && (lost || frames.round() == 1.0),
                "{transport}: {times:?}"
            );
        }
    }
    let kept = outputs.interrupt();
    assert!(matches!(kept[0].1, Remainder::Sent { .. }), "{kept:?}");
}

#[test]
fn a_taken_port_is_refused_before_anything_runs() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("rtsp://{}/clip", taken.local_addr().unwrap()).parse().unwrap();
    let error = OutputTarget::claim(&spec).unwrap_err();
    assert!(matches!(error, Error::File(bundle::part_file::Error::Unwritable { .. })), "{error}");
}

/// A server that ends in mid-stream ends its own output; the file beside it is whole. Where GStreamer's plugin for RTMP
/// is not installed, its package is named.
#[test]
fn an_rtmp_server_gets_the_clip_and_may_go_away() {
    let spec: OutputSpec = "rtmp://127.0.0.1:1/live/clip".parse().unwrap();
    if let Err(error) = OutputTarget::claim(&spec) {
        assert!(error.to_string().contains("gstreamer1.0-plugins-bad"), "{error}");
        return;
    }
    for leaves in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("rtmp://127.0.0.1:{port}/live/clip");
        let received = folder.path().join("received.flv");
        let mut server = Command::new("ffmpeg")
            .args(["-v", "error", "-listen", "1", "-i", &url, "-c", "copy"])
            .arg(&received)
            .stdin(Stdio::null())
            .spawn()
            .expect("ffmpeg");
        wait_until_it_listens(port);
        let options = options("96x64", Some(60));
        let file = in_folder(folder.path(), "clip.mp4");
        let mut outputs = Outputs::start(&claim(&[url, file.clone()]), &options).unwrap();
        for number in 0..60 {
            if leaves && number == 30 {
                server.kill().unwrap();
                // From here on it is gone, and not only told to go.
                server.wait().unwrap();
            }
            outputs.push(&frame(&options, number)).unwrap();
        }
        let outcome = outputs.finish();
        let status = server.wait().unwrap();
        assert_eq!(probe(&[&file])["streams"][0]["nb_read_frames"], "60");
        if leaves {
            assert_eq!(outcome.written.len(), 1);
            let failed = &outcome.failed[0];
            assert!(failed.error.to_string().contains("rtmp://"), "{}", failed.error);
            assert!(matches!(failed.remainder, Remainder::Sent { frames, .. } if frames < 60), "{}", failed.remainder);
        } else {
            assert!(outcome.failed.is_empty() && status.success(), "{:?}", outcome.failed);
            let found = probe(&[received.to_str().unwrap()]);
            assert_eq!(found["streams"][0]["nb_read_frames"], "60");
        }
    }
}

/// Whether a port of this machine is listened at, without connecting: the server takes one connection only.
fn wait_until_it_listens(port: u16) {
    let wanted = format!(":{port:04X} 00000000:0000 0A");
    while !std::fs::read_to_string("/proc/net/tcp").unwrap().contains(&wanted) {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn named_pipe(folder: &Path) -> String {
    let path = in_folder(folder, "pipe.y4m");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_reader_that_stops_reading_ends_its_own_output_and_holds_few_frames() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    let options = OutputOptions { output_timeout: Duration::from_secs(2), ..options("320x240", Some(60)) };
    // Open for both, so that opening does not wait for the other end; nothing is ever read.
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut output = Output::start(claim(std::slice::from_ref(&pipe)).remove(0), &options).unwrap();
    let error = (0..60).find_map(|number| output.push(&frame(&options, number)).err()).unwrap();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert!(output.frames() <= 15, "{} frames are held", output.frames());
    drop(output);

    let file = in_folder(folder.path(), "clip.mp4");
    let mut outputs = Outputs::start(&claim(&[pipe, file.clone()]), &options).unwrap();
    (0..60).for_each(|number| outputs.push(&frame(&options, number)).unwrap());
    let outcome = outputs.finish();
    assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1));
    assert_eq!(probe(&[&file])["streams"][0]["nb_read_frames"], "60");
}

#[test]
fn a_reader_that_leaves_or_never_comes_ends_its_own_output() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    for comes in [true, false] {
        // One that comes may be late on a busy machine; one that never does is not waited for any longer than needed.
        let output_timeout = Duration::from_secs(if comes { 60 } else { 2 });
        let options = OutputOptions { output_timeout, ..options("320x240", Some(60)) };
        let name = pipe.clone();
        let reader = std::thread::spawn(move || {
            if comes {
                std::fs::File::open(name).unwrap().read_exact(&mut [0; 200_000]).unwrap();
            }
        });
        let file = in_folder(folder.path(), &format!("{comes}.mp4"));
        let mut outputs = Outputs::start(&claim(&[pipe.clone(), file.clone()]), &options).unwrap();
        (0..60).for_each(|number| outputs.push(&frame(&options, number)).unwrap());
        let outcome = outputs.finish();
        reader.join().unwrap();
        assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1), "{:?}", outcome.failed);
        let error = outcome.failed[0].error.to_string();
        assert!(error.contains(if comes { "Broken pipe" } else { "no progress" }), "{error}");
        assert_eq!(probe(&[&file])["streams"][0]["nb_read_frames"], "60");
    }
}
