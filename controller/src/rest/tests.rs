//! Nothing is served that the document does not tell of, and the reverse.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Router;

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
