//! The output of the benchmarks: the machine with its peaks, and one line per case.

use engines::doctor::Cpu;
use kernels::peak::Peaks;
use kernels::{CpuPath, Kernels};
use quality::bench::timing::Measured;
use serde_json::{Value, json};
use std::fmt::Write;
use std::num::NonZeroUsize;

/// The machine and its peak throughput.
#[derive(Debug)]
pub(super) struct Machine {
    cpu: Cpu,
    threads: usize,
    path: CpuPath,
    pub(super) peaks: Peaks,
}

impl Machine {
    /// Detects the processor and measures the path of `kernels` with `threads` threads, in about a second.
    pub(super) fn measure(kernels: Kernels, threads: Option<NonZeroUsize>) -> Self {
        let cpu = Cpu::detect();
        let threads = threads.or(NonZeroUsize::new(cpu.threads)).unwrap_or(NonZeroUsize::MIN);
        Self { cpu, threads: threads.get(), path: kernels.path(), peaks: kernels.peaks(threads) }
    }

    fn instruction_sets(&self) -> Vec<&'static str> {
        let present = self.cpu.instruction_sets.iter().filter(|(_, present)| *present);
        present.map(|(set, _)| set.name()).collect()
    }

    /// One line for the text output.
    pub(super) fn describe(&self) -> String {
        let family = self.cpu.family.as_deref().map_or(String::new(), |family| format!(" ({family})"));
        let threads = if self.threads == 1 { "1 thread".into() } else { format!("{} threads", self.threads) };
        let sets = self.instruction_sets().join(" ");
        format!("{}{family}, {threads}; {sets}; Rushes kernels on {}", self.cpu.name, self.path)
    }

    pub(super) fn as_json(&self) -> Value {
        json!({
            "cpu": {
                "name": self.cpu.name,
                "family": self.cpu.family,
                "threads": self.threads,
                "instruction_sets": self.instruction_sets(),
                "path": self.path.name(),
            },
            "peaks": {
                "int8_gops": self.peaks.int8 / 1e9,
                "bf16_gflops": self.peaks.bf16.map(|peak| peak / 1e9),
                "f32_gflops": self.peaks.f32 / 1e9,
                "memory_read_gb_per_s": self.peaks.memory_read / 1e9,
                "memory_copy_gb_per_s": self.peaks.memory_copy / 1e9,
            },
        })
    }
}

/// The peaks for the text output, one per line.
pub(super) fn describe_peaks(peaks: &Peaks) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: Option<f64>, unit: &str| {
        let value = value.map_or("no instruction".into(), |value| format!("{:>8.1} {unit}", value / 1e9));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("int8", Some(peaks.int8), "GOP/s in registers");
    line("bf16", peaks.bf16, "GFLOP/s in registers");
    line("f32", Some(peaks.f32), "GFLOP/s in registers");
    line("memory read", Some(peaks.memory_read), "GB/s");
    line("memory copy", Some(peaks.memory_copy), "GB/s");
    text
}

/// The cases for the text output, one per line.
pub(super) fn table(measured: &[Measured]) -> String {
    let mut text = String::new();
    let with_first = measured.iter().any(|line| line.first_frame_ms.is_some());
    let width = if measured.iter().all(|line| line.device == "cpu") { 13 } else { 22 };
    let mut line = |cells: [&str; 7]| {
        let [precision, ms, median, first, rate, share, ratio] = cells;
        let first = if with_first { format!(" {first:>11}") } else { String::new() };
        // Writing into a String cannot fail.
        let _ =
            writeln!(text, "{precision:<width$} {ms:>9} {median:>9}{first} {rate:>8} {share:>8} {ratio:>7}");
    };
    line(["precision", "ms", "median", "first frame", "GFLOP/s", "of peak", "x f32"]);
    let or_dash = |value: Option<String>| value.unwrap_or("-".into());
    for one in measured {
        let kernels = match (one.device.as_str(), one.kernels.is_onnx_runtime()) {
            ("cpu", true) => String::new(),
            ("cpu", false) => format!(", {}", one.kernels),
            (device, _) => format!(", {device}"),
        };
        line([
            &format!("{}{kernels}", one.precision),
            &format!("{:.1}", one.ms),
            &format!("{:.1}", one.median_ms),
            &or_dash(one.first_frame_ms.map(|ms| format!("{ms:.1}"))),
            &or_dash(one.gflops.map(|rate| format!("{rate:.1}"))),
            &or_dash(one.share_of_peak.map(|share| format!("{:.1} %", 100.0 * share))),
            &or_dash(one.ratio_to_f32.map(|ratio| format!("{ratio:.2}"))),
        ]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::variant::{KernelLibrary, Precision};

    fn line(precision: Precision, ms: f64, first_frame_ms: Option<f64>) -> Measured {
        Measured {
            precision,
            kernels: KernelLibrary::OnnxRuntime,
            device: "cpu".into(),
            seconds: vec![ms / 1e3],
            ms,
            median_ms: ms,
            first_frame_ms,
            gflops: Some(384.0e3 / ms),
            share_of_peak: Some(0.5),
            ratio_to_f32: Some(1930.0 / ms),
        }
    }

    #[test]
    fn cases_are_lines_and_first_frames_a_column_if_there_are_any() {
        insta::assert_snapshot!(table(&[line(Precision::F32, 1930.0, None), line(Precision::Int8, 780.0, None)]), @r"
        precision            ms    median  GFLOP/s  of peak   x f32
        f32              1930.0    1930.0    199.0   50.0 %    1.00
        int8              780.0     780.0    492.3   50.0 %    2.47
        ");
        insta::assert_snapshot!(table(&[line(Precision::F32, 1930.0, Some(120.25))]), @r"
        precision            ms    median first frame  GFLOP/s  of peak   x f32
        f32              1930.0    1930.0       120.2    199.0   50.0 %    1.00
        ");
    }

    #[test]
    fn a_number_format_without_an_instruction_is_named() {
        let peaks = Peaks { int8: 929e9, bf16: None, f32: 234e9, memory_read: 30e9, memory_copy: 28e9 };
        insta::assert_snapshot!(describe_peaks(&peaks), @r"
        int8            929.0 GOP/s in registers
        bf16         no instruction
        f32             234.0 GFLOP/s in registers
        memory read      30.0 GB/s
        memory copy      28.0 GB/s
        ");
    }
}
