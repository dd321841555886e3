//! The grammar: what is global, which nouns there are, and the forms values must have. The verbs of a noun
//! are in the noun's file.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use stor_api::name::{self, Kind};
use stor_api::size;

use crate::failure::{Exit, Failure};
use crate::{class, completion, controller, disk, event, node, pool, quickstart, replica, snapshot, volume};

const AFTER_HELP: &str = "\
Exit status: 0 done, 1 failed, 2 usage, 3 not found, 4 conflict, 5 not authorised, 6 unreachable, 7 timed out.
Sizes: 10Gi, 500Mi, 1T; bare numbers are bytes.

A cluster to try it on:  storctl quickstart";

/// Control a Stor cluster.
#[derive(Debug, Parser)]
#[command(name = "storctl", version, after_help = AFTER_HELP, max_term_width = 110)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    disable_help_flag = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Flags of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// URL of a controller; give several and the next is tried when one is gone [default:
    /// http://127.0.0.1:3370]
    #[arg(
        long,
        global = true,
        env = "STOR_URL",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub(crate) url: Vec<String>,
    /// File with the bearer token
    #[arg(
        long,
        global = true,
        env = "STOR_TOKEN_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) token_file: Option<String>,
    /// File with the certificate of the cluster's CA
    #[arg(
        long,
        global = true,
        env = "STOR_CA_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(crate) ca_file: Option<String>,
    /// How the answer is printed; json and yaml print the REST object
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub(crate) output: Format,
    /// No colour, even on a terminal (so does NO_COLOR)
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Longest time the command may take, such as 30s, 5m
    #[arg(long, global = true, value_parser = duration, default_value = "2m", value_name = "TIME")]
    pub(crate) timeout: Duration,
    /// Say what would happen, change nothing
    #[arg(long, global = true)]
    pub(crate) dry_run: bool,
    /// Do not ask for confirmation
    #[arg(short, long, global = true)]
    pub(crate) yes: bool,
    /// Return as soon as the wish is recorded, do not wait until it is done
    #[arg(long, global = true)]
    pub(crate) no_wait: bool,
    /// Print help
    #[arg(short, long, global = true, action = clap::ArgAction::Help)]
    help: Option<bool>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Start a whole cluster on this machine: 3 controllers, 3 storage nodes, 1 client node
    Quickstart(quickstart::QuickstartArgs),
    /// The cluster on one screen: health with reasons, nodes, pools, volumes, running work
    Status,
    /// Machines of the cluster
    Node {
        #[command(subcommand)]
        verb: node::NodeVerb,
    },
    /// Block devices of the nodes
    Disk {
        #[command(subcommand)]
        verb: disk::DiskVerb,
    },
    /// Space on nodes, from which volumes are carved
    Pool {
        #[command(subcommand)]
        verb: pool::PoolVerb,
    },
    /// Templates for volumes
    Class {
        #[command(subcommand)]
        verb: class::ClassVerb,
    },
    /// Replicated block devices
    Volume {
        #[command(subcommand)]
        verb: volume::VolumeVerb,
    },
    /// Copies of a volume: add, take away, move to another node or pool
    Replica {
        #[command(subcommand)]
        verb: replica::ReplicaVerb,
    },
    /// What volumes held at one moment
    Snapshot {
        #[command(subcommand)]
        verb: snapshot::SnapshotVerb,
    },
    /// The controllers themselves
    Controller {
        #[command(subcommand)]
        verb: controller::ControllerVerb,
    },
    /// What happened
    Event {
        #[command(subcommand)]
        verb: event::EventVerb,
    },
    /// Print the completion script of a shell
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: completion::Shell,
    },
}

/// `30s`, `5m`, `1h`, `500ms`; a bare number is seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let form = || format!("{text:?} is not a time; write 500ms, 30s, 5m or 1h");
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| form())?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(form()),
    };
    match number.checked_mul(millis) {
        Some(total) if (1..=7 * 24 * 3_600_000).contains(&total) => Ok(Duration::from_millis(total)),
        _ => Err(format!("{text:?} is not between 1ms and a week (168h)")),
    }
}

/// The size a volume gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSize {
    pub(crate) bytes: u64,
    /// What was asked for, where that is no multiple of the block size.
    pub(crate) rounded_from: Option<u64>,
}

/// The size of a volume, rounded up as the cluster would.
pub(crate) fn volume_size(text: &str) -> Result<VolumeSize, String> {
    let asked = size::parse(text).map_err(|e| e.to_string())?;
    let bytes = size::check_volume(asked).map_err(|e| e.to_string())?;
    Ok(VolumeSize {
        bytes,
        rounded_from: (bytes != asked).then_some(asked),
    })
}

