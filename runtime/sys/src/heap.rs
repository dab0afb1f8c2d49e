//! The memory of a program that lives for some milliseconds.
//!
//! A launch asks for memory some thousand times and ends, and each page that it touches costs more than all bookkeeping.
//! Pieces are cut from one block, one after the other; what is given back goes to a list of its size, and is taken from
//! there first. When the block is used up the C library goes on.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::raw::{plain, reg, thread};

/// What most launches need; memory that nobody asks for is never touched.
const SIZE: usize = 512 << 10;
/// Sizes are rounded up to this, and pieces are aligned to it.
const GRAIN: usize = 16;
/// Up to here each multiple of [`GRAIN`] has a list of its own; above, four sizes for each power of two.
const FINE: usize = 512;
const CLASSES: usize = 64;
/// Ends a list. Zero, and offsets are counted from one: a heap that is all zeros takes no room in the program's file.
const NONE: u32 = 0;
/// What is had at once when the block is wanted soon.
const STRETCH: usize = 64 << 10;

/// How often this program has made a process that has a copy of its memory.
static BIRTHS: AtomicU32 = AtomicU32::new(0);

/// There is a process now that shares all pages until they are written to, which costs a copy of each. So no memory from
/// before is used again: it would be one page here and one there.
pub(crate) fn leave_behind() {
    BIRTHS.fetch_add(1, Ordering::Relaxed);
}

/// To be declared as `#[global_allocator]`.
#[derive(Debug)]
pub struct Heap {
    block: Block,
    state: UnsafeCell<State>,
    /// The first thread that asked, which all is for: another one, which a runtime has not, is served by the C library.
    /// To know oneself takes a tenth of the time of a lock.
    owner: AtomicUsize,
}

#[repr(C, align(64))]
#[derive(Debug)]
struct Block(UnsafeCell<[u8; SIZE]>);

#[derive(Debug)]
struct State {
    used: usize,
    /// Up to here there is memory behind the block, if it was asked for; 0 where nobody did.
    ready: usize,
    /// What lies before is from before the last birth.
    fresh: usize,
    births: u32,
    /// The first free piece of each size; it holds the offset of the next one.
    free: [u32; CLASSES],
}

impl State {
    fn leave_behind(&mut self, births: u32) {
        *self = Self { used: self.used, ready: 0, fresh: self.used, births, free: [NONE; CLASSES] };
    }
}

// SAFETY: the state and free pieces are touched only by the owner; other bytes of the block are reached through pieces, of
// which no two overlap.
unsafe impl Sync for Heap {}

impl Heap {
    #[must_use]
    pub const fn new() -> Self {
        Self {
            block: Block(UnsafeCell::new([0; SIZE])),
            state: UnsafeCell::new(State {
                used: 0,
                ready: 0,
                fresh: 0,
                births: 0,
                free: [NONE; CLASSES],
            }),
            owner: AtomicUsize::new(0),
        }
    }

    /// The block is about to be used: have memory for it in stretches, one call instead of a page fault for each page
    /// (MADV_POPULATE_WRITE, Linux 5.14). Where it fails the page faults happen.
    pub fn hasten(&self) {
        self.alone(|state| self.make_ready(state, state.used + 1));
    }

    /// Until a process is born: what is written to afterwards is little.
    fn make_ready(&self, state: &mut State, to: usize) {
        const PAGE: usize = 4096;
        let (start, from) = (self.start() as usize, state.ready.max(state.used));
        let to = to.next_multiple_of(STRETCH).min(SIZE);
        let (first, end) = ((start + from).next_multiple_of(PAGE), (start + to) & !(PAGE - 1));
        let arguments = [first, end.saturating_sub(first), reg(libc::MADV_POPULATE_WRITE), 0, 0, 0];
        // It changes no byte of the block.
        let _ = plain(libc::SYS_madvise, arguments);
        state.ready = to;
    }

    fn start(&self) -> *mut u8 {
        self.block.0.get().cast()
    }

    /// Where in the block a piece begins; `None` if it is not one of ours.
    fn offset(&self, piece: *mut u8) -> Option<usize> {
        let offset = (piece as usize).wrapping_sub(self.start() as usize);
        (offset < SIZE).then_some(offset)
    }

