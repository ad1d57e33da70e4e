//! Peak throughput of known GPUs, from their data sheets.

/// Dense peaks of a GPU, in operations per second. Data sheets that state them with sparsity are halved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GpuPeaks {
    /// bf16 and f16 with f32 sums, on tensor cores.
    pub bf16: f64,
    /// FP8 with f32 sums; `None` before compute capability 8.9.
    pub fp8: Option<f64>,
    /// f32, without tensor cores.
    pub f32: f64,
}

/// A known GPU.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gpu {
    /// Its short name, such as `h200`.
    pub name: &'static str,
    /// Its peaks.
    pub peaks: GpuPeaks,
}

const fn gpu(name: &'static str, bf16: f64, fp8: f64, f32: f64) -> Gpu {
    let fp8 = if fp8 > 0.0 { Some(fp8 * 1e12) } else { None };
    Gpu { name, peaks: GpuPeaks { bf16: bf16 * 1e12, fp8, f32: f32 * 1e12 } }
}

/// Every known GPU. TFLOP/s in bf16, FP8 and f32. Longer names come before those that they contain.
///
/// Sources, all by NVIDIA: *H100 Tensor Core GPU Architecture* (H100 SXM and PCIe), data sheets of the H200, H100 NVL,
/// B200, A100, A10, A40, L4, L40 and L40S, *Ampere GA102*, *Ada GPU Architecture* (RTX 40, RTX 6000 Ada), *RTX Blackwell GPU
/// Architecture* (RTX 50). GeForce cards compute 16-bit products with f32 sums at half of their advertised rate.
pub const GPUS: [Gpu; 19] = [
    gpu("h200", 989.4, 1978.9, 66.9),
    gpu("h100 nvl", 835.5, 1671.0, 60.0),
    gpu("h100 pcie", 756.0, 1513.0, 51.0),
    gpu("h100", 989.4, 1978.9, 66.9),
    gpu("h800", 989.4, 1978.9, 66.9),
    gpu("b200", 2250.0, 4500.0, 75.0),
    gpu("a100", 312.0, 0.0, 19.5),
    gpu("a800", 312.0, 0.0, 19.5),
    gpu("a40", 149.7, 0.0, 37.4),
    gpu("a10", 125.0, 0.0, 31.2),
    gpu("l40s", 362.05, 733.0, 91.6),
    gpu("l40", 181.05, 362.0, 90.5),
    gpu("l4", 121.0, 242.0, 30.3),
    gpu("rtx 6000 ada", 364.2, 728.5, 91.1),
    gpu("rtx a6000", 154.8, 0.0, 38.7),
    gpu("rtx 5090", 209.5, 419.0, 104.8),
    gpu("rtx 4090", 165.2, 330.3, 82.6),
    gpu("rtx 4080", 97.5, 194.9, 48.7),
    gpu("rtx 3090", 71.0, 0.0, 35.6),
];

/// The known GPU of a name such as `NVIDIA H100 80GB HBM3`, `NVIDIA GeForce RTX 4090`, `h200` or `4090`.
pub fn known_gpu(name: &str) -> Option<Gpu> {
    let words = words(name);
    let is_named = |gpu: &&Gpu| {
        let known = gpu.name.split(' ').filter(|word| *word != "rtx");
        known.clone().count() > 0 && known.into_iter().all(|word| words.iter().any(|found| found == word))
    };
    GPUS.iter().find(is_named).copied()
}

/// The words of a name in lower case, which hyphens and underscores also separate.
fn words(name: &str) -> Vec<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric();
    name.split(|c| !is_word(c)).filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_known_by_the_names_that_drivers_report() {
        for (reported, name) in [
            ("NVIDIA H200", "h200"),
            ("NVIDIA H100 80GB HBM3", "h100"),
            ("NVIDIA H100 PCIe", "h100 pcie"),
            ("NVIDIA H100 NVL", "h100 nvl"),
            ("NVIDIA A100-SXM4-80GB", "a100"),
            ("NVIDIA A10", "a10"),
            ("NVIDIA L40S", "l40s"),
            ("NVIDIA L40", "l40"),
            ("NVIDIA L4", "l4"),
            ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
            ("NVIDIA RTX A6000", "rtx a6000"),
            ("NVIDIA GeForce RTX 4090", "rtx 4090"),
            ("rtx_5090", "rtx 5090"),
            ("4090", "rtx 4090"),
            ("H200", "h200"),
        ] {
            assert_eq!(known_gpu(reported).map(|gpu| gpu.name), Some(name), "{reported}");
        }
        for unknown in ["", "NVIDIA", "NVIDIA T4", "NVIDIA H1000", "NVIDIA GeForce RTX", "llvmpipe", "6000"] {
            assert_eq!(known_gpu(unknown), None, "{unknown}");
        }
    }

    #[test]
    fn every_gpu_is_found_by_its_own_name_and_fp8_is_faster_than_bf16() {
        for gpu in GPUS {
            assert_eq!(known_gpu(gpu.name), Some(gpu));
            assert!(gpu.peaks.fp8.is_none_or(|fp8| fp8 > 1.9 * gpu.peaks.bf16), "{}", gpu.name);
            assert!(gpu.peaks.bf16 > gpu.peaks.f32);
        }
    }
}
