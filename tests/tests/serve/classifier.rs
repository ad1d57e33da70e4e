//! Clips whose frames a classifier refuses. The program has none, so the server runs in this process.

use bundle::units::ByteCount;
use engines::residency::Residency;
use engines::{Cancel, CpuNodes, DeviceChoice, MemoryBudgets, OnnxRuntime, PlacementRequest};
use export::ExportRequest;
use jobs::owner::Options;
use ndarray::Array4;
use runtime::decode::Tiles;
use runtime::scheduler::{Bounds, Order};
use serde_json::{Value, json};
use server::screening::{FrameClassifier, NoScreen, Reason, Refusal};
use server::{Config, FetchPolicy, Limits};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tests::served::Server;

/// Refuses every clip from a frame on, and notes the frames that it has seen.
#[derive(Debug)]
struct RefusesFrom {
    frame: usize,
    seen: Mutex<Vec<usize>>,
}

impl FrameClassifier for RefusesFrom {
    fn check(&self, first: usize, frames: &Array4<f32>) -> Result<(), Refusal> {
        assert_eq!(frames.shape()[1..], [3, 32, 48]);
        assert!(frames.iter().all(|value| (-1.0..=1.0).contains(value)));
        self.seen.lock().unwrap().push(first);
        if first + frames.shape()[0] <= self.frame {
            return Ok(());
        }
        Err(Refusal { reasons: vec![Reason { category: "violence".into(), field: "frames" }] })
    }
}

fn config(data: &Path, bundle: &Path, classifier: Arc<dyn FrameClassifier>) -> Config {
    Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data: data.to_owned(),
        bundles: vec![("mini".into(), bundle.to_owned())],
        aliases: Vec::new(),
        public_url: None,
        cors: Vec::new(),
        latents: None,
        loras: None,
        allow_paths: false,
        fetch: FetchPolicy::default(),
        text_cache: ByteCount(0),
        result_cache: false,
        limits: Limits::default(),
        screen: Arc::new(NoScreen),
        classifier: Some(classifier),
    }
}

fn options(cancel: &Cancel) -> Options {
    Options {
        backend: Arc::new(OnnxRuntime::load(None).unwrap()),
        device: DeviceChoice::default(),
        cpu_nodes: CpuNodes::Integers,
        placement: PlacementRequest::default(),
        budgets: MemoryBudgets::common(ByteCount(1 << 40)),
        residency: Residency::Auto,
        tiles: Tiles::Off,
        threads: None,
        store_budget: ByteCount(1 << 30),
        order: Order::default(),
        bounds: Bounds::default(),
        texts: None,
        follower: None,
        until_idle: false,
        cancel: cancel.clone(),
    }
}

fn json_of(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Value {
    serde_json::from_str(&answer.unwrap().body_mut().read_to_string().unwrap()).unwrap()
}

/// Files of clips in the data of a server.
fn clips(data: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(data.join("clips")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "mp4")).collect()
}

#[test]
fn a_clip_whose_frames_are_refused_fails_and_has_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let (data, bundle) = (folder.path().join("data"), folder.path().join("bundle"));
    std::fs::create_dir(&data).unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
    export::export(&ExportRequest::new(&checkpoint, &bundle), &mut |_| ()).unwrap();
    let classifier = Arc::new(RefusesFrom { frame: 5, seen: Mutex::default() });
    let cancel = Cancel::new();
    let (sender, started) = mpsc::channel();
    let (config, options) =
        (config(&data, &bundle, Arc::<RefusesFrom>::clone(&classifier)), options(&cancel));
    let serving = std::thread::spawn(move || {
        server::run(config, options, &mut |started| sender.send(started.address).unwrap())
    });
    let address = started.recv_timeout(Duration::from_secs(60)).unwrap();
    let mut clip = super::short("a red ball");
    clip["num_frames"] = json!(17);
    let request = ureq::post(format!("http://{address}/v1/videos")).content_type("application/json");
    let made = json_of(request.send(clip.to_string()));
    let id = made["id"].as_str().unwrap();
    let began = Instant::now();
    let video = loop {
        let video = json_of(ureq::get(format!("http://{address}/v1/videos/{id}")).call());
        if matches!(video["status"].as_str(), Some("completed" | "failed")) {
            break video;
        }
        assert!(began.elapsed() < Duration::from_secs(120), "{video}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(
        (&video["status"], &video["error"]["code"]),
        (&json!("failed"), &json!("content_policy_violation"))
    );
    assert!(
        video["error"]["message"].as_str().unwrap().contains("`frames` belongs to the category violence")
    );
    cancel.cancel();
    serving.join().unwrap().unwrap();
    let seen = classifier.seen.lock().unwrap().clone();
    // Nothing is shown to it any more after what it has refused.
    assert_eq!(seen, [0, 1, 5], "the first frame, the accepted chunk, and the refused one");
    assert!(clips(&data).is_empty());

    // The program knows of it, too.
    let named = format!("mini={}", bundle.display());
    let server = Server::start(&data, &["--bundle", &named]);
    let video = server.get(&format!("/v1/videos/{id}")).with(200).json();
    assert_eq!(video["error"]["code"], "content_policy_violation");
    assert!(server.get(&format!("/v1/videos/{id}/content")).status >= 400);
}
