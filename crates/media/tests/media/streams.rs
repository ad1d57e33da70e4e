//! Streams that ffmpeg and ffprobe read over the loopback while they are written, and readers that stall or disconnect.

use crate::clip::{self, finish, moving_bar};
use crate::tools::{probe, seconds};
use media::{Error, Output, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder, SharedFrame};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

fn options(size: &str, frames: Option<usize>) -> OutputOptions {
    clip::options(clip::format(size, 16, frames))
}

fn frame(options: &OutputOptions, number: usize) -> SharedFrame {
    moving_bar(options.format, number)
}

fn claim(specs: &[String]) -> Vec<OutputTarget> {
    let specs: Vec<OutputSpec> = specs.iter().map(|spec| spec.parse().unwrap()).collect();
    OutputTarget::claim_all(&specs).unwrap()
}

fn in_folder(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// Pushes frames until a reader exits.
fn feed_until_done(outputs: &mut Outputs, options: &OutputOptions, reader: &mut Child) {
    for number in 0..1000 {
        if reader.try_wait().unwrap().is_some() {
            return;
        }
        outputs.push(&frame(options, number)).unwrap();
    }
    reader.kill().unwrap();
    panic!("the reader did not exit within 1000 frames");
}

#[test]
fn a_finished_hls_folder_plays_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let options = options("96x64", Some(40));
    let targets = claim(&[format!("hls:{}", in_folder(folder.path(), "live"))]);
    let mut outputs = Outputs::start(&targets, &options).unwrap();
    for number in 0..40 {
        outputs.push(&frame(&options, number)).unwrap();
    }
    finish(outputs);
    let playlist = in_folder(folder.path(), "live/index.m3u8");
    assert!(std::fs::read_to_string(&playlist).unwrap().ends_with("#EXT-X-ENDLIST\n"));
    let found = probe(&playlist);
    let stream = &found["streams"][0];
    let fields =
        ["codec_name", "pix_fmt", "color_space", "nb_read_frames"].map(|key| stream[key].as_str().unwrap());
    assert_eq!(fields, ["h264", "yuv420p", "bt709", "40"], "{stream}");
    let length = seconds(&found["format"]["duration"]);
    assert!((length - 2.5).abs() < 0.01, "{length} s");
    let head = std::fs::read(folder.path().join("live/init.mp4")).unwrap();
    assert!(
        head.windows(12).any(|bytes| bytes == b"AI-generated"),
        "the mark is in the initialization segment"
    );
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
        let mut report = String::new();
        reader.stdout.take().unwrap().read_to_string(&mut report).unwrap();
        let found: Value = serde_json::from_str(&report).unwrap();
        assert_eq!(found["streams"][0]["codec_name"], "h264", "{transport}: {report}");
        assert_eq!(found["streams"][0]["width"], 96, "{transport}: {report}");
        let times: Vec<f64> = found["packets"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|packet| packet["pts_time"].as_str().map(|time| time.parse().unwrap()))
            .collect();
        assert!(times.len() >= 16, "{transport}: {times:?}");
        // Timestamps follow the rate of the clip. Datagrams may be lost.
        for pair in times.windows(2) {
            let frames = (pair[1] - pair[0]) * 16.0;
            let lost = transport == "udp" && frames >= 1.0;
            assert!(
                (frames - frames.round()).abs() < 0.02 && (lost || frames.round() == 1.0),
                "{transport}: {times:?}"
            );
        }
    }
    let remainders = outputs.interrupt();
    assert!(matches!(remainders[0].1, Remainder::Sent { .. }), "{remainders:?}");
}

#[test]
fn a_port_in_use_is_refused_before_the_run() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = format!("rtsp://{}/clip", taken.local_addr().unwrap()).parse().unwrap();
    let error = OutputTarget::claim(&spec).unwrap_err();
    assert!(matches!(error, Error::File(bundle::part_file::Error::Unwritable { .. })), "{error}");
}

/// A server that exits in mid-stream ends only its own output; the file beside it is complete. Where the GStreamer
/// plugin for RTMP is not installed, the error names its package.
#[test]
fn an_rtmp_server_receives_the_clip_and_may_exit() {
    let spec: OutputSpec = "rtmp://127.0.0.1:1/live/clip".parse().unwrap();
    if let Err(error) = OutputTarget::claim(&spec) {
        assert!(error.to_string().contains("gstreamer1.0-plugins-bad"), "{error}");
        return;
    }
    for exits in [false, true] {
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
            if exits && number == 30 {
                server.kill().unwrap();
                // The process has ended, not only received the signal.
                server.wait().unwrap();
            }
            outputs.push(&frame(&options, number)).unwrap();
        }
        let outcome = outputs.finish();
        let status = server.wait().unwrap();
        assert_eq!(probe(&file)["streams"][0]["nb_read_frames"], "60");
        if exits {
            assert_eq!(outcome.written.len(), 1);
            let failed = &outcome.failed[0];
            assert!(failed.error.to_string().contains("rtmp://"), "{}", failed.error);
            assert!(
                matches!(failed.remainder, Remainder::Sent { frames, .. } if frames < 60),
                "{}",
                failed.remainder
            );
        } else {
            assert!(outcome.failed.is_empty() && status.success(), "{:?}", outcome.failed);
            let found = probe(&received);
            assert_eq!(found["streams"][0]["nb_read_frames"], "60");
        }
    }
}

/// Waits for a listener without connecting, because the server accepts one connection only.
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
fn a_stalled_reader_ends_only_its_own_output_and_few_frames_are_queued() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    let options = OutputOptions { output_timeout: Duration::from_secs(2), ..options("320x240", Some(60)) };
    // Opened for reading and writing, so that opening does not block. Nothing is read.
    let _reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
    let mut output = Output::start(claim(std::slice::from_ref(&pipe)).remove(0), &options).unwrap();
    let error = (0..60).find_map(|number| output.push(&frame(&options, number)).err()).unwrap();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");
    assert!(output.frames() <= 15, "{} frames are queued", output.frames());
    drop(output);

    let file = in_folder(folder.path(), "clip.mp4");
    let mut outputs = Outputs::start(&claim(&[pipe, file.clone()]), &options).unwrap();
    (0..60).for_each(|number| outputs.push(&frame(&options, number)).unwrap());
    let outcome = outputs.finish();
    assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1));
    assert_eq!(probe(&file)["streams"][0]["nb_read_frames"], "60");
}

#[test]
fn a_reader_that_disconnects_or_never_connects_ends_only_its_own_output() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = named_pipe(folder.path());
    for connects in [true, false] {
        // A reader may connect late on a busy machine; for one that never connects the wait is short.
        let output_timeout = Duration::from_secs(if connects { 60 } else { 2 });
        let options = OutputOptions { output_timeout, ..options("320x240", Some(60)) };
        let name = pipe.clone();
        let reader = std::thread::spawn(move || {
            if connects {
                std::fs::File::open(name).unwrap().read_exact(&mut [0; 200_000]).unwrap();
            }
        });
        let file = in_folder(folder.path(), &format!("{connects}.mp4"));
        let mut outputs = Outputs::start(&claim(&[pipe.clone(), file.clone()]), &options).unwrap();
        (0..60).for_each(|number| outputs.push(&frame(&options, number)).unwrap());
        let outcome = outputs.finish();
        reader.join().unwrap();
        assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1), "{:?}", outcome.failed);
        let error = outcome.failed[0].error.to_string();
        assert!(error.contains(if connects { "Broken pipe" } else { "no progress" }), "{error}");
        assert_eq!(probe(&file)["streams"][0]["nb_read_frames"], "60");
    }
}
