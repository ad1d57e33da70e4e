//! The form of the embedded model that the devices of a command need.

use super::devices::DeviceArgs;
use super::global::GlobalArgs;
use crate::Error;
use crate::mini::MiniForm;
use bundle::Field;
use bundle::variant::Precision;
use engines::providers::{best_device, check};
use engines::{Device, Provider};
use std::collections::BTreeSet;

/// The form with graphs for every device, in the precision that was asked for, or else in the best one that all of them
/// compute in.
///
/// # Errors
/// Returns an error if a component is placed twice, if this machine cannot use a device, or if the model is not
/// exported in this precision.
pub(super) fn mini_form(
    devices: &DeviceArgs,
    global: &GlobalArgs,
    precision: Option<Precision>,
) -> Result<MiniForm, Error> {
    let machine = global.machine();
    let asked = devices.request()?.devices().into_iter().chain(devices.ep.device());
    // Nothing is exported for a device that cannot be used.
    asked.into_iter().try_for_each(|device| check(device, &machine))?;
    planned_mini_form(devices, global, precision)
}

/// As [`mini_form`], for devices that this machine need not have.
///
/// # Errors
/// Returns an error if a component is placed twice, or if the model is not exported in this precision.
pub(super) fn planned_mini_form(
    devices: &DeviceArgs,
    global: &GlobalArgs,
    precision: Option<Precision>,
) -> Result<MiniForm, Error> {
    let mut used: BTreeSet<Device> = devices.request()?.devices();
    used.extend(devices.ep.device());
    if devices.ep.device().is_none() {
        // The embedded model has graphs for every target.
        used.insert(best_device(&global.machine(), |_target| true).device);
    }
    Ok(form_of(&used.into_iter().map(Device::provider).collect(), precision)?)
}

fn form_of(providers: &BTreeSet<Provider>, precision: Option<Precision>) -> Result<MiniForm, bundle::Error> {
    let has_webgpu = providers.contains(&Provider::WebGpu);
    if has_webgpu && precision == Some(Precision::Bf16) {
        return Err(bundle::Error::value(
            Field::Precision,
            "`bf16`",
            "WebGPU has no operators in bf16",
            "use f32, or another execution provider",
        ));
    }
    let computes_best_in_bf16 =
        |provider: &Provider| matches!(provider, Provider::Cuda | Provider::TensorRt | Provider::TensorRtRtx);
    let best = if providers.iter().any(computes_best_in_bf16) && !has_webgpu {
        Precision::Bf16
    } else {
        Precision::F32
    };
    MiniForm::new(providers.iter().map(|provider| provider.target()), precision.unwrap_or(best))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Provider::{Cpu, Cuda, OpenVino, TensorRt, TensorRtRtx, WebGpu};
    use bundle::variant::Target;

    fn form(providers: &[Provider], precision: Option<Precision>) -> MiniForm {
        form_of(&providers.iter().copied().collect(), precision).unwrap()
    }

    #[test]
    fn the_form_follows_the_devices_and_the_precision() {
        let plain = |precision| MiniForm::new([Target::Plain], precision).unwrap();
        assert_eq!(form(&[Cpu], None), MiniForm::cpu());
        assert_eq!(form(&[Cpu], Some(Precision::Int8)), MiniForm::cpu());
        for provider in [OpenVino, WebGpu] {
            assert_eq!(form(&[Cpu, provider], None), plain(Precision::F32), "{provider}");
        }
        for provider in [TensorRt, TensorRtRtx] {
            assert_eq!(form(&[provider], None), plain(Precision::Bf16), "{provider}");
            assert_eq!(form(&[provider], Some(Precision::F32)), plain(Precision::F32), "{provider}");
        }
        assert_eq!(form(&[OpenVino], Some(Precision::Bf16)), plain(Precision::Bf16));
        let cuda = MiniForm::new([Target::Cuda], Precision::Bf16).unwrap();
        assert_eq!(form(&[Cuda, Cpu], None), cuda);
        let both = |precision| MiniForm::new([Target::Cuda, Target::Plain], precision).unwrap();
        assert_eq!(form(&[Cuda, OpenVino], None), both(Precision::Bf16));
        assert_eq!(form(&[Cuda, WebGpu], None), both(Precision::F32));
    }

    #[test]
    fn precisions_without_graphs_are_refused_by_name() {
        let refused = |providers: &[Provider], precision| {
            form_of(&providers.iter().copied().collect(), Some(precision)).unwrap_err().to_string()
        };
        insta::assert_snapshot!(refused(&[WebGpu], Precision::Bf16), @"precision cannot be `bf16`: WebGPU has no operators in bf16 (use f32, or another execution provider)");
        insta::assert_snapshot!(refused(&[OpenVino], Precision::Int8), @"precision cannot be `int8`: the embedded model has graphs for accelerators in f32 and bf16 only (use f32 or bf16, or export models/mini/checkpoint of the repository and give it as `bundle`)");
    }
}
