//! What survives: many requests at once, kills, a full disk.

use super::short;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tests::served::Server;

/// The smallest clip.
fn tiny(prompt: &str) -> Value {
    json!({"prompt": prompt, "size": "16x16", "num_frames": 1, "num_inference_steps": 1, "seed": 1})
}

/// The names of all videos, oldest first.
fn ids(server: &Server) -> Vec<String> {
    let (mut found, mut after) = (Vec::new(), String::new());
    loop {
        let page = server.get(&format!("/v1/videos?limit=100&order=asc{after}")).with(200).json();
        found.extend(
            page["data"].as_array().unwrap().iter().map(|video| video["id"].as_str().unwrap().to_owned()),
        );
        if page["has_more"] == json!(false) {
            return found;
        }
        after = format!("&after={}", page["last_id"].as_str().unwrap());
    }
}

/// Sends `count` requests before any answer is read, and kills the server afterwards.
fn at_once(count: usize) {
    // Every connection is an open file.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &["--max-queue", &count.to_string()]);
    let body = short("a red ball").to_string();
    let head = format!(
        "POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let began = Instant::now();
    let mut streams: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    for stream in &mut streams {
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
    }
    let mut answered = BTreeSet::new();
    for stream in &mut streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}: {}", server.log());
        let video: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        answered.insert(video["id"].as_str().unwrap().to_owned());
    }
    eprintln!("{count} requests at once were answered in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(answered.len(), count);
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_eq!(ids(&server).into_iter().collect::<BTreeSet<_>>(), answered);
}

#[test]
fn requests_at_once_are_all_answered_and_survive_a_kill() {
    at_once(60);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_requests_at_once_are_all_answered_and_survive_a_kill() {
    at_once(1000);
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// Kills a server again and again while clients send requests, which they repeat with their keys until they are
/// answered.
fn kills(count: usize) {
    let data = tempfile::tempdir().unwrap();
    let mut random = Random(11);
    let server = Mutex::new(Server::start(data.path(), &[]));
    let address = || server.lock().unwrap_or_else(PoisonError::into_inner).url("/v1/videos");
    let (is_over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let answered: Mutex<BTreeMap<usize, String>> = Mutex::default();
    let client = || {
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build()
            .into();
        while !is_over.load(Ordering::Relaxed) {
            let number = sent.fetch_add(1, Ordering::Relaxed);
            let key = format!("k{number}");
            let body = tiny(&format!("ball {number}")).to_string();
            let id = loop {
                let request = agent.post(address()).header("content-type", "application/json");
                if let Ok(mut answer) = request.header("idempotency-key", &key).send(&body) {
                    let text = answer.body_mut().read_to_string().unwrap_or_default();
                    if answer.status() == 200
                        && let Ok(video) = serde_json::from_str::<Value>(&text)
                    {
                        break video["id"].as_str().unwrap().to_owned();
                    }
                    assert!(
                        matches!(answer.status().as_u16(), 200 | 409 | 429 | 503),
                        "{}: {text}",
                        answer.status()
                    );
                }
                std::thread::sleep(Duration::from_millis(20));
            };
            answered.lock().unwrap().insert(number, id);
            std::thread::sleep(Duration::from_millis(30));
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
        for _ in 0..count {
            std::thread::sleep(Duration::from_millis(200 + random.below(1500)));
            let mut running = server.lock().unwrap_or_else(PoisonError::into_inner);
            running.kill();
            *running = Server::start(data.path(), &[]);
        }
        is_over.store(true, Ordering::Relaxed);
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    let server = server.into_inner().unwrap_or_else(PoisonError::into_inner);
    let answered = answered.into_inner().unwrap();
    let known = ids(&server);
    eprintln!("{count} kills, {} answered requests, {} videos", answered.len(), known.len());
    let unique: BTreeSet<&String> = answered.values().collect();
    assert_eq!(unique.len(), answered.len(), "two requests got one video");
    // In the order in which they are made: a wait is for one clip, not for all before it.
    for (number, id) in &answered {
        assert!(known.contains(id), "{number} is lost");
        let video = server.ended(id);
        assert_eq!(video["status"], "completed", "{video}");
        assert_eq!(video["prompt"], format!("ball {number}"));
        server.get(&format!("/v1/videos/{id}/content")).with(200);
    }
    // A request that was stored and not answered was sent again with its key.
    assert_eq!(known.len(), answered.len());
}

#[test]
fn answered_requests_survive_kills_under_load() {
    kills(4);
}

#[test]
#[ignore = "takes minutes"]
fn answered_requests_survive_fifty_kills_under_load() {
    kills(50);
}

#[test]
fn a_full_disk_is_said_and_passes() {
    let data = tempfile::tempdir().unwrap();
    let possible = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none"])
        .arg(data.path())
        .status();
    if !possible.is_ok_and(|status| status.success()) {
        eprintln!("skipped: this system does not allow mounts in a new namespace");
        return;
    }
    let mut command = Command::new("unshare");
    let script = "data=$1; shift; mount -t tmpfs -o size=8m none \"$data\" && exec \"$@\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    command.arg(data.path()).arg(tests::program::path()).current_dir("/");
    let server = Server::start_as(command, data.path(), &[]);
    // The disk as the server sees it.
    let inside = PathBuf::from(format!("/proc/{}/root", server.id()));
    let ballast = inside.join(data.path().strip_prefix("/").unwrap()).join("ballast");
    let first = server.post("/v1/videos", &short("a red ball")).with(200).json();
    assert_eq!(server.ended(first["id"].as_str().unwrap())["status"], "completed");
    let mut file = std::fs::File::create(&ballast).unwrap();
    while file.write_all(&[1; 512]).is_ok() {}
    drop(file);
    let full = server.post("/v1/videos", &short("a blue ball")).with(503);
    assert!(
        full.header("retry-after").is_some()
            && full.json()["error"]["message"].as_str().unwrap().contains("disk is full"),
        "{full:?}"
    );
    // Everything that needs no room goes on.
    assert_eq!(ids(&server), [first["id"].as_str().unwrap()]);
    server.get(&format!("/v1/videos/{}/content", first["id"].as_str().unwrap())).with(200);
    std::fs::remove_file(&ballast).unwrap();
    let second = server.post("/v1/videos", &short("a blue ball")).with(200).json();
    assert_eq!(server.ended(second["id"].as_str().unwrap())["status"], "completed");
}
