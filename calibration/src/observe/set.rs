//! A calibration set on disk: clips recorded from the pipeline.
//!
//! ```text
//! BUNDLE/calibration/set.json                 settings, prompts, seeds and weights of the recording
//!                    sample-000.safetensors   one clip, written atomically
//! ```

use crate::Error;
use bundle::digest::Digest;
use bundle::manifest::{Component, Manifest};
use ndarray::{Array1, Array2, Array4, Array5, ArrayD, Dimension, Ix1, Ix2, Ix4, Ix5};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Folder of the set within the bundle.
pub const FOLDER: &str = "calibration";
const SET: &str = "set.json";

/// The settings of a recording.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetInfo {
    /// Version of the program.
    pub rushes: String,
    /// Name of the model.
    pub model: String,
    /// Digest of the weights of each component.
    pub weights: Vec<(Component, Digest)>,
    /// Settings of the clips, as printed by the program.
    pub settings: Vec<(String, String)>,
    /// Prompt and seed of each sample.
    pub samples: Vec<(String, u64)>,
}

/// Returns the digests of a bundle's weights.
pub fn weight_digests(manifest: &Manifest) -> Vec<(Component, Digest)> {
    manifest.components.iter().map(|entry| (entry.component.clone(), entry.digest.clone())).collect()
}

/// Checks that a calibration was made for the weights of the bundle.
///
/// # Errors
/// The weights of a component differ. The error has both digests.
pub fn check_weights(what: &Path, found: &[(Component, Digest)], manifest: &Manifest) -> Result<(), Error> {
    for (component, digest) in weight_digests(manifest) {
        let other = found.iter().find(|(known, _)| *known == component).map(|(_, digest)| digest);
        if other != Some(&digest) {
            return Err(Error::OtherWeights {
                path: what.to_owned(),
                component: component.to_string(),
                expected: digest.short().to_owned(),
                found: other.map_or_else(|| "nothing".into(), |digest| digest.short().to_owned()),
            });
        }
    }
    Ok(())
}

/// One recorded clip.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// Token ids of the prompt and, where guidance needs it, of the negative prompt.
    pub ids: Vec<Array1<i64>>,
    /// Their text states, `[512,D]` each.
    pub text: Vec<Array2<f32>>,
    /// The latent before every step, `[S,C,T,h,w]`.
    pub latents: Array5<f32>,
    /// The timestep of every step, `[S]`.
    pub timesteps: Array1<f32>,
    /// The clean latent, `[C,T,h,w]`.
    pub latent: Array4<f32>,
    /// Cosines of the rotary embedding, `[L,head/2]`.
    pub cos: Array2<f32>,
    /// Sines of the rotary embedding, `[L,head/2]`.
    pub sin: Array2<f32>,
}

/// A calibration set.
///
/// # Examples
/// ```
/// use bundle::digest::Digest;
/// use bundle::manifest::Component;
/// use calibration::observe::set::{CalibrationSet, Sample, SetInfo};
/// use ndarray::{Array1, Array2, Array4, Array5};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let bundle = tempfile::tempdir()?;
/// let info = SetInfo {
///     rushes: "0.1.0".into(),
///     model: "mini".into(),
///     weights: vec![(Component::Decoder, Digest::of_parts([]))],
///     settings: vec![("steps".into(), "2".into())],
///     samples: vec![("a boat on the sea".into(), 7)],
/// };
/// let set = CalibrationSet::begin(bundle.path(), info.clone())?;
/// assert!(!set.has(0));
///
/// let sample = Sample {
///     ids: vec![Array1::from(vec![3, 1])],
///     text: vec![Array2::zeros((512, 64))],
///     latents: Array5::zeros((2, 16, 1, 4, 4)),
///     timesteps: Array1::from(vec![999.0, 500.0]),
///     latent: Array4::zeros((16, 1, 4, 4)),
///     cos: Array2::ones((4, 6)),
///     sin: Array2::zeros((4, 6)),
/// };
/// set.write(0, &sample)?;
/// assert_eq!(set.read(0)?, sample);
///
/// // The same settings continue the set.
/// assert!(CalibrationSet::begin(bundle.path(), info)?.has(0));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct CalibrationSet {
    folder: PathBuf,
    /// The settings of the recording.
    pub info: SetInfo,
}

impl CalibrationSet {
    /// Creates a set in the folder of a bundle, or continues the existing one if it has the same settings. An existing
    /// set with other settings is removed.
    ///
    /// # Errors
    /// I/O errors.
    pub fn begin(bundle: &Path, info: SetInfo) -> Result<Self, Error> {
        let folder = bundle.join(FOLDER);
        let path = folder.join(SET);
        let text = serde_json::to_vec_pretty(&info).map_err(|error| Error::file_content(&path, &error))?;
        if std::fs::read(&path).ok().as_deref() != Some(text.as_slice()) {
            if folder.exists() {
                std::fs::remove_dir_all(&folder).map_err(bundle::Error::file("remove", &folder))?;
            }
            std::fs::create_dir_all(&folder).map_err(bundle::Error::file("create", &folder))?;
            bundle::atomic::write_atomic(&path, &text)?;
        }
        Ok(Self { folder, info })
    }

