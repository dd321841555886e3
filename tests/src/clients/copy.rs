//! Whole images in and out.

use std::path::Path;

use anyhow::{Context as _, ensure};

use super::pattern::write_pattern;
use super::{Export, run, run_ok};

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not valid UTF-8", path.display()))
}

fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    run_ok("cmp", &[text(one)?, text(other)?]).map(drop)
}

/// `nbdcopy` in and out again, with several connections where the server allows them, then over what is there.
pub fn check_nbdcopy(export: &Export, scratch: &Path) -> anyhow::Result<()> {
    let (source, copy) = (scratch.join("nbdcopy.in"), scratch.join("nbdcopy.out"));
    // The second copy has its holes where the first had data: zeroes have to replace it.
    for seed in [1, 2] {
        write_pattern(&source, export.size, seed)?;
        run_ok("nbdcopy", &["--flush", text(&source)?, &export.uri()])?;
        run_ok("nbdcopy", &[&export.uri(), text(&copy)?])?;
        same(&source, &copy)?;
    }
    std::fs::write(&source, vec![0; usize::try_from(export.size)?])?;
    run_ok(
        "nbdcopy",
        &["--synchronous", "--connections=1", text(&source)?, &export.uri()],
    )?;
    run_ok(
        "nbdcopy",
        &[
            "--synchronous",
            "--connections=1",
            "--no-extents",
            &export.uri(),
            text(&copy)?,
        ],
    )?;
    same(&source, &copy)
}

/// `qemu-img convert` to and from raw and qcow2 files, and `compare`, which has to see a difference.
pub fn check_qemu_img(export: &Export, scratch: &Path) -> anyhow::Result<()> {
    let raw = scratch.join("qemu.raw");
    let qcow2 = scratch.join("qemu.qcow2");
    let back = scratch.join("qemu.back");
    let (raw, qcow2, back) = (text(&raw)?, text(&qcow2)?, text(&back)?);
    let uri = &export.uri();
    write_pattern(Path::new(raw), export.size, 3)?;

    run_ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", raw, uri])?;
    run_ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, uri])?;
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", uri, qcow2])?;
    run_ok("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", qcow2, uri])?;
    run_ok(
        "qemu-img",
        &["convert", "-n", "-f", "qcow2", "-O", "raw", qcow2, uri],
    )?;
    run_ok("qemu-img", &["convert", "-f", "raw", "-O", "raw", uri, back])?;
    same(Path::new(raw), Path::new(back))?;

    run_ok(
        "qemu-io",
        &["-f", "raw", "-c", "write -P 0x5a 8192 4096", "-c", "flush", uri],
    )?;
    let outcome = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", raw, uri])?;
    let expected = "Content mismatch at offset 8192!";
    ensure!(
        !outcome.ok && outcome.stdout.contains(expected),
        "the difference was not seen: {outcome:?}"
    );
    Ok(())
}
