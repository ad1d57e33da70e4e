//! Previews during denoising, and decoding in tiles.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::geometry::LatentShape;
use bundle::manifest::{Bundle, Component};
use bundle::preview::PreviewKind;
use bundle::routing::ExpertName;
use bundle::signature::{self, CACHE_INPUT, CACHE_OUTPUT, Signature, TensorSpec};
use bundle::spec::TinyDecoderSpec;
use bundle::units::{Sigma, Timestep};
use engines::{Cancel, Engine, OnnxRuntime, OpenOptions, Value, WeightMemory};
use export::checkpoint::tiny_decoder;
use export::model::{Chunk, GraphWeights, tiny_decoder_graph};
use export::weights::{Destination, Transfer, place};
use ndarray::{Array4, ArrayD, ArrayView4, Axis, concatenate, s};
use runtime::decode::{TileSide, VideoDecoder};
use runtime::denoise::StepDone;
use runtime::model::{Model, ModelOptions};
use runtime::preview::budget::PreviewLength;
use runtime::preview::{Preview, PreviewRenderer, PreviewRenderers, PreviewSettings, Previewer, Sink};
use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;
use tests::compare::largest_difference;
use tests::edit;
use tests::golden::{self, Tensors};
use tests::program::{event, rushes};

const CASE: &str = "moving-clip";
const STEPS: usize = 4;

fn tiny(name: &str) -> PathBuf {
    golden::folder().join("tiny-decoder").join(format!("{name}.safetensors"))
}

/// Exports a tiny decoder and opens its graphs for the first latent frame and for later ones.
fn open_tiny(name: &str, folder: &Path) -> (Engine, Engine) {
    let (spec, source) = tiny_decoder::open(&tiny(name)).unwrap();
    let destination = Destination {
        bundle: folder,
        component: &source.component,
        transfer: Transfer::Link { copy_limit: None },
        stop: None,
    };
    let placed = place(&source, bundle::dtype::WeightType::F32, destination).unwrap();
    let onnx = OnnxRuntime::load(None).unwrap();
    let [first, next] = [(Chunk::First, "first.onnx"), (Chunk::Next, "next.onnx")].map(|(chunk, file)| {
        let path = folder.join("preview").join(file);
        tiny_decoder_graph(&spec, chunk, GraphWeights::new(&placed)).unwrap().write(&path).unwrap();
        let options = OpenOptions::cpu(None, WeightMemory::Prepacked);
        onnx.open(&path, &signature_of(&spec), &options).unwrap()
    });
    (first, next)
}

/// The signature of the decoder, for its number of latent channels.
fn signature_of(spec: &TinyDecoderSpec) -> Signature {
    let any = |name: &str| signature::Extent::Dynamic(name.into());
    let tensor = |name: &str, shape: [signature::Extent; 5]| TensorSpec {
        name: name.into(),
        element: bundle::dtype::ElementType::F32,
        shape: shape.to_vec(),
    };
    let fixed = signature::Extent::Fixed;
    let mut frames = tensor("frames", [any("N"), fixed(3), any("H"), any("W"), fixed(0)]);
    frames.shape.pop();
    Signature {
        inputs: vec![tensor("latent", [fixed(1), fixed(spec.latent_channels), fixed(1), any("h"), any("w")])],
        outputs: vec![frames],
    }
}

#[test]
fn both_tiny_layouts_equal_pytorch() {
    let reference = Tensors::read(&tiny("reference"));
    for name in ["taew2_1", "taew2_2"] {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, mut next) = open_tiny(name, folder.path());
        let latent: Array4<f32> = reference.latent(&format!("{name}.latent"));
        let mut caches: Vec<(String, Value)> = Vec::new();
        let mut chunks: Vec<Array4<f32>> = Vec::new();
        for (index, frame) in latent.axis_iter(Axis(1)).enumerate() {
            let frame = Value::from_f32(frame.insert_axis(Axis(1)).insert_axis(Axis(0)).to_owned());
            let mut inputs = vec![("latent", &frame)];
            inputs.extend(caches.iter().map(|(name, cache)| (name.as_str(), cache)));
            let engine = if index == 0 { &mut first } else { &mut next };
            let mut outputs = engine.run(&inputs, &Cancel::new()).unwrap();
            let frames: ArrayD<f32> = outputs.take("frames").unwrap().to_f32().unwrap();
            chunks.push(frames.into_dimensionality().unwrap());
            caches = outputs
                .into_iter()
                .map(|(name, value)| (name.replace(CACHE_OUTPUT, CACHE_INPUT), value))
                .collect();
            assert_eq!(caches.len(), 9, "one for each memory block");
        }
        let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
        let found = (concatenate(Axis(0), &views).unwrap() + 1.0) / 2.0;
        let expected = reference.latent(&format!("{name}.frames"));
        let difference = largest_difference(found.view(), expected.view());
        assert!(difference < 2e-5, "{name}: {difference}");
    }
}

