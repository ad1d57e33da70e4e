//! Runs several cases alternately, so that slow phases of the machine affect all of them, and computes statistics.

use super::workload::{Run, Workload, timed};
use crate::Error;
use bundle::variant::{KernelLibrary, Precision, Variant};
use engines::{Cancel, Device, Provider};
use kernels::peak::Peaks;
use serde::Serialize;

/// One of the compared cases.
pub struct BenchCase {
    /// The variant of its graphs.
    pub variant: Variant,
    /// The device that they run on.
    pub device: Device,
    /// The workload.
    pub workload: Box<dyn Workload>,
}

impl std::fmt::Debug for BenchCase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BenchCase")
            .field("variant", &self.variant)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}

/// Warms up each case with one run, then runs the cases alternately for `rounds` rounds. Returns the runs of each case.
/// `on_run` is called after every run.
///
/// # Errors
/// A run fails or is cancelled.
pub fn alternate(
    cases: &mut [BenchCase],
    rounds: usize,
    cancel: &Cancel,
    on_run: &mut dyn FnMut(),
) -> Result<Vec<Vec<Run>>, Error> {
    let mut runs = vec![Vec::with_capacity(rounds); cases.len()];
    for round in 0..=rounds {
        for (case, runs) in cases.iter_mut().zip(&mut runs) {
            let run = timed(case.workload.as_mut(), cancel)?;
            if round > 0 {
                runs.push(run);
            }
            on_run();
        }
    }
    Ok(runs)
}

/// A case that was timed.
#[derive(Debug, Clone, PartialEq)]
pub struct TimedCase {
    /// The variant of its graphs.
    pub variant: Variant,
    /// The device that they ran on.
    pub device: Device,
    /// Its runs.
    pub runs: Vec<Run>,
}

/// Statistics of a case.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// The precision of its graphs.
    pub precision: Precision,
    /// The kernels of its graphs.
    pub kernels: KernelLibrary,
    /// The device that it ran on.
    pub device: String,
    /// Seconds of every run.
    pub seconds: Vec<f64>,
    /// The shortest run, in milliseconds.
    pub ms: f64,
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The shortest time until the first frame, in milliseconds.
    pub first_frame_ms: Option<f64>,
    /// Operations per second of the shortest run, in units of 10⁹.
    pub gflops: Option<f64>,
    /// The same as a share of the peak rate of the cores, in the number format of the products.
    pub share_of_peak: Option<f64>,
    /// Speed relative to f32 arithmetic, from the shortest runs.
    pub ratio_to_f32: Option<f64>,
}

/// Returns the peak rate for the number format in which the products of a variant run on the CPU. ONNX Runtime kernels
/// widen 16-bit weights to f32, and so do Rushes kernels without a bf16 instruction.
pub fn peak_of(variant: Variant, peaks: &Peaks) -> f64 {
    match (variant.precision, variant.kernels) {
        (Precision::Int8, _) => peaks.int8,
        (Precision::Bf16, KernelLibrary::Rushes) => peaks.bf16.unwrap_or(peaks.f32),
        _ => peaks.f32,
    }
}

/// As [`peak_of`], on a device; `None` for devices other than the processor, whose peak is not measured.
fn peak_on(device: Device, variant: Variant, peaks: &Peaks) -> Option<f64> {
    match (device.provider(), variant.precision) {
        (Provider::Cpu, _) => Some(peak_of(variant, peaks)),
        (Provider::OpenVino, Precision::Bf16) => Some(peaks.bf16.unwrap_or(peaks.f32)),
        (Provider::OpenVino, _) => Some(peaks.f32),
        _ => None,
    }
}

