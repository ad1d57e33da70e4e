//! What is refused, and to whom.

use super::{long, short};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tests::program::rushes;
use tests::served::{Answer, Server, token};

const JSON: (&str, &str) = ("content-type", "application/json");

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn post(server: &Server, token: &str, path: &str, more: &[(&str, &str)], body: &Value) -> Answer {
    let bearer = bearer(token);
    let headers = [&[JSON, ("authorization", &*bearer)], more].concat();
    server.send("POST", path, &headers, body.to_string().as_bytes())
}

fn get(server: &Server, token: &str, path: &str) -> Answer {
    server.send("GET", path, &[("authorization", &*bearer(token))], &[])
}

#[test]
fn tokens_are_needed_stored_as_digests_and_revoked_at_once() {
    let data = tempfile::tempdir().unwrap();
    let alice = token(data.path(), "alice", &[]);
    let server = Server::start(data.path(), &[]);
    assert_eq!(server.get("/v1/videos").with(401).header("www-authenticate"), Some("Bearer"));
    let wrong = format!("{alice}x");
    for value in ["Bearer x", "Bearer ", "Basic eDp5", "x", &format!("Bearer {wrong}"), &alice] {
        let answer = server.send("GET", "/v1/videos", &[("authorization", value)], &[]).with(401).json();
        assert_eq!(answer["error"]["type"], "authentication_error");
    }
    let dashscope = server.get("/api/v1/tasks").with(401).json();
    assert_eq!(dashscope["code"], "InvalidApiKey");
    get(&server, &alice, "/v1/videos").with(200);
    for entry in ["tokens.json", "log", "link-keys.json"] {
        let text = std::fs::read_to_string(data.path().join(entry)).unwrap();
        assert!(!text.contains(&alice[8..]), "{entry}");
    }
    // Signs of life need none.
    server.get("/healthz").with(200);
    server.get("/metrics").with(401);
    get(&server, &alice, "/metrics").with(200);
    let revoked = rushes(data.path())
        .args(["serve", "token", "revoke", "alice", "--data-dir"])
        .arg(data.path())
        .output();
    assert!(revoked.unwrap().status.success());
    let bob = token(data.path(), "bob", &[]);
    get(&server, &alice, "/v1/videos").with(401);
    get(&server, &bob, "/v1/videos").with(200);
}

