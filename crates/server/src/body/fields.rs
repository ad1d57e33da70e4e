//! The values of a body by name. Numbers of forms are texts, so numbers are accepted as text too.

use crate::fault::Fault;
use serde_json::{Map, Value};

/// A file of a form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FilePart {
    /// The name of the part.
    pub name: String,
    /// Its bytes.
    pub content: Vec<u8>,
}

/// The values of a body. Each is taken once; what is left is unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    files: Vec<FilePart>,
}

/// Puts the value of a form under its name. `a[b]` is the value `b` of the object `a`.
///
/// # Errors
/// The name is used twice, or has more than one pair of brackets.
pub(super) fn insert(values: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), Fault> {
    let twice = || Fault::parameter(name, format!("`{name}` is given twice"));
    let (outer, inner) = match name.split_once('[') {
        Some((outer, inner)) => match inner.strip_suffix(']') {
            Some(inner) if !outer.is_empty() && !inner.contains(['[', ']']) => (outer, Some(inner)),
            _ => return Err(Fault::parameter(name, format!("the name `{name}` cannot be read"))),
        },
        None => (name, None),
    };
    let Some(inner) = inner else {
        return match values.insert(outer.to_owned(), value) {
            None => Ok(()),
            Some(_) => Err(twice()),
        };
    };
    let object = values.entry(outer).or_insert_with(|| Value::Object(Map::new()));
    match object.as_object_mut().map(|object| object.insert(inner.to_owned(), value)) {
        Some(None) => Ok(()),
        _ => Err(twice()),
    }
}

impl Fields {
    /// Values and files by name.
    pub(crate) fn new(values: Map<String, Value>, files: Vec<FilePart>) -> Self {
        Self { values, files }
    }

    /// A digest of a path and these values.
    pub(super) fn digest(&self, path: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        let mut sorted: Vec<_> = self.values.iter().collect();
        sorted.sort_by_key(|(name, _)| *name);
        for text in std::iter::once(path.to_owned())
            .chain(sorted.into_iter().map(|(name, value)| format!("{name}={value}")))
        {
            hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        for FilePart { name, content } in &self.files {
            hasher.update(name.as_bytes()).update(blake3::hash(content).as_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Takes a value. Null is no value.
    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    /// Takes an object, whose values are fields in turn. A text is read as JSON.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Fields>, Fault> {
        let value = match self.value(name) {
            Some(Value::String(text)) if text.trim().is_empty() => None,
            Some(Value::String(text)) => serde_json::from_str(&text).unwrap_or(Some(Value::String(text))),
            value => value,
        };
        match value {
            None => Ok(None),
            Some(Value::Object(values)) => Ok(Some(Self::new(values, Vec::new()))),
            Some(_) => Err(Fault::parameter(name, format!("`{name}` must be an object"))),
        }
    }

    /// Takes a text.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(Fault::parameter(name, format!("`{name}` must be a text"))),
        }
    }

    /// Takes a text or a number, as text.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn text_or_number(&mut self, name: &str) -> Result<Option<String>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(_) => Err(Fault::parameter(name, format!("`{name}` must be a text or a number"))),
        }
    }

    /// Takes a number.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f64>, Fault> {
        let found = match self.value(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        match found.filter(|number| number.is_finite()) {
            None => Err(Fault::parameter(name, format!("`{name}` must be a number"))),
            number => Ok(number),
        }
    }

    /// Takes a whole number from 0.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn whole(&mut self, name: &str) -> Result<Option<u64>, Fault> {
        let found = match self.value(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64().or_else(|| whole(number.as_f64()?)),
            Some(Value::String(text)) => {
                text.trim().parse().ok().or_else(|| whole(text.trim().parse().ok()?))
            }
            Some(_) => None,
        };
        match found {
            None => Err(Fault::parameter(name, format!("`{name}` must be a whole number from 0"))),
            number => Ok(number),
        }
    }

    /// Takes a truth value.
    ///
    /// # Errors
    /// It is something else.
    pub(crate) fn truth(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::String(text)) if matches!(&*text, "true" | "True" | "1") => Ok(Some(true)),
            Some(Value::String(text)) if matches!(&*text, "false" | "False" | "0") => Ok(Some(false)),
            Some(_) => Err(Fault::parameter(name, format!("`{name}` must be true or false"))),
        }
    }

    /// Takes a value that has a text form, such as a size.
    ///
    /// # Errors
    /// It is no such value.
    pub(crate) fn parsed<T: std::str::FromStr<Err = bundle::Error>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Fault> {
        let text = self.text_or_number(name)?;
        let parsed = text.map(|text| text.parse::<T>()).transpose();
        parsed.map_err(|error| Fault::from(error).about(name))
    }

    /// Takes values that are of no use here.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.values.shift_remove(*name);
        }
    }

    /// Refuses a value that this server can do nothing with. Empty ones are no request.
    ///
    /// # Errors
    /// It was given.
    pub(crate) fn refuse(&mut self, name: &str, why: &str) -> Result<(), Fault> {
        let is_file = self.files.iter().any(|file| file.name == name);
        let is_asked = self.value(name).is_some_and(|value| match value {
            Value::String(text) => !text.is_empty(),
            Value::Array(values) => !values.is_empty(),
            Value::Object(values) => !values.is_empty(),
            Value::Bool(asked) => asked,
            _ => true,
        });
        if is_asked || is_file {
            return Err(Fault::unsupported(name, format!("`{name}` cannot be used: {why}")));
        }
        Ok(())
    }

    /// Takes a file of a form.
    pub(crate) fn file(&mut self, name: &str) -> Option<FilePart> {
        let at = self.files.iter().position(|file| file.name == name)?;
        Some(self.files.remove(at))
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// Names the first unknown value.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let unknown = self.values.keys().chain(self.files.iter().map(|file| &file.name)).next();
        match unknown {
            None => Ok(()),
            Some(name) => {
                let fault = Fault::parameter(name, format!("there is no parameter `{name}`"));
                Err(Fault { code: "unknown_parameter", ..fault })
            }
        }
    }
}

