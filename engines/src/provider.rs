//! Execution providers.

use crate::Error;
use bundle::Field;
use bundle::variant::Target;

/// An execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The provider that this version chooses: the CPU.
    #[default]
    Auto,
    /// CPU.
    Cpu,
    /// NVIDIA GPUs with CUDA.
    Cuda,
    /// NVIDIA GPUs with TensorRT.
    TensorRt,
}

bundle::named!(
    Provider, Field::Provider, "execution provider", "auto" => Auto, "cpu" => Cpu, "cuda" => Cuda, "tensorrt" => TensorRt,
);

impl Provider {
    /// Returns the target whose graphs this provider runs.
    ///
    /// # Errors
    /// This version cannot run graphs on the provider. There is no silent fallback to the CPU.
    pub fn target(self) -> Result<Target, Error> {
        match self {
            Self::Auto | Self::Cpu => Ok(Target::Cpu),
            Self::Cuda | Self::TensorRt => Err(Error::NoGraphsForProvider { provider: self }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::{Diagnose, ErrorClass};

    #[test]
    fn names_are_parsed_and_unknown_ones_are_refused() {
        for provider in Provider::ALL {
            assert_eq!(provider.to_string().parse::<Provider>().unwrap(), provider);
        }
        insta::assert_snapshot!("gpu".parse::<Provider>().unwrap_err(), @"provider cannot be `gpu`: unknown execution provider; expected one of auto, cpu, cuda, tensorrt (use one of these)");
    }

    #[test]
    fn a_provider_without_graphs_is_refused_and_not_replaced() {
        assert_eq!(Provider::Auto.target().unwrap(), Target::Cpu);
        assert_eq!(Provider::Cpu.target().unwrap(), Target::Cpu);
        let error = Provider::TensorRt.target().unwrap_err();
        assert_eq!(error.report().class, ErrorClass::BadInput);
        insta::assert_snapshot!(error, @"provider tensorrt cannot be used: this version runs graphs on the CPU only; graphs for CUDA can only be exported (use `provider` cpu, or leave it out)");
        assert!(Provider::Cuda.target().is_err());
    }
}
