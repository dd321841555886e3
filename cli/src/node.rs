//! `storctl node …`

use std::net::{IpAddr, SocketAddr};

use clap::Subcommand;
use stor_api::client::{Client, Filter, Wish};
use stor_api::objects::{Node, NodeChange, NodeKind, NodeLeaving, NodeSpec, NodeState};

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Done, width};
use crate::table::{Cell, Column, Fields, Table, Tone};
use crate::volume::left_behind;

mod emptying;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Register a node and print the line to run there
    Create {
        /// Its name
        #[arg(value_parser = args::node_name)]
        name: String,
        /// Host name or IP address under which the other nodes reach it
        address: String,
        /// It only attaches volumes, has no pools
        #[arg(long)]
        diskless: bool,
        /// Property for placement, such as zone=a; repeatable
        #[arg(long, value_name = "KEY=VALUE", value_parser = args::property)]
        property: Vec<(String, String)>,
    },
    /// All nodes
    List,
    /// Everything about one node
    Describe {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
    },
    /// Change properties
    Set {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
        /// New value; `KEY=` removes the property; repeatable
        #[arg(long, value_name = "KEY=VALUE", value_parser = args::property, required = true)]
        property: Vec<(String, String)>,
    },
    /// Move all replicas away from a node, and place none there
    Drain {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
    },
    /// Let a node hold replicas again
    Undrain {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
    },
    /// Declare a node that is not connected gone for good: its replicas are replaced on other nodes at once
    Lost {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
    },
    /// Forget a node that has no pools and no attachments
    Delete {
        /// Its name
        #[arg(add = completion::nodes(), value_parser = args::existing)]
        name: String,
        /// The node is gone for good: forget its pools without replicas too, and what it still has to remove of
        /// deleted volumes. A node that is connected is not treated so
        #[arg(long)]
        force: bool,
    },
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: NodeVerb) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        NodeVerb::Create {
            name,
            address,
            diskless,
            property,
        } => {
            let kind = if diskless {
                NodeKind::Diskless
            } else {
                NodeKind::Storage
            };
            let properties = args::properties(property)?;
            create(
                context,
                &NodeSpec {
                    name,
                    address,
                    kind,
                    properties,
                },
            )
            .await
        }
        NodeVerb::List => context.out.list(
            client.nodes().await?,
            "no nodes yet; register one with `storctl node create NAME ADDRESS`",
            table,
        ),
        NodeVerb::Describe { name } => {
            let node = client.node(&name).await?;
            let filter = Filter {
                node: Some(name),
                volume: None,
            };
            let left = client.tombstones(&filter).await?;
            context.out.object(&node, |node| {
                let mut text = describe(node, jiff::Timestamp::now());
                if !left.is_empty() {
                    let table = left_behind(&left).render(width());
                    text.extend([format!("\nTo be removed of deleted volumes\n{table}")]);
                }
                text
            })
        }
        NodeVerb::Set { name, property } => {
            let change = NodeChange {
                properties: args::properties(property)?,
            };
            if context
                .planned(&Wish::ChangeNode {
                    name: &name,
                    change: &change,
                })
                .await?
            {
                return Ok(());
            }
            let node = client.change_node(&name, &change).await?;
            context
                .out
                .object(&node, |node| format!("node {} changed\n", node.name))
        }
        NodeVerb::Drain { name } => emptying::empty(context, &name, emptying::How::Drain).await,
        NodeVerb::Lost { name } => emptying::empty(context, &name, emptying::How::Lost).await,
        NodeVerb::Undrain { name } => {
            if context.planned(&Wish::UndrainNode { name: &name }).await? {
                return Ok(());
            }
            let node = client.undrain_node(&name).await?;
            context.out.object(&node, |node| {
                format!("node {} may hold replicas again\n", node.name)
            })
        }
        NodeVerb::Delete { name, force } => {
            if context.planned(&Wish::DeleteNode { name: &name, force }).await? {
                return Ok(());
            }
            client.delete_node(&name, force).await?;
            context.out.done(
                &Done::new("node", &name, "deleted"),
                &format!("node {name} forgotten"),
            )
        }
    }
}

async fn create(context: &Context, spec: &NodeSpec) -> Result<(), Failure> {
    if context.planned(&Wish::CreateNode(spec)).await? {
        return Ok(());
    }
    let node = context.client.create_node(spec).await?;
    let line = start_line(&context.client, &node).await;
    context.out.object(&node, |node| {
        format!(
            "node {} registered; run on it:\n\n  {}\n",
            node.name,
            line.as_deref().unwrap_or("stor-satellite run")
        )
    })?;
    if line.is_none() {
        context.out.remark(
            "the controllers' addresses are not known just now: give one with --controller http://HOST:PORT",
        );
    }
    Ok(())
}

/// The line that starts the node's satellite. Its controllers are all there are now; the satellite learns
/// of others later.
async fn start_line(client: &Client, node: &Node) -> Option<String> {
    // The node was made; without an answer the line is shown without its arguments.
    let controllers = client.controllers().await.ok()?;
    let mut line = format!(
        "stor-satellite run --node {} --state-dir /var/lib/stor",
        node.name
    );
    for controller in &controllers {
        line.extend([format!(" --controller {}", controller.peer_address)]);
    }
    if node.kind == NodeKind::Storage {
        line.push_str(" --data-listen ");
        line.extend([match node.address.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, DATA_PORT).to_string(),
            Err(_) => format!("0.0.0.0:{DATA_PORT} --data-address {}:{DATA_PORT}", node.address),
        }]);
    }
    (!controllers.is_empty()).then_some(line)
}

/// Where a storage node serves its replicas unless told otherwise.
const DATA_PORT: u16 = 3371;

