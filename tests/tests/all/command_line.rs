//! The program as a user runs it: its outputs, its refusals and its exit codes.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;
use tests::golden;
use tests::program::{self, event, rushes};

/// A bundle of a golden case, exported once by the program and shared by all tests of this file.
struct SharedBundle {
    _folder: tempfile::TempDir,
    bundle: PathBuf,
}

static SHARED: LazyLock<SharedBundle> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("bundle");
    let checkpoint = golden::case(CASE).checkpoint();
    let output =
        rushes(folder.path()).arg("export").arg(checkpoint).arg("--out").arg(&bundle).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    SharedBundle { _folder: folder, bundle }
});

/// A smooth clip with motion that uses the whole range, made for tests of video encoding.
const CASE: &str = "moving-clip";

/// `generate` with the shared bundle and the case's sizes, in a working folder.
fn generate(folder: &Path, arguments: &[&str]) -> Command {
    let case = golden::case(CASE);
    let mut command = rushes(folder);
    command.arg("generate").args(arguments).arg("--bundle").arg(&SHARED.bundle);
    let has = |flag: &str| arguments.contains(&flag);
    if !has("--size") {
        command.arg("--size").arg(format!("{}x{}", case.width, case.height));
    }
    if !has("--frames") && !has("--seconds") {
        command.arg("--frames").arg(case.frames.to_string());
    }
    if !has("--steps") {
        command.args(["--steps", "2"]);
    }
    command
}

/// Runs `generate` with arguments that must be refused. Returns the error.
fn refused(arguments: &[&str], code: i32) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = arguments.to_vec();
    arguments.push("--json");
    let output = generate(folder.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let remaining: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(remaining.is_empty(), "not removed: {remaining:?}");
    event(&output, "error")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

/// The properties of a video that ffprobe reads.
fn probe(path: &Path) -> Value {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json"])
        .arg(path)
        .output()
        .expect("ffprobe: `make setup` installs it");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// All frames, decoded by ffmpeg: `[F·H·W·3]` bytes.
fn decode_with_ffmpeg(path: &Path) -> Vec<u8> {
    let output = Command::new("ffmpeg")
        .args(["-v", "error", "-i"])
        .arg(path)
        .args([
            "-sws_flags",
            "accurate_rnd+full_chroma_int+bicubic",
            "-pix_fmt",
            "rgb24",
            "-f",
            "rawvideo",
            "-",
        ])
        .output()
        .expect("ffmpeg: `make setup` installs it");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

#[test]
fn the_mp4_is_read_back_by_an_independent_decoder() {
    let case = golden::case(CASE);
    let folder = tempfile::tempdir().unwrap();
    let steps = case.steps.to_string();
    let scales: Vec<String> = case.guidance.iter().map(f32::to_string).collect();
    let (scales, shift, seed) = (scales.join(","), case.shift.to_string(), case.seed.to_string());
    let (sampler, schedule) = (case.sampler.to_string(), case.schedule.to_string());
    let arguments = [
        &case.prompt,
        "--negative",
        &case.negative,
        "--steps",
        &steps,
        "--guidance",
        &scales,
        "--shift",
        &shift,
        "--sampler",
        &sampler,
        "--schedule",
        &schedule,
        "--seed",
        &seed,
        "--fps",
        "16",
        "-o",
        "clip.mp4",
        "--trace",
        "trace.safetensors",
        "--json",
    ];
    let output = generate(folder.path(), &arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let clip = folder.path().join("clip.mp4");
    let probed = probe(&clip);
    let stream = &probed["streams"][0];
    let expected = [
        ("codec_name", "h264"),
        ("pix_fmt", "yuv420p"),
        ("color_range", "tv"),
        ("color_space", "bt709"),
        ("color_transfer", "bt709"),
        ("color_primaries", "bt709"),
        ("avg_frame_rate", "16/1"),
        ("nb_read_frames", "17"),
    ];
    for (key, value) in expected {
        assert_eq!(stream[key], value, "{key} of {stream}");
    }
    assert_eq!((stream["width"].as_u64(), stream["height"].as_u64()), (Some(64), Some(32)));
    let duration: f64 = text(stream, "duration").parse().unwrap();
    assert!((duration - 17.0 / 16.0).abs() < 0.001, "{duration}");
    let tags = probed["format"]["tags"].to_string();
    assert!(tags.contains("AI-generated"), "{tags}");

    let frames = golden::Tensors::read(&folder.path().join("trace.safetensors")).latent("frames");
    let decoded = decode_with_ffmpeg(&clip);
    assert_eq!(decoded.len(), frames.len());
    let count = frames.len() as f64;
    let mean = frames.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    let deviation =
        (frames.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count).sqrt();
    assert!(deviation > 0.1, "the clip is too flat to judge by: {deviation}");
    let pairs = frames.iter().zip(&decoded);
    let error = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b) / 255.0).powi(2)).sum::<f64>() / count;
    let psnr = -10.0 * error.log10();
    assert!(psnr >= 36.0, "{psnr:.1} dB");
}

#[test]
fn a_clip_has_exactly_the_requested_frames() {
    for (arguments, frames, duration) in
        [(["--frames", "6", "--fps", "8"], "6", 0.75), (["--seconds", "3", "--fps", "30"], "90", 3.0)]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut all = vec!["a boat", "--steps", "1", "--size", "32x16"];
        all.extend(arguments);
        let output = generate(folder.path(), &all).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("the rest is trimmed"), "{stderr}");
        let probed = probe(&folder.path().join("out.mp4"));
        assert_eq!(probed["streams"][0]["nb_read_frames"], frames);
        let found: f64 = text(&probed["streams"][0], "duration").parse().unwrap();
        assert!((found - duration).abs() < 0.001, "{found}");
    }
}

