//! Devices of the scheduler: one, or a pair that shares an expert's passes.

use bundle::Field;
use engines::Device;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A device, written `PROVIDER[:INDEX]` in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName(pub Device);

impl TryFrom<String> for DeviceName {
    type Error = bundle::Error;
    fn try_from(text: String) -> Result<Self, bundle::Error> {
        text.parse().map(Self)
    }
}

impl From<DeviceName> for String {
    fn from(name: DeviceName) -> Self {
        name.0.to_string()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a session is placed: on one device, or on a pair. Both devices of a pair have the expert; the conditional pass
/// of guidance runs on the first, the unconditional one on the second, at the same time. Written `cuda:0` or
/// `cuda:0+cuda:1`.
///
/// ```
/// use runtime::scheduler::Devices;
///
/// let pair: Devices = "cuda:0+cuda:1".parse()?;
/// assert!(pair.is_pair() && pair.iter().count() == 2);
/// assert!("cuda:0+cuda:0".parse::<Devices>().is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Devices {
    first: DeviceName,
    second: Option<DeviceName>,
}

impl Devices {
    /// One device.
    pub fn one(device: DeviceName) -> Self {
        Self { first: device, second: None }
    }

    /// A pair. The conditional pass runs on `first`.
    ///
    /// # Errors
    /// Both are the same device.
    pub fn pair(first: DeviceName, second: DeviceName) -> Result<Self, bundle::Error> {
        if first == second {
            return Err(bundle::Error::value(
                Field::Place,
                format!("`{first}+{second}`"),
                "a pair has two different devices",
                "name two devices, like cuda:0+cuda:1",
            ));
        }
        Ok(Self { first, second: Some(second) })
    }

    /// The only device, or the first of a pair.
    pub fn first(self) -> DeviceName {
        self.first
    }

    /// The second device of a pair.
    pub fn second(self) -> Option<DeviceName> {
        self.second
    }

    /// Returns true for a pair.
    pub fn is_pair(self) -> bool {
        self.second.is_some()
    }

    /// One or two devices.
    pub fn iter(self) -> impl Iterator<Item = DeviceName> {
        std::iter::once(self.first).chain(self.second)
    }

    /// Returns true if the device is among them.
    pub fn contains(self, device: DeviceName) -> bool {
        self.first == device || self.second == Some(device)
    }

    /// The other device of a pair that `device` belongs to.
    pub fn partner(self, device: DeviceName) -> Option<DeviceName> {
        let second = self.second?;
        if device == self.first { Some(second) } else { (device == second).then_some(self.first) }
    }
}

impl From<DeviceName> for Devices {
    fn from(device: DeviceName) -> Self {
        Self::one(device)
    }
}

impl FromStr for Devices {
    type Err = bundle::Error;

    /// Parses `DEVICE` or `DEVICE+DEVICE`.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        match text.split_once('+') {
            None => Ok(Self::one(DeviceName(text.parse()?))),
            Some((first, second)) => Self::pair(DeviceName(first.parse()?), DeviceName(second.parse()?)),
        }
    }
}

impl TryFrom<String> for Devices {
    type Error = bundle::Error;
    fn try_from(text: String) -> Result<Self, bundle::Error> {
        text.parse()
    }
}

impl From<Devices> for String {
    fn from(devices: Devices) -> Self {
        devices.to_string()
    }
}

impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.second.map_or(Ok(()), |second| write!(f, "+{second}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_printed_as_they_are_parsed() {
        for text in ["cpu", "cuda:1", "cuda:0+cuda:1", "cuda:1+cpu"] {
            let devices: Devices = text.parse().unwrap();
            assert_eq!(devices.to_string(), text);
            let json = serde_json::to_string(&devices).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Devices>(&json).unwrap(), devices);
        }
        let refused = |text: &str| text.parse::<Devices>().unwrap_err().to_string();
        insta::assert_snapshot!(refused("cuda:0+cuda:0"), @"place cannot be `cuda:0+cuda:0`: a pair has two different devices (name two devices, like cuda:0+cuda:1)");
        assert!("cuda:0+cuda:1+cuda:2".parse::<Devices>().is_err());
        assert!("cuda:0+".parse::<Devices>().is_err());
    }

    #[test]
    fn the_partner_is_the_other_device_of_a_pair() {
        let [zero, one, cpu] = ["cuda:0", "cuda:1", "cpu"].map(|text| DeviceName(text.parse().unwrap()));
        let pair = Devices::pair(one, zero).unwrap();
        assert_eq!((pair.partner(one), pair.partner(zero), pair.partner(cpu)), (Some(zero), Some(one), None));
        assert_eq!((pair.first(), pair.second()), (one, Some(zero)));
        assert_eq!(Devices::one(cpu).partner(cpu), None);
        assert!(pair.contains(zero) && !pair.contains(cpu));
    }
}
