//! Counting what was read back.

use super::prompts::{Language, ScoredPrompt};
use super::{Attribute, Reading};
use serde::Serialize;

/// How many of how many were read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Clips that show what was asked for.
    pub right: usize,
    /// Clips that were asked for something.
    pub of: usize,
}

impl Tally {
    fn count(&mut self, right: bool) {
        self.right += usize::from(right);
        self.of += 1;
    }

    /// Both tallies as one.
    fn with(self, other: Self) -> Self {
        Self { right: self.right + other.right, of: self.of + other.of }
    }

    /// The share that is right; none of none.
    pub fn share(self) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
        let share = self.right as f64 / self.of as f64;
        (self.of > 0).then_some(share)
    }
}

/// The score of one attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeScore {
    /// What is scored, with the judge's own accuracy and what chance would give.
    pub attribute: Attribute,
    /// Over English prompts.
    pub english: Tally,
    /// Over Chinese prompts.
    pub chinese: Tally,
}

impl AttributeScore {
    /// Over all prompts.
    pub fn all(&self) -> Tally {
        self.english.with(self.chinese)
    }
}

/// Scores of every attribute, in the judge's order.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreCard {
    /// One line each.
    pub attributes: Vec<AttributeScore>,
}

/// Means over attributes, each counted alike; none where no clip was asked for anything.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Means {
    /// Share read back.
    pub all: Option<f64>,
    /// Of English prompts.
    pub english: Option<f64>,
    /// Of Chinese prompts.
    pub chinese: Option<f64>,
    /// Accuracy of the judge itself.
    pub judge: Option<f64>,
    /// What guessing would give.
    pub chance: Option<f64>,
}

impl ScoreCard {
    /// Nothing counted yet.
    pub fn new(attributes: &[Attribute]) -> Self {
        let line = |attribute: &Attribute| AttributeScore {
            attribute: attribute.clone(),
            english: Tally::default(),
            chinese: Tally::default(),
        };
        Self { attributes: attributes.iter().map(line).collect() }
    }

    /// Counts what was read in the clip of a prompt, and gives how much of it is right.
    pub fn count(&mut self, prompt: &ScoredPrompt, reading: &Reading) -> Tally {
        let mut clip = Tally::default();
        for line in &mut self.attributes {
            let name = &line.attribute.name;
            let Some(asked) = prompt.attributes.get(name) else { continue };
            let right = reading.values.get(name) == Some(asked);
            match prompt.language {
                Language::English => line.english.count(right),
                Language::Chinese => line.chinese.count(right),
            }
            clip.count(right);
        }
        clip
    }

    /// Means over the attributes that were asked for.
    pub fn means(&self) -> Means {
        let of = |share: &dyn Fn(&AttributeScore) -> Option<f64>| {
            let asked = self.attributes.iter().filter(|line| line.all().of > 0);
            mean(asked.filter_map(share))
        };
        Means {
            all: of(&|line| line.all().share()),
            english: of(&|line| line.english.share()),
            chinese: of(&|line| line.chinese.share()),
            judge: of(&|line| Some(line.attribute.accuracy)),
            chance: of(&|line| Some(line.attribute.chance())),
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
    fn languages_are_counted_apart_and_attributes_alike() {
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
    fn what_a_prompt_leaves_open_is_not_counted() {
        let mut card =
            ScoreCard::new(&[attribute("subject", &["car", "cat"]), attribute("time", &["day", "dusk"])]);
        let open = prompt(Language::English, &[("subject", "cat")]);
        card.count(&open, &reading(&[("subject", "cat"), ("time", "dusk")]));
        assert_eq!(card.attributes[1].all().share(), None);
        assert_eq!((card.means().all, card.means().chinese), (Some(1.0), None));
    }
}
