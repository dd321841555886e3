//! The hand that breaks a cluster by a schedule, and makes good what it broke.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use stor_api::client::Client;
use stor_api::objects::{Attachment, AttachmentState, ControllerRole};

use super::schedule::{Fault, Partition, Step, Victim};
use crate::cluster::{CLIENT, CONTROLLERS, Cluster, SECOND, STORAGE, machine_of};
use crate::network::{Cut, Traffic, both_ways, isolate};
use crate::registers::Crowd;
use crate::volume::{self, Volume};
use crate::{process, wait};

/// Calls of the API while controllers are away: short, or the schedule would wait for them.
const CALL: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(40);
/// Between two daemons of a rolling restart.
const ROLL: Duration = Duration::from_millis(1500);

/// What makes a fault good.
#[derive(Debug)]
enum Undo {
    Start(String),
    Resume(i32),
    Heal(u32),
    Free(String),
    Clock(String),
}

/// A take-over that is under way.
#[derive(Debug)]
struct TakeOver {
    to: &'static str,
    asked: bool,
    since: Instant,
}

/// See the module.
#[derive(Debug)]
pub struct Hand<'a> {
    cluster: &'a Cluster,
    volume: Volume<'a>,
    /// Its id: the API may be away when an engine is looked for.
    id: String,
    crowd: &'a Crowd,
    client: Client,
    /// The node where it is used.
    node: &'static str,
    undo: Vec<(Instant, Undo)>,
    take_over: Option<TakeOver>,
    /// Take-overs done.
    pub taken_over: u32,
    /// Faults done.
    pub faults: u32,
}

impl<'a> Hand<'a> {
    /// For a volume that is attached on [`CLIENT`] and used by `crowd`.
    pub fn new(cluster: &'a Cluster, volume: Volume<'a>, crowd: &'a Crowd) -> anyhow::Result<Self> {
        Ok(Self {
            cluster,
            id: volume.shown()?.id,
            volume,
            crowd,
            client: cluster.client().with_timeout(CALL),
            node: CLIENT,
            undo: Vec::new(),
            take_over: None,
            taken_over: 0,
            faults: 0,
        })
    }

