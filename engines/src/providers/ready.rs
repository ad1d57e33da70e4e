//! Makes providers ready for sessions, each once in a process.

use super::{DeviceFacts, access, check};
use crate::error::ProviderError;
use crate::{Device, Error, OnnxRuntime, Provider};

impl OnnxRuntime {
    /// Makes the provider of a device ready: finds its libraries, loads and registers them. Does nothing for the CPU, or
    /// if it is ready. Sessions on the CPU stay on ONNX Runtime's own CPU provider.
    ///
    /// # Errors
    /// What is missing on this machine, and how to get it; or the provider does not have this device.
    pub fn use_provider(&self, device: Device) -> Result<(), Error> {
        if device == Device::CPU {
            return Ok(());
        }
        if !self.ready().contains_key(&device.provider()) {
            check(device, &self.machine())?;
        }
        let devices = self.devices_of(device.provider())?;
        if devices.iter().any(|facts| facts.device == device) {
            return Ok(());
        }
        let found = devices.iter().map(|facts| facts.device).collect();
        Err(ProviderError::NoDevice { device, found }.into())
    }

    /// The devices of a provider, which is made ready; none for the CPU.
    ///
    /// # Errors
    /// What is missing on this machine, and how to get it.
    pub fn devices_of(&self, provider: Provider) -> Result<Vec<DeviceFacts>, Error> {
        let Some(access) = access(provider) else { return Ok(Vec::new()) };
        let mut ready = self.ready();
        if let Some(devices) = ready.get(&provider) {
            return Ok(devices.clone());
        }
        let found = access.find(&self.machine())?;
        access.register(self, &found)?;
        let devices = access.devices(self)?;
        tracing::debug!(%provider, library = %found.library.display(), ?devices, "an execution provider is ready");
        ready.insert(provider, devices.clone());
        Ok(devices)
    }
}
