//! The device that `auto` chooses.

use super::{Machine, check};
use crate::{BestDevice, Device, Provider};
use bundle::Diagnose;
use bundle::variant::Target;

/// The providers that are tried, best first. OpenVINO and WebGPU are chosen only where they are asked for.
const TRIED: [Provider; 2] = [Provider::TensorRt, Provider::Cuda];

/// Chooses the first of TensorRT, CUDA and the CPU that this machine can use and that `has_graphs` are there for.
pub fn best_device(machine: &Machine, has_graphs: impl Fn(Target) -> bool) -> BestDevice {
    let mut reasons: Vec<String> = Vec::new();
    for provider in TRIED {
        let Ok(device) = Device::try_new(provider, 0) else { continue };
        let refused = match check(device, machine) {
            Err(error) => error.report().why,
            Ok(()) if has_graphs(provider.target()) => return BestDevice { device, why: reasons.join("; ") },
            Ok(()) => format!("the bundle has no {} graphs", provider.target()),
        };
        reasons.push(format!("{provider}: {refused}"));
    }
    BestDevice { device: Device::CPU, why: reasons.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::{CudaDevice, CudaDriver, DriverProblem, ProviderFolders};
    use bundle::units::ByteCount;

    /// A machine with an NVIDIA device and the libraries of CUDA, but not those of TensorRT.
    fn machine() -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("cuda")).unwrap();
        for name in [
            "libonnxruntime_providers_cuda.so",
            "libonnxruntime_providers_tensorrt.so",
            "libcudart.so.13",
            "libcublasLt.so.13",
            "libcublas.so.13",
            "libcurand.so.10",
            "libcudnn.so.9",
        ] {
            std::fs::write(root.path().join("cuda").join(name), "").unwrap();
        }
        let device = CudaDevice { name: "H200".into(), capability: (9, 0), memory: ByteCount(150 << 30) };
        let machine = Machine {
            folders: ProviderFolders(vec![root.path().to_owned()]),
            loader: Vec::new(),
            onnx_runtime: None,
            cpu_info: "vendor_id : GenuineIntel".into(),
            cuda: Ok(CudaDriver { version: (13, 0), devices: vec![device] }),
        };
        (root, machine)
    }

    #[test]
    fn the_first_provider_that_can_be_used_is_chosen_with_the_reasons_against_the_others() {
        let (root, mut machine) = machine();
        let chosen = |machine: &Machine, targets: &[Target]| {
            let best = best_device(machine, |target| targets.contains(&target));
            format!("{}: {}", best.device, best.why.replace(&root.path().display().to_string(), ""))
        };
        let all = [Target::Cpu, Target::Cuda, Target::Plain];
        insta::assert_snapshot!(chosen(&machine, &all), @"cuda:0: tensorrt: libnvinfer.so.10 is in none of /cuda, and not where the system's loader looks");
        insta::assert_snapshot!(chosen(&machine, &[Target::Cpu, Target::Plain]), @"cpu: tensorrt: libnvinfer.so.10 is in none of /cuda, and not where the system's loader looks; cuda: the bundle has no cuda graphs");
        machine.loader = vec![root.path().join("system")];
        std::fs::create_dir(root.path().join("system")).unwrap();
        for name in ["libnvinfer.so.10", "libnvonnxparser.so.10"] {
            std::fs::write(root.path().join("system").join(name), "").unwrap();
        }
        assert_eq!(chosen(&machine, &all), "tensorrt:0: ");
        machine.cuda = Err(DriverProblem::NoDevice);
        insta::assert_snapshot!(chosen(&machine, &all), @"cpu: tensorrt: the NVIDIA driver finds no device; cuda: the NVIDIA driver finds no device");
    }
}
