//! Recognises failed allocations in messages of ONNX Runtime, of execution providers and of the libraries under them.
//!
//! ONNX Runtime has no code for them. The texts are specific enough to mean the same on every device.

use crate::{Device, Error};
use bundle::units::ByteCount;

/// Texts of failed allocations in the memory of the device that a graph runs on.
const ON_DEVICE: [&str; 18] = [
    // The memory pool of ONNX Runtime: refused by the device, and beyond the limit of the pool.
    "Failed to allocate memory",
    "is smaller than requested bytes of",
    // CUDA.
    "CUDA failure 2:",
    "cudaErrorMemoryAllocation",
    "CUDA_ERROR_OUT_OF_MEMORY",
    // cuBLAS, and cuDNN before and since version 9.
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    // TensorRT.
    "Cuda Runtime (out of memory)",
    "Requested amount of GPU memory",
    "OutOfMemory (",
    "User allocator error allocating",
    // OpenVINO, on OpenCL and Level Zero.
    "Exceeded max size of memory object allocation",
    "CL_MEM_OBJECT_ALLOCATION_FAILURE",
    "ZE_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    // WebGPU, on Vulkan.
    "): Out of memory",
    "exceeds the max buffer size limit",
    "VK_ERROR_OUT_OF_DEVICE_MEMORY",
];

/// Texts of failed allocations in host memory, on whatever device the graph runs.
const ON_HOST: [&str; 6] = [
    "bad_alloc",
    "bad allocation",
    "CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED",
    "CL_OUT_OF_HOST_MEMORY",
    "ZE_RESULT_ERROR_OUT_OF_HOST_MEMORY",
    "VK_ERROR_OUT_OF_HOST_MEMORY",
];

/// Texts before the size of a failed allocation in bytes.
const BEFORE_SIZE: [&str; 7] = [
    "requested buffer of size ",
    "requested bytes of ",
    "Requested amount of GPU memory (",
    "Requested size was ",
    "User allocator error allocating ",
    "memory object allocation: requested ",
    "Buffer size (",
];

/// Returns the error for a message about `graph` on `device`; `None` if no allocation has failed.
pub(crate) fn out_of_memory(graph: &str, device: Device, message: &str) -> Option<Error> {
    let has_any = |texts: &[&str]| texts.iter().any(|text| message.contains(text));
    let device = match (has_any(&ON_DEVICE), has_any(&ON_HOST)) {
        (true, _) => device,
        (false, true) => Device::CPU,
        (false, false) => return None,
    };
    Some(Error::OutOfMemory { graph: graph.to_owned(), device, requested: requested_bytes(message) })
}

fn requested_bytes(message: &str) -> Option<ByteCount> {
    BEFORE_SIZE.iter().find_map(|before| {
        let (_, rest) = message.split_once(before)?;
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().map(ByteCount)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};

    fn explained(device: &str, message: &str) -> String {
        let error = out_of_memory("decoder/next", device.parse().unwrap(), message).unwrap();
        assert_eq!(error.report().class, ErrorClass::DoesNotFit);
        error.to_string()
    }

    #[test]
    fn the_report_names_the_device_and_the_size() {
        let refused = "Non-zero status code returned while running ConstantOfShape node. Name:'' Status Message: /src/bfc_arena.cc:360 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool) Failed to allocate memory for requested buffer of size 4503599627370496\n";
        insta::assert_snapshot!(explained("cpu", refused), @"the graph decoder/next ran out of memory on cpu: 4503599.6 GB could not be allocated (use a smaller `size`, fewer `frames` or `residency` one, or end other programs)");
        insta::assert_snapshot!(explained("cuda:1", refused), @"the graph decoder/next ran out of memory on cuda:1: 4503599.6 GB could not be allocated (use a smaller `size`, fewer `frames` or `residency` one, or end other programs that use cuda:1)");
        let limited = "Status Message: /src/bfc_arena.cc:376 BFCArena::AllocateRawInternal Available memory of 536870912 is smaller than requested bytes of 1073741824";
        insta::assert_snapshot!(explained("cuda:0", limited), @"the graph decoder/next ran out of memory on cuda:0: 1.1 GB could not be allocated (use a smaller `size`, fewer `frames` or `residency` one, or end other programs that use cuda:0)");
    }

    #[test]
    fn a_graph_on_an_accelerator_may_run_out_of_host_memory() {
        insta::assert_snapshot!(explained("cuda:0", "Exception during initialization: std::bad_alloc"), @"the graph decoder/next ran out of memory on cpu: an allocation failed (use a smaller `size`, fewer `frames` or `residency` one, or end other programs)");
        insta::assert_snapshot!(explained("cpu", "bad allocation"), @"the graph decoder/next ran out of memory on cpu: an allocation failed (use a smaller `size`, fewer `frames` or `residency` one, or end other programs)");
    }

    #[test]
    fn the_texts_of_every_provider_are_recognised() {
        let device: Device = "tensorrt:1".parse().unwrap();
        let messages = [
            (
                "CUDA failure 2: out of memory ; GPU=1 ; hostname=h ; file=/src/cuda_allocator.cc ; line=47 ; expr=cudaMalloc((void**)&p, size);",
                None,
            ),
            (
                "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=1 ; hostname=h ; expr=cublasCreate(&cublas_handle_);",
                None,
            ),
            ("CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED ; GPU=1 ; expr=cudnnCreate(&cudnn_handle_);", None),
            (
                "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=1 ; expr=cudnnCreate(&cudnn_handle_);",
                None,
            ),
            ("[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)", None),
            (
                "Requested amount of GPU memory (17920000000 bytes) could not be allocated. There may not be enough free memory for allocation to succeed.",
                Some(17_920_000_000),
            ),
            (
                "[executionContext.cpp::ExecutionContext::470] Error Code 2: OutOfMemory (no further information)",
                None,
            ),
            (
                "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was 16581132288 bytes.)",
                Some(16_581_132_288),
            ),
            ("autotuning: User allocator error allocating 15485030400-byte buffer", Some(15_485_030_400)),
            (
                "[GPU] Exceeded max size of memory object allocation: requested 4831838208 bytes, but max alloc size supported by device is 1073741824 bytes.",
                Some(4_831_838_208),
            ),
            ("vkAllocateMemory failed with VK_ERROR_OUT_OF_DEVICE_MEMORY", None),
            ("WebGPU device error(2): Out of memory", None),
            ("Buffer size (3185049600) exceeds the max buffer size limit (1073741824).", Some(3_185_049_600)),
        ];
        for (message, size) in messages {
            let Some(Error::OutOfMemory { device: on, requested, .. }) =
                out_of_memory("step", device, message)
            else {
                panic!("not recognised: {message}")
            };
            assert_eq!((on, requested), (device, size.map(ByteCount)), "{message}");
        }
    }

    #[test]
    fn other_failures_are_not_taken_for_it() {
        for message in [
            "CUDA failure 700: an illegal memory access was encountered ; GPU=0 ; expr=cudaStreamSynchronize(s);",
            "CUDA failure 209: no kernel image is available for execution on the device",
            "CUDA failure 100: no CUDA-capable device is detected ; GPU=0 ; expr=cudaSetDevice(info_.device_id);",
            "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED",
            "CL_OUT_OF_RESOURCES",
            "WebGPU device error(1): Validation",
            "External data path does not exist",
        ] {
            assert!(out_of_memory("step", Device::CPU, message).is_none(), "{message}");
        }
    }
}
