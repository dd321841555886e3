//! `storctl volume scrub`.

use stor_api::client::{Client, Wish};
use stor_api::objects::{Scrub, ScrubSpec, ScrubState, Volume};
use stor_api::size;

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::wait::{self, Look};

/// Of `volume scrub`.
#[derive(Debug, clap::Args)]
pub(crate) struct ScrubArgs {
    /// Its name
    #[arg(add = completion::volumes(), value_parser = args::existing)]
    name: String,
    /// Wait until it has ended; a scrub of a large volume takes hours
    #[arg(long, conflicts_with_all = ["cancel", "acknowledge"])]
    wait: bool,
    /// Only tell what differs, change nothing
    #[arg(long, conflicts_with_all = ["cancel", "acknowledge"])]
    check: bool,
    /// Read at most so much of each replica a second, such as 100Mi; a quarter of that while clients wait for something
    /// [default: the cluster's, 32Mi]
    #[arg(long, value_name = "SIZE", value_parser = args::rate, conflicts_with_all = ["cancel", "acknowledge"])]
    rate: Option<u64>,
    /// End the one that is under way; what it has mended stays so
    #[arg(long, conflicts_with = "acknowledge")]
    cancel: bool,
    /// What was found was looked at: the health check about it ends
    #[arg(long)]
    acknowledge: bool,
}

pub(super) async fn scrub(context: &Context, args: ScrubArgs) -> Result<(), Failure> {
    let (client, name) = (&context.client, args.name.as_str());
    if args.acknowledge {
        let wish = Wish::AcknowledgeScrub { volume: name };
        if context.planned(&wish).await? {
            return Ok(());
        }
        let volume = client.acknowledge_scrub(name).await?;
        return context.out.object(&volume, |_| {
            format!("what scrubs found in volume {name} is taken for seen\n")
        });
    }
    if args.cancel {
        if context.planned(&Wish::CancelScrub { volume: name }).await? {
            return Ok(());
        }
        let volume = client.cancel_scrub(name).await?;
        return context.out.object(&volume, told);
    }
    let spec = ScrubSpec {
        check_only: args.check,
        bytes_per_second: args.rate,
    };
    let wish = Wish::Scrub {
        volume: name,
        spec: &spec,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let begun = client.scrub(name, &spec).await?;
    if !args.wait || context.no_wait {
        return context.out.object(&begun, told);
    }
    let run = begun.scrub.map_or(0, |scrub| scrub.run);
    let what = format!("the scrub of volume {name}");
    let volume = wait::until(context, &what, || look(client, name, run)).await?;
    context.out.object(&volume, told)?;
    match volume.scrub.filter(|scrub| scrub.run == run) {
        Some(scrub) if scrub.state == ScrubState::Complete && scrub.remaining == 0 => Ok(()),
        Some(scrub) if scrub.state == ScrubState::Complete => Err(Failure::failed(format!(
            "{} of volume {name} differ still",
            places(scrub.remaining)
        ))
        .help("storctl event list tells where")),
        _ => Err(Failure::failed(format!("{what} did not come to its end"))),
    }
}

fn places(count: u32) -> String {
    match count {
        1 => "1 place".to_owned(),
        count => format!("{count} places"),
    }
}

fn told(volume: &Volume) -> String {
    match &volume.scrub {
        None => format!("volume {} was never scrubbed\n", volume.name),
        Some(scrub) => format!("scrub of volume {}: {}\n", volume.name, in_words(scrub)),
    }
}

/// A scrub in one line.
pub(super) fn in_words(scrub: &Scrub) -> String {
    let compared = size::format(scrub.compared_bytes);
    let mut text = match scrub.state {
        ScrubState::Running => format!("under way, {compared} compared ({:.0} %)", scrub.percent),
        ScrubState::Complete => format!("complete, {compared} compared"),
        ScrubState::TooMuch => format!("ended at {compared}, as very much differs"),
        ScrubState::Cancelled => format!("ended by request at {compared}"),
        ScrubState::Overdue => format!("given up at {compared}, as it took too long"),
    };
    text.push_str(&found(scrub));
    if !scrub.reason.is_empty() {
        text.push_str("; waits: ");
        text.push_str(&scrub.reason);
    }
    text
}

fn found(scrub: &Scrub) -> String {
    if scrub.found == 0 {
        return match scrub.state {
            ScrubState::Complete => "; all copies are equal".to_owned(),
            _ => "; no difference so far".to_owned(),
        };
    }
    let mut text = format!("; {} found", places(scrub.found));
    let parts = [
        (scrub.mended, "mended"),
        (scrub.remaining, "left"),
        (scrub.chosen, "not known which copy is right"),
    ];
    for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
        text.extend([format!(", {count} {what}")]);
    }
    text
}

async fn look(client: &Client, name: &str, run: u64) -> Result<Look<Volume>, Failure> {
    let volume = client.volume(name).await?;
    Ok(match &volume.scrub {
        Some(scrub) if scrub.run == run && scrub.state == ScrubState::Running => {
            Look::Pending(in_words(scrub), Some(scrub.percent))
        }
        _ => Look::Done(volume),
    })
}
