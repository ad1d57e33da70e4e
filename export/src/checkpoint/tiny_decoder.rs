//! The optional tiny decoder of a checkpoint: a single file in the published `taew2_1` or `taew2_2` layout.
//!
//! It has no config. Its hyper-parameters follow from the shapes of its weights.

use super::Source;
use super::inventory::Required;
use super::names::Family;
use super::shards::Shards;
use crate::Error;
use bundle::manifest::Component;
use bundle::spec::{TinyDecoderSpec, VaeSpec};
use std::path::{Path, PathBuf};

/// Its paths in a checkpoint.
const PATHS: [&str; 2] = ["tiny_decoder/taew2_1.safetensors", "tiny_decoder/taew2_2.safetensors"];

/// The encoder, which is not used.
pub(crate) const UNUSED: [&str; 1] = ["encoder."];

/// Returns the path of the tiny decoder in a checkpoint, if it has one.
pub(crate) fn find(checkpoint: &Path) -> Option<PathBuf> {
    PATHS.iter().map(|path| checkpoint.join(path)).find(|path| path.is_file())
}

/// Opens a tiny decoder and checks that it decodes the latents of `vae`.
///
/// # Errors
/// Returns an error if the file is damaged, has another layout or is for other latents.
pub(super) fn open_for(path: &Path, vae: &VaeSpec) -> Result<(TinyDecoderSpec, Source), Error> {
    let (spec, source) = open(path)?;
    let (channels, stride) = (vae.latent_channels, vae.stride());
    if (spec.latent_channels, spec.stride()) != (channels, stride) {
        let found = spec.stride();
        return Err(Error::unsupported(
            path,
            format!(
                "{} latent channels, {} frames and {} pixels per latent position",
                spec.latent_channels, found.time, found.space
            ),
            format!("the latents of this model have {channels}, {} and {}", stride.time, stride.space),
        ));
    }
    Ok((spec, source))
}

/// Opens a tiny decoder.
///
/// # Errors
/// Returns an error if the file is damaged or has another layout.
pub fn open(path: &Path) -> Result<(TinyDecoderSpec, Source), Error> {
    let shards = Shards::open_file(path, Family::TinyDecoder)?;
    let spec = read_spec(&shards, path)?;
    let required = inventory(&spec);
    shards.check(&required, &UNUSED)?;
    Ok((spec, Source { component: Component::Preview, shards, required }))
}

/// Reads widths, patch and growth from the shapes.
fn read_spec(shards: &Shards, path: &Path) -> Result<TinyDecoderSpec, Error> {
    let shape = |name: String| shards.tensor(&name).map(|tensor| tensor.shape.to_vec());
    let extents = |layer: &str| {
        let found = shape(format!("decoder.{layer}.weight"))?;
        match found.as_slice() {
            [out, input, _, _] if *out > 0 && *input > 0 => Ok((*out, *input)),
            _ => Err(Error::header(path, format!("decoder.{layer}.weight is not a convolution: {found:?}"))),
        }
    };
    let (first, latent_channels) = extents("1")?;
    let (second, _) = extents("8")?;
    let (third, _) = extents("14")?;
    let (fourth, _) = extents("20")?;
    let patch = match extents("22")?.0 {
        3 => 1,
        12 => 2,
        other => {
            let why = format!("its last layer has {other} channels; expected 3 or 12");
            return Err(Error::header(path, why));
        }
    };
    let widths = [first, second, third, fourth];
    let mut stored_growth = [0; 3];
    for (growth, (layer, width)) in stored_growth.iter_mut().zip(["7", "13", "19"].into_iter().zip(widths)) {
        *growth = extents(&format!("{layer}.conv"))?.0 / width;
    }
    for (stored, needed) in stored_growth.iter().zip(TinyDecoderSpec::GROWTH) {
        if *stored < needed {
            return Err(Error::header(
                path,
                format!("a layer multiplies frames by {stored}, but at least {needed} is needed"),
            ));
        }
    }
    Ok(TinyDecoderSpec { latent_channels, widths, patch, stored_growth })
}

/// Returns the weights that the graphs read.
fn inventory(spec: &TinyDecoderSpec) -> Vec<Required> {
    let [a, b, c, d] = spec.widths;
    let mut all = Vec::new();
    let mut tensor = |name: String, shape: &[usize]| all.push(Required { name, shape: shape.to_vec() });
    let mut layer = |name: String, out: usize, input: usize, bias: bool| {
        tensor(format!("{name}.weight"), &[out, input, 3, 3]);
        if bias {
            tensor(format!("{name}.bias"), &[out]);
        }
    };
    layer("decoder.1".into(), a, spec.latent_channels, true);
    for (layers, width) in [(3..6, a), (9..12, b), (15..18, c)] {
        for index in layers {
            layer(format!("decoder.{index}.conv.0"), width, 2 * width, true);
            layer(format!("decoder.{index}.conv.2"), width, width, true);
            layer(format!("decoder.{index}.conv.4"), width, width, true);
        }
    }
    layer("decoder.8".into(), b, a, false);
    layer("decoder.14".into(), c, b, false);
    layer("decoder.20".into(), d, c, false);
    layer("decoder.22".into(), 3 * spec.patch * spec.patch, d, true);
    for ((index, width), growth) in [(7, a), (13, b), (19, c)].into_iter().zip(spec.stored_growth) {
        tensor(format!("decoder.{index}.conv.weight"), &[growth * width, width, 1, 1]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::catalog::wan21_vae;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;

    fn written(folder: &Path, spec: &TinyDecoderSpec) -> PathBuf {
        let path = folder.join("taew2_1.safetensors");
        let required = inventory(spec);
        let bytes: Vec<Vec<u8>> =
            required.iter().map(|tensor| vec![0; 2 * tensor.shape.iter().product::<usize>()]).collect();
        let views = required.iter().zip(&bytes).map(|(tensor, bytes)| {
            (tensor.name.as_str(), TensorView::new(Dtype::F16, tensor.shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &path).unwrap();
        path
    }

    fn published() -> TinyDecoderSpec {
        TinyDecoderSpec {
            latent_channels: 16,
            widths: [256, 128, 64, 64],
            patch: 1,
            stored_growth: [1, 2, 2],
        }
    }

    #[test]
    fn the_published_widths_have_the_same_number_of_parameters_as_in_pytorch() {
        let parameters: usize =
            inventory(&published()).iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
        assert_eq!(parameters, 9_844_611);
    }

    #[test]
    fn widths_patch_and_growth_are_read_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let spec = TinyDecoderSpec { widths: [6, 5, 4, 3], stored_growth: [2, 2, 2], ..published() };
        let (found, source) = open_for(&written(folder.path(), &spec), &wan21_vae()).unwrap();
        assert_eq!(found, spec);
        assert_eq!(source.component, Component::Preview);
    }

    #[test]
    fn a_decoder_for_other_latents_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let spec = TinyDecoderSpec { widths: [4, 4, 4, 4], ..published() };
        for wrong in [
            TinyDecoderSpec { latent_channels: 48, ..spec.clone() },
            TinyDecoderSpec { patch: 2, ..spec.clone() },
            TinyDecoderSpec { stored_growth: [1, 1, 2], ..spec },
        ] {
            let path = written(folder.path(), &wrong);
            assert!(open_for(&path, &wan21_vae()).is_err(), "{wrong:?}");
        }
    }
}
