//! The value of `--costs`: a file, or one that is part of the program.

use bundle::Field;
use runtime::simulation::Costs;
use std::convert::Infallible;
use std::path::Path;
use std::str::FromStr;

/// The cost files of the program, by name.
const SHIPPED: [(&str, &str); 4] = [
    ("a14b-24gib", include_str!("../../../costs/a14b-24gib.json")),
    ("a14b-48gib", include_str!("../../../costs/a14b-48gib.json")),
    ("a14b-80gib", include_str!("../../../costs/a14b-80gib.json")),
    ("a14b-141gib", include_str!("../../../costs/a14b-141gib.json")),
];

/// The name of a cost file of the program, or a path.
#[derive(Debug, Clone)]
pub(super) struct CostsChoice(String);

impl FromStr for CostsChoice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl CostsChoice {
    /// Reads and checks the costs.
    ///
    /// # Errors
    /// There is no such file, or it is wrong.
    pub(super) fn read(&self) -> Result<Costs, bundle::Error> {
        let Self(name) = self;
        match SHIPPED.iter().find(|(shipped, _)| shipped == name) {
            Some((_, text)) => Costs::parse(text, name),
            None => Costs::parse(&super::read(Path::new(name), Field::Costs)?, name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Counts the figures of a file, and checks that each names a source.
    fn figures(value: &Value) -> usize {
        match value {
            Value::Object(fields) if fields.contains_key("value") => {
                let source = fields.get("source").and_then(Value::as_str).unwrap();
                assert!(source.len() > 10, "{fields:?}");
                1
            }
            Value::Object(fields) => fields.values().map(figures).sum(),
            Value::Array(values) => values.iter().map(figures).sum(),
            _ => 0,
        }
    }

    #[test]
    fn every_shipped_file_is_whole_and_its_figures_have_sources() {
        for (name, text) in SHIPPED {
            let costs = CostsChoice(name.to_owned()).read().unwrap();
            assert!(costs.clips.contains_key("480p81") && costs.clips.contains_key("preview"), "{name}");
            assert!(figures(&serde_json::from_str(text).unwrap()) > 30, "{name}");
        }
    }
}
