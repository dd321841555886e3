//! The gRPC messages between Stor's daemons, generated from the `.proto` files of this folder.

/// Controller to controller.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::clone_on_ref_ptr,
    unused_qualifications,
    unreachable_pub,
    missing_debug_implementations
)]
pub mod peer {
    tonic::include_proto!("stor.peer.v1");
}

/// Satellite to controller.
#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::clone_on_ref_ptr,
    unused_qualifications,
    unreachable_pub,
    missing_debug_implementations
)]
pub mod satellite {
    tonic::include_proto!("stor.satellite.v1");
}
