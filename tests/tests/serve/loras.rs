//! LoRAs that requests name.

use super::{id_of, pixels};
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use tests::golden;
use tests::served::Server;

/// A bundle with two experts, a folder of LoRAs for it, and the data of a server.
struct World(tempfile::TempDir);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let request =
            export::ExportRequest::new(&golden::case("two-experts").checkpoint(), &path.join("bundle"));
        export::export(&request, &mut |_| ()).unwrap();
        let loras = golden::folder().join("lora");
        std::fs::create_dir_all(path.join("loras")).unwrap();
        std::fs::create_dir(path.join("data")).unwrap();
        for name in ["lightning", "kohya", "full-deltas"] {
            let file = format!("{name}.safetensors");
            std::fs::copy(loras.join(&file), path.join("loras").join(&file)).unwrap();
            std::fs::copy(loras.join(&file), path.join(format!("outside-{file}"))).unwrap();
        }
        symlink(path.join("outside-kohya.safetensors"), path.join("loras/link.safetensors")).unwrap();
        std::fs::write(path.join("loras/damaged.safetensors"), "x").unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn server(&self, more: &[&str]) -> Server {
        let bundle = format!("two={}", self.path("bundle").display());
        Server::start(&self.path("data"), &[&["--bundle", &bundle], more].concat())
    }

    fn with_loras(&self) -> Server {
        self.server(&["--lora-dir", self.path("loras").to_str().unwrap()])
    }

    /// The bundles with LoRAs that are kept.
    fn kept(&self) -> usize {
        std::fs::read_dir(self.path("bundle/loras")).map_or(0, |found| found.count())
    }
}

fn clip(change: &[(&str, Value)]) -> Value {
    let mut clip =
        json!({"prompt": "a boat", "size": "32x32", "num_frames": 5, "num_inference_steps": 4, "seed": 7});
    for (name, value) in change {
        clip[*name] = value.clone();
    }
    clip
}

/// Makes a clip. Returns it, and the record of its job.
fn made(server: &Server, clip: &Value) -> (Value, Value) {
    let video = server.post("/v1/videos", clip).with(200).json();
    let video = server.ended(id_of(&video));
    assert_eq!(video["status"], "completed", "{video}: {}", server.log());
    let spec = spec_of(server, id_of(&video));
    (video, spec)
}

