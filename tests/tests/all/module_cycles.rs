//! The top-level modules of a crate form no cycles. The module `error` is exempt: every module uses the crate's error
//! enum, and the enum holds types of the modules.
#![expect(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that are exempt, and the crate's root.
const EXEMPT: [&str; 3] = ["error", "lib", "main"];

/// For each top-level module of a crate, the others that its code uses. Unit tests do not count.
fn module_uses(src: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    collect(src, &mut Vec::new(), &mut files);
    let modules: BTreeSet<String> = files.iter().map(|(path, _)| path[0].clone()).collect();
    let reexports = reexports(&fs::read_to_string(src.join("lib.rs")).unwrap(), &modules);
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (module, file) in &files {
        if module.last().is_some_and(|name| name == "tests" || name.ends_with("_tests")) {
            continue;
        }
        let code = code_of(&fs::read_to_string(file).unwrap());
        let root = format!("{}::", vec!["super"; module.len()].join("::"));
        let names = names_after(&code, "crate::").into_iter().chain(names_after(&code, &root));
        let used = names.filter_map(|name| modules.get(&name).or_else(|| reexports.get(&name)).cloned());
        uses.entry(module[0].clone()).or_default().extend(used.filter(|used| *used != module[0]));
    }
    let is_exempt = |name: &String| EXEMPT.contains(&name.as_str());
    uses.retain(|module, _| !is_exempt(module));
    uses.values_mut().for_each(|used| used.retain(|name| !is_exempt(name)));
    uses
}

/// The module path of every file below `folder`, and the file.
fn collect(folder: &Path, module: &mut Vec<String>, files: &mut Vec<(Vec<String>, PathBuf)>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
        if entry.is_dir() {
            module.push(name);
            collect(&entry, module, files);
            module.pop();
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            let mut path = module.clone();
            path.extend((name != "mod").then_some(name));
            files.push((path, entry));
        }
    }
}

/// A file without comments and without its module of unit tests.
fn code_of(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .fold(String::new(), |code, line| code + line + "\n")
}

/// The names that the root of a crate re-exports, each with its module.
fn reexports(root: &str, modules: &BTreeSet<String>) -> BTreeMap<String, String> {
    let code = code_of(root);
    let statements = code.split(';').filter_map(|statement| {
        let (before, path) = statement.split_once("use ")?;
        let path = path.trim_start_matches("self::").trim_start_matches("crate::");
        before.trim_end().ends_with(['b', ')']).then_some(path)
    });
    let mut names = BTreeMap::new();
    for (module, rest) in statements.filter_map(|path| path.split_once("::")) {
        if modules.contains(module) {
            let words = rest.split(|c: char| !is_name(c)).filter(|word| !word.is_empty());
            names.extend(words.map(|word| (word.to_owned(), module.to_owned())));
        }
    }
    names
}

/// The names that directly follow a path prefix: one, or those of a group in braces.
fn names_after(code: &str, prefix: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|before| is_name(before) || [':', '$'].contains(&before)) {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => names.extend(group_names(group)),
            None => names.extend(first_name(rest)),
        }
    }
    names
}

/// The first name of every item of a group, which begins after its brace.
fn group_names(group: &str) -> Vec<String> {
    let (mut depth, mut start, mut names) = (0_usize, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                names.extend(first_name(&group[start..at]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn first_name(text: &str) -> Option<String> {
    let name: String = text.trim_start().chars().take_while(|c| is_name(*c)).collect();
    (!name.is_empty() && name != "super").then_some(name)
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The modules that use themselves through others.
fn cycles(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reachable = |from: &String| {
        let mut found = BTreeSet::new();
        let mut open: Vec<&String> = uses[from].iter().collect();
        while let Some(next) = open.pop() {
            if found.insert(next) {
                open.extend(uses.get(next).into_iter().flatten());
            }
        }
        found
    };
    uses.keys().filter(|module| reachable(module).contains(module)).cloned().collect()
}

#[test]
fn modules_form_no_cycles() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = [
        "crates/bundle",
        "crates/graph",
        "crates/kernels",
        "crates/prompt",
        "crates/media",
        "crates/quality",
        "crates/cli",
        "export",
        "engines",
        "calibration",
        "runtime",
    ];
    for folder in folders {
        let uses = module_uses(&root.join(folder).join("src"));
        assert!(!uses.is_empty(), "{folder} was not read");
        assert_eq!(cycles(&uses), Vec::<String>::new(), "modules of {folder} that use each other");
    }
}

#[test]
fn cycles_are_found_through_groups_supers_and_reexports() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "mod a;\nmod b;\nmod c;\nmod error;\npub use b::{Other, Thing};\n");
    write("error.rs", "use crate::{a, b, c};\n");
    write("a.rs", "use crate::{Thing, error::Error};\n");
    write("b/mod.rs", "use super::c::{self, C};\nuse crate::Error;\n// use crate::a;\n");
    write("b/deep.rs", "use super::super::error::Error;\n#[cfg(test)]\nmod tests { use crate::a; }\n");
    write("c.rs", "use std::fs;\n");
    assert_eq!(cycles(&module_uses(folder.path())), Vec::<String>::new());
    write("c.rs", "fn c() -> crate::a::A { loop {} }\n");
    assert_eq!(cycles(&module_uses(folder.path())), ["a", "b", "c"]);
}
