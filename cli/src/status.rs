//! `storctl status`: the cluster on one screen, modelled on `ceph -s`. Health first, each reason with what to
//! do about it.

use stor_api::objects::{Check, ControllerRole, Health, Severity, Status};
use stor_api::size;

use crate::context::Context;
use crate::controller::role;
use crate::failure::Failure;
use crate::table::Tone;

/// Runs the command.
pub(crate) async fn run(context: &Context) -> Result<(), Failure> {
    context.out.object(&context.client.status().await?, screen)
}

/// Width of the labels.
const LABEL: usize = 13;

fn screen(status: &Status) -> String {
    let mut text = String::new();
    section(&mut text, "cluster");
    line(&mut text, "id", &status.cluster_id);
    line(&mut text, "version", &status.version);
    let health = match status.health {
        Health::Ok => Tone::Good.paint("HEALTH_OK"),
        Health::Warn => Tone::Warn.paint("HEALTH_WARN"),
        Health::Err => Tone::Bad.paint("HEALTH_ERR"),
    };
    line(&mut text, "health", &health);
    for check in &status.checks {
        reason(&mut text, check);
    }

    section(&mut text, "services");
    line(&mut text, "controllers", &controllers(status));
    let nodes = &status.nodes;
    line(&mut text, "storage", &online(nodes.storage_online, nodes.storage));
    line(
        &mut text,
        "diskless",
        &online(nodes.diskless_online, nodes.diskless),
    );

    section(&mut text, "data");
    if status.pools.is_empty() {
        line(
            &mut text,
            "pools",
            "none; make one with `storctl pool create NAME --node NODE --dir PATH`",
        );
    }
    for (at, pool) in status.pools.iter().enumerate() {
        let label = if at == 0 { "pools" } else { "" };
        let mut nodes = count(pool.nodes, "node");
        if (1..pool.nodes).contains(&pool.filesystems) {
            nodes = format!("{nodes} on {}", count(pool.filesystems, "file system"));
        }
        let space = if pool.capacity_bytes == 0 {
            "space not reported yet".to_owned()
        } else {
            format!(
                "{} of {} free",
                size::format(pool.free_bytes),
                size::format(pool.capacity_bytes)
            )
        };
        line(&mut text, label, &format!("{}: {nodes}, {space}", pool.name));
    }
    line(&mut text, "volumes", &volumes(status));

    if !status.work.is_empty() {
        section(&mut text, "work");
        for work in &status.work {
            text.extend([format!("    {work}\n")]);
        }
    }
    text
}

fn count(number: u64, thing: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{s}")
}

fn section(text: &mut String, title: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.extend([format!("  {title}:\n")]);
}

fn line(text: &mut String, label: &str, value: &str) {
    let label = if label.is_empty() {
        String::new()
    } else {
        format!("{label}:")
    };
    text.extend([format!("    {label:<LABEL$}{value}\n")]);
}

fn reason(text: &mut String, check: &Check) {
    let tone = match check.severity {
        Severity::Info => Tone::Faint,
        Severity::Warning => Tone::Warn,
        Severity::Error => Tone::Bad,
    };
    let pad = " ".repeat(4 + LABEL);
    text.extend([format!("{pad}{} {}\n", tone.paint(&check.code), check.message)]);
    let many = check.objects.len();
    if many > 0 {
        let mut named = check
            .objects
            .iter()
            .take(6)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        if many > 6 {
            named = format!("{named} and {} more", many - 6);
        }
        text.extend([format!("{pad}  {named}\n")]);
    }
    if !check.remedy.is_empty() {
        text.extend([format!("{pad}  help: {}\n", check.remedy)]);
    }
}

fn online(online: u64, all: u64) -> String {
    if all == 0 {
        return "none".to_owned();
    }
    let nodes = if all == 1 { "node" } else { "nodes" };
    let tone = if online == all { Tone::Good } else { Tone::Bad };
    tone.paint(&format!("{online} of {all} {nodes} online"))
}

