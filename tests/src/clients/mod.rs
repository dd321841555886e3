//! Real clients, run as processes: `nbdinfo`, `nbdcopy`, `qemu-img`, `qemu-io` and `fio` against an NBD export on a unix
//! socket, file systems and `fio` against a block device; each used as its users use it.
//!
//! Every check leaves the volume with content of its own: run them one after the other. A tool that
//! is not installed is an error that names its package, and every run has a deadline.

mod copy;
mod device;
mod fio;
mod info;
mod pattern;
mod qemu;
mod sparse;
mod tool;

use std::path::PathBuf;

pub use copy::{check_nbdcopy, check_qemu_img};
pub use device::{check_device_fio, check_discard, check_file_system, has_devices};
pub use fio::check_fio;
pub use info::{check_info, check_map, check_unknown_export};
pub use pattern::write_pattern;
pub use qemu::{check_qemu_io, check_read_only};
pub use sparse::{check_holes, copy_sparse};
pub use tool::{Outcome, run, run_ok};

/// Where a volume is served.
#[derive(Clone, Debug)]
pub struct Export {
    /// The unix socket.
    pub socket: PathBuf,
    /// Name; empty for the default one.
    pub name: String,
    /// Size, bytes.
    pub size: u64,
}

impl Export {
    /// As libnbd's tools, `qemu-img` and `fio` take it.
    pub fn uri(&self) -> String {
        format!("nbd+unix:///{}?socket={}", self.name, self.socket.display())
    }
}
