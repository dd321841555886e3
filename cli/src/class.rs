//! `storctl class …`

use clap::Subcommand;
use stor_api::client::Wish;
use stor_api::objects::{Class, ClassSpec};

use crate::args;
use crate::completion;
use crate::context::Context;
use crate::failure::Failure;
use crate::output::{Done, confirm};
use crate::table::{Column, Fields, Table};

/// Verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum ClassVerb {
    /// Make a template for volumes
    Create {
        /// Its name
        #[arg(value_parser = args::class_name)]
        name: String,
        /// Copies of each volume [default: 2]
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
        replicas: Option<u8>,
        /// Pool to carve from [default: any]
        #[arg(long, add = completion::pools(), value_parser = args::existing)]
        pool: Option<String>,
        /// Tag the pool must have; repeatable
        #[arg(long, value_parser = args::tag)]
        tag: Vec<String>,
        /// How devices are reached: fuse or socket [default: the best the node has]
        #[arg(long, value_parser = ["ublk", "nbd", "fuse", "socket"])]
        transport: Option<String>,
        /// Node property, such as zone, that must differ between replicas
        #[arg(long, value_name = "PROPERTY", value_parser = args::property_key)]
        spread: Option<String>,
        /// Node property that must be the same for all replicas
        #[arg(long, value_name = "PROPERTY", value_parser = args::property_key)]
        together: Option<String>,
        /// Days between scrubs of its volumes; 0: none but those asked for [default: as the cluster does]
        #[arg(long, value_name = "DAYS")]
        scrub_days: Option<u16>,
    },
    /// All classes
    List,
    /// Everything about one class
    Describe {
        /// Its name
        #[arg(add = completion::classes(), value_parser = args::existing)]
        name: String,
    },
    /// Take a class away; its volumes stay as they are
    Delete {
        /// Its name
        #[arg(add = completion::classes(), value_parser = args::existing)]
        name: String,
    },
}

/// Runs a verb.
pub(crate) async fn run(context: &Context, verb: ClassVerb) -> Result<(), Failure> {
    match verb {
        ClassVerb::Create {
            name,
            replicas,
            pool,
            tag,
            transport,
            spread,
            together,
            scrub_days,
        } => {
            let replicas = replicas.unwrap_or(0);
            let spec = ClassSpec {
                name,
                replicas,
                pool,
                tags: tag,
                transport,
                spread,
                together,
                scrub_days,
            };
            if context.planned(&Wish::CreateClass(&spec)).await? {
                return Ok(());
            }
            let class = context.client.create_class(&spec).await?;
            context
                .out
                .object(&class, |class| format!("class {} created\n", class.spec.name))
        }
        ClassVerb::List => context.out.list(
            context.client.classes().await?,
            "no classes yet; make one with `storctl class create NAME`",
            table,
        ),
        ClassVerb::Describe { name } => context.out.object(&context.client.class(&name).await?, describe),
        ClassVerb::Delete { name } => {
            if context.planned(&Wish::DeleteClass { name: &name }).await? {
                return Ok(());
            }
            if !context.yes {
                let volumes = context.client.class(&name).await?.volumes;
                let question = format!("Class {name} is deleted; its {volumes} volumes stay as they are.");
                confirm(&question, &format!("storctl class delete {name}"))?;
            }
            context.client.delete_class(&name).await?;
            context.out.done(
                &Done::new("class", &name, "deleted"),
                &format!("class {name} deleted"),
            )
        }
    }
}

fn replicas(class: &Class) -> String {
    if class.spec.replicas == 0 {
        "2".to_owned()
    } else {
        class.spec.replicas.to_string()
    }
}

fn table(classes: &[Class]) -> Table {
    let mut table = Table::new(&[
        Column::left("NAME"),
        Column::right("REPLICAS"),
        Column::left("POOL"),
        Column::optional("TAGS"),
        Column::optional("TRANSPORT"),
        Column::optional("SPREAD"),
        Column::optional("TOGETHER"),
        Column::right("VOLUMES"),
    ]);
    for class in classes {
        let spec = &class.spec;
        table.row([
            spec.name.clone().into(),
            replicas(class).into(),
            spec.pool.clone().unwrap_or_else(|| "any".to_owned()).into(),
            spec.tags.join(" ").into(),
            spec.transport.clone().unwrap_or_default().into(),
            spec.spread.clone().unwrap_or_default().into(),
            spec.together.clone().unwrap_or_default().into(),
            class.volumes.to_string().into(),
        ]);
    }
    table
}

fn describe(class: &Class) -> String {
    let spec = &class.spec;
    let mut fields = Fields::default();
    fields
        .field("Name", spec.name.as_str())
        .field("Replicas", replicas(class))
        .field("Pool", spec.pool.as_deref().unwrap_or("any"))
        .optional("Tags", &spec.tags.join(" "))
        .field(
            "Transport",
            spec.transport.as_deref().unwrap_or("the best the node has"),
        )
        .optional("Spread over", spec.spread.as_deref().unwrap_or_default())
        .optional("Together in", spec.together.as_deref().unwrap_or_default())
        .field("Volumes", class.volumes.to_string());
    fields.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> Class {
        let spec = ClassSpec {
            name: name.into(),
            replicas: 0,
            pool: None,
            tags: Vec::new(),
            transport: None,
            spread: None,
            together: None,
            scrub_days: None,
        };
        Class {
            spec,
            volumes: 0,
            revision: 1,
        }
    }

    #[test]
    fn list_and_one() {
        let mut fast = class("fast");
        fast.spec.replicas = 3;
        fast.spec.pool = Some("sp01".into());
        fast.spec.tags = vec!["nvme".into()];
        fast.spec.transport = Some("fuse".into());
        fast.spec.spread = Some("zone".into());
        fast.volumes = 7;
        let text = format!(
            "{}\n{}",
            table(&[class("default"), fast.clone()]).render(None),
            describe(&fast)
        );
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }
}
