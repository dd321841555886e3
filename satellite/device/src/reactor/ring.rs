//! Setting a ring up: with as much as the kernel has, and not without what we rely on.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use super::ReactorError;

/// Entries that fit in one submission; a longer queue takes several.
const SUBMISSIONS: u32 = 256;
/// Completions that fit before the kernel has to put some aside.
const COMPLETIONS: u32 = 4096;

/// What a kernel's ring can be asked for; newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// From 6.1: completions are worked out in our own call, when we wait.
    Deferring,
    /// From 5.19: no interrupt to our thread for each of them.
    Cooperative,
    Plain,
}

pub(super) const GENERATIONS: [Generation; 3] =
    [Generation::Deferring, Generation::Cooperative, Generation::Plain];

impl Generation {
    pub(super) fn set_up(self) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS);
        if self != Self::Plain {
            builder
                .setup_submit_all()
                .setup_coop_taskrun()
                .setup_taskrun_flag();
        }
        if self == Self::Deferring {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        builder.build(SUBMISSIONS)
    }
}

/// Refuses a ring that lacks something we rely on.
pub(super) fn check(ring: &IoUring) -> Result<(), ReactorError> {
    let features = ring.params();
    for (there, what) in [
        (features.is_feature_nodrop(), "IORING_FEAT_NODROP"),
        (features.is_feature_submit_stable(), "IORING_FEAT_SUBMIT_STABLE"),
        (features.is_feature_fast_poll(), "IORING_FEAT_FAST_POLL"),
        (features.is_feature_ext_arg(), "IORING_FEAT_EXT_ARG"),
    ] {
        if !there {
            return Err(ReactorError::RingLacks(what));
        }
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(ReactorError::SetUpRing)?;
    for (code, what) in [
        (opcode::Accept::CODE, "accept"),
        (opcode::Connect::CODE, "connect"),
        (opcode::Recv::CODE, "recv"),
        (opcode::Send::CODE, "send"),
        (opcode::SendMsg::CODE, "sendmsg"),
        (opcode::Read::CODE, "read"),
        (opcode::Write::CODE, "write"),
        (opcode::Writev::CODE, "writev"),
        (opcode::Fsync::CODE, "fsync"),
        (opcode::Fallocate::CODE, "fallocate"),
        (opcode::PollAdd::CODE, "poll"),
        (opcode::AsyncCancel::CODE, "cancel"),
    ] {
        if !probe.is_supported(code) {
            return Err(ReactorError::RingLacks(what));
        }
    }
    Ok(())
}
