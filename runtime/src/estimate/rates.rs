//! What a device reaches of its peak, for each kind of operations.
//!
//! The shares are those that were measured or published, from the lowest to the highest. `docs/devices.md` has the
//! predictions that they lead to beside the measurements.

use super::Span;
use super::gpus::GpuPeaks;
use bundle::variant::{KernelLibrary, Precision, Variant};
use bundle::work::Work;
use engines::Provider;

/// Peaks of the threads that make a clip, in operations per second. A multiply-add counts as two.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CpuPeaks {
    /// On 8-bit integers.
    pub int8: f64,
    /// On bf16; `None` if the processor has no instruction for it.
    pub bf16: Option<f64>,
    /// On f32.
    pub f32: f64,
    /// True if Rushes kernels use AMX tiles, of which they reach a smaller share.
    pub has_tiles: bool,
}

/// The peaks of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Peaks {
    /// Those of the processor.
    Cpu(CpuPeaks),
    /// Those of a GPU.
    Gpu(GpuPeaks),
}

/// Operations per second, between two bounds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Rate {
    least: f64,
    most: f64,
}

impl Rate {
    /// The shares of a peak, in percent.
    fn of(peak: f64, [least, most]: [u8; 2]) -> Self {
        let share = |percent: u8| peak * f64::from(percent) / 100.0;
        Self { least: share(least), most: share(most) }
    }

    fn time(self, operations: f64) -> Span {
        if operations == 0.0 {
            Span::default()
        } else {
            Span { least: operations / self.most, most: operations / self.least }
        }
    }
}

/// The speed of a component on a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    products: Rate,
    attention: Rate,
    convolutions: Rate,
    /// The time that a layer takes in a call, however small it is.
    layer: Span,
}

/// The time of the operators of a layer that do nothing but start, on the CPU: what steps of mini take beyond their
/// operations (`docs/benchmarks.md`).
const LAYER_ON_CPU: Span = Span { least: 0.2e-3, most: 1.5e-3 };
/// The same on a GPU: some 40 kernels of 2.5 to 10 µs each.
const LAYER_ON_GPU: Span = Span { least: 0.1e-3, most: 0.4e-3 };

impl Rates {
    /// The time that some work takes in one call of `layers` layers.
    pub fn time(self, work: Work, layers: usize) -> Span {
        #[expect(clippy::cast_precision_loss, reason = "a few layers")]
        let layers = self.layer * layers as f64;
        layers
            + self.products.time(work.products)
            + self.attention.time(work.attention)
            + self.convolutions.time(work.convolutions)
    }

    /// The rates of a variant on a device with these peaks; `None` if nothing is known of the provider.
    pub fn of(peaks: Peaks, provider: Provider, runs: Variant) -> Option<Self> {
        match (provider, peaks) {
            (Provider::Cpu, Peaks::Cpu(peaks)) => Some(Self::of_cpu(peaks, runs)),
            (Provider::OpenVino, Peaks::Cpu(peaks)) => Some(Self::of_openvino(peaks, runs)),
            (Provider::Cuda | Provider::TensorRt | Provider::TensorRtRtx, Peaks::Gpu(peaks)) => {
                Some(Self::of_gpu(peaks, runs))
            }
            _ => None,
        }
    }

