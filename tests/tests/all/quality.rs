//! `rushes bench quality`: the judge scores the clips of `generate`, and wrong prompts or judges are refused.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::dtype::ElementType;
use graph::{Dim, GraphBuilder};
use ndarray::Array4;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use tests::golden;
use tests::program::{event, rushes};

const FRAMES: usize = 5;
const HEIGHT: usize = 16;
const WIDTH: usize = 32;

static BUNDLE: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case("two-experts").checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, bundle)
});

/// The weights of the test judge for the samples of a clip: it reads the first value of an attribute if the weighted
/// sum is positive.
fn weights(attribute: &str) -> Array4<f32> {
    let half = |index: usize, size: usize| if 2 * index < size { 1.0 } else { -1.0 };
    Array4::from_shape_fn((FRAMES, HEIGHT, WIDTH, 3), |(frame, _, x, channel)| match attribute {
        "side" => half(x, WIDTH),
        "end" if frame == 0 => 1.0,
        "end" if frame == FRAMES - 1 => -1.0,
        "end" => 0.0,
        "color" => [1.0, 0.0, -1.0][channel],
        other => panic!("no attribute {other}"),
    })
}

const ATTRIBUTES: [(&str, [&str; 2]); 3] =
    [("side", ["left", "right"]), ("end", ["first", "last"]), ("color", ["red", "blue"])];

/// Writes a judge with one product, which compares the brightness of parts of a clip.
fn write_judge(folder: &Path) {
    let mut g = GraphBuilder::new("judge");
    let shape = [1, FRAMES, HEIGHT, WIDTH, 3].map(Dim::from);
    let clip = g.input("clip", ElementType::F32, &shape);
    let samples = FRAMES * HEIGHT * WIDTH * 3;
    let flat = g.reshape(&clip, &[1.into(), samples.into()]).unwrap();
    let mut described = serde_json::Map::new();
    for (name, values) in ATTRIBUTES {
        let first = weights(name);
        let both: Vec<f32> = first.iter().copied().chain(first.iter().map(|weight| -weight)).collect();
        let weight = g.constant(&format!("{name} weights"), &[2, samples], &both).unwrap();
        let scores = g.linear(&flat, &weight, None).unwrap();
        g.output(name, &scores).unwrap();
        described.insert(name.into(), json!({"values": values, "accuracy": 0.75}));
    }
    g.finish().unwrap().write(&folder.join("judge.onnx")).unwrap();
    fs::write(folder.join("judge.json"), json!({ "attributes": described }).to_string()).unwrap();
}

fn write_prompts(folder: &Path, prompts: &Value) {
    fs::write(folder.join("prompts.json"), prompts.to_string()).unwrap();
}

fn prompt(language: &str, text: &str, seed: usize, asked: &Value) -> Value {
    json!({"language": language, "prompt": text, "seed": seed, "attributes": asked})
}

/// `bench quality` with the judge and the prompts of `folder`.
fn quality(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = rushes(folder);
    command.args(["bench", "quality", "--judge", "judge.onnx", "--prompts", "prompts.json", "--json"]);
    command.arg("--bundle").arg(&BUNDLE.1).args(arguments);
    command
}

/// The frames of `generate`, `[F,H,W,3]` in 0..1.
fn generated(folder: &Path, text: &str, seed: usize) -> Array4<f32> {
    let size = format!("{WIDTH}x{HEIGHT}");
    let output = rushes(folder)
        .args(["generate", text, "--steps", "2", "--trace", "trace.safetensors"])
        .args(["--size", &size, "--frames", &FRAMES.to_string(), "--seed", &seed.to_string()])
        .arg("--bundle")
        .arg(&BUNDLE.1)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let bytes = fs::read(folder.join("trace.safetensors")).unwrap();
    let trace = SafeTensors::deserialize(&bytes).unwrap();
    let frames = trace.tensor("frames").unwrap();
    let samples = frames.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Array4::from_shape_vec((FRAMES, HEIGHT, WIDTH, 3), samples).unwrap()
}

fn clips(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["event"] == "clip").collect()
}

