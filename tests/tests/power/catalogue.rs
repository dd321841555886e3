//! A client of the controllers that makes and removes volumes until the power goes. What was answered is there
//! afterwards, and what was answered as removed is not.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::client::{Client, Filter};
use stor_api::objects::{VolumeSpec, VolumeState};
use stor_tests::cluster::{CONTROLLERS, Cluster, POOL};
use stor_tests::volume;
use stor_tests::wait;

const PAUSE: Duration = Duration::from_millis(100);
/// Volumes at one time.
const AT_MOST: usize = 3;
/// A call to controllers without power ends after this.
const CALL: Duration = Duration::from_secs(3);
const SIZE: u64 = 4 << 20;

/// What the controllers said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    next: u64,
    /// Made, and nobody asked for their removal.
    there: BTreeSet<String>,
    /// Removed; their replicas may still be on the way.
    removed: BTreeSet<String>,
    /// Asked for, without an answer.
    unknown: BTreeSet<String>,
}

/// The client at work.
#[derive(Debug)]
pub(crate) struct Clerk {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Told>>,
}

impl Clerk {
    /// Begins.
    pub(crate) fn start(cluster: &Cluster, told: Told) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let client = cluster.client().with_timeout(CALL);
        let flag = Arc::clone(&stop);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = thread::Builder::new().spawn(move || {
            let mut told = told;
            while !flag.load(Ordering::SeqCst) && runtime.block_on(told.step(&client)) {
                thread::sleep(PAUSE);
            }
            Ok(told)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it, after the call under way.
    pub(crate) fn stop(self) -> anyhow::Result<Told> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().ok().context("the clerk panicked")?
    }
}

impl Told {
    /// One more change; `false` when it was not answered.
    async fn step(&mut self, client: &Client) -> bool {
        if self.there.len() >= AT_MOST
            && let Some(name) = self.there.pop_first()
        {
            let done = client.delete_volume(&name, false).await.is_ok();
            let to = if done {
                &mut self.removed
            } else {
                &mut self.unknown
            };
            to.insert(name);
            return done;
        }
        self.next += 1;
        let name = format!("v{}", self.next);
        let spec = VolumeSpec {
            replicas: Some(2),
            pool: Some(POOL.to_owned()),
            ..volume::spec(&name, SIZE)
        };
        let done = client.create_volume(&spec).await.is_ok();
        let to = if done { &mut self.there } else { &mut self.unknown };
        to.insert(name);
        done
    }

    /// How many changes were answered.
    pub(crate) fn answered(&self) -> usize {
        self.there.len() + self.removed.len()
    }

    /// Whether the controllers still know.
    pub(crate) fn check(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let names = wait::that(wait::LONG, "the controllers list the volumes", || {
            let listed = cluster.run(cluster.client().volumes(&Filter::default()));
            Ok(listed.map_err(|error| error.to_string()))
        })?;
        let gone = |name: &&String| !names.iter().any(|volume| volume.name == **name);
        let forgotten: Vec<&String> = self.there.iter().filter(gone).collect();
        ensure!(
            forgotten.is_empty(),
            "volumes were made and are forgotten: {forgotten:?} of {:?}",
            self.there
        );
        for volume in names {
            ensure!(
                !self.removed.contains(&volume.name) || volume.state == VolumeState::Deleting,
                "{} was removed and is there again: {volume:?}",
                volume.name
            );
        }
        Ok(())
    }

    /// Waits until all that was made is whole and all that was removed is gone.
    pub(crate) fn settle(&self, cluster: &Cluster) -> anyhow::Result<()> {
        wait::that(wait::LONG, "all volumes are whole or gone", || {
            let listed = match cluster.run(cluster.client().volumes(&Filter::default())) {
                Ok(listed) => listed,
                Err(error) => return Ok(Err(error.to_string())),
            };
            let odd = listed
                .iter()
                .find(|volume| self.removed.contains(&volume.name) || volume.state != VolumeState::Healthy);
            Ok(odd.map_or(Ok(()), |volume| {
                Err(format!("{} {:?} {}", volume.name, volume.state, volume.reason))
            }))
        })
    }
}

/// Waits until the catalogues of all controllers are the same, as text.
pub(crate) fn are_equal(cluster: &Cluster) -> anyhow::Result<()> {
    wait::that(wait::LONG, "the catalogues are equal", || {
        let dumps: Vec<Vec<String>> = CONTROLLERS
            .iter()
            .map(|name| dump(cluster, name))
            .collect::<anyhow::Result<_>>()?;
        for (name, other) in CONTROLLERS.iter().zip(&dumps).skip(1) {
            let odd =
                |one: &[String], other: &[String]| one.iter().find(|line| !other.contains(line)).cloned();
            if let Some(line) = odd(&dumps[0], other).or_else(|| odd(other, &dumps[0])) {
                return Ok(Err(format!("c1 and {name} differ, one has {line}")));
            }
        }
        Ok(Ok(()))
    })
}

fn dump(cluster: &Cluster, name: &str) -> anyhow::Result<Vec<String>> {
    let file = cluster.dir().join(name).join("catalogue.db");
    let output = Command::new("sqlite3")
        .arg("-readonly")
        .arg(&file)
        .arg(".dump")
        .output()?;
    ensure!(output.status.success(), "{}: {output:?}", file.display());
    let text = String::from_utf8(output.stdout)?;
    // When a migration was run, and how long it took, is each controller's own.
    let own = |line: &&str| !line.starts_with("INSERT INTO _sqlx_migrations");
    Ok(text.lines().filter(own).map(str::to_owned).collect())
}
