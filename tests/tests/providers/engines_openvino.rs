//! Compiled engines of OpenVINO: they are found, checked, and made again if they are not what was written.

use crate::support::with_provider;
use bundle::digest::Digest;
use bundle::lora::LoraUse;
use bundle::manifest::Bundle;
use bundle::signature::Signature;
use engines::compiled::{EngineRecord, EngineStore, ListedEngine, list};
use engines::residency::Residency;
use engines::sessions::Sessions;
use engines::{Cancel, Device, DeviceChoice, FirstUse, OnnxRuntime, OpenOptions, Outputs, Provider, Value};
use export::ExportRequest;
use ndarray::{Array1, Array3, Array5};
use runtime::engine_builds::{EngineNeed, check_engines, clips_of, engines_needed};
use runtime::model::{Model, ModelOptions};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tests::branched::branched;
use tests::compare::relative_difference;
use tests::golden::{Case, Computed, case, compute};
use tests::program::{event, rushes};

/// A case with two experts of one topology.
const CASE: &str = "two-experts";

/// The engines of a clip: the text encoder, two experts, and the decoder for the first and for later latent frames.
const ENGINES: u64 = 5;

/// What happens to the file of an engine.
type Damage = fn(&Path);

/// The largest difference between two runs of one engine.
const SAME: f64 = 1e-5;

/// The bundle of the case with graphs for OpenVINO, and a store that is empty at first.
struct World {
    runtime: OnnxRuntime,
    device: Device,
    case: Case,
    folder: tempfile::TempDir,
    notices: Arc<Mutex<Vec<&'static str>>>,
}

impl World {
    fn new(test: &str) -> Option<Self> {
        let (runtime, device) = with_provider(test, Provider::OpenVino)?;
        let (case, folder) = (case(CASE), tempfile::tempdir().unwrap());
        let request = ExportRequest {
            targets: vec!["cpu".parse().unwrap(), "plain".parse().unwrap()],
            weights: Some(bundle::dtype::WeightType::F32),
            ..ExportRequest::new(&case.checkpoint(), &folder.path().join("bundle"))
        };
        export::export(&request, &mut |_| ()).unwrap();
        Some(Self { runtime, device, case, folder, notices: Arc::default() })
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }

    /// A store in the folder of this test, as a new process has it: nothing is counted yet.
    fn store(&self) -> EngineStore {
        let told = Arc::clone(&self.notices);
        let store = EngineStore::new(self.folder.path().join("cache/engines"));
        store.with_notices(move |notice| told.lock().unwrap().push(notice.name()))
    }

    fn told(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.notices.lock().unwrap())
    }

    fn model(&self, store: &EngineStore) -> Model {
        self.model_of(Bundle::open(&self.bundle()).unwrap(), store)
    }

    fn model_of(&self, bundle: Bundle, store: &EngineStore) -> Model {
        let runtime = self.runtime.clone().with_engines(store.clone());
        let sessions = Sessions::in_available_memory(runtime, Residency::Auto);
        let options = ModelOptions {
            device: DeviceChoice::On(self.device),
            threads: NonZeroUsize::new(1),
            ..ModelOptions::default()
        };
        Model::with_sessions(bundle, &sessions, options).unwrap()
    }

    /// What the first expert needs.
    fn expert(&self, store: &EngineStore) -> EngineNeed {
        let needs = self.needs(store).into_iter();
        let mut experts =
            needs.filter(|need| need.graph.components().any(|part| part.as_os_str() == "high_noise"));
        experts.next().unwrap()
    }

    /// Makes the clip of the case.
    fn compute(&self, store: &EngineStore) -> Computed {
        let noise = self.case.reference().latent("noise");
        compute(&self.model(store), &self.case, noise).unwrap()
    }

    fn needs(&self, store: &EngineStore) -> Vec<EngineNeed> {
        let model = self.model(store);
        let clips = clips_of(model.manifest(), &[]).unwrap();
        engines_needed(&model, &clips).unwrap()
    }

    fn engines(&self, store: &EngineStore) -> Vec<ListedEngine> {
        list(store, &self.runtime.engines_here(), true).unwrap()
    }

    /// The folder of each component's engine, by component and part.
    fn folders(&self, store: &EngineStore) -> BTreeMap<String, PathBuf> {
        let engines = self.engines(store).into_iter().filter(|engine| engine.state.why().is_none());
        let name = |engine: &ListedEngine| {
            let subject = &engine.record.as_ref().unwrap().subject;
            format!("{} {}", subject.component, subject.part)
        };
        engines.map(|engine| (name(&engine), engine.folder)).collect()
    }
}

