//! Devices of the kernel's nbd driver: connected to each engine in turn, and taken away when they must not go on.

use super::*;

const INDEX: u32 = 7;

/// The device is connected for the `times`th time.
async fn connected(world: &World, times: usize) {
    until(&format!("connected {times} times"), || {
        let calls = world.devices.calls();
        (calls.iter().filter(|call| *call == "connect").count() == times).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_device_comes_after_its_engine_and_goes_before_it() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(
        (status.device.as_str(), status.transport.as_str()),
        ("/dev/stor/db", "nbd")
    );
    assert_eq!(status.nbd_uri, "");
    assert_eq!(world.devices.calls(), ["connect"]);
    *world.devices.busy.lock().unwrap() = true;
    world.stop();
    until("the reason is told", || {
        world
            .status()
            .filter(|status| status.reason.contains("mounted on /data"))
    })
    .await;
    assert!(
        !world.heard().contains("stop"),
        "the engine was stopped under a device that is used"
    );
    *world.devices.busy.lock().unwrap() = false;
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.devices.calls(), ["connect", "down"]);
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
}

#[tokio::test]
async fn it_outlives_the_engine_and_the_agent_also_both_at_once() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.kill();
    world.state(EngineState::Serving, 2).await;
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.serve();
    world.state(EngineState::Serving, 3).await;
    // One for each engine, and one of the new agent, which cannot know how many connections live.
    assert_eq!(world.devices.calls(), ["connect"; 4]);
}

#[tokio::test]
async fn a_lost_connection_is_made_anew_and_another_devices_is_not() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    world.devices.links.0.send(INDEX + 1).unwrap();
    world.devices.links.0.send(INDEX).unwrap();
    connected(&world, 2).await;
    world.state(EngineState::Serving, 1).await;
    // Notices were lost: any may have been.
    world
        .devices
        .links
        .0
        .send(stor_satellite::attach::device::ALL_NBD)
        .unwrap();
    connected(&world, 3).await;
    world.state(EngineState::Serving, 1).await;
    assert_eq!(world.process(), process);
    assert_eq!(world.devices.calls(), ["connect"; 3]);
}

#[tokio::test]
async fn it_does_not_outlive_a_take_over_by_another_node() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    // All of it while nobody here hears of it, and the agent forgets what it knew.
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.catalogue.taken_over_and_back();
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.serve();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(world.devices.calls(), ["connect", "force down", "connect"]);
}

#[tokio::test]
async fn it_goes_when_its_node_gets_the_volume_in_another_way() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.read_only = true;
    world.catalogue.taken(NODE, 1);
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(world.devices.calls(), ["connect", "force down", "connect"]);
    world.transport = TransportKind::Fuse;
    world.read_only = false;
    world.catalogue.taken(NODE, 2);
    world.serve();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(
        world.devices.calls()[3..],
        ["force down", "mount", "attach"],
        "{:?}",
        world.devices.calls()
    );
}

#[tokio::test]
async fn a_stopping_node_takes_it_down_before_the_engine() {
    let mut world = World::new("db", TransportKind::Nbd);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.halt().await;
    assert_eq!(world.processes(), []);
    assert_eq!(world.devices.calls(), ["connect", "down"]);
    assert_eq!(world.catalogue.row().owner.as_deref(), Some(NODE));
}