/// What determines a clip, as its job has stored it.
fn spec_of(server: &Server, id: &str) -> Value {
    let jobs = server.data.join("queue/jobs");
    let is_meant = |folder: &PathBuf| {
        let ticket = std::fs::read_to_string(folder.join("http.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&ticket).is_ok_and(|ticket| ticket["id"] == id)
    };
    let mut folders = std::fs::read_dir(jobs).unwrap().map(|entry| entry.unwrap().path());
    let folder = folders.find(is_meant).expect("the folder of the job");
    serde_json::from_str(&std::fs::read_to_string(folder.join("run/job.json")).unwrap()).unwrap()
}

#[test]
fn a_lora_changes_the_clip_and_is_part_of_it() {
    let world = World::new();
    let server = world.with_loras();
    let capabilities = server.get("/v1/capabilities").with(200).json();
    assert_eq!(capabilities["loras"], json!(["damaged", "full-deltas", "kohya", "lightning"]));
    let (plain, spec) = made(&server, &clip(&[]));
    assert!(plain.get("loras").is_none() && spec["loras"].is_null(), "{plain} {spec}");
    let plain = pixels(&server, id_of(&plain));

    // As sglang, with a strength, on one expert.
    let on_high = json!([{"nickname": "x", "path": "lightning", "target": "transformer", "strength": 0.8}]);
    let (changed, spec) = made(&server, &clip(&[("loras", on_high.clone())]));
    assert_eq!(changed["loras"], json!([{"name": "lightning", "strength": 0.8, "expert": "high_noise"}]));
    assert_eq!(spec["loras"].as_array().unwrap().len(), 1, "{spec}");
    assert_eq!(
        (&spec["loras"][0]["expert"], &spec["loras"][0]["file"]["name"], &spec["loras"][0]["strength"]),
        (&json!("high_noise"), &json!("lightning.safetensors"), &json!(0.8))
    );
    let high = pixels(&server, id_of(&changed));
    assert_ne!(high, plain);

    // As vLLM-Omni in a form, on every expert.
    let lora = json!({"name": "any", "local_path": "lightning.safetensors", "scale": 0.8, "int_id": 1});
    let (changed, spec) = made(&server, &clip(&[("lora", json!(lora.to_string()))]));
    assert_eq!(spec["loras"].as_array().unwrap().len(), 2, "{spec}");
    let both = pixels(&server, id_of(&changed));
    assert!(both != plain && both != high);
    assert_eq!(world.kept(), 2);

    // The same again, and one that changes nothing.
    let (again, _) = made(&server, &clip(&[("loras", on_high)]));
    assert_eq!(pixels(&server, id_of(&again)), high);
    let (nothing, _) = made(&server, &clip(&[("lora", json!({"name": "kohya", "strength": 0}))]));
    assert_eq!(pixels(&server, id_of(&nothing)), plain);
    assert_eq!(world.kept(), 2);

    // A remix keeps them, also when their bundle was removed.
    let id = id_of(&changed);
    std::fs::remove_dir_all(world.path("bundle/loras")).unwrap();
    let remix = server.post(&format!("/v1/videos/{id}/remix"), &json!({"prompt": "a ship"})).with(200).json();
    let remix = server.ended(id_of(&remix));
    assert_eq!((&remix["status"], &remix["loras"]), (&json!("completed"), &changed["loras"]));
    let events = server.get(&format!("/v1/videos/{id}/events")).with(200);
    assert!(String::from_utf8_lossy(&events.body).contains("\"sigma\":0.0"), "{events:?}");
}

#[test]
fn only_plain_names_of_what_applies_are_accepted() {
    let world = World::new();
    let server = world.with_loras();
    let refused = |lora: Value| {
        let error = server.post("/v1/videos", &clip(&[("lora", lora.clone())])).with(400).json();
        let message = error["error"]["message"].as_str().unwrap().to_owned();
        assert_eq!(error["error"]["param"], "loras", "{lora}: {message}");
        assert!(!message.contains(world.0.path().to_str().unwrap()), "{message}");
        message
    };
    let outside = world.path("outside-kohya.safetensors");
    for name in ["../outside-kohya", "../outside-kohya.safetensors", outside.to_str().unwrap(), "..", "a/b"] {
        assert!(refused(json!(name)).contains("plain name"), "{name}");
    }
    for name in ["link", "link.safetensors", "other"] {
        let message = refused(json!({"path": name}));
        assert!(message.ends_with("this server has damaged, full-deltas, kohya, lightning"), "{message}");
    }
    assert!(refused(json!("full-deltas")).contains("blocks.0.attn1.to_v.weight"));
    // A file that the operator must replace.
    server.post("/v1/videos", &clip(&[("lora", json!("damaged"))])).with(500);
    assert_eq!(world.kept(), 0);
    drop(server);

    let server = world.server(&[]);
    assert_eq!(server.get("/v1/capabilities").json()["loras"], json!([]));
    let error = server.post("/v1/videos", &clip(&[("lora", json!("kohya"))])).with(400).json();
    assert!(error["error"]["message"].as_str().unwrap().contains("named no folder"), "{error}");
}

#[test]
fn bundles_with_loras_do_not_fill_the_disk() {
    let world = World::new();
    let server = world.with_loras();
    let with = |strength: u32| {
        let lora = json!({"name": "kohya", "strength": f64::from(strength) / 100.0});
        clip(&[("lora", lora), ("num_inference_steps", json!(2))])
    };
    // The others wait for it, and need their bundles.
    let slow =
        clip(&[("num_inference_steps", json!(200)), ("size", json!("256x256")), ("num_frames", json!(33))]);
    let slow = server.post("/v1/videos", &slow).with(200).json();
    let waiting: Vec<Value> =
        (1..=16).map(|strength| server.post("/v1/videos", &with(strength)).with(200).json()).collect();
    assert_eq!(world.kept(), 16);
    let refused = server.post("/v1/videos", &with(17)).with(429);
    assert!(refused.header("retry-after").is_some());
    server.post("/v1/videos", &with(16)).with(200);
    server.post("/v1/videos", &clip(&[])).with(200);
    for video in std::iter::once(&slow).chain(&waiting[..14]) {
        server.send("DELETE", &format!("/v1/videos/{}", id_of(video)), &[], &[]).with(200);
    }
    for video in &waiting[14..] {
        assert_eq!(server.ended(id_of(video))["status"], "completed");
    }
    let (_, spec) = made(&server, &with(17));
    assert_eq!(spec["loras"][0]["strength"], 0.17);
    drop(server);
    // Nothing is open now.
    let server = world.with_loras();
    made(&server, &with(18));
    assert_eq!(world.kept(), 16);
}
