//! What the content filter refuses, by every API.

use super::short;
use serde_json::{Value, json};
use tests::program::rushes;
use tests::served::Server;

/// A prompt that every list has to refuse.
const REFUSED: &str = "p o r n, two adults";
const CREATE: &str = "/api/v1/services/aigc/video-generation/video-synthesis";

fn with(name: &str, value: Value) -> Value {
    let mut clip = short("a red ball");
    clip[name] = value;
    clip
}

#[test]
fn every_api_refuses_texts_and_says_why() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--model-alias", "*=mini"]);
    let error = server.post("/v1/videos", &short(REFUSED)).with(400).json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"], &error["type"]),
        (&json!("content_policy_violation"), &json!("prompt"), &json!("invalid_request_error"))
    );
    assert!(error["message"].as_str().unwrap().contains("category sexual"), "{error}");
    for (path, body) in [
        ("/v1/auditions", json!({"prompt": REFUSED})),
        ("/wan2.2/t2v/generate", json!({"prompt": REFUSED})),
        ("/v1/videos/generations", json!({"prompt": REFUSED})),
        ("/proxy/openai/v1/videos", short(REFUSED)),
    ] {
        let error = server.post(path, &body).with(400).json()["error"].clone();
        assert_eq!(error["code"], "content_policy_violation", "{path}");
    }
    let task = json!({"model": "wan", "input": {"prompt": REFUSED}});
    for path in [CREATE.to_owned(), format!("/proxy/wan{CREATE}")] {
        let fault = server.post(&path, &task).with(400).json();
        assert_eq!(fault["code"], "DataInspectionFailed");
        assert!(fault["message"].as_str().unwrap().contains("category sexual"), "{fault}");
    }
    // A negative prompt may name what is not wanted, unless the guidance makes it wanted.
    let mut clip = with("negative_prompt", json!("nudity, porn, blood"));
    let made = server.post("/v1/videos", &clip).with(200).json();
    for scale in [0.5, -3.0] {
        clip["guidance_scale"] = json!(scale);
        let error = server.post("/v1/videos", &clip).with(400).json()["error"].clone();
        assert_eq!(error["param"], "negative_prompt", "{error}");
    }
    // A remix is a clip with another prompt, and with the other texts of its parent.
    let id = made["id"].as_str().unwrap();
    server.ended(id);
    for (path, body) in [
        (format!("/v1/videos/{id}/remix"), json!({"prompt": REFUSED})),
        ("/v1/videos/edits".to_owned(), json!({"prompt": REFUSED, "video_id": id})),
    ] {
        let error = server.post(&path, &body).with(400).json()["error"].clone();
        assert_eq!(error["code"], "content_policy_violation", "{path}");
    }
    server.post(&format!("/v1/videos/{id}/remix"), &json!({"prompt": "a blue ball"})).with(200);
    let metrics = String::from_utf8(server.get("/metrics").with(200).body).unwrap();
    assert!(metrics.contains("rushes_refused_total{category=\"sexual\"} 11"), "{metrics}");
    // The log says that there is a filter and which rule applied, and repeats no text of a client.
    let log = server.log();
    assert!(log.contains("the content filter is on") && log.contains("has refused a text"), "{log}");
    assert!(!log.contains("two adults"), "{log}");
}

#[test]
fn an_operator_can_allow_phrases_replace_the_lists_or_turn_them_off() {
    let data = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let path = data.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (allowed, lists) = (path("allowed", "porn"), path("lists", "[ours]\nball"));
    let code = |server: &Server, prompt: &str| server.post("/v1/videos", &short(prompt)).status;
    let server = Server::start(data.path(), &["--content-allow", &allowed]);
    assert_eq!((code(&server, REFUSED), code(&server, "a hentai")), (200, 400));
    drop(server);
    let server = Server::start(data.path(), &["--content-filter", &lists]);
    assert_eq!((code(&server, REFUSED), code(&server, "a ball")), (200, 400));
    drop(server);
    let server = Server::start(data.path(), &["--content-filter", "off"]);
    assert_eq!((code(&server, REFUSED), code(&server, "a ball")), (200, 200));
    assert!(server.log().contains("the content filter is off"), "{}", server.log());
    let mut command = rushes(data.path());
    let refused = command.args(["serve", "--content-filter", "/nowhere", "--data-dir"]).arg(data.path());
    assert_eq!(refused.output().unwrap().status.code(), Some(2));
}
