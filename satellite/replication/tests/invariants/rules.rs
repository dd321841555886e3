//! Every rule of the document is a sentence there, kept by some code and broken by some test, and each names the others:
//! the section names places in the code and a file of tests, code and tests quote the rule. Nothing quotes a rule
//! that does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const QUOTE: &str = "//= docs/replication.md#";
/// Fewer letters than this say nothing.
const SENTENCE: usize = 40;

/// What is compared: the document, and the sources that matter, by their path below the repository's root.
#[derive(Clone)]
struct Written {
    document: String,
    sources: BTreeMap<String, String>,
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn written() -> Written {
    let mut sources = BTreeMap::new();
    for part in ["satellite", "controller", "tests"] {
        collect(&root().join(part), part, &mut sources);
    }
    Written {
        document: std::fs::read_to_string(root().join("docs/replication.md")).unwrap(),
        sources,
    }
}

fn collect(folder: &Path, name: &str, sources: &mut BTreeMap<String, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &name, sources);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let is_core = name.starts_with("satellite/replication/src/");
            if is_core || name.ends_with("/main.rs") || text.contains(QUOTE) {
                sources.insert(name, text);
            }
        }
    }
}

/// A letter and a number.
fn id(text: &str) -> Option<&str> {
    let (letter, number) = text.split_at_checked(1)?;
    let is_id = letter.chars().all(|c| c.is_ascii_uppercase()) && number.parse::<u32>().is_ok();
    is_id.then_some(text)
}

/// The rules' sections: what is below the heading, by the rule's id.
fn sections(document: &str) -> BTreeMap<&str, &str> {
    document
        .split("\n### ")
        .skip(1)
        .filter_map(|section| {
            let (heading, text) = section.split_once('\n').unwrap_or((section, ""));
            let text = text.split("\n## ").next().unwrap_or_default();
            Some((id(heading.split_once(". ")?.0)?, text))
        })
        .collect()
}

/// The rules quoted in a source.
fn quoted(source: &str) -> BTreeSet<&str> {
    let quotes = source.lines().filter_map(|line| line.trim().strip_prefix(QUOTE));
    quotes.collect()
}

/// What is between backquotes, in order.
fn in_backquotes(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether a section says something beside the names of places.
fn is_sentence(section: &str) -> bool {
    let said: String = section.split('`').step_by(2).collect();
    let letters = said.chars().filter(|c| c.is_alphabetic()).count();
    letters >= SENTENCE && said.contains('.')
}

/// Whether a file of tests is compiled: it is `main.rs` or named there.
fn is_compiled(path: &str, sources: &BTreeMap<String, String>) -> bool {
    let Some((folder, file)) = path.rsplit_once('/') else {
        return false;
    };
    let module = format!("mod {};", file.trim_end_matches(".rs"));
    let main = sources.get(&format!("{folder}/main.rs"));
    main.is_none_or(|main| file == "main.rs" || main.lines().any(|line| line.trim() == module))
}

fn has_test(source: &str) -> bool {
    let lines = source.lines().map(str::trim);
    let mut tests = lines.filter(|line| *line == "#[test]" || line.starts_with("#[tokio::test"));
    tests.next().is_some() && !source.contains("#[ignore")
}

/// What is missing, in words; nothing when all is as it has to be.
fn complaints(written: &Written) -> Vec<String> {
    let sections = sections(&written.document);
    let mut found = Vec::new();
    let mut kept = BTreeSet::new();
    let mut broken: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, source) in &written.sources {
        for rule in quoted(source) {
            if !sections.contains_key(rule) {
                found.push(format!("{path} quotes {rule}, which the document does not have"));
            }
            if !path.contains("/tests/") {
                kept.insert(rule);
            } else if has_test(source) && is_compiled(path, &written.sources) {
                broken.entry(rule).or_default().push(path);
            }
        }
    }
    for (rule, section) in sections {
        if !is_sentence(section) {
            found.push(format!("{rule} has no sentence in the document"));
        }
        if !kept.contains(rule) {
            found.push(format!("{rule} is quoted by no code"));
        }
        let names: BTreeSet<&str> = in_backquotes(section).collect();
        let named = broken.get(rule).into_iter().flatten().any(|path| {
            let file = path.rsplit('/').next().unwrap_or_default();
            names.contains(file.trim_end_matches(".rs"))
        });
        if !named {
            found.push(format!(
                "{rule} has no test: a file that its section names, that quotes it, is compiled and has a test"
            ));
        }
    }
    found
}

#[test]
fn each_rule_is_written_kept_and_tested() {
    let written = written();
    assert_eq!(complaints(&written), Vec::<String>::new());
    assert!(sections(&written.document).len() >= 16);
}

/// Each of the complaints comes when there is reason for it.
#[test]
fn what_is_missing_is_noticed() {
    let whole = written();
    let complains = |what: &str, broken: &Written| {
        let found = complaints(broken);
        let is_told = found.iter().any(|complaint| complaint.contains(what));
        assert!(is_told, "not told: {what}: {found:?}");
    };
    for (rule, section) in sections(&whole.document) {
        let mut broken = whole.clone();
        let places: Vec<&str> = in_backquotes(section).collect();
        broken.document = whole
            .document
            .replace(section, &format!("`{}`\n", places.join("`, `")));
        complains(&format!("{rule} has no sentence"), &broken);

        let quote = format!("{QUOTE}{rule}");
        let without = |is_code: bool| {
            let mut broken = whole.clone();
            for (path, source) in &mut broken.sources {
                if path.contains("/tests/") != is_code {
                    let lines = source.lines().filter(|line| line.trim() != quote);
                    *source = lines.collect::<Vec<&str>>().join("\n");
                }
            }
            broken
        };
        complains(&format!("{rule} is quoted by no code"), &without(true));
        complains(&format!("{rule} has no test"), &without(false));

        let mut broken = whole.clone();
        broken.document = whole.document.replace(&format!("\n### {rule}. "), "\n#### ");
        complains(&format!("quotes {rule}, which"), &broken);
    }
    // A file of tests that is not compiled, and one in which nothing is run, are none.
    let (path, main) = (
        "satellite/replication/tests/invariants/r1_all_members_ack.rs",
        "satellite/replication/tests/invariants/main.rs",
    );
    let mut broken = whole.clone();
    let named = broken.sources[main].replace("mod r1_all_members_ack;\n", "");
    broken.sources.insert(main.to_owned(), named);
    complains("R1 has no test", &broken);
    let mut broken = whole.clone();
    let idle = broken.sources[path].replace("#[test]", "");
    broken.sources.insert(path.to_owned(), idle);
    complains("R1 has no test", &broken);
}

#[test]
fn places_named_by_the_document_exist() {
    let Written { document, sources } = written();
    let mut named = 0;
    for section in sections(&document).values() {
        let mut source: Option<(&str, &str)> = None;
        for name in in_backquotes(section) {
            if Path::new(name).extension().is_some_and(|end| end == "rs") {
                let path = format!("satellite/replication/src/{name}");
                let text = sources.get(&path).unwrap_or_else(|| panic!("there is no {path}"));
                source = Some((name, text));
            } else if let Some((file, text)) = source
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