fn assert_same(found: &Computed, expected: &Computed, what: &str) {
    assert_eq!(found.latents.len(), expected.latents.len());
    for (step, (found, expected)) in found.latents.iter().zip(&expected.latents).enumerate() {
        let difference = relative_difference(found.view(), expected.view());
        assert!(difference <= SAME, "{what}: step {step} differs by {difference}");
    }
}

/// The record of the engine in a folder.
fn record(folder: &Path) -> EngineRecord {
    serde_json::from_slice(&fs::read(folder.join("engine.json")).unwrap()).unwrap()
}

/// The compiled graph of the engine in a folder.
fn compiled_graph(folder: &Path) -> PathBuf {
    folder.join(record(folder).model)
}

/// The file that the compiled graph refers to.
fn blob(folder: &Path) -> PathBuf {
    let record = record(folder);
    let mut files = record.files.iter().map(|file| folder.join(&file.name));
    files.find(|file| file.extension().is_some_and(|extension| extension == "bin")).unwrap()
}

/// The name of the engine in a folder, which its files begin with and contain.
fn engine_name(folder: &Path) -> String {
    record(folder).model.strip_suffix(".onnx").unwrap().to_owned()
}

/// Bytes in which another name of the same length stands for `from`.
fn renamed(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let places: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(from.as_bytes())).collect();
    assert!(!places.is_empty(), "a blob contains the name of its engine");
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

/// The bytes of the files of the engine in a folder. The name of the engine, which is in names and files, is left out.
fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let (record, own) = (record(folder), engine_name(folder));
    let files = record.files.iter().map(|file| {
        let mut bytes = fs::read(folder.join(&file.name)).unwrap();
        while let Some(at) = bytes.windows(own.len()).position(|window| window == own.as_bytes()) {
            bytes.drain(at..at + own.len());
        }
        (file.name.replace(&own, ""), bytes)
    });
    files.collect()
}

/// One call of an expert with inputs that are the same in every call.
fn velocity(runtime: &OnnxRuntime, graph: &Path, options: &OpenOptions, model: &Model) -> Vec<f32> {
    let manifest = model.manifest();
    let spec = &manifest.denoiser;
    let contract = Signature::of_step(spec);
    let mut expert = runtime.open(graph, &contract, options).unwrap();
    let wave = |count: usize| Array1::from_iter((0_u16..).take(count).map(|i| (f32::from(i) * 0.1).sin()));
    let (frames, rows, columns) = (2, 4, 6);
    let [height, width] = [rows * spec.patch.height, columns * spec.patch.width];
    let tokens = frames * rows * columns;
    let latent = wave(spec.in_channels * frames * height * width);
    let latent: Array5<f32> =
        latent.into_shape_with_order((1, spec.in_channels, frames, height, width)).unwrap();
    let text: Array3<f32> =
        wave(512 * spec.text_width).into_shape_with_order((1, 512, spec.text_width)).unwrap();
    let half = spec.head_width / 2;
    let table = || wave(tokens * half).into_shape_with_order((tokens, half)).unwrap();
    let inputs = [
        ("latent", Value::from_f32(latent)),
        ("timestep", Value::from_f32(Array1::from_vec(vec![700.0]))),
        ("rows", Value::from_i64(Array1::<i64>::zeros(tokens))),
        ("text", Value::from_f32(text)),
        ("cos", Value::from_f32(table())),
        ("sin", Value::from_f32(table())),
    ];
    let inputs: Vec<(&str, &Value)> = inputs.iter().map(|(name, value)| (*name, value)).collect();
    let mut outputs: Outputs = expert.run(&inputs, &Cancel::new()).unwrap();
    outputs.take("velocity").unwrap().to_f32().unwrap().iter().copied().collect()
}

