//! Placement: the device of each component, or the two devices of an expert.

use crate::place::place_in;
use crate::{Device, GuidanceDevices, Place};
use bundle::Field;
use bundle::manifest::{Component, Manifest};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// A component as placements name it, in order of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placeable {
    /// The text encoder.
    TextEncoder,
    /// The image encoder.
    ImageEncoder,
    /// The expert for high noise.
    HighNoise,
    /// The expert for low noise.
    LowNoise,
    /// The only expert.
    Only,
    /// The decoder.
    Decoder,
    /// The tiny decoder for previews.
    Preview,
    /// Every expert of the bundle.
    Experts,
}

bundle::named!(
    Placeable, Field::Place, "component", "text_encoder" => TextEncoder, "image_encoder" => ImageEncoder,
    "high_noise" | "high" => HighNoise, "low_noise" | "low" => LowNoise, "only" => Only, "decoder" => Decoder,
    "preview" => Preview, "experts" => Experts,
);

impl Placeable {
    /// Returns true if this is the name of an expert, or of all experts.
    fn is_expert(self) -> bool {
        matches!(self, Self::HighNoise | Self::LowNoise | Self::Only | Self::Experts)
    }

    /// Returns true if both names can be of one component.
    fn overlaps(self, other: Self) -> bool {
        self == other
            || (self.is_expert() && other.is_expert() && (self == Self::Experts || other == Self::Experts))
    }

    /// Returns true if this is the name of `component`.
    fn is_name_of(self, component: &Component) -> bool {
        match component {
            Component::TextEncoder => self == Self::TextEncoder,
            Component::ImageEncoder => self == Self::ImageEncoder,
            Component::Decoder => self == Self::Decoder,
            Component::Preview => self == Self::Preview,
            Component::Expert(name) => self == Self::Experts || (self.is_expert() && self.name() == name.0),
        }
    }
}

/// The name of a component in placements.
pub fn name_of(component: &Component) -> &str {
    match component {
        Component::TextEncoder => Placeable::TextEncoder.name(),
        Component::ImageEncoder => Placeable::ImageEncoder.name(),
        Component::Expert(name) => &name.0,
        Component::Decoder => Placeable::Decoder.name(),
        Component::Preview => Placeable::Preview.name(),
    }
}

/// The devices that components are asked to be on. It is not known yet whether a bundle has these components.
///
/// ```
/// use engines::PlacementRequest;
///
/// let request: PlacementRequest = "high=cuda,low=cuda:1,text_encoder=cpu".parse()?;
/// assert_eq!(request.to_string(), "text_encoder=cpu,high_noise=cuda:0,low_noise=cuda:1");
/// assert!("high=cuda:0,high_noise=cuda:1".parse::<PlacementRequest>().is_err());
///
/// let pair: PlacementRequest = "high=cuda+cuda:1".parse()?;
/// assert_eq!(pair.to_string(), "high_noise=cuda:0+cuda:1");
/// assert!("decoder=cuda:0+cuda:1".parse::<PlacementRequest>().is_err());
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PlacementRequest(BTreeMap<Placeable, Place>);

impl PlacementRequest {
    /// Adds a component.
    ///
    /// # Errors
    /// It is placed elsewhere already, or it is no expert and the place is a pair.
    pub fn place(&mut self, component: Placeable, place: Place) -> Result<(), bundle::Error> {
        let refused = |rule: String, fix: &str| {
            Err(bundle::Error::value(Field::Place, format!("`{component}={place}`"), rule, fix))
        };
        if place.second().is_some() && !component.is_expert() {
            let rule = "only an expert has two guidance passes, which can run on two devices";
            return refused(rule.into(), "place it on one device, or an expert on both");
        }
        let before = self.0.iter().find(|(placed, before)| placed.overlaps(component) && **before != place);
        if let Some((placed, before)) = before {
            return refused(format!("{placed} is placed on {before} already"), "place each component once");
        }
        self.0.insert(component, place);
        Ok(())
    }

    /// Places every expert on a pair.
    ///
    /// # Errors
    /// An expert is placed elsewhere already.
    pub fn place_guidance(&mut self, devices: GuidanceDevices) -> Result<(), bundle::Error> {
        self.place(Placeable::Experts, devices.place()).map_err(|error| match error {
            bundle::Error::Value { rule, .. } => bundle::Error::value(
                Field::GuidanceDevices,
                format!("`{devices}`"),
                format!("it places every expert, and {rule}"),
                "use `guidance_devices`, or `place` for each expert",
            ),
            other => other,
        })
    }

