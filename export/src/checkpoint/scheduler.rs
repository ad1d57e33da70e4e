//! The checkpoint's scheduler config, as far as it says how to sample.

use crate::Error;
use bundle::settings::{Recommended, SolverKind};
use serde::Deserialize;
use std::path::Path;

/// What the scheduler config recommends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheduler {
    /// The solver of the scheduler's class; none for a class that there is no solver for.
    pub solver: Option<SolverKind>,
    /// Shift of the sigma grid.
    pub shift: f64,
}

impl Scheduler {
    /// The same as recommended settings.
    pub fn recommended(&self) -> Recommended {
        Recommended { sampler: self.solver, shift: Some(self.shift), ..Recommended::default() }
    }
}

/// `scheduler/scheduler_config.json`. Absent keys have the values that diffusers gives them.
#[derive(Debug, Deserialize)]
pub(super) struct SchedulerConfig {
    #[serde(rename = "_class_name")]
    class: String,
    flow_shift: Option<f64>,
    shift: Option<f64>,
    use_flow_sigmas: Option<bool>,
    prediction_type: Option<String>,
    num_train_timesteps: Option<usize>,
    solver_order: Option<usize>,
    solver_type: Option<String>,
    algorithm_type: Option<String>,
    use_karras_sigmas: Option<bool>,
    use_exponential_sigmas: Option<bool>,
    use_beta_sigmas: Option<bool>,
    use_dynamic_shifting: Option<bool>,
}

impl SchedulerConfig {
    pub(super) fn scheduler(self, path: &Path) -> Result<Scheduler, Error> {
        let solver = match self.class.as_str() {
            "UniPCMultistepScheduler" => Some(SolverKind::UniPc),
            "DPMSolverMultistepScheduler" => Some(SolverKind::DpmPp),
            "FlowMatchEulerDiscreteScheduler" => Some(SolverKind::Euler),
            other => {
                tracing::warn!(scheduler = other, "no solver for this scheduler; the default one is used");
                None
            }
        };
        self.check_supported(path, solver)?;
        let shift = match solver {
            Some(SolverKind::Euler) => self.shift,
            _ => self.flow_shift.or(self.shift),
        };
        Ok(Scheduler { solver, shift: shift.unwrap_or(1.0) })
    }

    fn check_supported(&self, path: &Path, solver: Option<SolverKind>) -> Result<(), Error> {
        let refuse = |setting: String, why: &str| Err(Error::unsupported(path, setting, why));
        for (key, value) in [
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_dynamic_shifting", self.use_dynamic_shifting),
        ] {
            if value == Some(true) {
                return refuse(format!("{key} = true"), "the sigma grid is linear with a fixed shift");
            }
        }
        if let Some(steps) = self.num_train_timesteps.filter(|steps| *steps != 1000) {
            return refuse(format!("num_train_timesteps = {steps}"), "timesteps run from 0 to 1000");
        }
        let text = |value: &Option<String>, otherwise: &str| value.clone().unwrap_or(otherwise.into());
        if matches!(solver, Some(SolverKind::UniPc | SolverKind::DpmPp)) {
            let prediction = text(&self.prediction_type, "epsilon");
            if prediction != "flow_prediction" || self.use_flow_sigmas != Some(true) {
                let flow = self.use_flow_sigmas.unwrap_or(false);
                return refuse(
                    format!("prediction_type = {prediction}, use_flow_sigmas = {flow}"),
                    "the denoiser predicts the velocity of a flow (flow_prediction, true)",
                );
            }
            if let Some(order) = self.solver_order.filter(|order| *order != 2) {
                return refuse(format!("solver_order = {order}"), "solvers are of order 2");
            }
            let known = if solver == Some(SolverKind::UniPc) { "bh2" } else { "midpoint" };
            let found = text(&self.solver_type, known);
            if found != known {
                return refuse(format!("solver_type = {found}"), "UniPC is bh2 and DPM++ is midpoint");
            }
            let algorithm = text(&self.algorithm_type, "dpmsolver++");
            if algorithm != "dpmsolver++" {
                return refuse(format!("algorithm_type = {algorithm}"), "DPM-Solver is dpmsolver++");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn scheduler(config: Value) -> Result<Scheduler, Error> {
        serde_json::from_value::<SchedulerConfig>(config)
            .unwrap()
            .scheduler(Path::new("scheduler_config.json"))
    }

    fn unipc(extra: Value) -> Result<Scheduler, Error> {
        let mut config = json!({
            "_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": true,
            "prediction_type": "flow_prediction", "solver_order": 2, "solver_type": "bh2",
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        scheduler(config)
    }

    #[test]
    fn each_class_has_its_solver_and_its_key_of_the_shift() {
        let found = unipc(json!({})).unwrap();
        assert_eq!(found, Scheduler { solver: Some(SolverKind::UniPc), shift: 3.0 });
        assert_eq!(found.recommended().shift, Some(3.0));
        let dpm = json!({ "_class_name": "DPMSolverMultistepScheduler", "solver_type": "midpoint" });
        assert_eq!(unipc(dpm).unwrap().solver, Some(SolverKind::DpmPp));
        let euler = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0 });
        assert_eq!(scheduler(euler).unwrap(), Scheduler { solver: Some(SolverKind::Euler), shift: 5.0 });
        assert_eq!(scheduler(json!({ "_class_name": "LCMScheduler" })).unwrap().solver, None);
    }

    #[test]
    fn settings_that_would_change_the_trajectory_are_refused_by_name() {
        for wrong in [
            json!({ "use_karras_sigmas": true }),
            json!({ "use_exponential_sigmas": true }),
            json!({ "use_beta_sigmas": true }),
            json!({ "use_dynamic_shifting": true }),
            json!({ "num_train_timesteps": 500 }),
            json!({ "prediction_type": "epsilon" }),
            json!({ "use_flow_sigmas": false }),
            json!({ "solver_order": 3 }),
            json!({ "solver_type": "bh1" }),
            json!({ "algorithm_type": "sde-dpmsolver++" }),
        ] {
            assert!(matches!(unipc(wrong.clone()), Err(Error::Unsupported { .. })), "{wrong}");
        }
    }
}
