//! The dirty log: which pages of a slot the guest has written since it was last asked.
//! A bit is set where a write goes through the page tables; the TLB remembers the
//! right to write only after that, and has to forget it when the log is read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::PAGE_SIZE;

/// A bit for each page of a slot.
#[derive(Debug)]
pub struct DirtyLog(Vec<AtomicU64>);

impl DirtyLog {
    /// A log for a slot of so many bytes; no page is dirty.
    pub fn new(memory_size: u64) -> Self {
        let pages = memory_size / PAGE_SIZE;
        Self((0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    /// The page with this offset in its slot was written.
    pub fn mark(&self, offset: u64) {
        let page = offset / PAGE_SIZE;
        self.0[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::Relaxed);
    }

    /// The bits, which are cleared.
    pub fn take(&self) -> Vec<u64> {
        self.0.iter().map(|word| word.swap(0, Ordering::Relaxed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_dirty_until_the_log_is_taken() {
        let log = DirtyLog::new(65 * PAGE_SIZE);
        log.mark(PAGE_SIZE + 5);
        log.mark(64 * PAGE_SIZE);
        assert_eq!(log.take(), [1 << 1, 1]);
        assert_eq!(log.take(), [0, 0]);
    }
}
