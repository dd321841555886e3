//! Who may open a replica: strangers change nothing, and who is attached stays so without any controller.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::objects::ReplicaState;
use stor_replication::ids::{ConfigSeq, Epoch, OpId, ReplicaId, View, VolumeId};
use stor_replication::wire::{Framed, HEADER, Header, Kind, Status, crc32c, flags};
use stor_right::{Seconds, Signer, Statement};
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{maps, wait};

/// A day: whatever was signed before has expired.
const DAY: &str = "86400";

/// Somebody who can reach the port, and speaks the protocol.
struct Stranger(TcpStream);

impl Stranger {
    fn connect(cluster: &Cluster, node: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", cluster.port(node)?))?;
        stream.set_read_timeout(Some(wait::LONG))?;
        Ok(Self(stream))
    }

    /// Asks; `None` when the connection is ended instead of an answer.
    fn ask(&mut self, header: &Header, payload: &[u8]) -> anyhow::Result<Option<Header>> {
        let head = header.encode(u32::try_from(payload.len())?, crc32c(payload));
        self.0.write_all(&[&head, payload].concat())?;
        let mut answer = [0; HEADER];
        match self.0.read_exact(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let framed = Framed::try_from(&answer)?;
        ensure!(
            framed.payload == 0,
            "an answer with {} bytes to a stranger",
            framed.payload
        );
        Ok(Some(framed.header))
    }
}

/// The rights a node was given last, by their magic, in what its agent keeps on disk.
fn rights_on(cluster: &Cluster, node: &str) -> anyhow::Result<Vec<(uuid::Uuid, Vec<u8>)>> {
    let desired = std::fs::read(cluster.dir().join(node).join("desired"))?;
    let mut found = Vec::new();
    for at in 0..desired.len() {
        let Some(rest) = desired.get(at..).filter(|rest| rest.starts_with(b"StR1")) else {
            continue;
        };
        let node = usize::from(*rest.get(56).context("a right that is cut off")?);
        let right = rest.get(..57 + node + 64).context("a right that is cut off")?;
        found.push((uuid::Uuid::from_slice(&right[16..32])?, right.to_vec()));
    }
    Ok(found)
}

fn right_of(cluster: &Cluster, volume: &Volume<'_>) -> anyhow::Result<Vec<u8>> {
    let id: uuid::Uuid = volume.shown()?.id.parse()?;
    wait::that(wait::LONG, "the node has the right to its volume on disk", || {
        let found = rights_on(cluster, CLIENT)?.into_iter().find(|(of, _)| *of == id);
        Ok(found.map(|(_, right)| right).ok_or_else(|| "not yet".to_owned()))
    })
}

#[test]
fn strangers_change_nothing_and_read_nothing() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let other = Volume::create(cluster, "db2", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        other.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;

        let epoch = volume.attachment(CLIENT)?.epoch;
        let shown = volume.shown()?;
        let id = VolumeId(shown.id.parse()?);
        let replica = shown
            .replicas
            .iter()
            .find(|r| r.node == "s1")
            .context("no replica on s1")?;
        let header = |kind, epoch, flags| Header {
            kind,
            flags,
            volume: id,
            replica: ReplicaId(replica.id),
            view: View {
                epoch: Epoch(epoch),
                config: ConfigSeq(0),
            },
            op: OpId(1),
            offset: 0,
            length: 0,
            status: Status::Ok,
        };
        let (own, foreign) = (right_of(cluster, &volume)?, right_of(cluster, &other)?);
        let (stranger, _) = Signer::generate()?;
        let forged = |epoch| {
            let statement = Statement {
                volume: id,
                epoch: Epoch(epoch),
                node: CLIENT.to_owned(),
                read_only: false,
                issued: Seconds::now(),
                expires: Seconds::now().after(Duration::from_mins(10)),
            };
            stranger.sign(&statement).bytes().to_vec()
        };
        let mut tampered = own.clone();
        tampered[32..40].copy_from_slice(&(epoch + 1).to_le_bytes());
        let cases: [(&str, u64, Vec<u8>); 7] = [
            ("none", u64::MAX, Vec::new()),
            ("none", epoch, Vec::new()),
            ("of another volume", epoch, foreign),
            ("of this epoch", epoch + 1000, own),
            ("of another key", epoch + 1, forged(epoch + 1)),
            ("with another epoch written into it", epoch + 1, tampered),
            ("that is rubbish", epoch + 1, vec![0x5a; 300]),
        ];
        let (_, metadata) = volume.files("s1")?;
        let before = maps::superblocks(&metadata)?;
        for (what, epoch, right) in cases {
            // As a member, and as one that would have to forget that it is one.
            for member in [flags::MEMBER, 0] {
                let mut peer = Stranger::connect(cluster, "s1")?;
                let answer = peer.ask(&header(Kind::Open, epoch, member), &right)?;
                let status = answer.map(|answer| answer.status);
                ensure!(
                    status == Some(Status::NotAuthorised),
                    "a right {what}: {answer:?}"
                );
                let mut read = header(Kind::Read, epoch, 0);
                read.length = 4096;
                let answer = peer.ask(&read, &[])?;
                let status = answer.map(|answer| answer.status);
                ensure!(
                    status == Some(Status::NotOpen),
                    "a read after a right {what}: {answer:?}"
                );
                let answer = peer.ask(&header(Kind::Open, epoch, member), &right)?;
                ensure!(answer.is_none(), "a second try with a right {what}: {answer:?}");
            }
        }
        ensure!(
            maps::superblocks(&metadata)? == before,
            "a stranger changed the superblock"
        );
        let log = cluster.log("s1");
        ensure!(
            log.contains("an engine without a right to this replica was refused"),
            "{log}"
        );

        writer.wait_for(200)?;
        let now = volume.shown()?;
        let in_sync = now.replicas.iter().all(|r| r.state == ReplicaState::InSync);
        ensure!(in_sync, "{:?}", now.replicas);
        ensure!(
            volume.attachment(CLIENT)?.epoch == epoch,
            "the engine was started anew"
        );
        other.detach(CLIENT)?;
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// Starts a satellite again whose clock is a day ahead of the controllers'.
fn start_tomorrow(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let script = cluster.dir().join("run").join(format!("{node}.start"));
    let output = Command::new(&script)
        .env("STOR_TEST_CLOCK_AHEAD", DAY)
        .stdin(Stdio::null())
        .output()?;
    ensure!(output.status.success(), "{} failed: {output:?}", script.display());
    wait::until(wait::LONG, &format!("{node} runs"), || {
        Ok(cluster.pid(node).is_some())
    })
}

#[test]
fn satellites_restarted_long_after_the_last_controller_go_on_serving() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        cluster.kill(&CONTROLLERS)?;
        for node in ["s1", "s2"] {
            cluster.kill(&[node])?;
            // Nobody can decide to do without it.
            std::thread::sleep(Duration::from_secs(1));
            writer.has_to_wait(Duration::from_secs(2))?;
            start_tomorrow(cluster, node)?;
            writer.wait_for(200)?;
            println!(
                "{node} is back, without a controller: longest wait {:?}",
                writer.longest()
            );
        }
        cluster.kill(&["s1", "s2", CLIENT])?;
        start_tomorrow(cluster, "s2")?;
        start_tomorrow(cluster, "s1")?;
        cluster.start_again(&[CLIENT])?;
        writer.wait_for(200)?;
        println!("all satellites at once: longest wait {:?}", writer.longest());

        cluster.start_again(&CONTROLLERS)?;
        volume.wait_in_sync()?;
        writer.wait_for(200)?;
        volume.holds(&medium, &mut writer.stop()?)?;
        // To a new epoch nothing that was signed a day ago is a right, and it is said why.
        volume.detach(CLIENT)?;
        let why = volume.is_not_served(CLIENT, Duration::from_secs(5))?;
        ensure!(
            why.contains("refuses the right to this epoch: it has expired"),
            "{why}"
        );
        cluster.kill(&["s1", "s2"])?;
        cluster.start_again(&["s1", "s2"])?;
        volume.wait_attached(CLIENT)?;
        Ok(())
    })
}
