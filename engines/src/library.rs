//! Finds and loads the ONNX Runtime library.
//!
//! Search order: the path from the user, the path in `ORT_DYLIB_PATH`, the folder of CUDA if a build for GPUs is wanted,
//! folders next to the running program (a package
//! installs the library next to the program or into `lib`; `make setup` puts it into `target/onnxruntime`, one or two
//! levels above the programs that cargo builds), the system's loader. A given path that does not exist is an error; the
//! search does not continue.

use crate::LibraryError;
use bundle::Field;
use ort::environment::EnvironmentBuilder;
use std::ffi::{CStr, CString, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The first version with the API level that `ort` is built for.
pub(crate) const OLDEST_VERSION: &str = "1.24";

/// The environment variable with the path of the library.
const VARIABLE: &str = "ORT_DYLIB_PATH";

/// File name of the library, without its version.
const NAME: &str = "libonnxruntime.so";

/// Names for the system's loader; the second is the library's soname.
const SYSTEM_NAMES: [&str; 2] = [NAME, "libonnxruntime.so.1"];

/// Searched folders, relative to the folder of the program.
const FOLDERS: [&str; 5] = [".", "lib", "../lib", "../onnxruntime", "../../onnxruntime"];

/// The source of an explicit library path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A setting of the caller.
    Setting,
    /// The environment variable `ORT_DYLIB_PATH`.
    Variable,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Setting => Field::OnnxRuntime.name(),
            Self::Variable => VARIABLE,
        })
    }
}

/// The locations to search.
#[derive(Debug, Default)]
pub(crate) struct SearchPaths {
    /// From a setting: the library or its folder.
    pub setting: Option<PathBuf>,
    /// From `ORT_DYLIB_PATH`: the library or its folder.
    pub variable: Option<PathBuf>,
    /// Folders that come before those of the program.
    pub preferred: Vec<PathBuf>,
    /// The folder of the running program.
    pub program: Option<PathBuf>,
}

impl SearchPaths {
    /// The search paths of this process.
    pub(crate) fn of_process(setting: Option<&Path>) -> Self {
        let program = std::env::current_exe().ok().and_then(|path| path.parent().map(Path::to_owned));
        let variable = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { setting: setting.map(Path::to_owned), variable, preferred: Vec::new(), program }
    }

    /// The folder that the library is in if a path was given.
    pub(crate) fn given(&self) -> Option<PathBuf> {
        let path = self.setting.as_ref().or(self.variable.as_ref())?;
        // ONNX Runtime resolves links before it looks for its providers.
        let path = path.canonicalize().unwrap_or_else(|_| path.clone());
        if path.is_dir() { Some(path) } else { path.parent().map(Path::to_owned) }
    }
}

/// The result of the search.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Located {
    /// The library is this file.
    File(PathBuf),
    /// The library is none of these files; the system's loader may still find it.
    NotFound { tried: Vec<PathBuf> },
}

/// Searches the paths in order.
///
/// # Errors
/// A given path is not a library or a folder with one.
pub(crate) fn locate(paths: &SearchPaths) -> Result<Located, LibraryError> {
    let given = [(Origin::Setting, &paths.setting), (Origin::Variable, &paths.variable)];
    for (origin, path) in given {
        if let Some(path) = path {
            let found = if path.is_dir() { library_in(path) } else { path.is_file().then(|| path.clone()) };
            return match found {
                Some(file) => Ok(Located::File(file)),
                None => Err(LibraryError::Absent { origin, path: path.clone() }),
            };
        }
    }
    let mut tried = Vec::new();
    if let Some(file) = paths.preferred.iter().find_map(|folder| library_in(folder)) {
        return Ok(Located::File(file));
    }
    for folder in paths.program.iter().flat_map(|program| FOLDERS.map(|folder| joined(program, folder))) {
        match library_in(&folder) {
            Some(file) => return Ok(Located::File(file)),
            None => tried.push(folder.join(NAME)),
        }
    }
    Ok(Located::NotFound { tried })
}

