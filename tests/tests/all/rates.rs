//! Frame rates are exact from the command line and from the bundle to the file.
#![expect(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::path::Path;
use std::process::{Command, Output};
use tests::edit;
use tests::golden;
use tests::program::{event, rushes};

fn export(folder: &Path, checkpoint: &Path) -> Output {
    rushes(folder).arg("export").arg(checkpoint).args(["--out", "b", "--json"]).output().unwrap()
}

fn generate(folder: &Path, arguments: &[&str]) -> Output {
    rushes(folder)
        .args([
            "generate", "a fox", "--bundle", "b", "--size", "48x32", "--steps", "1", "--seed", "1", "--json",
        ])
        .args(arguments)
        .output()
        .unwrap()
}

fn rate_of(clip: &Path) -> String {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-show_entries", "stream=r_frame_rate", "-of", "csv=p=0"])
        .arg(clip)
        .output()
        .expect("ffprobe: `make setup` installs it");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn broadcast_frame_rates_are_exact() {
    let folder = tempfile::tempdir().unwrap();
    assert!(export(folder.path(), &golden::case("two-experts").checkpoint()).status.success());
    for (text, exact) in
        [("23.976", "24000/1001"), ("24.0", "24/1"), ("30000/1001", "30000/1001"), ("59.94", "60000/1001")]
    {
        for flag in ["--fps", "--output-fps"] {
            let output = generate(folder.path(), &["--frames", "5", flag, text]);
            assert!(output.status.success(), "{flag} {text}: {output:?}");
            let done = event(&output, "done");
            assert_eq!(rate_of(&folder.path().join("out.mp4")), exact, "{flag} {text}");
            assert_eq!(done["frame_rate"], exact.trim_end_matches("/1"), "{done}");
            let (frames, seconds) = exact.split_once('/').unwrap();
            let number = frames.parse::<f64>().unwrap() / seconds.parse::<f64>().unwrap();
            assert!((done["fps"].as_f64().unwrap() - number).abs() < 1e-9, "{done}");
        }
    }
    // A length in seconds uses the same rate.
    let done = event(&generate(folder.path(), &["--seconds", "1.001", "--fps", "29.97"]), "done");
    assert_eq!(done["frames"], 30, "{done}");
}

#[test]
fn wrong_frame_rates_are_refused_by_flag_with_the_nearest_rate() {
    let folder = tempfile::tempdir().unwrap();
    assert!(export(folder.path(), &golden::case("two-experts").checkpoint()).status.success());
    for (text, fix) in [
        ("23.97602", "23.976"),
        ("12.34567", "12.346"),
        ("99999/5003", "19.988"),
        ("fast", "24000/1001"),
        ("24/0", "24000/1001"),
        ("-24", "24000/1001"),
        ("0", "leaving it out"),
        ("240.5", "leaving it out"),
    ] {
        for flag in ["--fps", "--output-fps"] {
            let output = generate(folder.path(), &["--frames", "1", flag, text]);
            // A rounded broadcast rate is read as that rate.
            if text == "23.97602" {
                assert!(output.status.success(), "{output:?}");
                assert_eq!(event(&output, "done")["frame_rate"], "24000/1001");
                continue;
            }
            assert_eq!(output.status.code(), Some(2), "{flag} {text}: {output:?}");
            let error = event(&output, "error");
            assert!(error["what"].as_str().unwrap().starts_with(&format!("{flag} cannot be ")), "{error}");
            assert!(error["fix"].as_str().unwrap().contains(fix), "{text}: {error}");
        }
    }
}

#[test]
fn the_frame_rate_of_a_checkpoint_is_kept_in_the_bundle() {
    for (json, rate) in
        [("23.976", "24000/1001"), (r#""30000/1001""#, "30000/1001"), ("12.5", "25/2"), ("25", "25/1")]
    {
        let copy = edit::copy_of(&golden::case("two-experts").checkpoint());
        std::fs::write(copy.path().join("rushes.json"), format!(r#"{{"fps": {json}}}"#)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        assert!(export(folder.path(), copy.path()).status.success(), "{json}");
        let output = generate(folder.path(), &["--frames", "1"]);
        assert_eq!(event(&output, "done")["frame_rate"], rate.trim_end_matches("/1"), "{output:?}");
        assert_eq!(rate_of(&folder.path().join("out.mp4")), rate);
        let shown = rushes(folder.path()).args(["inspect", "b"]).output().unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(
            shown.contains(&format!("fps        {} (rushes.json)", rate.trim_end_matches("/1"))),
            "{shown}"
        );
    }
    for wrong in ["0", "-24", "241", "16777216", r#""fast""#, "null", "[24]"] {
        let copy = edit::copy_of(&golden::case("two-experts").checkpoint());
        std::fs::write(copy.path().join("rushes.json"), format!(r#"{{"fps": {wrong}}}"#)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let output = export(folder.path(), copy.path());
        if wrong == "null" {
            // `null` means no recommendation.
            assert!(output.status.success(), "{output:?}");
            continue;
        }
        assert_eq!(output.status.code(), Some(2), "{wrong}: {output:?}");
        assert!(event(&output, "error").to_string().contains("rushes.json"), "{wrong}: {output:?}");
    }
}