/// A bundle with every kind of preview, and small clips by default.
struct SharedBundle {
    folder: tempfile::TempDir,
    bundle: PathBuf,
}

static SHARED: LazyLock<SharedBundle> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = folder.path().join("checkpoint");
    edit::copy_folder(&golden::case(CASE).checkpoint(), &checkpoint);
    let settings = format!(r#"{{"size": "64x32", "frames": 17, "steps": {STEPS}}}"#);
    std::fs::write(checkpoint.join("rushes.json"), settings).unwrap();
    let output = rushes(folder.path())
        .args(["export", "checkpoint", "--out", "bundle", "--tiny"])
        .arg(tiny("taew2_1"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = rushes(folder.path()).args(["calibrate", "bundle", "--preview", "--json"]).output().unwrap();
    assert_eq!(event(&output, "calibrated")["positions"], 8 * 5 * 32);
    let bundle = folder.path().join("bundle");
    SharedBundle { folder, bundle }
});

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = rushes(folder);
    command
        .args(["generate", "a boat", "--seed", "5", "--json", "--bundle"])
        .arg(&SHARED.bundle)
        .args(arguments);
    command
}

fn generate(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Codec, width and height, read by ffprobe.
fn size_of(picture: &Path) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=codec_name,width,height", "-of", "csv=p=0"])
        .arg(picture)
        .output()
        .expect("ffprobe: `make setup` installs it");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn every_kind_of_preview_is_written_and_none_changes_the_clip() {
    let folder = tempfile::tempdir().unwrap();
    let without = generate(folder.path(), &["--trace", "off.safetensors"]);
    assert!(event(&without, "done")["preview"].is_null());
    let last =
        |name: &str| Tensors::read(&folder.path().join(name)).latent(&format!("latents.{:03}", STEPS - 1));
    for kind in ["rgb", "tiny", "full"] {
        let trace = format!("{kind}.safetensors");
        let output = generate(folder.path(), &["--preview", kind, "--preview-out", kind, "--trace", &trace]);
        let done = event(&output, "done");
        let preview = &done["preview"];
        assert_eq!(preview["kind"], kind);
        assert!(preview["failed"].is_null(), "{preview}");
        let [shown, skipped, by_map] =
            ["shown", "skipped", "shown_by_map"].map(|count| preview[count].as_u64().unwrap());
        assert_eq!(shown + skipped, STEPS as u64, "{preview}");
        // If a decoder is too slow for such short steps, the linear map shows them.
        assert!(shown + by_map >= 1 && by_map <= skipped, "{preview}");
        let files = names(&folder.path().join(kind));
        assert_eq!(files.len() as u64, shown + by_map, "{files:?}");
        assert!(files.iter().all(|name| name.ends_with("-of-004.png") && name.starts_with("step-00")));
        if kind == "rgb" {
            // The last preview is still shown.
            assert_eq!(files.last().unwrap(), "step-004-of-004.png");
        }
        assert_eq!(size_of(&folder.path().join(kind).join(&files[0])), "png,64,32");
        assert_eq!(last(&trace), last("off.safetensors"));
        let timing = &done["timing"];
        let seconds = |name: &str| timing[name].as_f64().unwrap_or_else(|| panic!("{name} in {timing}"));
        assert!(seconds("text") <= seconds("first_frame") && seconds("first_frame") <= seconds("whole"));
        assert!(seconds("loading") > 0.0 && seconds("first_preview") > 0.0 && seconds("step") > 0.0);
    }
}

/// Records the sizes of the previews that it receives.
#[derive(Default, Clone)]
struct Recorder(Arc<Mutex<Vec<[usize; 4]>>>);

impl Sink for Recorder {
    fn show(&mut self, preview: &Preview) -> Result<(), runtime::Error> {
        let (frames, colours, height, width) = preview.frames.dim();
        self.0.lock().unwrap().push([frames, colours, height, width]);
        Ok(())
    }
}

/// A step that took `ran` and did not change the latent.
fn step(latent: &Arc<Array4<f32>>, step: usize, ran: Duration) -> StepDone {
    let (sigma, timestep) = (Sigma(1.0), Timestep(1000.0));
    StepDone {
        step,
        steps: STEPS,
        expert: ExpertName("only".into()),
        sigma,
        timestep,
        latent: Arc::clone(latent),
        clean: Arc::clone(latent),
        ran,
        is_reused: false,
    }
}

#[test]
fn decoders_show_long_steps_and_the_map_shows_short_ones() {
    let model = Model::open(&SHARED.bundle, ModelOptions::default()).unwrap();
    let shape = LatentShape { channels: 16, frames: 5, height: 4, width: 8 };
    let latent = Arc::new(Array4::zeros((16, 5, 4, 8)));
    for (kind, moving, decoded) in [
        (PreviewKind::Tiny, true, [17, 3, 32, 64]),
        (PreviewKind::Tiny, false, [1, 3, 32, 64]),
        (PreviewKind::Full, true, [1, 3, 32, 64]),
    ] {
        let length = if moving { PreviewLength::AllFrames } else { PreviewLength::FirstFrame };
        let renderer = |kind| PreviewRenderer::new(&model, kind).unwrap();
        let renderers =
            || PreviewRenderers { chosen: renderer(kind).unwrap(), fallback: renderer(PreviewKind::Rgb) };
        let settings = PreviewSettings { every: NonZeroUsize::MIN, length };
        for (ran, by_map) in [(Duration::from_secs(10_000), false), (Duration::from_nanos(1), true)] {
            let recorder = Recorder::default();
            let sinks: Vec<Box<dyn Sink>> = vec![Box::new(recorder.clone())];
            let mut previewer = Previewer::start(renderers(), shape, settings, sinks, &Cancel::new());
            previewer.step(&step(&latent, 0, ran));
            let report = previewer.finish();
            assert!(report.failed.is_none(), "{report:?}");
            assert_eq!((report.shown, report.skipped), if by_map { (0, 1) } else { (1, 0) }, "{kind}");
            assert_eq!(report.fallbacks, usize::from(by_map), "{kind}");
            let map = [if moving { 5 } else { 1 }, 3, 4, 8];
            assert_eq!(*recorder.0.lock().unwrap(), [if by_map { map } else { decoded }], "{kind}");
        }
    }
}

#[test]
fn one_file_holds_the_newest_preview_of_every_nth_step() {
    let folder = tempfile::tempdir().unwrap();
    let output = generate(folder.path(), &["--preview-out", "now.png", "--preview-every", "3"]);
    let preview = &event(&output, "done")["preview"];
    // After step 3, and after the last.
    assert_eq!(preview["shown"].as_u64().unwrap() + preview["skipped"].as_u64().unwrap(), 2);
    assert_eq!(names(folder.path()), ["now.png", "out.mp4"]);
    assert_eq!(size_of(&folder.path().join("now.png")), "png,64,32");
}

/// The folder is removed during the run; before the run, such a folder would be refused.
#[test]
fn a_preview_that_cannot_be_written_does_not_fail_the_clip() {
    let folder = tempfile::tempdir().unwrap();
    let previews = folder.path().join("previews");
    let mut child = command(folder.path(), &["--preview-out", "previews", "--progress", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = child.id().to_string();
    let signal = |signal: &str| {
        assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
    };
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"phase\":\"text\"") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended early");
    }
    signal("-STOP");
    std::fs::remove_dir_all(&previews).unwrap();
    std::fs::write(&previews, "not a folder").unwrap();
    signal("-CONT");
    std::io::copy(&mut stderr, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let failed = event(&output, "done")["preview"]["failed"].as_str().unwrap().to_owned();
    assert!(failed.contains("step-00"), "{failed}");
    assert!(folder.path().join("out.mp4").is_file());
}

#[test]
fn a_preview_that_the_bundle_lacks_is_refused_before_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = golden::case(CASE).checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).args(["--out", "bare"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for (kind, fix) in [("rgb", "rushes calibrate"), ("tiny", "--tiny")] {
        let output = rushes(folder.path())
            .args(["generate", "a boat", "--bundle", "bare", "--size", "64x32", "--frames", "1", "--json"])
            .args(["--preview", kind])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(event(&output, "error")["fix"].as_str().unwrap().contains(fix));
    }
    assert_eq!(names(folder.path()), ["bare"]);
}

#[test]
fn a_map_belongs_to_its_decoder() {
    let bundle = Bundle::open(&SHARED.bundle).unwrap();
    let map = bundle.preview_map().unwrap().unwrap();
    // A checkpoint may contain the map if it was fitted for its decoder.
    for (part, kept) in [("transformer", true), ("vae", false)] {
        let copy = edit::copy_of(&SHARED.folder.path().join("checkpoint"));
        map.write(&copy.path().join("preview_map.json")).unwrap();
        edit::rewrite(&copy.path().join(part), |stored| {
            let name = stored.keys().find(|name| name.ends_with(".bias")).unwrap().clone();
            assert!(edit::change_f32(stored, &name, |value| value + 0.5));
        });
        let output = rushes(copy.path()).args(["export", ".", "--out", "bundle"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let warned = String::from_utf8_lossy(&output.stderr).contains("preview_map.json");
        assert_eq!(warned, !kept, "{part}");
        let bundle = Bundle::open(&copy.path().join("bundle")).unwrap();
        assert_eq!(bundle.preview_map().unwrap().is_some(), kept, "{part}");
    }
}

#[test]
fn the_embedded_model_has_a_map_for_its_decoder() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
    let exported = golden::export(&checkpoint).unwrap();
    assert!(
        exported.model.bundle().preview_map().unwrap().is_some(),
        "fit it again as models/mini/README.md says"
    );
}

/// A latent with slow waves in every channel, `[C,T,h,w]`.
fn smooth_latent(channels: usize, shape: [usize; 3]) -> Array4<f32> {
    let [frames, height, width] = shape;
    Array4::from_shape_fn((channels, frames, height, width), |(c, t, y, x)| {
        let [c, t, y, x] = [c, t, y, x].map(|index| index as f32);
        (0.11 * x + 0.7 * c + 0.2 * t).sin() * 0.6 + (0.13 * y - 0.4 * c).cos() * 0.6
    })
}

fn decode(decoder: &mut VideoDecoder, latent: ArrayView4<'_, f32>) -> Array4<f32> {
    let mut chunks = Vec::new();
    decoder
        .decode(latent, &Cancel::new(), &mut |frames| {
            chunks.push(frames);
            Ok(())
        })
        .unwrap();
    let views: Vec<_> = chunks.iter().map(|chunk| chunk.view()).collect();
    concatenate(Axis(0), &views).unwrap()
}

#[test]
fn tiles_join_without_a_seam() {
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/checkpoint");
    let exported = golden::export(&checkpoint).unwrap();
    let manifest = exported.model.manifest();
    assert!(manifest.component(&Component::Decoder).is_ok());
    let latent = smooth_latent(manifest.vae.latent_channels, [2, 20, 28]);
    let whole = decode(&mut VideoDecoder::new(&exported.model), latent.view());
    let side = TileSide::try_new(16, manifest.vae.stride()).unwrap();
    let tiled = decode(&mut VideoDecoder::new(&exported.model).tiled(Some(side)), latent.view());
    assert_eq!(tiled.dim(), whole.dim());
    assert!(whole.std(0.0) > 0.1, "a flat picture shows no seams");
    let psnr = |found: ArrayView4<'_, f32>, expected: ArrayView4<'_, f32>| {
        let errors: Vec<f64> = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).powi(2))).collect();
        // The range of a colour is 2.
        -10.0 * (errors.iter().sum::<f64>() / errors.len() as f64 / 4.0).log10()
    };
    let all = psnr(tiled.view(), whole.view());
    println!("tiles: {all:.1} dB");
    assert!(all >= 40.0, "{all:.1} dB");
    // No frame is much worse, in particular the first frame of a chunk.
    for (index, (found, expected)) in tiled.axis_iter(Axis(0)).zip(whole.axis_iter(Axis(0))).enumerate() {
        let frame = psnr(found.insert_axis(Axis(0)), expected.insert_axis(Axis(0)));
        assert!(frame >= 38.0, "frame {index}: {frame:.1} dB");
    }
    // Where only one tile is shown, the decode differs only by the pixels outside the tile.
    let corner = s![.., .., ..32, ..32];
    assert!(psnr(tiled.slice(corner), whole.slice(corner)) >= 40.0);
}

