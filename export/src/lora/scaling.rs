//! The scales of low-rank changes that a file states outside its tensors.
//!
//! PEFT divides `lora_alpha` by the rank, or by its root with `use_rslora`. diffusers stores the settings of PEFT in the
//! metadata of the file under `lora_adapter_metadata`, each with the name of the model before it; PEFT itself stores
//! them in `adapter_config.json` beside the file. Neither is required: without them, a pair without an `alpha` has the
//! scale 1.

use super::LoraError;
use crate::Error;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// The key of the metadata in which diffusers stores the settings of PEFT.
const METADATA: &str = "lora_adapter_metadata";
/// The settings of PEFT beside its file.
const CONFIG: &str = "adapter_config.json";

/// The settings of a file, by the name of the model: `transformer`, `transformer_2`, or empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scaling(BTreeMap<String, Settings>);

#[derive(Debug, Clone, Default, PartialEq)]
struct Settings {
    alpha: Option<f64>,
    /// Alphas of modules whose names end like this.
    alphas: Vec<(String, f64)>,
    is_by_root: bool,
}

impl Scaling {
    /// Reads the settings from the metadata of a file, or from the file beside it.
    ///
    /// # Errors
    /// Returns an error if they are not JSON, or state a form of changes that is not supported.
    pub(super) fn of(path: &Path, metadata: Option<&HashMap<String, String>>) -> Result<Self, Error> {
        let wrong = |why: String| Error::from(LoraError::Settings { path: path.to_owned(), why });
        let beside = path.with_file_name(CONFIG);
        let is_of_peft = path.file_name().is_some_and(|name| name == "adapter_model.safetensors");
        let text = match metadata.and_then(|metadata| metadata.get(METADATA)) {
            Some(text) => text.clone(),
            None if is_of_peft && beside.is_file() => {
                std::fs::read_to_string(&beside).map_err(Error::file("read", &beside))?
            }
            None => return Ok(Self::default()),
        };
        let settings: Map<String, Value> = serde_json::from_str(&text)
            .map_err(|error| wrong(format!("its settings are not JSON: {error}")))?;
        let mut of_models: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
        for (key, value) in settings {
            let (model, key) = key.rsplit_once('.').unwrap_or(("", &key));
            of_models.entry(model.to_owned()).or_default().insert(key.to_owned(), value);
        }
        let of_models =
            of_models.into_iter().map(|(model, map)| Ok((model, settings_of(&map).map_err(wrong)?)));
        Ok(Self(of_models.collect::<Result<_, Error>>()?))
    }

    /// Returns the factor on a pair of this rank: `alpha` over the rank.
    pub(super) fn factor(&self, is_second: bool, module: &str, alpha: Option<f64>, rank: usize) -> f64 {
        let model = if is_second { "transformer_2" } else { "transformer" };
        let settings = self.0.get(model).or_else(|| self.0.get(""));
        #[expect(clippy::cast_precision_loss, reason = "ranks are small")]
        let rank = rank as f64;
        let by_root = settings.is_some_and(|settings| settings.is_by_root);
        let alpha = alpha.or_else(|| settings?.alpha_of(module));
        alpha.map_or(1.0, |alpha| alpha / if by_root { rank.sqrt() } else { rank })
    }
}

impl Settings {
    fn alpha_of(&self, module: &str) -> Option<f64> {
        let is_of = |pattern: &str| {
            module.strip_suffix(pattern).is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        self.alphas.iter().find(|(pattern, _)| is_of(pattern)).map(|(_, alpha)| *alpha).or(self.alpha)
    }
}

fn settings_of(map: &Map<String, Value>) -> Result<Settings, String> {
    let is_on = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or(false);
    if is_on("fan_in_fan_out") {
        return Err("`fan_in_fan_out` is on, and Wan has no transposed layers".into());
    }
    if let Some(kind) = map.get("peft_type").and_then(Value::as_str).filter(|kind| *kind != "LORA") {
        return Err(format!("`peft_type` is {kind}; expected LORA"));
    }
    let pattern = map.get("alpha_pattern").and_then(Value::as_object);
    let alphas = pattern.into_iter().flatten();
    let alphas = alphas.map(|(module, alpha)| {
        let alpha = alpha.as_f64().ok_or_else(|| format!("`alpha_pattern` of {module} is not a number"))?;
        Ok::<_, String>((module.trim_start_matches('^').to_owned(), alpha))
    });
    Ok(Settings {
        alpha: map.get("lora_alpha").and_then(Value::as_f64),
        alphas: alphas.collect::<Result<_, _>>()?,
        is_by_root: is_on("use_rslora"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_metadata(text: &str) -> Result<Scaling, Error> {
        let metadata = HashMap::from([(METADATA.to_owned(), text.to_owned())]);
        Scaling::of(Path::new("x.safetensors"), Some(&metadata))
    }

    #[test]
    fn the_settings_of_diffusers_are_those_of_each_model() {
        let scaling = of_metadata(
            r#"{"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"to_q": 2.0},
                "transformer_2.lora_alpha": 16, "transformer_2.use_rslora": true}"#,
        )
        .unwrap();
        assert_eq!(scaling.factor(false, "blocks.0.attn1.to_k", None, 4), 2.0);
        assert_eq!(scaling.factor(false, "blocks.0.attn1.to_q", None, 4), 0.5);
        assert_eq!(scaling.factor(false, "blocks.0.attn1.my_to_q", None, 4), 2.0);
        assert_eq!(scaling.factor(true, "blocks.0.attn1.to_q", None, 4), 8.0);
        // An alpha of the file itself goes first.
        assert_eq!(scaling.factor(false, "blocks.0.attn1.to_q", Some(1.0), 4), 0.25);
        assert_eq!(Scaling::default().factor(false, "x", None, 64), 1.0);
        assert_eq!(Scaling::default().factor(false, "x", Some(8.0), 64), 0.125);
    }

    #[test]
    fn the_config_of_peft_is_read_from_beside_its_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CONFIG), r#"{"peft_type": "LORA", "lora_alpha": 6}"#).unwrap();
        let factor =
            |name: &str| Scaling::of(&folder.path().join(name), None).unwrap().factor(false, "x", None, 3);
        assert_eq!((factor("adapter_model.safetensors"), factor("other.safetensors")), (2.0, 1.0));
    }

    #[test]
    fn settings_of_other_methods_are_refused() {
        for (text, why) in [
            (r#"{"peft_type": "LOHA"}"#, "LOHA"),
            (r#"{"transformer.fan_in_fan_out": true}"#, "fan_in_fan_out"),
            (r#"{"transformer.alpha_pattern": {"to_q": "x"}}"#, "to_q"),
            ("[", "not JSON"),
        ] {
            let error = of_metadata(text).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
