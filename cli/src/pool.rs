//! `storctl pool …`

mod check;
mod discover;

use clap::{Args, Subcommand};
use stor_api::client::{Error, Filter, Wish};
use stor_api::objects::{Pool, PoolChange, PoolSpec, PoolState};
use stor_api::size;

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Done, confirm};
use crate::table::{Cell, Column, Fields, Table, Tone};
use crate::wait::{self, Look};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolVerb {
    /// Make a pool on a node; pools of one name on several nodes are one pool to volumes
    Create {
        /// Its name; with --discover, the beginning of the names
        #[arg(value_parser = args::pool_name, required_unless_present = "discover")]
        name: Option<String>,
        /// The node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: String,
        #[command(flatten)]
        place: Place,
        /// Tag, such as nvme, that volumes can ask for; repeatable
        #[arg(long, value_parser = args::tag)]
        tag: Vec<String>,
        /// How many times the capacity may be promised to volumes [default: 20]
        #[arg(long, value_name = "FACTOR", value_parser = args::overprovision)]
        overprovision: Option<f64>,
    },
    /// All pools, a line for each node
    List,
    /// Everything about a pool, on one node or all
    Describe {
        /// Its name
        #[arg(add = completion::pools(), value_parser = args::existing)]
        name: String,
        /// Only on this node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
    },
    /// Change a pool on one node
    Set {
        /// Its name
        #[arg(add = completion::pools(), value_parser = args::existing)]
        name: String,
        /// The node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: String,
        /// Replaces the tags; repeatable
        #[arg(long, value_parser = args::tag, conflicts_with = "no_tags")]
        tag: Vec<String>,
        /// Removes all tags
        #[arg(long)]
        no_tags: bool,
        /// How many times the capacity may be promised to volumes
        #[arg(long, value_name = "FACTOR", value_parser = args::overprovision)]
        overprovision: Option<f64>,
    },
    /// What is in pools and belongs to nothing: replicas and snapshots nobody asked for, leftovers
    Check {
        /// Only on this node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
        /// Remove it; asks first
        #[arg(long)]
        remove: bool,
    },
    /// Take an empty pool away from a node
    Delete {
        /// Its name
        #[arg(add = completion::pools(), value_parser = args::existing)]
        name: String,
        /// The node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: String,
        /// Also when the node still has to remove something there of deleted volumes, which is left behind
        #[arg(long)]
        force: bool,
    },
}

/// Where a pool is.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Place {
    /// Directory on the node that holds the replicas as files
    #[arg(long, value_name = "PATH", required_unless_present_any = ["lvm_thin", "device", "discover"], conflicts_with_all = ["lvm_thin", "device", "discover"])]
    dir: Option<String>,
    /// LVM thin pool on the node; with --device, the names of what is made [default then: stor-NAME/thin]
    #[arg(long, value_name = "VG/POOL")]
    lvm_thin: Option<String>,
    /// Unused disk of the node of which a volume group and thin pool are made; repeatable
    #[arg(long, value_name = "DEV")]
    device: Vec<String>,
    /// A pool for each mount point under this directory of the node, named after it: NAME-MOUNT, or MOUNT without NAME
    #[arg(long, value_name = "PATH", conflicts_with_all = ["lvm_thin", "device"])]
    discover: Option<String>,
    /// Use a thin pool in a volume group that Stor did not make
    #[arg(long, requires = "lvm_thin", conflicts_with = "device")]
    adopt: bool,
    /// Overwrite partitions, signatures and data on the disks; asks first
    #[arg(long, requires = "device")]
    wipe: bool,
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: PoolVerb) -> Result<(), Failure> {
    match verb {
        PoolVerb::Create {
            name,
            node,
            place,
            tag,
            overprovision,
        } => {
            let discover = place.discover;
            let spec = PoolSpec {
                name: name.unwrap_or_default(),
                node,
                dir: place.dir.unwrap_or_default(),
                lvm_thin: place.lvm_thin.unwrap_or_default(),
                devices: place.device,
                adopt: place.adopt,
                wipe: place.wipe,
                tags: tag,
                overprovision: overprovision.unwrap_or(0.0),
            };
            match discover {
                Some(dir) => discover::run(context, &dir, &spec).await,
                None => create(context, &spec).await,
            }
        }
        PoolVerb::List => context.out.list(
            context.client.pools().await?,
            "no pools yet; make one with `storctl pool create NAME --node NODE --dir PATH`",
            table,
        ),
        PoolVerb::Describe {
            name,
            node: Some(node),
        } => context
            .out
            .object(&context.client.pool(&name, &node).await?, describe),
        PoolVerb::Describe { name, node: None } => {
            let pools: Vec<Pool> = context
                .client
                .pools()
                .await?
                .into_iter()
                .filter(|p| p.name == name)
                .collect();
            if pools.is_empty() {
                return Err(Failure::new(Exit::NotFound, format!("there is no pool {name}"))
                    .help("`storctl pool list` shows all pools"));
            }
            let page = stor_api::objects::Page {
                items: pools,
                next: None,
            };
            context.out.object(&page, |p| {
                p.items.iter().map(describe).collect::<Vec<_>>().join("\n")
            })
        }
        PoolVerb::Set {
            name,
            node,
            tag,
            no_tags,
            overprovision,
        } => {
            let tags = (no_tags || !tag.is_empty()).then_some(tag);
            set(context, &name, &node, &PoolChange { tags, overprovision }).await
        }
        PoolVerb::Check { node, remove } => check::run(context, node, remove).await,
        PoolVerb::Delete { name, node, force } => delete(context, &name, &node, force).await,
    }
}

