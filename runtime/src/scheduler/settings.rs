//! Settings of the scheduler: devices, order and bounds.

use super::device::DeviceName;
use super::request::Priority;
use super::types::Seconds;
use bundle::Field;
use bundle::units::ByteCount;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The order in which jobs are worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// In waves, with priorities.
    #[default]
    Waves,
    /// One job after another as they arrived, without priorities: what waves are compared with.
    FirstCome,
}

bundle::named!(Order, Field::Order, "order", "waves" => Waves, "first-come" => FirstCome);

/// The settings of a scheduler. They belong to its event log: a replay needs the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The devices, each with its budget. Commands to several devices come in this order.
    pub devices: Vec<DeviceBudget>,
    /// The order of jobs.
    #[serde(default)]
    pub order: Order,
    /// Limits of waves.
    #[serde(default)]
    pub bounds: Bounds,
}

/// The memory that may be used on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceBudget {
    /// The device.
    pub device: DeviceName,
    /// Sessions, latents and caches on it together.
    pub budget: ByteCount,
}

/// Bounds that keep every job from starving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bounds {
    /// The most jobs of a wave, at least 1.
    pub wave_jobs: u32,
    /// How long after its first step a wave takes new jobs.
    pub wave_seconds: Seconds,
    /// Units of waves that run between two groups of previews while a job is past its deadline, at least 1.
    pub overdue_units: u32,
    /// The deadline of previews that state none, after their arrival.
    pub preview_deadline: Seconds,
    /// The deadline of normal jobs that state none.
    pub normal_deadline: Seconds,
    /// The deadline of batch jobs that state none.
    pub batch_deadline: Seconds,
    /// True to keep one session open on a device at a time, even where more fit.
    pub one_at_a_time: bool,
}

impl Default for Bounds {
    fn default() -> Self {
        let seconds = |seconds: u32| Seconds::try_new(f64::from(seconds)).unwrap_or_default();
        Self {
            wave_jobs: 8,
            wave_seconds: seconds(1800),
            overdue_units: 8,
            preview_deadline: seconds(600),
            normal_deadline: seconds(4 * 3600),
            batch_deadline: seconds(24 * 3600),
            one_at_a_time: false,
        }
    }
}

impl Bounds {
    /// The deadline of jobs that state none.
    pub fn deadline(&self, priority: Priority) -> Seconds {
        match priority {
            Priority::Preview => self.preview_deadline,
            Priority::Normal => self.normal_deadline,
            Priority::Batch => self.batch_deadline,
        }
    }
}

impl Settings {
    /// Checks that every device has one budget, and that no bound is 0.
    ///
    /// # Errors
    /// Names the first that is wrong.
    pub fn check(&self) -> Result<(), bundle::Error> {
        let mut devices = BTreeSet::new();
        for DeviceBudget { device, .. } in &self.devices {
            if !devices.insert(*device) {
                let (given, rule) = (format!("`{device}`"), "the device has two budgets");
                return Err(bundle::Error::value(Field::Place, given, rule, "name each device once"));
            }
        }
        if self.bounds.wave_jobs == 0 || self.bounds.overdue_units == 0 {
            let fix = "use at least 1 for `wave_jobs` and `overdue_units`";
            return Err(bundle::Error::value(Field::Costs, 0, "no job could ever run", fix));
        }
        Ok(())
    }

    /// The budget of a device.
    pub fn budget(&self, device: DeviceName) -> Option<ByteCount> {
        self.devices.iter().find(|budget| budget.device == device).map(|budget| budget.budget)
    }
}
