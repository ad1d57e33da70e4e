//! Whether stored engines can be used on this machine.

use super::EngineRecord;
use crate::Provider;
use std::collections::BTreeMap;

/// The versions and devices that stored engines are compared with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EnginesHere {
    /// The version of ONNX Runtime.
    pub onnx_runtime: String,
    /// The devices of every provider that compiles graphs, as version of the provider and architecture; or why the
    /// provider cannot be used.
    pub devices: BTreeMap<Provider, Result<Vec<(String, String)>, String>>,
}

/// Why an engine cannot be used on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotHere {
    /// Its provider cannot be used. It may be again.
    NoProvider(String),
    /// It was made with other versions, or for other devices.
    Other(String),
}

impl NotHere {
    pub(super) fn why(&self) -> &str {
        match self {
            Self::NoProvider(why) | Self::Other(why) => why,
        }
    }
}

impl EnginesHere {
    /// Whether this machine can use an engine.
    pub(super) fn check(&self, provider: Provider, record: &EngineRecord) -> Result<(), NotHere> {
        let other = |part: &str, found: &str| {
            NotHere::Other(format!("it was made with {part} {}, and this is {found}", record.word(part)))
        };
        if record.word("onnx_runtime") != self.onnx_runtime {
            return Err(other("onnx_runtime", &self.onnx_runtime));
        }
        let devices = match self.devices.get(&provider) {
            Some(Ok(devices)) => devices,
            Some(Err(why)) => return Err(NotHere::NoProvider(why.clone())),
            None => return Err(NotHere::NoProvider(format!("{provider} compiles no graphs"))),
        };
        let versions = || devices.iter().map(|(version, _)| version.as_str());
        if versions().all(|version| version != record.word("provider_version")) {
            return Err(other("provider_version", versions().next().unwrap_or("none")));
        }
        let architectures = || devices.iter().map(|(_, architecture)| architecture.as_str());
        if architectures().all(|architecture| architecture != record.word("architecture")) {
            return Err(other("architecture", architectures().next().unwrap_or("none")));
        }
        Ok(())
    }
}
