//! The statistics of all components, and their files.
//!
//! `calibration.json` contains the prompts, seeds and weights of the calibration. The statistics are in
//! `calibration.safetensors`, with tensors named `COMPONENT|BIN|POINT|STATISTIC`.

use super::set::{SetInfo, check_weights};
use super::statistics::{Points, Statistics};
use crate::Error;
use bundle::digest::Digest;
use bundle::layout::component_folder;
use bundle::manifest::{Component, Manifest};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Version of the format.
const FORMAT: u32 = 1;
/// File name of the header.
pub const FILE: &str = "calibration.json";
/// File name of the statistics.
const NUMBERS: &str = "calibration.safetensors";

/// Number of bins that the noise levels of an expert are split into.
pub const NOISE_BINS: usize = 3;

/// Statistics of a component by noise bin. The decoder's bins are 0 for the first latent frame and 1 for later ones.
pub type Bins = BTreeMap<usize, Points>;

/// The statistics of all components.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Table {
    /// Statistics by folder of the component.
    pub components: BTreeMap<String, Bins>,
    /// The point at which the input of each layer is observed, by folder of the component.
    pub inputs: BTreeMap<String, BTreeMap<String, String>>,
}

/// `calibration.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    format: u32,
    /// The calibration set.
    pub set: SetInfo,
    /// Digest of the statistics file.
    pub numbers: Digest,
    /// The point at which the input of each layer is observed.
    inputs: BTreeMap<String, BTreeMap<String, String>>,
}

impl Table {
    /// The statistics of a component's bin, created if there are none.
    pub(super) fn bin(&mut self, component: &Component, bin: usize) -> &mut Points {
        self.components.entry(component_folder(component)).or_default().entry(bin).or_default()
    }

    /// Returns the statistics of a layer's input over all bins.
    pub fn input(&self, component: &Component, layer: &str) -> Option<Statistics> {
        self.over_bins(component, self.inputs.get(&component_folder(component))?.get(layer)?)
    }

    /// Returns true if the input of a layer was observed, in one bin or in any.
    pub fn has_input(&self, component: &Component, layer: &str, bin: Option<usize>) -> bool {
        let folder = component_folder(component);
        let point = self.inputs.get(&folder).and_then(|inputs| inputs.get(layer));
        let point = point.map_or(layer, String::as_str);
        let mut bins = self.components.get(&folder).into_iter().flatten();
        bins.any(|(found, points)| bin.is_none_or(|bin| bin == *found) && points.contains_key(point))
    }

    /// Returns the statistics of a point over all bins.
    pub fn over_bins(&self, component: &Component, point: &str) -> Option<Statistics> {
        let bins = self.components.get(&component_folder(component))?;
        let parts: Vec<_> = bins.values().filter_map(|bin| bin.get(point)).collect();
        (!parts.is_empty()).then(|| Statistics::merged(parts))
    }

    /// Returns the statistics of a point in one bin.
    pub fn point(&self, component: &Component, bin: usize, point: &str) -> Option<&Statistics> {
        self.components.get(&component_folder(component))?.get(&bin)?.get(point)
    }

    /// Serialises the statistics as a safetensors file; `mark` is stored in its header.
    pub(super) fn to_bytes(&self, mark: Option<&str>) -> Result<Vec<u8>, String> {
        let mut tensors: Vec<(String, Dtype, usize, Vec<u8>)> = Vec::new();
        for (component, bins) in &self.components {
            for (bin, points) in bins {
                for (point, statistics) in points {
                    let name = |statistic: &str| format!("{component}|{bin}|{point}|{statistic}");
                    for (statistic, values) in
                        [("min", &statistics.min), ("max", &statistics.max), ("samples", &statistics.samples)]
                    {
                        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                        tensors.push((name(statistic), Dtype::F32, values.len(), bytes));
                    }
                    let size = vec![statistics.size];
                    for (statistic, values) in
                        [("sum", &statistics.sum), ("square", &statistics.square), ("size", &size)]
                    {
                        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                        tensors.push((name(statistic), Dtype::F64, values.len(), bytes));
                    }
                }
            }
        }
        let views = tensors
            .iter()
            .map(|(name, dtype, length, bytes)| Ok((name, TensorView::new(*dtype, vec![*length], bytes)?)))
            .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
            .map_err(|error| error.to_string())?;
        let mark = mark.map(|mark| HashMap::from([("mark".to_owned(), mark.to_owned())]));
        safetensors::serialize(views, mark).map_err(|error| error.to_string())
    }

