//! `storctl pool create --discover`: every mount point under a directory as a pool.

use stor_api::client::Filter;
use stor_api::name;
use stor_api::objects::{Mount, Page, Pool, PoolSpec};

use super::{ready, table};
use crate::context::Context;
use crate::failure::{Exit, Failure};

/// Makes a pool of each mount point under `dir`; what `like` says else holds for all of them. Those that are there
/// already are as they should be.
pub(super) async fn run(context: &Context, dir: &str, like: &PoolSpec) -> Result<(), Failure> {
    let filter = Filter {
        node: Some(like.node.clone()),
        volume: None,
    };
    let mounts = context.client.mounts(&filter).await?;
    let specs: Vec<PoolSpec> = mounts.iter().filter_map(|mount| spec(mount, dir, like)).collect();
    if specs.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!("node {} has no file system mounted under {dir}", like.node),
        )
        .help("mount them first; the node looks every ten seconds"));
    }
    for (at, one) in specs.iter().enumerate() {
        name::check(name::Kind::Pool, &one.name).map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("{} gives no name for a pool: {error}", one.dir),
            )
        })?;
        if let Some(other) = specs.iter().take(at).find(|other| other.name == one.name) {
            return Err(Failure::new(
                Exit::Usage,
                format!("{} and {} give the same name, {}", other.dir, one.dir, one.name),
            ));
        }
    }
    let mut made: Vec<Pool> = Vec::new();
    for spec in &specs {
        if context.planned(&stor_api::client::Wish::CreatePool(spec)).await? {
            continue;
        }
        let pool = context.client.create_pool(spec).await?;
        made.push(if context.no_wait {
            pool
        } else {
            ready(context, spec, false).await?
        });
    }
    if made.is_empty() {
        return Ok(());
    }
    let page = Page {
        items: made,
        next: None,
    };
    context.out.object(&page, |page| table(&page.items).render(None))
}

/// The pool of a mount point, if it is under the directory.
fn spec(mount: &Mount, dir: &str, like: &PoolSpec) -> Option<PoolSpec> {
    let below = mount
        .path
        .strip_prefix(dir.trim_end_matches('/'))?
        .strip_prefix('/')?;
    let words: Vec<&str> = std::iter::once(like.name.as_str())
        .chain(below.split('/'))
        .filter(|word| !word.is_empty())
        .collect();
    // What a name can't have is a hyphen in it.
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '-'
        }
    };
    Some(PoolSpec {
        name: words.join("-").chars().map(plain).collect(),
        dir: mount.path.clone(),
        ..like.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_give_names() {
        let mount = |path: &str| Mount {
            node: "s1".into(),
            path: path.into(),
            filesystem: "xfs".into(),
            capacity_bytes: 1,
            free_bytes: 1,
        };
        let like = PoolSpec {
            name: "fast".into(),
            tags: vec!["nvme".into()],
            ..PoolSpec::default()
        };
        let made = spec(&mount("/mnt/disks/SSD_1"), "/mnt/disks/", &like).unwrap();
        assert_eq!(
            (made.name.as_str(), made.dir.as_str()),
            ("fast-ssd-1", "/mnt/disks/SSD_1")
        );
        assert_eq!(made.tags, ["nvme"]);
        let plain = PoolSpec::default();
        assert_eq!(
            spec(&mount("/mnt/disks/a/b"), "/mnt/disks", &plain).unwrap().name,
            "a-b"
        );
        for other in ["/mnt/disks", "/mnt/disks2/a", "/"] {
            assert_eq!(spec(&mount(other), "/mnt/disks", &plain), None, "{other}");
        }
    }
}
