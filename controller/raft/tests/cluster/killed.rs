//! A process that is killed with SIGKILL while it writes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use futures_util::{StreamExt, stream};
use stor_raft::{Node, Options, PeerInfo, Timing};

use crate::pairs::{PATIENCE, Pairs, free_address, set, value};

const DIR: &str = "STOR_RAFT_TEST_DIR";

fn options(dir: PathBuf) -> Options {
    let listen = free_address();
    let peer = PeerInfo {
        id: 1,
        name: "c1".to_owned(),
        peer_address: listen.to_string(),
        ..PeerInfo::default()
    };
    let mut options = Options::new(dir, listen, peer);
    options.timing = Timing::fast();
    // Often, so that some kills hit a snapshot or a purge.
    options.snapshot_every = 50;
    options.keep_entries = 10;
    options
}

async fn open(dir: PathBuf) -> Node<Pairs> {
    let node: Node<Pairs> = Node::open(options(dir)).await.unwrap();
    if !node.is_initialized().await {
        node.initialize().await.unwrap();
    }
    let mut views = node.leadership();
    tokio::time::timeout(PATIENCE, views.wait_for(|view| view.is_self))
        .await
        .unwrap()
        .unwrap();
    node
}

/// The process to be killed: prints each key once it is acknowledged. Runs only as the child of the test below.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "the child process of `nothing_acknowledged_is_lost_by_sigkill`"]
async fn child() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let node = open(dir.into()).await;
    let start = *node.applied().borrow();
    let writes = stream::iter(0..u64::MAX).map(|number| {
        let (node, key) = (node.clone(), format!("{start}-{number}"));
        async move {
            node.propose(set(&key, "v")).await.unwrap();
            writeln!(std::io::stdout().lock(), "acknowledged {key}").unwrap();
        }
    });
    writes.buffer_unordered(4).collect::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_by_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    // Each round is killed after another number of lines: at the first ones, in and behind snapshots.
    for lines in [1, 40, 57, 99, 150, 311] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::child", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let before = acknowledged.len();
        for line in output.lines() {
            // The test harness's own lines may be in between.
            if let Some((_, key)) = line.unwrap().split_once("acknowledged ") {
                acknowledged.push(key.to_owned());
                if acknowledged.len() == before + lines {
                    // SIGKILL; what it wrote until it is gone is read on.
                    child.kill().unwrap();
                }
            }
        }
        child.wait().unwrap();
        assert!(acknowledged.len() >= before + lines, "the child ended by itself");
    }
    let node = open(dir.path().to_owned()).await;
    node.linearize().await.unwrap();
    for key in &acknowledged {
        assert_eq!(
            value(node.reader(), key).await.as_deref(),
            Some("v"),
            "{key} was acknowledged"
        );
    }
    node.shutdown().await;
}
