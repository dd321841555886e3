//! Device nodes in /dev, where nobody else may make them: a container with a /dev of its own.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

/// Sees to it that `path` is the node of the device whose number (`major:minor`) stands in the file `number` of
/// sysfs. Whatever else is there is left alone and is an error.
pub(crate) fn make(path: &Path, kind: FileType, number: &Path) -> io::Result<()> {
    let text = fs::read_to_string(number)?;
    let wanted = text
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some(makedev(major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::other(format!("its number is {text:?}")))?;
    match mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, wanted) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    let found = fs::symlink_metadata(path)?;
    let same_kind = match kind {
        FileType::BlockDevice => found.file_type().is_block_device(),
        _ => found.file_type().is_char_device(),
    };
    if !same_kind || found.rdev() != wanted {
        return Err(io::Error::other(format!(
            "it is not the node of device {}",
            text.trim()
        )));
    }
    Ok(())
}
