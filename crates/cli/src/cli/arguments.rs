//! Prepares arguments for clap: values and prompts that begin with a dash.
//!
//! clap parses every argument that begins with a dash as a flag. Users write `--negative "-blurry"`, `--seed -1` and
//! prompts such as `"- a boat at dawn"`. An argument that cannot be a flag of the command is joined to the flag before
//! it, or moved behind `--` as the prompt. An argument that looks like a misspelt flag is left to clap, which refuses
//! it.

use super::args::Cli;
use clap::{Arg, Command, CommandFactory};
use std::ffi::{OsStr, OsString};

/// Returns the arguments in a form that clap parses as intended; the first is the name of the program.
pub(super) fn prepared(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    let mut prepared = Vec::with_capacity(arguments.len());
    let mut texts = Vec::new();
    let mut arguments = arguments.into_iter();
    prepared.extend(arguments.next());
    let mut arguments = arguments.peekable();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            prepared.push(argument);
            prepared.extend(arguments);
            prepared.extend(texts);
            return prepared;
        }
        if let Some(flag) = flag_without_value(command, &argument) {
            match arguments.next_if(|next| is_value(command, next)) {
                Some(value) => prepared.push(joined(flag, &argument, &value)),
                None => {
                    prepared.push(argument);
                    // A value without a dash is not the name of a subcommand.
                    prepared.extend(arguments.next_if(|next| !begins_with_dash(next)));
                }
            }
        } else if begins_with_dash(&argument) && !is_flag(command, &argument) && is_text(&argument) {
            texts.push(argument);
        } else {
            if let Some(found) = command.find_subcommand(&argument) {
                command = found;
            }
            prepared.push(argument);
        }
    }
    if !texts.is_empty() {
        prepared.push("--".into());
        prepared.extend(texts);
    }
    prepared
}

/// The command that prepared arguments name, with the commands below it.
pub(super) fn command_of(prepared: &[OsString]) -> Command {
    let mut root = Cli::command();
    root.build();
    let mut command = &root;
    let mut arguments = prepared.iter().skip(1).peekable();
    while let Some(argument) = arguments.next().filter(|argument| *argument != "--") {
        if flag_without_value(command, argument).is_some() {
            arguments.next_if(|next| !begins_with_dash(next));
        } else if let Some(found) = command.find_subcommand(argument) {
            command = found;
        }
    }
    command.clone()
}

/// The values of `--output`, even if other arguments are wrong.
pub(super) fn outputs(prepared: &[OsString]) -> Vec<String> {
    let mut found = Vec::new();
    let mut arguments = prepared.iter().map(|argument| argument.to_string_lossy());
    while let Some(argument) = arguments.next() {
        match &*argument {
            "--" => break,
            "-o" | "--output" => found.extend(arguments.next().map(String::from)),
            other => {
                let attached = other.strip_prefix("--output=").or_else(|| {
                    let short = other.strip_prefix("-o")?;
                    Some(short.strip_prefix('=').unwrap_or(short))
                });
                found.extend(attached.map(str::to_owned));
            }
        }
    }
    found
}

/// Returns the flag that `argument` is, if the next argument is its value.
fn flag_without_value<'a>(command: &'a Command, argument: &OsStr) -> Option<&'a Arg> {
    let argument = argument.to_str()?;
    let found = match argument.strip_prefix("--") {
        Some(name) => long(command, name),
        None => {
            let mut letters = argument.strip_prefix('-')?.chars();
            let letter = letters.next()?;
            letters.next().is_none().then(|| short(command, letter)).flatten()
        }
    };
    found.filter(|flag| takes_value(flag))
}

/// Returns true if an argument begins with a dash and is still the value of the flag before it.
fn is_value(command: &Command, argument: &OsStr) -> bool {
    let looks_misspelt = || {
        argument.to_str().and_then(|text| text.strip_prefix("--")).is_some_and(|rest| {
            rest.is_empty() || rest.starts_with(|first: char| first.is_ascii_alphabetic())
        })
    };
    begins_with_dash(argument) && (is_text(argument) || !(is_flag(command, argument) || looks_misspelt()))
}

/// Returns true if an argument is a text and not a flag: it contains a space, or no name follows the dash.
fn is_text(argument: &OsStr) -> bool {
    let Some(text) = argument.to_str() else { return false };
    let name = text.split('=').next().unwrap_or_default();
    let after_dashes = text.trim_start_matches('-');
    name.contains(char::is_whitespace)
        || (!after_dashes.is_empty()
            && !after_dashes.starts_with(|first: char| first.is_ascii_alphanumeric()))
}

