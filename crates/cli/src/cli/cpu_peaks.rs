//! The peaks of the processor for estimates: measured once a day and kept in the cache folder.

use super::global::GlobalArgs;
use crate::{Error, mini};
use bundle::atomic;
use bundle::digest::Digest;
use engines::doctor::Cpu;
use kernels::peak::ArithmeticPeaks;
use runtime::estimate::CpuPeaks;
use serde_json::{Value, json};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The time after which peaks are measured again. The higher ones are kept.
const RENEWED: Duration = Duration::from_secs(24 * 3600);

/// What the peaks depend on.
struct Conditions {
    processor: String,
    threads: NonZeroUsize,
    path: &'static str,
}

/// The peaks of `threads` threads, or of one per core. The first call of a day measures them, in about 0.15 s.
///
/// # Errors
/// Returns an error if this processor lacks the selected path of the Rushes kernels.
pub(super) fn cpu_peaks(global: &GlobalArgs, threads: Option<NonZeroUsize>) -> Result<CpuPeaks, Error> {
    let kernels = global.kernels()?;
    let cpu = Cpu::detect();
    let threads = threads.or(NonZeroUsize::new(cpu.threads)).unwrap_or(NonZeroUsize::MIN);
    let family = cpu.family.unwrap_or_default();
    let processor = format!("{} {family}", cpu.name);
    let conditions = Conditions { processor, threads, path: kernels.path().name() };
    let file = mini::cache_folder(global.cache_dir.as_deref()).map(|folder| conditions.file(folder));
    let known = file.as_ref().and_then(|file| conditions.read(&std::fs::read(file).ok()?));
    if let (Some(known), Some(file)) = (known, &file)
        && is_recent(file)
    {
        return Ok(known);
    }
    let ArithmeticPeaks { int8, bf16, f32, has_tiles } = kernels.quick_peaks(threads);
    let measured = CpuPeaks { int8, bf16, f32, has_tiles };
    let peaks = known.map_or(measured, |known| better(known, measured));
    // Without a cache they are measured again next time.
    if let Some(file) = file
        && let Err(error) = conditions.write(&file, peaks)
    {
        tracing::debug!("{} cannot be written: {error}", file.display());
    }
    Ok(peaks)
}

/// Returns true if a file was written less than [`RENEWED`] ago.
fn is_recent(file: &Path) -> bool {
    let written = std::fs::metadata(file).and_then(|found| found.modified());
    written.is_ok_and(|written| written.elapsed().is_ok_and(|age| age < RENEWED))
}

/// The higher peaks of two measurements. Other programs make a measurement lower, and nothing makes it higher.
fn better(one: CpuPeaks, other: CpuPeaks) -> CpuPeaks {
    CpuPeaks {
        int8: one.int8.max(other.int8),
        bf16: one.bf16.zip(other.bf16).map(|(one, other)| one.max(other)).or(other.bf16),
        f32: one.f32.max(other.f32),
        has_tiles: other.has_tiles,
    }
}

impl Conditions {
    fn as_json(&self) -> Value {
        json!({
            "processor": self.processor,
            "threads": self.threads,
            "path": self.path,
            "rushes": env!("CARGO_PKG_VERSION"),
        })
    }

    fn file(&self, cache: PathBuf) -> PathBuf {
        let digest = Digest::of_parts([self.as_json().to_string().as_bytes()]);
        cache.join(format!("peaks-{}.json", digest.short()))
    }

    /// The peaks of a file, if it is whole and of these conditions.
    fn read(&self, text: &[u8]) -> Option<CpuPeaks> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let rate = |name: &str| value[name].as_f64().filter(|rate| rate.is_finite() && *rate > 0.0);
        let peaks = CpuPeaks {
            int8: rate("int8")?,
            bf16: rate("bf16"),
            f32: rate("f32")?,
            has_tiles: value["has_tiles"].as_bool()?,
        };
        (value["conditions"] == self.as_json()).then_some(peaks)
    }

    fn write(&self, file: &Path, peaks: CpuPeaks) -> std::io::Result<()> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let CpuPeaks { int8, bf16, f32, has_tiles } = peaks;
        let conditions = self.as_json();
        let value =
            json!({"conditions": conditions, "int8": int8, "bf16": bf16, "f32": f32, "has_tiles": has_tiles});
        let mut part = atomic::create_part(file)?;
        writeln!(part, "{value}")?;
        atomic::publish(part, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEAKS: CpuPeaks = CpuPeaks { int8: 8e11, bf16: None, f32: 2e11, has_tiles: false };

    fn conditions(threads: usize) -> Conditions {
        let threads = NonZeroUsize::new(threads).unwrap();
        Conditions { processor: "a processor".into(), threads, path: "avx2" }
    }

    #[test]
    fn the_higher_of_two_measurements_counts() {
        let other = CpuPeaks { int8: 1e12, bf16: Some(4e11), f32: 1e11, has_tiles: false };
        assert_eq!(better(PEAKS, other), CpuPeaks { f32: 2e11, ..other });
        assert_eq!(better(other, PEAKS), CpuPeaks { int8: 1e12, ..PEAKS });
    }

    #[test]
    fn peaks_are_read_as_they_were_written_and_only_for_the_same_conditions() {
        let folder = tempfile::tempdir().unwrap();
        let file = conditions(2).file(folder.path().join("cache"));
        conditions(2).write(&file, PEAKS).unwrap();
        let text = std::fs::read(&file).unwrap();
        assert_eq!(conditions(2).read(&text), Some(PEAKS));
        assert_eq!(conditions(4).read(&text), None);
        assert_ne!(conditions(4).file(folder.path().into()), conditions(2).file(folder.path().into()));
        assert_eq!(conditions(2).read(&text[..text.len() / 2]), None);
        let negative = String::from_utf8(text).unwrap().replace("800000000000.0", "-1.0");
        assert_eq!(conditions(2).read(negative.as_bytes()), None);
        // It is written once more without a trace of the part.
        conditions(2).write(&file, PEAKS).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("cache")).unwrap().count(), 1);
    }
}
