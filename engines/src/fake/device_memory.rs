//! The memory of the devices.

use bundle::units::ByteCount;

/// The memory of a device.
///
/// Sessions hold memory from it. The pool of a closed session, with its activations, is held until its last output is
/// dropped. What they free is still in use by the process until it is returned, as with real
/// allocators, and is used for the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemory {
    /// What the device has.
    pub capacity: ByteCount,
    /// What other programs use.
    pub others: ByteCount,
    /// What sessions hold.
    pub held: ByteCount,
    /// What the process uses: `held`, and what was freed and is not returned.
    pub in_use: ByteCount,
    /// The most that was held.
    pub peak: ByteCount,
}

impl DeviceMemory {
    pub(super) fn new(capacity: ByteCount) -> Self {
        let none = ByteCount(0);
        Self { capacity, others: none, held: none, in_use: none, peak: none }
    }

    /// Takes `bytes`. Returns false, and takes nothing, if they are not available.
    pub(super) fn take(&mut self, bytes: ByteCount) -> bool {
        let after = self.held.0.saturating_add(bytes.0);
        if after.saturating_add(self.others.0) > self.capacity.0 {
            return false;
        }
        self.held = ByteCount(after);
        self.in_use = self.in_use.max(self.held);
        self.peak = self.peak.max(self.held);
        true
    }

    /// Frees `bytes` that were taken.
    pub(super) fn free(&mut self, bytes: ByteCount) {
        debug_assert!(self.held >= bytes, "{bytes} are freed and {} are held", self.held);
        self.held = ByteCount(self.held.0.saturating_sub(bytes.0));
    }

    /// Returns what was freed.
    pub(super) fn return_freed(&mut self) {
        self.in_use = self.held;
    }

    /// What may still be used.
    pub(super) fn available(&self) -> ByteCount {
        ByteCount(self.capacity.0.saturating_sub(self.others.0).saturating_sub(self.in_use.0))
    }
}
