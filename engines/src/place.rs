//! The place of a component: a device, or two for the guidance passes of an expert.

use crate::Device;
use crate::device::device_in;
use bundle::Field;
use std::fmt;
use std::str::FromStr;

/// Where a component is: on one device, or on a pair. An expert on a pair makes both guidance passes of a step at the
/// same time: the pass with the prompt on the first device, the one with the negative prompt on the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    first: Device,
    second: Option<Device>,
}

impl Place {
    /// One device.
    pub fn on(device: Device) -> Self {
        Self { first: device, second: None }
    }

    /// Two devices.
    ///
    /// # Errors
    /// Both are the same.
    pub fn pair(first: Device, second: Device) -> Result<Self, bundle::Error> {
        if first == second {
            return Err(bundle::Error::value(
                Field::Place,
                format!("`{first}+{second}`"),
                format!("both devices of the pair are {first}"),
                "name two different devices, or one",
            ));
        }
        Ok(Self { first, second: Some(second) })
    }

    /// The device, or the first of a pair.
    pub fn first(self) -> Device {
        self.first
    }

    /// The second device of a pair.
    pub fn second(self) -> Option<Device> {
        self.second
    }

    /// Both devices, in the order of the passes.
    pub fn devices(self) -> impl Iterator<Item = Device> {
        std::iter::once(self.first).chain(self.second)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        self.second.map_or(Ok(()), |second| write!(f, "+{second}"))
    }
}

/// The two devices that every expert of a bundle is on.
///
/// ```
/// use engines::GuidanceDevices;
///
/// let devices: GuidanceDevices = "cuda:0,cuda:1".parse()?;
/// assert_eq!(devices.place().to_string(), "cuda:0+cuda:1");
/// assert!("cuda:0,cuda:0".parse::<GuidanceDevices>().is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuidanceDevices(Place);

impl GuidanceDevices {
    /// The place of each expert, which is a pair.
    pub fn place(self) -> Place {
        self.0
    }
}

impl fmt::Display for GuidanceDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.first.fmt(f)?;
        self.0.second.map_or(Ok(()), |second| write!(f, ",{second}"))
    }
}

impl FromStr for GuidanceDevices {
    type Err = bundle::Error;

    /// Parses `DEVICE,DEVICE`.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let field = Field::GuidanceDevices;
        let refused = |rule: String, fix: String| bundle::Error::value(field, format!("`{text}`"), rule, fix);
        let Some((first, second)) = text.split_once(',') else {
            let rule = "guidance has two passes, which take two devices";
            return Err(refused(rule.into(), "write it like cuda:0,cuda:1".into()));
        };
        let (first, second) = (device_in(first, field, text)?, device_in(second, field, text)?);
        match Place::pair(first, second) {
            Ok(pair) => Ok(Self(pair)),
            Err(bundle::Error::Value { rule, fix, .. }) => Err(refused(rule, fix)),
            Err(other) => Err(other),
        }
    }
}

/// Parses `DEVICE` or `DEVICE+DEVICE`. Errors name what was `given`.
pub(crate) fn place_in(text: &str, given: &str) -> Result<Place, bundle::Error> {
    let device = |text: &str| device_in(text, Field::Place, given);
    let refused = |rule: &str| {
        let fix = "write a pair like high_noise=cuda:0+cuda:1";
        bundle::Error::value(Field::Place, format!("`{given}`"), rule, fix)
    };
    match text.split_once('+') {
        None => Ok(Place::on(device(text)?)),
        Some((_, second)) if second.contains('+') => Err(refused("a pair has two devices")),
        Some(("", _) | (_, "")) => Err(refused("a device of the pair is missing")),
        Some((first, second)) => {
            let (first, second) = (device(first)?, device(second)?);
            Place::pair(first, second).map_err(|error| match error {
                bundle::Error::Value { rule, fix, .. } => {
                    bundle::Error::value(Field::Place, format!("`{given}`"), rule, fix)
                }
                other => other,
            })
        }
    }
}
