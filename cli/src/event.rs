//! `storctl event …`

use clap::Subcommand;
use stor_api::objects::{Event, Severity};

use crate::args::Format;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::print;
use crate::table::{Cell, Column, Table, Tone};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum EventVerb {
    /// What happened, oldest first
    List {
        /// Go on with what happens, until Ctrl-C; with -o json one event a line
        #[arg(short, long)]
        follow: bool,
        /// Only the newest N; 0: all that are kept [default: 100, with --follow 10]
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
    },
}

/// Shown without --limit.
const NEWEST: usize = 100;
/// Shown before those that are followed: enough to see where one is.
const NEWEST_FOLLOWED: usize = 10;

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: EventVerb) -> Result<(), Failure> {
    let EventVerb::List { follow, limit } = verb;
    let limit = limit.unwrap_or(if follow { NEWEST_FOLLOWED } else { NEWEST });
    let events = newest(context.client.events(0).await?, limit);
    if !follow {
        return context.out.list(events, "nothing has happened yet", table);
    }
    let last = events.last().map_or(0, |e| e.seq);
    for event in &events {
        print(&line(event, context.out.format)?)?;
    }
    let mut stream = context.client.follow_events(last);
    loop {
        print(&line(&stream.next().await?, context.out.format)?)?;
    }
}

/// The last `limit`, or all with 0.
fn newest(mut events: Vec<Event>, limit: usize) -> Vec<Event> {
    let more = events.len().saturating_sub(limit);
    if limit > 0 && more > 0 {
        events.drain(..more);
    }
    events
}

/// One event of a stream that has no end, and so can't be one table or document.
fn line(event: &Event, format: Format) -> Result<String, Failure> {
    match format {
        Format::Json => serde_json::to_string(event)
            .map(|json| format!("{json}\n"))
            .map_err(|e| Failure::failed(format!("the event is no JSON: {e}"))),
        Format::Yaml => serde_yaml_ng::to_string(event)
            .map(|yaml| format!("---\n{yaml}"))
            .map_err(|e| Failure::failed(format!("the event is no YAML: {e}"))),
        Format::Table => {
            let (word, tone) = severity(event.severity);
            let time = short_time(&event.time);
            Ok(format!(
                "{time}  {}  {:<22}  {:<16}  {}\n",
                tone.paint(&format!("{word:<7}")),
                event.kind,
                event.object,
                event.message
            ))
        }
    }
}

fn severity(severity: Severity) -> (&'static str, Tone) {
    match severity {
        Severity::Info => ("info", Tone::Faint),
        Severity::Warning => ("warning", Tone::Warn),
        Severity::Error => ("error", Tone::Bad),
    }
}

/// RFC 3339 without fractions of a second.
pub(crate) fn short_time(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
        Err(_) => time.to_owned(),
    }
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new(&[
        Column::left("TIME"),
        Column::left("SEVERITY"),
        Column::left("KIND"),
        Column::left("OBJECT"),
        Column::left("MESSAGE"),
    ]);
    for event in events {
        let (word, tone) = severity(event.severity);
        table.row([
            short_time(&event.time).into(),
            Cell::new(word, tone),
            event.kind.clone().into(),
            event.object.clone().into(),
            event.message.clone().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(seq: u64, severity: Severity) -> Event {
        Event {
            seq,
            time: "2026-01-01T10:20:30.456789Z".into(),
            severity,
            kind: "replica-removed".into(),
            object: "volume/db1".into(),
            message: "replica 2 on s2 left the in-sync set: unreachable".into(),
        }
    }

    #[test]
    fn list_and_lines() {
        let events = [
            event(1, Severity::Info),
            event(2, Severity::Warning),
            event(3, Severity::Error),
        ];
        let lines: String = events.iter().map(|e| line(e, Format::Table).unwrap()).collect();
        let text = format!("{}\n{lines}", table(&events).render(None));
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn the_newest_are_the_last() {
        let events: Vec<Event> = (1..=5).map(|seq| event(seq, Severity::Info)).collect();
        let seqs = |limit| -> Vec<u64> { newest(events.clone(), limit).iter().map(|e| e.seq).collect() };
        assert_eq!(seqs(2), [4, 5]);
        assert_eq!(seqs(9), [1, 2, 3, 4, 5]);
        assert_eq!(seqs(0), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_followed_event_is_one_line_of_json() {
        let text = line(&event(7, Severity::Info), Format::Json).unwrap();
        assert_eq!(text.lines().count(), 1);
        assert_eq!(
            serde_json::from_str::<Event>(&text).unwrap(),
            event(7, Severity::Info)
        );
    }
}
