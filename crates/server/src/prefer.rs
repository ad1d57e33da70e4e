//! The header `Prefer` of RFC 7240, of which `wait` is understood.

use axum::http::HeaderMap;
use std::time::Duration;

/// The longest wait.
const MOST: Duration = Duration::from_secs(3600);

/// How long a client prefers to wait; `None` if it does not say so. Without a number it is as long as necessary.
pub(crate) fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    for preference in values.flat_map(|value| value.split(',')) {
        let preference = preference.split(';').next().unwrap_or_default().trim();
        let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
        if name.trim().eq_ignore_ascii_case("wait") {
            let seconds = value.trim().trim_matches('"').parse().ok();
            return Some(seconds.map_or(MOST, Duration::from_secs).min(MOST));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_found_among_preferences() {
        let of =
            |text: &str| wait(&HeaderMap::from_iter([("prefer".parse().unwrap(), text.parse().unwrap())]));
        assert_eq!(of("wait"), Some(MOST));
        assert_eq!(of("respond-async, wait=10"), Some(Duration::from_secs(10)));
        assert_eq!(of("WAIT=\"5\"; x=1"), Some(Duration::from_secs(5)));
        assert_eq!(of("wait=99999999"), Some(MOST));
        assert_eq!(of("return=minimal"), None);
        assert_eq!(wait(&HeaderMap::new()), None);
    }
}
