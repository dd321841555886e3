//! Buffers for direct I/O: aligned, of fixed capacity, recycled per thread.
//!
//! A [`Buf`] is allocated zeroed and keeps its memory initialised for life, so its length may move freely
//! within its capacity. It never promises *what* is in it: a recycled buffer holds whatever was there before.
//! Buffers and pools stay on their thread (they are `!Send`): the reactor that fills them does as well.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Alignment of every buffer and the smallest capacity: what any disk asks of direct I/O.
pub const ALIGN: usize = 4096;

/// From this capacity on memory comes from `mmap` and goes back to the kernel at once: the heap would keep it
/// and an idle process would look as large as its busiest moment.
const MAPPED_FROM: usize = 128 << 10;

/// Size classes 4 KiB, 8 KiB, … 16 MiB; larger buffers are never kept.
const CLASSES: usize = 13;

/// What a pool keeps by default, in bytes, over all classes.
const DEFAULT_KEEP: usize = 1 << 20;

/// A heap buffer aligned to [`ALIGN`] with a fixed capacity and a length.
pub struct Buf {
    memory: Memory,
    len: usize,
    home: Option<Rc<Shelf>>,
}

impl Buf {
    /// A zeroed buffer outside of any pool.
    pub fn new(len: usize) -> Self {
        Self {
            memory: Memory::zeroed(len.max(1).next_multiple_of(ALIGN)),
            len,
            home: None,
        }
    }

    /// Bytes the buffer can hold.
    pub fn capacity(&self) -> usize {
        self.memory.size
    }

    /// Changes the length; what is asked beyond the capacity is cut off. The bytes gained are initialised, but
    /// hold whatever was in the buffer before.
    pub fn set_len(&mut self, len: usize) {
        debug_assert!(
            len <= self.capacity(),
            "a buffer of {} cannot hold {len}",
            self.capacity()
        );
        self.len = len.min(self.capacity());
    }
}

impl Deref for Buf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `memory` is owned by us, initialised for all of its size, and `len <= size`.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        if let Some(home) = self.home.take() {
            home.put(&mut self.memory);
        }
    }
}

/// A buffer that several operations read at the same time; cheap to clone.
#[derive(Clone)]
pub struct Shared(Rc<Buf>);

impl Shared {
    /// The buffer back, if nobody else holds it.
    pub fn try_into_buf(self) -> Result<Buf, Self> {
        Rc::try_unwrap(self.0).map_err(Self)
    }
}

impl From<Buf> for Shared {
    fn from(buf: Buf) -> Self {
        Self(Rc::new(buf))
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.0).finish()
    }
}

/// Gives out buffers and takes them back when they are dropped. Cheap to clone; all clones share one stock.
#[derive(Clone)]
pub struct BufPool {
    shelf: Rc<Shelf>,
}

impl BufPool {
    /// A pool that keeps at most 1 MiB of unused buffers.
    pub fn new() -> Self {
        Self::keeping(DEFAULT_KEEP)
    }

    /// A pool that keeps at most `bytes` of unused buffers.
    pub fn keeping(bytes: usize) -> Self {
        Self {
            shelf: Rc::new(Shelf {
                limit: bytes,
                stock: RefCell::new(Stock::default()),
            }),
        }
    }

    /// A buffer of this length; its capacity is the next size class. Zeroed only when newly allocated.
    pub fn take(&self, len: usize) -> Buf {
        let class = class_of(len);
        let memory = class.and_then(|class| self.shelf.get(class)).unwrap_or_else(|| {
            let size = class.map_or_else(|| len.next_multiple_of(ALIGN), |class| ALIGN << class);
            Memory::zeroed(size)
        });
        Buf {
            memory,
            len,
            home: Some(Rc::clone(&self.shelf)),
        }
    }

    /// A buffer with a copy of these bytes.
    pub fn copy_of(&self, bytes: &[u8]) -> Buf {
        let mut buf = self.take(bytes.len());
        buf.copy_from_slice(bytes);
        buf
    }

    /// Bytes kept at the moment for later use.
    pub fn kept(&self) -> usize {
        self.shelf.stock.borrow().bytes
    }
}

impl Default for BufPool {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BufPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufPool")
            .field("kept", &self.kept())
            .field("limit", &self.shelf.limit)
            .finish()
    }
}

