//! What can be asked of the cluster.

use super::{Client, Error, EventStream, Filter, MAX_PAGES, wish};
use crate::objects::{
    CatalogueInfo, Class, Controller, Disk, Event, Mount, Node, Orphan, Page, Pool, Replica, Snapshot,
    Status, Tombstone, Volume,
};

impl Client {
    /// The cluster on one screen.
    pub async fn status(&self) -> Result<Status, Error> {
        self.get("/api/v1/status").await
    }

    /// The catalogue as the leader has it.
    pub async fn catalogue(&self) -> Result<CatalogueInfo, Error> {
        self.get("/api/v1/catalogue").await
    }

    /// All controllers.
    pub async fn controllers(&self) -> Result<Vec<Controller>, Error> {
        self.list("/api/v1/controllers", &Filter::default()).await
    }

    /// All nodes.
    pub async fn nodes(&self) -> Result<Vec<Node>, Error> {
        self.list("/api/v1/nodes", &Filter::default()).await
    }

    /// One node.
    pub async fn node(&self, name: &str) -> Result<Node, Error> {
        self.get(&format!("/api/v1/nodes/{}", wish::segment(name))).await
    }

    /// Block devices, of one node or all.
    pub async fn disks(&self, filter: &Filter) -> Result<Vec<Disk>, Error> {
        self.list("/api/v1/disks", filter).await
    }

    /// File systems that could hold pools, of one node or all.
    pub async fn mounts(&self, filter: &Filter) -> Result<Vec<Mount>, Error> {
        self.list("/api/v1/mounts", filter).await
    }

    /// What is in pools and belongs to nothing, of one node or all.
    pub async fn orphans(&self, filter: &Filter) -> Result<Vec<Orphan>, Error> {
        self.list("/api/v1/orphans", filter).await
    }

    /// Pools: one entry for each pool on each node.
    pub async fn pools(&self) -> Result<Vec<Pool>, Error> {
        self.list("/api/v1/pools", &Filter::default()).await
    }

    /// One pool on one node.
    pub async fn pool(&self, name: &str, node: &str) -> Result<Pool, Error> {
        self.get(&format!(
            "/api/v1/pools/{}/nodes/{}",
            wish::segment(name),
            wish::segment(node)
        ))
        .await
    }

    /// All classes.
    pub async fn classes(&self) -> Result<Vec<Class>, Error> {
        self.list("/api/v1/classes", &Filter::default()).await
    }

    /// One class.
    pub async fn class(&self, name: &str) -> Result<Class, Error> {
        self.get(&format!("/api/v1/classes/{}", wish::segment(name)))
            .await
    }

    /// All volumes, or those with a replica or attachment on one node.
    pub async fn volumes(&self, filter: &Filter) -> Result<Vec<Volume>, Error> {
        self.list("/api/v1/volumes", filter).await
    }

    /// One volume with its replicas and attachments.
    pub async fn volume(&self, name: &str) -> Result<Volume, Error> {
        self.get(&format!("/api/v1/volumes/{}", wish::segment(name)))
            .await
    }

    /// Replicas of all volumes, one volume or one node.
    pub async fn replicas(&self, filter: &Filter) -> Result<Vec<Replica>, Error> {
        self.list("/api/v1/replicas", filter).await
    }

    /// Snapshots, of one volume or all.
    pub async fn snapshots(&self, filter: &Filter) -> Result<Vec<Snapshot>, Error> {
        self.list("/api/v1/snapshots", filter).await
    }

    /// One snapshot.
    pub async fn snapshot(&self, volume: &str, name: &str) -> Result<Snapshot, Error> {
        self.get(&format!("/api/v1/{}", wish::snapshot(volume, name)))
            .await
    }

    /// What is left of deleted volumes, on one node or all.
    pub async fn tombstones(&self, filter: &Filter) -> Result<Vec<Tombstone>, Error> {
        self.list("/api/v1/tombstones", filter).await
    }

    /// Events after the number `after` (0: the oldest kept), oldest first.
    pub async fn events(&self, after: u64) -> Result<Vec<Event>, Error> {
        let mut events: Vec<Event> = Vec::new();
        let mut after = after.to_string();
        for _ in 0..MAX_PAGES {
            let page: Page<Event> = self.get(&format!("/api/v1/events?after={after}")).await?;
            events.extend(page.items);
            match page.next {
                Some(next) if next != after => after = wish::segment(&next),
                _ => return Ok(events),
            }
        }
        Err(Error::Endless {
            path: "/api/v1/events".to_owned(),
        })
    }

    /// Events after the number `after` as they happen. Goes on with another controller when one is lost.
    pub fn follow_events(&self, after: u64) -> EventStream {
        EventStream::new(self.clone(), after)
    }
}
