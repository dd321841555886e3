//! What a quickstart says when its cluster is up: what there is, where it is, and three things to try.

use serde::Serialize;

use super::cluster::Cluster;
use super::fleet::{CLIENT, POOL};
use crate::table::Tone;

/// What was made, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Made {
    dir: String,
    env: String,
    urls: Vec<String>,
    controllers: Vec<String>,
    storage_nodes: Vec<String>,
    diskless_nodes: Vec<String>,
    pool: String,
    /// How to call this storctl.
    #[serde(skip)]
    storctl: String,
}

impl Made {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let names = cluster.satellites().iter().map(|s| s.name.clone());
        let (diskless_nodes, storage_nodes) = names.partition(|name| name == CLIENT);
        Self {
            dir: cluster.place().dir().display().to_string(),
            env: cluster.place().env().display().to_string(),
            urls: cluster.client().urls().to_vec(),
            controllers: cluster.controllers().iter().map(|c| c.name.clone()).collect(),
            storage_nodes,
            diskless_nodes,
            pool: POOL.to_owned(),
            storctl: own_name(),
        }
    }
}

/// `storctl` when a shell finds this very program under that name, its path otherwise.
fn own_name() -> String {
    let Ok(me) = std::env::current_exe() else {
        return "storctl".to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("storctl"))
        .find(|p| p.is_file());
    let is_me = found.and_then(|p| p.canonicalize().ok()).is_some_and(|p| p == me);
    if is_me {
        "storctl".to_owned()
    } else {
        me.display().to_string()
    }
}

/// The screen.
pub(crate) fn text(made: &Made) -> String {
    let Made {
        dir, env, storctl, ..
    } = made;
    let title = Tone::Good.paint("Stor is up.");
    let row = |label: &str, value: &str| format!("  {label:<15}{value}\n");
    let mut text = format!("{title} Everything is on loopback and in {dir}\n\n");
    text.push_str(&row(
        "controllers",
        &format!("{}   {}", made.controllers.join(" "), made.urls.join(" ")),
    ));
    text.push_str(&row(
        "storage nodes",
        &format!("{}   pool {} on each", made.storage_nodes.join(" "), made.pool),
    ));
    text.push_str(&row(
        "client node",
        &format!(
            "{}   attaches volumes, stores nothing",
            made.diskless_nodes.join(" ")
        ),
    ));
    text.push_str(&row("environment", env));
    text.push_str(&row("logs", &format!("{dir}/log/NAME.log")));
    text.extend([format!(
        "\nTry, in another shell:\n\n\
         \x20 . {env}\n\n\
         \x20 # a volume with two copies, as a device on this machine\n\
         \x20 {storctl} volume create db1 1Gi && {storctl} volume attach db1 --node {CLIENT}\n\n\
         \x20 # kill a storage node; I/O goes on; start it again and see what is copied\n\
         \x20 kill -9 $(cat {dir}/run/s1.pid); {storctl} status; {dir}/run/s1.start\n\n\
         \x20 # where everything is, and what happened\n\
         \x20 {storctl} volume describe db1; {storctl} event list\n\n\
         Ctrl-C stops the cluster; the next `quickstart` in this directory goes on with it.\n"
    )]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen() {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let made = Made {
            dir: "/srv/stor-data".into(),
            env: "/srv/stor-data/env".into(),
            urls: names(&[
                "http://127.0.0.1:3370",
                "http://127.0.0.1:3371",
                "http://127.0.0.1:3372",
            ]),
            controllers: names(&["c1", "c2", "c3"]),
            storage_nodes: names(&["s1", "s2", "s3"]),
            diskless_nodes: names(&["k1"]),
            pool: "sp01".into(),
            storctl: "storctl".into(),
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&made)).to_string());
    }
}
