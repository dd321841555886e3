//! What can be changed. Each call sends a [`Wish`].

use super::{Client, Error, Wish};
use crate::objects::{
    Attachment, AttachmentSpec, Class, ClassSpec, Node, NodeChange, NodeSpec, OrphanRemoval, Page, Plan,
    Pool, PoolChange, PoolSpec, ReplicaSpec, RestoreSpec, ScrubSpec, Snapshot, SnapshotsSpec, Volume,
    VolumeAdoption, VolumeChange, VolumeSpec,
};

impl Client {
    /// What `wish` would do, without doing it.
    pub async fn plan(&self, wish: &Wish<'_>) -> Result<Plan, Error> {
        self.send(wish, true).await
    }

    /// Registers a node.
    pub async fn create_node(&self, spec: &NodeSpec) -> Result<Node, Error> {
        self.send(&Wish::CreateNode(spec), false).await
    }

    /// Changes a node.
    pub async fn change_node(&self, name: &str, change: &NodeChange) -> Result<Node, Error> {
        self.send(&Wish::ChangeNode { name, change }, false).await
    }

    /// Forgets a node; with `force` also its pools without replicas and what it has to remove.
    pub async fn delete_node(&self, name: &str, force: bool) -> Result<(), Error> {
        self.send_delete(&Wish::DeleteNode { name, force }).await
    }

    /// Makes a pool on one node.
    pub async fn create_pool(&self, spec: &PoolSpec) -> Result<Pool, Error> {
        self.send(&Wish::CreatePool(spec), false).await
    }

    /// Changes a pool on one node.
    pub async fn change_pool(&self, name: &str, node: &str, change: &PoolChange) -> Result<Pool, Error> {
        self.send(&Wish::ChangePool { name, node, change }, false).await
    }

    /// Takes a pool away from one node; with `force` also when the node still has to remove something there.
    pub async fn delete_pool(&self, name: &str, node: &str, force: bool) -> Result<(), Error> {
        self.send_delete(&Wish::DeletePool { name, node, force }).await
    }

    /// Has the node remove what belongs to nothing; done when [`Client::orphans`] does not tell of it any more.
    pub async fn remove_orphans(&self, name: &str, node: &str, removal: &OrphanRemoval) -> Result<(), Error> {
        self.send_unit(&Wish::RemoveOrphans { name, node, removal })
            .await
            .map(drop)
    }

    /// Makes a class.
    pub async fn create_class(&self, spec: &ClassSpec) -> Result<Class, Error> {
        self.send(&Wish::CreateClass(spec), false).await
    }

    /// Takes a class away; its volumes stay as they are.
    pub async fn delete_class(&self, name: &str) -> Result<(), Error> {
        self.send_delete(&Wish::DeleteClass { name }).await
    }

    /// Makes a volume; it is in state `creating` until its replicas are there.
    pub async fn create_volume(&self, spec: &VolumeSpec) -> Result<Volume, Error> {
        self.send(&Wish::CreateVolume(spec), false).await
    }

    /// Begins to delete a volume; it is gone when it is not found any more. With `force` at once, and
    /// [`Client::tombstones`] tells what its nodes still have of it.
    pub async fn delete_volume(&self, name: &str, force: bool) -> Result<(), Error> {
        self.send_delete(&Wish::DeleteVolume { name, force }).await
    }

    /// Begins to make snapshots of one moment; look at them until they are ready or failed.
    pub async fn create_snapshots(&self, spec: &SnapshotsSpec) -> Result<Page<Snapshot>, Error> {
        self.send(&Wish::CreateSnapshots(spec), false).await
    }

