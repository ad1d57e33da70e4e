//! The number formats of a component's weights in its checkpoint.

use crate::Error;
use crate::checkpoint::Source;
use bundle::dtype::WeightType;

/// The number formats that the weights which a component's graphs read are stored in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFormats {
    /// Each once, in the order of [`WeightType::ALL`].
    formats: Vec<WeightType>,
}

impl StoredFormats {
    /// Returns the formats of a component's weights.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], or [`Error::WrongType`] for a weight that is not floating-point.
    pub fn of(source: &Source) -> Result<Self, Error> {
        let mut found = Vec::new();
        for required in &source.required {
            let tensor = source.shards.tensor(&required.name)?;
            let wrong = || Error::WrongType { name: required.name.clone(), found: tensor.element };
            found.push(WeightType::of(tensor.element).ok_or_else(wrong)?);
        }
        let formats = WeightType::ALL.into_iter().filter(|format| found.contains(format)).collect();
        Ok(Self { formats })
    }

    /// Returns the formats, each once.
    pub fn formats(&self) -> &[WeightType] {
        &self.formats
    }

    /// Returns the narrowest format that holds the values of all formats exactly: the only one, or f32. Neither 16-bit
    /// format holds the other.
    pub fn common(&self) -> WeightType {
        match self.formats[..] {
            [one] => one,
            _ => WeightType::F32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use WeightType::{Bf16, F16, F32};

    #[test]
    fn mixed_formats_need_f32() {
        for (formats, common) in [
            (&[F32][..], F32),
            (&[F16], F16),
            (&[Bf16], Bf16),
            (&[F32, F16], F32),
            (&[F32, Bf16], F32),
            (&[F16, Bf16], F32),
            (&[F32, F16, Bf16], F32),
            (&[], F32),
        ] {
            assert_eq!(StoredFormats { formats: formats.to_vec() }.common(), common, "{formats:?}");
        }
    }
}