/// Returns true if an argument is one or more flags of the command, with or without a value.
fn is_flag(command: &Command, argument: &OsStr) -> bool {
    let Some(text) = argument.to_str() else { return false };
    if let Some(rest) = text.strip_prefix("--") {
        return rest.is_empty() || long(command, rest.split('=').next().unwrap_or_default()).is_some();
    }
    for letter in text.chars().skip(1) {
        match short(command, letter) {
            Some(flag) if takes_value(flag) => return true,
            Some(_) => {}
            None => return false,
        }
    }
    true
}

fn begins_with_dash(argument: &OsStr) -> bool {
    argument.as_encoded_bytes().starts_with(b"-") && argument != "-"
}

fn long<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|flag| flag.get_long() == Some(name))
}

fn short(command: &Command, letter: char) -> Option<&Arg> {
    command.get_arguments().find(|flag| flag.get_short() == Some(letter))
}

fn takes_value(flag: &Arg) -> bool {
    flag.get_action().takes_values()
}

/// Joins a flag and its value to one argument.
fn joined(flag: &Arg, argument: &OsStr, value: &OsStr) -> OsString {
    let mut joined = flag.get_long().map_or_else(|| argument.to_owned(), |name| format!("--{name}").into());
    joined.push("=");
    joined.push(value);
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepare(arguments: &[&str]) -> Vec<String> {
        let arguments = std::iter::once("rushes").chain(arguments.iter().copied()).map(OsString::from);
        let prepared = prepared(arguments.collect());
        prepared.into_iter().skip(1).map(|argument| argument.into_string().unwrap()).collect()
    }

    #[test]
    fn a_value_that_begins_with_a_dash_is_joined_to_its_flag() {
        for (given, expected) in [
            (
                &["generate", "fox", "--negative", "-blurry"][..],
                &["generate", "fox", "--negative=-blurry"][..],
            ),
            (&["generate", "fox", "--caption", "- Hello"], &["generate", "fox", "--caption=- Hello"]),
            (&["generate", "fox", "--caption", "--- the end"], &["generate", "fox", "--caption=--- the end"]),
            (&["generate", "fox", "--caption", "-out of it"], &["generate", "fox", "--caption=-out of it"]),
            (&["generate", "--seed", "-1", "fox"], &["generate", "--seed=-1", "fox"]),
            (&["generate", "fox", "-o", "-a.mp4"], &["generate", "fox", "--output=-a.mp4"]),
            (&["calibrate", "b", "--prompts", "-p.txt"], &["calibrate", "b", "--prompts=-p.txt"]),
            (&["bench", "quality", "--prompts", "-p"], &["bench", "quality", "--prompts=-p"]),
            (&["--cache-dir", "-c", "doctor"], &["--cache-dir=-c", "doctor"]),
        ] {
            assert_eq!(prepare(given), expected);
        }
    }

    #[test]
    fn a_prompt_that_begins_with_a_dash_is_moved_to_the_end() {
        for prompt in ["- a boat", "-5 degrees outside", "--a fox, a hen", "-happy dog", "-一只猫", "—"]
        {
            let expected: &[&str] = match prompt {
                "—" => &["generate", "—", "--steps", "4"],
                _ => &["generate", "--steps", "4", "--", prompt],
            };
            assert_eq!(prepare(&["generate", prompt, "--steps", "4"]), expected);
        }
    }

    #[test]
    fn other_arguments_are_unchanged() {
        for arguments in [
            &["generate", "fox", "--negative", "--steps", "4"][..],
            &["generate", "fox", "--negative", "--stpes", "4"],
            &["generate", "fox", "--negative", "--"],
            &["generate", "-blurry"],
            &["generate", "--stpes", "4", "fox"],
            &["generate", "fox", "-o", "-", "-oa b.mp4", "-h", "--json"],
            &["generate", "fox", "--negative=-x", "--no-mark"],
            &["generate", "--bundle", "export", "fox"],
            &["generate", "--steps", "4", "--", "-x", "--json"],
            &["export", "ck", "--out", "b", "-V"],
            &[],
        ] {
            assert_eq!(prepare(arguments), arguments);
        }
    }

    #[test]
    fn outputs_are_found_in_every_spelling() {
        let arguments =
            ["rushes", "generate", "-o", "-", "-oa.mp4", "--output=b.gif", "-o=c.y4m", "--", "-o", "d"];
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        assert_eq!(outputs(&arguments), ["-", "a.mp4", "b.gif", "c.y4m"]);
    }
}
