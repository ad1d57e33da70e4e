//! The numbers of models.

use crate::model::Model;
use crate::scheduler::ModelNumber;
use bundle::variant::{KernelLibrary, Precision};
use engines::WeightMemory;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Models that are kept although nothing uses them. A model keeps its bundle locked.
const UNUSED_KEPT: usize = 4;

/// What the sessions of a model are found by, besides component and device.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelKey {
    bundle: PathBuf,
    /// That of the manifest: another bundle may have been written to the same folder.
    digest: String,
    precision: Precision,
    kernels: KernelLibrary,
    threads: Option<NonZeroUsize>,
    weights: WeightMemory,
}

impl ModelKey {
    fn of(model: &Model) -> Self {
        let (variant, options) = (model.variant(), model.engine_options());
        Self {
            bundle: model.bundle().folder.clone(),
            digest: model.digest().to_owned(),
            precision: variant.precision,
            kernels: variant.kernels,
            threads: options.threads,
            weights: options.weights,
        }
    }
}

/// Numbers models from 0. Models with the same sessions have the same number, which no other model gets.
#[derive(Debug, Default)]
pub(super) struct ModelNumbers {
    known: Numbered<ModelKey, Model>,
}

impl ModelNumbers {
    /// The number of a model.
    pub(super) fn number(&mut self, model: &Model) -> ModelNumber {
        self.known.number(ModelKey::of(model), || model.clone())
    }

    /// A model with this number.
    pub(super) fn model(&self, number: ModelNumber) -> Option<&Model> {
        self.known.get(number)
    }

    /// Forgets models that are not used, except for those that arrived last. One that arrives again has another number.
    pub(super) fn forget(&mut self, is_used: impl Fn(ModelNumber) -> bool) {
        self.known.forget(is_used);
    }
}

/// Values by key, each with a number. Those that were asked for last come last.
#[derive(Debug)]
struct Numbered<K, V> {
    known: Vec<(ModelNumber, K, V)>,
    next: u32,
}

impl<K, V> Default for Numbered<K, V> {
    fn default() -> Self {
        Self { known: Vec::new(), next: 0 }
    }
}

impl<K: PartialEq, V> Numbered<K, V> {
    fn number(&mut self, key: K, make: impl FnOnce() -> V) -> ModelNumber {
        let found = self.known.iter().position(|(_, known, _)| *known == key);
        let entry = match found {
            Some(position) => self.known.remove(position),
            None => {
                let number = ModelNumber(self.next);
                self.next = self.next.saturating_add(1);
                (number, key, make())
            }
        };
        let number = entry.0;
        self.known.push(entry);
        number
    }

    fn get(&self, number: ModelNumber) -> Option<&V> {
        self.known.iter().find(|(known, ..)| *known == number).map(|(.., value)| value)
    }

    fn forget(&mut self, is_used: impl Fn(ModelNumber) -> bool) {
        let unused = self.known.iter().filter(|(number, ..)| !is_used(*number)).count();
        let mut surplus = unused.saturating_sub(UNUSED_KEPT);
        self.known.retain(|(number, ..)| {
            let leaves = surplus > 0 && !is_used(*number);
            surplus -= usize::from(leaves);
            !leaves
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_have_one_number_and_a_number_is_given_once() {
        let mut known = Numbered::default();
        assert_eq!(known.number('a', || 10), ModelNumber(0));
        assert_eq!(known.number('b', || 20), ModelNumber(1));
        assert_eq!(known.number('a', || 30), ModelNumber(0));
        assert_eq!(known.get(ModelNumber(0)), Some(&10));
        for key in 'c'..='z' {
            known.number(key, || 0);
            known.forget(|_| false);
            assert!(known.known.len() <= UNUSED_KEPT);
        }
        assert_eq!(known.get(ModelNumber(0)), None);
        assert_eq!(known.number('a', || 40), ModelNumber(26));
        assert_eq!(known.number('z', || 50), ModelNumber(25));
    }

    #[test]
    fn what_is_used_is_not_forgotten_and_what_arrived_last_stays() {
        let mut known = Numbered::default();
        for key in 0..10 {
            known.number(key, || ());
        }
        known.number(3, || ());
        known.forget(|number| number.0 < 2);
        let left: Vec<u32> = known.known.iter().map(|(number, ..)| number.0).collect();
        assert_eq!(left, [0, 1, 7, 8, 9, 3]);
    }
}
