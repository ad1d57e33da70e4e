//! Threads of the process after outputs whose readers, viewers and servers do not take the frames.
//!
//! The tests run in processes of their own, because threads of other tests would be counted.

use super::*;
use bundle::Cancel;
use bundle::units::Seed;
use ndarray::{Array3, Array4};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The variable that marks the child process of [`in_own_process`].
const CHILD: &str = "MEDIA_TEST_CHILD";
/// The timeout of the outputs.
const LIMIT: Duration = Duration::from_millis(150);
/// Threads that this crate starts.
const OWN: [&str; 7] = ["media-stop", "rtsp", "rtsp-viewer", "rtsp-writer", "whip", "live", "animation"];

/// Runs `body` in a new process that runs only the test `name`. Panics if it fails there.
fn in_own_process(name: &str, body: fn()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let name = format!("stalled_threads::{name}");
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{stdout}{stderr}");
    assert!(stdout.contains("1 passed"), "no test is named {name}: {stdout}");
}

/// The names of the threads of this process.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// Waits until the condition holds for the threads of this process. A thread that has been joined is listed a moment
/// longer.
fn wait_for(what: &str, condition: impl Fn(&[String]) -> bool) {
    let started = Instant::now();
    loop {
        let found = threads();
        if condition(&found) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{what}: {found:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn own_threads_end() {
    wait_for("threads of the outputs remain", |found| !found.iter().any(|name| OWN.contains(&name.as_str())));
}

fn options(frames: Option<usize>, limit: Duration) -> OutputOptions {
    let format = ClipFormat { size: "64x32".parse().unwrap(), rate: "16".parse().unwrap(), frames };
    let tags = Tags::new(None, "mini", Seed(1));
    OutputOptions { output_timeout: limit, ..OutputOptions::new(format, tags, &Cancel::new()) }
}

fn start(spec: &str, options: &OutputOptions) -> Output {
    Output::start(OutputTarget::claim(&spec.parse().unwrap()).unwrap(), options).unwrap()
}

fn picture(number: usize) -> SharedFrame {
    SharedFrame::new(Array3::from_elem((3, 32, 64), (number % 8) as f32 / 4.0 - 1.0)).unwrap()
}

/// Pushes frames until the output stalls, and closes it.
fn push_until_stalled(mut output: Output) {
    let stalled = (0..10_000).find_map(|number| output.push(&picture(number)).err());
    assert!(matches!(stalled, Some(Error::Stalled { .. })), "{stalled:?}");
    drop(output);
}

fn pipe(folder: &Path) -> String {
    let path = folder.join("pipe.y4m");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    path.to_str().unwrap().to_owned()
}

/// Stalls outputs one after another. Idle threads of GStreamer's pool are reused, so their number does not grow.
fn stall_repeatedly(stall: impl Fn()) {
    stall();
    own_threads_end();
    let first = threads().len();
    for _ in 0..4 {
        stall();
    }
    own_threads_end();
    wait_for("threads accumulate", |found| found.len() <= first);
}

#[test]
fn a_pipe_without_a_reader_leaves_no_thread() {
    in_own_process("a_pipe_without_a_reader_leaves_no_thread", || {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(folder.path());
        stall_repeatedly(|| push_until_stalled(start(&pipe, &options(None, LIMIT))));
    });
}

#[test]
fn a_full_pipe_leaves_no_thread() {
    in_own_process("a_full_pipe_leaves_no_thread", || {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(folder.path());
        stall_repeatedly(|| {
            let output = start(&pipe, &options(None, LIMIT));
            // Opening it for reading and writing does not wait for the writer.
            let reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
            push_until_stalled(output);
            drop(reader);
        });
    });
}

#[test]
fn an_rtmp_server_that_does_not_answer_leaves_no_thread() {
    in_own_process("an_rtmp_server_that_does_not_answer_leaves_no_thread", || {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = format!("rtmp://{}/live/clip", server.local_addr().unwrap());
        if let Err(error) = OutputTarget::claim(&spec.parse().unwrap()) {
            eprintln!("skipped: {error}");
            return;
        }
        stall_repeatedly(|| push_until_stalled(start(&spec, &options(None, LIMIT))));
    });
}

#[cfg(feature = "whip")]
#[test]
fn a_whip_server_that_does_not_answer_leaves_no_thread() {
    in_own_process("a_whip_server_that_does_not_answer_leaves_no_thread", || {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let spec = format!("whip:http://{}/whip", server.local_addr().unwrap());
        let output = start(&spec, &options(None, LIMIT));
        let accepted = server.accept().unwrap();
        let began = Instant::now();
        std::thread::scope(|scope| {
            // The request is open for longer than the timeout of the output.
            scope.spawn(move || {
                std::thread::sleep(4 * LIMIT);
                drop(accepted);
            });
            push_until_stalled(output);
        });
        own_threads_end();
        assert!(began.elapsed() >= LIMIT, "the output did not stall");
    });
}

/// Requests a stream and does not read it.
fn viewer(address: std::net::SocketAddr) -> TcpStream {
    let mut viewer = TcpStream::connect(address).unwrap();
    let request = |method: &str, number: usize, more: &str| {
        format!("{method} rtsp://{address}/clip RTSP/1.0\r\nCSeq: {number}\r\n{more}\r\n")
    };
    let transport = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n";
    viewer.write_all(request("OPTIONS", 1, "").as_bytes()).unwrap();
    let mut answer = [0; 12];
    viewer.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"RTSP/1.0 200");
    viewer.write_all(request("SETUP", 2, transport).as_bytes()).unwrap();
    viewer.write_all(request("PLAY", 3, "Session: 1\r\n").as_bytes()).unwrap();
    viewer
}

#[test]
fn rtsp_viewers_that_do_not_read_leave_no_thread() {
    in_own_process("rtsp_viewers_that_do_not_read_leave_no_thread", || {
        for ends in ["finished", "interrupted", "dropped"] {
            let target = OutputTarget::claim(&"rtsp://127.0.0.1:0/clip".parse().unwrap()).unwrap();
            let address = target.address().unwrap();
            let mut output = Output::start(target, &options(Some(8), Duration::from_secs(20))).unwrap();
            let viewers = [viewer(address), viewer(address), TcpStream::connect(address).unwrap()];
            wait_for("three viewers", |found| {
                found.iter().filter(|name| *name == "rtsp-viewer").count() == 3
            });
            for number in 0..8 {
                output.push(&picture(number)).unwrap();
            }
            match ends {
                "finished" => assert_eq!(output.finish().unwrap().frames, 8),
                "interrupted" => _ = output.interrupt(),
                _ => drop(output),
            }
            own_threads_end();
            drop(viewers);
        }
    });
}

#[test]
fn a_dropped_live_address_leaves_no_thread() {
    in_own_process("a_dropped_live_address_leaves_no_thread", || {
        let folder = tempfile::tempdir().unwrap();
        let pipe = pipe(folder.path());
        let long = options(None, Duration::from_secs(600));
        for spec in [pipe.as_str(), "rtsp://127.0.0.1:0/clip"] {
            let target = OutputTarget::claim(&spec.parse().unwrap()).unwrap();
            let noise = Array4::zeros((4, 1, 4, 8));
            let live = live::LivePublisher::start(target, &long, long.format, noise.view(), 4).unwrap();
            wait_for("the live address has a thread", |found| found.iter().any(|name| name == "live"));
            drop(live);
            assert!(!threads().iter().any(|name| name == "live"));
            own_threads_end();
        }
    });
}

#[test]
fn a_pipeline_whose_callback_does_not_return_is_left_after_the_limit() {
    in_own_process("a_pipeline_whose_callback_does_not_return_is_left_after_the_limit", || {
        use gstreamer as gst;
        use gstreamer::prelude::*;
        gst::init().unwrap();
        let pipeline = gst::parse::launch("videotestsrc num-buffers=100 ! fakesink name=sink").unwrap();
        let pipeline = pipeline.downcast::<gst::Pipeline>().unwrap();
        let (release, wait) = std::sync::mpsc::channel::<()>();
        let (entered, inside) = std::sync::mpsc::channel();
        let wait = std::sync::Mutex::new(wait);
        let pad = pipeline.by_name("sink").unwrap().static_pad("sink").unwrap();
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, _| {
            let _ = entered.send(());
            // Like a write to a file system that hangs.
            let _ = wait.lock().unwrap().recv();
            gst::PadProbeReturn::Ok
        });
        pipeline.set_state(gst::State::Playing).unwrap();
        inside.recv().unwrap();
        let closing = Cancel::new();
        assert!(!stopping::stop_within(&pipeline, &closing, LIMIT).unwrap());
        assert!(closing.is_cancelled(), "collectors are told");
        assert!(threads().iter().any(|name| name == "media-stop"), "the thread that is left is named");
        drop(release);
        own_threads_end();
        assert_eq!(pipeline.current_state(), gst::State::Null);
    });
}
