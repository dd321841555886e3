//! `storctl volume adopt`: the way out for a volume that is locked because the catalogue is older than its data.

use stor_api::client::Wish;
use stor_api::objects::VolumeAdoption;

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::confirm;

/// Of `volume adopt`.
#[derive(Debug, clap::Args)]
pub(crate) struct AdoptArgs {
    /// Its name; with --id the name it gets
    #[arg(add = completion::volumes(), value_parser = args::volume_name)]
    name: String,
    /// Id of a volume that the catalogue does not know, as `storctl status` shows it
    #[arg(long, value_name = "VOLUME-ID")]
    id: Option<String>,
    /// Also when not everything was heard that may hold later data; what only that has is lost
    #[arg(long)]
    force: bool,
}

pub(super) async fn adopt(context: &Context, args: AdoptArgs) -> Result<(), Failure> {
    let AdoptArgs { name, id, force } = args;
    let adoption = VolumeAdoption { id, force };
    let wish = Wish::AdoptVolume {
        name: &name,
        adoption: &adoption,
    };
    if context.planned(&wish).await? {
        return Ok(());
    }
    if force && !context.yes {
        let plan = context.client.plan(&wish).await?;
        let risks: Vec<&str> = plan
            .steps
            .iter()
            .map(String::as_str)
            .filter(|step| step.contains("risk "))
            .collect();
        let question = format!(
            "Volume {name} is taken over from the replicas that were heard ({}). What only others have is lost.",
            risks.join("; ")
        );
        confirm(&question, &format!("storctl volume adopt {name} --force"))?;
    }
    let volume = context.client.adopt_volume(&name, &adoption).await?;
    context.out.object(&volume, |volume| {
        let in_sync: Vec<&str> = volume
            .replicas
            .iter()
            .filter(|replica| replica.in_sync)
            .map(|replica| replica.node.as_str())
            .collect();
        format!(
            "volume {name} adopted: epoch {}, in sync: {}\n",
            volume.epoch,
            in_sync.join(", ")
        )
    })
}
