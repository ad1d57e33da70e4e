//! WHIP over the loopback: a server that takes the stream, one that refuses it, and one that leaves.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::Cancel;
use bundle::units::{FrameRate, Seed};
use media::{ClipFormat, Outcome, OutputOptions, OutputSpec, OutputTarget, Outputs, Remainder};
use media::{SharedFrame, Tags, Token};
use ndarray::Array3;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use str0m::change::SdpOffer;
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc};

const FRAMES: usize = 32;
const TOKEN: &str = "s3cret";
/// Far above what any of this takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits for a packet, of up to 20 ms, that must all be in vain before an ended session counts as read to its end.
const QUIET: usize = 100;

fn options() -> OutputOptions {
    let rate = FrameRate::try_new(16).unwrap();
    let format = ClipFormat { size: "96x64".parse().unwrap(), rate, frames: Some(FRAMES) };
    OutputOptions::new(format, Tags::new("a clip".to_owned(), "mini", Seed(7)), &Cancel::new())
}

/// A picture with a bar that moves.
fn frame(number: usize) -> SharedFrame {
    let colour = |(c, y, x)| if (x + number) % 32 < 8 { 0.7 } else { (y + 40 * c) as f32 / 200.0 - 0.5 };
    SharedFrame::new(Array3::from_shape_fn((3, 64, 96), colour)).unwrap()
}

/// Sends the clip there, and beside it to a file, which has to be whole whatever happens.
fn send(url: &str, token: Option<&str>) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let token = token.map(|token| Token::new(token).unwrap());
    let whip = url.parse::<OutputSpec>().unwrap().with_token(token.as_ref());
    let file: OutputSpec = folder.path().join("clip.mp4").to_str().unwrap().parse().unwrap();
    let targets = OutputTarget::claim_all(&[whip, file]).unwrap();
    let mut outputs = Outputs::start(&targets, &options()).unwrap();
    (0..FRAMES).for_each(|number| outputs.push(&frame(number)).unwrap());
    let outcome = outputs.finish();
    assert!(outcome.written.iter().any(|clip| clip.output.to_string().ends_with("clip.mp4")));
    outcome
}

/// Why the WHIP output failed.
fn failure(outcome: &Outcome) -> String {
    assert_eq!((outcome.written.len(), outcome.failed.len()), (1, 1), "{:?}", outcome.failed);
    assert!(
        matches!(outcome.failed[0].remainder, Remainder::Sent { .. } | Remainder::Nothing),
        "{:?}",
        outcome.failed
    );
    let error = outcome.failed[0].error.to_string();
    assert!(!error.contains(TOKEN), "{error}");
    error
}

/// A request as the server hears it.
struct Request {
    stream: TcpStream,
    /// Method and path, then the headers in lower case.
    head: Vec<String>,
    body: String,
}

impl Request {
    fn next(listener: &TcpListener) -> Self {
        let stream = listener.accept().unwrap().0;
        let mut input = BufReader::new(stream.try_clone().unwrap());
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            input.read_line(&mut line).unwrap();
            if line.trim().is_empty() {
                break;
            }
            let line = line.trim().to_owned();
            head.push(if head.is_empty() { line } else { line.to_ascii_lowercase() });
        }
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        let mut body = vec![0; length.unwrap_or(0)];
        input.read_exact(&mut body).unwrap();
        Self { stream, head, body: String::from_utf8(body).unwrap() }
    }

    fn answer(mut self, status: &str, headers: &str, body: &str) {
        let head = format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
            body.len()
        );
        self.stream.write_all((head + body).as_bytes()).unwrap();
    }

    fn has(&self, line: &str) -> bool {
        self.head.iter().any(|found| found == line)
    }
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("whip:http://{}/live/whip", listener.local_addr().unwrap());
    (listener, url)
}

/// What a server does with a session once it has begun.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Takes the frames until the session is ended.
    Receives,
    /// Ends the session after some frames.
    EndsIt,
    /// Answers no packet at all.
    IsSilent,
}

/// A server for one session: its frames in Annex B, each with its time.
fn serve(listener: TcpListener, then: Then) -> JoinHandle<Vec<(f64, Vec<u8>)>> {
    std::thread::spawn(move || {
        let request = Request::next(&listener);
        assert!(request.head[0].starts_with("POST /live/whip "), "{:?}", request.head);
        assert!(request.has("content-type: application/sdp") && request.has("authorization: bearer s3cret"));
        let mut rtc = Rtc::builder().build(Instant::now());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = socket.local_addr().unwrap();
        rtc.add_local_candidate(Candidate::host(own, "udp").unwrap());
        let offer = SdpOffer::from_sdp_string(&request.body).unwrap();
        let answer = rtc.sdp_api().accept_offer(offer).unwrap().to_sdp_string();
        let (ended, end) = channel();
        request.answer("201 Created", "Content-Type: application/sdp\r\nLocation: /session/7\r\n", &answer);
        std::thread::spawn(move || {
            let request = Request::next(&listener);
            assert!(request.head[0].starts_with("DELETE /session/7 "), "{:?}", request.head);
            assert!(request.has("authorization: bearer s3cret"));
            request.answer("200 OK", "", "");
            // The session may be over already.
            let _ = ended.send(());
        });
        match then {
            Then::IsSilent => {
                end.recv_timeout(PATIENCE).expect("the session is ended");
                vec![]
            }
            _ => receive(rtc, &socket, own, &end, then == Then::EndsIt),
        }
    })
}

