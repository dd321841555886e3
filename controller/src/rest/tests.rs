//! Nothing is served that the document does not tell of, and the reverse.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;
use axum::response::IntoResponse;

use super::problem::{Failure, OUTCOME, Outcome};
use super::{BELOW, documented, entrances, openapi};
use crate::cluster::Cluster;

/// The paths of a router. It tells them only for debugging; should it stop to, the comparison fails.
fn paths<S>(router: &Router<S>) -> BTreeSet<String> {
    let text = format!("{router:?}");
    // Every router has fallbacks; these are no routes.
    let text = text.split("fallback_router").next().unwrap();
    let quoted = text.split('"').skip(1).step_by(2);
    quoted
        .filter(|part| part.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

/// A change with a condition that was made is not to be tried again: its answer would be that the condition fails.
#[test]
fn what_fails_after_a_change_may_have_been_done() {
    let outcome = |failure: Failure| {
        let response = failure.into_response();
        let word = response
            .headers()
            .get(OUTCOME)
            .map(|word| word.as_bytes().to_vec());
        word.and_then(|word| Outcome::from_word(&word))
    };
    assert_eq!(outcome(Failure::no_leader()), Some(Outcome::NotDone));
    assert_eq!(
        outcome(Failure::no_leader().after_change()),
        Some(Outcome::Unknown)
    );
    assert_eq!(outcome(Failure::not_found("x").after_change()), None);
}

#[test]
fn every_route_is_in_the_document() {
    let (led, _): (Router<Arc<Cluster>>, _) = documented().split_for_parts();
    let mut served = paths(&led);
    served.extend(paths(&entrances()));
    assert!(served.remove(BELOW), "{served:?}");
    let document = openapi();
    let told: BTreeSet<String> = document.paths.paths.keys().cloned().collect();
    assert_eq!(served, told);
}
