use super::*;
use crate::providers::check;
use bundle::units::ByteCount;
use bundle::{Diagnose, ErrorClass};
use std::fs;
use tempfile::TempDir;

/// A machine with one NVIDIA device and the given files in its folders of providers and of the loader.
fn machine(capability: (u32, u32), files: &[&str]) -> (TempDir, Machine) {
    let root = tempfile::tempdir().unwrap();
    for file in files {
        let path = root.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }
    let device = CudaDevice { name: "NVIDIA H200".into(), capability, memory: ByteCount(150 << 30) };
    let machine = Machine {
        folders: ProviderFolders(vec![root.path().join("providers")]),
        loader: vec![root.path().join("system")],
        onnx_runtime: None,
        cpu_info: "vendor_id : AuthenticAMD".into(),
        cuda: Ok(CudaDriver { version: (13, 0), devices: vec![device] }),
    };
    (root, machine)
}

/// Everything that CUDA needs.
const CUDA_FILES: [&str; 6] = [
    "providers/cuda/libonnxruntime_providers_cuda.so",
    "providers/cuda/libcudart.so.13",
    "providers/cuda/libcublasLt.so.13",
    "providers/cuda/libcublas.so.13",
    "providers/cuda/libcurand.so.10",
    "providers/cuda/libcudnn.so.9",
];

fn refusal(device: &str, root: &TempDir, machine: &Machine) -> String {
    let error = check(device.parse().unwrap(), machine).unwrap_err();
    assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
    error.to_string().replace(&root.path().display().to_string(), "")
}

#[test]
fn a_missing_library_is_named_with_the_folders_that_were_searched() {
    let (root, empty) = machine((9, 0), &[]);
    insta::assert_snapshot!(refusal("cuda", &root, &empty), @"cuda cannot be used: libonnxruntime_providers_cuda.so is in none of /providers/cuda (run `scripts/setup.sh cuda` in the checkout)");
    insta::assert_snapshot!(refusal("webgpu", &root, &empty), @"webgpu cannot be used: libonnxruntime_providers_webgpu.so is in none of /providers/webgpu (run `scripts/setup.sh webgpu` in the checkout)");
    insta::assert_snapshot!(refusal("openvino", &root, &empty), @"openvino cannot be used: its plug-in supports processors of Intel only (use `provider` cpu)");
    let (root, without_cudnn) = machine((9, 0), &CUDA_FILES[..5]);
    insta::assert_snapshot!(refusal("cuda", &root, &without_cudnn), @"cuda cannot be used: libcudnn.so.9 is in none of /providers/cuda, and not where the system's loader looks (run `scripts/setup.sh cuda` in the checkout)");
}

#[test]
fn libraries_may_be_installed_in_the_system() {
    let files = [&CUDA_FILES[..5], &["system/libcudnn.so.9"]].concat();
    let (_root, cuda) = machine((9, 0), &files);
    check("cuda".parse().unwrap(), &cuda).unwrap();

    let tensorrt = "providers/cuda/libonnxruntime_providers_tensorrt.so";
    let files = [&CUDA_FILES[..], &[tensorrt]].concat();
    let (root, without) = machine((9, 0), &files);
    insta::assert_snapshot!(refusal("tensorrt", &root, &without), @"tensorrt cannot be used: libnvinfer.so.10 is in none of /providers/cuda, and not where the system's loader looks (install TensorRT 10 for CUDA 13 from NVIDIA, which has libnvinfer.so.10 and libnvonnxparser.so.10, where the system's loader finds it)");
    let files = [&files[..], &["system/libnvinfer.so.10", "system/libnvonnxparser.so.10"]].concat();
    let (_root, tensorrt) = machine((9, 0), &files);
    check("tensorrt".parse().unwrap(), &tensorrt).unwrap();
}

