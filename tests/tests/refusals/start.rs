//! Daemons and quickstarts that can't start where they are told to, and must not change anything there.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use stor_api::objects::{NodeState, PoolState};
use stor_tests::cluster::{self, CLIENT, CONTROLLERS, Cluster, STORAGE};
use stor_tests::volume::{self, Volume};
use stor_tests::{process, wait};

/// Starts a killed daemon that has to end by itself, and returns what it said.
fn ends_by_itself(cluster: &Cluster, name: &str) -> anyhow::Result<String> {
    let before = cluster.log(name).len();
    cluster.start_script(name)?;
    wait::until(wait::LONG, &format!("{name} has ended by itself"), || {
        Ok(cluster.log(name).len() > before && cluster.pid(name).is_none())
    })?;
    let log = cluster.log(name);
    let said = log.get(before..).unwrap_or_default().to_owned();
    println!("{name}: {}", said.trim_end());
    Ok(said)
}

#[test]
fn a_daemon_whose_port_is_taken_says_so_and_starts_when_it_is_free() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        for name in ["s1", "c3"] {
            let port = cluster.port(name)?;
            cluster.kill(&[name])?;
            let taken = wait::that(wait::LONG, &format!("port {port} is ours"), || {
                Ok(TcpListener::bind(("127.0.0.1", port)).map_err(|error| error.to_string()))
            })?;
            let said = ends_by_itself(cluster, name)?;
            ensure!(
                said.contains(&port.to_string()),
                "it does not name port {port}: {said}"
            );
            ensure!(said.contains("in use"), "it does not say why: {said}");
            drop(taken);
            cluster.start_again(&[name])?;
            cluster.wait_healthy()?;
        }
        Ok(())
    })
}

/// Runs a controller that has to end by itself; what it said.
fn controller(cluster: &Cluster, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(cluster.program("stor-controller"))
        .args(args)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("stor-controller {}\n{}", args.join(" "), said.trim_end());
    ensure!(!output.status.success(), "it did not fail");
    Ok(said)
}

#[test]
fn a_controller_that_can_t_be_set_up_leaves_nothing_behind() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let dir = cluster.scratch().join("c9");
        let path = dir.display().to_string();
        let address = |index| format!("127.0.0.1:{}", cluster.spare_port(index));
        let (peer, api) = (address(0), address(1));
        let at = [
            "--dir",
            &path,
            "--name",
            "c9",
            "--peer-listen",
            &peer,
            "--api-listen",
            &api,
        ];
        for taken in [&peer, &api] {
            let listener = TcpListener::bind(taken.as_str())?;
            let said = controller(cluster, &[&["init", "--run"], &at[..]].concat())?;
            ensure!(said.contains(taken.as_str()) && said.contains("in use"), "{said}");
            ensure!(!dir.exists(), "a cluster was made though nobody could reach it");
            drop(listener);
        }
        fs::create_dir(&dir)?;
        fs::write(dir.join("letters"), "dear")?;
        let seed = format!("http://127.0.0.1:{}", cluster.peer_port("c1")?);
        for verb in [&["init"][..], &["join", "--seed", &seed]] {
            let said = controller(cluster, &[verb, &at[..]].concat())?;
            ensure!(
                said.contains("letters"),
                "it does not say what is in the way: {said}"
            );
            let left: Vec<_> = fs::read_dir(&dir)?.collect::<Result<_, _>>()?;
            ensure!(left.len() == 1, "{left:?}");
        }
        fs::remove_dir_all(&dir)?;
        let mut named = at;
        named[3] = "c1";
        let said = controller(cluster, &[&["join", "--seed", &seed], &named[..]].concat())?;
        ensure!(said.contains("c1"), "{said}");
        ensure!(!dir.exists(), "a controller that was refused is left");
        cluster.wait_healthy()?;
        let controllers = cluster.run(cluster.client().controllers())?;
        ensure!(controllers.len() == CONTROLLERS.len(), "{controllers:?}");
        asks_in_vain(cluster, &at)
    })
}