/// Bytes a second.
pub(crate) fn rate(text: &str) -> Result<u64, String> {
    size::parse(text).map_err(|e| e.to_string())
}

/// `key=value`; an empty value is allowed.
pub(crate) fn property(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    let pair = (key.to_owned(), value.to_owned());
    name::check_properties(&[pair.clone()].into_iter().collect()).map_err(|e| e.to_string())?;
    Ok(pair)
}

/// Properties by key; one that is given twice is a mistake, not an order.
pub(crate) fn properties(pairs: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut properties = BTreeMap::new();
    for (key, value) in pairs {
        if let Some(other) = properties.insert(key.clone(), value) {
            return Err(
                Failure::new(Exit::Usage, format!("--property {key} is given more than once"))
                    .why(format!("once it is {key}={other}"))
                    .help("give each key one value"),
            );
        }
    }
    Ok(properties)
}

/// A tag.
pub(crate) fn tag(text: &str) -> Result<String, String> {
    let tag = text.to_owned();
    name::check_tags(std::slice::from_ref(&tag)).map_err(|e| e.to_string())?;
    Ok(tag)
}

/// How many times a pool's capacity may be promised.
pub(crate) fn overprovision(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (1.0..=1000.0).contains(&factor) => Ok(factor),
        _ => Err(format!("{text:?} is not a factor between 1 and 1000")),
    }
}

/// The name of something that is there. Any name may be asked for; none at all would ask for the list.
pub(crate) fn existing(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a name is missing".to_owned());
    }
    Ok(text.to_owned())
}

