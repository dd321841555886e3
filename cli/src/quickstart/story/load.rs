//! Writing all the time: blocks that say which write they are of, so that the last answered write of every
//! place can be looked for later, and the longest time a write took.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::place::cannot;
use super::nbd::Nbd;
use crate::failure::{Exit, Failure};

/// Bytes of one write.
const BLOCK: usize = 16 << 10;
/// Places written in turn: 256 MiB.
const SLOTS: usize = 16 << 10;
/// Where the load begins on a volume without file system, beyond the image.
const NBD_OFFSET: u64 = 256 << 20;
/// Between writes: a steady load that says something about stalls, not the fastest.
const PAUSE: Duration = Duration::from_millis(1);
/// O_DIRECT wants memory at multiples of the block size of the disk, at most this.
const ALIGN: usize = 4096;
/// The write that is under way ends within this time.
const END: Duration = Duration::from_mins(1);

/// Where the load goes.
#[derive(Debug)]
pub(crate) enum Target {
    /// A file, past the page cache.
    File(File),
    /// A volume over NBD.
    Nbd(Box<Nbd>),
}

impl Target {
    /// A new file with room for all slots.
    pub(crate) fn file(path: &Path) -> Result<Self, Failure> {
        let direct = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).unwrap_or(0);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(direct)
            .open(path)
            .map_err(|e| cannot("open", path, &e))?;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, offset(SLOTS))
            .map_err(|e| cannot("give room to", path, &e.into()))?;
        file.sync_all().map_err(|e| cannot("sync", path, &e))?;
        Ok(Self::File(file))
    }

    /// The file of an earlier load.
    pub(crate) fn read_file(path: &Path) -> Result<Self, Failure> {
        File::open(path)
            .map(Self::File)
            .map_err(|e| cannot("open", path, &e))
    }

    pub(crate) fn nbd(nbd: Nbd) -> Self {
        Self::Nbd(Box::new(nbd))
    }

    fn write(&mut self, slot: usize, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::File(file) => file
                .write_all_at(bytes, offset(slot))
                .map_err(|e| Failure::failed("a write failed").why(e.to_string())),
            Self::Nbd(nbd) => nbd.write(NBD_OFFSET + offset(slot), bytes),
        }
    }

    fn read(&mut self, slot: usize, bytes: &mut [u8]) -> Result<(), Failure> {
        match self {
            Self::File(file) => file
                .read_exact_at(bytes, offset(slot))
                .map_err(|e| Failure::failed("a read failed").why(e.to_string())),
            Self::Nbd(nbd) => nbd.read(NBD_OFFSET + offset(slot), bytes),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::File(file) => file
                .sync_all()
                .map_err(|e| Failure::failed("a flush failed").why(e.to_string())),
            Self::Nbd(nbd) => nbd.flush(),
        }
    }
}

fn offset(slot: usize) -> u64 {
    u64::try_from(slot * BLOCK).unwrap_or(u64::MAX)
}

/// Fills a block with what write `number` puts into `slot`.
fn fill(block: &mut [u8], number: u64, slot: usize) {
    let mut pattern = [0_u8; 16];
    let (left, right) = pattern.split_at_mut(8);
    left.copy_from_slice(&number.to_le_bytes());
    right.copy_from_slice(&offset(slot).to_le_bytes());
    for piece in block.chunks_exact_mut(pattern.len()) {
        piece.copy_from_slice(&pattern);
    }
}

/// How far a load is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// Writes answered.
    pub(crate) writes: u64,
    /// Longest time one took; the one under way counts.
    pub(crate) longest: Duration,
}

impl Progress {
    /// Bytes written since there were `writes` answers.
    pub(crate) fn bytes_since(self, writes: u64) -> u64 {
        self.writes.saturating_sub(writes) * BLOCK as u64
    }
}

#[derive(Debug, Default)]
struct Shared {
    progress: Progress,
    under_way: Option<Instant>,
    failed: Option<Failure>,
}

/// The last answered write of every slot; 0: none.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    slots: Vec<u64>,
}