#[test]
fn a_token_sees_its_own_jobs_only_and_may_have_so_many() {
    let data = tempfile::tempdir().unwrap();
    let (alice, bob) = (token(data.path(), "alice", &["--max-jobs", "1"]), token(data.path(), "bob", &[]));
    let server = Server::start(data.path(), &[]);
    let created = post(&server, &alice, "/v1/videos", &[], &long("a ship")).with(200).json();
    let id = created["id"].as_str().unwrap();
    let limited = post(&server, &alice, "/v1/videos", &[], &short("a")).with(429);
    assert!(limited.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
    for path in ["", "/content", "/events"] {
        get(&server, &bob, &format!("/v1/videos/{id}{path}")).with(404);
    }
    get(&server, &bob, &format!("/api/v1/tasks/{id}")).with(404);
    post(&server, &bob, &format!("/api/v1/tasks/{id}/cancel"), &[], &json!({})).with(404);
    post(&server, &bob, &format!("/v1/videos/{id}/remix"), &[], &json!({"prompt": "a"})).with(404);
    server.send("DELETE", &format!("/v1/videos/{id}"), &[("authorization", &*bearer(&bob))], &[]).with(404);
    assert_eq!(get(&server, &bob, "/v1/videos").json()["data"], json!([]));
    assert_eq!(get(&server, &bob, "/api/v1/tasks").json()["total"], json!(0));
    assert_eq!(get(&server, &alice, "/v1/videos").json()["data"].as_array().unwrap().len(), 1);
    server.send("DELETE", &format!("/v1/videos/{id}"), &[("authorization", &*bearer(&alice))], &[]).with(200);
    get(&server, &alice, &format!("/v1/videos/{id}")).with(404);
    // The place is free again.
    post(&server, &alice, "/v1/videos", &[], &short("a")).with(200);
}

#[test]
fn idempotency_keys_belong_to_a_token_and_a_body() {
    let data = tempfile::tempdir().unwrap();
    let (alice, bob) = (token(data.path(), "alice", &[]), token(data.path(), "bob", &[]));
    let mut server = Server::start(data.path(), &[]);
    let key = [("idempotency-key", "k1")];
    let id = |answer: Answer| answer.with(200).json()["id"].clone();
    let first = id(post(&server, &alice, "/v1/videos", &key, &short("a")));
    assert_eq!(id(post(&server, &alice, "/v1/videos", &key, &short("a"))), first);
    let reused = post(&server, &alice, "/v1/videos", &key, &short("b")).with(409).json();
    assert_eq!(reused["error"]["code"], "idempotency_key_reused");
    assert_ne!(id(post(&server, &bob, "/v1/videos", &key, &short("a"))), first);
    assert_ne!(id(post(&server, &alice, "/v1/videos", &[("idempotency-key", "k2")], &short("a"))), first);
    // Also after a kill.
    server.kill();
    let server = Server::start(data.path(), &[]);
    assert_eq!(id(post(&server, &alice, "/v1/videos", &key, &short("a"))), first);
    post(&server, &alice, "/v1/videos", &key, &short("b")).with(409);
}

#[test]
fn without_tokens_only_pages_and_names_of_this_machine_are_served() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let body = short("a").to_string();
    for host in ["evil.example", "localhost.evil.example", "192.168.0.1", "127.0.0.1.nip.io"] {
        server.send("GET", "/v1/videos", &[("host", host)], &[]).with(403);
    }
    let port = server.address.port();
    server.send("GET", "/v1/videos", &[("host", &*format!("localhost:{port}"))], &[]).with(200);
    let own = format!("http://127.0.0.1:{port}");
    for (headers, status) in [
        (&[("origin", "http://evil.example")][..], 403),
        (&[("origin", "null")], 403),
        (&[("sec-fetch-site", "cross-site")], 403),
        (&[("sec-fetch-site", "same-site")], 403),
        (&[("origin", &*own), ("sec-fetch-site", "cross-site")], 403),
        (&[("origin", &*own), ("sec-fetch-site", "same-origin")], 200),
        (&[("sec-fetch-site", "none")], 200),
        (&[], 200),
    ] {
        let headers = [&[JSON], headers].concat();
        server.send("POST", "/v1/videos", &headers, body.as_bytes()).with(status);
    }
    // What a page of another origin may send without asking first.
    let form = ("content-type", "text/plain");
    server.send("POST", "/v1/videos", &[form, ("origin", "http://evil.example")], body.as_bytes()).with(403);
    let read = server.send("GET", "/v1/videos", &[("origin", "http://evil.example")], &[]);
    assert!(read.header("access-control-allow-origin").is_none());
    let preflight = [("origin", "http://evil.example"), ("access-control-request-method", "POST")];
    assert!(
        server.send("OPTIONS", "/v1/videos", &preflight, &[]).header("access-control-allow-origin").is_none()
    );
}

#[test]
fn pages_of_an_origin_that_was_named_may_use_the_server() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--cors", "https://app.example"]);
    let origin = ("origin", "https://app.example");
    let preflight = server
        .send("OPTIONS", "/v1/videos", &[origin, ("access-control-request-method", "POST")], &[])
        .with(204);
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://app.example"));
    let sent =
        server.send("POST", "/v1/videos", &[JSON, origin], short("a").to_string().as_bytes()).with(200);
    assert_eq!(sent.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(sent.header("access-control-allow-credentials").is_none());
    let other = server.send("GET", "/v1/videos", &[("origin", "https://app.example.evil")], &[]);
    assert!(other.header("access-control-allow-origin").is_none());
}