fn difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn smoke_the_engine_of_the_other_expert_is_not_used() {
    let Some(world) = World::new("the engine of the other expert") else { return };
    // Each in a process of its own: the blob has a number that OpenVINO counts up in a process, and it is looked up.
    assert!(build(&world, &[]).output().unwrap().status.success());
    let store = world.store();
    let own = world.compute(&store);
    assert_eq!((store.compiled(), store.opened()), (0, ENGINES));
    let folders = world.folders(&store);
    let (high, low) = (&folders["high_noise whole"], &folders["low_noise whole"]);
    let model = world.model(&store);
    let high_noise = world
        .needs(&store)
        .into_iter()
        .find(|need| need.graph.starts_with(world.bundle().join("experts/high_noise")));
    let high_noise = high_noise.unwrap();
    let with_store = world.runtime.clone().with_engines(store.clone());
    let expected = velocity(&with_store, &high_noise.graph, &high_noise.options, &model);

    // The trap: opened as it is, without a store, the engine of one expert computes the other. It is opened in another
    // folder, because OpenVINO may know what it has read in this one. OpenVINO looks a blob up by the name of its engine.
    let trap = world.folder.path().join("trap");
    fs::create_dir(&trap).unwrap();
    let other = renamed(fs::read(blob(low)).unwrap(), &engine_name(low), &engine_name(high));
    fs::write(trap.join(blob(high).file_name().unwrap()), other).unwrap();
    fs::copy(compiled_graph(high), trap.join(compiled_graph(high).file_name().unwrap())).unwrap();
    let graph = trap.join(compiled_graph(high).file_name().unwrap());
    let bare = OpenOptions { content: None, ..high_noise.options };
    let trapped = velocity(&world.runtime, &graph, &bare, &model);
    assert!(difference(&trapped, &expected) > 1e-2, "the blobs were not swapped");

    let (blob_high, blob_low, swapped) = (blob(high), blob(low), world.folder.path().join("swapped"));
    fs::rename(&blob_high, &swapped).unwrap();
    fs::rename(&blob_low, &blob_high).unwrap();
    fs::rename(&swapped, &blob_low).unwrap();
    world.told();
    let store = world.store();
    let found = world.compute(&store);
    assert_same(&found, &own, "with swapped blobs");
    assert_eq!((store.compiled(), store.opened()), (2, ENGINES - 2));
    assert_eq!(world.told().iter().filter(|name| **name == "set_aside").count(), 2);
    let store = world.store();
    assert_same(&world.compute(&store), &own, "afterwards");
    assert_eq!((store.compiled(), store.opened()), (0, ENGINES));
}

#[test]
fn smoke_damaged_engines_are_made_again() {
    let Some(world) = World::new("damaged engines") else { return };
    let store = world.store();
    let own = world.compute(&store);
    let damages: [(&str, Damage); 4] = [
        ("a flipped bit", |folder| {
            let mut bytes = fs::read(blob(folder)).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(blob(folder), bytes).unwrap();
        }),
        ("a truncated blob", |folder| {
            let bytes = fs::read(blob(folder)).unwrap();
            fs::write(blob(folder), &bytes[..bytes.len() / 2]).unwrap();
        }),
        ("a missing blob", |folder| fs::remove_file(blob(folder)).unwrap()),
        ("a cut record", |folder| fs::write(folder.join("engine.json"), "{\"format\":1,").unwrap()),
    ];
    for (what, damage) in damages {
        damage(&world.folders(&store)["high_noise whole"]);
        let store = world.store();
        world.told();
        assert_same(&world.compute(&store), &own, what);
        assert_eq!((store.compiled(), store.opened()), (1, ENGINES - 1), "{what}");
        assert_eq!(world.told(), ["set_aside", "compiling", "stored"], "{what}");
    }
}

#[test]
fn an_engine_is_opened_without_compiling_and_knows_the_nodes_of_its_graph() {
    let Some(world) = World::new("opening an engine") else { return };
    let first = world.store();
    for need in world.needs(&first) {
        let runtime = world.runtime.clone().with_engines(first.clone());
        runtime.build_engine(&need.graph, &need.options).unwrap();
    }
    assert_eq!((first.compiled(), first.opened()), (ENGINES, 0));
    let second = world.store();
    let model = world.model(&second);
    check_engines(&model, &clips_of(model.manifest(), &[]).unwrap()[0]).unwrap();
    let need = &world.expert(&second);
    let runtime = world.runtime.clone().with_engines(second.clone());
    let contract = Signature::of_step(&model.manifest().denoiser);
    // Not even if it may not be compiled.
    let options = OpenOptions { first_use: FirstUse::Refuse, ..need.options };
    let opened = runtime.open(&need.graph, &contract, &options).unwrap();
    assert!(opened.nodes().unwrap().nodes["OpenVINOExecutionProvider"] > 20, "{:?}", opened.nodes());
    assert_eq!((second.compiled(), second.opened()), (0, 1));
    // Without engines the same graph is refused, by a command.
    let empty = EngineStore::new(world.folder.path().join("nothing"));
    let refused = world.runtime.clone().with_engines(empty).open(&need.graph, &contract, &options);
    assert!(refused.unwrap_err().to_string().contains("rushes build"));
}