    /// From `docs/benchmarks.md`: steps of the 1.3B shape at 1,950 and 7,800 tokens and decoder chunks of 30x52, on two
    /// processors.
    fn of_cpu(peaks: CpuPeaks, runs: Variant) -> Self {
        // f32 on ONNX Runtime kernels: steps 62 to 83 %, decoder 62 to 92 %, of a peak that varies by a tenth.
        let in_f32 = |share| Rate::of(peaks.f32, share);
        let float = Self {
            products: in_f32([55, 88]),
            attention: in_f32([55, 88]),
            convolutions: in_f32([55, 92]),
            layer: LAYER_ON_CPU,
        };
        let in_int8 = |share| Rate::of(peaks.int8, share);
        match (runs.precision, runs.kernels, peaks.has_tiles) {
            (Precision::Int8, KernelLibrary::Rushes, false) => Self {
                products: in_int8([78, 95]),
                attention: in_int8([55, 75]),
                convolutions: in_int8([80, 92]),
                ..float
            },
            // Products alone 36 to 41 %; whole steps 25 (median) to 32 %.
            (Precision::Int8, KernelLibrary::Rushes, true) => Self {
                products: in_int8([26, 41]),
                attention: in_int8([16, 27]),
                convolutions: in_int8([20, 30]),
                ..float
            },
            // Attention is in f32. On tiles: one product of 424 GOP/s, where a thread's peak is 3,311.
            (Precision::Int8, KernelLibrary::OnnxRuntime, has_tiles) => Self {
                products: in_int8(if has_tiles { [8, 20] } else { [60, 80] }),
                convolutions: in_int8(if has_tiles { [8, 20] } else { [60, 80] }),
                ..float
            },
            (Precision::Bf16, KernelLibrary::Rushes, has_tiles) => {
                let (peak, products, attention) = match (peaks.bf16, has_tiles) {
                    (Some(peak), true) => (peak, [38, 50], [45, 62]),
                    // Rows of the text that are equal are merged, which is not counted.
                    (Some(peak), false) => (peak, [75, 100], [75, 100]),
                    // Products of f32 values.
                    (None, _) => (peaks.f32, [30, 45], [30, 45]),
                };
                Self { products: Rate::of(peak, products), attention: Rate::of(peak, attention), ..float }
            }
            // Everything else is widened to f32.
            _ => float,
        }
    }

    /// From one product of 1024 x 1024 x 2048 on one thread: 94 GFLOP/s in f32 and 524 in bf16, where the peaks are 231
    /// and 1,456. Attention and convolutions were not measured alone.
    fn of_openvino(peaks: CpuPeaks, runs: Variant) -> Self {
        let peak = match (runs.precision, peaks.bf16) {
            (Precision::Bf16 | Precision::F16, Some(bf16)) => bf16,
            _ => peaks.f32,
        };
        let rate = Rate::of(peak, [20, 50]);
        Self { products: rate, attention: rate, convolutions: rate, layer: LAYER_ON_CPU }
    }