/// A load that runs. Dropping it ends it, after the write that is under way.
#[derive(Debug)]
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<Written>>,
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Load {
    /// Begins to write.
    pub(crate) fn start(target: Target) -> Result<Self, Failure> {
        let (stop, shared) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(Mutex::new(Shared::default())),
        );
        let (stopped, told) = (Arc::clone(&stop), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("load".to_owned())
            .spawn(move || write_all_the_time(target, &stopped, &told))
            .map_err(|e| Failure::failed("the load can't start").why(e.to_string()))?;
        Ok(Self {
            stop,
            shared,
            thread: Some(thread),
        })
    }

    /// How far it is; an error once a write has failed.
    pub(crate) fn progress(&mut self) -> Result<Progress, Failure> {
        let shared = lock(&self.shared);
        if let Some(failure) = &shared.failed {
            return Err(failure.clone().during("the load"));
        }
        let mut progress = shared.progress;
        if let Some(since) = shared.under_way {
            progress.longest = progress.longest.max(since.elapsed());
        }
        Ok(progress)
    }

    /// Ends it with a flush; an error when any write had failed.
    pub(crate) async fn finish(mut self) -> Result<Written, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Err(Failure::failed("the load has ended before"));
        };
        let deadline = Instant::now() + END;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                return Err(Failure::new(Exit::TimedOut, "a write of the load does not end"));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let written = thread
            .join()
            .map_err(|_| Failure::failed("the load's thread ended"))?;
        self.progress()?;
        Ok(written)
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_all_the_time(mut target: Target, stop: &AtomicBool, shared: &Mutex<Shared>) -> Written {
    let mut written = Written {
        slots: vec![0; SLOTS],
    };
    let mut memory = vec![0_u8; BLOCK + ALIGN];
    let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
    let Some(block) = memory.get_mut(start..start + BLOCK) else {
        return written;
    };
    for number in 1_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let slot = usize::try_from(number).unwrap_or(0) % SLOTS;
        fill(block, number, slot);
        let begin = Instant::now();
        lock(shared).under_way = Some(begin);
        let ended = target.write(slot, block);
        let mut shared = lock(shared);
        shared.under_way = None;
        shared.progress.longest = shared.progress.longest.max(begin.elapsed());
        if let Err(failure) = ended {
            shared.failed = Some(failure);
            return written;
        }
        shared.progress.writes += 1;
        drop(shared);
        if let Some(last) = written.slots.get_mut(slot) {
            *last = number;
        }
        std::thread::sleep(PAUSE);
    }
    if let Err(failure) = target.flush() {
        lock(shared).failed = Some(failure);
    }
    written
}

impl Written {
    /// Reads every slot that was written and compares; answers how many.
    pub(crate) fn check(&self, target: &mut Target) -> Result<usize, Failure> {
        let (mut found, mut expected) = (vec![0_u8; BLOCK], vec![0_u8; BLOCK]);
        let mut count = 0;
        for (slot, number) in self.slots.iter().enumerate().filter(|(_, number)| **number > 0) {
            target.read(slot, &mut found)?;
            fill(&mut expected, *number, slot);
            if found != expected {
                let shown = found
                    .first_chunk::<8>()
                    .map_or(0, |bytes| u64::from_le_bytes(*bytes));
                return Err(Failure::failed("an answered write is missing").why(format!(
                    "block {slot} of the load should be that of write {number} and begins with {shown}"
                )));
            }
            count += 1;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_answered_is_found_and_a_lost_write_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("load");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .unwrap();
        let mut load = Load::start(Target::File(file)).unwrap();
        while load.progress().unwrap().writes < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let written = load.finish().await.unwrap();
        assert!(written.check(&mut Target::read_file(&path).unwrap()).unwrap() >= 10);

        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0; 16], offset(3) + 512).unwrap();
        let failure = written.check(&mut Target::read_file(&path).unwrap()).unwrap_err();
        assert!(failure.what.contains("missing"), "{failure:?}");
    }

    #[tokio::test]
    async fn a_failed_write_ends_the_load_and_is_told() {
        let mut load = Load::start(Target::read_file(Path::new("/proc/self/exe")).unwrap()).unwrap();
        while load.progress().is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(load.finish().await.unwrap_err().what.contains("write failed"));
    }
}
