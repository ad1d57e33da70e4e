//! Finished graphs and their files.

use crate::proto::{DataType, DimensionValue, ModelProto, TensorProto, ValueInfoProto};
use crate::{Error, ExternalData};
use bundle::dtype::ElementType;
use bundle::signature::{Extent, Signature, TensorSpec};
use prost::Message;
use std::path::Path;

/// A finished graph. It has a few hundred kilobytes; its weights are in other files.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// The ONNX messages.
    pub proto: ModelProto,
}

impl Model {
    /// Writes the graph atomically.
    ///
    /// # Errors
    /// I/O errors, with the path.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        Ok(bundle::atomic::write_atomic(path, &self.to_bytes())?)
    }

    /// Returns the content of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.proto.encode_to_vec()
    }

    /// Reads a graph.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is not a graph.
    pub fn read(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(&std::fs::read(path).map_err(bundle::Error::file("read", path))?, path)
    }

    /// Reads a graph from the content of its file. `path` is its name in errors.
    ///
    /// # Errors
    /// Returns an error if the bytes are not a graph.
    pub fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, Error> {
        let not_a_graph = |why: String| Error::NotAGraph { path: path.to_owned(), why };
        let proto = ModelProto::decode(bytes).map_err(|error| not_a_graph(error.to_string()))?;
        if proto.graph.is_none() {
            return Err(not_a_graph("it contains no graph".into()));
        }
        Ok(Self { proto })
    }

    /// Returns the inputs and outputs.
    pub fn signature(&self) -> Signature {
        let graph = self.proto.graph.as_ref();
        let side = |values: Option<&Vec<ValueInfoProto>>| {
            values.into_iter().flatten().filter_map(value_spec).collect()
        };
        Signature { inputs: side(graph.map(|g| &g.input)), outputs: side(graph.map(|g| &g.output)) }
    }

    /// Changes where the external weights are. `place` receives the name and the place of each, and returns the new
    /// place.
    ///
    /// # Errors
    /// Those of `place`, and an error if a new place is not below the graph's folder or has another length.
    pub fn place_weights<E: From<Error>>(
        &mut self,
        mut place: impl FnMut(&str, &ExternalData) -> Result<ExternalData, E>,
    ) -> Result<(), E> {
        for tensor in self.proto.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
            let Some(before) = external_of(tensor) else { continue };
            let after = place(&tensor.name, &before)?;
            after.check(&tensor.name, usize::try_from(before.length).unwrap_or(usize::MAX))?;
            tensor.external_data = after.entries();
        }
        Ok(())
    }

    /// Returns every weight in an external file.
    pub fn external_data(&self) -> Vec<ExternalData> {
        let graph = self.proto.graph.iter();
        graph.flat_map(|graph| &graph.initializer).filter_map(external_of).collect()
    }
}

pub(crate) fn external_of(tensor: &TensorProto) -> Option<ExternalData> {
    let value =
        |key: &str| tensor.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
    Some(ExternalData {
        location: value("location")?.clone(),
        offset: value("offset")?.parse().ok()?,
        length: value("length")?.parse().ok()?,
    })
}

fn value_spec(value: &ValueInfoProto) -> Option<TensorSpec> {
    let tensor = value.r#type.as_ref()?.tensor_type.as_ref()?;
    let extent = |value: Option<&DimensionValue>| match value {
        Some(DimensionValue::DimValue(size)) => usize::try_from(*size).ok().map(Extent::Fixed),
        Some(DimensionValue::DimParam(name)) => Some(Extent::Dynamic(name.clone())),
        None => Some(Extent::Dynamic(String::new())),
    };
    Some(TensorSpec {
        name: value.name.clone(),
        element: element_of(tensor.elem_type)?,
        shape: tensor
            .shape
            .as_ref()?
            .dim
            .iter()
            .map(|dim| extent(dim.value.as_ref()))
            .collect::<Option<_>>()?,
    })
}

/// Returns ONNX's number of a number format.
pub(crate) fn data_type(element: ElementType) -> i32 {
    let data_type = match element {
        ElementType::F32 => DataType::Float,
        ElementType::F16 => DataType::Float16,
        ElementType::Bf16 => DataType::Bfloat16,
        ElementType::I64 => DataType::Int64,
        ElementType::I32 => DataType::Int32,
        ElementType::I8 => DataType::Int8,
        ElementType::U8 => DataType::Uint8,
        ElementType::F8E4M3 => DataType::Float8e4m3fn,
        ElementType::Bool => DataType::Bool,
    };
    data_type.into()
}

/// Returns the number format of ONNX's number, or none if it is not used here.
pub(crate) fn element_of(number: i32) -> Option<ElementType> {
    Some(match DataType::try_from(number).ok()? {
        DataType::Undefined => return None,
        DataType::Float => ElementType::F32,
        DataType::Float16 => ElementType::F16,
        DataType::Bfloat16 => ElementType::Bf16,
        DataType::Int64 => ElementType::I64,
        DataType::Int32 => ElementType::I32,
        DataType::Int8 => ElementType::I8,
        DataType::Uint8 => ElementType::U8,
        DataType::Float8e4m3fn => ElementType::F8E4M3,
        DataType::Bool => ElementType::Bool,
    })
}
