//! The tables of `docs/model.md`.

use std::fmt::Write;

use crate::check::{Outcome, search};
use crate::rules::Rule;
use crate::scope::Scope;

/// Every configuration with all rules on.
pub fn configurations() -> String {
    let mut text = String::from("| configuration | histories with | states | |\n|---|---|---|---|\n");
    for scope in Scope::ALL {
        let outcome = search(scope, &[]);
        let verdict = if outcome.bad.is_some() {
            "**broken**"
        } else {
            "holds"
        };
        let line = format!(
            "| {} | {} | {} | {verdict} |",
            scope.name, scope.about, outcome.states
        );
        append(&mut text, &line);
    }
    text
}

/// Rules the model has nothing to take out for: id, words, why.
pub const OUTSIDE: &[(&str, &str, &str)] = &[(
    "R14",
    "identity on every message",
    "There is one volume, and no message is damaged or reaches a replica it is not meant for; the epoch in a \
     message is R5's line",
)];

/// Every rule, taken out.
pub fn rules() -> String {
    let mut text = String::from("| taken out | configuration | steps | what happens |\n|---|---|---|---|\n");
    for rule in Rule::ALL {
        append(&mut text, &rule_line(*rule));
    }
    for (id, words, why) in OUTSIDE {
        append(&mut text, &format!("| {id} {words} | - | - | {why} |"));
    }
    text
}

/// The line of one rule.
pub fn rule_line(rule: Rule) -> String {
    let entry = rule.entry();
    let Some(scope) = Scope::named(entry.scope) else {
        return format!("| {rule:?} | no configuration {} | - | - |", entry.scope);
    };
    let Outcome { states, bad } = search(scope, &[rule]);
    let (steps, what) = match &bad {
        // The last line says what is broken.
        Some(bad) => (
            (bad.lines.len() - 1).to_string(),
            format!("{}: {}", bad.broken, last_words(&bad.lines)),
        ),
        None => (
            "-".to_owned(),
            format!("holds, {states} states. {}", entry.why_not),
        ),
    };
    format!(
        "| {} {} (`{rule:?}`) | {} | {steps} | {what} |",
        entry.id, entry.words, scope.name
    )
}

/// The step that breaks it.
fn last_words(lines: &[String]) -> &str {
    lines.iter().rev().nth(1).map_or("", String::as_str)
}

fn append(text: &mut String, line: &str) {
    // Writing into a string can't fail.
    let _ok = writeln!(text, "{line}").is_ok();
}

/// Puts a table between the markers of that name.
pub fn replace(text: &str, name: &str, table: &str) -> Option<String> {
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let (before, rest) = text.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{table}{end}{after}"))
}
