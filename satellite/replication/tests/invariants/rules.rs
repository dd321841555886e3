//! Every rule has a section in the document, a place in the code and a test, and nothing quotes a rule that
//! does not exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Rules quoted in the sources below a folder.
fn quoted(folder: &str) -> BTreeSet<u32> {
    let mut paths = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut paths);
    paths
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let quote = |line: &str| {
                line.trim()
                    .strip_prefix("//= docs/replication.md#R")?
                    .parse()
                    .ok()
            };
            text.lines().filter_map(quote).collect::<Vec<u32>>()
        })
        .collect()
}

#[test]
fn each_rule_is_written_kept_and_tested() {
    let rules: BTreeSet<u32> = (1..=16).collect();
    assert_eq!(quoted("src"), rules, "rules quoted in the code");
    assert_eq!(quoted("tests/invariants"), rules, "rules with a test");
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/replication.md");
    let document = std::fs::read_to_string(document).unwrap();
    let sections: BTreeSet<u32> = document
        .lines()
        .filter_map(|line| {
            line.strip_prefix("### R")?
                .split(' ')
                .next()?
                .trim_end_matches('.')
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(sections, rules, "sections of the document");
    for rule in rules {
        let prefix = format!("r{rule}_");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/invariants");
        let named = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .find(|name| name.starts_with(&prefix));
        let named = named.unwrap_or_else(|| panic!("R{rule} has no test file"));
        assert!(
            document.contains(named.trim_end_matches(".rs")),
            "the document does not name {named}"
        );
    }
}

/// What is between backquotes, in order.
fn quotes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn places_named_by_the_document_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../../docs/replication.md")).unwrap();
    let mut named = 0;
    for section in document.split("\n### R").skip(1) {
        let section = section.split("\n## ").next().unwrap_or_default();
        let mut source: Option<(&str, String)> = None;
        for name in quotes(section) {
            let path = root.join("src").join(name);
            if path.extension().is_some_and(|end| end == "rs") {
                let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
                source = Some((name, text));
            } else if let Some((file, text)) = &source
                && [')', ',']
                    .iter()
                    .any(|end| section.contains(&format!("`{name}`{end}")))
            {
                assert!(text.contains(name), "{file} has no {name}");
                named += 1;
            }
        }
    }
    assert!(named > 20, "{named} places named");
}
