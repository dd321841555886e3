//! Holes: what was never written, was trimmed, or was zeroed is told to clients, who then need not read it.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::{Export, check_map, run_ok};

const KIB: u64 = 1 << 10;
/// What [`check_holes`] writes, and leaves: offset and length.
const DATA: [(u64, u64); 2] = [(1024 * KIB, 64 * KIB), (40960 * KIB, 128 * KIB)];
/// A file system may allocate more than was written, up to this.
const SLACK: u64 = 1024 * KIB;

/// What the map says is data: offset and length.
fn data(export: &Export) -> anyhow::Result<Vec<(u64, u64)>> {
    let map = check_map(export)?;
    ensure!(
        map.iter().all(|(_, _, kind)| matches!(kind, 0 | 3)),
        "neither data nor a hole: {map:?}"
    );
    Ok(map
        .into_iter()
        .filter(|(_, _, kind)| *kind == 0)
        .map(|(offset, length, _)| (offset, length))
        .collect())
}

fn check_data(export: &Export, expected: &[(u64, u64)], when: &str) -> anyhow::Result<()> {
    let found = data(export)?;
    let covers = |at: u64| {
        found
            .iter()
            .any(|(offset, length)| (*offset..offset + length).contains(&at))
    };
    for (offset, length) in expected {
        let all = (*offset..offset + length).step_by(4096).all(&covers);
        ensure!(
            all,
            "{when}: data at {offset}+{length} is told to be a hole: {found:?}"
        );
    }
    let total: u64 = found.iter().map(|(_, length)| length).sum();
    let least: u64 = expected.iter().map(|(_, length)| length).sum();
    let most = if least == 0 { 0 } else { least + SLACK };
    ensure!(
        total <= most,
        "{when}: {total} bytes are told to be data, {least} were written: {found:?}"
    );
    Ok(())
}

fn qemu_io(export: &Export, command: &str) -> anyhow::Result<()> {
    run_ok(
        "qemu-io",
        &[
            "-f",
            "raw",
            "-d",
            "unmap",
            "-c",
            command,
            "-c",
            "flush",
            &export.uri(),
        ],
    )
    .map(drop)
}

/// The map of a volume that was never written to, of one with some data, after a trim, after zeroing, and after
/// writing where a hole was. Returns how many bytes it leaves written.
pub fn check_holes(export: &Export) -> anyhow::Result<u64> {
    check_data(export, &[], "new")?;
    for (offset, length) in DATA {
        qemu_io(export, &format!("write -P 0x42 {offset} {length}"))?;
    }
    check_data(export, &DATA, "written to")?;
    let [first, second] = DATA;
    qemu_io(export, &format!("discard {} {}", first.0, first.1))?;
    check_data(export, &[second], "trimmed")?;
    qemu_io(export, &format!("write -z -u {} {}", second.0, second.1))?;
    check_data(export, &[], "zeroed")?;
    for (offset, length) in DATA {
        qemu_io(export, &format!("write -P 0x43 {offset} {length}"))?;
    }
    check_data(export, &DATA, "written to again")?;
    Ok(DATA.iter().map(|(_, length)| length).sum())
}

/// Copies the volume out and compares.
pub fn copy_sparse(export: &Export, scratch: &Path) -> anyhow::Result<()> {
    let copy = scratch.join("sparse.out");
    let copy = copy
        .to_str()
        .context("the scratch directory is not valid UTF-8")?;
    run_ok("nbdcopy", &[&export.uri(), copy])?;
    let bytes = std::fs::read(copy)?;
    for (offset, length) in DATA {
        let (from, to) = (usize::try_from(offset)?, usize::try_from(offset + length)?);
        let there = bytes.get(from..to).context("the copy is too short")?;
        ensure!(
            there.iter().all(|byte| *byte == 0x43),
            "the data at {offset} is not what was written"
        );
    }
    let written = bytes.iter().filter(|byte| **byte != 0).count() as u64;
    let least: u64 = DATA.iter().map(|(_, length)| length).sum();
    ensure!(
        written == least,
        "{written} bytes are not zero, {least} were written"
    );
    Ok(())
}