#[test]
fn tiles_are_used_if_memory_is_short_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let command = |command: &str, arguments: &[&str]| {
        rushes(folder.path())
            .args([command, "a boat", "--size", "256x256", "--frames", "5", "--steps", "1"])
            .args(["--residency", "one", "--bundle"])
            .arg(&SHARED.bundle)
            .args(arguments)
            .output()
            .unwrap()
    };
    let run = |arguments: &[&str]| command("generate", arguments);
    let needed = |tile: &str| {
        let plan = event(&command("plan", &["--tile", tile, "--json"]), "plan");
        plan["devices"][0]["needed"].as_u64().unwrap()
    };
    let note = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("in tiles of");
    let refused = |arguments: &[&str]| run(arguments).status.code();
    let whole = run(&[]);
    assert!(whole.status.success() && !note(&whole), "{whole:?}");
    let asked = run(&["--tile", "128"]);
    assert!(asked.status.success() && note(&asked), "{asked:?}");
    let (in_tiles, whole) = (needed("128"), needed("off"));
    assert!(in_tiles < whole, "{in_tiles} {whole}");
    let budget = ((in_tiles + whole) / 2).to_string();
    let short = run(&["--memory-budget", &budget]);
    assert!(short.status.success() && note(&short), "{short:?}");
    assert_eq!(refused(&["--memory-budget", &budget, "--tile", "off"]), Some(3));
    assert_eq!(refused(&["--tile", "32"]), Some(2));
}