    /// The folder of the set.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn sample_path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("sample-{index:03}.safetensors"))
    }

    /// Returns true if the sample is recorded.
    pub fn has(&self, index: usize) -> bool {
        self.sample_path(index).is_file()
    }

    /// Writes a sample atomically.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, index: usize, sample: &Sample) -> Result<(), Error> {
        let path = self.sample_path(index);
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
        for (number, ids) in sample.ids.iter().enumerate() {
            let bytes = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            tensors.push((format!("ids.{number}"), Dtype::I64, vec![ids.len()], bytes));
        }
        let mut push = |name: String, array: ndarray::ArrayViewD<'_, f32>| {
            let bytes = array.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.push((name, Dtype::F32, array.shape().to_vec(), bytes));
        };
        for (number, text) in sample.text.iter().enumerate() {
            push(format!("text.{number}"), text.view().into_dyn());
        }
        push("latents".into(), sample.latents.view().into_dyn());
        push("timesteps".into(), sample.timesteps.view().into_dyn());
        push("latent".into(), sample.latent.view().into_dyn());
        push("cos".into(), sample.cos.view().into_dyn());
        push("sin".into(), sample.sin.view().into_dyn());
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| Error::file_content(&path, &error))?;
        let file = safetensors::serialize(views, None).map_err(|error| Error::file_content(&path, &error))?;
        Ok(bundle::atomic::write_atomic(&path, &file)?)
    }

    /// Reads a sample.
    ///
    /// # Errors
    /// The file is missing or damaged.
    pub fn read(&self, index: usize) -> Result<Sample, Error> {
        let path = self.sample_path(index);
        let bytes = std::fs::read(&path).map_err(bundle::Error::file("read", &path))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|error| Error::file_content(&path, &error))?;
        let reader = Reader { path: &path, file: &file };
        let count = |prefix: &str| file.names().iter().filter(|name| name.starts_with(prefix)).count();
        Ok(Sample {
            ids: (0..count("ids."))
                .map(|number| reader.ids(&format!("ids.{number}")))
                .collect::<Result<_, _>>()?,
            text: (0..count("text."))
                .map(|number| reader.floats::<Ix2>(&format!("text.{number}")))
                .collect::<Result<_, _>>()?,
            latents: reader.floats::<Ix5>("latents")?,
            timesteps: reader.floats::<Ix1>("timesteps")?,
            latent: reader.floats::<Ix4>("latent")?,
            cos: reader.floats::<Ix2>("cos")?,
            sin: reader.floats::<Ix2>("sin")?,
        })
    }
}

/// Reads tensors from a safetensors file.
struct Reader<'a> {
    path: &'a Path,
    file: &'a SafeTensors<'a>,
}

impl Reader<'_> {
    fn ids(&self, name: &str) -> Result<Array1<i64>, Error> {
        let tensor = self.file.tensor(name).map_err(|error| Error::file_content(self.path, &error))?;
        let (groups, _) = tensor.data().as_chunks::<8>();
        Ok(groups.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect())
    }

    fn floats<D: Dimension>(&self, name: &str) -> Result<ndarray::Array<f32, D>, Error> {
        let tensor = self.file.tensor(name).map_err(|error| Error::file_content(self.path, &error))?;
        let (groups, _) = tensor.data().as_chunks::<4>();
        let values = groups.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        ArrayD::from_shape_vec(tensor.shape(), values)
            .and_then(ArrayD::into_dimensionality)
            .map_err(|error| Error::file_content(self.path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(seed: u64) -> SetInfo {
        SetInfo {
            rushes: "1".into(),
            model: "m".into(),
            weights: vec![(Component::Decoder, Digest::of_parts([]))],
            settings: vec![("steps".into(), "2".into())],
            samples: vec![("a boat".into(), seed)],
        }
    }

    #[test]
    fn samples_round_trip_and_other_settings_start_a_new_set() {
        let folder = tempfile::tempdir().unwrap();
        let set = CalibrationSet::begin(folder.path(), info(1)).unwrap();
        assert!(!set.has(0));
        let sample = Sample {
            ids: vec![Array1::from(vec![3, 1]), Array1::from(vec![1])],
            text: vec![Array2::ones((2, 3)), Array2::zeros((2, 3))],
            latents: Array5::from_elem((2, 1, 1, 2, 2), 0.5),
            timesteps: Array1::from(vec![999.0, 500.0]),
            latent: Array4::zeros((1, 1, 2, 2)),
            cos: Array2::ones((1, 2)),
            sin: Array2::zeros((1, 2)),
        };
        set.write(0, &sample).unwrap();
        assert_eq!(set.read(0).unwrap(), sample);
        assert!(CalibrationSet::begin(folder.path(), info(1)).unwrap().has(0));
        assert!(!CalibrationSet::begin(folder.path(), info(2)).unwrap().has(0));
    }
}
