//! `storctl volume attach` and `detach`.

use clap::Args;
use stor_api::client::{Client, Wish};
use stor_api::objects::{Attachment, AttachmentSpec, AttachmentState};

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::{Exit, Failure};
use crate::output::{Done, confirm};
use crate::wait::{self, Look};

/// Of `volume attach`.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The volume
    #[arg(add = completion::volumes(), value_parser = args::existing)]
    name: String,
    /// The node that gets it
    #[arg(long, add = completion::nodes(), value_parser = args::existing)]
    node: String,
    /// How the device is reached: fuse (a device in /dev/stor) or socket (NBD on a unix socket) [default: the
    /// class's, else the best the node has]
    #[arg(long, value_parser = ["ublk", "nbd", "fuse", "socket"])]
    transport: Option<String>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Take it from the node that has it, whose engine can't write any more from then on
    #[arg(long)]
    force: bool,
}

/// Of `volume detach`.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// The volume
    #[arg(add = completion::volumes(), value_parser = args::existing)]
    name: String,
    /// The node that has it [default: the one that has it]
    #[arg(long, add = completion::nodes(), value_parser = args::existing)]
    node: Option<String>,
    /// Do not wait for the node, and take the volume from it although it is in use: its engine can't write any
    /// more, what uses the device there gets I/O errors, and what a mounted file system has not written yet
    /// is lost
    #[arg(long)]
    force: bool,
}

pub(super) async fn attach(context: &Context, args: AttachArgs) -> Result<(), Failure> {
    let AttachArgs {
        name,
        node,
        transport,
        read_only,
        force,
    } = args;
    let spec = AttachmentSpec {
        node,
        transport,
        read_only,
        force,
    };
    if context
        .planned(&Wish::Attach {
            volume: &name,
            spec: &spec,
        })
        .await?
    {
        return Ok(());
    }
    let attachment = context.client.attach(&name, &spec).await?;
    let attachment = if context.no_wait {
        attachment
    } else {
        attached(context, &name, &spec.node).await?
    };
    context.out.object(&attachment, |a| match a.state {
        AttachmentState::Attached if !a.device.is_empty() => {
            format!("volume {} is {} on node {}\n", a.volume, a.device, a.node)
        }
        AttachmentState::Attached => format!("volume {} on node {}: {}\n", a.volume, a.node, a.nbd_uri),
        _ => format!("volume {} is being attached on node {}\n", a.volume, a.node),
    })
}

/// Waits until an attachment serves.
pub(crate) async fn attached(context: &Context, name: &str, node: &str) -> Result<Attachment, Failure> {
    let what = format!("volume {name} on node {node}");
    wait::until(context, &what, || look_attached(&context.client, name, node)).await
}

async fn look_attached(client: &Client, name: &str, node: &str) -> Result<Look<Attachment>, Failure> {
    let volume = client.volume(name).await?;
    let Some(attachment) = volume.attachments.into_iter().find(|a| a.node == node) else {
        return Err(Failure::new(
            Exit::Conflict,
            format!("volume {name} is no longer attached on node {node}"),
        )
        .why("somebody detached it, or took it to another node")
        .help(format!("`storctl volume describe {name}` shows where it is")));
    };
    let pending = |doing: &str| {
        let doing = if attachment.reason.is_empty() {
            doing.to_owned()
        } else {
            format!("{doing}: {}", attachment.reason)
        };
        Look::Pending(doing, None)
    };
    Ok(match attachment.state {
        AttachmentState::Attached if attachment.device.is_empty() && attachment.nbd_uri.is_empty() => {
            pending("the device is being made")
        }
        AttachmentState::Attached => Look::Done(attachment),
        AttachmentState::Failed => {
            return Err(Failure::failed(format!("volume {name} can't be attached on node {node}"))
                .why(attachment.reason)
                .help(format!("`storctl node describe {node}` shows what the node can do; `storctl volume detach {name}` gives up")));
        }
        // The engine says itself what it waits for.
        AttachmentState::Attaching if !attachment.reason.is_empty() => {
            Look::Pending(attachment.reason.clone(), None)
        }
        AttachmentState::Attaching => pending("the engine is being started"),
        AttachmentState::Suspended => pending("I/O waits"),
        AttachmentState::Detaching => pending("being detached"),
        AttachmentState::Unknown => pending("the node is offline"),
    })
}

pub(super) async fn detach(context: &Context, args: DetachArgs) -> Result<(), Failure> {
    let DetachArgs { name, node, force } = args;
    let node = match node {
        Some(node) => node,
        None => only_node(&context.client, &name).await?,
    };
    if context
        .planned(&Wish::Detach {
            volume: &name,
            node: &node,
            force,
        })
        .await?
    {
        return Ok(());
    }
    if force && !context.yes {
        confirm_cut(context, &name, &node).await?;
    }
    context.client.detach(&name, &node, force).await?;
    if context.no_wait {
        return context.out.done(
            &Done::new("volume", &name, "detaching").on(&node),
            &format!("volume {name} is being detached from node {node}"),
        );
    }
    detached(context, &name, &node).await?;
    context.out.done(
        &Done::new("volume", &name, "detached").on(&node),
        &format!("volume {name} detached from node {node}"),
    )
}

/// Asks before a node that is online is cut off. One that is away can't be asked to give the volume back: that
/// is what the force is for.
async fn confirm_cut(context: &Context, name: &str, node: &str) -> Result<(), Failure> {
    let volume = context.client.volume(name).await?;
    let found = volume.attachments.iter().find(|a| a.node == node);
    match found.filter(|a| a.state != AttachmentState::Unknown) {
        Some(attachment) => confirm(
            &cut_off(attachment),
            &format!("storctl volume detach {name} --node {node} --force"),
        ),
        None => Ok(()),
    }
}

/// What force does to a node that has a volume.
pub(super) fn cut_off(attachment: &Attachment) -> String {
    let Attachment {
        volume, node, device, ..
    } = attachment;
    let device = if device.is_empty() {
        String::new()
    } else {
        format!(" as {device}")
    };
    format!(
        "Volume {volume} is attached on node {node}{device}, which is cut off: what uses it there gets I/O \
         errors, and what a mounted file system has not written yet is lost."
    )
}

async fn only_node(client: &Client, name: &str) -> Result<String, Failure> {
    let volume = client.volume(name).await?;
    let mut nodes: Vec<String> = volume.attachments.into_iter().map(|a| a.node).collect();
    match (nodes.pop(), nodes.is_empty()) {
        (Some(node), true) => Ok(node),
        (Some(node), false) => Err(Failure::new(
            Exit::Usage,
            format!("volume {name} is attached on more than one node"),
        )
        .why(format!("it is on {node}, {}", nodes.join(", ")))
        .help(format!("say which: `storctl volume detach {name} --node {node}`"))),
        (None, _) => Err(Failure::new(
            Exit::NotFound,
            format!("volume {name} is not attached"),
        )),
    }
}

/// Waits until a node has given a volume back.
pub(crate) async fn detached(context: &Context, name: &str, node: &str) -> Result<(), Failure> {
    let what = format!("detach of volume {name} from node {node}");
    wait::until(context, &what, || async {
        let volume = context.client.volume(name).await?;
        Ok(match volume.attachments.iter().find(|a| a.node == node) {
            None => Look::Done(()),
            Some(a) if a.reason.is_empty() => Look::Pending("the engine drains and stops".to_owned(), None),
            Some(a) => Look::Pending(a.reason.clone(), None),
        })
    })
    .await
}
