//! Pictures that clients upload, and what is drawn on clips.

use super::short;
use serde_json::{Value, json};
use std::io::Cursor;
use tests::served::{Answer, Server, token};

/// A picture of one colour as a PNG file.
fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb([255, 0, 0]));
    let mut file = Cursor::new(Vec::new());
    picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

/// The parts of a form by name.
type Texts<'a> = Vec<(&'a str, String)>;

/// Posts a form with texts and then a file.
pub(super) fn post_file(
    server: &Server,
    path: &str,
    token: Option<&str>,
    texts: &[(&str, &str)],
    name: &str,
    file: &[u8],
) -> Answer {
    let mut form = Vec::new();
    for (name, value) in texts {
        let part = format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        form.extend_from_slice(part.as_bytes());
    }
    let head = format!("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"{name}\"\r\n\r\n");
    form.extend_from_slice(head.as_bytes());
    form.extend_from_slice(file);
    form.extend_from_slice(b"\r\n--b--\r\n");
    let bearer = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![("content-type", "multipart/form-data; boundary=b")];
    headers.extend(bearer.as_ref().map(|bearer| ("authorization", &**bearer)));
    server.send("POST", path, &headers, &form)
}

fn get(server: &Server, token: &str, path: &str) -> Answer {
    server.send("GET", path, &[("authorization", &*format!("Bearer {token}"))], &[])
}

#[test]
fn pictures_are_kept_for_their_token_and_other_files_are_refused_by_name() {
    let data = tempfile::tempdir().unwrap();
    let [alice, bob] = ["alice", "bob"].map(|name| token(data.path(), name, &[]));
    let server = Server::start(data.path(), &[]);
    post_file(&server, "/v1/uploads", None, &[], "a.png", &png(8, 8)).with(401);
    let made = post_file(&server, "/v1/uploads", Some(&alice), &[], "dir/a.png", &png(8, 6)).with(200).json();
    assert_eq!(
        (&made["object"], &made["kind"], &made["filename"], &made["width"], &made["height"]),
        (&json!("upload"), &json!("picture"), &json!("a.png"), &json!(8), &json!(6))
    );
    assert_eq!(made["expires_at"].as_u64(), made["created_at"].as_u64().map(|created| created + 86_400));
    let path = format!("/v1/uploads/{}", made["id"].as_str().unwrap());
    assert_eq!(get(&server, &alice, &path).with(200).json(), made);
    assert_eq!(get(&server, &alice, "/v1/uploads").json()["data"], json!([made]));
    get(&server, &bob, &path).with(404);
    assert_eq!(get(&server, &bob, "/v1/uploads").json()["data"], json!([]));
    for (file, status, word) in [
        (&b"\0\0\0\x18ftypmp42"[..], 415, "videos cannot be uploaded"),
        (b"RIFF....WAVEfmt ", 400, "the sound cannot be read"),
        (b"ID3\x04", 415, "MP3 sounds are not read: convert it to WAV"),
        (b"<svg/>", 415, "PNG, JPEG or WebP"),
        (&png(8, 8)[..40], 400, "cannot be read"),
        (&png(8193, 1), 400, "8192 pixels a side"),
    ] {
        let error = post_file(&server, "/v1/uploads", Some(&alice), &[], "x", file).with(status).json();
        assert!(error["error"]["message"].as_str().unwrap().contains(word), "{error}");
    }
    // Pictures of other servers need an operator who allows it.
    let bearer = format!("Bearer {alice}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    for (body, word) in
        [("{\"url\": \"https://example.com/a.png\"}", "not allowed"), ("{}", "`url` is missing")]
    {
        let error = server.send("POST", "/v1/uploads", &headers, body.as_bytes()).with(400).json();
        assert!(error["error"]["message"].as_str().unwrap().contains(word), "{error}");
    }
    let huge = vec![0; (64 << 20) + 1];
    post_file(&server, "/v1/uploads", Some(&alice), &[], "x", &huge).with(413);
    let gone = server.send("DELETE", &path, &[("authorization", &*format!("Bearer {alice}"))], &[]).with(200);
    assert_eq!(gone.json()["object"], "upload.deleted");
    get(&server, &alice, &path).with(404);
    server.send("POST", "/v1/uploads", &[("content-type", "application/json")], b"{}").with(401);
}

#[test]
fn a_policy_allows_one_file_without_a_token() {
    let data = tempfile::tempdir().unwrap();
    let [alice, bob] = ["alice", "bob"].map(|name| token(data.path(), name, &[]));
    let server = Server::start(data.path(), &["--model-alias", "wan2.2-*=mini"]);
    let policy = |token: &str| {
        let path = "/api/v1/uploads?action=getPolicy&model=wan2.2-t2v-plus";
        get(&server, token, path).with(200).json()["data"].clone()
    };
    let send = |policy: &Value, change: &dyn Fn(&mut Texts<'_>)| {
        let text = |name: &str| policy[name].as_str().unwrap().to_owned();
        let mut texts = vec![
            ("OSSAccessKeyId", text("oss_access_key_id")),
            ("Signature", text("signature")),
            ("policy", text("policy")),
            ("key", text("upload_dir") + "/logo.png"),
            ("x-oss-object-acl", text("x_oss_object_acl")),
            ("success_action_status", "200".to_owned()),
        ];
        change(&mut texts);
        let texts: Vec<(&str, &str)> = texts.iter().map(|(name, value)| (*name, &**value)).collect();
        post_file(&server, &text("upload_host"), None, &texts, "logo.png", &png(4, 4))
    };
    let given = policy(&alice);
    assert_eq!((&given["max_file_size_mb"], &given["capacity_limit_mb"]), (&json!(64), &json!(1024)));
    for (name, value) in
        [("Signature", "x"), ("policy", "e30="), ("OSSAccessKeyId", "x"), ("key", "uploads/x")]
    {
        let change = |texts: &mut Texts<'_>| {
            texts.iter_mut().find(|(known, _)| *known == name).unwrap().1 = value.to_owned();
        };
        send(&given, &change).with(403);
    }
    send(&given, &|texts| texts.retain(|(name, _)| *name != "policy")).with(400);
    let made = send(&given, &|_| {}).with(200).json();
    assert_eq!(send(&given, &|_| {}).with(409).json()["error"]["code"], "policy_used");
    assert_eq!(get(&server, &alice, "/v1/uploads").json()["data"], json!([made]));
    assert_eq!(get(&server, &bob, "/v1/uploads").json()["data"], json!([]));
    let fault = get(&server, &alice, "/api/v1/uploads?action=other&model=wan2.2-x").with(400).json();
    assert_eq!(fault["code"], "InvalidParameter");
    get(&server, &alice, "/api/v1/uploads?action=getPolicy&model=unknown").with(400);
    server.get("/api/v1/uploads?action=getPolicy&model=mini").with(401);
    // What a model cannot use is refused by its name, as before.
    let body = json!({"model": "wan2.2-x", "input": {"prompt": "a", "img_url": "oss://uploads/x/logo.png"}});
    let bearer = format!("Bearer {alice}");
    let headers = [("content-type", "application/json"), ("authorization", &*bearer)];
    let create = "/api/v1/services/aigc/video-generation/video-synthesis";
    let fault = server.send("POST", create, &headers, body.to_string().as_bytes()).with(400).json();
    assert!(fault["message"].as_str().unwrap().contains("img_url"), "{fault}");
    let log = server.log();
    assert!(!log.contains(given["signature"].as_str().unwrap()), "{log}");
}

