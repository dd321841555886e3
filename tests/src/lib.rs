//! End-to-end and fault tests of Stor on real processes, and what they share.

pub mod clients;
