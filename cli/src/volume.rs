//! `storctl volume …`

use std::time::{Duration, Instant};

use clap::Subcommand;
use stor_api::client::{Client, Filter, Wish};
use stor_api::objects::{Replica, ReplicaState, RestoreSpec, Volume, VolumeSpec, VolumeState};
use stor_api::size;

use crate::args::{self, VolumeSize};
use crate::completion;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::snapshot;
use crate::wait::{self, Look};

mod adopt;
mod attach;
mod clone;
mod delete;
mod resize;
mod scrub;
mod shown;

use attach::{AttachArgs, DetachArgs};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum VolumeVerb {
    /// Make a volume
    Create(CreateArgs),
    /// All volumes
    List {
        /// Only those with a replica or an attachment on this node
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
    },
    /// Everything about one volume: replicas, attachments, counters
    Describe {
        /// Its name
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        name: String,
    },
    /// Delete a volume and its data
    Delete {
        /// Its name
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        name: String,
        /// Do not wait for nodes that are away or can't remove their copies: the volume is gone at once, its name
        /// free, and what they have is named and removed when they are back. If such a node has the volume
        /// attached, its engine is cut off
        #[arg(long)]
        force: bool,
        /// Its snapshots, too
        #[arg(long)]
        snapshots: bool,
    },
    /// Make a volume larger; it may be in use
    Resize {
        /// Its name
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        name: String,
        /// Its new size: 20Gi, 1T; not smaller than it is
        #[arg(value_parser = args::volume_size)]
        size: VolumeSize,
    },
    /// Change how many replicas must be in sync for a volume to be written
    Set {
        /// Its name
        #[arg(add = completion::volumes(), value_parser = args::existing)]
        name: String,
        /// I/O waits rather than go on with fewer copies in sync; not more than are in sync now
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
        min_in_sync: u8,
    },
    /// Compare all copies, block by block, and make them equal; it may be in use
    Scrub(scrub::ScrubArgs),
    /// After the catalogue was restored from an old backup: take over what a volume's replicas say
    Adopt(adopt::AdoptArgs),
    /// Give a node the volume as a device
    Attach(AttachArgs),
    /// Take the volume from a node
    Detach(DetachArgs),
}

/// Of `volume create`.
#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Its name
    #[arg(value_parser = args::volume_name)]
    name: String,
    /// Its size: 10Gi, 500Mi, 1T; from 1Mi to 64Ti, rounded up to a multiple of 4096 bytes
    #[arg(value_parser = args::volume_size, allow_negative_numbers = true,
        required_unless_present_any = ["from_snapshot", "from_volume"])]
    size: Option<VolumeSize>,
    /// Make it what a snapshot holds: at once, sharing its blocks, on the nodes that have copies
    #[arg(long, value_name = "VOLUME@NAME", add = completion::snapshots(), value_parser = snapshot::existing,
        conflicts_with_all = ["size", "from_volume", "class", "pool", "tag", "spread", "together"])]
    from_snapshot: Option<snapshot::Name>,
    /// Make it what another volume holds at this moment
    #[arg(long, value_name = "VOLUME", add = completion::volumes(), value_parser = args::existing,
        conflicts_with_all = ["size", "class", "pool", "tag", "spread", "together"])]
    from_volume: Option<String>,
    /// Class whose values fill what is not given here
    #[arg(long, add = completion::classes(), value_parser = args::existing)]
    class: Option<String>,
    /// Copies, each on another node [default: the class's, else 2]
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    replicas: Option<u8>,
    /// Pool to carve from [default: the class's, else any]
    #[arg(long, add = completion::pools(), value_parser = args::existing)]
    pool: Option<String>,
    /// Tag the pool must have; repeatable
    #[arg(long, value_parser = args::tag)]
    tag: Vec<String>,
    /// Node property, such as zone, that must differ between replicas
    #[arg(long, value_name = "PROPERTY", value_parser = args::property_key)]
    spread: Option<String>,
    /// Node property that must be the same for all replicas
    #[arg(long, value_name = "PROPERTY", value_parser = args::property_key)]
    together: Option<String>,
    /// I/O waits rather than go on with fewer copies in sync [default: 1 of up to 2, 2 of more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=8))]
    min_in_sync: Option<u8>,
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: VolumeVerb) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        VolumeVerb::Create(args) => create(context, args).await,
        VolumeVerb::List { node } => {
            let none = match &node {
                // One that is not there has no volumes either, and a typo must not look like that.
                Some(node) => format!("no volumes on node {}", client.node(node).await?.name),
                None => "no volumes; make one with `storctl volume create NAME SIZE`".to_owned(),
            };
            let volumes = client.volumes(&Filter { node, volume: None }).await?;
            context.out.list(volumes, &none, shown::table)
        }
        VolumeVerb::Describe { name } => context.out.object(&client.volume(&name).await?, shown::describe),
        VolumeVerb::Resize { name, size } => resize::resize(context, &name, size).await,
        VolumeVerb::Set { name, min_in_sync } => resize::set(context, &name, min_in_sync).await,
        VolumeVerb::Scrub(args) => scrub::scrub(context, args).await,
        VolumeVerb::Delete {
            name,
            force,
            snapshots,
        } => delete::delete(context, &name, force, snapshots).await,
        VolumeVerb::Adopt(args) => adopt::adopt(context, args).await,
        VolumeVerb::Attach(args) => attach::attach(context, args).await,
        VolumeVerb::Detach(args) => attach::detach(context, args).await,
    }
}