#[test]
fn an_engine_of_another_version_of_openvino_is_made_again() {
    let Some(world) = World::new("an engine of another version") else { return };
    let store = world.store();
    let need = &world.expert(&store);
    let runtime = world.runtime.clone().with_engines(store.clone());
    runtime.build_engine(&need.graph, &need.options).unwrap();
    let folder = &world.folders(&store)["high_noise whole"];
    let (model, record) = (compiled_graph(folder), folder.join("engine.json"));
    let mut bytes = fs::read(&model).unwrap();
    let stated = b"ov=202";
    let at =
        bytes.windows(stated.len()).position(|window| window == stated).expect("the version of OpenVINO");
    bytes[at + 5] = b'1';
    fs::write(&model, bytes).unwrap();
    // With a digest that fits, only the device can tell.
    let mut value: Json = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
    for file in value["files"].as_array_mut().unwrap() {
        let digest = Digest::of_file(&folder.join(file["name"].as_str().unwrap())).unwrap();
        file["blake3"] = digest.blake3.into();
    }
    fs::write(record, value.to_string()).unwrap();
    world.told();
    runtime.build_engine(&need.graph, &need.options).unwrap();
    assert_eq!(world.told(), ["set_aside", "compiling", "stored"]);
}

/// `rushes build` of the world's bundle.
fn build(world: &World, arguments: &[&str]) -> Command {
    let mut command = rushes(world.folder.path());
    command.args(["build", "bundle", "--ep", "openvino"]);
    for (flag, value) in [("--cache-dir", "cache"), ("--threads", "1")] {
        if !arguments.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command.args(arguments);
    command
}

#[test]
fn threads_change_no_engine() {
    let Some(world) = World::new("threads and engines") else { return };
    // In processes of their own: the blob has a number that OpenVINO counts up in a process.
    let built = |threads: &str, cache: &str| {
        let arguments = ["--threads", threads, "--cache-dir", cache];
        let output = build(&world, &arguments).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let engines = world.engines(&EngineStore::new(world.folder.path().join(cache).join("engines")));
        engines.into_iter().map(|engine| (engine.record.unwrap().key, contents(&engine.folder)))
    };
    let (one, two): (Vec<_>, Vec<_>) = (built("1", "one").collect(), built("2", "two").collect());
    assert_eq!(one.len(), ENGINES as usize);
    assert!(one == two, "the engines differ");
}

#[test]
fn a_clip_of_a_built_bundle_compiles_nothing() {
    let Some(world) = World::new("rushes build") else { return };
    let built = || event(&build(&world, &["--json"]).output().unwrap(), "built");
    let first = built();
    assert_eq!((&first["compiled"], &first["present"]), (&Json::from(ENGINES), &Json::from(0)));
    let again = built();
    assert_eq!((&again["compiled"], &again["present"]), (&Json::from(0), &Json::from(ENGINES)));
    let generate = |cache: &str| {
        let mut command = rushes(world.folder.path());
        command.args(["generate", "fox", "--bundle", "bundle", "--ep", "openvino", "--cache-dir", cache]);
        command.args(["--steps", "2", "--frames", "5", "--size", "48x32", "--seed", "1"]);
        command.args(["--threads", "1", "-o", "clip.y4m"]).output().unwrap()
    };
    let output = generate("cache");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("compil"), "{said}");
    // Another cache has no engines: they are compiled, and the user is told.
    let output = generate("other");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.contains("compiling") && said.contains("later runs"), "{said}");
    let listed = |command: &[&str]| {
        let output =
            rushes(world.folder.path()).args(command).args(["--cache-dir", "cache", "--json"]).output();
        output.unwrap()
    };
    let engines = event(&listed(&["engines", "list", "--verify"]), "engines");
    let states: Vec<&Json> = engines["engines"].as_array().unwrap().iter().map(|e| &e["state"]).collect();
    assert_eq!(states, ["usable"; ENGINES as usize]);
    let pruned = event(&listed(&["engines", "prune"]), "pruned");
    assert_eq!((&pruned["removed"], &pruned["kept"]), (&Json::Array(Vec::new()), &Json::from(ENGINES)));
    let pruned = event(&listed(&["engines", "prune", "--all"]), "pruned");
    assert_eq!(pruned["removed"].as_array().unwrap().len(), ENGINES as usize);
}

