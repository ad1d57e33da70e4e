//! Writes the seeds in `fuzz/seeds`: small inputs that every target reads. Run it after a change of a format:
//! `cargo run -p fuzz-targets --example write_seeds`.
//!
//! Other files in the folders are kept: inputs that were once read wrongly, and those that must be refused, whose names
//! begin with `refused-`.
#![expect(clippy::unwrap_used, reason = "a step that fails ends the program")]

use bundle::dtype::ElementType;
use bundle::geometry::PixelSize;
use bundle::routing::Routing;
use bundle::settings::{ScheduleKind, SolverKind};
use bundle::timesteps::Start;
use bundle::units::{FrameRate, GuidanceScale, Seed, Shift, Sigma, Timestep};
use bundle::variant::{KernelLibrary, Precision, Variant};
use graph::{Attention, Dim, ExternalData, GraphBuilder};
use ndarray::Array4;
use runtime::denoise::{DenoiseSettings, Denoising, GuidanceForm, StepOutputs, StepPolicy};
use runtime::job::{
    ClipRecord, Extra, ForkSpec, GridSpec, InputFile, JobSpec, LatentDigest, ModelIdentity, RunConditions,
    SPEC_VERSION, SnapshotIdentity, StoredSnapshot, VariationSpec,
};
use runtime::sampler::Schedule;
use std::fs;
use std::path::Path;

fn write(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds").join(target);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), bytes).unwrap();
}

fn main() {
    let spec = serde_json::to_string(&spec()).unwrap();
    write("job_spec", "forked.json", &spec);
    write("job_spec", "plain.json", serde_json::to_string(&plain_spec()).unwrap());
    let record = record().stored().json.unwrap();
    write("clip_record", "three-steps.json", &record);
    for (name, bytes) in clip_files(&record) {
        write("clip_file", name, bytes);
    }
    write("job_spec", "few-steps.json", serde_json::to_string(&few_steps()).unwrap());
    for (solver, done) in [(SolverKind::UniPc, 3), (SolverKind::Euler, 0), (SolverKind::Renoise, 2)] {
        let snapshot = snapshot(solver, 5, StepPolicy::ComputeAll, done);
        write("snapshot", &format!("{solver}-{done}.safetensors"), snapshot.to_bytes());
    }
    let cached = snapshot(SolverKind::UniPc, 20, StepPolicy::EasyCache { threshold: 0.5 }, 8);
    assert!(!cached.snapshot.state().reused_steps().is_empty());
    write("snapshot", "easycache-8.safetensors", cached.to_bytes());
    write("onnx", "two-layers.onnx", onnx());
    write("bundle_json", "two-experts.json", bundle_json());
    write("graphs_json", "decoder.json", graphs_json());
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b.weight":{"dtype":"BF16","shape":[2],"data_offsets":[8,12]}}  "#;
    let tensors = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
    write("safetensors_header", "two-tensors.safetensors", tensors);
    let loras = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/lora");
    for name in ["kohya-with-dots", "lokr"].map(|name| format!("{name}.safetensors")) {
        write("lora", &name, fs::read(loras.join(&name)).unwrap());
    }
    let srt = "1\n00:00:00,500 --> 00:00:01,000\n<i>one</i>\nsecond {\\an8}line\n\n2\n00:01:02,003 --> 01:00:00,000 X1:5\n一只猫\n";
    write("srt", "two.srt", srt);
    write("srt", "utf-16.srt", utf_16(srt));
    let prompts = "# animals\na boat 🚤\n\n  ein Ballonö\r\n";
    write("prompts", "two.txt", prompts);
    write("prompts", "utf-16.txt", utf_16(prompts));
}

fn utf_16(text: &str) -> Vec<u8> {
    std::iter::once(0xFEFF).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

/// A spec of the bundle that [`bundle_json`] returns.
fn plain_spec() -> JobSpec {
    JobSpec {
        version: SPEC_VERSION,
        model: ModelIdentity { name: "mini".into(), digest: "01".repeat(32) },
        variant: Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime),
        prompt: "a \"red\" ball 猫".into(),
        negative: "blurry".into(),
        size: PixelSize { width: 64, height: 32 },
        frames: 5,
        fps: FrameRate::WAN,
        steps: 4,
        sampler: SolverKind::UniPc,
        schedule: ScheduleKind::Official,
        shift: Shift(3.1),
        timesteps: None,
        start: Start::Noise,
        guidance_until: Sigma(0.0),
        step_cache: StepPolicy::ComputeAll,
        guidance: vec![GuidanceScale(4.0), GuidanceScale(3.0)],
        seed: Seed(u64::MAX),
        noise_scale: 0.85,
        loras: Vec::new(),
        noise: None,
        forks: Vec::new(),
        stop_after: None,
        extras: [("caption".to_owned(), Extra::Value("hello".into()))].into(),
    }
}

/// A spec with a list of timesteps.
fn few_steps() -> JobSpec {
    JobSpec {
        sampler: SolverKind::Renoise,
        steps: 3,
        timesteps: Some("1000,757,522".parse().unwrap()),
        start: Start::ScaledNoise,
        guidance_until: Sigma(0.8),
        ..plain_spec()
    }
}

