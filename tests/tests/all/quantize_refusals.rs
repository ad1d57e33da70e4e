//! `rushes quantize` refuses models that Rushes kernels do not support before anything is computed.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use bundle::quantization::Scheme;
use bundle::variant::KernelLibrary;
use quality::quantize::{QuantizeOptions, Quantizer};
use std::path::Path;
use tests::program::{event, rushes};
use tests::{edit, golden};

fn export(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = edit::copy_of(&golden::case(case).checkpoint());
    // The clips of the report use the defaults.
    std::fs::write(checkpoint.path().join("rushes.json"), r#"{"size": "32x32", "frames": 5, "steps": 4}"#)
        .unwrap();
    let request = export::ExportRequest::new(checkpoint.path(), &folder.path().join("bundle"));
    export::export(&request, &mut |_| ()).unwrap();
    folder
}

#[test]
fn unsupported_head_widths_are_refused_with_an_alternative() {
    // The heads are 12, 26 and 8 wide.
    for (case, width) in [("two-experts", "12"), ("four-steps", "26"), ("moving-clip", "8")] {
        let folder = export(case);
        for (arguments, flag, fix) in [
            (&["--scheme", "int8"][..], "--kernels", "--kernels onnxruntime"),
            (&["--kernels", "rushes"], "--kernels", "--kernels onnxruntime"),
            (&["--kernels", "onnxruntime,rushes"], "--kernels", "--kernels onnxruntime"),
            (&["--scheme", "bf16"], "--scheme", "--scheme int8 with --kernels onnxruntime"),
        ] {
            let output = rushes(folder.path())
                .args(["quantize", "bundle", "--json"])
                .args(arguments)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let error = event(&output, "error");
            assert!(error["what"].as_str().unwrap().starts_with(flag), "{error}");
            assert!(error["why"].as_str().unwrap().contains(&format!("this model's is {width}")), "{error}");
            assert!(error["fix"].as_str().unwrap().contains(fix), "{error}");
        }
        // The other schemes need a calibration, which is checked next.
        for scheme in [Scheme::Int8, Scheme::Fp8, Scheme::Int8Weights] {
            let options =
                QuantizeOptions { kernels: vec![KernelLibrary::OnnxRuntime], ..QuantizeOptions::new(scheme) };
            let bundle = folder.path().join("bundle");
            let error = Quantizer::open(&bundle, Path::new("absent.json"), options).unwrap_err().to_string();
            assert!(error.contains("absent.json"), "{error}");
        }
    }
}

/// Calibrates and quantises a model, with a report on one clip.
fn quantizes(case: &str, variants: &[&[&str]]) -> tempfile::TempDir {
    let folder = export(case);
    std::fs::write(folder.path().join("prompts"), "a fox\n").unwrap();
    let run = |arguments: &[&str]| {
        let output = rushes(folder.path()).args(arguments).output().unwrap();
        assert!(output.status.success(), "{case} {arguments:?}: {output:?}");
    };
    run(&["calibrate", "bundle", "--prompts", "prompts", "--progress", "none"]);
    for variant in variants {
        let quick = ["--clips", "1", "--sensitivity", "estimated"];
        run(&[&["quantize", "bundle"], *variant, &quick[..]].concat());
    }
    folder
}

/// A model that is not refused can be quantised at any width: layers that are not multiples of a tile, a decoder of
/// four channels.
#[test]
fn models_of_odd_widths_are_quantised_and_run() {
    let folder = quantizes("official-names", &[&["--kernels", "rushes,onnxruntime"]]);
    // The INT8 decoder has no trunk and upsampler: several tiles are refused before the steps, a single tile is not.
    let generate = |size: &str, tile: &str| {
        let clip = [
            "generate",
            "fox",
            "--bundle",
            "bundle",
            "--precision",
            "int8",
            "--progress",
            "none",
            "-o",
            "a.gif",
        ];
        let sizes = ["--size", size, "--tile", tile, "--frames", "1", "--steps", "2"];
        rushes(folder.path()).args(clip).args(sizes).output().unwrap()
    };
    let output = generate("512x512", "256");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("--tile cannot be") && stderr.contains("decodes whole frames only"), "{stderr}");
    assert!(generate("32x32", "256").status.success());
}

#[test]
#[ignore = "minutes; `make test-long` runs it"]
fn every_scheme_runs_at_odd_widths() {
    quantizes("official-names", &[&["--scheme", "bf16"], &["--scheme", "fp8"]]);
    for case in ["two-experts", "five-latent-frames", "four-steps", "moving-clip"] {
        quantizes(
            case,
            &[&["--kernels", "onnxruntime"], &["--scheme", "fp8"], &["--scheme", "int8-weights"]],
        );
    }
}
