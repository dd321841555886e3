//! Kernels for virtual machines.

use std::env;
use std::path::{Path, PathBuf};

/// The kernel of Debian 12's package `user-mode-linux`.
const PACKAGED: &str = "/usr/bin/linux.uml";
/// Its modules.
const PACKAGED_MODULES: &str = "/usr/lib/uml/modules";
/// Names the kernel for all tests that do not need a certain one.
const CHOICE: &str = "STOR_TESTS_KERNEL";
/// Where `tests/kernels/build` puts what it makes.
const KERNELS: &str = "STOR_TESTS_KERNELS";

/// Which kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux 6.1, of the package `user-mode-linux`: nbd and device-mapper, as modules.
    Packaged,
    /// One that `tests/kernels/build` made, by its name there (`uml-6.12`): ublk and nvme-tcp too, all built in.
    Built(String),
}

impl Kernel {
    /// The one named in the environment, else the packaged one.
    pub fn chosen() -> Self {
        match env::var(CHOICE) {
            Ok(name) if !name.is_empty() => Self::Built(name),
            _ => Self::Packaged,
        }
    }

    /// One that has ublk.
    pub fn with_ublk() -> Self {
        match Self::chosen() {
            Self::Packaged => Self::Built("uml-6.12".to_owned()),
            built @ Self::Built(_) => built,
        }
    }

    /// Its program.
    pub(super) fn program(&self) -> PathBuf {
        match self {
            Self::Packaged => PACKAGED.into(),
            Self::Built(name) => kernels().join(name).join("linux"),
        }
    }

    /// What this machine lacks to run it; `None` when it lacks nothing.
    pub fn missing(&self) -> Option<String> {
        let lacks = |path: &str| !Path::new(path).exists();
        match self {
            Self::Packaged if lacks(PACKAGED) || lacks(PACKAGED_MODULES) => {
                return Some(format!("{PACKAGED} (Debian's package user-mode-linux)"));
            }
            Self::Built(name) if !self.program().exists() => {
                return Some(format!("the kernel {name} (tests/kernels/build {name})"));
            }
            _ => {}
        }
        let tools = [
            "/usr/sbin/insmod",
            "/usr/sbin/ip",
            "/usr/bin/setpriv",
            "/bin/bash",
        ];
        let tools: Vec<_> = tools.into_iter().filter(|path| lacks(path)).collect();
        (!tools.is_empty()).then(|| tools.join(", "))
    }
}

fn kernels() -> PathBuf {
    if let Some(directory) = env::var_os(KERNELS) {
        return directory.into();
    }
    let home = env::var_os("HOME").unwrap_or_else(|| "/root".into());
    PathBuf::from(home).join(".cache/stor/kernels")
}
