//! Counts correct readings.

use super::prompts::{Language, ScoredPrompt};
use super::{Attribute, Reading};
use serde::Serialize;

/// A count of correct readings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Number of correct readings.
    pub right: usize,
    /// Number of all readings.
    pub of: usize,
}

impl Tally {
    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.of += 1;
    }

    /// Returns the sum of both tallies.
    fn with(self, other: Self) -> Self {
        Self { right: self.right + other.right, of: self.of + other.of }
    }

    /// The share of correct readings, or `None` without readings.
    pub fn share(self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let share = self.right as f64 / self.of as f64;
        (self.of > 0).then_some(share)
    }
}

/// The score of one attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeScore {
    /// The attribute, with the judge's accuracy and the chance level.
    pub attribute: Attribute,
    /// Readings for English prompts.
    pub english: Tally,
    /// Readings for Chinese prompts.
    pub chinese: Tally,
}

impl AttributeScore {
    /// Readings for all prompts.
    pub fn all(&self) -> Tally {
        self.english.with(self.chinese)
    }
}

/// Scores of every attribute, in the judge's order.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreCard {
    /// One score per attribute.
    pub attributes: Vec<AttributeScore>,
}

/// Unweighted means over attributes; `None` without readings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    /// Share of correct readings.
    pub all: Option<f64>,
    /// Share for English prompts.
    pub english: Option<f64>,
    /// Share for Chinese prompts.
    pub chinese: Option<f64>,
    /// Accuracy of the judge.
    pub judge: Option<f64>,
    /// Share by guessing.
    pub chance: Option<f64>,
}

impl ScoreCard {
    /// Creates an empty score card.
    pub fn new(attributes: &[Attribute]) -> Self {
        let line = |attribute: &Attribute| AttributeScore {
            attribute: attribute.clone(),
            english: Tally::default(),
            chinese: Tally::default(),
        };
        Self { attributes: attributes.iter().map(line).collect() }
    }

    /// Counts the reading of a prompt's clip. Returns its correct readings.
    pub fn count(&mut self, prompt: &ScoredPrompt, reading: &Reading) -> Tally {
        let mut clip = Tally::default();
        for line in &mut self.attributes {
            let name = &line.attribute.name;
            let Some(expected) = prompt.attributes.get(name) else { continue };
            let right = reading.values.get(name) == Some(expected);
            match prompt.language {
                Language::English => line.english.count(right),
                Language::Chinese => line.chinese.count(right),
            }
            clip.count(right);
        }
        clip
    }

    /// Returns the means over attributes that occur in the prompts.
    pub fn means(&self) -> Means {
        let mean_of = |share: &dyn Fn(&AttributeScore) -> Option<f64>| {
            let scored = self.attributes.iter().filter(|line| line.all().of > 0);
            mean(scored.filter_map(share))
        };
        Means {
            all: mean_of(&|line| line.all().share()),
            english: mean_of(&|line| line.english.share()),
            chinese: mean_of(&|line| line.chinese.share()),
            judge: mean_of(&|line| Some(line.attribute.accuracy)),
            chance: mean_of(&|line| Some(line.attribute.chance())),
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0_u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(name: &str, values: &[&str]) -> Attribute {
        Attribute {
            name: name.into(),
            values: values.iter().map(|v| (*v).to_owned()).collect(),
            accuracy: 0.9,
        }
    }

    fn prompt(language: Language, attributes: &[(&str, &str)]) -> ScoredPrompt {
        let attributes = attributes.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        ScoredPrompt { language, prompt: "any".into(), seed: 0, attributes }
    }

    fn reading(values: &[(&str, &str)]) -> Reading {
        Reading { values: values.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect() }
    }

    #[test]
    fn languages_are_counted_separately_and_attributes_have_equal_weight() {
        let judge =
            [attribute("subject", &["car", "cat"]), attribute("time", &["day", "dusk", "night", "dawn"])];
        let mut card = ScoreCard::new(&judge);
        let seen = reading(&[("subject", "car"), ("time", "day")]);
        let english = prompt(Language::English, &[("subject", "car"), ("time", "night")]);
        let chinese = prompt(Language::Chinese, &[("subject", "car"), ("time", "day")]);
        assert_eq!(card.count(&english, &seen), Tally { right: 1, of: 2 });
        assert_eq!(card.count(&chinese, &seen), Tally { right: 2, of: 2 });
        assert_eq!(card.attributes[1].english, Tally { right: 0, of: 1 });
        assert_eq!(card.attributes[1].all(), Tally { right: 1, of: 2 });
        let means = card.means();
        assert_eq!((means.all, means.english, means.chinese), (Some(0.75), Some(0.5), Some(1.0)));
        assert_eq!((means.judge, means.chance), (Some(0.9), Some(0.375)));
    }

    #[test]
    fn attributes_that_a_prompt_does_not_determine_are_not_counted() {
        let mut card =
            ScoreCard::new(&[attribute("subject", &["car", "cat"]), attribute("time", &["day", "dusk"])]);
        let open = prompt(Language::English, &[("subject", "cat")]);
        card.count(&open, &reading(&[("subject", "cat"), ("time", "dusk")]));
        assert_eq!(card.attributes[1].all().share(), None);
        assert_eq!((card.means().all, card.means().chinese), (Some(1.0), None));
    }
}
