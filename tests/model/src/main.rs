//! `stor-model check`, `without RULE`, `table`: see `docs/model.md`.
#![expect(clippy::print_stdout, reason = "a command's output")]

use std::process::ExitCode;
use std::time::Instant;

use stor_model::check::search;
use stor_model::rules::Rule;
use stor_model::scope::Scope;
use stor_model::table;

const USAGE: &str =
    "stor-model check [CONFIGURATION..] | without RULE [CONFIGURATION] | table [--write FILE] | rules";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["check", names @ ..] => check(names),
        ["without", rule] => without(rule, None),
        ["without", rule, scope] => without(rule, Some(scope)),
        ["table"] => {
            println!("{}\n{}", table::configurations(), table::rules());
            ExitCode::SUCCESS
        }
        ["table", "--write", file] => write(file),
        ["rules"] => {
            for rule in Rule::ALL {
                println!(
                    "{:<4} {:<14} {}",
                    rule.entry().id,
                    format!("{rule:?}"),
                    rule.entry().words
                );
            }
            ExitCode::SUCCESS
        }
        _ => fail(&format!("usage: {USAGE}")),
    }
}

fn fail(message: &str) -> ExitCode {
    println!("{message}");
    ExitCode::FAILURE
}

/// All rules on.
fn check(names: &[&str]) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for scope in Scope::ALL
        .iter()
        .filter(|scope| names.is_empty() || names.contains(&scope.name))
    {
        let begun = Instant::now();
        let outcome = search(scope, &[]);
        let seconds = begun.elapsed().as_secs_f64();
        let verdict = if outcome.bad.is_some() { "BROKEN" } else { "holds" };
        println!(
            "{:<16} {:>9} states  {verdict}  ({seconds:.1} s)",
            scope.name, outcome.states
        );
        if let Some(bad) = outcome.bad {
            print(&bad.lines);
            code = ExitCode::FAILURE;
        }
    }
    code
}

fn print(lines: &[String]) {
    for (number, line) in (1..).zip(lines) {
        if line.starts_with("->") {
            println!("      {line}");
        } else {
            println!("  {number:>3} {line}");
        }
    }
}

fn without(rule: &str, scope: Option<&str>) -> ExitCode {
    let Some(rule) = Rule::named(rule) else {
        return fail(&format!("no rule {rule}; `stor-model rules` lists them"));
    };
    let entry = rule.entry();
    let Some(scope) = Scope::named(scope.unwrap_or(entry.scope)) else {
        return fail(&format!("{}: {}", entry.words, entry.why_not));
    };
    println!(
        "{} taken out: {}. Configuration {}: {}.",
        entry.id, entry.words, scope.name, scope.about
    );
    let outcome = search(scope, &[rule]);
    match outcome.bad {
        Some(bad) => print(&bad.lines),
        None => println!("holds: {} states. {}", outcome.states, entry.why_not),
    }
    ExitCode::SUCCESS
}

fn write(file: &str) -> ExitCode {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return fail(&format!("reading {file}: {error}")),
    };
    let text = table::replace(&text, "configurations", &table::configurations());
    let text = text.and_then(|text| table::replace(&text, "rules", &table::rules()));
    let Some(text) = text else {
        return fail(&format!("{file} lacks the markers of a table"));
    };
    match std::fs::write(file, text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("writing {file}: {error}")),
    }
}