#[test]
fn captions_and_a_logo_are_drawn_on_a_clip_and_its_remix() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), &[]);
    let upload = |width| {
        let made = post_file(&server, "/v1/uploads", None, &[], "logo.png", &png(width, 8)).with(200).json();
        made["id"].as_str().unwrap().to_owned()
    };
    let (logo, wide) = (upload(16), upload(200));
    let with = |post: Value| {
        let mut clip = short("a red ball");
        clip["size"] = json!("96x64");
        clip["output_format"] = json!("webp");
        clip["post"] = post;
        clip
    };
    for (post, param, word) in [
        (json!({"captions": "heil hitler"}), "captions", "category hate"),
        (json!({"captions": "  "}), "post", "no visible character"),
        (json!({"captions": "word ".repeat(150)}), "post", "does not fit"),
        (json!({"logo": {"upload": wide}}), "post", "larger than the clip"),
        (json!({"logo": {"upload": "upload_0"}}), "post.logo", "no such upload"),
        (json!({"logo": {"upload": "/etc/passwd"}}), "post.logo", "no such upload"),
        (json!({"audio": logo}), "audio", "cannot be used"),
    ] {
        let error = server.post("/v1/videos", &with(post.clone())).with(400).json()["error"].clone();
        assert_eq!(error["param"], param, "{post}: {error}");
        let message = error["message"].as_str().unwrap();
        assert!(
            message.contains(word) && !message.contains(data.path().to_str().unwrap()),
            "{post}: {error}"
        );
    }
    let post =
        json!({"captions": [{"text": "hi", "end": 1}], "logo": {"upload": logo, "corner": "top-left"}});
    let plain = server.post("/v1/videos", &with(Value::Null)).with(200).json();
    let drawn = server.post("/v1/videos", &with(post.clone())).with(200).json();
    // The clip keeps the logo.
    server.send("DELETE", &format!("/v1/uploads/{logo}"), &[], &[]).with(200);
    let download = |video: &Value| {
        let id = video["id"].as_str().unwrap();
        assert_eq!(server.ended(id)["status"], "completed", "{}", server.log());
        let file = server.get(&format!("/v1/videos/{id}/content")).with(200).body;
        // The first picture of the WebP animation, where the logo is.
        image::load_from_memory(&file).unwrap().into_rgb8().get_pixel(8, 6).0
    };
    let is_red = |[red, green, blue]: [u8; 3]| red > 200 && green < 90 && blue < 90;
    let (before, after) = (download(&plain), download(&drawn));
    assert!(!is_red(before) && is_red(after), "{before:?} {after:?}");
    // A remix has a logo of its own, also when the first clip is deleted before it is made.
    let id = drawn["id"].as_str().unwrap();
    let remix = server.post(&format!("/v1/videos/{id}/remix"), &json!({"prompt": "a blue ball"})).with(200);
    server.send("DELETE", &format!("/v1/videos/{id}"), &[], &[]).with(200);
    let remixed = download(&remix.json());
    assert!(is_red(remixed), "{remixed:?}");
    let form = json!({"prompt": "a boat", "resolution": "96x64", "duration": 0.5, "seed": 7, "post": {"captions": "a"}});
    let made = server.post("/wan2.2/t2v/generate", &form).with(200).json();
    assert_eq!(server.ended(made["task_id"].as_str().unwrap())["status"], "completed");
}
