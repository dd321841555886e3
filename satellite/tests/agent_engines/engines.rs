//! Engines: started, followed by the next, found again, stopped.

use super::*;

#[tokio::test]
async fn an_engine_is_started_under_the_epoch_of_the_catalogue() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    let status = world.state(EngineState::Serving, 1).await;
    let socket = world.paths.nbd_socket(world.volume);
    assert_eq!(
        status.nbd_uri,
        format!("nbd+unix:///db?socket={}", socket.display())
    );
    assert_eq!(status.device, "");
    assert_eq!(world.catalogue.asked(), []);
    assert_eq!(process::used_epoch(&world.paths, world.volume), Epoch(1));
    let note = std::fs::read_to_string(world.paths.engine(world.volume).join("pid")).unwrap();
    assert!(note.starts_with(&format!("{} ", world.process().pid())), "{note}");
}

#[tokio::test]
async fn a_dead_engine_is_followed_by_one_of_a_new_epoch() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.kill();
    world.state(EngineState::Serving, 2).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1)]);
    world.kill();
    world.state(EngineState::Serving, 3).await;
    assert_eq!(world.catalogue.asked(), [World::restart(1), World::restart(2)]);
}

#[tokio::test]
async fn an_engine_has_the_right_to_its_epoch_and_each_renewal_of_it() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let heard = |world: &World, right: &SignedRight| {
        let told = format!("\"right\":{}", serde_json::to_string(right).unwrap());
        world.heard().contains(&told).then_some(())
    };
    until("the right to epoch 1", || heard(&world, &right_to(Epoch(1)))).await;
    let process = world.process();
    let renewed = SignedRight::new(vec![99; 4]);
    world.right = Some(renewed.clone());
    world.serve();
    until("the renewed right", || heard(&world, &renewed)).await;
    assert_eq!(world.process(), process);
    // What is desired is of before: the right to the new epoch comes with the answer that grants it.
    world.kill();
    world.state(EngineState::Serving, 2).await;
    until("the right to epoch 2", || heard(&world, &right_to(Epoch(2)))).await;
    world.serve();
    until("a right that is newer than the answer's", || {
        let last = world.heard().lines().last().unwrap_or_default().to_owned();
        last.contains("\"right\":[99,").then_some(())
    })
    .await;
}

#[tokio::test]
async fn no_epoch_is_used_twice_while_controllers_are_away() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    let status = world.state(EngineState::Starting, 1).await;
    assert!(status.reason.contains("the engine died"), "{status:?}");
    world.gone().await;
    // A new agent knows no more than the disk does: the epoch was used.
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Starting, 1).await;
    assert_eq!(world.processes(), []);
    *world.catalogue.away.lock().unwrap() = false;
    world.state(EngineState::Serving, 2).await;
}

#[tokio::test]
async fn a_restarted_agent_goes_on_with_the_engine_it_finds() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    world.restart_agent().await;
    assert_eq!(
        world.status(),
        None,
        "nothing may be said before it is known what is wanted"
    );
    world.serve();
    world.state(EngineState::Serving, 1).await;
    assert_eq!(world.process(), process);
    assert_eq!(world.catalogue.asked(), []);
}

#[tokio::test]
async fn an_engine_is_left_alone_until_it_is_known_what_is_wanted() {
    let mut world = World::new("proposer", TransportKind::Socket);
    *world.catalogue.away.lock().unwrap() = true;
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let process = world.process();
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    // Even so, its proposals get their outcome: I/O may be waiting for them.
    until("the outcome is heard", || {
        world.heard().contains("outcome").then_some(())
    })
    .await;
    assert_eq!(world.process(), process);
    world.volumes.set(&Desired::default());
    world.gone().await;
}