    /// Combines several requests.
    ///
    /// # Errors
    /// Two of them place a component on different devices.
    pub fn combined<'a>(requests: impl IntoIterator<Item = &'a Self>) -> Result<Self, bundle::Error> {
        let mut combined = Self::default();
        for (component, place) in requests.into_iter().flat_map(|request| &request.0) {
            combined.place(*component, *place)?;
        }
        Ok(combined)
    }

    /// All devices that a component is placed on.
    pub fn devices(&self) -> BTreeSet<Device> {
        self.0.values().flat_map(|place| place.devices()).collect()
    }

    /// Returns true if no component is placed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for PlacementRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_list(f, self.0.iter().map(|(component, place)| (component.name(), *place)))
    }
}

impl FromStr for PlacementRequest {
    type Err = bundle::Error;

    /// Parses `COMPONENT=DEVICE[+DEVICE][,COMPONENT=DEVICE[+DEVICE]…]`.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let refused = |rule: &str| {
            let fix = "write it like high_noise=cuda:0,decoder=cpu, without spaces";
            bundle::Error::value(Field::Place, format!("`{text}`"), rule, fix)
        };
        if text.contains(char::is_whitespace) {
            return Err(refused("it contains a space"));
        }
        let mut request = Self::default();
        for part in text.split(',') {
            let (component, place) = match part.split_once('=') {
                _ if part.is_empty() => return Err(refused("a part of the list is empty")),
                None => return Err(refused(&format!("`{part}` has no device"))),
                Some(("", _)) => return Err(refused(&format!("`{part}` has no component"))),
                Some((_, "")) => return Err(refused(&format!("`{part}` has no device"))),
                Some(pair) => pair,
            };
            request.place(component.parse()?, place_in(place, part)?)?;
        }
        Ok(request)
    }
}

/// The device of every component of a bundle, and the second device of experts on a pair.
///
/// ```no_run
/// use bundle::manifest::{Bundle, Component};
/// use engines::{Device, Placement};
///
/// let manifest = Bundle::read("wan.bundle".as_ref())?.manifest;
/// let placement = Placement::new(&manifest, "cuda".parse()?, &"text_encoder=cpu".parse()?)?;
/// assert_eq!(placement.device_of(&Component::TextEncoder), Device::CPU);
/// assert_eq!(placement.device_of(&Component::Decoder).to_string(), "cuda:0");
/// assert_eq!(placement.pair_of(&Component::Decoder), None);
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The device of components that are not listed.
    device: Device,
    /// Every component of the bundle; empty if all are on `device`.
    components: Vec<(Component, Place)>,
}

impl Placement {
    /// All components on one device.
    pub fn on(device: Device) -> Self {
        Self { device, components: Vec::new() }
    }

    /// The components of a bundle on the devices of a request, all others on `device`.
    ///
    /// # Errors
    /// The request has a component that the bundle lacks.
    pub fn new(
        manifest: &Manifest,
        device: Device,
        request: &PlacementRequest,
    ) -> Result<Self, bundle::Error> {
        let components: Vec<&Component> = manifest.components.iter().map(|entry| &entry.component).collect();
        let mut placed: Vec<(Component, Place)> =
            components.iter().map(|component| ((*component).clone(), Place::on(device))).collect();
        for (name, place) in &request.0 {
            let mut named = placed.iter_mut().filter(|(component, _)| name.is_name_of(component)).peekable();
            if named.peek().is_none() {
                let names: Vec<&str> = components.into_iter().map(name_of).collect();
                return Err(bundle::Error::value(
                    Field::Place,
                    format!("`{name}={place}`"),
                    format!("the bundle has no component {name}; it has {}", names.join(", ")),
                    "place components of the bundle",
                ));
            }
            named.for_each(|(_, of_component)| *of_component = *place);
        }
        Ok(Self { device, components: placed }.simplified())
    }

    /// The same placement without its list if all components are on one device.
    fn simplified(self) -> Self {
        let devices = self.devices();
        match devices.first() {
            Some(device) if devices.len() == 1 => Self::on(*device),
            _ => self,
        }
    }

    fn place_of(&self, component: &Component) -> Place {
        let mut placed = self.components.iter();
        placed
            .find(|(placed, _)| placed == component)
            .map_or_else(|| Place::on(self.device), |(_, place)| *place)
    }

    /// The device of a component, or the first of its pair.
    pub fn device_of(&self, component: &Component) -> Device {
        self.place_of(component).first()
    }

