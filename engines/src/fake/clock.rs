//! Virtual time: it passes only by the latencies of calls.

use crate::Device;
use std::collections::BTreeMap;
use std::time::Duration;

/// The time since the start, and how long each device was running graphs.
///
/// A call begins at the time at which it is made. A run begins once the run before it on the same device has ended.
/// Calls that are made at the same time on several devices overlap.
#[derive(Debug, Default)]
pub(super) struct Clock {
    now: Duration,
    devices: BTreeMap<Device, Timeline>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Timeline {
    free_at: Duration,
    busy: Duration,
}

impl Clock {
    /// The latest time at which a call has ended.
    pub(super) fn now(&self) -> Duration {
        self.now
    }

    /// The sum of the latencies of the runs on a device.
    pub(super) fn busy(&self, device: Device) -> Duration {
        self.devices.get(&device).map_or(Duration::ZERO, |timeline| timeline.busy)
    }

    /// Lets time pass.
    pub(super) fn advance(&mut self, by: Duration) {
        self.now += by;
    }

    /// Ends an opening that began at `began`.
    pub(super) fn end_opening(&mut self, began: Duration, latency: Duration) {
        self.now = self.now.max(began + latency);
    }

    /// Ends a run that was requested at `began`.
    pub(super) fn end_run(&mut self, device: Device, began: Duration, latency: Duration) {
        let timeline = self.devices.entry(device).or_default();
        timeline.free_at = timeline.free_at.max(began) + latency;
        timeline.busy += latency;
        self.now = self.now.max(timeline.free_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn runs_overlap_on_two_devices_and_not_on_one() {
        let gpu: Device = "cuda".parse().unwrap();
        let mut clock = Clock::default();
        clock.end_run(gpu, Duration::ZERO, 3 * SECOND);
        clock.end_run(Device::CPU, Duration::ZERO, 2 * SECOND);
        assert_eq!(clock.now(), 3 * SECOND);
        clock.end_run(gpu, Duration::ZERO, SECOND);
        assert_eq!((clock.now(), clock.busy(gpu)), (4 * SECOND, 4 * SECOND));
        clock.end_opening(SECOND, SECOND);
        clock.advance(SECOND);
        assert_eq!((clock.now(), clock.busy(Device::CPU)), (5 * SECOND, 2 * SECOND));
    }
}
