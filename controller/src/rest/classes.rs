//! Classes.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use stor_api::name;
use stor_api::objects::{Class, ClassSpec, Page};
use stor_api::problem::Problem;

use super::answer::{Answer, change, created, done, object, page};
use super::attachments::check_transport;
use super::extract::{At, Body, IfMatch, List, Manner, Nothing, Params};
use super::problem::Failure;
use super::volumes::check_replicas;
use crate::catalogue::command::ClassWish;
use crate::catalogue::{Action, load};
use crate::cluster::Cluster;
use crate::plan::DEFAULT_REPLICAS;
use crate::show;

/// Classes, by name.
#[utoipa::path(get, path = "/api/v1/classes", operation_id = "classes_list", tag = "classes", params(List),
    responses((status = 200, body = Page<Class>), (status = "default", body = Problem)))]
pub(super) async fn list(State(cluster): State<Arc<Cluster>>, Params(list): Params<List>) -> Answer {
    let mut look = cluster.look().await?;
    let rows = load::classes_page(look.rows(), &list.after, list.limit() + 1).await?;
    Ok(page(
        rows.iter().map(show::class).collect(),
        &list,
        |class: &Class| class.spec.name.clone(),
    ))
}

/// One class.
#[utoipa::path(get, path = "/api/v1/classes/{class}", operation_id = "classes_get", tag = "classes", params(("class" = String, Path)),
    responses((status = 200, body = Class), (status = "default", body = Problem)))]
pub(super) async fn get(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    _: Params<Nothing>,
) -> Answer {
    show_class(&cluster, &name, StatusCode::OK).await
}

async fn show_class(cluster: &Cluster, name: &str, status: StatusCode) -> Answer {
    let mut look = cluster.look().await?;
    let row = load::class(look.rows(), name)
        .await?
        .ok_or_else(|| Failure::not_found(format!("class {name}")))?;
    Ok(object(status, row.revision, &show::class(&row)))
}

/// Make a class.
#[utoipa::path(post, path = "/api/v1/classes", operation_id = "classes_create", tag = "classes", params(Manner), request_body = ClassSpec,
    responses((status = 201, body = Class), (status = 200, body = Class, description = "It was there already"),
        (status = "default", body = Problem)))]
pub(super) async fn create(
    State(cluster): State<Arc<Cluster>>,
    Params(manner): Params<Manner>,
    Body(spec): Body<ClassSpec>,
) -> Answer {
    name::check(name::Kind::Class, &spec.name).map_err(Failure::invalid)?;
    if let Some(pool) = &spec.pool {
        name::check(name::Kind::Pool, pool).map_err(Failure::invalid)?;
    }
    name::check_tags(&spec.tags).map_err(Failure::invalid)?;
    for key in [&spec.spread, &spec.together].into_iter().flatten() {
        name::check_property_key(key).map_err(Failure::invalid)?;
    }
    if let Some(transport) = &spec.transport {
        check_transport(transport)?;
    }
    let replicas = if spec.replicas == 0 {
        DEFAULT_REPLICAS
    } else {
        check_replicas(spec.replicas)?
    };
    let mut tags = spec.tags;
    tags.sort();
    let wish = ClassWish {
        name: spec.name.clone(),
        replicas,
        pool: spec.pool,
        tags,
        transport: spec.transport,
        spread: spec.spread,
        together: spec.together,
        scrub_days: spec.scrub_days,
    };
    let step = format!("make class {}", spec.name);
    change(&cluster, manner, Action::CreateClass(wish), step, |outcome| {
        show_class(&cluster, &spec.name, created(&outcome))
    })
    .await
}

/// Take a class away; volumes made from it stay as they are.
#[utoipa::path(delete, path = "/api/v1/classes/{class}", operation_id = "classes_delete", tag = "classes", params(("class" = String, Path), Manner),
    responses((status = 204), (status = "default", body = Problem)))]
pub(super) async fn delete(
    State(cluster): State<Arc<Cluster>>,
    At(name): At<String>,
    Params(manner): Params<Manner>,
    IfMatch(expect): IfMatch,
) -> Answer {
    let step = format!("take class {name} away");
    change(
        &cluster,
        manner,
        Action::DeleteClass { name, expect },
        step,
        |_| async { Ok(done()) },
    )
    .await
}
