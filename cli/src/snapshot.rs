//! `storctl snapshot …`

use clap::Subcommand;
use stor_api::client::{Error, Filter, Wish};
use stor_api::name::{self, Kind};
use stor_api::objects::{
    Snapshot, SnapshotCopy, SnapshotCopyState, SnapshotSpec, SnapshotState, SnapshotsSpec, Volume,
};
use stor_api::size;

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Done, confirm, width};
use crate::table::{Column, Fields, Table};
use crate::volume;
use crate::wait::{self, Look};

/// `VOLUME@NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) volume: String,
    pub(crate) name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.volume, self.name)
    }
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotVerb {
    /// Keep what a volume holds at this moment; of several volumes, at one moment
    Create {
        /// VOLUME@NAME; with several, all are made or none
        #[arg(required = true, value_name = "VOLUME@NAME", value_parser = new_snapshot)]
        snapshots: Vec<Name>,
    },
    /// All snapshots
    List {
        /// Only those of this volume
        #[arg(long, add = completion::volumes(), value_parser = args::existing)]
        volume: Option<String>,
    },
    /// Everything about one snapshot: its copies and the space they take
    Describe {
        /// VOLUME@NAME
        #[arg(value_name = "VOLUME@NAME", add = completion::snapshots(), value_parser = existing)]
        snapshot: Name,
    },
    /// Delete a snapshot; volumes made of it stay
    Delete {
        /// VOLUME@NAME
        #[arg(value_name = "VOLUME@NAME", add = completion::snapshots(), value_parser = existing)]
        snapshot: Name,
    },
    /// Make a detached volume what a snapshot of it holds; what it holds now is lost
    Rollback {
        /// VOLUME@NAME
        #[arg(value_name = "VOLUME@NAME", add = completion::snapshots(), value_parser = existing)]
        snapshot: Name,
    },
}

/// A snapshot that is there.
pub(crate) fn existing(text: &str) -> Result<Name, String> {
    match text.split_once('@') {
        Some((volume, name)) if !volume.is_empty() && !name.is_empty() => Ok(Name {
            volume: volume.to_owned(),
            name: name.to_owned(),
        }),
        _ => Err(format!("{text:?} is not VOLUME@NAME")),
    }
}

fn new_snapshot(text: &str) -> Result<Name, String> {
    let snapshot = existing(text)?;
    name::check(Kind::Snapshot, &snapshot.name).map_err(|e| e.to_string())?;
    Ok(snapshot)
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: SnapshotVerb) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        SnapshotVerb::Create { snapshots } => create(context, &snapshots).await,
        SnapshotVerb::List { volume } => {
            let none = match &volume {
                Some(volume) => format!("no snapshots of volume {}", client.volume(volume).await?.name),
                None => "no snapshots; make one with `storctl snapshot create VOLUME@NAME`".to_owned(),
            };
            let snapshots = client.snapshots(&Filter { node: None, volume }).await?;
            context.out.list(snapshots, &none, table)
        }
        SnapshotVerb::Describe { snapshot } => {
            let one = client.snapshot(&snapshot.volume, &snapshot.name).await?;
            context.out.object(&one, describe)
        }
        SnapshotVerb::Delete { snapshot } => delete(context, &snapshot).await,
        SnapshotVerb::Rollback { snapshot } => roll_back(context, &snapshot).await,
    }
}

async fn create(context: &Context, names: &[Name]) -> Result<(), Failure> {
    let spec = SnapshotsSpec {
        snapshots: names
            .iter()
            .map(|name| SnapshotSpec {
                volume: name.volume.clone(),
                name: name.name.clone(),
            })
            .collect(),
    };
    if context.planned(&Wish::CreateSnapshots(&spec)).await? {
        return Ok(());
    }
    let page = context.client.create_snapshots(&spec).await?;
    if context.no_wait {
        return context.out.object(&page, |page| {
            let line = |one: &Snapshot| format!("snapshot {}@{} is being made\n", one.volume, one.name);
            page.items.iter().map(line).collect()
        });
    }
    let mut made = Vec::new();
    for name in names {
        made.push(ready(context, name).await?);
    }
    let page = stor_api::objects::Page {
        items: made,
        next: None,
    };
    context.out.object(&page, |page| {
        let line = |one: &Snapshot| {
            let nodes: Vec<&str> = one.copies.iter().map(|copy| copy.node.as_str()).collect();
            format!(
                "snapshot {}@{} made: on {}\n",
                one.volume,
                one.name,
                nodes.join(", ")
            )
        };
        page.items.iter().map(line).collect()
    })
}

