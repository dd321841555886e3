//! A controller made from a backup, cut off before any change it makes on its disk: killed, or with its machine's power.
//! The restore is then either not done, so that no controller runs on what is there and repeating it does it; or it is
//! done, and the controller knows that it was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use stor_api::client::{Client, Options};
use stor_api::objects::{CatalogueInfo, NodeKind, NodeSpec};
use stor_tests::lossy::chance::Chance;
use stor_tests::lossy::{self, Disk};
use stor_tests::ports::Ports;
use stor_tests::{skip, wait};

/// Moments of a run that was not told otherwise, spread evenly over all there are.
const MOMENTS: u64 = 12;
/// And before each of the last changes: what they make of it is decided there.
const LAST: u64 = 4;
/// How many, for a longer run; more than there are tries all.
const MOMENTS_SET: &str = "STOR_RESTORE_MOMENTS";
/// What `init --restore` says of a directory; `run` refuses both.
const NOT_DONE: [&str; 2] = ["was not set up to the end", "is not initialised"];
const NODE: &str = "s1";

/// One controller at a time, in any directory.
struct Place {
    root: PathBuf,
    ports: Ports,
    runtime: tokio::runtime::Runtime,
}

impl Place {
    fn peer(&self) -> String {
        format!("127.0.0.1:{}", self.ports.get(0))
    }

    fn api(&self) -> String {
        format!("127.0.0.1:{}", self.ports.get(1))
    }

    fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&Options {
            urls: vec![format!("http://{}", self.api())],
            token_file: None,
            ca_file: None,
            timeout: Duration::from_secs(5),
        })?)
    }

    fn controller(&self, verb: &str, dir: &Path) -> anyhow::Result<Command> {
        let mut command = Command::new(stor_tests::cluster::built("stor-controller")?);
        command.arg(verb).arg("--dir").arg(dir).stdin(Stdio::null());
        if verb == "init" {
            command.args(["--name", "c1", "--peer-listen", &self.peer()]);
            command.args(["--api-listen", &self.api()]);
        }
        Ok(command)
    }

    fn backup(&self) -> PathBuf {
        self.root.join("catalogue.backup")
    }

    fn restore(&self, dir: &Path) -> anyhow::Result<Command> {
        let mut command = self.controller("init", dir)?;
        command.arg("--restore").arg(self.backup());
        Ok(command)
    }

    /// Runs the controller for as long as `use_it` takes.
    fn running<T>(&self, dir: &Path, use_it: impl FnOnce(&Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let mut running = Running(self.controller("run", dir)?.stderr(Stdio::null()).spawn()?);
        let client = self.client()?;
        wait::that(wait::LONG, "the controller answers", || {
            if let Some(status) = running.0.try_wait()? {
                bail!("the controller ended: {status}");
            }
            let answer = self.runtime.block_on(client.catalogue());
            Ok(answer.map(drop).map_err(|error| error.to_string()))
        })?;
        use_it(&client)
    }

    /// The catalogue of the backup is there, in a history of its own.
    fn is_restored(&self, client: &Client, before: &CatalogueInfo) -> anyhow::Result<()> {
        let info = self.runtime.block_on(client.catalogue())?;
        ensure!(
            info.cluster_id == before.cluster_id && info.generation == before.generation + 1,
            "{info:?} after {before:?}"
        );
        ensure!(
            info.restored.is_some() && info.history != before.history,
            "{info:?}"
        );
        self.runtime
            .block_on(client.node(NODE))
            .context("what the backup holds")?;
        Ok(())
    }

    /// Nothing runs on a half of it; repeated, it is done.
    fn not_done_or_done(&self, dir: &Path, before: &CatalogueInfo) -> anyhow::Result<bool> {
        let done = is_complete(dir)?;
        if !done {
            let refused = self.controller("run", dir)?.output()?;
            let said = told(&refused);
            ensure!(
                !refused.status.success() && NOT_DONE.iter().any(|reason| said.contains(reason)),
                "a controller on a half: {said}"
            );
            let again = self.restore(dir)?.output()?;
            ensure!(again.status.success(), "repeating it: {}", told(&again));
        }
        self.running(dir, |client| self.is_restored(client, before))?;
        Ok(done)
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What the directory says of itself.
fn is_complete(dir: &Path) -> anyhow::Result<bool> {
    match fs::read(dir.join("controller.json")) {
        Ok(text) => {
            let settings: serde_json::Value = serde_json::from_slice(&text)
                .with_context(|| format!("controller.json is {:?}", String::from_utf8_lossy(&text)))?;
            Ok(settings.get("complete") == Some(&true.into()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Makes a cluster with something in it, and a backup of that.
fn backed_up(place: &Place) -> anyhow::Result<CatalogueInfo> {
    let dir = place.root.join("before");
    let made = place.controller("init", &dir)?.output()?;
    ensure!(made.status.success(), "{}", told(&made));
    place.running(&dir, |client| {
        let node = NodeSpec {
            name: NODE.into(),
            address: "127.0.0.1".into(),
            kind: NodeKind::Storage,
            properties: [].into(),
        };
        place.runtime.block_on(client.create_node(&node))?;
        let mut file = fs::File::create(place.backup())?;
        place.runtime.block_on(client.backup(false, &mut file))?;
        Ok(place.runtime.block_on(client.catalogue())?)
    })
}

/// Restores into a directory of the disk, until the disk's power goes. Whether it came to its end before.
fn cut_off(place: &Place, disk: &Disk, dir: &Path, changes: u64) -> anyhow::Result<bool> {
    disk.hold_after(changes);
    let mut restoring = Running(place.restore(dir)?.stderr(Stdio::null()).spawn()?);
    let mut ended = None;
    wait::until(wait::LONG, "it is cut off or done", || {
        ended = restoring.0.try_wait()?;
        Ok(disk.is_held() || ended.is_some())
    })?;
    restoring.0.kill()?;
    disk.release();
    drop(restoring);
    Ok(ended.is_some_and(|status| status.success()))
}

fn moments() -> anyhow::Result<u64> {
    match std::env::var(MOMENTS_SET) {
        Ok(text) => text.parse().with_context(|| format!("{MOMENTS_SET}={text}")),
        Err(_) => Ok(MOMENTS),
    }
}

#[test]
fn a_restore_that_is_cut_off_is_not_done_or_done() -> anyhow::Result<()> {
    if let Some(missing) = lossy::missing() {
        skip::skipped("a restore that is cut off", &missing);
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let place = Place {
        root: root.path().to_owned(),
        ports: Ports::take()?,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?,
    };
    let before = backed_up(&place)?;
    let point = root.path().join("disk");
    fs::create_dir(&point)?;
    let mut disk = Disk::mount(&point)?;
    let whole = point.join("whole");
    let output = place.restore(&whole)?.output()?;
    ensure!(output.status.success(), "{}", told(&output));
    let all = disk.changes();
    place.running(&whole, |client| place.is_restored(client, &before))?;

    let count = moments()?.min(all);
    let (mut done, mut not_done) = (0, 0);
    // How many changes it takes may differ by one or two from run to run.
    let mut moments: BTreeSet<u64> = (all - LAST..=all + 1).collect();
    moments.extend((0..count).map(|moment| all * moment / count));
    for changes in moments {
        for is_power in [false, true] {
            let dir = point.join(format!("at-{changes}-{is_power}"));
            disk.settle()?;
            let ended = cut_off(&place, &disk, &dir, changes)?;
            if is_power {
                disk.cut(&mut Chance::new(changes))?;
            } else {
                disk.resume();
            }
            let kind = if is_power { "power" } else { "kill" };
            let is_done = place
                .not_done_or_done(&dir, &before)
                .with_context(|| format!("{kind} before change {changes} of {all}"))?;
            ensure!(
                is_done || !ended,
                "{kind} before change {changes}: done, and lost"
            );
            *(if is_done { &mut done } else { &mut not_done }) += 1;
        }
    }
    println!("{all} changes on the disk; cut off {not_done} times before its end, {done} times after");
    ensure!(not_done >= count && done > 0, "hardly ever cut off, or always");
    Ok(())
}
