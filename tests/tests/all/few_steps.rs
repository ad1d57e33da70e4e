//! Lists of timesteps, presets and reused steps on the command line: refusals, records, and what goes on from where.

use super::job_bundle::{done, latents, run, stderr};
use serde_json::Value;
use std::path::Path;
use tests::program::event;

/// A small clip, without its steps.
const CLIP: [&str; 9] = ["generate", "a boat", "--size", "32x32", "--frames", "5", "--seed", "7", "--json"];

fn clip(folder: &Path, more: &[&str]) -> std::process::Output {
    done(folder, &[&CLIP[..], more].concat())
}

fn refused(folder: &Path, more: &[&str]) -> String {
    let output = run(folder, &[&CLIP[..8], more].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    stderr(&output)
}

#[test]
fn a_preset_is_its_list_sampler_and_guidance_and_is_repeated_by_like() {
    let folder = tempfile::tempdir().unwrap();
    let preset = clip(folder.path(), &["--preset", "fastwan-3", "-o", "preset.mp4"]);
    let by_hand =
        ["--timesteps", "1000,757,522", "--sampler", "renoise", "--guidance", "1", "-o", "list.mp4"];
    assert_eq!(latents(&preset), latents(&clip(folder.path(), &by_hand)));
    assert_eq!(event(&preset, "done")["steps"], 3);
    let like = ["generate", "--like", "preset.mp4", "--json", "-o", "again.mp4"];
    assert_eq!(latents(&done(folder.path(), &like)), latents(&preset));
    done(folder.path(), &["verify", "preset.mp4"]);
    // A grid in place of the list of the other clip, and another list.
    let grid = [&like[..4], &["--timesteps", "grid", "--sampler", "unipc", "--steps", "4", "-o", "grid.mp4"]]
        .concat();
    assert_eq!(event(&done(folder.path(), &grid), "done")["steps"], 4);
    let list = [&like[..4], &["--timesteps", "900,500", "-o", "other.mp4"]].concat();
    assert_eq!(event(&done(folder.path(), &list), "done")["steps"], 2);
}

#[test]
fn what_does_not_go_together_is_refused_with_the_flags() {
    let folder = tempfile::tempdir().unwrap();
    let said = refused(folder.path(), &["--preset", "lightning-4", "--steps", "8"]);
    assert!(said.contains("--steps cannot be 8") && said.contains("--timesteps"), "{said}");
    let said = refused(folder.path(), &["--timesteps", "1000,500"]);
    assert!(said.contains("--sampler cannot be unipc") && said.contains("renoise"), "{said}");
    let said = refused(folder.path(), &["--timesteps", "500,1000"]);
    assert!(said.contains("below the one before"), "{said}");
    let said = refused(folder.path(), &["--preset", "lightning-9"]);
    assert!(said.contains("lightning-4") && said.contains("rcm-4"), "{said}");
    let said = refused(folder.path(), &["--steps", "8", "--step-cache", "easycache"]);
    assert!(said.contains("--step-cache cannot be easycache") && said.contains("8 steps"), "{said}");
    let said = refused(folder.path(), &["--preset", "rcm-4", "--step-cache", "easycache"]);
    assert!(said.contains("--step-cache cannot be easycache"), "{said}");
    let said = refused(folder.path(), &["--guidance-until", "2"]);
    assert!(said.contains("0 to 1"), "{said}");
}

#[test]
fn reused_steps_are_reported_stored_and_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let cached = ["--steps", "16", "--step-cache", "easycache=1", "--guidance-until", "0.6"];
    let whole = clip(folder.path(), &[&cached[..], &["-o", "whole.mp4"]].concat());
    let reused = event(&whole, "done")["reused_steps"].clone();
    let steps = reused.as_array().unwrap();
    assert!((3..14).contains(&steps.len()), "{reused}");
    let skipped = event(&whole, "done")["skipped_passes"].as_u64().unwrap();
    assert!((steps.len()..=2 * steps.len()).contains(&usize::try_from(skipped).unwrap()), "{skipped}");
    let like = ["generate", "--like", "whole.mp4", "--json", "-o", "again.mp4"];
    assert_eq!(latents(&done(folder.path(), &like)), latents(&whole));
    done(folder.path(), &["verify", "whole.mp4"]);
    // Stopped in the middle, it goes on with the velocities of its snapshot.
    let middle = steps[steps.len() / 2].to_string();
    let stopped = ["--job-dir", "job", "--stop-after", &middle, "-o", "stopped.mp4"];
    clip(folder.path(), &[&cached[..], &stopped].concat());
    let resumed = done(folder.path(), &["generate", "--resume", "job", "--json", "-o", "resumed.mp4"]);
    assert_eq!(latents(&resumed), latents(&whole));
    assert_eq!(event(&resumed, "done")["reused_steps"], reused);
}

#[test]
fn a_job_goes_on_with_a_preset() {
    let folder = tempfile::tempdir().unwrap();
    clip(folder.path(), &["--steps", "6", "--job-dir", "job", "--stop-after", "1", "-o", "stopped.mp4"]);
    let resume = ["generate", "--resume", "job", "--json", "--job-dir", "other", "-o", "forked.mp4"];
    let forked = done(folder.path(), &[&resume[..], &["--preset", "fastwan-3"]].concat());
    let result = event(&forked, "done");
    // One step of the grid, then the level that it ended at, and what is below it in the list.
    assert!(result["steps"].as_u64().unwrap() <= 4, "{result}");
    assert_eq!(result["forks"][0]["grid"]["timesteps"], serde_json::json!([1000.0, 757.0, 522.0]));
    let again = ["generate", "--like", "forked.mp4", "--json", "-o", "again.mp4"];
    assert_eq!(latents(&done(folder.path(), &again)), latents(&forked));
    let output =
        run(folder.path(), &["generate", "--resume", "job", "--preset", "rcm-4", "--start", "noise"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(stderr(&output).contains("--start cannot be noise"), "{output:?}");
}

#[test]
fn a_plan_counts_the_guided_steps() {
    let folder = tempfile::tempdir().unwrap();
    let plan = |more: &[&str]| {
        let arguments = ["plan", "a boat", "--size", "32x32", "--frames", "5", "--json"];
        event(&done(folder.path(), &[&arguments[..], more].concat()), "plan")
    };
    let guided = |plan: &Value| -> u64 {
        plan["experts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|expert| expert["guided_steps"].as_u64().unwrap())
            .sum()
    };
    let all = plan(&["--steps", "6", "--guidance", "4"]);
    assert_eq!(guided(&all), 6);
    let first = plan(&["--preset", "lightning-4-guided"]);
    assert_eq!((guided(&first), first["steps"].as_u64()), (1, Some(4)));
    assert_eq!(first["timesteps"][1], 937.5);
}