#[test]
fn a_bundle_cannot_be_built_for_the_cpu_or_in_too_little_memory() {
    let Some(world) = World::new("refusals of rushes build") else { return };
    let output =
        rushes(world.folder.path()).args(["build", "bundle", "--ep", "cpu", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(event(&output, "error")["why"].as_str().unwrap().contains("without engines"));
    let output = build(&world, &["--memory-budget", "cpu=1KB", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert!(event(&output, "error")["fix"].as_str().unwrap().contains("--memory-budget"));
    let output = build(&world, &["--shape", "48x32", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// The processes that a process has started.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    ids.filter(|id| {
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        status
            .lines()
            .any(|line| line.strip_prefix("PPid:").is_some_and(|id| id.trim() == parent.to_string()))
    })
    .collect()
}

/// False if a process has ended, also if nothing has waited for it.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn kill(process: u32) {
    let _ = Command::new("kill").args(["-9", &process.to_string()]).stderr(Stdio::null()).status();
}

#[test]
fn killed_builds_leave_nothing_that_looks_whole() {
    let Some(world) = World::new("killed builds") else { return };
    for kills_parent in [false, true] {
        let cache = world.folder.path().join("cache");
        if cache.exists() {
            fs::remove_dir_all(cache).unwrap();
        }
        let mut parent =
            build(&world, &["--json"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(parent.stdout.take().unwrap()).lines().map_while(Result::ok);
        lines.find(|line| line.contains("compiling")).expect("a component is compiled");
        let children = children_of(parent.id());
        if kills_parent {
            parent.kill().unwrap();
        } else {
            children.iter().copied().for_each(kill);
        }
        lines.for_each(drop);
        parent.wait().unwrap();
        // The process of the component ends with the one that started it.
        while children.iter().any(|child| is_running(*child)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        for engine in world.engines(&world.store()) {
            assert!(matches!(engine.state.name(), "usable" | "unfinished"), "{engine:?}");
        }
    }
    let built = event(&build(&world, &["--json"]).output().unwrap(), "built");
    assert_eq!(built["compiled"].as_u64().unwrap() + built["present"].as_u64().unwrap(), ENGINES);
    let engines = world.engines(&world.store());
    assert!(engines.iter().all(|engine| engine.state.name() == "usable"), "{engines:?}");
    assert_eq!(engines.len(), ENGINES as usize);
}

#[test]
fn an_engine_belongs_to_the_loras_of_its_graph() {
    let Some(world) = World::new("engines of a LoRA") else { return };
    let store = world.store();
    let plain = world.compute(&store);
    let file = tests::golden::folder().join("lora/lightning.safetensors");
    let lora = |strength: f32| format!("high={}@{strength}", file.display()).parse::<LoraUse>().unwrap();
    let words = |store: &EngineStore| -> BTreeSet<String> {
        world.engines(store).iter().map(|engine| record(&engine.folder).word("lora").to_owned()).collect()
    };
    assert_eq!(words(&store), BTreeSet::from(["none".to_owned()]));
    let (base, noise) = (Bundle::open(&world.bundle()).unwrap(), world.case.reference().latent("noise"));
    for (number, strength) in [(1, 1.0), (2, 0.5)] {
        let folder = world.folder.path().join(format!("with-lora-{number}"));
        let (found, store) = (branched(&base, &[lora(strength)], &folder).unwrap(), world.store());
        let computed = compute(&world.model_of(found, &store), &world.case, noise.clone()).unwrap();
        // All others have the graphs and weights of the base.
        assert_eq!((store.compiled(), store.opened()), (1, ENGINES - 1));
        assert_eq!(words(&store).len(), 1 + number);
        let [found, plain] = [&computed, &plain].map(|computed| computed.latents.last().unwrap().view());
        assert!(relative_difference(found, plain) > 100.0 * SAME);
    }
}

#[test]
fn a_clip_is_made_without_a_folder_for_engines() {
    let Some(world) = World::new("a cache that cannot be written") else { return };
    fs::create_dir(world.folder.path().join("cache")).unwrap();
    fs::write(world.folder.path().join("cache/engines"), "a file").unwrap();
    let store = world.store();
    assert_eq!(world.compute(&store).latents.len(), world.case.steps);
    assert_eq!((store.compiled(), store.opened()), (ENGINES, 0));
    assert_eq!(world.told().iter().filter(|name| **name == "not_stored").count(), ENGINES as usize);
}
