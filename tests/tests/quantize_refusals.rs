//! Models that Rushes kernels have no kernels for are refused by `rushes quantize` before anything is computed.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use bundle::quantization::Scheme;
use bundle::variant::KernelLibrary;
use quality::quantize::{QuantizeOptions, Quantizer};
use std::path::Path;
use tests::program::{event, rushes};
use tests::{edit, golden};

fn export(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = edit::copy_of(&golden::case(case).checkpoint());
    // The report's clips are made with the defaults.
    std::fs::write(checkpoint.path().join("rushes.json"), r#"{"size": "32x32", "frames": 5, "steps": 4}"#)
        .unwrap();
    let request = export::ExportRequest::new(checkpoint.path(), &folder.path().join("bundle"));
    export::export(&request, &mut |_| ()).unwrap();
    folder
}

#[test]
fn heads_that_there_are_no_kernels_for_are_refused_by_name_with_what_works() {
    // 12, 26 and 8 wide.
    for (case, width) in [("two-experts", "12"), ("four-steps", "26"), ("moving-clip", "8")] {
        let folder = export(case);
        for (arguments, flag, fix) in [
            (&["--scheme", "int8"][..], "--kernels", "--kernels onnxruntime"),
            (&["--kernels", "rushes"], "--kernels", "--kernels onnxruntime"),
            (&["--kernels", "onnxruntime,rushes"], "--kernels", "--kernels onnxruntime"),
            (&["--scheme", "bf16"], "--scheme", "--scheme int8 --kernels onnxruntime"),
        ] {
            let output = rushes(folder.path())
                .args(["quantize", "bundle", "--json"])
                .args(arguments)
                .output()
                .unwrap();
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            let error = event(&output, "error");
            assert!(error["what"].as_str().unwrap().starts_with(flag), "{error}");
            assert!(error["why"].as_str().unwrap().contains(&format!("are {width} wide")), "{error}");
            assert!(error["fix"].as_str().unwrap().contains(fix), "{error}");
        }
        // The others want a calibration, which is the next thing that is looked at.
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

/// What `quantize` does not refuse it can do, whatever the widths: layers that no step of the products divides, a decoder
/// of four channels.
#[test]
fn what_is_not_refused_runs_at_odd_widths() {
    let folder = quantizes("official-names", &[&["--kernels", "rushes,onnxruntime"]]);
    // The decoder of bytes is one graph: tiles are refused before the steps, and one tile is the whole picture.
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
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("--tile cannot be") && said.contains("decodes pictures whole"), "{said}");
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
