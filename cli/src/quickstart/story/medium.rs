//! How the story uses its volume: an ext4 file system on the device where this machine can mount one, NBD on
//! the socket otherwise.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stor_api::objects::{Attachment, Node};
use stor_api::size;

use super::super::place::{Place, cannot};
use super::load::{Load, Target, Written};
use super::{command, image, nbd::Nbd, tree};
use crate::failure::Failure;

const MKFS: Duration = Duration::from_mins(1);
const MOUNT: Duration = Duration::from_secs(30);
/// An unmount writes what is dirty.
const UNMOUNT: Duration = Duration::from_mins(1);
const FILL: Duration = Duration::from_secs(200);
/// Tries while something still has a file open.
const UNMOUNT_TRIES: u32 = 20;
const UNMOUNT_PAUSE: Duration = Duration::from_millis(250);

/// That this machine can make and mount a file system on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CanMount(());

/// Whether it can. `node` is the client node, whose probe has looked at nbd, FUSE and loop devices.
pub(crate) fn can_mount(node: &Node) -> Option<CanMount> {
    let device = node.transports.iter().any(|t| t.name != "socket" && t.available);
    let programs = ["mkfs.ext4", "mount", "umount"]
        .iter()
        .all(|p| command::find(p).is_some());
    (device && programs && rustix::process::geteuid().is_root()).then_some(CanMount(()))
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) enum Medium {
    /// A file system.
    Mounted {
        /// The block device.
        device: PathBuf,
        /// Where it is mounted.
        at: PathBuf,
    },
    /// Blocks.
    Nbd {
        /// As the attachment says.
        uri: String,
    },
}

/// What was put on it.
#[derive(Debug)]
pub(crate) enum Content {
    /// Files and their hashes.
    Files(tree::Manifest),
    /// A generated image.
    Image,
}

fn mount_point(place: &Place) -> PathBuf {
    place.dir().join("run/mnt")
}

impl Medium {
    /// For an attachment.
    pub(crate) fn of(
        place: &Place,
        attachment: &Attachment,
        mounts: Option<CanMount>,
    ) -> Result<Self, Failure> {
        if mounts.is_none() {
            return Self::over_nbd(attachment);
        }
        if attachment.device.is_empty() {
            return Err(Failure::failed(format!(
                "volume {} has no device",
                attachment.volume
            )));
        }
        Ok(Self::Mounted {
            device: PathBuf::from(&attachment.device),
            at: mount_point(place),
        })
    }

    fn over_nbd(attachment: &Attachment) -> Result<Self, Failure> {
        if attachment.nbd_uri.is_empty() {
            return Err(Failure::failed(format!(
                "volume {} has no NBD socket",
                attachment.volume
            )));
        }
        Ok(Self::Nbd {
            uri: attachment.nbd_uri.clone(),
        })
    }

    /// The same use of the volume on another node.
    pub(crate) fn moved(&self, attachment: &Attachment) -> Result<Self, Failure> {
        match self {
            Self::Mounted { at, .. } => Ok(Self::Mounted {
                device: PathBuf::from(&attachment.device),
                at: at.clone(),
            }),
            Self::Nbd { .. } => Self::over_nbd(attachment),
        }
    }

    /// The transport to ask for; the node's best gives a device where there can be one.
    pub(crate) fn transport(&self) -> Option<String> {
        match self {
            Self::Mounted { .. } => None,
            Self::Nbd { .. } => Some("socket".to_owned()),
        }
    }

