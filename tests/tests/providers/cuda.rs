//! CUDA, on GPUs of NVIDIA.

use crate::parity;
use crate::support::with_provider;
use engines::{Device, OnnxRuntime, Provider};
use tests::golden::{case, cases};

fn cuda(test: &str) -> Option<(OnnxRuntime, Device)> {
    with_provider(test, Provider::Cuda)
}

#[test]
fn smoke_a_golden_case_on_cuda_equals_diffusers() {
    let Some((runtime, device)) = cuda("a golden case on CUDA") else { return };
    parity::equals_diffusers(&runtime, device, &case("two-experts"));
}

#[test]
fn every_golden_case_on_cuda_equals_diffusers() {
    let Some((runtime, device)) = cuda("the golden cases on CUDA") else { return };
    for case in cases() {
        parity::equals_diffusers(&runtime, device, &case);
    }
}

#[test]
fn two_blocks_of_a14b_on_cuda_equal_those_on_the_cpu() {
    let Some((runtime, device)) = cuda("two blocks of A14B on CUDA") else { return };
    parity::two_blocks_equal_those_of_the_cpu(&runtime, device);
}

#[test]
fn clips_of_mini_on_cuda_are_those_of_the_cpu() {
    let Some((runtime, device)) = cuda("clips of mini on CUDA") else { return };
    parity::clips_of_mini_are_those_of_the_cpu(&runtime, device);
}

/// The driver names each device, its memory and its architecture.
#[test]
fn smoke_devices_of_cuda_are_described() {
    let Some((runtime, device)) = cuda("facts of CUDA's devices") else { return };
    let devices = runtime.devices_of(Provider::Cuda).unwrap();
    let facts = devices.iter().find(|facts| facts.device == device).unwrap();
    assert!(!facts.name.is_empty() && facts.architecture.starts_with("sm"), "{facts:?}");
    assert!(facts.memory.is_some_and(|memory| memory.0 > 1 << 30), "{facts:?}");
}
