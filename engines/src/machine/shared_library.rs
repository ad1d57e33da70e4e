//! A shared library whose functions are called directly.

use std::ffi::{CStr, CString, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;

/// An open library.
#[derive(Debug)]
pub(super) struct SharedLibrary {
    handle: NonNull<c_void>,
}

impl SharedLibrary {
    /// Opens a library. A path without a slash is searched by the system's loader.
    ///
    /// Its code stays in memory when the handle is closed: drivers have threads and exit handlers of their own.
    ///
    /// # Errors
    /// The message of the loader.
    #[expect(unsafe_code, reason = "the loader is called")]
    pub(super) fn open(path: &Path) -> Result<Self, String> {
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|error| format!("{}: {error}", path.display()))?;
        // SAFETY: `name` is NUL-terminated. The library is one that runs at a load what every program with it runs.
        let handle =
            unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | libc::RTLD_NODELETE) };
        NonNull::new(handle).map(|handle| Self { handle }).ok_or_else(|| {
            // SAFETY: dlerror returns null, or a text that lives until the next call of the loader on this thread.
            unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    "the loader gives no reason".to_owned()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            }
        })
    }

    /// The address of a function; `None` if the library lacks it.
    #[expect(unsafe_code, reason = "the loader is called")]
    pub(super) fn function(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the handle is open, and `name` is NUL-terminated.
        NonNull::new(unsafe { libc::dlsym(self.handle.as_ptr(), name.as_ptr()) })
    }
}

impl Drop for SharedLibrary {
    #[expect(unsafe_code, reason = "the loader is called")]
    fn drop(&mut self) {
        // SAFETY: the handle is closed once.
        unsafe { libc::dlclose(self.handle.as_ptr()) };
    }
}
