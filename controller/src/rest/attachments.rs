//! Attachments: which node uses a volume, and how.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::objects::{Attachment, AttachmentSpec, Page};
use stor_api::problem::Problem;
use stor_replication::catalogue::Refusal;

use super::answer::{Answer, created, cut, done, object, plan};
use super::extract::{At, Body, List, Manner, Nothing, Params};
use super::problem::Failure;
use super::volumes::need;
use crate::behind;
use crate::catalogue::command::{Attach, Purpose};
use crate::catalogue::load::{self, Which};
use crate::catalogue::row::{Node, Volume, VolumePhase};
use crate::catalogue::{self, Action, Outcome, Refused};
use crate::cluster::{Cluster, Look};
use crate::show;

/// Ways to serve a device, best first.
const TRANSPORTS: [&str; 4] = ["ublk", "nbd", "fuse", "socket"];
const NODE_OFFLINE: &str = "node-offline";
/// Views that moved between looking and proposing before an attach is given up.
const ATTEMPTS: u32 = 8;
/// An attach right after a create waits this long for the volume's replicas.
const READY_WITHIN: Duration = Duration::from_secs(5);

pub(super) fn check_transport(transport: &str) -> Result<(), Failure> {
    if TRANSPORTS.contains(&transport) {
        return Ok(());
    }
    let given: String = transport.chars().take(40).collect();
    Err(Failure::invalid(format!(
        "{given:?} is not a transport; there are {}",
        TRANSPORTS.join(", ")
    )))
}

/// Attachments of all volumes, or of one volume or node.
#[utoipa::path(get, path = "/api/v1/attachments", operation_id = "attachments_list", tag = "attachments", params(List),
    responses((status = 200, body = Page<Attachment>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = match &list.volume {
        Some(volume) => vec![need(&mut look, volume).await?],
        None => load::volumes_which(look.rows(), Which::Attached).await?,
    };
    let mut attachments: Vec<Attachment> = rows
        .iter()
        .filter_map(|row| show::user_attachment(row, &look.seen))
        .collect();
    attachments.retain(|attachment| list.node.as_ref().is_none_or(|node| *node == attachment.node));
    Ok(cut(attachments, &list, key))
}

fn key(attachment: &Attachment) -> String {
    format!("{} {}", attachment.volume, attachment.node)
}

/// Attachments of a volume.
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/attachments", operation_id = "attachments_list_of", tag = "attachments",
    params(("volume" = String, Path), List),
    responses((status = 200, body = Page<Attachment>), (status = "default", body = Problem)))]
pub(super) async fn list_of(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(list): Params<List>,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = need(&mut look, &name).await?;
    Ok(cut(
        show::user_attachment(&row, &look.seen).into_iter().collect(),
        &list,
        key,
    ))
}

/// One attachment.
#[utoipa::path(get, path = "/api/v1/volumes/{volume}/attachments/{node}", operation_id = "attachments_get", tag = "attachments",
    params(("volume" = String, Path), ("node" = String, Path)),
    responses((status = 200, body = Attachment), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At((name, node)): At<(String, String)>,
    _: Params<Nothing>,
) -> Answer {
    let mut look = cluster.look().await?;
    let row = need(&mut look, &name).await?;
    show_attachment(&row, &look, &node, StatusCode::OK)
}

fn show_attachment(row: &Volume, look: &Look, node: &str, status: StatusCode) -> Answer {
    let attachment = show::user_attachment(row, &look.seen)
        .filter(|attachment| attachment.node == node)
        .ok_or_else(|| not_attached(&row.name, node))?;
    Ok(object(status, row.row.revision, &attachment))
}

fn not_attached(volume: &str, node: &str) -> Failure {
    Failure::not_found(format!("attachment of volume {volume} on node {node}"))
}

