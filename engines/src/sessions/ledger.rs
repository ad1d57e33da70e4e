//! The memory of each device, as counted by the sessions. Pure.
//!
//! Devices that use the memory of another one ([`Device::memory`]) have no account of their own: their sessions are
//! charged to that of the other.

use crate::Device;
use bundle::units::ByteCount;
use std::collections::BTreeMap;

/// The account of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    budget: ByteCount,
    charged: ByteCount,
    peak: ByteCount,
}

/// Counts the memory of each device against its budget.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    accounts: BTreeMap<Device, Account>,
}

impl Ledger {
    /// Opens the account of a device. The first budget counts.
    pub(super) fn open(&mut self, device: Device, budget: impl FnOnce() -> ByteCount) {
        self.accounts.entry(device.memory()).or_insert_with(|| Account {
            budget: budget(),
            charged: ByteCount(0),
            peak: ByteCount(0),
        });
    }

    /// The devices whose memory is counted.
    pub(super) fn devices(&self) -> impl Iterator<Item = Device> {
        self.accounts.keys().copied()
    }

    /// The budget.
    pub(super) fn budget(&self, device: Device) -> ByteCount {
        self.accounts.get(&device.memory()).map_or(ByteCount(u64::MAX), |account| account.budget)
    }

    /// The memory that is charged.
    pub(super) fn charged(&self, device: Device) -> ByteCount {
        self.accounts.get(&device.memory()).map_or(ByteCount(0), |account| account.charged)
    }

    /// The most that was ever charged.
    pub(super) fn peak(&self, device: Device) -> ByteCount {
        self.accounts.get(&device.memory()).map_or(ByteCount(0), |account| account.peak)
    }

    /// The bytes by which `bytes` more exceed the budget; 0 if they fit.
    pub(super) fn shortage(&self, device: Device, bytes: ByteCount) -> ByteCount {
        let after = self.charged(device).0.saturating_add(bytes.0);
        ByteCount(after.saturating_sub(self.budget(device).0))
    }

    /// Charges `bytes` if they fit. Returns false, and charges nothing, if they do not.
    pub(super) fn charge(&mut self, device: Device, bytes: ByteCount) -> bool {
        if self.shortage(device, bytes).0 > 0 {
            return false;
        }
        if let Some(account) = self.accounts.get_mut(&device.memory()) {
            account.charged = account.charged + bytes;
            account.peak = account.peak.max(account.charged);
        }
        true
    }

    /// Returns `bytes` that were charged.
    pub(super) fn release(&mut self, device: Device, bytes: ByteCount) {
        if let Some(account) = self.accounts.get_mut(&device.memory()) {
            account.charged = ByteCount(account.charged.0.saturating_sub(bytes.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_charged_beyond_the_budget() {
        let mut ledger = Ledger::default();
        ledger.open(Device::CPU, || ByteCount(100));
        ledger.open(Device::CPU, || ByteCount(1));
        assert!(ledger.charge(Device::CPU, ByteCount(60)));
        assert_eq!(ledger.shortage(Device::CPU, ByteCount(50)), ByteCount(10));
        assert!(!ledger.charge(Device::CPU, ByteCount(41)));
        assert!(!ledger.charge(Device::CPU, ByteCount(u64::MAX)));
        assert!(ledger.charge(Device::CPU, ByteCount(40)));
        ledger.release(Device::CPU, ByteCount(70));
        assert_eq!((ledger.charged(Device::CPU), ledger.peak(Device::CPU)), (ByteCount(30), ByteCount(100)));
    }

    #[test]
    fn devices_that_use_the_memory_of_the_cpu_share_its_account() {
        let [openvino, webgpu]: [Device; 2] = ["openvino", "webgpu"].map(|text| text.parse().unwrap());
        let mut ledger = Ledger::default();
        for device in [openvino, Device::CPU, webgpu] {
            ledger.open(device, || ByteCount(100));
        }
        assert_eq!(ledger.devices().collect::<Vec<_>>(), [Device::CPU, webgpu]);
        assert!(ledger.charge(openvino, ByteCount(60)) && ledger.charge(webgpu, ByteCount(60)));
        assert!(!ledger.charge(Device::CPU, ByteCount(50)));
        assert_eq!(ledger.shortage(Device::CPU, ByteCount(50)), ByteCount(10));
        ledger.release(openvino, ByteCount(60));
        assert!(ledger.charge(Device::CPU, ByteCount(50)));
        assert_eq!((ledger.charged(openvino), ledger.peak(openvino)), (ByteCount(50), ByteCount(60)));
    }
}