    /// Where the volume is used now.
    pub fn node(&self) -> &'static str {
        self.node
    }

    /// Does what the schedule says, then makes everything good.
    pub fn play(&mut self, steps: &[Step]) -> anyhow::Result<()> {
        let start = Instant::now();
        for step in steps {
            self.go_on_until(start + step.at)?;
            println!(
                "{:6.1} s  {} answered  {}",
                start.elapsed().as_secs_f32(),
                self.crowd.answered(),
                step.fault
            );
            self.begin(step)
                .with_context(|| format!("doing {}", step.fault))?;
            self.faults += 1;
        }
        self.heal()
    }

    fn go_on_until(&mut self, time: Instant) -> anyhow::Result<()> {
        loop {
            self.crowd.healthy()?;
            self.go_on_taking_over()?;
            let now = Instant::now();
            let due = |(when, _): &(Instant, Undo)| *when <= now;
            while let Some(place) = self.undo.iter().position(due) {
                let (_, undo) = self.undo.remove(place);
                self.make_good(undo)?;
            }
            if Instant::now() >= time {
                return Ok(());
            }
            thread::sleep(LOOK.min(time.saturating_duration_since(Instant::now())));
        }
    }

    /// Makes everything good, now.
    pub fn heal(&mut self) -> anyhow::Result<()> {
        for (_, undo) in std::mem::take(&mut self.undo) {
            self.make_good(undo)?;
        }
        self.cluster.network()?.heal_all()?;
        let limit = Instant::now() + wait::LONG;
        while self.take_over.is_some() {
            ensure!(
                Instant::now() < limit,
                "the volume was not taken over: {:?}",
                self.take_over
            );
            self.go_on_until(Instant::now() + LOOK)?;
        }
        Ok(())
    }

    fn make_good(&self, undo: Undo) -> anyhow::Result<()> {
        match undo {
            Undo::Start(name) => match self.cluster.pid(&name) {
                Some(_) => Ok(()),
                None => self.cluster.start_again(&[&name]),
            },
            Undo::Resume(pid) => {
                // Killed meanwhile, perhaps.
                _ = process::resume(pid, &self.cluster.dir());
                Ok(())
            }
            Undo::Heal(cut) => self.cluster.network()?.heal(cut),
            Undo::Free(node) => self.cluster.free_disk(&node),
            Undo::Clock(name) => self.cluster.set_wall_clock(&name, 0),
        }
    }

    fn begin(&mut self, step: &Step) -> anyhow::Result<()> {
        let until = Instant::now() + step.lasts;
        match step.fault {
            Fault::Kill(victim) => self.kill(victim, until),
            Fault::Pause(victim) => {
                for pid in self.pids(victim) {
                    self.pause(pid, until);
                }
                Ok(())
            }
            Fault::Cut(partition) => self.cut(partition, until),
            Fault::FullDisk(number) => {
                let node = storage(number);
                self.undo.push((until, Undo::Free(node.clone())));
                self.cluster.fill_disk(&node)
            }
            Fault::WallClock(number, seconds) => {
                for name in machine(number) {
                    self.cluster.set_wall_clock(&name, seconds)?;
                    self.undo.push((until, Undo::Clock(name)));
                }
                Ok(())
            }
            Fault::BootClock(number, seconds) => {
                let node = storage(number);
                self.end(&node)?;
                self.cluster.start_shifted(&node, seconds)
            }
            Fault::Rolling => self.roll(),
            Fault::TakeOver => {
                self.cut(Partition::Client, until)?;
                self.begin_taking_over();
                Ok(())
            }
            Fault::TakeOverSplit(number) => {
                self.cut(Partition::Halves(number), until)?;
                self.begin_taking_over();
                Ok(())
            }
            Fault::TakeOverAsleep => {
                for pid in [self.pids(Victim::Agent), self.pids(Victim::Engine)].concat() {
                    self.pause(pid, until);
                }
                self.begin_taking_over();
                Ok(())
            }
        }
    }

    fn pause(&mut self, pid: i32, until: Instant) {
        // It may have ended this moment, and another fault may have stopped it already.
        if process::pause(pid, &self.cluster.dir()).is_ok() {
            self.undo.push((until, Undo::Resume(pid)));
        }
    }

    fn kill(&mut self, victim: Victim, until: Instant) -> anyhow::Result<()> {
        if victim == Victim::Engine {
            for pid in self.pids(victim) {
                // It may have ended by itself meanwhile.
                _ = process::kill(pid, &self.cluster.dir());
            }
            return Ok(());
        }
        for name in self.daemons(victim) {
            self.end(&name)?;
            self.undo.push((until, Undo::Start(name)));
        }
        Ok(())
    }

    /// Kills a daemon if it runs.
    fn end(&self, name: &str) -> anyhow::Result<()> {
        match self.cluster.pid(name) {
            Some(_) => self.cluster.kill(&[name]),
            None => Ok(()),
        }
    }

    fn daemons(&self, victim: Victim) -> Vec<String> {
        match victim {
            Victim::Storage(number) => vec![storage(number)],
            Victim::Controller(number) => vec![format!("c{number}")],
            Victim::Leader => vec![self.leader()],
            Victim::Machine(number) => machine(number),
            Victim::Agent => vec![self.node.to_owned()],
            Victim::Engine => Vec::new(),
        }
    }

    fn pids(&self, victim: Victim) -> Vec<i32> {
        if victim != Victim::Engine {
            let daemons = self.daemons(victim);
            return daemons.iter().filter_map(|name| self.cluster.pid(name)).collect();
        }
        let is_engine = |pid: &i32| {
            let line = process::command_line(*pid);
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&b"engine".as_slice()) && words.contains(&self.id.as_bytes())
        };
        let all = process::all_of(&self.cluster.dir().join(self.node));
        all.into_iter().filter(is_engine).collect()
    }

    /// The controller that leads; the first when none does.
    fn leader(&self) -> String {
        let all = self.cluster.run(self.client.controllers()).unwrap_or_default();
        let leader = all.into_iter().find(|c| c.role == ControllerRole::Leader);
        leader.map_or(CONTROLLERS[0].to_owned(), |c| c.name)
    }

    fn cut(&mut self, partition: Partition, until: Instant) -> anyhow::Result<()> {
        let network = self.cluster.network()?;
        let number = network.cut(cuts(partition, self.node, &network.machines()))?;
        self.undo.push((until, Undo::Heal(number)));
        Ok(())
    }

    fn roll(&mut self) -> anyhow::Result<()> {
        for name in STORAGE.iter().chain(&CONTROLLERS) {
            if let Some(pid) = self.cluster.pid(name) {
                // A stopped one would not hear of its end.
                process::resume(pid, &self.cluster.dir())?;
                self.cluster.terminate(name)?;
            }
            self.cluster.start_again(&[name])?;
            self.go_on_until(Instant::now() + ROLL)?;
        }
        Ok(())
    }

    fn begin_taking_over(&mut self) {
        if self.take_over.is_some() {
            return;
        }
        let to = if self.node == CLIENT { SECOND } else { CLIENT };
        // From here on the old engine may be out at any moment.
        self.crowd.supersede();
        self.take_over = Some(TakeOver {
            to,
            asked: false,
            since: Instant::now(),
        });
    }

    /// Asks for the volume on the other node until that is answered, then waits until it is served there.
    fn go_on_taking_over(&mut self) -> anyhow::Result<()> {
        let Some(take_over) = &mut self.take_over else {
            return Ok(());
        };
        let to = take_over.to;
        if !take_over.asked {
            let wish = volume::wish(to, "socket", true);
            let asked = self.client.attach(self.volume.name, &wish);
            // Nobody leads just now, perhaps.
            take_over.asked = self.cluster.run(asked).is_ok();
            return Ok(());
        }
        let Some(attachment) = self.attached(to) else {
            return Ok(());
        };
        let medium = self.volume.medium(&attachment)?;
        let took = self.take_over.take().map(|t| t.since.elapsed());
        println!("{:>10} {to} has taken the volume over after {took:?}", "");
        self.node = to;
        self.taken_over += 1;
        self.crowd.serve(&medium)
    }

    fn attached(&self, node: &str) -> Option<Attachment> {
        let shown = self.cluster.run(self.client.volume(self.volume.name)).ok()?;
        let mut all = shown.attachments.into_iter();
        all.find(|a| a.node == node && a.state == AttachmentState::Attached)
    }
}

