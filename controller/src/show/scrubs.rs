//! Health checks of what scrubs found and nobody has acknowledged.

use stor_api::objects::{Check, ScrubState, Severity, Volume};

use super::health::check;
use crate::catalogue::row;
use crate::catalogue::scrub::{Scrub, ScrubPhase};

/// What scrubs say of all volumes.
pub(super) fn checks(volumes: &[row::Volume]) -> Vec<Check> {
    let mut checks = Vec::new();
    for volume in volumes {
        if let Some(scrub) = &volume.scrub {
            checks.extend(found(volume, scrub));
            checks.extend(overdue(volume, scrub));
        }
    }
    checks
}

/// A scrub under way, and why it does not go on.
pub(super) fn work(volume: &Volume) -> Option<String> {
    let scrub = volume
        .scrub
        .as_ref()
        .filter(|scrub| scrub.state == ScrubState::Running)?;
    let waits = match scrub.reason.as_str() {
        "" => String::new(),
        reason => format!(", waits: {reason}"),
    };
    Some(format!(
        "volume {}: {:.1} % of its copies compared{waits}",
        volume.name, scrub.percent
    ))
}

fn found(volume: &row::Volume, scrub: &Scrub) -> Option<Check> {
    if scrub.open == 0 {
        return None;
    }
    let name = &volume.name;
    let places = |count: u64| match count {
        1 => "1 place".to_owned(),
        count => format!("{count} places"),
    };
    let bad = match scrub.open_bad {
        0 => "all were made equal to what most copies held".to_owned(),
        bad => format!("of {bad} it is not known which copy was right, or they differ still"),
    };
    let message = format!(
        "scrubs of volume {name} found {} where copies differed; {bad}",
        places(scrub.open)
    );
    let severity = if scrub.open_bad > 0 || scrub.phase == ScrubPhase::TooMuch {
        Severity::Error
    } else {
        Severity::Warning
    };
    let remedy = format!(
        "storctl event list tells where and on which nodes: look at their disks, check the file system, and then: \
         storctl volume scrub {name} --acknowledge"
    );
    Some(check(
        "SCRUB_FOUND",
        severity,
        message,
        format!("volume/{name}"),
        &remedy,
    ))
}

fn overdue(volume: &row::Volume, scrub: &Scrub) -> Option<Check> {
    (scrub.phase == ScrubPhase::Overdue).then(|| {
        let name = &volume.name;
        check(
            "SCRUB_OVERDUE",
            Severity::Warning,
            format!("the last scrub of volume {name} did not come to its end"),
            format!("volume/{name}"),
            &format!("see why with storctl volume describe {name}, then: storctl volume scrub {name}"),
        )
    })
}
