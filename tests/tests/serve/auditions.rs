//! Auditions: takes that are looked at, kept, given up and deleted.

use super::{id_of, pixels, short};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::served::{Answer, Server, token};

/// An audition of a moment.
fn brief(prompt: &str, takes: usize) -> Value {
    let mut audition = short(prompt);
    (audition["takes"], audition["steps_of"]) = (json!(takes), json!(2));
    audition
}

/// An audition whose takes are not complete before a test has looked at them.
fn slow(prompt: &str, takes: usize) -> Value {
    json!({
        "prompt": prompt, "size": "192x128", "num_frames": 33, "num_inference_steps": 200, "seed": 5,
        "takes": takes, "steps_of": 190
    })
}

fn keep(server: &Server, audition: &Value, number: usize) -> Answer {
    let path = format!("/v1/auditions/{}/takes/{number}/keep", id_of(audition));
    server.send("POST", &path, &[], &[])
}

/// The states of the takes.
fn states(audition: &Value) -> Vec<&str> {
    audition["takes"].as_array().unwrap().iter().map(|take| take["status"].as_str().unwrap()).collect()
}

/// Asks for an audition until it is as it should be. Returns it.
fn until(server: &Server, id: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let audition = server.get(&format!("/v1/auditions/{id}")).with(200).json();
        if is_right(&audition) {
            return audition;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{audition}: {}", server.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_closed(audition: &Value) -> bool {
    !states(audition).iter().any(|state| matches!(*state, "queued" | "in_progress"))
}

fn png(answer: &Answer) -> image::DynamicImage {
    assert_eq!(answer.header("content-type"), Some("image/png"));
    image::load_from_memory(&answer.body).unwrap()
}

/// What lists of videos and tasks have.
fn listed(server: &Server) -> (Vec<Value>, Value) {
    let videos = server.get("/v1/videos").with(200).json()["data"].as_array().unwrap().clone();
    let tasks = server.get("/api/v1/tasks").with(200).json();
    (videos.iter().map(|video| video["id"].clone()).collect(), tasks["total"].clone())
}

#[test]
fn a_take_is_chosen_on_the_sheet_and_becomes_the_video_of_its_seed() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let created = server.post("/v1/auditions", &brief("a red ball", 3)).with(200).json();
    let id = id_of(&created);
    assert_eq!(
        (&created["object"], &created["model"], &created["size"], &created["seconds"]),
        (&json!("audition"), &json!("mini"), &json!("48x32"), &json!("0.625"))
    );
    assert_eq!((&created["steps"], &created["steps_of"]), (&json!(4), &json!(2)));
    let seeds: Vec<_> = created["takes"].as_array().unwrap().iter().map(|take| &take["seed"]).collect();
    assert_eq!(seeds, [&json!(7), &json!(8), &json!(9)]);
    // A sheet is there from the beginning on.
    let before = png(&server.get(&format!("/v1/auditions/{id}/sheet")).with(200));
    let path = format!("/v1/auditions/{id}");
    let waited = server.send("GET", &path, &[("prefer", "wait=100")], &[]).with(200).json();
    assert_eq!((&waited["status"], &waited["progress"]), (&json!("completed"), &json!(100)), "{waited}");
    assert_eq!(states(&waited), ["completed"; 3], "{}", server.log());
    assert_eq!(server.get("/v1/auditions").with(200).json()["data"][0]["id"], created["id"]);
    assert_eq!(listed(&server), (vec![], json!(0)));
    let sheet = png(&server.get(waited["sheet_url"].as_str().unwrap()).with(200));
    assert_eq!((sheet.width(), sheet.height()), (before.width(), before.height()));
    assert!(sheet.to_rgb8() != before.to_rgb8());
    for take in waited["takes"].as_array().unwrap() {
        let number = &take["number"];
        let by_link = server.get(take["preview_url"].as_str().unwrap()).with(200);
        let by_route = server.get(&format!("{path}/takes/{number}/preview.png")).with(200);
        assert_eq!(by_link.body, by_route.body);
        assert_eq!((png(&by_link).width(), png(&by_link).height()), (48, 32));
        assert_eq!((&take["video_id"], &take["error"]), (&Value::Null, &Value::Null));
    }
    server.get(&format!("{path}/takes/4/preview.png")).with(404);

    let kept = keep(&server, &created, 2).with(200).json();
    assert_eq!((&kept["object"], &kept["seed"]), (&json!("video"), &json!(8)));
    let video = server.ended(id_of(&kept));
    assert_eq!(video["status"], "completed", "{video}: {}", server.log());
    assert_eq!(keep(&server, &created, 2).with(200).json(), video, "it is kept already");
    assert_eq!(listed(&server), (vec![kept["id"].clone()], json!(1)));
    let after = until(&server, id, is_closed);
    assert_eq!(states(&after), ["cancelled", "kept", "cancelled"]);
    assert_eq!((&after["status"], &after["takes"][1]["video_id"]), (&json!("completed"), &kept["id"]));
    let mut same = short("a red ball");
    same["seed"] = json!(8);
    let same = server.post("/v1/videos", &same).with(200).json();
    assert_eq!(server.ended(id_of(&same))["status"], "completed");
    assert!(pixels(&server, id_of(&kept)) == pixels(&server, id_of(&same)), "not the clip of its seed");

    // One that was given up can be kept, too.
    let second = keep(&server, &created, 3).with(200).json();
    assert_eq!(server.ended(id_of(&second))["status"], "completed");
    // What was kept outlives the audition.
    server.send("DELETE", &path, &[], &[]).with(200);
    server.get(&path).with(404);
    for video in [&kept, &second] {
        server.get(&format!("/v1/videos/{}/content", id_of(video))).with(200);
    }
    assert_eq!(server.get("/v1/auditions").json()["data"], json!([]));
    assert_eq!(listed(&server).0.len(), 3);
}

