//! The memory of a program that lives for some milliseconds.
//!
//! A launch asks for memory some thousand times and ends. Pieces are cut from one block, one after the other; what is
//! given back is used again only where it was the last piece. When the block is used up the C library goes on, so that
//! a runtime that stays with its container does not grow.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::raw::{plain, reg};

/// What most launches need; memory that nobody asks for is never touched.
const SIZE: usize = 512 << 10;

/// To be declared as `#[global_allocator]`.
#[derive(Debug)]
pub struct Heap {
    block: Block,
    used: AtomicUsize,
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Block(UnsafeCell<[u8; SIZE]>);

// SAFETY: bytes of the block are reached only through pieces, of which no two overlap (`Heap::take`).
unsafe impl Sync for Block {}

impl Heap {
    #[must_use]
    pub const fn new() -> Self {
        Self { block: Block(UnsafeCell::new([0; SIZE])), used: AtomicUsize::new(0) }
    }

    /// Have memory for the first `bytes` now: one call instead of a page fault for each page (MADV_POPULATE_WRITE,
    /// Linux 5.14). Where it fails the page faults happen.
    pub fn expect(&self, bytes: usize) {
        const PAGE: usize = 4096;
        let (start, length) = (self.start() as usize, bytes.min(SIZE));
        let (from, to) = (start.next_multiple_of(PAGE), (start + length) & !(PAGE - 1));
        let arguments = [from, to.saturating_sub(from), reg(libc::MADV_POPULATE_WRITE), 0, 0, 0];
        // It changes no byte of the block.
        let _ = plain(libc::SYS_madvise, arguments);
    }

    fn start(&self) -> *mut u8 {
        self.block.0.get().cast()
    }

    /// Where in the block a piece begins; `None` if it is not one of ours.
    fn offset(&self, piece: *mut u8) -> Option<usize> {
        let offset = (piece as usize).wrapping_sub(self.start() as usize);
        (offset < SIZE).then_some(offset)
    }

    /// The next piece; nobody else gets any byte of it.
    fn take(&self, layout: Layout) -> Option<usize> {
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let (from, to) = piece(used, layout)?;
            match self.used.compare_exchange_weak(used, to, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(from),
                Err(now) => used = now,
            }
        }
    }

    /// Have the piece that ends at `end` end at `to`, if it is the last one and there is room.
    fn set_end(&self, end: usize, to: usize) -> bool {
        to <= SIZE
            && self.used.compare_exchange(end, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// From where to where the next piece goes. The block is aligned to 64 bytes; what asks for more is the C library's.
fn piece(used: usize, layout: Layout) -> Option<(usize, usize)> {
    let from = used.checked_next_multiple_of(layout.align())?;
    let to = from.checked_add(layout.size())?;
    (layout.align() <= align_of::<Block>() && to <= SIZE).then_some((from, to))
}

// SAFETY: a piece is inside the block, as large and aligned as the layout says, and nobody else's until it is given back;
// everything else is the C library's, which is asked with the same layouts.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // SAFETY: a piece begins inside the block.
            Some(offset) => unsafe { self.start().add(offset) },
            // SAFETY: our caller's promise is passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match self.offset(memory) {
            Some(offset) => {
                self.set_end(offset + layout.size(), offset);
            }
            // SAFETY: it was not ours, so it is the C library's.
            None => unsafe { System.dealloc(memory, layout) },
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(memory) else {
            // SAFETY: it was not ours, so it is the C library's.
            return unsafe { System.realloc(memory, layout, size) };
        };
        if size <= layout.size() || self.set_end(offset + layout.size(), offset + size) {
            return memory;
        }
        // SAFETY: the size is valid for this alignment by our caller's promise.
        let larger = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0, it is larger than another one.
        let moved = unsafe { self.alloc(larger) };
        if !moved.is_null() {
            // SAFETY: both are at least as long as the old piece, and two pieces do not overlap.
            unsafe { ptr::copy_nonoverlapping(memory, moved, layout.size()) };
        }
        moved
    }
}

#[cfg(test)]
#[expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "each is a small program, and says once why it is right"
)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn pieces_are_aligned_and_follow_each_other() {
        let heap = Heap::new();
        let offsets: Vec<_> =
            [(3, 1), (8, 8), (1, 64), (1, 1)].map(|(s, a)| heap.take(layout(s, a)).unwrap()).into();
        assert_eq!(offsets, [0, 8, 64, 65]);
        assert_eq!(heap.take(layout(1, 128)), None, "more than the block is aligned to");
    }

    #[test]
    fn only_the_last_piece_is_used_again_or_grows() {
        let heap = Box::new(Heap::new());
        let (a, b) = (layout(16, 8), layout(32, 8));
        // SAFETY: pieces are given back with their layouts, and used no more.
        unsafe {
            let first = heap.alloc(a);
            let second = heap.alloc(b);
            assert_eq!(heap.realloc(second, b, 64), second);
            heap.dealloc(second, layout(64, 8));
            heap.dealloc(first, a);
            let whole = heap.alloc(layout(SIZE, 8));
            assert_eq!(whole, first);
            let beyond = heap.alloc(a);
            assert_eq!(heap.offset(beyond), None, "the C library goes on");
            heap.dealloc(beyond, a);
        }
    }

    #[test]
    fn what_moves_keeps_its_content() {
        let heap = Box::new(Heap::new());
        // SAFETY: each piece is read and written within its size.
        unsafe {
            let small = heap.alloc(layout(4, 1));
            small.copy_from_nonoverlapping(b"four".as_ptr(), 4);
            heap.alloc(layout(1, 1));
            let large = heap.realloc(small, layout(4, 1), 8);
            assert_ne!(large, small);
            assert_eq!(std::slice::from_raw_parts(large, 4), b"four");
        }
    }
}
