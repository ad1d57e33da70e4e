//! Starting, ending, and what is there after it.

use super::{long, short};
use serde_json::json;
use tests::program::rushes;
use tests::served::{Server, token};

#[test]
fn a_server_says_what_it_can_do_and_that_it_lives() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--model-alias", "wan2.2-*=mini"]);
    let capabilities = server.get("/v1/capabilities").with(200).json();
    let model = &capabilities["models"][0];
    assert_eq!(
        (&model["name"], &model["inputs"], &model["steps"]),
        (&json!("mini"), &json!(["text"]), &json!(20))
    );
    assert_eq!(capabilities["aliases"], json!(["wan2.2-*=mini"]));
    for path in ["/healthz", "/readyz"] {
        server.get(path).with(200);
    }
    let description = server.get("/openapi.json").with(200).json();
    for path in ["/v1/videos", "/v1/videos/{id}/content", "/v1/capabilities"] {
        assert!(description["paths"][path].is_object(), "{path}");
    }
}

#[test]
fn a_server_that_is_ended_goes_on_with_its_jobs_when_it_starts_again() {
    let data = tempfile::tempdir().unwrap();
    let mut server = Server::start(data.path(), &[]);
    let running = server.post("/v1/videos", &long("a slow ship")).with(200).json();
    let waiting = server.post("/v1/videos", &short("a red ball")).with(200).json();
    let (running, waiting) = (running["id"].as_str().unwrap(), waiting["id"].as_str().unwrap());
    server.until(running, |video| video["progress"].as_u64() > Some(5));
    assert!(server.stop(), "{}", server.log());
    let server = Server::start(data.path(), &[]);
    let before = server.get(&format!("/v1/videos/{running}")).with(200).json();
    assert_eq!(before["prompt"], "a slow ship");
    let after = server.until(running, |video| video["progress"].as_u64() > Some(5));
    assert_ne!(after["status"], "failed");
    // The other one does not have to wait for the rest of it.
    server.send("DELETE", &format!("/v1/videos/{running}"), &[], &[]).with(200);
    assert_eq!(server.ended(waiting)["status"], "completed");
}

#[test]
fn others_are_not_served_without_tokens() {
    let data = tempfile::tempdir().unwrap();
    let serve = || {
        let mut command = rushes(data.path());
        command.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(data.path()).output().unwrap()
    };
    let refused = serve();
    let text =
        String::from_utf8_lossy(&refused.stdout).into_owned() + &String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && text.contains("there are no tokens"), "{text}");
}

#[test]
fn tokens_are_listed_and_revoked() {
    let data = tempfile::tempdir().unwrap();
    token(data.path(), "alice", &["--max-jobs", "2"]);
    let run = |arguments: &[&str]| {
        let mut command = rushes(data.path());
        let output = command
            .args(["serve", "token"])
            .args(arguments)
            .arg("--data-dir")
            .arg(data.path())
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    assert_eq!(run(&["list"]), (true, "alice\n".to_owned()));
    assert!(!run(&["add", "alice"]).0 && !run(&["revoke", "bob"]).0);
    assert!(run(&["revoke", "alice"]).0);
    assert_eq!(run(&["list"]), (true, "there are no tokens\n".to_owned()));
}
