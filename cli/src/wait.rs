//! Waiting until what was asked for is done: looks at the cluster again and again, with a spinner on a
//! terminal, until the command's deadline.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::args::Format;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::note;

/// Time between the first two looks; grows up to [`LONGEST_PAUSE`]. Short, because creating and attaching
/// take a few tens of milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a look found.
#[derive(Debug)]
pub(crate) enum Look<T> {
    /// It is done.
    Done(T),
    /// Not yet; what it is doing, and how much of it is done where that is known (0 to 100).
    Pending(String, Option<f64>),
}

/// Calls `look` until it is done, fails, or the time is over. `what` is what the user waits for: "volume db1".
pub(crate) async fn until<T>(
    context: &Context,
    what: &str,
    mut look: impl AsyncFnMut() -> Result<Look<T>, Failure>,
) -> Result<T, Failure> {
    let mut shown = Shown::new(context, what);
    let mut pause = FIRST_PAUSE;
    loop {
        let doing = match look().await {
            Ok(Look::Done(value)) => {
                shown.clear();
                return Ok(value);
            }
            Ok(Look::Pending(doing, percent)) => {
                shown.say(&doing, percent);
                doing
            }
            Err(failure) => {
                shown.clear();
                return Err(failure);
            }
        };
        let left = context.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            shown.clear();
            let waited = seconds(context.timeout);
            return Err(Failure::new(Exit::TimedOut, format!("{what} is not done after {waited}"))
                .why(doing)
                .help("the cluster goes on with it: `storctl status` shows how far it is; --timeout waits longer"));
        }
        tokio::time::sleep(pause.min(left)).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// A time for people.
pub(crate) fn seconds(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else if time.subsec_millis() == 0 {
        format!("{} s", time.as_secs())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// The spinner, or plain lines where there is no terminal.
struct Shown {
    bar: Option<ProgressBar>,
    plain: bool,
    what: String,
    last: String,
    since: Instant,
}

/// What is done sooner is not announced.
const QUIET: Duration = Duration::from_millis(700);

impl Shown {
    fn new(context: &Context, what: &str) -> Self {
        let people = context.out.format == Format::Table;
        let terminal = std::io::stderr().is_terminal();
        Self {
            bar: (people && terminal).then(spinner),
            plain: people && !terminal,
            what: what.to_owned(),
            last: String::new(),
            since: Instant::now(),
        }
    }

    fn say(&mut self, doing: &str, percent: Option<f64>) {
        let percent = percent.map(|p| format!(" {p:.0} %")).unwrap_or_default();
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {doing}{percent}", self.what));
        } else if self.plain && self.last != doing && self.since.elapsed() > QUIET {
            note(&format!("{}: {doing}", self.what));
            doing.clone_into(&mut self.last);
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner:.cyan} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
