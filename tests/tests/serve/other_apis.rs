//! Tasks of DashScope, the plain form, the route of MLPerf, and events.

use super::{long, short};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::served::Server;

/// As the SDK sends it.
fn task(prompt: &str) -> Value {
    json!({
        "model": "wan2.2-t2v-plus",
        "input": {"prompt": prompt, "extend_prompt": true, "function": "video-synthesis"},
        "parameters": {"size": "48*32", "duration": 0.5, "seed": 7},
    })
}

const CREATE: &str = "/api/v1/services/aigc/video-generation/video-synthesis";

fn state(server: &Server, id: &str) -> Value {
    server.get(&format!("/api/v1/tasks/{id}")).with(200).json()["output"]["task_status"].clone()
}

fn until(server: &Server, id: &str, states: &[&str]) {
    let began = Instant::now();
    while !states.iter().any(|expected| state(server, id) == *expected) {
        assert!(began.elapsed() < Duration::from_secs(120), "{}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_task_of_dashscope_is_made_listed_and_cancelled() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--model-alias", "wan2.2-*=mini"]);
    let created = server.post(CREATE, &task("a red ball")).with(200).json();
    assert_eq!(created["output"]["task_status"], "PENDING");
    let id = created["output"]["task_id"].as_str().unwrap();
    until(&server, id, &["SUCCEEDED"]);
    let made = server.get(&format!("/api/v1/tasks/{id}")).json();
    assert_eq!(made["usage"], json!({"video_count": 1, "video_duration": 0.5, "video_ratio": "48*32"}));
    assert_eq!(made["output"]["orig_prompt"], "a red ball");
    let file = server.get(made["output"]["video_url"].as_str().unwrap()).with(200);
    assert_eq!(&file.body[4..8], b"ftyp");
    // The same clip by the other API.
    assert_eq!(server.get(&format!("/v1/videos/{id}")).json()["status"], "completed");
    let slow = server.post("/v1/videos", &long("a ship")).with(200).json();
    let slow = slow["id"].as_str().unwrap();
    until(&server, slow, &["RUNNING"]);
    server.post(&format!("/api/v1/tasks/{slow}/cancel"), &json!({})).with(200);
    until(&server, slow, &["CANCELED"]);
    let cancelled = server.get(&format!("/v1/videos/{slow}")).json();
    assert_eq!((&cancelled["status"], &cancelled["error"]["code"]), (&json!("failed"), &json!("cancelled")));
    let again = server.post(&format!("/api/v1/tasks/{slow}/cancel"), &json!({})).with(409).json();
    assert!(again["code"].is_string() && again["message"].is_string() && again["request_id"].is_string());
    let list = |query: &str| server.get(&format!("/api/v1/tasks?{query}")).with(200).json();
    assert_eq!(list("")["total"], 2);
    assert_eq!(list("status=SUCCEEDED")["data"][0]["task_id"], id);
    assert_eq!(list("model_name=wan2.2-t2v-plus")["total"], 1);
    assert_eq!(list("page_no=2&page_size=1")["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        (&list("start_time=20990101000000")["total"], &list("end_time=20990101000000")["total"]),
        (&json!(0), &json!(2))
    );
    server.get("/api/v1/tasks?page_no=0").with(400);
    server.get("/api/v1/tasks/unknown").with(404);
    let mut image = task("a");
    image["input"]["img_url"] = json!("https://example.com/a.png");
    assert_eq!(server.post(CREATE, &image).with(400).json()["code"], "InvalidParameter");
    server.post("/api/v1/services/aigc/image2video/video-synthesis", &image).with(400);
    let proxied = server.post(&format!("/proxy/wan{CREATE}"), &task("a boat")).with(200).json();
    assert_eq!(
        server
            .get(&format!("/proxy/wan/api/v1/tasks/{}", proxied["output"]["task_id"].as_str().unwrap()))
            .status,
        200
    );
    server.get("/proxy/openai/v1/videos").with(200);
}

#[test]
fn the_plain_form_answers_with_addresses() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--model-alias", "*=mini"]);
    let body = json!({
        "model": "wan2.2", "prompt": "a red ball", "resolution": "48x32", "duration": 0.5, "output_format": "mp4",
        "lang": "en", "max_length": 512,
    });
    let made = server.post("/wan2.2/t2v/generate", &body).with(200).json();
    let (status, video) = (made["status_url"].as_str().unwrap(), made["video_url"].as_str().unwrap());
    assert!(matches!(
        server.get(status).with(200).json()["status"].as_str(),
        Some("queued" | "in_progress" | "completed")
    ));
    let began = Instant::now();
    let file = loop {
        let answer = server.get(video);
        if answer.status == 200 {
            break answer;
        }
        assert_eq!(answer.status, 202);
        assert!(answer.header("retry-after").is_some() && began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(file.header("content-type"), Some("video/mp4"));
}

#[test]
fn mlperf_is_answered_with_two_keys() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--allow-paths"]);
    let mut clip = short("a red ball");
    clip["response_format"] = json!("video_bytes");
    let made = server.post("/v1/videos/generations", &clip).with(200).json();
    let keys: Vec<&String> = made.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["video_id", "video_bytes"]);
    clip["response_format"] = json!("video_path");
    let at_path = server.post("/v1/videos/generations", &clip).with(200).json();
    let keys: Vec<&String> = at_path.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["video_id", "video_path"]);
    let id = at_path["video_id"].as_str().unwrap();
    let file = server.get(&format!("/v1/videos/{id}/content")).with(200).body;
    assert_eq!(std::fs::read(at_path["video_path"].as_str().unwrap()).unwrap(), file);
}

#[test]
fn a_clip_of_a_client_that_vanishes_is_cancelled() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let body = long("a ship").to_string();
    let mut stream = std::net::TcpStream::connect(server.address).unwrap();
    let head = format!(
        "POST /v1/videos/generations HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    std::io::Write::write_all(&mut stream, format!("{head}{body}").as_bytes()).unwrap();
    let began = Instant::now();
    let id = loop {
        let listed = server.get("/v1/videos").json();
        if let Some(id) =
            listed["data"][0]["id"].as_str().filter(|_| listed["data"][0]["status"] == "in_progress")
        {
            break id.to_owned();
        }
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(20));
    };
    drop(stream);
    assert_eq!(server.ended(&id)["error"]["code"], "cancelled");
}

#[test]
fn events_follow_a_clip_to_its_end() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let mut clip = short("a red ball");
    clip["num_inference_steps"] = json!(30);
    clip["size"] = json!("96x64");
    let created = server.post("/v1/videos", &clip).with(200).json();
    let events = server.get(&format!("/v1/videos/{}/events", created["id"].as_str().unwrap())).with(200);
    assert_eq!(events.header("content-type"), Some("text/event-stream"));
    let text = String::from_utf8(events.body).unwrap();
    let data: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(text.contains("event: progress\n") && text.contains("event: ended\n"), "{text}");
    let last = data.last().unwrap();
    assert_eq!(
        (&last["state"], &last["progress"], &last["step"], &last["steps"]),
        (&json!("done"), &json!(100), &json!(30), &json!(30))
    );
    assert_eq!((last["sigma"].as_f64(), last["frames_done"].as_u64()), (Some(0.0), Some(5)));
    assert!(last["expert"].is_string());
    let steps: Vec<u64> = data.iter().map(|event| event["step"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted(), "{steps:?}");
    let sigmas: Vec<f64> = data.iter().map(|event| event["sigma"].as_f64().unwrap()).collect();
    assert!(sigmas.is_sorted_by(|a, b| a >= b), "{sigmas:?}");
}