#[test]
fn a_take_that_is_being_made_can_be_kept_and_the_others_free_the_machine() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let created = server.post("/v1/auditions", &slow("a slow ship", 3)).with(200).json();
    let id = id_of(&created);
    let is_running = |take: &Value| take["status"] == "in_progress" && take["progress"].as_u64() > Some(0);
    let running = until(&server, id, |audition| audition["takes"].as_array().unwrap().iter().any(is_running));
    assert_eq!((&running["status"], is_closed(&running)), (&json!("in_progress"), false));
    let takes = running["takes"].as_array().unwrap();
    let number = takes.iter().position(is_running).unwrap() + 1;
    let early = server.get(&format!("/v1/auditions/{id}/takes/{number}/preview.png")).with(200);
    assert!(early.header("rushes-step").is_some_and(|step| step.parse::<u32>().is_ok()));
    assert_eq!((png(&early).width(), png(&early).height()), (192, 128));
    let video = keep(&server, &created, number).with(200).json();
    let after = until(&server, id, is_closed);
    assert_eq!(states(&after).iter().filter(|state| **state == "cancelled").count(), 2, "{after}");
    let video = server.until(id_of(&video), is_running);

    // A video that is deleted is no take any more.
    server.send("DELETE", &format!("/v1/videos/{}", id_of(&video)), &[], &[]).with(200);
    assert_eq!(until(&server, id, |_| true)["takes"].as_array().unwrap().len(), 2);
    keep(&server, &created, number).with(404);
    let next = server.post("/v1/videos", &short("a red ball")).with(200).json();
    assert_eq!(server.ended(id_of(&next))["status"], "completed");

    // Cancelling keeps what is there, and deleting does not.
    let second = server.post("/v1/auditions", &slow("a boat", 2)).with(200).json();
    let path = format!("/v1/auditions/{}", id_of(&second));
    server.send("POST", &format!("{path}/cancel"), &[], &[]).with(200);
    assert_eq!(until(&server, id_of(&second), is_closed)["status"], "failed");
    let third = server.post("/v1/auditions", &slow("a boat", 2)).with(200).json();
    server.send("DELETE", &format!("/v1/auditions/{}", id_of(&third)), &[], &[]).with(200);
    let next = server.post("/v1/videos", &short("a blue ball")).with(200).json();
    assert_eq!(server.ended(id_of(&next))["status"], "completed");
}