    pub(crate) fn fill_title(&self) -> &'static str {
        match self {
            Self::Mounted { .. } => "make ext4, copy a tree of files into it",
            Self::Nbd { .. } => "write an image over NBD (no root or FUSE)",
        }
    }

    /// Puts content on the new volume.
    pub(crate) async fn fill(&self) -> Result<(Content, String), Failure> {
        match self {
            Self::Mounted { device, at } => {
                // A discard of the whole device counts as written everywhere for a while, and tables that the
                // kernel would write later would be in the way of what is measured.
                let extended = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
                command::run("mkfs.ext4", &["-q", "-F", "-E", extended, text(device)?], MKFS).await?;
                mount(device, at, "rw").await?;
                let at = at.clone();
                let manifest = command::blocking(FILL, "copy files", move || tree::copy(&at)).await?;
                let told = format!(
                    "{} files, {}, hashes kept",
                    manifest.files(),
                    size::format(manifest.bytes())
                );
                Ok((Content::Files(manifest), told))
            }
            Self::Nbd { uri } => {
                let uri = uri.clone();
                let bytes = command::blocking(FILL, "write an image", move || {
                    image::write(&mut Nbd::connect(&uri)?)
                })
                .await?;
                Ok((
                    Content::Image,
                    format!("{} of random data and a flush", size::format(bytes)),
                ))
            }
        }
    }

    /// Starts writing to it all the time.
    pub(crate) async fn load(&self) -> Result<Load, Failure> {
        let medium = self.clone();
        let target = command::blocking(MOUNT, "prepare the load", move || medium.target()).await?;
        Load::start(target)
    }

    fn target(&self) -> Result<Target, Failure> {
        match self {
            Self::Mounted { at, .. } => Target::file(&at.join("load")),
            Self::Nbd { uri } => Ok(Target::nbd(Nbd::connect(uri)?)),
        }
    }

    /// Reads everything back and compares it with what was put there.
    pub(crate) async fn check(&self, content: &Content, written: &Written) -> Result<String, Failure> {
        let written = written.clone();
        match (self, content) {
            (Self::Mounted { device, at }, Content::Files(manifest)) => {
                mount(device, at, "ro").await?;
                let (at, manifest) = (at.clone(), manifest.clone());
                command::blocking(FILL, "check files", move || {
                    manifest.check(&at)?;
                    let load = written.check(&mut Target::read_file(&at.join("load"))?)?;
                    let files = manifest.files();
                    Ok(format!(
                        "{files} files and {load} blocks of the load are as written"
                    ))
                })
                .await
            }
            (Self::Nbd { uri }, Content::Image) => {
                let uri = uri.clone();
                command::blocking(FILL, "check the image", move || {
                    let mut nbd = Nbd::connect(&uri)?;
                    let bytes = image::check(&mut nbd)?;
                    let load = written.check(&mut Target::nbd(nbd))?;
                    Ok(format!(
                        "{} and {load} blocks of the load are as written",
                        size::format(bytes)
                    ))
                })
                .await
            }
            (Self::Mounted { .. } | Self::Nbd { .. }, _) => {
                Err(Failure::failed("there is nothing to compare with"))
            }
        }
    }

    /// Lets go of the device.
    pub(crate) async fn leave(&self, place: &Place) -> Result<(), Failure> {
        match self {
            Self::Mounted { .. } => unmount(place).await,
            Self::Nbd { .. } => Ok(()),
        }
    }
}

fn text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| Failure::failed(format!("{} is no text", path.display())))
}

async fn mount(device: &Path, at: &Path, how: &str) -> Result<(), Failure> {
    std::fs::create_dir_all(at).map_err(|e| cannot("make the directory", at, &e))?;
    command::run(
        "mount",
        &["-t", "ext4", "-o", how, text(device)?, text(at)?],
        MOUNT,
    )
    .await
}

/// Unmounts what the story has mounted; nothing when it has nothing.
pub(crate) async fn unmount(place: &Place) -> Result<(), Failure> {
    let at = mount_point(place);
    let mut last = Ok(());
    for _ in 0..UNMOUNT_TRIES {
        if !is_mounted(&at) {
            return Ok(());
        }
        last = command::run("umount", &[text(&at)?], UNMOUNT).await;
        if last.is_err() {
            tokio::time::sleep(UNMOUNT_PAUSE).await;
        }
    }
    if !is_mounted(&at) {
        return Ok(());
    }
    // Out of sight at least, so that the next story can mount; the kernel ends it with its last user.
    command::run("umount", &["-l", text(&at)?], UNMOUNT).await?;
    last.map_err(|failure| failure.during("the file system stays in use"))
}

fn is_mounted(at: &Path) -> bool {
    let Some(at) = at.to_str() else { return false };
    // The kernel writes blanks in paths as \040.
    let shown = at.replace('\\', r"\134").replace(' ', r"\040");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(shown.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found() {
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
    }
}
