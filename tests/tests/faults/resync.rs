//! What a replica missed is what it gets, not more.

use std::time::Duration;

use anyhow::ensure;
use stor_tests::block::{self, BLOCK};
use stor_tests::cluster::{self, CLIENT};
use stor_tests::history::History;
use stor_tests::maps;
use stor_tests::volume::{self, Volume};
use stor_tests::wait;

const MIB: u64 = 1 << 20;
/// Written before: all over the first half.
const BEFORE: u64 = 32 * MIB;
/// Where the megabyte goes that is missed.
const FRESH: u64 = 40 * MIB;

#[test]
fn a_replica_that_missed_a_mebibyte_gets_about_a_mebibyte() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        let volume = Volume::create(cluster, "db1", volume::SIZE, &["s1", "s2"])?;
        let medium = volume.attach_socket()?;
        let mut open = medium.open()?;
        let mut history = History::new(0, usize::try_from(volume::SIZE / BLOCK as u64)?);
        let mut write = |open: &mut stor_tests::medium::Open, offset: u64, length: u64| {
            for slot in (offset..offset + length)
                .step_by(BLOCK)
                .map(|byte| byte / BLOCK as u64)
            {
                let number = history.send(slot)?;
                open.write(slot * BLOCK as u64, &block::fill(slot, number))?;
                history.acknowledged(slot, number)?;
            }
            anyhow::Ok(open.flush()?)
        };
        for region in 0..BEFORE / MIB {
            write(&mut open, region * MIB, 4 * BLOCK as u64)?;
        }
        for node in ["s1", "s2"] {
            let (_, metadata) = volume.files(node)?;
            wait::that(wait::LONG, &format!("{node} has no dirty region"), || {
                let dirty = maps::dirty_regions(&metadata)?;
                Ok(if dirty == 0 {
                    Ok(())
                } else {
                    Err(format!("{dirty} dirty regions"))
                })
            })?;
        }

        cluster.kill(&["s2"])?;
        write(&mut open, FRESH, MIB)?;
        volume.wait_member("s2", false)?;
        ensure!(
            volume.attachment(CLIENT)?.counters.resynced_bytes == 0,
            "copied too early"
        );
        cluster.start_again(&["s2"])?;
        volume.wait_in_sync()?;
        let resynced = wait::that(wait::LONG, "the engine has told what it copied", || {
            let bytes = volume.attachment(CLIENT)?.counters.resynced_bytes;
            Ok(if bytes >= MIB {
                Ok(bytes)
            } else {
                Err(format!("{bytes} bytes"))
            })
        })?;
        // A last report may still be on its way.
        std::thread::sleep(Duration::from_secs(2));
        let resynced = volume.attachment(CLIENT)?.counters.resynced_bytes.max(resynced);
        println!("missed {MIB} bytes, resynced {resynced}");
        ensure!(
            resynced <= 2 * MIB,
            "missed {MIB} bytes, but {resynced} were copied"
        );
        volume.closes_well(CLIENT, &medium, history)
    })
}
