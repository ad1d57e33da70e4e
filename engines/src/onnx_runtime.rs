//! The loaded ONNX Runtime library.

use crate::compiled::{EngineStore, EnginesHere};
use crate::device_memory::DeviceMemory;
use crate::error::ProviderError;
use crate::library::{self, Located, SearchPaths};
use crate::machine::{DeviceFacts, Machine, ProviderFolders};
use crate::{Compilation, CopyCounts, Device, Error, LibraryError, Provider, memory, ort_error};
use kernels::Kernels;
use ort::environment::Environment;
use ort::logging::LogLevel;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

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
    /// Where compiled engines are kept; `None` keeps none.
    engines: Option<EngineStore>,
}

#[derive(Debug)]
struct Loaded {
    environment: Environment,
    path: PathBuf,
    version: String,
    providers: Vec<String>,
    /// Held while devices are listed, and exclusively while a provider adds some: the library has no lock for its list.
    devices: RwLock<()>,
    /// Where the libraries of providers are.
    folders: ProviderFolders,
    /// The providers that are ready, with their devices.
    ready: Mutex<BTreeMap<Provider, Vec<DeviceFacts>>>,
    /// The memory of each device that was used and has memory of its own.
    memories: Mutex<BTreeMap<Device, Arc<DeviceMemory>>>,
}

/// The library of this process. A global, because the limit of one library applies to the process.
static LOADED: Mutex<Option<OnnxRuntime>> = Mutex::new(None);

/// Which library is loaded, and where the libraries of providers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadRequest {
    /// The library or its folder, from the user.
    pub library: Option<PathBuf>,
    /// Where the libraries of providers are.
    pub folders: ProviderFolders,
    /// Whether CUDA or TensorRT are used: then the build with them, which is in the folder of CUDA, comes before the
    /// others that are searched.
    pub gpu_build: bool,
}

impl LoadRequest {
    /// The usual library, or the one that the user names, with the usual folders.
    pub fn new(library: Option<&Path>) -> Self {
        Self {
            library: library.map(Path::to_owned),
            folders: ProviderFolders::of_process(),
            gpu_build: false,
        }
    }

    /// The same for clips that run on `devices`.
    #[must_use]
    pub fn with_devices(self, devices: impl IntoIterator<Item = Device>) -> Self {
        let gpu_build = devices.into_iter().any(|device| device.provider().is_built_in());
        Self { gpu_build: self.gpu_build || gpu_build, ..self }
    }

    /// This machine, as far as it decides which providers can be used.
    pub fn machine(&self) -> Machine {
        let given = SearchPaths::of_process(self.library.as_deref()).given();
        Machine { onnx_runtime: given, ..Machine::with_folders(self.folders.clone()) }
    }
}

impl OnnxRuntime {
    /// Finds and loads the usual library, or the one that the user names with `explicit`. See [`Self::load_with`].
    ///
    /// # Errors
    /// The library is not found, is not ONNX Runtime 1.24 or newer, or differs from the loaded one.
    pub fn load(explicit: Option<&Path>) -> Result<Self, LibraryError> {
        Self::load_with(&LoadRequest::new(explicit))
    }