/// Waits until a snapshot is ready.
async fn ready(context: &Context, name: &Name) -> Result<Snapshot, Failure> {
    wait::until(context, &format!("snapshot {name}"), || async {
        let one = context.client.snapshot(&name.volume, &name.name).await?;
        match one.state {
            SnapshotState::Creating => Ok(Look::Pending("being made".to_owned(), None)),
            SnapshotState::Ready => Ok(Look::Done(one)),
            SnapshotState::Failed => {
                Err(Failure::failed(format!("snapshot {name} was not made")).why(one.reason))
            }
            SnapshotState::Deleting => Err(Failure::failed(format!("snapshot {name} is being deleted"))),
        }
    })
    .await
}

/// Deletes a snapshot and waits until it is gone.
pub(crate) async fn remove(context: &Context, name: &Name) -> Result<(), Failure> {
    context.client.delete_snapshot(&name.volume, &name.name).await?;
    if context.no_wait {
        return Ok(());
    }
    wait::until(context, &format!("deletion of snapshot {name}"), || async {
        match context.client.snapshot(&name.volume, &name.name).await {
            Err(Error::NotFound { .. }) => Ok(Look::Done(())),
            Err(error) => Err(error.into()),
            Ok(one) if one.state != SnapshotState::Deleting => Ok(Look::Done(())),
            Ok(one) => {
                let nodes: Vec<&str> = one.copies.iter().map(|copy| copy.node.as_str()).collect();
                Ok(Look::Pending(
                    format!("removing copies on {}", nodes.join(", ")),
                    None,
                ))
            }
        }
    })
    .await
}

async fn delete(context: &Context, name: &Name) -> Result<(), Failure> {
    let wish = Wish::DeleteSnapshot {
        volume: &name.volume,
        name: &name.name,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    let title = name.to_string();
    if !context.yes {
        context.client.snapshot(&name.volume, &name.name).await?;
        let question = format!("Snapshot {title} is deleted; volumes made of it stay as they are.");
        confirm(&question, &format!("storctl snapshot delete {title}"))?;
    }
    remove(context, name).await?;
    let (word, text) = if context.no_wait {
        ("deleting", format!("snapshot {title} is being deleted"))
    } else {
        ("deleted", format!("snapshot {title} deleted"))
    };
    context.out.done(&Done::new("snapshot", &title, word), &text)
}

async fn roll_back(context: &Context, name: &Name) -> Result<(), Failure> {
    let wish = Wish::RollBack {
        volume: &name.volume,
        name: &name.name,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    if !context.yes {
        let one = context.client.snapshot(&name.volume, &name.name).await?;
        let question = format!(
            "Volume {} becomes what it was at {}; all that was written since is lost.",
            name.volume, one.created
        );
        confirm(&question, &format!("storctl snapshot rollback {name}"))?;
    }
    let volume = context.client.roll_back(&name.volume, &name.name).await?;
    let volume = if context.no_wait {
        volume
    } else {
        volume::created(context, &name.volume).await?
    };
    context.out.object(&volume, |volume: &Volume| {
        let how = if context.no_wait {
            "is going back"
        } else {
            "went back"
        };
        format!("volume {} {how} to snapshot {name}\n", volume.name)
    })
}

fn state(one: &Snapshot) -> &'static str {
    match one.state {
        SnapshotState::Creating => "creating",
        SnapshotState::Ready => "ready",
        SnapshotState::Failed => "failed",
        SnapshotState::Deleting => "deleting",
    }
}

fn copy_state(copy: &SnapshotCopy) -> &'static str {
    match copy.state {
        SnapshotCopyState::Creating => "creating",
        SnapshotCopyState::Copying => "copying",
        SnapshotCopyState::Present => "present",
        SnapshotCopyState::Missing => "missing",
        SnapshotCopyState::Failed => "failed",
        SnapshotCopyState::Offline => "offline",
        SnapshotCopyState::Deleting => "deleting",
    }
}

