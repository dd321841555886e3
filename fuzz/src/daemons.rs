//! What the daemons of one node say to each other and to the controllers.

use prost::Message as _;
use stor_controller::session::wire;
use stor_proto::satellite as proto;
use stor_replication::range::MAX_VOLUME;
use stor_satellite::agent::desired::Desired;
use stor_satellite::agent::row::Volume;
use stor_satellite::control::{FromEngine, ToEngine};
use stor_satellite::pool::disk;

/// Between an agent and an engine: JSON.
pub(crate) fn control(input: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<ToEngine>(input) {
        let again = serde_json::to_vec(&message).ok();
        let same = again.and_then(|bytes| serde_json::from_slice::<ToEngine>(&bytes).ok());
        assert_eq!(same, Some(message), "a message to an engine does not come back");
    }
    if let Ok(message) = serde_json::from_slice::<FromEngine>(input) {
        let again = serde_json::to_vec(&message).ok();
        let same = again.and_then(|bytes| serde_json::from_slice::<FromEngine>(&bytes).ok());
        assert_eq!(same, Some(message), "a message of an engine does not come back");
    }
}

/// From a satellite to the leading controller: protobuf.
pub(crate) fn session(input: &[u8]) {
    if let Ok(ask) = proto::ChangeView::decode(input) {
        _ = wire::change(&ask, "s1");
    }
    if let Ok(hello) = proto::Hello::decode(input) {
        let seen = wire::seen(&hello);
        assert_eq!(seen.transports.len(), hello.transports.len());
    }
    _ = proto::FromSatellite::decode(input);
}

/// From the leading controller to a satellite: protobuf.
pub(crate) fn desired(input: &[u8]) {
    if let Ok(volume) = proto::Volume::decode(input)
        && let Ok(volume) = Volume::try_from(volume)
    {
        assert!(volume.row.size <= MAX_VOLUME, "a volume larger than any can be");
    }
    if let Ok(desired) = proto::Desired::decode(input) {
        _ = Desired::try_from(desired);
    }
}

/// What `lsblk` prints.
pub(crate) fn disks(input: &[u8]) {
    if let Ok(disks) = disk::parse(input) {
        assert!(disks.iter().all(|disk| disk.size > 0));
    }
}
