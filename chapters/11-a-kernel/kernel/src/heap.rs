//! `alloc`: Box, Vec, String. The bookkeeping is the crate linked_list_allocator's.

use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, null_mut};

use linked_list_allocator::Heap;

use crate::frames::PAGE;
use crate::global::Global;
use crate::paging::{self, Tables, entry};

const START: u64 = 0xffff_c000_0000_0000;
const SIZE: u64 = 256 << 10;

struct KernelHeap(Global<Heap>);

#[global_allocator]
static HEAP: KernelHeap = KernelHeap(Global::new(Heap::empty()));

/// Maps the heap's pages.
pub fn init() {
    let mut tables = Tables::kernel();
    for page in (0..SIZE).step_by(PAGE as usize) {
        let frame = paging::zeroed_frame().expect("memory for the heap");
        let flags = entry::WRITABLE | entry::NX;
        tables.map(START + page, frame, PAGE, flags).expect("memory for the heap's tables");
    }
    // SAFETY: the range is mapped, and nobody else's.
    unsafe { HEAP.0.get().init(START as *mut u8, SIZE as usize) };
}

/// Bytes that are allocated.
pub fn used() -> usize {
    HEAP.0.get().used()
}

// SAFETY: blocks come from the allocator, which gives no byte to two owners; the
// `Global` around it admits one caller at a time.
unsafe impl GlobalAlloc for KernelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.get().allocate_first_fit(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let block = NonNull::new(block).expect("a block of this heap");
        // SAFETY: the caller promises that the block came from `alloc` with this layout.
        unsafe { self.0.get().deallocate(block, layout) }
    }
}
