//! The text states of recent prompts.

use crate::text_encoder::TextStates;
use std::sync::Arc;

/// Prompts whose text states are kept. The states of one prompt of A14B have 8 MB.
const CAPACITY: usize = 16;

/// The text states of the prompts that were encoded last. Negative prompts, which rarely change, are among them.
#[derive(Debug, Default)]
pub(crate) struct TextCache {
    /// The most recently used last.
    entries: Vec<(String, Arc<TextStates>)>,
}

impl TextCache {
    /// The states of a prompt, if they are kept.
    pub(crate) fn get(&mut self, text: &str) -> Option<Arc<TextStates>> {
        let position = self.entries.iter().position(|(known, _)| known == text)?;
        let entry = self.entries.remove(position);
        let states = Arc::clone(&entry.1);
        self.entries.push(entry);
        Some(states)
    }

    /// Keeps the states of a prompt. The one that was not used for longest leaves if there are too many.
    pub(crate) fn insert(&mut self, text: &str, states: &Arc<TextStates>) {
        self.entries.retain(|(known, _)| known != text);
        if self.entries.len() >= CAPACITY {
            self.entries.remove(0);
        }
        self.entries.push((text.to_owned(), Arc::clone(states)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bundle::spec::TEXT_ROWS;
    use ndarray::Array2;

    fn states(tokens: usize) -> Arc<TextStates> {
        Arc::new(TextStates::try_new(Array2::zeros((TEXT_ROWS, 4)), tokens, None).unwrap())
    }

    #[test]
    fn the_prompt_that_was_not_used_for_longest_leaves() {
        let mut cache = TextCache::default();
        for index in 0..CAPACITY {
            cache.insert(&index.to_string(), &states(index));
        }
        assert_eq!(cache.get("0").map(|states| states.tokens()), Some(0));
        cache.insert("new", &states(99));
        assert!(cache.get("1").is_none());
        assert_eq!(cache.get("0").map(|states| states.tokens()), Some(0));
        assert_eq!(cache.get("new").map(|states| states.tokens()), Some(99));
        cache.insert("new", &states(7));
        assert_eq!(cache.get("new").map(|states| states.tokens()), Some(7));
        assert_eq!(cache.entries.len(), CAPACITY);
    }
}