#[test]
fn a_browser_signs_in_with_a_cookie_that_writes_from_its_own_pages_only() {
    let data = tempfile::tempdir().unwrap();
    let alice = token(data.path(), "alice", &[]);
    let server = Server::start(data.path(), &["--public-url", "https://video.example"]);
    let sign_in = json!({"token": alice}).to_string();
    server.send("POST", "/v1/session", &[JSON], json!({"token": "x"}).to_string().as_bytes()).with(401);
    server
        .send("POST", "/v1/session", &[JSON, ("origin", "https://evil.example")], sign_in.as_bytes())
        .with(403);
    let answer = server
        .send("POST", "/v1/session", &[JSON, ("origin", "https://video.example")], sign_in.as_bytes())
        .with(200);
    let set = answer.header("set-cookie").unwrap();
    for attribute in ["HttpOnly", "SameSite=Strict", "Secure", "Path=/"] {
        assert!(set.contains(attribute), "{set}");
    }
    assert!(!set.contains(&alice[8..]));
    let cookie = ("cookie", set.split(';').next().unwrap());
    server.send("GET", "/v1/videos", &[cookie], &[]).with(200);
    let body = short("a").to_string();
    let write = |more: &[(&str, &str)]| {
        server.send("POST", "/v1/videos", &[&[JSON, cookie], more].concat(), body.as_bytes()).status
    };
    assert_eq!(write(&[("origin", "https://video.example")]), 200);
    assert_eq!(write(&[("sec-fetch-site", "same-origin")]), 200);
    for foreign in [
        &[][..],
        &[("origin", "https://evil.example")],
        &[("sec-fetch-site", "same-site")],
        &[("sec-fetch-site", "none")],
    ] {
        assert_eq!(write(foreign), 403, "{foreign:?}");
    }
    server.send("GET", "/v1/videos", &[("cookie", "rushes_session=a.9999999999.b.c")], &[]).with(401);
    let out =
        server.send("DELETE", "/v1/session", &[cookie, ("origin", "https://video.example")], &[]).with(204);
    assert!(out.header("set-cookie").unwrap().contains("Max-Age=0"));
}

