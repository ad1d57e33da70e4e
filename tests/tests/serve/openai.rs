//! The videos API of OpenAI.

use super::{long, short};
use serde_json::{Value, json};
use tests::program::frames_of;
use tests::served::Server;

#[test]
fn a_video_is_made_listed_downloaded_and_deleted() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let created = server.post("/v1/videos", &short("a red ball")).with(200);
    assert!(created.header("openai-poll-after-ms").is_some_and(|after| after.parse::<u32>().is_ok()));
    let created = created.json();
    let id = created["id"].as_str().unwrap();
    let unchanging = |video: &Value| {
        let keys =
            ["object", "model", "created_at", "prompt", "seconds", "size", "remixed_from_video_id", "seed"];
        keys.map(|key| video[key].clone())
    };
    assert_eq!(
        (&created["object"], &created["status"], &created["progress"]),
        (&json!("video"), &json!("queued"), &json!(0))
    );
    assert_eq!(
        (&created["seconds"], &created["size"], &created["model"]),
        (&json!("0.625"), &json!("48x32"), &json!("mini"))
    );
    let video = server.ended(id);
    assert_eq!(
        (&video["status"], &video["progress"], &video["error"]),
        (&json!("completed"), &json!(100), &Value::Null)
    );
    assert!(video["completed_at"].as_i64() >= video["created_at"].as_i64());
    assert_eq!(unchanging(&video), unchanging(&created));
    let listed = server.get("/v1/videos").with(200).json();
    assert_eq!(listed["data"], json!([video]));
    assert_eq!(
        (&listed["first_id"], &listed["last_id"], &listed["has_more"]),
        (&json!(id), &json!(id), &json!(false))
    );
    let path = format!("/v1/videos/{id}/content");
    let accept = [("accept", "application/binary")];
    let whole = server.send("GET", &format!("{path}?video_id=x"), &accept, &[]).with(200);
    assert_eq!(whole.header("content-type"), Some("video/mp4"));
    std::fs::write(data.path().join("got.mp4"), &whole.body).unwrap();
    assert_eq!(frames_of(&data.path().join("got.mp4")), 5);
    let part = server.send("GET", &path, &[("range", "bytes=4-7")], &[]).with(206);
    assert_eq!(
        (&part.body[..], part.header("content-range").unwrap().split('/').next()),
        (&b"ftyp"[..], Some("bytes 4-7"))
    );
    server.send("GET", &path, &[("range", "bytes=99999999-")], &[]).with(416);
    assert!(server.send("HEAD", &path, &[], &[]).with(200).body.is_empty());
    // As clients send it: with a content type, and without a body.
    let json_type = [("content-type", "application/json")];
    let deleted = server.send("DELETE", &format!("/v1/videos/{id}"), &json_type, &[]).with(200).json();
    assert_eq!(deleted, json!({"id": id, "object": "video.deleted", "deleted": true}));
    for (method, path) in
        [("GET", format!("/v1/videos/{id}")), ("DELETE", format!("/v1/videos/{id}")), ("GET", path)]
    {
        assert_eq!(server.send(method, &path, &[], &[]).with(404).json()["error"]["code"], "not_found");
    }
    assert_eq!(server.get("/v1/videos").json()["data"], json!([]));
    assert_eq!(std::fs::read_dir(data.path().join("clips")).unwrap().count(), 0);
}

#[test]
fn a_form_is_as_good_as_json() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let values = [
        ("prompt", "a boat"),
        ("model", "mini"),
        ("seconds", "0.5"),
        ("size", "48x32"),
        ("num_inference_steps", "2"),
        ("seed", "3"),
    ];
    let parts: String = values
        .iter()
        .map(|(name, value)| {
            format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        })
        .collect();
    let form = [("content-type", "multipart/form-data; boundary=b"), ("accept", "*/*")];
    let video =
        server.send("POST", "/v1/videos", &form, format!("{parts}--b--\r\n").as_bytes()).with(200).json();
    assert_eq!(
        (&video["prompt"], &video["seconds"], &video["seed"]),
        (&json!("a boat"), &json!("0.5"), &json!(3))
    );
}

