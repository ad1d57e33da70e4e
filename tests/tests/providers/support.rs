//! What these tests share: the provider that is needed, or the reason why a test is skipped.

use engines::{Device, LoadRequest, OnnxRuntime, Provider};
use std::io::Write;

/// The variable with the providers that must be there, separated by commas.
const REQUIRE: &str = "RUSHES_REQUIRE_PROVIDERS";

/// ONNX Runtime with the provider of a device; `None` after saying why there is none.
///
/// # Panics
/// The provider cannot be used, and it is required.
pub(crate) fn with_provider(test: &str, provider: Provider) -> Option<(OnnxRuntime, Device)> {
    // A process has one library. The build for GPUs, where it is installed, has the other providers too.
    let request = LoadRequest { gpu_build: true, ..LoadRequest::new(None) };
    let runtime = OnnxRuntime::load_with(&request).unwrap_or_else(|error| panic!("{error}"));
    let device = Device::try_new(provider, 0).unwrap();
    match runtime.use_provider(device) {
        Ok(()) => Some((runtime, device)),
        Err(error) => {
            skipped(test, provider, &error.to_string());
            None
        }
    }
}

/// Says why a test is skipped.
///
/// # Panics
/// The provider is required.
pub(crate) fn skipped(test: &str, provider: Provider, why: &str) {
    let required = std::env::var(REQUIRE).unwrap_or_default();
    assert!(!required.split(',').any(|name| name == provider.name()), "{why}");
    // Not with a macro, whose output the test harness captures.
    let mut stderr = std::io::stderr();
    writeln!(stderr, "skipped: {test}: {why}").unwrap();
}