#[test]
fn links_are_for_one_file_and_built_from_the_public_address() {
    let data = tempfile::tempdir().unwrap();
    let alice = token(data.path(), "alice", &[]);
    let server = Server::start(data.path(), &["--public-url", "https://video.example/v"]);
    let forged =
        [("host", "evil.example"), ("x-forwarded-host", "evil.example"), ("forwarded", "host=evil.example")];
    let body = json!({"prompt": "a red ball", "resolution": "48x32", "duration": 0.5, "seed": 7});
    let made = post(&server, &alice, "/wan2.2/t2v/generate", &forged, &body).with(200).json();
    let link = made["video_url"].as_str().unwrap();
    let path = link.strip_prefix("https://video.example/v").unwrap();
    let early = server.get(path).with(202);
    assert!(early.header("retry-after").is_some());
    let whole = server.send("GET", path, &[("prefer", "wait=100")], &[]).with(200);
    assert_eq!(&whole.body[4..8], b"ftyp");
    for (name, value) in [
        ("cache-control", "private"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(whole.header(name), Some(value));
    }
    assert_eq!(server.send("GET", path, &[("range", "bytes=0-3")], &[]).with(206).body.len(), 4);
    server.send("HEAD", path, &[], &[]).with(200);
    let status = made["status_url"].as_str().unwrap().strip_prefix("https://video.example/v").unwrap();
    assert_eq!(server.get(status).with(200).json()["status"], "completed");
    for wrong in [
        path.replace("/video?", "/status?"),
        path.replace("expires=", "expires=9"),
        path.replace("signature=", "signature=A"),
        path.replace("key=", "key=0"),
        path.split('?').next().unwrap().to_owned(),
    ] {
        let answer = server.get(&wrong);
        assert!(matches!(answer.status, 400 | 403), "{wrong}: {}", answer.status);
    }
    server.send("POST", path, &[], b"x").with(405);
    let signature = path.split("signature=").nth(1).unwrap();
    assert!(!server.log().contains(signature) && !server.log().contains("expires="), "{}", server.log());
    let id = made["task_id"].as_str().unwrap();
    server.send("DELETE", &format!("/v1/videos/{id}"), &[("authorization", &*bearer(&alice))], &[]).with(200);
    server.get(path).with(404);
}

#[test]
fn bodies_headers_and_slow_clients_have_limits() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let large = json!({"prompt": "x".repeat(2 << 20)}).to_string();
    let text = ("content-type", "text/plain");
    // What is refused before it has been read is answered all the same.
    for _ in 0..8 {
        server.send("POST", "/v1/videos", &[JSON], large.as_bytes()).with(413);
        server.send("POST", "/v1/videos", &[text], large.as_bytes()).with(415);
        server.send("POST", "/v1/nothing", &[JSON], large.as_bytes()).with(404);
        server.send("PUT", "/v1/videos", &[JSON], large.as_bytes()).with(405);
        server
            .send("POST", "/v1/videos", &[JSON, ("origin", "http://elsewhere")], large.as_bytes())
            .with(403);
    }
    // Neither the answer nor its end waits for a rest that never comes.
    let head = "POST /v1/nothing HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n";
    let answer = server.raw(head.as_bytes());
    assert!(answer.starts_with(b"HTTP/1.1 404"), "{}", String::from_utf8_lossy(&answer));
    let long_header =
        format!("GET /healthz HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let answer = server.raw(long_header.as_bytes());
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    // A client that never ends its headers is dropped, and one that sends no body is answered.
    let began = Instant::now();
    let mut slow = TcpStream::connect(server.address).unwrap();
    slow.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n").unwrap();
    let stalled = server.raw(
        b"POST /v1/videos HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
          content-length: 100\r\nconnection: close\r\n\r\n{",
    );
    assert!(stalled.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&stalled));
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(began.elapsed() < Duration::from_secs(59), "it was not dropped");
    for wrong in ["nonsense\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let answer = server.raw(wrong.as_bytes());
        assert!(
            answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"),
            "{}",
            String::from_utf8_lossy(&answer)
        );
    }
    server.get("/healthz").with(200);
}

#[test]
fn requests_beyond_the_bound_of_the_queue_come_back_later() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &["--max-queue", "2"]);
    server.post("/v1/videos", &long("a")).with(200);
    server.post("/v1/videos", &long("b")).with(200);
    let full = server.post("/v1/videos", &long("c")).with(429);
    assert!(full.header("retry-after").is_some() && full.json()["error"]["type"] == "rate_limit_error");
}

#[test]
fn paths_of_the_machine_are_neither_taken_nor_told() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let with = |name: &str, value: &str| {
        let mut clip = short("a");
        clip[name] = json!(value);
        clip
    };
    for value in ["/etc/passwd", "../x", "noise.safetensors"] {
        let fault = server.post("/v1/videos/generations", &with("latent_path", value)).with(400).json();
        assert_eq!(fault["error"]["param"], "latent_path");
    }
    let fault =
        server.post("/v1/videos/generations", &with("response_format", "video_path")).with(400).json();
    assert_eq!(fault["error"]["param"], "response_format");
    // The spec of a job, as it is stored, is no request.
    for spec in [
        json!({"prompt": "a", "noise": {"path": "/etc/passwd"}}),
        json!({"prompt": "a", "bundle": "/etc"}),
        json!({"prompt": "a", "outputs": ["/tmp/x.mp4"]}),
    ] {
        assert_eq!(server.post("/v1/videos", &spec).with(400).json()["error"]["code"], "unknown_parameter");
    }
    for path in
        ["/v1/videos/..%2f..%2fetc%2fpasswd", "/v1/videos/..%2f..%2fetc%2fpasswd/content", "/media/../x"]
    {
        assert!(server.get(path).status >= 400, "{path}");
    }
}
