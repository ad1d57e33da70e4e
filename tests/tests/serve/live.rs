//! Clips that are watched while they are made.

use super::{id_of, long};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::time::Duration;
use tests::served::{Answer, Server, token};

/// A clip that is made for some seconds, and then decoded.
fn watched() -> Value {
    json!({"prompt": "a slow ship", "size": "192x128", "num_frames": 17, "num_inference_steps": 60, "seed": 5})
}

/// Starts a clip, and waits until it has made a step.
fn begun(server: &Server, clip: &Value) -> String {
    let clip = server.post("/v1/videos", clip).with(200).json();
    server.until(id_of(&clip), |video| video["progress"].as_u64() > Some(0));
    id_of(&clip).to_owned()
}

fn playlist(answer: Answer) -> String {
    assert_eq!(answer.header("content-type"), Some("application/vnd.apple.mpegurl"));
    String::from_utf8(answer.body).unwrap()
}

/// The links of a playlist.
fn links(playlist: &str) -> Vec<&str> {
    let map = playlist.lines().filter_map(|line| line.strip_prefix("#EXT-X-MAP:URI=\"")?.strip_suffix('"'));
    map.chain(playlist.lines().filter(|line| !line.starts_with('#'))).collect()
}

fn read(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(["-v", "error"]).args(arguments).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}"))
}

#[test]
fn a_clip_plays_from_noise_to_its_last_frame() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let id = begun(&server, &watched());
    let path = format!("/v1/videos/{id}/live");
    let text = playlist(server.get(&path).with(200));
    assert!(text.starts_with("#EXTM3U\n") && text.contains("#EXT-X-MEDIA-SEQUENCE:0\n"), "{text}");
    assert!(!text.contains("#EXT-X-ENDLIST"), "{text}");
    let first = links(&text).into_iter().map(str::to_owned).collect::<Vec<_>>();
    assert!(first.len() >= 2, "{text}");
    // The links stay as they are.
    let again = playlist(server.get(&path).with(200));
    assert!(first.iter().all(|link| again.contains(link)), "{again}");

    // While it is made.
    let url = server.url(&path);
    let streams = ["-show_entries", "stream=codec_name,width,height,r_frame_rate", "-of", "csv=p=0"];
    let probed = read("ffprobe", &[&streams[..], &[&url]].concat());
    let found = String::from_utf8_lossy(&probed.stdout).into_owned();
    assert!(found.contains("h264,192,128,8/1"), "{found}: {probed:?}");

    // To its end, which ffmpeg waits for.
    let decoded =
        read("ffmpeg", &["-live_start_index", "0", "-i", &url, "-f", "rawvideo", "-pix_fmt", "gray", "-"]);
    assert!(decoded.status.success(), "{decoded:?}");
    let shown: Vec<&[u8]> = decoded.stdout.chunks_exact(192 * 128).collect();
    assert_eq!(server.ended(&id)["status"], "completed");
    assert!(shown.len() > 17, "{} pictures", shown.len());
    // The last picture is the last frame of the clip, apart from what the encoders have lost.
    let file = data.path().join(format!("clips/{id}.mp4"));
    let clip = read("ffmpeg", &["-i", file.to_str().unwrap(), "-f", "rawvideo", "-pix_fmt", "gray", "-"]);
    let frames: Vec<&[u8]> = clip.stdout.chunks_exact(192 * 128).collect();
    assert_eq!(frames.len(), 17);
    let difference = |a: &[u8], b: &[u8]| {
        a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>() as f64 / a.len() as f64
    };
    let (first, last) = (difference(shown[0], frames[16]), difference(shown[shown.len() - 1], frames[16]));
    assert!(last < 6.0 && first > 2.0 * last, "{first} {last}");
    let text = playlist(server.get(&path).with(200));
    assert!(text.ends_with("#EXT-X-ENDLIST\n"), "{text}");
}

#[test]
fn only_clips_that_are_made_can_be_watched_and_links_are_signed() {
    let data = tempfile::tempdir().unwrap();
    let holder = token(data.path(), "a", &[]);
    let other = token(data.path(), "b", &[]);
    let server = Server::start(data.path(), &[]);
    let [own, foreign] = [holder, other].map(|token| format!("Bearer {token}"));
    let send = |method: &str, path: &str, bearer: &str, body: &[u8]| {
        server.send(method, path, &[("authorization", bearer), ("content-type", "application/json")], body)
    };
    let plain = json!({"prompt": "a ship", "resolution": "192x128", "duration": 4});
    let task = send("POST", "/wan2.2/t2v/generate", &own, plain.to_string().as_bytes()).with(200).json();
    let made: Value =
        send("POST", "/v1/videos", &own, long("a slow ship").to_string().as_bytes()).with(200).json();
    let id = id_of(&made).to_owned();
    let live = format!("/v1/videos/{id}/live");
    send("GET", &live, &foreign, &[]).with(404);
    server.get(&live).with(401);
    // The one before it is still being made.
    let waits = send("GET", &live, &own, &[]);
    assert!(matches!(waits.status, 200 | 409), "{waits:?}");
    if waits.status == 409 {
        assert_eq!(waits.json()["error"]["code"], "not_live_yet");
        assert!(waits.header("retry-after").is_some());
    }
    // The link of the plain form needs no token.
    let linked = task["live_url"].as_str().unwrap();
    let mut answer = server.get(linked);
    for _ in 0..600 {
        if answer.status != 409 || answer.json()["error"]["code"] == "video_ended" {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        answer = server.get(linked);
    }
    server.get(&linked.replace("signature=", "signature=x")).with(403);
    let mut answer = send("GET", &live, &own, &[]);
    for _ in 0..1200 {
        if answer.status == 200 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        answer = send("GET", &live, &own, &[]);
    }
    let text = playlist(answer.with(200));
    let link = links(&text)[0].to_owned();
    assert_eq!(&server.get(&link).with(200).body[4..8], b"ftyp");
    server.get(link.split('?').next().unwrap()).with(400);
    server.get(&link.replace("live-init.mp4", "live-00001.m4s")).with(403);
    // A link is for one file, so names that were never linked have none. Those of others lead nowhere.
    for name in ["live-index.m3u8", "live-..%2Fx", "live-99999.m4s"] {
        server.get(&link.replace("live-init.mp4", name)).with(403);
    }
    send("DELETE", &format!("/v1/videos/{id}"), &own, &[]).with(200);
    send("GET", &live, &own, &[]).with(404);
    server.get(&link).with(404);
    let folder = data.path().join("live");
    for _ in 0..200 {
        if std::fs::read_dir(&folder).map_or(0, |found| {
            found
                .filter(|entry| {
                    entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().contains(&id))
                })
                .count()
        }) == 0
        {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("the segments of a deleted clip stay");
}