#[test]
fn pages_follow_each_other_in_both_orders() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let ids: Vec<Value> = (0..5)
        .map(|k| server.post("/v1/videos", &short(&format!("{k}"))).with(200).json()["id"].clone())
        .collect();
    for (order, expected) in [("asc", ids.clone()), ("desc", ids.iter().rev().cloned().collect())] {
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = server.get(&format!("/v1/videos?limit=2&order={order}{after}")).with(200).json();
            found.extend(page["data"].as_array().unwrap().iter().map(|video| video["id"].clone()));
            assert_eq!(page["last_id"], *found.last().unwrap());
            if page["has_more"] == json!(false) {
                break;
            }
            after = format!("&after={}", page["last_id"].as_str().unwrap());
        }
        assert_eq!(found, expected);
    }
    for wrong in ["limit=0", "limit=101", "limit=x", "order=up"] {
        server.get(&format!("/v1/videos?{wrong}")).with(400);
    }
    server.get("/v1/videos?after=video_0").with(404);
}

#[test]
fn a_video_that_is_deleted_while_it_is_made_frees_the_machine() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let first = server.post("/v1/videos", &long("a slow ship")).with(200).json();
    let id = first["id"].as_str().unwrap();
    server.until(id, |video| video["status"] == "in_progress" && video["progress"].as_u64() > Some(0));
    assert_eq!(
        server.get(&format!("/v1/videos/{id}/content")).with(409).json()["error"]["code"],
        "video_not_ready"
    );
    server.send("DELETE", &format!("/v1/videos/{id}"), &[], &[]).with(200);
    let second = server.post("/v1/videos", &short("a red ball")).with(200).json();
    assert_eq!(server.ended(second["id"].as_str().unwrap())["status"], "completed");
    let names: Vec<_> = std::fs::read_dir(data.path().join("clips"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(names.iter().all(|name| !name.to_string_lossy().contains(id)), "{names:?}");
}

#[test]
fn a_remix_goes_on_from_an_early_step_of_the_video() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let parent = server.post("/v1/videos", &short("a red ball")).with(200).json();
    let id = parent["id"].as_str().unwrap();
    server.ended(id);
    let prompt = json!({"prompt": "a blue ball"});
    let remix = server.post(&format!("/v1/videos/{id}/remix"), &prompt).with(200).json();
    assert_eq!((&remix["remixed_from_video_id"], &remix["prompt"]), (&json!(id), &json!("a blue ball")));
    let edit = server
        .post("/v1/videos/edits", &json!({"prompt": "a green ball", "video": {"id": id}}))
        .with(200)
        .json();
    for made in [&remix, &edit] {
        assert_eq!(server.ended(made["id"].as_str().unwrap())["status"], "completed");
    }
    assert_eq!((&remix["size"], &remix["seconds"]), (&parent["size"], &parent["seconds"]));
    server.post("/v1/videos/video_0/remix", &prompt).with(404);
    server.post(&format!("/v1/videos/{id}/remix"), &json!({})).with(400);
    for path in ["/v1/videos/extensions", "/v1/videos/characters"] {
        assert_eq!(server.post(path, &prompt).with(400).json()["error"]["code"], "unsupported_parameter");
    }
    server.get("/v1/videos/characters/x").with(404);
}

#[test]
fn requests_that_cannot_be_carried_out_are_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--model-alias", "sora-*=mini", "--max-frames", "40"]);
    let with = |name: &str, value: Value| {
        let mut clip = short("a");
        clip[name] = value;
        clip
    };
    for (name, value) in [
        ("model", json!("other")),
        ("size", json!("50x33")),
        ("num_frames", json!(41)),
        ("num_inference_steps", json!(0)),
        ("boundary_ratio", json!(0.1)),
        ("lora", json!({"a": 1})),
        ("prompt", json!("")),
        ("flow_shift", json!(-1)),
        ("unheard_of", json!(1)),
    ] {
        let error = server.post("/v1/videos", &with(name, value)).with(400).json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(["invalid_request_error"].contains(&error["type"].as_str().unwrap()));
        assert_eq!(error["param"], name, "{error}");
    }
    server.post("/v1/videos", &with("model", json!("sora-2"))).with(200);
    let listed = server.post("/v1/videos", &with("model", json!("other"))).json();
    assert!(listed["error"]["message"].as_str().unwrap().contains("this server has mini"), "{listed}");
    for body in ["", "{", "[]", "null"] {
        server.send("POST", "/v1/videos", &[("content-type", "application/json")], body.as_bytes()).with(400);
    }
    server.send("POST", "/v1/videos", &[("content-type", "text/plain")], b"x").with(415);
    server.send("PUT", "/v1/videos", &[], b"x").with(405);
    server.get("/v1/nothing").with(404);
}
