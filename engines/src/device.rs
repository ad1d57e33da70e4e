//! Devices: an execution provider and the index of one of its devices.

use bundle::Field;
use bundle::variant::Target;
use std::fmt;
use std::str::FromStr;

/// An execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// CPU.
    Cpu,
    /// NVIDIA GPUs with CUDA.
    Cuda,
    /// NVIDIA GPUs with TensorRT.
    TensorRt,
    /// NVIDIA GPUs for desktops with TensorRT for RTX.
    TensorRtRtx,
    /// Intel processors with OpenVINO.
    OpenVino,
    /// GPUs with WebGPU.
    WebGpu,
}

bundle::named!(
    Provider, Field::Provider, "execution provider", "cpu" => Cpu, "cuda" => Cuda, "tensorrt" => TensorRt,
    "tensorrt-rtx" => TensorRtRtx, "openvino" => OpenVino, "webgpu" => WebGpu,
);

impl Provider {
    /// The target whose graphs are written for this provider.
    pub fn target(self) -> Target {
        match self {
            Self::Cpu => Target::Cpu,
            Self::Cuda => Target::Cuda,
            Self::TensorRt | Self::TensorRtRtx | Self::OpenVino | Self::WebGpu => Target::Plain,
        }
    }

    /// ONNX Runtime's name of the provider.
    pub const fn onnx_name(self) -> &'static str {
        match self {
            Self::Cpu => "CPUExecutionProvider",
            Self::Cuda => "CUDAExecutionProvider",
            Self::TensorRt => "TensorrtExecutionProvider",
            Self::TensorRtRtx => "NvTensorRTRTXExecutionProvider",
            Self::OpenVino => "OpenVINOExecutionProvider",
            Self::WebGpu => "WebGpuExecutionProvider",
        }
    }

    /// Returns true if its devices have memory that the processor cannot read.
    pub fn has_own_memory(self) -> bool {
        match self {
            Self::Cpu | Self::OpenVino => false,
            Self::Cuda | Self::TensorRt | Self::TensorRtRtx | Self::WebGpu => true,
        }
    }

    /// Returns true if it is part of the build of ONNX Runtime for GPUs.
    pub fn is_built_in(self) -> bool {
        matches!(self, Self::Cuda | Self::TensorRt)
    }

    /// Returns true if its devices are those of the NVIDIA driver.
    pub fn is_of_nvidia(self) -> bool {
        match self {
            Self::Cpu | Self::OpenVino | Self::WebGpu => false,
            Self::Cuda | Self::TensorRt | Self::TensorRtRtx => true,
        }
    }

    /// How a graph becomes a session.
    pub fn compilation(self) -> Compilation {
        match self {
            Self::Cpu | Self::Cuda | Self::WebGpu => Compilation::None,
            Self::OpenVino => Compilation::AnyShape,
            Self::TensorRt | Self::TensorRtRtx => Compilation::FixedShape,
        }
    }
}

/// How a provider turns a graph into a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compilation {
    /// It has a kernel for each operator and opens graphs as they are.
    None,
    /// It compiles a graph to an engine that runs inputs of every shape.
    AnyShape,
    /// It compiles a graph to an engine for inputs of one shape. That can take minutes.
    FixedShape,
}

/// A device of an execution provider. The CPU is one device.
///
/// ```
/// use engines::{Device, Provider};
///
/// let device: Device = "cuda:1".parse()?;
/// assert_eq!((device.provider(), device.index()), (Provider::Cuda, 1));
/// assert_eq!("cuda".parse::<Device>()?.to_string(), "cuda:0");
/// assert_eq!("cpu".parse::<Device>()?, Device::CPU);
/// # Ok::<(), bundle::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Device {
    provider: Provider,
    index: u32,
}

impl Device {
    /// The CPU.
    pub const CPU: Self = Self { provider: Provider::Cpu, index: 0 };

    /// Device `index` of a provider, from 0.
    ///
    /// # Errors
    /// The provider is the CPU, which is one device, and the index is not 0.
    pub fn try_new(provider: Provider, index: u32) -> Result<Self, bundle::Error> {
        if provider == Provider::Cpu && index != 0 {
            return Err(bundle::Error::value(
                Field::Provider,
                format!("`cpu:{index}`"),
                "the CPU is one device",
                "use cpu, and set its cores with `threads`",
            ));
        }
        Ok(Self { provider, index })
    }