/// The key of a node property.
pub(crate) fn property_key(text: &str) -> Result<String, String> {
    name::check_property_key(text).map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

macro_rules! new_name {
    ($(#[$doc:meta])* $function:ident, $kind:expr) => {
        $(#[$doc])*
        pub(crate) fn $function(text: &str) -> Result<String, String> {
            name::check($kind, text).map_err(|e| e.to_string())?;
            Ok(text.to_owned())
        }
    };
}
new_name!(/// The name of a new node.
    node_name, Kind::Node);
new_name!(/// The name of a new pool.
    pool_name, Kind::Pool);
new_name!(/// The name of a new class.
    class_name, Kind::Class);
new_name!(/// The name of a new volume.
    volume_name, Kind::Volume);

/// Parses the command line; otherwise says what clap says, and with what status the process ends.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    let error = match Cli::try_parse() {
        Ok(cli) => return Ok(cli),
        Err(error) => usage(error, std::env::args_os()),
    };
    let format = wanted_format(std::env::args().skip(1));
    if error.use_stderr() && format != Format::Table {
        return Err(refusal(&error).report(format));
    }
    if error.print().is_err() {
        // Nobody reads it; the exit status still tells.
    }
    Err(u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The output format of a command line that is not understood as a whole.
fn wanted_format(words: impl IntoIterator<Item = String>) -> Format {
    let mut words = words.into_iter().take_while(|word| word != "--");
    let mut found = Format::Table;
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "-o" | "--output" => words.next(),
            other => other
                .strip_prefix("--output=")
                .or_else(|| other.strip_prefix("-o"))
                .map(|value| value.trim_start_matches('=').to_owned()),
        };
        if let Some(Ok(format)) = value.map(|value| Format::from_str(&value, true)) {
            found = format;
        }
    }
    found
}

/// How clap's last line begins.
const MORE: &str = "For more information, ";

/// clap's text as a failure: the first line says what, the usage below what to do.
fn refusal(error: &clap::Error) -> Failure {
    let text = error.to_string();
    let text = text.trim().trim_start_matches("error: ");
    let (what, rest) = text.split_once('\n').unwrap_or((text, ""));
    let rest = rest.trim();
    // Its last line is what to do.
    match rest.rsplit_once('\n') {
        Some((why, help)) if help.starts_with(MORE) => Failure::new(Exit::Usage, what)
            .why(why.trim())
            .help(help.trim_start_matches(MORE).trim_end_matches('.')),
        _ if rest.starts_with(MORE) => {
            Failure::new(Exit::Usage, what).help(rest.trim_start_matches(MORE).trim_end_matches('.'))
        }
        _ => Failure::new(Exit::Usage, what).why(rest),
    }
}

/// The same refusal by a grammar that knows no environment: clap takes what comes from there for given, and
/// would show it in the usage line as if it were required.
fn usage(error: clap::Error, words: impl IntoIterator<Item = std::ffi::OsString>) -> clap::Error {
    if !error.use_stderr() {
        return error;
    }
    let plain = ["url", "token_file", "ca_file"]
        .into_iter()
        .fold(Cli::command(), |command, id| {
            command.mut_arg(id, |arg| arg.env(clap::builder::Resettable::Reset))
        });
    plain.try_get_matches_from(words).err().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_format_of_a_line_that_is_wrong() {
        let format = |line: &str| wanted_format(line.split(' ').map(str::to_owned));
        for line in [
            "-o json x",
            "x -ojson",
            "--output json",
            "x --output=json",
            "-o=JSON",
            "-o table -o json",
        ] {
            assert_eq!(format(line), Format::Json, "{line}");
        }
        assert_eq!(format("volume list -o yaml"), Format::Yaml);
        for line in ["", "-o", "-o xml", "x -- -o json", "volume attach json"] {
            assert_eq!(format(line), Format::Table, "{line}");
        }
    }

    #[test]
    fn a_property_is_given_once() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            properties(vec![pair("zone", "a"), pair("rack", "a")])
                .unwrap()
                .len(),
            2
        );
        let twice = properties(vec![pair("zone", "a"), pair("rack", "1"), pair("zone", "a")]).unwrap_err();
        assert_eq!(twice.exit, Exit::Usage);
        assert_eq!(twice.what, "--property zone is given more than once");
    }

    #[test]
    fn sizes_say_what_they_were() {
        let rounded = volume_size("10000000").unwrap();
        assert_eq!(
            (rounded.bytes, rounded.rounded_from),
            (10_002_432, Some(10_000_000))
        );
        assert_eq!(volume_size("10Mi").unwrap().rounded_from, None);
    }

    #[test]
    fn times() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("1h"), Ok(Duration::from_hours(1)));
        for bad in ["", "s", "-1s", "1d", "0s", "99999999h", "1.5s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn properties_have_a_form() {
        assert_eq!(property("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert_eq!(property("zone="), Ok(("zone".into(), String::new())));
        assert!(property("zone").is_err());
        assert!(property("=a").is_err());
    }

    #[test]
    fn every_pinned_line_parses() {
        for line in [
            "quickstart --dir d --nodes 3 --once",
            "status -o json",
            "node create s1 172.20.0.21 --property zone=a --property rack=2",
            "node create k1 10.0.0.1 --diskless",
            "node list",
            "node describe s1",
            "node set s1 --property zone=b",
            "node delete s1",
            "node drain s1",
            "node undrain s1",
            "node lost s1",
            "volume resize db1 20Gi",
            "volume set db1 --min-in-sync 1",
            "replica list",
            "replica list db1 --node s1",
            "replica add db1 --node s3 --pool sp01",
            "replica remove db1 --node s1",
            "replica remove db1 --id 2 --force",
            "replica move db1 --from s1 --to s3 --pool sp02",
            "disk list --node s1",
            "pool create sp01 --node s1 --dir /p --tag nvme --tag gen4 --overprovision 5",
            "pool list",
            "pool describe sp01",
            "pool set sp01 --node s1 --tag sata",
            "pool delete sp01 --node s1 --yes",
            "class create fast --replicas 3 --pool sp01 --tag nvme --transport fuse",
            "class list",
            "class describe fast",
            "class delete fast",
            "volume create db1 10Gi --class fast --replicas 2 --pool sp01 --tag nvme",
            "volume list",
            "volume describe db1",
            "volume attach db1 --node k1 --transport fuse --read-only",
            "volume detach db1",
            "volume detach db1 --node k1",
            "volume delete db1 --yes --no-wait --dry-run",
            "volume create db2 --from-snapshot db1@a --replicas 3",
            "volume create db2 --from-volume db1",
            "volume delete db1 --snapshots --yes",
            "snapshot create db1@a db2@a --timeout 1m",
            "snapshot list --volume db1",
            "snapshot describe db1@a",
            "snapshot delete db1@a --yes",
            "snapshot rollback db1@a --yes",
            "controller list",
            "controller remove c3",
            "controller transfer-leader c2",
            "controller backup /tmp/f --local",
            "controller restore /tmp/f --name c1 --dir /d --force --yes",
            "volume adopt db1 --dry-run",
            "volume adopt db1 --id 0191d5b4-0000-7000-8000-000000000001 --force --yes",
            "event list --follow",
            "event list --limit 20 -f",
            "completion bash",
            "--url http://a:1 --url http://b:2 --token-file t --ca-file c -o yaml --no-color --timeout 5s node list",
        ] {
            let words = std::iter::once("storctl").chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }
}
