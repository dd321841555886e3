//! The committed tables are what the model says: all configurations are searched again, the bad
//! histories are found again, every rule has a line, every property is broken by some rule's absence.
#![expect(clippy::expect_used, clippy::panic, reason = "a test")]

use stor_model::check::search;
use stor_model::rules::Rule;
use stor_model::scope::Scope;
use stor_model::table::{OUTSIDE, rule_line};

const DOCUMENT: &str = include_str!("../../../docs/model.md");

/// What can be broken.
const PROPERTIES: &[&str] = &[
    "a flushed write is not on every in-sync disk",
    "an acknowledged write is lost",
    "a read goes back behind another",
    "an older epoch answers after a newer",
    "answered with fewer copies than the minimum",
    "in-sync members differ where clean",
    "a ready snapshot differs between members or lacks a write",
];

fn table(name: &str) -> Vec<&'static str> {
    let begin = format!("<!-- {name}: begin -->\n");
    let end = format!("<!-- {name}: end -->");
    let (_, rest) = DOCUMENT.split_once(&begin).expect("the table begins");
    let (lines, _) = rest.split_once(&end).expect("the table ends");
    lines.lines().skip(2).collect()
}

fn line_of(rule: Rule) -> &'static str {
    let name = format!("(`{rule:?}`)");
    let found = table("rules").into_iter().find(|line| line.contains(&name));
    found.unwrap_or_else(|| {
        panic!("{rule:?} has no line in docs/model.md: `stor-model table --write docs/model.md`")
    })
}

fn cells(line: &str) -> Vec<&str> {
    line.split('|').map(str::trim).collect()
}

#[test]
fn every_rule_has_a_line_and_it_breaks_or_says_why_not() {
    for rule in Rule::ALL {
        let entry = rule.entry();
        let cells = cells(line_of(*rule));
        assert!(
            cells[1].starts_with(&format!("{} {}", entry.id, entry.words)),
            "{rule:?}: {cells:?}"
        );
        assert_eq!(cells[2], entry.scope, "{rule:?}");
        let breaks = cells[3].parse::<usize>().is_ok();
        assert_eq!(breaks, entry.why_not.is_empty(), "{rule:?}: {cells:?}");
    }
    for number in 1..=16 {
        let id = format!("| R{number} ");
        assert!(
            table("rules").iter().any(|line| line.starts_with(&id)),
            "R{number} has no line"
        );
    }
    assert_eq!(table("rules").len(), Rule::ALL.len() + OUTSIDE.len());
}

#[test]
fn bad_histories_are_as_committed() {
    let short = |rule: &Rule| cells(line_of(*rule))[3].parse::<usize>().is_ok();
    let rules: Vec<Rule> = Rule::ALL.iter().copied().filter(short).collect();
    assert!(rules.len() > 15, "few rules are checked: {rules:?}");
    for rule in rules {
        assert_eq!(rule_line(rule), line_of(rule));
    }
}

#[test]
fn all_configurations_hold() {
    for scope in Scope::ALL {
        let outcome = search(scope, &[]);
        assert_eq!(outcome.bad, None, "{}", scope.name);
        let line = format!(
            "| {} | {} | {} | holds |",
            scope.name, scope.about, outcome.states
        );
        assert!(
            table("configurations").contains(&line.as_str()),
            "not in docs/model.md: {line}"
        );
    }
}

#[test]
fn every_property_is_broken_by_some_absence() {
    for property in PROPERTIES {
        assert!(
            table("rules").iter().any(|line| line.contains(property)),
            "nothing breaks: {property}"
        );
    }
}

#[test]
fn all_configurations_are_in_the_table() {
    let lines = table("configurations");
    assert_eq!(lines.len(), Scope::ALL.len());
    for (scope, line) in Scope::ALL.iter().zip(lines) {
        assert!(
            line.starts_with(&format!("| {} | {} |", scope.name, scope.about)),
            "{line}"
        );
        assert!(line.ends_with("| holds |"), "{line}");
    }
}
