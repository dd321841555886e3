//! Devices of FUSE: they outlive engines and agents, and go when they must not go on.

use super::*;

#[tokio::test]
async fn a_device_comes_after_its_engine_and_goes_before_it() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(status.device, "/dev/stor/db");
    assert_eq!(world.devices.calls(), ["mount", "attach"]);
    *world.devices.busy.lock().unwrap() = true;
    world.stop();
    let reason = until("the reason is told", || {
        world.status().filter(|status| !status.reason.is_empty())
    })
    .await;
    assert_eq!(reason.state(), EngineState::Stopping);
    assert_eq!(
        reason.reason,
        "the device is in use: /dev/loop7: mounted on /data"
    );
    assert!(world.process().is_alive());
    assert!(
        !world.heard().contains("stop"),
        "the engine was stopped under a device that is used"
    );
    *world.devices.busy.lock().unwrap() = false;
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.devices.calls(), ["mount", "attach", "down"]);
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
}

#[tokio::test]
async fn the_device_survives_the_engine_and_the_agent() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.kill();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(world.devices.calls(), ["mount", "attach"]);
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    // The new agent has the connection from the engine: it is handed to the next one.
    world.kill();
    world.state(EngineState::Serving, 3).await;
    assert!(
        !world.devices.calls().iter().any(|call| call.contains("down")),
        "{:?}",
        world.devices.calls()
    );
    assert_eq!(
        world
            .devices
            .calls()
            .iter()
            .filter(|call| *call == "mount")
            .count(),
        1
    );
}

#[tokio::test]
async fn a_device_that_could_not_be_seen_at_first_is_found() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    *world.devices.unseen.lock().unwrap() = 2;
    world.restart_agent().await;
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(status.device, "/dev/stor/db");
    assert_eq!(world.process(), process);
    assert_eq!(world.devices.calls(), ["mount", "attach", "attach"]);
}

#[tokio::test]
async fn a_dead_connection_is_cleared_away_before_a_new_one() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    // Agent and engine die together: nobody has the connection any more.
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(
        world.devices.calls(),
        ["mount", "attach", "force down", "mount", "attach"]
    );
}

#[tokio::test]
async fn a_device_does_not_outlive_a_take_over_by_another_node() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    // All of it while nobody here hears of it.
    world.catalogue.taken_over_and_back();
    world.serve();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(
        world.devices.calls(),
        ["mount", "attach", "force down", "mount", "attach"]
    );
}

#[tokio::test]
async fn a_refusal_that_is_out_of_date_does_not_hide_what_is_in_the_way() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let before = world.catalogue.row();
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.catalogue.taken_over_and_back();
    *world.devices.busy.lock().unwrap() = true;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.desire(before, false);
    let told = |status: &EngineStatus| status.epoch == 3 && status.reason.contains("mounted on /data");
    until("who uses the device", || world.status().filter(told)).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1)]);
}

#[tokio::test]
async fn a_device_goes_when_its_node_gets_the_volume_in_another_way() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.read_only = true;
    world.catalogue.taken(NODE, 1);
    // The new agent sees at the device how it was made.
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    let first = ["mount", "attach", "force down", "mount", "attach"];
    assert_eq!(world.devices.calls(), first);
    world.transport = TransportKind::Socket;
    world.catalogue.taken(NODE, 2);
    world.serve();
    let status = world.state(EngineState::Serving, 3).await;
    assert_eq!(status.device, "");
    assert_eq!(world.devices.calls(), [&first[..], &["force down"]].concat());
}