/// A number without a fraction, such as the 33.0 of a form.
fn whole(number: f64) -> Option<u64> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just before")]
    (number.fract() == 0.0 && (0.0..9.0e15).contains(&number)).then_some(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Fields {
        Fields::new(value.as_object().unwrap().clone(), Vec::new())
    }

    #[test]
    fn numbers_of_forms_are_texts() {
        let mut given = fields(
            json!({"a": "33", "b": 33, "c": "4.0", "d": 4.5, "e": "x", "f": -1, "g": true, "h": null}),
        );
        assert_eq!(
            (given.whole("a").unwrap(), given.whole("b").unwrap(), given.whole("c").unwrap()),
            (Some(33), Some(33), Some(4))
        );
        assert_eq!(given.number("d").unwrap(), Some(4.5));
        assert_eq!(given.whole("h").unwrap(), None);
        for name in ["e", "f", "g"] {
            assert_eq!(given.whole(name).unwrap_err().param.as_deref(), Some(name));
        }
        assert!(given.finish().is_ok());
    }

    #[test]
    fn brackets_name_the_values_of_an_object() {
        let mut values = Map::new();
        insert(&mut values, "lora[a]", json!("1")).unwrap();
        insert(&mut values, "lora[b]", json!("2")).unwrap();
        assert_eq!(Value::Object(values.clone()), json!({"lora": {"a": "1", "b": "2"}}));
        for wrong in ["lora[a]", "lora[", "[a]", "lora[a][b]", "lora[a]x"] {
            assert!(insert(&mut values, wrong, json!("3")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_unknown_or_cannot_be_done_is_refused_by_name() {
        let mut given = fields(json!({"lora": {"a": 1}, "user": "x", "other": 1, "empty": ""}));
        given.ignore(&["user"]);
        assert_eq!(given.refuse("lora", "no").unwrap_err().code, "unsupported_parameter");
        given.refuse("empty", "no").unwrap();
        assert_eq!(given.finish().unwrap_err().param.as_deref(), Some("other"));
        let mut file =
            Fields::new(Map::new(), vec![FilePart { name: "input_reference".into(), content: vec![1] }]);
        assert!(file.refuse("input_reference", "no").is_err());
    }

    #[test]
    fn the_digest_is_that_of_the_content() {
        let a = fields(json!({"a": 1, "b": "x"})).digest("/p");
        assert_eq!(fields(json!({"b": "x", "a": 1})).digest("/p"), a);
        for other in
            [fields(json!({"a": 2, "b": "x"})).digest("/p"), fields(json!({"a": 1, "b": "x"})).digest("/q")]
        {
            assert_ne!(other, a);
        }
    }
}