    /// The execution provider.
    pub fn provider(self) -> Provider {
        self.provider
    }

    /// The index among the devices of its provider.
    pub fn index(self) -> u32 {
        self.index
    }

    /// Returns the target whose graphs this device runs.
    pub fn target(self) -> Target {
        self.provider.target()
    }

    /// The device whose memory this one uses: the CPU, unless its provider has memory of its own. Devices with the same
    /// memory share one budget.
    #[must_use]
    pub fn memory(self) -> Self {
        if self.provider.has_own_memory() { self } else { Self::CPU }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.provider {
            Provider::Cpu => f.write_str("cpu"),
            provider => write!(f, "{provider}:{}", self.index),
        }
    }
}

impl FromStr for Device {
    type Err = bundle::Error;

    /// Parses `PROVIDER` or `PROVIDER:INDEX`.
    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        let (provider, index) = text.split_once(':').unwrap_or((text, "0"));
        let is_number = index.bytes().all(|byte| byte.is_ascii_digit());
        let Some(index) = index.parse().ok().filter(|_| is_number) else {
            return Err(bundle::Error::value(
                Field::Provider,
                format!("`{text}`"),
                "the index of a device is a number from 0",
                "write it like cuda:1",
            ));
        };
        Self::try_new(provider.parse()?, index)
    }
}

/// Parses a device that is part of another setting. Errors name that setting, and what was `given` for it.
pub(crate) fn device_in(text: &str, field: Field, given: &str) -> Result<Device, bundle::Error> {
    text.parse().map_err(|error| match error {
        bundle::Error::Value { rule, fix, .. } => {
            bundle::Error::value(field, format!("`{given}`"), rule, fix)
        }
        other => other,
    })
}

/// A device, or the choice of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The best device that the machine and the bundle have, see [`Backend::best_device`](crate::Backend::best_device).
    #[default]
    Auto,
    /// This device.
    On(Device),
}

impl DeviceChoice {
    /// The device that was chosen; `None` for the best one.
    pub fn device(self) -> Option<Device> {
        match self {
            Self::Auto => None,
            Self::On(device) => Some(device),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::On(device) => device.fmt(f),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = bundle::Error;

    fn from_str(text: &str) -> Result<Self, bundle::Error> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::On) }
    }
}

/// A device that was chosen, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BestDevice {
    /// The device.
    pub device: Device,
    /// Why the better ones were not chosen; empty for the best.
    pub why: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_device() -> impl Strategy<Value = Device> {
        let index = prop_oneof![0..9_u32, any::<u32>()];
        (prop::sample::select(&Provider::ALL[..]), index).prop_map(|(provider, index)| {
            let index = if provider == Provider::Cpu { 0 } else { index };
            Device::try_new(provider, index).unwrap()
        })
    }

    proptest! {
        #[test]
        fn every_device_is_printed_as_it_is_parsed(device in any_device()) {
            prop_assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
            prop_assert_eq!(DeviceChoice::On(device).to_string().parse::<DeviceChoice>().unwrap(), DeviceChoice::On(device));
        }
    }

    #[test]
    fn devices_are_parsed_and_printed_alike() {
        for text in ["cpu", "cuda:0", "cuda:7", "tensorrt:1", "tensorrt-rtx:0", "openvino:0", "webgpu:1"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("auto".parse::<DeviceChoice>().unwrap().device(), None);
        assert_eq!("cpu:0".parse::<Device>().unwrap(), Device::CPU);
        insta::assert_snapshot!("gpu".parse::<Device>().unwrap_err(), @"provider cannot be `gpu`: unknown execution provider; expected one of cpu, cuda, tensorrt, tensorrt-rtx, openvino, webgpu (use one of these)");
        insta::assert_snapshot!("cpu:1".parse::<Device>().unwrap_err(), @"provider cannot be `cpu:1`: the CPU is one device (use cpu, and set its cores with `threads`)");
        for text in ["cuda:", "cuda:-1", "cuda:+1", "cuda: 1", "cuda:one", "cuda:4294967296", "cuda:1:2"] {
            assert!(text.parse::<Device>().unwrap_err().to_string().contains("number from 0"), "{text}");
        }
    }
}