    /// The second device of an expert on a pair, on which the unconditional pass runs.
    pub fn pair_of(&self, component: &Component) -> Option<Device> {
        self.place_of(component).second()
    }

    /// The device of a component, and the second one of its pair.
    pub fn devices_of(&self, component: &Component) -> impl Iterator<Item = Device> + use<> {
        self.place_of(component).devices()
    }

    /// Returns true if an expert is on a pair.
    pub fn has_pairs(&self) -> bool {
        self.components.iter().any(|(_, place)| place.second().is_some())
    }

    /// Moves a component to one device. Returns the placement and the request for it, or `None` if all components are on
    /// one device, or requests have no name for the component.
    pub fn with(&self, component: &Component, device: Device) -> Option<(Self, PlacementRequest)> {
        let mut names = Placeable::ALL.into_iter().filter(|name| *name != Placeable::Experts);
        let name = names.find(|name| name.is_name_of(component))?;
        let mut moved = self.clone();
        let place = Place::on(device);
        moved.components.iter_mut().find(|(placed, _)| placed == component)?.1 = place;
        Some((moved.simplified(), PlacementRequest(BTreeMap::from([(name, place)]))))
    }

    /// All devices that have a component.
    pub fn devices(&self) -> BTreeSet<Device> {
        if self.components.is_empty() {
            return BTreeSet::from([self.device]);
        }
        self.components.iter().flat_map(|(_, place)| place.devices()).collect()
    }

    /// The same placement of the components that decide the bits of a clip, which are all but the tiny decoder.
    #[must_use]
    pub fn without_previews(&self) -> Self {
        let decides = |(component, _): &&(Component, Place)| *component != Component::Preview;
        let components = self.components.iter().filter(decides).cloned().collect();
        Self { device: self.device, components }.simplified()
    }
}

impl fmt::Display for Placement {
    /// The device, or the list of all components if they are on several devices.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.components.is_empty() {
            return self.device.fmt(f);
        }
        write_list(f, self.components.iter().map(|(component, place)| (name_of(component), *place)))
    }
}