    /// Begins to delete a snapshot; it is gone when it is not found any more.
    pub async fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), Error> {
        self.send_delete(&Wish::DeleteSnapshot { volume, name }).await
    }

    /// Makes a volume of a snapshot; it is in state `creating` until its first replicas are there.
    pub async fn restore(&self, volume: &str, name: &str, spec: &RestoreSpec) -> Result<Volume, Error> {
        self.send(&Wish::Restore { volume, name, spec }, false).await
    }

    /// Makes a volume of what another one holds at this moment. Look at it until it is there and not in state `creating`;
    /// a snapshot of [`crate::name::of_clone`] says why it could not be made.
    pub async fn clone_volume(&self, volume: &str, spec: &RestoreSpec) -> Result<(), Error> {
        self.send_unit(&Wish::Clone { volume, spec }).await.map(drop)
    }

    /// Makes a detached volume what a snapshot of it holds; it is in state `creating` until that is done.
    pub async fn roll_back(&self, volume: &str, name: &str) -> Result<Volume, Error> {
        self.send(&Wish::RollBack { volume, name }, false).await
    }

    /// Makes the catalogue say of a volume what its replicas say, after it was restored from an old backup.
    pub async fn adopt_volume(&self, name: &str, adoption: &VolumeAdoption) -> Result<Volume, Error> {
        self.send(&Wish::AdoptVolume { name, adoption }, false).await
    }

    /// Changes a volume; done when it has the size asked for.
    pub async fn change_volume(&self, name: &str, change: &VolumeChange) -> Result<Volume, Error> {
        self.send(&Wish::ChangeVolume { name, change }, false).await
    }

    /// Begins to compare all copies of a volume; done when [`Volume::scrub`] is not running any more.
    pub async fn scrub(&self, volume: &str, spec: &ScrubSpec) -> Result<Volume, Error> {
        self.send(&Wish::Scrub { volume, spec }, false).await
    }

    /// Ends the scrub under way.
    pub async fn cancel_scrub(&self, volume: &str) -> Result<Volume, Error> {
        self.send(&Wish::CancelScrub { volume }, false).await
    }

    /// Says that what scrubs found was seen.
    pub async fn acknowledge_scrub(&self, volume: &str) -> Result<Volume, Error> {
        self.send(&Wish::AcknowledgeScrub { volume }, false).await
    }

    /// Gives a volume one more replica; done when that is in sync, and the one it replaces is gone.
    pub async fn create_replica(&self, volume: &str, spec: &ReplicaSpec) -> Result<Volume, Error> {
        self.send(&Wish::CreateReplica { volume, spec }, false).await
    }

    /// Takes a replica away; done when the volume does not list it any more.
    pub async fn delete_replica(&self, volume: &str, replica: u32, force: bool) -> Result<(), Error> {
        let wish = Wish::DeleteReplica {
            volume,
            replica,
            force,
        };
        self.send_delete(&wish).await
    }

    /// Empties a node; done when no volume has a replica there.
    pub async fn drain_node(&self, name: &str) -> Result<Node, Error> {
        self.send(&Wish::DrainNode { name }, false).await
    }

    /// Lets a node hold replicas again.
    pub async fn undrain_node(&self, name: &str) -> Result<Node, Error> {
        self.send(&Wish::UndrainNode { name }, false).await
    }

    /// Declares a node gone.
    pub async fn lose_node(&self, name: &str) -> Result<Node, Error> {
        self.send(&Wish::LoseNode { name }, false).await
    }

    /// Begins to attach a volume to a node.
    pub async fn attach(&self, volume: &str, spec: &AttachmentSpec) -> Result<Attachment, Error> {
        self.send(&Wish::Attach { volume, spec }, false).await
    }

    /// Begins to detach a volume from a node; done when the volume no longer lists the attachment.
    pub async fn detach(&self, volume: &str, node: &str, force: bool) -> Result<(), Error> {
        self.send_delete(&Wish::Detach { volume, node, force }).await
    }

    /// Takes a controller out of the cluster.
    pub async fn remove_controller(&self, name: &str) -> Result<(), Error> {
        self.send_delete(&Wish::RemoveController { name }).await
    }

    /// Makes another controller the leader.
    pub async fn transfer_leader(&self, name: &str) -> Result<(), Error> {
        self.send_unit(&Wish::TransferLeader { name }).await.map(|_| ())
    }
}
