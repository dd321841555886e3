//! Command lines that are wrong in themselves or against what is there.

use anyhow::{Context as _, ensure};
use stor_tests::cluster;
use stor_tests::volume::Volume;

use super::{catalogue, shortened};

#[test]
fn wrong_command_lines_get_one_clear_error_and_their_exit_status() -> anyhow::Result<()> {
    cluster::with(|cluster| {
        Volume::create(cluster, "db1", 1 << 20, &["s1", "s2"])?;
        let before = catalogue(cluster)?;
        let long = "a".repeat(64);
        let table: &[(&[&str], i32, &str)] = &[
            (&["volume", "create", "DB1", "1Gi"], 2, "'D'"),
            (&["volume", "create", "all", "1Gi"], 2, "reserved"),
            (&["volume", "create", &long, "1Gi"], 2, "64 characters"),
            (&["volume", "create", "", "1Gi"], 2, "empty"),
            (&["volume", "create", "bad", "0"], 2, "smallest"),
            (&["volume", "create", "bad", "--", "-1"], 2, "negative"),
            (&["volume", "create", "bad", "1Xi"], 2, "Xi"),
            (&["volume", "create", "bad", "1.5"], 2, "whole"),
            (&["volume", "create", "bad", "65Ti"], 2, "largest"),
            (
                &["volume", "create", "bad", "99999999999999999999"],
                2,
                "more than",
            ),
            (&["volume", "create", "bad"], 2, "SIZE"),
            (&["volume", "create", "db1", "2Mi"], 4, "db1"),
            (&["volume", "create", "bad", "1Gi", "--pool", "nope"], 1, "nope"),
            (&["volume", "create", "bad", "1Gi", "--class", "nope"], 3, "nope"),
            (&["volume", "create", "bad", "1Gi", "--replicas", "4"], 1, "s1"),
            (&["volume", "describe", "nope"], 3, "nope"),
            (&["volume", "delete", "nope", "--yes"], 3, "nope"),
            (&["volume", "attach", "db1", "--node", "nope"], 3, "nope"),
            (&["volume", "attach", "nope", "--node", "k1"], 3, "nope"),
            (&["volume", "detach", "nope"], 3, "nope"),
            (&["node", "create", "s1", "127.0.0.9"], 4, "s1"),
            (&["node", "create", "n9", "not an address"], 2, "address"),
            (&["node", "create", "n9", "300.1.1.1"], 2, "address"),
            (&["volume", "create", "v9", "-5"], 2, "size"),
            (&["node", "describe", "nope"], 3, "nope"),
            (&["node", "delete", "s1", "--yes"], 4, "s1"),
            (
                &["pool", "create", "sp02", "--node", "nope", "--dir", "/var/tmp"],
                3,
                "nope",
            ),
            (&["pool", "describe", "nope"], 3, "nope"),
            (&["class", "describe", "nope"], 3, "nope"),
            (&["controller", "remove", "nope", "--yes"], 3, "nope"),
            (&["pigeon", "list"], 2, "pigeon"),
            (&["--url", "nonsense", "status"], 2, "nonsense"),
        ];
        let mut wrong = Vec::new();
        for (args, status, says) in table {
            let (exit, out, said) = cluster.storctl(args)?;
            println!("storctl {}\n{}", shortened(&args.join(" ")), said.trim_end());
            let helps = said.contains("\nhelp: ") || said.contains("For more information");
            if exit != *status || !said.contains(says) || !out.is_empty() || !helps {
                wrong.push(format!(
                    "storctl {}: exit status {exit}, not {status}, or without {says:?} or help:\n{said}{out}",
                    args.join(" ")
                ));
            }
        }
        ensure!(
            wrong.is_empty(),
            "{} of {} are wrong:\n{}",
            wrong.len(),
            table.len(),
            wrong.join("\n")
        );
        let after = catalogue(cluster).context("looking at what is there")?;
        ensure!(after == before, "before: {before:?}\nafter: {after:?}");
        cluster.wait_healthy()
    })
}