fn storage(number: u8) -> String {
    format!("s{number}")
}

fn machine(number: u8) -> Vec<String> {
    vec![format!("c{number}"), storage(number)]
}

/// What a partition drops, when the volume is used on `client`.
pub fn cuts(partition: Partition, client: &str, all: &[&str]) -> Vec<Cut> {
    let of = |number: u8| machine_of(&storage(number));
    let controllers: Vec<String> = (1..=3).map(of).collect();
    match partition {
        Partition::Machine(number) => isolate(&of(number), all, Traffic::All),
        Partition::Client => isolate(client, all, Traffic::All),
        Partition::OneWay {
            machine,
            outward: true,
            traffic,
        } => vec![Cut::between(client, &of(machine), traffic)],
        Partition::OneWay { machine, traffic, .. } => vec![Cut::between(&of(machine), client, traffic)],
        Partition::Control(number) => isolate(&of(number), all, Traffic::Control),
        Partition::ClientControl => isolate(client, all, Traffic::Control),
        Partition::Data(number) => both_ways(client, &of(number), Traffic::Data),
        Partition::Controllers => controllers
            .iter()
            .flat_map(|one| {
                let others = controllers.iter().filter(move |other| *other != one);
                others.map(|other| Cut::between(one, other, Traffic::Control))
            })
            .collect(),
        Partition::Halves(number) => {
            let inside = [of(number), client.to_owned()];
            let outside = all.iter().filter(|other| !inside.iter().any(|one| one == *other));
            outside
                .flat_map(|other| inside.iter().flat_map(|one| both_ways(one, other, Traffic::All)))
                .collect()
        }
    }
}
