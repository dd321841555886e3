//! `storctl controller …`

use clap::Subcommand;
use stor_api::client::Wish;
use stor_api::objects::{Controller, ControllerRole};

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Done, confirm};
use crate::table::{Cell, Column, Table, Tone};
use crate::wait::{self, Look};

mod backup;
mod restore;

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ControllerVerb {
    /// All controllers
    List,
    /// Take a controller out of the cluster
    Remove {
        /// Its name
        #[arg(add = completion::controllers(), value_parser = args::existing)]
        name: String,
    },
    /// Make another controller the leader
    TransferLeader {
        /// Its name
        #[arg(add = completion::controllers(), value_parser = args::existing)]
        name: String,
    },
    /// Write a backup of the catalogue: of what there is, not of the volumes' data
    Backup {
        /// The file; one that is there is replaced
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: std::path::PathBuf,
        /// What the first controller that answers has, without asking the others: for when they are gone
        #[arg(long)]
        local: bool,
    },
    /// Make a new cluster of one controller, here, out of a backup of a cluster whose controllers are lost
    Restore(restore::RestoreArgs),
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: ControllerVerb) -> Result<(), Failure> {
    let client = &context.client;
    match verb {
        ControllerVerb::List => context
            .out
            .list(client.controllers().await?, "no controllers", table),
        ControllerVerb::Backup { file, local } => backup::backup(context, &file, local).await,
        ControllerVerb::Restore(args) => restore::restore(context, args).await,
        ControllerVerb::Remove { name } => {
            if context.planned(&Wish::RemoveController { name: &name }).await? {
                return Ok(());
            }
            if !context.yes {
                confirm(
                    &removal(&name, &client.controllers().await?),
                    &format!("storctl controller remove {name}"),
                )?;
            }
            client.remove_controller(&name).await?;
            context.out.done(
                &Done::new("controller", &name, "removed"),
                &format!("controller {name} removed; its process can be stopped"),
            )
        }
        ControllerVerb::TransferLeader { name } => {
            if context.planned(&Wish::TransferLeader { name: &name }).await? {
                return Ok(());
            }
            client.transfer_leader(&name).await?;
            if !context.no_wait {
                wait::until(context, &format!("leadership of {name}"), || async {
                    let all = client.controllers().await?;
                    let leader = all.iter().find(|c| c.role == ControllerRole::Leader);
                    if leader.is_some_and(|c| c.name == name) {
                        return Ok(Look::Done(()));
                    }
                    let now = leader.map_or("nobody leads", |c| c.name.as_str());
                    Ok(Look::Pending(format!("the leader is {now}"), None))
                })
                .await?;
            }
            context.out.done(
                &Done::new("controller", &name, "leads"),
                &format!("controller {name} leads"),
            )
        }
    }
}

/// What removing a controller means, for who is to confirm it.
fn removal(name: &str, all: &[Controller]) -> String {
    let left = all
        .iter()
        .filter(|c| c.name != name && c.role != ControllerRole::Learner)
        .count();
    let mut text = format!(
        "Controller {name} is taken out of the cluster for good; {left} stay. One is added only by setting up \
         a new one with `stor-controller join`."
    );
    if left < 3 {
        text.push_str(" With fewer than three, none of them may fail.");
    }
    text
}

pub(crate) fn role(role: ControllerRole) -> &'static str {
    match role {
        ControllerRole::Leader => "leader",
        ControllerRole::Follower => "follower",
        ControllerRole::Learner => "learner",
    }
}

fn table(controllers: &[Controller]) -> Table {
    let mut table = Table::new(&[
        Column::left("NAME"),
        Column::left("ROLE"),
        Column::left("STATE"),
        Column::right("LAG"),
        Column::left("API"),
        Column::left("PEER"),
    ]);
    for controller in controllers {
        let state = if controller.online {
            Cell::new("online", Tone::Good)
        } else {
            Cell::new("offline", Tone::Bad)
        };
        table.row([
            controller.name.clone().into(),
            role(controller.role).into(),
            state,
            controller
                .lag
                .map_or_else(|| "-".to_owned(), |lag| lag.to_string())
                .into(),
            controller.api_address.clone().into(),
            controller.peer_address.clone().into(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controller(name: &str, id: u64, role: ControllerRole, online: bool, lag: Option<u64>) -> Controller {
        Controller {
            name: name.into(),
            id,
            api_address: format!("http://127.0.0.1:337{id}"),
            peer_address: format!("http://127.0.0.1:340{id}"),
            role,
            online,
            lag,
        }
    }

    #[test]
    fn a_removal_says_how_many_stay() {
        let all: Vec<Controller> = (1..=4)
            .map(|id| controller(&format!("c{id}"), id, ControllerRole::Follower, true, None))
            .collect();
        let four = removal("c1", &all);
        assert!(
            four.contains("3 stay") && !four.contains("fewer than three"),
            "{four}"
        );
        let three = removal("c1", &all[..3]);
        assert!(
            three.contains("2 stay") && three.contains("none of them may fail"),
            "{three}"
        );
    }

    #[test]
    fn list() {
        let text = table(&[
            controller("c1", 1, ControllerRole::Leader, true, None),
            controller("c2", 2, ControllerRole::Follower, true, Some(0)),
            controller("c3", 3, ControllerRole::Learner, false, Some(120)),
        ])
        .render(None);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
