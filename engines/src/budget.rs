//! Memory budgets of devices.

use crate::Device;
use crate::device::device_in;
use crate::placement::Placement;
use bundle::Field;
use bundle::units::ByteCount;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// How much memory of each device may be used: a device has a budget of its own, else the common one, else none. A
/// device without memory of its own shares the budget of the CPU, and setting one sets the other.
///
/// ```
/// use bundle::units::ByteCount;
/// use engines::{Device, MemoryBudgets};
///
/// let budgets: MemoryBudgets = "24GB,cpu=8GB".parse()?;
/// assert_eq!(budgets.of(Device::CPU), Some(ByteCount(8_000_000_000)));
/// assert_eq!(budgets.of("cuda:1".parse()?), Some(ByteCount(24_000_000_000)));
/// assert_eq!(budgets.of("openvino".parse()?), Some(ByteCount(8_000_000_000)));
/// assert_eq!(MemoryBudgets::default().of(Device::CPU), None);
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryBudgets {
    common: Option<ByteCount>,
    own: BTreeMap<Device, ByteCount>,
}

impl MemoryBudgets {
    /// The same budget for every device.
    pub fn common(bytes: ByteCount) -> Self {
        Self { common: Some(bytes), own: BTreeMap::new() }
    }

    /// The budget of a device. `None` leaves it to what is available on the device.
    pub fn of(&self, device: Device) -> Option<ByteCount> {
        self.own.get(&device.memory()).copied().or(self.common)
    }

    /// Sets the budget of a device, or the common one.
    ///
    /// # Errors
    /// It is set already.
    pub fn set(&mut self, device: Option<Device>, bytes: ByteCount) -> Result<(), bundle::Error> {
        let device = device.map(Device::memory);
        if let Some(before) = device.map_or(self.common, |device| self.own.get(&device).copied()) {
            let whose = device.map_or("all devices".to_owned(), |device| device.to_string());
            return Err(bundle::Error::value(
                Field::MemoryBudget,
                format!("`{}`", Entry(device, bytes)),
                format!("the budget of {whose} is {} already", Exact(before)),
                "give it once",
            ));
        }
        match device {
            Some(device) => {
                self.own.insert(device, bytes);
            }
            None => self.common = Some(bytes),
        }
        Ok(())
    }

    /// Combines several lists of budgets.
    ///
    /// # Errors
    /// Two of them have a budget of the same device, or a common one.
    pub fn combined<'a>(lists: impl IntoIterator<Item = &'a Self>) -> Result<Self, bundle::Error> {
        let mut combined = Self::default();
        for list in lists {
            list.entries().try_for_each(|(device, bytes)| combined.set(device, bytes))?;
        }
        Ok(combined)
    }

    /// Checks that every device with a budget of its own has components.
    ///
    /// # Errors
    /// A device has none.
    pub fn check(&self, placement: &Placement) -> Result<(), bundle::Error> {
        self.check_devices(&placement.devices())
    }

    /// Checks that every device with a budget of its own is used.
    ///
    /// # Errors
    /// A device is not.
    pub fn check_devices(&self, used: &BTreeSet<Device>) -> Result<(), bundle::Error> {
        let memories: BTreeSet<Device> = used.iter().map(|device| device.memory()).collect();
        let Some(unused) = self.own.keys().find(|device| !memories.contains(device)) else { return Ok(()) };
        let names: Vec<String> = used.iter().map(Device::to_string).collect();
        Err(bundle::Error::value(
            Field::MemoryBudget,
            format!("set for {unused}"),
            format!("no component is placed there; components are on {}", names.join(", ")),
            "set that of these devices, or `place` components elsewhere",
        ))
    }

    /// The common budget, then those of devices.
    fn entries(&self) -> impl Iterator<Item = (Option<Device>, ByteCount)> {
        let common = self.common.map(|bytes| (None, bytes));
        common.into_iter().chain(self.own.iter().map(|(device, bytes)| (Some(*device), *bytes)))
    }
}

/// A number of bytes with the largest unit of which it is a multiple.
struct Exact(ByteCount);

impl fmt::Display for Exact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(ByteCount(bytes)) = *self;
        let units = [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1000)];
        match units.into_iter().find(|(_, size)| bytes >= *size && bytes.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", bytes / size),
            None => write!(f, "{bytes}"),
        }
    }
}

/// A budget: that of a device, or the common one.
struct Entry(Option<Device>, ByteCount);

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(device), bytes) => write!(f, "{device}={}", Exact(*bytes)),
            Self(None, bytes) => Exact(*bytes).fmt(f),
        }
    }
}

/// A budget for each device. The last one of a device counts.
impl FromIterator<(Device, ByteCount)> for MemoryBudgets {
    fn from_iter<T: IntoIterator<Item = (Device, ByteCount)>>(budgets: T) -> Self {
        let budgets = budgets.into_iter().map(|(device, bytes)| (device.memory(), bytes));
        Self { common: None, own: budgets.collect() }
    }
}

impl fmt::Display for MemoryBudgets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (device, bytes)) in self.entries().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{}", Entry(device, bytes))?;
        }
        Ok(())
    }
}

impl FromStr for MemoryBudgets {
    type Err = bundle::Error;

