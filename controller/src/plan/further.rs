//! Where one more replica of a volume goes: the same rules as for a new volume, and those the replicas it has bring
//! with them.

use stor_replication::ids::ReplicaId;

use super::{Node, Placement, Refusal, Wish, place};
use crate::catalogue::command::{self, ClassWish};
use crate::catalogue::row::Volume;

/// What was asked for beyond the volume's own rules.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Asked {
    /// On this node.
    pub node: Option<String>,
    /// In this pool, instead of the volume's own.
    pub pool: Option<String>,
    /// In place of this one.
    pub replaces: Option<ReplicaId>,
}

/// Places one more replica of `volume`.
pub fn further(
    volume: &Volume,
    class: Option<&ClassWish>,
    asked: &Asked,
    nodes: &[Node],
) -> Result<Placement, Refusal> {
    let mut wish = super::survey::wish(&volume.wish, class);
    wish.replicas = 1;
    wish.size = volume.row.size.max(volume.grow_to.unwrap_or(0));
    if asked.pool.is_some() {
        wish.pool.clone_from(&asked.pool);
    }
    let bar = |node: &Node| Node {
        barred: node
            .barred
            .clone()
            .or_else(|| not_asked(node, asked))
            .or_else(|| holds(node, volume, asked, &wish))
            .or_else(|| against(node, volume, asked, &wish, nodes)),
        ..node.clone()
    };
    let barred: Vec<Node> = nodes.iter().map(bar).collect();
    // What the others' values say is said above; of one replica alone there is nothing to spread.
    place(&wish, &barred)
}

fn not_asked(node: &Node, asked: &Asked) -> Option<String> {
    let wanted = asked.node.as_ref().filter(|wanted| **wanted != node.name)?;
    Some(format!("node {wanted} was asked for"))
}

/// One replica per node, except on the way from one of its pools to another.
fn holds(node: &Node, volume: &Volume, asked: &Asked, wish: &Wish) -> Option<String> {
    let of_node = |id: &ReplicaId| {
        let member = volume.row.replicas.get(id);
        member.is_some_and(|member| member.node == node.name)
    };
    let held = volume.places.iter().filter(|(id, _)| of_node(id));
    let moves = |id: ReplicaId, pool: &str| {
        asked.replaces == Some(id) && wish.pool.as_deref().is_some_and(|wanted| wanted != pool)
    };
    let stays = held.into_iter().find(|(id, place)| !moves(**id, &place.pool));
    stays.map(|(_, place)| format!("it holds a replica of the volume in pool {}", place.pool))
}

/// What the replicas that stay say about spread and together.
fn against(node: &Node, volume: &Volume, asked: &Asked, wish: &Wish, nodes: &[Node]) -> Option<String> {
    let stay = volume
        .row
        .replicas
        .iter()
        .filter(|(id, member)| Some(**id) != asked.replaces && !member.leaving);
    let holders: Vec<&Node> = stay
        .filter_map(|(_, member)| nodes.iter().find(|node| node.name == member.node))
        .collect();
    let value = |node: &Node, key: &String| node.properties.get(key).cloned().unwrap_or_default();
    if let Some(key) = &wish.spread
        && let Some(holder) = holders
            .iter()
            .find(|holder| value(holder, key) == value(node, key))
    {
        return Some(format!(
            "{key}={} is taken by node {}",
            value(node, key),
            holder.name
        ));
    }
    if let Some(key) = &wish.together
        && let Some(holder) = holders
            .iter()
            .find(|holder| value(holder, key) != value(node, key))
    {
        return Some(format!(
            "the replicas stay together in {key}={}",
            value(holder, key)
        ));
    }
    None
}

/// The placement of one replica as a command carries it.
pub fn placed(placement: Placement) -> Option<command::Placement> {
    let place = placement.places.into_iter().next()?;
    Some(command::Placement {
        node: place.node,
        pool: place.pool,
        pool_revision: place.pool_revision,
        promise_limit: place.promise_limit,
    })
}
