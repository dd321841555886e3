//! A test whose body runs in a virtual machine: outside, the test starts the machine and runs its own
//! program there, for this one test; inside, the same test finds itself there and runs its body.

use std::path::PathBuf;
use std::time::Duration;
use std::{env, fs};

use anyhow::Context as _;

use super::{Kernel, Output, Setup, Vm, disk};
use crate::{leftovers, skip};

/// Set inside.
const INSIDE: &str = "STOR_TESTS_IN_VM";
/// The disk on which the test's clusters are.
const SCRATCH: u64 = 8 << 30;
/// For a whole test.
const LIMIT: Duration = Duration::from_mins(9);
/// In an emulated machine it takes so many times as long.
const SLOW: u32 = 5;

/// Runs the body of the test named `test` in a virtual machine with `memory` MiB, a file system of disks on `/var/tmp`
/// and one empty disk for each of `disks` (bytes): `/dev/ubdb`, `/dev/ubdc` and so on.
pub fn inside(
    test: &str,
    memory: u32,
    disks: &[u64],
    body: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    inside_with(&Kernel::chosen(), test, memory, disks, body)
}

/// As [`inside`], with a certain kernel.
pub fn inside_with(
    kernel: &Kernel,
    test: &str,
    memory: u32,
    disks: &[u64],
    body: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    if let Some(missing) = kernel.missing() {
        skip::skipped(test, &missing);
        return Ok(());
    }
    let root = leftovers::new_root()?;
    let ran = run_there(kernel, test, &root, memory, disks);
    leftovers::remove(&root);
    let output = ran?;
    println!("{}{}", output.stdout, output.stderr);
    // A name that is no test's runs none.
    anyhow::ensure!(
        output.status == 0 && output.stdout.contains("test result: ok. 1 passed"),
        "{test} failed in the virtual machine"
    );
    Ok(())
}

fn run_there(
    kernel: &Kernel,
    test: &str,
    root: &std::path::Path,
    memory: u32,
    sizes: &[u64],
) -> anyhow::Result<Output> {
    let mut disks = Vec::new();
    for (number, size) in [SCRATCH].iter().chain(sizes).enumerate() {
        disks.push(disk(&root.join(format!("disk{number}")), *size)?);
    }
    let program = env::current_exe().context("finding the test's own program")?;
    let noted = env::var_os("STOR_TESTS_SKIPPED").map(PathBuf::from);
    let mut vm = Vm::start(&Setup {
        kernel: kernel.clone(),
        memory,
        disks,
        shares: Vec::new(),
    })?;
    vm.run("mkfs.ext4 -q -E nodiscard /dev/ubda && mount /dev/ubda /var/tmp && chmod 1777 /var/tmp")?;
    // A build that is there was hidden by that.
    vm.run("b=$(</run/vm/build); [ -e \"$b/deps\" ] || { mkdir -p \"$b\" && mount -n --bind /run/build \"$b\"; }")?;
    let output = vm.try_within(
        if kernel.is_emulated() { SLOW * LIMIT } else { LIMIT },
        &format!(
            "cd / && {INSIDE}=1 STOR_TESTS_SKIPPED=/run/vm/skipped exec '{}' --exact '{test}' --nocapture",
            program.display()
        ),
    )?;
    if output.status != 0 {
        // Where the logs of clusters are kept on the host.
        let to = env::temp_dir();
        vm.try_run("cp -r /tmp/stor-tests-failed /run/vm/failed")?;
        for entry in fs::read_dir(vm.root.join("jobs/failed"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let kept = to.join("stor-tests-failed").join(entry.file_name());
            _ = fs::remove_dir_all(&kept);
            fs::create_dir_all(&kept)?;
            for log in fs::read_dir(entry.path())?.flatten() {
                fs::copy(log.path(), kept.join(log.file_name()))?;
            }
        }
        println!("console of the virtual machine:\n{}", vm.console());
    }
    // A skip inside is a skip.
    if let (Ok(lines), Some(noted)) = (fs::read_to_string(vm.root.join("jobs/skipped")), noted) {
        let mut all = fs::read_to_string(&noted).unwrap_or_default();
        all.push_str(&lines);
        fs::write(noted, all)?;
    }
    Ok(output)
}
