//! The network in two, a replica on each side, and somebody who wants the volume on the other.

use anyhow::ensure;
use stor_tests::cluster::{self, CLIENT, SECOND};
use stor_tests::nemesis::{Partition, Stage, cuts};
use stor_tests::network::Network;
use stor_tests::{skip, volume, wait};

/// The engine and `s2` on one side; `s1`, the controllers' majority and the other client on the other. Clients of
/// both engines go on all the while.
#[test]
fn of_two_engines_in_two_halves_of_the_network_one_is_right() -> anyhow::Result<()> {
    if let Some(missing) = Network::missing() {
        skip::skipped("a take-over in half a network", &missing);
        return Ok(());
    }
    cluster::with_machines(|cluster| {
        let stage = Stage::set(cluster, 0, &["s1", "s2"])?;
        let volume = stage.volume();
        let network = cluster.network()?;
        network.cut(cuts(Partition::Halves(2), CLIENT, &network.machines()))?;
        // From here on nobody may be right on the old side.
        stage.crowd.supersede();
        let wish = volume::wish(SECOND, "socket", true);
        wait::that(wait::LONG, "the other half may take the volume", || {
            let asked = cluster.run(cluster.client().attach(volume.name, &wish));
            Ok(asked.map(drop).map_err(|error| error.to_string()))
        })?;
        stage
            .crowd
            .serve(&volume.medium(&volume.wait_attached(SECOND)?)?)?;
        stage.crowd.wait_for(1000)?;
        let shown = volume.wait_member("s2", false)?;
        println!("{SECOND} serves {:?}", shown.replicas);
        ensure!(shown.attachments.iter().all(|a| a.node == SECOND), "{shown:?}");
        network.heal_all()?;
        let done = stage.end(SECOND)?;
        let (operations, unknown, most) = done.record.counts();
        println!("{operations} operations on blocks, {unknown} of unknown fate, at most {most} on one");
        Ok(())
    })
}
