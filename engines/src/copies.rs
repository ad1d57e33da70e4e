//! Counts of what is copied to, from and within the memory of a device.

use bundle::units::ByteCount;
use std::sync::{Mutex, PoisonError};

/// Copies of tensors in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// The number of tensors.
    pub tensors: u64,
    /// Their elements.
    pub bytes: ByteCount,
}

/// Copies of tensors between host memory and the memory of a device, since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CopyCounts {
    /// From host memory to the device.
    pub to_device: Copied,
    /// From the device to host memory.
    pub to_host: Copied,
    /// Within the memory of the device.
    pub within: Copied,
}

impl CopyCounts {
    /// What was copied after `earlier` was read.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        let since = |now: Copied, then: Copied| Copied {
            tensors: now.tensors.saturating_sub(then.tensors),
            bytes: ByteCount(now.bytes.0.saturating_sub(then.bytes.0)),
        };
        Self {
            to_device: since(self.to_device, earlier.to_device),
            to_host: since(self.to_host, earlier.to_host),
            within: since(self.within, earlier.within),
        }
    }
}

/// Where a tensor is copied to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From host memory to the device.
    ToDevice,
    /// From the device to host memory.
    ToHost,
    /// Within the memory of the device.
    Within,
}

/// Counts the copies of a device.
#[derive(Debug, Default)]
pub(crate) struct CopyCounter(Mutex<CopyCounts>);

impl CopyCounter {
    /// Counts a tensor of `bytes`.
    pub(crate) fn add(&self, direction: Direction, bytes: usize) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = match direction {
            Direction::ToDevice => &mut counts.to_device,
            Direction::ToHost => &mut counts.to_host,
            Direction::Within => &mut counts.within,
        };
        copied.tensors += 1;
        copied.bytes.0 = copied.bytes.0.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// What was counted.
    pub(crate) fn counts(&self) -> CopyCounts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_counted_for_itself() {
        let counter = CopyCounter::default();
        counter.add(Direction::ToDevice, 12);
        let before = counter.counts();
        counter.add(Direction::ToDevice, 8);
        counter.add(Direction::ToHost, 4);
        counter.add(Direction::Within, 2);
        let copied = |tensors, bytes| Copied { tensors, bytes: ByteCount(bytes) };
        assert_eq!(counter.counts().to_device, copied(2, 20));
        let since = counter.counts().since(before);
        let expected = CopyCounts { to_device: copied(1, 8), to_host: copied(1, 4), within: copied(1, 2) };
        assert_eq!(since, expected);
    }
}