fn receive(
    mut rtc: Rtc,
    socket: &UdpSocket,
    own: SocketAddr,
    end: &Receiver<()>,
    leaves: bool,
) -> Vec<(f64, Vec<u8>)> {
    let mut frames = Vec::new();
    let began = Instant::now();
    // Once the session is ended, packets that were sent before may still wait to be read.
    let (mut ended, mut quiet) = (false, 0);
    loop {
        assert!(began.elapsed() < PATIENCE, "{} frames", frames.len());
        let due = loop {
            match rtc.poll_output().unwrap() {
                Output::Timeout(due) => break due,
                Output::Transmit(packet) => _ = socket.send_to(&packet.contents, packet.destination),
                Output::Event(Event::MediaData(data)) => {
                    assert!(data.contiguous);
                    frames.push((data.time.as_seconds(), data.data.to_vec()));
                }
                Output::Event(_) => {}
            }
        };
        if leaves && frames.len() == 8 {
            rtc.close().unwrap();
            while let Output::Transmit(packet) = rtc.poll_output().unwrap() {
                socket.send_to(&packet.contents, packet.destination).unwrap();
            }
            end.recv_timeout(PATIENCE).expect("the session is ended");
            return frames;
        }
        ended |= end.try_recv().is_ok();
        if !rtc.is_alive() || (ended && (frames.len() >= FRAMES || quiet >= QUIET)) {
            return frames;
        }
        let wait = due
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_millis(1), Duration::from_millis(20));
        socket.set_read_timeout(Some(wait)).unwrap();
        let mut packet = [0; 2048];
        let input = match socket.recv_from(&mut packet) {
            Ok((length, source)) => {
                quiet = 0;
                let contents = packet[..length].try_into().unwrap();
                Input::Receive(
                    Instant::now(),
                    Receive { proto: Protocol::Udp, source, destination: own, contents },
                )
            }
            Err(_) => {
                quiet += 1;
                Input::Timeout(Instant::now())
            }
        };
        rtc.handle_input(input).unwrap();
    }
}

#[test]
fn a_server_gets_every_frame_at_the_rate_of_the_clip() {
    let (listener, url) = listen();
    let server = serve(listener, Then::Receives);
    let began = Instant::now();
    let outcome = send(&url, Some(TOKEN));
    let took = began.elapsed();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    let frames = server.join().unwrap();
    assert_eq!(frames.len(), FRAMES);
    // Two seconds of clip are not sent faster than they play, however fast they were made.
    assert!(took >= Duration::from_secs_f64((FRAMES - 1) as f64 / 16.0), "{took:?}");
    for (number, (time, _)) in frames.iter().enumerate() {
        assert!((time - frames[0].0 - number as f64 / 16.0).abs() < 0.001, "frame {number} at {time}");
    }

    let folder = tempfile::tempdir().unwrap();
    let stream = folder.path().join("received.h264");
    std::fs::write(&stream, frames.into_iter().flat_map(|(_, frame)| frame).collect::<Vec<u8>>()).unwrap();
    let probed = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-of", "csv=p=0"])
        .args(["-show_entries", "stream=codec_name,profile,width,height,pix_fmt,color_space,nb_read_frames"])
        .arg(&stream)
        .output()
        .expect("ffprobe (Debian package ffmpeg)");
    let found = String::from_utf8(probed.stdout).unwrap();
    assert_eq!(found.trim(), format!("h264,Constrained Baseline,96,64,yuv420p,bt709,{FRAMES}"));
    assert!(probed.stderr.is_empty(), "{}", String::from_utf8_lossy(&probed.stderr));
}

#[test]
fn a_server_that_ends_the_session_ends_its_own_output() {
    let (listener, url) = listen();
    let server = serve(listener, Then::EndsIt);
    let error = failure(&send(&url, Some(TOKEN)));
    assert!(error.contains("the server ended the session or no longer responds"), "{error}");
    assert_eq!(server.join().unwrap().len(), 8);
}

#[test]
fn a_server_whose_media_port_is_silent_is_given_up() {
    let (listener, url) = listen();
    let server = serve(listener, Then::IsSilent);
    let error = failure(&send(&url.replace("//", &format!("//{TOKEN}@")), None));
    assert!(error.contains("ICE found no route") || error.contains("no longer responds"), "{error}");
    server.join().unwrap();
}

#[test]
fn what_a_server_says_against_a_stream_is_told() {
    for (token, status, body, expected) in [
        (None, "401 Unauthorized", "", "the server requires a token (HTTP 401); give it with --whip-token"),
        (Some(TOKEN), "403 Forbidden", "", "the server refused the token (HTTP 403)"),
        (None, "404 Not Found", "no such room\n", "the server refused the stream (HTTP 404: no such room)"),
        (None, "201 Created", "hello", "the server's answer cannot be used"),
    ] {
        let (listener, url) = listen();
        let server = std::thread::spawn(move || Request::next(&listener).answer(status, "", body));
        let error = failure(&send(&url, token));
        assert!(error.contains(expected), "{error}");
        server.join().unwrap();
    }
    // Nobody listens.
    let (listener, url) = listen();
    drop(listener);
    let error = failure(&send(&url, None));
    assert!(error.contains("the server does not respond") && error.contains("refused"), "{error}");
}
