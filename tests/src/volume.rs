//! A volume of a test's cluster: where its copies are, who serves it, and what both hold.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use stor_api::objects::{
    Attachment, AttachmentSpec, AttachmentState, PoolChange, ReplicaState, Volume as Shown, VolumeSpec,
    VolumeState,
};

use crate::block::{self, BLOCK};
use crate::cluster::{CLIENT, Cluster, POOL};
use crate::history::History;
use crate::medium::Medium;
use crate::{process, wait};

/// Bytes of a volume of tests that don't ask for another size.
pub const SIZE: u64 = 64 << 20;

/// Bytes of copies that are compared at a time.
const PIECE: usize = 1 << 20;

/// A volume by its name.
#[derive(Clone, Copy, Debug)]
pub struct Volume<'a> {
    cluster: &'a Cluster,
    /// Its name.
    pub name: &'a str,
}

impl<'a> Volume<'a> {
    /// A volume that is there.
    pub fn of(cluster: &'a Cluster, name: &'a str) -> Self {
        Self { cluster, name }
    }

    /// Makes a volume with a replica on each of `nodes`, and waits until it is there.
    pub fn create(cluster: &'a Cluster, name: &'a str, size: u64, nodes: &[&str]) -> anyhow::Result<Self> {
        let tag = format!("for-{name}");
        for node in nodes {
            let mut tags = cluster.run(cluster.client().pool(POOL, node))?.tags;
            // There already, if a volume of this name was deleted.
            if tags.contains(&tag) {
                continue;
            }
            tags.push(tag.clone());
            let change = PoolChange {
                tags: Some(tags),
                overprovision: None,
            };
            cluster.run(cluster.client().change_pool(POOL, node, &change))?;
        }
        let spec = VolumeSpec {
            replicas: Some(u8::try_from(nodes.len())?),
            pool: Some(POOL.to_owned()),
            tags: vec![tag],
            ..spec(name, size)
        };
        cluster.run(cluster.client().create_volume(&spec))?;
        let volume = Self { cluster, name };
        volume.wait_in_sync()?;
        let mut on: Vec<String> = volume.shown()?.replicas.into_iter().map(|r| r.node).collect();
        on.sort();
        ensure!(
            on == nodes,
            "replicas were asked for on {nodes:?} and are on {on:?}"
        );
        Ok(volume)
    }

    /// As the API shows it.
    pub fn shown(&self) -> anyhow::Result<Shown> {
        let call = self.cluster.client().volume(self.name);
        self.cluster
            .run(call)
            .with_context(|| format!("asking for volume {}", self.name))
    }

    /// As [`Volume::shown`], while controllers may be away.
    fn seen(&self) -> Result<Shown, String> {
        self.cluster
            .run(self.cluster.client().volume(self.name))
            .map_err(|error| error.to_string())
    }

    /// Waits until every replica is in sync.
    pub fn wait_in_sync(&self) -> anyhow::Result<Shown> {
        wait::that(
            wait::LONG,
            &format!("every replica of {} is in sync", self.name),
            || {
                Ok(self.seen().and_then(|shown| {
                    let all = shown.replicas.iter().all(|r| r.state == ReplicaState::InSync);
                    if all && shown.state == VolumeState::Healthy {
                        Ok(shown)
                    } else {
                        Err(format!(
                            "{:?} {:?} {:?}",
                            shown.state, shown.reason, shown.replicas
                        ))
                    }
                }))
            },
        )
    }

    /// Waits until the replica on `node` is in the in-sync set, or is not.
    pub fn wait_member(&self, node: &str, member: bool) -> anyhow::Result<Shown> {
        let what = if member { "in" } else { "out of" };
        let what = format!("{} has {node} {what} the in-sync set", self.name);
        wait::that(wait::LONG, &what, || {
            Ok(self.seen().and_then(|shown| {
                if shown
                    .replicas
                    .iter()
                    .any(|r| r.node == node && r.in_sync == member)
                {
                    Ok(shown)
                } else {
                    Err(format!("{:?}", shown.replicas))
                }
            }))
        })
    }

    /// Attaches it and waits until it is served.
    pub fn attach(&self, node: &str, transport: &str, force: bool) -> anyhow::Result<Attachment> {
        self.cluster
            .run(
                self.cluster
                    .client()
                    .attach(self.name, &wish(node, transport, force)),
            )
            .with_context(|| format!("attaching {} on {node}", self.name))?;
        self.wait_attached(node)
    }

