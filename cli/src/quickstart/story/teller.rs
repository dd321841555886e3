//! Says the steps of the story as they are done: a line each for people, one document at the end for programs.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::args::Format;
use crate::failure::{Exit, Failure};
use crate::output::{Output, print};
use crate::table::Tone;
use crate::wait::seconds;

/// Width of a step's name.
const NAME: usize = 42;
/// Width of its time.
const TIME: usize = 8;

/// See the module.
#[derive(Debug)]
pub(crate) struct Teller {
    out: Output,
    begin: Instant,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    name: String,
    passed: bool,
    milliseconds: u128,
    result: String,
}

#[derive(Serialize)]
struct Story<'a> {
    passed: bool,
    steps: &'a [Step],
}

impl Teller {
    pub(crate) fn new(out: Output, dir: &Path) -> Result<Self, Failure> {
        if out.format == Format::Table {
            print(&format!(
                "The story of a volume, on the cluster in {}\n\n",
                dir.display()
            ))?;
            print(&format!(
                "{:>3}  {:<NAME$} {:>TIME$}  RESULT\n",
                "", "STEP", "TIME"
            ))?;
        }
        Ok(Self {
            out,
            begin: Instant::now(),
            steps: Vec::new(),
        })
    }

    /// Does a step and says what it answered, within `limit`.
    pub(crate) async fn step<T>(
        &mut self,
        name: &str,
        limit: Duration,
        work: impl Future<Output = Result<(T, String), Failure>>,
    ) -> Result<T, Failure> {
        let begin = Instant::now();
        let ended = tokio::time::timeout(limit, Box::pin(work))
            .await
            .unwrap_or_else(|_| {
                Err(Failure::new(
                    Exit::TimedOut,
                    format!("it is not done after {}", seconds(limit)),
                ))
            });
        let (value, result) = match ended {
            Ok((value, result)) => (Ok(value), result),
            Err(failure) => {
                let short = failure.what.clone();
                (Err(failure.during(name)), short)
            }
        };
        let took = begin.elapsed();
        let step = Step {
            name: name.to_owned(),
            passed: value.is_ok(),
            milliseconds: took.as_millis(),
            result,
        };
        if self.out.format == Format::Table {
            print(&line(self.steps.len() + 1, &step))?;
        }
        self.steps.push(step);
        value
    }

    /// The last word.
    pub(crate) fn end(&self, passed: bool) -> Result<(), Failure> {
        let story = Story {
            passed,
            steps: &self.steps,
        };
        self.out.object(&story, |story| {
            let took = seconds(self.begin.elapsed());
            let count = story.steps.iter().filter(|s| s.passed).count();
            if passed {
                format!(
                    "\n{} in {took}\n",
                    Tone::Good.paint(&format!("all {count} steps passed"))
                )
            } else {
                format!(
                    "\n{} after {took}\n",
                    Tone::Bad.paint(&format!("failed at step {}", count + 1))
                )
            }
        })
    }
}

fn line(number: usize, step: &Step) -> String {
    let time = seconds(Duration::from_millis(
        u64::try_from(step.milliseconds).unwrap_or(u64::MAX),
    ));
    let result = if step.passed {
        step.result.clone()
    } else {
        Tone::Bad.paint(&format!("FAILED: {}", step.result))
    };
    format!("{number:>3}  {:<NAME$} {time:>TIME$}  {result}\n", step.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Teller {
        Teller {
            out: Output { format: Format::Json },
            begin: Instant::now(),
            steps: Vec::new(),
        }
    }

    #[tokio::test]
    async fn a_step_that_fails_is_told_and_named() {
        let mut teller = silent();
        let value = teller
            .step("create", Duration::from_mins(1), async {
                Ok((7, "seven".to_owned()))
            })
            .await;
        assert_eq!(value.unwrap(), 7);
        let failed = teller
            .step("fill", Duration::from_mins(1), async {
                Err::<((), String), _>(Failure::failed("full"))
            })
            .await;
        assert_eq!(failed.unwrap_err().what, "fill: full");
        assert_eq!(
            teller.steps.iter().map(|s| s.passed).collect::<Vec<_>>(),
            [true, false]
        );
    }

    #[tokio::test]
    async fn a_step_that_hangs_ends() {
        let mut teller = silent();
        let hung = teller
            .step(
                "hang",
                Duration::from_millis(20),
                std::future::pending::<Result<((), String), Failure>>(),
            )
            .await;
        assert_eq!(hung.unwrap_err().exit, Exit::TimedOut);
    }

    #[test]
    fn lines_are_aligned() {
        let step = |name: &str, passed, milliseconds| Step {
            name: name.into(),
            passed,
            milliseconds,
            result: "figures".into(),
        };
        let text = line(1, &step("create", true, 84)) + &line(2, &step("a longer name", false, 61_500));
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
