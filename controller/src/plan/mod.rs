//! Decides where the replicas of a volume go.
//!
//! [`place`] is a pure function: the wish and what is known of every node in, the placement or the refusal
//! out, and in both cases a verdict on every node. It reserves nothing; the command that creates the volume
//! carries what was presumed and is refused when that no longer holds.

mod further;
mod survey;
#[cfg(test)]
mod tests;
mod together;

pub use further::{Asked, further, placed};
pub use survey::{DEFAULT_REPLICAS, nodes, wish};

use std::collections::{BTreeMap, BTreeSet};

use stor_api::size::format as bytes;

/// No new replica goes to a pool fuller than this, in percent of its capacity.
pub const FULL_PERCENT: u64 = 95;

/// What is to be placed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// Bytes of each replica.
    pub size: u64,
    /// How many replicas.
    pub replicas: usize,
    /// Only this pool.
    pub pool: Option<String>,
    /// Tags the pool must carry, all of them.
    pub tags: Vec<String>,
    /// Node property whose values must all differ.
    pub spread: Option<String>,
    /// Node property whose value must be the same everywhere.
    pub together: Option<String>,
}

/// A node as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Has no pools by its kind.
    pub diskless: bool,
    /// Its satellite is connected.
    pub online: bool,
    /// Why nothing is placed there, whatever its pools are like.
    pub barred: Option<String>,
    /// For `spread` and `together`.
    pub properties: BTreeMap<String, String>,
    /// Its pools.
    pub pools: Vec<Pool>,
}

/// A pool on one node as the planner sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Name.
    pub name: String,
    /// Catalogue revision.
    pub revision: u64,
    /// Tags it carries.
    pub tags: Vec<String>,
    /// Bytes promised to replicas.
    pub promised: u64,
    /// Replicas there.
    pub replicas: u64,
    /// Limit of promised over capacity, in thousandths.
    pub overprovision_milli: u64,
    /// What its node reports.
    pub report: Report,
}

/// What a node reports of a pool.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// Nothing yet.
    None,
    /// It can't be used.
    Failed(String),
    /// It can.
    Space {
        /// Bytes of the file system.
        capacity: u64,
        /// Bytes free in it.
        free: u64,
    },
}

/// A replica's place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Node.
    pub node: String,
    /// Pool.
    pub pool: String,
    /// Revision of the pool that was looked at.
    pub pool_revision: u64,
    /// The most that may be promised there, this replica included.
    pub promise_limit: u64,
}

/// A node's (or, where it has several that were considered, a pool's) fate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Node.
    pub node: String,
    /// Pool considered; empty when the node has none to consider.
    pub pool: String,
    /// Got a replica.
    pub chosen: bool,
    /// The first rule that ruled it out; empty when chosen.
    pub reason: String,
}

/// Where the replicas go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placement {
    /// One each, in order of preference.
    pub places: Vec<Place>,
    /// Of every node, by name.
    pub verdicts: Vec<Verdict>,
}

/// Why they can't be placed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// Replicas asked for.
    pub wanted: usize,
    /// The most that could be placed.
    pub possible: usize,
    /// Of every node, by name.
    pub verdicts: Vec<Verdict>,
}

/// Places the replicas of `wish`.
pub fn place(wish: &Wish, nodes: &[Node]) -> Result<Placement, Refusal> {
    let mut verdicts = Vec::new();
    let mut admitted = Vec::new();
    for node in nodes {
        admit_node(wish, node, &mut admitted, &mut verdicts);
    }
    // Fewest replicas first, then by name, so that equal clusters plan equally.
    admitted.sort_by(|a, b| {
        (a.pool.replicas, &a.node.name, &a.pool.name).cmp(&(b.pool.replicas, &b.node.name, &b.pool.name))
    });
    let choice = choose(wish, &admitted);
    let enough = choice.len() == wish.replicas;
    for candidate in &admitted {
        let chosen = enough && choice.iter().any(|c| std::ptr::eq(*c, candidate));
        let reason = if chosen {
            String::new()
        } else {
            why_not(wish, candidate, &choice, enough)
        };
        verdicts.push(Verdict {
            node: candidate.node.name.clone(),
            pool: candidate.pool.name.clone(),
            chosen,
            reason,
        });
    }
    verdicts.sort_by(|a, b| (&a.node, &a.pool).cmp(&(&b.node, &b.pool)));
    if !enough {
        return Err(Refusal {
            wanted: wish.replicas,
            possible: choice.len(),
            verdicts,
        });
    }
    let places = choice
        .iter()
        .map(|candidate| Place {
            node: candidate.node.name.clone(),
            pool: candidate.pool.name.clone(),
            pool_revision: candidate.pool.revision,
            promise_limit: candidate.limit,
        })
        .collect();
    Ok(Placement { places, verdicts })
}

/// A pool that passed every rule of its own.
struct Candidate<'a> {
    node: &'a Node,
    pool: &'a Pool,
    limit: u64,
}

impl Candidate<'_> {
    fn property(&self, key: Option<&String>) -> &str {
        key.and_then(|key| self.node.properties.get(key))
            .map_or("", String::as_str)
    }
}