#[tokio::test]
async fn a_proposal_is_answered_with_what_the_catalogue_said() {
    let mut world = World::new("proposer", TransportKind::Socket);
    world.serve();
    until("the outcome is heard", || {
        world.heard().contains("outcome").then_some(())
    })
    .await;
    let row = world.catalogue.row();
    assert_eq!(row.in_sync().collect::<Vec<_>>(), [ReplicaId(1)]);
    let outcome = format!(
        r#""id":1,"row":{},"refusal":null"#,
        serde_json::to_string(&row).unwrap()
    );
    assert!(world.heard().contains(&outcome), "{}", world.heard());
}

#[tokio::test]
async fn a_stopped_engine_gives_its_right_up_and_says_whether_it_was_clean() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.stop();
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.catalogue.asked(), [World::detach(1, true)]);
    world.gone().await;
    world.volumes.set(&Desired::default());
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_engine_that_was_killed_did_not_end_clean() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    *world.catalogue.away.lock().unwrap() = true;
    world.kill();
    world.gone().await;
    world.restart_agent().await;
    *world.catalogue.away.lock().unwrap() = false;
    world.stop();
    until("the right is given up", || {
        world.catalogue.row().owner.is_none().then_some(())
    })
    .await;
    assert_eq!(world.catalogue.asked().last(), Some(&World::detach(1, false)));
}

#[tokio::test]
async fn an_engine_of_an_older_epoch_makes_room() {
    let mut world = World::new("db", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    let old = world.process();
    {
        let mut row = world.catalogue.row.lock().unwrap();
        let attach = Change::Attach {
            owner: NODE.to_owned(),
            expect: Epoch(1),
            force: true,
        };
        *row = decide(&row, &attach).unwrap();
    }
    world.serve();
    world.state(EngineState::Serving, 2).await;
    assert!(!old.is_alive());
    assert_eq!(
        world.catalogue.asked(),
        [],
        "the epoch was new; none had to be asked for"
    );
}

#[tokio::test]
async fn an_engine_that_does_not_stop_is_killed() {
    let mut world = World::new("deaf", TransportKind::Socket);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.set(&Desired::default());
    world.gone().await;
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
    assert!(world.heard().is_empty());
}

#[tokio::test]
async fn the_volume_of_another_node_is_not_started() {
    let mut world = World::new("db", TransportKind::Socket);
    let mut row = world.catalogue.row();
    row.owner = Some("k2".to_owned());
    world.desire(row, false);
    let status = world.state(EngineState::Starting, 1).await;
    assert_eq!(status.reason, "the volume is attached on node k2");
    assert_eq!(world.processes(), []);
}

#[tokio::test]
async fn an_engine_is_found_again_when_the_task_of_its_volume_has_ended() {
    let mut world = World::new("proposer", TransportKind::Socket);
    // The task ends when there is nobody to ask.
    world.answering.abort();
    world.serve();
    until("the task has ended", || world.volumes.any_ended().then_some(())).await;
    let process = world.process();
    world.serve();
    world.state(EngineState::Serving, 1).await;
    assert_eq!(world.process(), process);
}

#[tokio::test]
async fn the_stop_of_a_node_ends_engines_and_keeps_their_rights() {
    let mut world = World::new("db", TransportKind::Fuse);
    world.serve();
    world.state(EngineState::Serving, 1).await;
    world.volumes.halt().await;
    assert_eq!(world.processes(), []);
    assert_eq!(world.devices.calls(), ["mount", "attach", "down"]);
    assert_eq!(world.catalogue.asked(), []);
    assert_eq!(world.catalogue.row().owner.as_deref(), Some(NODE));
    world.restart_agent().await;
    world.serve();
    world.state(EngineState::Serving, 2).await;
}

#[tokio::test]
async fn the_traces_of_a_volume_that_is_no_more_wanted_go() {
    let mut world = World::new("db", TransportKind::Socket);
    world.paths.make_engine(world.volume).unwrap();
    process::record_epoch(&world.paths, world.volume, Epoch(7)).unwrap();
    world.restart_agent().await;
    assert!(world.paths.engine(world.volume).exists());
    world.volumes.set(&Desired::default());
    until("nothing is left", || {
        (!world.paths.engine(world.volume).exists()).then_some(())
    })
    .await;
}
