//! What LVM reports of logical volumes, and the kernel of thin pools.

use serde_json::Value;

use super::run::Lvm;
use crate::pool::command::CommandError;

/// What is asked for.
const FIELDS: &str = "vg_name,vg_uuid,vg_tags,vg_missing_pv_count,lv_name,lv_uuid,lv_tags,lv_size,segtype,pool_lv,\
    lv_active,lv_suspended,lv_kernel_major,lv_kernel_minor,lv_metadata_size,chunk_size,zero,lv_when_full,\
    lv_health_status";

/// A logical volume.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lv {
    /// Of its volume group.
    pub group: Group,
    /// Name, of a hidden one without its brackets.
    pub name: String,
    /// LVM's own identity of it.
    pub uuid: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Bytes.
    pub size: u64,
    /// `thin`, `thin-pool`, `linear` …
    pub segment: String,
    /// The thin pool it is in.
    pub pool: String,
    /// It can be used.
    pub active: bool,
    /// An LVM command was cut short and left it suspended: all I/O on it waits.
    pub suspended: bool,
    /// The kernel's number of it, while it is active.
    pub device: Option<(u32, u32)>,
    /// Of a thin pool: bytes of its metadata.
    pub metadata_size: u64,
    /// Of a thin pool: a chunk is zeroed before it is used.
    pub zeroes: bool,
    /// Of a thin pool: `error` or `queue`.
    pub when_full: String,
    /// LVM's word for what is wrong.
    pub health: String,
}

/// A volume group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Group {
    /// Name.
    pub name: String,
    /// LVM's own identity of it.
    pub uuid: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Disks of it that are away.
    pub missing: u64,
}

impl Lv {
    /// It carries the tag.
    pub fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    /// What stands behind `key=` in one of its tags.
    pub fn tagged(&self, key: &str) -> Option<&str> {
        tagged(&self.tags, key)
    }
}

impl Group {
    /// It carries the tag.
    pub fn has(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    /// What stands behind `key=` in one of its tags.
    pub fn tagged(&self, key: &str) -> Option<&str> {
        tagged(&self.tags, key)
    }
}

fn tagged<'a>(tags: &'a [String], key: &str) -> Option<&'a str> {
    tags.iter()
        .find_map(|tag| tag.strip_prefix(key)?.strip_prefix('='))
}

/// All logical volumes of a volume group, hidden ones too; none when there is no such group, or nothing in it.
pub fn volumes(lvm: &Lvm, group: &str) -> Result<Vec<Lv>, CommandError> {
    let select = format!("vg_name={group}");
    let report = lvm.report("lvs", &["--all", "-o", FIELDS, "--select", &select])?;
    Ok(rows(&report, "lv").map(volume).collect())
}

/// A volume group, if there is one of this name.
pub fn group(lvm: &Lvm, name: &str) -> Result<Option<Group>, CommandError> {
    let select = format!("vg_name={name}");
    let fields = "vg_name,vg_uuid,vg_tags,vg_missing_pv_count";
    let report = lvm.report("vgs", &["-o", fields, "--select", &select])?;
    Ok(rows(&report, "vg").map(in_group).next())
}

/// The disks of volume groups: path, and the group's name, which is empty for a disk in none.
pub fn disks(lvm: &Lvm) -> Result<Vec<(String, String)>, CommandError> {
    let report = lvm.report("pvs", &["-o", "pv_name,vg_name"])?;
    Ok(rows(&report, "pv")
        .map(|row| (text(row, "pv_name"), text(row, "vg_name")))
        .collect())
}

fn rows<'a>(report: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    let reports = report.get("report").and_then(Value::as_array);
    reports
        .into_iter()
        .flatten()
        .filter_map(move |part| part.get(kind)?.as_array())
        .flatten()
}

fn in_group(row: &Value) -> Group {
    Group {
        name: text(row, "vg_name"),
        uuid: text(row, "vg_uuid"),
        tags: list(row, "vg_tags"),
        missing: number(row, "vg_missing_pv_count").unwrap_or(0),
    }
}

fn volume(row: &Value) -> Lv {
    let name = text(row, "lv_name");
    let part = |key| number(row, key).and_then(|number| u32::try_from(number).ok());
    Lv {
        group: in_group(row),
        name: name.trim_start_matches('[').trim_end_matches(']').to_owned(),
        uuid: text(row, "lv_uuid"),
        tags: list(row, "lv_tags"),
        size: number(row, "lv_size").unwrap_or(0),
        segment: text(row, "segtype"),
        pool: text(row, "pool_lv").trim_matches(['[', ']']).to_owned(),
        active: text(row, "lv_active") == "active",
        suspended: text(row, "lv_suspended") == "suspended",
        device: part("lv_kernel_major").zip(part("lv_kernel_minor")),
        metadata_size: number(row, "lv_metadata_size").unwrap_or(0),
        zeroes: text(row, "zero") == "zero",
        when_full: text(row, "lv_when_full"),
        health: text(row, "lv_health_status"),
    }
}

/// Numbers are texts in LVM's older JSON and numbers in its newer.
fn text(row: &Value, key: &str) -> String {
    match row.get(key) {
        Some(Value::String(text)) => text.trim().to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}

fn list(row: &Value, key: &str) -> Vec<String> {
    let words = |text: &str| -> Vec<String> {
        text.split(',')
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .map(str::to_owned)
            .collect()
    };
    match row.get(key) {
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).flat_map(words).collect(),
        _ => words(&text(row, key)),
    }
}

fn number(row: &Value, key: &str) -> Option<u64> {
    text(row, key).parse().ok()
}

