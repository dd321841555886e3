//! Names and what they lead to: as they are now, and as they may be after a power cut.
//!
//! Promises: the entries of a directory are durable once the directory is synced. Of what was not, each directory
//! keeps some of its changes, always the earlier before the later, and a rename as a whole. What no name leads to
//! any more is gone. Syncing a file does not make its name durable, and syncing a directory not the content of its
//! files: stricter than any file system in use, and no less than POSIX allows.
//!
//! Not here: owners, permissions and times, which are as durable as the file itself; renames from one directory to
//! another and hard links, which are refused.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::io::Errno;

use super::chance::Chance;
use super::content::Content;

/// Number of the directory everything else is in.
pub const ROOT: u64 = 1;

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A file.
    File(Content),
    /// A directory.
    Directory(Directory),
    /// A symbolic link.
    Link(PathBuf),
    /// A socket or a pipe, as its mode says.
    Special(u32),
}

/// One file, directory or link.
#[derive(Clone, Debug)]
pub struct Node {
    /// See there.
    pub kind: Kind,
    /// Permissions.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change.
    pub changed: SystemTime,
    /// Its last name, for whoever treats files differently.
    pub name: OsString,
    /// How often it is open.
    pub open: u64,
}

/// Entries and what happened to them since the directory was synced.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    entries: BTreeMap<OsString, u64>,
    synced: BTreeMap<OsString, u64>,
    changes: Vec<Vec<(OsString, Option<u64>)>>,
}

impl Directory {
    /// Names and nodes.
    pub fn entries(&self) -> impl Iterator<Item = (&OsString, u64)> {
        self.entries.iter().map(|(name, node)| (name, *node))
    }

    fn apply(&mut self, change: Vec<(OsString, Option<u64>)>) {
        for (name, node) in &change {
            match node {
                Some(node) => self.entries.insert(name.clone(), *node),
                None => self.entries.remove(name),
            };
        }
        self.changes.push(change);
    }

    fn sync(&mut self) {
        self.synced.clone_from(&self.entries);
        self.changes.clear();
    }

    fn cut(&mut self, chance: &mut Chance) {
        let kept = chance.prefix(self.changes.len());
        self.entries = std::mem::take(&mut self.synced);
        let changes = std::mem::take(&mut self.changes);
        for change in changes.into_iter().take(kept) {
            self.apply(change);
        }
        self.sync();
    }
}

/// All of a file system.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node {
            kind: Kind::Directory(Directory::default()),
            mode: 0o755,
            uid: 0,
            gid: 0,
            changed: SystemTime::UNIX_EPOCH,
            name: OsString::new(),
            open: 0,
        };
        Self {
            nodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
        }
    }
}

/// What a power cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Blocks that hold something else now.
    pub blocks: usize,
    /// Files, directories and links that are not there any more, or there again.
    pub names: usize,
}

impl Tree {
    /// A node.
    pub fn node(&self, node: u64) -> Result<&Node, Errno> {
        self.nodes.get(&node).ok_or(Errno::NOENT)
    }

    /// A node, to change it.
    pub fn node_mut(&mut self, node: u64) -> Result<&mut Node, Errno> {
        self.nodes.get_mut(&node).ok_or(Errno::NOENT)
    }

    /// The bytes of a file.
    pub fn file(&self, node: u64) -> Result<&Content, Errno> {
        match &self.node(node)?.kind {
            Kind::File(content) => Ok(content),
            Kind::Directory(_) => Err(Errno::ISDIR),
            Kind::Link(_) | Kind::Special(_) => Err(Errno::INVAL),
        }
    }

    /// The bytes of a file, to change them.
    pub fn file_mut(&mut self, node: u64) -> Result<&mut Content, Errno> {
        let node = self.node_mut(node)?;
        match &mut node.kind {
            Kind::File(content) => {
                node.changed = SystemTime::now();
                Ok(content)
            }
            Kind::Directory(_) => Err(Errno::ISDIR),
            Kind::Link(_) | Kind::Special(_) => Err(Errno::INVAL),
        }
    }

