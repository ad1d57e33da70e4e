//! Paths that are not UTF-8: every command and flag accepts them, and prints them with replacement characters.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tests::program::{path, rushes};
use tests::{edit, golden};

fn named(name: &[u8]) -> OsString {
    OsStr::from_bytes(name).to_owned()
}

/// The words of a command line; `~` stands for a byte that is not UTF-8.
fn words(line: &str) -> Vec<OsString> {
    let bytes =
        |word: &str| word.bytes().map(|byte| if byte == b'~' { 0xe9 } else { byte }).collect::<Vec<u8>>();
    line.split(' ').map(|word| named(&bytes(word))).collect()
}

/// Runs a command, which must succeed and create the files `created`. Returns its last JSON line.
fn succeeds(folder: &Path, line: &str, created: &[&str]) -> serde_json::Value {
    let output = rushes(folder).args(words(line)).arg("--json").output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    for file in created {
        assert!(folder.join(&words(file)[0]).exists(), "{line}: no {file}: {output:?}");
    }
    let text = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(text.lines().last().unwrap_or("null")).unwrap()
}

fn workplace() -> (tempfile::TempDir, PathBuf) {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join(named(b"caf\xe9"));
    edit::copy_folder(&golden::case("two-experts").checkpoint(), &folder.join(named(b"ck\xe9")));
    // Small clips, which take seconds instead of minutes.
    fs::write(folder.join(named(b"ck\xe9/rushes.json")), r#"{"size":"32x32","frames":5,"steps":3}"#).unwrap();
    fs::write(folder.join(named(b"p\xe9")), "a red fox\n").unwrap();
    (outer, folder)
}

#[test]
fn every_command_accepts_paths_that_are_not_utf8() {
    let (_outer, folder) = workplace();
    let clip = "--size 32x32 --frames 5 --steps 2";
    let exported = succeeds(&folder, "export ck~ --out b~", &["b~"]);
    assert_eq!(exported["bundle"], "b\u{fffd}");
    succeeds(&folder, "inspect b~", &[]);
    let plain = rushes(&folder).args(words("export ck~ --out plain~")).output().unwrap();
    assert!(String::from_utf8_lossy(&plain.stdout).starts_with("plain\u{fffd}: "), "{plain:?}");
    let line = format!("calibrate b~ --prompts p~ {clip}");
    assert!(succeeds(&folder, &line, &[])["calibration"].as_str().unwrap().contains("b\u{fffd}/"));
    succeeds(&folder, "calibrate b~ --preview --clips 1 --size 128x128", &["b~/preview/map.json"]);
    let line = "quantize b~ --calibration b~/calibration.json --kernels onnxruntime --clips 1 --sensitivity estimated";
    assert!(succeeds(&folder, line, &[])["report"].as_str().unwrap().contains('\u{fffd}'));
    let line = format!("bench generate --bundle b~ --runs 1 --precision f32 {clip}");
    succeeds(&folder, &line, &[]);
}

#[test]
fn every_flag_of_generate_accepts_paths_that_are_not_utf8() {
    let (_outer, folder) = workplace();
    succeeds(&folder, "export ck~ --out b~", &["b~"]);
    fs::write(folder.join(named(b"c\xe9.srt")), "1\n00:00:00,000 --> 00:00:01,000\nhello\n").unwrap();
    let generate = "generate fox --bundle b~ --size 48x32 --frames 5 --steps 2";
    let line = format!("{generate} -o a~.gif --trace t~.safetensors --preview full --preview-out f~.png");
    // The preview may be skipped if the steps are too short.
    let done = succeeds(&folder, &line, &["a~.gif", "t~.safetensors"]);
    assert_eq!((&done["output"], &done["trace"]), (&"a\u{fffd}.gif".into(), &"t\u{fffd}.safetensors".into()));
    let all = ["m~.mp4", "k~.mkv", "w~.webm", "p~.webp", "y~.y4m", "frames~", "live~"];
    let outputs = all.map(|name| match name {
        "frames~" => "-o frames~/".to_owned(),
        "live~" => "-o hls:live~".to_owned(),
        file => format!("-o {file}"),
    });
    succeeds(&folder, &format!("{generate} {} --caption c~.srt", outputs.join(" ")), &all);
    let png = folder.join(named(b"frames\xe9"));
    let first = fs::read_dir(&png).unwrap().next().unwrap().unwrap().path();
    fs::copy(first, folder.join(named(b"l\xe9.png"))).unwrap();
    let line = format!("{generate} -o b~.mp4 --logo l~.png@top-left --key green --background l~.png");
    succeeds(&folder, &line, &["b~.mp4"]);
}

#[test]
fn the_library_and_the_cache_may_have_such_paths() {
    let (_outer, folder) = workplace();
    let library = {
        let program = path();
        let folders = program.ancestors().map(|folder| folder.join("onnxruntime"));
        folders.into_iter().find(|folder| folder.is_dir()).expect("target/onnxruntime: `make setup` fills it")
    };
    std::os::unix::fs::symlink(library, folder.join(named(b"lib\xe9"))).unwrap();
    let found = succeeds(&folder, "doctor --onnxruntime lib~", &[]);
    assert!(found["onnx_runtime"]["path"].as_str().unwrap().contains('\u{fffd}'), "{found}");
    succeeds(&folder, "generate fox --cache-dir c~ --steps 1 --frames 1 --size 48x32 -o a.gif", &["a.gif"]);
}

/// Paths that cannot be found, read or written are named, and no command panics.
#[test]
fn paths_that_do_not_exist_are_named() {
    let (_outer, folder) = workplace();
    for line in [
        "export no~ --out x~",
        "export ck~ --out x~ --tiny no~.safetensors",
        "inspect no~",
        "calibrate no~ --prompts p~",
        "calibrate no~ --preview",
        "quantize no~",
        "generate fox --bundle no~",
        "generate fox --bundle no~ -o x~.avi",
        "bench generate --bundle no~",
        "bench step --bundle no~",
        "bench quality --prompts no~",
        "bench quality --judge no~",
        "inspect no --onnxruntime no~",
        "generate ~",
    ] {
        for json in [None, Some("--json")] {
            let output = rushes(&folder).args(words(line)).args(json).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{line}: {output:?}");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!stderr.contains("panicked"), "{line}: {stderr}");
        }
    }
}
