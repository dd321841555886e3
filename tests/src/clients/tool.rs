//! Running a client with a deadline.

use std::process::Command;

use anyhow::{Context as _, bail};

/// What a tool's run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Whether it exited with zero.
    pub ok: bool,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// How long any tool may take, seconds: far above what each takes on a busy machine.
const DEADLINE: &str = "180";

/// Exit statuses of `timeout` itself.
const TIMED_OUT: i32 = 124;
const KILLED: i32 = 137;
const NOT_FOUND: i32 = 127;

/// The Debian package of each tool.
fn package(program: &str) -> &str {
    match program {
        "nbdinfo" | "nbdcopy" => "libnbd-bin",
        "qemu-img" | "qemu-io" => "qemu-utils",
        "mkfs.ext4" | "e2fsck" => "e2fsprogs",
        "mkfs.xfs" | "xfs_repair" => "xfsprogs",
        "losetup" | "mount" | "umount" => "mount",
        "blkdiscard" | "blockdev" | "fstrim" => "util-linux",
        "cmp" => "diffutils",
        other => other,
    }
}

/// Runs a tool and tells what it said.
pub fn run<A: AsRef<str>>(program: &str, args: &[A]) -> anyhow::Result<Outcome> {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    let line = format!("{program} {}", args.join(" "));
    let output = Command::new("timeout")
        .args(["-k", "5", DEADLINE, program])
        .args(&args)
        .output()
        .with_context(|| format!("running `timeout` (package coreutils) for {line}"))?;
    match output.status.code() {
        Some(NOT_FOUND) => {
            bail!(
                "`{program}` is not installed: it is in the package {} (apt-get install it)",
                package(program)
            )
        }
        Some(TIMED_OUT | KILLED) => bail!("not done after {DEADLINE} s: {line}"),
        _ => {}
    }
    Ok(Outcome {
        ok: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Runs a tool that has to succeed and returns its standard output.
pub fn run_ok<A: AsRef<str>>(program: &str, args: &[A]) -> anyhow::Result<String> {
    let outcome = run(program, args)?;
    if !outcome.ok {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        bail!(
            "failed: {program} {}\n{}{}",
            args.join(" "),
            outcome.stdout,
            outcome.stderr
        );
    }
    Ok(outcome.stdout)
}
