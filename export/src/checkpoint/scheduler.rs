//! The sampling settings of the checkpoint's scheduler config.

use super::scheduler_keys::{Class, Rule, is_allowed, needed, rule};
use crate::Error;
use bundle::settings::{Recommended, ScheduleKind, SolverKind};
use serde_json::{Map, Value};
use std::path::Path;

/// The settings of a scheduler config.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scheduler {
    /// The solver of the scheduler's class.
    pub solver: SolverKind,
    /// The sigma grid; none for the built-in one.
    pub schedule: Option<ScheduleKind>,
    /// Shift of the sigma grid; none if the class receives it at run time.
    pub shift: Option<f64>,
}

impl Scheduler {
    /// Returns these settings as recommended settings.
    pub fn recommended(&self) -> Recommended {
        Recommended {
            sampler: Some(self.solver),
            schedule: self.schedule,
            shift: self.shift,
            ..Recommended::default()
        }
    }
}

/// The files that may name the scheduler's class.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names<'a> {
    /// `scheduler_config.json`, with its `_class_name`.
    pub(super) config: &'a Path,
    /// `model_index.json`, and its class of the scheduler.
    pub(super) index: (&'a Path, Option<&'a str>),
}

/// Reads `scheduler_config.json`. Every key is used, has no effect on a flow's trajectory, or is refused. Absent keys
/// have the defaults of diffusers.
///
/// # Errors
/// Returns an error if the class or a value is not supported, or a key is unknown.
pub(super) fn of_config(config: &Map<String, Value>, names: Names<'_>) -> Result<Scheduler, Error> {
    let path = names.config;
    let class = class(config, names)?;
    for (key, value) in config.iter().filter(|(key, _)| !key.starts_with('_')) {
        match rule(class, key) {
            None => {
                let why = format!("{} has no such setting", class.name());
                return Err(refused(path, key, value, "no such key".into(), why));
            }
            Some(Rule::OneOf(allowed, why) | Rule::Needed(allowed, why)) if !is_allowed(allowed, value) => {
                return Err(refused(path, key, value, allowed[0].to_string(), why));
            }
            Some(_) => {}
        }
    }
    if let Some(key) = needed(class).find(|key| !config.contains_key(*key))
        && let Some(Rule::Needed(allowed, why)) = rule(class, key)
    {
        let setting = format!("{key} is absent, and the default of {} is another value", class.name());
        return Err(Error::scheduler(path, setting, allowed[0].to_string(), why));
    }
    Ok(match class {
        Class::UniPc => diffusers(SolverKind::UniPc, shift(config, path, "flow_shift", "shift")?),
        Class::Dpm => diffusers(SolverKind::DpmPp, shift(config, path, "flow_shift", "shift")?),
        Class::Euler => {
            // Between two steps it then takes the clean latent with fresh noise.
            let adds_noise = config.get("stochastic_sampling") == Some(&Value::Bool(true));
            let solver = if adds_noise { SolverKind::Renoise } else { SolverKind::Euler };
            diffusers(solver, shift(config, path, "shift", "flow_shift")?)
        }
        Class::FlowUniPc => official(SolverKind::UniPc, shift(config, path, "shift", "flow_shift")?),
        Class::FlowDpm => official(SolverKind::DpmPp, shift(config, path, "shift", "flow_shift")?),
    })
}

fn diffusers(solver: SolverKind, shift: Option<f64>) -> Scheduler {
    Scheduler { solver, schedule: None, shift: Some(shift.unwrap_or(1.0)) }
}

/// The official code creates its schedulers with a shift of 1 and sets another one with the steps.
fn official(solver: SolverKind, shift: Option<f64>) -> Scheduler {
    Scheduler { solver, schedule: Some(ScheduleKind::Official), shift: shift.filter(|shift| *shift != 1.0) }
}

fn class(config: &Map<String, Value>, names: Names<'_>) -> Result<Class, Error> {
    let in_config = config.get("_class_name").and_then(Value::as_str);
    let (index, in_index) = names.index;
    let name = match (in_config, in_index) {
        (Some(in_config), Some(in_index)) if in_config != in_index => {
            return Err(Error::ConfigsDiffer {
                key: "the class of the scheduler".into(),
                first: (names.config.to_owned(), in_config.to_owned()),
                second: (index.to_owned(), in_index.to_owned()),
            });
        }
        (Some(name), _) | (None, Some(name)) => name,
        (None, None) => {
            let why = format!("it has no _class_name, and {} has no scheduler", index.display());
            return Err(Error::config(names.config, why));
        }
    };
    Class::ALL.into_iter().find(|class| class.name() == name).ok_or_else(|| {
        let supported = Class::ALL.map(Class::name).join(" or ");
        let setting = format!("_class_name = {name}");
        Error::scheduler(names.config, setting, supported, "there is no solver for this class")
    })
}

