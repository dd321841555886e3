//! Controllers killed, one by one and all together.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use stor_api::client::{Client, Error};
use stor_api::objects::ClassSpec;
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster};
use stor_tests::volume::{self, Volume};
use stor_tests::writer::{OnLoss, Writer};
use stor_tests::{skip, wait};

/// Kills in a row, over all controllers, two rounds.
const KILLS: usize = 6;

#[test]
fn an_attached_volume_is_served_while_every_controller_is_down() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let writer = Writer::start(&medium, OnLoss::Fail)?;
        writer.wait_for(200)?;
        cluster.kill(&CONTROLLERS)?;
        writer.wait_for(1000)?;
        println!("no controller: longest wait {:?}", writer.longest());
        let (exit, _, said) = cluster.storctl(&["--timeout", "5", "status"])?;
        ensure!(exit == 6, "exit status {exit}: {said}");
        cluster.start_again(&CONTROLLERS)?;
        cluster.wait_healthy()?;
        writer.wait_for(200)?;
        println!("controllers back: longest wait {:?}", writer.longest());
        volume.closes_well(CLIENT, &medium, writer.stop()?)
    })
}

/// Commands without end: classes and volumes, made and removed.
async fn commands(client: Client, number: usize) -> anyhow::Result<()> {
    for round in 0.. {
        let name = format!("x{number}-{}", round % 7);
        let class = ClassSpec {
            name: name.clone(),
            replicas: 1,
            pool: None,
            tags: Vec::new(),
            transport: None,
            spread: None,
            together: None,
            scrub_days: None,
        };
        let made = client.create_class(&class).await;
        made.with_context(|| format!("creating class {name}"))?;
        let volume = volume::spec(&name, 1 << 20);
        match client.create_volume(&volume).await {
            // Its deletion, two rounds ago, is not done yet.
            Ok(_) | Err(Error::Conflict(_)) => {}
            Err(error) => return Err(error).with_context(|| format!("creating volume {name}")),
        }
        match client.delete_volume(&name, false).await {
            Ok(()) | Err(Error::Conflict(_) | Error::NotFound { .. }) => {}
            Err(error) => return Err(error).with_context(|| format!("deleting volume {name}")),
        }
        let deleted = client.delete_class(&name).await;
        deleted.with_context(|| format!("deleting class {name}"))?;
    }
    Ok(())
}

#[test]
fn controllers_killed_again_and_again_keep_the_same_catalogue() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        if Command::new("sqlite3").arg("--version").output().is_err() {
            skip::skipped(
                "comparing the catalogues",
                "sqlite3 is not installed (package sqlite3)",
            );
            return Ok(());
        }
        let streams: Vec<_> = (0..2)
            .map(|number| cluster.spawn(commands(cluster.client().clone(), number)))
            .collect();
        for kill in 0..KILLS {
            let victim = if kill % 2 == 0 {
                cluster.leader()?
            } else {
                CONTROLLERS[kill % CONTROLLERS.len()].to_owned()
            };
            std::thread::sleep(Duration::from_millis(700));
            cluster.kill(&[&victim])?;
            // Back before the others have missed it, or after they have chosen another leader.
            std::thread::sleep(Duration::from_millis(if kill % 3 == 0 { 300 } else { 3000 }));
            cluster.start_again(&[&victim])?;
            println!("{victim} was killed and started again");
        }
        for stream in streams {
            if stream.is_finished() {
                cluster.run(stream)??;
            } else {
                stream.abort();
            }
        }
        cluster.wait_healthy()?;
        wait::that(wait::LONG, "the catalogues are equal", || {
            let dumps = CONTROLLERS.map(|name| dump(cluster, name));
            let [first, second, third] = dumps;
            let (first, second, third) = (first?, second?, third?);
            ensure!(first.contains("CREATE TABLE"), "an empty catalogue: {first}");
            Ok(match (differs(&first, &second), differs(&first, &third)) {
                (None, None) => Ok(()),
                (Some(line), _) | (_, Some(line)) => Err(line),
            })
        })
    })
}

/// All of a controller's catalogue as text.
fn dump(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let path = cluster.dir().join(name).join("catalogue.db");
    let output = Command::new("sqlite3")
        .arg("-readonly")
        .arg(&path)
        .args([".timeout 5000", ".dump"])
        .output()?;
    ensure!(output.status.success(), "dumping {}: {output:?}", path.display());
    // When a migration was run, and how long it took, is the file's own history.
    let local = |line: &&str| line.starts_with("INSERT INTO _sqlx_migrations ");
    let text = String::from_utf8(output.stdout)?;
    let lines: Vec<&str> = text.lines().filter(|line| !local(line)).collect();
    Ok(lines.join("\n"))
}

/// The first line that differs.
fn differs(one: &str, other: &str) -> Option<String> {
    let lengths = (one.lines().count(), other.lines().count());
    let found = one.lines().zip(other.lines()).find(|(a, b)| a != b);
    match found {
        Some((a, b)) => Some(format!("{a}\n{b}")),
        None if lengths.0 != lengths.1 => Some(format!("{lengths:?} lines")),
        None => None,
    }
}
