//! A real tree of files: copied from this machine into the volume, hashed while it is read, compared later.

use std::fs;
use std::path::{Path, PathBuf};

use super::super::place::cannot;
use crate::failure::Failure;

/// Where every machine has many files of all sizes.
const SOURCES: [&str; 5] = [
    "/usr/share/doc",
    "/usr/lib/python3",
    "/usr/share/perl",
    "/usr/share",
    "/usr/lib",
];
/// Enough; the volume is larger.
const MOST_BYTES: u64 = 128 << 20;
const MOST_FILES: usize = 20_000;
/// Larger files are passed over, so that it stays a tree.
const LARGEST: u64 = 16 << 20;
const DEEPEST: usize = 16;

/// What was copied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manifest {
    /// Below the mount point.
    files: Vec<(PathBuf, blake3::Hash)>,
    bytes: u64,
}

/// Copies files into the file system at `at` and makes them durable.
pub(crate) fn copy(at: &Path) -> Result<Manifest, Failure> {
    let mut manifest = Manifest::default();
    let root = at.join("tree");
    for source in SOURCES {
        manifest.copy_tree(Path::new(source), at, &root, 0)?;
    }
    if manifest.files.is_empty() {
        return Err(Failure::failed("this machine has no files to copy")
            .why(format!("looked in {}", SOURCES.join(", "))));
    }
    let handle = fs::File::open(at).map_err(|e| cannot("open", at, &e))?;
    rustix::fs::syncfs(&handle).map_err(|e| cannot("sync", at, &e.into()))?;
    Ok(manifest)
}

impl Manifest {
    pub(crate) fn files(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn is_full(&self) -> bool {
        self.bytes >= MOST_BYTES || self.files.len() >= MOST_FILES
    }

    fn copy_tree(&mut self, source: &Path, at: &Path, root: &Path, depth: usize) -> Result<(), Failure> {
        if depth > DEEPEST || self.is_full() {
            return Ok(());
        }
        // What can't be read is not ours to copy.
        let Ok(entries) = fs::read_dir(source) else {
            return Ok(());
        };
        let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            if metadata.is_dir() {
                self.copy_tree(&path, at, root, depth + 1)?;
            } else if metadata.is_file() && metadata.len() <= LARGEST && !self.is_full() {
                self.copy_file(&path, at, root)?;
            }
        }
        Ok(())
    }

    fn copy_file(&mut self, path: &Path, at: &Path, root: &Path) -> Result<(), Failure> {
        let target = root.join(path.strip_prefix("/").unwrap_or(path));
        if target.exists() {
            return Ok(()); // a source inside another one
        }
        let Ok(content) = fs::read(path) else {
            return Ok(());
        };
        let parent = target.parent().unwrap_or(root);
        fs::create_dir_all(parent).map_err(|e| cannot("make the directory", parent, &e))?;
        fs::write(&target, &content).map_err(|e| cannot("write", &target, &e))?;
        self.bytes += u64::try_from(content.len()).unwrap_or(0);
        let name = target.strip_prefix(at).unwrap_or(&target).to_owned();
        self.files.push((name, blake3::hash(&content)));
        Ok(())
    }

    /// Reads every file again and compares.
    pub(crate) fn check(&self, at: &Path) -> Result<(), Failure> {
        for (name, hash) in &self.files {
            let path = at.join(name);
            let content = fs::read(&path).map_err(|e| cannot("read", &path, &e))?;
            if blake3::hash(&content) != *hash {
                return Err(Failure::failed(format!(
                    "{} is not as it was written",
                    name.display()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_missing_file_is_found() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("d")).unwrap();
        fs::write(from.path().join("d/a"), "alpha").unwrap();
        fs::write(from.path().join("b"), "").unwrap();
        std::os::unix::fs::symlink("b", from.path().join("link")).unwrap();
        let mut manifest = Manifest::default();
        let root = to.path().join("tree");
        manifest.copy_tree(from.path(), to.path(), &root, 0).unwrap();
        assert_eq!((manifest.files(), manifest.bytes()), (2, 5));
        manifest.check(to.path()).unwrap();
        let copy = root.join(from.path().strip_prefix("/").unwrap()).join("d/a");
        fs::write(&copy, "alphA").unwrap();
        assert!(
            manifest
                .check(to.path())
                .unwrap_err()
                .what
                .contains("not as it was")
        );
        fs::remove_file(&copy).unwrap();
        assert!(manifest.check(to.path()).is_err());
    }
}
