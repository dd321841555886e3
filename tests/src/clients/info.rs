//! `nbdinfo`: what the handshake says.

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Export, run, run_ok};

/// Name, size, block sizes and abilities, by every way `nbdinfo` has of asking.
pub fn check_info(export: &Export) -> anyhow::Result<()> {
    let size = run_ok("nbdinfo", &["--size", &export.uri()])?;
    ensure!(
        size.trim() == export.size.to_string(),
        "nbdinfo --size says {size}, not {}",
        export.size
    );

    let text = run_ok("nbdinfo", &[export.uri()])?;
    ensure!(
        text.contains("newstyle-fixed"),
        "no fixed newstyle negotiation:\n{text}"
    );
    ensure!(
        text.contains("using structured packets"),
        "no structured replies:\n{text}"
    );

    let json = run_ok("nbdinfo", &["--json", &export.uri()])?;
    let json: Value = serde_json::from_str(&json).context("reading the output of nbdinfo --json")?;
    let described = json
        .pointer("/exports/0")
        .context("nbdinfo --json names no export")?;
    let number = |key: &str| described.get(key).and_then(Value::as_u64);
    ensure!(
        number("export-size") == Some(export.size),
        "wrong size in {described}"
    );
    for key in ["can_flush", "can_fua", "can_trim", "can_zero", "can_df"] {
        ensure!(
            described.get(key) == Some(&Value::Bool(true)),
            "{key} is not offered: {described}"
        );
    }
    ensure!(
        described.get("is_read_only") == Some(&Value::Bool(false)),
        "read-only: {described}"
    );
    let [minimum, preferred, maximum] = ["block_size_minimum", "block_size_preferred", "block_size_maximum"]
        .map(|key| number(key).unwrap_or(0));
    ensure!(
        minimum > 0 && preferred >= minimum && maximum >= 32 << 20,
        "block sizes {minimum}/{preferred}/{maximum} in {described}"
    );
    let contexts = described.get("contexts").cloned().unwrap_or_default();
    ensure!(
        contexts.to_string().contains("base:allocation"),
        "no base:allocation in {described}"
    );

    let list = run_ok("nbdinfo", &["--list", &export.uri()])?;
    ensure!(
        list.contains(&format!("export=\"{}\"", export.name)),
        "the export is not listed:\n{list}"
    );
    Ok(())
}

/// The map of the export covers it without a gap. Returns its extents: start, length, kind (0 data, 3 hole
/// that reads as zeroes).
pub fn check_map(export: &Export) -> anyhow::Result<Vec<(u64, u64, u64)>> {
    let json = run_ok("nbdinfo", &["--map", "--json", &export.uri()])?;
    let json: Value = serde_json::from_str(&json).context("reading the output of nbdinfo --map --json")?;
    let mut extents = Vec::new();
    let mut end = 0;
    for extent in json.as_array().context("the map is not a list")? {
        let number = |key: &str| {
            extent
                .get(key)
                .and_then(Value::as_u64)
                .with_context(|| format!("no {key} in {extent}"))
        };
        let (offset, length, kind) = (number("offset")?, number("length")?, number("type")?);
        ensure!(offset == end && length > 0, "the map has a gap before {extent}");
        end = offset + length;
        extents.push((offset, length, kind));
    }
    ensure!(
        end == export.size,
        "the map ends at {end}, the export at {}",
        export.size
    );
    Ok(extents)
}

/// A name that is not served is refused, with an error and not with a hang.
pub fn check_unknown_export(export: &Export) -> anyhow::Result<()> {
    let stranger = Export {
        name: "no-such-volume".into(),
        ..export.clone()
    };
    let outcome = run("nbdinfo", &[stranger.uri()])?;
    ensure!(
        !outcome.ok,
        "an export of another name was served:\n{}",
        outcome.stdout
    );
    ensure!(
        outcome.stderr.contains("no-such-volume") || outcome.stderr.contains("export"),
        "{}",
        outcome.stderr
    );
    Ok(())
}