/// A spec with every field.
fn spec() -> JobSpec {
    let file = InputFile { name: "logo.png".into(), digest: "ab".repeat(32) };
    JobSpec {
        noise: Some(file.clone()),
        forks: vec![ForkSpec {
            after: 3,
            prompt: Some("a blue ball".into()),
            negative: Some(String::new()),
            guidance: Some(vec![GuidanceScale(1.0), GuidanceScale(2.0)]),
            grid: Some(GridSpec {
                sampler: SolverKind::Euler,
                schedule: ScheduleKind::Diffusers,
                steps: 4,
                shift: Shift(5.0),
                timesteps: None,
            }),
            guidance_until: Some(Sigma(0.5)),
            step_cache: Some(StepPolicy::EasyCache { threshold: 0.1 }),
            variation: Some(VariationSpec { strength: 0.25, seed: Seed(9) }),
        }],
        stop_after: Some(6),
        extras: [("logo".to_owned(), Extra::File { file, with: "top-left".into() })].into(),
        ..plain_spec()
    }
}

fn conditions() -> RunConditions {
    RunConditions {
        program: "0.1.0".into(),
        devices: "cpu".into(),
        onnx_runtime: "1.31.1".into(),
        accelerators: Vec::new(),
        processor: "AMD EPYC 9B14, family 25 model 17".into(),
        cpu_path: "avx512-vnni".into(),
        threads: 2,
        mapped_weights: false,
        guidance: GuidanceForm::OneCall,
        tile: Some(32),
    }
}

fn record() -> ClipRecord {
    let digest = LatentDigest("0123456789abcdef".into());
    ClipRecord { spec: plain_spec(), conditions: conditions(), earlier: Vec::new(), latents: vec![digest; 3] }
}

/// A clip on two experts after `done` of its steps.
fn snapshot(solver: SolverKind, steps: usize, policy: StepPolicy, done: usize) -> StoredSnapshot {
    let settings = DenoiseSettings {
        routing: Routing::pair(Timestep(875.0)).unwrap(),
        guidance: vec![GuidanceScale(4.0), GuidanceScale(1.0)],
        guidance_until: Sigma(0.0),
        schedule: Schedule::new(solver, ScheduleKind::Official, steps, Shift(5.0)),
        solver,
        policy,
    };
    let noise = Array4::from_shape_vec((2, 1, 1, 2), vec![0.5, -1.25, 0.1, 2.0]).unwrap();
    let mut state = Denoising::new(settings, noise, Seed(7)).unwrap();
    let mut latents = Vec::new();
    for _ in 0..done {
        let request = state.next().unwrap();
        if request.passes.is_reused() {
            state.reuse().unwrap();
        } else {
            let conditional = state.latent().mapv(|value| 0.5 * value);
            let unconditional = request.is_guided.then(|| conditional.clone());
            state.advance(StepOutputs { conditional, unconditional }).unwrap();
        }
        latents.push(LatentDigest::of(state.latent()));
    }
    let digest = |letter: &str| letter.repeat(64);
    StoredSnapshot {
        forks_applied: 0,
        snapshot: state.snapshot(),
        identity: SnapshotIdentity { bundle: digest("a"), text: digest("b"), settings: digest("c") },
        conditions: conditions(),
        earlier: Vec::new(),
        latents,
    }
}

fn onnx() -> Vec<u8> {
    let mut graph = GraphBuilder::new("two layers");
    let x = graph.input("x", ElementType::F32, &[2.into(), Dim::symbol("L"), 4.into()]);
    let data = ExternalData { location: "weights/w.bin".into(), offset: 0, length: 4 * 4 * 2 };
    let stored = graph.external("weight", ElementType::F16, &[4, 4], &data).unwrap();
    let weight = graph.cast(&stored, ElementType::F32);
    let hidden = graph.linear(&x, &weight, None).unwrap();
    let attended =
        graph.attention(Attention { heads: 2, scale: 0.5 }, &hidden, &hidden, &hidden, None).unwrap();
    let y = graph.silu(&attended).unwrap();
    graph.output("y", &y).unwrap();
    graph.finish().unwrap().to_bytes()
}

/// The manifest of a tiny checkpoint with two experts, without digests of files.
fn bundle_json() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/two-experts/checkpoint");
    let request = export::ExportRequest::new(&checkpoint, &folder.path().join("bundle"));
    let report = export::export(&request, &mut |_| ()).unwrap();
    let mut manifest = bundle::manifest::Bundle::read(&report.folder).unwrap().manifest;
    while manifest.digests.len() > 1 {
        manifest.digests.pop_last();
    }
    serde_json::to_vec(&manifest).unwrap()
}