#[test]
fn drivers_and_devices_are_checked_before_libraries() {
    let (root, mut of_driver) = machine((9, 0), &[]);
    insta::assert_snapshot!(refusal("cuda:1", &root, &of_driver), @"there is no device cuda:1: cuda offers cuda:0 (`rushes doctor` lists the devices of this machine)");
    of_driver.cuda.as_mut().unwrap().version = (12, 9);
    insta::assert_snapshot!(refusal("cuda", &root, &of_driver), @"cuda cannot be used: its libraries are for CUDA 13.0, and the NVIDIA driver supports CUDA 12.9 (install version 580 or newer of the driver, or use `provider` cpu)");
    of_driver.cuda = Err(DriverProblem::NoDevice);
    insta::assert_snapshot!(refusal("tensorrt", &root, &of_driver), @"tensorrt cannot be used: the NVIDIA driver finds no device (run `nvidia-smi`, and give a container access to the GPU when it is started; or use `provider` cpu)");
    of_driver.cuda = Err(DriverProblem::Absent { why: "libcuda.so.1: not found".into() });
    insta::assert_snapshot!(refusal("tensorrt-rtx", &root, &of_driver), @"tensorrt-rtx cannot be used: there is no NVIDIA driver: libcuda.so.1: not found (install the driver of an NVIDIA GPU, or use `provider` cpu)");
}

#[test]
fn tensorrt_for_rtx_refuses_devices_of_data_centres() {
    let files = [
        "libonnxruntime_providers_nv_tensorrt_rtx.so",
        "libcudart.so.13",
        "libtensorrt_rtx.so.1",
        "libtensorrt_onnxparser_rtx.so.1",
    ]
    .map(|name| format!("providers/tensorrt-rtx/{name}"));
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let (root, hopper) = machine((9, 0), &files);
    insta::assert_snapshot!(refusal("tensorrt-rtx", &root, &hopper), @"tensorrt-rtx:0 cannot be used: NVIDIA H200 has compute capability 9.0, and supported are 8.6, 8.9, and 12.0 or newer (use `provider` tensorrt or cuda)");
    for (capability, is_supported) in [
        ((8, 0), false),
        ((8, 6), true),
        ((8, 7), false),
        ((8, 9), true),
        ((10, 0), false),
        ((12, 0), true),
        ((12, 1), true),
    ] {
        let (_root, machine) = machine(capability, &files);
        let device = "tensorrt-rtx".parse().unwrap();
        assert_eq!(check(device, &machine).is_ok(), is_supported, "{capability:?}");
    }
}

#[test]
fn built_in_providers_are_beside_onnx_runtime() {
    let files = [&CUDA_FILES[..], &["cpu/libonnxruntime.so"]].concat();
    let (root, mut beside) = machine((9, 0), &files);
    beside.onnx_runtime = Some(root.path().join("cpu"));
    insta::assert_snapshot!(refusal("cuda", &root, &beside), @"cuda cannot be used: the ONNX Runtime in /cpu is a build without it (run `scripts/setup.sh cuda` in the checkout, and leave out `onnx_runtime`)");
    beside.onnx_runtime = Some(root.path().join("providers/cuda"));
    check("cuda".parse().unwrap(), &beside).unwrap();
}

#[test]
fn messages_of_onnx_runtime_become_what_is_missing() {
    let (_root, machine) = machine((9, 0), &[]);
    let explained = |message: &str| machine.explain(Provider::Cuda, message);
    let failed = |library: &str| {
        format!(
            "/src/provider_bridge_ort.cc:2043 Failed to load library /x/libonnxruntime_providers_cuda.so with error: \
             {library}: cannot open shared object file: No such file or directory"
        )
    };
    let no_library = explained(&failed("libcublasLt.so.13")).unwrap();
    assert!(
        matches!(&no_library, ProviderError::NoLibrary { library, .. } if library == "libcublasLt.so.13")
    );
    let no_driver = explained(&failed("libcuda.so.1")).unwrap();
    insta::assert_snapshot!(no_driver, @"cuda cannot be used: there is no NVIDIA driver: libcuda.so.1: cannot open shared object file (install the driver of an NVIDIA GPU, or use `provider` cpu)");
    let of_driver = explained(&failed("libnvidia-ml.so.1")).unwrap();
    assert!(matches!(of_driver, ProviderError::NoDriver { .. }), "{of_driver}");
    let no_device = "CUDA failure 100: no CUDA-capable device is detected ; GPU=32767 ; expr=cudaSetDevice(info_.device_id);";
    assert_eq!(
        explained(no_device),
        Some(ProviderError::NoDriver { provider: Provider::Cuda, problem: DriverProblem::NoDevice })
    );
    let not_built = "CUDA execution provider is not enabled in this build.";
    assert_eq!(
        explained(not_built),
        Some(ProviderError::NotInBuild { provider: Provider::Cuda, folder: None })
    );
    for other in [
        "",
        "This session contains graph nodes",
        ": cannot open shared object file",
        "CUDA failure 2: out of memory",
    ] {
        assert_eq!(explained(other), None, "{other}");
    }
}
