//! Previews while a clip is made.

use super::long;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tests::served::Server;

/// Starts a clip, and waits until it has made a step.
fn begun(server: &Server) -> String {
    let clip = server.post("/v1/videos", &long("a slow ship")).with(200).json();
    let id = clip["id"].as_str().unwrap();
    server.until(id, |video| video["progress"].as_u64() > Some(0));
    id.to_owned()
}

#[test]
fn a_clip_has_a_picture_while_it_is_made() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let id = begun(&server);
    let path = format!("/v1/videos/{id}/preview.png");
    // Pictures are kept from the first question on.
    let mut answer = server.get(&path);
    for _ in 0..600 {
        if answer.status == 200 {
            break;
        }
        assert_eq!(answer.status, 409);
        assert!(answer.header("retry-after").is_some());
        std::thread::sleep(Duration::from_millis(100));
        answer = server.get(&path);
    }
    let answer = answer.with(200);
    assert_eq!(answer.header("content-type"), Some("image/png"));
    assert!(answer.header("rushes-step").is_some_and(|step| step.parse::<u32>().is_ok_and(|step| step > 0)));
    // The signature, then width and height in the first chunk.
    assert_eq!(&answer.body[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(answer.body[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), (192, 128));
    server.send("DELETE", &format!("/v1/videos/{id}"), &[], &[]).with(200);
    server.get(&path).with(404);
}

/// Reads a message of a server: its kind and its bytes.
fn message(stream: &mut impl Read) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).unwrap();
    assert_eq!(head[1] & 0x80, 0, "servers do not mask");
    let length = match head[1] {
        126 => {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            u64::from(u16::from_be_bytes(length))
        }
        127 => {
            let mut length = [0; 8];
            stream.read_exact(&mut length).unwrap();
            u64::from_be_bytes(length)
        }
        length => u64::from(length),
    };
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes).unwrap();
    (head[0] & 0x0f, bytes)
}

#[test]
fn a_websocket_has_events_and_pictures() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let id = begun(&server);
    let mut stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let head = format!(
        "GET /v1/videos/{id}/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut answer).unwrap() > 0, "{answer}");
    }
    assert!(answer.starts_with("HTTP/1.1 101"), "{answer}");
    let (mut events, mut pictures) = (0, 0);
    while events == 0 || pictures == 0 {
        match message(&mut stream) {
            (1, text) => {
                let event: Value = serde_json::from_slice(&text).unwrap();
                assert!(event.is_object(), "{event}");
                events += 1;
            }
            (2, picture) => {
                assert_eq!(&picture[..10], [0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0xd8]);
                pictures += 1;
            }
            (kind, _) => assert_eq!(kind, 9, "a ping"),
        }
    }
    server.send("DELETE", &format!("/v1/videos/{id}"), &[], &[]).with(200);
}
