//! How a quickstart's cluster ends.
//!
//! Promises: an engine whose device is used is not killed. It is waited for, then left alive and named; what
//! uses the device waits until the next start and goes on then. Everything else is stopped or killed, and no
//! pid file stays of what is gone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use stor_api::client::Filter;

use super::{Cluster, Daemon, LOOK, note, process};
use crate::quickstart::engine::{self, Engine};

/// A satellite waits itself for devices that are used, drains and flushes, and then leaves what is still used.
const SATELLITE_END: Duration = Duration::from_secs(30);
const CONTROLLER_END: Duration = Duration::from_secs(10);
/// Time the kernel takes to end a process that was killed.
const KILL_END: Duration = Duration::from_secs(5);
/// For the names of volumes that are used; without an answer they are told by their ids.
const NAMES: Duration = Duration::from_secs(3);

impl Cluster {
    /// Stops what runs: first the diskless node, whose engines still need the replicas, then the storage
    /// nodes, then the controllers, which both tell how they ended. What does not go is killed, but for
    /// engines whose device is used.
    pub(crate) async fn stop(&mut self) {
        self.tell_used().await;
        let (storage, diskless): (Vec<&Daemon>, Vec<&Daemon>) = self
            .satellites
            .iter()
            .partition(|s| self.record.satellites.get(&s.name).is_some_and(Option::is_some));
        let controllers: Vec<&Daemon> = self.controllers.iter().collect();
        // A satellite that gets SIGINT takes its engines along; with SIGTERM they would live on.
        let mut halted = end(&diskless, Signal::INT, SATELLITE_END).await;
        halted.extend(end(&storage, Signal::INT, SATELLITE_END).await);
        end(&controllers, Signal::TERM, CONTROLLER_END).await;
        self.kill(&halted).await;
    }

    /// Kills every daemon and engine of this cluster that is still there, but for engines whose device is
    /// used, and those with a device that the satellite of one of the nodes `halted` has left; these are
    /// named. Removes the pid files.
    pub(crate) async fn kill(&self, halted: &[String]) {
        let dir = self.place.dir();
        let kept: Vec<Engine> = engine::with_device(dir)
            .into_iter()
            .filter(|engine| is_kept(engine, halted))
            .collect();
        let others = || {
            let mut pids = process::all(dir);
            pids.retain(|pid| kept.iter().all(|engine| engine.pid != *pid));
            pids
        };
        for pid in others() {
            process::signal(pid, Signal::KILL, dir);
        }
        let deadline = Instant::now() + KILL_END;
        while !others().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        for daemon in self.controllers.iter().chain(&self.satellites) {
            daemon.forget();
        }
        if kept.is_empty() {
            return;
        }
        for engine in &kept {
            note(&format!(
                "{}; it is left with its engine, process {}",
                self.used_text(engine),
                engine.pid
            ));
        }
        note(&format!(
            "reads and writes there wait; they go on when the cluster is started again: \
             storctl quickstart --dir {}",
            dir.display()
        ));
    }

    /// Says at once what will be waited for.
    async fn tell_used(&mut self) {
        let used: Vec<Engine> = engine::with_device(self.place.dir())
            .into_iter()
            .filter(|engine| !engine.users.is_empty())
            .collect();
        if used.is_empty() {
            return;
        }
        let volumes = self.client.with_timeout(NAMES).volumes(&Filter::default()).await;
        // Nobody may be left to answer: then they are told by their ids.
        self.volumes = volumes
            .unwrap_or_default()
            .into_iter()
            .map(|volume| (volume.id, volume.name))
            .collect();
        for engine in &used {
            note(&self.used_text(engine));
        }
        note(
            "waiting a while for that to end (unmount it now); what is used then is left as it is, with its \
             engine. Ctrl-C again: do not wait",
        );
    }

    fn used_text(&self, engine: &Engine) -> String {
        used_text(engine, &self.volumes)
    }
}

fn used_text(engine: &Engine, names: &BTreeMap<String, String>) -> String {
    let name = names.get(&engine.volume).unwrap_or(&engine.volume);
    let users = if engine.users.is_empty() {
        "open somewhere, perhaps in a container".to_owned()
    } else {
        engine.users.join(", ")
    };
    let (node, device) = (&engine.node, engine.device.display());
    format!("volume {name} is in use on node {node}: {device} is {users}")
}

/// A satellite that ends in order takes down every device that nobody uses: one that is still there has
/// users, even if they can't be seen from here.
fn is_kept(engine: &Engine, halted: &[String]) -> bool {
    !engine.users.is_empty() || halted.contains(&engine.node)
}

/// Signals all and waits for all, at most `limit` together; kills who stays. Returns the names of those that
/// ran and ended by themselves.
async fn end(daemons: &[&Daemon], signal: Signal, limit: Duration) -> Vec<String> {
    let running: Vec<&&Daemon> = daemons.iter().filter(|d| d.pid().is_some()).collect();
    for daemon in &running {
        daemon.listens(signal).await;
        daemon.signal(signal);
    }
    let deadline = Instant::now() + limit;
    let mut ended = Vec::new();
    for daemon in running {
        let left = deadline.saturating_duration_since(Instant::now());
        if daemon.gone(left).await {
            ended.push(daemon.name.clone());
        } else {
            note(&format!("{} does not stop; killing it", daemon.title));
            daemon.signal(Signal::KILL);
        }
    }
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(users: &[&str]) -> Engine {
        Engine {
            pid: 7,
            volume: "id1".into(),
            node: "k1".into(),
            device: "/dev/loop3".into(),
            users: users.iter().map(|user| (*user).to_owned()).collect(),
        }
    }

    #[test]
    fn a_used_device_keeps_its_engine_and_an_unused_one_only_when_its_satellite_left_it() {
        let halted = ["k1".to_owned()];
        assert!(is_kept(&engine(&["mounted on /mnt"]), &[]));
        assert!(!is_kept(&engine(&[]), &[]));
        assert!(!is_kept(&engine(&[]), &["s1".to_owned()]));
        assert!(is_kept(&engine(&[]), &halted));
    }

    #[test]
    fn what_is_used_is_named_with_its_place() {
        let names = [("id1".to_owned(), "db1".to_owned())].into();
        assert_eq!(
            used_text(&engine(&["mounted on /mnt"]), &names),
            "volume db1 is in use on node k1: /dev/loop3 is mounted on /mnt"
        );
        assert!(used_text(&engine(&[]), &BTreeMap::new()).starts_with("volume id1 is in use"));
    }
}
