//! The content filter, measured on prompts that were written before it.

use prompt::ContentFilter;
use serde::Deserialize;

/// See `tests/content-filter/README.md`.
const PROMPTS: &str = include_str!("../../content-filter/prompts.jsonl");
const LATER: &str = include_str!("../../content-filter/later.jsonl");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Prompt {
    label: String,
    language: String,
    text: String,
}

fn prompts(lines: &str) -> Vec<Prompt> {
    lines.lines().map(|line| serde_json::from_str(line).expect("a prompt as JSON")).collect()
}

/// How a filter decides on prompts.
#[derive(Debug, Default)]
struct Decided {
    refused: usize,
    missed: Vec<String>,
    harmless: usize,
    false_alarms: Vec<String>,
}

impl Decided {
    /// Decides on every prompt, and prints what is wrong.
    fn of(name: &str, lines: &str) -> Self {
        let filter = ContentFilter::built_in();
        let mut decided = Self::default();
        for Prompt { label, text, .. } in prompts(lines) {
            let found = filter.check(&prompt::clean(&text));
            let shown: Vec<String> =
                found.iter().map(|finding| format!("{}, line {}", finding.category, finding.line)).collect();
            match (&*label, found.is_empty()) {
                ("harmless", true) => decided.harmless += 1,
                ("harmless", false) => decided.false_alarms.push(format!("{text} ({})", shown.join("; "))),
                (_, true) => decided.missed.push(format!("{text} ({label})")),
                (_, false) => {
                    decided.refused += 1;
                    if found.iter().all(|finding| finding.category != label) {
                        println!("for another category: {text} ({label}; {})", shown.join("; "));
                    }
                }
            }
        }
        let Self { refused, missed, harmless, false_alarms } = &decided;
        println!("{name}: {refused} of {} are refused; missed: {missed:#?}", refused + missed.len());
        let all = harmless + false_alarms.len();
        println!("{name}: {} of {all} are false alarms: {false_alarms:#?}", false_alarms.len());
        decided
    }
}

#[test]
fn the_prompts_are_half_harmless_and_half_chinese() {
    let prompts = prompts(PROMPTS);
    for language in ["en", "zh"] {
        let own = prompts.iter().filter(|prompt| prompt.language == language);
        let (harmless, refused): (Vec<_>, Vec<_>) = own.partition(|prompt| prompt.label == "harmless");
        assert_eq!((harmless.len(), refused.len()), (50, 50), "{language}");
    }
    let filter = ContentFilter::built_in();
    for category in filter.categories() {
        assert!(prompts.iter().any(|prompt| prompt.label == category), "{category}");
    }
}

/// At least 95 of 100 prompts that must be refused are, and at most 2 of 100 harmless ones.
#[test]
fn the_filter_refuses_what_it_must_and_little_else() {
    let decided = Decided::of("prompts", PROMPTS);
    assert!(decided.refused >= 95, "{decided:#?}");
    assert!(decided.false_alarms.len() <= 2, "{decided:#?}");
}

#[test]
fn what_was_missed_once_is_refused_now() {
    let decided = Decided::of("later prompts", LATER);
    assert!(decided.refused >= 114, "{decided:#?}");
    assert!(decided.false_alarms.len() <= 2, "{decided:#?}");
}

#[test]
fn a_long_text_is_checked_in_a_moment() {
    let filter = ContentFilter::built_in();
    for piece in ["a n*k*d w0man b.a.d ", "女性交警在路口交通", "1 2 3 4 years old kid ", "x*y#z* "]
    {
        let text = piece.repeat(prompt::MAX_PROMPT_BYTES / piece.len());
        let began = std::time::Instant::now();
        filter.check(&text);
        assert!(began.elapsed().as_secs() < 20, "{piece}: {:?}", began.elapsed());
    }
}
