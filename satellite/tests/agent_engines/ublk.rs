//! Devices of the kernel's ublk driver: there before their engine, given to each in turn.

use super::*;

#[tokio::test]
async fn a_device_is_made_first_and_goes_before_its_engine() {
    let mut world = World::new("db", TransportKind::Ublk);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    assert_eq!(
        (status.device.as_str(), status.transport.as_str()),
        ("/dev/stor/db", "ublk")
    );
    assert_eq!(world.devices.calls(), ["make", "start"]);
    // The engine was told which it is.
    assert!(world.heard().contains(r#""device":7"#), "{}", world.heard());
    world.stop();
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.devices.calls(), ["make", "start", "down"]);
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
}

#[tokio::test]
async fn it_outlives_the_engine_and_the_agent_also_both_at_once() {
    let mut world = World::new("db", TransportKind::Ublk);
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
    let calls = ["make", "start", "recover", "start", "start", "recover", "start"];
    assert_eq!(world.devices.calls(), calls);
}

#[tokio::test]
async fn it_goes_by_force_when_another_may_have_written() {
    let mut world = World::new("db", TransportKind::Ublk);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.catalogue.taken_over_and_back();
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.serve();
    world.state(EngineState::Serving, 3).await;
    let calls = ["make", "start", "force down", "make", "start"];
    assert_eq!(world.devices.calls(), calls);
}

#[tokio::test]
async fn a_stopping_node_takes_it_down_before_the_engine() {
    let mut world = World::new("db", TransportKind::Ublk);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.halt().await;
    assert_eq!(world.processes(), []);
    assert_eq!(world.devices.calls(), ["make", "start", "down"]);
    assert_eq!(world.catalogue.row().owner.as_deref(), Some(NODE));
}

/// The fake engine of a volume of this name serves twice as much as the volume had.
#[tokio::test]
async fn a_device_that_cannot_grow_says_so_and_is_not_asked_again() {
    let mut world = World::new("grown", TransportKind::Ublk);
    *world.devices.fixed.lock().unwrap() = true;
    world.serve();
    until("it is told", || {
        world
            .status()
            .filter(|status| status.state() == EngineState::Serving && status.reason == "it keeps its size")
    })
    .await;
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 1).await;
    until("the next agent tells it too", || {
        world
            .status()
            .filter(|status| status.reason == "it keeps its size")
    })
    .await;
    let resize = format!("resize to {}", 2_u64 << 30);
    let calls = ["make", "start", resize.as_str(), "start", resize.as_str()];
    assert_eq!(world.devices.calls(), calls);
}

#[tokio::test]
async fn a_device_of_either_driver_grows_with_its_volume() {
    for (transport, made) in [
        (TransportKind::Ublk, vec!["make", "start"]),
        (TransportKind::Nbd, vec!["connect"]),
    ] {
        let mut world = World::new("grown", transport);
        world.serve();
        let resize = format!("resize to {}", 2_u64 << 30);
        until("it is resized", || {
            world.devices.calls().contains(&resize).then_some(())
        })
        .await;
        let status = world.state(EngineState::Serving, 1).await;
        assert_eq!(status.reason, "");
        assert_eq!(world.devices.calls(), [made, vec![resize.as_str()]].concat());
    }
}
