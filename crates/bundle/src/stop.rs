//! A request to stop work that runs no graph: reading, converting, copying.

use crate::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A request to stop, shared by whoever may make it and the work that obeys it.
///
/// Clones are the same request. It cannot be taken back.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A request that has not been made.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes the request.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether the request has been made.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Lets work go on, or ends it.
    ///
    /// # Errors
    /// [`Error::Stopped`] once the request has been made.
    pub fn check(&self) -> Result<(), Error> {
        if self.is_requested() { Err(Error::Stopped) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Diagnose, ErrorClass};

    #[test]
    fn clones_are_one_request() {
        let stop = Stop::new();
        let other = stop.clone();
        assert!(stop.check().is_ok());
        other.request();
        assert_eq!(stop.check().unwrap_err().report().class, ErrorClass::Interrupted);
        assert!(!Stop::new().is_requested());
    }
}