    /// Reads the output of [`Self::to_bytes`]. Also returns the mark.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<(Self, Option<String>), String> {
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| error.to_string())?;
        let mark = metadata.metadata().as_ref().and_then(|metadata| metadata.get("mark").cloned());
        let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
        let mut table = Self::default();
        for (name, tensor) in file.iter() {
            let unknown = || format!("unknown statistic `{name}`");
            let parts: Vec<&str> = name.split('|').collect();
            let [component, bin, point, statistic] = parts[..] else { return Err(unknown()) };
            let bin: usize = bin.parse().ok().ok_or_else(unknown)?;
            let bins = table.components.entry(component.to_owned()).or_default();
            let statistics = bins.entry(bin).or_default().entry(point.to_owned()).or_default();
            let (small, large) = (tensor.data().as_chunks::<4>().0, tensor.data().as_chunks::<8>().0);
            let narrow = || small.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
            let wide = || large.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect::<Vec<_>>();
            match statistic {
                "min" => statistics.min = narrow(),
                "max" => statistics.max = narrow(),
                "samples" => statistics.samples = narrow(),
                "sum" => statistics.sum = wide(),
                "square" => statistics.square = wide(),
                "size" => statistics.size = wide().first().copied().unwrap_or_default(),
                _ => return Err(unknown()),
            }
        }
        Ok((table, mark))
    }

    /// Writes `calibration.json` and the statistics into `folder`.
    ///
    /// # Errors
    /// I/O errors.
    pub fn write(&self, folder: &Path, set: &SetInfo) -> Result<(), Error> {
        let numbers = folder.join(NUMBERS);
        let bytes = self.to_bytes(None).map_err(|why| Error::file_content(&numbers, &why))?;
        let header = Header {
            format: FORMAT,
            set: set.clone(),
            numbers: Digest::of_parts([bytes.as_slice()]),
            inputs: self.inputs.clone(),
        };
        bundle::atomic::write_atomic(&numbers, &bytes)?;
        let path = folder.join(FILE);
        let text = serde_json::to_vec_pretty(&header).map_err(|error| Error::file_content(&path, &error))?;
        Ok(bundle::atomic::write_atomic(&path, &text)?)
    }

    /// Reads a calibration from its `calibration.json` and checks it against the weights of a bundle.
    ///
    /// # Errors
    /// A file is missing or damaged, or was made for other weights.
    pub fn read(path: &Path, manifest: &Manifest) -> Result<(Self, Header), Error> {
        let text = std::fs::read(path).map_err(bundle::Error::file("read", path))?;
        let header: Header =
            serde_json::from_slice(&text).map_err(|error| Error::file_content(path, &error))?;
        if header.format != FORMAT {
            let why = format!("its format is {} and this version reads {FORMAT}", header.format);
            return Err(Error::file_content(path, &why));
        }
        check_weights(path, &header.set.weights, manifest)?;
        let numbers = path.with_file_name(NUMBERS);
        let bytes = std::fs::read(&numbers).map_err(bundle::Error::file("read", &numbers))?;
        if Digest::of_parts([bytes.as_slice()]) != header.numbers {
            let why = format!("its digest differs from the one in {}", path.display());
            return Err(Error::file_content(&numbers, &why));
        }
        let (mut table, _) = Self::from_bytes(&bytes).map_err(|why| Error::file_content(&numbers, &why))?;
        table.inputs.clone_from(&header.inputs);
        Ok((table, header))
    }
}