    /// Alone with the state; `None` for who is not its owner.
    fn alone<T>(&self, act: impl FnOnce(&mut State) -> T) -> Option<T> {
        let me = thread();
        if self.owner.load(Ordering::Relaxed) != me {
            self.owner.compare_exchange(0, me, Ordering::Relaxed, Ordering::Relaxed).ok()?;
        }
        // SAFETY: of living threads only one is the owner, and `act` does not come back here.
        let state = unsafe { &mut *self.state.get() };
        let births = BIRTHS.load(Ordering::Relaxed);
        if state.births != births {
            state.leave_behind(births);
        }
        Some(act(state))
    }

    /// A piece of this class: the first free one, or the next of the block.
    fn take(&self, class: Class) -> Option<*mut u8> {
        let found = self.alone(|state| {
            let first = state.free[class.index];
            if first == NONE {
                let to = state.used.checked_add(class.size).filter(|to| *to <= SIZE)?;
                if state.ready != 0 && to > state.ready {
                    self.make_ready(state, to);
                }
                return Some(std::mem::replace(&mut state.used, to));
            }
            let offset = first as usize - 1;
            state.free[class.index] = self.link(offset, None);
            Some(offset)
        });
        // SAFETY: a piece begins inside the block.
        found.flatten().map(|offset| unsafe { self.start().add(offset) })
    }

    fn give_back(&self, offset: usize, class: Class) {
        // Lost where it was another's.
        self.alone(|state| {
            if offset < state.fresh {
                return;
            }
            if state.used == offset + class.size {
                state.used = offset;
                return;
            }
            self.link(offset, Some(state.free[class.index]));
            state.free[class.index] = u32::try_from(offset + 1).unwrap_or(NONE);
        });
    }

    /// What a free piece holds, before it is given another value.
    fn link(&self, offset: usize, next: Option<u32>) -> u32 {
        // SAFETY: a free piece begins inside the block.
        let place = unsafe { self.start().add(offset) }.cast::<u32>();
        // SAFETY: it is aligned to GRAIN and as large, and nobody else's; only who is alone with the state gets here.
        let place = unsafe { &mut *place };
        next.map_or(*place, |next| std::mem::replace(place, next))
    }
}

impl Default for Heap {
    fn default() -> Self {
        Self::new()
    }
}

/// Sizes that are served alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    index: usize,
    size: usize,
}

impl Class {
    /// `None` for what the C library is asked for: large, or aligned to more than a grain.
    fn of(layout: Layout) -> Option<Self> {
        let size = layout.size().max(1).checked_next_multiple_of(GRAIN)?;
        if layout.align() > GRAIN {
            return None;
        }
        if size <= FINE {
            return Some(Self { index: size / GRAIN - 1, size });
        }
        // FINE < size: each power of two in quarters.
        let power = usize::BITS - (size - 1).leading_zeros() - 1;
        let quarter = 1 << (power - 2);
        let size = size.next_multiple_of(quarter);
        let doublings = (power - FINE.trailing_zeros()) as usize;
        let index = FINE / GRAIN + 4 * doublings + (size >> (power - 2)) - 5;
        (index < CLASSES).then_some(Self { index, size })
    }
}

