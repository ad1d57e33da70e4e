//! Graphs without weights, attached to checkpoints: the bundle is that of an ordinary export, whatever the files of the
//! weights are called and how they are cut, and other weights are refused by name.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::WeightType;
use bundle::layout;
use bundle::manifest::Bundle;
use bundle::units::ByteCount;
use bundle::variant::Target;
use engines::{Backend, GraphSource, OnnxRuntime, OpenOptions, WeightMemory};
use export::{AttachRequest, Error, ExportReport, ExportRequest};
use runtime::model::{Model, ModelOptions};
use runtime::pipeline::seeded_noise;
use runtime::plan::GenerationPlan;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use tests::edit::{self, Stored};
use tests::golden;
use tests::program::{event, rushes};

const CASE: &str = "two-experts";
/// The name of a weight file in one piece.
const FILE: &str = "diffusion_pytorch_model.safetensors";
const PARTS: [&str; 4] = ["text_encoder", "transformer", "transformer_2", "vae"];

fn export(checkpoint: &Path, out: &Path, graphs_only: bool) -> Result<ExportReport, Error> {
    let request = ExportRequest { graphs_only, ..ExportRequest::new(checkpoint, out) };
    export::export(&request, &mut |_| ())
}

fn attach(graphs: &Path, checkpoint: &Path, out: &Path, verify: bool) -> Result<ExportReport, Error> {
    let request = AttachRequest { verify, ..AttachRequest::new(graphs, checkpoint, out) };
    export::attach(&request, &mut |_| ())
}

/// A checkpoint, its bundle and its graphs without weights, in one folder.
struct Exported {
    checkpoint: TempDir,
    folder: TempDir,
}