    /// Parses `[DEVICE=]BYTES[,[DEVICE=]BYTES…]`.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let refused = |given: &str, rule: &str| {
            let fix = "write it like 8GB or cpu=8GB,cuda:0=24GB";
            bundle::Error::value(Field::MemoryBudget, format!("`{given}`"), rule, fix)
        };
        let mut budgets = Self::default();
        for part in text.split(',') {
            let (device, bytes) = match part.split_once('=') {
                _ if part.is_empty() => return Err(refused(text, "a part of the list is empty")),
                None => (None, part),
                Some(("", _)) => return Err(refused(part, "it has no device before the equals sign")),
                Some((_, "")) => return Err(refused(part, "it has no number of bytes")),
                Some((device, bytes)) => (Some(device_in(device, Field::MemoryBudget, part)?), bytes),
            };
            let Ok(bytes) = bytes.parse() else {
                return Err(refused(part, "it is not a number of bytes"));
            };
            budgets.set(device, bytes)?;
        }
        Ok(budgets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::any_device;
    use proptest::prelude::*;

    const GB: u64 = 1_000_000_000;

    fn parsed(text: &str) -> MemoryBudgets {
        text.parse().unwrap()
    }

    #[test]
    fn the_budget_of_a_device_is_its_own_else_the_common_one() {
        let budgets = parsed("24GB,cpu=8GB,cuda=80GB");
        let of = |device: &str| budgets.of(device.parse().unwrap()).map(|bytes| bytes.0 / GB);
        assert_eq!([of("cpu"), of("cuda:0"), of("cuda:1")], [Some(8), Some(80), Some(24)]);
        assert_eq!(parsed("cpu=8GB").of("cuda:0".parse().unwrap()), None);
        assert_eq!(parsed("8 GB"), MemoryBudgets::common(ByteCount(8 * GB)));
    }

    #[test]
    fn wrong_budgets_are_refused_by_name() {
        let refused = |text: &str| text.parse::<MemoryBudgets>().unwrap_err().to_string();
        insta::assert_snapshot!(refused("cuda=24GB,cuda:0=8GB"), @"memory_budget cannot be `cuda:0=8GB`: the budget of cuda:0 is 24GB already (give it once)");
        insta::assert_snapshot!(refused("8GB,9GB"), @"memory_budget cannot be `9GB`: the budget of all devices is 8GB already (give it once)");
        insta::assert_snapshot!(refused("gpu=8GB"), @"memory_budget cannot be `gpu=8GB`: unknown execution provider; expected one of cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu (use one of these)");
        insta::assert_snapshot!(refused("cpu=lots"), @"memory_budget cannot be `cpu=lots`: it is not a number of bytes (write it like 8GB or cpu=8GB,cuda:0=24GB)");
        for text in ["", ",", "8GB,", "cpu=", "=8GB", "cpu:8GB", "cpu=8GB=9GB", "cpu =8GB", "high=8GB", "-1"]
        {
            assert!(refused(text).starts_with("memory_budget cannot be"), "{text}");
        }
        insta::assert_snapshot!(
            MemoryBudgets::combined([&parsed("8GB"), &parsed("cpu=1GB"), &parsed("9GB")]).unwrap_err(),
            @"memory_budget cannot be `9GB`: the budget of all devices is 8GB already (give it once)"
        );
    }

    #[test]
    fn a_budget_of_a_device_without_components_is_refused() {
        let on_cpu = Placement::on(Device::CPU);
        parsed("24GB").check(&on_cpu).unwrap();
        parsed("cpu=24GB").check(&on_cpu).unwrap();
        insta::assert_snapshot!(parsed("cpu=8GB,cuda=24GB").check(&on_cpu).unwrap_err(), @"memory_budget cannot be set for cuda:0: no component is placed there; components are on cpu (set that of these devices, or `place` components elsewhere)");
    }

    #[test]
    fn devices_with_the_memory_of_the_cpu_share_its_budget() {
        let [openvino, webgpu]: [Device; 2] = ["openvino", "webgpu"].map(|text| text.parse().unwrap());
        let budgets = parsed("openvino=8GB");
        assert_eq!((budgets.of(Device::CPU), budgets.of(webgpu)), (Some(ByteCount(8 * GB)), None));
        assert_eq!(budgets.to_string(), "cpu=8GB");
        parsed("cpu=8GB").check(&Placement::on(openvino)).unwrap();
        assert!(parsed("cpu=8GB").check(&Placement::on(webgpu)).is_err());
        let twice = "cpu=8GB,openvino=4GB".parse::<MemoryBudgets>().unwrap_err();
        insta::assert_snapshot!(twice, @"memory_budget cannot be `cpu=4GB`: the budget of cpu is 8GB already (give it once)");
    }

    proptest! {
        #[test]
        fn budgets_are_printed_as_they_are_parsed(
            common in prop::option::of(any::<u64>()),
            own in prop::collection::btree_map(any_device(), any::<u64>(), 0..4),
        ) {
            prop_assume!(common.is_some() || !own.is_empty());
            let own = own.into_iter().map(|(device, bytes)| (device.memory(), ByteCount(bytes))).collect();
            let budgets = MemoryBudgets { common: common.map(ByteCount), own };
            prop_assert_eq!(budgets.to_string().parse::<MemoryBudgets>().unwrap(), budgets);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-zB=,:0-9. ]{0,30}") {
            if let Ok(budgets) = text.parse::<MemoryBudgets>() {
                prop_assert_eq!(budgets.to_string().parse::<MemoryBudgets>().unwrap(), budgets);
            }
        }
    }
}