/// With how far it is, while it is made anew.
fn copy_shown(copy: &SnapshotCopy, size: u64) -> String {
    let percent = |done: u64| u128::from(done) * 100 / u128::from(size.max(1));
    match copy.copied_bytes {
        Some(done) => format!("{} {}%", copy_state(copy), percent(done)),
        None => copy_state(copy).to_owned(),
    }
}

/// Of all copies, as far as their nodes have told.
fn sum(one: &Snapshot, of: impl Fn(&SnapshotCopy) -> Option<u64>) -> String {
    let told: Vec<u64> = one.copies.iter().filter_map(of).collect();
    if told.is_empty() {
        return "-".to_owned();
    }
    size::format(told.iter().sum())
}

fn table(snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        Column::left("VOLUME"),
        Column::left("NAME"),
        Column::right("SIZE"),
        Column::left("STATE"),
        Column::right("COPIES"),
        Column::right("OWN"),
        Column::right("REFERS"),
        Column::left("CREATED"),
        Column::optional("REASON"),
    ]);
    for one in snapshots {
        let present = one
            .copies
            .iter()
            .filter(|copy| copy.state == SnapshotCopyState::Present);
        table.row([
            one.volume.clone().into(),
            one.name.clone().into(),
            size::format(one.size_bytes).into(),
            state(one).into(),
            format!("{}/{}", present.count(), one.wanted_copies).into(),
            sum(one, |copy| copy.own_bytes).into(),
            sum(one, |copy| copy.allocated_bytes).into(),
            one.created.clone().into(),
            one.reason.clone().into(),
        ]);
    }
    table
}

fn describe(one: &Snapshot) -> String {
    let mut fields = Fields::default();
    fields
        .field("Snapshot", format!("{}@{}", one.volume, one.name))
        .field("Id", one.id.as_str())
        .field("Size", size::format(one.size_bytes))
        .field("State", state(one))
        .optional("Reason", &one.reason)
        .field("Created", one.created.as_str())
        .field("Group", one.group.as_str());
    let mut table = Table::new(&[
        Column::left("NODE"),
        Column::left("POOL"),
        Column::left("STATE"),
        Column::right("OWN"),
        Column::right("REFERS"),
        Column::optional("REASON"),
    ]);
    let shown = |bytes: Option<u64>| bytes.map_or("-".to_owned(), size::format);
    for copy in &one.copies {
        table.row([
            copy.node.clone().into(),
            copy.pool.clone().into(),
            copy_shown(copy, one.size_bytes).into(),
            shown(copy.own_bytes).into(),
            shown(copy.allocated_bytes).into(),
            copy.reason.clone().into(),
        ]);
    }
    format!("{}\n{}", fields.render(), table.render(width()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(state: SnapshotState, reason: &str) -> Snapshot {
        let copy = |node: &str, state, own_bytes: Option<u64>| SnapshotCopy {
            replica: 0,
            node: node.into(),
            pool: "sp01".into(),
            state,
            reason: String::new(),
            allocated_bytes: own_bytes.map(|bytes| bytes * 8),
            own_bytes,
            copied_bytes: None,
        };
        Snapshot {
            volume: "db1".into(),
            name: "before-upgrade".into(),
            id: "0191d5b4-0000-7000-8000-000000000001".into(),
            size_bytes: 10 << 30,
            state,
            reason: reason.into(),
            created: "2026-01-01T00:00:00Z".into(),
            group: "0191d5b4-0000-7000-8000-000000000002".into(),
            copies: vec![
                copy("s1", SnapshotCopyState::Present, Some(1 << 30)),
                copy("s2", SnapshotCopyState::Offline, None),
            ],
            wanted_copies: 2,
            revision: 1,
        }
    }

    #[test]
    fn list_and_one() {
        let ready = snapshot(SnapshotState::Ready, "1 of 2 replicas can show it");
        let failed = snapshot(
            SnapshotState::Failed,
            "the pool of the replica on node s2 has not enough room",
        );
        let text = format!(
            "{}\n{}",
            table(&[ready.clone(), failed]).render(None),
            describe(&ready)
        );
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn names() {
        let name = existing("db1@a").unwrap();
        assert_eq!((name.volume.as_str(), name.name.as_str()), ("db1", "a"));
        for bad in ["db1", "@a", "db1@", ""] {
            assert!(existing(bad).is_err(), "{bad}");
        }
        assert!(new_snapshot("db1@No").is_err());
    }
}