    /// Waits until it is served on `node`.
    pub fn wait_attached(&self, node: &str) -> anyhow::Result<Attachment> {
        let what = format!("{} is attached on {node}", self.name);
        wait::that(wait::LONG, &what, || {
            Ok(self.seen().and_then(|shown| {
                let found = shown.attachments.iter().find(|a| a.node == node);
                match found {
                    Some(a) if a.state == AttachmentState::Attached => Ok(a.clone()),
                    other => Err(format!("{other:?}")),
                }
            }))
        })
    }

    /// Attaches it on the diskless node with NBD on a unix socket.
    pub fn attach_socket(&self) -> anyhow::Result<Medium> {
        self.medium(&self.attach(CLIENT, "socket", false)?)
    }

    /// Asks for it on a node where it must not be served, and watches for a while. Returns why it is not.
    pub fn is_not_served(&self, node: &str, while_: Duration) -> anyhow::Result<String> {
        let wish = wish(node, "socket", false);
        if let Err(error) = self.cluster.run(self.cluster.client().attach(self.name, &wish)) {
            return Ok(error.to_string());
        }
        let start = Instant::now();
        loop {
            let shown = self.shown()?;
            if shown
                .attachments
                .iter()
                .any(|a| a.state == AttachmentState::Attached)
            {
                bail!("{} is served on {node}: {shown:?}", self.name);
            }
            if start.elapsed() > while_ {
                let reasons: Vec<String> = shown.attachments.into_iter().map(|a| a.reason).collect();
                return Ok(format!("{:?} {} {reasons:?}", shown.state, shown.reason));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// How clients of an attachment reach the volume.
    pub fn medium(&self, attachment: &Attachment) -> anyhow::Result<Medium> {
        if !attachment.device.is_empty() {
            return Ok(Medium::Device(PathBuf::from(&attachment.device)));
        }
        let prefix = format!("nbd+unix:///{}?socket=", self.name);
        let path = attachment
            .nbd_uri
            .strip_prefix(&prefix)
            .with_context(|| format!("the nbd_uri is not of the form pinned: {attachment:?}"))?;
        Ok(Medium::Socket {
            path: path.into(),
            export: self.name.to_owned(),
        })
    }

    /// The attachment on a node.
    pub fn attachment(&self, node: &str) -> anyhow::Result<Attachment> {
        let shown = self.shown()?;
        let found = shown.attachments.iter().find(|a| a.node == node);
        found
            .cloned()
            .with_context(|| format!("{} is not attached on {node}: {shown:?}", self.name))
    }

    /// Detaches it and waits until nobody has it.
    pub fn detach(&self, node: &str) -> anyhow::Result<()> {
        self.cluster
            .run(self.cluster.client().detach(self.name, node, false))?;
        wait::that(wait::LONG, &format!("{} is detached", self.name), || {
            Ok(self.seen().and_then(|shown| match shown.attachments.as_slice() {
                [] => Ok(()),
                some => Err(format!("{some:?}")),
            }))
        })
    }

    /// The process of its engine on a node.
    pub fn engine(&self, node: &str) -> anyhow::Result<i32> {
        let found = self.engines(node)?;
        match found.as_slice() {
            [pid] => Ok(*pid),
            other => bail!("{} has engines {other:?} on {node}", self.name),
        }
    }

    /// All processes of its engines on a node.
    pub fn engines(&self, node: &str) -> anyhow::Result<Vec<i32>> {
        let id = self.shown()?.id;
        let dir = self.cluster.dir().join(node);
        let is_engine = |pid: &i32| {
            let line = process::command_line(*pid);
            let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            words.contains(&b"engine".as_slice()) && words.contains(&id.as_bytes())
        };
        Ok(process::all_of(&dir).into_iter().filter(is_engine).collect())
    }

    // ---- what the copies hold -------------------------------------------------------------------

    /// The files of the replica on a node: data and metadata.
    pub fn files(&self, node: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        let shown = self.shown()?;
        let replica = shown
            .replicas
            .iter()
            .find(|r| r.node == node)
            .with_context(|| format!("{} has no replica on {node}", self.name))?;
        let place = self.cluster.dir().join(node).join("pool").join(&shown.id);
        Ok((
            place.join(format!("r{}.data", replica.id)),
            place.join(format!("r{}.meta", replica.id)),
        ))
    }

    /// Compares all copies of a volume that is not attached.
    pub fn copies_are_equal(&self) -> anyhow::Result<()> {
        let shown = self.shown()?;
        ensure!(shown.attachments.is_empty(), "{} is attached", self.name);
        let open = |node: &String| {
            let (data, _) = self.files(node)?;
            File::open(&data).with_context(|| format!("opening {}", data.display()))
        };
        let nodes: Vec<_> = shown.replicas.iter().map(|replica| &replica.node).collect();
        let Some((first, others)) = nodes.split_first() else {
            return Ok(());
        };
        for node in others {
            let (expected, found) = (open(first)?, open(node)?);
            let (mut differ, mut at) = (0, None);
            // In pieces: a whole copy is more than a small machine has room for.
            for offset in (0..shown.size_bytes).step_by(PIECE) {
                let (a, b) = (piece(&expected, offset)?, piece(&found, offset)?);
                if a != b {
                    let blocks = a.chunks(BLOCK).zip(b.chunks(BLOCK));
                    differ += blocks.filter(|(a, b)| a != b).count();
                    let byte = a.iter().zip(&b).position(|(a, b)| a != b).unwrap_or(0);
                    at.get_or_insert(offset + byte as u64);
                }
            }
            if let Some(at) = at {
                bail!(
                    "the copies of {} on {first} and {node} differ in {differ} blocks, first at byte {at}",
                    self.name
                );
            }
        }
        Ok(())
    }

    /// Checks every copy of a volume that is not attached against what was acknowledged.
    pub fn copies_hold(&self, history: &History) -> anyhow::Result<()> {
        for replica in self.shown()?.replicas {
            let (data, _) = self.files(&replica.node)?;
            let file = File::open(&data)?;
            let length = file.metadata()?.len();
            let read = |offset: u64, into: &mut [u8]| {
                into.fill(0);
                let left = usize::try_from(length.saturating_sub(offset))?.min(into.len());
                let part = into.get_mut(..left).unwrap_or_default();
                Ok(file.read_exact_at(part, offset)?)
            };
            let written = history.clone().check(read);
            written.with_context(|| format!("the copy of {} on {}", self.name, replica.node))?;
        }
        Ok(())
    }

    /// Writes the first `slots` blocks, once each, many in a request, and flushes.
    pub fn fill(&self, medium: &Medium, slots: usize) -> anyhow::Result<History> {
        const AT_ONCE: usize = 64;
        let mut history = History::new(0, slots);
        let mut open = medium.open()?;
        let all: Vec<u64> = history.slots().collect();
        for slots in all.chunks(AT_ONCE) {
            let mut bytes = Vec::new();
            let mut numbers = Vec::new();
            for slot in slots {
                let number = history.send(*slot)?;
                bytes.extend(block::fill(*slot, number));
                numbers.push((*slot, number));
            }
            open.write(slots.first().copied().unwrap_or(0) * BLOCK as u64, &bytes)?;
            for (slot, number) in numbers {
                history.acknowledged(slot, number)?;
            }
        }
        open.flush()?;
        Ok(history)
    }

    /// Reads all that was acknowledged through an attachment.
    pub fn holds(&self, medium: &Medium, history: &mut History) -> anyhow::Result<()> {
        let mut open = medium.open()?;
        let written = history.check(|offset, into| Ok(open.read(offset, into)?))?;
        println!("{}: {written} slots hold what was acknowledged", self.name);
        Ok(())
    }

    /// Waits until all copies are in sync, reads everything back, detaches, and compares the copies with each
    /// other and with what was acknowledged.
    pub fn closes_well(&self, node: &str, medium: &Medium, mut history: History) -> anyhow::Result<()> {
        self.wait_in_sync()?;
        self.holds(medium, &mut history)?;
        self.detach(node)?;
        self.copies_are_equal()?;
        self.copies_hold(&history)
    }
}

/// A piece of a copy; what is beyond its end reads as zeroes.
fn piece(file: &File, offset: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0; PIECE];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(bytes)
}

/// A volume like others.
pub fn spec(name: &str, size: u64) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        size_bytes: size,
        class: None,
        replicas: None,
        pool: None,
        tags: Vec::new(),
        spread: None,
        together: None,
        min_in_sync: None,
    }
}

/// The wish for an attachment.
pub fn wish(node: &str, transport: &str, force: bool) -> AttachmentSpec {
    AttachmentSpec {
        node: node.to_owned(),
        transport: Some(transport.to_owned()),
        read_only: false,
        force,
    }
}