#[test]
fn landscape_and_portrait_both_work() {
    for size in ["64x16", "16x64"] {
        let folder = tempfile::tempdir().unwrap();
        let output = generate(folder.path(), &["a boat", "--size", size, "--frames", "1"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let probed = probe(&folder.path().join("out.mp4"));
        let stream = &probed["streams"][0];
        assert_eq!(format!("{}x{}", stream["width"], stream["height"]), size);
    }
}

#[test]
fn the_same_seed_gives_the_same_clip_and_another_seed_another_clip() {
    let folder = tempfile::tempdir().unwrap();
    let make = |seed: &str, name: &str| {
        let trace = format!("{name}.safetensors");
        let output = format!("{name}.mp4");
        let arguments = ["a boat", "--seed", seed, "--frames", "1", "-o", &output, "--trace", &trace];
        assert!(generate(folder.path(), &arguments).status().unwrap().success());
        fs::read(folder.path().join(trace)).unwrap()
    };
    let first = make("7", "a");
    assert_eq!(first, make("7", "b"));
    assert_ne!(first, make("8", "c"));
}

#[test]
fn noise_scale_and_noise_file_reach_the_latent() {
    let case = golden::case(CASE);
    let folder = tempfile::tempdir().unwrap();
    let noise = folder.path().join("noise.safetensors");
    fs::copy(golden::folder().join(CASE).join("reference.safetensors"), &noise).unwrap();
    let latent = |arguments: &[&str]| {
        let mut all = vec!["a boat", "--trace", "t.safetensors", "--guidance", "1"];
        all.extend(arguments);
        let output = generate(folder.path(), &all).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        golden::Tensors::read(&folder.path().join("t.safetensors")).latent("latents.000")
    };
    let seed = case.seed.to_string();
    let seeded = latent(&["--seed", &seed]);
    let from_file = latent(&["--noise", "noise.safetensors"]);
    // The file contains PyTorch's noise of the seed.
    assert!(tests::compare::relative_difference(seeded.view(), from_file.view()) < 1e-4);
    let calmer = latent(&["--seed", &seed, "--noise-scale", "0.85"]);
    let norm = |values: &ndarray::Array4<f32>| values.iter().map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    assert!(norm(&calmer) < 0.95 * norm(&seeded));
}

#[test]
fn wrong_values_are_refused_by_name_before_anything_runs() {
    let cases: [(&[&str], &str); 16] = [
        (&["a boat", "--frames", "0"], "--frames"),
        (&["a boat", "--size", "60x32"], "--size"),
        (&["a boat", "--size", "big"], "--size"),
        (&["", "--frames", "1"], "prompt"),
        (&["  \u{3000}\n ", "--frames", "1"], "prompt"),
        (&["a boat", "--sampler", "ddim"], "--sampler"),
        (&["a boat", "--schedule", "mine"], "--schedule"),
        (&["a boat", "--steps", "0"], "--steps"),
        (&["a boat", "--guidance", "4,3,2"], "--guidance"),
        (&["a boat", "--guidance", "much"], "--guidance"),
        (&["a boat", "--shift", "0"], "--shift"),
        (&["a boat", "--fps", "0"], "--fps"),
        (&["a boat", "--seconds", "0"], "--seconds"),
        (&["a boat", "--noise-scale", "-1"], "--noise-scale"),
        (&["a boat", "--precision", "int8"], "int8"),
        (&["a boat", "--progress", "loud"], "--progress"),
    ];
    for (arguments, named) in cases {
        let error = refused(arguments, 2);
        assert!(text(&error, "what").contains(named), "{arguments:?}: {error}");
        assert!(!text(&error, "why").is_empty() && !text(&error, "fix").is_empty(), "{error}");
    }
}

#[test]
fn json_errors_name_the_setting() {
    for (arguments, field) in [
        (&["a boat", "--fps", "0"][..], "frame_rate"),
        (&["a boat", "--noise-scale", "-1"], "noise_scale"),
        (&["", "--frames", "1"], "prompt"),
    ] {
        assert_eq!(refused(arguments, 2)["field"], field, "{arguments:?}");
    }
    // Only the command line knows this one.
    assert!(refused(&["a boat", "--progress", "loud"], 2)["field"].is_null());
}

#[test]
fn a_wrong_size_comes_with_the_two_nearest() {
    let error = refused(&["a boat", "--size", "60x32"], 2);
    assert!(text(&error, "fix").contains("48x32") && text(&error, "fix").contains("64x32"), "{error}");
}

#[test]
fn a_prompt_over_64_kib_is_refused() {
    let long = "boat ".repeat(13_200);
    let error = refused(&[&long, "--frames", "1"], 2);
    assert!(text(&error, "why").contains("64 KiB") || text(&error, "why").contains("65536"), "{error}");
}

#[test]
fn a_prompt_over_512_tokens_is_cut_with_a_warning_that_shows_where() {
    let folder = tempfile::tempdir().unwrap();
    let words: Vec<String> = (0..700).map(|n| format!("boat{n}")).collect();
    let output = generate(folder.path(), &[&words.join(" "), "--frames", "1"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("longer than 512 tokens") && stderr.contains("boat"), "{stderr}");
}

#[test]
fn unknown_flags_and_commands_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["generate", "a boat", "--colour", "red"][..], &["paint"], &["generate"], &[]] {
        let output = rushes(folder.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_unwritable_output_is_refused_before_anything_runs() {
    for path in ["no/such/folder/out.mp4", "/dev/null/out.mp4", "/proc/out.mp4"] {
        let error = refused(&["a boat", "-o", path], 2);
        assert!(text(&error, "what").contains("out.mp4"), "{error}");
    }
    let error = refused(&["a boat", "-o", "clip.avi"], 2);
    assert!(text(&error, "what").contains("clip.avi"), "{error}");
    let error = refused(&["a boat", "--trace", "no/such/folder/t.safetensors"], 2);
    assert!(text(&error, "what").contains("t.safetensors"), "{error}");
}

#[test]
fn a_clip_that_does_not_fit_in_memory_is_refused_with_a_fix() {
    let error = refused(&["a boat", "--memory-budget", "1kB"], 3);
    assert_eq!(error["class"], "does_not_fit");
    assert!(!text(&error, "fix").is_empty(), "{error}");
}

#[test]
fn providers_without_graphs_are_refused_and_never_replaced() {
    for provider in ["cuda", "tensorrt"] {
        let folder = tempfile::tempdir().unwrap();
        let output = generate(folder.path(), &["a boat", "--ep", provider, "--json"]).output().unwrap();
        assert!(matches!(output.status.code(), Some(2 | 4)), "{output:?}");
        assert!(text(&event(&output, "error"), "what").to_lowercase().contains(provider));
    }
}

#[test]
fn a_missing_onnx_runtime_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["a boat", "--onnxruntime", "/no/such/libonnxruntime.so", "--json"];
    let output = generate(folder.path(), &arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let error = event(&output, "error");
    assert!(text(&error, "what").contains("/no/such/libonnxruntime.so"), "{error}");
    assert!(text(&error, "fix").contains("make setup"), "{error}");
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

/// Runs with a plugin folder of GStreamer without the plugins that contain an H.264 encoder.
#[test]
fn a_missing_h264_encoder_is_named_with_its_package() {
    let folder = tempfile::tempdir().unwrap();
    let plugins = folder.path().join("plugins");
    fs::create_dir(&plugins).unwrap();
    let installed = plugin_folder();
    for entry in fs::read_dir(installed).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let has_encoder = ["x264", "openh264", "libav", "va", "nvcodec", "v4l2", "omx", "qsv", "msdk"];
        if !has_encoder.iter().any(|part| name.contains(part)) {
            std::os::unix::fs::symlink(&path, plugins.join(name)).unwrap();
        }
    }
    let work = tempfile::tempdir().unwrap();
    let output = generate(work.path(), &["a boat", "--json"])
        .env("GST_PLUGIN_SYSTEM_PATH_1_0", &plugins)
        .env("GST_REGISTRY", folder.path().join("registry.bin"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let error = event(&output, "error");
    assert!(error.to_string().contains("gstreamer1.0-plugins-ugly"), "{error}");
    assert!(fs::read_dir(work.path()).unwrap().next().is_none());
}

/// The folder of GStreamer's plugins.
fn plugin_folder() -> PathBuf {
    let output = Command::new("pkg-config")
        .args(["--variable=pluginsdir", "gstreamer-1.0"])
        .output()
        .expect("pkg-config: `make setup` installs it");
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

#[test]
fn doctor_reports_that_this_machine_is_ready() {
    let folder = tempfile::tempdir().unwrap();
    let output: Output = rushes(folder.path()).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let doctor = event(&output, "doctor");
    assert!(text(&doctor["onnx_runtime"], "version").starts_with("1."), "{doctor}");
    assert_eq!(doctor["problems"], serde_json::json!([]));
}

#[test]
fn inspect_prints_the_contents_of_the_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let output = rushes(folder.path()).arg("inspect").arg(&SHARED.bundle).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["text encoder", "high_noise", "low_noise", "decoder", "scheduler config", "cpu-f32"] {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
    let output = rushes(folder.path()).args(["inspect", "."]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not a bundle"));
}

#[test]
fn progress_as_json_contains_every_step_with_its_expert() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["a boat", "--progress", "json", "--steps", "4", "--json"];
    let output = generate(folder.path(), &arguments).output().unwrap();
    let lines: Vec<Value> = String::from_utf8_lossy(&output.stderr)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let steps: Vec<&str> = lines
        .iter()
        .filter(|line| line["event"] == "progress" && line["phase"] == "denoise")
        .map(|line| line["detail"].as_str().unwrap())
        .collect();
    assert_eq!(steps.len(), 4);
    assert_eq!((steps[0], steps[3]), ("high_noise", "low_noise"));
    assert_eq!(event(&output, "done")["frames"], 17);
}

#[test]
fn every_command_has_help_and_refuses_unknown_flags() {
    let commands = program::commands();
    assert!(commands.len() >= 12 && commands.iter().any(|command| command.len() == 2), "{commands:?}");
    let folder = tempfile::tempdir().unwrap();
    for command in commands {
        let usage = format!("Usage: rushes {} ", command.join(" "));
        let help = program::help(&command);
        assert!(help.contains(&usage) && help.contains("--help"), "{command:?}: {help}");
        let output = rushes(folder.path()).args(&command).arg("--no-such-flag").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{command:?}: {output:?}");
    }
}

#[test]
fn benches_time_the_graphs_of_a_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |arguments: &[&str]| {
        let mut command = rushes(folder.path());
        command.arg("bench").args(arguments).args(["--runs", "1", "--json", "--bundle"]).arg(&SHARED.bundle);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let done = event(&output, "bench");
        assert!(done["cpu"]["threads"].as_u64().unwrap() > 0);
        assert!(done["peaks"]["f32_gflops"].as_f64().unwrap() > 0.0);
        let results = done["results"].as_array().unwrap().clone();
        assert_eq!(results[0]["precision"], "f32");
        assert_eq!(results[0]["ratio_to_f32"], 1.0);
        for result in &results {
            assert_eq!(result["seconds"].as_array().unwrap().len(), 1);
            assert!(result["share_of_peak"].as_f64().unwrap() > 0.0);
        }
        (done, results)
    };
    let (step, _) = bench(&["step", "--tokens", "2,3,4"]);
    assert_eq!((&step["what"], &step["shape"]), (&"step".into(), &"24 tokens".into()));
    let (_, decode) = bench(&["decode", "--latent", "2,2,4"]);
    assert!(decode[0]["first_frame_ms"].as_f64().unwrap() < decode[0]["ms"].as_f64().unwrap());
    let (_, clip) = bench(&["generate", "--size", "32x16", "--frames", "5", "--steps", "2"]);
    assert!(clip[0]["first_frame_ms"].as_f64().unwrap() < clip[0]["ms"].as_f64().unwrap());
}
