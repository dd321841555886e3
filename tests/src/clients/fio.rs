//! `fio`: random writes with a checksum in each block, read back.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Export, run_ok};

/// Bytes each run works on. At queue depth 1 a run is thousands of round trips, so not the whole export.
const SPAN: u64 = 16 << 20;

/// Random writes of 4 KiB over NBD at this queue depth, verified by checksum after every 64 of them and at the end.
pub fn check_fio(export: &Export, depth: u32, scratch: &Path) -> anyhow::Result<()> {
    let target = ["--ioengine=nbd".to_owned(), format!("--uri={}", export.uri())];
    random_writes(&target, depth, SPAN.min(export.size), scratch)
}

/// The same on a file or device of at least `size` bytes, past the page cache.
pub(super) fn check_fio_file(path: &str, depth: u32, size: u64, scratch: &Path) -> anyhow::Result<()> {
    let target = [
        "--ioengine=libaio".to_owned(),
        "--direct=1".to_owned(),
        format!("--filename={path}"),
    ];
    random_writes(&target, depth, SPAN.min(size), scratch)
}

fn random_writes(target: &[String], depth: u32, span: u64, scratch: &Path) -> anyhow::Result<()> {
    let mut args = vec![
        "--name=verify".to_owned(),
        "--rw=randwrite".to_owned(),
        "--bs=4k".to_owned(),
        format!("--iodepth={depth}"),
        format!("--size={span}"),
        "--verify=crc32c".to_owned(),
        "--verify_backlog=64".to_owned(),
        "--verify_fatal=1".to_owned(),
        "--do_verify=1".to_owned(),
        "--fsync=128".to_owned(),
        "--randseed=1".to_owned(),
        "--output-format=json".to_owned(),
        format!("--aux-path={}", scratch.display()),
    ];
    args.extend_from_slice(target);
    let out = run_ok("fio", &args)?;
    // fio prints notes before the JSON.
    let json = out
        .find('{')
        .and_then(|start| out.get(start..))
        .context("fio printed no JSON")?;
    let json: Value = serde_json::from_str(json).context("reading fio's JSON")?;
    let job = json.pointer("/jobs/0").context("fio names no job")?;
    let number = |pointer: &str| job.pointer(pointer).and_then(Value::as_u64);
    ensure!(number("/error") == Some(0), "fio failed: {job}");
    let blocks = span / 4096;
    ensure!(
        number("/write/total_ios") == Some(blocks),
        "not {blocks} writes: {job}"
    );
    ensure!(
        number("/read/total_ios").is_some_and(|reads| reads >= blocks),
        "not all verified: {job}"
    );
    Ok(())
}