/// Begin to attach a volume to a node.
#[utoipa::path(post, path = "/api/v1/volumes/{volume}/attachments", operation_id = "attachments_create", tag = "attachments",
    params(("volume" = String, Path), Manner), request_body = AttachmentSpec,
    responses((status = 201, body = Attachment, description = "Look at its state until it is attached or failed"),
        (status = 200, body = Attachment, description = "The node has it already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    Body(spec): Body<AttachmentSpec>,
) -> Answer {
    if let Some(transport) = &spec.transport {
        check_transport(transport)?;
    }
    wait_ready(&cluster, &name).await?;
    let mut reports = cluster.observed.changes();
    let mut attempts = 0;
    while attempts < ATTEMPTS {
        let mut look = cluster.look().await?;
        let row = need(&mut look, &name).await?;
        let attach = match draft(&mut look, &row, &spec, manner).await {
            Ok(attach) => attach,
            Err(failure) => {
                // A read transaction must not stay open meanwhile.
                let seen = look.end();
                if failure.code() == NODE_OFFLINE && cluster.may_still_come(&seen, &mut reports).await {
                    continue;
                }
                return Err(failure);
            }
        };
        if manner.dry_run {
            return dry_run(&mut look, &row, attach).await;
        }
        drop(look);
        match cluster.propose(Action::Attach(attach)).await? {
            Ok(outcome) => {
                let mut look = cluster.look().await?;
                let row = need(&mut look, &name).await?;
                return show_attachment(&row, &look, &spec.node, created(&outcome));
            }
            // Its view moved since it was looked at: an engine came, went, or changed its members.
            Err(Refused::View {
                refusal: Refusal::ViewChanged { .. },
                ..
            }) => attempts += 1,
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(
        Failure::conflict("busy", format!("the view of volume {name} changes all the time"))
            .remedy("ask again"),
    )
}

/// Waits a little for a volume that is being made, so that creating and attaching needs no polling between.
async fn wait_ready(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let mut applied = cluster.raft.applied();
    let deadline = tokio::time::Instant::now() + READY_WITHIN;
    loop {
        applied.borrow_and_update();
        let mut look = cluster.look().await?;
        let row = need(&mut look, name).await?;
        // One in doubt is not made any more.
        if row.phase != VolumePhase::Creating || row.doubt {
            return Ok(());
        }
        drop(look);
        if !matches!(
            tokio::time::timeout_at(deadline, applied.changed()).await,
            Ok(Ok(()))
        ) {
            return Err(
                Failure::conflict("not-ready", format!("volume {name} is still being created"))
                    .because("Not all of its nodes have made their replicas yet.")
                    .remedy("look at its replicas: a node that is offline or a pool that failed holds it up"),
            );
        }
    }
}

/// The attach as it would be made now.
async fn draft(
    look: &mut Look,
    row: &Volume,
    spec: &AttachmentSpec,
    manner: Manner,
) -> Result<Attach, Failure> {
    if let Some(why) = behind::in_short(row, &look.seen) {
        return Err(Failure::behind(&row.name, &format!("It is known of it: {why}.")));
    }
    let node = load::node(look.rows(), &spec.node)
        .await?
        .ok_or_else(|| Failure::not_found(format!("node {}", spec.node)))?;
    if let Some(is) = show::user_attachment(row, &look.seen)
        && row.attachment.as_ref().is_some_and(|is| is.detaching)
        && !(spec.force || manner.force)
    {
        let why = if is.reason.is_empty() {
            "Its engine has been asked to stop and has not ended yet.".to_owned()
        } else {
            format!("It waits: {}.", is.reason)
        };
        let title = format!("volume {} is being detached from node {}", row.name, is.node);
        return Err(Failure::conflict("detaching", title).because(why).remedy(
            "wait until it is detached and attach it then, or attach with force, which fences its engine",
        ));
    }
    let present = row
        .attachment
        .as_ref()
        .filter(|is| is.purpose == Purpose::User && row.row.owner.as_ref() == Some(&spec.node));
    let transport = match (&spec.transport, present) {
        // Asked again without naming one: as it is.
        (None, Some(is)) => is.transport.clone(),
        (wanted, _) => {
            let class = match (&wanted, &row.wish.class) {
                (None, Some(class)) => load::class(look.rows(), class).await?,
                _ => None,
            };
            let wanted = wanted
                .clone()
                .or_else(|| class.and_then(|class| class.wish.transport));
            if !look.seen.online(&node.name) {
                return Err(
                    Failure::conflict(NODE_OFFLINE, format!("node {} is not connected", node.name))
                        .because("Its satellite could not be told to attach the volume.")
                        .remedy("start stor-satellite on the node and check that it reaches a controller"),
                );
            }
            choose_transport(&node, wanted)?
        }
    };
    Ok(Attach {
        volume: row.row.volume,
        node: spec.node.clone(),
        expect: row.row.view.epoch,
        force: spec.force || manner.force,
        transport,
        read_only: spec.read_only,
        purpose: Purpose::User,
    })
}

/// The one wanted, or the best the node has.
fn choose_transport(node: &Node, wanted: Option<String>) -> Result<String, Failure> {
    let probe = |name: &str| node.transports.iter().find(|probe| probe.name == name);
    if let Some(wanted) = wanted {
        return match probe(&wanted) {
            Some(probe) if probe.available => Ok(wanted),
            found => {
                let remedy = found.map(|probe| probe.remedy.clone()).unwrap_or_default();
                Err(
                    Failure::invalid(format!("node {} does not have the transport {wanted}", node.name))
                        .remedy(remedy),
                )
            }
        };
    }
    if let Some(best) = TRANSPORTS
        .iter()
        .find(|name| probe(name).is_some_and(|probe| probe.available))
    {
        return Ok((*best).to_owned());
    }
    let remedies: Vec<String> = node
        .transports
        .iter()
        .map(|probe| format!("{}: {}", probe.name, probe.remedy))
        .collect();
    Err(
        Failure::invalid(format!("node {} has no transport that works", node.name))
            .remedy(remedies.join("; ")),
    )
}

async fn dry_run(look: &mut Look, row: &Volume, attach: Attach) -> Answer {
    let mut steps = Vec::new();
    if let Some(owner) = row.row.owner.as_ref().filter(|owner| **owner != attach.node) {
        steps.push(format!(
            "take volume {} from node {owner}, whose engine is fenced",
            row.name
        ));
    }
    steps.push(format!(
        "attach volume {} on node {} by {}",
        row.name, attach.node, attach.transport
    ));
    match catalogue::check(look.rows(), &Action::Attach(attach)).await?? {
        Outcome::Unchanged => Ok(plan(Vec::new(), Vec::new())),
        Outcome::Created | Outcome::Changed | Outcome::Row(_) => Ok(plan(steps, Vec::new())),
    }
}

/// Begin to detach a volume from a node; with `force`, without asking its engine, which is fenced.
#[utoipa::path(delete, path = "/api/v1/volumes/{volume}/attachments/{node}", operation_id = "attachments_delete", tag = "attachments",
    params(("volume" = String, Path), ("node" = String, Path), Manner),
    responses((status = 202, body = Attachment, description = "Gone once the volume does not list it any more"),
        (status = 204, description = "Gone"), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At((name, node)): At<(String, String)>,
    Params(manner): Params<Manner>,
) -> Answer {
    for _ in 0..ATTEMPTS {
        let mut look = cluster.look().await?;
        let row = need(&mut look, &name).await?;
        show_attachment(&row, &look, &node, StatusCode::OK)?;
        let detach = |force| Action::Detach {
            volume: row.row.volume,
            expect: row.row.view.epoch,
            force,
        };
        if manner.dry_run {
            catalogue::check(look.rows(), &detach(manner.force)).await??;
            let how = if manner.force {
                " without asking its engine, which is fenced"
            } else {
                ""
            };
            return Ok(plan(
                vec![format!("detach volume {name} from node {node}{how}")],
                Vec::new(),
            ));
        }
        drop(look);
        match cluster.propose(detach(manner.force)).await? {
            Ok(_) => {
                let unread = |trouble| Failure::from(trouble).after_change();
                let mut look = cluster.look().await.map_err(unread)?;
                let Some(row) = load::volume_named(look.rows(), &name).await? else {
                    return Ok(done());
                };
                // Detached for good, or taken over by somebody else meanwhile: gone either way.
                return Ok(
                    show_attachment(&row, &look, &node, StatusCode::ACCEPTED).unwrap_or_else(|_| done())
                );
            }
            Err(Refused::View {
                refusal: Refusal::ViewChanged { .. },
                ..
            }) => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    Err(
        Failure::conflict("busy", format!("the view of volume {name} changes all the time"))
            .remedy("ask again"),
    )
}