/// How full a thin pool is, and whether it works: as the kernel says it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fill {
    /// Parts of the metadata in use, and all.
    pub metadata: (u64, u64),
    /// Chunks in use, and all.
    pub data: (u64, u64),
    /// `rw`, `ro`, `out_of_data_space`, or `Fail`.
    pub mode: String,
    /// `error` or `queue`, when it is full.
    pub when_full: String,
    /// Its metadata has to be checked before it can be written to again.
    pub needs_check: bool,
}

/// What the kernel says of all mapped devices, by [`mapped_name`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mapped {
    pools: Vec<(String, Fill)>,
    thin: Vec<(String, u64)>,
}

impl Mapped {
    /// Reads `NAME: START LENGTH TARGET …`; the words after it are those of Documentation/admin-guide/
    /// device-mapper/thin-provisioning.rst.
    pub fn read(status: &str) -> Self {
        let mut mapped = Self::default();
        for line in status.lines() {
            let Some((name, rest)) = line.split_once(": ") else {
                continue;
            };
            let words: Vec<_> = rest.split_ascii_whitespace().skip(2).collect();
            match words.as_slice() {
                ["thin-pool", rest @ ..] => mapped.pools.push((name.to_owned(), fill(rest))),
                ["thin", sectors, ..] => {
                    let sectors: u64 = sectors.parse().unwrap_or(0);
                    mapped.thin.push((name.to_owned(), sectors.saturating_mul(512)));
                }
                _ => {}
            }
        }
        mapped
    }

    /// Of a thin pool.
    pub fn pool(&self, group: &str, pool: &str) -> Option<&Fill> {
        let name = mapped_name(group, pool);
        let layer = format!("{name}-tpool");
        let find = |wanted: &str| self.pools.iter().find(|(name, _)| name == wanted);
        find(&layer).or_else(|| find(&name)).map(|(_, fill)| fill)
    }

    /// Bytes that a thin volume has of its own or shares.
    pub fn allocated(&self, group: &str, volume: &str) -> Option<u64> {
        let name = mapped_name(group, volume);
        self.thin
            .iter()
            .find(|(found, _)| *found == name)
            .map(|(_, bytes)| *bytes)
    }
}

fn fill(words: &[&str]) -> Fill {
    let of = |word: Option<&&str>| -> (u64, u64) {
        let parts = word.and_then(|word| word.split_once('/'));
        let read = |text: &str| text.parse().unwrap_or(0);
        parts.map_or((0, 0), |(used, all)| (read(used), read(all)))
    };
    let has = |wanted: &str| words.contains(&wanted);
    let mode = ["rw", "ro", "out_of_data_space"]
        .into_iter()
        .find(|mode| has(mode));
    Fill {
        metadata: of(words.get(1)),
        data: of(words.get(2)),
        mode: mode.unwrap_or("Fail").to_owned(),
        when_full: if has("error_if_no_space") {
            "error"
        } else {
            "queue"
        }
        .to_owned(),
        needs_check: has("needs_check"),
    }
}

/// The device mapper's name of a logical volume: hyphens are doubled in it.
pub fn mapped_name(group: &str, volume: &str) -> String {
    format!("{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read() {
        let status = "stor--sp01-stor.0c.r1.data: 0 204800 thin 1792 2047\n\
            stor--sp01-thin: 0 4120576 linear \n\
            stor--sp01-thin-tpool: 0 4120576 thin-pool 2 425/4096 14/32192 - rw no_discard_passdown error_if_no_space - 1024 \n\
            a-b: 0 8 thin-pool 1 1/2 3/3 - out_of_data_space discard_passdown queue_if_no_space needs_check 1024\n\
            broken-x: 0 8 thin-pool Fail\nnonsense\n";
        let mapped = Mapped::read(status);
        let fill = mapped.pool("stor-sp01", "thin").unwrap();
        assert_eq!((fill.metadata, fill.data), ((425, 4096), (14, 32192)));
        assert_eq!((fill.mode.as_str(), fill.when_full.as_str()), ("rw", "error"));
        assert!(!fill.needs_check);
        assert_eq!(mapped.allocated("stor-sp01", "stor.0c.r1.data"), Some(1792 * 512));
        assert_eq!(mapped.allocated("stor-sp01", "stor.0c.r1.meta"), None);
        let full = mapped.pool("a", "b").unwrap();
        assert_eq!(
            (full.mode.as_str(), full.when_full.as_str()),
            ("out_of_data_space", "queue")
        );
        assert!(full.needs_check);
        assert_eq!(mapped.pool("broken", "x").unwrap().mode, "Fail");
    }

    #[test]
    fn both_of_lvms_ways_to_write_json_are_read() {
        let old = serde_json::json!({"report": [{"lv": [{"vg_name": "vg0", "vg_tags": "stor,stor.made", "vg_missing_pv_count": "1",
            "lv_name": "[thin_tmeta]", "lv_size": "16777216", "lv_kernel_major": "253", "lv_kernel_minor": "-1",
            "lv_active": "active", "zero": "unknown"}]}]});
        let row = volume(rows(&old, "lv").next().unwrap());
        assert_eq!(
            (row.name.as_str(), row.size, row.device),
            ("thin_tmeta", 16 << 20, None)
        );
        assert!(row.group.has("stor.made") && row.group.missing == 1 && row.active && !row.zeroes);
        let new = serde_json::json!({"report": [{"lv": [{"vg_tags": ["stor", "stor.pool=sp01"], "lv_size": 16_777_216,
            "lv_kernel_major": 253, "lv_kernel_minor": 4}]}], "log": []});
        let row = volume(rows(&new, "lv").next().unwrap());
        assert_eq!((row.size, row.device), (16 << 20, Some((253, 4))));
        assert_eq!(row.group.tagged("stor.pool"), Some("sp01"));
        assert_eq!(rows(&serde_json::json!([1]), "lv").count(), 0);
    }
}