#[test]
fn auditions_and_what_was_kept_survive_a_kill() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let key = [("idempotency-key", "one"), ("content-type", "application/json")];
    let body = brief("a red ball", 3);
    let send = |server: &Server| {
        server.send("POST", "/v1/auditions", &key, body.to_string().as_bytes()).with(200).json()
    };
    let created = send(&server);
    assert_eq!(send(&server)["id"], created["id"]);
    let other = brief("a blue ball", 3).to_string();
    let refused = server.send("POST", "/v1/auditions", &key, other.as_bytes()).with(409).json();
    assert_eq!(refused["error"]["code"], "idempotency_key_reused");
    until(&server, id_of(&created), is_closed);
    let kept = keep(&server, &created, 3).with(200).json();
    let deleted = server.post("/v1/auditions", &brief("a boat", 2)).with(200).json();
    let first = keep(&server, &deleted, 1).with(200).json();
    server.send("DELETE", &format!("/v1/auditions/{}", id_of(&deleted)), &[], &[]).with(200);
    server.kill();

    let server = Server::start(data.path(), &[]);
    let found = send(&server);
    assert_eq!(found["id"], created["id"]);
    let unchanging = |audition: &Value| {
        ["prompt", "seconds", "size", "steps", "steps_of", "created_at"].map(|key| audition[key].clone())
    };
    assert_eq!(unchanging(&found), unchanging(&created));
    assert_eq!(states(&until(&server, id_of(&created), is_closed)), ["cancelled", "cancelled", "kept"]);
    assert_eq!(server.get("/v1/auditions").json()["data"].as_array().unwrap().len(), 1);
    server.get(&format!("/v1/auditions/{}", id_of(&deleted))).with(404);
    for video in [&kept, &first] {
        assert_eq!(server.ended(id_of(video))["status"], "completed");
    }
    assert_eq!(listed(&server).0.len(), 2);
}

#[test]
fn auditions_are_bounded_and_private() {
    let data = tempfile::tempdir().unwrap();
    let (alice, bob) = (token(data.path(), "alice", &["--max-jobs", "4"]), token(data.path(), "bob", &[]));
    let server = Server::start(data.path(), &["--max-queue", "6"]);
    let send = |token: &str, method: &str, path: &str, body: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", &*bearer), ("content-type", "application/json")];
        server.send(method, path, &headers, body.as_bytes())
    };
    let post = |token: &str, body: &Value| send(token, "POST", "/v1/auditions", &body.to_string());
    for (token, takes, message) in [(&alice, 5, "this token may have at most 4"), (&bob, 7, "at most 6 jobs")]
    {
        let error = post(token, &slow("a ship", takes)).with(400).json()["error"].clone();
        assert_eq!(error["param"], "takes");
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    }
    let made = post(&alice, &slow("a ship", 3)).with(200).json();
    let full = post(&alice, &slow("a ship", 2)).with(429);
    assert!(full.header("retry-after").is_some());
    post(&bob, &slow("a ship", 4)).with(429);
    let capabilities = send(&alice, "GET", "/v1/capabilities", "").with(200).json();
    assert_eq!(capabilities["auditions"], json!({"takes": 9, "most_takes": 6, "steps_of": 8}));

    let path = format!("/v1/auditions/{}", id_of(&made));
    for (method, rest) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/cancel"),
        ("GET", "/sheet"),
        ("GET", "/takes/1/preview.png"),
        ("POST", "/takes/1/keep"),
    ] {
        let answer = send(&bob, method, &format!("{path}{rest}"), "").with(404).json();
        assert_eq!(answer["error"]["message"], "there is no such audition");
    }
    assert_eq!(send(&bob, "GET", "/v1/auditions", "").with(200).json()["data"], json!([]));
    assert_eq!(send(&alice, "GET", "/v1/auditions", "").json()["data"][0]["id"], made["id"]);
    let link = made["sheet_url"].as_str().unwrap();
    assert_eq!(server.get(link).with(200).header("content-type"), Some("image/png"));
    server.get(&link.replace("sheet.png", "take-1.png")).with(403);

    for (change, param) in [
        (json!({"steps_of": 5}), "steps_of"),
        (json!({"seeds": [1, 1], "takes": null, "seed": null}), "seeds"),
        (json!({"callback_url": "https://a.example"}), "callback_url"),
        (json!({"size": "big"}), "size"),
    ] {
        let mut body = brief("a boat", 2);
        change.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        let error = post(&bob, &body).with(400).json();
        assert_eq!(error["error"]["param"], param, "{error}");
    }
    // The places are free again.
    send(&alice, "DELETE", &path, "").with(200);
    let began = Instant::now();
    while post(&alice, &brief("a boat", 4)).status != 200 {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", server.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}
