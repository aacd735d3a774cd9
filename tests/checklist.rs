//! `ci/checklist.md`: every box is ticked, and every test and scenario that it names is in the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One box: its number of the line, whether it is ticked, its text, and what is said to hold it.
struct Item {
    line: usize,
    is_ticked: bool,
    text: String,
    holders: Vec<String>,
}

/// Reads `- [x] text` and the lines below it that begin with `held by`, whose names stand in backquotes.
fn read(checklist: &str) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for (index, line) in checklist.lines().enumerate() {
        let line = line.trim();
        if let Some(rest) = line.strip_prefix("- [") {
            let (mark, text) = rest.split_once(']').expect("a box ends");
            let is_ticked = mark == "x";
            items.push(Item { line: index + 1, is_ticked, text: text.trim().to_owned(), holders: Vec::new() });
        } else if let (Some(names), Some(item)) = (line.strip_prefix("- held by "), items.last_mut()) {
            item.holders.extend(names.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    items
}

/// Names of all test functions, plain and as `path/of/file.rs::name`, and of all scenarios as
/// `path/of/file.feature: name`.
fn known_tests() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for folder in ["src", "engine", "bdd", "bench", "tests"] {
        for path in files_below(&root().join(folder)) {
            let place = path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("a source file is text");
            match path.extension().and_then(|e| e.to_str()) {
                Some("rs") => known.extend(functions(&text).map(|name| format!("{place}::{name}"))),
                _ => known.extend(scenarios(&text).map(|name| format!("{place}: {name}"))),
            }
        }
    }
    known
}

/// Functions under `#[test]`.
fn functions(text: &str) -> impl Iterator<Item = String> {
    let after_test = text.split("#[test]").skip(1);
    after_test.filter_map(|rest| {
        let name = rest.split_once("fn ")?.1;
        Some(name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
    })
}

fn scenarios(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let line = line.trim();
        let name = line.strip_prefix("Scenario Outline:").or_else(|| line.strip_prefix("Scenario:"))?;
        Some(name.trim().to_owned())
    })
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let is_source = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs" || e == "feature");
    let below = paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] });
    below.filter(is_source).collect()
}

/// What is wrong with a list, given the tests that there are.
fn faults(items: &[Item], known: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for item in items {
        let at = format!("line {}: {}", item.line, item.text);
        if !item.is_ticked {
            faults.push(format!("{at}: not ticked"));
        }
        if item.holders.is_empty() {
            faults.push(format!("{at}: nothing holds it"));
        }
        let gone = item.holders.iter().filter(|holder| !known.contains(*holder));
        faults.extend(gone.map(|holder| format!("{at}: `{holder}` does not exist")));
    }
    faults
}

#[test]
fn every_box_is_ticked_and_held_by_a_test_that_exists() {
    let items = read(&fs::read_to_string(root().join("ci/checklist.md")).expect("ci/checklist.md"));
    assert!(items.len() >= 90, "only {} boxes", items.len());
    let faults = faults(&items, &known_tests());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_list_that_lies_is_noticed() {
    let known = known_tests();
    let here = "tests/checklist.rs::a_list_that_lies_is_noticed";
    let good = format!("- [x] A promise\n  - held by `{here}`\n");
    assert!(faults(&read(&good), &known).is_empty());
    for bad in [
        good.replace("[x]", "[ ]"),
        good.replace("is_noticed", "is_not_noticed"),
        good.replace("tests/checklist.rs", "tests/other.rs"),
        good.replace("- held by", "- hoped for by"),
    ] {
        assert_ne!(bad, good);
        assert_eq!(faults(&read(&bad), &known).len(), 1, "{bad}");
    }
}