/// The graphs of the decoder of two weights.
fn graphs_json() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/two-experts/checkpoint");
    let request = export::ExportRequest::new(&checkpoint, &folder.path().join("graphs"));
    let report =
        export::export(&export::ExportRequest { graphs_only: true, ..request }, &mut |_| ()).unwrap();
    let mut set = bundle::graph_set::GraphSet::read(&report.folder).unwrap();
    let manifest = &mut set.manifest;
    manifest.components.retain(|entry| entry.component == bundle::manifest::Component::Decoder);
    manifest.components[0].graphs.truncate(1);
    let kept = manifest.components[0].graphs[0].file.clone();
    manifest.digests.retain(|file, _| *file == kept || file == bundle::layout::TOKENIZER);
    set.bindings.retain(|binding| binding.component == bundle::manifest::Component::Decoder);
    while set.bindings[0].tensors.len() > 2 {
        set.bindings[0].tensors.pop_last();
    }
    serde_json::to_vec(&set).unwrap()
}

/// A clip of every container with the record.
fn clip_files(record: &str) -> [(&'static str, Vec<u8>); 6] {
    let encoded = base64url(record.as_bytes());
    let labelled = format!("RUSHES_JOB:{encoded}");
    let packet = format!("<x><rushes:job>{encoded}</rushes:job></x>");
    let data = boxed(b"data", &[b"\0\0\0\x01\0\0\0\0", labelled.as_bytes()].concat());
    let tags = boxed(b"ilst", &boxed(b"ldes", &data));
    let meta = boxed(b"meta", &[&[0; 4], &*boxed(b"hdlr", b"mdir"), &tags].concat());
    let movie = boxed(b"moov", &boxed(b"udta", &meta));
    let xmp_id = b"\xbe\x7a\xcf\xcb\x97\xa9\x42\xe8\x9c\x71\x99\x94\x91\xe3\xaf\xac";
    let xmp = boxed(b"uuid", &[&xmp_id[..], packet.as_bytes()].concat());
    let mp4 = |parts: &[&[u8]]| {
        [&boxed(b"ftyp", b"isom")[..], &parts.concat(), &boxed(b"mdat", b"frames")].concat()
    };
    let simple = [element(0x45a3, b"RUSHES_JOB"), element(0x4487, encoded.as_bytes())].concat();
    let tag = element(0x7373, &[element(0x63c0, b""), element(0x67c8, &simple)].concat());
    let info = element(0x1549_a966, &element(0x5741, b"Lavf59.27.100"));
    let segment = [info, element(0x1f43_b675, b"frames"), element(0x1254_c367, &tag)].concat();
    let matroska = [element(0x1a45_dfa3, b"head"), element(0x1853_8067, &segment)].concat();
    let png_chunk = |kind: &[u8; 4], content: &[u8]| {
        [&u32::try_from(content.len()).unwrap().to_be_bytes()[..], kind, content, &[0; 4]].concat()
    };
    let text = [b"RUSHES_JOB\0\0\0\0\0", encoded.as_bytes()].concat();
    let png = [&b"\x89PNG\r\n\x1a\n"[..], &png_chunk(b"IHDR", &[0; 13]), &png_chunk(b"iTXt", &text)];
    let png = [&png.concat()[..], &png_chunk(b"IEND", b"")].concat();
    let riff = |kind: &[u8; 4], content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap();
        [&kind[..], &length.to_le_bytes(), content, &vec![0; content.len() % 2]].concat()
    };
    let webp = [&b"WEBP"[..], &riff(b"VP8X", &[0; 9]), &riff(b"XMP ", packet.as_bytes())].concat();
    let mut gif =
        [&b"GIF89a\0\0\0\0\x80\0\0"[..], &[0; 6], b"\x21\xfe\x02hi\0\x21\xff\x0bRUSHES_JOB1"].concat();
    for block in encoded.as_bytes().chunks(255) {
        gif.push(u8::try_from(block.len()).unwrap());
        gif.extend(block);
    }
    gif.extend(b"\0\x2cpicture");
    [
        ("xmp.mp4", mp4(&[&boxed(b"moov", b""), &xmp])),
        ("tag.mp4", mp4(&[&movie])),
        ("tag.mkv", matroska),
        ("text.png", png),
        ("xmp.webp", riff(b"RIFF", &webp)),
        ("extension.gif", gif),
    ]
}

/// A box of an mp4.
fn boxed(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len() + 8).unwrap();
    [&size.to_be_bytes()[..], kind, content].concat()
}

/// An element of a Matroska file, with a size of 8 bytes.
fn element(id: u32, content: &[u8]) -> Vec<u8> {
    let id = id.to_be_bytes();
    let start = id.iter().position(|byte| *byte != 0).unwrap();
    [&id[start..], &(content.len() as u64 | 1 << 56).to_be_bytes(), content].concat()
}

/// Base64url without padding (RFC 4648 §5).
fn base64url(bytes: &[u8]) -> String {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let group = |bytes: &[u8]| -> String {
        let bits = (0..3).fold(0_u32, |bits, at| bits << 8 | u32::from(*bytes.get(at).unwrap_or(&0)));
        (0..=bytes.len()).map(|at| char::from(alphabet[(bits >> (18 - 6 * at) & 63) as usize])).collect()
    };
    bytes.chunks(3).map(group).collect()
}