    /// From published runs of these models in PyTorch and TensorRT; Rushes was not measured on a GPU. Whole forward passes
    /// of A14B reach 42 to 66 % of the bf16 peak on Hopper, 55 to 61 % on an A100, those of the 5B model 58 % on an RTX
    /// 4090. Flash attention 2 reaches about 35 % on Hopper, flash attention 3 and others up to 75 %. The decoder on an
    /// RTX 4090 reaches 7 to 15 %.
    fn of_gpu(peaks: GpuPeaks, runs: Variant) -> Self {
        let half = |share| Rate::of(peaks.bf16, share);
        let (attention, convolutions) = (half([35, 70]), half([4, 16]));
        let layer = LAYER_ON_GPU;
        match runs.precision {
            Precision::Bf16 | Precision::F16 => {
                Self { products: half([48, 72]), attention, convolutions, layer }
            }
            // Attention and decoder are in bf16.
            Precision::Fp8 => {
                let products = peaks.fp8.map_or(half([48, 72]), |fp8| Rate::of(fp8, [35, 70]));
                Self { products, attention, convolutions, layer }
            }
            Precision::F32 | Precision::Int8 | Precision::Int8Weights => {
                let rate = Rate::of(peaks.f32, [40, 80]);
                Self { products: rate, attention: rate, convolutions: rate, layer }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::gpus::known_gpu;
    use super::*;
    use bundle::catalog::{wan_denoiser, wan21_vae};
    use bundle::variant::Target;

    fn cpu(precision: Precision, kernels: KernelLibrary, peaks: CpuPeaks) -> Rates {
        Rates::of(Peaks::Cpu(peaks), Provider::Cpu, Variant::cpu(precision, kernels)).unwrap()
    }

    fn within(span: Span, measured: f64, what: &str) {
        assert!((span.least..=span.most).contains(&measured), "{what}: {measured} s, predicted {span:?}");
        assert!(span.most < 2.6 * span.least, "{what}: {span:?} says little");
    }

    /// Seconds per forward pass that others published, in bf16.
    #[test]
    fn published_passes_on_gpus_are_within_the_prediction() {
        let a14b = wan_denoiser(40, 40, 13_824);
        let variant =
            Variant { target: Target::Cuda, precision: Precision::Bf16, kernels: KernelLibrary::OnnxRuntime };
        for (name, tokens, seconds) in [
            // sglang, 5.142 s a guided step.
            ("h200", 32_760, 2.57),
            // MLPerf v6.0: 441 s for 20 guided steps, with text and decoding.
            ("h200", 75_600, 11.0),
            // The official code with offloading: 80 passes in 326.9, 1041.5, 785.7 and 2735.7 s.
            ("h100", 32_760, 4.09),
            ("h100", 75_600, 13.0),
            ("a100", 32_760, 9.82),
            ("a100", 75_600, 34.2),
        ] {
            let peaks = Peaks::Gpu(known_gpu(name).unwrap().peaks);
            let rates = Rates::of(peaks, Provider::Cuda, variant).unwrap();
            within(rates.time(a14b.step_work(tokens), a14b.layers), seconds, name);
        }
    }

    /// `docs/benchmarks.md`: two layers of the 1.3B shape, and chunks of the decoder.
    #[test]
    fn recorded_steps_on_processors_are_within_the_prediction() {
        use KernelLibrary::{OnnxRuntime, Rushes};
        let zen4 = CpuPeaks { int8: 930e9, bf16: Some(465e9), f32: 225e9, has_tiles: false };
        let xeon = CpuPeaks { int8: 6623e9, bf16: Some(2913e9), f32: 467e9, has_tiles: true };
        let two_layers = wan_denoiser(12, 2, 8960);
        for (peaks, precision, kernels, tokens, seconds) in [
            (zen4, Precision::F32, OnnxRuntime, 1950, 2.09),
            (zen4, Precision::F32, OnnxRuntime, 7800, 11.5),
            (zen4, Precision::Int8, OnnxRuntime, 1950, 0.836),
            (zen4, Precision::Int8, OnnxRuntime, 7800, 6.4),
            (zen4, Precision::Int8, Rushes, 1950, 0.520),
            (zen4, Precision::Int8, Rushes, 7800, 2.75),
            (zen4, Precision::Bf16, Rushes, 1950, 0.911),
            (zen4, Precision::Bf16, Rushes, 7800, 4.65),
            (xeon, Precision::Int8, Rushes, 1950, 0.215),
            (xeon, Precision::Int8, Rushes, 7800, 1.1),
            (xeon, Precision::Bf16, Rushes, 1950, 0.295),
            (xeon, Precision::Bf16, Rushes, 7800, 1.45),
        ] {
            let span = cpu(precision, kernels, peaks).time(two_layers.step_work(tokens), 2);
            within(span, seconds, &format!("{precision} {kernels} {tokens}"));
        }
        // Whole steps of 30 layers.
        let whole = wan_denoiser(12, 30, 8960);
        for (peaks, precision, kernels, tokens, seconds) in [
            (xeon, Precision::F32, OnnxRuntime, 1170, 11.2),
            (zen4, Precision::Int8, OnnxRuntime, 1950, 12.15),
            (zen4, Precision::Int8, Rushes, 1950, 7.37),
        ] {
            let span = cpu(precision, kernels, peaks).time(whole.step_work(tokens), 30);
            within(span, seconds, &format!("30 layers, {precision} {kernels} {tokens}"));
        }
        let vae = wan21_vae();
        let clip = vae.first_frame_work(30, 52) + vae.next_frames_work(30, 52) * 2.0;
        within(cpu(Precision::F32, OnnxRuntime, xeon).time(clip, 45), 24.5, "three latent frames in f32");
        let chunk = vae.next_frames_work(30, 52);
        within(cpu(Precision::F32, OnnxRuntime, zen4).time(chunk, 15), 17.1, "decoder f32");
        within(
            cpu(Precision::Int8, OnnxRuntime, zen4).time(chunk, 15),
            4.83,
            "decoder int8, ONNX Runtime kernels",
        );
        within(cpu(Precision::Int8, Rushes, zen4).time(chunk, 15), 4.14, "decoder int8, Rushes kernels");
    }

    #[test]
    fn nothing_is_said_about_devices_that_are_not_known() {
        let variant =
            Variant { target: Target::Plain, precision: Precision::F32, kernels: KernelLibrary::OnnxRuntime };
        let peaks = known_gpu("l4").unwrap().peaks;
        assert_eq!(Rates::of(Peaks::Gpu(peaks), Provider::WebGpu, variant), None);
        assert_eq!(Rates::of(Peaks::Gpu(peaks), Provider::Cpu, variant), None);
    }
}