async fn create(context: &Context, spec: &PoolSpec) -> Result<(), Failure> {
    if context.planned(&Wish::CreatePool(spec)).await? {
        return Ok(());
    }
    if spec.wipe && !context.yes {
        confirm_wipe(context, spec).await?;
    }
    let client = &context.client;
    let is_new = matches!(
        client.pool(&spec.name, &spec.node).await,
        Err(Error::NotFound { .. })
    );
    let pool = client.create_pool(spec).await?;
    let pool = if context.no_wait {
        pool
    } else {
        ready(context, spec, is_new).await?
    };
    context.out.object(&pool, |pool| match pool.state {
        PoolState::Ready => format!(
            "pool {} on {} is ready: {} of {} free\n",
            pool.name,
            pool.node,
            size::format(pool.free_bytes),
            size::format(pool.capacity_bytes)
        ),
        _ => format!("pool {} on {} is being made\n", pool.name, pool.node),
    })
}

/// Shows what would be lost. Disks with nothing on them need no consent.
async fn confirm_wipe(context: &Context, spec: &PoolSpec) -> Result<(), Failure> {
    let filter = Filter {
        node: Some(spec.node.clone()),
        volume: None,
    };
    let disks = context.client.disks(&filter).await?;
    let lost: Vec<_> = disks
        .iter()
        .filter(|disk| spec.devices.contains(&disk.path) && disk.wipeable)
        .map(|disk| {
            let known = [disk.model.as_str(), disk.serial.as_str()];
            let known: Vec<_> = known.into_iter().filter(|word| !word.is_empty()).collect();
            format!(
                "{} ({}) {} {}",
                disk.path,
                size::format(disk.size_bytes),
                known.join(" "),
                disk.in_use
            )
        })
        .collect();
    if lost.is_empty() {
        return Ok(());
    }
    let question = format!(
        "Everything on these disks of node {} is lost:\n  {}\n",
        spec.node,
        lost.join("\n  ")
    );
    let devices = spec.devices.join(" --device ");
    let again = format!(
        "storctl pool create {} --node {} --device {devices} --wipe",
        spec.name, spec.node
    );
    confirm(&question, &again)
}

async fn ready(context: &Context, spec: &PoolSpec, is_new: bool) -> Result<Pool, Failure> {
    let what = format!("pool {} on {}", spec.name, spec.node);
    wait::until(context, &what, || async {
        let pool = context.client.pool(&spec.name, &spec.node).await?;
        match pool.state {
            PoolState::Ready => Ok(Look::Done(pool)),
            PoolState::Pending => Ok(Look::Pending("the node has not reported it yet".to_owned(), None)),
            PoolState::Offline => Ok(Look::Pending(format!("node {} is offline", spec.node), None)),
            PoolState::Failed => Err(unusable(context, &pool, is_new).await),
        }
    })
    .await
}