/// The class whose buffers hold `len` bytes, if buffers of that size are kept at all.
fn class_of(len: usize) -> Option<usize> {
    let pages = len.max(1).div_ceil(ALIGN);
    let class = usize::try_from(pages.next_power_of_two().trailing_zeros()).ok()?;
    (class < CLASSES).then_some(class)
}

struct Shelf {
    limit: usize,
    stock: RefCell<Stock>,
}

#[derive(Default)]
struct Stock {
    bytes: usize,
    classes: [Vec<Memory>; CLASSES],
}

impl Shelf {
    fn get(&self, class: usize) -> Option<Memory> {
        let mut stock = self.stock.borrow_mut();
        let memory = stock.classes.get_mut(class)?.pop()?;
        stock.bytes -= memory.size;
        Some(memory)
    }

    /// Keeps the memory if it fits in; otherwise leaves it to be freed by its owner.
    fn put(&self, memory: &mut Memory) {
        let mut stock = self.stock.borrow_mut();
        if stock.bytes + memory.size > self.limit {
            return;
        }
        let Some(shelf) = class_of(memory.size).and_then(|class| stock.classes.get_mut(class)) else {
            return;
        };
        let size = memory.size;
        shelf.push(std::mem::replace(memory, Memory::NONE));
        stock.bytes += size;
    }
}

/// Owned, aligned, initialised memory.
struct Memory {
    start: NonNull<u8>,
    size: usize,
}

impl Memory {
    /// Owns nothing.
    const NONE: Self = Self {
        start: NonNull::dangling(),
        size: 0,
    };

    fn zeroed(size: usize) -> Self {
        let Ok(layout) = Layout::from_size_align(size, ALIGN) else {
            handle_alloc_error(Layout::new::<u8>());
        };
        let start = if size >= MAPPED_FROM {
            let flags = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no other memory.
            let mapped = unsafe { mmap_anonymous(std::ptr::null_mut(), size, flags, MapFlags::PRIVATE) };
            mapped.ok().and_then(|address| NonNull::new(address.cast::<u8>()))
        } else {
            // SAFETY: callers round up to a multiple of ALIGN of at least one, so the size is not zero.
            NonNull::new(unsafe { alloc_zeroed(layout) })
        };
        match start {
            Some(start) => Self { start, size },
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.size == 0 {
            return;
        }
        if self.size >= MAPPED_FROM {
            // SAFETY: the mapping was made by `zeroed` with this size and nobody refers to it any more.
            if let Err(error) = unsafe { munmap(self.start.as_ptr().cast(), self.size) } {
                tracing::error!(%error, size = self.size, "cannot unmap a buffer: its memory is lost");
            }
        } else if let Ok(layout) = Layout::from_size_align(self.size, ALIGN) {
            // SAFETY: allocated by `zeroed` with the same layout and not referred to any more.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_come_back() {
        let pool = BufPool::new();
        let mut first = pool.take(5000);
        assert_eq!((first.len(), first.capacity()), (5000, 8192));
        assert_eq!(first.as_ptr() as usize % ALIGN, 0);
        assert!(first.iter().all(|byte| *byte == 0));
        first.set_len(8192);
        first.fill(7);
        let address = first.as_ptr();
        drop(first);
        assert_eq!(pool.kept(), 8192);
        let again = pool.take(4097);
        assert_eq!(again.as_ptr(), address);
        assert_eq!(pool.kept(), 0);
    }

    #[test]
    fn a_pool_keeps_no_more_than_its_limit() {
        let pool = BufPool::keeping(64 << 10);
        drop((0..40).map(|_| pool.take(4096)).collect::<Vec<_>>());
        assert_eq!(pool.kept(), 64 << 10);
        drop(pool.take(1 << 20));
        assert_eq!(pool.kept(), 64 << 10);
        let large = pool.take((32 << 20) + 1);
        assert_eq!(large.capacity() % ALIGN, 0);
        assert_eq!(large.last(), Some(&0));
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufPool::new();
        let mut buf = pool.take(100);
        drop(pool);
        buf.fill(1);
        assert_eq!(buf.iter().map(|byte| usize::from(*byte)).sum::<usize>(), 100);
    }

    #[test]
    fn a_shared_buffer_is_given_back_by_its_last_holder() {
        let pool = BufPool::new();
        let one = Shared::from(pool.take(10));
        let two = one.clone();
        let one = one.try_into_buf().unwrap_err();
        drop(two);
        assert_eq!(one.try_into_buf().unwrap().len(), 10);
        assert_eq!(pool.kept(), 4096);
    }
}
