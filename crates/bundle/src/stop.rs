//! Stop requests for work without an ONNX Runtime session: reading, converting, copying.

use crate::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stop flag, shared by the caller and the work.
///
/// Clones share the flag. It cannot be reset.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Creates a flag that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requests the stop.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Returns true once the stop has been requested.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Returns an error once the stop has been requested.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn check(&self) -> Result<(), Error> {
        if self.is_requested() { Err(Error::Stopped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Diagnose, ErrorClass};

    #[test]
    fn clones_share_the_request() {
        let stop = Stop::new();
        let other = stop.clone();
        assert!(stop.check().is_ok());
        other.request();
        assert_eq!(stop.check().unwrap_err().report().class, ErrorClass::Interrupted);
        assert!(!Stop::new().is_requested());
    }
}