fn controllers(status: &Status) -> String {
    let all = &status.controllers;
    let up = all.iter().filter(|c| c.online).count();
    let tone = if up == all.len() { Tone::Good } else { Tone::Bad };
    let named: Vec<String> = all
        .iter()
        .map(|c| match (c.online, c.role) {
            (false, _) => format!("{} (offline)", c.name),
            (true, ControllerRole::Follower) => c.name.clone(),
            (true, other) => format!("{} ({})", c.name, role(other)),
        })
        .collect();
    format!(
        "{}: {}",
        tone.paint(&format!("{up} of {} online", all.len())),
        named.join(", ")
    )
}

fn volumes(status: &Status) -> String {
    let all: u64 = status.volumes.values().sum();
    if all == 0 {
        return "none".to_owned();
    }
    let each: Vec<String> = status
        .volumes
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(state, count)| {
            let tone = match state.as_str() {
                "healthy" => Tone::Good,
                "failed" | "suspended" => Tone::Bad,
                _ => Tone::Warn,
            };
            tone.paint(&format!("{count} {state}"))
        })
        .collect();
    format!("{all}: {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use stor_api::objects::{Controller, StatusNodes, StatusPool};

    fn status() -> Status {
        let controller = |name: &str, role, online| Controller {
            name: name.into(),
            id: 1,
            api_address: "http://127.0.0.1:3370".into(),
            peer_address: "http://127.0.0.1:3400".into(),
            role,
            online,
            lag: None,
        };
        Status {
            cluster_id: "0191d5b4-0000-7000-8000-00000000abcd".into(),
            version: "0.1.0".into(),
            health: Health::Ok,
            checks: Vec::new(),
            controllers: vec![
                controller("c1", ControllerRole::Leader, true),
                controller("c2", ControllerRole::Follower, true),
                controller("c3", ControllerRole::Follower, true),
            ],
            nodes: StatusNodes {
                storage_online: 3,
                storage: 3,
                diskless_online: 1,
                diskless: 1,
            },
            pools: vec![StatusPool {
                name: "sp01".into(),
                nodes: 3,
                filesystems: 2,
                capacity_bytes: 300 << 30,
                free_bytes: 200 << 30,
            }],
            volumes: [("healthy".to_owned(), 2)].into(),
            work: Vec::new(),
        }
    }

    fn plain(status: &Status) -> String {
        anstream::adapter::strip_str(&screen(status)).to_string()
    }

    #[test]
    fn all_is_well() {
        insta::assert_snapshot!(plain(&status()));
    }

    #[test]
    fn trouble_names_reasons_and_remedies() {
        let mut status = status();
        status.health = Health::Err;
        let check = |code: &str, severity, message: &str, objects: &[&str], remedy: &str| Check {
            code: code.into(),
            severity,
            message: message.into(),
            objects: objects.iter().map(|o| (*o).to_owned()).collect(),
            remedy: remedy.into(),
        };
        let many: Vec<String> = (1..=9).map(|i| format!("volume/db{i}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        status.checks = vec![
            check(
                "NODE_OFFLINE",
                Severity::Error,
                "node s1 is not connected",
                &["node/s1"],
                "start its satellite",
            ),
            check(
                "VOLUME_DEGRADED",
                Severity::Warning,
                "9 volumes have a replica that is not in sync",
                &many,
                "",
            ),
        ];
        status.controllers[2].online = false;
        status.nodes.storage_online = 2;
        status.volumes = [
            ("degraded".to_owned(), 9),
            ("healthy".to_owned(), 1),
            ("suspended".to_owned(), 1),
        ]
        .into();
        status.work = vec!["resync of db1 to s1: 40 %, 90.0 MiB left".into()];
        insta::assert_snapshot!(plain(&status));
    }

    #[test]
    fn an_empty_cluster() {
        let mut status = status();
        status.pools.clear();
        status.volumes.clear();
        status.nodes = StatusNodes::default();
        insta::assert_snapshot!(plain(&status));
    }
}
