//! The help text of every command and subcommand is a snapshot in `crates/cli/help`.
//!
//! To write the snapshots again: `INSTA_UPDATE=always cargo test --package rushes --lib help`.

use super::args::Cli;
use clap::{Command, CommandFactory};
use std::collections::BTreeSet;
use std::path::Path;

/// Columns of the snapshots, whatever the terminal has.
const WIDTH: usize = 100;

/// A command's name, with dashes for spaces, and its help text; then those of its subcommands.
fn help_texts(command: &Command, path: &str, texts: &mut Vec<(String, String)>) {
    let help = command.clone().term_width(WIDTH).max_term_width(WIDTH).render_long_help().to_string();
    texts.push((path.to_owned(), help));
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        help_texts(subcommand, &format!("{path}-{}", subcommand.get_name()), texts);
    }
}

#[test]
fn the_help_text_of_every_command_is_a_snapshot() {
    let mut root = Cli::command();
    root.build();
    let mut texts = Vec::new();
    help_texts(&root, "rushes", &mut texts);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("help");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(&folder);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| {
        for (name, text) in &texts {
            insta::assert_snapshot!(name.clone(), text);
        }
    });
    let files =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> =
        files.filter_map(|file| file.strip_suffix(".snap").map(str::to_owned)).collect();
    let expected: BTreeSet<String> = texts.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, expected, "a snapshot of a command that no longer exists");
}
