//! A disk that loses what was not flushed when its power goes: a file system in memory, mounted by FUSE, that keeps
//! what is durable apart from what merely reads back.
//!
//! Promises: after a cut, what was made durable is there, and of the rest a subset that follows from a seed (see
//! [`content`] and [`tree`]). Between [`Disk::hold`] and [`Disk::cut`] nothing is done any more, so that several
//! disks can lose their power at one moment, with the processes that use them.
//!
//! Not here: what the hardware of a real disk does beside losing what it was not asked to keep.

pub mod chance;
pub mod content;
mod power;
mod serve;
pub mod tree;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rustix::mount::UnmountFlags;

use self::chance::Chance;
use self::power::Power;
use self::serve::Server;
use self::tree::{Lost, Tree};
use crate::wait;

pub use self::power::Flushes;

/// Killed processes let go of their files within this time.
const LET_GO: Duration = Duration::from_mins(1);

/// One disk, mounted. Dropping it unmounts it; its content is gone then.
#[derive(Debug)]
pub struct Disk {
    point: PathBuf,
    power: Arc<Power>,
    session: Option<fuser::BackgroundSession>,
}

/// Why no disk can be mounted here, if so.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting takes root".to_owned());
    }
    let device = fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    device.err().map(|error| format!("/dev/fuse: {error}"))
}

impl Disk {
    /// An empty one.
    pub fn mount(point: &Path) -> anyhow::Result<Self> {
        let point = point
            .canonicalize()
            .with_context(|| format!("finding {}", point.display()))?;
        let mut disk = Self {
            point,
            power: Arc::new(Power::on(Tree::default(), Vec::new())),
            session: None,
        };
        disk.serve()?;
        Ok(disk)
    }

    fn serve(&mut self) -> anyhow::Result<()> {
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            fuser::MountOption::FSName("stor-lossy".to_owned()),
            fuser::MountOption::DefaultPermissions,
        ];
        config.acl = fuser::SessionACL::All;
        let session = fuser::spawn_mount(Server(Arc::clone(&self.power)), &self.point, &config);
        self.session = Some(session.with_context(|| format!("mounting {}", self.point.display()))?);
        Ok(())
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// What it was asked to make durable since the last cut.
    pub fn flushes(&self) -> Flushes {
        self.power.flushes()
    }

    /// Everything it holds has been there for long.
    pub fn settle(&self) -> anyhow::Result<()> {
        self.power.wait()?.tree().sync_all();
        Ok(())
    }

    /// From now on it says that files whose names end like this are durable when they are not.
    pub fn lie_about(&self, ends: &[&str]) {
        self.power.lie(ends.iter().map(|end| (*end).to_owned()).collect());
    }

    /// The moment the power goes: nothing is done and nothing answered any more. Whoever uses the disk is to be
    /// killed now.
    pub fn hold(&self) {
        self.power.hold();
    }

    /// Requests so far that change something.
    pub fn changes(&self) -> u64 {
        self.power.changes()
    }

    /// The power goes by itself after so many more changes, see [`Disk::hold`].
    pub fn hold_after(&self, changes: u64) {
        self.power.hold_after(changes);
    }

    /// Whether the moment has come.
    pub fn is_held(&self) -> bool {
        self.power.is_held()
    }

    /// After [`Disk::release`]: only its users were killed, everything that was written is there.
    pub fn resume(&self) {
        self.power.resume();
    }

    /// Lets those who still wait for it die.
    pub fn release(&self) {
        self.power.off();
    }

    /// Takes it away with all it was not made to keep, and brings it back. An error while a process still uses it.
    pub fn cut(&mut self, chance: &mut Chance) -> anyhow::Result<Lost> {
        self.power.off();
        self.unmount()?;
        let mut tree = self.power.take();
        let lost = tree.cut(chance, tears);
        self.power = Arc::new(Power::on(tree, self.power.lies()));
        self.serve()?;
        Ok(lost)
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        // Unmounts, if nobody uses it.
        self.session = None;
        let what = format!("nobody uses {} any more", self.point.display());
        wait::until(LET_GO, &what, || {
            if !is_mounted(&self.point)? {
                return Ok(true);
            }
            // Why not is told when it never works.
            _ = rustix::mount::unmount(&self.point, UnmountFlags::empty());
            Ok(false)
        })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.power.off();
        self.session = None;
        if is_mounted(&self.point).unwrap_or(false) {
            // Whoever still uses it gets errors.
            _ = rustix::mount::unmount(&self.point, UnmountFlags::DETACH | UnmountFlags::FORCE);
        }
    }
}

/// Blocks of a volume's data are whole or not; everything else has to bear torn ones.
fn tears(name: &OsStr) -> bool {
    !name.as_bytes().ends_with(b".data")
}

fn is_mounted(point: &Path) -> anyhow::Result<bool> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mounts")?;
    let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.any(|mounted| Path::new(mounted) == point))
}
