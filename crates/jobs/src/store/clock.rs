//! Times in seconds since 1970.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The present time in seconds since 1970, as the store counts it.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// A time as the system counts it; 1970 if it is out of range.
pub(super) fn time(seconds: f64) -> SystemTime {
    let since = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
}
