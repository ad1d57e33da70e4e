//! LoRAs as clients ask for them: `lora` as vLLM-Omni spells it, and `loras` as sglang does.

use crate::body::Fields;
use crate::fault::Fault;
use bundle::lora::LoraExpert;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The most LoRAs of a clip.
const MOST: usize = 8;
/// The largest strength, and the smallest below zero.
const STRONGEST: f64 = 10.0;

/// A LoRA of a clip.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClipLora {
    /// Its name.
    pub name: String,
    /// Factor on its changes.
    pub strength: f32,
    /// `high_noise`, `low_noise` or `all`; absent if the file decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub expert: Option<LoraExpert>,
}

/// A LoRA of the server: a name, or an object.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) enum LoraField {
    /// A name.
    Name(String),
    /// A name with a strength and the expert that it is for.
    Object(LoraObject),
}

/// A LoRA of the server.
#[derive(Debug, Deserialize, ToSchema)]
#[expect(dead_code, reason = "describes what `Body` reads")]
pub(crate) struct LoraObject {
    /// Its name, as `GET /v1/capabilities` lists it. Also `local_path` or `path`, which go before it.
    #[schema(min_length = 1)]
    name: String,
    /// Factor on its changes. Also `scale`.
    #[schema(minimum = -10, maximum = 10)]
    strength: Option<f64>,
    /// `high_noise`, `low_noise` or `all`; also `transformer` and `transformer_2`. If absent, the file decides.
    target: Option<String>,
}

impl ClipLora {
    /// Takes `lora` and `loras`. Returns the parameter that was given, too.
    ///
    /// # Errors
    /// Names what is wrong or unknown.
    pub(crate) fn read(fields: &mut Fields) -> Result<Vec<Self>, Fault> {
        let mut loras = Vec::new();
        for field in ["lora", "loras"] {
            if fields.file(field).is_some() {
                let message = format!("`{field}` cannot be a file: name a LoRA of this server");
                return Err(Fault::unsupported(field, message));
            }
            if let Some(value) = fields.value(field) {
                loras.extend(read(field, value)?);
            }
            if loras.len() > MOST {
                return Err(Fault::parameter(field, format!("a clip has at most {MOST} LoRAs")));
            }
        }
        Ok(loras)
    }
}

fn read(field: &'static str, value: Value) -> Result<Vec<ClipLora>, Fault> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(Vec::new()),
        // As a form sends it.
        Value::String(text) => match serde_json::from_str(&text) {
            Ok(parsed @ (Value::Object(_) | Value::Array(_))) => read(field, parsed),
            _ => Ok(vec![ClipLora { name: text, strength: 1.0, expert: None }]),
        },
        Value::Array(values) => values.into_iter().map(|value| one(field, value)).collect(),
        value => Ok(vec![one(field, value)?]),
    }
}

fn one(field: &'static str, value: Value) -> Result<ClipLora, Fault> {
    let values = match value {
        Value::String(name) => return Ok(ClipLora { name, strength: 1.0, expert: None }),
        Value::Object(values) => values,
        _ => {
            let message =
                format!("`{field}` is the name of a LoRA, or an object with name, strength and target");
            return Err(Fault::parameter(field, message));
        }
    };
    let about = |fault: Fault| fault.about(field);
    let mut values = Fields::new(Map::from_iter(values), Vec::new());
    // sglang and vLLM-Omni have names for what is loaded beside the file that it is loaded from.
    let files = first(&mut values, &["path", "local_path", "lora_path", "lora_local_path"], Fields::text)
        .map_err(about)?;
    let named =
        first(&mut values, &["name", "lora_name", "adapter", "nickname"], Fields::text).map_err(about)?;
    let missing = || Fault::parameter(field, format!("`{field}` has no name"));
    let name = files.or(named).ok_or_else(missing)?;
    let strength = first(&mut values, &["strength", "scale", "lora_scale"], Fields::number).map_err(about)?;
    let strength = strength.unwrap_or(1.0);
    if strength.abs() > STRONGEST {
        let message = format!("the strength of a LoRA is a number from -{STRONGEST} to {STRONGEST}");
        return Err(Fault::parameter(field, message));
    }
    let target = first(&mut values, &["target", "expert"], Fields::text).map_err(about)?;
    let expert = target.map(|target| expert(field, &target)).transpose()?;
    values.ignore(&["int_id", "lora_int_id"]);
    values.finish().map_err(about)?;
    #[expect(clippy::cast_possible_truncation, reason = "strengths are f32")]
    let strength = strength as f32;
    Ok(ClipLora { name, strength, expert })
}