#[test]
fn the_judge_reads_the_clips_of_generate() {
    let folder = tempfile::tempdir().unwrap();
    write_judge(folder.path());
    let texts = [("en", "a boat"), ("zh", "一艘船"), ("en", "a boat at night")];
    let all: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(seed, (language, text))| {
            prompt(language, text, seed, &json!({"side": "left", "end": "first", "color": "red"}))
        })
        .collect();
    write_prompts(folder.path(), &all.into());
    let output = quality(folder.path(), &["--steps", "2"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let clips = clips(&output);
    let mut right = [[0, 0, 0], [0, 0, 0]];
    for (seed, (language, text)) in texts.iter().enumerate() {
        let frames = generated(folder.path(), text, seed);
        for (index, (name, values)) in ATTRIBUTES.iter().enumerate() {
            let sum = (&frames * &weights(name)).sum();
            let expected = values[usize::from(sum <= 0.0)];
            assert_eq!(clips[seed]["read"][name], expected, "{text}: {name} is {sum}");
            right[usize::from(*language == "zh")][index] += usize::from(expected == values[0]);
        }
    }
    let score = event(&output, "quality");
    let share = |right: usize, clips: usize| right as f64 / clips as f64;
    for (index, line) in score["attributes"].as_array().unwrap().iter().enumerate() {
        assert_eq!(line["attribute"], ATTRIBUTES[index].0);
        assert_eq!(line["english"], share(right[0][index], 2));
        assert_eq!(line["chinese"], share(right[1][index], 1));
        assert_eq!(line["read_back"], share(right[0][index] + right[1][index], 3));
        assert_eq!((&line["judge"], &line["chance"]), (&0.75.into(), &0.5.into()));
    }
    assert_eq!(
        (&score["clips"], &score["steps"], &score["precision"]),
        (&3.into(), &2.into(), &"f32".into())
    );
}

#[test]
fn guidance_reaches_the_clips() {
    let folder = tempfile::tempdir().unwrap();
    write_judge(folder.path());
    write_prompts(folder.path(), &json!([prompt("en", "a boat", 1, &json!({}))]));
    let score = |guidance: &str| {
        let output = quality(folder.path(), &["--steps", "1", "--guidance", guidance]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        event(&output, "quality")
    };
    assert_eq!(score("1")["guidance"], json!([1.0, 1.0]));
    let without_attributes = score("3,2");
    assert_eq!(without_attributes["guidance"], json!([3.0, 2.0]));
    assert_eq!(without_attributes["mean"]["read_back"], Value::Null);
}

/// Some of the shipped prompts, with mini and its judge: guidance improves the score. On the others most clips are right
/// without it.
#[test]
fn mini_follows_its_prompts_and_better_with_guidance() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/mini/judge/prompts.json");
    let shipped: Vec<Value> = serde_json::from_slice(&fs::read(shipped).unwrap()).unwrap();
    assert_eq!(shipped.len(), 64);
    write_prompts(folder.path(), &shipped[36..48].to_vec().into());
    let read_back = |guidance: &[&str]| {
        let mut program = rushes(folder.path());
        program.args(["bench", "quality", "--prompts", "prompts.json", "--json", "--progress", "none"]);
        let output = program.args(["--cache-dir", "cache"]).args(guidance).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        event(&output, "quality")["mean"]["read_back"].as_f64().unwrap()
    };
    let (guided, unguided) = (read_back(&[]), read_back(&["--guidance", "1"]));
    assert!(guided >= 0.9, "{guided}");
    assert!(guided > unguided + 0.02, "{guided} with guidance, {unguided} without");
}

#[test]
fn prompts_and_judges_that_do_not_match_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_judge(folder.path());
    let refused = |prompts: &Value| {
        write_prompts(folder.path(), prompts);
        let output = quality(folder.path(), &["--steps", "1"]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        event(&output, "error")["why"].as_str().unwrap().to_owned()
    };
    let unknown = refused(&json!([prompt("en", "a boat", 1, &json!({"side": "top"}))]));
    assert!(unknown.contains("`top`") && unknown.contains("left, right"), "{unknown}");
    let empty = refused(&json!([prompt("en", "", 1, &json!({}))]));
    assert!(empty.contains("no text"), "{empty}");
    // A description that does not match the outputs of the graph.
    let described = json!({"attributes": {"side": {"values": ["left", "right", "top"], "accuracy": 1.0}}});
    fs::write(folder.path().join("judge.json"), described.to_string()).unwrap();
    let output = quality(folder.path(), &["--steps", "1"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn an_interrupt_reports_the_number_of_scored_clips() {
    let folder = tempfile::tempdir().unwrap();
    write_judge(folder.path());
    let all: Vec<Value> =
        (0..50).map(|seed| prompt("en", "a boat", seed, &json!({"side": "left"}))).collect();
    write_prompts(folder.path(), &all.into());
    let mut child = quality(folder.path(), &["--steps", "200", "--progress", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("\"progress\"") {
        line.clear();
        assert!(stderr.read_line(&mut line).unwrap() > 0, "the run ended before its first clip");
    }
    let interrupted = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(interrupted.success());
    let mut rest = String::new();
    stderr.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{rest}");
    let error = event(&output, "error");
    assert!(error["why"].as_str().unwrap().contains("of 50 clips"), "{error}");
}
