//! Finished clips that answer later requests.

use super::short;
use serde_json::{Value, json};
use std::time::Instant;
use tests::served::{Answer, Server, token};

fn is_cached(answer: &Answer) -> bool {
    answer.header("rushes-result") == Some("cached")
}

#[test]
fn a_finished_clip_is_the_answer_to_the_same_request_if_that_is_allowed() {
    let data = tempfile::tempdir().unwrap();
    let tokens = ["alice", "bob"].map(|name| format!("Bearer {}", token(data.path(), name, &[])));
    let server = Server::start(data.path(), &["--result-cache"]);
    let post = |who: usize, body: &Value, more: &[(&str, &str)]| {
        let headers = [("content-type", "application/json"), ("authorization", &*tokens[who])];
        server.send("POST", "/v1/videos", &[&headers, more].concat(), body.to_string().as_bytes()).with(200)
    };
    let show = |who: usize, method: &str, id: &str| {
        server.send(method, &format!("/v1/videos/{id}"), &[("authorization", &*tokens[who])], &[]).with(200)
    };
    let ended = |who: usize, answer: &Answer| {
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        let began = Instant::now();
        while show(who, "GET", &id).json()["status"] != "completed" {
            assert!(began.elapsed().as_secs() < 120, "{}", server.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        id
    };
    let clip = short("a red ball");
    let first = post(0, &clip, &[]);
    assert!(!is_cached(&first));
    let id = ended(0, &first);
    let again = post(0, &clip, &[]);
    assert!(is_cached(&again));
    assert_eq!((&again.json()["id"], &again.json()["status"]), (&json!(id), &json!("completed")));
    assert!(server.log().contains("is answered with a clip that was made before"));
    // The default, said aloud.
    let mut same = clip.clone();
    same["model"] = json!("mini");
    assert!(is_cached(&post(0, &same, &[])));
    // What differs, or must be a clip of its own.
    for (name, value) in [("seed", json!(8)), ("seed", json!(null)), ("num_inference_steps", json!(3))] {
        let mut other = clip.clone();
        other[name] = value;
        assert!(!is_cached(&post(0, &other, &[])), "{name}");
    }
    let mut captioned = clip.clone();
    captioned["post"] = json!({"captions": "x"});
    assert!(!is_cached(&post(0, &captioned, &[])));
    let keyed = [("idempotency-key", "k")];
    let own = post(0, &clip, &keyed);
    assert!(!is_cached(&own) && own.json()["id"] != json!(id));
    ended(0, &own);
    // Another token.
    let of_bob = post(1, &clip, &[]);
    assert!(!is_cached(&of_bob));
    assert!(is_cached(&{
        ended(1, &of_bob);
        post(1, &clip, &[])
    }));
    // Deleted clips are gone.
    for id in [&id, own.json()["id"].as_str().unwrap()] {
        show(0, "DELETE", id);
    }
    assert!(!is_cached(&post(0, &clip, &[])));
    drop(server);

    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let first = server.post("/v1/videos", &clip).with(200).json();
    server.ended(first["id"].as_str().unwrap());
    let second = server.post("/v1/videos", &clip).with(200);
    assert!(!is_cached(&second) && second.json()["id"] != first["id"]);
}