/// Takes all values of these names, and returns the first one.
fn first<T>(
    values: &mut Fields,
    names: &[&str],
    take: impl Fn(&mut Fields, &str) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    let mut found = None;
    for name in names {
        let value = take(values, name)?;
        found = found.or(value);
    }
    Ok(found)
}

/// An expert by its name, or as the transformer that it is in diffusers.
fn expert(field: &'static str, target: &str) -> Result<LoraExpert, Fault> {
    match target {
        "transformer" => Ok(LoraExpert::HighNoise),
        "transformer_2" => Ok(LoraExpert::LowNoise),
        name => name.parse().map_err(|_unknown| {
            let message = format!("the target of a LoRA is high_noise, low_noise or all, and not `{name}`");
            Fault::parameter(field, message)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<Vec<ClipLora>, Fault> {
        let mut fields = Fields::new(value.as_object().unwrap().clone(), Vec::new());
        let loras = ClipLora::read(&mut fields)?;
        fields.finish()?;
        Ok(loras)
    }

    fn lora(name: &str, strength: f32, expert: Option<LoraExpert>) -> ClipLora {
        ClipLora { name: name.into(), strength, expert }
    }

    #[test]
    fn the_spellings_of_other_servers_are_read() {
        assert_eq!(read(json!({})).unwrap(), []);
        assert_eq!(read(json!({"lora": "", "loras": []})).unwrap(), []);
        assert_eq!(read(json!({"lora": "style"})).unwrap(), [lora("style", 1.0, None)]);
        // vLLM-Omni.
        let object = json!({"name": "mine", "local_path": "style", "scale": 0.5, "int_id": 3});
        assert_eq!(read(json!({"lora": object})).unwrap(), [lora("style", 0.5, None)]);
        assert_eq!(read(json!({"lora": object.to_string()})).unwrap(), [lora("style", 0.5, None)]);
        // As `lora[name]` and `lora[scale]` of a form.
        assert_eq!(read(json!({"lora": {"name": "a", "scale": "0.5"}})).unwrap(), [lora("a", 0.5, None)]);
        // sglang.
        let list = json!([
            {"nickname": "x", "path": "high", "target": "transformer", "strength": 0.8},
            {"nickname": "low", "target": "transformer_2"},
            {"nickname": "both", "target": "all", "strength": -1},
            "plain",
        ]);
        let expected = [
            lora("high", 0.8, Some(LoraExpert::HighNoise)),
            lora("low", 1.0, Some(LoraExpert::LowNoise)),
            lora("both", -1.0, Some(LoraExpert::All)),
            lora("plain", 1.0, None),
        ];
        assert_eq!(read(json!({"loras": list})).unwrap(), expected);
        assert_eq!(read(json!({"loras": list.to_string()})).unwrap(), expected);
    }

    #[test]
    fn what_is_wrong_is_refused_by_name() {
        for (value, param) in [
            (json!({"lora": 3}), "lora"),
            (json!({"lora": {}}), "lora"),
            (json!({"lora": {"name": 3}}), "lora"),
            (json!({"lora": {"name": "a", "local_path": []}}), "lora"),
            (json!({"loras": [{"nickname": {}}]}), "loras"),
            (json!({"loras": [{"path": true, "name": "a"}]}), "loras"),
            (json!({"loras": [3]}), "loras"),
            (json!({"loras": [[]]}), "loras"),
            (json!({"loras": [{"name": "a", "strength": "much"}]}), "loras"),
            (json!({"loras": [{"name": "a", "strength": 11}]}), "loras"),
            (json!({"loras": [{"name": "a", "target": "decoder"}]}), "loras"),
            (json!({"loras": [{"name": "a", "weight": 1}]}), "loras"),
            (json!({"loras": vec!["a"; 9]}), "loras"),
        ] {
            assert_eq!(read(value.clone()).unwrap_err().param.as_deref(), Some(param), "{value}");
        }
    }
}