fn admit_node<'a>(
    wish: &Wish,
    node: &'a Node,
    admitted: &mut Vec<Candidate<'a>>,
    verdicts: &mut Vec<Verdict>,
) {
    let mut refuse = |pool: &str, reason: String| {
        verdicts.push(Verdict {
            node: node.name.clone(),
            pool: pool.into(),
            chosen: false,
            reason,
        });
    };
    if node.diskless {
        return refuse("", "the node is diskless".into());
    }
    if let Some(why) = &node.barred {
        return refuse("", why.clone());
    }
    let considered: Vec<&Pool> = node
        .pools
        .iter()
        .filter(|pool| wish.pool.as_ref().is_none_or(|name| *name == pool.name))
        .collect();
    if considered.is_empty() {
        return refuse(
            "",
            match &wish.pool {
                Some(name) => format!("the node has no pool {name}"),
                None => "the node has no pool".into(),
            },
        );
    }
    for pool in considered {
        match admit_pool(wish, node, pool) {
            Ok(limit) => admitted.push(Candidate { node, pool, limit }),
            Err(reason) => refuse(&pool.name, reason),
        }
    }
}

/// The rules of one pool, in the order in which they are told. Answers the most that may be promised.
fn admit_pool(wish: &Wish, node: &Node, pool: &Pool) -> Result<u64, String> {
    if let Some(tag) = wish.tags.iter().find(|tag| !pool.tags.contains(tag)) {
        return Err(format!("the pool does not carry the tag {tag}"));
    }
    for key in [&wish.spread, &wish.together].into_iter().flatten() {
        if node.properties.get(key).is_none_or(String::is_empty) {
            return Err(format!("the node has no property {key}"));
        }
    }
    if !node.online {
        return Err("the node is not connected".into());
    }
    let (capacity, free) = match &pool.report {
        Report::None => return Err("the node has not reported the pool yet".into()),
        Report::Failed(error) => return Err(format!("the pool can't be used: {error}")),
        Report::Space { capacity, free } => (*capacity, *free),
    };
    let used = u128::from(capacity.saturating_sub(free));
    if used * 100 >= u128::from(capacity) * u128::from(FULL_PERCENT) {
        let percent = if capacity == 0 {
            100
        } else {
            used * 100 / u128::from(capacity)
        };
        return Err(format!(
            "the pool is {percent} % full (admission stops at {FULL_PERCENT} %)"
        ));
    }
    let limit = u128::from(capacity) * u128::from(pool.overprovision_milli) / 1000;
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    if pool.promised.saturating_add(wish.size) > limit {
        return Err(format!(
            "{} are promised already and {} more would pass the over-provisioning limit of {}",
            bytes(pool.promised),
            bytes(wish.size),
            bytes(limit)
        ));
    }
    Ok(limit)
}

/// The best set; a smaller one when there is none of the wanted size. With `together`, the group that can
/// hold all replicas and holds the fewest now.
fn choose<'c, 'a>(wish: &Wish, admitted: &'c [Candidate<'a>]) -> Vec<&'c Candidate<'a>> {
    let mut groups: BTreeMap<&str, Vec<&Candidate<'a>>> = BTreeMap::new();
    for candidate in admitted {
        groups
            .entry(candidate.property(wish.together.as_ref()))
            .or_default()
            .push(candidate);
    }
    let mut best: Vec<&Candidate<'a>> = Vec::new();
    for group in groups.values() {
        let choice = pick(wish, group);
        let load = |set: &[&Candidate<'_>]| set.iter().map(|c| c.pool.replicas).sum::<u64>();
        let better = choice.len() > best.len() || choice.len() == best.len() && load(&choice) < load(&best);
        if better {
            best = choice;
        }
    }
    best
}

/// In order: one replica per node and, with `spread`, one per value. Taking the first of each is best, since
/// nodes and values only ever exclude their own kind.
fn pick<'c, 'a>(wish: &Wish, group: &[&'c Candidate<'a>]) -> Vec<&'c Candidate<'a>> {
    let (mut nodes, mut values) = (BTreeSet::new(), BTreeSet::new());
    let mut choice = Vec::new();
    for candidate in group {
        if choice.len() == wish.replicas {
            break;
        }
        if nodes.contains(&candidate.node.name.as_str()) {
            continue;
        }
        if wish.spread.is_some() && !values.insert(candidate.property(wish.spread.as_ref())) {
            continue;
        }
        nodes.insert(candidate.node.name.as_str());
        choice.push(*candidate);
    }
    choice
}

fn why_not(wish: &Wish, candidate: &Candidate<'_>, choice: &[&Candidate<'_>], enough: bool) -> String {
    if choice.iter().any(|c| std::ptr::eq(*c, candidate)) {
        return "it could hold one, but not enough others can".into();
    }
    if choice.iter().any(|c| c.node.name == candidate.node.name) {
        return "another pool of the node holds one of the replicas".into();
    }
    if let Some(key) = &wish.together
        && let Some(first) = choice.first()
        && first.property(Some(key)) != candidate.property(Some(key))
    {
        return format!(
            "the replicas stay together in {key}={}",
            first.property(Some(key))
        );
    }
    if let Some(key) = &wish.spread
        && let Some(holder) = choice
            .iter()
            .find(|c| c.property(Some(key)) == candidate.property(Some(key)))
    {
        return format!(
            "{key}={} is taken by node {}",
            candidate.property(Some(key)),
            holder.node.name
        );
    }
    debug_assert!(
        enough,
        "an admitted pool is left out only by a rule or because there are enough"
    );
    "not needed: others come first".into()
}