/// A volume that begins as a snapshot, or as what another volume holds now.
async fn restore(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let spec = RestoreSpec {
        name: args.name,
        replicas: args.replicas,
        min_in_sync: args.min_in_sync,
    };
    let from = match (args.from_snapshot, args.from_volume) {
        (Some(from), _) => from,
        (None, Some(volume)) => return clone::clone(context, &volume, &spec).await,
        (None, None) => return Err(Failure::new(Exit::Usage, "the size of the volume is missing")),
    };
    let wish = Wish::Restore {
        volume: &from.volume,
        name: &from.name,
        spec: &spec,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let volume = context.client.restore(&from.volume, &from.name, &spec).await?;
    if context.no_wait {
        return context
            .out
            .object(&volume, |volume| made_of(volume, &from.to_string(), false));
    }
    let volume = created(context, &spec.name).await?;
    context
        .out
        .object(&volume, |volume| made_of(volume, &from.to_string(), true))
}

/// What is said of a volume that was made of something.
fn made_of(volume: &Volume, of: &str, done: bool) -> String {
    let nodes: Vec<&str> = volume.replicas.iter().map(|r| r.node.as_str()).collect();
    let (name, size) = (&volume.name, size::format(volume.size_bytes));
    let how = if done { "created" } else { "is being created" };
    format!("volume {name} {how} of {of}: {size} on {}\n", nodes.join(", "))
}

async fn create(context: &Context, args: CreateArgs) -> Result<(), Failure> {
    let Some(asked) = args.size else {
        return restore(context, args).await;
    };
    let spec = VolumeSpec {
        name: args.name,
        size_bytes: asked.bytes,
        class: args.class,
        replicas: args.replicas,
        pool: args.pool,
        tags: args.tag,
        spread: args.spread,
        together: args.together,
        min_in_sync: args.min_in_sync,
    };
    if let Some(asked) = asked.rounded_from {
        context.out.remark(&format!(
            "{asked} bytes are rounded up to {}, a multiple of {}",
            spec.size_bytes,
            size::BLOCK
        ));
    }
    if context.planned(&Wish::CreateVolume(&spec)).await? {
        return Ok(());
    }
    let volume = context.client.create_volume(&spec).await?;
    // A new one always has its replicas still to be made when the wish is answered.
    let was_there = volume.state != VolumeState::Creating;
    let volume = if context.no_wait {
        volume
    } else {
        created(context, &spec.name).await?
    };
    context.out.object(&volume, |volume| {
        let nodes: Vec<&str> = volume.replicas.iter().map(|r| r.node.as_str()).collect();
        let (name, size) = (&volume.name, size::format(volume.size_bytes));
        let state = if volume.state == VolumeState::Creating {
            "is being created"
        } else if was_there {
            "was there already, nothing was changed"
        } else {
            "created"
        };
        format!("volume {name} {state}: {size} on {}\n", nodes.join(", "))
    })
}

/// Waits until a volume can be attached.
pub(crate) async fn created(context: &Context, name: &str) -> Result<Volume, Failure> {
    let mut refused = None;
    wait::until(context, &format!("volume {name}"), async || {
        look_created(&context.client, name, &mut refused).await
    })
    .await
}

/// A node that says for so long that it can't make a replica won't in a minute either: its pool filled up, its disk broke.
const REFUSED_FOR: Duration = Duration::from_secs(5);

async fn look_created(
    client: &Client,
    name: &str,
    refused: &mut Option<Instant>,
) -> Result<Look<Volume>, Failure> {
    let volume = client.volume(name).await?;
    if !volume
        .replicas
        .iter()
        .any(|replica| replica.state == ReplicaState::Failed)
    {
        *refused = None;
    } else if refused.get_or_insert_with(Instant::now).elapsed() >= REFUSED_FOR
        && volume.state == VolumeState::Creating
    {
        return Err(Failure::failed(format!("volume {name} can't be made as it was placed"))
            .why(volume.reason)
            .help(format!(
                "put that right, and it goes on by itself; or take it away and make it again, which places it elsewhere: \
                 storctl volume delete {name}"
            )));
    }
    Ok(match volume.state {
        VolumeState::Creating => {
            let there = volume.replicas.iter().filter(|replica| is_there(replica)).count();
            let mut doing = format!("making replicas, {there} of {} there", volume.replicas.len());
            if !volume.reason.is_empty() {
                doing = format!("{doing}; {}", volume.reason);
            }
            Look::Pending(doing, None)
        }
        VolumeState::Failed => {
            return Err(Failure::failed(format!("volume {name} can't be made"))
                .why(volume.reason)
                .help(format!(
                    "put right what is wrong, or take it away with `storctl volume delete {name}`"
                )));
        }
        VolumeState::Unknown => Look::Pending("nothing was heard of it yet".to_owned(), None),
        VolumeState::Healthy
        | VolumeState::Degraded
        | VolumeState::Suspended
        | VolumeState::CatalogueBehind => Look::Done(volume),
        VolumeState::Deleting => return Err(Failure::failed(format!("volume {name} is being deleted"))),
    })
}

/// Its node has reported it.
fn is_there(replica: &Replica) -> bool {
    match replica.state {
        ReplicaState::InSync | ReplicaState::Stale | ReplicaState::Syncing => true,
        ReplicaState::Creating | ReplicaState::Offline | ReplicaState::Failed | ReplicaState::Deleting => {
            false
        }
    }
}

pub(crate) use attach::{attached, detached};
pub(crate) use delete::{gone, table as left_behind};
pub(crate) use shown::{replica_table, volume_and_replicas};
