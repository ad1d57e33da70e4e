//! A queue whose process is killed again and again loses nothing. `bench-kills` does the same more often.

use super::job_bundle::BUNDLE;
use tests::kills::{Settings, run};

/// Clips whose steps take long enough to be interrupted.
const CLIP: [&str; 10] =
    ["--size", "96x96", "--frames", "9", "--steps", "6", "--guidance", "4,3", "--shift", "5"];

#[test]
fn jobs_survive_kills_in_every_phase_with_their_bits() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = run(&Settings {
        program: &tests::program::path(),
        folder: folder.path(),
        bundle: Some(&BUNDLE.1),
        has_int8: true,
        clip: &CLIP,
        kills: 8,
        seed: 1,
    });
    eprintln!("{report}");
    assert_eq!(report.repeated.len(), 8);
    // A phase that takes no time on this machine may be missed.
    assert!(report.kills.len() >= 4, "{report}");
    assert!(report.outputs >= 8 * report.rounds, "{report}");
}
