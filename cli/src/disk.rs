//! `storctl disk …`

use clap::Subcommand;
use stor_api::client::Filter;
use stor_api::objects::Disk;
use stor_api::size;

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::table::{Cell, Column, Table, Tone};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum DiskVerb {
    /// Block devices, and why one can't become a pool
    List {
        /// Only this node's
        #[arg(long, add = completion::nodes(), value_parser = args::existing)]
        node: Option<String>,
    },
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: DiskVerb) -> Result<(), Failure> {
    let DiskVerb::List { node } = verb;
    let disks = context.client.disks(&Filter { node, volume: None }).await?;
    context
        .out
        .list(disks, "no disks: no node that is online has reported any", table)
}

fn table(disks: &[Disk]) -> Table {
    let mut table = Table::new(&[
        Column::left("NODE"),
        Column::left("PATH"),
        Column::right("SIZE"),
        Column::left("KIND"),
        Column::optional("MODEL"),
        Column::optional("SERIAL"),
        Column::left("STATE"),
    ]);
    for disk in disks {
        let state = if disk.in_use.is_empty() {
            Cell::new("unused", Tone::Good)
        } else {
            Cell::new(disk.in_use.as_str(), Tone::Faint)
        };
        table.row([
            disk.node.clone().into(),
            disk.path.clone().into(),
            size::format(disk.size_bytes).into(),
            if disk.rotational { "hdd" } else { "ssd" }.into(),
            disk.model.clone().into(),
            disk.serial.clone().into(),
            state,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list() {
        let disk = |path: &str, rotational, in_use: &str| Disk {
            node: "s1".into(),
            path: path.into(),
            size_bytes: 480_103_981_056,
            model: "SAMSUNG MZ7".into(),
            serial: String::new(),
            rotational,
            in_use: in_use.into(),
            wipeable: false,
        };
        let text = table(&[
            disk("/dev/sda", false, "has partitions"),
            disk("/dev/sdb", true, ""),
        ])
        .render(None);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