/// One that finds nobody says so at once, and goes on asking.
fn asks_in_vain(cluster: &Cluster, at: &[&str]) -> anyhow::Result<()> {
    let seed = format!("127.0.0.1:{}", cluster.spare_port(2));
    let log = cluster.scratch().join("join.log");
    let mut child = Command::new(cluster.program("stor-controller"))
        .args(["join", "--seed", &format!("http://{seed}")])
        .args(at)
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .spawn()?;
    let said = wait::that(wait::LONG, "it says that nobody is there", || {
        let text = fs::read_to_string(&log)?;
        Ok(if text.contains(&seed) && text.contains("cannot be reached") {
            Ok(text)
        } else {
            Err(text)
        })
    });
    let ended = child.try_wait()?;
    child.kill()?;
    child.wait()?;
    println!("{}", said?);
    ensure!(ended.is_none(), "it gave up: a seed may be about to start");
    Ok(())
}

#[test]
fn a_satellite_s_name_is_looked_at_before_anything_is_made() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let state = cluster.scratch().join("state");
        let output = Command::new(cluster.program("stor-satellite"))
            .args([
                "run",
                "--node",
                "Z Z",
                "--controller",
                "http://127.0.0.1:1",
                "--state-dir",
            ])
            .arg(&state)
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        println!("{said}");
        ensure!(output.status.code() == Some(2), "{}", output.status);
        ensure!(said.contains("Z Z") && said.contains("lower-case"), "{said}");
        ensure!(!state.exists(), "it made its state");
        Ok(())
    })
}

#[test]
fn a_quickstart_goes_on_without_a_controller_that_is_damaged() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let history = {
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
            let medium = volume.attach_socket()?;
            volume.fill(&medium, 512)?
        };
        cluster.end()?;
        let settings = cluster.dir().join("c2").join("controller.json");
        fs::write(&settings, "{")?;
        cluster.begin_without("c2")?;
        let said = cluster.said();
        for word in ["controller c2", "controller.json", "storctl controller remove c2"] {
            ensure!(said.contains(word), "it does not say {word}: {said}");
        }
        let volume = Volume::of(cluster, "db1");
        let medium = volume.medium(&volume.wait_attached(CLIENT)?)?;
        volume.closes_well(CLIENT, &medium, history)?;
        // What it says helps.
        let (exit, _, said) = cluster.storctl(&["controller", "remove", "c2", "--yes"])?;
        ensure!(exit == 0, "{said}");
        cluster.end()?;
        fs::remove_dir_all(cluster.dir().join("c2"))?;
        cluster.begin()?;
        cluster.wait_healthy()
    })
}

/// Sets a number in a JSON file; returns the content before.
fn set_version(path: &Path, key: &str, version: u32) -> anyhow::Result<String> {
    let before = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let mut value: serde_json::Value = serde_json::from_str(&before)?;
    let place = value
        .get_mut(key)
        .with_context(|| format!("{} has no {key}", path.display()))?;
    *place = version.into();
    fs::write(path, value.to_string())?;
    Ok(before)
}

#[test]
fn data_of_a_newer_version_is_refused_and_left_alone() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let history = volume.fill(&medium, 512)?;
        volume.detach(CLIENT)?;
        for (name, file, key) in [
            ("s1", "satellite.json", "version"),
            ("c2", "controller.json", "format"),
        ] {
            let path = cluster.dir().join(name).join(file);
            cluster.kill(&[name])?;
            let before = set_version(&path, key, 99)?;
            let newer = fs::read_to_string(&path)?;
            let said = ends_by_itself(cluster, name)?;
            ensure!(
                said.contains("99") && said.contains(file.trim_end_matches(".json")),
                "{said}"
            );
            ensure!(
                fs::read_to_string(&path)? == newer,
                "{} was changed",
                path.display()
            );
            fs::write(&path, before)?;
            cluster.start_again(&[name])?;
            cluster.wait_healthy()?;
        }
        newer_pool(cluster)?;
        volume.wait_in_sync()?;
        let medium = volume.attach_socket()?;
        volume.closes_well(CLIENT, &medium, history)
    })
}

/// A pool of a newer version is out of use; its satellite goes on with what it has else.
fn newer_pool(cluster: &Cluster) -> anyhow::Result<()> {
    let marker = cluster.dir().join("s1/pool/stor-pool.json");
    cluster.kill(&["s1"])?;
    let before = set_version(&marker, "version", 99)?;
    cluster.start_again(&["s1"])?;
    cluster.wait_node("s1", NodeState::Online)?;
    let pool = wait::that(wait::LONG, "the pool's fault is told", || {
        let pool = cluster.run(cluster.client().pool("sp01", "s1"))?;
        Ok(if pool.state == PoolState::Failed {
            Ok(pool)
        } else {
            Err(format!("{pool:?}"))
        })
    })?;
    println!("the pool: {}", pool.error);
    ensure!(
        pool.error.contains("99") && pool.error.contains("stor-pool.json"),
        "{}",
        pool.error
    );
    cluster.kill(&["s1"])?;
    fs::write(&marker, before)?;
    cluster.start_again(&["s1"])?;
    cluster.wait_healthy()
}

