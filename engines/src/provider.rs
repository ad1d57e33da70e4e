//! Which execution provider computes a graph.

use crate::Error;
use bundle::variant::Target;

/// What computes: the value of `--ep`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provider {
    /// The best that this machine and the bundle have.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU through CUDA.
    Cuda,
    /// An NVIDIA GPU through TensorRT.
    TensorRt,
}

bundle::named!(
    Provider, "--ep", "execution provider", "auto" => Auto, "cpu" => Cpu, "cuda" => Cuda, "tensorrt" => TensorRt,
);

impl Provider {
    /// The target whose graphs this provider runs.
    ///
    /// # Errors
    /// No graphs are exported for this provider. It is refused: falling back to the CPU would hide it.
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
    fn names_read_back_and_others_are_refused() {
        for provider in Provider::ALL {
            assert_eq!(provider.to_string().parse::<Provider>().unwrap(), provider);
        }
        insta::assert_snapshot!("gpu".parse::<Provider>().unwrap_err(), @"--ep cannot be `gpu`: unknown execution provider; expected one of auto, cpu, cuda, tensorrt (use one of these)");
    }

    #[test]
    fn a_provider_without_graphs_is_refused_rather_than_replaced() {
        assert_eq!(Provider::Auto.target().unwrap(), Target::Cpu);
        assert_eq!(Provider::Cpu.target().unwrap(), Target::Cpu);
        let error = Provider::TensorRt.target().unwrap_err();
        assert_eq!(error.report().class, ErrorClass::BadInput);
        insta::assert_snapshot!(error, @"--ep tensorrt cannot be used: this version runs graphs on the CPU alone; those for CUDA it can only export (use --ep cpu, or leave it out)");
        assert!(Provider::Cuda.target().is_err());
    }
}