/// Computes the statistics of every case. `flops` is the number of operations of one run, `None` if unknown.
pub fn measured(cases: &[TimedCase], flops: Option<f64>, peaks: &Peaks) -> Vec<Measured> {
    let shortest = |runs: &[Run]| runs.iter().map(|run| run.whole.as_secs_f64()).reduce(f64::min);
    let is_f32 = |case: &&TimedCase| {
        let TimedCase { variant, device, .. } = case;
        let narrow = matches!(variant.precision, Precision::F16 | Precision::Bf16);
        let is_widened = narrow && variant.kernels == KernelLibrary::OnnxRuntime && *device == Device::CPU;
        variant.precision == Precision::F32 || is_widened
    };
    let f32_best = cases.iter().find(is_f32).and_then(|case| shortest(&case.runs));
    let measure = |TimedCase { variant, device, runs }: &TimedCase| {
        let best = shortest(runs)?;
        let mut seconds: Vec<f64> = runs.iter().map(|run| run.whole.as_secs_f64()).collect();
        let first = runs.iter().filter_map(|run| run.first).min();
        let per_second = flops.map(|flops| flops / best);
        let in_order = seconds.clone();
        seconds.sort_by(f64::total_cmp);
        Some(Measured {
            precision: variant.precision,
            kernels: variant.kernels,
            device: device.to_string(),
            ms: 1e3 * best,
            median_ms: 1e3 * f64::midpoint(seconds[(seconds.len() - 1) / 2], seconds[seconds.len() / 2]),
            seconds: in_order,
            first_frame_ms: first.map(|first| 1e3 * first.as_secs_f64()),
            gflops: per_second.map(|rate| rate / 1e9),
            share_of_peak: per_second.and_then(|rate| Some(rate / peak_on(*device, *variant, peaks)?)),
            ratio_to_f32: f32_best.map(|f32| f32 / best),
        })
    };
    cases.iter().filter_map(measure).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::variant::Target;
    use std::time::Duration;

    const F32: Variant = Variant::cpu(Precision::F32, KernelLibrary::OnnxRuntime);
    const INT8: Variant = Variant::cpu(Precision::Int8, KernelLibrary::Rushes);
    const PEAKS: Peaks = Peaks { int8: 800e9, bf16: None, f32: 200e9, memory_read: 1e9, memory_copy: 1e9 };

    fn runs(milliseconds: &[u64]) -> Vec<Run> {
        milliseconds.iter().map(|ms| Run { whole: Duration::from_millis(*ms), first: None }).collect()
    }

    fn case(variant: Variant, milliseconds: &[u64]) -> TimedCase {
        TimedCase { variant, device: Device::CPU, runs: runs(milliseconds) }
    }

    #[test]
    fn shortest_runs_are_compared_and_shares_refer_to_the_peak_of_the_number_format() {
        let all = [case(F32, &[1200, 1000, 1100]), case(INT8, &[400, 500])];
        let found = measured(&all, Some(100e9), &PEAKS);
        assert_eq!((found[0].ms, found[0].median_ms), (1000.0, 1100.0));
        assert_eq!((found[0].share_of_peak, found[0].ratio_to_f32), (Some(0.5), Some(1.0)));
        assert_eq!((found[1].ms, found[1].median_ms), (400.0, 450.0));
        assert_eq!((found[1].gflops, found[1].ratio_to_f32), (Some(250.0), Some(2.5)));
        assert_eq!(found[1].share_of_peak, Some(0.3125));
    }

    #[test]
    fn bf16_is_compared_with_its_own_peak_if_there_is_an_instruction_for_it() {
        let peaks = Peaks { bf16: Some(400e9), ..PEAKS };
        assert_eq!(peak_of(Variant::cpu(Precision::Bf16, KernelLibrary::Rushes), &peaks), 400e9);
        assert_eq!(peak_of(Variant::cpu(Precision::Bf16, KernelLibrary::OnnxRuntime), &peaks), 200e9);
        assert_eq!(peak_of(Variant::cpu(Precision::Bf16, KernelLibrary::Rushes), &PEAKS), 200e9);
    }

    #[test]
    fn unknown_values_are_none() {
        let found = measured(&[case(INT8, &[400])], None, &PEAKS);
        assert_eq!((found[0].gflops, found[0].share_of_peak, found[0].ratio_to_f32), (None, None, None));
        assert!(measured(&[case(F32, &[])], None, &PEAKS).is_empty());
    }

    #[test]
    fn a_case_on_an_accelerator_has_the_peak_of_its_hardware() {
        let peaks = Peaks { bf16: Some(400e9), ..PEAKS };
        let bf16 =
            Variant { target: Target::Plain, ..Variant::cpu(Precision::Bf16, KernelLibrary::OnnxRuntime) };
        let on = |device: &str| TimedCase { device: device.parse().unwrap(), ..case(bf16, &[500]) };
        let found = measured(&[on("openvino"), on("cuda:1"), case(F32, &[1000])], Some(100e9), &peaks);
        assert_eq!(
            found.iter().map(|one| one.device.as_str()).collect::<Vec<_>>(),
            ["openvino:0", "cuda:1", "cpu"]
        );
        assert_eq!([found[0].share_of_peak, found[1].share_of_peak], [Some(0.5), None]);
        // bf16 weights on an accelerator are not widened.
        assert_eq!(found[0].ratio_to_f32, Some(2.0));
    }

    struct Counted(std::rc::Rc<std::cell::RefCell<Vec<usize>>>, usize);

    impl Workload for Counted {
        fn run(&mut self, _: &Cancel, first: &mut dyn FnMut()) -> Result<(), Error> {
            self.0.borrow_mut().push(self.1);
            first();
            Ok(())
        }

        fn flops(&self) -> f64 {
            1.0
        }
    }

    #[test]
    fn cases_alternate_and_the_first_run_is_not_counted() {
        let order = std::rc::Rc::default();
        let case = |number| BenchCase {
            variant: F32,
            device: Device::CPU,
            workload: Box::new(Counted(std::rc::Rc::clone(&order), number)),
        };
        let mut calls = 0;
        let runs = alternate(&mut [case(1), case(2)], 2, &Cancel::new(), &mut || calls += 1).unwrap();
        assert_eq!(*order.borrow(), [1, 2, 1, 2, 1, 2]);
        assert_eq!((runs[0].len(), runs[1].len(), calls), (2, 2, 6));
        assert!(runs[0][0].first.is_some());
    }
}
