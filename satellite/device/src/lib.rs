//! satellite/device