    /// Finds and loads the library. Returns the loaded library if it is the same.
    ///
    /// Without one from the user, the library is searched in the path of `ORT_DYLIB_PATH`, in the folder of CUDA if a
    /// build for GPUs is wanted, in folders next to the program, and by the system's loader. Telemetry is turned off by setting
    /// the environment variable `ORT_DISABLE_TELEMETRY` to `1`: call this before starting threads that read the
    /// environment from C. On glibc the allocator of the process is told to return freed blocks of 1 MiB and more to the
    /// system, so that the memory of a closed session is not kept.
    ///
    /// # Errors
    /// The library is not found, is not ONNX Runtime 1.24 or newer, or differs from the loaded one.
    pub fn load_with(request: &LoadRequest) -> Result<Self, LibraryError> {
        let mut loaded_library = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*loaded_library {
            return loaded.same_as(request.library.as_deref());
        }
        turn_telemetry_off();
        memory::return_large_blocks();
        let preferred =
            if request.gpu_build { request.folders.of(Provider::Cuda).collect() } else { Vec::new() };
        let paths = SearchPaths { preferred, ..SearchPaths::of_process(request.library.as_deref()) };
        let located = library::locate(&paths)?;
        let (builder, file) = library::load(located)?;
        let start = |error: ort::Error| LibraryError::DoesNotStart { why: error.message().to_owned() };
        let environment = builder.with_name("rushes").with_telemetry(false).build().map_err(start)?;
        environment.set_log_level(LogLevel::Warning);
        let (path, version) = library::identify(&file).unwrap_or((file, "unknown".into()));
        let providers = available_providers().map_err(start)?;
        tracing::debug!(path = %path.display(), version, "ONNX Runtime is loaded");
        let devices = RwLock::new(());
        let (ready, memories) = (Mutex::default(), Mutex::default());
        let folders = request.folders.clone();
        let loaded = Loaded { environment, path, version, providers, devices, folders, ready, memories };
        let loaded = Arc::new(loaded);
        let loaded = Self { loaded, kernels: Kernels::best(), engines: None };
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

    /// Keeps compiled engines in a store, for graphs that are opened afterwards. Without one, nothing is stored: providers
    /// that compile graphs do it in memory, on every opening.
    #[must_use]
    pub fn with_engines(self, store: EngineStore) -> Self {
        Self { engines: Some(store), ..self }
    }

    /// Where compiled engines are kept.
    pub fn engines(&self) -> Option<&EngineStore> {
        self.engines.as_ref()
    }

    /// What stored engines are compared with: the version of the library, and the devices of every provider that compiles
    /// graphs. Makes those providers ready that can be used.
    pub fn engines_here(&self) -> EnginesHere {
        let compiles = |provider: &Provider| provider.compilation() != Compilation::None;
        let devices = Provider::ALL.into_iter().filter(compiles).map(|provider| {
            let found = self.devices_of(provider).map_err(|error| error.to_string());
            let words = |facts: DeviceFacts| (facts.version_word(), facts.architecture_word());
            (provider, found.map(|devices| devices.into_iter().map(words).collect()))
        });
        EnginesHere { onnx_runtime: self.version().to_owned(), devices: devices.collect() }
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

    /// This machine, as it is now, as far as it decides which providers can be used.
    pub fn machine(&self) -> Machine {
        let onnx_runtime = self.path().parent().filter(|folder| folder.is_absolute()).map(Path::to_owned);
        Machine { onnx_runtime, ..Machine::with_folders(self.loaded.folders.clone()) }
    }

    /// The providers that are ready, with their devices.
    pub(crate) fn ready(&self) -> MutexGuard<'_, BTreeMap<Provider, Vec<DeviceFacts>>> {
        self.loaded.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was copied to and from the memory of a device since the process began; nothing for a device without memory of
    /// its own, or that was not used.
    pub fn copies(&self, device: Device) -> CopyCounts {
        let memories = self.loaded.memories.lock().unwrap_or_else(PoisonError::into_inner);
        memories.get(&device).map(|memory| memory.counts()).unwrap_or_default()
    }

    /// The memory of a device; `None` if its graphs run in host memory. The provider of the device is ready.
    ///
    /// # Errors
    /// The provider offers no memory for tensors.
    pub(crate) fn device_memory(&self, device: Device) -> Result<Option<Arc<DeviceMemory>>, Error> {
        if !device.provider().has_own_memory() {
            return Ok(None);
        }
        let mut memories = self.loaded.memories.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(memory) = memories.get(&device) {
            return Ok(Some(Arc::clone(memory)));
        }
        // TensorRT computes in the memory of CUDA.
        let provider = match device.provider() {
            Provider::TensorRt => Provider::Cuda,
            other => other,
        };
        let index = usize::try_from(device.index()).unwrap_or(usize::MAX);
        let refused = |why: String| ProviderError::Refused { device, why };
        let offered = self
            .with_device(provider, index, |offered| DeviceMemory::of(device, self.environment(), &offered))
            .transpose()
            .map_err(|error| refused(ort_error::text(&error)))?;
        let Some(memory) = offered.flatten() else {
            return Err(refused("its provider offers no memory for tensors".into()).into());
        };
        let memory = Arc::new(memory);
        memories.insert(device, Arc::clone(&memory));
        Ok(Some(memory))
    }

    /// Registers the library of a plug-in for this process under the name `name`. Loads and runs the code in it. A name
    /// that is taken is an error of ONNX Runtime.
    ///
    /// # Errors
    /// ONNX Runtime's message.
    pub(crate) fn register(&self, name: &str, library: &Path) -> Result<(), String> {
        let _exclusive = self.loaded.devices.write().unwrap_or_else(PoisonError::into_inner);
        let registered = self.loaded.environment.register_ep_library(name, library);
        registered.map_err(|error| ort_error::text(&error))
    }

    /// Calls `describe` with each device of a provider, and its index.
    pub(crate) fn with_devices_of<T>(
        &self,
        provider: Provider,
        mut describe: impl FnMut(usize, &ort::device::Device<'_>) -> T,
    ) -> Vec<T> {
        let _unchanged = self.unchanged_devices();
        let devices = self.environment().devices();
        let own = devices.filter(|device| device.ep().is_ok_and(|name| name == provider.onnx_name()));
        own.enumerate().map(|(index, device)| describe(index, &device)).collect()
    }

    /// Calls `use_device` with a device of a provider; `None` if it does not have it.
    pub(crate) fn with_device<T>(
        &self,
        provider: Provider,
        index: usize,
        use_device: impl FnOnce(ort::device::Device<'_>) -> T,
    ) -> Option<T> {
        let _unchanged = self.unchanged_devices();
        let devices = self.environment().devices();
        let mut own = devices.filter(|device| device.ep().is_ok_and(|name| name == provider.onnx_name()));
        own.nth(index).map(use_device)
    }

    /// Keeps providers from being registered while the guard lives.
    pub(crate) fn unchanged_devices(&self) -> RwLockReadGuard<'_, ()> {
        self.loaded.devices.read().unwrap_or_else(PoisonError::into_inner)
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