impl Exported {
    fn new() -> Self {
        let checkpoint = edit::copy_of(&golden::case(CASE).checkpoint());
        let folder = tempfile::tempdir().unwrap();
        let exported = Self { checkpoint, folder };
        export(exported.checkpoint.path(), &exported.path("whole"), false).unwrap();
        export(exported.checkpoint.path(), &exported.path("graphs"), true).unwrap();
        exported
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Every file of a folder, with its content.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut unread = vec![folder.to_owned()];
    while let Some(next) = unread.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                unread.push(path);
            } else {
                found.push((path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The bits of a clip: text states, the latent after each step, and frames.
fn clip(folder: &Path) -> Vec<u32> {
    let bundle = Bundle::open(folder).unwrap();
    let model = Model::new(bundle, OnnxRuntime::load(None).unwrap(), ModelOptions::default()).unwrap();
    let case = golden::case(CASE);
    let plan = GenerationPlan::new(model.manifest(), &case.request()).unwrap();
    let computed = golden::compute(&model, &case, seeded_noise(&plan)).unwrap();
    let latents = computed.latents.iter().flatten();
    let values = computed.prompt.iter().chain(latents).chain(&computed.frames);
    let bits: Vec<u32> = values.map(|value| value.to_bits()).collect();
    assert!(bits.len() > computed.prompt.len() && !computed.frames.is_empty());
    bits
}

/// Removes the weights of a folder, and returns them. Files are not written in place: a bundle may share them.
fn take(folder: &Path) -> Stored {
    let mut all = Stored::new();
    for path in edit::weight_files(folder) {
        let bytes = fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            all.insert(name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()));
        }
        fs::remove_file(path).unwrap();
    }
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().ends_with(".index.json") {
            fs::remove_file(path).unwrap();
        }
    }
    all
}

/// Writes weights to a file of a folder.
fn put<'a>(path: &Path, stored: impl IntoIterator<Item = (&'a String, &'a (Dtype, Vec<usize>, Vec<u8>))>) {
    let views = stored
        .into_iter()
        .map(|(name, (dtype, shape, data))| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// Changes the weights of a folder, which are in one file then.
fn change(folder: &Path, change: &dyn Fn(&mut Stored)) {
    let mut all = take(folder);
    change(&mut all);
    put(&folder.join(FILE), &all);
}

/// Cuts the weights of a folder into three files of other names, in reverse order, with an index.
fn cut(folder: &Path) {
    let all = take(folder);
    let mut map = Map::new();
    let all: Vec<_> = all.iter().rev().collect();
    for (index, shard) in all.chunks(all.len().div_ceil(3)).enumerate() {
        let file = format!("part-{index}.safetensors");
        put(&folder.join(&file), shard.iter().copied());
        map.extend(shard.iter().map(|(name, _)| ((*name).clone(), Value::from(file.clone()))));
    }
    let index = json!({ "metadata": {}, "weight_map": map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

#[test]
fn an_attached_bundle_is_the_exported_one() {
    let exported = Exported::new();
    let graphs = contents(&exported.path("graphs"));
    assert!(graphs.iter().all(|(path, _)| path.extension().is_none_or(|end| end != "safetensors")));
    assert!(exported.path("graphs").join(layout::GRAPHS).is_file());
    for (name, verify) in [("sampled", false), ("read", true)] {
        let report =
            attach(&exported.path("graphs"), exported.checkpoint.path(), &exported.path(name), verify)
                .unwrap();
        assert!(report.linked.0 > 0 && report.written == ByteCount(0));
        assert!(contents(&exported.path(name)) == contents(&exported.path("whole")), "{name}");
    }
    assert!(clip(&exported.path("read")) == clip(&exported.path("whole")));
}

#[test]
fn weights_in_files_of_other_cuts_and_names_are_attached() {
    let exported = Exported::new();
    for part in PARTS {
        cut(&exported.checkpoint.path().join(part));
    }
    let runtime = OnnxRuntime::load(None).unwrap();
    for (name, verify) in [("sampled", false), ("read", true)] {
        let folder = exported.path(name);
        attach(&exported.path("graphs"), exported.checkpoint.path(), &folder, verify).unwrap();
        let bundle = Bundle::open(&folder).unwrap();
        for entry in &bundle.manifest.components {
            assert_eq!(entry.weights.len(), 3, "{}", entry.component);
            for graph in &entry.graphs {
                let path = bundle.path(&graph.file);
                let options = OpenOptions::cpu(None, WeightMemory::Mapped);
                Backend::open(&runtime, GraphSource::File(&path), &options).map(drop).unwrap();
            }
        }
        let verified = export::digests::verify(&bundle, &mut |_, _| ());
        assert!(verified.damaged.is_empty(), "{:?}", verified.damaged);
        // Without reading them, these files are not known in full.
        let unknown = if verify { 0 } else { 3 * PARTS.len() };
        assert_eq!(verified.unknown.len(), unknown, "{:?}", verified.unknown);
        assert!(clip(&folder) == clip(&exported.path("whole")), "{name}");
    }
}

#[test]
fn other_weights_are_refused_by_name_and_leave_nothing() {
    let exported = Exported::new();
    let one = |dtype| (dtype, vec![1], if dtype == Dtype::F32 { vec![0; 4] } else { vec![0; 2] });
    let high = "transformer";
    let named = "blocks.0.attn1.to_q.bias";
    type Change = Box<dyn Fn(&mut Stored)>;
    let changes: [(&str, Change, &[&str]); 5] = [
        (high, Box::new(|stored| drop(stored.remove(named))), &["the high_noise expert", "1 missing", named]),
        (
            high,
            Box::new(move |stored| drop(stored.insert("blocks.7.x".into(), one(Dtype::F32)))),
            &["1 not of this model", "blocks.7.x in diffusion_pytorch_model.safetensors"],
        ),
        (
            "transformer_2",
            Box::new(|stored| assert!(edit::change_f32(stored, named, |value| value + 1.0))),
            &["the low_noise expert", "1 different", named, "has other values"],
        ),
        (
            high,
            Box::new(move |stored| drop(stored.insert(named.into(), one(Dtype::BF16)))),
            &["1 different", "is bf16 [1] instead of f32 [24]"],
        ),
        (
            "vae",
            Box::new(|stored| stored.retain(|name, _| !name.contains("conv_in"))),
            &["the decoder", "2 missing", "decoder.conv_in.bias, decoder.conv_in.weight"],
        ),
    ];
    for (part, by, expected) in changes {
        let checkpoint = edit::copy_of(exported.checkpoint.path());
        change(&checkpoint.path().join(part), &by);
        for verify in [false, true] {
            let out = exported.path("out");
            let error =
                attach(&exported.path("graphs"), checkpoint.path(), &out, verify).unwrap_err().to_string();
            assert!(expected.iter().all(|text| error.contains(text)), "{error}");
            assert!(!out.exists() && !exported.path("out.part").exists());
        }
    }
    // The experts are not interchangeable.
    let checkpoint = edit::copy_of(exported.checkpoint.path());
    let [high, low, other] = ["transformer", "transformer_2", "x"].map(|part| checkpoint.path().join(part));
    for (from, to) in [(&high, &other), (&low, &high), (&other, &low)] {
        fs::rename(from, to).unwrap();
    }
    let error =
        attach(&exported.path("graphs"), checkpoint.path(), &exported.path("out"), false).unwrap_err();
    assert!(error.to_string().contains("has other values") && error.to_string().contains("more"), "{error}");
}

#[test]
fn a_damaged_graph_set_and_a_stop_leave_nothing() {
    let exported = Exported::new();
    let (graphs, out) = (exported.path("graphs"), exported.path("out"));
    let request = AttachRequest::new(&graphs, exported.checkpoint.path(), &out);
    request.stop.request();
    assert!(matches!(export::attach(&request, &mut |_| ()), Err(Error::Contract(bundle::Error::Stopped))));
    assert!(!out.exists() && !exported.path("out.part").exists());

    let fails = |expected: &str| {
        let error = attach(&graphs, exported.checkpoint.path(), &out, false).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    };
    let set = bundle::graph_set::GraphSet::read(&graphs).unwrap();
    let graph = graphs.join(&set.manifest.components[0].graphs[0].file);
    let before = fs::read(&graph).unwrap();
    let mut changed = before.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(&graph, changed).unwrap();
    fails("its content differs from what was written");
    fs::write(&graph, before).unwrap();
    let json = graphs.join(layout::GRAPHS);
    let text = fs::read_to_string(&json).unwrap();
    fs::write(&json, text.replacen("\"sampled\":\"", "\"sampled\":\"x", 1)).unwrap();
    fails("is not 64 hexadecimal digits");
    fs::remove_file(&json).unwrap();
    fails("it has no graphs.json");
}

#[test]
fn weights_that_need_a_conversion_cannot_be_left_out() {
    let checkpoint = golden::case(CASE).checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("graphs");
    let graphs_only = ExportRequest { graphs_only: true, ..ExportRequest::new(&checkpoint, &out) };
    let lora = bundle::lora::LoraUse::new("style.safetensors");
    for (request, expected) in [
        (
            ExportRequest { targets: vec![Target::Plain], ..graphs_only.clone() },
            "the text encoder cannot be exported without its weights: they are stored in f32",
        ),
        (ExportRequest { weights: Some(WeightType::F16), ..graphs_only.clone() }, "converted to f16"),
        (ExportRequest { verify: false, ..graphs_only.clone() }, "graphs_only cannot be used"),
        (ExportRequest { loras: vec![lora], ..graphs_only.clone() }, "lora cannot be `style.safetensors`"),
    ] {
        let error = export::export(&request, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!out.exists());
    }
    // In the number format of the checkpoint, every target can.
    let weights = Some(WeightType::F32);
    let request = ExportRequest { targets: Target::ALL.to_vec(), weights, ..graphs_only };
    export::export(&request, &mut |_| ()).unwrap();
    let bundle = folder.path().join("bundle");
    attach(&out, &checkpoint, &bundle, false).unwrap();
    let targets = |target| Bundle::open(&bundle).unwrap().manifest.precisions(target, Default::default());
    assert!(Target::ALL.into_iter().all(|target| !targets(target).is_empty()));
}

#[test]
fn the_commands_export_attach_and_say_what_is_missing() {
    let checkpoint = edit::copy_of(&golden::case(CASE).checkpoint());
    let folder = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| rushes(folder.path()).args(arguments).output().unwrap();
    let checkpoint = checkpoint.path().to_str().unwrap();
    let exported = run(&["export", checkpoint, "--out", "graphs", "--graphs-only", "--json"]);
    assert_eq!(event(&exported, "exported")["graphs_only"], true);
    for command in [&["inspect", "graphs"][..], &["generate", "a red ball", "--bundle", "graphs"]] {
        let refused = run(command);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{text}");
        assert!(
            text.contains("graphs has graphs without weights") && text.contains("rushes attach"),
            "{text}"
        );
    }
    let attached = run(&["attach", "graphs/", checkpoint, "--json"]);
    let attached = event(&attached, "attached");
    assert_eq!((&attached["bundle"], &attached["written_bytes"]), (&json!("graphs.bundle"), &json!(0)));
    let verified = run(&["inspect", "graphs.bundle", "--verify", "--json"]);
    assert_eq!(event(&verified, "verified")["unknown"], json!([]));
    let taken = run(&["attach", "graphs", checkpoint, "-o", "graphs.bundle"]);
    assert_eq!(taken.status.code(), Some(2), "{taken:?}");
}