/// A pool that its node can't use is taken away again when this very command made it: a directory that was
/// mistyped should not stay behind as a failed pool.
async fn unusable(context: &Context, pool: &Pool, is_new: bool) -> Failure {
    let failure = Failure::failed(format!("pool {} on {} can't be used", pool.name, pool.node))
        .why(pool.error.as_str());
    if !is_new {
        return failure.help(format!(
            "`storctl pool describe {} --node {}` shows its state",
            pool.name, pool.node
        ));
    }
    match context.client.delete_pool(&pool.name, &pool.node, false).await {
        Ok(()) => failure.help(format!(
            "nothing was made; try again when {} on {} is right",
            place(pool),
            pool.node
        )),
        Err(error) => failure.help(format!(
            "it stays behind ({error}); take it away with `storctl pool delete {} --node {}`",
            pool.name, pool.node
        )),
    }
}

async fn set(context: &Context, name: &str, node: &str, change: &PoolChange) -> Result<(), Failure> {
    if change.tags.is_none() && change.overprovision.is_none() {
        return Err(Failure::new(Exit::Usage, "nothing to change is given")
            .help("say --tag, --no-tags or --overprovision"));
    }
    if context.planned(&Wish::ChangePool { name, node, change }).await? {
        return Ok(());
    }
    let pool = context.client.change_pool(name, node, change).await?;
    context.out.object(&pool, |pool| {
        format!("pool {} on {} changed\n", pool.name, pool.node)
    })
}

async fn delete(context: &Context, name: &str, node: &str, force: bool) -> Result<(), Failure> {
    if context.planned(&Wish::DeletePool { name, node, force }).await? {
        return Ok(());
    }
    if !context.yes {
        let question = format!("Pool {name} is taken away from node {node}.");
        confirm(&question, &format!("storctl pool delete {name} --node {node}"))?;
    }
    let left = match context.client.pool(name, node).await {
        Ok(pool) if pool.kind == "file" => "; its directory was left in place",
        _ => "",
    };
    context.client.delete_pool(name, node, force).await?;
    if !context.no_wait {
        wait::until(context, &format!("pool {name} on {node}"), || async {
            match context.client.pool(name, node).await {
                Err(Error::NotFound { .. }) => Ok(Look::Done(())),
                Err(error) => Err(error.into()),
                Ok(_) => Ok(Look::Pending("being taken away".to_owned(), None)),
            }
        })
        .await?;
    }
    context.out.done(
        &Done::new("pool", name, "deleted").on(node),
        &format!("pool {name} on {node} deleted{left}"),
    )
}

/// What makes up a pool, for people.
fn place(pool: &Pool) -> String {
    if pool.devices.is_empty() {
        pool.dir.clone()
    } else {
        format!("{} on {}", pool.dir, pool.devices.join(", "))
    }
}

fn state(state: PoolState) -> Cell {
    match state {
        PoolState::Ready => Cell::new("ready", Tone::Good),
        PoolState::Pending => Cell::new("pending", Tone::Warn),
        PoolState::Failed => Cell::new("failed", Tone::Bad),
        PoolState::Offline => Cell::new("offline", Tone::Bad),
    }
}

/// Sizes that were not reported yet are not zero.
fn reported(pool: &Pool, bytes: u64) -> String {
    if pool.capacity_bytes == 0 {
        "-".to_owned()
    } else {
        size::format(bytes)
    }
}