/// Returns the shift that the class reads from `key`. A shift under `other`, the key of other classes, is refused: it
/// was most likely meant for this class, which does not read it.
fn shift(config: &Map<String, Value>, path: &Path, key: &str, other: &str) -> Result<Option<f64>, Error> {
    let value = |key: &str| match config.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64().filter(|shift| shift.is_finite() && *shift > 0.0) {
            Some(shift) => Ok(Some(shift)),
            None => Err(Error::config(path, format!("{key} is {value} and must be a number above 0"))),
        },
    };
    match (value(key)?, value(other)?) {
        (None, Some(shift)) if shift != 1.0 => {
            let setting = format!("{other} = {shift} without {key}");
            Err(Error::scheduler(
                path,
                setting,
                format!("{key} = {shift}"),
                format!("this class reads {key}"),
            ))
        }
        (shift, _) => Ok(shift),
    }
}

fn refused(path: &Path, key: &str, value: &Value, expected: String, why: impl Into<String>) -> Error {
    Error::scheduler(path, format!("{key} = {value}"), expected, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn scheduler_in(config: &Value, index: Option<&str>) -> Result<Scheduler, Error> {
        let names = Names {
            config: Path::new("scheduler_config.json"),
            index: (Path::new("model_index.json"), index),
        };
        of_config(config.as_object().unwrap(), names)
    }

    fn with(base: &Value, extra: &Value) -> Value {
        let mut config = base.clone();
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    }

    fn unipc(extra: &Value) -> Result<Scheduler, Error> {
        let base = json!({
            "_class_name": "UniPCMultistepScheduler", "flow_shift": 3.0, "use_flow_sigmas": true,
            "prediction_type": "flow_prediction", "solver_order": 2, "solver_type": "bh2",
        });
        scheduler_in(&with(&base, extra), None)
    }

    fn dpm(extra: &Value) -> Result<Scheduler, Error> {
        unipc(&with(&json!({ "_class_name": "DPMSolverMultistepScheduler" }), extra))
    }

    fn euler(extra: &Value) -> Result<Scheduler, Error> {
        let base = json!({ "_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0 });
        scheduler_in(&with(&base, extra), None)
    }

    fn flow(class: &str, extra: &Value) -> Result<Scheduler, Error> {
        scheduler_in(&with(&json!({ "_class_name": class }), extra), None)
    }

    #[test]
    fn each_class_has_its_solver_grid_and_shift_key() {
        let found = |solver, schedule, shift| Scheduler { solver, schedule, shift };
        let nothing = json!({});
        assert_eq!(unipc(&nothing).unwrap(), found(SolverKind::UniPc, None, Some(3.0)));
        assert_eq!(dpm(&nothing).unwrap(), found(SolverKind::DpmPp, None, Some(3.0)));
        assert_eq!(euler(&nothing).unwrap(), found(SolverKind::Euler, None, Some(5.0)));
        assert_eq!(euler(&json!({ "shift": null })).unwrap().shift, Some(1.0));
        let renoise = euler(&json!({ "stochastic_sampling": true })).unwrap();
        assert_eq!(renoise, found(SolverKind::Renoise, None, Some(5.0)));
        let official = Some(ScheduleKind::Official);
        for (class, solver) in [
            ("FlowUniPCMultistepScheduler", SolverKind::UniPc),
            ("FlowDPMSolverMultistepScheduler", SolverKind::DpmPp),
        ] {
            assert_eq!(flow(class, &json!({ "shift": 1 })).unwrap(), found(solver, official, None));
            assert_eq!(flow(class, &json!({ "shift": 8.0 })).unwrap(), found(solver, official, Some(8.0)));
        }
    }

    #[test]
    fn the_class_may_be_only_in_the_index_and_must_be_supported() {
        let config = json!({ "shift": 5.0 });
        let class = Some("FlowMatchEulerDiscreteScheduler");
        assert_eq!(scheduler_in(&config, class).unwrap().solver, SolverKind::Euler);
        assert!(matches!(scheduler_in(&config, None), Err(Error::Config { .. })));
        let other = json!({ "_class_name": "UniPCMultistepScheduler" });
        let error = scheduler_in(&other, class).unwrap_err().to_string();
        assert!(error.contains("UniPCMultistepScheduler") && error.contains("FlowMatchEuler"), "{error}");
        for class in ["LCMScheduler", "FlowMatchHeunDiscreteScheduler", "DDIMScheduler", "HeliosScheduler"] {
            let error = flow(class, &json!({})).unwrap_err();
            assert!(matches!(&error, Error::Scheduler { setting, .. } if setting.contains(class)), "{error}");
        }
    }

    #[test]
    fn settings_that_would_change_the_trajectory_are_refused_by_name() {
        type Config = fn(&Value) -> Result<Scheduler, Error>;
        let both: [Config; 2] = [unipc, dpm];
        let all: [Config; 3] = [unipc, dpm, euler];
        let cases: [(&[Config], Value); 23] = [
            (&all, json!({ "use_karras_sigmas": true })),
            (&all, json!({ "use_exponential_sigmas": true })),
            (&all, json!({ "use_beta_sigmas": true })),
            (&all, json!({ "use_dynamic_shifting": true })),
            (&all, json!({ "num_train_timesteps": 500 })),
            (&all, json!({ "not_a_setting": 1 })),
            (&both, json!({ "prediction_type": "epsilon" })),
            (&both, json!({ "prediction_type": null })),
            (&both, json!({ "use_flow_sigmas": false })),
            (&both, json!({ "solver_order": 3 })),
            (&both, json!({ "thresholding": true })),
            (&both, json!({ "final_sigmas_type": "sigma_min" })),
            (&[unipc], json!({ "solver_type": "bh1" })),
            (&[unipc], json!({ "predict_x0": false })),
            (&[unipc], json!({ "lower_order_final": false })),
            (&[unipc], json!({ "disable_corrector": [0] })),
            (&[unipc], json!({ "solver_p": ["diffusers", "DDIMScheduler"] })),
            (&[dpm], json!({ "solver_type": "heun" })),
            (&[dpm], json!({ "algorithm_type": "sde-dpmsolver++" })),
            (&[dpm], json!({ "use_lu_lambdas": true })),
            (&[unipc, euler], json!({ "shift_terminal": 0.1 })),
            (&[euler], json!({ "invert_sigmas": true })),
            (&[euler], json!({ "stochastic_sampling": "yes" })),
        ];
        for (classes, wrong) in cases {
            let key = wrong.as_object().unwrap().keys().next().unwrap();
            for config in classes {
                let error = config(&wrong).unwrap_err();
                let named = matches!(&error, Error::Scheduler { setting, .. } if setting.starts_with(key));
                assert!(named, "{wrong}: {error}");
            }
        }
    }

    #[test]
    fn settings_without_effect_and_equivalent_values_are_accepted() {
        for same in [
            json!({ "beta_schedule": "scaled_linear", "trained_betas": [0.1], "timestep_spacing": "trailing" }),
            json!({ "sigma_max": 80.0, "time_shift_type": "linear", "sample_max_value": 3 }),
            json!({ "solver_type": "midpoint", "stochastic_sampling": true, "_diffusers_version": "0.99" }),
            json!({ "disable_corrector": null, "shift_terminal": 0.0, "use_karras_sigmas": null }),
        ] {
            assert_eq!(unipc(&same).unwrap(), unipc(&json!({})).unwrap(), "{same}");
        }
        for same in [
            json!({ "solver_type": "bh2", "disable_corrector": [0], "lower_order_final": false }),
            json!({ "euler_at_final": true, "lambda_min_clipped": "-Infinity", "variance_type": "learned" }),
        ] {
            assert_eq!(dpm(&same).unwrap(), dpm(&json!({})).unwrap(), "{same}");
        }
    }

    #[test]
    fn absent_keys_and_keys_of_other_classes_are_not_guessed() {
        for (class, absent) in [
            ("UniPCMultistepScheduler", json!({ "prediction_type": "flow_prediction" })),
            ("DPMSolverMultistepScheduler", json!({ "use_flow_sigmas": true })),
        ] {
            assert!(matches!(flow(class, &absent), Err(Error::Scheduler { .. })), "{class}");
        }
        assert!(euler(&json!({ "shift": null, "flow_shift": 3.0 })).is_err());
        assert!(unipc(&json!({ "flow_shift": null, "shift": 3.0 })).is_err());
        assert_eq!(unipc(&json!({ "shift": 9.0 })).unwrap().shift, Some(3.0));
        for wrong in [json!(0.0), json!(-1), json!("5"), json!("Infinity")] {
            assert!(matches!(euler(&json!({ "shift": wrong })), Err(Error::Config { .. })));
        }
    }

    #[test]
    fn an_error_states_the_supported_value() {
        let error = unipc(&json!({ "final_sigmas_type": "sigma_min" })).unwrap_err();
        insta::assert_snapshot!(error, @r#"scheduler_config.json is not supported: final_sigmas_type = "sigma_min": the last step ends at the clean latent; expected "zero" (to use another trajectory, change the file, or write sampler and shift into rushes.json next to model_index.json, such as {"sampler": "unipc", "shift": 5.0, "steps": 40})"#);
    }
}