    /// The entries of a directory.
    pub fn directory(&self, node: u64) -> Result<&Directory, Errno> {
        match &self.node(node)?.kind {
            Kind::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn directory_mut(&mut self, node: u64) -> Result<&mut Directory, Errno> {
        let node = self.node_mut(node)?;
        match &mut node.kind {
            Kind::Directory(directory) => {
                node.changed = SystemTime::now();
                Ok(directory)
            }
            _ => Err(Errno::NOTDIR),
        }
    }

    /// What a name leads to.
    pub fn look_up(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        let directory = self.directory(parent)?;
        directory.entries.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Makes a node.
    pub fn make(
        &mut self,
        parent: u64,
        name: &OsStr,
        kind: Kind,
        mode: u32,
        owner: (u32, u32),
    ) -> Result<u64, Errno> {
        if self.look_up(parent, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let number = self.next;
        self.directory_mut(parent)?
            .apply(vec![(name.to_owned(), Some(number))]);
        self.next += 1;
        let node = Node {
            kind,
            mode,
            uid: owner.0,
            gid: owner.1,
            changed: SystemTime::now(),
            name: name.to_owned(),
            open: 0,
        };
        self.nodes.insert(number, node);
        Ok(number)
    }

    /// Removes a name: of a directory when `directory`, else of anything else.
    pub fn remove(&mut self, parent: u64, name: &OsStr, directory: bool) -> Result<(), Errno> {
        let node = self.look_up(parent, name)?;
        match (self.directory(node), directory) {
            (Ok(entries), true) if !entries.entries.is_empty() => return Err(Errno::NOTEMPTY),
            (Ok(_), false) => return Err(Errno::ISDIR),
            (Err(_), true) => return Err(Errno::NOTDIR),
            (Ok(_), true) | (Err(_), false) => {}
        }
        self.directory_mut(parent)?.apply(vec![(name.to_owned(), None)]);
        Ok(())
    }

    /// Gives a node of a directory another name there.
    pub fn rename(&mut self, parent: u64, name: &OsStr, new: &OsStr, replace: bool) -> Result<(), Errno> {
        let node = self.look_up(parent, name)?;
        match self.look_up(parent, new) {
            Ok(there) if there == node => return Ok(()),
            Ok(_) if !replace => return Err(Errno::EXIST),
            Ok(there) => {
                if self
                    .directory(there)
                    .is_ok_and(|entries| !entries.entries.is_empty())
                {
                    return Err(Errno::NOTEMPTY);
                }
            }
            Err(_) => {}
        }
        let change = vec![(name.to_owned(), None), (new.to_owned(), Some(node))];
        self.directory_mut(parent)?.apply(change);
        new.clone_into(&mut self.node_mut(node)?.name);
        Ok(())
    }

    /// Makes the entries of a directory durable.
    pub fn sync_directory(&mut self, node: u64) -> Result<(), Errno> {
        self.directory_mut(node)?.sync();
        self.sweep();
        Ok(())
    }

    /// Makes everything durable.
    pub fn sync_all(&mut self) {
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(content) => content.sync(),
                Kind::Directory(directory) => directory.sync(),
                Kind::Link(_) | Kind::Special(_) => {}
            }
        }
        self.sweep();
    }

    /// Blocks that are no holes, of all files.
    pub fn blocks(&self) -> u64 {
        let blocks = |node: &Node| match &node.kind {
            Kind::File(content) => content.blocks(),
            _ => 0,
        };
        self.nodes.values().map(blocks).sum()
    }

    /// The power goes, and comes back. Blocks of files are torn between sectors where `tears` says so of the name.
    pub fn cut(&mut self, chance: &mut Chance, tears: impl Fn(&OsStr) -> bool) -> Lost {
        let mut lost = Lost::default();
        let mut numbers: Vec<u64> = self.nodes.keys().copied().collect();
        // The same seed has to give the same decisions.
        numbers.sort_unstable();
        for number in numbers {
            let Some(node) = self.nodes.get_mut(&number) else {
                continue;
            };
            node.open = 0;
            let tear = tears(&node.name);
            match &mut node.kind {
                Kind::File(content) => lost.blocks += content.cut(chance, tear),
                Kind::Directory(directory) => {
                    let before = directory.entries.clone();
                    directory.cut(chance);
                    let same = |(name, node): &(&OsString, &u64)| directory.entries.get(*name) == Some(*node);
                    let kept = before.iter().filter(same).count();
                    lost.names += before.len().max(directory.entries.len()) - kept;
                }
                Kind::Link(_) | Kind::Special(_) => {}
            }
        }
        self.sweep();
        lost
    }

    /// Forgets what no name leads to, now or after a cut, and nobody has open.
    fn sweep(&mut self) {
        let mut reached = HashSet::from([ROOT]);
        let mut left: Vec<u64> = vec![ROOT];
        left.extend(
            self.nodes
                .iter()
                .filter(|(_, node)| node.open > 0)
                .map(|(number, _)| *number),
        );
        while let Some(number) = left.pop() {
            reached.insert(number);
            let Ok(directory) = self.directory(number) else {
                continue;
            };
            let changes = directory.changes.iter().flatten().filter_map(|(_, node)| *node);
            let all = directory
                .entries
                .values()
                .chain(directory.synced.values())
                .copied()
                .chain(changes);
            left.extend(all.filter(|node| !reached.contains(node)));
        }
        self.nodes.retain(|number, _| reached.contains(number));
    }
}
