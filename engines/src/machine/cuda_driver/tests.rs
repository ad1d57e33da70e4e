use super::*;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use tempfile::TempDir;

/// A driver with one device, as C.
const ONE_DEVICE: &str = r#"
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { if (index != 0) return 101; *device = 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { for (int i = 0; i < length; i++) name[i] = i < 4 ? "H200"[i] : 0; return device == 7 ? 0 : 101; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 150ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { return context == (void *)1 ? 0 : 201; }
int cuCtxPopCurrent_v2(void **context) { *context = (void *)1; return 0; }
int cuMemGetInfo_v2(unsigned long *free, unsigned long *total) { *free = 100ul << 30; *total = 150ul << 30; return 0; }
"#;

/// Builds a library from C; `None` after saying that there is no C compiler.
fn library(source: &str) -> Option<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir().unwrap();
    let (code, library) = (folder.path().join("driver.c"), folder.path().join("libdriver.so"));
    std::fs::write(&code, source).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
    match built {
        Ok(status) => assert!(status.success()),
        Err(error) => {
            // Not with a macro, whose output the test harness captures.
            writeln!(std::io::stderr(), "skipped: a driver that is a stub: cc: {error}").unwrap();
            return None;
        }
    }
    Some((folder, library))
}

fn probed(source: &str) -> Option<Result<CudaDriver, DriverProblem>> {
    let (_folder, library) = library(source)?;
    Some(CudaDriver::probe(&library))
}

#[test]
fn the_devices_of_a_driver_are_described() {
    let Some((_folder, library)) = library(ONE_DEVICE) else { return };
    let device = CudaDevice { name: "H200".into(), capability: (9, 0), memory: ByteCount(150 << 30) };
    assert_eq!(CudaDriver::probe(&library), Ok(CudaDriver { version: (13, 2), devices: vec![device] }));
    let found = memory(&library, 0);
    assert_eq!(found, Ok(CudaMemory { free: ByteCount(100 << 30), total: ByteCount(150 << 30) }));
    let absent = memory(&library, u32::MAX);
    assert_eq!(absent, Err(DriverProblem::Failed { function: "cuDeviceGet", code: 101 }));
}

#[test]
fn each_way_in_which_a_driver_cannot_be_used_has_its_own_text() {
    let absent = CudaDriver::probe(Path::new("/nowhere/libcuda.so.1")).unwrap_err();
    insta::assert_snapshot!(absent, @"there is no NVIDIA driver: /nowhere/libcuda.so.1: cannot open shared object file: No such file or directory");
    let cases = [
        ("", "libcuda.so.1 is not an NVIDIA driver: it has no function cuInit"),
        (
            "int cuInit(unsigned flags) { return 0; }",
            "libcuda.so.1 is not an NVIDIA driver: it has no function cuDriverGetVersion",
        ),
        ("int cuInit(unsigned flags) { return 100; }", "the NVIDIA driver finds no device"),
        (
            "int cuInit(unsigned flags) { return 35; }",
            "the NVIDIA driver does not work: cuInit returns 35, it is too old",
        ),
        (
            "int cuInit(unsigned flags) { return 803; }",
            "the NVIDIA driver does not work: cuInit returns 803, its library and its kernel module have different \
             versions",
        ),
        (
            "int cuInit(unsigned flags) { return -12345; }",
            "the NVIDIA driver does not work: cuInit returns -12345",
        ),
    ];
    for (source, expected) in cases {
        let Some(found) = probed(source) else { return };
        assert_eq!(found.unwrap_err().to_string(), expected, "{source}");
    }
}

#[test]
fn a_driver_without_devices_or_with_nonsense_is_refused() {
    let changed = |from: &str, to: &str| {
        assert!(ONE_DEVICE.contains(from));
        probed(&ONE_DEVICE.replace(from, to))
    };
    for count in ["0", "-1", "-2147483647"] {
        let Some(found) = changed("*count = 1", &format!("*count = {count}")) else { return };
        assert_eq!(found, Err(DriverProblem::NoDevice), "{count}");
    }
    // More devices than it has, a name without an end, and negative numbers.
    let found = changed("*count = 1", "*count = 2147483647").unwrap();
    assert_eq!(found, Err(DriverProblem::Failed { function: "cuDeviceGet", code: 101 }));
    let endless = changed(r#"i < 4 ? "H200"[i] : 0"#, "'x'").unwrap().unwrap();
    assert_eq!(endless.devices[0].name, "x".repeat(255));
    let negative = changed("*version = 13020", "*version = -1").unwrap().unwrap();
    assert_eq!(negative.version, (0, 0));
}

#[test]
fn a_context_that_cannot_be_used_is_released() {
    let source = ONE_DEVICE.replace("return context == (void *)1 ? 0 : 201", "return 201").replace(
        "int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }",
        "int cuDevicePrimaryCtxRelease_v2(int device) { return 42; }",
    );
    let Some((_folder, library)) = library(&source) else { return };
    // The release is called, and fails.
    let failed = DriverProblem::Failed { function: "cuDevicePrimaryCtxRelease_v2", code: 42 };
    assert_eq!(memory(&library, 0), Err(failed));
}
