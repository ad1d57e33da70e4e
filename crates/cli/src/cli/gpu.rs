//! The argument that says which GPU a device is.

use crate::Error;
use engines::Device;
use runtime::estimate::{GPUS, Gpu, known_gpu};
use std::str::FromStr;

/// The GPU of a device, or of every device that has none of its own.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct GpuChoice {
    device: Option<Device>,
    gpu: Gpu,
}

impl FromStr for GpuChoice {
    type Err = Error;

    /// Parses `[DEVICE=]NAME`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let (device, name) = match text.split_once('=') {
            Some((device, name)) => (Some(device.parse()?), name),
            None => (None, text),
        };
        let gpu = known_gpu(name).ok_or_else(|| {
            let known: Vec<&str> = GPUS.iter().map(|gpu| gpu.name).collect();
            let why = format!("the speed of this GPU is not known; known are {}", known.join(", "));
            Error::argument("--gpu", format!("`{text}`"), why, "use the known one that is most like it")
        })?;
        Ok(Self { device, gpu })
    }
}

/// The GPU that was named for a device.
pub(super) fn chosen(choices: &[GpuChoice], device: Device) -> Option<Gpu> {
    let of = |wanted: Option<Device>| choices.iter().rev().find(move |choice| choice.device == wanted);
    of(Some(device)).or_else(|| of(None)).map(|choice| choice.gpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_of_one_device_or_of_all_others() {
        let choices = ["h200", "cuda:1=RTX_4090"].map(|text| text.parse::<GpuChoice>().unwrap());
        let name = |device: &str| chosen(&choices, device.parse().unwrap()).map(|gpu| gpu.name);
        assert_eq!(
            (name("cuda:0"), name("cuda:1"), name("tensorrt")),
            (Some("h200"), Some("rtx 4090"), Some("h200"))
        );
        assert_eq!(chosen(&[], Device::CPU), None);
        let error = "voodoo".parse::<GpuChoice>().unwrap_err().to_string();
        assert!(error.contains("--gpu") && error.contains("h200"), "{error}");
        assert!("cuda:x=h200".parse::<GpuChoice>().is_err());
    }
}