// SAFETY: a piece is inside the block, as large and aligned as the layout says, and nobody else's until it is given back;
// everything else is the C library's, which is asked with the same layouts.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Class::of(layout).and_then(|class| self.take(class)) {
            Some(piece) => piece,
            // SAFETY: our caller's promise is passed on.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        match (self.offset(memory), Class::of(layout)) {
            (Some(offset), Some(class)) => self.give_back(offset, class),
            // SAFETY: it was not ours, so it is the C library's.
            _ => unsafe { System.dealloc(memory, layout) },
        }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if self.offset(memory).is_none() {
            // SAFETY: it was not ours, so it is the C library's.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the size is valid for this alignment by our caller's promise.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if Class::of(wanted) == Class::of(layout) {
            return memory;
        }
        // SAFETY: the size is not 0 by our caller's promise.
        let moved = unsafe { self.alloc(wanted) };
        if !moved.is_null() {
            // SAFETY: both are at least as long as the shorter one, and two pieces do not overlap.
            unsafe { ptr::copy_nonoverlapping(memory, moved, layout.size().min(size)) };
            // SAFETY: the piece is the caller's, who uses it no more.
            unsafe { self.dealloc(memory, layout) };
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
    fn classes_grow_and_hold_what_is_asked_for() {
        let mut last = Class { index: 0, size: 16 };
        for size in 1..200_000 {
            let Some(class) = Class::of(layout(size, 8)) else {
                assert!(size > 64 << 10, "{size}");
                return;
            };
            assert!(class.size >= size && class.size.is_multiple_of(GRAIN), "{size}: {class:?}");
            assert!(
                class.size <= size + GRAIN || class.size <= size + size / 4,
                "{size}: {class:?}"
            );
            let next = Class { index: last.index + 1, size: class.size };
            assert!(
                class == last || (class == next && class.size > last.size),
                "{size}: {class:?}"
            );
            last = class;
        }
        panic!("there is no end of classes");
    }

    #[test]
    fn what_is_given_back_is_used_again() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        let (small, large) = (layout(24, 8), layout(3000, 8));
        // SAFETY: pieces are given back with their layouts, and used no more.
        unsafe {
            let pieces: Vec<*mut u8> = (0..4).map(|_| heap.alloc(small)).collect();
            let big = heap.alloc(large);
            heap.dealloc(pieces[1], small);
            heap.dealloc(pieces[2], small);
            assert_eq!(heap.alloc(small), pieces[2]);
            assert_eq!(heap.alloc(layout(32, 1)), pieces[1], "another size of the same class");
            heap.dealloc(big, large);
            assert_eq!(heap.alloc(layout(100, 8)), big, "the last piece makes room for any");
        }
    }

    #[test]
    fn nothing_from_before_a_birth_is_used_again() {
        static HEAP: Heap = Heap::new();
        let (heap, layout) = (&HEAP, layout(48, 8));
        heap.hasten();
        // SAFETY: pieces are given back with their layouts, and used no more.
        unsafe {
            let (first, second) = (heap.alloc(layout), heap.alloc(layout));
            heap.dealloc(first, layout);
            heap.alone(|state| state.leave_behind(state.births));
            let third = heap.alloc(layout);
            assert!(third > second, "neither from the list nor in a gap");
            heap.dealloc(second, layout);
            let fourth = heap.alloc(layout);
            assert!(fourth > third);
            heap.dealloc(third, layout);
            assert_eq!(heap.alloc(layout), third, "what is from afterwards is");
        }
    }

    #[test]
    fn the_c_library_goes_on() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        let piece = layout(32 << 10, 8);
        // SAFETY: pieces are given back with their layouts, and used no more.
        unsafe {
            let all: Vec<*mut u8> = (0..20).map(|_| heap.alloc(piece)).collect();
            let ours = all.iter().filter(|p| heap.offset(**p).is_some()).count();
            assert_eq!(ours, SIZE / (32 << 10));
            all.into_iter().for_each(|p| heap.dealloc(p, piece));
            for odd in [layout(64, 64), layout(1 << 20, 8)] {
                let memory = heap.alloc(odd);
                assert_eq!(heap.offset(memory), None);
                heap.dealloc(memory, odd);
            }
        }
    }

    #[test]
    fn what_moves_keeps_its_content() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        // SAFETY: each piece is read and written within its size.
        unsafe {
            let mut memory = heap.alloc(layout(4, 1));
            memory.copy_from_nonoverlapping(b"four".as_ptr(), 4);
            let mut size = 4;
            for next in [10, 16, 17, 600, 90_000, 2_000_000, 40, 4] {
                memory = heap.realloc(memory, layout(size, 1), next);
                size = next;
                assert_eq!(std::slice::from_raw_parts(memory, 4), b"four", "{next}");
            }
            heap.dealloc(memory, layout(size, 1));
        }
    }

    #[test]
    fn threads_get_in_nobodys_way() {
        static HEAP: Heap = Heap::new();
        let heap = &HEAP;
        let work = |seed: u8| {
            for round in 0..5000_usize {
                let size = 1 + (round * 37 + usize::from(seed) * 101) % 900;
                // SAFETY: each piece is written and read within its size, and given back once.
                unsafe {
                    let memory = heap.alloc(layout(size, 8));
                    memory.write_bytes(seed, size);
                    assert!(std::slice::from_raw_parts(memory, size).iter().all(|b| *b == seed));
                    heap.dealloc(memory, layout(size, 8));
                }
            }
        };
        let threads: Vec<_> = (1..5).map(|seed| std::thread::spawn(move || work(seed))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
