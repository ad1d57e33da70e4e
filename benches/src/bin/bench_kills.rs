//! Kills the process that makes the jobs of a queue again and again, and compares every clip with that of
//! `rushes generate`.
//!
//! `bench-kills PROGRAM KILLS [BUNDLE]` runs PROGRAM, a build of `rushes` on this machine. Without BUNDLE, which must
//! have an int8 variant, the embedded model is used. It prints how often the process was killed in each phase.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tests::kills::{Settings, run};

/// Small clips of the embedded model: its steps take a fraction of a second.
const CLIP: [&str; 8] = ["--size", "112x64", "--frames", "9", "--steps", "6", "--guidance", "4,3"];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (program, kills, bundle) = match words[..] {
        [program, kills] => (program, kills, None),
        [program, kills, bundle] => (program, kills, Some(std::path::absolute(bundle)?)),
        _ => return Err("use `bench-kills PROGRAM KILLS [BUNDLE]`".into()),
    };
    let program: PathBuf = std::path::absolute(Path::new(program))?;
    let folder = tempfile::tempdir()?;
    // Other moments each time; a run that fails names its seed.
    let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.subsec_nanos();
    eprintln!("seed {seed}");
    let report = run(&Settings {
        program: &program,
        folder: folder.path(),
        bundle: bundle.as_deref(),
        has_int8: bundle.is_some(),
        clip: &CLIP,
        kills: kills.parse()?,
        seed: u64::from(seed),
    });
    println!("{report}");
    Ok(())
}