fn kind(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::Storage => "storage",
        NodeKind::Diskless => "diskless",
    }
}

fn state(state: NodeState) -> Cell {
    match state {
        NodeState::Online => Cell::new("online", Tone::Good),
        NodeState::Offline => Cell::new("offline", Tone::Bad),
        NodeState::New => Cell::new("new", Tone::Warn),
    }
}

/// With what is done to it.
fn shown_state(node: &Node) -> Cell {
    let how = match node.leaving {
        None => return state(node.state),
        Some(NodeLeaving::Drain) => "draining",
        Some(NodeLeaving::Lost) => "lost",
    };
    let online = match node.state {
        NodeState::Online => "online",
        NodeState::Offline => "offline",
        NodeState::New => "new",
    };
    Cell::new(format!("{online}, {how}"), Tone::Warn)
}

fn properties(node: &Node) -> String {
    let pairs: Vec<String> = node.properties.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(" ")
}

fn transports(node: &Node) -> String {
    let usable: Vec<&str> = node
        .transports
        .iter()
        .filter(|t| t.available)
        .map(|t| t.name.as_str())
        .collect();
    usable.join(" ")
}

fn table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&[
        Column::left("NAME"),
        Column::left("KIND"),
        Column::left("STATE"),
        Column::left("ADDRESS"),
        Column::optional("TRANSPORTS"),
        Column::optional("VERSION"),
        Column::optional("PROPERTIES"),
    ]);
    for node in nodes {
        table.row([
            node.name.clone().into(),
            kind(node.kind).into(),
            shown_state(node),
            node.address.clone().into(),
            transports(node).into(),
            node.version.clone().unwrap_or_default().into(),
            properties(node).into(),
        ]);
    }
    table
}

fn describe(node: &Node, now: jiff::Timestamp) -> String {
    let mut fields = Fields::default();
    fields
        .field("Name", node.name.as_str())
        .field("Kind", kind(node.kind))
        .field("State", shown_state(node))
        .field("Address", node.address.as_str())
        .optional("Replica server", node.data_address.as_deref().unwrap_or_default())
        .optional("Version", node.version.as_deref().unwrap_or_default())
        .optional(
            "Last heard",
            &node.last_seen.as_deref().map(|t| ago(t, now)).unwrap_or_default(),
        )
        .optional(
            "Properties",
            &node
                .properties
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect::<Vec<_>>()
                .join(
                    "
",
                ),
        );
    let mut text = fields.render();
    if !node.transports.is_empty() {
        let mut table = Table::new(&[
            Column::left("TRANSPORT"),
            Column::left("USABLE"),
            Column::optional("REMEDY"),
        ]);
        for transport in &node.transports {
            let usable = if transport.available {
                Cell::new("yes", Tone::Good)
            } else {
                Cell::new("no", Tone::Warn)
            };
            table.row([
                transport.name.clone().into(),
                usable,
                transport.remedy.clone().into(),
            ]);
        }
        text.extend([format!("\n{}", table.render(width()))]);
    }
    text
}

/// `2026-01-01T00:00:00Z (3 s ago)`.
fn ago(time: &str, now: jiff::Timestamp) -> String {
    let Ok(then) = time.parse::<jiff::Timestamp>() else {
        return time.to_owned();
    };
    let seconds = now.as_second().saturating_sub(then.as_second());
    let ago = match seconds {
        i64::MIN..=0 => return format!("{} (now)", crate::event::short_time(time)),
        1..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    };
    format!("{} ({ago} ago)", crate::event::short_time(time))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use stor_api::objects::Transport;

    fn nodes() -> Vec<Node> {
        let node = |name: &str, kind, state| Node {
            name: name.into(),
            address: "127.0.0.1".into(),
            kind,
            state,
            leaving: None,
            properties: BTreeMap::new(),
            data_address: None,
            version: None,
            transports: Vec::new(),
            last_seen: None,
            revision: 3,
        };
        let mut s1 = node("s1", NodeKind::Storage, NodeState::Online);
        s1.properties = [
            ("zone".to_owned(), "a".to_owned()),
            ("rack".to_owned(), "2".to_owned()),
        ]
        .into();
        s1.data_address = Some("127.0.0.1:3403".into());
        s1.version = Some("0.1.0".into());
        s1.last_seen = Some("2026-01-01T00:00:00.123456789Z".into());
        s1.transports = vec![
            Transport {
                name: "fuse".into(),
                available: false,
                remedy: "/dev/fuse is missing: load the kernel module with `modprobe fuse`".into(),
            },
            Transport {
                name: "socket".into(),
                available: true,
                remedy: String::new(),
            },
        ];
        vec![
            s1,
            node("k1", NodeKind::Diskless, NodeState::New),
            node("s2", NodeKind::Storage, NodeState::Offline),
        ]
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn list() {
        insta::assert_snapshot!(plain(&table(&nodes()).render(None)));
    }

    #[test]
    fn one() {
        let now = "2026-01-01T00:00:04Z".parse().unwrap();
        insta::assert_snapshot!(plain(&describe(&nodes()[0], now)));
    }

    #[test]
    fn how_long_ago() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (time, text) in [
            ("2026-01-01T00:00:01Z", "(now)"),
            ("2025-12-31T23:59:30Z", "(30 s ago)"),
            ("2025-12-31T23:50:00Z", "(10 min ago)"),
            ("2025-12-31T20:00:00Z", "(4 h ago)"),
            ("2025-12-01T00:00:00Z", "(31 days ago)"),
        ] {
            assert!(ago(time, now).ends_with(text), "{time}: {}", ago(time, now));
        }
        assert_eq!(ago("yesterday", now), "yesterday");
    }
}