/// Joins `folder` to `program` and resolves leading `..`, for readable messages.
pub(crate) fn joined(program: &Path, folder: &str) -> PathBuf {
    let mut path = program.to_owned();
    for part in folder.split('/').filter(|part| *part != ".") {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path
}

/// Returns the library in a folder: the file without a version, otherwise the newest version.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(NAME);
    if plain.is_file() {
        return Some(plain);
    }
    let version = |name: &OsString| -> Option<Vec<u32>> {
        let digits = name.to_str()?.strip_prefix(NAME)?.strip_prefix('.')?;
        digits.split('.').map(|part| part.parse().ok()).collect()
    };
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok().map(|entry| entry.file_name()))
        .filter_map(|name| version(&name).map(|version| (version, name)))
        .max()
        .map(|(_, name)| folder.join(name))
}

/// Loads the library into the process. Also returns its name for the loader.
///
/// # Errors
/// The library cannot be loaded, is not ONNX Runtime, or is too old.
pub(crate) fn load(located: Located) -> Result<(EnvironmentBuilder, PathBuf), LibraryError> {
    match located {
        Located::File(path) => match ort::init_from(&path) {
            Ok(builder) => Ok((builder, path)),
            Err(error) => Err(unusable(error)),
        },
        Located::NotFound { mut tried } => {
            for name in SYSTEM_NAMES {
                match ort::init_from(name) {
                    Ok(builder) => return Ok((builder, name.into())),
                    Err(error) if is_not_found_by_loader(name, &error) => tried.push(name.into()),
                    Err(error) => return Err(unusable(error)),
                }
            }
            Err(LibraryError::NotFound { tried })
        }
    }
}

/// Returns true if the loader found no file of that name, false if it found a library and could not load it.
fn is_not_found_by_loader(name: &str, error: &ort::LoadDynamicError) -> bool {
    match error {
        ort::LoadDynamicError::Dlopen { error, .. } => {
            let text =
                std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
            text.starts_with(&format!("{name}: cannot open shared object file"))
        }
        _ => false,
    }
}

fn unusable(error: ort::LoadDynamicError) -> LibraryError {
    match error {
        ort::LoadDynamicError::Dlopen { error, path } => {
            LibraryError::Unloadable { path, why: error.to_string() }
        }
        ort::LoadDynamicError::MissingApi { path } => LibraryError::NotOnnxRuntime { path },
        ort::LoadDynamicError::BadVersion { version_str, path } => {
            LibraryError::TooOld { path, found: version_str }
        }
        ort::LoadDynamicError::InvalidVersionString => {
            LibraryError::DoesNotStart { why: "the version of the library is unreadable".into() }
        }
    }
}

