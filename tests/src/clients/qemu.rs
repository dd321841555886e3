//! `qemu-io`: single requests, as QEMU's block layer sends them for a guest.

use anyhow::ensure;

use super::{Export, run, run_ok};

fn qemu_io(export: &Export, commands: &[&str]) -> anyhow::Result<()> {
    let mut args = vec![
        "-f".to_owned(),
        "raw".to_owned(),
        "-d".to_owned(),
        "unmap".to_owned(),
    ];
    args.extend(
        commands
            .iter()
            .flat_map(|command| ["-c".to_owned(), (*command).to_owned()]),
    );
    args.push(export.uri());
    let out = run_ok("qemu-io", &args)?;
    // `read -P` says so and exits with zero in some versions.
    ensure!(
        !out.contains("Pattern verification failed"),
        "read something else than was written:\n{out}"
    );
    ensure!(!out.to_lowercase().contains("failed"), "{out}");
    Ok(())
}

/// Writes, reads back, discards, zeroes, flushes and writes through, from the first byte to the last. Each
/// group is a connection of its own, so that what one left is read by another.
pub fn check_qemu_io(export: &Export) -> anyhow::Result<()> {
    let last = export.size - 65_536;
    let write_last = format!("write -P 0xab {last} 65536");
    let read_last = format!("read -P 0xab {last} 65536");
    qemu_io(
        export,
        &["write -P 0x11 0 1M", "write -P 0x22 64k 4k", &write_last, "flush"],
    )?;
    qemu_io(
        export,
        &[
            "read -P 0x11 0 64k",
            "read -P 0x22 64k 4k",
            "read -P 0x11 68k 956k",
            &read_last,
        ],
    )?;
    // -z zeroes, -u lets the space go, -f is FUA, -n fails where it is not fast.
    qemu_io(
        export,
        &[
            "write -z 4k 8k",
            "write -z -u 128k 64k",
            "write -f -P 0x33 256k 4k",
            "write -z -f 512k 4k",
        ],
    )?;
    qemu_io(
        export,
        &[
            "read -P 0x11 0 4k",
            "read -P 0 4k 8k",
            "read -P 0 128k 64k",
            "read -P 0x33 256k 4k",
            "read -P 0 512k 4k",
            "read -P 0x11 516k 4k",
        ],
    )?;
    qemu_io(
        export,
        &[
            "discard 0 256k",
            "flush",
            "write -P 0x44 0 4k",
            "read -P 0x44 0 4k",
        ],
    )?;
    // Many at once, in flight together.
    let many: Vec<String> = (0..32)
        .map(|at| format!("aio_write -P {} {}k 4k", at + 1, 1024 + 4 * at))
        .chain(["aio_flush".to_owned()])
        .collect();
    qemu_io(export, &many.iter().map(String::as_str).collect::<Vec<_>>())?;
    let back: Vec<String> = (0..32)
        .map(|at| format!("read -P {} {}k 4k", at + 1, 1024 + 4 * at))
        .collect();
    qemu_io(export, &back.iter().map(String::as_str).collect::<Vec<_>>())
}

/// A read-only export can be read and refuses to be written.
pub fn check_read_only(export: &Export) -> anyhow::Result<()> {
    let uri = &export.uri();
    run_ok("qemu-io", &["-r", "-f", "raw", "-c", "read 0 4k", uri])?;
    let outcome = run("qemu-io", &["-f", "raw", "-c", "write 0 4k", uri])?;
    ensure!(
        !outcome.ok,
        "a read-only export was opened for writing:\n{}",
        outcome.stdout
    );
    Ok(())
}