fn write_list<'a>(f: &mut fmt::Formatter<'_>, parts: impl Iterator<Item = (&'a str, Place)>) -> fmt::Result {
    for (index, (component, place)) in parts.enumerate() {
        let comma = if index == 0 { "" } else { "," };
        write!(f, "{comma}{component}={place}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Provider;
    use crate::device::tests::any_device;
    use bundle::routing::ExpertName;
    use proptest::prelude::*;

    fn refused(text: &str) -> String {
        text.parse::<PlacementRequest>().unwrap_err().to_string()
    }

    #[test]
    fn a_wrong_request_is_refused_by_name() {
        insta::assert_snapshot!(refused("hihg=cuda:0"), @"place cannot be `hihg`: unknown component; expected one of text_encoder, image_encoder, high_noise, high, low_noise, low, only, decoder, preview, experts (use one of these)");
        insta::assert_snapshot!(refused("high=gpu"), @"place cannot be `high=gpu`: unknown execution provider; expected one of cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu (use one of these)");
        insta::assert_snapshot!(refused("high=cuda:x"), @"place cannot be `high=cuda:x`: the index of a device is a number from 0 (write it like cuda:1)");
        insta::assert_snapshot!(refused("decoder=cpu:1"), @"place cannot be `decoder=cpu:1`: the CPU is one device (use cpu, and set its cores with `threads`)");
        insta::assert_snapshot!(refused("high=cuda:0,high_noise=cuda:1"), @"place cannot be `high_noise=cuda:1`: high_noise is placed on cuda:0 already (place each component once)");
        insta::assert_snapshot!(refused("high=cuda:0, low=cpu"), @"place cannot be `high=cuda:0, low=cpu`: it contains a space (write it like high_noise=cuda:0,decoder=cpu, without spaces)");
        insta::assert_snapshot!(refused("high=cuda:0,"), @"place cannot be `high=cuda:0,`: a part of the list is empty (write it like high_noise=cuda:0,decoder=cpu, without spaces)");
        for (text, rule) in [
            ("", "a part of the list is empty"),
            (",decoder=cpu", "a part of the list is empty"),
            ("decoder", "`decoder` has no device"),
            ("decoder=", "`decoder=` has no device"),
            ("=cpu", "`=cpu` has no component"),
            ("decoder=cpu=cpu", "unknown execution provider"),
        ] {
            assert!(refused(text).contains(rule), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn the_same_device_twice_is_accepted() {
        let request: PlacementRequest = "high=cuda,high_noise=cuda:0".parse().unwrap();
        assert_eq!(request.to_string(), "high_noise=cuda:0");
        let [one, other]: [PlacementRequest; 2] =
            ["high=cuda", "low=cuda:1,high=cuda:0"].map(|text| text.parse().unwrap());
        let combined = PlacementRequest::combined([&one, &other]).unwrap();
        assert_eq!(combined.to_string(), "high_noise=cuda:0,low_noise=cuda:1");
        assert!(PlacementRequest::combined([&one, &"high=cpu".parse().unwrap()]).is_err());
        assert!(PlacementRequest::combined([]).unwrap().is_empty());
    }

    #[test]
    fn all_components_on_one_device_are_one_placement() {
        let cuda = Device::try_new(Provider::Cuda, 0).unwrap();
        let list = |devices: [Device; 3]| {
            let components =
                [Component::TextEncoder, Component::Expert(ExpertName("only".into())), Component::Preview];
            let components = components.into_iter().zip(devices.map(Place::on)).collect();
            Placement { device: Device::CPU, components }.simplified()
        };
        assert_eq!(list([cuda; 3]), Placement::on(cuda));
        let mixed = list([Device::CPU, cuda, Device::CPU]);
        assert_eq!(mixed.to_string(), "text_encoder=cpu,only=cuda:0,preview=cpu");
        assert_eq!(mixed.devices(), BTreeSet::from([Device::CPU, cuda]));
        assert_eq!(mixed.device_of(&Component::Expert(ExpertName("only".into()))), cuda);
        assert_eq!(list([cuda, cuda, Device::CPU]).without_previews(), Placement::on(cuda));
        assert_eq!(Placement::on(cuda).without_previews(), Placement::on(cuda));
    }

    #[test]
    fn an_expert_can_be_on_two_devices() {
        let request: PlacementRequest = "high=cuda+tensorrt,low=cuda:1+cpu".parse().unwrap();
        assert_eq!(request.to_string(), "high_noise=cuda:0+tensorrt:0,low_noise=cuda:1+cpu");
        let [same, other, alone]: [PlacementRequest; 3] =
            ["high=cuda:0+tensorrt:0", "high=tensorrt:0+cuda:0", "high=cuda:0"]
                .map(|text| text.parse().unwrap());
        assert_eq!(PlacementRequest::combined([&request, &same]).unwrap(), request);
        // The order decides which pass runs where.
        assert!(PlacementRequest::combined([&same, &other]).is_err());
        assert!(PlacementRequest::combined([&same, &alone]).is_err());

        let [first, second]: [Device; 2] = ["cuda:0", "cuda:1"].map(|text| text.parse().unwrap());
        let expert = Component::Expert(ExpertName("only".into()));
        let pair = Place::pair(first, second).unwrap();
        let components = vec![
            (Component::TextEncoder, Place::on(first)),
            (expert.clone(), pair),
            (Component::Preview, Place::on(Device::CPU)),
        ];
        let placement = Placement { device: first, components };
        assert_eq!((placement.device_of(&expert), placement.pair_of(&expert)), (first, Some(second)));
        assert_eq!(placement.devices_of(&expert).collect::<Vec<_>>(), [first, second]);
        assert_eq!(placement.pair_of(&Component::TextEncoder), None);
        assert_eq!(placement.devices(), BTreeSet::from([Device::CPU, first, second]));
        assert_eq!(placement.to_string(), "text_encoder=cuda:0,only=cuda:0+cuda:1,preview=cpu");
        let deciding = placement.without_previews();
        assert!(deciding.has_pairs());
        assert_eq!(deciding.devices(), BTreeSet::from([first, second]));
        let (moved, request) = deciding.with(&expert, first).unwrap();
        assert_eq!((moved, request.to_string()), (Placement::on(first), "only=cuda:0".into()));
        assert!(!Placement::on(first).has_pairs());
    }

    #[test]
    fn a_wrong_pair_is_refused_by_name() {
        insta::assert_snapshot!(refused("decoder=cuda:0+cuda:1"), @"place cannot be `decoder=cuda:0+cuda:1`: only an expert has two guidance passes, which can run on two devices (place it on one device, or an expert on both)");
        insta::assert_snapshot!(refused("high=cuda+cuda:0"), @"place cannot be `high=cuda+cuda:0`: both devices of the pair are cuda:0 (name two different devices, or one)");
        insta::assert_snapshot!(refused("high=cuda:0+"), @"place cannot be `high=cuda:0+`: a device of the pair is missing (write a pair like high_noise=cuda:0+cuda:1)");
        insta::assert_snapshot!(refused("low=cuda:0+cuda:1+cuda:2"), @"place cannot be `low=cuda:0+cuda:1+cuda:2`: a pair has two devices (write a pair like high_noise=cuda:0+cuda:1)");
        for (text, rule) in [
            ("only=+cuda:0", "a device of the pair is missing"),
            ("only=+", "a device of the pair is missing"),
            ("only=cuda:0+gpu", "unknown execution provider"),
            ("only=cuda:0+cpu:1", "the CPU is one device"),
            ("only=cuda:0+cuda:x", "the index of a device is a number from 0"),
            ("preview=cpu+cuda:0", "only an expert"),
            ("only=cpu+cuda:0,only=cuda:0+cpu", "only is placed on cpu+cuda:0 already"),
            ("only=cpu+cuda:0,only=cpu", "only is placed on cpu+cuda:0 already"),
            ("only=cpu,experts=cuda", "only is placed on cpu already"),
            ("experts=cpu+cuda:0,low=cpu", "experts is placed on cpu+cuda:0 already"),
        ] {
            assert!(refused(text).contains(rule), "{text}: {}", refused(text));
        }
    }

    #[test]
    fn guidance_devices_are_a_pair_for_every_expert() {
        let devices: GuidanceDevices = "cpu,openvino".parse().unwrap();
        let mut request: PlacementRequest = "decoder=cuda".parse().unwrap();
        request.place_guidance(devices).unwrap();
        assert_eq!(request.to_string(), "decoder=cuda:0,experts=cpu+openvino:0");
        let list = ["text_encoder=cpu", "low=cpu+openvino", "experts=cpu+openvino:0"];
        let requests = list.map(|text| text.parse::<PlacementRequest>().unwrap());
        assert!(PlacementRequest::combined(&requests).is_ok(), "the same pair again");
        let mut placed: PlacementRequest = "low=cuda:1".parse().unwrap();
        insta::assert_snapshot!(placed.place_guidance(devices).unwrap_err(), @"guidance_devices cannot be `cpu,openvino:0`: it places every expert, and low_noise is placed on cuda:1 already (use `guidance_devices`, or `place` for each expert)");
        let refused = |text: &str| text.parse::<GuidanceDevices>().unwrap_err().to_string();
        insta::assert_snapshot!(refused("cpu"), @"guidance_devices cannot be `cpu`: guidance has two passes, which take two devices (write it like cuda:0,cuda:1)");
        insta::assert_snapshot!(refused("cpu,cpu:0"), @"guidance_devices cannot be `cpu,cpu:0`: both devices of the pair are cpu (name two different devices, or one)");
        insta::assert_snapshot!(refused("cuda:0,gpu"), @"guidance_devices cannot be `cuda:0,gpu`: unknown execution provider; expected one of cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu (use one of these)");
        for text in ["", ",", "cpu,", ",cpu", "cpu,cuda:0,cuda:1", "cpu+cuda"] {
            assert!(refused(text).contains("guidance_devices cannot be"), "{text}");
        }
    }

    /// A device, or two different ones for an expert.
    fn any_place(component: Placeable) -> impl Strategy<Value = (Placeable, Place)> {
        (any_device(), prop::option::of(any_device())).prop_map(move |(first, second)| {
            let second = second.filter(|_| component.is_expert());
            let pair = second.and_then(|second| Place::pair(first, second).ok());
            (component, pair.unwrap_or(Place::on(first)))
        })
    }

    proptest! {
        #[test]
        fn requests_are_printed_as_they_are_parsed(
            places in prop::collection::vec(
                prop::sample::select(&Placeable::ALL[..]).prop_flat_map(any_place), 1..8,
            ),
        ) {
            let mut request = PlacementRequest::default();
            for (component, place) in places {
                // What overlaps is left out.
                let _ = request.place(component, place);
            }
            prop_assume!(!request.is_empty());
            prop_assert_eq!(request.to_string().parse::<PlacementRequest>().unwrap(), request);
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "[a-z_=,:+0-9 ]{0,40}|only=(cpu|cuda)[+](cpu|cuda:[01])") {
            if let Ok(request) = text.parse::<PlacementRequest>() {
                prop_assert_eq!(request.to_string().parse::<PlacementRequest>().unwrap(), request);
            }
        }
    }
}
