//! Kernels for virtual machines.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Setup;

/// The kernel of Debian 12's package `user-mode-linux`.
const PACKAGED: &str = "/usr/bin/linux.uml";
/// Its modules.
const PACKAGED_MODULES: &str = "/usr/lib/uml/modules";
/// Names the kernel for all tests that do not need a certain one.
const CHOICE: &str = "STOR_TESTS_KERNEL";
/// Where `tests/kernels/build` puts what it makes.
const KERNELS: &str = "STOR_TESTS_KERNELS";

/// Emulates a machine.
const EMULATOR: &str = "/usr/bin/qemu-system-x86_64";

/// What is to be booted, and where.
pub(super) struct Boot<'a> {
    /// The machine's own directory.
    pub(super) root: &'a Path,
    /// Its first program.
    pub(super) init: &'a Path,
    /// What passes between test and guest.
    pub(super) jobs: &'a Path,
    /// Programs.
    pub(super) build: &'a Path,
    /// The rest.
    pub(super) setup: &'a Setup,
}

fn user_mode(command: &mut Command, kernel: &Path, boot: &Boot<'_>) {
    command
        .arg(kernel)
        .arg(format!("mem={}M", boot.setup.memory))
        .args([
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "ro",
            "quiet",
            "panic=-1",
        ])
        .arg(format!("init={}", boot.init.display()))
        .arg(format!("uml_dir={}/", boot.root.display()))
        .args([
            "umid=vm",
            "con=null",
            "con0=null,fd:1",
            "con1=fd:0,null",
            "ssl=null",
        ]);
    for (number, disk) in boot.setup.disks.iter().enumerate() {
        command.arg(format!("ubd{number}={}", disk.display()));
    }
}

/// One processor: with two, emulated ones hang now and then.
fn emulated(command: &mut Command, stock: &Path, boot: &Boot<'_>) {
    let line = format!(
        "console=ttyS0 quiet panic=-1 STOR_INIT={} STOR_MODULES={} STOR_CONSOLE=/dev/ttyS1",
        boot.init.display(),
        stock.join("modules").display()
    );
    command
        .arg(EMULATOR)
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-nodefaults",
            "-no-reboot",
        ])
        .args(["-display", "none", "-m", &format!("{}M", boot.setup.memory)])
        .arg("-kernel")
        .arg(stock.join("vmlinuz"))
        .arg("-initrd")
        .arg(stock.join("initrd.gz"))
        .args(["-append", &line])
        .args([
            "-chardev",
            "file,id=log,path=/dev/stderr",
            "-serial",
            "chardev:log",
        ])
        .args(["-chardev", "stdio,id=jobs,signal=off", "-serial", "chardev:jobs"]);
    let mut share = |tag: &str, directory: &Path, options: &str| {
        let directory = directory.display();
        command.arg("-fsdev").arg(format!(
            "local,id={tag},path={directory},security_model=none,multidevs=remap{options}"
        ));
        command.arg("-device");
        command.arg(format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    };
    share("root", Path::new("/"), ",readonly=on");
    share("jobs", boot.jobs, "");
    share("build", boot.build, ",readonly=on");
    for (number, one) in boot.setup.shares.iter().enumerate() {
        share(&format!("share{number}"), &one.host, "");
    }
    for (number, disk) in boot.setup.disks.iter().enumerate() {
        let file = disk.display();
        command.arg("-drive");
        command.arg(format!(
            "if=none,id=d{number},format=raw,discard=unmap,file={file}"
        ));
        command.arg("-device");
        command.arg(format!("virtio-blk-pci,drive=d{number},serial=disk{number}"));
    }
}

/// Which kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Linux 6.1, of the package `user-mode-linux`: nbd and device-mapper, as modules.
    Packaged,
    /// One that `tests/kernels/build` made, by its name there: `uml-6.12` has ublk and nvme-tcp too, all built in;
    /// `stock-6.12` is Debian's own, emulated by qemu.
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

    /// Where it is, if it is one that runs in the emulator.
    fn stock(&self) -> Option<PathBuf> {
        match self {
            Self::Built(name) if name.starts_with("stock-") => Some(kernels().join(name)),
            _ => None,
        }
    }

    /// Whether everything takes ten times as long with it.
    pub(super) fn is_emulated(&self) -> bool {
        self.stock().is_some()
    }

    /// The file of the kernel.
    fn file(&self) -> PathBuf {
        match (self, self.stock()) {
            (_, Some(stock)) => stock.join("vmlinuz"),
            (Self::Packaged, _) => PACKAGED.into(),
            (Self::Built(name), _) => kernels().join(name).join("linux"),
        }
    }

    /// What boots it; standard input becomes its second console, standard output and error its log.
    pub(super) fn command(&self, boot: &Boot<'_>) -> Command {
        let mut command = Command::new("setpriv");
        // Its helper processes end with it only when it can end them itself.
        command.args(["--pdeathsig", "TERM", "--"]);
        match self.stock() {
            Some(stock) => emulated(&mut command, &stock, boot),
            None => user_mode(&mut command, &self.file(), boot),
        }
        command
    }

    /// What this machine lacks to run it; `None` when it lacks nothing.
    pub fn missing(&self) -> Option<String> {
        let lacks = |path: &str| !Path::new(path).exists();
        match self {
            Self::Packaged if lacks(PACKAGED) || lacks(PACKAGED_MODULES) => {
                return Some(format!("{PACKAGED} (Debian's package user-mode-linux)"));
            }
            Self::Built(name) if !self.file().exists() => {
                return Some(format!("the kernel {name} (tests/kernels/build {name})"));
            }
            _ => {}
        }
        let mut tools = vec![
            "/usr/sbin/insmod",
            "/usr/sbin/ip",
            "/usr/bin/setpriv",
            "/bin/bash",
        ];
        if self.is_emulated() {
            tools.push(EMULATOR);
        }
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
