//! WHIP over the loopback: a server that accepts the stream, one that refuses it, and one that ends the session.

use crate::clip::{format, moving_bar, options};
use crate::tools::{ffprobe, run_silent};
use media::{Outcome, OutputSpec, OutputTarget, Outputs, Remainder, Token};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use str0m::change::SdpOffer;
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, Input, Output, Rtc};

const FRAMES: usize = 32;
const TOKEN: &str = "s3cret";
/// Far longer than any step takes on a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Waits of up to 20 ms without a packet after which an ended session counts as fully received.
const IDLE_WAITS: usize = 100;

/// Sends the clip to a server and to a file, which must be complete in every case.
fn send(url: &str, token: Option<&str>) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let token = token.map(|token| Token::new(token).unwrap());
    let whip = url.parse::<OutputSpec>().unwrap().with_token(token.as_ref());
    let file: OutputSpec = folder.path().join("clip.mp4").to_str().unwrap().parse().unwrap();
    let targets = OutputTarget::claim_all(&[whip, file]).unwrap();
    let format = format("96x64", 16, FRAMES);
    let mut outputs = Outputs::start(&targets, &options(format)).unwrap();
    (0..FRAMES).for_each(|number| outputs.push(&moving_bar(format, number)).unwrap());
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

/// A request that the server received.
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

/// The behaviour of a server after a session has started.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Receives frames until the client ends the session.
    Receives,
    /// Ends the session after some frames.
    EndsIt,
    /// Answers no packet.
    IsSilent,
}

/// A server for one session. Returns the received frames in Annex B, each with its time.
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
            // The session may have ended already.
            let _ = ended.send(());
        });
        match then {
            Then::IsSilent => {
                end.recv_timeout(TIMEOUT).expect("the session is ended");
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
    ends_session: bool,
) -> Vec<(f64, Vec<u8>)> {
    let mut frames = Vec::new();
    let began = Instant::now();
    // After the session has ended, packets that were sent before may still arrive.
    let (mut ended, mut idle_waits) = (false, 0);
    loop {
        assert!(began.elapsed() < TIMEOUT, "{} frames", frames.len());
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
        if ends_session && frames.len() == 8 {
            rtc.close().unwrap();
            while let Output::Transmit(packet) = rtc.poll_output().unwrap() {
                socket.send_to(&packet.contents, packet.destination).unwrap();
            }
            end.recv_timeout(TIMEOUT).expect("the session is ended");
            return frames;
        }
        ended |= end.try_recv().is_ok();
        if !rtc.is_alive() || (ended && (frames.len() >= FRAMES || idle_waits >= IDLE_WAITS)) {
            return frames;
        }
        let wait = due
            .saturating_duration_since(Instant::now())
            .clamp(Duration::from_millis(1), Duration::from_millis(20));
        socket.set_read_timeout(Some(wait)).unwrap();
        let mut packet = [0; 2048];
        let input = match socket.recv_from(&mut packet) {
            Ok((length, source)) => {
                idle_waits = 0;
                let contents = packet[..length].try_into().unwrap();
                Input::Receive(
                    Instant::now(),
                    Receive { proto: Protocol::Udp, source, destination: own, contents },
                )
            }
            Err(_) => {
                idle_waits += 1;
                Input::Timeout(Instant::now())
            }
        };
        rtc.handle_input(input).unwrap();
    }
}

#[test]
fn a_server_receives_every_frame_at_the_rate_of_the_clip() {
    let (listener, url) = listen();
    let server = serve(listener, Then::Receives);
    let began = Instant::now();
    let outcome = send(&url, Some(TOKEN));
    let took = began.elapsed();
    assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
    let frames = server.join().unwrap();
    assert_eq!(frames.len(), FRAMES);
    // Two seconds of clip are not sent faster than they play.
    assert!(took >= Duration::from_secs_f64((FRAMES - 1) as f64 / 16.0), "{took:?}");
    for (number, (time, _)) in frames.iter().enumerate() {
        assert!((time - frames[0].0 - number as f64 / 16.0).abs() < 0.001, "frame {number} at {time}");
    }

    let folder = tempfile::tempdir().unwrap();
    let stream = folder.path().join("received.h264");
    std::fs::write(&stream, frames.into_iter().flat_map(|(_, frame)| frame).collect::<Vec<u8>>()).unwrap();
    let probed: serde_json::Value = serde_json::from_slice(&run_silent(&mut ffprobe(&stream))).unwrap();
    let stream = &probed["streams"][0];
    let found =
        ["codec_name", "profile", "pix_fmt", "color_space"].map(|name| stream[name].as_str().unwrap());
    assert_eq!(found, ["h264", "Constrained Baseline", "yuv420p", "bt709"], "{stream}");
    assert_eq!((&stream["width"], &stream["height"]), (&96.into(), &64.into()), "{stream}");
    assert_eq!(stream["nb_read_frames"], FRAMES.to_string(), "{stream}");
}

#[test]
fn a_server_that_ends_the_session_ends_only_its_own_output() {
    let (listener, url) = listen();
    let server = serve(listener, Then::EndsIt);
    let error = failure(&send(&url, Some(TOKEN)));
    assert!(error.contains("the server ended the session or no longer responds"), "{error}");
    assert_eq!(server.join().unwrap().len(), 8);
}

#[test]
fn a_server_with_a_silent_media_port_fails_the_output() {
    let (listener, url) = listen();
    let server = serve(listener, Then::IsSilent);
    let error = failure(&send(&url.replace("//", &format!("//{TOKEN}@")), None));
    assert!(error.contains("ICE found no route") || error.contains("no longer responds"), "{error}");
    server.join().unwrap();
}

#[test]
fn the_refusal_of_a_server_is_reported() {
    for (token, status, body, expected) in [
        (None, "401 Unauthorized", "", "the server requires a token (HTTP 401), and none was given"),
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
    // No server listens.
    let (listener, url) = listen();
    drop(listener);
    let error = failure(&send(&url, None));
    assert!(error.contains("the server does not respond") && error.contains("refused"), "{error}");
}
