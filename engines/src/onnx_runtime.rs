//! The loaded ONNX Runtime library.

use crate::LibraryError;
use crate::library::{self, Located, SearchPaths};
use kernels::Kernels;
use ort::environment::Environment;
use ort::logging::LogLevel;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The loaded ONNX Runtime library. Clones refer to the same library.
///
/// A process loads at most one, and never unloads it: ONNX Runtime allows one environment and `ort` one library.
///
/// # Examples
/// ```no_run
/// let onnx = engines::OnnxRuntime::load(None)?;
/// println!("ONNX Runtime {} at {}", onnx.version(), onnx.path().display());
/// # Ok::<(), engines::LibraryError>(())
/// ```
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    loaded: Arc<Loaded>,
    /// The instruction sets for operators of the domain `rushes`.
    kernels: Kernels,
}

#[derive(Debug)]
struct Loaded {
    environment: Environment,
    path: PathBuf,
    version: String,
    providers: Vec<String>,
}

/// The library of this process. A global, because the limit of one library applies to the process.
static LOADED: Mutex<Option<OnnxRuntime>> = Mutex::new(None);

impl OnnxRuntime {
    /// Finds and loads the library. Returns the loaded library if it is the same.
    ///
    /// `explicit` is the library or its folder, from the user. Without it the library is searched in the path of
    /// `ORT_DYLIB_PATH`, in folders next to the program, and by the system's loader. Telemetry is turned off by setting
    /// the environment variable `ORT_DISABLE_TELEMETRY` to `1`: call this before starting threads that read the
    /// environment from C.
    ///
    /// # Errors
    /// The library is not found, is not ONNX Runtime 1.24 or newer, or differs from the loaded one.
    pub fn load(explicit: Option<&Path>) -> Result<Self, LibraryError> {
        let mut loaded_library = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded_library {
            return loaded.same_as(explicit);
        }
        turn_telemetry_off();
        let located = library::locate(&SearchPaths::of_process(explicit))?;
        let (builder, file) = library::load(located)?;
        let start = |error: ort::Error| LibraryError::DoesNotStart { why: error.message().to_owned() };
        let environment = builder.with_name("rushes").with_telemetry(false).build().map_err(start)?;
        environment.set_log_level(LogLevel::Warning);
        let (path, version) = library::identify(&file).unwrap_or((file, "unknown".into()));
        let providers = available_providers().map_err(start)?;
        tracing::debug!(path = %path.display(), version, "ONNX Runtime is loaded");
        let loaded = Arc::new(Loaded { environment, path, version, providers });
        let loaded = Self { loaded, kernels: Kernels::best() };
        *loaded_library = Some(loaded.clone());
        Ok(loaded)
    }

    fn same_as(&self, explicit: Option<&Path>) -> Result<Self, LibraryError> {
        let Some(explicit) = explicit else { return Ok(self.clone()) };
        let paths = SearchPaths { setting: Some(explicit.to_owned()), ..SearchPaths::default() };
        let is_same = match library::locate(&paths)? {
            Located::File(path) => path.canonicalize().ok() == self.path().canonicalize().ok(),
            Located::NotFound { .. } => false,
        };
        if is_same {
            Ok(self.clone())
        } else {
            Err(LibraryError::AnotherIsLoaded { loaded: self.path().to_owned(), asked: explicit.to_owned() })
        }
    }

    /// Selects the instruction set of Rushes kernels in graphs that are opened afterwards. The default is the fastest
    /// one.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The kernels that operators of the domain `rushes` run on.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// Version of the library, for example `1.31.1`.
    pub fn version(&self) -> &str {
        &self.loaded.version
    }

    /// File of the library.
    pub fn path(&self) -> &Path {
        &self.loaded.path
    }

    /// Execution providers in this build of the library, by ONNX Runtime's names. Their own libraries and devices may
    /// still be missing.
    pub fn providers(&self) -> &[String] {
        &self.loaded.providers
    }

    pub(crate) fn environment(&self) -> &Environment {
        &self.loaded.environment
    }
}

/// Official builds since 1.29 send usage data unless this variable is set before the library is loaded.
#[expect(
    unsafe_code,
    reason = "the library reads the variable while it is being loaded; there is no other switch"
)]
fn turn_telemetry_off() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    if std::env::var_os(VARIABLE).is_none_or(|value| value != "1") {
        // SAFETY: readers in Rust are serialised by the standard library. The library, which reads it from C, is not
        // loaded yet, and the documentation of `load` requires that no other thread reads the environment from C.
        unsafe { std::env::set_var(VARIABLE, "1") };
    }
}

#[expect(unsafe_code, reason = "`ort` can query one provider by name but not list them")]
fn available_providers() -> ort::Result<Vec<String>> {
    let api = ort::api();
    let mut names: *mut *mut c_char = std::ptr::null_mut();
    let mut count = 0;
    // SAFETY: on success ONNX Runtime returns an array of `count` NUL-terminated strings, which is read here and
    // released once with the same count.
    unsafe {
        ort::Error::result_from_status((api.GetAvailableProviders)(&raw mut names, &raw mut count))?;
        let providers = (0..usize::try_from(count).unwrap_or(0))
            .map(|index| CStr::from_ptr(*names.add(index)).to_string_lossy().into_owned())
            .collect();
        ort::Error::result_from_status((api.ReleaseAvailableProviders)(names, count))?;
        Ok(providers)
    }
}