/// Returns the path and version of the loaded library.
#[expect(unsafe_code, reason = "the version is only in the library's function table")]
pub(crate) fn identify(file: &Path) -> Option<(PathBuf, String)> {
    let file = CString::new(file.as_os_str().as_bytes()).ok()?;
    // SAFETY: `file` and the symbol name are NUL-terminated. RTLD_NOLOAD only looks up what is loaded already.
    let symbol = unsafe {
        let handle = libc::dlopen(file.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD);
        if handle.is_null() {
            return None;
        }
        libc::dlsym(handle, c"OrtGetApiBase".as_ptr())
    };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: `symbol` is in a loaded library, and Dl_info is plain data that dladdr fills when it returns non-zero;
    // its file name lives as long as the library, which is never unloaded.
    let path = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(symbol, &raw mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        CStr::from_ptr(info.dli_fname)
    };
    // SAFETY: `ort` has loaded this library and used this function with this type; it returns a table of functions
    // with static lifetime, whose version is a static NUL-terminated string.
    let version = unsafe {
        let api_base: unsafe extern "C" fn() -> *const ort::sys::OrtApiBase = std::mem::transmute(symbol);
        let base = api_base();
        if base.is_null() {
            return None;
        }
        CStr::from_ptr(((*base).GetVersionString)())
    };
    let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()));
    Some((path, version.to_string_lossy().into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};
    use std::fs;

    fn touch(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
    }

    #[test]
    fn the_flag_comes_before_the_variable_and_both_before_the_program() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("target/release");
        let file = |name: &str| root.path().join(name).join(NAME);
        for folder in ["setting", "variable", "target/onnxruntime", "target/providers/cuda"] {
            touch(&file(folder));
        }
        let mut paths = SearchPaths {
            setting: Some(file("setting")),
            variable: Some(root.path().join("variable")),
            preferred: vec![root.path().join("nowhere"), root.path().join("target/providers/cuda")],
            program: Some(program),
        };
        assert_eq!(locate(&paths).unwrap(), Located::File(file("setting")));
        paths.setting = None;
        assert_eq!(locate(&paths).unwrap(), Located::File(file("variable")));
        paths.variable = None;
        assert_eq!(locate(&paths).unwrap(), Located::File(file("target/providers/cuda")));
        paths.preferred.clear();
        assert_eq!(locate(&paths).unwrap(), Located::File(file("target/onnxruntime")));
    }

    #[test]
    fn the_library_of_make_setup_is_found_from_every_program_that_cargo_builds() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("target/onnxruntime/libonnxruntime.so.1.31.1");
        touch(&file);
        for program in ["target/release", "target/debug", "target/debug/deps", "target/debug/examples"] {
            let paths = SearchPaths { program: Some(root.path().join(program)), ..SearchPaths::default() };
            assert_eq!(locate(&paths).unwrap(), Located::File(file.clone()), "{program}");
        }
    }

    #[test]
    fn the_newest_version_is_found_and_other_files_are_ignored() {
        let root = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.31.1", "libonnxruntime.so.1.31.1.part"] {
            touch(&root.path().join(name));
        }
        assert_eq!(library_in(root.path()), Some(root.path().join("libonnxruntime.so.1.31.1")));
    }

    #[test]
    fn a_missing_explicit_path_is_an_error_even_if_another_path_has_the_library() {
        let root = tempfile::tempdir().unwrap();
        touch(&root.path().join("variable").join(NAME));
        let paths = SearchPaths {
            setting: Some("/nowhere/libonnxruntime.so".into()),
            variable: Some(root.path().join("variable")),
            ..SearchPaths::default()
        };
        let error = locate(&paths).unwrap_err();
        assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
        insta::assert_snapshot!(error, @"ONNX Runtime is not at /nowhere/libonnxruntime.so: onnx_runtime names that path, and it has no libonnxruntime.so (get it with `make setup` in the checkout, or name the file with `onnx_runtime`)");
    }

    #[test]
    fn every_searched_path_is_in_the_message() {
        let root = tempfile::tempdir().unwrap();
        let program = root.path().join("opt/rushes/bin");
        let paths = SearchPaths { program: Some(program), ..SearchPaths::default() };
        let Located::NotFound { tried } = locate(&paths).unwrap() else { panic!("found in an empty folder") };
        let text = LibraryError::NotFound { tried }.to_string();
        insta::assert_snapshot!(text.replace(&root.path().display().to_string(), ""), @"ONNX Runtime was not found: looked for /opt/rushes/bin/libonnxruntime.so, /opt/rushes/bin/lib/libonnxruntime.so, /opt/rushes/lib/libonnxruntime.so, /opt/rushes/onnxruntime/libonnxruntime.so, /opt/onnxruntime/libonnxruntime.so (get it with `make setup` in the checkout, or name the file with `onnx_runtime`)");
    }

    #[test]
    fn a_library_that_is_too_old_is_named_with_its_version() {
        let error = unusable(ort::LoadDynamicError::BadVersion {
            version_str: "1.17.3".into(),
            path: "/usr/lib/libonnxruntime.so".into(),
        });
        assert_eq!(error.report().class, ErrorClass::MissingOnMachine);
        insta::assert_snapshot!(error, @"ONNX Runtime at /usr/lib/libonnxruntime.so is too old: it is version 1.17.3, and 1.24 or newer is needed (get it with `make setup` in the checkout, or name the file with `onnx_runtime`)");
    }
}