/// Spoils every page of a file but the first, as a disk that returns other sectors than were written.
fn spoil(path: &Path) -> anyhow::Result<Vec<u8>> {
    let before = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let mut spoilt = before.clone();
    ensure!(
        spoilt.len() > 8192,
        "{} has {} bytes only",
        path.display(),
        spoilt.len()
    );
    spoilt
        .iter_mut()
        .skip(4096)
        .step_by(7)
        .for_each(|byte| *byte ^= 0x5a);
    fs::write(path, spoilt)?;
    Ok(before)
}

/// The others go on without it, and it is back when its files are.
#[test]
fn a_controller_with_a_damaged_log_says_so_and_does_not_run() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        // Ended in order, so that all of the log is in its own file.
        let pid = cluster.pid("c3").context("c3 does not run")?;
        process::signal(pid, Signal::TERM, &cluster.dir())?;
        wait::until(wait::LONG, "c3 has ended", || Ok(process::is_gone(pid)))?;
        let path = cluster.dir().join("c3/log.db");
        let before = spoil(&path)?;
        let said = ends_by_itself(cluster, "c3")?;
        ensure!(
            said.contains("log.db") && said.contains("corrupted"),
            "it does not say what: {said}"
        );
        ensure!(said.contains("join"), "it does not say what to do: {said}");
        // Two of three decide.
        cluster.run(cluster.client().create_volume(&volume::spec("db1", 1 << 20)))?;
        // Nothing was acknowledged by it meanwhile: the very files it ended with may be put back.
        fs::write(&path, before)?;
        cluster.start_again(&["c3"])?;
        cluster.wait_healthy()
    })
}

/// Runs a quickstart that has to refuse, and returns its exit status and what it said.
fn quickstart(cluster: &Cluster) -> anyhow::Result<(i32, String)> {
    let output = Command::new(cluster.program("storctl"))
        .args(["quickstart", "--dir"])
        .arg(cluster.dir())
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("storctl quickstart\n{}", said.trim_end());
    ensure!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    Ok((output.status.code().unwrap_or(-1), said))
}

#[test]
fn a_quickstart_that_can_t_be_is_refused_and_disturbs_nothing() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let history = {
            let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
            let medium = volume.attach_socket()?;
            volume.fill(&medium, 512)?
        };
        let daemons = || CONTROLLERS.iter().chain(&STORAGE).chain([&CLIENT]);
        let before: Vec<_> = daemons().map(|name| cluster.pid(name)).collect();
        let (exit, said) = quickstart(cluster)?;
        ensure!(
            exit == 4 && said.contains("already runs"),
            "exit status {exit}: {said}"
        );
        let after: Vec<_> = daemons().map(|name| cluster.pid(name)).collect();
        ensure!(before == after, "{before:?} became {after:?}");

        cluster.end()?;
        let record = cluster.dir().join("quickstart.json");
        let content = set_version(&record, "version", 99)?;
        let newer = fs::read_to_string(&record)?;
        let (exit, said) = quickstart(cluster)?;
        ensure!(exit == 4 && said.contains("newer"), "exit status {exit}: {said}");
        ensure!(fs::read_to_string(&record)? == newer, "the record was changed");
        fs::write(&record, content)?;

        // A satellite's port would be changed for a free one; a controller's is known to the others.
        let port = cluster.port("c2")?;
        let taken = TcpListener::bind(("127.0.0.1", port))?;
        let (exit, said) = quickstart(cluster)?;
        ensure!(
            exit == 4 && said.contains(&port.to_string()),
            "exit status {exit}: {said}"
        );
        let left = process::all_of(&cluster.dir());
        ensure!(left.is_empty(), "it left processes {left:?}");
        // What it had started already ended when it was told to.
        ensure!(!said.contains("killing"), "{said}");
        drop(taken);

        // The same cluster, with its volume attached where it was.
        cluster.begin()?;
        let volume = Volume::of(cluster, "db1");
        let medium = volume.medium(&volume.wait_attached(CLIENT)?)?;
        volume.closes_well(CLIENT, &medium, history)
    })
}