fn table(pools: &[Pool]) -> Table {
    let mut table = Table::new(&[
        Column::left("NAME"),
        Column::left("NODE"),
        Column::left("STATE"),
        Column::right("CAPACITY"),
        Column::right("FREE"),
        Column::right("PROMISED"),
        Column::right("REPLICAS"),
        Column::optional("SNAPSHOTS"),
        Column::optional("TAGS"),
        Column::left("KIND"),
        Column::left("PLACE"),
        Column::optional("ERROR"),
    ]);
    for pool in pools {
        table.row([
            pool.name.clone().into(),
            pool.node.clone().into(),
            state(pool.state),
            reported(pool, pool.capacity_bytes).into(),
            reported(pool, pool.free_bytes).into(),
            size::format(pool.promised_bytes).into(),
            pool.replicas.to_string().into(),
            pool.snapshots.clone().into(),
            pool.tags.join(" ").into(),
            pool.kind.clone().into(),
            pool.dir.clone().into(),
            Cell::new(pool.error.as_str(), Tone::Bad),
        ]);
    }
    table
}

/// How full a thin pool's metadata is.
fn metadata(pool: &Pool) -> String {
    if pool.metadata_capacity_bytes == 0 {
        return String::new();
    }
    format!(
        "{} of {} used",
        size::format(pool.metadata_used_bytes),
        size::format(pool.metadata_capacity_bytes)
    )
}

fn describe(pool: &Pool) -> String {
    let snapshots = match pool.snapshots.as_str() {
        "reflink" => "reflink (instant, share space)",
        "copy" => "copy (the file system has no reflinks: each takes time, and space of its own)",
        "thin" => "thin (instant, share space)",
        other => other,
    };
    let promised = if pool.capacity_bytes == 0 {
        size::format(pool.promised_bytes)
    } else {
        let limit = format!("{:.0} times the capacity", pool.overprovision);
        format!(
            "{} to {} replica{}; limit {limit}",
            size::format(pool.promised_bytes),
            pool.replicas,
            if pool.replicas == 1 { "" } else { "s" }
        )
    };
    let mut fields = Fields::default();
    fields
        .field("Name", pool.name.as_str())
        .field("Node", pool.node.as_str())
        .field("State", state(pool.state))
        .optional("Error", &pool.error)
        .field("Kind", pool.kind.as_str())
        .field(
            if pool.kind == "file" {
                "Directory"
            } else {
                "Thin pool"
            },
            pool.dir.as_str(),
        )
        .optional("Disks", &pool.devices.join(" "))
        .field("Capacity", reported(pool, pool.capacity_bytes))
        .field("Free", reported(pool, pool.free_bytes))
        .optional("Metadata", &metadata(pool))
        .field("Promised", promised)
        .optional("Snapshots", snapshots)
        .optional("Tags", &pool.tags.join(" "));
    fields.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool {
            name: "sp01".into(),
            node: "s1".into(),
            kind: "file".into(),
            dir: "/srv/stor".into(),
            devices: Vec::new(),
            checked: true,
            metadata_capacity_bytes: 0,
            metadata_used_bytes: 0,
            tags: vec!["nvme".into(), "gen4".into()],
            state: PoolState::Ready,
            error: String::new(),
            capacity_bytes: 100 << 30,
            free_bytes: 63 << 30,
            promised_bytes: 240 << 30,
            overprovision: 20.0,
            snapshots: "reflink".into(),
            filesystem: "b/fd01".into(),
            replicas: 12,
            revision: 9,
        }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn list() {
        let failed = Pool {
            node: "s2".into(),
            state: PoolState::Failed,
            error: "/srv/stor does not exist".into(),
            capacity_bytes: 0,
            free_bytes: 0,
            snapshots: String::new(),
            tags: Vec::new(),
            ..pool()
        };
        insta::assert_snapshot!(plain(&table(&[pool(), failed]).render(None)));
    }

    #[test]
    fn one() {
        insta::assert_snapshot!(plain(&describe(&pool())));
    }

    #[test]
    fn a_thin_one() {
        let thin = Pool {
            kind: "lvm-thin".into(),
            dir: "stor-sp01/thin".into(),
            devices: vec!["/dev/sdb".into(), "/dev/sdc".into()],
            metadata_capacity_bytes: 200 << 20,
            metadata_used_bytes: 3 << 20,
            snapshots: "thin".into(),
            ..pool()
        };
        insta::assert_snapshot!(plain(&describe(&thin)));
    }
}
