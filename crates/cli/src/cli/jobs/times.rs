//! Times as text.

/// A length of time as `H:MM:SS`, or `M:SS` below an hour, rounded up.
pub(super) fn clock(seconds: f64) -> String {
    let seconds = seconds.max(0.0).ceil();
    let hours = (seconds / 3600.0).floor();
    let minutes = ((seconds - 3600.0 * hours) / 60.0).floor();
    let rest = seconds - 3600.0 * hours - 60.0 * minutes;
    if hours > 0.0 {
        format!("{hours:.0}:{minutes:02.0}:{rest:02.0}")
    } else {
        format!("{minutes:.0}:{rest:02.0}")
    }
}

/// How long ago something was, in its largest unit.
pub(super) fn ago(then: f64, now: f64) -> String {
    let seconds = (now - then).max(0.0);
    for (unit, length) in [("days", 86400.0), ("h", 3600.0), ("min", 60.0)] {
        if seconds >= 2.0 * length {
            return format!("{:.0} {unit} ago", (seconds / length).floor());
        }
    }
    format!("{seconds:.0} s ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(
            [0.0, 0.2, 59.0, 60.0, 3599.5, 7325.0].map(clock),
            ["0:00", "0:01", "0:59", "1:00", "1:00:00", "2:02:05"]
        );
        assert_eq!(clock(-1.0), "0:00");
        assert_eq!(clock(f64::NAN), "0:00");
        let shown = [1.0, 119.0, 120.0, 7199.0, 7200.0, 172_800.0].map(|age| ago(1000.0, 1000.0 + age));
        assert_eq!(shown, ["1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "2 days ago"]);
        // A clock that was set back.
        assert_eq!(ago(1000.0, 900.0), "0 s ago");
    }
}
