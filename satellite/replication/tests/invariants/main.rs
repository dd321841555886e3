//! One file per rule of `docs/replication.md`: each fails when its rule is taken out of the code. And, in
//! `steps.rs`, what else follows from one event.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

mod bench;
mod c1_compared_at_rest;
mod c2_most_are_right;
mod c3_a_mend_is_a_write;
mod c4_told_first;
mod c5_clients_first;
mod extents;
mod g1_holes_stay_holes;
mod g2_leaving;
mod g3_grow;
mod r10_out_of_sync_map;
mod r11_unknown_is_never_clean;
mod r12_range_locks;
mod r13_syncing_is_no_copy;
mod r14_identity;
mod r15_failure_is_final;
mod r16_min_in_sync;
mod r1_all_members_ack;
mod r2_remove_before_ack;
mod r3_joint_ack;
mod r4_fence_is_a_drain;
mod r5_one_promise;
mod r6_read_leases;
mod r7_dirty_before_write;
mod r8_repair_before_reply;
mod r9_lost_cache;
mod random;
mod rules;
mod s1_nothing_begins_meanwhile;
mod s2_copies_when_idle;
mod s3_equal_first;
mod s4_all_or_none;
mod s5_the_gate_opens;
mod s6_made_anew;
mod silence;
mod steps;
mod waits;
